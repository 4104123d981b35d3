"""Cost of reading labevents and chartevents of MIMIC-IV, compared with gzip, pandas, DuckDB and polars.

    python benchmarks/mimic_yardsticks.py --folder /scratch/mimic --rows 14000000 140000000 [--only gzip mrpipe]

For each size, an export is simulated unless it exists (5 of 7 rows are chart events, a tenth of the patients are in the
cohort, each table has 1,000 rare items). Each yardstick then runs in a separate process; wall time, CPU time including
children, and peak resident memory are measured. Except for gzip, the task is to write the numeric measurements of the
cohort's patients to a Parquet file, sorted by patient and time. mrpipe does more (visits, units, ranges, repeats).
Results are appended to results.json in the folder and printed as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = ["subject_id", "itemid", "charttime", "valuenum", "valueuom"]
TABLES = ("hosp/labevents", "icu/chartevents")
GZIP = "for f in {files}; do gzip -dc $f > /dev/null; done"
INFLATE = """
import sys
{module}
for path in sys.argv[1:]:
    with {call} as handle:
        buffer = bytearray(8 << 20)
        while handle.readinto(buffer): pass
"""
PANDAS = """
import sys, pandas as pd
subjects = set(pd.read_parquet(sys.argv[1], columns=["sample_id"])["sample_id"].astype(int))
frames = [pd.read_csv(p, usecols={columns}, parse_dates=["charttime"]) for p in sys.argv[3:]]
rows = pd.concat(frames)
rows = rows[rows["subject_id"].isin(subjects) & rows["valuenum"].notna()]
rows.sort_values(["subject_id", "charttime", "itemid"]).to_parquet(sys.argv[2])
"""
DUCKDB = """
import sys, duckdb
db = duckdb.connect()
db.execute("SET temp_directory = '" + sys.argv[2] + ".tmp'")
csv = "SELECT {names} FROM read_csv('{{}}', header=true, all_varchar=true)"
rows = " UNION ALL ".join(csv.format(p) for p in sys.argv[3:])
db.execute(f\"\"\"COPY (
  SELECT CAST(subject_id AS BIGINT) AS subject_id, CAST(itemid AS BIGINT) AS itemid,
         CAST(charttime AS TIMESTAMP) AS charttime, CAST(valuenum AS DOUBLE) AS valuenum, valueuom
  FROM ({{rows}}) WHERE valuenum IS NOT NULL
    AND CAST(subject_id AS BIGINT) IN (SELECT CAST(sample_id AS BIGINT) FROM '{{sys.argv[1]}}')
  ORDER BY subject_id, charttime, itemid) TO '{{sys.argv[2]}}' (FORMAT parquet)\"\"\")
"""
POLARS = """
import sys, polars as pl
types = {{"subject_id": pl.Int64, "itemid": pl.Int64, "charttime": pl.Datetime("us"), "valuenum": pl.Float64}}
subjects = pl.read_parquet(sys.argv[1])["sample_id"].cast(pl.Int64).implode()
def rows(path):
    header = pl.read_csv(path, n_rows=0).columns
    return (pl.scan_csv(path, schema={{h: types.get(h, pl.String) for h in header}}).select({columns})
            .filter(pl.col("subject_id").is_in(subjects) & pl.col("valuenum").is_not_null()))
frame = pl.concat([rows(p) for p in sys.argv[3:]]).sort("subject_id", "charttime", "itemid")
frame.collect(engine="streaming").write_parquet(sys.argv[2])
"""
MRPIPE = """
import sys
from mrpipe.cli.main import main
raw, work, store = sys.argv[1:]
assert main(["prepare", "mimic", "lab", "--part", "0", "--raw", raw, "--work", work]) == 0
assert main(["ingest", "mimic", "lab", "--raw", raw, "--work", work]) == 0
"""


def measure(command: list[str]) -> dict[str, float]:
    """Wall time and CPU time in seconds, and peak resident memory in MiB, of a command."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if status:
        raise RuntimeError(f"{command[:3]}: {error.decode()[-2000:]}")
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "rss_mib": round(usage.ru_maxrss / 1024),
    }


def commands(folder: Path, raw: Path) -> dict[str, list[str]]:
    """Map yardsticks to commands."""
    files = [str(raw / f"{t}.csv.gz") for t in TABLES]
    work, store = folder / f"{raw.name}.work", folder / f"{raw.name}.store"
    python, out = [sys.executable, "-c"], str(folder / "out.parquet")
    cohort = str(work / "cohort.parquet")
    fill = {"columns": COLUMNS, "names": ", ".join(COLUMNS)}
    inflate = {
        "isal": ("from isal import igzip", "igzip.open(path, 'rb')"),
        "rapidgzip, 2 threads": ("import rapidgzip", "rapidgzip.open(path, parallelization=2)"),
        "zlib-ng": ("from zlib_ng import gzip_ng", "gzip_ng.open(path, 'rb')"),
    }
    return {
        "gzip": ["bash", "-c", GZIP.format(files=" ".join(files))],
        "mrpipe": [*python, MRPIPE, str(raw), str(work), str(store)],
        "duckdb": [*python, DUCKDB.format(**fill), cohort, out, *files],
        "polars": [*python, POLARS.format(**fill), cohort, out, *files],
        "pandas": [*python, PANDAS.format(**fill), cohort, out, *files],
        **{f"inflate: {n}": [*python, INFLATE.format(module=m, call=c), *files] for n, (m, c) in inflate.items()},
    }


def export_of(folder: Path, rows: int) -> tuple[Path, dict[str, float] | None]:
    """The simulated export with this number of rows, and its cost if it was simulated now."""
    raw = folder / f"rows{rows}"
    cost = None
    if not raw.exists():
        settings = {
            "n_patients": max(400, rows // 2000),
            "n_chart_rows": rows * 5 // 7,
            "n_lab_rows": rows - rows * 5 // 7,
            "eligible": 0.1,
            "n_rare_items": 1000,
            "notes": False,
        }
        pairs = [f"{k}={json.dumps(v)}" for k, v in settings.items()]
        cost = measure([sys.executable, "-m", "mrpipe", "simulate", "mimic", "--out", str(raw), "--set", *pairs])
    work = folder / f"{raw.name}.work"
    if not (work / "cohort.parquet").exists():
        measure([sys.executable, "-m", "mrpipe", "cohort", "mimic", "--raw", str(raw), "--work", str(work)])
    return raw, cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[14_000_000, 140_000_000])
    parser.add_argument("--only", nargs="+", help="yardsticks (default: all)")
    parser.add_argument("--repeat", type=int, default=1, help="runs per yardstick, interleaved; all results are kept")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results = args.folder / "results.json"
    for rows in args.rows:
        raw, cost = export_of(args.folder, rows)
        size = sum((raw / f"{t}.csv.gz").stat().st_size for t in TABLES)
        runs = {"simulate": cost} if cost else {}
        for name, command in [c for _ in range(args.repeat) for c in commands(args.folder, raw).items()]:
            if args.only and name not in args.only:
                continue
            runs[name] = measure(command)
            entry = {
                "rows": rows,
                "gz_mib": round(size / 2**20),
                "name": name,
                "load": round(os.getloadavg()[0], 1),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                **runs[name],
            }
            with results.open("a") as handle:
                handle.write(json.dumps(entry) + "\n")
            print(
                f"{rows:>11,}  {name:22}  {entry['wall_s']:8.1f} s  {entry['cpu_s']:8.1f} cpu s  "
                f"{entry['rss_mib']:6} MiB  "
                f"{rows / entry['wall_s'] / 1e6:5.2f} M rows/s  "
                f"load {entry['load']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
