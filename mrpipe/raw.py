"""Finding and reading raw files: unique matches, header aliases, gzip, zipped folders."""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import polars as pl

from mrpipe.budget import open_member, read_small
from mrpipe.delimited import line_of, read_table
from mrpipe.errors import DataError, Fault, FaultCollector, cell
from mrpipe.forms import ENDINGS
from mrpipe.ids import near_miss
from mrpipe.reading import reading

ParsedT = TypeVar("ParsedT")
# Column of 1-based record numbers; blank lines count. `delimited.line_of` gives the line of a record.
ROW = "__row"


def sha256(path: Path) -> str:

    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# Hashes of input files: absolute path, size, modification time in ns, inode → SHA-256.
_KNOWN: dict[tuple[Any, ...], str] = {}


def state_of_file(path: Path | str) -> list[int | str | None]:
    """Size in bytes, modification time in ns, inode, and the SHA-256 if it is known, of an input file."""
    stat = os.stat(path)
    state = stat.st_size, stat.st_mtime_ns, stat.st_ino
    return [*state, _KNOWN.get((os.path.abspath(path), *state))]


def input_sha256(path: Path) -> str:
    """SHA-256 of an input file, computed once for each state of it."""
    *state, known = state_of_file(path)
    return _KNOWN.setdefault((os.path.abspath(path), *state), str(known or sha256(path)))


def remember(states: Mapping[str, Sequence[Any]]) -> None:
    """Reuse hashes of an earlier check: path → `state_of_file`."""
    _KNOWN.update({(path, *state): digest for path, (*state, digest) in states.items() if digest})


def require_folder(raw: Path) -> None:
    if not raw.is_dir():
        found = "a file" if raw.exists() else "nothing"
        fix = "Pass its path with --raw."
        raise DataError(Fault(file=str(raw), expected="the folder of the export", found=found, fix=fix))


def find_one(raw: Path, patterns: Sequence[str], *, what: str, fix: str, shown_as: str = "") -> Path:
    """Find the only file under `raw` whose relative path matches one of `patterns` (full match, ignoring case).

    A pattern that ends with `\\.csv` matches tables of every form (`forms.ENDINGS`).

    Raises:
        DataError: no file or several files match; names `shown_as`, by default the first pattern.
    """
    expressions = [re.compile(re.sub(r"\\\.csv$", lambda _: ENDINGS, p), re.IGNORECASE) for p in patterns]
    files = sorted(p for p in raw.rglob("*") if p.is_file())
    matches = [p for p in files if any(e.fullmatch(p.relative_to(raw).as_posix()) for e in expressions)]
    if len(matches) == 1:
        return matches[0]
    found = "no such file" if not matches else ", ".join(p.relative_to(raw).as_posix() for p in matches)
    # Without escapes and folders, the pattern reads like a file name, e.g. `design_topics.csv`.
    shown_as = shown_as or f"{raw.name}/" + re.sub(r"^\((?:\?:)?\.\*/\)\?|\\", "", patterns[0])
    raise DataError(Fault(file=shown_as, expected=f"exactly one file ({what})", found=found, fix=fix))


def few(names: Sequence[str], n: int = 5) -> str:
    """The first few names of a list, for a message."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def report_unmatched(
    names: AbstractSet[str],
    others: AbstractSet[str],
    what: str,
    *,
    file: str,
    notes: list[str],
    faults: FaultCollector | None = None,
    limit: float = 1.0,
) -> None:
    """Report the names that are not among `others`: a note, or a fault if they exceed the fraction `limit`.

    `what` names them ("screens have no screenshot"); `limit` is the reader's option `max_unmatched`. The message lists
    names: not for ids of participants.
    """
    lost = sorted(names - others)
    if lost:
        hint = near_miss(lost, others - names)
        found = f"{len(lost)} of {len(names)} {what} ({len(lost) / len(names):.1%}): {few(lost)}{hint and '; '}{hint}"
        if faults is None or len(lost) <= limit * len(names):
            notes.append(f"{file}: {found}")
        else:
            fix = "Are the files from one release, and complete? If so, raise the limit with --set max_unmatched=1."
            faults.add(Fault(file=file, expected=f"at most {limit:.0%} without a counterpart", found=found, fix=fix))


def utf8(value: object, *, file: str, column: str, row: int | None = None) -> str:
    """Text of a str or of UTF-8 bytes; other bytes are a DataError with their place."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        raise DataError(Fault(file=file, column=column, row=row, expected="text in UTF-8", found=found)) from error


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


