r"""Attention, backward: Q̄, K̄, V̄ from Ō, without the queries × keys matrix P.

The forward pass leaves m and 1/ℓ of each row, no weight. P is made again here, block by block, as e^{S − m} / ℓ, from the very
same S: the same products of the same factors, added in the same order, or large scores would give other weights than those
that made O. Each score costs one more product of length D than if P had been kept; in return nothing is as large as
queries × keys (Dao et al. 2022). With W = Z ⊙ P, where Z is that of dropout, 0 or 1/(1 − p), or else 1,

    O = W V      W̄ = Ō Vᵀ      P̄ = Z ⊙ W̄      S̄ = P ⊙ (P̄ − Δ)      Δ_i = Σ_j P̄_ij P_ij = Ō_i · O_i: no pass over the row

    each thread takes some keys of all key heads, with an equal share of the pairs of a query and a key:
      for each key head, with its keys j0 to j1:   K into panels
        for each head of queries that reads them:
          for each block of QUERIES that sees any of them:
            Q, Ō, τ Qᵀ, Ōᵀ into panels;   Δ ← Σ Ō ⊙ O
            for each block of KEYS:
              Sᵀ ← K (τ Qᵀ) + Mᵀ          W̄ᵀ ← V Ōᵀ                      keys × queries: see `attention_blocks`
              P ← e^{S − m} / ℓ            S̄ ← P ⊙ (Z ⊙ W̄ − Δ)           in the memory of S and W̄
              Q̄ ← Q̄ + τ S̄ K
              V̄ ← V̄ + Wᵀ Ō                K̄ ← K̄ + τ S̄ᵀ Q

Threads share the keys, so each writes its own rows of K̄ and V̄; heads of queries that read the same keys are taken one after the
other by the same thread. Q̄ alone is a sum over all keys: a thread that begins amid the keys of a head adds its part up in its
own memory, and these are added to Q̄ in the end, in the order of the threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from kernels.cpu.attention_blocks import (
    CUTS,
    FAR,
    FOURTH,
    HEADS,
    KEYS,
    LINE,
    PITCH,
    QUERIES,
    SECOND,
    SIZES,
    THIRD,
    TOOLS,
    UNSEEN,
    Sizes,
    add,
    add_mask,
    columns_from,
    constant,
    copy,
    cover,
    dot,
    draw,
    fill,
    first_query,
    four,
    from_row,
    head_of,
    itemsize,
    make_stairs,
    mask_of,
    matrix,
    options_type,
    panels,
    panels_from_row,
    part,
    product,
    scaled_panels,
    table,
    terms_from,
    terms_to,
    transposed,
    whole_queries,
    whole_vectors,
)
from kernels.cpu.build import INT, TABLE, VOID, helper, kernel, operand, result, sums
from kernels.cpu.functions import exp_nonpositive
from kernels.cpu.matmul import MATRIX
from kernels.cpu.simd import Matrix, address, call, load, view


class Operands(NamedTuple):
    """The first head of each operand, a matrix;  statistics: (2, heads · queries), m and 1/ℓ;  rows of dq, dk, dv contiguous"""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray  # of size 0: none
    out: np.ndarray
    dout: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    statistics: np.ndarray


class Head(NamedTuple):
    """One head of queries, as a block function meets it: k, v, dk, dv and the mask's columns from the first of its keys on"""

    index: int
    q: Matrix
    k: Matrix
    v: Matrix
    mask: Matrix  # without one its address is 0
    out: Matrix
    dout: Matrix
    statistics: Matrix
    dq: Matrix
    dk: Matrix
    dv: Matrix


HEAD = numba.types.NamedTuple([INT, *[MATRIX] * 10], Head)


class Workspace(NamedTuple):
    """Addresses in the memory of one thread."""

    keys: int  # keys × depth        the panels of K, kept from one head of queries to the next
    scores: int  # KEYS × PITCH      Sᵀ, then Wᵀ
    slopes: int  # KEYS × PITCH      Mᵀ, then W̄ᵀ, then τ S̄ᵀ
    kept: int  # 4 × PITCH           Z of four keys
    q: int  # QUERIES × depth        the panels of Q
    dout: int  # QUERIES × width     the panels of Ō
    qt: int  # depth × QUERIES       the panels of τ Qᵀ
    doutt: int  # width × QUERIES    the panels of Ōᵀ
    peak: int  # QUERIES             m; this and all below have an element for each query
    inverse: int  # QUERIES          1/ℓ
    delta: int  # QUERIES            Δ
    stairs: int  # UNSEEN + QUERIES  see `cover`
    end: int


