"""The array of a `.npy`, `.pt` or `.h5` file; nothing in it is executed, and torch is not needed."""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mrpipe.delimited import unreadable

SUFFIXES = (".npy", ".pt", ".pth", ".h5", ".hdf5")
LIMIT = 2**30  # bytes of one clip's features
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2"}
STORAGES |= {"LongStorage": "<i8", "IntStorage": "<i4"}


class _Tensors(pickle.Unpickler):
    """Unpickles a tensor that torch.save wrote; refuses every import but those of a tensor of numbers."""

    def __init__(self, archive: zipfile.ZipFile):
        (member,) = (m for m in archive.namelist() if m.endswith("/data.pkl"))
        super().__init__(io.BytesIO(archive.read(member)))
        self.archive, self.folder = archive, member.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(f"it imports {module}.{name}, which is no tensor of numbers")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, n = pid
        return np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype=dtype, count=n)


def _rebuild(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
    """A copy of the elements of a storage that a tensor refers to; an IndexError if it has fewer."""
    if math.prod(size) > len(storage):
        raise IndexError(f"a tensor of shape {size} with {len(storage)} numbers")
    index = np.full(size, offset, dtype=np.int64)
    for axis, step in enumerate(stride):
        index += np.expand_dims(np.arange(size[axis]) * step, [a for a in range(len(size)) if a != axis])
    return storage[index]


def _read(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix.lower() == ".npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if path.suffix.lower() in (".pt", ".pth"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LIMIT:
                raise ValueError(f"more than {LIMIT:,} bytes")
            return _Tensors(archive).load()
    with h5py.File(io.BytesIO(data), "r") as handle:
        (item,) = handle.values()
        if item.nbytes > LIMIT:
            raise ValueError(f"more than {LIMIT:,} bytes")
        return item[()]


def read_array(path: Path, shown_as: str) -> Any:
    """The array in a file.

    Raises:
        DataError: damaged, too large, or anything else than one array.
    """
    try:
        return _read(path)
    except Exception as error:  # damaged bytes can raise any exception
        fix = "Extract the features again; save a tensor with numpy.save(path, tensor.cpu().numpy())."
        raise unreadable(error, shown_as, f"one array in a complete {path.suffix} file", fix) from error
