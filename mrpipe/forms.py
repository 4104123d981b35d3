"""Recognised forms of files: what each is, whether it is read as a table, and how to convert what is not read.

Every reader of tables uses `read_table`, so that a form that one reads, all read.
"""

import bz2
import importlib.util
import io
import lzma
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import polars as pl
import polars.selectors as cs
import pyarrow as pa
from isal import igzip

from mrpipe.budget import FLOOR, Bounded, allowed, child, in_child, open_member, require_parquet, too_large
from mrpipe.errors import DataError, Fault, MissingExtraError
from mrpipe.reading import AGAIN

Reader = Literal["text", "excel", "parquet", "feather", "sav", "por", "dta", "xport", "sas7bdat"]


@dataclass(frozen=True)
class Form:
    """A form of files.

    Attributes:
        name: what it is, in the plural.
        suffixes: endings of file names, in lower case.
        magic: first bytes, if they tell the form.
        reader: how it is read as a table, if it is.
        advice: how to convert it, if no reader reads it.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes = b""
    reader: Reader | None = None
    advice: str = ""


_AS_TABLE = "Save the table as CSV or Parquet."
_AGAIN = "The download failed, perhaps for lack of a login: download the file again."
_UNPACK = "Unpack it."
_NIFTI = "Convert them to NIfTI with "
_PLINK = "Convert them with plink2 {} --make-bed --out NAME."
FORMS = (
    Form("text tables", (".csv", ".tsv", ".txt", ".tab"), reader="text"),
    Form("Excel workbooks", (".xlsx", ".xlsm", ".xlsb", ".ods"), b"PK\x03\x04", "excel"),
    Form("old Excel workbooks", (".xls",), b"\xd0\xcf\x11\xe0", "excel"),
    Form("Parquet files", (".parquet", ".pq"), b"PAR1", "parquet"),
    Form("Feather files", (".feather", ".arrow", ".ipc"), b"ARROW1", "feather"),
    Form("SPSS files", (".sav", ".zsav"), b"$FL", "sav"),
    Form("SPSS portable files", (".por",), reader="por"),
    Form("Stata files", (".dta",), b"<stata_dta>", "dta"),
    Form("SAS transport files", (".xpt", ".xport"), b"HEADER RECORD*******LIB", "xport"),
    Form("SAS data sets", (".sas7bdat",), b"\0" * 12 + b"\xc2\xea\x81\x60", "sas7bdat"),
    Form("R data", (".rds", ".rda", ".rdata"), advice='Save the table in R: write.csv(x, "x.csv", row.names = FALSE).'),
    Form("MATLAB files", (".mat",), b"MATLAB", advice=_AS_TABLE),
    Form("SQLite databases", (".sqlite", ".sqlite3", ".db"), b"SQLite format 3", advice=_AS_TABLE),
    Form("DuckDB databases", (".duckdb",), advice="Save each table: COPY name TO 'name.parquet'."),
    Form("Access databases", (".mdb", ".accdb"), b"\0\1\0\0Standard", advice=_AS_TABLE),
    Form("HDF5 files", (".h5", ".hdf5", ".csd"), b"\x89HDF", advice=_AS_TABLE),
    Form("JSON files", (".json", ".jsonl"), b"{", advice=_AS_TABLE),
    Form("JSON files", (), b"[", advice=_AS_TABLE),
    Form("PDF documents", (".pdf",), b"%PDF", advice=_AS_TABLE),
    Form("Word documents", (".doc", ".docx"), advice=_AS_TABLE),
    Form("web pages", (".html", ".htm"), b"<!doctype", advice=_AGAIN),
    Form("web pages", (), b"<html", advice=_AGAIN),
    Form("zip archives", (".zip",), advice=_UNPACK),
    Form("archives", (".tar", ".tar.gz", ".tgz", ".7z", ".rar"), advice=_UNPACK),
    Form("DICOM files", (".dcm", ".ima"), advice=f"{_NIFTI}dcm2niix -z y -b y -o OUT FOLDER."),
    Form("Analyze images", (".hdr", ".img", ".img.gz"), advice=f"{_NIFTI}nibabel: nib.save(nib.load(x), 'x.nii.gz')."),
    Form("FreeSurfer volumes", (".mgz", ".mgh"), advice=f"{_NIFTI}mri_convert x.mgz x.nii.gz."),
    Form("MINC images", (".mnc",), advice=f"{_NIFTI}mnc2nii."),
    Form("NRRD images", (".nrrd", ".nhdr"), advice=f"{_NIFTI}SimpleITK."),
    Form("PLINK 2 genotypes", (".pgen", ".pvar", ".pvar.zst", ".psam"), advice=_PLINK.format("--pfile NAME")),
    Form("PLINK text genotypes", (".ped", ".map"), advice=_PLINK.format("--pedmap NAME")),
    Form("compressed PLINK genotypes", (".bed.gz",), advice="Decompress them: gunzip NAME.bed.gz."),
    Form("compressed genotypes", (".vcf.zst", ".vcf.bz2", ".vcf.xz"), advice="Compress them with bgzip."),
    Form("compressed features", (".csd.gz", ".pkl.gz", ".npy.gz", ".h5.gz"), advice="Decompress them with gunzip."),
    Form("BGEN genotypes", (".bgen",), advice=_PLINK.format("--bgen NAME.bgen ref-first --sample NAME.sample")),
    Form("Oxford genotypes", (".gen", ".gen.gz"), advice=_PLINK.format("--gen NAME.gen --sample NAME.sample")),
    Form("videos", (".mp4", ".avi", ".mkv", ".mov"), advice="Extract features, one .npy file per clip."),
    Form("recordings", (".wav", ".mp3", ".flac"), advice="Extract features, one .npy file per clip."),
    Form("NumPy archives", (".npz",), advice="Save each array by numpy.save, as .npy."),
    Form("pickles", (".pkl", ".pickle", ".p"), advice="They are read only by the readers that name them."),
)
_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda p: cast(IO[bytes], igzip.IGzipFile(p, "rb")),  # type: ignore[no-untyped-call]
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda p: pa.input_stream(p, compression="zstd"),
    ".zip": lambda p: _only_member(p),
}
_COMPRESSED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_PACKAGES = dict.fromkeys(("sav", "por", "dta", "xport", "sas7bdat"), "pyreadstat") | {"excel": "fastexcel"}
# Endings of tables as a regular expression, such as .csv, .xlsx and .csv.gz.
ENDINGS = r"\.(?:{})(?:\.(?:{}))?".format(
    "|".join(s[1:] for f in FORMS if f.reader for s in f.suffixes), "|".join(s[1:] for s in _OPENERS)
)
COMPRESSIONS = tuple(_OPENERS)
# Types of columns that are not plain values.
UNREAD = (pl.List, pl.Array, pl.Struct, pl.Binary, pl.Duration, pl.Object)


def by_name(name: str) -> Form | None:
    """The form of a file by the end of its name; a compressed file has that of its content, if the name tells it."""
    name = name.lower()
    for plain in (name, *(name.removesuffix(s) for s in _OPENERS if name.endswith(s))):
        if found := [f for f in FORMS if any(plain.endswith(s) for s in f.suffixes)]:
            return found[-1]
    return None


def recognise(path: Path) -> Form | None:
    """The form of a file by the end of its name, or else by its first bytes."""
    if (form := by_name(path.name)) or not path.is_file():  # a pipe may never end
        return form
    with suppress(OSError), path.open("rb") as handle:
        start = handle.read(132)
        return form_of(start) or (by_name(".dcm") if start[128:] == b"DICM" else None)
    return None


def form_of(start: bytes) -> Form | None:
    return next((f for f in FORMS if f.magic and start.lower().startswith(f.magic.lower())), None)


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table of any form, compressed or not, in any case."""
    form = by_name(path.name)
    return form is not None and form.reader is not None and path.is_file()


