"""Semantic view hierarchies: a tolerant parser, and a renderer that draws wireframes from them.

A node has `bounds` [x0, y0, x1, y1] on a canvas of 1440 x 2560 (2560 x 1440 in landscape) and optionally a
`componentLabel`, an `iconClass`, a `textButtonClass` and `children`. The root node (the window) has no label. Fields
that do not apply are omitted.

The publisher's drawing rules were inferred from the only wireframe that is public together with its hierarchy (screen
10594). Each labelled node, in pre-order, draws a white frame along x0, y0, x1 and y1, each line extending 3 canvas
pixels from its coordinate, and fills the interior with the colour of its component. The canvas is then reduced by 8/3
with the Mitchell filter on premultiplied alpha. Text buttons of a known concept leave a transparent hole (black after
conversion to RGB); judging by the thumbnails, so do icons of unknown class.
"""

import functools
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from mrpipe.datasets.enrico.tables import CANVAS_SIZE, Legend, parse_json
from mrpipe.errors import DataError, Fault

FRAME = 3
LIMIT = 2**31  # canvas pixels; the arithmetic of the renderer is exact below
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One labelled node: type, bounds on the canvas, and the classes that determine its colour."""

    label: str
    bounds: Box
    icon: str | None = None
    concept: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """The labelled nodes of a screen in pre-order, and the canvas (width, height) of their bounds.

    Attributes:
        swapped: paths of labelled nodes whose right or bottom edge is before the left or top one; they draw nothing.
        plain: whether the text of the file is UTF-8.
    """

    components: tuple[Component, ...]
    canvas: tuple[int, int]
    swapped: tuple[str, ...] = ()
    plain: bool = True

    @property
    def draws(self) -> bool:
        """Whether any component covers a part of the canvas."""
        width, height = self.canvas
        boxes = (c.bounds for c in self.components)
        return any(max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height) for x0, y0, x1, y1 in boxes)


def _bounds(node: dict[str, Any], place: str, shown_as: str) -> Box | None:
    """Bounds of a node, None if it has none; a DataError with the path of the node for anything but four numbers."""
    bounds = node.get("bounds")
    if bounds is None:
        return None
    numbers = isinstance(bounds, list) and all(isinstance(b, int | float) and abs(b) < LIMIT for b in bounds)
    if not numbers or len(bounds) != 4:
        expected, fix = "four finite numbers: left, top, right, bottom", "Remove the file: the screen then has none."
        raise DataError(Fault(file=shown_as, column=place, expected=expected, found=str(bounds)[:80], fix=fix))
    x0, y0, x1, y1 = (round(b) for b in bounds)
    return x0, y0, x1, y1


def parse_hierarchy(data: bytes, shown_as: str) -> Hierarchy:
    """Parse one hierarchy; optional fields may be absent, and nodes without label or bounds only contribute children.

    The `screen_id` of the root, if it has one, must be the stem of the file name `shown_as`.

    Raises:
        DataError: not JSON, the root is no object, bounds are not four finite numbers, or it is of another screen.
    """
    root, plain = parse_json(data, shown_as)
    place = "root"
    # Rico's own files have the root node in activity.root.
    if isinstance(root, dict) and "bounds" not in root and "children" not in root and "activity" in root:
        root, place = root["activity"], "activity.root"
        root = root.get("root") if isinstance(root, dict) else root
    if not isinstance(root, dict):
        expected = "a JSON object (the root node)"
        raise DataError(Fault(file=shown_as, expected=expected, found=type(root).__name__))
    named, screen_id = root.get("screen_id"), PurePosixPath(shown_as).stem
    if named is not None and str(named) != screen_id:
        expected, fix = f"the hierarchy of screen {screen_id}", "Were files renamed or mixed up?"
        fault = Fault(file=shown_as, column="screen_id", expected=expected, found=f"the one of {named!r}", fix=fix)
        raise DataError(fault)
    window = _bounds(root, f"{place}.bounds", shown_as)
    landscape = window is not None and window[2] > CANVAS_SIZE[0] and window[2] > window[3]
    components: list[Component] = []
    swapped: list[str] = []
    stack = [(root, place)]
    while stack:
        node, place = stack.pop()
        label, bounds = node.get("componentLabel"), _bounds(node, f"{place}.bounds", shown_as)
        if isinstance(label, str) and bounds is not None:
            icon, concept = node.get("iconClass"), node.get("textButtonClass")
            components.append(Component(label=label, bounds=bounds, icon=icon, concept=concept))
            if bounds[2] < bounds[0] or bounds[3] < bounds[1]:
                swapped.append(place)
        children = node.get("children")
        if isinstance(children, list):
            numbered = [(c, f"{place}.children[{i}]") for i, c in enumerate(children) if isinstance(c, dict)]
            stack.extend(reversed(numbered))
    canvas = CANVAS_SIZE[::-1] if landscape else CANVAS_SIZE
    return Hierarchy(components=tuple(components), canvas=canvas, swapped=tuple(swapped), plain=plain)


def colour(component: Component, legend: Legend) -> tuple[int, int, int, int]:
    """Fill colour of a component (RGBA); (0, 0, 0, 0) where the published wireframes have a hole."""
    name = legend.components.get(component.label)
    if component.label == "Icon":
        name = legend.icons.get(str(component.icon))
    elif component.label == "Text Button" and component.concept is not None:
        name = None
    if name is None:
        return 0, 0, 0, 0
    red, green, blue, *_ = ImageColor.getrgb(name)
    return red, green, blue, 255


@functools.lru_cache(maxsize=16)
def _cumulative_mitchell(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Cumulative Mitchell-Netravali filter weights (B = C = 1/3) for a downscaling, shape (n_out, n_in + 1).

    Column k is the total weight of the first k input pixels, so that a run of equal pixels takes one subtraction.
    """
    scale = n_in / n_out
    x = np.abs((np.arange(n_in) + 0.5) / scale - (np.arange(n_out)[:, None] + 0.5))
    near = (7 * x**3 - 12 * x**2 + 16 / 3) / 6
    far = (-7 / 3 * x**3 + 12 * x**2 - 20 * x + 32 / 3) / 6
    weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weight /= weight.sum(axis=1, keepdims=True)
    return np.concatenate([np.zeros((n_out, 1)), np.cumsum(weight, axis=1)], axis=1)


