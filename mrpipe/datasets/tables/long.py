"""Long tables, one row per measurement: sequences of events, or statistics per item; streamed.

x of an event is [position of the item in the levels of the dictionary, value]; its time is in hours from the time of
the prediction, so that it is at most 0. Rows after that time are never used: neither values nor items depend on them.

Legend: E events, n samples.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.mimic.codes import sequence_batch
from mrpipe.datasets.mimic.labs import STATISTICS, summarise
from mrpipe.datasets.tables.config import ModalityTable
from mrpipe.datasets.tables.features import dictionary_of, kind_of, no_samples, number_fix, vectors
from mrpipe.datasets.tables.files import FLOAT32_MAX, ID, ROW, RawTable, canonical_text, clock, known_text
from mrpipe.datasets.tables.joins import report_lost_rows
from mrpipe.errors import DataError, FaultCollector
from mrpipe.schema import Features, Modality
from mrpipe.transforms.events import levels_id

EVENT = np.dtype([("rank", "<i4"), ("item", "<i4"), ("hours", "<f4"), ("value", "<f4")])
# Files on disk between reading and writing, by sample; samples per batch; most columns of statistics.
BUCKETS, GROUP, MAX_COLUMNS = 16, 1024, 50_000
_SIGNS = {"<": " (below)", "≤": " (below)", ">": " (above)", "≥": " (above)"}
Events = NDArray[np.void]


@dataclass
class LongTally:
    """What was read: items in order of appearance, rows that were not used by reason, and invalid values."""

    items: dict[str, int] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    # The ids, each with its first row, if they are to be compared with those of the samples.
    ids: pl.DataFrame | None = None

    def skip(self, frame: pl.DataFrame, reason: str, condition: pl.Expr) -> pl.DataFrame:
        """The rows without those that meet a condition, which are counted."""
        left = frame.filter(~condition.fill_null(False))
        self.skipped[reason] += len(frame) - len(left)
        return left


def _refuse(
    frame: pl.DataFrame,
    condition: pl.Expr,
    name: str,
    place: tuple[RawTable, str],
    expected: str,
    found: FaultCollector,
) -> pl.DataFrame:
    """The rows without those that meet a condition, which are faults: the first of a column `place`, with its batch."""
    wrong, (table, column) = frame.filter(condition.fill_null(False)), place
    if len(wrong) and not any((f.column, f.expected) == (column, expected) for f in found.faults):
        text = wrong[name]
        fix = number_fix(column, text.drop_nulls()) if "number" in expected else ""
        several = f"; {len(wrong)} such rows" if len(wrong) > 1 else ""
        found.add(table.fault(expected, f"{text[0]!r}{several}", fix, column=column, rows=wrong[ROW]))
    return frame.filter(~condition.fill_null(False)) if len(wrong) else frame


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
    for batch in table.batches([key, *columns.values(), *dropped]):
        for _, left in table.drop(batch, modality.drop, place, FaultCollector()):
            batch = left
        texts = [known_text(name, rules).alias(k) for k, name in columns.items()]
        frame = batch.select(ROW, known_text(key, config.missing).alias(ID), *texts)
        # Programs add decimal points to whole numbers in columns with gaps.
        frame = frame.with_columns(pl.when(pl.col(ID).is_in(keys)).then(ID).otherwise(canonical_text(ID)).alias(ID))
        frame = _refuse(frame, pl.col(ID).is_null(), ID, (table, key), "an id in every row", faults)
        if tally.ids is not None:
            some = frame.select(ID, ROW).unique(ID, keep="first", maintain_order=True)
            tally.ids = pl.concat([tally.ids, some]).unique(ID, keep="first", maintain_order=True)
        frame = frame.join(ranked, on=ID, how="inner", maintain_order="left")
        frame = tally.skip(frame, "without an item", pl.col("item").is_null())
        hours = pl.lit(0.0)
        if "time" in columns:
            frame = tally.skip(frame, "without a time", pl.col("time").is_null())
            frame = frame.with_columns(clock("time", long.format).alias("clock"))
            expected = f"times in the format {long.format}" if long.format else "times such as 2019-01-31 08:30"
            frame = _refuse(frame, pl.col("clock").is_null(), "time", (table, columns["time"]), expected, faults)
            frame = tally.skip(frame, "after the time of the prediction", pl.col("clock") > pl.col("prediction_time"))
            hours = (pl.col("clock") - pl.col("prediction_time")).dt.total_microseconds() / 3.6e9
        item, value = pl.col("item"), pl.lit(1.0)
        if "unit" in columns:
            item = item + pl.format(" [{}]", "unit").fill_null("")
        if "value" in columns:
            frame = tally.skip(frame, "without a value", pl.col("value").is_null())
            value = pl.col("value").cast(pl.Float64, strict=False)
            if kind is not None and kind.kind == "categorical":
                item, value = pl.concat_str(item, pl.lit(" = "), canonical_text("value")), pl.lit(1.0)
            elif kind is not None and kind.kind == "censored":
                item += pl.col("value").str.extract("^([<>≤≥])").replace_strict(_SIGNS, default="")
                limit = pl.col("value").str.replace(r"^[<>≤≥]=?\s*", "")
                value = (limit.str.replace(",", ".", literal=True) if table.comma else limit).cast(
                    pl.Float64, strict=False
                )
            finite = value.is_not_null() & value.is_finite() & (value.abs() <= FLOAT32_MAX)
            frame = _refuse(frame, ~finite, "value", (table, columns["value"]), "a finite number", faults)
        frame = frame.select("rank", item.alias("item"), hours.alias("hours"), value.alias("value"))
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
    tally, present, n = (
        LongTally(ids=pl.DataFrame(schema={ID: pl.String, ROW: pl.Int32})),
        np.zeros(len(samples), bool),
        0,
    )
    for events in read_events(table, modality, samples, tally, faults):
        present[events["rank"]] = True
        n += len(events)
    assert tally.ids is not None
    report_lost_rows(table, tally.ids, known, faults, notes, "ids")
    if not n:
        faults.add(no_samples(table, modality.name, "Are its times before the time of the prediction?"))
    _require_few(table, modality, tally, faults)
    name = modality.name
    counts = "".join(f"; {k:,} rows {reason}" for reason, k in tally.skipped.items() if k)
    notes.append(
        f"{name}: {present.sum()} of {len(samples)} samples, {len(tally.items)} items, {n:,} rows used{counts}"
    )
    if modality.long and modality.long.time is None:
        notes.append(f"{name}: no time is declared: all rows are used, also any from after the prediction")
    return samples["sample_id"].sort().filter(pl.Series(present))


def _require_few(table: RawTable, modality: ModalityTable, tally: LongTally, faults: FaultCollector) -> None:
    d = len(tally.items) * len(modality.long.aggregate if modality.long else ())
    if d > MAX_COLUMNS:
        fix = "Leave out `aggregate` for a sequence, or drop items."
        faults.add(table.fault(f"at most {MAX_COLUMNS:,} statistics of items", f"{d:,}", fix))


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
    _require_few(table, declared, tally, faults)
    faults.raise_if_any()
    if not tally.items:
        raise DataError(no_samples(table, declared.name, "Are its times before the time of the prediction?"))
    ids, levels = samples["sample_id"].sort(), sorted(tally.items)
    position = np.empty(len(levels), dtype=np.int32)
    position[[tally.items[name] for name in levels]] = np.arange(len(levels))
    observed, n = np.zeros(len(levels), dtype=np.int64), 0

    def groups() -> Iterator[tuple[Events, NDArray[Any], NDArray[Any]]]:
        """Events of some samples in order of sample, time, item and value; their ranks and numbers of events."""
        nonlocal n
        for path in paths:
            events: Events = np.fromfile(path, dtype=EVENT)
            events["item"] = position[events["item"]]
            events = events[np.lexsort((events["value"], events["item"], events["hours"], events["rank"]))]
            ranks, lengths = np.unique(events["rank"], return_counts=True)
            n += len(ranks)
            ends = np.r_[0, np.cumsum(lengths)]
            for i in range(0, len(ranks), GROUP):
                j = min(i + GROUP, len(ranks))
                yield events[ends[i] : ends[j]], ranks[i:j], lengths[i:j]
        folder.cleanup()

    columns: dict[str, Any]
    if not long.aggregate:
        modality = Modality(
            name=declared.name,
            bit=bit,
            kind="sequence",
            shape=(2,),
            irregular=True,
            time_unit="hours from the time of the prediction",
            encoder=levels_id(levels),
            description=declared.description,
        )

        def batches() -> Iterator[pa.RecordBatch]:
            for events, ranks, lengths in groups():
                x = np.stack([events["item"].astype(np.float32), events["value"]], axis=1)
                yield sequence_batch(modality, ids.gather(ranks).to_list(), x, events["hours"], lengths)

        columns = {"name": ["item", "value"], "kind": ["event", "numeric"], "levels": [levels, None]}
        columns["source_column"] = [str(long.item), str(long.value or "")]
    else:
        d = len(levels) * len(long.aggregate)
        modality = Modality(name=declared.name, bit=bit, kind="vector", shape=(d,), description=declared.description)
        kept = [STATISTICS.index(s) for s in long.aggregate]

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal observed
            for events, ranks, _ in groups():
                group = {"rank": events["rank"].astype(np.int64), "level": events["item"].astype(np.int64)}
                _, x = summarise({**group, "hours": events["hours"], "value": events["value"]}, len(levels))
                x = x.reshape(len(x), len(levels), -1)
                observed += (x[:, :, STATISTICS.index("count")] > 0).sum(axis=0)
                yield from vectors(modality, ids.gather(ranks), x[:, :, kept].reshape(len(x), d))

        kind = "summary" if "count" in long.aggregate else "numeric"
        columns = {"name": [f"{item} {s}" for item in levels for s in long.aggregate], "kind": [kind] * d}
        columns["source_column"] = [str(long.value or long.item)] * d

    def dictionary() -> pl.DataFrame:
        counts = np.repeat(observed, len(long.aggregate)) if long.aggregate else np.full(2, n)
        return dictionary_of(declared.name, table.shown_as, columns, counts, n)

    return Features(modality=modality, batches=batches(), dictionary=dictionary)
