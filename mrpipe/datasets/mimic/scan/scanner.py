"""Scan a large CSV file (plain or .gz) for the rows of given patients, in bounded memory and faster than gzip.

One thread decompresses (igzip of ISA-L); a second splits the bytes into records and filters them by subject_id; the
calling thread parses the remaining records with polars. Most of a full export is never parsed. Records end at line ends
outside quotes, so text may contain line breaks, commas and doubled quotes. Columns are found by name, in any order.
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

from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.scan.progress import ScanProgress
from mrpipe.datasets.mimic.scan.records import PAD, SubjectFilter, clock_times, cut, numbers_at, record_ends
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import Column, match_header

BLOCK = 4 * 2**20  # bytes decompressed at a time
PARSE = 8 * 2**20  # bytes of filtered records parsed at a time
LONGEST_RECORD = 64 * 2**20
# Maximum position of subject_id for filtering records before they are parsed; beyond it, all rows are parsed.
_NEAR = 4
_PADDING = bytes(PAD)

_DAMAGED: tuple[type[BaseException], ...] = (EOFError, OSError, zlib.error, isal_zlib.error)  # type: ignore[assignment]


def damaged(shown_as: str, reason: object) -> DataError:
    """Error for a file that cannot be read completely."""
    return DataError(
        Fault(
            file=shown_as,
            expected="a complete file",
            found=f"unreadable data ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})",
            fix="The file is damaged or truncated: download it again.",
        )
    )


def inflating(file: IO[bytes], path: Path) -> Any:
    """Content of an open file, decompressed if its name ends in .gz."""
    return igzip.IGzipFile(fileobj=file, mode="rb") if path.suffix == ".gz" else file  # type: ignore[no-untyped-call]


def open_bytes(path: Path) -> Any:
    """Open a file for reading bytes, decompressed if its name ends in .gz."""
    return igzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[no-untyped-call]


def read_header(path: Path, shown_as: str) -> tuple[list[str], int]:
    """Column names in the first line, and the length of that line in bytes."""
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


class Scan:
    """Iterate over frames with the canonical names of `columns` and the rows of `subjects` (None: all), in file order.

    Attributes:
        n_rows: number of records read so far, including those of other patients.

    Raises:
        DataError: missing columns or, while iterating, a damaged or truncated file or a value of the wrong type.
    """

    def __init__(self, path: Path, columns: Sequence[Column], subjects: NDArray[np.int64] | None, *, shown_as: str):
        self.path, self.shown_as = path, shown_as
        self.header, self._skip = read_header(path, shown_as)
        self.names = check_columns(path, columns, shown_as)
        self._columns = [c for c in columns if c.name in self.names]
        self._position = self.header.index(self.names["subject_id"])
        self._subjects = subjects
        self._keep = None if subjects is None else SubjectFilter(subjects)
        self.n_rows = 0

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
            raise damaged(self.shown_as, error) from error

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
                raise damaged(self.shown_as, "unterminated quoted field")
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
        # Records whose subject_id could not be read here are kept and filtered after parsing.
        return cut(data, starts, ends, self._keep(subjects) | (subjects < 0)), used, len(ends)

    def _read(self, data: bytes, schema: dict[str, Any], columns: list[str]) -> pl.DataFrame:
        positions = sorted(self.header.index(c) for c in columns)
        return pl.read_csv(io.BytesIO(data), has_header=False, schema=schema, columns=positions)

    def _parse(self, data: bytes) -> pl.DataFrame:
        used = {self.names[c.name]: c for c in self._columns}
        # Parse times below, because polars takes four times as long for them as for all other columns.
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
            frame = frame.filter(pl.Series(SubjectFilter(self._subjects)(frame["subject_id"].to_numpy())))
        return frame

    def _fault(self, column: Column, found: str) -> Fault:
        fix = "Check whether the header is shifted relative to the rows, or the file is damaged."
        return Fault(file=self.shown_as, column=column.name, expected=f"{column.dtype} values", found=found, fix=fix)

    def _explain(self, data: bytes, names: list[str], error: Exception) -> DataError:
        """Error with the columns and values that could not be parsed."""
        try:
            frame = self._read(data, dict.fromkeys(self.header, pl.String), names)
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError) as ragged:
            return DataError(
                Fault(
                    file=self.shown_as,
                    expected=f"{len(self.header)} fields per row",
                    found=str(ragged).splitlines()[0],
                    fix="Check whether the header is shifted relative to the rows.",
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
    """Cast text to `dtype`; values that cannot be parsed become null."""
    if isinstance(dtype, pl.Datetime):
        return clock_times(text)
    return text.cast(dtype, strict=False)


def sample_rows(path: Path, columns: Sequence[Column], *, shown_as: str, size: int = 2**16) -> pl.DataFrame:
    """Parse the first rows of a large table as a scan does, which detects, for example, a shifted header."""
    scan = Scan(path, columns, None, shown_as=shown_as)
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
        raise damaged(shown_as, error) from error
