"""Scan a large CSV file (plain or .gz) for the rows of given patients, in bounded memory and faster than gzip.

One thread decompresses (igzip of ISA-L); a second splits the bytes into records and filters them by subject_id; the
calling thread parses the remaining records with polars. Most of a full export is never parsed. Records end at line ends
outside quotes, so text may contain line breaks, commas and doubled quotes. Columns are found by name, in any order.
Records that are not UTF-8 are read as Windows-1252 and counted.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.scan.progress import ScanProgress
from mrpipe.datasets.mimic.scan.records import PAD, SubjectFilter, clock_times, cut, numbers_at, record_ends
from mrpipe.delimited import decode, unreadable
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import ROW, Column, match_header, shown_value, typed

BLOCK = 4 * 2**20  # bytes decompressed at a time
PARSE = 8 * 2**20  # bytes of filtered records parsed at a time
LONGEST_RECORD = 64 * 2**20
# Maximum position of subject_id for filtering records before they are parsed; beyond it, all rows are parsed.
_NEAR = 4
_PADDING = bytes(PAD)
Ids = NDArray[np.int64]

_DAMAGED: tuple[type[BaseException], ...] = (EOFError, OSError, zlib.error, isal_zlib.error)  # type: ignore[assignment]


def is_gzip(path: Path) -> bool:
    """Whether the content is gzipped; browsers may unpack a .gz file without renaming it."""
    with path.open("rb") as handle:
        return handle.read(2) == b"\x1f\x8b"


def inflating(file: IO[bytes], path: Path) -> Any:
    """Content of an open file, decompressed if it is gzipped."""
    return igzip.IGzipFile(fileobj=file, mode="rb") if is_gzip(path) else file  # type: ignore[no-untyped-call]


def open_bytes(path: Path) -> Any:
    """Open a file for reading bytes, decompressed if it is gzipped."""
    return igzip.open(path, "rb") if is_gzip(path) else path.open("rb")  # type: ignore[no-untyped-call]


def line_of_record(path: Path, record: bytes) -> int | None:
    """Line on which a record of a file begins, as an editor counts it; for error messages, since it reads the file."""
    before, rest, wanted = 1, b"", b"\n" + record.rstrip(b"\r\n")
    with open_bytes(path) as handle:
        while block := handle.read(BLOCK):
            data: bytes = rest + block
            if (at := data.find(wanted)) >= 0:
                return before + data.count(b"\n", 0, at + 1)
            keep = max(0, len(data) - len(wanted))
            before, rest = before + data.count(b"\n", 0, keep), data[keep:]
    return None


def read_header(path: Path, shown_as: str) -> tuple[list[str], int]:
    """Column names in the first line, and the length of that line in bytes."""
    try:
        with open_bytes(path) as handle:
            line = handle.readline(2**20)
    except _DAMAGED as error:
        raise unreadable(error, shown_as, "a complete file") from error
    if not line.strip():
        raise DataError(Fault(file=shown_as, expected="a header row", found="an empty file", fix="Download it again."))
    # Names of other columns than ours may be in another encoding.
    text = decode(line, shown_as=shown_as, notes=[]).strip("\r\n")
    names = pl.read_csv(io.BytesIO(text.encode() + b"\n"), has_header=False, infer_schema=False).row(0)
    return [str(n or "").strip() for n in names], len(line)


def check_columns(path: Path, columns: Sequence[Column], shown_as: str) -> dict[str, str]:
    """Map the canonical column names to the names in the header.

    Raises:
        DataError: all declared columns that are missing or repeated.
    """
    header, _ = read_header(path, shown_as)
    found, faults = match_header(header, columns), FaultCollector()
    lower = [h.lower() for h in header]
    for column in columns:
        if column.required and column.name not in found:
            faults.add(
                Fault(
                    file=shown_as,
                    column=column.name,
                    expected="this column",
                    found=f"columns {', '.join(header[:16])}",
                    fix="Check that this is the MIMIC-IV table, with its header row.",
                )
            )
        elif column.name in found and lower.count(found[column.name].lower()) > 1:
            faults.add(Fault(file=shown_as, column=column.name, expected="this column once", found="a repeated column"))
    faults.raise_if_any()
    return found


class TableScan:
    """Iterate over frames with the canonical names of `columns` and the rows of `subjects` (None: all), in file order.

    Attributes:
        n_rows: number of records read so far, including those of other patients.
        n_unknown: number of records of subjects who are not in `known` (if subject_id is among the first columns).
        n_cp1252: number of records that are not UTF-8 and were read as Windows-1252.

    Raises:
        DataError: missing columns or, while iterating, a damaged or truncated file or a value of the wrong type.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], subjects: Ids | None, *, shown_as: str, known: Ids | None = None
    ):
        self.path, self.shown_as = path, shown_as
        self.header, self._skip = read_header(path, shown_as)
        self.names = check_columns(path, columns, shown_as)
        self._columns = [c for c in columns if c.name in self.names]
        # Position of each column; headers are not used as names, because unused columns may share one.
        self._at = {c.name: self.header.index(self.names[c.name]) for c in self._columns}
        self._position = self._at["subject_id"]
        self._keep = None if subjects is None else SubjectFilter(subjects)
        self._known = None if known is None else SubjectFilter(known)
        self.n_rows = self.n_unknown = self.n_cp1252 = 0

    def oddities(self) -> str:
        """Counts of odd records, for a progress line; empty if there are none."""
        unknown = f"; {self.n_unknown:,} of patients who are not in hosp/patients" if self.n_unknown else ""
        return unknown + (f"; {self.n_cp1252:,} not UTF-8, read as Windows-1252" if self.n_cp1252 else "")

    def __iter__(self) -> Iterator[pl.DataFrame]:
        kept: list[bytes] = []
        kept_size = 0
        with ScanProgress(self.path.name, self.path.stat().st_size) as progress:
            # Three stages, each in its own thread: decompress, split, parse. Most of the work releases the GIL.
            for part, rows, done in prefetch(self._records(prefetch(self._blocks()))):
                self.n_rows += rows
                progress.advance(done, rows)
                kept.append(part)
                kept_size += len(part)
                if kept_size >= PARSE:
                    yield self._parse(b"".join(kept))
                    kept, kept_size = [], 0
        if kept_size:
            yield self._parse(b"".join(kept))

    def _blocks(self) -> Iterator[tuple[bytes, int]]:
        """Blocks of bytes after the header, each with the position in the file."""
        try:
            with self.path.open("rb") as compressed, inflating(compressed, self.path) as handle:
                handle.read(self._skip)
                while block := handle.read(BLOCK):
                    yield block, compressed.tell()
        except _DAMAGED as error:
            raise unreadable(error, self.shown_as, "a complete file") from error

    def _records(self, blocks: Iterable[tuple[bytes, int]]) -> Iterator[tuple[bytes, int, int]]:
        """Complete records of the selected patients, the number of records read, and the position in the file."""
        tail, done = b"", 0
        for block, done in blocks:
            # Join with the padding in one copy; a second copy would take a tenth of the time of decompression.
            data = b"".join((tail, block, _PADDING))
            part, used, rows = self._filter(data)
            tail = data[used:-PAD]
            if len(tail) > LONGEST_RECORD:
                break
            yield part, rows, done
        if tail.strip():
            # The last record may lack a line end.
            part, used, rows = self._filter(tail + b"\n" + _PADDING)
            if used <= len(tail):
                raise unreadable("unterminated quoted field", self.shown_as, "a complete file")
            yield part, rows, done

    def _filter(self, data: bytes) -> tuple[bytes, int, int]:
        """Selected records in padded bytes, the number of bytes in complete records, and the number of records."""
        ends = record_ends(data)
        if not len(ends):
            return b"", 0, 0
        used = int(ends[-1]) + 1
        if self._keep is None or self._position > _NEAR:
            return data[:used], used, len(ends)
        starts = np.concatenate([[0], ends[:-1] + 1])
        subjects = numbers_at(np.frombuffer(data, dtype=np.uint8), starts, self._position)
        if self._known is not None:
            self.n_unknown += int((~self._known(subjects) & (subjects >= 0)).sum())
        # Records whose subject_id could not be read here are kept and filtered after parsing.
        return cut(data, starts, ends, self._keep(subjects) | (subjects < 0)), used, len(ends)

    def _read(self, data: bytes, dtypes: dict[str, Any]) -> pl.DataFrame:
        schema = {str(i): pl.String for i in range(len(self.header))}
        schema |= {str(self._at[name]): dtype for name, dtype in dtypes.items()}
        frame = pl.read_csv(io.BytesIO(data), has_header=False, schema=schema, columns=sorted(self._at.values()))
        return frame.select(pl.col(str(at)).alias(name) for name, at in self._at.items())

    def _utf8(self, data: bytes) -> bytes:
        """Data with the records that are not UTF-8 converted from Windows-1252."""
        try:
            data.decode()
            return data
        except UnicodeDecodeError:
            records = []
            for record in self._split(data):
                notes: list[str] = []
                try:
                    text = decode(record, shown_as=self.shown_as, notes=notes)
                except DataError as error:
                    raise DataError(replace(error.faults[0], line=line_of_record(self.path, record))) from None
                self.n_cp1252 += len(notes)
                records.append(text.encode())
            return b"".join(records)

    @staticmethod
    def _split(data: bytes) -> list[bytes]:
        edges = [0, *(record_ends(data) + 1).tolist()]
        return [data[a:b] for a, b in pairwise(edges)]

    def _parse(self, data: bytes) -> pl.DataFrame:
        if not data.isascii():
            data = self._utf8(data)
        # Parse times below, because polars takes four times as long for them as for all other columns.
        times = [c for c in self._columns if isinstance(c.dtype, pl.Datetime)]
        dtypes = {c.name: c.dtype for c in self._columns if c not in times}
        try:
            frame = self._read(data, dtypes)
        except pl.exceptions.PolarsError:
            frame = self._read_texts(data, dtypes)
        frame = frame.with_row_index(ROW)
        if not data.isascii() or data.startswith(b"\n") or b"\n\n" in data or b"\n\r\n" in data:
            frame = frame.filter(pl.any_horizontal(pl.exclude(ROW).is_not_null()))
        faults = FaultCollector()
        for column in times:
            text = frame[column.name]
            time = clock_times(text)
            bad = time.is_null() & text.is_not_null()
            if bad.any():
                faults.add(self._fault(column, f"{text.filter(bad)[0]!r}", data, frame[ROW].filter(bad)[0]))
            frame = frame.with_columns(time)
        for column in self._columns:
            empty = frame[column.name].is_null()
            if not column.nullable and empty.any() and column.name not in {f.column for f in faults.faults}:
                faults.add(self._fault(column, f"{int(empty.sum())} empty fields", data, frame[ROW].filter(empty)[0]))
        faults.raise_if_any()
        if self._keep is not None:
            frame = frame.filter(pl.Series(self._keep(frame["subject_id"].to_numpy())))
        return frame.drop(ROW)

    def _fault(self, column: Column, found: str, data: bytes, row: int) -> Fault:
        fix = "Check whether the header is shifted relative to the rows, or the file is damaged."
        expected, line = f"{column.dtype} values", line_of_record(self.path, self._split(data)[row])
        return Fault(file=self.shown_as, column=column.name, line=line, expected=expected, found=found, fix=fix)

    def _read_texts(self, data: bytes, dtypes: dict[str, Any]) -> pl.DataFrame:
        """Frame parsed column by column, by the rules of `raw.typed`.

        Raises:
            DataError: the columns and values that cannot be parsed.
        """
        try:
            frame = self._read(data, dict.fromkeys(dtypes, pl.String))
        except pl.exceptions.PolarsError as ragged:
            expected, fix = f"{len(self.header)} fields per row", "Check whether the header is shifted."
            found = str(ragged).splitlines()[0]
            raise DataError(Fault(file=self.shown_as, expected=expected, found=found, fix=fix)) from ragged
        faults = FaultCollector()
        for column in (c for c in self._columns if c.name in dtypes):
            text, values = frame[column.name], frame.select(typed(column)).to_series()
            bad = text.is_not_null() & values.is_null()
            if bad.any():
                row = int(bad.arg_max() or 0)
                faults.add(self._fault(column, shown_value(column, text[row]), data, row))
            frame = frame.with_columns(values)
        faults.raise_if_any()
        return frame


