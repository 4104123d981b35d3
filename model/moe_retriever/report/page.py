"""Assembly of the report page from its inputs: one HTML file, results.csv and a folder of figures."""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from moe_retriever.catalogue import about
from moe_retriever.config import parse_threshold
from moe_retriever.plots.clinical import FIGURES
from moe_retriever.report import benchmarks, cautions
from moe_retriever.report.clinical import describe_clinical
from moe_retriever.report.experiments import MAX_DRAWN, compare, costs_of, describe_experiment, of_experiment
from moe_retriever.report.methods_data import listed
from moe_retriever.report.methods_text import MethodsText, methods_text
from moe_retriever.report.quality import describe_quality, quality_folder
from moe_retriever.report.runs import ReportedRun, by_experiment, read_run, tell_apart, tidy
from moe_retriever.report.stores import describe_store, public, sealed_at
from moe_retriever.report.suites import ReportedSuite, read_suite
from moe_retriever.suites.answer import MOST, forests, sentences
from moe_retriever.suites.published import dataset_title, method_title
from moe_retriever.training.search_result import read_best
from mrpipe.errors import UsageError, values_shown
from mrpipe.privacy import SMALL, Count, markdown_text, rounded
from mrpipe.store.parquet import write_csv, write_text
from mrpipe.store.reader import Store, open_verified

