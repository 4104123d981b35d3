"""Processing of a T1 image to a volume-preserving grey-matter map in template space.

Steps: reorientation, N4 bias correction (SimpleITK), brain extraction (deepbet), tissue segmentation (`tissues`),
registration to the template (SyN), grey-matter probability × Jacobian determinant (a substitute for RAVENS).
benchmarks/imaging.md reports quality and speed. With one thread and fixed seeds, results are bit-identical.

The libraries (extra `imaging`) are imported only where they are used, because each scan runs in a separate process.
"""

import importlib.util
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import DataError, MissingExtraError
from mrpipe.imaging.nifti import read_scan, refused, write_nifti
from mrpipe.imaging.suitability import brain_numbers, faults_of, voxel_numbers
from mrpipe.imaging.tissues import tissue_probabilities

PACKAGES = {"ants": "antspyx", "SimpleITK": "SimpleITK", "deepbet": "deepbet", "nilearn": "nilearn"}
# Scale of RAVENS maps: 1000 = a template voxel that contains only grey matter.
SCALE = 1000.0
SEED = 42
# Registration: voxels around the brain of the template, and the voxel size to which finer scans are resampled.
MARGIN, SCAN_MM = 4, 1.5
# Iterations at a quarter, a half and the full resolution of the template. An iteration costs eight times as much as one
# at the next coarser resolution; a large gradient step needs few of them.
SYN: dict[str, dict[str, Any]] = {
    "quality": dict(type_of_transform="SyN", syn_metric="meansquares", grad_step=0.5, reg_iterations=(60, 20, 3)),
    "fast": dict(type_of_transform="SyN", syn_metric="mattes", reg_iterations=(40, 20, 0)),
    "affine": {"type_of_transform": "Affine"},
}


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """Settings that determine the result, besides scan and template.

    Attributes:
        registration: quality, fast or affine.
        brain: `extract`, or `stripped` for skull-stripped scans (all values above 0 are brain).
        accepted: a person accepted the scan: numbers outside the limits of `suitability.LIMITS` are noted.
    """

    registration: str = "quality"
    brain: str = "extract"
    accepted: bool = False


@dataclass(frozen=True, kw_only=True)
class ChainResult:
    """Result of one scan.

    Attributes:
        gm: (I, J, K) float32 modulated grey matter × 1000 on the template's grid, not smoothed.
        numbers: numbers of quality control; see `run_chain`.
        seconds: CPU time per step, equal to the wall time on an idle core.
        peak_mb: peak memory of the process in MB.
    """

    gm: NDArray[np.float32]
    numbers: dict[str, float]
    seconds: dict[str, float]
    peak_mb: float
    notes: tuple[str, ...]


def require_imaging() -> None:
    """Raise MissingExtraError if a package of the chain is not installed."""
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "imaging", "the chain from raw T1 scans to grey-matter maps")


def correct_bias(path: Path) -> NDArray[np.float32]:
    """N4 bias correction of a NIfTI file within an Otsu mask of the head; float32 array in the axis order of the file.

    The field is fitted on a grid coarsened by 4, and applied at full resolution.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    head = sitk.OtsuThreshold(image, 0, 1, 200)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([25, 25, 25])
    factors = [4] * 3
    n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(head, factors))
    field_log = sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)
    corrected: NDArray[np.float32] = sitk.GetArrayFromImage(image / sitk.Exp(field_log)).transpose(2, 1, 0)
    return np.ascontiguousarray(np.nan_to_num(corrected, posinf=0.0, neginf=0.0), dtype=np.float32)


def extract_brain(head: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Brain mask of a head in RAS+ order by deepbet (weights included in the package); one component without holes."""
    from deepbet import BrainExtraction

    bet = BrainExtraction(no_gpu=True)
    try:
        return np.asarray(bet.postprocess(bet.run_model(head.copy()) > 0.5), dtype=bool)
    except AssertionError as error:
        raise refused("scan", "a head with a brain in it", "brain extraction found no brain") from error


