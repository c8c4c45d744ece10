"""Give back memory that a server no longer needs, because it runs for weeks.

Models pass through it in parts of some megabytes, on many threads. Without this, the process grew
by 40 MB for each site with a model of 104 MB, and did not shrink again.
"""

import ctypes
import gc
from contextlib import suppress
from functools import cache

M_ARENA_MAX = -8
"""glibc's number for `mallopt`, in malloc.h."""


def keep_small() -> None:
    """Prepare this process for long use; call it once, after all imports.

    The garbage collector no longer visits what exists now. So it runs often, and soon frees
    requests that are held in reference cycles, with their bodies. And glibc, if the system has it,
    uses two heaps for all threads instead of eight per core: one thread can use what another freed.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # so that the collector's count of old objects starts again
    with suppress(OSError, AttributeError):
        _libc().mallopt(M_ARENA_MAX, 2)


def give_back() -> None:
    """Return free memory to the system. It takes milliseconds; call it after each large reply."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
