r"""Attention, forward: O = softmax(τ Q Kᵀ + M) V and, of each row, the maximum m and 1/ℓ.

One block of keys after the other, with the softmax of what has been seen so far (Milakov & Gimelshein 2018; Dao et al. 2022):

    each thread takes some queries of all heads, with an equal share of the pairs of a query and a key, in blocks of QUERIES:
      V into panels, once a head;  τ Qᵀ of the block into panels;  m ← −∞, ℓ ← 0, O ← 0
      for each block of KEYS that its queries see:
        Sᵀ ← K (τ Qᵀ) + Mᵀ                             keys × queries: see `attention_blocks`
        m′ ← max(m, max_j S_j)                         both this and P are computed for four keys at a time
        ℓ ← e^{m − m′} ℓ,   O ← e^{m − m′} O,   m ← m′
        P ← e^{S − m},   ℓ ← ℓ + Σ_j P_j
        O ← O + (Z ⊙ P) V                              Z: dropout, 0 or 1/(1 − p), or 1
      O ← O / ℓ

A row that may attend to nothing gives zeros: its m is taken as 0, which makes its exponentials 0, and its ℓ as 1.
One number, m + log ℓ, would do in exact arithmetic; beside a large m it loses log ℓ, so m and 1/ℓ are kept apart.
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
    add_mask,
    columns_from,
    constant,
    copy,
    cover,
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
    multiply,
    multiply_by,
    options_type,
    panels,
    panels_from_row,
    part,
    product,
    scaled_panels,
    table,
    terms_to,
    transposed,
    whole_queries,
    whole_vectors,
)
from kernels.cpu.build import INT, VOID, helper, kernel, operand, result, sums
from kernels.cpu.functions import exp_nonpositive, maximum
from kernels.cpu.matmul import MATRIX
from kernels.cpu.simd import Matrix, address, call, view


class Operands(NamedTuple):
    """The first head of each operand, a matrix;  statistics: (2, heads · queries), m and 1/ℓ"""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray  # of size 0: none
    out: np.ndarray
    statistics: np.ndarray


class Head(NamedTuple):
    """One head, as a block function meets it; without a mask the address of `mask` is 0"""

    index: int
    q: Matrix
    k: Matrix
    v: Matrix
    mask: Matrix
    out: Matrix
    statistics: Matrix


HEAD = numba.types.NamedTuple([INT, *[MATRIX] * 6], Head)


class Workspace(NamedTuple):
    """Addresses in the memory of one thread."""

    values: int  # keys × width      the panels of V, kept from block to block of a head
    scores: int  # KEYS × PITCH      Sᵀ, then Pᵀ
    kept: int  # 4 × PITCH           Z of four keys
    queries: int  # depth × QUERIES  the panels of τ Qᵀ
    peak: int  # QUERIES             m of the keys seen so far; this and all below have an element for each query
    before: int  # QUERIES           m before this block of keys
    again: int  # QUERIES            e^{before − m}
    shift: int  # QUERIES            m, or 0 where that is −∞
    total: int  # QUERIES            ℓ
    stairs: int  # UNSEEN + QUERIES  see `cover`
    mask: int  # KEYS × PITCH        Mᵀ, if there is a mask
    end: int


@helper
def workspace(at, sizes, masked, size):
    """Where all that lies in a thread's memory, which begins at an address; `end` tells how much memory that is."""
    vector, block = QUERIES * size, KEYS * PITCH * size  # bytes of an element for each query, and of a block of scores
    scores = at + (sizes.width * size + LINE - 1) // LINE * LINE * sizes.keys
    kept = scores + block
    queries = kept + 4 * PITCH * size
    peak = queries + QUERIES * sizes.depth * size
    stairs = peak + 5 * vector
    mask = stairs + (UNSEEN * size + vector + LINE - 1) // LINE * LINE
    vectors = (peak, peak + vector, peak + 2 * vector, peak + 3 * vector, peak + 4 * vector)
    return Workspace(at, scores, kept, queries, *vectors, stairs, mask, mask + block * masked)


