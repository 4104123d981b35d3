"""Replacing a whole store: its new files are complete in a hidden folder beside it before they take its place."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpipe.errors import UsageError
from mrpipe.locks import writing
from mrpipe.store.layout import StoreLayout


@contextmanager
def private_work(store: Path) -> Iterator[Path]:
    """Context of a build: a folder for its intermediate files, beside the store, whose lock is held.

    Raises:
        UsageError: another process writes the store, or its folder contains other files.
    """
    store = store.resolve()
    _require_replaceable(store)
    with writing(store):
        _remove_leftovers(store, "tmp")
        work = _hidden_sibling(store, "tmp")
        work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def replacing_store(store: Path) -> Iterator[Path]:
    """Context that writes the files of a store: an empty folder, which replaces the store on success.

    A killed process leaves the old store, the new one or, between two renames, none; the next one restores the old.

    Raises:
        UsageError: another process writes the store, or its folder contains other files.
    """
    store = store.resolve()
    _require_replaceable(store)
    with writing(store):
        _remove_leftovers(store, "new|old")
        new, old = _hidden_sibling(store, "new"), _hidden_sibling(store, "old")
        new.mkdir()
        try:
            yield new
            for path in (*new.rglob("*"), new):
                _sync(path)
            if store.exists():
                store.rename(old)
            new.rename(store)
            _sync(store.parent)
        finally:
            if old.exists() and not store.exists():
                old.rename(store)
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)


def _require_replaceable(store: Path) -> None:
    """Refuse to replace a folder that holds anything but the files of a store."""
    if not store.exists():
        return
    if not store.is_dir():
        raise UsageError(f"{store} is a file; a store is a folder")
    paths = StoreLayout(store)
    tables = paths.files((), (), ())
    of_a_store = {*tables, *paths.folders, paths.card, paths.provenance, paths.manifest, store / ".snakemake_timestamp"}
    # Before a job, Snakemake removes its outputs, among them the manifest.
    if not any(path.exists() for path in (*tables, paths.manifest)):
        of_a_store = set()
    other = sorted(p.name for p in store.iterdir() if p not in of_a_store and not re.fullmatch(r"\..*\.tmp", p.name))
    if other:
        advice = "Choose another folder, or move it: a build replaces the whole folder"
        raise UsageError(f"{store} contains {other[0]}, which is not part of a store. {advice}")


def _hidden_sibling(store: Path, kind: str) -> Path:
    """Path of a new hidden folder beside a store. A name of 240 characters remains shorter than the 255 of Linux."""
    return store.with_name(f".{store.name}.{kind}-{secrets.token_hex(4)}")


def _remove_leftovers(store: Path, kinds: str) -> None:
    """Remove the folders that killed processes left beside a store; a store that one had renamed is restored."""
    name = re.compile(rf"\.{re.escape(store.name)}\.({kinds})-[0-9a-f]{{8}}")
    for folder in store.parent.iterdir():
        if found := name.fullmatch(folder.name):
            if found[1] == "old" and not store.exists():
                folder.rename(store)
            else:
                shutil.rmtree(folder, ignore_errors=True)


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
