"""Metrics against scikit-learn and their definitions; bootstrap over subjects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from moe_retriever.data.scores import metrics_of
from moe_retriever.evaluation.bootstrap import bootstrap, score, table, weighted_metrics


def case(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    # Rounding produces ties.
    raw = np.round(rng.random((n, n_classes)) + 0.3 * np.eye(n_classes)[label], 1) + 0.05
    return label, raw / raw.sum(axis=1, keepdims=True)


@given(st.integers(12, 60), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_weighted_metrics_equal_scikit_learn_with_sample_weights(n: int, n_classes: int, seed: int) -> None:
    label, p = case(n, n_classes, seed)
    weight = np.random.default_rng(seed).integers(0, 4, (3, n)).astype(float)
    weight[:, :n_classes] += 1
    found = weighted_metrics(label, p, weight)
    predicted = p.argmax(axis=1)
    columns = [1] if n_classes == 2 else range(n_classes)
    for r, w in enumerate(weight):
        assert found["accuracy"][r] == pytest.approx(accuracy_score(label, predicted, sample_weight=w))
        assert found["balanced_accuracy"][r] == pytest.approx(
            balanced_accuracy_score(label, predicted, sample_weight=w)
        )
        assert found["macro_f1"][r] == pytest.approx(f1_score(label, predicted, average="macro", sample_weight=w))
        roc = [roc_auc_score(label == c, p[:, c], sample_weight=w) for c in columns]
        pr = [average_precision_score(label == c, p[:, c], sample_weight=w) for c in columns]
        assert found["auroc"][r] == pytest.approx(np.mean(roc))
        assert found["auprc"][r] == pytest.approx(np.mean(pr))


def test_a_weight_of_two_equals_a_duplicated_sample() -> None:
    label, p = case(30, 2, 0)
    weight = np.ones((1, 30))
    weight[0, :10] = 2
    twice = np.concatenate([np.arange(30), np.arange(10)])
    for predicted in (p, p[:, 1]):
        many = weighted_metrics(label[twice], predicted[twice], np.ones((1, 40)))
        for name, values in weighted_metrics(label, predicted, weight).items():
            assert values == pytest.approx(many[name]), name


def test_metrics_of_a_constant_prediction() -> None:
    """Scores of a collapsed model, which accuracy alone would not reveal."""
    label = np.array([0, 0, 0, 1])
    p = np.tile([0.6, 0.4], (4, 1))
    found = score(label, p)
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((6 / 7) / 2)
    assert found["auroc"] == 0.5
    assert found["ece"] == pytest.approx(0.15)


def test_undefined_metrics_are_none() -> None:
    found = score(np.array([1, 1]), np.array([[0.2, 0.8], [0.6, 0.4]]))
    assert found["auroc"] is None
    assert found["auprc"] is None
    assert found["accuracy"] == 0.5
    assert score(np.zeros(0, np.int64), np.zeros((0, 2))) == dict.fromkeys(metrics_of(np.zeros((0, 2))))


def test_the_interval_covers_the_truth_and_is_wider_for_clustered_samples() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    right = rng.random(400) < 0.8
    p = np.where((label == 1) == right, 0.9, 0.1)
    p = np.column_stack([1 - p, p])
    alone = bootstrap(label, p, np.arange(400).astype(str), seed=0)
    low, high = alone["accuracy"]
    assert low < 0.8 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.02, rel=0.2)
    # All samples of a subject are correct or wrong together, so 400 samples carry less information.
    subject = np.repeat(np.arange(40), 10).astype(str)
    good = np.arange(40) % 5 > 0
    q = np.where((label == 1) == np.repeat(good, 10), 0.9, 0.1)
    clustered = bootstrap(label, np.column_stack([1 - q, q]), subject, seed=0)["accuracy"]
    assert clustered[1] - clustered[0] > 2 * (high - low)
    assert bootstrap(label, p, np.arange(400).astype(str), seed=0) == alone


def test_there_is_no_interval_if_resamples_often_leave_the_metric_undefined() -> None:
    """One positive of eight is in two thirds of the resamples; eight of sixty-four are in almost all."""
    label = np.array([1, 0, 0, 0, 0, 0, 0, 0])
    p = np.linspace(0.9, 0.1, 8)
    found = weighted_metrics(label, np.column_stack([1 - p, p]), np.stack([np.ones(8), 1.0 - label]))
    for metric in ("auroc", "auprc"):
        np.testing.assert_array_equal(found[metric], [1.0, np.nan])
    intervals = bootstrap(label, np.column_stack([1 - p, p]), np.arange(8).astype(str), seed=0, n_resamples=200)
    assert not {"auroc", "auprc"} & set(intervals)
    assert intervals["accuracy"][0] < 1.0
    label, p = np.repeat(label, 8), np.repeat(p, 8)
    intervals = bootstrap(label, np.column_stack([1 - p, p]), np.arange(64).astype(str), seed=0, n_resamples=200)
    assert intervals["auroc"] == intervals["auprc"] == (1.0, 1.0)


def test_the_table_has_all_combinations_and_numbers_of_modalities() -> None:
    label, p = case(40, 2, 1)
    combination = ["a+b" if i % 3 else "a" for i in range(40)]
    observed = np.array([2 if i % 3 else 1 for i in range(40)])
    frame = table(label, p, np.arange(40).astype(str), combination, observed, seed=0, n_resamples=50)
    groups = frame.select("by", "group", "n").unique(maintain_order=True).rows()
    assert groups == [
        ("all", "all", 40),
        ("combination", "a", 14),
        ("combination", "a+b", 26),
        ("observed", "1", 14),
        ("observed", "2", 26),
    ]
    whole = frame.filter(by="all", metric="accuracy").row(0, named=True)
    assert whole["low"] <= whole["value"] <= whole["high"]
    assert frame["low"].is_null().sum() == 0
    assert (frame["low"] <= frame["high"]).all()
