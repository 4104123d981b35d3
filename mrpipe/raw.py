"""Finding and reading exports: exactly one match, header aliases, gz, folders that may be zipped, restricted pickles."""

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
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.errors import DataError, Fault, FaultCollector


def sha256(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_folder(raw: Path) -> None:
    if not raw.is_dir():
        found = "a file" if raw.exists() else "nothing"
        raise DataError(
            Fault(file=str(raw), expected="the folder of the export", found=found, fix="Give its path with --raw.")
        )


def find_one(raw: Path, patterns: Sequence[str], *, what: str, fix: str, faults: FaultCollector) -> Path | None:
    """The one file under `raw` whose relative path matches one of `patterns` (full-match regex, any case).

    None and a fault when nothing or more than one file matches.
    """
    expressions = [re.compile(p, re.IGNORECASE) for p in patterns]
    files = sorted(p for p in raw.rglob("*") if p.is_file())
    matches = [p for p in files if any(e.fullmatch(p.relative_to(raw).as_posix()) for e in expressions)]
    if len(matches) == 1:
        return matches[0]
    found = "no such file" if not matches else ", ".join(p.relative_to(raw).as_posix() for p in matches)
    expected = f"exactly one file ({what})"
    faults.add(Fault(file=f"{raw.name}/{patterns[0]}", expected=expected, found=found, fix=fix))
    return None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A raw column: canonical name, dtype after reading, other names in other releases."""

    name: str
    dtype: Any = pl.String
    aliases: tuple[str, ...] = ()
    required: bool = True
    null_values: tuple[str, ...] = ("",)
    nullable: bool = True


def match_header(header: Iterable[str], columns: Sequence[Column]) -> dict[str, str]:
    """Canonical name → name in the file, matched by name or alias in any case and any order."""
    by_lower = {h.strip().lower(): h for h in header}
    found = {}
    for column in columns:
        for name in (column.name, *column.aliases):
            if name.lower() in by_lower:
                found[column.name] = by_lower[name.lower()]
                break
    return found


def read_csv(path: Path, columns: Sequence[Column], *, shown_as: str | None = None) -> pl.DataFrame:
    """Read a small CSV (plain or .gz), string first, then cast; all faults of the file are raised together.

    Returns a frame with the canonical names of the columns that are there, in the declared order.
    """
    shown_as = shown_as or path.name
    try:
        raw = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=False)
    except pl.exceptions.NoDataError:
        raise DataError(
            Fault(file=shown_as, expected="a header row", found="an empty file", fix="Export the table again.")
        ) from None
    except (pl.exceptions.ComputeError, OSError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            Fault(file=shown_as, expected="a complete CSV table", found=f"unreadable data ({reason})",
                  fix="The file is damaged or cut short: download it again.")
        ) from error
    faults = FaultCollector()
    header = match_header(raw.columns, columns)
    for column in columns:
        if column.required and column.name not in header:
            also = f" (also known as {', '.join(column.aliases)})" if column.aliases else ""
            faults.add(
                Fault(file=shown_as, column=column.name, expected=f"this column{also}",
                      found=f"columns {', '.join(raw.columns[:12])}", fix="Was the column renamed or left out?")
            )
    faults.raise_if_any()
    frame = raw.select(pl.col(header[c.name]).alias(c.name) for c in columns if c.name in header)
    if frame.is_empty():
        faults.add(Fault(file=shown_as, expected="at least one row", found="a header without rows",
                         fix="Export the table again."))
        faults.raise_if_any()
    present = [c for c in columns if c.name in header]
    cleaned = frame.with_columns(
        pl.when(pl.col(c.name).str.strip_chars().is_in(c.null_values)).then(None)
        .otherwise(pl.col(c.name).str.strip_chars()).alias(c.name)
        for c in present
    )
    cast = cleaned.with_columns(pl.col(c.name).cast(c.dtype, strict=False) for c in present)
    for column in present:
        bad = cleaned[column.name].is_not_null() & cast[column.name].is_null()
        if not column.nullable:
            bad = bad | cleaned[column.name].is_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            value = cleaned[column.name][row]
            faults.add(
                Fault(file=shown_as, column=column.name, row=row + 1, expected=f"{column.dtype} values",
                      found=f"{value!r}" if value is not None else "an empty field",
                      fix=f"{int(bad.sum())} such rows in all.")
            )
    faults.raise_if_any()
    return cast


def require_unique(frame: pl.DataFrame, key: str, *, file: str, fix: str) -> None:
    """A DataError that names the first repeated value of `key`, if there is one."""
    repeated = frame.select(pl.col(key).is_duplicated().alias("d"), pl.col(key)).with_row_index().filter("d")
    if len(repeated):
        raise DataError(
            Fault(file=file, column=key, row=int(repeated["index"][0]) + 1, expected="unique values",
                  found=f"{repeated[key][0]!r} more than once ({len(repeated)} rows)", fix=fix)
        )


class Folder:
    """A folder of an export that may be unpacked (`name/`) or still an archive (`name.zip` with one top folder)."""

    def __init__(self, raw: Path, name: str):
        self.name = name
        self.unpacked = raw / name
        self.archive = raw / f"{name}.zip"
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, str] = {}
        if not self.unpacked.is_dir() and self.archive.is_file():
            try:
                self._zip = zipfile.ZipFile(self.archive)
            except zipfile.BadZipFile as error:
                raise DataError(
                    Fault(file=self.archive.name, expected="a complete zip archive", found=str(error),
                          fix="The archive is damaged or cut short: download it again.")
                ) from error
            self._members = {
                Path(n).name: n for n in self._zip.namelist() if not n.endswith("/") and "__MACOSX" not in n
            }

    @property
    def exists(self) -> bool:
        return self._zip is not None or self.unpacked.is_dir()

    @property
    def source(self) -> str:
        """How errors and manifests name it."""
        return self.archive.name if self._zip else self.name

    def files(self) -> list[Path]:
        """The files that make it up on disk, for the inventory."""
        if self._zip:
            return [self.archive]
        return sorted(p for p in self.unpacked.rglob("*") if p.is_file()) if self.unpacked.is_dir() else []

    def names(self) -> set[str]:
        """Base names of its members."""
        if self._zip:
            return set(self._members)
        return {p.name for p in self.files()}

    def read(self, name: str) -> bytes:
        """Content of one member; a damaged archive is a DataError."""
        if not self._zip:
            return (self.unpacked / name).read_bytes()
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(
                Fault(file=f"{self.archive.name}/{name}", expected="an intact archive member", found=str(error),
                      fix="The archive is damaged: download it again.")
            ) from error


_PICKLE_GLOBALS: Mapping[str, frozenset[str]] = {
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "_codecs": frozenset({"encode"}),
}
_PICKLE_BUILTINS = frozenset({"dict", "list", "tuple", "set", "frozenset", "bytes", "bytearray", "str", "int", "float",
                              "bool", "complex"})


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
            Fault(file=self._shown_as, expected="numpy arrays and builtin containers only",
                  found=f"a pickle that wants to import {module}.{name}",
                  fix="It was not opened: such a file can run code. Get the data from its publisher.")
        )


def read_pickle(path: Path) -> Any:
    """Load a third-party pickle that may hold numpy arrays and builtins only; nothing else is ever imported."""
    try:
        with path.open("rb") as handle:
            return _RestrictedUnpickler(io.BufferedReader(handle), path.name).load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise DataError(
            Fault(file=path.name, expected="a complete pickle file", found=f"{type(error).__name__}: {error}",
                  fix="The file is damaged or cut short: download it again.")
        ) from error
