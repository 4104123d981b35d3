"""Metrics of predictions, for all resamples of a bootstrap at once and as point estimates.

A prediction is either class probabilities (n, C), or values of a regression (n,), with metrics of its own.

Legend: n samples, C classes, R sets of sample weights.
"""

import math
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_retriever.metrics import METRIC_NAMES, METRICS, VALUE_METRICS, kinds_of, lower_is_better, names_of

__all__ = ["METRICS", "METRIC_NAMES", "SCORE_COLUMNS", "VALUE_METRICS", "Rules", "lower_is_better", "score"]

# Columns of a table of scores: group of samples, metric, value and interval.
SCORE_COLUMNS = {"by": pl.String, "group": pl.String, "n": pl.Int64, "metric": pl.String}
SCORE_COLUMNS |= dict.fromkeys(("value", "low", "high"), pl.Float64)
N_BINS = 15
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Labels = Ints | Floats


class Rules(NamedTuple):
    """Kind of the additional metrics of a sentiment score, and threshold of the second of two classes."""

    convention: str = ""
    threshold: float = 0.5


PLAIN = Rules()


def metrics_of(prediction: Floats, rules: Rules = PLAIN) -> tuple[str, ...]:
    """Names of the metrics of a prediction: of probabilities (n, C), or of values (n,)."""
    return names_of(kinds_of(prediction.shape[1] if prediction.ndim == 2 else 0, rules.convention))


def score(label: Labels, prediction: Floats, rules: Rules = PLAIN) -> dict[str, float | None]:
    """All metrics of a prediction; None if undefined (no samples, a single class for ranking metrics, no variation)."""
    found = weighted_metrics(label, prediction, np.ones((1, len(label))), rules) if len(label) else {}
    values = {name: float(found[name][0]) if name in found else math.nan for name in metrics_of(prediction, rules)}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def selection_score(metric: str, label: Labels, prediction: Floats, rules: Rules = PLAIN) -> tuple[float, float]:
    """Plus or minus a metric (−inf if undefined) and, for ties, minus the loss (NLL or RMSE): both are maximised."""
    found = score(label, prediction, rules)
    found["loss"] = found["nll" if prediction.ndim == 2 else "rmse"]
    values = [(name, found[name]) for name in (metric, "loss")]
    value, loss = (-math.inf if v is None else -v if lower_is_better(name) else v for name, v in values)
    return value, loss


def weighted_metrics(label: Labels, prediction: Floats, weight_Rn: Floats, rules: Rules = PLAIN) -> dict[str, Floats]:
    """(R,) values of every metric for each set of sample weights; NaN where undefined.

    Macro-F1 averages over the classes in labels or predictions, balanced accuracy over the classes in the labels, AUROC
    and AUPRC (one-vs-rest) over classes with positive and negative samples (of two classes, the second); they are
    omitted if there is no such class.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if prediction.ndim == 2:
            return _of_classes(label.astype(np.int64), prediction, weight_Rn, rules.threshold)
        found = _of_values(label.astype(np.float64), prediction, weight_Rn)
        return found | _of_sentiment(label, prediction, weight_Rn, rules.convention)


def _counts(label: Ints, predicted: Ints, n_classes: int, weight_Rn: Floats) -> tuple[Floats, Floats, Floats]:
    """Weights (R, C) of the samples of each class that are correct, that belong to it, and that are predicted as it."""
    truth, guess = (np.eye(n_classes)[v] for v in (label, predicted))
    hits, of_truth, of_guess = np.split(weight_Rn @ np.hstack([truth * guess, truth, guess]), 3, axis=1)
    return hits, of_truth, of_guess


def _of_classes(label: Ints, probability: Floats, weight_Rn: Floats, threshold: float) -> dict[str, Floats]:
    n_classes = probability.shape[1]
    predicted, confidence = probability.argmax(axis=1), probability.max(axis=1)
    right = predicted == label
    hits, truth, guess = _counts(label, predicted, n_classes, weight_Rn)
    # As in scikit-learn, a probability of 0 counts as the smallest step of a number near 1.
    of_label = np.maximum(probability[np.arange(len(label)), label], np.finfo(np.float64).eps)
    distance = ((probability - np.eye(n_classes)[label]) ** 2).sum(axis=1)
    bins = np.eye(N_BINS)[np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)]
    sums = weight_Rn @ np.column_stack([distance, -np.log(of_label), bins * (right - confidence)[:, None]])
    total = truth.sum(axis=1)
    _, every, wrong, kept = from_the_top(~right, confidence, weight_Rn)
    out = {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": _mean_of_known(hits / truth),
        "macro_f1": _mean_of_known(2 * hits / (truth + guess)),
        "ece": np.abs(sums[:, 2:]).sum(axis=1) / total,
        "brier": sums[:, 0] / total,
        "nll": sums[:, 1] / total,
        # Mean over samples of the error rate among those that are at least as confident.
        "aurc": np.nansum(every * wrong / kept, axis=1) / total,
    }
    if ranked := [c for c in range(n_classes == 2, n_classes) if 0 < (label == c).sum() < len(label)]:
        areas = [weighted_areas(label == c, probability[:, c], weight_Rn) for c in ranked]
        for name, of_class in zip(("auroc", "auprc"), zip(*areas, strict=True), strict=True):
            out[name] = _mean_of_known(np.stack(of_class, axis=1))
    if n_classes == 2:
        positive = (probability[:, 1] >= threshold).astype(np.int64)
        hits, truth, guess = _counts(label, positive, 2, weight_Rn)
        out |= dict(zip(("specificity", "sensitivity"), (hits / truth).T, strict=True))
        out |= dict(zip(("npv", "ppv"), (hits / guess).T, strict=True))
    return out


def _mean_of_known(x_RC: Floats) -> Floats:
    """(R,) mean over the classes for which the score is defined; NaN if there is none."""
    mean: Floats = np.nansum(x_RC, axis=1) / (~np.isnan(x_RC)).sum(axis=1)
    return mean


def from_the_top(flag: Bools, value: Floats, weight_Rn: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(R, G) weights of flagged and of all samples at each of G distinct values, highest first, and cumulative sums."""
    order = np.argsort(-value, kind="stable")
    _, start = np.unique(-value[order], return_index=True)
    every = weight_Rn[:, order]
    flagged = every * flag[order]
    if len(start) < len(order):
        flagged, every = np.add.reduceat(flagged, start, axis=1), np.add.reduceat(every, start, axis=1)
    return flagged, every, np.cumsum(flagged, axis=1), np.cumsum(every, axis=1)


