"""Ids and cells of people in messages, notes and pages: planted ids and texts appear in the store's own tables only."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.errors import SHOW_VALUES, DataError, cell, cells, reason, shape
from mrpipe.privacy import Count, counts_rounded, rounded
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate

N = 60
IDS = [f"KANARI-{k:03d}" for k in range(N)]
SUBJECTS = [f"ZEISIG-{k // 2:03d}" for k in range(N)]
TEXTS = ("lives in Zwitscherweg 7", "has Piepsucht", "cousin of Vogelfrei")
CANARIES = ("KANARI", "kanari", "ZEISIG", "Zwitscher", "Piep", "Vogelfrei")
FILES = Callable[[dict[str, str]], dict[str, str] | None]


def table(header: str, rows: Iterator[tuple[object, ...]]) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def files() -> dict[str, str]:
    """People with an outcome, a site and a free text; forms with numbers, a date and a category; a long table."""
    sites = ("north", "south", "Vogelfrei clinic")
    people = (
        (i, s, k % 2, sites[k % 3], f"2020-01-{k % 28 + 1:02d}")
        for k, (i, s) in enumerate(zip(IDS, SUBJECTS, strict=True))
    )
    forms = ((i, k, TEXTS[k % 3], "ab"[k % 2], f"2019-01-{k % 28 + 1:02d}") for k, i in enumerate(IDS) if k != 7)
    labs = ((i, "na", 140 + k % 9) for k, i in enumerate(IDS) if k < 57)
    return {
        "people.csv": table("id,person,out,site,seen", people),
        "forms.csv": table("id,score,note,group,born", forms),
        "labs.csv": table("id,item,value", labs),
    }


def declaration(**changes: Any) -> dict[str, Any]:
    return {
        "file": "people.csv",
        "id": "id",
        "subject": "person",
        "prediction_time": "seen",
        "label": {"name": "out", "column": "out", "classes": [0, 1]},
        "subgroups": ["site"],
        "modalities": {
            "forms": {"file": "forms.csv", "kinds": {"born": "date", "group": ["a", "b"]}},
            "labs": {"file": "labs.csv", "long": {"item": "item", "value": "value", "aggregate": ["mean"]}},
        },
        **changes,
    }


def write(raw: Path, content: dict[str, str], spec: dict[str, Any]) -> Path:
    raw.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (raw / name).write_bytes(text.encode("latin-1"))
    (raw / "tables.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return raw


def swap(file: str, old: str, new: str) -> FILES:
    """Replace a text, which must be there."""

    def change(content: dict[str, str]) -> None:
        assert old in content[file]
        content[file] = content[file].replace(old, new, 1)

    return change  # type: ignore[return-value]


FAULTS: dict[str, tuple[FILES, dict[str, Any], int]] = {
    "duplicate ids": (swap("people.csv", "KANARI-003", "KANARI-004"), {}, 3),
    "conflicting rows": (swap("forms.csv", "KANARI-003,3,", "KANARI-004,99,"), {}, 3),
    "blank id": (swap("people.csv", "KANARI-003", ""), {}, 3),
    "blank subject": (swap("people.csv", "ZEISIG-002", ""), {}, 3),
    "unmatched ids": (swap("forms.csv", "KANARI-003", "KANARI-777"), {}, 0),
    "unmatched ids above the limit": (swap("forms.csv", "KANARI-003", "KANARI-777"), {"unmatched": 0}, 3),
    "near misses": (swap("forms.csv", "KANARI-003", "kanari-003"), {"unmatched": 0}, 3),
    "near misses in a note": (swap("forms.csv", "KANARI-003", "kanari-003"), {}, 0),
    "subjects alike": (swap("people.csv", "ZEISIG-002", "Zeisig-002"), {}, 0),
    "text among numbers": (swap("forms.csv", "KANARI-003,3,", "KANARI-003,Piepsucht,"), {}, 3),
    "not finite": (swap("forms.csv", "KANARI-003,3,", "KANARI-003,1e400,"), {}, 3),
    "wrong date": (swap("forms.csv", "2019-01-04", "Piepsucht"), {}, 3),
    "wrong time of prediction": (swap("people.csv", "2020-01-04", "Piepsucht"), {}, 3),
    "class not declared": (swap("people.csv", "ZEISIG-001,1,", "ZEISIG-001,Piepsucht,"), {}, 3),
    "code not declared": (swap("forms.csv", ",a,", ",Piepsucht,"), {}, 3),
    "split not declared": (lambda f: None, {"split": {"column": "site"}}, 3),
    "value of a long table": (swap("labs.csv", "na,143", "na,has Piepsucht"), {}, 3),
    "longer row": (swap("forms.csv", "KANARI-003,", "KANARI-003,Piepsucht,"), {}, 3),
    "short last row": (lambda f: f.update({"forms.csv": f["forms.csv"][:-14]}), {}, 3),
    "undecodable byte": (swap("forms.csv", "has Piepsucht", "has Piep\xff"), {}, 3),
    "null byte": (swap("people.csv", "KANARI-003", "KANARI\0-003"), {}, 3),
    "quote without end": (swap("forms.csv", "has Piepsucht", '"has Piepsucht'), {}, 3),
    "column absent": (swap("people.csv", "person", "persons"), {}, 3),
    "value far from the others": (swap("forms.csv", "KANARI-003,3,", "KANARI-003,424242,"), {}, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_quotes_an_id_or_a_cell(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, spec, code = FAULTS[name]
    content = files()
    change(content)
    raw = write(tmp_path / "raw", content, declaration(**spec))
    assert main(["check", "tables", "--raw", str(raw), "--work", str(tmp_path / "work")]) == code
    printed = "".join(capsys.readouterr())
    assert len(printed) > 100
    assert not [c for c in (*CANARIES, "424242") if c in printed], printed
    for file in (p for p in (tmp_path / "work").rglob("*") if p.is_file()):
        assert not [c for c in CANARIES if c in file.read_text()], file


def test_a_damaged_archive_and_paths_with_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = files()
    packed = gzip.compress(content.pop("forms.csv").encode())
    rows = (f"{i},KANARI/{i}.png\n" for i in IDS)
    content["scans.csv"] = "id,file\n" + "".join(rows)
    spec = declaration()
    spec["modalities"]["scans"] = {"file": "scans.csv", "columns": "file", "image": {"size": [8, 8]}}
    raw = write(tmp_path / "raw", content, spec)
    (raw / "forms.csv.gz").write_bytes(packed[:200])
    assert main(["check", "tables", "--raw", str(raw)]) == 3
    printed = "".join(capsys.readouterr())
    assert "scans.csv, column 'file', line 2" in printed
    assert "forms.csv" in printed
    assert not [c for c in CANARIES if c in printed], printed


def test_values_are_printed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = files()
    swap("forms.csv", "KANARI-003,3,", "KANARI-003,Piepsucht,")(content)
    raw = write(tmp_path / "raw", content, declaration())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHOW_VALUES, "0")
        assert main(["check", "tables", "--raw", str(raw), "--show-values"]) == 3
    assert "found 'Piepsucht'" in capsys.readouterr().err


def leaks(folder: Path, canaries: tuple[str, ...] = CANARIES, own: tuple[str, ...] = ()) -> list[str]:
    """Files of a folder, other than its `own` tables, that contain a canary."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    others = [p for p in paths if not any(p.relative_to(folder).match(pattern) for pattern in own)]
    return [f"{p}: {c}" for p in others for c in canaries if c.encode() in p.read_bytes()]


