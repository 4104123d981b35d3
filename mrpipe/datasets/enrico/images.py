"""Images to feature batches: decode, resize as MultiBench does, channels first, one batch at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from mrpipe.errors import DataError, Fault
from mrpipe.schema import DICTIONARY_SCHEMA, TRIED_SCHEMA, Features, Modality

BATCH_ROWS = 64
CHANNELS = ("red", "green", "blue")
SUFFIXES = (".jpg", ".jpeg", ".png")
MIN_SIDE = 8  # pixels; a smaller image is a placeholder or tracking pixel


@contextmanager
def _opened(data: bytes, shown_as: str) -> Iterator[Image.Image]:
    """Open an image; any error of Pillow becomes a DataError, and so does an image of a few pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if min(image.size) < MIN_SIDE:
                raise ValueError(f"an image of {image.width} x {image.height} pixels")
            yield image
    except Exception as error:  # damaged bytes can raise any exception
        # Pillow's message ends with the memory address of the buffer.
        reason = str(error).split(" <_io")[0] or type(error).__name__
        expected, fix = "a complete JPEG or PNG image", "The file is damaged or truncated: download it again."
        raise DataError(Fault(file=shown_as, expected=expected, found=reason, fix=fix)) from error


def image_size(data: bytes, shown_as: str) -> tuple[int, int]:
    """Width and height from the header, upright; an image that looks truncated is decoded to make sure.

    Raises:
        DataError: if the data is not an image, is truncated, or has a side of less than `MIN_SIDE` pixels.
    """
    with _opened(data, shown_as) as image:
        ending = b"\xff\xd9" if image.format == "JPEG" else b"IEND"
        if ending not in data[-32:]:
            image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if turned else image.size


def decode(data: bytes, shown_as: str) -> Image.Image:
    """Decode an image to RGB, upright by its EXIF orientation; 16-bit grey values are scaled to 8 bits.

    Transparency is dropped, as by MultiBench's `convert("RGB")`.

    Raises:
        DataError: if the image is damaged or has a side of less than `MIN_SIDE` pixels.
    """
    with _opened(data, shown_as) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            # Pillow would clip the values at 255.
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        return image.convert("RGB")


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
    absent: Mapping[str, str],
) -> Features:
    """Features of one image modality, decoded lazily in batches of `BATCH_ROWS`.

    Args:
        size: height and width.
        ids: sorted ids of the samples that have the modality.
        load: sample id → (3, H, W) uint8.
        source: folder or archive of the images, for the dictionary.
        absent: sample id → the reason why it lacks the modality.
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

    channels = {
        "name": [f"{name}.{c}" for c in CHANNELS],
        "description": [f"{c} channel, {height} rows of {width} pixels, top left first" for c in CHANNELS],
    }
    same = {"modality": name, "dtype": "uint8", "unit": "0-255", "kind": "pixel", "source_file": source}
    counted = {"position": range(len(CHANNELS)), "n_observed": len(ids), "n_missing": 0}
    columns = {**dict.fromkeys(DICTIONARY_SCHEMA), **channels, **same, **counted}
    dictionary = pl.DataFrame(columns, schema=DICTIONARY_SCHEMA)

    def tried() -> pl.DataFrame:
        rows = [(i, 0, "failed" if i in absent else "ok", absent.get(i)) for i in sorted({*ids, *absent})]
        return pl.DataFrame(rows, schema=TRIED_SCHEMA, orient="row")

    return Features(modality=modality, batches=batches(), dictionary=dictionary, tried=tried if absent else None)
