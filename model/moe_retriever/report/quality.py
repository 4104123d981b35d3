"""Quality control of scans: failures and their reasons, outliers, and the contact sheet."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
from markupsafe import Markup
from PIL import Image

from moe_retriever.report.drawing import inline_image
from mrpipe.imaging.qc import MEASURES, SHEET_ROW, measures_titled
from mrpipe.reading import read_frame, reading
from mrpipe.store.layout import qc_folder
from mrpipe.store.reader import Store

# Number of rows of the contact sheet on the page; failed and flagged scans come first.
SHEET_ROWS = 4
MAX_ROWS = 30


def quality_folder(store: Store, known: Mapping[str, Path]) -> Path:
    """Folder of a store's quality control: the given one, or the one that `mrpipe build` creates next to the store."""
    return known.get(store.path.name, qc_folder(store.path))


def describe_quality(folder: Path) -> dict[str, Any] | None:
    """Template variables of the quality control; None if no scan was processed.

    Reads `qc.parquet` (`scan, attempt, source, status, reason, outlier` and measures) and `contact_sheet.png`, neither
    of which identifies subjects.
    """
    path = folder / "qc.parquet"
    table = read_frame(path) if path.is_file() else pl.DataFrame()
    if table.is_empty():
        return None
    failed = pl.col("status") != "ok"
    flagged = ~failed & (pl.col("outlier").fill_null("") != "")
    good = table.filter(~failed)
    numbers = [c for c in good.select(cs.float()).columns if good[c].count() and c not in ("seconds", "peak_mb")]
    shown = table.filter(failed | flagged).sort(~failed, "scan").head(MAX_ROWS)
    reasons = table.filter(failed)["reason"].value_counts().sort(["count", "reason"], descending=[True, False])
    rows = [row | {"outlier": measures_titled(row["outlier"])} for row in shown.to_dicts()]
    named = {c: MEASURES.get(c, c) for c in numbers}
    measures = [
        {"name": name, "n": good[c].count(), **{k: getattr(good[c], k)() for k in ("min", "median", "max")}}
        for c, name in named.items()
    ]
    return {
        "n": len(table),
        "n_failed": int(table.select(failed.sum()).item()),
        "n_flagged": int(table.select(flagged.sum()).item()),
        "reasons": reasons.rows(),
        "sources": table["source"].value_counts().sort("source").rows(),
        "numbers": measures,
        "rows": rows,
        "columns": {c: name for c, name in named.items() if shown[c].count()},
        "sheet": _sheet(folder / "contact_sheet.png") if (table["source"] == "raw").any() else None,
    }


def _sheet(path: Path) -> Markup | None:
    if not path.is_file():
        return None
    with reading(path, "the contact sheet of the images"), Image.open(path) as sheet:
        top = sheet.convert("RGB").crop((0, 0, sheet.width, min(sheet.height, SHEET_ROWS * SHEET_ROW)))
    buffer = io.BytesIO()
    top.save(buffer, format="WEBP", quality=60)
    label = "Contact sheet: for each scan the native image with outlines, that in template space, and the grey matter."
    return inline_image(buffer.getvalue(), label=label, size=f' width="{top.width}" height="{top.height}"')
