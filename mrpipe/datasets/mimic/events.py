"""Extract the measurements of the cohort from labevents and chartevents into part files.

Measurements are sorted on disk in runs of bounded size and merged patient by patient, so that memory does not grow with
the export. A part contains the measurements of its patients as charted (value and unit); they are harmonised by the
readers, because the unit of an item depends on the whole export.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.events import SortedRuns, write_part
from mrpipe.datasets.mimic.cohort import visits_of
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.ranges import canonical_unit
from mrpipe.datasets.mimic.tables import EVENTS, PLACES, Form, find_table, scan_patients
from mrpipe.errors import FaultCollector
from mrpipe.options import step_values

_LOG = logging.getLogger(__name__)
PART_KEY = "mrpipe.mimic.part"
# One measurement: rank of the patient, seconds since first admission, source · ITEM_BASE + itemid, unit code, value.
RUN = np.dtype([("rank", "<i4"), ("seconds", "<i4"), ("item", "<i4"), ("unit", "<u2"), ("value", "<f4")])
ITEM_BASE = 10_000_000
SOURCES = ("labevents", "chartevents")
DAY = 86_400
FAR_DAYS = 30  # a row farther from the visit that it names has a wrong date


# Reasons to exclude a row; the first that applies is counted.
EXCLUDED = (
    "names an excluded visit or a visit of another patient",
    f"more than {FAR_DAYS} days from the visit that it names",
    "before birth, or more than 20 years before the first visit",
    "charted after the prediction time",
    "stored after the prediction time",
    "outside the included visits",
)


class Windows:
    """Select measurements by time and visit.

    A measurement is included from 24 h before the admission to the discharge of the visit in its hadm_id, or of any
    included visit if hadm_id is blank (`event_window=visits`), or at any time up to the prediction time (`history`).
    Measurements charted or stored after the index discharge, or of excluded visits, are always excluded.
    """

    def __init__(self, kept: pl.DataFrame, n_samples: int, options: MimicOptions):
        self.history = options.event_window == "history"
        seconds = kept.select(
            pl.col("rank").cast(pl.Int64),
            "hadm_id",
            (pl.col("admittime").dt.epoch("s")).alias("admit"),
            pl.col("dischtime").dt.epoch("s").alias("discharge"),
            pl.col("predicted").dt.epoch("s"),
            pl.col("earliest").dt.epoch("s"),
        ).sort("rank", "admit", "hadm_id")
        rank = seconds["rank"].to_numpy()
        self.first, self._predicted, self._earliest = np.zeros((3, n_samples), dtype=np.int64)
        self.first[rank[::-1]] = seconds["admit"].to_numpy()[::-1]
        self._predicted[rank], self._earliest[rank] = seconds["predicted"].to_numpy(), seconds["earliest"].to_numpy()
        # Visits can overlap, so use the latest discharge of all visits that began earlier.
        until = seconds.select(pl.col("discharge").cum_max().over("rank"))["discharge"].to_numpy()
        self._span = 2**34
        self._starts = rank * self._span + seconds["admit"].to_numpy() - DAY + 2**33
        self._until, self._rank = until, rank
        self._visits = {n: seconds.sort("hadm_id")[n].to_numpy() for n in ("hadm_id", "rank", "admit", "discharge")}

    def excluded(
        self, rank: NDArray[np.int64], time: NDArray[np.int64], stored: NDArray[np.int64], hadm: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Index in EXCLUDED of the reason to exclude each measurement, -1 for included ones, (n,).

        `time` and `stored` are in epoch seconds; `stored` is `time` if unknown, `hadm` is -1 for rows without hadm_id.
        """
        named, visits = hadm >= 0, self._visits
        own = np.minimum(np.searchsorted(visits["hadm_id"], hadm), len(visits["hadm_id"]) - 1)
        known = (visits["hadm_id"][own] == hadm) & (visits["rank"][own] == rank)
        early, late = visits["admit"][own] - time, time - visits["discharge"][own]
        visit = np.searchsorted(self._starts, rank * self._span + time + 2**33, side="right") - 1
        inside = (visit >= 0) & (self._rank[visit] == rank) & (time <= self._until[visit])
        inside = np.where(named, (early <= DAY) & (late <= 0), inside) | self.history
        reasons = (
            named & ~known,
            named & (np.maximum(early, late) > FAR_DAYS * DAY),
            time < self._earliest[rank],
            time > self._predicted[rank],
            stored > self._predicted[rank],
            ~inside,
        )
        return np.select(reasons, range(len(reasons)), -1)


class UnitCodes:
    """Integer codes of the units encountered so far; 0 is a blank unit."""

    def __init__(self) -> None:
        self.names: list[str] = [""]
        self._codes: dict[str | None, int] = {None: 0, "": 0}

    def encode(self, units: pl.Series) -> NDArray[np.uint16]:
        for unit in units.unique(maintain_order=True).to_list():
            if unit not in self._codes:
                name = canonical_unit(unit)
                if name not in self.names:
                    self.names.append(name)
                self._codes[unit] = self.names.index(name)
        return units.replace_strict(self._codes, return_dtype=pl.UInt16).to_numpy()


NUMBER = r"^\s*([<>]=?)?\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*$"


