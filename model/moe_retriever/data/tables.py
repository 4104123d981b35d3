"""Tensors of one modality for the samples that have it, with batches in the form that its encoder needs.

Pixels are kept in the store's integer type and genotypes in two bits per call; both are converted to floats per batch.

Legend: n rows, d features, p SNPs, S total steps of all rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from moe_retriever.device import to_device as _host
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
    """Name, kind and shape of one entry (for a sequence, of one step) of a modality."""

    name: str
    kind: str
    shape: tuple[int, ...]


class FeatureTable(Protocol):
    """The observed rows of one modality."""

    def __len__(self) -> int: ...

    def gather(self, rows: Rows) -> EncoderInput:
        """Encoder input of the given rows, in the given order."""
        ...

    def pooled(self, rows: Rows) -> Tensor:
        """Features (n, f) for models without an encoder."""
        ...


def spans(starts: Rows, lengths: Rows) -> Rows:
    """Concatenation of the ranges starts[i] .. starts[i] + lengths[i] − 1."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)


class VectorTable:
    """x (n, d) float32; `unknown` (n, d) marks imputed values, None if there are none; it is kept as bits."""

    def __init__(self, x: NDArray[np.float32], device: torch.device, unknown: NDArray[np.bool_] | None = None):
        self.x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device)
        self._unknown = None if unknown is None else np.packbits(unknown, axis=1)

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, rows: Rows) -> Tensor:
        return self.x[_host(rows, self.x.device)]

    pooled = gather

    def with_gaps(self, rows: Rows) -> Tensor:
        """The rows with NaN for unknown values."""
        x = self.gather(rows)
        if self._unknown is None:
            return x
        unknown = np.unpackbits(self._unknown[rows], axis=1, count=x.shape[1]).view(np.bool_)
        return x.masked_fill(_host(unknown, x.device), float("nan"))


class SequenceTable:
    """Concatenated steps of all rows, (S, d) float32, and their times if irregular, (S,); batches are packed."""

    def __init__(
        self, x: NDArray[np.float32], offsets: Rows, device: torch.device, time: NDArray[np.float32] | None = None
    ):
        self.time = time
        self.x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device)
        self.offsets = offsets
        self.lengths = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, rows: Rows) -> PackedSequence:
        lengths = self.lengths[rows]
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        # Time-major: at step t, the rows that have this step, longest first.
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
        """Mean and maximum over steps, and the log number of steps, (n, 2 d + 1)."""
        if len(rows) == 0:
            return self.x.new_zeros(0, 2 * self.x.shape[1] + 1)
        lengths = self.lengths[rows]
        steps = self.x[_host(spans(self.offsets[rows], lengths), self.x.device)]
        n = _host(lengths, self.x.device)
        mean = torch.segment_reduce(steps, "mean", lengths=n)
        largest = torch.segment_reduce(steps, "max", lengths=n)
        return torch.cat([mean, largest, n.to(steps.dtype).log()[:, None]], dim=1)


class PixelTable:
    """Images (n, C, H, W) or volumes (n, D, H, W) in the store's dtype; batches are standardised as (x − mean) / sd."""

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
        """Mean intensity on a coarse grid: 8 × 8 per channel, or 6 × 6 × 6."""
        x = self.gather(rows)
        image = x.ndim == 4 and len(self.mean.shape) > 1
        return (F.adaptive_avg_pool2d(x, 8) if image else F.adaptive_avg_pool3d(x.unsqueeze(1), 6)).flatten(1)


@dataclass(frozen=True)
class Genotypes:
    """Packed rows of a GenotypeTable; missing calls have the SNP's most frequent genotype in training.

    Attributes:
        packed: (n, bytes) uint8.
        decode: (256, 4) float32, the four values of a byte, lowest bits first: copies of allele A1 minus 1.
        n_snps: p.
    """

    packed: Tensor
    decode: Tensor
    n_snps: int

    def __len__(self) -> int:
        return len(self.packed)

    def values(self, width: int | None = None) -> Tensor:
        """(n, width) float32, zero beyond column p; default: p columns."""
        width = self.n_snps if width is None else width
        n_bytes = -(-max(width, self.n_snps) // 4)
        packed = F.pad(self.packed, (0, n_bytes - self.packed.shape[1]), value=_ZEROS)
        byte = packed.flatten().int()
        if packed.device.type == "cpu":
            # Treating the four values of a byte as one 16-byte number needs one copy instead of four.
            wide = self.decode.view(torch.complex128).flatten().index_select(0, byte).view(torch.float32)
        else:
            wide = self.decode.index_select(0, byte)
        return wide.view(len(packed), 4 * n_bytes)[:, :width]


# A byte with four calls that decode to 0.
_ZEROS = 0b01010101


class GenotypeTable:
    """Packed genotypes (n, bytes) uint8 of the SNPs that the transform keeps, two bits per call.

    A value is the number of copies of allele A1 minus 1. Missing calls are imputed with the SNP's training mode.
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
    """Steps of a sequence; irregular sequences get the additional column log(1 + time since the previous step)."""
    if arrays.time is None or arrays.offsets is None:
        return arrays.x
    elapsed = np.diff(arrays.time, prepend=np.float32(0))
    starts = arrays.offsets[:-1]
    elapsed[starts[starts < len(elapsed)]] = 0.0
    return np.concatenate([arrays.x, np.log1p(np.maximum(elapsed, 0.0))[:, None]], axis=1, dtype=np.float32)


def sequence_table(arrays: Arrays, device: torch.device, *, elapsed: bool = True) -> SequenceTable:
    """The table of a sequence; with `elapsed`, that of `with_elapsed`.

    Raises:
        DataError: an observed sequence without steps, which the store should not contain.
    """
    assert arrays.offsets is not None
    empty = np.flatnonzero(np.diff(arrays.offsets) == 0)
    if len(empty):
        file, row, found = f"modalities/{arrays.modality.name}.parquet", int(empty[0]) + 1, f"{len(empty)} without any"
        expected = "at least one step in an observed sequence"
        fix = "Remove the row: a sample with an empty sequence lacks the modality."
        raise DataError(Fault(file=file, column="length", row=row, expected=expected, found=found, fix=fix))
    return SequenceTable(with_elapsed(arrays) if elapsed else arrays.x, arrays.offsets, device, arrays.time)
