"""Keyed draws: determined by (seed, id, purpose), with the stated distributions."""

from __future__ import annotations

import numpy as np
from scipy import stats

from mrpipe import keyed

IDS = [f"subject-{i}" for i in range(4000)]


def test_draw_is_independent_of_order_and_other_ids() -> None:
    keys = keyed.id_keys(IDS)
    whole = keyed.uniform(keys, 7, "drop text", 3)
    order = np.argsort(whole[:, 0])
    np.testing.assert_array_equal(keyed.uniform(keys[order], 7, "drop text", 3), whole[order])
    np.testing.assert_array_equal(keyed.uniform(keys[5:6], 7, "drop text", 3), whole[5:6])


def test_values_match_the_reference_implementation() -> None:
    """A changed generator would silently change every published mask."""
    # First outputs of splitmix64.c (Vigna) from state 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state = np.array([0], dtype=np.uint64)
    got = [int(keyed._mix(state + np.arange(i, i + 1, dtype=np.uint64) * keyed._GOLDEN)[0]) for i in range(3)]
    assert got == expected


def test_draws_are_uniform_and_independent_between_seeds_and_purposes() -> None:
    keys = keyed.id_keys(IDS)
    draws = np.column_stack(
        [keyed.uniform(keys, 0, "a")[:, 0], keyed.uniform(keys, 1, "a")[:, 0], keyed.uniform(keys, 0, "b")[:, 0]]
    )
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in draws.T)
    correlation = np.corrcoef(draws.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 0.06


def test_normal_draws_are_standard_normal() -> None:
    z = keyed.normal(keyed.id_keys(IDS), 3, "noise", 4)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3


def test_generators_with_different_keys_differ() -> None:
    first = keyed.generator(0, "x", "a").random(4)
    assert not np.array_equal(first, keyed.generator(0, "x", "b").random(4))
    np.testing.assert_array_equal(first, keyed.generator(0, "x", "a").random(4))
