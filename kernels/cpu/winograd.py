r"""Winograd's F(2×2, 3×3): 16 products where four 3×3 windows take 36, for a 3×3 kernel with stride and dilation 1.

Two outputs of a 3-tap filter from 4 products instead of 6 (Lavin & Gray 2016, arXiv:1509.09308), in each dimension:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,    Bᵀ = [1  0 −1  0]    G = [1  0  0]      Aᵀ = [1 1  1  0]
                                            [0  1  1  0]        [½  ½  ½]           [0 1 −1 −1]
                                            [0 −1  1  0]        [½ −½  ½]
                                            [0  1  0 −1]        [0  0  1]

d: 4×4 tiles of the image at steps of 2, g: the kernel. ⊙ meets a sum over channels, so each of the 16 positions is a
product of matrices, (tiles × C) (C × O). The gradients are the transposes of the same three maps:

    input:   the same with g reversed and channels exchanged, ȳ padded by 2 − p
    weight:  ḡ = Gᵀ [Σ_tiles (Bᵀ d B) ⊙ (A ȳ Aᵀ)] G

The results are those of the direct sum to a few roundings more (about twice its error). One difference is by nature: an
infinity or NaN in a tile reaches all four of its outputs, also those whose window it is not in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.build import INT, VOID, kernel
from kernels.cpu.convolution_loops import Offsets, entry, fields, panel_of, part, product, zero
from kernels.cpu.simd import BYTES, I64, Vectors, call

INPUT, OUTPUT, OUTPUT_GRAD, KERNEL, KERNEL_GRAD = range(5)
SIDES = ((4, 4), (4, 2), (2, 4), (3, 4), (4, 3))  # of what each transform takes and gives


def _line(v: Vectors, kind: int, x: list[Any]) -> list[Any]:
    """One dimension of a transform."""
    add, sub = v.builder.fadd, v.builder.fsub

    def halves(a: Any) -> Any:
        return v.builder.fmul(a, ir.Constant(v.type, [0.5] * v.lanes))

    if kind == INPUT:
        return [sub(x[0], x[2]), add(x[1], x[2]), sub(x[2], x[1]), sub(x[1], x[3])]
    if kind == OUTPUT:
        return [add(add(x[0], x[1]), x[2]), sub(sub(x[1], x[2]), x[3])]
    if kind == OUTPUT_GRAD:
        return [x[0], add(x[0], x[1]), sub(x[0], x[1]), v.builder.fneg(x[1])]
    if kind == KERNEL:
        ends = add(x[0], x[2])
        return [x[0], halves(add(ends, x[1])), halves(sub(ends, x[1])), x[2]]
    both, apart = halves(add(x[1], x[2])), halves(sub(x[1], x[2]))
    return [add(x[0], both), apart, add(both, x[3])]


@intrinsic(prefer_literal=True)
def _transform(
    typingctx: Any, kind: Any, src: Any, src_row: Any, src_step: Any, dst: Any, dst_row: Any, dst_step: Any, rows: Any,
    columns: Any, n: Any,
) -> Any:  # fmt: skip
    """dst = M src Mᵀ for a square of n-vectors with the given distances; results beyond rows × columns are not written"""
    kind_ = kind.literal_value
    taken, _ = SIDES[kind_]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        _, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n = args
        src, dst = (builder.bitcast(x, BYTES) for x in (src, dst))
        bytes_ = [builder.mul(x, I64(v.itemsize)) for x in (src_row, src_step, dst_row, dst_step)]
        src_row, src_step, dst_row, dst_step = bytes_

        def at(base: Any, row: Any, i: int, step: Any, j: int, first: Any) -> Any:
            return v.at(base, first, builder.mul(row, I64(i)), builder.mul(step, I64(j)))

        def emit(first: Any, mask: Any) -> None:
            x = [[v.load(at(src, src_row, i, src_step, j, first), mask) for j in range(taken)] for i in range(taken)]
            half = list(zip(*(_line(v, kind_, row) for row in x), strict=True))  # half[j][i]
            for j, column in enumerate(half):
                for i, y in enumerate(_line(v, kind_, list(column))):
                    if kind_ != OUTPUT or i + j == 0:
                        v.store(y, at(dst, dst_row, i, dst_step, j, first), mask)
                    else:
                        inside = (builder.icmp_signed("<", I64(a), b) for a, b in ((i, rows), (j, columns)))
                        with builder.if_then(builder.and_(*inside)):
                            v.store(y, at(dst, dst_row, i, dst_step, j, first), mask)

        whole = builder.sdiv(n, I64(v.lanes))
        with cgutils.for_range(builder, whole) as loop:
            emit(builder.mul(loop.index, I64(v.lanes * v.itemsize)), None)
        first = builder.mul(whole, I64(v.lanes))
        with builder.if_then(builder.icmp_signed("<", first, n)):
            emit(builder.mul(first, I64(v.itemsize)), v.mask(builder.sub(n, first), 0))
        return context.get_dummy_value()

    return types.void(kind, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n), codegen


@kernel(lambda T: VOID(INT, *[types.CPointer(T), INT, INT] * 2, INT, INT, INT), callback=True)
def transform(kind, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n):
    """One of the five: see `_transform`."""
    if kind == 0:
        _transform(0, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n)
    elif kind == 1:
        _transform(1, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n)
    elif kind == 2:
        _transform(2, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n)
    elif kind == 3:
        _transform(3, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n)
    else:
        _transform(4, src, src_row, src_step, dst, dst_row, dst_step, rows, columns, n)


@part
def kernels(t, threads, job):
    """u[position, k, o] = G g[tap, k, o] Gᵀ;  or, of thread t's sums, g[tap, c, o] = Gᵀ u[position, c, o] G"""
    transform, kind, item, src, src_step, dst, dst_step, blocks, src_block, dst_block, side_in, side_out, n = fields(job, 13)
    for q in range(blocks):
        first, last = t * n // threads, (t + 1) * n // threads
        of, to = src + item * (q * src_block + first), dst + item * (q * dst_block + first)
        squares = (of, side_in * src_step, src_step, to, side_out * dst_step, dst_step, side_out, side_out)
        call(transform, (kind, *squares, last - first))


