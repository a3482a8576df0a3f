r"""From the textbook loop to the machine's speed: six ways to multiply matrices, each with the reason for the next.

    i j k  →  i k j  →  blocked, packed  →  4 × 4 in registers  →  register tile  →  vector tile

All take C-contiguous float32 or float64 matrices and run on one thread, so that the steps differ in one thing each.

    python -m benchmarks matmul --ladder             times them, as shares of NumPy's BLAS and of the machine's peak
    python -m benchmarks matmul --asm "i k j"        prints the machine code of a step's hot loop, and counts its loads

The shares in the docstrings are percent of one core's peak for n × n matrices of float32, n = 256, 512 and 1024, as measured
on an AMD EPYC (family 26) with AVX-512; NumPy's OpenBLAS reaches 89, 93 and 89 there. The last step is `matmul` itself, which
is built on the register tile of `simd`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu import matmul as product
from kernels.cpu.build import SUMS, VOID, helper, kernel, result
from kernels.cpu.rows import flat
from kernels.cpu.simd import BITS, BYTES, I64, REGISTERS, Vectors, address, lanes
from kernels.cpu.threads import set_threads, threads

Array = np.ndarray


def _signature(element: Any) -> Any:
    return VOID(flat(element, 2), flat(element, 2), result(element, 2, "C"))


@kernel(_signature, **SUMS)
def dot_products(a, b, c):
    """c_ij = Σ_k a_ik b_kj, as it is written. 0.9, 0.6 and 0.2 % of the peak.

    The innermost loop walks down a column of B: each of its elements lies on a cache line of its own, of which it uses
    4 bytes out of 64, and nothing can be loaded as a vector.
    """
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = c.dtype.type(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total


@kernel(_signature, **SUMS)
def rows_of_b(a, b, c):
    """c_i += a_ik b_k: the two inner loops exchanged. 19, 24 and 20 %.

    Now rows of B and C are walked along, in whole vectors. But each product costs a load of B, a load of C and a store
    of C: the loop waits for memory ports, and for memory itself once B no longer fits the cache, since all of B is read
    again for each row of A.
    """
    zero = c.dtype.type(0)
    for i in range(a.shape[0]):
        row = c[i]
        for j in range(np.uintp(row.size)):
            row[j] = zero
        for k in range(a.shape[1]):
            x, other = a[i, k], b[k]
            for j in range(np.uintp(row.size)):
                row[j] += x * other[j]


BLOCK_K, BLOCK_J = 64, 256  # a block of B of 64 kB: it stays in the L2 cache while all rows of A pass over it


@numba.njit(error_model="numpy")
def _copy_block(b, k0, j0, depth, width, block):
    for k in range(np.uintp(depth)):
        row = b[k0 + k, j0 : j0 + width]
        for j in range(np.uintp(width)):
            block[k * np.uintp(BLOCK_J) + j] = row[j]


@kernel(_signature, **SUMS)
def blocked(a, b, c):
    """The same, block by block of B, each copied to where its rows follow one another. 15, 21 and 24 %.

    Blocking keeps B in the cache, packing keeps the block's rows from falling on the same cache lines (rows at a
    distance of a power of two do) and on too many pages. So large matrices are no longer slower than small ones, for which the
    copy is a loss; the loads and stores of each product remain.
    """
    zero = c.dtype.type(0)
    block = np.empty(BLOCK_K * BLOCK_J, c.dtype)
    c[:] = zero
    for j0 in range(0, b.shape[1], BLOCK_J):
        width = min(BLOCK_J, b.shape[1] - j0)
        for k0 in range(0, a.shape[1], BLOCK_K):
            depth = min(BLOCK_K, a.shape[1] - k0)
            _copy_block(b, k0, j0, depth, width, block)
            for i in range(a.shape[0]):
                row = c[i, j0 : j0 + width]
                for k in range(depth):
                    x, other = a[i, k0 + k], block[k * BLOCK_J : k * BLOCK_J + width]
                    for j in range(np.uintp(width)):
                        row[j] += x * other[j]


@numba.njit(**SUMS)
def _four_by_four(a, i, k0, depth, block, sums):
    """sums[r] += Σ_k a[i + r, k0 + k] block[k], for four rows r, four terms k at a time"""
    w = np.uintp(BLOCK_J)
    for k in range(0, depth, 4):
        o = np.uintp(k) * w
        a00, a01, a02, a03 = a[i, k0 + k], a[i, k0 + k + 1], a[i, k0 + k + 2], a[i, k0 + k + 3]
        a10, a11, a12, a13 = a[i + 1, k0 + k], a[i + 1, k0 + k + 1], a[i + 1, k0 + k + 2], a[i + 1, k0 + k + 3]
        a20, a21, a22, a23 = a[i + 2, k0 + k], a[i + 2, k0 + k + 1], a[i + 2, k0 + k + 2], a[i + 2, k0 + k + 3]
        a30, a31, a32, a33 = a[i + 3, k0 + k], a[i + 3, k0 + k + 1], a[i + 3, k0 + k + 2], a[i + 3, k0 + k + 3]
        for j in range(w):
            b0, b1, b2, b3 = block[o + j], block[o + w + j], block[o + w + w + j], block[o + w + w + w + j]
            sums[j] += a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
            sums[w + j] += a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
            sums[w + w + j] += a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
            sums[w + w + w + j] += a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3


@kernel(_signature, **SUMS)
def registers(a, b, c):
    """Four rows of C and four terms of k at once. 38, 30 and 35 %: as far as loops written in Python go.

    16 products now share 4 loads of B, 4 of C and 4 stores. The buffers are flat, with a row length known to the
    compiler, and the indices unsigned: a signed one might be negative, Numba then has to choose between i and n + i, and
    LLVM's vectoriser gives up on the loop (a factor of 4). What is still missing is C in registers: the vectoriser turns
    one loop into vectors, and the sums of that loop live in memory. Rows and terms past a multiple of four are zeros.
    """
    zero = c.dtype.type(0)
    m, depth_of_all, n = a.shape[0], a.shape[1], b.shape[1]
    block, sums = np.empty(BLOCK_K * BLOCK_J, c.dtype), np.empty(4 * BLOCK_J, c.dtype)
    rows = np.zeros((4, BLOCK_K), c.dtype)  # four rows of A, where the matrix itself ends too soon
    for j0 in range(0, n, BLOCK_J):
        width = min(BLOCK_J, n - j0)
        for k0 in range(0, max(depth_of_all, 1), BLOCK_K):
            depth = min(BLOCK_K, depth_of_all - k0)
            block[:] = zero
            _copy_block(b, k0, j0, depth, width, block)
            for i in range(0, m, 4):
                height = min(4, m - i)
                for r in range(height):
                    for j in range(width):
                        sums[r * BLOCK_J + j] = c[i + r, j0 + j] if k0 else zero
                if height == 4 and depth % 4 == 0:
                    _four_by_four(a, i, k0, depth, block, sums)
                else:
                    rows[:] = zero
                    rows[:height, :depth] = a[i : i + height, k0 : k0 + depth]
                    _four_by_four(rows, 0, 0, depth, block, sums)
                for r in range(height):
                    for j in range(width):
                        c[i + r, j0 + j] = sums[r * BLOCK_J + j]


TILE_ROWS = 8 if REGISTERS == 32 else 4  # of the fixed tile: 16 or 8 sums, and 2 vectors of B and 1 of A beside them


@intrinsic
def _fixed_tile(typingctx: Any, k: Any, a: Any, a_row: Any, b: Any, c: Any, c_row: Any, like: Any) -> Any:
    """C = A B for TILE_ROWS rows and two vectors of columns, all k at once: addresses, and bytes from row to row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        k, a, a_row, b, c, c_row, like = args
        a, b, c = (builder.inttoptr(x, BYTES) for x in (a, b, c))
        vec = Vectors(builder, like.type)
        wide = vec.lanes * vec.itemsize
        sums = [cgutils.alloca_once_value(builder, vec.zero) for _ in range(2 * TILE_ROWS)]  # LLVM finds a register for each
        with cgutils.for_range(builder, k) as loop:
            b_k = vec.at(b, builder.mul(loop.index, ir.Constant(I64, 2 * wide)))
            b0, b1 = vec.load(b_k), vec.load(vec.at(b_k, wide))
            a_k = vec.at(a, builder.mul(loop.index, ir.Constant(I64, vec.itemsize)))
            for i in range(TILE_ROWS):
                a_ik = vec.broadcast(vec.at(a_k, builder.mul(a_row, ir.Constant(I64, i))))
                for total, b_kj in ((sums[2 * i], b0), (sums[2 * i + 1], b1)):
                    builder.store(vec.fma(a_ik, b_kj, builder.load(total)), total)
        for i in range(TILE_ROWS):
            c_i = vec.at(c, builder.mul(c_row, ir.Constant(I64, i)))
            vec.store(builder.load(sums[2 * i]), c_i)
            vec.store(builder.load(sums[2 * i + 1]), vec.at(c_i, wide))
        return context.get_dummy_value()

    return types.void(k, a, a_row, b, c, c_row, like), codegen


