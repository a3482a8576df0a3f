r"""Attention's forward pass without the T × S matrix.     Dao et al. 2022, arXiv:2205.14135, algorithm 1

    s_ij = τ Σ_d q_id k_jd + M_ij,    m_i = max_j s_ij,    l_i = Σ_j e^{s_ij − m_i},    o_i = Σ_j e^{s_ij − m_i} v_j / l_i

Keys and values pass by in tiles, and the softmax over a whole row is put together as they come. With what has been seen so far,
the largest score m, the sum l and the output o (not yet divided), a tile of keys j makes

    m' = max(m, max_j s_j),    l ← l e^{m − m'} + Σ_j e^{s_j − m'},    o ← o e^{m − m'} + Σ_j e^{s_j − m'} v_j

    for each product z and each tile of 64 queries: a block of 16 × 8 threads            (tiles of 32 for heads of 128)
        q ← τ Q                                                                           shared memory
        m, l, o ← −∞, 0, 0                                                                registers
        for each tile of 32 keys, if causal as far as the diagonal:
            kv ← K;   s = q kvᵀ + M                                                       registers: 4 × 4 scores of a thread
            m' over each row, by shuffles among its 8 threads;   p ← e^{s − m'};   l, o
            kv ← V;   o ← o + p kv                                                        registers: 4 × D/8 numbers of a thread
        O ← o / l,   statistics ← m, 1/l

    shared memory     q  [64][D + 4]   kv  [32][D + 4]   p  [64][32 + 4]           35 KiB for D = 64; a block may have 48 KiB

A thread (ty, tx) has the queries ty, ty + 16, … and the keys tx, tx + 8, …. Memory grows with T, not with T · S: only O and two
numbers for each query are kept. From these the backward pass makes the p_ij again (attention_backward.py).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import cuda, float32, uint32

from kernels.cuda.attention_tiles import OPTIONS, columns, dot_products, loader, mask_of
from kernels.cuda.build import F3, WARPS, Kernel, kernel

THREADS_Y, THREADS_X = 16, 8
KEYS = 32  # of a tile


def queries_of(width: int) -> int:
    """Queries of a tile: as many as leave their sums in registers, and two blocks on a multiprocessor."""
    return 64 if width <= 64 else 32


@functools.cache
def tiles(width: int, masked: bool) -> Kernel:
    """The kernel for heads of `width`.

    Q, O: (Z, T, D), K, V: (Z, S, D), statistics: (2, Z, T), M: (Z or fewer, T or 1, S or 1)
    """
    queries = queries_of(width)
    rows, scores, elements = queries // THREADS_Y, KEYS // THREADS_X, width // THREADS_X  # of a thread
    pitch, pitch_p = width + 4, KEYS + 4  # lengths of rows in shared memory
    load_q = loader(width, queries, THREADS_Y * THREADS_X)
    load_kv = loader(width, KEYS, THREADS_Y * THREADS_X)
    dots = dot_products(width, rows, scores, THREADS_Y, THREADS_X)
    column = columns(THREADS_X)

    @kernel(
        (F3, F3, F3, F3, F3, F3, OPTIONS),
        threads=THREADS_Y * THREADS_X,
        registers=168,
        shared=4 * ((queries + KEYS) * pitch + queries * pitch_p),
        name=f"attention_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, out, statistics, options):
        q = cuda.shared.array((queries, pitch), float32)
        kv = cuda.shared.array((KEYS, pitch), float32)
        p = cuda.shared.array((queries, pitch_p), float32)
        s = cuda.local.array((rows, scores), float32)
        o = cuda.local.array((rows, elements), float32)
        top = cuda.local.array(rows, float32)
        total = cuda.local.array(rows, float32)
        ra = cuda.local.array((rows, 4), float32)
        rb = cuda.local.array((scores, 4), float32)
        rv = cuda.local.array(elements, float32)
        ty = uint32(cuda.threadIdx.x) // uint32(THREADS_X)
        tx = uint32(cuda.threadIdx.x) % uint32(THREADS_X)
        T, S = uint32(Q.shape[1]), uint32(K.shape[1])
        count = (T + uint32(queries - 1)) // uint32(queries)
        z = uint32(cuda.blockIdx.x) // count
        i0 = (count - uint32(1) - uint32(cuda.blockIdx.x) % count) * uint32(queries)  # the longest causal rows begin first
        for m in range(rows):
            top[m] = float32(-np.inf)
            total[m] = float32(0.0)
            for c in range(elements):
                o[m, c] = float32(0.0)
        load_q(q, Q, z, i0, T, options.scale)
        end = S
        if options.causal and i0 + uint32(queries) < S:
            end = i0 + uint32(queries)
        j0 = uint32(0)
        while j0 < end:
            load_kv(kv, K, z, j0, S, float32(1.0))
            cuda.syncthreads()
            dots(q, kv, ty, tx, ra, rb, s)
            for m in range(rows):
                i = i0 + ty + uint32(m * THREADS_Y)
                new = top[m]
                for n in range(scores):
                    j = j0 + tx + uint32(n * THREADS_X)
                    if j >= S or i >= T or (options.causal and j > i):
                        s[m, n] = float32(-np.inf)
                    elif masked:
                        s[m, n] += mask_of(M, z, i, j, options)
                    new = s[m, n] if s[m, n] > new else new
                for e in range(3):  # the eight threads of a row
                    other = cuda.shfl_xor_sync(0xFFFFFFFF, new, 1 << e)
                    new = other if other > new else new
                shift = float32(0.0) if new == float32(-np.inf) else new  # nothing to attend to yet: e^{−∞ − 0} = 0
                shrink = math.exp(top[m] - shift)
                top[m] = new
                part = float32(0.0)
                for n in range(scores):
                    weight = math.exp(s[m, n] - shift)
                    part += weight
                    p[ty + uint32(m * THREADS_Y), tx + uint32(n * THREADS_X)] = weight
                total[m] = total[m] * shrink + part
                for c in range(elements):
                    o[m, c] *= shrink
            cuda.syncthreads()
            load_kv(kv, V, z, j0, S, float32(1.0))
            cuda.syncthreads()
            j = uint32(0)
            while j < uint32(KEYS):
                for e in range(4):
                    for m in range(rows):
                        ra[m, e] = p[ty + uint32(m * THREADS_Y), j + uint32(e)]
                for e in range(4):
                    for c in range(elements):
                        rv[c] = kv[j + uint32(e), column(tx, c)]
                    for m in range(rows):
                        for c in range(elements):
                            o[m, c] += ra[m, e] * rv[c]
                j += uint32(4)
            cuda.syncthreads()
            j0 += uint32(KEYS)
        for m in range(rows):
            row_total = total[m]
            for e in range(3):
                row_total += cuda.shfl_xor_sync(0xFFFFFFFF, row_total, 1 << e)
            i = i0 + ty + uint32(m * THREADS_Y)
            if i < T:
                nothing = row_total == float32(0.0)
                inverse = float32(1.0) if nothing else float32(1.0) / row_total
                for c in range(elements):
                    out[z, i, column(tx, c)] = o[m, c] * inverse
                if tx == uint32(0):
                    statistics[0, z, i] = float32(0.0) if nothing else top[m]
                    statistics[1, z, i] = inverse

    return attend


@functools.cache
def one_query(width: int, masked: bool) -> Kernel:
    """One query for each product, as in decoding, where a tile of queries would be idle but for one row.

    for each product z: a block of 4 warps:
        for each warp w: the keys w, w + 4, …; a lane has the numbers d = lane, lane + 32, … of q, k, v and o
            s by shuffles over the warp;   m, l, o as above
        shared memory ← m, l, o of the four warps;   O ← Σ_w o_w e^{m_w − m} / Σ_w l_w e^{m_w − m}
    """
    elements = width // 32  # of a lane

    @kernel(
        (F3, F3, F3, F3, F3, F3, OPTIONS),
        threads=32 * WARPS,
        registers=64,
        shared=4 * (2 * WARPS + WARPS * width),
        name=f"one_query_{width}{'_masked' if masked else ''}",
    )
    def attend(Q, K, V, M, out, statistics, options):
        tops = cuda.shared.array(WARPS, float32)
        totals = cuda.shared.array(WARPS, float32)
        outputs = cuda.shared.array((WARPS, width), float32)
        q = cuda.local.array(elements, float32)
        o = cuda.local.array(elements, float32)
        t = uint32(cuda.threadIdx.x)
        lane = t % uint32(32)
        warp = t // uint32(32)
        z = uint32(cuda.blockIdx.x)
        S = uint32(K.shape[1])
        top = float32(-np.inf)
        total = float32(0.0)
        for c in range(elements):
            q[c] = Q[z, 0, lane + uint32(32 * c)] * options.scale
            o[c] = float32(0.0)
        j = warp
        while j < S:
            s = float32(0.0)
            for c in range(elements):
                s += q[c] * K[z, j, lane + uint32(32 * c)]
            for e in range(5):
                s += cuda.shfl_xor_sync(0xFFFFFFFF, s, 1 << e)
            if masked:
                s += mask_of(M, z, uint32(0), j, options)
            new = s if s > top else top
            shift = float32(0.0) if new == float32(-np.inf) else new
            shrink = math.exp(top - shift)
            weight = math.exp(s - shift)
            top = new
            total = total * shrink + weight
            for c in range(elements):
                o[c] = o[c] * shrink + weight * V[z, j, lane + uint32(32 * c)]
            j += uint32(WARPS)
        if lane == uint32(0):
            tops[warp] = top
            totals[warp] = total
        for c in range(elements):
            outputs[warp, lane + uint32(32 * c)] = o[c]
        cuda.syncthreads()
        new = float32(-np.inf)
        for w in range(WARPS):
            new = tops[w] if tops[w] > new else new
        shift = float32(0.0) if new == float32(-np.inf) else new
        total = float32(0.0)
        for w in range(WARPS):
            total += totals[w] * math.exp(tops[w] - shift)
        inverse = float32(1.0) if total == float32(0.0) else float32(1.0) / total
        d = t
        while d < uint32(width):
            value = float32(0.0)
            for w in range(WARPS):
                value += outputs[w, d] * math.exp(tops[w] - shift)
            out[z, 0, d] = value * inverse
            d += uint32(32 * WARPS)
        if t == uint32(0):
            statistics[0, z, 0] = shift
            statistics[1, z, 0] = inverse

    return attend
