"""The README is right: its commands run, its configuration is one, its picture of the rules is the present one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpipe.datasets import get_dataset
from mrpipe.stages.simulate import simulate


@pytest.fixture(scope="module")
def readme(project: Path) -> str:
    return (project / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str, heading: str) -> list[str]:
    section = readme.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a CMU-MOSI export where the README says that it is."""
    home = tmp_path_factory.mktemp("home")
    simulate(get_dataset("mosi"), home / "exports" / "mosi", get_dataset("mosi").tiny)
    return home


def run(command: str, folder: Path, project: Path) -> None:
    # The networks of the README at a size that trains in a second.
    if command.startswith(("mrpipe train", "mrpipe search")):
        command += " --set epochs=1 hidden=16 tokens=2 encoder_hidden=16 --quiet"
    if command.startswith("mrpipe search"):
        command += " --trials 2"
    program, rest = command.split(" ", 1)
    module = "-m mrpipe " if program == "mrpipe" else ""
    command = f"{shlex.quote(sys.executable)} {module}{rest}"
    env = os.environ | {"HOME": str(folder), "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    shell = ["bash", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_commands_on_an_export_and_on_a_store_run(readme: str, folder: Path, project: Path) -> None:
    stores, steps = blocks(readme, "bash", "Your own exports")[0], blocks(readme, "bash", "A store on its own")[0]
    commands = [line.split("   #")[0].strip() for line in [*stores.splitlines(), *steps.splitlines()] if line.strip()]
    assert len(commands) >= 8
    for command in commands:
        run(command.replace("other/store", "stores/mosi"), folder, project)
    (code,) = blocks(readme, "python", "A store on its own")
    run(f"python -c {shlex.quote(code)}", folder, project)
    assert (folder / "predictions.parquet").exists()


def test_the_configuration_in_the_readme_is_planned(readme: str, folder: Path, snakemake: Any) -> None:
    (text,) = blocks(readme, "yaml", "Your own exports")
    config = yaml.safe_load(text)
    config["datasets"]["mosi"]["raw"] = str(folder / "exports" / "mosi")
    outcome = snakemake("-n", folder=folder, config=config)
    assert outcome.code == 0, outcome.text
    assert sum(job.startswith("train") for job in outcome.jobs) == 9


def test_the_picture_of_the_rules_is_the_present_one(readme: str, snakemake: Any, tmp_path: Path) -> None:
    outcome = snakemake("--rulegraph", "mermaid-js", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", outcome.text))
    drawn = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", outcome.text)}
    shown = readme.split("<!-- rulegraph:begin -->", 1)[1].split("<!-- rulegraph:end -->", 1)[0]
    assert len(drawn) > 15
    assert set(re.findall(r"(\w+) --> (\w+)", shown)) == drawn
