"""A server that runs for weeks gives back what it no longer needs.

A model passes through it in parts of some megabytes, on many threads. Left alone, the process
grew by 40 MB with each site of 104 MB, and kept it.
"""

import ctypes
import gc
from contextlib import suppress
from functools import cache

M_ARENA_MAX = -8
"""glibc's number for `mallopt`, in malloc.h."""


def keep_small() -> None:
    """Settle this process for long use; call it once, when all is imported.

    The collector looks at nothing from before this call again. So it comes round often, and finds
    the requests that hold themselves in cycles, their bodies with them, while they are few. And
    glibc, where there is one, gives its threads two heaps instead of eight a core: what one
    thread frees, another can use.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # the measure of "how much is old" is taken anew
    with suppress(OSError, AttributeError):
        _libc().mallopt(M_ARENA_MAX, 2)


def give_back() -> None:
    """Return free memory to the system; worth its milliseconds after each large answer."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