HERE = Path(__file__).resolve().parent
# Listed by name, because the code hash covers the data files that a module names.
_PARTS = ("stores.html", "results.html", "clinical.html", "record.html", "style.css", "script.html")
TEMPLATES = ("answer.md", "page.html", *_PARTS)
MOST_SETTINGS = 60
# Metrics of the tables that are open at first, and of those in answer.md.
MAIN_METRICS = ("accuracy", "balanced accuracy", "macro-F1", "AUROC", "AUPRC", "MAE", "RMSE", "Corr", "R²")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of a page, all optional.

    Attributes:
        runs: finished run folders.
        stores: sealed stores.
        suites: folders of rendered suites (`table.html`, figures).
        cells: folder of all runs, which contains the cells of the suites; the methods text covers these cells, too.
        searches: best.json files or folders with such files; used if a run of the page has the same method and store.
        benchmarks: folder of the workflow's benchmark files.
        thresholds: further rules of decision thresholds, as `decision_threshold`, in experiments with two classes.
        quality: name of a store's folder → folder of its quality control (`qc.parquet`, `contact_sheet.png`).
    """

    runs: Sequence[Path] = ()
    stores: Sequence[Path] = ()
    suites: Sequence[Path] = ()
    cells: Path | None = None
    searches: Sequence[Path] = ()
    benchmarks: Path | None = None
    thresholds: Sequence[str] = ()
    quality: dict[str, Path] | None = None


def write_report(inputs: Inputs, out: Path) -> pl.DataFrame:
    """Write the page and, next to it, `answer.md`, `results.csv` and `figures/*.svg`; return the tidy scores.

    The page is reproducible to the byte, except for the section of times and durations.

    Raises:
        UsageError: quality control of a store that is not on the page.
        DataError: an unfinished run, an unsealed store, an invalid best.json, or active markup.
    """
    runs = tell_apart([read_run(folder) for folder in inputs.runs])
    suites = [read_suite(folder) for folder in inputs.suites]
    stores = _stores(inputs.stores, suites)
    quality = _quality(inputs.quality or {}, [*inputs.stores, *(store.path for store in stores)])
    cells = _cells(suites, inputs.cells, runs)
    known = {(run.metrics["store_id"], run.method) for run in (*runs, *cells)}
    searches = [s for s in _searches(inputs.searches) if (s["store_id"], s["method"]) in known]
    figures = out.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for kind in ("availability", "cohort", "learning", "routing", *FIGURES):
        for old in figures.glob(f"*-{kind}.svg"):
            old.unlink()
    scores, public = tidy(runs), {s.store_id for s in stores if s.manifest.count is int}
    exact = values_shown()
    public |= {r.metrics["store_id"] for r in (*runs, *cells) if exact or r.metrics["origin"] == "simulated"}
    for run in (run for run in (*runs, *cells) if run.metrics["store_id"] not in public):
        run.metrics["n"] = {part: Count(n) for part, n in run.metrics["n"].items()}
    # The page and results.csv have no scores of small groups of people, and round the sizes of others.
    large = (public_rows := pl.col("store_id").is_in(list(public))) | (pl.col("n") >= SMALL)
    sizes = pl.when(public_rows).then("n").when(large).then(rounded(pl.col("n")))
    shown = scores.with_columns(pl.when(large).then(pl.col("value", "low", "high")).name.keep(), n=sizes)
    experiments = by_experiment(runs)
    sections = [
        describe_experiment(key, members, of_experiment(shown, key), figures, drawn=number < MAX_DRAWN)
        for number, (key, members) in enumerate(experiments.items())
    ]
    datasets = [key[0] for key in experiments]
    answers = [compare(members, named=datasets.count(k[0]) > 1) for k, members in experiments.items()]
    for section, members, answer in zip(sections, experiments.values(), answers, strict=True):
        section |= {"answer": answer, "cautions": cautions.of_experiment(members), "costs": costs_of(members)}
        names = [m.removesuffix(" (%)") for m in section["metrics"]]
        for kind, main in (("main", True), ("others", False)):
            section[kind] = [i for i, m in enumerate(names) if (m in MAIN_METRICS) == main]
    binary = [of for of in by_experiment([*runs, *cells]).values() if len(of[0].metrics["classes"]) == 2][:MAX_DRAWN]
    clinical = [describe_clinical(of, figures, inputs.thresholds, public) for of in binary]
    described = [describe_store(s, figures) | {"quality": describe_quality(quality_folder(s, quality))} for s in stores]
    described = [store | {"cautions": cautions.of_store(store)} for store in described]
    of_suites = Counter(c.text for of in by_experiment(cells).values() for c in cautions.of_experiment(of))
    jobs = None if inputs.benchmarks is None else benchmarks.summarise(benchmarks.read_benchmarks(inputs.benchmarks))
    settings = _settings([*runs, *cells])
    known_to_both = {"said": sentences(answers), "experiments": sections, "suites": suites}
    html = _template("page.html").render(
        **known_to_both,
        title=_title(stores, runs, suites),
        origins=_origins(stores, runs, suites),
        stores=described,
        drawn=forests(answers),
        most=MOST,
        suite_cautions=list(of_suites.items()),
        clinical=clinical,
        max_drawn=MAX_DRAWN,
        settings=settings[:MOST_SETTINGS],
        n_settings=len(settings),
        methods=_with_links(methods_text([*runs, *cells], stores, searches)),
        jobs=jobs,
        sealed=[{"title": dataset_title("", s.manifest.title), "store_id": s.store_id, **sealed_at(s)} for s in stores],
    )
    # Regions that scroll can be reached by keyboard, also those of embedded suites.
    html = re.sub(r'(<div class="scroll(?: tall)?")>', r'\1 tabindex="0">', html)
    # The column is omitted unless a run has non-default transforms.
    shown = shown if (scores["transforms"] != "").any() else shown.drop("transforms")
    write_csv(out.parent / "results.csv", shown)
    write_text(out.parent / "answer.md", _template("answer.md").render(**known_to_both))
    if clinical:
        write_csv(out.parent / "clinical.csv", pl.concat(section["table"] for section in clinical))
    write_text(out, html)
    return scores


def _stores(given: Sequence[Path], suites: Sequence[ReportedSuite]) -> list[Store]:
    of_suites = [path for suite in suites for path in suite.stores if (path / "manifest.json").is_file()]
    stores: dict[str, Store] = {}
    for path in (*given, *of_suites):
        store = open_verified(path)
        store.manifest = store.manifest.shared()
        stores.setdefault(store.store_id, store)
    return list(stores.values())


def _quality(folders: Mapping[str, Path], stores: Sequence[Path]) -> Mapping[str, Path]:
    """The folders of quality control, after checking that each belongs to a store of the page."""
    names = dict.fromkeys(path.name for path in stores)
    unknown = [name for name in folders if name not in names]
    if unknown:
        found = ", ".join(names) or "none"
        raise UsageError(f"--qc: no store {', '.join(unknown)} on the page; stores: {found}")
    return folders


def _cells(suites: Sequence[ReportedSuite], folder: Path | None, runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    if folder is None:
        return []
    known = {run.folder.resolve() for run in runs}
    places = dict.fromkeys(folder / cell for suite in suites for cell in suite.cells)
    return [read_run(p) for p in places if p.resolve() not in known and (p / "metrics.json").is_file()]


def _template(name: str) -> Template:
    loader = DictLoader({name: (HERE / name).read_text(encoding="utf-8") for name in TEMPLATES})
    environment = Environment(loader=loader, autoescape=name.endswith("html"), trim_blocks=True, lstrip_blocks=True)
    environment.undefined = StrictUndefined
    environment.filters |= {"seconds": benchmarks.show_seconds, "megabytes": benchmarks.show_megabytes}
    environment.filters |= {"percent": _percent, "number": _number, "method": method_title, "markdown": markdown_text}
    return environment.get_template(name)


def _percent(share: float | None) -> str:
    """Format a share as `12.3%`; small positive shares are shown as `< 0.1%`, not as zero."""
    if share is None:
        return "–"
    return "< 0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    """Format integers and large numbers with thousands separators, other numbers with three significant digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:#.3g}"


