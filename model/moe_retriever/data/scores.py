"""Classification metrics for model selection and tables (point estimates).

Legend: n samples, C classes.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "ece")
_NAMES = ("accuracy", "balanced accuracy", "macro-F1", "AUROC", "AUPRC", "ECE")
METRIC_NAMES = dict(zip(METRICS, _NAMES, strict=True))
# Columns of a table of scores: group of samples, metric, value and interval.
SCORE_COLUMNS = {
    **dict.fromkeys(("by", "group"), pl.String),
    "n": pl.Int64,
    "metric": pl.String,
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
}
N_BINS = 15
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ranked_classes(label: Ints, probability: Floats) -> list[int]:
    """Classes averaged by one-vs-rest ranking metrics: the second of two, or all with positive and negative samples."""
    n_classes = probability.shape[1]
    classes = [1] if n_classes == 2 else range(n_classes)
    return [c for c in classes if 0 < (label == c).sum() < len(label)]


def ece(label: Ints, probability: Floats) -> float:
    """Expected calibration error: mean |accuracy − confidence| over 15 equal-width bins of the largest probability."""
    confidence = probability.max(axis=1)
    right = probability.argmax(axis=1) == label
    place = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
    gap = np.bincount(place, right - confidence, minlength=N_BINS)
    return float(np.abs(gap).sum() / len(label))


def score(label: Ints, probability: Floats) -> dict[str, float | None]:
    """All metrics; None if undefined (no samples, or a single class for ranking metrics).

    Macro-F1 averages over the classes in labels or predictions, balanced accuracy over the classes in the labels, AUROC
    and AUPRC (one-vs-rest) over classes with positive and negative samples (of two classes, the second).
    """
    if len(label) == 0:
        return dict.fromkeys(METRICS)
    predicted = probability.argmax(axis=1)
    columns = ranked_classes(label, probability)
    areas = {"auroc": roc_auc_score, "auprc": average_precision_score}
    ranking = {k: [area(label == c, probability[:, c]) for c in columns] for k, area in areas.items()}
    with warnings.catch_warnings():
        # The recall of a class that is predicted but does not occur is omitted, as documented.
        warnings.simplefilter("ignore", UserWarning)
        balanced = float(balanced_accuracy_score(label, predicted))
    return {
        "accuracy": float((predicted == label).mean()),
        "balanced_accuracy": balanced,
        "macro_f1": float(f1_score(label, predicted, average="macro", zero_division=0)),
        **{k: float(np.mean(values)) if values else None for k, values in ranking.items()},
        "ece": ece(label, probability),
    }


def selection_score(metric: str, label: Ints, probability: Floats) -> tuple[float, float]:
    """Scores to maximise in model selection: a metric (−inf if undefined) and, for ties, minus the cross-entropy."""
    of_label = probability[np.arange(len(label)), label]
    likelihood = float(np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())
    value = likelihood if metric == "loss" else score(label, probability)[metric]
    return -math.inf if value is None else value, likelihood
