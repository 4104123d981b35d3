"""One modality: columns of one table as numbers and codes; a row without any value lacks the modality.

Legend: n rows, d features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.tables.config import Kind, ModalityTable, Ref, TablesConfig, TablesOptions, matches
from mrpipe.datasets.tables.files import ID, ROW, RawTable, canonical_text, known_text, read_table, too_large
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality

# Text columns with more distinct values are not categorical, unless there is a code list.
MAX_LEVELS = 50
# Text columns with more values that look like numbers than this, and than other values, are numbers with errors.
FEW_NUMBERS = 6
_NUMBER_LIKE = r"^[<>=≤≥~+-]*\s*[0-9.,]*[0-9][0-9.,]*([eE][-+]?[0-9]+)?\s*%?$"
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Parsed:
    """A modality's table as numbers.

    Attributes:
        columns: names in the file.
        levels: per column, the levels of a categorical one, None for a numeric one.
        declared: per column, whether the YAML gives its kind.
        rows: `__sample_id` and `__row` of each kept row.
        x: (n, d) float64; codes of levels for categorical columns; NaN where missing.
    """

    columns: list[str]
    levels: list[tuple[str, ...] | None]
    declared: list[bool]
    rows: pl.DataFrame
    x: NDArray[np.float64]


def reserved_columns(table: RawTable, config: TablesConfig) -> set[str]:
    """Columns of a file that hold ids, labels or splits, which are never features."""
    refs: list[Ref] = [r for r in (config.id, config.subject) if isinstance(r, str) and r in table.header]
    refs += [r for r in (config.id, config.subject) if isinstance(r, int) and table.shown_as == config.cohort_file]
    places = [(label.file, label.column) for label in config.labels]
    places += [(config.split.file, config.split.column)] if config.split else []
    refs += [column for file, column in places if file == table.shown_as]
    return set(table.columns(refs, "", FaultCollector()))


def feature_columns(
    table: RawTable, config: TablesConfig, modality: ModalityTable, faults: FaultCollector
) -> list[str]:
    """Features of a modality, in file order.

    Patterns never match ids, labels or splits; naming one of these explicitly is an error.
    """
    place = f"modalities.{modality.name}"
    reserved = reserved_columns(table, config)
    unresolved = FaultCollector()
    chosen = table.columns(modality.columns, f"{place}.columns", unresolved)
    faults.faults += unresolved.faults
    for column in sorted(reserved & {c for c in modality.columns if isinstance(c, str)}):
        found = f"{column!r}, which is an id, a label or a split"
        faults.add(Fault(file=config.shown_as, column=f"{place}.columns", expected="features only", found=found))
    # Exclusions may match nothing: one that is declared for all modalities need not occur in each of their files.
    excluded = set(table.columns(modality.exclude, f"{place}.exclude", faults, optional=True))
    left = [c for c in chosen if c not in reserved and c not in excluded]
    table.require_plain(left, faults)
    if not left and not unresolved.faults:
        faults.add(Fault(file=config.shown_as, column=place, expected="at least one feature", found="none left"))
    return left


def _kind_of(column: str, modality: ModalityTable) -> Kind | None:
    """The last declared kind whose column or pattern matches."""
    matching = [kind for pattern, kind in modality.kinds if matches(column, pattern)]
    return matching[-1] if matching else None


def inferred_kind(text: pl.Series, number: pl.Series, bad: pl.Series) -> Kind:
    """Categorical for text with few values, unless most of them look like numbers, such as <0.5, 3,14 or inf."""
    distinct = text.drop_nulls().unique() if bad.any() else text.clear()
    like = int(distinct.str.contains(_NUMBER_LIKE).sum())
    numeric = not len(distinct) or number.is_infinite().any() or like > max(FEW_NUMBERS, len(distinct) / 2)
    return Kind(kind="numeric" if numeric or len(distinct) > MAX_LEVELS else "categorical")


def parse(table: RawTable, config: TablesConfig, modality: ModalityTable, faults: FaultCollector) -> Parsed | None:
    """Convert the columns of a modality to numbers; errors name column, line, value and count.

    Returns None if there are no feature columns.
    """
    place = f"modalities.{modality.name}"
    columns = feature_columns(table, config, modality, faults)
    frame = table.with_ids(faults)
    for _, left in table.drop(frame, modality.drop, place, faults):
        frame = left
    frame = table.unique(frame, faults)
    for pattern in [p for p, _ in (*modality.kinds, *modality.missing) if p != "*"]:
        table.columns([pattern], f"{place}.kinds or missing", faults)
    if not columns:
        return None
    rules = config.missing + modality.missing
    text = frame.select(known_text(c, rules) for c in columns)
    number = text.select(pl.all().cast(pl.Float64, strict=False))
    values: list[NDArray[Any]] = []
    levels: list[tuple[str, ...] | None] = []
    declared: list[bool] = []
    for column in columns:
        bad = text[column].is_not_null() & ~number[column].is_finite().fill_null(False)
        kind = _kind_of(column, modality)
        declared.append(kind is not None)
        kind = kind or inferred_kind(text[column], number[column], bad)
        if kind.kind == "numeric":
            table.require_commas(column, faults)
            bad = bad | too_large(number[column])
            if bad.any():
                faults.add(_bad_number(table, column, text[column].filter(bad), frame[ROW].filter(bad)))
            values.append(number[column].to_numpy())
            levels.append(None)
            continue
        value, names = _codes(table, column, text.select(canonical_text(column))[column], kind, frame[ROW], faults)
        values.append(value)
        levels.append(names)
    x = np.column_stack([np.asarray(v, dtype=np.float64) for v in values])
    known = np.asarray(~np.isnan(x).all(axis=1))
    rows = frame.select(ID, ROW).filter(pl.Series(known))
    return Parsed(columns, levels, declared, rows, x[known])


def _bad_number(table: RawTable, column: str, invalid: pl.Series, rows: pl.Series) -> Fault:
    several = f"; {invalid.n_unique()} such values in {len(invalid)} rows" if len(invalid) > 1 else ""
    fix = "Declare codes for missing under `missing` and categories under `kinds`, or `exclude` the column."
    if invalid.str.contains("^-?[0-9]+,[0-9]+$").any():
        fix = 'If it is a decimal comma, declare `decimal: ","`. ' + fix
    expected = "a finite number, or few categories"
    return table.fault(expected, f"{invalid[0]!r}{several}", fix, column=column, rows=rows)


def _codes(
    table: RawTable, column: str, text: pl.Series, kind: Kind, rows: pl.Series, faults: FaultCollector
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Level code per row, and the levels: those of the code list, or all that occur, in natural order."""
    present = sorted(set(text.drop_nulls().to_list()), key=_natural)
    codes, names = kind.codes, kind.levels
    if codes is None or names is None:
        codes = names = tuple(present)
        if len(codes) > MAX_LEVELS:
            expected, fix = f"at most {MAX_LEVELS} categories", "List its codes under `kinds`, or exclude it."
            faults.add(table.fault(expected, f"{len(codes)}", fix, column=column))
    invalid = [v for v in present if v not in codes]
    if invalid:
        wrong = text.is_in(invalid).fill_null(False)
        expected = f"one of the codes {', '.join(codes[:12])}"
        found = f"{', '.join(map(repr, invalid[:5]))} ({int(wrong.sum())} rows)"
        fix = "Add them to the code list, or to `missing`."
        faults.add(table.fault(expected, found, fix, column=column, rows=rows.filter(wrong)))
    place = {v: float(i) for i, v in enumerate(codes)}
    value = text.replace_strict(place, default=None, return_dtype=pl.Float64).to_numpy()
    return np.asarray(value, dtype=np.float64), names or ("",)


