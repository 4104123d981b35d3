"""Find CSV records and integer fields in bytes at millions of rows per second with numpy.

Eight bytes are compared at once (SIMD within a register): a byte of a 64-bit word equals c if that byte of
word ^ (c repeated) is zero.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
PAD = 64  # zero bytes that `numbers_at` requires at the end of its data
_COMMA, _NEWLINE, _QUOTE = 44, 10, 34
_SLICE = 2**18  # bytes searched at a time, few enough to stay in the cache
_ONES, _HIGH = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_DIGITS = 19  # digits of an int64


def _positions(data: Bytes, byte: int) -> NDArray[np.int64]:
    """Positions of a byte; optimised for rare bytes."""
    found = []
    for start in range(0, len(data), _SLICE):
        equal = data[start : start + _SLICE] == byte
        if len(equal) % 8 == 0:
            words = equal.view(np.uint64)
            index = np.flatnonzero(words)
            word = words[index]
            if not len(word) or int(np.bitwise_count(word).max()) == 1:
                found.append(start + index * 8 + (np.bitwise_count(word - np.uint64(1)) >> 3))
                continue
        found.append(start + np.flatnonzero(equal))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def record_ends(data: bytes) -> NDArray[np.int64]:
    """Positions of the line ends outside quotes, which end a record; the data must start at a record."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    ends = _positions(buffer, _NEWLINE)
    if b'"' in data:
        # A position is inside a quoted field if the number of quotes before it is odd; doubled quotes count twice.
        ends = ends[np.searchsorted(_positions(buffer, _QUOTE), ends) % 2 == 0]
    return ends


def _zero_byte(word: Words) -> NDArray[np.int64]:
    """Index of the first zero byte of each word, 8 if there is none."""
    # Only the lowest mark is reliable; higher ones may be due to borrows.
    mark = (word - _ONES) & ~word & _HIGH
    lowest = mark & (~mark + np.uint64(1))
    return np.where(mark == 0, 8, np.bitwise_count(lowest - np.uint64(1)) >> 3).astype(np.int64)


def _eight_digits(word: Words) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Value of eight ASCII digits, and whether all eight bytes are digits."""
    plain = ((word & np.uint64(0xF0F0F0F0F0F0F0F0)) == np.uint64(0x3030303030303030)) & (
        ((word + np.uint64(0x0606060606060606)) & np.uint64(0xF0F0F0F0F0F0F0F0)) == np.uint64(0x3030303030303030)
    )
    word = word & np.uint64(0x0F0F0F0F0F0F0F0F)
    word = word * np.uint64(10) + (word >> np.uint64(8))
    pairs = (word & np.uint64(0x000000FF000000FF)) * np.uint64(0x000F424000000064)
    rest = ((word >> np.uint64(16)) & np.uint64(0x000000FF000000FF)) * np.uint64(0x0000271000000001)
    return ((pairs + rest) >> np.uint64(32)).astype(np.int64), plain


def _any_digits(data: Bytes, position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Value of the field at each position if it consists of 1 to 19 digits, otherwise -1."""
    window = np.lib.stride_tricks.sliding_window_view(data, _DIGITS + 1)[position]
    digit = (window - np.uint8(48)) < 10
    length = digit.argmin(axis=1)
    value = np.zeros(len(position), dtype=np.int64)
    for i in range(int(length.max(initial=0))):
        value = np.where(i < length, value * 10 + (window[:, i] - np.uint8(48)), value)
    after = window[np.arange(len(position)), length]
    ends = (after == _COMMA) | (after == _NEWLINE) | (after == 13)
    return np.where((length > 0) & ends & ~digit.all(axis=1), value, -1)


def numbers_at(data: Bytes, starts: NDArray[np.int64], column: int) -> NDArray[np.int64]:
    """Integers in field `column` of the records that begin at `starts`, (n,) int64; -1 for anything but plain digits.

    Args:
        data: bytes that end with PAD zeros.
        column: index of the field, from 0; preceding fields that are quoted or 32 bytes or longer also give -1.
    """
    every: NDArray[Any] = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    position, unknown = starts, np.zeros(len(starts), dtype=bool)
    limit = len(data) - PAD
    for _ in range(column):
        unknown |= data[position] == _QUOTE
        step = np.zeros(len(position), dtype=np.int64)
        open_ = np.ones(len(position), dtype=bool)
        for _ in range(4):
            at = _zero_byte(every[np.minimum(position + step, limit)] ^ (_ONES * np.uint64(_COMMA)))
            step = np.where(open_, step + at, step)
            open_ &= at == 8
            if not open_.any():
                break
        unknown |= open_
        position = np.minimum(position + step + 1, limit)
    value, plain = _eight_digits(every[position])
    plain &= data[position + 8] == _COMMA
    if not plain.all():
        # Numbers that do not have eight digits, unlike those of the provider.
        odd = np.flatnonzero(~plain)
        value[odd] = _any_digits(data, position[odd])
    value[unknown] = -1
    return value


class SubjectFilter:
    """Mask of the rows of given patients, by a lookup table over their range of ids if it is small enough."""

    def __init__(self, subjects: NDArray[np.int64]):
        self._sorted = np.unique(subjects)
        self._low = int(self._sorted[0]) if len(self._sorted) else 0
        span = int(self._sorted[-1]) - self._low + 1 if len(self._sorted) else 0
        self._table = np.zeros(span + 2, dtype=bool) if span <= 2**26 else None
        if self._table is not None and len(self._sorted):
            self._table[self._sorted - self._low + 1] = True

    def __call__(self, subjects: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self._table is None:
            index = np.minimum(np.searchsorted(self._sorted, subjects), len(self._sorted) - 1)
            return np.asarray(self._sorted[index] == subjects)
        return self._table[np.clip(subjects - self._low + 1, 0, len(self._table) - 1)]

    def overlaps(self, low: int, high: int) -> bool:
        """Whether a given patient has an id from `low` to `high`."""
        first = int(np.searchsorted(self._sorted, low))
        return first < len(self._sorted) and int(self._sorted[first]) <= high


def cut(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], keep: NDArray[np.bool_]) -> bytes:
    """Concatenate the records in `keep`; adjacent records are copied together."""
    edges = np.diff(np.concatenate([[0], keep.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    view = memoryview(data)
    return b"".join([view[a:b] for a, b in zip(starts[first].tolist(), (ends[last] + 1).tolist(), strict=True)])
