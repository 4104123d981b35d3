"""Commands train, evaluate, predict, benchmark and methods: results, errors and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from moe_retriever.catalogue import catalogue
from moe_retriever.methods import get, names
from moe_retriever.nn import kernels
from moe_retriever.plots.plots import learning_curves
from moe_retriever.training.checkpoint import NAME, read
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.experiment.missingness import Missingness, write_masks
from mrpipe.store.parquet import read_metadata, write_frame
from tests.stores import manifest_of, reseal

OPTIONS = [
    "epochs=2",
    "hidden=16",
    "tokens=2",
    "heads=2",
    "encoder_hidden=8",
    "cnn_width=0.03",
    "n_experts=2",
    "expert_ffn=8",
    "top_k=2",
    "warmup=0",
    "lr=0.001",
]


def call(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(store: Store, mask_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    assert call("train", "--store", store.path, "--out", out, "--mask", mask_file, "--quiet", "--set", *OPTIONS) == 0
    return out


@pytest.mark.parametrize("method", ["majority", "logistic"])
def test_control_methods_use_the_same_commands(method: str, store: Store, mask_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("train", "--store", store.path, "--out", out, "--mask", mask_file, "--method", method, "--quiet") == 0
    first = (out / "metrics.json").read_bytes()
    metrics = json.loads(first)
    assert metrics["method"] == method
    if method == "majority":
        assert metrics["metrics"]["accuracy"]["value"] == metrics["majority"]["accuracy"]
        assert metrics["metrics"]["balanced_accuracy"]["value"] == 0.5
    assert call("evaluate", "--run", out, "--store", store.path) == 0
    assert (out / "metrics.json").read_bytes() == first
    assert call("predict", "--run", out, "--store", store.path, "--out", out / "p.parquet") == 0


def test_logistic_regression_finds_a_linear_signal() -> None:
    from tests.moe_retriever import synthetic

    data = synthetic.make(synthetic.random_masks(300, 3, 0), ("vector", "sequence", "image"), n_classes=3)
    method = synthetic.get("logistic").create(data.spec, synthetic.config("logistic"))
    chosen = method.fit(data, data.rows("train"), data.rows("val"))
    assert chosen["c"] in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    test = data.rows("test")
    predicted = method(data.batch(test, "x")).logits.argmax(1).numpy()
    assert (predicted == data.label[test]).mean() > 0.9
    alone = method(data.batch(test[[3]], "x")).logits
    torch.testing.assert_close(alone, method(data.batch(test, "x")).logits[[3]])


def test_evaluation_is_reproducible_and_each_split_has_its_own_files(run: Path, store: Store) -> None:
    first = (run / "metrics.json").read_bytes()
    assert call("evaluate", "--run", run, "--store", store.path) == 0
    assert (run / "metrics.json").read_bytes() == first
    assert call("evaluate", "--run", run, "--store", store.path, "--part", "val", "--draws", 3) == 0
    val = json.loads((run / "metrics_val.json").read_text())
    assert val["part"] == "val"
    assert val["draws"] == 3
    assert val["draw_std"] >= 0


def test_predict_on_the_training_store_equals_evaluate(
    run: Path, store: Store, mask_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    assert call("predict", "--run", run, "--store", store.path, "--mask", mask_file, "--out", out) == 0
    found = pl.read_parquet(out)
    tested = pl.read_parquet(run / "predictions.parquet")
    both = tested.join(found, on="sample_id", suffix="_again")
    assert len(both) == len(tested)
    np.testing.assert_allclose(both["p_yes_again"], both["p_yes"], rtol=1e-5, atol=1e-6)
    assert len(found) == store.manifest.n_samples


@pytest.mark.parametrize("metric", ["features", "embedding"])
def test_predict_with_nearest_supporting_samples_needs_no_training_store(
    metric: str, store: Store, mask_file: Path, tmp_path: Path
) -> None:
    """A copy without labels and splits has no training samples, so neighbours come from the run alone."""
    out, own = tmp_path / "run", ("epochs=1", "support=nearest", f"nearest_metric={metric}")
    train = ("train", "--store", store.path, "--out", out, "--mask", mask_file, "--quiet", "--set", *OPTIONS, *own)
    assert call(*train) == 0
    bare = edited(store.path, tmp_path / "bare", lambda m: m.update(labels=[], splits=[]))
    found = []
    for path in (store.path, bare):
        assert call("predict", "--run", out, "--store", path, "--out", tmp_path / "p.parquet") == 0
        found.append(pl.read_parquet(tmp_path / "p.parquet"))
    np.testing.assert_allclose(found[1]["p_yes"], found[0]["p_yes"], rtol=1e-5)
    masked = ("predict", "--run", out, "--store", store.path, "--mask", mask_file, "--out", tmp_path / "q.parquet")
    assert call(*masked) == 0
    tested = pl.read_parquet(out / "predictions.parquet").join(
        pl.read_parquet(tmp_path / "q.parquet"), on="sample_id", suffix="_again"
    )
    np.testing.assert_allclose(tested["p_yes_again"], tested["p_yes"], rtol=1e-5, atol=1e-6)


def edited(store: Path, folder: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """A copy of a store with another manifest, sealed again."""
    copy = Path(shutil.copytree(store, folder))
    content = manifest_of(copy)
    change(content)
    reseal(copy, content)
    return copy


def test_a_run_keeps_its_transforms(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train = ("train", "--store", store.path, "--out", out, "--method", "logistic", "--quiet")
    own = ("--transform", "scale=minmax", "--transform", "impute=median")
    for arguments, known in ((train, False), ((*train, *own, "--overwrite"), False), ((*train, *own), True)):
        assert call(*arguments) == 0
        assert ("already contains this run" in capsys.readouterr().out) == known
    assert call(*train) == 2
    assert "--overwrite" in capsys.readouterr().err
    first = json.loads((out / "metrics.json").read_text())
    assert first["transforms"] == {"scale": "minmax", "impute": "median"}
    assert call("evaluate", "--run", out, "--store", store.path) == 0
    assert json.loads((out / "metrics.json").read_text()) == first
    assert call("predict", "--run", out, "--store", store.path, "--out", tmp_path / "p.parquet") == 0
    tested, found = (pl.read_parquet(p) for p in (out / "predictions.parquet", tmp_path / "p.parquet"))
    both = tested.join(found, on="sample_id", suffix="_again")
    np.testing.assert_allclose(both["p_yes_again"], both["p_yes"], rtol=1e-5, atol=1e-6)


def test_predict_needs_neither_labels_nor_splits(run: Path, store: Store, tmp_path: Path) -> None:
    bare = edited(store.path, tmp_path / "bare", lambda m: m.update(labels=[], splits=[]))
    out = tmp_path / "p.parquet"
    assert call("predict", "--run", run, "--store", bare, "--out", out) == 0
    found = pl.read_parquet(out)
    assert len(found) == store.manifest.n_samples
    assert found["label"].null_count() == len(found)
    assert found["split"].null_count() == len(found)
    np.testing.assert_allclose(found["p_no"] + found["p_yes"], 1)
    again = tmp_path / "q.parquet"
    assert call("predict", "--run", run, "--store", store.path, "--out", again) == 0
    np.testing.assert_allclose(pl.read_parquet(again)["p_yes"], found["p_yes"], rtol=1e-5)


def test_predict_rejects_another_dataset_shape_or_encoder(
    run: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(m: dict) -> None:  # type: ignore[type-arg]
        m["dataset"] = "elsewhere"
        m["modalities"][0]["shape"] = [9]
        m["modalities"][1]["encoder"] = "another/2"
        del m["modalities"][2]

    wrong = edited(store.path, tmp_path / "wrong", other)
    assert call("predict", "--run", run, "--store", wrong, "--out", tmp_path / "p.parquet") == 3
    text = capsys.readouterr().err
    for part in ("4 errors", "elsewhere", "modalities.table.shape", "another/2", "modalities.image"):
        assert part in text
    assert not (tmp_path / "p.parquet").exists()


def test_predict_without_a_stored_bank_needs_the_training_store(
    store: Store, mask_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ("--store", store.path, "--out", out, "--mask", mask_file, "--quiet", "--set", *OPTIONS)
    assert call("train", *arguments, "bank_mb=0.0", "epochs=1") == 0
    assert read(out / NAME)["reference"] is None
    predict = ("predict", "--run", out, "--store", store.path, "--mask", mask_file, "--out", tmp_path / "p.parquet")
    assert call(*predict) == 2
    assert "--reference-store" in capsys.readouterr().err
    assert call(*predict, "--reference-store", store.path) == 0
    tested = pl.read_parquet(out / "predictions.parquet")
    both = tested.join(pl.read_parquet(tmp_path / "p.parquet"), on="sample_id", suffix="_again")
    np.testing.assert_allclose(both["p_yes_again"], both["p_yes"], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_contains_no_sample_ids(run: Path, store: Store) -> None:
    raw = (run / NAME).read_bytes()
    ids = store.samples().collect()["sample_id"].to_list()
    assert not any(i.encode() in raw for i in ids)


def test_evaluate_rejects_another_store(run: Path, toy_stores: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--run", run, "--store", toy_stores / "shifted") == 3
    assert "the training store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "learning_rate=1"], "no option 'learning_rate'"),
        (["--method", "nonesuch"], "no method 'nonesuch'"),
        (["--preset", "nonesuch"], "no preset 'nonesuch'"),
        (["--modalities", "nonesuch"], "no modality 'nonesuch'"),
        (["--task", "nonesuch"], "no task 'nonesuch'"),
        (["--scheme", "nonesuch"], "no split 'nonesuch'"),
        (["--device", "nonesuch"], "--device nonesuch"),
        (["--device", "cuda:99"], "auto uses a GPU or the CPU"),
        (["--set", "precision=half"], "precision"),
        (["--transform", "clipp=1"], "--transform: unknown option 'clipp'"),
        (["--transform", "scale=minmax", "clip=-1"], "--transform: option clip=-1.0 must be a number of at least 0"),
        (["--transform", "clip"], "--transform takes key=value, got 'clip'"),
    ],
)
def test_usage_errors_create_no_run_folder(
    extra: list[str], message: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert call("train", "--store", store.path, "--out", out, "--quiet", *extra) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("predict", "draws", "-1"),
        ("evaluate", "draws", "0"),
        ("evaluate", "resamples", "-1"),
        ("evaluate", "threads", "0"),
        ("benchmark", "steps", "two"),
    ],
)
def test_invalid_numbers_are_rejected(
    command: str, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(command, "--store", tmp_path, "--run", tmp_path, "--out", tmp_path / "p", f"--{option}", value)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert f"--{option}: expected an integer" in text
    assert repr(value) in text


def test_a_damaged_checkpoint_is_a_data_error(
    run: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (b"", b"junk", (run / NAME).read_bytes()[:-5000]):
        (tmp_path / NAME).write_bytes(content)
        assert call("evaluate", "--run", tmp_path, "--store", store.path) == 3
    assert call("evaluate", "--run", tmp_path / "absent", "--store", store.path) == 3
    assert capsys.readouterr().err.count("expected a checkpoint") == 4


@pytest.mark.parametrize("key", ["config", "training", "origin", "transforms", "fingerprint", "state"])
@pytest.mark.parametrize("damage", ["absent", "changed"])
def test_a_checkpoint_with_a_damaged_entry_is_a_data_error(
    key: str, damage: str, run: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = torch.load(run / NAME, weights_only=True)
    if damage == "absent":
        del value[key]
    elif key == "fingerprint":
        pytest.skip("any text is a fingerprint")
    else:
        value[key] = {"a": 1} if key in ("state", "config") else '{"format": 1, "a\x00": 1'
    torch.save(value, tmp_path / NAME)
    assert call("predict", "--run", tmp_path, "--store", store.path, "--out", tmp_path / "p.parquet") == 3
    assert "expected a checkpoint" in capsys.readouterr().err


def test_benchmark_has_one_row_per_method_and_configuration(store: Store, tmp_path: Path) -> None:
    arguments = ("--store", store.path, "--method", "moe_retriever", "majority", "--modalities", "table", "series")
    small = ("--steps", 2, "--out", tmp_path / "b.csv", "--set", "hidden=16", "tokens=2", "encoder_hidden=8")
    assert call("benchmark", *arguments, *small) == 0
    found = pl.read_csv(tmp_path / "b.csv")
    assert call("benchmark", *arguments, *small, "--transform", "svd_dim=1") == 0
    assert (pl.read_csv(tmp_path / "b.csv")["parameters"] < found["parameters"]).to_list() == [True, False]
    assert found["method"].to_list() == ["moe_retriever", "majority"]
    moe = found.row(0, named=True)
    assert moe["parameters"] > 0
    assert min(moe["train_samples_per_s"], moe["test_samples_per_s"], moe["mflop_per_sample"], moe["peak_mb"]) > 0


def test_benchmark_rejects_modalities_that_no_test_sample_has(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--store", store.path, "--method", "majority", "--modalities", "table", "--out", tmp_path / "b.csv")
    mask = tmp_path / "m.parquet"
    write_masks(store, Missingness(), mask)
    frame, metadata = pl.read_parquet(mask), read_metadata(mask)
    tested = frame["sample_id"].str.contains("[67]$")
    bits = np.where(tested, ~np.uint16(1 << store.bits["table"]), np.uint16(0xFFFF))
    write_frame(
        mask,
        frame.with_columns(pl.Series("modality_mask", frame["modality_mask"].to_numpy() & bits)),
        metadata=metadata,
    )
    assert call("benchmark", *arguments, "--mask", mask) == 2
    assert "no labelled test sample has any of table" in capsys.readouterr().err
    assert not (tmp_path / "b.csv").exists()


def test_methods_lists_methods_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods") == 0
    assert "moe_retriever" in capsys.readouterr().out
    assert call("methods", "moe_retriever") == 0
    text = capsys.readouterr().out
    for name in ("n_intra", "batch_size", "released-code", "event_step_hours", "standard | minmax | none"):
        assert name in text


@pytest.mark.parametrize(
    "command", ["train", "search", "evaluate", "predict", "analyse", "benchmark", "methods", "report"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(command, "--help")
    assert stopped.value.code == 0
    assert "usage: mrpipe" in capsys.readouterr().out


def test_help_lists_the_registered_methods_without_importing_torch(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {e.name: (e.summary, e.paper) for e in catalogue()}
    assert entries == {name: (get(name).summary, get(name).paper) for name in names()}
    assert all(summary for summary, _ in entries.values())
    with pytest.raises(SystemExit):
        call("train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name, (summary, paper) in entries.items():
        assert f"{name} {summary}" + (f" [{paper}]" if paper else "") in text
    program = "import sys, mrpipe.cli.main as m\ntry: m.main(['train', '--help'])\n"
    program += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, check=True, capture_output=True, text=True)
    assert done.stdout.endswith("\nFalse\n")


def test_learning_curves_mark_the_selected_epoch(run: Path, store: Store, mask_file: Path, tmp_path: Path) -> None:
    first = (run / "curves.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    # A finished run is not trained again, but its derived files are restored identically.
    (run / "curves.svg").unlink()
    arguments = ("--store", store.path, "--out", run, "--mask", mask_file, "--quiet", "--set", *OPTIONS)
    assert call("train", *arguments) == 0
    assert (run / "curves.svg").read_bytes() == first
    history = pl.read_parquet(run / "history.parquet")
    figure = learning_curves({"a": history.with_columns(best=pl.col("epoch") == 1, val_score=pl.lit(0.25))}, score="x")
    dots = figure.axes[1].collections[0].get_offsets()
    assert np.asarray(dots).tolist() == [[1.0, 0.25]]


def test_plain_kernels_train_alike(
    run: Path, store: Store, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plain"
    arguments = ("--store", store.path, "--out", out, "--mask", mask_file, "--quiet", "--set", *OPTIONS)
    monkeypatch.setattr(kernels, "plain", False)  # the command changes it
    assert call("train", *arguments, "--kernels", "plain") == 0
    assert kernels.plain
    fast, plain = (pl.read_parquet(folder / "history.parquet")["train_loss"].to_numpy() for folder in (run, out))
    np.testing.assert_allclose(plain, fast, rtol=1e-4)
