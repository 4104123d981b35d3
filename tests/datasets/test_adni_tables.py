"""ADNI's tables: every layout, drift case and missing code, each with what it must give or the fault it must be."""

from __future__ import annotations

import re
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET, values
from mrpipe.datasets.adni import clinical_medications as drugs
from mrpipe.datasets.adni.biospecimen import biospecimen_features
from mrpipe.datasets.adni.clinical import clinical_features, in_si
from mrpipe.datasets.adni.clinical_paper import is_forbidden
from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.export import Export, diagnoses, find_table
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import (
    APOERES,
    BATEMAN,
    DXSUM,
    ELECSYS,
    HISTORY,
    MEDHIST,
    PTDEMOG,
    QUANTITIES,
    RACES,
    RECCMEDS,
    VITALS,
    YES_NO,
)
from mrpipe.errors import DataError
from mrpipe.stages.check import check
from mrpipe.stages.simulate import simulate

LAYOUTS = ("old", "2024", "2025")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layout → simulated export without images, the same participants in each."""
    folder = tmp_path_factory.mktemp("adni")
    for layout in LAYOUTS:
        settings = {"n_subjects": 120, "n_snps": 96, "images": False, "layout": layout, "seed": 3}
        simulate(DATASET, folder / layout, settings)
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.fixture
def export(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the newest layout to damage."""
    return Path(shutil.copytree(exports["2025"], tmp_path / "raw"))


def table_path(raw: Path, name: str) -> Path:
    return next(p for p in sorted(raw.glob("*.csv")) if name in p.name)


def edit(path: Path, **columns: pl.Expr) -> None:
    frame = pl.read_csv(path, infer_schema=False)
    frame.with_columns(e.alias(c) for c, e in columns.items()).write_csv(path, quote_style="always")


def write(raw: Path, name: str, text: str) -> None:
    raw.mkdir(exist_ok=True)
    (raw / name).write_text(text)


def faults_of(raw: Path, **settings: object) -> str:
    with pytest.raises(DataError) as error:
        check(DATASET, raw, settings)
    return str(error.value)


def one(expression: pl.Expr, *cells: str | None, phase: str = "ADNI2") -> list[object]:
    frame = pl.DataFrame({"x": list(cells), "phase": [phase] * len(cells)}, schema_overrides={"x": pl.String})
    return frame.select(expression.alias("v"))["v"].to_list()


# --- values -------------------------------------------------------------------------------------------------------


def test_minus_four_is_missing_in_every_phase_and_minus_one_in_adni1_only() -> None:
    cells = ["-4", "-4.0", "-1", "-1.0", "0", "1", "", None]
    usual = values.is_missing_code("x", positive=False)
    assert one(usual, *cells) == [True, True, False, False, False, False, True, None]
    assert one(usual, *cells, phase="ADNI1")[:6] == [True, True, True, True, False, False]
    measured = values.is_missing_code("x", positive=True)
    for phase in ("ADNI1", "ADNI3"):
        assert one(measured, "-1", "0", "-4", "61.5", phase=phase) == [True, True, True, False]


def test_codes_are_read_padded_with_point_and_with_spaces() -> None:
    assert one(values.level_of("x", YES_NO), "1", "01", " 1 ", "1.0", "0", "00", "2", "x") == [
        1,
        1,
        1,
        1,
        0,
        0,
        None,
        None,
    ]


def test_multi_selects_with_bars_and_colons() -> None:
    got = one(values.selections("x"), "1|02", "1:2", "4|5", "5", "05|", None)
    assert got == [["1", "2"], ["1", "2"], ["4", "5"], ["5"], ["5"], None]


def test_censored_assays_give_number_and_side() -> None:
    cells = [">1700", "<80", "< 8", "<LLOQ", "<LOD", "812.5", None]
    assert one(values.number("x"), *cells) == [1700.0, 80.0, 8.0, None, None, 812.5, None]
    assert one(values.limit("x"), *cells) == [1, -1, -1, -1, -1, 0, None]


