"""Packed genotypes (two bits per call, 3 = missing): packing, counts, and LD pruning on training subjects.

`ld_prune` keeps the same SNPs as plink 1.9 `--indep-pairwise WINDOW STEP R2`. Windows of WINDOW consecutive SNPs of a
chromosome move by STEP. Of a pair whose squared correlation of copies exceeds R2, the SNP with the lower minor allele
frequency is removed (the second in case of a tie); SNPs without variance are removed. Correlations are computed over
people with calls at both SNPs.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MISSING = 3
_BLOCK = 64
# Frequencies with a smaller relative difference are considered equal, as in plink (2^-44).
_EPSILON = 2.0**-44
_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)


def pack(calls_NP: NDArray[np.uint8], pad: int = MISSING) -> NDArray[np.uint8]:
    """Pack copies of A1 (n, p), 3 = missing, to (n, ceil(p / 4)) uint8, from the low bits, padded with `pad`."""
    n, p = calls_NP.shape
    padded = np.full((n, -(-p // 4), 4), pad, dtype=np.uint8)
    padded.reshape(n, -1)[:, :p] = calls_NP
    return np.asarray(np.bitwise_or.reduce(padded << _SHIFTS, axis=2))


def byte_table(*codes: int) -> NDArray[np.uint8]:
    """Lookup table (256,) that replaces each of the four two-bit values of a byte by `codes` at that position."""
    table: NDArray[np.uint8] = np.bitwise_or.reduce(
        np.array(codes, dtype=np.uint8)[(np.arange(256)[:, None] >> _SHIFTS) & 3] << _SHIFTS, axis=1
    )
    return table


# From packed copies of A1 (3 = missing) to the codes of a .bed file.
TO_BED = byte_table(3, 2, 0, 1)


def bed_rows(copies_NP: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack copies of A1 (people, SNPs), 3 if not called, to .bed rows (SNPs, bytes); unused bits are 0."""
    return TO_BED[pack(copies_NP.T, pad=2)]


