"""Checks of toy exports, and tables of the provider rewritten as Parquet."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from mrpipe.datasets.mimic.check import check_export
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.errors import DataError
from mrpipe.options import parse_options


def check(raw: Path, **values):
    return check_export(raw, parse_options(MimicOptions, values, context="test"))


def faults(raw: Path, **values) -> str:
    with pytest.raises(DataError) as error:
        check(raw, **values)
    return "\n".join(map(str, error.value.faults))


def typed(path: Path) -> pl.DataFrame:
    """A table of the provider with the types that programs find: numbers and times."""
    frame = pl.read_csv(path, infer_schema=False)
    for name in frame.columns:
        if name.endswith("time"):
            frame = frame.with_columns(pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S"))
        elif name == "dod":
            frame = frame.with_columns(pl.col(name).str.to_date())
        elif name == "valuenum":
            frame = frame.with_columns(pl.col(name).cast(pl.Float64))
        elif name in (
            "subject_id",
            "hadm_id",
            "stay_id",
            "itemid",
            "seq_num",
            "icd_version",
            "anchor_age",
            "anchor_year",
        ):
            frame = frame.with_columns(pl.col(name).cast(pl.Int64))
    return frame


def to_parquet(raw: Path, name: str) -> Path:
    """Replace a CSV table by Parquet."""
    path = next(p for p in (raw / f"{name}.csv", raw / f"{name}.csv.gz") if p.exists())
    typed(path).write_parquet(raw / f"{name}.parquet")
    path.unlink()
    return raw / f"{name}.parquet"