def test_dates_in_every_form_and_fuzzy_ones_to_a_year() -> None:
    cells = ["2008-05-17", "5/17/2008", "5/7/08", "--/05/2008", "--/--/2008", "", None]
    assert one(values.date("x"), *cells) == [date(2008, 5, 17), date(2008, 5, 17), date(2008, 5, 7), *[None] * 4]
    assert (
        one(values.year("x"), "--/05/2008", "--/--/2008", "2008-05-17", "2008", "9999", "-4") == [2008] * 4 + [None] * 2
    )


def test_visit_codes_of_every_phase_become_months() -> None:
    frame = pl.DataFrame(
        [
            ("sc", "sc"),
            ("bl", "bl"),
            ("v03", None),
            ("v11", None),
            ("y2", None),
            ("4_m12", None),
            ("4_bl", None),
            ("v01", "sc"),
            ("m06", "m06"),
            ("v21", "m24"),
            ("nv", "nv"),
            ("uns1", ""),
            ("init", "m48"),
            ("f", None),
        ],
        schema=["VISCODE", "VISCODE2"],
        orient="row",
    )
    months = frame.select(values.visit_month("VISCODE", "VISCODE2"))[:, 0].to_list()
    assert months == [0, 0, 0, 12, 24, 12, 0, 0, 6, 24, None, None, 48, 0]
    ranks = frame.select(values.visit_rank("VISCODE", "VISCODE2"))[:, 0].to_list()
    assert ranks[:3] == [0, 1, 1]


def test_phase_of_a_roster_number_and_spellings() -> None:
    numbers = pl.DataFrame({"r": [1, 1999, 2000, 2999, 3000, 5999, 6000, 9999, 10000]})
    got = numbers.select(values.original_phase(pl.col("r")))[:, 0].to_list()
    assert got == ["ADNI1", "ADNI1", "ADNIGO", "ADNIGO", "ADNI2", "ADNI2", "ADNI3", "ADNI3", "ADNI4"]
    assert one(values.phase("x"), "ADNI1", "adni 1", "ADNIGO2", "ADNI_3") == ["ADNI1", "ADNI1", "ADNI2", "ADNI3"]


# --- files and layouts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "VITALS_09May2024.csv",
        "vitals_09may2024.csv",
        "All_Subjects_VITALS_09May2024.csv",
        "My_Study_VITALS_01Jan2025.csv",
        "VITALS.csv",
    ],
)
def test_a_table_is_found_under_every_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, "RID\n1\n")
    write(tmp_path, "VITALS_DICT_09May2024.csv", "RID\n1\n")
    write(tmp_path, "NOVITALSATALL.csv", "RID\n1\n")
    found = find_table(tmp_path, VITALS)
    assert found is not None
    assert found.name == name


def test_of_several_files_the_newest_counts_by_date_not_by_name(tmp_path: Path) -> None:
    for name in (
        "DXSUM_PDXCONV_ADNIALL_30Dec2019.csv",
        "DXSUM_PDXCONV_22Apr2024.csv",
        "DXSUM_03Jan2025.csv",
        "DXSUM.csv",
    ):
        write(tmp_path, name, "RID\n1\n")
    found = find_table(tmp_path, DXSUM)
    assert found is not None
    assert found.name == "DXSUM_03Jan2025.csv"
    write(tmp_path, "All_Subjects_DXSUM_03Jan2025.csv", "RID\n1\n")
    with pytest.raises(DataError, match="one newest file of DXSUM"):
        find_table(tmp_path, DXSUM)


def test_all_layouts_give_the_same_samples_labels_and_features(exports: dict[str, Path]) -> None:
    options = AdniOptions()
    reference = None
    for layout, raw in exports.items():
        assert Export(raw).layout() == layout
        cohort = build_cohort(raw, options)
        _, clinical = clinical_features(Export(raw), cohort.samples, options)
        _, biospecimen = biospecimen_features(Export(raw), cohort.samples, options)
        # The old layout writes `>1700` where the later ones have a number; the flags agree.
        capped = biospecimen.select(pl.exclude("ABETA42", "TAU", "PTAU", "PTAU_ABETA42", "ABETA42_40"))
        got = (cohort.samples, cohort.labels["diagnosis"], clinical, capped)
        if reference is None:
            reference = got
        for a, b in zip(got, reference, strict=True):
            assert a.sort(a.columns[0]).equals(b.sort(b.columns[0]), null_equal=True), layout


