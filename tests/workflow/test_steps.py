"""Output of `mrpipe run`: lines of steps, the time left, failed steps, and Snakemake's messages that remain."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from workflow.planning.progress import TEXTS, PlannedStep, Steps, shown

SEARCHES = [{"experiment": "mosi", "method": method} for method in ("late", "muse")]


def record(event: str, job: int = 0, message: str = "", level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    """A record as Snakemake logs it."""
    made = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    made.__dict__ |= {"event": event, "jobid": job, "job_id": job} | more
    return made


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(steps: Steps, clock: Clock, job: int, seconds: float) -> None:
    steps.emit(record("job_info", job))
    clock.now += seconds
    steps.emit(record("job_finished", job))


@pytest.mark.parametrize(
    ("rule", "wildcards", "text"),
    [
        ("ingest", {"dataset": "adni", "modality": "image"}, "adni: image features"),
        ("prepare", {"dataset": "adni", "modality": "image", "part": "0", "total": "4"}, "adni: image, part 1 of 4"),
        ("search", {"experiment": "e", "method": "muse-0d24c5a1"}, "e: hyper-parameter search of MUSE"),
        ("cost", {"experiment": "e", "method": "moe_retriever"}, "e: cost of MoE-Retriever"),
        ("cells", {"batch": "e: MUSE, seed 2", "method": "muse-0d24c5a1"}, "e: MUSE, seed 2"),
        ("mask", {"dataset": "m", "mask": "mcar-p0.3-seed0"}, "m: simulated missingness: MCAR, p0.3, seed0"),
        ("report_page", {}, "report"),
        ("my_rule", {"dataset": "mine"}, "mine: my rule"),
    ],
)
def test_a_step_is_described_in_words(rule: str, wildcards: dict[str, str], text: str) -> None:
    assert str(PlannedStep(rule, wildcards)) == text


def test_every_rule_is_described(project: Path) -> None:
    texts = [file.read_text() for file in (project / "workflow/rules").glob("*.smk")]
    rules = {
        rule for text in texts for rule in re.findall(r"^(?:use rule \w+ as |rule )(\w+)", text, flags=re.MULTILINE)
    }
    assert rules == set(TEXTS)


def test_a_line_has_the_run_time_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    jobs = {i: PlannedStep("search", wildcards) for i, wildcards in enumerate(SEARCHES * 3)}
    steps = Steps(jobs | {9: PlannedStep("report_page", {})}, {}, output="steps", clock=clock)
    run(steps, clock, 0, 30)
    run(steps, clock, 1, 60)
    run(steps, clock, 7, 5)  # not a step of ours
    run(steps, clock, 2, 30)
    run(steps, clock, 9, 1)
    assert capsys.readouterr().err.splitlines() == [
        # The report, of which nothing is known yet, counts as much as the mean of the others.
        "[1/7] mosi: hyper-parameter search of late, 30 s; about 3 min left",
        "[2/7] mosi: hyper-parameter search of MUSE, 60 s; about 4 min left",
        "[3/7] mosi: hyper-parameter search of late, 30 s; about 3 min left",
        "[4/7] report, 1 s; about 3 min left",
    ]


def test_time_left_follows_similar_steps_and_the_number_that_run_at_a_time() -> None:
    clock = Clock()
    jobs = {i: PlannedStep("search", wildcards) for i, wildcards in enumerate(SEARCHES * 3)}
    steps = Steps(jobs, {}, output="quiet", clock=clock)
    assert steps.seconds_left() is None
    run(steps, clock, 0, 30)
    run(steps, clock, 1, 60)
    assert steps.seconds_left() == pytest.approx(2 * 30 + 2 * 60)
    for job in (2, 3):
        steps.emit(record("job_info", job))
    clock.now += 30
    steps.emit(record("job_finished", 2))
    clock.now += 30
    steps.emit(record("job_finished", 3))
    # 180 s of work in 150 s.
    assert steps.seconds_left() == pytest.approx((30 + 60) * 150 / 180)


def test_a_failed_step_shows_the_end_of_its_own_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(
        {1: PlannedStep("search", SEARCHES[0]), 2: PlannedStep("search", SEARCHES[1])},
        {},
        output="quiet",
        clock=Clock(),
    )
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {i}\n" for i in range(40)))
    steps.emit(record("job_error", 1, log=[str(tmp_path / "none.log"), str(log)]))
    text = capsys.readouterr().err
    assert text.startswith(f"FAILED  mosi: hyper-parameter search of late\n    {log}:\n    line 28\n")
    assert text.endswith("    line 39\n")
    assert "failed at mosi: hyper-parameter search of late; 0 of 2 steps finished. Full log: x.log\n" in steps.ending(
        "x.log"
    )
    steps.emit(record("job_finished", 1))  # the second attempt
    assert "interrupted; 1 of 2 steps finished" in steps.ending("x.log")
    steps.emit(record("", message="Terminating processes on user request, this might take some time."))
    steps.emit(record("job_error", 2, log=[str(log)]))
    assert capsys.readouterr().err == ""
    assert "run the same command again" in steps.ending("x.log").lower()


@pytest.mark.parametrize(
    ("message", "level", "event", "printed"),
    [
        ("Building DAG of jobs...", logging.INFO, "", False),
        ("Nothing to be done (all requested files are present and up to date).", logging.INFO, "", True),
        ("Job 8 has been submitted with SLURM jobid 3 (log: 3.log).", logging.INFO, "", True),
        ("Error in rule cells, jobid: 3", logging.ERROR, "job_error", False),
        ("RuleException:\nCalledProcessError in file", logging.ERROR, "error", False),
        ("MissingInputException in rule verify", logging.ERROR, "error", True),
        ("You have overwritten a rule", logging.WARNING, "", True),
    ],
)
def test_other_messages_of_snakemake(message: str, level: int, event: str, printed: bool) -> None:
    assert shown(record(event, message=message, level=level)) is printed


def test_no_time_is_given_while_too_few_kinds_of_steps_are_known() -> None:
    clock = Clock()
    rules = ("check", "cohort", "verify", "search")
    steps = Steps(
        {i: PlannedStep(rule, {"dataset": "a"}) for i, rule in enumerate(rules)}, {}, output="steps", clock=clock
    )
    run(steps, clock, 0, 5)
    assert steps.seconds_left() is None
