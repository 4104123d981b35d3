"""Scan a large table for the rows of given patients, in bounded memory: CSV, plain or .gz, or Parquet, in any files.

`TableScan` is the front of all forms. Of a CSV file, one thread decompresses (igzip of ISA-L, faster than gzip); a
second splits the bytes into records and filters them by subject_id; the calling thread parses the rest with polars, so
that most of a full export is never parsed. Records end at line ends outside quotes, so text may contain line breaks,
commas and doubled quotes. Columns are found by name, in any order. Records that are not UTF-8 are read as Windows-1252.
"""

import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from isal import igzip
from numpy.typing import NDArray

from mrpipe.budget import allowed, too_large
from mrpipe.datasets.mimic.scan.parquet import ParquetPart
from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.scan.records import PAD, SubjectFilter, cut, numbers_at, record_ends
from mrpipe.datasets.mimic.scan.values import TablePart
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import ROW, Column
from mrpipe.reading import reading, unreadable

_LOG = logging.getLogger(__name__)
BLOCK = 4 * 2**20  # bytes decompressed at a time
PARSE = 8 * 2**20  # bytes of filtered records parsed at a time
LONGEST_HEADER, LONGEST_RECORD = 2**16, 64 * 2**20
# Maximum position of subject_id for filtering records before they are parsed; beyond it, all rows are parsed.
_NEAR = 4
_PADDING = bytes(PAD)
Ids = NDArray[np.int64]


