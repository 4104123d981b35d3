"""docs/add-a-method.md does what it says: its package is installed, found, trained, searched and used to predict."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tests.docs.pages import install, mrpipe, titled_blocks

BLOCKS = titled_blocks("add-a-method.md")
# The shared encoders at a size that trains in a second.
SMALL = "hidden=8 tokens=2 heads=2 encoder_hidden=8"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The method of this page and the dataset of the other one, as somebody else's packages."""
    folders = tmp_path_factory.mktemp("method"), tmp_path_factory.mktemp("dataset")
    install(BLOCKS, folders[0])
    install(titled_blocks("add-a-dataset.md"), folders[1])
    return folders


@pytest.fixture(scope="module")
def home(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the page were run on a store of the other page's dataset."""
    folder = tmp_path_factory.mktemp("home")
    mrpipe("mrpipe simulate sleep --out raw/sleep", folder, *packages)
    mrpipe("mrpipe build sleep --raw raw/sleep --out stores/mine", folder, *packages)
    for command in BLOCKS["commands"].splitlines():
        printed = mrpipe(command.replace("epochs=1", f"epochs=1 {SMALL}"), folder, *packages)
        if command.startswith("mrpipe methods"):
            assert "gated_mean" in printed
        if command == "mrpipe methods gated_mean":
            assert "temperature" in printed
    return folder


def test_the_run(home: Path) -> None:
    config = json.loads((home / "runs" / "gated" / "config.json").read_text())
    assert config["options"] == {"temperature": 0.5, "spread": 0.01}
    metrics = json.loads((home / "runs" / "gated" / "metrics.json").read_text())
    assert metrics["method"] == "gated_mean"
    assert metrics["metrics"]["accuracy"]["value"] is not None
    history = pl.read_parquet(home / "runs" / "gated" / "history.parquet")
    assert history["train_spread"].to_list()[0] > 0


def test_predictions_and_search(home: Path) -> None:
    samples = pl.read_parquet(home / "stores" / "mine" / "samples.parquet")
    assert len(pl.read_parquet(home / "predictions.parquet")) == len(samples)
    best = json.loads((home / "searches" / "gated" / "best.json").read_text())
    assert best["space"]["temperature"] == [0.5, 1.0, 2.0]


def test_a_wrong_option_is_an_error(home: Path, packages: tuple[Path, Path]) -> None:
    train = "mrpipe train --store stores/mine --method gated_mean --out runs/wrong --set temperature=0"
    assert "must be positive" in mrpipe(train, home, *packages, expected=2)


def test_the_workflow_takes_it(packages: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(BLOCKS["my.yaml"])
    printed = mrpipe("mrpipe run --cores 1 --config my.yaml -n", tmp_path, packages[0])
    assert "method=gated_mean" in printed
