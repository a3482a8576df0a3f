r"""Blocks of scores: what attention's passes, forward and backward, share.

No pass holds S = τ Q Kᵀ + M as a whole. One block of it at a time, at most QUERIES queries by KEYS keys, lies in memory, as its
transpose, a row for each key:

                  query 0   1   2   …  127
        key 0    ┌────────────────────────┬────────┐
        key 1    │  Sᵀ_ji = S_ij          │ unused │      a row has PITCH elements
          ⋮      │                        │        │
        key 511  └────────────────────────┴────────┘

A vector thus holds the scores of one key with as many queries as it has lanes. Maxima and sums over keys are then maxima and
sums of whole vectors, and nothing is ever added up across the lanes of one. Rows are visited four at a time (`four`): each
running maximum, sum or factor that belongs to a query is loaded once for four scores.

Causal attention needs the scores on and below a diagonal alone:

        key ↓  query →      first            wide
                 │ ·  ·  ·  ·  S  S  S  S  S  │        ·  never computed: products skip tiles of which no score is needed
                 │ ·  ·  ·  ∞  S  S  S  S  S  │        ∞  computed with its tile, but unseen: −∞ is written over it (`cover`)
                 │ ·  ·  ·  ∞  ∞  S  S  S  S  │
                 │ ·  ·  ·  ∞  ∞  ∞  S  S  S  │

All matrix products run on the register tile of `simd` (`product`): its left factor may have any strides, its right factor lies
in panels as wide as the tile (`panels`).

The numbers. QUERIES and KEYS: a block of float32 scores takes 512 · 144 · 4 bytes = 288 kB, so that the two blocks that the
backward pass holds (S and S̄) share an L2 cache of 1 MB with the panels that they are multiplied by, while 128 queries are
nine tiles of 14, enough to pay for what is done once a block. PITCH: rows whose distance were a power of two would all fall on
the same few lines of the L1 cache; 16 elements more spread them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels.cpu import matmul
from kernels.cpu.build import INT, VOID, helper, kernel, sums
from kernels.cpu.elementwise import philox
from kernels.cpu.matmul import into_panels
from kernels.cpu.simd import BITS, HEIGHT, VECTORS, Matrix, Panels, address, call, pack, tile, view

QUERIES, KEYS = 128, 512
PITCH = QUERIES + 16
LINE = VECTORS * (BITS // 8)  # bytes of a row of a panel: what the register tile reads of its right factor at once
FAR = 1 << 40  # the diagonal of attention that is not causal lies so far away
# Causal: the scores of four keys are computed from some query on, and the first of these queries may be too early to see the
# last key. UNSEEN bounds their count. HEIGHT of them are there since a tile is computed whole, 3 since the last key comes 3
# after the first, and as many as a vector of float32 has lanes since queries are computed in whole vectors.
UNSEEN = HEIGHT + 3 + BITS // 32
# Unsigned, so that adding them to an index leaves the compiler sure that the sum is not negative.
ONE, TWO, THREE, FOUR = (np.uintp(n) for n in (1, 2, 3, 4))
SECOND, THIRD, FOURTH = (np.uintp(n * PITCH) for n in (1, 2, 3))  # where the rows of four begin, after the first

# ---------------------------------------------------------------------------------------------------------------------
# Records: what Python and compiled code hand each other
# ---------------------------------------------------------------------------------------------------------------------


class Tools(NamedTuple):
    """Addresses of the C functions that compiled attention calls."""

    tile: int  # `simd.tile`, the register tile
    pack: int  # `simd.pack`
    panels: int  # `matmul.panels`
    scores: int  # `row_of_scores`


class Sizes(NamedTuple):
    """Of each head. Q: (queries, depth), K: (keys, depth), V: (keys, width)"""

    queries: int
    keys: int
    depth: int
    width: int


class Options(NamedTuple):
    """What the caller chose: the causal mask, τ, and dropout."""

    causal: int
    scale: float
    kept: float  # 1/(1 − p), by which dropout multiplies the weights that it keeps
    threshold: int  # p 2³²: a weight is kept where its random word is at least this; 0: no dropout
    seed_low: int
    seed_high: int
    stream: int


TOOLS = numba.types.NamedUniTuple(INT, 4, Tools)
SIZES = numba.types.NamedUniTuple(INT, 4, Sizes)

# Where the heads of each operand lie: bytes from the operand's first element to the head's. `index`: the head's position among
# all heads, by which its statistics and dropout's random words are found.
HEADS = np.dtype([(name, np.intp) for name in ("index", "q", "k", "v", "mask", "out", "dout", "dq", "dk", "dv")], align=True)
CUTS = np.dtype([("head", np.intp), ("row", np.intp)], align=True)  # where the share of a thread begins


def options_type(element: Any) -> Any:
    """Numba's type of `Options`."""
    return numba.types.NamedTuple([INT, element, element, *[numba.uint64] * 4], Options)


