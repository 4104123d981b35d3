"""cohort: cohort selection, labels and attrition."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.kept import keeping
from mrpipe.schema import ATTRITION_SCHEMA, Cohort, Dataset
from mrpipe.stages.reads import record_reads, require_unchanged, step_options
from mrpipe.store.layout import WorkLayout
from mrpipe.store.parquet import write_frame

LABEL_PREFIX = "label."


def validate(dataset: Dataset, cohort: Cohort) -> None:
    """Check the contract of a cohort builder; a violation is a bug of the dataset package, not of the export."""
    samples = cohort.samples
    for column in ("sample_id", "subject_id"):
        if samples.schema.get(column) != pl.String or samples[column].null_count():
            raise AssertionError(f"{dataset.name}: cohort column {column} must be a String without nulls")
    if samples["sample_id"].is_duplicated().any():
        raise AssertionError(f"{dataset.name}: cohort has repeated sample ids")
    if cohort.attrition.schema != ATTRITION_SCHEMA or cohort.attrition["n_after"][-1] != len(samples):
        raise AssertionError(f"{dataset.name}: attrition must end with the {len(samples)} samples of the cohort")
    if set(cohort.labels) != {t.name for t in dataset.tasks}:
        raise AssertionError(f"{dataset.name}: labels {sorted(cohort.labels)} do not match the declared tasks")


def build_cohort(dataset: Dataset, raw: Path, work: Path, settings: Mapping[str, Any]) -> int:
    """Write `cohort.parquet` (samples, and a column `label.<task>` per task) and `attrition.parquet`; returns n."""
    options, own = step_options(dataset, "cohort", settings, work)
    dataset = dataset.declared(raw, options)
    with keeping(WorkLayout(work).kept):
        cohort = dataset.cohort(raw, own)
    require_unchanged(work)
    validate(dataset, cohort)
    frame = cohort.samples
    for task in dataset.tasks:
        dtype = pl.Int8 if task.kind == "classification" else pl.Float32
        label = cohort.labels[task.name].select(
            "sample_id", pl.col("value").cast(dtype).alias(LABEL_PREFIX + task.name)
        )
        frame = frame.join(label, on="sample_id", how="left", validate="1:1")
    paths = WorkLayout(work)
    write_frame(paths.attrition, cohort.attrition)
    write_frame(paths.cohort, frame.sort("sample_id"))
    paths.record(paths.attrition, paths.cohort)
    record_reads(dataset, "cohort", options, work)
    return len(frame)


def read_cohort(work: Path) -> pl.DataFrame:
    """Read the samples of a cohort without labels, which readers of modalities must not see."""
    paths = WorkLayout(work)
    cohort = pl.read_parquet(paths.require(paths.cohort, "cohort"))
    return cohort.select(pl.exclude(f"^{LABEL_PREFIX.replace('.', '[.]')}.*$"))
