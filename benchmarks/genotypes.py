"""Measure the genotype pipeline at the size of the ADNI release, and compare it with plink.

    python benchmarks/genotypes.py --out benchmarks/out/genotypes   # 2,380 people x 600,000 SNPs, five sets
    python benchmarks/genotypes.py --out benchmarks/out/small --people 400 --snps 20000

An export is simulated (once, then reused), its stages run in separate processes, and another process profiles the
steps of the reader. Then plink 1.9 and plink 2 (Debian: apt-get install plink1.9 plink2) run the steps that they
support (quality control of each set, merge, pruning), and the SNPs that both keep are compared. Wall time and peak
memory are reported by the operating system (wait4). Results: benchmarks/genotypes.md.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The peak memory of a child process starts at that of its parent, so the parent imports nothing large.

# Steps of the reader → functions that implement them.
STEPS = {
    "open .bim, .fam, check .bed": "open_set",
    "read the reference": "read_reference",
    "quality control": "quality_control",
    "lift-over": "lift",
    "strands and alleles": "align",
    "choose people": "choose_people",
    "merge, .bed to rows": "merged_rows",
    "dictionary": "_dictionary",
    "write Parquet": "write_batches",
}
QC = ("--mind", "0.1", "--geno", "0.05", "--hwe", "1e-6", "--maf", "0.01")


def measure(command: list[str | Path], *, cwd: Path | None = None) -> tuple[float, float]:
    """Wall time in seconds and peak resident memory in MiB of a command."""
    begun = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{errors}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def report(what: str, seconds: float, peak: float, note: str = "") -> None:
    print(f"{what:44s} {seconds:8.1f} s {peak:8.0f} MiB  {note}", flush=True)


def build(raw: Path, out: Path, merge: str) -> Path:
    """Build a store with genotypes only, each stage in a separate process."""
    store, work = out / f"store.{merge}", out / f"work.{merge}"
    shutil.rmtree(store, ignore_errors=True)
    place = ["--raw", raw, "--work", work, "--set", "label=baseline_dx", f"merge={merge}"]
    run = [sys.executable, "-m", "mrpipe"]
    for stage in (
        ["check", "adni", *place],
        ["cohort", "adni", *place],
        ["ingest", "adni", "genomic", *place],
        ["samples", "adni", "--work", work, "--modalities", "genomic"],
        ["split", "adni", "--work", work, "--scheme", "standard"],
        ["seal", "adni", "--work", work, "--store", store],
        ["verify", store, "--deep"],
    ):
        report(f"{merge}: {stage[0]}", *measure([*run, *stage]))
    return store


def profile_steps(raw: Path, work: Path, merge: str) -> None:
    """Seconds per step of one ingest (in this process)."""
    from mrpipe.datasets import get_dataset
    from mrpipe.stages.ingest import ingest

    profile = cProfile.Profile()
    settings = {"label": "baseline_dx", "merge": merge}
    profile.runcall(ingest, get_dataset("adni"), "genomic", raw, work, work / "again", settings)
    stats: Any = pstats.Stats(profile)
    seconds = {name: 0.0 for name in STEPS}
    for (file, _, function), (_, _, _, cumulative, _) in stats.stats.items():
        for name, step_function in STEPS.items():
            if function == step_function and "mrpipe" in file:
                seconds[name] += cumulative
    # Batches are produced while they are written, so writing includes time of the reader.
    print(json.dumps({k: round(v, 1) for k, v in seconds.items()}))


def load(store: Path, part: str | None) -> None:
    """Open the store and load the packed array (in this process)."""
    import mrpipe

    begun = time.perf_counter()
    arrays = mrpipe.open_store(store).arrays("genomic", part=part)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": round(seconds, 2), "bytes": int(arrays.x.nbytes), "rows": len(arrays)}))


def prune(store: Path, out: Path) -> None:
    """Pruning and mode on training subjects (in this process); the names of kept SNPs are written to `out`."""
    import mrpipe
    from mrpipe.genetics.packing import LdOptions
    from mrpipe.transforms.genotypes import GenotypeTransform

    opened = mrpipe.open_store(store)
    arrays = opened.arrays("genomic", part="train")
    rows = opened.dictionary.filter(modality="genomic").sort("position")
    begun = time.perf_counter()
    fitted = GenotypeTransform.fit(arrays, rows, LdOptions())
    seconds = time.perf_counter() - begun
    out.write_text("\n".join(rows["name"].to_numpy()[fitted.kept].tolist()) + "\n")
    print(json.dumps({"seconds": round(seconds, 1), "people": len(arrays), "kept": len(fitted.kept)}))


ACTIONS: dict[str, Callable[..., None]] = {
    "steps": lambda raw, work, merge: profile_steps(Path(raw), Path(work), merge),
    "load": lambda store, part: load(Path(store), None if part == "all" else part),
    "prune": lambda store, out: prune(Path(store), Path(out)),
    "qc": lambda raw, theirs: qc(Path(raw), Path(theirs)),
    "to_plink": lambda store, prefix, part, third: to_plink(Path(store), Path(prefix), part, int(third)),
}


def child(*arguments: str | Path) -> tuple[dict[str, Any], float, float]:
    """Run one of the ACTIONS in a separate process; returns its JSON output, wall time and peak memory."""
    command = [sys.executable, __file__, *map(str, arguments)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(output.splitlines()[-1]), time.perf_counter() - begun, usage.ru_maxrss / 1024


def qc(raw: Path, theirs: Path) -> None:
    """Quality control of each set (in this process); compares the SNPs with those of plink's sets `theirs`."""
    import numpy as np

    from mrpipe.datasets.adni.genomic.plink import open_set
    from mrpipe.datasets.adni.genomic.qc import quality_control

    seconds, equal = 0.0, 0
    beds = sorted((raw / "genetics").glob("*.bed"))
    for bed in beds:
        begun = time.perf_counter()
        opened = open_set(bed)
        autosomes = opened.bim["chrom"].is_in([str(c) for c in range(1, 23)]).to_numpy()
        got = quality_control(opened, np.flatnonzero(autosomes), mind=0.1, geno=0.05, hwe=1e-6, maf=0.01)
        seconds += time.perf_counter() - begun
        # plink sorts SNPs by position, so the names are compared as sets.
        lines = theirs.with_name(f"{theirs.name}.{bed.stem}.bim").read_text().splitlines()
        equal += {line.split("\t")[1] for line in lines} == set(opened.bim["id"].to_numpy()[got.snps].tolist())
    print(json.dumps({"seconds": seconds, "equal": equal}))


