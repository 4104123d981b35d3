"""Bitmasks: pack and unpack are inverse, queries agree with set operations."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrpipe.errors import UsageError
from mrpipe.store import masks

matrices = st.integers(1, masks.MAX_MODALITIES).flatmap(
    lambda m: hnp.arrays(np.bool_, st.tuples(st.integers(0, 40), st.just(m)))
)


@given(matrices)
def test_unpack_inverts_pack_for_up_to_16_modalities(observed: np.ndarray) -> None:
    packed = masks.pack(observed)
    assert packed.dtype == np.uint16
    np.testing.assert_array_equal(masks.unpack(packed, observed.shape[1]), observed)


@given(matrices, st.randoms(use_true_random=False))
def test_any_assignment_of_bits_round_trips(observed: np.ndarray, random) -> None:
    bits = random.sample(range(masks.MAX_MODALITIES), observed.shape[1])
    packed = masks.pack(observed, bits)
    np.testing.assert_array_equal(masks.unpack(packed, bits), observed)
    expected = [sum(1 << b for b, o in zip(bits, row, strict=True) if o) for row in observed]
    assert packed.tolist() == expected


def test_codes_and_names_of_combinations() -> None:
    observed = np.array([[True, False, True], [False, False, False]])
    codes = masks.codes(observed)
    assert codes.dtype == np.int64
    assert codes.tolist() == [5, 0]
    assert (masks.unpack(codes, 3) == observed).all()
    assert masks.name_parts(masks.combination_name(["a", "b"])) == ["a", "b"]


def test_more_than_16_modalities_are_refused() -> None:
    with pytest.raises(ValueError, match="bits"):
        masks.pack(np.ones((2, 17), dtype=bool))


@given(st.lists(st.integers(0, 2**16 - 1), max_size=50), st.integers(1, 2**16 - 1))
def test_superset_query_is_set_inclusion(values: list[int], required: int) -> None:
    as_sets = [{b for b in range(16) if v >> b & 1} for v in values]
    required_set = {b for b in range(16) if required >> b & 1}
    frame = pl.DataFrame({"modality_mask": values}, schema={"modality_mask": pl.UInt16})
    has_all = masks.expression(" & ".join(f"m{b}" for b in required_set), {f"m{b}": b for b in range(16)})
    assert frame.select(has_all).to_series().to_list() == [required_set <= s for s in as_sets]


def test_pattern_counts_are_sorted_by_frequency() -> None:
    counts = masks.pattern_counts([3, 1, 3, 2, 3, 1])
    assert list(counts.items()) == [(3, 3), (1, 2), (2, 1)]


BITS = {"image": 0, "genomic": 1, "clinical": 5}


def test_names_and_masks_are_inverse() -> None:
    assert masks.to_mask(["clinical", "image"], BITS) == 0b100001
    assert masks.to_names(0b100001, BITS) == ("image", "clinical")
    with pytest.raises(UsageError, match="biospecimen"):
        masks.to_mask(["biospecimen"], BITS)


@pytest.mark.parametrize(
    ("query", "reference"),
    [
        ("image", lambda i, g, c: i),
        ("image & genomic & ~clinical", lambda i, g, c: i and g and not c),
        ("image | (genomic & clinical)", lambda i, g, c: i or (g and c)),
        ("not image and clinical", lambda i, g, c: not i and c),
    ],
)
def test_queries_by_name_agree_with_boolean_logic(query: str, reference) -> None:
    values = list(range(64))
    frame = pl.DataFrame({"modality_mask": values}, schema={"modality_mask": pl.UInt16})
    expected = [v for v in values if reference(bool(v & 1), bool(v >> 1 & 1), bool(v >> 5 & 1))]
    assert frame.filter(masks.expression(query, BITS))["modality_mask"].to_list() == expected


@pytest.mark.parametrize("query", ["image &", "image + genomic", "__import__('os')", "image.real", "age"])
def test_invalid_queries_are_refused(query: str) -> None:
    with pytest.raises(UsageError):
        masks.expression(query, BITS)
