"""One modality: columns of one table to numbers and codes; a row without any value lacks the modality.

Legend: n rows, d features.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.tables.config import Kind, ModalityTable, Ref, TablesConfig, TablesOptions, canonical
from mrpipe.datasets.tables.files import (
    ID,
    ROW,
    RawTable,
    canonical_text,
    drop_rows,
    find_columns,
    is_missing,
    read_table,
    require_unique_ids,
    too_large,
    with_ids,
)
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality

# Text columns with more values than this are no categories unless a code list says so.
MAX_LEVELS = 50
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Parsed:
    """A modality's table as numbers.

    Attributes:
        columns: names in the file.
        levels: per column the levels of a categorical one, None for a numeric one.
        declared: per column whether the YAML gives its kind.
        rows: `__sample_id` and `__row` of each kept row.
        x: (n, d) float64; codes of levels for categorical columns; NaN where unknown.
    """

    columns: list[str]
    levels: list[tuple[str, ...] | None]
    declared: list[bool]
    rows: pl.DataFrame
    x: NDArray[np.float64]


def reserved_columns(table: RawTable, config: TablesConfig) -> set[str]:
    """Columns of a file that are ids, labels or splits: never features."""
    quiet = FaultCollector()
    refs: list[Ref] = [r for r in (config.id, config.subject) if isinstance(r, str) and r in table.header]
    refs += [r for r in (config.id, config.subject) if isinstance(r, int) and table.shown_as == config.people]
    places = [(label.file, label.column) for label in config.labels]
    places += [(config.split.file, config.split.column)] if config.split else []
    refs += [column for file, column in places if file == table.shown_as]
    return set(find_columns(table, refs, "", quiet))


def feature_columns(
    table: RawTable, config: TablesConfig, modality: ModalityTable, faults: FaultCollector
) -> list[str]:
    """Features of a modality, in the order of the file.

    A pattern never takes ids, labels or splits; a label that is named outright is a fault.
    """
    place = f"modalities.{modality.name}"
    reserved = reserved_columns(table, config)
    own = FaultCollector()
    chosen = find_columns(table, modality.columns, f"{place}.columns", own)
    faults.faults += own.faults
    named = sorted(reserved & {c for c in modality.columns if isinstance(c, str)})
    for column in named:
        faults.add(
            Fault(
                file=config.shown_as,
                column=f"{place}.columns",
                expected="features only",
                found=f"{column!r}, which is an id, a label or a split",
            )
        )
    # An exclusion for all modalities need not be in each of their files; one of this modality alone is checked.
    excluded = set(find_columns(table, modality.exclude, f"{place}.exclude", FaultCollector()))
    left = [c for c in chosen if c not in reserved and c not in excluded]
    if not left and not own.faults:
        faults.add(Fault(file=config.shown_as, column=place, expected="at least one feature", found="none is left"))
    return left


def _kind_of(column: str, modality: ModalityTable) -> Kind | None:
    """The last kind whose column or pattern fits."""
    fitting = [kind for pattern, kind in modality.kinds if pattern == column or fnmatch.fnmatchcase(column, pattern)]
    return fitting[-1] if fitting else None


def parse(table: RawTable, config: TablesConfig, modality: ModalityTable, faults: FaultCollector) -> Parsed | None:
    """Turn the modality's columns into numbers; faults name column, row, value and count.

    Returns None where there is nothing to go on from.
    """
    place = f"modalities.{modality.name}"
    columns = feature_columns(table, config, modality, faults)
    frame = with_ids(table, config, faults)
    for _, left in drop_rows(table, frame, modality.drop, place, faults):
        frame = left
    require_unique_ids(table, frame, faults)
    for pattern in [p for p, _ in modality.kinds] + [p for p, _ in modality.missing if p != "*"]:
        find_columns(table, [pattern], f"{place}.kinds or missing", faults)
    if not columns:
        return None
    codes = {c: [v for p, vs in modality.missing if p == c or fnmatch.fnmatchcase(c, p) for v in vs] for c in columns}
    text = frame.select(pl.when(is_missing(c, codes[c])).then(None).otherwise(pl.col(c)).alias(c) for c in columns)
    number = text.select(pl.all().cast(pl.Float64, strict=False))
    values: list[NDArray[Any]] = []
    levels: list[tuple[str, ...] | None] = []
    declared: list[bool] = []
    for column in columns:
        kind = _kind_of(column, modality)
        declared.append(kind is not None)
        bad = text[column].is_not_null() & ~number[column].is_finite().fill_null(False)
        if kind is None:
            kind = Kind(kind="numeric")
            if bad.any() and text[column].n_unique() <= MAX_LEVELS + 1:
                kind = Kind(kind="categorical")
        if kind.kind == "numeric":
            bad = bad | too_large(number[column])
            if bad.any():
                faults.add(_bad_number(table, column, text[column], bad, frame[ROW]))
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


def _bad_number(table: RawTable, column: str, text: pl.Series, bad: pl.Series, rows: pl.Series) -> Fault:
    strange = sorted(set(text.filter(bad).to_list()))
    first = int(bad.arg_max() or 0)
    several = f"; {len(strange)} such values in {int(bad.sum())} rows" if int(bad.sum()) > 1 else ""
    return Fault(
        file=table.shown_as,
        column=column,
        row=int(rows[first]),
        expected="a finite number, or few categories",
        found=f"{text[first]!r}{several}",
        fix="A code for missing goes under `missing`, categories under `kinds`, and what is neither under `exclude`.",
    )


def _codes(
    table: RawTable, column: str, text: pl.Series, kind: Kind, rows: pl.Series, faults: FaultCollector
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Code of each row's level, and the levels: those of the code list, or all that occur, in their natural order."""
    there = sorted(set(text.drop_nulls().to_list()), key=_natural)
    codes, names = kind.codes, kind.levels
    if codes is None or names is None:
        codes = names = tuple(there)
        if len(codes) > MAX_LEVELS:
            faults.add(
                Fault(
                    file=table.shown_as,
                    column=column,
                    expected=f"at most {MAX_LEVELS} categories",
                    found=f"{len(codes)}",
                    fix="List its codes under `kinds`, or exclude it.",
                )
            )
    strange = [v for v in there if v not in codes]
    if strange:
        wrong = text.is_in(strange)
        faults.add(
            Fault(
                file=table.shown_as,
                column=column,
                row=int(rows[int(wrong.arg_max() or 0)]),
                expected=f"one of the codes {', '.join(codes[:12])}",
                found=f"{', '.join(map(repr, strange[:5]))} ({int(wrong.sum())} rows)",
                fix="Add them to the code list, or to `missing`.",
            )
        )
    place = {v: float(i) for i, v in enumerate(codes)}
    value = text.replace_strict(place, default=None, return_dtype=pl.Float64).to_numpy()
    return np.asarray(value, dtype=np.float64), names or ("",)


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by size, before texts."""
    try:
        return 0, float(value), canonical(value)
    except ValueError:
        return 1, 0.0, value


@dataclass(frozen=True)
class TableReader:
    """Reads one modality of a declared dataset; its repr is the declaration."""

    config: TablesConfig
    modality: ModalityTable
    bit: int

    def __call__(self, raw: Path, samples: pl.DataFrame, options: TablesOptions) -> Features:
        faults = FaultCollector()
        table = read_table(raw, self.modality.file)
        parsed = parse(table, self.config, self.modality, faults)
        faults.raise_if_any()
        assert parsed is not None
        rows = parsed.rows.with_row_index("place")
        if self.config.by_order:
            rows = rows.with_columns(pl.col(ROW).cast(pl.Int32)).join(samples, left_on=ROW, right_on="row", how="inner")
        else:
            rows = rows.join(samples, left_on=ID, right_on="sample_id", how="inner", coalesce=False)
        rows = rows.sort("sample_id")
        if rows.is_empty():
            raise DataError(
                Fault(
                    file=table.shown_as,
                    expected=f"a value of {self.modality.name} for at least one sample",
                    found="none",
                    fix="Are the ids those of the label's file?",
                )
            )
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
