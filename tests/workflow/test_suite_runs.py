"""Suites run through Snakemake: only missing cells are built, and a failed cell does not stop the others."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from workflow.planning.batches import files_of, make_batches
from workflow.planning.plan import make_plan
from workflow.planning.progress import PlannedStep, Steps
from workflow.planning.runs import PlannedRun
from workflow.planning.suites import Suites

CONFIG: dict[str, Any] = {
    "datasets": {
        "small": {
            "dataset": "mosi",
            "raw": "simulated",
            "simulation": {"n_videos": 9, "clips_per_video": 6, "frames_per_second": 2},
            "options": {"text_encoder": "hashing-16", "max_steps": 6},
        }
    },
    "suites": "mine.yaml",
}
# The settings of the last method are valid, but make training diverge.
MINE: dict[str, Any] = {
    "title": "Two views",
    "published": "table2",
    "methods": [
        {"method": "moe_retriever", "name": "MoE-Retriever", "published": "MoE-Retriever", "search": False},
        {"method": "majority", "control": True, "search": False},
        {"method": "attention_mask", "overrides": {"lr": 1e30}},
    ],
    "search": {"trials": 2},
    "missingness": {"p": 0.3},
    "seeds": [0],
    "overrides": {"epochs": 2, "hidden": 16, "tokens": 2, "encoder_hidden": 16},
    "blocks": [{"dataset": "small", "views": [["audio", "text"]]}],
}
CELLS = "small-text+audio-mcar-p0.3"


def write_suite(folder: Path, **changes: Any) -> None:
    (folder / "mine.yaml").write_text(yaml.safe_dump({"suites": {"mine": copy.deepcopy(MINE) | changes}}))


@pytest.fixture(scope="module")
def failed(snakemake: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of a suite run in which the training of one cell failed, and the outcome of Snakemake."""
    folder = tmp_path_factory.mktemp("suite")
    write_suite(folder)
    return folder, snakemake("mine", folder=folder, config=CONFIG)


@pytest.mark.whole
def test_failed_cell_is_reported_with_the_tail_of_its_log_and_the_others_finish(failed: Any) -> None:
    folder, outcome = failed
    assert outcome.code != 0
    finished = {p.parent.parent.name.split("-")[0] for p in folder.glob(f"results/runs/{CELLS}/*/seed0/metrics.json")}
    assert finished == {"moe_retriever", "majority"}
    failure = f"FAILED  {CELLS}: hyper-parameter search of attention mask\n"
    end = outcome.text[outcome.text.index(failure) :]
    assert re.search(r"_search\.log:\n    .*training diverged", end), end
    assert "results/suites/mine: 1 of 3 cells did not finish" in end
    text = (folder / "results/suites/mine/table.md").read_text()
    assert "| attention_mask | not finished |" in text
    assert re.search(r"\| MoE-Retriever \| \**\d", text)
    assert "simulated export" in text
    assert "not finished" in (folder / "results/suites/mine/report/index.html").read_text()
    results = pl.read_parquet(folder / "results/results.parquet")
    assert set(results["method"]) == finished


@pytest.mark.whole
def test_repaired_suite_runs_only_the_missing_cell(snakemake: Any, failed: Any) -> None:
    folder, _ = failed
    last = MINE["methods"][2] | {"overrides": {"lr": 0.001}}
    write_suite(folder, methods=[*MINE["methods"][:2], last])
    before = {p: p.stat().st_mtime_ns for p in folder.glob(f"results/runs/{CELLS}/m*/seed0/model.pt")}
    assert len(before) == 2
    outcome = snakemake("mine", folder=folder, config=CONFIG)
    assert outcome.code == 0, outcome.text
    # Executed rules: the new cell, its search and the table.
    done = set(re.findall(r"^(?:local)?rule (\w+):$", outcome.text, flags=re.MULTILINE))
    assert done == {"mine", "suite_settings", "search", "cells", "render", "suite_report"}
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "not finished" not in (folder / "results/suites/mine/table.md").read_text()
    page = (folder / "results/suites/mine/report/index.html").read_text()
    assert 'class="banner simulated"' in page
    assert "methods were compared" in page
    assert "not finished" not in page
    assert pl.read_parquet(folder / "results/results.parquet")["run"].n_unique() == 3
    assert snakemake("mine", "-n", folder=folder, config=CONFIG).idle


def test_suite_with_the_name_of_a_rule_is_rejected(snakemake: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"suites": {"cells": MINE}}))
    outcome = snakemake("-n", folder=tmp_path, config=CONFIG)
    assert outcome.code != 0
    assert "suites.cells: the workflow has a rule of this name" in outcome.text


PROTOCOLS = ["same", "patterns", {"p": [0.3, 0.5]}, {"store": "other", "p": 0.3}]
OTHER = CONFIG["datasets"]["small"] | {"simulation": CONFIG["datasets"]["small"]["simulation"] | {"seed": 1}}


def with_protocols(folder: Path) -> dict[str, Any]:
    """Write a suite whose trainings see all modalities and are tested under several protocols."""
    methods = [{"method": m, "search": False} for m in ("majority", "logistic")]
    write_suite(folder, methods=methods, missingness=None, test=PROTOCOLS, published="")
    return CONFIG | {"datasets": CONFIG["datasets"] | {"other": OTHER}}


def test_protocols_share_the_trainings(snakemake: Any, tmp_path: Path) -> None:
    outcome = snakemake("mine", "-n", "--quiet", "rules", folder=tmp_path, config=with_protocols(tmp_path))
    assert outcome.code == 0, outcome.text
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", outcome.text, flags=re.MULTILINE)}
    assert counts["cpu_cells"] == 2
    assert counts["mask"] == 3
    assert counts["verify"] == 2


