"""Exceptions, and problems of the input data reported with location, expectation, finding and remedy."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
LISTED_FAULTS = 20  # damaged files that are listed individually


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
        place = self.file
        if self.column is not None:
            place += f", column {self.column!r}"
        if self.line is not None:
            place += f", line {self.line}"
        if self.row is not None:
            place += f", row {self.row}"
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

    def add(self, fault: Fault | None) -> None:
        if fault is not None:
            self.faults.append(fault)

    def absorb(self, error: DataError) -> None:
        self.faults.extend(error.faults)

    def attempt(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Result of a function, or None after adding the faults that it raised."""
        try:
            return function(*arguments, **named)
        except DataError as error:
            self.absorb(error)
            return None

    def absorb_some(self, errors: Sequence[DataError], file: str, fix: str = "") -> None:
        """Add the faults of the first damaged files of a folder or table; the others are only counted."""
        for error in errors[:LISTED_FAULTS]:
            self.absorb(error)
        if n := len(errors[LISTED_FAULTS:]):
            self.add(Fault(file=file, expected="intact files", found=f"{n} more damaged files", fix=fix))

    def raise_if_any(self) -> None:
        if self.faults:
            raise DataError(self.faults)


def did_you_mean(name: object, known: Iterable[object], *, otherwise: str | None = None) -> str:
    """Hint for an unknown name: the nearest known name, else `otherwise` (default: the list of all names)."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known names: {', '.join(names)}." if otherwise is None else otherwise
