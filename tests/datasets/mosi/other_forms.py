"""Helpers for exports in other forms than the SDK's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrpipe.datasets import get_dataset
from mrpipe.datasets.mosi.export import open_export
from mrpipe.errors import DataError

TINY = {"n_videos": 4, "clips_per_video": 5.0, "frames_per_second": 3.0, "infinite_audio": 0.0}


def export_of(raw: Path, name: str = "mosi", **settings: Any) -> Any:
    return open_export(raw, get_dataset(name).options(**settings))


def faults_of(raw: Path, name: str = "mosi", **settings: Any) -> list[Any]:
    dataset = get_dataset(name)
    with pytest.raises(DataError) as caught:
        dataset.check(raw, dataset.options(**settings))
    return list(caught.value.faults)


def files_of(raw: Path, pattern: str) -> list[Path]:
    return sorted(raw.rglob(pattern))
