"""Bank of training samples used for retrieval: masks, and token embeddings computed on demand.

Graph and retrieval methods predict from training samples only, so predictions are independent of other test samples.
Embeddings are computed from the training store (`ReferenceSamples.of`) or loaded from a checkpoint
(`ReferenceSamples.from_state`).

Legend: R reference samples, M modalities, P tokens, H hidden dimension.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_retriever.data.load import Data
from moe_retriever.data.tables import Rows
from moe_retriever.device import to_device
from moe_retriever.nn.encoders import frozen_batch_norm

ENCODE_ROWS = 256
# Limit of the embeddings of all modalities in memory.
MOST_BYTES = 2**30


def shaped(value: object, *shape: int) -> Tensor:
    """A tensor of a checkpoint; a ValueError if it has another shape (−1: any size) or numbers that are not finite."""
    if not isinstance(value, Tensor) or value.ndim != len(shape):
        raise ValueError(f"{type(value).__name__} instead of a tensor of shape {shape}")
    if any(m not in (-1, n) for n, m in zip(value.shape, shape, strict=True)) or not value.isfinite().all():
        raise ValueError(f"shape {tuple(value.shape)} instead of {shape}, or numbers that are not finite")
    return value


class EmbeddingBank:
    """Cache of detached embeddings, indexed by row of the modality's table.

    Each is computed once until `forget`, or until the next ones would exceed `MOST_BYTES`.
    """

    def __init__(self, data: Data):
        self._data = data
        # Position of each entry among the modality's embeddings, −1 if not computed.
        self._place = [np.full(len(table), -1, dtype=np.int64) for table in data.tables]
        self._used = [0] * len(data.tables)
        self._tokens: list[Tensor | None] = [None] * len(data.tables)

    def forget(self) -> None:
        """Discard all embeddings, which depend on former weights, but keep the memory."""
        for m in range(len(self._used)):
            self._discard(m)

    def _discard(self, m: int) -> None:
        self._place[m][:] = -1
        self._used[m] = 0

    def _most(self, m: int) -> int:
        """Number of embeddings of a modality that may be kept."""
        held = self._tokens[m]
        return len(self._place[m]) if held is None else MOST_BYTES // (len(self._tokens) * max(held[0].nbytes, 1))

    @torch.no_grad()
    def embed(self, m: int, rows: Rows, encoder: nn.Module) -> Tensor:
        """Embeddings (n, P, H) by the encoder in evaluation mode."""
        missing = np.unique(rows[self._place[m][rows] < 0])
        if self._used[m] + len(missing) > self._most(m):
            self._discard(m)
            missing = np.unique(rows)
        if len(missing):
            training = encoder.training
            encoder.eval()
            for start in range(0, len(missing), ENCODE_ROWS):
                block = missing[start : start + ENCODE_ROWS]
                self._store(m, block, encoder(self._data.tables[m].gather(block)), n_more=len(missing) - start)
            encoder.train(training)
        tokens = self._tokens[m]
        assert tokens is not None
        return tokens.index_select(0, to_device(self._place[m][rows], tokens.device))

    def remember(self, m: int, rows: Rows, tokens: Tensor) -> None:
        """Add embeddings (n, P, H) computed elsewhere, for rows that are not in the bank."""
        new, at = np.unique(rows, return_index=True)
        at = at[self._place[m][new] < 0]
        if len(at) and self._used[m] + len(at) <= self._most(m):
            self._store(m, rows[at], tokens.detach()[to_device(at, tokens.device)], n_more=len(at))

    def _store(self, m: int, rows: Rows, tokens: Tensor, n_more: int) -> None:
        used, held = self._used[m], self._tokens[m]
        if held is None or used + len(rows) > len(held):
            size = max(used + n_more, min(2 * used, self._most(m), len(self._place[m])))
            grown = tokens.new_empty(size, *tokens.shape[1:])
            if held is not None:
                grown[:used] = held[:used]
            held = self._tokens[m] = grown
        held[used : used + len(rows)] = tokens.detach()
        self._place[m][rows] = np.arange(used, used + len(rows))
        self._used[m] += len(rows)


class ReferenceSamples:
    """Reference samples, in order of sample_id.

    Attributes:
        observed: (R, M) observed modalities.
        subject: (R,) number of the subject; from a checkpoint, each sample has its own.
        data: the data with their features; None for embeddings from a checkpoint.
        bank: embeddings of the entries of `data`, including samples that are not references.
    """

    def __init__(
        self, observed: NDArray[np.bool_], data: Data | None, rows: Rows, kept: Sequence[Tensor] | None = None
    ):
        self.observed = observed
        self.data = data
        self.bank = None if data is None else EmbeddingBank(data)
        self._rows = rows
        # From a checkpoint: embeddings per modality, and the position of each sample there (−1 if it has none).
        self._kept = kept
        self._place = np.where(observed, np.cumsum(observed, axis=0) - 1, -1)
        self._own = np.zeros(0, dtype=np.int64)
        self.subject = np.arange(len(observed))
        if data is not None:
            self.subject = np.unique(data.subject_id[rows], return_inverse=True)[1]
            self._own = np.full(len(data), -1, dtype=np.int64)
            self._own[rows] = np.arange(len(rows))

    @classmethod
    def of(cls, data: Data, train_rows: Rows) -> "ReferenceSamples":
        """Reference samples from the training samples of a loaded store."""
        rows = np.sort(train_rows)
        return cls(data.observed[rows], data, rows)

    def __len__(self) -> int:
        return len(self.observed)

    def own_row(self, data: Data, index: Rows) -> Rows:
        """(B,) reference row of samples of `data`, −1 for samples that are not references (by id in another load)."""
        if data is self.data:
            return self._own[index]
        keys = np.zeros(0, dtype=np.uint64) if self.data is None else self.data.keys[self._rows]
        order = np.argsort(keys)
        place = np.append(order, -1)[np.searchsorted(keys, data.keys[index], sorter=order)]
        same = (place >= 0) & (np.append(keys, 0)[place] == data.keys[index])
        return np.where(same, place, -1)

    def table_rows(self, m: int, rows: Rows) -> Rows:
        """Rows in modality m's table of reference rows that have the modality."""
        assert self.data is not None
        return self.data.row[self._rows[rows], m]

    def encode(self, m: int, rows: Rows, encoder: nn.Module) -> Tensor:
        """Embeddings (n, P, H) with gradients, in the encoder's current mode, without updating batch statistics."""
        assert self.data is not None
        with frozen_batch_norm(encoder):
            return encoder(self.data.tables[m].gather(self.table_rows(m, rows)))

    def forget(self) -> None:
        """Discard embeddings that depend on former weights; a bank from a checkpoint is kept."""
        if self.bank is not None:
            self.bank.forget()

    def embed(self, m: int, rows: Rows, encoder: nn.Module) -> Tensor:
        """Detached embeddings (n, P, H) by the encoder in evaluation mode."""
        if self.bank is not None:
            return self.bank.embed(m, self.table_rows(m, rows), encoder)
        assert self._kept is not None
        return self._kept[m][to_device(self._place[rows, m], self._kept[m].device)]

    def state(self, encoders: nn.ModuleList) -> dict[str, object]:
        """Masks and all reference embeddings for a checkpoint, without ids and features."""
        having = [np.flatnonzero(seen) for seen in self.observed.T]
        banks = [
            self.embed(m, rows, encoder).cpu() if len(rows) else torch.zeros(0)
            for m, (rows, encoder) in enumerate(zip(having, encoders, strict=True))
        ]
        return {"observed": torch.from_numpy(self.observed.copy()), "banks": banks}

    @classmethod
    def from_state(
        cls, state: Mapping[str, object], device: torch.device, shape: tuple[int, int, int]
    ) -> "ReferenceSamples":
        """Reference samples without features, from `state`, with embeddings of M modalities of `shape` (M, P, H)."""
        observed = shaped(state["observed"], -1, shape[0]).bool().cpu().numpy()
        banks = zip(cast(list[object], state["banks"]), observed.sum(axis=0).tolist(), strict=True)
        kept = [(shaped(bank, n, *shape[1:]) if n else torch.zeros(0)).to(device) for bank, n in banks]
        return cls(observed, None, np.zeros(0, dtype=np.int64), kept)

    def bank_bytes(self, n_tokens: int, hidden: int) -> int:
        """Size of all reference embeddings in float32, in bytes."""
        return int(self.observed.sum()) * n_tokens * hidden * 4
