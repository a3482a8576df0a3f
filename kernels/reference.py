"""What each kernel means, in a few lines of NumPy each: the oracle of the tests, and what runs where nothing faster does.

The functions have the names, the arguments and the descriptions of those in kernels/__init__.py, where the equations stand that
are carried out here. The letters are those of the equations, with `dx` for x̄.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.reference_activations import (  # noqa: F401 (kernels like those below)
    elu,
    elu_backward,
    glu,
    glu_backward,
    log_softmax_backward,
    mish,
    mish_backward,
    sigmoid,
    sigmoid_backward,
    sign,
    silu,
    silu_backward,
    softmax_backward,
    softplus,
    softplus_backward,
    tanh_backward,
)
from kernels.reference_pooling import (  # noqa: F401
    avg_pool,
    avg_pool_backward,
    max_pool,
    max_pool_backward,
    nearest,
    nearest_backward,
)

Array = np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# Matrix products
# ---------------------------------------------------------------------------------------------------------------------


def matmul(a: Array, b: Array, *, out: Array | None = None, bias: Array | None = None, activation: str | None = None) -> Array:
    if a.ndim > 2 and b.ndim == 2 and out is None:  # one product, not a stack of small ones
        rows = math.prod(a.shape[:-1])
        c = matmul(a.reshape(rows, a.shape[-1]), b, bias=bias, activation=activation)
        return c.reshape(*a.shape[:-1], b.shape[-1])
    if out is not None and bias is not None and np.may_share_memory(out, bias):
        bias = bias.copy()
    # BLAS takes rows at any distance, but not a stride of 0 (an expanded gradient): NumPy would fall back to plain loops.
    a, b = (np.ascontiguousarray(x) if 0 in x.strides[-2:] else x for x in (a, b))
    return finish(np.matmul(a, b, out=out), bias, activation)


def finish(c: Array, bias: Array | None, activation: str | None) -> Array:
    """f(C + bias), in place"""
    if bias is not None:
        c += bias
    if activation == "relu":
        np.maximum(c, 0, out=c)
    elif activation in ("gelu", "gelu_tanh"):
        c[...] = gelu(c, approximate="tanh" if activation == "gelu_tanh" else "none")
    elif activation is not None:
        raise ValueError(f"matmul: expected activation None, 'relu', 'gelu' or 'gelu_tanh', got {activation!r}")
    return c


def einsum(equation: str, *operands: Array) -> Array:
    return np.einsum(equation, *operands, optimize=len(operands) > 1)


# ---------------------------------------------------------------------------------------------------------------------
# Elementwise
# ---------------------------------------------------------------------------------------------------------------------


def erf(x: Array) -> Array:
    from scipy import special  # imported when first wanted: it takes longer to import than NumPy

    return special.erf(x)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    if approximate == "tanh":
        phi = np.square(x, out=np.empty_like(x))  # an array even where x is 0-d
        phi *= 0.044715
        phi += 1
        phi *= x
        phi *= math.sqrt(2 / math.pi)
        np.tanh(phi, out=phi)
    else:
        phi = erf(x * math.sqrt(0.5))
    phi += 1
    phi *= 0.5
    phi *= x
    return phi


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Array:
    """ "tanh": with t = tanh u(x), Φ = ½ (1 + t), Φ' = ½ (1 − t²) u'(x)"""
    if approximate == "tanh":
        x2 = np.square(x, out=np.empty_like(x))
        t = np.multiply(x2, 0.044715, out=np.empty_like(x))
        t += 1
        t *= x
        t *= math.sqrt(2 / math.pi)
        np.tanh(t, out=t)
        slope = x2  # x u'(x) = √(2/π) (x + 3 · 0.044715 x³)
        slope *= 3 * 0.044715
        slope += 1
        slope *= x
        slope *= math.sqrt(2 / math.pi)
        slope *= 1 - t  # (1 − t²) x u' + (1 + t) = (1 + t) ((1 − t) x u' + 1)
        slope += 1
        t += 1
        slope *= t
        slope *= 0.5
    else:
        slope = x * np.exp(-0.5 * x * x)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope += 0.5 * (1 + erf(x * math.sqrt(0.5)))
    slope *= dy
    return slope


def leaky_relu(x: Array, slope: float) -> Array:
    lower = x.dtype.type(0) if slope == 0 else x * x.dtype.type(slope)
    return np.where(x <= 0, lower, x)


def leaky_relu_backward(dy: Array, y: Array, slope: float) -> Array:
    lower = dy.dtype.type(0) if slope == 0 else dy * dy.dtype.type(slope)
    return np.where(y <= 0, lower, dy)


def philox(counter: Array, *, seed: int, stream: int = 0) -> Array:
    """Four random 32-bit words for each counter: a block cipher run on (counter, stream) with the seed as its key.

    Philox 4×32 with 10 rounds; Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1 = counter.astype(np.uint64) & low, counter.astype(np.uint64) >> shift
    c2, c3 = (np.full_like(c0, x) for x in (stream & 0xFFFFFFFF, stream >> 32 & 0xFFFFFFFF))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    if p >= 1:
        return np.zeros(x.shape, x.dtype)
    words = philox(np.arange(-(-x.size // 4)), seed=seed, stream=stream).reshape(-1)[: x.size]
    kept = (words >= round(p * 2**32)).reshape(x.shape)
    return np.where(kept, x * x.dtype.type(1 / (1 - p)), 0).astype(x.dtype, copy=False)


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def _exp_rows(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """e^{x − m} with m = max x, its sum, and m; m = 0 where a row is all −∞, so that its exponentials are 0, not NaN."""
    if x.shape[axis] == 0:
        m = np.zeros_like(x, shape=x.shape[:axis] + (1,) + x.shape[axis + 1 :])
    else:
        m = np.max(x, axis=axis, keepdims=True)
        m = np.where(m == -np.inf, 0, m).astype(x.dtype, copy=False)
    e = x - m
    np.exp(e, out=e)
    return e, np.expand_dims(sum_over(e, (axis,)), axis), m


def softmax(x: Array, axis: int = -1) -> Array:
    e, total, _ = _exp_rows(x, axis % x.ndim)
    e /= np.where(total == 0, 1, total)
    return e


def log_softmax(x: Array, axis: int = -1) -> Array:
    _, total, m = _exp_rows(x, axis % x.ndim)
    y = x - m  # first: m + log Σ would round away the logarithm beside a large m
    y -= np.log(np.where(total == 0, 1, total))
    return y


def cross_entropy(x: Array, target: Array, *, ignore_index: int = -100) -> tuple[Array, Array]:
    _, total, m = _exp_rows(x, 1)
    m, total = m[:, 0], np.where(total == 0, 1, total)[:, 0]
    kept = target != ignore_index
    loss = (m - x[np.arange(len(x)), np.where(kept, target, 0)]) + np.log(total)  # a large m cancels first
    return np.where(kept, loss, 0).astype(x.dtype, copy=False), np.stack([m, 1 / total])


def cross_entropy_backward(dloss: Array, x: Array, target: Array, statistics: Array, *, ignore_index: int = -100) -> Array:
    kept = target != ignore_index
    m, inverse = statistics
    dx = np.exp(x - m[:, None])
    dx *= inverse[:, None]
    dx[np.arange(len(x)), np.where(kept, target, 0)] -= 1
    dx *= np.where(kept, dloss, 0).astype(x.dtype, copy=False)[:, None]
    return dx


def binary_cross_entropy(x: Array, t: Array, *, total: bool = False) -> Array:
    loss = np.log1p(np.exp(-np.abs(x)))
    with np.errstate(invalid="ignore"):  # ∞ − ∞, 0 · ∞
        linear = np.maximum(x, 0) - t * x
    loss += np.where(np.isinf(x), np.where(t == (x > 0), 0, np.abs(x)), linear)
    return loss.sum()[...] if total else loss  # an array, of no dimensions


def binary_cross_entropy_backward(dloss: Array, x: Array, t: Array) -> Array:
    with np.errstate(over="ignore"):  # e^{−x} = ∞: σ = 0
        return dloss * (1 / (1 + np.exp(-x)) - t)


def sum_over(x: Array, axes: tuple[int, ...], divisor: float = 1) -> Array:
    wide = np.result_type(x.dtype, np.float64)
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        return (np.sum(x, axis=axes, dtype=wide) / divisor).astype(x.dtype)[...]  # an array, also of no dimensions


def squared_error(x: Array, t: Array, divisor: float = 1) -> Array:
    return sum_over(np.square(x - t), tuple(range(x.ndim)), divisor)


def add_to_rows(x: Array, s: Array) -> Array:
    return x + s[:, None]


def scale_rows(x: Array, s: Array) -> Array:
    return x * s[:, None]


def column_sums(x: Array) -> Array:
    return x.sum(0, dtype=np.result_type(x.dtype, np.float64)).astype(x.dtype)


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    n = max(x.shape[-1], 1)
    mean = sum_over(x, (-1,), n)[:, None]
    y = x - mean
    rstd = 1 / np.sqrt(sum_over(y * y, (-1,), n)[:, None] + x.dtype.type(eps))
    y *= rstd
    y *= weight
    y += bias
    return y, mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    n = max(x.shape[-1], 1)
    xhat = x - mean
    xhat *= rstd
    dweight, dbias = sum_over(dy * xhat, (0,)), sum_over(dy, (0,))
    dx = dy * weight  # g
    along, across = sum_over(dx * xhat, (-1,), n)[:, None], sum_over(dx, (-1,), n)[:, None]
    xhat *= along
    dx -= across
    dx -= xhat
    dx *= rstd
    return dx, dweight, dbias


def rms_norm(x: Array, weight: Array, *, eps: float = 1e-5) -> tuple[Array, Array]:
    rstd = 1 / np.sqrt(sum_over(x * x, (-1,), max(x.shape[-1], 1))[:, None] + x.dtype.type(eps))
    return x * rstd * weight, rstd


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    xhat, g = x * rstd, dy * weight
    along = sum_over(g * xhat, (-1,), max(x.shape[-1], 1))[:, None]
    return rstd * (g - xhat * along), sum_over(dy * xhat, (0,))


def batch_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    axes, across = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    n = max(x.size // max(x.shape[1], 1), 1)
    mean = sum_over(x, axes, n)
    centred = x - mean.reshape(across)
    rstd = 1 / np.sqrt(sum_over(centred * centred, axes, n) + x.dtype.type(eps))
    return centred * (rstd * weight).reshape(across) + bias.reshape(across), mean, rstd


def batch_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    axes, across = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    xhat = (x - mean.reshape(across)) * rstd.reshape(across)
    dweight, dbias = sum_over(dy * xhat, axes), sum_over(dy, axes)
    n = max(x.size // max(x.shape[1], 1), 1)
    dx = dy - (dbias / n).reshape(across) - xhat * (dweight / n).reshape(across)
    return dx * (rstd * weight).reshape(across), dweight, dbias


def group_norm(x: Array, weight: Array, bias: Array, groups: int, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    rows, across = x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups), (-1,) + (1,) * (x.ndim - 2)
    wide = np.result_type(x.dtype, np.float64)
    mean = rows.mean(-1, keepdims=True, dtype=wide).astype(x.dtype)
    mean += (rows - mean).mean(-1, keepdims=True, dtype=wide).astype(x.dtype)  # exact now where all elements are equal
    rows = rows - mean
    rstd = (1 / np.sqrt(np.mean(rows * rows, -1, keepdims=True, dtype=wide) + eps)).astype(x.dtype)
    y = (rows * rstd).reshape(x.shape) * weight.reshape(across) + bias.reshape(across)
    return y, mean[..., 0], rstd[..., 0]


def group_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    rows, across = (*mean.shape, math.prod(x.shape[1:]) // mean.shape[1]), (-1,) + (1,) * (x.ndim - 2)
    axes, wide = (0, *range(2, x.ndim)), np.result_type(x.dtype, np.float64)
    xhat = (x.reshape(rows) - mean[..., None]) * rstd[..., None]
    g = (dy * weight.reshape(across)).reshape(rows)
    level, along = (np.mean(a, -1, keepdims=True, dtype=wide).astype(x.dtype) for a in (g, g * xhat))
    dx = rstd[..., None] * (g - level - xhat * along)
    dweight, dbias = (np.sum(a, axes, dtype=wide).astype(x.dtype) for a in (dy * xhat.reshape(x.shape), dy))
    return dx.reshape(x.shape), dweight, dbias


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def _scores(q: Array, k: Array, causal: bool, mask: Array | None, scale: float) -> Array:
    """S = τ Q Kᵀ + M, with −∞ above the diagonal if causal.     (…, T, S)"""
    s = matmul(q, np.swapaxes(k, -1, -2))
    s *= scale
    if mask is not None:
        s += mask
    if causal:
        s += np.triu(np.full(s.shape[-2:], -np.inf, s.dtype), 1)
    return s


def attention_dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    if p >= 1:
        return np.zeros(x.shape, x.dtype)
    *lead, rows, columns = x.shape
    quads = -(-rows // 4)
    words = philox(np.arange(math.prod(lead) * quads * columns), seed=seed, stream=stream)
    words = words.reshape(4, *lead, quads, columns)
    words = np.moveaxis(words, 0, -2).reshape(*lead, 4 * quads, columns)[..., :rows, :]
    return np.where(words >= round(p * 2**32), x * x.dtype.type(1 / (1 - p)), 0).astype(x.dtype, copy=False)


class Dropout(NamedTuple):
    """The options of attention that say which of its weights are dropped, with the values that they have when left out."""

    dropout_p: float = 0.0
    seed: int = 0
    stream: int = 0


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
) -> tuple[Array, Array]:
    p = _scores(q, k, causal, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    p, total, m = _exp_rows(p, p.ndim - 1)
    total = np.where(total == 0, 1, total)
    if dropout_p:
        p = attention_dropout(p, p=dropout_p, seed=seed, stream=stream)
    out = matmul(p, v)
    out /= total
    return out, np.stack([m, 1 / total])


def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    statistics: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    mask_grad: bool = False,
    into: tuple[Array, Array, Array] | None = None,
    **dropout: Any,
) -> tuple[Array, Array, Array, Array | None]:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dropout_p, seed, stream = Dropout(**dropout)
    noise = {"p": dropout_p, "seed": seed, "stream": stream}
    p = _scores(q, k, causal, mask, scale)
    m, inverse = statistics
    p -= m
    np.exp(p, out=p)
    p *= inverse
    dv = matmul(np.swapaxes(attention_dropout(p, **noise) if dropout_p else p, -1, -2), dout)
    ds = matmul(dout, np.swapaxes(v, -1, -2))
    if dropout_p:
        ds = attention_dropout(ds, **noise)
    ds -= np.sum(dout * out, axis=-1, keepdims=True)
    ds *= p
    dq = matmul(ds, k)
    dq *= scale
    dk = matmul(np.swapaxes(ds, -1, -2), q)
    dk *= scale
    dq, dk, dv = (_summed_to(grad, x.shape) for grad, x in zip((dq, dk, dv), (q, k, v), strict=True))
    if into is not None:
        for target, grad in zip(into, (dq, dk, dv), strict=True):
            target[...] = grad
        dq, dk, dv = into
    return dq, dk, dv, ds if mask_grad else None


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
    """x, summed over the leading dimensions that an array of this shape was repeated along."""
    if x.shape == shape:
        return x
    x = sum_over(x, tuple(range(x.ndim - len(shape))))
    return sum_over(x, tuple([i for i, n in enumerate(shape) if n != x.shape[i]])).reshape(shape)


# ---------------------------------------------------------------------------------------------------------------------
# Convolution, over one or two spatial dimensions
# ---------------------------------------------------------------------------------------------------------------------
# One matrix holds every window: columns[(c, t), (n, i)] = x[n, c, s i + d t − p]. The three passes are then
#     Y = W X_col          X̄_col = Wᵀ Ȳ          W̄ = Ȳ X_colᵀ
# and the way back from columns to the image adds up where windows overlap.


def _taps(kernel: tuple[int, ...], counts: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    """For each cell t of the kernel, the slices of the padded image that it meets as i runs."""
    for t in itertools.product(*map(range, kernel)):
        yield t, tuple(slice(d * j, d * j + s * (n - 1) + 1, s) for j, n, s, d in zip(t, counts, stride, dilation, strict=True))


def _columns(
    x: Array, kernel: tuple[int, ...], counts: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: int
) -> Array:
    """(N, C, …) → (G, C/G · taps, N · windows)"""
    n, c = x.shape[:2]
    padded = np.zeros((c, n) + tuple(m + 2 * p for m, p in zip(x.shape[2:], padding, strict=True)), x.dtype)
    padded[(slice(None), slice(None)) + tuple(slice(p, p + m) for m, p in zip(x.shape[2:], padding, strict=True))] = x.swapaxes(
        0, 1
    )
    columns = np.empty((c,) + kernel + (n,) + counts, x.dtype)
    for t, window in _taps(kernel, counts, stride, dilation):
        columns[(slice(None),) + t] = padded[(slice(None), slice(None)) + window]
    return columns.reshape(groups, c // groups * math.prod(kernel), n * math.prod(counts))


def _by_channel(y: Array, groups: int) -> Array:
    """(N, O, …) → (G, O/G, N · windows)"""
    n, o = y.shape[:2]
    return np.ascontiguousarray(y.swapaxes(0, 1)).reshape(groups, o // groups, n * math.prod(y.shape[2:]))


def conv(
    x: Array, w: Array, *, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int = 1
) -> Array:
    kernel = w.shape[2:]
    counts = tuple(
        (m + 2 * p - d * (k - 1) - 1) // s + 1
        for m, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    )
    columns = _columns(x, kernel, counts, stride, padding, dilation, groups)
    y = np.matmul(w.reshape(groups, w.shape[0] // groups, columns.shape[1]), columns)  # (G, O/G, N · windows)
    return np.ascontiguousarray(y.reshape((w.shape[0], x.shape[0]) + counts).swapaxes(0, 1))


def conv_input_grad(
    dy: Array,
    w: Array,
    size: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Array:
    n, counts, kernel = dy.shape[0], dy.shape[2:], w.shape[2:]
    c = w.shape[1] * groups
    flat = w.reshape(groups, w.shape[0] // groups, w.shape[1] * math.prod(kernel))
    columns = np.matmul(flat.swapaxes(1, 2), _by_channel(dy, groups)).reshape((c,) + kernel + (n,) + counts)
    padded = np.zeros((c, n) + tuple(m + 2 * p for m, p in zip(size, padding, strict=True)), dy.dtype)
    for t, window in _taps(kernel, counts, stride, dilation):
        padded[(slice(None), slice(None)) + window] += columns[(slice(None),) + t]
    inner = tuple(slice(p, p + m) for m, p in zip(size, padding, strict=True))
    return np.ascontiguousarray(padded[(slice(None), slice(None)) + inner].swapaxes(0, 1))


def conv_weight_grad(
    x: Array,
    dy: Array,
    size: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Array:
    columns = _columns(x, size, dy.shape[2:], stride, padding, dilation, groups)
    dw = np.matmul(_by_channel(dy, groups), columns.swapaxes(1, 2))
    return dw.reshape((dy.shape[1], x.shape[1] // groups) + size)


# ---------------------------------------------------------------------------------------------------------------------
# Tables and optimiser
# ---------------------------------------------------------------------------------------------------------------------


def embedding(table: Array, index: Array) -> Array:
    return table[index]


def scatter_add(out: Array, index: Array, source: Array) -> None:
    """Rows of one index are brought together by sorting and added in order: the same bits every time."""
    index = index.reshape(-1).astype(np.intp, copy=False)  # uint8 cannot hold a sum with 256 rows
    source = np.ascontiguousarray(source).reshape((len(index),) + out.shape[1:])
    if not source.size:
        return
    index = np.where(index < 0, index + len(out), index)
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    out[ordered[starts]] += np.add.reduceat(source[order], starts, axis=0)


def adamw(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if weight_decay:
            p *= 1 - lr * weight_decay
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        denominator = np.sqrt(v, out=np.empty_like(v))  # an array even where v is 0-d
        denominator /= math.sqrt(1 - beta2**step)
        denominator += eps
        np.divide(m, denominator, out=denominator)
        denominator *= lr / (1 - beta1**step)
        p -= denominator


def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    if weight_decay:
        grads = [g + weight_decay * p for p, g in zip(params, grads, strict=True)]
    adamw(params, grads, exp_avgs, exp_avg_sqs, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=0.0)


def sum_of_squares(arrays: Sequence[Array]) -> float:
    return float(sum(np.einsum("i,i->", x, x, dtype=np.float64) for x in (x.reshape(-1) for x in arrays)))


def scale(arrays: Sequence[Array], factor: float) -> None:
    for x in arrays:
        x *= x.dtype.type(factor)
