"""Line and branch coverage per package by the fast unit tests, with the least shares that are accepted.

    python -m tests.coverage_by_package                 prints a table; exit code 1 below a threshold

Only the tests of the core packages are measured: measurement doubles their time on Python 3.11, which has no
`sys.monitoring`. The thresholds are slightly below what was measured, so that they hold only against a loss; raise
them with the coverage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
# Package → least share of its lines and branches, in percent.
THRESHOLDS = {"mrpipe": 82, "mrpipe.experiment": 93, "mrpipe.stages": 81, "mrpipe.store": 84, "mrpipe.transforms": 86}
TESTS = ("core", "store", "transforms", "experiment")
_SETTINGS = """[run]
branch = True
parallel = True
patch = subprocess
disable_warnings = no-data-collected
data_file = {folder}/data
source = mrpipe
omit = */simulate/*
[json]
output = {folder}/coverage.json
[report]
exclude_also = if TYPE_CHECKING
"""


def package_of(file: str) -> str:
    """Package of a module: `mrpipe.datasets.mosi`, else its two first parts."""
    parts = Path(file).with_suffix("").parts
    parts = parts[parts.index("mrpipe") if "mrpipe" in parts else parts.index("moe_retriever") :]
    return ".".join(
        parts[: 3 if parts[:2] == ("mrpipe", "datasets") and len(parts) > 3 else 2 if len(parts) > 2 else 1]
    )


def shares(report: Mapping[str, Any]) -> dict[str, float]:
    """Package → covered share of its lines and branches, in percent."""
    covered, total = Counter[str](), Counter[str]()
    for file, entry in report["files"].items():
        summary, package = entry["summary"], package_of(file)
        covered[package] += summary["covered_lines"] + summary["covered_branches"]
        total[package] += summary["num_statements"] + summary["num_branches"]
    return {package: 100 * covered[package] / total[package] for package in sorted(total) if total[package]}


def below(found: Mapping[str, float], thresholds: Mapping[str, int]) -> list[str]:
    """Packages whose coverage is below their threshold, or that were not measured."""
    return [package for package, least in thresholds.items() if found.get(package, 0.0) < least]


def main() -> int:
    """Run the tests under measurement and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings"
        settings.write_text(_SETTINGS.format(folder=folder))
        coverage = [sys.executable, "-m", "coverage"]
        tests = [f"tests/{t}" for t in TESTS]
        options = ["-q", "-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider"]
        options += ["-m", "not slow and not cluster and not whole and not real_data"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        run = [*coverage, "run", f"--rcfile={settings}", "-m", "pytest", *options, *sys.argv[1:], *tests]
        failed = subprocess.run(run, cwd=PROJECT, env=env).returncode
        subprocess.run([*coverage, "combine", f"--rcfile={settings}", "-q"], cwd=PROJECT, check=True)
        subprocess.run([*coverage, "json", f"--rcfile={settings}", "-q"], cwd=PROJECT, check=True)
        found = shares(json.loads((Path(folder) / "coverage.json").read_text()))
    low = below(found, THRESHOLDS)
    for package, share in ((p, s) for p, s in found.items() if p in THRESHOLDS):
        note = "  below the threshold" if package in low else ""
        print(f"{package:<32} {share:5.1f} %  at least {THRESHOLDS.get(package, 0):>2} %{note}")
    return failed or int(bool(low))


if __name__ == "__main__":
    sys.exit(main())
