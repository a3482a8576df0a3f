r"""The sizes of a convolution, and where its loops find what they multiply: tables that depend on shapes alone.

With pixels as rows and channels innermost, a convolution is a product C[row, j] = Σ_k A[row, k] B[k, j] in which A[row, k] lies
at rows[row] + steps[k] in an image with a border of zeros, since s i + d t − p is a sum of a part of the pixel and a part of
the tap:

    y:  rows = pixels i of y,  k = (t, c),  A = x,  B[k, o] = w[o, c, t]                               `forward_plan`
    x:  the pixels j with one remainder of j + p by s meet the same taps, so there is one such product, a *phase*, for each
        remainder:  rows = these pixels,  k = (t, o),  A = y,  B[k, c] = w[o, c, t]                    `backward_plan`
    w:  rows = (t, c),  k = pixels i,  A = x,  B[k, o] = y[n, o, i]: the tables of y with their roles exchanged

Memory: an image of H × W pixels lies in a *canvas*, its C channels innermost, where all windows of the image lie inside:

         left      W pixels of C elements      right
        0  …  0   0          …            0   0  …  0     top: lines of zeros
        0  …  0   x[:, 0, 0] … x[:, 0, W−1]   0  …  0
        0  …  0   …                           0  …  0     H lines, `row` elements apart
        0  …  0   0          …            0   0  …  0     bottom
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.cpu.jobs import Address, Offsets, integers, record

Array = np.ndarray
Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Sizes of one group of channels: input (C, H, W), output (O, P, Q), and what lies between."""

    channels: int
    size: Pair
    outputs: int
    counts: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


def _pair(sizes: tuple[int, ...], missing: int = 1) -> Pair:
    """A line is an image of height 1."""
    return tuple(int(m) for m in (sizes if len(sizes) == 2 else (missing, *sizes)))


@lru_cache(1024)
def geometry(
    channels: int, size: Any, outputs: int, counts: Any, kernel: Any, *, stride: Any, padding: Any, dilation: Any
) -> Geometry:
    how = _pair(stride), _pair(padding, 0), _pair(dilation)
    return Geometry(channels, _pair(size), outputs, _pair(counts), _pair(kernel), *how)


def images(x: Array) -> Array:
    """A line is an image of height 1."""
    return x.reshape(*x.shape[:2], *_pair(x.shape[2:]))


@lru_cache(1024)
def turned(g: Geometry) -> Geometry:
    """With stride 1, a convolution is the input gradient of the one with its taps in reverse: of O channels from C."""
    padding = tuple(d * (k - 1) - p for d, k, p in zip(g.dilation, g.kernel, g.padding, strict=True))
    return g._replace(channels=g.outputs, size=g.counts, outputs=g.channels, counts=g.size, padding=padding)


@lru_cache(1024)
def turns(g: Geometry) -> bool:
    return g.stride == (1, 1) and min(turned(g).padding) >= 0


# ---------------------------------------------------------------------------------------------------------------------
# Offsets
# ---------------------------------------------------------------------------------------------------------------------


def sums_of(*parts: Any) -> Array:
    """The sums of all combinations of the parts, the last part varying fastest."""
    total = np.zeros(1, np.int64)
    for p in parts:
        total = np.add.outer(total, np.asarray(p, np.int64)).reshape(-1)
    return total


def table(*parts: Any) -> Offsets:
    return Offsets(sums_of(*parts))


@lru_cache(1024)
def multiples(count: int, step: int) -> Offsets:
    """0, step, 2 step, …"""
    return table(np.arange(count) * step)


class Canvas:
    """An image, channels innermost, in a border of zeros: (h, w, c) lies at (h + top) row + (w + left) channels + c."""

    def __init__(self, channels: int, size: Pair, before: Pair, after: Pair) -> None:
        self.channels, self.before = channels, before
        height, width = (m + b + a for m, b, a in zip(size, before, after, strict=True))
        self.row = width * channels
        self.row += 16 * (self.row % 512 == 0)  # rows 2 KB apart would share the same few lines of the cache
        self.elements = height * self.row
        self.pixels = Offsets(self.at(np.arange(size[0]), np.arange(size[1])))

    def at(self, h: Any, w: Any) -> Array:
        """Offsets of the pixels h × w."""
        return sums_of((np.asarray(h) + self.before[0]) * self.row, (np.asarray(w) + self.before[1]) * self.channels)

    def steps(self, h: Any, w: Any) -> Array:
        """Offsets of (displacement h × w, channel)."""
        return sums_of(np.asarray(h) * self.row, np.asarray(w) * self.channels, np.arange(self.channels))


# ---------------------------------------------------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """One of the products that make up a result: result[results[i]] = Σ_k canvas[rows[i] + steps[k]] weights[first + k]."""

    pixels: int  # of one image: the tables of pixels hold those of all images of a block
    rows: Address
    depth: int
    steps: Address
    results: Address
    first: int


PHASE = record(Phase)


class Plan(NamedTuple):
    """How to correlate a block of images with packed weights."""

    canvas: Canvas
    phases: list[Phase]
    records: Offsets  # the phases as the loop reads them
    order: Array  # for each tap, its position among the taps of the packed weights
    complete: bool  # whether each pixel of the result is reached by a phase


def _plan(canvas: Canvas, block: int, phases: list[Any], pixels: int, columns: int, order: Array) -> Plan:
    """A plan for results of so many pixels and columns;  phases: (rows, steps, pixels of the result) of one image each."""
    nth, made, first = np.arange(block), [], 0
    for rows, steps, results in phases:
        if len(rows) and len(steps):
            to = table(nth * pixels * columns, results * columns)
            made.append(Phase(len(rows), table(nth * canvas.elements, rows), len(steps), Offsets(steps), to, first))
        first += len(steps)
    records = Offsets(np.array([integers(phase) for phase in made], np.int64).reshape(-1), of=made)
    return Plan(canvas, made, records, order, sum(phase.pixels for phase in made) == pixels)


@lru_cache(256)
def forward_plan(g: Geometry, block: int) -> Plan:
    """From x to y, for a block of so many images."""
    reach = tuple((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(g.counts, g.stride, g.dilation, g.kernel, strict=True))
    after = tuple(max(0, r - p - m) for r, p, m in zip(reach, g.padding, g.size, strict=True))
    canvas = Canvas(g.channels, g.size, g.padding, after)
    rows = canvas.at(*(np.arange(n) * s - p for n, s, p in zip(g.counts, g.stride, g.padding, strict=True)))
    steps = canvas.steps(*(np.arange(k) * d for k, d in zip(g.kernel, g.dilation, strict=True)))
    phases, order = [(rows, steps, np.arange(len(rows)))], np.arange(math.prod(g.kernel))
    return _plan(canvas, block, phases, len(rows), g.outputs, order)


@lru_cache(256)
def backward_plan(g: Geometry, block: int) -> Plan:
    """From y to x: in each dimension, pixels j with j + p ≡ a (mod s) meet the taps with d t ≡ a, at i = (j + p − d t) / s."""
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
            results = sums_of(pixels_h * g.size[1], pixels_w)
            phases.append((canvas.at(first_h, first_w), canvas.steps(steps_h, steps_w), results))
    order[order < 0] = position + np.arange((order < 0).sum())  # taps that reach no pixel
    return _plan(canvas, block, phases, math.prod(g.size), g.channels, order.reshape(-1))
