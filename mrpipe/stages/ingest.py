"""ingest: stream the features of one modality into the store's table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mrpipe.errors import UsageError
from mrpipe.kept import keeping
from mrpipe.schema import DICTIONARY_SCHEMA, MODALITY_KEY, TRIED_SCHEMA, Dataset, Features
from mrpipe.stages.cohort import read_cohort
from mrpipe.stages.prepare import parts_of
from mrpipe.stages.reads import record_reads, require_unchanged, step_options
from mrpipe.store.layout import WorkLayout
from mrpipe.store.parquet import write_batches, write_frame


def _validated(features: Features, cohort_ids: pa.Array) -> Iterator[pa.RecordBatch]:
    """Yield the batches after checking schema and ids: strictly ascending and part of the cohort."""
    name, schema = features.modality.name, features.modality.arrow_schema()
    last: str | None = None
    for batch in features.batches:
        if batch.schema.remove_metadata() != schema:
            raise AssertionError(f"{name}: batch schema {batch.schema} is not the declared {schema}")
        if batch.num_rows == 0:
            continue
        ids = batch.column("sample_id")
        values = ids.to_numpy(zero_copy_only=False).astype(str)
        if (np.r_[values[:-1] >= values[1:], last is not None and last >= values[0]]).any():
            raise AssertionError(f"{name}: sample ids must be strictly ascending")
        if not pc.all(pc.is_in(ids, cohort_ids)).as_py():
            raise AssertionError(f"{name}: a sample id is not in the cohort")
        last = str(values[-1])
        yield batch


def ingest(dataset: Dataset, modality: str, raw: Path, work: Path, settings: Mapping[str, Any]) -> int:
    """Write the table (to `WORK/store`), dictionary rows and attempts of a modality; returns the number of rows."""
    step, paths = f"{modality}.ingest", WorkLayout(work)
    options, own = step_options(dataset, step, settings, work)
    dataset = dataset.declared(raw, options)
    if modality not in dataset.modalities:
        raise UsageError(f"{dataset.name} has no modality {modality!r}; it has {', '.join(dataset.modalities)}")
    cohort, reader = read_cohort(work), dataset.modalities[modality]
    source, n_parts = parts_of(dataset, modality, settings)
    parts = [paths.part(source, k, n_parts) for k in range(n_parts)]
    if missing := [p.name for p in parts if not p.exists()]:
        raise UsageError(
            f"{modality}: {len(missing)} of {n_parts} parts are not prepared ({missing[0]}); "
            f"run mrpipe prepare {dataset.name} {source} --part K for each"
        )
    for k, part in enumerate(parts):
        paths.require(part, f"prepare {dataset.name} {source} --part {k}")
    with keeping(paths.kept):
        features = reader.read(raw, cohort, own, *([parts] if parts else []))
    declared = features.modality
    if declared.name != modality or declared.bit != dataset.modalities[modality].bit:
        raise AssertionError(f"{dataset.name}/{modality}: the reader returned {declared.name} at bit {declared.bit}")
    ids = cohort["sample_id"].to_arrow().cast(pa.string())
    table = paths.store.modality(modality)
    n_rows = write_batches(
        table,
        declared.arrow_schema(),
        _validated(features, ids),
        metadata={MODALITY_KEY: declared.to_json()},
        row_group_rows=64 if declared.encoding == "packed2" else None,
        compression_level=1 if declared.kind in ("genotype", "image", "volume") else 3,
    )
    require_unchanged(work, table)
    dictionary = features.dictionary() if callable(features.dictionary) else features.dictionary
    frame = dictionary.select(pl.col(c).cast(t) for c, t in DICTIONARY_SCHEMA.items())
    write_frame(paths.dictionary(modality), frame)
    attempts = features.tried() if features.tried else pl.DataFrame(schema=TRIED_SCHEMA)
    if (found := {c: attempts.schema.get(c) for c in TRIED_SCHEMA}) != dict(TRIED_SCHEMA):
        raise AssertionError(f"{modality}: attempts have {found}, not {TRIED_SCHEMA}")
    write_frame(paths.tried(modality), attempts)
    paths.record(table, paths.dictionary(modality), paths.tried(modality))
    record_reads(dataset, step, options, work)
    return n_rows
