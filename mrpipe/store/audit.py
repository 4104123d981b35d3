"""Leakage audit: features that nearly determine the label on their own, with their raw column, on training rows.

A model that scores 0.99 because a form restates the diagnosis has learnt nothing useful. For each feature and each
class against the rest, the audit computes the area under the ROC curve (AUROC) of the value and of whether the value is
known (a form completed only for patients leaks through its presence). Sequences are audited by the mean over their
steps; events (codes, measurements) per item, by presence and mean value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from mrpipe.errors import UsageError
from mrpipe.genetics.packing import unpack_at
from mrpipe.schema import Modality
from mrpipe.store.reader import Arrays, Store

_AUDIT: dict[str, Any] = {
    "modality": pl.String,
    "feature": pl.String,
    "what": pl.String,
    "class": pl.String,
    "auroc": pl.Float64,
    "n": pl.Int64,
    "source_file": pl.String,
    "source_column": pl.String,
    "description": pl.String,
}
AUDIT_SCHEMA = pl.Schema(_AUDIT)
_BLOCK, _ITEM_BLOCK = 4096, 512


def aurocs(x: NDArray[np.float32], classes: NDArray[np.bool_], *, least: int = 5) -> NDArray[np.float64]:
    """AUROC of each column for each class against the rest, (K, d); ties count half.

    Only known values are used. Values below 0.5 are as informative as those above.

    Args:
        x: (n, d), unknown values NaN.
        classes: (n, K), whether a row belongs to the class.
        least: minimum number of known values inside and outside the class; below, the result is NaN.
    """
    known = ~np.isnan(x)
    # Unknown values get the highest ranks, so that they do not affect the ranks of known values.
    ranks = np.where(known, rankdata(np.where(known, x, np.inf), axis=0), 0.0)
    inside = classes.T.astype(np.float64)
    n_in, n_known = inside @ known, known.sum(axis=0)
    return _area(inside @ ranks - n_in * (n_in + 1) / 2, n_in, n_known - n_in, least)


def indicator_aurocs(x: NDArray[np.bool_], classes: NDArray[np.bool_], *, least: int = 5) -> NDArray[np.float64]:
    """`aurocs` of boolean columns, computed without ranks; (K, d)."""
    inside, flags = classes.T.astype(np.float64), x.astype(np.float64)
    n_in = np.broadcast_to(inside.sum(axis=1, keepdims=True), (len(inside), x.shape[1]))
    n_out = len(x) - n_in
    true_in = inside @ flags
    true_out = flags.sum(axis=0) - true_in
    # Concordant pairs plus half of the tied pairs.
    u = true_in * (n_out - true_out) + 0.5 * (true_in * true_out + (n_in - true_in) * (n_out - true_out))
    return _area(u, n_in, n_out, least)


def _area(
    u: NDArray[np.float64], n_in: NDArray[np.float64], n_out: NDArray[np.float64], least: int
) -> NDArray[np.float64]:
    enough = (n_in >= least) & (n_out >= least)
    return np.asarray(np.where(enough, u / np.maximum(n_in * n_out, 1), np.nan))


def chance_spread(n_in: NDArray[np.float64], n_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of the AUROC of a feature that is independent of the class (an upper bound with ties)."""
    return np.asarray(np.sqrt((n_in + n_out + 1) / (12 * np.maximum(n_in * n_out, 1))))


@dataclass(frozen=True)
class _Columns:
    """A block of predictor columns.

    Attributes:
        at: (d,) dictionary positions of their features.
        what: the predictor derived from the feature, e.g. `value` or `is <level>`.
        x: (n, d) float32 with NaN for unknown values, or bool.
        audit_known: whether to audit the presence of the feature as well.
    """

    at: NDArray[np.int64]
    what: list[str]
    x: NDArray[Any]
    audit_known: bool = True


