"""Forest plot: differences of methods from a reference with intervals, as SVG.

The text is text, and horizontal positions are percentages, so that the plot has the width of the place where it stands
while its text keeps its size, on a phone as on a large screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from matplotlib.ticker import MaxNLocator

TEMPLATE = Path(__file__).resolve().parent / "forest.svg"
MOST_ROWS = 40
LONGEST_NAME = 38
# Height of the row of a method, and of the axis, in pixels.
ROW, AXIS = 40, 46
# Horizontal positions of the smallest and of the largest value, in %.
LEFT, RIGHT = 3.0, 97.0


@dataclass(frozen=True)
class Interval:
    """A row: the difference of a method from the reference, without bounds if it has no interval.

    Attributes:
        text: the numbers as displayed.
        verdict: `better`, `worse`, or "" if no difference is shown.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    text: str
    verdict: str


def forest(rows: Sequence[Interval], *, label: str, lower_is_better: bool = False) -> str:
    """SVG of the first `MOST_ROWS` rows, from top to bottom; methods better than the reference are on the right.

    Args:
        label: description for screen readers.
        lower_is_better: whether negative differences are better.
    """
    rows = rows[:MOST_ROWS]
    known = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    if low == high:
        low, high = -1.0, 1.0
    ticks = [t for t in map(float, MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)) if low <= t <= high]

    def place(value: float) -> str:
        share = (value - low) / (high - low)
        return f"{LEFT + (RIGHT - LEFT) * (1 - share if lower_is_better else share):.2f}%"

    drawn = [
        {
            "name": row.name if len(row.name) <= LONGEST_NAME else f"{row.name[: LONGEST_NAME - 1]}…",
            **{"text": row.text, "verdict": row.verdict, "x": place(row.value)},
            "bounds": None if row.low is None or row.high is None else (place(row.low), place(row.high)),
            "y": ROW * number,
        }
        for number, row in enumerate(rows)
    ]
    axis = [{"x": place(t), "text": f"{t:.6g}".replace("-", "−")} for t in ticks]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(rows=drawn, ticks=axis, zero=place(0.0), label=label, bottom=ROW * len(rows), axis=AXIS)
