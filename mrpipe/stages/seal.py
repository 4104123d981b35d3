"""seal: copy the tables of a build to a new store, check its invariants, and write card, provenance and manifest."""

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
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.raw import sha256
from mrpipe.schema import Dataset
from mrpipe.stages.declaration import checked_dataset, read_checked
from mrpipe.stages.reads import outdated_steps
from mrpipe.store.card import render_card
from mrpipe.store.content import describe
from mrpipe.store.invariants import find_breaches
from mrpipe.store.layout import StoreLayout, WorkLayout, require_file
from mrpipe.store.manifest import FORMAT, Manifest, content_id, with_checksum
from mrpipe.store.parquet import write_frame, write_text
from mrpipe.store.publish import hidden_folder, replace_store, transfer


def build_manifest(dataset: Dataset, checked: Mapping[str, Any], content: Mapping[str, Any]) -> Manifest:
    """Manifest of a store, without its card, from `checked.json` and the description of its files."""
    schemes = [s["scheme"] for s in content["splits"]]
    defaults = json.loads(json.dumps(dataclasses.asdict(dataset.options())))
    manifest = Manifest(
        format=FORMAT,
        dataset=dataset.name,
        **{key: checked[key] for key in ("release", "origin", "options")},
        **{key: getattr(dataset, key) for key in ("title", "citation", "licence", "provider", "people")},
        **content,
        inputs=tuple(checked["inputs"]),
        notes=(*dataset.notes, *checked["notes"]),
        code_hash=code_hash("mrpipe.stages.build", dataset_module(dataset.name)),
        mrpipe_version=mrpipe.__version__,
        default_scheme=dataset.default_scheme if dataset.default_scheme in schemes else schemes[0],
        options_changed=tuple(k for k, v in sorted(checked["options"].items()) if v != defaults.get(k)),
        card={},
        store_id="",
    )
    return dataclasses.replace(manifest, store_id=content_id(dataclasses.asdict(manifest)))


def _provenance() -> dict[str, Any]:
    return {
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "command": " ".join(["mrpipe", *sys.argv[1:]]),
        "versions": {"mrpipe": mrpipe.__version__} | {p: metadata.version(p) for p in ("polars", "pyarrow", "numpy")},
    }


def seal(dataset: Dataset, work: Path, store: Path, schemes: Sequence[str] | None = None, *, move: bool = False) -> str:
    """Seal the tables in `WORK/store` as a store, which replaces the folder `store`; returns its store_id.

    Only the modalities of `checked.json` and of samples.parquet, the dataset's tasks and `schemes` are sealed; tables
    left by a build of other settings are ignored.

    Args:
        schemes: splits of the store; default: all that were written.
        move: move the tables instead of copying them; the work folder cannot be sealed again.

    Raises:
        DataError: an invariant of the format is violated, or a table was changed after the step that wrote it; an
            older store remains.
        UsageError: an earlier step has not run, or the folder `store` cannot be replaced.
    """
    working, checked = WorkLayout(work), read_checked(work)
    staged, dataset = working.store, checked_dataset(dataset, work)
    columns = pq.read_schema(working.require(staged.samples, f"samples {dataset.name}")).names
    modalities = [m for m in checked["modalities"] if f"row_{m}" in columns]
    modalities.sort(key=lambda m: dataset.modalities[m].bit)
    if schemes is None:
        schemes = [p.stem for p in (staged.root / "splits").glob("*.parquet")]
    if not schemes:
        fix = "Run mrpipe split."
        raise DataError(Fault(file="splits/", expected="at least one split scheme", found="none", fix=fix))
    if outdated := list(outdated_steps(dataset, ["cohort", *(f"{m}.ingest" for m in modalities)], work)):
        raise DataError(outdated)
    tasks = [t.name for t in dataset.tasks]
    verbs = {staged.modality(m): f"ingest {dataset.name} {m}" for m in modalities}
    verbs |= {staged.split(s): f"split {dataset.name} --scheme {s}" for s in schemes}
    store = store.resolve()
    with hidden_folder(store, "s") as hidden:
        root = hidden / "new"
        paths, faults = StoreLayout(root), FaultCollector()
        rows = [working.require(working.dictionary(m), f"ingest {dataset.name} {m}") for m in modalities]
        write_frame(paths.dictionary, pl.concat(map(pl.read_parquet, rows)))
        hashes = {paths.dictionary.name: sha256(paths.dictionary)}
        for path in staged.files(modalities, tasks, schemes):
            if path != staged.dictionary:
                verb, file = verbs.get(path, f"samples {dataset.name}"), path.relative_to(staged.root).as_posix()
                transfer(require_file(path, verb), root / file, move=move)
                hashes[file] = sha256(root / file)
                faults.attempt(working.compare, path, verb, hashes[file])
        faults.raise_if_any()
        if breaches := find_breaches(root, dataset.tasks, deep=True):
            raise DataError(breaches)
        manifest = build_manifest(dataset, checked, describe(root, modalities, tasks, schemes, hashes))
        write_text(paths.card, render_card(dataset, manifest, root))
        card = {"file": paths.card.name, "size": paths.card.stat().st_size, "sha256": sha256(paths.card)}
        write_text(paths.provenance, with_checksum(_provenance() | {"store_id": manifest.store_id}))
        write_text(paths.manifest, dataclasses.replace(manifest, card=card).to_json())
        replace_store(root, store)
    return manifest.store_id
