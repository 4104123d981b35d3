"""Samples of a store for your own training loop: `StoreDataset` in memory, `StreamedStore` by row group.

Masks, splits and transforms are those of `load`. A batch is a plain dict of tensors on the CPU; B samples, M modalities
in the order of `spec.names`, T steps or events of the longest sample (at least 1), zeros for absent ones:

    NAME.values   float32; vectors, genotypes (B, d), images, volumes (B, …), sequences (B, T, d), events (B, T)
    NAME.items    events: int64 (B, T), position in the vocabulary
    NAME.times    irregular sequences and events: float32 (B, T), in the store's unit; transformed events: days
    NAME.lengths  sequences and events: int64 (B,)
    observed      bool (B, M)
    label         int64 class (B,), −1 if unknown; of a regression, float32 in its own unit, NaN if unknown
    index         int64 (B,), position in `ids`
"""

import operator
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from moe_retriever.data.event_table import EventTable
from moe_retriever.data.load import Data, load, with_tables
from moe_retriever.data.tables import FeatureTable, Genotypes, Rows, SequenceTable, spans
from mrpipe import keyed
from mrpipe.errors import UsageError
from mrpipe.store.reader import Arrays, Store, open_store
from mrpipe.transforms.events import changes
from mrpipe.transforms.fit import Transforms, as_stored
from mrpipe.transforms.options import TransformOptions

DenseBatch: TypeAlias = dict[str, Tensor]


def _dense(table: FeatureTable, rows: Rows) -> DenseBatch:
    """Values, and for sequences and events items, times and lengths, of rows of a table, padded with zeros."""
    if not isinstance(table, EventTable | SequenceTable):
        values = table.gather(rows)
        return {"values": values.values() if isinstance(values, Genotypes) else torch.as_tensor(values)}
    lengths = np.diff(table.offsets)[rows]
    flat = spans(table.offsets[rows], lengths)
    columns = {"values": table.x} if isinstance(table, SequenceTable) else {"values": table.value, "items": table.item}
    seen = {name: x[torch.from_numpy(flat)] for name, x in columns.items()}
    seen |= {} if table.time is None else {"times": torch.from_numpy(table.time[flat])}
    inside = torch.from_numpy(np.arange(lengths.max(initial=1))[None, :] < lengths[:, None])
    batch = {name: x.new_zeros(*inside.shape, *x.shape[1:]) for name, x in seen.items()}
    for name, x in seen.items():
        batch[name][inside] = x
    return batch | {"lengths": torch.from_numpy(lengths)}


def dense_batch(data: Data, rows: Rows, index: Rows) -> DenseBatch:
    """The samples `rows` of `data`, which have the positions `index` in the dataset."""
    observed, label = data.observed[rows], torch.from_numpy(data.label[rows])
    label = label.float() if data.spec.regression else label
    batch = {"observed": torch.from_numpy(observed), "label": label, "index": torch.from_numpy(index)}
    for m, (name, table) in enumerate(zip(data.spec.names, data.tables, strict=True)):
        places = np.flatnonzero(observed[:, m])
        for field, some in _dense(table, data.row[rows[places], m]).items():
            whole = some
            if len(places) < len(rows):
                whole = some.new_zeros(len(rows), *some.shape[1:])
                whole[torch.from_numpy(places)] = some
            batch[f"{name}.{field}"] = whole
    return batch


def collate(parts: Sequence[DenseBatch]) -> DenseBatch:
    """Samples, each a batch of one, to a batch; sequences are padded to the longest. A batch alone stays as it is."""
    if len(parts) == 1:
        return parts[0]
    columns = {key: [part[key][0] for part in parts] for key in parts[0]}
    return {k: pad_sequence(x, batch_first=True) if x[0].ndim else torch.stack(x) for k, x in columns.items()}


class _Samples:
    """What `StoreDataset` and `StreamedStore` have in common."""

    collate = staticmethod(collate)

    def __init__(
        self,
        store: str | Path | Store,
        *,
        part: str | None = None,
        task: str | None = None,
        scheme: str | None = None,
        modalities: Sequence[str] | None = None,
        mask: str | Path | None = None,
        transform: Transforms | TransformOptions | str | None = "train",
    ):
        if not isinstance(transform, Transforms | TransformOptions) and transform not in ("train", None):
            found = f"transform={transform!r:.40}"
            raise UsageError(f"{found}: expected 'train', None, TransformOptions or fitted Transforms")
        self.store = store if isinstance(store, Store) else open_store(store)
        part = None if part == "all" else part
        self.store.split(scheme, part)  # raises for unknown names
        if isinstance(transform, Transforms) and not transform.fitted:
            transform = None  # of a dataset without transforms
        fitted = transform if isinstance(transform, Transforms) else None if transform else as_stored(self.store)
        whole = load(
            self.store,
            task=task,
            scheme=scheme,
            modalities=modalities,
            mask_file=None if mask is None else Path(mask),
            transform=transform if isinstance(transform, TransformOptions) else None,
            fitted=fitted,
            tables=False,
        )
        chosen = np.arange(len(whole)) if part is None else whole.rows(part)
        if not len(chosen):
            raise UsageError(f"{self.store.path} has no samples with part={part}, modalities={modalities}, mask={mask}")
        self._selected = whole.take(chosen)
        self.ids: NDArray[np.str_] = self._selected.sample_id
        self.subjects: NDArray[np.str_] = self._selected.subject_id
        self.classes, self.fitted = whole.spec.classes, whole.fitted
        self.spec = self._prepared().spec

    def _prepared(self) -> Data:
        return self._selected


