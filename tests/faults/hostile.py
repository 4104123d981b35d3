"""Small files that expand, nest or claim beyond any memory; and a program that reads each within limits.

`python tests/faults/hostile.py write FOLDER NAME…` writes the files (default: all of them); `read` instead of `write`
reads each by the entry of its reader with 4 GiB of address space.
"""

import bz2
import contextlib
import functools
import io
import json
import lzma
import re
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ADDRESS_SPACE = 2**32
MIB = 2**20
CASES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {}


def case(entry: Callable[[Path], Any], name: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Register a maker, which writes into a folder, with the entry that reads the folder."""

    def register(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES[name] = make, entry
        return make

    return register


def member(data: bytes) -> bytes:
    """One member of a gzip file."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def gz(size: int, byte: bytes = b"\0", start: bytes = b"") -> bytes:
    """A gzip file that expands to `start` and `size` equal bytes."""
    return (member(start) if start else b"") + block(byte) * (size // 2**24)


@functools.cache
def block(byte: bytes) -> bytes:
    """A member that expands to 16 MiB of equal bytes."""
    return member(byte * 2**24)


def deflate_zip(name: str, size: int) -> bytes:
    """A zip archive with one member of zeros; its checksum is wrong, but no one comes that far."""
    packer = zlib.compressobj(wbits=-15)
    first = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + block * (size // 2**24 - 1) + packer.flush()
    n = name.encode()
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(data), size, len(n), 0)
    local = b"PK\3\4" + common + n + data
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + n
    return local + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)


# --- tables ----------------------------------------------------------------------------------------------------------

YAML = "id: id\nlabel: {{file: people.csv, column: y, classes: [0, 1]}}\nmodalities: {{a: {{file: {}}}}}\n"


def check_tables(folder: Path) -> int:
    from mrpipe.cli.main import main

    people = "".join(f"p{i},{i % 2}\n" for i in range(60))
    (folder / "people.csv").write_text("id,y\n" + people)
    if not (folder / "tables.yaml").exists():
        (name,) = (p.name for p in folder.iterdir() if p.stem.startswith("a"))
        (folder / "tables.yaml").write_text(YAML.format(name))
    return main(["check", "tables", "--raw", str(folder)])


def table(name: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    return case(check_tables, name)


table("csv.gz of one byte")(lambda f: (f / "a.csv.gz").write_bytes(gz(3 * 2**30, b"a")))
table("csv.gz of line ends")(lambda f: (f / "a.csv.gz").write_bytes(gz(3 * 2**30, b"\n", b"id,x\n")))
table("csv.gz of commas")(lambda f: (f / "a.csv.gz").write_bytes(gz(3 * 2**30, b",", b"id,x\n")))
table("csv.gz with an open quote")(lambda f: (f / "a.csv.gz").write_bytes(gz(3 * 2**30, b"a", b'id,x\np1,"')))
table("csv.gz in cp1252")(lambda f: (f / "a.csv.gz").write_bytes(gz(3 * 2**30, b"\xe9", b"id,x\n")))
table("gzip without its ending")(lambda f: (f / "a.csv").write_bytes(gz(3 * 2**30, b"a", b"id,x\n")))
table("gzip of gzip")(lambda f: (f / "a.csv.gz").write_bytes(member(gz(3 * 2**30, b"a", b"id,x\n"))))
table("csv.bz2")(lambda f: (f / "a.csv.bz2").write_bytes(bz2.compress(b"a" * 2**24) * 200))
table("csv.xz")(lambda f: (f / "a.csv.xz").write_bytes(lzma.compress(b"a" * 2**24) * 200))
table("csv.zst")(lambda f: (f / "a.csv.zst").write_bytes(pa.Codec("zstd").compress(b"a" * 2**24, asbytes=True) * 200))
table("csv.zip")(lambda f: (f / "a.csv.zip").write_bytes(deflate_zip("a.csv", 3 * 2**30)))
table("parquet.gz")(lambda f: (f / "a.parquet.gz").write_bytes(gz(3 * 2**30, b"a", b"PAR1")))
table("csv of a million columns")(lambda f: (f / "a.csv").write_bytes(b"id" + b",x" * 10**6 + b"\n"))


@table("csv.bz2 in a zip")
def _(f: Path) -> None:
    with zipfile.ZipFile(f / "a.csv.zip", "w", zipfile.ZIP_BZIP2) as archive, archive.open("a.csv", "w") as handle:
        for _ in range(20):
            handle.write(bytes(2**24))


@table("parquet of 10^10 rows")
def _(f: Path) -> None:
    # The footer of a small file with another number of rows, in Thrift's compact protocol.
    pq.write_table(pa.table({"id": ["p1"] * 3}), f / "a.parquet", compression="none", write_statistics=False)
    data = (f / "a.parquet").read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer, n = data[-8 - size : -8], bytes([0x80, 0xC8, 0xAF, 0xA0, 0x4A])
    footer = footer.replace(b"\x16\x06", b"\x16" + n)
    (f / "a.parquet").write_bytes(data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


@table("parquet of equal values")
def _(f: Path) -> None:
    column = pa.array(np.zeros(10**6, dtype=np.int64))
    with pq.ParquetWriter(f / "a.parquet", pa.schema([("id", pa.int64())])) as writer:
        for _ in range(200):
            writer.write_table(pa.table({"id": column}))


@table("parquet of zeros")
def _(f: Path) -> None:
    with pq.ParquetWriter(
        f / "a.parquet", pa.schema([("id", pa.binary())]), compression="zstd", use_dictionary=False
    ) as writer:
        for _ in range(40):
            writer.write_table(pa.table({"id": pa.array([bytes(2**24)])}))


@table("parquet of a long text in each row")
def _(f: Path) -> None:
    text = pa.DictionaryArray.from_arrays(np.zeros(10**6, dtype=np.int32), ["a" * 2**19])
    pq.write_table(pa.table({"id": text}), f / "a.parquet")


@table("feather of zeros")
def _(f: Path) -> None:
    column = pl.Series("id", np.zeros(2**26))
    pl.DataFrame([column]).write_ipc(f / "a.feather", compression="zstd")


SHEET = "xl/worksheets/sheet1.xml"


def workbook(rows: str) -> Callable[[Path], None]:
    """A workbook with this content of its sheet."""

    def write(f: Path) -> None:
        import openpyxl

        book, data = openpyxl.Workbook(), io.BytesIO()
        book.save(data)
        with zipfile.ZipFile(data) as old, zipfile.ZipFile(f / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                if name != SHEET:
                    new.writestr(name, old.read(name))
            start, end = '<worksheet xmlns="{}"><sheetData>', "</sheetData></worksheet>"
            start = start.format("http://schemas.openxmlformats.org/spreadsheetml/2006/main")
            with new.open(SHEET, "w", force_zip64=True) as handle:
                handle.write(start.encode())
                for _ in range(rows.count("@") * 2047 + 1):
                    handle.write(rows.replace("@", "").encode())
                handle.write(end.encode())

    return write


CELL = '<c r="{}"><v>1</v></c>'
table("xlsx with two far cells")(
    workbook(f'<row r="1">{CELL.format("A1")}</row><row r="1048576">{CELL.format("XFD1048576")}</row>')
)
table("xlsx of a million columns")(
    workbook('<row r="1">' + "".join(CELL.format(f"ZZZZ{k}") for k in range(10)) + "<c><v>1</v></c>" * 10**6 + "</row>")
)
table("xlsx with a huge sheet")(workbook("@" + "<row><c><v>1</v></c></row>" * 10_000))
table("xlsx of spaces")(lambda f: _spaces(f))


def _spaces(f: Path) -> None:
    workbook("")(f)
    with zipfile.ZipFile(f / "a.xlsx") as old:
        parts = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(f / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            if name != SHEET:
                new.writestr(name, data)
        with new.open(SHEET, "w", force_zip64=True) as handle:
            handle.write(parts[SHEET].replace(b"</sheetData>", b'<row r="1"><c r="A1" t="inlineStr"><is><t>'))
            for _ in range(100):
                handle.write(b"a" * 2**23)
            handle.write(b"</t></is></c></row></sheetData></worksheet>")


@table("sav that claims many rows")
def _(f: Path) -> None:
    import pyreadstat

    pyreadstat.write_sav(pl.DataFrame({"id": ["p1"] * 10}).to_pandas(), str(f / "a.sav"))
    data = bytearray((f / "a.sav").read_bytes())
    data[80:84] = (2**31 - 1).to_bytes(4, "little")
    (f / "a.sav").write_bytes(data)


@table("zsav of equal rows")
def _(f: Path) -> None:
    import pyreadstat

    frame = pl.DataFrame({f"c{k}": np.zeros(10**6) for k in range(20)}).to_pandas()
    pyreadstat.write_sav(frame, str(f / "a.zsav"), compress=True)


# --- YAML ------------------------------------------------------------------------------------------------------------


def yaml(name: str, text: str) -> None:
    table(name)(lambda f: (f / "tables.yaml").write_text(text))


NESTED = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
yaml("yaml of nested anchors", NESTED)
MERGED = "b0: &b0 {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10)}]}}\n" for i in range(1, 10))
yaml("yaml of merged anchors", MERGED)
yaml("yaml with an anchor in itself", "id: &a [*a]\n")
yaml("yaml nested deep", "id: " + "[" * 10**5 + "]" * 10**5)
yaml("yaml mapping nested deep", "{a: " * 10**5)
yaml("yaml with a long number", "id: 1" + ":1" * 10**5)
yaml("yaml with a long integer", "id: " + "1" * 10**5)
yaml("yaml of many keys", "".join(f"k{i}: {i}\n" for i in range(60_000)))
yaml("yaml of 4 MB", "id: [" + "a," * 2**21 + "]")
yaml("yaml with an unknown tag", "id: !!python/object/apply:os.system [ls]\n")
yaml("yaml with a list as key", "? [a, b]\n: c\n")
yaml("yaml with a null byte", "id: a\0b\n")
yaml("yaml that repeats a key", "id: a\nid: b\n")
yaml("yaml with an impossible date", "id: 2020-13-45\n!!timestamp 2020-99-99: x\n")


def read_space(folder: Path) -> None:
    from moe_retriever.training.search import read_space

    read_space(folder / "space.yaml")


case(read_space, "search space of nested anchors")(lambda f: (f / "space.yaml").write_text(NESTED))
case(read_space, "search space nested deep")(lambda f: (f / "space.yaml").write_text("[" * 10**5))
case(read_space, "search space of bad dates")(lambda f: (f / "space.yaml").write_text("lr: [2020-13-45]"))


# --- the program -----------------------------------------------------------------------------------------------------


def write_all(folder: Path, names: Sequence[str]) -> None:
    """Write the files of cases to numbered folders."""
    for i, name in enumerate(names):
        (folder / str(i)).mkdir(parents=True)
        CASES[name][0](folder / str(i))


def read_all(folder: Path, names: Sequence[str]) -> None:
    """Read them; prints a JSON line each: exit code, seconds, peak memory so far in MiB, and message."""
    from mrpipe.errors import MrpipeError

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for i, name in enumerate(names):
        text, start, code = io.StringIO(), time.monotonic(), 0
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
            try:
                code = CASES[name][1](folder / str(i)) or 0
            except MrpipeError as error:
                code = error.exit_code
                print(error)
            except BaseException as error:
                code = 1
                print(f"Traceback: {type(error).__name__}: {error}"[:500])
        # The peak that getrusage gives for this process includes that of the process that started it.
        own = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])
        mib = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024
        line = {"name": name, "code": code, "seconds": round(time.monotonic() - start, 2), "mib": mib}
        print(json.dumps(line | {"message": text.getvalue()[-2000:]}), flush=True)


if __name__ == "__main__":
    from tests.faults import hostile, hostile_images  # noqa: F401

    (hostile.write_all if sys.argv[1] == "write" else hostile.read_all)(
        Path(sys.argv[2]), sys.argv[3:] or list(hostile.CASES)
    )
