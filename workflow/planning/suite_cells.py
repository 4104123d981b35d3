"""What a suite comes to: rows, columns, and the runs in its cells; and how that is told to what renders it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mrpipe.experiment.missingness import Missingness, non_default
from mrpipe.store.masks import combination_name

from .plan import PlannedRun, missingness_name


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A line of a table: a method with its settings.

    Attributes:
        published: name of the method in the paper's tables, or "".
        search: takes part in searches.
    """

    name: str
    method: str
    preset: str | None
    overrides: Mapping[str, Any]
    published: str
    control: bool
    search: bool


@dataclass(frozen=True, kw_only=True)
class PlannedColumn:
    """A column of a table: a view of a store, as observed or with modalities taken away.

    Attributes:
        store: name of the store.
        view: modalities in the order of the store's bits.
        absent: modalities of the view that the store does not have; there are no cells then.
        missingness: with the seed of the first cell, or None.
        transforms: transform options that differ from their defaults.
        cells: name of the row → its runs, one a seed.
    """

    dataset: str
    store: str
    view: tuple[str, ...]
    absent: tuple[str, ...]
    missingness: Missingness | None
    task: str | None
    scheme: str | None
    transforms: Mapping[str, Any]
    cells: dict[str, list[PlannedRun]] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Folder of its cells."""
        parts = [self.store, combination_name(self.view)]
        parts += [missingness_name(self.missingness)] if self.missingness else []
        parts += [f"task_{self.task}"] * (self.task is not None)
        parts += [f"split_{self.scheme}"] * (self.scheme is not None)
        parts += [f"{name}_{value}" for name, value in self.transforms.items()]
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True)
class PlannedSuite:
    """One target.

    Attributes:
        figure: kind of the figure; "" for a table.
        metrics: of the overview.
        published: table of the paper, or "".
        of: suites that this one stands for.
        missing: modality that the samples of an embedding lack.
    """

    name: str
    title: str
    figure: str
    metrics: tuple[str, ...]
    published: str
    missing: str
    of: tuple[str, ...]
    rows: Mapping[str, PlannedRow]
    columns: tuple[PlannedColumn, ...]

    @property
    def cells(self) -> dict[str, PlannedRun]:
        """Its cells, by folder."""
        return {run.folder: run for c in self.columns for runs in c.cells.values() for run in runs}

    @property
    def runs(self) -> dict[str, PlannedRun]:
        """The cells that are trained, by folder: costs are measured without."""
        return {} if self.figure == "cost" else self.cells

    @property
    def stores(self) -> list[str]:
        """Names of the stores that it has cells or figures of."""
        return list(dict.fromkeys(c.store for c in self.columns if not c.absent))


def _missingness(m: Missingness) -> dict[str, Any]:
    # The label that it depends on is the column's task.
    own = {k: v for k, v in non_default(asdict(m)).items() if k != "task"}
    return {"mechanism": m.mechanism, "p": m.p, **own}


def description(suite: PlannedSuite, size: str, places: Mapping[str, tuple[str, str | None]]) -> dict[str, Any]:
    """A suite as `mrpipe suite-tables` reads it: columns and rows, and which runs belong in which cell.

    Args:
        places: name of a store → its folder, and the folder with the simulator's truth, where it is simulated.
    """
    columns = [
        {
            "dataset": c.dataset,
            "experiment": c.experiment,
            "store": places[c.store][0],
            "truth": places[c.store][1],
            "modalities": list(c.view),
            "absent": list(c.absent),
            "missingness": c.missingness and _missingness(c.missingness),
            "task": c.task,
            "scheme": c.scheme,
            **({"transforms": c.transforms} if c.transforms else {}),
            "cells": {row: [runs[0].label, [run.seed for run in runs]] for row, runs in c.cells.items()},
        }
        for c in suite.columns
    ]
    rows = [
        {
            "name": r.name,
            "method": r.method,
            "preset": r.preset or "paper",
            "published": r.published,
            "control": r.control,
        }
        for r in suite.rows.values()
    ]
    return {
        "suite": suite.name,
        "title": suite.title,
        "size": size,
        "metrics": list(suite.metrics),
        "published": suite.published,
        "figure": suite.figure,
        "missing": suite.missing,
        "trials": sorted({run.trials for run in suite.runs.values()} - {0}),
        "rows": rows,
        "columns": columns,
    }
