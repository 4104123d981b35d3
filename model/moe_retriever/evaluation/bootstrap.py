"""Metrics with bootstrap intervals, by modality combination and by number of observed modalities.

Point estimates come from scikit-learn. The bootstrap resamples subjects (all samples of a subject together) and
computes the weighted metrics of all resamples at once from class counts and sorted scores.

Legend: n samples, C classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_retriever.data.scores import METRICS, SCORE_COLUMNS, Floats, Ints, Labels, ranked_classes, score
from mrpipe import keyed

__all__ = ["METRICS", "bootstrap", "interval", "score", "table", "weighted_auprc", "weighted_auroc", "weighted_metrics"]

LEVEL = 0.95


def _confusions(label: Ints, predicted: Ints, n_classes: int, weight_Rn: Floats) -> Floats:
    """(R, C, C) weighted confusion matrices; rows are true classes, columns predicted classes."""
    cell = label * n_classes + predicted
    onehot = np.zeros((len(label), n_classes * n_classes))
    onehot[np.arange(len(label)), cell] = 1.0
    return (weight_Rn @ onehot).reshape(-1, n_classes, n_classes)


def weighted_auroc(positive: NDArray[np.bool_], value: Floats, weight_Rn: Floats) -> Floats:
    """(R,) area under the ROC curve for each set of sample weights; ties count one half."""
    order = np.argsort(value, kind="stable")
    _, start = np.unique(value[order], return_index=True)
    w = weight_Rn[:, order]
    up = np.add.reduceat(w * positive[order], start, axis=1)
    down = np.add.reduceat(w * ~positive[order], start, axis=1)
    below = np.cumsum(down, axis=1) - down
    with np.errstate(invalid="ignore", divide="ignore"):
        return (up * (below + down / 2)).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))


def weighted_auprc(positive: NDArray[np.bool_], value: Floats, weight_Rn: Floats) -> Floats:
    """(R,) average precision, Σ (increase in recall) · precision, for each set of sample weights."""
    order = np.argsort(-value, kind="stable")
    _, start = np.unique(-value[order], return_index=True)
    w = weight_Rn[:, order]
    up = np.add.reduceat(w * positive[order], start, axis=1)
    every = np.add.reduceat(w, start, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.cumsum(up, axis=1) / np.cumsum(every, axis=1)
        return np.nansum(up * precision, axis=1) / up.sum(axis=1)


def weighted_metrics(label: Labels, prediction: Floats, weight_Rn: Floats) -> dict[str, Floats]:
    """(R,) values of every metric except ECE, for each set of sample weights.

    Ranking metrics are omitted if they are undefined, and NaN for weights that leave a single class.
    """
    if prediction.ndim == 1:
        return _of_values(label.astype(np.float64), prediction, weight_Rn)
    return _of_classes(label.astype(np.int64), prediction, weight_Rn)


def _of_values(label: Floats, value: Floats, weight_Rn: Floats) -> dict[str, Floats]:
    w = weight_Rn / weight_Rn.sum(axis=1, keepdims=True)
    mean_label, mean_value = w @ label, w @ value
    squared = w @ (value - label) ** 2
    of_label, of_value = w @ label**2 - mean_label**2, w @ value**2 - mean_value**2
    with np.errstate(invalid="ignore", divide="ignore"):
        corr = (w @ (label * value) - mean_label * mean_value) / np.sqrt(of_label * of_value)
        r2 = 1 - squared / of_label
    return {"mae": w @ np.abs(value - label), "rmse": np.sqrt(squared), "corr": corr, "r2": r2}


def _of_classes(label: Ints, probability: Floats, weight_Rn: Floats) -> dict[str, Floats]:
    n_classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    confusion = _confusions(label, predicted, n_classes, weight_Rn)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    truth, guess = confusion.sum(axis=2), confusion.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / truth
        f1 = 2 * hits / (truth + guess)
        out = {
            "accuracy": hits.sum(axis=1) / truth.sum(axis=1),
            "balanced_accuracy": _mean_of_known(recall),
            "macro_f1": _mean_of_known(f1),
        }
    columns = ranked_classes(label, probability)
    rankings: dict[str, Callable[..., Floats]] = {"auroc": weighted_auroc, "auprc": weighted_auprc}
    for name, area in rankings.items():
        if columns:
            areas = np.stack([area(label == c, probability[:, c], weight_Rn) for c in columns], axis=1)
            out[name] = _mean_of_known(areas)
    return out


def _mean_of_known(x_RC: Floats) -> Floats:
    """(R,) mean over the classes for which the score is defined; NaN if there is none."""
    known = ~np.isnan(x_RC)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, x_RC, 0.0).sum(axis=1) / known.sum(axis=1)
    return mean


def interval(resampled: Floats) -> tuple[float, float] | None:
    """95% percentile interval; None if the metric is undefined in more than 1% of the resamples."""
    known = resampled[np.isfinite(resampled)]
    if len(known) < 0.99 * len(resampled):
        return None
    tail = (1 - LEVEL) / 2
    return float(np.quantile(known, tail)), float(np.quantile(known, 1 - tail))


def bootstrap(
    label: Labels, prediction: Floats, subject: NDArray[np.str_], *, seed: int, n_resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """`interval` of each metric except ECE over resamples of the subjects, drawn with the given seed."""
    if len(label) == 0 or n_resamples == 0:
        return {}
    _, place = np.unique(subject, return_inverse=True)
    n_subjects = int(place.max()) + 1
    rng = keyed.generator(seed, "bootstrap")
    weight = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n_resamples).astype(np.float64)
    found = {name: interval(v) for name, v in weighted_metrics(label, prediction, weight[:, place]).items()}
    return {name: bounds for name, bounds in found.items() if bounds is not None}


def table(
    label: Labels,
    prediction: Floats,
    subject: NDArray[np.str_],
    combination: list[str],
    n_observed: Ints,
    *,
    seed: int,
    n_resamples: int = 1000,
) -> pl.DataFrame:
    """One row per group and metric; groups are all samples, modality combinations, and numbers of observed modalities.

    Columns: `by` (all, combination, observed), `group`, `n`, `metric`, `value` (null if undefined), `low`, `high`
    (95% bootstrap interval over subjects; null if not computed).
    """
    combinations = np.array(combination)
    groups: list[tuple[str, str, NDArray[np.bool_]]] = [("all", "all", np.ones(len(label), dtype=bool))]
    groups += [("combination", c, combinations == c) for c in sorted(set(combination), key=lambda c: (c.count("+"), c))]
    groups += [("observed", str(k), n_observed == k) for k in np.unique(n_observed).tolist()]
    rows = []
    for by, group, chosen in groups:
        values = score(label[chosen], prediction[chosen])
        intervals = bootstrap(label[chosen], prediction[chosen], subject[chosen], seed=seed, n_resamples=n_resamples)
        for metric in values:
            low, high = intervals.get(metric, (None, None)) if values[metric] is not None else (None, None)
            rows.append((by, group, int(chosen.sum()), metric, values[metric], low, high))
    return pl.DataFrame(rows, schema=SCORE_COLUMNS, orient="row")
