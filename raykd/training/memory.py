"""Settings of the memory allocator."""

import ctypes
import platform

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let the allocator keep what a step frees for the next one; False where it cannot.

    glibc gives large blocks back to the system at once, so every step on a CPU takes page
    faults for all its activations anew: 10 to 15 % of a small network's step. Other systems'
    allocators are left alone. The process then stays as large as it once was.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 28))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)
