"""Hostile pickles: refused in a child process without a crash, in little memory and time."""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mrpipe.errors import DataError
from mrpipe.pickles import read_pickle
from tests.faults.children import outcomes

READER = "from mrpipe.pickles import read_pickle as read"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
DTYPE = b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR"
STATE = b"(I3\nS'%s'\nNNNI-1\nI-1\nI63\ntb"
POINTERS = b"S'" + b"A" * 56 + b"'\n"
ACCENTS, HUGE = b"\xc3\xa9" * 300_000, struct.pack("<Q", 2**40)


def array(dtype: bytes, shape: bytes, data: bytes) -> bytes:
    """An array as numpy pickles it; `shape` and `data` are operations."""
    return ARRAY + b"(I1\n" + shape + DTYPE % dtype + STATE % b"<" + b"I00\n" + data + b"tb."


def colliding() -> bytes:
    """A dictionary with 50,000 keys of the same hash."""
    keys = (int.to_bytes(k * (2**61 - 1), 10, "little") for k in range(1, 50_000))
    return b"\x80\x02}(" + b"".join(b"\x8a\x0a" + k + b"N" for k in keys) + b"u."


HOSTILE = {
    "pointers": array(b"O8", b"(I7\nt", POINTERS),
    "pointers_scalar": b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"O8" + b"S'AAAAAAAA'\ntR.",
    "pointers_frombuffer": b"cnumpy.core.numeric\n_frombuffer\n(" + POINTERS + DTYPE % b"O8" + b"(I7\ntS'C'\ntR.",
    "array_called": b"cnumpy\nndarray\n((I7\ntS'O'\nS'AAAA'\ntR.",
    "second_state": array(b"f4", b"(I1\nt", b"S'AAAA'\n")[:-1] + b"(I1\n(I9\nt" + DTYPE % b"f4" + b"I00\nS''\ntb.",
    "dtype_fields": DTYPE % b"V8" + b"(I3\nS'|'\nN(S'a'\nt}S'a'\n(" + DTYPE % b"O8" + b"I64\ntsI8\nI1\nI0\ntb.",
    "dtype_subarray": DTYPE % b"f4" + b"(I3\nS'|'\n(" + DTYPE % b"f4" + b"(I99999999\nttNNI4\nI1\nI0\ntb.",
    "dtype_of_list": b"cnumpy\ndtype\n((lS'O8'\natR.",
    "dtype_itself": DTYPE % b"f4" + b".",
    "array_without_content": ARRAY + b".",
    "array_of_itself": ARRAY + b"p0\n(I1\n(I1\nt" + DTYPE % b"O8" + STATE % b"|" + b"I00\n(lg0\natb.",
    "shape_negative": array(b"f4", b"(I-1\nI-1\nt", b"S'AAAA'\n"),
    "shape_huge": array(b"f4", b"(L99999999999999999999L\nt", b"S'AAAA'\n"),
    "shape_huge_empty": array(b"f4", b"(I0\nI1152921504606846976\nt", b"S''\n"),
    "shape_true": array(b"f4", b"(I01\nt", b"S'AAAA'\n"),
    "shape_overflows": array(b"f4", b"(I4294967296\nI4294967296\nt", b"S''\n"),
    "no_character": array(b"U1", b"(I1\nt", b"S'AAAA'\n"),
    "half_character": array(b"U1", b"(I1\nt", rb"S'\x00\xd8\x00\x00'" + b"\n"),
    "no_boolean": array(b"b1", b"(I1\nt", rb"S'\x02'" + b"\n"),
    "no_bytes": array(b"S0", b"(I99999999\nt", b"S''\n"),
    "dates": array(b"M8", b"(I1\nt", b"S'AAAAAAAA'\n"),
    "attributes": b"cnumpy.core.multiarray\nscalar\n}S'__wrapped__'\nI1\nsb.",
    "attributes_of_name": b"cnumpy\ndtype\n}S'x'\nI1\nsb.",
    "bytearray_huge": b"cbuiltins\nbytearray\n(L1000000000000L\ntR.",
    "punycode": b"\x80\x02c_codecs\nencode\n(X"
    + struct.pack("<I", 600_000)
    + b"\xc3\xa9" * 300_000
    + b"U\x08punycodetR.",
    "number_of_digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "number_of_bytes": b"\x8b" + struct.pack("<i", 3_000_000) + b"\x7f" * 3_000_000 + b".",
    "depth_list": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "depth_tuple": b"\x80\x02N" + b"\x85" * 200_000 + b".",
    "depth_key": b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.",
    "depth_member": b"\x80\x04\x8f(N" + b"\x85" * 300_000 + b"\x90.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "doubled": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".",
    "repeated": b"\x80\x02U\xffq\x00".replace(b"U\xff", b"T" + struct.pack("<i", 2**20) + b"x" * 2**20)
    + b"]("
    + b"h\x00" * 1000
    + b"e.",
    "colliding": colliding(),
    "sets": b"\x80\x04" + b"\x8f" * 3_100_000 + b".",
    "extension": b"\x80\x02\x82\x01.",
    "extension_4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "persistent": b"Pid\n.",
    "persistent_binary": b"NQ.",
    "instance": b"(icollections\nOrderedDict\n.",
    "object": b"(cbuiltins\nset\no.",
    "new_object": b"\x80\x02cbuiltins\nset\n)\x81.",
    "new_object_4": b"\x80\x04\x8c\x08builtins\x8c\x03set\x93)}\x92.",
    "buffer": b"\x80\x05\x97.",
    "half_text": b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.",
    **{f"length_{code.hex()}": b"\x80\x05" + code + HUGE + b"." for code in (b"\x8d", b"\x8e", b"\x96", b"\x95")},
    "length_4": b"\x80\x05B\xff\xff\xff\xff.",
}