@helper
def _down_a_panel(a, b, j, panel, c):
    """The columns of C from j on that fit two vectors: their part of B is copied to where its rows follow one another."""
    zero, width = c.dtype.type(0), len(panel) // max(len(b), 1)
    for k in range(len(b)):
        for v in range(width):
            panel[k * width + v] = b[k, j + v]
    for i in range(0, len(a), TILE_ROWS):
        a_i, c_ij = address(a) + i * a.strides[0], address(c) + i * c.strides[0] + j * c.itemsize
        _fixed_tile(len(b), a_i, a.strides[0], address(panel), c_ij, c.strides[0], zero)


@kernel(_signature)
def register_tile(a, b, c):
    """C in registers for all of k: 8 rows by two vectors, for matrices of whole tiles. 87, 89 and 91 %.

    Each k costs 2 loads of B and 8 of A, and pays 16 products, no stores. The loop is written as LLVM instructions, since no
    loop of Python's keeps an array in registers: the 16 sums are 16 variables of the compiler. What is missing is in `simd` and
    `matmul`: 28 sums instead of 16, edges, blocks of k that keep A and B in the caches, and lines asked for ahead.
    """
    width = 2 * (BITS // 8) // c.itemsize
    panel = np.empty(len(b) * width, c.dtype)
    for j in range(0, b.shape[1], width):
        _down_a_panel(a, b, j, panel, c)


def in_whole_tiles(a: Array, b: Array, c: Array) -> None:
    """`register_tile`, of copies that are filled up with zeros to whole tiles, where the matrices do not consist of such."""
    (m, n), letter = c.shape, c.dtype.char
    below, beside = -m % TILE_ROWS, -n % (2 * lanes(c.itemsize))
    if not below and not beside:
        register_tile[letter](a, b, c)
        return
    whole = np.empty((m + below, n + beside), letter)
    register_tile[letter](np.pad(a, ((0, below), (0, 0))), np.pad(b, ((0, 0), (0, beside))), whole)
    c[...] = whole[:m, :n]


def vectors(a: Array, b: Array, c: Array) -> None:
    """The register tile written as vector instructions: `kernels.cpu.matmul`, on one thread. 96, 95 and 91 %.

    28 sums stay in registers for the whole of k; C is touched once for each block of k.
    """
    before = threads()
    set_threads(1)
    try:
        product.matmul(a, b, out=c)
    finally:
        set_threads(before)


LADDER = {
    "i j k": lambda a, b, c: dot_products[c.dtype.char](a, b, c),
    "i k j": lambda a, b, c: rows_of_b[c.dtype.char](a, b, c),
    "blocked, packed": lambda a, b, c: blocked[c.dtype.char](a, b, c),
    "4 × 4 in registers": lambda a, b, c: registers[c.dtype.char](a, b, c),
    "register tile": in_whole_tiles,
    "vector tile": vectors,
}
