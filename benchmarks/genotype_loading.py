"""Genotypes from file to encoder input: packed Parquet compared with the pandas pipeline of the released code.

Each side runs in a separate process, `python -m benchmarks.genotype_loading SIDE FOLDER N_SNPS`, which prints its time
in seconds and its peak memory beyond the imports. Pandas pipeline: float32 matrix in HDF5 → data frame → fill each
column with its mode → scale to [0, 1] → scatter into a float64 array → float32 → one copy per split.

Legend: n subjects, p SNPs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import shapes


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def write(folder: Path, n: int, n_snps: int) -> None:
    """Write `x.parquet`, as in a store, and `x.h5`."""
    import h5py

    from mrpipe.genetics.packing import pack
    from mrpipe.store.parquet import write_batches

    modality = _modality(n_snps)
    calls = shapes.genotypes(n, n_snps, np.random.default_rng(0))
    ids = pa.array([f"s{i:05d}" for i in range(n)])
    packed = pack(calls)
    column = pa.array([row.tobytes() for row in packed], type=pa.binary())
    batch = pa.RecordBatch.from_arrays([ids, column], schema=modality.arrow_schema())
    write_batches(folder / "x.parquet", batch.schema, [batch], row_group_rows=64, compression_level=1)
    with h5py.File(folder / "x.h5", "w") as file:
        x = file.create_dataset("x", (n, n_snps), dtype="f4")
        for start in range(0, n, 256):
            block = calls[start : start + 256].astype(np.float32)
            x[start : start + 256] = np.where(block == 3, np.nan, block)


def _modality(n_snps: int) -> Any:
    from mrpipe.schema import Modality

    return Modality(name="genotype", bit=0, kind="genotype", shape=(n_snps,), dtype="uint8", encoding="packed2")


def ours(folder: Path, n_snps: int) -> dict[str, float]:
    import torch

    from moe_retriever.data.tables import GenotypeTable
    from mrpipe.genetics.packing import call_counts
    from mrpipe.store.reader import _read_arrays
    from mrpipe.transforms.genotypes import GenotypeTransform

    before, started = _peak_mb(), time.perf_counter()
    arrays = _read_arrays(folder / "x.parquet", _modality(n_snps), None)
    n_train = round(0.7 * len(arrays))
    mode = call_counts(arrays.x[:n_train], n_snps)[:3].argmax(axis=0).astype(np.uint8)
    table = GenotypeTable(arrays.x, GenotypeTransform(mode, np.arange(n_snps)), torch.device("cpu"))
    assert len(table) == len(arrays)
    return {"seconds": time.perf_counter() - started, "mb": _peak_mb() - before}


def pandas_pipeline(folder: Path, n_snps: int) -> dict[str, float]:
    import h5py
    import pandas as pd
    from sklearn.preprocessing import MinMaxScaler

    before, started = _peak_mb(), time.perf_counter()
    with h5py.File(folder / "x.h5") as file:
        frame = pd.DataFrame(file["x"][:])
    frame = frame.apply(lambda column: column.fillna(column.mode()[0]))
    scaled = MinMaxScaler().fit_transform(frame)
    everyone = np.full((len(scaled), n_snps), -2.0)
    everyone[np.arange(len(scaled))] = scaled
    x = everyone.astype(np.float32)
    edges = [0, round(0.7 * len(x)), round(0.85 * len(x)), len(x)]
    parts = [x[np.arange(a, b)] for a, b in pairwise(edges)]
    assert sum(map(len, parts)) == len(x)
    return {"seconds": time.perf_counter() - started, "mb": _peak_mb() - before}


def measure(n: int, n_snps: int) -> list[dict[str, Any]]:
    """Time and peak memory of both sides."""
    found: dict[str, Any] = {"what": "genotype loading", "shape": f"{n:,} × {n_snps:,}"}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), n, n_snps)
        # Otherwise, the time of the first side would include writing the files to disk.
        os.sync()
        for side in ("ours", "pandas"):
            command = [sys.executable, "-m", "benchmarks.genotype_loading", side, folder, str(n_snps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side] = json.loads(done.stdout)
    return [found]


if __name__ == "__main__":
    side, place, size = sys.argv[1:]
    print(json.dumps({"ours": ours, "pandas": pandas_pipeline}[side](Path(place), int(size))))
