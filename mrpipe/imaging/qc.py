"""Quality control of processed scans: pictures, contact sheets, outliers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import median_abs_deviation

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


def scan_picture(done: "ChainResult", volumes: dict[str, NDArray[np.float32]], template_t1: Path, path: Path) -> None:
    """Write nine panels, by row sagittal, coronal and axial, by column the scan with outlines of brain (red) and grey
    matter (yellow), the scan in template space with the outline of the template (red), and the grey-matter map.
    """
    from matplotlib.figure import Figure

    loaded: Any = nib.load(template_t1)
    # Reorient to RAS+, like the scan.
    turn = nib.orientations.io_orientation(loaded.affine)
    template = np.asarray(nib.as_closest_canonical(loaded).dataobj, dtype=np.float32)
    t1, gm = (nib.orientations.apply_orientation(v, turn) for v in (volumes["t1"], done.gm))
    brain = volumes["brain"]
    outlines: dict[str, NDArray[Any]] = {"red": brain, "yellow": volumes["grey"]}
    columns = [(volumes["head"], brain, outlines), (t1, template, {"red": template > 0}), (gm, template, {})]
    width, height, n = 3 * PANEL, 3 * PANEL + CAPTION, done.numbers
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="black")
    text = f"grey matter {n['gm_ml']:.0f} ml, overlap with the template {n['overlap']:.2f}, correlation {n['ncc']:.2f}"
    figure.text(4 / width, 1 - CAPTION / 2 / height, text, color="white", fontsize=8, va="center")
    for i, (volume, inside, masks) in enumerate(columns):
        centre = [round(float(c.mean())) for c in np.nonzero(inside > 0)]
        top = float(np.percentile(volume[volume > 0], 99)) if (volume > 0).any() else 1.0
        for axis, at in enumerate(centre):
            place = (i / 3, (2 - axis) * PANEL / height, 1 / 3, PANEL / height)
            axes = figure.add_axes(place, frameon=False, xticks=[], yticks=[])
            axes.imshow(volume.take(at, axis).T, cmap="gray", vmin=0, vmax=top, origin="lower")
            for colour, mask in masks.items():
                axes.contour(mask.take(at, axis).T, [0.5], colors=colour, linewidths=0.7)
    figure.savefig(path, format="png")


def contact_sheet(pictures: Sequence[Path], captions: Sequence[str], path: Path, *, columns: int = 4) -> None:
    """Write one picture of many scans, each at half size below its caption, which must not identify the subject.

    Captions without a picture come last.
    """
    width, height = 3 * PANEL // 2, 3 * PANEL // 2
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, rows * SHEET_ROW), (20, 20, 20))
    draw = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        left, bottom = (i % columns) * width, (i // columns + 1) * SHEET_ROW
        lines = textwrap.wrap(caption, 36, max_lines=MAX_LINES, placeholder=" …")
        for number, line in enumerate(reversed(lines), 1):
            draw.text((left + 4, bottom - height - number * LINE - 2), line, fill=(255, 255, 255), font=FONT)
        for picture in pictures[i : i + 1]:
            image = Image.open(picture).convert("RGB")
            panels = image.crop((0, image.height - 3 * PANEL, 3 * PANEL, image.height))
            sheet.paste(panels.resize((width, height), Image.Resampling.BILINEAR), (left, bottom - height))
    sheet.save(path, format="PNG")


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x − median) / (1.4826 MAD) of values (n,); NaN stays NaN, and 0 if the MAD is 0."""
    spread = median_abs_deviation(values, scale="normal", nan_policy="omit")
    return (values - np.nanmedian(values)) / spread if spread > 0 else np.where(np.isnan(values), np.nan, 0.0)


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
