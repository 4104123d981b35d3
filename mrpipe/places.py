"""Output places: what a command may write to, checked and locked by the command line before anything is done."""

import errno
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from mrpipe.errors import MrpipeError, UsageError
from mrpipe.locks import resolved, writing
from mrpipe.reading import refusal_of

Claim = Callable[[Namespace], AbstractContextManager[None]]
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def require_place(out: Path, inputs: Iterable[Path] = (), *, what: str = "", marks: str | None = None) -> None:
    """Refuse an output that would damage files which the command does not own.

    Args:
        inputs: folders that are only read: exports and stores.
        what: the kind of folder that the command writes, for messages; empty: `out` is a single file.
        marks: patterns, separated by spaces, of which a non-empty folder of that kind matches one; None: any folder.

    Raises:
        UsageError: `out` is or contains the current or the home folder; is, contains or is inside of an input; is
            inside of a sealed store; or is something else than the command writes.
    """
    if reason := next(_objections(resolved(out), [resolved(path) for path in inputs], what, marks), None):
        raise UsageError(f"{out} is not written, because it {reason}. Choose another --out")


def _objections(target: Path, inputs: Iterable[Path], what: str, marks: str | None) -> Iterator[str]:
    for path in inputs:
        if target == path or path in target.parents:
            yield f"is {'' if target == path else 'inside of '}{path}, which is only read"
        if what and target in path.parents:
            yield f"contains {path}, which is only read"
    for store in target.parents:
        if (store / "manifest.json").is_file() and (store / "modalities").is_dir():
            yield f"is inside of the store {store}"
    if not what:
        if target.is_dir():
            yield "is a folder"
        return
    for path, name in ((resolved(Path()), "current"), (_home(), "home")):
        if path is not None and (target == path or target in path.parents):
            yield f"is or contains the {name} folder"
    if target.exists() and not target.is_dir():
        yield "is a file"
    elif target.is_dir() and marks is not None and not _is_ours(target, marks):
        yield f"contains files, but is not {what}"


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except (OSError, RuntimeError):  # No home, as users of containers may have.
        return None


def _is_ours(folder: Path, marks: str) -> bool:
    """Whether a folder is empty, apart from our hidden files, or has a file that marks it as one of ours."""
    own = re.compile(r"\..*\.(tmp|writing(-soft)?)|\.snakemake_timestamp")
    foreign = any(not own.fullmatch(path.name) for path in folder.iterdir())
    return not foreign or any(True for pattern in marks.split() for _ in folder.glob(pattern))


def _paths(args: Namespace, names: Iterable[str]) -> list[Path]:
    """The paths of some arguments, each of which is a path, a list of paths or None."""
    values = (getattr(args, name) for name in names)
    return [path for value in values for path in (value if isinstance(value, list) else [value]) if path is not None]


@contextmanager
def _naming(out: Path | None) -> Iterator[None]:
    """Name the output in errors of writing in which libraries do not name a file."""
    try:
        yield
    except Exception as error:
        refusal = None if isinstance(error, MrpipeError) or getattr(error, "filename", None) else refusal_of(error)
        if refusal is None or refusal[0] not in _WRITING:
            raise
        raise OSError(refusal[0], os.strerror(refusal[0]), str(out)) from error


def folder(what: str, marks: str | None, *inputs: str, out: str = "out") -> Claim:
    """Claim of the output folder in argument `out`: see `require_place`; nobody else may write to it meanwhile."""

    @contextmanager
    def claim(args: Namespace) -> Iterator[None]:
        path = getattr(args, out)
        require_place(path, _paths(args, inputs), what=what, marks=marks)
        with writing(path), _naming(path):
            yield

    return claim


def file(*inputs: str, shared: Callable[[Path], Path] | None = None) -> Claim:
    """Claim of the output file `out`, which is replaced as a whole; `shared` is what else is written with a lock."""

    @contextmanager
    def claim(args: Namespace) -> Iterator[None]:
        if args.out is not None:
            require_place(args.out, _paths(args, inputs))
        with nullcontext() if shared is None else writing(shared(args.out)), _naming(args.out):
            yield

    return claim
