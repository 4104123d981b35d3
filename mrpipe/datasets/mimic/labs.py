"""Modalities lab (irregular sequence) and lab_summary (one vector a patient), from the parts that `events` wrote.

lab: a step is one measurement, x = [position of the item in the dictionary's levels, value], time in hours since the
first visit's admission; values are in one unit an item. lab_summary: per item last, mean, min, max and count.
Both keep every item that the cohort has; which of them a model sees is a transform fitted on training rows.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.datasets.mimic.codes import sequence_batch
from mrpipe.datasets.mimic.events import ITEM_BASE, PART_KEY, SCHEMA, SOURCES, event_files, fingerprint, prepare_events
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.progress import say
from mrpipe.datasets.mimic.ranges import MERGED, RANGES, UNITS, conversion
from mrpipe.datasets.mimic.tables import open_optional
from mrpipe.errors import DataError, Fault
from mrpipe.parquet import read_metadata, replacing
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality

LAB = "laboratory results and charted vital signs, one step a measurement: [position in levels, value], hours"
SUMMARY = "per item: last, mean, min, max and count of the patient's measurements (items that no one has are absent)"
STATISTICS = ("last", "mean", "min", "max", "count")
Group = dict[str, NDArray[Any]]
_PREFIX = {"labevents": "lab", "chartevents": "chart"}


@dataclass(frozen=True)
class Items:
    """The items of an export's cohort, in one unit each.

    Attributes:
        items: (n_items,) item keys (source · ITEM_BASE + itemid) after merging, sorted: the levels.
        units: their units.
        pairs: (n_pairs,) sorted keys item · 2^16 + unit code, of all measurements as charted.
        level, factor, offset: (n_pairs,) which level a pair becomes (-1: its unit cannot be converted), and how.
        low, high: (n_items,) possible values.
    """

    items: NDArray[np.int64]
    units: list[str]
    pairs: NDArray[np.int64]
    level: NDArray[np.int64]
    factor: NDArray[np.float64]
    offset: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def resolve_items(counts: Counter[tuple[int, str]], options: MimicOptions) -> tuple[Items, dict[tuple[int, str], int]]:
    """Choose each item's unit (a declared one, else the most frequent; ties by name) and how every other becomes it.

    Args:
        counts: (item key, unit) → how many measurements.

    Returns:
        the items, and (item key, unit) → position in `level` (pairs there are in the order of sorted keys).
    """

    def target(key: int, unit: str) -> tuple[int, str]:
        merged = MERGED.get(key % ITEM_BASE)
        if merged and unit in ("", merged[0]):
            return key - key % ITEM_BASE + merged[1], merged[0]
        return key, unit

    by_item: dict[int, Counter[str]] = {}
    for (key, unit), n in counts.items():
        item, found = target(key, unit)
        by_item.setdefault(item, Counter())[found] += n
    wanted = {}
    for item, units in by_item.items():
        named = sorted((-n, u) for u, n in units.items() if u)
        wanted[item] = UNITS.get(item % ITEM_BASE) or (named[0][1] if named else "")
    items = sorted(by_item)
    position = {item: i for i, item in enumerate(items)}
    pairs = sorted(counts)
    level, factor, offset = [], [], []
    for key, unit in pairs:
        item, found = target(key, unit)
        rule = conversion(item % ITEM_BASE, found, wanted[item])
        level.append(position[item] if rule else -1)
        factor.append(rule[0] if rule else 1.0)
        offset.append(rule[1] if rule else 0.0)
    unlimited = (-np.inf, np.inf)
    ranges = [RANGES.get(i % ITEM_BASE, unlimited) if options.outlier_ranges else unlimited for i in items]
    resolved = Items(
        items=np.array(items, dtype=np.int64), units=[wanted[i] for i in items], pairs=np.arange(len(pairs)),
        level=np.array(level, dtype=np.int64), factor=np.array(factor), offset=np.array(offset),
        low=np.array([r[0] for r in ranges]), high=np.array([r[1] for r in ranges]),
    )  # fmt: skip
    return resolved, {pair: i for i, pair in enumerate(pairs)}


class Parts:
    """The part files of a preparation, read together in order of rank."""

    def __init__(self, paths: Sequence[Path], options: MimicOptions):
        self._paths = list(paths)
        states = [json.loads(read_metadata(p)[PART_KEY]) for p in self._paths]
        counts: Counter[tuple[int, str]] = Counter()
        self.tally: Counter[str] = Counter()
        for state in states:
            for item, unit, n in state["items"]:
                counts[item, state["units"][unit]] += n
            self.tally.update(state["counts"])
        self.n_rows = sum(s["n_rows"] for s in states)
        if not counts:
            raise DataError(
                Fault(file="hosp/labevents, icu/chartevents", expected="measurements of the cohort's patients",
                      found="none", fix="Do these tables belong to this export?")
            )  # fmt: skip
        self.items, self._pair = resolve_items(counts, options)
        self._options = options
        # Per part: the key item · 2^16 + code (the part's own unit codes) → position of the pair.
        self._keys = []
        for state in states:
            keys = sorted(
                (item * 2**16 + unit, self._pair[item, state["units"][unit]]) for item, unit, _ in state["items"]
            )
            self._keys.append(
                (np.array([k for k, _ in keys], dtype=np.int64), np.array([v for _, v in keys], dtype=np.int64))
            )
        self.set_aside: dict[str, NDArray[np.int64]] = {
            reason: np.zeros(len(self.items.items), dtype=np.int64) for reason in ("impossible value", "same again")
        }
        self.patients = np.zeros(len(self.items.items), dtype=np.int64)
        self.other_units = 0

    def groups(self) -> Iterator[Group]:
        """Whole patients: `rank`, `hours`, `level`, `value` (float32), in order of rank, time, level, value."""
        for group in self._merged():
            yield self._clean(group)

    def _read(self, which: int) -> Iterator[Group]:
        file = pq.ParquetFile(self._paths[which])
        keys, pairs = self._keys[which]
        for g in range(file.num_row_groups):
            table = file.read_row_group(g)
            columns = {n: table[n].to_numpy() for n in SCHEMA.names}
            key = columns["item"].astype(np.int64) * 2**16 + columns["unit"]
            columns["pair"] = pairs[np.searchsorted(keys, key)]
            yield {n: columns[n] for n in ("rank", "seconds", "pair", "value")}

    def _merged(self) -> Iterator[Group]:
        readers = [self._read(i) for i in range(len(self._paths))]
        waiting: dict[int, Group] = {}
        while True:
            for i, reader in enumerate(readers):
                if i not in waiting:
                    group = next(reader, None)
                    if group is not None:
                        waiting[i] = group
            if not waiting:
                return
            # Every part has been read past this rank; a part never splits a patient over two groups.
            reach = min(int(g["rank"][-1]) for g in waiting.values())
            pieces = []
            for i in sorted(waiting):
                cut = int(np.searchsorted(waiting[i]["rank"], reach, side="right"))
                if cut:
                    pieces.append({n: c[:cut] for n, c in waiting[i].items()})
                rest = {n: c[cut:] for n, c in waiting[i].items()}
                if len(rest["rank"]):
                    waiting[i] = rest
                else:
                    del waiting[i]
            yield {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}

    def _clean(self, group: Group) -> Group:
        items, pair = self.items, group["pair"]
        level = items.level[pair]
        value = group["value"].astype(np.float64) * items.factor[pair] + items.offset[pair]
        convertible = level >= 0
        self.other_units += int((~convertible).sum())
        possible = (value >= items.low[level]) & (value <= items.high[level])
        self._count("impossible value", level[convertible & ~possible])
        keep = convertible & possible
        rank, level = group["rank"][keep].astype(np.int64), level[keep]
        seconds, value = group["seconds"][keep], value[keep].astype(np.float32)
        hours = seconds / 3600.0
        if self._options.bin_hours:
            return self._binned(rank, np.floor(hours / self._options.bin_hours), level, value)
        order = np.lexsort((value, level, seconds, rank))
        rank, seconds, level, value = rank[order], seconds[order], level[order], value[order]
        again = np.zeros(len(rank), dtype=bool)
        again[1:] = (
            (rank[1:] == rank[:-1])
            & (seconds[1:] == seconds[:-1])
            & (level[1:] == level[:-1])
            & (value[1:] == value[:-1])
        )
        self._count("same again", level[again])
        return {
            "rank": rank[~again], "hours": hours[order][~again].astype(np.float32), "level": level[~again],
            "value": value[~again],
        }  # fmt: skip

    def _binned(self, rank: Any, number: Any, level: Any, value: Any) -> Group:
        order = np.lexsort((value, level, number, rank))
        rank, number, level, value = rank[order], number[order], level[order], value[order]
        new = np.ones(len(rank), dtype=bool)
        new[1:] = (rank[1:] != rank[:-1]) | (number[1:] != number[:-1]) | (level[1:] != level[:-1])
        starts = np.flatnonzero(new)
        n = np.diff(starts, append=len(rank))
        mean = np.add.reduceat(value.astype(np.float64), starts) / n if len(starts) else value
        return {
            "rank": rank[starts], "hours": (number[starts] * self._options.bin_hours).astype(np.float32),
            "level": level[starts], "value": mean.astype(np.float32),
        }  # fmt: skip

    def _count(self, reason: str, level: NDArray[np.int64]) -> None:
        self.set_aside[reason] += np.bincount(level, minlength=len(self.items.items))

    def report(self, name: str) -> str:
        """How many measurements were set aside, and why, in one line."""
        reasons = Counter(self.tally)
        reasons["set aside: in a unit that cannot be converted"] += self.other_units
        reasons["set aside: impossible value"] += int(self.set_aside["impossible value"].sum())
        reasons["set aside: the same measurement again"] += int(self.set_aside["same again"].sum())
        listed = "; ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()) if n)
        return f"{name}: {self.n_rows:,} rows of the cohort's patients: {listed}"


def item_table(raw: Path) -> pl.DataFrame:
    """`key, label`: what the export's dictionaries call the items."""
    frames = [pl.DataFrame(schema={"key": pl.Int64, "label": pl.String})]
    for source, table in (("labevents", "hosp/d_labitems"), ("chartevents", "icu/d_items")):
        names = open_optional(raw, table)
        if names is not None:
            kind = pl.col("fluid") if "fluid" in names.columns else pl.lit(None, dtype=pl.String)
            label = pl.concat_str("label", kind, separator=", ", ignore_nulls=True)
            key = pl.col("itemid") + SOURCES.index(source) * ITEM_BASE
            frames.append(names.select(key.alias("key"), label.alias("label")))
    return pl.concat(frames).unique("key", keep="first", maintain_order=True)


