"""`mrpipe completion`: shell completion of commands, options, datasets, methods, files and folders."""

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from mrpipe.cli.command import Command
from mrpipe.cli.output import add_output_options

SHELLS = ("bash", "zsh", "tcsh")


def completion_parser() -> ArgumentParser:
    """A parser of all commands, with what completes each argument."""
    import shtab

    from mrpipe.cli.main import command_names, command_parser, find_command

    root = ArgumentParser(prog="mrpipe")
    root.add_argument("--version", action="store_true", help="print the version")
    add_output_options(root)
    commands = root.add_subparsers()
    for name in command_names():
        if (command := find_command(name)) is None:
            continue
        parser = command_parser(name, command, partial(commands.add_parser, name, help=command.summary))
        for action in parser._actions:  # argparse has no public list of arguments
            if action.dest in command.words:
                action.choices = command.words[action.dest]()
            elif action.type is Path:
                text = f"{action.dest} {action.metavar} {action.help}".lower()
                folder = any(word in text for word in ("folder", "store", "dir")) and "file" not in text
                action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
    return root


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of: {', '.join(SHELLS)}")


def _run(args: Namespace) -> None:
    import shtab

    print(shtab.complete(completion_parser(), args.shell))


command = Command(
    summary="print the script of the shell completion",
    description="Completes commands, options, datasets, methods, files and folders. Install it once, then open a new\n"
    "shell; print it again after a package has added datasets or methods.",
    epilog="bash:  mrpipe completion bash > ~/.local/share/bash-completion/completions/mrpipe\n"
    "zsh:   mrpipe completion zsh > ~/.zfunc/_mrpipe     (with fpath+=~/.zfunc before compinit)\n"
    "tcsh:  mrpipe completion tcsh >> ~/.tcshrc\n\n"
    "next:  mrpipe --help lists all commands",
    add_arguments=_add_arguments,
    run=_run,
)
