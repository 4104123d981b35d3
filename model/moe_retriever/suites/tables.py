"""Tables of a suite from its finished cells: our and published values, with intervals and differences, in %.

`suite.json` assigns runs to cells; everything else is read from the run folders.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import polars as pl

from moe_retriever.data.scores import METRIC_NAMES, METRICS
from moe_retriever.evaluation.paired import Comparison, Estimate, Predicted
from moe_retriever.evaluation.run_folders import best_possible, finished, tested
from moe_retriever.suites.join import joined
from moe_retriever.suites.published import origin_sentence, origin_title, published
from moe_retriever.suites.ranks import rank_table
from moe_retriever.suites.render import Cell, Line, Page, PageTable, cells_of, heading, number, with_sd, write
from moe_retriever.suites.spec import BEST, SuiteColumn, SuiteRow, SuiteSpec, add_suite_arguments, read_suite
from mrpipe.experiment.truth import read_best
from mrpipe.store.masks import combination_name
from mrpipe.store.parquet import write_frame

_DIFFERENCE = ("difference", "difference_low", "difference_high")
_REGRET = ("regret", "regret_low", "regret_high")
SCHEMA = pl.Schema(
    {"column": pl.Int32, **dict.fromkeys(("dataset", "origin", "store_id", "modalities", "mechanism"), pl.String)}
    | {"p": pl.Float64, **dict.fromkeys(("row", "method", "preset"), pl.String), "control": pl.Boolean}
    | {"metric": pl.String, "seeds": pl.Int32, "n": pl.Int64}
    | dict.fromkeys(("mean", "sd", "low", "high", *_DIFFERENCE, *_REGRET), pl.Float64)
    | {"leads": pl.Boolean, **dict.fromkeys(("published", "published_sd"), pl.Float64)}
)


@dataclass(frozen=True)
class Filled:
    """A column with origin and store of the data, and the comparison of its runs (None without finished runs)."""

    column: SuiteColumn
    origin: str
    store_id: str
    n: int
    comparison: Comparison | None
    missing: tuple[str, ...]


def fill(suite: SuiteSpec, column: SuiteColumn, runs: Path) -> Filled:
    """Read the finished runs of a column and, for simulated data, the best possible predictions of the same samples."""
    found: dict[str, dict[int, Predicted]] = {}
    best: dict[int, Predicted] = {}
    missing = []
    said: dict[str, Any] = {}
    for row, seed, folder in column.runs():
        if folder in suite.unfinished or not finished(runs / folder):
            missing.append(folder)
            continue
        found.setdefault(row, {})[seed] = tested(runs / folder)
        said = json.loads((runs / folder / "metrics.json").read_text(encoding="utf-8"))
        if column.truth is not None and seed not in best:
            possible = best_possible(runs / folder, read_best(Path(column.truth), said["task"]))
            best |= {} if possible is None else {seed: possible}
    comparison = Comparison(found | ({BEST: best} if best else {})) if found else None
    origin, store_id, n = said.get("origin", ""), said.get("store_id", ""), said.get("n_evaluated", 0)
    return Filled(column, origin, store_id, n, comparison, tuple(missing))


def score_frame(suite: SuiteSpec, columns: Sequence[Filled]) -> pl.DataFrame:
    """One row per column, row and metric with a finished run or a published value, in %; see `SCHEMA`."""
    rows = [line for number, filled in enumerate(columns) for line in _scores(suite, number, filled)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _scores(suite: SuiteSpec, number: int, filled: Filled) -> Iterator[dict[str, Any]]:
    column, comparison = filled.column, filled.comparison
    methods = () if comparison is None else comparison.methods
    trained = [m for m in methods if m != BEST]
    lead = {} if comparison is None else {m: comparison.best(m, trained) for m in METRICS if m != "ece"}
    view = column.dataset, column.modalities, column.missingness
    for row in suite.every_row:
        for metric in METRICS:
            printed = published(suite.published, *view, metric, row.published)
            mean, values, difference, regret = None, [], None, None
            if comparison is not None and row.name in methods:
                mean, values = comparison.mean(row.name, metric), comparison.values(row.name, metric)
                if suite.reference in methods and row.name != suite.reference:
                    difference = comparison.difference(row.name, str(suite.reference), metric)
                if BEST in methods and row.name != BEST:
                    regret = comparison.difference(BEST, row.name, metric)
            if printed is None and not values:
                continue
            yield {
                "column": number,
                "dataset": column.dataset,
                "origin": filled.origin,
                "store_id": filled.store_id,
                "modalities": combination_name(column.modalities),
                "p": column.p,
                "mechanism": column.missingness and column.missingness["mechanism"],
                "row": row.name,
                **{k: getattr(row, k) for k in ("method", "preset", "control")},
                "metric": metric,
                "seeds": len(values),
                "n": filled.n,
                "sd": 100 * stdev(values) if len(values) > 1 else None,
                **_percent(mean, ("mean", "low", "high")),
                **_percent(difference, _DIFFERENCE),
                **_percent(regret, _REGRET),
                "leads": lead.get(metric) == row.name,
                "published": printed and printed.mean,
                "published_sd": printed and printed.std,
            }


def _percent(estimate: Estimate | None, names: Sequence[str]) -> dict[str, float | None]:
    if estimate is None:
        return dict.fromkeys(names)
    values = (estimate.value, estimate.low, estimate.high)
    return {name: None if v is None else 100 * v for name, v in zip(names, values, strict=True)}


def make_page(suite: SuiteSpec, columns: Sequence[Filled], scores: pl.DataFrame) -> Page:
    """The rendered contents of a suite."""
    cells = {(r["column"], r["row"], r["metric"]): r for r in scores.iter_rows(named=True)}
    overview = [_overview(suite, columns, cells, store) for store in dict.fromkeys(c.column.store for c in columns)]
    if ranks := rank_table(suite, scores):
        overview.insert(0, ranks)
    compared = [(number, f) for number, f in enumerate(columns) if f.comparison is not None]
    details = [_detail(suite, number, f, cells, _data(f.column, columns)) for number, f in compared]
    return Page(
        identifier=suite.name,
        title=heading(suite.name, suite.title),
        simulated=any(f.origin == "simulated" for f in columns),
        origins=tuple(_origins(suite, columns)),
        overview=tuple(overview),
        details=tuple(details),
        notes=tuple(_notes(suite, columns, scores)),
        faults=tuple(folder for f in columns for folder in f.missing),
    )


Cells = Mapping[tuple[int, str, str], Mapping[str, Any]]


def _data(column: SuiteColumn, columns: Sequence[Filled]) -> str:
    stores = {f.column.store for f in columns if f.column.data == column.data}
    return f"{column.data}, store {Path(column.store).name}" if len(stores) > 1 else column.data


def _overview(suite: SuiteSpec, columns: Sequence[Filled], cells: Cells, store: str) -> PageTable:
    """Table of a store in the paper's layout: methods by views, with published values below each method."""
    mine = [(n, f, m) for n, f in enumerate(columns) if f.column.store == store for m in suite.metrics]
    several = len(suite.metrics) > 1
    header = ["method", *(f.column.name + (f": {METRIC_NAMES[m]}" if several else "") for _, f, m in mine)]
    lines = []
    for row in suite.every_row:
        found = [cells.get((n, row.name, m)) for n, _, m in mine]
        asked = [row.name in {*f.column.cells, *f.column.joined} or bool(f.column.absent) for _, f, _ in mine]
        if any(asked) if row.name != BEST else any(found):
            ours = [_ours(c, f, row) for c, (_, f, _) in zip(found, mine, strict=True)]
            lines.append(Line("control" if row.control else "method", row.name, tuple(ours)))
        printed = ["" if c is None else with_sd(c["published"], c["published_sd"]) for c in found]
        if any(printed):
            lines.append(Line("published", f"{row.name}, as published", cells_of(printed, "published")))
    name = _data(mine[0][1].column, columns)
    origin = next((f.origin for _, f, _ in mine if f.origin), "")
    what = "" if several else f", {METRIC_NAMES[suite.metrics[0]]}"
    caption = (
        f"{name}{f' ({origin_title(origin)})' if origin else ''}{what} on the test split (%), mean ± SD over seeds"
    )
    return PageTable(caption, tuple(header), tuple(lines))


