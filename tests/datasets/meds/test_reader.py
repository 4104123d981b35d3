"""The reader of MEDS datasets against values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from mrpipe.stages.simulate import simulate
from mrpipe.store.reader import Store
from tests.datasets.meds.meds_toy import MEDS, N, at, built, config, events, notes_of, write


def steps(store: Store, name: str, sample: str) -> list[tuple[float, str, float]]:
    """Hour, code and second number of each step of a sample."""
    levels = store.dictionary.filter(modality=name)["levels"][0]
    row = store.modality(name).filter(pl.col("sample_id") == sample).collect()
    pairs = zip(row["time"][0], row["x"][0].to_list(), strict=True)
    return [(float(t), levels[int(x[0])], float(x[1])) for t, x in pairs]


def test_values_end_at_the_prediction_time_and_repetitions_count_once(tmp_path: Path) -> None:
    store = built(tmp_path, config())
    assert steps(store, "lab", "3") == [(-47, "LAB//1//mg", 4), (-43, "LAB//1//mg", 8), (-18, "LAB//1//mg", 33)]
    assert "1" not in store.modality("lab").collect()["sample_id"]
    assert store.manifest.n_samples == N - 1
    assert store.attrition["n_after"].to_list()[:3] == [N, N, N]


def test_codes_are_numbered_by_distinct_time(tmp_path: Path) -> None:
    store = built(tmp_path, config(modalities={"dx": {"codes": "DX//", "form": "codes"}}))
    assert steps(store, "dx", "2") == [(-46, "DX//a", 1), (-46, "DX//b", 1), (-8, "DX//a", 2)]


def test_counts_include_static_events_and_the_window_leaves_out_older_ones(tmp_path: Path) -> None:
    forms = {
        "bag": {"codes": ["GENDER//", "DX//", "!DX//b"], "form": "counts"},
        "recent": {"codes": "LAB//", "form": "summary", "window": "44h"},
    }
    store = built(tmp_path, config(modalities=forms))
    bag = store.modality("bag").collect()
    assert store.dictionary.filter(modality="bag")["name"].to_list() == [
        "DX//a count",
        "GENDER//F count",
        "GENDER//M count",
    ]
    assert bag.filter(sample_id="2")["x"][0].to_list() == [2, 1, 0]
    recent = store.modality("recent").filter(pl.col("sample_id") == "2").collect()
    assert recent["x"][0].to_list() == [32, 19.5, 7, 32, 2]


def test_order_of_rows_shards_and_dtypes_do_not_matter(tmp_path: Path) -> None:
    forms: dict[str, Any] = {
        f: {"codes": ["LAB//", "DX//"], "form": f} for f in ("values", "codes", "summary", "counts")
    }
    one = built(tmp_path / "a", config(modalities=forms))
    shuffled = (
        events()
        .sample(fraction=1.0, shuffle=True, seed=1)
        .with_columns(
            pl.col("subject_id").cast(pl.Int32),
            pl.col("time").cast(pl.Datetime("ns")),
            pl.col("code").cast(pl.Categorical),
            pl.col("numeric_value").cast(pl.Float64),
        )
    )
    other = built(tmp_path / "b", config(modalities=forms), shuffled, n_shards=5)
    for name in forms:
        assert one.modality(name).collect().equals(other.modality(name).collect())
    assert one.dictionary.equals(other.dictionary)


def test_samples_and_labels_of_a_label_file(tmp_path: Path) -> None:
    rows = [(i, at(i, h), i % 2 == 0, i % 4, i / 2, "abc"[i % 3]) for i in range(2, N + 1) for h in (10, 20)]
    names = ["subject_id", "prediction_time", "boolean_value", "integer_value", "float_value", "categorical_value"]
    labels = {
        "yes": {"column": "boolean_value"},
        "number": {"column": "float_value"},
        "grade": {"column": "integer_value", "classes": [3, 2, 1, 0]},
        "letter": {"column": "categorical_value", "classes": ["a", "b", "c"]},
        "death": {"event": "MEDS_DEATH"},
    }
    raw = write(tmp_path, config(samples={"file": "tasks"}, labels=labels))
    (raw / "tasks").mkdir()
    frame = pl.DataFrame(rows, schema=names, orient="row")
    frame[::2].write_parquet(raw / "tasks" / "0.parquet")
    frame[1::2].write_parquet(raw / "tasks" / "1.parquet")
    cohort = MEDS.cohort(raw, MEDS.options())
    assert len(cohort.samples) == len(frame)
    assert cohort.samples["sample_id"][0] == "10_21500411T100000"
    ids = {name: dict(value.iter_rows()) for name, value in cohort.labels.items()}
    first = {name: value["7_21500312T100000"] for name, value in ids.items()}
    assert first == {"yes": 0, "number": 3.5, "grade": 0, "letter": 1, "death": 0}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"event": "MEDS_DEATH", "within": "20d"}, {"3": 1, "4": 0}),
        ({"event": "MEDS_DEATH", "within": "19d"}, {"3": 0, "4": 0}),
        ({"event": "MEDS_DEATH", "within": "19d", "follow_up": True}, {"3": 0, "4": None}),
        ({"event": "LAB//", "until": "MEDS_DEATH"}, {"3": 1, "4": 1, "1": None}),
    ],
)
def test_labels_of_events(tmp_path: Path, label: dict[str, Any], expected: dict[str, int | None]) -> None:
    raw = write(tmp_path, config(labels={"y": label}))
    value = dict(MEDS.cohort(raw, MEDS.options()).labels["y"].iter_rows())
    assert {k: value.get(k) for k in expected} == expected


def test_samples_after_death_or_a_stay_that_has_ended_are_left_out(tmp_path: Path) -> None:
    frame = events().filter(~((pl.col("subject_id") == 5) & pl.col("code").str.starts_with("DISCHARGE//")))
    late = {"event": "ADMISSION//", "end": "DISCHARGE//", "at": "48h"}
    for samples, left in (
        ({"event": "ADMISSION//", "at": "30d"}, N - N // 3),
        ({**late, "at": "24h"}, N - 1),
        ({"event": "ADMISSION//", "end": "DISCHARGE//"}, N - 1),
    ):
        raw = write(tmp_path, config(samples=samples), frame)
        assert len(MEDS.cohort(raw, MEDS.options()).samples) == left


def test_the_split_of_the_dataset_is_the_scheme_standard(tmp_path: Path) -> None:
    raw = write(tmp_path, config())
    (raw / "metadata").mkdir()
    part = [("train", "train", "tuning", "held_out")[i % 4] for i in range(N)]
    splits = pl.DataFrame({"subject_id": range(N, 0, -1), "split": part})
    splits[1:].write_parquet(raw / "metadata" / "subject_splits.parquet")
    samples = MEDS.cohort(raw, MEDS.options()).samples
    assert dict(samples.select("sample_id", "split").iter_rows()) == {
        str(n): {"train": "train", "tuning": "val", "held_out": "test"}[p] if n < N else None
        for n, p in splits.iter_rows()
    }
    assert list(MEDS.declared(raw, MEDS.options()).schemes) == ["standard", "uniform"]
    assert f"1 of {N} samples are of subjects in no split" in notes_of(raw)


def test_a_simulated_dataset_is_valid_meds(tmp_path: Path) -> None:
    meds = pytest.importorskip("meds")
    simulate(MEDS, tmp_path / "raw", {"n_subjects": 60})
    shards = sorted((tmp_path / "raw" / "data").rglob("*.parquet"))
    assert len(shards) == 3
    subjects: set[int] = set()
    for shard in shards:
        table = meds.DataSchema.align(pq.read_table(shard))
        subject, time = table["subject_id"].to_numpy(), table["time"].to_numpy()
        same = subject[1:] == subject[:-1]
        assert not (same & (time[1:] < time[:-1])).any()
        assert (~same).sum() + 1 == len(np.unique(subject))
        assert not subjects & set(subject.tolist())
        subjects |= set(subject.tolist())
    metadata = tmp_path / "raw" / "metadata"
    meds.SubjectSplitSchema.align(pq.read_table(metadata / "subject_splits.parquet"))
    meds.CodeMetadataSchema.align(pq.read_table(metadata / "codes.parquet"))
    meds.DatasetMetadataSchema.validate(json.loads((metadata / "dataset.json").read_text()))
    assert subjects == set(pl.read_parquet(metadata / "subject_splits.parquet")["subject_id"])
