r"""Convolution, its transpose and its weight gradient as matrix products with offset tables, block of images by block.

    y[n, o, i] = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t]                       `conv`
    x[n, c, j] = Σ_{o, (i,t): s i + d t − p = j} y[n, o, i] w[o, c, t]           `conv_input_grad`
    w[o, c, t] = Σ_{n,i} x[n, c, s i + d t − p] y[n, o, i]                       `conv_weight_grad`

With pixels as rows and channels innermost, each is a product C[row, j] = Σ_k A[row, k] B[k, j] in which the element
A[row, k] lies at `rows[row] + taps[k]` in an image with a border of zeros, since s i + d t − p is a sum of a part of the
pixel and a part of the tap:

    y:  rows = pixels i of y,  k = (t, c),  A = x,  B[k, o] = w[o, c, t]
    x:  the pixels j with one remainder of j + p by s meet the same taps, so there is one such product for each remainder:
        rows = these pixels,  k = (t, o),  A = y,  B[k, c] = w[o, c, t]
    w:  rows = (t, c),  k = pixels i,  A = x,  B[k, o] = y[n, o, i]: the tables of `y` with their roles exchanged

So no matrix of windows ("im2col") is built. Per thread, a block of a few images is brought into the channels-last
layout, multiplied, and brought back, all within the L2 cache. Two cases need none of this, with vectors over pixels: a
kernel of one tap (a plain product), and an input gradient of so few channels that the columns Wᵀ y are quicker folded up.
3×3 kernels with stride 1 go to `winograd.py`.

Arrays come and go as (N, C, …), contiguous; others are copied first. What is neither float32 nor float64, has more than
two spatial dimensions or no elements goes to `reference.py`. Each thread has its own images, or its own columns when
there are fewer images than threads, and its own sums: the same number of threads gives the same bits.
Sources: the tables: Dukhan 2019, arXiv:1907.02129; the tile: Goto & van de Geijn 2008.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels import reference
from kernels.cpu import convolution_tile as machine
from kernels.cpu import winograd
from kernels.cpu.convolution_tile import Tiles, call, entry, fields, launch, part, product, zero
from kernels.cpu.threads import threads as count_threads

Array = np.ndarray
BLOCK_ROWS = 192  # pixels that a block of images has at least, so that a panel of weights is used often while it is in cache
WINOGRAD_CHANNELS = 24  # measured: 16 channels draw, 24 gain a quarter, 32 on 7 × 7 lose it again, 64 gain up to 1.8 times
CHUNK, DEPTH = 192, 128  # rows and steps of a weight gradient's products
FOLDED = 64  # with no more columns than this, an input gradient is folded from W^T y


# ---------------------------------------------------------------------------------------------------------------------
# Geometry: offset tables, which depend on shapes alone and never change
# ---------------------------------------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Sizes of one group of channels: input (C, H, W), output (O, P, Q), and what lies between."""

    channels: int
    size: tuple[int, int]
    outputs: int
    counts: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def table(*parts: Any) -> Array:
    """The sums of all combinations of the parts, the last part varying fastest; read-only."""
    total = np.zeros(1, np.int64)
    for p in parts:
        total = np.add.outer(total, np.asarray(p, np.int64)).reshape(-1)
    total.flags.writeable = False
    return total


class Canvas:
    """An image, channels innermost, in a border of zeros: (h, w, c) lies at (h + top) row + (w + left) channels + c."""

    def __init__(self, channels: int, size: tuple[int, int], before: tuple[int, int], after: tuple[int, int]) -> None:
        self.channels, self.before = channels, before
        height, width = (m + b + a for m, b, a in zip(size, before, after, strict=True))
        self.row = width * channels
        self.row += 16 * (self.row % 512 == 0)  # rows 2 KB apart would share the same few lines of the cache
        self.elements = height * self.row
        self.pixels = self.at(np.arange(size[0]), np.arange(size[1]))

    def at(self, h: Any, w: Any) -> Array:
        """places of the pixels h × w"""
        return table((np.asarray(h) + self.before[0]) * self.row, (np.asarray(w) + self.before[1]) * self.channels)

    def steps(self, h: Any, w: Any) -> Array:
        """offsets of (displacement h × w, channel)"""
        return table(np.asarray(h) * self.row, np.asarray(w) * self.channels, np.arange(self.channels))


