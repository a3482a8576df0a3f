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
Kernels of 3 or 2 times the stride, 3×3 or DCGAN's 4×4 with stride 2, go to `winograd.py`.

Arrays come and go as (N, C, …), contiguous; others are copied first. What is neither float32 nor float64, has more than
two spatial dimensions or no elements goes to `reference.py`. Each thread has its own images, or its own columns when
there are fewer images than threads, and its own sums: the same number of threads gives the same bits.
Sources: the tables: Dukhan 2019, arXiv:1907.02129; the tile: Goto & van de Geijn 2008.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels import reference
from kernels.cpu import depthwise, windows, winograd
from kernels.cpu.convolution_loops import (
    Offsets,
    Tools,
    collect,
    correlate,
    launch,
    over_pixels,
    pack_weights,
    panel_of,
    tools,
    weight,
)
from kernels.cpu.matmul import SERIAL
from kernels.cpu.memory import Held, scratch
from kernels.cpu.simd import lanes
from kernels.cpu.threads import threads as count_threads

Array = np.ndarray
BLOCK_ROWS = 192  # pixels that a block of images has at least, so that a panel of weights is used often while it is in cache
WINOGRAD_CHANNELS = 24  # measured: 16 channels draw, 24 gain a quarter, 32 on 7 × 7 lose it again, 64 gain up to 1.8 times
WINOGRAD_TILES = 48  # measured: with 32 to 64 tiles in all, the transforms of the weights take what the products save
CHUNK, DEPTH = 192, 128  # rows and steps of a weight gradient's products
FOLDED = 64  # with no more columns than this, an input gradient is folded from W^T y, and y is made of windows written out


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


def sums_of(*parts: Any) -> Array:
    """The sums of all combinations of the parts, the last part varying fastest."""
    total = np.zeros(1, np.int64)
    for p in parts:
        total = np.add.outer(total, np.asarray(p, np.int64)).reshape(-1)
    return total


def table(*parts: Any) -> Offsets:
    return Offsets(sums_of(*parts))


class Canvas:
    """An image, channels innermost, in a border of zeros: (h, w, c) lies at (h + top) row + (w + left) channels + c."""

    def __init__(self, channels: int, size: tuple[int, int], before: tuple[int, int], after: tuple[int, int]) -> None:
        self.channels, self.before = channels, before
        height, width = (m + b + a for m, b, a in zip(size, before, after, strict=True))
        self.row = width * channels
        self.row += 16 * (self.row % 512 == 0)  # rows 2 KB apart would share the same few lines of the cache
        self.elements = height * self.row
        self.pixels = Offsets(self.at(np.arange(size[0]), np.arange(size[1])))

    def at(self, h: Any, w: Any) -> Array:
        """places of the pixels h × w"""
        return sums_of((np.asarray(h) + self.before[0]) * self.row, (np.asarray(w) + self.before[1]) * self.channels)

    def steps(self, h: Any, w: Any) -> Array:
        """offsets of (displacement h × w, channel)"""
        return sums_of(np.asarray(h) * self.row, np.asarray(w) * self.channels, np.arange(self.channels))


class Phase(NamedTuple):
    """One of the products that make up a result: which pixels, which taps, which rows of the packed weights."""

    rows: Offsets
    taps: Offsets
    results: Offsets
    start: int


class Plan(NamedTuple):
    """How to correlate a block of images with packed weights."""

    canvas: Canvas
    phases: list[Phase]
    jobs: Offsets  # the phases as addresses, for the compiled loop
    order: Array  # position of tap t among the rows of the packed weights
    complete: bool  # whether each pixel of the result is reached by a phase


