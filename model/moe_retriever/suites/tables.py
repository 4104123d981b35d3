"""Tables of a suite from its finished cells: our and published values, with intervals and differences.

`suite.json` assigns runs to cells; everything else is read from the run folders. Metrics of classes are in %.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl

from moe_retriever.evaluation.intervals import Estimate
from moe_retriever.evaluation.paired import Comparison, Predicted
from moe_retriever.evaluation.run_folders import best_possible, finished, read_metrics, tested, with_hidden
from moe_retriever.metrics import METRIC, METRIC_NAMES, METRICS, lower_is_better
from moe_retriever.suites.answer import Compared, answer_markdown, forests, sentences
from moe_retriever.suites.join import joined
from moe_retriever.suites.published import origin_sentence, origin_title, published_rows
from moe_retriever.suites.ranks import rank_table
from moe_retriever.suites.render import Cell, Line, Page, PageTable, cells_of, heading, number, with_sd, write
from moe_retriever.suites.spec import BEST, REFERENCE, SuiteColumn, SuiteRow, SuiteSpec, add_suite_arguments, read_suite
from mrpipe.experiment.truth import read_best
from mrpipe.store.masks import combination_name
from mrpipe.store.parquet import write_frame, write_text

# Value and bounds, corrected p-value, and whether it differs from zero.
_MEAN = ("mean", "low", "high")
_DIFFERENCE = ("difference", "difference_low", "difference_high", "difference_p", "holds")
_GAIN = ("gain", "gain_low", "gain_high", "gain_p", "gain_holds")
_REGRET = ("regret", "regret_low", "regret_high")
SCHEMA = pl.Schema(
    {"column": pl.Int32, **dict.fromkeys(("dataset", "origin", "store_id", "modalities", "mechanism"), pl.String)}
    | {"p": pl.Float64, "hidden": pl.Float64, "test": pl.String, "test_hidden": pl.Float64}
    | {**dict.fromkeys(("row", "method", "preset"), pl.String), "control": pl.Boolean}
    | {"metric": pl.String, "seeds": pl.Int32, "n": pl.Int64}
    | dict.fromkeys(("sd", *_MEAN, *_DIFFERENCE, *_GAIN, *_REGRET, "published", "published_sd"), pl.Float64)
    | {"strongest": pl.String, **dict.fromkeys(("leads", "holds", "gain_holds"), pl.Boolean)}
)


@dataclass(frozen=True)
class Filled:
    """A column with origin and store of the data, its finished runs, `strongest_controls` and unfinished runs."""

    column: SuiteColumn
    origin: str
    store_id: str
    n: int
    comparison: Comparison
    strongest: Mapping[str, str]
    missing: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.comparison.metrics or METRICS


def fill(suite: SuiteSpec, column: SuiteColumn, runs: Path) -> Filled:
    """Read the finished runs of a column and, for simulated data, the best possible predictions of the same samples."""
    found: dict[str, dict[int, Predicted]] = {}
    best: dict[int, Predicted] = {}
    missing = []
    validation: dict[str, list[dict[str, float]]] = {}
    said: dict[str, Any] = {}
    contents: list[dict[str, Any]] = []
    pattern = column.test["pattern"] if column.test else ""
    for row, seed, folder in column.runs():
        if folder in suite.unfinished or not finished(runs / folder):
            missing.append(folder)
            continue
        found.setdefault(row, {})[seed] = tested(runs / folder, pattern)
        said = read_metrics(runs / folder)
        contents.append(said)
        validation.setdefault(row, []).append(said["training"].get("val", {}))
        if column.truth is not None and seed not in best:
            possible = best_possible(runs / folder, read_best(Path(column.truth), said["task"]), pattern)
            best |= {} if possible is None else {seed: possible}
    comparison = Comparison(found | ({BEST: best} if best else {}))
    test = [c.get("test") or {} for c in contents]
    origin, store_id, n = said.get("origin", ""), said.get("store_id", ""), said.get("n_evaluated", 0)
    if column.test is not None:
        column = replace(column, test={**column.test, "missingness": with_hidden(column.test["missingness"], test)})
        n = len(next(iter(next(iter(found.values())).values())).label) if found else 0
        if test and test[-1]["store_id"] != store_id:
            store_id = f"{store_id} for training and {test[-1]['store_id']} for the test"
            origin = "simulated" if "simulated" in (origin, test[-1]["origin"]) else origin
    column = replace(column, missingness=with_hidden(column.missingness, contents))
    return Filled(column, origin, store_id, n, comparison, strongest_controls(suite.rows, validation), tuple(missing))


def strongest_controls(rows: Sequence[SuiteRow], validation: Mapping[str, list[dict[str, float]]]) -> dict[str, str]:
    """Metric → the control without retrieval that has the best mean validation score; without test scores, to be fair.

    `validation` has the scores of each row's runs; if a run of a control has none, there is no choice.
    """
    scores = {r.name: validation.get(r.name, []) for r in rows if r.control and r.method != REFERENCE}
    found: dict[str, str] = {}
    for metric in METRIC_NAMES if all(run for runs in scores.values() for run in runs) else ():
        known = {name: runs for name, runs in scores.items() if runs and all(metric in run for run in runs)}
        means = {name: fmean(run[metric] for run in runs) for name, runs in known.items()}
        if means:
            found[metric] = (min if lower_is_better(metric) else max)(means, key=lambda name: means[name])
    return found


def score_frame(suite: SuiteSpec, columns: Sequence[Filled]) -> pl.DataFrame:
    """One row per column, row and metric with a finished run or a published value; see `SCHEMA`."""
    rows = [line for number, filled in enumerate(columns) for line in _scores(suite, number, filled)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _scores(suite: SuiteSpec, number: int, filled: Filled) -> Iterator[dict[str, Any]]:
    column, comparison = filled.column, filled.comparison
    trained = [m for m in comparison.methods if m != BEST]
    lead = {m: comparison.best(m, trained) for m in filled.metrics}
    estimates = {metric: _estimates(suite, filled, metric) for metric in filled.metrics}
    other = column.test or column.task or column.scheme
    tables: list[str] = [] if other else [suite.published]
    paper = published_rows(column.dataset, column.modalities, column.missingness, tables)
    for row in suite.every_row:
        for metric in filled.metrics:
            printed = paper.get(row.published, {}).get(metric)
            values = comparison.values(row.name, metric) if row.name in comparison.methods else []
            if printed is None and not values:
                continue
            of_row = {names: found.get(row.name) for names, found in estimates[metric].items()}
            yield {
                "column": number,
                "dataset": column.dataset,
                "origin": filled.origin,
                "store_id": filled.store_id,
                "modalities": combination_name(column.modalities),
                "p": column.p,
                "hidden": (column.missingness or {}).get("hidden"),
                "test": column.test and " ".join([column.test["name"], column.test["pattern"]]).strip(),
                "test_hidden": ((column.test or {}).get("missingness") or {}).get("hidden"),
                "mechanism": column.missingness and column.missingness["mechanism"],
                "row": row.name,
                **{k: getattr(row, k) for k in ("method", "preset", "control")},
                "metric": metric,
                "seeds": len(values),
                "n": filled.n,
                "sd": METRIC[metric].factor * stdev(values) if len(values) > 1 else None,
                **{k: v for names, found in of_row.items() for k, v in _named(found, names, metric)},
                "strongest": filled.strongest[metric] if of_row.get(_GAIN) else None,
                "leads": lead.get(metric) == row.name,
                "published": printed and printed.mean,
                "published_sd": printed and printed.std,
            }


def _estimates(suite: SuiteSpec, filled: Filled, metric: str) -> dict[tuple[str, ...], Mapping[str, Estimate | None]]:
    """Names of columns → estimate of each row."""
    comparison, reference, strongest = filled.comparison, suite.reference or "", filled.strongest.get(metric)
    trained = [m for m in comparison.methods if m != BEST]
    retrieving = [r.name for r in suite.rows if r.method == REFERENCE and not r.control and r.name in trained]
    return {
        _MEAN: {m: comparison.mean(m, metric) for m in comparison.methods},
        _DIFFERENCE: comparison.differences(trained, reference, metric) if reference in trained else {},
        _GAIN: comparison.differences(retrieving, strongest, metric) if strongest else {},
        _REGRET: {m: comparison.difference(BEST, m, metric) for m in trained if BEST in comparison.methods},
    }


def _named(e: Estimate | None, names: Sequence[str], metric: str) -> Iterator[tuple[str, Any]]:
    if e is not None:
        bounds = [None if v is None else METRIC[metric].factor * v for v in (e.value, e.low, e.high)]
        yield from zip(names, [*bounds, e.adjusted, e.holds], strict=False)


def make_page(suite: SuiteSpec, columns: Sequence[Filled], scores: pl.DataFrame) -> Page:
    cells = {(r["column"], r["row"], r["metric"]): r for r in scores.iter_rows(named=True)}
    overview = [_overview(suite, columns, cells, store) for store in dict.fromkeys(c.column.store for c in columns)]
    if ranks := rank_table(suite, scores):
        overview.insert(0, ranks)
    compared = [(n, f) for n, f in enumerate(columns) if f.comparison.methods]
    details = [_detail(suite, n, f, cells, _data(f.column, columns)) for n, f in compared]
    answers = [_compared(suite, f, columns) for _, f in compared]
    return Page(
        identifier=suite.name,
        title=heading(suite.name, suite.title),
        simulated=any(f.origin == "simulated" for f in columns),
        origins=tuple(_origins(suite, columns)),
        overview=tuple(overview),
        details=tuple(details),
        notes=tuple(_notes(suite, columns, scores)),
        faults=tuple(folder for f in columns for folder in f.missing),
        answer=tuple(sentences(answers)),
        forests=forests(answers),
    )


def _compared(suite: SuiteSpec, filled: Filled, columns: Sequence[Filled]) -> Compared:
    column, metric = filled.column, next((m for m in suite.metrics if m in filled.metrics), filled.metrics[0])
    # Named by its header if the data set has several columns, or the column more than missingness.
    several = [f for f in columns if f.column.data == column.data][1:]
    named = any((several, column.test, column.task, column.scheme, column.transforms))
    return Compared(
        data=_data(column, columns),
        view=column.name if named else "",
        n=filled.n,
        missingness=None if named else column.missingness,
        simulated=filled.origin == "simulated",
        metric=metric,
        comparison=filled.comparison,
        controls=frozenset(r.name for r in suite.rows if r.control),
        reference=suite.reference,
        strongest=filled.strongest.get(metric),
    )


Cells = Mapping[tuple[int, str, str], Mapping[str, Any]]


def _data(column: SuiteColumn, columns: Sequence[Filled]) -> str:
    stores = {f.column.store for f in columns if f.column.data == column.data}
    return f"{column.data}, store {Path(column.store).name}" if len(stores) > 1 else column.data


def _overview(suite: SuiteSpec, columns: Sequence[Filled], cells: Cells, store: str) -> PageTable:
    """Table of a store in the paper's layout: methods by views, with published values below each method."""
    of_store = [(n, f) for n, f in enumerate(columns) if f.column.store == store]
    mine = [(n, f, m) for n, f in of_store for m in suite.metrics if m in f.metrics or not f.comparison.methods]
    several = len(suite.metrics) > 1
    header = ["method", *(f.column.name + (f": {METRIC_NAMES[m]}" if several else "") for _, f, m in mine)]
    lines = []
    digits = [_digits([c for (k, _, of), c in cells.items() if (k, of) == (n, m)], m) for n, _, m in mine]
    if any(cells[key]["published"] is not None for key in cells if key[0] in {n for n, _, _ in mine}):
        digits = [2 if METRIC[m].percent else d for (_, _, m), d in zip(mine, digits, strict=True)]
    for row in suite.every_row:
        found = [cells.get((n, row.name, m)) for n, _, m in mine]
        asked = [row.name in {*f.column.cells, *f.column.joined} or bool(f.column.absent) for _, f, _ in mine]
        if any(asked) if row.name != BEST else any(found):
            ours = [_ours(c, f, row, d) for c, (_, f, _), d in zip(found, mine, digits, strict=True)]
            lines.append(Line("control" if row.control else "method", row.name, tuple(ours)))
        printed = ["" if c is None else with_sd(c["published"], c["published_sd"]) for c in found]
        if any(printed):
            lines.append(Line("published", f"{row.name}, as published", cells_of(printed, "published")))
    name = _data(mine[0][1].column, columns)
    origin = next((f.origin for _, f, _ in mine if f.origin), "")
    what = "" if several else f", {METRIC_NAMES[suite.metrics[0]]}"
    unit = " (%)" if all(METRIC[m].percent for m in suite.metrics) else ""
    of_origin = f" ({origin_title(origin)})" if origin else ""
    caption = f"{name}{of_origin}{what} on the test split{unit}, mean ± SD over seeds"
    return PageTable(caption, tuple(header), tuple(lines))


