"""Cluster submissions: their number, the requested resources, and the time that Snakemake needs to plan them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra 'slurm' is not installed")

# Fakes of the commands that the plugin calls: submissions are recorded and not run. All stay in the queue except the
# first of the group `scans`, which fails.
FAKES = {
    "sbatch": """until mkdir "$FAKE/lock" 2> /dev/null; do sleep 0.05; done
id=$(ls "$FAKE" | grep -c '^call'); id=$((id + 1))
printf '%s\\0' "$@" > "$FAKE/call$id.part"; mv "$FAKE/call$id.part" "$FAKE/call$id"
rmdir "$FAKE/lock"; echo $id""",
    "squeue": """failed=$(grep -l rule_scans "$FAKE"/call* | sort -V | head -n 1)
for f in "$FAKE"/call*; do [ "$f" = "$failed" ] && state=FAILED || state=RUNNING; echo "${f##*call}|$state"; done""",
    "scontrol": "echo 'MinJobAge = 600 sec'",
    **dict.fromkeys(["sacct", "sacctmgr", "sinfo", "sshare", "scancel"], "true"),
}

# Prints the peak memory of Snakemake alone: wait4 also counts the memory of the forking test worker.
MEASURED = """
import atexit, sys
from pathlib import Path
from snakemake.cli import main
status = Path("/proc/self/status")
atexit.register(lambda: print("VmHWM", status.read_text().split("VmHWM:")[1].split()[0], flush=True))
main(sys.argv[1:])
"""


def plan(folder: Path, project: Path, config: dict[str, Any], *arguments: str) -> list[str]:
    """Snakemake command with the SLURM profile."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--profile", str(project / "workflow/profiles/slurm"), *arguments]
    command += ["--snakefile", str(project / "Snakefile"), "--directory", str(folder)]
    return [*command, "--configfile", str(folder / "config.yaml")]


def groups(text: str) -> Counter[str]:
    """Number of submissions in a dry run per group or, for ungrouped jobs, per rule."""
    return Counter(re.findall(r"^(?:\[.*\] Group job |rule )(\w+)", text, flags=re.MULTILINE))


def test_thousands_of_scans_are_planned_fast_and_in_few_submissions(tmp_path: Path, project: Path) -> None:
    datasets = {
        "adni": {"raw": "simulated", "options": {"image_route": "raw", "image_parts": 2500}},
        "mimic": {"raw": "simulated", "options": {"n_shards": 64}},
    }
    command = [sys.executable, "-c", MEASURED, *plan(tmp_path, project, {"datasets": datasets}, "-n")[3:]]
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        _, process.returncode, used = os.wait4(process.pid, 0)
    text = (tmp_path / "out.txt").read_text()
    assert process.returncode == 0, text[-2000:]
    assert len(re.findall(r"^ *rule prepare:", text, flags=re.MULTILINE)) == 2500 + 64
    # 100 groups of 25 scans, 8 of 8 shards, which serve lab and lab_summary; simulate, check and cohort in one; samples
    # to verify in one; the report.
    assert groups(text) - Counter(all=1) == {
        "scans": 100,
        "shards": 8,
        "export": 2,
        "ingest": 8,
        "image_qc": 1,
        "seal": 2,
        "report_page": 1,
    }
    # Measured: 11 s and 360 MB. CPU time, because the machine may be busy.
    assert used.ru_utime + used.ru_stime < 60
    assert int(text.split("VmHWM ")[1].split()[0]) / 1024 < 800


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment with fake SLURM commands that record the submissions in $FAKE."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    calls.mkdir()
    for name, body in FAKES.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    return os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "FAKE": str(calls)}


