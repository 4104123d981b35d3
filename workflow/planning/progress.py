"""Progress of the cells of a workflow run: number finished, estimated time left, and failures.

A cell is a training run with its evaluation. Cells take most of the time, while Snakemake's own progress counts jobs
of every kind.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TextIO

from .runs import PlannedRun

TAIL_LINES = 12
STEPS = ("search", "train", "evaluate")


@dataclass(frozen=True)
class CellFolders:
    """Folders with the files of cells."""

    runs: Path
    logs: Path
    benchmarks: Path

    def finished(self, run: PlannedRun) -> Path:
        """The last file that a cell writes."""
        return self.runs / run.tested / "metrics.json"

    def log(self, run: PlannedRun, step: str) -> Path:
        """Log file of one step of a cell."""
        return self.logs / run.experiment / f"{self._name(run, step)}.log"

    def seconds(self, run: PlannedRun) -> float | None:
        """Run time of a finished cell without its search; None if a benchmark file is missing or damaged."""
        total = 0.0
        for step in ("evaluate",) if run.test else ("train", "evaluate"):
            path = self.benchmarks / run.experiment / f"{self._name(run, step)}.jsonl"
            try:
                total += float(json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["s"])
            except (OSError, ValueError, LookupError, TypeError):
                return None
        return total

    def _name(self, run: PlannedRun, step: str) -> str:
        if step == "search":
            return f"{run.label}_search"
        folder = f"tests/{run.test.name}/" if run.test and step == "evaluate" else ""
        return f"{run.label}_seed{run.seed}_{folder}{step}"


class Cells(logging.Handler):
    """Log handler for Snakemake that prints a progress line whenever a cell of the workflow run finishes.

    Args:
        to_do: id of the evaluation job → its cell.
        there: cells that were already finished.
        places: folders with the files of cells.
        out: stream for the progress lines; default: stderr.
    """

    def __init__(
        self,
        to_do: Mapping[int, PlannedRun],
        there: Iterable[PlannedRun],
        places: CellFolders,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ):
        super().__init__()
        self.places, self._clock = places, clock
        self._to_do, self._out = dict(to_do), out
        self._there = list(there)
        self._started = clock()
        self._done: list[PlannedRun] = []
        self._seconds: dict[str, float] = {}
        self._first: float | None = None
        for run in self._there:
            self._note(run)

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of Snakemake's log; records of jobs other than evaluations are ignored."""
        if str(getattr(record, "event", "")) != "job_finished":
            return
        run = self._to_do.get(getattr(record, "job_id", -1))
        if run is not None:
            self._done.append(run)
            seconds = self._note(run)
            if self._first is None:
                self._first = self._clock() - seconds
            print(self.line(), file=self._out or sys.stderr, flush=True)

    def _note(self, run: PlannedRun) -> float:
        seconds = self.places.seconds(run)
        if seconds is not None:
            self._seconds[run.tested] = seconds
        return seconds or 0.0

    def line(self) -> str:
        """Progress line: number of finished cells and the estimated time left."""
        done, total = len(self._there) + len(self._done), len(self._there) + len(self._to_do)
        text = f"cells: {done} of {total} done"
        left = self.seconds_left()
        return text if left is None else f"{text}, about {duration(left)} left"

    def seconds_left(self) -> float | None:
        """Estimated seconds left, from the run times of finished cells of the same method and the pace of this run."""
        finished = {run.tested for run in self._done}
        left = [run for run in self._to_do.values() if run.tested not in finished]
        if not left or self._first is None:
            return None
        of_run = sum(self._seconds.get(run.tested, 0.0) for run in self._done)
        pace = max(of_run / max(self._clock() - self._first, 1e-9), 1e-9)
        return sum(self._expected(run) for run in left) / pace

    def _expected(self, run: PlannedRun) -> float:
        seconds = self._seconds
        everything = [(o, seconds[o.tested]) for o in (*self._there, *self._done) if o.tested in seconds]
        alike = [s for other, s in everything if (other.store, other.method) == (run.store, run.method)]
        method = [s for other, s in everything if other.method == run.method]
        known = alike or method or [s for _, s in everything]
        return median(known) if known else 0.0

    def unfinished(self) -> list[PlannedRun]:
        """Cells of this run without results; outdated results of an earlier run do not count."""
        return [run for run in self._to_do.values() if not self._fresh(self.places.finished(run))]

    def failures(self) -> str:
        """The failed cells with the last lines of their logs, and the number of cells that did not start."""
        failed: dict[Path, list[str]] = {}
        not_begun = 0
        for run in self.unfinished():
            begun = [log for step in STEPS if self._fresh(log := self.places.log(run, step))]
            if begun:
                failed.setdefault(begun[-1], []).append(run.tested)
            else:
                not_begun += 1
        lines = []
        for log, folders in failed.items():
            text = log.read_text(encoding="utf-8", errors="backslashreplace").strip()
            lines += [f"cell failed: {folder}" for folder in folders] + [f"    {log}:"]
            lines += [f"    {line}" for line in text.splitlines()[-TAIL_LINES:]] or ["    (the log is empty)"]
        if not_begun:
            lines.append(f"{not_begun} cells did not start: a job that they depend on failed, or the run was stopped")
        return "\n".join(lines)

    def _fresh(self, path: Path) -> bool:
        # File systems store times with a lower resolution than the clock.
        return path.is_file() and path.stat().st_mtime >= self._started - 2


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
