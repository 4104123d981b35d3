"""The results page: what was run on which data, the scores beside their controls, and the pictures.

One self-contained HTML file (no network, pictures inline), the same numbers as a tidy CSV beside it, and the pictures
as SVG files in `figures/`.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import polars as pl
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from model import plots
from model.metrics import METRICS
from mrpipe.audit import audit
from mrpipe.errors import DataError, Fault
from mrpipe.parquet import write_text
from mrpipe.store import Store, open_store

# Single-feature AUROC above which a feature may be the label in other words.
AUDIT_THRESHOLD = 0.9
HERE = Path(__file__).resolve().parent
PAGE = HERE / "report_page.html"
PUBLISHED = HERE / "published.csv"
METRIC_NAMES = {
    "accuracy": "accuracy %", "balanced_accuracy": "balanced acc. %", "macro_f1": "macro-F1 %",
    "auroc": "AUROC %", "auprc": "AUPRC %", "ece": "ECE %",
}  # fmt: skip
# The paper's letters for the modalities of each data set, in the order in which its tables write them.
PAPER_DATASETS = {
    "mosi": ("CMU-MOSI", {"vision": "V", "audio": "A", "text": "T"}),
    "enrico": ("ENRICO", {"screenshot": "S", "wireframe": "W"}),
    "adni": ("ADNI", {"image": "I", "genomic": "G", "clinical": "C", "biospecimen": "B"}),
    "mimic": ("MIMIC", {"lab": "L", "note": "N", "code": "C"}),
}
KEYS = ("dataset", "store_id", "origin", "task", "scheme", "modalities", "missingness", "method", "preset", "seed")


@dataclass(frozen=True)
class Run:
    """One finished run folder."""

    folder: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    variant: str = ""

    @property
    def label(self) -> str:
        preset = self.metrics["preset"]
        name = self.metrics["method"] + ("" if preset == "paper" else f" ({preset})")
        return f"{name} [{self.variant}]" if self.variant else name

    @property
    def settings(self) -> str:
        """All options of the run but its seed: runs that share them are repetitions of one another."""
        return json.dumps({k: self.config[k] for k in ("method", "preset", "common", "options")}, sort_keys=True)

    @property
    def missingness(self) -> str:
        mask = self.metrics["mask"]
        return "as observed" if not mask else f"{mask['mechanism']} p={mask['p']:g}"

    @property
    def experiment(self) -> tuple[str, ...]:
        """Runs of one experiment stand in one table: they share the data, the view and the missingness."""
        m = self.metrics
        view = "+".join(m["modalities"])
        return m["dataset"], m["store_id"], m["origin"], m["task"], m["scheme"], view, self.missingness

    def rows(self) -> Iterable[dict[str, Any]]:
        """Tidy rows: one a (group, metric)."""
        frame = pl.read_csv(self.folder / "metrics.csv", schema_overrides={"group": pl.String})
        key = dict(zip(KEYS, (*self.experiment, self.label, self.metrics["preset"], self.metrics["seed"]), strict=True))
        return (key | row for row in frame.iter_rows(named=True))


def read_run(folder: Path) -> Run:
    """A run folder; an unfinished one is a data fault that says so."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(
            Fault(file=str(folder), expected="a finished run (metrics.json)", found="none", fix="Train it first.")
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Run(folder, json.loads(path.read_text(encoding="utf-8")), config)


def tell_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one label with other options are variants, named after the experiment's folder, not repetitions."""
    settings: defaultdict[tuple[tuple[str, ...], str], set[str]] = defaultdict(set)
    for run in runs:
        settings[run.experiment, run.label].add(run.settings)
    return [
        replace(run, variant=run.folder.resolve().parents[1].name)
        if len(settings[run.experiment, run.label]) > 1
        else run
        for run in runs
    ]


def tidy(runs: Sequence[Run]) -> pl.DataFrame:
    """All scores: one row a run, group of samples and metric."""
    return pl.DataFrame([row for run in runs for row in run.rows()], infer_schema_length=None)


