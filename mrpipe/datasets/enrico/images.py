"""Pictures to feature batches: decode, resize as MultiBench does, channels first, a batch at a time."""

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
# What Pillow raises for a file that is no picture, is cut short, or claims an absurd size.
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def broken_picture(shown_as: str, error: BaseException) -> DataError:
    """The fault of a picture that cannot be decoded."""
    # Pillow's message ends with the memory address of the buffer it was given.
    reason = str(error).split(" <_io")[0] or type(error).__name__
    return DataError(
        Fault(
            file=shown_as,
            expected="a complete JPEG or PNG picture",
            found=f"{reason}",
            fix="The file is damaged or cut short: download it again.",
        )
    )


def picture_size(data: bytes, shown_as: str) -> tuple[int, int]:
    """Width and height from the header; a picture that seems cut short is decoded to make sure.

    Raises:
        DataError: not a picture, or one that is cut short.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            ending = b"\xff\xd9" if image.format == "JPEG" else b"IEND"
            if ending not in data[-32:]:
                image.load()
            return image.size
    except PICTURE_ERRORS as error:
        raise broken_picture(shown_as, error) from error


def decode(data: bytes, shown_as: str) -> Image.Image:
    """Decode a picture to RGB; transparency is dropped, as MultiBench's `convert("RGB")` does.

    Raises:
        DataError: names the file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return image.convert("RGB")
    except PICTURE_ERRORS as error:
        raise broken_picture(shown_as, error) from error


def to_array(image: Image.Image, size: tuple[int, int], *, rotate_landscape: bool = False) -> NDArray[np.uint8]:
    """RGB picture to (3, H, W) uint8, resized bilinearly with antialiasing (what torchvision does to a PIL image).

    Args:
        size: height and width.
        rotate_landscape: turn a picture that is wider than tall by 90° counter-clockwise first.
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
    """Features of one picture modality, decoded lazily in batches of `BATCH_ROWS`.

    Args:
        size: height and width.
        ids: sample ids that have the modality, sorted.
        load: sample id → (3, H, W) uint8.
        source: the folder or archive it comes from, for the dictionary.
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
