r"""Activations: y_i = f(x_i), and the gradients x̄_i = ȳ_i f'(x_i), each in one vectorised pass that the threads share.

    for each thread t:                             x   │  part 0  │  part 1  │ …         contiguous, of equal lengths
        for j in its part:   y_j = f(x_j)          y   │  part 0  │  part 1  │ …

Each f is a loop over n elements, compiled as a C function when it is first wanted (`of_one`, `of_two`). The kernels
`over_one` and `over_two` call it by its address for each thread's part. The arrays are arguments of these two, so that they
outlive every use of an address. What `rows` says of inputs and of threads holds here too; nothing is summed.

σ(x) is e / (1 + e) or 1 / (1 + e) with e = e^{−|x|} ≤ 1, so nothing overflows. Where x is a factor of σ, x is first held above
`LOW`, where σ is 0, so that −∞ · 0 does not arise. `LOW` is −800, since e^−800 is 0 in float64 too.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types

from kernels import reference
from kernels.cpu.build import INT, VOID, Kernel, kernel, result, sums
from kernels.cpu.functions import exp_nonpositive, expm1_nonpositive, log1p
from kernels.cpu.functions import sigmoid as logistic
from kernels.cpu.rows import alike, covers, flat, plain, shares
from kernels.cpu.simd import address, call

Array = np.ndarray
LOW = -800.0


def of_one(function: Any) -> Kernel:
    """A loop function(x, y, a, b, c, n) that writes n elements of y; a, b and c: constants of f, of the type of x"""
    signature = lambda element: VOID(*[types.CPointer(element)] * 2, *[element] * 3, INT)  # noqa: E731
    return Kernel(function, signature, callback=True, fastmath={"contract"})


def of_two(function: Any) -> Kernel:
    """A loop function(u, v, y, a, b, c, n) that writes n elements of y, such as x̄ from ȳ and x"""
    signature = lambda element: VOID(*[types.CPointer(element)] * 3, *[element] * 3, INT)  # noqa: E731
    return Kernel(function, signature, callback=True, fastmath={"contract"})


@kernel(lambda element: VOID(INT, flat(element), result(element, 1, "C"), *[element] * 3, INT), parallel=True)
def over_one(function, x, y, a, b, c, nt):
    """function(x, y, …) for each thread's part of the elements"""
    if nt == 1:
        call(function, (address(x), address(y), a, b, c, x.size))
    else:
        for t in numba.prange(nt):
            i0, i1 = t * x.size // nt, (t + 1) * x.size // nt
            skip = i0 * x.itemsize
            call(function, (address(x) + skip, address(y) + skip, a, b, c, i1 - i0))


@kernel(lambda element: VOID(INT, *[flat(element)] * 2, result(element, 1, "C"), *[element] * 3, INT), parallel=True)
def over_two(function, u, v, y, a, b, c, nt):
    """function(u, v, y, …) for each thread's part of the elements"""
    if nt == 1:
        call(function, (address(u), address(v), address(y), a, b, c, y.size))
    else:
        for t in numba.prange(nt):
            i0, i1 = t * y.size // nt, (t + 1) * y.size // nt
            skip = i0 * y.itemsize
            call(function, (address(u) + skip, address(v) + skip, address(y) + skip, a, b, c, i1 - i0))


