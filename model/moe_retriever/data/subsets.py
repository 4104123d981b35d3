"""Random subsets of what a sample has, for methods that hide modalities in training.

Only observed modalities are hidden and never the last one; a sample's draw depends on its key, the seed and the stream,
not on the batch.

Legend: B samples, M modalities.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_retriever.data.load import Batch
from mrpipe import keyed

Law = Literal["subset", "size"]


def random_subsets(
    observed: NDArray[np.bool_], keys: NDArray[np.uint64], seed: int, stream: str, law: Law
) -> NDArray[np.bool_]:
    """Which of the observed modalities are kept, (B, M) bool; each sample keeps at least one.

    Args:
        observed: (B, M), at least one a row.
        keys: (B,) uint64.
        law: "subset": every non-empty subset of the observed set is equally likely (mmFormer); "size": first the number
            kept, uniform in 1 … |mc|, then the subset, uniform (ShaSpec).
    """
    n = observed.sum(axis=1)
    if law == "subset":
        # The bits of a number in 1 … 2^|mc| − 1 say which of the observed ones are kept.
        u = keyed.uniform(keys, seed, f"subset {stream}")[:, 0]
        number = 1 + (u * ((1 << n) - 1)).astype(np.int64)
        rank = np.cumsum(observed, axis=1) - 1
        return observed & ((number[:, None] >> np.maximum(rank, 0)) & 1).astype(bool)
    u = keyed.uniform(keys, seed, f"subset size {stream}", observed.shape[1] + 1)
    size = 1 + (u[:, 0] * n).astype(np.int64)
    order = np.where(observed, u[:, 1:], 2.0).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return observed & (order < size[:, None])


def with_hidden(batch: Batch, kept: NDArray[np.bool_]) -> Batch:
    """The batch as if only `kept` were observed."""
    return dataclasses.replace(batch, observed=kept, hidden=batch.hidden | (batch.observed & ~kept))
