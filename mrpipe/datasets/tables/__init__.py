"""Declared tables: your own data without Python; a YAML declares ids, labels and tables (docs/tables.md)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mrpipe.datasets.tables.check import check_export
from mrpipe.datasets.tables.cohort import build_cohort
from mrpipe.datasets.tables.config import TablesConfig, TablesOptions
from mrpipe.datasets.tables.parser import parse_config, read_config
from mrpipe.datasets.tables.reader import TableReader
from mrpipe.datasets.tables.simulate.export import YAML, TablesSimulation, simulate_export
from mrpipe.schema import Dataset, ModalityReader, Scheme, Task


def _declared(base: Dataset, config: TablesConfig) -> Dataset:
    """The dataset declared by a YAML file."""
    tasks = tuple(Task(name=x.name, kind=x.kind, classes=x.classes, description=x.description) for x in config.labels)
    stratify = next((t.name for t in tasks if t.kind == "classification"), None)
    how = f", stratified by {stratify}" if stratify else ""
    schemes = {"uniform": Scheme(stratify=stratify, description=f"70/15/15 by subject{how}")}
    if config.split is not None:
        how = "by" if config.split.by else "column"
        declared = Scheme(column="split", description=f"{how} {config.split.column} of {config.split.file}")
        schemes = {"standard": declared, **schemes}
    readers = {
        m.name: ModalityReader(bit=bit, description=m.description, read=TableReader(config, m, bit))
        for bit, m in enumerate(config.modalities)
    }
    return dataclasses.replace(
        base,
        title=config.title or base.title,
        citation=config.citation or base.citation,
        licence=config.licence or base.licence,
        provider=config.provider or base.provider,
        modalities=readers,
        tasks=tasks,
        schemes=schemes,
        default_scheme=next(iter(schemes)),
    )


def resolve(raw: Path, options: TablesOptions) -> Dataset:
    """The dataset declared by the YAML of an export; no table is opened.

    Raises:
        DataError: if there is no YAML, or it has errors.
    """
    return _declared(_BASE, read_config(raw, options))


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
