"""Forest plot: differences of methods from a reference with intervals, as SVG.

The text is text, and horizontal positions are percentages, so that the plot has the width of the place where it stands
while its text keeps its size, on a phone as on a large screen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment
from matplotlib.ticker import MaxNLocator

from moe_retriever.metrics import Metric

if TYPE_CHECKING:
    from moe_retriever.evaluation.intervals import Estimate

TEMPLATE = Path(__file__).resolve().parent / "forest.svg"
MOST_ROWS = 40
# Height of the row of a method, and of the axis, in pixels.
ROW, AXIS = 40, 46
# Horizontal positions of the smallest and of the largest value, in %.
LEFT, RIGHT = 3.0, 97.0


def forest(
    rows: Mapping[str, "Estimate"], texts: Sequence[str], verdicts: Sequence[str], unit: Metric, label: str
) -> str:
    """SVG of the first `MOST_ROWS` rows, from top to bottom; methods better than the reference are on the right.

    Args:
        rows: name of the method → its difference from the reference.
        texts, verdicts: of each row the numbers as displayed, and `better`, `worse`, or "" if no difference is shown.
        label: description for screen readers.
    """
    drawn = list(zip(rows, rows.values(), texts, verdicts, strict=True))[:MOST_ROWS]
    known = [unit.factor * v for _, e, *_ in drawn for v in (e.value, e.low, e.high) if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    if low == high:
        low, high = -1.0, 1.0
    ticks = [t for t in map(float, MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)) if low <= t <= high]

    def place(value: float) -> str:
        share = (value - low) / (high - low)
        return f"{LEFT + (RIGHT - LEFT) * (1 - share if unit.lower_is_better else share):.2f}%"

    axis = [(place(t), f"{t:.6g}".replace("-", "−")) for t in ticks]
    source = TEMPLATE.read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    context = {"rows": drawn, "ticks": axis, "place": place, "zero": place(0.0), "factor": unit.factor, "label": label}
    return template.render(**context, row=ROW, axis=AXIS, bottom=ROW * len(drawn))
