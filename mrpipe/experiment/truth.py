"""Best possible predictions of a simulated export: `best.parquet` in the truth folder, same format for all datasets.

One row per (sample, combination of observed modalities): the class probabilities given these modalities under the
simulation model. If a simulator knows them only given the latent factors, they are an upper bound on performance.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.reading import reading
from mrpipe.store.masks import combination_name
from mrpipe.store.parquet import read_metadata, write_frame

NAME = "best.parquet"
KEY = "mrpipe.best"
# Name of the rows that apply to all combinations without rows of their own.
ANY = ""


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty combinations of modalities, each in bit order."""
    return [c for k in range(1, len(names) + 1) for c in combinations(names, k)]


def write_best(
    truth: Path,
    task: str,
    classes: Sequence[str],
    sample_id: Sequence[str],
    best: Mapping[tuple[str, ...], NDArray[np.float64]],
) -> None:
    """Write `best.parquet`: `sample_id, modalities, p_<class>…`, sorted by sample and modalities.

    Args:
        task: predicted task.
        best: modalities in bit order (empty: all other combinations) → (n, C) class probabilities.
    """
    frames = []
    for names, p in best.items():
        columns: dict[str, Any] = {"sample_id": list(sample_id), "modalities": combination_name(names) or ANY}
        frames.append(pl.DataFrame(columns | {f"p_{c}": p[:, i] for i, c in enumerate(classes)}))
    write_frame(truth / NAME, pl.concat(frames).sort("sample_id", "modalities"), metadata={KEY: json.dumps(task)})


def read_best(truth: Path, task: str) -> pl.DataFrame | None:
    """Content of `best.parquet`; None if the file is absent or belongs to another task, a DataError if damaged."""
    path = truth / NAME
    if not path.is_file():
        return None
    with reading(path, "the best possible predictions of a simulator", "Simulate the export again."):
        return pl.read_parquet(path) if json.loads(read_metadata(path)[KEY]) == task else None
