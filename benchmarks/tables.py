"""Cost of declared tables: one file of n rows and 300 columns in five modalities, compared with pandas.

    python -m benchmarks.tables --folder DIR --rows 100000 1000000 [--only build pandas] [--repeat 3]

An export is written once per size: a CSV file (about 1.7 GB at 1,000,000 rows) and the same table as Parquet. Each
modality has 45 numbers, 9 categories, 4 flags and 2 dates; per column, 1 to 30 % of the cells are missing at random,
and a fifth of the samples lacks a modality. Each task runs in a process of its own; wall time, CPU time (user and
system) and peak resident memory are appended to DIR/results.json. The task of pandas is to read the CSV file and write
the matrices that training uses: numbers and days standardised by the training rows, categories one-hot, and masks of
missing cells. `pandas store` writes instead what `build` writes: a Parquet file (float32, zstd) per modality with its
observed rows, samples with masks, the label and two splits, and the SHA-256 of all files. It checks nothing, and draws
a split by subject without regard to classes. `build` also checks the export and verifies, hashes and seals the store.
`load` loads that store as a training does and takes 100 batches of 512 samples; `train` takes 40 training steps of
`moe_retriever` with retrieval and batches of 512.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from benchmarks.mimic_yardsticks import measure

MODALITIES = ("vitals", "labs", "drugs", "history", "survey")
NUMBERS, CATEGORIES, FLAGS, DATES = 45, 9, 4, 2
WORDS = ("none", "mild", "moderate", "severe", "declined", "other", "left", "right")
STEP = 50_000  # rows in memory while an export is written
PANDAS = """
import sys, numpy as np, pandas as pd
raw, out = sys.argv[1:]
frame = pd.read_csv(raw)
frame["ward_round"] = pd.to_datetime(frame["ward_round"])
train = (frame["fold"] == "train").to_numpy()
for name in {modalities}:
    columns = [c for c in frame.columns if c.startswith(name + "_")]
    part, mask, blocks = frame[columns], frame[columns].notna().to_numpy(), []
    for c in columns:
        if "_date" in c:
            part = part.assign(**{{c: (pd.to_datetime(part[c]) - frame["ward_round"]).dt.total_seconds() / 86400}})
    numbers = [c for c in columns if "_cat" not in c]
    x = part[numbers].to_numpy(dtype=np.float32)
    mean, sd = np.nanmean(x[train], axis=0), np.nanstd(x[train], axis=0)
    blocks.append(np.nan_to_num((x - mean) / sd))
    blocks.append(pd.get_dummies(part[[c for c in columns if "_cat" in c]], dtype=np.float32).to_numpy())
    np.savez(out + "_" + name + ".npz", x=np.concatenate(blocks, axis=1), mask=mask, row=mask.any(axis=1))
"""
PANDAS_STORE = """
import sys, hashlib, numpy as np, pandas as pd
raw, out = sys.argv[1:]
frame = pd.read_csv(raw, dtype={{"visit": str, "patient": str}})
frame["ward_round"] = pd.to_datetime(frame["ward_round"])
samples, files = frame[["visit", "patient", "ward_round"]].assign(mask=np.uint16(0)), [raw]
def write(name, table):
    files.append(f"{{out}}_{{name}}.parquet")
    table.to_parquet(files[-1], compression="zstd", index=False)
for bit, name in enumerate({modalities}):
    part = frame[[c for c in frame.columns if c.startswith(name + "_")]].copy()
    for c in part.columns:
        if "_date" in c:
            part[c] = (pd.to_datetime(part[c]) - frame["ward_round"]).dt.total_seconds() / 86400
        elif "_cat" in c:
            codes = part[c].astype("category").cat.codes
            part[c] = codes.where(codes >= 0)
    row = part.notna().any(axis=1)
    samples["mask"] |= row.to_numpy().astype(np.uint16) << bit
    samples["row_" + name] = (row.cumsum() - 1).where(row).astype("Int32")
    part = part[row].astype(np.float32)
    part.insert(0, "visit", frame.loc[row, "visit"])
    write(name, part)
write("samples", samples)
write("label", frame[["visit", "died"]])
write("split_column", frame[["visit", "fold"]])
patients = frame["patient"].unique()
part = pd.cut(np.random.default_rng(0).permutation(len(patients)) / len(patients), [-1, 0.7, 0.85, 1], labels=False)
write("split_drawn", frame[["visit"]].assign(part=frame["patient"].map(dict(zip(patients, part)))))
print([hashlib.file_digest(open(f, "rb"), "sha256").hexdigest() for f in files])
"""
LOAD = """
import sys
from moe_retriever.data.load import load
from moe_retriever.training.loop import batches
from mrpipe import open_store
data = load(open_store(sys.argv[1]))
for k, index in enumerate(batches(data.rows("train"), 512, 0, 0)):
    batch = data.batch(index, "epoch 0")
    for m, table in enumerate(data.tables):
        table.gather(batch.table_rows(m)[1])
    if k == 99:
        break
"""
TRAIN = """
import sys
import torch
from moe_retriever.config import make_config
from moe_retriever.data.load import load
from moe_retriever.methods import get
from moe_retriever.nn.kernels.allocator import keep_freed_memory, release_if_grown
from moe_retriever.training import loop
from mrpipe import open_store
torch.set_num_threads(1)
data, method = load(open_store(sys.argv[1])), get("moe_retriever")
keep_freed_memory()
rows = data.rows("train")
config = make_config(method, preset="paper", seed=0, overrides={"batch_size": 512, "warmup": 0})
model = method.create(data.spec, config.for_samples(len(rows)).for_task(data.spec.kinds))
model.prepare(data, rows)
model.begin_epoch(0, 1)
model.train()
optimiser, needed = loop.make_optimiser(model), 0
for index in loop.batches(rows, 512, 0, 0)[:40]:
    loop.train_step(model, data.batch(index, "epoch 0"), optimiser)
    needed = release_if_grown(needed)