def submitted(calls: Path) -> dict[str, list[dict[str, str]]]:
    """Options of the submissions in order, grouped by the comment that the plugin sets."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(calls.glob("call[0-9]*"), key=lambda p: int(p.name[4:])):
        if path.suffix:
            continue
        words = path.read_text().split("\0")[:-1]
        options: dict[str, str] = {}
        for i, word in enumerate(words):
            if word.startswith("--") and "=" in word:
                options |= dict([word.split("=", 1)])
            elif word.startswith("-"):
                options[word] = words[i + 1] if i + 1 < len(words) else ""
        found.setdefault(options["--comment"], []).append(options)
    return found


def test_submission_requests_the_combined_resources_of_its_jobs(
    tmp_path: Path, project: Path, cluster: dict[str, str]
) -> None:
    # All inputs of the `prepare` and `cells` jobs exist.
    for path in ("stores/sealed/manifest.json", "verified/sealed.txt", "runs/few/settings.json"):
        (tmp_path / "results" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / path).write_text("{}")
    for name in ("simulated", "checked.json", "cohort.parquet", "attrition.parquet"):
        for dataset in ("adni", "mimic"):
            path = tmp_path / "results/build" / dataset / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            time.sleep(0.01)
    config = {
        "datasets": {
            "adni": {"raw": "simulated", "modalities": ["image"], "options": {"image_route": "raw", "image_parts": 25}},
            "mimic": {"raw": "simulated", "modalities": ["lab"], "options": {"n_shards": 8}},
            "sealed": {"dataset": "mosi", "store": str(tmp_path / "results/stores/sealed")},
        },
        "experiments": {"few": {"dataset": "sealed", "methods": ["missing_token", "majority"], "seeds": [0, 1]}},
    }
    quick = ["--slurm-init-seconds-before-status-checks", "1", "--slurm-status-command", "squeue"]
    quick += ["--group-components", "scans=25", "shards=8", "cells=2", "cpu_cells=2", "--rerun-triggers", "mtime"]
    calls = Path(cluster["FAKE"])
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            plan(tmp_path, project, config, *quick), cwd=tmp_path, env=cluster, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            wait_for(process, lambda: len(submitted(calls).get("rule_scans_prepare", [])) == 2)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    jobs = submitted(calls)
    assert {name: len(of_group) for name, of_group in jobs.items()} == {
        "rule_scans_prepare": 2,
        "rule_shards_prepare": 1,
        "rule_cells_cells": 1,
        "rule_cpu_cells_cpu_cells": 1,
    }, (tmp_path / "out.txt").read_text()
    # 25 parts with one thread, 2.5 GB and six hours (120 scans) each, eight at a time.
    scans, again = jobs["rule_scans_prepare"]
    assert asked(scans) == {"cpus": "8", "mem": "20000", "minutes": "1440", "partition": "cpu", "gpus": None}
    # The second attempt of the group requests twice the memory; all else is unchanged.
    assert asked(again) == asked(scans) | {"mem": "40000"}
    shards = jobs["rule_shards_prepare"][0]
    assert asked(shards) == {"cpus": "8", "mem": "16000", "minutes": "360", "partition": "cpu", "gpus": None}
    # The two jobs of a submission use its GPU one after the other: 2 × 14 hours.
    cells = jobs["rule_cells_cells"][0]
    assert asked(cells) == {"cpus": "1", "mem": "8000", "minutes": "1680", "partition": "gpu", "gpus": "1"}
    # Those of a method without gradient steps need none, and are one job.
    cells = jobs["rule_cpu_cells_cpu_cells"][0]
    assert asked(cells) == {"cpus": "1", "mem": "8000", "minutes": "120", "partition": "cpu", "gpus": None}


def asked(options: dict[str, str]) -> dict[str, str | None]:
    """Requested resources of a submission, which is always one task."""
    assert options.get("--ntasks", options.get("--ntasks-per-gpu")) == "1"
    return {
        "cpus": options["--cpus-per-task"],
        "mem": options["--mem"],
        "minutes": options["-t"],
        "partition": options["-p"],
        "gpus": options.get("--gpus"),
    }


def wait_for(process: subprocess.Popen[bytes], done: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, f"{shlex.join(map(str, process.args))} ended with {process.returncode}"  # type: ignore[arg-type]
        assert time.monotonic() < end, f"nothing in {seconds} s"
        time.sleep(0.2)
