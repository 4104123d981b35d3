"""Command line of the fuzzer."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import tests.faults.fuzz as package
from tests.faults.fuzz import runner


def main() -> int:
    """Fuzz the chosen readers; the exit code is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", nargs="*", default=[], metavar="NAME", help="readers (mosi) or formats (mosi/csd)")
    parser.add_argument("--n", type=int, default=1000, help="mutations per reader, over its formats (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default: 0)")
    parser.add_argument("--build", type=float, default=0.1, help="share of accepted inputs to build (default: 0.1)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="folder for findings: file, seed, traceback")
    parser.add_argument("--bases", type=Path, metavar="FOLDER", help="folder of intact inputs, kept for the next call")
    parser.add_argument("--first", type=int, metavar="K", default=0, help="number of the first mutation, to repeat one")
    parser.add_argument("--list", action="store_true", help="list readers and formats")
    given = parser.parse_args()
    if wrong := runner.unknown(given.reader):
        parser.error(f"unknown reader or format {wrong[0]!r}; --list lists them")
    by_reader = defaultdict(list)
    for name in runner.chosen(given.reader):
        by_reader[runner.TARGET[name].reader].append(name)
    if given.list:
        print("\n".join(name for names in by_reader.values() for name in names))
        return 0
    findings: dict[tuple[str, str], list[runner.Finding]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        bases = given.bases or Path(temporary)
        bases.mkdir(parents=True, exist_ok=True)
        for reader, names in by_reader.items():
            begun, total = time.monotonic(), Counter[str]()
            shares = [given.n // len(names) + (k < given.n % len(names)) for k in range(len(names))]
            tasks = {name: range(given.first, given.first + n) for name, n in zip(names, shares, strict=True)}
            done = runner.fuzz(tasks, given.seed, bases.resolve(), build=given.build)
            for name, outcomes in done.items():
                print(f"  {name:<24} {_counts(outcomes.counts)}, {outcomes.seconds:.1f} s")
                total += outcomes.counts
                for finding in outcomes.findings:
                    findings[finding.key].append(finding)
                if given.save is not None:
                    runner.save(outcomes.findings, bases, given.save)
            print(f"{reader:<26} {total.total()}: {_counts(total)}; {time.monotonic() - begun:.0f} s", flush=True)
    for (kind, place), found in sorted(findings.items(), key=lambda item: -len(item[1])):
        one = found[0]
        where = f"--reader '{one.target}' --seed {one.seed} --first {one.number} --n 1"
        print(f"{len(found):>4} × {kind} in {place}: {one.mutation}; {where}")
    print(f"{len(findings)} distinct findings")
    return int(bool(findings))


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
