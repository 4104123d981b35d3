"""Splits: grouped by subject, stratified, determined by ids, classes and seed."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpipe.errors import DataError, UsageError
from mrpipe.keyed import bits, id_keys
from mrpipe.schema import Scheme, Task
from mrpipe.store.splits import PARTS, assign, from_column, from_id_list, grouped_stratified, split_faults

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


def counts(samples: pl.DataFrame, split: pl.DataFrame) -> np.ndarray:
    """Samples per part (rows) and class (columns), the last column in total."""
    joined = samples.join(split, on="sample_id")
    classes = samples["stratum"].unique().sort().to_list()
    table = [[joined.filter(pl.col("stratum").eq_missing(c), split=p).height for c in classes] for p in PARTS]
    return np.column_stack([table, np.sum(table, axis=1)])


EXACT = st.sampled_from([FRACTIONS, (0.8, 0.0, 0.2), (0.6, 0.2, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.64, 0.16, 0.2)])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 400), st.integers(1, 6), st.integers(0, 1000), EXACT)
def test_split_with_one_sample_per_subject_is_stratified_up_to_rounding(
    n: int, n_classes: int, seed: int, fractions: tuple[float, float, float]
) -> None:
    samples = make_samples(n, n, n_classes, seed).with_columns(pl.col("sample_id").alias("subject_id"))
    split = grouped_stratified(samples, fractions=fractions, seed=seed, stratum="stratum")
    found = counts(samples, split)
    assert (np.abs(found - np.outer(fractions, found.sum(axis=0))) < 1 - 1e-6).all()


def test_213_samples_of_5_classes_are_split_up_to_rounding() -> None:
    samples = make_samples(213, 213, 5, 5).with_columns(pl.col("sample_id").alias("subject_id"))
    found = counts(samples, grouped_stratified(samples, fractions=FRACTIONS, seed=5, stratum="stratum"))
    assert (np.abs(found - np.outer(FRACTIONS, found.sum(axis=0))) < 1).all()
    assert found[0, -1] in (149, 150)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 80), st.integers(1, 4), st.integers(0, 1000), EXACT)
def test_totals_of_grouped_splits_are_bounded_by_the_largest_subject(
    n: int, n_subjects: int, n_classes: int, seed: int, fractions: tuple[float, float, float]
) -> None:
    samples = make_samples(n, n_subjects, n_classes, seed)
    split = grouped_stratified(samples, fractions=fractions, seed=seed, stratum="stratum")
    largest = samples["subject_id"].value_counts()["count"].max()
    above = counts(samples, split)[:, -1] - np.array(fractions) * n
    assert (above < largest).all()
    assert (above > -2 * largest).all()


def test_classes_of_grouped_splits_are_balanced() -> None:
    """Of 400 subjects with up to 5 samples each, every part has its share of each class within 2 % of all samples."""
    samples = make_samples(1000, 400, 3, 0)
    found = counts(samples, grouped_stratified(samples, fractions=FRACTIONS, seed=0, stratum="stratum"))
    assert (np.abs(found - np.outer(FRACTIONS, found.sum(axis=0))) <= 4).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(2, 12), st.integers(0, 1000), EXACT)
def test_subjects_are_assigned_one_by_one_by_the_documented_rule(
    n: int, n_classes: int, seed: int, fractions: tuple[float, float, float]
) -> None:
    samples = make_samples(n, n // 3 + 1, n_classes, seed)
    samples = samples.vstack(samples[:1].with_columns(sample_id=pl.lit("again")))  # a subject with several samples
    split = grouped_stratified(samples, fractions=fractions, seed=seed, stratum="stratum").join(samples, on="sample_id")
    of_subject = {s: [int(x) for x in part] for s, *part in table_of(samples).iter_rows()}
    key = dict(zip(sorted(of_subject), bits(id_keys(sorted(of_subject)), seed, "split")[:, 0].tolist(), strict=True))
    row = {s: np.array([*classes, sum(classes)]) for s, classes in of_subject.items()}
    total = np.sum(list(row.values()), axis=0)
    target, filled, part = np.outer(fractions, total), np.zeros((3, len(total))), {}
    for subject in sorted(row, key=lambda s: (-row[s][-1], key[s])):
        shortfall = (target - filled) / np.maximum(total, 1)
        after = (target - filled - row[subject]) / np.maximum(total, 1)
        cost = np.round((after**2 - shortfall**2).sum(axis=1), 12)
        chosen = np.lexsort((-shortfall[:, -1], cost, shortfall[:, -1] <= 1e-12))[0]
        filled[chosen] += row[subject]
        part[subject] = PARTS[chosen]
    assert dict(split.select("subject_id", "split").iter_rows()) == part


def table_of(samples: pl.DataFrame) -> pl.DataFrame:
    """Samples of each subject (rows) per class (columns)."""
    return samples.pivot("stratum", index="subject_id", values="sample_id", aggregate_function="len").fill_null(0)


@pytest.mark.parametrize("other", ["0", "unlabelled", ""])
def test_samples_without_a_label_are_a_class_of_their_own(other: str) -> None:
    """They must not merge with a class that has the name of a placeholder: all parts have their share of both."""
    samples = pl.DataFrame({"sample_id": [f"s{i:03d}" for i in range(80)]}).with_columns(
        subject_id="sample_id", stratum=pl.Series([other] * 40 + [None] * 40, dtype=pl.String)
    )
    for seed in range(4):
        found = counts(samples, grouped_stratified(samples, fractions=FRACTIONS, seed=seed, stratum="stratum"))
        assert found[:, :2].tolist() == [[28, 28], [6, 6], [6, 6]]
    # Also if classes are numbers, and if subjects have several samples.
    numbers = samples.with_columns(
        stratum=pl.Series([0] * 40 + [None] * 40), subject_id=pl.col("sample_id").str.head(3)
    )
    found = counts(numbers, grouped_stratified(numbers, fractions=(0.5, 0.25, 0.25), seed=0, stratum="stratum"))
    assert found[:, :2].tolist() == [[20, 20], [10, 10], [10, 10]]


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


def test_a_column_with_a_subject_in_several_parts_is_refused() -> None:
    samples = make_samples(2, 2, 1, 0).with_columns(subject_id=pl.lit("a"), fold=pl.Series(["train", "test"]))
    with pytest.raises(
        DataError, match=r"^column fold of samples\.parquet, column 'subject_id': expected every subject"
    ):
        assign(Scheme(column="fold"), samples, {}, 0)


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
        (None, "ids.json: expected a JSON object of id lists; found no such file. See"),
    ],
)
def test_invalid_id_list_is_a_data_error(tmp_path, content: str | None, words: str) -> None:
    samples = make_samples(4, 4, 1, 0).with_columns(pl.Series("subject_id", ["a", "a", "b", "b"]))
    path = tmp_path / "ids.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=words):
        from_id_list(samples, path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, 0, 0, 0, 0, 0], "a class besides no"),
        ([0, 1, 0, None, 0, 1], ""),
        ([0, 1, None, None, 0, 1], "samples with a label in val"),
        ([0, 1, 0, 1, None, None], "samples with a label in test"),
        ([None, None, 0, 1, 0, 1], "training samples with a label"),
        ([0, 0, 0, 1, 0, 1], "training samples of class yes"),
    ],
)
def test_splits_on_which_nothing_can_be_learnt_or_tested_are_faults(value: list[int | None], expected: str) -> None:
    ids = [f"s{k}" for k in range(6)]
    split = pl.DataFrame({"sample_id": ids, "split": ["train"] * 2 + ["val"] * 2 + ["test"] * 2})
    label = pl.DataFrame({"sample_id": ids, "value": value}, schema_overrides={"value": pl.Int8})
    task = Task(name="death", kind="classification", classes=("no", "yes"))
    faults = list(split_faults("standard", Scheme(), split, [task], {"death": label}, {}, every_class=True))
    assert [(f.column, f.expected) for f in faults] == ([("label death", expected)] if expected else [])


@pytest.mark.parametrize(("fractions", "empty"), [((0.5, 0.25, 0.25), "val"), ((0.5, 0.0, 0.5), None)])
def test_every_part_with_a_fraction_needs_samples(fractions: tuple[float, float, float], empty: str | None) -> None:
    split = pl.DataFrame({"sample_id": ["a", "b"], "split": ["train", "test"]})
    scheme = Scheme(fractions=fractions)
    faults = [str(f) for f in split_faults("standard", scheme, split, [], {}, {}, every_class=True)]
    start = f"split standard: expected samples in {empty}; found 1 train, 0 val, 1 test. Add subjects"
    assert len(faults) == (empty is not None)
    assert all(f.startswith(start) for f in faults)
