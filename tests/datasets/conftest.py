"""Fixtures of several test files: simulated ADNI exports in each layout, a small chain file, the MIMIC-IV demo."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.stages.simulate import simulate
from tests.datasets.adni.adni_toy import LAYOUTS
from tests.datasets.adni.plink_toy import TOY_CHAIN


@pytest.fixture(scope="session")
def adni_exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Simulated exports without images by layout, all with the same participants."""
    folder = tmp_path_factory.mktemp("adni")
    for layout in LAYOUTS:
        settings = {"n_subjects": 120, "n_snps": 96, "images": False, "layout": layout, "seed": 3}
        simulate(DATASET, folder / layout, settings)
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.fixture
def adni_export(adni_exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the export in the newest layout that tests may modify."""
    return Path(shutil.copytree(adni_exports["2025"], tmp_path / "raw"))


@pytest.fixture
def toy_chain(tmp_path: Path) -> Path:
    """A chain file with three chains, one of them on the reverse strand."""
    path = tmp_path / "toy.chain.gz"
    path.write_bytes(gzip.compress(TOY_CHAIN.encode()))
    return path


@pytest.fixture(scope="session")
def demo(real_data_dir: Path) -> Path:
    """The MIMIC-IV demo; skips the test if it does not exist."""
    folder = real_data_dir / "mimic-iv-demo"
    if not folder.is_dir():
        pytest.skip(f"no MIMIC-IV demo at {folder}")
    return folder
