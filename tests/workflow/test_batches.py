"""Batches: which trainings and evaluations share a job."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.jobs import write_plan
from workflow.planning.batches import JOINED, CellBatch, files_of, make_batches
from workflow.planning.plan import make_plan
from workflow.planning.runs import PlannedRun, PlannedTest
from workflow.planning.suites import Suites


def cell(method: str, seed: int = 0, **more: Any) -> PlannedRun:
    usual: dict[str, Any] = {"experiment": "e", "label": method, "store": "s", "preset": "paper", "overrides": {}}
    nothing: dict[str, Any] = {"task": None, "scheme": None, "modalities": (), "missingness": None}
    return PlannedRun(**{**usual, **nothing, "method": method, "seed": seed, **more})


def of(
    runs: list[PlannedRun], *, per_job: int | None = None, small: bool = False, owners: str = "a"
) -> list[CellBatch]:
    return list(make_batches(((run, owners.split()) for run in runs), per_job=per_job, small=small).values())


def sizes(batches: list[CellBatch]) -> list[int]:
    return sorted(len(batch.cells) for batch in batches)


METHODS = ("muse", "late_fusion", "majority", "logistic")
RUNS = [cell(method, seed) for method in METHODS for seed in range(10)]


def test_large_networks_have_a_job_each_and_other_methods_one_job_per_method() -> None:
    assert sizes(of(RUNS)) == [1] * 20 + [10, 10]
    names = {batch.file for batch in of(RUNS)}
    assert "cells/e/muse/seed3.json" in names
    assert sum(name.startswith("cpu_cells/s/") for name in names) == 2


def test_small_cells_share_jobs_of_limited_and_nearly_equal_size() -> None:
    assert sizes(of(RUNS, small=True)) == [10, 10, 10, 10]
    assert max(sizes(of(RUNS, small=True))) <= JOINED
    assert sizes(of(RUNS, per_job=20)) == [20, 20]
    assert sizes(of(RUNS, per_job=1)) == [1] * 40


def test_no_job_mixes_cells_of_different_sets_of_suites() -> None:
    config = {"datasets": {}, "experiments": {}, "suites": [], "size": "smoke"}
    suites = Suites(config, make_plan(config))
    batch_of = files_of(suites.batches.values())
    for name in ("table1", "table2", "table4", "table5", "figure3", "figure5"):
        own = suites.suite(name).runs
        files = {batch_of[folder] for folder in own}
        computed = {run.tested for b in suites.batches.values() if b.file in files for run in b.runs}
        assert computed == set(own), name


def test_every_evaluation_is_in_one_batch_and_names_do_not_depend_on_other_suites() -> None:
    tested = [*RUNS, *(cell(m, s, test=PlannedTest(pattern="x")) for m in METHODS for s in range(2))]
    batches = of(tested)
    assert sorted(run.tested for batch in batches for run in batch.runs) == sorted(run.tested for run in tested)
    single = {batch.file for batch in of(RUNS) if len(batch.cells) == 1}
    assert single == {batch.file for batch in of(RUNS, owners="a b") if len(batch.cells) == 1}


def test_cells_of_different_searches_do_not_wait_for_each_other() -> None:
    runs = [cell(m, s, trials=6, experiment=e) for m in METHODS for s in (0, 1) for e in ("e", "f")]
    for batch in of(runs, per_job=20):
        assert sum(file.startswith("<results>/searches/") for file in batch.inputs) == 1


def test_cells_with_the_same_data_are_neighbours() -> None:
    (batch,) = of([cell(m, s) for m in ("muse", "shaspec") for s in (0, 1)], small=True)
    assert [(c[0].seed, c[0].method) for c in batch.cells] == [(0, "muse"), (0, "shaspec"), (1, "muse"), (1, "shaspec")]
    assert str(batch) == "s: 4 cells of MUSE, ShaSpec"


@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [10_000])
def test_ten_thousand_cells_are_planned_fast(tmp_path: Path, n_cells: int) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = write_plan(tmp_path, n_cells)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("rule cells:") == n_cells
    # Measured: see benchmarks/README.md. CPU time, because the machine may be busy.
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 60
    assert used.ru_maxrss / 1024 < 1024, sys.platform
