"""Fast kernels for training on a CPU, each with a plain implementation in standard torch operations.

Both have the same outputs and gradients up to rounding. The fast kernels are used except within `use(plain=True)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_plain = False


def plain() -> bool:
    """Whether the plain implementations are selected."""
    return _plain


@contextmanager
def use(*, plain: bool) -> Iterator[None]:
    """Context that selects the plain or the fast kernels of linear, grouped feed-forward and recurrent layers."""
    global _plain
    before, _plain = _plain, plain
    try:
        yield
    finally:
        _plain = before