@pytest.mark.slow
def test_protocols_are_columns_with_realised_rates(snakemake: Any, tmp_path: Path) -> None:
    outcome = snakemake("mine", folder=tmp_path, config=with_protocols(tmp_path))
    assert outcome.code == 0, outcome.text[-4000:]
    text = (tmp_path / "results/suites/mine/table.md").read_text()
    (header,) = re.findall(r"^\| method \| (A\+T \|.*) \|$", text, flags=re.MULTILINE)
    names = [re.sub(r"\d+ %", "N %", name) for name in header.split(" | ")]
    assert names == [
        "A+T",
        *(f"A+T, tested: only {pattern}" for pattern in ("T", "A", "A+T")),
        *(f"A+T, tested: p = {p} (N % hidden)" for p in (0.3, 0.5)),
        "A+T, tested: store other, p = 0.3 (N % hidden)",
    ]
    rates = [int(n) for n in re.findall(r"\((\d+) % hidden\)", header)]
    assert abs(rates[0] - 23) < 12
    assert rates[1] > rates[0]
    assert "not finished" not in text
    scores = pl.read_parquet(tmp_path / "results/suites/mine/scores.parquet").filter(metric="accuracy", row="logistic")
    assert scores["test"].to_list()[:3] == [None, "patterns text", "patterns audio"]
    complete = scores.filter(pl.col("test").str.starts_with("patterns"))["n"]
    assert complete.n_unique() == 1
    assert scores["n"].to_list()[-1] > 2 * complete[0]


@pytest.mark.parametrize("size", ["smoke", pytest.param("full", marks=pytest.mark.slow)])
def test_paper_suite_is_planned(snakemake: Any, tmp_path: Path, size: str) -> None:
    config = {"datasets": {}, "experiments": {}, "suites": [], "size": size}
    suites = Suites(config, make_plan(config))
    outcome = snakemake("paper", "-n", "--quiet", "rules", "--config", f"size={size}", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", outcome.text, flags=re.MULTILINE)}
    trained = {folder for part in suites.parts("paper") for folder in part.runs}
    batch_of = files_of(suites.batches.values())
    n_batches = counts["cells"] + counts["cpu_cells"]
    assert n_batches == len({batch_of[folder] for folder in trained})
    assert n_batches < len(trained) / 8 or size == "full"
    assert counts.get("search", 0) == len({(r.experiment, r.label) for r in suites.runs.values() if r.trials})
    assert counts["render"] == len(suites.parts("paper")) == 11
    assert counts["seal"] == 4


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_paper_suite_runs_at_smoke_size(snakemake: Any, tmp_path: Path) -> None:
    outcome = snakemake("paper", "--config", "size=smoke", folder=tmp_path, seconds=2 * 3600 - 60)
    assert outcome.code == 0, outcome.text[-4000:]
    folder = tmp_path / "results/suites"
    for table in (f"table{i}" for i in range(1, 8)):
        text = (folder / table / "table.md").read_text()
        assert "not finished" not in text.lower()
        assert "| *majority class* |" in text
        assert "| *best possible* |" in text
        assert "simulated export" in text
    scores = pl.concat(pl.read_parquet(path) for path in folder.glob("table*/scores.parquet")).drop_nulls("published")
    assert len(scores) == len(scores.drop_nulls("mean")) == 296
    for figure, pictures in (("figure3", 3), ("figure4", 2), ("figure5", 1), ("figure6", 1)):
        assert len(list((folder / figure).glob("*.svg"))) == len(list((folder / figure).glob("*.png"))) == pictures
        assert "Not finished" not in (folder / figure / "table.md").read_text()
    results = pl.read_parquet(tmp_path / "results/results.parquet")
    assert results["run"].n_unique() == len(list(tmp_path.glob("results/runs/*/*/seed0/metrics.json")))
    assert set(results["dataset"]) == {"adni", "mimic", "enrico", "mosi"}
    assert snakemake("paper", "-n", "--config", "size=smoke", folder=tmp_path).idle


# Failed steps, without Snakemake


def cell(method: str, seed: int) -> PlannedRun:
    return PlannedRun(
        experiment="e",
        label=method,
        method=method,
        seed=seed,
        store="s",
        preset="paper",
        task=None,
        scheme=None,
        modalities=(),
        missingness=None,
        overrides={},
    )


class Record:
    def __init__(self, event: str, job: int, log: tuple[str, ...] = ()):
        self.event, self.job_id, self.jobid, self.log = event, job, job, log

    def getMessage(self) -> str:
        return ""


def test_a_failed_step_shows_the_end_of_the_log_of_this_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = make_batches([(cell("slow", seed), ["mine"]) for seed in (1, 2)], per_job=None, small=False)
    of_job = dict(zip((2, 12), batches.values(), strict=True))
    jobs = {job: PlannedStep("cells", {"batch": str(batch)}) for job, batch in of_job.items()}
    log = tmp_path / "log"
    log.write_text("the training failed\n")
    steps = Steps(jobs, of_job)
    steps.emit(Record("job_error", 2, (str(log),)))  # type: ignore[arg-type]
    assert capsys.readouterr().err == f"FAILED  e: slow, seed 1\n    {log}:\n    the training failed\n"
    steps = Steps(jobs, of_job)
    steps.emit(Record("job_info", 2))  # type: ignore[arg-type]
    os.utime(log, (0, 0))
    steps.emit(Record("job_error", 2, (str(log),)))  # type: ignore[arg-type]
    assert capsys.readouterr().err == "FAILED  e: slow, seed 1\n"
    assert steps.unfinished() == [*of_job.values()]
    for job in (2, 99):
        steps.emit(Record("job_finished", job))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    assert steps.unfinished() == [of_job[12]]
    assert "failed at" not in steps.ending("log")
