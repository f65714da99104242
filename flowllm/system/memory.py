"""Memory that is free but still charged to the process."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def return_free_memory() -> None:
    """Give the free memory of the C heap back to the system, where the C library is glibc.

    A batch frees tensors of many sizes. glibc keeps their pages, which the next batch, of other
    sizes, does not all reuse, so that a long run grows for thousands of crystals. This takes a few
    milliseconds.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
    function.argtypes, function.restype = [ctypes.c_size_t], ctypes.c_int
    trim: Callable[[int], int] = function
    return trim
