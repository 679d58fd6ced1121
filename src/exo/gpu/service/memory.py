"""What a process that runs for months lets go of: large buffers, as soon as they are free."""

from __future__ import annotations

import ctypes
import sys

# mallopt(3): from this size on a block of memory is the kernel's, and goes back to it when freed.
# By itself the C library raises the limit to the largest block that was ever freed, and what is
# freed below it stays: each minute of history is packed in buffers of megabytes.
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 128 * 1024


def return_large_buffers() -> bool:
    """Have the C library give large buffers back; False where it has no such setting.

    It is for the whole process, and for one that is only a service.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES))
    except (OSError, AttributeError):  # such as musl, which needs none
        return False
