"""Cohort, labels and split: the samples are the rows of the file that holds the first label."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import polars as pl

from mrpipe.datasets.tables.config import Label, Split, Subgroup, TablesConfig, TablesOptions
from mrpipe.datasets.tables.files import ID, ROW, RawTable, read_table
from mrpipe.datasets.tables.joins import report_lost_rows
from mrpipe.datasets.tables.parser import read_config
from mrpipe.datasets.tables.texts import canonical_text, clock, id_text, known_text, too_large
from mrpipe.errors import FaultCollector, cell, cells
from mrpipe.ids import alike
from mrpipe.schema import Attrition, Cohort
from mrpipe.store.splits import PART_ALIASES, PARTS, require_grouped


def named_rows(table: RawTable, faults: FaultCollector) -> pl.DataFrame:
    """The cohort file with `__sample_id` as in the store, before any row is dropped."""
    config = table.config
    dropped = table.columns([ref for ref, _ in config.drop], "", FaultCollector(), optional=True)
    frame = table.with_ids(faults, [*dropped, *table.subgroups()])
    if config.by_order:
        column = None if table.id is None else table.column(table.id, "id", faults)
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
        found = f"{cells(invalid)} ({int(wrong.sum())} rows)"
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


def times_of(table: RawTable, frame: pl.DataFrame, column: str, form: str, faults: FaultCollector) -> pl.Series:
    """Times of a column of `frame` (with `__row`); those that are not of the format are faults."""
    known = frame.select(ROW, known_text(column, table.config.missing))
    time = known.select(clock(column, form).alias(column))[column]
    wrong = known[column].is_not_null() & time.is_null()
    if wrong.any():
        text = known[column].filter(wrong)
        found = cell(text[0]) + (f"; {len(text)} such rows" if len(text) > 1 else "")
        expected = f"times in the format {form}" if form else "dates such as 2019-01-31 or 2019-01-31 08:30"
        fix = 'Declare their format, such as `format: "%d.%m.%Y"`, or `missing` codes.'
        faults.add(table.fault(expected, found, fix, column=column, rows=known[ROW].filter(wrong)))
    return time


def _split_values(
    table: RawTable, frame: pl.DataFrame, split: Split, faults: FaultCollector, notes: list[str]
) -> pl.Series | None:
    column = table.column(split.column, "split", faults)
    if column is None:
        return None
    if split.starts:
        time = times_of(table, frame, column, split.format, faults)
        part = pl.Series(["train"]).new_from_index(0, len(time)).set(time.is_null(), None)
        for start, name in split.starts:
            part = part.set((time >= start).fill_null(False), name)
        return part.alias("split")
    parts = dict(split.parts)
    text = frame.select(canonical_text(known_text(column, table.config.missing)).str.to_lowercase())[column]
    wrong = text.is_not_null() & ~text.is_in(list(parts))
    if wrong.any() and not split.by:
        invalid = cells(sorted(set(text.filter(wrong).to_list())))
        fix = "Map the values to splits: train: [...], val: [...], test: [...]; or split `by` groups."
        expected, rows = f"one of {', '.join(parts)}", frame[ROW].filter(wrong)
        faults.add(table.fault(expected, invalid, fix, column=column, rows=rows))
    absent = sorted(set(parts) - set(text.to_list()))
    if absent and parts != PART_ALIASES:
        notes.append(f"split: {', '.join(map(repr, absent))} does not occur in column {column}")
    part = text.replace_strict(parts, default="train" if split.by else None, return_dtype=pl.String)
    return part.set(text.is_null(), None).alias("split")


def _subgroup_values(
    table: RawTable, frame: pl.DataFrame, subgroup: Subgroup, faults: FaultCollector, notes: list[str]
) -> pl.Series | None:
    """Numbers if all known values are numbers, otherwise texts."""
    column = table.column(subgroup.column, "subgroups", faults)
    if column is None:
        return None
    text = frame.select(canonical_text(known_text(column, table.config.missing)))[column]
    number = text.cast(pl.Float64, strict=False)
    return (number if number.count() == text.count() else text).alias(str(subgroup.column))


def _undivided(samples: pl.DataFrame, parts: pl.DataFrame, split: Split, notes: list[str]) -> pl.DataFrame:
    """The parts of a split by groups or dates, without the samples of a subject that are not in its last part.

    Otherwise, training would see subjects of the test, or the test samples of other groups and earlier dates.
    """
    order = pl.col("split").replace_strict({part: k for k, part in enumerate(PARTS)}, return_dtype=pl.Int8)
    ranked = parts.join(samples.select("sample_id", "subject_id"), on="sample_id").with_columns(order.alias("order"))
    kept = ranked.filter(pl.col("order") == pl.col("order").max().over("subject_id"))
    if n := len(ranked) - len(kept):
        subjects = ranked.join(kept, on="sample_id", how="anti")["subject_id"].n_unique()
        text = "have samples on both sides: their test samples are tested, the others are in no part"
        notes.append(f"split by {split.column}: {subjects} subjects {text} ({n} samples)")
    return parts.join(kept, on="sample_id", how="semi", maintain_order="left")


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
    subject = None if people.subject is None else people.column(people.subject, "subject", faults)
    known = frame.select(pl.col(ID).alias("sample_id"), pl.col(ROW).alias("row"), pl.col(ID).alias("subject_id"))
    if subject is not None:
        known = known.with_columns(frame.select(id_text(subject, config.missing).alias("subject_id")))
    attrition = Attrition(len(frame), f"rows of {config.cohort_file}")
    for reason, left in people.drop(frame, config.drop, "top level", faults):
        frame = left
        attrition.step(reason, len(frame))
    frame = people.unique(frame, faults)
    if frame.is_empty():
        faults.add(people.fault("at least one row", "none: all rows were dropped"))
        return None
    samples = known.join(frame, left_on="row", right_on=ROW, how="semi", maintain_order="left")
    blank = samples.filter(pl.col("subject_id").is_null())["row"]
    if len(blank):
        found = f"{len(blank)} rows without one"
        fix = "Give each person a subject, or drop these rows; samples of one person must not be in several splits."
        faults.add(people.fault("a subject in every row", found, fix, column=str(people.subject), rows=blank))
    asked = []
    if config.prediction_time is not None:
        asked = ["prediction_time"]
        column = people.column(config.prediction_time, "prediction_time", faults)
        time = None if column is None else times_of(people, frame, column, config.prediction_format, faults)
        samples = samples.with_columns((pl.lit(None, pl.Datetime("us")) if time is None else time).alias(asked[0]))
        timeless = samples.filter(pl.col(asked[0]).is_null())["row"]
        if len(timeless) and column is not None:
            expected, found = "a time of the prediction in every row", f"{len(timeless)} rows without one"
            faults.add(people.fault(expected, found, "Drop these rows.", column=column, rows=timeless))
    for name in ("sample_id", "subject_id"):
        pair = alike(samples[name])
        if pair and (name == "sample_id" or people.subject is not None):
            notes.append(f"{name}: {pair} differ only in case or padding; they are kept apart")

    def rows_of(file: str) -> tuple[RawTable, pl.DataFrame] | None:
        """A file's table, and its rows with sample ids: the rows that belong to samples."""
        if file == people.shown_as:
            return people, frame
        table = tables.get(file)
        if table is None:
            return None
        rows = table.with_ids(faults, table.subgroups())
        if config.by_order:
            require_same_length(table, people, faults)
        report_lost_rows(table, rows, known, faults, notes)
        rows = table.unique(rows, faults)
        keys = table.to_samples(rows.select(ID, ROW), samples).select(ROW, pl.col("sample_id").alias(ID))
        return table, rows.drop(ID).join(keys, on=ROW, how="inner", maintain_order="left")

    def values_of(entry: Label | Split | Subgroup, read: Callable[..., pl.Series | None]) -> pl.DataFrame | None:
        """`sample_id` and the value of a label, split or subgroup, without nulls."""
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
    samples = samples.select("sample_id", "subject_id", *asked, *(["row"] if config.by_order else []))
    for subgroup in config.subgroups:
        if (value := values_of(subgroup, _subgroup_values)) is not None:
            samples = samples.join(value, on="sample_id", how="left", maintain_order="left")
    if config.split is not None and (parts := values_of(config.split, _split_values)) is not None:
        if config.split.by:
            parts = _undivided(samples, parts, config.split, notes)
        faults.attempt(require_grouped, samples, parts, config.split.file)
        samples = samples.join(parts, on="sample_id", how="left", maintain_order="left")
        if n_blank := samples["split"].null_count():
            notes.append(f"split: {n_blank} of {len(samples)} samples are in no part")
        if not (samples["split"] == "val").any():
            notes.append("split: no validation part; training takes one from the training samples, by subject")
    return Cohort(samples=samples.sort("sample_id"), labels=labels, attrition=attrition.frame()), known


def require_same_length(table: RawTable, people: RawTable, faults: FaultCollector) -> None:
    if table.n_rows != people.n_rows:
        expected = f"{people.n_rows} rows, as many as {people.shown_as}"
        fix = "Rows are joined by order: all files need the same rows."
        faults.add(table.fault(expected, f"{table.n_rows} rows", fix))


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
        if (table := faults.attempt(read_table, raw, file, config)) is not None:
            tables[file] = table
    lacking, other = tables.get(config.cohort_file), tables.get(config.file)
    if lacking and other and other.subject in other.header and lacking.subject not in lacking.header:
        config = dataclasses.replace(config, cohort_file=config.file)
        tables = {file: dataclasses.replace(table, config=config) for file, table in tables.items()}
    return tables, config
