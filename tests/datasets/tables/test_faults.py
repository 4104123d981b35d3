"""Declared tables: nothing is merged, lost or ignored without a fault or a note."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mrpipe import open_store
from mrpipe.datasets.tables import DATASET as TABLES
from mrpipe.datasets.tables import joins
from mrpipe.datasets.tables.check import check_export
from mrpipe.datasets.tables.config import TablesOptions
from mrpipe.datasets.tables.parser import parse_config
from mrpipe.errors import DataError, cell
from mrpipe.schema import Checked
from mrpipe.stages.build import build
from tests.datasets.tables.tables_toy import IDS, N, built, config, csv, faults_of, notes_of, people, values, write

A = csv("id,x", [[i, k] for k, i in enumerate(IDS)])


def checked(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> Checked:
    return check_export(write(folder / "raw", files, spec), TablesOptions())


# Encodings, separators and formats.


def test_undecodable_bytes_are_an_error_until_the_encoding_is_declared(tmp_path: Path) -> None:
    """With replacement characters, Jürgen and Jörgen would be one subject, and März and Mörz one site."""
    rows = [
        [i, ["Jürgen", "Jörgen"][k] if k < 2 else f"s{k}", ["März", "Mörz"][k % 2], k % 2] for k, i in enumerate(IDS)
    ]
    spec = config(
        file="v.csv", subject="who", label={"column": "out", "classes": [0, 1]}, modalities={"a": {"columns": ["site"]}}
    )
    raw = write(tmp_path / "raw", {}, spec)
    (raw / "v.csv").write_bytes(csv("id,who,site,out", rows).encode("latin-1"))
    with pytest.raises(DataError, match=r"v\.csv, line 2: expected text in UTF-8; found byte 0xfc .* `encoding:`"):
        check_export(raw, TablesOptions())
    for encoding in ("latin-1", {"v.csv": "cp1252"}):
        store = built(tmp_path, {}, spec | {"encoding": encoding})
        assert store.samples().collect()["subject_id"].n_unique() == N
        assert store.dictionary["levels"].to_list() == [["März", "Mörz"]]
    message = faults_of(tmp_path / "typo", {"v.csv": ""}, spec | {"encoding": {"w.csv": "cp1252"}})
    assert "encoding.w.csv" in message
    (raw / "tables.yaml").write_bytes(b"title: J\xfcrgen\n")
    with pytest.raises(DataError, match=r"tables\.yaml, line 1: expected text in UTF-8"):
        check_export(raw, TablesOptions())


def test_other_separators_and_decimal_commas_are_found_or_read_as_declared(tmp_path: Path) -> None:
    text = "id;x;kg\n" + "".join(f"{i};{k},5;-99,0\n" for k, i in enumerate(IDS[:59])) + f"{IDS[59]};7;61,5\n"
    files = {"people.csv": people(), "a.csv": text}
    notes = notes_of(tmp_path / "undeclared", files, config(missing=[-99]))
    assert "a.csv: columns are separated by a semicolon" in notes
    assert "a.csv: numbers have a decimal comma" in notes
    assert values(built(tmp_path / "undeclared", files, config(missing=[-99])), "a")["p07"][0] == 7.5
    message = faults_of(tmp_path / "comma", files, config(separator=","))
    assert "a.csv, line 1: expected columns separated by a comma; found columns separated by a semicolon" in message
    spec = config(separator={"a.csv": ";"}, decimal={"a.csv": ","}, missing=[-99])
    store = built(tmp_path, files, spec)
    assert values(store, "a")["p07"][0] == 7.5
    assert store.dictionary["n_observed"].to_list() == [60, 1]
    thousands = {**files, "a.csv": text.replace(f"{IDS[3]};3,5", f"{IDS[3]};1.250")}
    message = faults_of(tmp_path / "thousands", thousands, spec)
    assert "column 'x', line 5: expected numbers with a decimal comma; found a number" in message
    quoted = csv("id,x", [[i, f'"{k},5"'] for k, i in enumerate(IDS)])
    assert "declare `decimal:" in faults_of(tmp_path / "quoted", {**files, "a.csv": quoted}, config())
    assert "column 'decimal'" in faults_of(tmp_path / "bad", files, config(decimal=";"))


def test_a_damaged_workbook_is_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", {"people.csv": people()}, config(modalities={"a": {"file": "a.xlsx"}}))
    (raw / "a.xlsx").write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(DataError, match=r"a\.xlsx: expected complete Excel workbooks; found unreadable data"):
        check_export(raw, TablesOptions())


def test_parquet_types_are_read_or_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "id": range(N),
            "took": [dt.timedelta(seconds=k) for k in range(N)],
            "list": [[k] for k in range(N)],
            "price": [Decimal(k) / 4 for k in range(N)],
            "flag": [k % 2 == 0 for k in range(N)],
            "day": [dt.datetime(2020, 1, 1 + k % 3) for k in range(N)],
            "big": [float("inf") if k == 2 else k / 3 for k in range(N)],
        }
    ).with_columns(grade=pl.Series([["lo", "hi"][k % 2] for k in range(N)], dtype=pl.Enum(["lo", "hi"])))
    spec = config(
        file="t.parquet",
        label={"column": "flag", "classes": ["true", "false"]},
        modalities={"a": {"columns": ["price", "day", "grade"]}},
    )
    raw = write(tmp_path / "raw", {}, spec)
    frame.write_parquet(raw / "t.parquet")
    store = built(tmp_path, {}, spec)
    assert values(store, "a")["7"] == [1.75, 1.0, 0.0]
    assert store.dictionary["levels"].to_list()[2] == ["hi", "lo"]
    message = faults_of(tmp_path, {}, {**spec, "modalities": {"a": {}}})
    assert "column 'took': expected numbers or text; found values of type Duration" in message
    assert "column 'list': expected numbers or text; found values of type List(Int64)" in message
    assert "t.parquet, column 'big', row 3: expected a finite number" in message


def test_unusable_names_are_errors(tmp_path: Path) -> None:
    files = {"people.csv": people(), "a.csv": A.replace("x", "__row", 1)}
    assert "a.csv, column '__row': expected another column name; found a reserved name" in faults_of(
        tmp_path, files, config()
    )
    spec = config(modalities={"a": {"file": "a" * 300}})
    assert "expected a path inside the export folder" in faults_of(tmp_path / "b", {"people.csv": people()}, spec)


# Codes.


@pytest.mark.parametrize("code", ["2009_10", "1e5", "0x10", "010", "1:30", "2018-05-26"])
def test_only_decimal_numbers_are_numbers(tmp_path: Path, code: str) -> None:
    """Python and YAML read 2009_10 as 200910, 010 as 8 and 1:30 as 90."""
    other = {"2009_10": "200910", "1e5": "100000", "0x10": "16", "010": "10", "1:30": "90"}.get(code, "20180526")
    rows = [[i, k % 2, [code, other, "w"][k % 3]] for k, i in enumerate(IDS)]
    files = {"people.csv": csv("id,out,wave", rows), "a.csv": A}
    text = yaml.safe_dump(config()) + f"drop: {{wave: [{code}]}}\n"
    store = built(tmp_path, files, yaml.load(text, yaml.BaseLoader) | {"drop": {"wave": [code]}})
    assert store.manifest.n_samples == 40
    assert parse_config(text, "tables.yaml").drop == (("wave", (code,)),)
    assert parse_config(yaml.safe_dump(config()) + "missing: [-99.0, 7, +1]\n", "y").missing == (
        ("*", ("-99", "7", "+1")),
    )


def test_yaml_keys_must_not_repeat() -> None:
    with pytest.raises(DataError, match="the key 'a' twice"):
        parse_config("modalities: {a: {file: x.csv}, a: {file: y.csv}}", "tables.yaml")


@pytest.mark.parametrize("label", [{"threshold": 15}, {"kind": "regression"}, {"classes": [0, 20]}])
def test_missing_codes_apply_to_labels(tmp_path: Path, label: dict[str, Any]) -> None:
    rows = [[i, "-99.0" if k % 4 == 0 else 20 * (k % 2)] for k, i in enumerate(IDS)]
    spec = config(missing=[-99], label={"file": "people.csv", "column": "score", **label})
    store = built(tmp_path, {"people.csv": csv("id,score", rows), "a.csv": A}, spec)
    found = store.labels().collect()
    assert len(found) == 45
    assert set(found["value"].to_list()) == ({0, 20} if "kind" in label else {0, 1})


def test_codes_that_are_both_missing_and_a_class_are_an_error(tmp_path: Path) -> None:
    files = {"people.csv": people(), "a.csv": A}
    assert "classes that are not codes for missing; found 0" in faults_of(tmp_path, files, config(missing=[0]))
    assert notes_of(tmp_path / "b", files, config(missing={"x": [0]})).count("does not occur") == 0


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_rules_that_match_nothing_are_noted(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "_BLOCK", block)
    rows = [[i, k, ["Unknown", "b"][k % 2]] for k, i in enumerate(IDS)]
    spec = config(
        missing=[-99, "unknown"],
        drop={"site": ["North", "west"]},
        exclude=["nothing*", "x"],
        modalities={"a": {"file": "a.csv", "exclude": ["y"], "missing": {"word": ["c"]}, "drop": {"x": [3, 99]}}},
        label={"file": "people.csv", "column": "out", "classes": [0, 1, 2]},
        split={"file": "people.csv", "column": "site", "train": ["north"], "val": ["east"], "test": ["south"]},
    )
    notes = notes_of(tmp_path, {"people.csv": people(), "a.csv": csv("id,x,word", rows)}, spec).splitlines()
    for note in (
        "missing: '-99' does not occur",
        "missing: 'unknown' does not occur; 'Unknown' does",
        "drop: 'North' does not occur in site; 'north' does",
        "exclude: no column 'nothing*' in a.csv",
        "exclude: no column 'y' in a.csv",
        "modalities.a.missing: 'c' does not occur in word",
        "modalities.a.drop: '99' does not occur in x",
        "label label: no sample is of class 2",
        "split: 'east' does not occur in column site",
    ):
        assert note in notes, (note, notes)
    assert not any("'x'" in n or "'3'" in n for n in notes)


def test_columns_of_one_name_are_never_one(tmp_path: Path) -> None:
    rows = [[i, k, 2 * k, 3 * k, 4 * k, 5 * k, 6 * k] for k, i in enumerate(IDS)]
    files = {"people.csv": people(), "a.csv": csv("id,x,x,HR,hr,z,z ", rows)}
    for name in ("x", "HR", "z"):
        spec = config(modalities={"a": {"file": "a.csv", "columns": [name]}})
        assert f"column '{name}': expected this column once" in faults_of(tmp_path / name, files, spec)
    spec = config(modalities={"a": {"file": "a.csv", "columns": [2]}})
    assert "a.csv: column names that repeat, or differ only in case or padding: 'x', 'x_dup" in notes_of(
        tmp_path, files, spec
    )
    assert "column 'x': expected this column once" in faults_of(tmp_path / "e", files, config(exclude=["x"]))


def test_numbers_with_a_few_errors_are_no_categories(tmp_path: Path) -> None:
    for k, value in enumerate(("<0.5", "inf", "1 234", "5%")):
        files = {"people.csv": people(), "a.csv": A.replace("p03,3\n", f"p03,{value}\n")}
        assert f"line 5: expected a finite number, or few categories; found {cell(value)}" in faults_of(
            tmp_path / str(k), files, config()
        )
    files["a.csv"] = csv("id,x", [[i, ["1", "2", "3a", "Lyon", "lyon"][k % 5]] for k, i in enumerate(IDS)])
    assert "a: levels that are alike: x ('••••' and '••••')" in notes_of(tmp_path, files, config())


# Joins, ids and subjects.


@pytest.mark.parametrize(
    ("own", "other", "difference"),
    [
        ("V{:03d}", "v{:03d}", "case, padding or quotes, such as 'v•••' instead of 'V•••'"),
        ("V{:03d}", "'V{:03d}'", "case, padding or quotes"),
        ("{}a", "{}a.0", "a decimal point, such as '••a.•' instead of '••a'"),
        ("{}", "{:04d}", "leading zeros, such as '••••' instead of '•'"),
        ("{}", "sub-{:04d}", "a prefix, such as '•••-••••' instead of '•'"),
        ("J\u00f6rg{}", "Jo\u0308rg{}", "case, padding or quotes"),
    ],
)
def test_lost_rows_are_an_error_with_a_near_miss(tmp_path: Path, own: str, other: str, difference: str) -> None:
    rows = [[(other if k % 2 else own).format(k), k] for k in range(N)]
    files = {"people.csv": csv("id,out", [[own.format(k), k // 2 % 2] for k in range(N)]), "a.csv": csv("id,x", rows)}
    message = faults_of(tmp_path, files, config())
    assert (
        "line 3: expected rows of samples of people.csv; found 30 of 60 rows (50%) that match none; 30 differ"
        in message
    )
    assert difference in message
    assert "(lines 3, 5, 7, 9, …)" in message
    for allowed in ("allow", 0.5, {"a.csv": 0.6}):
        notes = notes_of(tmp_path, files, config(unmatched=allowed))
        assert "30 of 60 rows (50%) of a.csv match no sample of people.csv and are ignored; 30 differ only in" in notes
    assert "that match none" in faults_of(tmp_path, files, config(unmatched={"a.csv": 0.4}))


def test_rows_of_dropped_samples_are_not_lost(tmp_path: Path) -> None:
    notes = notes_of(tmp_path, {"people.csv": people(), "a.csv": A}, config(drop={"site": ["north"]}))
    assert "match no sample" not in notes


def test_labels_lost_in_a_join_are_reported(tmp_path: Path) -> None:
    labels = {
        "out": {"file": "people.csv", "column": "out", "classes": [0, 1]},
        "late": {"file": "late.csv", "column": "late", "kind": "regression"},
    }
    late = csv("id,late", [[i.upper() if k % 3 == 0 else i, k] for k, i in enumerate(IDS)])
    files = {"people.csv": people(), "a.csv": A, "late.csv": late}
    assert "late.csv, column 'id', line 2" in faults_of(tmp_path, files, config(label=None, labels=labels))
    notes = notes_of(tmp_path, files, config(label=None, labels=labels, unmatched="allow"))
    assert "label late: 40 of 60 samples have one" in notes


def test_ids_written_as_decimals_join(tmp_path: Path) -> None:
    files = {
        "people.csv": csv("id,out", [[k, k % 2] for k in range(N)]),
        "a.csv": csv("id,x", [[f"{k}.0", k] for k in range(N)]),
    }
    assert values(built(tmp_path, files, config()), "a")["7"] == [7]
    mixed = {**files, "a.csv": files["a.csv"].replace("3.0,3\n", "3.5,3\n")}
    assert "59 differ only in a decimal point" in faults_of(tmp_path / "mixed", mixed, config())


def test_repeated_ids_are_an_error_in_every_file(tmp_path: Path) -> None:
    files = {
        "people.csv": people() + "p03,0,north\np03,1,south\n",
        "a.csv": A + "p05,5\n",
        "s.csv": people() + "p01,1,x\n",
    }
    labels = {
        "one": {"file": "people.csv", "column": "out", "classes": [0, 1]},
        "two": {"file": "s.csv", "column": "out", "classes": [0, 1]},
    }
    message = faults_of(tmp_path, files, config(label=None, labels=labels))
    assert "people.csv, column 'id', line 5: expected one row per id; found 3 rows of 1 repeated ids" in message
    assert "with different values (lines 5, 62, 63)" in message
    assert (
        "a.csv, column 'id', line 7: expected one row per id; found 2 rows of 1 repeated ids, with equal values"
        in message
    )
    assert "s.csv, column 'id', line 3" in message


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    text = 'id,x,note\np00,1,"two\nlines"\n\np01,1,c\np02,bad,d\n' + "".join(f"{i},1,c\n" for i in IDS[3:])
    spec = config(modalities={"a": {"file": "a.csv", "columns": ["x"], "kinds": {"x": "numeric"}}})
    assert faults_of(tmp_path, {"people.csv": people(), "a.csv": text}, spec).startswith(
        "a.csv, column 'x', line 6: expected a finite number"
    )


def test_empty_rows_keep_their_place_when_joined_by_order(tmp_path: Path) -> None:
    a = csv("x,y", [["", ""] if k == 3 else [k, k % 2] for k in range(N)])
    b = csv("z,w", [["", ""] if k == 8 else [k, 1 + k] for k in range(N)]) + "\n\n"
    spec = {"join": "order", "modalities": {"a": {"file": "a.csv"}, "b": {"file": "b.csv"}}}
    store = built(
        tmp_path, {"a.csv": a, "b.csv": b}, spec | {"label": {"file": "a.csv", "column": "y", "classes": [0, 1]}}
    )
    assert values(store, "b")["06"] == [5, 6]
    assert "09" not in values(store, "b")
    assert values(store, "b")["11"] == [10, 11]


def test_blank_subjects_are_an_error(tmp_path: Path) -> None:
    rows = [[i, {1: "", 4: "NA", 6: "unknown"}.get(k, f"s{k // 2}"), k % 2] for k, i in enumerate(IDS)]
    files = {"people.csv": csv("id,who,out", rows), "a.csv": A}
    message = faults_of(tmp_path, files, config(subject="who", missing=["unknown"]))
    assert (
        "people.csv, column 'who', line 3: expected a subject in every row; found 3 rows without one (lines 3, 6, 8)"
        in message
    )


def test_subjects_that_nearly_agree_or_are_not_declared_are_noted(tmp_path: Path) -> None:
    rows = [[i, f"{'Ss'[k % 2]}{k // 4}", 1000 + k // 2, k % 2] for k, i in enumerate(IDS)]
    files = {"people.csv": csv("id,patient_no,group,out", rows), "a.csv": A}
    notes = notes_of(tmp_path, files, config())
    assert "no `subject` is declared" in notes
    assert "patient_no (30 values in 60 rows), group (30 values in 60 rows)" in notes
    notes = notes_of(tmp_path, files, config(subject="patient_no"))
    assert "subject_id: 'S•' and 's•' differ only in case or padding" in notes
    assert "no `subject` is declared" not in notes


def test_labels_in_a_file_without_subjects(tmp_path: Path) -> None:
    """The samples are then the rows of the default file, which has the subjects."""
    visits = csv("id,who,x", [[i, f"s{k // 2}", k] for k, i in enumerate(IDS)])
    outcome = csv("id,out", [[i, k % 2] for k, i in enumerate(IDS[:40])])
    spec = config(
        file="visits.csv",
        subject="who",
        modalities={"a": {}},
        label={"file": "out.csv", "column": "out", "classes": [0, 1]},
    )
    store = built(tmp_path, {"visits.csv": visits, "out.csv": outcome}, spec)
    assert store.samples().collect()["subject_id"].n_unique() == 30
    assert len(store.labels().collect()) == 40
    assert store.manifest.n_samples == N
    assert store.dictionary["name"].to_list() == ["x"]


def test_rows_per_subject_serve_all_samples(tmp_path: Path) -> None:
    visits = csv("id,who,out", [[i, f"s{k // 2}", k % 2] for k, i in enumerate(IDS)])
    who = csv("who,age,fold", [[f"s{j}", j, "train" if j < 20 else "test"] for j in range(29)])
    spec = config(subject="who", modalities={"a": {"file": "a.csv"}, "p": {"file": "who.csv", "columns": ["age"]}})
    spec |= {"split": {"file": "who.csv", "column": "fold"}}
    files = {"people.csv": visits, "who.csv": who, "a.csv": A}
    store = built(tmp_path, files, spec)
    assert [values(store, "p")[i] for i in ("p06", "p07", "p57")] == [[3], [3], [28]]
    assert "p58" not in values(store, "p")
    assert dict(store.split("standard").collect().iter_rows())["p41"] == "test"
    notes = notes_of(tmp_path, files, spec)
    assert "who.csv has no column 'id': a row serves all samples of its who" in notes
    assert "split: 2 of 60 samples are in no part" in notes
    twice = {**files, "who.csv": who + "s3,4,train\n"}
    assert "found 2 rows of 1 repeated ids" in faults_of(tmp_path, twice, spec)


def test_observed_samples_and_unused_files_and_columns(tmp_path: Path) -> None:
    files = {"people.csv": people(), "a.csv": csv("id,x,y,z", [[i, k, k, k] for k, i in enumerate(IDS[5:])])}
    files |= {"labs.csv": A, "a.csv.gz": ""}
    spec = config(modalities={"a": {"file": "a.csv", "columns": ["x"], "exclude": ["z"]}})
    found = checked(tmp_path, files, spec)
    assert sorted(found.observed["a"].to_list()) == IDS[5:]
    assert set(found.unused) == {"people.csv: site", "a.csv: y", "labs.csv", "a.csv.gz"}
    assert found.unused["labs.csv"] == "tables.yaml does not name it"
    assert found.unused["a.csv.gz"] == "a.csv is read"


def test_codes_with_trailing_zeros_match_the_same_text(tmp_path: Path) -> None:
    cells = ["-99.90", "-99.9", "1.50", "2"]
    rows = [[i, cells[k % 4]] for k, i in enumerate(IDS)]
    raw = write(tmp_path / "raw", {"people.csv": people(), "a.csv": csv("id,x", rows)}, config())
    with (raw / "tables.yaml").open("a") as handle:
        handle.write("missing: [-99.90]\n")
    build(TABLES, raw, tmp_path / "store", {})
    x = open_store(tmp_path / "store").arrays("a").x[:, 0].tolist()
    assert {round(v, 4): x.count(v) for v in x} == {-99.9: 15, 1.5: 15, 2.0: 15}


def test_a_sample_of_two_persons_is_a_contradiction(tmp_path: Path) -> None:
    files = {
        "people.csv": csv("id,who,out", [[i, f"p{k // 2}", k % 2] for k, i in enumerate(IDS)]),
        "a.csv": csv("id,who,x", [[i, "p9" if k == 3 else f"p{k // 2}", k] for k, i in enumerate(IDS)]),
    }
    message = faults_of(tmp_path, files, config(subject="who"))
    assert "a.csv, column 'who', line 5: expected the who that people.csv has for the id; found another in 1 rows" in (
        message
    )
    files["a.csv"] = files["a.csv"].replace(",p9,3\n", ",P1,3\n")
    assert not notes_of(tmp_path / "spelling", files, config(subject="who")).count("another in")


def test_row_numbers_are_no_features(tmp_path: Path) -> None:
    """Sorted by outcome, they would tell the label."""
    raw = write(tmp_path / "raw", {"people.csv": people()}, config(modalities={"a": {"file": "a.parquet"}}))
    frame = pl.DataFrame({"id": IDS, "x": [k / 7 for k in range(len(IDS))], "__index_level_0__": range(len(IDS))})
    frame.write_parquet(raw / "a.parquet")
    build(TABLES, raw, tmp_path / "store", {})
    assert open_store(tmp_path / "store").dictionary["name"].to_list() == ["x"]
    numbered = csv(",id,x,", [[k, i, k / 7, ""] for k, i in enumerate(IDS)])
    store = built(tmp_path / "csv", {"people.csv": people(), "a.csv": numbered}, config())
    assert store.dictionary["name"].to_list() == ["x"]
    spec = config(modalities={"a": {"file": "a.csv", "columns": ["*", 1]}})
    store = built(tmp_path / "position", {"people.csv": people(), "a.csv": numbered}, spec)
    assert store.dictionary["source_column"].to_list() == ["", "x"]


def test_ids_are_not_compared_with_those_of_an_unreadable_file(tmp_path: Path) -> None:
    files = {"people.csv": people(), "a.csv": csv("id,x", [[i, k / 7] for k, i in enumerate(IDS)])}
    raw = write(tmp_path / "raw", files, config())
    (raw / "people.csv").write_bytes(people().replace("p07", "pä7").encode("latin-1"))
    with pytest.raises(DataError) as error:
        check_export(raw, TablesOptions())
    assert [f.file for f in error.value.faults] == ["people.csv"]


def test_ids_that_a_spreadsheet_rounded_are_an_error(tmp_path: Path) -> None:
    """Measurements of several patients would be those of one."""
    ids = [12345678901234500 + k for k in range(N)]
    rows = [[i, k / 7, k % 2] for k, i in enumerate(ids)]
    spec = config(modalities={"a": {"file": "a.csv", "long": {"item": "t", "value": "x", "aggregate": "mean"}}})
    for rounded, expected in ((0, ""), (10, "found ids of 16 and more digits that end in 0")):
        long = [[i // rounded * rounded if rounded else i, "crp", k] for k, i in enumerate(ids)]
        files = {"people.csv": csv("id,y,out", rows), "a.csv": csv("id,t,x", long)}
        if expected:
            assert expected in faults_of(tmp_path / "rounded", files, spec)
        else:
            notes_of(tmp_path / "exact", files, spec)
