"""Progress bar of a scan with bytes per second, shown if progress is logged and stderr is a terminal."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)


@contextmanager
def scan_progress(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Progress of one table: a function of the position in bytes."""
    if not (sys.stderr.isatty() and _LOG.isEnabledFor(logging.INFO)):
        yield lambda done_bytes: None
        return
    from rich.console import Console
    from rich.progress import Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=max(total_bytes, 1))
        yield lambda done_bytes: progress.update(task, completed=done_bytes)
