"""Simulate PLINK sets: overlapping chips, one set in hg18, flipped and ambiguous strands, LD blocks."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtri

from mrpipe.datasets.adni.genomic.inputs import KNOWN_SETS
from mrpipe.datasets.adni.genomic.lift import LENGTHS
from mrpipe.datasets.adni.genomic.plink import MAGIC
from mrpipe.genetics.packing import bed_rows
from mrpipe.keyed import generator

CHAIN_NAME = "hg18ToHg19.over.chain.gz"
LEGEND_NAME = "1000GP_Phase3_combined.legend.gz"
# Shift of the two halves of a chromosome from hg18 to hg19, and the length of a gap between them (hg18 only).
SHIFTS, GAP = (10_000, 26_000), 4_000
# LD pruning (50, 5, 0.1) keeps about a quarter of the SNPs, similar to the published 565,989 → 144,746.
BLOCK, CORRELATION = 6, 0.80
_COMPLEMENT = str.maketrans("ACGT", "TGCA")
# Special SNPs of the real sets: no position, sex chromosomes, mitochondrial, names that are not rs numbers.
_ODDITIES = (
    ("0", "cnvi0001", "0", 0, "A", "G"),
    ("0", "cnvi0002", "0", 0, "0", "A"),
    ("23", "rs5", "0", 2_700_000, "A", "G"),
    ("24", "rs6", "0", 2_800_000, "C", "T"),
    ("25", "rs7", "0", 150_000, "G", "A"),
    ("26", "MitoA8", "0", 8_869, "A", "G"),
)


@dataclass(frozen=True)
class Snps:
    """SNPs of all chips, (p,) each: ID, chromosome, hg19 position, REF, ALT, frequency of ALT, effect of the factor."""

    id: NDArray[np.str_]
    chromosome: NDArray[np.int64]
    position: NDArray[np.int64]
    ref: NDArray[np.str_]
    alt: NDArray[np.str_]
    frequency: NDArray[np.float64]
    effect: NDArray[np.float64]


def draw_snps(n: int, seed: int, effect: float) -> Snps:
    """Draw SNPs, sorted by position. Frequencies are similar within an LD block; every fourth block has an effect."""
    rng = generator(seed, "adni snps")
    chromosomes = np.arange(1, 23) if n >= 2000 else np.array([1, 2, 19, 22])
    lengths = np.minimum(LENGTHS["hg18"], LENGTHS["hg19"])[chromosomes - 1] - 300_000
    share = np.diff(np.r_[0, np.round(np.cumsum(lengths) / lengths.sum() * n)]).astype(int)
    chromosome = np.repeat(chromosomes, share)
    positions = []
    for room, k in zip(lengths - 200_000, share, strict=True):
        n_places = min(room, 40 * k + 10**6)
        positions.append(100_000 + np.sort(rng.choice(n_places, k, replace=False)) * (room // n_places))
    block = np.arange(n) // BLOCK
    base = rng.uniform(0.08, 0.45, int(block.max(initial=0)) + 1)[block]
    frequency = np.clip(base * rng.uniform(0.85, 1.15, n), 0.03, 0.48)
    pairs = np.array([("A", "G"), ("C", "T"), ("A", "C"), ("G", "T")])[rng.integers(0, 4, n)]
    ambiguous = rng.random(n) < 0.05
    pairs[ambiguous] = np.array([("A", "T"), ("C", "G")])[rng.integers(0, 2, int(ambiguous.sum()))]
    turned = rng.random(n) < 0.5
    ref, alt = np.where(turned, pairs[:, 1], pairs[:, 0]), np.where(turned, pairs[:, 0], pairs[:, 1])
    signs = np.where(rng.random(int(block.max(initial=0)) + 1) < 0.5, 1.0, -1.0)
    acting = np.where(block % 4 == 0, effect * signs[block], 0.0)
    ids = np.array([f"rs{v}" for v in 1000 + np.sort(rng.choice(max(20 * n, 10**5), n, replace=False))])
    return Snps(ids, chromosome, np.concatenate(positions), ref, alt, frequency, acting)


def write_chain(path: Path) -> None:
    """Write the toy chain file: each autosome has two blocks with different shifts, and a gap that is not in hg19."""
    lines = []
    for c, (source, target) in enumerate(zip(LENGTHS["hg18"], LENGTHS["hg19"], strict=True), start=1):
        half = source // 2
        second = min(half - GAP - 200_000, target - half + GAP - SHIFTS[1])
        end = half + second
        lines += [
            f"chain {1000 - c} chr{c} {source} + 0 {end} chr{c} {target} + {SHIFTS[0]} {end - GAP + SHIFTS[1]} {c}",
            f"{half - GAP} {GAP} {SHIFTS[1] - SHIFTS[0]}",
            f"{second}",
            "",
        ]
    _write_gzip(path, "\n".join(lines))


def _write_gzip(path: Path, text: str) -> None:
    with path.open("wb") as handle, gzip.GzipFile(filename="", mode="wb", fileobj=handle, mtime=0) as packed:
        packed.write(text.encode())


def to_hg18(chromosome: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Convert 1-based hg19 positions to hg18 by the toy chain."""
    half = np.array(LENGTHS["hg18"])[chromosome - 1] // 2
    first = position - 1 - SHIFTS[0]
    second = position - 1 - SHIFTS[1] + GAP
    return np.where(first < half - GAP, first, np.maximum(second, half)) + 1


