"""The paper's own accuracies, for the view and the missingness of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

PUBLISHED = Path(__file__).resolve().parents[1] / "published.csv"
# The paper's letters for the modalities of each data set, in the order in which its tables write them.
PAPER_DATASETS = {
    "mosi": ("CMU-MOSI", {"vision": "V", "audio": "A", "text": "T"}),
    "enrico": ("ENRICO", {"screenshot": "S", "wireframe": "W"}),
    "adni": ("ADNI", {"image": "I", "genomic": "G", "clinical": "C", "biospecimen": "B"}),
    "mimic": ("MIMIC", {"lab": "L", "note": "N", "code": "C"}),
}


def published(dataset: str, modalities: Sequence[str], mask: dict[str, Any] | None) -> list[tuple[str, float, float]]:
    """The paper's accuracy (method, mean, sd in %) for this view, where it has a row for it."""
    if dataset not in PAPER_DATASETS:
        return []
    name, letters = PAPER_DATASETS[dataset]
    if not set(modalities) <= set(letters):
        return []
    view = "+".join(letter for m, letter in letters.items() if m in modalities)
    drop = "natural" if mask is None else f"{mask['p']:g}"
    frame = pl.read_csv(PUBLISHED, schema_overrides={"drop": pl.String}).filter(
        pl.col("table").is_in(["table1", "table2"]), dataset=name, modalities=view, metric="Acc", drop=drop
    )
    return list(frame.select("method", "mean", "std").iter_rows())
