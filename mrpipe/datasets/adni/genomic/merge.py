"""From SNP-major .bed rows of several sets to one packed row a person, in blocks of SNPs.

A block of four SNPs by four people is a 32-bit word in both layouts; two exchanges of bit groups turn one into the
other (Warren, Hacker's Delight, 7-3), so no call is ever held in a byte of its own. Peak memory is the result (two bits
a call) and one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mrpipe.datasets.adni.genomic.plink import BLOCK_SNPS, RECODE, PlinkSet

_MISSING_BYTE = 0xFF


@dataclass(frozen=True)
class Panel:
    """A set's share in the merged SNPs.

    Attributes:
        plink: the set.
        row: (P,) row in the set's .bed of each merged SNP, −1 where the set lacks it.
        swap: (P,) the store's counted allele is the set's A2.
        people: positions in the .fam of the people that are taken from this set.
        target: their rows in the result.
    """

    plink: PlinkSet
    row: NDArray[np.int64]
    swap: NDArray[np.bool_]
    people: NDArray[np.int64]
    target: NDArray[np.int64]


def transpose_packed(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Packed calls (S SNPs, ceil(n / 4) bytes), S a multiple of 4 → packed calls (people, S / 4 bytes)."""
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
    """Packed genotypes, (people, ceil(SNPs / 4)); a call that no set made is 3."""
    out = np.full((n_people, -(-n_snps // 4)), _MISSING_BYTE, dtype=np.uint8)
    for panel in panels:
        if not len(panel.people):
            continue
        for start in range(0, n_snps, BLOCK_SNPS):
            source = panel.row[start : start + BLOCK_SNPS]
            held = np.flatnonzero(source >= 0)
            if not len(held):
                continue
            # Reading in the order of the file keeps the disk busy in one direction.
            order = held[np.argsort(source[held], kind="stable")]
            block = np.full((-(-len(source) // 4) * 4, panel.plink.n_bytes), _MISSING_BYTE, dtype=np.uint8)
            raw = panel.plink.read(source[order])
            swap = panel.swap[start : start + BLOCK_SNPS][order].astype(np.intp)
            block[order] = RECODE[swap[:, None], raw]
            packed = transpose_packed(block)
            out[panel.target, start // 4 : start // 4 + packed.shape[1]] = packed[panel.people]
    return out


def batches(
    sample_ids: Sequence[str], packed: NDArray[np.uint8], schema: pa.Schema, *, rows: int = 64
) -> Iterator[pa.RecordBatch]:
    """Record batches of the modality table over the packed rows, without copying them."""
    n_bytes = packed.shape[1]
    for start in range(0, len(sample_ids), rows):
        block = np.ascontiguousarray(packed[start : start + rows])
        offsets = np.arange(len(block) + 1, dtype=np.int32) * n_bytes
        x = pa.BinaryArray.from_buffers(pa.binary(), len(block), [None, pa.py_buffer(offsets), pa.py_buffer(block)])
        yield pa.RecordBatch.from_arrays([pa.array(sample_ids[start : start + rows], pa.string()), x], schema=schema)
