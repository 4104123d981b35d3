"""Voxel grid of a set of maps: a mask on a template grid, cropped to its bounding box."""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from mrpipe.imaging.nifti import load_nifti, refused

# In stored volumes, 0 means outside the mask; zeros inside it become the smallest positive float16 (6e-8).
INSIDE_ZERO = 2.0**-24


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """A mask on a template grid.

    Attributes:
        mask: (I, J, K) bool, voxels to keep.
        affine: (4, 4) voxel indices → world coordinates in mm, RAS+.
    """

    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """Bounding box of the mask, one slice per axis."""
        box: tuple[slice, ...] = find_objects(self.mask.astype(np.int8))[0]
        return box

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """The mask cropped to its bounding box, (D, H, W)."""
        return np.ascontiguousarray(self.mask[self.box])

    @cached_property
    def n_voxels(self) -> int:
        return int(self.mask.sum())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def crop_affine(self) -> NDArray[np.float64]:
        """Affine of the cropped volume."""
        shifted = self.affine.copy()
        shifted[:3, 3] += self.affine[:3, :3] @ [s.start for s in self.box]
        return shifted

    @property
    def fingerprint(self) -> str:
        """Checksum of mask and affine, eight hex digits."""
        packed = (
            np.packbits(self.mask).tobytes() + np.round(self.affine, 4).tobytes() + bytes(str(self.mask.shape), "ascii")
        )
        return f"{zlib.crc32(packed):08x}"

    def vector(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        """Voxels inside the mask of a map (I, J, K), as a vector (n_voxels,) in C order of the grid."""
        return np.asarray(volume[self.mask].astype(np.float32))

    def volume(self, vector: NDArray[Any], *, downsample: int = 1, dtype: str = "float32") -> NDArray[Any]:
        """Cropped volume of a voxel vector: 0 outside the mask, `INSIDE_ZERO` for zeros inside it.

        Args:
            vector: (n_voxels,) in C order of the grid.
            downsample: edge length of the blocks over which values are averaged. Incomplete blocks are padded with
                zeros; a block is inside the mask if any of its voxels is.

        Returns:
            Volume (D, H, W), each axis of length ⌈size / downsample⌉.
        """
        full = np.zeros(self.inside.shape, dtype=np.float32)
        full[self.inside] = vector
        inside = self.inside
        if downsample > 1:
            full, inside = block_mean(full, downsample), block_mean(inside.astype(np.float32), downsample) > 0
        out = full.astype(dtype)
        out[inside & (out == 0)] = INSIDE_ZERO
        return out

    def output_shape(self, downsample: int = 1) -> tuple[int, int, int]:
        """Shape of the result of `volume(..., downsample=...)`."""
        d, h, w = (-(-s // downsample) for s in self.inside.shape)
        return d, h, w

    def describe(self, downsample: int = 1) -> str:
        """Relation of a stored volume to the template grid and world coordinates, for the dictionary."""
        affine = block_affine(self.crop_affine, downsample)
        rows = "; ".join(" ".join(f"{v:g}" for v in np.round(row, 4)) for row in affine[:3])
        box = ", ".join(f"{s.start}:{s.stop}" for s in self.box)
        pooled = f", mean over blocks of {downsample}³ voxels" if downsample > 1 else ""
        grid = "×".join(map(str, self.mask.shape))
        return (
            f"voxels [{box}] of the {grid} template grid{pooled}; {self.n_voxels} voxels in the mask, 0 outside it and "
            f"never exactly 0 inside (2^-24 stands for 0), so x != 0 is the mask; affine to RAS mm, rows: {rows}"
        )


def block_affine(affine: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
    """Affine of the means over blocks: the centre of a block is (edge − 1) / 2 voxels from its first voxel."""
    blocks = np.diag([edge, edge, edge, 1.0])
    blocks[:3, 3] = (edge - 1) / 2
    return np.asarray(affine @ blocks)


def block_mean(volume: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Mean over blocks of `edge`³ voxels of a volume (D, H, W), zero-padded to complete blocks."""
    padded = np.pad(volume, [(0, -s % edge) for s in volume.shape])
    d, h, w = (s // edge for s in padded.shape)
    return np.asarray(padded.reshape(d, edge, h, edge, w, edge).mean(axis=(1, 3, 5), dtype=np.float32))


def read_grid(path: Path, shown_as: str, *, label: int = 0) -> VoxelGrid:
    """Read a grid from a NIfTI mask or label image.

    Args:
        label: label to keep; 0: all values above 0. If the image lacks the label and has only one non-zero value, that
            value is used.

    Raises:
        DataError: the image is unreadable, not three-dimensional or empty, or lacks the label.
    """
    image = load_nifti(path, shown_as)
    values = np.round(np.asarray(image.dataobj, dtype=np.float32))
    if values.ndim != 3:
        raise refused(shown_as, "a three-dimensional mask", f"shape {values.shape}")
    present = [int(v) for v in np.unique(values[np.isfinite(values)])]
    if label and label not in present:
        foreground = [v for v in present if v != 0]
        if len(foreground) != 1:
            expected = f"label {label} (grey matter), or a mask of 0 and one other value"
            found, fix = f"labels {', '.join(map(str, present[:12]))}", "Set image_mask_label to that of grey matter."
            raise refused(shown_as, expected, found, fix)
        label = foreground[0]
    mask = values == label if label else values > 0
    if not mask.any() or mask.all():
        found = "an empty one" if not mask.any() else "all voxels inside it"
        raise refused(shown_as, "a mask with voxels inside and outside", found)
    return VoxelGrid(mask=mask, affine=np.asarray(image.affine, dtype=np.float64))
