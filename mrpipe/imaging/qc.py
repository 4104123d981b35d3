"""Quality control of processed scans: pictures, contact sheets, outliers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mrpipe.constants import constants

if TYPE_CHECKING:
    from mrpipe.imaging.chain import ChainResult

# Displayed names of the measures of a scan.
MEASURES: dict[str, str] = constants(__file__, "measures.json")
# Sizes in pixels: a panel of a picture, its heading, and on a contact sheet the lines of a caption and a whole scan.
PANEL, CAPTION = 144, 16
LINE, MAX_LINES = 15, 4
SHEET_ROW = 3 * PANEL // 2 + MAX_LINES * LINE + 6
FONT = ImageFont.load_default(12)
Colour = tuple[int, int, int]
RED, YELLOW = (255, 70, 70), (255, 210, 60)


def _slices(volume: NDArray[np.float32], centre: Sequence[int]) -> list[NDArray[np.float32]]:
    """Sagittal, coronal and axial slices of an array, with superior or anterior at the top."""
    x, y, z = centre
    return [np.flipud(s.T) for s in (volume[x], volume[:, y], volume[:, :, z])]


def _fit(plane: NDArray[np.float32], nearest: bool = False) -> NDArray[np.float32]:
    """Fit a slice into a square of `PANEL` pixels, preserving its aspect ratio."""
    scale = PANEL / max(plane.shape)
    size = (max(1, round(plane.shape[1] * scale)), max(1, round(plane.shape[0] * scale)))
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(size, method))
    out = np.zeros((PANEL, PANEL), dtype=np.float32)
    top, left = (PANEL - small.shape[0]) // 2, (PANEL - small.shape[1]) // 2
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(mask, step, axis)
    return mask & ~inner


def _panel(
    plane: NDArray[np.float32], top: float, outlines: Sequence[tuple[NDArray[np.float32], Colour]]
) -> NDArray[np.uint8]:
    grey = np.clip(_fit(plane) / max(top, 1e-6), 0, 1) * 255
    picture = np.repeat(grey[..., None], 3, axis=2)
    for mask, colour in outlines:
        picture[_outline(_fit(mask, nearest=True) > 0.5)] = colour
    return picture.astype(np.uint8)


def _centre(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    x, y, z = (round(float(c.mean())) for c in np.nonzero(mask))
    return x, y, z


def _column(
    volume: NDArray[np.float32], centre: tuple[int, int, int], outlines: Sequence[tuple[NDArray[np.float32], Colour]]
) -> NDArray[np.uint8]:
    """Three panels stacked vertically."""
    cut = [(_slices(mask, centre), colour) for mask, colour in outlines]
    values = volume[volume > 0]
    top = float(np.percentile(values, 99)) if values.size else 1.0
    return np.concatenate(
        [_panel(p, top, [(m[i], colour) for m, colour in cut]) for i, p in enumerate(_slices(volume, centre))]
    )


def scan_picture(done: "ChainResult", volumes: dict[str, NDArray[np.float32]], template_t1: Path, path: Path) -> None:
    """Write nine panels, by row sagittal, coronal and axial, by column the scan with outlines of brain (red) and grey
    matter (yellow), the scan in template space with the outline of the template (red), and the grey-matter map.
    """
    loaded: Any = nib.load(template_t1)
    # Reorient to RAS+, like the scan.
    turned = nib.as_closest_canonical(loaded)
    turn = nib.orientations.io_orientation(loaded.affine)
    template = np.asarray(turned.dataobj, dtype=np.float32)
    t1, gm = (nib.orientations.apply_orientation(v, turn) for v in (volumes["t1"], done.gm))
    head, brain, grey = (volumes[k] for k in ("head", "brain", "grey"))
    native, space = _centre(brain > 0), _centre(template > 0)
    columns = [
        _column(head, native, [(brain, RED), (grey, YELLOW)]),
        _column(t1, space, [((template > 0).astype(np.float32), RED)]),
        _column(gm, space, []),
    ]
    picture = np.concatenate(columns, axis=1)
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + CAPTION))
    image.paste(Image.fromarray(picture), (0, CAPTION))
    n = done.numbers
    text = f"grey matter {n['gm_ml']:.0f} ml, overlap with the template {n['overlap']:.2f}, correlation {n['ncc']:.2f}"
    ImageDraw.Draw(image).text((4, 1), text, fill=(255, 255, 255), font=FONT)
    image.save(path, format="PNG", optimize=False)


def contact_sheet(pictures: Sequence[Path], captions: Sequence[str], path: Path, *, columns: int = 4) -> None:
    """Write one picture of many scans, each at half size below its caption, which must not identify the subject."""
    opened = [Image.open(p).convert("RGB") for p in pictures]
    width, height = 3 * PANEL // 2, 3 * PANEL // 2
    rows = -(-len(opened) // columns)
    sheet = Image.new("RGB", (columns * width, rows * SHEET_ROW), (20, 20, 20))
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(opened, captions, strict=True)):
        left, bottom = (i % columns) * width, (i // columns + 1) * SHEET_ROW
        lines = textwrap.wrap(caption, 36, max_lines=MAX_LINES, placeholder=" …")
        for number, line in enumerate(reversed(lines), 1):
            draw.text((left + 4, bottom - height - number * LINE - 2), line, fill=(255, 255, 255), font=FONT)
        panels = image.crop((0, image.height - 3 * PANEL, 3 * PANEL, image.height))
        sheet.paste(panels.resize((width, height), Image.Resampling.BILINEAR), (left, bottom - height))
    sheet.save(path, format="PNG")


def note_picture(text: str, path: Path) -> None:
    """Write a picture that contains only a text, as a placeholder."""
    image = Image.new("RGB", (480, 2 * CAPTION), (20, 20, 20))
    ImageDraw.Draw(image).text((4, 8), text, fill=(255, 255, 255), font=FONT)
    image.save(path, format="PNG")


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x − median) / (1.4826 MAD) of values (n,); NaN stays NaN, and 0 if the MAD is 0."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return np.full_like(values, np.nan)
    median = np.median(known)
    spread = 1.4826 * np.median(np.abs(known - median))
    return np.where(np.isnan(values), np.nan, (values - median) / spread if spread > 0 else 0.0)


def measures_titled(names: str | None) -> str:
    """Names of measures, joined by commas, as displayed."""
    return ", ".join(MEASURES.get(name, name) for name in (names or "").split(", "))


def outliers(columns: dict[str, NDArray[np.float64]]) -> list[str]:
    """Names of the outlying numbers (|robust z| > 3.5) of each scan, joined by commas; a column needs 8 values."""
    n = len(next(iter(columns.values()))) if columns else 0
    named: list[list[str]] = [[] for _ in range(n)]
    for name, values in columns.items():
        if np.isfinite(values).sum() > 7:
            for i in np.flatnonzero(np.abs(np.nan_to_num(robust_z(values))) > 3.5):
                named[i].append(name)
    return [", ".join(sorted(names)) for names in named]