def _item_columns(arrays: Arrays, items: list[str], *, values: bool) -> Iterator[_Columns]:
    """Columns of events [position in `items`, value]: presence of each item and, with `values`, its mean value."""
    assert arrays.offsets is not None
    n = len(arrays)
    item = arrays.x[:, 0].astype(np.int64)
    order = np.argsort(item, kind="stable")
    item, sample = item[order], np.repeat(np.arange(n), np.diff(arrays.offsets))[order]
    value = np.nan_to_num(arrays.x[order, 1].astype(np.float64))
    for start in range(0, len(items), _ITEM_BLOCK):
        names = items[start : start + _ITEM_BLOCK]
        block = slice(*np.searchsorted(item, [start, start + len(names)]))
        cell, size = sample[block] * len(names) + item[block] - start, n * len(names)
        count = np.bincount(cell, minlength=size).reshape(n, len(names))
        at = np.zeros(len(names), dtype=np.int64)
        yield _Columns(at, [f"has {name}" for name in names], count > 0, audit_known=False)
        if values:
            total = np.bincount(cell, weights=value[block], minlength=size).reshape(n, len(names))
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
            yield _Columns(at + 1, [f"mean of {name}" for name in names], mean, audit_known=False)


def _columns(modality: Modality, arrays: Arrays, rows: pl.DataFrame) -> Iterator[_Columns]:
    """Blocks of predictor columns: numeric values, indicators of category levels, items of events."""
    levels = rows["levels"].to_list()
    n_features = len(levels)
    if rows["kind"][0] == "event":
        yield from _item_columns(arrays, levels[0], values=rows["kind"][1] == "numeric")
        return
    if modality.encoding == "packed2":
        for start in range(0, n_features, _BLOCK):
            at = np.arange(start, min(start + _BLOCK, n_features))
            calls = unpack_at(arrays.x, at).astype(np.float32)
            yield _Columns(at, ["value"] * len(at), np.where(calls == 3, np.nan, calls))
        return
    if arrays.offsets is None:
        x = arrays.x.reshape(len(arrays), -1).astype(np.float32)
    else:
        steps = arrays.x.astype(np.float64)
        known = ~np.isnan(steps)
        starts = arrays.offsets[:-1]
        total = np.add.reduceat(np.where(known, steps, 0.0), starts, axis=0)
        count = np.add.reduceat(known.astype(np.int64), starts, axis=0)
        x = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
    plain = np.array([j for j in range(n_features) if levels[j] is None], dtype=np.int64)
    yield _Columns(plain, ["value"] * len(plain), x[:, plain])
    for j in range(n_features):
        if levels[j] is not None:
            column = x[:, [j]]
            indicators = np.where(np.isnan(column), np.nan, column == np.arange(len(levels[j]))).astype(np.float32)
            yield _Columns(np.full(len(levels[j]), j), [f"is {level}" for level in levels[j]], indicators)


