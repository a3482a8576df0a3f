r"""Convolution as products, over one or two spatial dimensions: one matrix holds every window of an image,

    columns[(c, t), i] = x[c, s i + d t − p]        Y = W X_col,     X̄_col = Wᵀ Ȳ,     W̄ = Σ_n Ȳ X_colᵀ

for channel c, tap t of the kernel, window i, stride s, dilation d and padding p.

    to_columns       a thread for each element of the columns copies a pixel, or 0 from outside the image
    the product      matmul.py
    from_columns     a thread for each pixel adds up the elements of all windows that hold it

No two threads write to one element. In memory, columns are (N, C · taps, windows) in row order, and neighbouring threads write
neighbouring windows. Images are taken a few at a time, so that their columns never need more than `COLUMNS` bytes. The weight
gradients of single images are added up as rows, by `column_sums`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda, float32

from kernels import reference
from kernels.cuda.build import F3, F4, FLAT, INT, Array, cdiv, check, empty, is_float32, kernel, launch, plain, record
from kernels.cuda.matmul import multiply
from kernels.cuda.rows import column_sums
from kernels.cuda.sums import add, settle

COLUMNS = 1 << 28  # bytes: small beside a GPU's memory, and enough for products that fill it with work
Sizes = tuple[int, ...]


class Geometry(NamedTuple):
    """Taps of the kernel, windows, stride, padding and dilation, each of rows and of columns."""

    taps_i: int
    taps_j: int
    windows_i: int
    windows_j: int
    stride_i: int
    stride_j: int
    padding_i: int
    padding_j: int
    dilation_i: int
    dilation_j: int


GEOMETRY = record(Geometry, **dict.fromkeys(Geometry._fields, INT))


@kernel((F4, F3, GEOMETRY), threads=FLAT, registers=64)
def to_columns(x, columns, g):
    """columns[n, (c, t), i] = x[n, c, s i + d t − p], 0 outside.     (N, C, H, W) → (N, C · taps, windows)"""
    e = cuda.grid(1)
    if e < columns.size:
        window = e % (g.windows_i * g.windows_j)
        line = e // (g.windows_i * g.windows_j)
        taps = g.taps_i * g.taps_j
        c = line // taps % x.shape[1]
        n = line // taps // x.shape[1]
        tap = line % taps
        i = window // g.windows_j * g.stride_i + tap // g.taps_j * g.dilation_i - g.padding_i
        j = window % g.windows_j * g.stride_j + tap % g.taps_j * g.dilation_j - g.padding_j
        inside = i >= 0 and i < x.shape[2] and j >= 0 and j < x.shape[3]
        columns[n, line % (x.shape[1] * taps), window] = x[n, c, i, j] if inside else float32(0.0)


@kernel((F3, F4, GEOMETRY), threads=FLAT, registers=64)
def from_columns(columns, x, g):
    """x[n, c, j] = Σ columns[n, (c, t), i] over all s i + d t − p = j: the transpose of `to_columns`."""
    e = cuda.grid(1)
    if e < x.size:
        j = e % x.shape[3]
        i = e // x.shape[3] % x.shape[2]
        c = e // x.shape[3] // x.shape[2] % x.shape[1]
        n = e // x.shape[3] // x.shape[2] // x.shape[1]
        total, lost = float32(0.0), float32(0.0)
        for a in range(g.taps_i):
            y = i + g.padding_i - a * g.dilation_i
            if y >= 0 and y % g.stride_i == 0 and y // g.stride_i < g.windows_i:
                for b in range(g.taps_j):
                    z = j + g.padding_j - b * g.dilation_j
                    if z >= 0 and z % g.stride_j == 0 and z // g.stride_j < g.windows_j:
                        window = y // g.stride_i * g.windows_j + z // g.stride_j
                        total, lost = add(total, lost, columns[n, (c * g.taps_i + a) * g.taps_j + b, window])
        x[n, c, i, j] = settle(total, lost)


def _flat(x: Array) -> Array:
    """Images of two spatial dimensions; with one, x is an image of one row."""
    return x.reshape(x.shape[:2] + (1,) + x.shape[2:]) if x.ndim == 3 else x


def _geometry(taps: Sizes, windows: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Geometry:
    """For the kernels: of one spatial dimension, rows are one tap, one window and no padding."""
    filled = ((1, taps), (1, windows), (1, stride), (0, padding), (1, dilation))
    return Geometry(*[int(v) for one, values in filled for v in ((one,) * (2 - len(values)) + tuple(values))])


def _parts(n: int, size: int) -> list[slice]:
    """Slices of the n images, each of as many as COLUMNS has memory for if the columns of one have `size` elements."""
    count = max(1, COLUMNS // (4 * max(size, 1)))
    return [slice(i, i + count) for i in range(0, n, count)]


def _columns(x: Array, groups: int, lines: int, windows: int, geometry: Geometry) -> Array:
    """(N, C, H, W) → (N · G, C/G · taps, windows)"""
    columns = empty(x, (len(x), lines * groups, windows))
    launch(to_columns, cdiv(columns.size, FLAT), x, columns, geometry)
    return columns.reshape(len(x) * groups, lines, -1)


def conv(x: Array, w: Array, *, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int = 1) -> Array:
    check("conv", x, w)
    if not is_float32(x, w):
        return reference.conv(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    taps, n, o = w.shape[2:], x.shape[0], w.shape[0]
    windows = tuple(
        (m + 2 * p - d * (k - 1) - 1) // s + 1
        for m, p, d, k, s in zip(x.shape[2:], padding, dilation, taps, stride, strict=True)
    )
    lines, count = w.shape[1] * math.prod(taps), math.prod(windows)
    y = np.zeros_like(x, shape=(n, o) + windows, order="C")
    if not y.size or not lines:
        return y
    x, geometry = plain(_flat(x)), _geometry(taps, windows, stride, padding, dilation)
    weights = plain(w).reshape(groups, o // groups, lines)
    for part in _parts(n, lines * groups * count):
        columns = _columns(x[part], groups, lines, count, geometry)
        multiply(weights, columns, y[part].reshape(len(columns), o // groups, count))
    return y


def conv_input_grad(
    dy: Array, w: Array, size: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int = 1
) -> Array:
    check("conv_input_grad", dy, w)
    if not is_float32(dy, w):
        return reference.conv_input_grad(dy, w, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    (n, o), taps, windows = dy.shape[:2], w.shape[2:], dy.shape[2:]
    lines, count = w.shape[1] * math.prod(taps), math.prod(windows)
    dx = np.zeros_like(dy, shape=(n, w.shape[1] * groups) + tuple(size), order="C")
    if not dx.size or not dy.size:
        return dx
    geometry = _geometry(taps, windows, stride, padding, dilation)
    weights = plain(w).reshape(groups, o // groups, lines).swapaxes(1, 2)
    dy = plain(dy).reshape(n, groups, o // groups, count)
    for part in _parts(n, lines * groups * count):
        images = _flat(dx[part])
        columns = multiply(weights, dy[part].reshape(-1, o // groups, count))  # (images · G, C/G · taps, windows)
        launch(from_columns, cdiv(images.size, FLAT), columns.reshape(len(images), groups * lines, count), images, geometry)
    return dx


def conv_weight_grad(
    x: Array, dy: Array, size: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int = 1
) -> Array:
    check("conv_weight_grad", x, dy)
    if not is_float32(x, dy):
        return reference.conv_weight_grad(x, dy, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    (n, o), windows, c = dy.shape[:2], dy.shape[2:], x.shape[1] // groups
    lines, count = c * math.prod(size), math.prod(windows)
    dw = np.zeros_like(x, shape=(o, c) + tuple(size), order="C")
    if not dw.size or not dy.size:
        return dw
    x, geometry = plain(_flat(x)), _geometry(size, windows, stride, padding, dilation)
    dy = plain(dy).reshape(n, groups, o // groups, count)
    sums = []
    for part in _parts(n, groups * lines * (count + o // groups)):
        columns = _columns(x[part], groups, lines, count, geometry)
        products = multiply(dy[part].reshape(-1, o // groups, count), columns.swapaxes(1, 2))
        sums.append(column_sums(products.reshape(-1, dw.size)))  # products: (images · G, O/G, C/G · taps)
    return (sums[0] if len(sums) == 1 else column_sums(np.stack(sums))).reshape(dw.shape)
