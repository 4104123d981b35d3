"""Options of all commands that choose how much is printed, and the configuration of Python's `logging` for them.

Results go to stdout. Progress (INFO), details (DEBUG, with -v) and warnings go to stderr through the loggers of the
modules; without the command line, that is as a library, nothing is printed unless the caller configures `logging`.
"""

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence

from mrpipe.privacy import printable

PACKAGES = ("mrpipe", "moe_retriever", "mrpipe_planning")
_OPTIONS = ("-v", "--verbose", "-q", "--quiet", "--debug")


class _Stderr(logging.Handler):
    """Prints messages to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    name = "mrpipe"

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr, flush=True)


def add_output_options(parser: ArgumentParser) -> None:
    """Add -v, -q and --debug; the command's own options of these names, added later, replace them."""
    group = parser.add_argument_group("output")
    either = group.add_mutually_exclusive_group()
    either.add_argument("-v", "--verbose", action="store_true", help="print details as well")
    either.add_argument("-q", "--quiet", action="store_true", help="print only the result, warnings and errors")
    group.add_argument("--debug", action="store_true", help="print the traceback of an error (also MRPIPE_DEBUG=1)")


def command_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the output options that precede the command moved behind it."""
    n = next((i for i, word in enumerate(arguments) if word not in _OPTIONS), len(arguments))
    return [*arguments[n : n + 1], *arguments[:n], *arguments[n + 1 :]] if n < len(arguments) else []


def configure(options: Namespace) -> None:
    """Print the log messages of our packages from the requested level on, and the warnings of others."""
    root = logging.getLogger()
    root.handlers = [*(h for h in root.handlers if not isinstance(h, _Stderr)), _Stderr()]
    level = logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO
    for name in PACKAGES:
        logging.getLogger(name).setLevel(level)


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table: cells are neither markup nor control characters, and numbers are not wrapped.

    Columns of numbers are on the right; None is shown as –, and a large or small float with three significant digits.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Leave a broken pipe to the command line; rich would end the process with exit code 1."""
            raise BrokenPipeError

    cells = list(rows)
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, *column in zip(columns, *cells, strict=True):
        numeric = any(isinstance(v, int | float) for v in column) and not any(isinstance(v, str) for v in column)
        width = max(len(_shown(v)) for v in column) if numeric else None
        table.add_column(name, justify="right" if numeric else "left", min_width=width, overflow="fold")
    for row in cells:
        table.add_row(*(escape(printable(_shown(cell))) for cell in row))
    Output().print(table)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
