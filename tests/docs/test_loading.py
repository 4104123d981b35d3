"""docs/loading.md: its code runs on a simulated store of CMU-MOSI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mrpipe.datasets import get_dataset
from mrpipe.stages.simulate import simulate
from tests.docs.pages import PROJECT, mrpipe, titled_blocks

pytestmark = pytest.mark.whole
BLOCKS = titled_blocks("loading.md")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    simulate(get_dataset("mosi"), folder / "raw", get_dataset("mosi").tiny)
    mrpipe("mrpipe build mosi --raw raw --out stores/mosi", folder)
    mrpipe("mrpipe mask stores/mosi --p 0.3 --out masks/p30.parquet", folder)
    return folder


@pytest.mark.parametrize("title", list(BLOCKS))
def test_code_of_the_page_runs(home: Path, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{PROJECT / 'model'}")
    done = subprocess.run([sys.executable, "-c", BLOCKS[title]], cwd=home, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert ("AUROC" in done.stdout) == ("roc_auc_score" in BLOCKS[title])
