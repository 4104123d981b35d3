"""Leakage audit: features that tell the label almost alone, on training rows, with the raw column they come from.

A model that reaches 0.99 because a form records the diagnosis in other words has learnt nothing. For every feature,
class against the rest: the area under the ROC curve of its value, and of whether it is known at all (a form that is
filled in for patients only leaks by being there). A sequence is looked at by the mean of its steps; events (codes,
measurements) by item: whether a sample has it, and the mean of its values.
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
    """Area under the ROC curve of each column for each class against the rest, ties counted half; (K, d).

    Over the known rows of a column; NaN where fewer than `least` of them are on either side. Values below 0.5 tell as
    much as those above.

    Args:
        x: (n, d), NaN unknown.
        classes: (n, K) in the class or not.
    """
    known = ~np.isnan(x)
    # Unknown values get the highest ranks, so that the ranks of the known ones are theirs alone.
    ranks = np.where(known, rankdata(np.where(known, x, np.inf), axis=0), 0.0)
    inside = classes.T.astype(np.float64)
    n_in, n_known = inside @ known, known.sum(axis=0)
    return _area(inside @ ranks - n_in * (n_in + 1) / 2, n_in, n_known - n_in, least)


def indicator_aurocs(x: NDArray[np.bool_], classes: NDArray[np.bool_], *, least: int = 5) -> NDArray[np.float64]:
    """`aurocs` of columns that are true or false, without ranks; (K, d)."""
    inside, flags = classes.T.astype(np.float64), x.astype(np.float64)
    n_in = np.broadcast_to(inside.sum(axis=1, keepdims=True), (len(inside), x.shape[1]))
    n_out = len(x) - n_in
    true_in = inside @ flags
    true_out = flags.sum(axis=0) - true_in
    # Pairs that are ordered, and half of those that are tied.
    u = true_in * (n_out - true_out) + 0.5 * (true_in * true_out + (n_in - true_in) * (n_out - true_out))
    return _area(u, n_in, n_out, least)


def _area(
    u: NDArray[np.float64], n_in: NDArray[np.float64], n_out: NDArray[np.float64], least: int
) -> NDArray[np.float64]:
    enough = (n_in >= least) & (n_out >= least)
    return np.asarray(np.where(enough, u / np.maximum(n_in * n_out, 1), np.nan))


def chance_spread(n_in: NDArray[np.float64], n_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of the area of a feature that has nothing to do with the class (ties make it smaller)."""
    return np.asarray(np.sqrt((n_in + n_out + 1) / (12 * np.maximum(n_in * n_out, 1))))


@dataclass(frozen=True)
class _Columns:
    """Some columns to look at.

    Attributes:
        at: (d,) position of each one's feature in the dictionary.
        what: what of the feature it is.
        x: (n, d) float32, NaN unknown; or bool.
        gaps: whether it says something that a feature is known at all.
    """

    at: NDArray[np.int64]
    what: list[str]
    x: NDArray[Any]
    gaps: bool = True


def _item_columns(arrays: Arrays, items: list[str], *, values: bool) -> Iterator[_Columns]:
    """Of events [position in `items`, value]: whether a sample has an item and, where they are `values`, their mean."""
    assert arrays.offsets is not None
    n = len(arrays)
    item = arrays.x[:, 0].astype(np.int64)
    order = np.argsort(item, kind="stable")
    item, sample = item[order], np.repeat(np.arange(n), np.diff(arrays.offsets))[order]
    value = np.nan_to_num(arrays.x[order, 1].astype(np.float64))
    for start in range(0, len(items), _ITEM_BLOCK):
        names = items[start : start + _ITEM_BLOCK]
        own = slice(*np.searchsorted(item, [start, start + len(names)]))
        cell, size = sample[own] * len(names) + item[own] - start, n * len(names)
        count = np.bincount(cell, minlength=size).reshape(n, len(names))
        at = np.zeros(len(names), dtype=np.int64)
        yield _Columns(at, [f"has {name}" for name in names], count > 0, gaps=False)
        if values:
            total = np.bincount(cell, weights=value[own], minlength=size).reshape(n, len(names))
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
            yield _Columns(at + 1, [f"mean of {name}" for name in names], mean, gaps=False)


def _columns(modality: Modality, arrays: Arrays, rows: pl.DataFrame) -> Iterator[_Columns]:
    """Blocks of columns: numbers as they are, the levels of categories and the items of events one by one."""
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

    Images and volumes have no named features and are left out; so are modalities whose dictionary does not name each
    element.

    Args:
        threshold: of the AUROC, or of 1 − AUROC.
        least: known rows that both sides must have.
        alpha: chance, over everything that is looked at (Bonferroni), of a finding without any leak: among thousands
            of SNPs some tell a dozen people apart by luck. 1 keeps whatever exceeds the threshold.

    Returns:
        Rows of AUDIT_SCHEMA, the highest first: `what` is `value`, `is <level>`, `has <item>`, `mean of <item>` or
        `known`; `auroc` at least 0.5.

    Raises:
        UsageError: no such task or scheme, a regression, or a threshold or alpha out of range.
    """
    declared = store.task(task)
    if declared.kind != "classification":
        raise UsageError(f"the leakage audit needs a classification task; {declared.name} is a {declared.kind}")
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
    looks = 0
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
            yes_or_no = c.x.dtype == np.bool_
            area = indicator_aurocs(c.x, classes, least=least) if yes_or_no else aurocs(c.x, classes, least=least)
            looks += int(np.isfinite(area).sum())
            n_known = known.sum(axis=0)
            for k, name in enumerate(declared.classes):
                n_in = known[classes[:, k]].sum(axis=0)
                found.append(_above(rows, c.at, c.what, area[k], n_known, n_in, name, threshold))
            if not c.gaps:
                continue
            # Whether a feature is known says something once a feature, not once a level.
            once = np.flatnonzero(np.r_[True, c.at[1:] != c.at[:-1]])
            there = indicator_aurocs(known[:, once], classes, least=least)
            looks += int(np.isfinite(there).sum())
            everybody = np.full(len(once), len(y))
            for k, name in enumerate(declared.classes):
                size = np.full(len(once), int(classes[:, k].sum()))
                what = ["known"] * len(once)
                found.append(_above(rows, c.at[once], what, there[k], everybody, size, name, threshold))
    if not found:
        return pl.DataFrame(schema=AUDIT_SCHEMA)
    limit = 0.0 if alpha >= 1 else float(norm.isf(alpha / (2 * max(looks, 1))))
    beyond = pl.concat(found).filter(pl.col("spread") * limit <= pl.col("auroc") - 0.5).drop("spread")
    return beyond.sort(["auroc", "modality", "feature", "what", "class"], descending=[True, *[False] * 4])


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
