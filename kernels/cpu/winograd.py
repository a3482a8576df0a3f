r"""Winograd's F(2×2, r×r), r = 3 or 2: 16 products where four 3×3 windows take 36; 9 where four 2×2 windows take 16.

Two outputs of a filter of r taps from r + 1 products instead of 2 r (Lavin & Gray 2016, arXiv:1509.09308), in each dimension:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,    r = 3:  Bᵀ = [1  0 −1  0]    G = [1  0  0]      Aᵀ = [1 1  1  0]
                                                    [0  1  1  0]        [½  ½  ½]           [0 1 −1 −1]
                                                    [0 −1  1  0]        [½ −½  ½]
                                                    [0  1  0 −1]        [0  0  1]

                                       r = 2:  Bᵀ = [1 −1  0]       G = [1 0]          Aᵀ = [1 1 0]
                                                    [0  1  0]           [1 1]               [0 1 1]
                                                    [0 −1  1]           [0 1]

d: (r+1)×(r+1) tiles of the image at steps of 2, g: the kernel. ⊙ meets a sum over channels, so each of the (r+1)² positions
is a product of matrices, (tiles × C) (C × O). The gradients are the transposes of the same three maps:

    input:   d̄ = B [(G g Gᵀ) ⊙ (A ȳ Aᵀ)] Bᵀ, added up where tiles overlap
    weight:  ḡ = Gᵀ [Σ_tiles (Bᵀ d B) ⊙ (A ȳ Aᵀ)] G

Stride s, kernel s r: since s i + (s u + a) = s (i + u) + a, that is the sum over a of r taps u with stride 1 on each s-th
pixel from a on. So the s×s pixels of a cell, (a, b), are channels too: s² C of them on an image s times smaller. Channels
being innermost, the b and c of a cell lie in one piece, and a is one row of the image further: nothing is to be rearranged.

Where y has an odd number of lines, the second line of the last tiles lies beyond it, and the last position is not needed:
no product for it. `tile_corners` orders tiles so that those which need a position follow one another.

The results are those of the direct sum to a few roundings more (about twice its error). One difference is by nature: an
infinity or NaN in a tile reaches all four of its outputs, also those whose window it is not in. With few tiles in all
Winograd does not pay: the last bits of an image's results may depend on how many others there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.build import INT, VOID, helper, kernel
from kernels.cpu.convolution_loops import Offsets, entry, fields, panel_of, part, product, zero
from kernels.cpu.simd import BYTES, I64, Vectors, call

INPUT, INPUT_GRAD, OUTPUT, OUTPUT_GRAD, KERNEL, KERNEL_GRAD = range(6)  # Bᵀ, B, Aᵀ, A, G, Gᵀ of r = 3
PAIR_INPUT, PAIR_INPUT_GRAD, PAIR_SUMS, PAIR_SUMS_GRAD = range(6, 10)  # Bᵀ, B, Aᵀ = Gᵀ, A = G of r = 2
KINDS = {3: range(6), 2: (PAIR_INPUT, PAIR_INPUT_GRAD, PAIR_SUMS, PAIR_SUMS_GRAD, PAIR_SUMS_GRAD, PAIR_SUMS)}
TAKEN = (4, 4, 4, 2, 3, 4, 3, 3, 3, 2)  # sides of the squares that each takes


def _line(v: Vectors, kind: int, x: list[Any]) -> list[Any]:
    """One dimension of a transform."""
    add, sub = v.builder.fadd, v.builder.fsub

    def halves(a: Any) -> Any:
        return v.builder.fmul(a, ir.Constant(v.type, [0.5] * v.lanes))

    if kind == INPUT:
        return [sub(x[0], x[2]), add(x[1], x[2]), sub(x[2], x[1]), sub(x[1], x[3])]
    if kind == INPUT_GRAD:
        return [x[0], add(sub(x[1], x[2]), x[3]), sub(add(x[1], x[2]), x[0]), v.builder.fneg(x[3])]
    if kind == OUTPUT:
        return [add(add(x[0], x[1]), x[2]), sub(sub(x[1], x[2]), x[3])]
    if kind == OUTPUT_GRAD:
        return [x[0], add(x[0], x[1]), sub(x[0], x[1]), v.builder.fneg(x[1])]
    if kind == KERNEL:
        ends = add(x[0], x[2])
        return [x[0], halves(add(ends, x[1])), halves(sub(ends, x[1])), x[2]]
    if kind == PAIR_INPUT:
        return [sub(x[0], x[1]), x[1], sub(x[2], x[1])]
    if kind == PAIR_INPUT_GRAD:
        return [x[0], sub(x[1], add(x[0], x[2])), x[2]]
    if kind == PAIR_SUMS:
        return [add(x[0], x[1]), add(x[1], x[2])]
    if kind == PAIR_SUMS_GRAD:
        return [x[0], add(x[0], x[1]), x[1]]
    both, apart = halves(add(x[1], x[2])), halves(sub(x[1], x[2]))
    return [add(x[0], both), apart, add(both, x[3])]


@intrinsic
def _transform(
    typingctx: Any, kind: Any, src: Any, src_row: Any, src_step: Any, dst: Any, dst_row: Any, dst_step: Any, n: Any
) -> Any:
    """dst = M src Mᵀ for a square of n-vectors with the given distances; gradients of inputs are added to dst"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        kind, src, src_row, src_step, dst, dst_row, dst_step, n = args
        src, dst = (builder.bitcast(x, BYTES) for x in (src, dst))
        src_row, src_step, dst_row, dst_step = (builder.mul(x, I64(v.itemsize)) for x in (src_row, src_step, dst_row, dst_step))

        def at(base: Any, row: Any, i: int, step: Any, j: int, first: Any) -> Any:
            return v.at(base, first, builder.mul(row, I64(i)), builder.mul(step, I64(j)))

        def emit(which: int, first: Any, mask: Any) -> None:
            side = range(TAKEN[which])
            x = [[v.load(at(src, src_row, i, src_step, j, first), mask) for j in side] for i in side]
            half = list(zip(*(_line(v, which, row) for row in x), strict=True))  # half[j][i]
            for j, column in enumerate(half):
                for i, y in enumerate(_line(v, which, list(column))):
                    where = at(dst, dst_row, i, dst_step, j, first)
                    v.store(builder.fadd(y, v.load(where, mask)) if which in (INPUT_GRAD, PAIR_INPUT_GRAD) else y, where, mask)

        whole = builder.sdiv(n, I64(v.lanes))
        leave = builder.append_basic_block("leave")
        switch = builder.switch(kind, leave)
        for which in range(len(TAKEN)):
            case = builder.append_basic_block(f"kind{which}")
            switch.add_case(I64(which), case)
            builder.position_at_end(case)
            with cgutils.for_range(builder, whole) as loop:
                emit(which, builder.mul(loop.index, I64(v.lanes * v.itemsize)), None)
            first = builder.mul(whole, I64(v.lanes))
            with builder.if_then(builder.icmp_signed("<", first, n)):
                emit(which, builder.mul(first, I64(v.itemsize)), v.mask(builder.sub(n, first), 0))
            builder.branch(leave)
        builder.position_at_end(leave)
        return context.get_dummy_value()

    return types.void(kind, src, src_row, src_step, dst, dst_row, dst_step, n), codegen