@part
def correlate(t, threads, job):
    """y = Aᵀ [Σ_c u ⊙ (Bᵀ d B)] A, for some tiles of a block of images at a time"""
    (
        tile, scatter, item, transform, x, u, y, images, channels, x_pixels, columns, rows_out,
        columns_out, block, elements, row, pixels, corners, batch, by_tile, by_tile_out, places, planes, own, own_bytes,
        image_threads,
    ) = fields(job, 26)  # fmt: skip
    if t >= image_threads:
        return
    panel, y_pixels = panel_of(item), rows_out * columns_out
    panels = (columns + panel - 1) // panel
    high, wide = (rows_out + 1) // 2, (columns_out + 1) // 2
    start, stop = t * images // image_threads, (t + 1) * images // image_threads
    blocks = (stop - start + block - 1) // block
    canvas = own + t * own_bytes
    result = canvas + (item * block * elements + 63) // 64 * 64
    before = result + (item * block * y_pixels * columns + 63) // 64 * 64
    before_step, after_step = batch * channels + 16, batch * columns + 16  # positions 4 KB apart would share lines of the cache
    after = before + 16 * item * before_step
    zero(canvas, item * block * elements)
    for b in range(blocks):
        n0, n1 = start + b * (stop - start) // blocks, start + (b + 1) * (stop - start) // blocks
        for n in range(n0, n1):
            src = x + item * n * channels * x_pixels
            call(scatter, (src, item * x_pixels, canvas + item * (n - n0) * elements, pixels, channels, x_pixels))
        total = (n1 - n0) * high * wide
        batches = (total + batch - 1) // batch
        for c in range(batches):
            r0, r1 = c * total // batches, (c + 1) * total // batches
            for r in range(r0, r1):
                src, dst = canvas + item * entry(corners, r), before + item * (r - r0) * channels
                call(transform, (INPUT, src, row, channels, dst, 4 * before_step, before_step, 4, 4, channels))
            for k in range(16):
                product(
                    tile, item, 1 << 40, 1024,
                    before + item * k * before_step, by_tile, r1 - r0, places, channels,
                    u + item * k * panels * channels * panel, channels * panel, panel,
                    after + item * k * after_step, by_tile_out, columns, 0, panels, 0,
                )  # fmt: skip
            for r in range(r0, r1):
                n, i, j = r // (high * wide), r // wide % high * 2, r % wide * 2
                src, dst = after + item * (r - r0) * columns, result + item * ((n * rows_out + i) * columns_out + j) * columns
                limits = (rows_out - i, columns_out - j, columns)
                call(transform, (OUTPUT, src, 4 * after_step, after_step, dst, columns_out * columns, columns, *limits))
        for n in range(n0, n1):
            src, dst = result + item * (n - n0) * y_pixels * columns, y + item * n * columns * y_pixels
            call(scatter, (src, item * columns, dst, planes, y_pixels, columns))