def _digits(cells: Sequence[Mapping[str, Any]], metric: str, name: str = "") -> int:
    """Decimals of a column: as many as its widest interval carries; `name` is that of a difference."""
    low, high = (f"{name}_low", f"{name}_high") if name else ("low", "high")
    return METRIC[metric].digits(max([c[high] - c[low] for c in cells if c[low] is not None], default=None))


def _ours(cell: Mapping[str, Any] | None, filled: Filled, row: SuiteRow, digits: int) -> Cell:
    if filled.column.absent:
        return Cell("not in store", "absent")
    if row.name not in filled.column.cells and cell is None:
        return Cell("", "ours")
    if cell is None or cell["mean"] is None:
        return Cell("not finished" if cell is None or not cell["seeds"] else "undefined", "absent")
    return Cell(with_sd(cell["mean"], cell["sd"], digits), "ours", cell["leads"])


def _between(cell: Mapping[str, Any], low: str, high: str, digits: int) -> str:
    if cell[low] is None:
        return " [no interval]"
    return f" [{number(cell[low], f'.{digits}f')}, {number(cell[high], f'.{digits}f')}]"


def _detail(suite: SuiteSpec, number: int, filled: Filled, cells: Cells, data: str) -> PageTable:
    """All metrics of a column with intervals, and differences in the suite's metrics."""
    metrics = [m for m in suite.metrics if m in filled.metrics]
    mine = {key[1:]: cell for key, cell in cells.items() if key[0] == number}
    shown = [("difference", f"Δ to {suite.reference}")] if suite.reference and len(filled.column.cells) > 1 else []
    shown += [("gain", "Δ to strongest control")] if any(c["gain"] is not None for c in mine.values()) else []
    shown += [("regret", "regret")] if any((BEST, m) in mine for m in metrics) else []
    header = ["method", "seeds", *(METRIC_NAMES[m] for m in filled.metrics)]
    header += [f"{METRIC_NAMES[m]}: {words}" for _, words in shown for m in metrics]
    lines = []
    of_metric = {m: [c for (_, of), c in mine.items() if of == m] for m in filled.metrics}
    digits = {m: _digits(of, m) for m, of in of_metric.items()}
    of_difference = {(kind, m): _digits(of_metric[m], m, kind) for kind, _ in shown for m in metrics}
    for row in suite.every_row:
        ours = {m: c for m in filled.metrics if (c := mine.get((row.name, m))) and c["mean"] is not None}
        if not ours:
            continue
        texts = [Cell(str(next(iter(ours.values()))["seeds"]), "count")]
        for metric in filled.metrics:
            c, d = ours.get(metric), digits[metric]
            text = "–" if c is None else with_sd(c["mean"], c["sd"], d) + _between(c, "low", "high", d)
            texts.append(Cell(text, "ours", c is not None and c["leads"]))
        texts += [_difference(ours.get(m), kind, of_difference[kind, m]) for kind, _ in shown for m in metrics]
        lines.append(Line("control" if row.control else "method", row.name, tuple(texts)))
    over = "test subjects only (one seed)" if max(c["seeds"] for c in mine.values()) == 1 else "seeds and test subjects"
    caption = f"{data}, {filled.column.name} ({origin_title(filled.origin)}, n = {filled.n:,} test samples)"
    units = [METRIC_NAMES[m] for m in filled.metrics if not METRIC[m].percent]
    if len(units) < len(filled.metrics):
        caption += f", in %{', except ' * bool(units)}{', '.join(units)}"
    caption += f"; brackets: 95% interval over {over}"
    return PageTable(caption, tuple(header), tuple(lines))


