"""Intervals in time: which items (words, frames) belong to which targets (opinion segments, words), and their means.

Shapes: T items, S targets; an interval array is (T, 2) float64, seconds, start then end. A result is two index arrays
of equal length, `(target, item)`, ordered by target and, within a target, by the item's start.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Intervals = NDArray[np.float64]

# Segment times are float32, word times float64: equal instants differ by up to 2e-5 s at the end of a video, and the
# shortest item of any published sequence (a COVAREP frame) lasts 10 ms.
TOLERANCE = 1e-3


def overlapping(items: Intervals, targets: Intervals, tolerance: float = TOLERANCE) -> tuple[Index, Index]:
    """Items that share more than `tolerance` seconds with a target; items may overlap and stand in any order.

    An item of zero length (a point in time) belongs to the target that holds it, end excluded. A target of zero length
    holds nothing.
    """
    order = np.argsort(items[:, 0], kind="stable")
    start, end = items[order, 0], items[order, 1]
    # Sorted by start, an item can still end late: the running maximum of the ends bounds the candidates from below.
    first = np.searchsorted(np.maximum.accumulate(end), targets[:, 0], side="left")
    last = np.searchsorted(start, targets[:, 1], side="left")
    target, candidate = _expand(first, last)
    shared = np.minimum(end[candidate], targets[target, 1]) - np.maximum(start[candidate], targets[target, 0])
    point = (end[candidate] <= start[candidate]) & (start[candidate] >= targets[target, 0])
    keep = (shared > tolerance) | (point & (targets[target, 1] > targets[target, 0]))
    return target[keep], order[candidate[keep]]


def beginning_after(items: Intervals, targets: Intervals, tolerance: float = TOLERANCE) -> tuple[Index, Index]:
    """Items that begin after a target's start and no later than its end: start in (s, e], to within `tolerance`.

    This is how words belong to the opinion segments of the SDK: a segment's times run from the beginning of the word
    before its first one to the beginning of its last one.
    """
    order = np.argsort(items[:, 0], kind="stable")
    start = items[order, 0]
    first = np.searchsorted(start, targets[:, 0] + tolerance, side="right")
    last = np.searchsorted(start, targets[:, 1] + tolerance, side="right")
    target, candidate = _expand(first, last)
    return target, order[candidate]


def _expand(first: Index, last: Index) -> tuple[Index, Index]:
    """Ranges [first, last) as pairs (range number, member)."""
    n = np.maximum(last - first, 0)
    target = np.repeat(np.arange(len(n)), n)
    member = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
    return target.astype(np.int64), member.astype(np.int64)


def means(values: NDArray[np.float32], target: Index, item: Index, n_targets: int) -> NDArray[np.float32]:
    """Mean over each target's items, feature by feature, over the values that are known; (S, d), NaN where none is.

    Args:
        values: (T, d), NaN where unknown.
        target, item: pairs ordered by target.
    """
    result = np.full((n_targets, values.shape[1]), np.nan, dtype=np.float32)
    if len(target) == 0:
        return result
    gathered = values[item].astype(np.float64)
    known = ~np.isnan(gathered)
    starts = np.flatnonzero(np.diff(target, prepend=-1))
    sums = np.add.reduceat(np.where(known, gathered, 0.0), starts, axis=0)
    counts = np.add.reduceat(known.astype(np.int64), starts, axis=0)
    with np.errstate(invalid="ignore"):
        result[target[starts]] = sums / np.where(counts > 0, counts, np.nan)
    return result
