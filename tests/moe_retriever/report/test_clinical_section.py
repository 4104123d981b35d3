"""Clinical performance on the page: the numbers of the run folders, older run folders, privacy, and usage errors."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from moe_retriever.evaluation.calibration import choose_threshold
from moe_retriever.report import Inputs, write_report
from mrpipe import Store
from mrpipe.cli.main import main
from tests.moe_retriever.report.page_checker import checked

SMALL = ["epochs=2", "hidden=8", "tokens=2", "heads=2", "encoder_hidden=8", "n_experts=2", "n_shared=2"]


@pytest.fixture(scope="module")
def runs(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clinical") / "toy"
    made = []
    for method, options in (("moe_retriever", SMALL), ("logistic", []), ("majority", [])):
        made.append(folder / method / "seed0")
        command = ["train", "--store", str(store.path), "--mask", str(mask_file), "--method", method, "--quiet"]
        command += ["--modalities", "table", "series", "--out", str(made[-1])]
        assert main([*command, *(["--set", *options] if options else [])]) in (0, None)
    return made


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clinical-page") / "index.html"
    write_report(Inputs(runs=runs, thresholds=("0.3", "sensitivity=0.8")), out)
    return out


def section(page: Path) -> str:
    found = re.search(r'<section id="clinical">.*?</section>', page.read_text(), re.DOTALL)
    assert found
    return found[0]


def test_the_section_has_the_numbers_of_the_run_folders(page: Path, runs: list[Path]) -> None:
    checked(page)
    table = pl.read_csv(page.parent / "clinical.csv", infer_schema_length=None)
    for run in runs:
        said, method = json.loads((run / "metrics.json").read_text()), run.parent.name
        mine = table.filter(method=method)
        row = mine.filter(by="overall", group="as evaluated", metric="auroc").row(0, named=True)
        assert {k: row[k] for k in ("value", "low", "high")} == pytest.approx(said["metrics"]["auroc"])
        validation, test = (pl.read_parquet(run / f"{name}.parquet") for name in ("validation", "predictions"))
        assert validation["split"].unique().to_list() == ["val"]
        assert len(validation) == said["n"]["val"]
        label = (validation["label"] == "yes").to_numpy().astype(np.int64)
        at = choose_threshold(label, validation["p_yes"].to_numpy(), "sensitivity", 0.8)
        hits = test.filter(label="yes")["p_yes"] >= at
        row = mine.filter(by="threshold", group="sensitivity=0.8", metric="sensitivity").row(0, named=True)
        assert (row["x"], row["value"]) == pytest.approx((at, hits.mean()))
        groups = mine.filter(by="combination", metric="excess")
        assert dict(groups.select("group", "n").iter_rows()) == dict(test["modalities"].value_counts().iter_rows())
    text = section(page)
    for words in (
        "sensitivity ≥ 0.8",
        "Youden index",
        "logistic regression: strongest control",
        "Observed modalities",
        "prevalence",
    ):
        assert words in text
    assert text.count("<svg") == 4
    names = {"roc", "precision_recall", "calibration", "net_benefit"}
    assert {path.stem.split("-")[-1] for path in (page.parent / "figures").glob("clinical-*.svg")} == names


def test_a_run_without_validation_predictions_has_fixed_thresholds_only(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "logistic" / "seed0"
    shutil.copytree(runs[1], folder)
    (folder / "validation.parquet").unlink()
    said = json.loads((folder / "metrics.json").read_text())
    said["training"]["val"].pop("auroc")  # undefined, as of validation samples with one class
    (folder / "metrics.json").write_text(json.dumps(said))
    write_report(Inputs(runs=[folder]), tmp_path / "index.html")
    text = section(tmp_path / "index.html")
    assert "Without predictions of validation samples" in text
    assert "Youden index" not in text
    assert "temperature-scaled" not in text
    assert "strongest control" not in text


def test_a_shared_page_rounds_sizes_and_thresholds(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "logistic" / "seed0"
    shutil.copytree(runs[1], folder)
    said = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(said | {"origin": "export"}))
    # The toy data are few; ten copies of each sample, of other people.
    test = pl.concat([pl.read_parquet(folder / "predictions.parquet")] * 10)
    ids = [f"p{i:03d}" for i in range(len(test))]
    test = test.with_columns(sample_id=pl.Series(ids), subject_id=pl.Series(ids))
    few = pl.when(pl.int_range(pl.len()) < 4).then(pl.lit(["few"])).otherwise(pl.lit(["others"]))
    test.with_columns(subgroups=few).write_parquet(folder / "predictions.parquet")
    write_report(Inputs(runs=[folder]), tmp_path / "index.html")
    table = pl.read_csv(tmp_path / "clinical.csv", infer_schema_length=None)
    for column in ("n", "events"):
        assert (table[column].drop_nulls() % 5 == 0).all()
    assert table.filter(group="few")["value"].null_count() == 4
    assert table.filter(group="few")["n"].null_count() == 4
    assert table.filter(group="others")["value"].null_count() == 0
    assert (table["x"] == table["x"].round(3)).all()
    assert "&lt; 5" in section(tmp_path / "index.html")


def test_an_invalid_threshold_is_a_usage_error(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["report", "--runs", str(runs[1]), "--out", str(tmp_path / "index.html"), "--threshold", "recall=0.9"]
    assert main(command) == 2
    assert "recall=0.9" in capsys.readouterr().err