@part
def weight(t, threads, job):
    """sums[t, position, c, o] = Σ over the thread's tiles of (Bᵀ d B)[position, c] (A ȳ Aᵀ)[position, o]"""
    (
        tile, scatter, item, transform, x, dy, sums, images, channels, x_pixels, columns,
        y_pixels, tiles, block, elements, row, pixels, corners, y_elements, y_row, y_places, y_corners, batch, by_tile,
        places, results, own, own_bytes, image_threads,
    ) = fields(job, 29)  # fmt: skip
    if t >= image_threads:
        return
    panel = panel_of(item)
    panels = (columns + panel - 1) // panel
    start, stop = t * images // image_threads, (t + 1) * images // image_threads
    blocks = (stop - start + block - 1) // block
    canvas = own + t * own_bytes
    y_canvas = canvas + (item * block * elements + 63) // 64 * 64
    left = y_canvas + (item * block * y_elements + 63) // 64 * 64
    left_step, right_step = batch * channels + 16, batch * columns + 16
    right = left + 16 * item * left_step
    zero(canvas, item * block * elements)
    zero(y_canvas, item * block * y_elements)
    for b in range(blocks):
        n0, n1 = start + b * (stop - start) // blocks, start + (b + 1) * (stop - start) // blocks
        for n in range(n0, n1):
            src, dst = x + item * n * channels * x_pixels, canvas + item * (n - n0) * elements
            call(scatter, (src, item * x_pixels, dst, pixels, channels, x_pixels))
            src, dst = dy + item * n * columns * y_pixels, y_canvas + item * (n - n0) * y_elements
            call(scatter, (src, item * y_pixels, dst, y_places, columns, y_pixels))
        total = (n1 - n0) * tiles
        batches = (total + batch - 1) // batch
        for c in range(batches):
            r0, r1 = c * total // batches, (c + 1) * total // batches
            for r in range(r0, r1):
                src, dst = canvas + item * entry(corners, r), left + item * (r - r0) * channels
                call(transform, (INPUT, src, row, channels, dst, 4 * left_step, left_step, 4, 4, channels))
                src, dst = y_canvas + item * entry(y_corners, r), right + item * (r - r0) * columns
                call(transform, (OUTPUT_GRAD, src, y_row, columns, dst, 4 * right_step, right_step, 4, 4, columns))
            for k in range(16):
                product(
                    tile, item, 1 << 40, batch,
                    left + item * k * left_step, places, channels, by_tile, r1 - r0,
                    right + item * k * right_step, panel, columns, sums + item * (16 * t + k) * channels * columns, results,
                    columns, 0, panels, b + c,
                )  # fmt: skip


def batch_size(channels: int, outputs: int, item: int) -> int:
    """Tiles at a time: so many that both sides of the products, 16 positions each, take less than half of an L2 cache."""
    return max(16, min(96, 400_000 // (16 * item * (channels + outputs)))) // 6 * 6


def tile_corners(canvas: Any, counts: tuple[int, int], padding: tuple[int, int], images: int) -> Offsets:
    """Places of the first element of each 2×2 tile of outputs in the canvas, image by image."""
    corners = canvas.at(*(np.arange(0, n, 2) - p for n, p in zip(counts, padding, strict=True)))
    return Offsets(np.add.outer(np.arange(images) * canvas.elements, corners).reshape(-1))
