r"""Attention on the device: which kernels compute it, and in which form they take the arrays.

    attention               attention_forward.tiles, or `one_query` for a single query
    attention_backward      attention_backward.row_products, then `keys` for K̄ and V̄, then `queries` for Q̄

The kernels take stacks of matrices, Q (Z, T, D), K and V (Z, S, D), for D of 32, 64 or 128; heads of other widths up to 128 are
filled up with zeros, which change no product. The mask is a stack, too, but is not spread out where many products share one:
`Options.sharing` says which matrix a product has. Wider heads, dropout and types other than float32 are composed of products
and a softmax, with a T × S matrix.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels import reference
from kernels.cuda import attention_backward as backward
from kernels.cuda import attention_forward as forward
from kernels.cuda import elementwise
from kernels.cuda import matmul as products
from kernels.cuda.attention_tiles import Options
from kernels.cuda.build import Array, cdiv, check, empty, is_float32, launch, plain

WIDTHS = (32, 64, 128)

# ---------------------------------------------------------------------------------------------------------------------
# The kernels' arguments
# ---------------------------------------------------------------------------------------------------------------------


def _width(*widths: int) -> int | None:
    """The kernels' width for heads of these; None where they have none."""
    return next((w for w in WIDTHS if w >= max(widths)), None)


def _filled(x: Array, lead: tuple[int, ...], width: int) -> Array:
    """One stack of matrices with rows of `width`, zeros after their own.     (…, T, D) → (Z, T, width)"""
    x = np.broadcast_to(x, lead + x.shape[-2:]).reshape((math.prod(lead),) + x.shape[-2:])
    if x.shape[-1] == width:
        return plain(x)
    y = np.zeros_like(x, shape=x.shape[:-1] + (width,), order="C")
    y[..., : x.shape[-1]] = x
    return y


def _mask_and_options(
    lead: tuple[int, ...], like: Array, *, causal: bool, mask: Array | None, scale: float
) -> tuple[Array, Options]:
    """The mask as a stack of matrices, and which of them each product has."""
    if mask is None:
        return empty(like, (1, 1, 1)), Options(np.float32(scale), bool(causal), False, 1)
    own = (1,) * (len(lead) + 2 - mask.ndim) + mask.shape
    leading = own[:-2]
    differing = [d for d, n in enumerate(leading) if n > 1]  # the dimensions along which masks differ
    if differing and any(leading[d] != lead[d] for d in range(differing[0], differing[-1] + 1)):
        mask, leading = np.broadcast_to(mask.reshape(own), lead + own[-2:]), lead  # others lie between them: spread out
        differing = [0, len(lead) - 1]
    sharing = math.prod(lead[differing[-1] + 1 :]) if differing else 1
    stack = plain(mask.reshape((math.prod(leading),) + own[-2:]))
    return stack, Options(np.float32(scale), bool(causal), bool(differing), sharing)


# ---------------------------------------------------------------------------------------------------------------------
# Composed of products
# ---------------------------------------------------------------------------------------------------------------------


def _scores(q: Array, k: Array, causal: bool, mask: Array | None, scale: float) -> Array:
    """s = τ q kᵀ + M, with −∞ above the diagonal if causal.     (…, T, D), (…, S, D) → (…, T, S)"""
    s = products.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if mask is not None:
        s = s + mask
    if causal:
        ones = np.ones_like(s, shape=s.shape[-2:])
        s = np.where(np.triu(ones, 1) != 0, q.dtype.type(-np.inf), s)
    return s


def _row_sums(x: Array) -> Array:
    """Σ_j x_ij, added in float64 by the library of the array.     (…, T, S) → (…, T, 1)"""
    return x.sum(axis=-1, keepdims=True, dtype=np.result_type(x.dtype, np.float64)).astype(x.dtype)


def _noise(dropout_p: float = 0.0, seed: int = 0, stream: int = 0) -> dict[str, Any]:
    """The arguments of `attention_dropout`."""
    return {"p": dropout_p, "seed": seed, "stream": stream}


def _composed_forward(
    q: Array, k: Array, v: Array, lead: tuple[int, ...], noise: dict[str, Any], **options: Any
) -> tuple[Array, Array]:
    one, zero = q.dtype.type(1), q.dtype.type(0)
    if not k.shape[-2]:
        shape = lead + (q.shape[-2], 1)
        m = np.zeros_like(q, shape=shape)
        return np.zeros_like(q, shape=lead + (q.shape[-2], v.shape[-1])), np.stack([m, m + one])
    s = _scores(q, k, **options)
    m = s.max(axis=-1, keepdims=True)
    m = np.where(m == -np.inf, zero, m)
    p = np.exp(s - m)
    total = _row_sums(p)
    inverse = one / np.where(total == 0, one, total)
    p = p * inverse
    if noise["p"]:
        p = elementwise.attention_dropout(p, **noise)
    return products.matmul(p, v), np.stack([m, inverse])


