"""Section of an experiment (runs with the same data, view and missingness): scores, answer, cost and figures."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from moe_retriever.catalogue import about
from moe_retriever.evaluation.paired import Comparison, Predicted
from moe_retriever.evaluation.run_folders import tested
from moe_retriever.metrics import METRIC, Metric, kinds_of, names_of
from moe_retriever.plots import plots
from moe_retriever.report.drawing import Picture, draw
from moe_retriever.report.runs import EXPERIMENT, ReportedRun, masked, missingness_of, strongest_control
from moe_retriever.suites.answer import Compared
from moe_retriever.suites.published import method_title, published_rows, task_title
from moe_retriever.suites.render import with_sd
from moe_retriever.suites.spec import REFERENCE
from mrpipe.privacy import SMALL
from mrpipe.reading import read_frame

# Numbers are shown for all experiments, figures only for the first ones.
MAX_DRAWN = 12
MAX_CURVES = 8
EMPTY = {"text": "", "interval": ""}


def _digits(frame: pl.DataFrame, metric: Metric) -> int:
    """Decimals of a column of scores: as many as its widest interval carries."""
    return metric.digits(frame.select(((pl.col("high") - pl.col("low")) * metric.factor).max()).item())


def _cell(frame: pl.DataFrame, metric: Metric, digits: int) -> dict[str, str]:
    """Mean over seeds with its interval; neither is shown if it is undefined for one of them."""
    undefined = frame["value"].null_count()
    if undefined or frame.is_empty():
        some = f" (undefined for {undefined} of {len(frame)} seeds)" if undefined < len(frame) else ""
        return {"text": f"–{some}", "interval": ""}
    bounds = frame.drop_nulls(["low", "high"]).select(pl.col("low", "high").mean() * metric.factor).row(0)
    interval = "" if frame["low"].null_count() else f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
    values = (frame["value"] * metric.factor).to_list()
    return {"text": with_sd(fmean(values), stdev(values) if len(values) > 1 else None, digits), "interval": interval}


def anchor_of(key: tuple[str, ...]) -> str:
    """Anchor of an experiment on the page, also used in the names of its figures."""
    named = [part for name, part in zip(EXPERIMENT, key, strict=True) if part and name != "origin"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(named))


def experiment_title(run: ReportedRun) -> str:
    """Data, task, modalities and non-default transforms of an experiment, from one of its runs."""
    view = " + ".join(run.metrics["modalities"])
    transforms = f" ({run.experiment[-1]})" if run.transforms else ""
    return f"{run.dataset}: {task_title(run.metrics['task'])} from {view}{transforms}"


def of_experiment(scores: pl.DataFrame, key: tuple[str, ...]) -> pl.DataFrame:
    return scores.filter(pl.all_horizontal([pl.col(c) == v for c, v in zip(EXPERIMENT, key, strict=True)]))


def _rows(runs: Sequence[ReportedRun], overall: pl.DataFrame, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row per method, the majority class unless it is one of the runs, and the published values."""
    rows: list[dict[str, Any]] = []
    first = runs[0].metrics
    paper = published_rows(first["dataset"], first["modalities"], first["mask"]) if first["origin"] == "export" else {}
    beside = {m for printed in paper.values() for m in printed}
    digits = {m: 2 if m in beside else _digits(overall.filter(metric=m), METRIC[m]) for m in metrics}
    for label, method in {run.label: run.method for run in runs}.items():
        mine = overall.filter(method=label)
        cells = [_cell(mine.filter(metric=m), METRIC[m], digits[m]) for m in metrics]
        kind = "control" if about(method).control else "ours"
        rows.append({"method": method_title(label), "seeds": mine["seed"].n_unique(), "kind": kind, "cells": cells})
    majority = first["majority"]
    if "majority" not in {run.method for run in runs} and majority["accuracy"] is not None:
        text = f"{100 * majority['accuracy']:.{digits[metrics[0]]}f}"
        cells = [{"text": text, "interval": ""}, *[EMPTY] * (len(metrics) - 1)]
        name = f"majority class ({majority['class']})"
        rows.append({"method": name, "seeds": "", "kind": "control", "cells": cells})
    for name, printed in paper.items():
        if printed.keys().isdisjoint(metrics):
            continue
        known = {m: f"{printed[m].mean:.2f} ± {printed[m].std:.2f}" if m in printed else "" for m in metrics}
        cells = [{"text": text, "interval": ""} for text in known.values()]
        rows.append({"method": f"{name}, as published", "seeds": 3, "kind": "published", "cells": cells})
    return rows


