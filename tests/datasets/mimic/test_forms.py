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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.check import check_export
from mrpipe.datasets.mimic.cohort import build_cohort
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.datasets.mimic.scan import parquet as parquet_module
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.datasets.mimic.scan.values import convert, times_of, without_blanks
from mrpipe.datasets.mimic.tables import EVENTS, NOTES, PLACES, TABLES, open_table, tables_of
from mrpipe.errors import DataError
from mrpipe.options import parse_options
from mrpipe.raw import Column
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from tests.datasets.mimic.mimic_toy import HEADERS, SUBJECT, Toy, read_rows, write_table

DATASET = get_dataset("mimic")


def check(raw: Path, **values):
    return check_export(raw, parse_options(MimicOptions, values, context="test"))


def faults(raw: Path, **values) -> str:
    with pytest.raises(DataError) as error:
        check(raw, **values)
    return "\n".join(map(str, error.value.faults))


def typed(path: Path) -> pl.DataFrame:
    """A table of the provider with the types that programs find: numbers and times."""
    frame = pl.read_csv(path, infer_schema=False)
    for name in frame.columns:
        if name.endswith("time"):
            frame = frame.with_columns(pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S"))
        elif name == "dod":
            frame = frame.with_columns(pl.col(name).str.to_date())
        elif name == "valuenum":
            frame = frame.with_columns(pl.col(name).cast(pl.Float64))
        elif name in (
            "subject_id",
            "hadm_id",
            "stay_id",
            "itemid",
            "seq_num",
            "icd_version",
            "anchor_age",
            "anchor_year",
        ):
            frame = frame.with_columns(pl.col(name).cast(pl.Int64))
    return frame


def to_parquet(raw: Path, name: str) -> Path:
    """Replace a CSV table by Parquet."""
    path = next(p for p in (raw / f"{name}.csv", raw / f"{name}.csv.gz") if p.exists())
    typed(path).write_parquet(raw / f"{name}.parquet")
    path.unlink()
    return raw / f"{name}.parquet"


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


def store_id(raw: Path, out: Path, **settings) -> str:
    build(DATASET, raw, out, settings)
    return mrpipe.open_store(out).manifest.store_id


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reference")
    simulate(DATASET, folder / "raw", SIZES)
    return store_id(folder / "raw", folder / "store")


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
def test_every_simulated_form_gives_the_same_store(form: str, reference: str, tmp_path: Path) -> None:
    simulate(DATASET, tmp_path / "raw", {**SIZES, "form": form})
    assert store_id(tmp_path / "raw", tmp_path / "store") == reference


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
    expected = store_id(demo, tmp_path / "expected", checksums="skip", **settings)
    raw = tmp_path / "raw"
    for name in [*TABLES, *PLACES.values()]:
        out = raw / name
        out.parent.mkdir(parents=True, exist_ok=True)
        convert_table(demo / f"{name}.csv.gz", out)
    assert not list(raw.rglob("*.gz")) or convert_table is as_bigquery
    assert store_id(raw, tmp_path / "store", **settings) == expected
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


def events(n: int, subjects: int = 50) -> pl.DataFrame:
    i = np.arange(n)
    return pl.DataFrame(
        {
            "labevent_id": i,
            "subject_id": 10_000_000 + i * subjects // n,
            "hadm_id": [None if k % 3 else 20_000_001 for k in range(n)],
            "itemid": 50_900 + i % 5,
            "charttime": pl.Series(np.datetime64("2150-01-01T00:00:00", "us") + i.astype("timedelta64[m]")),
            "value": [f"{k}" for k in i],
            "valuenum": i.astype(float),
            "valueuom": "mg/dL",
        }
    )


def scan(path: Path | list[Path], subjects: list[int] | None, **more) -> TableScan:
    ids = None if subjects is None else np.array(subjects)
    shown = "x" if isinstance(path, Path) else [p.name for p in path]
    return TableScan(path, EVENTS["labevents"], ids, shown_as=shown, **more)


@pytest.mark.parametrize("group", [70, 5000])
@pytest.mark.parametrize("batch", [64, 2**17])
def test_parquet_gives_the_rows_of_csv_for_any_size_of_groups_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, batch: int
) -> None:
    monkeypatch.setattr(parquet_module, "BATCH", batch)
    frame = events(1000)
    frame.write_csv(tmp_path / "a.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=group)
    known = np.arange(10_000_000, 10_000_040)
    for subjects in (None, [10_000_003, 10_000_047], [1]):
        text, binary = (scan(tmp_path / n, subjects, known=known) for n in ("a.csv", "a.parquet"))
        found = [pl.concat(frames) if (frames := list(s)) else None for s in (text, binary)]
        assert (found[0] is None) == (found[1] is None) == (subjects == [1])
        if found[0] is not None:
            assert found[0].equals(found[1])
        assert text.n_rows == binary.n_rows == 1000
        assert subjects is None or text.n_unknown == binary.n_unknown == 200
    both = pl.concat(list(scan([tmp_path / "a.csv", tmp_path / "a.parquet"], None, numbered=True)))
    assert both["__row"].to_list() == list(range(1, 2001))


def test_row_groups_without_selected_patients_are_not_decoded(tmp_path: Path) -> None:
    """The column chunks of other row groups are overwritten: decoding them would fail."""
    path = tmp_path / "a.parquet"
    events(1000).write_parquet(path, row_group_size=100, compression="uncompressed")
    meta = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    for g in range(1, meta.num_row_groups):
        for c in range(meta.num_columns):
            chunk = meta.row_group(g).column(c)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    assert len(pl.concat(list(scan(path, [10_000_002])))) == 20
    with pytest.raises(DataError, match="a complete Parquet file"):
        list(scan(path, [10_000_045]))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_parquet_file_is_an_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "labevents.parquet"
    events(1000).write_parquet(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match="a complete Parquet file"):
        list(scan(path, None))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"charttime": pl.col("charttime").dt.replace_time_zone("America/New_York")}, "time_zone='America/New_York'"),
        ({"charttime": pl.col("charttime").dt.epoch("s")}, "found Int64"),
        ({"itemid": pl.concat_list("itemid")}, "found List(Int64)"),
        ({"valuenum": pl.col("value") + " mg"}, "row 1: expected Float64 values; found '0 mg'"),
        (
            {"itemid": pl.when(pl.col("labevent_id") != 700).then("itemid")},
            "row 701: expected Int64 values; found 1 em",
        ),
        ({"subject_id": pl.col("subject_id") + 0.5}, "column 'subject_id', row 1: expected Int64 values; found other"),
        ({"subject_id": pl.lit("x")}, "column 'subject_id', row 1: expected Int64 values; found other text"),
    ],
)
def test_wrong_types_and_values_of_parquet_are_reported(
    tmp_path: Path, change: dict[str, pl.Expr], expected: str
) -> None:
    events(1000).with_columns(**change).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError) as error:
        list(scan(tmp_path / "a.parquet", None))
    assert expected in str(error.value)
    assert "1000000" not in str(error.value)


