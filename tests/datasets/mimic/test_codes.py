"""Codes of MIMIC-IV: leak guard, correction by the titles, and order by visit."""

from __future__ import annotations

from pathlib import Path

from mrpipe.store.reader import Store
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, hadm_of, store_of, toy, write_table

A = str(SUBJECT)


def codes(store: Store) -> list[tuple[str, int, float]]:
    """(code, number of the visit, days) of patient A."""
    levels = store.dictionary.filter(modality="code")["levels"][0].to_list()
    row = store.modality("code").filter(sample_id=A).collect()
    return [(levels[int(c)], int(n), t) for (c, n), t in zip(row["x"][0].to_list(), row["time"][0], strict=True)]


def test_the_guard_removes_codes_that_reveal_the_outcome(tmp_path: Path) -> None:
    """By code without titles, and by title; one switch is for codes and text."""

    def change(t: Toy) -> None:
        for i, (code, version) in enumerate([("V667", 9), ("V4986", 9), ("Z66", 10), ("Z515", 10), ("7981", 9)]):
            row = {**t.diagnoses[0], "seq_num": 2 + i, "icd_code": code, "icd_version": version}
            t.diagnoses.append(row)

    raw = toy(tmp_path, change)
    assert [c for c, _, _ in codes(store_of(raw, tmp_path / "a"))] == ["DX9:4019", "DX9:7981", "PR9:0331", "DX9:4019"]
    titles = [
        {"icd_code": "4019", "icd_version": 9, "long_title": "Hypertension"},
        {"icd_code": "7981", "icd_version": 9, "long_title": "Instantaneous death"},
    ]
    write_table(raw, "hosp/d_icd_diagnoses", titles)
    assert {c for c, _, _ in codes(store_of(raw, tmp_path / "b"))} == {"DX9:4019 Hypertension", "PR9:0331"}
    assert len(codes(store_of(raw, tmp_path / "c", leak_guard=False))) == 8


def test_codes_with_lost_zeros_or_dots_are_corrected_by_the_titles_if_unambiguous(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        for i, code in enumerate(["389", "v45.82", "210", "E8785", "99999"]):
            t.diagnoses.append({**t.diagnoses[0], "seq_num": 2 + i, "icd_code": code})

    raw = toy(tmp_path, change)
    known = ("4019", "0389", "V4582", "0210", "00210", "E8785")
    titles = [{"icd_code": c, "icd_version": 9, "long_title": f"title of {c}"} for c in known]
    write_table(raw, "hosp/d_icd_diagnoses", titles)
    store = store_of(raw, tmp_path / "store")
    assert [c.split(" ")[0] for c, n, _ in codes(store) if n == 1] == [
        f"DX9:{c}" for c in ("4019", "0389", "V4582", "210", "E8785", "99999")
    ] + ["PR9:0331"]
    notes = "\n".join(store.manifest.notes)
    assert "2 ICD codes with lost zeros, or with dots, were corrected by d_icd_*, e.g. to" in notes
    assert "of 22 ICD codes have no title in d_icd_*" in notes


def test_codes_are_strings_ordered_by_visit(tmp_path: Path) -> None:
    def change(t: Toy) -> None:
        first, second = hadm_of(SUBJECT, 1), hadm_of(SUBJECT, 2)
        for hadm, seq, code, version in (
            (first, 3, "0389", 9),
            (first, 2, "V4582", 9),
            (first, 4, "0389", 9),
            (second, 2, "E8785", 9),
            (second, 3, "02110", 10),
        ):
            t.diagnoses.append(
                {"subject_id": SUBJECT, "hadm_id": hadm, "seq_num": seq, "icd_code": code, "icd_version": version}
            )
        for seq, code in ((1, "0331"), (2, "966")):
            t.procedures.append(
                {"subject_id": SUBJECT, "hadm_id": first, "seq_num": seq, "icd_code": code, "icd_version": 9}
            )

    raw = toy(tmp_path, change)

    found = codes(store_of(raw, tmp_path / "store"))
    assert found == [
        ("DX9:4019", 1, 0.0),
        ("DX9:V4582", 1, 0.0),
        ("DX9:0389", 1, 0.0),
        ("PR9:0331", 1, 0.0),
        ("PR9:966", 1, 0.0),
        ("DX9:4019", 2, 142.0),
        ("DX9:E8785", 2, 142.0),
        ("DX10:02110", 2, 142.0),
    ]
    rolled = codes(store_of(raw, tmp_path / "rolled", rollup="category", icd_versions="9"))
    assert [c for c, _, _ in rolled] == ["DX9:401", "DX9:V45", "DX9:038", "PR9:03", "PR9:96", "DX9:401", "DX9:E878"]
