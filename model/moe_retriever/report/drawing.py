"""Embedding of figures in the page: SVG made safe to combine with others in one document, and inline raster images."""

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from moe_retriever.plots.plots import FAINT, INK, svg
from mrpipe.errors import DataError, Fault
from mrpipe.store.parquet import write_text

_NOT_CONTENT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<(metadata|title)>.*?</\1>", re.DOTALL)
_ID = re.compile(r'(\sid="|\s(?:xlink:)?href="#|url\(#)([^")]+)')
_LENGTH = re.compile(r'\s(?:width|height)="[^"]*"')
# Markup that could execute code or load external resources.
_ACTIVE = re.compile(
    r"<(?:script|iframe|object|embed|foreignObject|link|style|base|form)\b|\son\w+\s*=|javascript:|srcset"
    r"|<(?:img|image|use|feImage|source|video|audio)\b[^>]*?(?:src|href)\s*=\s*[\"'](?!#|data:image/)"
    r"|url\((?!#)|@import",
    re.IGNORECASE,
)
# Matplotlib's style sheet would apply to the whole page, so its only rule is moved to the root of the figure.
_STYLE = re.compile(r"<style[^>]*>\s*\*\s*\{([^{}]*)\}\s*</style>")
# In styles of a figure: the ink and the background of the page, light or dark, and the font of its root.
_PAGE = {
    rf"{INK}|#000000": "currentColor",
    rf"(fill|stroke): {FAINT}": r"\1: currentColor; \1-opacity: 0.25",
    "fill: #ffffff": "fill: none",
    r"font-family: [^;\"]*;? ?|(?<=px) 'DejaVu Sans', sans-serif": "",
}
_INLINE = re.compile(r'(?<=\sstyle=")[^"]*')
_GEOMETRY = re.compile(r'\s(?:d|x|y|transform|width|height)="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class Picture:
    markup: Markup
    caption: str


def prefixed(text: str, name: str) -> str:
    """Prefix all ids and the references to them with a name."""
    return _ID.sub(lambda m: f"{m[1]}{name}-{m[2]}", text)


def _restyled(style: re.Match[str]) -> str:
    text = style[0]
    for pattern, replacement in _PAGE.items():
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


def slim(text: str) -> str:
    """An SVG of Matplotlib in the colours and the font of the page, without unused ids and superfluous decimals."""
    text = _INLINE.sub(_restyled, text)
    short = {used: f"{n}" for n, used in enumerate(dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text)))}
    text = re.sub(r'\sid="([^"]*)"', lambda m: m[0] if m[1] in short else "", text)
    text = _ID.sub(lambda m: f"{m[1]}{short[m[2]]}", text)
    text = _GEOMETRY.sub(lambda m: _DECIMALS.sub(r"\1", m[0]), text)
    return re.sub(r">\s+<", "><", text)


def require_passive(text: str, file: str) -> str:
    """Return the text if it neither executes code nor loads external resources.

    Raises:
        DataError: active markup; names the file and the markup.
    """
    found = _ACTIVE.search(text)
    if found:
        expected, fix = "markup without scripts and external resources", "Create it again with its workflow rule."
        raise DataError(Fault(file=file, expected=expected, found=repr(found[0].strip()), fix=fix))
    return text


def inline_svg(text: str, *, name: str, label: str, file: str) -> Markup:
    """Convert an SVG file to inline markup with prefixed ids, a size in CSS and a label for screen readers.

    Args:
        name: prefix of the ids; unique on the page.
        label: description of the figure, one sentence.
        file: file name for error messages.

    Raises:
        DataError: the file is not an SVG, or has active content.
    """
    content = _NOT_CONTENT.sub("", text).strip()
    opening = re.search(r"<svg\b[^>]*>", content)
    if opening is None:
        raise DataError(Fault(file=file, expected="an SVG figure", found=repr(content[:40])))
    style = ";".join(m.strip().strip(";") for m in _STYLE.findall(content))
    content = slim(require_passive(_STYLE.sub("", content), file))
    content = prefixed(content[opening.start() :], f"f{sha256(name.encode()).hexdigest()[:8]}")
    box = re.search(r'viewBox="\s*[\d.eE+-]+[\s,]+[\d.eE+-]+[\s,]+([\d.]+)', opening[0])
    width = round(float(box[1]) * 4 / 3) if box else 640
    # On a narrow screen, a figure shrinks while its text remains legible; beyond that, its container scrolls.
    size = f"width:{width}px;min-width:{round(0.75 * width)}px;font-family:sans-serif;fill:currentColor"
    start = f'<svg role="img" aria-label="{escape(label)}" style="{size};{style}"'
    root = _LENGTH.sub("", opening[0]).replace("<svg", start, 1)
    return Markup(root + content[len(opening[0]) :])


def draw(figure: Figure, path: Path, *, label: str, caption: str = "") -> Picture:
    """Save a figure as a reproducible SVG file and return it for the page."""
    text = svg(figure, path.stem)
    write_text(path, text)
    return Picture(inline_svg(text, name=path.stem, label=label, file=path.name), caption)


def inline_image(data: bytes, *, label: str, size: str = "") -> Markup:
    """Inline markup of the bytes of a PNG or WebP file; `size` has its attributes width and height."""
    kind, text = "png" if data.startswith(b"\x89PNG") else "webp", base64.b64encode(data).decode("ascii")
    return Markup(f'<img alt="{escape(label)}"{size} src="data:image/{kind};base64,{text}">')