def _by_group(scores: pl.DataFrame, by: str, labels: Sequence[str], metric: Metric) -> dict[str, Any]:
    """Sizes of groups, and one metric by group; for modality combinations also the worst one and the mean."""
    mean_n = pl.col("n").mean().fill_null(0).round().cast(int)
    sizes = dict(scores.filter(by=by).group_by("group", maintain_order=True).agg(mean_n).iter_rows())
    texts = {g: f"{g.replace('+', ' + ')} (n = {n:,})".replace("= 0)", f"< {SMALL})") for g, n in sizes.items()}
    columns = {text: scores.filter(by=by, group=g) for g, text in texts.items()}
    if by == "combination":
        columns |= {"worst": scores.filter(by="worst_pattern"), "mean": scores.filter(by="mean_over_patterns")}
    digits = _digits(scores.filter(by=by), metric)
    names = [method_title(m) for m in labels]
    cells = [[_cell(frame.filter(method=m), metric, digits)["text"] for frame in columns.values()] for m in labels]
    # A long table is easier to read, and to print, than a wide one.
    long = len(columns) > len(labels)
    header, keys = (names, list(columns)) if long else (list(columns), names)
    rows = dict(zip(keys, zip(*cells, strict=True) if long else cells, strict=True))
    first = "method" if not long else "modalities" if by == "combination" else by
    return {"by": by, "sizes": sizes, "first": first, "columns": header, "rows": rows}


def _routing_figure(run: ReportedRun) -> Figure:
    # This import loads torch, which a page without runs does not need.
    from moe_retriever.evaluation.routing import expert_names

    frame = read_frame(run.folder / "routing.parquet", ["target", "combination", "expert", "pool", "weight"])
    experts = frame.select("expert", "pool").unique().sort("expert")
    names = expert_names(experts["pool"].to_list())
    total = pl.col("weight").sum().over("target", "combination")
    named = pl.col("expert").replace_strict(experts["expert"], names, return_dtype=pl.String)
    shown = frame.with_columns(named, inputs="combination", share=pl.col("weight") / total)
    return plots.routing(shown, names)


