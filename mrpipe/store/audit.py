"""Leakage audit: features that nearly determine the label on their own, with their raw column, on training rows.

A model that scores 0.99 because a form restates the diagnosis has learnt nothing useful. The audit applies the tests of
`mrpipe.store.leaks` to every feature, to whether the feature is known (a form completed only for patients leaks through
its presence), and to whether a modality is observed. Sequences are audited by the mean over their steps; events (codes,
measurements) per item, by presence and mean value.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.errors import UsageError, values_shown
from mrpipe.genetics.packing import unpack_at
from mrpipe.schema import Modality
from mrpipe.store import masks
from mrpipe.store.leaks import ALPHA, THRESHOLD, Columns, feature_columns, find_leaks, mask_columns
from mrpipe.store.reader import Arrays, Store

_TEXTS = "modality", "feature", "what", "class", "source_file", "source_column", "description"
_AUDIT: dict[str, Any] = dict.fromkeys(_TEXTS, pl.String) | {"auroc": pl.Float64, "n": pl.Int64}
AUDIT_SCHEMA = pl.Schema(_AUDIT)
_BLOCK, _ITEM_BLOCK = 1024, 512
# Dictionary entries of a mask bit.
MASK_FEATURE, MASK_TEXT = "modality_mask", "whether a sample has the modality"


def _item_columns(arrays: Arrays, items: list[str], *, values: bool) -> Iterator[Columns]:
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
        yield Columns(at, [f"has {name}" for name in names], count > 0, audit_known=False)
        if values:
            total = np.bincount(cell, weights=value[block], minlength=size).reshape(n, len(names))
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
            yield Columns(at + 1, [f"mean of {name}" for name in names], mean, audit_known=False)


def _columns(modality: Modality, arrays: Arrays, rows: pl.DataFrame) -> Iterator[Columns]:
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
            yield Columns(at, ["value"] * len(at), np.where(calls == 3, np.nan, calls))
        return
    x = arrays.x.reshape(len(arrays), -1).astype(np.float32) if arrays.offsets is None else arrays.means()
    yield from feature_columns(x, levels)


def audit(
    store: Store,
    *,
    task: str | None = None,
    scheme: str | None = None,
    threshold: float = THRESHOLD,
    alpha: float = ALPHA,
) -> pl.DataFrame:
    """Features and mask bits that nearly determine a label on the training rows of a split.

    Of images, volumes and modalities whose dictionary does not describe each element, only the mask bit is tested.

    Args:
        threshold, alpha: those of `leaks.find_leaks`; alpha holds per modality, and for all mask bits together.

    Returns:
        Rows of AUDIT_SCHEMA, highest AUROC first: `what` is `value`, `is <level>`, `has <item>`, `mean of <item>`,
        `known`, `rank correlation` (regression) or `observed` (mask bit). Of people, levels are named on request only.

    Raises:
        UsageError: no such task or scheme, or threshold or alpha out of range.
    """
    declared = store.task(task)
    if not 0.5 <= threshold <= 1:
        raise UsageError(f"the audit's threshold {threshold} must be between 0.5 and 1")
    if not 0 < alpha <= 1:
        raise UsageError(f"the audit's alpha {alpha} must be above 0 and at most 1")
    label = store.labels(task).join(store.split(scheme, "train"), on="sample_id", how="semi")
    labelled = store.samples().select("sample_id", "modality_mask").join(label, on="sample_id").collect()
    y = labelled["value"].to_numpy()
    number = {s: i for i, s in enumerate(labelled["sample_id"])}

    def tested(blocks: Iterable[Columns], values: NDArray[Any]) -> pl.DataFrame:
        return find_leaks(blocks, values, declared.classes, threshold=threshold, alpha=alpha)

    bits = masks.unpack(labelled["modality_mask"].to_numpy(), list(store.bits.values()))
    texts = {"name": MASK_FEATURE, "source_file": "", "source_column": "", "description": MASK_TEXT}
    named = pl.DataFrame({"modality": list(store.bits)}).with_columns(pl.lit(t).alias(k) for k, t in texts.items())
    found = [_described(tested([mask_columns(bits)], y), named)]
    for modality in store.modalities:
        rows = store.dictionary.filter(modality=modality.name).sort("position")
        if modality.kind in ("image", "volume") or len(rows) != modality.size:
            continue
        arrays = store.arrays(modality.name, split=scheme, part="train")
        place = np.array([number.get(s, -1) for s in arrays.sample_id], dtype=np.int64)
        arrays = arrays.take(np.flatnonzero(place >= 0))
        if len(arrays):
            found.append(_described(tested(_columns(modality, arrays, rows), y[place[place >= 0]]), rows))
    order = ["auroc", "modality", "feature", "what", "class"]
    what = pl.col("what").str.replace("^is .*", "is one of its levels").str.replace(" = .*", "")
    private = store.manifest.count is not int and not values_shown()
    return pl.concat(found).with_columns(what if private else []).sort(order, descending=[True, *[False] * 4])


def _described(found: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Findings with the dictionary entries of their features, as rows of AUDIT_SCHEMA."""
    entries = rows[found["position"].to_list()].rename({"name": "feature"})
    columns = [c for c in AUDIT_SCHEMA if c in entries.columns]
    return pl.concat([found.drop("position"), entries.select(columns)], how="horizontal").select(list(AUDIT_SCHEMA))
