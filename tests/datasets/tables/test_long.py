"""Declared tables: long tables of measurements, and the made-up hospital of docs/tables.md."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.datasets.tables import files
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.store.reader import Store
from mrpipe.transforms.fit import fit
from tests.datasets.tables.hospital import write_hospital
from tests.datasets.tables.tables_toy import IDS, TABLES, built, config, csv, faults_of, notes_of, values
from tests.stores import tables

ASKED = dt.datetime(2020, 1, 10, 12)
PEOPLE = csv("id,out,asked", [[i, k % 2, f"{ASKED:%Y-%m-%d %H:%M}"] for k, i in enumerate(IDS)])
LONG = {"item": "code", "value": "value", "time": "drawn"}


def measurements(n: int = 60) -> list[list[object]]:
    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for i in IDS[:n]:
        for hours in rng.integers(0, 200, 5).tolist():
            rows.append(
                [i, f"{ASKED - dt.timedelta(hours=hours):%Y-%m-%d %H:%M:%S}", "KNa"[hours % 3 :][:1], hours / 8]
            )
    return rows


def spec(**changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": "labs.csv", "long": LONG}
    return config(prediction_time="asked", modalities={"labs": {**entry, **changes}})


def labs(rows: list[list[object]]) -> dict[str, str]:
    return {"people.csv": PEOPLE, "labs.csv": csv("id,drawn,code,value", rows)}


def events(store: Store, sample: str) -> list[tuple[str, float, float]]:
    """Item, value and hours of a sample's measurements."""
    arrays, levels = store.arrays("labs"), store.dictionary["levels"][0]
    k = arrays.sample_id.tolist().index(sample)
    assert arrays.offsets is not None
    assert arrays.time is not None
    part = slice(arrays.offsets[k], arrays.offsets[k + 1])
    return [
        (levels[int(i)], v, t) for (i, v), t in zip(arrays.x[part].tolist(), arrays.time[part].tolist(), strict=True)
    ]


def test_events_are_those_before_the_prediction_in_order_of_time(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["p00", "2020-01-10 12:00", "Na", 140],
        ["p00", "2020-01-09", "K", "4.5"],
        ["p00", "2020-01-10T12:00:01", "Na", 999],
        ["p01", "2020-01-10 00:00:00", "K", ""],
        ["p02", "", "K", 4],
        ["p03", "2020-01-01", "", 4],
        *measurements(50),
    ]
    store = built(tmp_path, labs(rows), spec())
    assert ("Na", 140.0, 0.0) in events(store, "p00")
    assert ("K", 4.5, -36.0) in events(store, "p00")
    hours = [t for _, _, t in events(store, "p00")]
    assert hours == sorted(hours)
    assert max(hours) <= 0
    assert store.modalities[0].irregular
    notes = notes_of(tmp_path, labs(rows), spec())
    for count in ("after the time of the prediction", "without a value", "without a time", "without an item"):
        assert f"1 rows {count}" in notes
    assert "labs: 50 of 60 samples" in notes
    fit(store)


def test_rows_after_the_prediction_and_their_order_change_no_byte(tmp_path: Path) -> None:
    rows = measurements()
    later: list[list[object]] = [[i, "2020-01-11", "troponin", 10**6] for i in IDS] + [
        ["p00", "2030-01-01", "K", "high"]
    ]
    both = {"labs": {"file": "labs.csv", "long": LONG}}
    both["sums"] = {"file": "labs.csv", "long": {**LONG, "aggregate": ["last", "min", "count"]}}
    declared = {**spec(), "modalities": both}
    first = built(tmp_path / "a", labs(rows), declared)
    second = built(tmp_path / "b", labs([*later, *rows[::-1]]), declared)
    assert tables(first) == tables(second)
    for path in sorted((tmp_path / "a/store").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "b/store" / path.relative_to(tmp_path / "a/store")).read_bytes(), path


