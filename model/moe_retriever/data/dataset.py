"""Samples of a store for your own training loop: `StoreDataset` in memory, `StreamedStore` by row group.

Masks, splits and transforms are those of `load`. Legend: B samples, M modalities, T steps or events of the longest
sample of a batch, at least 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from moe_retriever.data.load import Data, DataSpec, assemble, fitted_for, spec_of
from moe_retriever.data.selection import select
from moe_retriever.data.tables import Rows
from mrpipe import keyed
from mrpipe.errors import UsageError
from mrpipe.store.reader import RowGroups, Store, open_store
from mrpipe.transforms.events import changes
from mrpipe.transforms.fit import Transforms, as_stored
from mrpipe.transforms.options import TransformOptions

Transform: TypeAlias = Transforms | TransformOptions | str | None
Field = Literal["values", "items", "times", "lengths"]
_CPU = torch.device("cpu")
# Samples that the stream converts at once.
_AT_ONCE = 64


class DenseBatch(TypedDict):
    """A batch: a plain dict of tensors, on the CPU. A sample is the same without the first axis and without padding.

    The first four hold one tensor per modality, by its name; a sample that lacks a modality has zeros there, and length
    0. Padding is zeros, after the last step.

    Attributes:
        values: float32. Vectors and genotypes (B, d); images (B, C, H, W); volumes (B, D, H, W); sequences (B, T, d);
            events (B, T). Transformed irregular sequences have the last column log(1 + time since the previous step).
        items: events only, (B, T) int64 position in the vocabulary.
        times: irregular sequences and events, (B, T) float32, in the time unit of the store; transformed events: days.
        lengths: sequences and events, (B,) int64 number of steps or events.
        observed: (B, M) bool, in the order of `spec.names`.
        label: (B,) int64 class, −1 if unknown; for a regression, float32 target in its own unit, NaN if unknown.
        index: (B,) int64 position of the samples in `ids`.
    """

    values: dict[str, Tensor]
    items: dict[str, Tensor]
    times: dict[str, Tensor]
    lengths: dict[str, Tensor]
    observed: Tensor
    label: Tensor
    index: Tensor


def _made(of: Callable[[Field], dict[str, Tensor]], observed: Tensor, label: Tensor, index: Tensor) -> DenseBatch:
    return DenseBatch(
        values=of("values"),
        items=of("items"),
        times=of("times"),
        lengths=of("lengths"),
        observed=observed,
        label=label,
        index=index,
    )


def dense_batch(data: Data, rows: Rows, index: Rows) -> DenseBatch:
    """The samples `rows` of `data`, which have the positions `index` in the dataset."""
    observed = data.observed[rows]
    fields: dict[str, dict[str, Tensor]] = {"values": {}, "items": {}, "times": {}, "lengths": {}}
    for m, (name, table) in enumerate(zip(data.spec.names, data.tables, strict=True)):
        places = np.flatnonzero(observed[:, m])
        for field, some in table.dense(data.row[rows[places], m]).items():
            whole = some
            if len(places) < len(rows):
                whole = some.new_zeros(len(rows), *some.shape[1:])
                whole[torch.from_numpy(places)] = some
            fields[field][name] = whole
    label = torch.from_numpy(data.label[rows])
    label = label.float() if data.spec.regression else label
    return _made(fields.__getitem__, torch.from_numpy(observed), label, torch.from_numpy(index))


def samples_of(batch: DenseBatch) -> Iterator[DenseBatch]:
    """The samples of a batch, without padding, as copies."""
    lengths = {name: n.tolist() for name, n in batch["lengths"].items()}
    for b in range(len(batch["index"])):

        def of(field: Field, b: int = b) -> dict[str, Tensor]:
            cut = {} if field == "lengths" else lengths
            return {n: (x[b, : cut[n][b]] if n in cut else x[b]).clone() for n, x in batch[field].items()}

        yield _made(of, batch["observed"][b].clone(), batch["label"][b].clone(), batch["index"][b].clone())


def collate(samples: Sequence[DenseBatch] | DenseBatch) -> DenseBatch:
    """Samples to a batch; a batch, which a DataLoader gets from `StoreDataset` at once, is returned as it is."""
    if isinstance(samples, dict):
        return samples

    def of(field: Field) -> dict[str, Tensor]:
        return {name: _together([s[field][name] for s in samples]) for name in samples[0][field]}

    observed, label = torch.stack([s["observed"] for s in samples]), torch.stack([s["label"] for s in samples])
    return _made(of, observed, label, torch.stack([s["index"] for s in samples]))


def _together(parts: list[Tensor]) -> Tensor:
    if parts[0].ndim == 0:
        return torch.stack(parts)
    padded = pad_sequence(parts, batch_first=True)
    # One step of zeros if no sample of the batch has the modality, because recurrent layers refuse none.
    return padded if padded.shape[1] else padded.new_zeros(len(parts), 1, *padded.shape[2:])


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
        transform: Transform = "train",
    ):
        self.store = store if isinstance(store, Store) else open_store(store)
        mask_file = None if mask is None else Path(mask)
        whole = select(self.store, task=task, scheme=scheme, modalities=modalities, mask_file=mask_file)
        names = [m.name for m in whole.modalities]
        options = fitted = None
        match transform:
            case TransformOptions():
                options = transform
            case Transforms():
                fitted = transform
            case None:
                fitted = as_stored(self.store, scheme, names)
            case "train":
                pass
            case _:
                expected = "'train', None, TransformOptions or fitted Transforms"
                raise UsageError(f"transform={transform!r}: expected {expected}")
        self._selection = whole.of_part(None if part == "all" else part)
        self.fitted = fitted_for(self.store, whole, scheme, options, fitted)
        self.spec: DataSpec = spec_of(whole, self.fitted)
        self.classes = whole.classes
        if not len(self._selection):
            raise UsageError(f"{self.store.path}: no samples with one of {', '.join(names)}")
        self.ids, self.subjects = self._selection.sample_id, self._selection.subject_id
        self._prepare()

    def _prepare(self) -> None:
        """Called at the end of the constructor."""

    def _assembled(self, index: Rows | None, tables: Mapping[str, RowGroups]) -> Data:
        """The tensors of the samples `index`; None: all."""
        chosen = self._selection if index is None else self._selection.take(index)
        return assemble(chosen, self.spec, self.fitted, lambda name, rows: tables[name].take(rows), _CPU)

    def _tables(self) -> dict[str, RowGroups]:
        return {name: self.store.row_groups(name) for name in self.spec.names}


class StoreDataset(_Samples, Dataset[DenseBatch]):
    """Samples of a store, in memory (map-style), for `torch.utils.data.DataLoader(…, collate_fn=dataset.collate)`.

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

    data: Data

    def _prepare(self) -> None:
        # Not on first use, because each worker would load them.
        self.data = self._assembled(None, self._tables())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> DenseBatch:
        """One sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return next(samples_of(self.__getitems__([index % len(self)])))

    def __getitems__(self, indices: Sequence[int]) -> DenseBatch:
        """Samples as a batch; called by DataLoaders."""
        index = np.asarray(indices, dtype=np.int64)
        return dense_batch(self.data, index, index)


class StreamedStore(_Samples, IterableDataset[DenseBatch]):
    """Samples of a store that is larger than memory, read by row group, for a DataLoader with `collate_fn=….collate`.

    Arguments and attributes are those of `StoreDataset`. In memory are one row group of each modality, about 32 MiB
    each, the masks and labels of all samples and, if shuffled, the samples of the buffer. Workers share the row groups
    of the modality with most of them, so that each sample is read once. Transforms that are fitted here read one
    modality at a time, images and volumes by row group.
    """

    _seed: int | None = None
    _buffer = 0

    def shuffle(self, seed: int = 0, buffer: int = 1024) -> Self:
        """Shuffle the row groups in each epoch and, in a buffer of that many samples, the samples; returns itself."""
        if buffer < 1:
            raise UsageError(f"buffer={buffer} must be at least 1")
        self._seed, self._buffer = seed, buffer
        # Shared with the workers of a DataLoader.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        return self

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch, from which the order follows; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[DenseBatch]:
        worker = get_worker_info()
        mine, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        tables = self._tables()
        units = self._units(tables)
        if self._seed is None:
            yield from chain.from_iterable(self._read(u, tables, None) for u in units[mine::n_workers])
            return
        epoch = str(int(self._epoch))
        keyed.generator(self._seed, "row groups", epoch).shuffle(units)
        rng = keyed.generator(self._seed, "buffer", epoch, str(mine))
        held: list[DenseBatch] = []
        for sample in chain.from_iterable(self._read(u, tables, rng) for u in units[mine::n_workers]):
            if len(held) < self._buffer:
                held.append(sample)
                continue
            place = int(rng.integers(self._buffer))
            yield held[place]
            held[place] = sample
        yield from (held[i] for i in rng.permutation(len(held)))

    def _units(self, tables: Mapping[str, RowGroups]) -> list[list[Rows]]:
        """Samples by row group of the modality with most row groups, and in it by those of the other modalities.

        The samples of a block need one row group of each modality, and those of a unit one of the largest modality.
        """
        columns = []
        for m, table in enumerate(tables.values()):
            number = np.zeros(len(self._selection), dtype=np.int64)
            number[self._selection.observed[:, m]] = table.number(self._selection.rows(m))
            columns.append(np.maximum.accumulate(number))
        blocks = np.split(np.arange(len(self._selection)), np.flatnonzero(changes(*columns))[1:])
        leading = max(columns, key=lambda c: int(c[-1]))
        return [list(unit) for _, unit in groupby(blocks, key=lambda block: int(leading[block[0]]))]

    def _read(
        self, unit: list[Rows], tables: Mapping[str, RowGroups], rng: np.random.Generator | None
    ) -> Iterator[DenseBatch]:
        for block in unit:
            data = self._assembled(block, tables)
            order = np.arange(len(block)) if rng is None else rng.permutation(len(block))
            for start in range(0, len(block), _AT_ONCE):
                rows = order[start : start + _AT_ONCE]
                yield from samples_of(dense_batch(data, rows, block[rows]))
