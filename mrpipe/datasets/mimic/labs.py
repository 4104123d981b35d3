"""Modalities lab (irregular sequence) and lab_summary (vector), from the part files written by `events`.

lab: each step is one measurement, x = [index of the item in the levels of the dictionary, value], with the time in
hours since the first admission; each item has one unit. lab_summary: last, mean, min, max and count per item. Both
include all items of the cohort; transforms fitted on training rows select those that a model uses.
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

from mrpipe.datasets.mimic.codes import sequence_batch, step_dictionary
from mrpipe.datasets.mimic.events import ITEM_BASE, PART_KEY, SOURCES, event_files, input_hash, prepare_events
from mrpipe.datasets.mimic.harmonise import CohortItems, Group, Parts
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.progress import log
from mrpipe.datasets.mimic.tables import open_optional
from mrpipe.schema import Features, Modality
from mrpipe.store.parquet import read_metadata, replacing
from mrpipe.transforms.events import levels_id

LAB = "laboratory results and charted vital signs, one step per measurement: [position in levels, value], hours"
SUMMARY = "per item: last, mean, min, max and count of the patient's measurements (items without any are omitted)"
STATISTICS = ("last", "mean", "min", "max", "count")
_PREFIX = {"labevents": "lab", "chartevents": "chart"}


def item_table(raw: Path, options: MimicOptions) -> pl.DataFrame:
    """`key, label` of the items in d_labitems and d_items."""
    frames = [pl.DataFrame(schema={"key": pl.Int64, "label": pl.String})]
    for source, table in (("labevents", "hosp/d_labitems"), ("chartevents", "icu/d_items")):
        names = open_optional(raw, table, options)
        if names is not None:
            kind = pl.col("fluid") if "fluid" in names.columns else pl.lit(None, dtype=pl.String)
            label = pl.concat_str("label", kind, separator=", ", ignore_nulls=True)
            key = pl.col("itemid") + SOURCES.index(source) * ITEM_BASE
            frames.append(names.select(key.alias("key"), label.alias("label")))
    return pl.concat(frames).unique("key", keep="first", maintain_order=True)


def _item_names(raw: Path, items: CohortItems, options: MimicOptions) -> pl.DataFrame:
    """One row per level: `code` (lab:50912), `label`, `unit`, `source`."""
    frame = pl.DataFrame({"key": items.items, "unit": items.units}).join(
        item_table(raw, options), on="key", how="left", maintain_order="left"
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
    """Measurements of each patient as an irregular sequence, from labevents and chartevents (see `prepare_events`)."""
    content = Parts(parts, samples, options)
    ids, names = _ids(samples), _item_names(raw, content.items, options)
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
        log(f"mimic {content.report('lab')}")
        share = 1 - observed["cells"] / max(1, len(ids) * len(names))
        log(
            f"mimic lab: {observed['steps']:,} measurements of {observed['patients']:,} patients; "
            f"{observed['cells'] / max(1, observed['patients']):.1f} of {len(names):,} items per patient, "
            f"{share:.3%} of the patient-item cells are empty [paper: 125.6 of 2,172, 94.216 %]"
        )
        rows = (
            ("item", "event", levels, "itemid", "item number, name and unit"),
            ("value", "numeric", None, "valuenum, value, valueuom", content.report("measurements")),
        )
        return step_dictionary("lab", rows, observed["patients"], len(ids), ", ".join(SOURCES))

    return Features(modality=modality, batches=batches(), dictionary=dictionary)


def summarise(group: Group, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ranks (n,) and summaries (n, n_items · 5) float32: last, mean, min, max (NaN if not measured) and count."""
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
    """Summary statistics per patient and item, from labevents and chartevents (see `prepare_events`)."""
    content = Parts(parts, samples, options)
    ids, names = _ids(samples), _item_names(raw, content.items, options)
    n_items = len(names)
    modality = Modality(
        name="lab_summary", bit=3, kind="vector", shape=(n_items * len(STATISTICS),), description=SUMMARY
    )
    n_measured = np.zeros(n_items, dtype=np.int64)
    total = Counter[str]()

    def batches() -> Iterator[pa.RecordBatch]:
        for group in content.groups():
            if not len(group["rank"]):
                continue
            present, x = summarise(group, n_items)
            n_measured[:] += (x.reshape(len(x), n_items, -1)[:, :, -1] > 0).sum(axis=0)
            total["patients"] += len(present)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), modality.size)
            yield pa.RecordBatch.from_arrays(
                [pa.array(ids[present].tolist(), type=pa.string()), flat], schema=modality.arrow_schema()
            )

    def dictionary() -> pl.DataFrame:
        impossible, repeated = content.set_aside["impossible value"], content.set_aside["repeated"]
        notes = pl.Series(
            [
                "".join(f"; {n} {reason} set aside" for n, reason in ((i, "impossible"), (r, "repeated")) if n)
                for i, r in zip(impossible.tolist(), repeated.tolist(), strict=True)
            ],
            dtype=pl.String,
        )
        one = names.with_row_index("item").with_columns(
            (pl.col("label") + notes).alias("description"), pl.Series("n_observed", n_measured)
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
    """Prepare a part of lab_summary, which equals that of lab: copy the part of lab if it is up to date."""
    sibling = out.parent.parent / "lab" / out.name
    current = input_hash(event_files(raw, options), raw, samples, options)
    if sibling.is_file() and json.loads(read_metadata(sibling)[PART_KEY])["fingerprint"] == current:
        with replacing(out) as temporary:
            shutil.copyfile(sibling, temporary)
        return
    prepare_events(raw, samples, options, part, n_parts, out)


def n_shards(options: MimicOptions) -> int:
    """Number of parts in which the measurements are prepared."""
    return options.n_shards
