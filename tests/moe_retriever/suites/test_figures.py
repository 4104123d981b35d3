"""Figures of a suite from run folders and measurements, and the notes about missing ones."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from moe_retriever.config import make_config
from moe_retriever.evaluation import analysis, embedding
from moe_retriever.evaluation.cost import measure
from moe_retriever.methods import get
from moe_retriever.suites import figures
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.experiment.missingness import Missingness, read_realised, write_masks

VIEW = ["table", "series", "genotype"]
OPTIONS = {"epochs": 3, "hidden": 16, "tokens": 2, "heads": 2, "encoder_hidden": 8, "gradient_rows": 10}
OWN = {"moe_retriever": {"warmup": 1, "n_experts": 2, "n_shared": 1, "expert_ffn": 8, "top_k": 2}, "zero_fill": {}}


@pytest.fixture(scope="module")
def runs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with two trained and evaluated cells."""
    root = tmp_path_factory.mktemp("runs")
    for method, own in OWN.items():
        out = root / "e" / method / "seed0"
        pairs = [f"{k}={v}" for k, v in {**OPTIONS, **own}.items()]
        train = ["train", "--store", str(store.path), "--out", str(out), "--method", method, "--quiet"]
        assert main([*train, "--modalities", *VIEW, "--set", *pairs]) == 0
    return root


def drawn(kind: str, store: Store, runs: Path, folder: Path, **changes: Any) -> tuple[str, set[str]]:
    """The page of a suite as Markdown, and the names of its figures."""
    rows = [{"name": m.upper(), "method": m, "preset": "paper", "published": "", "control": False} for m in OWN]
    column = {
        "dataset": "toy",
        "experiment": "e",
        "store": str(store.path),
        "truth": None,
        "modalities": VIEW,
        "absent": [],
        "missingness": None,
        "cells": {m.upper(): [m, [0, 1]] for m in OWN},
    }
    said = {
        "format": 1,
        "suite": "figure9",
        "title": "t",
        "size": "smoke",
        "metrics": ["accuracy"],
        "published": "",
        "figure": kind,
        "missing": "",
        "rows": rows,
        "columns": [column],
    }
    (folder / "suite.json").write_text(json.dumps(said | changes))
    command = [
        "suite-figures",
        "--suite",
        str(folder / "suite.json"),
        "--runs",
        str(runs),
        "--costs",
        str(folder / "costs"),
    ]
    assert main([*command, "--out", str(folder)]) == 0
    text = (folder / "table.md").read_text()
    assert text.startswith("# Figure 9: t")
    assert "simulated export" in text
    return text, {p.name for p in [*folder.glob("*.svg"), *folder.glob("*.png")]}


def pictures(*stems: str) -> set[str]:
    return {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}


NAME = "toy-tableseriesgenotype"


def test_routing_figures_are_drawn_for_methods_with_routing(store: Store, runs: Path, tmp_path: Path) -> None:
    text, found = drawn("patterns_and_routing", store, runs, tmp_path)
    stems = (f"a-{NAME}-patterns", f"b-{NAME}-expert-selection", f"c-{NAME}-combination-shares")
    assert found == pictures(*stems)
    assert "routing of MOE_RETRIEVER on the test split" in text
    assert "ZERO_FILL, routing: " in text.split("**Not finished**")[1]


def test_several_rows_and_columns_have_separate_figures(store: Store, runs: Path, tmp_path: Path) -> None:
    for experiment in ("e-p0.3", "e-p0.5"):
        for label in ("moe_retriever", "moe_retriever-released"):
            shutil.copytree(runs / "e/moe_retriever", tmp_path / "runs" / experiment / label)
    column = {
        "dataset": "toy",
        "store": str(store.path),
        "truth": None,
        "modalities": VIEW,
        "absent": [],
        "cells": {"ours": ["moe_retriever", [0]], "theirs": ["moe_retriever-released", [0]]},
    }
    columns = [
        column | {"experiment": f"e-p{p}", "missingness": {"mechanism": "mcar", "p": float(p)}} for p in ("0.3", "0.5")
    ]
    text, found = drawn("patterns_and_routing", store, tmp_path / "runs", tmp_path, columns=columns)
    assert "Not finished" not in text
    per_run = [f"{e}-{label}" for e in ("e-p0.3", "e-p0.5") for label in ("moe_retriever", "moe_retriever-released")]
    stems = [f"a-{e}-patterns" for e in ("e-p0.3", "e-p0.5")]
    stems += [f"b-{name}-expert-selection" for name in per_run] + [f"c-{name}-combination-shares" for name in per_run]
    assert found == pictures(*stems)


