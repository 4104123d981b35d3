"""Numpy arrays, and fitted transforms that consist of them, in JSON."""

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """Dtype, shape and base64 of the little-endian bytes of an array: identical on every machine."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return {"dtype": little.dtype.str, "shape": list(array.shape), "data": base64.b64encode(little.tobytes()).decode()}


def decode_array(value: Mapping[str, Any]) -> NDArray[Any]:
    """Decode the value of `encode_array` into an array in native byte order."""
    data = np.frombuffer(base64.b64decode(value["data"]), dtype=value["dtype"])
    return data.reshape(value["shape"]).astype(np.dtype(value["dtype"]).newbyteorder("="))


class Encoded:
    """Base of dataclasses with fields of arrays, tuples and plain values, stored as a JSON object with their `kind`."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        values = {k: encode_array(v) if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; version 0.1.0 stored the arrays of event transforms as lists."""
        made: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            stored = value[field.name]
            if isinstance(stored, list):
                number = np.float32 if field.type == NDArray[np.float32] else np.int64
                stored = tuple(stored) if str(field.type).startswith("tuple") else np.array(stored, dtype=number)
            made[field.name] = decode_array(stored) if isinstance(stored, dict) else stored
        return cls(**made)
