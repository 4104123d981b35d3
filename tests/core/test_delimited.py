"""Encodings, separators, decimal marks and line numbers of text tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mrpipe.delimited import decode, line_of, read_table
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
    frame = read_table(path, shown_as="t.csv", encoding=None if encoding in ("utf-8", "utf-16") else encoding).frame
    assert frame.columns == ["id", "name"]
    assert frame["name"].to_list() == names


def test_undecodable_bytes_are_an_error_with_their_place_or_are_read_with_a_note(tmp_path: Path) -> None:
    path = written(tmp_path, b"id,site\n1,Bern\n2,Gen\xe8ve\n")
    with pytest.raises(DataError) as caught:
        read_table(path, shown_as="sites.csv")
    (fault,) = caught.value.faults
    assert (fault.file, fault.line) == ("sites.csv", 3)
    assert "byte 0xe8 at position 6 of the line" in fault.found
    assert "cp1252" in fault.fix
    notes: list[str] = []
    assert read_table(path, shown_as="sites.csv", notes=notes).frame["site"].to_list() == ["Bern", "Genève"]
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
        (b"PAR1", "complete Parquet files; found unreadable data"),
        (b"PK\x03\x04 sheet", "complete Excel workbooks; found unreadable data"),
        (b"\xd0\xcf\x11\xe0", "complete old Excel workbooks; found unreadable"),
        (b"\x28\xb5\x2f\xfd", "unreadable data"),
        (b"<!doctype html><html>", "web pages"),
        (b"", "an empty file"),
        (b'a,b\n1,"x\ny"\n1,2,3\n', r"line 4: expected as many fields as the header in every line"),
        (b"id\rx\r1\r", "line ends of old Macintosh programs"),
        (b'{"id": 1}', "JSON"),
        (b"a,a,a_duplicated_0\n1,2,3\n", "unreadable data"),
    ],
)
def test_other_formats_and_separators_are_named(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_table(written(tmp_path, data), shown_as="t.csv")


@pytest.mark.parametrize(
    ("data", "names", "rows", "notes"),
    [
        (b"id;x\n1;2,5\n2;3\n", ["id", "x"], [("1", "2.5"), ("2", "3")], ["a semicolon", "a decimal comma"]),
        (b"id\tx\n1\t1,234\n", ["id", "x"], [("1", "1,234")], ["a tab"]),
        (b"id;x;z, mg;y\n1;2;3;4\n", ["id", "x", "z, mg", "y"], [("1", "2", "3", "4")], ["a semicolon"]),
        (b"id|x\n1|2\n", ["id", "x"], [("1", "2")], ["a vertical bar"]),
        (b"id;x\n1;2.5\n2;1,5\n", ["id", "x"], [("1", "2.5"), ("2", "1,5")], ["a semicolon"]),
        (b'id,x\n1,"2,5"\n2,"a;b;c"\n', ["id", "x"], [("1", "2,5"), ("2", "a;b;c")], []),
        (b"id;x\n1;2,5\n".decode().encode("utf-16"), ["id", "x"], [("1", "2.5")], ["a semicolon", "a decimal comma"]),
    ],
)
def test_separator_and_decimal_mark_are_found_and_said(
    tmp_path: Path, data: bytes, names: list[str], rows: list[tuple[str, ...]], notes: list[str]
) -> None:
    said: list[str] = []
    path = written(tmp_path, data)
    table = read_table(path, shown_as="t.csv", notes=said)
    assert (table.frame.columns, table.frame.rows()) == (names, rows)
    assert len(said) == len(notes)
    assert all(note in text for note, text in zip(notes, said, strict=True))
    assert line_of(path, 1) == 2


def test_a_declared_separator_that_the_header_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: expected columns separated by a comma; found columns separated by a"):
        read_table(written(tmp_path, b"id;x\n1;2\n"), shown_as="t.csv", separator=",")


def test_a_single_column_is_a_table(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, b"id\n1\n2\n"), shown_as="t").frame["id"].to_list() == ["1", "2"]


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    path = written(tmp_path, b'id,note\r\n1,"two\r\nlines"\r\n\r\n3,x\r\n')
    assert [line_of(path, k) for k in (1, 2, 3)] == [2, 4, 5]
    assert read_table(path, shown_as="t").frame.height == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_rows_with_fewer_fields_are_noted_and_a_cut_last_row_is_an_error(tmp_path: Path, encoding: str) -> None:
    named = encoding if encoding == "cp1252" else None
    data = 'id,site,x\n1,"Genève\nnord",2\n2,Bern\n3,Bern,\n4\n'
    notes: list[str] = []
    table = read_table(written(tmp_path, data.encode(encoding)), shown_as="t.csv", encoding=named, notes=notes)
    assert table.frame["x"].to_list() == ["2", None, None, None]
    assert notes == ["t.csv: 2 rows have fewer fields than the header; the others are empty (first: row 2)"]
    with pytest.raises(DataError, match="as many fields as the header in the last line; found fewer"):
        read_table(written(tmp_path, data.strip().encode(encoding)), shown_as="t.csv", encoding=named)
    whole = "id,x\n1,2\n2,"
    assert read_table(written(tmp_path, whole.encode()), shown_as="t.csv").frame["x"].to_list() == ["2", None]
