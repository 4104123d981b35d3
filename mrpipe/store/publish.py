"""Replacing a whole store: the new one is complete in a hidden folder beside it before it takes its place."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpipe.errors import UsageError
from mrpipe.locks import hidden, writing
from mrpipe.store.layout import StoreLayout


@contextmanager
def hidden_folder(store: Path, kind: str) -> Iterator[Path]:
    """Context with a new private folder beside a store, whose lock is held; the folder is removed at the end.

    Folders of the same kind, and those of `seal` (kind s), that killed processes left are removed first.

    Raises:
        UsageError: another process writes the store, or its folder contains other files.
    """
    _require_replaceable(store)
    name = re.compile(re.escape(hidden(store, ".").name) + f"[{kind}s][0-9a-f]{{8}}")
    with writing(store):
        for left in [p for p in store.parent.iterdir() if name.fullmatch(p.name)]:
            _remove(left, store)
        folder = hidden(store, f".{kind}{secrets.token_hex(4)}")
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            _remove(folder, store)


def replace_store(new: Path, store: Path) -> None:
    """Rename the folder `new`, in a hidden folder, to the store; a kill leaves the old store, the new one or none."""
    for path in (*new.rglob("*"), new):
        _sync(path)
    if store.exists():
        store.rename(new.with_name("old"))
    new.rename(store)
    _sync(store.parent)


def _remove(folder: Path, store: Path) -> None:
    """Remove a hidden folder; an old store in it without a successor is restored."""
    if (old := folder / "old").exists() and not store.exists():
        old.rename(store)
    shutil.rmtree(folder, ignore_errors=True)


def _require_replaceable(store: Path) -> None:
    """Refuse to replace a folder that holds anything but the files of a store."""
    if os.path.ismount(store):
        raise UsageError(f"{store} is a mount point, which a build cannot replace. Choose a folder inside of it")
    paths = StoreLayout(store)
    tables = paths.files((), (), ())
    known = {*tables, *paths.folders, paths.card, paths.provenance, paths.manifest, store / ".snakemake_timestamp"}
    found = sorted(store.iterdir()) if store.is_dir() else [store] * store.exists()
    # Before a job, Snakemake removes the job's outputs, among them the manifest.
    is_store = any(path.exists() for path in (*tables, paths.manifest))
    if other := [p.name for p in found if not (is_store and p in known) and not re.fullmatch(r"\..*\.tmp", p.name)]:
        advice = "Choose another folder, or move it: a build replaces the whole folder"
        raise UsageError(f"{store} contains {other[0]}, which is not part of a store. {advice}")


def transfer(source: Path, target: Path, *, move: bool) -> None:
    """Move or copy a file. A copy shares blocks with its source where the file system can separate them later."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if move:
        source.replace(target)
        return
    try:
        with source.open("rb") as old, target.open("wb") as new:
            while os.copy_file_range(old.fileno(), new.fileno(), 2**30):
                pass
    except (AttributeError, OSError):
        # Not on this platform, or not between these file systems.
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
