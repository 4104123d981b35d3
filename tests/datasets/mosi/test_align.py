"""Temporal alignment against a loop over all pairs, and removal of padding against expected rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpipe.datasets.mosi.align import TOLERANCE, beginning_after, means, overlapping
from mrpipe.datasets.mosi.ragged import RaggedBlock, unpad

SEEDS = st.integers(0, 2**32 - 1)


def intervals(rng: np.random.Generator, n: int, longest: float) -> np.ndarray:
    """Unsorted, overlapping intervals, some of zero length, some with equal bounds."""
    start = np.round(rng.uniform(0, 20, n), int(rng.integers(1, 4)))
    return np.stack([start, start + np.where(rng.uniform(size=n) < 0.1, 0.0, rng.uniform(0, longest, n))], axis=1)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, n_items=st.integers(0, 40), n_targets=st.integers(0, 12))
def test_overlapping_finds_all_pairs_that_overlap(seed: int, n_items: int, n_targets: int) -> None:
    rng = np.random.default_rng(seed)
    items, targets = intervals(rng, n_items, 6.0), intervals(rng, n_targets, 8.0)
    expected = set()
    for t, (s, e) in enumerate(targets.tolist()):
        for i, (a, b) in enumerate(items.tolist()):
            point_inside = a == b and s <= a < e
            if min(b, e) - max(a, s) > TOLERANCE or point_inside:
                expected.add((t, i))
    target, item = overlapping(items, targets)
    pairs = list(zip(target.tolist(), item.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    keys = [(t, items[i, 0]) for t, i in pairs]
    assert keys == sorted(keys)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, n_items=st.integers(0, 40), n_targets=st.integers(0, 12))
def test_beginning_after_finds_all_starts_in_the_half_open_interval(seed: int, n_items: int, n_targets: int) -> None:
    rng = np.random.default_rng(seed)
    items, targets = intervals(rng, n_items, 1.0), intervals(rng, n_targets, 8.0)
    expected = {
        (t, i)
        for t, (s, e) in enumerate(targets.tolist())
        for i, (a, _) in enumerate(items.tolist())
        if s + TOLERANCE < a <= e + TOLERANCE
    }
    target, item = beginning_after(items, targets)
    assert set(zip(target.tolist(), item.tolist(), strict=True)) == expected
    assert len(target) == len(expected)


def test_each_word_belongs_to_exactly_one_of_contiguous_segments() -> None:
    bounds = np.arange(0.0, 30.0, 3.0)
    segments = np.stack([bounds[:-1], bounds[1:]], axis=1).astype(np.float32).astype(np.float64) + 7e-6
    words = np.stack([np.arange(0.0, 27.0, 0.5), np.arange(0.5, 27.5, 0.5)], axis=1)
    target, item = beginning_after(words, segments)
    assert item.tolist() == list(range(1, len(words)))
    assert np.bincount(target).tolist() == [6] * 8 + [5]


def test_segments_of_zero_length_have_no_items() -> None:
    items = np.array([[0.0, 5.0], [1.0, 1.0], [2.0, 3.0]])
    for function in (overlapping, beginning_after):
        target, _ = function(items, np.array([[1.0, 1.0], [2.5, 2.5]]))
        assert len(target) == 0


def test_times_that_differ_by_rounding_are_equal() -> None:
    segment = np.array([[51.904533, 55.94535]])
    words = np.array([[51.645, 51.904535], [51.904535, 52.1], [52.1, 55.9453515], [55.9453515, 56.1]])
    assert overlapping(words, segment)[1].tolist() == [1, 2]
    assert beginning_after(words, segment)[1].tolist() == [2, 3]


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_means_ignore_missing_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, s, d = int(rng.integers(1, 30)), int(rng.integers(1, 8)), int(rng.integers(1, 5))
    values = rng.normal(size=(n, d)).astype(np.float32)
    values[rng.uniform(size=values.shape) < 0.3] = np.nan
    pairs = sorted({(int(t), int(i)) for t, i in zip(rng.integers(0, s, 40), rng.integers(0, n, 40), strict=True)})
    target, item = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    result = means(values, target, item, s)
    for t in range(s):
        rows = values[[i for u, i in pairs if u == t]]
        for j in range(d):
            known = rows[~np.isnan(rows[:, j]), j]
            if len(known):
                assert result[t, j] == pytest.approx(known.astype(np.float64).mean(), abs=1e-5)
            else:
                assert np.isnan(result[t, j])


# --- padding ---------------------------------------------------------------------------------------------------------


def test_unpad_removes_outer_zeros_and_keeps_inner_zeros() -> None:
    x = np.zeros((5, 6, 2), dtype=np.float64)
    x[0, 3:] = [[1, 0], [0, 0], [2, 3]]  # left-padded, one step unobserved
    x[1, :2] = [[4, 5], [6, 7]]  # right-padded
    x[2] = 8  # full
    x[4, 5] = [-np.inf, 9]  # row 3 is absent
    steps = [unpad(row) for row in x]
    assert [len(s) for s, _ in steps] == [3, 2, 6, 0, 1]
    assert not any(contradicts for _, contradicts in steps)
    assert steps[0][0].tolist() == [[1, 0], [0, 0], [2, 3]]
    assert steps[1][0].tolist() == [[4, 5], [6, 7]]


def test_unpad_removes_padding_with_nan() -> None:
    x = np.full((6, 2), np.nan, dtype=np.float32)
    x[1:4] = [[1, np.nan], [np.nan, np.nan], [2, 3]]
    steps, contradicts = unpad(x)
    assert np.array_equal(steps, x[1:4], equal_nan=True)
    assert not contradicts
    assert not unpad(x[1:], 4)[1]
    assert len(unpad(x[4:])[0]) == 0


def test_unpad_uses_lengths_that_are_consistent_with_the_zeros() -> None:
    x = np.zeros((5, 6, 1), dtype=np.float32)
    x[0, :2, 0] = 1, 2  # four steps, the last two not observed
    x[1, 4:, 0] = 1, 2  # the same, left-padded
    x[2, 1:4, 0] = 1, 2, 3  # the length is too short for the nonzero steps and is ignored
    x[3, 0, 0] = 5  # length 0: absent
    steps = [unpad(row, length) for row, length in zip(x, (4, 4, 1, 0, 3), strict=True)]
    assert [s.ravel().tolist() for s, _ in steps] == [[1, 2, 0, 0], [0, 0, 1, 2], [1, 2, 3], [], []]
    assert [contradicts for _, contradicts in steps] == [False, False, True, False, False]


def block(lengths: list[int], d: int = 2) -> RaggedBlock:
    values = np.arange(sum(lengths) * d, dtype=np.float32).reshape(-1, d)
    return RaggedBlock(
        sample_id=np.array([f"s{i}" for i in range(len(lengths))]),
        values=values,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        names=tuple("xy"[:d]),
        file="f",
        columns=("c",),
    )


def test_last_steps_keeps_the_end_of_each_sequence() -> None:
    cut = block([3, 0, 5, 1]).last_steps(2)
    assert cut.lengths().tolist() == [2, 0, 2, 1]
    assert cut.values[:, 0].tolist() == [2, 4, 12, 14, 16]
    assert block([3, 0]).last_steps(0).lengths().tolist() == [3, 0]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), seed=SEEDS)
def test_take_selects_whole_sequences(lengths: list[int], seed: int) -> None:
    original = block(lengths)
    rows = np.random.default_rng(seed).permutation(len(lengths))
    taken = original.take(rows)
    for i, r in enumerate(rows.tolist()):
        assert taken.sample_id[i] == f"s{r}"
        a, b = original.offsets[r], original.offsets[r + 1]
        assert taken.values[taken.offsets[i] : taken.offsets[i + 1]].tolist() == original.values[a:b].tolist()


def test_a_sequence_without_observed_values_is_absent() -> None:
    x = block([2, 2, 0])
    x.values[:2] = np.nan
    x.values[2] = np.nan
    assert x.observed().sample_id.tolist() == ["s1"]
    assert np.array_equal(x.collapsed().values, [[np.nan] * 2, [6, 7], [np.nan] * 2], equal_nan=True)
