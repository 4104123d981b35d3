"""Scan a large CSV (plain or .gz) for the rows of some patients, in bounded memory and faster than gzip inflates.

One thread inflates (ISA-L's igzip), a second cuts the bytes into records, reads the patient's number off each and keeps
the records of wanted patients; only those are parsed, by polars, in the calling thread. Most of a full export is
never parsed at all. Records are cut at line ends outside quotes, so text with line breaks, commas and doubled quotes
passes. Columns are found by name in the header, in any order.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from mrpipe.datasets.mimic.scan.prefetch import ahead
from mrpipe.datasets.mimic.scan.progress import ScanProgress
from mrpipe.datasets.mimic.scan.records import PAD, Wanted, clock_times, cut, numbers_at, record_ends
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, match_header

BLOCK = 4 * 2**20  # inflated at a time
PARSE = 8 * 2**20  # kept bytes that are parsed together
LONGEST_RECORD = 64 * 2**20
# A prefilter looks for the patient's number behind at most so many other fields; behind more, all rows are parsed.
_NEAR = 4
_PADDING = bytes(PAD)

_DAMAGED: tuple[type[BaseException], ...] = (EOFError, OSError, zlib.error, isal_zlib.error)  # type: ignore[assignment]


def damaged(shown_as: str, reason: object) -> DataError:
    """The error for a file that cannot be read to its end."""
    return DataError(
        Fault(
            file=shown_as,
            expected="a complete file",
            found=f"unreadable data ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})",
            fix="The file is damaged or cut short: download it again.",
        )
    )


def inflating(file: IO[bytes], path: Path) -> Any:
    """The content of an open file, inflated where its name ends in .gz."""
    return igzip.IGzipFile(fileobj=file, mode="rb") if path.suffix == ".gz" else file  # type: ignore[no-untyped-call]


def open_bytes(path: Path) -> Any:
    """A file's content, inflated where its name ends in .gz."""
    return igzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[no-untyped-call]


def read_header(path: Path, shown_as: str) -> tuple[list[str], int]:
    """Column names of the first line, and its length in bytes."""
    try:
        with open_bytes(path) as handle:
            line = handle.readline(2**20)
    except _DAMAGED as error:
        raise damaged(shown_as, error) from error
    if not line.strip():
        raise DataError(Fault(file=shown_as, expected="a header row", found="an empty file", fix="Download it again."))
    text = line.decode("utf-8-sig", errors="replace").strip("\r\n")
    names = pl.read_csv(io.BytesIO(text.encode() + b"\n"), has_header=False, infer_schema=False).row(0)
    return [str(n or "").strip() for n in names], len(line)


