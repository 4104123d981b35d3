"""The workflow outside its checkout: in a folder with modules of our names, installed from a wheel, and as a module."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.workflow.conftest import store_ids


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


@pytest.mark.whole
def test_an_installed_package_runs_the_whole_workflow(
    wheel: Path, user_folder: Path, finished: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-P", "-m", "mrpipe", "run", "--cores", "2", "--config", "my.yaml"]
    text = call([*command, "-v"], user_folder, str(site))
    assert str(site / "mrpipe/_workflow/Snakefile") in text
    require_same_results(user_folder, finished)
    page = call([*command[:4], "train", "--help"], user_folder, str(site))
    assert "moe_retriever" in page


def write_module_use(folder: Path, project: Path, rename: str) -> None:
    """A Snakefile of the user's with the workflow as a module and a rule of its own."""
    (folder / "Snakefile").write_text(f"""
configfile: "my.yaml"

module mrpipe:
    snakefile: "{project / "Snakefile"}"
    config: config

use rule * from mrpipe{rename}

rule mine:
    input: "results/report/index.html"
    output: "mine.txt"
    shell: "wc -c < {{input}} > {{output}}"
""")


@pytest.mark.parametrize(("rename", "rule"), [("", "cells"), (" as mr_*", "mr_cells")])
def test_the_workflow_can_be_a_module(project: Path, user_folder: Path, rename: str, rule: str) -> None:
    write_module_use(user_folder, project, rename)
    text = call([sys.executable, "-P", "-m", "snakemake", "mine", "--cores", "2", "-n"], user_folder, "")
    assert f"rule {rule}:" in text
    assert "rule mine:" in text


@pytest.mark.slow
def test_a_module_gives_the_same_results(project: Path, user_folder: Path, finished: Path) -> None:
    write_module_use(user_folder, project, "")
    call([sys.executable, "-P", "-m", "snakemake", "--cores", "2"], user_folder, "")
    require_same_results(user_folder, finished)
