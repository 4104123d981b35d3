"""Tables that a step has read from an export, kept in the work folder so that later steps do not read them again."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

from mrpipe.raw import sha256
from mrpipe.store.parquet import replacing, write_text

# The folder, and whether it is the work folder.
_FOLDER: ContextVar[tuple[Path, bool] | None] = ContextVar("folder", default=None)


@contextmanager
def keeping(folder: Path | None = None) -> Iterator[None]:
    """Keep tables in a folder; without one, in a temporary folder unless a caller has set one."""
    if folder is None and _FOLDER.get() is not None:
        yield
        return
    context: AbstractContextManager[str | Path] = nullcontext(folder) if folder else tempfile.TemporaryDirectory()
    with context as used:
        token = _FOLDER.set((Path(used), folder is not None))
        try:
            yield
        finally:
            _FOLDER.reset(token)


def place(files: Iterable[Path], *key: object, lasting: bool = False) -> Path | None:
    """Path for the content of files in their present state; None outside `keeping`.

    Args:
        key: what else determines the content, such as the columns.
        lasting: only in a work folder, for tables that are too large for a temporary one.
    """
    folder, is_lasting = _FOLDER.get() or (None, False)
    if folder is None or (lasting and not is_lasting):
        return None
    state = [(os.path.abspath(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return folder / f"{hashlib.sha256(repr((state, key)).encode()).hexdigest()[:24]}.parquet"


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically, with its SHA-256 beside it."""
    with replacing(path) as temporary:
        write(temporary)
    write_text(path.with_suffix(".sha256"), sha256(path))


def is_kept(path: Path | None) -> bool:
    """Whether the file is there and unchanged; a damaged one is not used."""
    recorded = path.with_suffix(".sha256") if path else None
    return bool(path and recorded and path.is_file() and recorded.is_file() and recorded.read_text() == sha256(path))
