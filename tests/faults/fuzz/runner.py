"""Run mutations in worker processes with limits of memory and time, and collect their outcomes."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mrpipe.errors import MrpipeError
from tests.faults.fuzz.bases import BASES
from tests.faults.fuzz.containers import mutation_for
from tests.faults.fuzz.mutations import mutate_bytes
from tests.faults.fuzz.targets import PROJECT, TARGETS, Target

TARGET = {t.name: t for t in TARGETS}
MEMORY = 3 * 2**30  # address space that a worker may take beyond that of an idle one
SECONDS = 20.0
DISK = 200 * 2**20  # largest file that a worker may write
_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\w+|<\w+>)')
_OURS = re.compile(r"/(mrpipe|moe_retriever|planning)/")


@dataclass(frozen=True)
class Finding:
    """An outcome that must not occur; `place` and `kind` identify the fault, the seed and number the mutation."""

    target: str
    seed: int
    number: int
    mutation: str
    kind: str
    place: str
    detail: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.place


@dataclass
class Outcomes:
    """Number of mutations of a target by outcome, seconds, and findings."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def last_place(text: str) -> str:
    """File and function of the innermost frame of the project in a traceback, else of the innermost one."""
    frames = _FRAME.findall(text)
    # faulthandler writes the innermost frame first.
    frames = frames[::-1] if "most recent call first" in text else frames
    ours = [f for f in frames if _OURS.search(f[0]) and "site-packages" not in f[0]]
    if not frames:
        return "no frame"
    file, _, function = (ours or frames)[-1]
    return f"{'/'.join(Path(file).parts[-2:])}:{function}"


def make_base(name: str, folder: Path) -> Path:
    """The intact input below `folder`, made if it does not exist."""
    target = folder / name
    if not target.exists():
        partial = folder / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        BASES[name](partial)
        partial.rename(target)
    return target


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def mutated(target: Target, base: Path, seed: int, number: int) -> tuple[Path, str, bytes, bytes, random.Random]:
    """The file of mutation `number` below `base`, the mutation's name, content before and after, and the generator."""
    rng = random.Random(f"{seed}/{target.name}/{number}")
    files = sorted(p for p in base.glob(target.pattern) if p.is_file() and p.stat().st_size)
    path = rng.choice(files)
    before = path.read_bytes()
    mutation = mutation_for(path.name)
    while True:
        try:
            kind, after = mutation(rng, before)
        except (ValueError, RecursionError, MemoryError, ArithmeticError):
            # The mutated tree or table cannot be written in its format.
            kind, after = mutate_bytes(rng, before)
        if after != before:
            return path, kind, before, after, rng


def _outcome(target: Target, raw: Path, scratch: Path, refuse: bool, build: bool) -> tuple[str, str]:
    """Outcome of a read: its name, and the traceback of a finding."""
    try:
        target.read(raw, scratch)
    except MrpipeError as error:
        str(error)
        return "refused", ""
    except OSError as error:
        # The command line reports these with the path.
        named = error.errno is not None and error.filename is not None
        return ("refused", "") if named else ("exception", traceback.format_exc())
    except BaseException as error:
        return "memory" if isinstance(error, MemoryError) else "exception", traceback.format_exc()
    if refuse:
        return "accepted wrongly", f"{target.name}: the change is not noticed"
    if not build or target.build is None:
        return "accepted", ""
    try:
        target.build(raw, scratch)
    except (MrpipeError, OSError):
        return "refused by build", ""
    except BaseException as error:
        return "memory" if isinstance(error, MemoryError) else "exception", traceback.format_exc()
    return "built", ""


def work(job: dict[str, Any]) -> None:
    """Body of a worker process: appends a line to `outcomes` before and after each mutation."""
    folder, bases = Path(job["folder"]), Path(job["bases"])
    os.environ["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir(exist_ok=True)
    os.chdir(folder / "tmp")
    targets = [(TARGET[name], range(first, last)) for name, first, last in job["tasks"]]
    for target, _ in targets:
        make_base(target.base, bases)
    soft = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    crash = (folder / "crash").open("w")
    faulthandler.enable(crash, all_threads=False)
    with (folder / "outcomes").open("a", buffering=1) as lines:
        for target, numbers in targets:
            _each(target, numbers, job, lines, crash)


def _each(target: Target, numbers: range, job: dict[str, Any], lines: IO[str], crash: IO[str]) -> None:
    base, raw, scratch = (
        Path(job[k]) / n for k, n in (("bases", target.base), ("folder", "raw"), ("folder", "scratch"))
    )
    for folder in (raw, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, raw)
    for number in numbers:
        path, kind, before, after, rng = mutated(target, base, job["seed"], number)
        place = raw / path.relative_to(base)
        place.write_bytes(after)
        scratch.mkdir()
        lines.write(json.dumps({"target": target.name, "number": number, "mutation": kind}) + "\n")
        begun = time.monotonic()
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=crash)
        refuse = target.must_refuse(kind, before, after)
        outcome, detail = _outcome(target, raw, scratch, refuse, rng.random() < job["build"])
        faulthandler.cancel_dump_traceback_later()
        lines.write(json.dumps({"outcome": outcome, "detail": detail, "seconds": time.monotonic() - begun}) + "\n")
        place.write_bytes(before)
        shutil.rmtree(scratch, ignore_errors=True)
        if number % 10 == 9:
            gc.collect()


