"""Intervals and paired differences: agreement with theory, and invariants."""

from __future__ import annotations

import numpy as np
import pytest

from moe_retriever.data.scores import METRICS, score
from moe_retriever.evaluation.paired import Comparison, Predicted


def predictions(
    right: np.ndarray, label: np.ndarray, subject: np.ndarray | None = None, confidence: float = 0.8
) -> Predicted:
    """Binary predictions that are correct where `right` is true."""
    guess = np.where(right, label, 1 - label)
    p = np.where(guess == 1, confidence, 1 - confidence)
    ids = np.arange(len(label)) if subject is None else subject
    return Predicted(label, np.stack([1 - p, p], axis=1), np.char.add("s", ids.astype(str)))


def labels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, n)


def test_the_interval_of_a_single_seed_equals_that_of_a_proportion() -> None:
    n, rng = 900, np.random.default_rng(1)
    right = rng.random(n) < 0.7
    estimate = Comparison({"a": {0: predictions(right, labels(n))}}).mean("a", "accuracy")
    assert estimate is not None
    assert estimate.value == pytest.approx(right.mean())
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / n)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.1)  # type: ignore[operator]


def test_samples_of_a_subject_are_resampled_together() -> None:
    n, k, rng = 300, 4, np.random.default_rng(2)
    right, label = np.repeat(rng.random(n) < 0.7, k), np.repeat(labels(n), k)
    together = Comparison({"a": {0: predictions(right, label, np.repeat(np.arange(n), k))}}).mean("a", "accuracy")
    apart = Comparison({"a": {0: predictions(right, label)}}).mean("a", "accuracy")
    assert together is not None
    assert apart is not None
    widths = [e.high - e.low for e in (together, apart)]  # type: ignore[operator]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(k), rel=0.15)


def test_the_interval_of_a_paired_difference_depends_only_on_disagreements() -> None:
    n, rng = 1200, np.random.default_rng(3)
    hard = rng.random(n) < 0.3
    one, two = ~hard ^ (rng.random(n) < 0.02), ~hard ^ (rng.random(n) < 0.06)
    label = labels(n)
    comparison = Comparison({"a": {0: predictions(one, label)}, "b": {0: predictions(two, label)}})
    found = comparison.difference("a", "b", "accuracy")
    assert found is not None
    d = one.astype(float) - two.astype(float)
    assert found.value == pytest.approx(d.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * d.std() / np.sqrt(n), rel=0.1)  # type: ignore[operator]
    back = comparison.difference("b", "a", "accuracy")
    assert back is not None
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))  # type: ignore[operator]


def test_identical_methods_have_zero_difference() -> None:
    label = labels(80)
    same = {s: predictions(np.random.default_rng(s).random(80) < 0.6, label) for s in range(3)}
    comparison = Comparison({"a": same, "b": same})
    for metric in METRICS:
        found = comparison.difference("a", "b", metric)
        assert found is not None
        assert (found.value, found.low or 0.0, found.high or 0.0) == (0.0, 0.0, 0.0)
        assert found.p in (None, 1.0)
        assert comparison.best(metric, comparison.methods) is None


def test_variation_between_seeds_widens_the_interval() -> None:
    n, label = 400, labels(400)
    seeds = {s: predictions(np.arange(n) % 10 < k, label) for s, k in enumerate((5, 7, 9))}
    alike = {s: predictions((np.arange(n) + s) % 10 < 7, label) for s in range(3)}
    comparison = Comparison({"differ": seeds, "alike": alike})
    differ, same = comparison.mean("differ", "accuracy"), comparison.mean("alike", "accuracy")
    assert differ is not None
    assert same is not None
    assert differ.value == pytest.approx(same.value) == pytest.approx(0.7)
    assert differ.high - differ.low > 2 * (same.high - same.low)  # type: ignore[operator]


def test_values_equal_the_runs_scores_and_differences_use_common_seeds() -> None:
    label = labels(60)
    runs = {s: predictions(np.random.default_rng(s).random(60) < 0.7, label) for s in range(4)}
    comparison = Comparison({"a": runs, "b": {1: runs[2], 3: runs[3]}, "c": {7: runs[0]}})
    for metric in METRICS:
        expected = [score(t.label, t.prediction)[metric] for t in runs.values()]
        assert comparison.values("a", metric) == expected
    found = comparison.difference("a", "b", "accuracy")
    pairs = [score(runs[s].label, runs[s].prediction)["accuracy"] for s in (1, 2)]
    assert found is not None
    assert found.value == pytest.approx((pairs[0] - pairs[1]) / 2)  # type: ignore[operator]
    assert comparison.difference("a", "c", "accuracy") is None