def test_columns_in_any_order_and_case_and_with_strangers(export: Path) -> None:
    cohort = build_cohort(export, AdniOptions()).samples
    _, before = clinical_features(Export(export), cohort, AdniOptions())
    path = table_path(export, "VITALS")
    frame = pl.read_csv(path, infer_schema=False)
    mixed = frame.select(reversed(frame.columns)).rename({c: c.title() for c in frame.columns if c != "VSPULSE"})
    mixed.with_columns(pl.lit("x").alias("NEWCOLUMN")).write_csv(path, quote_style="always", line_terminator="\r\n")
    _, after = clinical_features(Export(export), cohort, AdniOptions())
    assert after.equals(before)


def test_latin1_text_is_read_and_utf8_too(exports: dict[str, Path]) -> None:
    for layout in ("old", "2025"):
        frame = Export(exports[layout]).require(RECCMEDS)
        assert "café extract" in frame["CMMED"].to_list()


def test_published_column_counts_of_the_new_layout(exports: dict[str, Path]) -> None:
    """raw-formats A.2 and A.3."""
    published = {
        "DXSUM": 41,
        "MEDHIST": 39,
        "NEUROEXM": 28,
        "PTDEMOG": 84,
        "RECCMEDS": 30,
        "VITALS": 26,
        "APOERES": 16,
        "UPENNBIOMK_ROCHE_ELECSYS": 13,
    }
    got = {n: len(pl.read_csv(table_path(exports["2025"], n), n_rows=0).columns) for n in published}
    assert got == published


