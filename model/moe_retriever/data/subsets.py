"""Random subsets of observed modalities, for methods that hide modalities in training.

At least one observed modality is kept. A sample's draw depends on its key, the seed and the stream, not on the batch.

Legend: B samples, M modalities.
"""

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
    """The observed modalities to keep, (B, M) bool; each sample with observed modalities keeps at least one.

    Args:
        observed: (B, M).
        keys: (B,) uint64.
        law: "subset": all non-empty subsets of the observed modalities have equal probability (mmFormer); "size": first
            the number of modalities is drawn uniformly, then a subset of this size (ShaSpec).
    """
    n = observed.sum(axis=1)
    if law == "subset":
        # The bits of a random number in 1 … 2^n − 1 select among the n observed modalities.
        u = keyed.uniform(keys, seed, f"subset {stream}")[:, 0]
        number = 1 + (u * ((1 << n) - 1)).astype(np.int64)
        rank = np.cumsum(observed, axis=1) - 1
        return observed & ((number[:, None] >> np.maximum(rank, 0)) & 1).astype(bool)
    u = keyed.uniform(keys, seed, f"subset size {stream}", observed.shape[1] + 1)
    size = 1 + (u[:, 0] * n).astype(np.int64)
    order = np.where(observed, u[:, 1:], 2.0).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return observed & (order < size[:, None])


def with_hidden(batch: Batch, kept: NDArray[np.bool_]) -> Batch:
    """The batch with all modalities hidden except `kept`."""
    return dataclasses.replace(batch, observed=kept, hidden=batch.hidden | (batch.observed & ~kept))