@helper
def workspace(at, sizes, size):
    """Where all that lies in a thread's memory, which begins at an address; `end` tells how much memory that is."""
    vector, block = QUERIES * size, KEYS * PITCH * size  # bytes of an element for each query, and of a block of scores
    panel_d, panel_e = (sizes.depth * size + LINE - 1) // LINE * LINE, (sizes.width * size + LINE - 1) // LINE * LINE
    scores = at + panel_d * sizes.keys
    kept = scores + 2 * block
    q = kept + 4 * PITCH * size
    dout = q + QUERIES * panel_d
    qt = dout + QUERIES * panel_e
    doutt = qt + vector * sizes.depth
    peak = doutt + vector * sizes.width
    stairs = peak + 3 * vector
    end = stairs + UNSEEN * size + vector
    return Workspace(at, scores, scores + block, kept, q, dout, qt, doutt, peak, peak + vector, peak + 2 * vector, stairs, end)


# ---------------------------------------------------------------------------------------------------------------------
# Four rows of Sᵀ at a time
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _slope(s, dw, z, peak, inverse, delta, factor):
    """W = Z P and factor · S̄ = factor · P (Z W̄ − Δ),  P = e^{S − m} / ℓ"""
    p = exp_nonpositive(s - peak) * inverse
    return p * z, p * (z * dw - delta) * factor


@sums
def _slopes(s, dw, z, peak, inverse, delta, factor):
    """S ← W,  W̄ ← factor · S̄;  z: Z, or of size 0 without dropout"""
    one = s.dtype.type(1)
    if z.size:
        for i in range(np.uintp(peak.size)):
            m, r, d = peak[i], inverse[i], delta[i]
            s[i], dw[i] = _slope(s[i], dw[i], z[i], m, r, d, factor)
            s[i + SECOND], dw[i + SECOND] = _slope(s[i + SECOND], dw[i + SECOND], z[i + SECOND], m, r, d, factor)
            s[i + THIRD], dw[i + THIRD] = _slope(s[i + THIRD], dw[i + THIRD], z[i + THIRD], m, r, d, factor)
            s[i + FOURTH], dw[i + FOURTH] = _slope(s[i + FOURTH], dw[i + FOURTH], z[i + FOURTH], m, r, d, factor)
    else:
        for i in range(np.uintp(peak.size)):
            m, r, d = peak[i], inverse[i], delta[i]
            s[i], dw[i] = _slope(s[i], dw[i], one, m, r, d, factor)
            s[i + SECOND], dw[i + SECOND] = _slope(s[i + SECOND], dw[i + SECOND], one, m, r, d, factor)
            s[i + THIRD], dw[i + THIRD] = _slope(s[i + THIRD], dw[i + THIRD], one, m, r, d, factor)
            s[i + FOURTH], dw[i + FOURTH] = _slope(s[i + FOURTH], dw[i + FOURTH], one, m, r, d, factor)


@helper
def row_dots(x, y, delta, columns, like):
    """Δ_i = Σ_j x_ij y_ij, an element of `delta` for each row"""
    size = itemsize(like)
    for i in range(delta.size):
        at_x, at_y = x.address + i * x.row, y.address + i * y.row
        if x.column == size and y.column == size:
            delta[i] = dot(view(at_x, columns, like), view(at_y, columns, like))
        else:
            delta[i] = 0
            for j in range(columns):
                delta[i] += load(at_x + j * x.column, like) * load(at_y + j * y.column, like)


# ---------------------------------------------------------------------------------------------------------------------
# One head of queries and some of its keys
# ---------------------------------------------------------------------------------------------------------------------


def block_signature(element: Any) -> Any:
    return VOID(TOOLS, HEAD, INT, INT, INT, SIZES, options_type(element), INT)


