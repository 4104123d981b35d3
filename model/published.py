"""The figures that the paper prints, to stand beside ours: `published.csv`, as in its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

FILE = Path(__file__).resolve().parent / "published.csv"
# The paper's name of a data set, and its letters for the modalities, in the order in which its tables write them.
DATASETS = {
    "mosi": ("CMU-MOSI", {"vision": "V", "audio": "A", "text": "T"}),
    "enrico": ("ENRICO", {"screenshot": "S", "wireframe": "W"}),
    "adni": ("ADNI", {"image": "I", "genomic": "G", "clinical": "C", "biospecimen": "B"}),
    "mimic": ("MIMIC", {"lab": "L", "note": "N", "code": "C"}),
}
METRICS = {"accuracy": "Acc", "macro_f1": "F1", "auroc": "AUROC", "auprc": "PRAUC"}


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
        return "+".join(modalities)
    return "+".join(letter for m, letter in letters.items() if m in modalities)


def published(
    table: str, dataset: str, modalities: Sequence[str], p: float | None, metric: str, method: str
) -> Published | None:
    """What a table of the paper says; None where it says nothing.

    Args:
        p: probability with which modalities were taken away; None: as observed.
        metric, method: our metric, the paper's method.
    """
    if dataset not in DATASETS or metric not in METRICS:
        return None
    found = published_table().filter(
        table=table, dataset=DATASETS[dataset][0], modalities=short(dataset, modalities), metric=METRICS[metric],
        drop="natural" if p is None else f"{p:g}", method=method,
    )  # fmt: skip
    return Published(*found.select("mean", "std").row(0)) if len(found) else None
