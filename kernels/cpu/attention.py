r"""Attention without its matrix: softmax(τ Q Kᵀ + M) V by blocks that stay in the cache, and its gradients.

Forward, for a block of queries and one block of keys after the other (Milakov & Gimelshein 2018; Dao et al. 2022):

    S = τ Q Kᵀ + M,   m' = max(m, max_j S_j),   P = e^{S − m'},   ℓ ← e^{m − m'} ℓ + Σ_j P_j,   O ← e^{m − m'} O + P V,
      m ← m'

and in the end O / ℓ, with lse = m + log ℓ. Backward, P = e^{S − lse} is made again block by block, and with Δ = Σ Ō ⊙ O

    V̄ += Pᵀ Ō,    S̄ = P ⊙ (Ō Vᵀ − Δ),    Q̄ += τ S̄ K,    K̄ += τ S̄ᵀ Q

Dropout multiplies P by Z, 0 or 1/(1 − p), where it meets V (ℓ is of P itself): O += (P ⊙ Z) V, V̄ += (P ⊙ Z)ᵀ Ō,
S̄ = P ⊙ (Z ⊙ Ō Vᵀ − Δ). Z is made again from its counters (see `reference.attention_dropout`), never kept.

Memory is linear in the lengths: what the register tile needs as panels is copied into them, where it does not lie like that
already, and one block of S is kept for each thread. With causal attention, tiles above the diagonal are left out of all
products, the staircase being as fine as the tile. Heads are read and written where they lie, by tables of offsets (see
`matmul`). Rows are worked on in whole groups of vectors: past what a query may see, S is −∞, and P 0.

Threads share the work in equal parts, cut between blocks of queries forward, between keys backward, also within a head. A
thread that begins amid the keys of a head adds up its Q̄ apart; these are added in the end, in the order of the threads. Query
heads that share a key head are taken one after the other, so that K̄ and V̄ are added up without a race. A row that may attend
to nothing gives zeros, lse 0: its m is taken as 0, and its exponentials are 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, VOID, given, helper, kernel, result, sums
from kernels.cpu.elementwise import philox
from kernels.cpu.functions import exp, maximum
from kernels.cpu.matmul import into_panels, offsets, tools
from kernels.cpu.memory import scratch
from kernels.cpu.rows import plain
from kernels.cpu.simd import BITS, HEIGHT, VECTORS, address, call, load, view
from kernels.cpu.threads import threads

Array = np.ndarray

QUERIES, KEYS = 128, 512  # a block of S
PITCH = KEYS + 16  # its row length in memory: no power of two, so that rows do not fall on the same cache lines
FAR = 1 << 40  # no diagonal
FEW = 4  # queries at which K and V are read once, so that copying them does not pay
LINE = VECTORS * (BITS // 8)  # bytes of a row of a panel
GROUP = 4  # vectors that a loop over a row takes at a time

MATRIX = numba.types.UniTuple(INT, 3)  # address, bytes from row to row, from column to column; of panels: to panel, to row
TOOLS = numba.types.UniTuple(INT, 5)  # those of `matmul`
LENGTHS = numba.types.UniTuple(INT, 4)  # T, S, D, E
U64 = numba.uint64
NOISE = numba.types.UniTuple(U64, 4)  # of dropout: threshold (0: none), key, key, stream

# ---------------------------------------------------------------------------------------------------------------------
# Matrices in memory
# ---------------------------------------------------------------------------------------------------------------------


@helper
def itemsize(like):
    return view(0, 1, like).itemsize


@helper
def number(x, like):
    """x in the type of `like`"""
    return view(0, 1, like).dtype.type(x)


@helper
def matrix(at, to_row, to_column):
    return numba.intp(at), numba.intp(to_row), numba.intp(to_column)


@helper
def head(x, offset):
    """The matrix that lies so many bytes after the first one of an array"""
    return matrix(address(x) + offset, x.strides[0], x.strides[1])


@helper
def below(x, i):
    """The matrix from row i on"""
    return matrix(x[0] + i * x[1], x[1], x[2])


@helper
def panels(use, x, rows, columns, room, zero):
    """X as the right factor of `product`: where it lies, if in whole vectors at a good distance, or copied to `room`."""
    size = itemsize(zero)
    if x[2] == size and columns * size % (BITS // 8) == 0 and x[1] % 4096 != 0:
        return matrix(x[0], LINE, x[1])
    width = LINE // size
    into_panels(use, x[0], x[1], x[2], rows, columns, 0, (columns + width - 1) // width, room, size)
    return matrix(room, rows * LINE, LINE)


@helper
def panels_below(x, i):
    """The panels from row i on"""
    return matrix(x[0] + i * x[2], x[1], x[2])


@helper
def panels_beyond(x, j, zero):
    """The panels from column j on, a multiple of their width"""
    return matrix(x[0] + j * itemsize(zero) // LINE * x[1], x[1], x[2])


@helper
def product(tiler, a, b, c, m, n, k, add, columns, terms, zero):
    """C (+)= A B, B in panels; a tile of rows that ends at e needs only the first columns + e columns and terms + e terms."""
    size = itemsize(zero)
    width = LINE // size
    tiles = (m + HEIGHT - 1) // HEIGHT
    for j in range(0, n, width):
        panel = b[0] + j // width * b[1]
        for t in range(tiles):
            i, e = t * m // tiles, (t + 1) * m // tiles
            w = min(width, n - j, columns + e - j)
            if w > 0:
                at_c = c[0] + i * c[1] + j * size
                call(tiler, (min(k, terms + e), a[0] + i * a[1], a[1], a[2], panel, b[2], at_c, c[1], e - i, w, add))


# ---------------------------------------------------------------------------------------------------------------------
# Rows of S
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _largest(s, scale):
    """max_j τ s_j"""
    top = s.dtype.type(-np.inf)
    for j in range(np.uintp(s.size)):
        top = maximum(top, s[j] * scale)
    return top


@sums
def _exp(x):
    """eˣ; 0 below the least normal number: arithmetic on subnormal ones is slow"""
    low = number(-87 if itemsize(x) == 4 else -708, x)
    y = exp(low if x < low else x)
    return number(0, x) if x < low else y


@sums
def _exponentials(s, scale, shift):
    """p = e^{τ s − shift} in the place of s, and its sum"""
    total = s.dtype.type(0)
    for j in range(np.uintp(s.size)):
        s[j] = _exp(s[j] * scale - shift)
        total += s[j]
    return total


@sums
def _slopes(s, dp, scale, lse, delta, factor):
    """p = e^{τ s − lse} in the place of s, and factor · s̄ = factor · p (p̄ − Δ) in that of p̄"""
    for j in range(np.uintp(s.size)):
        p = _exp(s[j] * scale - lse)
        dp[j] = p * (dp[j] - delta) * factor
        s[j] = p


@sums
def _slopes_kept(s, dp, z, scale, lse, delta, factor):
    """The same with dropout: p z in the place of s, and factor · p (z p̄ − Δ) in that of p̄"""
    for j in range(np.uintp(s.size)):
        p = _exp(s[j] * scale - lse)
        dp[j] = p * (z[j] * dp[j] - delta) * factor
        s[j] = p * z[j]


@sums
def _multiply(x, y):
    for j in range(np.uintp(x.size)):
        x[j] *= y[j]


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
def _add(out, x):
    for j in range(np.uintp(x.size)):
        out[j] += x[j]


@sums
def _add_scaled(out, x, factor):
    for j in range(np.uintp(x.size)):
        out[j] += x[j] * factor


@helper
def _fill(x, value):
    for j in range(np.uintp(x.size)):
        x[j] = value


@sums
def _masked(s, scale, mask, to_column):
    """s ← τ s + M; mask: address of the row of M, or 0"""
    zero = s.dtype.type(0)
    step = np.uintp(to_column // s.itemsize)
    if mask == 0:
        _scale(s, scale)
    elif step == np.uintp(0):
        shift = view(mask, 1, zero)[0]
        for j in range(np.uintp(s.size)):
            s[j] = s[j] * scale + shift
    elif step == np.uintp(1):
        shifts = view(mask, s.size, zero)
        for j in range(np.uintp(s.size)):
            s[j] = s[j] * scale + shifts[j]
    else:
        shifts = view(mask, s.size * to_column // s.itemsize, zero)
        for j in range(np.uintp(s.size)):
            s[j] = s[j] * scale + shifts[j * step]


@helper
def _row(at, seen, n, mask, to_column, scale, zero):
    """(a row of S, the factor that its scores still lack): M added, −∞ past what is seen, up to whole groups of vectors.

    The tiles of `product` reach up to HEIGHT columns past what a query sees: they must find zeros there.
    """
    one, group = number(1, zero), GROUP * (BITS // 8) // itemsize(zero)
    seen = max(min(n, seen), 0)
    whole = (min(n, seen + HEIGHT) + group - 1) // group * group
    if mask != 0 or not scale > zero:
        _masked(view(at, seen, zero), scale, mask, to_column)
        scale = one
    _fill(view(at + seen * itemsize(zero), whole - seen, zero), -one / zero)
    return view(at, whole, zero), scale


@sums
def _keep(z, n, counter, noise, kept):
    """Z of four rows PITCH apart: `kept` with probability 1 − p, else 0; word r of a counter decides on row r."""
    zero = z.dtype.type(0)
    z0, z1, z2, z3 = z[:n], z[PITCH:], z[2 * PITCH :], z[3 * PITCH :]
    for j in range(np.uintp(n)):
        r0, r1, r2, r3 = philox(counter + j, noise[3], noise[1], noise[2])
        z0[j] = kept if r0 >= noise[0] else zero
        z1[j] = kept if r1 >= noise[0] else zero
        z2[j] = kept if r2 >= noise[0] else zero
        z3[j] = kept if r3 >= noise[0] else zero


@helper
def _noise_row(room, i, z, i0, j0, n, lengths, noise, kept, zero):
    """Z of row i0 + i of head z, from column j0 on; made for four rows at a time."""
    group = GROUP * (BITS // 8) // itemsize(zero)
    whole = (n + group - 1) // group * group
    if i % 4 == 0:
        quads = (lengths[0] + 3) // 4
        counter = np.uintp((z * quads + (i0 + i) // 4) * lengths[1] + j0)
        _keep(view(room, 4 * PITCH, zero), whole, counter, noise, kept)
    return view(room + i % 4 * PITCH * itemsize(zero), whole, zero)


# ---------------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------------


@kernel(lambda T: VOID(INT, *[MATRIX] * 5, *[INT] * 5, LENGTHS, INT, T, NOISE, T), callback=True)
def forward_block(tiler, q, kt, v, o, mask, lse_at, z, i0, m, room, lengths, causal, scale, noise, kept):
    """Queries i0 to i0 + m of head z: their rows of O and lse."""
    zero, one = number(0, scale), number(1, scale)
    _, S, D, E = lengths
    size = itemsize(zero)
    lse, q, o = view(lse_at + i0 * size, m, zero), below(q, i0), below(o, i0)
    p = matrix(room, PITCH * size, size)
    peak, total = view(room + QUERIES * p[1], m, zero), view(room + QUERIES * (p[1] + size), m, zero)
    at_noise = room + QUERIES * (p[1] + 2 * size)
    limit = min(S, i0 + m) if causal else S
    for k0 in range(0, limit, KEYS):
        n = min(KEYS, limit - k0)
        diagonal = i0 - k0 if causal else FAR
        product(tiler, q, panels_beyond(kt, k0, zero), p, m, n, D, 0, diagonal, FAR, zero)  # S = Q Kᵀ     (m, n)
        for i in range(m):
            at_mask = mask[0] + (i0 + i) * mask[1] + k0 * mask[2] if mask[0] else 0
            s, factor = _row(p[0] + i * p[1], diagonal + i + 1, n, at_mask, mask[2], scale, zero)
            top = _largest(s, factor)
            if k0 > 0:
                top = maximum(top, peak[i])
            shift = zero if top == -np.inf else top
            ell = _exponentials(s, factor, shift)
            if k0 > 0:
                again = exp(peak[i] - shift)
                if again != one:
                    _scale(view(o[0] + i * o[1], E, zero), again)
                ell += total[i] * again
            peak[i], total[i] = top, ell
            if noise[0]:
                _multiply(s, _noise_row(at_noise, i, z, i0, k0, n, lengths, noise, kept, zero))
        product(tiler, p, panels_below(v, k0), o, m, E, n, 1 if k0 > 0 else 0, FAR, diagonal, zero)  # O += P V     (m, E)
    for i in range(m):
        nothing = total[i] == zero
        _scale(view(o[0] + i * o[1], E, zero), one if nothing else one / total[i])
        lse[i] = zero if nothing else peak[i] + np.log(total[i])


TABLES = numba.types.Array(INT, 2, "C", readonly=True)


def _forward_signature(T: Any) -> Any:
    outputs = result(T, 2), result(T, 1, "C")
    return VOID(TOOLS, INT, *[given(T, 2)] * 4, *outputs, TABLES, TABLES, INT, T, NOISE, T, result(T, 1, "C"))


@kernel(_forward_signature, parallel=True)
def forward(use, block, q, k, v, mask, out, lse, heads, cuts, causal, scale, noise, kept, room):
    """Thread t takes the queries of all heads, end to end, from (head, query) cuts[t] to cuts[t + 1]."""
    nt = cuts.shape[0] - 1
    part = room.size // nt * room.itemsize
    for t in numba.prange(nt):
        zero = number(0, scale)
        size = itemsize(zero)
        width = LINE // size
        T, D = q.shape
        S, E = v.shape
        mask_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
        mask_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
        at_kt = address(room) + t * part
        at_v = at_kt + (S + width - 1) // width * width * D * size
        place = at_v + (E + width - 1) // width * width * S * size
        kt, values, packed = matrix(0, 0, 0), matrix(0, 0, 0), -1
        z, i0 = cuts[t, 0], cuts[t, 1]
        while z < cuts[t + 1, 0] or (z == cuts[t + 1, 0] and i0 < cuts[t + 1, 1]):
            if packed < 0 or heads[1, z] != heads[1, packed] or heads[2, z] != heads[2, packed]:
                keys = head(k, heads[1, z])
                kt = panels(use, matrix(keys[0], keys[2], keys[1]), D, S, at_kt, zero)  # of Kᵀ     (D, S)
                values = panels(use, head(v, heads[2, z]), S, E, at_v, zero)
                packed = z
            masks = matrix(address(mask) + heads[3, z] if mask.size else 0, mask_rs, mask_cs)
            end = T if z < cuts[t + 1, 0] else cuts[t + 1, 1]
            for i in range(i0, end, QUERIES):
                job = (use[0], head(q, heads[0, z]), kt, values, head(out, heads[4, z]), masks)
                numbers = (address(lse) + z * T * size, z, i, min(QUERIES, end - i), place, (T, S, D, E), causal)
                call(block, (*job, *numbers, scale, noise, kept))
            z, i0 = z + 1, 0


def _decode_signature(T: Any) -> Any:
    return VOID(*[given(T, 2)] * 4, result(T, 2), result(T, 1, "C"), TABLES, INT, T, result(T, 1, "C"), INT)


@kernel(_decode_signature, parallel=True)
def decode(q, k, v, mask, out, lse, heads, causal, scale, room, nt):
    """A few queries a head, with rows of q, k, v contiguous: each key and value is read once, nothing is copied."""
    T, D = q.shape
    S, E = v.shape
    mask_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    mask_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    for t in numba.prange(nt):
        zero, one = number(0, scale), number(1, scale)
        p = room[t * S : t * S + S]
        for z in range(t * heads.shape[1] // nt, (t + 1) * heads.shape[1] // nt):
            keys, values = head(k, heads[1, z]), head(v, heads[2, z])
            for i in range(T):
                n = min(S, i + 1) if causal else S
                query = view(address(q) + heads[0, z] + i * q.strides[0], D, zero)
                o = view(address(out) + heads[4, z] + i * out.strides[0], E, zero)
                for j in range(n):
                    p[j] = _dot(query, view(keys[0] + j * keys[1], D, zero))
                _masked(p[:n], scale, address(mask) + heads[3, z] + i * mask_rs if mask.size else 0, mask_cs)
                top = _largest(p[:n], one)
                shift = zero if top == -np.inf else top
                total = _exponentials(p[:n], one, shift)
                _fill(o, zero)
                for j in range(n):
                    _add_scaled(o, view(values[0] + j * values[1], E, zero), p[j])
                nothing = total == zero
                _scale(o, one if nothing else one / total)
                lse[z * T + i] = zero if nothing else top + np.log(total)


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _row_dots(x, y, i0, m, n, delta, zero):
    """Δ_i = Σ_j x_ij y_ij for rows i0 to i0 + m"""
    size = itemsize(zero)
    for i in range(m):
        at_x, at_y = x[0] + (i0 + i) * x[1], y[0] + (i0 + i) * y[1]
        if x[2] == size and y[2] == size:
            delta[i] = _dot(view(at_x, n, zero), view(at_y, n, zero))
        else:
            delta[i] = zero
            for j in range(n):
                delta[i] += load(at_x + j * x[2], zero) * load(at_y + j * y[2], zero)


@kernel(lambda T: VOID(TOOLS, *[MATRIX] * 10, *[INT] * 5, LENGTHS, INT, T, NOISE, T), callback=True)
def backward_head(
    use, q, out, dout, mask, dq, kt, vt, k, dk, dv, lse_at, z, j0, keys, room, lengths, causal, scale, noise, kept
):  # fmt: skip
    """Query head z and `keys` of its keys, from j0 on, where kt, vt, k, dk, dv and the mask begin: what it adds to Q̄, K̄, V̄."""
    zero = number(0, scale)
    T, S, D, E = lengths
    size = itemsize(zero)
    wide_d, wide_e = (D * size + LINE - 1) // LINE * LINE, (E * size + LINE - 1) // LINE * LINE
    lse, tiler = view(lse_at, T, zero), use[0]
    p = matrix(room, PITCH * size, size)
    ds = matrix(p[0] + QUERIES * p[1], p[1], size)
    at_q = ds[0] + QUERIES * p[1]
    at_do = at_q + QUERIES * wide_d
    delta = view(at_do + QUERIES * wide_e, QUERIES, zero)
    at_noise = at_do + QUERIES * (wide_e + size)
    for i0 in range(0, T, QUERIES):
        m = min(QUERIES, T - i0)
        limit = min(keys, i0 + m - j0) if causal else keys
        if limit <= 0:
            continue
        q_i, do_i, dq_i = below(q, i0), below(dout, i0), below(dq, i0)
        q_panels, do_panels = panels(use, q_i, m, D, at_q, zero), panels(use, do_i, m, E, at_do, zero)
        _row_dots(out, dout, i0, m, E, delta, zero)  # Δ
        for k0 in range(0, limit, KEYS):
            n = min(KEYS, limit - k0)
            diagonal = i0 - j0 - k0 if causal else FAR
            product(tiler, q_i, panels_beyond(kt, k0, zero), p, m, n, D, 0, diagonal, FAR, zero)  # S = Q Kᵀ     (m, n)
            product(tiler, do_i, panels_beyond(vt, k0, zero), ds, m, n, E, 0, diagonal, FAR, zero)  # P̄ = Ō Vᵀ     (m, n)
            for i in range(m):
                at_mask = mask[0] + (i0 + i) * mask[1] + k0 * mask[2] if mask[0] else 0
                s, factor = _row(p[0] + i * p[1], diagonal + i + 1, n, at_mask, mask[2], scale, zero)
                seen = max(min(n, diagonal + i + 1), 0)
                dp = view(ds[0] + i * p[1], s.size, zero)
                _fill(dp[seen:], zero)
                if noise[0]:
                    kept_row = _noise_row(at_noise, i, z, i0, j0 + k0, n, lengths, noise, kept, zero)
                    _slopes_kept(s, dp, kept_row, factor, lse[i0 + i], delta[i], scale)
                else:
                    _slopes(s, dp, factor, lse[i0 + i], delta[i], scale)
            product(tiler, ds, panels_below(k, k0), dq_i, m, D, n, 1 if k0 else 0, FAR, diagonal, zero)  # Q̄ += τ S̄ K     (m, D)
            tiles = (n + HEIGHT - 1) // HEIGHT
            for t in range(tiles):  # of keys; queries before row r do not see them
                j, h = t * n // tiles, (t + 1) * n // tiles - t * n // tiles
                r = max(0, j0 + k0 + j - i0) if causal else 0
                p_t = matrix(p[0] + r * p[1] + j * size, size, p[1])  # Pᵀ     (h, m − r)
                ds_t = matrix(ds[0] + r * p[1] + j * size, size, p[1])
                to_v, to_k = below(dv, k0 + j), below(dk, k0 + j)
                product(tiler, p_t, panels_below(do_panels, r), to_v, h, E, m - r, 1, FAR, FAR, zero)  # V̄ += Pᵀ Ō   (h, E)
                product(tiler, ds_t, panels_below(q_panels, r), to_k, h, D, m - r, 1, FAR, FAR, zero)  # K̄ += τ S̄ᵀ Q


def _backward_signature(T: Any) -> Any:
    table = numba.types.Array(INT, 1, "C", readonly=True)
    inputs, grads = [given(T, 2)] * 6, [result(T, 2)] * 3
    return VOID(
        TOOLS, INT, *inputs, given(T, 1), *grads, TABLES, table, table, TABLES, INT, T, NOISE, T, result(T, 1, "C"), INT
    )  # fmt: skip


@kernel(_backward_signature, parallel=True)
def backward(
    use, block, q, k, v, mask, out, dout, lse, dq, dk, dv, heads, order, starts, cuts, causal, scale, noise, kept, room, longest
):  # fmt: skip
    """Thread t takes the keys of all key heads, end to end, from (key head, key) cuts[t] to cuts[t + 1].

    `order`: the query heads, those of one key head together; `starts`: where each begins; `longest`: most keys of a thread in
    one head.
    """
    nt = cuts.shape[0] - 1
    part = room.size // nt * room.itemsize
    T, D = q.shape
    S, E = v.shape
    for t in numba.prange(nt):
        zero = number(0, scale)
        size = itemsize(zero)
        width = LINE // size
        wide_s, wide_d = (longest + width - 1) // width * width, (D + width - 1) // width * width
        mask_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
        mask_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
        at_apart = address(room) + t * part  # Q̄ of a head that another thread began
        at_kt = at_apart + (part - _room(longest, D, E, size) * size)
        at_vt = at_kt + wide_s * D * size
        at_k = at_vt + wide_s * E * size
        place = at_k + wide_d * longest * size
        g, j0 = cuts[t, 0], cuts[t, 1]
        while g < cuts[t + 1, 0] or (g == cuts[t + 1, 0] and j0 < cuts[t + 1, 1]):
            end = S if g < cuts[t + 1, 0] else cuts[t + 1, 1]
            first = order[starts[g]]
            keys, values = below(head(k, heads[1, first]), j0), below(head(v, heads[2, first]), j0)
            kt = panels(use, matrix(keys[0], keys[2], keys[1]), D, end - j0, at_kt, zero)  # of Kᵀ     (D, end − j0)
            vt = panels(use, matrix(values[0], values[2], values[1]), E, end - j0, at_vt, zero)
            k_panels = panels(use, keys, end - j0, D, at_k, zero)
            to_k, to_v = head(dk, heads[7, first]), head(dv, heads[8, first])
            for j in range(j0, end):
                _fill(view(to_k[0] + j * to_k[1], D, zero), zero)
                _fill(view(to_v[0] + j * to_v[1], E, zero), zero)
            for x in range(starts[g], starts[g + 1]):
                z = order[x]
                to_q = head(dq, heads[6, z])
                if j0 > 0:
                    to_q = matrix(at_apart + (x - starts[g]) * T * D * size, D * size, size)
                masks = matrix(address(mask) + heads[3, z] + j0 * mask_cs if mask.size else 0, mask_rs, mask_cs)
                inputs = (use, head(q, heads[0, z]), head(out, heads[4, z]), head(dout, heads[5, z]), masks)
                numbers = (address(lse) + z * T * size, z, j0, end - j0, place, (T, S, D, E), causal)
                outputs = (to_q, kt, vt, k_panels, below(to_k, j0), below(to_v, j0))
                call(block, (*inputs, *outputs, *numbers, scale, noise, kept))
            g, j0 = g + 1, 0
    size, zero = room.itemsize, number(0, scale)
    for t in range(nt):
        g, j0 = cuts[t, 0], cuts[t, 1]
        if j0 > 0 and (g < cuts[t + 1, 0] or j0 < cuts[t + 1, 1]):
            for x in range(starts[g], starts[g + 1]):
                to_q, apart = head(dq, heads[6, order[x]]), address(room) + t * part + (x - starts[g]) * T * D * size
                for i in range(j0 // QUERIES * QUERIES if causal else 0, T):
                    _add(view(to_q[0] + i * to_q[1], D, zero), view(apart + i * D * size, D, zero))


# ---------------------------------------------------------------------------------------------------------------------
# The doors
# ---------------------------------------------------------------------------------------------------------------------

NO_MASK = {letter: np.zeros((0, 0), letter) for letter in "fd"}


@helper
def _room(keys, d, e, size):
    """Elements of workspace of a thread, backward, beside the Q̄ that it keeps apart"""
    width = LINE // size
    wide_d, wide_e = (d + width - 1) // width * width, (e + width - 1) // width * width
    panels = (keys + width - 1) // width * width * (d + e) + wide_d * keys
    return panels + (2 * QUERIES + 4) * PITCH + QUERIES * (wide_d + wide_e + 1)


def _matrix(x: Array) -> Array:
    """The first matrix of a batch"""
    return x[(0,) * (x.ndim - 2)] if x.ndim > 2 else x


@lru_cache(maxsize=1024)
def _heads(lead: tuple[int, ...], places: tuple) -> Array:
    """Where the heads of each array lie, from its first one on: a row of offsets for each (shape, strides)."""
    return np.stack([offsets(lead, shape[:-2], strides[:-2]) for shape, strides in places])


@lru_cache(maxsize=1024)
def _cuts(heads: int, rows: int, others: int, causal: bool, by_keys: bool, nt: int) -> Array:
    """(head, row) at which each thread begins, so that all have as many pairs of a query and a key.     (nt + 1, 2)

    Rows are queries, or keys; they see all `others`, or, if causal, those up to (from) their own place on. Cuts fall on whole
    blocks: between heads, where these are short.
    """
    block = (64 if rows > 256 else rows) if by_keys else QUERIES
    pairs = np.full(rows, others)
    if causal:
        place = np.arange(rows)
        pairs = np.maximum(others - place, 0) if by_keys else np.minimum(place + 1, others)
    total = np.concatenate(([0], np.cumsum(pairs)))
    cuts = [(heads, 0)] * (nt + 1)
    for t in range(nt):
        z, rest = divmod(t * heads * total[-1] / nt, max(total[-1], 1))
        row = round(np.searchsorted(total, rest) / block) * block
        cuts[t] = (int(z) + 1, 0) if row >= rows else (int(z), row)
    return np.array(cuts, np.intp)


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


def _noise(p: float, seed: int, stream: int) -> tuple[tuple[int, int, int, int], float]:
    """Of dropout: threshold, key, key and stream; what is kept is multiplied by 1/(1 − p)."""
    low = 0xFFFFFFFF
    return (round(p * 2**32), seed & low, seed >> 32 & low, stream & 0xFFFFFFFFFFFFFFFF), 1 / (1 - p)


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
    """O = softmax(τ Q Kᵀ + M) V and lse = log Σ_j e^{S_ij}.     (…, T, D), (…, S, D), (…, S, E) → (…, T, E), (…, T, 1)"""
    lead = _lead(q, k, v, mask)
    if lead is None or dropout_p >= 1:
        return reference.attention(
            q, k, v, causal=causal, mask=mask, scale=scale, dropout_p=dropout_p, seed=seed, stream=stream
        )
    letter, (rows, d), (keys, e), size = q.dtype.char, q.shape[-2:], v.shape[-2:], q.itemsize
    out, lse = _like(q, lead, e), np.empty((*lead, rows, 1), letter)
    mask = NO_MASK[letter] if mask is None else mask
    scale = d**-0.5 if scale is None else scale
    number = lse.size // rows
    nt = threads() if number * rows * keys * (d + e) > 1 << 17 else 1
    arrays = q, k, v, mask, out
    heads = _heads(lead, tuple([(x.shape, x.strides) for x in arrays]))
    q, k, v, mask, o = map(_matrix, arrays)
    contiguous = q.strides[-1] == k.strides[-1] == v.strides[-1] == size
    if rows <= FEW and contiguous and mask.strides[-1] in (0, size) and not dropout_p:
        nt = min(nt, number)
        room = scratch(letter, nt * keys)[: nt * keys]
        decode[letter](q, k, v, mask, o, lse.reshape(-1), heads, causal, scale, room, nt)
        return out, lse
    cuts = _cuts(number, rows, keys, causal, False, nt)
    width = LINE // size
    panels = -(-keys // width) * width * d + -(-e // width) * width * keys
    part = (panels + (QUERIES + 4) * PITCH + 2 * QUERIES + 15) // 16 * 16
    room = scratch(letter, nt * part)[: nt * part]
    noise = _noise(dropout_p, seed, stream)
    forward[letter](
        tools[letter], forward_block[letter], q, k, v, mask, o, lse.reshape(-1), heads, cuts, causal, scale, *noise, room
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
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    into: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array, Array | None]:
    """Q̄, K̄, V̄ and, if asked for, M̄. Gradients of keys that several heads share are summed, to the shape of the keys.

    `into`: arrays of these shapes to write Q̄, K̄, V̄ to, with contiguous rows, such as the parts of one packed buffer.
    """
    lead = None if mask_grad or dropout_p >= 1 else _lead(q, k, v, mask)
    letter, size = q.dtype.char, q.itemsize
    if into is not None and any(x.strides[-1] != size or x.dtype.char != letter for x in into):
        lead = None
    if lead is None or not dout.dtype.char == out.dtype.char == lse.dtype.char == letter:
        return reference.attention_backward(
            dout, q, k, v, out, lse, causal=causal, mask=mask, scale=scale, mask_grad=mask_grad, dropout_p=dropout_p,
            seed=seed, stream=stream, into=into,
        )  # fmt: skip
    (rows, d), (keys, e) = q.shape[-2:], v.shape[-2:]
    dq, dk, dv = into or (_like(q, lead, d), _like(k, k.shape[:-2], d), _like(v, v.shape[:-2], e))
    order, starts = _groups(lead, k.shape[:-2])
    mask = NO_MASK[letter] if mask is None else mask
    number = len(starts) - 1
    nt = threads() if len(order) * rows * keys * (d + e) > 1 << 16 else 1
    cuts = _cuts(number, keys, rows, causal, True, nt)
    arrays = q, k, v, mask, out, dout, dq, dk, dv
    heads = _heads(lead, tuple([(x.shape, x.strides) for x in arrays]))
    apart = len(order) // number * rows * d if cuts[:, 1].any() else 0
    part = (apart + _room.py_func(keys, d, e, size) + 15) // 16 * 16
    first = [_matrix(x) for x in arrays]
    scale = d**-0.5 if scale is None else scale
    room, noise = scratch(letter, nt * part)[: nt * part], _noise(dropout_p, seed, stream)
    backward[letter](
        tools[letter], backward_head[letter], *first[:6], plain(lse).reshape(-1), *first[6:], heads, order, starts, cuts,
        causal, scale, *noise, room, keys,
    )  # fmt: skip
    return dq, dk, dv, None
