"""A store of the current format remains readable, and older ones are named; `tests/data/stores` must not be changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mrpipe
from mrpipe.errors import DataError
from mrpipe.experiment.missingness import Missingness, draw_masks
from mrpipe.transforms.fit import fit

ARCHIVE = Path(__file__).parents[1] / "data" / "stores"
STORES = [ARCHIVE / "format-2"]


@pytest.mark.parametrize("path", STORES, ids=lambda p: p.name)
def test_archived_store_opens_and_verifies(path: Path) -> None:
    store = mrpipe.open_store(path)
    store.verify(deep=True)
    assert {m.kind for m in store.modalities} == {"vector", "sequence", "image", "genotype"}
    transforms = fit(store)
    for modality in store.modalities:
        assert np.isfinite(transforms.apply(modality.name, store.arrays(modality.name)).x).all()


def test_stores_of_format_1_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="found format 1, written by an older version"):
        mrpipe.open_store(ARCHIVE / "format-1")


def test_values_of_format_2_are_unchanged() -> None:
    store = mrpipe.open_store(STORES[0])
    assert store.store_id == "c90147a4d1b65b05"
    first = [5.5882649421691895, 1.6925275325775146, np.nan, 3.0, 1.0, 1.0, 0.0]
    np.testing.assert_array_equal(store.arrays("table").x[0], np.array(first, dtype=np.float32))


def test_published_masks_never_change() -> None:
    """Masks of (mechanism, p, seed) are shared between methods, machines and versions."""
    masks = draw_masks(mrpipe.open_store(STORES[0]), Missingness(p=0.5, seed=1))["modality_mask"].to_list()
    assert masks == [34, 34, 4, 2, 6, 4, 2, 1, 32, 32, 37, 32, 6, 32, 2, 3, 1, 4, 34, 32, 5, 3, 4, 1, 4, 32, 1]
