"""Rendered suites (tables and figures of the paper), embedded unchanged after a check for active content."""

import re
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from moe_retriever.plots.plots import SHOWN
from moe_retriever.report.drawing import Picture, inline_image, inline_svg, prefixed, require_passive
from moe_retriever.suites.render import heading
from mrpipe.errors import DataError, Fault
from mrpipe.reading import read_frame, read_json

# Maximum number of figures per suite, and the size in bytes above which an SVG is replaced by its PNG.
MOST_PICTURES = 24
HEAVY = 300_000


@dataclass(frozen=True)
class ReportedSuite:
    """Contents of a rendered suite.

    Attributes:
        title: heading of the suite.
        table: the fragment `table.html`.
        answer: content of its answer.md; empty if there is none.
        pictures, n_pictures: the first figures, and their total number.
        origins: (origin, data set) of all contents.
        cells: finished run folders, relative to the folder of all runs.
        stores: the stores that the cells were trained on.
    """

    name: str
    title: str
    table: Markup | None
    answer: str
    pictures: list[Picture]
    n_pictures: int
    origins: list[tuple[str, str]]
    cells: list[str]
    stores: list[Path]


def read_suite(folder: Path) -> ReportedSuite:
    """Read `table.html` (a fragment), `*.svg`, `suite.json` and `scores.parquet`.

    Raises:
        DataError: there is neither a table nor a figure, or one of them has active content.
    """
    table = folder / "table.html"
    pictures = sorted(folder.glob("*.svg"))
    if not table.is_file() and not pictures:
        expected = "a suite (table.html or *.svg)"
        raise DataError(Fault(file=str(folder), expected=expected, found="neither", fix="Run it first."))
    text = require_passive(table.read_text(encoding="utf-8"), str(table)) if table.is_file() else ""
    said = read_json(folder / "suite.json") if (folder / "suite.json").is_file() else {}
    columns = said.get("columns", ())
    runs = ((column["experiment"], *labelled) for column in columns for labelled in column["cells"].values())
    cells = (f"{experiment}/{label}/seed{seed}" for experiment, label, seeds in runs for seed in seeds)
    return ReportedSuite(
        name=folder.name,
        title=heading(folder.name, said["title"]) if "title" in said else folder.name,
        answer=answer.read_text(encoding="utf-8") if (answer := folder / "answer.md").is_file() else "",
        table=Markup(prefixed(text, "suite")) if text else None,
        pictures=[_picture(folder, path) for path in pictures[:MOST_PICTURES]],
        n_pictures=len(pictures),
        origins=_origins(folder, text, said),
        cells=list(dict.fromkeys(cell for cell in cells if cell not in said.get("unfinished", ()))),
        stores=list(dict.fromkeys(Path(c["store"]) for c in columns if "store" in c)),
    )


def _picture(suite: Path, path: Path) -> Picture:
    """A figure, named after its file; the PNG is used if the SVG is large."""
    shown = next((words for ending, words in SHOWN.items() if path.stem.endswith(ending)), path.stem)
    text = path.read_text(encoding="utf-8")
    titled = re.search(r"<title>(.+?)</title>", text)
    label = unescape(titled[1]) if titled else f"{suite.name}: {shown}"
    pixels = path.with_suffix(".png")
    if path.stat().st_size > HEAVY and pixels.is_file():
        return Picture(inline_image(pixels.read_bytes(), label=label), label)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{suite.name}-{path.stem}")
    return Picture(inline_svg(text, name=name, label=label, file=str(path)), label)


def _origins(folder: Path, text: str, said: dict[str, Any]) -> list[tuple[str, str]]:
    scores = folder / "scores.parquet"
    if scores.is_file():
        return sorted(read_frame(scores, ["origin", "dataset"]).filter(pl.col("origin") != "").unique().iter_rows())
    if not re.search(r'class="[^"]*\bsimulated\b', text):
        return []
    datasets = dict.fromkeys(column["dataset"] for column in said.get("columns", ()) if "dataset" in column)
    return [("simulated", name) for name in datasets or (folder.name,)]
