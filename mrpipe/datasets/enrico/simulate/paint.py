"""Simulated screenshots: a look (palette and texture) applied to a layout.

Wireframes do not show the look. Components are painted in the colours of the look, most of them faintly, so a
screenshot reveals where components are better than what they are.
"""

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mrpipe.datasets.enrico.simulate.layouts import NAVIGATION_BAR, STATUS_BAR, Node

Colour = tuple[int, int, int]
# Look → hue centre (None: any hue), saturation and value of the background, strength of its texture.
LOOKS: dict[str, tuple[float | None, float, float, float]] = {
    "light": (None, 0.02, 0.97, 0.01),
    "dark": (None, 0.25, 0.14, 0.03),
    "photo": (None, 0.45, 0.55, 0.35),
    "paper": (0.11, 0.22, 0.93, 0.06),
    "colour": (None, 0.65, 0.80, 0.08),
}
_WORDS = np.array([0.09, 0.14, 0.2, 0.06, 0.17, 0.11, 0.24, 0.08])


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _texture(rng: np.random.Generator, size: tuple[int, int], cells: int, look: str) -> NDArray[np.float32]:
    """Smooth noise of about unit range, shape (H, W, 3); with ruled lines for the look `paper`."""
    width, height = max(1, size[0]), max(1, size[1])
    grid = rng.normal(0, 0.5, (max(2, cells * height // max(width, 1)), cells, 3)).astype(np.float32)
    planes = [Image.fromarray(grid[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
    noise = np.stack([np.asarray(p) for p in planes], axis=-1)
    if look == "paper":
        noise = noise * 0.3 - 1.5 * (np.arange(height) % 12 == 0)[:, None, None].astype(np.float32)
    return noise


class _Painter:
    """Paints one screenshot; coordinates are those of the hierarchy's canvas."""

    def __init__(
        self, size: tuple[int, int], factor: float, look: str, hue: float, contrast: float, rng: np.random.Generator
    ):
        centre, saturation, value, strength = LOOKS[look]
        self.hue = hue if centre is None else centre + 0.04 * (hue - 0.5)
        self.look, self.rng, self.factor, self.size = look, rng, factor, size
        self.background = _rgb(self.hue, saturation, value)
        self.ink: Colour = (245, 245, 245) if value < 0.6 else (30, 30, 34)
        self.accent = _rgb(self.hue + 0.45, 0.7, 0.85 if value < 0.6 else 0.7)
        self.contrast = 0.35 + 0.5 * contrast
        base = np.array(self.background, dtype=np.float32) + 255 * strength * _texture(rng, size, 6, look)
        self.image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def box(self, bounds: list[int]) -> tuple[int, int, int, int]:
        x0, y0, x1, y1 = (round(b * self.factor) for b in bounds)
        x0, y0 = max(0, x0), max(0, y0)
        return x0, y0, max(x0 + 1, min(x1, self.size[0])), max(y0 + 1, min(y1, self.size[1]))

    def words(self, box: tuple[int, int, int, int], share: float) -> None:
        x0, y0, x1, y1 = box
        line = max(3, round(26 * self.factor * 8 / 3))
        colour = _mix(self.background, self.ink, share)
        n_lines = max(1, (y1 - y0) // line)
        for i in range(n_lines):
            x = float(x0)
            top = y0 + i * (y1 - y0) // n_lines + line // 5
            for length in self.rng.permutation(_WORDS):
                end = x + length * (x1 - x0) * 0.8
                if end > x1:
                    break
                self.draw.rectangle((x, top, end, top + max(1, line // 3)), fill=colour)
                x = end + 0.03 * (x1 - x0)

    def picture(self, box: tuple[int, int, int, int]) -> None:
        size = (box[2] - box[0], box[3] - box[1])
        tint = np.array(_mix(self.background, _rgb(float(self.rng.random()), 0.5, 0.6), 0.7), dtype=np.float32)
        pixels = tint + 70 * _texture(self.rng, size, 4, "photo")
        self.image.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), box[:2])

    def component(self, label: str, bounds: list[int]) -> None:
        x0, y0, x1, y1 = box = self.box(bounds)
        inner = (x0, y0, x1 - 1, y1 - 1)
        faint = _mix(self.background, self.ink, 0.12 * self.contrast)
        radius = max(1, round(4 * self.factor * 8 / 3))
        match label:
            case "Text":
                self.words(box, self.contrast)
            case "Image" | "Video" | "Background Image" | "Map View":
                self.picture(box)
            case "Toolbar" | "Button Bar" | "Multi-Tab":
                self.draw.rectangle(inner, fill=_mix(self.background, self.accent, 0.8 * self.contrast))
            case "Text Button":
                self.draw.rounded_rectangle(inner, radius, fill=_mix(self.background, self.accent, self.contrast))
                middle = (y0 + y1) // 2
                self.draw.rectangle((x0 + (x1 - x0) // 3, middle - 1, x1 - (x1 - x0) // 3, middle + 1), fill=self.ink)
            case "Icon" | "Pager Indicator":
                self.draw.ellipse(inner, fill=_mix(self.background, self.ink, self.contrast))
            case "Card" | "Modal":
                white = _mix(self.background, (255, 255, 255), 0.25)
                self.draw.rounded_rectangle(inner, radius, fill=white, outline=faint)
            case "Input" | "List Item":
                self.draw.line((x0, y1 - 1, x1 - 1, y1 - 1), fill=faint)
                if label == "Input":
                    self.words((x0, (y0 + y1) // 2, x0 + (x1 - x0) // 2, y1), 0.4 * self.contrast)
            case _:
                self.draw.rounded_rectangle(inner, radius, fill=_mix(self.background, self.accent, 0.6 * self.contrast))

    def tree(self, node: Node) -> None:
        if "componentLabel" in node:
            self.component(node["componentLabel"], node["bounds"])
        for child in node.get("children", ()):
            self.tree(child)

    def system_bars(self) -> None:
        """Draw the status bar, and the black navigation bar with back, home and recent apps."""
        width, height = self.size
        shade = _mix(self.background, (0, 0, 0), 0.35)
        self.draw.rectangle((0, 0, width, round(STATUS_BAR * self.factor) - 1), fill=shade)
        top = height - round(NAVIGATION_BAR * self.factor)
        self.draw.rectangle((0, top, width, height), fill=(0, 0, 0))
        middle, r = (top + height) // 2, max(1, round(30 * self.factor))
        white = (230, 230, 230)
        x = width // 4
        self.draw.polygon([(x - r, middle), (x + r, middle - r), (x + r, middle + r)], outline=white)
        self.draw.ellipse((width // 2 - r, middle - r, width // 2 + r, middle + r), outline=white)
        self.draw.rectangle((3 * x - r, middle - r, 3 * x + r, middle + r), outline=white)


def paint_screenshot(
    tree: Node, size: tuple[int, int], look: str, hue: float, contrast: float, rng: np.random.Generator
) -> Image.Image:
    """Draw the screenshot of a hierarchy in the given look, as an RGB image of `size` (width, height)."""
    painter = _Painter(size, size[0] / tree["bounds"][2], look, hue, contrast, rng)
    painter.tree(tree)
    painter.system_bars()
    return painter.image
