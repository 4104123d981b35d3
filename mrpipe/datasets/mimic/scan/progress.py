"""Progress bar of a scan with rows per second, shown if progress is logged and stderr is a terminal."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)


@contextmanager
def scan_progress(label: str, total_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """Progress of one table: a function of the position in bytes and the number of additional rows."""
    if not (sys.stderr.isatty() and _LOG.isEnabledFor(logging.INFO)):
        yield lambda done_bytes, rows: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
    n = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=max(total_bytes, 1), rate="")

        def advance(done_bytes: int, rows: int) -> None:
            nonlocal n
            n += rows
            elapsed = progress.tasks[task].elapsed or 0.0
            rate = f"{n / elapsed / 1e6:.1f} M rows/s" if elapsed > 0 else ""
            progress.update(task, completed=done_bytes, rate=rate)

        yield advance
