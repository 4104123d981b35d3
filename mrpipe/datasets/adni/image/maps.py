"""Read precomputed maps in template space: the stacked array of the authors' release, or a folder of NIfTI maps.

File formats and names are described in docs/raw-formats.md.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.adni.files import shown
from mrpipe.datasets.adni.forms import values
from mrpipe.datasets.adni.image.scans import MODULATED, PTID, find_scans, images_below, rid_of, scan_of
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.delimited import decode, line_of
from mrpipe.errors import DataError, Fault, FaultCollector, StorageError
from mrpipe.imaging.chain import SCALE
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.grid import VoxelGrid, read_grid
from mrpipe.imaging.nifti import on_grid
from mrpipe.raw import ROW, Column, read_csv, sha256
from mrpipe.reading import reading

STACK, SUBJECTS, MANIFEST = "ADNI_G.npy", "ADNI_subj.txt", "maps.csv"
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
        grid: grid and mask of the maps.
        scans: `ptid, rid, date, rank, image_id, file`, one row per map.
        load: file → voxel vector, float32 (n_voxels,); raises `ScanFailedError`.
        files: files listed in the inventory.
        folder: folder that the inventory lists as one entry.
        source: source name in the dictionary.
        notes: notes for the manifest.
    """

    grid: VoxelGrid
    scans: pl.DataFrame
    load: Callable[[str], NDArray[np.float32]]
    files: tuple[Path, ...]
    folder: Path | None
    source: str
    notes: tuple[str, ...] = ()


def locate_maps(raw: Path, options: AdniOptions) -> Path | None:
    """Path of `ADNI_G.npy`, maps.csv or the folder with all maps, from the option or by searching the export."""
    if options.image_maps:
        return raw / options.image_maps
    for name in (STACK, MANIFEST):
        if found := [p for p in raw.rglob("*") if p.name.lower() == name.lower() and p.is_file()]:
            return min(found)
    folders = [p.parent for p in images_below(raw) if scan_of(p.name)]
    return Path(os.path.commonpath(folders)) if folders else None


def find_mask(raw: Path, options: AdniOptions, folder: Path | None) -> Path | None:
    """The mask given by the option, or the only NIfTI file with a name typical of masks in the folder of the maps, or
    in the folder above it."""
    if options.image_mask:
        return raw / options.image_mask
    for place in (folder, folder.parent) if folder else ():
        masks = [p for p in sorted(place.glob("*.nii*")) if re.search(r"mask|averagetemplate", p.name, re.IGNORECASE)]
        if masks or place == raw:
            return masks[0] if len(masks) == 1 else None
    return None


def open_mask(raw: Path, path: Path | None, options: AdniOptions, faults: FaultCollector) -> VoxelGrid | None:
    """Read the grid of a mask. If it is missing or invalid, add an error and return None."""
    if path is None or not path.is_file():
        expected = "the NIfTI mask of the maps (e.g. BLSA_SPGR+MPRAGE_averagetemplate_muse_seg_DS222.nii.gz)"
        found = "no such file" if options.image_mask else "none or several in the folder of the maps"
        fix, file = "Set its path with --set image_mask=PATH.", options.image_mask or "image mask"
        faults.add(Fault(file=file, expected=expected, found=found, fix=fix))
        return None
    return faults.attempt(read_grid, path, shown(raw, path), label=options.image_mask_label)


def _typed(listed: pl.DataFrame) -> pl.DataFrame:
    """Scans of `Maps` from the texts `ptid, date, image_id, file`."""
    rank = pl.lit(0, dtype=pl.Int32).alias("rank")
    return listed.select("ptid", rid_of("ptid").alias("rid"), values.date("date"), rank, "image_id", "file")


def _copies(array: NDArray, ptids: list[str], shown_as: str) -> Fault | None:
    """A fault if rows of different participants are equal; their first thousand values are compared."""
    owners: dict[bytes, set[str]] = {}
    for row, ptid in zip(np.ascontiguousarray(array[:, :1000]), ptids, strict=True):
        if row.min() < row.max():
            owners.setdefault(row.tobytes(), set()).add(ptid)
    if not (n := sum(len(o) > 1 for o in owners.values())):
        return None
    return Fault(file=shown_as, expected="different maps of different participants", found=f"{n} maps more than once")


