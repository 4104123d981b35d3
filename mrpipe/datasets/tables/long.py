"""Long tables, one row per measurement: sequences of events, or statistics per item; streamed.

x of an event is [position of the item in the levels of the dictionary, value]; its time is in hours from the time of
the prediction, so that it is at most 0. Rows after that time are never used: neither values nor items depend on them.

Legend: E events, n samples.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.events import EventBatches, event_modality
from mrpipe.datasets.features import dictionary_of
from mrpipe.datasets.tables.cohort import times_of
from mrpipe.datasets.tables.config import ModalityTable
from mrpipe.datasets.tables.features import bad_number, kind_of, limits, no_samples
from mrpipe.datasets.tables.files import ID, ROW, RawTable
from mrpipe.datasets.tables.joins import report_lost_rows
from mrpipe.datasets.tables.texts import canonical_text, known_text, too_large
from mrpipe.errors import DataError, FaultCollector
from mrpipe.schema import Features

EVENT = np.dtype([("rank", "<i4"), ("level", "<i4"), ("hours", "<f4"), ("value", "<f4")])
# Files on disk between reading and writing, by sample; samples per batch; most columns of statistics.
BUCKETS, GROUP, MAX_COLUMNS = 16, 1024, 50_000
Events = NDArray[np.void]


@dataclass
class LongTally:
    """What was read: items in order of appearance, and the numbers of rows not used, or in doubt, by reason."""

    items: dict[str, int] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    # The ids, each with its first row, if they are to be compared with those of the samples.
    ids: pl.DataFrame | None = None

    def skip(self, frame: pl.DataFrame, reason: str, condition: pl.Expr | pl.Series) -> pl.DataFrame:
        """The rows without those that meet a condition, which are counted."""
        left = frame.filter(~condition)
        self.skipped[reason] += len(frame) - len(left)
        return left


def read_events(
    table: RawTable, modality: ModalityTable, samples: pl.DataFrame, tally: LongTally, faults: FaultCollector
) -> Iterator[Events]:
    """Events of the samples (`EVENT`), in file order; `rank` is the place of the sample in order of `sample_id`.

    Args:
        samples: `sample_id`, `subject_id` and, if it is declared, `prediction_time`.
    """
    long, config, place = modality.long, table.config, f"modalities.{modality.name}"
    assert long is not None
    refs = {"item": long.item, "value": long.value, "unit": long.unit, "time": long.time}
    names = {k: table.column(ref, f"{place}.long.{k}", faults) for k, ref in refs.items() if ref is not None}
    dropped = table.columns([ref for ref, _ in modality.drop], f"{place}.drop", faults)
    key = table.id_column(faults) if table.key != "row" else None
    if table.key == "row":
        faults.add(table.fault("an id in every row", "rows joined by order", "A long table needs `id`."))
    if key is None or None in names.values():
        return
    ranked = samples.sort("sample_id").with_row_index("rank").rename({table.key: ID})
    ranked = ranked.select(pl.col("rank").cast(pl.Int32), ID, *(["prediction_time"] * (long.time is not None)))
    keys, rules = ranked[ID].unique().implode(), config.missing + modality.missing
    columns = {k: str(name) for k, name in names.items()}
    kind = kind_of(columns["value"], modality) if "value" in columns else None
    value_kind, reported = "numeric" if kind is None else kind.kind, set[tuple[str | None, str]]()
    if "value" in columns and value_kind != "categorical":
        table.require_commas(columns["value"], faults)
    for batch in table.batches([key, *columns.values(), *dropped]):
        wrong = FaultCollector()
        for _, left in table.drop(batch, modality.drop, place, FaultCollector()):
            batch = left
        texts = [known_text(name, rules) for name in dict.fromkeys(columns.values())]
        frame = batch.select(ROW, known_text(key, config.missing).alias(ID), *texts)
        if len(empty := frame.filter(pl.col(ID).is_null())[ROW]):
            wrong.add(table.fault("an id in every row", "rows without one", column=key, rows=empty))
        # Programs add decimal points to whole numbers in columns with gaps.
        frame = frame.with_columns(pl.when(pl.col(ID).is_in(keys)).then(ID).otherwise(canonical_text(ID)).alias(ID))
        if tally.ids is not None:
            some = frame.select(ID, ROW).unique(ID, keep="first", maintain_order=True)
            tally.ids = pl.concat([tally.ids, some]).unique(ID, keep="first", maintain_order=True)
        frame = frame.join(ranked, on=ID, how="inner", maintain_order="left")
        for role in ("item", "time", "value"):
            if role in columns:
                without = f"without {'an' if role == 'item' else 'a'} {role}"
                frame = tally.skip(frame, without, frame[columns[role]].is_null())
        frame = frame.with_columns(pl.lit(0.0).alias("__hours"))
        if "time" in columns:
            time = times_of(table, frame, columns["time"], long.format, wrong)
            hours = (time - frame["prediction_time"]).dt.total_microseconds() / 3.6e9
            same_day = (time == frame["prediction_time"].dt.truncate("1d")) & (hours < 0)
            tally.skipped["of the day of the prediction have no time of day and are used"] += int(same_day.sum())
            frame = frame.with_columns(hours.alias("__hours")).filter(hours.is_not_null())
            frame = tally.skip(frame, "after the time of the prediction", pl.col("__hours") > 0)
        item, value = frame[columns["item"]], pl.Series([1.0]).new_from_index(0, len(frame))
        if "unit" in columns:
            item = item + frame.select(pl.format(" [{}]", columns["unit"]).fill_null("")).to_series()
        if "value" in columns and value_kind == "categorical":
            item = item + " = " + frame.select(canonical_text(columns["value"])).to_series()
        elif "value" in columns:
            text = frame[columns["value"]]
            value, side = limits(text)
            sides = {0.0: "", 1.0: " (below)", 2.0: " (above)"}
            item = item + side.replace_strict(sides, default="", return_dtype=pl.String)
            bad = ~value.is_finite().fill_null(False) | too_large(value)
            if value_kind != "censored":
                bad |= side.fill_null(0) > 0
            if bad.any():
                wrong.add(bad_number(table, columns["value"], text.filter(bad), frame[ROW].filter(bad)))
            value = value.set(bad, None)
        # Of each column, the first batch with a fault is reported.
        faults.faults += [f for f in wrong.faults if (f.column, f.expected) not in reported]
        reported |= {(f.column, f.expected) for f in wrong.faults}
        frame = pl.DataFrame([frame["rank"], item.alias("item"), frame["__hours"].alias("hours"), value.alias("value")])
        frame = frame.drop_nulls("value")
        for name in frame["item"].unique(maintain_order=True):
            tally.items.setdefault(name, len(tally.items))
        codes = frame["item"].replace_strict(tally.items, return_dtype=pl.Int32) if len(frame) else frame["rank"]
        events = np.empty(len(frame), dtype=EVENT)
        for name, column in zip(EVENT.names or (), (frame["rank"], codes, frame["hours"], frame["value"]), strict=True):
            events[name] = column.to_numpy()
        yield events


def check_long(
    table: RawTable,
    modality: ModalityTable,
    samples: pl.DataFrame,
    known: pl.DataFrame,
    faults: FaultCollector,
    notes: list[str],
) -> pl.Series:
    """Read a long table, report faults and notes; returns the ids of the samples with an event.

    Args:
        known: rows of the samples' file before any is dropped.
    """
    tally = LongTally(ids=pl.DataFrame(schema={ID: pl.String, ROW: pl.Int32}))
    present, n = np.zeros(len(samples), dtype=bool), 0
    for events in read_events(table, modality, samples, tally, faults):
        present[events["rank"]] = True
        n += len(events)
    assert tally.ids is not None
    report_lost_rows(table, tally.ids, known, faults, notes, "ids")
    if not n and len(samples):
        faults.add(no_samples(table, modality.name, "Are its times before the time of the prediction?"))
    if modality.long and (d := len(tally.items) * len(modality.long.aggregate)) > MAX_COLUMNS:
        fix = "Leave out `aggregate` for a sequence, or drop items."
        faults.add(table.fault(f"at most {MAX_COLUMNS:,} statistics of items", f"{d:,}", fix))
    name, skipped = modality.name, "".join(f"; {k:,} rows {reason}" for reason, k in tally.skipped.items() if k)
    used = f"{len(tally.items)} items, {n:,} rows used"
    notes.append(f"{name}: {present.sum()} of {len(samples)} samples, {used}{skipped}")
    if modality.long and modality.long.time is None:
        notes.append(f"{name}: no time is declared: all rows are used, also any from after the prediction")
    return samples["sample_id"].sort().filter(pl.Series(present))


def read_long(table: RawTable, declared: ModalityTable, bit: int, samples: pl.DataFrame) -> Features:
    """The measurements before the prediction, as a sequence or as statistics per item.

    Events pass through files on disk, by sample, so that the memory needed does not grow with the table.
    """
    tally, faults, long = LongTally(), FaultCollector(), declared.long
    assert long is not None
    folder = tempfile.TemporaryDirectory(prefix="mrpipe-")
    paths = [Path(folder.name) / str(b) for b in range(BUCKETS)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for events in read_events(table, declared, samples, tally, faults):
            bucket = events["rank"].astype(np.int64) * BUCKETS // len(samples)
            for b in np.unique(bucket).tolist():
                events[bucket == b].tofile(files[b])
    faults.raise_if_any()
    if not tally.items:
        raise DataError(no_samples(table, declared.name, "Are its times before the time of the prediction?"))
    ids, levels = samples["sample_id"].sort(), sorted(tally.items)
    position = np.empty(len(levels), dtype=np.int32)
    position[[tally.items[name] for name in levels]] = np.arange(len(levels))

    def groups() -> Iterator[Events]:
        """Events of some samples in order of sample, time, item and value."""
        for path in paths:
            events: Events = np.fromfile(path, dtype=EVENT)
            events["level"] = position[events["level"]]
            events = events[np.lexsort((events["value"], events["level"], events["hours"], events["rank"]))]
            starts = np.flatnonzero(np.diff(events["rank"], prepend=-1))
            yield from np.split(events, starts[GROUP::GROUP])
        folder.cleanup()

    about, unit = declared.description, "hours from the time of the prediction"
    modality = event_modality(declared.name, bit, levels, unit, about, long.aggregate)
    written = EventBatches(modality, ids, len(levels), long.aggregate)

    def dictionary() -> pl.DataFrame:
        columns: dict[str, Any]
        if long.aggregate:
            kind = "summary" if "count" in long.aggregate else "numeric"
            columns = {"name": levels, "kind": kind, "source_column": str(long.value or long.item)}
            n_observed: Any = written.observed
        else:
            columns = {"name": ["item", "value"], "kind": ["event", "numeric"], "levels": [levels, None]}
            columns["source_column"], n_observed = [str(long.item), str(long.value or "")], written.n_samples
        return dictionary_of(declared.name, table.shown_as, columns, n_observed, written.n_samples, long.aggregate)

    return Features(modality=modality, batches=written.batches(groups()), dictionary=dictionary)
