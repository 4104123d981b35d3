"""docs/add-a-dataset.md does what it says: its package is installed, found, and builds a store that trains."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import mrpipe as library
from tests.docs.pages import install, mrpipe, titled_blocks

pytestmark = pytest.mark.whole
BLOCKS = titled_blocks("add-a-dataset.md")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(BLOCKS, folder)
    return folder


@pytest.fixture(scope="module")
def home(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the page were run."""
    folder = tmp_path_factory.mktemp("home")
    for command in BLOCKS["commands"].splitlines():
        printed = mrpipe(command, folder, package)
        if command == "mrpipe options sleep":
            assert "first_nights = True" in printed
            assert "n_people = 40" in printed
    return folder


def test_it_is_listed(package: Path, tmp_path: Path) -> None:
    assert "Sleep study" in mrpipe("mrpipe options", tmp_path, package)


def test_the_store(home: Path) -> None:
    store = library.open_store(home / "stores" / "sleep")
    assert store.manifest.origin == "simulated"
    assert store.bits == {"heart": 0, "sound": 1}
    assert set(store.patterns()["modalities"]) == {"heart+sound", "heart", "sound"}
    assert len(store.manifest.code_hash) == 16
    assert store.dictionary.filter(modality="heart")["unit"].to_list() == ["1/min", "ms"]
    metrics = json.loads((home / "runs" / "logistic" / "metrics.json").read_text())["metrics"]
    assert metrics["auroc"]["value"] > 0.7


def test_an_option_and_the_code_reach_the_store(home: Path, package: Path) -> None:
    build = "mrpipe build sleep --raw raw/sleep --out stores/later --set first_nights=false"
    mrpipe(build, home, package)
    one, two = (library.open_store(home / "stores" / name) for name in ("sleep", "later"))
    assert two.manifest.options_changed == ("first_nights",)
    assert two.attrition["reason"].to_list()[1] == "first night of a person"
    assert two.manifest.n_samples < one.manifest.n_samples
    reader = package / "sleepdata" / "reader.py"
    text = reader.read_text()
    reader.write_text(text.replace(" of one night", " of a night"))
    try:
        mrpipe("mrpipe build sleep --raw raw/sleep --out stores/edited", home, package)
    finally:
        reader.write_text(text)
    edited = library.open_store(home / "stores" / "edited")
    assert edited.manifest.code_hash != one.manifest.code_hash


def test_the_check_reports_everything_at_once(home: Path, package: Path, tmp_path: Path) -> None:
    raw = home / "raw" / "sleep"
    pl.read_csv(raw / "nights.csv").drop("person").write_csv(tmp_path / "nights.csv")
    pl.read_csv(raw / "heart.csv").with_columns(mean_rate=pl.lit("fast")).write_csv(tmp_path / "heart.csv")
    printed = mrpipe(f"mrpipe check sleep --raw {tmp_path}", tmp_path, package, expected=3)
    assert all(found in printed for found in ("'person'", "'mean_rate'", "sound.csv"))


def test_the_workflow_takes_it(package: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(BLOCKS["my.yaml"])
    printed = mrpipe("mrpipe run --cores 1 --config my.yaml -n", tmp_path, package)
    assert "rule seal" in printed
    assert "cells" in printed
