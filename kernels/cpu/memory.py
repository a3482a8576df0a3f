"""Memory that is kept: pages fresh from the system cost more than the work that is done in them.

A training step frees what it allocated and asks for the same again a moment later. The C library's allocator, left alone,
returns large blocks to the system at once; the next block then comes as pages that fault in one by one, filled with zeros:
1.3 times the time of a whole GPT step, measured. So, once, before the first compiled kernel runs, the allocator is told to
keep what is freed, for all arrays of the process, NumPy's own too. The process then stays as large as it once was.
That is glibc's `mallopt`; where it does not exist (macOS, Windows, musl) everything works, without this gain.
"""

from __future__ import annotations

import ctypes
import threading

import numpy as np

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Tell the allocator never to return memory to the system, and to grow in large steps; False where it cannot be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1), mallopt(TOP_PAD, 1 << 26)])


kept = keep_freed_memory()

_scratch = threading.local()


def scratch(letter: str, n: int) -> np.ndarray:
    """At least n elements of this thread's workspace, from the start of a cache line on. It grows and is kept."""
    try:
        kept = _scratch.__dict__[letter]
        if kept.size >= n:
            return kept
    except KeyError:
        pass
    n = max(n, 1 << 18)
    raw = np.empty(n + 16, letter)
    skip = -raw.ctypes.data % 64 // raw.itemsize
    _scratch.__dict__[letter] = kept = raw[skip : skip + n]
    return kept
