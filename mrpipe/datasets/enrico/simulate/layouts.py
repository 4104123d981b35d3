"""Simulated view hierarchies: ten layouts of mobile screens, each with its own variation.

A layout determines the components of a screen and their positions. Wireframes show it exactly, screenshots blur it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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


_TOOLBAR = LayoutPart(
    "Toolbar",
    (0, 0, 1, 0.12),
    inside=(
        LayoutPart("Icon", (0.03, 0.25, 0.12, 0.75)),
        LayoutPart("Text", (0.18, 0.3, 0.8, 0.7), ragged=0.5),
        LayoutPart("Icon", (0.87, 0.25, 0.96, 0.75), 0.6),
    ),
)
_IN_CARD = (
    LayoutPart("Image", (0.08, 0.05, 0.92, 0.45)),
    LayoutPart("Text", (0.05, 0.5, 0.95, 0.7), ragged=0.3),
    LayoutPart("Text Button", (0.05, 0.8, 0.95, 0.95), 0.8),
)
_IN_FEED = (LayoutPart("Image", (0.02, 0.15, 0.4, 0.85)), LayoutPart("Text", (0.45, 0.15, 0.95, 0.5)))
_IN_ROW = (LayoutPart("Image", (0.03, 0.15, 0.15, 0.85), 0.6), LayoutPart("Text", (0.2, 0.25, 0.9, 0.6), ragged=0.5))
LAYOUTS: dict[str, tuple[LayoutPart, ...]] = {
    "sparse": (
        replace(_TOOLBAR, chance=0.8),
        LayoutPart("Text", (0.08, 0.25, 0.92, 0.35), ragged=0.4),
        LayoutPart("Input", (0, 0.45, 1, 0.53), 0.6),
        LayoutPart("Icon", (0.78, 0.86, 0.95, 0.95), 0.4),
    ),
    "media": (
        LayoutPart("Video|Image", (0, 0, 1, 0.58)),
        LayoutPart("Text", (0.1, 0.62, 0.9, 0.67), ragged=0.3),
        LayoutPart("Slider", (0, 0.7, 1, 0.73)),
        LayoutPart("Icon", (0.2, 0.8, 0.8, 0.9), columns=3),
    ),
    "feed": (_TOOLBAR, LayoutPart("Card", (0, 0.13, 1, 1), rows=(3, 6), ragged=0.2, inside=_IN_FEED)),
    "canvas": (
        LayoutPart("Map View|Background Image", (0, 0, 1, 1)),
        replace(_TOOLBAR, chance=0.6),
        LayoutPart("Icon", (0.85, 0.3, 0.98, 0.98), 0.8, rows=(3, 7)),
        LayoutPart("Text Button", (0, 0.9, 0.4, 0.98), 0.5),
    ),
    "form": (
        LayoutPart("Image", (0.3, 0.04, 0.7, 0.22), 0.6),
        LayoutPart("Input", (0, 0.25, 1, 0.68), rows=(2, 6)),
        LayoutPart("Text Button", (0, 0.72, 1, 0.8)),
        LayoutPart("Text", (0.3, 0.84, 0.7, 0.88), 0.6),
        LayoutPart("Checkbox", (0, 0.9, 0.1, 0.95), 0.3),
    ),
    "grid": (
        _TOOLBAR,
        LayoutPart(
            "Multi-Tab", (0, 0.12, 1, 0.2), 0.5, inside=(LayoutPart("Text", (0.05, 0.3, 0.95, 0.7), columns=3),)
        ),
        LayoutPart("Image", (0, 0.2, 1, 1), rows=(3, 5), columns=2),
    ),
    "rows": (_TOOLBAR, LayoutPart("List Item", (0, 0.12, 1, 1), rows=(6, 13), inside=_IN_ROW)),
    "switches": (
        _TOOLBAR,
        LayoutPart("Text", (0, 0.13, 0.75, 1), rows=(5, 11), ragged=0.4),
        LayoutPart("On/Off Switch|Checkbox", (0.84, 0.13, 1, 1), 0.7, rows=(5, 11)),
    ),
    "text": (
        LayoutPart("Image", (0.15, 0.03, 0.85, 0.25), 0.5),
        LayoutPart("Text", (0, 0.27, 1, 0.85), rows=(2, 5)),
        LayoutPart("Pager Indicator", (0.4, 0.86, 0.6, 0.88), 0.5),
        LayoutPart(
            "Button Bar", (0, 0.9, 1, 1), inside=(LayoutPart("Text Button", (0.03, 0.15, 0.97, 0.85), columns=2),)
        ),
    ),
    "card": (LayoutPart("Modal|Card", (0.05, 0.15, 0.95, 0.85), inside=_IN_CARD),),
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
