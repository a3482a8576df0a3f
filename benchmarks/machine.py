"""What the machine can do at most: the roof that kernels are measured against.

`peak` and `bandwidth` are measured, not read off a data sheet: clocks and vector units differ between processors that report
the same instructions, and a virtual machine shares them. A kernel that does F floating-point operations and moves B bytes takes
at least max(F / peak, B / bandwidth) seconds: the roofline of Williams, Waterman & Patterson 2009, which `chart` draws.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from benchmarks.clock import GAP, THREADS, instructions


def _together(call: Callable[[int], object], threads: int, rounds: int = 25) -> float:
    """Seconds until each thread has called the function once; the least of some rounds"""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))
        time.sleep(GAP)
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(call, range(threads)))
            best = min(best, time.perf_counter() - start)
    return best


@lru_cache
def peak(threads: int = THREADS, letter: str = "f") -> float:
    """Floating-point operations a second: the register tile on one row of A and of B, which stay in the L1 cache"""
    from kernels.cpu.simd import HEIGHT, VECTORS, lanes, tile

    tiler = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11)(tile[letter])
    size = np.dtype(letter).itemsize
    width, k = VECTORS * lanes(size), 1 << 18
    a, b, c = np.zeros((1, HEIGHT), letter), np.zeros((1, width), letter), np.zeros((threads, HEIGHT, width), letter)

    def work(t: int) -> None:
        tiler(k, a.ctypes.data, size, 0, b.ctypes.data, 0, c[t].ctypes.data, width * size, HEIGHT, width, 0)

    return 2 * HEIGHT * width * k * threads / _together(work, threads)


@lru_cache
def bandwidth(threads: int = THREADS) -> float:
    """Bytes a second from memory and to it: y ← x of arrays that no cache holds, read and written bytes counted."""
    n = 1 << 25  # 128 MiB of float32 each
    x, y = np.ones((threads, n // threads), "f"), np.zeros((threads, n // threads), "f")
    return 2 * x.nbytes / _together(lambda t: np.copyto(y[t], x[t]), threads)


def description() -> dict[str, str]:
    """The machine and the programs that the figures belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    facts = {"processor": model, "cores": str(os.cpu_count()), "threads": str(THREADS), "python": platform.python_version()}
    for package in ("numpy", "numba", "torch", "jax"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["instructions"] = ", ".join(f"{side} {name}" for side, name in instructions().items())
    return facts
