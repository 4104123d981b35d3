"""The whole of MIMIC-IV, from export to loading for training: cost of each step, compared with `gzip -dc` of all files.

    python -m benchmarks.mimic_whole --folder DIR --scale 0.1 1.0 [--form csv.gz parquet] [--set min_visits=1 icd9=off]

For each size, an export with the counts of release 3.1 times the scale is simulated unless it exists (22 GB at scale
1.0). Each step runs in a separate process. Wall time, CPU time including children, peak resident memory, bytes read,
and the number of complete passes over each table are measured. Results are appended to whole.json in the folder.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.mimic_whole_export import make_exports
from benchmarks.mimic_yardsticks import GZIP, measure

LARGE = ("hosp/labevents", "icu/chartevents", "note/discharge", "hosp/diagnoses_icd", "hosp/procedures_icd")
CHILD = """
import json, sys
from collections import Counter
from pathlib import Path
from mrpipe.datasets.mimic.scan import parquet, scanner

passes = Counter()

def counted(cls):
    original = cls.frames
    def frames(self, advance):
        yield from original(self, advance)
        passes[self.shown_as.split(".")[0]] += 1
    cls.frames = frames

counted(scanner.CsvPart), counted(parquet.ParquetPart)
out, *arguments = sys.argv[1:]
if arguments[0] == "load":
    from benchmarks.loader import load, open_store, own_batches
    data = load(open_store(Path(arguments[1])))
    if arguments[2] == "epoch":
        for inputs, label in own_batches(data, 0):
            pass
else:
    from mrpipe.cli.main import main
    assert main(arguments) == 0
io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
Path(out).write_text(json.dumps({"read_mib": int(io["rchar"]) >> 20, "passes": passes}))
"""


def steps(raw: Path, work: Path, store: Path, options: list[str]) -> dict[str, list[str]]:
    """Map steps to arguments of `mrpipe`, or of `load`."""
    place, chosen = ["--raw", str(raw), "--work", str(work)], ["--set", *options] if options else []
    prepared = ["prepare", "mimic", "lab", "--part", "0"]
    modalities = ["lab", "note", "code", "lab_summary"]
    found = {"check": ["check", "mimic", *place, *chosen], "cohort": ["cohort", "mimic", *place, *chosen]}
    found["prepare lab"] = [*prepared, *place, *chosen]
    found |= {f"ingest {m}": ["ingest", "mimic", m, *place, *chosen] for m in modalities}
    found["samples"] = ["samples", "mimic", "--work", str(work), "--modalities", *modalities]
    found["split"] = ["split", "mimic", "--work", str(work), "--scheme", "standard"]
    found["seal"] = ["seal", "mimic", "--work", str(work), "--store", str(store)]
    found["verify --deep"] = ["verify", str(store), "--deep"]
    found["load"] = ["load", str(store), "only"]
    found["load and an epoch"] = ["load", str(store), "epoch"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scale", nargs="+", default=["0.1", "1.0"])
    parser.add_argument("--form", nargs="+", default=["csv.gz", "parquet"])
    parser.add_argument("--set", nargs="+", default=[], help="options of the reader")
    parser.add_argument("--only", nargs="+", help="steps (default: all, after removing earlier results)")
    args = parser.parse_args()
    for scale in args.scale:
        root = args.folder / scale
        if not root.exists():
            making = root.with_name(f"{scale}.tmp")
            make_exports(making, float(scale))
            making.rename(root)
        yardstick: dict[str, float] = {}
        for form in args.form:
            raw, work, store = root / form, args.folder / f"{scale}.{form}.work", args.folder / f"{scale}.{form}.store"
            if not args.only:
                shutil.rmtree(work, ignore_errors=True)
            size = sum(p.stat().st_size for p in raw.rglob("*.*")) >> 20
            files = " ".join(str(p) for p in sorted((root / "csv.gz").rglob("*.csv.gz")))
            if not yardstick and (not args.only or "gzip" in args.only):
                yardstick = measure(["bash", "-c", GZIP.format(files=files)])
                report(args.folder, {"scale": scale, "form": "csv.gz", "step": "gzip -dc", **yardstick})
            total = {"wall_s": 0.0, "cpu_s": 0.0, "rss_mib": 0.0}
            for step, arguments in steps(raw, work, store, args.set).items():
                if args.only and step not in args.only:
                    continue
                facts = args.folder / "facts.json"
                cost = measure([sys.executable, "-c", CHILD, str(facts), *arguments])
                if step != "load":
                    total = {k: max(v, cost[k]) if k == "rss_mib" else v + cost[k] for k, v in total.items()}
                found = json.loads(facts.read_text())
                passes = {t: n for t, n in found["passes"].items() if t in LARGE}
                entry = {"scale": scale, "form": form, "set": args.set, "step": step, **cost}
                report(args.folder, entry | {"read_mib": found["read_mib"], "export_mib": size, "passes": passes})
            ratio = round(total["cpu_s"] / yardstick["cpu_s"], 2) if yardstick else None
            report(args.folder, {"scale": scale, "form": form, "step": "total", **total, "of gzip": ratio})


def report(folder: Path, entry: dict[str, object]) -> None:
    """Append a result to whole.json and print it."""
    entry = {"load": round(os.getloadavg()[0], 1), **entry}
    with (folder / "whole.json").open("a") as handle:
        handle.write(json.dumps(entry) + "\n")
    cost = f"{entry['wall_s']:8.1f} s {entry['cpu_s']:8.1f} cpu s {entry['rss_mib']:6.0f} MiB"
    rest = {k: entry[k] for k in ("read_mib", "passes", "of gzip") if entry.get(k)}
    print(f"{entry['scale']:>5} {entry['form']:8} {entry['step']:18} {cost}  {rest}", flush=True)


if __name__ == "__main__":
    main()
