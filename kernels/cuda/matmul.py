r"""Matrix products, from three loops to the tensor cores.

    C_ij = Σ_k A_ik B_kj

A floating-point unit multiplies far faster than memory delivers, so each step of the ladder makes more of a number once it
is there:

    naive      every product reads both factors from global memory: 2 loads for 1 multiply-add
    tiled      a block of threads brings tiles of A and B to shared memory, and each number serves TILE products
    blocked    a thread computes 8 × 8 elements from registers: 16 loads from shared memory for 64 multiply-adds
    sgemm      the loads are 16 bytes wide, and the next tile is on its way while this one is multiplied (two buffers);
               it takes A and B as they lie, transposed or not, batches, any size, and cuts a long sum into parts
    tensor     the same with multiply-adds of 16 × 8 × 8 matrices, on factors rounded to 10 bits of mantissa (TF32)

`matmul` computes with `sgemm`, or with `tensor` where SCRATCHGEN_TF32=1 allows the rounding, as PyTorch's `allow_tf32` does.
The last two are one loop nest, with other functions for a tile:

    for each product z, part p of the sum over k, and tile of C of 128 × 128:       a block of 256 threads
        acc ← 0                                                                     64 registers of each thread
        for each tile of 8 steps k of this part:
            global memory → 4 + 4 registers of each thread     (the next tile of A and of B)
            acc ← acc + a b                                    (this tile, from shared memory)
            registers → the other buffer of shared memory
        C ← acc

    shared memory     a [2][8][128 + 4]    b [2][8][128 + 4]      16.5 KiB; a[·, k, i] = A_ik: a step k of both lies in a row

Where the numbers come from. 8 × 8 elements of a thread are 64 sums and 16 factors, in 128 registers; then two blocks of 256
threads fill the 65,536 registers of a multiprocessor. 256 threads with 8 × 8 elements each are a tile of 128 × 128. Where such
tiles would be fewer than the multiprocessors, tiles are 64 × 64, 4 × 4 of a thread, with 16 steps k. The sum of one thread is a
chain of float32 multiply-adds over the k of its part, as in other libraries of products: its error grows with k.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, uint32, uint64

from kernels import reference, settings
from kernels.cuda import elementwise
from kernels.cuda.build import (
    F1,
    F3,
    INT,
    Array,
    Kernel,
    cdiv,
    check,
    device,
    empty,
    is_float32,
    kernel,
    launch,
    ld4,
    mma,
    record,
    tf32,
)
from kernels.reference import einsum  # noqa: F401 (a kernel of this module: the library's own)

TF32 = settings.tf32()

# ---------------------------------------------------------------------------------------------------------------------
# The first steps, on matrices that lie in row order.     (1, M, K), (1, K, N) → (1, M, N)
# ---------------------------------------------------------------------------------------------------------------------


@kernel((F3, F3, F3), threads=256, registers=64)
def naive(A, B, C):
    """A thread for each element; neighbours read neighbours in B."""
    M, N, K = C.shape[1], C.shape[2], A.shape[2]
    i = cuda.grid(1) // N
    j = cuda.grid(1) % N
    if i < M:
        total = float32(0.0)
        for k in range(K):
            total += A[0, i, k] * B[0, k, j]
        C[0, i, j] = total


@kernel((F3, F3, F3), threads=256, registers=64, shared=2 * 16 * 16 * 4)
def tiled(A, B, C):
    """A block of 16 × 16 threads for as many elements, along tiles of 16 × 16 in shared memory."""
    a = cuda.shared.array((16, 16), float32)
    b = cuda.shared.array((16, 16), float32)
    M, N, K = C.shape[1], C.shape[2], A.shape[2]
    across = (N + 15) // 16
    x = cuda.threadIdx.x % 16
    y = cuda.threadIdx.x // 16
    i = cuda.blockIdx.x // across * 16 + y
    j = cuda.blockIdx.x % across * 16 + x
    total = float32(0.0)
    for k in range(0, K, 16):
        a[y, x] = A[0, i, k + x] if i < M and k + x < K else float32(0.0)
        b[y, x] = B[0, k + y, j] if k + y < K and j < N else float32(0.0)
        cuda.syncthreads()
        for e in range(16):
            total += a[y, e] * b[e, x]
        cuda.syncthreads()
    if i < M and j < N:
        C[0, i, j] = total


@kernel((F3, F3, F3), threads=256, registers=128, shared=2 * 8 * 128 * 4)
def blocked(A, B, C):
    """A block of 16 × 16 threads for 128 × 128 elements, 8 × 8 of each, in registers."""
    a = cuda.shared.array((8, 128), float32)  # transposed
    b = cuda.shared.array((8, 128), float32)
    ra = cuda.local.array(8, float32)
    rb = cuda.local.array(8, float32)
    acc = cuda.local.array((8, 8), float32)
    M, N, K = uint32(C.shape[1]), uint32(C.shape[2]), uint32(A.shape[2])
    t = uint32(cuda.threadIdx.x)
    x = t % uint32(16)
    y = t // uint32(16)
    across = (N + uint32(127)) // uint32(128)
    i0 = uint32(cuda.blockIdx.x) // across * uint32(128)
    j0 = uint32(cuda.blockIdx.x) % across * uint32(128)
    for m in range(8):
        for n in range(8):
            acc[m, n] = float32(0.0)
    k0 = uint32(0)
    while k0 < K:
        for q in range(4):
            e = t + uint32(256 * q)
            i = i0 + e // uint32(8)
            k = k0 + e % uint32(8)
            a[e % uint32(8), e // uint32(8)] = A[0, i, k] if i < M and k < K else float32(0.0)
            j = j0 + e % uint32(128)
            k = k0 + e // uint32(128)
            b[e // uint32(128), e % uint32(128)] = B[0, k, j] if j < N and k < K else float32(0.0)
        cuda.syncthreads()
        for k in range(8):
            for m in range(8):
                ra[m] = a[k, y * uint32(8) + uint32(m)]
                rb[m] = b[k, x * uint32(8) + uint32(m)]
            for m in range(8):
                for n in range(8):
                    acc[m, n] += ra[m] * rb[n]
        cuda.syncthreads()
        k0 += uint32(8)
    for m in range(8):
        for n in range(8):
            i = i0 + y * uint32(8) + uint32(m)
            j = j0 + x * uint32(8) + uint32(n)
            if i < M and j < N:
                C[0, i, j] = acc[m, n]


# ---------------------------------------------------------------------------------------------------------------------
# What the last two steps share: four neighbours of a factor go from global to shared memory
# ---------------------------------------------------------------------------------------------------------------------
# A line is a row of A or a column of B. A tile holds `wide` lines and `deep` steps k of them, as shared[buffer, k, line]. A
# thread moves four numbers that are neighbours in global memory: four steps of one line where k runs fastest there, else four
# lines of one step.


@device
def _same(x):
    return x


def _mover(wide: int, deep: int, along_k: bool, vector: bool, kept: Any) -> tuple[Any, ...]:
    """Device functions: where a thread's four numbers begin, their way to registers, and on, as `kept`, to shared memory."""
    per_line, per_step = deep // 4, wide // 4  # threads

    @device
    def begin(line0, k0, pitch):
        """The position in the flat matrix, whose rows have `pitch` numbers, of the first of the four."""
        t = uint32(cuda.threadIdx.x)
        if along_k:
            return uint64(line0 + t // uint32(per_line)) * uint64(pitch) + uint64(k0 + t % uint32(per_line) * uint32(4))
        return uint64(k0 + t // uint32(per_step)) * uint64(pitch) + uint64(line0 + t % uint32(per_step) * uint32(4))

    @device
    def fetch(X, position, r):
        if vector:
            four = ld4(X, position)
            for q in range(4):
                r[q] = four[q]
        else:
            for q in range(4):
                r[q] = X[position + uint64(q)]

    @device
    def fetch_edge(X, position, line0, k0, lines, end, r):
        """The same for a tile that may reach past the last line or step: zeros stand for what is not there."""
        t = uint32(cuda.threadIdx.x)
        if along_k:
            line = line0 + t // uint32(per_line)
            k = k0 + t % uint32(per_line) * uint32(4)
        else:
            line = line0 + t % uint32(per_step) * uint32(4)
            k = k0 + t // uint32(per_step)
        for q in range(4):
            if along_k:
                r[q] = X[position + uint64(q)] if line < lines and k + uint32(q) < end else float32(0.0)
            else:
                r[q] = X[position + uint64(q)] if line + uint32(q) < lines and k < end else float32(0.0)

    @device
    def put(shared, buffer, r):
        t = uint32(cuda.threadIdx.x)
        for q in range(4):
            if along_k:
                shared[buffer, t % uint32(per_line) * uint32(4) + uint32(q), t // uint32(per_line)] = kept(r[q])
            else:
                shared[buffer, t // uint32(per_step), t % uint32(per_step) * uint32(4) + uint32(q)] = kept(r[q])

    return begin, fetch, fetch_edge, put


class Products(NamedTuple):
    """Which products a launch computes: matrix z of C, of M × N, is A[z mod matrices_a] B[z mod matrices_b], a sum over K."""

    M: int
    N: int
    K: int
    matrices_a: int
    matrices_b: int
    depth: int  # part p of a sum has the steps k from p · depth to (p + 1) · depth
    parts: int  # of each product: C has parts · z matrices, which are added up afterwards


PRODUCTS = record(Products, **dict.fromkeys(Products._fields, INT))


class Plan(NamedTuple):
    """How a block computes a tile of C: sizes, and device functions of a thread."""

    wide: int  # rows and columns of a tile of C
    deep: int  # steps k of a tile of A or B
    pitch: int  # length of a row in shared memory
    sums: tuple[int, int]  # shape of a thread's part of C
    held_a: Any  # shapes of the registers for what a thread takes of a and b at a time
    held_b: Any
    kept: Any  # the form in which a number lies in shared memory
    loop: Any  # multiplies a tile, in a loop
    unrolled: Any  # the same, written out
    store: Any  # a thread's part of C into C


def _product(name: str, form: str, vector: bool, plan: Plan, **budget: int) -> Kernel:
    """The kernel for flat A, B and C.

    `form`: for A and for B, N where its matrices lie in row order, T where they are transposed. `vector`: every row begins at a
    multiple of 16 bytes.
    """
    wide, deep, pitch, sums, held_a, held_b, kept, loop, unrolled, store = plan
    height, width = sums
    transposed_a, transposed_b = form[0] == "T", form[1] == "T"
    begin_a, fetch_a, edge_a, put_a = _mover(wide, deep, not transposed_a, vector, kept)
    begin_b, fetch_b, edge_b, put_b = _mover(wide, deep, transposed_b, vector, kept)

    @kernel(
        (F1, F1, F1, PRODUCTS),
        threads=256,
        shared=2 * 2 * deep * pitch * 4,
        name=f"{name}{'_vector' if vector else ''}",
        **budget,
    )
    def product(A, B, C, which):
        a = cuda.shared.array((2, deep, pitch), float32)
        b = cuda.shared.array((2, deep, pitch), float32)
        acc = cuda.local.array((height, width), float32)
        ra = cuda.local.array(held_a, float32)
        rb = cuda.local.array(held_b, float32)
        next_a = cuda.local.array(4, float32)
        next_b = cuda.local.array(4, float32)
        M, N, K = uint32(which.M), uint32(which.N), uint32(which.K)
        across = (N + uint32(wide - 1)) // uint32(wide)
        down = (M + uint32(wide - 1)) // uint32(wide)
        block = uint32(cuda.blockIdx.x)
        j0 = block % across * uint32(wide)
        i0 = block // across % down * uint32(wide)
        zc = block // across // down
        z = zc // uint32(which.parts)
        k0 = zc % uint32(which.parts) * uint32(which.depth)
        end = k0 + uint32(which.depth)
        if end > K:
            end = K
        whole_a = i0 + uint32(wide) <= M
        whole_b = j0 + uint32(wide) <= N
        at_a = uint64(z % uint32(which.matrices_a)) * uint64(M) * uint64(K) + begin_a(i0, k0, M if transposed_a else K)
        at_b = uint64(z % uint32(which.matrices_b)) * uint64(K) * uint64(N) + begin_b(j0, k0, K if transposed_b else N)
        step_a = M * uint32(deep) if transposed_a else uint32(deep)
        step_b = uint32(deep) if transposed_b else N * uint32(deep)
        for m in range(height):
            for n in range(width):
                acc[m, n] = float32(0.0)
        left = uint32(0)  # tiles of k that end before `end`: with whole lines, too, nothing in them is past an edge
        if whole_a and whole_b and end > k0:
            left = (end - k0) // uint32(deep)
        # The tiles with an edge come first: the last tile of k, and all of them where the tile of C has lines past an edge.
        k = k0 + left * uint32(deep)
        edge_at_a = at_a + uint64(left) * uint64(step_a)
        edge_at_b = at_b + uint64(left) * uint64(step_b)
        while k < end:
            edge_a(A, edge_at_a, i0, k, M, end, next_a)
            edge_b(B, edge_at_b, j0, k, N, end, next_b)
            put_a(a, uint32(0), next_a)
            put_b(b, uint32(0), next_b)
            cuda.syncthreads()
            loop(a, b, uint32(0), ra, rb, acc)
            cuda.syncthreads()
            k += uint32(deep)
            edge_at_a += uint64(step_a)
            edge_at_b += uint64(step_b)
        # Then the whole tiles, in two buffers.
        if left > uint32(0):
            fetch_a(A, at_a, next_a)
            fetch_b(B, at_b, next_b)
            put_a(a, uint32(0), next_a)
            put_b(b, uint32(0), next_b)
            cuda.syncthreads()
            buffer = uint32(0)
            while left > uint32(0):
                left -= uint32(1)
                at_a += uint64(step_a)
                at_b += uint64(step_b)
                if left > uint32(0):  # the next tile is on its way while this one is multiplied
                    fetch_a(A, at_a, next_a)
                    fetch_b(B, at_b, next_b)
                unrolled(a, b, buffer, ra, rb, acc)
                if left > uint32(0):
                    buffer = uint32(1) - buffer
                    put_a(a, buffer, next_a)
                    put_b(b, buffer, next_b)
                cuda.syncthreads()
        zc = uint32(cuda.blockIdx.x) // across // down  # computed again, since it would hold a register all the way
        store(C, uint64(zc) * uint64(M), i0, j0, M, N, acc)

    return product


# ---------------------------------------------------------------------------------------------------------------------
# Registers, two buffers, 16-byte loads
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def sgemm(form: str, vector: bool, wide: int) -> Kernel:
    """16 × 16 threads for a tile of `wide` × `wide` elements, 8 × 8 or 4 × 4 of each, one step k at a time."""
    deep, micro = (8, 8) if wide == 128 else (16, 4)
    pitch = wide + 4  # neighbours in k lie in different banks, and 16 bytes stay aligned
    fours, gap = micro // 4, 64

    @device
    def position():
        """The row and the column of this thread among the 16 × 16."""
        t = uint32(cuda.threadIdx.x)
        return t // uint32(16), t % uint32(16)

    @device
    def step(a, b, buffer, k, y, x, ra, rb, acc):
        for m in range(micro):
            ra[m] = a[buffer, k, y * micro + m]
        for h in range(fours):  # a thread's columns are four and four, `gap` apart, so that neighbours read neighbouring banks
            for n in range(4):
                rb[4 * h + n] = b[buffer, k, h * gap + x * 4 + n]
        for m in range(micro):
            for n in range(micro):
                acc[m, n] += ra[m] * rb[n]

    @device
    def loop(a, b, buffer, ra, rb, acc):
        y, x = position()
        for k in range(deep):
            step(a, b, buffer, uint32(k), y, x, ra, rb, acc)

    @device
    def unrolled(a, b, buffer, ra, rb, acc):
        y, x = position()
        for half in range(deep // 8):
            k = uint32(8 * half)
            step(a, b, buffer, k, y, x, ra, rb, acc)  # eight calls: NVVM would not unroll a loop of them
            step(a, b, buffer, k + uint32(1), y, x, ra, rb, acc)
            step(a, b, buffer, k + uint32(2), y, x, ra, rb, acc)
            step(a, b, buffer, k + uint32(3), y, x, ra, rb, acc)
            step(a, b, buffer, k + uint32(4), y, x, ra, rb, acc)
            step(a, b, buffer, k + uint32(5), y, x, ra, rb, acc)
            step(a, b, buffer, k + uint32(6), y, x, ra, rb, acc)
            step(a, b, buffer, k + uint32(7), y, x, ra, rb, acc)

    @device
    def store(C, above, i0, j0, M, N, acc):
        y, x = position()
        for m in range(micro):
            i = i0 + y * uint32(micro) + uint32(m)
            row = (above + uint64(i)) * uint64(N)
            for h in range(fours):
                j = j0 + uint32(h * gap) + x * uint32(4)
                for n in range(4):
                    if i < M and j + uint32(n) < N:
                        C[row + uint64(j + uint32(n))] = acc[m, 4 * h + n]

    registers = 128 if wide == 128 else 80  # with 128, two blocks of 256 threads fill the registers of a multiprocessor
    plan = Plan(wide, deep, pitch, (micro, micro), micro, micro, _same, loop, unrolled, store)
    return _product(f"sgemm_{form}_{wide}", form, vector, plan, registers=registers)


# ---------------------------------------------------------------------------------------------------------------------
# Tensor cores
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def tensor(form: str, vector: bool) -> Kernel:
    """As `sgemm`, but a warp multiplies 64 × 32 elements by 4 × 4 instructions of 16 × 8 × 8, eight steps k at a time."""
    wide, deep, pitch = 128, 8, 136  # 136 ≡ 8 mod 32: the four steps and eight lines that a warp reads lie in 32 banks

    @device
    def position():
        """This lane's line in A, its warp's first column, and the g and q of the lane in an instruction (see `mma`)."""
        t = uint32(cuda.threadIdx.x)
        warp, g = t // uint32(32), t % uint32(32) // uint32(4)
        return warp // uint32(4) * uint32(64) + g, warp % uint32(4) * uint32(32), g, t % uint32(4)

    @device
    def multiply_add(a, b, buffer, wa, wb, acc):
        line, column, g, q = position()
        for m in range(4):
            i = line + uint32(16 * m)
            wa[m, 0] = a[buffer, q, i]
            wa[m, 1] = a[buffer, q, i + uint32(8)]
            wa[m, 2] = a[buffer, q + uint32(4), i]
            wa[m, 3] = a[buffer, q + uint32(4), i + uint32(8)]
        for n in range(4):
            j = column + uint32(8 * n) + g
            wb[0] = b[buffer, q, j]
            wb[1] = b[buffer, q + uint32(4), j]
            for m in range(4):
                e = 4 * m + n
                c = (acc[e, 0], acc[e, 1], acc[e, 2], acc[e, 3])
                d = mma(c, (wa[m, 0], wa[m, 1], wa[m, 2], wa[m, 3]), (wb[0], wb[1]))
                acc[e, 0] = d[0]  # four lines: a tuple that a variable indexes would lie in memory
                acc[e, 1] = d[1]
                acc[e, 2] = d[2]
                acc[e, 3] = d[3]

    @device
    def pair(C, row, i, j, M, N, x, y):
        """Two neighbours of a row into C"""
        if i < M and j < N:
            C[row + uint64(j)] = x
        if i < M and j + uint32(1) < N:
            C[row + uint64(j + uint32(1))] = y

    @device
    def store(C, above, i0, j0, M, N, acc):
        line, column, g, q = position()
        for e in range(16):
            i = i0 + line + uint32(16 * (e // 4))
            j = j0 + column + uint32(8 * (e % 4)) + q * uint32(2)
            row = (above + uint64(i)) * uint64(N)
            pair(C, row, i, j, M, N, acc[e, 0], acc[e, 1])
            pair(C, row + uint64(N) * uint64(8), i + uint32(8), j, M, N, acc[e, 2], acc[e, 3])

    plan = Plan(wide, deep, pitch, (16, 4), (4, 4), 2, tf32, multiply_add, multiply_add, store)
    return _product(f"tensor_{form}", form, vector, plan, registers=128, least=80)


# ---------------------------------------------------------------------------------------------------------------------
# On the host
# ---------------------------------------------------------------------------------------------------------------------

LEAST = 512  # steps of a part of a sum: the parts must be written and added up, which a shorter one would not be worth
SLOTS = 132  # the multiprocessors of a large GPU: with fewer blocks than these, some are idle


def _lying(x: Array) -> tuple[Array, str]:
    """The stack x as the kernels take it, and its form: N in row order, T transposed; a copy where it is neither."""
    if x.flags.c_contiguous:
        return x, "N"
    turned = x.swapaxes(-1, -2)
    return (turned, "T") if turned.flags.c_contiguous else (x.copy(), "N")


def multiply(a: Array, b: Array, out: Array | None = None) -> Array:
    """C_z = A_{z mod Z_A} B_{z mod Z_B}.     (Z_A, M, K), (Z_B, K, N) → (Z, M, N), Z the larger of both, float32"""
    (z_a, m, k), (z_b, _, n) = a.shape, b.shape
    z = max(z_a, z_b) if z_a and z_b else 0
    out = empty(a, (z, m, n)) if out is None else out
    if not out.size:
        return out
    (a, fa), (b, fb) = _lying(a), _lying(b)
    vector = a.shape[2] % 4 == b.shape[2] % 4 == n % 4 == 0 and all(_address(x) % 16 == 0 for x in (a, b, out))
    wide = 128 if TF32 or z * cdiv(m, 128) * cdiv(n, 128) >= SLOTS else 64
    tiles = z * cdiv(m, wide) * cdiv(n, wide)
    parts = max(1, min(SLOTS // tiles, k // LEAST))  # where tiles are few and sums long, the sums are cut
    depth = max(cdiv(cdiv(k, parts), 16) * 16, 16)
    parts = max(cdiv(k, depth), 1)
    product = tensor(fa + fb, vector) if TF32 else sgemm(fa + fb, vector, wide)
    target = out if parts == 1 else empty(out, (z * parts, m, n))
    which = Products(m, n, k, z_a, z_b, depth, parts)
    launch(product, tiles * parts, *[x.reshape(-1) for x in (a, b, target)], which)
    if parts > 1:
        out[...] = target.reshape(z, parts, m, n).sum(axis=1)
    return out


def _address(x: Array) -> int:
    interface = x.__cuda_array_interface__ if hasattr(x, "__cuda_array_interface__") else x.__array_interface__
    return interface["data"][0]


def stacked(x: Array, lead: tuple[int, ...]) -> Array:
    """The matrices of x as one stack of which matrix z mod its length is that of product z; spread out where none is."""
    own = x.shape[:-2]
    while own and own[0] == 1:
        own = own[1:]
    if own == lead[len(lead) - len(own) :]:  # the products go through the stack again and again
        return x.reshape((math.prod(own),) + x.shape[-2:])
    return np.broadcast_to(x, lead + x.shape[-2:]).reshape((-1,) + x.shape[-2:])


def matmul(
    a: Array,
    b: Array,
    *,
    out: Array | None = None,
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    check("matmul", a, b, out, bias)
    if not is_float32(a, b, out):  # the product of the arrays' library
        product = a @ b
        if out is None:
            return _finished(product, bias, activation)
        out[...] = product
        return _finished(out, bias, activation)
    if a.ndim > 2 and b.ndim == 2 and out is None:  # one product, not a stack of small ones
        c = matmul(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b, bias=bias, activation=activation)
        return c.reshape(a.shape[:-1] + b.shape[-1:])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*lead, a.shape[-2], b.shape[-1])
    stack = (math.prod(lead), *shape[-2:])
    x, y = stacked(a, lead), stacked(b, lead)
    direct = out is not None and out.flags.c_contiguous and not any(np.may_share_memory(out, s) for s in (a, b))
    if direct:
        multiply(x, y, out.reshape(stack))
    else:
        product = multiply(x, y).reshape(shape)
        if out is None:
            out = product
        else:
            out[...] = product
    return _finished(out, bias, activation)


def _finished(c: Array, bias: Array | None, activation: str | None) -> Array:
    """f(C + bias), in place"""
    if bias is None and activation is None:
        return c
    if bias is not None and bias.shape != c.shape[-1:]:  # the kernel takes a bias of one row
        c += bias
        bias = None
    if not (is_float32(c, bias) and c.flags.c_contiguous):
        return reference.finish(c, bias, activation)
    elementwise.finish(c, bias, activation)
    return c
