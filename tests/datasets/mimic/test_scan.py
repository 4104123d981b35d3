"""The scanner against csv and datetime of the standard library: quotes, line breaks, column order, damaged files."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpipe.datasets.mimic.scan import scanner as scan_module
from mrpipe.datasets.mimic.scan.prefetch import prefetch
from mrpipe.datasets.mimic.scan.records import PAD, numbers_at, record_ends
from mrpipe.datasets.mimic.scan.scanner import TableScan
from mrpipe.datasets.mimic.scan.values import clock_times
from mrpipe.datasets.mimic.tables import EVENTS, NOTES
from mrpipe.errors import DataError

FIELD = st.text(alphabet='ab,"\n 1é', max_size=12)


def csv_bytes(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


@given(st.lists(st.lists(FIELD, min_size=3, max_size=3), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_record_ends_agree_with_the_csv_module(rows: list[list[str]]) -> None:
    ends = record_ends(csv_bytes(rows))
    assert len(ends) == len(rows)
    pieces = np.split(np.frombuffer(csv_bytes(rows), np.uint8), ends + 1)[:-1]
    for piece, row in zip(pieces, rows, strict=True):
        assert next(csv.reader(io.StringIO(piece.tobytes().decode(), newline=""))) == row


@given(
    st.lists(st.tuples(st.integers(0, 10**18), st.sampled_from([7, 8, 9]), st.booleans()), min_size=1, max_size=50),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_numbers_are_read_from_any_column(values: list[tuple[int, int, bool]], column: int) -> None:
    numbers = [v % 10**w if i % 3 else v for i, (v, w, _) in enumerate(values)]
    lines = [",".join(["x" * (i % 9)] * column + [str(n), "tail"]) + "\n" for i, n in enumerate(numbers)]
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])[:-1]]).astype(np.int64)
    data = np.frombuffer("".join(lines).encode() + bytes(PAD), np.uint8)
    assert numbers_at(data, starts, column).tolist() == numbers


@pytest.mark.parametrize("field", ["", "abc", '"10000001"', "1000000x", "-5", "1.5", "1" * 25])
def test_fields_other_than_plain_digits_are_left_to_the_parser(field: str) -> None:
    data = np.frombuffer(f"7,{field},8\n".encode() + bytes(PAD), np.uint8)
    assert numbers_at(data, np.array([0]), 1).tolist() == [-1]


@given(st.lists(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2998, 12, 31)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_clock_times_agree_with_datetime(times: list[dt.datetime]) -> None:
    times = [t.replace(microsecond=0) for t in times]
    text = pl.Series("t", [t.strftime("%Y-%m-%d %H:%M:%S").rjust(19, "0") for t in times])
    assert clock_times(text).to_list() == times


def test_invalid_times_are_null() -> None:
    texts = [
        "2150-02-30 00:00:00",
        "2150-13-01 00:00:00",
        "2150-01-01 24:00:00",
        "2150-01-01",
        "",
        None,
        "2150/01/01 00:00:00",
        "2150-01-0a 00:00:00",
        "2148-02-29 00:00:00",
    ]
    assert clock_times(pl.Series(texts)).is_null().to_list() == [True] * 8 + [False]


def events(n: int, *, columns: list[str] | None = None, quote: bool = False) -> tuple[list[str], list[list[str]]]:
    names = ["labevent_id", "subject_id", "hadm_id", "itemid", "charttime", "value", "valuenum", "valueuom", "comments"]
    rows = []
    for i in range(n):
        value = {
            "labevent_id": str(i),
            "subject_id": str(10_000_000 + i % 7),
            "hadm_id": "" if i % 3 else "20000001",
            "itemid": "50912",
            "charttime": f"2150-01-01 00:{i % 60:02d}:00",
            "value": f"{i}",
            "valuenum": f"{i}",
            "valueuom": "mg/dL",
            "comments": 'a "quoted",\nbroken line' if quote and i % 2 else "",
        }
        rows.append([value[c] for c in columns or names])
    return columns or names, rows


def write(path: Path, header: list[str], rows: list[list[str]], *, end: str = "\n", bom: bool = False) -> Path:
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows([header, *rows])
    data = (b"\xef\xbb\xbf" if bom else b"") + out.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, subjects: list[int] | None) -> pl.DataFrame:
    ids = None if subjects is None else np.array(subjects)
    return pl.concat(list(TableScan(path, EVENTS["labevents"], ids, shown_as=path.name)))


@pytest.mark.parametrize("block", [64, 1000, 2**23])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_selected_rows_come_in_order_for_any_block_size(tmp_path: Path, monkeypatch, block: int, suffix: str) -> None:
    monkeypatch.setattr(scan_module, "BLOCK", block)
    monkeypatch.setattr(scan_module, "PARSE", 5 * block)
    header, rows = events(500, quote=True)
    path = write(tmp_path / f"labevents{suffix}", header, rows)
    frame = read(path, [10_000_002, 10_000_005])
    expected = [float(r[6]) for r in rows if int(r[1]) - 10_000_000 in (2, 5)]
    assert frame["valuenum"].to_list() == expected
    assert len(read(path, None)) == 500


@pytest.mark.parametrize("order", [0, 3, 8])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_are_found_by_name(tmp_path: Path, order: int, end: str) -> None:
    names, _ = events(1)
    columns = names[order:] + names[:order]
    header, rows = events(60, columns=columns, quote=True)
    moved = read(write(tmp_path / "a.csv", [h.upper() for h in header], rows, end=end, bom=True), [10_000_003])
    assert moved.equals(read(write(tmp_path / "b.csv", *events(60, quote=True)), [10_000_003]))


def test_quoted_numbers_and_a_last_line_without_line_end(tmp_path: Path) -> None:
    header, rows = events(40)
    path = tmp_path / "all_quoted.csv"
    with path.open("w", newline="") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([header, *rows])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(path, [10_000_004])["valuenum"].to_list() == [float(i) for i in range(40) if i % 7 == 4]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_gz_file_is_an_error_of_scan_and_check(tmp_path: Path, share: float) -> None:
    header, rows = events(3000, quote=True)
    path = write(tmp_path / "labevents.csv.gz", header, rows)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match="labevents"):
        read(path, [10_000_001])
    # Also if no patient is selected.
    with pytest.raises(DataError, match="truncated" if share else "header"):
        list(TableScan(path, EVENTS["labevents"], np.array([], dtype=np.int64), shown_as=path.name))


def test_a_flipped_byte_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "labevents.csv.gz", *events(3000))
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        list(TableScan(path, EVENTS["labevents"], np.array([], dtype=np.int64), shown_as=path.name))


def test_an_unterminated_quote_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "labevents.csv", *events(10))
    path.write_bytes(path.read_bytes() + b'99,10000001,,50912,2150-01-01 00:00:00,"1,1,mg/dL,\n')
    with pytest.raises(DataError, match="unterminated"):
        read(path, None)


def test_a_shifted_header_and_missing_columns_are_reported(tmp_path: Path) -> None:
    header, rows = events(10)
    shifted = write(tmp_path / "shifted.csv", header[1:] + header[:1], rows)
    with pytest.raises(DataError, match="header is shifted") as error:
        TableScan(shifted, EVENTS["labevents"], None, shown_as="hosp/labevents.csv").sample()
    assert {"charttime", "itemid"} & {f.column for f in error.value.faults}
    lacking = write(
        tmp_path / "lacking.csv", [h.replace("valuenum", "number").replace("itemid", "item") for h in header], rows
    )
    with pytest.raises(DataError) as error:
        read(lacking, None)
    assert {f.column for f in error.value.faults} == {"valuenum", "itemid"}


def test_a_value_of_the_wrong_type_is_reported(tmp_path: Path) -> None:
    header, rows = events(50)
    rows[30][4] = "01/02/2150"
    with pytest.raises(DataError, match=r"charttime.*found a date"):
        read(write(tmp_path / "a.csv", header, rows), None)
    header, rows = events(50)
    rows[30][3] = "creatinine"
    with pytest.raises(DataError, match=r"itemid.*text of 10 characters"):
        read(write(tmp_path / "b.csv", header, rows), None)


@pytest.mark.parametrize("block", [300, 2**23])
def test_records_that_are_not_utf8_are_read_as_windows_1252_and_counted(tmp_path: Path, monkeypatch, block) -> None:
    """No character is replaced, and UTF-8 records of the same file keep their meaning, for any block size."""
    monkeypatch.setattr(scan_module, "BLOCK", block)
    monkeypatch.setattr(scan_module, "PARSE", block)
    header, rows = events(90, quote=True)
    for i, row in enumerate(rows):
        row[5] = f"Müller–{i}"
    path = write(tmp_path / "labevents.csv", header, rows)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(ln.decode().encode("cp1252") if i % 2 else ln for i, ln in enumerate(lines)))
    scan = TableScan(path, EVENTS["labevents"], np.array([10_000_003]), shown_as="x")
    assert pl.concat(list(scan))["value"].to_list() == [r[5] for r in rows if r[1] == "10000003"]
    assert 0 < scan.n_cp1252 < 90
    assert "not UTF-8, read as Windows-1252" in scan.oddities()


def test_undecodable_bytes_and_wrong_values_are_reported_with_their_line(tmp_path: Path) -> None:
    header, rows = events(60, quote=True)  # every second record has two lines
    rows[41][8] = "BAD"
    path = write(tmp_path / "a.csv", header, rows)
    line = path.read_bytes().split(b"BAD")[0].count(b"\n") + 1
    path.write_bytes(path.read_bytes().replace(b"BAD", b"\x81\xe9"))
    with pytest.raises(DataError, match="byte 0x81") as error:
        read(path, None)
    assert error.value.faults[0].line == line
    for column, value in ((3, "creatinine"), (4, "01/02/2150"), (3, "")):
        header, rows = events(60, quote=True)
        rows[41][column] = value
        with pytest.raises(DataError) as error:
            read(write(tmp_path / "b.csv.gz", header, rows), None)
        assert [(f.column, f.line) for f in error.value.faults] == [(header[column], line)]


def test_unused_columns_may_share_a_name_and_used_ones_may_not(tmp_path: Path) -> None:
    header, rows = events(60)
    expected = read(write(tmp_path / "a.csv", header, rows), [10_000_003])
    more = write(tmp_path / "b.csv", ["flag", "flag", *header], [["1", "2", *r] for r in rows])
    assert read(more, [10_000_003]).equals(expected)
    with pytest.raises(DataError, match=r"itemid.*once"):
        read(write(tmp_path / "c.csv", ["ITEMID", *header], [["1", *r] for r in rows]), None)


def test_ids_written_as_floats_and_records_of_unknown_subjects(tmp_path: Path) -> None:
    """pandas writes integers of columns with blanks as floats."""
    header, rows = events(60)
    expected = read(write(tmp_path / "a.csv", header, rows), [10_000_003])
    floats = [
        [f"{v}.0" if h in ("hadm_id", "subject_id") and v else v for h, v in zip(header, r, strict=True)] for r in rows
    ]
    assert read(write(tmp_path / "b.csv", header, floats), [10_000_003]).equals(expected)
    known = np.arange(10_000_000, 10_000_005)
    scan = TableScan(tmp_path / "a.csv", EVENTS["labevents"], np.array([10_000_003]), shown_as="x", known=known)
    list(scan)
    assert scan.n_unknown == sum(r[1] in ("10000005", "10000006") for r in rows)


def test_compression_is_recognised_by_content(tmp_path: Path) -> None:
    path = write(tmp_path / "labevents.csv", *events(60))
    expected = read(path, None)
    for name, data in (("a.csv.gz", path.read_bytes()), ("B.CSV.GZ", gzip.compress(path.read_bytes()))):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name, None).equals(expected)


def test_notes_keep_their_line_breaks(tmp_path: Path) -> None:
    header = ["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text"]
    text = 'He said "no",\n\nthen ""yes"".\n'
    rows = [[f"1000000{i}-DS-1", f"1000000{i}", "", "DS", "1", "2150-01-01 00:00:00", "", text] for i in range(3)]
    path = write(tmp_path / "discharge.csv.gz", header, rows)
    frame = pl.concat(list(TableScan(path, NOTES["discharge"], np.array([10_000_001]), shown_as="x")))
    assert frame["text"].to_list() == [text]
    assert frame["storetime"].to_list() == [None]


def test_prefetch_passes_errors_on_and_can_be_closed_early() -> None:
    def failing():
        yield 1
        raise ValueError("raised in the thread")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="raised in the thread"):
        next(items)
    endless = prefetch(iter(int, 1))
    assert [next(endless) for _ in range(5)] == [0] * 5
    endless.close()