def unpack_at(packed: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Copies of A1 at the given SNPs, (n, len(positions)) uint8, from packed rows (n, bytes)."""
    return np.asarray((packed[:, positions >> 2] >> _SHIFTS[positions & 3]) & np.uint8(3))


def take_snps(packed: NDArray[np.uint8], positions: NDArray[np.int64], *, block: int = 4096) -> NDArray[np.uint8]:
    """Packed genotypes (n, ceil(k / 4)) of the k given SNPs, in this order; processed in blocks of SNPs."""
    n_bytes = -(-len(positions) // 4)
    if np.array_equal(positions, np.arange(len(positions))):
        # All or the first SNPs: copy the bytes and pad with 3.
        out = packed[:, :n_bytes].copy()
        if len(positions) % 4:
            out[:, -1] |= np.uint8(0xFF << 2 * (len(positions) % 4) & 0xFF)
        return out
    out = np.empty((len(packed), n_bytes), dtype=np.uint8)
    for start in range(0, len(positions), block):
        chosen = positions[start : start + block]
        out[:, start // 4 : start // 4 + -(-len(chosen) // 4)] = pack(unpack_at(packed, chosen))
    return out


def fill_missing(packed: NDArray[np.uint8], mode: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace missing calls of packed rows (n, bytes) by the packed `mode` (bytes,), in place."""
    for start in range(0, len(packed), 64):
        rows = packed[start : start + 64]
        missing = rows & (rows >> np.uint8(1)) & np.uint8(0x55)
        missing |= missing << np.uint8(1)
        rows ^= (rows ^ mode) & missing
    return packed


def unpack_range(packed: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint8]:
    """Copies of A1 at the SNPs start to stop − 1, (n, stop − start) uint8."""
    first = start // 4
    block = packed[:, first : -(-stop // 4), None] >> _SHIFTS
    block &= np.uint8(3)
    return block.reshape(len(packed), block.shape[1] * 4)[:, start - 4 * first : stop - 4 * first]


def copies(packed: NDArray[np.uint8], n_snps: int) -> NDArray[np.float32]:
    """(n, n_snps) copies of A1; NaN for missing calls."""
    calls = unpack_range(packed, 0, n_snps)
    return np.where(calls == MISSING, np.float32("nan"), calls.astype(np.float32))


def call_counts(packed: NDArray[np.uint8], n_snps: int, *, block: int = 4096) -> NDArray[np.int64]:
    """Number of people with 0, 1 and 2 copies and missing calls per SNP, (4, p), counted on the packed bytes."""
    n, n_bytes = packed.shape
    counts = np.zeros((4, n_bytes, 4), dtype=np.int64)
    low_bits = np.uint8(0x55)
    for start in range(0, n_bytes, block):
        at = slice(start, start + block)
        # The counts of 255 rows fit into a byte.
        for row in range(0, n, 255):
            rows = packed[row : row + 255, at]
            low, high = rows & low_bits, (rows >> 1) & low_bits
            for code, flags in ((1, low & ~high), (2, high & ~low), (3, low & high)):
                for k in range(4):
                    of_person = (flags >> np.uint8(2 * k)) & np.uint8(1)
                    counts[code, at, k] += np.add.reduce(of_person, axis=0, dtype=np.uint8)
    counts[0] = n - counts[1:].sum(axis=0)
    return counts.reshape(4, -1)[:, :n_snps]


@dataclass(frozen=True)
class LdOptions:
    """Window and step in SNPs, and squared correlation above which one SNP of a pair is removed."""

    window: int = 50
    step: int = 5
    r2: float = 0.1


def _pairs_above(
    calls: NDArray[np.uint8], n_left: int, options: LdOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (i, j), i < n_left, i < j < i + window, with r² above the threshold; calls (n, n_left + window − 1).

    All sums are integers below 2^24, which single precision represents exactly.
    """
    called = calls != MISSING
    x = np.where(called, calls, 1).astype(np.float32) - 1.0
    v, xx = called.astype(np.float32), x * x
    stacked = np.concatenate([x[:, :n_left], v[:, :n_left], xx[:, :n_left]], axis=1).T
    dot, sum_j, _ = np.split((stacked @ x).astype(np.float64), 3)
    sum_i, n, squares_i = np.split((stacked @ v).astype(np.float64), 3)
    squares_j = (v[:, :n_left].T @ xx).astype(np.float64)
    cov = dot * n - sum_i * sum_j
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = cov * cov * (1.0 / ((squares_i * n - sum_i**2) * (squares_j * n - sum_j**2)))
    above = r2 > options.r2 * (1 + _EPSILON)
    distance = np.arange(x.shape[1])[None, :] - np.arange(n_left)[:, None]
    i, j = np.nonzero(above & (distance > 0) & (distance < options.window))
    return i, j


def _remove_pairs(partners: dict[int, list[int]], maf: NDArray[np.float64], removed: NDArray[np.bool_]) -> None:
    """Remove SNPs until no pair is left; each pass compares a SNP with its first remaining partner."""
    finished = False
    while not finished:
        finished = True
        for i, others in partners.items():
            if removed[i]:
                continue
            while others and removed[others[0]]:
                others.pop(0)
            if others:
                finished = False
                j = others.pop(0)
                removed[i if maf[i] < (1 - _EPSILON) * maf[j] else j] = True


def ld_prune(packed: NDArray[np.uint8], chromosome: NDArray[np.generic], options: LdOptions) -> NDArray[np.int64]:
    """Ascending positions of the SNPs that remain after LD pruning.

    Args:
        packed: genotypes (n, bytes) of training subjects, SNPs sorted by position within each chromosome.
        chromosome: (p,) chromosome of each SNP; the SNPs of a chromosome are consecutive.
    """
    n_snps = len(chromosome)
    counts = call_counts(packed, n_snps)
    n_called = counts[:3].sum(axis=0)
    with np.errstate(invalid="ignore"):
        frequency = (counts[1] + 2 * counts[2]) / (2 * n_called)
    maf = np.minimum(frequency, 1 - frequency)
    removed: NDArray[np.bool_] = (counts[:3] > 0).sum(axis=0) < 2
    changes = np.flatnonzero(chromosome[1:] != chromosome[:-1]) + 1
    for first, last in pairwise([0, *changes.tolist(), n_snps] if n_snps else []):
        pairs_i, pairs_j = [], []
        for start in range(first, last, _BLOCK):
            n_left = min(_BLOCK, last - start)
            stop = min(start + n_left + options.window - 1, last)
            i, j = _pairs_above(unpack_range(packed, start, stop), n_left, options)
            pairs_i.append(i + start)
            pairs_j.append(j + start)
        i, j = np.concatenate(pairs_i), np.concatenate(pairs_j)
        # A pair is compared in the first window that contains its second SNP, if the window also contains its first.
        step_of = np.maximum(-(-(j - first + 1 - options.window) // options.step), 0)
        compared = i >= first + step_of * options.step
        i, j, step_of = i[compared], j[compared], step_of[compared]
        order = np.lexsort((j, i, step_of))
        i, j, step_of = i[order], j[order], step_of[order]
        bounds = np.flatnonzero(step_of[1:] != step_of[:-1]) + 1
        for low, high in pairwise([0, *bounds.tolist(), len(i)]):
            partners: dict[int, list[int]] = {}
            for a, b in zip(i[low:high].tolist(), j[low:high].tolist(), strict=True):
                partners.setdefault(a, []).append(b)
            _remove_pairs(partners, maf, removed)
    return np.flatnonzero(~removed)
