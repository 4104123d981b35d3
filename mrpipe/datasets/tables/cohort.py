"""Cohort, labels and split: the samples are the rows of the file that holds the first label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import polars as pl

from mrpipe.datasets.tables.config import Label, Split, TablesConfig, TablesOptions
from mrpipe.datasets.tables.files import ID, ROW, RawTable, canonical_text, id_text, known_text, read_table, too_large
from mrpipe.datasets.tables.joins import report_lost_rows
from mrpipe.datasets.tables.parser import read_config
from mrpipe.errors import DataError, FaultCollector
from mrpipe.ids import alike
from mrpipe.schema import Attrition, Cohort
from mrpipe.store.splits import PART_ALIASES, require_grouped


def named_rows(table: RawTable, faults: FaultCollector) -> pl.DataFrame:
    """The cohort file with `__sample_id` as in the store, before any row is dropped."""
    frame, config = table.with_ids(faults), table.config
    if config.by_order:
        column = None if config.id is None else table.column(config.id, "id", faults)
        # Padded with zeros, so that ids sort in row order.
        number = pl.col(ROW).cast(pl.String).str.zfill(len(str(len(frame))))
        frame = frame.with_columns((number if column is None else id_text(column, config.missing)).alias(ID))
    return frame


def label_values(
    table: RawTable, frame: pl.DataFrame, label: Label, faults: FaultCollector, notes: list[str]
) -> pl.Series | None:
    """Class index (Int8) or number (Float32) per row; null where the label is missing."""
    column = table.column(label.column, f"label {label.name}", faults)
    if column is None:
        return None
    text = frame.select(canonical_text(known_text(column, table.config.missing)))[column]
    if label.kind == "classification" and label.threshold is None:
        names = {v: i for i, v in enumerate(label.values)}
        wrong = text.is_not_null() & ~text.is_in(list(names))
        value = text.replace_strict(names, default=None, return_dtype=pl.Int8)
        expected = f"one of the classes {', '.join(label.values[:12])}"
    else:
        table.require_commas(column, faults)
        number = text.cast(pl.Float64, strict=False)
        wrong = (text.is_not_null() & ~number.is_finite().fill_null(False)) | too_large(number)
        value = number.cast(pl.Float32) if label.threshold is None else (number >= label.threshold).cast(pl.Int8)
        expected = "a finite number"
    absent = [name for i, name in enumerate(label.classes) if not (value == i).any()]
    if wrong.any():
        invalid = sorted(set(text.filter(wrong).to_list()))
        found = f"{', '.join(map(repr, invalid[:5]))} ({int(wrong.sum())} rows)"
        fix = "Add it to `classes` or `missing`, or drop its rows: drop: {column: [values]}."
        faults.add(table.fault(expected, found, fix, column=column, rows=frame[ROW].filter(wrong)))
    elif value.null_count() == len(value):
        faults.add(table.fault("at least one label", "none", column=column))
    elif label.kind == "classification" and len(label.classes) - len(absent) < 2:
        only = next(name for name in label.classes if name not in absent)
        expected = "at least two classes among the samples"
        faults.add(table.fault(expected, f"one: every label is {only!r}", column=column))
    elif absent:
        notes.append(f"label {label.name}: no sample is of class {', '.join(absent)}")
    return value.alias("value")


def _split_values(
    table: RawTable, frame: pl.DataFrame, split: Split, faults: FaultCollector, notes: list[str]
) -> pl.Series | None:
    column = table.column(split.column, "split", faults)
    if column is None:
        return None
    parts = dict(split.parts)
    text = frame.select(canonical_text(known_text(column, table.config.missing)).str.to_lowercase())[column]
    wrong = text.is_not_null() & ~text.is_in(list(parts))
    if wrong.any():
        invalid = ", ".join(map(repr, sorted(set(text.filter(wrong).to_list()))[:5]))
        fix = "Map the values to splits: train: [...], val: [...], test: [...]."
        expected, rows = f"one of {', '.join(parts)}", frame[ROW].filter(wrong)
        faults.add(table.fault(expected, invalid, fix, column=column, rows=rows))
    absent = sorted(set(parts) - set(text.to_list()))
    if absent and parts != PART_ALIASES:
        notes.append(f"split: {', '.join(map(repr, absent))} does not occur in column {column}")
    return text.replace_strict(parts, default=None, return_dtype=pl.String).alias("split")


def assemble(
    config: TablesConfig, tables: dict[str, RawTable], faults: FaultCollector, notes: list[str]
) -> tuple[Cohort, pl.DataFrame] | None:
    """Build the cohort from the tables that could be read; None if the cohort file could not.

    Returns:
        The cohort, and `sample_id`, `subject_id` and `row` of all rows of the cohort file, before any is dropped.
    """
    people = tables.get(config.cohort_file)
    if people is None:
        return None
    frame = named_rows(people, faults)
    subject = None if config.subject is None else people.column(config.subject, "subject", faults)
    known = frame.select(pl.col(ID).alias("sample_id"), pl.col(ROW).alias("row"), pl.col(ID).alias("subject_id"))
    if subject is not None:
        known = known.with_columns(frame.select(id_text(subject, config.missing).alias("subject_id")))
    attrition = Attrition(len(frame), f"rows of {config.cohort_file}")
    for reason, left in people.drop(frame, config.drop, "top level", faults):
        frame = left
        attrition.step(f"dropped: {reason}", len(frame))
    frame = people.unique(frame, faults)
    if frame.is_empty():
        faults.add(people.fault("at least one row", "none: all rows were dropped"))
        return None
    samples = known.join(frame, left_on="row", right_on=ROW, how="semi", maintain_order="left")
    blank = samples.filter(pl.col("subject_id").is_null())["row"]
    if len(blank):
        found = f"{len(blank)} rows without one"
        fix = "Give each person a subject, or drop these rows; samples of one person must not be in several splits."
        faults.add(people.fault("a subject in every row", found, fix, column=str(config.subject), rows=blank))
    for name in ("sample_id", "subject_id"):
        pair = alike(samples[name])
        if pair and (name == "sample_id" or config.subject is not None):
            notes.append(f"{name}: {pair} differ only in case or padding; they are kept apart")

    def rows_of(file: str) -> tuple[RawTable, pl.DataFrame] | None:
        """A file's table, and its rows with sample ids: the rows that belong to samples."""
        if file == people.shown_as:
            return people, frame
        table = tables.get(file)
        if table is None:
            return None
        rows = table.with_ids(faults)
        if config.by_order:
            require_same_length(table, people, faults)
        report_lost_rows(table, rows, known, config, faults, notes)
        rows = table.unique(rows, faults)
        keys = table.to_samples(rows.select(ID, ROW), samples).select(ROW, pl.col("sample_id").alias(ID))
        return table, rows.drop(ID).join(keys, on=ROW, how="inner", maintain_order="left")

    def values_of(entry: Label | Split, read: Callable[..., pl.Series | None]) -> pl.DataFrame | None:
        """`sample_id` and the value of a label or a split, without nulls."""
        found = rows_of(entry.file)
        value = None if found is None else read(*found, entry, faults, notes)
        if found is None or value is None:
            return None
        return pl.DataFrame([found[1][ID].alias("sample_id"), value]).drop_nulls()

    labels = {}
    for label in config.labels:
        if (value := values_of(label, label_values)) is not None:
            labels[label.name] = value
            if len(value) < len(samples):
                notes.append(f"label {label.name}: {len(value)} of {len(samples)} samples have one")
    samples = samples.select("sample_id", "subject_id", *(["row"] if config.by_order else []))
    if config.split is not None and (parts := values_of(config.split, _split_values)) is not None:
        try:
            require_grouped(samples, parts, config.split.file)
        except DataError as error:
            faults.absorb(error)
        samples = samples.join(parts, on="sample_id", how="left", maintain_order="left")
        if n_blank := samples["split"].null_count():
            notes.append(f"split: {n_blank} of {len(samples)} samples are in no part")
    return Cohort(samples=samples.sort("sample_id"), labels=labels, attrition=attrition.frame()), known


