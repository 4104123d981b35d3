"""Figures of stores and runs: modality combinations, cohort selection, learning curves, routing, gradients, t-SNE.

Each function takes frames and returns a matplotlib Figure, which `save` writes. This module is stateless.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from moe_retriever.data.scores import METRIC_NAMES
from mrpipe.store.masks import name_parts
from mrpipe.store.parquet import replacing

# The palette of Okabe and Ito, distinguishable with any colour vision and in greyscale.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
mpl.rcParams["text.parse_math"] = False  # names may contain $
INK, FAINT = "#222222", "#C9CDD2"


def blank(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_facecolor("white")
    return figure


def plain(axes: Axes, *, grid: bool = False) -> None:
    """Remove the frame at the top and on the right, and draw a horizontal grid on request."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)


def availability(observed: Mapping[str, int], names: Sequence[str], *, max_patterns: int = 20) -> Figure:
    """UpSet plot: one bar per modality combination, above dots that mark its modalities.

    Args:
        observed: combination (names joined by `+`) → number of samples.
        names: the modalities, in bit order.
        max_patterns: number of combinations to draw, the most frequent first; a title summarises the others.
    """
    rows = sorted(observed.items(), key=lambda kv: (-kv[1], kv[0]))
    shown, rest = rows[:max_patterns], rows[max_patterns:]
    total = max(1, sum(observed.values()))
    sets = [set(name_parts(pattern)) for pattern, _ in shown]
    per_modality = [sum(n for pattern, n in rows if name in name_parts(pattern)) for name in names]
    figure = blank(2.6 + 0.55 * max(4, len(shown)), 2.6 + 0.34 * len(names))
    widths, heights = (1.5, 0.5 * max(4, len(shown))), (2.2, 0.34 * len(names))
    grid = figure.add_gridspec(2, 2, width_ratios=widths, height_ratios=heights)
    bars = figure.add_subplot(grid[0, 1])
    dots = figure.add_subplot(grid[1, 1], sharex=bars)
    totals = figure.add_subplot(grid[1, 0], sharey=dots)
    counts = [n for _, n in shown]
    bars.bar(range(len(shown)), counts, color=PALETTE[0], width=0.62)
    for x, n in enumerate(counts):
        share = "<1%" if 0 < n < 0.005 * total else f"{n / total:.0%}"
        bars.annotate(f"{n}\n{share}", (x, n), ha="center", va="bottom", fontsize=8, color=INK)
    bars.set_ylim(0, 1.28 * max([1, *counts]))
    bars.set_ylabel("samples")
    bars.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bars.tick_params(axis="x", length=0, labelbottom=False)
    plain(bars)
    if rest:
        left = sum(n for _, n in rest)
        bars.set_title(f"{len(rest)} rarer combinations ({left:,} samples) not shown", fontsize=8, loc="right")
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
    totals.set_xlabel("samples", fontsize=8)
    totals.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axes in (dots, totals):
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
    return figure


def cohort_flow(attrition: pl.DataFrame) -> Figure:
    """Remaining and excluded samples: one bar per step of `attrition.parquet`."""
    steps = list(attrition.iter_rows(named=True))
    figure = blank(7.2, 0.7 + 0.46 * len(steps))
    axes = figure.add_subplot()
    start = max(1, steps[0]["n_before"])
    for y, step in enumerate(steps):
        lost = step["n_before"] - step["n_after"]
        axes.barh(y, step["n_after"], color=PALETTE[0], height=0.6)
        axes.barh(y, lost, left=step["n_after"], color=PALETTE[1], height=0.6, alpha=0.75)
        label = f"{step['n_after']:,}" + (f"  (−{lost:,})" if lost else "")
        place = (step["n_before"], y)
        axes.annotate(label, place, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(steps)), [s["reason"] for s in steps])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * start)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("samples")
    axes.tick_params(axis="y", length=0)
    plain(axes)
    axes.spines["left"].set_visible(False)
    return figure


def learning_curves(histories: Mapping[str, pl.DataFrame], *, score: str = "score") -> Figure:
    """Training and validation loss and the selection score per epoch, one line per run.

    Args:
        histories: name of the run → frame with `epoch, train_loss, val_loss, val_score, best`; without validation
            samples, the scores are null or the validation columns are missing.
        score: name of the selection score.
    """
    figure = blank(7.6, 3.0)
    left, right = figure.subplots(1, 2)
    for number, (name, frame) in enumerate(histories.items()):
        color = PALETTE[number % len(PALETTE)]
        left.plot(frame["epoch"], frame["train_loss"], color=color, linewidth=1.5, label=name)
        if "val_loss" in frame.columns:
            left.plot(frame["epoch"], frame["val_loss"], color=color, linewidth=1.2, linestyle=(0, (3, 2)))
        right.plot(frame["epoch"], frame["val_score"], color=color, linewidth=1.5, label=name)
        kept = frame.filter("best")
        right.scatter(kept["epoch"], kept["val_score"], s=26, color=color, zorder=3)
        left.axvline(kept["epoch"].item(), color=color, linewidth=0.8, alpha=0.5)
    left.set_ylabel("loss (dashed: validation)")
    right.set_ylabel(f"validation {METRIC_NAMES.get(score, score)}\n(dot: selected epoch)")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        plain(axes, grid=True)
    right.legend(frameon=False, fontsize=8, loc="best")
    return figure


