"""A command of `mrpipe`, as the entry-point group `mrpipe.commands` declares it, and how it ends.

Signals that end a process become exceptions, so that temporary files are removed and child processes end.
"""

import math
import signal
import threading
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from mrpipe.errors import MrpipeError, StorageError, UsageError
from mrpipe.reading import refusal_of

# As a shell reports a program that ends by SIGPIPE.
_BROKEN_PIPE = 141
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PAUSE = 2.0  # seconds


class Interrupted(KeyboardInterrupt):
    """One of `SIGNALS` has arrived; `exit_code` is the one with which a shell reports it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


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


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` at a signal, unless the signal is ignored (as by nohup) or handled by the caller."""
    last = -math.inf

    def stop(number: int, frame: object) -> None:
        nonlocal last
        # A parent and its process group often send a signal twice: the second one must not stop the clean-up.
        if time.monotonic() - last >= _PAUSE:
            last = time.monotonic()
            raise Interrupted(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    in_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop) for n in SIGNALS if in_main and signal.getsignal(n) in usual}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
