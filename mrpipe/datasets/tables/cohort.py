"""Cohort, labels and split: the samples are the rows of the file that holds the first label."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mrpipe.datasets.tables.config import Label, Split, TablesConfig, TablesOptions, read_config
from mrpipe.datasets.tables.files import (
    ID,
    ROW,
    RawTable,
    canonical_text,
    drop_rows,
    find_column,
    is_missing,
    read_table,
    require_unique_ids,
    too_large,
    with_ids,
)
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.schema import Attrition, Cohort
from mrpipe.store.splits import require_grouped


def named_rows(table: RawTable, config: TablesConfig, faults: FaultCollector) -> pl.DataFrame:
    """The cohort file with `__sample_id` as in the store, before any row is dropped."""
    frame = with_ids(table, config, faults)
    if config.by_order:
        column = None if config.id is None else find_column(table, config.id, "id", faults)
        # Padded with zeros, so that ids sort in row order.
        number = pl.col(ROW).cast(pl.String).str.zfill(len(str(len(frame))))
        frame = frame.with_columns((number if column is None else pl.col(column)).alias(ID))
    return frame


def label_values(table: RawTable, frame: pl.DataFrame, label: Label, faults: FaultCollector) -> pl.Series | None:
    """Class index (Int8) or number (Float32) per row; null where the label is missing."""
    place = f"label {label.name}"
    column = find_column(table, label.column, place, faults)
    if column is None:
        return None
    known = pl.when(is_missing(column, ())).then(None).otherwise(canonical_text(column))
    text = frame.select(known.alias(column))[column]
    if label.kind == "classification" and label.threshold is None:
        names = {v: i for i, v in enumerate(label.values)}
        wrong = text.is_not_null() & ~text.is_in(list(names))
        value = text.replace_strict(names, default=None, return_dtype=pl.Int8)
        expected = f"one of the classes {', '.join(label.values[:12])}"
    else:
        number = text.cast(pl.Float64, strict=False)
        wrong = (text.is_not_null() & ~number.is_finite().fill_null(False)) | too_large(number)
        value = number.cast(pl.Float32) if label.threshold is None else (number >= label.threshold).cast(pl.Int8)
        expected = "a finite number"
    if wrong.any():
        invalid = sorted(set(text.filter(wrong).to_list()))
        found = f"{', '.join(map(repr, invalid[:5]))} ({int(wrong.sum())} rows)"
        fix = "Add it to `classes`, or drop its rows: drop: {column: [values]}."
        row = int(frame[ROW][int(wrong.arg_max() or 0)])
        faults.add(Fault(file=table.shown_as, column=column, row=row, expected=expected, found=found, fix=fix))
    elif value.null_count() == len(value):
        faults.add(Fault(file=table.shown_as, column=column, expected="at least one label", found="none"))
    elif label.kind == "classification" and value.n_unique() - int(value.null_count() > 0) < 2:
        faults.add(
            Fault(file=table.shown_as, column=column, expected="at least two classes among the samples", found="one")
        )
    return value.alias("value")


def _split_values(table: RawTable, frame: pl.DataFrame, split: Split, faults: FaultCollector) -> pl.Series | None:
    column = find_column(table, split.column, "split", faults)
    if column is None:
        return None
    parts = dict(split.parts)
    text = frame.select(
        pl.when(is_missing(column, ())).then(None).otherwise(canonical_text(column)).str.to_lowercase().alias(column)
    )[column]
    wrong = text.is_not_null() & ~text.is_in(list(parts))
    if wrong.any():
        invalid = ", ".join(map(repr, sorted(set(text.filter(wrong).to_list()))[:5]))
        faults.add(
            Fault(
                file=table.shown_as,
                column=column,
                expected=f"one of {', '.join(parts)}",
                found=invalid,
                fix="Map the values to splits: train: [...], val: [...], test: [...].",
            )
        )
    return text.replace_strict(parts, default=None, return_dtype=pl.String).alias("split")


def assemble(config: TablesConfig, tables: dict[str, RawTable], faults: FaultCollector) -> Cohort | None:
    """Build the cohort from the tables that could be read; None if the cohort file could not."""
    people = tables.get(config.cohort_file)
    if people is None:
        return None
    frame = named_rows(people, config, faults)
    attrition = Attrition(len(frame), f"rows of {config.cohort_file}")
    for reason, left in drop_rows(people, frame, config.drop, "top level", faults):
        frame = left
        attrition.step(f"dropped: {reason}", len(frame))
    require_unique_ids(people, frame, faults)
    if frame.is_empty():
        faults.add(Fault(file=config.cohort_file, expected="at least one row", found="none: all rows were dropped"))
        return None
    subject = None if config.subject is None else find_column(people, config.subject, "subject", faults)
    samples = frame.select(
        pl.col(ID).alias("sample_id"), pl.col(subject or ID).fill_null(pl.col(ID)).alias("subject_id")
    )
    if config.by_order:
        samples = samples.with_columns(frame[ROW].cast(pl.Int32).alias("row"))
    if config.split is not None:
        found = rows_of(config.split.file, people, frame, config, tables, faults)
        part = None if found is None else _split_values(*found, config.split, faults)
        if found is not None and part is not None:
            part_of = pl.DataFrame({"sample_id": found[1][ID], "split": part})
            samples = samples.join(part_of, on="sample_id", how="left", maintain_order="left")
            try:
                require_grouped(samples, samples.select("sample_id", "split").drop_nulls(), config.split.file)
            except DataError as error:
                faults.absorb(error)
    labels = {}
    for label in config.labels:
        found = rows_of(label.file, people, frame, config, tables, faults)
        value = None if found is None else label_values(*found, label, faults)
        if found is not None and value is not None:
            one = pl.DataFrame({"sample_id": found[1][ID], "value": value}).drop_nulls()
            labels[label.name] = one.join(samples, on="sample_id", how="semi")
    return Cohort(samples=samples.sort("sample_id"), labels=labels, attrition=attrition.frame())


def rows_of(
    file: str,
    people: RawTable,
    frame: pl.DataFrame,
    config: TablesConfig,
    tables: dict[str, RawTable],
    faults: FaultCollector,
) -> tuple[RawTable, pl.DataFrame] | None:
    """A file's table, and its rows with sample ids: the cohort file's rows as they are, other rows joined to them."""
    if file == people.shown_as:
        return people, frame
    table = tables.get(file)
    if table is None:
        return None
    rows = with_ids(table, config, faults)
    if config.by_order:
        require_same_length(table, people, faults)
        rows = rows.drop(ID).join(frame.select(ID, ROW), on=ROW, how="inner", maintain_order="left")
    require_unique_ids(table, rows, faults)
    return table, rows


def require_same_length(table: RawTable, people: RawTable, faults: FaultCollector) -> None:
    if len(table.frame) != len(people.frame):
        found = f"{len(table.frame)} rows"
        faults.add(
            Fault(
                file=table.shown_as,
                expected=f"{len(people.frame)} rows, as many as {people.shown_as}",
                found=found,
                fix="Rows are joined by order: all files need the same rows.",
            )
        )


def build_cohort(raw: Path, options: TablesOptions) -> Cohort:
    """Build the cohort of an export.

    Raises:
        DataError: reports all errors of the YAML, or of the files that define the cohort, together.
    """
    config, faults = read_config(raw, options), FaultCollector()
    files = {config.cohort_file, *(x.file for x in config.labels)} | ({config.split.file} if config.split else set())
    cohort = assemble(config, read_tables(raw, sorted(files), faults), faults)
    faults.raise_if_any()
    assert cohort is not None
    return cohort


def read_tables(raw: Path, files: list[str], faults: FaultCollector) -> dict[str, RawTable]:
    """Map file names to tables, for the files that can be read."""
    tables = {}
    for file in files:
        try:
            tables[file] = read_table(raw, file)
        except DataError as error:
            faults.absorb(error)
    return tables
