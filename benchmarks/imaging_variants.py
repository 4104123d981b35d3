"""Compare variants of the two expensive steps of the imaging chain: tissue segmentation and registration.

    python benchmarks/imaging_variants.py --data ../shared/data/brain --out benchmarks/out/variants
    python benchmarks/imaging_variants.py --data ../shared/data/brain --out benchmarks/out/variants --atrophy

Needs `mrpipe[imaging]`. Earlier steps are run once per scan, so a variant costs only itself. Each line is one variant
on one scan, with CPU seconds of one thread; the earlier chain (Atropos; SyN on the whole template with iterations 40,
20, 10) runs in the same process. Scans: four skull-stripped ones with manual tissues and labels. `--atrophy` compares
instead how the segmentations follow a known loss of grey matter, on simulated heads and on the scans after erosion.
Results: benchmarks/imaging.md.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Read by ITK when it is loaded.
os.environ |= {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "ANTS_RANDOM_SEED": "42"}

import ants
import nibabel as nib
import numpy as np
from imaging import LABELLED, dice, manual_regions, warped_labels
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates, uniform_filter

from mrpipe.datasets.adni.simulate import t1
from mrpipe.imaging.chain import SEED, correct_bias, match_quantiles, register
from mrpipe.imaging.nifti import read_scan, write_nifti
from mrpipe.imaging.template import mni_template, mni_tissues
from mrpipe.imaging.tissues import BINS, _densities, tissue_probabilities

SQUARES = {"type_of_transform": "SyN", "syn_metric": "meansquares"}
EARLIER = "earlier chain"


def atropos(brain: Any, mask: Any, voxel_mm: float) -> Any:
    """Grey matter by Atropos at `voxel_mm`, as in the earlier chain."""
    values, inside = brain.numpy(), mask.numpy() > 0
    low, high = np.percentile(values[inside], (0.5, 99.5))
    small = brain.new_image_like(np.where(inside, np.clip(values, low, high), 0).astype(np.float32))
    if voxel_mm > max(brain.spacing):
        small = ants.resample_image(small, (voxel_mm,) * 3, use_voxels=False, interp_type=0)
    inside = ants.resample_image_to_target(mask, small, interp_type="nearestNeighbor")
    tissue = ants.atropos(a=small, x=inside, i="kmeans[3]", m="[0.2,1x1x1]", c="[5,0]", r=0)
    return ants.resample_image_to_target(tissue["probabilityimages"][1], brain, interp_type="linear") * mask


def kmeans(brain: Any, mask: Any) -> Any:
    """Grey matter as in the chain."""
    return brain.new_image_like(tissue_probabilities(brain.numpy(), mask.numpy() > 0)[1])


def mixture(brain: Any, mask: Any, fit_steps: int) -> Any:
    """Grey matter by a mixture of Gaussian distributions after some steps of its fit, and four steps of the field."""
    values, inside = brain.numpy(), mask.numpy() > 0
    low, high = np.percentile(values[inside], (0.5, 99.5))
    bins = np.clip((values[inside] - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.uint8)
    counts, posterior = np.bincount(bins, minlength=BINS), np.arange(BINS) * 3 // BINS == np.arange(3)[:, None]
    for _ in range(fit_steps):
        density = _densities(posterior * counts)
        posterior = density * (posterior * counts).sum(axis=1, keepdims=True)
        posterior /= posterior.sum(axis=0)
    p, field = posterior[:, bins], np.zeros((3, *values.shape), dtype=np.float32)
    for _ in range(4):
        field[:, inside] = p
        p = density[:, bins] * np.exp(2 * np.stack([uniform_filter(f, 3, mode="constant")[inside] for f in field]))
        p /= p.sum(axis=0)
        density = _densities(np.stack([np.bincount(bins, weights=tissue, minlength=BINS) for tissue in p]))
    field[:, inside] = p
    return brain.new_image_like(field[1])


def syn(margin: int | None, scan_mm: float, **options: Any) -> Callable[..., list[str]]:
    """SyN on the template cropped to its brain and `margin` voxels, with the scan resampled to `scan_mm` (0: not)."""

    def run(template: Any, brain: np.ndarray, scan: Any, prefix: str) -> list[str]:
        if margin is not None:
            low = [max(int(c.min()) - margin, 0) for c in np.nonzero(brain)]
            high = [min(int(c.max()) + 1 + margin, n) for c, n in zip(np.nonzero(brain), brain.shape, strict=True)]
            template = ants.crop_indices(template, low, high)
        if scan_mm:
            scan = ants.resample_image(scan, (scan_mm,) * 3, use_voxels=False, interp_type=0)
        ants.config.set_ants_deterministic(on=True, seed_value=SEED)
        return ants.registration(template, scan, outprefix=prefix, **SQUARES, **options)["fwdtransforms"]

    return run


SEGMENTATIONS: dict[str, Callable[..., Any]] = {
    EARLIER: lambda brain, mask: atropos(brain, mask, 0.0),
    "Atropos, 1.5 mm": lambda brain, mask: atropos(brain, mask, 1.5),
    "mixture, 1 step": lambda brain, mask: mixture(brain, mask, 1),
    "mixture, 20 steps": lambda brain, mask: mixture(brain, mask, 20),
    "mixture, 40 steps": lambda brain, mask: mixture(brain, mask, 40),
    "chain": kmeans,
}
REGISTRATIONS: dict[str, Callable[..., list[str]]] = {
    EARLIER: syn(None, 0, reg_iterations=(40, 20, 10)),
    "template cropped": syn(4, 0, reg_iterations=(40, 20, 10)),
    "cropped, scan at 1.5 mm": syn(4, 1.5, reg_iterations=(40, 20, 10)),
    "cropped, iterations 40, 20, 4": syn(4, 0, reg_iterations=(40, 20, 4)),
    "cropped, iterations 40, 20, 0": syn(4, 0, reg_iterations=(40, 20, 0)),
    "chain": lambda *a: register(*a[:3], "quality", a[3]),
    "chain, step 0.4, iterations 60, 30, 3": syn(4, 1.5, grad_step=0.4, reg_iterations=(60, 30, 3)),
    "chain, scan at 2 mm": syn(4, 2.0, grad_step=0.5, reg_iterations=(60, 20, 3)),
    "fast": lambda *a: register(*a[:3], "fast", a[3]),
}


def clock() -> float:
    used = os.times()
    return used.user + used.system


def measured(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = clock()
    result = run(*arguments)
    return result, round(clock() - began, 1)


def region_sums(data: Path, subject: str, labels: np.ndarray, gm_ml: np.ndarray) -> dict[str, Any]:
    """Volumes of manual regions of at least 1 ml by number: manual, and the sums of the map in template space."""
    manual = {r: v for r, v in manual_regions(data, subject).items() if v >= 1.0}
    sums = np.bincount(labels.ravel(), weights=gm_ml.ravel().astype(np.float64), minlength=256)
    return {str(r): (v, float(sums[r])) for r, v in manual.items()}


def between_subjects(regions: list[dict[str, Any]]) -> float:
    """Correlation of relative differences between subjects, over the regions that all of them have."""
    shared = sorted(set.intersection(*(set(r) for r in regions)))
    pairs = np.array([[r[s] for s in shared] for r in regions])
    relative = pairs / pairs.mean(axis=0) - 1
    return float(np.corrcoef(relative[..., 0].ravel(), relative[..., 1].ravel())[0, 1])


def ellipsoid(atrophy: float, voxel_mm: float) -> tuple[Any, Any, Any, Any]:
    """A head without noise, its share of grey matter per voxel, its brain mask, and its affine."""

    def unblurred(volume: Any, sigma: float) -> Any:
        return volume

    with patch.object(t1, "_finish", lambda clean, *_: clean), patch.object(t1, "gaussian_filter", unblurred):
        tissues, affine = t1.ellipsoid_head(np.random.default_rng(0), atrophy, voxel_mm)
    return gaussian_filter(tissues, 0.6), tissues == t1.GREY, np.isin(tissues, (t1.FLUID, t1.GREY, t1.WHITE)), affine


def deformed_template(atrophy: float, voxel_mm: float) -> tuple[Any, Any, Any, Any]:
    """The same from the MNI template; where grey matter is lost, voxels are mixtures of grey matter and fluid."""
    brain, grey, _ = (np.pad(v, round(20 / voxel_mm)) if v.ndim == 3 else v for v in mni_tissues(voxel_mm))
    places: list[Any] = []

    def warp(volume: Any, where: Any, order: int) -> Any:
        places.append(where)
        return map_coordinates(volume, where, order=order)

    with patch.object(t1, "_finish", lambda clean, *_: clean), patch.object(t1, "map_coordinates", warp):
        clean, affine = t1.template_head(np.random.default_rng(0), atrophy, voxel_mm)
    kept = grey * (1 - np.clip(3 * atrophy * grey, 0, 1))
    truth, inside = (map_coordinates(v.astype(np.float32), places[0], order=1) for v in (kept, brain > 0))
    return clean, truth, inside > 0.5, affine


def simulated_scans(
    out: Path, voxel_mm: float, artefacts: tuple[tuple[float, float], ...], levels: tuple[float, ...]
) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """Series of simulated heads: name, bias-corrected head, brain mask, true grey matter per voxel, and affine."""
    for make in (ellipsoid, deformed_template):
        for noise, bias in artefacts:
            for atrophy in levels:
                clean, truth, inside, affine = make(atrophy, voxel_mm)
                rng = np.random.default_rng(1)
                field = np.exp(bias * t1._smooth(rng, clean.shape, 40 / voxel_mm))
                real, imaginary = (noise * rng.standard_normal(clean.shape) for _ in range(2))
                write_nifti(out / "head.nii", np.hypot(clean * field + real, imaginary).astype(np.float32), affine)
                name = f"{make.__name__} {voxel_mm} mm, noise {noise}"
                yield name, correct_bias(out / "head.nii"), inside, truth, affine


def eroded_scans(out: Path, data: Path, subject: str) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """A real scan, and with a half and all of the grey matter that touches fluid replaced by fluid of the scan."""
    scan, rng = read_scan(data / f"{subject}_SS.nii.gz", subject), np.random.default_rng(0)
    write_nifti(out / "head.nii", scan.data, scan.affine)
    head = correct_bias(out / "head.nii")
    tissues = np.asarray(nib.as_closest_canonical(nib.load(data / f"{subject}_tissues.nii.gz")).dataobj)
    rim, patches = (tissues == 2) & binary_dilation(tissues == 1), t1._smooth(rng, tissues.shape, 8.0)
    fluid = rng.choice(head[tissues == 1], tissues.shape)
    for lost in (rim & False, rim & (patches > 0), rim):
        yield f"{subject}", np.where(lost, fluid, head), head > 0, (tissues == 2) & ~lost, scan.affine


def compare_atrophy(out: Path, data: Path, subjects: list[str], segmentations: list[str]) -> None:
    """Print volume and Dice per scan, and the slope of estimated on true grey matter per series of scans."""
    mild, strong = (15, 0.12), (45, 0.3)
    scans = [*simulated_scans(out, 2.0, (mild, strong), (0, 0.04, 0.08, 0.12))]
    scans += simulated_scans(out, 1.0, (strong,), (0, 0.1))
    scans += [case for subject in subjects for case in eroded_scans(out, data, subject)]
    for series, cases in groupby(scans, key=lambda case: case[0]):
        volumes: dict[str, list[tuple[float, float]]] = {name: [] for name in segmentations}
        for _, head, inside, truth, affine in cases:
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            voxel_ml = float(np.prod(spacing)) / 1000
            brain = ants.from_numpy(np.where(inside, head, 0).astype(np.float32), spacing=spacing.tolist())
            mask = brain.new_image_like(inside.astype(np.float32))
            for name in segmentations:
                grey = SEGMENTATIONS[name](brain, mask).numpy()
                volumes[name].append((float(truth.sum()) * voxel_ml, float(grey.sum()) * voxel_ml))
                print(series, name, *np.round(volumes[name][-1]), round(dice(grey > 0.5, truth > 0.5), 3), flush=True)
        for name, pairs in volumes.items():
            print(f"{series}, {name}: slope {np.polyfit(*np.transpose(pairs), 1)[0]:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/brain"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scans", nargs="+", default=list(LABELLED))
    parser.add_argument("--registrations", nargs="+", default=list(REGISTRATIONS))
    parser.add_argument("--segmentations", nargs="+", default=list(SEGMENTATIONS))
    parser.add_argument("--atrophy", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.atrophy:
        compare_atrophy(args.out, args.data, args.scans, args.segmentations)
        return
    t1_path, brain_path = mni_template().write(args.out / "template")
    template, inside = ants.image_read(str(t1_path)), ants.image_read(str(brain_path)).numpy() > 0
    target, found = template.numpy(), {name: [] for name in args.registrations}
    for subject in args.scans:
        began, canonical = time.process_time(), args.out / f"{subject}.nii"
        scan = read_scan(args.data / f"{subject}_SS.nii.gz", subject)
        write_nifti(canonical, scan.data, scan.affine)
        head = correct_bias(canonical)
        print(subject, f"read and N4: {time.process_time() - began:.1f} s", flush=True)
        frame, in_brain = ants.image_read(str(canonical)), head > 0
        brain, mask = frame.new_image_like(head * in_brain), frame.new_image_like(in_brain.astype(np.float32))
        manual = np.asarray(nib.as_closest_canonical(nib.load(args.data / f"{subject}_tissues.nii.gz")).dataobj) == 2
        grey = brain
        for name in args.segmentations:
            grey, seconds = measured(SEGMENTATIONS[name], brain, mask)
            values = grey.numpy()
            row = {"s": seconds, "dice": round(dice(values > 0.5, manual), 4), "gm_ml": round(values.sum() / 1000)}
            print(
                subject, "segmentation,", name, json.dumps(row | {"manual_ml": round(manual.sum() / 1000)}), flush=True
            )
        grey = kmeans(brain, mask)
        matched = frame.new_image_like(match_quantiles(brain.numpy(), in_brain, target[inside]))
        for name in args.registrations:
            folder = args.out / f"{subject}.{name.replace(' ', '-').replace(',', '')}"
            folder.mkdir(exist_ok=True)
            forward, seconds = measured(REGISTRATIONS[name], template, inside, matched, str(folder / "tx_"))
            composed = ants.apply_transforms(template, grey, forward, compose=str(folder / "all_"))
            jacobian = ants.create_jacobian_determinant_image(template, composed, False).numpy()
            t1, gm, warped = (
                ants.apply_transforms(template, image, forward, interpolator=how).numpy()
                for image, how in ((brain, "linear"), (grey, "linear"), (mask, "nearestNeighbor"))
            )
            sums = region_sums(
                args.data, subject, warped_labels(args.data, subject, folder, t1_path), gm * jacobian * 8 / 1000
            )
            found[name].append(sums)
            volumes = np.array(list(sums.values()))
            row = {
                "s": seconds,
                "ncc": round(float(np.corrcoef(t1[inside], target[inside])[0, 1]), 4),
                "overlap": round(dice(warped > 0.5, inside), 4),
                "folded": int((jacobian[inside] <= 0).sum()),
                "jacobian": [round(float(j), 3) for j in (jacobian[inside].min(), jacobian[inside].max())],
                "r": round(float(np.corrcoef(volumes.T)[0, 1]), 4),
                "error": round(float(np.median(np.abs(volumes[:, 1] / volumes[:, 0] - 1))), 4),
            }
            print(subject, "registration,", name, json.dumps(row), flush=True)
            for path in folder.iterdir():
                path.unlink()
    for name, regions in found.items():
        if len(regions) > 1:
            print(f"{name}: r of differences between subjects {between_subjects(regions):.3f}")


if __name__ == "__main__":
    main()