def test_outdated_figures_are_removed(store: Store, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.png").touch()
    _, before = drawn("gradients", store, runs, tmp_path)
    assert before > {"mine.png"}
    text, after = drawn("cost", store, runs, tmp_path)
    assert "not measured" in text
    assert after == {"mine.png"}


def test_the_gradient_figure_has_all_methods(store: Store, runs: Path, tmp_path: Path) -> None:
    text, found = drawn("gradients", store, runs, tmp_path)
    assert found == pictures(f"{NAME}-gradients")
    title = r"<title>\w+, table\+series\+genotype: gradient cosine similarity of modality pairs during training</title>"
    assert re.search(title, (tmp_path / f"{NAME}-gradients.svg").read_text())
    frame = pl.read_csv(tmp_path / f"{NAME}-gradients.csv")
    assert set(frame["row"]) == {"MOE_RETRIEVER", "ZERO_FILL"}
    mean = frame.filter(row="ZERO_FILL", kind="tokens", first="table", second="series")["cosine"].mean()
    assert isinstance(mean, float)
    assert f"| ZERO_FILL | {mean:.3g} |".replace("-", "−") in text


def test_an_embedding_figure_shows_samples_that_lack_the_modality(
    store: Store, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The toy store has few samples per combination, especially in its test split.
    monkeypatch.setattr(embedding, "FEWEST_SAMPLES", 3)
    monkeypatch.setattr(figures, "analyse", partial(analysis.analyse, part="train"))
    text, found = drawn("embedding", store, runs, tmp_path, missing="genotype")
    assert found == pictures(f"{NAME}-embedding")
    assert "samples with table+series only" in text
    assert "zero_fill does not retrieve" in text
    # Too few samples are noted on the page and are not an error.
    monkeypatch.setattr(embedding, "FEWEST_SAMPLES", 10_000)
    text, _ = drawn("embedding", store, runs, tmp_path, missing="genotype")
    assert "at least 10000 samples" in text


def test_costs_equal_the_measurements(store: Store, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "costs/e").mkdir(parents=True)
    config = make_config(get("zero_fill"), preset="paper", seed=0, overrides=OPTIONS)
    mask = tmp_path / "mask.parquet"
    write_masks(store, Missingness(p=0.3, modalities=tuple(VIEW)), mask)
    frame = measure(store, [config], modalities=VIEW, mask_file=mask, steps=1)
    frame.write_csv(tmp_path / "costs/e/zero_fill.csv")
    column = {"dataset": "toy", "store": str(store.path), "truth": None, "modalities": VIEW, "absent": []}
    column |= {"experiment": "e", "cells": {"MOE_RETRIEVER": ["moe_retriever", [0]], "ZERO_FILL": ["zero_fill", [0]]}}
    columns = [column | {"missingness": {"mechanism": "mcar", "p": 0.3}}]
    text, found = drawn("cost", store, runs, tmp_path, columns=columns)
    rate = 100 * read_realised(mask)["all modalities"]
    assert f"all modalities, MCAR, p = 0.3 ({rate:.0f} % hidden)" in text
    assert found == pictures(f"{NAME}-cost")
    row = next(line for line in text.splitlines() if line.startswith("| ZERO_FILL |"))
    assert float(row.split("|")[4]) == pytest.approx(frame["parameters"][0] / 1e6, rel=0.01)
    assert float(row.split("|")[2]) == pytest.approx(1000 / frame["test_samples_per_s"][0], rel=0.01)
    assert "references (GFLOPs per training sample)" in text
    assert float(row.split("|")[6]) == frame["reference_mflop_per_sample"][0] == 0
    assert "MOE_RETRIEVER: not measured" in text


def test_missing_runs_modalities_and_stores_are_listed(store: Store, runs: Path, tmp_path: Path) -> None:
    text, found = drawn("gradients", store, runs, tmp_path, unfinished=["e/zero_fill/seed0", "e/moe_retriever/seed0"])
    assert found == set()
    assert "* e/zero_fill/seed0" in text
    said = json.loads((tmp_path / "suite.json").read_text())
    said["columns"] = [c | {"absent": ["genotype"]} for c in said["columns"]]
    said["columns"] += [c | {"absent": [], "store": str(tmp_path / "no-store")} for c in said["columns"]]
    (tmp_path / "suite.json").write_text(json.dumps(said))
    command = ["suite-figures", "--suite", str(tmp_path / "suite.json"), "--runs", str(runs), "--costs", str(tmp_path)]
    assert main([*command, "--out", str(tmp_path)]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "the store has no genotype" in text
    assert "no store at" in text
