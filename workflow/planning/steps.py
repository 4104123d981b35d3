"""Output of `mrpipe run`: a line per finished step with the time left, and failed steps with the end of their logs.

A step is a job that does something; Snakemake's own messages are only in its log file.
"""

import logging
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from .progress import TAIL_LINES, duration

# Rule → its work in words; in braces, wildcards.
TEXTS = {
    "simulate": "simulated export",
    "check": "check of the export",
    "cohort": "cohort and labels",
    "prepare": "{modality}, part {part} of {total}",
    "ingest": "{modality} features",
    "image_qc": "quality control of the images",
    "samples": "sample table",
    "split": "split {scheme}",
    "seal": "sealed store",
    "verify": "verification of the store",
    "mask": "simulated missingness {mask}",
    "settings": "check of the settings",
    "suite_settings": "check of the settings",
    "search": "hyper-parameter search of {method}",
    "train": "training of {method}, seed {seed}",
    "evaluate": "evaluation of {method}, seed {seed}",
    "cost": "cost of {method}",
    "render": "tables and figures",
    "compare": "comparison with the published values",
    "suite_report": "report",
    "report_page": "report",
}
# Part of the remaining steps whose run time must be known for an estimate.
KNOWN = 0.8
# Errors that follow a failed step.
_EXPLAINED = ("CalledProcessError in file", "Exiting because a job execution failed", "At least one job did not")


@dataclass(frozen=True)
class Step:
    """A job: its rule, and its wildcards in the user's terms."""

    rule: str
    values: Mapping[str, str]

    @classmethod
    def of(cls, rule: str, wildcards: Mapping[str, str]) -> "Step":
        """A step in the user's terms: parts are counted from 1, and a cell of suites has the name of its method."""
        values = dict(wildcards)
        if "part" in values:
            values["part"] = str(int(values["part"]) + 1)
        if "method" in values:
            values["method"] = re.sub("-[0-9a-f]{8}$", "", values["method"])
        return cls(rule, values)

    def __str__(self) -> str:
        text = TEXTS.get(self.rule, self.rule.replace("_", " ")).format_map(self.values)
        return f"{self._place}: {text}" if self._place else text

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """Keys of the steps whose run time resembles that of this one, most similar first."""
        content = self.values.get("method") or self.values.get("modality") or ""
        return [(self.rule, self._place, content), (self.rule, content), (self.rule,)]

    @property
    def _place(self) -> str:
        return next((self.values[name] for name in ("dataset", "experiment", "suite") if name in self.values), "")


class Steps(logging.Handler):
    """Log handler for Snakemake that prints a line for each step that finishes or fails.

    Args:
        steps: job id → step, for the jobs of this run.
        quiet: print failed steps only.
    """

    def __init__(self, steps: Mapping[int, Step], *, quiet: bool, clock: Callable[[], float] = time.time):
        super().__init__()
        self._steps, self._quiet, self._clock = dict(steps), quiet, clock
        self._begun: dict[int, float] = {}
        self._done: set[int] = set()
        self._failed: set[int] = set()
        self._interrupted = False
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
        self._total = 0.0

    def __str__(self) -> str:
        return f"{len(self._steps)} steps"

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of Snakemake's log."""
        event = str(getattr(record, "event", ""))
        self._interrupted |= "on user request" in record.getMessage()
        job = getattr(record, "job_id" if event == "job_finished" else "jobid", None)
        if job not in self._steps:
            return
        if event == "job_info":
            self._begun[job] = self._clock()
        elif event == "job_finished":
            self._failed.discard(job)  # it was retried
            self._done.add(job)
            line = self._finished(job)
            if not self._quiet:
                print(line, file=sys.stderr, flush=True)
        elif event == "job_error" and not self._interrupted:
            self._failed.add(job)
            logs = self._end_of_log(job, map(Path, getattr(record, "log", ())))
            print(f"FAILED  {self._steps[job]}", *logs, sep="\n", file=sys.stderr, flush=True)

    def _finished(self, job: int) -> str:
        seconds = self._clock() - self._begun.get(job, self._clock())
        self._total += seconds
        for kind in self._steps[job].kinds:
            self._seconds[kind].append(seconds)
        left = self.seconds_left()
        line = f"[{len(self._done)}/{len(self._steps)}] {self._steps[job]}, {duration(seconds)}"
        return line if left is None else f"{line}; about {duration(left)} left"

    def seconds_left(self) -> float | None:
        """Estimated seconds left, from similar finished steps and the number of jobs that ran at a time so far."""
        middle = {kind: median(seconds) for kind, seconds in self._seconds.items()}
        left = [step for job, step in self._steps.items() if job not in self._done]
        known = [next((middle[kind] for kind in step.kinds if kind in middle), None) for step in left]
        found = [seconds for seconds in known if seconds is not None]
        if not found or len(found) < KNOWN * len(left):
            return None
        at_a_time = self._total / max(self._clock() - min(self._begun.values(), default=0.0), 1e-9)
        return fmean(found) * len(left) / max(at_a_time, 1e-9)

    def _end_of_log(self, job: int, logs: Iterable[Path]) -> list[str]:
        """Path and last lines of the first log that this job has written; jobs of a cluster may leave none."""
        since = self._begun.get(job, 0.0) - 2  # file systems store times with a lower resolution
        for log in logs:
            if log.is_file() and log.stat().st_mtime >= since and log.stat().st_size:
                lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
                return [f"    {log}:", *(f"    {line}" for line in lines[-TAIL_LINES:])]
        return []

    def ending(self, log: str) -> str:
        """Last message of a run that did not succeed."""
        state = f"{len(self._done)} of {len(self._steps)} steps finished"
        if self._failed:
            names = ", ".join(str(self._steps[job]) for job in sorted(self._failed)[:3])
            more = f" and {len(self._failed) - 3} more" if len(self._failed) > 3 else ""
            state = f"the run failed at {names}{more}; {state}. Full log: {log}\nCorrect the cause, then run"
        else:
            state = f"the run was interrupted; {state}. Full log: {log}\nRun"
        return f"mrpipe run: {state} the same command again: it continues with the unfinished steps."


def shown(record: logging.LogRecord) -> bool:
    """Whether a message of Snakemake's is still printed: warnings, errors that no step explains, nothing to do."""
    text, event = record.getMessage(), str(getattr(record, "event", ""))
    explained = event in ("job_error", "group_error") or any(words in text for words in _EXPLAINED)
    return text.startswith("Nothing to be done") or (record.levelno >= logging.WARNING and not explained)
