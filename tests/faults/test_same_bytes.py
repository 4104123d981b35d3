"""Equal bytes of a run in two processes, with other hash seeds and numbers of cores; another number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrpipe.cli.main import main

# The only files of a run with times, which differ from run to run.
TIMES = {"cost.json", "test_cost.json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same bytes")
    assert main(["simulate", "tables", "--out", str(folder / "raw"), "--set", "n_visits=60"]) == 0
    assert main(["build", "tables", "--raw", str(folder / "raw"), "--out", str(folder / "store")]) == 0
    return folder / "store"


def train(store: Path, run: Path, cores: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mrpipe", "train", "--store", str(store), "--out", str(run), "--quiet", *more]
    variables = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "PYTHONHASHSEED"), str(cores))
    command += ["--set", "epochs=2", "hidden=16", "n_experts=4"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "model")])
    return subprocess.run(command, env=os.environ | variables | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_a_run_has_the_same_bytes_in_every_process_and_on_any_number_of_cores(store: Path, tmp_path: Path) -> None:
    for cores, name in ((1, "a"), (2, "b")):
        done = train(store, tmp_path / name, cores)
        assert done.returncode == 0, done.stderr
    first, second = (
        {str(file.relative_to(tmp_path / run)): file.read_bytes() for file in (tmp_path / run).rglob("*")}
        for run in ("a", "b")
    )
    assert {"model.pt", "metrics.json", "predictions.parquet", "curves.svg", "config.json"} < set(first)
    assert {name for name in first | second if first.get(name) != second.get(name)} == TIMES
    assert json.loads(first["config.json"])["threads"] == 1
    # Another number of threads is another setting of the run, as its last digits may differ.
    done = train(store, tmp_path / "a", 1, "--threads", "2")
    assert done.returncode == 2
    assert "contains a finished run that differs in threads" in done.stderr