def _item_names(raw: Path, items: Items) -> pl.DataFrame:
    """One row a level: `code` (lab:50912), `label`, `unit`, `source`."""
    frame = pl.DataFrame({"key": items.items, "unit": items.units}).join(
        item_table(raw), on="key", how="left", maintain_order="left"
    )
    source = frame["key"] // ITEM_BASE
    return frame.with_columns(
        pl.Series(
            "code", [f"{_PREFIX[SOURCES[s]]}:{k % ITEM_BASE}" for s, k in zip(source, frame["key"], strict=True)]
        ),
        pl.Series("source", [SOURCES[s] for s in source], dtype=pl.String),
        pl.col("label").fill_null(""),
    )


def _ids(samples: pl.DataFrame) -> NDArray[np.str_]:
    return samples["sample_id"].sort().to_numpy().astype(str)


def read_lab(raw: Path, samples: pl.DataFrame, options: MimicOptions, parts: Sequence[Path]) -> Features:
    """The measurements of every patient as an irregular sequence."""
    content = Parts(parts, options)
    ids, names = _ids(samples), _item_names(raw, content.items)
    modality = Modality(
        name="lab", bit=0, kind="sequence", shape=(2,), irregular=True, time_unit="hours since the first visit",
        description=LAB,
    )  # fmt: skip
    observed = Counter[str]()

    def batches() -> Iterator[pa.RecordBatch]:
        for group in content.groups():
            if not len(group["rank"]):
                continue
            present, lengths = np.unique(group["rank"], return_counts=True)
            observed["patients"] += len(present)
            observed["steps"] += len(group["rank"])
            observed["cells"] += len(np.unique(group["rank"] * len(names) + group["level"]))
            values = np.stack([group["level"].astype(np.float32), group["value"]], axis=1)
            yield sequence_batch(modality, ids[present].tolist(), values, group["hours"], lengths)

    def dictionary() -> pl.DataFrame:
        say(f"mimic {content.report('lab')}")
        share = 1 - observed["cells"] / max(1, len(ids) * len(names))
        say(f"mimic lab: {observed['steps']:,} measurements of {observed['patients']:,} patients, {len(names):,} items; "
            f"{observed['cells'] / max(1, observed['patients']):.1f} items a patient, {share:.3%} of the patient-item "
            "cells are empty [the paper: 125.6 of 2,172, 94.216 %]")  # fmt: skip
        label = pl.concat_str("code", pl.col("label"), pl.format("[{}]", "unit"), separator=" ")
        counts = {"n_observed": observed["patients"], "n_missing": len(ids) - observed["patients"],
                  "source_file": ", ".join(SOURCES), "modality": "lab", "dtype": "float32"}  # fmt: skip
        return pl.DataFrame(
            [
                {"position": 0, "name": "item", "unit": "", "kind": "event", "levels": names.select(label)["code"].to_list(),
                 "description": "item number, name and unit", "source_column": "itemid", **counts},
                {"position": 1, "name": "value", "unit": "", "kind": "numeric", "levels": None,
                 "description": content.report("measurements"), "source_column": "valuenum, value, valueuom", **counts},
            ],
            schema=DICTIONARY_SCHEMA,
        )  # fmt: skip

    return Features(modality=modality, batches=batches(), dictionary=dictionary)


