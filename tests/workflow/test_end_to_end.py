"""The whole path at the smallest size: it runs, runs only once, follows edits of code, and ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mrpipe


def test_stores_runs_and_report_are_there(finished: Path) -> None:
    for name in ("mosi", "enrico"):
        store = mrpipe.open_store(finished / "results/stores" / name)
        store.verify(deep=True)
        assert store.manifest.origin == "simulated"
        metrics = json.loads((finished / f"results/runs/{name}/moe_retriever/seed0/metrics.json").read_text())
        assert metrics
    page = (finished / "results/report/index.html").read_text()
    assert "simulated" in page


def test_the_end_says_where_the_report_is(finished: Path) -> None:
    text = (finished / "first_run.txt").read_text()
    assert "results/report/index.html" in text
    assert "moe_retriever" in text[text.rindex("results/report/index.html") - 4000 :]


def test_every_job_leaves_a_log_and_a_benchmark(finished: Path) -> None:
    logs = {p.relative_to(finished / "results/logs").with_suffix("") for p in finished.glob("results/logs/**/*.log")}
    cost = {
        p.relative_to(finished / "results/benchmarks").with_suffix("")
        for p in finished.glob("results/benchmarks/**/*.jsonl")
    }
    assert logs == cost
    assert {Path("mosi/seal"), Path("enrico/ingest_wireframe"), Path("report")} <= logs


def test_a_second_run_does_nothing(snakemake: Any, finished: Path) -> None:
    outcome = snakemake("--configfile", str(finished / "config.yaml"), folder=finished)
    assert outcome.code == 0
    assert outcome.idle, outcome.text


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} no longer holds {old!r}"
    path.write_text(text.replace(old, new, 1))


def would_run(snakemake: Any, finished: Path, checkout: Path) -> set[str]:
    """Jobs that the finished folder would need with the code of the checkout."""
    outcome = snakemake("-n", "--configfile", str(finished / "config.yaml"), folder=finished, root=checkout)
    assert outcome.code == 0, outcome.text
    assert outcome.idle or outcome.jobs
    return set(outcome.jobs)


def test_a_comment_or_docstring_reruns_nothing(snakemake: Any, finished: Path, checkout: Path) -> None:
    for path in [*checkout.glob("mrpipe/**/*.py"), *checkout.glob("model/**/*.py")]:
        path.write_text(path.read_text() + "\n# A comment.\n")
    edit(checkout / "mrpipe/store/splits.py", '"""', '"""Reworded. ')
    assert would_run(snakemake, finished, checkout) == set()


RUN = "{} moe_retriever 0"
EVALUATED = ["evaluate " + RUN, "report_page", "all"]
TRAINED = ["settings {}", "mask {} mcar-p0.3-seed0", "train " + RUN, *EVALUATED]
SPLIT = ["split {} standard", "seal {}", "verify {}", *[job for job in TRAINED if "settings" not in job]]


@pytest.mark.parametrize(
    ("module", "datasets", "expected"),
    [
        ("mrpipe/datasets/enrico/screenshot.py", ["enrico"], ["ingest enrico screenshot", "samples {}", *SPLIT]),
        ("mrpipe/stages/split.py", ["mosi", "enrico"], SPLIT),
        ("mrpipe/experiment/missingness.py", ["mosi", "enrico"], TRAINED),
        ("model/moe_retriever/nn/moe.py", ["mosi", "enrico"], ["train " + RUN, *EVALUATED]),
        ("model/moe_retriever/evaluation/bootstrap.py", ["mosi", "enrico"], EVALUATED),
        ("model/moe_retriever/plots/plots.py", ["mosi"], ["report_page", "all"]),
    ],
)
def test_a_code_edit_reruns_exactly_what_depends_on_it(
    snakemake: Any, finished: Path, checkout: Path, module: str, datasets: list[str], expected: list[str]
) -> None:
    path = checkout / module
    path.write_text(path.read_text() + "\nEDITED = True\n")
    jobs = would_run(snakemake, finished, checkout)
    assert jobs == {job.format(name) for job in expected for name in datasets}


def test_the_command_line_is_not_tracked(snakemake: Any, finished: Path, checkout: Path) -> None:
    path = checkout / "mrpipe/cli/pipeline.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")
    assert would_run(snakemake, finished, checkout) == set()


def test_other_modalities_in_the_same_folder(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    config = {"datasets": {"mosi": tiny["datasets"]["mosi"]}}
    for modalities in (["text", "audio", "vision"], ["text", "audio"]):
        config["datasets"]["mosi"]["modalities"] = modalities
        outcome = snakemake("stores", folder=tmp_path, config=config)
        assert outcome.code == 0, outcome.text
        store = mrpipe.open_store(tmp_path / "results/stores/mosi")
        assert [m.name for m in store.modalities] == modalities


def test_a_failed_job_is_named_and_leaves_no_output(snakemake: Any, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    entry = {"raw": str(tmp_path / "export"), "modalities": ["text", "audio"]}
    outcome = snakemake("stores", "--show-failed-logs", folder=tmp_path, config={"datasets": {"mosi": entry}})
    assert outcome.code != 0
    assert "results/logs/mosi/check.log" in outcome.text
    assert "expected" in outcome.text
    assert not (tmp_path / "results/stores").exists()


def test_snakemake_report_builds(snakemake: Any, finished: Path) -> None:
    arguments = ("--report", str(finished / "report.html"), "--configfile", str(finished / "config.yaml"))
    outcome = snakemake(*arguments, folder=finished)
    assert outcome.code == 0, outcome.text
    text = (finished / "report.html").read_text()
    assert "simulated export" in text
    for category in ("stores", "results", "routing"):
        assert category in text


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_export_of_mosi(snakemake: Any, tmp_path: Path, real_data_dir: Path, tiny: dict[str, Any]) -> None:
    experiment = tiny["experiments"]["mosi"] | {"modalities": ["text", "audio"]}
    config = {"datasets": {"mosi": {"raw": str(real_data_dir / "mosi")}}, "experiments": {"mosi": experiment}}
    outcome = snakemake(folder=tmp_path, config=config)
    assert outcome.code == 0, outcome.text
    store = mrpipe.open_store(tmp_path / "results/stores/mosi")
    assert store.manifest.origin == "export"
    assert store.manifest.n_samples == 2199
