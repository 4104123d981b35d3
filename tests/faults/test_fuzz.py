"""Mutated inputs are read or refused with the project's own error; the seeds are fixed, so that failures repeat."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from mrpipe.errors import DataError, Fault
from tests.faults.fuzz import runner
from tests.faults.fuzz.containers import mutation_for
from tests.faults.fuzz.targets import TARGETS, Target

SHORT = 8  # mutations per format that is read in a few hundredths of a second; fewer of the others
LONG = 1000  # mutations per reader
READERS = sorted({t.reader for t in TARGETS})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def described(findings: Iterable[runner.Finding]) -> str:
    return "\n\n".join(
        f"{f.kind} in {f.place}: --reader '{f.target}' --seed {f.seed} --first {f.number} --n 1\n{f.detail[-1500:]}"
        for f in findings
    )


def test_every_format_is_read_or_refused(bases: Path) -> None:
    tasks = {t.name: range(max(2, SHORT // t.cost)) for t in TARGETS}
    found = runner.fuzz(tasks, 0, bases)
    findings = [f for outcomes in found.values() for f in outcomes.findings]
    assert not findings, described(findings)
    for name, outcomes in found.items():
        assert outcomes.counts.total() == len(tasks[name])
    # Otherwise the mutations would be too mild to test anything.
    refused = [n for n, outcomes in found.items() if outcomes.counts["refused"]]
    assert len(refused) > 0.7 * len(TARGETS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reader", READERS)
def test_a_thousand_mutations_of_each_reader(reader: str, bases: Path) -> None:
    names = runner.chosen([reader])
    found = runner.fuzz({name: range(LONG // len(names) + 1) for name in names}, 1, bases, build=0.1)
    findings = [f for outcomes in found.values() for f in outcomes.findings]
    assert not findings, described(findings)


# --- the fuzzer itself ------------------------------------------------------------------------------------------------


def _target(read: object) -> Target:
    return Target(name="toy/csv", base="toy", pattern="*.csv", read=read)  # type: ignore[arg-type]


def _raises(error: BaseException) -> Target:
    def read(folder: Path, scratch: Path) -> None:
        raise error

    return _target(read)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DataError(Fault(file="x", expected="y", found="z")), "refused"),
        (OSError(2, "No such file", "x.csv"), "refused"),
        (OSError("not a file of this kind"), "exception"),
        (KeyError("x"), "exception"),
        (MemoryError(), "memory"),
        (SystemExit(1), "exception"),
    ],
)
def test_only_own_errors_are_allowed(error: BaseException, outcome: str, tmp_path: Path) -> None:
    assert runner._outcome(_raises(error), tmp_path, tmp_path, refuse=False, build=False)[0] == outcome


def test_an_accepted_change_that_must_be_refused_is_a_finding(tmp_path: Path) -> None:
    silent = _target(lambda folder, scratch: None)
    assert runner._outcome(silent, tmp_path, tmp_path, refuse=True, build=False)[0] == "accepted wrongly"
    assert runner._outcome(silent, tmp_path, tmp_path, refuse=False, build=False)[0] == "accepted"


def test_mutations_are_seeded_and_change_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,a\n1,2\n3,4\n")
    target = _target(None)
    first, again, other = ([runner.mutated(target, tmp_path, seed, k)[1:4] for k in range(30)] for seed in (0, 0, 1))
    assert first == again != other
    assert all(before != after for _, before, after in first)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"id,a\n1,2\n"),
        ("x.json", b'{"a": [1, {"b": "c"}]}'),
        ("x.yaml", b"a: [1, {b: c}]\n"),
        ("x.bin", bytes(range(100))),
    ],
)
def test_mutations_of_one_format_differ(name: str, content: bytes) -> None:
    mutation = mutation_for(name)
    results = {mutation(random.Random(seed), content)[1] for seed in range(60)}
    assert len(results) > 40


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('File "/p/mrpipe/raw.py", line 3, in read_csv\n  File "/x/site-packages/polars/io.py", line 9, in read', "mrpipe/raw.py:read_csv"),  # noqa: E501
        ('Timeout\nThread 0x1 (most recent call first):\n  File "/x/polars/io.py", line 9 in read\n  File "/p/mrpipe/raw.py", line 3 in read_csv', "mrpipe/raw.py:read_csv"),  # noqa: E501
    ],
)  # fmt: skip
def test_findings_are_identified_by_the_last_frame_of_the_project(text: str, place: str) -> None:
    assert runner.last_place(text) == place


def test_harnesses_read_their_seeds() -> None:
    """Without Atheris, the harnesses are plain functions."""
    from tests.faults.fuzz import atheris_bed, atheris_chain, atheris_records
    from tests.faults.toy_files import TOY_CHAIN

    atheris_records.read_one(b"\x0110000001,20000002,50912,x\n")
    atheris_bed.read_one(b"0 a 0 0 1 -9\n|||1\trs1\t0\t5\tA\tG\n|||\x6c\x1b\x01\x03")
    atheris_chain.read_one(TOY_CHAIN.encode())
    with pytest.raises(AssertionError):
        assert atheris_records.expected_ends(b'"\n"\n') == [1, 3]
    assert atheris_records.expected_number(b"1,2,3\n", 2) == 3
