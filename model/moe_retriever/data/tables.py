"""One modality as tensors: only the rows that have it, gathered by row number, in the form its encoder takes.

Legend: n rows, d features, p SNPs, S steps of all rows together.
Pixels stay in the store's integers and genotypes at two bits a call; both become floats a batch at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from mrpipe.errors import DataError, Fault
from mrpipe.genetics.packing import fill_missing, pack, take_snps
from mrpipe.store.reader import Arrays
from mrpipe.transforms.genotypes import GenotypeTransform

if TYPE_CHECKING:
    from moe_retriever.data.event_table import EventBatch

Rows = NDArray[np.int64]
Pixels = NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]
EncoderInput: TypeAlias = "Tensor | PackedSequence | Genotypes | EventBatch"


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """What a method may know of a modality before it sees data: name, kind, and shape of one entry (of one step)."""

    name: str
    kind: str
    shape: tuple[int, ...]


class FeatureTable(Protocol):
    """The observed rows of one modality."""

    def __len__(self) -> int: ...

    def gather(self, rows: Rows) -> EncoderInput:
        """Encoder input of the given rows, in that order."""
        ...

    def pooled(self, rows: Rows) -> Tensor:
        """A fixed number of features a row (n, f), for models without an encoder."""
        ...


def _host(rows: Rows, device: torch.device) -> Tensor:
    index = torch.from_numpy(np.ascontiguousarray(rows))
    return index if device.type == "cpu" else index.to(device, non_blocking=True)


class VectorTable:
    """x (n, d) float32; `unknown` (n, d) says which values were filled in, None: none."""

    def __init__(self, x: NDArray[np.float32], device: torch.device, unknown: NDArray[np.bool_] | None = None):
        self.x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device)
        self.unknown = None if unknown is None else torch.from_numpy(unknown).to(device)

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, rows: Rows) -> Tensor:
        return self.x[_host(rows, self.x.device)]

    pooled = gather

    def with_gaps(self, rows: Rows) -> Tensor:
        """The rows with NaN where a value was not known."""
        x = self.gather(rows)
        return x if self.unknown is None else x.masked_fill(self.unknown[_host(rows, x.device)], float("nan"))


class SequenceTable:
    """Steps of all rows end to end, (S, d) float32; a batch is packed straight from them, without padding."""

    def __init__(self, x: NDArray[np.float32], offsets: Rows, device: torch.device):
        self.x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device)
        self.offsets = offsets
        self.lengths = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, rows: Rows) -> PackedSequence:
        lengths = self.lengths[rows]
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        # Time-major: at step t the rows that still run, longest first.
        step, rank = np.nonzero(np.arange(longest)[:, None] < lengths[order][None, :])
        flat = self.offsets[rows[order]][rank] + step
        device = self.x.device
        return PackedSequence(
            self.x[_host(flat, device)],
            torch.from_numpy(np.bincount(step, minlength=longest)),
            _host(order, device),
            _host(np.argsort(order, kind="stable"), device),
        )

    def pooled(self, rows: Rows) -> Tensor:
        """Mean, largest and log number of steps, (n, 2 d + 1)."""
        if len(rows) == 0:
            return self.x.new_zeros(0, 2 * self.x.shape[1] + 1)
        lengths = self.lengths[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.repeat(self.offsets[rows] - starts[:-1], lengths) + np.arange(starts[-1])
        steps = self.x[_host(flat, self.x.device)]
        n = _host(lengths, self.x.device)
        mean = torch.segment_reduce(steps, "mean", lengths=n)
        largest = torch.segment_reduce(steps, "max", lengths=n)
        return torch.cat([mean, largest, n.to(steps.dtype).log()[:, None]], dim=1)


class PixelTable:
    """Images (n, C, H, W) or volumes (n, D, H, W) in the store's dtype; (x − mean) / sd is applied batch by batch."""

    def __init__(
        self, x: Pixels, mean: NDArray[np.float32], sd: NDArray[np.float32], device: torch.device, *, per_channel: bool
    ):
        self.x = torch.from_numpy(np.array(x)).to(device)
        shape = (1, -1) + (1,) * (x.ndim - 2) if per_channel else (1,)
        self.mean = torch.from_numpy(np.array(mean)).to(device).reshape(shape)
        self.sd = torch.from_numpy(np.array(sd)).to(device).reshape(shape)

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, rows: Rows) -> Tensor:
        raw = self.x[_host(rows, self.x.device)]
        x = (raw.float() - self.mean) / self.sd
        return torch.nan_to_num(x) if raw.is_floating_point() else x

    def pooled(self, rows: Rows) -> Tensor:
        """Mean intensity on a coarse grid: 8 × 8 a channel, or 6 × 6 × 6."""
        x = self.gather(rows)
        grid = F.adaptive_avg_pool2d(x, 8) if x.ndim == 4 and len(self.mean.shape) > 1 else _grid3d(x)
        return grid.flatten(1)


