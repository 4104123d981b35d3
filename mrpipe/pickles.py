"""Pickles and `torch.save` files of other people: numbers, texts, containers and arrays, by a closed grammar.

Nothing in a file is imported or called. Names in it refer to the few functions of this module, which build arrays of
listed dtypes after comparing shape and bytes. The time is linear in the size of the file. Arrays take as much memory as
in the file, and small objects at most 100 times as much.
"""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mrpipe.errors import DataError, Fault
from mrpipe.reading import reading

# Limits of a file: depth of containers, number of containers, and values if shared ones are counted each time.
DEPTH, CONTAINERS, VALUES = 64, 3_000_000, 2**22
_DTYPES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,6}|O[48]?")
_KEYS = (str, bytes, int, float, bool, type(None), np.str_)
Load = Callable[[Any], None]


def plain_array(dtype: "np.dtype[Any]", shape: Any, data: Any, fortran: object = False) -> NDArray[Any]:
    """Array of bytes (read-only, without a copy), or object array of a list; a ValueError if they do not fit."""
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes | bytearray | list) or isinstance(data, list) != dtype.hasobject:
        raise ValueError(f"{dtype} array of {type(data).__name__}")
    largest, size = max(len(data), 2**16), 1 if dtype.hasobject else dtype.itemsize
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n <= largest for n in shape):
        raise ValueError("an array with an invalid shape")
    if math.prod(shape) * size != len(data):
        raise ValueError(f"{dtype} array of shape {shape} with {len(data):,} bytes or objects")
    if isinstance(data, list):
        return np.fromiter(data, dtype=dtype, count=len(data)).reshape(shape)
    if dtype.kind in "bU":
        codes = np.frombuffer(data, dtype="u1" if dtype.kind == "b" else f"{dtype.byteorder}u4")
        if codes.max(initial=0) > (1 if dtype.kind == "b" else 0x10FFFF) or (codes >> 11 == 0x1B).any():
            raise ValueError(f"{dtype} array with invalid bytes")
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C")


class _Name(str):
    """A name that a pickle refers to; it cannot be called, and has no attributes."""

    __slots__ = ()


class _Dtype:
    """A dtype; a pickle sets the byte order afterwards."""

    __slots__ = ("numpy",)

    def __init__(self, name: str, align: object = 0, copy: object = 1):
        if not _DTYPES.fullmatch(name):
            raise ValueError(f"dtype {name[:20]!r}")
        self.numpy = np.dtype(name[0] if name[0] == "O" else name)

    def build(self, version: int, order: str, *state: object) -> None:
        if version != 3 or order not in ("<", ">", "|", "=") or state[:3] != (None, None, None):
            raise ValueError(f"{self.numpy} with fields, a subarray or metadata")
        self.numpy = self.numpy.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """An array whose content follows; `Grammar` replaces it then."""

    __slots__ = ("value",)

    def __init__(self, kind: object, shape: object, typecode: object):
        self.value: NDArray[Any] | None = None

    def build(self, version: int, shape: Any, dtype: _Dtype, fortran: object, data: object) -> None:
        self.value = plain_array(dtype.numpy, shape, data, fortran)


def _keys(items: Any) -> Any:
    """Keys whose hashes are fast, and which a file cannot choose to collide; others are a ValueError."""
    if any(type(key) not in _KEYS or (type(key) is int and key.bit_length() > 64) for key in items):
        raise ValueError("keys that are no texts or numbers")
    return items


def _bytes(text: str | bytes = b"", encoding: str = "latin1") -> bytes:
    """Bytes as Python 2 and 3 pickle them: as such, or as text in Latin-1."""
    if not isinstance(text, str | bytes) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes of a {type(text).__name__}")
    return text.encode("latin1") if isinstance(text, str) else text


def _limited(load: Load, cost: int) -> Load:
    """An operation that takes memory for few bytes of the file (cost 1), or gets a value, perhaps an array."""

    def limited(grammar: Any) -> None:
        grammar.room -= cost
        if grammar.room < 0:
            raise ValueError(f"more than {CONTAINERS:,} containers")
        load(grammar)
        grammar.resolve()

    return limited


# Operations of the base class, without those of objects, extensions and out-of-band buffers.
_REFUSED, _CREATE, _GET = b"ioP\x81\x82\x83\x84\x92\x97\x98", b"]}\x8f)lt\x85\x86\x87(\x94pqr", b"ghj"
_LOADS: dict[int, Load] = {
    code: _limited(load, code in _CREATE) if code in _CREATE + _GET else load
    for code, load in pickle._Unpickler.dispatch.items()
    if code not in _REFUSED
}


