"""Simulated view hierarchies: ten layouts of mobile screens, each a family with its own variation.

A layout determines the components of a screen and their positions. Wireframes show it exactly, screenshots blur it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

STATUS_BAR, TOOLBAR, NAVIGATION_BAR = 84, 196, 168
Node = dict[str, Any]

# Simulated icon legend: rising greys, like the published one (steps of 2), but with fewer classes.
_ICONS = (
    "menu search add arrow_backward more star share play pause skip_next skip_previous settings avatar send close "
    "expand_more"
)
ICON_CLASSES = tuple(_ICONS.split())
ICON_COLOURS = {name: f"#{(20 + 12 * i) * 0x010101:06x}" for i, name in enumerate(ICON_CLASSES)}
BUTTON_CONCEPTS = ("go", "login", "skip", "ok", "cancel", "done", "next", "save")
_CLASSES = {
    "Text": "android.widget.TextView",
    "Text Button": "android.widget.Button",
    "Input": "android.widget.EditText",
    "Image": "android.widget.ImageView",
    "Icon": "android.widget.ImageButton",
    "List Item": "android.widget.RelativeLayout",
    "On/Off Switch": "android.widget.Switch",
    "Checkbox": "android.widget.CheckBox",
    "Toolbar": "android.widget.Toolbar",
    "Slider": "android.widget.SeekBar",
    "Web View": "android.webkit.WebView",
}


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
class Screen:
    """Input of a layout: canvas size, random generator, and the continuous part of the latent state in (0, 1)."""

    width: int
    height: int
    rng: np.random.Generator
    density: float
    margin: float
    top: int = STATUS_BAR

    @property
    def bottom(self) -> int:
        return self.height - NAVIGATION_BAR

    @property
    def left(self) -> float:
        return 20 + 90 * self.margin

    @property
    def right(self) -> float:
        return self.width - self.left

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """Number of components; denser screens have more."""
        return round(low + (high - low) * self.density + self.rng.normal(0, 0.4))

    def icon(self, x: float, y: float, size: float = 96, name: str | None = None) -> Node:
        name = name or str(self.rng.choice(ICON_CLASSES))
        return node("Icon", x, y, x + size, y + size, iconClass=name)

    def button(self, x0: float, y0: float, x1: float, y1: float, *, concept: float = 0.6) -> Node:
        if not self.chance(concept):
            return node("Text Button", x0, y0, x1, y1, text="More")
        name = str(self.rng.choice(BUTTON_CONCEPTS))
        return node("Text Button", x0, y0, x1, y1, text=name.title(), textButtonClass=name)

    def toolbar(self, y: float) -> Node:
        middle = y + TOOLBAR / 2
        items = [self.icon(36, middle - 48, name="arrow_backward" if self.chance(0.5) else "menu")]
        items.append(node("Text", 200, middle - 40, 200 + self.between(300, 700), middle + 40, text="Title"))
        if self.chance(0.6):
            items.append(self.icon(self.width - 140, middle - 48, name="search"))
        return node("Toolbar", 0, y, self.width, y + TOOLBAR, *items)


def _sparse(s: Screen) -> list[Node]:
    y = s.top
    nodes = []
    if s.chance(0.8):
        nodes.append(s.toolbar(y))
        y += TOOLBAR
    y += round(s.between(40, 600))
    nodes.append(node("Text", s.left + 80, y, s.right - 80, y + s.between(80, 220)))
    if s.chance(0.6):
        nodes.append(node("Input", s.left, y + 300, s.right, y + 440))
    if s.chance(0.4):
        nodes.append(s.icon(s.width - 250, s.bottom - 250, 180, name="add"))
    return nodes


def _media(s: Screen) -> list[Node]:
    edge = s.top + (s.bottom - s.top) * (0.5 + 0.2 * s.density)
    nodes = [node("Video" if s.chance(0.5) else "Image", 0, s.top, s.width, edge)]
    nodes.append(node("Text", s.left + 100, edge + 40, s.right - 100, edge + 120))
    nodes.append(node("Slider", s.left, edge + 170, s.right, edge + 230))
    middle = (edge + 230 + s.bottom) / 2
    for i, name in enumerate(("skip_previous", "play", "skip_next")):
        size = 200 if i == 1 else 140
        nodes.append(s.icon(s.width * (i + 1) / 4 - size / 2, middle - size / 2, size, name=name))
    return nodes


def _feed(s: Screen) -> list[Node]:
    nodes = [s.toolbar(s.top)]
    n = max(2, s.count(3, 6))
    step = (s.bottom - s.top - TOOLBAR) / n
    for i in range(n):
        y = s.top + TOOLBAR + i * step
        side = step * 0.75
        x = s.left if i % 2 == 0 else s.left + 160
        image = node("Image", x + 20, y + 40, x + 20 + side * 0.7, y + step - 60)
        text = node("Text", x + 60 + side * 0.7, y + 50, s.right - 240, y + 50 + step * 0.3)
        right = s.right - (160 if i % 2 == 0 else 0)
        nodes.append(node("Card", x, y + 20, right, y + step - 20, image, text))
    return nodes


def _canvas(s: Screen) -> list[Node]:
    nodes = [node("Map View" if s.chance(0.5) else "Background Image", 0, s.top, s.width, s.bottom)]
    if s.chance(0.6):
        nodes.append(s.toolbar(s.top))
    for i in range(max(1, s.count(1, 5))):
        nodes.append(s.icon(s.width - 190, s.bottom - 220 - 190 * i, 140))
    if s.chance(0.5):
        nodes.append(s.button(s.left, s.bottom - 200, s.left + 500, s.bottom - 60))
    return nodes


def _form(s: Screen) -> list[Node]:
    y = s.top + 80.0
    nodes = []
    if s.chance(0.6):
        nodes.append(node("Image", s.width / 2 - 220, y, s.width / 2 + 220, y + 320))
        y += 420
    for _ in range(max(1, s.count(2, 5))):
        nodes.append(node("Input", s.left, y, s.right, y + 150))
        y += 150 + s.between(40, 90)
    nodes.append(s.button(s.left, y + 40, s.right, y + 200, concept=0.8))
    if s.chance(0.6):
        nodes.append(node("Text", s.width * 0.3, y + 260, s.width * 0.7, y + 330, text="Forgot password?"))
    if s.chance(0.3):
        nodes.append(node("Checkbox", s.left, y + 370, s.left + 90, y + 460))
    return nodes


def _grid(s: Screen) -> list[Node]:
    nodes = [s.toolbar(s.top)]
    y0 = s.top + TOOLBAR
    if s.chance(0.5):
        tabs = [node("Text", s.width * (i + 0.2) / 3, y0 + 40, s.width * (i + 0.8) / 3, y0 + 110) for i in range(3)]
        nodes.append(node("Multi-Tab", 0, y0, s.width, y0 + 150, *tabs))
        y0 += 150
    columns = 2 + s.chance(0.4)
    side = (s.right - s.left) / columns
    for r in range(int((s.bottom - y0) // side)):
        for c in range(columns):
            x, y = s.left + c * side, y0 + r * side
            nodes.append(node("Image", x + 12, y + 12, x + side - 12, y + side * 0.85))
            if s.density > 0.5:
                nodes.append(node("Text", x + 20, y + side * 0.87, x + side - 20, y + side * 0.97))
    return nodes


def _rows(s: Screen) -> list[Node]:
    nodes = [s.toolbar(s.top)]
    n = max(4, s.count(6, 13))
    step = (s.bottom - s.top - TOOLBAR) / n
    pictured = s.chance(0.6)
    for i in range(n):
        y = s.top + TOOLBAR + i * step
        side = min(step * 0.7, 150)
        lead = node("Image", s.left, y + step / 2 - side / 2, s.left + side, y + step / 2 + side / 2)
        x = s.left + side + 50
        text = node("Text", x, y + step * 0.25, x + s.between(350, 850), y + step * 0.6)
        nodes.append(node("List Item", 0, y, s.width, y + step, *([lead] if pictured else []), text))
    return nodes


def _switches(s: Screen) -> list[Node]:
    nodes = [s.toolbar(s.top)]
    n = max(4, s.count(5, 11))
    step = (s.bottom - s.top - TOOLBAR) / n
    for i in range(n):
        y = s.top + TOOLBAR + i * step
        nodes.append(node("Text", s.left, y + step * 0.3, s.left + s.between(350, 800), y + step * 0.65))
        if s.chance(0.7):
            box = (s.right - 190, y + step * 0.35, s.right, y + step * 0.35 + 90)
            nodes.append(node("On/Off Switch" if s.chance(0.7) else "Checkbox", *box))
    return nodes


def _text(s: Screen) -> list[Node]:
    nodes = []
    y = s.top + 60.0
    if s.chance(0.5):
        edge = y + s.between(300, 700)
        nodes.append(node("Image", s.left + 150, y, s.right - 150, edge))
        y = edge + 60
    while y < s.bottom - 420:
        block = min(s.between(120, 520), s.bottom - 300 - y)
        nodes.append(node("Text", s.left, y, s.right, y + block))
        y += block + 60 + 150 * (1 - s.density)
    if s.chance(0.5):
        nodes.append(node("Pager Indicator", s.width * 0.4, s.bottom - 260, s.width * 0.6, s.bottom - 220))
    bar = s.bottom - 190
    back = s.button(s.left, bar + 30, s.width / 2 - 40, s.bottom - 30)
    forth = s.button(s.width / 2 + 40, bar + 30, s.right, s.bottom - 30)
    return [*nodes, node("Button Bar", 0, bar, s.width, s.bottom, back, forth)]


def _card(s: Screen) -> list[Node]:
    height = (s.bottom - s.top) * (0.45 + 0.35 * s.density)
    y0 = (s.top + s.bottom - height) / 2
    x0, x1 = 60 + s.left, s.width - 60 - s.left
    inner = [
        node("Image", x0 + 80, y0 + 60, x1 - 80, y0 + height * 0.45),
        node("Text", x0 + 60, y0 + height * 0.5, x1 - 60, y0 + height * 0.6),
        node("Text", x0 + 60, y0 + height * 0.65, x1 - 160, y0 + height * 0.72),
        s.button(x0 + 60, y0 + height * 0.82, (x0 + x1) / 2 - 20, y0 + height * 0.94),
    ]
    if s.chance(0.7):
        inner.append(s.button((x0 + x1) / 2 + 20, y0 + height * 0.82, x1 - 60, y0 + height * 0.94))
    return [node("Modal" if s.chance(0.6) else "Card", x0, y0, x1, y0 + height, *inner)]


_FAMILIES = (_sparse, _media, _feed, _canvas, _form, _grid, _rows, _switches, _text, _card)
LAYOUTS: dict[str, Callable[[Screen], list[Node]]] = {f.__name__.removeprefix("_"): f for f in _FAMILIES}


def build_tree(layout: str, screen: Screen) -> Node:
    """The hierarchy of one screen: an unlabelled window with the components of the layout."""
    root = node(None, 0, 0, screen.width, screen.height, *LAYOUTS[layout](screen))
    root["class"] = "com.android.internal.policy.PhoneWindow$DecorView"
    return root
