"""Image quality control for reports: measurements, outliers and a contact sheet, without participant IDs."""

from pathlib import Path

import numpy as np
import polars as pl

from mrpipe.datasets.adni.image.raw import NUMBERS
from mrpipe.imaging.qc import contact_sheet, measures_titled, outliers
from mrpipe.store.parquet import replacing, write_frame

# Measurements whose outliers are flagged, by source of the map. Folded voxels are not among them: nearly all scans
# have 0, so deviations from the median are uninformative.
FLAGGED = {
    "raw": ("brain_ml", "gm_ml", "fluid_share", "white_share", "mass_ratio", "overlap", "ncc"),
    "map": ("map_ml",),
}
SHEET_SCANS = 200


def qc_table(tried: pl.DataFrame) -> pl.DataFrame:
    """Measurements and outlier flags, one row per attempted scan, in the order of `tried`.

    Returns:
        `scan` (row in tried/image.parquet, which has the IDs and stays in the build folder), `attempt`, `source`
        (raw or map), `status`, `reason`, `outlier` (comma-separated names of outlying measurements), the measurements
        (ml, fractions, Dice), `seconds`, `peak_mb` and `notes`.
    """
    flags = np.full(len(tried), "", dtype=object)
    for source, names in FLAGGED.items():
        at = np.flatnonzero(((tried["source"] == source) & (tried["status"] == "ok")).to_numpy())
        flags[at] = outliers({n: tried[n].to_numpy()[at].astype(np.float64) for n in names})
    table = tried.with_row_index("scan").with_columns(pl.Series("outlier", flags.tolist(), dtype=pl.String))
    first = ("scan", "attempt", "source", "status", "reason", "outlier")
    return table.select(*first, *NUMBERS, "seconds", "peak_mb", "notes")


def write_image_qc(tried: pl.DataFrame, parts: Path, out: Path) -> None:
    """Write `qc.parquet` (`qc_table`) and `contact_sheet.png`, captioned by scan; failed and flagged scans first."""
    table = qc_table(tried)
    write_frame(out / "qc.parquet", table)
    pictured = table.with_columns(tried["picture"]).filter(pl.col("picture").is_not_null())
    shown = pictured.sort(pl.col("status") == "ok", pl.col("outlier") == "", "scan").head(SHEET_SCANS)
    captions = [
        f"scan {scan}: {reason or (f'outlier in {measures_titled(outlier)}' if outlier else 'no findings')}"
        for scan, reason, outlier in shown.select("scan", "reason", "outlier").iter_rows()
    ]
    n_maps = int((table["source"] == "map").sum())
    captions = captions or [f"no pictures of raw scans; {n_maps} precomputed maps were read"]
    with replacing(out / "contact_sheet.png") as temporary:
        contact_sheet([parts / p for p in shown["picture"]], captions, temporary)
