"""Tables of ADNI exports: file names, layouts, drift between releases, and error messages."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.cohort import build_cohort, diagnoses
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.biospecimen import biospecimen_features
from mrpipe.datasets.adni.forms.clinical import clinical_features
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import BATEMAN, DXSUM, ELECSYS, MEDHIST, NFL, RECCMEDS, VITALS, LoniTable
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
        "VITALS_09MAY2024.CSV",
        "VITALS_09May2024.csv.gz",
    ],
)
def test_a_table_is_found_by_every_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, "RID\n1\n")
    write(tmp_path, "VITALS_DICT_09May2024.csv", "RID\n1\n")
    write(tmp_path, "NOVITALSATALL.csv", "RID\n1\n")
    found = AdniExport(tmp_path).path(VITALS)
    assert found is not None
    assert found.name == name


def test_the_file_with_the_newest_date_is_used(tmp_path: Path) -> None:
    for name in (
        "DXSUM_PDXCONV_ADNIALL_30Dec2019.csv",
        "DXSUM_PDXCONV_22Apr2024.csv",
        "DXSUM_2024-05-01.csv",
        "DXSUM_PDXCONV_03Jan2025.csv",
        "DXSUM.csv",
    ):
        write(tmp_path, name, "RID\n1\n")
    found = AdniExport(tmp_path).path(DXSUM)
    assert found is not None
    assert found.name == "DXSUM_PDXCONV_03Jan2025.csv"
    # A second download is no ambiguity, unless its content differs.
    write(tmp_path, "DXSUM_PDXCONV_03Jan2025 (1).csv", "RID\n1\n")
    assert AdniExport(tmp_path).path(DXSUM) is not None
    write(tmp_path, "All_Subjects_DXSUM_PDXCONV_03Jan2025.csv", "RID\n2\n")
    with pytest.raises(DataError, match="a single newest file of DXSUM"):
        AdniExport(tmp_path).path(DXSUM)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (ELECSYS, ("UPENNBIOMK9_04_19_17", "UPENNBIOMK10_07_29_19", "UPENNBIOMK12_2020", "UPENNBIOMK_ROCHE_ELECSYS")),
        (NFL, ("ADNI_BLENNOWPLASMANFL", "ADNI_BLENNOWPLASMANFLLONG")),
        (BATEMAN, ("batemanlab_ADNI_Plasma", "batemanlab_20190621", "batemanlab_20221118")),
    ],
)
def test_an_older_assay_or_version_is_never_preferred(table: LoniTable, names: tuple[str, ...], tmp_path: Path) -> None:
    """Each name that is preferred is that of a file with an older date."""
    for i, name in enumerate(names):
        write(tmp_path, f"{name}_{28 - i}Dec2025.csv", "RID\n1\n")
        found = AdniExport(tmp_path).path(table)
        assert found is not None
        assert found.name == f"{name}_{28 - i}Dec2025.csv"


def test_two_assays_are_noted(adni_export: Path) -> None:
    columns = "RID,VISCODE2,EXAMDATE,ABETA,TAU,PTAU,COMMENT\n"
    write(adni_export, "UPENNBIOMK9_30Dec2026.csv", f"{columns}2,bl,2006-01-01,>1700,<80,8.1,\n")
    checked = DATASET.check(adni_export, AdniOptions())
    read = table_path(adni_export, "ELECSYS").name
    assert any(
        n.startswith(f"{read} is read") and "UPENNBIOMK9_30Dec2026.csv (another assay" in n for n in checked.notes
    )
    assert read in checked.unused["UPENNBIOMK9_30Dec2026.csv"]
    _, frame = biospecimen_features(
        AdniExport(adni_export), build_cohort(adni_export, AdniOptions()).samples, AdniOptions()
    )
    assert frame["ABETA42"].n_unique() > 5


def test_a_newer_file_with_few_of_the_participants_is_an_error(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    frame = pl.read_csv(path, infer_schema=False)
    rids = frame["RID"].unique(maintain_order=True)
    newer = adni_export / "VITALS_30Dec2026.csv"
    frame.filter(pl.col("RID").is_in(rids[:9].to_list())).write_csv(newer)
    message = faults_of(adni_export)
    assert f"9 participants; {path.name} (not read) has {len(rids)}, {len(rids) - 9} not in it" in message
    assert "move the file that you do not want to use out of the export" in message
    # A few may be gone.
    frame.filter(pl.col("RID").is_in(rids[5:].to_list())).write_csv(newer)
    notes = check(DATASET, adni_export, {})["notes"]
    assert any(f"{path.name} (not read) has {len(rids)}, 5 not in it" in n for n in notes)


@pytest.mark.parametrize(
    ("stem", "suffixes", "option", "fault"),
    [
        ("batemanlab", ["_20221118"], "plasma_abeta", "column 'ABETA_4240_STANDARDIZED': expected this column"),
        ("ADNI_BLENNOWPLASMANFL", [""], "plasma_nfl", "column 'PLASMA_NFL': expected this column"),
        ("ISOPROSTANE", [""], "isoprostane", "column 'ISO8PGF2A': expected this column"),
    ],
)
def test_an_optional_table_is_not_read_unless_requested(
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


def test_gzipped_tables_and_names_in_upper_case_are_read(adni_export: Path) -> None:
    expected = build_cohort(adni_export, AdniOptions())
    for i, path in enumerate(sorted(adni_export.rglob("*.csv"))):
        if i % 2:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        else:
            path.rename(path.with_name(path.name.upper()))
    assert build_cohort(adni_export, AdniOptions()).samples.equals(expected.samples)
    check(DATASET, adni_export, {})


def test_all_layouts_give_the_same_samples_labels_and_features(adni_exports: dict[str, Path]) -> None:
    options = AdniOptions()
    reference = None
    for layout, raw in adni_exports.items():
        assert AdniExport(raw).layout() == layout
        cohort = build_cohort(raw, options)
        _, clinical = clinical_features(AdniExport(raw), cohort.samples, options)
        _, biospecimen = biospecimen_features(AdniExport(raw), cohort.samples, options)
        # Out-of-range values are `>1700` in the old layout and numbers in later ones; their flags are equal.
        capped = biospecimen.select(pl.exclude("ABETA42", "TAU", "PTAU", "PTAU_ABETA42", "ABETA42_40"))
        got = (cohort.samples, cohort.labels["diagnosis"], clinical, capped)
        if reference is None:
            reference = got
        for a, b in zip(got, reference, strict=True):
            assert a.sort(a.columns[0]).equals(b.sort(b.columns[0]), null_equal=True), layout


def test_column_order_case_and_extra_columns_are_ignored(adni_export: Path) -> None:
    cohort = build_cohort(adni_export, AdniOptions()).samples
    _, before = clinical_features(AdniExport(adni_export), cohort, AdniOptions())
    path = table_path(adni_export, "VITALS")
    frame = pl.read_csv(path, infer_schema=False)
    mixed = frame.select(reversed(frame.columns)).rename({c: c.title() for c in frame.columns if c != "VSPULSE"})
    mixed.with_columns(pl.lit("x").alias("NEWCOLUMN")).write_csv(path, quote_style="always", line_terminator="\r\n")
    _, after = clinical_features(AdniExport(adni_export), cohort, AdniOptions())
    assert after.equals(before)


def test_latin1_and_utf8_are_read(adni_exports: dict[str, Path]) -> None:
    for layout in ("old", "2025"):
        frame = AdniExport(adni_exports[layout]).require(RECCMEDS)
        assert "café extract" in frame["CMMED"].to_list()


def test_simulated_tables_have_the_published_column_counts(adni_exports: dict[str, Path]) -> None:
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


def test_old_exports_get_ptids_from_the_roster(adni_exports: dict[str, Path], tmp_path: Path) -> None:
    raw = Path(shutil.copytree(adni_exports["old"], tmp_path / "raw"))
    assert "PTID" not in pl.read_csv(table_path(raw, "VITALS"), n_rows=0).columns
    table_path(raw, "ROSTER").unlink()
    with pytest.raises(DataError, match="no table with a PTID column"):
        build_cohort(raw, AdniOptions())


def test_blank_visit_dates_are_filled_from_other_tables(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    edit(path, VISDATE=pl.lit(""))
    read = AdniExport(adni_export)
    assert read.require(VITALS)["date"].null_count() == len(read.require(VITALS))
    timed = read.timed(VITALS)
    assert timed["date"].null_count() < 0.1 * len(timed)


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_missing_table_costs_its_features_and_is_reported(adni_export: Path) -> None:
    options = AdniOptions()
    cohort = build_cohort(adni_export, options).samples
    before, _ = clinical_features(AdniExport(adni_export), cohort, options)
    for name in ("MEDHIST", "VITALS", "APOERES"):
        table_path(adni_export, name).unlink()
    result = check(DATASET, adni_export, {})
    (note,) = (n for n in result["notes"] if n.startswith("absent tables"))
    assert "VITALS (Medical History > Vital Signs)" in note
    assert "MEDHIST" in note
    assert "APOERES" in note
    assert result["modalities"] == ["genomic", "clinical", "biospecimen"]
    after, _ = clinical_features(AdniExport(adni_export), cohort, options)
    assert {f.source_file.split("_")[2] for f in before} - {f.source_file.split("_")[2] for f in after} == {
        "MEDHIST",
        "VITALS",
    }
    declared, _ = biospecimen_features(AdniExport(adni_export), cohort, options)
    assert {f.name for f in declared} == {"ABETA42", "ABETA40", "TAU", "PTAU", "ABETA42_40", "PTAU_ABETA42"} | {
        f"{a}_limit" for a in ("ABETA42", "TAU", "PTAU")
    }


def test_invalid_labels_are_reported_beside_a_missing_table(adni_export: Path) -> None:
    for path in adni_export.rglob("*ISOPROSTANE*.csv"):
        path.unlink()
    edit(table_path(adni_export, "DXSUM"), DIAGNOSIS=pl.lit("7"))
    message = faults_of(adni_export, isoprostane=True)
    assert message.startswith("2 errors")
    assert "expected the table ISOPROSTANE" in message
    assert "expected codes 1, 2, 3; found a number" in message


def test_missing_columns_of_several_tables_are_reported_at_once(adni_export: Path) -> None:
    for name, column in (("MEDHIST", "MH16SMOK"), ("NEUROEXM", "NXGAIT"), ("UPENNBIOMK_ROCHE_ELECSYS", "ABETA42")):
        path = table_path(adni_export, name)
        pl.read_csv(path, infer_schema=False).drop(column).write_csv(path)
    message = faults_of(adni_export)
    assert all(f"column '{c}': expected this column" in message for c in ("MH16SMOK", "NXGAIT", "ABETA42"))


@pytest.mark.parametrize(
    ("table", "column", "value", "expected"),
    [
        ("VITALS", "VSWEIGHT", "heavy", r"column 'VSWEIGHT', line 4: expected a number; found text of 5 characters"),
        ("MEDHIST", "MHPSYCH", "Yes", r"column 'MHPSYCH', line 4: expected codes 0, 1; found text of 3 characters"),
        ("UPENNBIOMK_ROCHE_ELECSYS", "TAU", ">", r"column 'TAU', line 4: expected a number, >LIMIT, <LIMIT"),
        ("DXSUM", "RID", "abc", None),
        ("DXSUM", "PTID", "2_S_13", r"column 'PTID', line 4: expected SSS_S_RRRR; found '•_S_••'"),
        ("APOERES", "GENOTYPE", "3/5", r"expected alleles 2, 3 or 4; found text of 3 characters"),
        ("DXSUM", "DIAGNOSIS", "7", r"column 'DIAGNOSIS', line 4: expected codes 1, 2, 3; found a number"),
    ],
)
def test_an_invalid_value_is_reported_with_its_line(
    adni_export: Path, table: str, column: str, value: str, expected: str | None
) -> None:
    path = table_path(adni_export, table)
    row = pl.int_range(pl.len()) == 2
    edit(path, **{column: pl.when(row).then(pl.lit(value)).otherwise(pl.col(column))})
    if expected is None:
        # The participant is identified by the PTID.
        check(DATASET, adni_export, {})
    else:
        assert re.search(expected, faults_of(adni_export))


def test_errors_report_the_line_in_the_file(tmp_path: Path) -> None:
    """Lines are those of an editor: the header, blank lines and skipped rows count."""
    header = "RID,VISCODE2,EXAMDATE,ABETA_4240_STANDARDIZED,QC_STATUS,INJECTION\n"
    rows = "999999,bl,1/2/2006,0.1,Passed,a\n\n2,bl,1/2/2006,0.1,Passed,a\n3,bl,1/2/2006,many,Passed,a\n"
    write(tmp_path, "batemanlab_20221118.csv", header + rows)
    with pytest.raises(DataError, match=r"line 5: expected a number.*found text of 4 characters"):
        AdniExport(tmp_path).require(BATEMAN)
    write(tmp_path, "DXSUM_01Jan2025.csv", "RID,VISCODE2,EXAMDATE,DIAGNOSIS\n2,bl,2006-01-02,1\n\n3,bl,2006-01-02,9\n")
    (tmp_path / "batemanlab_20221118.csv").unlink()
    with pytest.raises(DataError, match="column 'DIAGNOSIS', line 4"):
        diagnoses(AdniExport(tmp_path), "dxsum")


def test_the_old_five_level_coding_of_diagnosis_is_rejected(adni_export: Path) -> None:
    edit(table_path(adni_export, "DXSUM"), DIAGNOSIS=pl.col("DIAGNOSIS").replace({"2": "5", "3": "4"}))
    assert "EMCI, 3 LMCI" in faults_of(adni_export)


def test_unknown_codes_become_missing_and_are_noted(adni_export: Path) -> None:
    path = table_path(adni_export, "MEDHIST")
    edit(path, MH4CARD=pl.when(pl.int_range(pl.len()) < 2).then(pl.lit("2")).otherwise(pl.col("MH4CARD")))
    notes = check(DATASET, adni_export, {})["notes"]
    assert any("MH4CARD: 2 values outside the code list (2)" in n for n in notes)
    assert AdniExport(adni_export).require(MEDHIST)["MH4CARD"][:2].to_list() == [None, None]


def test_a_table_without_rid_and_ptid_is_an_error(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    pl.read_csv(path, infer_schema=False).drop("RID", "PTID").write_csv(path)
    assert "column 'RID': expected this column, or PTID; found neither" in faults_of(adni_export)


def test_rid_is_derived_from_ptid_if_absent(adni_export: Path) -> None:
    before = AdniExport(adni_export).require(VITALS)
    path = table_path(adni_export, "VITALS")
    pl.read_csv(path, infer_schema=False).drop("RID").write_csv(path)
    assert AdniExport(adni_export).require(VITALS)["rid"].equals(before["rid"])


# --- losses, contradictions and choices -----------------------------------------------------------------------------


def notes_of(raw: Path, **settings: object) -> str:
    return "\n".join(check(DATASET, raw, settings)["notes"])


def test_codes_that_are_not_in_the_list_never_mean_no(adni_export: Path) -> None:
    edit(table_path(adni_export, "PTDEMOG"), PTRACCAT=pl.lit("1:7:99"))
    assert "column PTRACCAT: " in (notes := notes_of(adni_export))
    assert "values outside the code list (99) make the options that are not selected unknown" in notes
    _, frame = clinical_features(
        AdniExport(adni_export), build_cohort(adni_export, AdniOptions()).samples, AdniOptions()
    )
    races = frame.select("^race_.*$").unique().row(0, named=True)
    assert {k for k, v in races.items() if v == 1} == {"race_american_indian", "race_unknown"}
    assert {v for v in races.values() if v != 1} == {None}


@pytest.mark.parametrize("code", ["-4", "-1", "-1.0"])
def test_missing_codes_are_no_diagnosis(adni_export: Path, code: str) -> None:
    path = table_path(adni_export, "DXSUM")
    edit(path, DIAGNOSIS=pl.when(pl.int_range(pl.len()) % 7 == 0).then(pl.lit(code)).otherwise(pl.col("DIAGNOSIS")))
    coded = diagnoses(AdniExport(adni_export), "dxsum")["dx"]
    edit(path, DIAGNOSIS=pl.col("DIAGNOSIS").replace({code: ""}))
    assert coded.equals(diagnoses(AdniExport(adni_export), "dxsum")["dx"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (">150", "limits instead of values (>150) read as the limit"),
        ("1,500", "expected a number; found a number"),
        ("70_5", "expected a number; found text of 4 characters"),
    ],
)
def test_unusual_numbers_are_noted_or_errors(adni_export: Path, value: str, message: str) -> None:
    edit(table_path(adni_export, "VITALS"), VSWEIGHT=pl.lit(value))
    assert message in (notes_of(adni_export) if value == ">150" else faults_of(adni_export))


def test_two_columns_of_one_name_are_an_error(adni_export: Path) -> None:
    edit(table_path(adni_export, "VITALS"), vsweight=pl.lit("70"))
    assert "column 'VSWEIGHT': expected this column once" in faults_of(adni_export)


def test_rids_are_read_from_numbers_with_a_decimal_point(adni_export: Path) -> None:
    before = AdniExport(adni_export).require(VITALS)
    edit(table_path(adni_export, "VITALS"), RID=pl.col("RID") + ".0", PTID=pl.col("PTID").str.to_lowercase())
    assert AdniExport(adni_export).require(VITALS).equals(before)


def test_a_rid_that_is_not_in_the_ptid_is_noted(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    edit(path, PTID=pl.when(pl.int_range(pl.len()) < 2).then(pl.lit("002_S_9876")).otherwise(pl.col("PTID")))
    notes = notes_of(adni_export)
    assert "2 rows have a RID that is not the last part of their PTID" in notes
    assert "participants have several PTIDs" in notes
    assert "9876" not in notes


def test_a_blank_rid_is_an_error(adni_export: Path) -> None:
    path = table_path(adni_export, "VITALS")
    first = pl.int_range(pl.len()) == 0
    edit(path, **{c: pl.when(first).then(pl.lit("")).otherwise(pl.col(c)) for c in ("RID", "PTID")})
    assert "column 'RID', line 2: expected a roster number; found an empty field" in faults_of(adni_export)


def test_utf16_tables_are_read_and_other_encodings_are_noted(adni_export: Path) -> None:
    before = AdniExport(adni_export).require(RECCMEDS)
    path = table_path(adni_export, "RECCMEDS")
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-16")
    assert AdniExport(adni_export).require(RECCMEDS).equals(before)
    path.write_text(text, encoding="cp1252")
    assert AdniExport(adni_export).require(RECCMEDS).equals(before)
    assert f"{path.name} is not UTF-8; it was read as Windows-1252" in notes_of(adni_export)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_the_paper_profile_reads_every_encoding_and_requested_table(adni_export: Path, encoding: str) -> None:
    options = AdniOptions(profile="paper", plasma_abeta=True, plasma_nfl=True, isoprostane=True)
    cohort = build_cohort(adni_export, options).samples
    path = table_path(adni_export, "RECCMEDS")
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    declared, frame = biospecimen_features(AdniExport(adni_export), cohort, options)
    names = {"ABETA42", "ISO8PGF2A", "ISO812IPF2A", "PLASMA_NFL", "ABETA_4240_STANDARDIZED"}
    assert names <= {f.name for f in declared}
    assert all(frame[n].count() > 5 for n in names)
    declared, _ = clinical_features(AdniExport(adni_export), cohort, options)
    assert any("café extract" in f.levels for f in declared if f.name == "CMMED")
    assert "The paper also has image_scan=latest" in notes_of(
        adni_export, profile="paper", plasma_abeta=True, isoprostane=True
    )


def test_check_reports_samples_by_modality_and_files_that_are_not_read(adni_export: Path) -> None:
    write(adni_export, "RECMHIST_15Nov2025.csv", "RID\n1\n")
    rid = AdniExport(adni_export).require(VITALS)["rid"][0]
    write(adni_export, "VITALS_01Jan2020.csv", f"RID\n{rid}\n")
    options = AdniOptions(label="baseline_dx")
    checked = DATASET.check(adni_export, options)
    cohort = build_cohort(adni_export, options).samples
    for name, build in (("clinical", clinical_features), ("biospecimen", biospecimen_features)):
        _, frame = build(AdniExport(adni_export), cohort, options)
        known = frame.filter(pl.any_horizontal(pl.exclude("rid").is_not_null()))
        assert set(checked.observed[name]) == set(cohort.join(known, on="rid")["sample_id"])
    assert 0 < len(checked.observed["biospecimen"]) < len(checked.observed["clinical"]) == len(cohort)
    assert checked.unused["RECMHIST_15Nov2025.csv"] == "not a table that mrpipe reads"
    assert "is read for VITALS" in checked.unused["VITALS_01Jan2020.csv"]
    assert "plasma_abeta=true" in checked.unused["batemanlab_20221118.csv"]
    assert any(n.startswith("absent optional tables: ") and "REGISTRY (visit dates" in n for n in checked.notes)
    assert any("records of" in n and "MEDHIST" in n for n in checked.notes)


def test_check_reports_a_label_policy_that_excludes_everybody(adni_export: Path) -> None:
    path = table_path(adni_export, "DXSUM")
    first = pl.int_range(pl.len()).over("RID") == 0
    edit(path, DIAGNOSIS=pl.when(first).then(pl.lit("")).otherwise(pl.col("DIAGNOSIS")))
    assert "No participants remain with label=stable_dx" in faults_of(adni_export)
    assert "No participants remain with label=baseline_dx" in faults_of(adni_export, label="baseline_dx")
