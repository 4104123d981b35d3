"""Declared tables: other names of ids, subjects' tables, dates, limits of measurement, texts, and splits by group."""

from __future__ import annotations

import datetime as dt
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from mrpipe.datasets.tables import files
from mrpipe.transforms.fit import fit
from tests.datasets.tables.tables_toy import IDS, N, built, config, csv, faults_of, notes_of, people, values
from tests.stores import tables

A = csv("id,x", [[i, k] for k, i in enumerate(IDS)])
BY_COLUMN = {"file": "people.csv", "column": "out", "classes": [0, 1]}


def visits(**columns: Any) -> str:
    """Visits `id, who, out` of 30 persons, with further columns."""
    rows = [[i, f"s{k // 2}", k // 2 % 2, *(c[k] for c in columns.values())] for k, i in enumerate(IDS)]
    return csv(",".join(["id", "who", "out", *columns]), rows)


# Ids and subjects.


def test_files_with_other_names_of_the_id_and_the_subject(tmp_path: Path) -> None:
    table = {
        "people.csv": visits(),
        "a.csv": csv("Fall,x", [[i, k] for k, i in enumerate(IDS)]),
        "p.csv": csv("Patient,age", [[f"s{j}", j] for j in range(30)]),
    }
    spec = config(
        id={"*": "id", "a.csv": "Fall"},
        subject={"*": "who", "p.csv": "Patient"},
        modalities={"a": {"file": "a.csv"}, "p": {"file": "p.csv"}},
    )
    store = built(tmp_path, table, spec)
    assert values(store, "a")["p07"] == [7]
    assert values(store, "p")["p07"] == [3]
    assert store.dictionary["name"].to_list() == ["x", "age"]
    message = faults_of(tmp_path / "none", table, {**spec, "id": {"people.csv": "id"}, "subject": "who"})
    assert "tables.yaml, column 'id': expected the column with the ids of a.csv; found none for this file" in message
    assert "id.b.csv" in faults_of(tmp_path / "typo", table, {**spec, "id": {"*": "id", "b.csv": "Fall"}})


def test_level_subject_is_explicit_and_allows_one_row_per_subject(tmp_path: Path) -> None:
    """The table has an id as well, of the first visit; without the level, it would serve only that."""
    rows: list[list[object]] = [[IDS[2 * j], f"s{j}", j] for j in range(30)]
    modalities: dict[str, Any] = {"a": {"file": "a.csv"}, "p": {"file": "p.csv", "level": "subject"}}
    table = {"people.csv": visits(), "a.csv": A, "p.csv": csv("id,who,age", rows)}
    store = built(tmp_path, table, config(subject="who", modalities=modalities))
    assert [values(store, "p")[i] for i in ("p06", "p07")] == [[3], [3]]
    twice = {**table, "p.csv": csv("id,who,age", [*rows, ["p01", "s0", 5]])}
    message = faults_of(tmp_path / "b", twice, config(subject="who", modalities=modalities))
    assert "p.csv, column 'id', line 2: expected one row per subject; found 2 rows of 1 repeated ids" in message
    assert "expected the column with the subjects of p.csv" in faults_of(
        tmp_path / "c", table, config(modalities=modalities)
    )


# Dates.


def test_dates_count_from_the_prediction_or_from_another_column(tmp_path: Path) -> None:
    born = [f"{1 + k % 28:02d}.03.1950" for k in range(N)]
    admitted = [f"2020-01-{1 + k % 20:02d} 12:00" for k in range(N)]
    left = ["2020-02-10T18:00:00Z" if k % 2 else "2020-01-30" for k in range(N)]
    table = {"people.csv": visits(born=born, admitted=admitted, left=left, asked=["2020-01-31"] * N)}
    age = {"born": {"kind": "age", "format": "%d.%m.%Y"}, "admitted": "date"}
    since = {"left": {"kind": "date", "since": "admitted"}}
    modalities = {"a": {"columns": list(age), "kinds": age}, "b": {"columns": ["left"], "kinds": since}}
    spec = config(file="people.csv", modalities=modalities, prediction_time="asked")
    store = built(tmp_path, table, spec)
    assert values(store, "a")["p00"] == pytest.approx(
        [(dt.date(2020, 1, 31) - dt.date(1950, 3, 1)).days / 365.25, -29.5]
    )
    assert store.dictionary["unit"].to_list() == ["years", "days", "days"]
    # Dates after the prediction are missing, from whatever they are counted.
    assert values(store, "b")["p00"] == [28.5]
    assert "p01" not in values(store, "b")
    assert "b: dates after the time of the prediction, which are not used: left (30 rows)" in notes_of(
        tmp_path, table, spec
    )
    without = config(file="people.csv", modalities={"b": modalities["b"]})
    assert values(built(tmp_path / "c", table, without), "b")["p01"] == [39.25]


def test_dates_that_are_not_of_the_format_are_faults(tmp_path: Path) -> None:
    day = [f"2020-01-{1 + k % 28:02d}" for k in range(N)]
    day[3], day[4] = "2020-02-31", "31.01.2020"
    table = {"people.csv": visits(day=day, asked=["2021-01-01"] * N)}
    date = {"a": {"columns": ["day"], "kinds": {"day": "date"}}}
    spec = config(file="people.csv", modalities=date, prediction_time="asked")
    message = faults_of(tmp_path, table, spec)
    assert "column 'day', line 5: expected dates such as 2019-01-31 or 2019-01-31 08:30; found a date" in message
    assert "2 such rows (lines 5, 6)" in message
    assert "prediction_time" in faults_of(tmp_path / "b", table, config(file="people.csv", modalities=date))
    many = {"people.csv": visits(day=[f"20{k:02d}-01-01" for k in range(N)])}
    undeclared = faults_of(tmp_path / "c", many, config(file="people.csv", modalities={"a": {"columns": ["day"]}}))
    assert "`kinds: {day: date}`" in undeclared
    asked = {"people.csv": visits(day=day, asked=["", "soon", *["2021-01-01"] * (N - 2)])}
    message = faults_of(tmp_path / "d", asked, spec)
    assert "column 'asked', line 3: expected dates such as" in message
    assert "column 'asked', line 2: expected a time of the prediction in every row; found 2 rows" in message


# Numbers.


def test_limits_of_measurement_become_a_value_and_a_flag(tmp_path: Path) -> None:
    cells = ["<0.5", "> 100", "≤2", "7", "NA"]
    table = {"people.csv": people(), "a.csv": csv("id,crp", [[i, cells[k % 5]] for k, i in enumerate(IDS)])}
    store = built(tmp_path, table, config(modalities={"a": {"file": "a.csv", "kinds": {"crp": "censored"}}}))
    found = values(store, "a")
    assert [found[f"p0{k}"] for k in range(4)] == [[0.5, 1], [100, 2], [2, 1], [7, 0]]
    assert "p04" not in found
    assert store.dictionary["name"].to_list() == ["crp", "crp censored"]
    assert store.dictionary["levels"].to_list()[1] == ["exact", "below", "above"]
    assert fit(store).shapes["a"] == (4,)
    message = faults_of(tmp_path / "b", {**table, "a.csv": A.replace("p03,3\n", "p03,<3\n")}, config())
    assert "declare `kinds: {x: censored}`" in message
    bad = {**table, "a.csv": table["a.csv"].replace("p03,7", "p03,<")}
    spec = config(modalities={"a": {"file": "a.csv", "kinds": {"crp": "censored"}}})
    assert "column 'crp', line 5: expected a finite number, or few categories; found text of 1 characters" in faults_of(
        tmp_path / "c", bad, spec
    )


def test_thousands_separators_are_read_as_declared(tmp_path: Path) -> None:
    rows = [f"{i};{k + 1}.234,5;1,5;{'<1.000,5' if k % 2 else '<2.000'}" for k, i in enumerate(IDS)]
    table = {"people.csv": people(), "a.csv": "\n".join(["id;x;y;z", *rows]) + "\n"}
    spec = config(decimal={"a.csv": ","}, thousands={"a.csv": "."})
    spec["modalities"]["a"] |= {"kinds": {"z": "censored"}}
    stored = values(built(tmp_path, table, spec), "a")
    assert stored["p07"] == [8234.5, 1.5, 1000.5, 1]
    assert stored["p08"] == [9234.5, 1.5, 2000, 1]
    other = {**table, "a.csv": table["a.csv"].replace("8.234,5", "8.23,5")}
    assert "column 'x', line 9" in faults_of(tmp_path / "b", other, spec)
    spaces = {**table, "a.csv": table["a.csv"].replace(".", "\u00a0")}
    french = config(decimal={"a.csv": ","}, thousands={"a.csv": " "}, modalities=spec["modalities"])
    assert values(built(tmp_path / "d", spaces, french), "a")["p07"] == [8234.5, 1.5, 1000.5, 1]
    assert "expected another mark" in faults_of(tmp_path / "c", table, config(decimal=",", thousands=","))


def test_a_point_among_decimal_commas_is_no_decimal_point_in_limits_and_long_tables(tmp_path: Path) -> None:
    rows = [f"{i};crp;{'<1.234' if k == 7 else '2,5'}" for k, i in enumerate(IDS)]
    table = {"people.csv": people(), "a.csv": "\n".join(["id;test;x", *rows]) + "\n"}
    message = "a.csv, column 'x', line 9: expected numbers with a decimal comma; found text of 6 characters"
    spec = config(decimal={"a.csv": ","}, modalities={"a": {"file": "a.csv", "kinds": {"x": "censored"}}})
    assert message in faults_of(tmp_path / "wide", table, spec)
    spec["modalities"]["a"]["long"] = {"item": "test", "value": "x", "aggregate": "mean"}
    assert message in faults_of(tmp_path / "long", table, spec)
    # Without a declaration, the point says that commas are no decimal marks.
    del spec["decimal"]
    assert "found a number" in faults_of(tmp_path / "undeclared", table, spec)
    del spec["modalities"]["a"]["long"]
    limits = {**table, "a.csv": table["a.csv"].replace("<1.234", "<0,5").replace("2,5", "3")}
    assert values(built(tmp_path, limits, spec), "a")["p07"][-2:] == [0.5, 1]


def test_values_far_from_the_others_are_noted(tmp_path: Path) -> None:
    rows: list[list[object]] = [[i, 36 + k / 30, k] for k, i in enumerate(IDS)]
    rows[3][1] = rows[9][1] = 9999
    notes = notes_of(tmp_path, {"people.csv": people(), "a.csv": csv("id,temperature,x", rows)}, config())
    assert "a: values far from the others, perhaps codes for missing: temperature (a number; 2 of 60 values)" in notes
    assert notes.count("far from") == 1


# Texts.


def test_texts_become_embeddings(tmp_path: Path) -> None:
    note = ["" if k == 5 else "..." if k == 6 else f"pain in the {['chest', 'leg'][k % 2]}" for k in range(N)]
    table = {"people.csv": visits(note=note, pulse=range(N))}
    letter = {"columns": ["note"], "kinds": {"note": "text"}, "encoder": "hashing-64"}
    both = {"columns": ["note", "pulse"], "kinds": {"note": "text"}}
    spec = config(file="people.csv", modalities={"letter": letter, "both": both, "a": {"columns": ["pulse"]}})
    store = built(tmp_path, table, spec)
    found = values(store, "letter")
    assert len(found) == N - 2
    assert len(found["p00"]) == 64
    assert math.hypot(*found["p00"]) == pytest.approx(1)
    assert found["p00"] == found["p02"] != found["p01"]
    assert [m.encoder for m in store.modalities] == ["hashing-64/1", "hashing-300/1", ""]
    assert store.dictionary.filter(modality="letter")["name"].to_list()[:2] == ["note_0", "note_1"]
    assert store.dictionary.filter(modality="both")["kind"].to_list()[-2:] == ["embedding", "numeric"]
    assert math.isnan(values(store, "both")["p05"][0])
    notes = notes_of(tmp_path, table, spec)
    assert "letter: 59 of 60 samples, 0 numeric and 0 categorical features; texts encoded by hashing-64: note" in notes
    fit(store)
    unknown = config(file="people.csv", modalities={"a": {**letter, "encoder": "hashin"}})
    assert "Did you mean 'hashing'" in faults_of(tmp_path / "c", table, unknown)
    undeclared = config(file="people.csv", modalities={"a": {"columns": ["note"]}})
    table["people.csv"] = visits(note=[f"pain in the leg day {k}" for k in range(N)])
    assert "`kinds: {note: text}`" in faults_of(tmp_path / "d", table, undeclared)


# Splits.


def test_split_by_site_never_divides_a_subject(tmp_path: Path) -> None:
    site = ["ABC"[k // 2 % 3] for k in range(N)]
    # Both visits of s0 are tested or left out: one was in the site of the test.
    site[1], site[9] = "C", ""
    spec = config(
        file="people.csv", subject="who", modalities={"a": {"file": "a.csv"}}, split={"by": "site", "test": ["C"]}
    )
    table = {"people.csv": visits(site=site), "a.csv": A}
    store = built(tmp_path, table, spec)
    split = dict(store.split("standard").collect().iter_rows())
    assert {k for k, part in split.items() if part == "test"} == {i for i, s in zip(IDS, site, strict=True) if s == "C"}
    assert "p00" not in split
    assert "p09" not in split
    assert split["p02"] == "train"
    notes = notes_of(tmp_path, table, spec)
    assert "split by site: 1 subjects have samples on both sides: their test samples are tested" in notes
    assert "(1 samples)" in notes
    assert "split: 2 of 60 samples are in no part" in notes
    assert "no validation part; training takes one" in notes
    assert "'D' does not occur in column site" in notes_of(
        tmp_path / "d", table, {**spec, "split": {"by": "site", "test": ["C", "D"]}}
    ).replace("'d'", "'D'")


def test_split_by_date(tmp_path: Path) -> None:
    day = [f"{1 + k // 5:02d}.06.2019" for k in range(N)]
    table = {"people.csv": visits(day=day), "a.csv": A}
    split = {"by": "day", "val_from": "08.06.2019", "test_from": "10.06.2019", "format": "%d.%m.%Y"}
    spec = config(file="people.csv", subject="who", modalities={"a": {"file": "a.csv"}}, split=split)
    parts = built(tmp_path, table, spec).split("standard").collect()
    assert dict(parts.group_by("split").len().sort("split").iter_rows()) == {"test": 15, "train": 34, "val": 9}
    assert not {"p34", "p44"} & set(parts["sample_id"])
    assert "expected a date in the format of the column" in faults_of(
        tmp_path / "b", table, {**spec, "split": {**split, "test_from": "2019-06-10"}}
    )
    for wrong in ({"by": "day"}, {"by": "day", "val": ["a"]}, {"by": "day", "column": "day"}, {"test_from": "x"}):
        assert "column 'split" in faults_of(tmp_path / "c", table, {**spec, "split": wrong})


# Large files.


def test_large_files_give_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a size, columns are read when they are needed, and numbers are held as float32."""
    rows = [[i, k / 7, "" if k % 9 else "red", k] for k, i in enumerate(IDS)]
    table = {"people.csv": people(), "a.csv": csv("id,x,colour,n", rows) + "\n\n"}
    spec = config(modalities={"a": {"file": "a.csv"}, "b": {"file": "b.parquet"}})
    raw = tmp_path / "raw"
    raw.mkdir()
    frame = pl.read_csv(table["a.csv"].strip().encode()).with_columns(day=pl.lit("2020-01-02").str.to_datetime())
    frame.write_parquet(raw / "b.parquet")
    expected = tables(built(tmp_path, table, spec))
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr("mrpipe.datasets.tables.features.CELLS", 100)
    assert tables(built(tmp_path, table, spec)) == expected
    broken = {**table, "a.csv": table["a.csv"].replace("p03", "p03,1,2,3")}
    assert "a.csv, line 5: expected as many fields as the header" in faults_of(tmp_path, broken, spec)


def test_columns_of_large_files_are_held_as_in_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, words for missing, codes, dates, limits, and a column whose last batch has the first text."""
    cells = [
        [i, 1 if k % 2 else "", k / 7 if k % 5 else "NA", "red" if k % 3 else "", f"2020-01-{k % 28 + 1:02d}",
         "<0.5" if k % 4 else 1.25, k % 2 if k < N - 1 else "unclear", f"0{k % 3}", -99 if k % 6 == 0 else k, " 7 "]
        for k, i in enumerate(IDS)
    ]  # fmt: skip
    table = {"people.csv": people(), "a.csv": csv("id,flag,x,colour,day,crp,late,code,gone,padded", cells)}
    kinds = {"day": {"kind": "age", "format": "%Y-%m-%d", "since": "day"}, "crp": "censored"}
    other = {"file": "a.csv", "columns": ["flag", "late", "day"], "kinds": {"flag": "categorical", "day": "text"}}
    spec = config(modalities={"a": {"file": "a.csv", "kinds": kinds, "missing": {"gone": [-99]}}, "b": other})
    expected, notes = tables(built(tmp_path, table, spec)), notes_of(tmp_path, table, spec)
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(files, "HELD_ROWS", 16)
    assert tables(built(tmp_path, table, spec)) == expected
    assert notes_of(tmp_path, table, spec) == notes
    broken = {**table, "a.csv": table["a.csv"].replace("p41,1,", "p41,1e,").replace("p43,1,", "p43,x,")}
    numeric = {"file": "a.csv", "columns": ["flag", "x"], "kinds": {"flag": "numeric"}}
    found = faults_of(tmp_path, broken, config(modalities={"a": numeric}))
    assert "a.csv, column 'flag', line 43" in found
    assert "2 such values in 2 rows" in found


@pytest.mark.parametrize("last", ["", '""'])
def test_short_rows_of_large_files_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """A row with an empty last field is whole, whether the field is quoted or not."""
    rows = [f"{i},{k},{last if k % 3 else 1}" for k, i in enumerate(IDS)]
    table = {"people.csv": people(), "a.csv": "\n".join(["id,x,n", *rows]) + "\n"}
    short = {**table, "a.csv": table["a.csv"].replace(f"p04,4,{last}", "p04,4")}
    spec = config()
    monkeypatch.setattr(files, "LARGE", 0)
    assert "fewer" not in notes_of(tmp_path, table, spec)
    assert "a.csv: 1 row has fewer fields than the header" in notes_of(tmp_path, short, spec)


def test_undeclared_subjects_of_large_files_are_noted_without_a_pass_per_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[i, k // 2, f"w{k // 2}", k % 4 / 4, k % 3, k % 2] for k, i in enumerate(IDS)]
    table = {"a.csv": csv("id,ward,bed,x,n,out", rows)}
    spec = config(modalities={"a": {}}, file="a.csv", label={"column": "out", "classes": [0, 1]})
    notes = notes_of(tmp_path, table, spec)
    assert "no `subject` is declared" in notes
    assert "ward (" in notes
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr("mrpipe.datasets.tables.joins._FIRST", 20)
    passes: list[list[str]] = []
    read = files.RawTable.read
    monkeypatch.setattr(files.RawTable, "read", lambda table, names: passes.append([*names]) or read(table, names))
    assert notes_of(tmp_path, table, spec) == notes
    assert passes == []


@pytest.mark.slow
def test_memory_of_a_large_file_grows_by_less_than_its_texts(tmp_path: Path) -> None:
    """By less than 16 bytes per cell, the size of a text in memory."""
    peaks = []
    for n in (100_000, 300_000):
        raw = tmp_path / str(n)
        raw.mkdir()
        x = np.random.default_rng(n).normal(size=(n, 60)).round(4)
        frame = pl.DataFrame(x).with_columns(out=pl.int_range(n) % 2, id=pl.int_range(n))
        frame.write_csv(raw / "a.csv")
        spec = config(modalities={"a": {}}, file="a.csv", label={"column": "out", "classes": [0, 1]})
        (raw / "tables.yaml").write_text(yaml.safe_dump(spec))
        peaks.append(peak_of([sys.executable, "-m", "mrpipe", "check", "tables", "--raw", str(raw)]))
    assert peaks[1] - peaks[0] < 200_000 * 60 * 16


def peak_of(command: list[str]) -> int:
    """Peak resident memory of a command in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss * 1024
