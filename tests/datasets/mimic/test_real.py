"""The MIMIC-IV demo: published row counts, and cohort and store against loops over the raw tables."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.datasets.mimic.tables import EVENTS, PLACES, TABLES, find_table, has_table, open_table
from mrpipe.errors import FaultCollector
from mrpipe.stages.build import build
from mrpipe.store.reader import Store
from tests.datasets.mimic.mimic_toy import read_rows, reference_labels

pytestmark = pytest.mark.real_data
# Published row counts of the demo 2.2.
COUNTS = {
    "hosp/patients": 100,
    "hosp/admissions": 275,
    "hosp/diagnoses_icd": 4506,
    "hosp/procedures_icd": 722,
    "hosp/d_labitems": 1622,
    "hosp/d_icd_diagnoses": 109_775,
    "hosp/d_icd_procedures": 85_257,
    "icu/icustays": 140,
    "icu/d_items": 4014,
}
LARGE = {"labevents": 107_727, "chartevents": 668_862}
REBUILT = ("icu/chartevents.csv.gz",)
# Codes of the cohort that the leak guard removes.
GUARDED = ["V4986", "V4986", "V4986", "V667"]


@pytest.fixture(scope="module")
def store(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("demo") / "store"
    build(get_dataset("mimic"), demo, out, {"rebuilt": REBUILT})
    return mrpipe.open_store(out)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_published_row_counts(demo: Path, name: str) -> None:
    assert len(open_table(demo, name)) == COUNTS[name]
    assert name in TABLES


@pytest.mark.parametrize("name", sorted(LARGE))
def test_published_row_counts_of_the_large_tables(demo: Path, name: str) -> None:
    path = find_table(demo, PLACES[name], FaultCollector())
    assert path is not None
    scan = TableScan(path, EVENTS[name], None, shown_as=name)
    frames = list(scan)
    assert scan.n_rows == sum(len(f) for f in frames) == LARGE[name]
    if name == "labevents":
        frame = pl.concat(frames)
        assert 0.25 < frame["hadm_id"].null_count() / len(frame) < 0.27
        assert 0.11 < frame["valuenum"].null_count() / len(frame) < 0.13


def test_the_modified_file_is_detected_by_its_checksum(demo: Path, tmp_path: Path, capsys) -> None:
    arguments = ["check", "mimic", "--raw", str(demo), "--work", str(tmp_path)]
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert "icu/chartevents.csv.gz" in error
    assert error.count("SHA-256") == 1
    assert main([*arguments, "--set", 'rebuilt=["icu/chartevents.csv.gz"]']) == 0
    assert "2.2 (demo)" in capsys.readouterr().out


def test_labels_agree_with_the_reference(demo: Path, store: Store) -> None:
    expected = reference_labels(demo)
    assert dict(store.labels("mortality").collect().iter_rows()) == expected
    assert (len(expected), sum(expected.values())) == (22, 7)


def test_attrition_of_the_demo(store: Store) -> None:
    assert store.attrition["n_after"].to_list() == [100, 100, 95, 73, 25, 22, 22, 22, 22]
    assert store.manifest.release == "MIMIC-IV 2.2 (demo)"
    assert store.manifest.n_samples == 22


def included_visits(demo: Path, store: Store) -> dict[str, tuple[str, str, str]]:
    """hadm_id → patient, admission and discharge of the included visits, by a loop over rows."""
    members = set(store.samples().collect()["sample_id"])
    dod = {r["subject_id"]: r["dod"] for r in read_rows(demo / "hosp/patients.csv")}
    nine = {
        r["hadm_id"]
        for t in ("diagnoses", "procedures")
        for r in read_rows(demo / f"hosp/{t}_icd.csv")
        if r["icd_version"] == "9"
    }
    return {
        r["hadm_id"]: (r["subject_id"], r["admittime"], r["dischtime"])
        for r in read_rows(demo / "hosp/admissions.csv")
        if r["subject_id"] in members
        and r["hadm_id"] in nine
        and r["hospital_expire_flag"] == "0"
        and not r["deathtime"]
        and not (dod[r["subject_id"]] and dod[r["subject_id"]] <= r["dischtime"][:10])
    }


def prediction_times(visits: dict[str, tuple[str, str, str]]) -> dict[str, str]:
    """Discharge of the visit that begins last, by patient."""
    last: dict[str, tuple[str, str]] = {}
    for subject, admitted, discharged in visits.values():
        last[subject] = max(last.get(subject, ("", "")), (admitted, discharged))
    return {subject: discharged for subject, (_, discharged) in last.items()}


def test_codes_agree_with_the_tables(demo: Path, store: Store) -> None:
    visits = included_visits(demo, store)
    predicted = prediction_times(visits)
    revealing = re.compile("palliative|resuscitate|death", re.IGNORECASE)
    expected: dict[str, int] = {}
    distinct, guarded = set(), []
    for table, kind in (("diagnoses", "DX"), ("procedures", "PR")):
        titles = {
            (r["icd_version"], r["icd_code"]): r["long_title"] for r in read_rows(demo / f"hosp/d_icd_{table}.csv")
        }
        keys = {
            (r["hadm_id"], r["icd_version"], r["icd_code"].strip())
            for r in read_rows(demo / f"hosp/{table}_icd.csv")
            if r["hadm_id"] in visits and visits[r["hadm_id"]][2] <= predicted[visits[r["hadm_id"]][0]]
        }
        for hadm, version, code in keys:
            if kind == "DX" and revealing.search(titles[version, code]):
                guarded.append(code)
                continue
            expected[visits[hadm][0]] = expected.get(visits[hadm][0], 0) + 1
            distinct.add(f"{kind}{version}:{code}")
    assert sorted(guarded) == GUARDED
    x = store.arrays("code")
    assert dict(zip(x.sample_id.tolist(), np.diff(x.offsets).tolist(), strict=True)) == expected
    levels = store.dictionary.filter(modality="code")["levels"][0].to_list()
    assert {name.split(" ")[0] for name in levels} == distinct
    assert any(name.startswith("DX9:0") for name in levels)


def test_measurements_of_one_item_agree_with_the_table(demo: Path, store: Store) -> None:
    """Blood creatinine, against a loop over the rows of labevents."""
    visits = included_visits(demo, store)
    predicted = prediction_times(visits)
    expected: dict[str, set[tuple[str, float]]] = {}
    with gzip.open(demo / "hosp/labevents.csv.gz", "rt", newline="") as handle:
        for r in csv.DictReader(handle):
            subject = r["subject_id"]
            if r["itemid"] != "50912" or subject not in predicted or not r["valuenum"]:
                continue
            if max(r["charttime"], r["storetime"]) > predicted[subject]:
                continue
            day_after = np.datetime64(r["charttime"].replace(" ", "T")) + np.timedelta64(24, "h")
            inside = any(
                owner == subject and str(day_after).replace("T", " ") >= admitted and r["charttime"] <= discharged
                for hadm, (owner, admitted, discharged) in visits.items()
                if r["hadm_id"] in ("", hadm)
            )
            if inside and 0 <= float(r["valuenum"]) <= 66:
                expected.setdefault(subject, set()).add((r["charttime"], float(r["valuenum"])))
    names = store.dictionary.filter(modality="lab_summary")["name"].to_list()
    x = store.arrays("lab_summary")
    for row, subject in enumerate(x.sample_id.tolist()):
        values = [v for _, v in sorted(expected.get(subject, set()))]
        wanted = [values[-1], np.mean(values), min(values), max(values)] if values else [np.nan] * 4
        columns = [names.index(f"lab:50912 {s}") for s in ("last", "mean", "min", "max", "count")]
        np.testing.assert_allclose(x.x[row, columns], [*wanted, len(values)], rtol=1e-6)
    assert sum(map(len, expected.values())) > 300


def test_notes_of_the_demo(demo: Path, store: Store) -> None:
    visits = included_visits(demo, store)
    expected: dict[str, int] = {}
    for r in read_rows(demo / "note/discharge.csv"):
        if r["hadm_id"] in visits:
            expected[r["subject_id"]] = expected.get(r["subject_id"], 0) + 1
    x = store.arrays("note")
    assert dict(zip(x.sample_id.tolist(), np.diff(x.offsets).tolist(), strict=True)) == expected
    assert has_table(demo, "note/radiology")
    assert MimicOptions().notes == ("discharge",)