def _forward(function: Kernel, x: Array, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> Array:
    y, letter = np.empty(x.shape, x.dtype), x.dtype.char
    over_one[letter](function[letter], plain(x).reshape(-1), y.reshape(-1), a, b, c, shares(4 * x.size))
    return y


def _backward(function: Kernel, dy: Array, x: Array, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> Array:
    dx, letter = np.empty(x.shape, x.dtype), x.dtype.char
    u, v = plain(dy).reshape(-1), plain(x).reshape(-1)
    over_two[letter](function[letter], u, v, dx.reshape(-1), a, b, c, shares(4 * x.size))
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# Sigmoids
# ---------------------------------------------------------------------------------------------------------------------


@of_one
def sigmoid_loop(x, y, a, b, c, n):
    for j in range(n):
        y[j] = logistic(x[j])


@of_two
def sigmoid_slope_loop(dy, y, dx, a, b, c, n):
    unit = type(a)(1)
    for j in range(n):
        dx[j] = dy[j] * (y[j] * (unit - y[j]))


@of_two
def tanh_slope_loop(dy, y, dx, a, b, c, n):
    unit = type(a)(1)
    for j in range(n):
        dx[j] = dy[j] * (unit - y[j] * y[j])


def sigmoid(x: Array) -> Array:
    return _forward(sigmoid_loop, x) if covers(x) else reference.sigmoid(x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return _backward(sigmoid_slope_loop, dy, y) if alike(dy, y) else reference.sigmoid_backward(dy, y)


def tanh_backward(dy: Array, y: Array) -> Array:
    return _backward(tanh_slope_loop, dy, y) if alike(dy, y) else reference.tanh_backward(dy, y)


@of_one
def sign_loop(x, y, a, b, c, n):
    zero, unit = type(a)(0), type(a)(1)
    for j in range(n):
        y[j] = unit if x[j] > zero else -unit if x[j] < zero else zero if x[j] == zero else x[j]


def sign(x: Array) -> Array:
    return _forward(sign_loop, x) if covers(x) else reference.sign(x)


# ---------------------------------------------------------------------------------------------------------------------
# Rectifiers with a bend
# ---------------------------------------------------------------------------------------------------------------------


@of_one
def softplus_loop(x, y, beta, share, threshold, n):
    zero = type(beta)(0)
    for j in range(n):
        z = x[j] * beta
        bent = ((z if z > zero else zero) + log1p(exp_nonpositive(-abs(z)))) * share
        y[j] = x[j] if z > threshold else bent


@of_two
def softplus_slope_loop(dy, x, dx, beta, share, threshold, n):
    for j in range(n):
        z = x[j] * beta
        bent = dy[j] * logistic(z)
        dx[j] = dy[j] if z > threshold else bent


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    if not covers(x) or not beta:
        return reference.softplus(x, beta=beta, threshold=threshold)
    return _forward(softplus_loop, x, beta, 1 / beta, threshold)


def softplus_backward(dy: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    if not alike(dy, x):
        return reference.softplus_backward(dy, x, beta=beta, threshold=threshold)
    return _backward(softplus_slope_loop, dy, x, beta, 0.0, threshold)


@of_one
def elu_loop(x, y, scale, low, rate, n):
    zero = type(scale)(0)
    for j in range(n):
        below = low * expm1_nonpositive(rate * (zero if x[j] > zero else x[j]))
        y[j] = scale * x[j] if x[j] > zero else below


@of_two
def elu_slope_loop(dy, x, dx, scale, low, rate, n):
    zero = type(scale)(0)
    for j in range(n):
        slope = low * exp_nonpositive(rate * (zero if x[j] > zero else x[j]))
        dx[j] = dy[j] * (scale if x[j] > zero else slope)


def elu(x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    if not covers(x) or rate < 0:
        return reference.elu(x, alpha=alpha, scale=scale, rate=rate)
    return _forward(elu_loop, x, scale, scale * alpha, rate)


def elu_backward(dy: Array, x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    if not alike(dy, x) or rate < 0:
        return reference.elu_backward(dy, x, alpha=alpha, scale=scale, rate=rate)
    return _backward(elu_slope_loop, dy, x, scale, scale * alpha * rate, rate)


# ---------------------------------------------------------------------------------------------------------------------
# Gates: x times something between 0 and 1
# ---------------------------------------------------------------------------------------------------------------------


@of_one
def silu_loop(x, y, low, b, c, n):
    for j in range(n):
        y[j] = (low if x[j] < low else x[j]) * logistic(x[j])


@of_two
def silu_slope_loop(dy, x, dx, low, b, c, n):
    unit = type(low)(1)
    zero = type(low)(0)
    for j in range(n):
        e = exp_nonpositive(-abs(x[j]))
        held = -low if x[j] > -low else low if x[j] < low else x[j]
        share = unit / (unit + e)  # σ(|x|);  e share = σ(−|x|)
        s, rest = (e * share, share) if x[j] < zero else (share, e * share)
        dx[j] = dy[j] * (s * (unit + held * rest))


def silu(x: Array) -> Array:
    return _forward(silu_loop, x, LOW) if covers(x) else reference.silu(x)


def silu_backward(dy: Array, x: Array) -> Array:
    return _backward(silu_slope_loop, dy, x, LOW) if alike(dy, x) else reference.silu_backward(dy, x)


# With u = e^{−|x|}:  tanh(log(1 + eˣ)) = (1 + 2u) / (1 + 2u + 2u²) for x ≥ 0,  (2u + u²) / (2 + 2u + u²) for x < 0
@of_one
def mish_loop(x, y, low, b, c, n):
    zero, unit, twice = type(low)(0), type(low)(1), type(low)(2)
    for j in range(n):
        u = exp_nonpositive(-abs(x[j]))
        negative = x[j] < zero
        above = u * (twice + u) if negative else unit + twice * u
        beside = twice if negative else twice * u * u
        y[j] = (low if x[j] < low else x[j]) * (above / (above + beside))


@of_two
def mish_slope_loop(dy, x, dx, low, b, c, n):
    zero, unit, twice = type(low)(0), type(low)(1), type(low)(2)
    for j in range(n):
        u = exp_nonpositive(-abs(x[j]))
        negative = x[j] < zero
        above = u * (twice + u) if negative else unit + twice * u
        beside = twice if negative else twice * u * u
        share = unit / (above + beside)
        held = -low if x[j] > -low else low if x[j] < low else x[j]
        t = above * share
        s = (u if negative else unit) / (unit + u)
        dx[j] = dy[j] * (t + held * (beside * share) * (unit + t) * s)  # beside · share is 1 − t


def mish(x: Array) -> Array:
    return _forward(mish_loop, x, LOW) if covers(x) else reference.mish(x)


def mish_backward(dy: Array, x: Array) -> Array:
    return _backward(mish_slope_loop, dy, x, LOW) if alike(dy, x) else reference.mish_backward(dy, x)


@of_two
def glu_loop(x, gate, y, a, b, c, n):
    for j in range(n):
        y[j] = x[j] * logistic(gate[j])


@of_two
def glu_slope_loop(dy, x, dx, a, b, c, n):
    """x and dx: n elements, and behind them the n of their gates"""
    zero, unit = type(a)(0), type(a)(1)
    for j in range(n):
        e = exp_nonpositive(-abs(x[n + j]))
        share = unit / (unit + e)
        s, rest = (e * share, share) if x[n + j] < zero else (share, e * share)
        dx[n + j] = dy[j] * s * x[j] * rest
        dx[j] = dy[j] * s


@kernel(lambda element: VOID(INT, flat(element), flat(element, 2), result(element, 2, "C"), INT, INT), parallel=True)
def over_halves(function, dy, x, out, forward, nt):
    """A row of x holds elements and behind them their gates; `out`: y if `forward`, else x̄"""
    rows, n, size = len(x), x.shape[1] // 2, x.itemsize
    nothing = x.dtype.type(0)
    for t in numba.prange(nt):
        for i in range(t * rows // nt, (t + 1) * rows // nt):
            at, to = address(x) + 2 * i * n * size, address(out) + i * out.shape[1] * size
            first, second = (at, at + n * size) if forward else (address(dy) + i * n * size, at)
            call(function, (first, second, to, nothing, nothing, nothing, n))


def _halves(x: Array, axis: int) -> tuple[int, int]:
    """x as rows, each of elements and behind them their gates: how many rows, and how long"""
    axis %= x.ndim
    return math.prod(x.shape[:axis]), math.prod(x.shape[axis:])


def glu(x: Array, axis: int) -> Array:
    if not covers(x):
        return reference.glu(x, axis)
    rows, length = _halves(x, axis)
    y, letter = np.empty((*x.shape[: axis % x.ndim], x.shape[axis] // 2, *x.shape[axis % x.ndim + 1 :]), x.dtype), x.dtype.char
    flat_x = plain(x).reshape(rows, length)
    over_halves[letter](
        glu_loop[letter], flat_x.reshape(-1), flat_x, y.reshape(rows, length // 2), 1, min(shares(4 * y.size), rows)
    )  # fmt: skip
    return y


def glu_backward(dy: Array, x: Array, axis: int) -> Array:
    if not covers(x, dy):
        return reference.glu_backward(dy, x, axis)
    dx, letter, shape = np.empty(x.shape, x.dtype), x.dtype.char, _halves(x, axis)
    over_halves[letter](
        glu_slope_loop[letter], plain(dy).reshape(-1), plain(x).reshape(shape), dx.reshape(shape), 0,
        min(shares(4 * dy.size), shape[0]),
    )  # fmt: skip
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# Softmax, backward: each row needs a sum over itself
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _softmax_slope(dy, y, dx, i0, i1):
    for i in range(i0, i1):
        g, p, out, along = dy[i], y[i], dx[i], y.dtype.type(0)
        for j in range(np.uintp(p.size)):
            along += g[j] * p[j]
        for j in range(np.uintp(p.size)):
            out[j] = p[j] * (g[j] - along)


@sums
def _log_softmax_slope(dy, y, dx, i0, i1):
    for i in range(i0, i1):
        g, log_p, out, total = dy[i], y[i], dx[i], y.dtype.type(0)
        for j in range(np.uintp(g.size)):
            total += g[j]
        for j in range(np.uintp(g.size)):
            out[j] = g[j] - exp_nonpositive(log_p[j]) * total


@kernel(lambda element: VOID(flat(element, 2), flat(element, 2), result(element, 2, "C"), INT, INT), parallel=True)
def softmax_slopes(dy, y, dx, logarithm, nt):
    """x̄ by rows"""
    for t in numba.prange(nt):
        i0, i1 = t * len(y) // nt, (t + 1) * len(y) // nt
        if logarithm:
            _log_softmax_slope(dy, y, dx, i0, i1)
        else:
            _softmax_slope(dy, y, dx, i0, i1)


def _softmax_backward(dy: Array, y: Array, axis: int, logarithm: bool) -> Array:
    dy, y = (np.moveaxis(a, axis, -1) for a in (dy, y))
    dx, shape = np.empty(y.shape, y.dtype), (-1, y.shape[-1])
    rows = plain(dy).reshape(shape), plain(y).reshape(shape), dx.reshape(shape)
    softmax_slopes[y.dtype.char](*rows, int(logarithm), min(shares(4 * y.size), len(rows[0])))
    return np.moveaxis(dx, -1, axis)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    return _softmax_backward(dy, y, axis, False) if alike(dy, y) else reference.softmax_backward(dy, y, axis)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    return _softmax_backward(dy, y, axis, True) if alike(dy, y) else reference.log_softmax_backward(dy, y, axis)
