r"""Attention's backward pass without the T × S matrix.     Dao et al. 2022, arXiv:2205.14135, algorithm 4

The gradients need the weight p_ij of every query i and key j, and the forward pass has kept none. But it has kept two numbers
for each query, m_i and 1/l_i, and from these a weight is made again where it is needed, tile by tile:

    s_ij = τ Σ_d q_id k_jd + M_ij,     p_ij = e^{s_ij − m_i} / l_i

The gradient of a softmax asks for a sum over all keys, which is known before any tile is visited:

    s̄_ij = p_ij (p̄_ij − r_i),     p̄_ij = Σ_d ō_id v_jd,     r_i = Σ_j p_ij p̄_ij = Σ_d ō_id Σ_j p_ij v_jd = Σ_d ō_id o_id

So a tile of scores is all that a gradient needs at a time:

    v̄_j = Σ_i p_ij ō_i,     k̄_j = τ Σ_i s̄_ij q_i,     q̄_i = τ Σ_j s̄_ij k_j

v̄ and k̄ are sums over queries, q̄ is one over keys. Each tile is visited twice, so that no sum is shared between blocks: the same
bits each time, without atomic sums.

    row_products       a warp for each query:  r_i

    keys               for each product z and each tile of keys: a block of 8 × 8 threads
                           k, v ← K, V                                                    shared memory
                           k̄, v̄ ← 0                                                       registers
                           for each tile of queries, if causal from the diagonal on:
                               q, ō ← τ Q, Ō;   m, 1/l, r                                 shared memory
                               s = q kᵀ + M,   p̄ = ō vᵀ;   p, s̄                           registers
                               w ← p;   v̄ ← v̄ + wᵀ ō
                               w ← s̄;   k̄ ← k̄ + wᵀ q

    queries            for each product z and each tile of queries: a block of 8 × 8 threads
                           q, ō ← τ Q, Ō;   m, 1/l, r;   q̄ ← 0
                           for each tile of keys, if causal as far as the diagonal:
                               k, v ← K, V;   s, p̄, s̄ as above
                               w ← s̄ᵀ;   q̄ ← q̄ + wᵀ k
                           Q̄ ← τ q̄

    shared memory      q, k, v, ō  [32][D + 4] each   w  [32][32 + 4]   m, 1/l, r  [32] each    39 KiB for D = 64, of 48 KiB

Tiles have 32 rows, 16 for heads of 128. Thread (ty, tx) has the rows ty, ty + 8, … and the columns tx, tx + 8, … of a tile of
scores. m and 1/l are kept apart, since in m + log l the logarithm is rounded away where m is large. Both passes compute s by
the same `dots`, so that a weight is the same number in both.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from numba import cuda, float32, uint32

from kernels.cuda.attention_tiles import OPTIONS, Tile, columns, dot_products, loader, mask_of
from kernels.cuda.build import F2, F3, Kernel, device, kernel

SIDE = 8  # a block has SIDE × SIDE threads


def rows_of(width: int) -> int:
    """Rows of a tile: four tiles of it fit in 48 KiB of shared memory."""
    return 32 if width <= 64 else 16


@kernel((F3, F3, F2), threads=128, registers=40)
def row_products(out, dout, products):
    """r_i = Σ_d ō_id o_id: a warp for each query"""
    row = cuda.grid(1) // 32
    lane = cuda.threadIdx.x % 32
    T = out.shape[1]
    total = float32(0.0)
    if row < out.shape[0] * T:
        for d in range(lane, out.shape[2], 32):
            total += out[row // T, row % T, d] * dout[row // T, row % T, d]
    for e in range(5):
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, 1 << e)
    if row < out.shape[0] * T and lane == 0:
        products[row // T, row % T] = total


def _weights(per: int, masked: bool) -> Any:
    """A device function: p ← e^{s − m} / l and s ← s̄ = p (p̄ − r), of the `per` × `per` scores of a thread."""

    @device
    def weights(s, dp, p, M, tile, ty, tx, peak, inverse, row, options):
        for m in range(per):
            r = ty + uint32(m * SIDE)
            i = tile.i0 + r
            for n in range(per):
                j = tile.j0 + tx + uint32(n * SIDE)
                if j >= tile.keys or i >= tile.queries or (options.causal and j > i):
                    p[m, n] = float32(0.0)
                else:
                    if masked:
                        s[m, n] += mask_of(M, tile.z, i, j, options)
                    p[m, n] = math.exp(s[m, n] - peak[r]) * inverse[r]
                s[m, n] = p[m, n] * (dp[m, n] - row[r])

    return weights


def _sums(width: int, height: int, per: int) -> Any:
    """A device function: sums[m, c] += Σ_i w[i, ty + 8 m] tile[i, c], by way of registers rw, rt."""
    elements, column = width // SIDE, columns(SIDE)

    @device
    def add_products(w, tile, ty, tx, rw, rt, sums):
        for i in range(height):
            for m in range(per):
                rw[m] = w[uint32(i), ty + uint32(m * SIDE)]
            for c in range(elements):
                rt[c] = tile[uint32(i), column(tx, c)]
            for m in range(per):
                for c in range(elements):
                    sums[m, c] += rw[m] * rt[c]

    return add_products


def _load_rows(height: int) -> Any:
    """A device function: m, 1/l and r of the tile's queries into shared memory; zeros past the last of them."""

    @device
    def load_rows(peak, inverse, row, statistics, products, z, i0, T):
        t = uint32(cuda.threadIdx.x)
        if t < uint32(height):
            peak[t] = statistics[0, z, i0 + t] if i0 + t < T else float32(0.0)
            inverse[t] = statistics[1, z, i0 + t] if i0 + t < T else float32(0.0)
            row[t] = products[z, i0 + t] if i0 + t < T else float32(0.0)

    return load_rows


