"""Choice of the epoch: validation score, patience, and the history of a training."""

import math

import polars as pl
import polars.selectors as cs

from moe_retriever.data.scores import lower_is_better
from moe_retriever.training.checkpoint import EpochRow
from mrpipe.errors import MrpipeError


class DivergedError(MrpipeError):
    """The loss is no longer finite."""


def require_finite(row: EpochRow) -> None:
    """Raise a DivergedError if a loss is not finite; other scores are undefined if a split has a single class."""
    losses = [name for name in row if name.startswith("train_") or name == "val_loss"]
    if bad := [name for name in losses if not math.isfinite(row[name])]:
        found = f"training diverged in epoch {row['epoch']}: {bad[0]} is {row[bad[0]]}"
        raise DivergedError(f"{found}; try a lower lr or clip=1.0")


def patience_over(history: list[EpochRow], best_epoch: int, patience: int, metric: str) -> bool:
    """Whether training stops; a score of classes does not count while all samples are assigned to one class."""
    since = history[best_epoch:] if best_epoch > 0 else []
    if metric in ("accuracy", "balanced_accuracy", "macro_f1"):
        since = [row for row in since if row.get("val_n_predicted", 2) > 1]
    return 0 < patience <= len(since)


def epoch_score(row: EpochRow, metric: str) -> tuple[float, float]:
    """Score to maximise: plus or minus the metric (-inf if undefined), then minus the validation loss."""
    if "val_loss" not in row:
        return float(row["epoch"]), 0.0
    value = row[f"val_{metric}"] * (-1 if lower_is_better(metric) else 1)
    return -math.inf if math.isnan(value) else value, -row["val_loss"]


def history_frame(history: list[EpochRow], best_epoch: int, metric: str) -> pl.DataFrame:
    """One row per epoch: `epoch, train_loss, train_<term>…, val_<metric>…, val_score, selectable, best`."""
    frame = pl.DataFrame(history, infer_schema_length=None).with_columns(pl.col("epoch").cast(pl.Int32))
    score = pl.col(f"val_{metric}") if f"val_{metric}" in frame.columns else pl.lit(None, dtype=pl.Float64)
    frame = frame.with_columns(score.alias("val_score"), (pl.col("epoch") == best_epoch).alias("best"))
    return frame.with_columns(cs.float().fill_nan(None))
