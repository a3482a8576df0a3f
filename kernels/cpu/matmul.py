r"""Matrix products, C = f(A B + bias), around the register tile of `simd`.

The loop nest. Each thread computes a rectangle of C, some rows by some columns, and needs no other thread:

    for each stretch of columns (PANELS):             copy this part of B into panels as wide as a tile, once
        for each block of rows (ROWS):
            for each block of k (DEPTH):              A's block fits the L2 cache, a panel of B the L1 cache
                for each panel of B:
                    for each tile of rows:            c_tile += a_tile b_panel: `inline_tile`, in registers
            bias and f, while the rows of C are still in the cache

The memory:
                                      n
                          ┌──────┬──────┬──────┬───┐
                    B   k │      │      │      │   │      a panel is VECTORS vectors wide. Copied, its rows follow one
                    DEPTH │  p₀  │  p₁  │  p₂  │p₃ │      another, zeros past the end:  Panels(address, panel, row)
                          └──────┴──────┴──────┴───┘
              DEPTH
           ┌─────────┐    ┌──────┬──────┬──────┬───┐
    HEIGHT │         │    │ tile │      │      │   │
           ├─────────┤    ├──────┼──────┼──────┼───┤      a block of A is copied only where that pays: tile after tile,
    A    m │         │  C │      │      │      │   │      column after column, COPIED_HEIGHT elements a column
           ├─────────┤    ├──────┼──────┼──────┼───┤
           │         │    │      │      │      │   │
           └─────────┘    └──────┴──────┴──────┴───┘

    workspace of a thread:  │ the copied block of A, if any │ the copied panels of B, if any │

The way of `x @ w.T`, where B is w transposed: `kernels.matmul` calls `matmul` below. A product of small matrices goes to
`small`, any other gets a `Plan` for its shapes and strides, and `serial` or `parallel` calls `_share` → `_rectangle` for each
thread. The rows of w.T are not contiguous, so `pack` turns them into panels of B. Then `multiply` runs over blocks of k,
`_tiles` over panels and tiles, and `inline_tile` (in `simd`) is the loop over k of fused multiply-adds, which are all the
arithmetic there is. One or two rows of x take another way, `by_rows`, without panels and tiles.

A is read where it lies, whatever its strides, since the tile takes its elements one by one. A is copied only where its rows
lie at a distance that maps them all to the same few cache lines (a power of two), or where k is so long that a block of A
leaves the cache. B is read where it lies if its rows are contiguous, if the tile can read the last columns (`MASKED`), and if
the rows do not lie at such a distance. Threads share nothing, so one launch is enough; it costs 2.5 µs, as much as a product
of 50 × 50 × 50.

All that follows from shapes and strides alone is worked out once for each of them, and kept (`plan`): a step of training meets
the same ones again and again, and at the sizes of small models the decisions would cost as much as the product.

One row, y = x B, as in generating a text token by token, is bound by the reading of B, which no other row will use again. So
B is read straight through, by rows or by columns, as it lies (`by_rows`). Tiles would read B in pieces or copy B first; that
pays from the third row on.

A batch: a kernel gets the first matrix of each operand, and a table with the byte offsets of the other matrices (`OFFSETS`). So
leading dimensions, however many, strided or broadcast, cost nothing and are never copied.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, LETTERS, SUMS, VOID, helper, kernel, operand, result
from kernels.cpu.functions import erf, tanh
from kernels.cpu.memory import scratch
from kernels.cpu.simd import (
    BITS,
    HEIGHT,
    MASKED,
    VECTORS,
    Matrix,
    Panels,
    address,
    call,
    inline_tile,
    lanes,
    load,
    pack,
    tile,
    view,
)
from kernels.cpu.threads import threads

Array = np.ndarray

# Where the numbers come from. A panel of B, DEPTH rows of VECTORS vectors, is 32 kB of AVX-512 (8 kB of NEON): the L1 cache
# holds it while the tiles of a block pass by. A block of A, ROWS by DEPTH, is 230 kB of float32: it stays in an L2 cache of
# 512 kB. PANELS, 16 MB of float32, are half of a large L3 cache. The others were measured, where one way overtakes the other.
DEPTH = 256  # terms of k between two visits to C
ROWS = 16 * HEIGHT  # rows of A in the cache at a time
PANELS = 1 << 22  # elements of B in panels at a time
COPIED_HEIGHT = -(-HEIGHT // (BITS // 32)) * (BITS // 32)  # rows of a copied tile of A: HEIGHT, up to whole vectors
# Elements of a copied block of A. Behind it lie the panels of B: a tile more keeps these from beginning on the sets of the L2
# cache where A begins, which costs 5 % at 1024 × 1024 × 1024.
COPIED_BLOCK = (ROWS // HEIGHT + 1) * COPIED_HEIGHT * DEPTH
ROW_BY_ROW = 2  # up to so many rows of C are computed one by one, each reading all of B
PACKING = 12  # rows of C that could be computed in the time in which their part of B is copied into panels
SERIAL = 80**3  # products below which a second thread costs more than it brings
SMALL = 128**3  # products below which one thread does without a plan
CONFLICT = 4096  # bytes: rows at a multiple of this distance fall on the same lines of an L1 cache
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}
RELU, GELU, GELU_TANH = 1, 2, 3
FLOAT, DOUBLE = LETTERS


class Size(NamedTuple):
    """C: m × n, Σ over k terms."""

    m: int
    n: int
    k: int


class Epilogue(NamedTuple):
    """What happens to C at the end: the address of the first column's bias, or 0, and one of ACTIVATIONS."""

    bias: int
    activation: int


