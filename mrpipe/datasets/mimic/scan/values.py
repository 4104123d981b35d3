"""Columns and values of a table as declared, whatever program saved it: BigQuery, DuckDB, a database, pandas."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from mrpipe.errors import Fault, FaultCollector, cell
from mrpipe.raw import ROW, Column, match_header, typed
from mrpipe.reading import reading

if TYPE_CHECKING:
    from mrpipe.datasets.mimic.scan.scanner import TableScan

# Empty fields as databases and pandas write them. "NA" is not among them: it is a unit and an abbreviation.
NULLS = ("", "NULL", "\\N", "NaN", "nan", "None", "<NA>", "NaT")
UTC = (None, "UTC", "Etc/UTC", "GMT", "Z", "+00:00")
_CLOCK = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:[0-5]\d$"
# Date, time, fraction of a second, and a zone; zones other than UTC are ambiguous, and not accepted.
_TIME = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(\.\d+)?)? ?(?:Z|UTC|[+-]00(?::?00)?)?$"


def clock_times(text: pl.Series) -> pl.Series:
    """Parse `YYYY-MM-DD HH:MM:SS`, or with T, to Datetime; anything else becomes null."""
    clock = pl.when(pl.first().str.contains(_CLOCK)).then(pl.first())
    forms = (f"%Y-%m-%d{separator}%H:%M:%S" for separator in " T")
    parsed = (clock.str.to_datetime(form, strict=False, time_unit="us", cache=False) for form in forms)
    return text.to_frame().select(pl.coalesce(parsed)).to_series()


def times_of(text: pl.Series, *, dates: bool = False) -> pl.Series:
    """Times in the forms of common programs, as Datetime("us"); other text becomes null.

    A date alone is midnight if `dates`, or if all values are dates, as pandas writes a column of midnights.
    """
    time = clock_times(text)
    other = (time.is_null() & text.is_not_null()).arg_true()
    if not len(other):
        return time
    day, clock, fraction = text.gather(other).str.extract_groups(_TIME).struct.unnest().get_columns()
    if dates or (day.is_not_null() & clock.is_null()).sum() == text.count():
        clock = clock.fill_null("00:00:00")
    microseconds = (fraction.cast(pl.Float64).fill_null(0.0) * 1e6).round().cast(pl.Duration("us"))
    return time.scatter(other, clock_times(day + " " + clock) + microseconds)


def without_blanks(values: pl.Series, column: Column) -> pl.Series:
    """Values with null in place of NaN and of the text of empty fields; encoded text as text."""
    if values.dtype in (pl.Categorical, pl.Enum, pl.Binary):
        values = values.cast(pl.String, strict=False)
    elif values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    if values.dtype.is_float():
        return values.fill_nan(None)
    if values.dtype == pl.String:
        values = values if column.dtype == pl.String else values.str.strip_chars()
        if (blank := values.is_in(NULLS)).any():
            return values.to_frame().select(pl.when(~blank).then(pl.first())).to_series()
    return values


def convert(values: pl.Series, column: Column) -> pl.Series:
    """Values of `without_blanks` as the declared dtype; values and types that cannot be converted become null.

    Numbers that a program saved as floats (`20000001.0`) or text, dates saved as times, and times in any unit are
    converted; text is converted by the rules of `raw.typed` and `times_of`.
    """
    is_time = column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime)
    if values.dtype in (column.dtype, pl.Null):
        return values.cast(column.dtype)
    if values.dtype == pl.String and is_time:
        return times_of(values, dates=column.dtype == pl.Date).cast(column.dtype)
    if values.dtype == pl.String:
        return values.rename(column.name).to_frame().select(typed(column)).to_series()
    if isinstance(values.dtype, pl.Datetime) and is_time and values.dtype.time_zone in UTC:
        return values.dt.replace_time_zone(None).cast(column.dtype)
    if is_time and values.dtype == pl.Date:
        return values.cast(column.dtype)
    if is_time or values.dtype.is_nested() or values.dtype.is_temporal():
        return pl.Series(values.name, [None] * len(values), dtype=column.dtype)
    if values.dtype.is_float() and column.dtype != pl.Float64:
        whole = values.cast(pl.Int64, strict=False)
        if not (differs := (whole != values).fill_null(False)).any() or column.dtype != pl.String:
            values = whole.set(differs, None)
    return values.cast(column.dtype, strict=False)


class TablePart(ABC):
    """One file of a table. `frames` yields the columns and the selected rows, with `ROW`; see `TableScan`."""

    def __init__(self, path: Path, shown_as: str, scan: "TableScan"):
        self.path, self.shown_as, self.scan = path, shown_as, scan
        self.header = self.read_header()
        self.names = check_columns(self.header, scan.columns, shown_as)
        self.columns = [c for c in scan.columns if c.name in self.names]

    @abstractmethod
    def read_header(self) -> list[str]:
        """Names of the columns in the file."""

    @abstractmethod
    def frames(self, advance: Callable[[int], None]) -> Iterator[pl.DataFrame]:
        """Frames; `advance` is called with the position in the file in bytes."""

    def typed(self, frame: pl.DataFrame, place: Callable[[int], dict[str, int | None]]) -> pl.DataFrame:
        """The declared columns with their dtypes, and ROW; `place` gives the line or row of a value of ROW.

        Raises:
            DataError: the first value of each column that cannot be converted, or that is empty and must not be.
        """
        faults, done = FaultCollector(), []
        fix = "Check whether the header is shifted, or the file is damaged; write blanks as empty fields, not as NA."
        for column in self.columns:
            with reading(self.shown_as, f"text in UTF-8 in column {column.name!r}", fix):
                values = without_blanks(frame[column.name], column)
            done.append(converted := convert(values, column).rename(column.name))
            bad = converted.is_null() & values.is_not_null()
            plain = values.dtype == pl.String or values.dtype.is_float()
            found = (cell(values.filter(bad)[0]) if plain else f"{values.dtype}") if bad.any() else ""
            if not found and not column.nullable and converted.has_nulls():
                bad, found = converted.is_null(), f"{converted.null_count()} empty fields"
            if found:
                where, expected = place(frame[ROW].filter(bad)[0]), f"{column.dtype} values"
                named = {"file": self.shown_as, "column": column.name}
                faults.add(Fault(**named, expected=expected, found=found, fix=fix, **where))  # type: ignore[arg-type]
        faults.raise_if_any()
        return pl.DataFrame([*done, frame[ROW].cast(pl.Int64)])


def check_columns(header: Sequence[str], columns: Sequence[Column], shown_as: str) -> dict[str, str]:
    """Map the canonical column names to the names in the header.

    Raises:
        DataError: all declared columns that are missing or repeated.
    """
    found, faults = match_header(header, columns), FaultCollector()
    lower = [h.lower() for h in header]
    # A file without a header begins with data, which is not printed.
    shown = f"columns {', '.join(header[:16])}" if found else "a first line without any column of this table"
    for column in columns:
        if column.required and column.name not in found:
            fix = "Check that this is the MIMIC-IV table, with its header row, and commas between columns."
            faults.add(Fault(file=shown_as, column=column.name, expected="this column", found=shown, fix=fix))
        elif column.name in found and lower.count(found[column.name].lower()) > 1:
            faults.add(Fault(file=shown_as, column=column.name, expected="this column once", found="a repeated column"))
    faults.raise_if_any()
    return found
