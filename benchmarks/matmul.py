"""Matrix products against NumPy's BLAS, at 1 thread and at all; `ladder()` the steps from the naive loop."""

from __future__ import annotations

from contextlib import nullcontext
from statistics import median
from typing import Any

import numpy as np

from benchmarks.clock import compare, ratio
from kernels.cpu import matmul as ours
from kernels.cpu.ladder import LADDER
from kernels.cpu.simd import HEIGHT, VECTORS, lanes, tile
from kernels.cpu.threads import set_threads, threads

SQUARE = (16, 32, 64, 96, 128, 256, 512, 1024, 2048)
TRANSFORMER = ((768, 128, 512), (768, 512, 128), (1024, 384, 1536), (1024, 1536, 384), (4096, 384, 384), (3072, 384, 65))
BATCHED = ((48, 256, 64, 256, "NT"), (48, 256, 256, 64, "NN"), (72, 64, 64, 64, "NN"), (12, 1024, 64, 1024, "NT"))


def blas_threads(n: int) -> Any:
    """A context in which NumPy's BLAS uses n threads, where threadpoolctl is installed to say so."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(n, "blas")


def peak(letter: str = "f") -> float:
    """Products and sums a second of one core: the register tile on operands that stay in the L1 cache."""
    import ctypes

    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11)(tile[letter])
    size, width, k = np.dtype(letter).itemsize, VECTORS * lanes(np.dtype(letter).itemsize), 4096
    a, b, c = np.zeros((1, HEIGHT), letter), np.zeros((1, width), letter), np.zeros((HEIGHT, width), letter)
    at = [x.ctypes.data for x in (a, b, c)]
    arguments = (k, at[0], size, 0, at[1], 0, at[2], width * size, HEIGHT, width, 0)  # strides of 0: one row, k times
    times = compare({"tile": lambda: function(*arguments)}, rounds=9, gap=0.02)
    return 2 * HEIGHT * width * k / min(times["tile"])


def operands(rng: np.random.Generator, lead: tuple[int, ...], m: int, k: int, n: int, form: str, letter: str = "f") -> list:
    a = rng.standard_normal((*lead, k, m) if form[0] == "T" else (*lead, m, k)).astype(letter)
    b = rng.standard_normal((*lead, n, k) if form[1] == "T" else (*lead, k, n)).astype(letter)
    return [a.swapaxes(-1, -2) if form[0] == "T" else a, b.swapaxes(-1, -2) if form[1] == "T" else b]


def row(
    rng: np.random.Generator, lead: tuple[int, ...], m: int, k: int, n: int, form: str, nt: int, rounds: int, top: float
) -> dict:
    a, b = operands(rng, lead, m, k, n, form)
    np.testing.assert_allclose(ours.matmul(a, b), np.matmul(a, b), rtol=1e-3, atol=1e-3)
    times = compare({"scratchgen": lambda: ours.matmul(a, b), "numpy": lambda: np.matmul(a, b)}, rounds)
    speed = 2 * int(np.prod(lead)) * m * k * n / median(times["scratchgen"])
    return {
        "product": " × ".join(map(str, (*lead, m, k, n))),
        "form": form,
        "threads": nt,
        "Gflop/s": speed / 1e9,
        "× numpy": ratio(times, "scratchgen", "numpy"),
        "% of peak": 100 * speed / (top * nt),
    }


def run(quick: bool) -> list[dict]:
    rng, top, rows, before = np.random.default_rng(0), peak(), [], threads()
    shapes = [(n, n, n) for n in SQUARE if not quick or n <= 512] + list(TRANSFORMER[: 2 if quick else None])
    for nt in sorted({1, before}):
        set_threads(nt)
        with blas_threads(nt):
            for m, k, n in shapes:
                for form in ("NN",) if quick else ("NN", "TN", "NT"):
                    rows.append(row(rng, (), m, k, n, form, nt, 3 if quick else 7, top))
            for z, m, k, n, form in BATCHED[: 2 if quick else None]:
                rows.append(row(rng, (z,), m, k, n, form, nt, 3 if quick else 7, top))
    set_threads(before)
    return rows


def ladder(quick: bool) -> list[dict]:
    """Each step on one thread, as a share of the peak and of NumPy's BLAS on one thread."""
    rng, top, rows = np.random.default_rng(0), peak(), []
    with blas_threads(1):
        for n in (256,) if quick else (256, 512, 1024):
            a, b = operands(rng, (), n, n, n, "NN")
            c, rivals = np.empty((n, n), "f"), {"numpy": lambda a=a, b=b: np.matmul(a, b)}
            for name, step in LADDER.items():
                step(a, b, c)
                np.testing.assert_allclose(c, a @ b, rtol=1e-3, atol=1e-3)
                rivals[name] = lambda step=step, a=a, b=b, c=c: step(a, b, c)
            times = compare(rivals, 3, gap=0.05)
            for name in rivals:
                speed = 2 * n**3 / median(times[name])
                share = 100 * ratio(times, name, "numpy")
                rows.append({"n": n, "step": name, "Gflop/s": speed / 1e9, "% of numpy": share, "% of peak": 100 * speed / top})
    return rows
