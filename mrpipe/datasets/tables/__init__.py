"""Declared tables: your own data without Python; a YAML declares ids, labels and tables (docs/tables.md)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.declared import declare, pattern
from mrpipe.datasets.features import dictionary_of
from mrpipe.datasets.tables.check import check_export
from mrpipe.datasets.tables.cohort import build_cohort
from mrpipe.datasets.tables.config import ModalityTable, TablesConfig, TablesOptions
from mrpipe.datasets.tables.features import no_samples, parse, vectors
from mrpipe.datasets.tables.files import read_table
from mrpipe.datasets.tables.long import read_long
from mrpipe.datasets.tables.parser import parse_config, read_config
from mrpipe.datasets.tables.paths import read_paths
from mrpipe.datasets.tables.simulate.export import YAML, TablesSimulation, simulate_export
from mrpipe.errors import DataError, FaultCollector
from mrpipe.schema import Dataset, Features, Modality, ModalityReader, Scheme, Task


@dataclass(frozen=True)
class TableReader:
    """Reads one modality of a declared dataset; its repr is the declaration."""

    config: TablesConfig
    modality: ModalityTable
    bit: int

    def __call__(self, raw: Path, samples: pl.DataFrame, options: TablesOptions) -> Features:
        faults, declared, name = FaultCollector(), self.modality, self.modality.name
        table = read_table(raw, declared.file, self.config)
        if declared.long is not None:
            return read_long(table, declared, self.bit, samples)
        if declared.files:
            return read_paths(raw, table, declared, self.bit, samples)
        parsed = parse(table, declared, samples, faults)
        faults.raise_if_any()
        assert parsed is not None
        x, features = parsed.x, parsed.features
        if not len(x):
            raise DataError(no_samples(table, name, "Does it use the ids of the label's file?"))
        shape = (len(features),)
        encoder = next((f.note for f in features if f.kind == "embedding"), "")
        modality = Modality(
            name=name, bit=self.bit, kind="vector", shape=shape, encoder=encoder, description=declared.description
        )
        columns = {
            "name": [f.name for f in features],
            "unit": [f.unit for f in features],
            "kind": [f.kind for f in features],
            "levels": [None if f.levels is None else list(f.levels) for f in features],
            "description": [f.note for f in features],
            "source_column": [f.column for f in features],
        }
        observed = np.array([(~np.isnan(column)).sum() for column in x.T])
        dictionary = dictionary_of(name, table.shown_as, columns, observed, len(x))
        return Features(modality=modality, batches=vectors(modality, parsed.samples, x), dictionary=dictionary)


def _declared(base: Dataset, config: TablesConfig, path: str = "tables.yaml") -> Dataset:
    tasks = tuple(Task(name=x.name, kind=x.kind, classes=x.classes, description=x.description) for x in config.labels)
    standard = None
    if split := config.split:
        description = f"{'by' if split.by else 'column'} {split.column} of {split.file}"
        standard = Scheme(column="split", description=description)
    readers = {
        m.name: ModalityReader(bit=bit, description=m.description, read=TableReader(config, m, bit))
        for bit, m in enumerate(config.modalities)
    }
    texts = {key: getattr(config, key) or getattr(base, key) for key in ("title", "citation", "licence", "provider")}
    # Modalities of images and arrays, and those with precomputed vectors, read other files, too.
    own = {m.name: {m.file} for m in config.modalities if not m.files and ":" not in m.encoder}
    read = {"cohort": config.cohort_files, **own}
    files = {step: (f"*{pattern(Path(path).name)}", *sorted(map(pattern, names))) for step, names in read.items()}
    return declare(dataclasses.replace(base, **texts, files=files), tasks, readers, standard)


def resolve(raw: Path, options: TablesOptions) -> Dataset:
    """The dataset declared by the YAML of an export; no table is opened.

    Raises:
        DataError: if there is no YAML, or it has errors.
    """
    return _declared(_BASE, read_config(raw, options), options.config)


_BASE = Dataset(
    name="tables",
    title="Your own CSV, TSV or Parquet tables",
    citation="none declared in the YAML file",
    licence="none declared in the YAML file",
    provider="your own files, described by a YAML file (docs/tables.md)",
    options=TablesOptions,
    simulation=TablesSimulation,
    modalities={},
    tasks=(),
    schemes={},
    check=check_export,
    cohort=build_cohort,
    simulate=simulate_export,
    tiny={"n_visits": 80},
    resolve=resolve,
)
# Before an export is known: modalities, tasks and schemes of the simulator's YAML.
DATASET = dataclasses.replace(_declared(_BASE, parse_config(YAML, "tables.yaml")), title=_BASE.title)
