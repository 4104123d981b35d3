"""Figure of the computational cost by modality configuration (Figure 4 of the paper)."""

from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from moe_retriever.plots.plots import INK, PALETTE, blank, plain

# Column of the measurements → title of its panel.
PANELS = {
    "test_ms": "inference (ms per sample)",
    "gflop_per_sample": "GFLOPs per sample",
    "parameters_m": "parameters (millions)",
}
MARKERS = "os^Dv<>P"


def cost(frame: pl.DataFrame, methods: Sequence[str]) -> Figure:
    """One panel per quantity, with configurations on the x axis and one line per method.

    The y axis is logarithmic if the values differ by more than a factor of ten.

    Args:
        frame: `method, modalities` and the columns of `PANELS`; configurations in the order of the axis.
        methods: names in the order of the legend.
    """
    configurations = frame["modalities"].unique(maintain_order=True).to_list()
    figure = blank(3.9 * len(PANELS), 3.2 + 0.012 * max(map(len, configurations)) * 20)
    for axes, (column, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        values = frame[column].drop_nulls()
        for number, method in enumerate(methods):
            mine = {c: v for c, v in frame.filter(method=method).select("modalities", column).iter_rows()}
            style = {"marker": MARKERS[number % len(MARKERS)], "color": PALETTE[number % len(PALETTE)], "label": method}
            values_of = [mine.get(c) for c in configurations]
            axes.plot(range(len(configurations)), values_of, linewidth=1.3, markersize=5, **style)
        if len(values) and 0 < float(values.min()) * 10 < float(values.max()):  # type: ignore[arg-type]
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(configurations)), configurations, rotation=45, ha="right", fontsize=8)
        axes.set_title(title, fontsize=10, color=INK)
        plain(axes, grid=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8.5)
    return figure