def summarise(group: Group, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ranks (n,) of a group, and (n, n_items · 5): last, mean, min, max (NaN where never measured) and count."""
    order = np.lexsort((group["hours"], group["level"], group["rank"]))
    rank, level, value = group["rank"][order], group["level"][order], group["value"][order].astype(np.float64)
    key = rank * n_items + level
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    n = np.diff(starts, append=len(key))
    present, row = np.unique(rank[starts], return_inverse=True)
    out = np.full((len(present), n_items, len(STATISTICS)), np.nan, dtype=np.float32)
    out[:, :, STATISTICS.index("count")] = 0.0
    cells = (
        value[starts + n - 1], np.add.reduceat(value, starts) / n, np.minimum.reduceat(value, starts),
        np.maximum.reduceat(value, starts), n,
    )  # fmt: skip
    out[row, level[starts]] = np.stack(cells, axis=1)
    return present, out.reshape(len(present), -1)


def read_summary(raw: Path, samples: pl.DataFrame, options: MimicOptions, parts: Sequence[Path]) -> Features:
    """Summary statistics of every patient and item."""
    content = Parts(parts, options)
    ids, names = _ids(samples), _item_names(raw, content.items)
    n_items = len(names)
    modality = Modality(
        name="lab_summary", bit=3, kind="vector", shape=(n_items * len(STATISTICS),), description=SUMMARY
    )
    having = np.zeros(n_items, dtype=np.int64)
    total = Counter[str]()

    def batches() -> Iterator[pa.RecordBatch]:
        for group in content.groups():
            if not len(group["rank"]):
                continue
            present, x = summarise(group, n_items)
            having[:] += (x.reshape(len(x), n_items, -1)[:, :, -1] > 0).sum(axis=0)
            total["patients"] += len(present)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), modality.size)
            yield pa.RecordBatch.from_arrays([pa.array(ids[present].tolist(), type=pa.string()), flat],
                                             schema=modality.arrow_schema())  # fmt: skip

    def dictionary() -> pl.DataFrame:
        wrong, again = content.set_aside["impossible value"], content.set_aside["same again"]
        notes = pl.Series([
            "".join(f"; {n} {what} set aside" for n, what in ((w, "impossible"), (a, "repeated")) if n)
            for w, a in zip(wrong.tolist(), again.tolist(), strict=True)
        ], dtype=pl.String)  # fmt: skip
        one = names.with_row_index("item").with_columns(
            (pl.col("label") + notes).alias("description"), pl.Series("n_observed", having)
        )
        return (
            one.join(pl.DataFrame({"statistic": STATISTICS}).with_row_index("s"), how="cross").sort("item", "s")
            .with_row_index("position")
            .select(
                pl.lit("lab_summary").alias("modality"), "position",
                pl.format("{} {}", "code", "statistic").alias("name"), pl.lit("float32").alias("dtype"),
                pl.when(pl.col("statistic") == "count").then(pl.lit("")).otherwise("unit").alias("unit"),
                pl.lit("summary").alias("kind"), pl.lit(None, dtype=pl.List(pl.String)).alias("levels"), "description",
                pl.col("source").alias("source_file"), pl.lit("valuenum").alias("source_column"), "n_observed",
                (total["patients"] - pl.col("n_observed")).alias("n_missing"),
            )
        )  # fmt: skip

    return Features(modality=modality, batches=batches(), dictionary=dictionary)


def prepare_summary(
    raw: Path, samples: pl.DataFrame, options: MimicOptions, part: int, n_parts: int, out: Path
) -> None:
    """The parts of lab_summary are those of lab: where that one lies beside it and is current, it is taken."""
    sibling = out.parent.parent / "lab" / out.name
    mark = fingerprint(list(event_files(raw, options).values()), raw, samples, options)
    if sibling.is_file() and json.loads(read_metadata(sibling)[PART_KEY])["fingerprint"] == mark:
        with replacing(out) as temporary:
            shutil.copyfile(sibling, temporary)
        return
    prepare_events(raw, samples, options, part, n_parts, out)


def n_shards(options: MimicOptions) -> int:
    """Parts of the measurements."""
    return options.n_shards


Reader = Callable[..., Features]
