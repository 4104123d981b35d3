"""An interrupted run continues when the same command is given again, whatever stage it was in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow.conftest import store_ids

# A file that each stage makes when it begins, in order.
STAGES = (
    "logs/mosi/simulate.log",
    "logs/mosi/check.log",
    "logs/mosi/cohort.log",
    "logs/mosi/ingest_text.log",
    "logs/mosi/samples.log",
    "logs/mosi/split_standard.log",
    "logs/mosi/seal.log",
    "logs/mosi/verify.log",
    "logs/mosi/mask_mcar-p0.3-seed0.log",
    "runs/mosi/moe_retriever/seed0/.resume.pt",
    "runs/mosi/moe_retriever/seed0/predictions.parquet",
    "logs/report.log",
)


def start(folder: Path, project: Path, *, plain: bool) -> subprocess.Popen[bytes]:
    """The documented command, as `mrpipe run` or as plain Snakemake, in a session of its own."""
    if plain:
        command = [sys.executable, "-P", "-m", "snakemake", "--cores", "2", "--configfile", "my.yaml"]
        command += ["--snakefile", str(project / "Snakefile")]
    else:
        command = [sys.executable, "-P", "-m", "mrpipe", "run", "--cores", "2", "--config", "my.yaml"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{project}:{project / 'model'}"}
    with (folder / "output.txt").open("ab") as out:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def interrupt(process: subprocess.Popen[bytes], sign: Path, number: signal.Signals, *, whole: bool) -> None:
    """Send a signal once `sign` is there: to the process alone, or to all of its session."""
    sign.unlink(missing_ok=True)
    while not sign.exists() and process.poll() is None:
        time.sleep(0.005)
    if whole:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait(60)
    # Jobs of a main process that was killed alone end by themselves, and their files are whole or absent.


@pytest.mark.whole
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda s: s.name
)
def test_a_run_interrupted_in_every_stage_ends_with_the_same_results(
    finished: Path, project: Path, user_folder: Path, number: signal.Signals
) -> None:
    interrupted = 0
    for i, stage in enumerate(STAGES):
        process = start(user_folder, project, plain=i % 2 == 0)
        interrupt(process, user_folder / "results" / stage, number, whole=i % 3 != 0)
        interrupted += process.returncode != 0
    assert interrupted >= len(STAGES) - 2
    for plain in (True, False):
        assert start(user_folder, project, plain=plain).wait(300) == 0, (user_folder / "output.txt").read_text()[-3000:]
    assert "Nothing to be done" in (user_folder / "output.txt").read_text()
    assert store_ids(user_folder)["mosi"] == store_ids(finished)["mosi"]
    metrics = "results/runs/mosi/moe_retriever/seed0/metrics.json"
    assert (user_folder / metrics).read_bytes() == (finished / metrics).read_bytes()


def test_a_second_run_in_the_same_folder_is_refused(project: Path, user_folder: Path) -> None:
    first = start(user_folder, project, plain=False)
    while not (user_folder / "results/logs/mosi/simulate.log").exists() and first.poll() is None:
        time.sleep(0.01)
    assert start(user_folder, project, plain=True).wait(60) != 0
    assert "cannot be locked" in (user_folder / "output.txt").read_text()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(60)