def to_plink(store: Path, prefix: Path, part: str, third: int) -> None:
    """Write the genotypes of the store as a PLINK set, in blocks of SNPs (in this process).

    Args:
        part: split whose subjects are written.
        third: leave out every third SNP, starting with this one; −1: none.
    """
    import numpy as np
    import polars as pl

    import mrpipe
    from mrpipe.datasets.adni.genomic.plink import write_set
    from mrpipe.genetics.packing import bed_rows, unpack_range

    opened = mrpipe.open_store(store)
    arrays = opened.arrays("genomic", part=part)
    rows = opened.dictionary.filter(modality="genomic").sort("position")
    place = rows["description"].str.extract_groups(r"^(?<chrom>\w+):(?<pos>\d+):(?<a2>\w):(?<a1>\w)").struct.unnest()
    bim = place.select("chrom", rows["name"].alias("id"), pl.col("pos").cast(pl.Int64), "a1", "a2")
    fam = pl.DataFrame({"fid": "0", "iid": arrays.sample_id.tolist(), "father": "0", "mother": "0", "sex": "1"})
    keep = np.arange(len(bim)) % 3 != third
    blocks = (
        bed_rows(unpack_range(arrays.x, start, min(start + 4096, len(bim)))[:, keep[start : start + 4096]])
        for start in range(0, len(bim), 4096)
    )
    write_set(prefix, fam, bim.filter(pl.Series(keep)), blocks)
    print(json.dumps({"people": len(fam), "snps": int(keep.sum())}))


