"""check: validate all inputs of a run, report all problems at once, and record the inventory of the export."""

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

# Folders with more files (screens, scans) are listed as one entry, because their file names may be patient ids.
LISTED_FILES = 40


def _as_one(label: str, root: Path, members: Sequence[Path]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(f"{f.relative_to(root).as_posix()} {sha256(f)}\n" for f in members).encode())
    size = sum(f.stat().st_size for f in members)
    return {"path": label, "size": size, "sha256": digest.hexdigest(), "n_files": len(members)}


def inventory(
    raw: Path, files: tuple[Path, ...], groups: Mapping[str, tuple[Path, ...]] | None = None
) -> list[dict[str, Any]]:
    """Path relative to the export, size in bytes and SHA-256 of all input files.

    Each large folder is one entry, and so is each of `groups` (label → files).
    """
    by_folder: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in sorted(set(files)):
        by_folder[file.parent].append(file)
    entries: list[dict[str, Any]] = []
    for folder, members in sorted(by_folder.items()):
        if len(members) <= LISTED_FILES:
            # Files outside of the export (declarations) are listed by name, because paths differ between machines.
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
    """Option value for the manifest: of absolute paths only the name, because folders differ between machines."""
    if isinstance(value, tuple):
        return [_portable(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def check(dataset: Dataset, raw: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check an export; returns the content of `checked.json`.

    Raises:
        UsageError: an option is invalid.
        DataError: lists all problems.
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
    """Check an export and write `checked.json`; after a failed check, no older `checked.json` remains."""
    path = WorkLayout(work).checked
    path.unlink(missing_ok=True)
    result = check(dataset, raw, settings)
    write_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result
