r"""Pooling: the largest and the mean of each window, line by line.

    for each plane:                                                                threads share the planes
        max_pool:              for each line i of y:      y_i, taps ← −∞, none
                                   for each tap:              y_i, taps ← the larger of the two, vectors over pixels
                                   index ← where these taps lie
        max_pool_backward:     x̄ ← 0;   for each i:       x̄[index_i] += ȳ_i
        avg_pool:              for each line i of y:      sums ← 0;   for each tap: sums += x;    y_i ← share_i sums
        avg_pool_backward:     for each line h of x̄:      sums ← 0;   for each tap, line i that meet h:  sums += share_i ȳ_i

A line of y meets in each tap one line of x, from some pixel on, at steps of the stride: strides 1 and 2 have loops of their
own, which vectorise. Memory of one thread: one line, of the taps' numbers or of sums in float64.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

from kernels import reference_pooling as reference
from kernels.cpu.build import INT, TABLE, VOID, helper, kernel, result
from kernels.cpu.jobs import Offsets, portion, read, record
from kernels.cpu.rows import covers, flat, plain, shares

Array = np.ndarray
Sizes = tuple[int, ...]


class Window(NamedTuple):
    """What the windows of an image are."""

    height: int
    width: int
    stride_h: int
    stride_w: int
    top: int  # the padding
    left: int
    dilation_h: int
    dilation_w: int


WINDOW = record(Window)
SPANS = numba.types.Array(INT, 2, "C", readonly=True)


@lru_cache(256)
def _window(size: Sizes, counts: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> tuple[Offsets, Array]:
    """As a record, a line being an image of height 1; and for each tap of a line, where a line of y meets one of x:

    the pixel j of y meets the pixel s j + offset of x for first ≤ j < last.     (first, last, offset)
    """
    one = (1,) * (2 - len(kernel))
    sizes = *one, *kernel, *one, *stride, *[0] * len(one), *padding, *one, *dilation
    n, s, offset = size[-1], stride[-1], np.arange(kernel[-1]) * dilation[-1] - padding[-1]
    first, last = np.maximum(0, (s - 1 - offset) // s), np.minimum(counts[-1], (n - 1 - offset) // s + 1)
    spans = np.ascontiguousarray(np.stack([first, last, offset], 1), np.int64)
    return Offsets(np.array(sizes)), spans


def _planes(x: Array) -> Array:
    """(N, C, …) as planes; a line is an image of height 1."""
    return plain(x).reshape(-1, *(1,) * (4 - x.ndim), *x.shape[2:])


# ---------------------------------------------------------------------------------------------------------------------
# The largest
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _larger(line, best, taps, tap, step, offset, first, last):
    for j in range(np.uintp(first), np.uintp(last)):
        v = line[np.uintp(np.intp(j) * step + offset)]
        take = not (v <= best[j]) and best[j] == best[j]
        best[j] = v if take else best[j]
        taps[j] = tap if take else taps[j]


@helper
def _largest(x, y, index, taps, offsets, spans, where, begin, end):
    w = read(where, WINDOW)
    height, width = x.shape[1:]
    for z in range(begin, end):
        for i in range(y.shape[1]):
            best, at, top = y[z, i], index[z, i], i * w.stride_h - w.top
            for j in range(np.uintp(best.size)):
                best[j], taps[j] = x.dtype.type(-np.inf), np.int32(-1)
            for tap_h in range(w.height):
                h = top + tap_h * w.dilation_h
                if 0 <= h < height:
                    line = x[z, h]
                    for tap_w in range(w.width):
                        first, last, offset = spans[tap_w]
                        tap = np.int32(tap_h * w.width + tap_w)
                        if w.stride_w == 1:
                            _larger(line, best, taps, tap, 1, offset, first, last)
                        elif w.stride_w == 2:
                            _larger(line, best, taps, tap, 2, offset, first, last)
                        else:
                            _larger(line, best, taps, tap, w.stride_w, offset, first, last)
            for j in range(best.size):
                left = j * w.stride_w - w.left
                if taps[j] < 0:  # nothing but −∞: the first tap inside
                    h, v = max(0, -(top // w.dilation_h)), max(0, -(left // w.dilation_w))
                    taps[j] = h * w.width + v
                at[j] = top * width + left + offsets[taps[j]]


@kernel(
    lambda element: VOID(
        flat(element, 3),
        result(element, 3, "C"),
        result(numba.int64, 3, "C"),
        result(numba.int32, 2, "C"),
        TABLE,
        SPANS,
        INT,
        INT,
    ),
    parallel=True,
)
def largest(x, y, index, lines, offsets, spans, where, nt):
    """y and index of each plane;  lines: one for each thread;  offsets: of each tap, in an image of x"""
    for t in numba.prange(nt):
        begin, end = portion(t, nt, len(x))
        _largest(x, y, index, lines[t], offsets, spans, where, begin, end)


def max_pool(x: Array, counts: Sizes, kernel: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes) -> tuple[Array, Array]:
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    if not covers(x) or not 3 <= x.ndim <= 4:
        return reference.max_pool(x, counts, kernel, **how)
    y, planes, nt = np.empty((*x.shape[:2], *counts), x.dtype), _planes(x), shares(x.size)
    index, (window, spans) = np.empty(y.shape, np.int64), _window(x.shape[2:], counts, kernel, stride, padding, dilation)
    offsets = np.zeros(1, np.int64)
    for length, k, d in zip((1, *x.shape[3:]) if x.ndim == 4 else (1,), kernel, dilation, strict=True):
        offsets = np.add.outer(offsets * length, d * np.arange(k)).reshape(-1)
    lines = np.empty((nt, counts[-1]), np.int32)
    arrays = planes, _planes(y), _planes(index), lines, offsets, spans
    largest[x.dtype.char](*arrays, window.address, nt)
    return y, index


@kernel(lambda element: VOID(flat(element, 2), flat(numba.int64, 2), result(element, 2, "C"), INT), parallel=True)
def to_largest(dy, index, dx, nt):
    """x̄[z, index[z, i]] += ȳ[z, i]"""
    for t in numba.prange(nt):
        begin, end = portion(t, nt, len(dy))
        for z in range(begin, end):
            grad, at, plane = dy[z], index[z], dx[z]
            for j in range(np.uintp(plane.size)):
                plane[j] = 0
            for i in range(np.uintp(grad.size)):
                plane[np.uintp(at[i])] += grad[i]


def max_pool_backward(dy: Array, index: Array, size: Sizes) -> Array:
    if not covers(dy) or dy.ndim < 3:
        return reference.max_pool_backward(dy, index, size)
    dx, planes = np.empty((*dy.shape[:2], *size), dy.dtype), dy.shape[0] * dy.shape[1]
    pixels = dx.reshape(planes, -1)
    to_largest[dy.dtype.char](plain(dy).reshape(planes, -1), plain(index).reshape(planes, -1), pixels, shares(dx.size))
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# The mean
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _gathered(line, total, step, offset, first, last):
    for j in range(np.uintp(first), np.uintp(last)):
        total[j] += line[np.uintp(np.intp(j) * step + offset)]


@helper
def _means(x, share, y, total, spans, where, begin, end):
    w = read(where, WINDOW)
    height = x.shape[1]
    for z in range(begin, end):
        for i in range(y.shape[1]):
            out, factor, top = y[z, i], share[i], i * w.stride_h - w.top
            for j in range(np.uintp(total.size)):
                total[j] = 0
            for h in range(max(top, 0), min(top + w.height, height)):
                line = x[z, h]
                for tap in range(w.width):
                    first, last, offset = spans[tap]
                    if w.stride_w == 1:
                        _gathered(line, total, 1, offset, first, last)
                    elif w.stride_w == 2:
                        _gathered(line, total, 2, offset, first, last)
                    else:
                        _gathered(line, total, w.stride_w, offset, first, last)
            for j in range(np.uintp(total.size)):
                out[j] = total[j] * factor[j]


@kernel(
    lambda element: VOID(
        flat(element, 3), flat(numba.float64, 2), result(element, 3, "C"), result(numba.float64, 2, "C"), SPANS, INT, INT
    ),
    parallel=True,
)
def means(x, share, y, lines, spans, where, nt):
    """y[z, i] = share[i] Σ_t x[z, s i + t − p];  lines: one for each thread"""
    for t in numba.prange(nt):
        begin, end = portion(t, nt, len(x))
        _means(x, share, y, lines[t], spans, where, begin, end)


def avg_pool(x: Array, share: Array, kernel: Sizes, *, stride: Sizes, padding: Sizes) -> Array:
    if not covers(x) or not 3 <= x.ndim <= 4:
        return reference.avg_pool(x, share, kernel, stride=stride, padding=padding)
    y, nt = np.empty((*x.shape[:2], *share.shape), x.dtype), shares(x.size)
    window, spans = _window(x.shape[2:], share.shape, kernel, stride, padding, (1,) * len(kernel))
    lines = np.empty((nt, share.shape[-1]))
    factors = np.ascontiguousarray(share, np.float64).reshape(-1, share.shape[-1])
    means[x.dtype.char](_planes(x), factors, _planes(y), lines, spans, window.address, nt)
    return y


@helper
def _dealt(grad, factor, total, step, offset, first, last):
    for j in range(np.uintp(first), np.uintp(last)):
        total[np.uintp(np.intp(j) * step + offset)] += grad[j] * factor[j]


@helper
def _to_means(dy, share, dx, total, spans, where, begin, end):
    w = read(where, WINDOW)
    for z in range(begin, end):
        for h in range(dx.shape[1]):
            for j in range(np.uintp(total.size)):
                total[j] = 0
            for tap_h in range(w.height):
                i = (h + w.top - tap_h) // w.stride_h
                if 0 <= i < dy.shape[1] and i * w.stride_h == h + w.top - tap_h:
                    grad, factor = dy[z, i], share[i]
                    for tap in range(w.width):
                        first, last, offset = spans[tap]
                        if w.stride_w == 1:
                            _dealt(grad, factor, total, 1, offset, first, last)
                        elif w.stride_w == 2:
                            _dealt(grad, factor, total, 2, offset, first, last)
                        else:
                            _dealt(grad, factor, total, w.stride_w, offset, first, last)
            out = dx[z, h]
            for j in range(np.uintp(total.size)):
                out[j] = total[j]


@kernel(
    lambda element: VOID(
        flat(element, 3), flat(numba.float64, 2), result(element, 3, "C"), result(numba.float64, 2, "C"), SPANS, INT, INT
    ),
    parallel=True,
)
def to_means(dy, share, dx, lines, spans, where, nt):
    """x̄[z, s i + t − p] += share[i] ȳ[z, i];  lines: one for each thread"""
    for t in numba.prange(nt):
        begin, end = portion(t, nt, len(dy))
        _to_means(dy, share, dx, lines[t], spans, where, begin, end)


def avg_pool_backward(dy: Array, share: Array, size: Sizes, kernel: Sizes, *, stride: Sizes, padding: Sizes) -> Array:
    if not covers(dy) or not 3 <= dy.ndim <= 4 or not math.prod(size):
        return reference.avg_pool_backward(dy, share, size, kernel, stride=stride, padding=padding)
    dx, nt = np.empty((*dy.shape[:2], *size), dy.dtype), shares(dy.size)
    window, spans = _window(size, share.shape, kernel, stride, padding, (1,) * len(kernel))
    lines = np.empty((nt, size[-1]))
    factors = np.ascontiguousarray(share, np.float64).reshape(-1, share.shape[-1])
    to_means[dy.dtype.char](_planes(dy), factors, _planes(dx), lines, spans, window.address, nt)
    return dx