def test_best_requires_an_interval_that_excludes_zero() -> None:
    n, label = 200, labels(200)
    clear = Comparison(
        {"a": {0: predictions(np.arange(n) < 180, label)}, "b": {0: predictions(np.arange(n) < 120, label)}}
    )
    assert clear.best("accuracy", clear.methods) == "a"
    close = Comparison(
        {"a": {0: predictions(np.arange(n) < 121, label)}, "b": {0: predictions(np.arange(n) > 80, label)}}
    )
    assert close.best("accuracy", close.methods) is None


def test_best_leads_every_other_method_after_correction() -> None:
    """A lead with p = 0.03 over the second best counts between two methods, but not among three like it."""
    n, label = 400, labels(400)
    right = {"a": np.arange(n) < 240}
    for name, start in (("b", 0), ("c", 100)):
        # Both fail on a few samples on which the first succeeds, and succeed on fewer on which it fails.
        right[name] = right["a"].copy()
        right[name][start : start + 22] = False
        right[name][300 + start // 2 : 310 + start // 2] = True
    runs = {name: {0: predictions(x, label)} for name, x in right.items()}
    two = Comparison({name: runs[name] for name in ("a", "b")})
    difference = two.difference("a", "b", "accuracy")
    assert difference is not None
    assert 0.025 < (difference.p or 0) < 0.05
    assert two.best("accuracy", two.methods) == "a"
    assert Comparison(runs).best("accuracy", runs) is None


def test_the_best_of_an_error_is_the_lowest() -> None:
    rng = np.random.default_rng(8)
    label = rng.normal(size=100)
    subject = np.arange(100).astype(str)
    runs = {name: {0: Predicted(label, label + k * rng.normal(size=100), subject)} for name, k in (("a", 1), ("b", 3))}
    comparison = Comparison(runs)
    assert comparison.best("mae", comparison.methods) == comparison.best("r2", comparison.methods) == "a"
    assert comparison.metrics == ("mae", "rmse", "corr", "r2")


def test_ranking_metrics_of_a_single_class_are_undefined() -> None:
    comparison = Comparison({"a": {0: predictions(np.ones(20, bool), np.ones(20, np.int64))}})
    assert comparison.mean("a", "auroc") is None
    assert comparison.mean("a", "accuracy") is not None


def test_ranking_metrics_without_an_interval_still_have_their_value() -> None:
    """One positive of eight, ranked first by one method and last by the other; without it, areas are undefined."""
    label = np.array([1, 0, 0, 0, 0, 0, 0, 0])
    p, subject = np.linspace(0.9, 0.1, 8), np.arange(8).astype(str)
    runs = {n: {0: Predicted(label, np.stack([1 - q, q], axis=1), subject)} for n, q in (("a", p), ("b", 1 - p))}
    comparison = Comparison(runs)
    for found, expected in ((comparison.mean("a", "auroc"), 1.0), (comparison.difference("b", "a", "auroc"), -1.0)):
        assert found is not None
        assert (found.value, found.low, found.high) == (expected, None, None)
    assert comparison.best("auroc", comparison.methods) is None


def test_the_order_of_methods_and_samples_has_no_effect() -> None:
    n, label, rng = 120, labels(120), np.random.default_rng(5)
    one, two = (rng.random(n) < q for q in (0.6, 0.7))
    order = rng.permutation(n)

    def shuffled(right: np.ndarray) -> Predicted:
        t = predictions(right, label)
        return Predicted(t.label[order], t.prediction[order], t.subject[order])

    straight = Comparison({"a": {0: predictions(one, label)}, "b": {0: predictions(two, label)}})
    turned = Comparison({"b": {0: shuffled(two)}, "a": {0: shuffled(one)}})
    for metric in ("accuracy", "macro_f1", "auroc", "auprc"):
        found, again = straight.difference("a", "b", metric), turned.difference("a", "b", metric)
        assert found is not None
        assert again is not None
        assert (found.value, found.low, found.high) == pytest.approx((again.value, again.low, again.high))


def test_one_common_seed_of_several_gives_a_difference_without_an_interval() -> None:
    """It would leave out the variance between seeds; without several seeds, it covers test subjects only."""
    rng, label = np.random.default_rng(5), labels(400)
    many = {seed: predictions(rng.random(400) < 0.6, label) for seed in range(3)}
    one = {0: predictions(rng.random(400) < 0.9, label)}
    found = Comparison({"a": one, "b": many}).differences(["a", "b"], "b", "accuracy")["a"]
    assert found is not None
    assert found.low is None
    assert not found.holds
    alone = Comparison({"a": one, "b": {0: many[0]}}).differences(["a", "b"], "b", "accuracy")["a"]
    assert alone is not None
    assert alone.holds
    assert alone.value == found.value
