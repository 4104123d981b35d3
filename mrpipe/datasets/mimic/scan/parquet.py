"""Read a Parquet file for the rows of given patients, in memory that does not depend on the size of its row groups.

One thread decodes batches of the declared columns and filters them by subject_id; the calling thread converts the
remaining rows. Row groups whose statistics exclude all selected patients are not decoded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpipe.budget import require_parquet
from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.scan.values import TablePart, convert, without_blanks
from mrpipe.errors import DataError, Fault
from mrpipe.raw import ROW
from mrpipe.reading import reading

BATCH, BATCH_BYTES = 2**16, 32 * 2**20  # largest number of rows, and of their bytes, decoded at a time
BUFFER = 2**20  # bytes of a column read at a time


class ParquetPart(TablePart):
    """A Parquet file of a table; values are converted as in text files, whatever types the file declares."""

    def read_header(self) -> list[str]:
        with self._open() as file:
            self._n = file.metadata.num_rows
            return list(file.schema_arrow.names)

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        named = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with reading(self.shown_as, "a complete Parquet file"):
            require_parquet(self.path, self.shown_as)
            with pq.ParquetFile(self.path, **named) as file:
                yield file

    def frames(self, advance: Callable[[int], None]) -> Iterator[pl.DataFrame]:
        size, before = self.path.stat().st_size, 0
        for reached, batch in prefetch(self._batches()):
            self.scan.n_rows += reached - before
            advance(size * reached // max(self._n, 1))
            before = reached
            if batch is not None:
                columns = [self._series(batch, self.names[c.name]).rename(c.name) for c in self.columns]
                frame = pl.DataFrame([*columns, self._series(batch, ROW)])
                yield self.typed(frame, lambda row: {"row": row})

    def _batches(self) -> Iterator[tuple[int, pa.RecordBatch | None]]:
        """Number of rows read so far, and the selected rows with ROW; small row groups are decoded together."""
        names, subject = list(self.names.values()), self.names.get("subject_id", "")
        with self._open() as file:
            row, end, groups = 0, 0, [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            for relevant, run in groupby(range(len(groups)), lambda i: self._relevant(groups[i], subject)):
                numbers = list(run)
                end += sum(groups[i].num_rows for i in numbers)
                # Rows of unknown subjects are counted in all row groups.
                decoded = names if relevant else [subject] if self.scan.known is not None else []
                # Of the whole table, so that wide columns such as text do not fill the memory.
                rows = max(1, min(BATCH, BATCH_BYTES * self._n // max(1, sum(g.total_byte_size for g in groups))))
                for batch in file.iter_batches(rows, row_groups=numbers, columns=decoded) if decoded else ():
                    kept = self._kept(batch, subject)
                    batch = batch.append_column(ROW, pa.array(np.arange(row + 1, row + len(batch) + 1)))
                    row += len(batch)
                    yield row, batch.filter(pa.array(kept)) if relevant and kept.any() else None
                row = end
                yield row, None

    def _kept(self, batch: pa.RecordBatch, subject: str) -> np.ndarray:
        """Mask of the rows of selected patients, and of rows whose subject_id is invalid."""
        if self.scan.keep is None:
            return np.ones(len(batch), dtype=bool)
        column = next(c for c in self.columns if c.name == "subject_id")
        ids = convert(without_blanks(self._series(batch, subject), column), column)
        invalid, subjects = ids.is_null().to_numpy(), ids.fill_null(-1).to_numpy()
        if self.scan.known is not None:
            self.scan.n_unknown += int((~self.scan.known(subjects) & ~invalid).sum())
        return np.asarray(self.scan.keep(subjects) | invalid)

    def _relevant(self, group: pq.RowGroupMetaData, subject: str) -> bool:
        """Whether a row group may have rows of selected patients, by the minimum and maximum of subject_id."""
        chunks = [c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema == subject]
        if self.scan.keep is None or not chunks or not chunks[0].is_stats_set or not chunks[0].statistics.has_min_max:
            return True
        found = chunks[0].statistics
        return not isinstance(found.min, int) or found.null_count != 0 or self.scan.keep.overlaps(found.min, found.max)

    def _series(self, batch: pa.RecordBatch, name: str) -> pl.Series:
        array = batch.column(name)
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            fault = Fault(file=self.shown_as, column=name, expected="text in UTF-8", found="other bytes")
            raise DataError(fault) from error
        return pl.Series(name, array)
