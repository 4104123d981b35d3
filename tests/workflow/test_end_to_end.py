"""The complete workflow at the smallest size: outputs, idempotence and reruns after code edits."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import mrpipe
from tests.workflow.conftest import store_ids


def test_stores_runs_and_report_exist(finished: Path) -> None:
    for name in ("mosi", "enrico"):
        store = mrpipe.open_store(finished / "results/stores" / name)
        store.verify(deep=True)
        assert store.manifest.origin == "simulated"
        metrics = json.loads((finished / f"results/runs/{name}/moe_retriever/seed0/metrics.json").read_text())
        assert metrics
    page = (finished / "results/report/index.html").read_text()
    assert "simulated" in page


def test_final_output_gives_the_path_of_the_report(finished: Path) -> None:
    text = (finished / "first_run.txt").read_text()
    assert "results/report/index.html" in text
    assert "moe_retriever" in text[text.rindex("results/report/index.html") - 4000 :]


def test_every_job_writes_a_log_and_a_benchmark(finished: Path) -> None:
    logs = {p.relative_to(finished / "results/logs").with_suffix("") for p in finished.glob("results/logs/**/*.log")}
    cost = {
        p.relative_to(finished / "results/benchmarks").with_suffix("")
        for p in finished.glob("results/benchmarks/**/*.jsonl")
    }
    assert logs == cost
    assert {Path("mosi/seal"), Path("enrico/ingest_wireframe"), Path("report")} <= logs


def test_second_run_has_nothing_to_do(snakemake: Any, finished: Path) -> None:
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


def test_edited_comments_and_docstrings_trigger_no_rerun(snakemake: Any, finished: Path, checkout: Path) -> None:
    for path in [*checkout.glob("mrpipe/**/*.py"), *checkout.glob("model/**/*.py")]:
        path.write_text(path.read_text() + "\n# A comment.\n")
    edit(checkout / "mrpipe/store/splits.py", '"""', '"""Reworded. ')
    assert would_run(snakemake, finished, checkout) == set()


# The job trains again only if the code of the training has changed: see tests/moe_retriever/cli/test_cells.py.
CELLS = ["cells {}/moe_retriever/seed0", "report_page", "all"]
TRAINED = ["settings {}", "mask {} mcar-p0.3-seed0", *CELLS]
SPLIT = ["split {} standard", "seal {}", "verify {}", *[job for job in TRAINED if "settings" not in job]]


@pytest.mark.parametrize(
    ("module", "datasets", "expected"),
    [
        ("mrpipe/datasets/enrico/modalities.py", ["enrico"], ["ingest enrico screenshot", "samples {}", *SPLIT]),
        ("mrpipe/stages/split.py", ["mosi", "enrico"], SPLIT),
        ("mrpipe/experiment/missingness.py", ["mosi", "enrico"], TRAINED),
        ("model/moe_retriever/nn/moe.py", ["mosi", "enrico"], CELLS),
        ("model/moe_retriever/evaluation/bootstrap.py", ["mosi", "enrico"], CELLS),
        ("model/moe_retriever/plots/plots.py", ["mosi"], ["report_page", "all"]),
    ],
)
def test_code_edit_reruns_exactly_the_dependent_jobs(
    snakemake: Any, finished: Path, checkout: Path, module: str, datasets: list[str], expected: list[str]
) -> None:
    path = checkout / module
    if module.endswith("modalities.py"):  # has the readers of two steps; the first is that of screenshots
        edit(path, "    def load(", "    assert True\n\n    def load(")
    else:
        path.write_text(path.read_text() + "\nassert True\n")
    jobs = would_run(snakemake, finished, checkout)
    assert jobs == {job.format(name) for job in expected for name in datasets}


def test_a_definition_that_no_step_uses_triggers_no_rerun(snakemake: Any, finished: Path, checkout: Path) -> None:
    for module in ("mrpipe/stages/split.py", "mrpipe/experiment/missingness.py", "model/moe_retriever/nn/moe.py"):
        path = checkout / module
        path.write_text(path.read_text() + "\nUNUSED = True\n")
    assert would_run(snakemake, finished, checkout) == set()


def test_edits_of_the_command_line_trigger_no_rerun(snakemake: Any, finished: Path, checkout: Path) -> None:
    path = checkout / "mrpipe/cli/pipeline.py"
    path.write_text(path.read_text() + "\nassert True\n")
    assert would_run(snakemake, finished, checkout) == set()


def test_changed_modalities_in_the_same_folder(
    snakemake: Any, finished: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
    place = folder / "results/stores/mosi"
    assert [m.name for m in mrpipe.open_store(place).modalities] == ["text", "audio", "vision"]
    config = {"datasets": {"mosi": tiny["datasets"]["mosi"] | {"modalities": ["text", "audio"]}}}
    outcome = snakemake("stores", folder=folder, config=config)
    assert outcome.code == 0, outcome.text
    assert [m.name for m in mrpipe.open_store(place).modalities] == ["text", "audio"]


def test_failed_job_is_reported_and_leaves_no_output(snakemake: Any, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    entry = {"raw": str(tmp_path / "export"), "modalities": ["text", "audio"]}
    outcome = snakemake("stores", "--show-failed-logs", folder=tmp_path, config={"datasets": {"mosi": entry}})
    assert outcome.code != 0
    assert "results/logs/mosi/check.log" in outcome.text
    assert "expected" in outcome.text
    assert not (tmp_path / "results/stores").exists()


def flip(path: Path, *, keep_time: bool) -> None:
    """Flip one bit in the middle of a file."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_altered_store_is_neither_sealed_again_nor_used(
    snakemake: Any, finished: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """One more method on a finished store, after one bit of a table was flipped, with a new or the old time."""
    folder = Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
    config = {key: {"mosi": tiny[key]["mosi"]} for key in ("datasets", "experiments")}
    store = folder / "results/stores/mosi"
    manifest = (store / "manifest.json").read_bytes()
    for keep_time in (False, True):
        config["experiments"]["mosi"]["methods"] = ["moe_retriever", "majority" if keep_time else "logistic"]
        flip(store / "modalities/text.parquet", keep_time=keep_time)
        outcome = snakemake("runs", "--show-failed-logs", folder=folder, config=config)
        assert outcome.code != 0
        assert "text.parquet: expected SHA-256" in outcome.text
        assert not [job for job in outcome.jobs if job.split(" ")[0] in ("ingest", "samples", "split", "seal")]
        assert (store / "manifest.json").read_bytes() == manifest
        flip(store / "modalities/text.parquet", keep_time=keep_time)