OWN = ("samples.parquet", "dictionary.parquet", "modalities/*", "labels/*", "splits/*")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("privacy")
    raw = write(folder / "raw", files(), declaration())
    build(get_dataset("tables"), raw, folder / "store", {})
    return folder / "store"


def test_a_store_holds_ids_and_values_in_its_tables_only(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaks(store, own=OWN) == []
    assert pl.read_parquet(store / "samples.parquet")["sample_id"][0] == IDS[0]
    notes = json.loads((store / "manifest.json").read_text())["notes"]
    assert "forms: treated as categorical; a code list under `kinds` would fix the levels: note (3 values)" in notes
    for command in ("show", "verify", "audit"):
        assert main([command, str(store)]) == 0
    printed = "".join(capsys.readouterr())
    assert not [c for c in CANARIES if c in printed], printed


def test_the_card_gives_no_small_count(store: Path) -> None:
    manifest, card = json.loads((store / "manifest.json").read_text()), (store / "README.md").read_text()
    assert manifest["pattern_counts"] == {"forms": 3, "forms+labs": 56, "labs": 1}
    assert "| forms | &lt; 5 |" in card
    assert "| forms+labs | 55 |" in card
    assert "| labs | &lt; 5 |" in card
    assert "60 samples of 30 subjects" in card
    # 59 and 57 samples have the modalities.
    assert "| 60 | – |" in card
    assert "forms: 60 of 60 samples" in card
    assert " 59 " not in card
    assert "Counts are rounded to 5" in card


def test_a_proposal_lists_no_levels_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "raw", files(), {})
    out = tmp_path / "proposed.yaml"
    assert main(["init", "tables", *map(str, sorted(raw.glob("*.csv"))), "--out", str(out)]) == 0
    printed = "".join(capsys.readouterr()) + out.read_text()
    assert "note: categorical  # text, 3 values" in printed
    assert not [c for c in CANARIES if c in printed], printed


