"""Progress of a workflow run: finished and failed steps, and the estimated time left.

A step is a job that does something. `mrpipe run` prints a line for each one and leaves Snakemake's messages to its log
file; plain Snakemake prints its own. Both print the end of the log of a failed step.
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

import yaml

from moe_retriever.catalogue import method_title
from moe_retriever.suites.published import NAMES

from .batches import CellBatch

TEXTS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("steps.yaml").read_text(encoding="utf-8"))
TAIL_LINES = 12
# Part of the remaining steps whose run time must be known for an estimate.
KNOWN = 0.6
# Errors that follow a failed step.
_EXPLAINED = ("CalledProcessError in file", "Exiting because a job execution failed", "At least one job did not")


@dataclass(frozen=True)
class PlannedStep:
    """A job: its rule and wildcards; in words, parts are counted from 1, and methods and masks have displayed names."""

    rule: str
    wildcards: Mapping[str, str]

    def __str__(self) -> str:
        part = str(int(self.wildcards.get("part", 0)) + 1)
        method = method_title(re.sub(r"(-[0-9a-f]{8})?(-tuned\d+)?$", "", self._get("method")))
        mechanism, *settings = self._get("mask").split("-")
        mask = ", ".join([NAMES["mechanisms"].get(mechanism, [mechanism])[0], *settings])
        values = {**self.wildcards, "part": part, "method": method, "mask": mask}
        text = TEXTS.get(self.rule, self.rule.replace("_", " ")).format_map(values)
        place = self._get("dataset", "experiment", "suite")
        return f"{place}: {text}" if place else text

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """Keys of the steps whose run time resembles that of this one, most similar first."""
        content = self._get("method", "modality")
        return [(self.rule, self._get("dataset", "experiment"), content), (self.rule, content), (self.rule,)]

    def _get(self, *names: str) -> str:
        return next((self.wildcards[name] for name in names if name in self.wildcards), "")


class Steps(logging.Handler):
    """Log handler for Snakemake that prints finished and failed steps.

    Args:
        steps: job id → step, for the jobs of this run.
        batches: job id → cells of suites.
        output: steps to print finished steps as well.
    """

    def __init__(
        self,
        steps: Mapping[int, PlannedStep],
        batches: Mapping[int, CellBatch],
        *,
        output: str = "",
        clock: Callable[[], float] = time.time,
    ):
        super().__init__()
        self.steps, self._batches, self._output, self._clock = steps, batches, output, clock
        self._begun: dict[int, float] = {}
        self._done: dict[int, float] = {}
        self._failed: dict[int, str] = {}
        self._interrupted = False
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        """Handle a record of Snakemake's log; those of other jobs are ignored."""
        event = str(getattr(record, "event", ""))
        self._interrupted |= "on user request" in record.getMessage()
        job: int = getattr(record, "job_id" if event == "job_finished" else "jobid", -1)
        if job not in self.steps:
            return
        text = ""
        if event == "job_info":
            self._begun[job] = self._clock()
        elif event == "job_finished":
            text = self._finished(job)
        elif event == "job_error" and not self._interrupted:
            self._failed[job] = self._end_of_log(job, map(Path, getattr(record, "log", ())))
            text = f"FAILED  {self.steps[job]}\n{self._failed[job]}".rstrip()
        if text:
            print(text, file=sys.stderr, flush=True)

    def _finished(self, job: int) -> str:
        """Record the run time; the line to print."""
        self._failed.pop(job, None)  # it was retried
        begun = self._begun.get(job)  # the SLURM plugin does not report when a job begins
        self._done[job] = seconds = 0.0 if begun is None else self._clock() - begun
        for kind in self.steps[job].kinds if begun is not None else ():
            self._seconds[kind].append(seconds)
        if self._output != "steps":
            return ""
        took = "" if begun is None else f", {_duration(seconds)}"
        left = self.seconds_left()
        about = "" if left is None else f"; about {_duration(left)} left"
        return f"[{len(self._done)}/{len(self.steps)}] {self.steps[job]}{took}{about}"

    def seconds_left(self) -> float | None:
        """Estimated seconds left, from similar finished steps and the number of jobs that ran at a time so far."""
        middle = {kind: median(seconds) for kind, seconds in self._seconds.items()}
        left = [step for job, step in self.steps.items() if job not in self._done]
        known = [next((middle[kind] for kind in step.kinds if kind in middle), None) for step in left]
        found = [seconds for seconds in known if seconds is not None]
        if not found or len(found) < KNOWN * len(left):
            return None
        at_a_time = sum(self._done.values()) / max(self._clock() - min(self._begun.values()), 1e-9)
        return fmean(found) * len(left) / max(at_a_time, 1e-9)

    def _end_of_log(self, job: int, logs: Iterable[Path]) -> str:
        """Path and last lines of the first log that this job has written; jobs of a cluster may leave none."""
        since = self._begun.get(job, 0.0) - 2  # file systems store times with a lower resolution than the clock
        for log in logs:
            if log.is_file() and log.stat().st_mtime >= since and log.stat().st_size:
                lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
                return "\n".join([f"    {log}:", *(f"    {line}" for line in lines[-TAIL_LINES:])])
        return ""

    def unfinished(self) -> list[CellBatch]:
        """Batches of this run that did not finish; some of their cells may have."""
        return [batch for job, batch in self._batches.items() if job not in self._done]

    def ending(self, log: str) -> str:
        """Last message of a run that did not succeed."""
        names = [str(self.steps[job]) for job in self._failed]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        how = f"failed at {', '.join(names[:3])}{more}" if names else "was interrupted"
        state = f"the run {how}; {len(self._done)} of {len(self.steps)} steps finished. Full log: {log}"
        cause = "Correct the cause, then run" if names else "Run"
        return f"mrpipe: {state}\n{cause} the same command again: it continues with the unfinished steps."


def shown(record: logging.LogRecord) -> bool:
    """Whether `mrpipe run` prints a message of Snakemake: warnings, unexplained errors, submissions, nothing to do."""
    text, event = record.getMessage(), str(getattr(record, "event", ""))
    explained = event in ("job_error", "group_error") or any(words in text for words in _EXPLAINED)
    told = text.startswith("Nothing to be done") or "submitted with SLURM jobid" in text
    return told or (record.levelno >= logging.WARNING and not explained)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
