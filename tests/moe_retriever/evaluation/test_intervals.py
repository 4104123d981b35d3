"""Intervals of the hierarchical t: closed forms, p-values, undefined metrics, Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moe_retriever.evaluation.intervals import MOST_GROUPS, Estimate, estimate, holm, leave_out_weights
from moe_retriever.evaluation.paired import Comparison, Predicted


def names(n: int) -> np.ndarray:
    return np.char.add("s", np.arange(n).astype(str))


def half_width_by_hand(value_Sn: np.ndarray) -> float:
    """Half-width for a metric that is the mean of a value per sample, with one sample per subject."""
    n_seeds, n = value_Sn.shape
    between = np.var(value_Sn.mean(axis=1), ddof=1) / n_seeds
    covariance = np.cov(value_Sn) / n
    shared = max(covariance[~np.eye(n_seeds, dtype=bool)].mean(), covariance.mean() - between)
    t_seeds, t_subjects = stats.t.ppf(0.975, n_seeds - 1), stats.t.ppf(0.975, n - 1)
    return math.sqrt(t_seeds**2 * between + t_subjects**2 * shared)


def correct_with_shared_difficulty(rng: np.random.Generator, n_seeds: int, n: int, rate: float) -> np.ndarray:
    easy = rng.random(n) < rate
    return easy ^ (rng.random((n_seeds, n)) < 0.1)


def binary(right: np.ndarray, label: np.ndarray) -> Predicted:
    """Predictions that are correct where `right` is true."""
    p = np.where(np.where(right, label, 1 - label) == 1, 0.8, 0.2)
    return Predicted(label, np.stack([1 - p, p], axis=1), names(len(label)))


def test_accuracy_over_seeds_has_the_interval_computed_by_hand() -> None:
    n, rng = 150, np.random.default_rng(0)
    label = rng.integers(0, 2, n)
    a, b = (correct_with_shared_difficulty(rng, 4, n, rate) for rate in (0.7, 0.6))
    runs = {m: {s: binary(x, label) for s, x in enumerate(right)} for m, right in (("a", a), ("b", b))}
    comparison = Comparison(runs)
    difference = a.astype(float) - b.astype(float)
    for found, value_Sn in (
        (comparison.mean("a", "accuracy"), a.astype(float)),
        (comparison.difference("a", "b", "accuracy"), difference),
    ):
        assert found is not None
        assert found.value == pytest.approx(value_Sn.mean())
        assert found.half_width() == pytest.approx(half_width_by_hand(value_Sn), rel=1e-9)


def test_mae_over_seeds_has_the_interval_computed_by_hand() -> None:
    n, rng = 120, np.random.default_rng(1)
    label = rng.normal(size=n)
    hard = np.abs(rng.normal(size=n))
    value = label + hard * (1 + 0.2 * rng.normal(size=(3, n)))
    comparison = Comparison({"a": {s: Predicted(label, v, names(n)) for s, v in enumerate(value)}})
    found = comparison.mean("a", "mae")
    assert found is not None
    assert found.half_width() == pytest.approx(half_width_by_hand(np.abs(value - label)), rel=1e-9)


def test_one_seed_has_the_t_interval_of_a_mean_over_subjects() -> None:
    n, rng = 80, np.random.default_rng(2)
    label = rng.normal(size=n)
    value = label + rng.normal(size=n)
    found = Comparison({"a": {5: Predicted(label, value, names(n))}}).mean("a", "mae")
    expected = stats.ttest_1samp(np.abs(value - label), 0).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_variance_of_auroc_agrees_with_that_of_delong() -> None:
    """DeLong's variance from placement values, for one seed and one sample per subject."""
    n, rng = 300, np.random.default_rng(3)
    label = (rng.random(n) < 0.3).astype(np.int64)
    value = rng.normal(size=n) + label
    p = 1 / (1 + np.exp(-value))
    runs = {"a": {0: Predicted(label, np.stack([1 - p, p], axis=1), names(n))}}
    found = Comparison(runs).mean("a", "auroc")
    above = value[label == 1][:, None] > value[label == 0]
    delong = above.mean(axis=1).var(ddof=1) / (label == 1).sum() + above.mean(axis=0).var(ddof=1) / (label == 0).sum()
    assert found is not None
    assert found.parts[0][0] == pytest.approx(delong, rel=0.02)


