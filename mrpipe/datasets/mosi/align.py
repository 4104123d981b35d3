"""Temporal alignment: assign items (words, frames) to targets (opinion segments, words) and average them.

Shapes: T items, S targets. Intervals are (T, 2) float64 arrays of start and end in seconds. Assignments are two index
arrays of equal length, `(target, item)`, sorted by target and then by the start of the item.
"""

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Intervals = NDArray[np.float64]

# Seconds. Segment times are float32 and word times float64: equal times differ by up to 2e-5 s at the end of a video.
# The shortest item of the published sequences, a COVAREP frame, is 10 ms long.
TOLERANCE = 1e-3


def overlapping(items: Intervals, targets: Intervals, tolerance: float = TOLERANCE) -> tuple[Index, Index]:
    """Items that overlap a target by more than `tolerance` seconds; items may overlap each other and be unsorted.

    An item of zero length (a point in time) is assigned to the target with start <= point < end. A target of zero
    length has no items.
    """
    order = np.argsort(items[:, 0], kind="stable")
    start, end = items[order, 0], items[order, 1]
    # An item that starts early may end late, so the running maximum of the ends bounds the candidates from below.
    first = np.searchsorted(np.maximum.accumulate(end), targets[:, 0], side="left")
    target, candidate = _expand(first, np.searchsorted(start, targets[:, 1], side="left"))
    shared = np.minimum(end[candidate], targets[target, 1]) - np.maximum(start[candidate], targets[target, 0])
    point = (end[candidate] <= start[candidate]) & (start[candidate] >= targets[target, 0])
    keep = (shared > tolerance) | (point & (targets[target, 1] > targets[target, 0]))
    return target[keep], order[candidate[keep]]


def beginning_after(items: Intervals, targets: Intervals, tolerance: float = TOLERANCE) -> tuple[Index, Index]:
    """Items whose start is in the interval (start, end] of a target, up to `tolerance` seconds.

    This rule assigns words to the opinion segments of the SDK, whose times run from the beginning of the word before
    the first word of the segment to the beginning of its last word.
    """
    order = np.argsort(items[:, 0], kind="stable")
    start = items[order, 0]
    first = np.searchsorted(start, targets[:, 0] + tolerance, side="right")
    target, candidate = _expand(first, np.searchsorted(start, targets[:, 1] + tolerance, side="right"))
    return target, order[candidate]


def _expand(first: Index, last: Index) -> tuple[Index, Index]:
    """Expand ranges [first, last) into pairs (range number, member)."""
    n = np.maximum(last - first, 0)
    target = np.repeat(np.arange(len(n)), n)
    member = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
    return target.astype(np.int64), member.astype(np.int64)


def means(values: NDArray[np.float32], target: Index, item: Index, n_targets: int) -> NDArray[np.float32]:
    """Per-feature means over the items of each target, ignoring NaN; (S, d) float32, NaN where no value is observed.

    Args:
        values: (T, d) float32, NaN where missing.
        target, item: pairs sorted by target.
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
