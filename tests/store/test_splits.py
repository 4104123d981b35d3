"""Splits: grouped by subject, stratified, determined by ids, classes and seed."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpipe.errors import DataError, UsageError
from mrpipe.store.splits import PARTS, from_column, from_id_list, grouped_stratified

FRACTIONS = (0.70, 0.15, 0.15)


def make_samples(n: int, n_subjects: int, n_classes: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    subject = rng.integers(0, n_subjects, n)
    return pl.DataFrame(
        {
            "sample_id": [f"s{i:05d}" for i in range(n)],
            "subject_id": [f"p{s}" for s in subject],
            "stratum": rng.integers(0, n_classes, n),
        }
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 4), st.integers(0, 5))
def test_samples_are_assigned_and_subjects_stay_together(n: int, n_subjects: int, n_classes: int, seed: int) -> None:
    samples = make_samples(n, n_subjects, n_classes, seed)
    split = grouped_stratified(samples, fractions=FRACTIONS, seed=seed, stratum="stratum")
    assert split["sample_id"].to_list() == samples["sample_id"].to_list()
    joined = samples.join(split, on="sample_id")
    assert joined.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(40, 400), st.integers(1, 5), st.integers(0, 5))
def test_split_with_one_sample_per_subject_is_stratified_up_to_rounding(n: int, n_classes: int, seed: int) -> None:
    samples = make_samples(n, n, n_classes, seed).with_columns(pl.col("sample_id").alias("subject_id"))
    split = grouped_stratified(samples, fractions=FRACTIONS, seed=seed, stratum="stratum").join(samples, on="sample_id")
    for part, fraction in zip(PARTS, FRACTIONS, strict=True):
        assigned = split.filter(split=part)
        assert abs(len(assigned) - fraction * n) <= 2
        for value, count in samples["stratum"].value_counts().iter_rows():
            assert abs(assigned.filter(stratum=value).height - fraction * count) <= 2


def test_split_depends_on_the_seed_but_not_on_the_row_order() -> None:
    samples = make_samples(300, 80, 3, 1)
    first = grouped_stratified(samples, fractions=FRACTIONS, seed=0, stratum="stratum")
    shuffled = samples.sample(fraction=1.0, shuffle=True, seed=5)
    assert first.equals(grouped_stratified(shuffled, fractions=FRACTIONS, seed=0, stratum="stratum"))
    assert not first.equals(grouped_stratified(samples, fractions=FRACTIONS, seed=1, stratum="stratum"))


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        grouped_stratified(make_samples(5, 5, 1, 0), fractions=(0.5, 0.5, 0.5), seed=0)


def test_column_scheme_drops_nulls_and_refuses_other_values() -> None:
    samples = make_samples(3, 3, 1, 0).with_columns(fold=pl.Series(["train", None, "test"]))
    assert from_column(samples, "fold")["split"].to_list() == ["train", "test"]
    with pytest.raises(UsageError, match="dev"):
        from_column(samples.with_columns(fold=pl.lit("dev")), "fold")


def test_id_lists_accept_sample_or_subject_ids_and_common_part_names(tmp_path) -> None:
    samples = make_samples(6, 6, 1, 0).with_columns(pl.Series("subject_id", ["a", "a", "b", "b", "c", "c"]))
    path = tmp_path / "ids.json"
    path.write_text(json.dumps({"training": ["a"], "validation": ["b"], "testing": ["c"]}))
    assert from_id_list(samples, path)["split"].to_list() == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    path.write_text(json.dumps({"train": ["s00000"], "test": ["s00002"]}))
    assert from_id_list(samples, path)["split"].to_list() == ["train", "test"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"train": ["s00000"], "test": ["s00001"]}', "several parts"),
        ('{"train": ["s00000"], "test": ["nobody"]}', "does not have"),
        ('{"train": ["s00000"], "test": ["s00000"]}', "each id once"),
        ('{"trian": ["s00000"]}', "train, val and test"),
        ("[1, 2", "JSON object"),
    ],
)
def test_invalid_id_list_is_a_data_error(tmp_path, content: str, words: str) -> None:
    samples = make_samples(4, 4, 1, 0).with_columns(pl.Series("subject_id", ["a", "a", "b", "b"]))
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        from_id_list(samples, path)
