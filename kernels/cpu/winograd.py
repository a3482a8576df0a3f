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

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu import jobs
from kernels.cpu.build import INT, VOID, helper, kernel
from kernels.cpu.convolution_loops import (
    ALL,
    DEPTH,
    Canvases,
    Extent,
    Left,
    Planes,
    Right,
    Share,
    Target,
    Tools,
    block_of,
    collected,
    images_of,
    panel_of,
    product,
    to_canvas,
    tools,
)
from kernels.cpu.convolution_plans import Canvas, Geometry, multiples
from kernels.cpu.jobs import Address, Offsets, entry, launch, lines, part, portion, read, record, whole_lines, zero
from kernels.cpu.simd import BYTES, I64, Vectors, call

Array = np.ndarray
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


@kernel(lambda element: VOID(INT, *[types.CPointer(element), INT, INT] * 2, INT), callback=True)
def transform(kind, src, src_row, src_step, dst, dst_row, dst_step, n):
    """One of them: see `_transform`."""
    _transform(kind, src, src_row, src_step, dst, dst_row, dst_step, n)


class Weights(NamedTuple):
    """Transforms of the weights: wide channels in panels, the other channels below, as `pack_weights` makes them."""

    tools: Tools
    transform: Address
    kind: int
    weights: Address
    to: Address
    wide: int
    wide_step: int
    other: int
    other_step: int
    kernel: int
    stride: int
    side: int
    taps: Address  # offset of each tap in a packed kernel
    pixel: int  # elements of the result from one pixel of a cell to the next,
    panel: int  # from panel to panel,
    position: int  # from position to position
    memory: Address
    size: int


WEIGHTS = record(Weights)