def _finding(start: dict[str, Any], end: dict[str, Any], seed: int) -> Finding:
    error = re.findall(r"^([\w.]+)(?::|$)", end["detail"], re.MULTILINE)
    kind = f"{end['outcome']} {error[-1]}" if end["outcome"] == "exception" and error else end["outcome"]
    place = start["target"] if end["outcome"] == "accepted wrongly" else last_place(end["detail"])
    return Finding(start["target"], seed, start["number"], start["mutation"], kind, place, end["detail"])


def fuzz(tasks: Mapping[str, range], seed: int, bases: Path, *, build: float = 0.0) -> dict[str, Outcomes]:
    """Run mutations of several targets in a worker process, which is started again if a mutation ends it.

    Args:
        tasks: name of each target → numbers of its mutations.
        bases: folder of the intact inputs, made if they are not there.
        build: share of the accepted inputs that are also built.

    Raises:
        RuntimeError: the fuzzer itself failed, as with a base that cannot be made.
    """
    results = {name: Outcomes() for name in tasks}
    left = {name: numbers for name, numbers in tasks.items() if numbers}
    while left:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
            folder = Path(temporary)
            job = {"folder": temporary, "bases": str(bases), "seed": seed, "build": build}
            job["tasks"] = [(name, numbers.start, numbers.stop) for name, numbers in left.items()]
            with (folder / "output").open("wb") as output:
                command = [sys.executable, "-m", "tests.faults.fuzz.worker", json.dumps(job)]
                code = subprocess.run(
                    command, stdout=output, stderr=output, cwd=PROJECT, env=_environment(bases)
                ).returncode
            lines = folder / "outcomes"
            entries = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
            output_end = (folder / "output").read_bytes()[-3000:].decode("utf-8", "replace")
            if not entries or (code and len(entries) % 2 == 0):
                raise RuntimeError(f"the fuzzer itself failed ({code}):\n{output_end}")
            if len(entries) % 2:
                text = (folder / "crash").read_text()
                kind = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
                kind = "time" if "Timeout" in text else kind
                entries.append({"outcome": kind, "detail": f"{text}\n{output_end}", "seconds": SECONDS})
        for start, end in zip(entries[::2], entries[1::2], strict=True):
            done = results[start["target"]]
            done.counts[end["outcome"]] += 1
            done.seconds += end["seconds"]
            if end["detail"]:
                done.findings.append(_finding(start, end, seed))
            numbers = range(start["number"] + 1, left[start["target"]].stop)
            left[start["target"]] = numbers
        left = {name: numbers for name, numbers in left.items() if numbers}
    return results


def _environment(bases: Path) -> dict[str, str]:
    """One thread: outcomes do not depend on it, and address space is not spent on pools."""
    threads = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "MRPIPE_CACHE": str(bases / "cache")}
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "model")])
    return os.environ | threads | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def save(findings: Iterable[Finding], bases: Path, folder: Path) -> None:
    """Write the mutated file and a text with seed and traceback, for one finding of each kind and place."""
    for finding in findings:
        _save(TARGET[finding.target], bases / TARGET[finding.target].base, finding, folder)


def _save(target: Target, base: Path, finding: Finding, save: Path) -> None:
    name = re.sub(r"[^\w.]+", "_", f"{finding.kind}_{finding.place}")[:120]
    if (save / f"{name}.txt").exists():
        return
    save.mkdir(parents=True, exist_ok=True)
    path, kind, _, after, _ = mutated(target, base, finding.seed, finding.number)
    (save / f"{name}_{path.name}").write_bytes(after)
    text = f"target {finding.target}\nfile {path.relative_to(base)}\nmutation {kind}\nseed {finding.seed}"
    (save / f"{name}.txt").write_text(f"{text}\nnumber {finding.number}\n\n{finding.detail}\n")


def chosen(readers: Sequence[str]) -> list[str]:
    """Names of the targets of readers (`mosi`) or formats (`mosi/csd`); all without a choice."""
    return [n for n, t in TARGET.items() if not readers or t.reader in readers or n in readers]


def unknown(readers: Sequence[str]) -> list[str]:
    """Names that are no reader and no format."""
    return sorted(set(readers) - set(TARGET) - {t.reader for t in TARGET.values()})
