r"""The loops of a convolution around the register tile: what thread t does in each pass. `convolution.py` chooses among them.

    correlate:     for each block of images, for each group:          y or x̄, by the phases of a plan (`convolution_plans.py`)
                       planes → canvas                                channels innermost, in a border of zeros
                       for each phase: result = canvas ⋆ weights      `product`
                       result → planes
    over_pixels:   for each image and group: y = W x                  a kernel of one tap: vectors over pixels
                       or x̄ = fold(Wᵀ y)                              few input channels: the columns Wᵀ y folded up
    weight:        for each block of images, for each group:
                       planes of x → canvas, planes of ȳ → panels
                       sums += canvasᵀ panels                         `product`, with the tables of `correlate` exchanged
    collect:       w̄ = Σ of the threads' sums, in w's own order

    product:       for rows of A that fit the second cache together (`chunk`):
                       for each panel of columns of B:                a panel is as wide as the widest tile
                           for `depth` steps of k:                    so much of the panel stays in the first cache
                               for each tile of rows:  C[tile] += A[tile, k] B[k, panel]         `simd.window_tile`

Memory of one thread, each piece on a cache line:    canvas (block × elements)  |  result (block × pixels × columns)

Packed weights: panel by panel of output columns, in a panel row by row k, `panel` elements in each row. Numbers: the tile's
heights are those of `simd.WINDOW`; `chunk` and `depth` come with each job, from `convolution.py`, where they were measured.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from kernels.cpu.build import INT, VOID, helper, kernel
from kernels.cpu.convolution_plans import PHASE, Geometry, multiples
from kernels.cpu.jobs import Address, launch, lines, part, portion, read, record, zero
from kernels.cpu.simd import BITS, WINDOW, call, pack, scatter, window_tile

ALL = 1 << 40  # rows of a chunk or steps of a depth that are not cut
DEPTH = 1024  # steps of k for which a panel's part, 256 KB, stays in the second cache beside the canvas
PHASE_BYTES = PHASE.itemsize

# ---------------------------------------------------------------------------------------------------------------------
# What depends on the element type: C functions, by their addresses
# ---------------------------------------------------------------------------------------------------------------------


@kernel(lambda element: VOID(types.CPointer(element), types.CPointer(element), INT), callback=True)
def add(to, of, n):
    """to[i] += of[i]"""
    for i in range(n):
        to[i] += of[i]


class Fold(NamedTuple):
    """A geometry, for `fold`: the image x̄, the taps and pixels of the columns, and how they meet."""

    channels: int
    height: int
    width: int
    taps_h: int
    taps_w: int
    rows: int
    columns: int
    stride_h: int
    stride_w: int
    top: int  # the padding
    left: int
    dilation_h: int
    dilation_w: int


FOLD = record(Fold)


@kernel(lambda element: VOID(types.CPointer(element), types.CPointer(element), INT), callback=True)
def fold(to, of, where):
    """to[c, s i + d t − p] = Σ of[c, t, i], the sizes in a `Fold`"""
    f = read(where, FOLD)
    height, width, rows, columns = f.height, f.width, f.rows, f.columns
    stride_h, stride_w = f.stride_h, f.stride_w
    for i in range(f.channels * height * width):
        to[i] = 0
    for c in range(f.channels):
        for th in range(f.taps_h):
            for tw in range(f.taps_w):
                plane = ((c * f.taps_h + th) * f.taps_w + tw) * rows * columns
                top, left = f.dilation_h * th - f.top, f.dilation_w * tw - f.left
                first = max(0, (stride_w - 1 - left) // stride_w)
                last = min(columns, (width - 1 - left) // stride_w + 1)
                for i in range(max(0, (stride_h - 1 - top) // stride_h), min(rows, (height - 1 - top) // stride_h + 1)):
                    source, target = plane + i * columns, (c * height + i * stride_h + top) * width + left
                    for j in range(first, last):
                        to[target + stride_w * j] += of[source + j]


class Tools(NamedTuple):
    """The functions of one element type by their addresses, and the size of an element."""

    tile: int
    scatter: int
    pack: int
    add: int
    fold: int
    item: int


@lru_cache
def tools(letter: str) -> Tools:
    return Tools(*(f[letter] for f in (window_tile, scatter, pack, add, fold)), np.dtype(letter).itemsize)


# ---------------------------------------------------------------------------------------------------------------------
# The product
# ---------------------------------------------------------------------------------------------------------------------


@helper
def panel_of(item):
    """Columns of the widest tile, for elements of so many bytes."""
    return BITS // 8 // item * len(WINDOW)


class Extent(NamedTuple):
    """Sizes of a product (rows × inner) (inner × columns), and how many rows and steps of k are taken at once."""

    rows: int
    inner: int
    columns: int
    chunk: int
    depth: int


class Left(NamedTuple):
    """A[i, k] at start + rows[i] + steps[k]."""

    start: int
    rows: int
    steps: int


class Right(NamedTuple):
    """B[k, j] at start + (j // panel) between + k row + j % panel."""

    start: int
    between: int
    row: int


class Target(NamedTuple):
    """C[i, j] at start + rows[i] + j."""

    start: int
    rows: int


@helper
def product(tools, extent, a, b, c, panels, add):
    """C (+)= A B, tile by tile, for the `panels` (first, last) of the columns. Starts are addresses, the rest in elements.

    The rows of a chunk are dealt out to tiles evenly: 14 = 5 + 5 + 4, not 6 + 6 + 2.
    """
    tile, item = tools.tile, tools.item
    lanes = BITS // 8 // item
    panel = lanes * len(WINDOW)
    first, last = panels
    for i0 in range(0, extent.rows, extent.chunk):
        at_once = min(extent.chunk, extent.rows - i0)
        for q in range(first, last):
            n = min(panel, extent.columns - q * panel)
            height = WINDOW[(n + lanes - 1) // lanes - 1]
            count = (at_once + height - 1) // height
            for k in range(0, extent.inner, extent.depth):
                right = b.start + item * (q * b.between + k * b.row)
                depth, adding = min(extent.depth, extent.inner - k), add | np.int64(k > 0)
                for p in range(count):
                    top, bottom = portion(p, count, at_once)
                    i = i0 + top
                    left = (depth, a.start, a.rows + 8 * i, a.steps + 8 * k)
                    to = c.start + item * q * panel, c.rows + 8 * i
                    call(tile, (*left, right, item * b.row, *to, bottom - top, n, adding))


# ---------------------------------------------------------------------------------------------------------------------
# What the jobs have in common
# ---------------------------------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """How threads share the work: some take images, and some for each of these the columns of its results."""

    images: int
    by_image: int
    by_column: int
    block: int  # images that a thread takes at once, at most
    memory: Address  # the first thread's workspace
    size: int  # bytes of each


class Planes(NamedTuple):
    """Images as they come and go, (images, groups, channels, pixels)."""

    start: Address
    channels: int  # of one group
    pixels: int


class Canvases(NamedTuple):
    """Images with channels innermost in a border of zeros."""

    elements: int  # of one image
    pixels: Address  # offset of each pixel


@helper
def images_of(t, share):
    """The images of thread t, first and last, and in how many blocks."""
    start, stop = portion(t // share.by_column, share.by_image, share.images)
    return start, stop, (stop - start + share.block - 1) // share.block


@helper
def block_of(b, blocks, start, stop):
    """The images of block b: first and last."""
    first, last = portion(b, blocks, stop - start)
    return start + first, start + last


@helper
def panels_of(t, share, columns, panel):
    """The panels of columns of thread t: first and last."""
    return portion(t % share.by_column, share.by_column, (columns + panel - 1) // panel)


@helper
def to_canvas(tools, planes, n, canvas, pixels):
    """The n-th image, or group of one, into a canvas."""
    source = planes.start + tools.item * n * planes.channels * planes.pixels
    call(tools.scatter, (source, tools.item * planes.pixels, canvas, pixels, planes.channels, planes.pixels))


# ---------------------------------------------------------------------------------------------------------------------
# The loops
# ---------------------------------------------------------------------------------------------------------------------


class Packing(NamedTuple):
    """Weights into panels, for each group: `wide` channels side by side in the panels, the `other` channels and taps below.

    In w, neighbours of either kind are `wide_step` and `other_step` apart, and taps lie side by side.
    """

    tools: Tools
    weights: Address
    packed: Address
    groups: int
    wide: int
    wide_step: int
    other: int
    other_step: int
    taps: int
    order: Address  # offset of each tap's first row in a panel


PACKING = record(Packing)


@part
def pack_weights(t, threads, where):
    """packed[g, q, k, i] = w[…]: panel q of the wide channels, rows k = (tap, other channel) in the order of the plan"""
    job = read(where, PACKING)
    item, taps, panel = job.tools.item, job.taps, panel_of(job.tools.item)
    panels = (job.wide + panel - 1) // panel
    begin, end = portion(t, threads, job.other)
    for q in range(job.groups * panels):
        g, first = q // panels, q % panels * panel
        for m in range(begin, end):
            source = job.weights + item * (g * job.wide * job.other * taps + first * job.wide_step + m * job.other_step)
            to = job.packed + item * (q * taps * job.other + m) * panel
            call(job.tools.scatter, (source, item * job.wide_step, to, job.order, min(panel, job.wide - first), taps))


class Correlation(NamedTuple):
    """y or x̄ by the phases of a plan: `source` to `result`."""

    tools: Tools
    share: Share
    groups: int
    source: Planes
    result: Planes
    canvas: Canvases
    packed: Address
    taps: int
    phases: Address
    phase_count: int
    complete: int  # whether the phases reach each pixel of the result
    planes: Address  # offset of each channel's plane in an image of the result


CORRELATION = record(Correlation)


@part
def correlate(t, threads, where):
    """Blocks of images: into the canvas, through each phase's product, back to planes."""
    job = read(where, CORRELATION)
    tools, share, result = job.tools, job.share, job.result
    if t >= share.by_image * share.by_column:
        return
    item, columns, pixels, panel = tools.item, result.channels, result.pixels, panel_of(tools.item)
    panels = panels_of(t, share, columns, panel)
    first_column, last_column = panels[0] * panel, min(panels[1] * panel, columns)
    start, stop, blocks = images_of(t, share)
    canvas = share.memory + t * share.size
    results = canvas + lines(item * share.block * job.canvas.elements)
    between = job.taps * job.source.channels * panel
    zero(canvas, item * share.block * job.canvas.elements)
    if not job.complete:
        zero(results, item * share.block * pixels * columns)
    for u in range(blocks * job.groups):
        g, b = u // blocks, u % blocks
        n0, n1 = block_of(b, blocks, start, stop)
        for n in range(n0, n1):
            to = canvas + item * (n - n0) * job.canvas.elements
            to_canvas(tools, job.source, n * job.groups + g, to, job.canvas.pixels)
        for f in range(job.phase_count):
            phase = read(job.phases + f * PHASE_BYTES, PHASE)
            weights = job.packed + item * (g * ((columns + panel - 1) // panel) * between + phase.first * panel)
            extent = Extent(phase.pixels * (n1 - n0), phase.depth, columns, ALL, DEPTH)
            a, c = Left(canvas, phase.rows, phase.steps), Target(results, phase.results)
            product(tools, extent, a, Right(weights, between, panel), c, panels, 0)
        for n in range(n0, n1):
            source = results + item * ((n - n0) * pixels * columns + first_column)
            to = result.start + item * ((n * job.groups + g) * columns + first_column) * pixels
            call(tools.scatter, (source, item * columns, to, job.planes, pixels, last_column - first_column))


class PixelProduct(NamedTuple):
    """y[m, i] = Σ_k w[rows[m] + steps[k]] x[k, i] for each image and group, folded up into x̄ where asked."""

    tools: Tools
    units: int  # images × groups
    groups: int
    weights: Address
    weight_step: int  # elements of w from group to group
    rows: Address
    steps: Address
    inner: int
    results: int
    source: Address
    pixels: int
    to: Address
    planes: Address  # offset of each row of y
    folded: int
    fold: Fold
    memory: Address  # the first thread's workspace
    size: int  # bytes of each


PIXEL_PRODUCT = record(PixelProduct)
FOLD_OFFSET = PIXEL_PRODUCT.fields["fold"][1]


@part
def over_pixels(t, threads, where):
    """Images and groups are shared out; where these are fewer than threads and nothing is folded, panels of pixels too.

    Whole vectors of x are read from x itself, where its rows and those of y lie at a distance that does not map them all to the
    same few lines of the cache. Else a panel of results at a time would open too many of them: a row of tiles is taken at a
    time, from x packed into panels.
    """
    job = read(where, PIXEL_PRODUCT)
    tools, pixels, inner, results = job.tools, job.pixels, job.inner, job.results
    item = tools.item
    lanes, panel = BITS // 8 // item, panel_of(item)
    panels = (pixels + panel - 1) // panel
    shares = 1 if job.folded else max(1, threads // job.units)
    image = job.fold.channels * job.fold.height * job.fold.width
    between = (inner + 1) * panel  # one row more: panels 4 KB apart would share few lines of the cache
    far = item * pixels % 4096 == 0
    whole, chunk, depth = (0, WINDOW[-1], DEPTH) if far else (panels if pixels % lanes == 0 else pixels // panel, ALL, 128)
    begin, end = portion(t, threads, job.units * shares)
    for u in range(begin, end):
        z, share = u // shares, u % shares
        packed = job.memory + t * job.size
        to = packed + lines(item * panels * between) if job.folded else job.to + item * z * image
        first, last = portion(share, shares, panels)
        torn = min(max(first, whole), last)
        source = job.source + item * z * inner * pixels
        extent = Extent(results, inner, pixels, chunk, depth)
        a = Left(job.weights + item * (z % job.groups) * job.weight_step, job.rows, job.steps)
        c = Target(to, job.planes)
        product(tools, extent, a, Right(source, panel, pixels), c, (first, torn), 0)
        for b in range(torn, last):
            n = min(panel, pixels - b * panel)
            wide = (n + lanes - 1) // lanes * lanes
            into = packed + item * b * between
            call(tools.pack, (inner, n, source + item * b * panel, item * pixels, item, into, item * panel, wide))
        product(tools, extent, a, Right(packed, between, panel), c, (torn, last), 0)
        if job.folded:
            call(tools.fold, (job.to + item * z * image, to, where + FOLD_OFFSET))


class Weighting(NamedTuple):
    """sums[thread, g, k, o] = Σ over the thread's images of x[pixel + k] ȳ[pixel, o], k = (tap, channel)."""

    tools: Tools
    share: Share
    groups: int
    source: Planes
    grads: Planes
    canvas: Canvases
    straight: int  # one tap and no border: x is read from its planes
    sums: Address
    rows: Address  # offset of each k in the canvas
    row_count: int
    steps: Address  # offset of each pixel in the canvas
    panels: Address  # offset of each pixel in a panel of ȳ
    results: Address  # offset of each k in the sums
    chunk: int
    depth: int


WEIGHTING = record(Weighting)


@part
def weight(t, threads, where):
    """Blocks of images: x into the canvas, ȳ into panels, their product added to the thread's sums."""
    job = read(where, WEIGHTING)
    tools, share, grads = job.tools, job.share, job.grads
    if t >= share.by_image * share.by_column:
        return
    item, columns, pixels, panel = tools.item, grads.channels, grads.pixels, panel_of(tools.item)
    panels = panels_of(t, share, columns, panel)
    start, stop, blocks = images_of(t, share)
    canvas = share.memory + t * share.size
    right = canvas + lines(item * share.block * job.canvas.elements)
    between, left = share.block * pixels * panel, canvas
    zero(canvas, item * share.block * job.canvas.elements)
    for u in range(blocks * job.groups):
        g, b = u // blocks, u % blocks
        n0, n1 = block_of(b, blocks, start, stop)
        for n in range(n0, n1):
            unit = n * job.groups + g
            if job.straight:
                left = job.source.start + item * unit * job.source.channels * job.source.pixels
            else:
                to_canvas(tools, job.source, unit, canvas + item * (n - n0) * job.canvas.elements, job.canvas.pixels)
            for q in range(panels[0], panels[1]):
                source = grads.start + item * (unit * columns + q * panel) * pixels
                to = right + item * (q * share.block + n - n0) * pixels * panel
                call(tools.scatter, (source, item * pixels, to, job.panels, min(panel, columns - q * panel), pixels))
        extent = Extent(job.row_count, (n1 - n0) * pixels, columns, job.chunk, job.depth)
        sums = job.sums + item * (t // share.by_column * job.groups + g) * job.row_count * columns
        a, c = Left(left, job.rows, job.steps), Target(sums, job.results)
        product(tools, extent, a, Right(right, between, panel), c, panels, b)


class Collection(NamedTuple):
    """w̄[g, o, c, tap] = Σ_i sums[i, g, tap, c, o]."""

    tools: Tools
    sums: Address
    count: int  # of the threads' sums
    to: Address
    groups: int
    channels: int
    columns: int
    taps: int
    channel_step: int  # elements of w̄ from channel to channel
    outputs: Address  # offset of each output in w̄
    turned: int  # whether the taps of the sums are in reverse order


COLLECTION = record(Collection)


@part
def collect(t, threads, where):
    """Threads share the groups and channels; the first of the sums takes up the others."""
    job = read(where, COLLECTION)
    tools, channels, columns, taps = job.tools, job.channels, job.columns, job.taps
    item, between = tools.item, tools.item * channels * columns  # bytes from tap to tap of the sums
    begin, end = portion(t, threads, job.groups * channels)
    for u in range(begin, end):
        g, c = u // channels, u % channels
        source = job.sums + item * (g * taps * channels + c) * columns
        for i in range(1, job.count):
            for k in range(taps):
                row = source + k * between
                call(tools.add, (row, row + i * job.groups * taps * between, columns))
        to = job.to + item * (g * columns * channels * taps + c * job.channel_step)
        first, step = (source + (taps - 1) * between, -between) if job.turned else (source, between)
        call(tools.scatter, (first, step, to, job.outputs, taps, columns))


def collected(tools: Tools, sums: Address, count: int, to: Any, groups: int, g: Geometry, turned: bool, threads: int) -> Any:
    """w̄[g, o, c, t] from the threads' sums [g, t, c, o]; turned: w̄[g, c, o, K − 1 − t], K taps."""
    taps = g.kernel[0] * g.kernel[1]
    channel_step, output_step = (g.outputs * taps, taps) if turned else (taps, g.channels * taps)
    outputs = multiples(g.outputs, output_step)
    job = Collection(tools, sums, count, to, groups, g.channels, g.outputs, taps, channel_step, outputs, turned)
    launch(collect, threads, job)
    return to
