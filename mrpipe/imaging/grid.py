"""The voxel grid of a set of maps: a mask on a template, cropped to its bounding box."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault
from mrpipe.imaging.nifti import load_nifti

# In a stored volume 0 means outside the mask, so a zero inside it becomes the smallest positive float16 (6e-8).
INSIDE_ZERO = 2.0**-24


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """A mask on a template grid.

    Attributes:
        mask: (I, J, K) bool, the voxels that are kept.
        affine: (4, 4) voxel index → world coordinates, mm, RAS+.
    """

    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @cached_property
    def box(self) -> tuple[slice, slice, slice]:
        """Bounding box of the mask, one slice an axis."""
        slices = []
        for axis in range(3):
            hit = np.flatnonzero(self.mask.any(axis=tuple(a for a in range(3) if a != axis)))
            slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return slices[0], slices[1], slices[2]

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """The mask inside its bounding box, (D, H, W)."""
        return np.ascontiguousarray(self.mask[self.box])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the bounding box."""
        d, h, w = self.inside.shape
        return d, h, w

    @cached_property
    def n_voxels(self) -> int:
        return int(self.mask.sum())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def crop_affine(self) -> NDArray[np.float64]:
        """Affine of the cropped volume."""
        shifted = self.affine.copy()
        shifted[:3, 3] += self.affine[:3, :3] @ [s.start for s in self.box]
        return shifted

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that change with mask or affine."""
        packed = (
            np.packbits(self.mask).tobytes() + np.round(self.affine, 4).tobytes() + bytes(str(self.mask.shape), "ascii")
        )
        return f"{zlib.crc32(packed):08x}"

    def vector(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """Voxels of the mask in C-order of the grid, (n_voxels,), from a map of the grid's shape."""
        values: NDArray[np.float32] = volume[self.mask].astype(np.float32)
        return values

    def volume(self, vector: NDArray[Any], *, downsample: int = 1, dtype: str = "float32") -> NDArray[Any]:
        """Cropped volume of a voxel vector: 0 outside the mask, `INSIDE_ZERO` for what is 0 inside it.

        Args:
            vector: (n_voxels,) in C-order of the grid (and so of its box).
            downsample: mean over blocks of this edge; blocks past the border are filled up with zeros, and a block
                is inside if any voxel of it is.
            dtype: of the result.

        Returns:
            (D, H, W), each ⌈size / downsample⌉.
        """
        full = np.zeros(self.shape, dtype=np.float32)
        full[self.inside] = vector
        inside = self.inside
        if downsample > 1:
            full, inside = block_mean(full, downsample), block_mean(inside.astype(np.float32), downsample) > 0
        out = full.astype(dtype)
        out[inside & (out == 0)] = INSIDE_ZERO
        return out

    def output_shape(self, downsample: int = 1) -> tuple[int, int, int]:
        """Shape of `volume(..., downsample=...)`."""
        d, h, w = (-(-s // downsample) for s in self.shape)
        return d, h, w

    def describe(self, downsample: int = 1) -> str:
        """How to get back from a stored volume to world coordinates, for the dictionary."""
        affine = self.crop_affine
        if downsample > 1:
            # The centre of a block of k voxels lies (k − 1) / 2 voxels from its first one.
            affine = affine.copy()
            affine[:3, 3] += affine[:3, :3] @ np.full(3, (downsample - 1) / 2)
            affine[:3, :3] *= downsample
        rows = "; ".join(" ".join(f"{v:g}" for v in np.round(row, 4)) for row in affine[:3])
        box = ", ".join(f"{s.start}:{s.stop}" for s in self.box)
        pooled = f", mean over blocks of {downsample}³ voxels" if downsample > 1 else ""
        grid = "×".join(map(str, self.mask.shape))
        return (
            f"voxels [{box}] of the {grid} template grid{pooled}; {self.n_voxels} voxels in the mask, 0 outside it and "
            f"never exactly 0 inside (2^-24 stands for 0), so x != 0 is the mask; affine to RAS mm, rows: {rows}"
        )


def block_mean(volume: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Mean over blocks of `edge`³ voxels of a (D, H, W) volume that is filled up with zeros to whole blocks."""
    padded = np.pad(volume, [(0, -s % edge) for s in volume.shape])
    d, h, w = (s // edge for s in padded.shape)
    pooled: NDArray[np.float32] = padded.reshape(d, edge, h, edge, w, edge).mean(axis=(1, 3, 5), dtype=np.float32)
    return pooled


def read_grid(path: Path, shown_as: str, *, label: int = 0) -> VoxelGrid:
    """Grid from a NIfTI mask or label image.

    Args:
        label: the label that is kept; if the image has no such label and only 0 and one other value, that other one.
            0 keeps everything above 0.

    Raises:
        DataError: unreadable, not three-dimensional, without such a label, or empty.
    """
    image = load_nifti(path, shown_as)
    values = np.round(np.asarray(image.dataobj, dtype=np.float32))
    if values.ndim != 3:
        raise DataError(Fault(file=shown_as, expected="a three-dimensional mask", found=f"shape {values.shape}"))
    present = [int(v) for v in np.unique(values[np.isfinite(values)])]
    if label and label not in present:
        foreground = [v for v in present if v != 0]
        if len(foreground) != 1:
            raise DataError(
                Fault(
                    file=shown_as,
                    expected=f"label {label} (grey matter), or a mask of 0 and one other value",
                    found=f"labels {', '.join(map(str, present[:12]))}",
                    fix="Name the label of grey matter with image_mask_label.",
                )
            )
        label = foreground[0]
    mask = values == label if label else values > 0
    if not mask.any():
        raise DataError(Fault(file=shown_as, expected="a mask with voxels in it", found="an empty one"))
    return VoxelGrid(mask=mask, affine=np.asarray(image.affine, dtype=np.float64))