def _ours(cell: Mapping[str, Any] | None, filled: Filled, row: SuiteRow) -> Cell:
    if filled.column.absent:
        return Cell("not in store", "absent")
    if row.name not in filled.column.cells and cell is None:
        return Cell("", "ours")
    if cell is None or cell["mean"] is None:
        return Cell("not finished" if cell is None or not cell["seeds"] else "undefined", "absent")
    return Cell(with_sd(cell["mean"], cell["sd"]), "ours", cell["leads"])


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{number(low, '.1f')}, {number(high, '.1f')}]"


def _detail(suite: SuiteSpec, number: int, filled: Filled, cells: Cells, data: str) -> PageTable:
    """All metrics of a column with intervals, and differences from MoE-Retriever in the suite's metrics."""
    compared = suite.reference is not None and len(filled.column.cells) > 1
    header = ["method", "seeds", *(METRIC_NAMES[m] for m in METRICS)]
    header += [f"{METRIC_NAMES[m]}: Δ to {suite.reference}" for m in suite.metrics if compared]
    known = any((number, BEST, m) in cells for m in suite.metrics)
    header += [f"{METRIC_NAMES[m]}: regret" for m in suite.metrics if known]
    lines = []
    for row in suite.every_row:
        mine = {m: cells.get((number, row.name, m)) for m in METRICS}
        ours = {m: c for m, c in mine.items() if c is not None and c["mean"] is not None}
        if not ours:
            continue
        texts = [Cell(str(next(iter(ours.values()))["seeds"]), "count")]
        for metric in METRICS:
            c = ours.get(metric)
            text = "–" if c is None else with_sd(c["mean"], c["sd"]) + _between(c["low"], c["high"])
            texts.append(Cell(text, "ours", c is not None and c["leads"]))
        for metric in suite.metrics if compared else ():
            texts.append(Cell(_difference(ours.get(metric), "difference"), "diff"))
        for metric in suite.metrics if known else ():
            texts.append(Cell(_difference(ours.get(metric), "regret"), "regret"))
        lines.append(Line("control" if row.control else "method", row.name, tuple(texts)))
    caption = f"{data}, {filled.column.name} ({origin_title(filled.origin)}, n = {filled.n:,} test samples), in %"
    return PageTable(caption, tuple(header), tuple(lines))


