"""Precomputed template-space maps: the stacked arrays of the authors' release, or a folder of NIfTI maps.

Source: raw-formats A.7 (stacked arrays, mask, names of RAVENS maps) and A.9.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.image.options import ImageOptions
from mrpipe.datasets.adni.image.scans import PTID, parse_date, rid_of
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.grid import VoxelGrid, read_grid
from mrpipe.imaging.nifti import on_grid
from mrpipe.raw import Column, read_csv, sha256

STACK, SUBJECTS, MANIFEST = "ADNI_G.npy", "ADNI_subj.txt", "maps.csv"
_RAVENS = re.compile(
    r"(?P<ptid>\d{3}_S_\d{4,5})_(?P<date>\d{4}-?\d{2}-?\d{2})_T1_.*RAVENS_150.*\.nii(\.gz)?", re.IGNORECASE
)
MANIFEST_COLUMNS = (
    Column(name="ptid", aliases=("subject_id", "Subject", "subject"), nullable=False),
    Column(name="date", aliases=("scan_date", "image_date", "Acq Date"), required=False),
    Column(name="file", aliases=("path", "filename"), nullable=False),
    Column(name="image_id", aliases=("Image Data ID", "IMAGEUID"), required=False),
)


@dataclass(frozen=True)
class Maps:
    """Precomputed maps.

    Attributes:
        grid: the mask.
        scans: `ptid, rid, date, rank, image_id, file`, one row a map.
        load: (file, image_id) → voxel vector (n_voxels,) float32; raises `ScanFailedError`.
        files: what the inventory lists; `folder`: a folder that it lists as one entry.
        source: how the dictionary names it.
        notes: for the manifest.
    """

    grid: VoxelGrid
    scans: pl.DataFrame
    load: Callable[[str, str], NDArray[np.float32]]
    files: tuple[Path, ...]
    folder: Path | None
    source: str
    notes: tuple[str, ...] = ()


def _named(raw: Path, name: str) -> list[Path]:
    return sorted(p for p in raw.rglob("*") if p.name.lower() == name.lower() and p.is_file())


def locate_maps(raw: Path, options: ImageOptions) -> Path | None:
    """`ADNI_G.npy`, a manifest, or a folder of RAVENS maps: what the option names, or what the export holds."""
    if options.image_maps:
        return raw / options.image_maps
    for name in (STACK, MANIFEST):
        if found := _named(raw, name):
            return found[0]
    ravens = sorted(p.parent for p in raw.rglob("*.nii*") if _RAVENS.fullmatch(p.name))
    return ravens[0] if ravens else None


def _shown(raw: Path, path: Path) -> str:
    return path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name


def find_mask(raw: Path, options: ImageOptions, beside: Path | None) -> Path | None:
    """The mask that the option names, or the one NIfTI file beside the maps whose name says so."""
    if options.image_mask:
        return raw / options.image_mask
    if beside is None:
        return None
    masks = [p for p in sorted(beside.glob("*.nii*")) if re.search(r"mask|averagetemplate", p.name, re.IGNORECASE)]
    return masks[0] if len(masks) == 1 else None


def open_mask(raw: Path, path: Path | None, options: ImageOptions, faults: FaultCollector) -> VoxelGrid | None:
    """Grid of a mask, its checksum verified; None and a fault without one."""
    if path is None or not path.is_file():
        faults.add(
            Fault(
                file=options.image_mask or "image mask",
                expected="the NIfTI mask that belongs to the maps "
                "(e.g. BLSA_SPGR+MPRAGE_averagetemplate_muse_seg_DS222.nii.gz)",
                found="no such file" if options.image_mask else "none, or several, beside the maps",
                fix="Give its path with image_mask=...",
            )
        )
        return None
    shown_as = _shown(raw, path)
    if options.image_mask_sha256 and (found := sha256(path)) != options.image_mask_sha256.lower():
        faults.add(
            Fault(file=shown_as, expected=f"SHA-256 {options.image_mask_sha256}", found=found, fix="Another mask?")
        )
        return None
    try:
        return read_grid(path, shown_as, label=options.image_mask_label)
    except DataError as error:
        faults.absorb(error)
        return None


def _scan_frame(ptid: list[str], date: list[str | None], image_id: list[str], file: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"ptid": ptid, "date": date, "image_id": image_id, "file": file},
        schema=dict.fromkeys(("ptid", "date", "image_id", "file"), pl.String),
    )
    return frame.select(
        "ptid",
        rid_of("ptid").alias("rid"),
        parse_date("date").alias("date"),
        pl.lit(0, dtype=pl.Int32).alias("rank"),
        "image_id",
        "file",
    )


def _checked_vector(vector: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The vector, or the reason why it is no map."""
    if n_bad := int((~np.isfinite(vector)).sum()):
        raise ScanFailedError("voxels of the mask without a finite value", f"{n_bad} of them")
    if not vector.any():
        raise ScanFailedError("all voxels 0: the pipeline that made the maps failed on this scan")
    if (peak := float(np.abs(vector).max())) > float(np.finfo(dtype).max):
        raise ScanFailedError(f"a value does not fit into {dtype}; set image_dtype=float32", f"{peak:.4g}")
    return vector


