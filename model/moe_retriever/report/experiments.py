"""An experiment of the page: runs on the same data, view and missingness, their scores and their pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from moe_retriever.data.scores import METRICS
from moe_retriever.plots import plots
from moe_retriever.report.drawing import Picture, draw
from moe_retriever.report.references import about
from moe_retriever.report.runs import EXPERIMENT, ReportedRun
from moe_retriever.suites.published import published_rows
from mrpipe.store.masks import name_parts

METRIC_NAMES = {
    "accuracy": "accuracy %",
    "balanced_accuracy": "balanced acc. %",
    "macro_f1": "macro-F1 %",
    "auroc": "AUROC %",
    "auprc": "AUPRC %",
    "ece": "ECE %",
}
# A page of hundreds of experiments has the numbers of all and the pictures of so many.
MAX_DRAWN = 12
MAX_CURVES = 8
EMPTY = {"text": "", "interval": ""}


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.2f}"


def _cell(frame: pl.DataFrame) -> dict[str, str]:
    known = frame.drop_nulls("value")
    if known.is_empty():
        return {"text": "–", "interval": ""}
    bounds = known.select(pl.col("low", "high").mean()).row(0)
    interval = "" if None in bounds else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
    return {"text": _percent(known["value"].to_list()), "interval": interval}


def anchor_of(key: tuple[str, ...]) -> str:
    """Name of an experiment's place on the page and of its pictures."""
    named = [part for name, part in zip(EXPERIMENT, key, strict=True) if part and name != "origin"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(named))


def of_experiment(scores: pl.DataFrame, key: tuple[str, ...]) -> pl.DataFrame:
    """The tidy scores of one experiment."""
    return scores.filter(pl.all_horizontal([pl.col(c) == v for c, v in zip(EXPERIMENT, key, strict=True)]))


def _rows(runs: Sequence[ReportedRun], overall: pl.DataFrame) -> list[dict[str, Any]]:
    """A row a method, the majority class if no run is that already, and the published values."""
    rows: list[dict[str, Any]] = []
    for label, method in {run.label: run.method for run in runs}.items():
        mine = overall.filter(method=label)
        cells = [_cell(mine.filter(metric=m)) for m in METRICS]
        kind = "control" if about(method).control else "ours"
        rows.append({"method": label, "seeds": mine["seed"].n_unique(), "kind": kind, "cells": cells})
    majority = runs[0].metrics["majority"]
    if "majority" not in {run.method for run in runs} and majority["accuracy"] is not None:
        cells = [{"text": f"{100 * majority['accuracy']:.2f}", "interval": ""}, *[EMPTY] * (len(METRICS) - 1)]
        rows.append({"method": f"always {majority['class']}", "seeds": "", "kind": "control", "cells": cells})
    first = runs[0].metrics
    if first["origin"] == "export":
        for name, printed in published_rows(first["dataset"], first["modalities"], first["mask"]).items():
            known = {m: f"{printed[m].mean:.2f} ± {printed[m].std:.2f}" if m in printed else "" for m in METRICS}
            cells = [{"text": text, "interval": ""} for text in known.values()]
            rows.append({"method": f"{name}, as published", "seeds": 3, "kind": "published", "cells": cells})
    return rows


def _routing_figure(run: ReportedRun) -> Figure:
    # It loads torch, which a page without runs does not need.
    from moe_retriever.evaluation.routing import expert_names

    frame = pl.read_parquet(run.folder / "routing.parquet")
    experts = frame.select("expert", "pool").unique().sort("expert")
    names = expert_names(experts["pool"].to_list())
    total = pl.col("weight").sum().over("target", "combination")
    shown = frame.with_columns(
        pl.col("expert").replace_strict(experts["expert"], names, return_dtype=pl.String),
        inputs="combination",
        share=pl.col("weight") / total,
    )
    return plots.routing(shown, names)


