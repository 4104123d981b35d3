"""The command line: `mrpipe COMMAND ...`.

Exit codes: 0 success, 1 failure, 2 usage error, 3 invalid input data, 130 interrupted, 141 broken pipe.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import mrpipe
from mrpipe.cli.command import Command
from mrpipe.errors import SHOW_VALUES, MrpipeError, UsageError, did_you_mean
from mrpipe.privacy import printable

_WIDTH = 16
# As a shell reports a program that ends by SIGINT or SIGPIPE.
_INTERRUPTED, _BROKEN_PIPE = 130, 141


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
    """Text of `mrpipe --help`."""
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
    ]
    return "\n".join([*lines, "", "Exit codes: 0 success, 2 usage error, 3 invalid input data."])


def command_parser(name: str, command: Command) -> argparse.ArgumentParser:
    """Parser of one command."""
    description, epilog = (t() if callable(t) else t for t in (command.description, command.epilog))
    summary = command.summary[0].upper() + command.summary[1:]
    parser = argparse.ArgumentParser(
        prog=f"mrpipe {name}",
        description=f"{summary}.\n\n{description}".rstrip(),
        epilog=epilog or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    called = " ".join(["mrpipe", *arguments[:1]])
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except MrpipeError as error:
        print(printable(f"{called}: {error}"), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has left. The interpreter would report the rest of the buffer as an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        # A missing or unreadable path, a full disk; libraries raise OSErrors without a number for other reasons.
        if error.errno is None and not isinstance(error, FileNotFoundError | PermissionError):
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"{called}: {place}{error.strerror or error}", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print(f"{called}: interrupted", file=sys.stderr)
        return _INTERRUPTED


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
    if getattr(parsed, "show_values", False):
        os.environ[SHOW_VALUES] = "1"
    return command.run(parsed) or 0
