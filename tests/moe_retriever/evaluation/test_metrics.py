"""Metrics of probabilities, values and sentiment scores against scikit-learn, scipy, closed forms and slow loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from moe_retriever.data.scores import Rules, metrics_of, score, selection_score, weighted_metrics
from moe_retriever.evaluation.bootstrap import bootstrap
from moe_retriever.metrics import METRIC, METRIC_NAMES, convention_of, kinds_of, names_of


def probabilities(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    raw = np.round(rng.random((n, n_classes)) + 0.3 * np.eye(n_classes)[label], 1) + 0.05
    return label, raw / raw.sum(axis=1, keepdims=True)


def values(n: int, seed: int, scale: float = 1.0, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.normal(size=n)
    return offset + scale * label, offset + scale * (0.6 * label + 0.5 * rng.normal(size=n))


@given(st.integers(5, 60), st.integers(0, 10**6), st.sampled_from([(1.0, 0.0), (1e-3, 1e4), (30.0, -5.0)]))
@settings(max_examples=40, deadline=None)
def test_regression_equals_scikit_learn_and_scipy(n: int, seed: int, unit: tuple[float, float]) -> None:
    label, value = values(n, seed, *unit)
    weight = np.random.default_rng(seed).integers(0, 4, (3, n)).astype(float)
    weight[:, :3] += 1
    found = weighted_metrics(label, value, weight)
    for r, w in enumerate(weight):
        assert found["mae"][r] == pytest.approx(mean_absolute_error(label, value, sample_weight=w))
        assert found["rmse"][r] == pytest.approx(root_mean_squared_error(label, value, sample_weight=w))
        assert found["r2"][r] == pytest.approx(r2_score(label, value, sample_weight=w), rel=1e-6)
        many = np.repeat(np.arange(n), w.astype(int))
        assert found["corr"][r] == pytest.approx(stats.pearsonr(label[many], value[many]).statistic, rel=1e-6)


def test_correlation_and_r2_of_constants_are_undefined() -> None:
    label = np.array([0.1, 0.4, 0.7])
    constant = np.full(3, 0.1)
    assert score(label, constant)["corr"] is None
    assert score(label, constant)["r2"] == pytest.approx(1 - (0.3**2 + 0.6**2) / 3 / 0.06)
    found = score(constant, label)
    assert found["corr"] is None
    assert found["r2"] is None
    assert found["mae"] == pytest.approx(0.3)
    # A resample that contains one distinct label only.
    weighted = weighted_metrics(label, np.array([1.0, 2.0, 4.0]), np.array([[0.0, 5.0, 0.0], [1.0, 1.0, 0.0]]))
    assert math.isnan(weighted["corr"][0])
    assert math.isnan(weighted["r2"][0])
    assert weighted["corr"][1] == pytest.approx(1.0)


def test_regression_intervals_have_their_closed_form() -> None:
    """MAE of |error| with known SD: mean ± 1.96 SD/√n. Correlation: Fisher's z, ± 1.96/√(n − 3)."""
    n = 400
    rng = np.random.default_rng(2)
    label = rng.normal(size=n)
    value = 0.6 * label + 0.8 * rng.normal(size=n)
    found = bootstrap(label, value, np.arange(n).astype(str), seed=0, n_resamples=2000)
    error = np.abs(value - label)
    half = 1.96 * error.std() / math.sqrt(n)
    assert found["mae"] == pytest.approx((error.mean() - half, error.mean() + half), abs=0.12 * half)
    r = np.corrcoef(label, value)[0, 1]
    z = math.atanh(r)
    fisher = [math.tanh(z + sign * 1.96 / math.sqrt(n - 3)) for sign in (-1, 1)]
    width = fisher[1] - fisher[0]
    assert found["corr"] == pytest.approx(fisher, abs=0.1 * width)
    # RMSE: the mean squared error has SD of its squares over √n; delta method for the root.
    squares = error**2
    half = 1.96 * squares.std() / math.sqrt(n) / (2 * math.sqrt(squares.mean()))
    middle = math.sqrt(squares.mean())
    assert found["rmse"] == pytest.approx((middle - half, middle + half), abs=0.15 * half)


