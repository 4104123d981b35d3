"""Shared fixtures: the real exports, and skipping of tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
# The longest files in this order, of `make test-whole` and of `make test`: workers begin with them, to end together.
LONG = ("test_tutorials.py", "test_elsewhere.py", "test_resume.py", "test_suite_runs.py", "test_readme.py")
LONG += ("test_end_to_end.py", "test_contract.py", "test_documented_commands.py", "test_training.py", "test_fuzz.py")


def real_data_folder() -> Path:
    """Folder of the openly licensed exports: `MRPIPE_REAL_DATA`, or next to the checkout."""
    return Path(os.environ.get("MRPIPE_REAL_DATA", PROJECT.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def _text_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the vectors of tests out of the user's cache, in processes started by tests too."""
    os.environ["MRPIPE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Folder of the openly licensed exports; skips the test if it does not exist."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MRPIPE_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the checkout."""
    return PROJECT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `real_data` without real data; run the long files first, so that workers finish together."""
    folder = real_data_folder()
    if not folder.is_dir():
        absent = pytest.mark.skip(reason=f"no real data at {folder}; set MRPIPE_REAL_DATA")
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(absent)
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))
