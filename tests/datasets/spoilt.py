"""Declarations with a wrong value in one place."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def spoilt(declaration: dict[str, Any], values: Sequence[Any]) -> Iterator[Any]:
    """The declaration with each of the values in each place, that of the whole included."""
    for path in _places(declaration):
        for value in values:
            tree: Any = {"root": copy.deepcopy(declaration)}
            *above, last = ("root", *path)
            functools.reduce(operator.getitem, above, tree)[last] = value
            yield tree["root"]
