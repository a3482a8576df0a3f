"""What passes over pictures between their convolutions: rectifiers and nearest neighbours, one pass each.

Threads share the elements, or the planes of a picture; nothing is summed across threads.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, TABLE, VOID, helper, kernel, result
from kernels.cpu.rows import alike, covers, flat, plain, shares

Array = np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# Rectifiers
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _rectify(sign, x, y, slope):
    dtype = x.dtype.type
    zero = dtype(0)
    if slope == zero:  # a loop of its own: 0 · −∞ is NaN
        for j in range(np.uintp(x.size)):
            y[j] = zero if sign[j] <= zero else x[j]
    else:
        for j in range(np.uintp(x.size)):
            y[j] = slope * x[j] if sign[j] <= zero else x[j]


@kernel(lambda element: VOID(flat(element), flat(element), result(element, 1, "C"), element, INT), parallel=True)
def rectify(sign, x, y, slope, nt):
    """y = x where `sign` is above 0, else slope x"""
    if nt == 1:
        _rectify(sign, x, y, slope)
    else:
        for t in numba.prange(nt):
            i0, i1 = t * x.size // nt, (t + 1) * x.size // nt
            _rectify(sign[i0:i1], x[i0:i1], y[i0:i1], slope)


def _rectified(sign: Array, x: Array, slope: float) -> Array:
    y, x = np.empty(x.shape, x.dtype), plain(x).reshape(-1)
    sign = plain(sign).reshape(-1)
    rectify[x.dtype.char](sign, x, y.reshape(-1), slope, shares(x.size))
    return y


def leaky_relu(x: Array, slope: float) -> Array:
    return _rectified(x, x, slope) if covers(x) else reference.leaky_relu(x, slope)


def leaky_relu_backward(dy: Array, y: Array, slope: float) -> Array:
    if not alike(dy, y):
        return reference.leaky_relu_backward(dy, y, slope)
    return _rectified(y, dy, slope)


# ---------------------------------------------------------------------------------------------------------------------
# Nearest neighbours
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _spread(x, rows, columns, y, n0, n1):
    for n in range(n0, n1):
        for i in range(rows.size):
            out = y[n, i]
            if i and rows[i] == rows[i - 1]:
                above = y[n, i - 1]
                for j in range(np.uintp(out.size)):
                    out[j] = above[j]
            else:
                row = x[n, rows[i]]
                for j in range(np.uintp(out.size)):
                    out[j] = row[columns[j]]


@kernel(lambda element: VOID(flat(element, 3), TABLE, TABLE, result(element, 3, "C"), INT), parallel=True)
def spread(x, rows, columns, y, nt):
    """y[n, i, j] = x[n, rows_i, columns_j]"""
    for t in numba.prange(nt):
        _spread(x, rows, columns, y, t * len(x) // nt, (t + 1) * len(x) // nt)


@helper
def _gather(dy, rows, columns, dx, total, n0, n1):
    """Of each row of dx: the rows of dy that were copied from it are added up first, then the columns of their sum."""
    dtype = dx.dtype.type
    doubled = columns.size == 2 * dx.shape[2]
    for w in range(dx.shape[2]):
        doubled = doubled and columns[2 * w] == w and columns[2 * w + 1] == w
    for n in range(n0, n1):
        i = 0
        for h in range(dx.shape[1]):
            out = dx[n, h]
            if i == rows.size or rows[i] != h:
                for w in range(np.uintp(out.size)):
                    out[w] = dtype(0)
                continue
            first = dy[n, i]
            for j in range(np.uintp(total.size)):
                total[j] = first[j]
            i += 1
            while i < rows.size and rows[i] == h:
                more = dy[n, i]
                for j in range(np.uintp(total.size)):
                    total[j] += more[j]
                i += 1
            if doubled:
                for w in range(np.uintp(out.size)):
                    out[w] = total[np.uintp(2) * w] + total[np.uintp(2) * w + np.uintp(1)]
            else:
                j = 0
                for w in range(out.size):
                    s = dtype(0)
                    while j < columns.size and columns[j] == w:
                        s += total[j]
                        j += 1
                    out[w] = s


@kernel(
    lambda element: VOID(flat(element, 3), TABLE, TABLE, result(element, 3, "C"), result(element, 2, "C"), INT), parallel=True
)
def gather(dy, rows, columns, dx, total, nt):
    """dx[n, h, w] = Σ dy[n, i, j] over the i, j with rows_i = h, columns_j = w;  `total`: a row of y for each thread"""
    for t in numba.prange(nt):
        _gather(dy, rows, columns, dx, total[t], t * len(dy) // nt, (t + 1) * len(dy) // nt)


def _images(x: Array, rows: Array, columns: Array) -> bool:
    return covers(x) and x.ndim >= 2 and rows.size > 0 and columns.size > 0


def nearest(x: Array, rows: Array, columns: Array) -> Array:
    if not _images(x, rows, columns):
        return reference.nearest(x, rows, columns)
    _within(rows, x.shape[-2])
    _within(columns, x.shape[-1])
    y = np.empty((*x.shape[:-2], rows.size, columns.size), x.dtype)
    planes = plain(x).reshape(-1, *x.shape[-2:])
    spread[x.dtype.char](planes, rows, columns, y.reshape(-1, *y.shape[-2:]), shares(y.size))
    return y


def nearest_backward(dy: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    if not _images(dy, rows, columns) or 0 in size:
        return reference.nearest_backward(dy, rows, columns, size)
    _within(rows, size[0])
    _within(columns, size[1])
    dx, nt = np.empty((*dy.shape[:-2], *size), dy.dtype), shares(dy.size)
    total = np.empty((nt, columns.size), dy.dtype)
    planes = plain(dy).reshape(-1, *dy.shape[-2:])
    gather[dy.dtype.char](planes, rows, columns, dx.reshape(-1, *size), total, nt)
    return dx


def _within(index: Array, n: int) -> None:
    """Indices that do not fall lie between the first and the last."""
    if index[0] < 0 or index[-1] >= n:
        raise IndexError(f"nearest: expected indices from 0 to {n - 1}, got {index[0]} to {index[-1]}")