def _title(stores: Sequence[Store], runs: Sequence[ReportedRun], suites: Sequence[ReportedSuite]) -> str:
    if len(suites) == 1 and not runs:
        return suites[0].title
    titles = [dataset_title(s.manifest.dataset, s.manifest.title) for s in stores]
    names = list(dict.fromkeys(titles or [r.dataset for r in runs]))
    return f"{'Results on' if runs or suites else 'Data:'} {listed(names)}" if names else "Results"


def _origins(
    stores: Sequence[Store], runs: Sequence[ReportedRun], suites: Sequence[ReportedSuite]
) -> dict[str, list[str]]:
    said = [(s.manifest.origin, dataset_title(s.manifest.dataset, s.manifest.title)) for s in stores]
    said += [(r.metrics["origin"], r.dataset) for r in runs]
    said += [(origin, dataset_title(name)) for suite in suites for origin, name in suite.origins]
    return {key: [name for origin, name in dict.fromkeys(said) if origin == key] for key in ("simulated", "export")}


def _settings(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One entry per combination of method, preset and options that differ from the preset, with its data sets."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        options = run.changed | {f"transform {k}": v for k, v in run.transforms.items()}
        changed = {k: public(v) for k, v in options.items()}
        preset, control = run.metrics["preset"], about(run.method).control
        key = json.dumps([run.method, preset, changed], sort_keys=True)
        entry = {"method": method_title(run.method), "identifier": run.method, "preset": preset, "changed": changed}
        entry |= {"on": [], "control": control}
        on = found.setdefault(key, entry)["on"]
        if run.dataset not in on:
            on.append(run.dataset)
    return list(found.values())


def _with_links(text: MethodsText) -> dict[str, Any]:
    def linked(match: re.Match[str]) -> str:
        numbers = [int(number) for number in match[1].split(", ")]
        if max(numbers) > len(text.references):
            return match[0]
        links = ", ".join(f'<a href="#ref-{number}">{number}</a>' for number in numbers)
        return f"[{links}]"

    cited = re.compile(r"\[(\d+(?:, \d+)*)\]")
    paragraphs = [(heading, Markup(cited.sub(linked, str(escape(body))))) for heading, body in text.paragraphs]
    return {"paragraphs": paragraphs, "references": text.references}


def _searches(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("best.json")):
            yield dict(read_best(file, ("method", "store_id", "metric", "n_trials", "space")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folders: dict[str, Any] = {"type": Path, "nargs": "*", "default": []}
    parser.add_argument("--runs", **folders, metavar="RUN", help="finished run folders")
    parser.add_argument("--stores", **folders, metavar="STORE", help="stores to describe")
    parser.add_argument("--suites", **folders, metavar="DIR", help="folders of rendered suites")
    parser.add_argument("--cells", type=Path, metavar="DIR", help="folder of all runs, with the cells of the suites")
    parser.add_argument("--searches", **folders, metavar="PATH", help="best.json files of searches, or their folders")
    parser.add_argument("--benchmarks", type=Path, metavar="DIR", help="the workflow's benchmark files (*.jsonl)")
    quality = "folder with the quality control of a store (default: the one next to the store)"
    parser.add_argument("--qc", nargs="*", default=[], metavar="STORE=DIR", help=quality)
    threshold = "further thresholds of two classes: a probability (0 to 1), sensitivity=0.95 or specificity=0.95"
    parser.add_argument("--threshold", nargs="*", default=[], metavar="RULE", help=threshold)
    exact = "exact counts, which a page that is shared should not have: rounded to 5, and hidden below, otherwise"
    parser.add_argument("--show-values", action="store_true", help=exact)
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE", help="HTML file to write")


def run(args: argparse.Namespace) -> None:
    pairs = [item.partition("=") for item in args.qc]
    wrong = [name for name, separator, folder in pairs if not (name and separator and folder)]
    if wrong:
        raise UsageError(f"--qc expects STORE=DIR, got {wrong[0]!r}")
    paths = {name: getattr(args, name) for name in ("runs", "stores", "suites", "cells", "searches", "benchmarks")}
    thresholds = [rule for rule in args.threshold if parse_threshold(rule)]
    inputs = Inputs(**paths, thresholds=thresholds, quality={name: Path(folder) for name, _, folder in pairs})
    if not (inputs.runs or inputs.stores or inputs.suites):
        raise UsageError("nothing to report: pass --runs, --stores or --suites")
    write_report(inputs, args.out)
    print(args.out)
