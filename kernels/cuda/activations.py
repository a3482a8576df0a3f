r"""Activations and their gradients, and the gradients of softmax and log-softmax.

    sigmoid … mish      a thread for each element, as `maps.py` says; each is two functions, itself and its slope
    glu                 a thread for each element of y: the two of x that it is made of lie n apart
    softmax_backward    a block of 128 threads for each row; thread t the elements t, t + 128, …: Σ_j ȳ_j y_j, then x̄

The functions are finite wherever the mathematics is: at ±∞ each has its limit, and so has its slope.
"""

from __future__ import annotations

import math

import numpy as np
from numba import boolean, cuda, float32

from kernels import reference
from kernels.cuda import maps
from kernels.cuda.build import (
    F1,
    F2,
    FLAT,
    INT,
    THREADS,
    WARPS,
    Array,
    cdiv,
    check,
    device,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
)
from kernels.cuda.sums import SHARED, add, block_sum
from kernels.reference import sign  # noqa: F401 (kernels of this module: the array library's own)

LOWEST = -200.0  # e^LOWEST is 0 in float32; where x is multiplied by σ(x), x is held above LOWEST, since −∞ · 0 is NaN

# ---------------------------------------------------------------------------------------------------------------------
# Device functions: f(x, a, b, c) and f'(x, a, b, c)
# ---------------------------------------------------------------------------------------------------------------------


@device
def _logistic(x):
    e = math.exp(-abs(x))
    return (e if x < float32(0.0) else float32(1.0)) / (float32(1.0) + e)


@device
def _held(x):
    """x, held between LOWEST and −LOWEST"""
    if x < float32(LOWEST):
        return float32(LOWEST)
    return float32(-LOWEST) if x > float32(-LOWEST) else x


@device
def _sigmoid(x, _a, _b, _c):
    return _logistic(x)


@device
def _sigmoid_slope(y, _a, _b, _c):
    return y * (float32(1.0) - y)


@device
def _tanh_slope(y, _a, _b, _c):
    return float32(1.0) - y * y


@device
def _softplus(x, beta, inverse, threshold):
    z = x * beta
    if z > threshold:
        return x
    return ((float32(0.0) if z < float32(0.0) else z) + math.log1p(math.exp(-abs(z)))) * inverse


@device
def _softplus_slope(x, beta, inverse, threshold):
    z = x * beta
    return float32(1.0) if z > threshold else _logistic(z)


@device
def _elu(x, scale, low, rate):
    return scale * x if x > float32(0.0) else low * math.expm1(rate * x)


@device
def _elu_slope(x, scale, low, rate):
    return scale if x > float32(0.0) else low * math.exp(rate * x)


@device
def _silu(x, _a, _b, _c):
    return (float32(LOWEST) if x < float32(LOWEST) else x) * _logistic(x)


@device
def _silu_slope(x, _a, _b, _c):
    return _logistic(x) * (float32(1.0) + _held(x) * _logistic(-x))


@device
def _mish_gate(x):
    """tanh(log(1 + eˣ)) from u = e^{−|x|}"""
    u = math.exp(-abs(x))
    if x < float32(0.0):
        return u * (float32(2.0) + u) / (float32(2.0) + u * (float32(2.0) + u))
    return (float32(1.0) + float32(2.0) * u) / (float32(1.0) + float32(2.0) * u * (float32(1.0) + u))


@device
def _mish_rest(x):
    """1 − tanh(log(1 + eˣ))"""
    u = math.exp(-abs(x))
    if x < float32(0.0):
        return float32(2.0) / (float32(2.0) + u * (float32(2.0) + u))
    return float32(2.0) * u * u / (float32(1.0) + float32(2.0) * u * (float32(1.0) + u))


@device
def _mish(x, _a, _b, _c):
    return (float32(LOWEST) if x < float32(LOWEST) else x) * _mish_gate(x)


@device
def _mish_slope(x, _a, _b, _c):
    t = _mish_gate(x)
    return t + _held(x) * _mish_rest(x) * (float32(1.0) + t) * _logistic(x)


# ---------------------------------------------------------------------------------------------------------------------
# Activations of single elements
# ---------------------------------------------------------------------------------------------------------------------

MAPS = {
    "sigmoid": maps.of_elements("sigmoid", _sigmoid),
    "softplus": maps.of_elements("softplus", _softplus),
    "elu": maps.of_elements("elu", _elu),
    "silu": maps.of_elements("silu", _silu),
    "mish": maps.of_elements("mish", _mish),
    "sigmoid_backward": maps.of_slopes("sigmoid_backward", _sigmoid_slope),
    "tanh_backward": maps.of_slopes("tanh_backward", _tanh_slope),
    "softplus_backward": maps.of_slopes("softplus_backward", _softplus_slope),
    "elu_backward": maps.of_slopes("elu_backward", _elu_slope),
    "silu_backward": maps.of_slopes("silu_backward", _silu_slope),
    "mish_backward": maps.of_slopes("mish_backward", _mish_slope),
}


