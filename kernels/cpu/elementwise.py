r"""Kernels that pass over single elements, once, vectorised, by all threads: GELU, losses, dropout, rows with a constant each.

    for each thread t:                             x   │  part 0  │  part 1  │ …         contiguous, of equal lengths
        for j in its part:   y_j = f(x_j)          y   │  part 0  │  part 1  │ …

What `rows` says of inputs and of threads holds here too. Only the sum of a loss adds up. Its error does not grow with the
count: BLOCK binary cross-entropies are added in their own type, the sums of blocks, and squared errors, in float64.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from kernels import reference
from kernels.cpu import functions
from kernels.cpu.build import INT, VOID, helper, kernel, result, sums
from kernels.cpu.functions import exp_nonpositive, log1p, sigmoid
from kernels.cpu.rows import alike, covers, flat, plain, shares
from kernels.reference import attention_dropout, erf  # noqa: F401 (kernels of this module: NumPy and SciPy compute them)

Array = np.ndarray
U64 = numba.types.uint64

# ---------------------------------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------------------------------

GELU, GELU_TANH = range(2)

# ½ (1 + tanh u) = σ(2u): GELU's tanh form is x σ(v),  v = x (c₀ + c₁ x²)
C0, C1 = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


@sums
def _activate(kind, x, y):
    dtype = x.dtype.type
    one, half, root, c0, c1 = dtype(1), dtype(0.5), dtype(math.sqrt(0.5)), dtype(C0), dtype(C1)
    n = np.uintp(x.size)
    if kind == GELU:
        for j in range(n):
            y[j] = x[j] * (half * (one + functions.erf(x[j] * root)))
    else:
        for j in range(n):
            y[j] = x[j] * sigmoid(x[j] * (c0 + c1 * x[j] * x[j]))


@kernel(lambda element: VOID(INT, flat(element), result(element, 1, "C"), INT), parallel=True)
def activate(kind, x, y, nt):
    """y = f(x)"""
    if nt == 1:
        _activate(kind, x, y)
    else:
        for t in numba.prange(nt):
            i0, i1 = t * x.size // nt, (t + 1) * x.size // nt
            _activate(kind, x[i0:i1], y[i0:i1])


@sums
def _activate_backward(kind, dy, x, dx):
    dtype = x.dtype.type
    one, half, root, c0, c1, c2 = dtype(1), dtype(0.5), dtype(math.sqrt(0.5)), dtype(C0), dtype(C1), dtype(3 * C1)
    density = dtype(1 / math.sqrt(2 * math.pi))
    n = np.uintp(x.size)
    if kind == GELU:
        for j in range(n):
            gauss = density * exp_nonpositive(-half * x[j] * x[j])
            dx[j] = dy[j] * (half * (one + functions.erf(x[j] * root)) + x[j] * gauss)
    else:
        for j in range(n):
            square = x[j] * x[j]
            s = sigmoid(x[j] * (c0 + c1 * square))
            dx[j] = dy[j] * (s * (one + (one - s) * (x[j] * (c0 + c2 * square))))


@kernel(lambda element: VOID(INT, flat(element), flat(element), result(element, 1, "C"), INT), parallel=True)
def activate_backward(kind, dy, x, dx, nt):
    """x̄ = ȳ f'(x)"""
    if nt == 1:
        _activate_backward(kind, dy, x, dx)
    else:
        for t in numba.prange(nt):
            i0, i1 = t * x.size // nt, (t + 1) * x.size // nt
            _activate_backward(kind, dy[i0:i1], x[i0:i1], dx[i0:i1])


def _forward(kind: int, x: Array) -> Array:
    y = np.empty(x.shape, x.dtype)
    activate[x.dtype.char](kind, plain(x).reshape(-1), y.reshape(-1), shares(4 * x.size))
    return y


def _backward(kind: int, dy: Array, x: Array) -> Array:
    dx = np.empty(x.shape, x.dtype)
    activate_backward[x.dtype.char](kind, plain(dy).reshape(-1), plain(x).reshape(-1), dx.reshape(-1), shares(4 * x.size))
    return dx


def gelu(x: Array, *, approximate: str = "none") -> Array:
    if not covers(x):
        return reference.gelu(x, approximate=approximate)
    return _forward(GELU_TANH if approximate == "tanh" else GELU, x)


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Array:
    if not alike(dy, x):
        return reference.gelu_backward(dy, x, approximate=approximate)
    return _backward(GELU_TANH if approximate == "tanh" else GELU, dy, x)


# ---------------------------------------------------------------------------------------------------------------------
# Binary cross-entropy
# ---------------------------------------------------------------------------------------------------------------------

BLOCK = 1024  # elements that are added in their own type; the sums of blocks are added in float64


@sums
def _loss(x, t, zero):
    """ℓ = max(x, 0) − t x + log(1 + e^{−|x|});  of x = ±∞ it is 0 where t is 1 or 0 as x says, and ∞ for any other t"""
    size = abs(x)
    linear = (x if x > zero else zero) - t * x
    if size == np.inf:
        linear = zero if t == (x > zero) else size
    return linear + log1p(exp_nonpositive(-size))