@kernel(lambda T: VOID(INT, *[types.CPointer(T), INT, INT] * 2, INT), callback=True)
def transform(kind, src, src_row, src_step, dst, dst_row, dst_step, n):
    """One of them: see `_transform`."""
    _transform(kind, src, src_row, src_step, dst, dst_row, dst_step, n)


@part
def kernels(t, threads, job):
    """u[position, …, i] = G g Gᵀ, in panels of channels i as `pack_weights` makes them: transformed as soon as a panel has them

    u's distances: from one cell's pixel to the next, from panel to panel, from position to position.
    """
    (
        transform, kind, scatter, item, w, u, wide, wide_step, other, other_step, kernel, stride, side, by_tap, u_pixel,
        u_panel, u_position, own, own_bytes,
    ) = fields(job, 19)  # fmt: skip
    panel, packed = panel_of(item), own + t * own_bytes
    for q in range((wide + panel - 1) // panel):
        for m in range(t * other // threads, (t + 1) * other // threads):
            src, count = w + item * (q * panel * wide_step + m * other_step), min(panel, wide - q * panel)
            call(scatter, (src, item * wide_step, packed, by_tap, count, kernel * kernel))
            for a in range(stride):
                for b in range(stride):
                    of = packed + item * (a * kernel + b) * panel
                    to = u + item * (q * u_panel + (a * stride + b) * u_pixel + m * panel)
                    squares = (of, stride * kernel * panel, stride * panel, to, side * u_position, u_position)
                    call(transform, (kind, *squares, panel))


@part
def kernel_grads(t, threads, job):
    """g[(u, a), (v, b), c, o] = Gᵀ u[position, a, b, c, o] G, for each thread's sums"""
    transform, kind, item, sums, grads, count, kernel, stride, side, n = fields(job, 10)
    first, last, pixels = t * n // threads, (t + 1) * n // threads, stride * stride
    for q in range(count * pixels):
        z, a, b = q // pixels, q // stride % stride, q % stride
        of = sums + item * ((z * side * side * pixels + a * stride + b) * n + first)
        to = grads + item * ((z * kernel * kernel + a * kernel + b) * n + first)
        squares = (of, side * pixels * n, pixels * n, to, stride * kernel * n, stride * n)
        call(transform, (kind, *squares, last - first))


@helper
def needing(k, side, images, rows, width, first, last):
    """Which of the tiles `first` to `last` need position k: a range within that one. See `tile_corners`."""
    high, wide = rows // 2, width // 2
    below, inside, beside = images * (rows % 2) * wide, images * high * wide, images * high * (width % 2)
    if k // side == side - 1:
        first, last = min(max(first, below), last), min(last, below + inside + beside)
    if k % side == side - 1:
        last = min(last, below + inside)
    return first, max(first, last)


@part
def correlate(t, threads, job):
    """y = Aᵀ [Σ_c u ⊙ (Bᵀ d B)] A, for some tiles of a block of images at a time;  or, `adding`, x̄ in the place of y

    A cell of either image is stride × stride pixels; tiles begin at the corners.
    """
    (
        tile, scatter, item, transform, inward, outward, side, adding, u, images, block, rows, width, batch,
        x, channels, x_pixels, x_stride, x_elements, x_row, x_places, x_corners, by_tile, places,
        y, columns, y_pixels, y_stride, y_elements, y_row, y_first, y_corners, by_tile_out, planes, strips,
        own, own_bytes, image_threads,
    ) = fields(job, 38)  # fmt: skip
    if t >= image_threads:
        return
    panel = panel_of(item)
    panels = (columns + panel - 1) // panel
    start, stop = t * images // image_threads, (t + 1) * images // image_threads
    blocks = (stop - start + block - 1) // block
    x_line, y_line = x_stride * channels, y_stride * columns  # the part of a cell that lies in one piece
    depth, phases = x_stride * x_line, y_stride * y_stride
    wide, tiles = phases * columns, ((rows + 1) // 2) * ((width + 1) // 2)
    canvas = own + t * own_bytes
    result = canvas + (item * block * x_elements + 63) // 64 * 64
    before = result + (item * block * y_elements + 63) // 64 * 64
    before_step, after_step = batch * depth + 16, batch * wide + 16  # positions 4 KB apart would share cache lines
    after = before + side * side * item * before_step
    zero(canvas, item * block * x_elements)
    for b in range(blocks):
        n0, n1 = start + b * (stop - start) // blocks, start + (b + 1) * (stop - start) // blocks
        if adding:
            zero(result, item * (n1 - n0) * y_elements)
        for n in range(n0, n1):
            src = x + item * n * channels * x_pixels
            call(scatter, (src, item * x_pixels, canvas + item * (n - n0) * x_elements, x_places, channels, x_pixels))
        total, start_of = (n1 - n0) * tiles, 8 * tiles * ((n1 - n0) * (n1 - n0 - 1) // 2)
        batches = (total + batch - 1) // batch
        for c in range(batches):
            r0, r1 = c * total // batches, (c + 1) * total // batches
            for r in range(r0, r1):
                for a in range(x_stride):
                    src = canvas + item * (entry(x_corners + start_of, r) + a * x_row)
                    dst = before + item * ((r - r0) * depth + a * x_line)
                    call(transform, (inward, src, x_stride * x_row, x_line, dst, side * before_step, before_step, x_line))
            for q in range(side * side * phases):
                k, f = q // phases, q % phases
                p0, p1 = needing(k, side, n1 - n0, rows, width, r0, r1)
                to = after + item * (k * after_step + (p0 - r0) * wide)
                product(
                    tile, item, 1 << 40, 1024, before + item * (k * before_step + (p0 - r0) * depth), by_tile, p1 - p0, places,
                    depth, u + item * q * panels * depth * panel, depth * panel, panel, to + item * f * columns, by_tile_out,
                    columns, 0, panels, 0,
                )  # fmt: skip
                if adding and f == 0:  # tiles that do not need k add nothing; once, before the product of the next phase
                    zero(after + item * k * after_step, item * (p0 - r0) * wide)
                    zero(to + item * (p1 - p0) * wide, item * (r1 - p1) * wide)
            for r in range(r0, r1):
                for a in range(y_stride):
                    src = after + item * ((r - r0) * wide + a * y_line)
                    dst = result + item * (entry(y_corners + start_of, r) + a * y_row)
                    call(transform, (outward, src, side * after_step, after_step, dst, y_stride * y_row, y_line, y_line))
        for n in range(n0, n1):
            for h in range(strips):
                src = result + item * ((n - n0) * y_elements + y_first + h * y_row)
                dst = y + item * (n * columns * y_pixels + h * (y_pixels // strips))
                call(scatter, (src, item * columns, dst, planes, y_pixels // strips, columns))


@part
def weight(t, threads, job):
    """sums[t, position, c, o] = Σ over the thread's tiles of (Bᵀ d B)[position, c] (A ȳ Aᵀ)[position, o]"""
    (
        tile, scatter, item, transform, inward, outward, side, x, dy, sums, images, channels, x_pixels, columns,
        y_pixels, stride, rows, width, block, elements, row, pixels, corners, y_elements, y_row, y_places, y_corners, batch,
        by_tile, places, results, own, own_bytes, image_threads,
    ) = fields(job, 34)  # fmt: skip
    if t >= image_threads:
        return
    panel = panel_of(item)
    panels = (columns + panel - 1) // panel
    start, stop = t * images // image_threads, (t + 1) * images // image_threads
    blocks = (stop - start + block - 1) // block
    canvas = own + t * own_bytes
    y_canvas = canvas + (item * block * elements + 63) // 64 * 64
    left = y_canvas + (item * block * y_elements + 63) // 64 * 64
    line, depth = stride * channels, stride * stride * channels
    left_step, right_step = batch * depth + 16, batch * columns + 16
    right = left + side * side * item * left_step
    tiles, size = ((rows + 1) // 2) * ((width + 1) // 2), depth * columns
    sums += item * t * side * side * size
    zero(sums, item * side * side * size)
    zero(canvas, item * block * elements)
    zero(y_canvas, item * block * y_elements)
    for b in range(blocks):
        n0, n1 = start + b * (stop - start) // blocks, start + (b + 1) * (stop - start) // blocks
        for n in range(n0, n1):
            src, dst = x + item * n * channels * x_pixels, canvas + item * (n - n0) * elements
            call(scatter, (src, item * x_pixels, dst, pixels, channels, x_pixels))
            src, dst = dy + item * n * columns * y_pixels, y_canvas + item * (n - n0) * y_elements
            call(scatter, (src, item * y_pixels, dst, y_places, columns, y_pixels))
        total, start_of = (n1 - n0) * tiles, 8 * tiles * ((n1 - n0) * (n1 - n0 - 1) // 2)
        batches = (total + batch - 1) // batch
        for c in range(batches):
            r0, r1 = c * total // batches, (c + 1) * total // batches
            for r in range(r0, r1):
                for a in range(stride):
                    src = canvas + item * (entry(corners + start_of, r) + a * row)
                    dst = left + item * ((r - r0) * depth + a * line)
                    call(transform, (inward, src, stride * row, line, dst, side * left_step, left_step, line))
                src, dst = y_canvas + item * entry(y_corners + start_of, r), right + item * (r - r0) * columns
                call(transform, (outward, src, y_row, columns, dst, side * right_step, right_step, columns))
            for k in range(side * side):
                p0, p1 = needing(k, side, n1 - n0, rows, width, r0, r1)
                of = left + item * (k * left_step + (p0 - r0) * depth), right + item * (k * right_step + (p0 - r0) * columns)
                product(
                    tile, item, 1 << 40, batch, of[0], places, depth, by_tile, p1 - p0, of[1], panel, columns,
                    sums + item * k * size, results, columns, 0, panels, 1,
                )  # fmt: skip


def batch_size(depth: int, columns: int, positions: int, item: int) -> int:
    """Tiles at a time: so many that both sides of the products, at all positions, take less than half of an L2 cache.

    Sixteen at least, whatever they take. (A weight gradient, each of whose batches goes over all its sums, takes more.)
    """
    return max(16, min(96, 400_000 // (positions * item * (depth + columns)))) // 6 * 6


def tile_corners(canvas: Any, counts: tuple[int, int], stride: int, padding: tuple[int, int], images: int) -> Offsets:
    """Places of the first elements of the 2×2 tiles of outputs in the canvas: of one image, of two, … of all.

    Of all images first the tiles whose second row alone lies beyond the outputs, then those within, those whose second
    column alone does, and those with both.
    """
    corners = canvas.at(*(np.arange(0, n, 2) * stride - p for n, p in zip(counts, padding, strict=True)))
    high, wide = counts[0] // 2, counts[1] // 2
    corners = corners.reshape(-(-counts[0] // 2), -1)
    parts = corners[high:, :wide], corners[:high, :wide], corners[:high, wide:], corners[high:, wide:]
    places = [np.add.outer(np.arange(m) * canvas.elements, part).reshape(-1) for m in range(1, images + 1) for part in parts]
    return Offsets(np.concatenate(places))
