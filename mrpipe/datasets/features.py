"""What readers return: record batches and the dictionary of a modality."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.schema import DICTIONARY_SCHEMA, TRIED_SCHEMA, Features, Modality

FILES = 64  # files whose content is in memory at a time


def record_batch(
    modality: Modality,
    ids: Sequence[str],
    x: NDArray[Any],
    lengths: NDArray[Any] | None = None,
    time: NDArray[Any] | None = None,
) -> pa.RecordBatch:
    """Record batch of n samples in `modality.arrow_schema()`.

    Args:
        x: (n, *shape) or, of a sequence, the steps (T, *shape) of all samples.
        lengths: number of steps of each sample (n,), of a sequence.
        time: times of the steps (T,), of an irregular sequence.
    """
    flat = pa.array(np.ascontiguousarray(x, dtype=modality.dtype).reshape(-1))
    values = pa.FixedSizeListArray.from_arrays(flat, modality.size)
    columns = [pa.array(ids, type=pa.string()), values]
    if lengths is not None:
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns = [columns[0], pa.ListArray.from_arrays(offsets, values), pa.array(lengths.astype(np.int32))]
        if time is not None:
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(time.astype(np.float32))))
    return pa.RecordBatch.from_arrays(columns, schema=modality.arrow_schema())


def dictionary_of(
    name: str, file: str, columns: Mapping[str, Any], n_observed: Any, n: int, statistics: Sequence[str] = ()
) -> pl.DataFrame:
    """Dictionary of a modality with n samples; with statistics, each row becomes one row per statistic.

    Args:
        columns: the columns that differ from their defaults; one value is that of all d rows, also of `n_observed`.
    """
    rows: dict[str, Any] = dict.fromkeys(DICTIONARY_SCHEMA, "") | {"levels": None, "dtype": "float32", "modality": name}
    rows |= {"position": range(len(columns["name"])), "source_file": file, **columns}
    frame = pl.DataFrame(rows | {"n_observed": n_observed, "n_missing": n - n_observed}, schema=DICTIONARY_SCHEMA)
    if statistics:
        named = pl.DataFrame({"statistic": statistics})
        frame = frame.join(named, how="cross", maintain_order="left_right").with_columns(
            pl.int_range(pl.len()).cast(DICTIONARY_SCHEMA["position"]).alias("position"),
            pl.format("{} {}", "name", "statistic").alias("name"),
            pl.when(pl.col("statistic") == "count").then(pl.lit("")).otherwise("unit").alias("unit"),
        )
    return frame.select(DICTIONARY_SCHEMA.names())


def from_files(
    modality: Modality,
    ids: Sequence[str],
    load: Callable[[str], NDArray[Any]],
    source: str,
    columns: Mapping[str, Any],
    absent: Mapping[str, str] | None = None,
) -> Features:
    """Features of sorted samples with a file each, read lazily; `source` and `columns` are for `dictionary_of`.

    Args:
        load: sample id → array of `modality.shape` (or flat), or the steps (T, *shape) of a sequence.
        absent: sample id → the reason why it lacks the modality.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(ids), FILES):
            chunk = ids[start : start + FILES]
            arrays, sequence = [load(sample_id) for sample_id in chunk], modality.kind == "sequence"
            lengths = np.array([len(x) for x in arrays]) if sequence else None
            yield record_batch(modality, chunk, np.concatenate(arrays) if sequence else np.stack(arrays), lengths)

    reasons = absent or {}
    rows = [(i, 0, "failed" if i in reasons else "ok", reasons.get(i)) for i in sorted({*ids, *reasons})]
    tried = partial(pl.DataFrame, rows, schema=TRIED_SCHEMA, orient="row") if absent else None
    dictionary = dictionary_of(modality.name, source, columns, len(ids), len(ids))
    return Features(modality=modality, batches=batches(), dictionary=dictionary, tried=tried)
