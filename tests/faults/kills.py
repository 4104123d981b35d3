"""Kill commands at seeded moments, run them again, and compare all files with those of an undisturbed run.

    python -m tests.faults.kills --n 200 --seed 0

Each kill is one process that ends by SIGKILL or SIGTERM before its K-th change of a file (`launch`). Several kills may
follow each other before the command is run to its end. Then the folder must hold the files of an undisturbed run and
no others, with the same bytes, except for files that record times and the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mrpipe.cli.main import main as mrpipe
from tests.faults.toy_files import TRAIN_OPTIONS

PROJECT = Path(__file__).parents[2]
# Files that record times, the machine or the process.
VOLATILE = {"cost.json", "test_cost.json", "log.txt", "provenance.json", "history.parquet", "inputs.json"}
VOLATILE |= {
    "trials.parquet",
    "result.json",
    "best.json",
    "model.pt",
    "page.html",
    "results.parquet",
    "metrics.json.tmp",
}
SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM")
Commands = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Stage:
    """Commands that are killed, and the commands that make their inputs; all run in an empty folder."""

    name: str
    inputs: Commands
    commands: Commands


def _export(dataset: str, **settings: object) -> list[str]:
    return ["simulate", dataset, "--out", "raw", "--set", *(f"{k}={v}" for k, v in settings.items())]


TABLES = _export("tables", n_visits=80)
STORE = [TABLES, ["build", "tables", "--raw", "raw", "--out", "store"]]
TRAIN = ["train", "--store", "store", "--out", "run", "--quiet", "--method"]
SEARCH = ["search", "--store", "store", "--out", "search", "--method", "shaspec", "--trials", "2", "--quiet"]
SEARCH += ["--set", "epochs=2", "hidden=16", "tokens=2", "heads=2", "encoder_hidden=8"]
RUN = [*STORE, [*TRAIN, "majority"]]
_EXPORTS = {
    "tables": TABLES,
    "meds": _export("meds", n_subjects=40),
    "mimic": _export("mimic", n_patients=80, n_chart_rows=200, n_lab_rows=200, n_rare_items=2),
    "adni": _export("adni", n_subjects=60, n_snps=48, image_shape="[4,4,4]", image_max_scans=1),
    "mosi": _export("mosi", n_videos=9, clips_per_video=5.0, frames_per_second=2.0),
    "enrico": _export("enrico", n_screens=60, scale=0.05),
}
_STEPS = [
    ["check", "tables", "--raw", "raw", "--work", "work"],
    ["cohort", "tables", "--raw", "raw", "--work", "work"],
    ["ingest", "tables", "vitals", "--raw", "raw", "--work", "work"],
    ["samples", "tables", "--work", "work", "--modalities", "vitals"],
    ["split", "tables", "--work", "work", "--scheme", "standard"],
    ["seal", "tables", "--work", "work", "--store", "store", "--schemes", "standard"],
]
STAGES: tuple[Stage, ...] = (
    *(Stage(f"build {n}", [e], [["build", n, "--raw", "raw", "--out", "store"]]) for n, e in _EXPORTS.items()),
    *(Stage(f"simulate {n}", [], [e]) for n, e in _EXPORTS.items()),
    *(Stage(f"step {step[0]}", [TABLES, *_STEPS[:k]], [step]) for k, step in enumerate(_STEPS)),
    Stage("image chain (stub)", [["simulate images"]], [["images", "raw", "work"]]),
    Stage("mask", STORE, [["mask", "store", "--p", "0.3", "--out", "masks/p30.parquet"]]),
    Stage("train", STORE, [[*TRAIN, "moe_retriever", "--set", *TRAIN_OPTIONS]]),
    Stage("train logistic", STORE, [[*TRAIN, "logistic"]]),
    Stage("search", STORE, [SEARCH]),
    Stage("evaluate", RUN, [["evaluate", "--run", "run", "--store", "store", "--name", "again"]]),
    Stage("predict", RUN, [["predict", "--run", "run", "--store", "store", "--out", "predictions.parquet"]]),
    Stage("export", STORE, [["export", "store", "--out", "exported"]]),
    Stage("report", RUN, [["report", "--runs", "run", "--stores", "store", "--out", "page.html"]]),
    Stage("results", RUN, [["results", "--runs", ".", "--out", "results.parquet"]]),
)
STAGE = {stage.name: stage for stage in STAGES}


@dataclass(frozen=True)
class Result:
    """Kills of one stage: how many processes were ended by their signal, and the differences that were found."""

    stage: str
    kills: int
    faults: tuple[str, ...]


def launch(folder: Path, commands: Commands, at: int | None = None, number: str = "SIGKILL") -> tuple[int, str]:
    """Run commands in a folder; returns the exit code and the output."""
    job = json.dumps({"commands": commands, "at": at, "signal": number})
    path = os.pathsep.join((str(PROJECT), str(PROJECT / "model")))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    env |= {"MRPIPE_CACHE": str(folder.parent / "cache"), "TMPDIR": str(folder.parent)}
    command = [sys.executable, "-P", "-m", "tests.faults.launch", job]
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    return done.returncode, done.stdout


def files(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of all files, hidden ones too; of volatile files the path only."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        fixed = path.name not in VOLATILE
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if fixed else ""
    return found


def _make_inputs(stage: Stage, folder: Path) -> None:
    folder.mkdir(parents=True)
    if stage.inputs == [["simulate images"]]:
        from tests.datasets.adni.image_toy import Simulation
        from tests.datasets.adni.test_image_parts import simulate_images, subjects

        simulate_images(folder / "raw", subjects(6), Simulation(image_raw=6, image_max_scans=2, image_t1_mm=3.0))
        return
    before = Path.cwd()
    try:
        os.chdir(folder)
        with redirect_stdout(io.StringIO()):
            codes = [mrpipe(list(command)) for command in stage.inputs]
        assert not any(codes), f"inputs of {stage.name}"
    finally:
        os.chdir(before)


def kill(stage: Stage, n: int, seed: int, folder: Path, most: int = 3) -> Result:
    """Kill a stage `n` times, at most `most` times before each run to the end."""
    rng, faults, kills = random.Random(f"{seed}/{stage.name}"), [], 0
    inputs, calm = folder / "inputs", folder / "calm" / "x"
    _make_inputs(stage, inputs)
    shutil.copytree(inputs, calm)
    code, text = launch(calm, stage.commands)
    assert code == 0, f"{stage.name}: {text[-2000:]}"
    expected, changes = files(calm), int((calm.parent / "count").read_text())
    before = files(inputs)
    while kills < n:
        place = folder / "killed" / "x"
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(inputs, place)
        history = []
        for _ in range(min(rng.randint(1, most), n - kills)):
            at, number = rng.randint(1, changes), rng.choice(SIGNALS)
            code, text = launch(place, stage.commands, at, number)
            # A run that continues an earlier one makes fewer changes and may be complete before the K-th.
            kills += code != 0
            history.append(f"{number} at {at}: {code}")
            if code not in (0, -signal.Signals[number], 128 + signal.Signals[number]):
                faults.append(f"{history}: {text[-600:]}")
        code, text = launch(place, stage.commands)
        got = files(place)
        if code:
            faults.append(f"{history}: the command failed with {code}: {text[-1500:]}")
        elif got != expected:
            left = sorted(set(got) - set(expected))
            lost, other = sorted(set(expected) - set(got)), [k for k in got if got[k] != expected.get(k, got[k])]
            faults.append(f"{history}: left over {left}, missing {lost}, other bytes {other}")
        if changed := [k for k in before if got.get(k) != before[k] and k not in expected]:
            faults.append(f"{history}: inputs changed: {changed}")
    return Result(stage.name, kills, tuple(faults))


def main() -> int:
    """Kill all stages and print the number of kills and differences of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"default: all of {', '.join(STAGE)}")
    parser.add_argument("--n", type=int, default=200, help="number of kills over all stages (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chosen = [STAGE[name] for name in given.stages] or list(STAGES)
    total, faults = 0, 0
    for k, stage in enumerate(chosen):
        begun, n = time.monotonic(), given.n // len(chosen) + (k < given.n % len(chosen))
        with tempfile.TemporaryDirectory() as folder:
            result = kill(stage, n, given.seed, Path(folder))
        total, faults = total + result.kills, faults + len(result.faults)
        text = f"kills {result.kills:>3}, differences {len(result.faults)}; {time.monotonic() - begun:.0f} s"
        print(f"{stage.name:<22} {text}", flush=True)
        for fault in result.faults:
            print(f"    {fault}", flush=True)
    print(f"{total} kills, {faults} differences")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
