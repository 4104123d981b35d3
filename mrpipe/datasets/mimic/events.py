"""Measurements of the cohort, from labevents and chartevents to one part file: the pass over the large tables.

What the scan keeps is sorted in runs of bounded size on disk and merged patient by patient, so that memory does not
grow with the export. A part holds, for each of its patients, the measurements as they were charted (value and unit);
harmonising is the readers' work, because an item's unit is known only after the whole export was seen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.datasets.mimic.cohort import visits_of
from mrpipe.datasets.mimic.options import MimicOptions, within
from mrpipe.datasets.mimic.ranges import spelled
from mrpipe.datasets.mimic.scan.progress import say
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.datasets.mimic.tables import EVENTS, PLACES, find_table
from mrpipe.errors import FaultCollector
from mrpipe.keyed import id_keys
from mrpipe.store.parquet import replacing

PART_KEY = "mrpipe.mimic.part"
RUN_ROWS = 2**20  # measurements sorted in memory at a time
GROUP_ROWS = 2**18  # measurements of one row group, at most (one patient's at least)
# One measurement: rank of the patient, seconds since the first admission, source · ITEM_BASE + item, unit, value.
RUN = np.dtype([("rank", "<i4"), ("seconds", "<i4"), ("item", "<i4"), ("unit", "<u2"), ("value", "<f4")])
ITEM_BASE = 10_000_000
SOURCES = ("labevents", "chartevents")
SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("seconds", pa.int32()),
        ("item", pa.int32()),
        ("unit", pa.uint16()),
        ("value", pa.float32()),
    ]
)
DAY = 86_400


@dataclass
class Tally:
    """What became of the rows of the cohort's patients, by reason."""

    n_rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Windows:
    """When a patient's measurements count.

    `visits`: inside a visit that counts, from 24 h before its admission to its discharge, or, where the row names a
    visit, that visit; `history`: any time. Never after the index discharge, never of a visit that does not count.
    """

    def __init__(self, kept: pl.DataFrame, n_samples: int, options: MimicOptions):
        self.history = options.event_window == "history"
        seconds = kept.select(
            pl.col("rank").cast(pl.Int64),
            "hadm_id",
            (pl.col("admittime").dt.epoch("s")).alias("admit"),
            pl.col("dischtime").dt.epoch("s").alias("discharge"),
        ).sort("rank", "admit", "hadm_id")
        rank = seconds["rank"].to_numpy()
        self.first = np.zeros(n_samples, dtype=np.int64)
        self.first[rank[::-1]] = seconds["admit"].to_numpy()[::-1]
        self.last = np.zeros(n_samples, dtype=np.int64)
        self.last[rank] = seconds["discharge"].to_numpy()
        # Visits can overlap: what counts is the latest discharge of all that began before.
        until = seconds.select(pl.col("discharge").cum_max().over("rank"))["discharge"].to_numpy()
        self._span = 2**34
        self._starts = rank * self._span + seconds["admit"].to_numpy() - DAY + 2**33
        self._until, self._rank = until, rank
        self._visits = np.sort(seconds["hadm_id"].to_numpy())

    def __call__(self, rank: NDArray[np.int64], time: NDArray[np.int64], hadm: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which measurements count; `hadm` is -1 where the row names no visit."""
        named = hadm >= 0
        index = np.minimum(np.searchsorted(self._visits, hadm), len(self._visits) - 1)
        ours = self._visits[index] == hadm
        if self.history:
            inside = np.ones(len(rank), dtype=bool)
        else:
            visit = np.searchsorted(self._starts, rank * self._span + time + 2**33, side="right") - 1
            inside = (visit >= 0) & (self._rank[visit] == rank) & (time <= self._until[visit])
        return (np.where(named, ours, inside)) & (time <= self.last[rank])


class UnitCodes:
    """Units seen, as small numbers; 0 is a blank."""

    def __init__(self) -> None:
        self.names: list[str] = [""]
        self._codes: dict[str | None, int] = {None: 0, "": 0}

    def encode(self, units: pl.Series) -> NDArray[np.uint16]:
        distinct = units.unique().to_list()
        for unit in distinct:
            if unit not in self._codes:
                name = spelled(unit)
                if name not in self.names:
                    self.names.append(name)
                self._codes[unit] = self.names.index(name)
        return units.replace_strict(self._codes, return_dtype=pl.UInt16).to_numpy()


NUMBER = r"^\s*([<>]=?)?\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*$"


def numbers_of(frame: pl.DataFrame, tally: Counter[str]) -> pl.Series:
    """valuenum; where it is blank, the number that `value` spells, a limit (`>100`) being taken as its bound."""
    number = frame["valuenum"]
    blank = number.is_null()
    if blank.any():
        text = frame["value"].filter(blank)
        parts = text.str.extract_groups(NUMBER).struct.unnest() if len(text) else None
        if parts is not None:
            spelt = parts[parts.columns[1]].cast(pl.Float64, strict=False)
            tally["number read from the text"] += int(spelt.is_not_null().sum())
            tally["limit (> or <) taken as its bound"] += int(
                (parts[parts.columns[0]].is_not_null() & spelt.is_not_null()).sum()
            )
            positions = blank.arg_true()
            number = number.scatter(positions, spelt)
    finite = number.is_finite().fill_null(False)
    tally["set aside: text, blank or ___"] += int((~finite).sum())
    return number


def cohort_mark(samples: pl.DataFrame, options: MimicOptions) -> str:
    """Whose measurements a part holds: it knows patients by their rank, which means another one in another cohort."""
    ids = samples["sample_id"].sort().to_list()
    return hashlib.sha256(json.dumps([ids, asdict(options)], sort_keys=True).encode()).hexdigest()


def fingerprint(files: list[Path], raw: Path, samples: pl.DataFrame, options: MimicOptions) -> str:
    """What a part depends on; a part with another one is not used again."""
    state = [(within(raw, f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([state, cohort_mark(samples, options)]).encode()).hexdigest()


def event_files(raw: Path, options: MimicOptions) -> dict[str, Path]:
    """Source → file of the chosen tables.

    Raises:
        DataError: one is missing or there twice.
    """
    faults = FaultCollector()
    found = {s: find_table(raw, PLACES[s], faults) for s in SOURCES if s in options.event_sources}
    faults.raise_if_any()
    return {s: p for s, p in found.items() if p is not None}


def shard_of(sample_ids: list[str], n_parts: int) -> NDArray[np.int64]:
    """Which part a patient belongs to, by a hash of the id."""
    if n_parts == 1:
        return np.zeros(len(sample_ids), dtype=np.int64)
    return (id_keys(sample_ids) % np.uint64(n_parts)).astype(np.int64)


class _Runs:
    """Measurements in sorted runs on disk."""

    def __init__(self, folder: Path, n_samples: int):
        self._folder, self._n_samples = folder, n_samples
        self._pending: list[NDArray[Any]] = []
        self._n_pending = 0
        self.files: list[tuple[Path, NDArray[np.int64]]] = []
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, rows: NDArray[Any]) -> None:
        self._pending.append(rows)
        self._n_pending += len(rows)
        if self._n_pending >= RUN_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._n_pending:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._n_pending = [], 0
        # Exports come by patient or nearly so: a run that is in order need not be sorted.
        if (np.diff(rows["rank"]) < 0).any():
            rows = rows[np.argsort(rows["rank"], kind="stable")]
        path = self._folder / f"{len(self.files)}.run"
        rows.tofile(path)
        counts = np.bincount(rows["rank"], minlength=self._n_samples)
        self.files.append((path, np.concatenate([[0], np.cumsum(counts)])))

    def groups(self) -> Iterator[NDArray[Any]]:
        """The measurements of whole patients, by rank, about GROUP_ROWS at once."""
        if not self.files:
            return
        totals = np.sum([np.diff(offsets) for _, offsets in self.files], axis=0)
        reach = np.cumsum(totals)
        low = 0
        while low < self._n_samples:
            start = int(reach[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(reach, start + GROUP_ROWS, side="right")))
            pieces = []
            for path, offsets in self.files:
                a, b = int(offsets[low]), int(offsets[high])
                if b > a:
                    pieces.append(np.fromfile(path, dtype=RUN, count=b - a, offset=a * RUN.itemsize))
            if pieces:
                rows = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
                yield rows if len(pieces) == 1 else rows[np.argsort(rows["rank"], kind="stable")]
            low = high


def _rows(
    frame: pl.DataFrame,
    source: str,
    ranks: NDArray[np.int32],
    low: int,
    windows: Windows,
    units: UnitCodes,
    tally: Tally,
) -> NDArray[Any]:
    """The measurements of one frame that count, as RUN rows."""
    tally.n_rows += len(frame)
    rank = ranks[frame["subject_id"].to_numpy() - low].astype(np.int64)
    time = frame["charttime"].dt.epoch("s").to_numpy()
    hadm = frame["hadm_id"].fill_null(-1).to_numpy()
    counts = windows(rank, time, hadm)
    tally.counts["outside the visits that count, or after the prediction"] += int((~counts).sum())
    frame, rank, time = frame.filter(pl.Series(counts)), rank[counts], time[counts]
    number = numbers_of(frame, tally.counts)
    finite = number.is_finite().fill_null(False).to_numpy()
    rows = np.empty(int(finite.sum()), dtype=RUN)
    rows["rank"] = rank[finite]
    rows["seconds"] = (time - windows.first[rank])[finite]
    rows["item"] = frame["itemid"].to_numpy()[finite] + SOURCES.index(source) * ITEM_BASE
    rows["unit"] = units.encode(frame["valueuom"])[finite]
    rows["value"] = number.to_numpy()[finite]
    return rows


def prepare_events(raw: Path, samples: pl.DataFrame, options: MimicOptions, part: int, n_parts: int, out: Path) -> None:
    """Write part `part`: one row a measurement, by rank (of the sample in sorted ids).

    The file's metadata holds the units by code, how many rows were read and set aside and why, and how many
    measurements there are of each item and unit.
    """
    options.validate()
    files = event_files(raw, options)
    marks = {
        "fingerprint": fingerprint(list(files.values()), raw, samples, options),
        "cohort": cohort_mark(samples, options),
    }
    ids = samples["sample_id"].sort().to_list()
    subjects = np.array([int(i) for i in ids], dtype=np.int64)
    mine = shard_of(ids, n_parts) == part
    windows = Windows(visits_of(raw, samples, options), len(ids), options)
    low = int(subjects.min())
    ranks = np.full(int(subjects.max()) - low + 1, -1, dtype=np.int32)
    ranks[subjects - low] = np.arange(len(ids), dtype=np.int32)
    units, tally = UnitCodes(), Tally()
    scratch = out.with_suffix("")
    runs = _Runs(scratch, len(ids))
    try:
        if mine.any():
            for source, path in files.items():
                scan = TableScan(path, EVENTS[source], subjects[mine], shown_as=within(raw, path))
                for frame in scan:
                    runs.add(_rows(frame, source, ranks, low, windows, units, tally))
                say(f"mimic {source}: {scan.n_rows:,} rows read, part {part} of {n_parts}")
        runs.flush()
        _write_part(out, runs, units, tally, marks)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_part(out: Path, runs: _Runs, units: UnitCodes, tally: Tally, marks: dict[str, str]) -> None:
    by_unit: Counter[tuple[int, int]] = Counter()
    with replacing(out) as temporary:
        writer = pq.ParquetWriter(temporary, SCHEMA, compression="lz4", use_dictionary=False)
        try:
            for rows in runs.groups():
                pair, n = np.unique(rows["item"].astype(np.int64) * 2**16 + rows["unit"], return_counts=True)
                for key, count in zip(pair.tolist(), n.tolist(), strict=True):
                    by_unit[key >> 16, key & 0xFFFF] += count
                columns = [pa.array(np.ascontiguousarray(rows[name])) for name in SCHEMA.names]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=len(rows) or None)
            state = {
                **marks,
                "units": units.names,
                "n_rows": tally.n_rows,
                "counts": dict(sorted(tally.counts.items())),
                "items": [[item, unit, n] for (item, unit), n in sorted(by_unit.items())],
            }
            writer.add_key_value_metadata({PART_KEY: json.dumps(state)})
        finally:
            writer.close()
