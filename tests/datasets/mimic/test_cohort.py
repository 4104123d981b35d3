"""Cohort of MIMIC-IV: each rule on hand-made patients, and labels against a reference implementation."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.check import check_export
from mrpipe.datasets.mimic.cohort import build_cohort, label, visits
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.errors import DataError
from mrpipe.options import parse_options
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate
from mrpipe.store.layout import truth_folder
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, hadm_of, reference_labels, toy

A, B, C = str(SUBJECT), str(SUBJECT + 1), str(SUBJECT + 2)


def options(**values) -> MimicOptions:
    return parse_options(MimicOptions, values, context="test")


def members(raw: Path, **values) -> set[str]:
    return set(build_cohort(raw, options(**values)).samples["sample_id"])


def labels(raw: Path, **values) -> dict[str, int]:
    return dict(build_cohort(raw, options(**values)).labels["mortality"].iter_rows())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("mimic") / "raw"
    simulate(get_dataset("mimic"), raw, {"n_patients": 1500, "n_chart_rows": 200, "n_lab_rows": 200, "traps": 3.0})
    return raw


def test_labels_agree_with_the_reference_and_the_ground_truth(simulated: Path) -> None:
    found = labels(simulated)
    assert found == reference_labels(simulated)
    truth = pl.read_parquet(truth_folder(simulated) / "truth.parquet").filter(kind="eligible")
    known = dict(truth.select("sample_id", "label").iter_rows())
    assert set(found) <= set(known)
    assert {s: known[s] for s in found} == found
    assert len(found) > 500
    assert 0.18 < sum(found.values()) / len(found) < 0.27


def test_the_simulation_has_the_requested_rates(simulated: Path) -> None:
    truth = pl.read_parquet(truth_folder(simulated) / "truth.parquet")
    assert 0.16 < 1 - truth["has_procedures"].mean() < 0.24
    assert 0.002 < 1 - truth["has_notes"].mean() < 0.03
    # The probability is calibrated.
    assert abs(truth["probability"].mean() - 0.226) < 0.03
    assert abs(truth["label"].mean() - truth["probability"].mean()) < 0.03


@pytest.mark.parametrize("informative", [0.0, 1.0])
def test_missingness_is_informative_only_if_requested(tmp_path: Path, informative: float) -> None:
    settings = {"n_patients": 3000, "n_chart_rows": 50, "n_lab_rows": 50, "informative": informative}
    simulate(get_dataset("mimic"), tmp_path / "raw", settings)
    truth = pl.read_parquet(truth_folder(tmp_path / "raw") / "truth.parquet")
    rate = {had: p for had, p in truth.group_by("has_procedures").agg(pl.col("probability").mean()).iter_rows()}
    difference = rate[False] - rate[True]
    assert (difference > 0.15) if informative else (abs(difference) < 0.06)
    assert 0.16 < 1 - truth["has_procedures"].mean() < 0.24


@pytest.mark.parametrize(
    "more",
    [{"hospital_expire_flag": 1}, {"deathtime": "2150-08-08 10:00:00"}],
    ids=["flag without time", "time without flag"],
)
def test_a_terminal_visit_is_dropped_and_its_death_labels_the_previous_visit(tmp_path: Path, more) -> None:
    toy = Toy()
    toy.visit(SUBJECT, 3, "2150-08-01 08:00:00", "2150-08-09 12:00:00", **more)
    raw = toy.write(tmp_path)
    kept = visits(raw, options()).kept.filter(subject_id=SUBJECT)
    assert kept["hadm_id"].to_list() == [hadm_of(SUBJECT, 1), hadm_of(SUBJECT, 2)]
    assert labels(raw) == {A: 1, B: 0, C: 0} == {k: v for k, v in reference_labels(raw).items()}
    # Without the in-hospital death, a blank dod means alive.
    assert labels(raw, death_date="dod")[A] == 0
    assert labels(raw, terminal_visits="keep")[A] == 1


@pytest.mark.parametrize(("day", "terminal"), [("2150-06-08", True), ("2150-06-09", True), ("2150-06-10", False)])
def test_dod_up_to_the_day_of_discharge_makes_a_visit_terminal(tmp_path: Path, day: str, terminal: bool) -> None:
    toy = Toy()
    toy.patients[0]["dod"] = day
    raw = toy.write(tmp_path)
    assert (A in members(raw)) is not terminal
    assert members(raw, min_visits=1) == {A, B, C}


@pytest.mark.parametrize(("day", "expected"), [("2151-06-09", 1), ("2151-06-10", 0), ("2150-06-10", 1)])
def test_the_label_depends_on_the_number_of_days(tmp_path: Path, day: str, expected: int) -> None:
    toy = Toy()
    toy.patients[0]["dod"] = day
    # A later, excluded visit, whose discharge makes the provider record a death after more than a year.
    toy.visit(SUBJECT, 3, "2151-02-01 08:00:00", "2151-02-03 08:00:00", version=10, icd="I10")
    if day < "2151-02-03":
        toy.admissions.pop()
        toy.diagnoses.pop()
        toy.stays.pop()
    assert labels(toy.write(tmp_path))[A] == expected


def test_censoring_of_deaths() -> None:
    """A blank dod only means alive one year after the last discharge."""
    frame = pl.DataFrame(
        {
            "death": [None, None, "2151-06-01", "2150-01-08", "2150-01-09"],
            "discharge": ["2150-01-10"] * 5,
            "last": ["2150-01-10", "2151-01-11", "2150-01-10", "2150-01-10", "2150-01-10"],
        }
    ).with_columns(pl.all().str.to_date())
    value = {
        h: frame.select(label(pl.col("death"), pl.col("discharge"), pl.col("last"), h)).to_series().to_list()
        for h in (365, 730)
    }
    assert value[365] == [0, 0, 0, None, 1]
    assert value[730] == [None, 0, 1, None, 1]


def test_a_horizon_beyond_the_follow_up_excludes_patients_with_a_reason(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    reasons = r"assessed: patients in the export, n = 4; excluded: no admission.*, n = 1; .*vital status unknown 730 d"
    with pytest.raises(DataError, match=reasons):
        build_cohort(raw, options(horizon_days=730))


def test_icd9_rules(tmp_path: Path) -> None:
    toy = Toy()
    toy.diagnoses.append(
        {"subject_id": SUBJECT, "hadm_id": hadm_of(SUBJECT, 2), "seq_num": 2, "icd_code": "I10", "icd_version": 10}
    )
    toy.diagnoses[3].update(icd_code="I10", icd_version=10)  # the second visit of B has ICD-10 only
    raw = toy.write(tmp_path)
    assert members(raw) == {A, C}
    assert members(raw, icd9="all") == {C}
    assert members(raw, icd9="off") == {A, B, C}
    assert members(raw, min_visits_stage="before") == {A, B, C}


def test_icu_rules(tmp_path: Path) -> None:
    toy = Toy()
    toy.stays = [
        s
        for s in toy.stays
        if s["hadm_id"] not in (hadm_of(SUBJECT, 2), hadm_of(SUBJECT + 1, 1), hadm_of(SUBJECT + 1, 2))
    ]
    raw = toy.write(tmp_path)
    assert members(raw) == {A, C}
    assert members(raw, require_icu="index") == {C}
    assert members(raw, require_icu="every") == {C}
    assert members(raw, require_icu="every", min_visits=1) == {A, C}
    assert members(raw, require_icu="no") == {A, B, C}


def test_overlapping_and_reversed_visits_are_kept_by_default_and_sorted_by_admission(tmp_path: Path) -> None:
    toy = Toy()
    toy.admissions[1].update(admittime="2150-01-14 08:00:00", dischtime="2150-01-20 08:00:00")  # A: overlaps the first
    toy.admissions[3].update(admittime="2150-06-01 08:00:00", dischtime="2150-06-01 06:00:00")  # B: reversed
    toy.admissions.reverse()
    raw = toy.write(tmp_path)
    assert members(raw) == {A, B, C}
    assert members(raw, overlapping_visits="drop") == {B, C}
    assert members(raw, reversed_visits="drop") == {A, C}
    kept = visits(raw, options()).kept
    assert kept["number"].to_list() == [1, 2] * 3
    assert kept.sort("subject_id", "admittime").equals(kept)


def test_a_visit_after_a_nested_one_overlaps_the_longer_visit(tmp_path: Path) -> None:
    toy = Toy()
    toy.admissions[0].update(admittime="2150-01-01 08:00:00", dischtime="2150-01-31 12:00:00")
    toy.admissions[1].update(admittime="2150-01-05 08:00:00", dischtime="2150-01-06 12:00:00")
    toy.visit(SUBJECT, 3, "2150-01-20 08:00:00", "2150-02-09 12:00:00")  # after the nested visit, during the longer one
    toy.visit(SUBJECT, 4, "2150-03-20 08:00:00", "2150-03-21 12:00:00")
    kept = visits(toy.write(tmp_path), options(overlapping_visits="drop")).kept.filter(subject_id=SUBJECT)
    assert kept["hadm_id"].to_list() == [hadm_of(SUBJECT, 1), hadm_of(SUBJECT, 4)]


def test_visits_before_birth_or_after_death_are_not_used(tmp_path: Path) -> None:
    toy = Toy()
    toy.patients[0]["dod"] = "2151-01-01"
    toy.visit(SUBJECT, 3, "2089-12-31 08:00:00", "2090-01-09 12:00:00")  # aged 60 in 2150
    toy.visit(SUBJECT, 4, "2152-08-01 08:00:00", "2152-08-09 12:00:00")
    toy.visit(SUBJECT + 1, 3, "2049-06-01 08:00:00", "2049-08-09 12:00:00")
    raw = toy.write(tmp_path)
    for terminal in ("drop", "keep"):
        kept = visits(raw, options(terminal_visits=terminal)).kept
        assert kept["number"].to_list() == [1, 2] * 3
        assert kept["admittime"].dt.year().unique().to_list() == [2150]
    assert "3 visits before birth or after dod, which are not used" in check_export(raw, options()).notes


def test_visits_that_end_after_the_prediction_time_have_no_codes(tmp_path: Path) -> None:
    """The index visit is the last by admission; a longer visit began before and has not been coded yet."""
    toy = Toy()
    toy.visit(SUBJECT, 3, "2150-05-20 08:00:00", "2150-06-20 12:00:00", icd="0389")
    samples = build_cohort(toy.write(tmp_path), options()).samples.filter(sample_id=A)
    assert samples["index_hadm_id"].item() == hadm_of(SUBJECT, 2)
    assert samples.select("n_visits", "n_diagnoses").row(0) == (3, 2)


def test_age_and_index_visit(tmp_path: Path) -> None:
    toy = Toy()
    toy.patients[0].update(anchor_age=17, anchor_year=2150)
    toy.patients[1].update(anchor_age=17, anchor_year=2149)
    toy.patients[2].update(dod="2151-01-20")
    raw = toy.write(tmp_path)
    assert members(raw) == {B, C}
    assert members(raw, min_age=0) == {A, B, C}
    first, last = (build_cohort(raw, options(index_visit=i)) for i in ("first", "last"))
    assert first.samples.filter(sample_id=C)["index_hadm_id"].item() == hadm_of(SUBJECT + 2, 1)
    assert dict(first.labels["mortality"].iter_rows())[C] == 0
    assert dict(last.labels["mortality"].iter_rows())[C] == 1
    assert visits(raw, options(index_visit="first")).kept["number"].to_list() == [1, 1]


def test_attrition_is_consistent_and_independent_of_the_order_of_rows(tmp_path: Path) -> None:
    toy = Toy(5)
    toy.patients[0]["dod"] = "2150-06-09"
    forward = build_cohort(toy.write(tmp_path / "a"), options())
    for rows in (toy.patients, toy.admissions, toy.diagnoses, toy.stays):
        rows.reverse()
    backward = build_cohort(toy.write(tmp_path / "b", gz=True), options())
    assert forward.samples.equals(backward.samples)
    assert forward.attrition.equals(backward.attrition)
    assert forward.attrition["n_before"][1:].to_list() == forward.attrition["n_after"][:-1].to_list()
    assert forward.attrition["n_after"].to_list()[0] == 6
    assert not {"dod", "death"} & set(forward.samples.columns)


def test_labels_with_one_class_are_noted(tmp_path: Path) -> None:
    notes = check(get_dataset("mimic"), toy(tmp_path), {})["notes"]
    assert "label mortality: every labelled sample is of class alive" in notes


def test_all_options_out_of_range_are_reported() -> None:
    with pytest.raises(DataError) as error:
        options(min_visits=0, n_shards=0, notes=("letters",)).validate()
    assert len(error.value.faults) == 3