def _grid3d(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool3d(x.unsqueeze(1), 6)


@dataclass(frozen=True)
class Genotypes:
    """Some rows of a GenotypeTable, still packed; a call that was not made stands as its SNP's training mode.

    Attributes:
        packed: (n, bytes) uint8.
        decode: (256, 4) float32, the four values of a byte, little end first: copies of A1 − 1.
        n_snps: p.
    """

    packed: Tensor
    decode: Tensor
    n_snps: int

    def __len__(self) -> int:
        return len(self.packed)

    def values(self, width: int | None = None) -> Tensor:
        """(n, width) float32, 0 from column p on; default: p columns."""
        width = self.n_snps if width is None else width
        n_bytes = -(-max(width, self.n_snps) // 4)
        packed = F.pad(self.packed, (0, n_bytes - self.packed.shape[1]), value=_ZEROS)
        byte = packed.flatten().int()
        if packed.device.type == "cpu":
            # The four values of a byte as one number of 16 bytes: one copy instead of four.
            wide = self.decode.view(torch.complex128).flatten().index_select(0, byte).view(torch.float32)
        else:
            wide = self.decode.index_select(0, byte)
        return wide.view(len(packed), 4 * n_bytes)[:, :width]


# A byte of four calls that decode to 0.
_ZEROS = 0b01010101


class GenotypeTable:
    """Packed genotypes (n, bytes) uint8 of the SNPs that the transform kept, two bits a call.

    A value is the number of copies of A1 − 1; a call that was not made takes the SNP's training mode, once, here.
    """

    def __init__(self, packed: NDArray[np.uint8], transform: GenotypeTransform, device: torch.device):
        self.n_snps = len(transform.kept)
        mode = np.ones((1, -(-self.n_snps // 4) * 4), dtype=np.uint8)
        mode[0, : self.n_snps] = transform.mode
        self.packed = torch.from_numpy(fill_missing(take_snps(packed, transform.kept), pack(mode)[0])).to(device)
        copies = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3
        self._decode = torch.from_numpy(copies.astype(np.float32) - 1.0).to(device)

    def __len__(self) -> int:
        return len(self.packed)

    def gather(self, rows: Rows) -> Genotypes:
        return Genotypes(self.packed[_host(rows, self.packed.device)], self._decode, self.n_snps)

    def pooled(self, rows: Rows) -> Tensor:
        return self.gather(rows).values()


def with_elapsed(arrays: Arrays) -> NDArray[np.float32]:
    """Steps of a sequence; an irregular one gains the column log(1 + time since the step before)."""
    if arrays.time is None or arrays.offsets is None:
        return arrays.x
    elapsed = np.diff(arrays.time, prepend=np.float32(0))
    starts = arrays.offsets[:-1]
    elapsed[starts[starts < len(elapsed)]] = 0.0
    return np.concatenate([arrays.x, np.log1p(np.maximum(elapsed, 0.0))[:, None]], axis=1, dtype=np.float32)


def sequence_table(arrays: Arrays, device: torch.device) -> SequenceTable:
    """The table of a transformed sequence.

    Raises:
        DataError: an observed sequence without a step; it should have been left out as not observed.
    """
    assert arrays.offsets is not None
    empty = np.flatnonzero(np.diff(arrays.offsets) == 0)
    if len(empty):
        raise DataError(
            Fault(
                file=f"modalities/{arrays.modality.name}.parquet",
                column="length",
                row=int(empty[0]) + 1,
                expected="at least one step in an observed sequence",
                found=f"{len(empty)} without any",
                fix="A sample whose sequence is empty does not have the modality: leave its row out.",
            )
        )
    return SequenceTable(with_elapsed(arrays), arrays.offsets, device)
