"""Options of all commands that choose how much is printed, and the configuration of Python's `logging` for them.

Results go to stdout. Progress (INFO), details (DEBUG, with -v) and warnings go to stderr through the loggers of the
modules; without the command line, that is as a library, nothing is printed unless the caller configures `logging`.
"""

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

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
