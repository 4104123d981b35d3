"""Helpers to edit tables of a simulated ADNI export and to collect the resulting errors."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets.adni import DATASET
from mrpipe.errors import DataError
from mrpipe.stages.check import check

LAYOUTS = ("old", "2024", "2025")


def table_path(raw: Path, name: str) -> Path:
    return next(p for p in sorted(raw.glob("*.csv")) if name in p.name)


def edit(path: Path, **columns: pl.Expr) -> None:
    frame = pl.read_csv(path, infer_schema=False)
    frame.with_columns(e.alias(c) for c, e in columns.items()).write_csv(path, quote_style="always")


def write(raw: Path, name: str, text: str) -> None:
    raw.mkdir(exist_ok=True)
    (raw / name).write_text(text)


def faults_of(raw: Path, **settings: object) -> str:
    with pytest.raises(DataError) as error:
        check(DATASET, raw, settings)
    return str(error.value)


def one(expression: pl.Expr, *cells: str | None, phase: str = "ADNI2") -> list[object]:
    frame = pl.DataFrame({"x": list(cells), "phase": [phase] * len(cells)}, schema_overrides={"x": pl.String})
    return frame.select(expression.alias("v"))["v"].to_list()
