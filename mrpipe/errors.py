"""One error family: every fault says where it is, what was expected, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with an input.

    Attributes:
        file: path as the user knows it (relative to the export where there is one).
        expected: what the reader needs there.
        found: what it met instead.
        fix: what the user can do about it, provider menu path included where that helps.
        column: column, HDF5 group or dictionary key, if the fault is inside the file.
        row: 1-based data row (the header is not counted), if there is one.
    """

    file: str
    expected: str
    found: str
    fix: str = ""
    column: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        place = self.file
        if self.column is not None:
            place += f", column {self.column!r}"
        if self.row is not None:
            place += f", row {self.row}"
        text = f"{place}: expected {self.expected}; found {self.found}"
        return f"{text}. {self.fix}" if self.fix else text


class MrpipeError(Exception):
    """Base of all errors that a user can mend; `exit_code` is the status of the command line."""

    exit_code = 1


class UsageError(MrpipeError):
    """A wrong option, an unknown configuration key, a name that does not exist (exit code 2)."""

    exit_code = 2


class DataError(MrpipeError):
    """The input is at fault (exit code 3); carries every fault that was found, not only the first."""

    exit_code = 3

    def __init__(self, faults: Fault | Iterable[Fault]):
        self.faults = (faults,) if isinstance(faults, Fault) else tuple(faults)
        if not self.faults:
            raise ValueError("a DataError needs at least one fault")
        head = f"{len(self.faults)} faults:\n" if len(self.faults) > 1 else ""
        super().__init__(head + "\n".join(f"  - {f}" if head else str(f) for f in self.faults))


class MissingExtraError(MrpipeError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'mrpipe[{extra}]'")


class FaultCollector:
    """Gathers faults over a whole check, then raises them together."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def add(self, fault: Fault | None) -> None:
        if fault is not None:
            self.faults.append(fault)

    def absorb(self, error: DataError) -> None:
        self.faults.extend(error.faults)

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
