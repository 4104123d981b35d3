"""Quality control of scans on the page: what was tried, what failed and why, what stands out, and the contact sheet."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
from markupsafe import Markup
from PIL import Image

from mrpipe.imaging.qc import CAPTION, PANEL
from mrpipe.store.layout import qc_folder
from mrpipe.store.reader import Store

# The page holds so much of the sheet, which has failed and flagged scans first.
SHEET_ROWS = 8
MAX_ROWS = 30


def quality_folder(store: Store, known: Mapping[str, Path]) -> Path:
    """Folder of a store's quality control: the named one, else beside the store, where `mrpipe build` leaves it."""
    return known.get(store.path.name, qc_folder(store.path))


def describe_quality(folder: Path) -> dict[str, Any] | None:
    """What the template shows; None where no scan was tried.

    Reads `qc.parquet` (`scan, attempt, source, status, reason, outlier` and numbers) and `contact_sheet.png`, neither
    of which names a subject.
    """
    path = folder / "qc.parquet"
    table = pl.read_parquet(path) if path.is_file() else pl.DataFrame()
    if table.is_empty():
        return None
    failed = pl.col("status") != "ok"
    flagged = ~failed & (pl.col("outlier").fill_null("") != "")
    good = table.filter(~failed)
    numbers = [c for c in good.select(cs.float()).columns if good[c].count() and c not in ("seconds", "peak_mb")]
    shown = table.filter(failed | flagged).sort(~failed, "scan").head(MAX_ROWS)
    return {
        "n": len(table),
        "n_failed": int(table.select(failed.sum()).item()),
        "n_flagged": int(table.select(flagged.sum()).item()),
        "reasons": table.filter(failed)["reason"]
        .value_counts()
        .sort(["count", "reason"], descending=[True, False])
        .rows(),
        "sources": table["source"].value_counts().sort("source").rows(),
        "numbers": [
            {"name": c, **{k: getattr(good[c], k)() for k in ("min", "median", "max")}, "n": good[c].count()}
            for c in numbers
        ],
        "rows": shown.to_dicts(),
        "columns": [c for c in numbers if shown[c].count()],
        "sheet": _sheet(folder / "contact_sheet.png") if (table["source"] == "raw").any() else None,
    }


def _sheet(path: Path) -> Markup | None:
    """The top rows of the contact sheet as JPEG."""
    if not path.is_file():
        return None
    with Image.open(path) as sheet:
        row = (3 * PANEL + CAPTION) // 2 + CAPTION
        top = sheet.convert("RGB").crop((0, 0, sheet.width, min(sheet.height, SHEET_ROWS * row)))
    buffer = io.BytesIO()
    top.save(buffer, format="JPEG", quality=82)
    data = b64encode(buffer.getvalue()).decode("ascii")
    label = "Contact sheet: for each scan the native image with brain and grey matter outlined, the image in template "
    label += "space, and the grey-matter map; captions say the row of the table and what failed or stands out."
    return Markup(f'<img alt="{label}" width="{top.width}" height="{top.height}" src="data:image/jpeg;base64,{data}">')
