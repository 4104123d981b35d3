"""Modalities of a MEDS dataset: events up to the prediction time, sorted on disk by sample, then read as declared.

Forms: values (sequence of [item, value]), codes (sequence of [item, number of the distinct time]), summary (statistics
of the values of each item) and counts (number of events of each item). The items are the codes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.datasets.meds.config import MedsModality
from mrpipe.datasets.meds.shards import EVENT, run, scan, slices, titles
from mrpipe.datasets.mimic.codes import event_modality, item_dictionary, sequence_batch, step_dictionary
from mrpipe.datasets.mimic.events import SortedRuns
from mrpipe.datasets.mimic.labs import STATISTICS, summarise
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Features, Modality
from mrpipe.store.parquet import read_metadata, replacing

KEY = "mrpipe.meds.codes"
# One event: rank of the sample in sorted ids, µs since the prediction time, position of the code, value.
EVENT_ROW = np.dtype([("rank", "<i4"), ("time", "<i8"), ("item", "<i4"), ("value", "<f4")])
STATIC = -(2**63)
HOUR = 3_600_000_000
CELLS = 2**22  # values of a batch of vectors


@dataclass(frozen=True)
class MedsReader:
    """Reads one modality; its repr is the declaration."""

    modality: MedsModality
    bit: int

    @property
    def description(self) -> str:
        return f"{self.modality.form} of {', '.join(self.modality.codes.prefixes)}"

    @property
    def _sequence(self) -> bool:
        return self.modality.form in ("values", "codes")

    @property
    def _valued(self) -> bool:
        return self.modality.form in ("values", "summary")

    def _events(self, events: pl.LazyFrame, samples: pl.DataFrame) -> pl.LazyFrame:
        """`rank, time, code, value` of the events from the window up to the prediction time."""
        m, time = self.modality, pl.col("time")
        ranks = samples.sort("sample_id").with_row_index("rank").lazy()
        ranks = ranks.select(pl.col("subject_id").cast(pl.Int64), "prediction_time", pl.col("rank").cast(pl.Int32))
        since = (time - pl.col("prediction_time")).dt.total_microseconds()
        inside = time <= 0 if m.window is None else time.is_between(-m.window * 1_000_000, 0)
        value = pl.col("numeric_value") if self._valued else pl.lit(0.0, pl.Float32)
        events = events.filter(m.codes.chosen()).join(ranks, on="subject_id")
        events = events.select("rank", since.alias("time"), "code", value.alias("value"))
        # Static events have no place in a sequence.
        return events.filter(inside.fill_null(not self._sequence) & pl.col("value").is_finite())

    def prepare(self, raw: Path, samples: pl.DataFrame, options: Any, part: int, n_parts: int, out: Path) -> None:
        """Write the events of the samples to `out`, sorted by sample, time, code and value, without repetitions.

        Values and summaries leave out events without a finite number; other forms ignore the numbers.
        """
        events, scratch = self._events(scan(raw, "data", EVENT), samples), out.with_suffix("")
        codes = run(events.select(pl.col("code").unique()), "data/")["code"].sort().to_list()
        if not codes:
            expected = f"an event up to the prediction time{', with a number' * self._valued}"
            raise DataError(Fault(file="data/", column=self.modality.name, expected=expected, found="none"))
        item = pl.col("code").replace_strict(codes, range(len(codes)), return_dtype=pl.Int32)
        row = ("rank", pl.col("time").fill_null(STATIC), item.alias("item"), "value")
        runs, names = SortedRuns(scratch, len(samples), EVENT_ROW), EVENT_ROW.names or ()
        schema = pa.schema([(n, pa.from_numpy_dtype(EVENT_ROW[n])) for n in names])
        try:
            for part_of_shard in slices(raw, EVENT):
                frame = run(self._events(part_of_shard, samples).select(row), "data/")
                runs.add(frame.to_numpy(structured=True).astype(EVENT_ROW))
            runs.flush()
            with replacing(out) as temporary, pq.ParquetWriter(temporary, schema, compression="lz4") as writer:
                for group in runs.groups():
                    group = group[np.lexsort([group[n] for n in reversed(names)])]
                    group = group[np.append(True, group[1:] != group[:-1])]
                    arrays = [pa.array(np.ascontiguousarray(group[n])) for n in names]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(group))
                writer.add_key_value_metadata({KEY: json.dumps(codes)})
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def __call__(self, raw: Path, samples: pl.DataFrame, options: Any, parts: Sequence[Path]) -> Features:
        m, ids = self.modality, samples["sample_id"].sort()
        codes = json.loads(read_metadata(parts[0])[KEY])
        described, n = titles(raw, codes), len(codes)
        names = [f"{code} {title}".strip() for code, title in zip(codes, described, strict=True)]
        statistics = ("count",) if m.form == "counts" else STATISTICS
        modality = (
            event_modality(m.name, self.bit, names, "hours since the prediction time", self.description)
            if self._sequence
            else Modality(
                name=m.name, bit=self.bit, kind="vector", shape=(n * len(statistics),), description=self.description
            )
        )
        observed, total = np.zeros(n, dtype=np.int64), Counter[str]()

        def batches() -> Iterator[pa.RecordBatch]:
            for rows in _groups(parts[0], len(ids) if self._sequence else max(1, CELLS // modality.size)):
                rank, item, hours = rows["rank"].astype(np.int64), rows["item"].astype(np.int64), rows["time"] / HOUR
                present, lengths = np.unique(rank, return_counts=True)
                total["samples"] += len(present)
                observed[:] += np.bincount(np.unique(rank * n + item) % n, minlength=n)
                chosen = ids.gather(present).to_list()
                if self._sequence:
                    second = rows["value"] if self._valued else _time_numbers(rank, rows["time"])
                    yield sequence_batch(modality, chosen, np.stack([item, second], axis=1), hours, lengths)
                    continue
                _, x = summarise({"rank": rank, "level": item, "value": rows["value"], "hours": hours}, n)
                x = x.reshape(len(present), n, -1)[:, :, -len(statistics) :]
                flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), modality.size)
                yield pa.RecordBatch.from_arrays([pa.array(chosen, pa.string()), flat], schema=modality.arrow_schema())

        def dictionary() -> pl.DataFrame:
            if self._sequence:
                value, step = ("value", "numeric", None, "numeric_value", ""), ("number", "step", None, "time", "")
                elements = (("item", "event", names, "code", ""), value if self._valued else step)
                return step_dictionary(m.name, elements, total["samples"], len(ids), "data/")
            items = pl.DataFrame({"code": codes, "description": described, "n_observed": observed})
            same = {"unit": "", "source_file": "data/", "source_column": "numeric_value" if self._valued else "code"}
            items = items.with_columns(pl.lit(value).alias(name) for name, value in same.items())
            return item_dictionary(m.name, "summary" if self._valued else "count", items, statistics, total["samples"])

        return Features(modality=modality, batches=batches(), dictionary=dictionary)


def _groups(part: Path, n_samples: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Columns of the events of whole samples, of at most `n_samples` at a time."""
    file = pq.ParquetFile(part)
    for g in range(file.num_row_groups):
        columns = {n: c.to_numpy() for n, c in zip(file.schema_arrow.names, file.read_row_group(g), strict=True)}
        starts = np.flatnonzero(np.diff(columns["rank"], prepend=-1))
        edges = [*starts[::n_samples].tolist(), len(columns["rank"])]
        for a, b in pairwise(edges):
            yield {n: c[a:b] for n, c in columns.items()}


def _time_numbers(rank: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the distinct time of each event within its sample, from 1; sorted by rank and time."""
    first = np.diff(rank, prepend=-1) != 0
    distinct = np.cumsum(first | (np.diff(time, prepend=0) != 0))
    return np.asarray(distinct - np.maximum.accumulate(np.where(first, distinct, 0)) + 1)
