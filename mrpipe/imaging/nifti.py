"""Reading NIfTI files of any origin; ambiguous or unsuitable files are refused with the reason."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mrpipe.budget import allowed, too_large
from mrpipe.errors import DataError, Fault
from mrpipe.forms import open_binary
from mrpipe.reading import reading

_NIFTI2 = tuple((540).to_bytes(4, order) for order in ("little", "big"))  # length of the header
# Maximum cosine between two axes of a scan that is not sheared; scanners write smaller ones.
MAX_SHEAR = 1e-2
# Extent along each axis. Scanners have a field of view of 500 mm at most; T1 scans of heads have up to 300 mm.
MIN_EXTENT_MM, MAX_EXTENT_MM = 100.0, 400.0
# Number of voxels along each axis, and their edges; localisers have slices of 5 mm.
MIN_VOXELS, MAX_VOXEL_MM = 32, 3.0


@dataclass(frozen=True, eq=False)
class NiftiScan:
    """A T1 image in RAS+ order.

    Attributes:
        data: (X, Y, Z) float32 without NaN; x increases to the right, y to anterior, z to superior.
        affine: (4, 4) voxel indices → world coordinates in mm; the axes are orthogonal.
        notes: peculiarities of the file and how they were handled.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def refused(shown_as: str, expected: str, found: str, fix: str = "") -> DataError:
    """The error for an image that is not suitable."""
    return DataError(Fault(file=shown_as, expected=expected, found=found, fix=fix))


def _opened(path: Path, shown_as: str) -> Any:
    """A NIfTI image; the content of a compressed one is bounded, and decompressed once."""
    if path.suffix.lower() != ".gz":
        return nib.load(path)
    with open_binary(path, shown_as) as handle:
        data = handle.read()
    form = nib.Nifti2Image if data[:4] in _NIFTI2 else nib.Nifti1Image
    return form.from_bytes(data)


