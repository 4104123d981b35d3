"""Clinical and biospecimen features of ADNI: units, sub-items, age, medications, and excluded columns."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.cohort import build_cohort, diagnoses
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms import medications as drugs
from mrpipe.datasets.adni.forms.biospecimen import biospecimen_features
from mrpipe.datasets.adni.forms.clinical import clinical_features, in_si
from mrpipe.datasets.adni.forms.paper_profile import is_forbidden
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import APOERES, BATEMAN, ELECSYS, HISTORY, PTDEMOG, QUANTITIES, RACES
from mrpipe.stages.check import check
from tests.datasets.adni.adni_toy import edit, faults_of, table_path, write


def vitals(*rows: tuple[float | None, int | None, float | None, int | None, float | None]) -> pl.DataFrame:
    schema = {
        "VSWEIGHT": pl.Float64,
        "VSWTUNIT": pl.Int8,
        "VSHEIGHT": pl.Float64,
        "VSHTUNIT": pl.Int8,
        "VSTEMP": pl.Float64,
    }
    return in_si(pl.DataFrame(list(rows), schema=schema, orient="row"))


def test_units_follow_their_label_unless_implausible() -> None:
    got = vitals(
        (154.0, 0, 65.0, 0, 98.6),  # pounds, inches, Fahrenheit
        (70.0, 1, 165.0, 1, 37.0),  # kilograms, centimetres, Celsius
        (66.0, 1, 65.0, 1, 97.0),  # inches labelled as centimetres
        (60.0, 0, 170.0, 0, 36.5),  # kilograms and centimetres labelled as imperial
        (5.0, 1, 30.0, 1, 20.0),  # implausible in any unit
        (None, None, None, None, None),
    )
    np.testing.assert_allclose(got["weight"][:4].to_list(), [69.85, 70.0, 66.0, 60.0], atol=0.01)
    np.testing.assert_allclose(got["height"][:4].to_list(), [165.1, 165.0, 165.1, 170.0], atol=0.01)
    np.testing.assert_allclose(got["temperature"][:4].to_list(), [37.0, 37.0, 36.11, 36.5], atol=0.01)
    assert got[4:].select("weight", "height", "temperature").null_count().row(0) == (2, 2, 2)
    # Without a unit, a value that is plausible in both is unknown.
    assert vitals((70.0, None, 65.0, None, 37.0), (40.0, None, 165.0, None, 37.0))["weight"].to_list() == [None, 40.0]
    assert vitals((70.0, None, 65.0, None, 37.0))["height"].to_list() == [165.1]


def test_sub_items_of_a_negative_answer_are_zero_or_unknown(adni_exports: dict[str, Path]) -> None:
    raw = adni_exports["2025"]
    cohort = build_cohort(raw, AdniOptions()).samples
    _, frame = clinical_features(AdniExport(raw), cohort, AdniOptions())
    for quantity, (parent, zero) in QUANTITIES.items():
        no = frame.filter(pl.col(parent) == 0)[quantity]
        assert len(no) > 5
        assert (no == 0).all() if zero else no.null_count() == len(no)
        yes = frame.filter(pl.col(parent) == 1)[quantity].drop_nulls()
        assert (yes > 0).all()


def test_multiple_races_set_several_features(adni_export: Path) -> None:
    edit(table_path(adni_export, "PTDEMOG"), PTRACCAT=pl.lit("4|05"))
    cohort = build_cohort(adni_export, AdniOptions()).samples
    _, frame = clinical_features(AdniExport(adni_export), cohort, AdniOptions())
    sums = frame.select(f"race_{level}" for _, level in RACES).sum().row(0, named=True)
    assert {k for k, v in sums.items() if v} == {"race_black", "race_white"}


def test_age_is_measured_from_birth_month_to_visit(tmp_path: Path) -> None:
    write(
        tmp_path,
        "PTDEMOG_01Jan2025.csv",
        "RID,PTID,PHASE,VISCODE2,VISDATE,PTGENDER,PTDOB,PTDOBYY,PTHAND,PTMARRY,PTEDUCAT,"
        "PTNOTRT,PTHOME,PTETHCAT,PTRACCAT\n7,002_S_0007,ADNI1,sc,2010-07-01,1,07/1940,1940,1,1,16,1,1,2,5\n",
    )
    demographics = AdniExport(tmp_path)
    from mrpipe.datasets.adni.forms.clinical import _demographics

    cohort = pl.DataFrame(
        {"rid": [7], "visit_month": [0], "visit_date": [date(2010, 7, 1)]},
        schema_overrides={"rid": pl.Int32, "visit_month": pl.Int32},
    )
    _, frame = _demographics(demographics, cohort, "baseline", "PTDEMOG")
    assert frame["age"][0] == pytest.approx(70.0, abs=0.1)
    assert demographics.require(PTDEMOG)["PTGENDER"][0] == 0


@pytest.mark.parametrize(
    ("name", "ingredient"),
    [
        ("Lipitor 20 mg", "atorvastatin"),
        ("ATORVASTATIN CALCIUM", "calcium"),
        ("Vit. D", "vitamin_d"),
        ("vitamin E 400 IU", "vitamin_e"),
        ("Zestoretic", "lisinopril"),
        ("Zestoretic", "hydrochlorothiazide"),
        ("ASA 81", "aspirin"),
        ("ARICEPT", "donepezil"),
    ],
)
def test_medication_names_map_to_ingredients(name: str, ingredient: str) -> None:
    frame = pl.DataFrame({"CMMED": [name, "placebo", None]})
    assert frame.select(drugs.names_any("CMMED", ingredient))[:, 0].to_list() == [True, False, False]


def test_dementia_drugs_are_excluded_by_default(adni_exports: dict[str, Path]) -> None:
    raw = adni_exports["2025"]
    cohort = build_cohort(raw, AdniOptions()).samples
    without, few = clinical_features(AdniExport(raw), cohort, AdniOptions())
    with_them, more = clinical_features(AdniExport(raw), cohort, AdniOptions(dementia_drugs=True))
    extra = {f.name for f in with_them} - {f.name for f in without}
    assert extra == {f"drug_{d}" for d in drugs.DEMENTIA_DRUGS}
    assert more.select(sorted(extra)).sum().sum_horizontal()[0] > 0
    # The number of medications does not count them either.
    assert (more["n_medications"].sum() or 0) > (few["n_medications"].sum() or 0)
    assert not any(d in f.description for f in without for names in drugs.DEMENTIA_DRUGS.values() for d in names)


@pytest.mark.parametrize("profile", ["corrected", "paper"])
def test_identifiers_dates_form_metadata_and_onset_years_are_never_features(
    adni_exports: dict[str, Path], profile: str
) -> None:
    for raw in adni_exports.values():
        options = AdniOptions(profile=profile)
        cohort = build_cohort(raw, options).samples
        for build in (clinical_features, biospecimen_features):
            declared, _ = build(AdniExport(raw), cohort, options)
            assert declared
            if profile == "paper":
                assert not [f.name for f in declared if is_forbidden(f.name)]
            for f in declared:
                columns = {c.strip() for c in f.source_column.split(",")}
                assert not columns & {"PTCOGBEG", "PTADDX", "PTADBEG", "RID", "PTID", "SITEID", "LANGUAGE_CODE"}
    assert all(
        is_forbidden(c) for c in ("PTCOGBEG", "ptaddx", "PTADBEG2", "USERDATE2", "DD_CRF_VERSION_LABEL", "VISCODE2")
    )


def test_paper_profile_infers_column_types_as_in_the_authors_code(adni_exports: dict[str, Path]) -> None:
    """Columns with more than two distinct numbers (including −4 and mixed units) are numeric, others categorical."""
    raw = adni_exports["2025"]
    options = AdniOptions(profile="paper")
    cohort = build_cohort(raw, options).samples
    declared, frame = clinical_features(AdniExport(raw), cohort, options)
    kinds = {f.name: f.levels for f in declared}
    assert kinds["VSWEIGHT"] == ()
    assert kinds["NXGAIT"] == ()
    assert (frame["NXGAIT"] == -4).any()
    assert len(kinds["PTGENDER"]) == 2
    assert len(kinds["CMMED"]) > 5
    assert frame["VSWEIGHT"].max() > 150  # type: ignore[operator]


def test_apoe_is_read_from_genotype_and_from_allele_columns(adni_exports: dict[str, Path]) -> None:
    new = AdniExport(adni_exports["2025"]).require(APOERES)
    old = AdniExport(adni_exports["old"]).require(APOERES)
    assert new["GENOTYPE"].null_count() == 0
    assert old["GENOTYPE"].null_count() == len(old)
    assert new["GENOTYPE"].to_list() == [f"{a}/{b}" for a, b in zip(old["APGEN1"], old["APGEN2"], strict=True)]


def test_out_of_range_csf_is_flagged_from_text_comment_or_number(adni_exports: dict[str, Path]) -> None:
    flags = {}
    for layout, raw in adni_exports.items():
        cohort = build_cohort(raw, AdniOptions()).samples
        _, frame = biospecimen_features(AdniExport(raw), cohort, AdniOptions())
        flags[layout] = frame["ABETA42_limit"]
        above = frame.filter(pl.col("ABETA42_limit") == 2)["ABETA42"]
        assert len(above) > 0
        assert (above == 1700).all() if layout == "old" else (above > 1700).all()
    assert flags["old"].equals(flags["2025"])


def test_quality_control_rows_of_batemanlab_are_ignored(adni_exports: dict[str, Path]) -> None:
    frame = AdniExport(adni_exports["2025"]).require(BATEMAN)
    assert 999999 not in frame["rid"].to_list()
    cohort = build_cohort(adni_exports["2025"], AdniOptions()).samples
    options = AdniOptions(plasma_abeta=True, plasma_nfl=True, isoprostane=True)
    declared, values_of = biospecimen_features(AdniExport(adni_exports["2025"]), cohort, options)
    names = [f.name for f in declared]
    assert names[-4:] == ["plasma_abeta42_40", "plasma_nfl", "urine_8_iso_pgf2a", "urine_8_12_iso_ipf2a"]
    assert values_of["plasma_abeta42_40"].drop_nulls().is_between(0.05, 0.2).all()
    assert values_of["plasma_abeta42_40"].count() > 10


def test_a_requested_optional_table_must_exist(adni_export: Path) -> None:
    table_path(adni_export, "batemanlab").unlink()
    check(DATASET, adni_export, {})
    assert "batemanlab_ddMonYYYY.csv" in faults_of(adni_export, plasma_abeta=True)


def test_missing_codes_never_reach_a_feature(adni_exports: dict[str, Path]) -> None:
    for raw in adni_exports.values():
        options = AdniOptions()
        cohort = build_cohort(raw, options).samples
        for build in (clinical_features, biospecimen_features):
            declared, frame = build(AdniExport(raw), cohort, options)
            for f in declared:
                column = frame[f.name].drop_nulls().cast(pl.Float64)
                assert column.is_finite().all(), f.name
                if f.levels:
                    assert column.is_between(0, len(f.levels) - 1).all(), f.name
                else:
                    assert (column >= 0).all(), f.name
                    assert not column.is_in([-4.0, -1.0, 9999.0, 999999.0]).any(), f.name


def test_number_of_clinical_features() -> None:
    assert len(HISTORY) == 19
    assert len(QUANTITIES) == 8
    assert len(drugs.INGREDIENTS) >= 50


def test_older_elecsys_releases_are_found_by_their_names(tmp_path: Path) -> None:
    write(
        tmp_path,
        "UPENNBIOMK9_04_19_17.csv",
        "RID,VISCODE2,EXAMDATE,ABETA,TAU,PTAU,COMMENT\n2,bl,2006-01-01,>1700,<80,8.1,\n",
    )
    write(
        tmp_path,
        "UPENNBIOMK10_01Jan2020.csv",
        "RID,VISCODE2,EXAMDATE,ABETA,TAU,PTAU,COMMENT\n2,bl,2006-01-01,>1700,<80,8.1,\n",
    )
    frame = AdniExport(tmp_path).require(ELECSYS)
    assert frame.select("ABETA42", "ABETA42.limit", "TAU", "TAU.limit").row(0) == (1700.0, 1, 80.0, -1)


def test_diagnoses_can_be_read_from_adnimerge(adni_export: Path) -> None:
    dx = diagnoses(AdniExport(adni_export), "dxsum")
    names = {0: "CN", 1: "MCI", 2: "Dementia", None: ""}
    rows = dx.with_columns(pl.col("dx").replace_strict(names, return_dtype=pl.String).alias("DX"))
    rows.select(
        pl.col("rid").alias("RID"), pl.col("viscode").alias("VISCODE"), pl.col("date").alias("EXAMDATE"), "DX"
    ).write_csv(adni_export / "ADNIMERGE_01Jan2025.csv")
    assert (
        build_cohort(adni_export, AdniOptions(label_source="adnimerge"))
        .labels["diagnosis"]
        .equals(build_cohort(adni_export, AdniOptions()).labels["diagnosis"])
    )


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "X"])
def test_row_numbers_and_blanks_of_other_programs_are_no_features(adni_export: Path, index: str) -> None:
    options = AdniOptions(profile="paper")
    cohort = build_cohort(adni_export, options).samples
    names = [f.name for f in clinical_features(AdniExport(adni_export), cohort, options)[0]]
    _, frame = clinical_features(AdniExport(adni_export), cohort, options)
    for path in adni_export.glob("*.csv"):
        table = pl.read_csv(path, infer_schema=False)
        table.with_row_index(index, offset=1).write_csv(path, null_value="NA")
    declared, again = clinical_features(AdniExport(adni_export), cohort, options)
    assert [f.name for f in declared] == names
    assert again.equals(frame)
