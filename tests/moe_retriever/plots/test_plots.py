"""Figures: text that is text, ticks that can be read, the colours of the page."""

import re
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

import numpy as np
import polars as pl
import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from moe_retriever.plots import plots
from moe_retriever.plots.cost import cost
from moe_retriever.report.drawing import inline_svg

NAMES = ("image", "genomic", "clinical", "biospecimen")
VIEWS = ["+".join(c) for k in range(1, 5) for c in combinations(NAMES, k)]
METHODS = [f"a method with a long name {i}" for i in range(12)]


def visits(views: list[str], experts: list[str]) -> pl.DataFrame:
    """Equal visits of all combinations to all experts."""
    rows = [(view, i, name, 10, 0.1) for view in views for i, name in enumerate(experts)]
    return pl.DataFrame(rows, schema=["combination", "expert", "name", "visits", "ratio"], orient="row")


def pool(n: int) -> list[str]:
    return [f"{name}_{i}" for name in (*NAMES, "shared") for i in range(1, n + 1)]


def costs(views: list[str], factor: float) -> Figure:
    columns = {"test_ms": 0.05, "gflop_per_sample": 0.001, "parameters_m": 3.0}
    rows = [
        {"method": m, "modalities": v, **{k: x * factor**i for k, x in columns.items()}}
        for i, m in enumerate(METHODS)
        for v in views
    ]
    return cost(pl.DataFrame(rows), METHODS)


def gradients() -> Figure:
    rows = [
        {"epoch": epoch, "kind": kind, "first": a, "second": b, "cosine": 0.1 * (-1) ** epoch}
        for epoch in range(1, 200)
        for kind in plots.GRADIENT_KINDS
        for a, b in combinations(NAMES, 2)
    ]
    return plots.gradient_similarity(dict.fromkeys(METHODS[:5], pl.DataFrame(rows)))


def embedding() -> Figure:
    rows = [{"stage": s, "x": float(i), "y": 0.0, "label": f"a long class {i}"} for s in "ab" for i in range(20)]
    return plots.before_and_after(pl.DataFrame(rows), {"a": "before retrieval, " * 4, "b": "after"})


def routed(n: int) -> Figure:
    rows = [("image", view, e, 0.1) for view in VIEWS for e in pool(n)]
    return plots.routing(pl.DataFrame(rows, schema=["target", "inputs", "expert", "share"], orient="row"), pool(n))


FIGURES: dict[str, Callable[[], Figure]] = {
    "availability": lambda: plots.availability({v: 1234 * i for i, v in enumerate(VIEWS)}, NAMES),
    "selection": lambda: plots.expert_selection(visits(VIEWS, pool(8))),
    "selection of many": lambda: plots.expert_selection(visits(VIEWS, pool(32))),
    "selection of few": lambda: plots.expert_selection(visits(VIEWS[:2], pool(1))),
    "shares": lambda: plots.combination_shares(visits(VIEWS, pool(16))),
    "shares of few": lambda: plots.combination_shares(visits(VIEWS[:2], pool(1))),
    "routing": lambda: routed(16),
    "cost": lambda: costs(VIEWS, 1.02),
    "cost, a decade": lambda: costs(VIEWS, 1.25),
    "cost, many decades": lambda: costs(["I", "G", "I+G", "I+G+C+B"], 10),
    "gradients": gradients,
    "embedding": embedding,
}


def labels_of(axis: Axis) -> Iterator[list[Text]]:
    """Visible labels of the major and of the minor ticks."""
    low, high = sorted(axis.get_view_interval())
    for ticks in (axis.get_major_ticks(), axis.get_minor_ticks()):
        inside = [t for t in ticks if low - 1e-9 <= t.get_loc() <= high + 1e-9]
        yield [x for t in inside for x in (t.label1, t.label2) if x.get_text() and x.get_visible()]


def shrunk(box: Bbox) -> Bbox:
    """The box without its own margin, since neighbours may touch."""
    return Bbox.from_extents(box.x0 + 0.5, box.y0 + 0.5, box.x1 - 0.5, box.y1 - 0.5)


@pytest.mark.parametrize("name", FIGURES)
def test_ticks_do_not_overlap_and_nothing_is_cut_off(name: str) -> None:
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    assert figure.get_figwidth() <= plots.WIDEST
    everything = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for labels in labels_of(axis):
                boxes = sorted((t.get_window_extent(renderer) for t in labels), key=lambda b: (b.x0, b.y0))
                assert not any(shrunk(a).overlaps(shrunk(b)) for a, b in pairwise(boxes)), (name, axis.axis_name)
                everything += labels
    everything += [t for legend in figure.legends for t in legend.get_texts()]
    frame = figure.bbox.padded(1)
    for text in everything:
        box = text.get_window_extent(renderer)
        assert all(map(frame.containsx, (box.x0, box.x1))), (name, text.get_text())
        assert all(map(frame.containsy, (box.y0, box.y1))), (name, text.get_text())
        assert "$" not in text.get_text()
        assert text.get_fontsize() >= 7


def test_text_is_text_in_the_colours_and_the_font_of_the_page() -> None:
    figure = FIGURES["availability"]()
    first, second = (
        plots.svg(figure, "a", "CMU-MOSI & more"),
        plots.svg(FIGURES["availability"](), "a", "CMU-MOSI & more"),
    )
    assert first == second
    assert "<title>CMU-MOSI &amp; more</title>" in first
    assert re.search(r"<text[^>]*>genomic \(\d", first)
    page = inline_svg(first, name="a", label="b", file="c")
    assert re.search(r"<text[^>]*>genomic \(\d", page)
    assert len(page) < len(first)
    assert "DejaVu" not in page
    assert not re.search(rf"{plots.INK}|{plots.FAINT}|#000000|#ffffff|<title", page, re.IGNORECASE)
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 0
    other = re.findall(r'\sid="([^"]*)"', inline_svg(first, name="another", label="b", file="c"))
    assert not set(ids) & set(other)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) == set(ids)


def test_numbers_in_texts_are_not_shortened() -> None:
    svg = '<svg viewBox="0 0 1 1"><text style="fill: #222222" x="1.23456">#222222 1.23456</text></svg>'
    page = inline_svg(svg, name="a", label="b", file="c")
    assert '<text style="fill: currentColor" x="1.23">#222222 1.23456</text>' in page


def test_the_cohort_flow_has_the_wording_of_consort() -> None:
    rows = [(0, "people in the export", 310, 310), (1, "no diagnosis at baseline", 310, 201), (2, "x " * 60, 201, 201)]
    frame = pl.DataFrame(rows, schema=["step", "reason", "n_before", "n_after"], orient="row")
    text = plots.svg(plots.cohort_flow(frame), "flow").replace("\N{NO-BREAK SPACE}", " ")
    assert ">assessed: people in the export, n = 310<" in text
    assert ">excluded: no diagnosis at baseline, n = 109; remaining 201<" in text
    figure = plots.cohort_flow(frame)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for label in figure.axes[0].texts:
        assert label.get_window_extent(canvas.get_renderer()).x1 <= figure.bbox.x1
    widths = [np.round(p.get_width()) for p in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [310, 0, 201, 109, 201, 0]
