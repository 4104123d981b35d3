"""Cost of many small jobs: planning of a large suite, and the imports of each command.

    python -m benchmarks.jobs plan --cells 1000 10000
    python -m benchmarks.jobs plan --cells 10000 --finished
    python -m benchmarks.jobs imports
    python -m benchmarks.jobs paper --cores 2

`plan` prints the CPU seconds of plan and job graph, those of a dry run, which also prints each job, and its peak
memory; with `--finished`, all files exist. `imports` prints the CPU seconds that each command needs before it begins
to work, beside an empty Python process. `paper` runs the suite of the paper at its smoke size and prints wall time, CPU
seconds and the number of jobs.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from moe_retriever.report.benchmarks import read_benchmarks, summarise

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'model'}", "OMP_NUM_THREADS": "1"}
MODALITIES = ("image", "genomic", "biospecimen", "clinical")
VIEWS = [list(v) for n in range(2, 5) for v in itertools.combinations(MODALITIES, n)][:10]
METHODS = (
    "moe_retriever",
    "mmformer",
    "shaspec",
    "m3care",
    "muse",
    "fusemoe",
    "flexmoe",
    "hybrid",
    "zero_fill",
    "dymo",
)
COMMANDS = {
    "check": ["mrpipe.stages.check"],
    "cohort": ["mrpipe.stages.cohort"],
    "samples": ["mrpipe.stages.samples"],
    "split": ["mrpipe.stages.split"],
    "seal": ["mrpipe.stages.seal"],
    "verify": ["mrpipe.store.reader"],
    "mask": ["mrpipe.experiment.missingness"],
    "cells, all complete": ["moe_retriever.cli.cells"],
    "cells": ["moe_retriever.cli.cells", "moe_retriever.training.loop", "moe_retriever.evaluation.evaluate"],
    "suite-tables": ["moe_retriever.suites.tables"],
    "suite-figures": ["moe_retriever.suites.figures"],
    "report": ["moe_retriever.report.page"],
}


def write_plan(folder: Path, n_cells: int) -> list[str]:
    """A suite of `n_cells` cells on ten stores with ten views and ten methods; the command that plans it."""
    n_seeds = max(1, n_cells // 1000)
    stores = [f"store{i}" for i in range(10)]
    block = {"views": VIEWS, "missingness": {"p": 0.3}}
    suite = {"title": "Many cells", "methods": list(METHODS), "seeds": list(range(n_seeds))}
    suites = {"suites": {"many": {**suite, "blocks": [{"dataset": name, **block} for name in stores]}}}
    (folder / "many.yaml").write_text(yaml.safe_dump(suites))
    datasets = {name: {"dataset": "adni", "raw": "simulated", "options": {"image_parts": 1}} for name in stores}
    (folder / "config.yaml").write_text(yaml.safe_dump({"datasets": datasets, "suites": "many.yaml"}))
    command = [sys.executable, "-m", "snakemake", "many", "-n", "--cores", "2", "--snakefile", str(ROOT / "Snakefile")]
    return [*command, "--directory", str(folder), "--configfile", str(folder / "config.yaml")]


def measured(command: list[str], folder: Path, out: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds of a command with its children, and peak memory of its largest process in MiB."""
    started = time.monotonic()
    with out.open("w") as text:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | ENVIRONMENT, stdout=text, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(out.read_text()[-3000:])
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def plan(cells: list[int], *, finished: bool) -> None:
    """Dry runs of suites of several sizes."""
    for n_cells in cells:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = write_plan(folder, n_cells)
            if finished:
                finish(command, folder)
            dag = [word.replace("-n", "--rulegraph") if word == "-n" else word for word in command]
            _, of_dag, _ = measured(dag, folder, folder / "dag.txt")
            _, cpu, peak = measured(command, folder, folder / "out.txt")
            jobs = len(re.findall(r"^ *(?:local)?rule ", (folder / "out.txt").read_text(), flags=re.MULTILINE))
        print(f"{n_cells} cells, {jobs} jobs: {of_dag:.1f} s, printed: {cpu:.1f} s, {peak:.0f} MiB", flush=True)


def finish(command: list[str], folder: Path) -> None:
    """Create all outputs of a dry run in order, and let Snakemake record them."""
    measured(command, folder, folder / "out.txt")
    outputs = re.findall(r"^ *output: (.*)$", (folder / "out.txt").read_text(), flags=re.MULTILINE)
    for path in (folder / name for line in outputs for name in line.split(", ")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    measured(
        [word.replace("-n", "--touch") if word == "-n" else word for word in command], folder, folder / "touch.txt"
    )


def imports() -> None:
    """CPU seconds of the imports of each command; the second number is without those of an empty process."""
    with tempfile.TemporaryDirectory() as name:
        for command, modules in {"(empty)": [], **COMMANDS}.items():
            code = "".join(f"import {module}\n" for module in modules)
            runs = [measured([sys.executable, "-c", code], Path(name), Path(name, "out.txt"))[1] for _ in range(3)]
            print(f"{command:<20} {min(runs):.2f} s", flush=True)


def paper(cores: int, folder: Path) -> None:
    """The suite of the paper at its smoke size."""
    command = [sys.executable, "-m", "mrpipe", "run", "paper", "--cores", str(cores), "--", "--config", "size=smoke"]
    wall, cpu, peak = measured(command, folder, folder / "out.txt")
    jobs = read_benchmarks(folder / "results/benchmarks")
    summary = summarise(jobs) or {"rules": []}
    for rule in summary["rules"]:
        print(f"{rule['rule']:<16} {rule['n']:>4} jobs {rule['total']:8.1f} s {rule['cpu_seconds']:8.1f} s CPU")
    print(f"{len(jobs)} jobs: {wall / 60:.1f} min wall, {cpu / 60:.1f} min CPU, {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "imports", "paper"))
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--finished", action="store_true", help="plan with all files in place")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where `paper` runs; default: a temporary folder")
    a = parser.parse_args()
    if a.what == "plan":
        plan(a.cells, finished=a.finished)
    elif a.what == "imports":
        imports()
    else:
        with tempfile.TemporaryDirectory() as name:
            paper(a.cores, a.folder or Path(name))


if __name__ == "__main__":
    main()