def test_shared_deviations_of_few_subjects_are_not_averaged_over_samples() -> None:
    """With all samples of a subject alike, ten samples per subject have the interval of one."""
    rng = np.random.default_rng(4)
    label, value = rng.normal(size=30), rng.normal(size=30)
    once = Comparison({"a": {0: Predicted(label, value, names(30))}}).mean("a", "mae")
    often = Comparison({"a": {0: Predicted(*(np.repeat(x, 10) for x in (label, value, names(30))))}}).mean("a", "mae")
    assert once is not None
    assert often is not None
    assert often.half_width() == pytest.approx(once.half_width())


def test_above_the_limit_groups_of_subjects_are_left_out() -> None:
    n = MOST_GROUPS + 500
    subjects = np.unique(names(n))
    weight = leave_out_weights(subjects, subjects)
    assert weight.shape == (MOST_GROUPS, n)
    assert ((weight == 0).sum(axis=0) == 1).all()
    assert set((weight == 0).sum(axis=1)) == {1, 2}
    rng = np.random.default_rng(5)
    label, value = rng.normal(size=n), rng.normal(size=n)
    found = Comparison({"a": {0: Predicted(label, value, names(n))}}).mean("a", "mae")
    assert found is not None
    assert found.half_width() == pytest.approx(1.96 * np.abs(value - label).std() / math.sqrt(n), rel=0.1)


def test_the_p_value_is_that_of_the_t_test_and_agrees_with_the_interval() -> None:
    d = np.random.default_rng(6).normal(0.3, 1, 40)
    one_sample = estimate(np.array([d.mean()]), ((d.sum() - d) / 39)[None])
    assert one_sample.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    for value in (0.5, 1.0, 2.0, 4.0, 8.0):
        found = Estimate(value, ((0.1, 2), (0.2, 50)))
        assert found.p is not None
        assert found.half_width(1 - found.p) == pytest.approx(value)
        assert (found.p < 0.05) == (abs(value) > found.half_width())
    assert Estimate(0.0, ((0.0, 2), (0.0, 5))).p == 1.0
    assert Estimate(0.1, ((0.0, 2), (0.0, 5))).p == 0.0
    assert Estimate(1e9, ((0.1, 50), (0.1, 50))).p == 0.0


def test_there_is_no_interval_if_the_metric_is_undefined_without_a_subject() -> None:
    """All positive samples are of one subject, so the area under the curve is undefined without it."""
    label = np.array([1, 1, 0, 0, 0, 0])
    p = np.array([0.9, 0.3, 0.5, 0.2, 0.1, 0.4])
    subject = np.array(["a", "a", "b", "c", "d", "e"])
    comparison = Comparison({"a": {0: Predicted(label, np.stack([1 - p, p], axis=1), subject)}})
    found = comparison.mean("a", "auroc")
    assert found is not None
    assert (found.low, found.high, found.p) == (None, None, None)
    accuracy = comparison.mean("a", "accuracy")
    assert accuracy is not None
    assert accuracy.low is not None
    alone = Comparison({"a": {0: Predicted(np.zeros(3), np.ones(3), np.array(["a"] * 3))}}).mean("a", "mae")
    assert alone is not None
    assert alone.low is None


def test_seeds_with_equal_scores_by_chance_do_not_give_an_interval_without_width() -> None:
    """Two seeds are correct on half of the samples each, on different ones."""
    label = np.tile([0, 1], 50)
    right = np.arange(100) < 50
    comparison = Comparison({"a": {0: binary(right, label), 1: binary(np.roll(right, 25), label)}})
    found = comparison.mean("a", "accuracy")
    assert found is not None
    assert found.half_width() == pytest.approx(stats.t.ppf(0.975, 99) * math.sqrt(0.125 / 99))


def test_holm_adjusts_as_in_the_worked_example() -> None:
    """p-values .01, .04, .03, .005 of Wright (1992): adjusted .03, .06, .06, .02."""
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    t = {name: stats.t.isf(value / 2, 20) for name, value in p.items()}
    found = holm({name: Estimate(value, ((1.0, 20),)) for name, value in t.items()} | {"e": None, "f": Estimate(1.0)})
    expected = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    assert {name: found[name].adjusted for name in p} == pytest.approx(expected)  # type: ignore[union-attr]
    assert [name for name, e in found.items() if e is not None and e.holds] == ["a", "d"]
    assert found["e"] is None
    assert found["f"] == Estimate(1.0)