def write_reference(path: Path, snps: Snps, known: NDArray[np.bool_]) -> None:
    """Write a legend file in the format of 1000 Genomes phase 3."""
    frame = pl.DataFrame(
        {
            "id": [f"{i}:{p}:{a}:{b}" for i, p, a, b in zip(snps.id, snps.position, snps.ref, snps.alt, strict=True)],
            **{"chr": snps.chromosome, "position": snps.position, "a0": snps.ref, "a1": snps.alt},
            "TYPE": "Biallelic_SNP",
            **dict.fromkeys(("AFR", "AMR", "EAS", "EUR", "SAS", "ALL"), snps.frequency.round(6)),
        }
    ).filter(pl.Series(known))
    _write_gzip(path, frame.write_csv(separator=" "))


def dosage_block(snps: Snps, columns: slice, factor: NDArray[np.float64], seed: int) -> NDArray[np.uint8]:
    """Copies of ALT, uint8 (n, k): two haplotypes, AR(1) within each LD block, shifted by factor times effect."""
    rng = generator(seed, "adni haplotypes", str(columns.start))
    n, k = len(factor), columns.stop - columns.start
    threshold = ndtri(snps.frequency[columns]).astype(np.float32)
    drift = (factor[:, None] * snps.effect[None, columns]).astype(np.float32)
    copies = np.zeros((n, k), dtype=np.uint8)
    spread = np.float32(np.sqrt(1 - CORRELATION**2))
    for _ in range(2):
        z = rng.standard_normal((k, n), dtype=np.float32)
        for j in range(1, k):
            if (columns.start + j) % BLOCK:
                z[j] = np.float32(CORRELATION) * z[j - 1] + spread * z[j]
        copies += (z.T + drift) < threshold
    return copies


