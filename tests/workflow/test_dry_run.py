"""Jobs that Snakemake plans for typical configurations (dry runs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

STORE = ("simulate", "check", "cohort", "samples", "seal", "verify")


def store_jobs(dataset: str, modalities: tuple[str, ...], *, simulated: bool = True) -> list[str]:
    """Jobs from the export to the verified store."""
    jobs = [f"{rule} {dataset}" for rule in STORE if simulated or rule != "simulate"]
    return [*jobs, f"split {dataset} standard", *(f"ingest {dataset} {m}" for m in modalities)]


def run_jobs(name: str, mask: str = "mcar-p0.3-seed0") -> list[str]:
    """Jobs of an experiment with one run, on the store of the same name."""
    return [f"mask {name} {mask}", f"settings {name}", f"cells {name}/moe_retriever/seed0"]


ENDS = ["all", "report_page"]
MOSI = ("text", "audio", "vision")
ENRICO = ("screenshot", "wireframe")


def test_two_datasets(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    outcome = snakemake("-n", folder=tmp_path, config=tiny)
    expected = store_jobs("mosi", MOSI) + store_jobs("enrico", ENRICO) + run_jobs("mosi") + run_jobs("enrico") + ENDS
    assert outcome.jobs == sorted(expected), outcome.text


@pytest.mark.parametrize(("name", "modalities"), [("mosi", MOSI), ("enrico", ENRICO)])
def test_one_dataset(
    snakemake: Any, tmp_path: Path, tiny: dict[str, Any], name: str, modalities: tuple[str, ...]
) -> None:
    config = {key: {name: tiny[key][name]} for key in ("datasets", "experiments")}
    outcome = snakemake("-n", folder=tmp_path, config=config)
    assert outcome.jobs == sorted(store_jobs(name, modalities) + run_jobs(name) + ENDS), outcome.text


def test_stores_only(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    outcome = snakemake("stores", "-n", folder=tmp_path, config=tiny)
    assert outcome.jobs == sorted([*store_jobs("mosi", MOSI), *store_jobs("enrico", ENRICO), "stores"]), outcome.text


def test_only_requested_modalities_are_ingested(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["datasets"]["mosi"]["modalities"] = ["audio", "text"]
    outcome = snakemake("stores", "-n", folder=tmp_path, config={"datasets": {"mosi": tiny["datasets"]["mosi"]}})
    assert outcome.jobs == sorted([*store_jobs("mosi", ("text", "audio")), "stores"]), outcome.text


@pytest.mark.parametrize("modalities", [("lab", "lab_summary"), ("lab_summary",), ("lab",)])
def test_one_pass_over_the_measurements_serves_both_of_their_modalities(
    snakemake: Any, tmp_path: Path, modalities: tuple[str, ...]
) -> None:
    mimic = {"raw": "simulated", "modalities": [*modalities], "options": {"n_shards": 2}}
    outcome = snakemake("stores", "-n", folder=tmp_path, config={"datasets": {"mimic": mimic}})
    parts = [f"prepare mimic lab {part} 2" for part in range(2)]
    assert outcome.jobs == sorted([*store_jobs("mimic", modalities), *parts, "stores"]), outcome.text


def test_modality_subset_uses_the_full_store(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    experiment = tiny["experiments"]["mosi"] | {"modalities": ["text", "audio"]}
    config = {"datasets": {"mosi": tiny["datasets"]["mosi"]}, "experiments": {"mosi": experiment}}
    outcome = snakemake("-n", folder=tmp_path, config=config)
    masks = "mcar-p0.3-text_audio-seed0"
    assert outcome.jobs == sorted(store_jobs("mosi", MOSI) + run_jobs("mosi", masks) + ENDS), outcome.text


def test_transforms_of_an_experiment_reach_the_training(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["experiments"]["mosi"]["transforms"] = {"scale": "minmax", "clip": 10, "svd_dim": 64}
    outcome = snakemake("-n", "-p", folder=tmp_path, config=tiny)
    trained = [line for line in outcome.text.splitlines() if "mrpipe cells" in line]
    options = '"--transform", "scale=minmax", "svd_dim=64", "--set", '
    assert [options in line for line in sorted(trained)] == [False, True]
    assert "--transform" not in sorted(trained)[0]


def test_no_simulation_for_a_real_export(snakemake: Any, tmp_path: Path, project: Path, tiny: dict[str, Any]) -> None:
    (tmp_path / "export").mkdir()
    entry = {"raw": str(tmp_path / "export"), "modalities": ["text", "audio"]}
    outcome = snakemake("stores", "-n", folder=tmp_path, config={"datasets": {"mosi": entry}})
    assert outcome.jobs == sorted([*store_jobs("mosi", ("text", "audio"), simulated=False), "stores"]), outcome.text


def test_sealed_store_is_only_verified(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    (sealed / "manifest.json").write_text("{}")
    config = {"datasets": {"mosi": {"store": str(sealed)}}, "experiments": {"mosi": tiny["experiments"]["mosi"]}}
    outcome = snakemake("-n", folder=tmp_path, config=config)
    assert outcome.jobs == sorted(["verify mosi", *run_jobs("mosi"), *ENDS]), outcome.text


def test_two_stores_of_one_dataset(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    small = tiny["datasets"]["mosi"]
    other = small | {"dataset": "mosi", "simulation": {"format": "multibench", "n_videos": 9}}
    outcome = snakemake("stores", "-n", folder=tmp_path, config={"datasets": {"mosi": small, "pickle": other}})
    assert outcome.jobs == sorted([*store_jobs("mosi", MOSI), *store_jobs("pickle", MOSI), "stores"]), outcome.text


def test_results_folder_is_configurable(snakemake: Any, tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["pathvars"] = {"results": "elsewhere"}
    outcome = snakemake("-n", folder=tmp_path, config=tiny)
    assert outcome.code == 0, outcome.text
    assert "elsewhere/stores/mosi/manifest.json" in outcome.text
    assert "elsewhere/logs/mosi/seal.log" in outcome.text
    assert "results/" not in outcome.text.replace("elsewhere/", "")


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_profiles_are_valid(snakemake: Any, tmp_path: Path, project: Path, tiny: dict[str, Any], profile: str) -> None:
    if profile == "slurm":
        pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra 'slurm' is not installed")
    outcome = snakemake("-n", "--profile", str(project / "workflow/profiles" / profile), folder=tmp_path, config=tiny)
    assert outcome.code == 0, outcome.text
