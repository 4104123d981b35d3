"""The C allocator in a training loop: freed memory is used again instead of going back to the system.

By default glibc gives large blocks back as soon as they are free and asks for them anew in the next step; the system
then clears every page again, which took up to a seventh of a step on the CPU. Only speed and when memory returns to the
system change. Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Whether the allocator now keeps what is freed; call it once data are loaded."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def release_freed_memory() -> None:
    """Give back to the system what is free now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
