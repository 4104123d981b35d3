"""Dense form of transformed events, to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrpipe.store.reader import Arrays
from mrpipe.transforms.events import Floats, step_numbers


def dense_steps(arrays: Arrays, n_items: int) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Values and masks of every item at every step.

    Returns:
        Concatenated values and masks (steps, 2 · n_items), offsets of the samples' steps (n + 1,), and time of each
        step in days (steps,).
    """
    assert arrays.time is not None
    step, n_steps = step_numbers(arrays)
    out = np.zeros((len(step) and int(step[-1]) + 1, 2 * n_items), dtype=np.float32)
    item = arrays.x[:, 0].astype(np.int64)
    out[step, item] = arrays.x[:, 1]
    out[step, n_items + item] = 1.0
    starts = np.flatnonzero(np.diff(step, prepend=-1))
    return out, np.concatenate([[0], np.cumsum(n_steps)]), arrays.time[starts]
