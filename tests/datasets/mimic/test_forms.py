"""Forms of MIMIC-IV tables: what other programs make of the provider's CSV gives the same store, or a clear error."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.cohort import build_cohort
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan.values import convert, times_of, without_blanks
from mrpipe.datasets.mimic.tables import PLACES, TABLES, open_table, tables_of
from mrpipe.raw import Column
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from tests.datasets.mimic.forms_toy import check, faults, to_parquet, typed
from tests.datasets.mimic.mimic_toy import HEADERS, SUBJECT, Toy, read_rows, write_table
from tests.stores import tables

DATASET = get_dataset("mimic")


def as_polars(path: Path, out: Path) -> None:
    typed(path).write_parquet(out.with_suffix(".parquet"), row_group_size=5000)


def as_pandas_parquet(path: Path, out: Path) -> None:
    """Integers with blanks become floats, times nanoseconds, dates times, and the index a column."""
    frame = pd.read_csv(path, low_memory=False, dtype={"icd_code": str, "value": str})
    for name in frame.columns:
        if name.endswith("time") or name == "dod":
            frame[name] = pd.to_datetime(frame[name])
    frame.to_parquet(out.with_suffix(".parquet"), index=True)


def as_pandas_csv(path: Path, out: Path) -> None:
    frame = pd.read_csv(path, low_memory=False, dtype={"icd_code": str, "value": str})
    frame.to_csv(out.with_suffix(".csv"), na_rep="NaN")


def as_shards(path: Path, out: Path) -> None:
    frame = typed(path)
    folder = out.parent / f"{out.name}.parquet"
    folder.mkdir()
    size = len(frame) // 3 + 1
    for i, piece in enumerate(frame.iter_slices(size)):
        piece.write_parquet(folder / f"part-{i:05}-7f3a.c000.snappy.parquet", compression="snappy")
    (folder / "_SUCCESS").touch()


def as_duckdb_parquet(path: Path, out: Path) -> None:
    import duckdb

    target = out.with_suffix(".parquet")
    codes = ", types={'icd_code': 'VARCHAR'}" if "icd" in path.name else ""
    duckdb.sql(f"COPY (SELECT * FROM read_csv('{path}'{codes}, sample_size=-1)) TO '{target}' (FORMAT parquet)")


def as_bigquery(path: Path, out: Path) -> None:
    """Numbered files in no order of rows, times as `2150-01-01T08:00:00` or, of timestamps, `… UTC`."""
    frame = typed(path)
    frame = frame[np.random.default_rng(0).permutation(len(frame))]
    frame = frame.with_columns(pl.col(pl.Datetime).dt.to_string("%Y-%m-%d %H:%M:%S UTC"))
    if "storetime" in frame.columns:
        frame = frame.with_columns(pl.col("storetime").str.replace(" ", "T").str.strip_suffix(" UTC"))
    size = len(frame) // 2 + 1
    for i, piece in enumerate(frame.iter_slices(size)):
        with gzip.open(f"{out}_{i:012}.csv.gz", "wb") as handle:
            piece.write_csv(handle)


CONVERTERS = (as_polars, as_pandas_parquet, as_pandas_csv, as_shards, as_duckdb_parquet, as_bigquery)


def built_tables(raw: Path, out: Path, **settings) -> dict[str, str]:
    build(DATASET, raw, out, settings)
    return tables(out)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reference")
    simulate(DATASET, folder / "raw", SIZES)
    return built_tables(folder / "raw", folder / "store")


SIZES = {"n_patients": 60, "n_chart_rows": 400, "n_lab_rows": 300, "eligible": 0.6}


@pytest.mark.parametrize(
    "form",
    [
        "parquet",
        "bigquery",
        "pandas",
        "database",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("csv", "shards")),
    ],
)
def test_every_simulated_form_gives_the_same_store(form: str, reference: dict[str, str], tmp_path: Path) -> None:
    simulate(DATASET, tmp_path / "raw", {**SIZES, "form": form})
    assert built_tables(tmp_path / "raw", tmp_path / "store") == reference


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("convert_table", CONVERTERS, ids=lambda f: f.__name__)
def test_the_demo_converted_by_other_programs_gives_the_same_store(
    convert_table: Callable[[Path, Path], None], real_data_dir: Path, tmp_path: Path
) -> None:
    demo = real_data_dir / "mimic-iv-demo"
    if not demo.is_dir():
        pytest.skip(f"no MIMIC-IV demo at {demo}")
    settings = {"notes": ("discharge", "radiology")}
    expected = built_tables(demo, tmp_path / "expected", checksums="skip", **settings)
    raw = tmp_path / "raw"
    for name in [*TABLES, *PLACES.values()]:
        out = raw / name
        out.parent.mkdir(parents=True, exist_ok=True)
        convert_table(demo / f"{name}.csv.gz", out)
    assert not list(raw.rglob("*.gz")) or convert_table is as_bigquery
    assert built_tables(raw, tmp_path / "store", **settings) == expected
    assert not [n for n in mrpipe.open_store(tmp_path / "store").manifest.notes if "as published" in n]


def test_times_are_read_as_other_programs_write_them() -> None:
    time = dt.datetime(2150, 1, 2, 3, 4, 5)
    for text in (
        "2150-01-02T03:04:05",
        "2150-01-02 03:04:05 UTC",
        "2150-01-02 03:04:05.000000 UTC",
        "2150-01-02T03:04:05Z",
        "2150-01-02 03:04:05+00",
        "2150-01-02 03:04:05+00:00",
        "2150-01-02 03:04:05.000",
    ):
        assert times_of(pl.Series(["2150-01-02 03:04:05", text])).to_list() == [time, time], text
    for text in ("2150-01-02 03:04:05-05:00", "2150-01-02", "2150-02-30T00:00:00", "01/02/2150", "2150-01-02 03:04"):
        assert times_of(pl.Series(["2150-01-02 03:04:05", text])).to_list() == [time, None], text
    assert times_of(pl.Series(["2150-01-02 03:04:05.25"]))[0].microsecond == 250_000
    # pandas writes midnights as dates if all times of a column are midnights.
    assert times_of(pl.Series(["2150-01-02", None])).to_list() == [dt.datetime(2150, 1, 2), None]


def column(dtype: object) -> Column:
    return Column(name="c", dtype=dtype)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (pl.Series([20000001.0, None, float("nan")]), pl.Int64, [20000001, None, None]),
        (pl.Series([1.5, 2.0]), pl.Int64, [None, 2]),
        (pl.Series(["20000001.0", "NULL", "\\N", " 7 ", "x"]), pl.Int64, [20000001, None, None, 7, None]),
        (pl.Series([True, False]), pl.Int8, [1, 0]),
        (pl.Series([4019, 25000]), pl.String, ["4019", "25000"]),
        (pl.Series([4019.0, None]), pl.String, ["4019", None]),
        (pl.Series(["NaN", "None", "", "NA", "mg/dL"]), pl.String, [None, None, None, "NA", "mg/dL"]),
        (pl.Series([b"mg", b"dL"]), pl.String, ["mg", "dL"]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), pl.String, ["a", "b"]),
        (pl.Series(["1.5", "nan"]), pl.Float64, [1.5, None]),
        (pl.Series([1, 2]), pl.Float64, [1.0, 2.0]),
        (pl.Series([dt.datetime(2150, 1, 2)]), pl.Date, [dt.date(2150, 1, 2)]),
        (pl.Series(["2150-01-02 00:00:00", "2150-01-02"]), pl.Date, [dt.date(2150, 1, 2)] * 2),
        (pl.Series([dt.date(2150, 1, 2)]), pl.Datetime("us"), [dt.datetime(2150, 1, 2)]),
        (
            pl.Series([dt.datetime(2150, 1, 2, 3)], dtype=pl.Datetime("ns", "UTC")),
            pl.Datetime("us"),
            [dt.datetime(2150, 1, 2, 3)],
        ),
        (pl.Series([1, 2]), pl.Datetime("us"), [None, None]),
        (pl.Series([dt.date(2150, 1, 2)]), pl.Float64, [None]),
        (pl.Series([None, None]), pl.Float64, [None, None]),
    ],
)
def test_values_are_converted_to_the_declared_type(values: pl.Series, dtype: object, expected: list[object]) -> None:
    declared = column(dtype)
    assert convert(without_blanks(values, declared), declared).to_list() == expected


def test_names_of_tables_and_their_files(tmp_path: Path) -> None:
    names = (
        "hosp/patients.parquet",
        "mimiciv_hosp/Admissions.CSV.GZ",
        "hosp/labevents_000000000001.csv.gz",
        "hosp/labevents_000000000000.csv.gz",
        "a/icu/chartevents-00001-of-00002.parquet",
        "a/icu/chartevents-00000-of-00002.parquet",
        "note/discharge/part-0.parquet",
        "note/discharge/bucket=1/part-0.parquet",
        "note/radiology.parquet/part-0.parquet",
        "note/radiology.parquet/_SUCCESS",
        "note/discharge_detail.csv",
        "hosp/labevents (1).csv",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {n: [len(form) for form in forms] for n, forms in tables_of(tmp_path).items()}
    assert found == {
        "hosp/patients": [1],
        "hosp/admissions": [1],
        "hosp/labevents": [2],
        "icu/chartevents": [2],
        "note/discharge": [2],
        "note/radiology": [1],
        "note/discharge_detail": [1],
    }
    assert [p.name[:23] for p in tables_of(tmp_path)["hosp/labevents"][0]] == [
        "labevents_00000000000" + n for n in ("0.", "1.")
    ]


@pytest.mark.parametrize(("name", "missing"), [("_{:012}", 1), ("-{:05}-of-00003", 2), (".part{}", 1)])
def test_a_missing_file_of_a_split_table_is_an_error(tmp_path: Path, name: str, missing: int) -> None:
    raw = Toy().write(tmp_path)
    for i in range(3):
        shutil.copy(raw / "hosp/labevents.csv", raw / f"hosp/labevents{name.format(i)}.csv")
    (raw / "hosp/labevents.csv").unlink()
    assert check(raw).files
    (raw / f"hosp/labevents{name.format(missing)}.csv").unlink()
    assert f"expected all files of the table; found none with number {missing}" in faults(raw)


@pytest.mark.parametrize("name", ["hosp/procedures_icd.pq", "hosp/PROCEDURES_ICD.csv.bz2", "procedures_icd.csv"])
def test_a_table_elsewhere_or_in_another_form_is_an_error_even_if_optional(tmp_path: Path, name: str) -> None:
    raw = Toy().write(tmp_path)
    (raw / "hosp/procedures_icd.csv").rename(raw / name)
    assert f"or .parquet of MIMIC-IV); found {name}. Move it to hosp/, in one of these forms" in faults(raw)
    (raw / name).unlink()
    assert any("procedures_icd is missing" in n for n in check(raw).notes)


def test_a_file_without_a_header_is_an_error_that_prints_no_data(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    lines = (raw / "hosp/labevents.csv").read_text().splitlines(keepends=True)
    (raw / "hosp/labevents-0.csv").write_text("".join(lines[:3]))
    (raw / "hosp/labevents-1.csv").write_text("".join(lines[3:]))
    (raw / "hosp/labevents.csv").unlink()
    message = faults(raw)
    assert "hosp/labevents-1.csv" in message
    assert "a first line without any column of this table" in message
    assert str(SUBJECT)[:5] not in message


def test_two_forms_of_a_table_are_compared_unless_something_decides(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path, gz=True)
    shutil.copy(raw / "hosp/labevents.csv.gz", tmp_path / "kept.csv.gz")
    path = to_parquet(raw, "hosp/labevents")
    frame = pl.read_parquet(path)
    shutil.copy(tmp_path / "kept.csv.gz", raw / "hosp/labevents.csv.gz")
    frame[::-1].write_parquet(path)
    note = "hosp/labevents: read from hosp/labevents.csv.gz, not from hosp/labevents.parquet; "
    assert note + "their contents are equal" in check(raw).notes
    frame.with_columns(valuenum=pl.lit(2.0)).write_parquet(path)
    message = faults(raw)
    assert "hosp/labevents: expected one table, or equal contents" in message
    assert "hosp/labevents.csv.gz and hosp/labevents.parquet" in message
    assert "form=parquet" in message
    chosen = check(raw, form="parquet")
    assert path in chosen.files
    assert chosen.unused["hosp/labevents.csv.gz"] == "another form of the table is read"
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.name}\n" for p in [raw / "hosp/labevents.csv.gz"]]
    (raw / "hosp/SHA256SUMS.txt").write_text("".join(sums))
    assert note + "as listed in SHA256SUMS.txt" in check(raw).notes


def test_a_small_table_with_blanks_of_a_database(tmp_path: Path) -> None:
    toy = Toy()
    toy.patients[0]["dod"] = "2150-12-01"
    raw = toy.write(tmp_path)
    expected = {n: open_table(raw, n) for n in ("hosp/patients", "hosp/admissions", "icu/icustays")}
    for null in ("NULL", "\\N", "NaN", "None"):
        for name, frame in expected.items():
            rows = [{k: v or null for k, v in r.items()} for r in read_rows(raw / f"{name}.csv")]
            for r in rows:
                r |= {"dod": f"{r['dod']} 00:00:00"} if r.get("dod", null) != null else {}
            write_table(raw, name, rows)
            assert open_table(raw, name).equals(frame), (name, null)
            shutil.copy(raw / f"{name}.csv", tmp_path / "last.csv")
        Toy.write(toy, raw)


def test_an_export_without_dates_of_death_needs_an_option(tmp_path: Path) -> None:
    toy = Toy()
    toy.visit(SUBJECT, 3, "2150-08-01 08:00:00", "2150-08-09 12:00:00", hospital_expire_flag=1)
    raw = toy.write(tmp_path)
    rows = read_rows(raw / "hosp/patients.csv")
    for header in (HEADERS["hosp/patients"], [h for h in HEADERS["hosp/patients"] if h != "dod"]):
        write_table(raw, "hosp/patients", [{**r, "dod": ""} for r in rows], header=header)
        assert "column 'dod'" in faults(raw)
        assert check(raw, death_date="hospital").files
        cohort = build_cohort(raw, MimicOptions(death_date="hospital"))
        assert sorted(cohort.labels["mortality"]["value"]) == [0, 0, 1]
