"""Scan a large CSV (plain or .gz) for the rows of some patients, in bounded memory and faster than gzip inflates.

A thread inflates (ISA-L's igzip) while the calling thread cuts the bytes into records, reads the patient's number off
each record and keeps the records of wanted patients; only those are parsed, by polars. Most of a full export is
never parsed at all. Records are cut at line ends outside quotes, so text with line breaks, commas and doubled quotes
passes. Columns are found by name in the header, in any order.
"""

from __future__ import annotations

import io
import queue
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from isal import igzip
from numpy.typing import NDArray

from mrpipe.datasets.mimic.progress import ScanProgress
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, match_header

Bytes = NDArray[np.uint8]
BLOCK = 8 * 2**20  # inflated at a time
PARSE = 16 * 2**20  # kept bytes that are parsed together
LONGEST_RECORD = 64 * 2**20
_DIGITS = 19  # of an int64
_COMMA, _NEWLINE, _QUOTE = 44, 10, 34
# A prefilter looks for the patient's number behind at most so many other fields; behind more, all rows are parsed.
_NEAR = 4

_DAMAGED = (EOFError, OSError, zlib.error, igzip.isal_zlib.error)


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


def open_bytes(path: Path) -> IO[bytes]:
    """A file's content, inflated where its name ends in .gz."""
    return igzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


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
                    file=shown_as, column=column.name, expected="this column",
                    found=f"columns {', '.join(header[:16])}",
                    fix="Is this the table of MIMIC-IV, with its header row?",
                )
            )  # fmt: skip
        elif column.name in found and lower.count(found[column.name].lower()) > 1:
            faults.add(
                Fault(file=shown_as, column=column.name, expected="this column once", found="several of this name")
            )
    faults.raise_if_any()
    return found


