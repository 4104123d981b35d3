"""Modalities: the JPEG of each screen, and its semantic wireframe, read from the PNG or drawn from the hierarchy."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.enrico.hierarchy import parse_hierarchy, render
from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.enrico.tables import SCREEN_SIZE, open_export, read_legend
from mrpipe.datasets.features import from_files
from mrpipe.datasets.images import SUFFIXES, decode, image_modality, to_array
from mrpipe.schema import Features

SCREENSHOT = "screenshot, RGB, channels first, resized bilinearly; values 0-255, not normalised"
WIREFRAMES = (".png", ".jpg", ".jpeg")
HIERARCHIES = (".json",)
WIREFRAME = (
    "semantic wireframe, RGB (alpha channel dropped, as in MultiBench), channels first, resized bilinearly; values "
    "0-255, not normalised; wireframe_source in samples.parquet marks those that were drawn from the hierarchy"
)


def read_screenshots(raw: Path, samples: pl.DataFrame, options: EnricoOptions) -> Features:
    """One (3, H, W) uint8 array per screen that has a screenshot.

    Raises:
        DataError: while the batches are read, if an image is damaged.
    """
    folder = open_export(raw)["screenshots"]
    names = folder.stems(SUFFIXES)
    ids = samples["sample_id"].sort().to_list()
    height, width = options.image_size

    def load(screen_id: str) -> NDArray[np.uint8]:
        image = folder.parse(names[screen_id], decode)
        return to_array(image, (height, width), rotate_landscape=options.landscape == "rotate")

    modality, columns = image_modality("screenshot", 0, SCREENSHOT, (3, height, width))
    absent = {i: "no screenshot file" for i in ids if i not in names}
    return from_files(modality, [i for i in ids if i in names], load, folder.source, columns, absent)


def read_wireframes(raw: Path, samples: pl.DataFrame, options: EnricoOptions) -> Features:
    """One (3, H, W) uint8 array per screen that has a wireframe (`wireframe_source` of the cohort).

    Like the published wireframes, a drawn one has the size of its screenshot before it is resized.

    Raises:
        DataError: while the batches are read, if an image or hierarchy is damaged.
    """
    export, legend = open_export(raw), read_legend(raw)
    images, trees = export["wireframes"].stems(WIREFRAMES), export["hierarchies"].stems(HIERARCHIES)
    height, width = options.image_size
    observed = samples.filter(pl.col("wireframe_source").is_not_null()).sort("sample_id")
    rows = observed.select("sample_id", "wireframe_source", "screen_width", "screen_height").iter_rows()
    plan = {screen_id: (source, size) for screen_id, source, *size in rows}
    absent = {
        s: "no image, and the hierarchy draws nothing" if s in trees else "no image and no hierarchy"
        for s in samples.filter(pl.col("wireframe_source").is_null())["sample_id"]
    }

    def load(screen_id: str) -> NDArray[np.uint8]:
        source, screen = plan[screen_id]
        if source == "png":
            image = export["wireframes"].parse(images[screen_id], decode)
        else:
            hierarchy = export["hierarchies"].parse(trees[screen_id], parse_hierarchy)
            short, long = SCREEN_SIZE if None in screen else sorted(screen)
            upright = hierarchy.canvas[0] <= hierarchy.canvas[1]
            image = render(hierarchy, legend, (short, long) if upright else (long, short)).convert("RGB")
        return to_array(image, (height, width), rotate_landscape=options.landscape == "rotate")

    folder = export["wireframes"] if export["wireframes"].exists else export["hierarchies"]
    modality, columns = image_modality("wireframe", 1, WIREFRAME, (3, height, width))
    return from_files(modality, observed["sample_id"].to_list(), load, folder.source, columns, absent)
