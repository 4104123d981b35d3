"""The workflow outside its checkout: in a folder with modules of our names, installed from a wheel, and as a module."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import store_ids

NAMES = ("model", "moe_retriever", "mrpipe", "mrpipe_planning", "torch", "workflow")


@pytest.fixture
def hostile(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A user's folder with modules that have the names of ours and of our dependencies, and a configuration."""
    folder = tmp_path / "user"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user's {name}.py ran')\n")
    config = {key: {"mosi": tiny[key]["mosi"]} for key in ("datasets", "experiments")}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    return folder


def call(command: list[str], folder: Path, path: str) -> str:
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def require_same_results(folder: Path, finished: Path) -> None:
    assert store_ids(folder)["mosi"] == store_ids(finished)["mosi"]
    metrics = "results/runs/mosi/moe_retriever/seed0/metrics.json"
    assert (folder / metrics).read_bytes() == (finished / metrics).read_bytes()


def test_modules_in_the_users_folder_are_never_run(project: Path, hostile: Path, finished: Path) -> None:
    command = [sys.executable, "-P", "-m", "mrpipe", "run", "--cores", "2", "--config", "my.yaml"]
    call(command, hostile, f"{project}:{project / 'model'}")
    require_same_results(hostile, finished)


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=project, check=True, timeout=300)
    (file,) = folder.glob("mrpipe-*.whl")
    return file


def test_the_wheel_holds_both_packages_and_the_workflow(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "mrpipe/_workflow/Snakefile",
        "mrpipe/_workflow/environment.yml",
        "mrpipe/_workflow/workflow/rules/common.smk",
        "mrpipe/_workflow/workflow/planning/plan.py",
        "mrpipe/_workflow/workflow/profiles/slurm/profile.v9+.yaml",
        "mrpipe/py.typed",
        "moe_retriever/report/page.html",
        "moe_retriever/suites/published.csv",
    ):
        assert name in names
    assert not [n for n in names if n.startswith(("tests/", "model/", "workflow/")) or "__pycache__" in n]


def test_an_installed_package_runs_the_whole_workflow(
    wheel: Path, hostile: Path, finished: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-P", "-m", "mrpipe", "run", "--cores", "2", "--config", "my.yaml"]
    text = call(command, hostile, str(site))
    assert str(site / "mrpipe/_workflow/Snakefile") in text
    require_same_results(hostile, finished)
    page = call([*command[:4], "train", "--help"], hostile, str(site))
    assert "moe_retriever" in page


@pytest.mark.parametrize("prefix", ["", " as mr_*"])
def test_the_workflow_is_a_module_of_another_one(project: Path, hostile: Path, finished: Path, prefix: str) -> None:
    (hostile / "Snakefile").write_text(f"""
configfile: "my.yaml"

module mrpipe:
    snakefile: "{project / "Snakefile"}"
    config: config

use rule * from mrpipe{prefix}

rule mine:
    input: "results/report/index.html"
    output: "mine.txt"
    shell: "wc -c < {{input}} > {{output}}"
""")
    target = ["mine"] if prefix else []
    run = [] if prefix == "" else ["-n"]
    command = [sys.executable, "-P", "-m", "snakemake", *target, "--cores", "2", *run]
    text = call(command, hostile, "")
    if prefix:
        assert "rule mr_train:" in text
    else:
        require_same_results(hostile, finished)