def _difference(cell: Mapping[str, Any] | None, name: str) -> str:
    if cell is None or cell[name] is None:
        return ""
    return number(cell[name], "+.1f") + _between(cell[f"{name}_low"], cell[f"{name}_high"])


def _origins(suite: SuiteSpec, columns: Sequence[Filled]) -> Iterator[str]:
    for name in dict.fromkeys(f.column.data for f in columns):
        mine = [f for f in columns if f.column.data == name]
        known = dict.fromkeys((f.origin, f.store_id) for f in mine if f.origin)
        for origin, store_id in known:
            yield origin_sentence(name, origin, store_id, suite.size)
        for f in (f for f in mine if f.column.absent):
            yield f"{name}, {f.column.name}: not run, because the store has no {' and no '.join(f.column.absent)}."
        if not known and not all(f.column.absent for f in mine):
            yield f"{name}: no finished runs."


def _notes(suite: SuiteSpec, columns: Sequence[Filled], scores: pl.DataFrame) -> Iterator[str]:
    yield from suite.notes
    seeds = sorted(set(scores["seeds"].to_list()) - {0})
    if not seeds:
        return
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    yield (
        f"Number of seeds: {number}. Brackets: 95% bootstrap interval over "
        + ("test subjects." if seeds[-1] == 1 else "seeds and test subjects.")
    )
    if suite.trials:
        yield (
            f"Hyper-parameters: best validation score in {' or '.join(map(str, suite.trials))} trials per method and "
            "view, including the preset. Methods without gradient training select their options internally."
        )
    if suite.reference is not None:
        yield f"Δ: difference to {suite.reference}, with the same seeds and resampled subjects."
    if scores["regret"].count():
        yield (
            f"Regret: difference between the {BEST} prediction and the method on the same samples. The simulator "
            "provides this prediction, or an upper bound, from the latent factors of the data."
        )
    yield "Bold: highest value, if the interval of its difference to the second highest excludes zero."
    if len(scores.drop_nulls("published")):
        yield "As published: mean ± SD over three seeds in the paper, with other data and features."


def write_tables(suite: SuiteSpec, runs: Path, out: Path) -> Page:
    """Write table.md, table.tex, table.html and scores.parquet to `out`."""
    columns = [fill(suite, column, runs) for column in suite.columns]
    scores = score_frame(suite, columns)
    page = make_page(suite, columns, scores)
    write_frame(out / "scores.parquet", scores)
    write(page, out)
    return page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mrpipe suite-tables`."""
    add_suite_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    help = "folders of your own runs; those with the same data and masks become rows"
    parser.add_argument("--join", type=Path, nargs="+", default=[], metavar="FOLDER", help=help)


def run(args: argparse.Namespace) -> None:
    """Run `mrpipe suite-tables`."""
    page = write_tables(joined(read_suite(args.suite), args.runs, args.join), args.runs, args.out)
    missing = f", {len(page.faults)} cells not finished" if page.faults else ""
    print(f"{args.out / 'table.md'}: {len(page.overview) + len(page.details)} tables{missing}")