def _pictures(runs: Sequence[ReportedRun], sizes: dict[str, int], anchor: str, figures: Path) -> list[Picture]:
    pictures = []

    def add(kind: str, figure: Figure, label: str, caption: str) -> None:
        pictures.append(draw(figure, figures / f"{anchor}-{kind}.svg", label=label, caption=caption))

    if runs[0].metrics["mask"]:
        label = "Test samples by remaining modalities; the table by observed modalities has the same numbers."
        caption = "Modalities of the test samples after the simulated missingness."
        add("availability", plots.availability(sizes, runs[0].metrics["modalities"]), label, caption)
    trained = [run for run in runs if (run.folder / "history.parquet").is_file()]
    # If there are many runs, only the first seed of each method is drawn.
    drawn = trained if len(trained) <= MAX_CURVES else list({r.label: r for r in reversed(trained)}.values())[::-1]
    drawn = drawn[:MAX_CURVES]
    if drawn:
        curves = {f"{method_title(r.label)}, seed {r.seed}": read_frame(r.folder / "history.parquet") for r in drawn}
        selected = {run.config["common"]["select_metric"] for run in drawn}
        figure = plots.learning_curves(curves, score=selected.pop() if len(selected) == 1 else "score")
        label = "Training loss, validation loss and validation score by epoch, one line per run."
        of = f" {len(drawn)} of {len(trained)} runs are shown." if len(drawn) < len(trained) else ""
        add("learning", figure, label, f"Learning curves. Dots mark the selected epochs.{of}")
    # One figure per experiment, for the first run of a method with routing.
    for run in [r for r in runs if (r.folder / "routing.parquet").is_file()][:1]:
        name = method_title(run.label)
        label = f"Share of the gate weight of {name} by expert, missing modality and observed modalities."
        pooled = run.options.get("context_routing", True)
        visited = "only the shared experts and those of the missing modality" if pooled else "any expert"
        caption = f"Expert routing of {name}, seed {run.seed}: share of the gate weight. Tokens visit {visited}."
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
    first = runs[0].metrics
    kinds = kinds_of(len(first["classes"]), first["convention"])
    one = METRIC["mae" if "regression" in kinds else "accuracy"]
    of_one = scores.filter(metric="mae" if "regression" in kinds else "accuracy")
    grouped = [_by_group(of_one, by, labels, one) for by in ("combination", "subgroup")]
    anchor = anchor_of(key)
    return {
        **{"anchor": anchor, "origin": origin, "scheme": scheme, "store_id": store_id, "drawn": drawn},
        "heading": experiment_title(runs[0]),
        "missingness": missingness_of(runs),
        "mask_seeds": sorted({run.metrics["mask"]["seed"] for run in runs}) if first["mask"] else [],
        "n": first["n"],
        "n_without": sum(first["n_without_modality"].values()),
        "metrics": [METRIC[m].titled for m in names_of(kinds)],
        "rows": _rows(runs, scores.filter(by="all"), names_of(kinds)),
        "one": one.titled[0].upper() + one.titled[1:],
        "grouped": [table for table in grouped if len(table["sizes"]) > 1],
        "pictures": _pictures(runs, grouped[0]["sizes"], anchor, figures) if drawn else [],
    }


def compare(runs: Sequence[ReportedRun], *, named: bool) -> Compared:
    """Comparison of the runs of an experiment with MoE-Retriever, or else with the first method that is no control.

    Args:
        named: whether the sentence names task and modalities, to tell experiments on the same data apart.
    """
    first = runs[0].metrics
    found: dict[str, dict[int, Predicted]] = {}
    for run in runs:
        found.setdefault(method_title(run.label), {})[run.seed] = tested(run.folder)
    reference = min(runs, key=lambda run: (run.method != REFERENCE, about(run.method).control))
    majority, accuracy = (first["majority"][k] for k in ("class", "accuracy"))
    metric = "mae" if "regression" in kinds_of(len(first["classes"])) else "accuracy"
    return Compared(
        data=runs[0].dataset,
        view=f"{task_title(first['task'])} from {' + '.join(first['modalities'])}" if named else "",
        n=first["n"]["test"],
        missingness=masked(runs),
        simulated=first["origin"] == "simulated",
        metric=metric,
        comparison=Comparison(found),
        controls=frozenset(method_title(run.label) for run in runs if about(run.method).control),
        reference=None if about(reference.method).control else method_title(reference.label),
        strongest=(label := strongest_control(runs, metric)) and method_title(label),
        majority=None if accuracy is None else (str(majority), accuracy),
    )


def costs_of(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One entry per method: parameters, devices, and epochs, times and samples per second as means over seeds."""
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        mine = [run for run in runs if run.label == label]
        measured = {
            "epochs": [run.metrics["training"].get("epochs") for run in mine],
            **{name: [run.cost.get(name) for run in mine] for name in ("epoch_seconds", "train_seconds")},
            "train_rate": [run.cost.get("samples_per_second") for run in mine],
            "test_rate": [run.test_cost.get("samples_per_second") for run in mine],
        }
        row = {k: pl.Series(values, dtype=pl.Float64).mean() for k, values in measured.items()}
        row |= {"method": method_title(label), "seeds": len(mine)}
        row["parameters"] = mine[0].metrics["training"]["parameters"]
        rows.append(row | {"device": ", ".join(sorted({_device(run) for run in mine if run.cost}))})
    return rows


def _device(run: ReportedRun) -> str:
    threads = run.cost.get("threads")
    return f"{str(run.cost['device']).replace('cpu', 'CPU')}, {threads} thread{'' if threads == 1 else 's'}"
