"""Batches: trainings and their evaluations that one job runs one after the other.

Starting a process and loading torch and the data takes longer than a small training. Small cells of a store therefore
share jobs, and large trainings have a job each.
"""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moe_retriever.catalogue import gradient_steps, method_title

from .runs import PlannedRun, masks_of

# Cells per job, unless the configuration sets `cells_per_job`: few enough that a table occupies eight cores.
JOINED = 16

# A training and those of its evaluations that the same suites need.
Cell = tuple[PlannedRun, ...]


@dataclass(frozen=True, kw_only=True)
class CellBatch:
    """The cells of one job.

    Attributes:
        name: value of the rules' wildcard, unique also among batches of other suites.
        cells: sorted, so that cells with the same data are neighbours.
        large: whether they may take hours each.
    """

    name: str
    cells: tuple[Cell, ...]
    large: bool

    @cached_property
    def file(self) -> str:
        """Path of the batch's file below the folder of all batches; it begins with the name of the rule."""
        return f"{'cells' if gradient_steps(self.cells[0][0].method) else 'cpu_cells'}/{self.name}.json"

    @cached_property
    def runs(self) -> list[PlannedRun]:
        """All evaluations."""
        return [run for cell in self.cells for run in cell]

    @cached_property
    def inputs(self) -> list[str]:
        """Mask files and results of searches."""
        files = [f"<results>/masks/{store}/{mask}.parquet" for store, mask in masks_of(self.runs)]
        files += [f"<results>/searches/{run.experiment}/{run.label}/best.json" for run in self.runs if run.trials]
        return list(dict.fromkeys(files))

    def __str__(self) -> str:
        first, *others = (cell[0] for cell in self.cells)
        if not others:
            return f"{first.experiment}: {method_title(first.method)}, seed {first.seed}"
        methods = sorted({method_title(cell[0].method) for cell in self.cells})
        more = f" and {len(methods) - 3} more" if len(methods) > 4 else ""
        return f"{first.store}: {len(self.cells)} cells of {', '.join(methods[: 3 if more else 4])}{more}"


def make_batches(
    runs: Iterable[tuple[PlannedRun, Sequence[str]]], *, per_job: int | None, small: bool
) -> dict[str, CellBatch]:
    """Batches by name; each evaluation is in exactly one.

    Args:
        runs: evaluations, each with the names of the suites that need it. Cells of different sets of suites are in
            different batches, so that no suite runs cells of another.
        per_job: maximum number of cells per batch; None: `JOINED`, but one for large trainings with gradient steps.
        small: whether all cells take seconds.
    """
    cells: dict[tuple[str, tuple[str, ...]], list[PlannedRun]] = defaultdict(list)
    for run, owners in runs:
        cells[run.folder, tuple(sorted(owners))].append(run)
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for (folder, owners), tested in cells.items():
        run, gradient = tested[0], gradient_steps(tested[0].method)
        # Cells that wait for different searches, and large ones of different methods, do not wait for each other.
        apart = (run.experiment, run.label) if run.trials else () if small or per_job else (run.label,)
        apart = (folder,) if gradient and not (small or per_job) else apart
        groups[(run.store, str(gradient), *apart, "|", *owners)].append(tuple(tested))
    batches = []
    for key, group in groups.items():
        group.sort(key=lambda cell: (cell[0].experiment, cell[0].seed, cell[0].label))
        n = math.ceil(len(group) / (per_job or JOINED))
        for i in range(n):
            chunk = tuple(group[i * len(group) // n : (i + 1) * len(group) // n])
            # A single cell has the name of its folder, and of its protocols if other suites need others.
            tests = [run.test.name for run in chunk[0] if run.test]
            single = "-".join([chunk[0][0].folder, *([_digest(*tests)] if tests else [])])
            name = single if len(chunk) == 1 else f"{key[0]}/{_digest(*key)}-{i}"
            batches.append(CellBatch(name=name, cells=chunk, large=not small and key[1] == "True"))
    return {batch.name: batch for batch in batches}


def files_of(batches: Iterable[CellBatch]) -> dict[str, str]:
    """Folder of each evaluation → file of its batch."""
    return {run.tested: batch.file for batch in batches for run in batch.runs}


def incomplete_batches(folder: Path) -> list[str]:
    """Files of finished batches below a folder of which a listed result is gone."""
    files = ((file, json.loads(file.read_text(encoding="utf-8"))) for file in folder.rglob("*.json"))
    return [str(file) for file, runs in files if not all(os.path.exists(f"{run}/metrics.json") for run in runs)]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
