"""Suitability of a T1 scan: intensities, field of view, skull and orientation, checked before the expensive steps.

The limits lie between the values of usable scans and of scans that were spoilt on purpose; `benchmarks/imaging.md`
lists both.
"""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, binary_erosion, distance_transform_edt, gaussian_filter1d

from mrpipe.errors import Fault
from mrpipe.imaging.grid import block_affine, block_mean

Volume = NDArray[np.float32]
Affine = NDArray[np.float64]
# Cubes of 40³ voxels of 6 mm, in which a brain and the template are compared at equal volume and centre.
CUBE, CUBE_MM, LITRES = 40, 6.0, 1.5
# Number → least and largest value, expectation, and remedy. The first number out of bounds gives the reason.
LIMITS: dict[str, tuple[float, float, str, str]] = {
    "empty": (0, 0, "no empty slices between others", "Slices are missing: convert the DICOM series again."),
    "repeated": (0, 0.1, "slices that differ from each other", "A part of the scan is a copy of another part."),
    "flat": (0, 0.4, "intensities of a T1 image", "Values repeat: a label image, a mask, or a saturated scan."),
    "air": (-0.1, 0.25, "dark air around the head", "The contrast is inverted, or the values have an offset."),
    "scalp": (0.2, 1, "a head with skull and scalp", "If scans are skull-stripped, set image_brain=stripped."),
    "brain_ml": (850, 2250, "a brain of 850-2250 ml", "Check voxel size and image_brain (extract or stripped)."),
    "hollow": (0, 0.01, "a signal everywhere in the brain", "A part of the head is missing."),
    "cut": (0, 0.3, "a whole brain", "The field of view cuts the brain."),
    "orientation": (-0.02, 1, "axes as in the header", "The voxels were flipped or permuted."),
    "similarity": (0.9, 2, "a T1 image of a brain, similar to the template", ""),
    "haze": (0, 0.1, "dark air above the head", "The scan has ghosts, wrapping or much noise."),
    "sharpness": (0.018, 0.08, "visible borders of tissues", "The scan is blurred, noisy or saturated."),
    "fluid_share": (0.08, 0.5, "a plausible share of fluid in the brain", "The segmentation failed."),
    "grey_share": (0.2, 0.6, "a plausible share of grey matter in the brain", "The segmentation failed."),
    "white_share": (0.15, 0.6, "a plausible share of white matter in the brain", "The segmentation failed."),
    "stretch": (1, 1.4, "a head of usual proportions", "Check the voxel size."),
}
# Turns of the head about x, y and z in degrees that are allowed for before orientations are compared.
TURNS = tuple(itertools.product(range(-30, 31, 10), (-15, 0, 15), (-15, 0, 15)))


def _coarse(volume: Volume, affine: Affine, mm: float = 3.0) -> tuple[Volume, Affine]:
    """Means over blocks of at most `mm`, and their affine."""
    edge = max(1, int(mm / np.linalg.norm(affine[:3, :3], axis=0).min()))
    return block_mean(volume, edge), block_affine(affine, edge)


