"""Training: reproducible to the byte, also after an interruption; no leakage or memory growth; fits small data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from moe_retriever.config import make_config
from moe_retriever.data.tables import VectorTable
from moe_retriever.evaluation.evaluate import evaluate_run, load_for
from moe_retriever.methods import get
from moe_retriever.training import checkpoint, loop
from moe_retriever.training.loop import Job, batches, make_optimiser, run_training, train_epoch
from mrpipe import Store, open_store
from mrpipe.errors import UsageError
from mrpipe.raw import sha256
from mrpipe.transforms.options import TransformOptions
from tests.moe_retriever import synthetic

SMALL = {
    "epochs": 6,
    "hidden": 16,
    "tokens": 2,
    "heads": 2,
    "encoder_hidden": 12,
    "cnn_width": 0.03,
    "image_outputs": 4,
    "batch_size": 8,
    "n_experts": 2,
    "expert_ffn": 16,
    "top_k": 2,
    "fusion_ffn": 16,
    "warmup": 1,
    "image_downsample": 2,
    "lr": 1e-3,
}
Undisturbed = tuple[Path, dict[str, bytes]]
REPRODUCED = ("metrics.json", "metrics.csv", "config.json", "history.parquet", "predictions.parquet", "routing.parquet")


def job(store: Store, run: Path, *, mask_file: Path | None = None, seed: int = 0, **overrides: object) -> Job:
    cfg = make_config(get("moe_retriever"), preset="paper", seed=seed, overrides={**SMALL, **overrides})
    return Job(store=store, run=run, config=cfg, mask_file=mask_file)


def finish(j: Job) -> dict[str, bytes]:
    """Train and evaluate; return the files that must be identical even if the run was interrupted."""
    run_training(j)
    evaluate_run(j.run, j.store, n_resamples=50)
    return {name: (j.run / name).read_bytes() for name in REPRODUCED}


@pytest.fixture(scope="module")
def undisturbed(
    store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes]]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return run, finish(job(store, run, mask_file=mask_file))


def test_a_run_is_reproducible_and_depends_on_the_seed(
    undisturbed: Undisturbed, store: Store, mask_file: Path, tmp_path: Path
) -> None:
    assert finish(job(store, tmp_path / "again", mask_file=mask_file)) == undisturbed[1]
    other = finish(job(store, tmp_path / "other", mask_file=mask_file, seed=1))
    assert other["history.parquet"] != undisturbed[1]["history.parquet"]


def test_a_run_folder_is_complete_and_describes_the_run(undisturbed: Undisturbed, store: Store) -> None:
    run, _ = undisturbed
    assert {p.name for p in run.iterdir()} == {
        *REPRODUCED,
        "model.pt",
        "mask.parquet",
        "log.txt",
        "cost.json",
        "test_cost.json",
        "risk_coverage.csv",
        "validation.parquet",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["store_id"] == store.store_id
    assert metrics["origin"] == "simulated"
    assert metrics["mask"]["p"] == 0.3
    assert metrics["n"]["test"] == metrics["n_evaluated"] > 0
    assert metrics["training"]["epochs"] == 6
    predictions = pl.read_parquet(run / "predictions.parquet")
    known = ["sample_id", "subject_id", "split", "modalities", "label", "predicted"]
    assert predictions.columns == [*known, "p_no", "p_yes"]
    assert (predictions["label"] == predictions["predicted"]).mean() == metrics["metrics"]["accuracy"]["value"]
    log = (run / "log.txt").read_text()
    assert "epoch 6" in log
    assert not any(sample in log for sample in predictions["sample_id"])
    assert str(run.parent) not in (run / "config.json").read_text() + log
    for name in ("config.json", "cost.json"):
        content = json.loads((run / name).read_text())
        assert (content["device"], content["precision"], content["threads"]) == ("cpu", "float32", 1)


def test_only_non_default_transforms_are_recorded_in_a_run(
    undisturbed: Undisturbed, store: Store, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, files = undisturbed
    for name in ("config.json", "metrics.json"):
        assert b"transforms" not in files[name]
    assert "transforms" not in (run / "log.txt").read_text()
    own = {"clip": 1.5, "impute": "median"}
    usual = job(store, tmp_path / "run", mask_file=mask_file, epochs=1, warmup=0)
    other = replace(usual, transform=TransformOptions(**own))  # type: ignore[arg-type]
    assert run_training(usual)
    # A run folder is reused only if the transforms are equal.
    with pytest.raises(UsageError, match="differs in data"):
        run_training(other)
    assert run_training(replace(other, overwrite=True))
    assert not run_training(replace(other, transform=replace(other.transform, scale="standard")))
    assert json.loads((other.run / "config.json").read_text())["data"]["transforms"] == own
    assert "; transforms impute=median, clip=1.5\n" in (other.run / "log.txt").read_text()
    trained = checkpoint.load_run(other.run)
    assert trained.fitted.options == other.transform
    # An evaluation uses the transforms of the checkpoint instead of fitting them.
    monkeypatch.setattr("moe_retriever.data.load.fit", None)
    table = load_for(trained, other.run, store, "cpu").tables[0]
    assert isinstance(table, VectorTable)
    assert table.x[:, :2].abs().max() == 1.5
    assert evaluate_run(other.run, store, n_resamples=0)["transforms"] == own
    monkeypatch.undo()


def test_tables_of_a_run_folder(undisturbed: Undisturbed) -> None:
    run, _ = undisturbed
    scores = json.loads((run / "metrics.json").read_text())["metrics"]
    assert set(pl.read_csv(run / "metrics.csv", infer_schema_length=None)["metric"]) == set(scores)
    history = pl.read_parquet(run / "history.parquet")
    assert history["epoch"].to_list() == list(range(1, 7))
    assert {"train_loss", "train_balance", "val_loss", "val_score"} <= set(history.columns)
    kept = history.filter("best").row(0, named=True)
    recorded = json.loads((run / "metrics.json").read_text())["training"]["val"]
    assert {f"val_{name}": value for name, value in recorded.items()} == {
        name: value for name, value in kept.items() if name in {f"val_{known}" for known in recorded}
    }
    assert {"loss", "auroc", "accuracy"} <= set(recorded)
    routing = pl.read_parquet(run / "routing.parquet")
    shares = routing.group_by("target", "combination").agg(pl.col("share").sum())["share"]
    np.testing.assert_allclose(shares, 1)
    forbidden = routing.filter((pl.col("pool") != pl.col("target")) & (pl.col("pool") != "shared"))
    assert (forbidden["weight"] == 0).all()
    assert (routing.filter(pl.col("pool") == pl.col("target"))["weight"] > 0).any()


def test_a_run_without_gradients_records_the_validation_scores_of_what_it_fitted(store: Store, tmp_path: Path) -> None:
    config = make_config(get("logistic"), preset="paper", seed=0, overrides={})
    run_training(Job(store=store, run=tmp_path, config=config))
    recorded = checkpoint.load_run(tmp_path).training["val"]
    content = evaluate_run(tmp_path, store, part="val", n_resamples=0)
    for name in ("accuracy", "macro_f1", "auroc", "ece"):
        assert recorded[name] == pytest.approx(content["metrics"][name]["value"])
    assert content["training"]["val"] == recorded


def test_an_interrupted_run_resumes_with_identical_results(
    undisturbed: Undisturbed, store: Store, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception during the fourth epoch; the first three epochs are not repeated."""
    j = job(store, tmp_path / "run", mask_file=mask_file)

    class PowerCutError(Exception):
        pass

    def cut(method: object, data: object, rows: object, optimiser: object, epoch: int, weight: object) -> object:
        if epoch == 3:
            raise PowerCutError
        done.append(epoch)
        return train_epoch(method, data, rows, optimiser, epoch, weight)  # type: ignore[arg-type]

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("moe_retriever.training.loop.train_epoch", cut)
        with pytest.raises(PowerCutError):
            run_training(j)
    assert not (j.run / "model.pt").exists()
    assert not (j.run / "metrics.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("moe_retriever.training.loop.train_epoch", lambda *a: (done.append(a[4]), train_epoch(*a))[1])
        assert finish(j) == undisturbed[1]
    assert done == [0, 1, 2, 3, 4, 5]
    assert not (j.run / checkpoint.RESUME_NAME).exists()


def test_a_run_with_other_options_starts_from_scratch(store: Store, mask_file: Path, tmp_path: Path) -> None:
    j = job(store, tmp_path / "run", mask_file=mask_file)
    j.run.mkdir()
    checkpoint.write(j.run / checkpoint.RESUME_NAME, {"format": checkpoint.FORMAT, "fingerprint": "another"})
    run_training(j)
    assert "continuing" not in (j.run / "log.txt").read_text()


@pytest.mark.parametrize("change", ["epochs", "seed", "data", "method"])
def test_a_finished_run_is_replaced_only_on_request(change: str, store: Store, tmp_path: Path) -> None:
    j = job(store, tmp_path / "run", epochs=1, warmup=0)
    assert run_training(j)
    evaluate_run(j.run, store, n_resamples=0)
    evaluate_run(j.run, store, part="val", n_resamples=0)
    before = {p.name: p.read_bytes() for p in j.run.iterdir()}
    assert not run_training(j)
    other = {
        "epochs": job(store, j.run, epochs=2, warmup=0),
        "seed": job(store, j.run, epochs=1, warmup=0, seed=1),
        "data": replace(j, modalities=("table", "series")),
        "method": replace(j, config=make_config(get("majority"), preset="paper", seed=0, overrides={})),
    }[change]
    with pytest.raises(UsageError, match=r"contains a finished run .*--overwrite"):
        run_training(other)
    assert {p.name: p.read_bytes() for p in j.run.iterdir()} == before
    assert run_training(replace(other, overwrite=True))
    # No file of the earlier run is left, in particular no routing and no metrics.
    new = {"model.pt", "config.json", "cost.json", "log.txt"}
    assert {p.name for p in j.run.iterdir()} == (new if change == "method" else new | {"history.parquet"})
    evaluate_run(j.run, store, n_resamples=0)
    assert (j.run / "routing.parquet").exists() == (change != "method")
    # The same options are trained again on request.
    assert run_training(replace(other, overwrite=True))


def test_an_evaluation_removes_the_files_of_an_earlier_one(store: Store, tmp_path: Path) -> None:
    """Such as the routing of a method that does route, which the report would draw."""
    config = make_config(get("majority"), preset="paper", seed=0, overrides={})
    j = replace(job(store, tmp_path / "run"), config=config)
    run_training(j)
    (j.run / "routing.parquet").write_bytes(b"of another run")
    evaluate_run(j.run, store, n_resamples=0)
    assert not (j.run / "routing.parquet").exists()


def test_a_run_killed_with_sigkill_resumes_with_identical_results(
    undisturbed: Undisturbed, store: Store, mask_file: Path, tmp_path: Path, project: Path
) -> None:
    run = tmp_path / "run"
    options = [f"{k}={v}" for k, v in SMALL.items()]
    command = [
        sys.executable,
        "-m",
        "mrpipe",
        "train",
        "--store",
        str(store.path),
        "--out",
        str(run),
        "--mask",
        str(mask_file),
        "--quiet",
        "--device",
        "cpu",
        "--threads",
        str(torch.get_num_threads()),
        "--set",
        *options,
    ]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not _epochs_done(run) >= 2:
        time.sleep(0.002)
    process.kill()
    errors = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (run / "model.pt").exists()
    assert not (run / "metrics.json").exists()
    done = subprocess.run([*command, "--no-test"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch" in (run / "log.txt").read_text()
    evaluate_run(run, store, n_resamples=50)
    assert {name: (run / name).read_bytes() for name in REPRODUCED} == undisturbed[1]


def _epochs_done(run: Path) -> int:
    log = run / "log.txt"
    return log.read_text().count("\nepoch ") if log.exists() and (run / checkpoint.RESUME_NAME).exists() else 0


def test_validation_and_test_rows_do_not_affect_training(toy_stores: Path, tmp_path: Path) -> None:
    """Different values in all validation and test rows leave the training losses identical."""
    losses, tested = [], []
    for name in ("plain", "shifted"):
        j = job(open_store(toy_stores / name), tmp_path / name, patience=0)
        finish(j)
        history = pl.read_parquet(j.run / "history.parquet")
        losses.append(history.select(pl.col("^train_.*$")).rows())
        tested.append(pl.read_parquet(j.run / "predictions.parquet")["p_yes"].to_list())
    assert losses[0] == losses[1]
    assert tested[0] != tested[1]


def test_each_training_row_occurs_once_per_epoch() -> None:
    rows = np.arange(100, 143)
    parts = batches(rows, 8, 0, 3)
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(map(len, parts)) <= 8
    assert np.concatenate(batches(rows, 8, 0, 4)).tolist() != np.concatenate(parts).tolist()


@pytest.mark.parametrize("kinds", [("vector", "sequence"), ("image", "volume"), ("genotype", "vector")])
def test_sixteen_samples_with_random_labels_are_memorised(kinds: tuple[str, ...]) -> None:
    """The labels are independent of the inputs."""
    data = synthetic.make(synthetic.random_masks(16, 2, 0), kinds, parts=(1.0, 0.0), strength=0.0)
    options = {"dropout": 0.0, "image_dropout": 0.0, "warmup": 0, "epochs": 100, "lr": 1e-3}
    method = synthetic.trained_on(data, synthetic.config(**options))
    optimiser = make_optimiser(method)
    losses = [1.0]
    while losses[-1] > 0.05 and len(losses) <= 100:
        losses.append(train_epoch(method, data, data.rows("train"), optimiser, len(losses) - 1)["loss"])
    assert losses[-1] <= 0.05


def test_memory_does_not_grow_over_epochs() -> None:
    """Resident memory after 16 epochs equals that after four."""
    data = synthetic.make(synthetic.random_masks(200, 3, 0))
    method = synthetic.trained_on(data, synthetic.config(hidden=64, tokens=8, warmup=0))
    optimiser = make_optimiser(method)
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    for epoch in range(4):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)
    before = resident()
    for epoch in range(4, 16):
        train_epoch(method, data, data.rows("train"), optimiser, epoch)
    assert resident() - before < 8e6


def test_early_stopping_counts_from_the_best_selectable_epoch(store: Store, tmp_path: Path) -> None:
    j = job(store, tmp_path / "run", epochs=30, patience=2, warmup=3, lr=0.0001)
    run_training(j)
    history = pl.read_parquet(j.run / "history.parquet")
    best = history.filter("best")["epoch"].item()
    assert history["selectable"].to_list()[:4] == [False, False, False, True]
    assert best > 3
    assert len(history) == min(30, best + 2)
    selectable = history.filter("selectable")
    assert history.filter("best")["val_score"].item() == selectable["val_score"].max()


def test_a_training_split_with_one_class_is_rejected(toy_stores: Path, tmp_path: Path) -> None:
    j = job(open_store(toy_stores / "plain"), tmp_path / "run")
    from moe_retriever.training import loop as train

    def one_class(*args: object, **kwargs: object) -> object:
        data = synthetic.make(synthetic.random_masks(20, 2, 0))
        data.label[:] = 1
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load", one_class)
        with pytest.raises(UsageError, match="at least two classes"):
            run_training(j)


@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_class_weights(weight: str) -> None:
    data = synthetic.make(np.ones((10, 1), dtype=bool), n_classes=3, parts=(1.0, 0.0))
    data.label[:] = [0] * 6 + [1] * 4 + [2] * 0
    found = data.class_weight(data.rows("train"), weight)
    if weight == "none":
        assert found is None
    else:
        np.testing.assert_allclose(found, [10 / 12, 10 / 8, 0.0], rtol=1e-6)


def test_the_fingerprint_covers_options_data_initial_weights_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"1")
    config = synthetic.config(image_weights=str(weights))
    marks = [loop.fingerprint({"a": 1}, config), loop.fingerprint({"a": 2}, config)]
    assert loop.fingerprint({"a": 1}, config) == marks[0]
    weights.write_bytes(b"2")
    marks.append(loop.fingerprint({"a": 1}, config))
    marks.append(loop.fingerprint({"a": 1}, synthetic.config("zero_fill")))
    for name, value in (("_code_hash", lambda method: "other"), ("torch", type("T", (), {"__version__": "0"}))):
        monkeypatch.setattr(loop, name, value)
        marks.append(loop.fingerprint({"a": 1}, config))
    assert len(set(marks)) == len(marks) == 6


def test_the_hash_of_a_file_of_image_weights_is_recorded(store: Store, tmp_path: Path) -> None:
    def recorded(name: str, **overrides: object) -> dict[str, object]:
        made = replace(job(store, tmp_path / name, epochs=1, warmup=0, **overrides), modalities=("table", "image"))
        run_training(made)
        return dict(evaluate_run(made.run, store, n_resamples=0)["training"])

    assert "image_weights_sha256" not in recorded("random")
    state = checkpoint.read(tmp_path / "random" / "model.pt")["state"]
    weights = tmp_path / "vgg.pth"
    torch.save({k.partition(".cnn.")[2]: v for k, v in state.items() if ".cnn." in k}, weights)
    assert recorded("pretrained", image_weights=str(weights))["image_weights_sha256"] == sha256(weights)