def _steps(width: int, masked: bool) -> tuple[Any, ...]:
    height = rows_of(width)
    per = height // SIDE
    return (
        loader(width, height, SIDE * SIDE),
        _load_rows(height),
        dot_products(width, per, per, SIDE, SIDE),
        _weights(per, masked),
        _sums(width, height, per),
        columns(SIDE),
    )


def _shared(width: int) -> int:
    height = rows_of(width)
    return 4 * (4 * height * (width + 4) + height * (height + 4) + 3 * height)


@functools.cache
def keys(width: int, masked: bool) -> Kernel:
    """K̄ and V̄ of a tile of keys, as the queries pass by."""
    height = rows_of(width)
    per, elements = height // SIDE, width // SIDE  # rows of a tile that a thread has, and elements of each
    pitch, pitch_w = width + 4, height + 4  # lengths of rows in shared memory
    load, load_rows, dots, weights, add_products, column = _steps(width, masked)

    @kernel(
        (F3, F3, F3, F3, F3, F3, F2, F3, F3, OPTIONS),
        threads=SIDE * SIDE,
        registers=255,
        shared=_shared(width),
        name=f"attention_backward_keys_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, dout, statistics, products, dK, dV, options):
        q = cuda.shared.array((height, pitch), float32)
        k = cuda.shared.array((height, pitch), float32)
        v = cuda.shared.array((height, pitch), float32)
        do = cuda.shared.array((height, pitch), float32)
        w = cuda.shared.array((height, pitch_w), float32)
        peak = cuda.shared.array(height, float32)
        inverse = cuda.shared.array(height, float32)
        row = cuda.shared.array(height, float32)
        s = cuda.local.array((per, per), float32)
        dp = cuda.local.array((per, per), float32)
        p = cuda.local.array((per, per), float32)
        ra = cuda.local.array((per, 4), float32)
        rb = cuda.local.array((per, 4), float32)
        rw = cuda.local.array(per, float32)
        rt = cuda.local.array(elements, float32)
        dk = cuda.local.array((per, elements), float32)
        dv = cuda.local.array((per, elements), float32)
        ty = uint32(cuda.threadIdx.x) // uint32(SIDE)
        tx = uint32(cuda.threadIdx.x) % uint32(SIDE)
        T, S = uint32(Q.shape[1]), uint32(K.shape[1])
        count = (S + uint32(height - 1)) // uint32(height)
        z = uint32(cuda.blockIdx.x) // count
        j0 = uint32(cuda.blockIdx.x) % count * uint32(height)
        for m in range(per):
            for c in range(elements):
                dk[m, c] = float32(0.0)
                dv[m, c] = float32(0.0)
        load(k, K, z, j0, S, float32(1.0))
        load(v, V, z, j0, S, float32(1.0))
        i0 = uint32(0)
        if options.causal:
            i0 = j0
        while i0 < T:
            load(q, Q, z, i0, T, options.scale)
            load(do, dout, z, i0, T, float32(1.0))
            load_rows(peak, inverse, row, statistics, products, z, i0, T)
            cuda.syncthreads()
            dots(q, k, ty, tx, ra, rb, s)
            dots(do, v, ty, tx, ra, rb, dp)
            weights(s, dp, p, M, Tile(uint32(z), uint32(i0), uint32(j0), T, S), ty, tx, peak, inverse, row, options)
            for m in range(per):
                for n in range(per):
                    w[ty + uint32(m * SIDE), tx + uint32(n * SIDE)] = p[m, n]
            cuda.syncthreads()
            add_products(w, do, ty, tx, rw, rt, dv)  # v̄_j = Σ_i p_ij ō_i
            cuda.syncthreads()
            for m in range(per):
                for n in range(per):
                    w[ty + uint32(m * SIDE), tx + uint32(n * SIDE)] = s[m, n]
            cuda.syncthreads()
            add_products(w, q, ty, tx, rw, rt, dk)  # k̄_j = Σ_i s̄_ij (τ q_i)
            cuda.syncthreads()
            i0 += uint32(height)
        for m in range(per):
            j = j0 + ty + uint32(m * SIDE)
            if j < S:
                for c in range(elements):
                    dK[z, j, column(tx, c)] = dk[m, c]
                    dV[z, j, column(tx, c)] = dv[m, c]

    return attend


@functools.cache
def queries(width: int, masked: bool) -> Kernel:
    """Q̄ of a tile of queries, as the keys pass by."""
    height = rows_of(width)
    per, elements = height // SIDE, width // SIDE
    pitch, pitch_w = width + 4, height + 4
    load, load_rows, dots, weights, add_products, column = _steps(width, masked)

    @kernel(
        (F3, F3, F3, F3, F3, F3, F2, F3, OPTIONS),
        threads=SIDE * SIDE,
        registers=200,
        shared=_shared(width),
        name=f"attention_backward_queries_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, dout, statistics, products, dQ, options):
        q = cuda.shared.array((height, pitch), float32)
        k = cuda.shared.array((height, pitch), float32)
        v = cuda.shared.array((height, pitch), float32)
        do = cuda.shared.array((height, pitch), float32)
        w = cuda.shared.array((height, pitch_w), float32)  # transposed
        peak = cuda.shared.array(height, float32)
        inverse = cuda.shared.array(height, float32)
        row = cuda.shared.array(height, float32)
        s = cuda.local.array((per, per), float32)
        dp = cuda.local.array((per, per), float32)
        p = cuda.local.array((per, per), float32)
        ra = cuda.local.array((per, 4), float32)
        rb = cuda.local.array((per, 4), float32)
        rw = cuda.local.array(per, float32)
        rt = cuda.local.array(elements, float32)
        dq = cuda.local.array((per, elements), float32)
        ty = uint32(cuda.threadIdx.x) // uint32(SIDE)
        tx = uint32(cuda.threadIdx.x) % uint32(SIDE)
        T, S = uint32(Q.shape[1]), uint32(K.shape[1])
        count = (T + uint32(height - 1)) // uint32(height)
        z = uint32(cuda.blockIdx.x) // count
        i0 = (count - uint32(1) - uint32(cuda.blockIdx.x) % count) * uint32(height)  # the longest causal rows begin first
        for m in range(per):
            for c in range(elements):
                dq[m, c] = float32(0.0)
        load(q, Q, z, i0, T, options.scale)
        load(do, dout, z, i0, T, float32(1.0))
        load_rows(peak, inverse, row, statistics, products, z, i0, T)
        end = S
        if options.causal and i0 + uint32(height) < S:
            end = i0 + uint32(height)
        j0 = uint32(0)
        while j0 < end:
            load(k, K, z, j0, S, float32(1.0))
            load(v, V, z, j0, S, float32(1.0))
            cuda.syncthreads()
            dots(q, k, ty, tx, ra, rb, s)
            dots(do, v, ty, tx, ra, rb, dp)
            weights(s, dp, p, M, Tile(uint32(z), uint32(i0), uint32(j0), T, S), ty, tx, peak, inverse, row, options)
            for m in range(per):
                for n in range(per):
                    w[tx + uint32(n * SIDE), ty + uint32(m * SIDE)] = s[m, n]
            cuda.syncthreads()
            add_products(w, k, ty, tx, rw, rt, dq)  # q̄_i = τ Σ_j s̄_ij k_j
            cuda.syncthreads()
            j0 += uint32(height)
        for m in range(per):
            i = i0 + ty + uint32(m * SIDE)
            if i < T:
                for c in range(elements):
                    dQ[z, i, column(tx, c)] = dq[m, c] * options.scale

    return attend