def typed(column: Column) -> pl.Expr:
    """Cast to the declared dtype; unparsable values become null. Dates and times are parsed as ISO 8601.

    Integers may have zero decimals (`20000001.0`), which pandas writes in columns with blanks.
    """
    text = pl.col(column.name)
    if column.dtype == pl.Date:
        return text.str.to_date("%Y-%m-%d", strict=False)
    if isinstance(column.dtype, pl.Datetime):
        return text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit=column.dtype.time_unit)
    if column.dtype.is_integer():
        text = text.str.replace(r"^(-?\d+)\.0+$", "${1}")
    return text.cast(column.dtype, strict=False)


def read_csv(
    path: Path,
    columns: Sequence[Column],
    *,
    shown_as: str | None = None,
    notes: list[str] | None = None,
    numbered: bool = False,
) -> pl.DataFrame:
    """Read a small table of any form as strings, then cast; all problems are raised together as a DataError.

    Blank lines are ignored. Returns the columns present in the file, with canonical names, in the declared order;
    `numbered` adds `ROW`, so that the caller can report lines. `shown_as` is the file's name in error messages;
    `notes` are those of `delimited.read_table`.
    """
    shown_as = shown_as or path.name
    raw = read_table(path, shown_as=shown_as, notes=notes).frame
    faults = FaultCollector()
    header = match_header(raw.columns, columns)
    for column in columns:
        if column.required and column.name not in header:
            expected = f"this column (also known as {', '.join(column.aliases)})" if column.aliases else "this column"
            found, fix = f"columns {', '.join(raw.columns[:12])}", "Check whether the column was renamed or omitted."
            faults.add(Fault(file=shown_as, column=column.name, expected=expected, found=found, fix=fix))
    faults.raise_if_any()
    # polars renames exact repeats.
    plain = [re.sub(r"_duplicated_\d+$", "", h).strip().lower() for h in raw.columns]
    for name in (name for name, found in header.items() if plain.count(found.strip().lower()) > 1):
        faults.add(Fault(file=shown_as, column=name, expected="this column once", found="several columns of this name"))
    faults.raise_if_any()
    raw = raw.with_row_index(ROW, offset=1).filter(pl.any_horizontal(pl.exclude(ROW).is_not_null()))
    numbers, present = raw[ROW], [c for c in columns if c.name in header]
    frame = raw.select(pl.col(header[c.name]).alias(c.name) for c in present)
    if frame.is_empty():
        fix = "Export the table again."
        raise DataError(Fault(file=shown_as, expected="at least one row", found="a header without rows", fix=fix))
    texts = [(c, pl.col(c.name).str.strip_chars()) for c in present]
    cleaned = frame.with_columns(pl.when(~text.is_in(c.null_values)).then(text) for c, text in texts)
    cast = cleaned.with_columns(typed(c).alias(c.name) for c in present)
    for column in present:
        bad = cleaned[column.name].is_not_null() & cast[column.name].is_null()
        if not column.nullable:
            bad = bad | cleaned[column.name].is_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            line, expected = line_of(path, int(numbers[row])), f"{column.dtype} values"
            found = cell(cleaned[column.name][row])
            fix = f"Rows with such values: {int(bad.sum())}."
            faults.add(Fault(file=shown_as, column=column.name, line=line, expected=expected, found=found, fix=fix))
    faults.raise_if_any()
    return cast.with_columns(numbers) if numbered else cast


