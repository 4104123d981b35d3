"""Events of samples: sorted on disk by sample, then sequences, or statistics of each item.

A step of a sequence is x = [position of the item in the levels of the dictionary, value or number of the step]. A
vector has `statistics` of each item: last, mean, min, max (NaN without an event) and count.

Legend: E events, n samples, I items.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.datasets.features import record_batch
from mrpipe.schema import Modality
from mrpipe.store.parquet import replacing
from mrpipe.transforms.events import levels_id

STATISTICS = ("last", "mean", "min", "max", "count")
RUN_ROWS = 2**20  # events sorted in memory
GROUP_ROWS = 2**18  # maximum number of events per group, unless one sample has more
# Events of whole samples: `rank` of the sample by `sample_id`, `level` of the item, `hours` and `value`, each (E,).
Group = Mapping[str, NDArray[Any]] | NDArray[np.void]


class SortedRuns:
    """Rows of a structured dtype with a field `rank`, on disk in runs that are sorted by it; `with` deletes them."""

    def __init__(self, folder: Path, n_samples: int, dtype: np.dtype[Any]):
        self._folder, self._n_samples, self._dtype = folder, n_samples, dtype
        self._pending: list[NDArray[Any]] = []
        self._n_pending = 0
        self.files: list[tuple[Path, NDArray[np.int64]]] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, rows: NDArray[Any]) -> None:
        self._pending.append(rows)
        self._n_pending += len(rows)
        if self._n_pending >= RUN_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._n_pending:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._n_pending = [], 0
        # Exports are nearly sorted by patient, so most runs do not need sorting.
        if (np.diff(rows["rank"]) < 0).any():
            rows = rows[np.argsort(rows["rank"], kind="stable")]
        path = self._folder / f"{len(self.files)}.run"
        rows.tofile(path)
        counts = np.bincount(rows["rank"], minlength=self._n_samples)
        self.files.append((path, np.concatenate([[0], np.cumsum(counts)])))

    def groups(self) -> Iterator[NDArray[Any]]:
        """Rows of whole samples in order of rank, about GROUP_ROWS at a time."""
        self._flush()
        if not self.files:
            return
        reach = np.cumsum(np.sum([np.diff(offsets) for _, offsets in self.files], axis=0))
        low = 0
        while low < self._n_samples:
            start = int(reach[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(reach, start + GROUP_ROWS, side="right")))
            pieces = []
            for path, offsets in self.files:
                a, b = int(offsets[low]), int(offsets[high])
                if b > a:
                    pieces.append(np.fromfile(path, dtype=self._dtype, count=b - a, offset=a * self._dtype.itemsize))
            if pieces:
                rows = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
                yield rows if len(pieces) == 1 else rows[np.argsort(rows["rank"], kind="stable")]
            low = high


def write_part(
    out: Path, groups: Iterable[NDArray[Any]], dtype: np.dtype[Any], key: str, state: Callable[[], Any]
) -> None:
    """Write a Parquet file with one row group per group, and the state after the last one as JSON in its metadata."""
    names = dtype.names or ()
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype[name])) for name in names])
    with (
        replacing(out) as temporary,
        pq.ParquetWriter(temporary, schema, compression="lz4", use_dictionary=False) as writer,
    ):
        for rows in groups:
            columns = [pa.array(np.ascontiguousarray(rows[name])) for name in names]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(rows) or None)
        writer.add_key_value_metadata({key: json.dumps(state())})


def read_part(path: Path) -> Iterator[dict[str, NDArray[Any]]]:
    """Columns of each row group."""
    file = pq.ParquetFile(path)
    for g in range(file.num_row_groups):
        table = file.read_row_group(g)
        yield {name: table[name].to_numpy() for name in table.column_names}


def event_modality(
    name: str, bit: int, levels: list[str], unit: str, about: str, statistics: Sequence[str] = ()
) -> Modality:
    """Vector of statistics per level or, without any, irregular sequence of events with times in `unit`."""
    if statistics:
        return Modality(name=name, bit=bit, kind="vector", shape=(len(levels) * len(statistics),), description=about)
    stored: dict[str, Any] = {"kind": "sequence", "shape": (2,), "irregular": True, "time_unit": unit}
    return Modality(name=name, bit=bit, encoder=levels_id(levels), description=about, **stored)


def summarise(group: Group, n_items: int) -> NDArray[np.float32]:
    """Statistics (n, I, 5) of the samples that occur, in order of rank."""
    order = np.lexsort((group["hours"], group["level"], group["rank"]))
    rank, level, value = (group[k][order].astype(t) for k, t in (("rank", "i8"), ("level", "i8"), ("value", "f8")))
    key = rank * n_items + level
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    n = np.diff(starts, append=len(key))
    present, row = np.unique(rank[starts], return_inverse=True)
    out = np.full((len(present), n_items, len(STATISTICS)), np.nan, dtype=np.float32)
    out[:, :, STATISTICS.index("count")] = 0.0
    total, low, high = (f.reduceat(value, starts) for f in (np.add, np.minimum, np.maximum))
    cells = value[starts + n - 1], total / n, low, high, n
    out[row, level[starts]] = np.stack(cells, axis=1)
    return out


class EventBatches:
    """Record batches of a modality of events (see `event_modality`), and counts of what was written.

    Attributes:
        observed: number of samples with each item, (I,).
        n_samples, n_events: number of samples with an event, and of events.
    """

    def __init__(self, modality: Modality, ids: pl.Series, n_items: int, statistics: Sequence[str] = ()):
        """Take the sorted ids of all samples; the order of `statistics` is that of STATISTICS."""
        self._modality, self._ids, self._n_items = modality, ids, n_items
        self._kept = [STATISTICS.index(s) for s in statistics]
        self.observed = np.zeros(n_items, dtype=np.int64)
        self.n_samples = self.n_events = 0

    def batches(self, groups: Iterable[Group]) -> Iterator[pa.RecordBatch]:
        """One batch per group; the events of a group are in order of rank."""
        for group in groups:
            rank, level = group["rank"].astype(np.int64), group["level"].astype(np.int64)
            present, lengths = np.unique(rank, return_counts=True)
            if not len(present):
                continue
            self.n_samples += len(present)
            self.n_events += len(rank)
            ids = self._ids.gather(present).to_list()
            if self._kept:
                x = summarise(group, self._n_items)
                self.observed += (x[:, :, STATISTICS.index("count")] > 0).sum(axis=0)
                yield record_batch(self._modality, ids, x[:, :, self._kept])
            else:
                cells = np.unique(rank * self._n_items + level)
                self.observed += np.bincount(cells % self._n_items, minlength=self._n_items)
                steps = np.stack([level.astype(np.float32), group["value"]], axis=1)
                yield record_batch(self._modality, ids, steps, lengths, group["hours"])
