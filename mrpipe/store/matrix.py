"""`store.matrix()`: the labelled samples as one feature matrix with NaN, for scikit-learn and similar libraries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.errors import UsageError
from mrpipe.genetics.packing import copies

if TYPE_CHECKING:
    from mrpipe.store.reader import Arrays, Store


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Features of n labelled samples, in order of sample_id.

    Attributes:
        x: (n, p) float32; NaN if a value is unknown or the sample lacks the modality. Categories are positions in
            `levels` of the dictionary; genotypes are copies of A1. A sequence has the mean and the maximum of each
            feature over its steps, and the logarithm of the number of steps.
        y: (n,) int64 class, or float64 target.
        groups: (n,) subject_id, for a cross-validation that keeps the samples of a subject together.
        names: p names, `modality.feature`; sample_id: (n,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64] | NDArray[np.float64]
    groups: NDArray[np.str_]
    names: tuple[str, ...]
    sample_id: NDArray[np.str_]


def _features(arrays: "Arrays", names: list[str]) -> tuple[NDArray[np.float32], list[str]]:
    """Columns of one modality and their names."""
    if arrays.modality.encoding == "packed2":
        return copies(arrays.x, arrays.modality.size), names
    x = arrays.x.astype(np.float32)
    if arrays.offsets is None:
        return x, names
    steps = np.log(np.diff(arrays.offsets).astype(np.float32))[:, None]
    names = [*(f"{name} {statistic}" for statistic in ("mean", "maximum") for name in names), "log number of steps"]
    return np.concatenate([arrays.means(), np.fmax.reduceat(x, arrays.offsets[:-1]), steps], axis=1), names


def build_matrix(
    store: "Store",
    modalities: Sequence[str] | None = None,
    part: str | None = None,
    split: str | None = None,
    task: str | None = None,
) -> Matrix:
    """Labelled samples with one of the modalities (default: all) in a part of the scheme `split` (default: all).

    Raises:
        UsageError: unknown names, modalities of another kind, or no samples.
    """
    dictionary, task_kind = store.dictionary, store.task(task).kind
    events = set(dictionary.filter(position=0, kind="event")["modality"])
    usable = [m.name for m in store.modalities if m.kind not in ("image", "volume") and m.name not in events]
    chosen = [m.name for m in store.choose(modalities)]
    if wrong := [name for name in chosen if name not in usable]:
        able = ", ".join(usable) or "none"
        raise UsageError(f"images, volumes and events have no matrix: {', '.join(wrong)}; modalities that have: {able}")
    samples = store.samples().filter(pl.any_horizontal(pl.col(f"row_{name}").is_not_null() for name in chosen))
    samples = samples.join(store.labels(task), on="sample_id")
    part = None if part == "all" else part
    if part is not None or split is not None:
        samples = samples.join(store.split(split, part), on="sample_id", how="semi")
    frame = samples.sort("sample_id").collect()
    if frame.is_empty():
        raise UsageError(f"no labelled samples with {' or '.join(chosen)} in {part or 'the store'}")
    blocks, names = [], list[str]()
    for name in chosen:
        row, own = frame[f"row_{name}"], dictionary.filter(modality=name).sort("position")["name"].to_list()
        values, own = _features(store.arrays(name).take(row.drop_nulls().to_numpy().astype(np.int64)), own)
        blocks.append(np.full((len(frame), len(own)), np.nan, dtype=np.float32))
        blocks[-1][row.is_not_null().to_numpy()] = values
        names += [f"{name}.{column}" for column in own]
    return Matrix(
        x=np.concatenate(blocks, axis=1),
        y=frame["value"].cast(pl.Int64 if task_kind == "classification" else pl.Float64).to_numpy(),
        groups=frame["subject_id"].to_numpy().astype(np.str_),
        names=tuple(names),
        sample_id=frame["sample_id"].to_numpy().astype(np.str_),
    )
