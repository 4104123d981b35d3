"""Description of the files of a store: the part of its manifest that follows from them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from mrpipe.schema import MODALITY_KEY, SPLIT_KEY, TASK_KEY
from mrpipe.store import masks
from mrpipe.store.layout import StoreLayout
from mrpipe.store.parquet import read_metadata


def describe(
    root: Path, modalities: Iterable[str], tasks: Iterable[str], schemes: Iterable[str], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Keys of the manifest that the files determine: modalities, labels, splits, tables and counts.

    Args:
        modalities, tasks: names in the order of the manifest; schemes: names in any order.
        hashes: path of each file relative to the store → SHA-256.
    """
    paths = StoreLayout(root)

    def entry(path: Path, key: str | None = None) -> dict[str, Any]:
        declared = json.loads(read_metadata(path)[key]) if key else {"name": path.stem}
        file, rows = path.relative_to(root).as_posix(), pq.read_metadata(path).num_rows
        return declared | {"file": file, "rows": rows, "size": path.stat().st_size, "sha256": hashes[file]}

    samples = pl.read_parquet(paths.samples, columns=["subject_id", "modality_mask"])
    declared = tuple(entry(paths.modality(m), MODALITY_KEY) for m in modalities)
    splits = []
    for scheme in sorted(schemes):
        counts = pl.read_parquet(paths.split(scheme), columns=["split"]).group_by("split").len().sort("split")
        splits.append(entry(paths.split(scheme), SPLIT_KEY) | {"counts": dict(counts.iter_rows())})
    bits = {m["name"]: m["bit"] for m in declared}
    patterns = masks.pattern_counts(samples["modality_mask"].to_numpy())
    return {
        "modalities": declared,
        "labels": tuple(entry(paths.labels(t), TASK_KEY) for t in tasks),
        "splits": tuple(splits),
        "tables": tuple(entry(path) for path in (paths.samples, paths.dictionary, paths.attrition)),
        "n_samples": len(samples),
        "n_subjects": samples["subject_id"].n_unique(),
        "pattern_counts": {masks.combination_name(masks.to_names(mask, bits)): n for mask, n in patterns.items()},
    }