def _checked_vector(vector: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Return the vector; raises `ScanFailedError` if it is not a valid map or does not fit into `dtype`."""
    if n_bad := int((~np.isfinite(vector)).sum()):
        raise ScanFailedError("missing values in the brain mask", f"{n_bad} of them")
    if not vector.any():
        raise ScanFailedError("all voxels are 0, as after a failure of the pipeline that made the maps")
    if vector.min() == vector.max():
        raise ScanFailedError("all voxels have the same value", f"{vector[0]:.4g}")
    if vector.min() < -0.05 * vector.max():
        raise ScanFailedError("negative values", f"{vector.min():.4g}")
    if (peak := float(np.abs(vector).max())) > float(np.finfo(dtype).max):
        raise ScanFailedError(f"a value does not fit into {dtype}; set image_dtype=float32", f"{peak:.4g}")
    return vector


def _open_stack(raw: Path, path: Path, options: AdniOptions, faults: FaultCollector) -> Maps | None:
    shown_as = shown(raw, path)
    listed = [p for p in path.parent.iterdir() if p.name.lower() == SUBJECTS.lower()]
    subjects = path.with_name(SUBJECTS) if not listed else listed[0]
    array: NDArray | None = None
    with faults.collecting(), reading(shown_as, "a complete NumPy array (scans × voxels)", path=path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    text: str | None = ""
    if subjects.is_file():
        text = faults.attempt(decode, subjects.read_bytes(), shown_as=shown(raw, subjects), encoding="utf-8-sig")
    else:
        expected = "one {PTID}_{date} per row of the array"
        faults.add(Fault(file=shown(raw, subjects), expected=expected, found="no such file"))
    mask = find_mask(raw, options, path.parent)
    grid = open_mask(raw, mask, options, faults)
    entry = re.compile(rf"({PTID.pattern})(?:_(.+))?", re.IGNORECASE)
    lines = {i: entry.fullmatch(s.strip()) for i, s in enumerate((text or "").splitlines(), start=1) if s.strip()}
    expected = "{PTID}_{date}, e.g. 002_S_0413_2006-05-02"
    for line in (i for i, match in lines.items() if match is None):
        faults.add(Fault(file=shown(raw, subjects), line=line, expected=expected, found="another format"))
    if array is not None and (array.ndim != 2 or array.dtype.kind not in "fiu"):
        found = f"{array.dtype} of shape {array.shape}"
        faults.add(Fault(file=shown_as, expected="a numeric array (scans × voxels)", found=found))
        return None
    if array is not None and lines and len(array) != len(lines):
        found, fix = f"{len(array)} rows, but {len(lines)} lines in {SUBJECTS}", "The files do not belong together."
        faults.add(Fault(file=shown_as, expected="one row per line", found=found, fix=fix))
    elif array is not None and lines:
        faults.add(_copies(array, [m[1].upper() if m else "" for m in lines.values()], shown_as))
    if array is not None and grid is not None and array.shape[1] != grid.n_voxels:
        found, fix = f"{array.shape[1]} columns, but the mask has {grid.n_voxels}", "Check image_mask and its label."
        faults.add(Fault(file=shown_as, expected="one column per voxel of the mask", found=found, fix=fix))
    if faults.faults or array is None or grid is None or mask is None:
        return None
    # The date is the last field; other fields may precede it.
    rows = [(m[1], m[2] and m[2].split("_")[-1], m[0], str(i)) for i, m in enumerate(lines.values()) if m]
    names = ("ptid", "date", "image_id", "file")
    scans = _typed(pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row"))

    def load(file: str) -> NDArray[np.float32]:
        assert array is not None
        return _checked_vector(np.asarray(array[int(file)], dtype=np.float32), options.image_dtype)

    return _noted(Maps(grid, scans, load, (path, subjects), None, shown_as), raw, mask)


def _noted(maps: Maps, raw: Path, mask: Path) -> Maps:
    undated = int(maps.scans["date"].null_count())
    notes = [f"images: {undated} maps without a valid date are used only if there is no other"] if undated else []
    if mask.is_relative_to(raw):
        return replace(maps, files=(*maps.files, mask), notes=tuple(notes))
    notes.append(f"images: mask {mask.name} is outside the export folder, SHA-256 {sha256(mask)}")
    return replace(maps, notes=tuple(notes))


def _open_folder(raw: Path, path: Path, options: AdniOptions, faults: FaultCollector) -> Maps | None:
    """Open a CSV that lists maps (paths relative to it), or a folder of maps with participant and date in the names."""
    table = path if path.is_file() else None
    root = path.parent if table else path
    if table is not None:
        frame = faults.attempt(read_csv, table, MANIFEST_COLUMNS, shown_as=shown(raw, table), numbered=True)
        if frame is None:
            return None
        absent = (c for c in ("date", "image_id") if c not in frame.columns)
        frame = frame.with_columns(pl.lit(None, pl.String).alias(c) for c in absent)
        expected, found = "a PTID such as 002_S_0413", "another format"
        for record in (r for r, ptid in frame.select(ROW, "ptid").iter_rows() if not PTID.fullmatch(ptid)):
            line = line_of(table, record)
            faults.add(Fault(file=shown(raw, table), column="ptid", line=line, expected=expected, found=found))
        shared = frame.group_by("file").agg(pl.col("ptid").str.to_uppercase().n_unique()).filter(pl.col("ptid") > 1)
        if len(shared):
            expected, found = "each map listed for one participant", f"{len(shared)} maps listed for several"
            faults.add(Fault(file=shown(raw, table), column="file", expected=expected, found=found))
        scans = _typed(frame.with_columns(pl.col("image_id").fill_null(pl.col("file"))))
    else:
        base = raw if root.is_relative_to(raw) else root
        scans = find_scans(base, faults, maps=True)
        below = [base.joinpath(f).is_relative_to(root) for f in scans["file"]]
        scans, root = scans.filter(pl.Series(below, dtype=pl.Boolean)), base
        if scans.is_empty():
            found = "no such file" if path.is_dir() else "no such folder"
            fix = f"Alternatively, list the maps in {MANIFEST} with columns ptid, date and file."
            expected = "maps named {PTID}_{date}_T1_…RAVENS_150….nii.gz, or mwp1 and the name of an ADNI scan"
            faults.add(Fault(file=shown(raw, path), expected=expected, found=found, fix=fix))
            return None
    mask = find_mask(raw, options, table.parent if table else path)
    grid = open_mask(raw, mask, options, faults)
    if grid is None or mask is None or faults.faults:
        return None

    def load(file: str) -> NDArray[np.float32]:
        if not (root / file).is_file():
            raise ScanFailedError("missing file")
        try:
            volume = on_grid(root / file, "the map", grid.mask.shape, grid.affine)
        except DataError as error:
            if isinstance(error, StorageError):
                raise
            fault = error.faults[0]
            raise ScanFailedError(f"unusable map, expected {fault.expected}", f"found {fault.found}") from error
        # CAT12 and SPM give fractions of a voxel.
        scale = SCALE if MODULATED.fullmatch(file) else 1
        return _checked_vector(grid.vector(volume) * np.float32(scale), options.image_dtype)

    listed = (table,) if table is not None and table.is_relative_to(raw) else ()
    folder = (root if table else path) if root.is_relative_to(raw) else None
    return _noted(Maps(grid, scans, load, listed, folder, shown(raw, path)), raw, mask)


def open_maps(raw: Path, options: AdniOptions, faults: FaultCollector) -> Maps | None:
    """Open the precomputed maps of an export; None if there are none or if they are invalid (errors in `faults`)."""
    path = locate_maps(raw, options)
    if path is None:
        return None
    if not path.exists():
        faults.add(Fault(file=options.image_maps, expected="maps at the path in image_maps", found="no such file"))
        return None
    new = FaultCollector()
    maps = _open_stack(raw, path, options, new) if path.suffix == ".npy" else _open_folder(raw, path, options, new)
    faults.faults.extend(new.faults)
    return maps
