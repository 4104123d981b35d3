"""Files of a MEDS dataset: shards `data/**/*.parquet`, which are streamed, and metadata."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from mrpipe.budget import require_parquet
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.reading import reading

CODES, SPLITS, ABOUT = "metadata/codes.parquet", "metadata/subject_splits.parquet", "metadata/dataset.json"
TIME = pl.Datetime("us")
SLICE_ROWS = 2**20
_KINDS: dict[Any, tuple[str, Any]] = {
    pl.Int64: ("whole numbers", cs.integer()),
    pl.Float32: ("numbers", cs.numeric()),
    pl.String: ("text", cs.string(include_categorical=True)),
    TIME: ("times without time zone", cs.datetime(time_zone=None)),
    pl.Boolean: ("true or false", cs.boolean()),
}
# Columns by dtype; those with ? may be absent, and are then null.
EVENT = {"subject_id": pl.Int64, "time": TIME, "code": pl.String, "numeric_value?": pl.Float32}


def files_of(raw: Path, name: str) -> list[Path]:
    """A file of the export, or all Parquet files in a folder; none if it does not exist."""
    place = raw / name
    return [place] if place.is_file() else sorted(p for p in place.rglob("*.parquet") if p.is_file())


def scan(raw: Path, name: str, columns: Mapping[str, Any]) -> pl.LazyFrame:
    """These columns of a Parquet file, or of all files in a folder; `run` collects them; see `files`."""
    return pl.concat(files(raw, name, columns))


def slices(raw: Path, columns: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
    """The rows of all shards, a bounded number at a time; `LazyFrame.collect_batches` does not bound its buffer."""
    for frame in files(raw, "data", columns):
        for start in range(0, run(frame.select(pl.len()), "data/").item(), SLICE_ROWS):
            yield frame.slice(start, SLICE_ROWS)


def files(raw: Path, name: str, columns: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """These columns of each file.

    Raises:
        DataError: no file, a damaged one, or one that lacks a column or has it with another dtype.
    """
    faults, frames = FaultCollector(), []
    for path in files_of(raw, name):
        shown, chosen = path.relative_to(raw).as_posix(), []
        if (schema := faults.attempt(_schema, path, shown)) is None:
            continue
        for key, dtype in columns.items():
            column, (expected, known) = key.rstrip("?"), _KINDS[dtype]
            found = f"columns {', '.join(list(schema)[:12])}" if column not in schema else str(schema[column])
            if column not in cs.expand_selector(pl.DataFrame(schema=schema), known) and (
                column in schema or column == key
            ):
                fix = "See the schema at https://github.com/Medical-Event-Data-Standard/meds."
                faults.add(Fault(file=shown, column=column, expected=expected, found=found, fix=fix))
            chosen.append((pl.col(column) if column in schema else pl.lit(None)).cast(dtype).alias(column))
        frames.append(pl.scan_parquet(path).select(chosen))
    if not (frames or faults.faults):
        fix = "Pass the folder that contains data/ and metadata/ with --raw."
        faults.add(Fault(file=name, expected="Parquet files", found="none", fix=fix))
    faults.raise_if_any()
    return frames


def _schema(path: Path, shown: str) -> Mapping[str, Any]:
    with reading(shown, "a whole Parquet file"):
        require_parquet(path, shown)
        return pl.read_parquet_schema(path)


def run(frame: pl.LazyFrame, shown: str) -> pl.DataFrame:
    """Collect with the streaming engine; a damaged page is a DataError."""
    with reading(shown, "whole Parquet files"):
        return frame.collect(engine="streaming")


def read(raw: Path, name: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    """A small file (or folder of files) in memory; nulls in columns without ? are an error."""
    frame = run(scan(raw, name, columns), name)
    for column in (c for c in columns if c in frame.columns):
        require(frame, name, column, pl.col(column).is_null(), _KINDS[columns[column]][0])
    return frame


def require(frame: pl.DataFrame, file: str, column: str, wrong: pl.Expr, expected: str) -> None:
    """Raise a DataError with the first row for which a condition holds."""
    rows = frame.select(wrong.alias("wrong"))["wrong"].arg_true()
    if len(rows):
        found = f"{len(rows)} other rows"
        raise DataError(Fault(file=file, column=column, row=rows[0] + 1, expected=expected, found=found))


def titles(raw: Path, codes: list[str]) -> list[str]:
    """Description of each code in codes.parquet; empty for those without one."""
    known: dict[str, str] = {}
    if (raw / CODES).is_file():
        table = read(raw, CODES, {"code": pl.String, "description?": pl.String}).drop_nulls()
        known = dict(zip(table["code"], table["description"], strict=True))
    return [" ".join(known.get(code, "").split()) for code in codes]