@sums
def _losses(x, t, loss):
    zero = x.dtype.type(0)
    for j in range(np.uintp(x.size)):
        loss[j] = _loss(x[j], t[j], zero)


@kernel(lambda element: VOID(flat(element), flat(element), result(element, 1, "C"), INT), parallel=True)
def binary_losses(x, t, loss, nt):
    """ℓ, for each element"""
    if nt == 1:
        _losses(x, t, loss)
    else:
        for p in numba.prange(nt):
            i0, i1 = p * x.size // nt, (p + 1) * x.size // nt
            _losses(x[i0:i1], t[i0:i1], loss[i0:i1])


@sums
def _total(x, t):
    """Σ ℓ, block by block"""
    total, zero = 0.0, x.dtype.type(0)
    for i in range(0, x.size, BLOCK):
        block, a, b = zero, x[i : i + BLOCK], t[i : i + BLOCK]
        for j in range(np.uintp(a.size)):
            block += _loss(a[j], b[j], zero)
        total += block
    return total


@helper
def _added(parts):
    """Σ parts, in their order"""
    total = 0.0
    for part in parts:
        total += part
    return total


@kernel(lambda element: VOID(*[flat(element)] * 2, result(numba.float64, 1, "C"), result(element, 1, "C")), parallel=True)
def binary_total(x, t, parts, total):
    """total[0] = Σ ℓ,  parts[p] = Σ ℓ over what falls to thread p"""
    if parts.size == 1:
        parts[0] = _total(x, t)
    else:
        for p in numba.prange(parts.size):
            i0, i1 = p * x.size // parts.size, (p + 1) * x.size // parts.size
            parts[p] = _total(x[i0:i1], t[i0:i1])
    total[0] = _added(parts)


def binary_cross_entropy(x: Array, t: Array, *, total: bool = False) -> Array:
    if not alike(x, t):
        return reference.binary_cross_entropy(x, t, total=total)
    nt, letter, inputs = shares(4 * x.size), x.dtype.char, (plain(x).reshape(-1), plain(t).reshape(-1))
    if total:
        loss = np.empty((), x.dtype)
        binary_total[letter](*inputs, np.empty(nt), loss.reshape(1))
        return loss
    loss = np.empty(x.shape, x.dtype)
    binary_losses[letter](*inputs, loss.reshape(-1), nt)
    return loss


@sums
def _slopes(dloss, x, t, dx):
    for j in range(np.uintp(x.size)):
        dx[j] = dloss * (sigmoid(x[j]) - t[j])


@sums
def _scale_by(dloss, dx):
    for j in range(np.uintp(dx.size)):
        dx[j] *= dloss[j]