def sample_rows(path: Path, columns: Sequence[Column], *, shown_as: str, size: int = 2**16) -> pl.DataFrame:
    """Parse the first rows of a large table as a scan does, which detects, for example, a shifted header."""
    scan = TableScan(path, columns, None, shown_as=shown_as)
    try:
        with open_bytes(path) as handle:
            handle.read(scan._skip)
            data = handle.read(size)
    except _DAMAGED as error:
        raise unreadable(error, shown_as, "a complete file") from error
    ends = record_ends(data)
    whole = data[: int(ends[-1]) + 1] if len(ends) else data + b"\n"
    if not whole.strip():
        raise DataError(
            Fault(file=shown_as, expected="at least one row", found="a header without rows", fix="Download it again.")
        )
    return scan._parse(whole)


def inflate_to_end(path: Path, shown_as: str) -> None:
    """Decompress a file completely to verify its CRC and length.

    Raises:
        DataError: the file is damaged or truncated.
    """
    buffer = bytearray(BLOCK)
    try:
        with open_bytes(path) as handle, ScanProgress(f"check {path.name}", path.stat().st_size) as progress:
            while handle.readinto(buffer):
                progress.advance(0, 0)
    except _DAMAGED as error:
        raise unreadable(error, shown_as, "a complete file") from error