class Phase(NamedTuple):
    """One of the products that make up a result: which pixels, which taps, which rows of the packed weights."""

    rows: Array
    taps: Array
    results: Array
    start: int


class Plan(NamedTuple):
    """How to correlate a block of images with packed weights."""

    canvas: Canvas
    phases: list[Phase]
    jobs: Array  # the phases as addresses, for the compiled loop
    order: Array  # position of tap t among the rows of the packed weights
    complete: bool  # whether each pixel of the result is reached by a phase


def _plan(canvas: Canvas, images: int, phases: list[Any], results: int, columns: int, order: Array, depth: int) -> Plan:
    block = np.arange(images)
    made, start = [], 0
    for rows, taps, places in phases:
        if len(rows) and len(taps):
            to = table(block * results * columns, places * columns)
            made.append(Phase(table(block * canvas.elements, rows), taps, to, start))
        start += len(taps)
    at = [[a.ctypes.data for a in f[:3]] for f in made]
    jobs = [(len(f.rows) // images, a[0], len(f.taps), a[1], a[2], f.start) for f, a in zip(made, at, strict=True)]
    complete = sum(len(f.rows) for f in made) == images * results
    return Plan(canvas, made, np.array(jobs, np.int64).reshape(-1, 6), table(order * depth), complete)


@lru_cache(256)
def forward_plan(g: Geometry, images: int) -> Plan:
    reach = tuple((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(g.counts, g.stride, g.dilation, g.kernel, strict=True))
    after = tuple(max(0, r - p - m) for r, p, m in zip(reach, g.padding, g.size, strict=True))
    canvas = Canvas(g.channels, g.size, g.padding, after)
    rows = canvas.at(*(np.arange(n) * s - p for n, s, p in zip(g.counts, g.stride, g.padding, strict=True)))
    taps = canvas.steps(*(np.arange(k) * d for k, d in zip(g.kernel, g.dilation, strict=True)))
    phases, order = [(rows, taps, np.arange(len(rows)))], np.arange(math.prod(g.kernel))
    return _plan(canvas, images, phases, len(rows), g.outputs, order, g.channels)


@lru_cache(256)
def backward_plan(g: Geometry, images: int) -> Plan:
    """In each dimension, the pixels j with j + p ≡ a (mod s) meet the taps with d t ≡ a, at i = (j + p − d t) / s."""
    classes = []  # for each dimension, for each remainder: pixels, taps, i for the first tap, steps of i to the others
    for m, s, p, d, k in zip(g.size, g.stride, g.padding, g.dilation, g.kernel, strict=True):
        kinds = []
        for a in range(min(s, m)):
            pixels = np.arange(a, m, s)
            taps = np.array([t for t in range(k) if (a + p - d * t) % s == 0], np.int64)
            first = (pixels + p - d * taps[0]) // s if len(taps) else np.zeros_like(pixels)
            kinds.append((pixels, taps, first, -d * (taps - taps[:1]) // s))
        classes.append(kinds)
    before, after = [], []
    for kinds, n in zip(classes, g.counts, strict=True):
        reached = [(first.min() + steps.min(), first.max()) for _, taps, first, steps in kinds if len(taps)]
        before.append(max([0] + [-int(low) for low, _ in reached]))
        after.append(max([0] + [int(high) - n + 1 for _, high in reached]))
    canvas = Canvas(g.outputs, g.counts, tuple(before), tuple(after))
    phases, order, position = [], np.full(g.kernel, -1), 0
    for pixels_h, taps_h, first_h, steps_h in classes[0]:
        for pixels_w, taps_w, first_w, steps_w in classes[1]:
            met = len(taps_h), len(taps_w)
            order[np.ix_(taps_h, taps_w)] = position + np.arange(math.prod(met)).reshape(met)
            position += math.prod(met)
            phases.append((canvas.at(first_h, first_w), canvas.steps(steps_h, steps_w), table(pixels_h * g.size[1], pixels_w)))
    order[order < 0] = position + np.arange((order < 0).sum())  # taps that reach no pixel
    return _plan(canvas, images, phases, math.prod(g.size), g.channels, order.reshape(-1), g.outputs)


@lru_cache(1024)
def steps(count: int, step: int) -> Array:
    """0, step, 2 step, …"""
    return table(np.arange(count) * step)


# ---------------------------------------------------------------------------------------------------------------------
# Scratch memory
# ---------------------------------------------------------------------------------------------------------------------

_free: list[Array] = []
KEPT = 1 << 26  # bytes of a piece of scratch memory that is kept for the next call


def _allocate(size: int) -> Array:
    return np.empty(size, np.uint8)


def _result(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.empty(shape, dtype)


@contextmanager
def scratch(*sizes: int) -> Iterator[list[int]]:
    """Addresses of pieces of so many bytes, each on a cache line. A call that runs at the same time gets other memory."""
    places = np.cumsum([0] + [-(-size // 64) * 64 for size in sizes]).tolist()
    try:
        memory = _free.pop()
    except IndexError:
        memory = None
    if memory is None or memory.size < places[-1] + 64:
        memory = _allocate(places[-1] + 64)
    start = -(-memory.ctypes.data // 64) * 64
    try:
        yield [start + p for p in places[:-1]]
    finally:
        if memory.size <= KEPT:
            _free.append(memory)


# ---------------------------------------------------------------------------------------------------------------------
# The compiled loops: thread t's share of the work. All they are given is in `job`, as integers
# ---------------------------------------------------------------------------------------------------------------------


@part(3)
def _pack(t, threads, job):
    """packed[g, q, k, i] = w[…]: panel q of the vectors' channels, rows k = (tap, other channel m) in the order of the plan"""
    transpose, item, panel, w, packed, groups, wide, wide_step, other, other_step, taps, order = fields(job, 12)
    panels = (wide + panel - 1) // panel
    for q in range(groups * panels):
        g, first = q // panels, q % panels * panel
        for m in range(t * other // threads, (t + 1) * other // threads):
            src = w + item * (g * wide * other * taps + first * wide_step + m * other_step)
            dst = packed + item * (q * taps * other + m) * panel
            call(transpose, (src, wide_step, dst, order, min(panel, wide - first), taps))


@part(3)
def _correlate(t, threads, job):
    """Blocks of images: into the canvas, through each phase's product, back to planes."""
    (
        tile, transpose, item, lanes, panel, heights, x, packed, y, images, groups, channels, x_pixels, columns, y_pixels,
        taps, block, elements, pixels, phases, phase_count, complete, planes, own, own_bytes, image_threads, column_threads,
    ) = fields(job, 27)  # fmt: skip
    if t >= image_threads * column_threads:
        return
    panels = (columns + panel - 1) // panel
    first, last = t % column_threads * panels // column_threads, (t % column_threads + 1) * panels // column_threads
    begin, end = first * panel, min(last * panel, columns)
    ti = t // column_threads
    start, stop = ti * images // image_threads, (ti + 1) * images // image_threads
    blocks = (stop - start + block - 1) // block
    canvas = own + t * own_bytes
    result = canvas + (item * block * elements + 63) // 64 * 64
    zero(canvas, item * block * elements)
    if not complete:
        zero(result, item * block * y_pixels * columns)
    for u in range(blocks * groups):
        g, b = u // blocks, u % blocks
        n0, n1 = start + b * (stop - start) // blocks, start + (b + 1) * (stop - start) // blocks
        for n in range(n0, n1):
            src = x + item * (n * groups + g) * channels * x_pixels
            call(transpose, (src, x_pixels, canvas + item * (n - n0) * elements, pixels, channels, x_pixels))
        for f in range(phase_count):
            per_image, rows, depth, steps, results, row = fields(phases + 48 * f, 6)
            b_panel = taps * channels * panel
            right = packed + item * (g * panels * b_panel + row * panel)
            product(
                tile, item, lanes, panel, heights, 1 << 40, 1024, canvas, rows, per_image * (n1 - n0), steps, depth,
                right, b_panel, panel, result, results, columns, first, last, 0,
            )  # fmt: skip
        for n in range(n0, n1):
            src = result + item * ((n - n0) * y_pixels * columns + begin)
            dst = y + item * ((n * groups + g) * columns + begin) * y_pixels
            call(transpose, (src, columns, dst, planes, y_pixels, end - begin))


@part(3)
def _over_pixels(t, threads, job):
    """y[m, i] = Σ_k w[rows[m] + ks[k]] x[k, i] for each image and group, vectors over pixels i; folded up into y where asked"""
    (
        tile, fold, item, lanes, panel, heights, to_panels, x, w, y, total, groups, inner, pixels, results, w_step, rows, ks,
        places, folded, own, own_bytes, channels, kh, kw, height, width, p, q, sh, sw, ph, pw, dh, dw,
    ) = fields(job, 35)  # fmt: skip
    panels = (pixels + panel - 1) // panel
    shares = 1 if folded else max(1, threads // total)  # with fewer images than threads, panels are shared out
    size = height * width * channels
    b_panel = (inner + 1) * panel  # one row more: panels 4 KB apart would share few lines of the cache
    few = entry(heights, panel // lanes)  # rows at a time: a panel of results at a time would open too many lines
    for u in range(t * total * shares // threads, (t + 1) * total * shares // threads):
        z, share = u // shares, u % shares
        right = own + t * own_bytes
        out = right + (item * panels * b_panel + 63) // 64 * 64 if folded else y + item * z * size
        call(to_panels, (right, b_panel, x + item * z * inner * pixels, inner, pixels))
        product(
            tile, item, lanes, panel, heights, few, 1024, w + item * (z % groups) * w_step, rows, results, ks, inner,
            right, b_panel, panel, out, places, pixels, share * panels // shares, (share + 1) * panels // shares, 0,
        )  # fmt: skip
        if folded:
            call(fold, (y + item * z * size, out, channels, kh, kw, height, width, p, q, sh, sw, ph, pw, dh, dw))


@part(3)
def _weight(t, threads, job):
    """sums[t, g, k, o] = Σ over the thread's images of x[pixel + k] y[pixel, o], k = (tap, channel)

    `straight`: one tap and no border, so that x is read where it is.
    """
    (
        tile, transpose, item, lanes, panel, heights, x, dy, sums, images, groups, channels, x_pixels, columns, y_pixels,
        rows, row_count, taps, block, elements, pixels, wide, places, chunk, depth, own, own_bytes, image_threads,
        column_threads, straight,
    ) = fields(job, 30)  # fmt: skip
    if t >= image_threads * column_threads:
        return
    panels = (columns + panel - 1) // panel
    first, last = t % column_threads * panels // column_threads, (t % column_threads + 1) * panels // column_threads
    ti = t // column_threads
    start, stop = ti * images // image_threads, (ti + 1) * images // image_threads
    blocks = (stop - start + block - 1) // block
    canvas = own + t * own_bytes
    right = canvas + (item * block * elements + 63) // 64 * 64
    left = canvas
    zero(canvas, item * block * elements)
    for u in range(blocks * groups):
        g, b = u // blocks, u % blocks
        n0, n1 = start + b * (stop - start) // blocks, start + (b + 1) * (stop - start) // blocks
        for n in range(n0, n1):
            src = x + item * (n * groups + g) * channels * x_pixels
            left = src if straight else canvas
            if not straight:
                call(transpose, (src, x_pixels, canvas + item * (n - n0) * elements, pixels, channels, x_pixels))
            for q in range(first, last):
                src = dy + item * ((n * groups + g) * columns + q * panel) * y_pixels
                dst = right + item * (q * block + n - n0) * y_pixels * panel
                call(transpose, (src, y_pixels, dst, wide, min(panel, columns - q * panel), y_pixels))
        product(
            tile, item, lanes, panel, heights, chunk, depth, left, taps, row_count, rows, (n1 - n0) * y_pixels,
            right, block * y_pixels * panel, panel, sums + item * (ti * groups + g) * row_count * columns, places,
            columns, first, last, b,
        )  # fmt: skip


@part(3)
def _collect(t, threads, job):
    """dw[g, o, c, tap] = Σ_i sums[i, g, tap, c, o]"""
    add, transpose, item, sums, count, dw, groups, channels, columns, taps, places = fields(job, 11)
    for u in range(t * groups * channels // threads, (t + 1) * groups * channels // threads):
        g, c = u // channels, u % channels
        src = sums + item * (g * taps * channels + c) * columns
        for i in range(1, count):
            for k in range(taps):
                row = src + item * k * channels * columns
                call(add, (row, row + item * i * groups * taps * channels * columns, columns))
        dst = dw + item * (g * columns * channels + c) * taps
        call(transpose, (src, channels * columns, dst, places, taps, columns))


# ---------------------------------------------------------------------------------------------------------------------
# The doors
# ---------------------------------------------------------------------------------------------------------------------


def _run(function: Any, threads: int, *job: Any) -> None:
    launch(function, np.array([x.ctypes.data if isinstance(x, np.ndarray) else x for x in job], np.int64), threads)


def _taken(*arrays: Array) -> bool:
    """Whether these are arrays for the compiled loops, which know two dtypes and up to two spatial dimensions."""
    a = arrays[0]
    known = a.dtype in (np.float32, np.float64) and all(b.dtype == a.dtype for b in arrays) and 3 <= a.ndim <= 4
    return known and all(b.size for b in arrays) and not numba.config.DISABLE_JIT


def _two(sizes: tuple[int, ...], missing: int = 1) -> tuple[int, int]:
    """A line is an image of height 1."""
    return tuple(int(m) for m in (sizes if len(sizes) == 2 else (missing, *sizes)))


def _geometry(channels: int, size: Any, outputs: int, counts: Any, kernel: Any, how: dict[str, Any]) -> Geometry:
    stride, padding, dilation = _two(how["stride"]), _two(how["padding"], 0), _two(how["dilation"])
    return Geometry(channels, _two(size), outputs, _two(counts), _two(kernel), stride, padding, dilation)


def _plain(g: Geometry) -> bool:
    """Whether the convolution is a product over channels alone."""
    return g.kernel == (1, 1) and g.stride == (1, 1) and g.padding == (0, 0) and g.size == g.counts


def _winograd_pays(g: Geometry, groups: int) -> bool:
    """Whether 2.25 times fewer products outweigh the transforms: with many channels, and tiles that lie within y."""
    fits = g.kernel == (3, 3) and g.stride == g.dilation == (1, 1) and max(g.padding) <= 2 and groups == 1
    within = math.prod(n / (n + n % 2) for n in g.counts)
    return fits and min(g.channels, g.outputs) * within**2 >= WINOGRAD_CHANNELS


def _tiles(dtype: Any) -> Tiles:
    return machine.tiles(8 * dtype.itemsize, machine.host_width())


def _head(k: Tiles, second: int) -> tuple[Any, ...]:
    return k.tile, second, k.item, k.lanes, k.panel, k.heights


def _shares(images: int, threads: int, pixels: int) -> tuple[int, int, int]:
    """Images of a block, threads that share the images out, and threads that share the columns of each of these."""
    by_image = min(images, threads)
    return min(-(-BLOCK_ROWS // pixels), -(-images // by_image)), by_image, threads // by_image


def _correlation(x: Array, w: Array, y: Array, groups: int, plan: Any, g: Geometry, forward: bool, threads: int) -> Array:
    """y = x correlated with w by a plan: forward from C to O channels, backward from O to C."""
    k, taps = _tiles(x.dtype), math.prod(g.kernel)
    channels, columns = (g.channels, g.outputs) if forward else (g.outputs, g.channels)
    x_pixels, y_pixels = math.prod(x.shape[2:]), math.prod(y.shape[2:])
    block, by_image, by_column = _shares(len(x), threads, math.prod(g.counts))
    p = plan(g, block)
    own = k.item * (block * p.canvas.elements + block * y_pixels * columns) + 128
    own = -(-own // 64) * 64
    with scratch(k.item * groups * -(-columns // k.panel) * k.panel * taps * channels, own * threads) as (packed, mine):
        wide = (g.channels * taps, taps) if forward else (taps, g.channels * taps)
        order = _packed_order(plan, g, block, k.panel)
        _run(_pack, threads, k.transpose, k.item, k.panel, w, packed, groups, columns, wide[0], channels, wide[1], taps, order)
        _run(
            _correlate, threads, *_head(k, k.transpose), x, packed, y, len(x), groups, channels, x_pixels, columns, y_pixels,
            taps, block, p.canvas.elements, p.canvas.pixels, p.jobs, len(p.jobs), p.complete, steps(columns, y_pixels),
            mine, own, by_image, by_column,
        )  # fmt: skip
    return y


@lru_cache(256)
def _packed_order(plan: Any, g: Geometry, block: int, panel: int) -> Array:
    return table(plan(g, block).order * panel)


def _products(x: Array, w: Array, y: Array, groups: int, g: Geometry, forward: bool, threads: int) -> Array:
    """y[m, i] = Σ_k w_mk x[k, i], or folded from that."""
    k, taps = _tiles(x.dtype), math.prod(g.kernel)
    columns, pixels = g.channels * taps, math.prod(x.shape[2:])
    if forward:
        inner, results, rows, ks = g.channels, g.outputs, steps(g.outputs, g.channels), steps(g.channels, 1)
    else:
        inner, results, rows, ks = g.outputs, columns, steps(columns, 1), steps(g.outputs, columns)
    folded = not _plain(g)
    own = -(-k.item * -(-pixels // k.panel) * k.panel * (inner + 1) // 64) * 64
    own += -(-k.item * results * pixels // 64) * 64 * folded
    with scratch(own * threads) as (mine,):
        _run(
            _over_pixels, threads, *_head(k, k.fold), k.panels, x, w, y, len(x) * groups, groups, inner, pixels, results,
            g.outputs * columns, rows, ks, steps(results, pixels), folded, mine, own, y.shape[1] // groups,
            *g.kernel, *_two(y.shape[2:]), *_two(x.shape[2:]), *g.stride, *g.padding, *g.dilation,
        )  # fmt: skip
    return y


@lru_cache(256)
def _winograd_tables(channels: int, size: Any, counts: Any, padding: Any, images: int) -> tuple[Canvas, Array]:
    after = tuple(n + n % 2 + 2 - m - p for n, m, p in zip(counts, size, padding, strict=True))
    canvas = Canvas(channels, size, padding, after)
    return canvas, winograd.tile_corners(canvas, counts, padding, images)


@lru_cache
def _taps_order(step: int, reverse: bool) -> Array:
    return table((np.arange(9)[::-1] if reverse else np.arange(9)) * step)


def _winograd(x: Array, w: Array, y: Array, g: Geometry, forward: bool, threads: int) -> Array:
    """y = x correlated with w, or the input gradient: the kernel turned around, padded by 2 − p."""
    k, f = _tiles(x.dtype), _transforms(x.dtype)
    channels, columns = (g.channels, g.outputs) if forward else (g.outputs, g.channels)
    size, counts, padding = g.size, g.counts, g.padding
    if not forward:
        size, counts, padding = counts, size, tuple(2 - p for p in padding)
    x_pixels, y_pixels, panels = math.prod(size), math.prod(counts), -(-columns // k.panel)
    block, by_image, _ = _shares(len(x), threads, y_pixels)
    canvas, corners = _winograd_tables(channels, size, counts, padding, block)
    batch, u = winograd.batch_size(channels, columns, k.item), k.item * panels * k.panel * channels
    own = k.item * (block * (canvas.elements + y_pixels * columns) + 16 * (batch + 16) * (channels + columns)) + 256
    own = -(-own // 64) * 64
    with scratch(9 * u, 16 * u, own * threads) as (packed, transformed, mine):
        wide = (g.channels * 9, 9) if forward else (9, g.channels * 9)
        _run(
            _pack, threads, k.transpose, k.item, k.panel, w, packed, 1, columns, wide[0], channels, wide[1], 9,
            _taps_order(channels * k.panel, not forward),
        )  # fmt: skip
        one = channels * k.panel
        _run(
            winograd.kernels, threads, f.kernel, k.item, packed, one, transformed, panels * one, panels, 9 * one, one, 3, 4, one
        )  # fmt: skip
        _run(
            winograd.correlate, threads, *_head(k, k.transpose), f.input, f.output, x, transformed, y, len(x), channels,
            x_pixels, columns, *counts, block, canvas.elements, canvas.row, canvas.pixels, corners, batch,
            steps(batch, channels), steps(batch, columns), steps(channels, 1), steps(columns, y_pixels), mine, own, by_image,
        )  # fmt: skip
    return y


def _winograd_weight(x: Array, dy: Array, dw: Array, g: Geometry, threads: int) -> Array:
    k, f = _tiles(x.dtype), _transforms(x.dtype)
    x_pixels, y_pixels = math.prod(g.size), math.prod(g.counts)
    block, by_image, _ = _shares(len(x), threads, y_pixels)
    canvas, corners = _winograd_tables(g.channels, g.size, g.counts, g.padding, block)
    y_canvas, y_corners = _winograd_grad_tables(g.outputs, g.counts, block)
    batch, plane = winograd.batch_size(g.channels, g.outputs, k.item), g.channels * g.outputs
    own = k.item * (block * (canvas.elements + y_canvas.elements) + 16 * (batch + 16) * (g.channels + g.outputs)) + 256
    own = -(-own // 64) * 64
    with scratch(k.item * by_image * 16 * plane, k.item * by_image * 9 * plane, own * threads) as (sums, back, mine):
        _run(
            winograd.weight, threads, *_head(k, k.transpose), f.input, f.output_grad, x, dy, sums, len(x), g.channels,
            x_pixels, g.outputs, y_pixels, len(corners) // block, block, canvas.elements, canvas.row, canvas.pixels, corners,
            y_canvas.elements, y_canvas.row, y_canvas.pixels, y_corners, batch, steps(batch, g.channels),
            steps(g.channels, 1), steps(g.channels, g.outputs), mine, own, by_image,
        )  # fmt: skip
        _run(
            winograd.kernels, threads, f.kernel_grad, k.item, sums, plane, back, plane, by_image, 16 * plane, 9 * plane, 4, 3,
            plane,
        )  # fmt: skip
        places = steps(g.outputs, 9 * g.channels)
        _run(_collect, threads, k.add, k.transpose, k.item, back, by_image, dw, 1, g.channels, g.outputs, 9, places)
    return dw


@lru_cache(256)
def _winograd_grad_tables(outputs: int, counts: Any, images: int) -> tuple[Canvas, Array]:
    canvas = Canvas(outputs, counts, (0, 0), tuple(n % 2 for n in counts))
    return canvas, winograd.tile_corners(canvas, counts, (0, 0), images)


def _transforms(dtype: Any) -> winograd.Transforms:
    return winograd.transforms(8 * dtype.itemsize, machine.host_width())


def conv(
    x: Array, w: Array, *, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int = 1
) -> Array:
    """y[n, o, i] = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t].     (N, C, …), (O, C/G, …) → (N, O, …)"""
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    sizes = zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    counts = tuple((m + 2 * p - d * (k - 1) - 1) // s + 1 for m, p, d, k, s in sizes)
    if not _taken(x, w) or min(counts) < 1:
        return reference.conv(x, w, **how, groups=groups)
    x, w, threads = np.ascontiguousarray(x), np.ascontiguousarray(w), count_threads()
    g = _geometry(w.shape[1], x.shape[2:], w.shape[0] // groups, counts, w.shape[2:], how)
    y = _result((x.shape[0], w.shape[0], *counts), x.dtype)
    if _plain(g):
        return _products(x, w, y, groups, g, True, threads)
    if _winograd_pays(g, groups):
        return _winograd(x, w, y, g, True, threads)
    return _correlation(x, w, y, groups, forward_plan, g, True, threads)


def conv_input_grad(
    dy: Array,
    w: Array,
    size: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Array:
    """x̄[n, c, s i + d t − p] += ȳ[n, o, i] w[o, c, t]: the transposed convolution, to an image of `size`."""
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    if not _taken(dy, w) or min(size) < 1:
        return reference.conv_input_grad(dy, w, size, **how, groups=groups)
    dy, w, threads = np.ascontiguousarray(dy), np.ascontiguousarray(w), count_threads()
    g = _geometry(w.shape[1], size, w.shape[0] // groups, dy.shape[2:], w.shape[2:], how)
    dx = _result((dy.shape[0], w.shape[1] * groups, *size), dy.dtype)
    if _plain(g) or g.channels * math.prod(g.kernel) <= FOLDED:
        return _products(dy, w, dx, groups, g, False, threads)
    if _winograd_pays(g, groups):
        return _winograd(dy, w, dx, g, False, threads)
    return _correlation(dy, w, dx, groups, backward_plan, g, False, threads)


def conv_weight_grad(
    x: Array,
    dy: Array,
    size: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Array:
    """w̄[o, c, t] = Σ_{n,i} x[n, c, s i + d t − p] ȳ[n, o, i], for a kernel of `size`."""
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    if not _taken(x, dy) or min(size) < 1:
        return reference.conv_weight_grad(x, dy, size, **how, groups=groups)
    x, dy, threads = np.ascontiguousarray(x), np.ascontiguousarray(dy), count_threads()
    g = _geometry(x.shape[1] // groups, x.shape[2:], dy.shape[1] // groups, dy.shape[2:], size, how)
    dw = _result((dy.shape[1], g.channels, *size), x.dtype)
    if _winograd_pays(g, groups):
        return _winograd_weight(x, dy, dw, g, threads)
    k, taps, pixels = _tiles(x.dtype), math.prod(g.kernel), math.prod(g.counts)
    block, by_image, by_column = _shares(len(x), threads, pixels)
    straight, panels = _plain(g), -(-g.outputs // k.panel)
    if straight:
        block, elements, places, rows, columns = 1, 0, steps(1, 1), steps(pixels, 1), steps(g.channels, pixels)
    else:
        p = forward_plan(g, block)
        elements, places, rows, columns = p.canvas.elements, p.canvas.pixels, p.phases[0].rows, p.phases[0].taps
    own = -(-(k.item * block * (elements + panels * k.panel * pixels) + 128) // 64) * 64
    with scratch(k.item * by_image * dw.size, own * threads) as (sums, mine):
        _run(
            _weight, threads, *_head(k, k.transpose), x, dy, sums, len(x), groups, g.channels, math.prod(g.size), g.outputs,
            pixels, rows, taps * g.channels, columns, block, elements, places, steps(pixels, k.panel),
            steps(taps * g.channels, g.outputs), CHUNK, DEPTH, mine, own, by_image, by_column, straight,
        )  # fmt: skip
        places = steps(g.outputs, taps * g.channels)
        _run(_collect, threads, k.add, k.transpose, k.item, sums, by_image, dw, groups, g.channels, g.outputs, taps, places)
    return dw