"""


def rows_of(start: int, n: int, total: int) -> pl.DataFrame:
    """Rows `start` to `start + n` of an export of `total` rows; those of a file do not depend on STEP alone."""
    rng = np.random.default_rng([start, 17])
    day = np.datetime64("2020-01-01") + rng.integers(0, 1000, n)
    risk = rng.normal(size=n)
    number = np.arange(start, start + n)
    columns: dict[str, object] = {
        "visit": pl.Series(number).cast(pl.String).str.zfill(8),
        "patient": pl.Series(number // 2).cast(pl.String),
        "ward_round": pl.Series(day).cast(pl.Date).cast(pl.String),
        "fold": pl.Series(np.array(["train", "train", "train", "val", "test"])[number // 2 % 5]),
        "died": (risk + rng.normal(size=n) > 1).astype(np.int8),
    }
    for m, name in enumerate(MODALITIES):
        lacking = rng.random(n) < 0.2
        found: dict[str, pl.Series] = {}
        for k in range(NUMBERS):
            x = 10.0 ** (k % 4) * (5 + rng.normal(size=n) + (0.3 * risk if k < 5 else 0.0))
            found[f"{name}_x{k}"] = pl.Series(np.round(x, 3 - k % 4 if k % 9 else 0))
        for k in range(CATEGORIES):
            found[f"{name}_cat{k}"] = pl.Series(np.array(WORDS)[rng.integers(0, 3 + k % 6, n)])
        for k in range(FLAGS):
            found[f"{name}_flag{k}"] = pl.Series((rng.random(n) < 0.1 * (k + 1)).astype(np.int8))
        for k in range(DATES):
            found[f"{name}_date{k}"] = pl.Series(day - rng.integers(1, 400, n)).cast(pl.Date).cast(pl.String)
        for k, (column, values) in enumerate(found.items()):
            gone = lacking | (rng.random(n) < 0.01 + 0.29 * ((k + m) % 10 / 9) ** 2)
            columns[column] = values.to_frame("x").select(pl.when(pl.lit(pl.Series(~gone))).then("x"))["x"]
    return pl.DataFrame(columns)


def export_of(folder: Path, rows: int) -> Path:
    """The folder `rows<N>`, with `csv/visits.csv` and `parquet/visits.parquet` and their declarations."""
    raw = folder / f"rows{rows}"
    if raw.exists():
        return raw
    unfinished = folder / f"unfinished{rows}"
    shutil.rmtree(unfinished, ignore_errors=True)
    declared = {
        "id": "visit",
        "subject": "patient",
        "prediction_time": "ward_round",
        "modalities": {m: {"columns": f"{m}_*", "kinds": {"*_date*": "date"}} for m in MODALITIES},
        "label": {"column": "died", "classes": [0, 1]},
        "split": {"column": "fold"},
    }
    for form in ("csv", "parquet"):
        (unfinished / form).mkdir(parents=True)
        text = yaml.safe_dump({"file": f"visits.{form}", **declared}, sort_keys=False)
        (unfinished / form / "tables.yaml").write_text(text)
    with (unfinished / "csv/visits.csv").open("wb") as handle:
        for start in range(0, rows, STEP):
            part = rows_of(start, min(STEP, rows - start), rows)
            part.write_csv(handle, include_header=start == 0)
    source = pl.scan_csv(unfinished / "csv/visits.csv", schema_overrides={"visit": pl.String, "patient": pl.String})
    source.sink_parquet(unfinished / "parquet/visits.parquet", compression="zstd", compression_level=1)
    return unfinished.rename(raw)


def commands(folder: Path, raw: Path) -> dict[str, list[str]]:
    """Map tasks to commands."""
    python, mrpipe, store = [sys.executable, "-c"], [sys.executable, "-m", "mrpipe"], f"{folder / raw.name}.store"
    out, forms = f"{folder / raw.name}.out", {form: ["tables", "--raw", str(raw / form)] for form in ("csv", "parquet")}
    return {
        "pandas": [*python, PANDAS.format(modalities=MODALITIES), str(raw / "csv/visits.csv"), out],
        "pandas store": [*python, PANDAS_STORE.format(modalities=MODALITIES), str(raw / "csv/visits.csv"), out],
        "check csv": [*mrpipe, "check", *forms["csv"]],
        "check parquet": [*mrpipe, "check", *forms["parquet"]],
        "build parquet": [*mrpipe, "build", *forms["parquet"], "--out", f"{store}.parquet", "--overwrite"],
        "build csv": [*mrpipe, "build", *forms["csv"], "--out", store, "--overwrite"],
        "load": [*python, LOAD, store],
        "train": [*python, TRAIN, store],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", default=[""], help="first letters of the tasks to run (default: all)")
    parser.add_argument("--repeat", type=int, default=1, help="runs per task, interleaved")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for rows in args.rows:
        raw = export_of(args.folder, rows)
        for name, command in [c for _ in range(args.repeat) for c in commands(args.folder, raw).items()]:
            if name.startswith(tuple(args.only)):
                entry = {"rows": rows, "task": name, **measure(command)}
                with (args.folder / "results.json").open("a") as handle:
                    handle.write(json.dumps(entry) + "\n")
                print(entry, flush=True)
            for file in [*args.folder.glob("*.npz"), *args.folder.glob("*.out_*.parquet")]:
                file.unlink()


if __name__ == "__main__":
    main()
