r"""Rectifiers, and copying pixels to a finer or a coarser grid and back.

    leaky_relu           a thread for each element
    nearest              a thread for each pixel (z, i, j) of y, which it copies from x[z, rows[i], columns[j]]
    nearest_backward     a thread for each pixel (z, h, w) of x̄, which adds up ȳ over the pixels that were copied from it

Indices do not fall, so those that equal h follow each other, and bisection finds the first. Threads add up as `sums.py` says.
No two threads write to one pixel, so no atomic sum is needed, and the same input gives the same bits.
"""

from __future__ import annotations

import numpy as np
from numba import cuda, float32

from kernels import reference
from kernels.cuda.build import (
    F1,
    F3,
    FLAT,
    FLOAT,
    I1,
    Array,
    cdiv,
    check,
    device,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
    whole,
)
from kernels.cuda.sums import add, settle


@kernel((F1, F1, FLOAT), threads=FLAT, registers=40)
def leaky_relu_each(x, y, slope):
    i = cuda.grid(1)
    if i < x.size:
        lower = float32(0.0) if slope == float32(0.0) else x[i] * slope
        y[i] = lower if x[i] <= float32(0.0) else x[i]


@kernel((F1, F1, F1, FLOAT), threads=FLAT, registers=40)
def leaky_relu_each_backward(dy, y, dx, slope):
    i = cuda.grid(1)
    if i < y.size:
        lower = float32(0.0) if slope == float32(0.0) else dy[i] * slope
        dx[i] = lower if y[i] <= float32(0.0) else dy[i]


def leaky_relu(x: Array, slope: float) -> Array:
    if not is_float32(x) or not x.size:
        return reference.leaky_relu(x, slope)
    x = plain(x)
    y = empty(x, x.shape)
    launch(leaky_relu_each, cdiv(x.size, FLAT), x.reshape(-1), y.reshape(-1), np.float32(slope))
    return y


def leaky_relu_backward(dy: Array, y: Array, slope: float) -> Array:
    check("leaky_relu_backward", dy, y)
    if not is_float32(dy, y) or dy.shape != y.shape or not y.size:
        return reference.leaky_relu_backward(dy, y, slope)
    dy, y = plain(dy), plain(y)
    dx = empty(y, y.shape)
    launch(leaky_relu_each_backward, cdiv(y.size, FLAT), dy.reshape(-1), y.reshape(-1), dx.reshape(-1), np.float32(slope))
    return dx


@kernel((F3, I1, I1, F3), threads=FLAT, registers=40)
def nearest_each(x, rows, columns, y):
    e = cuda.grid(1)
    if e < y.size:
        j = e % y.shape[2]
        i = e // y.shape[2] % y.shape[1]
        z = e // y.shape[2] // y.shape[1]
        y[z, i, j] = x[z, rows[i], columns[j]]


@device
def _first(index, value):
    """The first position whose index is not below the value."""
    begin, end = 0, index.size
    while begin < end:
        middle = (begin + end) // 2
        if index[middle] < value:
            begin = middle + 1
        else:
            end = middle
    return begin


@kernel((F3, I1, I1, F3), threads=FLAT, registers=48)
def nearest_each_backward(dy, rows, columns, dx):
    """x̄[z, h, w] = Σ ȳ[z, i, j] over all rows_i = h, columns_j = w"""
    e = cuda.grid(1)
    if e < dx.size:
        w = e % dx.shape[2]
        h = e // dx.shape[2] % dx.shape[1]
        z = e // dx.shape[2] // dx.shape[1]
        start = _first(columns, w)
        total, lost = float32(0.0), float32(0.0)
        i = _first(rows, h)
        while i < rows.size and rows[i] == h:
            j = start
            while j < columns.size and columns[j] == w:
                total, lost = add(total, lost, dy[z, i, j])
                j += 1
            i += 1
        dx[z, h, w] = settle(total, lost)


def nearest(x: Array, rows: Array, columns: Array) -> Array:
    check("nearest", x, rows, columns)
    if not is_float32(x) or not x.size:
        return reference.nearest(x, rows, columns)
    x = plain(x)
    y = empty(x, x.shape[:-2] + (rows.size, columns.size))
    flat = x.reshape((-1,) + x.shape[-2:]), whole(rows), whole(columns), y.reshape((-1,) + y.shape[-2:])
    launch(nearest_each, cdiv(y.size, FLAT), *flat)
    return y


def nearest_backward(dy: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    check("nearest_backward", dy, rows, columns)
    if not is_float32(dy):
        return nearest_backward(dy.astype(np.float32), rows, columns, size).astype(dy.dtype)
    dy = plain(dy)
    dx = np.zeros_like(dy, shape=dy.shape[:-2] + tuple(size), order="C")
    if dx.size and dy.size:
        flat = dy.reshape((-1,) + dy.shape[-2:]), whole(rows), whole(columns), dx.reshape((-1,) + dx.shape[-2:])
        launch(nearest_each_backward, cdiv(dx.size, FLAT), *flat)
    return dx
