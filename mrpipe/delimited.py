"""Tables of every form as text: encodings, separators, decimal marks and line numbers; no byte is replaced or lost."""

import csv
import io
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
from pyarrow import csv as pacsv

from mrpipe.budget import too_large
from mrpipe.errors import DataError, Fault, MissingExtraError
from mrpipe.forms import form_of, open_binary, plain_source, read_typed, recognise
from mrpipe.reading import AGAIN, unreadable

_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# Start of a number, which may be a limit such as <0.5; number with a decimal comma.
SIGN = r"\s*(?:[<>≤≥]=?\s*)?[-+]?"
COMMA = rf"^({SIGN}[0-9]*),([0-9]+(?:[eE][-+]?[0-9]+)?\s*)$"
# Lines that tell the separator; most bytes of a line and columns of a table; bytes that are read for a few rows.
LINES, LONGEST_LINE, MAX_COLUMNS, FIRST = 200, 2**26, 100_000, 2**25
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def _bytes(path: Path, shown_as: str = "") -> bytes:
    with open_binary(path, shown_as) as handle:
        return bytes(handle.read())


def require_lines(path: Path, shown_as: str, separator: str = ",") -> int | None:
    """Number of separators of a text file, None if it has quotes; a DataError if it, or a line, is too long."""
    with open_binary(path, shown_as) as handle:
        since = n_separators = 0
        quoted = False
        while block := handle.read(2**22):
            quoted = quoted or b'"' in block
            n_separators += int(np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == ord(separator)))
            since = since + len(block) if (at := block.rfind(b"\n")) < 0 else len(block) - at
            if since > LONGEST_LINE:
                raise too_large(shown_as, LONGEST_LINE, "a longer one", "lines")
    return None if quoted else n_separators


def head(path: Path, size: int = 2**16) -> bytes:
    """First bytes of a file, decompressed."""
    with open_binary(path) as handle:
        return bytes(handle.read(size))


def decode(data: bytes, *, shown_as: str, encoding: str | None = None, notes: list[str] | None = None) -> str:
    """Text of a file.

    Args:
        encoding: a Python codec. Default: that of the byte-order mark, or UTF-8.
        notes: if given, text that is not UTF-8 is read as Windows-1252, and a note is added. Windows-1252 assigns
            distinct characters to distinct bytes, so that no two names become equal.

    Raises:
        DataError: bytes that the encoding does not define, with line, position and value of the first.
    """
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    name = encoding or marked or "utf-8"
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        if notes is not None and not (encoding or marked):
            with suppress(UnicodeDecodeError):
                text = data.decode("cp1252")
                notes.append(f"{shown_as} is not UTF-8; it was read as Windows-1252")
                return text
        raise DataError(_undecodable(data, error, name, shown_as)) from None
    except (LookupError, UnicodeError):
        expected = "the name of an encoding, such as utf-8, cp1252 or latin-1"
        raise DataError(Fault(file=shown_as, column="encoding", expected=expected, found=f"{name!r}")) from None


