"""Merge the SNP-major .bed rows of several sets into one packed row per person, block by block.

Four SNPs of four people are one 32-bit word in both layouts. Two exchanges of bit groups transpose it (Warren, Hacker's
Delight, 7-3), so calls are never unpacked to bytes. Peak memory is the result (two bits per call) plus one block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from mrpipe.datasets.adni.genomic.plink import BLOCK_SNPS, RECODE, PlinkSet
from mrpipe.genetics.packing import call_counts

_MISSING_BYTE = 0xFF
# AUROC of missing calls for the PLINK set above which the description of the modality contains a warning.
SET_AUROC = 0.8


@dataclass(frozen=True)
class Panel:
    """The contribution of one set to the merged genotypes.

    Attributes:
        plink: the set.
        row: (P,) row of each merged SNP in the set's .bed, −1 if the set lacks it.
        swap: (P,) whether the store's counted allele is the set's A2.
        people: positions in the .fam of the people taken from this set.
        target: their rows in the result.
    """

    plink: PlinkSet
    row: NDArray[np.int64]
    swap: NDArray[np.bool_]
    people: NDArray[np.int64]
    target: NDArray[np.int64]


def transpose_packed(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Transpose packed calls (S SNPs, ceil(n / 4) bytes), S a multiple of 4, to (people, S / 4 bytes)."""
    n_groups, n_bytes = block.shape[0] // 4, block.shape[1]
    rows = block.reshape(n_groups, 4, n_bytes).astype(np.uint32)
    w = rows[:, 0] | rows[:, 1] << 8 | rows[:, 2] << 16 | rows[:, 3] << 24
    t = (w ^ (w >> 6)) & np.uint32(0x00CC00CC)
    w ^= t ^ (t << 6)
    t = (w ^ (w >> 12)) & np.uint32(0x0000F0F0)
    w ^= t ^ (t << 12)
    by_person = w.astype("<u4", copy=False).view(np.uint8).reshape(n_groups, n_bytes * 4)
    return np.ascontiguousarray(by_person.T)


def merged_rows(panels: Sequence[Panel], n_people: int, n_snps: int) -> NDArray[np.uint8]:
    """Packed genotypes, uint8 (people, ceil(SNPs / 4)), two bits per call; missing calls are 3."""
    out = np.full((n_people, -(-n_snps // 4)), _MISSING_BYTE, dtype=np.uint8)
    for panel in panels:
        if not len(panel.people):
            continue
        for start in range(0, n_snps, BLOCK_SNPS):
            source = panel.row[start : start + BLOCK_SNPS]
            held = np.flatnonzero(source >= 0)
            if not len(held):
                continue
            # Read in file order, so that disk access is sequential.
            order = held[np.argsort(source[held], kind="stable")]
            block = np.full((-(-len(source) // 4) * 4, panel.plink.n_bytes), _MISSING_BYTE, dtype=np.uint8)
            raw = panel.plink.read(source[order])
            swap = panel.swap[start : start + BLOCK_SNPS][order].astype(np.intp)
            block[order] = RECODE[swap[:, None], raw]
            packed = transpose_packed(block)
            out[panel.target, start // 4 : start // 4 + packed.shape[1]] = packed[panel.people]
    return out


def missing_calls(
    packed: NDArray[np.uint8], n_snps: int, panels: list[Panel], phase: NDArray[np.str_], merge: str
) -> str:
    """Rate of missing calls by set and phase; a warning if missing calls identify the set (AUROC above SET_AUROC).

    Args:
        packed: (people, bytes) merged calls.
        panels: sets, with the rows of their people in `packed`.
        phase: (people,) phase of each person.
    """
    missing = packed & (packed >> np.uint8(1)) & np.uint8(0x55)
    rate = (np.bitwise_count(missing).sum(axis=1, dtype=np.int64) - -n_snps % 4) / n_snps
    every, order = call_counts(packed, n_snps)[3], rankdata(rate)
    parts: list[str] = []
    highest, where = 0.0, ""
    for p in panels:
        n, n_rest = len(p.target), len(packed) - len(p.target)
        if n:
            parts.append(f"{p.plink.name} {rate[p.target].mean():.1%}")
        if n and n_rest:
            by_rate = (order[p.target].sum() - n * (n + 1) / 2) / (n * n_rest)
            gaps = call_counts(packed[p.target], n_snps)[3]
            by_gap = 0.5 + np.abs(gaps / n - (every - gaps) / n_rest).max() / 2
            highest, where = max((highest, where), (max(by_rate, 1 - by_rate, by_gap), p.plink.name))
    parts += [f"{name} {rate[phase == name].mean():.1%}" for name in np.unique(phase)]
    text = f"Missing calls: {', '.join(parts)}"
    if highest > SET_AUROC:
        text += f". WARNING: missing calls identify the set {where} (AUROC {highest:.2f})"
        text += "; use merge=intersection" if merge == "union" else ""
    return text


def batches(
    sample_ids: Sequence[str], packed: NDArray[np.uint8], schema: pa.Schema, *, rows: int = 64
) -> Iterator[pa.RecordBatch]:
    """The packed rows as record batches of the modality table."""
    for start in range(0, len(sample_ids), rows):
        x = pa.array([row.tobytes() for row in packed[start : start + rows]], pa.binary())
        yield pa.RecordBatch.from_arrays([pa.array(sample_ids[start : start + rows], pa.string()), x], schema=schema)
