r"""Attention without its matrix: softmax(τ Q Kᵀ + M) V by blocks that stay in the cache, and its gradients.

Forward, for a block of queries and one block of keys after the other (Milakov & Gimelshein 2018; Dao et al. 2022):

    S = τ Q Kᵀ + M,   m' = max(m, max_j S_j),   P = e^{S − m'},   ℓ ← e^{m − m'} ℓ + Σ_j P_j,   O ← e^{m − m'} O + P V,
      m ← m'

and in the end O / ℓ. Backward, P = e^{S − m} / ℓ is made again block by block, from the m and 1/ℓ that the forward pass leaves
(apart, since log ℓ is rounded away in m + log ℓ where m is large) and from the very same S: Q is multiplied by τ before either
product, and each score is one sum over D, in its order. With Δ = Σ Ō ⊙ O

    V̄ += Pᵀ Ō,    S̄ = P ⊙ (Ō Vᵀ − Δ),    Q̄ += τ S̄ K,    K̄ += τ S̄ᵀ Q

Dropout multiplies P by Z, 0 or 1/(1 − p), where it meets V (ℓ is of P itself): O += (P ⊙ Z) V, V̄ += (P ⊙ Z)ᵀ Ō,
S̄ = P ⊙ (Z ⊙ Ō Vᵀ − Δ). Z is made again from its counters (see `reference.attention_dropout`), never kept.

What is kept of S is its transpose, keys by queries: a vector then holds the scores of one key with several queries, and the
maxima and sums over keys are those of whole vectors, four keys at a time, none across a vector. The products take either.
Memory is linear in the lengths: what the register tile needs as panels is copied into them, where it does not lie like that
already, and one block of Sᵀ is kept for each thread. With causal attention, tiles above the diagonal are left out of all
products, the staircase being as fine as the tile; what they leave unseen of a tile is −∞ in S, and 0 in P. Heads are read and
written where they lie, by tables of offsets (see `matmul`).

Threads share the work in equal parts, cut between blocks of queries forward, between keys backward, also within a head. A
thread that begins amid the keys of a head adds up its Q̄ apart; these are added in the end, in the order of the threads. Query
heads that share a key head are taken one after the other, so that K̄ and V̄ are added up without a race. A row that may attend
to nothing gives zeros: its m is taken as 0, so that its exponentials are 0, and its ℓ as 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, VOID, given, helper, kernel, result, sums
from kernels.cpu.elementwise import philox
from kernels.cpu.functions import exp_nonpositive, maximum
from kernels.cpu.matmul import TOOLS, into_panels, offsets, tools
from kernels.cpu.memory import scratch
from kernels.cpu.rows import covers, flat, plain
from kernels.cpu.simd import BITS, HEIGHT, VECTORS, Matrix, address, call, load, view
from kernels.cpu.threads import threads

Array = np.ndarray

QUERIES, KEYS = 128, 512  # a block of S
PITCH = QUERIES + 16  # row length of Sᵀ in memory: no power of two, so that rows do not fall on the same cache lines
P1, P2, P3 = np.uintp(PITCH), np.uintp(2 * PITCH), np.uintp(3 * PITCH)
R1, R2, R3, R4 = (np.uintp(r) for r in range(1, 5))
FAR = 1 << 40  # no diagonal
FEW = 4  # queries at which each key and value is read once, so that copying them does not pay
LINE = VECTORS * (BITS // 8)  # bytes of a row of a panel
BEFORE = HEIGHT + 3 + BITS // 32  # at most so many of the queries that are looked at do not see the last of four keys

MATRIX = numba.types.UniTuple(INT, 3)  # address, bytes from row to row, from column to column; of panels: to panel, to row
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
def transposed(x):
    return matrix(x[0], x[2], x[1])


@helper
def panels(use, x, rows, columns, room, zero):
    """X as the right factor of `product`: where it lies, if in whole vectors at a good distance, or copied to `room`."""
    size = itemsize(zero)
    if x[2] == size and columns * size % (BITS // 8) == 0 and x[1] % 4096 != 0:
        return matrix(x[0], LINE, x[1])
    into_panels(use, Matrix(x[0], x[1], x[2]), rows, columns, room, size)
    return matrix(room, rows * LINE, LINE)


@helper
def scaled_panels(use, x, rows, columns, room, scale):
    """The panels of τ X, copied to `room`"""
    size = itemsize(scale)
    width = LINE // size
    count = (columns + width - 1) // width
    into_panels(use, Matrix(x[0], x[1], x[2]), rows, columns, room, size)
    _scale(view(room, count * rows * width, scale), scale)
    return matrix(room, rows * LINE, LINE)


@helper
def panels_below(x, i):
    """The panels from row i on"""
    return matrix(x[0] + i * x[2], x[1], x[2])


@helper
def product(tiler, a, b, c, m, n, k, add, column, term, terms, zero):
    """C (+)= A B, B in panels; a tile of rows i to e needs columns from `column` + i on and terms `term` + i to `terms` + e."""
    size = itemsize(zero)
    width, lanes = LINE // size, BITS // 8 // size
    tiles = (m + HEIGHT - 1) // HEIGHT
    for panel in range(0, n, width):
        for t in range(tiles):
            i, e = t * m // tiles, (t + 1) * m // tiles
            j = max(panel, (column + i) // lanes * lanes)
            first = max(0, term + i)
            if j < min(n, panel + width):
                at_a, at_c = a[0] + i * a[1] + first * a[2], c[0] + i * c[1] + j * size
                at_b = b[0] + panel // width * b[1] + (j - panel) * size + first * b[2]
                w = min(n, panel + width) - j
                call(tiler, (min(k, terms + e) - first, at_a, a[1], a[2], at_b, b[2], at_c, c[1], e - i, w, add))


# ---------------------------------------------------------------------------------------------------------------------
# Rows of numbers
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _largest(s):
    """max_j s_j"""
    top = s.dtype.type(-np.inf)
    for j in range(np.uintp(s.size)):
        top = maximum(top, s[j])
    return top


@sums
def _exponentials(s, shift):
    """p = e^{s − shift} in the place of s, and its sum"""
    total = s.dtype.type(0)
    for j in range(np.uintp(s.size)):
        s[j] = exp_nonpositive(s[j] - shift)
        total += s[j]
    return total


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


@helper
def _copy(x, out):
    for j in range(np.uintp(x.size)):
        out[j] = x[j]


@sums
def _mask(s, mask, step):
    """s ← s + M; mask: address of the row of M, its elements `step` bytes apart"""
    zero = s.dtype.type(0)
    apart = np.uintp(step // s.itemsize)
    if apart == np.uintp(0):
        shift = view(mask, 1, zero)[0]
        for j in range(np.uintp(s.size)):
            s[j] += shift
    elif apart == np.uintp(1):
        shifts = view(mask, s.size, zero)
        for j in range(np.uintp(s.size)):
            s[j] += shifts[j]
    else:
        shifts = view(mask, s.size * step // s.itemsize, zero)
        for j in range(np.uintp(s.size)):
            s[j] += shifts[j * apart]


# ---------------------------------------------------------------------------------------------------------------------
# Four rows of Sᵀ at a time: the scores of four keys with some queries
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _hide(s, n, seen, value):
    """`value` where query i of n does not see key r of the four: where element i + 3 − r of `seen` is 0"""
    for i in range(np.uintp(n)):
        s[i] = s[i] if seen[i + R3] > 0 else value
        s[i + P1] = s[i + P1] if seen[i + R2] > 0 else value
        s[i + P2] = s[i + P2] if seen[i + R1] > 0 else value
        s[i + P3] = s[i + P3] if seen[i] > 0 else value


@sums
def _peaks(s, peak):
    """m_i ← max(m_i, max_j S_ij)"""
    for i in range(np.uintp(peak.size)):
        top = maximum(maximum(s[i], s[i + P1]), maximum(s[i + P2], s[i + P3]))
        peak[i] = maximum(peak[i], top)


@sums
def _weights(s, shift, total):
    """P = e^{S − shift} in the place of S;  ℓ_i += Σ_j P_ij"""
    for i in range(np.uintp(total.size)):
        a, b = exp_nonpositive(s[i] - shift[i]), exp_nonpositive(s[i + P1] - shift[i])
        c, d = exp_nonpositive(s[i + P2] - shift[i]), exp_nonpositive(s[i + P3] - shift[i])
        s[i], s[i + P1], s[i + P2], s[i + P3] = a, b, c, d
        total[i] += (a + b) + (c + d)


@sums
def _slope(s, dp, z, peak, inverse, delta, factor):
    """P Z and factor · S̄ = factor · P (Z P̄ − Δ),  P = e^{S − m} / ℓ"""
    p = exp_nonpositive(s - peak) * inverse
    return p * z, p * (z * dp - delta) * factor


@sums
def _slopes(s, dp, z, peak, inverse, delta, factor):
    """P Z in the place of S, factor · S̄ in that of P̄;  z: Z, or nothing without dropout"""
    one = s.dtype.type(1)
    if z.size:
        for i in range(np.uintp(peak.size)):
            m, r, d = peak[i], inverse[i], delta[i]
            s[i], dp[i] = _slope(s[i], dp[i], z[i], m, r, d, factor)
            s[i + P1], dp[i + P1] = _slope(s[i + P1], dp[i + P1], z[i + P1], m, r, d, factor)
            s[i + P2], dp[i + P2] = _slope(s[i + P2], dp[i + P2], z[i + P2], m, r, d, factor)
            s[i + P3], dp[i + P3] = _slope(s[i + P3], dp[i + P3], z[i + P3], m, r, d, factor)
    else:
        for i in range(np.uintp(peak.size)):
            m, r, d = peak[i], inverse[i], delta[i]
            s[i], dp[i] = _slope(s[i], dp[i], one, m, r, d, factor)
            s[i + P1], dp[i + P1] = _slope(s[i + P1], dp[i + P1], one, m, r, d, factor)
            s[i + P2], dp[i + P2] = _slope(s[i + P2], dp[i + P2], one, m, r, d, factor)
            s[i + P3], dp[i + P3] = _slope(s[i + P3], dp[i + P3], one, m, r, d, factor)


@sums
def _keep(z, n, counter, to_quad, to_key, noise, kept):
    """Z: `kept` with probability 1 − p, else 0; a counter decides on four queries, and the counters of these lie apart."""
    zero = z.dtype.type(0)
    for r in range(4):
        row = z[r * PITCH : r * PITCH + n]
        for i in range(np.uintp(n // 4)):
            r0, r1, r2, r3 = philox(counter + i * to_quad, noise[3], noise[1], noise[2])
            row[R4 * i] = kept if r0 >= noise[0] else zero
            row[R4 * i + R1] = kept if r1 >= noise[0] else zero
            row[R4 * i + R2] = kept if r2 >= noise[0] else zero
            row[R4 * i + R3] = kept if r3 >= noise[0] else zero
        counter += to_key


@helper
def _keep_four(room, z, i, j, n, lengths, noise, kept):
    """Z of queries i to i + n of head z, with four keys from j on"""
    quads = (lengths[0] + 3) // 4
    counter = np.uintp((z * quads + i // 4) * lengths[1] + j)
    _keep(room, n, counter, np.uintp(lengths[1]), np.uintp(1), noise, kept)


@helper
def _line(at, i, n, zero):
    """n numbers of the line i of a room that holds QUERIES in each"""
    return view(at + i * QUERIES * itemsize(zero), n, zero)


@helper
def _step(zero):
    """Queries are counted in whole vectors, and by fours: so many at a time."""
    return max(BITS // 8 // itemsize(zero), 4)


@helper
def _begin(j, diagonal, zero):
    """The first query whose score with key j matters: tiles of `product` reach HEIGHT past what is seen."""
    step = _step(zero)
    return max(0, j - diagonal + 1 - HEIGHT) // step * step


@helper
def _four(s, j, first, wide, zero):
    """Rows j to j + 4 of Sᵀ, from query `first` on"""
    return view(s[0] + j * s[1] + first * s[2], 3 * PITCH + wide - first, zero)


@helper
def _stairs(at, zero):
    """BEFORE zeros, then ones: which queries see a key, read from the right place on"""
    _fill(view(at, BEFORE, zero), zero)
    _fill(view(at + BEFORE * itemsize(zero), QUERIES, zero), number(1, zero))


@helper
def _cover(four, stairs, j, first, wide, diagonal, value, zero):
    """`value` where a query does not see one of the four keys from j on"""
    unseen = j + 3 - diagonal - first  # the last of them is not seen by so many queries
    if unseen > 0:
        steps = view(stairs + (BEFORE - unseen) * itemsize(zero), QUERIES, zero)
        _hide(four, min(unseen, wide - first), steps, value)


@helper
def _add_mask(use, s, mask, i0, j0, n, m, wide, room, zero):
    """S ← S + M, for n keys from j0 on and m queries from i0 on"""
    size = itemsize(zero)
    at, to_key = mask[0] + i0 * mask[1] + j0 * mask[2], mask[2]
    if mask[1]:  # not the same for all queries: Mᵀ
        call(use.pack, (n, m, at, mask[2], mask[1], room, PITCH * size, wide))
        at, to_key = room, PITCH * size
    for j in range(n):
        _mask(view(s[0] + j * s[1], wide, zero), at + j * to_key, 0 if mask[1] == 0 else size)


# ---------------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _turn(peak, before, again, shift, total):
    """For sums that were taken under the maxima `before`: e^{before − m}; ℓ ← e^{before − m} ℓ"""
    T = peak.dtype.type
    for i in range(np.uintp(peak.size)):
        shift[i] = T(0) if peak[i] == -T(np.inf) else peak[i]
        again[i] = exp_nonpositive(before[i] - shift[i])
        total[i] *= again[i]
        before[i] = peak[i]


@sums
def _inverses(total, inverse):
    """1/ℓ; 1 for a row that attends to nothing"""
    T = total.dtype.type
    for i in range(np.uintp(total.size)):
        inverse[i] = T(1) / (T(1) if total[i] == T(0) else total[i])


@kernel(lambda T: VOID(TOOLS, *[MATRIX] * 5, MATRIX, *[INT] * 4, LENGTHS, INT, T, NOISE, T), callback=True)
def forward_block(use, q, k, v, o, mask, statistics, z, i0, m, room, lengths, causal, scale, noise, kept):
    """Queries i0 to i0 + m of head z: their rows of O and columns of (m, 1/ℓ).  v: in panels"""
    zero, one = number(0, scale), number(1, scale)
    low = -one / zero
    _, S, D, E = lengths
    size, step = itemsize(zero), _step(zero)
    lanes = BITS // 8 // size
    columns, wide = (m + lanes - 1) // lanes * lanes, (m + step - 1) // step * step
    q, o = below(q, i0), below(o, i0)
    s = matrix(room, PITCH * size, size)
    lines = room + KEYS * s[1]
    peak, before, again = _line(lines, 0, wide, zero), _line(lines, 1, wide, zero), _line(lines, 2, wide, zero)
    shift, total = _line(lines, 3, wide, zero), _line(lines, 4, wide, zero)
    stairs = lines + 5 * QUERIES * size
    keep = _line(lines, 8, 4 * PITCH, zero)
    at_q = lines + 8 * QUERIES * size + 4 * s[1]
    at_mask = at_q + QUERIES * D * size
    _stairs(stairs, zero)
    _fill(peak, low)
    _fill(before, low)
    _fill(total, zero)
    qt = scaled_panels(use, transposed(q), D, m, at_q, scale)  # of τ Qᵀ     (D, m)
    limit = min(S, i0 + m) if causal else S
    for k0 in range(0, limit, KEYS):
        n = min(KEYS, limit - k0)
        diagonal = i0 - k0 if causal else FAR
        product(use.tile, below(k, k0), qt, s, n, columns, D, 0, -diagonal, -FAR, FAR, zero)  # Sᵀ = τ K Qᵀ     (n, m)
        if mask[0]:
            _add_mask(use, s, mask, i0, k0, n, m, wide, at_mask, zero)
        for j in range(n, (n + 3) // 4 * 4):
            _fill(view(s[0] + j * s[1], wide, zero), low)
        for j in range(0, n, 4):
            first = _begin(j, diagonal, zero)
            four = _four(s, j, first, wide, zero)
            _cover(four, stairs, j, first, wide, diagonal, low, zero)
            _peaks(four, peak[first:])
        _turn(peak, before, again, shift, total)
        for i in range(m if k0 else 0):
            if again[i] != one:
                _scale(view(o[0] + i * o[1], E, zero), again[i])
        for j in range(0, n, 4):
            first = _begin(j, diagonal, zero)
            four = _four(s, j, first, wide, zero)
            _weights(four, shift[first:], total[first:])
            if noise[0]:
                _keep_four(keep, z, i0 + first, k0 + j, wide - first, lengths, noise, kept)
                for r in range(4):
                    _multiply(four[r * PITCH : r * PITCH + wide - first], keep[r * PITCH :])
        add, v_below = 1 if k0 else 0, panels_below(v, k0)
        product(use.tile, transposed(s), v_below, o, m, E, n, add, -FAR, -FAR, diagonal, zero)  # O += P V     (m, E)
    inverse = again
    _inverses(total, inverse)
    for i in range(m):
        _scale(view(o[0] + i * o[1], E, zero), inverse[i])
    _copy(shift[:m], view(statistics[0] + i0 * size, m, zero))
    _copy(inverse[:m], view(statistics[0] + statistics[1] + i0 * size, m, zero))


TABLES = numba.types.Array(INT, 2, "C", readonly=True)


def _forward_signature(T: Any) -> Any:
    outputs = result(T, 2), result(T, 2, "C")
    return VOID(TOOLS, INT, *[given(T, 2)] * 4, *outputs, TABLES, TABLES, INT, T, NOISE, T, result(T, 1, "C"))


@helper
def _forward_share(t, part, use, block, q, k, v, mask, out, statistics, heads, cuts, causal, scale, noise, kept, room):
    """The queries of all heads, end to end, from (head, query) cuts[t] to cuts[t + 1]"""
    zero = number(0, scale)
    size = itemsize(zero)
    width = LINE // size
    T, D = q.shape
    S, E = v.shape
    mask_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    mask_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    at_v = address(room) + t * part
    place = at_v + (E + width - 1) // width * width * S * size
    values, packed = matrix(0, 0, 0), -1
    z, i0 = cuts[t, 0], cuts[t, 1]
    while z < cuts[t + 1, 0] or (z == cuts[t + 1, 0] and i0 < cuts[t + 1, 1]):
        if packed < 0 or heads[2, z] != heads[2, packed]:
            values = panels(use, head(v, heads[2, z]), S, E, at_v, zero)
            packed = z
        masks = matrix(address(mask) + heads[3, z] if mask.size else 0, mask_rs, mask_cs)
        end = T if z < cuts[t + 1, 0] else cuts[t + 1, 1]
        for i in range(i0, end, QUERIES):
            job = (use, head(q, heads[0, z]), head(k, heads[1, z]), values, head(out, heads[4, z]), masks)
            numbers = (head(statistics, z * T * size), z, i, min(QUERIES, end - i), place, (T, S, D, E), causal)
            call(block, (*job, *numbers, scale, noise, kept))
        z, i0 = z + 1, 0


@kernel(_forward_signature, parallel=True)
def forward(use, block, q, k, v, mask, out, statistics, heads, cuts, causal, scale, noise, kept, room):
    """Each thread its share of the queries, in its part of the room"""
    nt = cuts.shape[0] - 1
    part = room.size // nt * room.itemsize
    if nt == 1:
        _forward_share(0, part, use, block, q, k, v, mask, out, statistics, heads, cuts, causal, scale, noise, kept, room)
    else:
        for t in numba.prange(nt):
            _forward_share(
                numba.intp(t), part, use, block, q, k, v, mask, out, statistics, heads, cuts, causal, scale, noise, kept, room
            )


def _decode_signature(T: Any) -> Any:
    return VOID(*[given(T, 2)] * 4, result(T, 2), result(T, 2, "C"), TABLES, INT, T, result(T, 1, "C"), INT)


@helper
def _decode_share(q, k, v, mask, out, statistics, heads, causal, scale, p, z0, z1):
    """Heads z0 to z1.  p: room for a row of S"""
    T, D = q.shape
    S, E = v.shape
    mask_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    mask_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    zero, one = number(0, scale), number(1, scale)
    for z in range(z0, z1):
        keys, values = head(k, heads[1, z]), head(v, heads[2, z])
        for i in range(T):
            n = min(S, i + 1) if causal else S
            query = view(address(q) + heads[0, z] + i * q.strides[0], D, zero)
            o = view(address(out) + heads[4, z] + i * out.strides[0], E, zero)
            for j in range(n):
                p[j] = _dot(query, view(keys[0] + j * keys[1], D, zero)) * scale
            if mask.size:
                _mask(p[:n], address(mask) + heads[3, z] + i * mask_rs, mask_cs)
            top = _largest(p[:n])
            shift = zero if top == -np.inf else top
            total = _exponentials(p[:n], shift)
            _fill(o, zero)
            for j in range(n):
                _add_scaled(o, view(values[0] + j * values[1], E, zero), p[j])
            inverse = one if total == zero else one / total
            _scale(o, inverse)
            statistics[0, z * T + i], statistics[1, z * T + i] = shift, inverse


@kernel(_decode_signature, parallel=True)
def decode(q, k, v, mask, out, statistics, heads, causal, scale, room, nt):
    """A few queries a head, with rows of q, k, v contiguous: each key and value is read once, nothing is copied."""
    S, n = len(v), heads.shape[1]
    if nt == 1:
        _decode_share(q, k, v, mask, out, statistics, heads, causal, scale, room[:S], 0, n)
    else:
        for t in numba.prange(nt):
            z0, z1 = numba.intp(t) * n // nt, (numba.intp(t) + 1) * n // nt
            _decode_share(q, k, v, mask, out, statistics, heads, causal, scale, room[t * S : t * S + S], z0, z1)


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


@kernel(lambda T: VOID(TOOLS, *[MATRIX] * 11, *[INT] * 5, LENGTHS, INT, T, NOISE, T), callback=True)
def backward_head(
    use, q, out, dout, mask, dq, k, v, k_panels, dk, dv, statistics, z, j0, keys, room, fresh, lengths, causal, scale, noise,
    kept
):  # fmt: skip
    """Query head z and `keys` of its keys, from j0 on, where k, v, dk, dv and the mask begin: what it adds to Q̄, K̄, V̄.

    `fresh`: K̄ and V̄ hold nothing yet.
    """
    zero, one = number(0, scale), number(1, scale)
    low = -one / zero
    T, S, D, E = lengths
    size, step = itemsize(zero), _step(zero)
    lanes = BITS // 8 // size
    wide_d, wide_e = (D * size + LINE - 1) // LINE * LINE, (E * size + LINE - 1) // LINE * LINE
    s = matrix(room, PITCH * size, size)
    ds = matrix(s[0] + KEYS * s[1], s[1], size)
    lines = ds[0] + KEYS * s[1]
    stairs = lines + 2 * QUERIES * size
    keep, all_kept = _line(lines, 5, 4 * PITCH, zero), view(lines, 0, zero)
    at_q = lines + 5 * QUERIES * size + 4 * s[1]
    at_do = at_q + QUERIES * wide_d
    at_qt = at_do + QUERIES * wide_e
    at_dot = at_qt + QUERIES * D * size
    _stairs(stairs, zero)
    for i0 in range(0, T, QUERIES):
        m = min(QUERIES, T - i0)
        columns, wide = (m + lanes - 1) // lanes * lanes, (m + step - 1) // step * step
        limit = min(keys, i0 + m - j0) if causal else keys
        if limit <= 0:
            continue
        q_i, do_i, dq_i = below(q, i0), below(dout, i0), below(dq, i0)
        q_panels, do_panels = panels(use, q_i, m, D, at_q, zero), panels(use, do_i, m, E, at_do, zero)
        qt, dot = scaled_panels(use, transposed(q_i), D, m, at_qt, scale), panels(use, transposed(do_i), E, m, at_dot, zero)
        peak, inverse, delta = _line(lines, 0, wide, zero), _line(lines, 4, wide, zero), _line(lines, 1, wide, zero)
        _fill(peak, zero)
        _fill(inverse, zero)
        _fill(delta, zero)
        _copy(view(statistics[0] + i0 * size, m, zero), peak)
        _copy(view(statistics[0] + statistics[1] + i0 * size, m, zero), inverse)
        _row_dots(out, dout, i0, m, E, delta, zero)  # Δ
        for k0 in range(0, limit, KEYS):
            n = min(KEYS, limit - k0)
            diagonal = i0 - j0 - k0 if causal else FAR
            product(use.tile, below(k, k0), qt, s, n, columns, D, 0, -diagonal, -FAR, FAR, zero)  # Sᵀ = τ K Qᵀ     (n, m)
            if mask[0]:
                _add_mask(use, s, mask, i0, k0, n, m, wide, ds[0], zero)
            product(use.tile, below(v, k0), dot, ds, n, columns, E, 0, -diagonal, -FAR, FAR, zero)  # P̄ᵀ = V Ōᵀ     (n, m)
            for j in range(0, n, 4):
                first = _begin(j, diagonal, zero)
                four, slopes = _four(s, j, first, wide, zero), _four(ds, j, first, wide, zero)
                _cover(four, stairs, j, first, wide, diagonal, low, zero)
                _cover(slopes, stairs, j, first, wide, diagonal, zero, zero)
                if noise[0]:
                    _keep_four(keep, z, i0 + first, j0 + k0 + j, wide - first, lengths, noise, kept)
                z_four = keep if noise[0] else all_kept
                _slopes(four, slopes, z_four, peak[first:], inverse[first:], delta[first:], scale)
            k_below, add = panels_below(k_panels, k0), 1 if k0 else 0
            product(use.tile, transposed(ds), k_below, dq_i, m, D, n, add, -FAR, -FAR, diagonal, zero)  # Q̄ += τ S̄ K     (m, D)
            known = min(n, max(0, diagonal)) if causal else n if i0 else 0  # earlier blocks saw so many of these keys
            for j, h, add in ((0, known, 1), (known, n - known, 0 if fresh else 1)):
                to_v, to_k, term = below(dv, k0 + j), below(dk, k0 + j), j - diagonal
                product(use.tile, below(s, j), do_panels, to_v, h, E, m, add, -FAR, term, FAR, zero)  # V̄ += Pᵀ Ō     (h, E)
                product(use.tile, below(ds, j), q_panels, to_k, h, D, m, add, -FAR, term, FAR, zero)  # K̄ += τ S̄ᵀ Q     (h, D)
    for j in range(max(0, T - j0) if causal and fresh else keys, keys):  # which no query sees
        _fill(view(dk[0] + j * dk[1], D, zero), zero)
        _fill(view(dv[0] + j * dv[1], E, zero), zero)


def _backward_signature(T: Any) -> Any:
    table = numba.types.Array(INT, 1, "C", readonly=True)
    inputs, grads = [given(T, 2)] * 6, [result(T, 2)] * 3
    return VOID(
        TOOLS, INT, *inputs, flat(T, 2), *grads, TABLES, table, table, TABLES, INT, T, NOISE, T, result(T, 1, "C"), INT
    )  # fmt: skip


@helper
def _backward_share(
    t, part, use, block, q, k, v, mask, out, dout, statistics, dq, dk, dv, heads, order, starts, cuts, causal, scale, noise,
    kept, room, longest
):  # fmt: skip
    """The keys of all key heads, end to end, from (key head, key) cuts[t] to cuts[t + 1]"""
    T, D = q.shape
    S, E = v.shape
    zero = number(0, scale)
    size = itemsize(zero)
    width = LINE // size
    wide_d = (D + width - 1) // width * width
    mask_rs = 0 if mask.shape[0] == 1 else mask.strides[0]
    mask_cs = 0 if mask.shape[1] == 1 else mask.strides[1]
    at_apart = address(room) + t * part  # Q̄ of a head that another thread began
    at_k = at_apart + (part - _room(longest, D, E, size) * size)
    place = at_k + wide_d * longest * size
    g, j0 = cuts[t, 0], cuts[t, 1]
    while g < cuts[t + 1, 0] or (g == cuts[t + 1, 0] and j0 < cuts[t + 1, 1]):
        end = S if g < cuts[t + 1, 0] else cuts[t + 1, 1]
        first = order[starts[g]]
        keys, values = below(head(k, heads[1, first]), j0), below(head(v, heads[2, first]), j0)
        k_panels = panels(use, keys, end - j0, D, at_k, zero)
        to_k, to_v = head(dk, heads[7, first]), head(dv, heads[8, first])
        for x in range(starts[g], starts[g + 1]):
            z = order[x]
            to_q = head(dq, heads[6, z])
            if j0 > 0:
                to_q = matrix(at_apart + (x - starts[g]) * T * D * size, D * size, size)
            masks = matrix(address(mask) + heads[3, z] + j0 * mask_cs if mask.size else 0, mask_rs, mask_cs)
            inputs = (use, head(q, heads[0, z]), head(out, heads[4, z]), head(dout, heads[5, z]), masks)
            numbers = (head(statistics, z * T * size), z, j0, end - j0, place, x == starts[g], (T, S, D, E), causal)
            outputs = (to_q, keys, values, k_panels, below(to_k, j0), below(to_v, j0))
            call(block, (*inputs, *outputs, *numbers, scale, noise, kept))
        g, j0 = g + 1, 0


@kernel(_backward_signature, parallel=True)
def backward(
    use, block, q, k, v, mask, out, dout, statistics, dq, dk, dv, heads, order, starts, cuts, causal, scale, noise, kept, room,
    longest
):  # fmt: skip
    """Each thread its share of the keys, in its part of the room

    `order`: the query heads, those of one key head together; `starts`: where each begins; `longest`: most keys of a thread in
    one head.
    """
    nt = cuts.shape[0] - 1
    part = room.size // nt * room.itemsize
    T, D = q.shape
    if nt == 1:
        _backward_share(
            0, part, use, block, q, k, v, mask, out, dout, statistics, dq, dk, dv, heads, order, starts, cuts, causal,
            scale, noise, kept, room, longest
        )  # fmt: skip
    else:
        for t in numba.prange(nt):
            _backward_share(
                numba.intp(t), part, use, block, q, k, v, mask, out, dout, statistics, dq, dk, dv, heads, order, starts,
                cuts, causal, scale, noise, kept, room, longest
            )  # fmt: skip
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
    return wide_d * keys + (2 * KEYS + 4) * PITCH + QUERIES * (wide_d + wide_e + d + e + 5)


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
    arrays = (q, k, v) if mask is None else (q, k, v, mask)
    if not covers(*arrays) or any(x.ndim < 2 or x.size == 0 for x in arrays):
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
    """O = softmax(τ Q Kᵀ + M) V, and m and 1/Σ of each row.     (…, T, D), (…, S, D), (…, S, E) → (…, T, E), (2, …, T, 1)"""
    lead = _lead(q, k, v, mask)
    if lead is None or dropout_p >= 1:
        return reference.attention(
            q, k, v, causal=causal, mask=mask, scale=scale, dropout_p=dropout_p, seed=seed, stream=stream
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (_decoded if _few(q, k, v, mask, dropout_p) else _attended)(
        q, k, v, lead, causal, NO_MASK[q.dtype.char] if mask is None else mask, scale, _noise(dropout_p, seed, stream)
    )


def _few(q: Array, k: Array, v: Array, mask: Array | None, dropout_p: float) -> bool:
    """Are the queries so few that each key and value is read once, as it lies?"""
    size = q.itemsize
    if q.shape[-2] > FEW or dropout_p or not q.strides[-1] == k.strides[-1] == v.strides[-1] == size:
        return False
    return mask is None or mask.strides[-1] in (0, size)


def _results(q: Array, v: Array, lead: tuple[int, ...]) -> tuple[Array, Array, int, int]:
    """Empty O and (m, 1/Σ), the number of heads, and how many threads they are worth."""
    (rows, d), (keys, e) = q.shape[-2:], v.shape[-2:]
    statistics = np.empty((2, *lead, rows, 1), q.dtype)
    number = statistics.size // (2 * rows)
    return _like(q, lead, e), statistics, number, threads() if number * rows * keys * (d + e) > 1 << 17 else 1


def _decoded(
    q: Array, k: Array, v: Array, lead: tuple[int, ...], causal: bool, mask: Array, scale: float, noise: tuple
) -> tuple[Array, Array]:
    """`attention` by `decode`"""
    letter, keys = q.dtype.char, v.shape[-2]
    out, statistics, number, nt = _results(q, v, lead)
    arrays = q, k, v, mask, out
    heads, nt = _heads(lead, tuple([(x.shape, x.strides) for x in arrays])), min(nt, number)
    room = scratch(letter, nt * keys)[: nt * keys]
    decode[letter](*map(_matrix, arrays), statistics.reshape(2, -1), heads, causal, scale, room, nt)
    return out, statistics


def _attended(
    q: Array, k: Array, v: Array, lead: tuple[int, ...], causal: bool, mask: Array, scale: float, noise: tuple
) -> tuple[Array, Array]:
    """`attention` by `forward`"""
    letter, (rows, d), (keys, e), size = q.dtype.char, q.shape[-2:], v.shape[-2:], q.itemsize
    out, statistics, number, nt = _results(q, v, lead)
    arrays = q, k, v, mask, out
    heads = _heads(lead, tuple([(x.shape, x.strides) for x in arrays]))
    cuts = _cuts(number, rows, keys, causal, False, nt)
    width = LINE // size
    masks = KEYS * PITCH if mask.size else 0
    part = (-(-e // width) * width * keys + (KEYS + 4) * PITCH + QUERIES * (8 + d) + masks + 15) // 16 * 16
    room = scratch(letter, nt * part)[: nt * part]
    forward[letter](
        tools[letter], forward_block[letter], *map(_matrix, arrays), statistics.reshape(2, -1), heads, cuts, causal, scale,
        *noise, room,
    )  # fmt: skip
    return out, statistics


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
    """Q̄, K̄, V̄ and, if asked for, M̄. Gradients of keys that several heads share are summed, to the shape of the keys.

    `into`: arrays of these shapes to write Q̄, K̄, V̄ to, with contiguous rows, such as the parts of one packed buffer.
    """
    lead = None if dropout_p >= 1 else _lead(q, k, v, mask)
    letter, size = q.dtype.char, q.itemsize
    fits = into is None or all(x.strides[-1] == size and x.dtype == q.dtype for x in into)
    if lead is None or mask_grad or not fits or not dout.dtype == out.dtype == statistics.dtype == q.dtype:
        noise = {"dropout_p": dropout_p, "seed": seed, "stream": stream}
        options = {"causal": causal, "mask": mask, "scale": scale, **noise}
        if lead is not None:  # O, m and Σ are to be those of the scores that P is made from: the reference's own
            out, statistics = reference.attention(q, k, v, **options)
        return reference.attention_backward(dout, q, k, v, out, statistics, mask_grad=mask_grad, into=into, **options)
    (rows, d), (keys, e) = q.shape[-2:], v.shape[-2:]
    dq, dk, dv = into or (_like(q, lead, d), _like(k, k.shape[:-2], d), _like(v, v.shape[:-2], e))
    order, starts = _groups(lead, k.shape[:-2])
    scale, noise = d**-0.5 if scale is None else scale, _noise(dropout_p, seed, stream)
    few, mask = _few(q, k, v, mask, dropout_p), NO_MASK[letter] if mask is None else mask
    if few:  # `decode` adds up its scores in another order
        out, statistics = _attended(q, k, v, lead, causal, mask, scale, noise)
    number = len(starts) - 1
    nt = threads() if len(order) * rows * keys * (d + e) > 1 << 16 else 1
    cuts = _cuts(number, keys, rows, causal, True, nt)
    arrays = q, k, v, mask, out, dout, dq, dk, dv
    heads = _heads(lead, tuple([(x.shape, x.strides) for x in arrays]))
    apart = len(order) // number * rows * d if cuts[:, 1].any() else 0
    part = (apart + _room.py_func(keys, d, e, size) + 15) // 16 * 16
    first = [_matrix(x) for x in arrays]
    room = scratch(letter, nt * part)[: nt * part]
    backward[letter](
        tools[letter], backward_head[letter], *first[:6], plain(statistics).reshape(2, -1), *first[6:], heads, order, starts,
        cuts, causal, scale, *noise, room, keys,
    )  # fmt: skip
    return dq, dk, dv, None
