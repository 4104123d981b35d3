"""Texts of a table as a modality: one embedding per column, side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.tables.config import ModalityTable
from mrpipe.datasets.tables.features import Joined, join_rows
from mrpipe.datasets.tables.files import RawTable, known_text
from mrpipe.datasets.tables.vectors import dictionary_of, no_samples, vectors
from mrpipe.errors import DataError, FaultCollector
from mrpipe.schema import Features, Modality
from mrpipe.text.encoders import get_encoder

ENCODED_ROWS = 256


def text_of(table: RawTable, modality: ModalityTable, rows: Joined) -> pl.DataFrame:
    """`sample_id` and the texts of the samples that have any, ascending."""
    rules = table.config.missing + modality.missing
    texts = rows.texts(table, rows.columns).select(
        known_text(c, rules).alias(f"{i}") for i, c in enumerate(rows.columns)
    )
    frame = texts[rows.samples["place"]].insert_column(0, rows.samples["sample_id"])
    return frame.filter(pl.any_horizontal(pl.exclude("sample_id").is_not_null()))


def read_texts(table: RawTable, declared: ModalityTable, bit: int, samples: pl.DataFrame) -> Features:
    """Embeddings of the text columns by `encoder`; samples without a word that it knows lack the modality."""
    faults, name = FaultCollector(), declared.name
    rows = join_rows(table, declared, samples, faults)
    faults.raise_if_any()
    assert rows is not None
    texts, encoder = text_of(table, declared, rows), get_encoder(declared.encoder)
    if texts.is_empty():
        raise DataError(no_samples(table, name, "Does it use the ids of the label's file?"))
    d = encoder.dim * len(rows.columns)
    modality = Modality(
        name=name, bit=bit, kind="vector", shape=(d,), encoder=encoder.name, description=declared.description
    )
    observed = np.zeros(d, dtype=np.int64)
    n = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal n, observed
        for part in texts.iter_slices(ENCODED_ROWS):
            columns = [encoder.sentences(part[c].fill_null("").to_list()) for c in part.columns[1:]]
            x = np.concatenate(columns, axis=1)
            known: NDArray[np.bool_] = np.asarray(~np.isnan(x).all(axis=1))
            n, observed = n + int(known.sum()), observed + (~np.isnan(x)).sum(axis=0)
            yield from vectors(modality, part["sample_id"].filter(pl.Series(known)), x[known])

    def dictionary() -> pl.DataFrame:
        columns = [c for c in rows.columns for _ in range(encoder.dim)]
        names = [f"{c}_{k % encoder.dim}" for k, c in enumerate(columns)]
        shared = {"kind": ["embedding"] * d, "description": [encoder.name] * d}
        return dictionary_of(name, table.shown_as, {"name": names, "source_column": columns, **shared}, observed, n)

    return Features(modality=modality, batches=batches(), dictionary=dictionary)
