"""Spoil a T1 scan in many ways, process every version, and report which versions quality control refuses.

    python benchmarks/spoilt_scans.py --head HEAD.nii.gz --brain STRIPPED.nii.gz --out benchmarks/out/spoilt

The head is resampled to 1.25 mm first, which halves the run time. `SPOILT` must all be refused and `GOOD` all be used.
Needs `mrpipe[imaging]`; about half a minute per version. Results: benchmarks/imaging.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import conform, resample_from_to, resample_to_output
from scipy.ndimage import affine_transform, gaussian_filter, gaussian_filter1d

Volume = np.ndarray
Change = Callable[[nib.Nifti1Image], nib.Nifti1Image]


def _voxels(change: Callable[[Volume], Volume]) -> Change:
    """A version with other voxels and the unchanged affine."""
    return lambda image: nib.Nifti1Image(
        np.ascontiguousarray(change(np.asarray(image.dataobj, dtype=np.float32))), image.affine
    )


def _header(change: Callable[[Volume], Volume]) -> Change:
    """A version with the same voxels and another affine."""
    return lambda image: nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), change(image.affine.copy()))


def _rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


def _top(x: Volume) -> float:
    return float(np.percentile(x, 99))


def _field(shape: tuple[int, ...], size: float, strength: float) -> Volume:
    field = gaussian_filter(_rng().standard_normal(shape), size, mode="nearest")
    return np.exp(strength * field / np.abs(field).max())


def _noisy(x: Volume, share: float) -> Volume:
    real, imaginary = _rng().standard_normal((2, *x.shape)) * share * _top(x)
    return np.hypot(x + real, imaginary)


def _ghosts(x: Volume) -> Volume:
    return x + 0.5 * np.roll(x, x.shape[1] // 2, axis=1) + 0.35 * np.roll(x, x.shape[1] // 4, axis=1)


def _moved(x: Volume, shift: float) -> Volume:
    """The head jumps to and fro during the acquisition: lines of k-space from different positions."""
    k, moved = np.fft.fftn(x), np.fft.fftn(affine_transform(x, np.eye(3), [shift, shift, 0], order=1))
    lines = np.arange(x.shape[1]) // 6 % 2 == 1
    k[:, lines] = moved[:, lines]
    return np.abs(np.fft.ifftn(k)).astype(np.float32)


def _tissue_swap(x: Volume) -> Volume:
    """T2-like: air stays dark, and among the rest bright becomes dark."""
    top = _top(x)
    return np.where(x > 0.08 * top, np.clip(1.15 * top - x, 0, None), x)


def _zero(x: Volume, axis: int, start: float, stop: float) -> Volume:
    out, n = x.copy(), x.shape[axis]
    index = [slice(None)] * 3
    index[axis] = slice(round(start * n), round(stop * n))
    out[tuple(index)] = 0
    return out


def _crop(axis: int, start: float, stop: float) -> Change:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        n = image.shape[axis]
        index = [slice(None)] * 3
        index[axis] = slice(round(start * n), round(stop * n))
        return image.slicer[tuple(index)]

    return change


def _empty_slices(x: Volume) -> Volume:
    out = x.copy()
    out[:, :, x.shape[2] // 2 :: 9] = 0
    return out


def _halves(x: Volume, mirrored: bool) -> Volume:
    half = x[: x.shape[0] // 2]
    return np.concatenate([half, half[::-1] if mirrored else half])


def _sphere(x: Volume) -> Volume:
    r = np.sqrt(sum((i - (n - 1) / 2) ** 2 for i, n in zip(np.indices(x.shape), x.shape, strict=True)))
    return gaussian_filter(np.where(r < 0.35 * min(x.shape), 600.0, 0.0), 1) + 10 * _rng().standard_normal(x.shape)


def _scaled(*factors: float) -> Change:
    return _header(lambda affine: affine @ np.diag([*factors, 1.0]))


def _shells(x: Volume) -> Volume:
    """Six grey levels, as in a label image."""
    return np.digitize(gaussian_filter(x, 1), np.linspace(0.1, 0.8, 5) * _top(x)).astype(np.float32) * 10


def _contradicting(image: nib.Nifti1Image) -> nib.Nifti1Image:
    out = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    out.set_sform(np.diag([-1.0, 1, 1, 1]) @ image.affine, 1)
    out.set_qform(image.affine, 1)
    return out


SPOILT: dict[str, Change] = {
    "upside down": _voxels(lambda x: x[:, :, ::-1]),
    "axes exchanged (y, z)": _voxels(lambda x: x.transpose(0, 2, 1)),
    "axes exchanged (x, z)": _voxels(lambda x: x.transpose(2, 1, 0)),
    "axes rotated": _voxels(lambda x: x.transpose(1, 2, 0)),
    "back to front": _voxels(lambda x: x[:, ::-1]),
    "turned by 180° about z": _voxels(lambda x: x[::-1, ::-1]),
    "lying on its back (90° pitch)": _voxels(lambda x: x.transpose(0, 2, 1)[:, ::-1]),
    "inverted contrast": _voxels(lambda x: x.max() - x),
    "T2-like contrast": _voxels(_tissue_swap),
    "ghosts": _voxels(_ghosts),
    "motion": _voxels(lambda x: _moved(x, 6.0)),
    "top cut off": _crop(2, 0.0, 0.72),
    "top empty": _voxels(lambda x: _zero(x, 2, 0.72, 1.0)),
    "right half empty": _voxels(lambda x: _zero(x, 0, 0.5, 1.0)),
    "front cut off": _crop(1, 0.0, 0.65),
    "cerebellum cut off": _crop(2, 0.3, 1.0),
    "half mirrored": _voxels(lambda x: _halves(x, True)),
    "half repeated": _voxels(lambda x: _halves(x, False)),
    "empty slices": _voxels(_empty_slices),
    "every second slice missing": _voxels(lambda x: x[:, :, ::2]),
    "slices doubled": _voxels(lambda x: np.repeat(x[:, :, ::2], 2, axis=2)),
    "heavy noise": _voxels(lambda x: _noisy(x, 0.35)),
    "blur, 10 mm FWHM": _voxels(lambda x: gaussian_filter(x, 3.4)),
    "blur along y": _voxels(lambda x: gaussian_filter1d(x, 6.0, axis=1)),
    "voxel size ×2": _scaled(2.0, 2.0, 2.0),
    "voxel size ×1.5": _scaled(1.5, 1.5, 1.5),
    "voxel size ×0.5": _scaled(0.5, 0.5, 0.5),
    "voxel size ×0.7": _scaled(0.7, 0.7, 0.7),
    "slice thickness ×1.5": _scaled(1.0, 1.0, 1.5),
    "slice thickness ×0.7": _scaled(1.0, 1.0, 0.7),
    "sphere": _voxels(_sphere),
    "labels": _voxels(_shells),
    "noise only": _voxels(lambda x: np.abs(100 * _rng().standard_normal(x.shape))),
    "saturated": _voxels(lambda x: np.minimum(x, 0.35 * _top(x))),
    "offset": _voxels(lambda x: x + _top(x)),
    "negative": _voxels(lambda x: x - 1.5 * _top(x)),
    "wrapped integers": _voxels(lambda x: np.where(x > 0.5 * _top(x), x - 0.5 * _top(x), x)),
    "NaN in a part of the brain": _voxels(lambda x: np.where(_zero(x, 1, 0.45, 0.55) == 0, np.nan, x)),
    "4-D": lambda image: nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, axis=-1), image.affine),
    "sform against qform": _contradicting,
}


def _stored_as(codes: str) -> Change:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        to = nib.orientations.axcodes2ornt(tuple(codes))
        return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), to))

    return change


def _turned(degrees: float, axis: int, shift: float = 0.0) -> Change:
    """The head lies turned in the scanner: resampled, with a correct header."""

    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn, (i, j) = np.eye(4), [a for a in range(3) if a != axis]
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        centre = image.affine @ [*(np.array(image.shape) / 2), 1]
        turn[:3, 3] = centre[:3] - turn[:3, :3] @ centre[:3] + shift
        moved = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), turn @ image.affine)
        return resample_from_to(moved, (image.shape, image.affine), order=1)

    return change


GOOD: dict[str, Change] = {
    "as it is": lambda image: image,
    "head lifted by 15°": _turned(15, 0),
    "head lowered by 15°": _turned(-15, 0),
    "head tilted by 15°": _turned(15, 1),
    "head turned by 15°": _turned(15, 2),
    "moved by 12 mm": _turned(0, 2, 12.0),
    "2 mm voxels": lambda image: conform(
        image, tuple(int(n * z / 2) for n, z in zip(image.shape, image.header.get_zooms(), strict=True)), (2.0,) * 3
    ),
    "slices of 2.5 mm": lambda image: conform(
        image, (image.shape[0], image.shape[1], image.shape[2] // 2), (1.25, 1.25, 2.5)
    ),
    "mild noise": _voxels(lambda x: _noisy(x, 0.04)),
    "mild bias field": _voxels(lambda x: x * _field(x.shape, 20, 0.5)),
    # N4 removes it.
    "strong bias field": _voxels(lambda x: x * _field(x.shape, 15, 2.5)),
    "blur, 2 mm FWHM": _voxels(lambda x: gaussian_filter(x, 0.7)),
    "brighter": _voxels(lambda x: 37.0 * x),
    "stored as LPS": _stored_as("LPS"),
    "stored as PIR": _stored_as("PIR"),
}


def coarser(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The scan with voxels of 1.25 mm."""
    out = resample_to_output(image, (1.25,) * 3, order=1)
    return nib.Nifti1Image(np.asarray(out.dataobj, dtype=np.float32), out.affine)