def routing(frame: pl.DataFrame, experts: Sequence[str]) -> Figure:
    """Share of the gate weight by expert, for each missing modality and combination of observed modalities.

    Args:
        frame: `target, inputs, expert, share`; shares of one (target, inputs) sum to 1.
        experts: names of all experts in order; those of a target are `<target>_1 …`, the shared ones `shared_1 …`.
    """
    pairs = sorted({(r["target"], r["inputs"]) for r in frame.iter_rows(named=True)})
    table = np.zeros((len(pairs), len(experts)))
    for row in frame.iter_rows(named=True):
        table[pairs.index((row["target"], row["inputs"])), experts.index(row["expert"])] = row["share"]
    figure = blank(1.9 + 0.30 * len(experts), 1.5 + 0.36 * len(pairs))
    rows = [f"{target} ← {_spaced(inputs)}" for target, inputs in pairs]
    axes = _heat_map(figure, table, rows, experts, "gate weight")
    axes.set_title("missing ← observed", loc="left", fontsize=8.5)
    return figure


def _heat_map(figure: Figure, table: NDArray[np.float64], rows: list[str], experts: Sequence[str], label: str) -> Axes:
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=max(float(table.max()), 1e-6), aspect="auto")
    axes.set_yticks(range(len(rows)), rows)
    _expert_axis(axes, experts)
    figure.colorbar(image, ax=axes, label=label, fraction=0.06, pad=0.02)
    return axes


def expert_selection(frame: pl.DataFrame) -> Figure:
    """Figure 3b: distribution of the visits of each modality combination over the experts.

    Args:
        frame: `combination, expert, name, visits, ratio` (`moe_retriever.evaluation.routing.expert_selection`); at most
            the 24 combinations with the most visits are drawn.
    """
    ranked = _by_visits(frame)
    combinations = sorted(ranked[:MOST_ROWS], key=lambda c: (c.count("+"), c))
    frame = frame.filter(pl.col("combination").is_in(combinations))
    experts = frame.select("expert", "name").unique().sort("expert")["name"].to_list()
    table = np.zeros((len(combinations), len(experts)))
    for row in frame.iter_rows(named=True):
        table[combinations.index(row["combination"]), row["expert"]] = row["ratio"]
    figure = blank(2.6 + min(0.28 * len(experts), WIDEST), 1.6 + 0.36 * len(combinations))
    axes = _heat_map(figure, 100 * table, [_spaced(c) for c in combinations], experts, "% of visits")
    axes.set_ylabel("modality combination")
    if len(ranked) > MOST_ROWS:
        axes.set_title(f"{len(ranked) - MOST_ROWS} rarer combinations not shown", fontsize=8, loc="right")
    return figure


# Limits of the number of rows and of the width in inches.
MOST_ROWS, WIDEST = 24, 18.0


def _spaced(combination: str) -> str:
    return combination.replace("+", " + ")


def _by_visits(frame: pl.DataFrame) -> list[str]:
    total = frame.group_by("combination").agg(pl.col("visits").sum())
    return total.sort("visits", "combination", descending=[True, False])["combination"].to_list()


def _expert_axis(axes: Axes, experts: Sequence[str]) -> None:
    """Experts on the x axis, with lines between pools; if there are many experts, only the pools are labelled."""
    pools = [e.rsplit("_", 1)[0] for e in experts]
    starts = [x for x in range(len(pools)) if x == 0 or pools[x] != pools[x - 1]]
    for x in starts[1:]:
        axes.axvline(x - 0.5, color=INK, linewidth=0.8)
    if 0.28 * len(experts) <= WIDEST:
        axes.set_xticks(range(len(experts)), experts, rotation=90, fontsize=7.5)
        axes.set_xlabel("expert")
    else:
        middle = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(pools)], strict=True)]
        axes.set_xticks(middle, [pools[x] for x in starts], rotation=90)
        axes.set_xlabel("pool of experts")
    axes.tick_params(length=0)


