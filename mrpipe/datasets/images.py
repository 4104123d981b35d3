"""Images to arrays: decode, resize as MultiBench does, channels first."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from mrpipe.reading import reading
from mrpipe.schema import Modality

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
SUFFIXES = (".jpg", ".jpeg", ".png")
MIN_SIDE = 8  # pixels; a smaller image is a placeholder or tracking pixel
MAX_PIXELS = 2**25  # an 8K screen; decoded, about 400 MiB


@contextmanager
def _opened(data: bytes, shown_as: str) -> Iterator[Image.Image]:
    """Open an image; any error of Pillow becomes a DataError, and so does an image of few or too many pixels."""
    expected = "a complete JPEG or PNG image"
    with reading(shown_as, expected), Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if min(image.size) < MIN_SIDE or math.prod(image.size) > MAX_PIXELS:
            raise ValueError(f"an image of {image.width} x {image.height} pixels")
        yield image


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


def to_array(image: Image.Image, size: tuple[int, ...], *, rotate_landscape: bool = False) -> NDArray[np.uint8]:
    """RGB or grey image to (C, H, W) uint8, resized bilinearly with antialiasing, as torchvision resizes PIL images.

    Args:
        size: height and width.
        rotate_landscape: first rotate an image that is wider than tall by 90° counter-clockwise.
    """
    if rotate_landscape and image.width > image.height:
        image = image.transpose(Image.Transpose.ROTATE_90)
    height, width = size
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, -1).transpose(2, 0, 1)


def image_modality(name: str, bit: int, description: str, shape: tuple[int, ...]) -> tuple[Modality, dict[str, Any]]:
    """Modality of images of a shape (C, H, W), and the columns of its dictionary."""
    n_channels, height, width = shape
    channels = CHANNELS[n_channels]
    modality = Modality(name=name, bit=bit, kind="image", shape=shape, dtype="uint8", description=description)
    texts = [f"{c} channel, {height} rows of {width} pixels, top left first" for c in channels]
    columns: dict[str, Any] = {"name": [f"{name}.{c}" for c in channels], "description": texts, "source_column": None}
    return modality, columns | {"dtype": "uint8", "unit": "0-255", "kind": "pixel"}