def _cubes(brain: Volume, affine: Affine, turns: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """The brain (0 outside) on cubes around its centre, scaled to `LITRES`, one cube per turn."""
    inside = brain > 0
    mm = CUBE_MM * (inside.sum() * abs(np.linalg.det(affine[:3, :3])) / (LITRES * 1e6)) ** (1 / 3)
    relative = np.clip(brain / brain[inside].mean(), 0, 2)
    centre = np.array([c.mean() for c in np.nonzero(inside)])
    cubes = []
    for turn in turns:
        matrix = np.linalg.inv(affine[:3, :3]) * mm
        for axis, degrees in enumerate(turn):
            (i, j), step = [a for a in range(3) if a != axis], np.eye(3)
            c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            step[i, i], step[i, j], step[j, i], step[j, j] = c, -s, s, c
            matrix = matrix @ step
        corner = centre - matrix @ np.full(3, (CUBE - 1) / 2)
        cubes.append(affine_transform(relative, matrix, corner, (CUBE,) * 3, order=1))
    return np.stack(cubes)


def _unit(cubes: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = cubes.reshape(len(cubes), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))


@cache
def _template_cubes(path: Path) -> NDArray[np.float32]:
    image = nib.as_closest_canonical(nib.load(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    return _unit(_cubes(*_coarse(data, np.asarray(image.affine, dtype=np.float64)), TURNS))


def orientation_scores(brain: Volume, affine: Affine, template_t1: Path) -> NDArray[np.float32]:
    """Correlation of a brain (0 outside) in RAS+ order with the template in 24 orientations, the given one first.

    These are all orders and directions of the axes up to a reflection of left and right, which look alike.
    """
    cube = _cubes(*_coarse(brain, affine), ((0, 0, 0),))[0]
    orders = itertools.product(itertools.permutations(range(3)), (1, -1), (1, -1))
    turned = np.stack([cube.transpose(order)[:, ::y, ::z] for order, y, z in orders])
    return np.asarray((_unit(turned) @ _template_cubes(template_t1).T).max(axis=1))


def faults_of(numbers: Mapping[str, float], shown_as: str) -> list[Fault]:
    """One fault per number outside `LIMITS`, in their order; numbers that are absent were not measured."""
    return [
        Fault(file=shown_as, expected=expected, found=f"{name} {numbers[name]:.3g}", fix=fix)
        for name, (low, high, expected, fix) in LIMITS.items()
        if name in numbers and not low <= numbers[name] <= high
    ]


def voxel_numbers(data: Volume) -> dict[str, float]:
    """Numbers of a scan before any processing.

    `empty`: constant slices between others; `repeated`: share of identical slices; `flat`: share of voxels with signal
    that equal their neighbour.
    """
    low, high = (float(q) for q in np.percentile(data[::2, ::2, ::2], (2, 98)))
    signal = data[1:] > low + 0.1 * (high - low)
    repeated, empty = 0.0, 0
    for axis in range(3):
        slices = list(np.moveaxis(data, axis, 0))
        varied = np.array([s.min() < s.max() for s in slices])
        sums = {zlib.crc32(s.tobytes()) for s, v in zip(slices, varied, strict=True) if v}
        used = np.flatnonzero(varied)
        repeated = max(repeated, 1 - len(sums) / max(len(used), 1))
        empty += int((~varied[used[0] : used[-1] + 1]).sum()) if len(used) else 0
    flat = float((data[1:] == data[:-1])[signal].mean()) if signal.any() else 1.0
    return {"empty": empty, "repeated": repeated, "flat": flat}


def brain_numbers(
    data: Volume, head: Volume, brain: NDArray[np.bool_], affine: Affine, template_t1: Path, *, stripped: bool
) -> dict[str, float]:
    """Numbers of a scan after brain extraction.

    Args:
        data, head: scan and bias-corrected scan (X, Y, Z) in RAS+ order.
        brain: (X, Y, Z) mask, not empty.
        stripped: the scan is skull-stripped, so that nothing around the brain is measured.

    Returns:
        `brain_ml`; `cut`: ratio of the brain's area 3 mm from its ends to its largest area; `sharpness`: difference of
        Gaussian filters (1.2 and 2.4 mm) in the brain, relative to its median, least axis; `similarity`: correlation
        with the template; `orientation`: by how much it exceeds that of other orientations. Unless stripped: `hollow`:
        share of zeros in the brain; `scalp`: share of voxels with signal 6-16 mm outside the brain; `air`, `haze`:
        median and spread (10 to 90 %) of the signal more than 25 mm above the brain, relative to the brain.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    box = tuple(slice(int(c.min()), int(c.max()) + 1) for c in np.nonzero(brain))
    inside, values = brain[box], head[box]
    core = binary_erosion(inside, iterations=max(1, round(4 / spacing.min())))
    cut, sharpness = 0.0, np.inf
    for axis in range(3):
        area = inside.sum(axis=tuple(a for a in range(3) if a != axis)) / 1.0
        end = min(round(3 / spacing[axis]), len(area) - 1)
        cut = max(cut, float(max(area[end], area[-1 - end]) / area.max()))
        fine, rough = (gaussian_filter1d(values, mm / spacing[axis], axis=axis)[core] for mm in (1.2, 2.4))
        sharpness = min(sharpness, float((fine - rough).std() / np.median(values[inside]))) if core.any() else 0.0
    scores = orientation_scores(np.where(brain, np.maximum(head, 1e-6), 0), affine, template_t1)
    numbers = {
        "brain_ml": float(inside.sum() * spacing.prod() / 1000),
        "cut": cut,
        "sharpness": sharpness,
        "similarity": float(scores[0]),
        "orientation": float(scores[0] - scores[1:].max()),
    }
    if stripped:
        return numbers
    signal, grid = _coarse(data, affine)
    mask = _coarse(brain.astype(np.float32), affine)[0] > 0.5
    distance = distance_transform_edt(~mask, sampling=np.linalg.norm(grid[:3, :3], axis=0))
    above = (distance > 25) & (np.arange(mask.shape[2]) > np.nonzero(mask)[2].mean())
    relative = signal / (float(np.median(signal[mask])) or 1e-9)
    low, air, high = np.percentile(relative[above], (10, 50, 90)) if above.any() else (0.0, 0.0, 0.0)
    shell = relative[(distance > 6) & (distance < 16)]
    return numbers | {
        "hollow": float((data[box][inside] == 0).mean()),
        "scalp": float((shell - air > 0.15).mean()) if shell.size else 0.0,
        "air": float(air),
        "haze": float(high - low),
    }
