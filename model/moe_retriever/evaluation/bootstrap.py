"""Metrics with bootstrap intervals, by modality combination, number of observed modalities, and subgroup.

The bootstrap resamples subjects (all samples of a subject together) and computes the weighted metrics of all resamples
at once (`moe_retriever.data.scores`).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_retriever.data.scores import PLAIN, SCORE_COLUMNS, Floats, Ints, Labels, Rules, score, weighted_metrics
from moe_retriever.evaluation.groups import Group, pattern_groups
from mrpipe import keyed

__all__ = ["bootstrap", "interval", "score", "table", "weighted_metrics"]


def interval(resampled: Floats) -> tuple[float, float] | None:
    """95% percentile interval; None if the metric is undefined in more than 1% of the resamples."""
    known = resampled[np.isfinite(resampled)]
    if len(known) < 0.99 * len(resampled):
        return None
    low, high = np.quantile(known, (0.025, 0.975)).tolist()
    return low, high


def bootstrap(
    label: Labels,
    prediction: Floats,
    subject: NDArray[np.str_],
    *,
    seed: int,
    n_resamples: int = 1000,
    rules: Rules = PLAIN,
) -> dict[str, tuple[float, float]]:
    """`interval` of each metric over resamples of the subjects, drawn with the given seed."""
    if len(label) == 0 or n_resamples == 0:
        return {}
    _, place = np.unique(subject, return_inverse=True)
    n_subjects = int(place.max()) + 1
    rng = keyed.generator(seed, "bootstrap")
    weight = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n_resamples).astype(np.float64)
    found = {name: interval(v) for name, v in weighted_metrics(label, prediction, weight[:, place], rules).items()}
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
    more: Sequence[Group] = (),
    rules: Rules = PLAIN,
) -> pl.DataFrame:
    """One row per group and metric, by modality combination, number of observed modalities, and `more` groups.

    Columns: `by` and `group` (see `moe_retriever.evaluation.groups`), `n`, `metric`, `value` (null if undefined),
    `low`, `high` (95% bootstrap interval over subjects; null if not computed).
    """
    known: dict[bytes, list[tuple[str, float | None, float | None, float | None]]] = {}
    rows = []
    for by, group, chosen in [*pattern_groups(combination, n_observed), *more]:
        # Groups of the same samples, e.g. if no modality is missing, are evaluated once.
        if (key := chosen.tobytes()) not in known:
            part = label[chosen], prediction[chosen]
            values = score(*part, rules)
            intervals = bootstrap(*part, subject[chosen], seed=seed, n_resamples=n_resamples, rules=rules)
            bounds = (intervals.get(m, (None, None)) if v is not None else (None, None) for m, v in values.items())
            known[key] = [(m, v, low, high) for (m, v), (low, high) in zip(values.items(), bounds, strict=True)]
        rows += [(by, group, int(chosen.sum()), *row) for row in known[key]]
    return pl.DataFrame(rows, schema=SCORE_COLUMNS, orient="row")
