"""Each file of an export is decompressed once, from `check` to `seal`, in one process or in several."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mrpipe.kept
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.scan.parquet import ParquetPart
from mrpipe.datasets.mimic.scan.scanner import CsvPart
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate

MODALITIES = ("lab", "note", "code", "lab_summary")
SMALL = {"n_patients": 220, "n_chart_rows": 6000, "n_lab_rows": 4000}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of complete passes over each table."""
    n: Counter[str] = Counter()
    for part in (CsvPart, ParquetPart):

        def counted(self: Any, advance: Any, original: Any = part.frames) -> Iterator[Any]:
            yield from original(self, advance)
            n[self.shown_as.split(".")[0]] += 1

        monkeypatch.setattr(part, "frames", counted)
    return n


def export(folder: Path, form: str, *, sums: bool) -> Path:
    raw = folder / "raw"
    simulate(get_dataset("mimic"), raw, SMALL | {"form": form})
    if not sums:
        (raw / "SHA256SUMS.txt").unlink()
    return raw


def run(raw: Path, work: Path, *, steps: tuple[str, ...] = ("check", "cohort", "prepare", "ingest", "rest")) -> None:
    place = ["--raw", str(raw), "--work", str(work)]
    commands = {
        "check": [["check", "mimic", *place]],
        "cohort": [["cohort", "mimic", *place]],
        "prepare": [["prepare", "mimic", "lab", "--part", "0", *place]],
        "ingest": [["ingest", "mimic", m, *place] for m in MODALITIES],
        "rest": [
            ["samples", "mimic", "--work", str(work), "--modalities", *MODALITIES],
            ["split", "mimic", "--work", str(work), "--scheme", "standard"],
            ["seal", "mimic", "--work", str(work), "--store", str(work.with_name("store"))],
        ],
    }
    for step in steps:
        for command in commands[step]:
            assert main(command) == 0


@pytest.mark.parametrize(("form", "sums"), [("csv.gz", True), ("csv.gz", False), ("parquet", False)])
def test_each_file_is_decompressed_once_from_check_to_seal(
    form: str, sums: bool, tmp_path: Path, passes: Counter[str]
) -> None:
    run(export(tmp_path, form, sums=sums), tmp_path / "work")
    assert set(passes.values()) == {1}
    assert {"hosp/labevents", "icu/chartevents", "note/discharge", "hosp/diagnoses_icd", "hosp/patients"} <= set(passes)


@pytest.mark.parametrize("sums", [True, False])
def test_a_build_decompresses_once_and_equals_one_that_keeps_nothing(
    sums: bool, tmp_path: Path, passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, mimic = export(tmp_path, "csv.gz", sums=sums), get_dataset("mimic")
    kept = build(mimic, raw, tmp_path / "kept", {})
    assert set(passes.values()) == {1}
    for module in ("tables", "check"):
        monkeypatch.setattr(f"mrpipe.datasets.mimic.{module}.place", lambda *_, **__: None)
    assert build(mimic, raw, tmp_path / "again", {}) == kept
    assert passes["hosp/diagnoses_icd"] > 2


def test_a_check_without_a_work_folder_reads_tables_once(tmp_path: Path, passes: Counter[str]) -> None:
    raw = export(tmp_path, "csv.gz", sums=False)
    assert main(["check", "mimic", "--raw", str(raw)]) == 0
    assert set(passes.values()) == {1}


@pytest.mark.parametrize("change", ["damaged", "newer export"])
def test_kept_tables_that_are_damaged_or_outdated_are_not_used(
    change: str, tmp_path: Path, passes: Counter[str]
) -> None:
    raw, work = export(tmp_path, "csv.gz", sums=False), tmp_path / "work"
    run(raw, work, steps=("check", "cohort", "prepare"))
    before = (work / "parts/lab/0-of-1.parquet").read_bytes()
    if change == "damaged":
        for path in (work / "kept").glob("*.parquet"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    else:
        (work / "inputs.json").unlink()  # which would refuse the changed files
        for path in raw.rglob("*.csv.gz"):
            path.touch()
    passes.clear()
    run(raw, work, steps=("prepare",))
    assert passes["hosp/labevents"] == passes["icu/chartevents"] == 1
    assert (work / "parts/lab/0-of-1.parquet").read_bytes() == before


def test_patients_that_the_check_did_not_keep_are_read_from_the_export(tmp_path: Path, passes: Counter[str]) -> None:
    raw, work = export(tmp_path, "csv.gz", sums=False), tmp_path / "work"
    run(raw, work, steps=("check",))
    passes.clear()
    place = ["--raw", str(raw), "--work", str(work), "--set", "min_visits=1", "icd9=off", "require_icu=no"]
    for command in (["cohort", "mimic"], ["prepare", "mimic", "lab", "--part", "0"]):
        assert main([*command, *place]) == 0
    assert passes["hosp/labevents"] == 1


def test_tables_are_not_kept_outside_a_step(tmp_path: Path) -> None:
    assert mrpipe.kept.place([], "key") is None
    with mrpipe.kept.keeping():
        assert mrpipe.kept.place([], "key") is not None
        assert mrpipe.kept.place([], "key", lasting=True) is None
    with mrpipe.kept.keeping(tmp_path), mrpipe.kept.keeping():
        assert mrpipe.kept.place([], "key", lasting=True).parent == tmp_path


def test_a_check_keeps_nothing_of_an_earlier_one(tmp_path: Path, passes: Counter[str]) -> None:
    # Its tables may be those of an earlier version of the code.
    raw, work = export(tmp_path, "csv.gz", sums=True), tmp_path / "work"
    run(raw, work, steps=("check",))
    first = dict(passes)
    passes.clear()
    run(raw, work, steps=("check",))
    assert dict(passes) == first