def published(dataset: str, modalities: Sequence[str], mask: dict[str, Any] | None) -> list[tuple[str, float, float]]:
    """The paper's accuracy (method, mean, sd in %) for this view, where it has a row for it."""
    if dataset not in PAPER_DATASETS:
        return []
    name, letters = PAPER_DATASETS[dataset]
    if not set(modalities) <= set(letters):
        return []
    view = "+".join(letter for m, letter in letters.items() if m in modalities)
    drop = "natural" if mask is None else f"{mask['p']:g}"
    frame = pl.read_csv(PUBLISHED, schema_overrides={"drop": pl.String}).filter(
        pl.col("table").is_in(["table1", "table2"]), dataset=name, modalities=view, metric="Acc", drop=drop
    )
    return list(frame.select("method", "mean", "std").iter_rows())


def _percent(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{100 * mean:.2f}"
    sd = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{100 * mean:.2f} ± {100 * sd:.2f}"


def _cell(frame: pl.DataFrame) -> dict[str, str]:
    known = frame.drop_nulls("value")
    if known.is_empty():
        return {"text": "–", "interval": ""}
    bounds = known.select(pl.col("low", "high").mean()).row(0)
    interval = "" if None in bounds else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
    return {"text": _percent(known["value"].to_list()), "interval": interval}


def _svg(figure: Figure, path: Path) -> Markup:
    """Save a figure as SVG and return it for inlining; the same figure gives the same bytes."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    write_text(path, text)
    return Markup(text[text.index("<svg") :])


def _routing_figure(run: Run) -> Figure | None:
    path = run.folder / "routing.parquet"
    if not path.is_file():
        return None
    frame = pl.read_parquet(path)
    order = frame.select("expert", "pool").unique().sort("expert")
    number: defaultdict[str, int] = defaultdict(int)
    names = {}
    for expert, pool in order.iter_rows():
        number[pool] += 1
        names[expert] = f"{pool}_{number[pool]}"
    total = pl.col("weight").sum().over("target", "combination")
    shown = frame.with_columns(
        pl.col("expert").replace_strict(names, return_dtype=pl.String),
        inputs="combination",
        share=pl.col("weight") / total,
    )
    return plots.routing(shown, list(names.values()))


def _experiment(key: tuple[str, ...], runs: list[Run], scores: pl.DataFrame, figures: Path) -> dict[str, Any]:
    dataset, store_id, origin, task, scheme, view, missingness = key
    anchor = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join((dataset, store_id, task, scheme, view, missingness)))
    overall = scores.filter(by="all")
    methods = list(dict.fromkeys(run.label for run in runs))
    rows = []
    for method in methods:
        mine = overall.filter(method=method)
        rows.append(
            {"method": method, "seeds": mine["seed"].n_unique(), "reference": False,
             "cells": [_cell(mine.filter(metric=m)) for m in METRICS]}
        )  # fmt: skip
    if origin == "export":
        for name, mean, sd in published(dataset, view.split("+"), runs[0].metrics["mask"]):
            cells = [{"text": f"{mean:.2f} ± {sd:.2f}", "interval": ""}] + [{"text": "", "interval": ""}] * 5
            rows.append({"method": f"{name}, as published", "seeds": 3, "reference": True, "cells": cells})
    by_combination = scores.filter(by="combination", metric="accuracy")
    sizes = dict(by_combination.group_by("group").agg(pl.col("n").mean().round().cast(int)).iter_rows())
    combinations = sorted(sizes, key=lambda c: (-c.count("+"), c))
    pictures = []
    if runs[0].metrics["mask"]:
        svg = _svg(plots.availability(sizes, view.split("+")), figures / f"{anchor}-availability.svg")
        pictures.append({"svg": svg, "caption": "What the test samples have left after modalities were hidden."})
    histories = {f"{r.label}, seed {r.metrics['seed']}": r.folder / "history.parquet" for r in runs}
    curves = {name: _history(path, runs[0]) for name, path in histories.items() if path.is_file()}
    if curves:
        svg = _svg(plots.learning_curves(curves), figures / f"{anchor}-learning.svg")
        pictures.append({"svg": svg, "caption": "Learning curves; the dot marks the epoch whose weights were kept."})
    # One picture an experiment: the first of its runs that routes at all (the majority class does not).
    for run in [r for r in runs if (r.folder / "routing.parquet").is_file()][:1]:
        figure = _routing_figure(run)
        if figure is not None:
            pictures.append(
                {"svg": _svg(figure, figures / f"{anchor}-routing.svg"),
                 "caption": f"Routing of {run.label}, seed {run.metrics['seed']}: which experts served a missing "
                            "modality, given the observed ones. A target's tokens may visit its own experts and the "
                            "shared ones only."}
            )  # fmt: skip
    mask = runs[0].metrics["mask"]
    numbers = sorted({run.metrics["mask"]["seed"] for run in runs}) if mask else []
    seeds = f"mask seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    hidden = f", modalities hidden: {missingness} ({seeds})" if mask else ", nothing hidden"
    n = runs[0].metrics["n"]
    return {
        "anchor": anchor,
        "heading": f"{dataset}: {task}, {view}",
        "origin": origin,
        "description": f"Split {scheme} ({n['train']} / {n['val']} / {n['test']} samples with label){hidden}; "
                       f"store {store_id}.",
        "rows": rows,
        "n_test": n["test"],
        "combinations": [f"{c} (n={sizes[c]})" for c in combinations] if len(combinations) > 1 else [],
        "combination_rows": [
            {"method": m, "cells": [_cell(by_combination.filter(method=m, group=c))["text"] for c in combinations]}
            for m in methods
        ],
        "figures": pictures,
    }  # fmt: skip


def _history(path: Path, run: Run) -> pl.DataFrame:
    frame = pl.read_parquet(path)
    metric = run.config["common"]["select_metric"]
    score = -pl.col("val_loss") if metric == "loss" else pl.col(f"val_{metric}")
    return frame.select("epoch", "train_loss", "val_loss", score.alias("val_score"), "best")


def _store(store: Store, figures: Path) -> dict[str, Any]:
    m = store.manifest
    names = [modality.name for modality in store.modalities]
    pictures = [
        (plots.availability(m.pattern_counts, names), "availability",
         "Which samples have which modalities. Each column is a combination: dots below, number of samples above."),
        (plots.cohort_flow(store.attrition), "cohort", "Cohort flow: who was left out at which step, and why."),
    ]  # fmt: skip
    suspicious = audit(store, threshold=AUDIT_THRESHOLD) if store.task().kind == "classification" else None
    return {
        "audit": None if suspicious is None else suspicious.head(20).to_dicts(),
        "n_audit": 0 if suspicious is None else len(suspicious),
        "audit_threshold": AUDIT_THRESHOLD,
        "dataset": m.dataset,
        "title": m.title,
        "origin": m.origin,
        "description": f"{m.n_samples} samples of {m.n_subjects} subjects; release {m.release}; store {m.store_id}; "
                       f"mrpipe {m.mrpipe_version}, code {m.code_hash}.",
        "modalities": [
            {"name": x.name, "kind": x.kind, "shape": "×".join(map(str, x.shape)), "rows": entry["rows"],
             "encoder": x.encoder or "–"}
            for x, entry in zip(store.modalities, m.modalities, strict=True)
        ],
        "figures": [
            {"svg": _svg(figure, figures / f"{m.dataset}-{m.store_id}-{name}.svg"), "caption": caption}
            for figure, name, caption in pictures
        ],
    }  # fmt: skip


def write_report(runs: Sequence[Path], stores: Sequence[Path], out: Path) -> pl.DataFrame:
    """Write the page, `results.csv` and `figures/*.svg` beside it; returns the tidy scores."""
    finished = tell_apart([read_run(folder) for folder in runs])
    scores = tidy(finished)
    experiments: defaultdict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in finished:
        experiments[run.experiment].append(run)
    figures = out.parent / "figures"
    key_columns = list(KEYS[:7])
    sections = []
    for key, members in experiments.items():
        same = pl.all_horizontal([pl.col(c) == v for c, v in zip(key_columns, key, strict=True)])
        sections.append(_experiment(key, members, scores.filter(same), figures))
    pages = [_store(open_store(path), figures) for path in stores]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE.read_text("utf-8"))
    html = template.render(
        title="Results",
        n_runs=len(finished),
        experiments=sections,
        stores=pages,
        metrics=[METRIC_NAMES[m] for m in METRICS],
        combination_metric="accuracy %",
        any_simulated=any(x["origin"] == "simulated" for x in [*sections, *pages]),
    )
    write_text(out.parent / "results.csv", scores.write_csv())
    write_text(out, html)
    return scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m model report`."""
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="RUN", help="finished run folders")
    parser.add_argument("--stores", type=Path, nargs="*", default=[], metavar="STORE", help="stores to describe")
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE", help="HTML file to write")


def run(args: argparse.Namespace) -> None:
    """`python -m model report`."""
    write_report(args.runs, args.stores, args.out)
    print(args.out)