def run(name: str, image: nib.Nifti1Image, out: Path, templates: tuple[Path, Path], brain: str) -> None:
    """Process a version and print its row: the reason of refusal, or the numbers of the map."""
    from mrpipe.imaging.chain import ChainSettings
    from mrpipe.imaging.failure import ScanFailedError
    from mrpipe.imaging.worker import process_scan

    note = out / f"{name.replace('/', '-')}.json"
    if not note.exists():
        nib.save(image, out / "scan.nii.gz")
        started = time.perf_counter()
        try:
            settings = ChainSettings(brain=brain)
            done = process_scan(out / "scan.nii.gz", name, templates, settings, out / "x.png", timeout_s=3600)
            entry = {"numbers": done.numbers, "seconds": done.seconds}
        except ScanFailedError as error:
            entry = {"reason": error.reason, "detail": error.detail}
        note.write_text(json.dumps(entry | {"wall_s": time.perf_counter() - started}))
    entry = json.loads(note.read_text())
    found = f"refused: {entry['reason']} ({entry['detail']})"
    if numbers := entry.get("numbers"):
        found = "used: " + ", ".join(f"{k} {numbers[k]:.3g}" for k in ("ncc", "overlap", "similarity", "orientation"))
    print(f"| {name} | {found} | {entry['wall_s']:.0f} s |", flush=True)


def main() -> None:
    from mrpipe.imaging.template import mni_template

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=Path, required=True, help="T1 scan of a full head")
    parser.add_argument("--brain", type=Path, nargs="*", default=[], help="skull-stripped T1 scans")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of versions")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    templates, head = mni_template().write(args.out / "template"), coarser(nib.load(args.head))
    for name, change in (SPOILT | GOOD).items():
        if not args.only or name in args.only:
            run(name, change(head), args.out, templates, "extract")
    for path in args.brain if not args.only else ():
        run(f"{path.name}, image_brain=stripped", nib.load(path), args.out, templates, "stripped")
        run(f"{path.name}, image_brain=extract", nib.load(path), args.out, templates, "extract")
    if not args.only:
        run("full head, image_brain=stripped", head, args.out, templates, "stripped")


if __name__ == "__main__":
    main()
