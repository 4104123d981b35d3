"""Reading NIfTI files of any make: what can be read for sure is read, all else is refused with its reason."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault

# What nibabel and gzip raise for a file that is none, is cut short, or contradicts itself.
NIFTI_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error, OverflowError, MemoryError)
# Cosines between axes of a scan that is not sheared; what scanners write stays below.
MAX_SHEAR = 1e-2


@dataclass(frozen=True, eq=False)
class NiftiScan:
    """One T1 in RAS+ order.

    Attributes:
        data: (X, Y, Z) float32, no NaN; x rises to the right, y to the front, z to the top.
        affine: (4, 4) voxel index → world, mm, axes at right angles.
        notes: what was unusual and how it was read.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def load_nifti(path: Path, shown_as: str) -> Any:
    """Open a NIfTI file (`.nii`, `.nii.gz`, byte order either way) and make sure that its voxels can be read.

    Raises:
        DataError: not a NIfTI file, cut short, or without a usable affine.
    """
    try:
        image: Any = nib.load(path)
        # Voxels are read here, so that a file that was cut short is met by its name and not later.
        np.asarray(image.dataobj)
    except NIFTI_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(str(path), shown_as)
        raise DataError(
            Fault(
                file=shown_as,
                expected="a complete NIfTI image",
                found=reason,
                fix="The file is damaged or cut short: download it again.",
            )
        ) from error
    affine = np.asarray(image.affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            Fault(
                file=shown_as,
                expected="an affine that maps voxels to millimetres",
                found=f"a singular one, rows {np.round(affine[:3], 3).tolist()}",
                fix="Convert the DICOM series again, e.g. with dcm2niix.",
            )
        )
    return image


def _refuse(shown_as: str, expected: str, found: str, fix: str = "") -> DataError:
    return DataError(Fault(file=shown_as, expected=expected, found=found, fix=fix))


def _right_angled(affine: NDArray[np.float64], shown_as: str, notes: list[str]) -> NDArray[np.float64]:
    """The affine with axes at right angles (nearest rotation, by the polar decomposition)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    shear = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if shear > MAX_SHEAR:
        raise _refuse(
            shown_as,
            "axes at right angles",
            f"axes whose cosines are up to {shear:.3f}",
            "The scan is sheared (a tilted gantry?): resample it to a regular grid first.",
        )
    u, _, vt = np.linalg.svd(cosines)
    if shear > 1e-4:
        notes.append(f"axes off right angles by up to {shear:.1e} were set right")
    straight = np.eye(4)
    straight[:3, :3] = (u @ vt) * spacing
    straight[:3, 3] = affine[:3, 3]
    return straight


def read_scan(
    path: Path, shown_as: str, *, max_voxel_mm: float = 3.0, min_extent_mm: float = 100.0, min_voxels: int = 32
) -> NiftiScan:
    """One head as a RAS+ volume.

    Big-endian files, integer and scaled data, any axis order, left- or right-handed axes and trailing axes of length
    1 are read. NaN and infinities become 0.

    Args:
        shown_as: the file's name in errors.
        max_voxel_mm: coarsest voxel edge that is accepted; a 5 mm localiser is no anatomical scan.
        min_extent_mm: smallest extent along each axis; a head needs more than this.
        min_voxels: least number of voxels along each axis.

    Raises:
        DataError: several volumes in one file, one slice, coarse voxels, a small field of view, no orientation, a
            sheared grid, or nothing but one value.
    """
    image = load_nifti(path, shown_as)
    header, notes = image.header, []
    if getattr(header, "endianness", "<") == ">":
        notes.append("big-endian")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise _refuse(
            shown_as,
            "one volume",
            f"{len(shape)} dimensions {'×'.join(map(str, shape))}, {int(np.prod(shape[3:]))} volumes",
            "A series (functional, diffusion, several echoes) is no anatomical scan: choose the T1.",
        )
    if len(shape) < 3:
        raise _refuse(shown_as, "three dimensions", f"shape {shape}", "Convert the whole DICOM series.")
    if len(shape) != len(image.shape):
        notes.append(f"trailing axes of length 1 dropped from {'×'.join(map(str, image.shape))}")
    if "qform_code" in header and int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise _refuse(
            shown_as,
            "an orientation (sform or qform)",
            "both codes 0, so left and right are unknown",
            "Convert the DICOM series again, or set the orientation by hand if you are sure of it.",
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = "×".join(map(str, shape))
    if min(shape) < min_voxels:
        raise _refuse(shown_as, f"at least {min_voxels} voxels an axis", f"{size} voxels", "Too few slices for a T1.")
    # Headers hold float32: an edge of 3 mm may read as a hair more.
    if spacing.max() > max_voxel_mm * 1.001:
        found = f"voxels of {spacing[0]:.2f}×{spacing[1]:.2f}×{spacing[2]:.2f} mm"
        raise _refuse(shown_as, f"voxels of at most {max_voxel_mm:g} mm", found, "Low resolution: no structural T1.")
    extent = spacing * shape
    if extent.min() < min_extent_mm:
        found = f"{extent[0]:.0f}×{extent[1]:.0f}×{extent[2]:.0f} mm ({size} voxels)"
        raise _refuse(shown_as, f"a field of view of at least {min_extent_mm:g} mm", found, "The head does not fit in.")
    data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    straight = _right_angled(affine, shown_as, notes)
    ras = nib.as_closest_canonical(nib.Nifti1Image(data, straight))
    data = np.ascontiguousarray(ras.dataobj, dtype=np.float32)
    bad = ~np.isfinite(data)
    if bad.any():
        notes.append(f"{int(bad.sum())} voxels without a finite value were set to 0")
        data = np.where(bad, np.float32(0), data)
    if float(data.max()) <= float(data.min()):
        raise _refuse(shown_as, "an image", f"{data.size} voxels of one value {float(data.min()):g}")
    return NiftiScan(data=data, affine=np.asarray(ras.affine, dtype=np.float64), notes=tuple(notes))


def on_grid(path: Path, shown_as: str, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """A map that must lie on a given grid; other axis orders of the same grid are turned round.

    Returns:
        float32 array of `shape`.

    Raises:
        DataError: unreadable, or on another grid; no map is resampled silently.
    """
    image = load_nifti(path, shown_as)
    data = np.asarray(image.dataobj, dtype=np.float32)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 3:
        here = nib.orientations.io_orientation(image.affine)
        there = nib.orientations.io_orientation(affine)
        turned = nib.Nifti1Image(data, image.affine).as_reoriented(nib.orientations.ornt_transform(here, there))
        if turned.shape == tuple(shape) and np.allclose(turned.affine, affine, atol=0.05):
            return np.ascontiguousarray(turned.dataobj, dtype=np.float32)
    corner = np.round(affine[:3, 3], 1).tolist()
    raise DataError(
        Fault(
            file=shown_as,
            expected=f"a map on the mask's grid ({'×'.join(map(str, shape))}, corner {corner} mm)",
            found=f"{'×'.join(map(str, image.shape))}, corner {np.round(image.affine[:3, 3], 1).tolist()} mm",
            fix="Resample it to the mask's grid, or give the mask that belongs to these maps.",
        )
    )


def write_nifti(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a volume with sform and qform of code 2 (aligned)."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 2)
    nib.save(image, path)
