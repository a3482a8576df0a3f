r"""Convolution, its transpose and its weight gradient: which algorithm each takes.

    y[n, o, i] = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t]                       `conv`
    x[n, c, j] = Σ_{o, (i,t): s i + d t − p = j} y[n, o, i] w[o, c, t]           `conv_input_grad`
    w[o, c, t] = Σ_{n,i} x[n, c, s i + d t − p] y[n, o, i]                       `conv_weight_grad`

    each channel alone (groups = channels)                  `depthwise.py`
    a kernel of one tap, stride 1                           y = W x, a plain product: `over_pixels` of `convolution_loops.py`
    few results: y of half a vector of channels at most,    the columns Wᵀ y, folded up: `over_pixels`
        x̄ of at most FOLDED products for each pixel of y
    kernels of 3 or 2 times the stride, many channels       `winograd.py`
    few products for each result (FOLDED), many outputs     `windows.py`
    all others                                              `correlate` and `weight` of `convolution_loops.py`

The last is the general one. With pixels as rows and channels innermost each of the three is a product of matrices whose left
factor lies in the image itself, at places that two tables give (`convolution_plans.py`): no matrix of windows ("im2col") is
built. Each thread takes a block of a few images into the channels-last layout, multiplies, and takes the results back, all
within the second cache.

Arrays come and go as (N, C, …), contiguous; others are copied first. What is neither float32 nor float64, has more than two
spatial dimensions or no elements goes to `reference.py`. Each thread has its own images, or its own columns when there are
fewer images than threads, and its own sums: the same number of threads gives the same bits.
Sources: the tables: Dukhan 2019, arXiv:1907.02129; the tile: Goto & van de Geijn 2008.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu import depthwise, jobs, windows, winograd
from kernels.cpu.convolution_loops import (
    Canvases,
    Correlation,
    Fold,
    Packing,
    PixelProduct,
    Planes,
    Share,
    Weighting,
    collected,
    correlate,
    over_pixels,
    pack_weights,
    panel_of,
    tools,
    weight,
)
from kernels.cpu.convolution_plans import (
    Geometry,
    backward_plan,
    forward_plan,
    geometry,
    images,
    multiples,
    table,
    turned,
    turns,
)
from kernels.cpu.jobs import Offsets, launch, whole_lines
from kernels.cpu.matmul import SERIAL
from kernels.cpu.simd import lanes
from kernels.cpu.threads import threads as count_threads

Array = np.ndarray
BLOCK_ROWS = 192  # pixels that a block of images has at least, so that a panel of weights is used often while it is in cache
CHUNK, DEPTH = 192, 128  # rows and steps of a weight gradient's products
FOLDED = 64  # products for each pixel, at most, with which an input gradient is folded, and y is made of windows written out


def _result(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.empty(shape, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Which algorithm
# ---------------------------------------------------------------------------------------------------------------------


def _compiled(*arrays: Array) -> bool:
    """Whether these are arrays for the compiled loops, which know two dtypes and up to two spatial dimensions."""
    a = arrays[0]
    known = a.dtype in (np.float32, np.float64) and all(b.dtype == a.dtype for b in arrays) and 3 <= a.ndim <= 4
    return known and all(b.size for b in arrays) and not numba.config.DISABLE_JIT


def _threads(y: Array, w: Array) -> int:
    """One for little work: every element of y is a sum of as many products as w has weights for one output."""
    return count_threads() if y.size * (w.size // w.shape[0]) > SERIAL else 1


def _one_tap(g: Geometry) -> bool:
    """Whether the convolution is a product over channels alone."""
    return g.kernel == (1, 1) and g.stride == (1, 1) and g.padding == (0, 0) and g.size == g.counts


def _by_channel(g: Geometry, groups: int) -> bool:
    """Whether each output plane comes from one of several input planes, alone."""
    return groups > 1 and g.channels == 1


def _few_outputs(g: Geometry, item: int) -> bool:
    """Whether y fills half a vector at most: with stride 1 it is then folded, as the input gradient of the turned geometry."""
    return 2 * g.outputs <= lanes(item) and g.outputs * math.prod(g.kernel) <= FOLDED and turns(g)


def _few_inputs(g: Geometry, item: int) -> bool:
    """Whether a window has at most FOLDED elements and at least a vector of outputs: then windows are written out.

    Measured: with a stride of 4, where each line of the canvas is picked apart, that takes as long as the products.
    """
    return g.channels * math.prod(g.kernel) <= FOLDED and g.outputs >= lanes(item) and g.stride[1] <= 2


def _by_inputs(g: Geometry, item: int) -> bool:
    """Whether the sums of a weight gradient fill fewer vectors when these lie over the input channels, not the outputs."""
    wide = lanes(item)
    over_inputs, over_outputs = g.outputs * -(-g.channels // wide), g.channels * -(-g.outputs // wide)
    return turns(g) and 2 * over_inputs <= over_outputs


# ---------------------------------------------------------------------------------------------------------------------
# Jobs for the loops
# ---------------------------------------------------------------------------------------------------------------------


def _shares(images: int, threads: int, pixels: int) -> tuple[int, int, int]:
    """Images of a block, threads that share the images out, and threads that share the columns of each of these."""
    by_image = min(images, threads)
    return min(-(-BLOCK_ROWS // pixels), -(-images // by_image)), by_image, threads // by_image


@lru_cache(256)
def _packed_order(plan: Any, g: Geometry, block: int, row: int) -> Offsets:
    """Offset of each tap's weights in a panel, each tap having so many elements."""
    return table(plan(g, block).order * row)


