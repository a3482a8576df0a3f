r"""Convolutions of few input channels: C taps numbers meet each output, so few that the windows are cheaper written out.

    columns[(c, t), i] = x[c, s i + d t − p]            for one image, K = C taps rows of all pixels i, at most one panel
    y[o, i] = Σ_k w[o, k] columns[k, i]                 vectors over pixels: y is written as it lies
    w̄[o, k] = Σ_n Σ_i ȳ[o, i] columns[k, i]             vectors over pixels again: ȳ is read as it lies

What a window's row needs is copied, not computed: an image goes to a canvas in a border of zeros, parted by the stride's
remainders (as in `depthwise`), where each tap's row of pixels is one piece. Threads share the images.

In the last sum the pixels are what is summed over, so each w̄[o, k] has a vector of partial sums, and is the sum of its lanes
in the end, in float64. A tile of these vectors, 4 by 6, stays in registers while a row of pixels runs (`dots`): 24 products for
10 loads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.build import INT, TABLE, VOID, helper, kernel, result
from kernels.cpu.build import sums as in_any_order
from kernels.cpu.convolution_loops import product
from kernels.cpu.depthwise import fill, line
from kernels.cpu.rows import flat
from kernels.cpu.simd import BYTES, I64, REGISTERS, WINDOW, Vectors, address, call, lanes, pack, window_tile

Array = np.ndarray
TALL, WIDE = (4, 6) if REGISTERS == 32 else (3, 3)  # vectors of sums in registers, beside WIDE of columns and one of ȳ
SUMS = 1 << 19  # bytes of them at most: more would not stay in the second cache


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


# ---------------------------------------------------------------------------------------------------------------------
# The weights' gradient
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic
def _dots(typingctx: Any, count: Any, a: Any, a_row: Any, b: Any, b_row: Any, sums: Any, sums_row: Any, m: Any, n: Any) -> Any:
    """sums[i, j] += a[i, p] b[j, p], lane by lane, for p < count, i < m ≤ TALL, j < n ≤ WIDE;  rows of sums in vectors"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        count, a, a_row, b, b_row, sums, sums_row, m, n = args
        a, b, sums = (builder.bitcast(x, BYTES) for x in (a, b, sums))
        one, whole = vec.lanes * vec.itemsize, ir.Constant(I64, vec.lanes)
        a_row, b_row = (builder.mul(step, ir.Constant(I64, vec.itemsize)) for step in (a_row, b_row))
        sums_row = builder.mul(sums_row, ir.Constant(I64, one))
        rest = builder.srem(count, whole)
        bytes_whole = builder.mul(builder.sub(count, rest), ir.Constant(I64, vec.itemsize))
        leave, edge = builder.append_basic_block("leave"), vec.mask(rest, 0)

        def rows(base: Any, step: Any, how_many: int) -> list:
            return [vec.at(base, builder.mul(step, ir.Constant(I64, i))) for i in range(how_many)]

        def added(totals: list, lefts: list, rights: list, at: Any, mask: Any) -> list:
            columns = [vec.load(vec.at(row, at), mask) for row in rights]
            new = []
            for i, row in enumerate(lefts):
                x = vec.load(vec.at(row, at), mask)
                new += [vec.fma(x, y, totals[i * len(rights) + j]) for j, y in enumerate(columns)]
            return new

        def emit(tall: int, wide: int) -> None:
            lefts, rights = rows(a, a_row, tall), rows(b, b_row, wide)
            places = [vec.at(row, j * one) for row in rows(sums, sums_row, tall) for j in range(wide)]
            firsts = [vec.load(place) for place in places]
            before, head, body, after = builder.block, *(builder.append_basic_block(x) for x in ("head", "body", "after"))
            builder.branch(head)
            builder.position_at_end(head)
            at, totals = builder.phi(I64), [builder.phi(vec.type) for _ in places]
            builder.cbranch(builder.icmp_signed("<", at, bytes_whole), body, after)
            builder.position_at_end(body)
            news = [builder.add(at, ir.Constant(I64, one)), *added(totals, lefts, rights, at, None)]
            builder.branch(head)
            for phi, first, new in zip([at, *totals], [ir.Constant(I64, 0), *firsts], news, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(new, body)
            builder.position_at_end(after)
            for place, total in zip(places, added(totals, lefts, rights, at, edge), strict=True):
                vec.store(total, place)
            builder.branch(leave)

        switch = builder.switch(builder.add(builder.mul(m, ir.Constant(I64, WIDE + 1)), n), leave)
        for tall in range(1, TALL + 1):
            for wide in range(1, WIDE + 1):
                block = builder.append_basic_block(f"dots{tall}x{wide}")
                switch.add_case(ir.Constant(I64, tall * (WIDE + 1) + wide), block)
                builder.position_at_end(block)
                emit(tall, wide)
        builder.position_at_end(leave)
        return context.get_dummy_value()

    return types.void(count, a, a_row, b, b_row, sums, sums_row, m, n), codegen


def _dots_signature(T: Any) -> Any:
    elements = types.CPointer(T)
    return VOID(INT, elements, INT, elements, INT, elements, INT, INT, INT)


@kernel(_dots_signature, callback=True)
def dots(count, a, a_row, b, b_row, sums, sums_row, m, n):
    _dots(count, a, a_row, b, b_row, sums, sums_row, m, n)


@in_any_order
def _over_lanes(vector):
    total = 0.0
    for lane in range(np.uintp(vector.size)):
        total += vector[lane]
    return total


def _weight_signature(T: Any) -> Any:
    workspaces = result(T, 6, "C"), result(T, 3, "C"), result(T, 5, "C")
    return VOID(INT, INT, flat(T, 5), flat(T, 5), result(T, 3, "C"), *workspaces, TABLE, *[INT] * 4)


@kernel(_weight_signature, parallel=True)
def window_weights(tile, pack, x, dy, dw, canvases, columns, sums, taps, top, left, wide, nt):
    """w̄ = Σ_n ȳ ⋆ x;  x: (N, G, C, H, W), ȳ: (N, G, O, P, Q), w̄: (G, O, K), sums: (threads, G, O, K, lanes), zeros"""
    groups, outputs, inner = dw.shape
    count, pitch = dy.shape[3] * dy.shape[4], columns.shape[2]
    for t in numba.prange(nt):
        for n in range(t * len(x) // nt, (t + 1) * len(x) // nt):
            for g in range(groups):
                _columns(pack, x[n, g], canvases[t], columns[t], taps, top, left, dy.shape[3], dy.shape[4], wide)
                for o in range(0, outputs, TALL):
                    for k in range(0, inner, WIDE):
                        a, b = address(dy[n, g, o]), address(columns[t, k])
                        height, width = min(TALL, outputs - o), min(WIDE, inner - k)
                        call(tile, (count, a, count, b, pitch, address(sums[t, g, o, k]), inner, height, width))
    for g in range(groups):
        for o in range(outputs):
            for k in range(inner):
                total = 0.0
                for t in range(nt):
                    total += _over_lanes(sums[t, g, o, k])
                dw[g, o, k] = total


def pays(outputs: int, inner: int) -> bool:
    """Whether the vectors of sums stay in the second cache."""
    return 4 * lanes(4) * outputs * inner <= SUMS


def weight_grad(x: Array, dy: Array, dw: Array, p: Plan, groups: int, threads: int) -> Array:
    """w̄ (G O, C, kernel) from x (N, G C, H, W) and ȳ (N, G O, P, Q)"""
    letter, wide, inner = x.dtype.char, lanes(x.itemsize), len(p.taps)
    nt, pixels, outputs = min(threads, len(x)), dy.shape[2] * dy.shape[3], len(p.weights)
    sums = np.zeros((nt, groups, outputs, inner, wide), letter)
    window_weights[letter](
        dots[letter], pack[letter], x.reshape(len(x), groups, -1, *x.shape[2:]),
        dy.reshape(len(x), groups, outputs, *dy.shape[2:]), dw.reshape(groups, outputs, inner),
        *_workspaces(p, nt, pixels, letter, wide), sums, p.taps, p.top, p.left, wide, nt,
    )  # fmt: skip
    return dw