def _natural(value: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, before text."""
    return (0, float(value), value) if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", value, re.ASCII) else (1, 0.0, value)


def no_samples(table: RawTable, name: str, fix: str) -> Fault:
    return table.fault(f"a value of {name} for at least one sample", "none", fix)


@dataclass(frozen=True)
class TableReader:
    """Reads one modality of a declared dataset; its repr is the declaration."""

    config: TablesConfig
    modality: ModalityTable
    bit: int

    def __call__(self, raw: Path, samples: pl.DataFrame, options: TablesOptions) -> Features:
        faults = FaultCollector()
        table = read_table(raw, self.modality.file, self.config)
        parsed = parse(table, self.config, self.modality, faults)
        faults.raise_if_any()
        assert parsed is not None
        rows = table.to_samples(parsed.rows.with_row_index("place"), samples).sort("sample_id")
        if rows.is_empty():
            raise DataError(no_samples(table, self.modality.name, "Does it use the ids of the label's file?"))
        x = parsed.x[rows["place"].to_numpy()].astype(np.float32)
        name, d = self.modality.name, x.shape[1]
        modality = Modality(name=name, bit=self.bit, kind="vector", shape=(d,), description=self.modality.description)

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(x), BATCH_ROWS):
                ids = pa.array(rows["sample_id"][start : start + BATCH_ROWS].to_list(), type=pa.string())
                flat = pa.FixedSizeListArray.from_arrays(pa.array(x[start : start + BATCH_ROWS].reshape(-1)), d)
                yield pa.RecordBatch.from_arrays([ids, flat], schema=modality.arrow_schema())

        observed = (~np.isnan(x)).sum(axis=0)
        dictionary = pl.DataFrame(
            {
                "modality": [name] * d,
                "position": range(d),
                "name": parsed.columns,
                "dtype": ["float32"] * d,
                "unit": [""] * d,
                "kind": ["numeric" if names is None else "categorical" for names in parsed.levels],
                "levels": [None if names is None else list(names) for names in parsed.levels],
                "description": [""] * d,
                "source_file": [table.shown_as] * d,
                "source_column": parsed.columns,
                "n_observed": observed,
                "n_missing": len(x) - observed,
            },
            schema=DICTIONARY_SCHEMA,
        )
        return Features(modality=modality, batches=batches(), dictionary=dictionary)
