"""Rows of a suite for a user's own runs: those with the data, task, split, view and masks of a column."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_retriever.evaluation.run_folders import finished, read_metrics
from moe_retriever.suites.spec import SuiteRow, SuiteSpec

SAME = ("store_id", "task", "scheme", "modalities", "mask_sha256", "protocol")


def _metrics(run: Path) -> dict[str, Any]:
    content = read_metrics(run)
    test = content.get("test")
    return content | {"protocol": test and [test[k] for k in ("store_id", "mask_sha256", "patterns")]}


def joined(suite: SuiteSpec, runs: Path, own: Sequence[Path]) -> SuiteSpec:
    """The suite with rows for the user's runs that fit a column, and a note for each that does not.

    A run fits if its `SAME` fields equal those of a finished cell; it takes the seed of that cell (or, without
    simulated missingness, its own). Folders `seed0`, `seed1`, … form one row, named by their parent.
    """
    columns, rows, notes = list(suite.columns), {row.name: row for row in suite.rows}, list(suite.notes)
    found = [(n, seed, runs / folder) for n, column in enumerate(columns) for _, seed, folder in column.runs()]
    cells = [(n, seed, _metrics(run)) for n, seed, run in found if finished(run)]
    for run in sorted({file.parent for folder in own for file in folder.glob("**/metrics.json")}):
        said, place = _metrics(run), run.resolve()
        trained = place.parents[1] if said["protocol"] else place
        name = trained.parent.name if re.fullmatch(r"seed\d+", trained.name) else trained.name
        differ = [[k for k in SAME if said.get(k) != cell.get(k)] for _, _, cell in cells]
        same = [cell for cell, fields in zip(cells, differ, strict=True) if not fields]
        seeds = {n: seed if said.get("mask_sha256") else int(said["seed"]) for n, seed, _ in same}
        if not seeds:
            nearest: list[str] = min(differ, key=len) if differ else [*SAME]
            notes.append(f"{run} is not shown: no cell has the same {' and '.join(nearest)}.")
        elif rows.get(name) in suite.rows or any(seed in columns[n].joined.get(name, {}) for n, seed in seeds.items()):
            notes.append(f"{run} is not shown: there is another run of the name {name!r}; rename its folder.")
        else:
            rows[name] = SuiteRow(name, said["method"], said["preset"], "", control=False)
            for n, seed in seeds.items():
                mine = {**columns[n].joined.get(name, {}), seed: str(place)}
                columns[n] = replace(columns[n], joined={**columns[n].joined, name: mine})
    notes += [f"{folder} has no finished runs." for folder in own if not any(folder.glob("**/metrics.json"))]
    return replace(suite, rows=tuple(rows.values()), columns=tuple(columns), notes=tuple(notes))
