"""Check of MIMIC-IV exports: errors are reported before the build starts, releases are detected, memory is bounded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.check import check_export
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.errors import DataError, UsageError
from mrpipe.options import parse_options
from mrpipe.stages.simulate import simulate
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
    (tmp_path / "three/PATIENTS.csv").write_text("SUBJECT_ID\n1\n")
    assert "MIMIC-III" in "".join(faults(tmp_path / "three").values())


def test_tables_of_different_releases_are_an_error(tmp_path: Path) -> None:
    toy = Toy()
    toy.admissions.append({**toy.admissions[0], "subject_id": 19_999_999, "hadm_id": 29_999_999})
    assert any("the same release" in v for v in faults(toy.write(tmp_path / "a")).values())
    toy = Toy()
    toy.admissions.append(dict(toy.admissions[0]))
    assert any("two releases" in v for v in faults(toy.write(tmp_path / "b")).values())


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
assert main(["ingest", "mimic", "lab", "--raw", raw, "--work", work, "--store", work + ".store"]) == 0
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
