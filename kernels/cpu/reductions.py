r"""Sums over any dimensions of an array, in float64: their error does not grow with the count of terms.

In the order in which its elements lie in memory, an array is (A, N, B): A times N rows of B elements, and the sum is over N.

    B = 1     for each a:  y_a = Σ_j x_aj                                  the innermost loop runs over N
    B > 1     for each a:  for each row of W elements:                     the innermost loop runs over W
                               totals_w += x_aiw
                           y_ab = Σ_{g < k} totals_{g B + b}

     x, N = 6 rows of B = 3 elements, k = 2 at a time:   │ b₀ b₁ b₂ b₀ b₁ b₂ │ b₀ b₁ b₂ b₀ b₁ b₂ │ b₀ b₁ b₂ b₀ b₁ b₂ │
                                                              row of W = k B           row 1               row 2

Short rows are taken k at a time, W = k B, so that the innermost loop is long. Several runs of dimensions that are summed, such
as the first and the last, are summed one after the other, the last of them first.

Where the numbers come from: a loop over fewer than LONG elements spends its time beginning and ending; the float64 totals of
STRIP columns, 16 kB, stay in the L1 cache beside four rows of x; up to SMALL elements, NumPy is done before a compiled kernel
has been called.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import VOID, kernel, result, sums
from kernels.cpu.rows import covers, flat, plain, shares

Array = np.ndarray
LONG = 128  # elements at which the innermost loop is long enough
STRIP = 2048  # columns whose totals stay in the cache
SMALL = 4096  # elements for which NumPy needs less time than a compiled kernel needs to be called
float64 = numba.float64


@sums
def _add_rows(x, totals):
    """totals ← totals + Σ_rows x"""
    for j0 in range(0, totals.size, STRIP):
        part = totals[j0 : j0 + STRIP]
        last = len(x) // 4 * 4
        for i in range(0, last, 4):  # four at a time: the totals are read and written once for all
            a, b, c, d = x[i, j0:], x[i + 1, j0:], x[i + 2, j0:], x[i + 3, j0:]
            for j in range(np.uintp(part.size)):
                part[j] += (float64(a[j]) + float64(b[j])) + (float64(c[j]) + float64(d[j]))
        for i in range(last, len(x)):
            row = x[i, j0:]
            for j in range(np.uintp(part.size)):
                part[j] += float64(row[j])


@sums
def _total(x):
    """Σ x"""
    total = 0.0
    for j in range(np.uintp(x.size)):
        total += float64(x[j])
    return total


@sums
def _add_part(x, t, nt, totals):
    """totals ← the sum of thread t's part of the rows of W elements that x consists of; the last thread takes the rest, too"""
    width = totals.size
    if width == 1:
        totals[0] = _total(x[t * x.size // nt : (t + 1) * x.size // nt])
        return
    rows = x.size // width
    totals[:] = 0.0
    _add_rows(x[: rows * width].reshape((rows, width))[t * rows // nt : (t + 1) * rows // nt], totals)
    if t == nt - 1:
        rest = x[rows * width :]  # N may not be a multiple of k
        for j in range(np.uintp(rest.size)):
            totals[j] += float64(rest[j])


@sums
def _fold(totals, y):
    """y_b ← Σ_g totals_{g B + b}"""
    y[:] = 0.0
    for g in range(0, totals.size, y.size):
        for b in range(np.uintp(y.size)):
            y[b] += totals[g + b]


@sums
def _add_middle(x, totals, y, a0, a1):
    """y_a for a0 ≤ a < a1"""
    for a in range(a0, a1):
        if y.shape[1] == 1:
            y[a, 0] = _total(x[a])
        else:
            _add_part(x[a], 0, 1, totals)
            _fold(totals, y[a])


@kernel(lambda element: VOID(flat(element, 2), result(float64, 2, "C"), result(float64, 2, "C")), parallel=True)
def add_middle(x, totals, y):
    """y = Σ over the middle of (A, N, B), x as (A, N B); threads, each with a row of `totals`, share A, or, if A = 1, N."""
    nt = len(totals)
    if nt == 1:
        _add_middle(x, totals[0], y, 0, len(x))
    elif len(x) > 1:
        for t in numba.prange(nt):
            _add_middle(x, totals[t], y, t * len(x) // nt, (t + 1) * len(x) // nt)
    else:
        for t in numba.prange(nt):
            _add_part(x[0], numba.intp(t), nt, totals[t])
        for t in range(1, nt):
            for j in range(np.uintp(totals.shape[1])):
                totals[0, j] += totals[t, j]
        _fold(totals[0], y[0])


def _middle(x: Array, a: int, n: int, b: int) -> Array:
    """Σ over the middle of an array that lies in memory as (A, N, B).     → (A, B), in float64"""
    y = np.empty((a, b))
    width = b * min(max(1, LONG // b), n) if b > 1 else 1
    nt = shares(x.size)
    nt = min(nt, a) if a > 1 else nt
    add_middle[x.dtype.char](x.reshape(a, n * b), np.empty((nt, width)), y)
    return y


def sum_over(x: Array, axes: tuple[int, ...], divisor: float = 1) -> Array:
    if x.size <= SMALL or not covers(x) or not axes:
        return reference.sum_over(x, axes, divisor)
    letter, strides = x.dtype.char, x.strides
    times = math.prod([x.shape[d] for d in axes if strides[d] == 0])  # an expanded dimension holds one element many times
    if times != 1:
        x = x[tuple([slice(1) if d in axes and strides[d] == 0 else slice(None) for d in range(x.ndim)])]
    order = sorted(range(x.ndim), key=lambda d: -abs(strides[d]))
    y = plain(x.transpose(order))
    lengths, ends = list(y.shape), [d for d, of in enumerate(order) if of in axes]
    while ends:  # the last run of dimensions that are added up
        end = begin = ends.pop()
        while ends and ends[-1] == begin - 1:
            begin = ends.pop()
        sizes = math.prod(lengths[:begin]), math.prod(lengths[begin : end + 1]), math.prod(lengths[end + 1 :])
        y = _middle(y, *sizes)
        lengths[begin : end + 1] = [1] * (end + 1 - begin)
    if times != 1:
        y *= times
    if divisor != 1:
        y /= divisor
    kept = [d for d in order if d not in axes]
    y = y.astype(letter, copy=False).reshape([x.shape[d] for d in kept])
    return y if kept == sorted(kept) else y.transpose(np.argsort(kept))
