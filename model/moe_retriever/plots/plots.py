"""Figures of stores and runs: modality combinations, cohort selection, learning curves, routing, gradients, t-SNE.

Each function takes frames and returns a matplotlib Figure, which `save` writes. This module is stateless. A figure is
at most `WIDEST` wide, so that a page shows it at its own size, and its legends are below, where any font fits.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from moe_retriever.data.scores import METRIC_NAMES
from mrpipe.schema import flow_lines
from mrpipe.store.masks import name_parts
from mrpipe.store.parquet import replacing

# The palette of Okabe and Ito, distinguishable with any colour vision and in greyscale.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
INK, FAINT = "#222222", "#C9CDD2"
# White to blue as opacity of one colour, which also works on a dark page.
SHARES = LinearSegmentedColormap.from_list("shares", [PALETTE[0] + "00", PALETTE[0] + "FF"])
# Names may contain $. Text remains text, which is small and searchable. Matplotlib brings DejaVu Sans along, so the
# layout is the same everywhere; other sans-serif fonts are narrower and fit as well.
mpl.rcParams |= {"text.parse_math": False, "svg.fonttype": "none"}
mpl.rcParams |= {"font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"], "font.size": 9}
# Limits in inches of the width of a figure and of its columns of experts, and of the number of rows.
WIDEST, EXPERTS, MOST_ROWS = 11.0, 7.2, 24
# Approximate width of a character as a fraction of the font size.
CHARACTER = 0.6


def blank(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    figure = Figure(figsize=(min(width, WIDEST), height), layout="constrained")
    figure.patch.set_facecolor("white")
    return figure


def plain(axes: Axes, *, grid: bool = False) -> None:
    """Remove the frame at the top and on the right, and draw a horizontal grid on request."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes, **style: Any) -> None:
    """The legend of one of the axes below the figure, with as many columns as its texts leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    size = 8.5
    width = size * (CHARACTER * max(map(len, labels), default=1) + 5) / 72
    columns = max(1, min(len(labels), int(figure.get_figwidth() / width)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=size, **style)


def availability(observed: Mapping[str, int], names: Sequence[str], *, max_patterns: int = 20) -> Figure:
    """UpSet plot: one bar per modality combination, beside dots that mark its modalities.

    Args:
        observed: combination (names joined by `+`) → number of samples.
        names: the modalities, in bit order.
        max_patterns: number of combinations to draw, the most frequent first; a title summarises the others.
    """
    rows = sorted(observed.items(), key=lambda kv: (-kv[1], kv[0]))
    shown, rest = rows[:max_patterns], rows[max_patterns:]
    total = max(1, sum(observed.values()))
    longest = max(map(len, names)) + 9
    figure = blank(0.28 * len(names) + 3.2, 0.6 + 0.25 * len(shown) + 8.5 * CHARACTER * longest / 72)
    dots, bars = figure.subplots(1, 2, sharey=True, width_ratios=(0.28 * len(names), 3.2))
    member = np.array([[name in name_parts(pattern) for name in names] for pattern, _ in shown], dtype=bool)
    for of, color in ((~member, FAINT), (member, INK)):
        row, column = np.nonzero(of)
        dots.scatter(column, row, s=46, color=color, zorder=3)
    for y, (_, n) in enumerate(shown):
        if len(present := np.flatnonzero(member[y])) > 1:
            dots.plot(present[[0, -1]], [y, y], "-", color=INK, linewidth=1.6, zorder=2)
        share = "< 1%" if 0 < n < 0.005 * total else f"{n / total:.0%}"
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        bars.annotate(f"{n:,} ({share})", (n, y), color=INK, **place)
    bars.barh(range(len(shown)), [n for _, n in shown], color=PALETTE[0], height=0.6)
    bars.set_xlim(0, 1.5 * max([1, *(n for _, n in shown)]))
    bars.set_ylim(len(shown) - 0.5, -0.5)
    bars.set_xlabel("samples")
    bars.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bars.xaxis.set_major_formatter("{x:,.0f}")
    bars.tick_params(axis="y", length=0, labelleft=False)
    plain(bars)
    if rest:
        left = sum(n for _, n in rest)
        bars.set_title(f"{len(rest)} rarer combinations\n({left:,} samples) not shown", fontsize=8.5, loc="right")
    per_modality = [sum(n for pattern, n in rows if name in name_parts(pattern)) for name in names]
    labels = [f"{name} ({n:,})" for name, n in zip(names, per_modality, strict=True)]
    dots.xaxis.tick_top()
    dots.set_xticks(range(len(names)), labels, rotation=90, fontsize=8.5)
    dots.set_xlim(-0.6, len(names) - 0.4)
    dots.tick_params(axis="both", length=0, labelleft=False)
    dots.set_frame_on(False)
    return figure


def cohort_flow(attrition: pl.DataFrame) -> Figure:
    """Assessed, excluded and remaining samples: one bar per step of `attrition.parquet`, below its description."""
    lines = (line.replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}") for line in flow_lines(attrition))
    texts = [textwrap.wrap(line, 58, break_long_words=False) for line in lines]
    height = sum(0.36 + 0.17 * len(text) for text in texts)
    figure = blank(4.6, height + 0.1)
    axes = figure.add_subplot()
    y = 0.0
    for text, (before, after) in zip(texts, attrition.select("n_before", "n_after").iter_rows(), strict=True):
        y += 0.17 * len(text)
        axes.annotate("\n".join(text), (0, y), va="bottom", fontsize=9, linespacing=1.2, color=INK)
        axes.barh(y + 0.1, after, color=PALETTE[0], height=0.15)
        axes.barh(y + 0.1, before - after, left=after, color=PALETTE[1], height=0.15)
        y += 0.36
    axes.set_ylim(height, 0)
    axes.set_xlim(0, max(1, attrition["n_before"][0]))
    axes.set_axis_off()
    return figure


def learning_curves(histories: Mapping[str, pl.DataFrame], *, score: str = "score") -> Figure:
    """Training and validation loss and the selection score per epoch, one line per run.

    Args:
        histories: name of the run → frame with `epoch, train_loss, val_loss, val_score, best`; without validation
            samples, the scores are null or the validation columns are missing.
        score: name of the selection score.
    """
    figure = blank(5.0, 2.8 + 0.09 * len(histories))
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
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        plain(axes, grid=True)
    legend_below(figure, right)
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
    rows = [f"{target} ← {_spaced(inputs)}" for target, inputs in pairs]
    figure, axes = _heat_map(100 * table, rows, experts, "% of the gate weight")
    axes.set_title("missing ← observed", loc="left", fontsize=8.5)
    return figure


def _heat_map(table: NDArray[np.float64], rows: list[str], experts: Sequence[str], label: str) -> tuple[Figure, Axes]:
    """A figure of a table (rows, experts), as wide as its names need."""
    names = 8.5 * CHARACTER * max(map(len, rows), default=1) / 72
    width = min(max(1.6, 0.2 * len(experts)), EXPERTS)
    figure = blank(1.3 + names + width, 1.9 + 0.22 * len(rows))
    axes = figure.add_subplot()
    high = max(float(table.max()), 1e-6)
    image = axes.imshow(table, cmap=SHARES, vmin=0, vmax=high, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    _expert_axis(axes, experts, width)
    figure.colorbar(image, ax=axes, label=label, fraction=0.05, pad=0.02, aspect=30, ticks=MaxNLocator(4))
    return figure, axes


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
    figure, axes = _heat_map(100 * table, [_spaced(c) for c in combinations], experts, "% of visits")
    axes.set_ylabel("modality combination")
    if len(ranked) > MOST_ROWS:
        axes.set_title(f"{len(ranked) - MOST_ROWS} rarer combinations not shown", fontsize=8.5, loc="right")
    return figure


def _spaced(combination: str) -> str:
    return combination.replace("+", " + ")


def _by_visits(frame: pl.DataFrame) -> list[str]:
    total = frame.group_by("combination").agg(pl.col("visits").sum())
    return total.sort("visits", "combination", descending=[True, False])["combination"].to_list()


def _expert_axis(axes: Axes, experts: Sequence[str], width: float) -> None:
    """Experts on an x axis of `width` inches: their numbers and, below, their pools, separated by lines.

    The numbers are omitted if there is no room for them; names of narrow pools are rotated.
    """
    pools = [e.rsplit("_", 1)[0] for e in experts]
    starts = [x for x in range(len(pools)) if x == 0 or pools[x] != pools[x - 1]]
    ends = [*starts[1:], len(pools)]
    for x in starts[1:]:
        axes.axvline(x - 0.5, color=INK, linewidth=0.8)
    inches = width / len(experts)
    numbered = inches >= 0.16
    numbers = [e.rsplit("_", 1)[1] if "_" in e else "" for e in experts] if numbered else []
    axes.set_xticks(range(len(numbers)), numbers, fontsize=7.5)
    middle = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    narrow = any(8.5 * CHARACTER * len(pools[a]) / 72 > inches * (b - a) for a, b in zip(starts, ends, strict=True))
    axes.xaxis.remove_overlapping_locs = False
    axes.set_xticks(middle, [pools[x] for x in starts], minor=True, rotation=90 if narrow else 0, fontsize=8.5)
    axes.tick_params(axis="x", which="minor", pad=14 if numbered else 4)
    axes.tick_params(which="both", length=0)
    axes.set_xlim(-0.5, len(experts) - 0.5)
    axes.set_xlabel("expert, by pool" if numbered else "pool of experts")


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
    width = min(max(4.0, 0.2 * len(experts)), EXPERTS)
    figure = blank(1.2 + width, 4.2)
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
    _expert_axis(axes, experts, width)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of the expert's visits")
    plain(axes)
    legend_below(figure, axes, title="modality combination", title_fontsize=8.5)
    return figure


GRADIENT_KINDS = {"tokens": "with respect to the tokens", "shared": "with respect to shared weights"}


def gradient_similarity(runs: Mapping[str, pl.DataFrame]) -> Figure:
    """Figure 5: gradient cosine similarity of modality pairs by epoch, one row per run, one column per gradient kind.

    Args:
        runs: name of the run → frame with `epoch, kind, first, second, cosine` (`moe_retriever.training.gradients`).
            With more than eight pairs, only their mean and range are drawn.
    """
    pairs = sorted({(a, b) for a, b in pl.concat(list(runs.values())).select("first", "second").iter_rows()})
    figure = blank(5.0, 1.4 + 1.8 * len(runs))
    grid = figure.subplots(len(runs), 2, sharex="row", sharey=True, squeeze=False)
    for row, (name, frame) in enumerate(runs.items()):
        for column, (kind, words) in enumerate(GRADIENT_KINDS.items()):
            axes = grid[row, column]
            axes.axhline(0, color=INK, linewidth=0.7)
            some = frame.filter(pl.col("kind") == kind).sort("epoch")
            if len(pairs) <= len(PALETTE):
                for number, (a, b) in enumerate(pairs):
                    line = some.filter((pl.col("first") == a) & (pl.col("second") == b))
                    style = {"color": PALETTE[number], "linewidth": 1.5, "marker": "o" if len(line) < 3 else ""}
                    axes.plot(line["epoch"], line["cosine"], label=f"{a}, {b}", **style)
            else:
                of_epoch, cosine = some.group_by("epoch", maintain_order=True), pl.col("cosine")
                over = of_epoch.agg(low=cosine.min(), mean=cosine.mean(), high=cosine.max())
                band = {"color": PALETTE[5], "alpha": 0.4, "linewidth": 0, "label": f"range of {len(pairs)} pairs"}
                axes.fill_between(over["epoch"], over["low"], over["high"], **band)
                axes.plot(over["epoch"], over["mean"], color=PALETTE[0], linewidth=1.5, label="mean")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            plain(axes, grid=True)
            axes.set_title(words if row == 0 else "", fontsize=9)
            axes.set_xlabel("epoch" if row == len(runs) - 1 else "")
        grid[row, 0].set_ylabel(textwrap.fill(name, 22))
    figure.supylabel("gradient cosine similarity", fontsize=9)
    legend_below(figure, grid[0, 0])
    return figure


# Markers that distinguish classes and methods with the same colour.
MARKERS = "o^sDv<>P"


def before_and_after(frame: pl.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Figure 6: t-SNE of the samples of one modality combination before and after retrieval, coloured by class.

    Args:
        frame: `stage, x, y, label` (`moe_retriever.evaluation.embedding.tsne`).
        titles: stage → title of its panel, in order.
    """
    classes = sorted(set(frame["label"]))
    figure = blank(5.0, 3.6 + 0.06 * len(classes))
    for axes, (stage, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for number, name in enumerate(classes):
            some = frame.filter((pl.col("stage") == stage) & (pl.col("label") == name))
            again, color = divmod(number, len(PALETTE))
            style = {"color": PALETTE[color], "marker": MARKERS[again % len(MARKERS)], "label": name}
            axes.scatter(some["x"], some["y"], s=16, alpha=0.75, linewidths=0, **style)
        axes.set_title(textwrap.fill(title, 40), fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(1)
        for side in axes.spines.values():
            side.set_color(FAINT)
    legend_below(figure, figure.axes[0])
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


def svg(figure: Figure, name: str, title: str = "") -> str:
    """The figure as SVG with a title, reproducible to the byte; ids depend on the name."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, stem: Path, data: str = "") -> tuple[Path, Path]:
    """Write `<stem>.svg` and `<stem>.png`, reproducible to the byte; the title is `data` and the words of `SHOWN`."""
    words = next((words for ending, words in SHOWN.items() if stem.name.endswith(ending)), "")
    title = f"{data}: {words}" if data else ""
    # `with_suffix` would truncate names that contain a point, such as p0.3.
    vector, pixels = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    with replacing(vector) as temporary:
        temporary.write_text(svg(figure, stem.name, title), encoding="utf-8", newline="\n")
    with replacing(pixels) as temporary:
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
    return vector, pixels
