"""What pictures and tables of finished runs are drawn from: plain frames, read from run folders alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mrpipe.errors import DataError, Fault

_KEYS = ("method", "preset", "seed", "dataset", "origin", "store_id", "task", "scheme", "part")


def _content(run: Path) -> dict[str, object]:
    path = run / "metrics.json"
    if not path.is_file():
        raise DataError(Fault(file=str(path), expected="a finished run", found="no metrics.json",
                              fix="Run the same `train` command again: it continues where it stopped."))  # fmt: skip
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def metrics_frame(runs: Sequence[Path]) -> pl.DataFrame:
    """One row a (run, group, metric): the run's `metrics.csv` with what the run is."""
    frames = []
    for run in runs:
        content = _content(run)
        names = content["modalities"]
        known = [pl.lit(content[k]).alias(k) for k in _KEYS]
        known += [pl.lit("+".join(names)).alias("modalities"), pl.lit(str(run)).alias("run")]  # type: ignore[arg-type]
        table = pl.read_csv(run / "metrics.csv", schema_overrides={"group": pl.String}, infer_schema_length=None)
        frames.append(table.with_columns(known).with_columns(pl.col("value", "low", "high").cast(pl.Float64)))
    return pl.concat(frames)


def history_frame(runs: Sequence[Path]) -> pl.DataFrame:
    """Learning curves in long form: `run, epoch, series, value, best`; methods without epochs have no rows."""
    schema = {"run": pl.String, "epoch": pl.Int32, "series": pl.String, "value": pl.Float64, "best": pl.Boolean}
    frames = [pl.DataFrame(schema=schema)]
    for run in runs:
        path = run / "history.parquet"
        if path.is_file():
            wide = pl.read_parquet(path)
            series = [c for c in wide.columns if c.startswith(("train_", "val_"))]
            long = wide.unpivot(series, index=["epoch", "best"], variable_name="series")
            frames.append(long.select(pl.lit(str(run)).alias("run"), "epoch", "series", "value", "best"))
    return pl.concat(frames)


def routing_frame(run: Path) -> pl.DataFrame | None:
    """`routing.parquet` with `ratio`: the expert's share of the routed weight of its (target, combination); sums to 1.

    Source: Figure 3 b of the paper (expert selection by input combination). None for a method without routing.
    """
    path = run / "routing.parquet"
    if not path.is_file():
        return None
    total = pl.col("weight").sum().over("target", "combination")
    return pl.read_parquet(path).with_columns((pl.col("weight") / total).alias("ratio"))


def routing_by_expert(run: Path) -> pl.DataFrame | None:
    """The inverse (Figure 3 c): of each expert's routed weight, the share that each (target, combination) brings.

    Slots count as often as they occur. Columns: `expert, pool, target, combination, ratio`; sums to 1
    for each used expert.
    """
    routing = routing_frame(run)
    if routing is None:
        return None
    mass = pl.col("weight") * pl.col("n_slots")
    return (
        routing.with_columns((mass / mass.sum().over("expert")).alias("ratio"))
        .filter(pl.col("ratio").is_not_nan())
        .select("expert", "pool", "target", "combination", "ratio")
    )
