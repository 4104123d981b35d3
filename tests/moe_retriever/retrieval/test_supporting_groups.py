"""Supporting groups (Eq. 2), their fallbacks and random draws compared with a brute-force implementation."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moe_retriever.retrieval.supporting_groups import Draws, SupportIndex
from mrpipe import keyed
from tests.moe_retriever.synthetic import random_masks

Masks = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> tuple[Masks, Masks]:
    """Reference masks (R, M) and batch masks (B, M) with at least one modality per sample."""
    m = draw(st.integers(1, 5))
    code = st.integers(1, 2**m - 1)
    reference = draw(st.lists(code, min_size=1, max_size=25))
    batch = draw(st.lists(code, min_size=1, max_size=6))
    unpack = lambda codes: (np.array(codes)[:, None] >> np.arange(m)) & 1 == 1  # noqa: E731
    return unpack(reference), unpack(batch)


def brute_group(reference: Masks, mc: NDArray[np.bool_], target: int) -> list[int]:
    """Eq. 2 literally: { j : mc_j ⊇ mc and T ∈ mc_j }."""
    have = [set(np.flatnonzero(row)) for row in reference]
    return [j for j, mc_j in enumerate(have) if mc_j >= set(np.flatnonzero(mc)) and target in mc_j]


def brute_nearest(reference: Masks, mc: NDArray[np.bool_], target: int) -> list[int]:
    """Fallback: training samples with T and the largest overlap with mc, then with the fewest other modalities."""
    own = set(np.flatnonzero(mc))
    best: tuple[int, int] | None = None
    rows: list[int] = []
    for j, row in enumerate(reference):
        mc_j = set(np.flatnonzero(row)) - {target}
        if not row[target]:
            continue
        score = (len(mc_j & own), -len(mc_j - own))
        if best is None or score > best:
            best, rows = score, []
        if score == best:
            rows.append(j)
    return rows


def draw(reference: Masks, batch: Masks, wanted: object = "observed", **kw: object) -> Draws:
    names = tuple(f"m{i}" for i in range(batch.shape[1]))
    keys = keyed.id_keys([f"b{i}" for i in range(len(batch))])
    return SupportIndex(reference).draw(batch, keys, names, wanted=wanted, seed=0, stream="s", **kw)  # type: ignore[arg-type]


@given(masks())
@settings(max_examples=200, deadline=None)
def test_draws_are_from_the_group_of_equation_2_or_its_fallback(case: tuple[Masks, Masks]) -> None:
    reference, batch = case
    draws = draw(reference, batch)
    slots = [(i, t) for i in range(len(batch)) for t in range(batch.shape[1]) if not batch[i, t]]
    assert list(zip(draws.sample.tolist(), draws.target.tolist(), strict=True)) == slots
    for q, (i, t) in enumerate(slots):
        rows = draws.row[draws.start[q] : draws.start[q + 1]].tolist()
        group = brute_group(reference, batch[i], t)
        allowed = group or brute_nearest(reference, batch[i], t)
        assert draws.relaxed[q] == (not group)
        assert set(rows) <= set(allowed)
        assert len(rows) == len(set(rows)) == min(int(batch[i].sum()), len(allowed))
        assert draws.group_size[q] == len(allowed)


@given(masks(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_fixed_number_of_samples_and_complete_groups(case: tuple[Masks, Masks], n: int) -> None:
    reference, batch = case
    fixed, whole = draw(reference, batch, n), draw(reference, batch, "all")
    assert (fixed.drawn == np.minimum(n, fixed.group_size)).all()
    assert (whole.drawn == whole.group_size).all()


@given(masks())
@settings(max_examples=100, deadline=None)
def test_a_sample_never_supports_itself(case: tuple[Masks, Masks]) -> None:
    """Training samples with modalities hidden in the current step are members of their own group."""
    reference, _ = case
    rng = np.random.default_rng(len(reference))
    batch = reference & (rng.random(reference.shape) < 0.6)
    batch[np.arange(len(batch)), reference.argmax(axis=1)] = True
    own = np.arange(len(reference))
    draws = draw(reference, batch, "all", own_row=own)
    for q in range(len(draws.target)):
        i, t = int(draws.sample[q]), int(draws.target[q])
        rows = draws.row[draws.start[q] : draws.start[q + 1]].tolist()
        others = [j for j in brute_group(reference, batch[i], t) if j != i]
        without_self = reference.copy()
        without_self[i] = False
        assert sorted(rows) == (others or brute_nearest(without_self, batch[i], t))


def test_the_missing_modalities_of_a_sample_have_independent_draws() -> None:
    draws = draw(np.ones((50, 3), dtype=bool), np.array([[True, False, False]] * 20))
    one, two = (draws.row[draws.target == t] for t in (1, 2))
    assert len(one) == len(two) == 20
    assert (one == two).mean() < 0.3


def test_no_samples_are_drawn_for_a_modality_without_training_samples() -> None:
    reference = np.array([[True, False], [True, False]])
    draws = draw(reference, np.array([[True, False]]))
    assert draws.drawn.tolist() == [0]
    assert draws.rates() == {"small_group": 0.0, "empty_group": 0.0, "target_never_seen": 1.0}


def test_rates_count_each_fallback_once() -> None:
    reference = np.array([[True, True, True], [False, False, True]])
    batch = np.array([[True, True, False], [True, False, False]])
    draws = draw(reference, batch)
    # (0, T=2): one of two requested samples. (1, T=1) and (1, T=2): the requested number.
    assert draws.rates() == {"small_group": pytest.approx(1 / 3), "empty_group": 0.0, "target_never_seen": 0.0}


def test_draws_depend_on_the_sample_only() -> None:
    """The drawn rows of a sample are the same in any batch and order."""
    reference, batch = random_masks(80, 4, 0), random_masks(12, 4, 1)
    names = ("a", "b", "c", "d")
    keys = keyed.id_keys([f"x{i}" for i in range(len(batch))])
    index = SupportIndex(reference)

    def rows(order: NDArray[np.int64]) -> dict[tuple[int, int], list[int]]:
        d = index.draw(batch[order], keys[order], names, wanted="observed", seed=3, stream="e")
        slots = zip(order[d.sample].tolist(), d.target.tolist(), strict=True)
        return {s: sorted(d.row[d.start[q] : d.start[q + 1]].tolist()) for q, s in enumerate(slots)}

    together = rows(np.arange(12))
    assert rows(np.arange(12)[::-1].copy()) == together
    alone = {k: v for i in range(12) for k, v in rows(np.array([i])).items()}
    assert alone == together


def test_streams_and_seeds_change_the_draws() -> None:
    reference, batch = random_masks(200, 3, 0, p=0.2), random_masks(40, 3, 1, p=0.6)
    keys = keyed.id_keys([f"x{i}" for i in range(40)])
    index = SupportIndex(reference)
    draws = [
        index.draw(batch, keys, ("a", "b", "c"), wanted="observed", seed=seed, stream=stream).row.tolist()
        for seed, stream in ((0, "epoch 1"), (0, "epoch 2"), (1, "epoch 1"))
    ]
    assert draws[0] != draws[1]
    assert draws[0] != draws[2]


def test_all_subsets_have_equal_probability() -> None:
    """Floyd's algorithm: 6,000 samples draw 2 of 5, so each of the 10 pairs is expected 600 times."""
    reference = np.ones((5, 3), dtype=bool)
    batch = np.tile([True, True, False], (6000, 1))
    draws = draw(reference, batch)
    pairs = Counter(tuple(sorted(p)) for p in draws.row.reshape(-1, 2).tolist())
    assert set(pairs) == set(combinations(range(5), 2))
    chi2 = sum((n - 600) ** 2 / 600 for n in pairs.values())
    assert chi2 < 27.9  # 0.1% critical value of the chi-square distribution with 9 degrees of freedom
