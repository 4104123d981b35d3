"""Figures of clinical performance: ROC, precision–recall and decision curves with bands, and calibration."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from moe_retriever.plots.plots import FAINT, INK, PALETTE, blank, plain

# Name of a curve → title of the figure, and labels of its axes.
FIGURES = {
    "roc": ("ROC curves", "1 − specificity", "sensitivity"),
    "precision_recall": ("Precision–recall curves", "recall (sensitivity)", "precision (PPV)"),
    "calibration": ("Calibration", "predicted probability", "observed share"),
    "net_benefit": ("Decision curves", "threshold probability", "net benefit"),
}


def clinical_figure(name: str, methods: Mapping[str, pl.DataFrame]) -> Figure:
    """One of `FIGURES`, with bands of the intervals of each method (`moe_retriever.evaluation.clinical.SCHEMA`)."""
    overall = pl.concat(methods.values()).filter(by="overall", metric="prevalence")
    prevalence = fmean(overall["value"].drop_nulls().to_list() or [0.0])
    figure = blank(2.75, 3.05)
    axes = figure.add_subplot()
    style: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": ":"}
    x = np.linspace(0, 0.98, 50)
    lines = {"precision_recall": np.full(50, prevalence), "net_benefit": prevalence - (1 - prevalence) * x / (1 - x)}
    axes.plot(x, lines.get(name, x), **style)
    for number, (method, frame) in enumerate(methods.items()):
        style = {"color": PALETTE[number % len(PALETTE)], "label": method, "linewidth": 1.4}
        if name == "calibration":
            of = frame.filter(by="bin")
            error = [(of["value"] - of["low"]).clip(0), (of["high"] - of["value"]).clip(0)]
            axes.errorbar(of["x"], of["value"], error, marker="os^D"[number % 4], markersize=4, elinewidth=0.8, **style)
        else:
            of = frame.filter(by="curve", group=name)
            axes.fill_between(of["x"], of["low"], of["high"], color=style["color"], alpha=0.16, linewidth=0)
            axes.plot(of["x"], of["value"], **style)
    low, high = (-0.25 * prevalence, 1.1 * prevalence) if name == "net_benefit" else (0, 1)
    axes.set(xlim=(0, 1), ylim=(low, max(high, 0.01)), xlabel=FIGURES[name][1], ylabel=FIGURES[name][2])
    axes.grid(color=FAINT, linewidth=0.4)
    plain(axes)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    return figure
