"""Third-party pickles: numpy arrays and builtin containers of any version are read, any other import is refused."""

from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import fractions
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrpipe.errors import DataError
from mrpipe.pickles import read_pickle

CONTENT = {
    "train": {
        "text": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "labels": np.array([[[1.5]], [[-np.inf]]]),
        "id": np.array(["a[0]", "b[1]"]),
        "raw": np.array(["It's 3D", "naïve"], dtype=object),
        "codes": np.array([b"x", b"yz"]),
        "fortran": np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3)),
        "empty": np.empty((0, 5), dtype=np.float64),
        "scalar": np.float64(0.25),
        "flags": np.array([True, False]),
        "plain": [1, 2.5, "three", None, (4, b"5"), {6, 7}, frozenset({8}), bytearray(b"9"), 1 + 2j],
    }
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "x.pkl"
    path.write_bytes(data)
    return path


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        assert a.shape == b.shape
        assert a.tolist() == b.tolist()
    else:
        assert type(a) is type(b)
        assert a == b


def without_frames(data: bytes) -> bytes:
    """The pickle without frames, which are optional, so that lengths in it can be edited."""
    return data[:2] + data[11:] if data[2:3] == b"\x95" else data


def with_old_module_path(data: bytes) -> bytes:
    """The pickle as written by numpy 1: numpy.core instead of numpy._core."""
    data = without_frames(data)
    for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = name.replace(b"_core", b"core")
        data = data.replace(b"\x8c" + bytes([len(name)]) + name, b"\x8c" + bytes([len(old)]) + old).replace(name, old)
    return data


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("age", ["numpy 1", "numpy 2"])
def test_arrays_and_containers_of_every_protocol_are_read(tmp_path: Path, protocol: int, age: str) -> None:
    data = pickle.dumps(CONTENT, protocol=protocol)
    if age == "numpy 1":
        data = with_old_module_path(data)
        assert b"numpy.core" in data
        assert b"numpy._core" not in data
    assert_same(CONTENT, read_pickle(write(tmp_path, data)))


def python2_array(values: list[float]) -> bytes:
    """`cPickle.dumps(numpy.array(values, 'f4'), 2)` of Python 2, where the values are the bytes of a str."""
    numbers = struct.pack(f"<{len(values)}f", *values)
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K" + bytes([len(values)]) + b"\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(numbers)]) + numbers + b"tb."
    )


def test_python_2_arrays_are_read(tmp_path: Path) -> None:
    values = [1.0, -2.5, float("-inf"), 3e38]
    array = read_pickle(write(tmp_path, python2_array(values)))
    assert array.dtype == np.float32
    assert array.tolist() == [np.float32(v) for v in values]


def test_python_2_containers_and_strings_are_read(tmp_path: Path) -> None:
    data = b"\x80\x02}U\x05trainc__builtin__\nset\n]U\x04caf\xe9a\x85Rs."
    assert read_pickle(write(tmp_path, data)) == {"train": {"café"}}


class Runs:
    """An object that runs a command when it is unpickled with `pickle.load`."""

    def __init__(self, call: Any, *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (os.system, ("echo run > {marker}",), "system"),
        (eval, ("__import__('pathlib').Path('{marker}').touch()",), "eval"),
        (getattr, (np, "load"), "getattr"),
        (np.fromfile, ("{marker}",), "numpy"),
        (np.load, ("{marker}",), "numpy"),
        (Path, ("{marker}",), "pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_globals_are_named_and_never_called(
    tmp_path: Path, call: Any, arguments: tuple[Any, ...], named: str, protocol: int
) -> None:
    marker = tmp_path / "ran"
    arguments = tuple(a.format(marker=marker) if isinstance(a, str) else a for a in arguments)
    if call is getattr:
        data = b"\x80\x02cbuiltins\ngetattr\n."
    else:
        data = pickle.dumps({"train": Runs(call, *arguments)}, protocol=protocol)
    with pytest.raises(DataError, match=named) as caught:
        read_pickle(write(tmp_path, data))
    assert caught.value.exit_code == 3
    assert caught.value.faults[0].file == "x.pkl"
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2020, 1, 1),
        decimal.Decimal("0.1"),
        fractions.Fraction(1, 3),
        np.random.default_rng(0),
        np.array([collections.Counter("ab")], dtype=object),
        np.ma.masked_array([1.0]),
        len,
        int.from_bytes,
    ],
    ids=lambda v: type(v).__name__,
)
def test_harmless_classes_are_refused_too(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match="a pickle that imports"):
        read_pickle(write(tmp_path, pickle.dumps([value])))


@pytest.mark.parametrize(
    "name",
    ["numpy.core.multiarray\nfromstring", "numpy\n__builtins__", "builtins\n__import__", "builtins\ndict.fromkeys"],
)
def test_other_names_of_allowed_modules_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="a pickle that imports"):
        read_pickle(write(tmp_path, b"\x80\x02c" + name.encode() + b"\n."))


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_truncation_is_one_problem(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(CONTENT, protocol=protocol)
    for size in range(0, len(data) - 1, 7):
        with pytest.raises(DataError) as caught:
            read_pickle(write(tmp_path, data[:size]))
        assert len(caught.value.faults) == 1


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_give_a_data_error_or_a_value(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(CONTENT, protocol=data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):  # any other exception fails the test
        read_pickle(write(tmp_path, bytes(content)))


def test_other_files_are_data_errors(tmp_path: Path) -> None:
    for content in (b"", b"<html>404</html>", b"\x89HDF\r\n\x1a\n", b"\x00" * 64):
        with pytest.raises(DataError, match=r"x\.pkl: expected a complete pickle file"):
            read_pickle(write(tmp_path, content))


def test_absurd_size_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bytes of a int"):
        read_pickle(write(tmp_path, b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 2**62) + b"\x85R."))
