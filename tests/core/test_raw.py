"""Finding and reading raw files: every kind of damage is reported, and nothing is guessed."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import polars as pl
import pytest

from mrpipe.errors import DataError, FaultCollector
from mrpipe.raw import Column, Folder, find_one, match_header, read_csv, report_unmatched, require_folder, sha256, utf8

COLUMNS = (Column(name="id", nullable=False), Column(name="age", dtype=pl.Int64, aliases=("AGE_YEARS",)))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault_of(path: Path, columns: tuple[Column, ...] = COLUMNS):
    with pytest.raises(DataError) as caught:
        read_csv(path, columns)
    assert caught.value.exit_code == 3
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].file == path.name
    return caught.value.faults[0]


# find_one ------------------------------------------------------------------------------------------------------------


def test_find_one_ignores_case_and_matches_the_whole_path(tmp_path: Path) -> None:
    target = write(tmp_path / "Topics.CSV", "x")
    write(tmp_path / "old" / "topics.csv", "x")
    write(tmp_path / "topics.csv.bak", "x")
    assert find_one(tmp_path, [r"topics\.csv"], what="topics", fix="") == target


def test_find_one_accepts_the_pattern_of_any_release(tmp_path: Path) -> None:
    target = write(tmp_path / "DXSUM_PDXCONV_01Jan2020.csv", "x")
    patterns = [r"DXSUM\.csv", r"DXSUM_PDXCONV_\d{2}[A-Z][a-z]{2}\d{4}\.csv"]
    assert find_one(tmp_path, patterns, what="diagnoses", fix="") == target


@pytest.mark.parametrize(("present", "found"), [([], "no such file"), (["a/t.csv", "b/t.csv"], "a/t.csv, b/t.csv")])
def test_find_one_reports_no_and_several_matches(tmp_path: Path, present: list[str], found: str) -> None:
    for name in present:
        write(tmp_path / name, "x")
    with pytest.raises(DataError) as caught:
        find_one(tmp_path, [r"(?:.*/)?t\.csv"], what="one table", fix="Get it.")
    (fault,) = caught.value.faults
    assert found in str(fault)
    assert "one table" in str(fault)
    assert "Get it." in str(fault)
    assert fault.file.endswith("/t.csv")
    assert not set("\\(") & set(fault.file)


def test_require_folder_distinguishes_a_file_from_nothing(tmp_path: Path) -> None:
    require_folder(tmp_path)
    with pytest.raises(DataError, match="a file"):
        require_folder(write(tmp_path / "f", "x"))
    with pytest.raises(DataError, match="nothing"):
        require_folder(tmp_path / "absent")


# read_csv ------------------------------------------------------------------------------------------------------------


def test_header_matches_name_or_alias_regardless_of_case_and_order() -> None:
    assert match_header(["Age_Years", " ID "], COLUMNS) == {"id": " ID ", "age": "Age_Years"}


@pytest.mark.parametrize(
    "content",
    [
        b"id,age\n1,20\n2,\n",
        b"AGE_YEARS,extra,ID\r\n20,z,1\r\n,z,2\r\n",
        b'\xef\xbb\xbf"ID","Age"\n"1","20"\n"2",""\n',
        b"id,age\n\n 1 , 20 \n\n2\n",
    ],
    ids=["plain", "alias, order, CRLF", "byte order mark, quotes", "blank lines, spaces, short row"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_read_csv_reads_every_dialect(tmp_path: Path, content: bytes, zipped: bool) -> None:
    path = write(tmp_path / ("t.csv.gz" if zipped else "t.csv"), gzip.compress(content) if zipped else content)
    frame = read_csv(path, COLUMNS)
    assert frame.equals(pl.DataFrame({"id": ["1", "2"], "age": [20, None]}, schema={"id": pl.String, "age": pl.Int64}))


def test_null_values_are_per_column_and_optional_columns_can_be_absent(tmp_path: Path) -> None:
    columns = (
        Column(name="a", dtype=pl.Int64, null_values=("", "-4")),
        Column(name="b"),
        Column(name="c", required=False),
    )
    frame = read_csv(write(tmp_path / "t.csv", "a,b\n-4,-4\n3,x\n"), columns)
    assert frame.to_dict(as_series=False) == {"a": [None, 3], "b": ["-4", "x"]}


def test_missing_column_is_reported_with_its_aliases(tmp_path: Path) -> None:
    fault = fault_of(write(tmp_path / "t.csv", "id,years\n1,2\n"))
    assert fault.column == "age"
    assert "AGE_YEARS" in fault.expected
    assert "years" in fault.found


def test_all_missing_columns_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_csv(write(tmp_path / "t.csv", "x,y\n1,2\n"), COLUMNS)
    assert [f.column for f in caught.value.faults] == ["id", "age"]


@pytest.mark.parametrize("header", ["id,age,age", "id,Age,AGE", "id, age,age "])
def test_repeated_column_is_reported(tmp_path: Path, header: str) -> None:
    fault = fault_of(write(tmp_path / "t.csv", f"{header}\n1,2,3\n"))
    assert fault.column == "age"
    assert "several" in fault.found


@pytest.mark.parametrize(
    ("content", "column", "line", "found"),
    [
        ("id,age\n1,20\n2,old\n3,x\n", "age", 3, "text of 3 characters"),
        ("id,age\n\n1,20\n2,2.5\n", "age", 4, "a number"),
        ("id,age\n1,20\n,21\n", "id", 3, "empty"),
    ],
)
def test_invalid_value_is_reported_with_column_and_line(
    tmp_path: Path, content: str, column: str, line: int, found: str
) -> None:
    fault = fault_of(write(tmp_path / "t.csv", content))
    assert (fault.column, fault.line) == (column, line)
    assert found in fault.found


def test_integers_may_have_zero_decimals(tmp_path: Path) -> None:
    """pandas writes integers of columns with blanks as floats."""
    frame = read_csv(write(tmp_path / "t.csv", "id,age\n1,20.0\n2,\n3,-4.00\n"), COLUMNS)
    assert frame["age"].to_list() == [20, None, -4]


def test_invalid_identifiers_are_not_printed(tmp_path: Path) -> None:
    fault = fault_of(write(tmp_path / "t.csv", "subject_id\n1\n1234x\n"), (Column(name="subject_id", dtype=pl.Int64),))
    assert (fault.line, fault.found) == (3, "text of 5 characters")


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "empty file"), (b"\n\n", "empty file"), (b"id,age\n", "without rows"), (b"id,age\n\n\n", "without rows")],
)
def test_empty_tables(tmp_path: Path, content: bytes, found: str) -> None:
    assert found in fault_of(write(tmp_path / "t.csv", content)).found


@pytest.mark.parametrize("content", [b'id,age\n1,"2\n', bytes(range(256)) * 20])
def test_other_files_are_unreadable(tmp_path: Path, content: bytes) -> None:
    assert "unreadable" in fault_of(write(tmp_path / "t.csv", content)).found


@pytest.mark.parametrize("damage", ["half", "no trailer", "flipped"])
def test_damaged_gz_is_never_read_as_a_shorter_table(tmp_path: Path, damage: str) -> None:
    rows = b"id,age\n" + b"".join(b"%d,%d\n" % (i, i * 7919 % 101) for i in range(20_000))
    data = gzip.compress(rows)
    broken = {
        "half": data[: len(data) // 2],
        "no trailer": data[:-6],
        "flipped": data[:500] + b"\xff" * 40 + data[540:],
    }
    fault = fault_of(write(tmp_path / "t.csv.gz", broken[damage]))
    assert "unreadable" in fault.found
    assert "download" in fault.fix


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in fault_of(tmp_path / "absent.csv").found
    assert "folder" in fault_of(tmp_path).found


# Folder --------------------------------------------------------------------------------------------------------------


MEMBERS = {"1.txt": b"one", "22.txt": b"two" * 1000, "3.bin": bytes(range(256))}


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_folder(raw: Path, form: str) -> None:
    noise = {"__MACOSX/shots/._1.txt": b"junk", "shots/.DS_Store": b"junk"}
    match form:
        case "unpacked":
            for name, data in MEMBERS.items():
                write(raw / "shots" / name, data)
        case "nested":
            for name, data in {**{f"shots/{n}": d for n, d in MEMBERS.items()}, **noise}.items():
                write(raw / "shots" / name, data)
        case "zip":
            make_zip(raw / "shots.zip", {**{f"shots/{n}": d for n, d in MEMBERS.items()}, **noise})
        case "flat zip":
            make_zip(raw / "shots.zip", MEMBERS)


@pytest.mark.parametrize("form", ["unpacked", "nested", "zip", "flat zip"])
def test_folder_is_read_in_every_form(tmp_path: Path, form: str) -> None:
    make_folder(tmp_path, form)
    folder = Folder(tmp_path, "shots")
    assert folder.exists
    assert folder.names() == set(MEMBERS)
    assert {n: folder.read(n) for n in MEMBERS} == MEMBERS
    assert folder.source == ("shots.zip" if "zip" in form else "shots")
    assert all(f.is_file() for f in folder.files())
    assert len(folder.files()) == (1 if "zip" in form else len(MEMBERS))


def test_folder_absent_zipped_and_in_both_forms(tmp_path: Path) -> None:
    absent = Folder(tmp_path, "shots")
    assert not absent.exists
    assert absent.files() == []
    assert absent.names() == set()
    make_zip(tmp_path / "shots.zip", {"shots/9.txt": b"archive"})
    assert Folder(tmp_path, "shots").names() == {"9.txt"}
    make_folder(tmp_path, "unpacked")
    assert Folder(tmp_path, "shots").names() == set(MEMBERS)


@pytest.mark.parametrize("form", ["unpacked", "zip"])
def test_missing_folder_member(tmp_path: Path, form: str) -> None:
    make_folder(tmp_path, form)
    with pytest.raises(DataError, match=r"4\.txt.*no such file"):
        Folder(tmp_path, "shots").read("4.txt")


@pytest.mark.parametrize("form", ["nested", "zip"])
def test_folder_members_with_the_same_name(tmp_path: Path, form: str) -> None:
    members = {"shots/a/1.txt": b"a", "shots/b/1.txt": b"b"}
    if form == "zip":
        make_zip(tmp_path / "shots.zip", members)
    else:
        for name, data in members.items():
            write(tmp_path / name, data)
    with pytest.raises(DataError, match=r"b/1\.txt.*a/1\.txt as well"):
        Folder(tmp_path, "shots")


@pytest.mark.parametrize("size", [0, 10, -1, -30])
def test_truncated_zip_is_named(tmp_path: Path, size: int) -> None:
    make_folder(tmp_path, "zip")
    path = tmp_path / "shots.zip"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(DataError, match=r"shots\.zip: expected a complete zip archive") as caught:
        Folder(tmp_path, "shots")
    assert caught.value.exit_code == 3


def test_damaged_zip_member_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, "zip")
    path = tmp_path / "shots.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("shots/3.bin").header_offset + 60
    data = bytearray(path.read_bytes())
    data[start : start + 20] = b"\x00" * 20
    path.write_bytes(bytes(data))
    folder = Folder(tmp_path, "shots")
    assert folder.read("1.txt") == b"one"
    with pytest.raises(DataError, match=r"shots\.zip/3\.bin: expected an intact archive member"):
        folder.read("3.bin")


@pytest.mark.parametrize("flag", [0x0, 0x800])
def test_zip_member_names_are_utf8_with_and_without_the_flag(tmp_path: Path, flag: int) -> None:
    """Archivers of macOS and Linux write UTF-8 without the flag; zipfile reads such names as code page 437."""
    path = make_zip(tmp_path / "shots.zip", {"shots/é.txt": b"one", "shots/E.txt": b"two"})
    data = path.read_bytes().replace(b"\x00\x08", flag.to_bytes(2, "little"))
    path.write_bytes(data)
    folder = Folder(tmp_path, "shots")
    assert folder.names() == {"é.txt", "E.txt"}
    assert folder.read("é.txt") == b"one"


def test_zip_member_without_a_name_and_of_absurd_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "shots.zip", {"shots/1.txt": b"one"})
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:at] + whole[at:].replace(b"shots/1.txt", b"\0hots/1.txt"))
    with pytest.raises(DataError, match="a member without a name"):
        Folder(tmp_path, "shots")
    path.write_bytes(whole[: at + 24] + (2**31).to_bytes(4, "little") + whole[at + 28 :])
    with pytest.raises(DataError, match="2,147,483,648 bytes"):
        Folder(tmp_path, "shots").read("1.txt")


def test_folder_members_by_stem(tmp_path: Path) -> None:
    for name in ("1.jpeg", "2.JPG", "2.jpeg", "3.png", "4.txt"):
        write(tmp_path / "shots" / name, name)
    stems = Folder(tmp_path, "shots").stems((".jpg", ".jpeg", ".png"))
    assert stems == {"1": "1.jpeg", "2": "2.JPG", "3": "3.png"}


def test_encrypted_zip_member(tmp_path: Path) -> None:
    """Setting the encryption flag suffices for zipfile to require a password."""
    path = make_zip(tmp_path / "shots.zip", {"1.txt": b"one"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="encrypted"):
        Folder(tmp_path, "shots").read("1.txt")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "abc", "abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Matching ------------------------------------------------------------------------------------------------------------


def test_unmatched_names_are_a_note_up_to_the_limit_and_a_fault_above() -> None:
    notes: list[str] = []
    faults = FaultCollector()
    for n in (5, 4):
        names = {"AB", *map(str, range(1, n))}
        others = (names - {"AB"}) | {"ab"}
        report_unmatched(names, others, "ids", file="t.csv", notes=notes, faults=faults, limit=0.2)
    assert notes == [
        "t.csv: 1 of 5 ids (20.0%): AB; 1 differs only in case, padding or quotes, such as '••' instead of '••'"
    ]
    (fault,) = faults.faults
    assert (
        fault.found == "1 of 4 ids (25.0%): AB; 1 differs only in case, padding or quotes, such as '••' instead of '••'"
    )
    assert "max_unmatched" in fault.fix


def test_bytes_that_are_not_utf8_are_reported_with_their_place() -> None:
    assert utf8("é".encode(), file="f", column="c") == utf8("é", file="f", column="c") == "é"
    with pytest.raises(DataError, match=r"f, column 'c', row 3: expected text in UTF-8; found byte 0xe9 at position 2"):
        utf8("né".encode("latin-1"), file="f", column="c", row=3)
