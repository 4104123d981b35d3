"""Reading the tables as text, and resolving references to columns and rows.

Legend: n rows of a file, d features.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe import delimited
from mrpipe.datasets.tables.config import MISSING, WHOLE, Ref, Rules, TablesConfig, codes_of, matches
from mrpipe.delimited import COMMA, line_of
from mrpipe.errors import DataError, Fault, FaultCollector, did_you_mean
from mrpipe.forms import COMPRESSIONS

ID, ROW = "__sample_id", "__row"
FLOAT32_MAX = float(np.finfo(np.float32).max)
LISTED = 12


@dataclass(frozen=True)
class RawTable:
    """A file as text.

    Attributes:
        frame: `__row` (1-based record of the file) and the columns of the file, stripped.
        separator: None for a form whose rows have no lines.
        notes: what was found in the file, such as its separator.
        odd: columns that are not plain values (Duration, List, Binary, …) and their dtypes; read as empty.
        pointed: with a decimal comma, columns with numbers that have a decimal point, and the row of the first.
        key: column of the samples that joins the table: row, sample_id, or subject_id if it has subjects but no ids.
    """

    shown_as: str
    config: TablesConfig
    path: Path
    separator: str | None
    frame: pl.DataFrame
    odd: dict[str, str]
    pointed: dict[str, int]
    notes: list[str]

    @property
    def header(self) -> list[str]:
        return [c for c in self.frame.columns if c != ROW]

    @property
    def key(self) -> str:
        if self.config.by_order:
            return "row"
        only_subjects = isinstance(self.config.id, str) and self.config.id not in self.header
        return "subject_id" if only_subjects and self.config.subject in self.header else "sample_id"

    def fault(
        self, expected: str, found: str, fix: str = "", *, column: str | None = None, rows: pl.Series | None = None
    ) -> Fault:
        """A fault of this file; of the affected `rows`, the first is its place, and some are listed."""
        fault = Fault(file=self.shown_as, column=column, expected=expected, found=found, fix=fix)
        if rows is None or not len(rows):
            return fault
        places: list[int] = rows[:4].to_list()
        if self.separator is not None:
            encoding = self.config.of_file("encoding", self.shown_as)
            places = [line_of(self.path, r, separator=self.separator, encoding=encoding) for r in places]
        if len(rows) > 1:
            listed = ", ".join(map(str, places)) + (", …" if len(rows) > 4 else "")
            fault = dataclasses.replace(fault, found=f"{found} ({'lines' if self.separator else 'rows'} {listed})")
        return dataclasses.replace(fault, **{"line" if self.separator else "row": places[0]})  # type: ignore[arg-type]

    def alike(self, name: str) -> list[str]:
        """Columns that have this name apart from case, padding and the number that tells repeated names apart."""
        return [h for h in self.header if _plain(h) == _plain(name)]

    def columns(self, refs: Sequence[Ref], place: str, faults: FaultCollector, *, optional: bool = False) -> list[str]:
        """The columns that names, patterns and positions refer to, in file order.

        Each must refer to at least one, unless they are optional; a name that several columns share is an error.
        """
        header = self.header
        chosen: set[str] = set()
        for ref in refs:
            if isinstance(ref, int):
                if 1 <= abs(ref) <= len(header):
                    chosen.add(header[ref - 1 if ref > 0 else ref])
                elif not optional:
                    faults.add(self.fault(f"one of {len(header)} positions ({place})", str(ref), column=str(ref)))
                continue
            found = [ref] if ref in header else [h for h in header if matches(h, ref)]
            near = self.alike(ref)
            if ref in header and len(near) > 1:
                shown = f"{len(near)} columns of this name: {', '.join(map(repr, near))}"
                fix = "Rename one in the file, or give its position: 1 is the first, -1 the last."
                faults.add(self.fault(f"this column once ({place})", shown, fix, column=ref))
            if not found and not optional:
                fix = f"Did you mean {near[0]!r}?" if near else did_you_mean(ref, header, otherwise="")
                shown = f"columns {', '.join(header[:LISTED])}{' …' if len(header) > LISTED else ''}"
                faults.add(self.fault(f"this column ({place})", shown, fix, column=ref))
            chosen.update(found)
        return [h for h in header if h in chosen]

    def column(self, ref: Ref, place: str, faults: FaultCollector) -> str | None:
        """The single column that a reference refers to."""
        local = FaultCollector()
        found = self.columns([ref], place, local)
        if not local.faults and len(found) > 1:
            local.add(self.fault(f"one column ({place})", ", ".join(found), column=str(ref)))
        self.require_plain(found, local)
        faults.faults += local.faults
        return None if local.faults or not found else found[0]

    def require_plain(self, columns: Sequence[str], faults: FaultCollector) -> None:
        """Report columns that are not plain values."""
        for column in (c for c in columns if c in self.odd):
            found, fix = f"values of type {self.odd[column]}", "`exclude` it, or convert it to numbers or text."
            faults.add(self.fault("numbers or text", found, fix, column=column))

    def require_commas(self, column: str, faults: FaultCollector) -> None:
        """Report a numeric column that has decimal points although the YAML declares decimal commas."""
        if column in self.pointed:
            rows = self.frame.filter(pl.col(ROW) == self.pointed[column])
            fix = "It may be a thousands separator: correct the file, or the key `decimal`."
            expected, found = "numbers with a decimal comma", repr(rows[column][0])
            faults.add(self.fault(expected, found, fix, column=column, rows=rows[ROW]))

    def drop(
        self, frame: pl.DataFrame, rules: Rules, place: str, faults: FaultCollector
    ) -> list[tuple[str, pl.DataFrame]]:
        """Apply the rules in order; for each, the reason and the remaining rows."""
        steps = []
        for ref, values in rules:
            column = self.column(ref, f"{place}.drop", faults)
            if column is not None:
                frame = frame.filter(~canonical_text(column).is_in(values).fill_null(False))
                steps.append((f"{column} is {' or '.join(values)}", frame))
        return steps

    def with_ids(self, faults: FaultCollector) -> pl.DataFrame:
        """The table with `__sample_id`: its id (or subject) column, or the row number if joined by order.

        If joined by order, only the cohort file may name the samples; in other files `to_samples` finds the ids.
        """
        if self.key == "row":
            return self.frame.with_columns(pl.col(ROW).cast(pl.String).alias(ID))
        ref = self.config.subject if self.key == "subject_id" else self.config.id
        assert ref is not None
        column = self.column(ref, "id", faults)
        if column is None:
            return self.frame.with_columns(pl.lit(None, dtype=pl.String).alias(ID))
        frame = self.frame.with_columns(id_text(column, self.config.missing).alias(ID))
        empty = frame.filter(pl.col(ID).is_null())[ROW]
        if len(empty):
            faults.add(self.fault("an id in every row", f"{len(empty)} rows without one", column=column, rows=empty))
        return frame

    def unique(self, frame: pl.DataFrame, faults: FaultCollector) -> pl.DataFrame:
        """The rows without those that repeat an id, which are reported."""
        repeated = frame.filter(pl.col(ID).is_duplicated() & pl.col(ID).is_not_null()).sort(ID, ROW)
        if len(repeated):
            n_ids = repeated[ID].n_unique()
            values = "different" if repeated.drop(ROW).unique().height > n_ids else "equal"
            found = f"{len(repeated)} rows of {n_ids} repeated ids, with {values} values"
            fix = "Aggregate the rows first, or remove some with `drop`."
            faults.add(self.fault("one row per id", found, fix, column="id", rows=repeated[ROW]))
        return frame.unique(subset=ID, keep="first", maintain_order=True)

    def to_samples(self, rows: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
        """The rows (`__sample_id`, `__row`, …) that belong to samples, with the columns of `samples`."""
        on = ROW if self.key == "row" else ID
        return rows.join(samples, left_on=on, right_on=self.key, how="inner", coalesce=False)


def _plain(name: str) -> str:
    return re.sub(r"_duplicated_\d+$", "", name).strip().casefold()


def locate(raw: Path, file: str) -> tuple[Path, str]:
    """Path of the file, or of its compressed form, and the sheet that the name gives after #.

    Raises:
        DataError: if there is no such file; suggests the nearest name.
    """
    name, _, sheet = file.partition("#")
    for path in (raw / file, raw / name, *(raw / f"{name}{ending}" for ending in COMPRESSIONS)):
        if path.is_file():
            return path, "" if path.name.endswith(f"#{sheet}") else sheet
    files = sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
    found = f"no such file; files found: {', '.join(files[:8])}" if files else "no files"
    fix = did_you_mean(name, files, otherwise="Give its path relative to the export folder.")
    raise DataError(Fault(file=f"{raw.name}/{name}", expected="a table", found=found, fix=fix))


def read_table(raw: Path, file: str, config: TablesConfig) -> RawTable:
    """Read a whole table as stripped text, with the encoding, separator and decimal mark that the YAML declares.

    Raises:
        DataError: if the file is missing, damaged or undecodable, or has no header or no rows.
    """
    path, sheet = locate(raw, file)
    encoding, separator, decimal = (config.of_file(key, file) for key in ("encoding", "separator", "decimal"))
    notes: list[str] = []
    try:
        table = delimited.read_table(
            path,
            shown_as=file,
            separator=separator,
            encoding=encoding,
            decimal=decimal and ".",  # converted below, with a check
            sheet=sheet,
            notes=notes,
            strict=True,
        )
    except DataError as error:
        # Faults of a line are undecodable bytes and unexpected separators.
        hint = f" Or declare it in {config.shown_as}: `encoding:`, `separator:` and `decimal:` (docs/tables.md)."
        raise DataError(dataclasses.replace(f, fix=f.fix + hint * (f.line is not None)) for f in error.faults) from None
    if ROW in table.frame.columns:
        raise DataError(Fault(file=file, column=ROW, expected="another column name", found="a reserved name"))
    frame = table.frame.with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.Int32))
    frame = frame.rename({c: c.strip() for c in frame.columns if c != c.strip() and c.strip() not in frame.columns})
    frame = frame.with_columns(pl.col(pl.String).str.strip_chars())
    pointed: dict[str, int] = {}
    if decimal == ",":
        points = frame.select(pl.col(pl.String).str.contains(r"^[-+]?[0-9]+\.[0-9]+$").fill_null(False))
        pointed = {c: int(points[c].arg_max() or 0) + 1 for c in points.columns if points[c].any()}
        frame = frame.with_columns(pl.col(pl.String).str.replace(COMMA, "$1.$2"))
    if table.separator is not None:
        known = pl.any_horizontal(pl.col(pl.String).is_not_null())
        # Rows that are joined by order keep their places; blank lines at the end are no rows.
        last = frame.filter(known)[ROW].max() or 0
        frame = frame.filter(pl.col(ROW) <= last if config.by_order else known)
    if frame.is_empty():
        raise DataError(Fault(file=file, expected="at least one row", found="a header without rows"))
    return RawTable(file, config, path, table.separator, frame, table.odd, pointed, notes)


def canonical_text(column: str | pl.Expr) -> pl.Expr:
    """Text with whole numbers written without a decimal point, as by `canonical`."""
    text = pl.col(column) if isinstance(column, str) else column
    return text.str.replace(rf"{WHOLE}$", "$1").str.replace("^-0$", "0")


def id_text(column: str, missing: Rules) -> pl.Expr:
    """Ids as text; if all are whole numbers, without decimal points, which programs add to columns with gaps."""
    text = known_text(column, missing)
    whole = text.str.contains(r"^-?(0|[1-9][0-9]*)(\.0*)?$").all()
    return pl.when(whole).then(canonical_text(text)).otherwise(text)


def known_text(column: str, rules: Rules) -> pl.Expr:
    """Text; null if it is empty, a common word for missing, or one of the codes of the column."""
    missing, codes = pl.col(column).is_in(MISSING), codes_of(column, rules)
    if codes:
        missing |= canonical_text(column).is_in(codes)
    return pl.when(missing).then(None).otherwise(pl.col(column)).alias(column)


def too_large(number: pl.Series) -> pl.Series:
    """Numbers that the store's float32 cannot hold, such as 1.8e308, which some programs use for missing."""
    return (number.abs() > FLOAT32_MAX).fill_null(False)
