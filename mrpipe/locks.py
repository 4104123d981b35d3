"""One writer per output folder, and the hidden names beside it for locks and temporary files.

A lock is a hidden file, `.NAME.writing` beside the folder. The operating system releases it when its process ends, also
if it is killed. File systems without such locks (some network file systems and container mounts) get a file
`.NAME.writing-soft`, which is taken over if its process, on the same host, no longer runs.
"""

import errno
import glob
import hashlib
import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from mrpipe.errors import UsageError

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# Longer file names, in bytes, are replaced by a hash in hidden names, which must stay below 255 bytes.
_LONGEST = 180
# Seconds to wait for a lock that is only probed, by this or another process.
_PATIENCE = 2.0
_SUFFIX = re.compile(r"\.writing(-soft)?$")


def hidden(path: Path, suffix: str) -> Path:
    """Hidden name beside a path, `.NAME<suffix>`; a long name is shortened to its hash."""
    name = os.fsencode(path.name)
    stem = path.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]
    return path.with_name(f".{stem}{suffix}")


def resolved(path: Path) -> Path:
    """Absolute path without symlinks.

    Raises:
        UsageError: the current folder was deleted, or symlinks form a loop.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        gone = "the current folder no longer exists; change to another one"
        raise UsageError(gone if isinstance(error, FileNotFoundError) else f"{path}: {error}") from error


def temporary_name(path: Path) -> Path:
    """Unused hidden name beside a file, `.NAME.<host>-<process>-<random>.tmp`.

    Files of this kind that killed processes of this host left behind are removed.
    """
    host = platform.node()
    with suppress(OSError):  # Containers may share a host name, but they number their processes on their own.
        host += str(os.stat("/proc/self/ns/pid").st_ino)
    mark = f".{zlib.crc32(host.encode('utf-8', 'surrogateescape')):08x}-"
    for left in path.parent.glob(f"{glob.escape(hidden(path, mark).name)}*.tmp"):
        found = re.search(r"-(\d+)-\w+\.tmp$", left.name)
        if found and not _runs(int(found[1])):
            left.unlink(missing_ok=True)
    return hidden(path, f"{mark}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _runs(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)


@contextmanager
def writing(path: Path, *, part_of: Path | None = None) -> Iterator[None]:
    """Hold the lock of an output folder, or of another path; the same thread can take it again.

    Args:
        part_of: folder of which `path` is a part that can be written while others write other parts. Its own lock
            must be free, and whoever takes that lock must find those of all parts free.

    Raises:
        UsageError: another process writes to the folder (names its host and process), or no lock can be made there.
    """
    target = resolved(path)
    if part_of is None:
        place = hidden(target, "")
        if target.is_dir() and not os.access(target.parent, os.W_OK):
            place = target / ".own"
    else:
        folder = resolved(part_of)
        place = hidden(folder / "-".join(target.relative_to(folder).parts), "")
    with _held(path, place, 0.0):
        parts = {p.with_name(_SUFFIX.sub("", p.name)) for p in target.glob(".*.writing*")}
        others = parts if part_of is None else {hidden(folder, "")}
        for other in sorted(others - {place}):
            with _held(path, other, _PATIENCE):
                pass
        yield


@contextmanager
def _held(shown: Path, place: Path, patience: float) -> Iterator[None]:
    """Hold the lock `<place>.writing` or, where the file system has no locks, `<place>.writing-soft`."""
    lock, again = _acquired(shown, place, patience)
    try:
        yield
    finally:
        if not again and not isinstance(lock, SoftFileLock):
            # Safe while the lock is held: a process that waits for the removed file notices and starts again.
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def _acquired(shown: Path, place: Path, patience: float) -> tuple[BaseFileLock, bool]:
    """The lock, and whether this thread already held it."""
    hard, soft = (place.with_name(place.name + suffix) for suffix in (".writing", ".writing-soft"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock: BaseFileLock = FileLock(hard, is_singleton=True, fallback_to_soft=False)
            again = lock.is_locked
            lock.acquire(timeout=patience)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            hard.unlink(missing_ok=True)
            lock = SoftFileLock(soft, is_singleton=True)
            again = lock.is_locked
            # A stale lock is taken over in the second attempt.
            lock.acquire(timeout=max(patience, 0.2))
    except Timeout as error:
        raise UsageError(f"{shown}: {_holder(Path(error.lock_file))}") from error
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        reason = f"no lock can be made in {place.parent} ({error.strerror})"
        raise UsageError(f"{shown}: {reason}. Make that folder writable, or choose another --out") from error
    if not again and not isinstance(lock, SoftFileLock):
        with suppress(OSError):  # The record only serves the message of others.
            hard.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8", errors="backslashreplace")
    return lock, again


def _holder(place: Path) -> str:
    """What is known of the process that holds a lock, and what to do."""
    soft = place.name.endswith("-soft")
    advice = "Wait for it, or choose another --out"
    try:
        process, host = place.read_text(encoding="utf-8").splitlines()[:2]
        host = host.partition("?")[0]
        since = datetime.fromtimestamp(place.stat().st_mtime).astimezone().isoformat(" ", "seconds")
        who = f"process {process} on {host} has been writing to this folder since {since}"
    except (OSError, ValueError):
        who = "another process writes to this folder"
    return f"{who}. {advice}" + (f"; if that process no longer runs, delete {place}" if soft else "")
