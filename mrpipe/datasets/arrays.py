"""The array of a `.npy`, `.pt` or `.h5` file; nothing in it is executed, and torch is not needed."""

from pathlib import Path
from typing import Any

import numpy as np

from mrpipe.datasets.hdf5 import opened
from mrpipe.pickles import read_tensors
from mrpipe.reading import reading

SUFFIXES = (".npy", ".pt", ".pth", ".h5", ".hdf5")
FIX = "Extract the features again; save a tensor with numpy.save(path, tensor.cpu().numpy())."


def _read(path: Path, shown_as: str) -> Any:
    if path.suffix.lower() == ".npy":
        # Mapped, so that a shape that the file is too short for is an error before memory is taken.
        return np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    if path.suffix.lower() in (".pt", ".pth"):
        return read_tensors(path, shown_as)
    with opened(path, shown_as, FIX) as file:
        (name,) = file.root
        return file.read(file.get(file.root, name))


def read_array(path: Path, shown_as: str) -> Any:
    """The array in a file.

    Raises:
        DataError: damaged, larger than its bytes, or anything else than one array of numbers or texts.
    """
    with reading(shown_as, f"one array in a complete {path.suffix} file", FIX):
        array = _read(path, shown_as)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufcSU" or not array.itemsize:
            raise ValueError(f"{getattr(array, 'dtype', type(array).__name__)} instead of an array of numbers")
        return np.array(array) if isinstance(array, np.memmap) else array
