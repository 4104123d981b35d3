"""Modalities lab (irregular sequence) and lab_summary (vector), from the part files written by `events`.

lab: each step is one measurement, x = [index of the item in the levels of the dictionary, value], with the time in
hours since the first admission; each item has one unit. lab_summary: last, mean, min, max and count per item. Both
include all items of the cohort; transforms fitted on training rows select those that a model uses.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mrpipe.datasets.events import STATISTICS, EventBatches, event_modality
from mrpipe.datasets.features import dictionary_of
from mrpipe.datasets.mimic.events import ITEM_BASE, SOURCES
from mrpipe.datasets.mimic.harmonise import CohortItems, Parts
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.tables import open_optional
from mrpipe.schema import Features

_LOG = logging.getLogger(__name__)
LAB = "laboratory results and charted vital signs, one step per measurement: [position in levels, value], hours"
SUMMARY = "per item: last, mean, min, max and count of the patient's measurements (items without any are omitted)"
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


def read_lab(raw: Path, samples: pl.DataFrame, options: MimicOptions, parts: Sequence[Path]) -> Features:
    """Measurements of each patient as an irregular sequence, from labevents and chartevents (see `prepare_events`)."""
    content = Parts(parts, samples, options)
    names = _item_names(raw, content.items, options)
    label = pl.concat_str("code", pl.col("label"), pl.format("[{}]", "unit"), separator=" ")
    levels = names.select(label)["code"].to_list()
    modality = event_modality("lab", 0, levels, "hours since the first visit", LAB)
    events = EventBatches(modality, samples["sample_id"].sort(), len(levels))

    def dictionary() -> pl.DataFrame:
        _LOG.info(f"mimic {content.report('lab')}")
        cells = events.observed.sum()
        _LOG.info(
            f"mimic lab: {events.n_events:,} measurements of {events.n_samples:,} patients; "
            f"{cells / max(1, events.n_samples):.1f} of {len(names):,} items per patient, "
            f"{1 - cells / max(1, len(samples) * len(names)):.3%} of the patient-item cells are empty "
            "[paper: 125.6 of 2,172, 94.216 %]"
        )
        columns = {
            "name": ["item", "value"],
            "kind": ["event", "numeric"],
            "levels": [levels, None],
            "source_column": ["itemid", "valuenum, value, valueuom"],
            "description": ["item number, name and unit", content.report("measurements")],
        }
        return dictionary_of("lab", ", ".join(SOURCES), columns, events.n_samples, len(samples))

    return Features(modality=modality, batches=events.batches(content.groups()), dictionary=dictionary)


def read_summary(raw: Path, samples: pl.DataFrame, options: MimicOptions, parts: Sequence[Path]) -> Features:
    """Summary statistics per patient and item, from labevents and chartevents (see `prepare_events`)."""
    content = Parts(parts, samples, options)
    names = _item_names(raw, content.items, options)
    codes = names["code"].to_list()
    modality = event_modality("lab_summary", 3, codes, "", SUMMARY, STATISTICS)
    events = EventBatches(modality, samples["sample_id"].sort(), len(codes), STATISTICS)

    def dictionary() -> pl.DataFrame:
        reasons = {"impossible": content.set_aside["impossible value"], "repeated": content.set_aside["repeated"]}
        notes = [
            label + "".join(f"; {n[i]} {reason} set aside" for reason, n in reasons.items() if n[i])
            for i, label in enumerate(names["label"])
        ]
        columns = {"name": codes, "unit": names["unit"], "kind": "summary", "description": notes}
        columns |= {"source_file": names["source"], "source_column": "valuenum"}
        return dictionary_of("lab_summary", "", columns, events.observed, events.n_samples, STATISTICS)

    return Features(modality=modality, batches=events.batches(content.groups()), dictionary=dictionary)
