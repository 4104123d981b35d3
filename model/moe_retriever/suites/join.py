"""Rows of a suite for a user's own runs: those with the data, task, split, view and masks of a column."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_retriever.evaluation.run_folders import finished
from moe_retriever.suites.spec import SuiteColumn, SuiteRow, SuiteSpec

SAME = ("store_id", "task", "scheme", "modalities", "mask_sha256")


def _metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return content


def joined(suite: SuiteSpec, runs: Path, own: Sequence[Path]) -> SuiteSpec:
    """The suite with a row for each of the user's runs that fits a column, and a note for each that does not.

    A run fits if its `SAME` fields equal those of a finished cell of the column; it is compared with the seed of that
    cell (without simulated missingness: with its own seed). Folders `seed0`, `seed1`, … are one row, named by their
    parent; other folders are rows of their own.
    """
    columns, cells = list(suite.columns), []
    for number, column in enumerate(columns):
        for _, seed, folder in column.runs():
            if folder not in suite.unfinished and finished(runs / folder):
                cells.append((number, seed, _metrics(runs / folder)))
    rows = {row.name: row for row in suite.rows}
    notes = list(suite.notes)
    for run in sorted({file.parent for folder in own for file in folder.glob("**/metrics.json")}):
        said = _metrics(run)
        row = run.resolve().parent.name if re.fullmatch(r"seed\d+", run.name) else run.resolve().name
        found = {(n, seed) for n, seed, cell in cells if all(said.get(k) == cell.get(k) for k in SAME)}
        seeds = {(n, seed if said.get("mask_sha256") else int(said["seed"])) for n, seed in found}
        if not seeds:
            nearest = min((([k for k in SAME if said.get(k) != c.get(k)]) for _, _, c in cells), key=len, default=[])
            notes.append(f"{run} is not shown: no cell of the suite has the same {', '.join(nearest) or 'data'}.")
        elif row in {r.name for r in suite.rows} or any(seed in columns[n].joined.get(row, {}) for n, seed in seeds):
            notes.append(f"{run} is not shown: the name {row!r} is taken; rename the folder.")
        else:
            rows[row] = SuiteRow(row, said["method"], said["preset"], "", control=False)
            for n, seed in seeds:
                mine = {**columns[n].joined.get(row, {}), seed: str(run.resolve())}
                columns[n] = replace(columns[n], joined={**columns[n].joined, row: mine})
    for folder in own:
        if not any(folder.glob("**/metrics.json")):
            notes.append(f"{folder} has no finished runs.")
    return replace(suite, rows=tuple(rows.values()), columns=tuple(columns), notes=tuple(notes))