@kernel(block_signature, callback=True)
def backward_block(tools, head, j0, keys, fresh, sizes, options, at):
    """What a head of queries and `keys` of its keys, from j0 on, add to Q̄, K̄, V̄.  `fresh`: K̄ and V̄ of these hold nothing yet"""
    like, (queries, _, depth, width) = options.scale, sizes
    zero, low, size = constant(0, like), constant(-np.inf, like), itemsize(like)
    work = workspace(at, sizes, size)
    scores, slopes = matrix(work.scores, PITCH * size, size), matrix(work.slopes, PITCH * size, size)
    make_stairs(work.stairs, like)
    # Keys are fresh to the first head of queries that reads them, which also finds no panels of theirs from a head before.
    k_panels = panels(tools, head.k, keys, depth, work.keys, fresh, like)
    for i0 in range(0, queries, QUERIES):
        rows = min(QUERIES, queries - i0)
        limit = min(keys, i0 + rows - j0) if options.causal else keys
        if limit <= 0:
            continue
        columns, wide = whole_vectors(rows, like), whole_queries(rows, like)
        q, dout, dq = from_row(head.q, i0), from_row(head.dout, i0), from_row(head.dq, i0)
        q_panels = panels(tools, q, rows, depth, work.q, 1, like)
        dout_panels = panels(tools, dout, rows, width, work.dout, 1, like)
        qt = scaled_panels(tools, transposed(q), depth, rows, work.qt, options.scale)
        doutt = panels(tools, transposed(dout), width, rows, work.doutt, 1, like)
        peak, inverse, delta = view(work.peak, wide, like), view(work.inverse, wide, like), view(work.delta, wide, like)
        fill(peak, zero)
        fill(inverse, zero)
        fill(delta, zero)
        copy(view(head.statistics.address + i0 * size, rows, like), peak)
        copy(view(head.statistics.address + head.statistics.row + i0 * size, rows, like), inverse)
        row_dots(from_row(head.out, i0), dout, delta[:rows], width, like)
        for k0 in range(0, limit, KEYS):
            count = min(KEYS, limit - k0)
            diagonal = i0 - j0 - k0 if options.causal else FAR  # of this block, query i sees the keys j ≤ i + diagonal
            # Sᵀ = K (τ Qᵀ) + Mᵀ and W̄ᵀ = V Ōᵀ
            needed = columns_from(-diagonal)
            product(tools, from_row(head.k, k0), qt, scores, (count, columns, depth), 0, needed, like)
            if head.mask.address:
                add_mask(tools, scores, part(head.mask, i0, k0), (count, rows), wide, work.slopes, like)
            product(tools, from_row(head.v, k0), doutt, slopes, (count, columns, width), 0, needed, like)
            # S ← W = Z ⊙ P and W̄ ← τ S̄ = τ P ⊙ (Z ⊙ W̄ − Δ), where P = e^{S − m} / ℓ
            for j in range(0, count, 4):
                first = first_query(j, diagonal, like)
                some_scores, some_slopes = four(scores, j, first, wide, like), four(slopes, j, first, wide, like)
                cover(some_scores, work.stairs, j, first, wide, diagonal, low)
                cover(some_slopes, work.stairs, j, first, wide, diagonal, zero)
                kept = view(work.kept, 4 * PITCH if options.threshold else 0, like)
                if options.threshold:
                    draw(kept, head.index, i0 + first, j0 + k0 + j, wide - first, sizes, options)
                _slopes(some_scores, some_slopes, kept, peak[first:], inverse[first:], delta[first:], options.scale)
            # Q̄ ← Q̄ + τ S̄ K
            some_keys, shape, accumulate = panels_from_row(k_panels, k0), (rows, depth, count), 1 if k0 else 0
            product(tools, transposed(slopes), some_keys, dq, shape, accumulate, terms_to(diagonal), like)
            # V̄ ← V̄ + Wᵀ Ō and K̄ ← K̄ + τ S̄ᵀ Q. Earlier queries have seen the `old` keys, so the products are added to what
            # these did; K̄ and V̄ of the other keys hold nothing yet if they are fresh, so the products are written there.
            old = min(count, max(0, diagonal)) if options.causal else count if i0 else 0
            for j, n, accumulate in ((0, old, 1), (old, count - old, 0 if fresh else 1)):
                to_v, to_k, needed = from_row(head.dv, k0 + j), from_row(head.dk, k0 + j), terms_from(j - diagonal)
                product(tools, from_row(scores, j), dout_panels, to_v, (n, width, rows), accumulate, needed, like)
                product(tools, from_row(slopes, j), q_panels, to_k, (n, depth, rows), accumulate, needed, like)
    for j in range(max(0, queries - j0) if options.causal and fresh else keys, keys):  # keys that no query sees
        fill(view(head.dk.address + j * head.dk.row, depth, like), zero)
        fill(view(head.dv.address + j * head.dv.row, width, like), zero)


