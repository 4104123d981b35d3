"""The best possible prediction of a simulated export, in one form for all simulators: `best.parquet` beside the truth.

One row a (sample, combination of observed modalities): the probability of each class given what these modalities show,
under the model that drew the sample; or, where a simulator knows only that of the factors behind them, a bound on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.store.masks import combination_name
from mrpipe.store.parquet import read_metadata, write_frame

NAME = "best.parquet"
KEY = "mrpipe.best"
# A combination of this name stands for every combination that has no rows of its own.
ANY = ""


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of modalities, in bit order."""
    return [c for k in range(1, len(names) + 1) for c in combinations(names, k)]


def write_best(
    truth: Path,
    task: str,
    classes: Sequence[str],
    sample_id: Sequence[str],
    best: Mapping[tuple[str, ...], NDArray[np.float64]],
) -> None:
    """Write `best.parquet`: `sample_id, modalities, p_<class>…`, sorted.

    Args:
        task: the label that is predicted.
        best: modalities in bit order (none: every combination) → (n, C) probabilities.
    """
    frames = [
        pl.DataFrame(
            {"sample_id": list(sample_id), "modalities": combination_name(names) or ANY}
            | {f"p_{c}": p[:, i] for i, c in enumerate(classes)}
        )
        for names, p in best.items()
    ]
    write_frame(truth / NAME, pl.concat(frames).sort("sample_id", "modalities"), metadata={KEY: json.dumps(task)})


def read_best(truth: Path, task: str) -> pl.DataFrame | None:
    """The content of `best.parquet`; None where there is none, or only one of another label."""
    path = truth / NAME
    if not path.is_file() or json.loads(read_metadata(path)[KEY]) != task:
        return None
    return pl.read_parquet(path)
