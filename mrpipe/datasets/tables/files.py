"""Reading the tables (CSV, TSV or Parquet) as text, and resolving references to columns and rows.

Legend: n rows of a file, d features.
"""

from __future__ import annotations

import fnmatch
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.tables.config import MISSING, Ref, TablesConfig, canonical
from mrpipe.errors import DataError, Fault, FaultCollector, did_you_mean

ID, ROW = "__sample_id", "__row"
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RawTable:
    """A file as text: `frame` has the columns of the file, with stripped values."""

    shown_as: str
    frame: pl.DataFrame

    @property
    def header(self) -> list[str]:
        return self.frame.columns


def locate(raw: Path, file: str) -> Path:
    """Path of the file, or of its gzipped form.

    Raises:
        DataError: if there is no such file; suggests the nearest name.
    """
    for path in (raw / file, raw / f"{file}.gz"):
        if path.is_file():
            return path
    files = sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
    found = f"no such file; files found: {', '.join(files[:8])}" if files else "no files"
    fix = did_you_mean(file, files, otherwise="Give its path relative to the export folder.")
    raise DataError(Fault(file=f"{raw.name}/{file}", expected="a CSV or Parquet table", found=found, fix=fix))


def read_table(raw: Path, file: str) -> RawTable:
    """Read a whole table as stripped text.

    Raises:
        DataError: if the file is missing or damaged, or has no header or no rows.
    """
    path = locate(raw, file)
    plain = path.name.removesuffix(".gz")
    try:
        if plain.endswith(".parquet"):
            frame = pl.read_parquet(path).select(pl.all().cast(pl.String))
        else:
            separator = "\t" if plain.endswith(".tsv") else ","
            frame = pl.read_csv(path, infer_schema=False, separator=separator, encoding="utf8-lossy")
    except pl.exceptions.NoDataError:
        raise DataError(Fault(file=file, expected="a header row", found="an empty file")) from None
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        found = f"unreadable data ({str(error).splitlines()[0]})"
        fix = "The file is damaged, truncated, or not a table of plain values."
        raise DataError(Fault(file=file, expected="a complete table", found=found, fix=fix)) from error
    if not plain.endswith(".parquet"):
        frame = frame.filter(pl.any_horizontal(pl.all().is_not_null()))
    if frame.is_empty():
        raise DataError(Fault(file=file, expected="at least one row", found="a header without rows"))
    frame = frame.rename({c: c.strip() for c in frame.columns if c != c.strip() and c.strip() not in frame.columns})
    return RawTable(file, frame.with_columns(pl.all().str.strip_chars()))


def find_columns(table: RawTable, refs: Sequence[Ref], place: str, faults: FaultCollector) -> list[str]:
    """The columns that names, patterns and positions refer to, in file order; each must refer to at least one."""
    header = table.header
    chosen: set[str] = set()
    for ref in refs:
        if isinstance(ref, int):
            if not 1 <= abs(ref) <= len(header):
                faults.add(
                    Fault(
                        file=table.shown_as,
                        column=str(ref),
                        expected=f"one of {len(header)} positions ({place})",
                        found=str(ref),
                    )
                )
                continue
            chosen.add(header[ref - 1 if ref > 0 else ref])
            continue
        if ref in header:
            repeated = [h for h in header if re.sub(r"_duplicated_\d+$", "", h) == ref]
            if len(repeated) > 1:
                found, fix = f"{len(repeated)} columns of this name", "Give its position: 1 is the first, -1 the last."
                faults.add(
                    Fault(file=table.shown_as, column=ref, expected=f"this column once ({place})", found=found, fix=fix)
                )
            chosen.add(ref)
            continue
        matches = [h for h in header if fnmatch.fnmatchcase(h, ref)]
        if not matches:
            fix = did_you_mean(ref, header, otherwise="")
            found = f"columns {', '.join(header[:12])}{' …' if len(header) > 12 else ''}"
            faults.add(Fault(file=table.shown_as, column=ref, expected=f"this column ({place})", found=found, fix=fix))
        chosen.update(matches)
    return [h for h in header if h in chosen]


def find_column(table: RawTable, ref: Ref, place: str, faults: FaultCollector) -> str | None:
    """The single column that a reference refers to."""
    local = FaultCollector()
    found = find_columns(table, [ref], place, local)
    if not local.faults and len(found) > 1:
        local.add(Fault(file=table.shown_as, column=str(ref), expected=f"one column ({place})", found=", ".join(found)))
    faults.faults += local.faults
    return None if local.faults or not found else found[0]


def canonical_text(column: str | pl.Expr) -> pl.Expr:
    """Text with whole numbers written without a decimal point, as by `canonical`."""
    text = pl.col(column) if isinstance(column, str) else column
    number = text.cast(pl.Float64, strict=False)
    whole = number.is_finite() & (number == number.round()) & (number.abs() < 1e15)
    return pl.when(whole).then(number.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)


def too_large(number: pl.Series) -> pl.Series:
    """Numbers that the store's float32 cannot hold, such as 1.8e308, which some programs use for missing."""
    return (number.abs() > FLOAT32_MAX).fill_null(False)


def is_missing(column: str, codes: Sequence[str]) -> pl.Expr:
    """Whether a text is null, empty, a common word for missing, or one of the codes."""
    known = [canonical(c) for c in codes]
    return pl.col(column).is_null() | pl.col(column).is_in(MISSING) | canonical_text(column).is_in(known)


def drop_rows(
    table: RawTable,
    frame: pl.DataFrame,
    rules: Sequence[tuple[str, tuple[str, ...]]],
    place: str,
    faults: FaultCollector,
) -> list[tuple[str, pl.DataFrame]]:
    """Apply the rules in order; for each, the reason and the remaining rows."""
    steps = []
    for ref, values in rules:
        column = find_column(table, ref, f"{place}.drop", faults)
        if column is None:
            continue
        frame = frame.filter(~canonical_text(column).is_in(values).fill_null(False))
        steps.append((f"{column} is {' or '.join(values)}", frame))
    return steps


def with_ids(table: RawTable, config: TablesConfig, faults: FaultCollector) -> pl.DataFrame:
    """The table with `__row` (1-based) and `__sample_id`: its id column, or the row number if joined by order.

    If joined by order, only the cohort file may name the samples; in other files `cohort.rows_of` replaces the row
    numbers by ids.
    """
    frame = table.frame.with_row_index(ROW, offset=1)
    if config.by_order:
        return frame.with_columns(pl.col(ROW).cast(pl.String).alias(ID))
    assert config.id is not None
    column = find_column(table, config.id, "id", faults)
    if column is None:
        return frame.with_columns(pl.lit(None, dtype=pl.String).alias(ID))
    frame = frame.with_columns(pl.col(column).alias(ID))
    empty = frame.filter(pl.col(ID).is_null() | pl.col(ID).is_in(MISSING))
    if len(empty):
        found = f"an empty field ({len(empty)} rows)"
        faults.add(
            Fault(
                file=table.shown_as, column=column, row=int(empty[ROW][0]), expected="an id in every row", found=found
            )
        )
    return frame


def require_unique_ids(table: RawTable, frame: pl.DataFrame, faults: FaultCollector) -> None:
    repeated = frame.filter(pl.col(ID).is_duplicated() & pl.col(ID).is_not_null())
    if len(repeated):
        faults.add(
            Fault(
                file=table.shown_as,
                column="id",
                row=int(repeated[ROW][1]),
                expected="one row per id",
                found=f"{len(repeated)} rows of {repeated[ID].n_unique()} repeated ids",
                fix="Aggregate the rows first, or remove some with `drop`.",
            )
        )
