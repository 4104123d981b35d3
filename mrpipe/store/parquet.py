"""Atomic, deterministic Parquet writer: row groups of about 32 MiB, zstd, statistics on key columns only."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpipe.locks import temporary_name
from mrpipe.privacy import NUMBER

ROW_GROUP_BYTES = 32 * 2**20
_FORMULA = r"^[=+\-@\t\r]"
KEY_COLUMNS = frozenset({"sample_id", "subject_id", "modality_mask"})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context of an atomic write: a temporary path, renamed to `path` on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, frame: pl.DataFrame) -> None:
    """Write a CSV file atomically; texts and names that a spreadsheet would run as a formula get an apostrophe."""
    formula = (text := pl.col(pl.String)).str.contains(_FORMULA) & ~text.str.contains(NUMBER)
    with replacing(path) as temporary:
        safe = frame.with_columns(pl.when(formula).then("'" + text).otherwise(text).name.keep())
        safe.rename(lambda name: f"'{name}" if re.match(_FORMULA, name) else name).write_csv(temporary)


def _is_float(dtype: pa.DataType) -> bool:
    while pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype) or pa.types.is_large_list(dtype):
        dtype = dtype.value_type
    return bool(pa.types.is_floating(dtype))


def _small_strings(schema: pa.Schema) -> pa.Schema:
    """Replace large_string and string_view, which Polars writes, by string, which every reader supports."""
    names = {pa.large_string(): pa.string(), pa.string_view(): pa.string(), pa.large_binary(): pa.binary()}
    return pa.schema([f.with_type(names.get(f.type, f.type)) for f in schema])


def write_batches(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    metadata: Mapping[str, str] | None = None,
    row_group_rows: int | None = None,
    compression_level: int = 3,
) -> int:
    """Stream record batches to a file; returns the number of rows.

    Args:
        schema: Arrow schema of the batches.
        metadata: key-value metadata of the file.
        row_group_rows: rows per row group; default: about 32 MiB, estimated from the first batch.
        compression_level: zstd level.
    """
    keys = [f.name for f in schema if f.name in KEY_COLUMNS]
    encoded = [f.name for f in schema if not _is_float(f.type) and not pa.types.is_binary(f.type)]
    schema = schema.with_metadata({k.encode(): v.encode() for k, v in (metadata or {}).items()})
    n_rows = 0
    pending: list[pa.RecordBatch] = []
    pending_rows = 0
    with replacing(path) as temporary:
        form: dict[str, Any] = {"compression": "zstd", "compression_level": compression_level, "store_schema": True}
        form |= {"use_dictionary": encoded or False, "write_statistics": keys or False}
        writer = pq.ParquetWriter(temporary, schema, **form)
        try:
            for batch in batches:
                batch = batch.cast(schema) if batch.schema != schema else batch
                if row_group_rows is None and batch.num_rows:
                    row_group_rows = max(1, int(ROW_GROUP_BYTES * batch.num_rows / max(batch.nbytes, 1)))
                pending.append(batch)
                pending_rows += batch.num_rows
                n_rows += batch.num_rows
                while row_group_rows is not None and pending_rows >= row_group_rows:
                    table = pa.Table.from_batches(pending, schema)
                    writer.write_table(table.slice(0, row_group_rows), row_group_size=row_group_rows)
                    rest = table.slice(row_group_rows)
                    pending, pending_rows = rest.to_batches(), rest.num_rows
            if pending_rows:
                writer.write_table(pa.Table.from_batches(pending, schema))
        finally:
            writer.close()
    return n_rows


def write_frame(path: Path, frame: pl.DataFrame, *, metadata: Mapping[str, str] | None = None) -> int:
    """Write a polars frame (samples, labels, splits, dictionary, attrition); returns the number of rows."""
    table = frame.to_arrow()
    table = table.cast(_small_strings(table.schema)).combine_chunks()
    rows = max(1, min(table.num_rows, 2**20))
    return write_batches(path, table.schema, table.to_batches(), metadata=metadata, row_group_rows=rows)


def read_metadata(path: Path) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (pq.read_metadata(path).metadata or {}).items() if k != b"ARROW:schema"}
