r"""Kernels of single elements that are made of a function of one number:  y_i = f(x_i)  and  x̄_i = ȳ_i f'(x_i).

    thread i of ⌈n / 256⌉ blocks of 256:     y[i] = f(x[i], a, b, c)

The function f is a device function, compiled into the kernel; a, b, c are the parameters that some of them have, such as the
slope of an ELU. Nothing is shared between threads. The arrays are flat; those that do not lie in row order are copied first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from kernels.cuda.build import F1, FLAT, FLOAT, Array, Kernel, cdiv, check, empty, is_float32, kernel, launch, plain


def of_elements(name: str, function: Any) -> Kernel:
    """The kernel y_i = f(x_i)."""

    @kernel((F1, F1, FLOAT, FLOAT, FLOAT), threads=FLAT, registers=40, name=name)
    def each(x, y, a, b, c):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = function(x[i], a, b, c)

    return each


def of_slopes(name: str, slope: Any) -> Kernel:
    """The kernel x̄_i = ȳ_i f'(x_i), or of the output y where the slope is a function of that."""

    @kernel((F1, F1, F1, FLOAT, FLOAT, FLOAT), threads=FLAT, registers=40, name=name)
    def each(dy, x, dx, a, b, c):
        i = cuda.grid(1)
        if i < x.size:
            dx[i] = dy[i] * slope(x[i], a, b, c)

    return each


def _three(parameters: tuple[float, ...]) -> list[np.float32]:
    return [np.float32(p) for p in (*parameters, 0.0, 0.0, 0.0)[:3]]


def apply(kernel: Kernel, x: Array, *parameters: float, otherwise: Callable[[Array], Array]) -> Array:
    """f(x); `otherwise` computes what the kernel does not cover: other types and empty arrays."""
    if not is_float32(x) or not x.size:
        return otherwise(x)
    x = plain(x)
    y = empty(x, x.shape)
    launch(kernel, cdiv(x.size, FLAT), x.reshape(-1), y.reshape(-1), *_three(parameters))
    return y


def apply_slope(kernel: Kernel, dy: Array, x: Array, *parameters: float, otherwise: Callable[[Array, Array], Array]) -> Array:
    """ȳ f'(x), likewise."""
    check(kernel.name, dy, x)
    if not is_float32(dy, x) or not x.size or dy.shape != x.shape:
        return otherwise(dy, x)
    dy, x = plain(dy), plain(x)
    dx = empty(x, x.shape)
    launch(kernel, cdiv(x.size, FLAT), dy.reshape(-1), x.reshape(-1), dx.reshape(-1), *_three(parameters))
    return dx
