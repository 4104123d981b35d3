"""Arrays in files of other people: HDF5, of a size that its bytes can hold, `.npy` and `.pt`, without torch.

Nothing in a file is executed, and HDF5 files are read without the data of other files that they refer to.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mrpipe.budget import FLOOR, allowed
from mrpipe.errors import DataError, Fault
from mrpipe.pickles import read_tensors
from mrpipe.reading import reading

SUFFIXES = (".npy", ".pt", ".pth", ".h5", ".hdf5")
FIX = "Extract the features again; save a tensor with numpy.save(path, tensor.cpu().numpy())."
TEXTS = 64  # texts that are read at a time, as texts of variable length can share their bytes
DEFLATE = h5py.h5z.FILTER_DEFLATE
_FILTERS = {DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


class Hdf5:
    """An open HDF5 file; problems of its content are a DataError with the path of the group or dataset.

    All datasets together may declare the budget of a file of `size` bytes.
    """

    def __init__(self, root: h5py.File, shown_as: str, fix: str, size: int):
        self.root, self.shown_as, self.fix, self.room = root, shown_as, fix, allowed(size)

    def _reading(self, path: str) -> AbstractContextManager[None]:
        return reading(self.shown_as, "readable data", self.fix, column=path.strip("/"))

    def _refused(self, path: str, expected: str, found: str) -> DataError:
        fault = Fault(file=self.shown_as, column=path.strip("/"), expected=expected, found=found[:200], fix=self.fix)
        return DataError(fault)

    def get(self, group: Any, name: str) -> Any:
        """Member of a group, None if it has none of this name; a link to another place is refused, not followed."""
        if not isinstance(group, h5py.Group):
            return None
        path = f"{group.name}/{name}"
        with self._reading(path):
            link = group.get(name, getlink=True)
            if link is None or isinstance(link, h5py.HardLink):
                return None if link is None else group[name]
        raise self._refused(path, "data in this file", f"a link to another place ({type(link).__name__})")

    def check(self, item: h5py.Dataset) -> None:
        """Raise a DataError unless the file itself contains the declared numbers or texts."""
        path, stored = str(item.name), item.id.get_storage_size()
        if item.external or item.is_virtual:
            raise self._refused(path, "data in this file", "data in another file")
        if item.dtype.kind not in "biufcS" and h5py.check_string_dtype(item.dtype) is None:
            raise self._refused(path, "numbers or texts", f"values of type {item.dtype}")
        # A damaged header can declare terabytes; compression reduces data by a factor of at most 1,032.
        room = self.room - item.nbytes - (math.prod(item.chunks) * item.dtype.itemsize if item.chunks else 0)
        if room < 0 or item.nbytes > max(2**20, 1100 * stored):
            raise self._refused(path, "the declared data", f"shape {item.shape}, but only {stored:,} bytes of data")
        self.room = room
        plan = item.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if not set(filters) <= _FILTERS or len(set(filters)) < len(filters):
            raise self._refused(path, "no compression, gzip or lzf", f"filters {filters}")
        large: list[Any] = []
        if DEFLATE in filters:
            item.id.chunk_iter(lambda chunk: large.append(chunk) if chunk.size > 2**18 else None)
        for chunk in large:
            # HDF5 decompresses a chunk to any size, whatever the header declares.
            data, room = item.id.read_direct_chunk(chunk.chunk_offset)[1], max(FLOOR, 2 * item.nbytes)
            if len(zlib.decompressobj().decompress(data, room + 1)) > room:
                raise self._refused(path, "the declared data", f"a chunk of more than {room:,} bytes")

    def read(self, item: h5py.Dataset) -> NDArray[Any]:
        """All values of a dataset: numbers, or texts as bytes.

        Raises:
            DataError: damaged data, or see `check`.
        """
        with self._reading(str(item.name)):
            self.check(item)
            if item.dtype.kind != "O" or not item.ndim:
                return np.asarray(item[()])
            parts = [np.empty((0, *item.shape[1:]), dtype=object)]
            if math.prod(item.shape[1:]) > TEXTS:
                raise ValueError(f"shape {item.shape}")
            for start in range(0, len(item), TEXTS):
                parts.append(item[start : start + TEXTS])
                self.room -= sum(map(len, parts[-1].ravel()))
                if self.room < 0:
                    raise ValueError("texts that share their bytes")
            return np.concatenate(parts)


@contextmanager
def opened(path: Path, shown_as: str, fix: str, expected: str = "a complete HDF5 file") -> Iterator[Hdf5]:
    """Open an HDF5 file; any exception while it is read becomes a DataError."""
    with reading(shown_as, expected, fix), h5py.File(path, "r") as handle:
        yield Hdf5(handle, shown_as, fix, path.stat().st_size)


def _read(path: Path, shown_as: str, expected: str) -> Any:
    if path.suffix.lower() == ".npy":
        # Mapped, so that a shape that the file is too short for is an error before memory is taken.
        return np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    if path.suffix.lower() in (".pt", ".pth"):
        return read_tensors(path, shown_as)
    with opened(path, shown_as, FIX, expected) as file:
        (name,) = file.root
        item = file.get(file.root, name)
        return file.read(item) if isinstance(item, h5py.Dataset) else item


def read_array(path: Path, shown_as: str) -> Any:
    """The array in a file.

    Raises:
        DataError: damaged, larger than its bytes, or anything else than one array of numbers or texts.
    """
    expected = f"one array in a complete {path.suffix} file"
    with reading(shown_as, expected, FIX):
        array = _read(path, shown_as, expected)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufcSU" or not array.itemsize:
            raise ValueError(f"{getattr(array, 'dtype', type(array).__name__)} instead of an array of numbers")
        return np.array(array) if isinstance(array, np.memmap) else array
