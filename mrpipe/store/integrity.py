"""Integrity of the files of a store: sizes at every opening, hashes once per user, file and change time."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

from mrpipe.errors import Fault
from mrpipe.locks import cache_folder
from mrpipe.raw import sha256
from mrpipe.store.layout import StoreLayout
from mrpipe.store.manifest import RESTORE, Manifest, read_sealed_json
from mrpipe.store.parquet import write_text

# A file changed within this time, in seconds, may change again without another time stamp: its hash is not remembered.
_RESOLUTION = 2.0


def size_faults(root: Path, manifest: Manifest) -> Iterator[Fault]:
    """Files that are missing, of another size, or links out of the store."""
    paths, inside = StoreLayout(root), root.resolve()
    sizes = {root / entry["file"]: entry["size"] for entry in (*manifest.files, manifest.card)}
    for path in (*sizes, paths.provenance, paths.manifest):
        found = ""
        if not path.is_file():
            found = "no such file"
        elif not path.resolve().is_relative_to(inside):
            found = "a link out of the store"
        elif path.stat().st_size != sizes.get(path, path.stat().st_size):
            found = f"{path.stat().st_size} bytes"
        if found:
            expected = f"{sizes[path]} bytes" if path in sizes else "a file of this sealed store"
            yield Fault(file=str(path), expected=expected, found=found, fix=RESTORE)


def hash_faults(root: Path, manifest: Manifest, *, remember: bool) -> Iterator[Fault]:
    """Files whose hash differs from the manifest's.

    Args:
        remember: rely on the user's cache for files that have not changed since their hash was computed, and update it.
    """
    name = hash_of(os.fsencode(root.resolve())).hexdigest()[:32]
    cache = folder / "verified" / f"{name}.json" if remember and (folder := cache_folder()) else None
    known: Any = {}
    if cache is not None:
        with suppress(OSError, ValueError, RecursionError):
            known = json.loads(cache.read_text(encoding="utf-8"))
    verified = {}
    for entry in (*manifest.files, manifest.card):
        path, expected = root / entry["file"], entry["sha256"]
        state = _state(path)
        if isinstance(known, dict) and known.get(state) == expected:
            verified[state] = expected
        elif (found := sha256(path)) != expected:
            fix = f"The file was changed after sealing. {RESTORE}"
            yield Fault(file=str(path), expected=f"SHA-256 {expected}", found=f"SHA-256 {found}", fix=fix)
        elif state == _state(path) and time.time() - path.stat().st_ctime > _RESOLUTION:
            verified[state] = expected
    if cache is not None and verified != known:
        with suppress(OSError):
            write_text(cache, json.dumps(verified, indent=0))


def _state(path: Path) -> str:
    """Name, size, modification time, change time and inode: restoring the modification time alters the change time."""
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def other_faults(root: Path, manifest: Manifest) -> Iterator[Fault]:
    """Files that the manifest does not declare, and a provenance file that is damaged or of another store."""
    paths = StoreLayout(root)
    declared = {root / entry["file"] for entry in (*manifest.files, manifest.card)}
    declared |= {paths.manifest, paths.provenance, *paths.folders, root / ".snakemake_timestamp"}
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in sorted([*folders, *files])):
            if path not in declared or (path in paths.folders and path.is_symlink()):
                fix = "Remove it: a sealed store holds nothing else."
                yield Fault(file=str(path), expected="only files of the manifest", found="another file", fix=fix)
    (values, computed), place = read_sealed_json(paths.provenance), str(paths.provenance)
    for key, expected in (("checksum", computed), ("store_id", manifest.store_id)):
        if values.get(key) != expected:
            yield Fault(file=place, column=key, expected=expected, found=f"{values.get(key)}", fix=RESTORE)