def _undecodable(data: bytes, error: UnicodeDecodeError, encoding: str, shown_as: str) -> Fault:
    before = data[: error.start]
    position = error.start - (before.rfind(b"\n") + 1) + 1
    expected, found = (
        f"text in {encoding.upper()}",
        f"byte 0x{data[error.start]:02x} at position {position} of the line",
    )
    fix = "Save the file as UTF-8 (it is often cp1252, latin-1 or mac-roman)."
    return Fault(file=shown_as, line=before.count(b"\n") + 1, expected=expected, found=found, fix=fix)


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        frame: its columns, unstripped; empty fields are null.
        separator: between columns; None for a form without lines.
        odd: columns that are not plain values (Duration, List, Binary, …) and their dtypes; read as empty.
    """

    frame: pl.DataFrame
    separator: str | None
    odd: dict[str, str] = field(default_factory=dict)


def read_table(
    path: Path,
    *,
    shown_as: str,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    sheet: str = "",
    notes: list[str] | None = None,
    strict: bool = False,
    n_rows: int | None = None,
) -> TextTable:
    """Read a table of any form that `forms.FORMS` reads, with all columns as text and a decimal point in numbers.

    Args:
        separator: default: a tab in .tsv files, or the one of comma, semicolon, tab and bar that gives equal rows.
        encoding: see `decode`; of text only.
        decimal: decimal mark. Default: a comma if columns are not separated by commas and the numbers show it.
        sheet: of a workbook; default: the only one that is not empty.
        notes: receives what was found (encoding, separator, decimal mark).
        strict: text that is not UTF-8 is an error, as without `notes`, instead of read as Windows-1252 with a note.
        n_rows: read only this many rows of a text table.

    Raises:
        DataError: the file is missing, empty, damaged, of another form or separator, or undecodable.
        MissingExtraError: the library for this form is not installed.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(Fault(file=shown_as, expected="a table", found=found))
    form = recognise(path)
    try:
        first = head(path)
        first = first if b"\n" in first else head(path, FIRST)  # the line of the header
        form = form_of(first) or form
        if form is not None and form.reader not in (None, "text"):
            frame, odd = read_typed(path, form, shown_as=shown_as, sheet=sheet, notes=notes)
            if not frame.width:
                raise DataError(Fault(file=shown_as, expected="a table", found="no columns"))
            return TextTable(frame, None, odd)
        if form is not None and form.reader is None and form.magic and form_of(first) is form:
            raise DataError(Fault(file=shown_as, expected="a table", found=form.name, fix=form.advice))
        found_separator = separator or _separator(first, path, encoding, shown_as)
        _require_text(first, found_separator, shown_as, encoding)
        frame = _read_text(path, first, found_separator, shown_as, encoding, None if strict else notes, n_rows)
        if n_rows is None and len(frame) and frame[frame.columns[-1]].null_count():
            note_short_rows(path, found_separator, shown_as=shown_as, encoding=encoding, notes=notes)
    except (DataError, MissingExtraError):
        raise
    except pl.exceptions.NoDataError:
        fault = Fault(file=shown_as, expected="a header row", found="an empty file", fix="Export the table again.")
        raise DataError(fault) from None
    except (Exception, pl.exceptions.PanicException) as error:  # damaged bytes can raise any exception of the libraries
        if "more fields" in str(error) and (line := _first_longer_line(path, found_separator, encoding)):
            expected, found = "as many fields as the header in every line", "a line with more"
            fix = "Quote fields that contain the separator; remove lines above the header."
            raise DataError(Fault(file=shown_as, line=line, expected=expected, found=found, fix=fix)) from error
        raise unreadable(error, shown_as, f"complete {form.name}" if form else "a complete table") from error
    if notes is not None and separator is None and found_separator != _default_separator(path):
        notes.append(f"{shown_as}: columns are separated by {_NAMES[found_separator]}")
    if decimal == "," or (decimal is None and found_separator != "," and _has_commas(frame, found_separator)):
        frame = frame.with_columns(cs.string().str.replace(COMMA, "$1.$2"))
        if notes is not None and decimal is None:
            notes.append(f"{shown_as}: numbers have a decimal comma")
    return TextTable(frame, found_separator)


def _read_text(
    path: Path,
    first: bytes,
    separator: str,
    shown_as: str,
    encoding: str | None,
    notes: list[str] | None,
    n_rows: int | None,
) -> pl.DataFrame:
    if encoding is None and not first.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            if n_rows is None:
                source = plain_source(path, shown_as)
            else:
                part = head(path, FIRST)
                source = part[: part.rfind(b"\n") + 1] if len(part) == FIRST else part
            return pl.read_csv(source, infer_schema=False, separator=separator, n_rows=n_rows)
        except pl.exceptions.ComputeError as error:
            if "utf-8" not in str(error).lower() and "utf8" not in str(error).lower():
                raise
    text = decode(_bytes(path, shown_as), shown_as=shown_as, encoding=encoding, notes=notes)
    return pl.read_csv(io.BytesIO(text.encode()), infer_schema=False, separator=separator, n_rows=n_rows)


def note_short_rows(
    path: Path, separator: str, *, shown_as: str, encoding: str | None = None, notes: list[str] | None = None
) -> None:
    """Note the rows with fewer fields than the header, whose last fields are read as empty.

    Raises:
        DataError: such a row is the last one, and has no line end: the file was cut short.
    """
    short: list[int] = []

    def handle(row: pacsv.InvalidRow) -> str:
        short.extend([row.number] if row.actual_columns < row.expected_columns else [])
        return "skip"

    text, n_rows = head(path), 0
    marked = next((name for mark, name in _MARKS if text.startswith(mark)), "utf-8")
    with open_binary(path) as source, suppress(pa.ArrowInvalid):  # quotes that only polars accepts
        batches = pacsv.open_csv(
            source,
            pacsv.ReadOptions(use_threads=False, autogenerate_column_names=True, encoding=encoding or marked),
            pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=handle),
            pacsv.ConvertOptions(include_columns=["f0"], column_types={"f0": pa.large_binary()}, check_utf8=False),
        )
        n_rows = sum(len(batch) for batch in batches)
    if not short:
        return
    if short[-1] > n_rows + len(short) - 1 and not _bytes(path).endswith((b"\n", b"\n\0")):
        expected, found = "as many fields as the header in the last line", "fewer"
        raise DataError(Fault(file=shown_as, line=short[-1], expected=expected, found=found, fix=AGAIN))
    if notes is not None:
        rows, first = "1 row has" if len(short) == 1 else f"{len(short)} rows have", short[0] - 1
        notes.append(f"{shown_as}: {rows} fewer fields than the header; the others are empty (first: row {first})")


