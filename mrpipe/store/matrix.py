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
        x: (n, p) float32; NaN if a value is unknown or the sample lacks the modality. Categories are codes, in the
            order of `levels` in the dictionary; genotypes are copies of A1. A sequence has the mean and the maximum of
            each feature over its steps, and the logarithm of the number of steps.
        y: (n,) int64 class, or float64 target.
        groups: (n,) subject_id; samples of a subject must stay together in a cross-validation.
        names: p names, `modality.feature`.
        sample_id: (n,) strings.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64] | NDArray[np.float64]
    groups: NDArray[np.str_]
    names: tuple[str, ...]
    sample_id: NDArray[np.str_]


def _summary(arrays: "Arrays") -> NDArray[np.float32]:
    """(n, 2 d + 1): mean and maximum of the known values over the steps, and the logarithm of the number of steps."""
    assert arrays.offsets is not None
    x, starts = arrays.x.astype(np.float32), arrays.offsets[:-1]
    known = np.add.reduceat((~np.isnan(x)).astype(np.float32), starts)
    total = np.add.reduceat(np.nan_to_num(x), starts)
    mean = np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0)
    steps = np.log(np.diff(arrays.offsets).astype(np.float32))
    return np.concatenate([mean, np.fmax.reduceat(x, starts), steps[:, None]], axis=1)


def _features(arrays: "Arrays", names: list[str]) -> tuple[NDArray[np.float32], list[str]]:
    """Columns of one modality and their names."""
    modality = arrays.modality
    if modality.kind == "sequence":
        columns = [f"{name} {statistic}" for statistic in ("mean", "maximum") for name in names]
        return _summary(arrays), [*columns, "log number of steps"]
    if modality.encoding == "packed2":
        return copies(arrays.x, modality.size), names
    return arrays.x.astype(np.float32), names


def build_matrix(
    store: "Store", modalities: Sequence[str] | None, part: str | None, split: str | None, task: str | None
) -> Matrix:
    """See `Store.matrix`.

    Raises:
        UsageError: unknown names, modalities that are no table of numbers, or no labelled samples.
    """
    unknown = sorted(set(modalities or ()) - set(store.bits))
    if unknown:
        raise UsageError(f"no modality {unknown[0]!r}; this store has {', '.join(store.bits)}")
    dictionary = store.dictionary
    events = set(dictionary.filter(position=0, kind="event")["modality"])
    usable = [m.name for m in store.modalities if m.kind not in ("image", "volume") and m.name not in events]
    chosen = [m.name for m in store.modalities if modalities is None or m.name in modalities]
    if wrong := [name for name in chosen if name not in usable]:
        can = f"choose modalities among {', '.join(usable)}" if usable else "this store has no others"
        raise UsageError(f"{', '.join(wrong)}: images, volumes and events have no feature matrix; {can}")
    rows = [f"row_{name}" for name in chosen]
    samples = store.samples().filter(pl.any_horizontal(pl.col(rows).is_not_null()))
    samples = samples.join(store.labels(task), on="sample_id")
    if part is not None:
        samples = samples.join(store.split(split).filter(split=part), on="sample_id", how="semi")
    frame = samples.sort("sample_id").select("sample_id", "subject_id", "value", *rows).collect()
    if frame.is_empty():
        raise UsageError(f"no labelled samples with {' or '.join(chosen)} in {part or 'the store'}")
    blocks, names = [], list[str]()
    for name in chosen:
        row = frame[f"row_{name}"]
        table = store.row_groups(name).take(row.drop_nulls().to_numpy().astype(np.int64))
        own = dictionary.filter(modality=name).sort("position")["name"].to_list()
        values, columns = _features(table, own)
        block = np.full((len(frame), len(columns)), np.nan, dtype=np.float32)
        block[row.is_not_null().to_numpy()] = values
        blocks.append(block)
        names += [f"{name}.{column}" for column in columns]
    y: NDArray[np.int64] | NDArray[np.float64] = frame["value"].cast(pl.Float64).to_numpy()
    return Matrix(
        x=np.concatenate(blocks, axis=1),
        y=y.astype(np.int64) if store.task(task).classes else y,
        groups=frame["subject_id"].to_numpy().astype(np.str_),
        names=tuple(names),
        sample_id=frame["sample_id"].to_numpy().astype(np.str_),
    )
