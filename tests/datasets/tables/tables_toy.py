"""A small declared dataset: writes its files and YAML, builds its store, returns its errors and notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest
import yaml

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError
from mrpipe.stages.build import build
from mrpipe.stages.check import check
from mrpipe.store.reader import Store

TABLES = get_dataset("tables")
N = 60
IDS = [f"p{i:02d}" for i in range(N)]


def write(folder: Path, files: dict[str, str], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "tables.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def csv(header: str, rows: list[list[object]]) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def write_workbook(path: Path, frame: pl.DataFrame) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (frame.columns, *frame.rows()):
        book.active.append(row)
    book.save(path)


def people(label: str = "out") -> str:
    return csv(f"id,{label},site", [[i, k % 2, "north" if k % 3 else "south"] for k, i in enumerate(IDS)])


def config(**changes: Any) -> dict[str, Any]:
    base = {
        "id": "id",
        "modalities": {"a": {"file": "a.csv"}},
        "label": {"file": "people.csv", "column": "out", "classes": [0, 1]},
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


def built(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> Store:
    write(folder / "raw", files, spec)
    build(TABLES, folder / "raw", folder / "store", {})
    store = mrpipe.open_store(folder / "store")
    store.verify(deep=True)
    return store


def faults_of(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> str:
    write(folder / "raw", files, spec)
    with pytest.raises(DataError) as caught:
        check(TABLES, folder / "raw", {})
    return str(caught.value)


def notes_of(folder: Path, files: dict[str, str], spec: dict[str, Any]) -> str:
    write(folder / "raw", files, spec)
    return "\n".join(check(TABLES, folder / "raw", {})["notes"])


def values(store: Store, modality: str) -> dict[str, list[float]]:
    arrays = store.arrays(modality)
    return dict(zip(arrays.sample_id.tolist(), arrays.x.tolist(), strict=True))