def numbers_of(frame: pl.DataFrame, tally: Counter[str]) -> pl.Series:
    """Values from valuenum or, if it is blank, parsed from the text in `value`; a limit such as `>100` becomes 100."""
    number = frame["valuenum"]
    blank = number.is_null()
    if blank.any():
        text = frame["value"].filter(blank)
        parts = text.str.extract_groups(NUMBER).struct.unnest() if len(text) else None
        if parts is not None:
            parsed = parts[parts.columns[1]].cast(pl.Float64, strict=False)
            tally["number read from the text"] += int(parsed.is_not_null().sum())
            tally["limit (> or <) taken as its bound"] += int(
                (parts[parts.columns[0]].is_not_null() & parsed.is_not_null()).sum()
            )
            number = number.scatter(blank.arg_true(), parsed)
    finite = number.is_finite().fill_null(False)
    tally["set aside: text, blank or ___"] += int((~finite).sum())
    return number


def cohort_hash(samples: pl.DataFrame, options: MimicOptions) -> str:
    """Hash of cohort and options, because a part refers to patients by their rank in the cohort."""
    ids = samples["sample_id"].sort().to_list()
    return hashlib.sha256(json.dumps([ids, step_values(options, "lab.prepare")], sort_keys=True).encode()).hexdigest()


def event_files(raw: Path, options: MimicOptions) -> dict[str, Form]:
    """Files of each table in `event_sources`.

    Raises:
        DataError: a table is missing.
    """
    faults = FaultCollector()
    found = {s: find_table(raw, PLACES[s], faults, options) for s in SOURCES if s in options.event_sources}
    faults.raise_if_any()
    return {s: p for s, p in found.items() if p is not None}


def _rows(
    frame: pl.DataFrame,
    source: str,
    ranks: NDArray[np.int32],
    low: int,
    windows: Windows,
    units: UnitCodes,
    tally: Counter[str],
) -> NDArray[Any]:
    """Included measurements of a frame as RUN rows; counts the rows that are modified or set aside, by reason."""
    rank = ranks[frame["subject_id"].to_numpy() - low].astype(np.int64)
    time = frame["charttime"].dt.epoch("s").to_numpy()
    hadm = frame["hadm_id"].fill_null(-1).to_numpy()
    stores = frame["storetime"].fill_null(frame["charttime"]) if "storetime" in frame.columns else frame["charttime"]
    excluded = windows.excluded(rank, time, stores.dt.epoch("s").to_numpy(), hadm)
    for reason, n in zip(EXCLUDED, np.bincount(excluded + 1, minlength=len(EXCLUDED) + 1)[1:].tolist(), strict=True):
        tally[f"excluded: {reason}"] += n
    included = excluded < 0
    frame, rank, time = frame.filter(pl.Series(included)), rank[included], time[included]
    number = numbers_of(frame, tally)
    finite = number.is_finite().fill_null(False).to_numpy()
    rows = np.empty(int(finite.sum()), dtype=RUN)
    rows["rank"] = rank[finite]
    rows["seconds"] = (time - windows.first[rank])[finite]
    rows["item"] = frame["itemid"].to_numpy()[finite] + SOURCES.index(source) * ITEM_BASE
    rows["unit"] = units.encode(frame["valueuom"])[finite]
    rows["value"] = number.to_numpy()[finite]
    return rows


def prepare_events(raw: Path, samples: pl.DataFrame, options: MimicOptions, part: int, n_parts: int, out: Path) -> None:
    """Write the measurements of part `part` to the Parquet file `out`, sorted by rank (of the sample in sorted ids).

    Source: charttime, itemid, valuenum, value and valueuom of labevents and chartevents. The metadata of the file has
    the units by code, the number of rows read and set aside by reason, and the measurements per item and unit.

    Raises:
        DataError: an option out of range, or a table that is missing or damaged.
    """
    options.validate()
    files = event_files(raw, options)
    ids = samples["sample_id"].sort().to_list()
    subjects = np.array([int(i) for i in ids], dtype=np.int64)
    first, stop = (len(ids) * k // n_parts for k in (part, part + 1))
    windows = Windows(visits_of(raw, samples, options), len(ids), options)
    low = int(subjects.min())
    ranks = np.full(int(subjects.max()) - low + 1, -1, dtype=np.int32)
    ranks[subjects - low] = np.arange(len(ids), dtype=np.int32)
    units, tally, n_rows = UnitCodes(), Counter[str](), 0
    with SortedRuns(out.with_suffix(""), len(ids), RUN) as runs:
        if first < stop:
            for source, form in files.items():
                scan = scan_patients(raw, form, EVENTS[source], subjects[first:stop])
                for frame in scan:
                    n_rows += len(frame)
                    runs.add(_rows(frame, source, ranks, low, windows, units, tally))
                _LOG.info(f"mimic {source}: {scan.n_rows:,} rows read for part {part} of {n_parts}{scan.oddities()}")
        state = {"cohort": cohort_hash(samples, options), "n_rows": n_rows, "counts": dict(sorted(tally.items()))}
        _write_part(out, runs, units, state)


def _write_part(out: Path, runs: SortedRuns, units: UnitCodes, known: dict[str, Any]) -> None:
    by_unit: Counter[tuple[int, int]] = Counter()

    def groups() -> Iterator[NDArray[Any]]:
        for rows in runs.groups():
            pair, n = np.unique(rows["item"].astype(np.int64) * 2**16 + rows["unit"], return_counts=True)
            for key, count in zip(pair.tolist(), n.tolist(), strict=True):
                by_unit[key >> 16, key & 0xFFFF] += count
            yield rows

    def state() -> dict[str, Any]:
        items = [[item, unit, n] for (item, unit), n in sorted(by_unit.items())]
        return {**known, "units": units.names, "items": items}

    write_part(out, groups(), RUN, PART_KEY, state)
