r"""Attention without its matrix: softmax(τ Q Kᵀ + M) V by blocks that stay in the cache, and its gradients.

Forward, for a block of queries and one block of keys after the other (Milakov & Gimelshein 2018; Dao et al. 2022):

    S = τ Q Kᵀ + M,   m' = max(m, max_j S_j),   P = e^{S − m'},   ℓ ← e^{m − m'} ℓ + Σ_j P_j,   O ← e^{m − m'} O + P V,
      m ← m'

and in the end O / ℓ, with lse = m + log ℓ. Backward, P = e^{S − lse} is made again block by block, and with Δ = Σ Ō ⊙ O

    V̄ += Pᵀ Ō,    S̄ = P ⊙ (Ō Vᵀ − Δ),    Q̄ += τ S̄ K,    K̄ += τ S̄ᵀ Q

Memory is linear in the lengths: K and V are copied once into panels for the register tile, and one block of S is kept for
each thread. With causal attention, tiles above the diagonal are left out of all five products, the staircase being as
fine as the tile. Heads are read where they lie, by tables of offsets (see `matmul`); queries that share a key head are
taken by one thread, one after the other, which adds up their K̄ and V̄ without a race. A row that may attend to nothing gives
zeros, lse 0: its m is taken as 0, and its exponentials are 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, TABLE, VOID, given, helper, kernel, result, sums
from kernels.cpu.functions import exp, maximum
from kernels.cpu.matmul import offsets, tools
from kernels.cpu.memory import scratch
from kernels.cpu.rows import plain
from kernels.cpu.simd import BITS, HEIGHT, VECTORS, address, call, load, view
from kernels.cpu.threads import threads

Array = np.ndarray

USE = numba.types.UniTuple(INT, 7)  # the tools of `matmul`, `product`, and `forward_block` or `backward_head`
QUERIES, KEYS = 128, 512  # a block of S
PITCH = KEYS + 16  # its row length in memory: no power of two, so that rows do not fall on the same cache lines
FAR = 1 << 40  # no diagonal
FEW = 4  # queries at which K and V are read once, so that copying them does not pay


@kernel(lambda T: VOID(*[INT] * 16), callback=True)
def product(tiler, a, a_rs, a_cs, b, b_ps, b_rs, c, c_rs, m, n, k, add, columns, terms, size):
    """C (+)= A B, B in panels; a tile of rows that ends at e needs only the first columns + e columns and terms + e terms."""
    width = VECTORS * (BITS // 8) // size
    tiles = (m + HEIGHT - 1) // HEIGHT
    for j in range(0, n, width):
        panel = b + j // width * b_ps
        for p in range(tiles):
            i, e = p * m // tiles, (p + 1) * m // tiles
            w = min(width, n - j, columns + e - j)
            if w > 0:
                at_c = c + i * c_rs + j * size
                call(tiler, (min(k, terms + e), a + i * a_rs, a_rs, a_cs, panel, b_rs, at_c, c_rs, e - i, w, add))


@helper
def _product(by, tiler, a, a_rs, a_cs, b, b_ps, b_rs, c, c_rs, m, n, k, add, columns, terms, size):
    """Call `product`."""
    call(by, (tiler, a, a_rs, a_cs, b, b_ps, b_rs, c, c_rs, m, n, k, add, columns, terms, size))


@helper
def _into_panels(paneler, packer, x, rs, cs, rows, n, out, size):
    """All panels of an array of `rows` × n, one after the other."""
    width = VECTORS * (BITS // 8) // size
    call(paneler, (packer, x, rs, cs, rows, n, 0, (n + width - 1) // width, out, size))


@sums
def _scores(p, mask, mask_cs, scale):
    """p ← τ p + M, and its maximum; mask: address of the row, or 0"""
    T = p.dtype.type
    m = T(-np.inf)
    if mask == 0:
        for j in range(np.uintp(p.size)):
            p[j] *= scale
            m = maximum(m, p[j])
    elif mask_cs == 0:
        shift = view(mask, 1, T(0))[0]
        for j in range(np.uintp(p.size)):
            p[j] = p[j] * scale + shift
            m = maximum(m, p[j])
    else:
        step = np.uintp(mask_cs // p.itemsize)
        shifts = view(mask, p.size * mask_cs // p.itemsize, T(0))
        if step == np.uintp(1):
            for j in range(np.uintp(p.size)):
                p[j] = p[j] * scale + shifts[j]
                m = maximum(m, p[j])
        else:
            for j in range(np.uintp(p.size)):
                p[j] = p[j] * scale + shifts[j * step]
                m = maximum(m, p[j])
    return m


@sums
def _exponentials(p, shift):
    """p ← e^{p − shift}, and its sum"""
    total = p.dtype.type(0)
    for j in range(np.uintp(p.size)):
        p[j] = exp(p[j] - shift)
        total += p[j]
    return total


@sums
def _scale(x, factor):
    for j in range(np.uintp(x.size)):
        x[j] *= factor


@sums
def _dot(x, y):
    total = x.dtype.type(0)
    for j in range(np.uintp(x.size)):
        total += x[j] * y[j]
    return total


@sums
def _slopes(p, dp, delta, scale):
    """dp ← τ p (dp − Δ)"""
    for j in range(np.uintp(p.size)):
        dp[j] = p[j] * (dp[j] - delta) * scale


@sums
def _add_scaled(out, x, factor):
    for j in range(np.uintp(x.size)):
        out[j] += x[j] * factor


@helper
def _clear(x):
    for j in range(np.uintp(x.size)):
        x[j] = x.dtype.type(0)


def _forward_signature(T: Any) -> Any:
    table = TABLE
    return VOID(
        USE, given(T, 2), given(T, 2), given(T, 2), given(T, 2), result(T, 2), result(T, 1, "C"), table, table, table,
        table, table, INT, T, result(T, 1, "C"), INT,
    )  # fmt: skip


@kernel(lambda T: VOID(*[INT] * 20, T), callback=True)
def forward_block(
    by, tiler, q, q_rs, q_cs, panels_k, panels_v, o, o_rs, mask, m_rs, m_cs, lse_at, room, i0, m, S, D, E, causal, scale
):  # fmt: skip
    """One block of queries against all keys: rows i0 to i0 + m of the output."""
    dtype, size = view(room, 1, scale).dtype.type, view(room, 1, scale).itemsize
    one, zero = dtype(1), dtype(0)
    lse = view(lse_at, i0 + m, zero)
    width = VECTORS * (BITS // 8) // size
    pitch = PITCH * size
    peak, total = view(room + QUERIES * pitch, m, zero), view(room + QUERIES * pitch + QUERIES * size, m, zero)
    limit = min(S, i0 + m) if causal else S
    for k0 in range(0, limit, KEYS):
        n = min(KEYS, limit - k0)
        diagonal = i0 - k0 if causal else FAR
        _product(
            by, tiler, q + i0 * q_rs, q_rs, q_cs, panels_k + k0 * D * size, width * D * size, width * size, room,
            pitch, m, n, D, 0,
            diagonal, FAR, size,
        )  # fmt: skip
        for i in range(m):
            seen = max(min(n, diagonal + i + 1), 0)
            row = view(room + i * pitch, seen, zero)
            at = mask + (i0 + i) * m_rs + k0 * m_cs if mask else 0
            top = _scores(row, at, m_cs, scale)
            if k0 > 0:
                top = maximum(top, peak[i])
            shift = zero if top == -np.inf else top
            s = _exponentials(row, shift)
            if k0 > 0:
                again = exp(peak[i] - shift)
                if again != one:
                    _scale(view(o + (i0 + i) * o_rs, E, zero), again)
                s += total[i] * again
            peak[i], total[i] = top, s
            if seen < n:
                _clear(view(room + i * pitch + seen * size, min(n - seen, HEIGHT), zero))
        _product(
            by, tiler, room, pitch, size, panels_v + k0 * width * size, S * width * size, width * size, o + i0 * o_rs,
            o_rs, m, E, n,
            1 if k0 > 0 else 0, FAR, diagonal, size,
        )  # fmt: skip
    for i in range(m):
        nothing = total[i] == zero
        _scale(view(o + (i0 + i) * o_rs, E, zero), one if nothing else one / total[i])
        lse[i0 + i] = zero if nothing else peak[i] + np.log(total[i])


@kernel(_forward_signature, parallel=True)
def forward(use, q, k, v, mask, out, lse, zq, zk, zv, zo, zm, causal, scale, room, nt):
    """Threads share the blocks of queries of all heads, end to end; each copies the keys and values it comes to."""
    size = q.itemsize
    T, D = q.shape
    S, E = v.shape
    width = VECTORS * (BITS // 8) // size
    wide_s, wide_e = (S + width - 1) // width * width, (E + width - 1) // width * width
    m_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    m_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    blocks = (T + QUERIES - 1) // QUERIES
    part = room.size // nt * size
    for t in numba.prange(nt):
        panels_k = address(room) + t * part
        panels_v = panels_k + wide_s * D * size
        place = panels_v + wide_e * S * size
        packed = -1
        for unit in range(t * zo.size * blocks // nt, (t + 1) * zo.size * blocks // nt):
            z = unit // blocks
            if packed < 0 or zk[z] != zk[packed] or zv[z] != zv[packed]:
                _into_panels(use[2], use[1], address(k) + zk[z], k.strides[1], k.strides[0], D, S, panels_k, size)
                _into_panels(use[2], use[1], address(v) + zv[z], v.strides[0], v.strides[1], S, E, panels_v, size)
                packed = z
            i0 = (unit - z * blocks) * QUERIES
            at_mask = address(mask) + zm[z] if mask.size else 0
            job = (
                use[5], use[0], address(q) + zq[z], q.strides[0], q.strides[1], panels_k, panels_v, address(out) + zo[z],
                out.strides[0], at_mask, m_rs, m_cs, address(lse) + z * T * size, place, i0, min(QUERIES, T - i0), S,
                D, E, causal,
                scale,
            )  # fmt: skip
            call(use[6], job)


@kernel(_forward_signature, parallel=True)
def decode(use, q, k, v, mask, out, lse, zq, zk, zv, zo, zm, causal, scale, room, nt):
    """A few queries a head, with rows of q, k, v contiguous: each key and value is read once, nothing is copied."""
    T, D = q.shape
    S, E = v.shape
    m_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    m_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    for t in numba.prange(nt):
        zero = q.dtype.type(0)
        p = room[t * S : t * S + S]
        for z in range(t * zo.size // nt, (t + 1) * zo.size // nt):
            for i in range(T):
                n = min(S, i + 1) if causal else S
                query = view(address(q) + zq[z] + i * q.strides[0], D, zero)
                o = view(address(out) + zo[z] + i * out.strides[0], E, zero)
                for j in range(n):
                    p[j] = _dot(query, view(address(k) + zk[z] + j * k.strides[0], D, zero))
                top = _scores(p[:n], address(mask) + zm[z] + i * m_rs if mask.size else 0, m_cs, scale)
                shift = zero if top == -np.inf else top
                total = _exponentials(p[:n], shift)
                _clear(o)
                for j in range(n):
                    _add_scaled(o, view(address(v) + zv[z] + j * v.strides[0], E, zero), p[j])
                nothing = total == zero
                _scale(o, zero + 1 if nothing else 1 / total)
                lse[z * T + i] = zero if nothing else top + np.log(total)


def _backward_signature(T: Any) -> Any:
    grads = [result(T, 2)] * 3
    return VOID(
        USE, *[given(T, 2)] * 6, given(T, 1), *grads, *[TABLE] * 11, INT, T, result(T, 1, "C"), INT
    )  # fmt: skip


@kernel(lambda T: VOID(*[INT] * 32, T), callback=True)
def backward_head(
    by, tiler, paneler, packer, q, q_rs, q_cs, out, o_rs, o_cs, do, do_rs, do_cs, mask, m_rs, m_cs, lse_at, dq, dq_rs,
    dk, dk_rs, dv, dv_rs,
    panels_kt, panels_vt, panels_k, room, T, S, D, E, causal, scale,
):  # fmt: skip
    """One query head: its Q̄, and what it adds to the K̄ and V̄ of its key head."""
    zero, size = view(room, 1, scale).dtype.type(0), view(room, 1, scale).itemsize
    lse = view(lse_at, T, zero)
    width = VECTORS * (BITS // 8) // size
    pitch, line = PITCH * size, width * size
    wide_d, wide_e = (D + width - 1) // width * width, (E + width - 1) // width * width
    p, ds = room, room + QUERIES * pitch
    panels_q = ds + QUERIES * pitch
    panels_do = panels_q + QUERIES * wide_d * size
    delta = view(panels_do + QUERIES * wide_e * size, QUERIES, zero)
    for i0 in range(0, T, QUERIES):
        m = min(QUERIES, T - i0)
        _into_panels(paneler, packer, q + i0 * q_rs, q_rs, q_cs, m, D, panels_q, size)
        _into_panels(paneler, packer, do + i0 * do_rs, do_rs, do_cs, m, E, panels_do, size)
        for i in range(m):
            x, y = out + (i0 + i) * o_rs, do + (i0 + i) * do_rs
            delta[i] = zero
            if o_cs == size and do_cs == size:
                delta[i] = _dot(view(x, E, zero), view(y, E, zero))
            else:
                for j in range(E):
                    delta[i] += load(x + j * o_cs, zero) * load(y + j * do_cs, zero)
        limit = min(S, i0 + m) if causal else S
        for k0 in range(0, limit, KEYS):
            n = min(KEYS, limit - k0)
            diagonal = i0 - k0 if causal else FAR
            _product(
                by, tiler, q + i0 * q_rs, q_rs, q_cs, panels_kt + k0 * D * size, line * D, line, p, pitch, m, n, D, 0,
                diagonal, FAR,
                size,
            )  # fmt: skip
            _product(
                by, tiler, do + i0 * do_rs, do_rs, do_cs, panels_vt + k0 * E * size, line * E, line, ds, pitch, m, n,
                E, 0, diagonal,
                FAR, size,
            )  # fmt: skip
            for i in range(m):
                seen = max(min(n, diagonal + i + 1), 0)
                row, slope = view(p + i * pitch, seen, zero), view(ds + i * pitch, seen, zero)
                _scores(row, mask + (i0 + i) * m_rs + k0 * m_cs if mask else 0, m_cs, scale)
                _exponentials(row, lse[i0 + i])
                _slopes(row, slope, delta[i], scale)
                if seen < n:
                    _clear(view(p + i * pitch + seen * size, min(n - seen, HEIGHT), zero))
                    _clear(view(ds + i * pitch + seen * size, min(n - seen, HEIGHT), zero))
            _product(
                by, tiler, ds, pitch, size, panels_k + k0 * line, S * line, line, dq + i0 * dq_rs, dq_rs, m, D, n,
                1 if k0 else 0,
                FAR, diagonal, size,
            )  # fmt: skip
            tiles = (n + HEIGHT - 1) // HEIGHT
            for x in range(tiles):  # of keys: queries before them did not see them
                j, h = x * n // tiles, (x + 1) * n // tiles - x * n // tiles
                r = max(0, k0 + j - i0) if causal else 0
                to_v, to_k = dv + (k0 + j) * dv_rs, dk + (k0 + j) * dk_rs
                at_p, at_ds = p + r * pitch + j * size, ds + r * pitch + j * size
                _product(
                    by,
                    tiler,
                    at_p,
                    size,
                    pitch,
                    panels_do + r * line,
                    m * line,
                    line,
                    to_v,
                    dv_rs,
                    h,
                    E,
                    m - r,
                    1,
                    FAR,
                    FAR,
                    size,
                )
                _product(
                    by,
                    tiler,
                    at_ds,
                    size,
                    pitch,
                    panels_q + r * line,
                    m * line,
                    line,
                    to_k,
                    dk_rs,
                    h,
                    D,
                    m - r,
                    1,
                    FAR,
                    FAR,
                    size,
                )


@kernel(_backward_signature, parallel=True)
def backward(
    use, q, k, v, mask, out, dout, lse, dq, dk, dv, zq, zk, zv, zm, zo, zdo, zdq, zdk, zdv, order, starts, causal,
    scale, room, nt,
):  # fmt: skip
    """Threads share the key heads; `order`: the query heads, those of one key head together; `starts`: where each begins."""
    size = q.itemsize
    T, D = q.shape
    S, E = v.shape
    width = VECTORS * (BITS // 8) // size
    wide_s, wide_d = (S + width - 1) // width * width, (D + width - 1) // width * width
    m_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    m_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    groups = starts.size - 1
    part = room.size // nt * size
    for t in numba.prange(nt):
        panels_kt = address(room) + t * part
        panels_vt = panels_kt + wide_s * D * size
        panels_k = panels_vt + wide_s * E * size
        place = panels_k + wide_d * S * size
        for g in range(t * groups // nt, (t + 1) * groups // nt):
            first = order[starts[g]]
            at_k, at_v = address(k) + zk[first], address(v) + zv[first]
            _into_panels(use[2], use[1], at_k, k.strides[1], k.strides[0], D, S, panels_kt, size)
            _into_panels(use[2], use[1], at_v, v.strides[1], v.strides[0], E, S, panels_vt, size)
            _into_panels(use[2], use[1], at_k, k.strides[0], k.strides[1], S, D, panels_k, size)
            for j in range(S):
                _clear(view(address(dk) + zdk[first] + j * dk.strides[0], D, q.dtype.type(0)))
                _clear(view(address(dv) + zdv[first] + j * dv.strides[0], E, q.dtype.type(0)))
            for z in order[starts[g] : starts[g + 1]]:
                at_mask = address(mask) + zm[z] if mask.size else 0
                job = (
                    use[5], use[0], use[2], use[1], address(q) + zq[z], q.strides[0], q.strides[1], address(out) + zo[z],
                    out.strides[0], out.strides[1], address(dout) + zdo[z], dout.strides[0], dout.strides[1], at_mask,
                    m_rs, m_cs,
                    address(lse) + z * T * size, address(dq) + zdq[z], dq.strides[0], address(dk) + zdk[z], dk.strides[0],
                    address(dv) + zdv[z], dv.strides[0], panels_kt, panels_vt, panels_k, place, T, S, D, E, causal, scale,
                )  # fmt: skip
                call(use[6], job)


# ---------------------------------------------------------------------------------------------------------------------
# The doors
# ---------------------------------------------------------------------------------------------------------------------

NO_MASK = {letter: np.zeros((0, 0), letter) for letter in "fd"}


def _matrix(x: Array) -> Array:
    """The first matrix of a batch"""
    return x[(0,) * (x.ndim - 2)] if x.ndim > 2 else x


def _table(lead: tuple[int, ...], x: Array) -> Array:
    return offsets(lead, x.shape[:-2], x.strides[:-2])


def _lead(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[int, ...] | None:
    """The leading dimensions, or None where only the reference will do."""
    letter = q.dtype.char
    arrays = (q, k, v) if mask is None else (q, k, v, mask)
    if letter not in NO_MASK or any(x.dtype.char != letter or x.ndim < 2 or x.size == 0 for x in arrays):
        return None
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        return None
    lead = q.shape[:-2] if q.shape[:-2] == k.shape[:-2] else np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    if mask is not None:
        for size, wanted in ((mask.shape[-2], q.shape[-2]), (mask.shape[-1], k.shape[-2])):
            if size not in (1, wanted):
                return None
        if np.broadcast_shapes(lead, mask.shape[:-2]) != lead:
            return None
        if any(s < 0 for s in mask.strides[-2:]):
            return None
    return lead


def _like(x: Array, lead: tuple[int, ...], width: int) -> Array:
    """An empty (lead…, rows, width) with the dimensions in the order in which x has them in memory: rows contiguous."""
    shape = (*lead, x.shape[-2], width)
    if x.shape == shape and x.strides[-1] == x.itemsize and 0 not in x.strides:
        return np.empty_like(x)
    return np.empty(shape, x.dtype)


def attention(
    q: Array, k: Array, v: Array, *, causal: bool = False, mask: Array | None = None, scale: float | None = None
) -> tuple[Array, Array]:
    """O = softmax(τ Q Kᵀ + M) V and lse = log Σ_j e^{S_ij}.     (…, T, D), (…, S, D), (…, S, E) → (…, T, E), (…, T, 1)"""
    lead = _lead(q, k, v, mask)
    if lead is None:
        return reference.attention(q, k, v, causal=causal, mask=mask, scale=scale)
    letter, (rows, d), (keys, e) = q.dtype.char, q.shape[-2:], v.shape[-2:]
    out, lse = _like(q, lead, e), np.empty((*lead, rows, 1), letter)
    mask = NO_MASK[letter] if mask is None else mask
    size = q.itemsize
    few = rows <= FEW and q.strides[-1] == k.strides[-1] == v.strides[-1] == size and mask.strides[-1] in (0, size)
    heads = lse.size // rows
    nt = min(threads() if heads * rows * keys * (d + e) > 1 << 17 else 1, heads * -(-rows // QUERIES))
    width = VECTORS * (BITS // 8) // size
    up = lambda n: -(-n // width) * width  # noqa: E731
    part = keys if few else up(keys) * d + up(e) * keys + QUERIES * (PITCH + 2)
    nt = min(nt, heads) if few else nt
    part = (part + 15) // 16 * 16
    (decode if few else forward)[letter](
        (*tools[letter], product["f"], 0 if few else forward_block[letter]), _matrix(q), _matrix(k), _matrix(v),
        _matrix(mask), _matrix(out), lse.reshape(-1),
        _table(lead, q), _table(lead, k), _table(lead, v), _table(lead, out), _table(lead, mask), causal,
        d**-0.5 if scale is None else scale, scratch(letter, nt * part)[: nt * part], nt,
    )  # fmt: skip
    return out, lse


@lru_cache(maxsize=256)
def _groups(lead: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The query heads, those of one key head together, and where the heads of each begin."""
    strides = tuple(np.cumprod((1, *shape[:0:-1]))[::-1].tolist()) if shape else ()
    head = offsets(lead, shape, strides)
    order = np.argsort(head, kind="stable")
    starts = np.flatnonzero(np.concatenate(([True], np.diff(head[order]) > 0)))
    return order.astype(np.intp), np.append(starts, head.size).astype(np.intp)


