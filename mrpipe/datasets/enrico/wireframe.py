"""Modality `wireframe`: the semantic wireframe of each screen, from its PNG or drawn from its hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.enrico.hierarchy import parse_hierarchy, render
from mrpipe.datasets.enrico.images import decode, image_features, to_array
from mrpipe.datasets.enrico.tables import EnricoExport, EnricoOptions, open_export, read_legend
from mrpipe.schema import Features

DESCRIPTION = (
    "semantic wireframe, RGB (transparent pixels black, as MultiBench has them), channels first, resized bilinearly; "
    "values 0-255, not normalised; column wireframe_source of the samples says which were drawn from the hierarchy"
)


def wireframe_sources(
    export: EnricoExport, screen_ids: Sequence[str], unavailable: frozenset[str], options: EnricoOptions
) -> list[str | None]:
    """Where the wireframe of each screen comes from: `png`, `rendered`, or None where there is none.

    Args:
        unavailable: screens whose picture is known to be unusable; whatever lies in its place is not read.
    """
    pictures, hierarchies = export.wireframes.names(), export.hierarchies.names()

    def source(screen_id: str) -> str | None:
        picture = f"{screen_id}.png" in pictures and screen_id not in unavailable
        hierarchy = f"{screen_id}.json" in hierarchies
        if hierarchy and (options.wireframes == "render" or (not picture and options.render_missing_wireframes)):
            return "rendered"
        return "png" if picture else None

    return [source(s) for s in screen_ids]


def read_wireframes(raw: Path, samples: pl.DataFrame, options: EnricoOptions) -> Features:
    """(3, H, W) uint8 for each screen that has a wireframe (`wireframe_source` of the cohort).

    A wireframe that is drawn has the size of its screenshot, as the published ones have, before it is resized.

    Raises:
        DataError: while the batches are read, for a picture or hierarchy that is damaged.
    """
    export, legend = open_export(raw), read_legend(raw)
    height, width = options.image_size
    observed = samples.filter(pl.col("wireframe_source").is_not_null()).sort("sample_id")
    rows = observed.select("sample_id", "wireframe_source", "screen_width", "screen_height").iter_rows()
    plan = {screen_id: (source, size) for screen_id, source, *size in rows}

    def load(screen_id: str) -> NDArray[np.uint8]:
        source, screen = plan[screen_id]
        if source == "png":
            name = f"{screen_id}.png"
            image = decode(export.wireframes.read(name), f"{export.wireframes.source}/{name}")
        else:
            name = f"{screen_id}.json"
            shown_as = f"{export.hierarchies.source}/{name}"
            hierarchy = parse_hierarchy(export.hierarchies.read(name), shown_as, screen_id)
            short, long = sorted(screen)
            upright = hierarchy.canvas[0] <= hierarchy.canvas[1]
            image = render(hierarchy, legend, (short, long) if upright else (long, short)).convert("RGB")
        return to_array(image, (height, width), rotate_landscape=options.landscape == "rotate")

    folder = export.wireframes if export.wireframes.exists else export.hierarchies
    return image_features(
        name="wireframe",
        bit=1,
        description=DESCRIPTION,
        size=options.image_size,
        ids=observed["sample_id"].to_list(),
        load=load,
        source=folder.source,
    )
