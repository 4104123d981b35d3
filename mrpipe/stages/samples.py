"""samples: combine cohort and modalities into masks, row indices and labels."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mrpipe.errors import DataError, Fault
from mrpipe.reading import reading
from mrpipe.schema import ATTRITION_SCHEMA, MODALITY_KEY, TASK_KEY, Attrition, Dataset, Modality
from mrpipe.stages.cohort import LABEL_PREFIX
from mrpipe.stages.declaration import checked_dataset
from mrpipe.store.layout import WorkLayout
from mrpipe.store.parquet import read_metadata, write_frame
from mrpipe.store.splits import label_faults


def losses(modality: str, attempts: pl.DataFrame) -> pl.DataFrame:
    """Attrition of one modality: rows of the attrition table, one per reason, with the column `modality`.

    Samples without a successful attempt lose the modality and count under the reason of their first attempt.

    Args:
        attempts: frame of `TRIED_SCHEMA`, sorted by sample and attempt.
    """
    first = attempts.group_by("sample_id", maintain_order=True).agg(
        (pl.col("status") == "ok").any().alias("good"), pl.col("reason").first()
    )
    counts = first.filter(~pl.col("good"))["reason"].value_counts().sort("count", "reason", descending=[True, False])
    flow = Attrition(len(first), f"samples with {modality} in the export")
    left = len(first)
    for reason, n in counts.iter_rows():
        left -= n
        flow.step(reason, left)
    return flow.frame().with_columns(pl.lit(modality).alias("modality"))


def assemble_samples(dataset: Dataset, work: Path, modalities: Sequence[str]) -> int:
    """Write samples.parquet, labels/*.parquet and attrition.parquet to `WORK/store`; returns the number of samples.

    Samples without any of `modalities` are removed and counted in the attrition table, which also counts, per modality,
    the samples for which all attempts failed.

    Raises:
        UsageError: the cohort or a modality has not been built.
        DataError: no sample has a modality, or a class declared by the export has a single member.
    """
    working = WorkLayout(work)
    paths, dataset = working.store, checked_dataset(dataset, work)
    cohort = pl.read_parquet(working.require(working.cohort, "cohort"))
    for name in modalities:
        for path in (paths.modality(name), working.tried(name)):
            working.require(path, f"ingest {dataset.name} {name}")
    frame = cohort.select(pl.exclude(f"^{LABEL_PREFIX.replace('.', '[.]')}.*$"))
    mask = pl.lit(0, dtype=pl.UInt16)
    read = (Modality.from_json(read_metadata(paths.modality(m))[MODALITY_KEY]) for m in modalities)
    declared = sorted(read, key=lambda m: m.bit)
    for modality in declared:
        path = paths.modality(modality.name)
        with reading(path, "one row per sample", f"Run mrpipe ingest {dataset.name} {modality.name} again."):
            rows = pl.read_parquet(path, columns=["sample_id"]).with_row_index(f"row_{modality.name}")
            rows = rows.with_columns(pl.col(f"row_{modality.name}").cast(pl.Int32))
            frame = frame.join(rows, on="sample_id", how="left", validate="1:1")
        bit = pl.col(f"row_{modality.name}").is_not_null().cast(pl.UInt16) * pl.lit(1 << modality.bit, dtype=pl.UInt16)
        mask = mask | bit
    frame = frame.with_columns(mask.alias("modality_mask"))
    observed = frame.filter(pl.col("modality_mask") != 0).sort("sample_id")
    if observed.is_empty():
        expected, found = "at least one sample with a modality", f"none of the {len(frame)} samples of the cohort"
        fix = "Check that the modality files belong to this export."
        raise DataError(Fault(file=f"{dataset.name} export", expected=expected, found=found, fix=fix))
    attrition = pl.read_parquet(working.require(working.attrition, "cohort"))
    step = (len(attrition), "no modality observed", int(attrition["n_after"][-1]), len(observed))
    attrition = pl.concat([attrition, pl.DataFrame([step], schema=ATTRITION_SCHEMA, orient="row")])
    attrition = attrition.with_columns(pl.lit(None, pl.String).alias("modality"))
    attempts = {m.name: pl.read_parquet(working.tried(m.name)) for m in declared}
    attrition = pl.concat([attrition, *(losses(name, frame) for name, frame in attempts.items() if len(frame))])
    index = [f"row_{m.name}" for m in declared]
    first = ["sample_id", "subject_id", "modality_mask", *index]
    kept_rows = cohort.join(observed, on="sample_id", how="semi").sort("sample_id")
    labels = {
        t.name: kept_rows.select("sample_id", pl.col(LABEL_PREFIX + t.name).alias("value")).drop_nulls()
        for t in dataset.tasks
    }
    # Of a published dataset, the classes are fixed: `check` notes the small ones.
    if dataset.resolve is not None and (faults := list(label_faults(dataset.tasks, labels))):
        raise DataError(faults)
    for task in dataset.tasks:
        task_json = json.dumps(dataclasses.asdict(task), sort_keys=True)
        write_frame(paths.labels(task.name), labels[task.name], metadata={TASK_KEY: task_json})
    write_frame(paths.attrition, attrition)
    write_frame(paths.samples, observed.select(*first, pl.exclude(first)))
    working.record(paths.samples, paths.attrition, *(paths.labels(t.name) for t in dataset.tasks))
    return len(observed)