def _default_separator(path: Path) -> str:
    return "\t" if recognise(path) and ".tsv" in path.name.lower() else ","


def _separator(first: bytes, path: Path, encoding: str | None, shown_as: str) -> str:
    """The separator with which most of the first lines have as many fields as the header, by their number."""
    whole = first[: first.rfind(b"\n") + 1] or first
    text = whole.decode("latin-1") if encoding is None and whole[:2] not in (b"\xff\xfe", b"\xfe\xff") else ""
    text = text or decode(whole[: len(whole) // 2 * 2], shown_as=shown_as, encoding=encoding, notes=[])
    best, default = (0.0, 1), _default_separator(path)
    chosen = default
    for candidate in (default, *(s for s in _NAMES if s != default)):
        with suppress(csv.Error):
            lines = text.removeprefix("\ufeff").splitlines()[:LINES]
            header, *rows = [len(r) for r in csv.reader(lines, delimiter=candidate) if r] or [1]
            alike = sum(n == header for n in rows) / len(rows) if rows else 1.0
            if header > 1 and (alike, header) > best:
                best, chosen = (alike, header), candidate
    return chosen


def _has_commas(frame: pl.DataFrame, separator: str) -> bool:
    """Whether numbers have a decimal comma: some do and none has a point; three digits alone may be thousands."""
    text = frame.select(cs.string())
    digits = r"\d+" if separator == ";" else r"(?:\d{1,2}|\d{4,})"
    with_comma, with_point = rf"^{SIGN}\d*,{digits}\s*$", rf"^{SIGN}\d*\.\d+\s*$"
    return any_matches(text, with_comma) and not any_matches(text, with_point)


def any_matches(frame: pl.DataFrame, pattern: str) -> bool:
    return bool(frame.select(pl.any_horizontal(pl.all().str.contains(pattern).any())).item()) if frame.width else False


def _require_text(head: bytes, separator: str, shown_as: str, encoding: str | None) -> None:
    """Raise a DataError if the first bytes are binary, or the header uses another separator."""
    if encoding is None and b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        found = "unreadable data (null bytes: a binary file, or UTF-16 without a byte-order mark)"
        raise DataError(Fault(file=shown_as, expected="a table", found=found, fix="Save the table as CSV (UTF-8)."))
    if b"\0" in head:
        return
    if (n := head.split(b"\n", 1)[0].count(separator.encode())) >= MAX_COLUMNS:
        raise DataError(Fault(file=shown_as, expected=f"at most {MAX_COLUMNS:,} columns", found=f"{n + 1:,}"))
    header = head.split(b"\n", 1)[0].decode("latin-1")
    if "\r" in header.rstrip("\r"):
        found, fix = "line ends of old Macintosh programs (CR)", "Save the file again, with line ends LF or CR LF."
        raise DataError(Fault(file=shown_as, expected="a table", found=found, fix=fix))
    other = max(_NAMES, key=header.count)
    if header.count(other) > 0 == header.count(separator):
        expected = f"columns separated by {_NAMES.get(separator, repr(separator))}"
        found, fix = f"columns separated by {_NAMES[other]}", "Correct the key `separator`, or leave it out."
        raise DataError(Fault(file=shown_as, line=1, expected=expected, found=found, fix=fix))


def _reader(path: Path, separator: str, encoding: str | None) -> Any:
    text = decode(_bytes(path), shown_as=path.name, encoding=encoding, notes=[])
    return csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=separator)


def _first_longer_line(path: Path, separator: str, encoding: str | None) -> int | None:
    """Line of the first record with more fields than the header."""
    reader = _reader(path, separator, encoding)
    with suppress(csv.Error, StopIteration):
        n, line = len(next(reader)), int(reader.line_num)
        for record in reader:
            if len(record) > n:
                return line + 1
            line = int(reader.line_num)
    return None


def line_of(path: Path, record: int, *, separator: str | None = None, encoding: str | None = None) -> int:
    """Line of the file on which data record `record` (1-based, blank lines counted) begins; the header is line 1.

    Quoted fields may contain line breaks, so that a record's number does not give its line. Reads the file up to the
    record; for error messages only. A table without lines counts as if its column names were line 1.
    """
    first = head(path)
    form = form_of(first) or recognise(path)
    if form is not None and form.reader not in (None, "text"):
        return record + 1
    separator = separator or _separator(first, path, encoding, path.name)
    reader = _reader(path, separator, encoding)
    try:
        for _ in range(record):
            next(reader)
    except (csv.Error, StopIteration):
        return record + 1
    return int(reader.line_num) + 1