MATRIX, PANELS_OF_B = (numba.types.NamedUniTuple(INT, 3, kind) for kind in (Matrix, Panels))
SIZE = numba.types.NamedUniTuple(INT, 3, Size)


# ---------------------------------------------------------------------------------------------------------------------
# C functions: called by their addresses, by kernels of other files too
# ---------------------------------------------------------------------------------------------------------------------


@kernel(lambda element: VOID(numba.types.CPointer(element), INT, INT, INT, INT, INT), callback=True)
def finish(c, c_row, rows, n, bias, activation):
    """f(c + bias) on some rows of C; `bias`: address of the first column's, or 0"""
    first = numba.carray(c, n)
    dtype = first.dtype.type
    zero, one, half, root = dtype(0), dtype(1), dtype(0.5), dtype(0.7071067811865476)
    c0, c1 = dtype(0.7978845608028654), dtype(0.044715)  # √(2/π), and the factor of x³ in GELU's tanh form
    for i in range(rows):
        x = view(address(first) + i * c_row, n, zero)
        if bias:
            shift = view(bias, n, zero)
            for j in range(np.uintp(n)):
                x[j] += shift[j]
        if activation == RELU:
            for j in range(np.uintp(n)):
                x[j] = zero if x[j] < zero else x[j]
        elif activation == GELU:
            for j in range(np.uintp(n)):
                x[j] *= half * (one + erf(x[j] * root))
        elif activation == GELU_TANH:
            for j in range(np.uintp(n)):
                x[j] *= half * (one + tanh(c0 * x[j] * (one + c1 * x[j] * x[j])))


