"""Merge maps and processed scans into the modality `image`, sorted by sample_id, a few volumes at a time."""

import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.datasets.adni.image.maps import Maps
from mrpipe.datasets.adni.image.plan import DROPPED, open_template, plan_images
from mrpipe.datasets.adni.image.raw import GRID_KEY, SCAN_SCHEMA
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.features import dictionary_of, record_batch
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.imaging.chain import SCALE
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.schema import Features, Modality
from mrpipe.store.parquet import read_metadata

NAME, BIT = "image", 0
DESCRIPTION = (
    "grey-matter density in template space, volume-preserving (RAVENS or Jacobian-modulated; 1000 = a voxel full of "
    "grey matter), cropped to the bounding box of the mask; 0 outside the mask"
)
BATCH_ROWS = 16
# A flipped or misplaced map correlates far less with the mean of the maps than others, which are alike.
LEAST_LIKENESS, USUAL_LIKENESS = 0.5, 0.3
COPIED = {"status": "failed", "reason": "the same file as the scan of another participant"}

Row = tuple[str, NDArray[np.float32]]


def _likeness(maps: Maps) -> Callable[[NDArray[np.float32]], float]:
    """Correlation of a map with the mean of up to 50 maps of the export, relative to its median; 1 if that is small."""
    reference = []
    for scan in maps.scans.gather_every(max(1, len(maps.scans) // 50)).iter_rows(named=True):
        with contextlib.suppress(ScanFailedError):
            reference.append(maps.load(scan["file"]))
    if len(reference) < 3:
        return lambda vector: 1.0
    mean = np.mean(reference, axis=0)
    usual = float(np.median([np.corrcoef(v, mean)[0, 1] for v in reference]))
    return lambda vector: float(np.corrcoef(vector, mean)[0, 1]) / usual if usual > USUAL_LIKENESS else 1.0


def _from_maps(maps: Maps, scans: pl.DataFrame, attempts: list[dict[str, Any]]) -> Iterator[Row]:
    """The first valid map of each sample."""
    likeness = _likeness(maps)
    for sample_id, rows in itertools.groupby(scans.iter_rows(named=True), key=itemgetter("sample_id")):
        for scan in rows:
            entry = {k: scan[k] for k in ("sample_id", "attempt", "date")} | {"source": "map", "image_id": None}
            try:
                if scan["decision"] == "drop":
                    raise ScanFailedError(DROPPED, scan["why"] or "")
                vector = maps.load(scan["file"])
                if scan["decision"] != "keep" and (found := likeness(vector)) < LEAST_LIKENESS:
                    raise ScanFailedError("the map does not resemble the others: flipped or misplaced", f"{found:.2f}")
            except ScanFailedError as error:
                attempts.append(entry | {"status": "failed", "reason": error.reason, "detail": error.detail})
                continue
            map_ml = float(vector.sum(dtype=np.float64)) / SCALE * maps.grid.voxel_ml
            attempts.append(entry | {"status": "ok", "map_ml": map_ml})
            yield sample_id, vector
            break


def _from_parts(parts: Sequence[Path], grid: VoxelGrid, attempts: list[dict[str, Any]]) -> Iterator[Row]:
    """The successfully processed scans of all parts, except files that several participants have."""
    columns = ["sample_id", "fingerprint", "status"]
    used = pl.concat([pl.read_parquet(p, columns=columns) for p in parts]).filter(pl.col("status") == "ok")
    owners = used.group_by("fingerprint").agg(pl.col("sample_id").n_unique().alias("n"))
    copies = set(owners.filter(pl.col("n") > 1)["fingerprint"])
    for path in parts:
        if read_metadata(path).get(GRID_KEY, "") not in ("", grid.fingerprint):
            raise UsageError(f"{path.name} was prepared with a different mask; run mrpipe prepare again")
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            rows = batch.drop_columns(["voxels"]).to_pylist()
            attempts += [r | COPIED if r["fingerprint"] in copies else r for r in rows]
            for row, voxels in zip(rows, batch["voxels"], strict=True):
                if voxels.is_valid and row["fingerprint"] not in copies:
                    yield row["sample_id"], voxels.values.to_numpy()


def read_images(raw: Path, samples: pl.DataFrame, options: AdniOptions, parts: Sequence[Path]) -> Features:
    """Read one volume per sample: a precomputed map, or the map computed from a raw scan.

    Volume modality (D, H, W), float16 or float32, in 1/1000 of a voxel's volume, cropped to the bounding box of the
    mask. Voxels outside the mask are 0 and voxels inside are never exactly 0 (`VoxelGrid.volume`), so mask and
    voxel vector can be recovered. `tried` lists every attempted scan (`SCAN_SCHEMA`).

    Args:
        parts: files written by `prepare_images`, in order.

    Raises:
        DataError: maps or mask are invalid, or no sample has a valid map or scan.
        UsageError: the parts were prepared for other samples or with a different mask.
    """
    plan = plan_images(raw, samples, options)
    prepared = {i for p in parts for i in pq.read_table(p, columns=["sample_id"])["sample_id"].to_pylist()}
    if prepared != set(plan.raw_scans["sample_id"]):
        raise UsageError("the scans were prepared for a different cohort; run mrpipe prepare again")
    grid = plan.maps.grid if plan.maps else open_template(raw, options, None).grid
    edge, dtype = options.image_downsample, options.image_dtype
    shape = grid.output_shape(edge)
    modality = Modality(name=NAME, bit=BIT, kind="volume", shape=shape, dtype=dtype, description=DESCRIPTION)
    attempts: list[dict[str, Any]] = []
    counts = {"rows": 0}

    def batches() -> Iterator[pa.RecordBatch]:
        maps = _from_maps(plan.maps, plan.map_scans, attempts) if plan.maps and len(plan.map_scans) else iter(())
        merged = heapq.merge(maps, _from_parts(parts, grid, attempts), key=itemgetter(0))
        while chunk := list(itertools.islice(merged, BATCH_ROWS)):
            volumes = np.stack([grid.volume(v, downsample=edge, dtype=dtype) for _, v in chunk])
            counts["rows"] += len(chunk)
            yield record_batch(modality, [s for s, _ in chunk], volumes)
        if not counts["rows"]:
            reasons = sorted({a["reason"] for a in attempts})[:3]
            found = f"{len(attempts)} attempts, none valid" + (f" ({'; '.join(reasons)})" if reasons else "")
            expected = "at least one valid map or scan of a participant in the cohort"
            fix = "Check that the images are from the same export as the tables."
            raise DataError(Fault(file="images", expected=expected, found=found, fix=fix))

    def dictionary() -> pl.DataFrame:
        n_raw = sum(1 for a in attempts if a["source"] == "raw" and a["status"] == "ok")
        sources = [plan.maps.source] if plan.maps and n_raw < counts["rows"] else []
        if n_raw:
            sources.append(f"{n_raw} raw T1 scans")
        columns: dict[str, Any] = {"name": [f"{NAME}.gm"], "dtype": dtype, "unit": "1/1000 voxel volume"}
        columns |= {"kind": "pixel", "description": grid.describe(edge), "source_column": None}
        return dictionary_of(NAME, ", ".join(sources), columns, counts["rows"], counts["rows"])

    def attempted() -> pl.DataFrame:
        return pl.DataFrame(attempts, schema=SCAN_SCHEMA).sort("sample_id", "attempt")

    return Features(modality=modality, batches=batches(), dictionary=dictionary, tried=attempted)
