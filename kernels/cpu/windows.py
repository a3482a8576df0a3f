r"""Convolutions of few input channels: C taps numbers meet each output, so few that the windows are cheaper written out.

    columns[(c, t), i] = x[c, s i + d t − p]            for one image, K = C taps rows of all pixels i, at most one panel
    y[o, i] = Σ_k w[o, k] columns[k, i]                 vectors over pixels: y is written as it lies

What a window's row needs is copied, not computed: an image goes to a canvas in a border of zeros, parted by the stride's
remainders (as in `depthwise`), where each tap's row of pixels is one piece. Threads share the images.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels.cpu.build import INT, TABLE, VOID, helper, kernel, result
from kernels.cpu.convolution_loops import product
from kernels.cpu.depthwise import fill, line
from kernels.cpu.rows import flat
from kernels.cpu.simd import WINDOW, address, call, lanes, pack, window_tile

Array = np.ndarray


class Plan(NamedTuple):
    """Where things lie, for one geometry and element size."""

    canvas: tuple[int, ...]  # channels, remainders of rows and of columns, rows, columns
    top: int
    left: int
    taps: Array  # of (channel, tap): where its first pixel lies in the canvas
    weights: Array  # first places of the rows of w (O, K), of the rows of y (O, pixels), and steps along either
    pixels: Array
    along: Array


@lru_cache(256)
def plan(
    channels: int, size: Any, outputs: int, counts: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, item: int
) -> Plan:
    sides = zip(size, counts, kernel, stride, padding, dilation, strict=True)
    down, across = (line(*numbers, forward=True) for numbers in sides)
    pitch = across.length + lanes(item)  # a vector that begins at the last element stays in the line
    plane = down.length * pitch
    taps = [
        ((c * down.remainders + rest_h) * across.remainders + rest_w) * plane
        + (offset_h + down.before) * pitch + offset_w + across.before
        for c in range(channels)
        for _, rest_h, offset_h in down.parts[0][3]
        for _, rest_w, offset_w in across.parts[0][3]
    ]  # fmt: skip
    canvas = channels, down.remainders, across.remainders, down.length, pitch
    pixels, rows = counts[0] * counts[1], np.arange(outputs)
    tables = (np.array(taps), rows * len(taps), rows * pixels, np.arange(max(pixels, len(taps))))
    return Plan(canvas, down.before, across.before, *(np.ascontiguousarray(t, np.int64) for t in tables))


@helper
def _columns(pack, x, canvas, columns, taps, top, left, high, long, wide):
    """columns[k, i] for one image"""
    size = x.itemsize
    for c in range(len(x)):
        fill(pack, x[c], canvas[c], top, left, wide)
    pitch = canvas.shape[4]
    for k in range(taps.size):
        source, to = address(canvas) + size * taps[k], address(columns) + size * k * columns.shape[1]
        for j in range((long - 1) // wide * wide, -1, -wide):  # from the right: zeros behind a line are then overwritten
            call(pack, (high, min(wide, long - j), source + size * j, size * pitch, size, to + size * j, size * long, wide))


def _forward_signature(T: Any) -> Any:
    workspaces = result(T, 6, "C"), result(T, 3, "C")
    return VOID(INT, INT, flat(T, 4), flat(T, 2), result(T, 4, "C"), *workspaces, *[TABLE] * 4, *[INT] * 5)


@kernel(_forward_signature, parallel=True)
def over_windows(tile, pack, x, w, y, canvases, columns, taps, weights, pixels, along, top, left, at_once, wide, nt):
    """y = w ⋆ x for each image and group of x (N G, C, H, W);  w: (G O, K), y: (N G, O, P, Q)"""
    size, panel = x.itemsize, wide * len(WINDOW)
    groups, inner, count = len(w) // weights.size, taps.size, y.shape[2] * y.shape[3]
    for t in numba.prange(nt):
        for z in range(t * len(x) // nt, (t + 1) * len(x) // nt):
            _columns(pack, x[z], canvases[t], columns[t], taps, top, left, y.shape[2], y.shape[3], wide)
            left_side = address(w) + size * (z % groups * weights.size * inner)
            product(
                tile, size, at_once, 1024, left_side, address(weights), weights.size, address(along), inner,
                address(columns[t]), panel, columns.shape[2], address(y) + size * z * weights.size * count, address(pixels),
                count, 0, (count + panel - 1) // panel, 0,
            )  # fmt: skip


zeros = np.zeros  # the tests put memory here that may not be left


def _workspaces(p: Plan, nt: int, pixels: int, letter: str, wide: int) -> tuple[Array, Array]:
    """Canvases, and columns with room for a vector behind each, 64 bytes from rows that the cache maps alike."""
    pitch = -(-(pixels + wide) // wide) * wide
    pitch += wide * (pitch * np.dtype(letter).itemsize % 2048 == 0)
    return zeros((nt, *p.canvas), letter), zeros((nt, len(p.taps), pitch), letter)


def conv(x: Array, w: Array, y: Array, p: Plan, groups: int, threads: int) -> Array:
    """y (N, G O, P, Q) from x (N, G C, H, W) and w (G O, C, kernel)"""
    letter, wide, units = x.dtype.char, lanes(x.itemsize), len(x) * groups
    nt, pixels = min(threads, units), y.shape[2] * y.shape[3]
    far = x.itemsize * pixels % 4096 == 0  # rows of y that the cache maps alike: few of them at a time
    over_windows[letter](
        window_tile[letter], pack[letter], x.reshape(units, -1, *x.shape[2:]), w.reshape(len(w), -1),
        y.reshape(units, -1, *y.shape[2:]), *_workspaces(p, nt, pixels, letter, wide), p.taps, p.weights, p.pixels, p.along,
        p.top, p.left, WINDOW[-1] if far else 1 << 40, wide, nt,
    )  # fmt: skip
    return y