def test_statistics_equal_those_of_polars(tmp_path: Path) -> None:
    rows = measurements()
    statistics = ["last", "mean", "min", "max", "count"]
    store = built(tmp_path, labs(rows), spec(long={**LONG, "aggregate": statistics}))
    frame = pl.DataFrame(rows, schema=["id", "drawn", "code", "value"], orient="row").sort("drawn", "value")
    value = pl.col("value")
    found = frame.group_by("id", "code").agg(
        value.last(), value.mean().alias("m"), value.min().alias("a"), value.max().alias("b"), pl.len()
    )
    place = {name: j for j, name in enumerate(store.dictionary["name"])}
    x = values(store, "labs")
    for sample, code, *expected in found.iter_rows():
        cells = [x[sample][place[f"{code} {s}"]] for s in statistics]
        assert cells == pytest.approx(expected, rel=1e-6)
    assert set(store.dictionary["kind"]) == {"summary"}
    fit(store)
    some = built(tmp_path / "b", labs(rows), spec(long={**LONG, "aggregate": ["mean"]}))
    assert set(some.dictionary["kind"]) == {"numeric"}


def test_units_codes_limits_and_numeric_times(tmp_path: Path) -> None:
    """Items differ by unit; a categorical value is part of the item; a table may have items and hours alone."""
    rows: list[list[object]] = [
        [i, "2020-01-01", "Na", ["<1", "> 9", "5"][k % 3], ["mg", "g"][k % 2]] for k, i in enumerate(IDS)
    ]
    table = {"people.csv": PEOPLE, "labs.csv": csv("id,drawn,code,value,unit", rows)}
    censored = spec(long={**LONG, "unit": "unit"}, kinds={"value": "censored"})
    assert events(built(tmp_path, table, censored), "p00") == [("Na [mg] (below)", 1.0, -228.0)]
    words = spec(kinds={"value": "categorical"})
    assert events(built(tmp_path / "b", table, words), "p02")[0][:2] == ("Na = 5", 1.0)
    hours = csv("id,hour,code", [[i, k % 30, "DX1"] for k, i in enumerate(IDS)])
    people = csv("id,out,until", [[i, k // 30, 24] for k, i in enumerate(IDS)])
    numeric = spec(long={"item": "code", "time": "hour", "format": "hours"})
    numeric["prediction_time"] = {"column": "until", "format": "hours"}
    store = built(tmp_path / "c", {"people.csv": people, "labs.csv": hours}, numeric)
    assert events(store, "p20") == [("DX1", 1.0, -4.0)]
    assert len(store.arrays("labs")) == 50


def test_dates_of_the_day_of_the_prediction_are_noted(tmp_path: Path) -> None:
    """They may be later than the prediction."""
    rows: list[list[object]] = [["p00", "2020-01-10", "K", 4], ["p01", "2020-01-09", "K", 4], *measurements()]
    notes = notes_of(tmp_path, labs(rows), spec())
    n = 1 + sum(str(drawn).startswith("2020-01-10 00:00:00") for _, drawn, _, _ in rows[2:])
    assert f"; {n} rows of the day of the prediction have no time of day and are used" in notes


def test_zones_of_times_are_dropped_in_large_files_as_in_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame(measurements(), schema=["id", "drawn", "code", "value"], orient="row")
    frame = frame.with_columns(pl.col("drawn").str.to_datetime().dt.replace_time_zone("Europe/Berlin"))
    entry = {"modalities": {"labs": {"file": "labs.parquet", "long": LONG}}}
    for name, large in (("small", files.LARGE), ("large", 1)):
        monkeypatch.setattr(files, "LARGE", large)
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        frame.write_parquet(raw / "labs.parquet")
        built(tmp_path / name, {"people.csv": PEOPLE}, spec() | entry)
    small, large_store = (mrpipe.open_store(tmp_path / name / "store") for name in ("small", "large"))
    assert tables(small) == tables(large_store)


def test_rows_per_subject_serve_each_visit_up_to_its_prediction(tmp_path: Path) -> None:
    asked = [f"2020-01-{5 if k % 2 else 20:02d}" for k in range(60)]
    people = csv("id,who,out,asked", [[i, f"s{k // 2}", k // 2 % 2, asked[k]] for k, i in enumerate(IDS)])
    rows = [[f"s{j}", day, "Na", j] for j in range(30) for day in ("2020-01-01", "2020-01-10")]
    table = {"people.csv": people, "labs.csv": csv("who,drawn,code,value", rows)}
    store = built(tmp_path, table, {**spec(), "subject": "who"})
    assert [t for _, _, t in events(store, "p00")] == [-456, -240]
    assert [t for _, _, t in events(store, "p01")] == [-96]


def test_faults_of_long_tables(tmp_path: Path) -> None:
    rows = measurements()
    rows[2][1], rows[4][1], rows[7][3], rows[8][0] = "yesterday", "soon", "3 mg", ""
    message = faults_of(tmp_path, labs(rows), spec())
    for part in (
        "labs.csv, column 'drawn', line 4: expected dates such as 2019-01-31 or "
        "2019-01-31 08:30; found text of 9 characters; 2 such rows",
        "labs.csv, column 'value', line 9: expected a finite number, or few categories; found text of 4 characters",
        "labs.csv, column 'id', line 10: expected an id in every row",
    ):
        assert part in message, part
    wrong = labs([["q" + str(r[0]), *r[1:]] for r in measurements()])
    assert "expected ids of samples of people.csv; found 60 of 60 ids (100%) that match none" in faults_of(
        tmp_path / "ids", wrong, spec()
    )
    for long, part in (
        ({"value": "value"}, "modalities.labs.long.item"),
        ({"item": "code"}, "modalities.labs.long.time"),
        ({**LONG, "aggregate": ["median"]}, "some of last, mean, min, max, count"),
        ({**LONG, "time": "taken"}, "labs.csv, column 'taken'"),
    ):
        assert part in faults_of(tmp_path / "declared", labs(measurements()), spec(long=long))
    untimed = {**spec(), "prediction_time": None}
    assert "prediction_time" in faults_of(tmp_path / "untimed", labs(rows), {k: v for k, v in untimed.items() if v})
    sums = spec(long={"item": "code", "value": "value", "aggregate": ["mean"]})
    assert "no time is declared: all rows are used" in notes_of(tmp_path / "sums", labs(measurements()), sums)


def test_a_large_long_table_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tables(built(tmp_path, labs(measurements()), spec()))
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(files, "BATCH_ROWS", 7)
    assert tables(built(tmp_path, labs(measurements()), spec())) == expected


def test_test_rows_do_not_influence_the_fitted_transforms(tmp_path: Path) -> None:
    """Kinds and levels are those of all rows; everything that is fitted depends on training rows alone."""
    fold = ["test" if k % 4 == 0 else "train" for k in range(60)]
    people = csv("id,out,asked,fold", [[i, k // 2 % 2, f"{ASKED:%Y-%m-%d %H:%M}", fold[k]] for k, i in enumerate(IDS)])
    declared = {**spec(), "split": {"file": "people.csv", "column": "fold"}}
    declared["modalities"]["sums"] = {"file": "labs.csv", "long": {**LONG, "aggregate": ["last", "count"]}}
    rows = measurements()
    shifted = [[r[0], r[1], r[2], float(str(r[3])) * (50 if fold[IDS.index(str(r[0]))] == "test" else 1)] for r in rows]
    fitted = []
    for name, r in (("a", rows), ("b", shifted)):
        store = built(tmp_path / name, {**labs(r), "people.csv": people}, declared)
        fitted.append(fit(store, "standard").to_json().replace(store.store_id, ""))
    assert fitted[0] == fitted[1]


# The worked example.


def test_hospital_example(tmp_path: Path, project: Path) -> None:
    example = {"config": str(project / "workflow/config/examples/tables/hospital.yaml")}
    stores = []
    for name, later in (("a", ""), ("b", "5.5"), ("c", "7.25")):
        write_hospital(tmp_path / name, later=later)
        build(TABLES, tmp_path / name, tmp_path / f"{name}_store", example)
        stores.append(mrpipe.open_store(tmp_path / f"{name}_store"))
    store = stores[0]
    store.verify(deep=True)
    assert all(tables(s) == tables(stores[0]) for s in stores)
    assert {m.name: m.kind for m in store.modalities} == {
        "demographics": "vector",
        "admission": "vector",
        "letter": "vector",
        "labs": "sequence",
        "lab_summary": "vector",
    }
    assert (store.manifest.n_samples, store.manifest.n_subjects) == (120, 90)
    split = store.split("standard").collect().join(store.samples().collect(), on="sample_id")
    assert split.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(split["split"]) == {"train", "test"}
    assert store.arrays("labs").time.max() <= 0  # type: ignore[union-attr]
    assert 20 < values(store, "demographics")["V0"][0] < 90
    fit(store)
    notes = check(TABLES, tmp_path / "b", example)["notes"]
    assert any("120 rows after the time of the prediction" in note for note in notes)
    assert any("have samples on both sides" in note for note in notes)
