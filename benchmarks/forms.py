"""Cost of reading the same data in several forms: seconds, peak memory and store id of a build.

    python -m benchmarks.forms mimic csv.gz=DIR parquet=DIR [--set KEY=VALUE ...] [--repeat 3]
    python -m benchmarks.forms mimic --simulate csv.gz csv parquet --folder DIR --sizes n_lab_rows=3000000

Each build runs in a process of its own, from the check to the sealed store; wall time, CPU time and peak resident
memory are reported by the operating system (wait4). Repeated runs are interleaved, and the median is printed. With
--simulate, the folders are written first (simulation option `form`), unless they exist. The exit status is 1 if the
store ids differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MRPIPE = [sys.executable, "-m", "mrpipe"]


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall time and CPU time in seconds, and peak resident memory in MiB, of a command."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def build(dataset: str, raw: Path, settings: list[str]) -> tuple[tuple[float, float, float], str]:
    """Cost of a build, and the id of its store."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        command = [*MRPIPE, "build", dataset, "--raw", str(raw), "--out", str(store)]
        cost = measure([*command, *(["--set", *settings] if settings else [])])
        return cost, json.loads((store / "manifest.json").read_text())["store_id"]


def simulated(dataset: str, folder: Path, form: str, sizes: list[str]) -> Path:
    """Folder of a simulated export in one form."""
    raw = folder / form
    if not raw.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        measure([*MRPIPE, "simulate", dataset, "--out", str(raw), "--set", f"form={form}", *sizes])
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("forms", nargs="*", metavar="NAME=DIR", help="folders of the same data")
    parser.add_argument("--simulate", nargs="+", default=[], metavar="FORM")
    parser.add_argument("--folder", type=Path, help="where simulated exports are kept")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="KEY=VALUE", help="simulation options")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="reader options")
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    folders = {name: Path(path) for name, path in (pair.split("=", 1) for pair in args.forms)}
    if args.simulate:
        kept = args.folder or Path(tempfile.mkdtemp())
        folders |= {form: simulated(args.dataset, kept, form, args.sizes) for form in args.simulate}
    costs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in folders}
    ids: dict[str, str] = {}
    for _ in range(args.repeat):
        for name, raw in folders.items():
            cost, ids[name] = build(args.dataset, raw, args.set)
            costs[name].append(cost)
    print(f"{'form':<16} {'size MiB':>9} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}  store id")
    for name, raw in folders.items():
        size = sum(p.stat().st_size for p in raw.rglob("*") if p.is_file()) / 2**20
        wall, cpu, peak = (statistics.median(values) for values in zip(*costs[name], strict=True))
        print(f"{name:<16} {size:>9.1f} {wall:>8.2f} {cpu:>8.2f} {peak:>9.0f}  {ids[name]}")
    if args.simulate and not args.folder:
        shutil.rmtree(kept)
    if len(set(ids.values())) > 1:
        raise SystemExit("the store ids differ")


if __name__ == "__main__":
    main()
