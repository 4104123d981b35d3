"""seal: check the invariants, then write dictionary, provenance, data card and, last, the manifest."""

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

import mrpipe
from mrpipe.codehash import code_hash
from mrpipe.datasets import dataset_module
from mrpipe.errors import DataError, Fault
from mrpipe.raw import sha256
from mrpipe.schema import Dataset
from mrpipe.stages.declaration import checked_dataset
from mrpipe.stages.samples import read_modality_declaration
from mrpipe.stages.split import SPLIT_KEY
from mrpipe.store import masks
from mrpipe.store.card import render_card
from mrpipe.store.invariants import find_breaches
from mrpipe.store.layout import StoreLayout, WorkLayout, require_file
from mrpipe.store.manifest import FORMAT, Manifest, store_id
from mrpipe.store.parquet import read_metadata, write_frame, write_text


def _file_entry(root: Path, path: Path) -> dict[str, Any]:
    return {
        "file": path.relative_to(root).as_posix(),
        "rows": pq.read_metadata(path).num_rows,
        "size": path.stat().st_size,
        "sha256": sha256(path),
    }


def _split_entry(root: Path, path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(read_metadata(path)[SPLIT_KEY])
    counts = pl.read_parquet(path).group_by("split").len().sort("split")
    return settings | {"counts": dict(counts.iter_rows())} | _file_entry(root, path)


def build_manifest(dataset: Dataset, root: Path, checked: Mapping[str, Any], version: str) -> Manifest:
    """Manifest of the files currently in a store."""
    paths = StoreLayout(root)
    samples = pl.read_parquet(paths.samples, columns=["sample_id", "subject_id", "modality_mask"])
    declared = sorted(
        (read_modality_declaration(p) for p in (root / "modalities").glob("*.parquet")), key=lambda m: m.bit
    )
    bits = {m.name: m.bit for m in declared}
    modalities = tuple(
        dataclasses.asdict(m) | {"shape": list(m.shape)} | _file_entry(root, paths.modality(m.name)) for m in declared
    )
    labels = tuple(
        dataclasses.asdict(t) | {"classes": list(t.classes)} | _file_entry(root, paths.labels(t.name))
        for t in dataset.tasks
    )
    splits = tuple(_split_entry(root, p) for p in sorted((root / "splits").glob("*.parquet")))
    if not splits:
        raise DataError(
            Fault(file="splits/", expected="at least one split scheme", found="none", fix="Run mrpipe split.")
        )
    tables = tuple({"name": p.stem} | _file_entry(root, p) for p in (paths.samples, paths.dictionary, paths.attrition))
    schemes = [s["scheme"] for s in splits]
    defaults = json.loads(json.dumps(dataclasses.asdict(dataset.options())))
    counts = masks.pattern_counts(samples["modality_mask"].to_numpy())
    return Manifest(
        format=FORMAT,
        dataset=dataset.name,
        **{key: checked[key] for key in ("release", "origin", "options")},
        **{key: getattr(dataset, key) for key in ("title", "citation", "licence", "provider", "people")},
        modalities=modalities,
        labels=labels,
        splits=splits,
        tables=tables,
        inputs=tuple(checked["inputs"]),
        notes=(*dataset.notes, *checked["notes"]),
        code_hash=code_hash("mrpipe.stages.build", dataset_module(dataset.name)),
        mrpipe_version=version,
        n_samples=len(samples),
        n_subjects=samples["subject_id"].n_unique(),
        pattern_counts={masks.combination_name(masks.to_names(mask, bits)): n for mask, n in counts.items()},
        default_scheme=dataset.default_scheme if dataset.default_scheme in schemes else schemes[0],
        store_id=store_id([*tables, *modalities, *labels, *splits]),
        options_changed=tuple(k for k, v in sorted(checked["options"].items()) if v != defaults.get(k)),
    )


def seal(dataset: Dataset, work: Path, root: Path, schemes: Sequence[str] | None = None) -> str:
    """Seal a store; returns its store_id.

    Args:
        schemes: splits of the store; others, left by a previous build, are deleted. Default: keep all.

    Raises:
        DataError: an invariant of the format is violated; the store is not sealed.
        UsageError: an earlier step has not run.
    """
    paths, working = StoreLayout(root), WorkLayout(work)
    checked = json.loads(require_file(working.checked, "check --work").read_text(encoding="utf-8"))
    require_file(paths.samples, "samples")
    names = sorted(p.stem for p in (root / "modalities").glob("*.parquet"))
    dictionaries = {m: require_file(working.dictionary(m), f"ingest {dataset.name} {m}") for m in names}
    dataset = checked_dataset(dataset, work)
    paths.unseal()
    for left in sorted((root / "splits").glob("*.parquet")):
        if schemes is not None and left.stem not in schemes:
            left.unlink()
    order = {m: reader.bit for m, reader in dataset.modalities.items()}
    frames = [pl.read_parquet(dictionaries[m]) for m in sorted(names, key=order.__getitem__)]
    write_frame(paths.dictionary, pl.concat(frames))
    breaches = find_breaches(root, dataset.tasks, deep=True)
    if breaches:
        raise DataError(breaches)
    # Left by a killed writer; a writer that still runs can no longer rename its file into the sealed store.
    for leftover in root.rglob(".*.tmp"):
        leftover.unlink()
    version = mrpipe.__version__
    manifest = build_manifest(dataset, root, checked, version)
    provenance = {
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "command": " ".join(["mrpipe", *sys.argv[1:]]),
        "versions": {"mrpipe": version} | {p: metadata.version(p) for p in ("polars", "pyarrow", "numpy")},
    }
    write_text(paths.provenance, json.dumps(provenance, indent=1) + "\n")
    write_text(paths.card, render_card(dataset, manifest, root))
    write_text(paths.manifest, manifest.to_json())
    return manifest.store_id
