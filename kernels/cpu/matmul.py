r"""Matrix products, C = f(A B + bias), around the register tile of `simd`.

    for each block of columns of C (PANEL_ROOM):          its part of B is copied into panels as wide as a tile, once
      for each block of rows (ROWS):                      threads share these
        for each block of k (DEPTH):                      its part of A now fits the L2 cache, a panel of B the L1
          for each panel of B:   for each tile of rows:   c_tile += a_tile b_panel, in registers
        f and bias, while the rows are still in the cache

A is read where it lies, whatever its strides, since the tile takes its elements one by one; it is copied first only
where its rows lie at a distance that maps them all to the same few cache lines (a power of two), or where k is so long
that a block of it leaves the cache. B is read where it lies if its rows are contiguous and it is small. Both rules follow
earlier measurements on a machine with AVX-512; they are not measured anew here.

Batches: a kernel is given the first matrix of each operand and a table of the byte offsets of the others, so leading
dimensions of any number and stride, broadcast or not, cost nothing and are never copied.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, TABLE, VOID, given, helper, kernel, result
from kernels.cpu.functions import erf, tanh
from kernels.cpu.memory import scratch
from kernels.cpu.simd import BITS, HEIGHT, VECTORS, address, call, pack, tile, view
from kernels.cpu.threads import threads

Array = np.ndarray

DEPTH = 256  # terms of k between two visits to C
ROWS = 16 * HEIGHT  # rows of A in the cache at a time
SLOT = -(-HEIGHT // (BITS // 32)) * (BITS // 32)  # rows of a copied tile of A, up to whole vectors
A_ROOM = 17 * SLOT * DEPTH  # elements of a copied block of A
PANEL_ROOM = 1 << 22  # elements of B in panels at a time
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}
DIRECT = 1 << 14  # elements of B up to which it is read where it lies
SERIAL = 96**3  # products below which a second thread costs more than it brings


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


@kernel(lambda T: VOID(*[INT] * 17), callback=True)
def multiply(tiler, packer, a, a_rs, a_cs, b, b_ps, b_rs, edge, c, c_rs, m, n, k, add, room, size):
    """C[:m, :n] (+)= A B, B in panels b_ps apart with rows b_rs apart; an unwhole last panel may lie elsewhere, at `edge`."""
    width = VECTORS * (BITS // 8) // size
    for i0 in range(0, m, ROWS):
        rows = min(ROWS, m - i0)
        tiles = (rows + HEIGHT - 1) // HEIGHT
        for k0 in range(0, max(k, 1), DEPTH):
            depth = min(DEPTH, k - k0)
            if room:
                for p in range(tiles):
                    i = p * rows // tiles
                    height = (p + 1) * rows // tiles - i
                    source = a + (i0 + i) * a_rs + k0 * a_cs
                    call(packer, (depth, height, source, a_cs, a_rs, room + p * SLOT * DEPTH * size, SLOT * size, SLOT))
            for j in range(0, n, width):
                panel, panel_rs = b + j // width * b_ps + k0 * b_rs, b_rs
                if edge and j + width > n:
                    panel, panel_rs = edge + k0 * width * size, width * size
                for p in range(tiles):
                    i = p * rows // tiles
                    height = (p + 1) * rows // tiles - i
                    at_c = c + (i0 + i) * c_rs + j * size
                    if room:
                        at_a, rs, cs = room + p * SLOT * DEPTH * size, size, SLOT * size
                    else:
                        at_a, rs, cs = a + (i0 + i) * a_rs + k0 * a_cs, a_rs, a_cs
                    again = 1 if add or k0 else 0
                    call(tiler, (depth, at_a, rs, cs, panel, panel_rs, at_c, c_rs, height, min(width, n - j), again))


class Tools(dict):
    """Addresses of the C functions that kernels call, by element type.
    `panels` and `multiply` know elements by their size alone."""

    def __missing__(self, letter: str) -> tuple[int, ...]:
        self[letter] = tile[letter], pack[letter], panels["f"], multiply["f"], finish[letter]
        return self[letter]


tools = Tools()
TOOLS = numba.types.UniTuple(INT, 5)


@helper
def into_panels(use, b, b_rs, b_cs, k, n, first, last, out, size):
    """Call `panels`."""
    call(use[2], (use[1], b, b_rs, b_cs, k, n, first, last, out, size))


@helper
def _alone(use, a, b, c, za, zb, zc, i0, i1, bias, activation, add, copy_a, direct, room, like):
    """Rows i0 to i1 of one product of the batch, by one thread in its own workspace."""
    size = like.itemsize
    k, n = b.shape
    a_rs, a_cs = a.strides
    b_rs, b_cs = b.strides
    width = VECTORS * (BITS // 8) // size
    at_a, at_c = address(a) + za + i0 * a_rs, address(c) + zc + i0 * c.strides[0]
    room_a = room if copy_a else 0
    room_b = room + (A_ROOM * size if copy_a else 0)
    step = n if direct else max(PANEL_ROOM // (max(k, 1) * width), 1) * width
    for j in range(0, n, step):
        columns = min(step, n - j)
        source, at_b, b_ps, rs, edge, first = address(b) + zb + j * b_cs, room_b, k * width * size, width * size, 0, 0
        if direct:  # only a last panel that does not end with a whole vector is copied
            torn = n * size % (BITS // 8) != 0
            at_b, b_ps, rs, first = source, width * size, b_rs, n // width if torn else (n + width - 1) // width
            edge = room_b if torn else 0
        out = room_b - first * width * k * size
        into_panels(use, source, b_rs, b_cs, k, columns, first, (columns + width - 1) // width, out, size)
        here = at_c + j * size
        numbers = (at_a, a_rs, a_cs, at_b, b_ps, rs, edge, here, c.strides[0], i1 - i0, columns, k, add, room_a, size)
        call(use[3], (use[0], use[1], *numbers))
        if bias.size or activation:
            shift = address(bias) + j * size if bias.size else 0
            call(use[4], (here, c.strides[0], i1 - i0, columns, shift, activation))


def _signature(T: Any) -> Any:
    return VOID(
        TOOLS, given(T, 2), given(T, 2), result(T, 2), TABLE, TABLE, TABLE, given(T, 1), INT, INT, INT, INT, result(T,
        1, "C"), INT
    )  # fmt: skip


class Addresses(dict):
    """The same as a table: an array is handed over faster than as many numbers."""

    def __missing__(self, letter: str) -> Array:
        self[letter] = np.array(tools[letter], np.intp)
        self[letter].flags.writeable = False
        return self[letter]


addresses = Addresses()


@kernel(lambda T: VOID(TABLE, given(T, 2), given(T, 2), result(T, 2), result(T, 1, "C")))
def small(use, a, b, c, room):
    """One product by the calling thread, with as few arguments as can be: at 16 × 16 they cost more than the product."""
    size = c.itemsize
    direct = b.strides[1] == size and b.size <= DIRECT
    _alone(use, a, b, c, 0, 0, 0, 0, c.shape[0], room[:0], 0, 0, False, direct, address(room), c)


@kernel(_signature)
def serial(use, a, b, c, za, zb, zc, bias, activation, add, copy_a, direct, room, nt):
    """The whole batch by the calling thread."""
    for z in range(zc.size):
        _alone(use, a, b, c, za[z], zb[z], zc[z], 0, c.shape[0], bias, activation, add, copy_a, direct, address(room), c)


@kernel(_signature, parallel=True)
def batched(use, a, b, c, za, zb, zc, bias, activation, add, copy_a, direct, room, nt):
    """The rows of all products of the batch, end to end, in as many equal parts as there are threads."""
    m = c.shape[0]
    part = room.size // nt
    for t in numba.prange(nt):
        first, last = t * zc.size * m // nt, (t + 1) * zc.size * m // nt
        place = address(room) + t * part * room.itemsize
        while first < last:
            z = first // m
            i0 = first - z * m
            i1 = min(m, i0 + last - first)
            _alone(use, a, b, c, za[z], zb[z], zc[z], i0, i1, bias, activation, add, copy_a, direct, place, c)
            first += i1 - i0


@kernel(_signature, parallel=True)
def shared(use, a, b, c, za, zb, zc, bias, activation, add, copy_a, across, room, nt):
    """One product after the other, each by all threads: they pack B together, then take rows (or columns) of C each."""
    size = c.itemsize
    m, n = c.shape
    k = b.shape[0]
    width = VECTORS * (BITS // 8) // size
    step = max(PANEL_ROOM // (max(k, 1) * width), nt) * width
    room_b = address(room) + nt * A_ROOM * size
    a_rs, a_cs = a.strides
    b_rs, b_cs = b.strides
    for z in range(zc.size):
        for j0 in range(0, n, step):
            columns = min(step, n - j0)
            count = (columns + width - 1) // width
            for t in numba.prange(nt):
                source = address(b) + zb[z] + j0 * b_cs
                into_panels(use, source, b_rs, b_cs, k, columns, t * count // nt, (t + 1) * count // nt, room_b, size)
            for t in numba.prange(nt):
                i0, i1, p0, p1 = 0, m, 0, count
                if across:
                    p0, p1 = t * count // nt, (t + 1) * count // nt
                else:
                    grain = HEIGHT if m >= 4 * HEIGHT * nt else 1  # whole tiles, where there are enough of them
                    i0 = t * (m // grain) // nt * grain
                    i1 = m if t == nt - 1 else (t + 1) * (m // grain) // nt * grain
                wide = min(columns, p1 * width) - p0 * width
                at_c = address(c) + zc[z] + i0 * c.strides[0] + (j0 + p0 * width) * size
                place = address(room) + t * A_ROOM * size if copy_a else 0
                for i in range(i0, i1, ROWS):
                    rows = min(ROWS, i1 - i)
                    here = at_c + (i - i0) * c.strides[0]
                    at_a, at_b = address(a) + za[z] + i * a_rs, room_b + p0 * width * k * size
                    panel, line = k * width * size, width * size
                    numbers = (at_a, a_rs, a_cs, at_b, panel, line, 0, here, c.strides[0], rows, wide, k, add, place, size)
                    call(use[3], (use[0], use[1], *numbers))
                    if bias.size or activation:
                        shift = address(bias) + (j0 + p0 * width) * size if bias.size else 0
                        call(use[4], (here, c.strides[0], rows, wide, shift, activation))


# ---------------------------------------------------------------------------------------------------------------------
# The door
# ---------------------------------------------------------------------------------------------------------------------

ONE = np.zeros(1, np.intp)  # the table of a single matrix
NONE = {letter: np.zeros(0, letter) for letter in "fd"}


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
    letter = a.dtype.char
    if a.ndim == 2 == b.ndim and bias is out is activation is None and b.dtype.char == letter and letter in NONE:
        (m, k), (inner, n) = a.shape, b.shape
        if inner == k and 0 < m * k * n <= SERIAL:
            c = np.empty((m, n), letter)
            small[letter](addresses[letter], a, b, c, scratch(letter, k * (n + 64)))
            return c
    if letter not in NONE or b.dtype.char != letter or a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        return reference.matmul(a, b, out=out, bias=bias, activation=activation, accumulate=accumulate)
    if a.ndim == 2 and b.ndim == 2:
        shape: tuple[int, ...] = (a.shape[0], b.shape[1])
        lead: tuple[int, ...] = ()
    else:
        lead = a.shape[:-2] if a.shape[:-2] == b.shape[:-2] else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*lead, a.shape[-2], b.shape[-1])
    if out is None:
        c = np.zeros(shape, letter) if accumulate else np.empty(shape, letter)
    else:
        c = out
        if c.shape != shape or c.dtype.char != letter or not c.flags.writeable or not c.flags.aligned:
            return reference.matmul(a, b, out=out, bias=bias, activation=activation, accumulate=accumulate)
        if np.may_share_memory(c, a) or np.may_share_memory(c, b):
            c[...] = matmul(a, b, bias=bias, activation=activation, out=c.copy() if accumulate else None,
            accumulate=accumulate)
            return c
    if 0 in shape:
        return c
    f = ACTIVATIONS.get(activation)
    if f is None or (bias is not None and (bias.shape != shape[-1:] or bias.dtype.char != letter)):
        return reference.finish(matmul(a, b, out=c, accumulate=accumulate), bias, activation)
    size = c.itemsize
    if c.strides[-1] != size and (shape[-1] > 1):
        if c.strides[-2] == size and bias is None and f == 0:  # Cᵀ = Bᵀ Aᵀ
            matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2), out=c.swapaxes(-1, -2), accumulate=accumulate)
        else:
            c[...] = matmul(
                a, b, bias=bias, activation=activation, out=c.copy("C") if accumulate else None, accumulate=accumulate
            )
        return c
    _run(letter, a, b, c, lead, NONE[letter] if bias is None else bias, f, accumulate)
    return c


def _run(letter: str, a: Array, b: Array, c: Array, lead: tuple[int, ...], bias: Array, activation: int, add: bool) -> None:
    za = zb = zc = ONE
    if lead and b.ndim == 2 and a.size and a.flags.c_contiguous and c.flags.c_contiguous:  # one product, not a stack
        a, c, lead = a.reshape(-1, a.shape[-1]), c.reshape(-1, c.shape[-1]), ()
    if lead:
        za, zb, zc = (offsets(lead, x.shape[:-2], x.strides[:-2]) for x in (a, b, c))
        a, b, c = a[(0,) * (a.ndim - 2)], b[(0,) * (b.ndim - 2)], c[(0,) * (c.ndim - 2)]
    m, n = c.shape
    k, size = b.shape[0], c.itemsize
    batch = zc.size
    # the rules: see the head of the file
    far = max(a.strides)
    copy_a = m >= 2 * HEIGHT and n >= 4 * VECTORS * (BITS // 8) // size and (k > 1024 or (k > 128 and far % 4096 == 0))
    direct = b.strides[1] == size and k * n <= DIRECT and b.strides[0] % 4096 != 0
    work = batch * m * n * k
    nt = threads() if work > SERIAL else 1
    width = VECTORS * (BITS // 8) // size
    whole = -(-n // width) * width
    arguments = (tools[letter], a, b, c, za, zb, zc, bias, activation, add, copy_a)
    if nt == 1 or batch >= nt or m * batch < nt or k * n <= DIRECT:  # so small a B each thread packs for itself
        if nt > batch * m:
            nt = 1
        room_b = width * k if direct else k * min(whole, max(PANEL_ROOM // (max(k, 1) * width), 1) * width)
        part = (room_b + copy_a * A_ROOM + 15) // 16 * 16
        room = scratch(letter, nt * part)[: nt * part]
        (serial if nt == 1 else batched)[letter](*arguments, direct, room, nt)
    else:
        room_b = k * min(whole, max(PANEL_ROOM // (max(k, 1) * width), nt) * width)
        across = n > m and n >= 2 * nt * width
        shared[letter](*arguments, across, scratch(letter, nt * A_ROOM + room_b), nt)


def einsum(equation: str, *operands: Array) -> Array:
    """Σ over the labels that the result does not name, of the product of the operands: two by two, each pair one product.

    A label of both operands counts a batch if the result names it, else it is summed over; one of a single operand
    counts rows or columns.
    """
    left, out = equation.split("->")
    names, xs = left.split(","), list(operands)
    letter = xs[0].dtype.char
    if len(xs) < 2 or letter not in NONE or any(x.dtype.char != letter or not x.size for x in xs):
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