def _plan(canvas: Canvas, images: int, phases: list[Any], results: int, columns: int, order: Array, depth: int) -> Plan:
    block = np.arange(images)
    made, start = [], 0
    for rows, taps, places in phases:
        if len(rows) and len(taps):
            to = table(block * results * columns, places * columns)
            made.append(Phase(table(block * canvas.elements, rows), Offsets(taps), to, start))
        start += len(taps)
    jobs = [(len(f.rows) // images, f.rows.address, len(f.taps), f.taps.address, f.results.address, f.start) for f in made]
    complete = sum(len(f.rows) for f in made) == images * results
    return Plan(canvas, made, Offsets(np.array(jobs, np.int64).reshape(-1), of=made), order * depth, complete)


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
            places = sums_of(pixels_h * g.size[1], pixels_w)
            phases.append((canvas.at(first_h, first_w), canvas.steps(steps_h, steps_w), places))
    order[order < 0] = position + np.arange((order < 0).sum())  # taps that reach no pixel
    return _plan(canvas, images, phases, math.prod(g.size), g.channels, order.reshape(-1), g.outputs)


@lru_cache(1024)
def steps(count: int, step: int) -> Offsets:
    """0, step, 2 step, …"""
    return table(np.arange(count) * step)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def _result(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.empty(shape, dtype)


def _workspace(*sizes: int) -> list[Held]:
    """Pieces of so many bytes, each on a cache line, of this thread's memory: until it asks again."""
    places = [0, *accumulate(-(-size // 64) * 64 for size in sizes)]
    whole = scratch("d", places[-1] // 8)
    start = whole.ctypes.data
    return [Held(start + p, whole) for p in places[:-1]]


# ---------------------------------------------------------------------------------------------------------------------
# The doors
# ---------------------------------------------------------------------------------------------------------------------


def _taken(*arrays: Array) -> bool:
    """Whether these are arrays for the compiled loops, which know two dtypes and up to two spatial dimensions."""
    a = arrays[0]
    known = a.dtype in (np.float32, np.float64) and all(b.dtype == a.dtype for b in arrays) and 3 <= a.ndim <= 4
    return known and all(b.size for b in arrays) and not numba.config.DISABLE_JIT


def _threads(y: Array, w: Array) -> int:
    """One for little work: every element of y is a sum of as many products as w has weights for one output."""
    return count_threads() if y.size * (w.size // w.shape[0]) > SERIAL else 1


def _two(sizes: tuple[int, ...], missing: int = 1) -> tuple[int, int]:
    """A line is an image of height 1."""
    return tuple(int(m) for m in (sizes if len(sizes) == 2 else (missing, *sizes)))


@lru_cache(1024)
def _geometry(
    channels: int, size: Any, outputs: int, counts: Any, kernel: Any, *, stride: Any, padding: Any, dilation: Any
) -> Geometry:
    how = _two(stride), _two(padding, 0), _two(dilation)
    return Geometry(channels, _two(size), outputs, _two(counts), _two(kernel), *how)


def _plain(g: Geometry) -> bool:
    """Whether the convolution is a product over channels alone."""
    return g.kernel == (1, 1) and g.stride == (1, 1) and g.padding == (0, 0) and g.size == g.counts


def _by_channel(g: Geometry, groups: int) -> bool:
    """Whether each output plane comes from one of several input planes, alone."""
    return groups > 1 and g.channels == 1


def _few(g: Geometry, item: int) -> bool:
    """Whether a window has at most FOLDED numbers and at least a vector of outputs: then windows are written out.

    Measured: with a stride of 4, where each line of the canvas is picked apart, that takes as long as the products.
    """
    return g.channels * math.prod(g.kernel) <= FOLDED and g.outputs >= lanes(item) and g.stride[1] <= 2


def _images(x: Array) -> Array:
    """A line is an image of height 1."""
    return x.reshape(*x.shape[:2], *_two(x.shape[2:]))


def _depthwise_plan(g: Geometry, item: int, forward: bool) -> depthwise.Plan:
    return depthwise.plan(g.size, g.counts, g.kernel, g.stride, g.padding, g.dilation, g.outputs, item, forward)


def _winograd_pays(g: Geometry, groups: int, images: int) -> bool:
    """Whether 2.25 or 1.78 times fewer products outweigh the transforms: with many channels and tiles, which lie within y."""
    s, r = g.stride[0], g.kernel[0] // g.stride[0]
    fits = r in winograd.KINDS and g.kernel == (s * r, s * r) and g.stride == (s, s) and g.dilation == (1, 1) and groups == 1
    fits = fits and max(g.padding) < s * r
    within = math.prod(n / (n + n % 2) for n in g.counts)
    many = images * math.prod(-(-n // 2) for n in g.counts) >= WINOGRAD_TILES
    return fits and many and min(g.channels, g.outputs) * within**2 >= WINOGRAD_CHANNELS


def _shares(images: int, threads: int, pixels: int) -> tuple[int, int, int]:
    """Images of a block, threads that share the images out, and threads that share the columns of each of these."""
    by_image = min(images, threads)
    return min(-(-BLOCK_ROWS // pixels), -(-images // by_image)), by_image, threads // by_image


def _cache_lines(size: int) -> int:
    return -(-size // 64) * 64


def _pack(k: Tools, w: Array, packed: Held, groups: int, g: Geometry, forward: bool, order: Offsets, threads: int) -> None:
    """Weights in panels of output channels, or, backward, of input channels."""
    taps = math.prod(g.kernel)
    by_output, by_input = (g.outputs, g.channels * taps), (g.channels, taps)
    wide, other = (by_output, by_input) if forward else (by_input, by_output)
    launch(pack_weights, threads, k.scatter, k.item, w, packed, groups, *wide, *other, taps, order)


def _correlation(x: Array, w: Array, y: Array, groups: int, plan: Any, g: Geometry, forward: bool, threads: int) -> Array:
    """y = x correlated with w by a plan: forward from C to O channels, backward from O to C."""
    k, taps = tools(x.dtype.char), math.prod(g.kernel)
    channels, columns = (g.channels, g.outputs) if forward else (g.outputs, g.channels)
    x_pixels, y_pixels, panel = math.prod(x.shape[2:]), math.prod(y.shape[2:]), panel_of(k.item)
    block, by_image, by_column = _shares(len(x), threads, math.prod(g.counts))
    p = plan(g, block)
    own = _cache_lines(k.item * (block * p.canvas.elements + block * y_pixels * columns) + 128)
    packed, mine = _workspace(k.item * groups * -(-columns // panel) * panel * taps * channels, own * threads)
    _pack(k, w, packed, groups, g, forward, _packed_order(plan, g, block, panel), threads)
    launch(
        correlate, threads, k.tile, k.scatter, k.item, x, packed, y, len(x), groups, channels, x_pixels, columns, y_pixels,
        taps, block, p.canvas.elements, p.canvas.pixels, p.jobs, len(p.phases), p.complete, steps(columns, y_pixels),
        mine, own, by_image, by_column,
    )  # fmt: skip
    return y


@lru_cache(256)
def _packed_order(plan: Any, g: Geometry, block: int, panel: int) -> Offsets:
    return table(plan(g, block).order * panel)


def _products(x: Array, w: Array, y: Array, groups: int, rows: Offsets, ks: Offsets, g: Geometry | None, threads: int) -> Array:
    """y[m, i] = Σ_k w[rows_m + ks_k] x[k, i], or folded from that as the input gradient of a geometry."""
    k, pixels, inner, results = tools(x.dtype.char), math.prod(x.shape[2:]), len(ks), len(rows)
    panel = panel_of(k.item)
    own = _cache_lines(k.item * -(-pixels // panel) * panel * (inner + 1))
    if g is not None:
        own += _cache_lines(k.item * results * pixels)
        shape = (*g.kernel, *g.size, *g.counts, *g.stride, *g.padding, *g.dilation)
    else:
        shape = (1, 1, *_two(y.shape[2:]), *[1] * 8)
    (mine,) = _workspace(own * threads)
    launch(
        over_pixels, threads, k.tile, k.fold, k.item, k.pack, x, w, y, len(x) * groups, groups, inner, pixels, results,
        w.size // groups, rows, ks, steps(results, pixels), g is not None, mine, own, y.shape[1] // groups, *shape,
    )  # fmt: skip
    return y


@lru_cache(1024)
def _turned(g: Geometry) -> Geometry:
    """With stride 1, a convolution is the input gradient of the one with its taps in reverse: of O channels from C."""
    padding = tuple(d * (k - 1) - p for d, k, p in zip(g.dilation, g.kernel, g.padding, strict=True))
    return g._replace(channels=g.outputs, size=g.counts, outputs=g.channels, counts=g.size, padding=padding)


@lru_cache(1024)
def _turns(g: Geometry) -> bool:
    return g.stride == (1, 1) and min(_turned(g).padding) >= 0


@lru_cache(256)
def _reversed_taps(outputs: int, channels: int, taps: int) -> Offsets:
    """(o, t) → the place of w[o, 0, T − 1 − t]"""
    return table(np.arange(outputs) * channels * taps, np.arange(taps)[::-1])


@lru_cache(256)
def _winograd_tables(g: Geometry, images: int) -> tuple[Canvas, Offsets, Canvas, Offsets]:
    """Canvases of x and of y that hold whole tiles, and where these begin."""
    s = g.stride[0]
    tiled = [n + n % 2 for n in g.counts]
    reach = [s * (n - 1) + k for n, k in zip(tiled, g.kernel, strict=True)]
    after = tuple(max(0, n - m - p) for n, m, p in zip(reach, g.size, g.padding, strict=True))
    x, y = Canvas(g.channels, g.size, g.padding, after), Canvas(g.outputs, g.counts, (0, 0), tuple(n % 2 for n in g.counts))
    return x, winograd.tile_corners(x, g.counts, s, g.padding, images), y, winograd.tile_corners(y, g.counts, 1, (0, 0), images)


def _winograd(x: Array, w: Array, y: Array, g: Geometry, forward: bool, threads: int) -> Array:
    """y = x correlated with w, or the input gradient: the transposes of the same maps, from y to x."""
    k, transform, panel = tools(x.dtype.char), winograd.transform[x.dtype.char], panel_of(x.itemsize)
    stride, kernel = g.stride[0], g.kernel[0]
    r, side = kernel // stride, kernel // stride + 1
    inward, to_x, outward, from_y, kernel_kind, _ = winograd.KINDS[r]
    block, by_image, _ = _shares(len(x), threads, math.prod(g.counts))
    x_canvas, x_corners, y_canvas, y_corners = _winograd_tables(g, block)
    given = g.channels, math.prod(g.size), stride, x_canvas, x_corners
    made = g.outputs, math.prod(g.counts), 1, y_canvas, y_corners
    if not forward:
        given, made, inward, outward = made, given, from_y, to_x
    (channels, x_pixels, x_stride, x_canvas, x_corners), (columns, y_pixels, y_stride, y_canvas, y_corners) = given, made
    strips = 1 if y_canvas.elements == y_pixels * columns else y.shape[-2]  # pixels in one piece, or each line of them
    depth, wide = channels * x_stride**2, columns * y_stride**2
    one = channels * panel  # weights of a panel for one tap, or at one position for one pixel of a cell
    batch, whole = winograd.batch_size(depth, wide, side**2, k.item), -(-columns // panel) * one * stride**2
    own = k.item * (block * (x_canvas.elements + y_canvas.elements) + side**2 * (batch + 16) * (depth + wide)) + 256
    own = _cache_lines(max(own, k.item * kernel**2 * panel))
    weights, mine = _workspace(k.item * side**2 * whole, own * threads)
    by_output, by_input = (g.outputs, g.channels * kernel**2), (g.channels, kernel**2)
    vectors, others = (by_output, by_input) if forward else (by_input, by_output)
    pixel, per_panel = (one, stride**2 * one) if forward else (whole // stride**2, one)
    launch(
        winograd.kernels, threads, transform, kernel_kind, k.scatter, k.item, w, weights, *vectors, *others, kernel, stride,
        side, steps(kernel**2, panel), pixel, per_panel, whole, mine, own,
    )  # fmt: skip
    launch(
        winograd.correlate, threads, k.tile, k.scatter, k.item, transform, inward, outward, side, not forward, weights, len(x),
        block, *g.counts, batch,
        x, channels, x_pixels, x_stride, x_canvas.elements, x_canvas.row, x_canvas.pixels, x_corners, steps(batch, depth),
        steps(depth, 1), y, columns, y_pixels, y_stride, y_canvas.elements, y_canvas.row, int(y_canvas.pixels.array[0]),
        y_corners, steps(batch, wide), steps(columns, y_pixels), strips, mine, own, by_image,
    )  # fmt: skip
    return y


def _winograd_weight(x: Array, dy: Array, dw: Array, g: Geometry, threads: int) -> Array:
    k, transform = tools(x.dtype.char), winograd.transform[x.dtype.char]
    stride, kernel = g.stride[0], g.kernel[0]
    r, side = kernel // stride, kernel // stride + 1
    inward, _, _, outward, _, grads = winograd.KINDS[r]
    x_pixels, y_pixels, depth = math.prod(g.size), math.prod(g.counts), g.channels * stride**2
    block, by_image, _ = _shares(len(x), threads, y_pixels)
    batch, plane = winograd.batch_size(depth, g.outputs, side**2, k.item), g.channels * g.outputs
    batch = max(batch, min(192, depth * g.outputs // (depth + g.outputs)))  # a batch goes over all sums: no fewer tiles
    block = min(max(block, batch // math.prod(-(-n // 2) for n in g.counts)), -(-len(x) // by_image))
    canvas, corners, y_canvas, y_corners = _winograd_tables(g, block)
    own = k.item * (block * (canvas.elements + y_canvas.elements) + side**2 * (batch + 16) * (depth + g.outputs)) + 256
    own, whole = _cache_lines(own), stride**2 * plane
    sums, back, mine = _workspace(k.item * by_image * side**2 * whole, k.item * by_image * dw.size, own * threads)
    launch(
        winograd.weight, threads, k.tile, k.scatter, k.item, transform, inward, outward, side, x, dy, sums, len(x), g.channels,
        x_pixels, g.outputs, y_pixels, stride, *g.counts, block, canvas.elements, canvas.row, canvas.pixels,
        corners, y_canvas.elements, y_canvas.row, y_canvas.pixels, y_corners, batch, steps(batch, depth), steps(depth, 1),
        steps(depth, g.outputs), mine, own, by_image,
    )  # fmt: skip
    launch(
        winograd.kernel_grads, threads, transform, grads, k.item, sums, back, by_image, kernel, stride, side, plane,
    )  # fmt: skip
    return _collected(k, back, by_image, dw, 1, g.channels, g.outputs, kernel**2, False, threads)


def _collected(
    k: Tools, sums: Held, count: int, dw: Array, groups: int, channels: int, outputs: int, taps: int, turned: bool, threads: int
) -> Array:
    """dw[g, o, c, t] from the threads' sums [g, t, c, o]; turned: dw[g, c, o, T − 1 − t]."""
    by_channel, by_output = (outputs * taps, taps) if turned else (taps, channels * taps)
    step = channels * outputs * (-1 if turned else 1)
    launch(
        collect, threads, k.add, k.scatter, k.item, sums, count, dw, groups, channels, outputs, taps, by_channel,
        steps(outputs, by_output), step,
    )  # fmt: skip
    return dw


def conv(
    x: Array, w: Array, *, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int = 1
) -> Array:
    """y[n, o, i] = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t].     (N, C, …), (O, C/G, …) → (N, O, …)"""
    how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    sizes = zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    counts = tuple((m + 2 * p - d * (k - 1) - 1) // s + 1 for m, p, d, k, s in sizes)
    if not _taken(x, w) or min(counts) < 1:
        return reference.conv(x, w, **how, groups=groups)
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    g, taps = _geometry(w.shape[1], x.shape[2:], w.shape[0] // groups, counts, w.shape[2:], **how), math.prod(w.shape[2:])
    y = _result((x.shape[0], w.shape[0], *counts), x.dtype)
    threads = _threads(y, w)
    if _by_channel(g, groups):
        depthwise.correlate(_images(x), w, _images(y), _depthwise_plan(g, x.itemsize, True), groups, threads)
        return y
    if _plain(g):
        return _products(x, w, y, groups, steps(g.outputs, g.channels), steps(g.channels, 1), None, threads)
    if 2 * g.outputs <= lanes(x.itemsize) and g.outputs * taps <= FOLDED and _turns(g):
        rows = _reversed_taps(g.outputs, g.channels, taps)
        return _products(x, w, y, groups, rows, steps(g.channels, taps), _turned(g), threads)
    if _winograd_pays(g, groups, len(x)):
        return _winograd(x, w, y, g, True, threads)
    if _few(g, x.itemsize):
        return windows.conv(_images(x), w, _images(y), windows.plan(*g, x.itemsize), groups, threads).reshape(y.shape)
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
    how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    if not _taken(dy, w) or min(size) < 1:
        return reference.conv_input_grad(dy, w, size, **how, groups=groups)
    dy, w, threads = np.ascontiguousarray(dy), np.ascontiguousarray(w), _threads(dy, w)
    g = _geometry(w.shape[1], size, w.shape[0] // groups, dy.shape[2:], w.shape[2:], **how)
    dx = _result((dy.shape[0], w.shape[1] * groups, *size), dy.dtype)
    if _by_channel(g, groups):
        depthwise.correlate(_images(dy), w, _images(dx), _depthwise_plan(g, dy.itemsize, False), groups, threads)
        return dx
    columns, plain = g.channels * math.prod(g.kernel), _plain(g)
    if plain or columns <= FOLDED:
        return _products(dy, w, dx, groups, steps(columns, 1), steps(g.outputs, columns), None if plain else g, threads)
    if _winograd_pays(g, groups, len(dy)):
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
    how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    if not _taken(x, dy) or min(size) < 1:
        return reference.conv_weight_grad(x, dy, size, **how, groups=groups)
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    g = _geometry(x.shape[1] // groups, x.shape[2:], dy.shape[1] // groups, dy.shape[2:], size, **how)
    dw = _result((dy.shape[1], g.channels, *size), x.dtype)
    threads = _threads(dy, dw)
    if _by_channel(g, groups):
        depthwise.weight_grad(_images(x), _images(dy), dw, _depthwise_plan(g, x.itemsize, True), threads)
        return dw
    if _winograd_pays(g, groups, len(x)):
        return _winograd_weight(x, dy, dw, g, threads)
    if _few(g, x.itemsize) and windows.pays(dw.shape[0], math.prod(dw.shape[1:])):
        return windows.weight_grad(_images(x), _images(dy), dw, windows.plan(*g, x.itemsize), groups, threads)
    k, taps, straight = tools(x.dtype.char), math.prod(g.kernel), _plain(g)
    wide = lanes(k.item)
    turned = not straight and _turns(g) and 2 * g.outputs * -(-g.channels // wide) <= g.channels * -(-g.outputs // wide)
    if turned:  # vectors over input channels instead
        g, x, dy = _turned(g), dy, x
    pixels, panel = math.prod(g.counts), panel_of(k.item)
    block, by_image, by_column = _shares(len(x), threads, pixels)
    if straight:
        block, elements, places, rows, columns = 1, 0, steps(1, 1), steps(pixels, 1), steps(g.channels, pixels)
    else:
        p = forward_plan(g, block)
        elements, places, rows, columns = p.canvas.elements, p.canvas.pixels, p.phases[0].rows, p.phases[0].taps
    own = _cache_lines(k.item * block * (elements + -(-g.outputs // panel) * panel * pixels) + 128)
    sums, mine = _workspace(k.item * by_image * dw.size, own * threads)
    launch(
        weight, threads, k.tile, k.scatter, k.item, x, dy, sums, len(x), groups, g.channels, math.prod(g.size), g.outputs,
        pixels, rows, taps * g.channels, columns, block, elements, places, steps(pixels, panel),
        steps(taps * g.channels, g.outputs), CHUNK, DEPTH, mine, own, by_image, by_column, straight,
    )  # fmt: skip
    return _collected(k, sums, by_image, dw, groups, g.channels, g.outputs, taps, turned, threads)
