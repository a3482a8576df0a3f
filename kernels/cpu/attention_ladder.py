r"""From the matrix of all weights to none: attention in five steps, its gradients in three, each with the reason for the next.

O = P V, P = softmax(S), S = τ Q Kᵀ for the matrices of one head, Q, K, V: (T, D) in C order, τ = 1/√D, nothing masked, on
one thread.

    materialised  →  online softmax  →  tiled  →  products by tiles  →  register tiles
    from the weights  →  by recomputation  →  register tiles, recomputed

`python -m benchmarks attention --ladder` times the steps, and says what each keeps for the backward pass. The shares in the
docstrings are percent of one core's peak in float32 for D = 64 and T = 256, 1,024 and 2,048, as measured on an AMD EPYC
(family 26) with AVX-512; of the backward pass four products are counted, none that is made again. The last step is `attention`,
built on the register tile of `simd` as the last step of `ladder` is.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from kernels.cpu import attention as blocks
from kernels.cpu.attention_blocks import (
    FAR,
    KEYS,
    LINE,
    PITCH,
    QUERIES,
    TOOLS,
    columns_from,
    panels,
    panels_from_row,
    product,
    scaled_panels,
    tools,
    transposed,
)
from kernels.cpu.build import SUMS, VOID, kernel, result
from kernels.cpu.functions import exp, maximum
from kernels.cpu.rows import flat
from kernels.cpu.simd import Matrix, address
from kernels.cpu.threads import set_threads, threads

Array = np.ndarray


@numba.njit(**SUMS)
def _dot(x, y):
    total = x.dtype.type(0)
    for d in range(np.uintp(x.size)):
        total += x[d] * y[d]
    return total


@numba.njit(**SUMS)
def _add_scaled(x, factor, y):
    """x ← x + factor · y"""
    for d in range(np.uintp(x.size)):
        x[d] += factor * y[d]


@numba.njit(**SUMS)
def _add_four(x, factors, y, first):
    """x ← x + Σ_r factors_r · y_r for four rows r, from `first` on: four products for each load and store of x"""
    f0, f1, f2, f3 = factors[first], factors[first + 1], factors[first + 2], factors[first + 3]
    y0, y1, y2, y3 = y[first], y[first + 1], y[first + 2], y[first + 3]
    for d in range(np.uintp(x.size)):
        x[d] += f0 * y0[d] + f1 * y1[d] + f2 * y2[d] + f3 * y3[d]


@numba.njit(**SUMS)
def _largest(x):
    top = x.dtype.type(-np.inf)
    for j in range(np.uintp(x.size)):
        top = maximum(top, x[j])
    return top


@numba.njit(**SUMS)
def _exponentials(x, shift):
    """x ← e^{x − shift}, and its sum"""
    total = x.dtype.type(0)
    for j in range(np.uintp(x.size)):
        x[j] = exp(x[j] - shift)
        total += x[j]
    return total


@numba.njit(**SUMS)
def _scale(x, factor):
    for j in range(np.uintp(x.size)):
        x[j] *= factor


# ---------------------------------------------------------------------------------------------------------------------
# Forward: O, and what the backward pass needs
# ---------------------------------------------------------------------------------------------------------------------


@kernel(lambda element: VOID(*[flat(element, 2)] * 3, result(element, 2, "C"), result(element, 2, "C"), element), **SUMS)
def materialised(q, k, v, p, out, scale):
    """S as it is written, then its softmax, then P V; P (T, T) is kept for the gradients. 4, 4 and 4 %.

    Three passes over a matrix that no cache holds once T is a thousand: 4 MB for each head, written, read and written,
    read again. With it memory grows as T², which is what first ends a long context. And rows of S come one dot product
    at a time: D products for each sum over lanes.
    """
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            p[i, j] = scale * _dot(q[i], k[j])
    for i in range(p.shape[0]):
        total = _exponentials(p[i], _largest(p[i]))
        _scale(p[i], 1 / total)
    for i in range(p.shape[0]):
        for d in range(np.uintp(out.shape[1])):
            out[i, d] = 0
        for j in range(p.shape[1]):
            _add_scaled(out[i], p[i, j], v[j])


@kernel(lambda element: VOID(*[flat(element, 2)] * 3, result(element, 1, "C"), result(element, 2, "C"), element), **SUMS)
def online(q, k, v, lse, out, scale):
    """One key after the other, with the softmax of those seen so far: no row of S is ever kept. 4, 4 and 4 %.

    The maximum m, the sum ℓ = Σ e^{s − m} and O = Σ e^{s − m} v are all that the next key needs: when a new score s is
    larger than m, what was added up is worth e^{m − s} of itself (Milakov & Gimelshein 2018). Memory is linear in T: O and one
    number a row, lse = m + log ℓ. But an exponential for one score alone uses one lane of the machine's sixteen, and
    waits for the dot product before it.
    """
    one = out.dtype.type(1)
    for i in range(out.shape[0]):
        m, ell = scale * _dot(q[i], k[0]), one  # ℓ = 1 after the first key
        for d in range(np.uintp(out.shape[1])):
            out[i, d] = v[0, d]
        for j in range(1, k.shape[0]):
            s = scale * _dot(q[i], k[j])
            if s > m:
                again = exp(m - s)
                _scale(out[i], again)
                ell *= again
                m = s
            weight = exp(s - m)
            ell += weight
            _add_scaled(out[i], weight, v[j])
        _scale(out[i], 1 / ell)
        lse[i] = m + np.log(ell)


BLOCK = 128  # keys at a time


@kernel(lambda element: VOID(*[flat(element, 2)] * 3, result(element, 1, "C"), result(element, 2, "C"), element), **SUMS)
def tiled(q, k, v, lse, out, scale):
    """The same with blocks of keys instead of single ones. 12, 12 and 12 %.

    A row of scores for 128 keys fills the vectors: it is added up along the rows of Kᵀ, copied for the block, four at a time;
    its maximum, exponentials and sum are loops over lanes; O is rescaled once a block, not once a key. The block of Kᵀ
    and V, 64 kB, serves all queries from the cache (Dao et al. 2022). What is missing is the register tile: every four
    products still cost a load and a store. Rows past a multiple of four are zeros.
    """
    zero, one, depth = out.dtype.type(0), out.dtype.type(1), q.shape[1]
    deep = (depth + 3) // 4 * 4
    m, ell = np.full(q.shape[0], -np.inf, q.dtype), np.zeros(q.shape[0], q.dtype)
    kt, values = np.zeros((deep, BLOCK), q.dtype), np.zeros((BLOCK, v.shape[1]), q.dtype)
    query, s = np.zeros(deep, q.dtype), np.zeros(BLOCK, q.dtype)
    out[:] = zero
    for j0 in range(0, k.shape[0], BLOCK):
        n = min(BLOCK, k.shape[0] - j0)
        kt[:depth, :n] = scale * k[j0 : j0 + n].T
        values[:n] = v[j0 : j0 + n]
        for i in range(q.shape[0]):
            query[:depth] = q[i]
            s[:] = zero
            for d in range(0, deep, 4):
                _add_four(s, query, kt, d)
            row = s[:n]
            top = maximum(m[i], _largest(row))
            again = exp(m[i] - top)
            _scale(out[i], again)
            ell[i] = ell[i] * again + _exponentials(row, top)
            m[i] = top
            s[n:] = zero
            for j in range(0, n, 4):
                _add_four(out[i], s, values, j)
    for i in range(q.shape[0]):
        _scale(out[i], one / ell[i])
        lse[i] = m[i] + np.log(ell[i])


@kernel(
    lambda element: VOID(
        *[TOOLS, *[flat(element, 2)] * 3, result(element, 1, "C"), result(element, 2, "C"), element],
        *[result(element, 2, "C"), result(element, 1, "C"), result(element, 1, "C"), result(element, 2, "C")],
    ),
    **SUMS,
)
def tile_products(tools, q, k, v, lse, out, scale, s, q_memory, v_memory, lines):
    """Both products by the register tile, on blocks of 512 keys and 128 queries. 69, 73 and 73 %.

    The tile (`product`) holds 14 × 2 vectors of sums in registers, so that 28 products need 16 loads, and reads its right
    factor in panels as wide as itself: τ Qᵀ of a block of queries, and V. S is kept as its transpose, a row for each key, so
    that maxima and sums over keys are those of whole rows. What is missing: every row that is visited loads and stores m, or
    ℓ, for one score; four rows at a time do so for four.
    """
    (queries, depth), (keys, width), size = q.shape, v.shape, q.itemsize
    low, zero, one = out.dtype.type(-np.inf), out.dtype.type(0), out.dtype.type(1)
    scores = Matrix(address(s), s.strides[0], size)
    values = panels(tools, Matrix(address(v), width * size, size), keys, width, address(v_memory), True, one)
    for i0 in range(0, queries, QUERIES):
        n = min(QUERIES, queries - i0)
        m, ell, again, o = lines[0, :n], lines[1, :n], lines[2, :n], out[i0 : i0 + n]
        m[:], ell[:] = low, zero
        turned = Matrix(address(q[i0 : i0 + n]), size, depth * size)
        qt = scaled_panels(tools, turned, depth, n, address(q_memory), scale)
        for j0 in range(0, keys, KEYS):
            rows = min(KEYS, keys - j0)
            some = Matrix(address(k[j0 : j0 + rows]), depth * size, size)
            product(tools, some, qt, scores, (rows, n, depth), 0, columns_from(-FAR), one)  # Sᵀ = K (τ Qᵀ)
            again[:] = m
            for j in range(rows):
                for i in range(np.uintp(n)):
                    m[i] = maximum(m[i], s[j, i])
            for i in range(np.uintp(n)):
                again[i] = exp(again[i] - m[i])
                ell[i] *= again[i]
            for j in range(rows):
                for i in range(np.uintp(n)):
                    s[j, i] = exp(s[j, i] - m[i])
                    ell[i] += s[j, i]
            for i in range(n if j0 else 0):
                _scale(o[i], again[i])
            to = Matrix(address(o), width * size, size)
            part = panels_from_row(values, j0)
            product(tools, transposed(scores), part, to, (n, width, rows), 1 if j0 else 0, columns_from(-FAR), one)  # O += P V
        for i in range(n):
            _scale(o[i], one / ell[i])
            lse[i0 + i] = m[i] + np.log(ell[i])


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


@numba.njit(**SUMS)
def _row_backward(i, p, dout, q, k, v, delta, dq, dk, dv, scale):
    """What row i of P gives: v̄_j += p_j ō,  s̄_j = p_j (ō · v_j − Δ),  q̄ += τ s̄_j k_j,  k̄_j += τ s̄_j q"""
    for j in range(p.size):
        _add_scaled(dv[j], p[j], dout[i])
        ds = scale * p[j] * (_dot(dout[i], v[j]) - delta)
        _add_scaled(dq[i], ds, k[j])
        _add_scaled(dk[j], ds, q[i])


@kernel(lambda element: VOID(*[flat(element, 2)] * 6, *[result(element, 2, "C")] * 3, element), **SUMS)
def from_weights(q, k, v, p, out, dout, dq, dk, dv, scale):
    """The gradients from the P that was kept, row by row. 3, 3 and 3 %.

    Δ_i = Σ_j p_j (ō · v_j) = ō · o_i, so that a row of S̄ needs no pass over the row before it.
    """
    for i in range(p.shape[0]):
        _row_backward(i, p[i], dout, q, k, v, _dot(dout[i], out[i]), dq, dk, dv, scale)


@kernel(
    lambda element: VOID(
        *[flat(element, 2)] * 3, flat(element, 1), *[flat(element, 2)] * 2, *[result(element, 2, "C")] * 3, element
    ),
    **SUMS,
)
def recomputed(q, k, v, lse, out, dout, dq, dk, dv, scale):
    """The same from lse alone: p_j = e^{s_j − lse} is made again. 3, 3 and 3 %: five products for four, and no matrix.

    One more product and one exponential a score cost no more time than reading a matrix of T² elements, and nothing but Q, K,
    V, O and lse is kept for the backward pass.
    """
    p = np.empty(k.shape[0], q.dtype)
    for i in range(q.shape[0]):
        for j in range(p.size):
            p[j] = scale * _dot(q[i], k[j])
        _exponentials(p, lse[i])
        _row_backward(i, p, dout, q, k, v, _dot(dout[i], out[i]), dq, dk, dv, scale)


# ---------------------------------------------------------------------------------------------------------------------
# The steps: (q, k, v) → (out, what is kept), and (q, k, v, what is kept, out, dout) → (dq, dk, dv)
# ---------------------------------------------------------------------------------------------------------------------


def _forward(step: Any, keeps_weights: bool) -> Any:
    def run(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        kept = np.empty((len(q), len(k)) if keeps_weights else len(q), q.dtype)
        out = np.empty((len(q), v.shape[1]), q.dtype)
        step[q.dtype.char](q, k, v, kept, out, 1 / math.sqrt(q.shape[1]))
        return out, kept

    return run


def _tile_products(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    letter, lse, out = q.dtype.char, np.empty(len(q), q.dtype), np.empty((len(q), v.shape[1]), q.dtype)
    columns = -(-v.strides[0] // LINE) * LINE // v.itemsize  # of V, up to whole panels
    memory = np.empty((KEYS, PITCH), letter), np.empty(q.shape[1] * QUERIES, letter), np.empty(len(v) * columns, letter)
    scale, lines = 1 / math.sqrt(q.shape[1]), np.empty((3, QUERIES), letter)
    tile_products[letter](tools(letter), q, k, v, lse, out, scale, *memory, lines)
    return out, lse


def _backward(step: Any) -> Any:
    def run(q: Array, k: Array, v: Array, kept: Array, out: Array, dout: Array) -> tuple[Array, ...]:
        grads = tuple([np.zeros_like(x) for x in (q, k, v)])
        step[q.dtype.char](q, k, v, kept, out, dout, *grads, 1 / math.sqrt(q.shape[1]))
        return grads

    return run


def _on_one_thread(function: Any) -> Any:
    """The same function, while the pool has one thread"""

    def run(*arrays: Array) -> tuple:
        before = threads()
        set_threads(1)
        try:
            return function(*arrays)
        finally:
            set_threads(before)

    return run


def _register_tiles(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """`attention` itself: the same by four rows at a time, with masks, dropout, any strides and threads. 73, 81 and 82 %."""
    return blocks.attention(q, k, v)


def _register_tiles_backward(q: Array, k: Array, v: Array, statistics: Array, out: Array, dout: Array) -> tuple[Array, ...]:
    """`attention_backward` itself: P is made again in blocks, all five products by the register tile. 65, 71 and 72 %."""
    return blocks.attention_backward(dout, q, k, v, out, statistics)[:3]


FORWARD = {
    "materialised": _forward(materialised, True),
    "online softmax": _forward(online, False),
    "tiled": _forward(tiled, False),
    "products by tiles": _tile_products,
    "register tiles": _on_one_thread(_register_tiles),
}
BACKWARD = {  # each with the forward step that keeps what it needs
    "from the weights": ("materialised", _backward(from_weights)),
    "by recomputation": ("tiled", _backward(recomputed)),
    "register tiles, recomputed": ("register tiles", _on_one_thread(_register_tiles_backward)),
}
