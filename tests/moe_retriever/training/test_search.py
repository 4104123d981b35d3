"""Hyper-parameter search: equal budgets, validation scores only, resuming, and `train --options`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from moe_retriever.config import make_config
from moe_retriever.data.load import load
from moe_retriever.methods import get, names
from moe_retriever.methods.gradient_boosting import GradientBoosting
from moe_retriever.methods.logistic import Logistic
from moe_retriever.training import search as search_module
from moe_retriever.training.checkpoint import load_run
from moe_retriever.training.loop import Job, run_training, train_epoch
from moe_retriever.training.search import COMMON_SPACE, Trial, best_of, draw_trials, run_search, search
from mrpipe import Store, open_store
from mrpipe.cli.main import main
from mrpipe.transforms.options import TransformOptions

SMALL = {"epochs": 3, "hidden": 16, "tokens": 2, "heads": 2, "encoder_hidden": 8, "batch_size": 16}
VIEW = ("table", "series")


def job(store: Store, folder: Path, method: str = "zero_fill", seed: int = 0, **overrides: object) -> Job:
    config = make_config(get(method), preset="paper", seed=seed, overrides={**SMALL, **overrides})
    return Job(store=store, run=folder, config=config, modalities=VIEW)


def run(store: Store, folder: Path, n_trials: int = 3, method: str = "zero_fill", **fixed: object) -> dict[str, object]:
    fixed = {**SMALL, **fixed}
    return search(job(store, folder, method), get(method), preset="paper", fixed=fixed, n_trials=n_trials)


def drawn(method: str, n: int, space: object = None, seed: int = 0) -> list[dict[str, object]]:
    candidates = {**COMMON_SPACE, **get(method).space} if space is None else space
    trials = draw_trials(get(method), preset="paper", seed=seed, fixed={}, space=candidates, n_trials=n)  # type: ignore[arg-type]
    return [options for options, _ in trials]


def test_trials_are_the_preset_and_distinct_draws_and_a_larger_budget_only_adds_trials() -> None:
    common = get("zero_fill")
    first = make_config(common, preset="paper", seed=0, overrides={}).common
    trials = drawn("zero_fill", 12)
    assert trials[0] == {k: getattr(first, k) for k in COMMON_SPACE}
    assert len({json.dumps(t, sort_keys=True) for t in trials}) == 12
    assert all(t[k] in COMMON_SPACE[k] for t in trials[1:] for k in COMMON_SPACE)
    assert drawn("zero_fill", 5) == trials[:5]
    assert drawn("zero_fill", 12, dict(reversed(COMMON_SPACE.items()))) == trials
    assert drawn("zero_fill", 12, seed=1) != trials
    everything = drawn("zero_fill", 1000)
    assert len(everything) == 18
    # Fixed expectation: the draws must not depend on library versions.
    assert [t["lr"] for t in trials[1:5]] == [0.001, 0.0001, 0.0003, 0.0003]


def test_help_lists_the_common_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    text = capsys.readouterr().out
    for name, values in COMMON_SPACE.items():
        (listed,) = re.findall(rf"{name} ((?:[\d.e-]+(?:, )?)+)", text)
        assert tuple(float(v) for v in listed.split(", ")) == values


def test_all_methods_have_the_same_budget_and_common_candidates() -> None:
    for name in names():
        method = get(name)
        assert not set(method.space) & set(COMMON_SPACE), name
        trials = drawn(name, 12)
        assert len(trials) == 12, name
        assert all(set(COMMON_SPACE) <= set(t) for t in trials), name


def test_a_search_selects_the_trial_with_the_best_validation_score(store: Store, tmp_path: Path) -> None:
    content = run(store, tmp_path)
    frame = pl.read_parquet(tmp_path / "trials.parquet")
    assert frame["trial"].to_list() == [0, 1, 2]
    assert set(frame["status"]) == {"finished"}
    best = frame.sort("score", descending=True, maintain_order=True).row(0, named=True)
    assert (content["trial"], content["score"]) == (best["trial"], best["score"])
    assert {k: content["overrides"][k] for k in COMMON_SPACE} == {k: best[k] for k in COMMON_SPACE}  # type: ignore[index]
    assert content == json.loads((tmp_path / "best.json").read_text())
    kept = [p.parent.name for p in tmp_path.glob("trials/*/model.pt")]
    assert kept == [str(best["trial"])]
    assert len(list(tmp_path.glob("trials/*/history.parquet"))) == 3
    # Training with the selected options reproduces the trial.
    again = job(store, tmp_path / "again", **content["overrides"])  # type: ignore[arg-type]
    run_training(again)
    history = (again.run / "history.parquet").read_bytes()
    assert history == (tmp_path / "trials" / str(best["trial"]) / "history.parquet").read_bytes()


def test_the_test_split_does_not_affect_a_search(
    toy_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different features and inverted labels in all test rows leave the trials identical to the byte."""
    run(open_store(toy_stores / "plain"), tmp_path / "plain")
    features: list[torch.Tensor] = []
    for name in ("plain", "shifted"):
        data = load(open_store(toy_stores / name), modalities=VIEW)
        features.append(torch.cat([t.pooled(np.arange(1, 9)) for t in data.tables], dim=1))
    assert not torch.equal(features[0], features[1])

    def flipped(j: Job) -> object:
        data = load(j.store, modalities=j.modalities)
        test = data.rows("test")
        assert len(test)
        data.label[test] = 1 - data.label[test]
        return data

    monkeypatch.setattr(search_module, "load_data", flipped)
    run(open_store(toy_stores / "shifted"), tmp_path / "shifted")
    same = [(tmp_path / n / "trials.parquet").read_bytes() for n in ("plain", "shifted")]
    assert same[0] == same[1]