def _composed_backward(
    dout: Array, q: Array, k: Array, v: Array, out: Array, statistics: Array, noise: dict[str, Any], **options: Any
) -> tuple[Array, ...]:
    m, inverse = statistics
    p = np.exp(_scores(q, k, **options) - m) * inverse
    dropped = elementwise.attention_dropout if noise["p"] else lambda x, **_: x
    dv = products.matmul(dropped(p, **noise).swapaxes(-1, -2), dout)
    ds = (dropped(products.matmul(dout, v.swapaxes(-1, -2)), **noise) - _row_sums(dout * out)) * p
    dq = products.matmul(ds, k) * q.dtype.type(options["scale"])
    dk = products.matmul(ds.swapaxes(-1, -2), q) * q.dtype.type(options["scale"])
    return dq, dk, dv, ds


# ---------------------------------------------------------------------------------------------------------------------
# By the kernels
# ---------------------------------------------------------------------------------------------------------------------


def _fused_forward(
    q: Array, k: Array, v: Array, lead: tuple[int, ...], width: int, *, single: bool, **options: Any
) -> tuple[Array, Array]:
    """`single`: by the kernel for one query, which adds up a score in another order than the kernel of tiles."""
    t, e, count = q.shape[-2], v.shape[-1], math.prod(lead)
    stacks = [_filled(x, lead, width) for x in (q, k, v)]
    out, statistics = empty(q, (count, t, width)), empty(q, (2, count, t))
    mask, same = _mask_and_options(lead, q, **options)
    masked = options["mask"] is not None
    if single:
        launch(forward.one_query(width, masked), count, *stacks, mask, out, statistics, same)
    else:
        blocks = count * cdiv(t, forward.queries_of(width))
        launch(forward.tiles(width, masked), blocks, *stacks, mask, out, statistics, same)
    return out[..., :e].reshape(lead + (t, e)), statistics.reshape((2,) + lead + (t, 1))


def _fused_backward(
    dout: Array, q: Array, k: Array, v: Array, out: Array, statistics: Array, lead: tuple[int, ...], width: int, **options: Any
) -> tuple[Array, ...]:
    t, s, d, e, count = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], math.prod(lead)
    mask, same = _mask_and_options(lead, q, **options)
    q, k, v, out, dout = (_filled(x, lead, width) for x in (q, k, v, out, dout))
    statistics = plain(np.broadcast_to(statistics, (2,) + lead + (t, 1)).reshape(2, count, t))
    row = empty(q, (count, t))
    launch(backward.row_products, cdiv(count * t, 4), out, dout, row)
    dq, dk, dv = empty(q, q.shape), empty(q, k.shape), empty(q, v.shape)
    masked, height = options["mask"] is not None, backward.rows_of(width)
    arrays = q, k, v, mask, dout, statistics, row
    launch(backward.keys(width, masked), count * cdiv(s, height), *arrays, dk, dv, same)
    launch(backward.queries(width, masked), count * cdiv(t, height), *arrays, dq, same)
    return tuple([x[..., :n].reshape(lead + (-1, n)) for x, n in ((dq, d), (dk, d), (dv, e))])


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


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
    check("attention", q, k, v, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    t, s, e = q.shape[-2], k.shape[-2], v.shape[-1]
    width, size = _width(q.shape[-1], e), math.prod(lead) * t * s * q.shape[-1] * e
    options = {"causal": causal, "mask": mask, "scale": scale}
    if width is None or dropout_p or not is_float32(q, k, v, mask) or not size:
        return _composed_forward(q, k, v, lead, _noise(dropout_p, seed, stream), **options)
    return _fused_forward(q, k, v, lead, width, single=t == 1 and not causal, **options)


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
    check("attention_backward", dout, q, k, v, out, statistics, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = {"causal": causal, "mask": mask, "scale": scale}
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    width = _width(q.shape[-1], v.shape[-1])
    size = math.prod(lead) * q.shape[-2] * k.shape[-2] * q.shape[-1] * v.shape[-1]
    ds = None
    noise = _noise(**dropout)
    fused = width is not None and not noise["p"] and is_float32(q, k, v, mask) and size  # so was the forward pass
    if not fused or mask_grad or not is_float32(dout, out, statistics):
        if fused:  # the composed scores are other sums than the kernels': O, m and Σ must belong to the same scores as P
            out, statistics = _composed_forward(q, k, v, lead, noise, **options)
        *grads, ds = _composed_backward(dout, q, k, v, out, statistics, noise, **options)
    else:
        if q.shape[-2] == 1 and not causal:  # so must those of `one_query`
            out, statistics = _fused_forward(q, k, v, lead, width, single=False, **options)
        grads = _fused_backward(dout, q, k, v, out, statistics, lead, width, **options)
    grads = [reference._summed_to(grad, x.shape) for grad, x in zip(grads, (q, k, v), strict=True)]
    if into is not None:
        for target, grad in zip(into, grads, strict=True):
            target[...] = grad
        grads = into
    return *grads, ds if mask_grad else None
