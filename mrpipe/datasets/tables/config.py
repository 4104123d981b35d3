"""The declaration of a dataset of tables, as the YAML gives it, and how its codes and patterns match."""

import fnmatch
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mrpipe.options import option
from mrpipe.schema import TaskKind

# A column: a name, a glob pattern of names, or a position (1 is the first, −1 the last).
Ref = str | int
# Column or pattern → values.
Rules = tuple[tuple[str, tuple[str, ...]], ...]
MISSING = ("", ".", "NA", "N/A", "#N/A", "<NA>", "n/a", "NaN", "nan", "NAN", "-nan", "NaT", "None", "null", "NULL")
# Largest fraction of a table's rows that may match no sample, unless `unmatched` is declared.
UNMATCHED = 0.2


@dataclass(frozen=True, kw_only=True)
class TablesOptions:
    """Options of the reader."""

    config: str = option("tables.yaml", "YAML file that declares the dataset: a file in the export folder, or any path")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Kind of a column.

    Attributes:
        kind: numeric, categorical, censored, date, age or text.
        codes, levels: values of a categorical column in the file, and their names (None: all values that occur).
        since: column of the same file from which a date or age is counted (None: the prediction time).
        format: format of the dates in the file, as for `strptime` (empty: ISO 8601), or `hours` or `days` for numbers.
    """

    kind: str
    codes: tuple[str, ...] | None = None
    levels: tuple[str, ...] | None = None
    since: Ref | None = None
    format: str = ""


@dataclass(frozen=True, kw_only=True)
class Long:
    """Columns of a long table, one row per measurement; the statistics of `aggregate`, or none for a sequence."""

    item: Ref
    value: Ref | None = None
    unit: Ref | None = None
    time: Ref | None = None
    format: str = ""
    aggregate: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Label:
    """One task; `values[i]` in the file is class i. With a threshold, class 1 is value ≥ threshold."""

    name: str
    file: str
    column: Ref
    kind: TaskKind = "classification"
    classes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    threshold: float | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A column that assigns train, val or test.

    Attributes:
        parts: (value in lower case, part).
        by: whether the column is that of a group or a date: other values are in train, and no subject is divided.
        starts: (first date, part), ascending, for a column of dates in `format`.
    """

    file: str
    column: Ref
    parts: tuple[tuple[str, str], ...] = ()
    by: bool = False
    starts: tuple[tuple[datetime, str], ...] = ()
    format: str = ""


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """A column of a file, such as sex or site, that the samples keep and by which results can be divided."""

    file: str
    column: Ref


@dataclass(frozen=True, kw_only=True)
class ModalityTable:
    """One modality: columns of one file, the measurements of a long one, or texts encoded by `encoder`.

    Or one column of paths of `files`, image or array, with this `shape`: (C, H, W), or () for that of the arrays.
    """

    name: str
    file: str
    columns: tuple[Ref, ...] = ("*",)
    exclude: tuple[Ref, ...] = ()
    kinds: tuple[tuple[str, Kind], ...] = ()
    missing: Rules = ()
    drop: Rules = ()
    long: Long | None = None
    files: str = ""
    shape: tuple[int, ...] = ()
    encoder: str = "hashing"
    description: str = ""

    @property
    def timed(self) -> bool:
        """Whether it has times that count from the time of the prediction."""
        dated = any(kind.kind in ("date", "age") and kind.since is None for _, kind in self.kinds)
        return dated or (self.long is not None and self.long.time is not None)


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """A declared dataset.

    Attributes:
        shown_as: name of the YAML in error messages.
        file: default file of all entries.
        cohort_file: the file whose rows are the samples: that of the first label, or `file` if only that has subjects.
        by_file: (key, file, value) of the keys in `BY_FILE`; file * is all files.
        prediction_time: column of the samples' file with the time after which nothing is known; None without times.
        prediction_format: its format (see `Kind`).
        missing: codes for missing in all files, also of labels, subjects and splits.
    """

    shown_as: str
    title: str = ""
    citation: str = ""
    licence: str = ""
    provider: str = ""
    file: str = ""
    cohort_file: str = ""
    by_file: tuple[tuple[str, str, Ref | float], ...] = ()
    by_order: bool = False
    prediction_time: Ref | None = None
    prediction_format: str = ""
    labels: tuple[Label, ...] = ()
    split: Split | None = None
    subgroups: tuple[Subgroup, ...] = ()
    missing: Rules = ()
    drop: Rules = ()
    modalities: tuple[ModalityTable, ...] = field(default=())

    @property
    def cohort_files(self) -> set[str]:
        """The files of samples, labels, split and subgroups."""
        files = {self.cohort_file, *(label.file for label in self.labels), *(group.file for group in self.subgroups)}
        files |= {self.split.file} if self.split else set()
        return files | ({self.file} if self.file and self.has_subjects else set())

    @property
    def has_subjects(self) -> bool:
        return any(key == "subject" for key, _, _ in self.by_file)

    def of_file(self, key: str, file: str) -> Any:
        """Value of a key of `by_file` for a file, None if it is not declared."""
        values = {f: value for k, f, value in self.by_file if k == key}
        return values.get(file, values.get("*"))


def matches(column: str, pattern: str) -> bool:
    return pattern == column or fnmatch.fnmatchcase(column, pattern)


def codes_of(column: str, rules: Rules) -> list[str]:
    """The values of all rules whose column or pattern matches."""
    return [value for pattern, values in rules for value in values if matches(column, pattern)]
