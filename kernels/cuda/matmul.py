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

The door computes with `sgemm`, or with `tensor` where SCRATCHGEN_TF32=1 allows the rounding, as PyTorch's
`allow_tf32` does.
"""

from __future__ import annotations

import functools
import math
from typing import Any

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
    at = cuda.grid(1)
    i = at // N
    j = at % N
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
        for e in range(4):
            at = t + uint32(256 * e)
            i = i0 + at // uint32(8)
            k = k0 + at % uint32(8)
            a[at % uint32(8), at // uint32(8)] = A[0, i, k] if i < M and k < K else float32(0.0)
            j = j0 + at % uint32(128)
            k = k0 + at // uint32(128)
            b[at // uint32(128), at % uint32(128)] = B[0, k, j] if j < N and k < K else float32(0.0)
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
# What the last two steps share: four neighbouring numbers of a factor from global to shared memory
# ---------------------------------------------------------------------------------------------------------------------
# A tile holds, of A or of B alike, `wide` lines (rows of A, columns of B) and `deep` steps k, as shared[k, line]. Where the
# factor lies with k running fastest, a thread takes four steps of one line, else four lines of one step.


@device
def _same(x):
    return x


def _mover(wide: int, deep: int, along_k: bool, vector: bool, kept: Any) -> tuple[Any, ...]:
    """Functions of a thread: where it begins in a tile, the four numbers into registers, and from there, as `kept`, on."""
    per_line, per_step = deep // 4, wide // 4

    @device
    def begin(line0, k0, pitch):
        """The place in the matrix of the first of the four."""
        t = uint32(cuda.threadIdx.x)
        if along_k:
            return uint64(line0 + t // uint32(per_line)) * uint64(pitch) + uint64(k0 + t % uint32(per_line) * uint32(4))
        return uint64(k0 + t // uint32(per_step)) * uint64(pitch) + uint64(line0 + t % uint32(per_step) * uint32(4))

    @device
    def fetch(X, at, r):
        if vector:
            v = ld4(X, at)
            for q in range(4):
                r[q] = v[q]
        else:
            for q in range(4):
                r[q] = X[at + uint64(q)]

    @device
    def fetch_edge(X, at, line0, k0, lines, end, r):
        """The same where the tile may reach over the edge: zeros from beyond it."""
        t = uint32(cuda.threadIdx.x)
        if along_k:
            line = line0 + t // uint32(per_line)
            k = k0 + t % uint32(per_line) * uint32(4)
        else:
            line = line0 + t % uint32(per_step) * uint32(4)
            k = k0 + t // uint32(per_step)
        for q in range(4):
            if along_k:
                r[q] = X[at + uint64(q)] if line < lines and k + uint32(q) < end else float32(0.0)
            else:
                r[q] = X[at + uint64(q)] if line + uint32(q) < lines and k < end else float32(0.0)

    @device
    def put(shared, p, r):
        t = uint32(cuda.threadIdx.x)
        for q in range(4):
            if along_k:
                shared[p, t % uint32(per_line) * uint32(4) + uint32(q), t // uint32(per_line)] = kept(r[q])
            else:
                shared[p, t // uint32(per_step), t % uint32(per_step) * uint32(4) + uint32(q)] = kept(r[q])

    return begin, fetch, fetch_edge, put


ARGUMENTS = (F1, F1, F1, *[INT] * 7)  # A, B, C flat; M, N, K, Z_A, Z_B, depth, parts


def _product(
    name: str, form: str, vector: bool, tile: tuple[int, ...], hold: tuple[Any, ...], work: tuple[Any, ...], **budget: int
) -> Kernel:
    """The kernel for factors that lie as `form` says: N in row order, T transposed.

    A: Z_A matrices (M, K), or (K, M) for T; B: Z_B of (K, N), or (N, K); C: Z · parts of (M, N). Matrix z of the Z products is
    made of A[z mod Z_A] and B[z mod Z_B]; part p sums k from p · depth to (p + 1) · depth. `vector`: every row begins at a
    multiple of 16 bytes. `tile`: the side of a tile of C, steps k of a tile of A or B, and the length of a line of those in
    shared memory. `hold`: the shape of a thread's part of C, and of what it takes of A and of B at a time. `work`: functions of
    a thread: how a number is kept in shared memory, a tile multiplied (in a loop or written out), and its part of C stored.
    """
    wide, deep, pitch = tile
    (height, width), hold_a, hold_b = hold
    kept, loop, written_out, store = work
    transposed_a, transposed_b = form[0] == "T", form[1] == "T"
    begin_a, fetch_a, edge_a, put_a = _mover(wide, deep, not transposed_a, vector, kept)
    begin_b, fetch_b, edge_b, put_b = _mover(wide, deep, transposed_b, vector, kept)

    @kernel(ARGUMENTS, threads=256, shared=2 * 2 * deep * pitch * 4, name=f"{name}{'_vector' if vector else ''}", **budget)
    def product(A, B, C, m_, n_, k_, z_a, z_b, depth, parts):
        a = cuda.shared.array((2, deep, pitch), float32)
        b = cuda.shared.array((2, deep, pitch), float32)
        acc = cuda.local.array((height, width), float32)
        ra = cuda.local.array(hold_a, float32)
        rb = cuda.local.array(hold_b, float32)
        fa = cuda.local.array(4, float32)
        fb = cuda.local.array(4, float32)
        M, N, K = uint32(m_), uint32(n_), uint32(k_)
        across = (N + uint32(wide - 1)) // uint32(wide)
        down = (M + uint32(wide - 1)) // uint32(wide)
        block = uint32(cuda.blockIdx.x)
        j0 = block % across * uint32(wide)
        i0 = block // across % down * uint32(wide)
        zc = block // across // down
        z = zc // uint32(parts)
        k0 = zc % uint32(parts) * uint32(depth)
        end = k0 + uint32(depth)
        if end > K:
            end = K
        in_a = i0 + uint32(wide) <= M
        in_b = j0 + uint32(wide) <= N
        at_a = uint64(z % uint32(z_a)) * uint64(M) * uint64(K) + begin_a(i0, k0, M if transposed_a else K)
        at_b = uint64(z % uint32(z_b)) * uint64(K) * uint64(N) + begin_b(j0, k0, K if transposed_b else N)
        step_a = M * uint32(deep) if transposed_a else uint32(deep)
        step_b = uint32(deep) if transposed_b else N * uint32(deep)
        for m in range(height):
            for n in range(width):
                acc[m, n] = float32(0.0)
        left = uint32(0)  # whole tiles, in which nothing looks for an edge
        if in_a and in_b and end > k0:
            left = (end - k0) // uint32(deep)
        k = k0 + left * uint32(deep)
        rest_a = at_a + uint64(left) * uint64(step_a)
        rest_b = at_b + uint64(left) * uint64(step_b)
        while k < end:  # first what such tiles leave of k, and all of it at the edges of C
            edge_a(A, rest_a, i0, k, M, end, fa)
            edge_b(B, rest_b, j0, k, N, end, fb)
            put_a(a, uint32(0), fa)
            put_b(b, uint32(0), fb)
            cuda.syncthreads()
            loop(a, b, uint32(0), ra, rb, acc)
            cuda.syncthreads()
            k += uint32(deep)
            rest_a += uint64(step_a)
            rest_b += uint64(step_b)
        if left > uint32(0):
            fetch_a(A, at_a, fa)
            fetch_b(B, at_b, fb)
            put_a(a, uint32(0), fa)
            put_b(b, uint32(0), fb)
            cuda.syncthreads()
            p = uint32(0)
            while left > uint32(0):
                left -= uint32(1)
                at_a += uint64(step_a)
                at_b += uint64(step_b)
                if left > uint32(0):  # the next tile is on its way while this one is multiplied
                    fetch_a(A, at_a, fa)
                    fetch_b(B, at_b, fb)
                written_out(a, b, p, ra, rb, acc)
                if left > uint32(0):
                    p = uint32(1) - p
                    put_a(a, p, fa)
                    put_b(b, p, fb)
                cuda.syncthreads()
        zc = uint32(cuda.blockIdx.x) // across // down  # once more, since it would hold a register all the way
        store(C, uint64(zc) * uint64(M), i0, j0, M, N, acc)

    return product


# ---------------------------------------------------------------------------------------------------------------------
# Registers, two buffers, 16-byte loads
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def sgemm(form: str, vector: bool, wide: int) -> Kernel:
    """16 × 16 threads for a tile of `wide` × `wide` elements, 8 × 8 or 4 × 4 of each, one step k at a time."""
    deep, micro = (8, 8) if wide == 128 else (16, 4)
    pitch = wide + 4  # neighbours in k fall on other banks, and 16 bytes stay aligned
    halves, gap = micro // 4, 64

    @device
    def place():
        t = uint32(cuda.threadIdx.x)
        return t // uint32(16), t % uint32(16)

    @device
    def step(a, b, p, k, y, x, ra, rb, acc):
        for m in range(micro):
            ra[m] = a[p, k, y * micro + m]
        for h in range(halves):  # a thread's columns are four and four, `gap` apart: neighbours read neighbouring banks
            for n in range(4):
                rb[4 * h + n] = b[p, k, h * gap + x * 4 + n]
        for m in range(micro):
            for n in range(micro):
                acc[m, n] += ra[m] * rb[n]

    @device
    def loop(a, b, p, ra, rb, acc):
        y, x = place()
        for e in range(deep):
            step(a, b, p, uint32(e), y, x, ra, rb, acc)

    @device
    def written_out(a, b, p, ra, rb, acc):
        y, x = place()
        for half in range(deep // 8):
            e = uint32(8 * half)
            step(a, b, p, e, y, x, ra, rb, acc)  # NVVM would leave this loop a loop
            step(a, b, p, e + uint32(1), y, x, ra, rb, acc)
            step(a, b, p, e + uint32(2), y, x, ra, rb, acc)
            step(a, b, p, e + uint32(3), y, x, ra, rb, acc)
            step(a, b, p, e + uint32(4), y, x, ra, rb, acc)
            step(a, b, p, e + uint32(5), y, x, ra, rb, acc)
            step(a, b, p, e + uint32(6), y, x, ra, rb, acc)
            step(a, b, p, e + uint32(7), y, x, ra, rb, acc)

    @device
    def store(C, above, i0, j0, M, N, acc):
        y, x = place()
        for m in range(micro):
            i = i0 + y * uint32(micro) + uint32(m)
            row = (above + uint64(i)) * uint64(N)
            for h in range(halves):
                j = j0 + uint32(h * gap) + x * uint32(4)
                for n in range(4):
                    if i < M and j + uint32(n) < N:
                        C[row + uint64(j + uint32(n))] = acc[m, 4 * h + n]

    registers = 128 if wide == 128 else 80  # with 128, two blocks of 256 threads fill the registers of a multiprocessor
    hold, work = ((micro, micro), micro, micro), (_same, loop, written_out, store)
    return _product(f"sgemm_{form}_{wide}", form, vector, (wide, deep, pitch), hold, work, registers=registers)


# ---------------------------------------------------------------------------------------------------------------------
# Tensor cores
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def tensor(form: str, vector: bool) -> Kernel:
    """As `sgemm`, but a warp multiplies 64 × 32 elements by 4 × 4 instructions of 16 × 8 × 8, eight steps k at a time."""
    tile = 128, 8, 136  # 136 ≡ 8 mod 32: the four steps and eight lines of a warp fall on 32 banks

    @device
    def place():
        """This lane's line in A, its warp's first column and, in an instruction, the lane's g and q: see `mma`."""
        t = uint32(cuda.threadIdx.x)
        warp, g = t // uint32(32), t % uint32(32) // uint32(4)
        return warp // uint32(4) * uint32(64) + g, warp % uint32(4) * uint32(32), g, t % uint32(4)

    @device
    def multiply_add(a, b, p, wa, wb, acc):
        line, column, g, q = place()
        for m in range(4):
            i = line + uint32(16 * m)
            wa[m, 0] = a[p, q, i]
            wa[m, 1] = a[p, q, i + uint32(8)]
            wa[m, 2] = a[p, q + uint32(4), i]
            wa[m, 3] = a[p, q + uint32(4), i + uint32(8)]
        for n in range(4):
            j = column + uint32(8 * n) + g
            wb[0] = b[p, q, j]
            wb[1] = b[p, q + uint32(4), j]
            for m in range(4):
                e = 4 * m + n
                c = (acc[e, 0], acc[e, 1], acc[e, 2], acc[e, 3])
                d = mma(c, (wa[m, 0], wa[m, 1], wa[m, 2], wa[m, 3]), (wb[0], wb[1]))
                acc[e, 0] = d[0]  # by number: a tuple indexed by a variable would lie in memory
                acc[e, 1] = d[1]
                acc[e, 2] = d[2]
                acc[e, 3] = d[3]

    @device
    def pair(C, row, i, j, M, N, x, y):
        """Two neighbours of a row"""
        if i < M and j < N:
            C[row + uint64(j)] = x
        if i < M and j + uint32(1) < N:
            C[row + uint64(j + uint32(1))] = y

    @device
    def store(C, above, i0, j0, M, N, acc):
        line, column, g, q = place()
        for e in range(16):
            i = i0 + line + uint32(16 * (e // 4))
            j = j0 + column + uint32(8 * (e % 4)) + q * uint32(2)
            row = (above + uint64(i)) * uint64(N)
            pair(C, row, i, j, M, N, acc[e, 0], acc[e, 1])
            pair(C, row + uint64(N) * uint64(8), i + uint32(8), j, M, N, acc[e, 2], acc[e, 3])

    hold, work = ((16, 4), (4, 4), 2), (tf32, multiply_add, multiply_add, store)
    return _product(f"tensor_{form}", form, vector, tile, hold, work, registers=128, least=80)


# ---------------------------------------------------------------------------------------------------------------------
# The door
# ---------------------------------------------------------------------------------------------------------------------

LEAST = 512  # steps of a sum, below which it is not worth cutting
SLOTS = 132  # blocks that should be there before a tile is worth its size: the multiprocessors of a large GPU


def _lying(x: Array) -> tuple[Array, str]:
    """A stack of matrices in row order, and whether these are x's own (N) or transposed (T); a copy where they are neither."""
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
    parts = max(1, min(SLOTS // tiles, k // LEAST))  # few tiles of long sums: the sums are cut
    depth = max(cdiv(cdiv(k, parts), 16) * 16, 16)
    parts = max(cdiv(k, depth), 1)
    product = tensor(fa + fb, vector) if TF32 else sgemm(fa + fb, vector, wide)
    target = out if parts == 1 else empty(out, (z * parts, m, n))
    launch(product, tiles * parts, *[x.reshape(-1) for x in (a, b, target)], m, n, k, z_a, z_b, depth, parts)
    if parts > 1:
        out[...] = target.reshape(z, parts, m, n).sum(axis=1)
    return out


def _address(x: Array) -> int:
    interface = x.__cuda_array_interface__ if hasattr(x, "__cuda_array_interface__") else x.__array_interface__
    return interface["data"][0]


def stacked(x: Array, lead: tuple[int, ...]) -> Array:
    """The matrices of x as one stack, which repeats where `lead` does: a copy only where its dimensions do so unevenly."""
    own = x.shape[:-2]
    while own and own[0] == 1:
        own = own[1:]
    if own == lead[len(lead) - len(own) :]:  # a whole number of times the same stack
        return x.reshape((math.prod(own),) + x.shape[-2:])
    return np.broadcast_to(x, lead + x.shape[-2:]).reshape((-1,) + x.shape[-2:])


def matmul(
    a: Array,
    b: Array,
    *,
    out: Array | None = None,
    bias: Array | None = None,
    activation: str | None = None,
    accumulate: bool = False,
) -> Array:
    """C = f(A B + bias), f one of None, "relu", "gelu" (exact), "gelu_tanh".     (…, m, k), (…, k, n) → (…, m, n)

    `accumulate`: C = f(C + A B + bias), C the array `out`.
    """
    check("matmul", a, b, out, bias)
    if not is_float32(a, b, out):  # the library's own product
        product = a @ b
        if out is None:
            return _finished(product, bias, activation)
        out[...] = out + product if accumulate else product
        return _finished(out, bias, activation)
    if a.ndim > 2 and b.ndim == 2 and out is None:  # one product, not a stack of small ones
        c = matmul(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b, bias=bias, activation=activation)
        return c.reshape(a.shape[:-1] + b.shape[-1:])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*lead, a.shape[-2], b.shape[-1])
    stack = (math.prod(lead), *shape[-2:])
    x, y = stacked(a, lead), stacked(b, lead)
    own = out is not None and out.flags.c_contiguous and not any(np.may_share_memory(out, s) for s in (a, b))
    if own and not accumulate:
        multiply(x, y, out.reshape(stack))
    else:
        product = multiply(x, y).reshape(shape)
        if out is None:
            out = product
        else:
            out[...] = out + product if accumulate else product
    return _finished(out, bias, activation)


def _finished(c: Array, bias: Array | None, activation: str | None) -> Array:
    """f(C + bias), in place"""
    if bias is None and activation is None:
        return c
    if bias is not None and bias.shape != c.shape[-1:]:  # one of another shape
        c += bias
        bias = None
    if not (is_float32(c, bias) and c.flags.c_contiguous):
        return reference.finish(c, bias, activation)
    elementwise.finish(c, bias, activation)
    return c
