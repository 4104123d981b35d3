"""Progress bar of a scan with rows per second, shown only if stderr is a terminal; and log lines on stderr."""

from __future__ import annotations

import sys
from types import TracebackType


class ScanProgress:
    """Context manager for the progress of one file; call `advance` after each block."""

    def __init__(self, label: str, total_bytes: int):
        self._rows = 0
        self._progress = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task(label, total=max(total_bytes, 1), rate="")

    def __enter__(self) -> ScanProgress:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, done_bytes: int, rows: int) -> None:
        """Report `rows` additional rows, and the position in the file."""
        self._rows += rows
        if self._progress is not None:
            elapsed = self._progress.tasks[self._task].elapsed or 0.0
            rate = f"{self._rows / elapsed / 1e6:.1f} M rows/s" if elapsed > 0 else ""
            self._progress.update(self._task, completed=done_bytes, rate=rate)


def log(message: str) -> None:
    """Print one line to stderr."""
    print(message, file=sys.stderr, flush=True)