def table(dtype: np.dtype) -> Any:
    """Numba's type of a table of records that is only read."""
    return numba.types.Array(numba.from_dtype(dtype), 1, "C", readonly=True)


@lru_cache(maxsize=2)
def tools(letter: str) -> Tools:
    """The C functions for one element type; `matmul.panels` knows elements by their size alone."""
    return Tools(tile[letter], pack[letter], matmul.panels["f"], row_of_scores[letter])


# ---------------------------------------------------------------------------------------------------------------------
# Matrices in memory. `like`: any value of the element type
# ---------------------------------------------------------------------------------------------------------------------


@helper
def itemsize(like):
    return view(0, 1, like).itemsize


@helper
def constant(x, like):
    """x in the type of `like`"""
    return view(0, 1, like).dtype.type(x)


@helper
def matrix(at, row, column):
    return Matrix(numba.intp(at), numba.intp(row), numba.intp(column))


@helper
def head_of(x, offset):
    """The matrix that lies so many bytes after the first one of an array"""
    return matrix(address(x) + offset, x.strides[0], x.strides[1])


@helper
def mask_of(x, offset):
    """The same of the mask, with distances of 0 where it is repeated, and the address 0 where there is none"""
    if x.size == 0:
        return matrix(0, 0, 0)
    row, column = 0 if x.shape[0] == 1 else x.strides[0], 0 if x.shape[1] == 1 else x.strides[1]
    return matrix(address(x) + offset, row, column)


@helper
def from_row(x, i):
    """The matrix from row i on"""
    return matrix(x.address + i * x.row, x.row, x.column)


@helper
def part(x, i, j):
    """The matrix from row i and column j on"""
    return matrix(x.address + i * x.row + j * x.column, x.row, x.column)


@helper
def transposed(x):
    return matrix(x.address, x.column, x.row)


