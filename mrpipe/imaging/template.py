"""Registration template and its mask: MNI152 2009a (from nilearn) at 2 mm, or a user's template."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from mrpipe.errors import MissingExtraError
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.imaging.nifti import load_nifti, write_nifti

# FSL's 2 mm MNI grid; 91 × 109 × 91 voxels.
GM, MNI_SHAPE = 0.5, (91, 109, 91)
MNI_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -126], [0, 0, 2.0, -72], [0, 0, 0, 1]])


@dataclass(frozen=True, eq=False)
class Template:
    """A skull-stripped T1 on the grid of the maps.

    Attributes:
        t1: (I, J, K) float32, 0 outside the brain.
        grid: grey-matter mask and affine.
    """

    t1: NDArray[np.float32]
    grid: VoxelGrid

    @property
    def brain(self) -> NDArray[np.bool_]:
        return self.t1 > 0

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write T1 and brain mask as NIfTI files, for the processes of the chain; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        t1, brain = folder / "template_t1.nii", folder / "template_brain.nii"
        write_nifti(t1, self.t1, self.grid.affine)
        write_nifti(brain, self.brain.astype(np.uint8), self.grid.affine)
        return t1, brain


def _nilearn() -> Any:
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingExtraError("nilearn", "imaging", "the MNI152 template of the image chain") from error
    return datasets


def _resampled(image: Any, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Trilinear resampling; values below a thousandth of the maximum become 0, so that the brain has a sharp border."""
    out = np.asarray(resample_from_to(image, (shape, affine), order=1).dataobj, dtype=np.float32)
    out[out < 1e-3 * out.max()] = 0
    return out


def mni_template(grid: VoxelGrid | None = None) -> Template:
    """MNI152 2009a as included in nilearn (no download), resampled to `grid` or to 2 mm (91 × 109 × 91).

    Args:
        grid: grid and mask; default: the voxels of the 2 mm grid with a grey-matter probability above `GM`.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    datasets = _nilearn()
    shape, affine = (grid.mask.shape, grid.affine) if grid else (MNI_SHAPE, MNI_AFFINE)
    t1 = _resampled(datasets.load_mni152_template(resolution=1), shape, affine)
    if grid is None:
        gm = _resampled(datasets.load_mni152_gm_template(resolution=1), shape, affine)
        grid = VoxelGrid(mask=(gm > GM) & (t1 > 0), affine=MNI_AFFINE)
    return Template(t1=t1, grid=grid)


def user_template(path: Path, shown_as: str, grid: VoxelGrid) -> Template:
    """A user's skull-stripped T1, resampled to the grid of the mask."""
    image = load_nifti(path, shown_as)
    data = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    return Template(t1=_resampled(data, grid.mask.shape, grid.affine), grid=grid)


def mni_tissues(voxel_mm: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Skull-stripped T1 and grey-matter probability of MNI152 2009a, both (I, J, K), at a voxel size, and their affine.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    datasets = _nilearn()
    shape = tuple(int(n) for n in np.ceil(np.array(MNI_SHAPE) * 2.0 / voxel_mm))
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -90.0, -126.0, -72.0
    t1 = _resampled(datasets.load_mni152_template(resolution=1), shape, affine)
    return t1, _resampled(datasets.load_mni152_gm_template(resolution=1), shape, affine), affine