def require_same_length(table: RawTable, people: RawTable, faults: FaultCollector) -> None:
    if len(table.frame) != len(people.frame):
        expected = f"{len(people.frame)} rows, as many as {people.shown_as}"
        fix = "Rows are joined by order: all files need the same rows."
        faults.add(table.fault(expected, f"{len(table.frame)} rows", fix))


def build_cohort(raw: Path, options: TablesOptions) -> Cohort:
    """Build the cohort of an export.

    Raises:
        DataError: reports all errors of the YAML, or of the files that define the cohort, together.
    """
    config, faults = read_config(raw, options), FaultCollector()
    tables, config = read_tables(raw, config, config.cohort_files, faults)
    assembled = assemble(config, tables, faults, [])
    faults.raise_if_any()
    assert assembled is not None
    return assembled[0]


def read_tables(
    raw: Path, config: TablesConfig, files: set[str], faults: FaultCollector
) -> tuple[dict[str, RawTable], TablesConfig]:
    """The tables that can be read; the samples are in the default file if only that has the subjects."""
    tables = {}
    for file in sorted(files):
        try:
            tables[file] = read_table(raw, file, config)
        except DataError as error:
            faults.absorb(error)
    lacking, other = tables.get(config.cohort_file), tables.get(config.file)
    if lacking and other and config.subject in other.header and config.subject not in lacking.header:
        config = dataclasses.replace(config, cohort_file=config.file)
    return tables, config