class _Inflater(threading.Thread):
    """Reads blocks ahead of the consumer; at most two wait."""

    def __init__(self, path: Path, skip: int):
        super().__init__(daemon=True)
        self._path, self._skip = path, skip
        self.blocks: queue.Queue[tuple[bytes, int] | BaseException | None] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()

    def _put(self, item: tuple[bytes, int] | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self.blocks.put(item, timeout=0.2)
            except queue.Full:
                continue

    def run(self) -> None:
        try:
            with self._path.open("rb") as compressed:
                handle: Any = (
                    igzip.IGzipFile(fileobj=compressed, mode="rb") if self._path.suffix == ".gz" else compressed
                )
                handle.read(self._skip)
                while not self._stopped.is_set():
                    block = handle.read(BLOCK)
                    if not block:
                        break
                    self._put((block, compressed.tell()))
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._put(error)

    def stop(self) -> None:
        self._stopped.set()


def record_ends(data: Bytes) -> NDArray[np.int64]:
    """Positions of the line ends that end a record, in bytes that begin at a record: those outside quotes."""
    ends = np.flatnonzero(data == _NEWLINE)
    quotes = np.flatnonzero(data == _QUOTE)
    if len(quotes):
        # A doubled quote counts twice, so the number of quotes before a place is odd just inside a quoted field.
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return ends


def numbers_at(data: Bytes, starts: NDArray[np.int64], column: int) -> NDArray[np.int64]:
    """The whole number in field `column` of the records that begin at `starts`; -1 where it is no plain number.

    Args:
        data: bytes, with at least 64 bytes behind the last start (pad with zeros).
    """
    position = starts
    known = np.ones(len(starts), dtype=bool)
    for _ in range(column):
        window = np.lib.stride_tricks.sliding_window_view(data, 32)[position]
        comma = window == _COMMA
        step = comma.argmax(axis=1)
        known &= comma.any(axis=1) & (window[:, 0] != _QUOTE)
        position = np.minimum(position + step + 1, len(data) - 64)
    window = np.lib.stride_tricks.sliding_window_view(data, _DIGITS)[position] - np.uint8(48)
    digit = window < 10
    length = np.where(digit.all(axis=1), _DIGITS, digit.argmin(axis=1))
    value = np.zeros(len(starts), dtype=np.int64)
    longest = int(length.max(initial=0))
    for i in range(longest):
        inside = i < length
        value = np.where(inside, value * 10 + window[:, i], value)
    value[~known | (length == 0)] = -1
    return value


class _Wanted:
    """Which patients are kept: a table of booleans over the range of their numbers where it is small enough."""

    def __init__(self, subjects: NDArray[np.int64]):
        self._sorted = np.unique(subjects)
        self._low = int(self._sorted[0]) if len(self._sorted) else 0
        span = int(self._sorted[-1]) - self._low + 1 if len(self._sorted) else 0
        self._table = np.zeros(span + 2, dtype=bool) if span <= 2**26 else None
        if self._table is not None:
            self._table[self._sorted - self._low + 1] = True

    def __call__(self, subjects: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self._table is None:
            index = np.minimum(np.searchsorted(self._sorted, subjects), max(len(self._sorted) - 1, 0))
            kept: NDArray[np.bool_] = self._sorted[index] == subjects
            return kept
        return self._table[np.clip(subjects - self._low + 1, 0, len(self._table) - 1)]


def _kept_bytes(
    data: Bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], keep: NDArray[np.bool_]
) -> list[Bytes]:
    """The kept records as few slices; records that follow each other are one."""
    edges = np.diff(np.concatenate([[0], keep.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return [data[a:b] for a, b in zip(starts[first].tolist(), (ends[last] + 1).tolist(), strict=True)]


class Scan:
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
        self._wanted = None if subjects is None else _Wanted(subjects)
        self.n_rows = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        inflater = _Inflater(self.path, self._skip)
        inflater.start()
        kept: list[Bytes] = []
        kept_size = 0
        tail = b""
        try:
            with ScanProgress(self.path.name, self.path.stat().st_size) as progress:
                while True:
                    item = inflater.blocks.get()
                    if isinstance(item, _DAMAGED):
                        raise damaged(self.shown_as, item) from item
                    if isinstance(item, BaseException):
                        raise item
                    block, done = item if item is not None else (b"\n" if tail and not tail.endswith(b"\n") else b"", 0)
                    data = tail + block
                    parts, used, rows = self._filter(data)
                    tail = data[used:]
                    if item is None and tail.strip() or len(tail) > LONGEST_RECORD:
                        raise damaged(self.shown_as, "a quoted field that does not end")
                    self.n_rows += rows
                    progress.advance(done, rows)
                    kept += parts
                    kept_size += sum(len(p) for p in parts)
                    if kept_size >= PARSE or (item is None and kept_size):
                        yield self._parse(np.concatenate(kept).tobytes())
                        kept, kept_size = [], 0
                    if item is None:
                        return
        finally:
            inflater.stop()

    def _filter(self, data: bytes) -> tuple[list[Bytes], int, int]:
        """Slices of the kept records, how many bytes were whole records, how many records."""
        buffer = np.frombuffer(data, dtype=np.uint8)
        ends = record_ends(buffer)
        if not len(ends):
            return [], 0, 0
        used = int(ends[-1]) + 1
        if self._wanted is None or self._position > _NEAR:
            return [buffer[:used]], used, len(ends)
        starts = np.concatenate([[0], ends[:-1] + 1])
        padded = np.concatenate([buffer, np.zeros(64, dtype=np.uint8)])
        subjects = numbers_at(padded, starts, self._position)
        # A record whose number could not be read off is parsed, and judged there.
        return _kept_bytes(buffer, starts, ends, self._wanted(subjects) | (subjects < 0)), used, len(ends)

    def _read(self, data: bytes, schema: dict[str, Any], columns: list[str]) -> pl.DataFrame:
        positions = sorted(self.header.index(c) for c in columns)
        return pl.read_csv(io.BytesIO(data), has_header=False, schema=schema, columns=positions)

    def _parse(self, data: bytes) -> pl.DataFrame:
        used = {self.names[c.name]: c for c in self._columns}
        schema = {h: used[h].dtype if h in used else pl.String for h in self.header}
        try:
            frame = self._read(data, schema, list(used))
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError, pl.exceptions.InvalidOperationError) as error:
            raise self._explain(data, list(used), error) from error
        frame = frame.select(pl.col(self.names[c.name]).alias(c.name) for c in self._columns)
        for column in self._columns:
            if not column.nullable and frame[column.name].null_count():
                row = int(frame[column.name].is_null().arg_max() or 0)
                if frame.row(row) == (None,) * frame.width:
                    frame = frame.filter(pl.any_horizontal(pl.all().is_not_null()))
                    if not frame[column.name].null_count():
                        continue
                raise DataError(
                    Fault(file=self.shown_as, column=column.name, expected=f"{column.dtype} in every row",
                          found=f"{frame[column.name].null_count()} empty fields")
                )  # fmt: skip
        if self._subjects is not None:
            frame = frame.filter(pl.Series(_Wanted(self._subjects)(frame["subject_id"].to_numpy())))
        return frame

    def _explain(self, data: bytes, names: list[str], error: Exception) -> DataError:
        """Name the column and the value that could not be read."""
        try:
            frame = self._read(data, dict.fromkeys(self.header, pl.String), names)
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError) as ragged:
            return DataError(
                Fault(file=self.shown_as, expected=f"{len(self.header)} fields a row", found=str(ragged).splitlines()[0],
                      fix="Is the header shifted against the rows?")
            )  # fmt: skip
        faults = FaultCollector()
        for column in self._columns:
            text = frame[self.names[column.name]]
            bad = text.is_not_null() & cast_text(text, column.dtype).is_null()
            if bad.any():
                value = text.filter(bad)[0]
                faults.add(
                    Fault(file=self.shown_as, column=column.name, expected=f"{column.dtype} values", found=f"{value!r}",
                          fix="Is the header shifted against the rows, or the file damaged?")
                )  # fmt: skip
        return DataError(faults.faults) if faults.faults else damaged(self.shown_as, error)


def cast_text(text: pl.Series, dtype: Any) -> pl.Series:
    """Text as `dtype`; null where it is none."""
    if isinstance(dtype, pl.Datetime):
        return text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    return text.cast(dtype, strict=False)


def sample_rows(path: Path, columns: Sequence[Column], *, shown_as: str, size: int = 2**16) -> pl.DataFrame:
    """The first rows of a large table, parsed as a scan would parse them: a shifted header shows here."""
    scan = Scan(path, columns, None, shown_as=shown_as)
    try:
        with open_bytes(path) as handle:
            handle.read(scan._skip)
            data = handle.read(size)
    except _DAMAGED as error:
        raise damaged(shown_as, error) from error
    ends = record_ends(np.frombuffer(data, dtype=np.uint8))
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
            while handle.readinto(buffer):  # type: ignore[attr-defined]
                progress.advance(0, 0)
    except _DAMAGED as error:
        raise damaged(shown_as, error) from error