@kernel(lambda element: VOID(INT, MATRIX, *[INT] * 4), callback=True)
def panels(packer, b, k, n, out, size):
    """All panels of B, one after the other: out[p][i, :width] = B[i, p · width:], zeros past the end; `size`: of an element"""
    width = VECTORS * (BITS // 8) // size
    for j in range(0, n, width):
        call(packer, (k, min(width, n - j), b.address + j * b.column, b.row, b.column, out + j * k * size, width * size, width))


@helper
def _tiles(a, tile_bytes, b, c, size, add, like):
    """C (+)= A B, tile by tile. `tile_bytes`: bytes from a tile of A to the next one, if A is a copy, else 0."""
    width = VECTORS * (BITS // 8) // view(a.address, 1, like).itemsize
    count = max((size.m + HEIGHT - 1) // HEIGHT, 1)
    least, taller = size.m // count, size.m % count  # the tiles are of equal height, but the first `taller` have a row more
    panel = b.address
    for j in range(0, size.n, width):
        at_a, at_c = a.address, c.address + j * c.column
        for p in range(count):
            height = least + (p < taller)
            from_a, from_b, to_c = Matrix(at_a, a.row, a.column), Panels(panel, b.panel, b.row), Matrix(at_c, c.row, c.column)
            inline_tile(from_a, from_b, to_c, height, min(width, size.n - j), size.k, add, like)
            at_a, at_c = at_a + (tile_bytes if tile_bytes else height * a.row), at_c + height * c.row
        panel += b.panel


def _product_signature(element: Any) -> Any:
    return VOID(INT, MATRIX, PANELS_OF_B, numba.types.CPointer(element), INT, SIZE, INT)


@kernel(_product_signature, callback=True)
def multiply(packer, a, b, c, c_row, size, workspace):
    """C = A B for m ≤ ROWS, in blocks of k; `workspace`: where A's blocks are to be copied to, or 0"""
    first = numba.carray(c, 1)
    zero, item = first.dtype.type(0), first.itemsize
    tiles, tile_bytes = (size.m + HEIGHT - 1) // HEIGHT, COPIED_HEIGHT * DEPTH * item
    least, taller = size.m // tiles, size.m % tiles  # as in `_tiles`
    into = Matrix(address(first), c_row, item)
    for k0 in range(0, max(size.k, 1), DEPTH):
        block = Size(size.m, size.n, min(DEPTH, size.k - k0))
        from_a, from_b = Matrix(a.address + k0 * a.column, a.row, a.column), Panels(b.address + k0 * b.row, b.panel, b.row)
        add = 1 if k0 else 0
        if workspace:
            rows = from_a.address
            for p in range(tiles):
                height, to = least + (p < taller), workspace + p * tile_bytes
                call(packer, (block.k, height, rows, a.column, a.row, to, COPIED_HEIGHT * item, COPIED_HEIGHT))
                rows += height * a.row
            from_a = Matrix(workspace, item, COPIED_HEIGHT * item)
        _tiles(from_a, tile_bytes if workspace else 0, from_b, into, block, add, zero)


@kernel(_product_signature, callback=True, **SUMS)
def by_rows(packer, a, b, c, c_row, size, workspace):
    """C = A B, row by row, each of which reads B where it lies, straight through: the memory binds, not arithmetic."""
    first = numba.carray(c, 1)
    zero, item = first.dtype.type(0), first.itemsize
    n, k = size.n, size.k
    b_column = b.panel // (VECTORS * (BITS // 8) // item)
    for i in range(size.m):
        x, y = a.address + i * a.row, view(address(first) + i * c_row, n, zero)
        for j in range(np.uintp(n)):
            y[j] = zero
        if b.row == item and a.column == item:  # y_j += x · B_j, the columns of B being contiguous
            row = view(x, k, zero)
            for j in range(n):
                column, total = view(b.address + j * b_column, k, zero), zero
                for p in range(np.uintp(k)):
                    total += row[p] * column[p]
                y[j] += total
            continue
        last = k // 4 * 4
        for p in range(0, last, 4):  # y += x_p B_p, the rows of B being contiguous, four at a time
            x0, x1 = load(x + p * a.column, zero), load(x + (p + 1) * a.column, zero)
            x2, x3 = load(x + (p + 2) * a.column, zero), load(x + (p + 3) * a.column, zero)
            b0, b1 = view(b.address + p * b.row, n, zero), view(b.address + (p + 1) * b.row, n, zero)
            b2, b3 = view(b.address + (p + 2) * b.row, n, zero), view(b.address + (p + 3) * b.row, n, zero)
            for j in range(np.uintp(n)):
                y[j] += x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j]
        for p in range(last, k):
            x0, b0 = load(x + p * a.column, zero), view(b.address + p * b.row, n, zero)
            for j in range(np.uintp(n)):
                y[j] += x0 * b0[j]


class Tools(NamedTuple):
    """Addresses of the C functions that kernels call."""

    tile: int
    pack: int
    panels: int
    multiply: int
    finish: int


TOOLS = numba.types.NamedUniTuple(INT, len(Tools._fields), Tools)


class _Tools(dict):
    """By element type; `panels` knows elements by their size alone."""

    def __missing__(self, letter: str) -> Tools:
        self[letter] = Tools(tile[letter], pack[letter], panels["f"], multiply[letter], finish[letter])
        return self[letter]


tools = _Tools()


@helper
def into_panels(tools, b, k, n, out, size):
    """Call `panels`."""
    call(tools.panels, (tools.pack, b, k, n, out, size))


# ---------------------------------------------------------------------------------------------------------------------
# Which way
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _is_row_by_row(size, a, b, item):
    """Is a product one for `by_rows`? Its sums are not taken in blocks, so k must not be too long."""
    return size.m <= ROW_BY_ROW and size.k <= 16 * DEPTH and (b.column == item or (b.row == item and a.column == item))


@helper
def _can_be_read(b, n, item):
    """Can the tile read B where it lies?"""
    return b.column == item and b.row % CONFLICT != 0 and (MASKED or n * item % (BITS // 8) == 0)


@kernel(lambda element: numba.boolean(INT, INT, operand(element, 2), operand(element, 2), result(element, 2)), unchecked=True)
def small(packer, row_by_row, a, b, c):
    """C = A B by the calling thread, with as few arguments as can be: at 16 × 16 they cost more than the product.

    False, and nothing done, where the shapes do not agree or k is so long that its sums should be taken in blocks.
    """
    size, item, zero = Size(a.shape[0], c.shape[1], a.shape[1]), c.itemsize, c.dtype.type(0)
    width = VECTORS * (BITS // 8) // item
    if b.shape[0] != size.k:
        return False
    from_a, from_b = Matrix(address(a), a.strides[0], a.strides[1]), Matrix(address(b), b.strides[0], b.strides[1])
    into = Matrix(address(c), c.strides[0], item)
    where_it_lies = Panels(from_b.address, width * from_b.column, from_b.row)
    if _is_row_by_row(size, from_a, from_b, item):
        call(row_by_row, (packer, from_a, where_it_lies, into.address, into.row, size, 0))
        return True
    if size.k > 4 * DEPTH:
        return False
    if _can_be_read(from_b, size.n, item):
        _tiles(from_a, 0, where_it_lies, into, size, 0, zero)
    else:
        workspace = np.empty((size.n + width - 1) // width * width * size.k, c.dtype)
        _copied_and_multiplied(packer, workspace, from_a, from_b, into, size, zero)
    return True


@helper
def _copied_and_multiplied(packer, workspace, a, b, c, size, like):
    """C = A B with B copied into panels, which fill the workspace"""
    item = workspace.itemsize
    width, to = VECTORS * (BITS // 8) // item, address(workspace)
    for j in range(0, size.n, width):
        columns, source, panel = min(width, size.n - j), b.address + j * b.column, to + j * size.k * item
        call(packer, (size.k, columns, source, b.row, b.column, panel, width * item, width))
    _tiles(a, 0, Panels(to, size.k * width * item, width * item), c, size, 0, like)


# ---------------------------------------------------------------------------------------------------------------------
# All but small products
# ---------------------------------------------------------------------------------------------------------------------

# What the kernels are told of a plan: the C functions; are blocks of A copied, is B read where it lies; how many parts of
# columns there are, how many threads, and how many elements of the workspace belong to each.
JOB = np.dtype([(name, np.intp) for name in (*Tools._fields, "copies_a", "reads_b", "across", "threads", "elements")])
OFFSETS = np.dtype([(name, np.intp) for name in "abc"])  # bytes from the first matrix of A, B, C to those of one product
JOBS, OFFSETS_OF_BATCH = (numba.types.Array(numba.from_dtype(kind), 1, "C", readonly=True) for kind in (JOB, OFFSETS))


class Block(NamedTuple):
    """Rows i0 to i1 and columns j0 to j1 of C."""

    i0: int
    i1: int
    j0: int
    j1: int


@helper
def _rectangle(job, a, b, c, k, block, epilogue, workspace):
    """A block of one product of the batch, by one thread, in its own workspace"""
    item = c.column
    width = VECTORS * (BITS // 8) // item
    copied_a, copied_b = workspace if job.copies_a else 0, workspace + COPIED_BLOCK * item * job.copies_a
    step = max(PANELS // job.threads // (max(k, 1) * width), 1) * width
    if job.reads_b:
        step = max(block.j1 - block.j0, 1)
    for j in range(block.j0, block.j1, step):
        columns = min(step, block.j1 - j)
        from_b = Panels(b.address + j * b.column, width * b.column, b.row)
        if not job.reads_b:
            into_panels(job, Matrix(from_b.address, b.row, b.column), k, columns, copied_b, item)
            from_b = Panels(copied_b, k * width * item, width * item)
        for i in range(block.i0, block.i1, ROWS):
            size = Size(min(ROWS, block.i1 - i), columns, k)
            from_a, to_c = Matrix(a.address + i * a.row, a.row, a.column), c.address + i * c.row + j * item
            call(job.multiply, (job.pack, from_a, from_b, to_c, c.row, size, copied_a))
            if epilogue.bias or epilogue.activation:
                bias = epilogue.bias + j * item if epilogue.bias else 0
                call(job.finish, (to_c, c.row, size.m, columns, bias, epilogue.activation))


@helper
def _share(t, job, a, b, c, offsets, bias, activation, workspace):
    """What thread t does: some columns of some rows of all products of the batch, the rows counted end to end"""
    (m, n), item, batch = c.shape, c.itemsize, len(offsets)
    lanes = BITS // 8 // item
    across, parts = job.across, job.threads // job.across
    column, row, vectors = t % across, t // across, (n + lanes - 1) // lanes
    j0, j1 = column * vectors // across * lanes, min((column + 1) * vectors // across * lanes, n)
    first, last = row * batch * m // parts, (row + 1) * batch * m // parts
    epilogue, own = Epilogue(address(bias) if bias.size else 0, activation), address(workspace) + t * job.elements * item
    while first < last:
        z = first // m
        where, i0 = offsets[z], first - z * m
        i1 = min(m, i0 + last - first)
        from_a = Matrix(address(a) + where.a, a.strides[0], a.strides[1])
        from_b = Matrix(address(b) + where.b, b.strides[0], b.strides[1])
        to_c = Matrix(address(c) + where.c, c.strides[0], item)
        _rectangle(job, from_a, from_b, to_c, b.shape[0], Block(i0, i1, j0, j1), epilogue, own)
        first += i1 - i0


def _signature(element: Any) -> Any:
    matrix, bias = operand(element, 2), operand(element, 1)
    return VOID(JOBS, matrix, matrix, result(element, 2), OFFSETS_OF_BATCH, bias, INT, result(element, 1, "C"))


@kernel(_signature, unchecked=True)
def serial(jobs, a, b, c, offsets, bias, activation, workspace):
    """All by the calling thread; `jobs`: an array of one."""
    _share(0, jobs[0], a, b, c, offsets, bias, activation, workspace)


@kernel(_signature, unchecked=True, parallel=True)
def parallel(jobs, a, b, c, offsets, bias, activation, workspace):
    """Each thread its share."""
    for t in numba.prange(jobs[0].threads):
        _share(t, jobs[0], a, b, c, offsets, bias, activation, workspace)


class Plan:
    """All that follows from the shapes, strides and type of the operands: how to compute C, and what its shape is.

    A thread's share of C of r rows and v vectors of columns takes about (r + PACKING) v steps for each k, without PACKING
    where B is read where it lies. Of all ways to divide the threads between rows and columns, the cheapest is taken.
    """

    shape: tuple[int, ...] | None = None  # of C; None: the reference has to judge these shapes
    kernel: Any = None  # None: nothing to compute
    rows_lie = columns_lie = True  # are the rows of C contiguous, are its columns?
    stacked: tuple[int, int] | None = None  # the shape of A as one matrix, where a stack of them times one B is one product
    first: list[tuple[int, ...]] | None = None  # the index of the first matrix of A, B and C, where they are stacks

    def __init__(
        self, letter: str, a: tuple, a_strides: tuple, b: tuple, b_strides: tuple, c_strides: tuple | None, nt: int
    ) -> None:
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            return
        item, (m, k), n = np.dtype(letter).itemsize, a[-2:], b[-1]
        lead = np.broadcast_shapes(a[:-2], b[:-2])
        self.shape = shape = (*lead, m, n)
        if c_strides is None or len(c_strides) != len(shape):
            c_strides = tuple(item * math.prod(shape[d + 1 :]) for d in range(len(shape)))
        self.rows_lie, self.columns_lie = c_strides[-1] == item or n == 1, c_strides[-2] == item or m == 1
        if 0 in shape:
            return
        if len(b) == 2 < len(a) and _contiguous(a, a_strides, item) and _contiguous(shape, c_strides, item):
            m = math.prod(a[:-1])
            lead, self.stacked, a_strides, c_strides = (), (m, k), (item * k, item), (item * n, item)
        stacks = ((a[:-2], a_strides[:-2]), (b[:-2], b_strides[:-2]), (lead, c_strides[:-2])) if lead else [((), ())] * 3
        self.offsets = np.empty(math.prod(lead), OFFSETS)
        for name, stack in zip(OFFSETS.names, stacks, strict=True):
            self.offsets[name] = offsets(lead, *stack)
        self.offsets.flags.writeable = False
        self.first = [(0,) * len(dimensions) for dimensions, _ in stacks] if lead else None
        # the rules: see the head of the file
        width, batch, vectors = VECTORS * lanes(item), math.prod(lead), _ceil(n, lanes(item))
        size, of_a, of_b = Size(m, n, k), Matrix(0, *a_strides[-2:]), Matrix(0, *b_strides[-2:])
        far = max(of_a.row, of_a.column)
        copies_a = m >= 2 * HEIGHT and n >= 4 * width and (k > 4 * DEPTH or (k > DEPTH // 2 and far % CONFLICT == 0))
        row_by_row = _is_row_by_row.py_func(size, of_a, of_b, item)
        reads_b = row_by_row or _can_be_read.py_func(of_b, n, item)
        if batch * m * n * k <= SERIAL:
            nt = 1
        ways = [p for p in range(1, nt + 1) if nt % p == 0]  # p parts of columns, nt // p of rows
        across = min(ways, key=lambda p: (_ceil(batch * m * p, nt) + PACKING * (not reads_b)) * _ceil(vectors, p))
        count = _ceil(_ceil(vectors, across), VECTORS)
        of_panels = 0 if reads_b else k * width * min(count, max(PANELS // nt // (max(k, 1) * width), 1))
        elements = (of_panels + copies_a * COPIED_BLOCK + 15) // 16 * 16
        self.workspace = nt * elements
        self.kernel = (serial if nt == 1 else parallel)[letter]
        called = tools[letter]._replace(multiply=by_rows[letter]) if row_by_row else tools[letter]
        self.jobs = np.array([(*called, copies_a, reads_b, across, nt, elements)], JOB)
        self.jobs.flags.writeable = False


def _ceil(n: int, parts: int) -> int:
    return -(-n // parts)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    for n, stride in zip(shape[::-1], strides[::-1], strict=True):
        if n > 1 and stride != size:
            return False
        size *= n
    return True


plan = lru_cache(maxsize=4096)(Plan)

# ---------------------------------------------------------------------------------------------------------------------
# The kernels
# ---------------------------------------------------------------------------------------------------------------------

NONE = {letter: np.zeros(0, letter) for letter in "fd"}
ready: dict[str, tuple] = {}  # `small` and the addresses that it takes: one look-up, whose cost is seen at 16 × 16


@lru_cache(maxsize=4096)
def offsets(batch: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Byte offsets of the matrices of one operand, in the order of the batch; broadcast dimensions stand still."""
    table = np.zeros(batch, np.intp)
    lead = len(batch) - len(shape)
    for d, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size > 1:
            table += (stride * np.arange(size)).reshape((size,) + (1,) * (len(batch) - lead - d - 1))
    table = table.reshape(-1)
    table.flags.writeable = False
    return table


def matmul(a: Array, b: Array, *, out: Array | None = None, bias: Array | None = None, activation: str | None = None) -> Array:
    dtype = a.dtype
    letter = "f" if dtype is FLOAT else "d" if dtype is DOUBLE else LETTERS.get(dtype)
    if dtype is b.dtype and out is bias is activation is None and a.ndim == 2 == b.ndim and letter:
        n = b.shape[1]
        products = a.size * n
        if products <= SERIAL or (products <= SMALL and threads() == 1):
            c = np.empty((len(a), n), dtype)
            if letter not in ready:
                ready[letter] = small[letter], pack[letter], by_rows[letter]
            product, packer, row_by_row = ready[letter]
            if product(packer, row_by_row, a, b, c):
                return c
    f = ACTIVATIONS.get(activation)
    if letter is None or (b.dtype is not dtype and b.dtype != dtype):
        return reference.matmul(a, b, out=out, bias=bias, activation=activation)
    how = plan(letter, a.shape, a.strides, b.shape, b.strides, None if out is None else out.strides, threads())
    shape = how.shape
    if out is None and shape is not None:
        c = np.empty(shape, dtype)
    elif out is None or out.shape != shape or out.dtype != dtype or not out.flags.writeable or not out.flags.aligned:
        return reference.matmul(a, b, out=out, bias=bias, activation=activation)
    else:
        c = out
        transposed = how.columns_lie and bias is None and f == 0
        if np.may_share_memory(c, a) or np.may_share_memory(c, b) or not (how.rows_lie or transposed):
            c[...] = matmul(a, b, bias=bias, activation=activation)
            return c
        if not how.rows_lie:  # Cᵀ = Bᵀ Aᵀ
            matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2), out=c.swapaxes(-1, -2))
            return c
    if how.kernel is None:  # nothing to compute
        return c
    if f is None or (bias is not None and (bias.shape != shape[-1:] or bias.dtype != dtype)):
        return reference.finish(matmul(a, b, out=c), bias, activation)
    if bias is None:
        bias = NONE[letter]
    elif not bias.flags.c_contiguous or np.may_share_memory(c, bias):
        bias = bias.copy()
    x, y = a, c
    if how.stacked:
        x, y = a.reshape(how.stacked), c.reshape(how.stacked[0], shape[-1])
    elif how.first:
        x, b, y = a[how.first[0]], b[how.first[1]], c[how.first[2]]
    how.kernel(how.jobs, x, b, y, how.offsets, bias, f, scratch(letter, how.workspace))
    return c


def einsum(equation: str, *operands: Array) -> Array:
    """The operands two by two, each pair one product.

    A label of both operands counts a batch if the result names it, else the product sums over it; a label of one operand counts
    rows or columns.
    """
    left, out = equation.split("->")
    names, xs = left.split(","), list(operands)
    dtype = xs[0].dtype
    if len(xs) < 2 or dtype not in LETTERS or any(x.dtype != dtype or not x.size for x in xs):
        return reference.einsum(equation, *operands)
    while len(xs) > 1:
        (p, q, *others), (x, y, *rest) = names, xs
        wanted = out + "".join(others)
        batch, inner = ([c for c in p if c in q and (c in wanted) is named] for named in (True, False))
        rows, columns = [c for c in p if c not in q], [c for c in q if c not in p]
        if any(c not in wanted for c in rows + columns):
            return reference.einsum(equation, *operands)
        size = dict(zip(p + q, x.shape + y.shape, strict=True))
        z, m, n, k = ([size[c] for c in cs] for cs in (batch, rows, columns, inner))
        a = x.transpose([p.index(c) for c in batch + rows + inner]).reshape((*z, math.prod(m), math.prod(k)))
        b = y.transpose([q.index(c) for c in batch + inner + columns]).reshape((*z, math.prod(k), math.prod(n)))
        names, xs = ["".join(batch + rows + columns), *others], [matmul(a, b).reshape((*z, *m, *n)), *rest]
    return xs[0].transpose([names[0].index(c) for c in out])
