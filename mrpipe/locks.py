"""One writer per output folder: a lock beside the folder, held until its files are complete."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mrpipe.errors import UsageError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder; it can be taken again by the same thread.

    The operating system releases the lock of a process that ends, also of a killed one.

    Raises:
        UsageError: another process writes to the folder; names its host and process.
    """
    path = folder.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"{folder}: {_holder(place)} writes to this folder. Wait for it, or choose another") from error
    try:
        place.write_text(json.dumps({"host": platform.node(), "process": os.getpid()}), encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(place: Path) -> str:
    """The process that holds a lock, as text."""
    try:
        entry = json.loads(place.read_text(encoding="utf-8"))
        return f"process {entry['process']} on {entry['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
