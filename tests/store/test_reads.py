"""Steps read only the options and files that they declare, and `seal` compares them with the last check."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import mrpipe.raw
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError
from mrpipe.options import narrowed, step_values
from mrpipe.raw import sha256
from mrpipe.schema import Dataset
from mrpipe.stages.check import write_check
from mrpipe.stages.cohort import build_cohort
from mrpipe.stages.ingest import ingest
from mrpipe.stages.prepare import parts_of, prepare
from mrpipe.stages.reads import is_read
from mrpipe.stages.samples import assemble_samples
from mrpipe.stages.seal import seal
from mrpipe.stages.simulate import simulate
from mrpipe.stages.split import make_split


def read(dataset: Dataset, modality: str, raw: Path, work: Path, settings: dict[str, Any]) -> Path:
    source, total = parts_of(dataset, modality, settings)
    for part in range(total):
        prepare(dataset, source, part, raw, work, settings)
    ingest(dataset, modality, raw, work, settings)
    return work / "store/modalities" / f"{modality}.parquet"


def test_a_step_cannot_read_the_options_of_another() -> None:
    options = get_dataset("mimic").options(rollup="category", store_text=True)
    assert {"rollup", "leak_guard", "min_visits"} <= step_values(options, "code.ingest").keys()
    own = narrowed(options, "code.ingest")
    assert own.rollup == "category"
    own.validate()
    with pytest.raises(AssertionError, match=r"code\.ingest reads the option note_features"):
        _ = own.note_features
    with pytest.raises(AttributeError):
        _ = own.nothing
    assert "notes" in step_values(options, "cohort")
    assert "notes" not in step_values(get_dataset("mimic").options(), "cohort")


@pytest.mark.parametrize("name", ["adni", "ch_sims", "enrico", "meds", "mimic", "mosei", "mosi", "tables"])
def test_a_step_needs_only_the_files_that_it_declares(name: str, tmp_path: Path) -> None:
    dataset, raw, work = get_dataset(name), tmp_path / "raw", tmp_path / "work"
    simulate(dataset, raw, dataset.tiny)
    options = dataset.options()
    names = [f.relative_to(raw).as_posix() for f in raw.rglob("*") if f.is_file()]
    build_cohort(dataset, raw, work, {})
    cohort = sha256(work / "cohort.parquet")
    declared = dataset.declared(raw, options)
    for step in declared.files:
        few, other = tmp_path / f"few_{step}", tmp_path / f"work_{step}"
        for file in (f for f in names if is_read(declared, step, options, f)):
            (few / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(raw / file, few / file)
        if step == "cohort":
            build_cohort(dataset, few, other, {})
            assert sha256(other / "cohort.parquet") == cohort
        else:
            shutil.copytree(work, other)
            assert sha256(read(dataset, step, few, other, {})) == sha256(read(dataset, step, raw, work, {})), step


def test_seal_refuses_a_table_that_was_read_with_other_options(tmp_path: Path) -> None:
    dataset, raw, work = get_dataset("mosi"), tmp_path / "raw", tmp_path / "work"
    simulate(dataset, raw, dataset.tiny)
    modalities = write_check(dataset, raw, work, {})["modalities"]
    build_cohort(dataset, raw, work, {})
    for name in modalities:
        read(dataset, name, raw, work, {})
    assemble_samples(dataset, work, modalities)
    make_split(dataset, work, "standard")
    write_check(dataset, raw, work, {"audio_form": "collapse"})
    with pytest.raises(DataError, match=r"ingest mosi audio: expected the options.*found audio_form=auto") as raised:
        seal(dataset, work, tmp_path / "store")
    assert len(raised.value.faults) == 1
    read(dataset, "audio", raw, work, {"audio_form": "collapse"})
    assemble_samples(dataset, work, modalities)
    assert seal(dataset, work, tmp_path / "store")


def test_another_checksum_mode_hashes_no_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, raw, work = get_dataset("mimic"), tmp_path / "raw", tmp_path / "work"
    simulate(dataset, raw, dataset.tiny)
    hashed: list[str] = []
    monkeypatch.setattr(mrpipe.raw, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    first = write_check(dataset, raw, work, {})
    assert "labevents.csv.gz" in hashed
    for mode in ("note", "skip", "verify"):
        hashed.clear()
        mrpipe.raw._KNOWN.clear()
        again = write_check(dataset, raw, work, {"checksums": mode})
        assert (hashed, again["inputs"]) == ([], first["inputs"])
    (raw / "hosp/admissions.csv.gz").touch()
    write_check(dataset, raw, work, {})
    assert hashed == ["admissions.csv.gz"]
