"""Output that the kinds of modalities share: record batches of vectors, and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.tables.files import RawTable
from mrpipe.errors import Fault
from mrpipe.schema import DICTIONARY_SCHEMA, Modality

BATCH_ROWS = 4096


def no_samples(table: RawTable, name: str, fix: str) -> Fault:
    return table.fault(f"a value of {name} for at least one sample", "none", fix)


def vectors(modality: Modality, ids: pl.Series, x: NDArray[Any]) -> Iterator[pa.RecordBatch]:
    """Record batches of the rows of x (n, d)."""
    for start in range(0, len(x), BATCH_ROWS):
        some = pa.array(ids[start : start + BATCH_ROWS].to_list(), type=pa.string())
        flat = np.ascontiguousarray(x[start : start + BATCH_ROWS], dtype=np.float32).reshape(-1)
        array = pa.FixedSizeListArray.from_arrays(pa.array(flat), x.shape[1])
        yield pa.RecordBatch.from_arrays([some, array], schema=modality.arrow_schema())


def dictionary_of(name: str, file: str, columns: dict[str, Any], n_observed: Any, n: int) -> pl.DataFrame:
    """Dictionary of a modality: `columns` are those that differ from their defaults; `n_observed` (d,) of n rows."""
    d = len(columns["name"])
    rows: dict[str, Any] = {c: [""] * d for c in DICTIONARY_SCHEMA} | {"levels": [None] * d, "dtype": ["float32"] * d}
    rows |= {"modality": [name] * d, "position": range(d), "source_file": [file] * d}
    return pl.DataFrame(
        rows | columns | {"n_observed": n_observed, "n_missing": n - n_observed}, schema=DICTIONARY_SCHEMA
    )
