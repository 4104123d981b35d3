"""Ranks of the methods over all columns of a suite, from its table of scores."""

from __future__ import annotations

import polars as pl

from moe_retriever.data.scores import METRIC_NAMES
from moe_retriever.suites.render import Line, PageTable, cells_of
from moe_retriever.suites.spec import BEST, SuiteSpec

LOWER_IS_BETTER = ("ece",)


def rank_frame(scores: pl.DataFrame, metric: str) -> pl.DataFrame:
    """One row per method, best mean rank first: `row, control, columns, rank, wins, ties, losses`.

    Methods with equal means in a column share their average rank. A method wins or loses a column if the interval of
    its difference from the reference excludes zero, and ties otherwise.
    """
    lower = metric in LOWER_IS_BETTER
    above, below = pl.col("difference_low") > 0, pl.col("difference_high") < 0
    won, lost = (x.fill_null(False) for x in ((below, above) if lower else (above, below)))
    found = scores.filter(pl.col("mean").is_not_null(), pl.col("row") != BEST, pl.col("metric") == metric)
    rank = pl.col("mean").rank("average", descending=not lower).over("column").alias("rank")
    ties = (pl.col("difference").is_not_null() & ~won & ~lost).alias("ties")
    of_columns = found.with_columns(rank, won.alias("wins"), ties, lost.alias("losses"))
    sums = pl.len().alias("columns"), pl.col("rank").mean(), pl.col("wins", "ties", "losses").sum()
    return of_columns.group_by("row", "control", maintain_order=True).agg(*sums).sort("rank", maintain_order=True)


def rank_table(suite: SuiteSpec, scores: pl.DataFrame) -> PageTable | None:
    """Ranks by the metrics of the overview, best first; None unless the suite has several stores."""
    frames = {m: f for m in suite.metrics if len(f := rank_frame(scores, m))}
    if len({c.store for c in suite.columns}) < 2 or not frames:
        return None
    first, *_ = frames.values()
    by_row = {m: {r["row"]: r for r in f.iter_rows(named=True)} for m, f in frames.items()}
    header, lines = ["method", "columns"], []
    for metric in frames:
        header += [f"{METRIC_NAMES[metric]}: mean rank", f"{METRIC_NAMES[metric]}: wins–ties–losses"]
    for row, control, columns in first.select("row", "control", "columns").iter_rows():
        texts = [str(columns)]
        for r in (of.get(row) for of in by_row.values()):
            texts += ["", ""] if r is None else [f"{r['rank']:.2f}", f"{r['wins']}–{r['ties']}–{r['losses']}"]
            texts[-1] = "" if row == suite.reference else texts[-1]
        lines.append(Line("control" if control else "method", row, cells_of(texts, "count")))
    against = f"; wins, ties and losses against {suite.reference}, by the interval" if suite.reference else ""
    caption = f"Mean rank over the columns (1 is best; equal means share a rank){against}"
    return PageTable(caption, tuple(header), tuple(lines))
