"""Tables of ADNI in other forms: some tables only, ADNIMERGE, INITHEALTH, archives, nested folders and encodings."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.datasets.adni.check import present_modalities
from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.export import AdniExport
from mrpipe.datasets.adni.forms.biospecimen import biospecimen_features
from mrpipe.datasets.adni.forms.clinical import clinical_features
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.tables import DXSUM, HISTORY, QUANTITIES, ROSTER
from mrpipe.errors import DataError
from mrpipe.schema import Checked

N = 12
OPTIONS = AdniOptions()
VISITS = (("bl", 0), ("m06", 182), ("m12", 365))
SEX, ETHNICITY = ("Male", "Female"), ("Hisp/Latino", "Not Hisp/Latino", "Unknown")
RACE = ("Am Indian/Alaskan", "Asian", "Hawaiian/Other PI", "Black", "White", "More than one", "Unknown")
MARRIED = ("Married", "Widowed", "Divorced", "Never married", "Unknown")


def person(i: int) -> dict[str, object]:
    return {"PTID": f"{i + 2:03d}_S_{40 * i + 11:04d}", "RID": 40 * i + 11, "COLPROT": "ADNI1"}


def diagnosis(i: int, visit: int) -> int:
    """1, 2, 3; every fourth participant converts at the last visit."""
    return min(i % 3 + 1 + (i % 4 == 0 and visit == 2), 3)


# Participants of the cohort of label=stable_dx.
STABLE = [i for i in range(N) if diagnosis(i, 0) == diagnosis(i, 2)]


def dxsum(decoded: bool = False) -> pl.DataFrame:
    names = {1: "CN", 2: "MCI", 3: "Dementia"}
    rows = [
        person(i)
        | {"VISCODE2": code, "EXAMDATE": date(2006, 3, 1) + timedelta(days=days + i)}
        | {"DIAGNOSIS": names[diagnosis(i, v)] if decoded else diagnosis(i, v)}
        for i in range(N)
        for v, (code, days) in enumerate(VISITS)
    ]
    return pl.DataFrame(rows)


def demographics() -> pl.DataFrame:
    rows = [
        person(i)
        | {"VISCODE2": "sc", "VISDATE": date(2006, 2, 15), "PTGENDER": i % 2 + 1, "PTDOB": f"03/{1930 + i}"}
        | {"PTHAND": 1, "PTMARRY": i % 5 + 1, "PTEDUCAT": 10 + i, "PTNOTRT": 1, "PTHOME": 1}
        | {"PTETHCAT": i % 3 + 1, "PTRACCAT": i % 7 + 1}
        for i in range(N)
    ]
    return pl.DataFrame(rows)


def adnimerge() -> pl.DataFrame:
    names = {1: "CN", 2: "MCI", 3: "Dementia"}
    rows = [
        person(i)
        | {"VISCODE": code, "EXAMDATE": date(2006, 3, 1) + timedelta(days=days + i), "DX_bl": "LMCI", "AGE": 70.0 + i}
        | {"PTGENDER": SEX[i % 2], "PTEDUCAT": 10 + i, "PTETHCAT": ETHNICITY[i % 3], "PTRACCAT": RACE[i % 7]}
        | {"PTMARRY": MARRIED[i % 5], "APOE4": i % 3, "MMSE": 30, "DX": names[diagnosis(i, v)]}
        for i in range(N)
        for v, (code, days) in enumerate(VISITS)
    ]
    return pl.DataFrame(rows)


def vitals() -> pl.DataFrame:
    rows = [
        person(i)
        | {"VISCODE2": "bl", "VISDATE": date(2006, 3, 1), "VSWEIGHT": 60 + i, "VSWTUNIT": 2, "VSHEIGHT": 170}
        | {"VSHTUNIT": 2, "VSBPSYS": 130, "VSBPDIA": 75, "VSPULSE": 65, "VSRESP": 16, "VSTEMP": 36.6, "VSTMPUNT": 2}
        for i in range(N)
    ]
    return pl.DataFrame(rows)


def save(raw: Path, **tables: pl.DataFrame) -> Path:
    raw.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_csv(raw / f"{name}_15Nov2025.csv")
    return raw


def checked(raw: Path, options: AdniOptions = OPTIONS) -> Checked:
    return DATASET.check(raw, options)


def values(raw: Path, options: AdniOptions = OPTIONS, build: Callable = clinical_features) -> pl.DataFrame:
    """Features of a modality by RID, without those that are unknown for all."""
    _, frame = build(AdniExport(raw), build_cohort(raw, options).samples, options)
    return frame.select(c for c in frame.sort("rid").iter_columns() if c.null_count() < len(c))


def labels(raw: Path, options: AdniOptions = OPTIONS) -> pl.DataFrame:
    return build_cohort(raw, options).labels["diagnosis"]


def test_diagnoses_and_one_table_are_enough(tmp_path: Path) -> None:
    raw = save(tmp_path, DXSUM=dxsum(), VITALS=vitals())
    result = checked(raw)
    assert present_modalities(raw, OPTIONS) == ("clinical",)
    assert result.observed["clinical"].len() == len(STABLE)
    assert any("PTDEMOG (Subject Characteristics > Subject Demographics)" in n for n in result.notes)
    assert values(raw).columns == [
        "rid",
        "weight",
        "height",
        "bmi",
        "temperature",
        "systolic",
        "diastolic",
        "pulse",
        "respiration",
    ]
    assert checked(raw, AdniOptions(profile="paper")).observed["clinical"].len() == len(STABLE)


def test_diagnoses_without_any_modality_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected tables of a modality, genotypes or images"):
        checked(save(tmp_path, DXSUM=dxsum()))


def test_adnimerge_alone_gives_the_labels_and_demographics_of_the_forms(tmp_path: Path) -> None:
    forms = save(tmp_path / "forms", DXSUM=dxsum(), PTDEMOG=demographics())
    merged = save(tmp_path / "merged", ADNIMERGE=adnimerge())
    result = checked(merged)
    assert result.release == "LONI ADNIMERGE layout"
    assert present_modalities(merged, OPTIONS) == ("clinical", "biospecimen")
    for options in (OPTIONS, AdniOptions(label="baseline_dx"), AdniOptions(label="latest_dx")):
        assert labels(merged, options).equals(labels(forms, options))
        assert build_cohort(merged, options).samples.equals(build_cohort(forms, options).samples)
    got, expected = values(merged), values(forms)
    # The documented differences: age is that of ADNIMERGE, and handedness, retirement and home are absent.
    assert set(expected.columns) - set(got.columns) == {"PTHAND", "PTNOTRT", "PTHOME"}
    shared = [c for c in got.columns if c != "age"]
    assert got.select(shared).equals(expected.select(shared))
    assert got["age"].to_list() == [70.0 + i for i in STABLE]
    alleles = values(merged, build=biospecimen_features)
    assert alleles.columns == ["rid", "apoe_e4"]
    assert alleles["apoe_e4"].to_list() == [i % 3 for i in STABLE]


def test_the_age_is_that_at_the_visit(tmp_path: Path) -> None:
    raw = save(tmp_path, ADNIMERGE=adnimerge())
    got = values(raw, AdniOptions(label="latest_dx", rows="latest_before_dx"))["age"].to_list()
    assert got == pytest.approx([71.0 + i for i in range(N)], abs=0.01)


def test_the_paper_profile_never_reads_adnimerge_as_features(tmp_path: Path) -> None:
    """It has diagnoses and test scores in every row."""
    options = AdniOptions(profile="paper")
    raw = save(tmp_path, ADNIMERGE=adnimerge(), VITALS=vitals())
    assert present_modalities(raw, options) == ("clinical",)
    assert not {"DX", "DX_BL", "MMSE", "AGE"} & set(values(raw, options).columns)
    (note,) = (n for n in checked(raw, options).notes if n.startswith("profile=paper"))
    assert "plasma_abeta=true, isoprostane=true, image_scan=latest, dementia_drugs=true, merge=union" in note


def test_differences_of_dxsum_and_adnimerge_are_counted(tmp_path: Path) -> None:
    first = pl.int_range(pl.len()) < 2
    raw = save(tmp_path, DXSUM=dxsum(), VITALS=vitals())
    save(raw, ADNIMERGE=adnimerge().with_columns(DX=pl.when(first).then(pl.lit("MCI")).otherwise("DX")))
    notes = checked(raw).notes
    assert any("differ in the diagnosis of 2 of the 36 visits in both; DXSUM_15Nov2025.csv is used" in n for n in notes)
    notes = checked(raw, AdniOptions(label_source="adnimerge")).notes
    assert any("visits in both; ADNIMERGE_15Nov2025.csv is used" in n for n in notes)
    assert any("blank_diagnosis=ignore ignores these visits" in n for n in notes)


def test_adnimerge_without_diagnoses_is_an_error_only_as_their_source(tmp_path: Path) -> None:
    table = adnimerge().drop("DX")
    with pytest.raises(DataError, match="expected values in the column DX; found no diagnosis in any row"):
        checked(save(tmp_path, ADNIMERGE=table))
    assert any("cannot be compared" in n for n in checked(save(tmp_path, DXSUM=dxsum())).notes)


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("AGE", "old", "column 'AGE', line 2: expected a number; found text of 3 characters"),
        ("DX", "SMC", "column 'DX', line 2: expected CN, NL, MCI, Dementia, AD; found text of 3 characters"),
        ("PTMARRY", "Other", None),
    ],
)
def test_other_texts_in_adnimerge(tmp_path: Path, column: str, value: str, error: str | None) -> None:
    raw = save(tmp_path, ADNIMERGE=adnimerge().with_columns(pl.lit(value).alias(column)))
    if error:
        with pytest.raises(DataError, match=error):
            checked(raw)
    else:
        assert any("column PTMARRY: 36 unknown texts set to missing" in n for n in checked(raw).notes)


def test_tables_of_the_package_adnimerge2_are_read(tmp_path: Path) -> None:
    """Its DXSUM has names of diagnoses, its ADSL one row per participant and other names of columns."""
    rows = [
        {"SUBJID": person(i)["RID"], "AGE": 70 + i, "SEX": SEX[i % 2], "EDUC": 10 + i, "RACE": "White", "DX": "DEM"}
        | {"ETHNIC": "Not Hispanic or Latino", "MARISTAT": MARRIED[i % 5]}
        for i in range(N)
    ]
    raw = save(tmp_path / "package", DXSUM=dxsum(decoded=True), ADSL=pl.DataFrame(rows))
    forms = save(tmp_path / "forms", DXSUM=dxsum(), PTDEMOG=demographics())
    assert labels(raw).equals(labels(forms))
    got, expected = values(raw), values(forms)
    for column in ("PTGENDER", "PTEDUCAT", "PTMARRY"):
        assert got[column].equals(expected[column])
    assert got["race_white"].to_list() == [1] * len(STABLE)
    assert got["PTETHCAT"].to_list() == [1] * len(STABLE)
    assert any("absent table PTDEMOG: what ADSL_15Nov2025.csv has" in n for n in checked(raw).notes)


def test_inithealth_has_the_history_of_later_phases(tmp_path: Path) -> None:
    """One row per condition: categories 4 and 13, a surgery in category 8, and tobacco, which has no category alone."""
    conditions = {0: [("4", "0")], 1: [("13", "0"), ("4", "0")], 2: [("8", "1")], 3: [("14", "0"), ("-4", "")]}
    rows = [
        person(i) | {"VISCODE2": "bl", "VISDATE": date(2006, 3, 1), "IHNUM": k + 1, "IHSYMPTOM": s, "IHSURG": surgery}
        for i, listed in conditions.items()
        for k, (s, surgery) in enumerate(listed)
    ]
    raw = save(tmp_path, DXSUM=dxsum(), INITHEALTH=pl.DataFrame(rows))
    options = AdniOptions(label="latest_dx")
    got = values(raw, options)
    assert got["MH4CARD"].to_list() == [1, 1, 0, 0] + [None] * 8
    assert got["MH13ALLE"].to_list()[:4] == [0, 1, 0, 0]
    assert got["MH18SURG"].to_list()[:4] == [0, 0, 1, 0]
    assert not {"MH14ALCH", "MH15DRUG", "MH16SMOK", "MH19OTHR", "MH16ASMOK"} & set(got.columns)
    # Beside MEDHIST, which has the other participants and all items.
    answers = dict.fromkeys([*HISTORY, *QUANTITIES], 0) | {"MH16SMOK": 1, "MH16ASMOK": 0.5}
    save(raw, MEDHIST=pl.DataFrame([person(i) | {"VISCODE2": "sc", "VISDATE": None} | answers for i in range(6, N)]))
    got = values(raw, options)
    assert got["MH4CARD"].to_list() == [1, 1, 0, 0, None, None, *[0] * 6]
    assert got["MH16ASMOK"].to_list() == [None] * 6 + [0.5] * 6
    assert "INITHEALTH_15Nov2025.csv" not in checked(raw).unused


def test_an_invalid_category_of_inithealth_is_an_error(tmp_path: Path) -> None:
    rows = [person(i) | {"VISCODE2": "bl", "IHNUM": 1, "IHSYMPTOM": "cardiac"} for i in range(N)]
    with pytest.raises(DataError, match=r"column 'IHSYMPTOM', line 2: expected codes 1, 2.*found text of 7 characters"):
        checked(save(tmp_path, DXSUM=dxsum(), INITHEALTH=pl.DataFrame(rows)))


def pack(path: Path, *members: Path, cut: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.write(member, member.name)
    for member in members:
        member.unlink()
    path.write_bytes(path.read_bytes()[:cut])
    return path


def test_archives_nested_folders_separators_and_encodings_give_the_same_samples(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", DXSUM=dxsum(), PTDEMOG=demographics(), VITALS=vitals(), ADNIMERGE=adnimerge())
    raw = save(tmp_path / "raw")
    deep = raw / "My downloads" / "2025" / "Subject Characteristics"
    deep.mkdir(parents=True)
    demographics().write_csv(deep / "PTDEMOG_2025-11-15 (1).csv")
    pack(deep / "PTDEMOG_2025-11-15 (1).csv.zip", deep / "PTDEMOG_2025-11-15 (1).csv")
    vitals().write_csv(deep.parent / "All_Subjects_VITALS_15Nov2025.csv", separator=";")
    dxsum().write_csv(raw / "DXSUM.CSV")
    pack(raw / "DXSUM_15Nov2025.zip", raw / "DXSUM.CSV")
    (raw / "tables").mkdir()
    text = adnimerge().write_csv().encode("utf-16")
    (raw / "tables" / "adnimerge.csv.gz").write_bytes(gzip.compress(text))
    images = raw / "ADNI" / "002_S_0011" / "MPRAGE"
    images.mkdir(parents=True)
    vitals().head(3).write_csv(images / "VITALS_30Dec2026.csv")
    roster = pl.DataFrame([person(i) for i in range(N)]).drop("COLPROT")
    roster.write_parquet(raw / "tables" / "ROSTER_15Nov2025.parquet")
    assert AdniExport(raw).require(ROSTER)["rid"].to_list() == roster["RID"].to_list()
    assert labels(raw).equals(labels(plain))
    assert values(raw).equals(values(plain))
    assert checked(raw).observed["clinical"].equals(checked(plain).observed["clinical"])


@pytest.mark.parametrize(
    ("cut", "extra", "error"),
    [(200, False, r"DXSUM.zip: expected .*complete.*; found unreadable data"), (None, True, "an archive of 2 files")],
)
def test_damaged_and_mixed_archives_are_errors(tmp_path: Path, cut: int | None, extra: bool, error: str) -> None:
    raw = save(tmp_path, DXSUM=dxsum(), VITALS=vitals(), NOTES=vitals())
    members = [raw / f"{n}_15Nov2025.csv" for n in ("DXSUM", "NOTES")]
    pack(raw / "DXSUM.zip", *members[: 1 + extra], cut=cut)
    with pytest.raises(DataError, match=error):
        checked(raw)


def test_an_archive_that_is_no_table_is_reported(tmp_path: Path) -> None:
    raw = save(tmp_path, DXSUM=dxsum(), VITALS=vitals(), NOTES=vitals())
    pack(raw / "everything.zip", raw / "NOTES_15Nov2025.csv")
    assert checked(raw).unused["everything.zip"] == "an archive: unpack it"


def test_keys_that_r_writes_as_na_are_blank(tmp_path: Path) -> None:
    rows = dxsum().with_columns(PHASE=pl.lit("ADNI1"), UPDATE_STAMP=pl.lit("2011-01-01")).cast(pl.String)
    blank = (pl.int_range(pl.len()) % 5 == 1) & ~pl.col("VISCODE2").is_in(["bl"])
    rows = rows.with_columns(pl.when(~blank).then(pl.col("PTID", "PHASE", "VISCODE2", "EXAMDATE", "UPDATE_STAMP")))
    read = []
    for null in ("", "NA"):
        folder = tmp_path / f"null{null}"
        folder.mkdir()
        rows.write_csv(folder / "DXSUM.csv", null_value=null)
        export = AdniExport(folder)
        read.append(export.table(DXSUM))
        assert not [n for n in export.notes if "visit dates" in n]
    assert read[0] is not None
    assert read[1] is not None
    assert read[1].equals(read[0])
    assert read[0]["stamp"].null_count() == rows["PHASE"].null_count() > 0