def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    mask_grad: bool = False,
) -> tuple[Array, Array, Array, Array | None]:
    """Q̄, K̄, V̄ and, if asked for, M̄. Gradients of keys that several heads share are summed, to the shape of the keys."""
    lead = None if mask_grad else _lead(q, k, v, mask)
    letter = q.dtype.char
    if lead is None or not dout.dtype.char == out.dtype.char == lse.dtype.char == letter:
        return reference.attention_backward(dout, q, k, v, out, lse, causal=causal, mask=mask, scale=scale,
        mask_grad=mask_grad)
    (rows, d), (keys, e) = q.shape[-2:], v.shape[-2:]
    dq, dk, dv = _like(q, lead, d), _like(k, k.shape[:-2], d), _like(v, v.shape[:-2], e)
    order, starts = _groups(lead, k.shape[:-2])
    mask = NO_MASK[letter] if mask is None else mask
    groups, heads = len(starts) - 1, len(order)
    nt = min(threads() if heads * rows * keys * (d + e) > 1 << 16 else 1, groups)
    width = VECTORS * (BITS // 8) // q.itemsize
    up = lambda n: -(-n // width) * width  # noqa: E731
    part = up(keys) * (d + e) + up(d) * keys + 2 * QUERIES * PITCH + QUERIES * (up(d) + up(e) + 1)
    part = (part + 15) // 16 * 16
    backward[letter](
        (*tools[letter], product["f"], backward_head[letter]), *map(_matrix, (q, k, v, mask, out, dout)),
        plain(lse).reshape(-1),
        *map(_matrix, (dq, dk, dv)), *[_table(lead, x) for x in (q, k, v, mask, out, dout, dq, dk, dv)], order, starts,
        causal,
        d**-0.5 if scale is None else scale, scratch(letter, nt * part)[: nt * part], nt,
    )  # fmt: skip
    return dq, dk, dv, None
