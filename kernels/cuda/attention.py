r"""Attention without its matrix.  Dao et al. 2022, arXiv:2205.14135; the backward pass makes P again, from m and 1/Σ.

A block of threads keeps a tile of queries in shared memory and lets the keys and values pass by in tiles. Scores of a tile,
S = τ Q Kᵀ + M, live in registers; the softmax over a whole row is put together as the tiles come: with the largest score so
far m, the sum so far l and the output so far o,

    m' = max(m, max_j s_j),    l ← l e^{m − m'} + Σ_j e^{s_j − m'},    o ← o e^{m − m'} + Σ_j e^{s_j − m'} v_j

and in the end O = o / l. So memory grows with T, not with T². The backward pass makes P = e^{S − m} / l again from m and 1/l,
which are kept apart (log l is rounded away in m + log l where m is large), and from the very same S, whose sums `_dots` takes
in both. It visits the same tiles twice: once for each tile of keys, where it adds up K̄ and V̄, once for each tile of queries,
for Q̄; no sum is shared between blocks, so every result has the same bits each time.

In shared memory a row of a tile is D + 4 numbers long: rows that neighbouring threads read at the same d then lie in
different banks, and four neighbouring d are read as 16 bytes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import boolean, cuda, float32, uint32

from kernels import reference
from kernels.cuda import elementwise
from kernels.cuda import matmul as products
from kernels.cuda.build import (
    F2,
    F3,
    FLOAT,
    INT,
    WARPS,
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

WIDTHS = (32, 64, 128)  # of the heads; others up to 128 are filled up with zeros, wider ones composed

# ---------------------------------------------------------------------------------------------------------------------
# Pieces of the kernels
# ---------------------------------------------------------------------------------------------------------------------


@device
def _bias(M, z, i, j, across, every):
    """M_ij of product z: a mask may be one for several products, rows or columns."""
    zm = z // uint32(across) % uint32(M.shape[0]) if every else uint32(0)
    im = i if M.shape[1] > 1 else uint32(0)
    jm = j if M.shape[2] > 1 else uint32(0)
    return M[zm, im, jm]


def _tile(width: int, count: int, threads: int) -> Any:
    """`count` rows of X from row0 on into shared memory, times `scale`; zeros for rows that X does not have."""

    @device
    def load(shared, X, z, row0, rows, scale):
        at = uint32(cuda.threadIdx.x)
        while at < uint32(count * width):
            r = at // uint32(width)
            c = at % uint32(width)
            shared[r, c] = X[z, row0 + r, c] * scale if row0 + r < rows else float32(0.0)
            at += uint32(threads)

    return load


def _dots(width: int, rows: int, columns: int, row_gap: int, column_gap: int) -> Any:
    """s[m, n] = Σ_d a[y + m row_gap, d] b[x + n column_gap, d], four d at a time"""

    @device
    def dots(a, b, y, x, ra, rb, s):
        for m in range(rows):
            for n in range(columns):
                s[m, n] = float32(0.0)
        d = uint32(0)
        while d < uint32(width):
            for e in range(4):
                for m in range(rows):
                    ra[m, e] = a[y + uint32(m * row_gap), d + uint32(e)]
                for n in range(columns):
                    rb[n, e] = b[x + uint32(n * column_gap), d + uint32(e)]
            for e in range(4):
                for m in range(rows):
                    for n in range(columns):
                        s[m, n] += ra[m, e] * rb[n, e]
            d += uint32(4)

    return dots


# ---------------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def forward(width: int, masked: bool, budget: tuple[int, int] | None = None) -> Kernel:
    """The kernel for heads of `width`: 16 × 8 threads for 64 queries × 32 keys, 4 × 4 scores each.

    Q, O: (Z, T, D), K, V: (Z, S, D), L: m and 1/Σ, (2, Z, T), M: (Z or fewer, T or 1, S or 1).
    """
    queries, keys = (64, 32) if width <= 64 else (32, 32)
    ny, nx = 16, 8
    threads = ny * nx
    rm, rn, ro = queries // ny, keys // nx, width // nx
    pitch, pitch_p = width + 4, keys + 4
    load_q, load_k = _tile(width, queries, threads), _tile(width, keys, threads)
    dots = _dots(width, rm, rn, ny, nx)

    @kernel(
        (F3, F3, F3, F3, F3, F3, FLOAT, boolean, INT, boolean),
        threads=threads,
        registers=168,
        shared=4 * ((queries + keys) * pitch + queries * pitch_p),
        name=f"attention_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, out, L, scale, causal, across, every):
        q = cuda.shared.array((queries, pitch), float32)
        kv = cuda.shared.array((keys, pitch), float32)  # keys, then values
        p = cuda.shared.array((queries, pitch_p), float32)
        s = cuda.local.array((rm, rn), float32)
        o = cuda.local.array((rm, ro), float32)
        top = cuda.local.array(rm, float32)
        total = cuda.local.array(rm, float32)
        ra = cuda.local.array((rm, 4), float32)
        rb = cuda.local.array((rn, 4), float32)
        rv = cuda.local.array(ro, float32)
        t = uint32(cuda.threadIdx.x)
        x = t % uint32(nx)
        y = t // uint32(nx)
        T, S = uint32(Q.shape[1]), uint32(K.shape[1])
        tiles = (T + uint32(queries - 1)) // uint32(queries)
        z = uint32(cuda.blockIdx.x) // tiles
        i0 = (tiles - uint32(1) - uint32(cuda.blockIdx.x) % tiles) * uint32(queries)  # the longest causal rows begin first
        for m in range(rm):
            top[m] = float32(-np.inf)
            total[m] = float32(0.0)
            for c in range(ro):
                o[m, c] = float32(0.0)
        load_q(q, Q, z, i0, T, scale)
        last = S
        if causal and i0 + uint32(queries) < S:
            last = i0 + uint32(queries)
        j0 = uint32(0)
        while j0 < last:
            load_k(kv, K, z, j0, S, float32(1.0))
            cuda.syncthreads()
            dots(q, kv, y, x, ra, rb, s)
            for m in range(rm):
                i = i0 + y + uint32(m * ny)
                new = top[m]
                for n in range(rn):
                    j = j0 + x + uint32(n * nx)
                    if j >= S or i >= T or (causal and j > i):
                        s[m, n] = float32(-np.inf)
                    elif masked:
                        s[m, n] += _bias(M, z, i, j, across, every)
                    new = s[m, n] if s[m, n] > new else new
                for e in range(3):  # the eight threads of a row
                    other = cuda.shfl_xor_sync(0xFFFFFFFF, new, 1 << e)
                    new = other if other > new else new
                shift = float32(0.0) if new == float32(-np.inf) else new  # nothing to attend to yet: e^{−∞ − 0} = 0
                shrink = math.exp(top[m] - shift)
                top[m] = new
                part = float32(0.0)
                for n in range(rn):
                    e_s = math.exp(s[m, n] - shift)
                    part += e_s
                    p[y + uint32(m * ny), x + uint32(n * nx)] = e_s
                total[m] = total[m] * shrink + part
                for c in range(ro):
                    o[m, c] *= shrink
            cuda.syncthreads()
            load_k(kv, V, z, j0, S, float32(1.0))
            cuda.syncthreads()
            j = uint32(0)
            while j < uint32(keys):
                for e in range(4):
                    for m in range(rm):
                        ra[m, e] = p[y + uint32(m * ny), j + uint32(e)]
                for e in range(4):
                    for c in range(ro):
                        rv[c] = kv[j + uint32(e), x * uint32(4) + uint32(c // 4 * 4 * nx + c % 4)]
                    for m in range(rm):
                        for c in range(ro):
                            o[m, c] += ra[m, e] * rv[c]
                j += uint32(4)
            cuda.syncthreads()
            j0 += uint32(keys)
        for m in range(rm):
            sum_m = total[m]
            for e in range(3):
                sum_m += cuda.shfl_xor_sync(0xFFFFFFFF, sum_m, 1 << e)
            i = i0 + y + uint32(m * ny)
            if i < T:
                dead = sum_m == float32(0.0)
                inverse = float32(1.0) if dead else float32(1.0) / sum_m
                for c in range(ro):
                    out[z, i, x * uint32(4) + uint32(c // 4 * 4 * nx + c % 4)] = o[m, c] * inverse
                if x == uint32(0):
                    L[0, z, i] = float32(0.0) if dead else top[m]
                    L[1, z, i] = inverse

    return attend


@functools.cache
def one_query(width: int, masked: bool) -> Kernel:
    """One query a block, for decoding: its four warps share the keys, a lane holds every 32nd number of a row."""
    per_lane = width // 32

    @kernel(
        (F3, F3, F3, F3, F3, F3, FLOAT, INT, boolean),
        threads=32 * WARPS,
        registers=64,
        shared=4 * (2 * WARPS + WARPS * width),
        name=f"one_query_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, out, L, scale, across, every):
        tops = cuda.shared.array(WARPS, float32)
        totals = cuda.shared.array(WARPS, float32)
        parts = cuda.shared.array((WARPS, width), float32)
        q = cuda.local.array(per_lane, float32)
        o = cuda.local.array(per_lane, float32)
        t = uint32(cuda.threadIdx.x)
        lane = t % uint32(32)
        warp = t // uint32(32)
        z = uint32(cuda.blockIdx.x)
        S = uint32(K.shape[1])
        top = float32(-np.inf)
        total = float32(0.0)
        for c in range(per_lane):
            q[c] = Q[z, 0, lane + uint32(32 * c)] * scale
            o[c] = float32(0.0)
        j = warp
        while j < S:
            s = float32(0.0)
            for c in range(per_lane):
                s += q[c] * K[z, j, lane + uint32(32 * c)]
            for e in range(5):
                s += cuda.shfl_xor_sync(0xFFFFFFFF, s, 1 << e)
            if masked:
                s += _bias(M, z, uint32(0), j, across, every)
            new = s if s > top else top
            shift = float32(0.0) if new == float32(-np.inf) else new
            shrink = math.exp(top - shift)
            e_s = math.exp(s - shift)
            top = new
            total = total * shrink + e_s
            for c in range(per_lane):
                o[c] = o[c] * shrink + e_s * V[z, j, lane + uint32(32 * c)]
            j += uint32(WARPS)
        if lane == uint32(0):
            tops[warp] = top
            totals[warp] = total
        for c in range(per_lane):
            parts[warp, lane + uint32(32 * c)] = o[c]
        cuda.syncthreads()
        new = float32(-np.inf)
        for w in range(WARPS):
            new = tops[w] if tops[w] > new else new
        shift = float32(0.0) if new == float32(-np.inf) else new
        total = float32(0.0)
        for w in range(WARPS):
            total += totals[w] * math.exp(tops[w] - shift)
        dead = total == float32(0.0)
        inverse = float32(1.0) if dead else float32(1.0) / total
        c = t
        while c < uint32(width):
            value = float32(0.0)
            for w in range(WARPS):
                value += parts[w, c] * math.exp(tops[w] - shift)
            out[z, 0, c] = value * inverse
            c += uint32(32 * WARPS)
        if t == uint32(0):
            L[0, z, 0] = shift
            L[1, z, 0] = inverse

    return attend


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


@kernel((F3, F3, F2), threads=128, registers=40)
def row_products(out, dO, products):
    """Σ_d Ō ⊙ O for each query: a warp for each row."""
    row = cuda.grid(1) // 32
    lane = cuda.threadIdx.x % 32
    T = out.shape[1]
    total = float32(0.0)
    if row < out.shape[0] * T:
        for d in range(lane, out.shape[2], 32):
            total += out[row // T, row % T, d] * dO[row // T, row % T, d]
    for e in range(5):
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, 1 << e)
    if row < out.shape[0] * T and lane == 0:
        products[row // T, row % T] = total


def _backward_tile(width: int) -> tuple[int, int]:
    """Rows of a square tile, of which 8 × 8 threads hold a part each; four tiles of it fit in 48 KiB."""
    side = 32 if width <= 64 else 16
    return side, side // 8


def _weights(side: int, per: int, masked: bool) -> Any:
    """p ← e^{s − m} / Σ, s ← S̄ = p ⊙ (P̄ − Σ Ō ⊙ O), for the scores s and the products dp = P̄ of a tile"""

    @device
    def weights(s, dp, p, M, z, i0, j0, y, x, T, S, peak, inverse, row, causal, across, every):
        for m in range(per):
            i = i0 + y + uint32(m * 8)
            for n in range(per):
                j = j0 + x + uint32(n * 8)
                if j >= S or i >= T or (causal and j > i):
                    p[m, n] = float32(0.0)
                else:
                    if masked:
                        s[m, n] += _bias(M, z, i, j, across, every)
                    p[m, n] = math.exp(s[m, n] - peak[y + uint32(m * 8)]) * inverse[y + uint32(m * 8)]
                s[m, n] = p[m, n] * (dp[m, n] - row[y + uint32(m * 8)])

    return weights


def _gather(width: int, side: int, per: int) -> Any:
    """acc[m, c] += Σ_i w[i, y + 8 m] rows[i, c]: the columns of weights that this thread has, times its part of the rows"""
    ro = width // 8

    @device
    def gather(w, rows, y, x, rw, rr, acc):
        for i in range(side):
            for m in range(per):
                rw[m] = w[uint32(i), y + uint32(m * 8)]
            for c in range(ro):
                rr[c] = rows[uint32(i), x * uint32(4) + uint32(c // 4 * 32 + c % 4)]
            for m in range(per):
                for c in range(ro):
                    acc[m, c] += rw[m] * rr[c]

    return gather


@functools.cache
def backward_keys(width: int, masked: bool) -> Kernel:
    """K̄ and V̄ of a tile of keys: the queries pass by."""
    side, per = _backward_tile(width)
    ro, pitch, pitch_p = width // 8, width + 4, side + 4
    load, dots, weights, gather = (
        _tile(width, side, 64), _dots(width, per, per, 8, 8), _weights(side, per, masked), _gather(width, side, per)
    )  # fmt: skip

    @kernel(
        (F3, F3, F3, F3, F3, F3, F2, F3, F3, FLOAT, boolean, INT, boolean),
        threads=64,
        registers=255,
        shared=4 * (4 * side * pitch + side * pitch_p + 3 * side),
        name=f"attention_backward_keys_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, dO, L, R, dK, dV, scale, causal, across, every):
        q = cuda.shared.array((side, pitch), float32)
        k = cuda.shared.array((side, pitch), float32)
        v = cuda.shared.array((side, pitch), float32)
        do = cuda.shared.array((side, pitch), float32)
        w = cuda.shared.array((side, pitch_p), float32)
        peak = cuda.shared.array(side, float32)
        inverse = cuda.shared.array(side, float32)
        row = cuda.shared.array(side, float32)
        s = cuda.local.array((per, per), float32)
        dp = cuda.local.array((per, per), float32)
        p = cuda.local.array((per, per), float32)
        ra = cuda.local.array((per, 4), float32)
        rb = cuda.local.array((per, 4), float32)
        rw = cuda.local.array(per, float32)
        rr = cuda.local.array(ro, float32)
        dk = cuda.local.array((per, ro), float32)
        dv = cuda.local.array((per, ro), float32)
        t = uint32(cuda.threadIdx.x)
        x = t % uint32(8)
        y = t // uint32(8)
        T, S = uint32(Q.shape[1]), uint32(K.shape[1])
        tiles = (S + uint32(side - 1)) // uint32(side)
        z = uint32(cuda.blockIdx.x) // tiles
        j0 = uint32(cuda.blockIdx.x) % tiles * uint32(side)
        for m in range(per):
            for c in range(ro):
                dk[m, c] = float32(0.0)
                dv[m, c] = float32(0.0)
        load(k, K, z, j0, S, float32(1.0))
        load(v, V, z, j0, S, float32(1.0))
        i0 = uint32(0)
        if causal:
            i0 = j0
        while i0 < T:
            load(q, Q, z, i0, T, scale)
            load(do, dO, z, i0, T, float32(1.0))
            if t < uint32(side):
                peak[t] = L[0, z, i0 + t] if i0 + t < T else float32(0.0)
                inverse[t] = L[1, z, i0 + t] if i0 + t < T else float32(0.0)
                row[t] = R[z, i0 + t] if i0 + t < T else float32(0.0)
            cuda.syncthreads()
            dots(q, k, y, x, ra, rb, s)
            dots(do, v, y, x, ra, rb, dp)
            weights(s, dp, p, M, z, i0, j0, y, x, T, S, peak, inverse, row, causal, across, every)
            for m in range(per):
                for n in range(per):
                    w[y + uint32(m * 8), x + uint32(n * 8)] = p[m, n]
            cuda.syncthreads()
            gather(w, do, y, x, rw, rr, dv)  # V̄ = Pᵀ Ō
            cuda.syncthreads()
            for m in range(per):
                for n in range(per):
                    w[y + uint32(m * 8), x + uint32(n * 8)] = s[m, n]
            cuda.syncthreads()
            gather(w, q, y, x, rw, rr, dk)  # K̄ = S̄ᵀ (τ Q)
            cuda.syncthreads()
            i0 += uint32(side)
        for m in range(per):
            j = j0 + y + uint32(m * 8)
            if j < S:
                for c in range(ro):
                    dK[z, j, x * uint32(4) + uint32(c // 4 * 32 + c % 4)] = dk[m, c]
                    dV[z, j, x * uint32(4) + uint32(c // 4 * 32 + c % 4)] = dv[m, c]

    return attend


@functools.cache
def backward_queries(width: int, masked: bool) -> Kernel:
    """Q̄ of a tile of queries: the keys pass by."""
    side, per = _backward_tile(width)
    ro, pitch, pitch_p = width // 8, width + 4, side + 4
    load, dots, weights, gather = (
        _tile(width, side, 64), _dots(width, per, per, 8, 8), _weights(side, per, masked), _gather(width, side, per)
    )  # fmt: skip

    @kernel(
        (F3, F3, F3, F3, F3, F3, F2, F3, FLOAT, boolean, INT, boolean),
        threads=64,
        registers=200,
        shared=4 * (4 * side * pitch + side * pitch_p + 3 * side),
        name=f"attention_backward_queries_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, dO, L, R, dQ, scale, causal, across, every):
        q = cuda.shared.array((side, pitch), float32)
        k = cuda.shared.array((side, pitch), float32)
        v = cuda.shared.array((side, pitch), float32)
        do = cuda.shared.array((side, pitch), float32)
        w = cuda.shared.array((side, pitch_p), float32)  # transposed
        peak = cuda.shared.array(side, float32)
        inverse = cuda.shared.array(side, float32)
        row = cuda.shared.array(side, float32)
        s = cuda.local.array((per, per), float32)
        dp = cuda.local.array((per, per), float32)
        p = cuda.local.array((per, per), float32)
        ra = cuda.local.array((per, 4), float32)
        rb = cuda.local.array((per, 4), float32)
        rw = cuda.local.array(per, float32)
        rr = cuda.local.array(ro, float32)
        dq = cuda.local.array((per, ro), float32)
        t = uint32(cuda.threadIdx.x)
        x = t % uint32(8)
        y = t // uint32(8)
        T, S = uint32(Q.shape[1]), uint32(K.shape[1])
        tiles = (T + uint32(side - 1)) // uint32(side)
        z = uint32(cuda.blockIdx.x) // tiles
        i0 = (tiles - uint32(1) - uint32(cuda.blockIdx.x) % tiles) * uint32(side)
        for m in range(per):
            for c in range(ro):
                dq[m, c] = float32(0.0)
        load(q, Q, z, i0, T, scale)
        load(do, dO, z, i0, T, float32(1.0))
        if t < uint32(side):
            peak[t] = L[0, z, i0 + t] if i0 + t < T else float32(0.0)
            inverse[t] = L[1, z, i0 + t] if i0 + t < T else float32(0.0)
            row[t] = R[z, i0 + t] if i0 + t < T else float32(0.0)
        last = S
        if causal and i0 + uint32(side) < S:
            last = i0 + uint32(side)
        j0 = uint32(0)
        while j0 < last:
            load(k, K, z, j0, S, float32(1.0))
            load(v, V, z, j0, S, float32(1.0))
            cuda.syncthreads()
            dots(q, k, y, x, ra, rb, s)
            dots(do, v, y, x, ra, rb, dp)
            weights(s, dp, p, M, z, i0, j0, y, x, T, S, peak, inverse, row, causal, across, every)
            for m in range(per):
                for n in range(per):
                    w[x + uint32(n * 8), y + uint32(m * 8)] = s[m, n]
            cuda.syncthreads()
            gather(w, k, y, x, rw, rr, dq)  # Q̄ = τ S̄ K
            cuda.syncthreads()
            j0 += uint32(side)
        for m in range(per):
            i = i0 + y + uint32(m * 8)
            if i < T:
                for c in range(ro):
                    dQ[z, i, x * uint32(4) + uint32(c // 4 * 32 + c % 4)] = dq[m, c] * scale

    return attend


# ---------------------------------------------------------------------------------------------------------------------
# The doors
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


def _mask(mask: Array | None, lead: tuple[int, ...], like: Array) -> tuple[Array, int, bool]:
    """The mask as a stack, and of which product z each of its matrices is: (z / across) mod their number, or the only one."""
    if mask is None:
        return empty(like, (1, 1, 1)), 1, False
    own = (1,) * (len(lead) + 2 - mask.ndim) + mask.shape
    whose = own[:-2]
    wide = [d for d, n in enumerate(whose) if n > 1]
    if wide and any(whose[d] != lead[d] for d in range(wide[0], wide[-1] + 1)):  # one for several in the midst: spread out
        mask, whose = np.broadcast_to(mask.reshape(own), lead + own[-2:]), lead
        wide = [0, len(lead) - 1]
    across = math.prod(lead[wide[-1] + 1 :]) if wide else 1
    return plain(mask.reshape((math.prod(whose),) + own[-2:])), across, bool(wide)


def _composed(q: Array, k: Array, causal: bool, mask: Array | None, scale: float) -> Array:
    """S = τ Q Kᵀ + M, with −∞ above the diagonal if causal: for heads that no kernel is wide enough for."""
    s = products.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if mask is not None:
        s = s + mask
    if causal:
        ones = np.ones_like(s, shape=s.shape[-2:])
        s = np.where(np.triu(ones, 1) != 0, q.dtype.type(-np.inf), s)
    return s


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
    """O = Z ⊙ softmax(τ Q Kᵀ + M) V, and what the backward pass makes P from again: m_i = max_j S_ij and 1/Σ_j e^{S_ij − m_i}.

    (…, T, D), (…, S, D), (…, S, E) → (…, T, E), (2, …, T, 1). A row that may attend to nothing gives zeros, m 0 and Σ 1.
    Heads wider than 128, dropout, and types other than float32 are composed of products and a softmax: T × S numbers.
    """
    check("attention", q, k, v, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    t, s, e = q.shape[-2], k.shape[-2], v.shape[-1]
    width, size = _width(q.shape[-1], e), math.prod(lead) * t * s * q.shape[-1] * e
    options = {"causal": causal, "mask": mask, "scale": scale}
    if width is None or dropout_p or not is_float32(q, k, v, mask) or not size:
        return _composed_forward(q, k, v, lead, {"p": dropout_p, "seed": seed, "stream": stream}, **options)
    return _fused_forward(q, k, v, lead, width, alone=t == 1 and not causal, **options)


def _composed_forward(
    q: Array, k: Array, v: Array, lead: tuple[int, ...], noise: dict[str, Any], **options: Any
) -> tuple[Array, Array]:
    one, zero = q.dtype.type(1), q.dtype.type(0)
    if not k.shape[-2]:
        shape = lead + (q.shape[-2], 1)
        m = np.zeros_like(q, shape=shape)
        return np.zeros_like(q, shape=lead + (q.shape[-2], v.shape[-1])), np.stack([m, m + one])
    p = _composed(q, k, **options)
    m = p.max(axis=-1, keepdims=True)
    m = np.where(m == -np.inf, zero, m)
    p = np.exp(p - m)
    total = p.sum(axis=-1, keepdims=True)
    inverse = one / np.where(total == 0, one, total)
    p = p * inverse
    if noise["p"]:
        p = elementwise.attention_dropout(p, **noise)
    return products.matmul(p, v), np.stack([m, inverse])


def _fused_forward(
    q: Array, k: Array, v: Array, lead: tuple[int, ...], width: int, *, alone: bool, causal: bool, mask: Any, scale: float
) -> tuple[Array, Array]:
    """`alone`: by the kernel for one query, whose scores are sums in another order than those of the tiles."""
    t, e, count = q.shape[-2], v.shape[-1], math.prod(lead)
    stack = [_filled(x, lead, width) for x in (q, k, v)]
    out, statistics = empty(q, (count, t, width)), empty(q, (2, count, t))
    m, across, every = _mask(mask, lead, q)
    if alone:
        launch(one_query(width, mask is not None), count, *stack, m, out, statistics, np.float32(scale), across, every)
    else:
        kernel = forward(width, mask is not None)
        blocks = count * cdiv(t, 64 if width <= 64 else 32)
        launch(kernel, blocks, *stack, m, out, statistics, np.float32(scale), bool(causal), across, every)
    return out[..., :e].reshape(lead + (t, e)), statistics.reshape((2,) + lead + (t, 1))


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
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    into: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array, Array | None]:
    """With P = e^{S − m} / Σ:  V̄ = (Z ⊙ P)ᵀ Ō,  S̄ = P ⊙ (Z ⊙ Ō Vᵀ − Σ Ō ⊙ O),  Q̄ = τ S̄ K,  K̄ = τ S̄ᵀ Q;  M̄ = S̄ if asked for

    Each has the shape of what it is a gradient of: summed where that was repeated. `into`: where to write Q̄, K̄, V̄.
    """
    check("attention_backward", dout, q, k, v, out, statistics, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = {"causal": causal, "mask": mask, "scale": scale}
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    width = _width(q.shape[-1], v.shape[-1])
    size = math.prod(lead) * q.shape[-2] * k.shape[-2] * q.shape[-1] * v.shape[-1]
    ds = None
    fused = width is not None and not dropout_p and is_float32(q, k, v, mask) and size  # was the forward pass
    if not fused or mask_grad or not is_float32(dout, out, statistics):
        noise = {"p": dropout_p, "seed": seed, "stream": stream}
        if fused:  # O, m and Σ are to be those of the scores that P is made from
            out, statistics = _composed_forward(q, k, v, lead, noise, **options)
        *grads, ds = _composed_backward(dout, q, k, v, out, statistics, noise, **options)
    else:
        if q.shape[-2] == 1 and not causal:
            out, statistics = _fused_forward(q, k, v, lead, width, alone=False, **options)
        grads = _fused_backward(dout, q, k, v, out, statistics, lead, width, **options)
    grads = [reference._summed_to(grad, x.shape) for grad, x in zip(grads, (q, k, v), strict=True)]
    if into is not None:
        for given, grad in zip(into, grads, strict=True):
            given[...] = grad
        grads = into
    return *grads, ds if mask_grad else None


def _composed_backward(
    dout: Array, q: Array, k: Array, v: Array, out: Array, statistics: Array, noise: dict[str, Any], **options: Any
) -> tuple[Array, ...]:
    m, inverse = statistics
    p = np.exp(_composed(q, k, **options) - m) * inverse
    z = elementwise.attention_dropout if noise["p"] else lambda x, **_: x
    dv = products.matmul(z(p, **noise).swapaxes(-1, -2), dout)
    ds = (z(products.matmul(dout, v.swapaxes(-1, -2)), **noise) - (dout * out).sum(axis=-1, keepdims=True)) * p
    dq = products.matmul(ds, k) * q.dtype.type(options["scale"])
    dk = products.matmul(ds.swapaxes(-1, -2), q) * q.dtype.type(options["scale"])
    return dq, dk, dv, ds


def _fused_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    statistics: Array,
    lead: tuple[int, ...],
    width: int,
    **options: Any,
) -> tuple[Array, ...]:
    t, s, d, e, count = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], math.prod(lead)
    q, k, v, out, dout = (_filled(x, lead, width) for x in (q, k, v, out, dout))
    statistics = plain(np.broadcast_to(statistics, (2,) + lead + (t, 1)).reshape(2, count, t))
    mask = options["mask"]
    m, across, every = _mask(mask, lead, q)
    row = empty(q, (count, t))
    launch(row_products, cdiv(count * t, 4), out, dout, row)
    dq, dk, dv = empty(q, q.shape), empty(q, k.shape), empty(q, v.shape)
    side, numbers = _backward_tile(width)[0], (np.float32(options["scale"]), bool(options["causal"]), across, every)
    launch(backward_keys(width, mask is not None), count * cdiv(s, side), q, k, v, m, dout, statistics, row, dk, dv, *numbers)
    launch(backward_queries(width, mask is not None), count * cdiv(t, side), q, k, v, m, dout, statistics, row, dq, *numbers)
    return tuple([x[..., :n].reshape(lead + (-1, n)) for x, n in ((dq, d), (dk, d), (dv, e))])
