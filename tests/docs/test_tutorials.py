"""Every tutorial is run as it is printed: commands, files, and the lines that it says they print."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import real_data_folder
from tests.docs.tutorial import Tutorial, check_output

LIMIT_S = 120


@pytest.fixture
def tutorial(tmp_path: Path) -> Tutorial:
    return Tutorial(tmp_path / "here")


def finish(tutorial: Tutorial, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the duration on two idle cores, estimated from CPU time since this machine may be busy, and compare it."""
    with capsys.disabled():
        print(f"\n{tutorial.folder.name}: {tutorial.seconds:.0f} s on two cores")
    assert tutorial.seconds < LIMIT_S


def test_output_is_compared_loosely() -> None:
    printed = "│ accuracy │ 0.7167 │\nother\nsealed: fd53484bb0dc089e\n"
    check_output("accuracy 0.5\n...\nsealed: 221e625b5d059fac\n", printed)
    for wrong in ("sealed: 221e625b5d059fac\naccuracy 0.5\n", "AUROC 0.5\n", "accuracy undefined\n", "other 3\n"):
        with pytest.raises(AssertionError, match="not printed"):
            check_output(wrong, printed)


@pytest.mark.whole
def test_your_hospitals_tables(tutorial: Tutorial, capsys: pytest.CaptureFixture[str]) -> None:
    tutorial.run("hospital.md")
    finish(tutorial, capsys)


@pytest.mark.whole
@pytest.mark.parametrize("source", [pytest.param("real", marks=pytest.mark.real_data), "simulated"])
def test_the_mimic_demo(source: str, tutorial: Tutorial, capsys: pytest.CaptureFixture[str]) -> None:
    if source == "real":
        # One of its tables was rebuilt, so that the provider's checksums do not apply.
        shutil.copytree(
            real_data_folder() / "mimic-iv-demo",
            tutorial.folder / "data" / "open" / "mimic_demo",
            ignore=shutil.ignore_patterns("note", "SHA256SUMS.txt"),
        )
        tutorial.run("mimic.md", skip={"with a connection", "without a connection"})
    else:
        tutorial.run("mimic.md", skip={"with a connection"})
    finish(tutorial, capsys)


@pytest.mark.whole
def test_your_own_model(tutorial: Tutorial, capsys: pytest.CaptureFixture[str]) -> None:
    tutorial.run("own-model.md")
    config = json.loads((tutorial.folder / "runs/gated/config.json").read_text())
    assert config["options"] == {"temperature": 0.5, "spread": 0.01}
    metrics = json.loads((tutorial.folder / "runs/gated/metrics.json").read_text())
    assert metrics["method"] == "gated_mean"
    assert metrics["metrics"]["accuracy"]["value"] is not None
    assert pl.read_parquet(tutorial.folder / "runs/gated/history.parquet")["train_spread"][0] > 0
    samples = pl.read_parquet(tutorial.folder / "stores/mosi/samples.parquet")
    assert len(pl.read_parquet(tutorial.folder / "predictions.parquet")) == len(samples)
    best = json.loads((tutorial.folder / "searches/gated/best.json").read_text())
    assert best["space"]["temperature"] == [0.5, 1.0, 2.0]
    finish(tutorial, capsys)


@pytest.mark.whole
def test_from_a_laptop_to_slurm(tutorial: Tutorial, capsys: pytest.CaptureFixture[str]) -> None:
    tutorial.run("slurm.md", skip={"on the cluster"})
    finish(tutorial, capsys)