def match_quantiles(
    image: NDArray[np.float32], mask: NDArray[np.bool_], reference: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Map the intensity quantiles inside `mask` to those of `reference`; 0 outside.

    The mean-squares metric compares intensities. Without matching, SyN would compensate for differences in intensity
    scale by shifting tissue borders.
    """
    q = np.linspace(0.01, 0.99, 25)
    out = np.zeros(image.shape, dtype=np.float32)
    source = np.quantile(image[mask], q)
    # np.interp requires ascending abscissae; equal quantiles (a peak of the histogram) are separated by a tiny offset.
    source += np.arange(len(q)) * 1e-9 * max(float(source[-1] - source[0]), 1e-9)
    out[mask] = np.interp(image[mask], source, np.quantile(reference, q))
    return out


def register(template: Any, brain: NDArray[np.bool_], scan: Any, method: str, prefix: str) -> list[str]:
    """Files of the transforms from a scan to the template, the affine one last.

    SyN spends its time per voxel of the template and of the scan. The template (ANTs image) is therefore cropped to its
    `brain` with a margin, outside of which the deformation is zero, and a finer `scan` is resampled to 1.5 mm.
    """
    import ants

    low = [max(int(c.min()) - MARGIN, 0) for c in np.nonzero(brain)]
    high = [min(int(c.max()) + 1 + MARGIN, n) for c, n in zip(np.nonzero(brain), brain.shape, strict=True)]
    fixed = ants.crop_indices(template, low, high)
    moving = ants.resample_image(scan, [max(mm, SCAN_MM) for mm in scan.spacing], use_voxels=False, interp_type=0)
    ants.config.set_ants_deterministic(on=True, seed_value=SEED)
    return list(ants.registration(fixed, moving, outprefix=prefix, **SYN[method])["fwdtransforms"])


def run_chain(
    scan_path: Path, shown_as: str, template_t1: Path, template_brain: Path, settings: ChainSettings, work: Path
) -> tuple[ChainResult, dict[str, NDArray[np.float32]]]:
    """Process one scan; also returns volumes for its picture.

    Args:
        template_t1, template_brain: skull-stripped template and its brain mask, on the grid of the result.

    Returns:
        Result with the numbers of `suitability` and `gm_ml` (in the space of the scan), `fluid_share`, `grey_share`,
        `white_share` (of the brain), `map_ml` (volume of the modulated map), `mass_ratio` (map_ml / gm_ml), `overlap`
        (Dice of the warped brain and the template's brain), `ncc` (correlation with the template within its brain),
        `stretch` (ratio of the largest to the smallest scale of the affine part), `n_folded` (voxels of the template's
        brain with a Jacobian ≤ 0), `jacobian_min` and `jacobian_max` (in the template's brain); float32 volumes `t1`
        (bias-corrected brain on the template's grid), and `head`, `brain` and `grey` in the space of the scan.

    Raises:
        DataError: the scan cannot be read, no brain was found, or the scan is not suitable; see `suitability.LIMITS`.
    """
    seconds: dict[str, float] = {}
    began = time.process_time()

    def lap(step: str) -> None:
        seconds[step] = round(time.process_time() - began - sum(seconds.values()), 2)

    scan = read_scan(scan_path, shown_as)
    import ants

    numbers, notes = voxel_numbers(scan.data), list(scan.notes)

    def judge() -> None:
        """Refuse the scan if a number measured so far is outside its limits."""
        if (faults := faults_of(numbers, shown_as)) and not settings.accepted:
            raise DataError(faults)

    judge()
    canonical = work / "scan.nii"
    write_nifti(canonical, scan.data, scan.affine)
    lap("read")
    head = correct_bias(canonical)
    lap("n4")
    stripped = settings.brain == "stripped"
    brain_mask = head > 0 if stripped else extract_brain(head)
    lap("brain")
    voxel_ml = float(np.prod(scan.voxel_mm)) / 1000.0
    if brain_mask.sum() * voxel_ml < 100.0:
        raise refused(shown_as, "a head with a brain in it", "less than 100 ml of brain")
    numbers |= brain_numbers(scan.data, head, brain_mask, scan.affine, template_t1, stripped=stripped)
    judge()
    lap("judge")
    frame = ants.image_read(str(canonical))
    brain = frame.new_image_like(np.where(brain_mask, head, 0).astype(np.float32))
    mask = frame.new_image_like(brain_mask.astype(np.float32))
    tissues = tissue_probabilities(head, brain_mask)
    grey = frame.new_image_like(tissues[1])
    sums = tissues.sum(axis=(1, 2, 3), dtype=np.float64)
    gm_ml = float(sums[1]) * voxel_ml
    numbers |= dict(zip(("fluid_share", "grey_share", "white_share"), (sums / sums.sum()).tolist(), strict=True))
    judge()
    lap("segment")
    fixed, fixed_brain = ants.image_read(str(template_t1)), ants.image_read(str(template_brain)).numpy() > 0
    target = fixed.numpy()
    matched = frame.new_image_like(match_quantiles(brain.numpy(), brain_mask, target[fixed_brain]))
    forward = register(fixed, fixed_brain, matched, settings.registration, str(work / "tx_"))
    scales = np.linalg.svd(np.reshape(ants.read_transform(forward[-1]).parameters[:9], (3, 3)), compute_uv=False)
    numbers["stretch"] = float(scales[0] / scales[2])
    judge()
    lap("register")
    warped = ants.apply_transforms(fixed, grey, forward, interpolator="linear").numpy()
    composed = ants.apply_transforms(fixed, grey, forward, compose=str(work / "all_"))
    jacobian = ants.create_jacobian_determinant_image(fixed, composed, False).numpy()
    gm = np.clip(warped * jacobian, 0.0, None).astype(np.float32) * np.float32(SCALE)
    t1 = ants.apply_transforms(fixed, brain, forward, interpolator="linear").numpy().astype(np.float32)
    inside = ants.apply_transforms(fixed, mask, forward, interpolator="nearestNeighbor").numpy() > 0.5
    lap("modulate")
    map_ml = float(gm.sum(dtype=np.float64)) / SCALE * float(np.prod(fixed.spacing)) / 1000.0
    numbers |= {
        "gm_ml": gm_ml,
        "map_ml": map_ml,
        "mass_ratio": map_ml / gm_ml,
        "overlap": 2.0 * float((inside & fixed_brain).sum()) / float(inside.sum() + fixed_brain.sum()),
        "ncc": float(np.corrcoef(t1[fixed_brain], target[fixed_brain], dtype=np.float64)[0, 1]),
        "n_folded": float((jacobian[fixed_brain] <= 0).sum()),
        "jacobian_min": float(jacobian[fixed_brain].min()),
        "jacobian_max": float(jacobian[fixed_brain].max()),
    }
    notes += [f"accepted although {fault.found}" for fault in faults_of(numbers, shown_as)]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    result = ChainResult(gm=gm, numbers=numbers, seconds=seconds, peak_mb=peak_mb, notes=tuple(notes))
    return result, {"t1": t1, "head": head, "brain": brain_mask.astype(np.float32), "grey": tissues[1]}