def _pictures(runs: Sequence[ReportedRun], sizes: dict[str, int], anchor: str, figures: Path) -> list[Picture]:
    pictures = []
    first, view = runs[0], runs[0].metrics["modalities"]
    if first.metrics["mask"]:
        markup = draw(
            plots.availability(sizes, view),
            figures / f"{anchor}-availability.svg",
            label="Number of test samples by the modalities that were left to them; the table by observed modalities "
            "says the same.",
        )
        pictures.append(Picture(markup, "What the test samples have left after modalities were hidden."))
    trained = [run for run in runs if (run.folder / "history.parquet").is_file()]
    # Where there are many, the first seed of each method.
    drawn = trained if len(trained) <= MAX_CURVES else list({r.label: r for r in reversed(trained)}.values())[::-1]
    drawn = drawn[:MAX_CURVES]
    if drawn:
        curves = {f"{r.label}, seed {r.seed}": pl.read_parquet(r.folder / "history.parquet") for r in drawn}
        selected = {run.config["common"]["select_metric"] for run in drawn}
        markup = draw(
            plots.learning_curves(curves, score=selected.pop() if len(selected) == 1 else "score"),
            figures / f"{anchor}-learning.svg",
            label="Training and validation loss and validation score by epoch, a line a run.",
        )
        of = f" {len(drawn)} of {len(trained)} runs." if len(drawn) < len(trained) else ""
        pictures.append(Picture(markup, f"Learning curves; the dot marks the epoch whose weights were kept.{of}"))
    # One picture an experiment: the first of its runs that routes at all (the majority class does not).
    for run in [r for r in runs if (r.folder / "routing.parquet").is_file()][:1]:
        markup = draw(
            _routing_figure(run),
            figures / f"{anchor}-routing.svg",
            label=f"Share of the routed weight of {run.label} by expert, missing modality and observed ones.",
        )
        caption = (
            f"Routing of {run.label}, seed {run.seed}: which experts served a missing modality, given the observed "
            "ones. A target's tokens may visit its own experts and the shared ones only."
        )
        pictures.append(Picture(markup, caption))
    return pictures


def describe_experiment(
    key: tuple[str, ...], runs: Sequence[ReportedRun], scores: pl.DataFrame, figures: Path, *, drawn: bool = True
) -> dict[str, Any]:
    """Everything that the template shows of an experiment.

    Args:
        scores: tidy scores of these runs.
        drawn: draw its pictures, and save them in `figures`.
    """
    dataset, store_id, origin, task, scheme, view, missingness, transforms = key
    labels = list(dict.fromkeys(run.label for run in runs))
    by_combination = scores.filter(by="combination", metric="accuracy")
    sizes = dict(by_combination.group_by("group").agg(pl.col("n").mean().round().cast(int)).iter_rows())
    combinations = sorted(sizes, key=lambda c: (-c.count("+"), c))
    first = runs[0].metrics
    mask_seeds = sorted({run.metrics["mask"]["seed"] for run in runs}) if first["mask"] else []
    anchor = anchor_of(key)
    return {
        "anchor": anchor,
        "heading": f"{dataset}: {task} from {view.replace('+', ' + ')}{f' ({transforms})' if transforms else ''}",
        "dataset": dataset,
        "origin": origin,
        "task": task,
        "scheme": scheme,
        "store_id": store_id,
        "modalities": name_parts(view),
        "missingness": missingness,
        "mask_seeds": mask_seeds,
        "seeds": sorted({run.seed for run in runs}),
        "n": first["n"],
        "n_without": sum(first["n_without_modality"].values()),
        "rows": _rows(runs, scores.filter(by="all")),
        "combinations": [f"{c} (n={sizes[c]})" for c in combinations] if len(combinations) > 1 else [],
        "combination_rows": [
            {"method": m, "cells": [_cell(by_combination.filter(method=m, group=c))["text"] for c in combinations]}
            for m in labels
        ],
        "drawn": drawn,
        "pictures": _pictures(runs, sizes, anchor, figures) if drawn else [],
    }
