"""Reader of one modality of a declared dataset: columns of a table, a long table, or texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.tables.cohort import with_prediction_times
from mrpipe.datasets.tables.config import ModalityTable, TablesConfig, TablesOptions
from mrpipe.datasets.tables.features import parse
from mrpipe.datasets.tables.files import read_table
from mrpipe.datasets.tables.long import read_long
from mrpipe.datasets.tables.texts import read_texts
from mrpipe.datasets.tables.vectors import dictionary_of, no_samples, vectors
from mrpipe.errors import DataError, FaultCollector
from mrpipe.schema import Features, Modality


@dataclass(frozen=True)
class TableReader:
    """Reads one modality of a declared dataset; its repr is the declaration."""

    config: TablesConfig
    modality: ModalityTable
    bit: int

    def __call__(self, raw: Path, samples: pl.DataFrame, options: TablesOptions) -> Features:
        faults, declared, name = FaultCollector(), self.modality, self.modality.name
        table = read_table(raw, declared.file, self.config)
        samples = with_prediction_times(raw, self.config, samples)
        if declared.long is not None:
            return read_long(table, declared, self.bit, samples)
        if declared.is_text:
            return read_texts(table, declared, self.bit, samples)
        parsed = parse(table, declared, samples, faults)
        faults.raise_if_any()
        assert parsed is not None
        x, features = parsed.x, parsed.features
        if not len(x):
            raise DataError(no_samples(table, name, "Does it use the ids of the label's file?"))
        shape = (len(features),)
        modality = Modality(name=name, bit=self.bit, kind="vector", shape=shape, description=declared.description)
        columns = {
            "name": [f.name for f in features],
            "unit": [f.unit for f in features],
            "kind": ["numeric" if f.levels is None else "categorical" for f in features],
            "levels": [None if f.levels is None else list(f.levels) for f in features],
            "source_column": [f.column for f in features],
        }
        observed = np.array([(~np.isnan(column)).sum() for column in x.T])
        dictionary = dictionary_of(name, table.shown_as, columns, observed, len(x))
        return Features(modality=modality, batches=vectors(modality, parsed.samples, x), dictionary=dictionary)
