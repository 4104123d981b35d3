"""Modalities lab (irregular sequence) and lab_summary (one vector a patient), from the parts that `events` wrote.

lab: a step is one measurement, x = [position of the item in the dictionary's levels, value], time in hours since the
first visit's admission; values are in one unit an item. lab_summary: per item last, mean, min, max and count.
Both keep every item that the cohort has; which of them a model sees is a transform fitted on training rows.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.mimic.codes import sequence_batch
from mrpipe.datasets.mimic.events import ITEM_BASE, PART_KEY, SOURCES, event_files, fingerprint, prepare_events
from mrpipe.datasets.mimic.harmonise import CohortItems, Group, Parts
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.progress import say
from mrpipe.datasets.mimic.tables import open_optional
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality
from mrpipe.store.parquet import read_metadata, replacing
from mrpipe.transforms.events import levels_id

LAB = "laboratory results and charted vital signs, one step a measurement: [position in levels, value], hours"
SUMMARY = "per item: last, mean, min, max and count of the patient's measurements (items that no one has are absent)"
STATISTICS = ("last", "mean", "min", "max", "count")
_PREFIX = {"labevents": "lab", "chartevents": "chart"}


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


def _item_names(raw: Path, items: CohortItems) -> pl.DataFrame:
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
    content = Parts(parts, samples, options)
    ids, names = _ids(samples), _item_names(raw, content.items)
    label = pl.concat_str("code", pl.col("label"), pl.format("[{}]", "unit"), separator=" ")
    levels = names.select(label)["code"].to_list()
    modality = Modality(
        name="lab",
        bit=0,
        kind="sequence",
        shape=(2,),
        irregular=True,
        time_unit="hours since the first visit",
        encoder=levels_id(levels),
        description=LAB,
    )
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
        say(
            f"mimic lab: {observed['steps']:,} measurements of {observed['patients']:,} patients, "
            f"{len(names):,} items; "
            f"{observed['cells'] / max(1, observed['patients']):.1f} items a patient, {share:.3%} of the patient-item "
            "cells are empty [the paper: 125.6 of 2,172, 94.216 %]"
        )
        counts = {
            "n_observed": observed["patients"],
            "n_missing": len(ids) - observed["patients"],
            "source_file": ", ".join(SOURCES),
            "modality": "lab",
            "dtype": "float32",
        }
        return pl.DataFrame(
            [
                {
                    "position": 0,
                    "name": "item",
                    "unit": "",
                    "kind": "event",
                    "levels": levels,
                    "description": "item number, name and unit",
                    "source_column": "itemid",
                    **counts,
                },
                {
                    "position": 1,
                    "name": "value",
                    "unit": "",
                    "kind": "numeric",
                    "levels": None,
                    "description": content.report("measurements"),
                    "source_column": "valuenum, value, valueuom",
                    **counts,
                },
            ],
            schema=DICTIONARY_SCHEMA,
        )

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
        value[starts + n - 1],
        np.add.reduceat(value, starts) / n,
        np.minimum.reduceat(value, starts),
        np.maximum.reduceat(value, starts),
        n,
    )
    out[row, level[starts]] = np.stack(cells, axis=1)
    return present, out.reshape(len(present), -1)


def read_summary(raw: Path, samples: pl.DataFrame, options: MimicOptions, parts: Sequence[Path]) -> Features:
    """Summary statistics of every patient and item."""
    content = Parts(parts, samples, options)
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
            yield pa.RecordBatch.from_arrays(
                [pa.array(ids[present].tolist(), type=pa.string()), flat], schema=modality.arrow_schema()
            )

    def dictionary() -> pl.DataFrame:
        wrong, again = content.set_aside["impossible value"], content.set_aside["same again"]
        notes = pl.Series(
            [
                "".join(f"; {n} {what} set aside" for n, what in ((w, "impossible"), (a, "repeated")) if n)
                for w, a in zip(wrong.tolist(), again.tolist(), strict=True)
            ],
            dtype=pl.String,
        )
        one = names.with_row_index("item").with_columns(
            (pl.col("label") + notes).alias("description"), pl.Series("n_observed", having)
        )
        return (
            one.join(pl.DataFrame({"statistic": STATISTICS}).with_row_index("s"), how="cross")
            .sort("item", "s")
            .with_row_index("position")
            .select(
                pl.lit("lab_summary").alias("modality"),
                "position",
                pl.format("{} {}", "code", "statistic").alias("name"),
                pl.lit("float32").alias("dtype"),
                pl.when(pl.col("statistic") == "count").then(pl.lit("")).otherwise("unit").alias("unit"),
                pl.lit("summary").alias("kind"),
                pl.lit(None, dtype=pl.List(pl.String)).alias("levels"),
                "description",
                pl.col("source").alias("source_file"),
                pl.lit("valuenum").alias("source_column"),
                "n_observed",
                (total["patients"] - pl.col("n_observed")).alias("n_missing"),
            )
        )

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
