"""Canaries: whatever happens or becomes known after the prediction time changes nothing in the store of MIMIC-IV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.stages.build import build
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, hadm_of

A = str(SUBJECT)
SETTINGS = {"notes": ("discharge", "radiology"), "event_window": "history"}
# The index visit of each patient ends on 2150-06-09 at 12:00.
AFTER, STORED = "2150-06-09 12:00:01", {"storetime": "2150-06-09 12:00:01"}


def export() -> Toy:
    toy = Toy(8)
    for i in range(8):
        toy.visit(
            SUBJECT + i, 3, "2150-05-20 08:00:00", "2150-06-20 12:00:00", icd="0389"
        )  # ends after the index visit
        toy.lab(SUBJECT + i, 2, "2150-06-09 11:00:00", value=2.0, storetime="2150-06-09 12:00:00")
        toy.chart(SUBJECT + i, 2, "2150-06-09 12:00:00", 220045, 70, "bpm", storetime="")
        toy.note(SUBJECT + i, 2, "2150-06-09 00:00:00", "Impression: summary")
        toy.note(SUBJECT + i, 2, "2150-06-09 12:00:00", "Impression: radiology", kind="radiology")
    return toy


def labs(toy: Toy) -> None:
    for hadm in (None, 2, 3):
        toy.lab(SUBJECT, hadm, AFTER, value=9.0)
        toy.lab(SUBJECT, hadm, "2150-06-09 11:00:00", value=9.0, **STORED)
        toy.lab(SUBJECT, hadm, "2150-06-09 11:00:00", item=51999, value=9.0, **STORED)


def charts(toy: Toy) -> None:
    for number in (2, 3):
        toy.chart(SUBJECT, number, AFTER, 220045, 99, "bpm")
        toy.chart(SUBJECT, number, "2150-06-09 11:00:00", 220045, 99, "bpm", **STORED)


def codes(toy: Toy) -> None:
    row = {"subject_id": SUBJECT, "hadm_id": hadm_of(SUBJECT, 3), "seq_num": 2, "icd_version": 9}
    toy.diagnoses += [{**row, "icd_code": "4275"}, {**row, "icd_code": "4019"}]
    toy.procedures += [
        {**row, "hadm_id": hadm_of(SUBJECT, 1), "icd_code": "0331", "seq_num": 1},  # as in every export of `Toy`
        {**row, "icd_code": "9960"},
    ]


def radiology(toy: Toy) -> None:
    for number in (None, 2, 3):
        toy.note(SUBJECT, number, "2150-06-09 18:00:00", "Impression: evening", kind="radiology")
        toy.note(SUBJECT, number, "2150-06-09 11:00:00", "Impression: read later", kind="radiology")
        toy.radiology[-1].update(STORED)


def discharge(toy: Toy) -> None:
    toy.note(SUBJECT, 2, "2150-06-10 00:00:00", "Impression: addendum")
    toy.note(SUBJECT, 3, "2150-06-09 00:00:00", "Impression: still in hospital")
    toy.note(SUBJECT, 3, "2150-06-20 00:00:00", "Impression: of the longer visit")
    for number, day in ((1, "2150-01-15"), (2, "2150-06-09")):
        toy.note(SUBJECT, number, f"{day} 00:00:00", "Impression: rewritten after months")
        toy.discharge[-1]["storetime"] = "2150-07-15 00:00:00"


def content(toy: Toy, folder: Path) -> dict[str, bytes]:
    """Bytes of samples, labels and modalities of the store."""
    build(get_dataset("mimic"), toy.write(folder / "raw"), folder / "store", SETTINGS)
    files = [p for p in (folder / "store").rglob("*.parquet") if p.stem not in ("dictionary", "attrition")]
    return {p.relative_to(folder / "store").as_posix(): p.read_bytes() for p in sorted(files)}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("canaries")
    found = content(export(), folder)
    store = mrpipe.open_store(folder / "store")
    names = store.dictionary.filter(modality="lab_summary")["name"].to_list()
    # At or before the prediction time, values are used.
    x = store.arrays("lab_summary").x[0]
    assert [x[names.index(f"{n} last")] for n in ("lab:50912", "chart:220045")] == [2.0, 70.0]
    assert store.modality("note").filter(sample_id=A).collect()["length"].item() == 2
    levels = store.dictionary.filter(modality="code")["levels"][0].to_list()
    assert levels == ["DX9:4019", "PR9:0331"]
    return found


@pytest.mark.parametrize("canary", [labs, charts, codes, radiology, discharge])
def test_nothing_after_the_prediction_time_changes_the_store(
    before: dict[str, bytes], canary: Callable[[Toy], None], tmp_path: Path
) -> None:
    toy = export()
    canary(toy)
    assert content(toy, tmp_path) == before