def beside_plink(raw: Path, store: Path, out: Path) -> None:
    """Run plink on the same data: quality control of each set, merge of aligned sets, pruning on training subjects."""
    programs = [p for p in ("plink1.9", "plink2") if shutil.which(p)]
    if not programs:
        print("plink is not installed: no comparison")
        return
    scratch = out / "plink"
    scratch.mkdir(exist_ok=True)
    beds = sorted((raw / "genetics").glob("*.bed"))
    for program in programs:
        total, top = 0.0, 0.0
        for bed in beds:
            quiet = ["--threads", "1", "--allow-no-sex"] if program == "plink1.9" else ["--threads", "1"]
            seconds, peak = measure(
                [
                    program,
                    "--bfile",
                    bed.with_suffix(""),
                    "--chr",
                    "1-22",
                    *QC,
                    *quiet,
                    "--make-bed",
                    "--out",
                    scratch / f"{program}.{bed.stem}",
                ]
            )
            total, top = total + seconds, max(top, peak)
        report(f"{program}: quality control of {len(beds)} sets", total, top)
    answer, wall, peak = child("qc", raw, scratch / programs[0])
    note = f"same SNPs as plink in {answer['equal']} of {len(beds)}, {wall:.0f} s in total"
    report("ours: quality control of the sets", answer["seconds"], peak, note)
    child("to_plink", store, scratch / "train", "train", "-1")
    kept = out / "kept.txt"
    answer, wall, peak = child("prune", store, kept)
    note = f"{answer['people']} people, {answer['kept']} kept, {wall:.0f} s in total"
    report("fitting the transform", answer["seconds"], peak, note)
    for program in programs:
        seconds, peak = measure(
            [
                program,
                "--bfile",
                scratch / "train",
                "--indep-pairwise",
                "50",
                "5",
                "0.1",
                "--threads",
                "1",
                "--out",
                scratch / f"{program}.prune",
                *(["--allow-no-sex"] if program == "plink1.9" else []),
            ]
        )
        theirs = set((scratch / f"{program}.prune.prune.in").read_text().split())
        ours = set(kept.read_text().split())
        report(
            f"{program}: the same", seconds, peak, f"{len(theirs)} kept, ours {len(ours)}, both {len(theirs & ours)}"
        )
    # Two groups of people with the SNPs of different chips, as sets on the same strand.
    chips = [child("to_plink", store, scratch / f"chip{k}", ("train", "val")[k], str(k))[0] for k in (0, 1)]
    seconds, peak = measure(
        [
            "plink1.9",
            "--bfile",
            scratch / "chip0",
            "--bmerge",
            scratch / "chip1",
            "--make-bed",
            "--threads",
            "1",
            "--allow-no-sex",
            "--out",
            scratch / "merged",
        ]
    )
    note = " + ".join(f"{c['people']} people x {c['snps']} SNPs" for c in chips)
    report("plink1.9: --bmerge of two aligned sets", seconds, peak, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=2380, help="genotyped participants")
    parser.add_argument("--snps", type=int, default=600_000, help="total number of SNPs on all chips")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    raw = args.out / "raw"
    run = [sys.executable, "-m", "mrpipe"]
    if not raw.exists():
        # Half of all simulated participants are genotyped.
        report(
            "simulate",
            *measure(
                [
                    *run,
                    "simulate",
                    "adni",
                    "--out",
                    raw,
                    "--set",
                    f"n_subjects={2 * args.people}",
                    f"n_snps={args.snps}",
                    "images=false",
                ]
            ),
        )
    size = sum(p.stat().st_size for p in (raw / "genetics").glob("*.bed"))
    print(f"{len(list((raw / 'genetics').glob('*.bed')))} sets, {size / 1e6:.0f} MB of .bed")
    for merge in ("intersection", "union"):
        store = build(raw, args.out, merge)
        steps, _, peak = child("steps", raw, args.out / f"work.{merge}", merge)
        for name, seconds in steps.items():
            report(f"  {merge}: {name}", seconds, peak)
        table = store / "modalities" / "genomic.parquet"
        for part in ("all", "train"):
            answer, _, peak = child("load", store, part)
            n_snps = int(json.loads((store / "manifest.json").read_text())["modalities"][0]["shape"][0])
            report(
                f"{merge}: open_store, {part}",
                answer["seconds"],
                peak,
                f"{answer['rows']} x {n_snps}; table {table.stat().st_size / 1e6:.0f} MB, packed "
                f"{answer['bytes'] / 1e6:.0f} MB, float64 {8e-6 * answer['rows'] * n_snps:.0f} MB",
            )
    beside_plink(raw, args.out / "store.union", args.out)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ACTIONS:
        ACTIONS[sys.argv[1]](*sys.argv[2:])
    else:
        main()
