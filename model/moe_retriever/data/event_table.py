"""Sparse events (measurements, codes) as tensors: steps with a few of thousands of items, without a dense tensor.

Legend: n rows, S total steps of all rows, E events, V items of the vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_retriever.data.tables import Rows, spans
from moe_retriever.device import to_device
from mrpipe.experiment.missingness import AT_LOAD, Missingness, corrupt
from mrpipe.store.reader import Arrays
from mrpipe.transforms.events import step_numbers


@dataclass(frozen=True)
class EventBatch:
    """Steps in packed order (time-major, longest row first) and their events.

    Attributes:
        item, value: (E,) vocabulary index and z-score of each event, ordered by step.
        starts: (S,) first event of each step.
        elapsed: (S,) log(1 + days since the previous step), 0 for the first step.
        batch_sizes: number of rows that have each step; `order`, `inverse`: as in a PackedSequence.
    """

    item: Tensor
    value: Tensor
    starts: Tensor
    elapsed: Tensor
    batch_sizes: Tensor
    order: Tensor
    inverse: Tensor


class EventTable:
    """Transformed events of one modality for the samples that have it."""

    def __init__(self, arrays: Arrays, n_items: int, device: torch.device):
        assert arrays.offsets is not None
        assert arrays.time is not None
        self.offsets, self.time = arrays.offsets, arrays.time
        step, n_steps = step_numbers(arrays)
        self.n_items = n_items
        self.item = torch.from_numpy(arrays.x[:, 0].astype(np.int64)).to(device)
        self.value = torch.from_numpy(np.ascontiguousarray(arrays.x[:, 1], dtype=np.float32)).to(device)
        self.steps = np.concatenate([[0], np.cumsum(n_steps)])
        self.first = np.flatnonzero(np.diff(step, prepend=-1))
        self.n_events = np.diff(self.first, append=len(step))
        elapsed = np.diff(arrays.time[self.first], prepend=np.float32(0))
        elapsed[self.steps[:-1][n_steps > 0]] = 0.0
        self.elapsed = torch.from_numpy(np.log1p(np.maximum(elapsed, 0.0)).astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self.steps) - 1

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return to_device(rows, self.item.device)

    def gather(self, rows: Rows) -> EventBatch:
        lengths = np.diff(self.steps)[rows]
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        number, rank = np.nonzero(np.arange(longest)[:, None] < lengths[order][None, :])
        steps = self.steps[rows[order]][rank] + number
        events = self._index(spans(self.first[steps], self.n_events[steps]))
        starts = np.cumsum(self.n_events[steps]) - self.n_events[steps]
        return EventBatch(
            item=self.item[events],
            value=self.value[events],
            starts=self._index(starts),
            elapsed=self.elapsed[self._index(steps)],
            batch_sizes=torch.from_numpy(np.bincount(number, minlength=longest)),
            order=self._index(order),
            inverse=self._index(np.argsort(order, kind="stable")),
        )

    def pooled(self, rows: Rows) -> Tensor:
        """Mean z-score of each item over the steps with this item, and the share of these steps, (n, 2 V)."""
        n_steps = np.diff(self.steps)[rows]
        steps = spans(self.steps[rows], n_steps)
        events = self._index(spans(self.first[steps], self.n_events[steps]))
        row = self._index(np.repeat(np.repeat(np.arange(len(rows)), n_steps), self.n_events[steps]))
        cell = row * self.n_items + self.item[events]
        total, count = (self.value.new_zeros(len(rows) * self.n_items) for _ in range(2))
        total.index_add_(0, cell, self.value[events])
        count.index_add_(0, cell, torch.ones_like(self.value[events]))
        mean = (total / count.clamp_min(1)).view(len(rows), -1)
        share = count.view(len(rows), -1) / self._index(np.maximum(n_steps, 1)).to(count.dtype)[:, None]
        return torch.cat([mean, share], dim=1)


def corrupt_events(clean: Arrays, settings: Missingness) -> Arrays:
    """`corrupt` for transformed events: noise is added to values only, and a dropped step loses all its events."""
    assert clean.offsets is not None
    assert clean.time is not None
    if settings.mechanism not in AT_LOAD:
        return clean
    if settings.mechanism == "gaussian":
        noisy = corrupt(clean, settings)
        return replace(noisy, x=np.stack([clean.x[:, 0], noisy.x[:, 1]], axis=1))
    step, n_steps = step_numbers(clean)
    offsets = np.concatenate([[0], np.cumsum(n_steps)])
    steps = replace(clean, x=np.arange(offsets[-1])[:, None], offsets=offsets, time=None)
    kept = np.isin(step, corrupt(steps, settings).x)
    before = np.concatenate([[0], np.cumsum(kept)])
    return replace(clean, x=clean.x[kept], time=clean.time[kept], offsets=before[clean.offsets])