def _edges(painted: list[tuple[Box, Any]], axis: int, length: int) -> NDArray[np.int64]:
    """Sorted coordinates at which the image can change, including 0 and `length`."""
    values = [0, length, *(box[axis + k] for box, _ in painted for k in (0, 2))]
    return np.unique(np.clip(np.array(values, dtype=np.int64), 0, length))


def _reduction(edges: NDArray[np.int64], n_in: int, n_out: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights of the cells between `edges` for each distinct output line, and the distinct line of every output line.

    Most lines of a wireframe repeat the previous one; only distinct lines are computed.
    """
    weights = np.round(np.diff(_cumulative_mitchell(n_in, n_out)[:, edges], axis=1), 12)
    new = np.concatenate([[True], (weights[1:] != weights[:-1]).any(axis=1)])
    return weights[new], np.cumsum(new) - 1


def render(hierarchy: Hierarchy, legend: Legend, size: tuple[int, int]) -> Image.Image:
    """Draw the wireframe of a hierarchy as an RGBA image of `size` (width, height).

    The image is painted on the grid of all edges, which is exact and small, and downscaled from there: two small matrix
    products instead of a canvas of 3.7 million pixels.
    """
    painted: list[tuple[Box, tuple[int, int, int, int]]] = []
    for component in hierarchy.components:
        left, top, right, bottom = component.bounds
        if right > left and bottom > top:
            painted.append(((left, top, right + FRAME, bottom + FRAME), (255, 255, 255, 255)))
            painted.append(((left + FRAME, top + FRAME, right, bottom), colour(component, legend)))
    width, height = hierarchy.canvas
    xs, ys = _edges(painted, 0, width), _edges(painted, 1, height)
    cells_YX4 = np.full((len(ys) - 1, len(xs) - 1, 4), 255.0)
    for box, rgba in painted:
        x0, x1 = np.searchsorted(xs, np.clip(box[0::2], 0, width))
        y0, y1 = np.searchsorted(ys, np.clip(box[1::2], 0, height))
        cells_YX4[y0:y1, x0:x1] = rgba
    cells_YX4[..., :3] *= cells_YX4[..., 3:] / 255
    weights_wX, column_of = _reduction(xs, width, size[0])
    weights_hY, row_of = _reduction(ys, height, size[1])
    rows_hX4 = np.tensordot(weights_hY, cells_YX4, axes=1)
    image_hw4 = np.tensordot(rows_hX4, weights_wX, axes=(1, 1)).transpose(0, 2, 1)
    # The last bits of a sum depend on the order of addition, which is up to the linear algebra library.
    image_hw4 = np.round(image_hw4, 6)
    alpha_hw1 = np.clip(image_hw4[..., 3:], 0, 255)
    opaque_hw1 = alpha_hw1 >= 0.5
    rgb_hw3 = np.where(opaque_hw1, image_hw4[..., :3] * 255 / np.where(opaque_hw1, alpha_hw1, 1), 0)
    rgba_hw4 = np.rint(np.clip(np.concatenate([rgb_hw3, alpha_hw1], axis=2), 0, 255)).astype(np.uint8)
    return Image.fromarray(rgba_hw4[row_of[:, None], column_of])
