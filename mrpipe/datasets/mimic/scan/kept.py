"""Rows of a large table that a complete check has read, for the steps that would scan the table again."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpipe.datasets.mimic.scan.records import SubjectFilter
from mrpipe.datasets.mimic.scan.scanner import Ids, TableScan
from mrpipe.store.parquet import read_metadata

_KEY = "mrpipe.kept"
_COUNTS = ("n_rows", "n_unknown", "n_cp1252")


def write_rows(scan: TableScan, subjects: Ids, path: Path) -> None:
    """Write the rows of a scan of these patients to a Parquet file, one row group per frame."""
    writer = None
    for frame in scan:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, table.schema, compression="lz4")
        writer.write_table(table, row_group_size=len(frame))
    with writer or pq.ParquetWriter(path, pa.schema([])) as writer:
        counts = {name: getattr(scan, name) for name in _COUNTS}
        ids = b64encode(np.sort(subjects).astype("<i8").tobytes()).decode()
        writer.add_key_value_metadata({_KEY: json.dumps(counts | {"subjects": ids})})


class KeptScan(TableScan):
    """Rows of some of the patients of a file of `write_rows`, in frames like those of the scan, with its counts.

    Attributes:
        complete: whether the file has the rows of all these patients.
    """

    def __init__(self, path: Path, subjects: Ids):
        state = json.loads(read_metadata(path)[_KEY])
        self.n_rows, self.n_unknown, self.n_cp1252 = (int(state[name]) for name in _COUNTS)
        self._path, self._chosen = path, SubjectFilter(subjects)
        kept = np.frombuffer(b64decode(state["subjects"]), dtype="<i8")
        self.complete = bool(np.isin(subjects, kept).all())

    def __iter__(self) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(self._path) as file:
            for group in range(file.num_row_groups):
                frame = pl.DataFrame(file.read_row_group(group))
                yield frame.filter(pl.Series(self._chosen(frame["subject_id"].to_numpy())))
