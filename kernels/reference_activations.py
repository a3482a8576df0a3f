"""What the activations mean, in NumPy: the part of `reference.py` that works on each element.

They are finite wherever the mathematics is: at ±∞ each has its limit, and so has its slope.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # e^{−x} = ∞: σ = 0
        return 1 / (1 + np.exp(-x))


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return dy * (y * (1 - y))


def tanh_backward(dy: Array, y: Array) -> Array:
    return dy * (1 - y * y)


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    z = x * beta
    return np.where(z > threshold, x, (np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))) / beta)


def softplus_backward(dy: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    z = x * beta
    return np.where(z > threshold, dy, dy * sigmoid(z))


def elu(x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    return np.where(x > 0, scale * x, scale * alpha * np.expm1(rate * np.minimum(x, 0)))


def elu_backward(dy: Array, x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    return np.where(x > 0, scale * dy, dy * (scale * alpha * rate * np.exp(rate * np.minimum(x, 0))))


def _finite(x: Array) -> Array:
    """x, held where σ(−|x|) is 0 beside 1 in every dtype: so that 0 is not multiplied by ∞"""
    return np.clip(x, -1000, 1000)


def silu(x: Array) -> Array:
    return np.maximum(x, -1000) * sigmoid(x)


def silu_backward(dy: Array, x: Array) -> Array:
    return dy * (sigmoid(x) * (1 + _finite(x) * sigmoid(-x)))


def _mish_parts(x: Array) -> tuple[Array, Array]:
    """t = tanh(log(1 + eˣ)), as (1 + 2u) / (1 + 2u + 2u²) for x ≥ 0, else (2u + u²) / (2 + 2u + u²), u = e^{−|x|}; and 1 − t"""
    u = np.exp(-np.abs(x))
    above, below = 1 + 2 * u * (1 + u), 2 + u * (2 + u)
    return np.where(x < 0, u * (2 + u) / below, (1 + 2 * u) / above), np.where(x < 0, 2 / below, 2 * u * u / above)


def mish(x: Array) -> Array:
    return np.maximum(x, -1000) * _mish_parts(x)[0]


def mish_backward(dy: Array, x: Array) -> Array:
    t, rest = _mish_parts(x)
    return dy * (t + _finite(x) * rest * (1 + t) * sigmoid(x))


def glu(x: Array, axis: int) -> Array:
    a, b = np.split(x, 2, axis)
    return a * sigmoid(b)


def glu_backward(dy: Array, x: Array, axis: int) -> Array:
    a, b = np.split(x, 2, axis)
    da = dy * sigmoid(b)
    return np.concatenate([da, da * a * sigmoid(-b)], axis)


def _total(x: Array, axis: int) -> Array:
    """Σ x along an axis, which stays with length 1; added in float64"""
    return np.sum(x, axis=axis, keepdims=True, dtype=np.result_type(x.dtype, np.float64)).astype(x.dtype)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    return y * (dy - _total(dy * y, axis))


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    return dy - np.exp(y) * _total(dy, axis)


def sign(x: Array) -> Array:
    return np.sign(x)
