"""Random subsets of observed modalities: at least one is kept, distribution, and keyed draws."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

from moe_retriever.data.subsets import Law, random_subsets, with_hidden
from mrpipe import keyed
from tests.moe_retriever import synthetic

LAWS: tuple[Law, ...] = ("subset", "size")


def drawn(observed: NDArray[np.bool_], law: Law, stream: str = "epoch 0", seed: int = 0) -> NDArray[np.bool_]:
    return random_subsets(observed, keyed.id_keys(f"s{i}" for i in range(len(observed))), seed, stream, law)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n_modalities", [1, 2, 5, 16])
def test_only_observed_modalities_are_hidden_and_one_is_kept(law: Law, n_modalities: int) -> None:
    observed = synthetic.random_masks(400, n_modalities, 1)
    kept = drawn(observed, law)
    assert not (kept & ~observed).any()
    assert kept.any(axis=1).all()
    assert n_modalities == 1 or (kept != observed).any()


@pytest.mark.parametrize("law", LAWS)
def test_subsets_have_the_documented_probabilities(law: Law) -> None:
    """For three observed modalities of four: 1/7 per subset, or 1/3 per size."""
    n = 21_000
    observed = np.tile([True, False, True, True], (n, 1))
    codes = drawn(observed, law) @ (1 << np.arange(4))
    sets = [sum(1 << m for m in c) for k in (1, 2, 3) for c in combinations((0, 2, 3), k)]
    assert set(codes.tolist()) == set(sets)
    for code in sets:
        p = 1 / 7 if law == "subset" else 1 / 3 / comb(3, code.bit_count())
        assert (codes == code).mean() == pytest.approx(p, abs=4 * np.sqrt(p / n))


@pytest.mark.parametrize("law", LAWS)
def test_draws_depend_on_sample_seed_and_stream_but_not_on_the_batch(law: Law) -> None:
    observed = synthetic.random_masks(50, 4, 2)
    keys = keyed.id_keys(f"s{i}" for i in range(50))
    whole = random_subsets(observed, keys, 0, "epoch 0", law)
    some = np.arange(50)[::-3]
    assert (random_subsets(observed[some], keys[some], 0, "epoch 0", law) == whole[some]).all()
    assert (drawn(observed, law, stream="epoch 1") != whole).any()
    assert (drawn(observed, law, seed=1) != whole).any()


def test_hidden_modalities_are_distinguished_from_missing_ones() -> None:
    observed = synthetic.random_masks(20, 3, 3)
    batch = synthetic.make(observed).batch(np.arange(20), "x", hide=0.3)
    kept = drawn(batch.observed, "subset")
    out = with_hidden(batch, kept)
    assert (out.observed == kept).all()
    assert (out.hidden == (observed & ~kept)).all()