class Folder:
    """A folder of an export, unpacked (`name/`) or still an archive (`name.zip`); the unpacked one takes precedence.

    Members are addressed by base name, so that an additional folder level (`name/name/…`) makes no difference. Hidden
    files and `__MACOSX` are ignored. `ignored` is the archive beside an unpacked folder, if any.

    Raises:
        DataError: the archive is damaged or truncated, or two members have the same base name.
    """

    def __init__(self, raw: Path, name: str):
        self.name = name
        self.unpacked, self.archive = raw / name, raw / f"{name}.zip"
        self.ignored = self.archive if self.unpacked.is_dir() and self.archive.is_file() else None
        self.exists = self.unpacked.is_dir() or self.archive.is_file()
        self.source = name if self.unpacked.is_dir() or not self.exists else self.archive.name
        self._zip: zipfile.ZipFile | None = None
        members: list[tuple[str, zipfile.ZipInfo | Path]] = []
        if self.unpacked.is_dir():
            files = sorted(p for p in self.unpacked.rglob("*") if p.is_file())
            members = [(p.relative_to(self.unpacked).as_posix(), p) for p in files]
        elif self.archive.is_file():
            with reading(self.archive.name, "a complete zip archive"):
                self._zip = zipfile.ZipFile(self.archive)
                members = sorted(((_member_name(i), i) for i in self._zip.infolist()), key=lambda m: m[0])
                if any(not PurePosixPath(path).parts for path, _ in members):
                    raise zipfile.BadZipFile("a member without a name")
        self._members: dict[str, zipfile.ZipInfo | Path] = {}
        shown: dict[str, str] = {}
        for path, member in members:
            parts = PurePosixPath(path).parts
            if path.endswith("/") or "__MACOSX" in parts or any(p.startswith(".") for p in parts):
                continue
            if parts[-1] in self._members:
                found, fix = f"{shown[parts[-1]]} as well", "Remove the superfluous copy."
                file = f"{self.source}/{path}"
                raise DataError(Fault(file=file, expected="each file name once", found=found, fix=fix))
            self._members[parts[-1]], shown[parts[-1]] = member, path

    def files(self) -> list[Path]:
        """Files on disk, for the inventory: the archive, or all members."""
        return [self.archive] if self._zip else [m for m in self._members.values() if isinstance(m, Path)]

    def names(self) -> set[str]:
        """Base names of the members."""
        return set(self._members)

    def stems(self, suffixes: Sequence[str]) -> dict[str, str]:
        """Stem → base name of the members with one of `suffixes`, ignoring case; an earlier suffix has precedence."""
        split = {name: PurePosixPath(name) for name in sorted(self._members, reverse=True)}
        return {p.stem: name for s in reversed(suffixes) for name, p in split.items() if p.suffix.lower() == s}

    def parse(self, name: str, parser: Callable[[bytes, str], ParsedT]) -> ParsedT:
        """Result of a parser, which takes the content of a member and its name in error messages."""
        return parser(self.read(name), f"{self.source}/{name}")

    def read(self, name: str) -> bytes:
        """Content of a member, by base name.

        Raises:
            DataError: the member does not exist or is damaged.
        """
        shown_as = f"{self.source}/{name}"
        if name not in self._members:
            raise DataError(Fault(file=shown_as, expected="this file", found="no such file"))
        member = self._members[name]
        with reading(shown_as, "an intact archive member" if self._zip else "a readable file"):
            if isinstance(member, Path):
                return read_small(member, shown_as)
            assert self._zip is not None
            with open_member(self._zip, member, shown_as) as handle:
                return handle.read()


def _member_name(member: zipfile.ZipInfo) -> str:
    """Path of a zip member. Many tools write UTF-8 without its flag; zipfile then decodes it as code page 437."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename
