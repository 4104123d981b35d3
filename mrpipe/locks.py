"""Output places: which folders a command may write to, one writer per folder, temporary files, the user's cache.

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
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from mrpipe.errors import MrpipeError, UsageError
from mrpipe.reading import refusal_of

Claim = Callable[[Namespace], AbstractContextManager[None]]
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_LOCK = re.compile(r"\.writing(-soft)?$")
# Our files in a folder that otherwise counts as empty.
_OURS = re.compile(r"\..*\.(tmp|writing(-soft)?)|\.snakemake_timestamp")


def hidden(path: Path, suffix: str) -> Path:
    """Hidden name beside a path, `.NAME<suffix>`; a name of more than 180 bytes is shortened to its hash."""
    name = os.fsencode(path.name)
    return path.with_name(f".{path.name if len(name) <= 180 else hashlib.sha256(name).hexdigest()}{suffix}")


def resolved(path: Path) -> Path:
    """Absolute path without symlinks; a UsageError if the current folder was deleted or symlinks form a loop."""
    try:
        return path.resolve()
    except (FileNotFoundError, RuntimeError) as error:
        gone = "the current folder was deleted; change to another one"
        raise UsageError(gone if isinstance(error, FileNotFoundError) else str(error)) from error


def cache_folder() -> Path | None:
    """`MRPIPE_CACHE` (empty: no cache), otherwise `mrpipe` in `XDG_CACHE_HOME` or `~/.cache`; None without a home."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mrpipe")
    folder = os.path.expanduser(os.environ.get("MRPIPE_CACHE", usual))
    return Path(folder) if folder and not folder.startswith("~") else None


