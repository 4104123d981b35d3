"""Hostile arrays and HDF5 files: refused in a child process without a crash, in little memory and time."""

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mrpipe.datasets.arrays import read_array
from mrpipe.datasets.mosi.formats import csd
from mrpipe.errors import DataError
from tests.faults.children import outcomes

ARRAYS = "from mrpipe.datasets.arrays import read_array\nread = lambda path: read_array(path, path.name)"
CSD = "from mrpipe.datasets.mosi.formats.csd import each, inspect\nread = lambda path: len(dict(each(inspect(path))))"


def npy(header: str, data: bytes = b"\0" * 64) -> bytes:
    """A `.npy` file with this header."""
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + data


def described(descr: object, shape: object) -> bytes:
    return npy(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n")


NPY = {
    "huge.npy": described("<f8", (10**12,)),
    "overflow.npy": described("<f8", (2**40, 2**40)),
    "negative.npy": described("<f8", (-1, -8)),
    "objects.npy": described("|O", (8,)),
    "fields.npy": described([("a", "<f8"), ("b", "|O")], (2,)),
    "subarray.npy": described([("a", "<f8", (10**9,))], (1,)),
    "no_bytes.npy": described("|S0", (10**15,)),
    "dates.npy": described("<M8[s]", (8,)),
    "deep.npy": npy("(" * 9000),
    "long.npy": npy("{" + "'a': 1, " * 10**6 + "}"),
    "pickle.npy": b"\x80\x04]\x94.",
    "empty.npy": b"",
}


def tensor_file(pickled: bytes, storage: bytes = b"\0" * 64, compress: int = zipfile.ZIP_STORED) -> bytes:
    """A `torch.save` file with this pickle and one storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", storage)
    return out.getvalue()


def tensor(size: bytes, stride: bytes, offset: bytes = b"I0\n", n: bytes = b"I16\n", key: bytes = b"0") -> bytes:
    """The pickle of a tensor; sizes are operations."""
    pid = b"(S'storage'\nctorch\nFloatStorage\nS'" + key + b"'\nS'cpu'\n" + n + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + pid
        + offset
        + size
        + stride
        + b"I00\nccollections\nOrderedDict\n)RtR."
    )


TENSORS = {
    "expanded.pt": tensor_file(tensor(b"(I1000000000000\nt", b"(I0\nt")),
    "stride.pt": tensor_file(tensor(b"(I4\nI4\nt", b"(I1000000000000\nI1\nt")),
    "negative_stride.pt": tensor_file(tensor(b"(I4\nt", b"(I-1\nt")),
    "offset.pt": tensor_file(tensor(b"(I4\nt", b"(I1\nt", b"I13\n")),
    "negative_offset.pt": tensor_file(tensor(b"(I4\nt", b"(I1\nt", b"I-4\n")),
    "negative_size.pt": tensor_file(tensor(b"(I-4\nt", b"(I1\nt")),
    "strides.pt": tensor_file(tensor(b"(I4\nt", b"(I1\nI1\nt")),
    "size_no_tuple.pt": tensor_file(tensor(b"I4\n", b"(I1\nt")),
    "empty_huge.pt": tensor_file(tensor(b"(I0\nI1000000000000\nt", b"(I1\nI1\nt")),
    "storage.pt": tensor_file(tensor(b"(I16\nt", b"(I1\nt", n=b"I1000000000000\n")),
    "other_storage.pt": tensor_file(tensor(b"(I16\nt", b"(I1\nt", key=b"../data.pkl")),
    "compressed.pt": tensor_file(tensor(b"(I16\nt", b"(I1\nt"), b"\0" * 2**28, zipfile.ZIP_DEFLATED),
    "dictionary.pt": tensor_file(b"}."),
    "runs.pt": tensor_file(b"cposix\nsystem\n(S'true'\ntR."),
    "no_archive.pt": b"PK\x03\x04",
}


def test_hostile_arrays_are_refused(tmp_path: Path) -> None:
    found = outcomes(tmp_path, NPY | TENSORS, ARRAYS)
    assert {name: result for name, result in found.items() if not result.startswith("DataError")} == {}


@pytest.mark.parametrize("dtype", ["f4", "f2", ">f8", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 5)])
def test_arrays_and_tensors_are_read(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    x = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 3).astype(dtype)
    np.save(tmp_path / "x.npy", np.array(x, order="F"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "x", data=x, compression="gzip" if x.size and x.ndim else None, shuffle=bool(x.size and x.ndim)
        )
    native = torch.from_numpy(np.array(x, x.dtype.newbyteorder("="), order="F"))
    torch.save(native, tmp_path / "x.pt")
    for suffix in ("npy", "h5", "pt"):
        read = read_array(tmp_path / f"x.{suffix}", "x")
        assert (read.shape, read.dtype.newbyteorder("=")) == (x.shape, x.dtype.newbyteorder("="))
        assert read.tolist() == x.tolist()


@pytest.mark.parametrize("view", [lambda x: x[2:, 1], lambda x: x.T[1:3], lambda x: x[::2], lambda x: x[:0]])
def test_views_of_a_storage_are_read(tmp_path: Path, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = view(torch.arange(24.0).reshape(6, 4))
    torch.save(x, tmp_path / "x.pt")
    assert read_array(tmp_path / "x.pt", "x").tolist() == x.tolist()


# --- HDF5 ------------------------------------------------------------------------------------------------------------


def sequence(path: Path, change: Callable[[h5py.File], object] | None = None) -> Path:
    """A small .csd file of two videos, modified by `change`."""
    with h5py.File(path, "w") as file:
        for video in ("a", "b"):
            group = file.create_group(f"COVAREP/data/{video}")
            group["features"] = np.arange(12, dtype="f4").reshape(4, 3)
            group["intervals"] = np.array([[0, 1], [1, 2], [2, 3], [3, 4]], dtype="f8")
        file["COVAREP/metadata/root name"] = np.array([b"COVAREP"])
        if change is not None:
            change(file)
    return path


def replace(name: str, make: Callable[[h5py.Group], object]) -> Callable[[h5py.File], None]:
    """Change that replaces an entry of the first video, or the whole sequence, by what `make` puts into its group."""

    def change(file: h5py.File) -> None:
        del file[name]
        make(file[name.rpartition("/")[0] or "/"])

    return change


def bomb(group: h5py.Group) -> None:
    """A chunk that decompresses to far more than its dataset declares."""
    data = group.create_dataset("features", (4, 3), "f4", chunks=(4, 3), compression="gzip")
    compressor = zlib.compressobj()
    block = b"\0" * 2**20
    data.id.write_direct_chunk((0, 0), b"".join(compressor.compress(block) for _ in range(320)) + compressor.flush())


def texts(file: h5py.File) -> None:
    """Words instead of numbers, of variable length."""
    for video in ("a", "b"):
        del file[f"COVAREP/data/{video}/features"]
        data = file.create_dataset(f"COVAREP/data/{video}/features", (4, 1), h5py.string_dtype())
        data[:] = np.array([["x" * 2**20], ["é"], [""], ["word"]], dtype=object)


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 3))
    group.create_virtual_dataset("features", layout)


def put(name: str, value: object) -> Callable[[h5py.File], None]:
    return replace(name, lambda group: group.__setitem__(name.rpartition("/")[2], value))


def made(*arguments: object, name: str = "COVAREP/data/a/features", **named: object) -> Callable[[h5py.File], None]:
    return replace(name, lambda group: group.create_dataset(name.rpartition("/")[2], *arguments, **named))


OTHER, FEATURES, TIMES = h5py.ExternalLink("o.h5", "/x"), "COVAREP/data/a/features", "COVAREP/data/a/intervals"
CHANGES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external_link": (put(FEATURES, OTHER), "link"),
    "external_group": (put("COVAREP/data", OTHER), "link"),
    "external_root": (put("COVAREP", OTHER), "link"),
    "soft_link": (put(FEATURES, h5py.SoftLink("/COVAREP/data/b")), "link"),
    "external_storage": (made((4, 3), "f4", external=[("/etc/passwd", 0, 48)]), "another file"),
    "virtual": (replace(FEATURES, virtual), "another file"),
    "fill": (made((4, 10**12), "f4", chunks=(4, 1000)), "only 0 bytes"),
    "chunk": (made((4, 3), "f4", chunks=(2**14, 2**14), maxshape=(None, None)), "bytes of data"),
    "references": (
        replace(FEATURES, lambda g: g.create_dataset("features", data=[[g.ref]] * 4, dtype=h5py.ref_dtype)),
        "values of type",
    ),
    "compound": (made((4, 1), "f4,i4"), "values of type"),
    "times_of_text": (made(data=np.full((4, 2), b"x"), name=TIMES), "S1"),
    "filters": (made(data=np.ones((4, 3)), scaleoffset=2), "filters"),
    "bomb": (replace(FEATURES, bomb), "chunk"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_data_of_other_files_and_absurd_sizes_are_refused(tmp_path: Path, name: str) -> None:
    change, found = CHANGES[name]
    with h5py.File(tmp_path / "o.h5", "w") as file:
        file["x/features"] = np.ones((4, 3))
    path = sequence(tmp_path / "x.csd", change)
    with pytest.raises(DataError) as caught:
        dict(csd.each(csd.inspect(path)))
    assert found in str(caught.value)
    assert "COVAREP" in str(caught.value.faults[0].column)


def test_a_file_that_is_not_changed_is_read(tmp_path: Path) -> None:
    entries = dict(csd.each(csd.inspect(sequence(tmp_path / "x.csd"))))
    assert entries["b"].features.tolist() == np.arange(12).reshape(4, 3).tolist()
    words = dict(csd.each(csd.inspect(sequence(tmp_path / "y.csd", texts))))
    assert words["a"].features.tolist() == ["x" * 2**20, "é", "", "word"]


def check_mutations(folder: Path, n: int, batch: int) -> None:
    content = sequence(folder / "x.csd").read_bytes()
    rng = np.random.default_rng(0)
    files = {}
    for i in range(n):
        damaged = bytearray(content if i % 2 else content[: int(rng.integers(len(content)))])
        for at in rng.integers(0, len(damaged) or 1, int(rng.integers(1, 6))) if damaged else ():
            damaged[at] = int(rng.integers(256)) if rng.random() < 0.7 else 255
        files[f"{i}.csd"] = bytes(damaged)
    names = list(files)
    for start in range(0, n, batch):
        part = {name: files[name] for name in names[start : start + batch]}
        found = outcomes(folder / str(start), part, CSD)
        assert {k: r for k, r in found.items() if r != "read" and not r.startswith("DataError")} == {}


def test_damaged_hdf5_files_are_errors_or_read(tmp_path: Path) -> None:
    check_mutations(tmp_path, 150, 150)


@pytest.mark.slow
def test_many_damaged_hdf5_files_are_errors_or_read(tmp_path: Path) -> None:
    check_mutations(tmp_path, 2000, 500)
