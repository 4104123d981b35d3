"""The workflow on a real SLURM cluster, with the shipped profile and the executor plugin."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mrpipe
from tests.cluster.one_node import Cluster, Job, die_with_parent

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
NARROW = {"epochs": 2, "hidden": 16, "tokens": 2, "encoder_hidden": 16}
CONFIG: dict[str, Any] = {
    "datasets": {
        "mosi": {
            "raw": "simulated",
            "modalities": ["text", "audio"],
            "simulation": {"n_videos": 9, "clips_per_video": 6, "frames_per_second": 2},
        }
    },
    "experiments": {
        "pair": {"dataset": "mosi", "methods": {"moe_retriever": {"overrides": NARROW}, "majority": {}}},
        **{
            f"masked{i}": {"dataset": "mosi", "methods": ["majority"], "missingness": {"p": i / 10}}
            for i in range(1, 5)
        },
        "cancelled": {"dataset": "mosi", "methods": ["majority", "logistic"]},
    },
}
LOGS = "--slurm-keep-successful-logs"
CELLS = "rule_cells_cells"
CPU_CELLS = "rule_cpu_cells_cpu_cells"  # of methods that do not use a GPU
METRICS = "results/runs/{}/{}/seed0/metrics.json"
BATCH = "results/batches/{}/{}/{}/seed0.json"

# Snakemake, whose plugin waits 5 s before each submission and 10 s longer after each check, to spare a real cluster.
IMPATIENT = """
import sys, time, types
import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

plugin.time = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, 0.2))})
# The plugin's own `min(seconds + 10, 180)` gives the time to the next check.
plugin.min = lambda *values: min(*values, 2) if values[-1] == 180 else min(*values)
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def profile(project: Path) -> Path:
    """The shipped profile."""
    return project / "workflow/profiles/slurm"


