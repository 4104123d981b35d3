"""Fast kernels for training on a CPU, each beside a plain twin made of torch's own operations.

Both give the same outputs and gradients up to rounding. The fast ones are used unless `use(plain=True)` is in effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_plain = False


def plain() -> bool:
    """Whether the plain twins are selected."""
    return _plain


@contextmanager
def use(*, plain: bool) -> Iterator[None]:
    """Within it, linear, grouped feed-forward and recurrent layers use their plain twins, or their fast kernels."""
    global _plain
    before, _plain = _plain, plain
    try:
        yield
    finally:
        _plain = before
