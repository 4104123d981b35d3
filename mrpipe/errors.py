"""Exceptions, and problems of the input data reported with location, expectation, finding and remedy."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from mrpipe.privacy import NUMBER

P = ParamSpec("P")
T = TypeVar("T")
LISTED_FAULTS = 20  # damaged files that are listed individually
# Set to 1 by the option --show-values; otherwise, messages describe cells by their kind.
SHOW_VALUES = "MRPIPE_SHOW_VALUES"
_DATE = r"\s*([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})([ T][0-9:.,+Z-]*)?\s*"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A problem of an input file.

    Attributes:
        file: path as the user knows it (relative to the export if the file belongs to one).
        expected: requirement of the reader.
        found: actual content.
        fix: remedy, including the provider's menu path if useful.
        column: affected column, HDF5 group or dictionary key, if any.
        line: line of a text file as an editor counts it (the header is line 1), if any.
        row: 1-based row of a table without lines (Parquet, an array, a pickle), if any.
    """

    file: str
    expected: str
    found: str
    fix: str = ""
    column: str | None = None
    line: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        places = {"column": self.column, "line": self.line, "row": self.row}
        place = self.file + "".join(f", {name} {at!r}" for name, at in places.items() if at is not None)
        text = f"{place}: expected {self.expected}; found {self.found}"
        return f"{text}. {self.fix}" if self.fix else text


class MrpipeError(Exception):
    """Base class of errors that the user can fix; `exit_code` is the exit status of the command line."""

    exit_code = 1


class UsageError(MrpipeError):
    """Usage error (exit code 2): invalid option, unknown configuration key, unknown name."""

    exit_code = 2


class DataError(MrpipeError):
    """Invalid input data (exit code 3); lists all problems that were found."""

    exit_code = 3

    def __init__(self, faults: Fault | Iterable[Fault]):
        self.faults = (faults,) if isinstance(faults, Fault) else tuple(faults)
        if not self.faults:
            raise ValueError("a DataError needs at least one fault")
        head = f"{len(self.faults)} errors:\n" if len(self.faults) > 1 else ""
        super().__init__(head + "\n".join(f"  - {f}" if head else str(f) for f in self.faults))


class StorageError(DataError):
    """The disk or the system refuses to read a file (exit code 4); no reason to leave the file out as damaged."""

    exit_code = 4


class MissingExtraError(MrpipeError):
    """An optional dependency is not installed; the message names the extra that provides it."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} requires the package {package!r}: pip install 'mrpipe[{extra}]'")


class FaultCollector:
    """Collects the problems found by a check and raises them as one error."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._n_refused = 0

    def add(self, fault: Fault | None) -> None:
        if fault is not None:
            self.faults.append(fault)

    def absorb(self, error: DataError) -> None:
        self.faults.extend(error.faults)
        self._n_refused += len(error.faults) if isinstance(error, StorageError) else 0

    def attempt(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Result of a function, or None after adding the faults that it raised."""
        result: T | None = None
        with self.collecting():
            result = function(*arguments, **named)
        return result

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Context that ends where a DataError is raised, whose faults are added."""
        try:
            yield
        except DataError as error:
            self.absorb(error)

    def absorb_some(self, errors: Sequence[DataError], file: str, fix: str = "") -> None:
        """Add the faults of the first damaged files of a folder or table; the others are only counted."""
        for error in errors[:LISTED_FAULTS]:
            self.absorb(error)
        if n := len(errors[LISTED_FAULTS:]):
            self.add(Fault(file=file, expected="intact files", found=f"{n} more damaged files", fix=fix))

    def raise_if_any(self) -> None:
        """Raise the faults as a DataError, or a StorageError if the disk or the system caused all of them."""
        if self.faults:
            raise (StorageError if self._n_refused == len(self.faults) else DataError)(self.faults)


def did_you_mean(name: object, known: Iterable[object], *, otherwise: str | None = None) -> str:
    """Hint for an unknown name: the nearest known name, else `otherwise` (default: the list of all names)."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known names: {', '.join(names)}." if otherwise is None else otherwise


def values_shown() -> bool:
    """Whether cells may be printed."""
    return os.environ.get(SHOW_VALUES) == "1"


def cell(value: object) -> str:
    """A cell in a message: its kind, such as `text of 14 characters`, or the cell itself if cells may be printed."""
    if value is None or value == "":
        return "an empty field"
    if values_shown():
        return repr(value)
    text = str(value)
    if re.fullmatch(_DATE, text):
        return "a date"
    return "a number" if re.fullmatch(NUMBER, text) else f"text of {len(text)} characters"


def cells(values: Iterable[object]) -> str:
    """The first cells of a list in a message: each kind once."""
    return ", ".join(dict.fromkeys(cell(value) for value in list(values)[:5]))


def shape(name: str) -> str:
    """An id, or a path that may contain one: digits and words masked, punctuation and single letters kept."""
    return repr(name if values_shown() else re.sub(r"[^\W\d_]{2,}|\d", lambda m: "•" * len(m[0]), name[:80]))


def reason(error: object) -> str:
    """First line of an exception without memory addresses, or its type if it comes from a library that quotes cells."""
    quoting = type(error).__module__.partition(".")[0] in ("polars", "pyarrow", "pandas") and not values_shown()
    text = "" if quoting else re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", f"{error}".partition("\n")[0])
    return text or type(error).__name__
