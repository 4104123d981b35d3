"""Choice of the epoch: ties, scores of a single class, limits, and a validation part cut from training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from moe_retriever.config import EPOCHS, MIN_UPDATES, Common, Config, make_config
from moe_retriever.data.load import Data, load
from moe_retriever.data.scores import score
from moe_retriever.data.tables import Rows
from moe_retriever.methods import get
from moe_retriever.methods.base import AnyMethod
from moe_retriever.training import loop
from moe_retriever.training.checkpoint import Origin, load_run
from moe_retriever.training.log import notes
from moe_retriever.training.loop import Job, run_training
from moe_retriever.training.predict import predict, validate
from moe_retriever.training.selection import patience_over
from mrpipe import Store
from mrpipe.errors import MrpipeError
from mrpipe.store.reader import Store as AnyStore
from mrpipe.transforms.fit import fit
from tests.moe_retriever import synthetic

NARROW = {"hidden": 8, "tokens": 1, "heads": 2, "encoder_hidden": 8}
RARE = {"lr": 3e-3, "epochs": 20}


def imbalanced(n: int = 500, rate: float = 0.13) -> Data:
    """One sample in eight is positive; three modalities with gaps carry the same weak signal."""
    data = synthetic.make(synthetic.random_masks(n, 3, 0), strength=0.5)
    keep = (data.label == 0) | (np.random.default_rng(0).random(n) < rate / (1 - rate))
    data.part[~keep] = -1
    return data


def run(data: Data, folder: Path, store: Store, method: str = "late_fusion", **options: Any) -> pl.DataFrame:
    """Train on in-memory data; the history."""
    config = make_config(get(method), preset="paper", seed=0, overrides={**NARROW, **options})
    origin = Origin("made", store.store_id, "simulated", "outcome", "standard", ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "origin_of", lambda *_: origin)
        run_training(Job(store=store, run=folder, config=config), data)
    return pl.read_parquet(folder / "history.parquet")


@pytest.fixture(scope="module")
def rare(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    """A run with the default score, and its history."""
    folder = tmp_path_factory.mktemp("rare") / "run"
    return folder, run(imbalanced(), folder, store, **RARE)


def test_the_default_score_selects_a_classifier_of_a_rare_class(rare: tuple[Path, pl.DataFrame]) -> None:
    """All samples are assigned to the frequent class for long, with equal macro-F1 and accuracy but a growing AUROC."""
    folder, history = rare
    assert (history["val_n_predicted"][1:] == 1).all()
    assert history["val_auroc"][0] < 0.6
    data = imbalanced()
    test = predict(load_run(folder).method, data, data.rows("test"))
    assert score(data.label[test.rows], test.scored)["auroc"] > 0.8  # type: ignore[operator]


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_ties_go_to_the_lower_loss_and_a_single_predicted_class_does_not_end_a_training(
    metric: str, rare: tuple[Path, pl.DataFrame], store: Store, tmp_path: Path
) -> None:
    history = run(imbalanced(), tmp_path / "run", store, select_metric=metric, patience=3, **RARE)
    assert len(history) == 20
    assert history["val_loss"].equals(rare[1]["val_loss"])
    tied = history.filter(pl.col(f"val_{metric}") == pl.col(f"val_{metric}").max())
    assert history.filter("best")["val_loss"].item() == tied["val_loss"].min()
    assert metric == "macro_f1" or len(tied) > 10


def test_patience_counts_epochs_with_several_predicted_classes() -> None:
    def over(*predicted: int, metric: str, patience: int = 2, best_epoch: int = 1) -> bool:
        history = [{"val_n_predicted": float(n)} for n in (2, *predicted)]
        return patience_over(history, best_epoch, patience, metric)

    assert over(2, 1, 2, metric="macro_f1")
    assert not over(1, 1, 2, metric="macro_f1")
    assert over(1, 1, metric="auroc")
    assert not over(2, metric="auroc")
    assert not over(*[2] * 9, metric="auroc", patience=0)
    assert not over(2, 2, metric="auroc", best_epoch=-1)


def test_an_undefined_score_is_decided_by_the_loss(store: Store, tmp_path: Path) -> None:
    data = imbalanced(200)
    data.label[data.rows("val")] = 0
    history = run(data, tmp_path / "run", store, epochs=6)
    assert history["val_auroc"].null_count() == 6
    assert history.filter("best")["val_loss"].item() == history["val_loss"].min()


@pytest.mark.parametrize("method", ["late_fusion", "moe_retriever", "best_single"])
def test_the_weights_of_the_best_epoch_are_saved(method: str, store: Store, tmp_path: Path) -> None:
    """Not those of the last one: the scores of the checkpoint are those of the selected epoch."""
    data = synthetic.make(synthetic.random_masks(80, 3, 0), strength=0.4)
    options = {"lr": 0.02, "epochs": 8, "patience": 0}
    history = run(data, tmp_path / "run", store, method, select_metric="loss", **options)
    best, last = history.filter("best").row(0, named=True), history.row(-1, named=True)
    assert best["epoch"] < last["epoch"]
    trained = load_run(tmp_path / "run").method
    trained.prepare(data, data.rows("train"))
    found = validate(trained, data, data.rows("val"))["loss"]
    assert found == pytest.approx(best["val_loss"], rel=1e-5)
    assert found != pytest.approx(last["val_loss"], rel=1e-3)


@pytest.mark.parametrize("method", ["zero_fill", "m3care"])
def test_weights_and_buffers_of_the_best_epoch_are_loaded_after_training(
    method: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four epochs is made the best one; M3Care has running statistics, which no optimiser changes."""
    states: list[dict[str, torch.Tensor]] = []

    def scripted(made: AnyMethod, data: Data, rows: Rows) -> dict[str, float]:
        states.append({k: v.detach().clone() for k, v in made.state_dict().items()})
        return {**validate(made, data, rows), "loss": [2.0, 1.0, 3.0, 4.0][len(states) - 1]}

    monkeypatch.setattr(loop, "validate", scripted)
    data = synthetic.make(synthetic.random_masks(80, 3, 0), strength=0.4)
    run(data, tmp_path / "run", store, method, select_metric="loss", epochs=4, patience=0, lr=0.02)
    trained = load_run(tmp_path / "run").method
    kept = trained.state_dict()
    assert len(states) == 4
    assert all(torch.equal(value, states[1][name]) for name, value in kept.items())
    moving = {name for name, value in kept.items() if not torch.equal(value, states[3][name])}
    assert {name for name, _ in trained.named_parameters()} & moving
    buffers = {name for name, _ in trained.named_buffers()} & moving
    assert bool(buffers) == (method == "m3care")


