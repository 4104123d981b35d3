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
class Batch:
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
    def stores(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in (run.store, run.test_store)))

    @cached_property
    def masks(self) -> list[tuple[str, str]]:
        """Store and name of each mask file, of the trainings and of the protocols."""
        return list(masks_of(self.runs))

    @cached_property
    def searches(self) -> list[tuple[str, str]]:
        """Experiment and label of each search whose result the trainings use."""
        return list(dict.fromkeys((run.experiment, run.label) for run in self.runs if run.trials))

    def __str__(self) -> str:
        first, *others = (cell[0] for cell in self.cells)
        if not others:
            return f"{first.experiment}: {method_title(first.method)}, seed {first.seed}"
        methods = sorted({method_title(cell[0].method) for cell in self.cells})
        more = f" and {len(methods) - 3} more" if len(methods) > 4 else ""
        shown = methods[: 3 if more else 4]
        return f"{first.store}: {len(self.cells)} cells of {', '.join(shown)}{more}"


def make_batches(
    runs: Iterable[tuple[PlannedRun, Sequence[str]]], *, per_job: int | None, small: bool
) -> dict[str, Batch]:
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
        if not gradient or small or per_job:
            # Cells that wait for different searches, and large ones of different methods, do not wait for each other.
            apart = (run.experiment, run.label) if run.trials else () if small or per_job else (run.label,)
            groups[(run.store, str(gradient), *apart, "|", *owners)].append(tuple(tested))
        else:
            groups[folder, *owners].append(tuple(tested))
    batches = []
    for key, group in groups.items():
        group.sort(key=lambda cell: (cell[0].experiment, cell[0].seed, cell[0].label))
        n = math.ceil(len(group) / (per_job or JOINED))
        for i in range(n):
            chunk = group[i * len(group) // n : (i + 1) * len(group) // n]
            name = _single(chunk[0]) if len(chunk) == 1 else f"{key[0]}/{_digest(*key)}-{i}"
            large = not small and gradient_steps(chunk[0][0].method)
            batches.append(Batch(name=name, cells=tuple(chunk), large=large))
    return {batch.name: batch for batch in batches}


def _single(cell: Cell) -> str:
    """Name of a batch of one cell: its folder, and its protocols if other suites need others."""
    protocols = [run.test.name for run in cell if run.test]
    return f"{cell[0].folder}-{_digest(*protocols)}" if protocols else cell[0].folder


def batch_is_whole(file: Path) -> bool:
    """Whether all results that the file of a finished batch lists are still there."""
    folders = json.loads(file.read_text(encoding="utf-8"))
    return all(os.path.exists(f"{folder}/metrics.json") for folder in folders)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