def _open_stack(raw: Path, path: Path, options: ImageOptions, faults: FaultCollector) -> Maps | None:
    shown_as = _shown(raw, path)
    listed = [p for p in path.parent.iterdir() if p.name.lower() == SUBJECTS.lower()]
    subjects = path.with_name(SUBJECTS) if not listed else listed[0]
    array: NDArray | None = None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        faults.add(
            Fault(
                file=shown_as,
                expected="a complete NumPy array (scans × voxels)",
                found=str(error).splitlines()[0].replace(str(path), shown_as),
                fix="The file is damaged or cut short: copy it again.",
            )
        )
    lines: list[str] = []
    if subjects.is_file():
        lines = [s.strip() for s in subjects.read_text(encoding="utf-8", errors="replace").splitlines() if s.strip()]
    else:
        faults.add(
            Fault(file=_shown(raw, subjects), expected="one {PTID}_{date} a row of the array", found="no such file")
        )
    mask = find_mask(raw, options, path.parent)
    grid = open_mask(raw, mask, options, faults)
    matches = [re.fullmatch(rf"({PTID.pattern})(?:_(.+))?", line) for line in lines]
    for row, match in enumerate(matches, start=1):
        if match is None:
            faults.add(
                Fault(
                    file=_shown(raw, subjects),
                    row=row,
                    expected="{PTID}_{date}, e.g. 002_S_0413_2006-05-02",
                    found="another line",
                )
            )
    if array is not None and (array.ndim != 2 or array.dtype.kind not in "fiu"):
        found = f"{array.dtype} of shape {array.shape}"
        faults.add(Fault(file=shown_as, expected="a numeric array (scans × voxels)", found=found))
        return None
    if array is not None and lines and len(array) != len(lines):
        found = f"{len(array)} rows, but {len(lines)} lines in {SUBJECTS}"
        faults.add(
            Fault(file=shown_as, expected="one row a line", found=found, fix="Do the two files belong together?")
        )
    if array is not None and grid is not None and array.shape[1] != grid.n_voxels:
        found = f"{array.shape[1]} columns, but the mask has {grid.n_voxels} voxels"
        faults.add(
            Fault(
                file=shown_as,
                expected="one column a voxel of the mask",
                found=found,
                fix="Check image_mask and image_mask_label.",
            )
        )
    if faults.faults or array is None or grid is None or mask is None:
        return None
    good = [m for m in matches if m is not None]
    numbers = [str(i) for i in range(len(lines))]
    # A date may carry a scan number behind it; the last field that is a date counts.
    scans = _scan_frame([m[1] for m in good], [m[2].split("_")[-1] if m[2] else None for m in good], numbers, numbers)

    def load(file: str, image_id: str) -> NDArray[np.float32]:
        assert array is not None
        return _checked_vector(np.asarray(array[int(file)], dtype=np.float32), options.image_dtype)

    return _maps(raw, grid, mask, scans, load, (path, subjects), None, shown_as)


