"""The figures that the paper prints, to stand beside ours: `published.csv`, as in its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from mrpipe.store.masks import combination_name

FILE = Path(__file__).resolve().parent / "published.csv"
# The paper's name of a data set, and its letters for the modalities, in the order in which its tables write them.
DATASETS = {
    "mosi": ("CMU-MOSI", {"vision": "V", "audio": "A", "text": "T"}),
    "enrico": ("ENRICO", {"screenshot": "S", "wireframe": "W"}),
    "adni": ("ADNI", {"image": "I", "genomic": "G", "clinical": "C", "biospecimen": "B"}),
    "mimic": ("MIMIC", {"lab": "L", "note": "N", "code": "C"}),
}
METRICS = {"accuracy": "Acc", "macro_f1": "F1", "auroc": "AUROC", "auprc": "PRAUC"}
# Tables of methods by views; the others vary something else.
_COMPARISONS = ("table1", "table2", "table4", "table5", "table6")


@dataclass(frozen=True)
class Published:
    """A printed figure, in %: mean and standard deviation over three seeds."""

    mean: float
    std: float


@cache
def published_table() -> pl.DataFrame:
    """All figures: `table, dataset, modalities, drop, metric, method, mean, std`."""
    return pl.read_csv(FILE, schema_overrides={"drop": pl.String})


def short(dataset: str, modalities: Sequence[str]) -> str:
    """A view in the paper's letters; in our names where the paper has no letter for one of them."""
    letters = DATASETS.get(dataset, ("", {}))[1]
    if not set(modalities) <= set(letters):
        return combination_name(modalities)
    return combination_name(letter for m, letter in letters.items() if m in modalities)


def _of_view(dataset: str, modalities: Sequence[str], mask: Mapping[str, Any] | None) -> pl.DataFrame:
    """The figures of a view and what was taken away from it; the paper takes away completely at random only."""
    if dataset not in DATASETS or (mask is not None and mask["mechanism"] != "mcar"):
        return published_table().clear()
    drop = "natural" if mask is None else f"{mask['p']:g}"
    return published_table().filter(dataset=DATASETS[dataset][0], modalities=short(dataset, modalities), drop=drop)


def published(
    table: str, dataset: str, modalities: Sequence[str], mask: Mapping[str, Any] | None, metric: str, method: str
) -> Published | None:
    """What a table of the paper says; None where it says nothing.

    Args:
        mask: `mechanism` and `p` of the simulated missingness; None: as observed.
        metric, method: our metric, the paper's method.
    """
    if metric not in METRICS:
        return None
    found = _of_view(dataset, modalities, mask).filter(table=table, metric=METRICS[metric], method=method)
    return Published(*found.select("mean", "std").row(0)) if len(found) else None


def published_rows(
    dataset: str, modalities: Sequence[str], mask: Mapping[str, Any] | None
) -> dict[str, dict[str, Published]]:
    """The paper's method → our metric → its figure, in the order of the paper; empty where it has no row for this.

    Args:
        mask: as for `published`.
    """
    here = _of_view(dataset, modalities, mask).filter(pl.col("table").is_in(_COMPARISONS))
    ours = {printed: metric for metric, printed in METRICS.items()}
    rows: dict[str, dict[str, Published]] = {}
    for method, metric, mean, std in here.select("method", "metric", "mean", "std").iter_rows():
        rows.setdefault(method, {}).setdefault(ours[metric], Published(mean, std))
    return rows