@helper
def panels(tools, x, rows, columns, to, copy, like):
    """X as the right factor of `product`. It is read where it lies if its rows are whole vectors at a good distance; else the
    panels are at the address `to`, where they are made if `copy` says so, and otherwise have been made before."""
    size = itemsize(like)
    if x.column == size and columns * size % (BITS // 8) == 0 and x.row % 4096 != 0:
        return Panels(numba.intp(x.address), numba.intp(LINE), numba.intp(x.row))
    if copy:
        into_panels(tools, x, rows, columns, to, size)
    return Panels(numba.intp(to), numba.intp(rows * LINE), numba.intp(LINE))


@helper
def scaled_panels(tools, x, rows, columns, to, scale):
    """The panels of τ X, made at the address `to`"""
    size = itemsize(scale)
    count = (columns * size + LINE - 1) // LINE
    into_panels(tools, x, rows, columns, to, size)
    multiply_by(view(to, count * rows * (LINE // size), scale), scale)
    return Panels(numba.intp(to), numba.intp(rows * LINE), numba.intp(LINE))


@helper
def panels_from_row(x, i):
    """The panels from row i on"""
    return Panels(numba.intp(x.address + i * x.row), numba.intp(x.panel), numba.intp(x.row))


# ---------------------------------------------------------------------------------------------------------------------
# Products of which a diagonal cuts off a part
# ---------------------------------------------------------------------------------------------------------------------


class Needed(NamedTuple):
    """The part of a product that is needed: of a tile with the rows i to e of C, the columns from i + `column` on, each a sum
    of the terms from i + `first_term` to e + `last_term`."""

    column: int
    first_term: int
    last_term: int


@helper
def columns_from(offset):
    return Needed(numba.intp(offset), numba.intp(-FAR), numba.intp(FAR))


@helper
def terms_from(offset):
    return Needed(numba.intp(-FAR), numba.intp(offset), numba.intp(FAR))


@helper
def terms_to(offset):
    return Needed(numba.intp(-FAR), numba.intp(-FAR), numba.intp(offset))


@helper
def product(tools, a, b, c, shape, accumulate, needed, like):
    """C = A B, or C + A B to `accumulate`.  `shape`: rows and columns of C, terms of each sum;  a, c: Matrix, b: Panels

    for each panel of B:   for each tile of rows:   c_tile (+)= a_tile b_panel, in registers
    """
    rows, columns, terms = shape
    size = itemsize(like)
    width, lanes = LINE // size, BITS // 8 // size
    tiles = (rows + HEIGHT - 1) // HEIGHT
    for panel in range(0, columns, width):
        end = min(columns, panel + width)
        for t in range(tiles):
            i, e = t * rows // tiles, (t + 1) * rows // tiles
            j = max(panel, (needed.column + i) // lanes * lanes)
            first = max(0, needed.first_term + i)
            if j < end:
                at_a, at_c = a.address + i * a.row + first * a.column, c.address + i * c.row + j * size
                at_b = b.address + panel // width * b.panel + (j - panel) * size + first * b.row
                count = min(terms, needed.last_term + e) - first
                call(tools.tile, (count, at_a, a.row, a.column, at_b, b.row, at_c, c.row, e - i, end - j, accumulate))


# ---------------------------------------------------------------------------------------------------------------------
# Rows of elements
# ---------------------------------------------------------------------------------------------------------------------


@sums
def multiply(x, y):
    for j in range(np.uintp(x.size)):
        x[j] *= y[j]


@sums
def multiply_by(x, factor):
    for j in range(np.uintp(x.size)):
        x[j] *= factor


@sums
def dot(x, y):
    total = x.dtype.type(0)
    for j in range(np.uintp(x.size)):
        total += x[j] * y[j]
    return total


@sums
def add(out, x):
    for j in range(np.uintp(x.size)):
        out[j] += x[j]


@helper
def fill(x, value):
    for j in range(np.uintp(x.size)):
        x[j] = value


@helper
def copy(x, out):
    for j in range(np.uintp(x.size)):
        out[j] = x[j]


@sums
def add_mask_row(s, at, step):
    """s ← s + M, whose row lies at an address, its elements `step` bytes apart"""
    like = s.dtype.type(0)
    apart = np.uintp(step // s.itemsize)
    if apart == np.uintp(0):
        shift = view(at, 1, like)[0]
        for j in range(np.uintp(s.size)):
            s[j] += shift
    elif apart == ONE:
        shifts = view(at, s.size, like)
        for j in range(np.uintp(s.size)):
            s[j] += shifts[j]
    else:
        shifts = view(at, s.size * step // s.itemsize, like)
        for j in range(np.uintp(s.size)):
            s[j] += shifts[j * apart]


@kernel(lambda element: VOID(*[INT] * 7, element, INT), callback=True)
def row_of_scores(query, key, to_next, keys, depth, mask, to_next_mask, scale, to):
    """s_j = τ q · k_j + M_j for one query that reads the keys as they lie, rows contiguous, `to_next` bytes apart.

    Both passes of `attention_few` call this one piece of machine code, so that they agree on every bit of a score.
    """
    q, s = view(query, depth, scale), view(to, keys, scale)
    for j in range(keys):
        s[j] = dot(q, view(key + j * to_next, depth, scale)) * scale
    if mask:
        add_mask_row(s, mask, to_next_mask)


# ---------------------------------------------------------------------------------------------------------------------
# Four rows of Sᵀ: the scores of four keys with the queries from `first` to `wide`
# ---------------------------------------------------------------------------------------------------------------------


@helper
def whole_vectors(rows, like):
    """So many queries, up to whole vectors"""
    lanes = BITS // 8 // itemsize(like)
    return (rows + lanes - 1) // lanes * lanes


@helper
def whole_queries(rows, like):
    """So many queries, up to whole vectors, and up to the four that share a counter of dropout's random words"""
    step = max(BITS // 8 // itemsize(like), 4)
    return (rows + step - 1) // step * step


@helper
def first_query(j, diagonal, like):
    """The first query whose scores with key j and the three after it are computed: tiles reach HEIGHT past what is seen."""
    step = max(BITS // 8 // itemsize(like), 4)
    return max(0, j - diagonal + 1 - HEIGHT) // step * step


@helper
def four(scores, j, first, wide, like):
    """Rows j to j + 4 of a block as one array, from query `first` on: row r begins at element r · PITCH."""
    return view(scores.address + j * scores.row + first * scores.column, 3 * PITCH + wide - first, like)


@helper
def make_stairs(at, like):
    """UNSEEN zeros, then QUERIES ones. `cover` reads from element UNSEEN − n on: zeros for its first n queries, then ones."""
    fill(view(at, UNSEEN, like), constant(0, like))
    fill(view(at + UNSEEN * itemsize(like), QUERIES, like), constant(1, like))


@helper
def cover(rows, stairs, j, first, wide, diagonal, value):
    """Write `value` over the scores of keys j to j + 4 with queries that do not see them: query i sees key j ≤ i + `diagonal`.

    The last of the four keys is unseen by the first `blind` queries, each key before it by one query less.
    """
    blind = j + 3 - diagonal - first
    if blind > 0:
        seen = view(stairs + (UNSEEN - blind) * itemsize(value), QUERIES, value)
        _cover(rows, min(blind, wide - first), seen, value)


@sums
def _cover(s, count, seen, value):
    """Key r of the four is seen by query i where element i + 3 − r of `seen` is 1."""
    for i in range(np.uintp(count)):
        s[i] = s[i] if seen[i + THREE] > 0 else value
        s[i + SECOND] = s[i + SECOND] if seen[i + TWO] > 0 else value
        s[i + THIRD] = s[i + THIRD] if seen[i + ONE] > 0 else value
        s[i + FOURTH] = s[i + FOURTH] if seen[i] > 0 else value


@helper
def add_mask(tools, scores, mask, shape, wide, to, like):
    """S ← S + M for a block of so many keys and queries, of which the mask is the part;  `to`: where Mᵀ is copied to"""
    keys, rows = shape
    size = itemsize(like)
    at, to_next = mask.address, mask.column
    if mask.row:  # the mask differs from query to query
        call(tools.pack, (keys, rows, mask.address, mask.column, mask.row, to, PITCH * size, wide))
        at, to_next = to, PITCH * size
    for j in range(keys):
        add_mask_row(view(scores.address + j * scores.row, wide, like), at + j * to_next, size if mask.row else 0)


@sums
def _draw(z, count, counter, to_quad, to_key, options):
    """Z for four keys: `kept` with probability 1 − p, else 0. One counter decides on four queries."""
    zero, kept = z.dtype.type(0), options.kept
    for r in range(4):
        row = z[r * PITCH : r * PITCH + count]
        for i in range(np.uintp(count // 4)):
            w0, w1, w2, w3 = philox(counter + i * to_quad, options.stream, options.seed_low, options.seed_high)
            row[FOUR * i] = kept if w0 >= options.threshold else zero
            row[FOUR * i + ONE] = kept if w1 >= options.threshold else zero
            row[FOUR * i + TWO] = kept if w2 >= options.threshold else zero
            row[FOUR * i + THREE] = kept if w3 >= options.threshold else zero
        counter += to_key


@helper
def draw(z, index, i, j, count, sizes, options):
    """Z of `count` queries from i on with four keys from j on, in the head of this index: see `reference.attention_dropout`."""
    quads = (sizes.queries + 3) // 4
    counter = np.uintp((index * quads + i // 4) * sizes.keys + j)
    _draw(z, count, counter, np.uintp(sizes.keys), np.uintp(1), options)