@given(st.integers(12, 60), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_brier_and_likelihood_equal_scikit_learn(n: int, n_classes: int, seed: int) -> None:
    label, p = probabilities(n, n_classes, seed)
    weight = np.random.default_rng(seed).integers(0, 4, (2, n)).astype(float)
    weight[:, :n_classes] += 1
    found = weighted_metrics(label, p, weight)
    for r, w in enumerate(weight):
        assert found["nll"][r] == pytest.approx(log_loss(label, p, sample_weight=w))
        distance = ((p - np.eye(n_classes)[label]) ** 2).sum(axis=1)
        assert found["brier"][r] == pytest.approx(np.average(distance, weights=w))
        if n_classes == 2:
            # The usual score of two classes counts the second class only: half of the distance.
            assert found["brier"][r] == pytest.approx(2 * brier_score_loss(label, p[:, 1], sample_weight=w))
    certain = score(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert certain["nll"] == pytest.approx(-math.log(np.finfo(float).eps) / 2)
    assert certain["brier"] == 1.0


def slow_ece(label: np.ndarray, p: np.ndarray, weight: np.ndarray) -> float:
    total = 0.0
    for b in range(15):
        inside = [i for i in range(len(label)) if min(int(p[i].max() * 15), 14) == b]
        mass = sum(weight[i] for i in inside)
        if mass:
            right = sum(weight[i] * (p[i].argmax() == label[i]) for i in inside) / mass
            confident = sum(weight[i] * p[i].max() for i in inside) / mass
            total += mass / weight.sum() * abs(right - confident)
    return total


def slow_aurc(label: np.ndarray, p: np.ndarray) -> float:
    wrong, confidence = p.argmax(axis=1) != label, p.max(axis=1)
    return float(np.mean([wrong[confidence >= c].mean() for c in confidence]))


@given(st.integers(12, 60), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_calibration_error_and_risk_equal_slow_loops(n: int, n_classes: int, seed: int) -> None:
    label, p = probabilities(n, n_classes, seed)
    w = np.random.default_rng(seed).integers(0, 4, n) + (np.arange(n) < n_classes)
    found = weighted_metrics(label, p, w[None].astype(float))
    assert found["ece"][0] == pytest.approx(slow_ece(label, p, w))
    many = np.repeat(np.arange(n), w)
    assert found["aurc"][0] == pytest.approx(slow_aurc(label[many], p[many]))


def test_risk_of_perfect_and_of_reversed_confidence() -> None:
    """Errors last: risk grows only at the end. Errors first: the most confident samples are wrong."""
    for label, area in (([0, 0, 0, 1], 1 / 4 / 4), ([1, 0, 0, 0], (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)):
        p = np.array([0.9, 0.8, 0.7, 0.6])
        assert score(np.array(label), np.stack([p, 1 - p], axis=1))["aurc"] == pytest.approx(area)
    assert score(np.array([0, 0, 0, 1]), np.full((4, 2), 0.5))["aurc"] == 0.25


@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=20, deadline=None)
def test_sensitivity_and_predictive_values_come_from_the_confusion_matrix(seed: int, threshold: float) -> None:
    label, p = probabilities(40, 2, seed)
    weight = np.random.default_rng(seed).integers(0, 3, (1, 40)).astype(float)
    weight[:, :2] += 1
    found = weighted_metrics(label, p, weight, Rules(threshold=threshold))
    (tn, fp), (fn, tp) = confusion_matrix(label, p[:, 1] >= threshold, sample_weight=weight[0], labels=[0, 1])
    pairs = {"sensitivity": (tp, fn), "specificity": (tn, fp), "ppv": (tp, fp), "npv": (tn, fn)}
    for name, (right, rest) in pairs.items():
        assert found[name][0] == pytest.approx(right / (right + rest) if right + rest else np.nan, nan_ok=True), name
    # The interval of a proportion of 400 samples.
    label = np.repeat([0, 1], 200)
    q = np.where(np.arange(400) % 5 > 0, label, 1 - label) * 0.8 + 0.1
    low, high = bootstrap(label, np.stack([1 - q, q], axis=1), np.arange(400).astype(str), seed=0)["sensitivity"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 200)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.2 * half)


def slow_cmu(label: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """The metrics that publications on CMU-MOSI and CMU-MOSEI report, sample by sample."""

    def nearest(x: float, most: int) -> int:
        # Python's round sends halves to the even integer.
        return round(max(-most, min(most, x)))

    n, out = len(label), {}
    for most in (3, 2):
        same = sum(nearest(a, most) == nearest(b, most) for a, b in zip(label.tolist(), value.tolist(), strict=True))
        out[f"acc{2 * most + 1}"] = same / n
    out["acc2_has0"] = accuracy_score(label >= 0, value >= 0)
    out["f1_has0"] = f1_score(label >= 0, value >= 0, average="weighted")
    pairs = [(a > 0, b > 0) for a, b in zip(label, value, strict=True) if a != 0]
    out["acc2_non0"] = sum(a == b for a, b in pairs) / len(pairs)
    out["f1_non0"] = f1_score(*zip(*pairs, strict=True), average="weighted")
    return out


def slow_sims(label: np.ndarray, value: np.ndarray) -> dict[str, float]:
    def place(x: float, edges: tuple[float, ...]) -> int:
        return sum(x > edge for edge in edges)

    out = {}
    for name, edges in {"5": (-0.7, -0.1, 0.1, 0.7), "3": (-0.1, 0.1), "2": (0.0,)}.items():
        pairs = [(place(a, edges), place(b, edges)) for a, b in zip(label, value, strict=True)]
        out[f"sims_acc{name}"] = sum(a == b for a, b in pairs) / len(pairs)
    out["sims_f1"] = f1_score(*zip(*pairs, strict=True), average="weighted")
    return out


@given(st.integers(20, 80), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_sentiment_scores_follow_the_conventions_of_the_field(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Halves (which are rounded) and zeros occur in labels and predictions.
    label = np.round(rng.uniform(-3, 3, n) * 2) / 2
    value = np.round((label + rng.normal(size=n)) * 2) / 2
    label[:3], value[:3] = (0.0, 2.5, -0.5), (0.0, 3.5, 0.5)
    found = score(label, value, Rules("cmu"))
    assert {k: found[k] for k in slow_cmu(label, value)} == pytest.approx(slow_cmu(label, value))
    weight = rng.integers(1, 3, (1, n))
    many = np.repeat(np.arange(n), weight[0])
    weighted = weighted_metrics(label, value, weight.astype(float), Rules("cmu"))
    assert {k: weighted[k][0] for k in slow_cmu(label, value)} == pytest.approx(slow_cmu(label[many], value[many]))
    # Steps of 0.15 meet no edge between classes.
    label, value = np.round(label / 3 / 0.15) * 0.15, np.round(value / 3 / 0.15) * 0.15
    found = score(label, value, Rules("sims"))
    assert {k: found[k] for k in slow_sims(label, value)} == pytest.approx(slow_sims(label, value))


def test_sentiment_scores_of_one_example() -> None:
    """Counted by hand; 2.5 is rounded to 2, -0.5 to 0, and a neutral prediction counts as non-negative."""
    label = np.array([-3.0, -0.5, 0.0, 0.0, 2.5, 1.0])
    value = np.array([-4.0, 0.2, 0.0, -0.4, 1.6, -1.0])
    found = score(label, value, Rules("cmu"))
    assert found["acc7"] == pytest.approx(5 / 6)
    assert found["acc5"] == pytest.approx(5 / 6)
    assert found["acc2_has0"] == pytest.approx(3 / 6)
    assert found["acc2_non0"] == pytest.approx(2 / 4)
    # Edges of CH-SIMS belong to the class below, in single precision too.
    edges = np.array([-0.7, -0.1, 0.1, 0.7, 0.0]).astype(np.float32).astype(np.float64)
    found = score(edges, np.array([-0.8, -0.2, 0.05, 0.6, -0.05]), Rules("sims"))
    assert found["sims_acc5"] == found["sims_acc3"] == found["sims_acc2"] == 1.0


def test_a_task_has_the_metrics_of_its_kinds() -> None:
    assert convention_of("mosi", "score") == convention_of("mosei", "score") == "cmu"
    assert convention_of("ch_sims", "score") == "sims"
    assert convention_of("mosi", "polarity") == convention_of("tables", "score") == ""
    assert "sensitivity" in names_of(kinds_of(2))
    assert "sensitivity" not in names_of(kinds_of(3))
    assert names_of(kinds_of(0)) == ("mae", "rmse", "corr", "r2")
    assert set(names_of(kinds_of(0, "cmu"))) > {"acc7", "acc5", "mae"}
    assert metrics_of(np.zeros(3), Rules("sims")) == names_of(kinds_of(0, "sims"))
    assert set(METRIC_NAMES) == set(METRIC)


@pytest.mark.parametrize("metric", METRIC)
def test_model_selection_prefers_the_better_prediction(metric: str) -> None:
    kind = METRIC[metric].kinds[0]
    if kind in ("classification", "binary"):
        label = np.array([0, 1, 0, 1, 1, 0])
        good = np.stack([1 - 0.98 * label, 0.98 * label], axis=1)
        bad = np.tile([0.3, 0.7], (6, 1)) if metric in ("specificity", "npv") else np.tile([0.7, 0.3], (6, 1))
        bad[:3] = good[:3][:, ::-1]
        rules = Rules()
    else:
        label = np.array([-3.0, -2.0, 1.0, 2.0, 3.0, -1.0]) / (3 if kind == "sims" else 1)
        good, bad, rules = label + 0.05, -label, Rules(kind if kind != "regression" else "")
    assert selection_score(metric, label, good, rules) > selection_score(metric, label, bad, rules)


def test_a_suite_can_show_every_metric(project: Path) -> None:
    schema = yaml.safe_load((project / "workflow" / "schemas" / "suites.schema.yaml").read_text(encoding="utf-8"))
    text = str(schema)
    assert str(list(METRIC)) in text
