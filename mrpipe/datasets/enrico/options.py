"""Reader options of Enrico."""

from dataclasses import dataclass
from typing import ClassVar

from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class EnricoOptions:
    STEPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "image_size": ("screenshot", "wireframe"),
        "wireframes render_missing_wireframes": ("cohort", "wireframe"),
        "max_unmatched": (),
        "exclude_issues": ("cohort",),
    }

    image_size: tuple[int, ...] = option((256, 128), "height and width of the images in pixels, as in MultiBench")
    landscape: str = option(
        "resize",
        "screens in landscape format: squeeze them into the portrait shape as MultiBench does (resize), rotate them by "
        "90° counter-clockwise first (rotate), or exclude them (exclude)",
        choices=("resize", "rotate", "exclude"),
    )
    wireframes: str = option(
        "png",
        "use the published wireframe images (png), or draw all wireframes from their hierarchies (render); a screen "
        "without a hierarchy keeps its published image",
        choices=("png", "render"),
    )
    render_missing_wireframes: bool = option(True, "draw a wireframe from its hierarchy if the image is missing")
    max_unmatched: float = option(
        0.2, "largest fraction of screens without a screenshot or wireframe; above it the check fails (1: no limit)"
    )
    exclude_issues: str = option(
        "none",
        "exclude screens that have an issue of this severity or worse in issues.csv",
        choices=("none", "high", "medium"),
    )
