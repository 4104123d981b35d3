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

from mrpipe.datasets.adni.image_maps import FailedScanError, Maps
from mrpipe.datasets.adni.image_options import ImageOptions
from mrpipe.datasets.adni.image_plan import open_template, plan_images
from mrpipe.datasets.adni.image_raw import GRID_KEY, TRIED_SCHEMA
from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.imaging.grid import Grid
from mrpipe.imaging.qc import contact_sheet, outliers
from mrpipe.parquet import read_metadata, replacing, write_frame
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality

NAME, BIT = "image", 0
DESCRIPTION = (
    "grey-matter density in template space, volume-preserving (RAVENS or Jacobian-modulated; 1000 = a voxel full of "
    "grey matter), cropped to the bounding box of the mask; 0 outside the mask"
)
BATCH_ROWS = 16
# Numbers whose outliers are flagged; folded voxels are 0 for nearly all, so a median says nothing.
FLAGGED = ("brain_ml", "gm_ml", "fluid_share", "white_share", "mass_ratio", "overlap", "ncc")
SHEET_SCANS = 200

Row = tuple[str, NDArray[np.float32]]


def _from_maps(maps: Maps, scans: pl.DataFrame, tried: list[dict[str, Any]]) -> Iterator[Row]:
    """The first map of each sample that is one."""
    for sample_id, rows in itertools.groupby(scans.iter_rows(named=True), key=itemgetter("sample_id")):
        for scan in rows:
            entry = {k: scan[k] for k in ("sample_id", "attempt", "date")} | {"source": "map", "image_id": None}
            try:
                vector = maps.load(scan["file"], scan["image_id"])
            except FailedScanError as error:
                tried.append(entry | {"status": "failed", "reason": str(error)})
                continue
            tried.append(entry | {"status": "ok"})
            yield sample_id, vector
            break


def _from_parts(parts: Sequence[Path], grid: Grid, tried: list[dict[str, Any]]) -> Iterator[Row]:
    """The scans of all parts that were processed with success."""
    for path in parts:
        if read_metadata(path).get(GRID_KEY, "") not in ("", grid.fingerprint):
            raise UsageError(f"{path.name} was prepared with another mask; run mrpipe prepare again")
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            tried += batch.drop_columns(["voxels"]).to_pylist()
            for sample_id, voxels in zip(batch["sample_id"].to_pylist(), batch["voxels"], strict=True):
                if voxels.is_valid:
                    yield sample_id, voxels.values.to_numpy()


def _record(folder: Path, tried: list[dict[str, Any]]) -> pl.DataFrame:
    """Write `scans.parquet`, every scan that was tried, and the contact sheet; returns the table.

    Pictures are captioned by row of the table and not by id, so that the sheet can go into a report.
    """
    frame = pl.DataFrame(tried, schema=TRIED_SCHEMA).sort("sample_id", "attempt")
    processed = (frame["source"] == "raw") & (frame["status"] == "ok")
    numbers = {n: frame.filter(processed)[n].to_numpy().astype(np.float64) for n in FLAGGED}
    flags = np.full(len(frame), "", dtype=object)
    flags[processed.to_numpy()] = outliers(numbers)
    frame = frame.with_columns(pl.Series("outlier", flags.tolist(), dtype=pl.String))
    write_frame(folder / "scans.parquet", frame)
    shown = frame.with_row_index().filter(pl.col("picture").is_not_null()).head(SHEET_SCANS)
    shown = shown.filter([(folder / p).is_file() for p in shown["picture"]])
    captions = [f"{i}: {why or out or 'ok'}" for i, why, out in shown.select("index", "reason", "outlier").iter_rows()]
    if len(shown):
        with replacing(folder / "contact_sheet.png") as temporary:
            contact_sheet([folder / p for p in shown["picture"]], captions, temporary)
    return frame


def read_images(raw: Path, samples: pl.DataFrame, options: ImageOptions, parts: Sequence[Path]) -> Features:
    """One (D, H, W) volume a sample: a precomputed map, or what the chain made of a raw scan.

    The volume is the bounding box of the mask; 0 is outside the mask and nothing inside it is exactly 0
    (`Grid.volume`), so that mask, volume and voxel vector can all be had from the store. Beside the parts, after the
    last batch: `scans.parquet` (every scan that was tried, quality control, reasons of failures, outliers) and
    `contact_sheet.png`.

    Args:
        parts: the files that `prepare_images` wrote, in order.

    Raises:
        DataError: maps or mask are at fault, or no scan of any sample gives a map.
    """
    plan = plan_images(raw, samples, options)
    grid = plan.maps.grid if plan.maps else open_template(raw, options, None).grid
    edge = options.image_downsample
    modality = Modality(
        name=NAME, bit=BIT, kind="volume", shape=grid.output_shape(edge), dtype=options.image_dtype,
        description=DESCRIPTION,
    )  # fmt: skip
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
        frame = _record(parts[0].parent, tried)
        if not counts["rows"]:
            reasons = frame["reason"].drop_nulls().unique().sort().head(3).to_list()
            raise DataError(
                Fault(
                    file="images",
                    expected="at least one map or scan of a subject of the cohort",
                    found=f"{len(frame)} tried, none good" + (f" ({'; '.join(reasons)})" if reasons else ""),
                    fix="Do the images belong to this export?",
                )
            )

    def dictionary() -> pl.DataFrame:
        n_raw = sum(1 for t in tried if t["source"] == "raw" and t["status"] == "ok")
        sources = [plan.maps.source] if plan.maps and n_raw < counts["rows"] else []
        if n_raw:
            sources.append(f"{n_raw} raw T1 scans")
        row = {
            "modality": NAME, "position": 0, "name": f"{NAME}.gm", "dtype": options.image_dtype,
            "unit": "1/1000 voxel volume", "kind": "pixel", "levels": None, "description": grid.describe(edge),
            "source_file": ", ".join(sources), "source_column": None, "n_observed": counts["rows"], "n_missing": 0,
        }  # fmt: skip
        return pl.DataFrame([row], schema=DICTIONARY_SCHEMA)

    return Features(modality=modality, batches=batches(), dictionary=dictionary)
