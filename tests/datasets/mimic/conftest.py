"""A simulated export of MIMIC-IV that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrpipe.datasets import get_dataset
from mrpipe.stages.simulate import simulate


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of 300 patients with measurements; tests do not modify it."""
    raw = tmp_path_factory.mktemp("mimic") / "raw"
    simulate(get_dataset("mimic"), raw, {"n_patients": 300, "n_chart_rows": 20_000, "n_lab_rows": 15_000})
    return raw
