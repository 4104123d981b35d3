"""Pictures of stores and runs: availability patterns, cohort flow, learning curves, expert routing.

Each function takes frames and returns a matplotlib Figure; nothing here reads a file or keeps global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: told apart by readers with any colour vision, and in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
INK, FAINT = "#222222", "#C9CDD2"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_facecolor("white")
    return figure


def _plain(axes: object, *, grid: str | None = None) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)  # type: ignore[attr-defined]
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[attr-defined]
        axes.set_axisbelow(True)  # type: ignore[attr-defined]


def availability(observed: Mapping[str, int], names: Sequence[str], *, max_patterns: int = 20) -> Figure:
    """UpSet-style plot: bars of the modality combinations above the dots that say what is in them.

    Args:
        observed: combination (names joined by `+`) → number of samples.
        names: the modalities, in bit order.
        max_patterns: the most frequent ones are drawn; the rest is summed up in the title.
    """
    rows = sorted(observed.items(), key=lambda kv: (-kv[1], kv[0]))
    shown, rest = rows[:max_patterns], rows[max_patterns:]
    total = sum(observed.values())
    sets = [set(pattern.split("+")) for pattern, _ in shown]
    per_modality = [sum(n for pattern, n in rows if name in pattern.split("+")) for name in names]
    figure = _figure(2.6 + 0.55 * max(4, len(shown)), 2.6 + 0.34 * len(names))
    widths, heights = (1.5, 0.5 * max(4, len(shown))), (2.2, 0.34 * len(names))
    grid = figure.add_gridspec(2, 2, width_ratios=widths, height_ratios=heights)
    bars = figure.add_subplot(grid[0, 1])
    dots = figure.add_subplot(grid[1, 1], sharex=bars)
    totals = figure.add_subplot(grid[1, 0], sharey=dots)
    counts = [n for _, n in shown]
    bars.bar(range(len(shown)), counts, color=PALETTE[0], width=0.62)
    for x, n in enumerate(counts):
        bars.annotate(f"{n}\n{n / total:.0%}", (x, n), ha="center", va="bottom", fontsize=8, color=INK)
    bars.set_ylim(0, 1.28 * max(counts))
    bars.set_ylabel("samples")
    bars.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bars.tick_params(axis="x", length=0, labelbottom=False)
    _plain(bars)
    if rest:
        left = sum(n for _, n in rest)
        bars.set_title(f"{len(rest)} rarer combinations hold {left} samples", fontsize=8, loc="right")
    for x, members in enumerate(sets):
        present = [y for y, name in enumerate(names) if name in members]
        dots.scatter([x] * len(names), range(len(names)), s=46, color=FAINT, zorder=2)
        dots.plot([x] * len(present), present, "-", color=INK, linewidth=1.6, zorder=3)
        dots.scatter([x] * len(present), present, s=46, color=INK, zorder=4)
    dots.set_ylim(len(names) - 0.5, -0.5)
    dots.set_xlim(-0.6, max(4, len(shown)) - 0.4)
    dots.tick_params(axis="both", length=0, labelleft=False, labelbottom=False)
    totals.barh(range(len(names)), per_modality, color=PALETTE[5], height=0.55)
    totals.set_yticks(range(len(names)), names)
    totals.yaxis.tick_right()
    totals.tick_params(axis="y", length=0)
    totals.set_xlim(1.05 * total, 0)
    totals.set_xlabel("has it", fontsize=8)
    totals.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axes in (dots, totals):
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
    return figure


def cohort_flow(attrition: pl.DataFrame) -> Figure:
    """Who is in, and why the others are not: one bar a step of `attrition.parquet`."""
    steps = list(attrition.iter_rows(named=True))
    figure = _figure(7.2, 0.7 + 0.46 * len(steps))
    axes = figure.add_subplot()
    start = max(1, steps[0]["n_before"])
    for y, step in enumerate(steps):
        lost = step["n_before"] - step["n_after"]
        axes.barh(y, step["n_after"], color=PALETTE[0], height=0.6)
        axes.barh(y, lost, left=step["n_after"], color=PALETTE[1], height=0.6, alpha=0.75)
        label = f"{step['n_after']}" + (f"  (−{lost})" if lost else "")
        place = (step["n_before"], y)
        axes.annotate(label, place, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(steps)), [s["reason"] for s in steps])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * start)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("samples")
    axes.tick_params(axis="y", length=0)
    _plain(axes)
    axes.spines["left"].set_visible(False)
    return figure


def learning_curves(histories: Mapping[str, pl.DataFrame]) -> Figure:
    """Loss (training and validation) and the selection score per epoch, one line a run.

    Args:
        histories: name of the run → frame with `epoch, train_loss, val_loss, val_score`.
    """
    figure = _figure(7.6, 3.0)
    left, right = figure.subplots(1, 2)
    for number, (name, frame) in enumerate(histories.items()):
        color = PALETTE[number % len(PALETTE)]
        left.plot(frame["epoch"], frame["train_loss"], color=color, linewidth=1.5, label=name)
        left.plot(frame["epoch"], frame["val_loss"], color=color, linewidth=1.2, linestyle=(0, (3, 2)))
        right.plot(frame["epoch"], frame["val_score"], color=color, linewidth=1.5, label=name)
        best = int(frame["val_score"].arg_max() or 0)
        right.scatter(frame["epoch"][best], frame["val_score"][best], s=26, color=color, zorder=3)
    left.set_ylabel("loss (dashed: validation)")
    right.set_ylabel("validation score (dot: kept)")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _plain(axes, grid="y")
    right.legend(frameon=False, fontsize=8, loc="best")
    return figure


def routing(frame: pl.DataFrame, experts: Sequence[str]) -> Figure:
    """Which experts served which target: share of the routed weight by target and input combination.

    Args:
        frame: `target, inputs, expert, share`; shares of one (target, inputs) sum to 1.
        experts: names of all experts in order; those of a target are `<target>_1 …`, the shared ones `shared_1 …`.
    """
    pairs = sorted({(r["target"], r["inputs"]) for r in frame.iter_rows(named=True)})
    table = np.zeros((len(pairs), len(experts)))
    for row in frame.iter_rows(named=True):
        table[pairs.index((row["target"], row["inputs"])), experts.index(row["expert"])] = row["share"]
    figure = _figure(1.9 + 0.30 * len(experts), 1.5 + 0.36 * len(pairs))
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=max(float(table.max()), 1e-6), aspect="auto")
    axes.set_yticks(range(len(pairs)), [f"{target} ← {inputs}" for target, inputs in pairs])
    axes.set_xticks(range(len(experts)), experts, rotation=90, fontsize=7.5)
    groups = [e.rsplit("_", 1)[0] for e in experts]
    for x in range(1, len(groups)):
        if groups[x] != groups[x - 1]:
            axes.axvline(x - 0.5, color=INK, linewidth=0.8)
    axes.set_xlabel("expert")
    axes.set_ylabel("missing ← observed")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="share of weight", fraction=0.06, pad=0.02)
    return figure
