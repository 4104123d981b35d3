"""Delimited text files: encodings, separators and line numbers; undecodable bytes are an error, never replaced."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, Fault

# Exceptions raised on reading a truncated or damaged text file, plain or .gz.
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error)
AGAIN = "The file is damaged or truncated: download it again."
# First bytes of formats that are often named .csv, or listed beside CSV files, and their remedies.
_FORMATS = (
    (b"PK\x03\x04", "an Excel workbook or zip archive", "Save the sheet as CSV (UTF-8), or unzip the archive."),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "Save the sheet as CSV (UTF-8)."),
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"ARROW1", "a Feather file", "Save it as Parquet."),
    (b"\x89HDF", "an HDF5 file", "Save the table as CSV or Parquet."),
    (b"SQLite format 3", "an SQLite database", "Save the table as CSV or Parquet."),
    (b"%PDF", "a PDF document", "Save the table as CSV."),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd", "Decompress it, or compress it with gzip."),
    (b"BZh", "a file compressed with bzip2", "Decompress it, or compress it with gzip."),
    (b"\xfd7zXZ", "a file compressed with xz", "Decompress it, or compress it with gzip."),
    (b"{", "JSON", "Save the table as CSV or Parquet."),
    (b"[", "JSON", "Save the table as CSV or Parquet."),
    (b"$FL2", "an SPSS file", "Save it as CSV or Parquet."),
    (b"<stata_dta>", "a Stata file", "Save it as CSV or Parquet."),
    (b"HEADER RECORD*******LIBRARY", "a SAS transport file", "Save it as CSV or Parquet."),
    (b"<!DOCTYPE", "a web page", "The download failed, perhaps for lack of a login: download the file again."),
    (b"<html", "a web page", "The download failed, perhaps for lack of a login: download the file again."),
)
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def unreadable(error: object, shown_as: str, expected: str, fix: str = AGAIN) -> DataError:
    """The error for a file that cannot be read completely: for lack of permission, or because it is damaged."""
    if isinstance(error, PermissionError):
        found, fix = "no permission to read it", "Ask the owner of the file for read access."
        return DataError(Fault(file=shown_as, expected="a readable file", found=found, fix=fix))
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(Fault(file=shown_as, expected=expected, found=f"unreadable data ({reason})", fix=fix))


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def head(path: Path, size: int = 2**16) -> bytes:
    """First bytes of a file, decompressed if it is gzipped."""
    with path.open("rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if compressed else path.open("rb") as handle:
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
    return Fault(
        file=shown_as,
        line=before.count(b"\n") + 1,
        expected=f"text in {encoding.upper()}",
        found=f"byte 0x{data[error.start]:02x} at position {position} of the line",
        fix="Save the file as UTF-8 (it is often cp1252, latin-1 or mac-roman).",
    )


def read_delimited(
    path: Path,
    *,
    shown_as: str,
    separator: str = ",",
    encoding: str | None = None,
    notes: list[str] | None = None,
    **named: Any,
) -> pl.DataFrame:
    """Read a delimited file, plain or gzipped, with all columns as text.

    Args:
        encoding, notes: see `decode`.
        named: further arguments of `polars.read_csv`.

    Raises:
        DataError: the file is missing, empty, damaged, of another format, of another separator, or undecodable.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(Fault(file=shown_as, expected="a CSV table", found=found))
    try:
        first = head(path)
        _require_text(first, separator, shown_as, encoding, has_header=named.get("has_header", True))
        if encoding is None and not first.startswith((b"\xff\xfe", b"\xfe\xff")):
            try:
                return pl.read_csv(path, infer_schema=False, separator=separator, **named)
            except pl.exceptions.ComputeError as error:
                if "utf-8" not in str(error).lower() and "utf8" not in str(error).lower():
                    raise
        text = decode(_bytes(path), shown_as=shown_as, encoding=encoding, notes=notes)
        return pl.read_csv(io.BytesIO(text.encode()), infer_schema=False, separator=separator, **named)
    except pl.exceptions.NoDataError:
        raise DataError(
            Fault(file=shown_as, expected="a header row", found="an empty file", fix="Export the table again.")
        ) from None
    except (pl.exceptions.PolarsError, *UNREADABLE) as error:
        if "more fields" in str(error) and (line := _first_longer_line(path, separator, encoding)):
            expected, found = "as many fields as the header in every line", "a line with more"
            fix = "Quote fields that contain the separator; remove lines above the header."
            raise DataError(Fault(file=shown_as, line=line, expected=expected, found=found, fix=fix)) from error
        raise unreadable(error, shown_as, "a complete CSV table") from error


def _require_text(head: bytes, separator: str, shown_as: str, encoding: str | None, *, has_header: bool) -> None:
    """Raise a DataError if the first bytes are of another format, or the header uses another separator."""
    for magic, what, fix in _FORMATS:
        if head.lower().startswith(magic.lower()):
            raise DataError(Fault(file=shown_as, expected="a CSV table", found=what, fix=fix))
    if encoding is None and b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        found = "unreadable data (null bytes: a binary file, or UTF-16 without a byte-order mark)"
        raise DataError(Fault(file=shown_as, expected="a CSV table", found=found, fix="Save the table as CSV (UTF-8)."))
    if not has_header or b"\0" in head:
        return
    header = head.split(b"\n", 1)[0].decode("latin-1")
    if "\r" in header.rstrip("\r"):
        found, fix = "line ends of old Macintosh programs (CR)", "Save the file again, with line ends LF or CR LF."
        raise DataError(Fault(file=shown_as, expected="a CSV table", found=found, fix=fix))
    other = max(_NAMES, key=header.count)
    if header.count(other) > header.count(separator):
        raise DataError(
            Fault(
                file=shown_as,
                line=1,
                expected=f"columns separated by {_NAMES.get(separator, repr(separator))}",
                found=f"columns separated by {_NAMES[other]}",
                fix=f"Save the file with {_NAMES.get(separator, repr(separator))} between columns"
                + (" and a point as decimal mark." if other == ";" else "."),
            )
        )


def _first_longer_line(path: Path, separator: str, encoding: str | None) -> int | None:
    """Line of the first record with more fields than the header."""
    text = decode(_bytes(path), shown_as=path.name, encoding=encoding, notes=[])
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=separator)
    with suppress(csv.Error, StopIteration):
        n, line = len(next(reader)), reader.line_num
        for record in reader:
            if len(record) > n:
                return line + 1
            line = reader.line_num
    return None


def line_of(path: Path, record: int, *, separator: str = ",", encoding: str | None = None) -> int:
    """Line of the file on which data record `record` (1-based, blank lines counted) begins; the header is line 1.

    Quoted fields may contain line breaks, so that a record's number does not give its line. Reads the file up to the
    record; for error messages only.
    """
    text = decode(_bytes(path), shown_as=path.name, encoding=encoding, notes=[])
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=separator)
    try:
        for _ in range(record):
            next(reader)
    except (csv.Error, StopIteration):
        return record + 1
    return reader.line_num + 1
