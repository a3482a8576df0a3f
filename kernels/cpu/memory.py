"""Whose memory an address points to, and memory that is kept in large pages.

An address does not keep the array that it points into: Python, NumPy and Numba free an array after its last use by name. So

    compiled code takes the address of its arguments and their parts alone, `address(x)`: the caller holds x until it returns.
    An array that compiled code makes itself is handed to a function for which it is an argument.
    Python hands arrays to compiled code. Where that code wants addresses, Python holds each beside its array (`Held`).

Memory that comes fresh from the system, or in small pages, costs more than the work in it. A training step frees what it
allocated and asks for the same again a moment later. The C library's allocator, left alone, returns large blocks to the
system at once; the next block comes as pages of 4 kB that fault in one by one, filled with zeros, and a step's few tens of
megabytes have more pages than the processor keeps addresses of. Measured on a GPT step: 1.3 times the time for the
first, 1.2 for the second. So, once, before the first compiled kernel runs, the allocator is told to keep what is freed, and
the system to back the heap, as it grows, with pages of 2 MB: for all arrays of the process, NumPy's own too. The process
then stays as large as it once was.
That is glibc's `mallopt` and Linux's `madvise`; where they do not exist everything works, without this gain.
"""

from __future__ import annotations

import ctypes
import os
import threading

import numpy as np

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of <malloc.h>
HUGEPAGE = 14  # of <sys/mman.h>
PAGE = 1 << 21


def keep_freed_memory() -> bool:
    """Tell the allocator never to return memory to the system, and to grow in large steps; False where it cannot be told."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1), mallopt(TOP_PAD, 1 << 26)])


def use_large_pages() -> bool:
    """Let a quarter of the machine's memory be backed by large pages as the heap fills it; False where it cannot be.

    This memory is asked for and freed at once. The allocator, which no longer returns memory to the system, keeps it as the
    end of the heap and takes later blocks from there. A page exists only once it is written to. But an allocator that was
    told to write over all blocks that it hands out or takes back would write to all pages at once: such a one is left alone.
    """
    if "MALLOC_PERTURB_" in os.environ or "glibc.malloc.perturb" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        libc = ctypes.CDLL(None)
        malloc, free, madvise = libc.malloc, libc.free, libc.madvise
    except (AttributeError, OSError, TypeError, ValueError):
        return False
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = malloc(size)
    if not start:
        return False
    first, last = -(-start // PAGE) * PAGE, (start + size) // PAGE * PAGE
    done = madvise(first, last - first, HUGEPAGE) == 0
    free(start)
    return done


kept = keep_freed_memory()
large = kept and use_large_pages()


class Held:
    """An address, and the array in whose memory it lies: who holds the one holds the other."""

    __slots__ = ("address", "array")

    def __init__(self, address: int, array: np.ndarray) -> None:
        self.address, self.array = address, array


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
