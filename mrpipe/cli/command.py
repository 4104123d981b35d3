"""A command of `mrpipe`, as the entry-point group `mrpipe.commands` declares it, and how it ends."""

import signal
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from mrpipe.cli.signals import Interrupted
from mrpipe.errors import MrpipeError, StorageError, UsageError
from mrpipe.reading import refusal_of

# As a shell reports a program that ends by SIGPIPE.
_BROKEN_PIPE = 141


def unclaimed(arguments: Namespace) -> AbstractContextManager[None]:
    """Claim of a command without an output of its own."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        summary: one line in lower case for `mrpipe --help`.
        add_arguments: adds its arguments to a parser; must not import anything heavy.
        run: does the work; raises `MrpipeError` for errors that the user can fix. An int is the exit code.
        claim: checks and locks the command's output while it runs (`mrpipe.locks`).
        description, epilog: for its own `--help`; may be functions, which are called only then.
        passes_on: arguments after `--` are for another program; `run` finds them in `rest`.
        words: argument → the names that shell completion offers for it.
        step: one of the commands that the workflow runs one by one; listed last.
    """

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
    claim: Callable[[Namespace], AbstractContextManager[None]] = unclaimed
    description: str | Callable[[], str] = ""
    epilog: str | Callable[[], str] = ""
    words: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    step: bool = False
    passes_on: bool = False


def outcome(error: BaseException) -> tuple[str, int]:
    """Message and exit code of a command that an exception ended."""
    if isinstance(error, MrpipeError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        return f"interrupted ({stopped}); run the same command again to continue", stopped.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of a pipe (`| head`) has left
        return "", _BROKEN_PIPE
    place = f"{name}: " if isinstance(name := getattr(error, "filename", None), str | Path) else ""
    if refusal := refusal_of(error):
        return f"{place}{refusal[1]}. {refusal[2]}", StorageError.exit_code
    # Libraries raise OSErrors without a number for other reasons than a path that does not exist.
    if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError)):
        return f"{place}{error.strerror or error}", UsageError.exit_code
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = f" ({Path(at.filename).name}, line {at.lineno})"
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    hint = "This is a bug, please report it: --debug prints the traceback"
    return f"unexpected error: {type(error).__name__}: {reason}{place}. {hint}", MrpipeError.exit_code
