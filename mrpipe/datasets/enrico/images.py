"""Images to feature batches: decode, resize as MultiBench does, channels first, one batch at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from mrpipe.errors import DataError, Fault
from mrpipe.schema import DICTIONARY_SCHEMA, Features, Modality

BATCH_ROWS = 64
CHANNELS = ("red", "green", "blue")
# Raised by Pillow for files that are not images, are truncated, or declare an absurd size.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def damaged_image(shown_as: str, error: BaseException) -> DataError:
    """The error for an image that cannot be decoded."""
    # Pillow's message ends with the memory address of the buffer.
    reason = str(error).split(" <_io")[0] or type(error).__name__
    return DataError(
        Fault(
            file=shown_as,
            expected="a complete JPEG or PNG image",
            found=reason,
            fix="The file is damaged or truncated: download it again.",
        )
    )


def image_size(data: bytes, shown_as: str) -> tuple[int, int]:
    """Width and height from the header; an image that looks truncated is decoded to make sure.

    Raises:
        DataError: if the data is not an image, or is truncated.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            ending = b"\xff\xd9" if image.format == "JPEG" else b"IEND"
            if ending not in data[-32:]:
                image.load()
            return image.size
    except IMAGE_ERRORS as error:
        raise damaged_image(shown_as, error) from error


def decode(data: bytes, shown_as: str) -> Image.Image:
    """Decode an image to RGB; transparency is dropped, as by MultiBench's `convert("RGB")`.

    Raises:
        DataError: if the image is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return image.convert("RGB")
    except IMAGE_ERRORS as error:
        raise damaged_image(shown_as, error) from error


def to_array(image: Image.Image, size: tuple[int, int], *, rotate_landscape: bool = False) -> NDArray[np.uint8]:
    """RGB image to (3, H, W) uint8, resized bilinearly with antialiasing (like torchvision's resize of a PIL image).

    Args:
        size: height and width.
        rotate_landscape: first rotate an image that is wider than tall by 90° counter-clockwise.
    """
    if rotate_landscape and image.width > image.height:
        image = image.transpose(Image.Transpose.ROTATE_90)
    height, width = size
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)


def image_features(
    *,
    name: str,
    bit: int,
    description: str,
    size: Sequence[int],
    ids: Sequence[str],
    load: Callable[[str], NDArray[np.uint8]],
    source: str,
) -> Features:
    """Features of one image modality, decoded lazily in batches of `BATCH_ROWS`.

    Args:
        size: height and width.
        ids: sorted ids of the samples that have the modality.
        load: sample id → (3, H, W) uint8.
        source: folder or archive of the images, for the dictionary.
    """
    height, width = size
    modality = Modality(
        name=name, bit=bit, kind="image", shape=(3, height, width), dtype="uint8", description=description
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(ids), BATCH_ROWS):
            chunk = ids[start : start + BATCH_ROWS]
            pixels_NCHW = np.empty((len(chunk), 3, height, width), dtype=np.uint8)
            for row, sample_id in enumerate(chunk):
                pixels_NCHW[row] = load(sample_id)
            x = pa.FixedSizeListArray.from_arrays(pa.array(pixels_NCHW.reshape(-1)), modality.size)
            yield pa.record_batch([pa.array(chunk, pa.string()), x], schema=modality.arrow_schema())

    dictionary = pl.DataFrame(
        {
            "modality": name,
            "position": range(len(CHANNELS)),
            "name": [f"{name}.{c}" for c in CHANNELS],
            "dtype": "uint8",
            "unit": "0-255",
            "kind": "pixel",
            "levels": None,
            "description": [f"{c} channel, {height} rows of {width} pixels, top left first" for c in CHANNELS],
            "source_file": source,
            "source_column": None,
            "n_observed": len(ids),
            "n_missing": 0,
        },
        schema=DICTIONARY_SCHEMA,
    )
    return Features(modality=modality, batches=batches(), dictionary=dictionary)
