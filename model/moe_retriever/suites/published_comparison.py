"""Comparison of all published values with ours, over all tables: one row per value, with the origin of our data."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from moe_retriever.data.scores import METRIC_NAMES
from moe_retriever.suites.published import SIMULATED_WARNING, dataset_title, short
from moe_retriever.suites.render import Cell, Line, Page, PageTable, cells_of, heading, label, number, with_sd, write
from mrpipe.reading import read_frame
from mrpipe.store.masks import name_parts

SAID = {"simulated": "simulated", "export": "real"}


def read_scores(suites: Sequence[Path]) -> dict[str, pl.DataFrame]:
    """Name of a table → its scores with a published value; tables without published values are omitted.

    Raises:
        DataError: a folder contains no rendered table.
    """
    found = {}
    for folder in suites:
        frame = read_frame(folder / "scores.parquet", fix=f"Render the table: mrpipe run {folder.name}.")
        frame = frame.drop_nulls("published")
        if len(frame):
            found[folder.name] = frame
    return found


def make_page(name: str, title: str, scores: dict[str, pl.DataFrame]) -> Page:
    """The comparison as a page: a summary of each of the paper's tables, then every value."""
    schema = {"table": pl.String, "origin": pl.String, "mean": pl.Float64, "published": pl.Float64}
    values = [frame.with_columns(table=pl.lit(name)).select(*schema) for name, frame in scores.items()]
    everything = pl.concat([pl.DataFrame(schema=schema), *values])
    known = everything.drop_nulls("mean")
    real, simulated = (len(known.filter(origin=origin)) for origin in ("export", "simulated"))
    origins = [
        f"Of {len(everything)} published values, {len(known)} have a counterpart in our results: {real} on real data, "
        f"{simulated} on simulated exports."
    ]
    origins += [f"Simulated exports: {SIMULATED_WARNING}"] * (simulated > 0)
    notes = (
        "Published: mean ± SD over three seeds. Ours: mean ± SD over seeds, with the 95% interval over seeds and test "
        "subjects.",
        "Differences are given for real data only; features and splits differ from those of the paper.",
    )
    return Page(
        identifier=name,
        title=heading(name, title),
        simulated=simulated > 0,
        origins=tuple(origins),
        overview=(_summary(everything),),
        notes=notes,
        details_title="All published values and ours",
        details=tuple(_grid(table, frame) for table, frame in scores.items()),
    )


def _summary(everything: pl.DataFrame) -> PageTable:
    ours = pl.col("mean").is_not_null()
    real = ours & (pl.col("origin") == "export")
    counted = everything.group_by("table", maintain_order=True).agg(
        pl.len().alias("published"),
        ours.sum().alias("ours"),
        real.sum().alias("real"),
        (pl.col("mean") - pl.col("published")).filter(real).mean().alias("difference"),
    )
    lines = []
    for name, *counts, difference in counted.iter_rows():
        mean = Cell("–" if difference is None else number(difference, "+.2f"), "diff")
        lines.append(Line("method", label(name), (*cells_of(map(str, counts), "data"), mean)))
    header = ("table", "published values", "with counterpart", "on real data", "mean difference on real data")
    return PageTable("Coverage of the paper's tables", header, tuple(lines))


def _grid(table: str, frame: pl.DataFrame) -> PageTable:
    header = ("method", "data", "view", "metric", "published", "ours", "ours − published", "our data")
    return PageTable(heading(table, "published values and ours on the test split (%)"), header, tuple(_lines(frame)))


def _lines(frame: pl.DataFrame) -> Iterator[Line]:
    for r in frame.sort("column", maintain_order=True).iter_rows(named=True):
        view = short(r["dataset"], name_parts(r["modalities"])) + ("" if r["p"] is None else f", p = {r['p']:g}")
        interval = "" if r["low"] is None else f" [{r['low']:.1f}, {r['high']:.1f}]"
        ours = "–" if r["mean"] is None else with_sd(r["mean"], r["sd"]) + interval
        real = r["mean"] is not None and r["origin"] == "export"
        cells = [
            *cells_of((dataset_title(r["dataset"]), view, METRIC_NAMES[r["metric"]]), "data"),
            Cell(with_sd(r["published"], r["published_sd"]), "published"),
            Cell(ours, "ours"),
            Cell(number(r["mean"] - r["published"], "+.2f") if real else "", "diff"),
            Cell(SAID.get(r["origin"], "–"), "data"),
        ]
        yield Line("method", r["row"], tuple(cells))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mrpipe suite-comparison`."""
    parser.add_argument("--suites", type=Path, nargs="+", required=True, metavar="FOLDER", help="rendered tables")
    parser.add_argument("--name", required=True, help="name of the comparison")
    parser.add_argument("--title", required=True, help="heading of the comparison")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")


def run(args: argparse.Namespace) -> None:
    """Run `mrpipe suite-comparison`."""
    page = make_page(args.name, args.title, read_scores(args.suites))
    write(page, args.out)
    print(page.origins[0])
