"""samples: bring cohort and modalities together; the mask, the row index and the labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mrpipe.errors import DataError, Fault
from mrpipe.schema import ATTRITION_SCHEMA, MODALITY_KEY, Attrition, Dataset, Modality
from mrpipe.stages.cohort import LABEL_PREFIX
from mrpipe.stages.declaration import SCHEMES_KEY, recall, schemes_json
from mrpipe.store.layout import StoreLayout, WorkLayout, made_by
from mrpipe.store.parquet import read_metadata, write_frame


def read_modality_declaration(path: Path) -> Modality:
    """The declaration that ingest wrote into a modality table."""
    return Modality.from_json(read_metadata(path)[MODALITY_KEY])


def losses(modality: str, tried: pl.DataFrame) -> pl.DataFrame:
    """Rows of the attrition table for the samples that lost a modality, one a reason, and `modality`.

    A sample is lost where no attempt was good, and counts under the reason of its first one.

    Args:
        tried: `TRIED_SCHEMA`, sorted by sample and attempt.
    """
    first = tried.group_by("sample_id", maintain_order=True).agg(
        (pl.col("status") == "ok").any().alias("good"), pl.col("reason").first()
    )
    counts = first.filter(~pl.col("good"))["reason"].value_counts().sort("count", "reason", descending=[True, False])
    flow = Attrition(len(first), "found in the export")
    left = len(first)
    for reason, n in counts.iter_rows():
        left -= n
        flow.step(f"{modality} left out: {reason}", left)
    return flow.frame().with_columns(pl.lit(modality).alias("modality"))


def assemble_samples(dataset: Dataset, work: Path, store: Path, modalities: Sequence[str]) -> int:
    """Write `samples.parquet`, `labels/*.parquet` and `attrition.parquet`; returns the number of samples.

    Samples without any of `modalities` are removed here and counted in the attrition table; so are samples whose
    every attempt at a modality failed, in rows that name the modality. Modality tables and labels that a former build
    with other settings left in the store are deleted.

    Raises:
        UsageError: the cohort, or one of the modalities, is not there yet.
        DataError: no sample has a modality.
    """
    paths, working = StoreLayout(store), WorkLayout(work)
    dataset = recall(dataset, work)
    cohort = pl.read_parquet(made_by(working.cohort, "cohort"))
    for name in modalities:
        for path in (paths.modality(name), working.tried(name)):
            made_by(path, f"ingest {dataset.name} {name}")
    paths.unseal()
    kept = {paths.modality(m) for m in modalities} | {paths.labels(t.name) for t in dataset.tasks}
    for folder in ("modalities", "labels"):
        for left in sorted((store / folder).glob("*.parquet")):
            if left not in kept:
                left.unlink()
    frame = cohort.select(pl.exclude(f"^{LABEL_PREFIX.replace('.', '[.]')}.*$"))
    mask = pl.lit(0, dtype=pl.UInt16)
    declared = sorted((read_modality_declaration(paths.modality(m)) for m in modalities), key=lambda m: m.bit)
    for modality in declared:
        rows = (
            pl.read_parquet(paths.modality(modality.name), columns=["sample_id"])
            .with_row_index(f"row_{modality.name}")
            .with_columns(pl.col(f"row_{modality.name}").cast(pl.Int32))
        )
        frame = frame.join(rows, on="sample_id", how="left", validate="1:1")
        bit = pl.col(f"row_{modality.name}").is_not_null().cast(pl.UInt16) * pl.lit(1 << modality.bit, dtype=pl.UInt16)
        mask = mask | bit
    frame = frame.with_columns(mask.alias("modality_mask"))
    observed = frame.filter(pl.col("modality_mask") != 0).sort("sample_id")
    if observed.is_empty():
        raise DataError(
            Fault(
                file=f"{dataset.name} export",
                expected="at least one sample with a modality",
                found="none",
                fix=f"{len(frame)} samples are in the cohort; do the modality files belong to this export?",
            )
        )
    attrition = pl.read_parquet(working.attrition)
    step = (len(attrition), "no modality observed", int(attrition["n_after"][-1]), len(observed))
    attrition = pl.concat([attrition, pl.DataFrame([step], schema=ATTRITION_SCHEMA, orient="row")])
    attrition = attrition.with_columns(pl.lit(None, pl.String).alias("modality"))
    attempts = {m.name: pl.read_parquet(working.tried(m.name)) for m in declared}
    attrition = pl.concat([attrition, *(losses(name, tried) for name, tried in attempts.items() if len(tried))])
    index = [f"row_{m.name}" for m in declared]
    first = ["sample_id", "subject_id", "modality_mask", *index]
    for task in dataset.tasks:
        column = LABEL_PREFIX + task.name
        label = cohort.select("sample_id", pl.col(column).alias("value")).drop_nulls()
        write_frame(
            paths.labels(task.name),
            label.join(observed.select("sample_id"), on="sample_id", how="semi").sort("sample_id"),
        )
    write_frame(paths.attrition, attrition)
    metadata = None if dataset.resolve is None else {SCHEMES_KEY: json.dumps(schemes_json(dataset), sort_keys=True)}
    write_frame(paths.samples, observed.select(*first, pl.exclude(first)), metadata=metadata)
    return len(observed)
