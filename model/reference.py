"""The training samples as other samples may see them: masks, and token embeddings made on demand.

Graph and retrieval methods predict from training samples only, so a prediction never depends on another test sample.
Embeddings come from the training store (`Reference.of`) or from a bank that a checkpoint carries
(`Reference.from_state`).

Legend: R reference samples, M modalities, P tokens, H hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.data import Data
from model.encoders import frozen_batch_norm
from model.inputs import Rows

ENCODE_ROWS = 256


class Reference:
    """Reference samples, in order of sample_id.

    Attributes:
        observed: (R, M) what each has.
        data: where their features lie; None for a bank.
    """

    def __init__(self, observed: NDArray[np.bool_], data: Data | None, rows: Rows):
        self.observed = observed
        self.data = data
        self._rows = rows
        # Place of a sample in the bank of each modality, −1 where it has none.
        self._place = np.where(observed, np.cumsum(observed, axis=0) - 1, -1)
        self._counts = observed.sum(axis=0)
        self._bank: list[Tensor | None] = [None] * observed.shape[1]
        self._known = [np.zeros(n, dtype=bool) for n in self._counts]
        self._own = np.zeros(0, dtype=np.int64)
        if data is not None:
            self._own = np.full(len(data), -1, dtype=np.int64)
            self._own[rows] = np.arange(len(rows))

    @classmethod
    def of(cls, data: Data, train_rows: Rows) -> Reference:
        """Reference of the training samples of a loaded store."""
        rows = np.sort(train_rows)
        return cls(data.observed[rows], data, rows)

    def __len__(self) -> int:
        return len(self.observed)

    def own_row(self, data: Data, index: Rows) -> Rows:
        """(B,) reference row of samples of `data`, −1 for those that are none."""
        return self._own[index] if data is self.data else np.full(len(index), -1, dtype=np.int64)

    def table_rows(self, m: int, rows: Rows) -> Rows:
        """Rows of modality m's table that belong to reference rows which have it."""
        assert self.data is not None
        return self.data.row[self._rows[rows], m]

    def encode(self, m: int, rows: Rows, encoder: nn.Module) -> Tensor:
        """Fresh embeddings (n, P, H) with gradients, in the encoder's present mode; batch statistics stay."""
        assert self.data is not None
        with frozen_batch_norm(encoder):
            return encoder(self.data.tables[m].gather(self.table_rows(m, rows)))

    def forget(self) -> None:
        """Drop what was embedded with former weights; a bank from a checkpoint stays."""
        if self.data is not None:
            self._bank = [None] * len(self._bank)
            for known in self._known:
                known[:] = False

    @torch.no_grad()
    def embed(self, m: int, rows: Rows, encoder: nn.Module) -> Tensor:
        """Detached embeddings (n, P, H) of the encoder in evaluation mode, each made once until `forget`."""
        place = self._place[rows, m]
        missing = np.unique(place[~self._known[m][place]])
        if len(missing):
            self._fill(m, missing, encoder)
        bank = self._bank[m]
        assert bank is not None
        return bank[torch.from_numpy(place).to(bank.device)]

    def _fill(self, m: int, places: Rows, encoder: nn.Module) -> None:
        assert self.data is not None
        having = np.flatnonzero(self.observed[:, m])
        training = encoder.training
        encoder.eval()
        for start in range(0, len(places), ENCODE_ROWS):
            block = places[start : start + ENCODE_ROWS]
            tokens = encoder(self.data.tables[m].gather(self.table_rows(m, having[block])))
            bank = self._bank[m]
            if bank is None:
                bank = self._bank[m] = tokens.new_zeros(int(self._counts[m]), *tokens.shape[1:])
            bank[torch.from_numpy(block).to(bank.device)] = tokens
            self._known[m][block] = True
        encoder.train(training)

    def state(self, encoders: nn.ModuleList) -> dict[str, Any]:
        """Masks and the whole bank, for a checkpoint; no id and no feature of anyone."""
        for m, encoder in enumerate(encoders):
            missing = np.flatnonzero(~self._known[m])
            if len(missing):
                self._fill(m, missing, encoder)
        banks = [torch.zeros(0) if bank is None else bank.cpu() for bank in self._bank]
        return {"observed": torch.from_numpy(self.observed.copy()), "banks": banks}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Reference:
        """A reference without features, from `state`."""
        reference = cls(state["observed"].numpy(), None, np.zeros(0, dtype=np.int64))
        reference._bank = [bank.to(device) for bank in state["banks"]]
        for known in reference._known:
            known[:] = True
        return reference

    def bank_bytes(self, n_tokens: int, hidden: int) -> int:
        """Size of the whole bank in float32."""
        return int(self._counts.sum()) * n_tokens * hidden * 4
