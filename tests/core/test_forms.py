"""The forms in which people keep tables give one table, and spoilt ones a clear error."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import openpyxl
import polars as pl
import pyarrow as pa
import pyreadstat
import pytest
from polars.testing import assert_frame_equal

from mrpipe.delimited import read_table
from mrpipe.errors import DataError
from mrpipe.forms import FORMS, is_table, recognise

TYPED = pl.DataFrame(
    {
        "code": ["a", "007", "ü"],
        "value": [0.5, None, -12.25],
        "count": [3, 20000001, None],
        "day": [date(2020, 1, 2), None, date(1999, 12, 31)],
        "time": [datetime(2020, 1, 2, 3, 4, 5), datetime(2020, 1, 2), None],
    }
)
TEXT = pl.DataFrame(
    {
        "code": ["a", "007", "ü"],
        "value": ["0.5", None, "-12.25"],
        "count": ["3", "20000001", None],
        "day": ["2020-01-02", None, "1999-12-31"],
        "time": ["2020-01-02 03:04:05", "2020-01-02 00:00:00", None],
    }
)
CSV = TEXT.write_csv().encode()


def _excel(path: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (TYPED.columns, *TYPED.rows()):
        book.active.append(row)
    book.create_sheet("empty")
    book.save(path)


def _zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/t.csv", CSV)


WRITERS: dict[str, Callable[[Path], object]] = {
    "t.csv": lambda p: p.write_bytes(CSV),
    "t.TSV": lambda p: p.write_bytes(TEXT.write_csv(separator="\t").encode()),
    "t.csv.gz": lambda p: p.write_bytes(gzip.compress(CSV)),
    "t.csv.bz2": lambda p: p.write_bytes(bz2.compress(CSV)),
    "t.csv.xz": lambda p: p.write_bytes(lzma.compress(CSV)),
    "t.csv.zst": lambda p: p.write_bytes(pa.Codec("zstd").compress(CSV, asbytes=True)),
    "t.zip": _zipped,
    "t.csv.zip": _zipped,
    "t.xlsx": _excel,
    "t.parquet": TYPED.write_parquet,
    "t.parquet.gz": lambda p: (TYPED.write_parquet(p), p.write_bytes(gzip.compress(p.read_bytes()))),
    "t.feather": TYPED.write_ipc,
    "t.sav": lambda p: pyreadstat.write_sav(TYPED.to_pandas(), str(p)),
    "t.dta": lambda p: pyreadstat.write_dta(TYPED.to_pandas(), str(p)),
    "t.xpt": lambda p: pyreadstat.write_xport(TYPED.to_pandas(), str(p)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    found = read_table(path, shown_as=name).frame
    # Excel and the statistical programs store midnights as dates; some know no missing text.
    expected = TEXT.with_columns(pl.col("time").str.replace(" 00:00:00", "")) if name == "t.xlsx" else TEXT
    assert_frame_equal(found.with_columns(pl.all().replace("", None)), expected)


@pytest.mark.parametrize("name", [n for n in WRITERS if n not in ("t.csv", "t.TSV")])
def test_a_truncated_file_of_every_form_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError) as caught:
        read_table(path, shown_as=name)
    (fault,) = caught.value.faults
    assert fault.file == name
    assert "unreadable data" in fault.found


def test_several_sheets_or_files_are_an_error_until_one_is_named(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for name in ("labs", "notes"):
        sheet = book.create_sheet(name)
        sheet.append(["id", name, name])
        sheet.append([1, "x", True])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match=r"expected one sheet with a table; found sheets Sheet, labs, notes. .*#SHEET"):
        read_table(tmp_path / "t.xlsx", shown_as="t.xlsx")
    frame = read_table(tmp_path / "t.xlsx", shown_as="t.xlsx", sheet="notes").frame
    assert frame.columns == ["id", "notes", "notes_duplicated_0"]
    assert frame.row(0) == ("1", "x", "true")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(DataError, match=r"archive of 2 files \(a.csv, b.csv\); unpack it"):
        read_table(tmp_path / "two.zip", shown_as="two.zip")


def test_columns_that_are_not_plain_values_are_empty_and_named(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1], "wait": [datetime(2020, 1, 2) - datetime(2020, 1, 1)]}).write_parquet(
        tmp_path / "t.parquet"
    )
    table = read_table(tmp_path / "t.parquet", shown_as="t.parquet")
    assert table.frame.row(0) == ("1", None)
    assert set(table.odd) == {"wait"}


def test_files_are_recognised_by_name_or_first_bytes_and_have_a_reader_or_advice(tmp_path: Path) -> None:
    assert all((form.reader is None) != (form.advice == "") for form in FORMS)
    for name, start, form in (
        ("IM_0001", b"\0" * 128 + b"DICM", "DICOM files"),
        ("scan.img.gz", b"", "Analyze images"),
        ("chr1.bed.gz", b"", "compressed PLINK genotypes"),
        ("x.dat", b"SQLite format 3\0", "SQLite databases"),
        ("x.PED", b"", "PLINK text genotypes"),
        ("x.nii.gz", b"", None),
    ):
        path = tmp_path / name
        path.write_bytes(start)
        found = recognise(path)
        assert (found.name if found else None) == form
        assert not is_table(path)


def test_time_zones_are_left_out_with_a_note(tmp_path: Path) -> None:
    times = pl.Series("at", [datetime(2020, 1, 2, 3)]).dt.replace_time_zone("Europe/Berlin")
    pl.DataFrame([times]).write_parquet(tmp_path / "t.parquet")
    notes: list[str] = []
    table = read_table(tmp_path / "t.parquet", shown_as="t.parquet", notes=notes)
    assert table.frame["at"].to_list() == ["2020-01-02 03:00:00"]
    assert notes[0].startswith("t.parquet: the time zones of at (Europe/Berlin) are left out")
