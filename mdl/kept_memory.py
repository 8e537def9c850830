"""Memory that a step has freed is kept for the next one.

A step on a CPU allocates and frees hundreds of tensors of some MiB. By default glibc gives such
blocks back to the system as soon as they are free, and every step pays for all of its pages anew:
an eighth of its time at 32 px (docs/results/speed.md). Needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# bytes; the most that mallopt(3) allows. Larger blocks, which are few, are still given back
_LARGEST_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1  # bytes free at the heap's end before it is given back; mallopt takes an int


def keep_freed_memory() -> bool:
    """Has this process's allocator keep what is freed; False where it is not glibc's.

    The peak of a process's memory stays as it is; what it holds between peaks does not go down.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER)
    )