def _difference(cell: Mapping[str, Any] | None, kind: str, digits: int) -> Cell:
    """A difference with its interval, in bold if it holds after correction; the strongest control by name."""
    style = "regret" if kind == "regret" else "diff"
    if cell is None or cell[kind] is None:
        return Cell("", style)
    text = number(cell[kind], f"+.{digits}f")
    text += _between(cell, f"{kind}_low", f"{kind}_high", digits)
    text += f" ({cell['strongest']})" if kind == "gain" else ""
    return Cell(text, style, bool({"difference": cell["holds"], "gain": cell["gain_holds"]}.get(kind)))


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
        f"Number of seeds: {number}. Brackets: 95% interval of the expected score over seeds and the population of "
        f"test subjects, given the training data{'; with one seed, over test subjects only' if seeds[0] == 1 else ''}. "
        "No interval: the metric is undefined without one of the test subjects, or has no weighted form."
    )
    if suite.trials:
        yield (
            f"Hyper-parameters: best validation score in {' or '.join(map(str, suite.trials))} trials per method and "
            "view, including the preset."
        )
    if suite.reference is not None:
        yield (
            f"Δ: difference to {suite.reference}, with the same seeds and test subjects. Bold: it differs from zero "
            "at 5% after Holm's correction over the rows of the column; intervals are not corrected."
        )
    if scores["gain"].count():
        yield (
            "Strongest control: the control without retrieval that has the best mean validation score of the metric, "
            "chosen without the test split. Bold as for Δ, corrected over the rows of MoE-Retriever."
        )
    if scores["regret"].count():
        yield (
            f"Regret: difference between the {BEST} prediction and the method on the same samples. The simulator "
            "provides this prediction, or an upper bound, from the latent factors of the data."
        )
    yield "Bold values: the best one, if its lead over every other row differs from zero after Holm's correction."
    if len(scores.drop_nulls("published")):
        yield "As published: mean ± SD over three seeds in the paper, with other data and features."


def write_tables(suite: SuiteSpec, runs: Path, out: Path) -> Page:
    """Write table.md, table.tex, table.html, answer.md and scores.parquet to `out`."""
    columns = [fill(suite, column, runs) for column in suite.columns]
    scores = score_frame(suite, columns)
    page = make_page(suite, columns, scores)
    write_frame(out / "scores.parquet", scores)
    write(page, out)
    write_text(out / "answer.md", answer_markdown(page.answer, page.overview))
    return page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_suite_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    help = "folders of your own runs; those with the same data and masks become rows"
    parser.add_argument("--join", type=Path, nargs="+", default=[], metavar="FOLDER", help=help)


def run(args: argparse.Namespace) -> None:
    page = write_tables(joined(read_suite(args.suite), args.runs, args.join), args.runs, args.out)
    missing = f", {len(page.faults)} cells not finished" if page.faults else ""
    print(f"{args.out / 'table.md'}: {len(page.overview) + len(page.details)} tables{missing}")
