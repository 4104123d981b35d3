"""Section of an experiment (runs with the same data, view and missingness): scores and figures."""

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
from moe_retriever.report.runs import EXPERIMENT, ReportedRun, missingness_of
from moe_retriever.suites.published import published_rows

# Numbers are shown for all experiments, figures only for the first ones.
MAX_DRAWN = 12
MAX_CURVES = 8
EMPTY = {"text": "", "interval": ""}


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.2f}"


def _cell(frame: pl.DataFrame) -> dict[str, str]:
    """Mean over seeds with its interval; neither is shown if it is undefined for one of them."""
    undefined = frame["value"].null_count()
    if undefined or frame.is_empty():
        some = f" (undefined for {undefined} of {len(frame)} seeds)" if undefined < len(frame) else ""
        return {"text": f"–{some}", "interval": ""}
    bounds = frame.drop_nulls(["low", "high"]).select(pl.col("low", "high").mean() * 100).row(0)
    interval = "" if frame["low"].null_count() else "[{:.1f}, {:.1f}]".format(*bounds)
    return {"text": _percent(frame["value"].to_list()), "interval": interval}


def anchor_of(key: tuple[str, ...]) -> str:
    """Anchor of an experiment on the page, also used in the names of its figures."""
    named = [part for name, part in zip(EXPERIMENT, key, strict=True) if part and name != "origin"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(named))


def experiment_title(run: ReportedRun) -> str:
    """Data, task, modalities and non-default transforms of an experiment, from one of its runs."""
    view = " + ".join(run.metrics["modalities"])
    transforms = f" ({run.experiment[-1]})" if run.transforms else ""
    return f"{run.dataset}: {run.metrics['task'].replace('_', ' ')} from {view}{transforms}"


def of_experiment(scores: pl.DataFrame, key: tuple[str, ...]) -> pl.DataFrame:
    """The tidy scores of one experiment."""
    return scores.filter(pl.all_horizontal([pl.col(c) == v for c, v in zip(EXPERIMENT, key, strict=True)]))


def _rows(runs: Sequence[ReportedRun], overall: pl.DataFrame) -> list[dict[str, Any]]:
    """One row per method, the majority class unless it is one of the runs, and the published values."""
    rows: list[dict[str, Any]] = []
    for label, method in {run.label: run.method for run in runs}.items():
        mine = overall.filter(method=label)
        cells = [_cell(mine.filter(metric=m)) for m in METRICS]
        kind = "control" if about(method).control else "ours"
        rows.append({"method": label, "seeds": mine["seed"].n_unique(), "kind": kind, "cells": cells})
    majority = runs[0].metrics["majority"]
    if "majority" not in {run.method for run in runs} and majority["accuracy"] is not None:
        cells = [{"text": f"{100 * majority['accuracy']:.2f}", "interval": ""}, *[EMPTY] * (len(METRICS) - 1)]
        name = f"majority class ({majority['class']})"
        rows.append({"method": name, "seeds": "", "kind": "control", "cells": cells})
    first = runs[0].metrics
    if first["origin"] == "export":
        for name, printed in published_rows(first["dataset"], first["modalities"], first["mask"]).items():
            known = {m: f"{printed[m].mean:.2f} ± {printed[m].std:.2f}" if m in printed else "" for m in METRICS}
            cells = [{"text": text, "interval": ""} for text in known.values()]
            rows.append({"method": f"{name}, as published", "seeds": 3, "kind": "published", "cells": cells})
    return rows


def _routing_figure(run: ReportedRun) -> Figure:
    # This import loads torch, which a page without runs does not need.
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

    def add(kind: str, figure: Figure, label: str, caption: str) -> None:
        pictures.append(draw(figure, figures / f"{anchor}-{kind}.svg", label=label, caption=caption))

    if runs[0].metrics["mask"]:
        label = "Number of test samples for each combination of remaining modalities; the table of accuracies by "
        label += "observed modalities has the same numbers."
        caption = "Modalities of the test samples after the simulated missingness."
        add("availability", plots.availability(sizes, runs[0].metrics["modalities"]), label, caption)
    trained = [run for run in runs if (run.folder / "history.parquet").is_file()]
    # If there are many runs, only the first seed of each method is drawn.
    drawn = trained if len(trained) <= MAX_CURVES else list({r.label: r for r in reversed(trained)}.values())[::-1]
    drawn = drawn[:MAX_CURVES]
    if drawn:
        curves = {f"{r.label}, seed {r.seed}": pl.read_parquet(r.folder / "history.parquet") for r in drawn}
        selected = {run.config["common"]["select_metric"] for run in drawn}
        figure = plots.learning_curves(curves, score=selected.pop() if len(selected) == 1 else "score")
        label = "Training loss, validation loss and validation score by epoch, one line per run."
        of = f" {len(drawn)} of {len(trained)} runs are shown." if len(drawn) < len(trained) else ""
        add("learning", figure, label, f"Learning curves. Dots mark the selected epochs.{of}")
    # One figure per experiment, for the first run of a method with routing.
    for run in [r for r in runs if (r.folder / "routing.parquet").is_file()][:1]:
        label = f"Share of the gate weight of {run.label} by expert, missing modality and observed modalities."
        caption = (
            f"Expert routing of {run.label}, seed {run.seed}: share of the gate weight per expert, for each missing "
            "modality and combination of observed modalities. Tokens visit "
        )
        pooled = run.options.get("context_routing", True)
        caption += "only the shared experts and those of the missing modality." if pooled else "any expert."
        add("routing", _routing_figure(run), label, caption)
    return pictures


def describe_experiment(
    key: tuple[str, ...], runs: Sequence[ReportedRun], scores: pl.DataFrame, figures: Path, *, drawn: bool = True
) -> dict[str, Any]:
    """Template variables of an experiment.

    Args:
        scores: tidy scores of these runs.
        drawn: whether to draw figures and save them in `figures`.
    """
    _, store_id, origin, _, scheme, *_ = key
    labels = list(dict.fromkeys(run.label for run in runs))
    by_combination = scores.filter(by="combination", metric="accuracy")
    sizes = dict(by_combination.group_by("group").agg(pl.col("n").mean().round().cast(int)).iter_rows())
    combinations = sorted(sizes, key=lambda c: (-c.count("+"), c))
    first = runs[0].metrics
    anchor = anchor_of(key)
    return {
        **{"anchor": anchor, "origin": origin, "scheme": scheme, "store_id": store_id, "drawn": drawn},
        "heading": experiment_title(runs[0]),
        "missingness": missingness_of(runs),
        "mask_seeds": sorted({run.metrics["mask"]["seed"] for run in runs}) if first["mask"] else [],
        "seeds": sorted({run.seed for run in runs}),
        "n": first["n"],
        "n_without": sum(first["n_without_modality"].values()),
        "rows": _rows(runs, scores.filter(by="all")),
        "combinations": [f"{c.replace('+', ' + ')} (n = {sizes[c]:,})" for c in combinations if len(combinations) > 1],
        "combination_rows": [
            {"method": m, "cells": [_cell(by_combination.filter(method=m, group=c))["text"] for c in combinations]}
            for m in labels
        ],
        "pictures": _pictures(runs, sizes, anchor, figures) if drawn else [],
    }