class StoreDataset(_Samples, Dataset[DenseBatch]):
    """Samples of a store in memory (map-style), for a DataLoader with `collate_fn=dataset.collate`.

    Args:
        store: folder of a store, or an open one.
        part: labelled samples of `train`, `val` or `test`; None or "all": all samples, with and without label.
        task: default: the first of the store.
        scheme: split scheme; default: that of the store.
        modalities: default: all.
        mask: file of simulated missingness (`mrpipe mask`).
        transform: "train": imputed, scaled and encoded, fitted on the training samples of the scheme; the same with
            other options; fitted transforms, e.g. `train.fitted`; None: values as stored, unknown ones NaN.

    Attributes:
        ids, subjects: (N,) sample_id and subject_id (the groups of a cross-validation), in order of sample_id.
        classes: their names; empty for a regression.
        spec: names, kinds and shapes of the modalities, and the mean and sd of a regression's training targets.
        fitted: the transforms.

    Raises:
        UsageError: unknown names, or no samples.
        DataError: the mask file or the transforms belong to another store.
    """

    def _prepared(self) -> Data:
        self.data = with_tables(self._selected, self.store)
        return self.data

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> DenseBatch:
        """A batch of one sample."""
        return self.__getitems__([range(len(self))[operator.index(index)]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[DenseBatch]:
        """One batch of all the samples, which is faster to make; called by DataLoaders."""
        index = np.asarray(indices, dtype=np.int64)
        return [dense_batch(self.data, index, index)]


class StreamedStore(_Samples, IterableDataset[DenseBatch]):
    """Samples of a store that is larger than memory, read by row group, for a DataLoader with `collate_fn`.

    Arguments and attributes are those of `StoreDataset`. In memory are one row group of each modality (about 32 MiB),
    masks and labels of all samples, and the buffer of `shuffle`. Workers share the row groups of the modality with most
    of them; each sample is read once. Fitting reads one modality at a time, images and volumes by row group.
    """

    _seed: int | None = None

    def _prepared(self) -> Data:
        self._starts = {name: self.store.row_group_starts(name) for name in self._selected.spec.names}
        self._latest: dict[str, tuple[int, Arrays]] = {}
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with workers
        return with_tables(self._selected.take(np.arange(1)), self.store, self._read)

    def shuffle(self, seed: int = 0, buffer: int = 1024) -> Self:
        """Shuffle row groups and, in a buffer of that many samples, samples, anew in each epoch; returns itself."""
        if buffer < 1:
            raise UsageError(f"buffer={buffer} must be at least 1")
        self._seed, self._buffer = seed, buffer
        return self

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch, from which the order follows; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[DenseBatch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        units, epoch = self._units(), str(int(self._epoch))
        if self._seed is None:
            yield from chain.from_iterable(self._samples_of(unit, None) for unit in units[first::step])
            return
        units = [units[i] for i in keyed.generator(self._seed, "row groups", epoch).permutation(len(units))]
        rng = keyed.generator(self._seed, "buffer", epoch, str(first))
        held: list[DenseBatch] = []
        for sample in chain.from_iterable(self._samples_of(unit, rng) for unit in units[first::step]):
            if len(held) < self._buffer:
                held.append(sample)
                continue
            place = int(rng.integers(self._buffer))
            yield held[place]
            held[place] = sample
        yield from (held[i] for i in rng.permutation(len(held)))

    def _units(self) -> list[list[Rows]]:
        """Blocks of samples that need one row group of each modality, by row group of the largest modality."""
        columns = []
        for m, starts in enumerate(self._starts.values()):
            group = np.searchsorted(starts, self._selected.row[:, m], side="right") - 1
            columns.append(np.maximum.accumulate(np.where(self._selected.observed[:, m], group, 0)))
        largest = max(columns, key=lambda c: int(c[-1]))
        blocks = np.split(np.arange(len(largest)), np.flatnonzero(changes(*columns))[1:])
        return [list(unit) for _, unit in groupby(blocks, key=lambda block: int(largest[block[0]]))]

    def _read(self, name: str, rows: Rows) -> Arrays:
        starts, latest = self._starts[name], self._latest.pop(name, None)
        group = int(np.searchsorted(starts, rows[0], "right")) - 1 if len(rows) else latest[0] if latest else 0
        if latest is None or latest[0] != group:
            latest = None  # frees the memory
            latest = group, self.store.row_group(name, group)
        self._latest[name] = latest
        return latest[1].take(rows - starts[group])

    def _samples_of(self, unit: list[Rows], rng: np.random.Generator | None) -> Iterator[DenseBatch]:
        for block in unit:
            data = with_tables(self._selected.take(block), self.store, self._read)
            order = np.arange(len(block)) if rng is None else rng.permutation(len(block))
            yield from (dense_batch(data, i, block[i]) for i in order[:, None])
