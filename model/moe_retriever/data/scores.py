"""Metrics for model selection and tables (point estimates).

A prediction is either class probabilities (n, C), or values of a regression (n,), which has other metrics.

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
VALUE_METRICS = ("mae", "rmse", "corr", "r2")
_NAMES = ("accuracy", "balanced accuracy", "macro-F1", "AUROC", "AUPRC", "ECE", "MAE", "RMSE", "Corr", "R²")
METRIC_NAMES = dict(zip((*METRICS, *VALUE_METRICS), _NAMES, strict=True))
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
Labels = Ints | Floats


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return metric in ("loss", "ece", "mae", "rmse")


def metrics_of(prediction: Floats) -> tuple[str, ...]:
    """Names of the metrics of a prediction: of probabilities (n, C), or of values (n,)."""
    return METRICS if prediction.ndim == 2 else VALUE_METRICS


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


def score(label: Labels, prediction: Floats) -> dict[str, float | None]:
    """All metrics of a prediction; None if undefined (no samples, a single class for ranking metrics, no variation).

    Macro-F1 averages over the classes in labels or predictions, balanced accuracy over the classes in the labels, AUROC
    and AUPRC (one-vs-rest) over classes with positive and negative samples (of two classes, the second).
    """
    if len(label) == 0:
        return dict.fromkeys(metrics_of(prediction))
    if prediction.ndim == 1:
        return _score_values(label.astype(np.float64), prediction)
    return _score_classes(label.astype(np.int64), prediction)


def _score_values(label: Floats, value: Floats) -> dict[str, float | None]:
    error = value - label
    varies = label.std() > 0
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "corr": float(np.corrcoef(label, value)[0, 1]) if varies and value.std() > 0 else None,
        "r2": float(1 - (error**2).mean() / label.var()) if varies else None,
    }


def _score_classes(label: Ints, probability: Floats) -> dict[str, float | None]:
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


def selection_score(metric: str, label: Labels, prediction: Floats) -> tuple[float, float]:
    """Scores to maximise in model selection: plus or minus a metric (−inf if undefined) and, for ties, minus the loss.

    The loss is the cross-entropy, or the mean squared error.
    """
    if prediction.ndim == 1:
        loss = float(((prediction - label) ** 2).mean())
    else:
        of_label = prediction[np.arange(len(label)), label.astype(np.int64)]
        loss = -float(np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())
    value = loss if metric == "loss" else score(label, prediction)[metric]
    return (-math.inf if value is None else -value if lower_is_better(metric) else value), -loss
