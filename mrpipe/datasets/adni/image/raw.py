"""Process raw T1 scans to voxel vectors in parallel jobs that resume after an interruption."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mrpipe.codehash import code_hash
from mrpipe.datasets.adni.image.plan import DROPPED, open_template, plan_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.imaging.chain import PACKAGES, ChainSettings, require_imaging
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.imaging.suitability import LIMITS
from mrpipe.imaging.template import Template
from mrpipe.imaging.worker import OUT_OF_TIME, process_scan
from mrpipe.raw import sha256
from mrpipe.schema import TRIED_SCHEMA
from mrpipe.store.parquet import replacing, write_batches, write_text

NUMBERS = ("gm_ml", "map_ml", "mass_ratio", "overlap", "ncc", "n_folded", "jacobian_min", "jacobian_max", *LIMITS)
# One row per attempted scan: sample, outcome and reason of failure. `picture` is relative to the folder of the parts.
SCAN_SCHEMA: dict[str, Any] = {
    **TRIED_SCHEMA,
    "detail": pl.String,
    **dict.fromkeys(("source", "image_id"), pl.String),
    "date": pl.Date,
    "description": pl.String,
    **dict.fromkeys((*NUMBERS, "seconds", "peak_mb"), pl.Float64),
    **dict.fromkeys(("notes", "picture", "fingerprint"), pl.String),
}
GRID_KEY = "mrpipe.grid"


def part_schema() -> pa.Schema:
    """Schema of a part: `SCAN_SCHEMA` and `voxels` (list of float32), null if the scan failed."""
    frame = pl.DataFrame(schema=SCAN_SCHEMA | {"voxels": pl.List(pl.Float32)})
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest()).schema


def smoothed(gm: NDArray[np.float32], grid: VoxelGrid, sigma_mm: float) -> NDArray[np.float32]:
    """Smooth over the whole grid before masking; the total is preserved except at the border of the grid."""
    if sigma_mm <= 0:
        return gm
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return np.asarray(gaussian_filter(gm, sigma_mm / spacing, mode="constant"))


def part_of(samples: list[str], part: int, n_parts: int) -> list[str]:
    """Samples of one part: a contiguous range, so that concatenated parts are sorted."""
    bounds = np.linspace(0, len(samples), n_parts + 1).round().astype(int)
    return samples[bounds[part] : bounds[part + 1]]


def _versions() -> dict[str, str]:
    """Installed versions of the packages of the chain; "" for one that is not installed."""
    return {p: next((d.version for d in metadata.distributions(name=p)), "") for p in PACKAGES.values()}


class _Shard:
    """Scratch folder of one part, with the result (or reason of failure) and a picture for each finished scan."""

    def __init__(self, scratch: Path, template: Template, options: AdniOptions):
        self.scratch, self.template, self.options = scratch, template, options
        self.settings = ChainSettings(registration=options.image_registration, brain=options.image_brain)
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

    def _flaw(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Reason and detail if the registered brain does not resemble the template."""
        least = self.options.image_min_ncc * (0.6 if self.options.image_registration == "affine" else 1)
        for name, limit, reason in (
            ("overlap", self.options.image_min_overlap, "brain and template overlap by less than"),
            ("ncc", least, "the correlation of brain and template is less than"),
        ):
            # Not `<`: a correlation that is NaN fails, too.
            if not entry[name] >= limit:
                return {"status": "failed", "reason": f"{reason} {limit:g}", "detail": f"{entry[name]:.3f}"}
        return {}

    def scan(self, scan: dict[str, Any], path: Path) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Process a scan, or load it from the scratch folder if finished; the .json file is written last."""
        image_id, accepted = scan["image_id"], scan["decision"] == "keep"
        if scan["decision"] == "drop":
            return {"status": "failed", "reason": DROPPED, "detail": scan["why"]}, None
        settings = dataclasses.replace(self.settings, accepted=accepted)
        note, voxels = self.scratch / f"{image_id}.json", self.scratch / f"{image_id}.npy"
        picture = self.scratch / f"{image_id}.png"
        fingerprint = hashlib.sha256(f"{self.setting}\n{accepted}\n{sha256(path)}".encode()).hexdigest()
        entry = self._finished(note, fingerprint)
        if entry is None:
            note.unlink(missing_ok=True)
            entry = {"fingerprint": fingerprint, "minutes": self.options.image_timeout_min}
            entry |= {"status": "ok", "reason": None, "detail": None}
            try:
                if path.suffix.lower() == ".dcm":
                    raise ScanFailedError("a DICOM series; convert it with dcm2niix")
                timeout_s = 60 * self.options.image_timeout_min
                done = process_scan(path, f"I{image_id}", self.templates, settings, picture, timeout_s=timeout_s)
                grid = self.template.grid
                vector = grid.vector(smoothed(done.gm, grid, self.options.image_smoothing_mm))
                with replacing(voxels) as temporary, temporary.open("wb") as handle:
                    np.save(handle, vector)
                entry |= done.numbers | {"seconds": sum(done.seconds.values()), "peak_mb": done.peak_mb}
                entry |= {"notes": "; ".join(done.notes), "picture": f"{self.scratch.name}/{picture.name}"}
            except ScanFailedError as error:
                entry |= {"status": "failed", "reason": error.reason, "detail": error.detail}
            write_text(note, json.dumps(entry))
        # Thresholds are applied to stored results, so that changing one does not require reprocessing.
        entry = {k: v for k, v in entry.items() if k != "minutes"}
        if entry["status"] == "ok" and (flaw := self._flaw(entry)):
            entry |= {"notes": f"{entry['notes']}; accepted although {flaw['reason']}"} if accepted else flaw
        return entry, np.load(voxels) if entry["status"] == "ok" else None


def _row(scan: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    known = {k: scan[k] for k in ("sample_id", "attempt", "image_id", "date", "description")}
    return dict.fromkeys(SCAN_SCHEMA) | known | {"source": "raw"} | entry


def prepare_images(raw: Path, samples: pl.DataFrame, options: AdniOptions, part: int, n_parts: int, out: Path) -> None:
    """Process one part of the raw scans and write it to `out` (Parquet), one row per attempted scan.

    If a scan fails, its reason is recorded and the participant's next scan is tried. Finished scans are cached in the
    scratch folder of the part, so that an interrupted job resumes at the next scan. A cached result is reused only if
    scan, settings, template, code and package versions are unchanged; timeouts are retried if the limit was raised.

    Raises:
        MissingExtraError: there are scans to process and a package of the imaging chain is not installed.
        MrpipeError: the subprocess of a scan was killed, or the machine ran out of memory or disk space.
    """
    plan = plan_images(raw, samples, options)
    in_part = part_of(plan.raw_scans["sample_id"].unique().sort().to_list(), part, n_parts)
    scans = plan.raw_scans.filter(pl.col("sample_id").is_in(in_part))
    schema, fingerprint = part_schema(), ""

    def batches() -> Iterator[pa.RecordBatch]:
        if scans.is_empty():
            return
        scratch = out.with_suffix("")
        scratch.mkdir(parents=True, exist_ok=True)
        shard = _Shard(scratch, template, options)
        for rows in scans.partition_by("sample_id", maintain_order=True):
            for scan in rows.iter_rows(named=True):
                entry, voxels = shard.scan(scan, raw / scan["file"])
                yield pa.RecordBatch.from_pylist([_row(scan, entry) | {"voxels": voxels}], schema=schema)
                if voxels is not None:
                    break

    if not scans.is_empty():
        require_imaging()
        template = open_template(raw, options, plan.maps)
        fingerprint = template.grid.fingerprint
    write_batches(out, schema, batches(), metadata={GRID_KEY: fingerprint})
