"""The C library's heap of this process."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_IN_HEAP = 32 * 1024 * 1024  # bytes, the most that glibc takes
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have memory that is freed stay with the process, to be used again; False where the C library is not glibc.

    By itself glibc hands every larger tensor back to the system, which clears each of its pages when the next one of a
    step asks for them: a tenth of the time of a step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP) and mallopt(M_TRIM_THRESHOLD, NEVER))
