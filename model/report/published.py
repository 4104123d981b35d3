"""What the paper printed for the view and the missingness of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from model.published import DATASETS, METRICS, Published, published_table, short

# Tables of methods by views; the others vary something else.
_TABLES = ("table1", "table2", "table4", "table5", "table6")


def published_rows(
    dataset: str, modalities: Sequence[str], mask: dict[str, Any] | None
) -> dict[str, dict[str, Published]]:
    """The paper's method → our metric → its figure, in the order of the paper; empty where it has no row for this.

    Args:
        mask: settings of the simulated missingness; the paper's is completely at random.
    """
    if dataset not in DATASETS or (mask is not None and mask["mechanism"] != "mcar"):
        return {}
    drop = "natural" if mask is None else f"{mask['p']:g}"
    here = published_table().filter(
        pl.col("table").is_in(_TABLES), dataset=DATASETS[dataset][0], modalities=short(dataset, modalities), drop=drop
    )
    ours = {printed: metric for metric, printed in METRICS.items()}
    rows: dict[str, dict[str, Published]] = {}
    for method, metric, mean, std in here.select("method", "metric", "mean", "std").iter_rows():
        rows.setdefault(method, {}).setdefault(ours[metric], Published(mean, std))
    return rows