def test_ptid_is_absent_in_the_old_layout_and_found_through_the_roster(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    raw = Path(shutil.copytree(exports["old"], tmp_path / "raw"))
    assert "PTID" not in pl.read_csv(table_path(raw, "VITALS"), n_rows=0).columns
    table_path(raw, "ROSTER").unlink()
    with pytest.raises(DataError, match="none of the tables has PTID"):
        build_cohort(raw, AdniOptions())


def test_blank_visit_dates_are_filled_from_other_tables(export: Path) -> None:
    path = table_path(export, "VITALS")
    edit(path, VISDATE=pl.lit(""))
    read = Export(export)
    assert read.require(VITALS)["date"].null_count() == len(read.require(VITALS))
    timed = read.timed(VITALS)
    assert timed is not None
    assert timed["date"].null_count() < 0.1 * len(timed)


# --- faults -------------------------------------------------------------------------------------------------------


def test_every_missing_table_is_named_at_once_with_its_place_at_the_provider(export: Path) -> None:
    for name in ("MEDHIST", "VITALS", "APOERES"):
        table_path(export, name).unlink()
    message = faults_of(export)
    assert message.startswith("3 faults")
    for name in ("MEDHIST", "VITALS", "APOERES"):
        assert f"{name}_ddMonYYYY.csv: expected the table {name}" in message
    assert "Medical History > Vital Signs" in message


def test_missing_columns_of_several_tables_are_named_at_once(export: Path) -> None:
    for name, column in (("MEDHIST", "MH16SMOK"), ("NEUROEXM", "NXGAIT"), ("UPENNBIOMK_ROCHE_ELECSYS", "ABETA42")):
        path = table_path(export, name)
        pl.read_csv(path, infer_schema=False).drop(column).write_csv(path)
    message = faults_of(export)
    assert all(f"column '{c}': expected this column" in message for c in ("MH16SMOK", "NXGAIT", "ABETA42"))


@pytest.mark.parametrize(
    ("table", "column", "value", "expected"),
    [
        ("VITALS", "VSWEIGHT", "heavy", r"column 'VSWEIGHT', row 3: expected a number; found 'heavy'"),
        ("MEDHIST", "MHPSYCH", "Yes", r"column 'MHPSYCH', row 3: expected codes 0, 1; found 'Yes'"),
        ("UPENNBIOMK_ROCHE_ELECSYS", "TAU", ">", r"column 'TAU', row 3: expected a number, >LIMIT, <LIMIT"),
        ("DXSUM", "RID", "abc", None),
        ("DXSUM", "PTID", "2_S_13", r"column 'PTID', row 3: expected SSS_S_RRRR; found '9_S_99' \(digits hidden\)"),
        ("APOERES", "GENOTYPE", "3/5", r"expected alleles 2, 3 or 4; found '3/5'"),
        ("DXSUM", "DIAGNOSIS", "7", r"column 'DIAGNOSIS', row 3: expected codes 1, 2, 3; found '7'"),
    ],
)
def test_a_value_that_cannot_be_is_a_fault_with_its_row(
    export: Path, table: str, column: str, value: str, expected: str | None
) -> None:
    path = table_path(export, table)
    row = pl.int_range(pl.len()) == 2
    edit(path, **{column: pl.when(row).then(pl.lit(value)).otherwise(pl.col(column))})
    if expected is None:
        # The PTID still says who it is.
        check(DATASET, export, {})
    else:
        assert re.search(expected, faults_of(export))


def test_the_old_five_level_coding_of_diagnosis_is_refused(export: Path) -> None:
    edit(table_path(export, "DXSUM"), DIAGNOSIS=pl.col("DIAGNOSIS").replace({"2": "5", "3": "4"}))
    assert "EMCI, 3 LMCI" in faults_of(export)


def test_codes_outside_the_list_are_missing_and_noted(export: Path) -> None:
    path = table_path(export, "MEDHIST")
    edit(path, MH4CARD=pl.when(pl.int_range(pl.len()) < 2).then(pl.lit("2")).otherwise(pl.col("MH4CARD")))
    notes = check(DATASET, export, {})["notes"]
    assert any("MH4CARD: 2 values outside the code list (2)" in n for n in notes)
    assert Export(export).require(MEDHIST)["MH4CARD"][:2].to_list() == [None, None]


def test_neither_rid_nor_ptid_is_a_fault(export: Path) -> None:
    path = table_path(export, "VITALS")
    pl.read_csv(path, infer_schema=False).drop("RID", "PTID").write_csv(path)
    assert "column 'RID': expected this column, or PTID; found neither" in faults_of(export)


def test_rid_is_read_from_ptid_where_it_is_absent(export: Path) -> None:
    before = Export(export).require(VITALS)
    path = table_path(export, "VITALS")
    pl.read_csv(path, infer_schema=False).drop("RID").write_csv(path)
    assert Export(export).require(VITALS)["rid"].equals(before["rid"])


# --- features -----------------------------------------------------------------------------------------------------


def vitals(*rows: tuple[float | None, int | None, float | None, int | None, float | None]) -> pl.DataFrame:
    schema = {
        "VSWEIGHT": pl.Float64,
        "VSWTUNIT": pl.Int8,
        "VSHEIGHT": pl.Float64,
        "VSHTUNIT": pl.Int8,
        "VSTEMP": pl.Float64,
    }
    return in_si(pl.DataFrame(list(rows), schema=schema, orient="row"))


def test_units_by_label_and_by_sanity() -> None:
    got = vitals(
        (154.0, 0, 65.0, 0, 98.6),  # pounds, inches, Fahrenheit
        (70.0, 1, 165.0, 1, 37.0),  # kilograms, centimetres, Celsius
        (66.0, 1, 65.0, 1, 97.0),  # inches labelled as centimetres
        (60.0, 0, 170.0, 0, 36.5),  # kilograms and centimetres labelled as imperial
        (5.0, 1, 30.0, 1, 20.0),  # nothing that can be
        (None, None, None, None, None),
    )
    np.testing.assert_allclose(got["weight"][:4].to_list(), [69.85, 70.0, 66.0, 60.0], atol=0.01)
    np.testing.assert_allclose(got["height"][:4].to_list(), [165.1, 165.0, 165.1, 170.0], atol=0.01)
    np.testing.assert_allclose(got["temperature"][:4].to_list(), [37.0, 37.0, 36.11, 36.5], atol=0.01)
    assert got[4:].select("weight", "height", "temperature").null_count().row(0) == (2, 2, 2)


def test_a_dose_is_zero_where_the_parent_says_no_and_a_time_since_the_end_is_unknown(exports: dict[str, Path]) -> None:
    raw = exports["2025"]
    cohort = build_cohort(raw, AdniOptions()).samples
    _, frame = clinical_features(Export(raw), cohort, AdniOptions())
    for quantity, (parent, zero) in QUANTITIES.items():
        no = frame.filter(pl.col(parent) == 0)[quantity]
        assert len(no) > 5
        assert (no == 0).all() if zero else no.null_count() == len(no)
        yes = frame.filter(pl.col(parent) == 1)[quantity].drop_nulls()
        assert (yes > 0).all()


def test_race_is_a_multi_select_and_two_answers_are_two_features(export: Path) -> None:
    edit(table_path(export, "PTDEMOG"), PTRACCAT=pl.lit("4|05"))
    cohort = build_cohort(export, AdniOptions()).samples
    _, frame = clinical_features(Export(export), cohort, AdniOptions())
    sums = frame.select(f"race_{level}" for _, level in RACES).sum().row(0, named=True)
    assert {k for k, v in sums.items() if v} == {"race_black", "race_white"}


def test_age_is_from_birth_month_to_visit(tmp_path: Path) -> None:
    write(
        tmp_path,
        "PTDEMOG_01Jan2025.csv",
        "RID,PTID,PHASE,VISCODE2,VISDATE,PTGENDER,PTDOB,PTDOBYY,PTHAND,PTMARRY,PTEDUCAT,"
        "PTNOTRT,PTHOME,PTETHCAT,PTRACCAT\n7,002_S_0007,ADNI1,sc,2010-07-01,1,07/1940,1940,1,1,16,1,1,2,5\n",
    )
    demographics = Export(tmp_path)
    from mrpipe.datasets.adni.clinical import _demographics

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
def test_medication_names_become_ingredients(name: str, ingredient: str) -> None:
    frame = pl.DataFrame({"CMMED": [name, "placebo", None]})
    assert frame.select(drugs.names_any("CMMED", ingredient))[:, 0].to_list() == [True, False, False]


def test_dementia_drugs_are_out_by_default_and_in_by_the_switch(exports: dict[str, Path]) -> None:
    raw = exports["2025"]
    cohort = build_cohort(raw, AdniOptions()).samples
    without, few = clinical_features(Export(raw), cohort, AdniOptions())
    with_them, more = clinical_features(Export(raw), cohort, AdniOptions(dementia_drugs=True))
    extra = {f.name for f in with_them} - {f.name for f in without}
    assert extra == {f"drug_{d}" for d in drugs.DEMENTIA_DRUGS}
    assert more.select(sorted(extra)).sum().sum_horizontal()[0] > 0
    # The count of medications must not give them away either.
    assert (more["n_medications"].sum() or 0) > (few["n_medications"].sum() or 0)
    assert not any(d in f.description for f in without for names in drugs.DEMENTIA_DRUGS.values() for d in names)


@pytest.mark.parametrize("profile", ["corrected", "paper"])
def test_identifiers_dates_form_metadata_and_onset_years_are_never_features(
    exports: dict[str, Path], profile: str
) -> None:
    for raw in exports.values():
        options = AdniOptions(profile=profile)
        cohort = build_cohort(raw, options).samples
        for build in (clinical_features, biospecimen_features):
            declared, _ = build(Export(raw), cohort, options)
            assert declared
            if profile == "paper":
                assert not [f.name for f in declared if is_forbidden(f.name)]
            for f in declared:
                columns = {c.strip() for c in f.source_column.split(",")}
                assert not columns & {"PTCOGBEG", "PTADDX", "PTADBEG", "RID", "PTID", "SITEID", "LANGUAGE_CODE"}
    assert all(
        is_forbidden(c) for c in ("PTCOGBEG", "ptaddx", "PTADBEG2", "USERDATE2", "DD_CRF_VERSION_LABEL", "VISCODE2")
    )


def test_paper_profile_types_columns_as_the_authors_do(exports: dict[str, Path]) -> None:
    """A.5: more than two distinct numbers are numeric (NX items once a −4 occurs, lb beside kg), others categorical."""
    raw = exports["2025"]
    options = AdniOptions(profile="paper")
    cohort = build_cohort(raw, options).samples
    declared, frame = clinical_features(Export(raw), cohort, options)
    kinds = {f.name: f.levels for f in declared}
    assert kinds["VSWEIGHT"] == ()
    assert kinds["NXGAIT"] == ()
    assert (frame["NXGAIT"] == -4).any()
    assert len(kinds["PTGENDER"]) == 2
    assert len(kinds["CMMED"]) > 5
    assert frame["VSWEIGHT"].max() > 150  # type: ignore[operator]


def test_apoe_in_both_forms(exports: dict[str, Path]) -> None:
    new = Export(exports["2025"]).require(APOERES)
    old = Export(exports["old"]).require(APOERES)
    assert new["GENOTYPE"].null_count() == 0
    assert old["GENOTYPE"].null_count() == len(old)
    assert new["GENOTYPE"].to_list() == [f"{a}/{b}" for a, b in zip(old["APGEN1"], old["APGEN2"], strict=True)]


def test_csf_beyond_the_range_has_its_flag_from_text_comment_or_number(exports: dict[str, Path]) -> None:
    flags = {}
    for layout, raw in exports.items():
        cohort = build_cohort(raw, AdniOptions()).samples
        _, frame = biospecimen_features(Export(raw), cohort, AdniOptions())
        flags[layout] = frame["ABETA42_limit"]
        above = frame.filter(pl.col("ABETA42_limit") == 2)["ABETA42"]
        assert len(above) > 0
        assert (above == 1700).all() if layout == "old" else (above > 1700).all()
    assert flags["old"].equals(flags["2025"])


def test_quality_control_rows_of_bateman_are_nobody(exports: dict[str, Path]) -> None:
    frame = Export(exports["2025"]).require(BATEMAN)
    assert 999999 not in frame["rid"].to_list()
    cohort = build_cohort(exports["2025"], AdniOptions()).samples
    options = AdniOptions(plasma_abeta=True, plasma_nfl=True, isoprostane=True)
    declared, values_of = biospecimen_features(Export(exports["2025"]), cohort, options)
    names = [f.name for f in declared]
    assert names[-4:] == ["plasma_abeta42_40", "plasma_nfl", "urine_8_iso_pgf2a", "urine_8_12_iso_ipf2a"]
    assert values_of["plasma_abeta42_40"].drop_nulls().is_between(0.05, 0.2).all()
    assert values_of["plasma_abeta42_40"].count() > 10


def test_an_optional_table_that_is_asked_for_must_be_there(export: Path) -> None:
    table_path(export, "batemanlab").unlink()
    check(DATASET, export, {})
    assert "batemanlab_ddMonYYYY.csv" in faults_of(export, plasma_abeta=True)


def test_missing_codes_never_reach_a_feature(exports: dict[str, Path]) -> None:
    for raw in exports.values():
        options = AdniOptions()
        cohort = build_cohort(raw, options).samples
        for build in (clinical_features, biospecimen_features):
            declared, frame = build(Export(raw), cohort, options)
            for f in declared:
                column = frame[f.name].drop_nulls().cast(pl.Float64)
                assert column.is_finite().all(), f.name
                if f.levels:
                    assert column.is_between(0, len(f.levels) - 1).all(), f.name
                else:
                    assert (column >= 0).all(), f.name
                    assert not column.is_in([-4.0, -1.0, 9999.0, 999999.0]).any(), f.name


def test_about_a_hundred_and_twenty_clinical_features_as_listed() -> None:
    assert len(HISTORY.split()) == 19
    assert len(QUANTITIES) == 8
    assert len(drugs.INGREDIENTS) >= 50


def test_elecsys_of_older_releases_has_other_names(tmp_path: Path) -> None:
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
    frame = Export(tmp_path).require(ELECSYS)
    assert frame.select("ABETA42", "ABETA42.limit", "TAU", "TAU.limit").row(0) == (1700.0, 1, 80.0, -1)


def test_adnimerge_is_another_source_of_diagnoses(export: Path) -> None:
    dx = diagnoses(Export(export), "dxsum")
    names = {0: "CN", 1: "MCI", 2: "Dementia", None: ""}
    rows = dx.with_columns(pl.col("dx").replace_strict(names, return_dtype=pl.String).alias("DX"))
    rows.select(
        pl.col("rid").alias("RID"), pl.col("viscode").alias("VISCODE"), pl.col("date").alias("EXAMDATE"), "DX"
    ).write_csv(export / "ADNIMERGE_01Jan2025.csv")
    assert (
        build_cohort(export, AdniOptions(label_source="adnimerge"))
        .labels["diagnosis"]
        .equals(build_cohort(export, AdniOptions()).labels["diagnosis"])
    )
