"""Mutation testing of the core modules with mutmut: the share of small changes to the code that the tests notice.

    python -m tests.mutation                       all packages, 40 mutants of each
    python -m tests.mutation store --sample 0      all mutants of one package, with the survivors

A mutant counts as killed if a test fails, crashes or exceeds its time. Statements that build an error message are left
out. The sample is keyed by the mutants' names, so that it changes only where the code does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
# Exit codes of mutmut for mutants that no test noticed: passed, no test collected, no test of the function.
SURVIVED = (0, 5, 33)


@dataclass(frozen=True)
class Package:
    """Modules that are mutated, and the tests that must notice."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


PACKAGES = {
    "keyed": Package(("mrpipe/keyed.py",), ("core/test_keyed.py",)),
    "store": Package(tuple(f"mrpipe/store/{m}.py" for m in ("splits", "masks", "invariants", "audit")), ("store",)),
    "missingness": Package(("mrpipe/experiment/missingness.py",), ("experiment",)),
    "transforms": Package(
        ("mrpipe/transforms/*.py",),
        ("transforms", "datasets/mimic/test_events.py", "datasets/mimic/test_event_transform.py", "moe_retriever/data"),
    ),
    "retrieval": Package(("moe_retriever/retrieval/*.py",), ("moe_retriever/retrieval",)),
    "moe": Package(
        ("moe_retriever/nn/moe.py",),
        ("moe_retriever/nn/test_moe.py", "moe_retriever/nn/test_kernels.py", "moe_retriever/retrieval"),
    ),
    "evaluation": Package(
        tuple(f"moe_retriever/evaluation/{m}.py" for m in ("bootstrap", "paired")), ("moe_retriever/evaluation",)
    ),
}
_READ_BY_TESTS = ("workflow", "docs", "README.md", "Snakefile", "environment.yml")
_SETTINGS = """
[tool.mutmut]
source_paths = ["mrpipe", "moe_retriever"]
only_mutate = {modules}
do_not_mutate_patterns = ['^\\s*raise ', '^\\s*(faults|self)\\.add\\(', '^\\s*assert ', 'Fault\\(', 'errstate']
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-m", "not slow and not cluster", "-p", "no:xdist", "-p", "no:randomly"]
also_copy = {copied}
process_isolation = "forkserver"
use_git_change_detection = false
"""


@dataclass(frozen=True)
class Outcome:
    """Result of one package: number of mutants, names of those that ran, and differences of the survivors."""

    n_mutants: int
    tested: tuple[str, ...]
    survivors: dict[str, str]

    @property
    def rate(self) -> float:
        """Share of the tested mutants that were killed."""
        return 1 - len(self.survivors) / max(len(self.tested), 1)


def _workspace(package: Package, folder: Path) -> None:
    """Copy the code and its tests; both packages lie in the root, since mutmut names modules by their paths."""
    for source in ("mrpipe", "model/moe_retriever", "tests", *_READ_BY_TESTS):
        ignored = shutil.ignore_patterns("__pycache__")
        target, path = folder / Path(source).name, PROJECT / source
        shutil.copytree(path, target, ignore=ignored) if path.is_dir() else shutil.copy(path, target)
    settings = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    settings = settings.replace('pythonpath = [".", "model"]', 'pythonpath = ["."]')
    tests = [f"tests/{t}" for t in package.tests]
    settings += _SETTINGS.format(
        modules=json.dumps(package.modules), tests=json.dumps(tests), copied=json.dumps(_READ_BY_TESTS)
    )
    (folder / "pyproject.toml").write_text(settings, encoding="utf-8")


def _mutmut(folder: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def _exit_codes(folder: Path) -> Iterator[tuple[str, int | None]]:
    for meta in sorted((folder / "mutants").rglob("*.py.meta")):
        yield from json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].items()


def run_package(name: str, *, sample: int, workers: int, folder: Path) -> Outcome:
    """Mutate the modules of a package and run its tests on `sample` mutants (0: all).

    Raises:
        RuntimeError: the tests fail without a mutation, or mutmut generated nothing.
    """
    _workspace(PACKAGES[name], folder)
    # A name that matches nothing: mutants are generated and the tests run once, to record what they cover.
    log = _mutmut(folder, "run", "none")
    names = [n for n, _ in _exit_codes(folder)]
    if not names:
        raise RuntimeError(f"no mutants of {name}:\n{log[-4000:]}")
    chosen = sorted(names, key=lambda n: hashlib.blake2b(n.encode()).digest())[: sample or None]
    log = _mutmut(folder, "run", "--max-children", str(workers), *chosen)
    codes = dict(_exit_codes(folder))
    if untested := [n for n in chosen if codes[n] is None]:
        raise RuntimeError(f"{len(untested)} mutants of {name} were not tested:\n{log[-4000:]}")
    survivors = {n: _mutmut(folder, "show", n) for n in chosen if codes[n] in SURVIVED}
    return Outcome(len(names), tuple(chosen), survivors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"default: {', '.join(PACKAGES)}")
    parser.add_argument("--sample", type=int, default=40, help="mutants per package, 0 for all (default: 40)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.packages) - set(PACKAGES)):
        parser.error(f"unknown package {unknown[0]!r}; known: {', '.join(PACKAGES)}")
    rows = []
    for name in chosen.packages or PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_package(name, sample=chosen.sample, workers=chosen.workers, folder=Path(folder))
        for mutant, difference in outcome.survivors.items():
            changed = [line for line in difference.splitlines() if line[:1] in "-+" and line[:3] not in ("---", "+++")]
            print(f"survived: {mutant}", *changed, sep="\n    ")
        n = len(outcome.tested)
        rows.append(f"{name:<12} {outcome.n_mutants:>7} {n:>6} {n - len(outcome.survivors):>6} {outcome.rate:>6.1%}")
        print(rows[-1], flush=True)
    print(f"\n{'package':<12} {'mutants':>7} {'tested':>6} {'killed':>6} {'rate':>6}", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