def _pack(w: Array, packed: Any, groups: int, g: Geometry, forward: bool, order: Offsets, threads: int) -> None:
    """Weights in panels of output channels, or, backward, of input channels."""
    taps = math.prod(g.kernel)
    by_output, by_input = (g.outputs, g.channels * taps), (g.channels, taps)
    wide, other = (by_output, by_input) if forward else (by_input, by_output)
    launch(pack_weights, threads, Packing(tools(w.dtype.char), w, packed, groups, *wide, *other, taps, order))


def _correlation(x: Array, w: Array, y: Array, groups: int, g: Geometry, forward: bool, threads: int) -> Array:
    """y = x correlated with w by a plan: forward from C to O channels, backward from O to C."""
    k, taps = tools(x.dtype.char), math.prod(g.kernel)
    plan, channels, columns = (forward_plan, g.channels, g.outputs) if forward else (backward_plan, g.outputs, g.channels)
    x_pixels, y_pixels, panel = math.prod(x.shape[2:]), math.prod(y.shape[2:]), panel_of(k.item)
    block, by_image, by_column = _shares(len(x), threads, math.prod(g.counts))
    p = plan(g, block)
    own = whole_lines(k.item * (block * p.canvas.elements + block * y_pixels * columns) + 128)
    weights = k.item * groups * -(-columns // panel) * panel * taps * channels
    packed, memory = jobs.workspace(weights, own * threads)
    _pack(w, packed, groups, g, forward, _packed_order(plan, g, block, channels * panel), threads)
    job = Correlation(
        tools=k,
        share=Share(len(x), by_image, by_column, block, memory, own),
        groups=groups,
        source=Planes(x, channels, x_pixels),
        result=Planes(y, columns, y_pixels),
        canvas=Canvases(p.canvas.elements, p.canvas.pixels),
        packed=packed,
        taps=taps,
        phases=p.records,
        phase_count=len(p.phases),
        complete=p.complete,
        planes=multiples(columns, y_pixels),
    )
    launch(correlate, threads, job)
    return y


def _products(
    x: Array, w: Array, y: Array, groups: int, rows: Offsets, steps: Offsets, folded: Geometry | None, threads: int
) -> Array:
    """y[m, i] = Σ_k w[rows_m + steps_k] x[k, i], or folded from that as the input gradient of a geometry."""
    k, g, pixels = tools(x.dtype.char), folded, math.prod(x.shape[2:])
    panel = panel_of(k.item)
    own = whole_lines(k.item * -(-pixels // panel) * panel * (len(steps) + 1))
    sizes, how = images(y).shape[2:], (1,) * 10
    if g is not None:
        own += whole_lines(k.item * len(rows) * pixels)
        how = (*g.kernel, *g.counts, *g.stride, *g.padding, *g.dilation)
    (memory,) = jobs.workspace(own * threads)
    job = PixelProduct(
        tools=k,
        units=len(x) * groups,
        groups=groups,
        weights=w,
        weight_step=w.size // groups,
        rows=rows,
        steps=steps,
        inner=len(steps),
        results=len(rows),
        source=x,
        pixels=pixels,
        to=y,
        planes=multiples(len(rows), pixels),
        folded=g is not None,
        fold=Fold(y.shape[1] // groups, *sizes, *how),
        memory=memory,
        size=own,
    )
    launch(over_pixels, threads, job)
    return y


@lru_cache(256)
def _reversed_taps(outputs: int, channels: int, taps: int) -> Offsets:
    """(o, t) → offset of w[o, 0, K − 1 − t], K taps"""
    return table(np.arange(outputs) * channels * taps, np.arange(taps)[::-1])


def _weight(x: Array, dy: Array, dw: Array, groups: int, g: Geometry, threads: int) -> Array:
    """w̄ by the tables of y with their roles exchanged, with vectors over the outputs, or over the inputs if these fill more."""
    k, taps, straight = tools(x.dtype.char), math.prod(g.kernel), _one_tap(g)
    exchanged = not straight and _by_inputs(g, k.item)
    if exchanged:
        g, x, dy = turned(g), dy, x
    pixels, panel = math.prod(g.counts), panel_of(k.item)
    block, by_image, by_column = _shares(len(x), threads, pixels)
    if straight:
        block, canvas, rows, steps = 1, Canvases(0, multiples(1, 1)), multiples(g.channels, pixels), multiples(pixels, 1)
    else:
        p = forward_plan(g, block)
        canvas = Canvases(p.canvas.elements, p.canvas.pixels)
        rows, steps = p.phases[0].steps, p.phases[0].rows
    own = whole_lines(k.item * block * (canvas.elements + -(-g.outputs // panel) * panel * pixels) + 128)
    sums, memory = jobs.workspace(k.item * by_image * dw.size, own * threads)
    job = Weighting(
        tools=k,
        share=Share(len(x), by_image, by_column, block, memory, own),
        groups=groups,
        source=Planes(x, g.channels, math.prod(g.size)),
        grads=Planes(dy, g.outputs, pixels),
        canvas=canvas,
        straight=straight,
        sums=sums,
        rows=rows,
        row_count=taps * g.channels,
        steps=steps,
        panels=multiples(pixels, panel),
        results=multiples(taps * g.channels, g.outputs),
        chunk=CHUNK,
        depth=DEPTH,
    )
    launch(weight, threads, job)
    return collected(k, sums, by_image, dw, groups, g, exchanged, threads)


# ---------------------------------------------------------------------------------------------------------------------
# The kernels
# ---------------------------------------------------------------------------------------------------------------------


def conv(
    x: Array, w: Array, *, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int = 1
) -> Array:
    how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    sizes = zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    counts = tuple((m + 2 * p - d * (k - 1) - 1) // s + 1 for m, p, d, k, s in sizes)
    if not _compiled(x, w) or min(counts) < 1:
        return reference.conv(x, w, **how, groups=groups)
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    g, taps = geometry(w.shape[1], x.shape[2:], w.shape[0] // groups, counts, w.shape[2:], **how), math.prod(w.shape[2:])
    y = _result((x.shape[0], w.shape[0], *counts), x.dtype)
    threads = _threads(y, w)
    if _by_channel(g, groups):
        return depthwise.correlate(x, w, y, g, True, threads)
    if _one_tap(g):
        return _products(x, w, y, groups, multiples(g.outputs, g.channels), multiples(g.channels, 1), None, threads)
    if _few_outputs(g, x.itemsize):
        rows = _reversed_taps(g.outputs, g.channels, taps)
        return _products(x, w, y, groups, rows, multiples(g.channels, taps), turned(g), threads)
    if winograd.pays(g, groups, len(x)):
        return winograd.correlate(x, w, y, g, True, _shares(len(x), threads, math.prod(g.counts)), threads)
    if _few_inputs(g, x.itemsize):
        return windows.conv(x, w, y, g, groups, threads)
    return _correlation(x, w, y, groups, g, True, threads)


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
    how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    if not _compiled(dy, w) or min(size) < 1:
        return reference.conv_input_grad(dy, w, size, **how, groups=groups)
    dy, w, threads = np.ascontiguousarray(dy), np.ascontiguousarray(w), _threads(dy, w)
    g = geometry(w.shape[1], size, w.shape[0] // groups, dy.shape[2:], w.shape[2:], **how)
    dx = _result((dy.shape[0], w.shape[1] * groups, *size), dy.dtype)
    if _by_channel(g, groups):
        return depthwise.correlate(dy, w, dx, g, False, threads)
    columns, one_tap = g.channels * math.prod(g.kernel), _one_tap(g)
    if one_tap or columns <= FOLDED:
        rows, steps = multiples(columns, 1), multiples(g.outputs, columns)
        return _products(dy, w, dx, groups, rows, steps, None if one_tap else g, threads)
    if winograd.pays(g, groups, len(dy)):
        return winograd.correlate(dy, w, dx, g, False, _shares(len(dy), threads, math.prod(g.counts)), threads)
    return _correlation(dy, w, dx, groups, g, False, threads)


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
    how = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    if not _compiled(x, dy) or min(size) < 1:
        return reference.conv_weight_grad(x, dy, size, **how, groups=groups)
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    g = geometry(x.shape[1] // groups, x.shape[2:], dy.shape[1] // groups, dy.shape[2:], size, **how)
    dw = _result((dy.shape[1], g.channels, *size), x.dtype)
    threads = _threads(dy, dw)
    if _by_channel(g, groups):
        return depthwise.weight_grad(x, dy, dw, g, threads)
    if winograd.pays(g, groups, len(x)):
        return winograd.weight_grad(x, dy, dw, g, _shares(len(x), threads, math.prod(g.counts)), threads)
    if _few_inputs(g, x.itemsize) and windows.pays(dw.shape[0], math.prod(dw.shape[1:])):
        return windows.weight_grad(x, dy, dw, g, groups, threads)
    return _weight(x, dy, dw, groups, g, threads)
