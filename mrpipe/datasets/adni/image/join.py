"""Maps and processed scans joined into the modality `image`, in order of sample_id, a few volumes at a time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrpipe.datasets.adni.image.maps import Maps
from mrpipe.datasets.adni.image.options import ImageOptions
from mrpipe.datasets.adni.image.plan import open_template, plan_images
from mrpipe.datasets.adni.image.raw import GRID_KEY, SCAN_SCHEMA
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.imaging.chain import SCALE
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.grid import VoxelGrid
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality
from mrpipe.store.parquet import read_metadata

NAME, BIT = "image", 0
DESCRIPTION = (
    "grey-matter density in template space, volume-preserving (RAVENS or Jacobian-modulated; 1000 = a voxel full of "
    "grey matter), cropped to the bounding box of the mask; 0 outside the mask"
)
BATCH_ROWS = 16

Row = tuple[str, NDArray[np.float32]]


def _from_maps(maps: Maps, scans: pl.DataFrame, tried: list[dict[str, Any]]) -> Iterator[Row]:
    """The first map of each sample that is one."""
    for sample_id, rows in itertools.groupby(scans.iter_rows(named=True), key=itemgetter("sample_id")):
        for scan in rows:
            entry = {k: scan[k] for k in ("sample_id", "attempt", "date")} | {"source": "map", "image_id": None}
            try:
                vector = maps.load(scan["file"], scan["image_id"])
            except ScanFailedError as error:
                tried.append(entry | {"status": "failed", "reason": error.reason, "detail": error.detail})
                continue
            map_ml = float(vector.sum(dtype=np.float64)) / SCALE * maps.grid.voxel_ml
            tried.append(entry | {"status": "ok", "map_ml": map_ml})
            yield sample_id, vector
            break


def _from_parts(parts: Sequence[Path], grid: VoxelGrid, tried: list[dict[str, Any]]) -> Iterator[Row]:
    """The scans of all parts that were processed with success."""
    for path in parts:
        if read_metadata(path).get(GRID_KEY, "") not in ("", grid.fingerprint):
            raise UsageError(f"{path.name} was prepared with another mask; run mrpipe prepare again")
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            tried += batch.drop_columns(["voxels"]).to_pylist()
            for sample_id, voxels in zip(batch["sample_id"].to_pylist(), batch["voxels"], strict=True):
                if voxels.is_valid:
                    yield sample_id, voxels.values.to_numpy()


def read_images(raw: Path, samples: pl.DataFrame, options: ImageOptions, parts: Sequence[Path]) -> Features:
    """One (D, H, W) volume a sample: a precomputed map, or what the chain made of a raw scan.

    The volume is the bounding box of the mask; 0 is outside the mask and nothing inside it is exactly 0
    (`VoxelGrid.volume`), so that mask, volume and voxel vector can all be had from the store. `tried` has every
    attempted scan, `SCAN_SCHEMA`.

    Args:
        parts: the files that `prepare_images` wrote, in order.

    Raises:
        DataError: maps or mask are at fault, or no scan of any sample gives a map.
        UsageError: the parts were prepared for other samples, or with another mask.
    """
    plan = plan_images(raw, samples, options)
    prepared = {i for p in parts for i in pq.read_table(p, columns=["sample_id"])["sample_id"].to_pylist()}
    if prepared != set(plan.raw_scans["sample_id"]):
        raise UsageError("the scans were prepared for another cohort; run mrpipe prepare again")
    grid = plan.maps.grid if plan.maps else open_template(raw, options, None).grid
    edge = options.image_downsample
    modality = Modality(
        name=NAME,
        bit=BIT,
        kind="volume",
        shape=grid.output_shape(edge),
        dtype=options.image_dtype,
        description=DESCRIPTION,
    )
    tried: list[dict[str, Any]] = []
    counts = {"rows": 0}

    def batches() -> Iterator[pa.RecordBatch]:
        maps = _from_maps(plan.maps, plan.map_scans, tried) if plan.maps else iter(())
        merged = heapq.merge(maps, _from_parts(parts, grid, tried), key=itemgetter(0))
        while chunk := list(itertools.islice(merged, BATCH_ROWS)):
            volumes = np.stack([grid.volume(v, downsample=edge, dtype=options.image_dtype) for _, v in chunk])
            x = pa.FixedSizeListArray.from_arrays(pa.array(volumes.reshape(-1)), modality.size)
            counts["rows"] += len(chunk)
            yield pa.record_batch([pa.array([s for s, _ in chunk], pa.string()), x], schema=modality.arrow_schema())
        if not counts["rows"]:
            reasons = sorted({t["reason"] for t in tried})[:3]
            raise DataError(
                Fault(
                    file="images",
                    expected="at least one map or scan of a subject of the cohort",
                    found=f"{len(tried)} tried, none good" + (f" ({'; '.join(reasons)})" if reasons else ""),
                    fix="Do the images belong to this export?",
                )
            )

    def dictionary() -> pl.DataFrame:
        n_raw = sum(1 for t in tried if t["source"] == "raw" and t["status"] == "ok")
        sources = [plan.maps.source] if plan.maps and n_raw < counts["rows"] else []
        if n_raw:
            sources.append(f"{n_raw} raw T1 scans")
        row = {
            "modality": NAME,
            "position": 0,
            "name": f"{NAME}.gm",
            "dtype": options.image_dtype,
            "unit": "1/1000 voxel volume",
            "kind": "pixel",
            "levels": None,
            "description": grid.describe(edge),
            "source_file": ", ".join(sources),
            "source_column": None,
            "n_observed": counts["rows"],
            "n_missing": 0,
        }
        return pl.DataFrame([row], schema=DICTIONARY_SCHEMA)

    def attempts() -> pl.DataFrame:
        return pl.DataFrame(tried, schema=SCAN_SCHEMA).sort("sample_id", "attempt")

    return Features(modality=modality, batches=batches(), dictionary=dictionary, tried=attempts)
