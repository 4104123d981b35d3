"""Modalities of a MEDS dataset: events up to the prediction time, sorted on disk by sample, then read as declared.

Forms: values (sequence of [item, value]), codes (sequence of [item, number of the distinct time]), summary (statistics
of the values of each item) and counts (number of events of each item). The items are the codes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.events import STATISTICS, EventBatches, Group, SortedRuns, event_modality, read_part, write_part
from mrpipe.datasets.features import dictionary_of
from mrpipe.datasets.meds.config import MedsModality
from mrpipe.datasets.meds.shards import EVENT, run, scan, slices, titles
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Features
from mrpipe.store.parquet import read_metadata

KEY = "mrpipe.meds.codes"
# One event: rank of the sample in sorted ids, µs since the prediction time, position of the code, value.
EVENT_ROW = np.dtype([("rank", "<i4"), ("time", "<i8"), ("level", "<i4"), ("value", "<f4")])
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
        events = self._events(scan(raw, "data", EVENT), samples)
        codes = run(events.select(pl.col("code").unique()), "data/")["code"].sort().to_list()
        if not codes:
            expected = f"an event up to the prediction time{', with a number' * self._valued}"
            raise DataError(Fault(file="data/", column=self.modality.name, expected=expected, found="none"))
        item = pl.col("code").replace_strict(codes, range(len(codes)), return_dtype=pl.Int32)
        row = ("rank", pl.col("time").fill_null(STATIC), item.alias("level"), "value")

        def groups() -> Iterator[NDArray[Any]]:
            for group in runs.groups():
                group = group[np.lexsort([group[n] for n in reversed(EVENT_ROW.names or ())])]
                yield group[np.append(True, group[1:] != group[:-1])]

        with SortedRuns(out.with_suffix(""), len(samples), EVENT_ROW) as runs:
            for part_of_shard in slices(raw, EVENT):
                frame = run(self._events(part_of_shard, samples).select(row), "data/")
                runs.add(frame.to_numpy(structured=True).astype(EVENT_ROW))
            write_part(out, groups(), EVENT_ROW, KEY, lambda: codes)

    def __call__(self, raw: Path, samples: pl.DataFrame, options: Any, parts: Sequence[Path]) -> Features:
        m, ids, codes = self.modality, samples["sample_id"].sort(), json.loads(read_metadata(parts[0])[KEY])
        described, n = titles(raw, codes), len(codes)
        names = [f"{code} {title}".strip() for code, title in zip(codes, described, strict=True)]
        statistics = {"counts": ("count",), "summary": STATISTICS}.get(m.form, ())
        unit = "hours since the prediction time"
        modality = event_modality(m.name, self.bit, names, unit, self.description, statistics)
        written = EventBatches(modality, ids, n, statistics)
        n_samples = max(1, CELLS // modality.size) if statistics else len(ids)

        def groups() -> Iterator[Group]:
            """Events of whole samples, at most `n_samples` at a time."""
            for rows in read_part(parts[0]):
                value = rows["value"] if self._valued else _time_numbers(rows["rank"], rows["time"])
                group = {**rows, "hours": rows["time"] / HOUR, "value": value}
                starts = np.flatnonzero(np.diff(rows["rank"], prepend=-1))
                for a, b in pairwise([*starts[::n_samples].tolist(), len(value)]):
                    yield {name: column[a:b] for name, column in group.items()}

        def dictionary() -> pl.DataFrame:
            if statistics:
                kind, source = ("summary", "numeric_value") if self._valued else ("count", "code")
                columns = {"name": codes, "kind": kind, "description": described, "source_column": source}
                return dictionary_of(m.name, "data/", columns, written.observed, written.n_samples, statistics)
            second, kind, source = ("value", "numeric", "numeric_value") if self._valued else ("number", "step", "time")
            columns = {"name": ["item", second], "kind": ["event", kind], "levels": [names, None]}
            columns["source_column"] = ["code", source]
            return dictionary_of(m.name, "data/", columns, written.n_samples, len(ids))

        return Features(modality=modality, batches=written.batches(groups()), dictionary=dictionary)


def _time_numbers(rank: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the distinct time of each event within its sample, from 1; sorted by rank and time."""
    first = np.diff(rank, prepend=-1) != 0
    distinct = np.cumsum(first | (np.diff(time, prepend=0) != 0))
    return np.asarray(distinct - np.maximum.accumulate(np.where(first, distinct, 0)) + 1)