def test_a_killed_search_resumes_without_repeating_epochs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, tmp_path / "whole")

    class PowerCutError(Exception):
        pass

    epochs: list[int] = []

    def counted(*arguments: object) -> object:
        epochs.append(arguments[4])  # type: ignore[arg-type]
        if len(epochs) == 6 and not cut:
            cut.append(True)
            raise PowerCutError
        return train_epoch(*arguments)  # type: ignore[arg-type]

    cut: list[bool] = []
    monkeypatch.setattr("moe_retriever.training.loop.train_epoch", counted)
    with pytest.raises(PowerCutError):
        run(store, tmp_path / "cut")
    assert not (tmp_path / "cut" / "best.json").exists()
    run(store, tmp_path / "cut")
    assert epochs == [0, 1, 2, 0, 1, 2, 2, 0, 1, 2]
    for name in ("trials.parquet", "best.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run(store, tmp_path / "cut", n_trials=4)
    assert len(epochs) == 10 + 3


def test_trials_with_other_transforms_are_run_again(store: Store, tmp_path: Path) -> None:
    fixed = {**SMALL, "epochs": 1}
    usual = job(store, tmp_path, epochs=1)
    other = replace(usual, transform=TransformOptions(clip=1.0))
    contents = [
        search(j, get("zero_fill"), preset="paper", fixed=fixed, space={"lr": [1e-3]}) for j in (usual, usual, other)
    ]
    assert contents[0] == contents[1]
    assert "transforms" not in contents[0]
    assert contents[2]["transforms"] == {"clip": 1.0}
    assert contents[2]["score"] != contents[0]["score"]


def test_ties_are_broken_by_trial_number_and_loss_is_minimised() -> None:
    scores = [None, 0.4, 0.7, 0.7, 0.1]
    trials = [Trial(number=i, options={}, status="finished", score=s) for i, s in enumerate(scores)]
    assert best_of(trials, "accuracy") is trials[2]
    assert best_of(trials, "loss") is trials[4]
    assert best_of(trials[:1], "loss") is None


def test_a_diverged_trial_counts_as_failed(store: Store, tmp_path: Path) -> None:
    space = {"lr": [1e30]}
    content = search(job(store, tmp_path), get("zero_fill"), preset="paper", fixed=SMALL, space=space, n_trials=5)
    frame = pl.read_parquet(tmp_path / "trials.parquet")
    assert frame["status"].to_list() == ["finished", "diverged"]
    assert "training diverged in epoch" in frame["error"][1]
    assert (content["trial"], content["n_trials"], content["n_failed"]) == (0, 2, 1)


def test_a_search_whose_trials_all_fail_reports_why_and_writes_no_best(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"{k}={v}" for k, v in {**SMALL, "lr": 1e30, "dropout": 0.1}.items()]
    command = [
        "search",
        "--store",
        str(store.path),
        "--method",
        "zero_fill",
        "--out",
        str(tmp_path),
        "--quiet",
        "--modalities",
        *VIEW,
        "--set",
        *settings,
    ]
    assert main(command) == 1
    assert "none of 2 trials produced a validation score: training diverged" in capsys.readouterr().err
    assert pl.read_parquet(tmp_path / "trials.parquet")["status"].to_list() == ["diverged"] * 2
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize("method", [n for n in names() if get(n).gradient])
def test_divergence_is_reported_for_every_method(
    method: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"{k}={v}" for k, v in {**SMALL, "lr": 1e30}.items()]
    command = [
        "train",
        "--store",
        str(store.path),
        "--method",
        method,
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--modalities",
        *VIEW,
        "--set",
        *settings,
    ]
    assert main(command) == 1
    assert "training diverged in epoch" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.pt").exists()


def test_a_method_without_options_has_one_trial(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "--store", str(store.path), "--method", "majority", "--out", str(tmp_path), "--quiet"]
    assert main([*command, "--modalities", *VIEW]) == 0
    assert "only trial 0 is run" in capsys.readouterr().out
    content = json.loads((tmp_path / "best.json").read_text())
    assert (content["n_trials"], content["space"]) == (1, {})
    assert 0 <= content["score"] <= 1


# Of each method: the function that fits one candidate, and what tells candidates apart in its arguments.
FITTED: dict[str, tuple[object, str, Callable[..., object]]] = {
    "zero_fill": (search_module, "run_training", lambda job, data: job.config),
    "logistic": (Logistic, "_fitted", lambda self, c, x, y: c),
    "gradient_boosting": (GradientBoosting, "_grow", lambda self, candidate, *rest: candidate),
}


@pytest.mark.parametrize("method", FITTED)
def test_a_search_fits_as_many_candidates_as_trials_for_every_method(
    method: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, candidate = FITTED[method]
    fit, seen = getattr(place, name), []

    def counted(*args: object) -> object:
        seen.append(candidate(*args))
        return fit(*args)

    monkeypatch.setattr(place, name, counted)
    budget = {"rounds": 10} if method == "gradient_boosting" else SMALL | {"epochs": 1}
    content = search(job(store, tmp_path), get(method), preset="paper", fixed=budget, n_trials=7)
    assert len(dict.fromkeys(map(repr, seen))) == content["n_trials"] == 7
    assert "trials" not in content["overrides"]
    # Training with the selected options fits no other candidate.
    seen.clear()
    again = job(store, tmp_path / "again", method)
    config = make_config(get(method), preset="paper", seed=1, overrides=content["overrides"])
    monkeypatch.setattr(search_module, "run_training", run_training)
    run_training(replace(again, config=config))
    trained = load_run(again.run).training
    if method != "zero_fill":
        assert len(dict.fromkeys(map(repr, seen))) == trained["chosen"]["trials"] == 1
        best = load_run(tmp_path / "trials" / "0").training["chosen"]
        assert best["trials"] == 7
        option = "c" if method == "logistic" else "setting"
        assert trained["chosen"][option] == best[option] == content["overrides"][option]


def test_train_reads_options_and_set_overrides_them(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = {"method": "zero_fill", "preset": "paper", "overrides": {**SMALL, "epochs": 1, "lr": 3e-4}}
    path = tmp_path / "best.json"
    path.write_text(json.dumps(best))
    command = [
        "train",
        "--store",
        str(store.path),
        "--options",
        str(path),
        "--quiet",
        "--no-test",
        "--modalities",
        *VIEW,
        "--out",
    ]
    assert main([*command, str(tmp_path / "a"), "--set", "dropout=0.1", "lr=0.002"]) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["method"] == "zero_fill"
    assert (config["common"]["lr"], config["common"]["dropout"], config["common"]["hidden"]) == (0.002, 0.1, 16)
    # The transforms of the search are used, too.
    path.write_text(json.dumps(best | {"transforms": {"clip": 1.5, "impute": "median"}}))
    assert main([*command, str(tmp_path / "c"), "--transform", "impute=mean"]) == 0
    assert json.loads((tmp_path / "c" / "config.json").read_text())["data"]["transforms"] == {"clip": 1.5}
    path.write_text(json.dumps(best))
    assert main([*command, str(tmp_path / "b"), "--method", "shaspec"]) == 2
    assert "has method zero_fill, not shaspec" in capsys.readouterr().err
    path.write_text("[]")
    assert main([*command, str(tmp_path / "b")]) == 3
    assert "best.json" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("content", "code", "messages"),
    [
        ("lr: [0.1, fast]\nheads: [3]\nspeed: [1]", 2, ["lr='fast'", "multiple of heads=3", "no option 'speed'"]),
        ("lr: 0.1\ndropout: []\nhidden: [8, 8]", 3, ["'lr'", "'dropout'", "distinct values"]),
        ("- lr", 3, ["a mapping of options"]),
        ("lr: [2020-01-01]", 2, ["lr=", "2020"]),
        ("lr: [", 3, ["expected YAML", "line 2"]),
        ("select_metric: [loss, accuracy]", 2, ["select_metric cannot be searched"]),
    ],
)
def test_an_invalid_space_is_rejected_with_all_its_errors(
    content: str, code: int, messages: list[str], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(content)
    out = tmp_path / "out"
    command = ["search", "--store", str(store.path), "--method", "zero_fill", "--out", str(out), "--quiet"]
    assert main([*command, "--space", str(space)]) == code
    text = capsys.readouterr().err
    assert all(m in text for m in messages), text
    assert not out.exists()


def test_another_search_replaces_a_finished_one_only_on_request(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, n_trials=3, epochs=1)
    before = (tmp_path / "best.json").read_bytes()
    other = job(store, tmp_path, "attention_mask", epochs=1)
    arguments = (get("attention_mask"),)
    options = {"preset": "paper", "fixed": {**SMALL, "epochs": 1}, "n_trials": 1}
    with pytest.raises(search_module.UsageError, match=r"a finished search that differs in method.*--overwrite"):
        search(other, *arguments, **options)  # type: ignore[arg-type]
    assert (tmp_path / "best.json").read_bytes() == before
    search(replace(other, overwrite=True), *arguments, **options)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "best.json").read_text())["method"] == "attention_mask"
    assert [p.name for p in (tmp_path / "trials").iterdir()] == ["0"]


def test_fixed_options_are_not_varied(store: Store, tmp_path: Path) -> None:
    content = run(store, tmp_path, n_trials=2, dropout=0.2, epochs=1)
    assert "dropout" not in content["space"]  # type: ignore[operator]
    assert content["overrides"]["dropout"] == 0.2  # type: ignore[index]
    frame = pl.read_parquet(tmp_path / "trials.parquet")
    assert "dropout" not in frame.columns
    assert frame["score"].is_finite().all()


def test_a_search_without_validation_split_is_a_usage_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(store, modalities=VIEW)
    data.part[data.part == 1] = 0
    monkeypatch.setattr(search_module, "load_data", lambda j: data)
    with pytest.raises(search_module.UsageError, match="validation"):
        run_search(job(store, tmp_path), [])