@helper
def _binary_losses_backward(dloss, x, t, dx, each, i, i1):
    if each == 1:
        _slopes(x.dtype.type(1), x[i:i1], t[i:i1], dx[i:i1])
        _scale_by(dloss[i:i1], dx[i:i1])
        i = i1
    while i < i1:
        end = min(i1, (i // each + 1) * each)
        _slopes(dloss[i // each], x[i:end], t[i:end], dx[i:end])
        i = end


@kernel(lambda element: VOID(flat(element), flat(element), flat(element), result(element, 1, "C"), INT, INT), parallel=True)
def binary_losses_backward(dloss, x, t, dx, each, nt):
    """x̄ = ℓ̄ (σ(x) − t); the first `each` elements of x belong to the first ℓ̄, the next to the second, and so on."""
    if nt == 1:
        _binary_losses_backward(dloss, x, t, dx, each, 0, x.size)
    else:
        for p in numba.prange(nt):
            i0, i1 = p * x.size // nt, (p + 1) * x.size // nt
            _binary_losses_backward(dloss, x, t, dx, each, i0, i1)


def binary_cross_entropy_backward(dloss: Array, x: Array, t: Array) -> Array:
    if not alike(x, t) or not alike(dloss, x):
        return reference.binary_cross_entropy_backward(dloss, x, t)
    dx, each = np.empty(x.shape, x.dtype), 1
    spread = dloss.strides.index(0) if 0 in dloss.strides else x.ndim  # what a sum over the last dimensions hands back
    if not any(dloss.strides[spread:]):
        dloss, each = dloss[(..., *[0] * (x.ndim - spread))], math.prod(x.shape[spread:])
    inputs = (plain(a).reshape(-1) for a in (dloss, x, t))
    binary_losses_backward[x.dtype.char](*inputs, dx.reshape(-1), each, shares(4 * x.size))
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# Squared errors
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _squares(x, t):
    """Σ (x − t)², each square rounded to its type, all added in float64"""
    total = 0.0
    for j in range(np.uintp(x.size)):
        d = x[j] - t[j]
        total += numba.float64(d * d)
    return total


@kernel(
    lambda element: VOID(*[flat(element)] * 2, numba.float64, result(numba.float64, 1, "C"), result(element, 1, "C")),
    parallel=True,
)
def mean_square(x, t, divisor, parts, mean):
    """mean[0] = Σ (x − t)² / divisor;  parts[p]: the sum over thread p's part"""
    if parts.size == 1:
        parts[0] = _squares(x, t)
    else:
        for p in numba.prange(parts.size):
            i0, i1 = p * x.size // parts.size, (p + 1) * x.size // parts.size
            parts[p] = _squares(x[i0:i1], t[i0:i1])
    mean[0] = _added(parts) / divisor


def squared_error(x: Array, t: Array, divisor: float = 1) -> Array:
    if not alike(x, t):
        return reference.squared_error(x, t, divisor)
    loss = np.empty((), x.dtype)
    inputs = plain(x).reshape(-1), plain(t).reshape(-1)
    mean_square[x.dtype.char](*inputs, divisor, np.empty(shares(x.size)), loss.reshape(1))
    return loss


# ---------------------------------------------------------------------------------------------------------------------
# Rows with a constant each
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _with_constants(x, s, y, scaled, i0, i1):
    """Rows i0 to i1 of x + s, or of x s if `scaled`"""
    for i in range(i0, i1):
        row, out, constant = x[i], y[i], s[i]
        if scaled:
            for j in range(np.uintp(row.size)):
                out[j] = row[j] * constant
        else:
            for j in range(np.uintp(row.size)):
                out[j] = row[j] + constant


@kernel(lambda element: VOID(flat(element, 2), flat(element), result(element, 2, "C"), INT, INT), parallel=True)
def with_constants(x, s, y, scaled, nt):
    """y = x + s or x s, s_i the constant of row i"""
    if nt == 1:
        _with_constants(x, s, y, scaled, 0, len(x))
    else:
        for t in numba.prange(nt):
            _with_constants(x, s, y, scaled, t * len(x) // nt, (t + 1) * len(x) // nt)


def add_to_rows(x: Array, s: Array) -> Array:
    if not covers(x, s):
        return reference.add_to_rows(x, s)
    y = np.empty(x.shape, x.dtype)
    with_constants[x.dtype.char](plain(x), plain(s), y, 0, min(shares(x.size), len(x)))
    return y


def scale_rows(x: Array, s: Array) -> Array:
    if not covers(x, s):
        return reference.scale_rows(x, s)
    y = np.empty(x.shape, x.dtype)
    with_constants[x.dtype.char](plain(x), plain(s), y, 1, min(shares(x.size), len(x)))
    return y


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------

# Philox 4×32, 10 rounds: a block cipher run on a counter. An element's random word follows from the key and the element's
# index alone, so the backward pass makes the mask again instead of keeping it, with any number of threads. Word w of counter
# c decides on element w Q + c, where Q is a quarter of the elements: so a counter's four words go to four loops that run side
# by side. Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".


@helper
def philox(counter, stream, k0, k1):
    """The four random words of a counter"""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = np.uint64(counter) & low, np.uint64(counter) >> shift, stream & low, stream >> shift
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


@sums
def _dropout(x, y, threshold, scale, key0, key1, stream, i0, i1):
    zero = x.dtype.type(0)
    quarter = (x.size + 3) // 4
    whole = max(min(i1, x.size - 3 * quarter), i0)  # counters from here on have fewer than four elements
    x0, x1, x2, x3 = x[i0:], x[quarter + i0 :], x[2 * quarter + i0 :], x[3 * quarter + i0 :]
    y0, y1, y2, y3 = y[i0:], y[quarter + i0 :], y[2 * quarter + i0 :], y[3 * quarter + i0 :]
    for c in range(np.uintp(whole - i0)):
        r0, r1, r2, r3 = philox(c + np.uintp(i0), stream, key0, key1)
        y0[c] = x0[c] * scale if r0 >= threshold else zero
        y1[c] = x1[c] * scale if r1 >= threshold else zero
        y2[c] = x2[c] * scale if r2 >= threshold else zero
        y3[c] = x3[c] * scale if r3 >= threshold else zero
    for c in range(whole, i1):
        words = philox(np.uintp(c), stream, key0, key1)
        for w in range(4):
            i = w * quarter + c
            if i < x.size:
                y[i] = x[i] * scale if words[w] >= threshold else zero


@kernel(lambda element: VOID(flat(element), result(element, 1, "C"), U64, element, U64, U64, U64, INT), parallel=True)
def dropout_elements(x, y, threshold, scale, key0, key1, stream, nt):
    """y = x scale where the random word is at least the threshold, else 0"""
    quarter = (x.size + 3) // 4
    if nt == 1:
        _dropout(x, y, threshold, scale, key0, key1, stream, 0, quarter)
    else:
        for t in numba.prange(nt):
            _dropout(x, y, threshold, scale, key0, key1, stream, t * quarter // nt, (t + 1) * quarter // nt)


def dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    if not covers(x) or p >= 1:
        return reference.dropout(x, p=p, seed=seed, stream=stream)
    y = np.empty(x.shape, x.dtype)
    dropout_elements[x.dtype.char](
        plain(x).reshape(-1), y.reshape(-1), round(p * 2**32), 1 / (1 - p), seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF,
        stream & 0xFFFFFFFFFFFFFFFF, shares(x.size),
    )  # fmt: skip
    return y
