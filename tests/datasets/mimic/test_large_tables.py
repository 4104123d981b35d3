"""Scans of large tables, CSV and Parquet: the same rows, in bounded batches, or an error with its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpipe.datasets.mimic.scan import parquet as parquet_module
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.datasets.mimic.tables import EVENTS, NOTES
from mrpipe.errors import DataError
from tests.datasets.mimic.forms_toy import check, faults, to_parquet
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy


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
        ({"valuenum": pl.col("value") + " mg"}, "row 1: expected Float64 values; found text of 4 characters"),
        (
            {"itemid": pl.when(pl.col("labevent_id") != 700).then("itemid")},
            "row 701: expected Int64 values; found 1 em",
        ),
        ({"subject_id": pl.col("subject_id") + 0.5}, "column 'subject_id', row 1: expected Int64 values; found a num"),
        ({"subject_id": pl.lit("x")}, "column 'subject_id', row 1: expected Int64 values; found text of 1 characters"),
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
