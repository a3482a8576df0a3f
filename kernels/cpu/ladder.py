r"""From the textbook loop to the machine's speed: five ways to multiply matrices, each with the reason for the next.

All take C-contiguous float32 or float64 matrices and run on one thread, so that the steps differ in one thing each.
`benchmarks.matmul.ladder` times them as shares of OpenBLAS and of the machine's peak. The last step is the
register tile of `simd`, with which `matmul` is built.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from kernels.cpu import matmul as product
from kernels.cpu.build import SUMS, VOID, kernel, result
from kernels.cpu.rows import flat
from kernels.cpu.threads import set_threads, threads

Array = np.ndarray


def _signature(T: Any) -> Any:
    return VOID(flat(T, 2), flat(T, 2), result(T, 2, "C"))


@kernel(_signature, **SUMS)
def dot_products(a, b, c):
    """c_ij = Σ_k a_ik b_kj, as it is written. About 1 % of the peak.

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
    """c_i += a_ik b_k: the two inner loops exchanged. 20 to 30 %.

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
    """The same, block by block of B, each copied to where its rows follow one another. 20 to 30 %, at any size.

    Blocking keeps B in the cache, packing keeps the block's rows from falling on the same cache lines (rows at a
    distance of a power of two do) and on too many pages. It cures memory; the loads and stores per product remain.
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
    """Four rows of C and four terms of k at once. 40 to 50 %: as far as loops written in Python go.

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


def vectors(a: Array, b: Array, c: Array) -> None:
    """The register tile written as vector instructions: `kernels.cpu.matmul`, on one thread. 80 to 95 %.

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
    "vector tile": vectors,
}