def _each(name: str, x: Array, *parameters: float, **options: float) -> Array:
    return maps.apply(MAPS[name], x, *parameters, otherwise=lambda x: getattr(reference, name)(x, **options))


def _each_slope(name: str, dy: Array, x: Array, *parameters: float, **options: float) -> Array:
    composed = getattr(reference, name)
    return maps.apply_slope(MAPS[name], dy, x, *parameters, otherwise=lambda dy, x: composed(dy, x, **options))


def sigmoid(x: Array) -> Array:
    return _each("sigmoid", x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return _each_slope("sigmoid_backward", dy, y)


def tanh_backward(dy: Array, y: Array) -> Array:
    return _each_slope("tanh_backward", dy, y)


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return _each("softplus", x, beta, 1 / beta, threshold, beta=beta, threshold=threshold)


def softplus_backward(dy: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return _each_slope("softplus_backward", dy, x, beta, 0.0, threshold, beta=beta, threshold=threshold)


def elu(x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    return _each("elu", x, scale, scale * alpha, rate, alpha=alpha, scale=scale, rate=rate)


def elu_backward(dy: Array, x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    return _each_slope("elu_backward", dy, x, scale, scale * alpha * rate, rate, alpha=alpha, scale=scale, rate=rate)


def silu(x: Array) -> Array:
    return _each("silu", x)


def silu_backward(dy: Array, x: Array) -> Array:
    return _each_slope("silu_backward", dy, x)


def mish(x: Array) -> Array:
    return _each("mish", x)


def mish_backward(dy: Array, x: Array) -> Array:
    return _each_slope("mish_backward", dy, x)


# ---------------------------------------------------------------------------------------------------------------------
# Gates, and gradients of rows
# ---------------------------------------------------------------------------------------------------------------------


@kernel((F1, F1, INT), threads=FLAT, registers=40)
def glu_each(x, y, n):
    """y = a σ(b): in x, n elements a and their n gates b follow each other, again and again."""
    i = cuda.grid(1)
    if i < y.size:
        at = i // n * 2 * n + i % n
        y[i] = x[at] * _logistic(x[at + n])


@kernel((F1, F1, F1, INT), threads=FLAT, registers=40)
def glu_each_backward(dy, x, dx, n):
    i = cuda.grid(1)
    if i < dy.size:
        at = i // n * 2 * n + i % n
        da = dy[i] * _logistic(x[at + n])
        dx[at] = da
        dx[at + n] = da * x[at] * _logistic(-x[at + n])


def glu(x: Array, axis: int) -> Array:
    if not is_float32(x) or not x.size:
        return reference.glu(x, axis)
    axis %= x.ndim
    x, n = plain(x), math.prod(x.shape[axis:]) // 2
    y = empty(x, (*x.shape[:axis], x.shape[axis] // 2, *x.shape[axis + 1 :]))
    launch(glu_each, cdiv(y.size, FLAT), x.reshape(-1), y.reshape(-1), n)
    return y


def glu_backward(dy: Array, x: Array, axis: int) -> Array:
    check("glu_backward", dy, x)
    if not is_float32(dy, x) or not x.size:
        return reference.glu_backward(dy, x, axis)
    dy, x, n = plain(dy), plain(x), math.prod(x.shape[axis % x.ndim :]) // 2
    dx = empty(x, x.shape)
    launch(glu_each_backward, cdiv(dy.size, FLAT), dy.reshape(-1), x.reshape(-1), dx.reshape(-1), n)
    return dx


@kernel((F2, F2, F2, boolean), threads=THREADS, registers=40, shared=SHARED)
def softmax_slopes(dy, y, dx, logarithm):
    """x̄ = y ⊙ (ȳ − Σ_j ȳ_j y_j), or ȳ − e^y Σ_j ȳ_j of the logarithm, by rows"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    total, lost = float32(0.0), float32(0.0)
    for j in range(cuda.threadIdx.x, y.shape[1], THREADS):
        total, lost = add(total, lost, dy[i, j] if logarithm else dy[i, j] * y[i, j])
    along = block_sum(total, lost, shared)
    for j in range(cuda.threadIdx.x, y.shape[1], THREADS):
        dx[i, j] = dy[i, j] - math.exp(y[i, j]) * along if logarithm else y[i, j] * (dy[i, j] - along)


def _softmax_backward(name: str, dy: Array, y: Array, axis: int, logarithm: bool) -> Array:
    check(name, dy, y)
    if not is_float32(dy, y) or not y.size:
        return getattr(reference, name)(dy, y, axis)
    dy, y = (plain(np.moveaxis(a, axis, -1)) for a in (dy, y))
    dx, shape = empty(y, y.shape), (y.size // y.shape[-1], y.shape[-1])
    launch(softmax_slopes, shape[0], dy.reshape(shape), y.reshape(shape), dx.reshape(shape), logarithm)
    return np.moveaxis(dx, -1, axis)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    return _softmax_backward("softmax_backward", dy, y, axis, False)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    return _softmax_backward("log_softmax_backward", dy, y, axis, True)
