r"""Matrix products, C = f(A B + bias), around the register tile of `simd`.

    each thread takes a rectangle of C, of so many rows and columns, and does for it alone:
      for each block of columns (PANEL_ROOM):             its part of B is copied into panels as wide as a tile, once
        for each block of rows (ROWS):
          for each block of k (DEPTH):                    its part of A now fits the L2 cache, a panel of B the L1
            for each panel of B:   for each tile of rows:   c_tile += a_tile b_panel, in registers
          f and bias, while the rows are still in the cache

A is read where it lies, whatever its strides, since the tile takes its elements one by one; it is copied first only
where its rows lie at a distance that maps them all to the same few cache lines (a power of two), or where k is so long
that a block of it leaves the cache. B is read where it lies if its rows are contiguous, the tile can read what is left of
them (`MASKED`), and they lie at no such distance. Threads share nothing, so one launch does: it costs 2.5 µs, as much as
50 × 50 × 50 products. How they divide C follows from what is to be read, packed and added up (`Plan`).

What follows from the shapes and strides alone is worked out once for each of them, and kept (`plan`): a step of training
meets the same ones again and again, and at the sizes of small models the decisions would cost as much as the product.

One row, y = x B, as in generating a text token by token, is bound by the reading of B, which no other row will use again:
it is read straight through, by rows or by columns, as it lies (`by_rows`). Tiles would pick at it, or copy it first; that
pays from the third row on.

Batches: a kernel is given the first matrix of each operand and a table of the byte offsets of the others, so leading
dimensions of any number and stride, broadcast or not, cost nothing and are never copied.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, LETTERS, SUMS, TABLE, VOID, given, helper, kernel, result
from kernels.cpu.functions import erf, tanh
from kernels.cpu.memory import scratch
from kernels.cpu.simd import BITS, HEIGHT, MASKED, VECTORS, address, call, inline_tile, lanes, load, pack, tile, view
from kernels.cpu.threads import threads

Array = np.ndarray

DEPTH = 256  # terms of k between two visits to C
ROWS = 16 * HEIGHT  # rows of A in the cache at a time
SLOT = -(-HEIGHT // (BITS // 32)) * (BITS // 32)  # rows of a copied tile of A, up to whole vectors
A_ROOM = 17 * SLOT * DEPTH  # elements of a copied block of A
PANEL_ROOM = 1 << 22  # elements of B in panels at a time
FEW = 2  # rows of C that are computed one by one, each reading all of B
PACKING = 12  # rows of C that could be computed in the time in which their part of B is copied into panels
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}
SERIAL = 80**3  # products below which a second thread costs more than it brings
SMALL = 128**3  # products below which one thread does without a plan
FLOAT, DOUBLE = LETTERS


@kernel(lambda T: VOID(numba.types.CPointer(T), INT, INT, INT, INT, INT), callback=True)
def finish(c, c_rs, rows, n, bias, activation):
    """f(c + bias) on some rows of C; `bias`: address of what belongs to the first column, or 0"""
    first = numba.carray(c, n)
    T = first.dtype.type
    zero, one, half, root = T(0), T(1), T(0.5), T(0.7071067811865476)
    a, b = T(0.7978845608028654), T(0.044715)
    for i in range(rows):
        x = view(address(first) + i * c_rs, n, zero)
        if bias:
            shift = view(bias, n, zero)
            for j in range(np.uintp(n)):
                x[j] += shift[j]
        if activation == 1:
            for j in range(np.uintp(n)):
                x[j] = zero if x[j] < zero else x[j]
        elif activation == 2:
            for j in range(np.uintp(n)):
                x[j] *= half * (one + erf(x[j] * root))
        elif activation == 3:
            for j in range(np.uintp(n)):
                x[j] *= half * (one + tanh(a * x[j] * (one + b * x[j] * x[j])))


@kernel(lambda T: VOID(*[INT] * 10), callback=True)
def panels(packer, b, b_rs, b_cs, k, n, first, last, out, size):
    """Panels `first` to `last` of B, one after the other: out[p][i, :width] = B[i, p · width:], zeros past the end"""
    width = VECTORS * (BITS // 8) // size
    for p in range(first, last):
        j = p * width
        call(packer, (k, min(width, n - j), b + j * b_cs, b_rs, b_cs, out + j * k * size, width * size, width))


@kernel(lambda T: VOID(*[INT] * 7, numba.types.CPointer(T), *[INT] * 6), callback=True)
def multiply(packer, a, a_rs, a_cs, b, b_ps, b_rs, c, c_rs, m, n, k, add, room):
    """C[:m, :n] (+)= A B, m ≤ ROWS, B in panels b_ps apart with rows b_rs apart; `room`: where A is to be copied to, or 0."""
    first = numba.carray(c, 1)
    zero, size = first.dtype.type(0), first.itemsize
    width = VECTORS * (BITS // 8) // size
    tiles = (m + HEIGHT - 1) // HEIGHT
    least, taller = m // tiles, m % tiles  # the first so many tiles have one row more
    for k0 in range(0, max(k, 1), DEPTH):
        depth, again = min(DEPTH, k - k0), 1 if add or k0 else 0
        if room:
            for p in range(tiles):
                height, source = least + (p < taller), a + (p * least + min(p, taller)) * a_rs + k0 * a_cs
                call(packer, (depth, height, source, a_cs, a_rs, room + p * SLOT * DEPTH * size, SLOT * size, SLOT))
        panel = b + k0 * b_rs
        for j in range(0, n, width):
            at_a, rs, cs, at_c = a + k0 * a_cs, a_rs, a_cs, address(first) + j * size
            if room:
                at_a, rs, cs = room, size, SLOT * size
            for p in range(tiles):
                height = least + (p < taller)
                inline_tile(depth, at_a, rs, cs, panel, b_rs, at_c, c_rs, height, min(width, n - j), again, zero)
                at_a, at_c = at_a + (SLOT * DEPTH * size if room else height * a_rs), at_c + height * c_rs
            panel += b_ps


@kernel(lambda T: VOID(*[INT] * 7, numba.types.CPointer(T), *[INT] * 6), callback=True, **SUMS)
def by_rows(packer, a, a_rs, a_cs, b, b_ps, b_rs, c, c_rs, m, n, k, add, room):
    """The same for one row or a few, each of which reads B where it lies, in one go: the memory binds, not arithmetic."""
    first = numba.carray(c, 1)
    zero, size = first.dtype.type(0), first.itemsize
    b_cs = b_ps // (VECTORS * (BITS // 8) // size)
    for i in range(m):
        x, y = a + i * a_rs, view(address(first) + i * c_rs, n, zero)
        if not add:
            for j in range(np.uintp(n)):
                y[j] = zero
        if b_rs == size and a_cs == size:  # y_j += x · B_j, the columns of B being contiguous
            row = view(x, k, zero)
            for j in range(n):
                column, total = view(b + j * b_cs, k, zero), zero
                for p in range(np.uintp(k)):
                    total += row[p] * column[p]
                y[j] += total
            continue
        last = k // 4 * 4
        for p in range(0, last, 4):  # y += x_p B_p, the rows of B being contiguous, four at a time
            x0, x1 = load(x + p * a_cs, zero), load(x + (p + 1) * a_cs, zero)
            x2, x3 = load(x + (p + 2) * a_cs, zero), load(x + (p + 3) * a_cs, zero)
            b0, b1 = view(b + p * b_rs, n, zero), view(b + (p + 1) * b_rs, n, zero)
            b2, b3 = view(b + (p + 2) * b_rs, n, zero), view(b + (p + 3) * b_rs, n, zero)
            for j in range(np.uintp(n)):
                y[j] += x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j]
        for p in range(last, k):
            x0, b0 = load(x + p * a_cs, zero), view(b + p * b_rs, n, zero)
            for j in range(np.uintp(n)):
                y[j] += x0 * b0[j]


@helper
def few(m, k, a_cs, b_rs, b_cs, size):
    """Is a product one for `by_rows`? Its sums are not taken in blocks, so k is not to be too long."""
    return m <= FEW and k <= 16 * DEPTH and (b_cs == size or (b_rs == size and a_cs == size))


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
def into_panels(tools, b, b_rs, b_cs, k, n, first, last, out, size):
    """Call `panels`."""
    call(tools.panels, (tools.pack, b, b_rs, b_cs, k, n, first, last, out, size))


# ---------------------------------------------------------------------------------------------------------------------
# Small products
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _by_tiles(sizes, a, b, c, zero):
    """C = A B;  a: (address, strides), b: (address, distances of its panels and of their rows), c: (address, of its rows)"""
    (m, n, k), (a, a_rs, a_cs), (b, b_ps, b_rs), (c, c_rs) = sizes, a, b, c
    size = view(a, 1, zero).itemsize
    width = VECTORS * (BITS // 8) // size
    tiles = max((m + HEIGHT - 1) // HEIGHT, 1)
    least, taller = m // tiles, m % tiles  # the first so many tiles have one row more
    for j in range(0, n, width):
        at_a, at_c = a, c + j * size
        for p in range(tiles):
            height = least + (p < taller)
            inline_tile(k, at_a, a_rs, a_cs, b, b_rs, at_c, c_rs, height, min(width, n - j), 0, zero)
            at_a, at_c = at_a + height * a_rs, at_c + height * c_rs
        b += b_ps


@helper
def _by_copied_tiles(packer, workspace, sizes, a, b, c, zero):
    """The same for b: (address, strides), copied into panels first, which fill the workspace"""
    (_, n, k), (b, b_rs, b_cs), size = sizes, b, workspace.itemsize
    width = VECTORS * (BITS // 8) // size
    for j in range(0, n, width):
        to = address(workspace) + j * k * size
        call(packer, (k, min(width, n - j), b + j * b_cs, b_rs, b_cs, to, width * size, width))
    _by_tiles(sizes, a, (address(workspace), k * width * size, width * size), c, zero)


@kernel(lambda T: numba.boolean(INT, INT, given(T, 2), given(T, 2), result(T, 2)), unchecked=True)
def small(packer, rows, a, b, c):
    """C = A B by the calling thread, with as few arguments as can be: at 16 × 16 they cost more than the product.

    False, and nothing done, where the shapes do not agree or k is so long that its sums should be taken in blocks.
    """
    (m, k), n, size = a.shape, c.shape[1], c.itemsize
    width = VECTORS * (BITS // 8) // size
    (a_rs, a_cs), (b_rs, b_cs), c_rs = a.strides, b.strides, c.strides[0]
    if b.shape[0] != k:
        return False
    at_a, at_b, at_c, zero = address(a), address(b), address(c), c.dtype.type(0)
    if few(m, k, a_cs, b_rs, b_cs, size):
        call(rows, (packer, at_a, a_rs, a_cs, at_b, width * b_cs, b_rs, at_c, c_rs, m, n, k, 0, 0))
        return True
    if k > 4 * DEPTH:
        return False
    sizes, of_a, of_c = (m, n, k), (at_a, a_rs, a_cs), (at_c, c_rs)
    if b_cs != size or b_rs % 4096 == 0 or not (MASKED or n % (width // VECTORS) == 0):
        workspace = np.empty((n + width - 1) // width * width * k, c.dtype)
        _by_copied_tiles(packer, workspace, sizes, of_a, (at_b, b_rs, b_cs), of_c, zero)
    else:
        _by_tiles(sizes, of_a, (at_b, width * b_cs, b_rs), of_c, zero)
    return True


# ---------------------------------------------------------------------------------------------------------------------
# All others
# ---------------------------------------------------------------------------------------------------------------------


@helper
def _rectangle(use, a, b, c, za, zb, zc, i0, i1, j0, j1, bias, activation, add, room):
    """Rows i0 to i1 and columns j0 to j1 of one product of the batch, by one thread in its own workspace."""
    size = c.itemsize
    k = b.shape[0]
    a_rs, a_cs = a.strides
    b_rs, b_cs = b.strides
    c_rs = c.strides[0]
    width = VECTORS * (BITS // 8) // size
    called, room_a = Tools(use[0], use[1], use[2], use[3], use[4]), room if use[COPY_A] else 0
    room_b = room + A_ROOM * size * use[COPY_A]
    step = max(j1 - j0, 1) if use[DIRECT] else max(PANEL_ROOM // use[THREADS] // (max(k, 1) * width), 1) * width
    for j in range(j0, j1, step):
        columns = min(step, j1 - j)
        source = address(b) + zb + j * b_cs
        at_b, b_ps, rs = source, width * b_cs, b_rs
        if not use[DIRECT]:
            at_b, b_ps, rs = room_b, k * width * size, width * size
            into_panels(called, source, b_rs, b_cs, k, columns, 0, (columns + width - 1) // width, room_b, size)
        for i in range(i0, i1, ROWS):
            rows = min(ROWS, i1 - i)
            at_a, at_c = address(a) + za + i * a_rs, address(c) + zc + i * c_rs + j * size
            call(called.multiply, (called.pack, at_a, a_rs, a_cs, at_b, b_ps, rs, at_c, c_rs, rows, columns, k, add, room_a))
            if bias.size or activation:
                call(called.finish, (at_c, c_rs, rows, columns, address(bias) + j * size if bias.size else 0, activation))


@helper
def _share(t, use, a, b, c, places, bias, activation, add, room):
    """What thread t does: some columns of some rows of all products of the batch, the rows counted end to end."""
    (m, n), batch, size = c.shape, places.shape[1], c.itemsize
    width = BITS // 8 // size
    across, parts = use[ACROSS], use[THREADS] // use[ACROSS]
    column, row, vectors = t % across, t // across, (n + width - 1) // width
    j0, j1 = column * vectors // across * width, min((column + 1) * vectors // across * width, n)
    first, last = row * batch * m // parts, (row + 1) * batch * m // parts
    place = address(room) + t * use[PART] * size
    while first < last:
        z = first // m
        i0 = first - z * m
        i1 = min(m, i0 + last - first)
        _rectangle(use, a, b, c, places[0, z], places[1, z], places[2, z], i0, i1, j0, j1, bias, activation, add, place)
        first += i1 - i0


MULTIPLY, COPY_A, DIRECT, ACROSS, THREADS, PART = 3, *range(5, 10)  # in the table of a plan

PLACES = numba.types.Array(numba.intp, 2, "C", readonly=True)


def _signature(T: Any) -> Any:
    operands = given(T, 2), given(T, 2), result(T, 2)
    return VOID(TABLE, *operands, PLACES, given(T, 1), INT, INT, result(T, 1, "C"))


@kernel(_signature, unchecked=True)
def serial(use, a, b, c, places, bias, activation, add, room):
    """All by the calling thread."""
    _share(0, use, a, b, c, places, bias, activation, add, room)


@kernel(_signature, unchecked=True, parallel=True)
def parallel(use, a, b, c, places, bias, activation, add, room):
    """Each thread its share."""
    for t in numba.prange(use[THREADS]):
        _share(t, use, a, b, c, places, bias, activation, add, room)


class Plan:
    """All that follows from the shapes, strides and type of the operands: how to compute C, and what its shape is.

    A thread's share of C of r rows and v vectors of columns takes about (r + PACKING) v steps for each k, without PACKING
    where B is read where it lies: of all ways to divide the threads between rows and columns, the one with the least.
    """

    shape: tuple[int, ...] | None = None  # of C; None: these shapes are the reference's to judge
    kernel: Any = None  # None: nothing to compute
    straight = turned = True  # do the rows of C, or its columns, lie in one piece?
    flat: tuple[int, int] | None = None  # the shape of A as one matrix, where a stack of them times one B is one product
    first: list[tuple[int, ...]] | None = None  # the index of the first matrix of A, B and C, where they are stacks

    def __init__(
        self, letter: str, a: tuple, a_strides: tuple, b: tuple, b_strides: tuple, c_strides: tuple | None, nt: int
    ) -> None:
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            return
        size, (m, k), n = np.dtype(letter).itemsize, a[-2:], b[-1]
        lead = np.broadcast_shapes(a[:-2], b[:-2])
        self.shape = shape = (*lead, m, n)
        if c_strides is None or len(c_strides) != len(shape):
            c_strides = tuple(size * math.prod(shape[d + 1 :]) for d in range(len(shape)))
        self.straight, self.turned = c_strides[-1] == size or n == 1, c_strides[-2] == size or m == 1
        if 0 in shape:
            return
        if len(b) == 2 < len(a) and _contiguous(a, a_strides, size) and _contiguous(shape, c_strides, size):
            m = math.prod(a[:-1])
            lead, self.flat, a_strides, c_strides = (), (m, k), (size * k, size), (size * n, size)
        stacks = ((a[:-2], a_strides[:-2]), (b[:-2], b_strides[:-2]), (lead, c_strides[:-2])) if lead else [((), ())] * 3
        self.places = np.array([offsets(lead, *stack) for stack in stacks])
        self.places.flags.writeable = False
        self.first = [(0,) * len(dimensions) for dimensions, _ in stacks] if lead else None
        # the rules: see the head of the file
        width, batch, vectors = VECTORS * lanes(size), math.prod(lead), _ceil(n, lanes(size))
        far = max(a_strides[-2:])
        copy_a = m >= 2 * HEIGHT and n >= 4 * width and (k > 1024 or (k > 128 and far % 4096 == 0))
        by_row = few.py_func(m, k, a_strides[-1], *b_strides[-2:], size)
        direct = by_row or b_strides[-1] == size and b_strides[-2] % 4096 != 0 and (MASKED or n % lanes(size) == 0)
        if batch * m * n * k <= SERIAL:
            nt = 1
        ways = [p for p in range(1, nt + 1) if nt % p == 0]  # so many parts of columns, nt // p of rows
        across = min(ways, key=lambda p: (_ceil(batch * m * p, nt) + PACKING * (not direct)) * _ceil(vectors, p))
        panels = _ceil(_ceil(vectors, across), VECTORS)
        room_b = 0 if direct else k * width * min(panels, max(PANEL_ROOM // nt // (max(k, 1) * width), 1))
        part = (room_b + copy_a * A_ROOM + 15) // 16 * 16
        self.room = nt * part
        self.kernel = (serial if nt == 1 else parallel)[letter]
        self.table = np.array([*tools[letter], copy_a, direct, across, nt, part], np.intp)
        if by_row:
            self.table[MULTIPLY] = by_rows[letter]
        self.table.flags.writeable = False


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
# The door
# ---------------------------------------------------------------------------------------------------------------------

NONE = {letter: np.zeros(0, letter) for letter in "fd"}
ready: dict[str, tuple] = {}  # `small` and the addresses that it takes: one look-up, which tells at 16 × 16


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


def matmul(
    a: Array,
    b: Array,
    *,
    out: Array | None = None,
    bias: Array | None = None,
    activation: str | None = None,
    accumulate: bool = False,
) -> Array:
    """C = f(A B + bias), or C + A B.     (…, m, k), (…, k, n) → (…, m, n)"""
    dtype = a.dtype
    letter = "f" if dtype is FLOAT else "d" if dtype is DOUBLE else LETTERS.get(dtype)
    if dtype is b.dtype and out is bias is activation is None and a.ndim == 2 == b.ndim and letter:
        n = b.shape[1]
        products = a.size * n
        if products <= SERIAL or (products <= SMALL and threads() == 1):
            c = np.empty((len(a), n), dtype)
            if letter not in ready:
                ready[letter] = small[letter], pack[letter], by_rows[letter]
            product, packer, rows = ready[letter]
            if product(packer, rows, a, b, c):
                return c
    f = ACTIVATIONS.get(activation)
    if letter is None or (b.dtype is not dtype and b.dtype != dtype):
        return reference.matmul(a, b, out=out, bias=bias, activation=activation, accumulate=accumulate)
    how = plan(letter, a.shape, a.strides, b.shape, b.strides, None if out is None else out.strides, threads())
    shape = how.shape
    if out is None and shape is not None:
        c = np.zeros(shape, dtype) if accumulate else np.empty(shape, dtype)
    elif out is None or out.shape != shape or out.dtype != dtype or not out.flags.writeable or not out.flags.aligned:
        return reference.matmul(a, b, out=out, bias=bias, activation=activation, accumulate=accumulate)
    else:
        c = out
        turned = how.turned and bias is None and f == 0
        if np.may_share_memory(c, a) or np.may_share_memory(c, b) or not (how.straight or turned):
            c[...] = matmul(
                a, b, bias=bias, activation=activation, out=c.copy("C") if accumulate else None, accumulate=accumulate
            )
            return c
        if not how.straight:  # Cᵀ = Bᵀ Aᵀ
            matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2), out=c.swapaxes(-1, -2), accumulate=accumulate)
            return c
    if how.kernel is None:  # nothing to compute
        return c
    if f is None or (bias is not None and (bias.shape != shape[-1:] or bias.dtype != dtype)):
        return reference.finish(matmul(a, b, out=c, accumulate=accumulate), bias, activation)
    if bias is None:
        bias = NONE[letter]
    elif not bias.flags.c_contiguous or np.may_share_memory(c, bias):
        bias = bias.copy()
    x, y = a, c
    if how.flat:
        x, y = a.reshape(how.flat), c.reshape(how.flat[0], shape[-1])
    elif how.first:
        x, b, y = a[how.first[0]], b[how.first[1]], c[how.first[2]]
    how.kernel(how.table, x, b, y, how.places, bias, f, accumulate, scratch(letter, how.room))
    return c


def einsum(equation: str, *operands: Array) -> Array:
    """Σ over the labels that the result does not name, of the product of the operands: two by two, each pair one product.

    A label of both operands counts a batch if the result names it, else it is summed over; one of a single operand
    counts rows or columns.
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
