"""Damaged MEDS datasets and wrong declarations: errors with file, column and row, and notes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mrpipe.datasets.meds.config import parse_meds
from mrpipe.errors import DataError
from tests.datasets.meds.meds_toy import MEDS, N, at, config, events, faults_of, notes_of, write
from tests.datasets.spoilt import spoilt


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("code", pl.lit(1).alias("kode"), "data/1.parquet, column 'code': expected text; found columns subject_id"),
        ("time", pl.col("time").cast(pl.String), "column 'time': expected times without time zone; found String"),
        ("time", pl.col("time").dt.replace_time_zone("UTC"), "found Datetime(time_unit='us', time_zone='UTC')"),
        ("subject_id", pl.col("subject_id").cast(pl.String), "'subject_id': expected whole numbers; found String"),
        ("numeric_value", pl.lit("5").alias("numeric_value"), "'numeric_value': expected numbers; found String"),
    ],
)
def test_a_missing_column_and_a_wrong_dtype_are_named(
    tmp_path: Path, column: str, change: pl.Expr, expected: str
) -> None:
    raw = write(tmp_path, config())
    shard = raw / "data" / "1.parquet"
    pl.read_parquet(shard).with_columns(change.alias(column) if column != "code" else change).drop(
        ["code"] if column == "code" else []
    ).write_parquet(shard)
    assert expected in faults_of(raw)


def test_a_truncated_and_a_damaged_shard_are_named(tmp_path: Path) -> None:
    raw = write(tmp_path, config())
    whole = (raw / "data" / "0.parquet").read_bytes()
    os.truncate(raw / "data" / "0.parquet", len(whole) // 2)
    os.truncate(raw / "data" / "1.parquet", 0)
    text = faults_of(raw)
    assert "data/0.parquet: expected a whole Parquet file" in text
    assert "data/1.parquet: expected a whole Parquet file" in text
    write(tmp_path, config())
    (raw / "data" / "0.parquet").write_bytes(b"PAR1" + bytes(200) + whole[204:])
    assert "data" in faults_of(raw)


def test_null_codes_and_subjects_are_counted(tmp_path: Path) -> None:
    frame = events().with_columns(pl.when(pl.col("code") != "DX//b").then("code"))
    assert f"data/, column 'code': expected a value in every row; found {N} nulls" in faults_of(
        write(tmp_path, config(), frame)
    )


def test_a_split_with_repeated_subjects_or_an_unknown_part_is_refused(tmp_path: Path) -> None:
    raw = write(tmp_path, config())
    (raw / "metadata").mkdir()
    path = raw / "metadata" / "subject_splits.parquet"
    pl.DataFrame({"subject_id": [3, 1, 3], "split": ["train", "tuning", "test"]}).write_parquet(path)
    assert "subject_splits.parquet, column 'subject_id', row 1: expected each subject once; found 2 other" in faults_of(
        raw
    )
    pl.DataFrame({"subject_id": [1, 2], "split": ["train", "later"]}).write_parquet(path)
    assert "column 'split', row 2: expected one of train" in faults_of(raw)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, at(1, 5)), (N + 1, at(1, 5))], "column 'subject_id', row 2: expected subjects of data/"),
        (
            [(1, at(1, 5)), (2, None)],
            "column 'prediction_time', row 2: expected times without time zone; found 1 other",
        ),
        ([(1, at(1, 5)), (1, at(1, 5))], "column 'prediction_time', row 1: expected one row per subject"),
    ],
)
def test_a_label_file_with_invalid_rows_is_refused(tmp_path: Path, rows: list[Any], expected: str) -> None:
    raw = write(tmp_path, config(samples={"file": "task.parquet"}, labels={"y": {"column": "boolean_value"}}))
    frame = pl.DataFrame(rows, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}, orient="row")
    frame.with_columns(pl.lit(True).alias("boolean_value")).write_parquet(raw / "task.parquet")
    assert f"task.parquet, {expected}" in faults_of(raw)


def test_a_label_file_that_lacks_a_column_or_is_absent_is_refused(tmp_path: Path) -> None:
    raw = write(tmp_path, config(samples={"file": "task.parquet"}, labels={"y": {"column": "boolean_value"}}))
    assert "task.parquet: expected Parquet files; found none" in faults_of(raw)
    pl.DataFrame({"subject_id": [1, 2]}).write_parquet(raw / "task.parquet")
    assert "task.parquet, column 'prediction_time'" in faults_of(raw)
    pl.DataFrame({"subject_id": [1, 2], "prediction_time": [at(1, 5)] * 2}).write_parquet(raw / "task.parquet")
    assert "task.parquet, column 'boolean_value'" in faults_of(raw)


def test_a_class_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    label = {"column": "integer_value", "classes": [0, 1]}
    raw = write(tmp_path, config(samples={"file": "task.parquet"}, labels={"y": label}))
    frame = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [at(1, 5)] * 2, "integer_value": [0, 2]})
    frame.write_parquet(raw / "task.parquet")
    assert "column 'integer_value', row 2: expected one of 0, 1" in faults_of(raw)


def test_an_infinite_number_is_no_label(tmp_path: Path) -> None:
    raw = write(tmp_path, config(samples={"file": "task.parquet"}, labels={"y": {"column": "float_value"}}))
    frame = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [at(1, 5)] * 2, "float_value": [0.5, float("inf")]})
    frame.write_parquet(raw / "task.parquet")
    assert "column 'float_value', row 2: expected finite numbers" in faults_of(raw)


def test_a_prefix_that_matches_nothing_is_a_note_and_a_modality_without_events_an_error(tmp_path: Path) -> None:
    raw = write(
        tmp_path, config(modalities={"lab": {"codes": ["LAB//", "VITAL//"]}, "sex": {"codes": ["GENDER//", "DX//"]}})
    )
    notes = notes_of(raw)
    assert "modalities.lab.codes: no code begins with 'VITAL//'" in notes
    assert f"sex: {N} static events are left out" in notes
    assert "metadata/codes.parquet is missing" in notes
    raw = write(tmp_path, config(modalities={"lab": {"codes": "VITAL//"}}))
    assert "modalities.lab.codes': expected codes of the data; found VITAL//" in faults_of(raw)
    raw = write(tmp_path, config(samples={"event": "ICU//", "at": "1h"}))
    assert "column 'samples': expected at least one sample" in faults_of(raw)


def test_an_empty_folder_and_a_damaged_dataset_json_are_refused(tmp_path: Path) -> None:
    raw = write(tmp_path, config(), n_shards=0)
    assert "expected Parquet files; found none" in faults_of(raw)
    write(tmp_path, config())
    (raw / "metadata").mkdir()
    (raw / "metadata" / "dataset.json").write_text('{"dataset_name": ')
    assert "metadata/dataset.json, line 1: expected JSON" in faults_of(raw)
    (raw / "metadata" / "dataset.json").write_text("1.5")
    assert "metadata/dataset.json: expected a JSON object" in faults_of(raw)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"samples": {"event": "A//"}}, "column 'samples': expected `file`, a label file, alone; or `event` and"),
        ({"samples": {"file": "x", "event": "A//"}}, "expected `file`, a label file, alone"),
        ({"samples": {"file": "../x"}}, "samples.file': expected a path inside the export folder"),
        ({"samples": {"event": "A//", "at": "soon"}}, "samples.at': expected a duration"),
        (
            {"samples": {"event": "A//", "at": "1h", "which": "best"}},
            "samples.which': expected one of all, first, last",
        ),
        ({"samples": {"event": ["!A//"], "at": "1h"}}, "samples.event': expected prefixes of codes"),
        ({"modalities": {"m": {}}}, "modalities.m.codes': expected prefixes of codes"),
        ({"modalities": {"m": {"codes": ["A//", ""]}}}, "modalities.m.codes': expected prefixes of codes"),
        ({"modalities": {"m": {"codes": 250}}}, "modalities.m.codes': expected prefixes of codes"),
        ({"modalities": {"m": {"codes": "A//", "form": "bag"}}}, "modalities.m.form': expected one of values"),
        ({"modalities": {"a b": {"codes": "A//"}}}, "'modalities.a b': expected a name of letters, digits and _"),
        ({"modalities": None}, "'modalities': expected name: modality, at least one and at most 16; found nothing"),
        ({"labels": {"y": {"column": "boolean_value"}}}, "labels.y.column': expected `event`, without samples.file"),
        ({"labels": {"y": {"within": "3d"}}}, "labels.y': expected `event` or, with samples.file, `column`"),
        ({"labels": {"y": {"event": "A//", "classes": [1, "1"]}}}, "labels.y.classes': expected each class once"),
        ({"labels": {"y": {"event": "A//", "classes": ["a"]}}}, "labels.y.classes': expected at least two values"),
        ({"labels": {"y": {"event": "A//", "classes": ["a", "b", "c"]}}}, "labels.y.classes': expected two names"),
        (
            {"samples": {"file": "x"}, "labels": {"y": {"column": "categorical_value"}}},
            "labels.y.classes': expected at least two values; found nothing",
        ),
        (
            {"labels": {"y": {"event": "A//", "follow_up": "later"}}},
            "labels.y.follow_up': expected true or false; found later",
        ),
        ({"labels": {"y": {"evnt": "A//"}}}, "unknown key 'evnt'. Did you mean 'event'?"),
    ],
)
def test_errors_of_the_yaml_name_the_key(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_meds(yaml.safe_dump(config(**changes)), "meds.yaml")
    assert expected in str(caught.value)


def test_no_value_in_any_place_breaks_the_parser() -> None:
    """Each place of a declaration with all keys gets a value of each other type: it is read or an error."""

    label = {"event": "A//", "within": "1d", "until": "B//", "follow_up": True, "classes": ["a", "b"]}
    full = config(
        samples={"event": "A//", "end": ["B//", "!B//C"], "at": "-1.5 h", "which": "first"},
        modalities={"m": {"codes": ["A//", "!A//B"], "form": "codes", "window": "2w"}},
        labels={"y": label},
    )
    by_file = config(samples={"file": "x"}, labels={"y": {"column": "categorical_value", "classes": ["a", "b"]}})
    n_refused = 0
    for base in (full, by_file):
        parse_meds(yaml.safe_dump(base), "meds.yaml")
        for wrong in spoilt(base, (None, True, 0, "x", "", "!", [[]], {3: None})):
            try:
                parse_meds(yaml.safe_dump(wrong), "meds.yaml")
            except DataError:
                n_refused += 1
    assert n_refused > 200


def test_the_yaml_is_required(tmp_path: Path) -> None:
    raw = write(tmp_path, config())
    (raw / "meds.yaml").unlink()
    with pytest.raises(DataError, match=r"docs/meds\.md"):
        MEDS.declared(raw, MEDS.options())
