r"""Convolution as products, on the device: one matrix holds every window of an image,

    columns[(c, t), i] = x[c, s i + d t − p]        Y = W X_col,     X̄_col = Wᵀ Ȳ,     W̄ = Σ_n Ȳ X_colᵀ

and the way back adds up where windows overlap: each pixel collects from the windows that hold it, so no two threads write to
the same place. Images are taken a few at a time, so that their columns never need more than `COLUMNS` bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, types

from kernels import reference
from kernels.cuda.build import F3, FLAT, INT, Array, cdiv, check, empty, is_float32, kernel, launch, plain
from kernels.cuda.matmul import multiply

COLUMNS = 1 << 28  # bytes
F4 = types.Array(float32, 4, "C")
Geometry = tuple[int, ...]


@kernel((F4, F3, *[INT] * 10), threads=FLAT, registers=64)
def to_columns(x, columns, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw):
    """columns[n, (c, t), i] = x[n, c, s i + d t − p], 0 outside.     (N, C, H, W) → (N, C · taps, windows)"""
    at = cuda.grid(1)
    if at < columns.size:
        window = at % (oh * ow)
        line = at // (oh * ow)
        taps = kh * kw
        c = line // taps % x.shape[1]
        n = line // taps // x.shape[1]
        tap = line % taps
        i = window // ow * sh + tap // kw * dh - ph
        j = window % ow * sw + tap % kw * dw - pw
        inside = i >= 0 and i < x.shape[2] and j >= 0 and j < x.shape[3]
        columns[n, line % (x.shape[1] * taps), window] = x[n, c, i, j] if inside else float32(0.0)


@kernel((F3, F4, *[INT] * 10), threads=FLAT, registers=64)
def from_columns(columns, x, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw):
    """x[n, c, j] = Σ columns[n, (c, t), i] over all s i + d t − p = j: the transpose of `to_columns`."""
    at = cuda.grid(1)
    if at < x.size:
        j = at % x.shape[3]
        i = at // x.shape[3] % x.shape[2]
        c = at // x.shape[3] // x.shape[2] % x.shape[1]
        n = at // x.shape[3] // x.shape[2] // x.shape[1]
        total = float32(0.0)
        for a in range(kh):
            y = i + ph - a * dh
            if y >= 0 and y % sh == 0 and y // sh < oh:
                for b in range(kw):
                    z = j + pw - b * dw
                    if z >= 0 and z % sw == 0 and z // sw < ow:
                        total += columns[n, (c * kh + a) * kw + b, y // sh * ow + z // sw]
        x[n, c, i, j] = total


def _flat(x: Array) -> Array:
    """An image or kernel over two dimensions; one is as two, the first of length 1."""
    return x.reshape(x.shape[:2] + (1,) + x.shape[2:]) if x.ndim == 3 else x


def _numbers(kernel: Geometry, windows: Geometry, stride: Geometry, padding: Geometry, dilation: Geometry) -> list[int]:
    """The geometry as the kernels take it."""
    filled = ((1, kernel), (1, windows), (1, stride), (0, padding), (1, dilation))
    return [int(v) for empty, values in filled for v in ((empty,) * (2 - len(values)) + tuple(values))]


def _some(n: int, each: int) -> range:
    """Where to begin with as many images as have room for their columns of `each` numbers."""
    return range(0, n, max(1, COLUMNS // (4 * max(each, 1))))


def _columns(x: Array, groups: int, lines: int, windows: Geometry, numbers: list[int]) -> Array:
    """(N, C, H, W) → (N · G, C/G · taps, windows)"""
    columns = empty(x, (len(x), lines * groups, math.prod(windows)))
    launch(to_columns, cdiv(columns.size, FLAT), x, columns, *numbers)
    return columns.reshape(len(x) * groups, lines, -1)


def conv(x: Array, w: Array, *, stride: Geometry, padding: Geometry, dilation: Geometry, groups: int = 1) -> Array:
    """y[n, o, i] = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t].     (N, C, …), (O, C/G, …) → (N, O, …)"""
    check("conv", x, w)
    windows = tuple(
        (m + 2 * p - d * (k - 1) - 1) // s + 1
        for m, p, d, k, s in zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    )
    kernel, n, o = w.shape[2:], x.shape[0], w.shape[0]
    if not is_float32(x, w):
        return _in_float32(conv, x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    lines = w.shape[1] * math.prod(kernel)
    y = np.zeros_like(x, shape=(n, o) + windows, order="C")
    if not y.size or not lines:
        return y
    x, numbers = plain(_flat(x)), _numbers(kernel, windows, stride, padding, dilation)
    weights, places = plain(w).reshape(groups, o // groups, lines), math.prod(windows)
    starts = _some(n, lines * groups * places)
    for i in starts:
        part = slice(i, i + starts.step)
        columns = _columns(x[part], groups, lines, windows, numbers)
        multiply(weights, columns, y[part].reshape(len(columns), o // groups, places))
    return y


def conv_input_grad(
    dy: Array, w: Array, size: Geometry, *, stride: Geometry, padding: Geometry, dilation: Geometry, groups: int = 1
) -> Array:
    """x̄[n, c, s i + d t − p] += ȳ[n, o, i] w[o, c, t]: the transposed convolution, to an image of `size`."""
    check("conv_input_grad", dy, w)
    n, o = dy.shape[:2]
    kernel, windows = w.shape[2:], dy.shape[2:]
    if not is_float32(dy, w):
        return _in_float32(conv_input_grad, dy, w, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    lines = w.shape[1] * math.prod(kernel)
    dx = np.zeros_like(dy, shape=(n, w.shape[1] * groups) + tuple(size), order="C")
    if not dx.size or not dy.size:
        return dx
    numbers = _numbers(kernel, windows, stride, padding, dilation)
    weights, places = plain(w).reshape(groups, o // groups, lines).swapaxes(1, 2), math.prod(windows)
    dy = plain(dy).reshape(n, o, places)
    starts = _some(n, lines * groups * places)
    for i in starts:
        part = slice(i, i + starts.step)
        some = dy[part]
        columns = multiply(weights, some.reshape(len(some) * groups, o // groups, places))  # (n · G, C/G · taps, windows)
        image = _flat(dx[part])
        launch(from_columns, cdiv(image.size, FLAT), columns.reshape(len(some), groups * lines, places), image, *numbers)
    return dx


def conv_weight_grad(
    x: Array, dy: Array, size: Geometry, *, stride: Geometry, padding: Geometry, dilation: Geometry, groups: int = 1
) -> Array:
    """w̄[o, c, t] = Σ_{n,i} x[n, c, s i + d t − p] ȳ[n, o, i], for a kernel of `size`."""
    check("conv_weight_grad", x, dy)
    n, o = dy.shape[:2]
    windows, c = dy.shape[2:], x.shape[1] // groups
    if not is_float32(x, dy):
        return _in_float32(conv_weight_grad, x, dy, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    lines = c * math.prod(size)
    dw = np.zeros_like(x, shape=(groups, o // groups, lines), order="C")
    if not dw.size or not dy.size:
        return dw.reshape((o, c) + tuple(size))
    x, numbers = plain(_flat(x)), _numbers(size, windows, stride, padding, dilation)
    places = math.prod(windows)
    dy = plain(dy).reshape(n, o, places)
    starts = _some(n, groups * lines * (places + o // groups))
    for i in starts:
        part = slice(i, i + starts.step)
        columns, some = _columns(x[part], groups, lines, windows, numbers), dy[part]
        products = multiply(some.reshape(len(some) * groups, o // groups, places), columns.swapaxes(1, 2))
        dw += products.reshape(len(some), groups, o // groups, lines).sum(axis=0)
    return dw.reshape((o, c) + tuple(size))


def _in_float32(door: Any, a: Array, b: Array, *size: Geometry, **geometry: Any) -> Array:
    """Other types by way of NumPy's protocols: the reference, whose steps all lie in the library but for its product."""
    name = door.__name__
    return getattr(reference, name)(a, b, *size, **geometry)