@contextmanager
def scan_progress(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Progress bar of one table, on a terminal that shows progress: a function of the position in bytes."""
    if not (sys.stderr.isatty() and _LOG.isEnabledFor(logging.INFO)):
        yield lambda done_bytes: None
        return
    from rich.console import Console
    from rich.progress import Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=max(total_bytes, 1))
        yield lambda done_bytes: progress.update(task, completed=done_bytes)


def inflated(file: IO[bytes]) -> Any:
    """Content of an open file, decompressed if it is gzipped; browsers may unpack a .gz file without renaming it."""
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return igzip.IGzipFile(fileobj=file, mode="rb") if gzipped else file  # type: ignore[no-untyped-call]


def line_of_record(path: Path, record: bytes) -> int | None:
    """Line on which a record of a file begins, as an editor counts it; for error messages, since it reads the file."""
    before, rest, wanted = 1, b"", b"\n" + record.rstrip(b"\r\n")
    with path.open("rb") as file, inflated(file) as handle:
        while block := handle.read(BLOCK):
            data: bytes = rest + block
            if (at := data.find(wanted)) >= 0:
                return before + data.count(b"\n", 0, at + 1)
            keep = max(0, len(data) - len(wanted))
            before, rest = before + data.count(b"\n", 0, keep), data[keep:]
    return None


def read_header(path: Path, shown_as: str) -> tuple[list[str], int]:
    """Column names in the first line, and the length of that line in bytes."""
    with reading(shown_as, "a complete file"), path.open("rb") as file, inflated(file) as handle:
        line = handle.readline(LONGEST_HEADER)
    if not line.strip():
        raise DataError(Fault(file=shown_as, expected="a header row", found="an empty file", fix="Download it again."))
    if len(line) == LONGEST_HEADER:
        raise too_large(shown_as, LONGEST_HEADER, "a longer one", "a header row")
    # Names of other columns than ours may be in another encoding.
    text = decode(line, shown_as=shown_as, notes=[]).strip("\r\n")
    with reading(shown_as, "a header row"):
        names = pl.read_csv(io.BytesIO(text.encode() + b"\n"), has_header=False, infer_schema=False).row(0)
    return [str(n or "").strip() for n in names], len(line)


class CsvPart(TablePart):
    """A CSV file of a table, plain or gzipped."""

    def read_header(self) -> list[str]:
        header, self._skip = read_header(self.path, self.shown_as)
        return header

    def frames(self, advance: Callable[[int], None]) -> Iterator[pl.DataFrame]:
        # Positions of the columns; headers are not used as names, because unused columns may share one.
        self._at = {c.name: self.header.index(self.names[c.name]) for c in self.columns}
        self._n_parsed, self._last = 0, b""
        kept: list[bytes] = []
        kept_size = 0
        # Three stages, each in its own thread: decompress, split, parse. Most of the work releases the GIL.
        for part, rows, done in prefetch(self._records(prefetch(self._blocks()))):
            self.scan.n_rows += rows
            advance(done)
            kept.append(part)
            kept_size += len(part)
            if kept_size >= self.scan.parse:
                yield self._parse(b"".join(kept))
                kept, kept_size = [], 0
        if kept_size:
            yield self._parse(b"".join(kept))
        # The last record of a truncated file is short, whoever's it is.
        self._require_fields(self._last)

    def _blocks(self) -> Iterator[tuple[bytes, int]]:
        """Blocks of bytes after the header, each with the position in the file."""
        with reading(self.shown_as, "a complete file"), self.path.open("rb") as file, inflated(file) as handle:
            handle.read(self._skip)
            stored = self.path.stat().st_size
            n, limit = 0, max(allowed(stored), stored)
            while block := handle.read(self.scan.block):
                n += len(block)
                if n > limit:
                    raise too_large(self.shown_as, limit, f"more in a file of {stored:,} bytes")
                yield block, file.tell()

    def _records(self, blocks: Iterable[tuple[bytes, int]]) -> Iterator[tuple[bytes, int, int]]:
        """Complete records of the selected patients, the number of records read, and the position in the file."""
        tail, done = b"", 0
        for block, done in blocks:
            # Join with the padding in one copy; a second copy would take a tenth of the time of decompression.
            data = b"".join((tail, block, _PADDING))
            part, used, rows = self._filter(data)
            tail = data[used:-PAD]
            if len(tail) > LONGEST_RECORD:
                found = "a longer one, perhaps after an unterminated quoted field"
                raise too_large(self.shown_as, LONGEST_RECORD, found, "records")
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
        starts = np.concatenate([[0], ends[:-1] + 1])
        self._last = data[starts[-1] : used]
        position = self._at.get("subject_id", _NEAR + 1)
        if self.scan.keep is None or position > _NEAR:
            return data[:used], used, len(ends)
        subjects = numbers_at(np.frombuffer(data, dtype=np.uint8), starts, position)
        if self.scan.known is not None:
            self.scan.n_unknown += int((~self.scan.known(subjects) & (subjects >= 0)).sum())
        # Records whose subject_id could not be read here are kept and filtered after parsing.
        return cut(data, starts, ends, self.scan.keep(subjects) | (subjects < 0)), used, len(ends)

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
                self.scan.n_cp1252 += len(notes)
                records.append(text.encode())
            return b"".join(records)

    @staticmethod
    def _split(data: bytes) -> list[bytes]:
        edges = [0, *(record_ends(data) + 1).tolist()]
        return [data[a:b] for a, b in pairwise(edges)]

    def _parse(self, data: bytes) -> pl.DataFrame:
        if not data.isascii():
            data = self._utf8(data)
        # Times are parsed later, because polars takes four times as long for them as for all other columns.
        dtypes = {c.name: c.dtype for c in self.columns if not isinstance(c.dtype, pl.Datetime)}
        try:
            frame = self._read(data, dtypes)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            with reading(self.shown_as, f"{len(self.header)} fields per row", "Check whether the header is shifted."):
                frame = self._read(data, {})
        first = self._n_parsed + 1
        frame = frame.with_row_index(ROW, offset=first)
        self._n_parsed += len(frame)
        if not data.isascii() or data.startswith(b"\n") or b"\n\n" in data or b"\n\r\n" in data:
            frame = frame.filter(pl.any_horizontal(pl.exclude(ROW).is_not_null()))
        self._require_whole(data, len(frame))
        frame = self.typed(frame, lambda row: {"line": line_of_record(self.path, self._split(data)[row - first])})
        if self.scan.keep is not None:
            frame = frame.filter(pl.Series(self.scan.keep(frame["subject_id"].to_numpy())))
        return frame

    def _require_whole(self, data: bytes, n: int) -> None:
        """Raise a DataError if any of the n records has fewer fields than the header, which polars fills with nulls."""
        quoted = b"".join(data.split(b'"')[1::2]) if b'"' in data else b""
        n_separators = np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == 44) - quoted.count(b",")
        if n_separators < n * (len(self.header) - 1):
            for record in self._split(data):
                self._require_fields(record)

    def _require_fields(self, record: bytes) -> None:
        text = io.BytesIO(record.decode("latin-1").encode())
        n = pl.read_csv(text, has_header=False, infer_schema=False).width if record.strip() else len(self.header)
        if n < len(self.header):
            expected, found = f"{len(self.header)} fields, as in the header", f"{n} fields"
            line, fix = line_of_record(self.path, record), "The file is damaged or truncated: export the table again."
            raise DataError(Fault(file=self.shown_as, line=line, expected=expected, found=found, fix=fix))


def is_parquet(path: Path) -> bool:
    """Whether a file is named or begins as Parquet."""
    with path.open("rb") as handle:
        return path.name.lower().endswith(".parquet") or handle.read(4) == b"PAR1"


class TableScan:
    """Iterate over frames with the canonical names of `columns` and the rows of `subjects` (None: all), in file order.

    The table is in one file, or in several with a header each, with the names `shown_as` in error messages. `numbered`
    adds `ROW`, the number of the record over all files, from 1 (only without `subjects`).

    Attributes:
        n_rows: number of records read so far, including those of other patients.
        n_unknown: number of records of subjects who are not in `known` (CSV: if subject_id is among the first columns).
        n_cp1252: number of records that are not UTF-8 and were read as Windows-1252.

    Raises:
        DataError: missing columns or, while iterating, a damaged, truncated or empty file or a value of the wrong type.
    """

    def __init__(
        self,
        files: Path | Sequence[Path],
        columns: Sequence[Column],
        subjects: Ids | None,
        *,
        shown_as: str | Sequence[str],
        known: Ids | None = None,
        numbered: bool = False,
    ):
        paths = [files] if isinstance(files, Path) else files
        self._shown = [shown_as] if isinstance(shown_as, str) else shown_as
        self.columns, self._numbered = columns, numbered
        self.keep, self.known = (None if ids is None else SubjectFilter(ids) for ids in (subjects, known))
        self.n_rows = self.n_unknown = self.n_cp1252 = 0
        self.block, self.parse = BLOCK, PARSE
        self._parts: list[TablePart] = []
        faults = FaultCollector()
        for path, name in zip(paths, self._shown, strict=True):
            with faults.collecting(), reading(name, "a readable file"):
                self._parts.append((ParquetPart if is_parquet(path) else CsvPart)(path, name, self))
        faults.raise_if_any()
        self.header = self._parts[0].header

    def sample(self) -> None:
        """Parse the first rows as a scan does, which detects, for example, a shifted header."""
        self.block = self.parse = 2**16
        next(iter(self), None)

    def oddities(self) -> str:
        """Counts of odd records, for a progress line; empty if there are none."""
        unknown = f"; {self.n_unknown:,} of patients who are not in hosp/patients" if self.n_unknown else ""
        return unknown + (f"; {self.n_cp1252:,} not UTF-8, read as Windows-1252" if self.n_cp1252 else "")

    def __iter__(self) -> Iterator[pl.DataFrame]:
        sizes = [p.path.stat().st_size for p in self._parts]
        with scan_progress(self._shown[0], sum(sizes)) as advance:
            n = 0
            for i, part in enumerate(self._parts):
                before, start = self.n_rows, sum(sizes[:i])
                for frame in part.frames(lambda at, start=start: advance(start + at)):  # type: ignore[misc]
                    n += len(frame)
                    yield frame.with_columns(pl.col(ROW) + before) if self._numbered else frame.drop(ROW)
        if not self.n_rows or (self.keep is None and not n):
            found, fix = "a header without rows", "Download it again."
            raise DataError(Fault(file=self._shown[0], expected="at least one row", found=found, fix=fix))