def check_columns(path: Path, columns: Sequence[Column], shown_as: str) -> dict[str, str]:
    """Canonical name → name in the header.

    Raises:
        DataError: every declared column that is not there, or there twice.
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
                    fix="Is this the table of MIMIC-IV, with its header row?",
                )
            )
        elif column.name in found and lower.count(found[column.name].lower()) > 1:
            faults.add(
                Fault(file=shown_as, column=column.name, expected="this column once", found="several of this name")
            )
    faults.raise_if_any()
    return found


class TableScan:
    """Iterate over frames with the canonical names of `columns`, rows of `subjects` only, in the order of the file.

    Attributes:
        n_rows: records read so far, kept or not.

    Raises:
        DataError: (while iterating) a file that is damaged or cut short, a value of another type.
    """

    def __init__(self, path: Path, columns: Sequence[Column], subjects: NDArray[np.int64] | None, *, shown_as: str):
        self.path, self.shown_as = path, shown_as
        self.header, self._skip = read_header(path, shown_as)
        self.names = check_columns(path, columns, shown_as)
        self._columns = [c for c in columns if c.name in self.names]
        self._position = self.header.index(self.names["subject_id"])
        self._subjects = subjects
        self._wanted = None if subjects is None else Wanted(subjects)
        self.n_rows = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        kept: list[bytes] = []
        kept_size = 0
        with ScanProgress(self.path.name, self.path.stat().st_size) as progress:
            # Three stages, each in a thread: inflate, cut, parse. Most of their work is done without Python's lock.
            for part, rows, done in ahead(self._records(ahead(self._blocks()))):
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
        """The bytes behind the header, and how far the file has been read."""
        try:
            with self.path.open("rb") as compressed, inflating(compressed, self.path) as handle:
                handle.read(self._skip)
                while block := handle.read(BLOCK):
                    yield block, compressed.tell()
        except _DAMAGED as error:
            raise damaged(self.shown_as, error) from error

    def _records(self, blocks: Iterable[tuple[bytes, int]]) -> Iterator[tuple[bytes, int, int]]:
        """Whole records of wanted patients, how many records were looked at, how far the file has been read."""
        tail, done = b"", 0
        for block, done in blocks:
            # With its padding in one copy: a second one would cost as much as a tenth of the inflating.
            data = b"".join((tail, block, _PADDING))
            part, used, rows = self._filter(data)
            tail = data[used:-PAD]
            if len(tail) > LONGEST_RECORD:
                break
            yield part, rows, done
        if tail.strip():
            # The last record may lack its line end.
            part, used, rows = self._filter(tail + b"\n" + _PADDING)
            if used <= len(tail):
                raise damaged(self.shown_as, "a quoted field that does not end")
            yield part, rows, done

    def _filter(self, data: bytes) -> tuple[bytes, int, int]:
        """The kept records of padded bytes, how many bytes were whole records, how many records."""
        ends = record_ends(data)
        if not len(ends):
            return b"", 0, 0
        used = int(ends[-1]) + 1
        if self._wanted is None or self._position > _NEAR:
            return data[:used], used, len(ends)
        starts = np.concatenate([[0], ends[:-1] + 1])
        subjects = numbers_at(np.frombuffer(data, dtype=np.uint8), starts, self._position)
        # A record whose number could not be read off is parsed, and judged there.
        return cut(data, starts, ends, self._wanted(subjects) | (subjects < 0)), used, len(ends)

    def _read(self, data: bytes, schema: dict[str, Any], columns: list[str]) -> pl.DataFrame:
        positions = sorted(self.header.index(c) for c in columns)
        return pl.read_csv(io.BytesIO(data), has_header=False, schema=schema, columns=positions)

    def _parse(self, data: bytes) -> pl.DataFrame:
        used = {self.names[c.name]: c for c in self._columns}
        # Times are parsed here: the reader of polars takes four times as long for them as for all the rest.
        times = [c for c in self._columns if isinstance(c.dtype, pl.Datetime)]
        schema = {h: used[h].dtype if h in used and used[h] not in times else pl.String for h in self.header}
        try:
            frame = self._read(data, schema, list(used))
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError, pl.exceptions.InvalidOperationError) as error:
            raise self._explain(data, list(used), error) from error
        frame = frame.select(pl.col(self.names[c.name]).alias(c.name) for c in self._columns)
        if not data.isascii() or data.startswith(b"\n") or b"\n\n" in data or b"\n\r\n" in data:
            frame = frame.filter(pl.any_horizontal(pl.all().is_not_null()))
        faults = FaultCollector()
        for column in times:
            text = frame[column.name]
            time = clock_times(text)
            bad = time.is_null() & text.is_not_null()
            if bad.any():
                faults.add(self._fault(column, f"{text.filter(bad)[0]!r}"))
            frame = frame.with_columns(time)
        for column in self._columns:
            n_empty = frame[column.name].null_count()
            if not column.nullable and n_empty and column.name not in {f.column for f in faults.faults}:
                faults.add(self._fault(column, f"{n_empty} empty fields"))
        faults.raise_if_any()
        if self._subjects is not None:
            frame = frame.filter(pl.Series(Wanted(self._subjects)(frame["subject_id"].to_numpy())))
        return frame

    def _fault(self, column: Column, found: str) -> Fault:
        fix = "Is the header shifted against the rows, or the file damaged?"
        return Fault(file=self.shown_as, column=column.name, expected=f"{column.dtype} values", found=found, fix=fix)

    def _explain(self, data: bytes, names: list[str], error: Exception) -> DataError:
        """Name the column and the value that could not be read."""
        try:
            frame = self._read(data, dict.fromkeys(self.header, pl.String), names)
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError) as ragged:
            return DataError(
                Fault(
                    file=self.shown_as,
                    expected=f"{len(self.header)} fields a row",
                    found=str(ragged).splitlines()[0],
                    fix="Is the header shifted against the rows?",
                )
            )
        faults = FaultCollector()
        for column in self._columns:
            text = frame[self.names[column.name]]
            bad = text.is_not_null() & cast_text(text, column.dtype).is_null()
            if bad.any():
                value = text.filter(bad)[0]
                faults.add(self._fault(column, f"{value!r}"))
        return DataError(faults.faults) if faults.faults else damaged(self.shown_as, error)


def cast_text(text: pl.Series, dtype: Any) -> pl.Series:
    """Text as `dtype`; null where it is none."""
    if isinstance(dtype, pl.Datetime):
        return clock_times(text)
    return text.cast(dtype, strict=False)


def sample_rows(path: Path, columns: Sequence[Column], *, shown_as: str, size: int = 2**16) -> pl.DataFrame:
    """The first rows of a large table, parsed as a scan would parse them: a shifted header shows here."""
    scan = TableScan(path, columns, None, shown_as=shown_as)
    try:
        with open_bytes(path) as handle:
            handle.read(scan._skip)
            data = handle.read(size)
    except _DAMAGED as error:
        raise damaged(shown_as, error) from error
    ends = record_ends(data)
    whole = data[: int(ends[-1]) + 1] if len(ends) else data + b"\n"
    if not whole.strip():
        raise DataError(
            Fault(file=shown_as, expected="at least one row", found="a header without rows", fix="Download it again.")
        )
    return scan._parse(whole)


def inflate_to_end(path: Path, shown_as: str) -> None:
    """Read a compressed file to its end, CRC and length included, and keep nothing.

    Raises:
        DataError: damaged or cut short.
    """
    buffer = bytearray(BLOCK)
    try:
        with open_bytes(path) as handle, ScanProgress(f"check {path.name}", path.stat().st_size) as progress:
            while handle.readinto(buffer):
                progress.advance(0, 0)
    except _DAMAGED as error:
        raise damaged(shown_as, error) from error