def test_text_of_parquet_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    frame = events(10).to_arrow()
    raw = pa.Array.from_buffers(pa.string(), 1, [None, *pa.array([b"M\xfcller"], pa.binary()).buffers()[1:]])
    at = frame.schema.get_field_index("valueuom")
    table = frame.slice(0, 1).set_column(at, "valueuom", raw)
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=False)
    with pytest.raises(DataError, match=r"valueuom.*UTF-8"):
        list(scan(tmp_path / "a.parquet", None))


def test_truncated_rows_are_errors_of_scan_and_check(tmp_path: Path) -> None:
    toy = Toy()
    toy.note(SUBJECT, 1, "2150-01-15 00:00:00", 'Impression: "clear",\n\nno more')
    raw = toy.write(tmp_path)
    path = raw / "hosp/labevents.csv"
    lines = path.read_text().splitlines()
    # The last record, also of a patient who is not in the cohort, and a record in between.
    for i in (len(lines) - 1, 3):
        path.write_text("\n".join([*lines[:i], lines[i].rsplit(",", 3)[0], *lines[i + 1 :]]) + "\n" * (i == 3))
        message = faults(raw)
        assert f"hosp/labevents.csv, line {i + 1}: expected {len(lines[0].split(','))} fields" in message
    other = lines[-1].replace(str(SUBJECT)[:7], "1999999")
    path.write_text("\n".join([*lines, other.rsplit(",", 3)[0]]))
    assert "truncated" in faults(raw)


def test_quoted_blanks_at_the_end_of_rows_are_not_truncated(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        text = 'subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom,"more"' + end
        text += "".join(
            f'{i},,1,2150-01-01 00:00:00,"a, b",,,{last}{end}' for i, last in enumerate(('""', "", "x", '"y"'))
        )
        (tmp_path / "a.csv").write_bytes(text.encode())
        assert len(pl.concat(list(scan(tmp_path / "a.csv", None)))) == 4


def test_a_wrong_value_far_into_a_large_table_is_found_by_the_check(tmp_path: Path) -> None:
    toy = Toy()
    for i in range(9000):
        toy.lab(SUBJECT, 1, f"2150-01-11 08:{i % 60:02}:00", value=1.0)
    toy.labs[-1]["charttime"] = "11/01/2150"
    raw = toy.write(tmp_path, gz=True)
    assert "hosp/labevents.csv.gz, column 'charttime', line 9007" in faults(raw)
    assert check(raw, integrity="quick").files
    # A table whose checksum is verified is that of the provider.
    path = raw / "hosp/labevents.csv.gz"
    (raw / "hosp/SHA256SUMS.txt").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}\n")
    assert check(raw).files


def test_row_counts_other_than_those_of_the_release_are_noted(tmp_path: Path) -> None:
    raw = Toy().write(tmp_path)
    to_parquet(raw, "hosp/labevents")
    notes = "\n".join(check(raw, release="2.2").notes)
    assert "hosp/patients has 4 rows; in MIMIC-IV 2.2 as published it has 299,712" in notes
    assert "hosp/labevents has 6 rows; in MIMIC-IV 2.2 as published it has 118,171,367" in notes
    assert "as published" not in "\n".join(check(raw).notes)


def test_repeated_rows_of_parquet_are_reported_with_their_rows(tmp_path: Path) -> None:
    toy = Toy()
    toy.patients.append(dict(toy.patients[1]))
    raw = toy.write(tmp_path)
    to_parquet(raw, "hosp/patients")
    assert "hosp/patients, column 'subject_id', row 2" in faults(raw)
    assert "(rows 2, 4)" in faults(raw)


def test_notes_keep_their_line_breaks_in_parquet(tmp_path: Path) -> None:
    toy = Toy()
    text = 'He said "no",\n\nthen yes.\n'
    toy.note(SUBJECT, 1, "2150-01-15 00:00:00", text)
    path = to_parquet(toy.write(tmp_path), "note/discharge")
    frame = pl.concat(list(TableScan(path, NOTES["discharge"], np.array([SUBJECT]), shown_as="x")))
    assert frame["text"].to_list() == [text]
