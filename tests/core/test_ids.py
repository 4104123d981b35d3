"""Identifiers that nearly match."""

from __future__ import annotations

import polars as pl
import pytest

from mrpipe.errors import shape
from mrpipe.ids import alike, near_miss


@pytest.mark.parametrize(
    ("unknown", "known", "difference"),
    [
        ("AB", "ab", "case, padding or quotes"),
        ("ab ", "ab", "case, padding or quotes"),
        ("'ab'", "ab", "case, padding or quotes"),
        ("e\u0301", "\u00e9", "case, padding or quotes"),
        ("\uff11", "1", "case, padding or quotes"),
        ("7.0", "7", "a decimal point"),
        ("AB-1", "ab 1", "spaces or punctuation"),
        ("0042", "42", "leading zeros"),
        ("sub-0042", "42", "a prefix"),
    ],
)
def test_near_misses_are_found_with_an_example(
    unknown: str, known: str, difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = f"1 differs only in {difference}, such as {shape(unknown)} instead of {shape(known)}"
    assert near_miss([unknown, None], ["y", known]) == shapes
    monkeypatch.setenv("MRPIPE_SHOW_VALUES", "1")
    expected = f"1 differs only in {difference}, such as {unknown!r} instead of {known!r}"
    assert near_miss([unknown, None], ["y", known]) == expected


def test_other_ids_are_no_near_misses() -> None:
    assert near_miss(["e"], ["\u00e9"]) == ""
    assert near_miss(["7.5"], ["7"]) == ""
    # One number of three at the end agrees by chance.
    assert near_miss(["a1", "b2", "c3"], ["x1", "x9", "x8"]) == ""
    assert near_miss([], ["a"]) == ""


def test_alike_values_differ_in_writing_only() -> None:
    assert alike(pl.Series(["x", "Ann ", "ann", None])) == "'••• ' and '•••'"
    assert alike(pl.Series(["1", "1.0", "A1"])) == "'•' and '•.•'"
    assert alike(pl.Series(["007", "7"])) == "'•••' and '•'"
    assert alike(pl.Series(["Ann", "Anne", "1.5", "1"])) == ""
