"""Every value that the paper printed beside ours, over all tables: one line a value, with the origin of our data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.suites.published import DATASETS, short
from moe_retriever.suites.render import Cell, Line, Page, PageTable, heading, html, label, latex, markdown
from moe_retriever.suites.tables import NAMES
from mrpipe.errors import DataError, Fault
from mrpipe.store.masks import name_parts
from mrpipe.store.parquet import write_text

SAID = {"simulated": "simulated", "export": "real"}


def read_scores(suites: Sequence[Path]) -> dict[str, pl.DataFrame]:
    """Name of a table → its scores that have a published value; tables without one are left out.

    Raises:
        DataError: a folder holds no rendered table.
    """
    found = {}
    for folder in suites:
        path = folder / "scores.parquet"
        if not path.is_file():
            fix = f"Render it: snakemake {folder.name}."
            raise DataError(Fault(file=str(path), expected="the scores of a table", found="nothing", fix=fix))
        frame = pl.read_parquet(path).drop_nulls("published")
        if len(frame):
            found[folder.name] = frame
    return found


def make_page(name: str, title: str, scores: dict[str, pl.DataFrame]) -> Page:
    """The comparison as a page: how much there is of each of the paper's tables, then every value."""
    schema = {"table": pl.String, "origin": pl.String, "mean": pl.Float64, "published": pl.Float64}
    values = [frame.with_columns(table=pl.lit(name)).select(*schema) for name, frame in scores.items()]
    everything = pl.concat([pl.DataFrame(schema=schema), *values])
    known = everything.drop_nulls("mean")
    real, simulated = (len(known.filter(origin=origin)) for origin in ("export", "simulated"))
    origins = [
        f"Of {len(everything)} published values, {len(known)} have one of ours beside them: {real} from real data, "
        f"{simulated} from simulated exports."
    ]
    origins += ["What comes from simulated exports says that the path works, nothing about real data."] * (
        simulated > 0
    )
    notes = (
        "Published: mean ± sd over three seeds. Ours: mean ± sd over seeds, with the 95 % interval over seeds and test "
        "subjects.",
        "The difference is given for real data only; features and splits are not those of the paper even then.",
    )
    return Page(
        identifier=name,
        title=heading(name, title),
        simulated=simulated > 0,
        origins=tuple(origins),
        overview=(_summary(everything),),
        notes=notes,
        details_title="Every published value and ours",
        details=tuple(_grid(table, frame) for table, frame in scores.items()),
    )


def _summary(everything: pl.DataFrame) -> PageTable:
    """A line a table: how many values have one of ours beside them, and how far ours are off on real data."""
    ours = pl.col("mean").is_not_null()
    real = ours & (pl.col("origin") == "export")
    counted = everything.group_by("table", maintain_order=True).agg(
        pl.len().alias("published"),
        ours.sum().alias("ours"),
        real.sum().alias("real"),
        (pl.col("mean") - pl.col("published")).filter(real).mean().alias("difference"),
    )
    lines = (
        Line(
            "method",
            label(name),
            (
                Cell(str(published), "data"),
                Cell(str(n), "data"),
                Cell(str(n_real), "data"),
                Cell("–" if difference is None else _signed(difference), "diff"),
            ),
        )
        for name, published, n, n_real, difference in counted.iter_rows()
    )
    header = ("table", "published values", "with ours", "from real data", "mean of ours − published, real data")
    return PageTable("How much of the paper's tables is here", header, tuple(lines))


def _grid(table: str, frame: pl.DataFrame) -> PageTable:
    header = ("method", "data", "view", "metric", "published", "ours", "ours − published", "our data")
    return PageTable(heading(table, "published and ours, test part, %"), header, tuple(_lines(frame)))


def _lines(frame: pl.DataFrame) -> Iterator[Line]:
    for r in frame.sort("column", maintain_order=True).iter_rows(named=True):
        view = short(r["dataset"], name_parts(r["modalities"])) + ("" if r["p"] is None else f", p = {r['p']:g}")
        name = DATASETS.get(r["dataset"], (r["dataset"],))[0]
        yield Line(
            "method",
            r["row"],
            (
                Cell(name, "data"),
                Cell(view, "data"),
                Cell(NAMES[r["metric"]], "data"),
                Cell(f"{r['published']:.2f} ± {r['published_sd']:.2f}", "published"),
                Cell(_ours(r), "ours"),
                Cell(_difference(r), "diff"),
                Cell(SAID.get(r["origin"], "–"), "data"),
            ),
        )


def _ours(r: dict[str, Any]) -> str:
    if r["mean"] is None:
        return "–"
    sd = "" if r["sd"] is None else f" ± {r['sd']:.2f}"
    return f"{r['mean']:.2f}{sd}" + ("" if r["low"] is None else f" [{r['low']:.1f}, {r['high']:.1f}]")


def _difference(r: dict[str, Any]) -> str:
    if r["mean"] is None or r["origin"] != "export":
        return ""
    return _signed(r["mean"] - r["published"])


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mrpipe suite-comparison`."""
    parser.add_argument("--suites", type=Path, nargs="+", required=True, metavar="FOLDER", help="rendered tables")
    parser.add_argument("--name", required=True, help="name of the comparison")
    parser.add_argument("--title", required=True, help="its heading")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where it goes")


def run(args: argparse.Namespace) -> None:
    """`mrpipe suite-comparison`."""
    page = make_page(args.name, args.title, read_scores(args.suites))
    for file, render in (("table.tex", latex), ("table.html", html), ("table.md", markdown)):
        write_text(args.out / file, render(page))
    print(page.origins[0])
