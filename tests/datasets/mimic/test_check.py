"""Check of MIMIC-IV exports: errors are reported before the build starts, releases are detected, memory is bounded."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.check import check_export
from mrpipe.datasets.mimic.codes import read_codes
from mrpipe.datasets.mimic.cohort import build_cohort
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.errors import DataError, UsageError
from mrpipe.options import parse_options
from mrpipe.stages.simulate import simulate
from tests.datasets.forbidden import forbid
from tests.datasets.mimic.mimic_toy import HEADERS, SUBJECT, Toy, read_rows, write_table


def check(raw: Path, **values):
    return check_export(raw, parse_options(MimicOptions, values, context="test"))


def faults(raw: Path, **values) -> dict[str, str]:
    with pytest.raises(DataError) as error:
        check(raw, **values)
    return {f"{f.file}:{f.column or ''}": str(f) for f in error.value.faults}


def test_a_complete_export_passes_and_its_inconsistencies_are_counted(tmp_path: Path) -> None:
    toy = Toy()
    toy.visit(SUBJECT, 3, "2150-08-09 08:00:00", "2150-08-01 12:00:00", hospital_expire_flag=1)
    toy.visit(SUBJECT + 1, 3, "2150-06-08 08:00:00", "2150-06-20 12:00:00", icd="I10", version=10)
    notes = "\n".join(check(toy.write(tmp_path)).notes)
    for text in (
        "1 visits with admittime after dischtime",
        "1 visits that begin before an earlier one ends",
        "1 visits with hospital_expire_flag but without deathtime",
        "1 visits with in-hospital death but without dod",
        "1 of 8 visits with ICD-10 diagnoses only",
    ):
        assert text in notes


@pytest.mark.parametrize("nested", ["", "physionet.org/files/mimiciv/2.2"])
@pytest.mark.parametrize("gz", [True, False])
def test_tables_are_found_in_the_folders_of_the_provider(tmp_path: Path, nested: str, gz: bool) -> None:
    Toy().write(tmp_path / nested, gz=gz)
    assert len(check(tmp_path).files) == 9


def test_all_missing_tables_and_columns_are_reported_together(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    (raw / "hosp/diagnoses_icd.csv").unlink()
    (raw / "icu/chartevents.csv").unlink()
    rows = read_rows(raw / "hosp/labevents.csv")
    write_table(
        raw, "hosp/labevents", rows, header=[h for h in HEADERS["hosp/labevents"] if h not in ("valuenum", "itemid")]
    )
    rows = read_rows(raw / "hosp/patients.csv")
    write_table(raw, "hosp/patients", rows, header=[h for h in HEADERS["hosp/patients"] if h != "dod"])
    found = faults(raw)
    assert any("diagnoses_icd" in k for k in found)
    assert any("chartevents" in k for k in found)
    assert {"hosp/labevents.csv:valuenum", "hosp/labevents.csv:itemid", "hosp/patients.csv:dod"} <= set(found)
    assert "physionet.org" in next(v for k, v in found.items() if "chartevents" in k)


def test_a_shifted_header_of_a_large_table_is_detected_from_its_first_rows(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    lines = (raw / "hosp/labevents.csv").read_text().splitlines()
    header = lines[0].split(",")
    (raw / "hosp/labevents.csv").write_text("\n".join([",".join(header[1:] + header[:1]), *lines[1:]]) + "\n")
    assert any("shifted" in v for k, v in faults(raw).items() if k.startswith("hosp/labevents.csv"))


@pytest.mark.parametrize("group", ["2023 - 2025", "2011-2013"])
def test_an_unsupported_release_is_an_error_unless_the_release_is_set(tmp_path: Path, group: str) -> None:
    toy = Toy()
    toy.patients[0]["anchor_year_group"] = group
    raw = toy.write(tmp_path)
    assert "release is not supported" in "".join(faults(raw).values())
    assert check(raw, release="3.1").release == "MIMIC-IV 3.1"


def test_older_layouts_are_detected(tmp_path: Path) -> None:
    (tmp_path / "one/core").mkdir(parents=True)
    (tmp_path / "one/core/patients.csv").write_text("subject_id\n1\n")
    assert "core module of MIMIC-IV 1.0" in "".join(faults(tmp_path / "one").values())
    (tmp_path / "three").mkdir()
    (tmp_path / "three/PATIENTS.csv").write_text("ROW_ID,SUBJECT_ID,GENDER,DOB,DOD\n1,1,F,2100-01-01,\n")
    assert "MIMIC-III" in "".join(faults(tmp_path / "three").values())


def test_tables_of_different_releases_are_an_error(tmp_path: Path) -> None:
    toy = Toy()
    toy.admissions.append({**toy.admissions[0], "subject_id": 19_999_999, "hadm_id": 29_999_999})
    assert any("the same release" in v for v in faults(toy.write(tmp_path / "a")).values())
    toy = Toy()
    toy.admissions.append(dict(toy.admissions[0]))
    assert any("two releases" in v for v in faults(toy.write(tmp_path / "b")).values())


def test_repeated_and_unknown_ids_are_reported_with_their_lines(tmp_path: Path) -> None:
    toy = Toy()
    toy.patients.append(dict(toy.patients[1]))
    toy.admissions += [dict(toy.admissions[0]), {**toy.admissions[1], "subject_id": 19_999_999, "hadm_id": 29_999_999}]
    toy.stays.append(dict(toy.stays[2]))
    found = faults(toy.write(tmp_path))
    for key, lines in (
        ("hosp/patients:subject_id", "2 other rows (lines 3, 5)"),
        ("hosp/admissions:hadm_id", "2 other rows (lines 2, 8)"),
        ("icu/icustays:stay_id", "2 other rows (lines 4, 8)"),
        ("hosp/admissions:subject_id", "1 other rows (lines 9)"),
    ):
        assert lines in next(v for v in found.values() if v.startswith(key.split(":")[0]) and lines in v), key
    assert not any(str(SUBJECT)[:4] in v for v in found.values())


def test_rows_that_name_no_visit_of_their_patient_are_counted(tmp_path: Path) -> None:
    toy = Toy()
    toy.diagnoses += [{**toy.diagnoses[0], "hadm_id": 29_999_999}, {**toy.diagnoses[0], "subject_id": SUBJECT + 1}]
    notes = "\n".join(check(toy.write(tmp_path)).notes)
    assert "2 rows of hosp/diagnoses_icd (25.0%) name no visit of their patient in hosp/admissions" in notes


def test_a_table_of_patients_without_any_date_of_death_is_an_error(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    rows = [{**r, "dod": ""} for r in read_rows(raw / "hosp/patients.csv")]
    write_table(raw, "hosp/patients", rows)
    assert "expected dates of death; found blanks only" in faults(raw)["hosp/patients:dod"]


def test_file_names_in_upper_case_are_read_and_mimic_iii_is_recognised_by_its_columns(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path / "a", gz=True)
    expected = check(raw)
    for path in sorted(raw.rglob("*.gz")):
        path.rename(path.with_name(path.name.upper()))
    for folder in [p for p in raw.iterdir() if p.is_dir()]:
        folder.rename(folder.with_name(folder.name.upper()))
    found = check(raw)
    assert [f.name.lower() for f in found.files] == [f.name for f in expected.files]
    assert build_cohort(raw, MimicOptions()).samples.height == 3
    rows = [{**r, "dob": "2100-01-01"} for r in Toy().patients]
    write_table(tmp_path / "b", "hosp/PATIENTS", rows, header=[*HEADERS["hosp/patients"], "dob"])
    assert "MIMIC-III tables" in "".join(faults(tmp_path / "b").values())


def test_a_file_without_permission_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Toy().write(tmp_path)
    forbid(monkeypatch, raw / "hosp/labevents.csv")
    (fault,) = faults(raw).values()
    assert "hosp/labevents.csv" in fault
    assert "no permission" in fault
    assert "damaged" not in fault


def test_small_tables_and_headers_in_windows_1252_are_read_with_a_note(tmp_path: Path) -> None:
    toy = Toy()
    toy.diagnoses[0]["icd_code"] = "40é9"
    raw = toy.write(tmp_path)
    write_table(raw, "hosp/d_icd_diagnoses", [{"icd_code": "4019", "icd_version": 9, "long_title": "Ménière"}])
    for name in ("hosp/d_icd_diagnoses", "hosp/diagnoses_icd"):
        path = raw / f"{name}.csv"
        path.write_bytes(path.read_text(encoding="utf-8").encode("cp1252"))
    path = raw / "icu/chartevents.csv"
    path.write_bytes(path.read_bytes().replace(b"valueuom\n", b"valueuom,\xe9t\xe9\n", 1).replace(b"bpm\n", b"bpm,1\n"))
    notes = "\n".join(check(raw).notes)
    assert "hosp/d_icd_diagnoses.csv: 1 rows are not UTF-8; they were read as Windows-1252" in notes
    assert "hosp/diagnoses_icd.csv: 1 rows are not UTF-8; they were read as Windows-1252" in notes
    levels = read_codes(raw, build_cohort(raw, MimicOptions()).samples, MimicOptions()).dictionary["levels"][0]
    assert {"DX9:4019 Ménière", "DX9:40é9"} < set(levels)
    path.write_bytes(b"\x81" + path.read_bytes())
    assert "byte 0x81 at position 1 of the line" in "".join(faults(raw).values())


def test_unknown_encoders_and_headings_are_errors_of_the_check(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    with pytest.raises(UsageError, match="unknown text encoder 'nope'"):
        check(raw, text_encoder="nope")
    assert "brief hospital course" in faults(raw, note_sections=("Hospital curse",))["options:note_sections"]
    assert check(raw, note_sections=("Hospital Course",)).files
    assert "icd_versions=10 matches no code of the included visits" in check(raw, icd_versions="10").notes


def test_modalities_known_before_the_build_and_tables_that_are_not_used(tmp_path: Path) -> None:
    toy = Toy()
    toy.diagnoses = [d for d in toy.diagnoses if d["subject_id"] != SUBJECT + 1]
    toy.note(SUBJECT, None, "2150-05-01 08:00:00", "Impression: clear", kind="radiology")
    raw = toy.write(tmp_path)
    write_table(raw, "icu/inputevents", [], header=["subject_id"])
    write_table(raw, "hosp/other", [], header=["subject_id"])
    found = check(raw, icd9="off")
    assert {m: s.to_list() for m, s in found.observed.items()} == {"code": [str(SUBJECT), str(SUBJECT + 2)]}
    assert set(found.unused) == {"icu/inputevents.csv", "note/radiology.csv"}
    assert 'notes=["discharge", "radiology"]' in found.unused["note/radiology.csv"]
    assert set(check(raw, require_icu="no", event_sources=("labevents",)).unused) == {
        "icu/chartevents.csv",
        "icu/icustays.csv",
        "icu/inputevents.csv",
        "note/radiology.csv",
    }


def test_checksums_in_the_folders_of_the_modules(tmp_path: Path) -> None:
    """hosp and note are separate downloads, each with a list of checksums of its own."""
    toy = Toy()
    toy.note(SUBJECT, 1, "2150-01-15 00:00:00", "Impression: clear")
    raw = toy.write(tmp_path, gz=True)
    for folder in ("hosp", "note"):
        lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.name}\n" for p in (raw / folder).glob("*.gz")]
        (raw / folder / "SHA256SUMS.txt").write_text("".join(lines))
    assert "7 of 10 files match the provider's SHA-256" in check(raw).notes
    for name in ("hosp/labevents.csv.gz", "note/discharge.csv.gz"):
        whole = (raw / name).read_bytes()
        (raw / name).write_bytes(gzip.compress(gzip.decompress(whole), compresslevel=1, mtime=7))
        assert list(faults(raw)) == [f"{name}:"]
        (raw / name).write_bytes(whole)


def test_checksums_of_the_provider(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path, gz=True)
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(raw).as_posix()}\n"
        for p in sorted(raw.rglob("*.gz"))
    ]
    (raw / "SHA256SUMS.txt").write_text("".join(lines))
    assert "9 of 9 files match the provider's SHA-256" in check(raw).notes
    Toy(4).write(tmp_path / "other", gz=True)
    (tmp_path / "other/hosp/labevents.csv.gz").replace(raw / "hosp/labevents.csv.gz")
    for leftover in sorted((tmp_path / "other").rglob("*.gz")):
        leftover.unlink()
    found = faults(raw)
    assert list(found) == ["hosp/labevents.csv.gz:"]
    assert 'rebuilt=["hosp/labevents.csv.gz"]' in found["hosp/labevents.csv.gz:"]
    assert check(raw, rebuilt=("hosp/labevents.csv.gz",)).files
    assert any("differs" in n for n in check(raw, checksums="note").notes)
    assert check(raw, checksums="skip").files
    assert "options:rebuilt" in faults(raw, rebuilt=("hosp/labevents.csv.gz", "hosp/nothing.csv"))


def test_a_truncated_gz_file_is_detected_before_the_build(tmp_path: Path) -> None:
    simulate(get_dataset("mimic"), tmp_path / "raw", {"n_patients": 60, "n_chart_rows": 5000, "n_lab_rows": 500})
    raw = tmp_path / "raw"
    path = raw / "icu/chartevents.csv.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    assert list(faults(raw)) == ["icu/chartevents.csv.gz:"]
    (raw / "SHA256SUMS.txt").unlink()
    assert "truncated" in faults(raw)["icu/chartevents.csv.gz:"]
    assert check(raw, integrity="quick").files


def test_the_simulation_is_reproducible_and_validates_its_options(tmp_path: Path) -> None:
    settings = {"n_patients": 80, "n_chart_rows": 900, "n_lab_rows": 900}
    for name in ("a", "b"):
        simulate(get_dataset("mimic"), tmp_path / name, settings)
    files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()]
    assert len(files) == 14
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert len(pl.read_csv(tmp_path / "a/icu/chartevents.csv.gz")) == 900
    for wrong in ({"n_patients": 3}, {"mortality": 0.0}, {"n_lab_rows": 0}, {"informative": 2.0}):
        with pytest.raises(UsageError):
            simulate(get_dataset("mimic"), tmp_path / "c", wrong)


# VmHWM is the peak of this process only; getrusage would include the memory of the test process before the fork.
COHORT = """
import sys
from pathlib import Path
from mrpipe.cli.main import main
raw, work = sys.argv[1:]
assert main(["cohort", "mimic", "--raw", raw, "--work", work]) == 0
"""
PEAK = """
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
MEASUREMENTS = """
assert main(["prepare", "mimic", "lab", "--part", "0", "--raw", raw, "--work", work]) == 0
assert main(["ingest", "mimic", "lab", "--raw", raw, "--work", work]) == 0
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


def peak_of(script: str, raw: Path, work: Path) -> float:
    """Peak resident memory (MiB) of a process that runs `script`."""
    command = [sys.executable, "-c", script + PEAK, str(raw), str(work)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(out.splitlines()[-1]) / 1024


def peak_mib(tmp_path: Path, rows: int) -> float:
    settings = {
        "n_patients": max(100, rows // 2000),
        "n_chart_rows": rows * 5 // 7,
        "n_lab_rows": rows * 2 // 7,
        "eligible": 0.1,
        "notes": False,
    }
    simulate(get_dataset("mimic"), tmp_path / f"{rows}", settings)
    return peak_of(COHORT + MEASUREMENTS, tmp_path / f"{rows}", tmp_path / f"{rows}.work")


@needs_proc
def test_memory_of_the_cohort_is_linear_in_its_tables(tmp_path: Path) -> None:
    """Regression: a list of all ICU visits in a window expression was copied per patient (9 GB for 70,000 patients)."""
    simulate(
        get_dataset("mimic"),
        tmp_path / "raw",
        {"n_patients": 20_000, "n_chart_rows": 50, "n_lab_rows": 50, "notes": False},
    )
    assert peak_of(COHORT, tmp_path / "raw", tmp_path / "w") < 500


@needs_proc
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    small, large = peak_mib(tmp_path, 70_000), peak_mib(tmp_path, 700_000)
    assert large < 600
    assert large < small + 250


@needs_proc
@pytest.mark.slow
def test_memory_stays_below_two_gib_at_14_million_rows(tmp_path: Path) -> None:
    small, large = peak_mib(tmp_path, 1_400_000), peak_mib(tmp_path, 14_000_000)
    assert large < 2048
    assert large < 1.5 * small
