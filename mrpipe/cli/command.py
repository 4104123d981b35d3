"""A command of `mrpipe`, as the entry-point group `mrpipe.commands` declares it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field


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
