"""Numpy arrays in JSON: dtype, shape and base64 of the little-endian bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """Encode an array as a JSON value that is identical on every machine."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return {"dtype": little.dtype.str, "shape": list(array.shape), "data": base64.b64encode(little.tobytes()).decode()}


def decode_array(value: Mapping[str, Any]) -> NDArray[Any]:
    """Decode the value of `encode_array` into an array in native byte order."""
    data = np.frombuffer(base64.b64decode(value["data"]), dtype=value["dtype"])
    return data.reshape(value["shape"]).astype(np.dtype(value["dtype"]).newbyteorder("="))
