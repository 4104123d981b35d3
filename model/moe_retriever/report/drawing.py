"""Pictures as parts of a page: SVG that can stand beside others in one document, and raster images inside it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from mrpipe.errors import DataError, Fault
from mrpipe.store.parquet import write_text

_NOT_CONTENT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_ID = re.compile(r'(\sid="|\s(?:xlink:)?href="#|url\(#)([^")]+)')
_LENGTH = re.compile(r'\s(?:width|height)="[^"]*"')
# Whatever could run, or fetch something, in a page that is to need no network.
_ACTIVE = re.compile(
    r"<(?:script|iframe|object|embed|foreignObject|link|style|base|form)\b|\son\w+\s*=|javascript:|srcset"
    r"|<(?:img|image|use|feImage|source|video|audio)\b[^>]*?(?:src|href)\s*=\s*[\"'](?!#|data:image/)"
    r"|url\((?!#)|@import",
    re.IGNORECASE,
)
# Matplotlib's style sheet would speak to the whole page; its one rule goes to the picture's root.
_STYLE = re.compile(r"<style[^>]*>\s*\*\s*\{([^{}]*)\}\s*</style>")


@dataclass(frozen=True)
class Picture:
    """A picture of the page: markup, and a caption below it."""

    markup: Markup
    caption: str


def prefixed(text: str, name: str) -> str:
    """Markup whose ids, and what refers to them, begin with a name of their own."""
    return _ID.sub(lambda m: f"{m[1]}{name}-{m[2]}", text)


def require_passive(text: str, file: str) -> str:
    """The text, if nothing in it runs and nothing is fetched.

    Raises:
        DataError: names the file and what was found.
    """
    found = _ACTIVE.search(text)
    if found:
        raise DataError(
            Fault(
                file=file,
                expected="markup that fetches nothing and runs nothing",
                found=repr(found[0].strip()),
                fix="Write it again with the rule that makes it.",
            )
        )
    return text


def inline_svg(text: str, *, name: str, label: str, file: str) -> Markup:
    """An SVG file as part of a page: its ids prefixed, its size in CSS, a label for who cannot see it.

    Args:
        name: prefix of the ids; unique on the page.
        label: what the picture shows, one sentence.
        file: for an error.

    Raises:
        DataError: the file is no SVG, or has active content.
    """
    content = _NOT_CONTENT.sub("", text).strip()
    opening = re.search(r"<svg\b[^>]*>", content)
    if opening is None:
        raise DataError(Fault(file=file, expected="an SVG picture", found=repr(content[:40])))
    style = ";".join(m.strip().strip(";") for m in _STYLE.findall(content))
    content = require_passive(_STYLE.sub("", content), file)
    content = prefixed(content[opening.start() :], name)
    box = re.search(r'viewBox="\s*[\d.eE+-]+[\s,]+[\d.eE+-]+[\s,]+([\d.]+)', opening[0])
    width = round(float(box[1]) * 4 / 3) if box else 640
    # On a phone a picture shrinks to where its text can still be read; beyond that its box scrolls.
    size = f"width:{width}px;min-width:{min(round(0.7 * width), 560)}px"
    root = _LENGTH.sub("", opening[0]).replace(
        "<svg", f'<svg role="img" aria-label="{escape(label)}" style="{size};{style}"', 1
    )
    return Markup(root + content[len(opening[0]) :])


def draw(figure: Figure, path: Path, *, label: str) -> Markup:
    """Save a figure as SVG and return it for the page; the same figure gives the same bytes."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    write_text(path, text)
    return inline_svg(text, name=path.stem, label=label, file=path.name)


def inline_image(path: Path, *, label: str) -> Markup:
    """A PNG or JPEG as part of a page."""
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Markup(f'<img alt="{escape(label)}" src="data:image/{kind};base64,{data}">')
