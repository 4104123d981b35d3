"""Raw T1 scans to voxel vectors: shards of scans as parallel jobs, each of which goes on where it was killed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mrpipe.codehash import code_hash
from mrpipe.datasets.adni.image.options import ImageOptions
from mrpipe.datasets.adni.image.plan import open_template, plan_images
from mrpipe.imaging.chain import PACKAGES, ChainSettings, require_imaging
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.imaging.template import Template
from mrpipe.imaging.worker import OUT_OF_TIME, ScanResult, process_scan
from mrpipe.raw import sha256
from mrpipe.schema import TRIED_SCHEMA
from mrpipe.store.parquet import replacing, write_batches, write_text

NUMBERS = (
    "brain_ml",
    "gm_ml",
    "fluid_share",
    "white_share",
    "map_ml",
    "mass_ratio",
    "overlap",
    "ncc",
    "n_folded",
    "jacobian_min",
    "jacobian_max",
)
# One row a scan that was tried: of which sample, what came of it, and why not. `picture` is below the parts' folder.
_SCAN: dict[str, Any] = {
    **TRIED_SCHEMA,
    "detail": pl.String,
    "source": pl.String,
    "image_id": pl.String,
    "date": pl.Date,
    "description": pl.String,
    **dict.fromkeys(NUMBERS, pl.Float64),
    "seconds": pl.Float64,
    "peak_mb": pl.Float64,
    "notes": pl.String,
    "picture": pl.String,
}
SCAN_SCHEMA = pl.Schema(_SCAN)
GRID_KEY = "mrpipe.grid"
Process = Callable[..., ScanResult]


def part_schema() -> pa.Schema:
    """Columns of a part: `SCAN_SCHEMA` and `voxels`, null where the scan failed."""
    frame = pl.DataFrame(schema=SCAN_SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest())
    fields = [pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in frame.schema]
    return pa.schema([*fields, pa.field("voxels", pa.list_(pa.float32()))])


def smoothed(gm: NDArray[np.float32], grid: VoxelGrid, sigma_mm: float) -> NDArray[np.float32]:
    """Gaussian smoothing over the whole grid, before the mask cuts: mass moves, and is lost only at the border."""
    if sigma_mm <= 0:
        return gm
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    out: NDArray[np.float32] = gaussian_filter(gm, sigma_mm / spacing, mode="constant")
    return out


def part_of(samples: list[str], part: int, n_parts: int) -> list[str]:
    """Samples of one part: consecutive ones, so that parts joined in order are in order."""
    bounds = np.linspace(0, len(samples), n_parts + 1).round().astype(int)
    return samples[bounds[part] : bounds[part + 1]]


def _versions() -> dict[str, str]:
    known = {}
    for package in PACKAGES.values():
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            known[package] = ""
    return known


class _Shard:
    """Scratch of one part: for each scan a result, or the reason why there is none, and a picture."""

    def __init__(self, scratch: Path, template: Template, options: ImageOptions, process: Process):
        self.scratch = scratch
        self.template = template
        self.options = options
        self.process = process
        self.settings = ChainSettings(
            registration=options.image_registration, brain=options.image_brain, segment_mm=options.image_segment_mm
        )
        self.templates = template.write(scratch / "template")
        parts = [
            json.dumps(dataclasses.asdict(self.settings), sort_keys=True),
            json.dumps(_versions(), sort_keys=True),
            template.grid.fingerprint,
            hashlib.sha256(template.t1.tobytes()).hexdigest(),
            f"{options.image_smoothing_mm!r}",
            code_hash("mrpipe.imaging.worker"),
        ]
        self.setting = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _finished(self, note: Path, fingerprint: str) -> dict[str, Any] | None:
        if not note.is_file():
            return None
        entry: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        more_time = entry["reason"] == OUT_OF_TIME and entry["minutes"] < self.options.image_timeout_min
        return entry if entry["fingerprint"] == fingerprint and not more_time else None

    def scan(self, path: Path, shown_as: str, image_id: str) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """One scan, from the scratch folder if it is finished there; the note is written last."""
        note, voxels = self.scratch / f"{image_id}.json", self.scratch / f"{image_id}.npy"
        picture = self.scratch / f"{image_id}.png"
        fingerprint = hashlib.sha256(f"{self.setting}\n{sha256(path)}".encode()).hexdigest()
        entry = self._finished(note, fingerprint)
        if entry is None:
            note.unlink(missing_ok=True)
            entry = {
                "fingerprint": fingerprint,
                "minutes": self.options.image_timeout_min,
                "status": "ok",
                "reason": None,
                "detail": None,
            }
            try:
                if path.suffix.lower() == ".dcm":
                    raise ScanFailedError("a DICOM series; convert it with dcm2niix")
                timeout_s = 60 * self.options.image_timeout_min
                done = self.process(path, shown_as, self.templates, self.settings, picture, timeout_s=timeout_s)
                vector = self.template.grid.vector(
                    smoothed(done.gm, self.template.grid, self.options.image_smoothing_mm)
                )
                with replacing(voxels) as temporary, temporary.open("wb") as handle:
                    np.save(handle, vector)
                entry |= done.numbers | {
                    "seconds": sum(done.seconds.values()),
                    "peak_mb": done.peak_mb,
                    "notes": "; ".join(done.notes),
                    "picture": f"{self.scratch.name}/{picture.name}",
                }
            except ScanFailedError as error:
                entry |= {"status": "failed", "reason": error.reason, "detail": error.detail}
            write_text(note, json.dumps(entry))
        # Thresholds are applied to what is stored, so that changing one does not process a scan again.
        entry = {k: v for k, v in entry.items() if k not in ("fingerprint", "minutes")}
        if entry["status"] == "ok" and entry["overlap"] < self.options.image_min_overlap:
            overlap, least = entry["overlap"], self.options.image_min_overlap
            entry |= {
                "status": "failed",
                "reason": f"brain and template overlap by less than {least:g}",
                "detail": f"{overlap:.3f}",
            }
        return entry, np.load(voxels) if entry["status"] == "ok" else None


def _row(scan: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    known = {k: scan[k] for k in ("sample_id", "attempt", "image_id", "date", "description")}
    return dict.fromkeys(SCAN_SCHEMA) | known | {"source": "raw"} | entry


def prepare_images(
    raw: Path,
    samples: pl.DataFrame,
    options: ImageOptions,
    part: int,
    n_parts: int,
    out: Path,
    *,
    process: Process | None = None,
) -> None:
    """Process one part of the raw scans and write it to `out`: one row a scan that was tried.

    A scan that fails is recorded with its reason, and the subject's next one is tried. What is finished lies in the
    part's scratch folder, so that a job that was killed goes on with the next scan; it is used again only if scan,
    settings, template, code and versions are the same, and not if it ran out of time and there is more of it now.

    Args:
        process: what makes a map of a scan; by default the chain, in a process of its own.

    Raises:
        MissingExtraError: a package of the chain is not installed, and there are scans to process.
        MrpipeError: the process of a scan was ended from outside, or the machine ran short of memory or room.
    """
    plan = plan_images(raw, samples, options)
    own = set(part_of(plan.raw_scans["sample_id"].unique().sort().to_list(), part, n_parts))
    scans = plan.raw_scans.filter(pl.col("sample_id").is_in(list(own)))
    schema, fingerprint = part_schema(), ""

    def batches() -> Iterator[pa.RecordBatch]:
        if scans.is_empty():
            return
        scratch = out.with_suffix("")
        scratch.mkdir(parents=True, exist_ok=True)
        shard = _Shard(scratch, template, options, process or process_scan)
        for rows in scans.partition_by("sample_id", maintain_order=True):
            for scan in rows.iter_rows(named=True):
                entry, voxels = shard.scan(raw / scan["file"], f"I{scan['image_id']}", scan["image_id"])
                row = _row(scan, entry) | {"voxels": voxels}
                yield pa.RecordBatch.from_pylist([row], schema=schema)
                if voxels is not None:
                    break

    if not scans.is_empty():
        if process is None:
            require_imaging()
        template = open_template(raw, options, plan.maps)
        fingerprint = template.grid.fingerprint
    write_batches(out, schema, batches(), metadata={GRID_KEY: fingerprint})