@pytest.fixture(scope="module")
def tight(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the profile that gives the first attempt of the torch training too little memory."""
    settings = yaml.safe_load((profile / "profile.v9+.yaml").read_text())
    memory = "(500 if 'moe_retriever' in wildcards.batch else 8000) * attempt"
    settings["set-resources"]["cells"] = {**settings["set-resources"]["cells"], "mem_mb": memory}
    copy = tmp_path_factory.mktemp("profile")
    (copy / "profile.v9+.yaml").write_text(yaml.safe_dump(settings))
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of all runs."""
    path = tmp_path_factory.mktemp("work")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return path


def start(profile: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start Snakemake as the README describes, for a cluster without accounting and with short jobs."""
    command = [sys.executable, "-c", IMPATIENT, "--profile", str(profile), *arguments]
    command += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
    command += ["--latency-wait", "10", "--snakefile", str(PROJECT / "Snakefile"), "--directory", str(folder)]
    if (folder / "config.yaml").exists():
        command += ["--configfile", str(folder / "config.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=die_with_parent, **pipes)  # type: ignore[call-overload,no-any-return]


def finish(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=600)[0]


def side_by_side(jobs: list[Job]) -> bool:
    """Whether all jobs ran at the same time at some moment."""
    assert all(job.start and job.end for job in jobs), jobs
    return max(job.start for job in jobs) < min(job.end for job in jobs)  # type: ignore[type-var]


def test_export_to_metrics_with_a_retry_after_out_of_memory(cluster: Cluster, tight: Path, folder: Path) -> None:
    runs = [METRICS.format("pair", method) for method in ("moe_retriever", "majority")]
    batches = [BATCH.format("cells", "pair", "moe_retriever"), BATCH.format("cpu_cells", "pair", "majority")]
    process = start(tight, folder, "stores", *batches)
    text = finish(process)
    assert process.returncode == 0, text

    store = mrpipe.open_store(folder / "results/stores/mosi")
    store.verify(deep=True)
    assert all(json.loads((folder / path).read_text()) for path in runs)

    jobs = cluster.jobs()
    by_name = {name: [job for job in jobs if job.comment.startswith(name)] for name in {j.comment for j in jobs}}
    assert set(by_name) == {
        "rule_export_check_cohort_simulate",
        "rule_ingest_wildcards_mosi_text",
        "rule_ingest_wildcards_mosi_audio",
        "rule_seal_samples_seal_split_verify",
        CELLS,
        CPU_CELLS,
    }
    # The modalities run in parallel; consecutive jobs are one submission.
    assert side_by_side([*by_name["rule_ingest_wildcards_mosi_text"], *by_name["rule_ingest_wildcards_mosi_audio"]])
    assert [job.memory for job in by_name["rule_seal_samples_seal_split_verify"]] == [4000]

    # One GPU per training, none for the majority class; the retry of the job that ran out of memory got twice as much.
    cells = by_name[CELLS]
    assert {(job.partition, job.gpus, job.cpus, job.limit) for job in cells} == {("gpu", 1, 1, 14 * 60)}
    assert sorted((job.memory, job.state) for job in cells) == [(500, "FAILED"), (1000, "COMPLETED")]
    (majority,) = by_name[CPU_CELLS]
    assert (majority.partition, majority.gpus, majority.memory, majority.state) == ("cpu", 0, 8000, "COMPLETED")
    killed = next(job for job in cells if job.memory == 500)
    assert "exceeded memory limit" in next(folder.glob(f".snakemake/slurm_logs/**/{killed.id}.log")).read_text()
    assert f"StepId={killed.id}" in text
    assert "Error in group cells" in text
    assert "Trying to restart job" in text


def test_jobs_of_a_submission_run_in_parallel(cluster: Cluster, profile: Path, folder: Path) -> None:
    before = {job.id for job in cluster.jobs()}
    masks = [f"mcar-p0.{i}-seed0" for i in range(1, 5)]
    process = start(profile, folder, *(f"results/masks/mosi/{mask}.parquet" for mask in masks), LOGS)
    text = finish(process)
    assert process.returncode == 0, text
    (job,) = [job for job in cluster.jobs() if job.id not in before]
    assert (job.comment, job.cpus, job.memory) == ("rule_masks_mask", 4, 8000)
    # One Snakemake process on the node runs all jobs and starts the second before the first ends.
    log = next(folder.glob(f".snakemake/slurm_logs/**/{job.id}.log")).read_text()
    inner = log.rsplit("Provided cores: ", 1)[1]
    assert inner.split()[0] == "4"
    assert re.findall(r"^(localrule|Finished)", inner, flags=re.MULTILINE)[:2] == ["localrule", "localrule"]
    assert inner.count("localrule mask") == 4


def test_job_cancelled_with_scancel(cluster: Cluster, profile: Path, folder: Path) -> None:
    before = {job.id for job in cluster.jobs()}
    runs = [METRICS.format("cancelled", method) for method in ("majority", "logistic")]
    batches = [BATCH.format("cpu_cells", "cancelled", method) for method in ("majority", "logistic")]
    process = start(profile, folder, *batches, "--retries", "0")
    first, second = cluster.wait_for(lambda jobs: two_running([job for job in jobs if job.id not in before]))
    subprocess.run(["scancel", str(second.id)], check=True)
    text = finish(process)

    # The other job finished; the final output names the cancelled job and its log.
    assert process.returncode == 1
    assert {job.id: job.state for job in cluster.jobs() if job.id not in before} == {
        first.id: "COMPLETED",
        second.id: "CANCELLED",
    }
    there = [(folder / path).exists() for path in runs]
    assert sorted(there) == [False, True]
    lost = ("majority", "logistic")[there.index(False)]
    assert "Error in group cpu_cells" in text
    assert re.search(rf"JOB {second.id} ON \S+ CANCELLED", text), text
    assert re.search(rf"log: results/logs/batches/cancelled/{lost}/seed0\.log", text), text
    assert "the run failed at" in text

    # Rerunning the same command builds only what is missing.
    finished = (folder / runs[there.index(True)]).stat().st_mtime_ns
    process = start(profile, folder, *batches)
    text = finish(process)
    assert process.returncode == 0, text
    assert all((folder / path).exists() for path in runs)
    assert (folder / runs[there.index(True)]).stat().st_mtime_ns == finished
    new = [job for job in cluster.jobs() if job.id not in before | {first.id, second.id}]
    assert [(job.comment, job.state) for job in new] == [(CPU_CELLS, "COMPLETED")]


def two_running(jobs: list[Job]) -> list[Job]:
    running = [job for job in jobs if job.state == "RUNNING"]
    return running if len(running) == 2 else []


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_table_2_of_the_paper(cluster: Cluster, profile: Path, tmp_path: Path) -> None:
    command = ["table2", "--config", "size=smoke", "--group-components", "masks=50"]
    planned = start(profile, tmp_path, *command, "-n").communicate()[0]
    n_batches = len(re.findall("rule (?:cpu_)?cells:", planned))
    assert 5 < n_batches < 20, planned
    before = {job.id for job in cluster.jobs()}
    process = start(profile, tmp_path, *command)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert (tmp_path / "results/suites/table2/finished").exists()
    new = [job for job in cluster.jobs() if job.id not in before]
    assert {job.state for job in new} == {"COMPLETED"}
    assert sum(job.comment in (CELLS, CPU_CELLS) for job in new) == n_batches
