"""Keyed draws: determined by (seed, id, purpose), with the stated distributions."""

from __future__ import annotations

import hashlib
import math

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


def test_one_draw_per_id_is_the_default() -> None:
    keys = keyed.id_keys(IDS[:3])
    for draw in (keyed.bits, keyed.uniform, keyed.normal):
        np.testing.assert_array_equal(draw(keys, 7, "drop text"), draw(keys, 7, "drop text", 1))
        assert draw(keys, 7, "drop text").shape == (3, 1)


def test_values_match_the_reference_implementation() -> None:
    """A changed generator would silently change every published mask."""
    # First outputs of splitmix64.c (Vigna) from state 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state = np.array([0], dtype=np.uint64)
    got = [int(keyed._mix(state + np.arange(i, i + 1, dtype=np.uint64) * keyed._GOLDEN)[0]) for i in range(3)]
    assert got == expected


M64 = 2**64 - 1
PINNED_BITS = [0x19392F71C463CDF7, 0x9FD7901DC560A9EC]
PINNED_UNIFORM = [0.3365473898257505, 0.7550779497664014]
PINNED_NORMAL = [-0.11185693855422124, 0.39777382120607446]
PINNED_GENERATOR = 0.19957433758122445


def reference_bits(name: str, seed: int, purpose: str, draw: int) -> int:
    """The documented algorithm in plain Python: SplitMix64 of BLAKE2b hashes of the id and of seed and purpose."""

    def hashed(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def splitmix(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) & M64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        return z ^ (z >> 31)

    start = splitmix(hashed(name) ^ hashed(f"{seed}\x1f{purpose}"))
    return splitmix((start + draw * 0x9E3779B97F4A7C15) & M64)


def test_draws_equal_a_plain_implementation_and_their_pinned_values() -> None:
    """A changed draw would silently change every published mask, split and corruption."""
    names, seed, purpose, n_draws = ["s0001", "Zoë", ""], 17, "drop text 0", 4
    keys = keyed.id_keys(names)
    expected = [[reference_bits(name, seed, purpose, j) for j in range(n_draws)] for name in names]
    assert keyed.bits(keys, seed, purpose, n_draws).tolist() == expected
    uniform = [[(b >> 11) / 2**53 for b in row] for row in expected]
    assert keyed.uniform(keys, seed, purpose, n_draws).tolist() == uniform
    # Box-Muller: the first half of the draws gives the radii, the second half the angles.
    normal = [
        [math.sqrt(-2 * math.log1p(-r)) * math.cos(2 * math.pi * a) for r, a in zip(u[:2], u[2:], strict=True)]
        for u in uniform
    ]
    np.testing.assert_allclose(keyed.normal(keys, seed, purpose, 2), normal, rtol=1e-14)
    assert expected[0][:2] == PINNED_BITS
    assert uniform[1][:2] == PINNED_UNIFORM
    np.testing.assert_allclose(normal[0], PINNED_NORMAL, rtol=1e-14)
    assert keyed.generator(17, "drop", "a", "b").random() == PINNED_GENERATOR


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
