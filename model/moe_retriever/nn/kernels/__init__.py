"""Fast kernels for training on a CPU, each with a plain implementation in standard torch operations.

Both have the same outputs and gradients up to rounding. `mrpipe train --kernels plain` selects the plain ones.
"""

_plain = False


def plain() -> bool:
    """Whether the plain implementations are selected."""
    return _plain


def select(*, plain: bool) -> None:
    """Select the plain or the fast kernels of grouped feed-forward and recurrent layers."""
    global _plain
    _plain = plain
