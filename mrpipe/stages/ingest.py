"""ingest: stream the features of one modality into the store's table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from mrpipe.errors import UsageError
from mrpipe.kept import keeping
from mrpipe.schema import DICTIONARY_SCHEMA, MODALITY_KEY, TRIED_SCHEMA, Dataset, Features
from mrpipe.stages.cohort import read_cohort
from mrpipe.stages.prepare import parts_of
from mrpipe.stages.reads import record_reads, require_unchanged, step_options
from mrpipe.store.layout import WorkLayout
from mrpipe.store.parquet import write_batches, write_frame


def _validated(features: Features, cohort_ids: pl.Series) -> Iterator[pa.RecordBatch]:
    """Yield the batches after checking schema and ids: strictly ascending and part of the cohort (n,), ascending."""
    name, schema = features.modality.name, features.modality.arrow_schema()
    last: str | None = None
    for batch in features.batches:
        if batch.schema.remove_metadata() != schema:
            raise AssertionError(f"{name}: batch schema {batch.schema} is not the declared {schema}")
        if batch.num_rows == 0:
            continue
        ids = pl.Series(batch.column("sample_id"))
        if (ids.head(-1) >= ids[1:]).any() or (last is not None and last >= ids[0]):
            raise AssertionError(f"{name}: sample ids must be strictly ascending")
        # A search in the sorted ids, because `is_in` would index all of them for each batch.
        place = cohort_ids.search_sorted(ids).clip(upper_bound=len(cohort_ids) - 1)
        if cohort_ids.gather(place).ne_missing(ids).any():
            raise AssertionError(f"{name}: a sample id is not in the cohort")
        last = ids[-1]
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
    table = paths.store.modality(modality)
    n_rows = write_batches(
        table,
        declared.arrow_schema(),
        _validated(features, cohort["sample_id"].sort()),
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
