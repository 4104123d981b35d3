"""A suite as it was asked for: rows, columns, and which runs belong in which cell (`workflow/suite.py` writes it)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_retriever.suites.published import DATASETS, short
from mrpipe.errors import DataError, Fault

REFERENCE = "moe_retriever"
# The row of the best possible prediction, which a simulator knows.
BEST = "best possible"


@dataclass(frozen=True)
class SuiteRow:
    """A method with its settings, as the table names it."""

    name: str
    method: str
    preset: str
    published: str
    control: bool


@dataclass(frozen=True)
class SuiteColumn:
    """A view of a store.

    Attributes:
        store: its folder.
        missingness: `mechanism`, `p`, and settings that are not the usual ones; None: as observed.
        cells: name of the row → folder of its runs and their seeds.
        task, scheme: None: the store's own.
        transforms: transform options that differ from their defaults.
    """

    dataset: str
    experiment: str
    store: str
    truth: str | None
    modalities: tuple[str, ...]
    absent: tuple[str, ...]
    missingness: Mapping[str, Any] | None
    cells: Mapping[str, tuple[str, list[int]]]
    task: str | None = None
    scheme: str | None = None
    transforms: Mapping[str, Any] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        return None if self.missingness is None else float(self.missingness["p"])

    @property
    def data(self) -> str:
        """The data set as the paper writes it; one that is not the paper's is called after its store."""
        return DATASETS[self.dataset][0] if self.dataset in DATASETS else Path(self.store).name

    @property
    def view(self) -> str:
        return short(self.dataset, self.modalities)

    @property
    def name(self) -> str:
        """The column in a header: the view, what is taken away, and what else may tell it from another."""
        parts = [self.view]
        if self.missingness is not None:
            mechanism = self.missingness["mechanism"]
            parts.append(f"p = {self.p:g}" + ("" if mechanism == "mcar" else f" ({mechanism})"))
            parts += [f"{k} = {v}" for k, v in self.missingness.items() if k not in ("mechanism", "p")]
        parts += [f"task {self.task}"] * (self.task is not None)
        parts += [f"{self.scheme} split"] * (self.scheme is not None)
        parts += [f"{k} = {v}" for k, v in self.transforms.items()]
        return ", ".join(parts)

    def runs(self) -> Iterator[tuple[str, int, str]]:
        """(row, seed, folder below that of all runs)."""
        for row, (label, seeds) in self.cells.items():
            for seed in seeds:
                yield row, seed, f"{self.experiment}/{label}/seed{seed}"


@dataclass(frozen=True)
class SuiteSpec:
    """A table or figure as it was asked for.

    Attributes:
        figure: kind of the figure; "" for a table.
        missing: modality that the samples of an embedding lack.
        trials: budgets of the searches for settings.
        unfinished: folders of runs that do not count, whatever lies there.
    """

    name: str
    title: str
    size: str
    metrics: tuple[str, ...]
    published: str
    rows: tuple[SuiteRow, ...]
    columns: tuple[SuiteColumn, ...]
    figure: str = ""
    missing: str = ""
    trials: tuple[int, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def every_row(self) -> tuple[SuiteRow, ...]:
        """The rows, and that of the best possible prediction."""
        return (*self.rows, SuiteRow(BEST, "", "", "", control=True))

    @property
    def reference(self) -> str | None:
        """Row that the others are compared with: the first one of MoE-Retriever."""
        return next((r.name for r in self.rows if r.method == REFERENCE and not r.control), None)


def parse_suite(said: Mapping[str, Any]) -> SuiteSpec:
    """A suite from the content of a suite.json."""
    columns = tuple(
        SuiteColumn(**{**c, "modalities": tuple(c["modalities"]), "absent": tuple(c["absent"])})
        for c in said["columns"]
    )
    return SuiteSpec(
        said["suite"],
        said["title"],
        said["size"],
        tuple(said["metrics"]),
        said["published"],
        tuple(SuiteRow(**row) for row in said["rows"]),
        columns,
        said.get("figure", ""),
        said.get("missing", ""),
        tuple(said.get("trials", ())),
        tuple(said.get("unfinished", ())),
    )


def read_suite(path: Path) -> SuiteSpec:
    """A suite.json.

    Raises:
        DataError: it is not one.
    """
    try:
        return parse_suite(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        fix = "The workflow writes it: snakemake <suite>."
        raise DataError(Fault(file=str(path), expected="a suite.json", found=found, fix=fix)) from error
