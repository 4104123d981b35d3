"""Simulate raw T1 scans in the folder layout of IDA, with the search CSV and the file-name variants of real exports."""

import json
import re
from collections.abc import Sequence
from datetime import date
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from mrpipe.imaging.nifti import write_nifti
from mrpipe.keyed import generator
from mrpipe.store.parquet import write_text

EXTENT_MM = (156.0, 186.0, 168.0)
# T1-weighted intensities.
SCALP, SKULL, FLUID, GREY, WHITE = 700.0, 120.0, 180.0, 520.0, 800.0
SEARCH = "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"
PROCESSED = ("MPR; GradWarp; B1 Correction; N3; Scaled", "MPR; GradWarp; B1 Correction; N3; Scaled_2")
Head = tuple[NDArray[np.int16], NDArray[np.float64]]
LATER = ("Accelerated Sagittal MPRAGE", "Sagittal 3D Accelerated MPRAGE", "MT1; GradWarp; N3m")


def _smooth(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> NDArray[np.float32]:
    field = gaussian_filter(rng.standard_normal(tuple(shape)), sigma, mode="nearest")
    return np.asarray(field / max(float(field.std()), 1e-12), dtype=np.float32)


def _finish(clean: NDArray[np.float32], rng: np.random.Generator, voxel_mm: float) -> NDArray[np.int16]:
    """Apply a bias field and Rician noise and convert to int16."""
    bias = np.exp(0.12 * _smooth(rng, clean.shape, 40.0 / voxel_mm))
    real, imaginary = (15.0 * rng.standard_normal(clean.shape) for _ in range(2))
    return np.asarray(np.hypot(clean * bias + real, imaginary).astype(np.int16))


def ellipsoid_head(rng: np.random.Generator, atrophy: float, voxel_mm: float) -> Head:
    """A head of nested ellipsoids: scalp, skull, fluid, folded cortex, white matter and ventricles.

    Args:
        atrophy: degree of cortical thinning and ventricular enlargement, 0 for none.

    Returns:
        int16 volume in RAS orientation and its affine.
    """
    shape = tuple(round(e / voxel_mm) for e in EXTENT_MM)
    axes = [(np.arange(s) - (s - 1) / 2) * voxel_mm for s in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    size = 1 + 0.04 * rng.standard_normal(3)
    unit = np.stack([x / (68 * size[0]), y / (84 * size[1]), z / (68 * size[2])])
    r = np.sqrt((unit**2).sum(axis=0))
    folds = 0.03 * np.prod([np.sin(14 * u + p) for u, p in zip(unit, rng.uniform(0, 6, 3), strict=True)], axis=0)
    ventricle = np.sqrt((np.abs(x) - 10) ** 2 / 36 + y**2 / 900 + (z - 5) ** 2 / 100) < 1 + 4 * atrophy
    inner, outer = 0.72, 0.86 - 0.6 * atrophy
    head = np.zeros(shape, dtype=np.float32)
    for limit, value in ((1.08, SCALP), (1.0, SKULL), (0.92, FLUID)):
        head[r < limit] = value
    head[r + folds < outer] = GREY
    head[r + folds < inner] = WHITE
    head[ventricle & (r < inner)] = FLUID
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = [a[0] for a in axes]
    return _finish(gaussian_filter(head, 0.6), rng, voxel_mm), affine


def template_head(rng: np.random.Generator, atrophy: float, voxel_mm: float) -> Head:
    """The MNI152 template of nilearn, deformed, with reduced grey matter and an added skull and scalp.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    from mrpipe.imaging.template import mni_tissues

    t1, grey, affine = mni_tissues(voxel_mm)
    pad = round(20 / voxel_mm)
    t1, grey = (np.pad(v, pad) for v in (t1, grey))
    affine = affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, float(pad))
    brain = t1 > 0
    lost = np.clip(3 * atrophy * grey, 0, 1)
    inner = (t1 / np.percentile(t1[brain], 98) * WHITE) * (1 - lost) + FLUID * lost
    layers = [binary_dilation(brain, iterations=max(1, round(mm / voxel_mm))) for mm in (3, 8, 15)]
    head = np.zeros(t1.shape, dtype=np.float32)
    for layer, value in zip(reversed(layers), (SCALP, SKULL, FLUID), strict=True):
        head[layer] = value
    head[brain] = inner[brain]
    head = gaussian_filter(head, 0.4)
    grid = np.indices(t1.shape, dtype=np.float32)
    shift = np.stack([_smooth(rng, t1.shape, 18.0 / voxel_mm) for _ in range(3)]) * (2.5 / voxel_mm)
    return _finish(np.asarray(map_coordinates(head, grid + shift, order=1), dtype=np.float32), rng, voxel_mm), affine


def _series(subject_id: str, first: bool, rng: np.random.Generator) -> list[str]:
    """Descriptions of the series of a visit: a T1 scan and, at the first visit, other versions and a localizer."""
    adni1 = int(subject_id.split("_")[-1]) < 2000
    choices = PROCESSED if adni1 else LATER
    chosen = choices[int(rng.integers(0, len(choices)))]
    if not first:
        return [chosen]
    return [chosen, *(["MP-RAGE", "MP-RAGE REPEAT"] if adni1 else []), "3 Plane Localizer"]


def _ida_path(out: Path, ptid: str, day: date, image: int, description: str) -> Path:
    words = re.sub(r"[^0-9A-Za-z-]", "_", description)
    # As in IDA, with or without a timestamp, or with `br_raw`.
    stamp = ("", f"_Br_{day:%Y%m%d}101530123", f"_br_raw_{day:%Y%m%d}101530123_1")[image % 3]
    name = f"ADNI_{ptid}_MR_{words}{stamp}_S{image // 2}_I{image}.nii"
    return out / "ADNI" / ptid / words / f"{day}_10_15_30.0" / f"I{image}" / (name if stamp else f"{name}.gz")


def _bids_path(out: Path, ptid: str, day: date, image: int, description: str) -> Path:
    subject, session = f"sub-ADNI{ptid.replace('_', '')}", f"ses-{day:%Y%m%d}"
    path = out / "BIDS" / subject / session / "anat" / f"{subject}_{session}_run-{image}_T1w.nii.gz"
    write_text(path.with_name(path.name.replace(".nii.gz", ".json")), json.dumps({"SeriesDescription": description}))
    return path


def write_raw_scans(
    out: Path, visits: Sequence[dict[str, Any]], *, kind: str, layout: str, voxel_mm: float, seed: int
) -> list[dict[str, Any]]:
    """Write `out/ADNI/{PTID}/{description}/{date}/I{image}/FILE.nii` and the search CSV, or T1 scans in `out/BIDS`.

    With at least three participants, the only usable scan of the first one is truncated. The search CSV has image IDs
    with and without the prefix `I`, dates as M/D/YYYY, and a PET image that is not in the download. In BIDS, sidecars
    have the descriptions.

    Args:
        visits: `subject_id, date, atrophy`, sorted by subject.
    """
    head = {"ellipsoid": ellipsoid_head, "template": template_head}[kind]
    n_subjects = len({v["subject_id"] for v in visits})
    rows, truth, image = [], [], 100_000 + int(generator(seed, "image ids").integers(0, 9_000))
    for number, (ptid, subject_visits) in enumerate(groupby(visits, key=itemgetter("subject_id"))):
        failing = number == 0 and n_subjects >= 3
        for k, visit in enumerate([next(subject_visits)] if failing else subject_visits):
            rng = generator(seed, "t1 visit", ptid, visit["date"].isoformat())
            series = ["MP-RAGE"] if failing else _series(ptid, k == 0, rng)
            data, affine = head(rng, visit["atrophy"], voxel_mm)
            for description in series:
                image += 1
                day, localizer, middle = visit["date"], "Localizer" in description, data.shape[2] // 2
                if localizer and layout == "bids":
                    continue
                path = {"ida": _ida_path, "bids": _bids_path}[layout](out, ptid, day, image, description)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_nifti(path, data[:, :, middle - 2 : middle + 1] if localizer else data, affine)
                if failing:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
                rows.append((f"{'I' if image % 2 else ''}{image}", ptid, "MRI", description, day))
                if not localizer:
                    known = {k: visit[k] for k in ("subject_id", "source", "date", "atrophy")}
                    truth.append(known | {"image_id": str(image), "failed": failing})
    if layout == "bids":
        return truth
    rows.append((f"I{image + 1}", rows[-1][1], "PET", "ADNI Brain PET: Raw", rows[-1][4]))
    fixed = ("Patient", "F", "74", "sc")
    found = [
        (i, ptid, *fixed, modality, description, "Original", f"{d.month}/{d.day}/{d.year}", "NiFTI", "")
        for i, ptid, modality, description, d in rows
    ]
    pl.DataFrame(found, schema=SEARCH.split(","), orient="row").write_csv(out / "idaSearch.csv", quote_style="always")
    return truth
