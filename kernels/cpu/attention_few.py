r"""Attention of a few queries, as when a text is written token by token: each key and value is read as it lies.

With at most FEW queries, a key takes part in so few products that copying it into panels would cost as much as they do. The
memory binds: all is read straight through, in rows, once for each query.

    forward, for each head and query:                   s_j = τ q · k_j + M_j for all keys (`row_of_scores`)
                                                        m = max_j s_j,   p_j = e^{s_j − m},   ℓ = Σ_j p_j
                                                        o = Σ_j p_j v_j / ℓ

    backward, for each head and some KEYS of its keys, and each query:
                                                        the same s_j,   p_j = e^{s_j − m} / ℓ,   Δ = ō · o
                                                        s̄_j = τ p_j (ō · v_j − Δ)
                                                        q̄ ← q̄ + Σ_j s̄_j k_j
              then, for all queries i at once:          v̄_j ← v̄_j + Σ_i p_ij ō_i,   k̄_j ← k̄_j + Σ_i s̄_ij q_i

The two block functions here take the arguments of `forward_block` and `backward_block`, whose drivers call them. KEYS: 512 rows
of K, V, K̄ and V̄, 64 wide, are 512 kB of float32, which an L2 cache holds from one query to the next. Sums over keys are added
four keys at a time, so that the row that they are added to is read and written once for four.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.cpu import attention_backward, attention_forward
from kernels.cpu.attention_blocks import KEYS, LINE, constant, dot, fill, from_row, itemsize, matrix, multiply_by
from kernels.cpu.build import helper, kernel, sums
from kernels.cpu.functions import exp_nonpositive, maximum
from kernels.cpu.simd import call, load, view

FEW = 4  # queries up to which copying K and V into panels does not pay


@sums
def _largest(s):
    """max_j s_j"""
    top = s.dtype.type(-np.inf)
    for j in range(np.uintp(s.size)):
        top = maximum(top, s[j])
    return top


@sums
def _exponentials(s, shift):
    """s ← e^{s − shift}, and its sum"""
    total = s.dtype.type(0)
    for j in range(np.uintp(s.size)):
        s[j] = exp_nonpositive(s[j] - shift)
        total += s[j]
    return total


@sums
def _weights(s, peak, inverse):
    """s ← p = e^{s − m} / ℓ"""
    for j in range(np.uintp(s.size)):
        s[j] = exp_nonpositive(s[j] - peak) * inverse


@sums
def _add_scaled(out, x, factor):
    for j in range(np.uintp(x.size)):
        out[j] += x[j] * factor


@sums
def _set_scaled(out, x, factor):
    for j in range(np.uintp(x.size)):
        out[j] = x[j] * factor


@sums
def _add_four_scaled(out, a, b, c, d, factors):
    """out ← out + Σ_r factors_r x_r for the four rows x = a, b, c, d"""
    fa, fb, fc, fd = factors
    for j in range(np.uintp(out.size)):
        out[j] += (a[j] * fa + b[j] * fb) + (c[j] * fc + d[j] * fd)


@sums
def _set_four_scaled(out, a, b, c, d, factors):
    """out ← Σ_r factors_r x_r"""
    fa, fb, fc, fd = factors
    for j in range(np.uintp(out.size)):
        out[j] = (a[j] * fa + b[j] * fb) + (c[j] * fc + d[j] * fd)


@helper
def _row(x, i, columns, like):
    """Row i of a matrix, whose rows are contiguous"""
    return view(x.address + i * x.row, columns, like)


@helper
def _seen(i, first, keys, causal):
    """How many of the keys from `first` on query i sees: with a causal mask, the keys up to its own position"""
    return min(keys, max(0, i + 1 - first)) if causal else keys


@helper
def _scores(tools, head, i, j, keys, sizes, options, to):
    """The scores of query i with so many keys from j on, written to an address"""
    query, key = head.q.address + i * head.q.row, head.k.address + j * head.k.row
    mask = head.mask.address + i * head.mask.row + j * head.mask.column if head.mask.address else 0
    call(tools.scores, (query, key, head.k.row, keys, sizes.depth, mask, head.mask.column, options.scale, to))


# ---------------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------------


@kernel(attention_forward.block_signature, callback=True)
def forward_few(tools, head, i0, rows, fresh, sizes, options, at):
    """`rows` queries of a head, from i0 on: their rows of O, and m and 1/ℓ"""
    like = options.scale
    zero, one, low, size = constant(0, like), constant(1, like), constant(-np.inf, like), itemsize(like)
    for i in range(i0, i0 + rows):
        keys = _seen(i, 0, sizes.keys, options.causal)
        weights, out = view(at, keys, like), _row(head.out, i, sizes.width, like)
        _scores(tools, head, i, 0, keys, sizes, options, at)
        top = _largest(weights)
        peak = zero if top == low else top
        total = _exponentials(weights, peak)
        fill(out, zero)
        for j in range(keys):
            _add_scaled(out, _row(head.v, j, sizes.width, like), weights[j])
        inverse = one if total == zero else one / total
        multiply_by(out, inverse)
        view(head.statistics.address + i * size, 1, like)[0] = peak
        view(head.statistics.address + head.statistics.row + i * size, 1, like)[0] = inverse


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


class Workspace(NamedTuple):
    """Addresses in the memory of one thread."""

    weights: int  # FEW × KEYS   p, a row for each query; 0 for keys that it does not see, and for queries that there are not
    slopes: int  # FEW × KEYS    τ s̄, likewise
    dout: int  # FEW × width     ō
    nothing: int  # depth, width zeros
    end: int


@helper
def workspace(at, sizes, size):
    """Where all that lies in a thread's memory, which begins at an address; `end` tells how much memory that is."""
    slopes = at + FEW * KEYS * size
    dout = slopes + FEW * KEYS * size
    nothing = dout + FEW * ((sizes.width * size + LINE - 1) // LINE * LINE)
    return Workspace(at, slopes, dout, nothing, nothing + (max(sizes.depth, sizes.width) * size + LINE - 1) // LINE * LINE)


@helper
def _cotangent(head, i, dout):
    """Copies ō of query i, and returns Δ = ō · o."""
    like = dout[0]
    at, out, delta = head.dout.address + i * head.dout.row, head.out.address + i * head.out.row, constant(0, like)
    for d in range(dout.size):
        dout[d] = load(at + d * head.dout.column, like)
        delta += dout[d] * load(out + d * head.out.column, like)
    return delta


@helper
def _slopes(slopes, weights, values, dout, delta, scale):
    """τ s̄_j = τ p_j (ō · v_j − Δ)"""
    for j in range(slopes.size):
        slopes[j] = weights[j] * (dot(dout, _row(values, j, dout.size, scale)) - delta) * scale


@helper
def _add_outer(out, rows, fresh, factors, x, columns, queries, nothing):
    """out_j ← Σ_i factors_ij x_i for so many rows j, added to what they hold unless `fresh`.

    Factors and x have a row for each query. Three or four queries are added in one visit to a row, one or two in one each.
    """
    like = nothing[0]
    if queries < 3:
        for i in range(queries):
            alone, xi = _row(factors, i, rows, like), _row(x, i, columns, like)
            for j in range(rows):
                if fresh and i == 0:
                    _set_scaled(_row(out, j, columns, like), xi, alone[j])
                else:
                    _add_scaled(_row(out, j, columns, like), xi, alone[j])
        return
    f0, f1 = _row(factors, 0, rows, like), _row(factors, 1, rows, like)
    f2, f3 = _row(factors, 2, rows, like), _row(factors, 3, rows, like)
    x0, x1, x2 = _row(x, 0, columns, like), _row(x, 1, columns, like), _row(x, 2, columns, like)
    x3 = _row(x, 3, columns, like) if queries > 3 else nothing[:columns]
    for j in range(rows):
        four = f0[j], f1[j], f2[j], f3[j]
        if fresh:
            _set_four_scaled(_row(out, j, columns, like), x0, x1, x2, x3, four)
        else:
            _add_four_scaled(_row(out, j, columns, like), x0, x1, x2, x3, four)


@helper
def _add_rows(out, x, factors):
    """out ← out + Σ_j factors_j x_j"""
    like, n = out[0], out.size
    fours = factors.size // 4 * 4
    for j in range(0, fours, 4):
        a, b, c, d = _row(x, j, n, like), _row(x, j + 1, n, like), _row(x, j + 2, n, like), _row(x, j + 3, n, like)
        _add_four_scaled(out, a, b, c, d, (factors[j], factors[j + 1], factors[j + 2], factors[j + 3]))
    for j in range(fours, factors.size):
        _add_scaled(out, _row(x, j, n, like), factors[j])


@kernel(attention_backward.block_signature, callback=True)
def backward_few(tools, head, j0, keys, fresh, sizes, options, at):
    """What a head of queries and `keys` of its keys, from j0 on, add to Q̄, K̄, V̄.  `fresh`: K̄ and V̄ of these hold nothing yet"""
    like, (queries, _, depth, width) = options.scale, sizes
    zero, size = constant(0, like), itemsize(like)
    work = workspace(at, sizes, size)
    all_weights, all_slopes = matrix(work.weights, KEYS * size, size), matrix(work.slopes, KEYS * size, size)
    douts, nothing = matrix(work.dout, width * size, size), view(work.nothing, max(depth, width), like)
    fill(nothing, zero)
    fill(view(work.weights, 2 * FEW * KEYS, like), zero)  # the slopes too, which follow the weights
    for i in range(queries):
        fill(_row(head.dq, i, depth, like), zero)
    for k0 in range(0, keys, KEYS):
        count = min(KEYS, keys - k0)
        k, v, dk, dv = from_row(head.k, k0), from_row(head.v, k0), from_row(head.dk, k0), from_row(head.dv, k0)
        for i in range(queries):
            seen = _seen(i, j0 + k0, count, options.causal)
            weights, slopes = _row(all_weights, i, seen, like), _row(all_slopes, i, seen, like)
            dout, statistics = _row(douts, i, width, like), head.statistics.address + i * size
            delta = _cotangent(head, i, dout)
            _scores(tools, head, i, k0, seen, sizes, options, all_weights.address + i * all_weights.row)
            _weights(weights, load(statistics, like), load(statistics + head.statistics.row, like))
            _slopes(slopes, weights, v, dout, delta, options.scale)
            _add_rows(_row(head.dq, i, depth, like), k, slopes)  # Q̄ += τ S̄ K
        seen = _seen(queries - 1, j0 + k0, count, options.causal)  # the last query sees the most
        _add_outer(dv, seen, fresh, all_weights, douts, width, queries, nothing)  # V̄ += Pᵀ Ō
        _add_outer(dk, seen, fresh, all_slopes, head.q, depth, queries, nothing)  # K̄ += τ S̄ᵀ Q
        for j in range(seen, count if fresh else seen):  # keys that no query sees
            fill(_row(dk, j, depth, like), zero)
            fill(_row(dv, j, width, like), zero)