# ---------------------------------------------------------------------------------------------------------------------
# All heads
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _share(tools, block, operands, heads, starts, start, stop, options, at, apart):
    """The keys of all key heads, end to end, from (head, row) `start` to `stop`.

    `at`: the thread's memory: `apart` bytes for its part of Q̄ of a head that another thread began, then the workspace
    """
    (queries, depth), (keys, width) = operands.q.shape, operands.v.shape
    sizes, size = Sizes(queries, keys, depth, width), operands.out.itemsize
    for g in range(start.head, stop.head + 1):
        first, end = start.row if g == start.head else 0, stop.row if g == stop.head else keys
        for h in range(starts[g], starts[g + 1] if first < end else 0):
            where = heads[h]
            dq = head_of(operands.dq, where.dq)
            if first > 0:
                dq = matrix(at + (h - starts[g]) * queries * depth * size, depth * size, size)
            mask = mask_of(operands.mask, where.mask)
            head = Head(
                where.index,
                head_of(operands.q, where.q),
                from_row(head_of(operands.k, where.k), first),
                from_row(head_of(operands.v, where.v), first),
                part(mask, 0, first) if mask.address else mask,
                head_of(operands.out, where.out),
                head_of(operands.dout, where.dout),
                head_of(operands.statistics, where.index * queries * size),
                dq,
                from_row(head_of(operands.dk, where.dk), first),
                from_row(head_of(operands.dv, where.dv), first),
            )
            call(block, (tools, head, first, end - first, h == starts[g], sizes, options, at + apart))


@helper
def _add_apart(operands, heads, starts, start, stop, options, at):
    """Add to Q̄ the part that the thread of this share kept in its memory: that of its first head, if it began amid its keys"""
    (queries, depth), first, like = operands.q.shape, start.row, options.scale
    size = itemsize(like)
    unseen = first // QUERIES * QUERIES if options.causal else 0  # the blocks of queries that see none of these keys
    # Nothing was kept apart if the share begins with a whole head, if no query sees its keys, or if it has none of this head.
    if first == 0 or (options.causal and first >= queries) or (start.head == stop.head and first >= stop.row):
        return
    for h in range(starts[start.head], starts[start.head + 1]):
        dq = head_of(operands.dq, heads[h].dq)
        mine = at + (h - starts[start.head]) * queries * depth * size
        for i in range(unseen, queries):
            add(view(dq.address + i * dq.row, depth, like), view(mine + i * depth * size, depth, like))


def _signature(element: Any) -> Any:
    arrays = [*[operand(element, 2)] * 6, *[result(element, 2)] * 3, result(element, 2, "C")]
    operands = numba.types.NamedTuple(arrays, Operands)
    tables = table(HEADS), TABLE, table(CUTS)
    return VOID(TOOLS, INT, operands, *tables, options_type(element), result(element, 2, "C"), INT)


@kernel(_signature, parallel=True, unchecked=True)
def backward(tools, block, operands, heads, starts, cuts, options, memory, apart):
    """Each thread its share, from one cut to the next, in its row of the memory.  `block`: `backward_block` or `backward_few`

    `heads`: in the order of their key heads; `starts`: where those of each key head begin; `apart`: bytes, see `_share`.
    """
    if len(memory) == 1:
        _share(tools, block, operands, heads, starts, cuts[0], cuts[1], options, address(memory), apart)
    else:
        for t in numba.prange(len(memory)):
            _share(tools, block, operands, heads, starts, cuts[t], cuts[t + 1], options, address(memory[t]), apart)
    for t in range(1, len(memory)):
        _add_apart(operands, heads, starts, cuts[t], cuts[t + 1], options, address(memory[t]))
