"""ADNI's tables: every layout and drift case, and the faults that are named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.export import AdniExport, diagnoses, find_table
from mrpipe.datasets.adni.forms.biospecimen import biospecimen_features
from mrpipe.datasets.adni.forms.clinical import clinical_features
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import BATEMAN, DXSUM, ELECSYS, MEDHIST, NFL, RECCMEDS, VITALS
from mrpipe.errors import DataError
from mrpipe.stages.check import check
from tests.datasets.adni.adni_toy import edit, faults_of, table_path, write

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


def test_of_one_date_the_newest_name_counts(tmp_path: Path) -> None:
    """A full download holds a table and its predecessors."""
    for name in ("UPENNBIOMK9", "UPENNBIOMK10", "UPENNBIOMK12_2020", "UPENNBIOMK_ROCHE_ELECSYS"):
        write(tmp_path, f"{name}_09May2024.csv", "RID\n1\n")
        found = find_table(tmp_path, ELECSYS)
        assert found is not None
        assert found.name == f"{name}_09May2024.csv"
    for name in ("ADNI_BLENNOWPLASMANFL", "ADNI_BLENNOWPLASMANFLLONG"):
        write(tmp_path, f"{name}_09May2024.csv", "RID\n1\n")
        found = find_table(tmp_path, NFL)
        assert found is not None
        assert found.name == f"{name}_09May2024.csv"


@pytest.mark.parametrize(
    ("stem", "suffixes", "option", "fault"),
    [
        ("batemanlab", ["_20190621", "_20221118"], "plasma_abeta", "one newest file of batemanlab"),
        ("ADNI_BLENNOWPLASMANFL", [""], "plasma_nfl", "column 'PLASMA_NFL': expected this column"),
        ("ISOPROSTANE", [""], "isoprostane", "column 'ISO8PGF2A': expected this column"),
    ],
)
def test_a_table_that_nobody_asks_for_is_not_read(
    adni_export: Path, stem: str, suffixes: list[str], option: str, fault: str
) -> None:
    before = build_cohort(adni_export, AdniOptions()).samples
    for path in adni_export.rglob(f"*{stem}*.csv"):
        path.unlink()
    for suffix in suffixes:
        write(adni_export, f"{stem}{suffix}_09May2024.csv", "RID,VISCODE2,EXAMDATE\n2,bl,2006-01-02\n")
    check(DATASET, adni_export, {})
    assert build_cohort(adni_export, AdniOptions()).samples.equals(before)
    with pytest.raises(DataError, match=fault):
        check(DATASET, adni_export, {option: True})


def test_all_layouts_give_the_same_samples_labels_and_features(adni_exports: dict[str, Path]) -> None:
    options = AdniOptions()
    reference = None
    for layout, raw in adni_exports.items():
        assert AdniExport(raw).layout() == layout
        cohort = build_cohort(raw, options)
        _, clinical = clinical_features(AdniExport(raw), cohort.samples, options)
        _, biospecimen = biospecimen_features(AdniExport(raw), cohort.samples, options)
        # The old layout writes `>1700` where the later ones have a number; the flags agree.
        capped = biospecimen.select(pl.exclude("ABETA42", "TAU", "PTAU", "PTAU_ABETA42", "ABETA42_40"))
        got = (cohort.samples, cohort.labels["diagnosis"], clinical, capped)
        if reference is None:
            reference = got
        for a, b in zip(got, reference, strict=True):
            assert a.sort(a.columns[0]).equals(b.sort(b.columns[0]), null_equal=True), layout


def test_columns_in_any_order_and_case_and_with_strangers(adni_export: Path) -> None:
    cohort = build_cohort(adni_export, AdniOptions()).samples
    _, before = clinical_features(AdniExport(adni_export), cohort, AdniOptions())
    path = table_path(adni_export, "VITALS")
    frame = pl.read_csv(path, infer_schema=False)
    mixed = frame.select(reversed(frame.columns)).rename({c: c.title() for c in frame.columns if c != "VSPULSE"})
    mixed.with_columns(pl.lit("x").alias("NEWCOLUMN")).write_csv(path, quote_style="always", line_terminator="\r\n")
    _, after = clinical_features(AdniExport(adni_export), cohort, AdniOptions())
    assert after.equals(before)


def test_latin1_text_is_read_and_utf8_too(adni_exports: dict[str, Path]) -> None:
    for layout in ("old", "2025"):
        frame = AdniExport(adni_exports[layout]).require(RECCMEDS)
        assert "café extract" in frame["CMMED"].to_list()


def test_published_column_counts_of_the_new_layout(adni_exports: dict[str, Path]) -> None:
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
    got = {n: len(pl.read_csv(table_path(adni_exports["2025"], n), n_rows=0).columns) for n in published}
    assert got == published


def test_ptid_is_absent_in_the_old_layout_and_found_through_the_roster(
    adni_exports: dict[str, Path], tmp_path: Path
) -> None:
    raw = Path(shutil.copytree(adni_exports["old"], tmp_path / "raw"))
    assert "PTID" not in pl.read_csv(table_path(raw, "VITALS"), n_rows=0).columns
    table_path(raw, "ROSTER").unlink()
    with pytest.raises(DataError, match="none of the tables has PTID"):
        build_cohort(raw, AdniOptions())


def test_blank_visit_dates_are_filled_from_other_tables(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    edit(path, VISDATE=pl.lit(""))
    read = AdniExport(adni_export)
    assert read.require(VITALS)["date"].null_count() == len(read.require(VITALS))
    timed = read.timed(VITALS)
    assert timed is not None
    assert timed["date"].null_count() < 0.1 * len(timed)


# --- faults -------------------------------------------------------------------------------------------------------


def test_every_missing_table_is_named_at_once_with_its_place_at_the_provider(adni_export: Path) -> None:
    for name in ("MEDHIST", "VITALS", "APOERES"):
        table_path(adni_export, name).unlink()
    message = faults_of(adni_export)
    assert message.startswith("3 faults")
    for name in ("MEDHIST", "VITALS", "APOERES"):
        assert f"{name}_ddMonYYYY.csv: expected the table {name}" in message
    assert "Medical History > Vital Signs" in message


def test_missing_columns_of_several_tables_are_named_at_once(adni_export: Path) -> None:
    for name, column in (("MEDHIST", "MH16SMOK"), ("NEUROEXM", "NXGAIT"), ("UPENNBIOMK_ROCHE_ELECSYS", "ABETA42")):
        path = table_path(adni_export, name)
        pl.read_csv(path, infer_schema=False).drop(column).write_csv(path)
    message = faults_of(adni_export)
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
    adni_export: Path, table: str, column: str, value: str, expected: str | None
) -> None:
    path = table_path(adni_export, table)
    row = pl.int_range(pl.len()) == 2
    edit(path, **{column: pl.when(row).then(pl.lit(value)).otherwise(pl.col(column))})
    if expected is None:
        # The PTID still says who it is.
        check(DATASET, adni_export, {})
    else:
        assert re.search(expected, faults_of(adni_export))


def test_the_row_of_a_fault_is_that_of_the_file(tmp_path: Path) -> None:
    """Blank lines, and rows that are left out, are counted."""
    header = "RID,VISCODE2,EXAMDATE,ABETA_4240_STANDARDIZED,QC_STATUS,INJECTION\n"
    rows = "999999,bl,1/2/2006,0.1,Passed,a\n\n2,bl,1/2/2006,0.1,Passed,a\n3,bl,1/2/2006,many,Passed,a\n"
    write(tmp_path, "batemanlab_20221118.csv", header + rows)
    with pytest.raises(DataError, match=r"row 4: expected a number.*found 'many'"):
        AdniExport(tmp_path).require(BATEMAN)
    write(tmp_path, "DXSUM_01Jan2025.csv", "RID,VISCODE2,EXAMDATE,DIAGNOSIS\n2,bl,2006-01-02,1\n\n3,bl,2006-01-02,9\n")
    (tmp_path / "batemanlab_20221118.csv").unlink()
    with pytest.raises(DataError, match="column 'DIAGNOSIS', row 3"):
        diagnoses(AdniExport(tmp_path), "dxsum")


def test_the_old_five_level_coding_of_diagnosis_is_refused(adni_export: Path) -> None:
    edit(table_path(adni_export, "DXSUM"), DIAGNOSIS=pl.col("DIAGNOSIS").replace({"2": "5", "3": "4"}))
    assert "EMCI, 3 LMCI" in faults_of(adni_export)


def test_codes_outside_the_list_are_missing_and_noted(adni_export: Path) -> None:
    path = table_path(adni_export, "MEDHIST")
    edit(path, MH4CARD=pl.when(pl.int_range(pl.len()) < 2).then(pl.lit("2")).otherwise(pl.col("MH4CARD")))
    notes = check(DATASET, adni_export, {})["notes"]
    assert any("MH4CARD: 2 values outside the code list (2)" in n for n in notes)
    assert AdniExport(adni_export).require(MEDHIST)["MH4CARD"][:2].to_list() == [None, None]


def test_neither_rid_nor_ptid_is_a_fault(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    pl.read_csv(path, infer_schema=False).drop("RID", "PTID").write_csv(path)
    assert "column 'RID': expected this column, or PTID; found neither" in faults_of(adni_export)


def test_rid_is_read_from_ptid_where_it_is_absent(adni_export: Path) -> None:
    before = AdniExport(adni_export).require(VITALS)
    path = table_path(adni_export, "VITALS")
    pl.read_csv(path, infer_schema=False).drop("RID").write_csv(path)
    assert AdniExport(adni_export).require(VITALS)["rid"].equals(before["rid"])
