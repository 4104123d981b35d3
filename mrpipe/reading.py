"""The border to libraries that read files: any exception becomes an error that names the file and the remedy."""

import errno
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpipe.errors import DataError, Fault, MissingExtraError, StorageError, reason

if TYPE_CHECKING:
    import polars as pl

AGAIN = "The file is damaged or truncated: download it again."
RUN_AGAIN = "The file is damaged, or another version wrote it: remove the run folder and run the same command again."
_SPACE = "Free some space, then run the same command again."
_ACCESS = ("no permission", "Ask the owner of the file or folder for access, or choose another path.")
_FILES = ("too many open files", "Raise the limit, e.g. ulimit -n 4096.")
# Errors of disks and systems: reason and remedy.
REFUSALS: dict[int, tuple[str, str]] = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), _ACCESS),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _FILES),
    errno.EROFS: ("the file system is read-only", "Choose a folder that can be written to."),
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the disk quota is used up", _SPACE),
    errno.EFBIG: ("the file is larger than the system allows", "Raise the limit (ulimit -f), or use another disk."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter path or name."),
    errno.ELOOP: ("a symbolic link leads to itself", "Replace the link by the file or folder."),
    errno.EIO: ("the disk reports an input/output error", "Check the disk, or copy the files to another one."),
    errno.ESTALE: ("the network file system lost the file", "Run the same command again."),
    errno.ENOMEM: ("not enough memory", "Use a machine with more memory."),
}
_MAX_JSON = 2**25  # bytes
# Libraries that are not written in Python mention the number in their messages.
_NUMBER = re.compile(r"\b(?:os error|errno)\W{0,4}(\d+)", re.IGNORECASE)
_SHORTAGE = re.compile("out of memory|can.t allocate memory|not enough memory")


def refusal_of(error: object) -> tuple[int, str, str] | None:
    """Number, reason and remedy if the disk or the system caused an exception, rather than the content of a file."""
    number, text = getattr(error, "errno", None), str(error) if isinstance(error, Exception) else ""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _SHORTAGE.search(text)):
        number = errno.ENOMEM
    elif number is None and (match := _NUMBER.search(text)):
        number = int(match[1])
    elif number is None and isinstance(error, PermissionError):
        number = errno.EACCES
    return (number, *REFUSALS[number]) if number in REFUSALS else None


def unreadable(
    error: object, shown_as: str, expected: str, fix: str = AGAIN, *, column: str | None = None, path: object = ""
) -> DataError:
    """The error for a file that cannot be read completely; `error` is the exception, or a reason.

    Args:
        path: name of the file in messages of the library, which is replaced by `shown_as`.
    """
    number, refused, advice = refusal_of(error) or (None, "", "")
    if number not in (None, errno.ENOMEM):
        refused += " to read it" * (number in (errno.EACCES, errno.EPERM))
        return StorageError(Fault(file=shown_as, expected="a readable file", found=refused, fix=advice))
    found = reason(error).replace(str(path) or "\0", shown_as)
    if isinstance(error, FileNotFoundError):
        found, fix = "no such file", "" if fix in (AGAIN, RUN_AGAIN) else fix
    elif isinstance(error, IsADirectoryError):
        found, fix = "a folder", ""
    elif number == errno.ENOMEM:
        found, fix = "more than the available memory", "Use a machine with more memory; a small file is damaged."
    elif isinstance(error, LookupError | TypeError | AttributeError):
        found = f"unreadable data ({type(error).__name__}: {found})"
    else:  # jsonschema reports the place
        found = f"unreadable data ({': '.join(filter(None, [getattr(error, 'json_path', ''), found]))})"
    return DataError(Fault(file=shown_as, column=column, expected=expected, found=found, fix=fix))


@contextmanager
def reading(
    shown_as: Path | str, expected: str, fix: str = AGAIN, *, column: str | None = None, path: object = ""
) -> Iterator[None]:
    """Context of code that reads a file from outside, or its part `column`; `path` as for `unreadable`.

    Damaged bytes can raise any exception of the libraries, also panics of polars, which are no `Exception`.

    Raises:
        DataError: any other exception was raised in the context, also a UsageError for a setting in the file.
        StorageError: the disk or the system refused to read the file.
    """
    if isinstance(shown_as, Path) and (shown_as.is_fifo() or shown_as.is_char_device()):
        raise DataError(Fault(file=str(shown_as), expected="a file", found="a pipe or a device, which may never end"))
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise unreadable(error, str(shown_as), expected, fix, column=column, path=path) from error


def read_json(
    path: Path, expected: str = "a JSON object", fix: str = RUN_AGAIN, *, keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Content of a JSON file in UTF-8, an object with at least `keys`; see `reading` for the errors."""
    with reading(path, expected, fix):
        if (size := path.stat().st_size) > _MAX_JSON:
            raise ValueError(f"{size:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
        if not isinstance(value, dict):
            raise ValueError(f"a JSON {type(value).__name__}")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"no {', '.join(missing)}")
        return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; programs differ in which of two equal keys they take."""
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return values


def read_frame(path: Path, columns: Sequence[str] | None = None, fix: str = RUN_AGAIN) -> "pl.DataFrame":
    """Columns of a Parquet file that this package wrote (default: all); see `reading` for the errors."""
    import polars as pl

    with reading(path, "a complete Parquet file" + (f" with {', '.join(columns)}" if columns else ""), fix):
        return pl.read_parquet(path, columns=None if columns is None else list(columns))
