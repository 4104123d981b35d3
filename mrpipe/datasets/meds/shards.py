"""Files of a MEDS dataset: shards `data/**/*.parquet`, of which a bounded number of rows is in memory, and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from mrpipe.delimited import unreadable
from mrpipe.errors import DataError, Fault, FaultCollector

CODES, SPLITS, ABOUT = "metadata/codes.parquet", "metadata/subject_splits.parquet", "metadata/dataset.json"
MEDS = "https://github.com/Medical-Event-Data-Standard/meds"
TIME = pl.Datetime("us")
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
    """A Parquet file of the export, or all in a folder; none if it does not exist."""
    place = raw / name
    return [place] if place.is_file() else sorted(p for p in place.rglob("*.parquet") if p.is_file())


def scan(raw: Path, name: str, columns: dict[str, Any]) -> pl.LazyFrame:
    """A Parquet file, or all files of a folder, with these columns; `collect` it with `run`.

    Raises:
        DataError: no file, a damaged one, or one that lacks a column or has it with another dtype.
    """
    faults, frames = FaultCollector(), []
    for path in files_of(raw, name):
        shown = path.relative_to(raw).as_posix()
        try:
            schema = pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            faults.absorb(unreadable(error, shown, "a whole Parquet file"))
            continue
        chosen = []
        for key, dtype in columns.items():
            column, (expected, known) = key.rstrip("?"), _KINDS[dtype]
            typed = column in cs.expand_selector(pl.DataFrame(schema=schema), known)
            if (column in schema and not typed) or (column not in schema and column == key):
                found = str(schema.get(column)) if column in schema else f"columns {', '.join(list(schema)[:12])}"
                fix = f"The schema of MEDS is at {MEDS}."
                faults.add(Fault(file=shown, column=column, expected=expected, found=found, fix=fix))
            value = pl.col(column) if column in schema else pl.lit(None)
            chosen.append(value.cast(dtype).alias(column))
        frames.append(pl.scan_parquet(path).select(chosen))
    if not (frames or faults.faults):
        fix = "Pass the folder that contains data/ and metadata/ with --raw."
        faults.add(Fault(file=name, expected="Parquet files", found="none", fix=fix))
    faults.raise_if_any()
    return pl.concat(frames)


def run(frame: pl.LazyFrame, shown: str) -> pl.DataFrame:
    """Collect with the streaming engine; a damaged page is a DataError."""
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error, shown, "whole Parquet files") from error


def read(raw: Path, name: str, columns: dict[str, Any]) -> pl.DataFrame:
    """A small file (or folder of files) in memory; nulls in columns without ? are an error."""
    frame = run(scan(raw, name, columns), name)
    for column in (c for c in columns if c in frame.columns and frame[c].null_count()):
        row, found = int(frame[column].is_null().arg_max() or 0) + 1, f"{frame[column].null_count()} nulls"
        raise DataError(Fault(file=name, column=column, row=row, expected=_KINDS[columns[column]][0], found=found))
    return frame


def titles(raw: Path, codes: Iterable[str]) -> list[str]:
    """Description of each code in codes.parquet, empty if there is none."""
    known = {}
    if (raw / CODES).is_file():
        table = read(raw, CODES, {"code": pl.String, "description?": pl.String}).drop_nulls()
        known = dict(zip(table["code"], table["description"], strict=True))
    return [" ".join(known.get(code, "").split()) for code in codes]


def about(raw: Path) -> dict[str, Any]:
    """Content of dataset.json; empty without one."""
    try:
        value = json.loads((raw / ABOUT).read_text(encoding="utf-8")) if (raw / ABOUT).is_file() else {}
    except ValueError as error:
        raise unreadable(error, ABOUT, "JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise DataError(Fault(file=ABOUT, expected="a JSON object", found=type(value).__name__))
    return value
