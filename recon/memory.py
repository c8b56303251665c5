"""What becomes of memory that is free again."""

from __future__ import annotations

import ctypes
import os


def release() -> None:
    """Hand freed memory back to the system, where the C library can (glibc).

    What is kept of every image lies scattered over the heap and holds all of it in place: memory would grow with the number of
    images, though only one is worked on at a time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
