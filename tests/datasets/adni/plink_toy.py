"""PLINK sets with random calls, a small chain file, and a wrapper for plink if it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic import plink as plink
from mrpipe.genetics.packing import bed_rows
from mrpipe.keyed import generator

AUTOSOMES = tuple(str(c) for c in range(1, 23))


def random_calls(seed: int, n: int, p: int, missing: float = 0.05) -> NDArray[np.uint8]:
    """Random calls (n, p) with LD between neighbouring SNPs; SNP 3 is monomorphic."""
    rng = generator(seed, "random calls")
    f = rng.uniform(0.02, 0.5, p)
    z = rng.standard_normal((2, n, p))
    for j in range(1, p):
        if j % 8:
            z[:, :, j] = 0.9 * z[:, :, j - 1] + np.sqrt(1 - 0.81) * z[:, :, j]
    calls = (np.argsort(np.argsort(z, axis=1), axis=1) < f * n).sum(axis=0).astype(np.uint8)
    calls[:, 3] = 0
    calls[rng.random((n, p)) < missing] = 3
    return calls


def write_random(prefix: Path, calls: NDArray[np.uint8], chromosome: NDArray[np.int64] | None = None) -> plink.PlinkSet:
    n, p = calls.shape
    chromosome = np.ones(p, dtype=np.int64) if chromosome is None else chromosome
    fam = pl.DataFrame(
        {
            "fid": ["0"] * n,
            "iid": [f"i{i}" for i in range(n)],
            "father": ["0"] * n,
            "mother": ["0"] * n,
            "sex": ["1"] * n,
        }
    )
    bim = pl.DataFrame(
        {
            "chrom": chromosome.astype(str),
            "id": [f"rs{j}" for j in range(p)],
            "pos": np.arange(p) * 1000 + 1000,
            "a1": ["A"] * p,
            "a2": ["G"] * p,
        }
    )
    plink.write_set(prefix, fam, bim, iter([bed_rows(calls)]))
    return plink.open_set(prefix.with_name(prefix.name + ".bed"))


def require(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run_plink(*arguments: object) -> None:
    program = require("plink1.9")
    subprocess.run([program, "--allow-no-sex", *map(str, arguments)], check=True, capture_output=True)


TOY_CHAIN = """chain 1000 chr1 247249719 + 99 1000 chr1 249250621 + 199 1110 1
301\t100\t110
500

chain 900 chr2 242951149 + 0 100 chr7 159138663 - 1000 1100 2
100

chain 10 chr1 247249719 + 0 2000 chr1 249250621 + 50000 52000 3
2000
"""