# ---------------------------------------------------------------------------------------------------------------------
# Four rows of Sᵀ at a time
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _peaks(s, peak):
    """m_i ← max(m_i, max_j S_ij)"""
    for i in range(np.uintp(peak.size)):
        top = maximum(maximum(s[i], s[i + SECOND]), maximum(s[i + THIRD], s[i + FOURTH]))
        peak[i] = maximum(peak[i], top)


@sums
def _weights(s, shift, total):
    """S ← P = e^{S − m},  ℓ_i ← ℓ_i + Σ_j P_ij"""
    for i in range(np.uintp(total.size)):
        a, b = exp_nonpositive(s[i] - shift[i]), exp_nonpositive(s[i + SECOND] - shift[i])
        c, d = exp_nonpositive(s[i + THIRD] - shift[i]), exp_nonpositive(s[i + FOURTH] - shift[i])
        s[i], s[i + SECOND], s[i + THIRD], s[i + FOURTH] = a, b, c, d
        total[i] += (a + b) + (c + d)


@sums
def _new_peaks(peak, before, again, shift, total):
    """Sums under the maxima `before` become sums under m, by the factor `again` = e^{before − m}:  ℓ ← again ℓ,  before ← m"""
    zero, low = peak.dtype.type(0), peak.dtype.type(-np.inf)
    for i in range(np.uintp(peak.size)):
        shift[i] = zero if peak[i] == low else peak[i]
        again[i] = exp_nonpositive(before[i] - shift[i])
        total[i] *= again[i]
        before[i] = peak[i]


@sums
def _inverses(total, inverse):
    """1/ℓ; 1 for a row that attends to nothing"""
    zero, one = total.dtype.type(0), total.dtype.type(1)
    for i in range(np.uintp(total.size)):
        inverse[i] = one / (one if total[i] == zero else total[i])


# ---------------------------------------------------------------------------------------------------------------------
# One block of queries
# ---------------------------------------------------------------------------------------------------------------------


def block_signature(element: Any) -> Any:
    return VOID(TOOLS, HEAD, INT, INT, INT, SIZES, options_type(element), INT)