def load_nifti(path: Path, shown_as: str) -> Any:
    """Open a NIfTI file (`.nii`, `.nii.gz`, any byte order) and check that its voxels can be read.

    Raises:
        DataError: the file is not NIfTI, is truncated, or has no usable affine or contradicting orientations.
    """
    with reading(shown_as, "a complete NIfTI image", path=path):
        path.open("rb").close()  # nibabel hides a lack of permission
        image = _opened(path, shown_as)
        n, limit = math.prod(image.shape), allowed(path.stat().st_size)
        if min(image.shape, default=0) < 1 or n * 8 > limit:
            raise too_large(shown_as, limit, f"an image of shape {image.shape}", "voxels (8 bytes each)")
        # Read the voxels here, so that a truncated file is reported by name.
        np.asarray(image.dataobj)
    if np.asarray(image.dataobj).dtype.kind not in "iuf":
        found, fix = f"voxels of type {image.get_data_dtype()}", "Convert the DICOM series again, as grey values."
        raise refused(shown_as, "one real number per voxel", found, fix)
    affine = np.asarray(image.affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        found, fix = f"a singular one, rows {np.round(affine[:3], 3).tolist()}", "Convert the DICOM series again."
        raise refused(shown_as, "an affine that maps voxels to millimetres", found, fix)
    if "qform_code" in image.header:
        _same_directions(image.header, shown_as)
    return image


def _right_angled(affine: NDArray[np.float64], shown_as: str, notes: list[str]) -> NDArray[np.float64]:
    """The affine with orthogonal axes (nearest rotation, by polar decomposition)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    shear = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if shear > MAX_SHEAR:
        fix = "The scan is sheared (possibly a tilted gantry): resample it to a regular grid first."
        raise refused(shown_as, "axes at right angles", f"axes whose cosines are up to {shear:.3f}", fix)
    u, _, vt = np.linalg.svd(cosines)
    if shear > 1e-4:
        notes.append(f"axes off right angles by up to {shear:.1e} were set right")
    straight = np.eye(4)
    straight[:3, :3] = (u @ vt) * spacing
    straight[:3, 3] = affine[:3, 3]
    return straight


def _require_consistent(header: Any, affine: NDArray[np.float64], shown_as: str, notes: list[str]) -> None:
    """Refuse a NIfTI header without an orientation, or whose transforms, voxel sizes and unit contradict each other."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    again = "Convert the DICOM series again, or set the orientation manually if it is known."
    if codes == (0, 0):
        found = "both codes 0, so left and right are unknown"
        raise refused(shown_as, "an orientation (sform or qform)", found, again)
    if (unit := header.get_xyzt_units()[0]) not in ("mm", "unknown"):
        raise refused(shown_as, "voxel sizes in mm", f"the unit {unit}", "Convert the DICOM series again.")
    spacing, declared = np.linalg.norm(affine[:3, :3], axis=0), np.array(header.get_zooms()[:3], dtype=np.float64)
    if not np.allclose(spacing, declared, rtol=0.05):
        found = f"{np.round(spacing, 3).tolist()} in the affine, {np.round(declared, 3).tolist()} in pixdim"
        raise refused(shown_as, "equal voxel sizes in affine and header", found, again)
    if not _same_directions(header, shown_as):
        notes.append("sform and qform differ; the sform was used")


def _same_directions(header: Any, shown_as: str) -> bool:
    """Whether sform and qform are equal within 0.5 mm or only one is set; refuse contradicting directions of axes."""
    if not (header["sform_code"] and header["qform_code"]):
        return True
    again = "Convert the DICOM series again, or set the orientation manually if it is known."
    with reading(shown_as, "a rotation in qform", again):
        sform, qform = header.get_sform(), header.get_qform()
    norms = np.linalg.norm(sform[:3, :3], axis=0) * np.linalg.norm(qform[:3, :3], axis=0)
    if ((sform[:3, :3] * qform[:3, :3]).sum(axis=0) < 0.7 * norms).any():
        axes = ["".join(map(str, nib.aff2axcodes(a))) for a in (sform, qform)]
        found = f"axes {axes[0]} in sform, {axes[1]} in qform"
        raise refused(shown_as, "the same directions of axes in sform and qform", found, again)
    return bool(np.allclose(sform, qform, atol=0.5))


def read_scan(path: Path, shown_as: str) -> NiftiScan:
    """Read a T1 image of a head as a RAS+ volume.

    Supports big-endian files, integer and scaled data, any axis order, left- and right-handed axes, and trailing axes
    of length 1. NaN and infinities become 0.

    Raises:
        DataError: the file is unreadable, or has several volumes, a single slice, coarse voxels, a small or huge field
            of view, no or contradicting orientations, voxel sizes or units, a sheared grid, or only one value.
    """
    image = load_nifti(path, shown_as)
    header, notes = image.header, []
    if getattr(header, "endianness", "<") == ">":
        notes.append("big-endian")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        found = f"{len(shape)} dimensions {'×'.join(map(str, shape))}, {int(np.prod(shape[3:]))} volumes"
        raise refused(shown_as, "one volume", found, "A functional or diffusion series or echoes: choose the T1.")
    if len(shape) < 3:
        raise refused(shown_as, "three dimensions", f"shape {shape}", "Convert the whole DICOM series.")
    if len(shape) != len(image.shape):
        notes.append(f"trailing axes of length 1 dropped from {'×'.join(map(str, image.shape))}")
    affine = np.asarray(image.affine, dtype=np.float64)
    if "qform_code" in header:
        _require_consistent(header, affine, shown_as, notes)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = "×".join(map(str, shape))
    if min(shape) < MIN_VOXELS:
        raise refused(shown_as, f"at least {MIN_VOXELS} voxels an axis", f"{size} voxels", "Too few slices for a T1.")
    # Headers are float32, so that an edge of 3 mm can be slightly larger.
    if spacing.max() > MAX_VOXEL_MM * 1.001:
        found = f"voxels of {spacing[0]:.2f}×{spacing[1]:.2f}×{spacing[2]:.2f} mm"
        raise refused(shown_as, f"voxels of at most {MAX_VOXEL_MM:g} mm", found, "Too coarse for a structural T1.")
    extent = spacing * shape
    if extent.min() < MIN_EXTENT_MM:
        found = f"{extent[0]:.0f}×{extent[1]:.0f}×{extent[2]:.0f} mm ({size} voxels)"
        raise refused(shown_as, f"a field of view of at least {MIN_EXTENT_MM:g} mm", found, "Too small for a head.")
    if extent.max() > MAX_EXTENT_MM:
        found = f"{extent[0]:.0f}×{extent[1]:.0f}×{extent[2]:.0f} mm"
        raise refused(shown_as, f"a field of view of at most {MAX_EXTENT_MM:g} mm", found, "Check the voxel size.")
    data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    ras = nib.as_closest_canonical(nib.Nifti1Image(data, _right_angled(affine, shown_as, notes)))
    data = np.ascontiguousarray(ras.dataobj, dtype=np.float32)
    bad = ~np.isfinite(data)
    if bad.any():
        notes.append(f"{int(bad.sum())} voxels without a finite value were set to 0")
        data = np.where(bad, np.float32(0), data)
    if float(data.max()) <= float(data.min()):
        raise refused(shown_as, "an image", f"{data.size} voxels of one value {float(data.min()):g}")
    return NiftiScan(data=data, affine=np.asarray(ras.affine, dtype=np.float64), notes=tuple(notes))


def on_grid(path: Path, shown_as: str, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """A map (float32) on this grid, axes turned if need be; a DataError on another one, as maps are never resampled."""
    image = load_nifti(path, shown_as)
    data = np.asarray(image.dataobj, dtype=np.float32)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 3:
        source = nib.orientations.io_orientation(image.affine)
        target = nib.orientations.io_orientation(affine)
        turned = nib.Nifti1Image(data, image.affine).as_reoriented(nib.orientations.ornt_transform(source, target))
        if turned.shape == tuple(shape) and np.allclose(turned.affine, affine, atol=0.05):
            return np.ascontiguousarray(turned.dataobj, dtype=np.float32)
    corner = np.round(affine[:3, 3], 1).tolist()
    found = f"{'×'.join(map(str, image.shape))}, corner {np.round(image.affine[:3, 3], 1).tolist()} mm"
    fix = "Resample it to the mask's grid, or use the mask that belongs to these maps."
    raise refused(shown_as, f"a map on the mask's grid ({'×'.join(map(str, shape))}, corner {corner} mm)", found, fix)


def write_nifti(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a volume with sform and qform of code 2 (aligned)."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 2)
    nib.save(image, path)