def combination_shares(frame: pl.DataFrame) -> Figure:
    """Figure 3c: distribution of the visits to each expert over the modality combinations, as stacked bars.

    Args:
        frame: `combination, expert, name, visits, ratio` (`moe_retriever.evaluation.routing.combination_shares`); if
            there are more combinations than colours, the rarest share one colour.
    """
    ranked = _by_visits(frame)
    shown = ranked if len(ranked) <= len(PALETTE) else ranked[: len(PALETTE) - 1]
    experts = frame.select("expert", "name").unique().sort("expert")["name"].to_list()
    place = {name: x for x, name in enumerate(experts)}
    figure = blank(3.4 + min(0.28 * len(experts), WIDEST), 3.4)
    axes = figure.add_subplot()
    bottom = np.zeros(len(experts))
    for number, combination in enumerate([*shown, *(["others"] if len(ranked) > len(shown) else [])]):
        mine = pl.col("combination") == combination if combination in shown else ~pl.col("combination").is_in(shown)
        height = np.zeros(len(experts))
        for name, ratio in frame.filter(mine).group_by("name").agg(pl.col("ratio").sum()).iter_rows():
            height[place[name]] = 100 * ratio
        color = PALETTE[number] if combination in shown else FAINT
        axes.bar(range(len(experts)), height, bottom=bottom, width=0.82, color=color, label=_spaced(combination))
        bottom += height
    _expert_axis(axes, experts)
    axes.set_xlim(-0.6, len(experts) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of the expert's visits")
    plain(axes)
    style = {"frameon": False, "fontsize": 8, "title": "modality combination", "title_fontsize": 8}
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **style)
    return figure


GRADIENT_KINDS = {"tokens": "with respect to the tokens", "shared": "with respect to shared weights"}


def gradient_similarity(runs: Mapping[str, pl.DataFrame]) -> Figure:
    """Figure 5: gradient cosine similarity of modality pairs by epoch, one column per run, one row per gradient kind.

    Args:
        runs: name of the run → frame with `epoch, kind, first, second, cosine` (`moe_retriever.training.gradients`).
            With more than eight pairs, only their mean and range are drawn.
    """
    everything = pl.concat(list(runs.values()))
    pairs = sorted({(a, b) for a, b in everything.select("first", "second").iter_rows()})
    figure = blank(1.6 + 3.1 * len(runs), 4.8)
    grid = figure.subplots(2, len(runs), sharex="col", sharey=True, squeeze=False)
    for column, (name, frame) in enumerate(runs.items()):
        for row, (kind, words) in enumerate(GRADIENT_KINDS.items()):
            axes = grid[row, column]
            axes.axhline(0, color=INK, linewidth=0.7)
            some = frame.filter(pl.col("kind") == kind).sort("epoch")
            if len(pairs) <= len(PALETTE):
                for number, (a, b) in enumerate(pairs):
                    line = some.filter((pl.col("first") == a) & (pl.col("second") == b))
                    style = {"color": PALETTE[number], "linewidth": 1.5, "marker": "o", "markersize": 2.5}
                    axes.plot(line["epoch"], line["cosine"], label=f"{a}, {b}", **style)
            else:
                over = some.group_by("epoch", maintain_order=True).agg(
                    low=pl.col("cosine").min(), mean=pl.col("cosine").mean(), high=pl.col("cosine").max()
                )
                band = {"color": PALETTE[5], "alpha": 0.4, "linewidth": 0, "label": f"range of {len(pairs)} pairs"}
                axes.fill_between(over["epoch"], over["low"], over["high"], **band)
                axes.plot(over["epoch"], over["mean"], color=PALETTE[0], linewidth=1.5, label="mean")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            plain(axes, grid=True)
            if row == 0:
                axes.set_title(name, fontsize=10)
            else:
                axes.set_xlabel("epoch")
            if column == 0:
                axes.set_ylabel(f"gradient cosine similarity\n({words})", fontsize=8.5)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8.5)
    return figure


# Markers that distinguish classes with the same colour.
MARKERS = ("o", "^", "s", "D")


def before_and_after(frame: pl.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Figure 6: t-SNE of the samples of one modality combination before and after retrieval, coloured by class.

    Args:
        frame: `stage, x, y, label` (`moe_retriever.evaluation.embedding.tsne`).
        titles: stage → title of its panel, in order.
    """
    classes = sorted(set(frame["label"]))
    figure = blank(8.4, 4.2)
    for axes, (stage, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for number, name in enumerate(classes):
            some = frame.filter((pl.col("stage") == stage) & (pl.col("label") == name))
            again, color = divmod(number, len(PALETTE))
            style = {"color": PALETTE[color], "marker": MARKERS[again % len(MARKERS)], "label": name}
            axes.scatter(some["x"], some["y"], s=16, alpha=0.75, linewidths=0, **style)
        axes.set_title(title, fontsize=9.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(1)
        for side in axes.spines.values():
            side.set_color(FAINT)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return figure


# Description of a figure, by the end of its file name.
SHOWN = {
    "patterns": "observed modality combinations",
    "expert-selection": "expert visits by modality combination of the tokens",
    "combination-shares": "modality combinations of the tokens that visit each expert",
    "gradients": "gradient cosine similarity of modality pairs during training",
    "embedding": "t-SNE of fused embeddings of incomplete samples before and after retrieval",
    "cost": "inference time, FLOPs and parameters by modality configuration",
}


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.svg` and `<stem>.png`, reproducible to the byte."""
    # `with_suffix` would truncate names that contain a point, such as p0.3.
    paths = (stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png"))
    with mpl.rc_context({"svg.hashsalt": stem.name, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        for path, metadata in zip(paths, ({"Date": None, "Creator": None}, {"Software": None}), strict=True):
            with replacing(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=metadata)
    return paths
