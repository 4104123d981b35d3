"""`mrpipe export`: write a store as CSV or NumPy files, for tools that cannot read Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpipe.errors import UsageError
from mrpipe.genetics.packing import unpack_range
from mrpipe.store.parquet import replacing, write_csv
from mrpipe.store.reader import Arrays, Store


def _csv(arrays: Arrays, names: list[str]) -> pl.DataFrame:
    """One row per sample or, for sequences, per step, with the step number."""
    modality = arrays.modality
    x = unpack_range(arrays.x, 0, modality.size) if modality.encoding == "packed2" else arrays.x
    columns = names if len(names) == modality.size else [f"x{i}" for i in range(modality.size)]
    flat = pl.DataFrame(x.reshape(-1, modality.size), schema=columns, orient="row")
    keys: dict[str, Any] = {"sample_id": arrays.sample_id}
    if arrays.offsets is not None:
        lengths = np.diff(arrays.offsets)
        keys = {"sample_id": np.repeat(arrays.sample_id, lengths)}
        keys["step"] = np.arange(len(flat)) - np.repeat(arrays.offsets[:-1], lengths)
        keys |= {} if arrays.time is None else {"time": arrays.time}
    return pl.DataFrame(keys).hstack(flat)


def export(store: Store, out: Path, format: str, modalities: Sequence[str] | None = None) -> list[Path]:
    """Write samples, labels, splits and modalities to the folder `out`; returns the paths of the files.

    Args:
        format: `csv` (not for images and volumes) or `npz` (arrays `sample_id, x, offsets, time`).
        modalities: names of the modalities to export; default: all.
    """
    chosen = store.choose(modalities)
    if format == "csv" and (pictures := [m.name for m in chosen if m.kind in ("image", "volume")]):
        raise UsageError(f"{', '.join(pictures)}: images and volumes require --format npz")
    written = []
    tables = {"samples": store.samples()}
    tables |= {f"labels_{t.name}": store.labels(t.name) for t in store.tasks}
    tables |= {f"split_{s}": store.split(s) for s in store.schemes}
    for name, frame in tables.items():
        written.append(out / f"{name}.csv")
        write_csv(written[-1], frame.collect())
    dictionary = store.dictionary
    for modality in chosen:
        arrays = store.arrays(modality.name)
        path = out / f"{modality.name}.{format}"
        if format == "csv":
            write_csv(path, _csv(arrays, dictionary.filter(modality=modality.name).sort("position")["name"].to_list()))
        else:
            fields = {k: v for k in ("sample_id", "x", "offsets", "time") if (v := getattr(arrays, k)) is not None}
            with replacing(path) as temporary, temporary.open("wb") as handle:
                np.savez_compressed(handle, **fields)
        written.append(path)
    return written
