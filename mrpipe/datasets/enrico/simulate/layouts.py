"""Simulated view hierarchies: ten layouts of mobile screens, each with its own variation.

A layout determines the components of a screen and their positions. Wireframes show it exactly, screenshots blur it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpipe.constants import constants

STATUS_BAR, NAVIGATION_BAR = 84, 168
Node = dict[str, Any]

# Simulated icon legend: rising greys, like the published one (steps of 2), but with fewer classes.
_ICONS = (
    "menu search add arrow_backward more star share play pause skip_next skip_previous settings avatar send close "
    "expand_more"
)
ICON_CLASSES = tuple(_ICONS.split())
ICON_COLOURS = {name: f"#{(20 + 12 * i) * 0x010101:06x}" for i, name in enumerate(ICON_CLASSES)}
BUTTON_CONCEPTS = ("go", "login", "skip", "ok", "cancel", "done", "next", "save")
_WIDGETS = {"Text": "TextView", "Text Button": "Button", "Input": "EditText", "Image": "ImageView", "Slider": "SeekBar"}
_WIDGETS |= {"List Item": "RelativeLayout", "On/Off Switch": "Switch", "Checkbox": "CheckBox", "Toolbar": "Toolbar"}
_WIDGETS |= {"Icon": "ImageButton"}
_CLASSES = {label: f"android.widget.{name}" for label, name in _WIDGETS.items()}
_CLASSES |= {"Web View": "android.webkit.WebView"}


def node(label: str | None, x0: float, y0: float, x1: float, y1: float, *children: Node, **extra: Any) -> Node:
    """A node in the provider's format, which omits fields that do not apply."""
    name = _CLASSES.get(label or "", "android.widget.FrameLayout")
    made: Node = {
        "ancestors": [name, "android.view.View", "java.lang.Object"],
        "class": name,
        "bounds": [round(x0), round(y0), round(x1), round(y1)],
        "clickable": label in {"Text Button", "Icon", "List Item", "Checkbox", "On/Off Switch"},
    }
    if label is not None:
        made["componentLabel"] = label
    made |= extra
    if children:
        made["children"] = list(children)
    return made


@dataclass(frozen=True)
class LayoutPart:
    """Components of one kind in a layout.

    Attributes:
        labels: component label, or several to choose from, separated by |.
        box: left, top, right, bottom as fractions of the parent, or of the screen between its bars and margins.
        chance: probability of each component.
        rows: number of rows that divide the box, on the sparsest and on the densest screen.
        columns: number of columns that divide the box.
        ragged: largest fraction of the width by which a component is narrower.
        inside: its children.
    """

    labels: str
    box: tuple[float, float, float, float]
    chance: float = 1.0
    rows: tuple[int, int] = (1, 1)
    columns: int = 1
    ragged: float = 0.0
    inside: tuple["LayoutPart", ...] = ()


def _part(inside: Sequence[Mapping[str, Any]] = (), **described: Any) -> LayoutPart:
    return LayoutPart(**described, inside=tuple(_part(**child) for child in inside))


LAYOUTS: dict[str, tuple[LayoutPart, ...]] = {
    name: tuple(_part(**part) for part in parts) for name, parts in constants(__file__, "layouts.json").items()
}
# Components as wide as the screen; the others keep to the margins.
_WIDE = {"Toolbar", "Button Bar", "Multi-Tab", "Map View", "Background Image", "List Item"}
# Share of a row or column that its component takes.
_FILL = 0.85


def _extra(label: str, rng: np.random.Generator) -> dict[str, Any]:
    """Class and text of an icon or a button; some buttons have no published concept."""
    if label == "Icon":
        return {"iconClass": str(rng.choice(ICON_CLASSES))}
    if label != "Text Button":
        return {}
    name = str(rng.choice(BUTTON_CONCEPTS))
    return {"text": name.title(), "textButtonClass": name} if rng.random() < 0.6 else {"text": "More"}


def _draw(
    part: LayoutPart, area: tuple[float, float, float, float], rng: np.random.Generator, density: float
) -> list[Node]:
    """Components of a part within `area` (left, top, right, bottom) in pixels."""
    low, high = part.rows
    n_rows = max(1, round(low + (high - low) * density + rng.normal(0, 0.3) * (high > low)))
    x0, x1 = (area[0] + (area[2] - area[0]) * part.box[i] for i in (0, 2))
    y0, y1 = (area[1] + (area[3] - area[1]) * part.box[i] for i in (1, 3))
    width, height = (x1 - x0) / part.columns, (y1 - y0) / n_rows
    label = str(rng.choice(part.labels.split("|")))
    nodes = []
    for row, column in np.ndindex(n_rows, part.columns):
        if rng.random() >= part.chance:
            continue
        left, top = x0 + column * width, y0 + row * height
        right = left + width * (_FILL if part.columns > 1 else 1) * (1 - part.ragged * rng.random())
        box = (left, top, right, top + height * (_FILL if n_rows > 1 else 1))
        children = [child for inner in part.inside for child in _draw(inner, box, rng, density)]
        nodes.append(node(label, *box, *children, **_extra(label, rng)))
    return nodes


def build_tree(layout: str, size: tuple[int, int], rng: np.random.Generator, density: float, margin: float) -> Node:
    """The hierarchy of one screen: an unlabelled window with the components of the layout.

    Args:
        size: width and height of the canvas.
        density, margin: continuous part of the latent state, in (0, 1).
    """
    width, height = size
    parts = []
    for part in LAYOUTS[layout]:
        left = 0.0 if part.labels.split("|")[0] in _WIDE else 20 + 90 * margin
        area = (left, float(STATUS_BAR), width - left, float(height - NAVIGATION_BAR))
        parts += _draw(part, area, rng, density)
    root = node(None, 0, 0, width, height, *parts)
    root["class"] = "com.android.internal.policy.PhoneWindow$DecorView"
    return root
