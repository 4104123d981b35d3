"""Rows, columns and runs of a suite, and the description of them that the rendering commands read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from mrpipe.experiment.missingness import Missingness, non_default
from mrpipe.store.masks import combination_name

from .runs import PlannedRun, PlannedTest, missingness_name

# Of suite.json.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row of a table: a method with its settings.

    Attributes:
        published: name of the method in the paper's tables, or "".
        search: whether hyper-parameters are searched for this row.
    """

    name: str
    method: str
    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    control: bool = False
    search: bool = True


@dataclass(frozen=True, kw_only=True)
class PlannedColumn:
    """A column of a table: a view of a store, as observed or with simulated missingness.

    Attributes:
        store: name of the store.
        view: modalities in bit order.
        absent: modalities of the view that the store lacks; such a column has no cells.
        missingness: settings with the seed of the first cell, or None.
        transforms: transform options that differ from their defaults.
        test: protocol of the evaluation, or None.
        cells: name of the row → its runs, one per seed.
    """

    dataset: str
    store: str
    view: tuple[str, ...]
    absent: tuple[str, ...]
    missingness: Missingness | None
    task: str | None
    scheme: str | None
    transforms: Mapping[str, Any]
    test: PlannedTest | None = None
    cells: dict[str, list[PlannedRun]] = field(default_factory=dict)

    @cached_property
    def experiment(self) -> str:
        """Folder of the column's cells."""
        parts = [self.store, combination_name(self.view)]
        parts += [missingness_name(self.missingness)] if self.missingness else []
        parts += [f"task_{self.task}"] * (self.task is not None)
        parts += [f"split_{self.scheme}"] * (self.scheme is not None)
        parts += [f"{name}_{value}" for name, value in self.transforms.items()]
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True)
class PlannedSuite:
    """One suite, which is one target of the workflow.

    Attributes:
        figure: kind of figure; "" for a table.
        metrics: metrics shown in the overview.
        published: key of the corresponding table in the paper, or "".
        of: names of the suites that a collection consists of.
        missing: modality that the samples shown in an embedding figure lack.
        notes: blocks that are omitted.
    """

    name: str
    title: str
    figure: str
    metrics: tuple[str, ...]
    published: str
    missing: str
    of: tuple[str, ...]
    notes: tuple[str, ...]
    rows: Mapping[str, PlannedRow]
    columns: tuple[PlannedColumn, ...]

    @property
    def cells(self) -> dict[str, PlannedRun]:
        """The suite's cells, by folder of their evaluation."""
        return {run.tested: run for c in self.columns for runs in c.cells.values() for run in runs}

    @property
    def runs(self) -> dict[str, PlannedRun]:
        """The cells to train, by folder; a cost figure needs no trained models."""
        return {} if self.figure == "cost" else self.cells

    @property
    def stores(self) -> list[str]:
        """Names of the stores that the suite's cells or figures use."""
        stores = (name for c in self.columns if not c.absent for name in (c.store, c.test.store if c.test else ""))
        return [name for name in dict.fromkeys(stores) if name]


def _missingness(m: Missingness | None) -> dict[str, Any] | None:
    if m is None:
        return None
    # `task` is omitted because the column already has it.
    own = {k: v for k, v in non_default(asdict(m)).items() if k != "task"}
    return {"mechanism": m.mechanism, "p": m.p, **own}


def description(suite: PlannedSuite, size: str, places: Mapping[str, tuple[str, str | None]]) -> dict[str, Any]:
    """Contents of `suite.json`, which `mrpipe suite-tables` reads: columns, rows, and the runs of each cell.

    Args:
        places: name of a store → its folder and, if it is simulated, the folder with the simulator's truth.
    """
    columns = [
        {
            **{k: getattr(c, k) for k in ("dataset", "experiment", "task", "scheme")},
            "store": places[c.store][0],
            "truth": places[(c.test and c.test.store) or c.store][1],
            **{"modalities": list(c.view), "absent": list(c.absent)},
            "missingness": _missingness(c.missingness),
            "test": c.test and {**vars(c.test), "name": c.test.name, "missingness": _missingness(c.test.missingness)},
            **({"transforms": c.transforms} if c.transforms else {}),
            "cells": {row: [runs[0].label, [run.seed for run in runs]] for row, runs in c.cells.items()},
        }
        for c in suite.columns
    ]
    shown = ("name", "method", "preset", "published", "control")
    rows = [{k: getattr(r, k) for k in shown} | {"preset": r.preset or "paper"} for r in suite.rows.values()]
    return {
        **{"format": FORMAT, "suite": suite.name, "size": size, "metrics": list(suite.metrics)},
        **{k: getattr(suite, k) for k in ("title", "published", "figure", "missing")},
        "trials": sorted({run.trials for run in suite.runs.values()} - {0}),
        **({"notes": list(suite.notes)} if suite.notes else {}),
        "rows": rows,
        "columns": columns,
    }
