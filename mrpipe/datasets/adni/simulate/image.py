"""Simulate images: precomputed grey-matter maps in the authors' format and raw T1 scans in the layout of IDA.

Voxels of a map are log-normal with mean 1,000 and standard deviation 400, reduced by up to 8 % (Dementia) or 4 % (MCI)
in a medial-temporal region. Participants have several scans, and 0.5 % of all maps are zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.ndimage import zoom

from mrpipe.datasets.adni.simulate.t1 import write_raw_scans
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.imaging.nifti import write_nifti
from mrpipe.keyed import generator
from mrpipe.options import option

# Mask of the authors' maps: shape, bounding box of grey matter, number of voxels in the mask.
FULL_SHAPE = (91, 109, 91)
FULL_BOX = ((12, 78), (13, 96), (8, 72))
FULL_VOXELS = 84_090
ATROPHY = {"CN": 0.0, "MCI": 0.04, "Dementia": 0.08}
FIRST_DAY = date(2005, 9, 1)


@dataclass(frozen=True)
class ImageSimulation:
    """How images are simulated; inherited by `AdniSimulation`."""

    image_maps_as: str = option(
        "stack",
        "format of precomputed maps. stack: one array, ADNI_G.npy; nifti: NIfTI files listed in maps.csv",
        choices=("stack", "nifti"),
    )
    image_shape: tuple[int, ...] = option((14, 16, 14), "grid of the maps in voxels; 91, 109, 91 is the full size")
    image_max_scans: int = option(4, "maximum number of scans per participant (8 in the authors' release)")
    image_failed: float = option(0.005, "fraction of maps that are all zero, as after failed processing")
    image_raw: int = option(0, "number of participants with raw T1 scans instead of precomputed maps")
    image_t1: str = option(
        "ellipsoid",
        "anatomy of raw T1 scans. ellipsoid: nested ellipsoids; template: deformed MNI152 template with a skull (needs "
        "pip install 'mrpipe[imaging]')",
        choices=("ellipsoid", "template"),
    )
    image_layout: str = option("ida", "folders of raw T1 scans: those of IDA, or BIDS", choices=("ida", "bids"))
    image_t1_mm: float = option(3.0, "voxel size of raw T1 scans in mm")


def simulated_grid(shape: Sequence[int]) -> tuple[VoxelGrid, NDArray[np.float32]]:
    """Mask of a folded shell on a grid, and a label image with the MUSE labels 10, 150 and 250.

    At 91 × 109 × 91 voxels, voxel count and bounding box equal those of the real mask; other sizes are proportional.
    """
    full = np.array(FULL_SHAPE)
    scale = np.array(shape) / full
    box = [(int(a * s), max(int(a * s) + 2, round(b * s))) for (a, b), s in zip(FULL_BOX, scale, strict=True)]
    n_voxels = round(FULL_VOXELS * float(np.prod(shape)) / float(np.prod(full)))
    index = np.indices(tuple(shape), dtype=np.float64)
    lows, highs = (np.array([b[side] for b in box], dtype=np.float64) for side in (0, 1))
    centre, radius = (lows + highs - 1) / 2, np.maximum((highs - lows) / 2, 0.5)
    unit = (index - centre[:, None, None, None]) / radius[:, None, None, None]
    r = np.sqrt((unit**2).sum(axis=0))
    folds = np.prod([np.sin(11.0 * u + p) for u, p in zip(unit, (0.3, 1.1, 2.0), strict=True)], axis=0)
    score = -np.abs(r - 0.82) + 0.12 * folds
    inside = np.ones(tuple(shape), dtype=bool)
    for axis, (low, high) in enumerate(box):
        inside &= (index[axis] >= low) & (index[axis] < high)
    score = np.where(inside, score, -np.inf)
    # Include one voxel on each face of the box, so that the bounding box of the mask is the box.
    for axis, (low, high) in enumerate(box):
        for edge in (low, high - 1):
            face = [round(c) for c in centre]
            face[axis] = edge
            score[tuple(face)] = np.inf
    order = np.argsort(-score.ravel(), kind="stable")
    mask = np.zeros(score.size, dtype=bool)
    mask[order[: max(8, n_voxels)]] = True
    mask = mask.reshape(tuple(shape))
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[:3, :3] /= scale
    affine[:3, 3] = 90.0, 91.0, -72.0
    labels = np.where(mask, 150, np.where(r < 0.82, 250, np.where(r < 1.1, 10, 0))).astype(np.float32)
    return VoxelGrid(mask=mask, affine=affine), labels


def _blob(grid: VoxelGrid, centre: tuple[float, float, float], width: float) -> NDArray[np.float64]:
    """Gaussian blob at `centre` (unit coordinates of the grid) and its mirror image; float64 (n_voxels,), maximum 1."""
    where = np.argwhere(grid.mask) / np.maximum(np.array(grid.mask.shape) - 1, 1)
    sides = [((where - np.array(c)) ** 2).sum(axis=1) for c in (centre, (1 - centre[0], *centre[1:]))]
    value = np.exp(-np.minimum(*sides) / (2 * width**2))
    return np.asarray(value / value.max())


class MapModel:
    """Draws maps from a common mean map, scan variation, atrophy by diagnosis, and latent factors.

    Args:
        latents: names of latent columns; each changes its own region by 4 % per standard deviation.
    """

    def __init__(self, grid: VoxelGrid, latents: Sequence[str], seed: int):
        self.grid = grid
        self.latents = tuple(latents)
        sigma = math.sqrt(math.log(1 + 0.4**2))
        draw = generator(seed, "image mean").standard_normal(grid.n_voxels)
        self.mean = 1000.0 * np.exp(sigma * draw - sigma**2 / 2)
        self.medial_temporal = _blob(grid, (0.33, 0.55, 0.35), 0.12)
        places = generator(seed, "image regions").uniform(0.2, 0.8, size=(len(self.latents), 3))
        self.regions = [_blob(grid, (float(a), float(b), float(c)), 0.15) for a, b, c in places]

    def scan(self, atrophy: float, state: Sequence[float], rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw a map, float64 (n_voxels,), positive."""
        shape = self.grid.mask.shape
        coarse = rng.standard_normal([max(2, s // 8) for s in shape])
        size = [s / c for s, c in zip(shape, coarse.shape, strict=True)]
        field = np.asarray(zoom(coarse, size, order=1))[self.grid.mask]
        log = 0.03 * rng.standard_normal() + 0.05 * field + 0.05 * rng.standard_normal(self.grid.n_voxels)
        for value, region in zip(state, self.regions, strict=True):
            log = log + 0.04 * value * region
        return np.asarray(self.mean * np.exp(log) * (1 - atrophy * self.medial_temporal))


def simulate_images(out: Path, subjects: pl.DataFrame, settings: Any) -> pl.DataFrame:
    """Write the images of an export to `out`.

    Precomputed maps and their mask are written to `out/image/`. The last `image_raw` participants, sorted by
    `subject_id`, have raw T1 scans in `out/ADNI/` and a search CSV instead.

    Args:
        subjects: participants with an image: `subject_id` (PTID) and `diagnosis`; float columns are latent
            factors. The optional column `visit_date` is the date of the first scan.
        settings: `ImageSimulation` with `seed`.

    Returns:
        The ground truth, one row per scan: `subject_id, source (map | raw), image_id, date, atrophy, failed`.
    """
    subjects = subjects.sort("subject_id")
    latents, seed = [c for c, t in subjects.schema.items() if t.is_float()], int(settings.seed)
    split = max(0, len(subjects) - int(settings.image_raw))
    visits: list[dict[str, Any]] = []
    for number, row in enumerate(subjects.iter_rows(named=True)):
        rng = generator(seed, "image visits", row["subject_id"])
        first = row.get("visit_date") or FIRST_DAY + timedelta(days=int(rng.integers(0, 5000)))
        base = ATROPHY[row["diagnosis"]]
        count = 1 + int(rng.binomial(settings.image_max_scans - 1, 0.4)) if settings.image_max_scans > 1 else 1
        for k in range(count):
            visits.append(
                {
                    "subject_id": row["subject_id"],
                    "source": "map" if number < split else "raw",
                    "date": first + timedelta(days=182 * k + (int(rng.integers(-20, 20)) if k else 0)),
                    # Atrophy increases by 5 % of the class's loss per scan (half a year).
                    "atrophy": base * (1 + 0.05 * k),
                    "state": [float(row[c]) for c in latents],
                }
            )
    truth: list[dict[str, Any]] = []
    if maps := [v for v in visits if v["source"] == "map"]:
        truth += _write_maps(out / "image", maps, latents, settings)
    if raws := [v for v in visits if v["source"] == "raw"]:
        chosen = {"kind": settings.image_t1, "layout": settings.image_layout, "voxel_mm": settings.image_t1_mm}
        truth += write_raw_scans(out, raws, **chosen, seed=seed)
    texts = dict.fromkeys(("subject_id", "source", "image_id"), pl.String)
    schema = pl.Schema({**texts, "date": pl.Date, "atrophy": pl.Float64, "failed": pl.Boolean})
    return pl.DataFrame(truth, schema=schema).sort("subject_id", "date", "image_id")


def _write_maps(
    folder: Path, visits: list[dict[str, Any]], latents: Sequence[str], settings: Any
) -> list[dict[str, Any]]:
    """Write the mask and the maps (array or NIfTI files, shuffled as in the release); returns the ground truth."""
    seed = int(settings.seed)
    folder.mkdir(parents=True)
    grid, labels = simulated_grid(settings.image_shape)
    write_nifti(folder / "SIMULATED_averagetemplate_muse_seg_DS222.nii.gz", labels, grid.affine)
    model = MapModel(grid, latents, seed)
    order = generator(seed, "image order").permutation(len(visits))
    lines, truth = [], []
    stacked = settings.image_maps_as == "stack"
    array: Any = None
    if stacked:
        opened: Any = np.lib.format.open_memmap
        array = opened(folder / "ADNI_G.npy", mode="w+", dtype=np.float64, shape=(len(visits), grid.n_voxels))
    # At least one map fails if there are 20 or more.
    n_failed = max(round(settings.image_failed * len(visits)), int(settings.image_failed > 0 and len(visits) >= 20))
    for row, number in enumerate(order):
        visit = visits[int(number)]
        rng = generator(seed, "image map", visit["subject_id"], visit["date"].isoformat())
        failed = row < n_failed
        values = np.zeros(grid.n_voxels) if failed else model.scan(visit["atrophy"], visit["state"], rng)
        written = f"{visit['date']:%Y%m%d}" if rng.random() < 0.05 else visit["date"].isoformat()
        if stacked:
            array[row] = values
            lines.append(f"{visit['subject_id']}_{written}")
        else:
            volume = np.zeros(grid.mask.shape, dtype=np.float32)
            volume[grid.mask] = values
            name = f"{visit['subject_id']}_{visit['date'].isoformat()}_T1_RAVENS_150.nii.gz"
            write_nifti(folder / name, volume, grid.affine)
            lines.append(f'"{visit["subject_id"]}","{written}","{name}"')
        known = {k: visit[k] for k in ("subject_id", "source", "date", "atrophy")}
        truth.append(known | {"image_id": str(row), "failed": failed})
    if stacked:
        array.flush()
        (folder / "ADNI_subj.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        (folder / "maps.csv").write_text("\n".join(['"PTID","scan_date","file"', *lines]) + "\n", encoding="utf-8")
    return truth
