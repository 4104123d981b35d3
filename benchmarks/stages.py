"""Wall time and peak memory of every stage, store sizes, training and inference throughput.

    python -m benchmarks.stages --raw mosi=DIR --raw enrico=DIR --out benchmarks/out/stages.csv

Each stage runs in a separate process through the command line, as in the workflow. Wall time and peak resident memory
are reported by the operating system (wait4). Datasets without --raw are simulated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.forms import measure
from mrpipe.datasets import get_dataset
from mrpipe.store.reader import open_store

# Networks that train in seconds on a CPU, as in the demo; CMU-MOSI uses the defaults.
OVERRIDES = {
    "enrico": [
        "image_encoder=vgg11_bn",
        "image_downsample=4",
        "cnn_width=0.125",
        "image_outputs=64",
        "tokens=2",
        "hidden=64",
        "expert_ffn=64",
        "fusion_ffn=64",
    ]
}


def stages(name: str, raw: Path | None, settings: list[str], folder: Path) -> list[dict[str, object]]:
    """Run all stages of one dataset; returns one row per stage."""
    dataset, rows = get_dataset(name), []
    mrpipe = [sys.executable, "-m", "mrpipe"]
    store, work = folder / "store", folder / "work"
    extra = ["--set", *settings] if settings else []

    def run(stage: str, *command: str | Path) -> None:
        seconds, _, peak = measure([*mrpipe, *map(str, command)])
        rows.append({"dataset": name, "stage": stage, "seconds": round(seconds, 2), "peak_mib": round(peak)})

    if raw is None:
        raw = folder / "raw"
        run("simulate", "simulate", name, "--out", raw)
    place = ("--raw", raw, "--work", work, *extra)
    run("check", "check", name, *place)
    run("cohort", "cohort", name, *place)
    modalities = json.loads((work / "checked.json").read_text())["modalities"]
    for modality in modalities:
        run(f"ingest {modality}", "ingest", name, modality, *place)
    run("samples", "samples", name, "--work", work, "--modalities", *modalities)
    for scheme in dataset.schemes:
        run(f"split {scheme}", "split", name, "--work", work, "--scheme", scheme)
    run("seal", "seal", name, "--work", work, "--store", store)
    run("verify --deep", "verify", store, "--deep")
    size = sum(f["size"] for f in open_store(store).manifest.files) / 2**20
    rows.append({"dataset": name, "stage": f"store size: {size:.1f} MiB", "seconds": "", "peak_mib": ""})
    mask = folder / "mask.parquet"
    run("mask", "mask", store, "--p", "0.3", "--seed", "0", "--out", mask)
    # One thread, as in the workflow: runs are independent, and multi-threaded runs slow down on a busy machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    command = [
        sys.executable,
        "-m",
        "mrpipe",
        "train",
        "--store",
        store,
        "--mask",
        mask,
        "--out",
        folder / "run",
        "--quiet",
        "--set",
        "epochs=4",
        "patience=0",
        *OVERRIDES.get(name, []),
    ]
    seconds, _, peak = measure([str(c) for c in command])
    rows.append({"dataset": name, "stage": "train, 4 epochs", "seconds": round(seconds, 2), "peak_mib": round(peak)})
    for phase, file in (("training", "cost.json"), ("inference", "test_cost.json")):
        rate = json.loads((folder / "run" / file).read_text())["samples_per_second"]
        rows.append({"dataset": name, "stage": f"{phase} samples/s: {rate:.0f}", "seconds": "", "peak_mib": ""})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", action="append", default=[], metavar="NAME=DIR", help="a real export")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME.KEY=VALUE")
    parser.add_argument("--datasets", nargs="+", default=["mosi", "enrico"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/stages.csv"))
    args = parser.parse_args()
    raw = dict(pair.split("=", 1) for pair in args.raw)
    rows: list[dict[str, object]] = []
    for name in args.datasets:
        settings = [s.split(".", 1)[1] for s in args.set if s.startswith(f"{name}.")]
        with tempfile.TemporaryDirectory() as folder:
            rows += stages(name, Path(raw[name]) if name in raw else None, settings, Path(folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["dataset", "stage", "seconds", "peak_mib"])
        writer.writeheader()
        writer.writerows(rows)
    table = Table("dataset", "stage", "seconds", "peak MiB", box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = Console()
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    console.print(table)


if __name__ == "__main__":
    main()
