"""Modality `screenshot`: the JPEG of each screen as RGB, by default resized to the size used by MultiBench."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.datasets.enrico.options import EnricoOptions
from mrpipe.datasets.features import from_files
from mrpipe.datasets.images import SUFFIXES, decode, image_modality, to_array
from mrpipe.raw import Folder
from mrpipe.schema import Features

DESCRIPTION = "screenshot, RGB, channels first, resized bilinearly; values 0-255, not normalised"


def read_screenshots(raw: Path, samples: pl.DataFrame, options: EnricoOptions) -> Features:
    """One (3, H, W) uint8 array per screen that has a screenshot.

    Raises:
        DataError: while the batches are read, if an image is damaged.
    """
    folder = Folder(raw, "screenshots")
    names = folder.stems(SUFFIXES)
    ids = samples["sample_id"].sort().to_list()
    height, width = options.image_size

    def load(screen_id: str) -> NDArray[np.uint8]:
        image = folder.parse(names[screen_id], decode)
        return to_array(image, (height, width), rotate_landscape=options.landscape == "rotate")

    modality, columns = image_modality("screenshot", 0, DESCRIPTION, (3, height, width))
    absent = {i: "no screenshot file" for i in ids if i not in names}
    return from_files(modality, [i for i in ids if i in names], load, folder.source, columns, absent)