@kernel(block_signature, callback=True)
def forward_block(tools, head, i0, rows, fresh, sizes, options, at):
    """`rows` queries of a head, from i0 on: their rows of O, and m and 1/ℓ.  `fresh`: V is not that of the block before"""
    like = options.scale
    zero, one, low, size = constant(0, like), constant(1, like), constant(-np.inf, like), itemsize(like)
    # Products compute whole vectors of queries. All else runs over `wide`, which dropout needs: its random words come by fours.
    columns, wide = whole_vectors(rows, like), whole_queries(rows, like)
    work = workspace(at, sizes, 1 if head.mask.address else 0, size)
    scores, out = matrix(work.scores, PITCH * size, size), from_row(head.out, i0)
    peak, before, again = view(work.peak, wide, like), view(work.before, wide, like), view(work.again, wide, like)
    shift, total, kept = view(work.shift, wide, like), view(work.total, wide, like), view(work.kept, 4 * PITCH, like)
    make_stairs(work.stairs, like)
    fill(peak, low)
    fill(before, low)
    fill(total, zero)
    values = panels(tools, head.v, sizes.keys, sizes.width, work.values, fresh, like)
    queries = scaled_panels(tools, transposed(from_row(head.q, i0)), sizes.depth, rows, work.queries, options.scale)
    limit = min(sizes.keys, i0 + rows) if options.causal else sizes.keys
    for j0 in range(0, limit, KEYS):
        keys = min(KEYS, limit - j0)
        diagonal = i0 - j0 if options.causal else FAR  # of this block, query i sees the keys j ≤ i + diagonal
        # Sᵀ = K (τ Qᵀ) + Mᵀ; the rows after the last key, up to a multiple of four, are −∞, so that they count for nothing
        shape, needed = (keys, columns, sizes.depth), columns_from(-diagonal)
        product(tools, from_row(head.k, j0), queries, scores, shape, 0, needed, like)
        if head.mask.address:
            add_mask(tools, scores, part(head.mask, i0, j0), (keys, rows), wide, work.mask, like)
        for j in range(keys, (keys + 3) // 4 * 4):
            fill(view(scores.address + j * scores.row, wide, like), low)
        # m ← max(m, max_j S_j);  ℓ and O, added up under the old maxima, are multiplied by e^{m_old − m}
        for j in range(0, keys, 4):
            first = first_query(j, diagonal, like)
            rows_of_s = four(scores, j, first, wide, like)
            cover(rows_of_s, work.stairs, j, first, wide, diagonal, low)
            _peaks(rows_of_s, peak[first:])
        _new_peaks(peak, before, again, shift, total)
        for i in range(rows if j0 else 0):
            if again[i] != one:
                multiply_by(view(out.address + i * out.row, sizes.width, like), again[i])
        # P = e^{S − m},  ℓ ← ℓ + Σ_j P_j,  P ← Z ⊙ P
        for j in range(0, keys, 4):
            first = first_query(j, diagonal, like)
            rows_of_s = four(scores, j, first, wide, like)
            _weights(rows_of_s, shift[first:], total[first:])
            if options.threshold:
                draw(kept, head.index, i0 + first, j0 + j, wide - first, sizes, options)
                for r in range(4):
                    multiply(rows_of_s[r * PITCH : r * PITCH + wide - first], kept[r * PITCH :])
        # O ← O + P V
        some_values, shape, accumulate = panels_from_row(values, j0), (rows, sizes.width, keys), 1 if j0 else 0
        product(tools, transposed(scores), some_values, out, shape, accumulate, terms_to(diagonal), like)
    # O ← O / ℓ
    inverse = again  # whose memory is free after the last block of keys
    _inverses(total, inverse)
    for i in range(rows):
        multiply_by(view(out.address + i * out.row, sizes.width, like), inverse[i])
    copy(shift[:rows], view(head.statistics.address + i0 * size, rows, like))
    copy(inverse[:rows], view(head.statistics.address + head.statistics.row + i0 * size, rows, like))


# ---------------------------------------------------------------------------------------------------------------------
# All heads
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _share(tools, block, operands, heads, start, stop, options, at):
    """The queries of all heads, end to end, from (head, row) `start` to `stop`, in the memory at an address"""
    (queries, depth), (keys, width) = operands.q.shape, operands.v.shape
    sizes, size = Sizes(queries, keys, depth, width), operands.out.itemsize
    last_v = -1  # where V of the last block lies, whose panels are in the memory: none as yet
    for h in range(start.head, stop.head + 1):
        first, end = start.row if h == start.head else 0, stop.row if h == stop.head else queries
        if first < end:
            where = heads[h]
            head = Head(
                where.index,
                head_of(operands.q, where.q),
                head_of(operands.k, where.k),
                head_of(operands.v, where.v),
                mask_of(operands.mask, where.mask),
                head_of(operands.out, where.out),
                head_of(operands.statistics, where.index * queries * size),
            )
            for i0 in range(first, end, QUERIES):
                call(block, (tools, head, i0, min(QUERIES, end - i0), where.v != last_v, sizes, options, at))
                last_v = where.v


def _signature(element: Any) -> Any:
    operands = numba.types.NamedTuple([*[operand(element, 2)] * 4, result(element, 2), result(element, 2, "C")], Operands)
    return VOID(TOOLS, INT, operands, table(HEADS), table(CUTS), options_type(element), result(element, 2, "C"))


@kernel(_signature, parallel=True, unchecked=True)
def forward(tools, block, operands, heads, cuts, options, memory):
    """Each thread its share, from one cut to the next, in its row of the memory.  `block`: `forward_block` or `forward_few`"""
    if len(memory) == 1:
        _share(tools, block, operands, heads, cuts[0], cuts[1], options, address(memory))
    else:
        for t in numba.prange(len(memory)):
            _share(tools, block, operands, heads, cuts[t], cuts[t + 1], options, address(memory[t]))
