"""check: read every header that a run will need and report all faults at once; take the inventory of the export."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpipe.options import parse_options
from mrpipe.raw import require_folder, sha256
from mrpipe.schema import Dataset
from mrpipe.stages.declaration import DECLARED, declaration
from mrpipe.stages.simulate import is_simulated
from mrpipe.store.layout import WorkLayout
from mrpipe.store.parquet import write_text

# Folders with more files than this (screens, scans) are listed as one entry: file names there may be patient ids.
LISTED_FILES = 40


def _as_one(label: str, root: Path, members: Sequence[Path]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(f"{f.relative_to(root).as_posix()} {sha256(f)}\n" for f in members).encode())
    size = sum(f.stat().st_size for f in members)
    return {"path": label, "size": size, "sha256": digest.hexdigest(), "n_files": len(members)}


def inventory(
    raw: Path, files: tuple[Path, ...], groups: Mapping[str, tuple[Path, ...]] | None = None
) -> list[dict[str, Any]]:
    """Path relative to the export, size in bytes and SHA-256 of each file that a run reads.

    Large folders are one entry each, and so are `groups`: label → files.
    """
    by_folder: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in sorted(set(files)):
        by_folder[file.parent].append(file)
    entries: list[dict[str, Any]] = []
    for folder, members in sorted(by_folder.items()):
        if len(members) <= LISTED_FILES:
            # A file outside of the export (a declaration) goes by its name alone: paths are this machine's business.
            entries += [
                {
                    "path": f.relative_to(raw).as_posix() if f.is_relative_to(raw) else f.name,
                    "size": f.stat().st_size,
                    "sha256": sha256(f),
                }
                for f in members
            ]
            continue
        entries.append(_as_one(f"{folder.relative_to(raw).as_posix()}/*", folder, members))
    return entries + [_as_one(label, raw, sorted(set(members))) for label, members in sorted((groups or {}).items())]


def _portable(value: Any) -> Any:
    """An option as the manifest may hold it: of an absolute path the name; folders are this machine's business."""
    if isinstance(value, tuple):
        return [_portable(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def check(dataset: Dataset, raw: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check an export; returns what `checked.json` holds.

    Raises:
        DataError: with every fault that was found.
    """
    options = parse_options(dataset.options, settings, context=f"options of {dataset.name}")
    require_folder(raw)
    declared = dataset.declared(raw, options)
    checked = dataset.check(raw, options)
    present = dataset.modalities_of(raw, options) if dataset.modalities_of else tuple(declared.modalities)
    return {
        **({} if dataset.resolve is None else {DECLARED: declaration(declared)}),
        "dataset": dataset.name,
        "release": checked.release,
        "origin": "simulated" if is_simulated(raw) else "export",
        "options": {name: _portable(value) for name, value in dataclasses.asdict(options).items()},
        "modalities": list(present),
        "notes": list(checked.notes),
        "inputs": inventory(raw, checked.files, checked.groups),
    }


def write_check(dataset: Dataset, raw: Path, work: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check an export and write `checked.json`; on a fault an older one is removed, so that nothing goes on from it."""
    path = WorkLayout(work).checked
    path.unlink(missing_ok=True)
    result = check(dataset, raw, settings)
    write_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result
