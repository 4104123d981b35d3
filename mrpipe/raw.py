"""Finding and reading raw files: unique matches, header aliases, gzip, zipped folders, restricted pickles."""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from mrpipe.delimited import line_of, read_delimited
from mrpipe.errors import DataError, Fault, FaultCollector

# Column of 1-based record numbers; blank lines count. `delimited.line_of` gives the line of a record.
ROW = "__row"


def sha256(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_folder(raw: Path) -> None:
    if not raw.is_dir():
        found = "a file" if raw.exists() else "nothing"
        raise DataError(
            Fault(file=str(raw), expected="the folder of the export", found=found, fix="Pass its path with --raw.")
        )


def find_one(raw: Path, patterns: Sequence[str], *, what: str, fix: str, faults: FaultCollector) -> Path | None:
    """Find the only file under `raw` whose relative path matches one of `patterns` (full match, ignoring case).

    Returns None and adds a problem to `faults` if no file or several files match.
    """
    expressions = [re.compile(p, re.IGNORECASE) for p in patterns]
    files = sorted(p for p in raw.rglob("*") if p.is_file())
    matches = [p for p in files if any(e.fullmatch(p.relative_to(raw).as_posix()) for e in expressions)]
    if len(matches) == 1:
        return matches[0]
    found = "no such file" if not matches else ", ".join(p.relative_to(raw).as_posix() for p in matches)
    # Without escapes, the pattern reads like a file name, e.g. `design_topics.csv`.
    shown_as = f"{raw.name}/{patterns[0].replace(chr(92), '')}"
    faults.add(Fault(file=shown_as, expected=f"exactly one file ({what})", found=found, fix=fix))
    return None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A raw column: canonical name, dtype after reading, and names in other releases (`aliases`)."""

    name: str
    dtype: Any = pl.String
    aliases: tuple[str, ...] = ()
    required: bool = True
    null_values: tuple[str, ...] = ("",)
    nullable: bool = True


def match_header(header: Iterable[str], columns: Sequence[Column]) -> dict[str, str]:
    """Map canonical names to names in the file; matches names or aliases regardless of case and order."""
    by_lower: dict[str, str] = {}
    for h in header:
        by_lower.setdefault(h.strip().lower(), h)
    found = {}
    for column in columns:
        for name in (column.name, *column.aliases):
            if name.lower() in by_lower:
                found[column.name] = by_lower[name.lower()]
                break
    return found


def _repeated_columns(header: Sequence[str], matched: Mapping[str, str]) -> list[str]:
    """Canonical names of matched columns that occur repeatedly in a header (polars renames exact repeats)."""
    plain = [re.sub(r"_duplicated_\d+$", "", h).strip().lower() for h in header]
    return [name for name, found in matched.items() if plain.count(found.strip().lower()) > 1]


def _typed(column: Column) -> pl.Expr:
    """Cast to the declared dtype; unparsable values become null. Dates and times are parsed as ISO 8601."""
    text = pl.col(column.name)
    if column.dtype == pl.Date:
        return text.str.to_date("%Y-%m-%d", strict=False)
    if isinstance(column.dtype, pl.Datetime):
        return text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit=column.dtype.time_unit)
    return text.cast(column.dtype, strict=False)


def read_csv(
    path: Path,
    columns: Sequence[Column],
    *,
    shown_as: str | None = None,
    encoding: str | None = None,
    notes: list[str] | None = None,
    numbered: bool = False,
) -> pl.DataFrame:
    """Read a small CSV file (plain or .gz) as strings, then cast; all problems are raised together as a DataError.

    Blank lines are ignored. Returns the columns present in the file, with canonical names, in the declared order;
    `numbered` adds `ROW`, so that the caller can report lines. `shown_as` is the file's name in error messages;
    `encoding` and `notes` are those of `read_delimited`.
    """
    shown_as = shown_as or path.name
    raw = read_delimited(path, shown_as=shown_as, encoding=encoding, notes=notes)
    faults = FaultCollector()
    header = match_header(raw.columns, columns)
    for column in columns:
        if column.required and column.name not in header:
            also = f" (also known as {', '.join(column.aliases)})" if column.aliases else ""
            faults.add(
                Fault(
                    file=shown_as,
                    column=column.name,
                    expected=f"this column{also}",
                    found=f"columns {', '.join(raw.columns[:12])}",
                    fix="Check whether the column was renamed or omitted.",
                )
            )
    faults.raise_if_any()
    for name in _repeated_columns(raw.columns, header):
        faults.add(Fault(file=shown_as, column=name, expected="this column once", found="several columns of this name"))
    faults.raise_if_any()
    raw = raw.with_row_index(ROW, offset=1).filter(pl.any_horizontal(pl.exclude(ROW).is_not_null()))
    numbers = raw[ROW]
    frame = raw.select(pl.col(header[c.name]).alias(c.name) for c in columns if c.name in header)
    if frame.is_empty():
        faults.add(
            Fault(
                file=shown_as, expected="at least one row", found="a header without rows", fix="Export the table again."
            )
        )
        faults.raise_if_any()
    present = [c for c in columns if c.name in header]
    cleaned = frame.with_columns(
        pl.when(pl.col(c.name).str.strip_chars().is_in(c.null_values))
        .then(None)
        .otherwise(pl.col(c.name).str.strip_chars())
        .alias(c.name)
        for c in present
    )
    cast = cleaned.with_columns(_typed(c).alias(c.name) for c in present)
    for column in present:
        bad = cleaned[column.name].is_not_null() & cast[column.name].is_null()
        if not column.nullable:
            bad = bad | cleaned[column.name].is_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            value = cleaned[column.name][row]
            faults.add(
                Fault(
                    file=shown_as,
                    column=column.name,
                    line=line_of(path, int(numbers[row]), encoding=encoding),
                    expected=f"{column.dtype} values",
                    found=f"{value!r}" if value is not None else "an empty field",
                    fix=f"Rows with such values: {int(bad.sum())}.",
                )
            )
    faults.raise_if_any()
    return cast.with_columns(numbers) if numbered else cast


class Folder:
    """A folder of an export, unpacked (`name/`) or still an archive (`name.zip`); the unpacked one takes precedence.

    Members are addressed by base name, so that an additional folder level (`name/name/…`) makes no difference. Hidden
    files and `__MACOSX` are ignored.

    Raises:
        DataError: the archive is damaged or truncated, or two members have the same base name.
    """

    def __init__(self, raw: Path, name: str):
        self.name = name
        self.unpacked = raw / name
        self.archive = raw / f"{name}.zip"
        self._zip: zipfile.ZipFile | None = None
        if self.unpacked.is_dir():
            paths = sorted(p.relative_to(self.unpacked).as_posix() for p in self.unpacked.rglob("*") if p.is_file())
        elif self.archive.is_file():
            try:
                self._zip = zipfile.ZipFile(self.archive)
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise DataError(
                    Fault(
                        file=self.archive.name,
                        expected="a complete zip archive",
                        found=str(error),
                        fix="The archive is damaged or truncated: download it again.",
                    )
                ) from error
            paths = sorted(n for n in self._zip.namelist() if not n.endswith("/"))
        else:
            paths = []
        self._members: dict[str, str] = {}
        for path in paths:
            parts = PurePosixPath(path).parts
            if "__MACOSX" in parts or any(p.startswith(".") for p in parts):
                continue
            if parts[-1] in self._members:
                raise DataError(
                    Fault(
                        file=f"{self.source}/{path}",
                        expected="each file name once",
                        found=f"{self._members[parts[-1]]} as well",
                        fix="Remove the superfluous copy.",
                    )
                )
            self._members[parts[-1]] = path

    @property
    def exists(self) -> bool:
        return self._zip is not None or self.unpacked.is_dir()

    @property
    def source(self) -> str:
        """Name in error messages and manifests."""
        return self.archive.name if self._zip else self.name

    def files(self) -> list[Path]:
        """Files on disk, for the inventory: the archive, or all members."""
        return [self.archive] if self._zip else [self.unpacked / p for p in self._members.values()]

    def names(self) -> set[str]:
        """Base names of the members."""
        return set(self._members)

    def read(self, name: str) -> bytes:
        """Content of a member, by base name.

        Raises:
            DataError: the member does not exist or is damaged.
        """
        shown_as = f"{self.source}/{name}"
        if name not in self._members:
            raise DataError(Fault(file=shown_as, expected="this file", found="no such file"))
        try:
            if self._zip:
                return self._zip.read(self._members[name])
            return (self.unpacked / self._members[name]).read_bytes()
        # RuntimeError: the member is encrypted; NotImplementedError: unknown compression.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise DataError(
                Fault(
                    file=shown_as,
                    expected="an intact archive member" if self._zip else "a readable file",
                    found=str(error),
                    fix="The archive is damaged: download it again." if self._zip else "",
                )
            ) from error


_PICKLE_GLOBALS: Mapping[str, frozenset[str]] = {
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "_codecs": frozenset({"encode"}),
}
_PICKLE_BUILTINS = frozenset(
    {"dict", "list", "tuple", "set", "frozenset", "bytes", "bytearray", "str", "int", "float", "bool", "complex"}
)


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, shown_as: str):
        super().__init__(file, encoding="latin1")
        self._shown_as = shown_as

    def find_class(self, module: str, name: str) -> Any:
        if module in {"builtins", "__builtin__"} and name in _PICKLE_BUILTINS:
            return getattr(importlib.import_module("builtins"), name)
        if name in _PICKLE_GLOBALS.get(module, ()):
            return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)
        raise DataError(
            Fault(
                file=self._shown_as,
                expected="numpy arrays and builtin containers only",
                found=f"a pickle that imports {module}.{name}",
                fix="The file was not loaded, because it could run code. Download it from its publisher.",
            )
        )


def read_pickle(path: Path) -> Any:
    """Load a pickle of numpy arrays and builtins; a DataError if it is damaged or imports anything else."""
    try:
        with path.open("rb") as handle:
            return _RestrictedUnpickler(io.BufferedReader(handle), path.name).load()
    except DataError:
        raise
    except Exception as error:  # damaged bytes can raise any exception, including MemoryError
        raise DataError(
            Fault(
                file=path.name,
                expected="a complete pickle file",
                found=f"{type(error).__name__}: {error}",
                fix="The file is damaged or truncated: download it again.",
            )
        ) from error