def audit(
    store: Store,
    *,
    task: str | None = None,
    scheme: str | None = None,
    threshold: float = 0.9,
    least: int = 5,
    alpha: float = 1.0,
) -> pl.DataFrame:
    """Features whose single-feature AUROC for a class exceeds a threshold on the training rows of a split.

    Images, volumes and other modalities whose dictionary does not describe each element are skipped.

    Args:
        threshold: threshold of the AUROC or, for features below 0.5, of 1 − AUROC.
        least: minimum number of known rows inside and outside the class.
        alpha: family-wise error rate (Bonferroni over all tests) of findings without leakage: among thousands of SNPs,
            some separate a dozen people by chance. With 1, everything above the threshold is reported.

    Returns:
        Rows of AUDIT_SCHEMA, highest AUROC first: `what` is `value`, `is <level>`, `has <item>`, `mean of <item>` or
        `known`; `auroc` is at least 0.5.

    Raises:
        UsageError: no such task or scheme, a regression task, or threshold or alpha out of range.
    """
    declared = store.task(task)
    if declared.kind != "classification":
        raise UsageError(f"the leakage audit requires a classification task; {declared.name} is a {declared.kind}")
    if not 0.5 <= threshold <= 1:
        raise UsageError(f"the audit's threshold {threshold} must be between 0.5 and 1")
    if not 0 < alpha <= 1:
        raise UsageError(f"the audit's alpha {alpha} must be above 0 and at most 1")
    label = (
        store.labels(task)
        .join(store.split(scheme).filter(pl.col("split") == "train"), on="sample_id", how="semi")
        .collect()
    )
    value = dict(label.iter_rows())
    found: list[pl.DataFrame] = []
    n_tests = 0
    for modality in store.modalities:
        rows = store.dictionary.filter(modality=modality.name).sort("position")
        if modality.kind in ("image", "volume") or len(rows) != modality.size:
            continue
        arrays = store.arrays(modality.name, split=scheme, part="train")
        labelled = np.array([s in value for s in arrays.sample_id], dtype=np.bool_)
        arrays = arrays.take(np.flatnonzero(labelled))
        if not len(arrays):
            continue
        y = np.array([value[str(s)] for s in arrays.sample_id], dtype=np.int64)
        classes = y[:, None] == np.arange(len(declared.classes))
        for c in _columns(modality, arrays, rows):
            if not len(c.at):
                continue
            known = ~np.isnan(c.x)
            is_indicator = c.x.dtype == np.bool_
            area = indicator_aurocs(c.x, classes, least=least) if is_indicator else aurocs(c.x, classes, least=least)
            n_tests += int(np.isfinite(area).sum())
            n_known = known.sum(axis=0)
            for k, name in enumerate(declared.classes):
                n_in = known[classes[:, k]].sum(axis=0)
                found.append(_above(rows, c.at, c.what, area[k], n_known, n_in, name, threshold))
            if not c.audit_known:
                continue
            # Presence is audited once per feature, not once per level.
            once = np.flatnonzero(np.r_[True, c.at[1:] != c.at[:-1]])
            known_area = indicator_aurocs(known[:, once], classes, least=least)
            n_tests += int(np.isfinite(known_area).sum())
            n_all = np.full(len(once), len(y))
            for k, name in enumerate(declared.classes):
                size = np.full(len(once), int(classes[:, k].sum()))
                what = ["known"] * len(once)
                found.append(_above(rows, c.at[once], what, known_area[k], n_all, size, name, threshold))
    if not found:
        return pl.DataFrame(schema=AUDIT_SCHEMA)
    limit = 0.0 if alpha >= 1 else float(norm.isf(alpha / (2 * max(n_tests, 1))))
    significant = pl.concat(found).filter(pl.col("spread") * limit <= pl.col("auroc") - 0.5).drop("spread")
    return significant.sort(["auroc", "modality", "feature", "what", "class"], descending=[True, *[False] * 4])


def _above(
    rows: pl.DataFrame,
    at: NDArray[np.int64],
    what: list[str],
    area: NDArray[np.float64],
    n: NDArray[Any],
    n_in: NDArray[Any],
    name: str,
    threshold: float,
) -> pl.DataFrame:
    strength = np.fmax(area, 1 - area)
    chosen = np.flatnonzero(np.nan_to_num(strength, nan=0.0) > threshold)
    features = rows[at[chosen].tolist()]
    return pl.DataFrame(
        {
            "modality": features["modality"],
            "feature": features["name"],
            "what": [what[i] for i in chosen.tolist()],
            "class": [name] * len(chosen),
            "auroc": strength[chosen],
            "n": n[chosen].astype(np.int64),
            "source_file": features["source_file"],
            "source_column": features["source_column"],
            "description": features["description"],
            "spread": chance_spread(n_in[chosen].astype(np.float64), (n - n_in)[chosen].astype(np.float64)),
        },
        schema={**AUDIT_SCHEMA, "spread": pl.Float64},
    )