@part
def kernels(t, threads, where):
    """u[position, …, i] = G g Gᵀ, in panels of channels i: transformed as soon as a panel of a thread has its kernels"""
    job = read(where, WEIGHTS)
    item, kernel, stride = job.tools.item, job.kernel, job.stride
    panel, packed = panel_of(item), job.memory + t * job.size
    begin, end = portion(t, threads, job.other)
    for q in range((job.wide + panel - 1) // panel):
        for m in range(begin, end):
            source = job.weights + item * (q * panel * job.wide_step + m * job.other_step)
            count = min(panel, job.wide - q * panel)
            call(job.tools.scatter, (source, item * job.wide_step, packed, job.taps, count, kernel * kernel))
            for a in range(stride):
                for b in range(stride):
                    of = packed + item * (a * kernel + b) * panel
                    to = job.to + item * (q * job.panel + (a * stride + b) * job.pixel + m * panel)
                    squares = (of, stride * kernel * panel, stride * panel, to, job.side * job.position, job.position)
                    call(job.transform, (job.kind, *squares, panel))


class KernelGrads(NamedTuple):
    """Gradients of the kernels from those of their transforms, for the sums of each thread."""

    transform: Address
    kind: int
    item: int
    sums: Address
    grads: Address
    count: int  # of the threads' sums
    kernel: int
    stride: int
    side: int
    plane: int  # channels × outputs


KERNEL_GRADS = record(KernelGrads)


@part
def kernel_grads(t, threads, where):
    """g[(u, a), (v, b), c, o] = Gᵀ u[position, a, b, c, o] G"""
    job = read(where, KERNEL_GRADS)
    item, kernel, stride, side, plane, pixels = job.item, job.kernel, job.stride, job.side, job.plane, job.stride * job.stride
    first, last = portion(t, threads, plane)
    for q in range(job.count * pixels):
        z, a, b = q // pixels, q // stride % stride, q % stride
        of = job.sums + item * ((z * side * side * pixels + a * stride + b) * plane + first)
        to = job.grads + item * ((z * kernel * kernel + a * kernel + b) * plane + first)
        squares = (of, side * pixels * plane, pixels * plane, to, stride * kernel * plane, stride * plane)
        call(job.transform, (job.kind, *squares, last - first))


class Tiles(NamedTuple):
    """The 2×2 tiles of outputs, and how many positions and how many tiles at once their transforms have."""

    rows: int  # of the outputs
    columns: int
    side: int
    batch: int


class Side(NamedTuple):
    """One of the two images of a correlation, with the transform between its tiles and the products."""

    planes: Planes
    canvas: Canvases
    row: int  # elements of a line of the canvas
    first: int  # offset of the first pixel
    corners: Address  # offset of each tile
    transform: int
    stride: int  # of a cell: stride × stride pixels
    tiles: Address  # offset of each tile in a batch


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


@helper
def corners_of(side, images, tiles):
    """Where the corners in so many images stand in the table, which has those of one image, of two, …"""
    return side.corners + 8 * tiles * (images * (images - 1) // 2)


class Correlation(NamedTuple):
    """y = x ⋆ w, or, `adding`, x̄ from ȳ: `source` to `result`, by way of the weights' transforms."""

    tools: Tools
    share: Share
    transform: Address
    weights: Address
    tiles: Tiles
    source: Side
    result: Side
    adding: int  # whether tiles of the result overlap
    channels: Address  # offset of each channel of a tile of the source
    planes: Address  # offset of each channel's plane in an image of the result
    strips: int  # pieces of the result in each of which pixels follow each other in the canvas


CORRELATION = record(Correlation)


@part
def correlate_tiles(t, threads, where):
    """Blocks of images, some of their tiles at a time: Aᵀ [Σ_c u ⊙ (Bᵀ d B)] A, with tiles beginning at the corners.

    Memory: canvas  |  result's canvas  |  Bᵀ d B for each position, batch × depth  |  products for each position, batch × wide
    """
    job = read(where, CORRELATION)
    tools, share, tiling, source, result = job.tools, job.share, job.tiles, job.source, job.result
    if t >= share.by_image:
        return
    item, side, batch, columns, adding = tools.item, tiling.side, tiling.batch, result.planes.channels, job.adding
    panel = panel_of(item)
    panels = (columns + panel - 1) // panel
    start, stop, blocks = images_of(t, share)
    source_line = source.stride * source.planes.channels  # the part of a cell that lies in one piece
    result_line = result.stride * columns
    depth, phases = source.stride * source_line, result.stride * result.stride
    wide, tiles = phases * columns, ((tiling.rows + 1) // 2) * ((tiling.columns + 1) // 2)
    canvas = share.memory + t * share.size
    results = canvas + lines(item * share.block * source.canvas.elements)
    before = results + lines(item * share.block * result.canvas.elements)
    before_step, after_step = batch * depth + 16, batch * wide + 16  # positions 4 KB apart would share cache lines
    after = before + side * side * item * before_step
    zero(canvas, item * share.block * source.canvas.elements)
    for b in range(blocks):
        n0, n1 = block_of(b, blocks, start, stop)
        if adding:
            zero(results, item * (n1 - n0) * result.canvas.elements)
        for n in range(n0, n1):
            to_canvas(tools, source.planes, n, canvas + item * (n - n0) * source.canvas.elements, source.canvas.pixels)
        total, images = (n1 - n0) * tiles, n1 - n0
        from_corners, to_corners = corners_of(source, images, tiles), corners_of(result, images, tiles)
        batches = (total + batch - 1) // batch
        for c in range(batches):
            r0, r1 = portion(c, batches, total)
            for r in range(r0, r1):
                for a in range(source.stride):
                    of = canvas + item * (entry(from_corners, r) + a * source.row)
                    to = before + item * ((r - r0) * depth + a * source_line)
                    squares = (of, source.stride * source.row, source_line, to, side * before_step, before_step)
                    call(job.transform, (source.transform, *squares, source_line))
            for q in range(side * side * phases):
                k, f = q // phases, q % phases
                p0, p1 = needing(k, side, images, tiling.rows, tiling.columns, r0, r1)
                to = after + item * (k * after_step + (p0 - r0) * wide)
                left = Left(before + item * (k * before_step + (p0 - r0) * depth), source.tiles, job.channels)
                right = Right(job.weights + item * q * panels * depth * panel, depth * panel, panel)
                extent, target = Extent(p1 - p0, depth, columns, ALL, DEPTH), Target(to + item * f * columns, result.tiles)
                product(tools, extent, left, right, target, (0, panels), 0)
                if adding and f == 0:  # tiles that do not need k add nothing; once, before the product of the next phase
                    zero(after + item * k * after_step, item * (p0 - r0) * wide)
                    zero(to + item * (p1 - p0) * wide, item * (r1 - p1) * wide)
            for r in range(r0, r1):
                for a in range(result.stride):
                    of = after + item * ((r - r0) * wide + a * result_line)
                    to = results + item * (entry(to_corners, r) + a * result.row)
                    squares = (of, side * after_step, after_step, to, result.stride * result.row, result_line)
                    call(job.transform, (result.transform, *squares, result_line))
        pixels = result.planes.pixels
        for n in range(n0, n1):
            for h in range(job.strips):
                of = results + item * ((n - n0) * result.canvas.elements + result.first + h * result.row)
                to = result.planes.start + item * (n * columns * pixels + h * (pixels // job.strips))
                call(tools.scatter, (of, item * columns, to, job.planes, pixels // job.strips, columns))


class Weighting(NamedTuple):
    """sums[thread, position, c, o] = Σ over the thread's tiles of (Bᵀ d B)[position, c] (A ȳ Aᵀ)[position, o]."""

    tools: Tools
    share: Share
    transform: Address
    tiles: Tiles
    source: Side
    grads: Side
    sums: Address
    channels: Address  # offset of each channel of a tile of the source
    results: Address  # offset of each channel's row in the sums


WEIGHTING = record(Weighting)


@part
def weight(t, threads, where):
    """Blocks of images, some of their tiles at a time.

    Memory: canvas  |  ȳ's canvas  |  Bᵀ d B for each position, batch × depth  |  A ȳ Aᵀ for each position, batch × columns
    """
    job = read(where, WEIGHTING)
    tools, share, tiling, source, grads = job.tools, job.share, job.tiles, job.source, job.grads
    if t >= share.by_image:
        return
    item, side, batch, columns = tools.item, tiling.side, tiling.batch, grads.planes.channels
    panel = panel_of(item)
    panels = (columns + panel - 1) // panel
    start, stop, blocks = images_of(t, share)
    line = source.stride * source.planes.channels
    depth = source.stride * line
    canvas = share.memory + t * share.size
    grad_canvas = canvas + lines(item * share.block * source.canvas.elements)
    left = grad_canvas + lines(item * share.block * grads.canvas.elements)
    left_step, right_step = batch * depth + 16, batch * columns + 16
    right = left + side * side * item * left_step
    tiles, size = ((tiling.rows + 1) // 2) * ((tiling.columns + 1) // 2), depth * columns
    sums = job.sums + item * t * side * side * size
    zero(sums, item * side * side * size)
    zero(canvas, item * share.block * source.canvas.elements)
    zero(grad_canvas, item * share.block * grads.canvas.elements)
    for b in range(blocks):
        n0, n1 = block_of(b, blocks, start, stop)
        for n in range(n0, n1):
            to_canvas(tools, source.planes, n, canvas + item * (n - n0) * source.canvas.elements, source.canvas.pixels)
            to_canvas(tools, grads.planes, n, grad_canvas + item * (n - n0) * grads.canvas.elements, grads.canvas.pixels)
        total, images = (n1 - n0) * tiles, n1 - n0
        corners, grad_corners = corners_of(source, images, tiles), corners_of(grads, images, tiles)
        batches = (total + batch - 1) // batch
        for c in range(batches):
            r0, r1 = portion(c, batches, total)
            for r in range(r0, r1):
                for a in range(source.stride):
                    of = canvas + item * (entry(corners, r) + a * source.row)
                    to = left + item * ((r - r0) * depth + a * line)
                    squares = (of, source.stride * source.row, line, to, side * left_step, left_step)
                    call(job.transform, (source.transform, *squares, line))
                of, to = grad_canvas + item * entry(grad_corners, r), right + item * (r - r0) * columns
                squares = (of, grads.row, columns, to, side * right_step, right_step)
                call(job.transform, (grads.transform, *squares, columns))
            for k in range(side * side):
                p0, p1 = needing(k, side, images, tiling.rows, tiling.columns, r0, r1)
                a = Left(left + item * (k * left_step + (p0 - r0) * depth), job.channels, source.tiles)
                b_start = right + item * (k * right_step + (p0 - r0) * columns)
                extent, target = Extent(depth, p1 - p0, columns, ALL, batch), Target(sums + item * k * size, job.results)
                product(tools, extent, a, Right(b_start, panel, columns), target, (0, panels), 1)


# ---------------------------------------------------------------------------------------------------------------------
# What `convolution` calls
# ---------------------------------------------------------------------------------------------------------------------

CHANNELS = 24  # measured: 16 channels draw, 24 gain a quarter, 32 on 7 × 7 lose it again, 64 gain up to 1.8 times
TILES = 48  # measured: with 32 to 64 tiles in all, the transforms of the weights take what the products save


def pays(g: Geometry, groups: int, images: int) -> bool:
    """Whether 2.25 or 1.78 times fewer products outweigh the transforms: with many channels and tiles, which lie within y."""
    s, r = g.stride[0], g.kernel[0] // g.stride[0]
    fits = r in KINDS and g.kernel == (s * r, s * r) and g.stride == (s, s) and g.dilation == (1, 1) and groups == 1
    fits = fits and max(g.padding) < s * r
    within = math.prod(n / (n + n % 2) for n in g.counts)
    many = images * math.prod(-(-n // 2) for n in g.counts) >= TILES
    return fits and many and min(g.channels, g.outputs) * within**2 >= CHANNELS


def batch_size(depth: int, columns: int, positions: int, item: int) -> int:
    """Tiles at a time: so many that both sides of the products, at all positions, take less than half of an L2 cache.

    Sixteen at least, whatever they take. (A weight gradient, each of whose batches goes over all its sums, takes more.)
    """
    return max(16, min(96, 400_000 // (positions * item * (depth + columns)))) // 6 * 6


def tile_corners(canvas: Canvas, counts: tuple[int, int], stride: int, padding: tuple[int, int], images: int) -> Offsets:
    """Offsets of the first elements of the 2×2 tiles of outputs in the canvas: of one image, of two, … of all.

    Of all images first the tiles whose second row alone lies beyond the outputs, then those within, those whose second
    column alone does, and those with both.
    """
    corners = canvas.at(*(np.arange(0, n, 2) * stride - p for n, p in zip(counts, padding, strict=True)))
    high, wide = counts[0] // 2, counts[1] // 2
    corners = corners.reshape(-(-counts[0] // 2), -1)
    parts = corners[high:, :wide], corners[:high, :wide], corners[:high, wide:], corners[high:, wide:]
    offsets = [np.add.outer(np.arange(m) * canvas.elements, part).reshape(-1) for m in range(1, images + 1) for part in parts]
    return Offsets(np.concatenate(offsets))


@lru_cache(256)
def _canvases(g: Geometry, images: int) -> tuple[Canvas, Offsets, Canvas, Offsets]:
    """Canvases of x and of y that hold whole tiles, and where these begin."""
    s = g.stride[0]
    tiled = [n + n % 2 for n in g.counts]
    reach = [s * (n - 1) + k for n, k in zip(tiled, g.kernel, strict=True)]
    after = tuple(max(0, n - m - p) for n, m, p in zip(reach, g.size, g.padding, strict=True))
    x, y = Canvas(g.channels, g.size, g.padding, after), Canvas(g.outputs, g.counts, (0, 0), tuple(n % 2 for n in g.counts))
    return x, tile_corners(x, g.counts, s, g.padding, images), y, tile_corners(y, g.counts, 1, (0, 0), images)


def _sides(x: Any, y: Any, g: Geometry, transforms: tuple[int, int], block: int, batch: int) -> tuple[Side, Side]:
    """x's side and y's, with the kinds of their transforms. An image is the array, or None where only its sizes are wanted."""
    s = g.stride[0]
    x_canvas, x_corners, y_canvas, y_corners = _canvases(g, block)
    made = []
    for array, channels, size, stride, canvas, corners, kind in (
        (x, g.channels, g.size, s, x_canvas, x_corners, transforms[0]),
        (y, g.outputs, g.counts, 1, y_canvas, y_corners, transforms[1]),
    ):
        planes, canvases = Planes(array, channels, math.prod(size)), Canvases(canvas.elements, canvas.pixels)
        first, tiles = int(canvas.pixels.array[0]), multiples(batch, channels * stride**2)
        made.append(Side(planes, canvases, canvas.row, first, corners, kind, stride, tiles))
    return made[0], made[1]


def _own(x: Side, y: Side, block: int, batch: int, positions: int, item: int) -> int:
    """Bytes of a thread's workspace: canvases, and both sides of the products for a batch of tiles."""
    wide = sum(side.planes.channels * side.stride**2 for side in (x, y))
    elements = block * (x.canvas.elements + y.canvas.elements) + positions * (batch + 16) * wide
    return item * elements + 256


def correlate(x: Array, w: Array, y: Array, g: Geometry, forward: bool, shares: tuple[int, int, int], threads: int) -> Array:
    """y = x correlated with w, or the input gradient: the transposes of the same maps, from y to x.

    shares: images of a block, threads that share the images out.
    """
    k, transforms, panel = tools(x.dtype.char), transform[x.dtype.char], panel_of(x.itemsize)
    stride, kernel = g.stride[0], g.kernel[0]
    r, side, cell = kernel // stride, kernel // stride + 1, stride**2
    inward, to_x, outward, from_y, kernel_kind, _ = KINDS[r]
    block, by_image, _ = shares
    depth, wide = (g.channels * cell, g.outputs) if forward else (g.outputs, g.channels * cell)
    batch = batch_size(depth, wide, side**2, k.item)
    if forward:
        source, result = _sides(x, y, g, (inward, outward), block, batch)
    else:
        result, source = _sides(y, x, g, (to_x, from_y), block, batch)
    channels, columns = source.planes.channels, result.planes.channels
    lines_apart = result.canvas.elements != result.planes.pixels * columns
    one = channels * panel  # weights of a panel for one tap, or at one position for one pixel of a cell
    whole = -(-columns // panel) * one * cell
    own = whole_lines(max(_own(source, result, block, batch, side**2, k.item), k.item * kernel**2 * panel))
    weights, memory = jobs.workspace(k.item * side**2 * whole, own * threads)
    by_output, by_input = (g.outputs, g.channels * kernel**2), (g.channels, kernel**2)
    vectors, others = (by_output, by_input) if forward else (by_input, by_output)
    job = Weights(
        tools=k,
        transform=transforms,
        kind=kernel_kind,
        weights=w,
        to=weights,
        wide=vectors[0],
        wide_step=vectors[1],
        other=others[0],
        other_step=others[1],
        kernel=kernel,
        stride=stride,
        side=side,
        taps=multiples(kernel**2, panel),
        pixel=one if forward else whole // cell,
        panel=cell * one if forward else one,
        position=whole,
        memory=memory,
        size=own,
    )
    launch(kernels, threads, job)
    job = Correlation(
        tools=k,
        share=Share(len(x), by_image, 1, block, memory, own),
        transform=transforms,
        weights=weights,
        tiles=Tiles(*g.counts, side, batch),
        source=source,
        result=result,
        adding=not forward,
        channels=multiples(depth, 1),
        planes=multiples(columns, result.planes.pixels),
        strips=y.shape[-2] if lines_apart else 1,
    )
    launch(correlate_tiles, threads, job)
    return y


def weight_grad(x: Array, dy: Array, dw: Array, g: Geometry, shares: tuple[int, int, int], threads: int) -> Array:
    """w̄ from x and ȳ: products of their transforms, summed over tiles, brought back by the transpose of the kernels' map."""
    k, transforms = tools(x.dtype.char), transform[x.dtype.char]
    stride, kernel = g.stride[0], g.kernel[0]
    r, side = kernel // stride, kernel // stride + 1
    inward, _, _, outward, _, grads = KINDS[r]
    depth, plane = g.channels * stride**2, g.channels * g.outputs
    block, by_image, _ = shares
    batch = batch_size(depth, g.outputs, side**2, k.item)
    batch = max(batch, min(192, depth * g.outputs // (depth + g.outputs)))  # a batch goes over all sums: no fewer tiles
    block = min(max(block, batch // math.prod(-(-n // 2) for n in g.counts)), -(-len(x) // by_image))
    source, grad_side = _sides(x, dy, g, (inward, outward), block, batch)
    own = whole_lines(_own(source, grad_side, block, batch, side**2, k.item))
    sizes = k.item * by_image * side**2 * stride**2 * plane, k.item * by_image * dw.size
    sums, back, memory = jobs.workspace(*sizes, own * threads)
    job = Weighting(
        tools=k,
        share=Share(len(x), by_image, 1, block, memory, own),
        transform=transforms,
        tiles=Tiles(*g.counts, side, batch),
        source=source,
        grads=grad_side,
        sums=sums,
        channels=multiples(depth, 1),
        results=multiples(depth, g.outputs),
    )
    launch(weight, threads, job)
    job = KernelGrads(transforms, grads, k.item, sums, back, by_image, kernel, stride, side, plane)
    launch(kernel_grads, threads, job)
    return collected(k, back, by_image, dw, 1, g, False, threads)