def write_genotypes(out: Path, subjects: pl.DataFrame, *, n_snps: int, seed: int, effect: float) -> pl.DataFrame:
    """Write five PLINK sets, the chain file and the reference to `out`; returns the ground truth, one row per SNP.

    Args:
        subjects: genotyped participants: `ptid, phase, v_genomic`.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = generator(seed, "adni sets")
    snps = draw_snps(n_snps, seed, effect)
    write_chain(out / CHAIN_NAME)
    write_reference(out / LEGEND_NAME, snps, rng.random(n_snps) >= 0.02)
    # ADNI2 is divided between the two GO/2 sets.
    by_phase = pl.col("phase").replace_strict({"ADNI1": 0, "ADNIGO": 1, "ADNI3": 3, "ADNI4": 4}, default=None)
    home = subjects.select(by_phase.fill_null(1 + pl.int_range(pl.len()) % 2)).to_series().to_numpy()
    members = [np.flatnonzero(home == s) for s in range(len(KNOWN_SETS))]
    # Two participants of ADNI1 were genotyped again on a later chip.
    members[1] = np.sort(np.r_[members[1], members[0][:2]])
    core = rng.random(n_snps) < 0.35
    chip = [core | (rng.random(n_snps) < 0.55) for _ in KNOWN_SETS]
    # Positions between the two blocks of the chain in hg19 do not exist in hg18.
    half = np.array(LENGTHS["hg18"])[snps.chromosome - 1] // 2 - GAP
    chip[0] &= (snps.position <= half + SHIFTS[0]) | (snps.position > half + SHIFTS[1])
    flip = [rng.random(n_snps) < 0.10 for _ in KNOWN_SETS]
    swap = [rng.random(n_snps) < 0.30 for _ in KNOWN_SETS]
    still = [rng.random(n_snps) < 0.01 for _ in KNOWN_SETS]
    used = [s for s in range(len(KNOWN_SETS)) if len(members[s]) > 0]
    files = {s: (out / f"{KNOWN_SETS[s]}.bed").open("wb") for s in used}
    seen = {s: np.zeros(n_snps, dtype=np.bool_) for s in used}
    for file in files.values():
        file.write(MAGIC)
    for start in range(0, n_snps, 40 * BLOCK):
        columns = slice(start, min(start + 40 * BLOCK, n_snps))
        copies = dosage_block(snps, columns, subjects["v_genomic"].to_numpy(), seed)
        for s in used:
            # Missing calls are drawn per set, so that the two records of a participant differ only in missing calls.
            noise = generator(seed, "adni calls", KNOWN_SETS[s], str(start))
            calls = copies[members[s]].copy()
            calls[:, still[s][columns]] = 0
            calls = np.where(swap[s][None, columns], 2 - calls, calls)
            calls[noise.random(calls.shape, dtype=np.float32) < 0.01] = 3
            seen[s][columns] = ((calls == 1) | (calls == 2)).any(axis=0)
            files[s].write(bed_rows(calls[:, chip[s][columns]]).tobytes())
    for s in used:
        shape = (len(members[s]), len(_ODDITIES))
        odd = generator(seed, "adni odd", KNOWN_SETS[s]).choice(3, shape, p=[0.6, 0.3, 0.1]).astype(np.uint8)
        files[s].write(bed_rows(odd).tobytes())
        files[s].close()
        held = np.flatnonzero(chip[s])
        position = snps.position[held]
        if s == 0:
            position = to_hg18(snps.chromosome[held], position)
            lost = rng.random(len(held)) < 0.01
            position = np.where(lost, np.array(LENGTHS["hg18"])[snps.chromosome[held] - 1] // 2 - GAP // 2, position)
        a1, a2 = (np.where(swap[s][held], x[held], y[held]) for x, y in ((snps.ref, snps.alt), (snps.alt, snps.ref)))
        turned = flip[s][held]
        a1, a2 = (np.where(turned, np.array([b.translate(_COMPLEMENT) for b in a.tolist()]), a) for a in (a1, a2))
        a1 = np.where(seen[s][held], a1, "0")
        bim = pl.DataFrame({"chrom": snps.chromosome[held].astype(str), "id": snps.id[held], "cm": "0"})
        bim = bim.with_columns(pos=pl.Series(position), a1=pl.Series(a1), a2=pl.Series(a2))
        oddities = pl.DataFrame(_ODDITIES, schema=bim.schema, orient="row")
        pl.concat([bim, oddities]).write_csv(out / f"{KNOWN_SETS[s]}.bim", include_header=False, separator="\t")
        row = pl.int_range(pl.len())
        fam = subjects[members[s]].select(row.alias("fid") + 1, "ptid", f=0, m=0, sex=row % 2 + 1, p=-9)
        fam.write_csv(out / f"{KNOWN_SETS[s]}.fam", include_header=False, separator=" ")
    truth = pl.DataFrame(vars(snps))
    chips = {f"chip_{s}": pl.Series(on) for s, on in enumerate(chip, start=1)}
    return truth.with_columns(block=np.arange(n_snps) // BLOCK, **chips)
