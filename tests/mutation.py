"""Mutation testing of the core modules with mutmut: the share of small changes to the code that the tests notice.

    python -m tests.mutation                       all packages, 40 mutants of each
    python -m tests.mutation store --sample 0      all mutants of one package, with the survivors

A mutant counts as killed if a test fails, crashes or exceeds its time. Statements that build an error message are left
out. Survivors that no test can notice (`EQUIVALENT`) are counted separately and are not part of the rate, the share of
killed mutants among the others. The sample is keyed by the mutants' names, so that it changes only where the code does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
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
FAILED = 1
# Changes that no test can notice: a pattern in the original line, and what replaces one match of it; the rest of the
# line stays the same. If a test does notice one, the entry is wrong (`Outcome.refuted`).
EQUIVALENT: tuple[tuple[str, str], ...] = (
    # numpy's default is float64.
    (r"\.astype\(np\.float64\)", ".astype(None)"),
    # Counts of Booleans are whole numbers, which float64 represents as exactly.
    (r"np\.add\.reduceat\(known\.astype\(np\.int64\)", "np.add.reduceat(known.astype(None)"),
    # Assertions that lists have equal lengths; `assert` statements are left out as well.
    (r"(\bzip\(.*, )strict=True", r"\1strict=None"),
    (r"(\bzip\(.*, )strict=True", r"\1strict=False"),
    (r"(\bzip\(.*, )strict=True", r"\1"),
    # The last word of a name, if there are no other blanks than spaces in it.
    (r'\.rsplit\(" ", 1\)\[1\]', ".rsplit(None, 1)[1]"),
    # Both are false.
    (r"\baudit_known=False", "audit_known=None"),
    # A routing has both or neither.
    (r"routing\.noisy is None or routing\.spread is None", "routing.noisy is None and routing.spread is None"),
)
# The letters of an einsum only name dimensions.
_EINSUM = r'(?<=\beinsum\(")[a-z,]+->[a-z]+(?=")'


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
pytest_add_cli_args = ["-m", "not slow and not cluster and not whole", "-p", "no:xdist", "-p", "no:randomly"]
also_copy = {copied}
process_isolation = "forkserver"
use_git_change_detection = false
"""


@dataclass(frozen=True)
class Outcome:
    """Result of one package.

    Attributes:
        n_mutants: number of mutants of the package.
        tested: names of those that ran.
        survivors: name → difference of those that no test noticed, without equivalent ones.
        equivalent: those that no test can notice.
        refuted: those that a test noticed although they are listed as equivalent.
    """

    n_mutants: int
    tested: tuple[str, ...]
    survivors: dict[str, str]
    equivalent: dict[str, str]
    refuted: dict[str, str]

    @property
    def n_killed(self) -> int:
        return len(self.tested) - len(self.survivors) - len(self.equivalent)

    @property
    def rate(self) -> float:
        """Share of the tested mutants that were killed, among those that can be noticed."""
        return self.n_killed / max(len(self.tested) - len(self.equivalent), 1)


def changed_lines(difference: str) -> list[str]:
    """The removed and added lines of a difference."""
    return [line for line in difference.splitlines() if line[:1] in "-+" and line[:3] not in ("---", "+++")]


def is_equivalent(difference: str) -> bool:
    """Whether a difference consists of one change of `EQUIVALENT`, or of the case of the letters of an einsum."""
    lines = changed_lines(difference)
    if [line[0] for line in lines] != ["-", "+"]:
        return False
    before, after = (line[1:] for line in lines)
    mutants = [(m, m.expand(new)) for pattern, new in EQUIVALENT for m in re.finditer(pattern, before)]
    mutants += [(m, m[0].upper()) for m in re.finditer(_EINSUM, before)]
    return any(before[: m.start()] + new + before[m.end() :] == after for m, new in mutants)


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
    shown = {n: _mutmut(folder, "show", n) for n in chosen if codes[n] in (*SURVIVED, FAILED)}
    equivalent = {n: d for n, d in shown.items() if is_equivalent(d)}
    refuted = {n: equivalent.pop(n) for n in list(equivalent) if codes[n] == FAILED}
    survivors = {n: d for n, d in shown.items() if codes[n] in SURVIVED and n not in equivalent}
    return Outcome(len(names), tuple(chosen), survivors, equivalent, refuted)


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
        for title in ("survivors", "equivalent", "refuted"):
            for mutant, difference in getattr(outcome, title).items():
                print(f"{title}: {mutant}", *changed_lines(difference), sep="\n    ")
        n, n_same = len(outcome.tested), len(outcome.equivalent)
        row = f"{name:<12} {outcome.n_mutants:>7} {n:>6} {outcome.n_killed:>6} {n_same:>10} {outcome.rate:>6.1%}"
        rows.append(row)
        print(row, flush=True)
    print(
        f"\n{'package':<12} {'mutants':>7} {'tested':>6} {'killed':>6} {'equivalent':>10} {'rate':>6}", *rows, sep="\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