def _maps(
    raw: Path,
    grid: VoxelGrid,
    mask: Path,
    scans: pl.DataFrame,
    load: Callable[[str, str], NDArray[np.float32]],
    files: tuple[Path, ...],
    folder: Path | None,
    source: str,
) -> Maps:
    undated = int(scans["date"].null_count())
    notes = [f"images: {undated} maps without a readable date are taken last"] if undated else []
    if mask.is_relative_to(raw):
        files = (*files, mask)
    else:
        notes.append(f"images: mask {mask.name}, sha256 {sha256(mask)}, from outside the export")
    return Maps(grid=grid, scans=scans, load=load, files=files, folder=folder, source=source, notes=tuple(notes))


def _open_folder(raw: Path, path: Path, options: ImageOptions, faults: FaultCollector) -> Maps | None:
    """A manifest CSV with its files (relative to it), or a folder whose names say subject and date."""
    table = path if path.is_file() else None
    root = path.parent if table else path
    if table is not None:
        try:
            frame = read_csv(table, MANIFEST_COLUMNS, shown_as=_shown(raw, table))
        except DataError as error:
            faults.absorb(error)
            return None
        null = pl.Series([None] * len(frame), dtype=pl.String)
        date = frame["date"] if "date" in frame.columns else null
        file = frame["file"]
        image_id = frame["image_id"].fill_null(file) if "image_id" in frame.columns else file
        for row, ptid in enumerate(frame["ptid"], start=1):
            if not PTID.fullmatch(ptid):
                faults.add(
                    Fault(
                        file=_shown(raw, table),
                        column="ptid",
                        row=row,
                        expected="a PTID such as 002_S_0413",
                        found="another value",
                    )
                )
        scans = _scan_frame(frame["ptid"].to_list(), date.to_list(), image_id.to_list(), file.to_list())
    else:
        named = [(p, m) for p in sorted(root.glob("*.nii*")) if (m := _RAVENS.fullmatch(p.name))]
        if not named:
            found = "no such file" if root.is_dir() else "no such folder"
            fix = f"Or give a manifest {MANIFEST} with columns ptid, date, file."
            expected = "maps named {PTID}_{date}_T1_…RAVENS_150….nii.gz"
            faults.add(Fault(file=_shown(raw, root), expected=expected, found=found, fix=fix))
            return None
        scans = _scan_frame(
            [m["ptid"] for _, m in named],
            [m["date"] for _, m in named],
            [p.name for p, _ in named],
            [p.name for p, _ in named],
        )
    mask = find_mask(raw, options, root)
    grid = open_mask(raw, mask, options, faults)
    if grid is None or mask is None or faults.faults:
        return None

    def load(file: str, image_id: str) -> NDArray[np.float32]:
        if not (root / file).is_file():
            raise ScanFailedError("the manifest names a file that does not exist")
        try:
            volume = on_grid(root / file, "the map", grid.mask.shape, grid.affine)
        except DataError as error:
            fault = error.faults[0]
            raise ScanFailedError(f"expected {fault.expected}", f"found {fault.found}") from error
        return _checked_vector(grid.vector(volume), options.image_dtype)

    listed = (table,) if table is not None and table.is_relative_to(raw) else ()
    folder = root if root.is_relative_to(raw) else None
    return _maps(raw, grid, mask, scans, load, listed, folder, _shown(raw, path))


def open_maps(raw: Path, options: ImageOptions, faults: FaultCollector) -> Maps | None:
    """The precomputed maps of an export; None where there are none, or with faults."""
    path = locate_maps(raw, options)
    if path is None:
        return None
    if not path.exists():
        faults.add(Fault(file=options.image_maps, expected="the maps that image_maps names", found="no such file"))
        return None
    own = FaultCollector()
    maps = _open_stack(raw, path, options, own) if path.suffix == ".npy" else _open_folder(raw, path, options, own)
    faults.faults.extend(own.faults)
    return maps
