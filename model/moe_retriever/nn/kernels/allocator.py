"""Settings of the C allocator that keep freed memory for reuse in a training loop.

By default, glibc returns large blocks to the system when they are freed and requests them again in the next step. The
system then clears all pages, which took up to a seventh of a step on the CPU. The settings affect only speed and the
time at which memory is returned, and have no effect without glibc.
"""

import ctypes
import os
import sys
from pathlib import Path

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
GROWTH = 2**28


def keep_freed_memory() -> bool:
    """Keep freed memory from now on and return whether this is supported; to be called after loading the data."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def release_if_grown(needed: int) -> int:
    """Return free memory to the system if the process has grown by GROWTH over what a step needs.

    Blocks whose sizes vary between steps leave gaps, which can add up to several times what one step needs.

    Args:
        needed: resident bytes after the first step or after the first one since memory was returned, as this function
            returned them; 0 before.
    """
    try:
        now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
    if needed and now > needed + GROWTH:
        release_freed_memory()
        return 0
    return needed or now


def release_freed_memory() -> None:
    """Return free memory to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
