r"""Activations and their gradients. One thread computes one element, or, of a softmax's gradient, one block a row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import boolean, cuda, float32

from kernels import reference
from kernels.cuda.build import (
    F1,
    F2,
    FLAT,
    FLOAT,
    INT,
    THREADS,
    WARPS,
    Array,
    block_sum,
    cdiv,
    check,
    device,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
)

LOW = -200.0  # e^LOW is 0; x is held above it where it stands in a product with σ(x), so that −∞ · 0 does not arise


@device
def _logistic(x):
    e = math.exp(-abs(x))
    return (e if x < float32(0.0) else float32(1.0)) / (float32(1.0) + e)


@device
def _held(x):
    """x between LOW and −LOW"""
    if x < float32(LOW):
        return float32(LOW)
    return float32(-LOW) if x > float32(-LOW) else x


@device
def _sigmoid(x, a, b, c):
    return _logistic(x)


@device
def _sigmoid_slope(y, a, b, c):
    return y * (float32(1.0) - y)


@device
def _tanh_slope(y, a, b, c):
    return float32(1.0) - y * y


@device
def _softplus(x, beta, share, threshold):
    z = x * beta
    if z > threshold:
        return x
    return ((float32(0.0) if z < float32(0.0) else z) + math.log1p(math.exp(-abs(z)))) * share


@device
def _softplus_slope(x, beta, share, threshold):
    z = x * beta
    return float32(1.0) if z > threshold else _logistic(z)


@device
def _elu(x, scale, low, rate):
    return scale * x if x > float32(0.0) else low * math.expm1(rate * x)


@device
def _elu_slope(x, scale, low, rate):
    return scale if x > float32(0.0) else low * math.exp(rate * x)


@device
def _silu(x, a, b, c):
    return (float32(LOW) if x < float32(LOW) else x) * _logistic(x)


@device
def _silu_slope(x, a, b, c):
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
def _mish(x, a, b, c):
    return (float32(LOW) if x < float32(LOW) else x) * _mish_gate(x)


@device
def _mish_slope(x, a, b, c):
    t = _mish_gate(x)
    return t + _held(x) * _mish_rest(x) * (float32(1.0) + t) * _logistic(x)


def _map(name: str, function: Any) -> Any:
    @kernel((F1, F1, FLOAT, FLOAT, FLOAT), threads=FLAT, registers=40, name=name)
    def each(x, y, a, b, c):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = function(x[i], a, b, c)

    return each


def _map_backward(name: str, slope: Any) -> Any:
    @kernel((F1, F1, F1, FLOAT, FLOAT, FLOAT), threads=FLAT, registers=40, name=name)
    def each(dy, x, dx, a, b, c):
        i = cuda.grid(1)
        if i < x.size:
            dx[i] = dy[i] * slope(x[i], a, b, c)

    return each


MAPS = {
    "sigmoid": _map("sigmoid", _sigmoid),
    "softplus": _map("softplus", _softplus),
    "elu": _map("elu", _elu),
    "silu": _map("silu", _silu),
    "mish": _map("mish", _mish),
}
SLOPES = {
    "sigmoid": _map_backward("sigmoid_backward", _sigmoid_slope),
    "tanh": _map_backward("tanh_backward", _tanh_slope),
    "softplus": _map_backward("softplus_backward", _softplus_slope),
    "elu": _map_backward("elu_backward", _elu_slope),
    "silu": _map_backward("silu_backward", _silu_slope),
    "mish": _map_backward("mish_backward", _mish_slope),
}


def _numbers(*numbers: float) -> list[Any]:
    return [np.float32(number) for number in (*numbers, 0.0, 0.0, 0.0)[:3]]


def _each(name: str, x: Array, *numbers: float, **options: float) -> Array:
    if not is_float32(x) or not x.size:
        return getattr(reference, name)(x, **options)
    x = plain(x)
    y = empty(x, x.shape)
    launch(MAPS[name], cdiv(x.size, FLAT), x.reshape(-1), y.reshape(-1), *_numbers(*numbers))
    return y


def _each_backward(name: str, dy: Array, x: Array, *numbers: float, **options: float) -> Array:
    check(f"{name}_backward", dy, x)
    if not is_float32(dy, x) or not x.size or dy.shape != x.shape:
        return getattr(reference, f"{name}_backward")(dy, x, **options)
    dy, x = plain(dy), plain(x)
    dx = empty(x, x.shape)
    launch(SLOPES[name], cdiv(x.size, FLAT), dy.reshape(-1), x.reshape(-1), dx.reshape(-1), *_numbers(*numbers))
    return dx


def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + e^{−x})"""
    return _each("sigmoid", x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """x̄ = ȳ y (1 − y)"""
    return _each_backward("sigmoid", dy, y)


def tanh_backward(dy: Array, y: Array) -> Array:
    """x̄ = ȳ (1 − y²)"""
    return _each_backward("tanh", dy, y)


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """y = log(1 + e^{βx}) / β = (max(βx, 0) + log(1 + e^{−|βx|})) / β;  y = x where βx > threshold"""
    return _each("softplus", x, beta, 1 / beta, threshold, beta=beta, threshold=threshold)


def softplus_backward(dy: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """x̄ = ȳ σ(βx);  ȳ where βx > threshold"""
    return _each_backward("softplus", dy, x, beta, 0.0, threshold, beta=beta, threshold=threshold)


def elu(x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    """y = s x for x > 0, else s α (e^{rx} − 1)"""
    return _each("elu", x, scale, scale * alpha, rate, alpha=alpha, scale=scale, rate=rate)


def elu_backward(dy: Array, x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    """x̄ = s ȳ for x > 0, else s α r e^{rx} ȳ"""
    return _each_backward("elu", dy, x, scale, scale * alpha * rate, rate, alpha=alpha, scale=scale, rate=rate)


def silu(x: Array) -> Array:
    """x σ(x);  0 at −∞"""
    return _each("silu", x)


def silu_backward(dy: Array, x: Array) -> Array:
    """x̄ = ȳ σ (1 + x (1 − σ))"""
    return _each_backward("silu", dy, x)


def mish(x: Array) -> Array:
    """x tanh(log(1 + eˣ));  0 at −∞"""
    return _each("mish", x)


def mish_backward(dy: Array, x: Array) -> Array:
    """x̄ = ȳ (t + x (1 − t²) σ(x)),  t = tanh(log(1 + eˣ))"""
    return _each_backward("mish", dy, x)


@kernel((F1, F1, INT), threads=FLAT, registers=40)
def glu_each(x, y, n):
    """y = a σ(b): x holds n elements a and their n gates b, over and over."""
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
    """y = a σ(b), a and b the halves of x along an axis"""
    if not is_float32(x) or not x.size:
        return reference.glu(x, axis)
    axis %= x.ndim
    x, n = plain(x), math.prod(x.shape[axis:]) // 2
    y = empty(x, (*x.shape[:axis], x.shape[axis] // 2, *x.shape[axis + 1 :]))
    launch(glu_each, cdiv(y.size, FLAT), x.reshape(-1), y.reshape(-1), n)
    return y


def glu_backward(dy: Array, x: Array, axis: int) -> Array:
    """ā = ȳ σ(b),  b̄ = ȳ a σ(b) (1 − σ(b))"""
    check("glu_backward", dy, x)
    if not is_float32(dy, x) or not x.size:
        return reference.glu_backward(dy, x, axis)
    dy, x, n = plain(dy), plain(x), math.prod(x.shape[axis % x.ndim :]) // 2
    dx = empty(x, x.shape)
    launch(glu_each_backward, cdiv(dy.size, FLAT), dy.reshape(-1), x.reshape(-1), dx.reshape(-1), n)
    return dx


@kernel((F2, F2, F2, boolean), threads=THREADS, registers=40, shared=4 * WARPS)
def softmax_slopes(dy, y, dx, logarithm):
    """x̄ = y ⊙ (ȳ − Σ_j ȳ_j y_j), or ȳ − e^y Σ_j ȳ_j of the logarithm, by rows"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    along = float32(0.0)
    for j in range(cuda.threadIdx.x, y.shape[1], THREADS):
        along += dy[i, j] if logarithm else dy[i, j] * y[i, j]
    along = block_sum(along, shared)
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
    """x̄ = y ⊙ (ȳ − Σ_j ȳ_j y_j)"""
    return _softmax_backward("softmax_backward", dy, y, axis, False)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """x̄ = ȳ − e^y Σ_j ȳ_j"""
    return _softmax_backward("log_softmax_backward", dy, y, axis, True)
