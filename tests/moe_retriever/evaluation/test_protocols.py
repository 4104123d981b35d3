"""Evaluation of a trained run under other protocols: another mask, every combination of modalities, another store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from moe_retriever.evaluation import run_folders
from moe_retriever.evaluation.evaluate import every_pattern, with_validation_of
from mrpipe import Store, open_store
from mrpipe.cli.main import main
from mrpipe.experiment.missingness import ALL, Missingness, read_masks, read_realised, write_masks
from tests.moe_retriever import synthetic

VIEW = ("table", "image")
OPTIONS = "epochs=1 hidden=8 tokens=2 heads=2 encoder_hidden=8 cnn_width=0.03 warmup=0 n_experts=2 expert_ffn=8 top_k=2"


def call(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two modalities with p = 0.3."""
    root = tmp_path_factory.mktemp("protocols") / "experiment" / "label"
    write_masks(store, Missingness(p=0.3, modalities=VIEW), root / "p30.parquet")
    train = ("train", "--store", store.path, "--out", root / "seed0", "--mask", root / "p30.parquet", "--quiet")
    assert call(*train, "--modalities", *VIEW, "--set", *OPTIONS.split()) == 0
    return root / "seed0"


def metrics(folder: Path) -> dict[str, dict[str, object]]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def test_run_is_tested_with_another_mask_and_keeps_its_own_results(run: Path, store: Store, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    mask = tmp_path / "p60.parquet"
    write_masks(store, Missingness(p=0.6, rate="nominal", modalities=VIEW), mask)
    assert call("evaluate", "--run", run, "--store", store.path, "--mask", mask, "--name", "p60") == 0
    said, frame = metrics(run / "tests/p60"), pl.read_parquet(run / "tests/p60/predictions.parquet")
    assert said["mask"]["p"] == 0.3
    assert said["mask_realised"] == read_realised(run / "mask.parquet")
    assert said["test"]["mask"]["p"] == 0.6
    assert said["test"]["mask_realised"] == read_realised(mask)
    visible = read_masks(mask)[0].join(frame, on="sample_id")
    for modality in VIEW:
        shown = (visible["modality_mask"].to_numpy() >> store.bits[modality]) & 1 == 1
        np.testing.assert_array_equal(visible["modalities"].str.contains(modality).to_numpy(), shown)
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
    assert said["test"]["name"] == "p60"
    assert metrics(run)["test"] is None


def test_training_mask_as_a_protocol_gives_the_predictions_of_the_run(run: Path, store: Store) -> None:
    """In particular, the supporting samples are the training samples under the mask of the training."""
    own = ("--mask", run / "mask.parquet", "--name", "own")
    assert call("evaluate", "--run", run, "--store", store.path, *own) == 0
    first, again = (pl.read_parquet(f / "predictions.parquet") for f in (run, run / "tests/own"))
    assert first.drop("p_yes", "p_no").equals(again.drop("p_yes", "p_no"))
    np.testing.assert_allclose(first["p_yes"], again["p_yes"], rtol=1e-6)
    assert metrics(run)["majority"] == metrics(run / "tests/own")["majority"]


def test_every_pattern_is_tested_on_the_same_complete_samples(run: Path, store: Store) -> None:
    assert call("evaluate", "--run", run, "--store", store.path, "--patterns", "--name", "patterns") == 0
    frame = pl.read_parquet(run / "tests/patterns/predictions.parquet")
    samples = store.samples("table & image").join(store.split(), on="sample_id").collect()
    complete = samples.join(store.labels().collect(), on="sample_id").filter(split="test")["sample_id"].sort().to_list()
    assert complete
    groups = {str(k[0]): g for k, g in frame.group_by("modalities")}
    assert set(groups) == {"table", "image", "table+image"}
    assert all(g["sample_id"].sort().to_list() == complete for g in groups.values())
    scores = pl.read_csv(run / "tests/patterns/metrics.csv").filter(by="combination", metric="accuracy")
    assert dict(scores.select("group", "n").iter_rows()) == dict.fromkeys(groups, len(complete))
    for pattern, group in groups.items():
        accuracy = (group["label"] == group["predicted"]).mean()
        assert scores.filter(group=pattern)["value"].item() == pytest.approx(accuracy)
        assert len(run_folders.tested(run / "tests/patterns", pattern).label) == len(complete)


def test_validation_samples_cut_from_training_are_those_of_the_training() -> None:
    """Under another mask, other samples are left; the cut ones are neither trained on nor lost."""
    training = synthetic.make(np.ones((20, 2), dtype=bool), parts=(0.5, 0.2))
    again = synthetic.make(np.ones((20, 2), dtype=bool), parts=(0.7, 0.0))
    assert len(again.rows("val")) == 0
    found = with_validation_of(training, again)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(found.rows(part), training.rows(part))
    assert found.part.dtype == np.int8


def test_patterns_hide_modalities_of_complete_samples_only() -> None:
    data = synthetic.make(synthetic.random_masks(60, 3, 0), ("vector", "vector", "vector"))
    rows = data.rows("test")
    n = int(data.observed[rows].all(axis=1).sum())
    found = every_pattern(data, rows)
    assert len(found) == 7 * n
    assert len(set(found.combination(found.observed))) == 7
    np.testing.assert_array_equal(found.row >= 0, found.observed)
    assert set(found.sample_id) == set(data.sample_id[rows][data.observed[rows].all(axis=1)])


def test_run_is_tested_on_all_labelled_samples_of_another_store(
    run: Path, store: Store, toy_stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = open_store(toy_stores / "shifted")
    assert call("evaluate", "--run", run, "--store", other.path, "--name", "shifted") == 0
    said, frame = metrics(run / "tests/shifted"), pl.read_parquet(run / "tests/shifted/predictions.parquet")
    assert (said["store_id"], said["test"]["store_id"]) == (store.store_id, other.store_id)
    labelled = other.samples("table | image").join(other.labels(), on="sample_id").collect()["sample_id"]
    assert sorted(frame["sample_id"]) == sorted(labelled)
    external = (run / "tests/shifted/predictions.parquet").read_bytes()
    given = ("--name", "shifted", "--reference-store", store.path)
    assert call("evaluate", "--run", run, "--store", other.path, *given) == 0
    # The bank in the checkpoint and the training store are the same supporting samples.
    again = pl.read_parquet(run / "tests/shifted/predictions.parquet")
    np.testing.assert_allclose(frame["p_yes"], again["p_yes"], rtol=1e-5)
    assert external
    # Samples outside validation and test are equal in both stores, and predicted alike.
    capsys.readouterr()
    assert call("evaluate", "--run", run, "--store", other.path, "--name", "p", "--mask", run / "mask.parquet") == 3
    assert "masks of store" in capsys.readouterr().err
    assert call("evaluate", "--run", run, "--store", store.path, "--mask", run / "mask.parquet") == 2
    assert "require --name" in capsys.readouterr().err


def test_store_whose_features_are_others_is_rejected(
    run: Path, toy_stores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transforms know features by position, so a store with as many columns in another order would be misread."""
    other = open_store(toy_stores / "shifted")
    reordered = other.dictionary.with_columns(pl.col("name").reverse().over("modality"))
    relabelled = other.dictionary.with_columns(pl.col("levels").list.reverse())
    for dictionary in (reordered, relabelled):
        monkeypatch.setattr(Store, "dictionary", property(lambda self, found=dictionary: found))
        assert call("evaluate", "--run", run, "--store", other.path, "--name", "other") == 3
        assert "column 'table'" in capsys.readouterr().err
        assert call("predict", "--run", run, "--store", other.path, "--out", run / "p.parquet") == 3
    assert not (run / "tests" / "other").exists()


@pytest.mark.parametrize("name", ["..", "../other", "a/b", "."])
def test_protocol_is_the_name_of_a_folder(
    name: str, run: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--name ..` would replace the results of the run itself."""
    before = (run / "metrics.json").read_bytes()
    assert call("evaluate", "--run", run, "--store", store.path, "--name", name) == 2
    assert "name of a folder" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before


def test_results_have_a_row_per_protocol_with_the_realised_rates(run: Path, store: Store, tmp_path: Path) -> None:
    assert call("evaluate", "--run", run, "--store", store.path, "--name", "observed") == 0
    root = run.parents[2]
    frame = run_folders.write_results(root, tmp_path / "results.parquet").filter(by="all", metric="accuracy")
    assert {"", "observed"} <= set(frame["test"])
    assert frame["run"].unique().to_list() == ["experiment/label/seed0"]
    rates = dict(frame.select("test", "hidden").iter_rows())
    assert rates[""] == read_realised(run / "mask.parquet")[ALL] > 0.05
    assert rates["observed"] is None
    assert call("train", "--store", store.path, "--out", run, "--mask", run.parent / "p30.parquet", "--quiet",
                "--modalities", *VIEW, "--overwrite", "--no-test", "--set", *OPTIONS.split()) == 0  # fmt: skip
    assert not list((run / "tests").glob("*/*"))
