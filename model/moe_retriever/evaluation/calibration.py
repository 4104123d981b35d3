"""Choices made on validation samples (temperature, decision threshold), and the risk–coverage curve."""

import math
from typing import Any

import numpy as np
import polars as pl

from moe_retriever.config import Common, parse_threshold
from moe_retriever.data.load import Data
from moe_retriever.data.scores import Floats, Ints, Labels
from moe_retriever.methods.base import AnyMethod
from moe_retriever.training.predict import predict
from mrpipe.errors import UsageError


def decide(common: Common, method: AnyMethod, data: Data | None, *, draws: int | None = None) -> dict[str, Any]:
    """Fit the temperature, then choose the threshold, on the validation samples of the training data.

    Returns `temperature`, by which logits are divided (1 without calibration), `threshold` of the second of two
    classes, its `rule`, and `n_validation` (0 if nothing is chosen); a UsageError without validation samples.
    """
    rule, value = parse_threshold(common.decision_threshold)
    decision: dict[str, Any] = {"temperature": 1.0, "threshold": value, "rule": common.decision_threshold}
    decision["n_validation"] = 0
    if common.calibration == "none" and rule == "fixed":
        return decision
    if data is None:
        raise UsageError("calibration and threshold need the validation samples: pass --reference-store")
    rows = data.rows("val")
    label = data.label[rows].astype(np.int64)
    if len(np.unique(label)) < (1 if rule == "fixed" else 2):
        raise UsageError("calibration and threshold need validation samples, a threshold those of both classes")
    found = predict(method, data, rows, draws=draws)
    if common.calibration != "none":
        decision["temperature"] = fit_temperature(label, found.logits.astype(np.float64))
    if rule != "fixed":
        probability = data.spec.scored(found.logits / np.float32(decision["temperature"]))[:, 1]
        decision["threshold"] = choose_threshold(label, probability, rule, value)
    return {**decision, "n_validation": len(rows)}


def fit_temperature(label: Ints, logits: Floats) -> float:
    """Temperature in [0.05, 20] with the smallest negative log-likelihood, which has a single minimum."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    every, bounds = np.arange(len(label)), (math.log(0.05), math.log(20))
    found = minimize_scalar(
        lambda t: -log_softmax(logits * math.exp(-t), axis=1)[every, label].mean(), bounds=bounds, method="bounded"
    )
    return math.exp(found.x)


def choose_threshold(label: Ints, probability: Floats, rule: str, value: float) -> float:
    """Highest threshold with the best Youden index or a `sensitivity` of `value`, or lowest with a `specificity`."""
    from sklearn.metrics import roc_curve

    # The first threshold of the curve is infinite. Rounding removes differences that are due to sums only.
    false_rate, sensitivity, thresholds = (v[1:] for v in roc_curve(label, probability, drop_intermediate=False))
    if rule == "specificity":
        # If no probability is high enough, the threshold is above all of them.
        return float([np.nextafter(thresholds[0], 2), *thresholds[np.round(1 - false_rate, 12) >= value]][-1])
    good = sensitivity >= value if rule == "sensitivity" else np.round(sensitivity - false_rate, 12)
    return float(thresholds[np.argmax(good)])


def risk_coverage(label: Labels, probability: Floats) -> pl.DataFrame:
    """Error rate (`risk`) of the `n` samples whose `confidence`, the largest probability, is at least the given one.

    There are at most 20 rows: `coverage`, the share of these samples, is at least 5%, 10%, …, 100%.
    """
    confidence, wrong = probability.max(axis=1), probability.argmax(axis=1) != label
    lowest = np.unique(np.quantile(confidence, np.arange(20) / 20, method="lower"))[::-1]
    kept = confidence >= lowest[:, None]
    n, errors = kept.sum(axis=1), (kept & wrong).sum(axis=1)
    return pl.DataFrame({"confidence": lowest, "coverage": n / len(label), "n": n, "risk": errors / n})
