"""Encodings, formats, separators and line numbers of delimited files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mrpipe.delimited import decode, line_of, read_delimited
from mrpipe.errors import DataError


def written(folder: Path, data: bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1", "mac-roman"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_named_or_marked_encoding_keeps_names_that_differ_in_one_accent(
    tmp_path: Path, encoding: str, compressed: bool
) -> None:
    names = ["Müller", "Möller", "Muller", "Peña", "Pena"]
    data = ("id,name\n" + "".join(f"{k},{n}\n" for k, n in enumerate(names))).encode(encoding)
    path = written(tmp_path, gzip.compress(data) if compressed else data)
    frame = read_delimited(path, shown_as="t.csv", encoding=None if encoding in ("utf-8", "utf-16") else encoding)
    assert frame.columns == ["id", "name"]
    assert frame["name"].to_list() == names


def test_undecodable_bytes_are_an_error_with_their_place_or_are_read_with_a_note(tmp_path: Path) -> None:
    path = written(tmp_path, b"id,site\n1,Bern\n2,Gen\xe8ve\n")
    with pytest.raises(DataError) as caught:
        read_delimited(path, shown_as="sites.csv")
    (fault,) = caught.value.faults
    assert (fault.file, fault.line) == ("sites.csv", 3)
    assert "byte 0xe8 at position 6 of the line" in fault.found
    assert "cp1252" in fault.fix
    notes: list[str] = []
    assert read_delimited(path, shown_as="sites.csv", notes=notes)["site"].to_list() == ["Bern", "Genève"]
    assert notes == ["sites.csv is not UTF-8; it was read as Windows-1252"]
    # 0x81 is no character of Windows-1252.
    with pytest.raises(DataError, match=r"line 2: expected text in UTF-8; found byte 0x81"):
        decode(b"a\n\x81\n", shown_as="t")
    for name in ("klingon", "undefined"):
        with pytest.raises(DataError, match="name of an encoding"):
            decode(b"a", shown_as="t", encoding=name)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"PK\x03\x04 sheet", "Excel workbook"),
        (b"\xd0\xcf\x11\xe0", r"\.xls"),
        (b"PAR1", "Parquet"),
        (b"<!doctype html><html>", "a web page"),
        (b"id;x\n1;2,5\n", "columns separated by a semicolon"),
        (b"id\tx\n1\t2\n", "columns separated by a tab"),
        (b"", "an empty file"),
        (b'a,b\n1,"x\ny"\n1,2,3\n', r"line 4: expected as many fields as the header in every line"),
        (b"id\rx\r1\r", "line ends of old Macintosh programs"),
        (b'{"id": 1}', "JSON"),
        (b"id;x;z, mg;y\n1;2;3;4\n", "columns separated by a semicolon"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"a,a,a_duplicated_0\n1,2,3\n", "unreadable data"),
    ],
)
def test_other_formats_and_separators_are_named(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_delimited(written(tmp_path, data), shown_as="t.csv")


def test_a_single_column_is_a_table(tmp_path: Path) -> None:
    assert read_delimited(written(tmp_path, b"id\n1\n2\n"), shown_as="t")["id"].to_list() == ["1", "2"]


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    path = written(tmp_path, b'id,note\r\n1,"two\r\nlines"\r\n\r\n3,x\r\n')
    assert [line_of(path, k) for k in (1, 2, 3)] == [2, 4, 5]
    assert read_delimited(path, shown_as="t").height == 3
