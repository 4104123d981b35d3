"""A small MEDS dataset: writes its shards and YAML, builds its store, returns its errors and notes."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.store.reader import Store

MEDS = get_dataset("meds")
N = 40
START = datetime(2150, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def at(subject: int, hours: float) -> datetime:
    """A time of a subject, whose stay begins at hour 0 and ends at hour 48."""
    return START + timedelta(days=10 * subject, hours=hours)


def events() -> pl.DataFrame:
    """One stay of each subject; every third one dies in the month after it. Subject 1 has no measurement."""
    rows: list[tuple[int, datetime | None, str, float | None]] = []
    for i in range(1, N + 1):
        rows += [(i, None, f"GENDER//{'FM'[i % 2]}", None), (i, at(i, -500_000), "MEDS_BIRTH", None)]
        rows += [(i, at(i, 0), "ADMISSION//ED", None), (i, at(i, 48), "DISCHARGE//HOME", None)]
        if i > 1:
            rows += [(i, at(i, h), "LAB//1//mg", i + h) for h in (1, 5, 5, 30)]
            rows += [(i, at(i, 5), "LAB//2//mg", None), (i, at(i, 49), "LAB//1//mg", 999.0)]
        rows += [(i, at(i, h), f"DX//{c}", None) for h, c in ((2, "a"), (2, "b"), (40, "a"))]
        if i % 3 == 0:
            rows.append((i, at(i, 48 + 24 * 20), "MEDS_DEATH", None))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "samples": {"event": "DISCHARGE//", "at": "0h", "which": "last"},
        "modalities": {"lab": {"codes": "LAB//"}},
        "labels": {"death": {"event": "MEDS_DEATH", "within": "30d"}},
    }
    return base | changes


def write(folder: Path, spec: dict[str, Any], frame: pl.DataFrame | None = None, n_shards: int = 2) -> Path:
    """Write the dataset below `folder/raw`, with shards of every `n_shards`-th subject."""
    raw, frame = folder / "raw", events() if frame is None else frame
    (raw / "data").mkdir(parents=True, exist_ok=True)
    for k in range(n_shards):
        frame.filter(pl.col("subject_id") % n_shards == k).write_parquet(raw / "data" / f"{k}.parquet")
    (raw / "meds.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return raw


def built(folder: Path, spec: dict[str, Any], frame: pl.DataFrame | None = None, n_shards: int = 2) -> Store:
    raw = write(folder, spec, frame, n_shards)
    build(MEDS, raw, folder / "store", {})
    store = mrpipe.open_store(folder / "store")
    store.verify(deep=True)
    return store


def faults_of(raw: Path) -> str:
    with pytest.raises(DataError) as caught:
        check(MEDS, raw, {})
    return str(caught.value)


def notes_of(raw: Path) -> str:
    return "\n".join(check(MEDS, raw, {})["notes"])
