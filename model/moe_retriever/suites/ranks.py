"""Ranks of the methods over all columns of a suite, from its table of scores."""

import polars as pl

from moe_retriever.data.scores import METRIC_NAMES, lower_is_better
from moe_retriever.suites.render import Line, PageTable, cells_of
from moe_retriever.suites.spec import BEST, SuiteSpec


def rank_frame(scores: pl.DataFrame, metric: str) -> pl.DataFrame:
    """One row per method, best mean rank first: `row, control, columns, rank, wins, ties, losses`.

    Methods with equal means in a column share their average rank. A method wins or loses a column if its difference
    from the reference holds after correction, and ties otherwise.
    """
    lower = lower_is_better(metric)
    holds, better = pl.col("holds").fill_null(False), (pl.col("difference") > 0) ^ lower
    won, lost = holds & better, holds & ~better
    found = scores.filter(pl.col("mean").is_not_null(), pl.col("row") != BEST, pl.col("metric") == metric)
    rank = pl.col("mean").rank("average", descending=not lower).over("column")
    ties = pl.col("difference").is_not_null() & ~holds
    of_columns = found.with_columns(rank=rank, wins=won, ties=ties, losses=lost)
    sums = pl.len().alias("columns"), pl.col("rank").mean(), pl.col("wins", "ties", "losses").sum()
    return of_columns.group_by("row", "control", maintain_order=True).agg(*sums).sort("rank", maintain_order=True)


def rank_table(suite: SuiteSpec, scores: pl.DataFrame) -> PageTable | None:
    """Ranks by each metric of the overview; None unless the suite has several stores and methods."""
    frames = {m: {r["row"]: r for r in rank_frame(scores, m).iter_rows(named=True)} for m in suite.metrics}
    rows = {row: r["control"] for of in frames.values() for row, r in of.items()}
    if len({c.store for c in suite.columns}) < 2 or len(rows) < 2:
        return None
    names = ("columns", "mean rank", "wins–ties–losses")
    header = ["method", *(f"{METRIC_NAMES[m]}: {name}" for m in frames for name in names)]
    lines = []
    for row, control in rows.items():
        texts = []
        for r in (of.get(row) for of in frames.values()):
            against = "" if r is None or row == suite.reference else f"{r['wins']}–{r['ties']}–{r['losses']}"
            texts += ["", "", ""] if r is None else [str(r["columns"]), f"{r['rank']:.2f}", against]
        lines.append(Line("control" if control else "method", row, cells_of(texts, "count")))
    against = f"; wins, ties and losses against {suite.reference} after correction" if suite.reference else ""
    return PageTable(f"Mean rank over the columns, 1 is best{against}", tuple(header), tuple(lines))
