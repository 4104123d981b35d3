"""docs/quickstart.md: its commands run, its configuration is planned, and results are where it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mrpipe.datasets import get_dataset
from mrpipe.stages.simulate import simulate
from tests.docs.pages import PROJECT, mrpipe

pytestmark = pytest.mark.whole
PAGE = (PROJECT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def block(language: str, heading: str) -> str:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CMU-MOSI export, for which the commands of the page were run."""
    folder = tmp_path_factory.mktemp("home")
    simulate(get_dataset("mosi"), folder / "exports" / "mosi", get_dataset("mosi").tiny)
    for command in block("bash", "Your own export in three commands").splitlines():
        if "mrpipe train" in command:
            command = command.split("   #")[0] + " --set epochs=1 tokens=2 hidden=8 heads=2 encoder_hidden=8"
        mrpipe(command.replace("~/", ""), folder)
    return folder


def test_results_are_where_the_page_says(home: Path) -> None:
    for named in ("metrics.json", "metrics.csv", "predictions.parquet"):
        assert f"runs/a/{named}" in PAGE
        assert (home / "runs" / "a" / named).exists()
    assert (home / "stores" / "mosi" / "README.md").exists()


def test_the_python_example_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    exec(block("python", "From Python"), {})


def test_the_configuration_is_planned(home: Path) -> None:
    config = yaml.safe_load(block("yaml", "The whole workflow on your export"))
    config["datasets"]["mosi"]["raw"] = "exports/mosi"
    (home / "my.yaml").write_text(yaml.safe_dump(config))
    for command in block("bash", "The whole workflow on your export").splitlines():
        if "--profile" not in command:
            printed = mrpipe(command.split("   #")[0] + " -n", home)
            assert "rule seal" in printed
            assert len(re.findall("rule (?:cpu_)?cells:", printed)) == (0 if "stores" in command else 7)