def test_hostile_pickles_are_refused(tmp_path: Path) -> None:
    # A large place in the memo takes no memory.
    found = outcomes(tmp_path, HOSTILE | {"memo": b"Nr\xff\xff\xff\x7f."}, READER)
    assert found.pop("memo") == "read"
    assert {name: result for name, result in found.items() if not result.startswith("DataError")} == {}
    assert all(result.count("\n") == 0 and len(result) < 399 for result in found.values())


@pytest.mark.parametrize(
    "value",
    [
        np.float16([1, -2.5]),
        np.array(3.5, dtype=">f4"),
        np.array([[1, 2], [3, 4]], dtype=">i2", order="F"),
        np.array([[["a"], None], [{"b": 1}, 2.0]], dtype=object),
        np.asfortranarray(np.array([["a", "b", "c"], ["d", "e", "é"]], dtype=object)),
        np.array(["é", "ab"]),
        np.zeros((3, 0, 2), dtype="<f8"),
        np.complex64([1 + 2j]),
        [np.int8(3), np.str_("é"), np.bytes_(b"x"), np.bool_(True), np.float32(2)],
        {"a": [("x",)] * 3, 5: bytearray(b"\0\1"), b"k": b""},
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", range(6))
def test_what_numpy_and_python_write_is_read(tmp_path: Path, value: object, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    read = read_pickle(path)
    assert type(read) is type(value)
    assert repr(read) == repr(value)
    if isinstance(value, np.ndarray):
        assert read.dtype == value.dtype
        assert read.tolist() == value.tolist()


@pytest.mark.parametrize("protocol", range(6))
def test_an_ordered_dictionary_is_read_as_a_dictionary(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(a=OrderedDict(b=1), c=[2]), protocol))
    read = read_pickle(path)
    assert type(read) is type(read["a"]) is dict
    assert list(read.items()) == [("a", {"b": 1}), ("c", [2])]


@pytest.mark.parametrize(
    "value", [np.array(["2020-01-01"], dtype="M8[D]"), np.zeros(2, dtype="i4,f4"), np.longdouble(1)]
)
def test_other_dtypes_are_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match="dtype"):
        read_pickle(path)


def mutations(content: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Damaged copies: bytes replaced, removed, repeated, or replaced by operations and by parts of hostile files."""
    rng = np.random.default_rng(seed)
    parts = [*HOSTILE.values(), *(bytes([b]) for b in b"Rbcq\x93\x94\x8a\x8b\x95\x96.(tuse")]
    parts = [p for p in parts if len(p) < 500]
    for _ in range(n):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            at, size = int(rng.integers(len(damaged))), int(rng.integers(1, 9))
            match int(rng.integers(4)):
                case 0:
                    damaged[at] = int(rng.integers(256))
                case 1:
                    del damaged[at : at + size]
                case 2:
                    damaged[at:at] = damaged[at : at + 4 * size]
                case _:
                    damaged[at : at + size] = parts[int(rng.integers(len(parts)))].rstrip(b".")
        yield bytes(damaged)


def mmsa(protocol: int) -> bytes:
    """A small pickle like those of MMSA."""
    ids = [f"video$_${i}" for i in range(4)]
    part = {
        "id": ids,
        "raw_text": np.array(["it's", "a", "b", "naïve"], dtype=object),
        "text": np.ones((4, 3, 2), dtype=np.float32),
        "annotations": np.array(["Positive"] * 4),
        "regression_labels": np.array([1.0, 2, -1, 0.5]),
        "audio_lengths": [3, 2, 1, 3],
    }
    return pickle.dumps({name: part for name in ("train", "valid", "test")}, protocol)


def check_mutations(folder: Path, n: int) -> None:
    for protocol in (2, 4):
        damaged = mutations(mmsa(protocol), n, seed=protocol)
        files = {f"{i}.pkl": content for i, content in enumerate(damaged)}
        found = outcomes(folder / str(protocol), files, READER)
        assert len(found) == n
        assert {k: r for k, r in found.items() if r != "read" and not r.startswith("DataError")} == {}
        assert n // 100 < sum(r == "read" for r in found.values()) < n


def test_a_damaged_pickle_is_an_error_or_plain_values(tmp_path: Path) -> None:
    check_mutations(tmp_path, 500)


@pytest.mark.slow
def test_many_damaged_pickles_are_errors_or_plain_values(tmp_path: Path) -> None:
    check_mutations(tmp_path, 20_000)