def weighted_areas(positive: Bools, value: Floats, weight_Rn: Floats) -> tuple[Floats, Floats]:
    """(R,) area under the ROC curve, where ties count one half, and average precision."""
    up, every, all_up, all_every = from_the_top(positive, value, weight_Rn)
    n_up, n_every = all_up[:, -1], all_every[:, -1]
    above = ((every - up) * (all_up - up / 2)).sum(axis=1)
    return above / (n_up * (n_every - n_up)), np.nansum(up * all_up / all_every, axis=1) / n_up


def _of_values(label: Floats, value: Floats, weight_Rn: Floats) -> dict[str, Floats]:
    # Variances are differences of sums, so the values are centred first; equal values become exactly 0.
    x, y = (v - np.clip(v.mean(), v.min(), v.max()) for v in (label, value))
    error = value - label
    moments = np.column_stack([np.abs(error), error**2, x, y, x**2, y**2, x * y])
    mae, mse, mean_x, mean_y, xx, yy, xy = (weight_Rn @ moments / weight_Rn.sum(axis=1, keepdims=True)).T
    pairs = ((xx, mean_x), (yy, mean_y))
    variance_x, variance_y = (np.where(s - m**2 > 1e-12 * s, s - m**2, np.nan) for s, m in pairs)
    corr = (xy - mean_x * mean_y) / np.sqrt(variance_x * variance_y)
    return {"mae": mae, "rmse": np.sqrt(mse), "corr": np.clip(corr, -1, 1), "r2": 1 - mse / variance_x}


def _of_sentiment(label: Labels, value: Floats, weight_Rn: Floats, convention: str) -> dict[str, Floats]:
    """Accuracies, and F1 weighted by the classes' sizes, of scores that are sorted into classes."""
    # In single precision, in which the scores of the corpora are stored, like the edges of the classes.
    scores = label.astype(np.float32), value.astype(np.float32)
    classes: dict[str, list[Ints]] = {}
    sign = [(s > 0).astype(np.int64) for s in scores]
    if convention == "cmu":
        # np.round rounds halves to the even number.
        classes = {f"acc{2 * k + 1}": [np.round(s.clip(-k, k)).astype(np.int64) + k for s in scores] for k in (3, 2)}
        classes |= {"acc2_has0": [(s >= 0).astype(np.int64) for s in scores], "acc2_non0": sign}
    elif convention == "sims":
        edges = {k: np.array(e, np.float32) for k, e in ((5, (-0.7, -0.1, 0.1, 0.7)), (3, (-0.1, 0.1)))}
        classes = {f"sims_acc{k}": [np.digitize(s, e, right=True) for s in scores] for k, e in edges.items()}
        classes |= {"sims_acc2": sign}
    out = {}
    for name, (truth, guess) in classes.items():
        used = weight_Rn * (scores[0] != 0) if name == "acc2_non0" else weight_Rn
        hits, of_truth, of_guess = _counts(truth, guess, int(max(truth.max(), guess.max())) + 1, used)
        total = of_truth.sum(axis=1)
        out[name] = hits.sum(axis=1) / total
        if "acc2" in name:
            f1 = np.where(of_truth > 0, of_truth * 2 * hits / (of_truth + of_guess), 0.0)
            out[name.replace("acc2", "f1")] = f1.sum(axis=1) / total
    return out
