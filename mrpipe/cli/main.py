"""The command line: `mrpipe COMMAND ...`.

Exit codes: 0 success, 1 failure or unexpected error, 2 usage error, 3 invalid input data, 4 disk, permission or memory,
128 + n ended by signal n (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP), 141 broken pipe.
"""

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import mrpipe
from mrpipe.cli.command import Command, interruptible, outcome
from mrpipe.cli.output import add_output_options, command_first, configure
from mrpipe.errors import SHOW_VALUES, MrpipeError, UsageError, did_you_mean
from mrpipe.privacy import printable

_LOG = logging.getLogger(__name__)
_WIDTH = 16


def find_command(name: str) -> Command | None:
    """A command by its name, ours first; only its own module is imported."""
    from mrpipe.cli.pipeline import COMMANDS
    from mrpipe.plugins import entry_points

    if name in COMMANDS:
        return COMMANDS[name]
    declared = entry_points("mrpipe.commands").get(name)
    if declared is None:
        return None
    command = declared.load()
    if not isinstance(command, Command):
        raise TypeError(f"entry point {declared.name} = {declared.value} is not a mrpipe.cli.command.Command")
    return command


def command_names() -> list[str]:
    """All commands, in the order in which `mrpipe --help` lists them."""
    from mrpipe.cli.pipeline import COMMANDS
    from mrpipe.plugins import entry_points

    return list(dict.fromkeys([*COMMANDS, *entry_points("mrpipe.commands")]))


def program_help() -> str:
    from mrpipe.cli.help import GROUPS, PROGRAM

    commands = {name: command for name in command_names() if (command := find_command(name))}
    groups = {title: [n for n in names if n in commands] for title, names in GROUPS.items()}
    grouped = {n for names in groups.values() for n in names}
    groups["More commands"] = [n for n, c in commands.items() if n not in grouped and not c.step]
    groups["Single steps, as the workflow runs them"] = [n for n, c in commands.items() if n not in grouped and c.step]
    lines = ["usage: mrpipe COMMAND ...    (help on a command: mrpipe COMMAND --help)", "", PROGRAM]
    for title, names in groups.items():
        if names:
            lines += ["", f"{title}:", *(f"  {n:<{_WIDTH}} {commands[n].summary}" for n in names)]
    lines += [
        "",
        "Options:",
        f"  {'--version':<{_WIDTH}} print the version",
        f"  {'-h, --help':<{_WIDTH}} print this help",
        "With any command, before or after its name:",
        f"  {'-v, --verbose':<{_WIDTH}} print details as well",
        f"  {'-q, --quiet':<{_WIDTH}} print only the result, warnings and errors",
        f"  {'--debug':<{_WIDTH}} print the traceback of an error (also MRPIPE_DEBUG=1)",
    ]
    codes = "0 success, 1 unexpected error, 2 usage error, 3 invalid input data, 4 disk, permission or memory,"
    return "\n".join([*lines, "", f"Exit codes: {codes}", "128 + n ended by signal n."])


def command_parser(
    name: str, command: Command, make: Callable[..., argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Parser of one command; `make` is called with the settings of an `ArgumentParser`."""
    from mrpipe.cli.help import CLOSING

    description, epilog = (t() if callable(t) else t for t in (command.description, command.epilog))
    summary = command.summary[0].upper() + command.summary[1:]
    about, closing = f"{summary}.\n\n{description}".rstrip(), f"{epilog}\n\n{CLOSING.get(name, '')}".strip() or None
    form = argparse.RawDescriptionHelpFormatter
    parser = make(
        prog=f"mrpipe {name}", description=about, epilog=closing, formatter_class=form, conflict_handler="resolve"
    )
    add_output_options(parser)
    command.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = command_first(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]
    for name in ("stdout", "stderr"):  # the caller may have closed them (>&-)
        setattr(sys, name, getattr(sys, name) or open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may not display all characters of a message
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # panics of polars are no Exception
        if debug or (os.environ.get("MRPIPE_DEBUG") and not isinstance(error, MrpipeError | KeyboardInterrupt)):
            traceback.print_exception(error)
        message, code = outcome(error)
        try:
            sys.stdout.flush()
        except OSError:  # discard output that cannot be written; the interpreter would report it as another error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if message:
            print(printable(" ".join(["mrpipe", *arguments[:1]]) + f": {message}"), file=sys.stderr)
        return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(program_help())
        return 0 if arguments else UsageError.exit_code
    if arguments[0] == "--version":
        print(f"mrpipe {mrpipe.__version__}")
        return 0
    name = arguments[0]
    command = find_command(name)
    if command is None:
        hint = did_you_mean(name, command_names(), otherwise="`mrpipe --help` lists all commands.")
        print(f"mrpipe: unknown command {name!r}. {hint}", file=sys.stderr)
        return UsageError.exit_code
    parser, own = command_parser(name, command), arguments[1:]
    rest: list[str] = []
    if command.passes_on and "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    parsed = parser.parse_args(own)
    parsed.rest = rest
    configure(parsed)
    _LOG.debug("mrpipe %s, Python %s", mrpipe.__version__, sys.version.split()[0])
    if getattr(parsed, "show_values", False):
        os.environ[SHOW_VALUES] = "1"
    import polars  # noqa: F401 - its handler of SIGINT, which restarts system calls, must not replace ours

    with interruptible(), command.claim(parsed):
        return command.run(parsed) or 0
