"""Description of the files of a store: the part of its manifest that follows from them, and identities of tables."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from mrpipe.schema import MODALITY_KEY, SPLIT_KEY, TASK_KEY
from mrpipe.store import masks
from mrpipe.store.layout import StoreLayout
from mrpipe.store.manifest import Manifest, digest
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
    rows = {m: pl.scan_parquet(paths.dictionary).filter(modality=m).collect().iter_slices(2**16) for m in modalities}
    known = {m: {"dictionary_sha256": digest([digest(block.rows()) for block in rows[m]])} for m in modalities}
    declared = tuple(entry(paths.modality(m), MODALITY_KEY) | known[m] for m in modalities)
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


def data_identity(
    manifest: Manifest, modalities: Collection[str] | None = None, task: str | None = None, scheme: str | None = None
) -> str:
    """Identity of the tables that a training or an evaluation reads, from the hashes in the manifest.

    It covers the samples, the modalities with their rows of the dictionary, the labels and the split, and nothing else.

    Args:
        modalities: names; default: all.
        task, scheme: names; None for the store's defaults; none is read if the store does not have the name.
    """
    tables = {table["name"]: table["sha256"] for table in manifest.tables}
    # In stores of earlier versions, only the dictionary of all modalities has a hash.
    known = [{"dictionary_sha256": tables["dictionary"], **m} for m in manifest.modalities]
    read = [m for m in known if modalities is None or m["name"] in modalities]
    labels = [label for label in manifest.labels if task in (None, label["name"])][:1]
    scheme = manifest.default_scheme if scheme in (None, "default") else scheme
    splits = [split for split in manifest.splits if split["scheme"] == scheme]
    return digest([manifest.dataset, manifest.origin, tables["samples"], read, labels, splits])[:16]
