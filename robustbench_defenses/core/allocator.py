"""What the C library does with memory that is freed; decided once for the process."""

from __future__ import annotations

import ctypes
import os

CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Let freed tensors up to 1 GiB be used again by the next ones; says whether it does.

    By itself glibc gives large blocks back to the system, which hands out cleared pages again
    at the next step: a tenth of the time of a pass through a small network. What the environment
    chooses is left alone, and so are other C libraries.
    """
    if any(name in os.environ for name in CHOSEN) or not _is_glibc():
        return False
    library = ctypes.CDLL(None)
    kept = library.mallopt(_MMAP_THRESHOLD, LARGEST) and library.mallopt(_TRIM_THRESHOLD, LARGEST)
    return bool(kept)


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return False
