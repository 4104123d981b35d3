"""Fixtures: tiny sealed stores with every kind of modality, and a mask file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrpipe import Store, open_store
from mrpipe.codehash import code_hash
from mrpipe.experiment.missingness import Missingness, write_masks
from mrpipe.stages import seal as seal_module
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from tests import toy


@pytest.fixture(scope="session")
def toy_stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the stores `plain` and `shifted`, which differ in the validation and test samples only."""
    root = tmp_path_factory.mktemp("toy stores")
    with pytest.MonkeyPatch.context() as patch:
        # The toy dataset is not a module of the project, so its code hash is that of the stages.
        patch.setattr(seal_module, "dataset_module", lambda name: "tests.toy")
        patch.setattr(seal_module, "code_hash", lambda *entries: code_hash(entries[0]))
        simulate(toy.TOY, root / "raw", {"n": 90})
        build(toy.TOY, root / "raw", root / "plain", {})
        build(toy.TOY, root / "raw", root / "shifted", {"shift_test": 3.0})
    return root


@pytest.fixture(scope="session")
def store(toy_stores: Path) -> Store:
    return open_store(toy_stores / "plain")


@pytest.fixture(scope="session")
def mask_file(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "p30.parquet"
    write_masks(store, Missingness(p=0.3), path)
    return path
