"""Declared tables: single steps, the workflow, and the worked examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest
import yaml

import mrpipe
from mrpipe.cli.main import main
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.store.layout import truth_folder
from tests.datasets.tables.tables_toy import IDS, TABLES, config, csv, people, write

# Steps and workflow.


def test_single_steps_equal_the_build(tmp_path: Path) -> None:
    simulate(TABLES, tmp_path / "raw", TABLES.tiny)
    build(TABLES, tmp_path / "raw", tmp_path / "whole", {})
    raw, work, store = str(tmp_path / "raw"), str(tmp_path / "work"), str(tmp_path / "store")
    names = ["vitals", "labs", "survey"]
    steps = [["check", "tables", "--raw", raw, "--work", work], ["cohort", "tables", "--raw", raw, "--work", work]]
    steps += [["ingest", "tables", m, "--raw", raw, "--work", work] for m in names]
    steps += [["samples", "tables", "--work", work, "--modalities", *names]]
    steps += [["split", "tables", "--work", work, "--scheme", s] for s in ("standard", "uniform")]
    steps += [["seal", "tables", "--work", work, "--store", store]]
    for step in steps:
        assert main(step) == 0
    assert mrpipe.open_store(store).store_id == mrpipe.open_store(tmp_path / "whole").store_id


def test_default_declaration_is_that_of_the_simulator(tmp_path: Path) -> None:
    simulate(TABLES, tmp_path / "raw", TABLES.tiny)
    found = TABLES.declared(tmp_path / "raw", TABLES.options())
    assert found == dataclasses.replace(TABLES, title="Simulated visits")
    truth = pl.read_parquet(truth_folder(tmp_path / "raw") / "truth.parquet")
    guessed = (truth["bayes_readmitted"] > 0.5).cast(pl.Int64)
    assert (guessed == truth["outcome"]).mean() > 0.7


def test_workflow_plan_uses_the_declared_modalities(tmp_path: Path) -> None:
    from workflow.planning.plan import ConfigError, _listing, fingerprint, make_plan

    raw = write(
        tmp_path / "raw", {"people.csv": people(), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)])}, config()
    )
    entry = {"dataset": "tables", "raw": str(raw), "options": {}, "simulation": {}}
    run = {
        "dataset": "mine",
        "methods": ["majority"],
        "seeds": [0],
        "preset": "paper",
        "overrides": {},
        "transforms": {},
        "task": "label",
    }
    plan = make_plan({"datasets": {"mine": entry}, "experiments": {"x": run}}).stores["mine"]
    assert plan.modalities == ("a",)
    assert "Simulated" not in plan.dataset.title
    assert list(plan.schemes) == ["uniform"]
    before = fingerprint(plan, "a.ingest")
    write(raw, {}, config(missing=[-1]))
    _listing.cache_clear()
    assert fingerprint(make_plan({"datasets": {"mine": entry}, "experiments": {}}).stores["mine"], "a.ingest") != before
    with pytest.raises(ConfigError, match="tables has no 'labs'; it has a"):
        make_plan({"datasets": {"mine": {**entry, "modalities": ["labs"]}}, "experiments": {}})
    write(raw, {}, {"titel": "x"})
    with pytest.raises(ConfigError, match="Did you mean 'title'"):
        make_plan({"datasets": {"mine": entry}, "experiments": {}})


def test_option_paths_do_not_reach_the_manifest(tmp_path: Path) -> None:
    files = {"people.csv": people(), "a.csv": csv("id,x", [[i, k] for k, i in enumerate(IDS)])}
    write(tmp_path / "raw", files, {})
    write(tmp_path / "home", {}, config()).joinpath("tables.yaml").rename(tmp_path / "home" / "mine.yaml")
    build(TABLES, tmp_path / "raw", tmp_path / "store", {"config": str(tmp_path / "home" / "mine.yaml")})
    assert str(tmp_path) not in (tmp_path / "store" / "manifest.json").read_text()
    manifest = mrpipe.open_store(tmp_path / "store").manifest
    assert manifest.options["config"] == "mine.yaml"
    assert manifest.options_changed == ("config",)


# Worked examples of docs/tables.md.


@pytest.mark.real_data
def test_uci_mfeat_example(real_data_dir: Path, project: Path, tmp_path: Path) -> None:
    example = project / "workflow/config/examples/tables/mfeat.yaml"
    build(TABLES, real_data_dir / "generic/uci_mfeat", tmp_path / "s", {"config": str(example)})
    store = mrpipe.open_store(tmp_path / "s")
    assert {m.name: m.size for m in store.modalities} == {
        "fou": 76,
        "fac": 216,
        "kar": 64,
        "pix": 240,
        "zer": 47,
        "mor": 6,
    }
    assert store.patterns()["n"].to_list() == [2000]
    assert store.labels().collect()["value"].value_counts()["count"].to_list() == [200] * 10
    assert store.split().collect()["split"].value_counts().sort("split")["count"].to_list() == [300, 1400, 300]


@pytest.mark.real_data
def test_physionet_2012_example(real_data_dir: Path, project: Path, tmp_path: Path) -> None:
    example = project / "workflow/config/examples/tables/physionet2012.yaml"
    raw = real_data_dir / "generic/physionet2012"
    build(TABLES, raw, tmp_path / "s", {"config": str(example)})
    store = mrpipe.open_store(tmp_path / "s")
    assert store.labels().collect()["value"].sum() == 554
    names = store.dictionary["source_column"].to_list()
    leaking = {"SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death", "recordid"}
    assert not leaking & set(names)
    # All other columns belong to a modality.
    frame = pl.read_csv(raw / "PhysionetChallenge2012-set-a.csv.gz", infer_schema=False)
    assert sorted(names) == sorted(set(frame.columns) - leaking)
    for m in store.modalities:
        columns = store.dictionary.filter(modality=m.name)["source_column"].to_list()
        assert len(store.arrays(m.name)) == frame.select(pl.any_horizontal(pl.col(columns).is_not_null())).sum().item()
    assert len(store.patterns()) > 50


@pytest.mark.real_data
def test_leaking_column_of_physionet_2012_is_noted(real_data_dir: Path, project: Path, tmp_path: Path) -> None:
    text = (project / "workflow/config/examples/tables/physionet2012.yaml").read_text()
    spec = yaml.safe_load(text)
    spec["exclude"] = []
    spec["modalities"] = {"leak": {"columns": ["SAPS-I", "SOFA", "Length_of_stay", "Survival", "Age"]}}
    (tmp_path / "leak.yaml").write_text(yaml.safe_dump(spec))
    notes = check(TABLES, real_data_dir / "generic/physionet2012", {"config": str(tmp_path / "leak.yaml")})["notes"]
    assert any("strong single predictors of label death" in n and "Survival (0.99" in n for n in notes)
    assert not any("Age" in n for n in notes)