def _only_member(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    members = [i for i in archive.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX")]
    if len(members) != 1:
        names = ", ".join(i.filename for i in members[:5])
        raise zipfile.BadZipFile(f"an archive of {len(members)} files ({names}); unpack it")
    return open_member(archive, members[0], path.name)


def open_binary(path: Path, shown_as: str = "", floor: int = FLOOR) -> IO[bytes]:
    """The content of a file, decompressed by its first bytes; a zip archive must have a single member.

    Reading beyond the budget of a compressed file is a DataError, with the name `shown_as`.
    """
    kind, shown_as = _compression(path), shown_as or path.name
    if kind is None:
        return path.open("rb")
    stream = io.BufferedReader(Bounded(_OPENERS[kind](path), path, shown_as, floor), 2**20)
    if _kind(stream.peek(6)):
        raise DataError(Fault(file=shown_as, expected="a file that is compressed once", found="twice", fix=_UNPACK))
    return stream


def _kind(start: bytes) -> str | None:
    return next((s for magic, s in _COMPRESSED.items() if start.startswith(magic)), None)


def _compression(path: Path) -> str | None:
    """Ending of a compressed file by its first bytes; a zip archive must be named so."""
    with path.open("rb") as handle:
        start = handle.read(6)
    return ".zip" if start.startswith(b"PK\x03\x04") and path.suffix.lower() == ".zip" else _kind(start)


def zone_notes(schema: pl.Schema, shown_as: str) -> list[str]:
    """A note on time zones, which are left out."""
    zones = {c: t.time_zone for c, t in schema.items() if isinstance(t, pl.Datetime) and t.time_zone}
    text = ", ".join(f"{column} ({zone})" for column, zone in zones.items())
    note = f"{shown_as}: the time zones of {text} are left out; are the times of all tables in one zone?"
    return [note] if zones else []


def read_typed(
    path: Path, form: Form, *, shown_as: str, sheet: str = "", notes: list[str] | None = None
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Read a table that is not text.

    Args:
        notes: receives a note on time zones.

    Returns:
        The columns as text, and those that are not plain values (column → dtype), which are read as empty.

    Raises:
        DataError, MissingExtraError, or any error of the library that reads the form.
    """
    source = plain_source(path, shown_as) if form.reader == "parquet" else path
    content = source if isinstance(source, bytes) else None
    if form.reader == "parquet" and not require_parquet(path, shown_as, content):
        frame = pl.read_parquet(source)
    else:
        if importlib.util.find_spec(package := _PACKAGES.get(str(form.reader), "polars")) is None:
            raise MissingExtraError(package, "tables", f"reading {form.name}")
        job = {"path": str(path.absolute()), "reader": form.reader, "shown_as": shown_as, "sheet": sheet}
        fault = Fault(file=shown_as, expected=f"complete {form.name}", found="", fix=AGAIN)
        frame = pl.read_ipc_stream(in_child("mrpipe.forms", job, path.stat().st_size, fault))
    # Equal texts share their memory until they are changed.
    texts = [c.cat.len_bytes().cast(pl.UInt64) for c in frame.select(cs.categorical() | cs.enum())]
    texts += [c.str.len_bytes().cast(pl.UInt64) for c in frame.select(cs.string())]
    if (n := sum(int(t.sum() or 0) for t in texts)) > (limit := allowed(path.stat().st_size)):
        raise too_large(shown_as, limit, f"{n:,} bytes", "text")
    if notes is not None:
        notes += zone_notes(frame.schema, shown_as)
    odd = {c: str(t) for c, t in frame.schema.items() if isinstance(t, UNREAD)}
    frame = frame.with_columns(pl.lit(None).alias(c) for c in odd)
    return frame.select(map(_text, frame.iter_columns())), odd


def _text(column: pl.Series) -> pl.Series:
    """Text of a column; times lose their zone, zero fractions and, if all are midnight, the time of day."""
    if isinstance(column.dtype, pl.Datetime):
        column = column.dt.replace_time_zone(None)
        if (column.dt.truncate("1d") == column).all():
            return column.dt.date().cast(pl.String)
        return column.cast(pl.String).str.replace(r"\.0+$", "")
    return column.cast(pl.String)


def plain_source(path: Path, shown_as: str) -> Path | bytes:
    """The path, or the decompressed content, of a file."""
    if _compression(path) is None:
        return path
    with open_binary(path, shown_as) as handle:
        return handle.read()


def _in_child(job: dict[str, str]) -> bytes:
    """A table of a form whose library allocates by itself, as an Arrow stream."""
    source, reader = plain_source(Path(job["path"]), job["shown_as"]), job["reader"]
    match reader:
        case "excel":
            frame = _excel(source, job["shown_as"], job["sheet"])
        case "feather":
            frame = pl.read_ipc(source)
        case _:
            frame = pl.read_parquet(source) if reader == "parquet" else _statistical(source, reader)
    return frame.write_ipc_stream(None).getvalue()


def _excel(source: Path | bytes, shown_as: str, sheet: str) -> pl.DataFrame:
    """A sheet as text: the named one, or the only one that is not empty."""
    import fastexcel

    book = fastexcel.read_excel(source)
    named = {n: book.load_sheet(n, header_row=None, dtypes="string") for n in book.sheet_names if sheet in ("", n)}
    frames = {name: loaded.to_polars() for name, loaded in named.items() if loaded.total_height}
    if len(frames) != 1:
        expected = f"a sheet {sheet!r} with a table" if sheet else "one sheet with a table"
        found, fix = f"sheets {', '.join(book.sheet_names)}", f"Name the sheet: {Path(shown_as).name}#SHEET."
        raise DataError(Fault(file=shown_as, expected=expected, found=found, fix=fix))
    (frame,) = frames.values()
    # Midnights are dates, and times of 1899 have no date: a workbook does not distinguish them.
    frame = frame.with_columns(pl.all().str.replace(r"^(\d{4}-\d\d-\d\d) 00:00:00$|^1899-12-3\d ", "$1"))
    header: dict[str, None] = {}
    for name in frame.row(0):
        plain = (name or "").strip()
        copies = (f"{plain}_duplicated_{k}" for k in range(frame.width))
        header[plain if plain not in header else next(c for c in copies if c not in header)] = None
    frame.columns = list(header)
    return frame.slice(1)


def _statistical(source: Path | bytes, reader: str) -> pl.DataFrame:
    """A table of SAS, SPSS or Stata: codes, not their labels; whole numbers, which these programs store as floats."""
    import pyreadstat

    read: Callable[..., tuple[pl.DataFrame, Any]] = getattr(pyreadstat, f"read_{reader}")
    frame, _ = read(source, output_format="polars")
    whole = [c.name for c in frame.select(cs.float()) if (c.is_null() | ((c == c.round()) & (c.abs() < 2**53))).all()]
    return frame.with_columns(pl.col(whole).cast(pl.Int64))


if __name__ == "__main__":
    sys.exit(child(_in_child))
