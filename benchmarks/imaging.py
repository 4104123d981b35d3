"""Measure the imaging pipeline: the processing chain on real T1 scans, and maps through the store.

    python benchmarks/imaging.py scans --data ../shared/data/brain --out benchmarks/out/imaging  # needs mrpipe[imaging]
    python benchmarks/imaging.py maps --out benchmarks/out/imaging --n 2380

`scans` runs all steps on four skull-stripped scans with manual tissue labels and on one full head, and prints the Dice
score of grey matter, correlations of regional volumes, seconds and memory. `maps` simulates as many maps as the authors
have, and compares ingest, loading and size with their float64 array. Seconds are CPU seconds of one thread, which do
not depend on other load on the machine. Results: benchmarks/imaging.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl

LABELLED = ("1000", "1001", "1002", "1003")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def processed(path: Path, out: Path, templates: tuple[Path, Path], settings: dict[str, Any]) -> Any:
    """Result of the chain; intermediate files, brain mask and grey-matter probability stay in `out`."""
    from mrpipe.imaging.chain import ChainSettings, run_chain
    from mrpipe.imaging.nifti import write_nifti
    from mrpipe.imaging.qc import scan_picture

    out.mkdir(parents=True, exist_ok=True)
    done, volumes = run_chain(path, path.name, *templates, ChainSettings(**settings), out)
    scan_picture(done, volumes, templates[0], out.with_name(out.name + ".png"))
    for name, volume in (("brain", volumes["brain"]), ("gm", volumes["grey"])):
        write_nifti(out / f"{name}.nii.gz", volume, nib.load(out / "scan.nii").affine)
    return done


def run_scan(path: Path, out: Path, templates: tuple[Path, Path], **settings: Any) -> dict[str, Any]:
    """Process one scan, with intermediate files in `out`; results of an earlier run are reused."""
    from mrpipe.imaging.worker import ENVIRONMENT

    note = out / "result.json"
    if not note.exists():
        started = time.perf_counter()
        os.environ |= ENVIRONMENT  # before ITK is loaded, in a process of its own
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            done = pool.submit(processed, path, out, templates, settings).result()
        np.save(out / "map.npy", done.gm)
        digest = hashlib.sha256(done.gm.tobytes()).hexdigest()[:12]
        entry = {"wall_s": time.perf_counter() - started, "seconds": done.seconds, "sha": digest}
        note.write_text(json.dumps(entry | {"peak_mb": done.peak_mb, "numbers": done.numbers, "notes": done.notes}))
    return json.loads(note.read_text())


def native_dice(data: Path, subject: str, folder: Path) -> dict[str, float]:
    """Compare the grey matter of the chain with the manual tissues, in native space."""
    ours = np.asarray(nib.load(folder / "gm.nii.gz").dataobj)
    manual = np.asarray(nib.as_closest_canonical(nib.load(data / f"{subject}_tissues.nii.gz")).dataobj)
    voxel_ml = float(np.prod(nib.load(folder / "gm.nii.gz").header.get_zooms())) / 1000
    return {
        "dice": dice(ours > 0.5, manual == 2),
        "gm_ml": float(ours.sum()) * voxel_ml,
        "manual_ml": float((manual == 2).sum()) * voxel_ml,
    }


def manual_regions(data: Path, subject: str) -> dict[int, float]:
    """Map labels to millilitres of manual grey matter, for labels that are mostly grey matter."""
    labels = np.asarray(nib.load(data / f"{subject}_glm.nii.gz").dataobj)
    grey = np.asarray(nib.load(data / f"{subject}_tissues.nii.gz").dataobj) == 2
    n_grey, n = np.bincount(labels[grey].ravel(), minlength=256), np.bincount(labels.ravel(), minlength=256)
    return {r: float(n_grey[r]) / 1000 for r in range(1, 256) if n_grey[r] > 0.5 * n[r]}


def warped_labels(data: Path, subject: str, folder: Path, template: Path) -> np.ndarray:
    """Manual labels in template space, warped with the transforms of the scan."""
    import ants

    # The scan was read in RAS orientation; ITK uses world coordinates, so the orientation of the file does not matter.
    transforms = [str(p) for p in (folder / "tx_1Warp.nii.gz", folder / "tx_0GenericAffine.mat") if p.exists()]
    labels = ants.image_read(str(data / f"{subject}_glm.nii.gz"))
    moved = ants.apply_transforms(ants.image_read(str(template)), labels, transforms, interpolator="nearestNeighbor")
    return np.rint(moved.numpy()).astype(np.int64)


def majority(labels: list[np.ndarray]) -> np.ndarray:
    """Majority label over the images; the first image wins ties."""
    stack = np.stack(labels)
    votes = (stack[:, None] == stack[None, :]).sum(axis=1)
    return np.take_along_axis(stack, votes.argmax(axis=0)[None], axis=0)[0]


def regions(data: Path, out: Path, template: Path, registration: str) -> None:
    """Compare regional grey-matter volumes with manual ones, for own labels and leave-one-out atlases."""
    folders = {s: out / f"{s}.{registration}" for s in LABELLED}
    labels = {s: warped_labels(data, s, folders[s], template) for s in LABELLED}
    manual = {s: manual_regions(data, s) for s in LABELLED}
    shared = sorted(set.intersection(*({r for r, v in m.items() if v >= 1.0} for m in manual.values())))
    voxel_ml = abs(float(np.linalg.det(nib.load(template).affine[:3, :3]))) / 1000
    rows, truth = {"own": [], "leave-one-out": [], "consensus": []}, []
    consensus = majority(list(labels.values()))
    for s in LABELLED:
        gm = np.load(folders[s] / "map.npy") / 1000 * voxel_ml
        atlas = majority([labels[o] for o in LABELLED if o != s])
        for kind, where in (("own", labels[s]), ("leave-one-out", atlas), ("consensus", consensus)):
            sums = np.bincount(where.ravel(), weights=gm.ravel().astype(np.float64), minlength=max(shared) + 1)
            rows[kind].append(sums[shared])
        truth.append([manual[s][r] for r in shared])
    ours, t = {k: np.array(v) for k, v in rows.items()}, np.array(truth)
    for kind, o in ours.items():
        across = [np.corrcoef(a, b)[0, 1] for a, b in zip(o, t, strict=True)]
        # Differences between subjects, relative to the mean of each region, so that the size of regions has no effect.
        centred = np.corrcoef((o / o.mean(axis=0) - 1).ravel(), (t / t.mean(axis=0) - 1).ravel())[0, 1]
        error = np.median(np.abs(o - t) / t)
        print(
            f"  {registration}, {kind} labels, {len(shared)} regions: r by subject "
            f"{', '.join(f'{r:.3f}' for r in across)}; r of differences between subjects {centred:.3f}; "
            f"median error {error:.1%}"
        )


def scans(data: Path, out: Path, registrations: list[str], extract: bool) -> None:
    from mrpipe.imaging.template import mni_template

    templates = mni_template().write(out / "template")
    for registration in registrations:
        for s in LABELLED:
            folder = out / f"{s}.{registration}"
            done = run_scan(data / f"{s}_SS.nii.gz", folder, templates, registration=registration, brain="stripped")
            print(s, registration, json.dumps(done), json.dumps(native_dice(data, s, folder)), flush=True)
        regions(data, out, templates[0], registration)
    if extract:
        for s in LABELLED:
            folder = out / f"{s}.deepbet"
            done = run_scan(data / f"{s}_SS.nii.gz", folder, templates, registration="affine", brain="extract")
            mask = np.asarray(nib.load(folder / "brain.nii.gz").dataobj) > 0
            manual = np.asarray(nib.as_closest_canonical(nib.load(data / f"{s}_mask.nii.gz")).dataobj) > 0
            print(s, "deepbet", json.dumps(done), f"  brain Dice {dice(mask, manual):.4f}")
    for registration in registrations:
        done = run_scan(data / "chris_t1.nii.gz", out / f"chris.{registration}", templates, registration=registration)
        print("chris", registration, json.dumps(done), flush=True)


def maps(out: Path, n: int) -> None:
    """Simulate, ingest and load n full-size maps."""
    import pyarrow.parquet as pq

    from mrpipe.datasets.adni.image.join import read_images
    from mrpipe.datasets.adni.image.raw import prepare_images
    from mrpipe.datasets.adni.options import AdniOptions
    from mrpipe.datasets.adni.simulate.image import FULL_SHAPE, MapModel, simulated_grid
    from mrpipe.imaging.nifti import write_nifti
    from mrpipe.keyed import generator
    from mrpipe.store.parquet import write_batches
    from mrpipe.store.reader import _read_arrays

    raw = out / "maps" / "image"
    raw.mkdir(parents=True, exist_ok=True)
    grid, labels = simulated_grid(FULL_SHAPE)
    ids = [f"{i % 100:03d}_S_{i:04d}" for i in range(n)]
    if not (raw / "ADNI_subj.txt").exists():
        write_nifti(raw / "averagetemplate.nii.gz", labels, grid.affine)
        model, rng = MapModel(grid, (), 0), generator(0, "benchmark")
        base = [model.scan(0.0, (), rng) for _ in range(8)]
        array = np.lib.format.open_memmap(raw / "ADNI_G.npy", mode="w+", dtype=np.float64, shape=(n, grid.n_voxels))
        for i in range(n):
            array[i] = base[i % 8] * np.exp(0.05 * rng.standard_normal(grid.n_voxels))
        array.flush()
        (raw / "ADNI_subj.txt").write_text("".join(f"{s}_2010-01-01\n" for s in ids))
    samples = pl.DataFrame({"sample_id": sorted(ids), "subject_id": sorted(ids)})
    options, part = AdniOptions(), out / "maps" / "parts" / "image" / "0-of-1.parquet"
    part.parent.mkdir(parents=True, exist_ok=True)
    prepare_images(out / "maps", samples, options, 0, 1, part)
    clock = time.process_time()
    features = read_images(out / "maps", samples, options, [part])
    table = out / "maps" / "image.parquet"
    write_batches(table, features.modality.arrow_schema(), features.batches, compression_level=1)
    # The array is memory-mapped: its pages count towards the peak but can be reclaimed at any time.
    print(f"ingest of {n} maps: {time.process_time() - clock:.1f} s, peak {peak_mb():.0f} MB")
    print(f"size: array {(raw / 'ADNI_G.npy').stat().st_size / 1e6:.0f} MB, table {table.stat().st_size / 1e6:.0f} MB")
    clock = time.process_time()
    arrays = _read_arrays(table, features.modality, None)
    print(f"load: {time.process_time() - clock:.2f} s, {arrays.x.nbytes / 1e6:.0f} MB of {arrays.x.dtype}")
    clock = time.process_time()
    pq.ParquetFile(table).read_row_group(0)
    print(f"one row group: {time.process_time() - clock:.2f} s")
    clock = time.process_time()
    loaded = np.load(raw / "ADNI_G.npy")
    print(f"np.load of the array (vectors): {time.process_time() - clock:.2f} s, {loaded.nbytes / 1e6:.0f} MB")
    clock = time.process_time()
    scattered = np.zeros((16, *FULL_SHAPE))
    for row in range(16):
        scattered[row][grid.mask] = loaded[row]
    print(f"scattering 16 of them into {FULL_SHAPE}: {time.process_time() - clock:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scans", "maps"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/brain"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--registration", nargs="+", default=["fast", "quality"])
    parser.add_argument(
        "--extract", action="store_true", help="also extract the brain, and compare it with the manual mask"
    )
    parser.add_argument("--n", type=int, default=2380)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "scans":
        scans(args.data, args.out, args.registration, args.extract)
    else:
        maps(args.out, args.n)


if __name__ == "__main__":
    main()
