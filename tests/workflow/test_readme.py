"""The README is up to date: its commands run, its first table is that of the demo. So is the graph of the rules."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

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
    """A home folder with a CMU-MOSI export at the path that the README uses."""
    home = tmp_path_factory.mktemp("home")
    simulate(get_dataset("mosi"), home / "exports" / "mosi", get_dataset("mosi").tiny)
    return home


def run(command: str, folder: Path, project: Path) -> None:
    # Reduce the README's models to a size that trains in a second.
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


def test_it_is_short(readme: str) -> None:
    assert len(readme.splitlines()) < 150


@pytest.mark.whole
def test_commands_run(readme: str, folder: Path, project: Path) -> None:
    section = blocks(readme, "bash", "Your own exports")
    lines = "".join(block for block in section if "mrpipe run" not in block).splitlines()
    commands = [line.split("   #")[0].strip() for line in lines if line.strip()]
    assert len(commands) >= 14
    for command in commands:
        run(command.replace("other/store", "stores/mosi"), folder, project)
    (code,) = blocks(readme, "python", "Your own exports")
    run(f"python -c {shlex.quote(code)}", folder, project)
    assert (folder / "predictions.parquet").exists()


def demo_table(readme: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Method and data set -> accuracy and its interval, in %, of the first table."""
    _, table = readme.split("| `make demo` |", 1)
    head, _, *rows = table.split("\n\n", 1)[0].splitlines()
    datasets = [cell.split(",")[0].strip().lower().replace("-", "") for cell in head.strip(" |").split("|")]
    names = {"majority class": "majority", "logistic regression": "logistic", "MoE-Retriever": "moe_retriever"}
    shown = {}
    for row in rows:
        method, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for dataset, cell in zip(datasets, cells, strict=True):
            value, low, high = (float(number) for number in re.findall(r"[\d.]+", cell))
            shown[names[method], dataset.removeprefix("cmu")] = (value, low, high)
    return shown


def test_the_first_table_is_that_of_the_demo(readme: str, project: Path) -> None:
    """Compares with the demo's results in this checkout, or in the folder that MRPIPE_DEMO names."""
    file = Path(os.environ.get("MRPIPE_DEMO", project)) / "results" / "report" / "results.csv"
    shown = demo_table(readme)
    assert len(shown) == 9
    if not file.is_file():
        pytest.skip("no results of `make demo` here")
    accuracy = pl.read_csv(file, infer_schema_length=None).filter(by="all", metric="accuracy", seed=0)
    assert set(accuracy["dataset"]) == {dataset for _, dataset in shown}
    for row in accuracy.iter_rows(named=True):
        value, low, high = shown[row["method"], row["dataset"]]
        # Another version of torch or another processor may change a few predictions.
        assert value == pytest.approx(100 * row["value"], abs=5), row
        assert [low, high] == pytest.approx([100 * row["low"], 100 * row["high"]], abs=7), row


def test_the_page_of_the_demo_is_small(project: Path) -> None:
    page = Path(os.environ.get("MRPIPE_DEMO", project)) / "results" / "report" / "index.html"
    if not page.is_file():
        pytest.skip("no results of `make demo` here")
    assert page.stat().st_size < 600_000


def test_rule_graph_is_current(project: Path, snakemake: Any, tmp_path: Path) -> None:
    outcome = snakemake("--rulegraph", "mermaid-js", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", outcome.text))
    drawn = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", outcome.text)}
    page = (project / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = page.split("<!-- rulegraph:begin -->", 1)[1].split("<!-- rulegraph:end -->", 1)[0]
    assert len(drawn) > 15
    assert set(re.findall(r"(\w+) --> (\w+)", shown)) == drawn