def temporary_name(path: Path) -> Path:
    """Unused name `.NAME.<host>-<process>-<random>.tmp`; removes files that killed processes of this host left."""
    host = platform.node()
    with suppress(OSError):  # Containers may share a host name, but each numbers its processes from 1.
        host += str(os.stat("/proc/self/ns/pid").st_ino)
    mark = f".{zlib.crc32(host.encode('utf-8', 'surrogateescape')):08x}-"
    for left in path.parent.glob(f"{glob.escape(hidden(path, mark).name)}*.tmp"):
        import psutil

        if not psutil.pid_exists(int(left.name.split("-")[-2])):
            left.unlink(missing_ok=True)
    return hidden(path, f"{mark}{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def writing(path: Path, *, part_of: Path | None = None, patience: float = 0.2) -> Iterator[None]:
    """Hold the lock of an output folder, or of another path; the same thread can take it again.

    Args:
        patience: seconds to wait for another process; −1: until it ends.
        part_of: folder of which `path` is a part that can be written while others write other parts. Its own lock
            must be free, and whoever takes that lock must find those of all parts free.

    Raises:
        UsageError: another process writes to the folder; names its host and process.
    """
    target, folder = resolved(path), resolved(part_of or path)
    place = hidden(target if part_of is None else folder / "-".join(target.relative_to(folder).parts), "")
    if part_of is None and target.is_dir() and not os.access(target.parent, os.W_OK):
        place = target / ".own"
    with _held(path, place, patience):
        parts = {p.with_name(_LOCK.sub("", p.name)) for p in target.glob(".*.writing*")}
        for other in sorted((parts if part_of is None else {hidden(folder, "")}) - {place}):
            with _held(path, other, patience=2.0):
                pass
        yield


@contextmanager
def _held(shown: Path, place: Path, patience: float) -> Iterator[None]:
    """Hold the lock `<place>.writing` or, where the file system has no locks, `<place>.writing-soft`."""
    lock: BaseFileLock = FileLock(f"{place}.writing", is_singleton=True)
    again = lock.is_locked
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            os.unlink(lock.lock_file)
            lock = SoftFileLock(f"{place}.writing-soft", is_singleton=True)
            again = lock.is_locked
            lock.acquire(timeout=patience)
    except Timeout as error:
        raise UsageError(f"{shown}: {_holder(Path(lock.lock_file))}, or choose another --out") from error
    except OSError as error:
        error.filename = str(place.parent)  # not the lock, which the user does not know
        raise
    mine = not again and not isinstance(lock, SoftFileLock)
    try:
        with suppress(OSError):  # For the messages of others; a soft lock contains the same.
            if mine:
                Path(lock.lock_file).write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # Safe while the lock is held: who waits for a removed file notices and starts again.
            if mine:
                os.unlink(lock.lock_file)
        lock.release()


def _holder(place: Path) -> str:
    """The process that holds a lock, and what to do."""
    who = "another process writes to this folder"
    with suppress(OSError, ValueError):
        process, host = place.read_text(encoding="utf-8").splitlines()[:2]
        since = datetime.fromtimestamp(place.stat().st_mtime).astimezone().isoformat(" ", "seconds")
        who = f"process {process} on {host.partition('?')[0]} has been writing to this folder since {since}"
    return f"{who}. Wait for it" + (f", delete {place} if it no longer runs" if place.name.endswith("-soft") else "")


def output_folder(what: str, marks: str | None, *inputs: str) -> Claim:
    """Claim of the folder in the argument `out`: it is checked before anything is done, and locked meanwhile.

    It must not be or contain the current or the home folder; be, contain or be inside of an input; be inside of a
    sealed store; or contain files, unless one matches `marks`.

    Args:
        what: the kind of folder, for messages.
        marks: patterns, separated by spaces, of files that such a folder has; None: it may contain any.
        inputs: arguments with folders that are only read: exports and stores.
    """
    return lambda args: _claimed(args, inputs, args.out, what, marks)


def output_file(*inputs: str, lock: Callable[[Path], Path] | None = None) -> Claim:
    """As `output_folder`, for a file, which is replaced as a whole; `lock` derives from it what else needs a lock."""
    return lambda args: _claimed(args, inputs, lock and lock(args.out))


@contextmanager
def _claimed(
    args: Namespace, inputs: Iterable[str], locked: Path | None, what: str = "", marks: str | None = None
) -> Iterator[None]:
    values = [v if isinstance(v, list) else [v] for v in (getattr(args, name) for name in inputs)]
    paths = [resolved(path) for value in values for path in value if path is not None]
    if args.out and (reason := next(_objections(resolved(args.out), paths, what, marks), None)):
        raise UsageError(f"{args.out} is not written, because it {reason}. Choose another --out")
    with nullcontext() if locked is None else writing(locked):
        try:
            yield
        except Exception as error:
            refusal = None if isinstance(error, MrpipeError) or getattr(error, "filename", None) else refusal_of(error)
            if refusal is None or refusal[0] not in _WRITE_ERRORS:
                raise
            # Libraries do not name the file.
            raise OSError(refusal[0], os.strerror(refusal[0]), str(args.out)) from error


def _objections(target: Path, inputs: Iterable[Path], what: str, marks: str | None) -> Iterator[str]:
    """Reasons not to write a folder (`what` is given) or a file."""
    for path in inputs:
        if target == path or path in target.parents or (what and target in path.parents):
            place = "is" if target == path else "is inside of" if path in target.parents else "contains"
            yield f"{place} {path}, which is only read"
    for store in target.parents:
        if (store / "manifest.json").is_file() and (store / "modalities").is_dir():
            yield f"is inside of the store {store}"
        elif store.is_file():
            yield f"is inside of the file {store}"
    if target.exists() and target.is_dir() != bool(what):
        yield "is a folder" if target.is_dir() else "is a file"
    elif what:
        for path in (resolved(Path()), resolved(Path(os.path.expanduser("~")))):
            if target == path or target in path.parents:
                yield f"is or contains {path}"
        names = [path.name for path in target.glob("*") if not _OURS.fullmatch(path.name)]
        if names and marks is not None and not any(True for mark in marks.split() for _ in target.glob(mark)):
            yield f"contains files, but is not {what}"