class Grammar(pickle._Unpickler):
    """Unpickles plain values; `calls` has the only functions, by name in the file (None: no function).

    The memo of the base class is a dictionary, so that a large index takes no memory (the C version allocates it).
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    calls: ClassVar[Mapping[str, Callable[..., Any] | None]] = {
        "numpy.dtype": _Dtype,
        "numpy.ndarray": None,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray.scalar": lambda dtype, data: plain_array(dtype.numpy, (), data)[()],
        "numpy._core.numeric._frombuffer": lambda data, t, shape, o: plain_array(t.numpy, shape, data, o == "F"),
        "_codecs.encode": _bytes,
        "collections.OrderedDict": lambda: {},
        "builtins.bytes": _bytes,
        "builtins.bytearray": lambda *arguments: bytearray(_bytes(*arguments)),
        "builtins.complex": complex,
        "builtins.set": lambda items=(): set(_keys(items)),
        "builtins.frozenset": lambda items=(): frozenset(_keys(items)),
    }

    advice: ClassVar[str] = "Download it from its publisher."

    def __init__(self, file: Any, shown_as: str, size: int):
        super().__init__(file, encoding="latin1")
        self._shown_as, self.room, self._values = shown_as, CONTAINERS, max(VALUES, 4 * size)

    def load(self) -> Any:
        """The value of the pickle; any exception, if it is damaged."""
        self._check(value := super().load(), 0)
        return value

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
        if known in self.calls:
            return _Name(known)
        expected, found = "arrays and builtin containers only", f"a pickle that imports {module}.{name}"[:200]
        fix = f"The file was not loaded, because it could run code. {self.advice}"
        raise DataError(Fault(file=self._shown_as, expected=expected, found=found, fix=fix))

    def _check(self, value: Any, depth: int) -> None:
        """Check type, depth and number of all values; a shared container counts each time, a text by its length."""
        kind: Any = type(value)
        parts: Any = ()
        if kind in (dict, list, tuple, set, frozenset) or (kind is np.ndarray and value.dtype.hasobject):
            parts = value.flat if kind is np.ndarray else [*value, *value.values()] if kind is dict else value
        elif kind not in (*_KEYS, bytearray, complex) and not isinstance(value, np.generic | np.ndarray):
            raise ValueError(f"a {kind.__name__.strip('_').lower()} without content")
        if (kind is str and not value.isascii() and not value.encode()) or (kind is int and value.bit_length() > 64):
            raise ValueError("an integer of more than 64 bits")
        size = getattr(value, "nbytes", None) or (len(value) if kind in (str, bytes, bytearray) else 0)
        self._values -= 1 + size // 64
        if depth > DEPTH or self._values < 0:
            raise ValueError(f"containers more than {DEPTH} deep, or repeated too often")
        for part in parts:
            self._check(part, depth + 1)

    # Operations that differ from those of the base class.

    def resolve(self) -> None:
        """Replace the array on the stack by its content, if that was read."""
        if self.stack and isinstance(self.stack[-1], _Array) and self.stack[-1].value is not None:
            self.stack[-1] = self.stack[-1].value

    def _reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack[-1]
        call = self.calls[name] if type(name) is _Name else None
        if call is None or type(arguments) is not tuple:
            raise ValueError("a call of something else than a function")
        self.stack[-1] = call(*arguments)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype | _Array) and type(state) is tuple:
            target.build(*state)
            self.resolve()
        elif type(target) is not dict:  # the attributes of an OrderedDict are not needed
            raise ValueError(f"attributes of a {type(target).__name__}")

    def _add(self, items: list[Any]) -> None:
        kind = type(self.stack[-1])
        if kind not in (dict, set):
            raise ValueError(f"items of a {kind.__name__}")
        keys = _keys(items[::2] if kind is dict else items)
        self.stack[-1].update(zip(keys, items[1::2], strict=True) if kind is dict else keys)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._add(items)

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(_keys(items)))

    dispatch: ClassVar[dict[int, Load]] = {
        **_LOADS,
        ord("R"): _reduce,
        ord("b"): _build,
        ord("d"): _limited(_dict, 1),
        ord("s"): lambda self: self._add([self.stack.pop(-2), self.stack.pop()]),
        ord("u"): lambda self: self._add(self.pop_mark()),
        0x90: lambda self: self._add(self.pop_mark()),
        0x91: _limited(_frozenset, 1),
        0x96: lambda self: self.stack.append(bytearray(self.read(int.from_bytes(self.read(8), "little")))),
    }


def read_pickle(path: Path) -> Any:
    """Load a pickle of numpy arrays and builtins; a DataError if it is damaged or contains anything else."""
    with reading(path.name, "a complete pickle file"), path.open("rb") as handle:
        return Grammar(handle, path.name, path.stat().st_size).load()


_STORAGES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2"}
_STORAGES |= {"Char": "i1", "Byte": "u1", "Bool": "b1"}


def _rebuild(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> NDArray[Any]:
    """The part of a storage that a tensor refers to, as a contiguous array; a ValueError if it is not all there."""
    numbers, limit = (offset, *size, *stride), len(storage)
    if any(type(n) is not int or not 0 <= n <= max(limit, 2**16) for n in numbers) or math.prod(size) > limit:
        raise ValueError(f"a tensor of shape {size} with {len(storage)} numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size or last >= len(storage):
        return np.reshape(storage[:0], size)  # a ValueError unless the tensor is empty
    strides = [step * storage.itemsize for step in stride]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(storage[offset:], size, strides)).reshape(size)


class _Tensors(Grammar):
    """Unpickles values and tensors, as arrays, that torch.save wrote."""

    calls = {f"torch.{name}Storage": None for name in _STORAGES} | {
        "torch._utils._rebuild_tensor_v2": _rebuild,
        "collections.OrderedDict": lambda: {},
    }
    advice = "Save an array with numpy.save(path, tensor.cpu().numpy())."

    def __init__(self, archive: zipfile.ZipFile, shown_as: str, size: int):
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise ValueError("compressed or overlapping members")
        (name,) = (m.filename for m in members if m.filename.endswith("/data.pkl"))
        super().__init__(io.BytesIO(archive.read(name)), shown_as, size)
        self._archive, self._folder, self._storages = archive, name.removesuffix("data.pkl"), dict[str, Any]()

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, n = pid
        if key not in self._storages:
            dtype = np.dtype(_STORAGES[kind.removeprefix("torch.").removesuffix("Storage")])
            self._storages[key] = plain_array(dtype, (n,), self._archive.read(f"{self._folder}data/{key}"))
        return self._storages[key]


def read_tensors(path: Path, shown_as: str) -> Any:
    """Content of a `torch.save` file: plain values, with arrays in place of tensors; any exception if damaged."""
    with zipfile.ZipFile(path) as archive:
        return _Tensors(archive, shown_as, path.stat().st_size).load()