@pytest.mark.slow
def test_a_deleted_store_is_built_again_but_not_from_altered_tables(
    snakemake: Any, finished: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
    config = {key: {"mosi": tiny[key]["mosi"]} for key in ("datasets", "experiments")}
    store = folder / "results/stores/mosi"
    flip(folder / "results/build/mosi/store/modalities/text.parquet", keep_time=False)
    shutil.rmtree(store)
    outcome = snakemake("stores", "--show-failed-logs", folder=folder, config=config)
    assert outcome.code != 0
    assert "text.parquet: expected SHA-256" in outcome.text
    assert "run mrpipe ingest mosi text again" in outcome.text
    assert not (store / "manifest.json").exists()
    shutil.rmtree(folder / "results/build")
    assert snakemake("stores", folder=folder, config=config).code == 0
    assert store_ids(folder)["mosi"] == store_ids(finished)["mosi"]


def test_intermediate_files_may_be_deleted(snakemake: Any, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
    shutil.rmtree(folder / "results/build")
    assert snakemake("-n", "--configfile", str(finished / "config.yaml"), folder=folder).idle


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
def test_real_mosi_export(snakemake: Any, tmp_path: Path, real_data_dir: Path, tiny: dict[str, Any]) -> None:
    experiment = tiny["experiments"]["mosi"] | {"modalities": ["text", "audio"]}
    config = {"datasets": {"mosi": {"raw": str(real_data_dir / "mosi")}}, "experiments": {"mosi": experiment}}
    outcome = snakemake(folder=tmp_path, config=config)
    assert outcome.code == 0, outcome.text
    store = mrpipe.open_store(tmp_path / "results/stores/mosi")
    assert store.manifest.origin == "export"
    assert store.manifest.n_samples == 2199
