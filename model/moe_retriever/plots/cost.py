"""Figure of the computational cost by modality configuration (Figure 4 of the paper)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from moe_retriever.plots.plots import CHARACTER, INK, MARKERS, PALETTE, blank, legend_below, plain

# Column of the measurements → title of its panel.
PANELS = {
    "test_ms": "inference (ms per sample)",
    "gflop_per_sample": "GFLOPs per sample",
    "parameters_m": "parameters (millions)",
}
# Width of a configuration, in inches.
SLOT = 0.55


def cost(frame: pl.DataFrame, methods: Sequence[str]) -> Figure:
    """One panel per quantity, with configurations on the common x axis and one line per method.

    The y axis is logarithmic if the values differ by more than a factor of ten.

    Args:
        frame: `method, modalities` and the columns of `PANELS`; configurations in the order of the axis.
        methods: names in the order of the legend.
    """
    configurations = frame["modalities"].unique(maintain_order=True).to_list()
    longest = 8.5 * CHARACTER * max(map(len, configurations)) / 72
    rotated = longest > SLOT
    figure = blank(max(5.0, 1 + SLOT * len(configurations)), 7 + rotated * longest + 0.08 * len(methods))
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for axes, (column, title) in zip(panels, PANELS.items(), strict=True):
        values = frame[column].drop_nulls()
        for number, method in enumerate(methods):
            mine = {c: v for c, v in frame.filter(method=method).select("modalities", column).iter_rows()}
            again, color = divmod(number, len(PALETTE))
            style = {"marker": MARKERS[(color + again) % len(MARKERS)], "color": PALETTE[color], "label": method}
            values_of = [mine.get(c) for c in configurations]
            axes.plot(range(len(configurations)), values_of, linewidth=1.3, markersize=5, **style)
        if len(values) and 0 < float(values.min()) * 10 < float(values.max()):  # type: ignore[arg-type]
            axes.set_yscale("log")
            few = float(values.max()) < 300 * float(values.min())  # type: ignore[arg-type]
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,), numticks=8))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        plain(axes, grid=True)
    panels[-1].set_xticks(range(len(configurations)), configurations, rotation=90 if rotated else 0, fontsize=8.5)
    panels[-1].set_xlabel("observed modalities")
    legend_below(figure, panels[0])
    return figure