def test_cells_are_described_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (None, "", "1.5", -3, "1,250", "1e5", "2020-02-31", "31.12.2020 08:30", "Ann Smith", "12 mg")
    assert [cell(v) for v in values] == [
        *["an empty field"] * 2,
        *["a number"] * 4,
        *["a date"] * 2,
        "text of 9 characters",
        "text of 5 characters",
    ]
    assert cells(["a", "b", "1", "2"]) == "text of 1 characters, a number"
    assert [shape(i) for i in ("v00002", "sub-0012", "Ann", "002_S_0413")] == [
        "'v•••••'",
        "'•••-••••'",
        "'•••'",
        "'•••_S_••••'",
    ]
    assert reason(pl.exceptions.ComputeError("could not parse `Ann`")) == "ComputeError"
    assert reason(ValueError("an odd size\nAnn")) == "an odd size"
    monkeypatch.setenv(SHOW_VALUES, "1")
    assert (cell("Ann"), shape("v00002")) == ("'Ann'", "'v00002'")


def test_counts_are_rounded() -> None:
    assert [f"{Count(n):,}" for n in (0, 1, 4, 5, 7, 8, 1233)] == ["0", "< 5", "< 5", "5", "5", "10", "1,235"]
    frame = pl.DataFrame({"n_before": [100, 4], "n_after": [97, 0]})
    assert frame.with_columns(rounded(pl.col("n_before", "n_after"))).rows() == [(100, 95), (0, 0)]
    for text, expected in {
        "1 of 51 rows (2%) of a.csv match none": "< 5 of 50 rows (2%) of a.csv match none",
        "97 of 100 samples have one": "95 of 100 samples have one",
        "3 participants have several PTIDs": "< 5 participants have several PTIDs",
        "3 numeric and 2 categorical features": "3 numeric and 2 categorical features",
    }.items():
        assert counts_rounded(text) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meds", "mimic", "adni"])
def test_ids_of_each_reader_stay_in_its_tables(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also after faults: a damaged table and rows of a patient that occur twice."""
    dataset, lines = get_dataset(name), list[str]()
    raw = tmp_path / "raw"
    simulate(dataset, raw, dataset.tiny)
    build(dataset, raw, tmp_path / "store", {}, report=lines.append)
    samples = pl.read_parquet(tmp_path / "store/samples.parquet")
    ids = tuple({i for c in ("sample_id", "subject_id") for i in samples[c].to_list() if len(i) >= 6})
    assert leaks(tmp_path / "store", ids, (*OWN, "attrition.parquet")) == []
    printed = "\n".join(lines) + "".join(capsys.readouterr())
    assert not [i for i in ids if i in printed]
    tables = [p for p in sorted(raw.rglob("*.csv*")) + sorted(raw.rglob("data/**/*.parquet")) if p.stat().st_size > 400]
    for path in tables[:12]:
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole + whole[len(whole) // 2 :], whole.replace(b"0", b"x", 40)):
            path.write_bytes(damaged)
            try:
                main(["check", name, "--raw", str(raw)])
            except DataError as error:
                print(error)
            printed = "".join(capsys.readouterr())
            assert not [i for i in ids if i in printed], f"{path}: {printed[:2000]}"
        path.write_bytes(whole)


@pytest.mark.slow
def test_runs_and_pages_hold_no_ids(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("logistic", "moe_retriever"):
        settings = ["epochs=2"] if method == "moe_retriever" else []
        out = tmp_path / "runs" / method
        command = ["train", "--store", str(store), "--out", str(out), "--method", method, "--set", "subgroups=site"]
        assert main([*command, *settings]) == 0
    runs = [str(p) for p in (tmp_path / "runs").iterdir()]
    page = tmp_path / "page" / "report.html"
    assert main(["report", "--stores", str(store), "--runs", *runs, "--out", str(page)]) == 0
    ids = CANARIES[:3]
    assert leaks(tmp_path / "runs", ids, ("*/predictions*.parquet",)) == []
    assert leaks(tmp_path / "page", ids) == []
    assert leaks(tmp_path / "page", ("Zwitscher", "Piep")) == []
    printed = "".join(capsys.readouterr())
    assert not [c for c in ids if c in printed]
    text = page.read_text()
    assert "&lt; 5" in text
    scores = pl.read_csv(page.parent / "results.csv")
    assert scores.filter(pl.col("n").is_null())["value"].null_count() == scores["n"].null_count()
    assert (scores["n"].drop_nulls() % 5 == 0).all()
