r"""GELU, erf, what follows a product (bias and activation), binary cross-entropy, dropout: a thread computes one element.

    thread i of ⌈n / 256⌉ blocks of 256:     y[i] from x[i], and from bias[i mod columns], target[i] or the random word of i

Nothing is shared between threads. The random word of an element is a function of its position, the seed and the stream
(Philox), so a dropout mask is the same in whatever order threads run, and the same on the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, uint64

from kernels import reference
from kernels.cuda import maps
from kernels.cuda.build import (
    F1,
    F2,
    FLAT,
    FLOAT,
    INT,
    Array,
    Kernel,
    cdiv,
    check,
    device,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
)
from kernels.reference import add_to_rows, scale_rows, squared_error  # noqa: F401 (kernels of this module: the array library's own)

# ---------------------------------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------------------------------

ROOT_HALF, ROOT_TWO_OVER_PI, CUBIC = float(np.sqrt(0.5)), float(np.sqrt(2 / np.pi)), 0.044715
ONE_OVER_ROOT_TWO_PI = float(1 / np.sqrt(2 * np.pi))


@device
def _gelu(x, _a, _b, _c):
    return float32(0.5) * x * (float32(1.0) + math.erf(x * float32(ROOT_HALF)))


@device
def _gelu_slope(x, _a, _b, _c):
    phi = float32(0.5) * (float32(1.0) + math.erf(x * float32(ROOT_HALF)))
    return phi + x * math.exp(float32(-0.5) * x * x) * float32(ONE_OVER_ROOT_TWO_PI)


@device
def _gelu_tanh(x, _a, _b, _c):
    t = math.tanh(float32(ROOT_TWO_OVER_PI) * x * (float32(1.0) + float32(CUBIC) * x * x))
    return float32(0.5) * x * (float32(1.0) + t)


@device
def _gelu_tanh_slope(x, _a, _b, _c):
    t = math.tanh(float32(ROOT_TWO_OVER_PI) * x * (float32(1.0) + float32(CUBIC) * x * x))
    x_du = float32(ROOT_TWO_OVER_PI) * x * (float32(1.0) + float32(3.0 * CUBIC) * x * x)  # x u'(x), u what tanh is taken of
    return float32(0.5) * (float32(1.0) + t) * ((float32(1.0) - t) * x_du + float32(1.0))


@device
def _erf(x, _a, _b, _c):
    return math.erf(x)


@device
def _relu(x, _a, _b, _c):
    return x if x > float32(0.0) or x != x else float32(0.0)


@device
def _same(x, _a, _b, _c):
    return x


def _finish(name: str, function: Any) -> Kernel:
    @kernel((F2, F1), threads=FLAT, registers=40, name=name)
    def each(c, bias):
        """c = f(c + bias), without a bias where that array is empty"""
        e = cuda.grid(1)
        if e < c.size:
            i = e // c.shape[1]
            j = e % c.shape[1]
            z = c[i, j] + bias[j] if bias.size else c[i, j]
            c[i, j] = function(z, float32(0.0), float32(0.0), float32(0.0))

    return each


MAPS = {
    "gelu": maps.of_elements("gelu", _gelu),
    "gelu_tanh": maps.of_elements("gelu_tanh", _gelu_tanh),
    "erf": maps.of_elements("erf", _erf),
    "gelu_backward": maps.of_slopes("gelu_backward", _gelu_slope),
    "gelu_tanh_backward": maps.of_slopes("gelu_tanh_backward", _gelu_tanh_slope),
}
FINISH = {
    None: _finish("add_bias", _same),
    "relu": _finish("finish_relu", _relu),
    "gelu": _finish("finish_gelu", _gelu),
    "gelu_tanh": _finish("finish_gelu_tanh", _gelu_tanh),
}


def finish(c: Array, bias: Array | None, activation: str | None) -> None:
    """c ← f(c + bias), in place.     (…, n), (n)"""
    if activation not in FINISH:
        raise ValueError(f"matmul: expected activation None, 'relu', 'gelu' or 'gelu_tanh', got {activation!r}")
    if c.size:
        flat = c.reshape(-1, c.shape[-1])
        launch(FINISH[activation], cdiv(c.size, FLAT), flat, empty(c, 0) if bias is None else plain(bias))


def erf(x: Array) -> Array:
    def composed(x: Array) -> Array:
        return erf(x.astype(np.float32)).astype(x.dtype) if x.size else x.copy()

    return maps.apply(MAPS["erf"], x, otherwise=composed)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    def composed(x: Array) -> Array:
        if approximate == "tanh":
            return reference.gelu(x, approximate=approximate)
        return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))

    return maps.apply(MAPS["gelu_tanh" if approximate == "tanh" else "gelu"], x, otherwise=composed)


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Array:
    def composed(dy: Array, x: Array) -> Array:
        if approximate == "tanh":
            return reference.gelu_backward(dy, x, approximate=approximate)
        phi = 0.5 * (1 + erf(x * math.sqrt(0.5)))
        return dy * (phi + x * np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))

    slope = MAPS["gelu_tanh_backward" if approximate == "tanh" else "gelu_backward"]
    return maps.apply_slope(slope, dy, x, otherwise=composed)


# ---------------------------------------------------------------------------------------------------------------------
# Binary cross-entropy
# ---------------------------------------------------------------------------------------------------------------------


@kernel((F1, F1, F1), threads=FLAT, registers=40)
def binary_cross_entropy_each(x, t, loss):
    i = cuda.grid(1)
    if i < x.size:
        positive = float32(0.0) if x[i] < float32(0.0) else x[i]
        linear = positive - t[i] * x[i]
        if abs(x[i]) == float32(np.inf):
            linear = float32(0.0) if t[i] == (x[i] > 0) else abs(x[i])
        loss[i] = math.log1p(math.exp(-abs(x[i]))) + linear


@kernel((F1, F1, F1, F1), threads=FLAT, registers=40)
def binary_cross_entropy_each_backward(dloss, x, t, dx):
    i = cuda.grid(1)
    if i < x.size:
        dx[i] = dloss[i] * (float32(1.0) / (float32(1.0) + math.exp(-x[i])) - t[i])


def binary_cross_entropy(x: Array, t: Array, *, total: bool = False) -> Array:
    check("binary_cross_entropy", x, t)
    if not is_float32(x, t) or x.shape != t.shape or not x.size:
        return reference.binary_cross_entropy(x, t, total=total)
    x, t = plain(x), plain(t)
    loss = empty(x, x.shape)
    launch(binary_cross_entropy_each, cdiv(x.size, FLAT), *[y.reshape(-1) for y in (x, t, loss)])
    return reference.sum_over(loss.reshape(-1), (0,)) if total else loss


def binary_cross_entropy_backward(dloss: Array, x: Array, t: Array) -> Array:
    check("binary_cross_entropy_backward", dloss, x, t)
    if not is_float32(dloss, x, t) or not dloss.shape == x.shape == t.shape or not x.size:
        return reference.binary_cross_entropy_backward(dloss, x, t)
    dloss, x, t = plain(dloss), plain(x), plain(t)
    dx = empty(x, x.shape)
    launch(binary_cross_entropy_each_backward, cdiv(x.size, FLAT), *[y.reshape(-1) for y in (dloss, x, t, dx)])
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------

LOW_HALF = 0xFFFFFFFF


@device
def _philox(counter, stream, seed, word):
    """Word `word` (0 to 3) of `reference.philox`: a block cipher of 32-bit words, here in the low halves of 64-bit ones."""
    low = uint64(LOW_HALF)
    shift = uint64(32)
    c0, c1 = counter & low, counter >> shift
    c2, c3 = stream & low, stream >> shift
    k0, k1 = seed & low, seed >> shift
    for _ in range(10):
        p0 = c0 * uint64(0xD2511F53)
        p1 = c2 * uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0 = (k0 + uint64(0x9E3779B9)) & low
        k1 = (k1 + uint64(0xBB67AE85)) & low
    if word == 0:
        return c0
    if word == 1:
        return c1
    return c2 if word == 2 else c3


@kernel((F1, F1, INT, INT, INT, INT, FLOAT), threads=FLAT, registers=48)
def dropout_each(x, y, quarter, seed, stream, limit, scale):
    """Word w of counter c decides on element w Q + c."""
    i = cuda.grid(1)
    if i < x.size:
        word = _philox(uint64(i % quarter), uint64(stream), uint64(seed), i // quarter)
        y[i] = x[i] * scale if word >= uint64(limit) else float32(0.0)


def dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    if p >= 1 or not x.size:
        return np.zeros_like(x)
    if not is_float32(x):
        kept = dropout(np.ones_like(x, dtype=np.float32), p=p, seed=seed, stream=stream) != 0
        return np.where(kept, x * x.dtype.type(1 / (1 - p)), 0).astype(x.dtype)
    x = plain(x)
    y = empty(x, x.shape)
    noise = _signed(seed), _signed(stream), round(p * 2**32), np.float32(1 / (1 - p))
    launch(dropout_each, cdiv(x.size, FLAT), x.reshape(-1), y.reshape(-1), cdiv(x.size, 4), *noise)
    return y


@kernel((F1, F1, INT, INT, INT, INT, INT, FLOAT), threads=FLAT, registers=48)
def attention_dropout_each(x, y, height, width, seed, stream, limit, scale):
    """Word i mod 4 of counter (z ⌈T/4⌉ + ⌊i/4⌋) S + j decides on element j of row i of head z."""
    e = cuda.grid(1)
    if e < x.size:
        j = e % width
        i = e // width % height
        z = e // width // height
        counter = (z * ((height + 3) // 4) + i // 4) * width + j
        word = _philox(uint64(counter), uint64(stream), uint64(seed), i % 4)
        y[e] = x[e] * scale if word >= uint64(limit) else float32(0.0)


def attention_dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    if p >= 1 or not x.size:
        return np.zeros_like(x)
    if not is_float32(x):
        z = attention_dropout(np.ones_like(x, dtype=np.float32), p=p, seed=seed, stream=stream) != 0
        return np.where(z, x * x.dtype.type(1 / (1 - p)), 0).astype(x.dtype)
    x = plain(x)
    y = empty(x, x.shape)
    noise = _signed(seed), _signed(stream), round(p * 2**32), np.float32(1 / (1 - p))
    launch(attention_dropout_each, cdiv(x.size, FLAT), x.reshape(-1), y.reshape(-1), *x.shape[-2:], *noise)
    return y


def _signed(word: int) -> int:
    """The low 64 bits of an integer as an int64, the type that Python's integers have in a kernel."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word