def test_limits_are_equal_for_all_methods_and_count_updates_on_small_data() -> None:
    common = Common()
    assert (common.epochs, common.patience, common.select_metric) == (0, 20, "auto")
    config: Config[Any] = synthetic.config("majority", batch_size=32)
    large, small = (config.for_samples(n).common for n in (32 * MIN_UPDATES // EPOCHS, 125))
    assert (large.epochs, large.patience) == (100, 20)
    # Four updates per epoch.
    assert (small.epochs, small.patience) == (500, 100)
    chosen = synthetic.config("majority", epochs=3, patience=2)
    assert chosen.for_samples(5) is chosen


def without_validation(patch: pytest.MonkeyPatch) -> None:
    """Stores whose validation samples are training samples."""
    split = AnyStore.split
    merged = pl.col("split").replace("val", "train")
    patch.setattr(AnyStore, "split", lambda self, *chosen: split(self, *chosen).with_columns(merged))


def test_a_split_without_validation_gets_one_from_training(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(store)
    without_validation(monkeypatch)
    data, again = load(store), load(store)
    n, cut = len(whole.rows("train")) + len(whole.rows("val")), data.sample_id[data.rows("val")]
    assert data.n_cut == len(cut) == pytest.approx(0.15 * n, abs=1.5)
    assert len(data.rows("train")) == n - len(cut)
    assert (again.part == data.part).all()
    assert (data.rows("test") == whole.rows("test")).all()
    assert not set(data.subject_id[data.rows("train")]) & set(data.subject_id[data.rows("val")])
    for c in range(2):
        share = (data.label[data.rows("val")] == c).sum() / (data.label[np.flatnonzero(data.part < 2)] == c).sum()
        assert 0.05 < share < 0.3
    # The transforms do not see the validation samples.
    assert data.fitted.to_json() == fit(store, without=cut.tolist()).to_json() != fit(store).to_json()
    # The choice is reported.
    config = make_config(get("zero_fill"), preset="paper", seed=0, overrides={**NARROW, "cnn_width": 0.03, "epochs": 2})
    j = Job(store=store, run=tmp_path / "run", config=config)
    run_training(j)
    assert json.loads((j.run / "config.json").read_text())["data"]["validation_cut_from_training"] == len(cut)
    (note,) = load_run(j.run).training["notes"]
    assert f"{len(cut)} training samples" in note
    assert note in (j.run / "log.txt").read_text()
    assert pl.read_parquet(j.run / "history.parquet")["val_auroc"].null_count() == 0


def test_subjects_are_not_divided_by_the_cut() -> None:
    from moe_retriever.data.load import _validation_of

    rng = np.random.default_rng(0)
    subject = rng.integers(0, 60, 300)
    frame = pl.DataFrame({"sample_id": [f"s{i}" for i in range(300)], "subject_id": [f"p{s}" for s in subject]})
    cut = _validation_of(frame.with_columns(value=pl.Series(subject % 3, dtype=pl.Int8)), stratified=True)
    inside = frame["sample_id"].is_in(cut).to_numpy()
    assert not set(subject[inside]) & set(subject[~inside])
    assert 30 <= inside.sum() <= 60
    assert len(set((subject % 3)[inside])) == 3


@pytest.mark.parametrize("metric", ["auroc", "macro_f1"])
def test_logistic_regression_without_validation_is_cross_validated(metric: str) -> None:
    """The strongest penalty of the grid, which was used silently, predicts one class here."""
    data = synthetic.make(synthetic.random_masks(220, 3, 0), parts=(0.7, 0.0), strength=2.0)
    keep = (data.label == 0) | (np.arange(220) % 3 == 0)
    data.part[~keep] = -1
    method = synthetic.trained_on(data, synthetic.config("logistic", select_metric=metric))
    chosen = method.fit(data, data.rows("train"), data.rows("val"))
    assert chosen["folds"] == 5
    assert chosen["c"] > 1e-4  # type: ignore[operator]
    assert 0.8 < chosen["validation"] <= 1  # type: ignore[operator]
    test = predict(method, data, data.rows("test"))
    assert score(data.label[test.rows], test.scored)["macro_f1"] > 0.85  # type: ignore[operator]
    worst = synthetic.trained_on(data, synthetic.config("logistic", c=1e-4))
    worst.fit(data, data.rows("train"), data.rows("val"))
    found = predict(worst, data, test.rows)
    assert score(data.label[found.rows], found.scored)["macro_f1"] < 0.6  # type: ignore[operator]


def test_folds_do_not_divide_subjects() -> None:
    """With two equal samples per subject, a model that saw the other one would be better than chance."""
    data = synthetic.make(np.ones((160, 1), dtype=bool), parts=(1.0, 0.0), strength=0.0)
    data.tables[0].x = torch.randn(80, 60, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    data.label[:] = np.repeat(data.label[::2], 2)
    data = dataclasses.replace(data, subject_id=np.repeat(data.sample_id[::2], 2))
    method = synthetic.get("logistic").create(data.spec, synthetic.config("logistic", c=1.0))
    chosen = method.fit(data, data.rows("train"), data.rows("val"))
    assert chosen["validation"] < 0.65  # type: ignore[operator]


def test_notes_name_what_is_absent() -> None:
    data = synthetic.make(np.ones((40, 2), dtype=bool), n_classes=3)
    parts = {part: data.rows(part) for part in ("train", "val", "test")}
    assert notes(data, parts) == []
    data.label[parts["train"]] = 0
    data.label[parts["test"]] = np.arange(len(parts["test"])) % 2
    data.observed[parts["train"], 1] = False
    found = notes(data, {**parts, "val": parts["val"][:0]})
    assert found == [
        "No training sample has the class c1, c2: never predicted.",
        "The validation split has no labelled samples.",
        "No test sample has the class c2: left out of the metrics that average over classes.",
        "No training sample has m1, so nothing can be learned from it.",
    ]
    data.label[parts["val"]] = 0
    assert any(n.startswith("No validation sample has the class c1, c2: left out") for n in notes(data, parts))


def test_predictions_that_are_not_finite_are_an_error() -> None:
    data = synthetic.make(np.ones((20, 1), dtype=bool))
    method = synthetic.trained_on(data, synthetic.config("zero_fill"))
    next(method.parameters()).data.fill_(float("nan"))
    found = predict(method, data, data.rows("test"))
    with pytest.raises(MrpipeError, match="not finite"):
        _ = found.scored
