r"""Convolutions of single channels: each output plane is made from one input plane, by few products for each element.

    y[n, c m + k, i] = Σ_t x[n, c, s i + d t − p] w[c m + k, t],   k < m,     and the gradients of x and of w

There is no sum over channels, so no matrix product to be had: what binds is how often a number is loaded. A plane is copied
to a *canvas* in a border of zeros, small enough for the first cache. There, neighbours in one row of y meet neighbours in one
row of x, so a vector of y is a sum of vectors of x, each beginning one element further on for the next column of taps. A
vector that was loaded serves all rows of y that it meets:

    for taps, up to three of one column at a time:          (`strip`: up to 8 rows of y by one vector, in registers)
        for each row of x under the strip:    load a vector,    add it to up to three rows of y, times three weights

With a stride, rows and columns of x are parted by their remainders, and each part is met like that by its own taps; the
gradient of x is made the same way from ȳ, part by part. Taps whose rows do not follow each other (dilation) are taken one at
a time. The weights' gradient is the same loop with the sums over the strip instead (`strip_sums`), added in float64 every few
images.

The table says, for each group of taps: how many, where in the canvas their first vector begins, the place of the first
weight, and the step to the next. Threads share the planes, or, for the weights' gradient, the channels.
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
from kernels.cpu.rows import flat
from kernels.cpu.simd import BYTES, I64, Vectors, address, call, lanes, pack

Array = np.ndarray
HEIGHT = 8  # rows of a strip, at most
GROUP = 3  # taps of one column that are taken together
FLUSH = 8  # images after which the sums of a weight's gradient go to float64

# ---------------------------------------------------------------------------------------------------------------------
# The tiles
# ---------------------------------------------------------------------------------------------------------------------


class _Entries:
    """A loop over the table of taps, with some vectors carried along, and a case for each size of a group."""

    def __init__(self, vec: Vectors, table: Any, count: Any) -> None:
        self.vec, self.builder, self.table, self.count = vec, vec.builder, table, count

    def run(self, carried: list, case: Any) -> list:
        """carried ← case(g, where the numbers of the group stand, its index, carried) for each group"""
        builder, zero = self.builder, ir.Constant(I64, 0)
        before, head, merge, after = builder.block, *(builder.append_basic_block(n) for n in ("group", "next", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        now = [builder.phi(self.vec.type) for _ in carried]
        where = self.vec.at(self.table, builder.mul(index, ir.Constant(I64, 32)))
        taps, x_offset, w_offset, w_step = (
            builder.load(builder.bitcast(self.vec.at(where, 8 * i), I64.as_pointer())) for i in range(4)
        )
        blocks = [builder.append_basic_block(f"taps{g}") for g in range(1, GROUP + 1)]
        switch = builder.switch(taps, blocks[0])
        results = []
        for g, block in enumerate(blocks, start=1):
            if g > 1:
                switch.add_case(ir.Constant(I64, g), block)
            builder.position_at_end(block)
            new = case(g, (x_offset, w_offset, w_step), index, list(now))
            results.append((builder.block, new))
            builder.branch(merge)
        builder.position_at_end(merge)
        merged = [builder.phi(self.vec.type) for _ in carried]
        for block, new in results:
            for phi, x in zip(merged, new, strict=True):
                phi.add_incoming(x, block)
        following = builder.add(index, ir.Constant(I64, 1))
        builder.cbranch(builder.icmp_signed("<", following, self.count), head, after)
        for phi, first, x in zip([index, *now], [zero, *carried], [following, *merged], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(x, merge)
        builder.position_at_end(after)
        return merged


def _by_height(builder: Any, rows: Any, emit: Any) -> None:
    leave = builder.append_basic_block("leave")
    switch = builder.switch(rows, leave)
    for height in range(1, HEIGHT + 1):
        block = builder.append_basic_block(f"height{height}")
        switch.add_case(ir.Constant(I64, height), block)
        builder.position_at_end(block)
        emit(height)
        builder.branch(leave)
    builder.position_at_end(leave)


@intrinsic
def _strip(typingctx: Any, table: Any, count: Any, x: Any, pitch: Any, w: Any, y: Any, y_pitch: Any, rows: Any, n: Any) -> Any:
    """y[r, :n] = Σ over the table's taps of w x[r + …, …:] for r < rows, at most HEIGHT; n is at most a vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[2].dtype))
        table, count, x, pitch, w, y, y_pitch, rows, n = args
        table, x, w, y = (builder.bitcast(a, BYTES) for a in (table, x, w, y))
        size = ir.Constant(I64, vec.itemsize)
        pitch, y_pitch = builder.mul(pitch, size), builder.mul(y_pitch, size)
        mask = vec.mask(n, 0)

        def emit(height: int) -> None:
            def case(g: int, numbers: tuple, index: Any, sums: list) -> list:
                x_offset, w_offset, w_step = (builder.mul(number, size) for number in numbers)
                row, weight = vec.at(x, x_offset), vec.at(w, w_offset)
                weights = []
                for _ in range(g):
                    weights.append(vec.broadcast(weight))
                    weight = vec.at(weight, w_step)
                for r in range(height + g - 1):
                    loaded = vec.load(row)
                    for k in range(g):
                        if 0 <= r - k < height:
                            sums[r - k] = vec.fma(weights[k], loaded, sums[r - k])
                    row = vec.at(row, pitch)
                return sums

            sums = _Entries(vec, table, count).run([vec.zero] * height, case)
            places = [y]
            for _ in range(height - 1):
                places.append(vec.at(places[-1], y_pitch))
            with builder.if_else(builder.icmp_signed(">=", n, ir.Constant(I64, vec.lanes))) as (whole, torn):
                for branch, edge in ((whole, None), (torn, mask)):
                    with branch:
                        for total, where in zip(sums, places, strict=True):
                            vec.store(total, where, edge)

        _by_height(builder, rows, emit)
        return context.get_dummy_value()

    return types.void(table, count, x, pitch, w, y, y_pitch, rows, n), codegen


@intrinsic
def _strip_sums(
    typingctx: Any, table: Any, count: Any, x: Any, pitch: Any, dy: Any, dy_pitch: Any, sums: Any, rows: Any, n: Any
) -> Any:
    """sums[group, k] += Σ_r dy[r, :n] x[r + k + …, …:], a vector for each tap of each group of the table"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[2].dtype))
        table, count, x, pitch, dy, dy_pitch, sums, rows, n = args
        table, x, dy, sums = (builder.bitcast(a, BYTES) for a in (table, x, dy, sums))
        size = ir.Constant(I64, vec.itemsize)
        pitch, dy_pitch = builder.mul(pitch, size), builder.mul(dy_pitch, size)
        mask = vec.mask(n, 0)  # of x as well: what lies beyond n may be infinite, and times 0 be NaN

        def emit(height: int) -> None:
            places = [dy]
            for _ in range(height - 1):
                places.append(vec.at(places[-1], dy_pitch))
            grads = [vec.load(where, mask) for where in places]

            def case(g: int, numbers: tuple, index: Any, carried: list) -> list:
                row = vec.at(x, builder.mul(numbers[0], size))
                first = vec.at(sums, builder.mul(index, ir.Constant(I64, GROUP * vec.lanes * vec.itemsize)))
                where = [vec.at(first, k * vec.lanes * vec.itemsize) for k in range(g)]
                totals = [vec.load(a) for a in where]
                for r in range(height + g - 1):
                    loaded = vec.load(row, mask)
                    for k in range(g):
                        if 0 <= r - k < height:
                            totals[k] = vec.fma(grads[r - k], loaded, totals[k])
                    row = vec.at(row, pitch)
                for total, a in zip(totals, where, strict=True):
                    vec.store(total, a)
                return carried

            _Entries(vec, table, count).run([], case)

        _by_height(builder, rows, emit)
        return context.get_dummy_value()

    return types.void(table, count, x, pitch, dy, dy_pitch, sums, rows, n), codegen


def _tile_signature(T: Any) -> Any:
    elements, table = types.CPointer(T), types.CPointer(INT)
    return VOID(table, INT, elements, INT, elements, elements, INT, INT, INT)


@kernel(_tile_signature, callback=True)
def strip(table, count, x, pitch, w, y, y_pitch, rows, n):
    _strip(table, count, x, pitch, w, y, y_pitch, rows, n)


def _sums_signature(T: Any) -> Any:
    elements, table = types.CPointer(T), types.CPointer(INT)
    return VOID(table, INT, elements, INT, elements, INT, elements, INT, INT)


@kernel(_sums_signature, callback=True)
def strip_sums(table, count, x, pitch, dy, dy_pitch, sums, rows, n):
    _strip_sums(table, count, x, pitch, dy, dy_pitch, sums, rows, n)


# ---------------------------------------------------------------------------------------------------------------------
# The loops over planes
# ---------------------------------------------------------------------------------------------------------------------


@helper
def fill(pack, x, canvas, top, left, wide):
    """canvas[h % s, w % s, h // s + top, w // s + left] = x[h, w], s: the canvas's first two lengths"""
    step_h, step_w, _, pitch = canvas.shape
    size, (height, width) = x.itemsize, x.shape
    for a in range(step_h):
        for b in range(step_w):
            part = canvas[a, b, top:, left:]
            rows, columns = (height - a + step_h - 1) // step_h, (width - b + step_w - 1) // step_w
            if step_w == 1:  # in whole vectors: each line of a canvas has room for one more
                whole = (columns + wide - 1) // wide * wide
                source = address(x) + size * a * width, size * step_h * width, size
                call(pack, (rows, columns, source[0], source[1], source[2], address(part), size * pitch, whole))
            else:
                for i in range(np.uintp(rows)):
                    for j in range(np.uintp(columns)):
                        part[i, j] = x[np.uintp(a) + i * np.uintp(step_h), np.uintp(b) + j * np.uintp(step_w)]


def _correlate_signature(T: Any) -> Any:
    canvas, phases = result(T, 6, "C"), numba.types.Array(INT, 2, "C", readonly=True)
    arrays = flat(T, 4), flat(T, 2), result(T, 4, "C"), canvas, result(T, 3, "C"), phases, TABLE
    return VOID(INT, INT, *arrays, INT, INT, INT, INT)


@kernel(_correlate_signature, parallel=True)
def correlate_planes(tile, pack, x, w, y, canvases, parts, phases, table, top, left, wide, nt):
    """y[unit, k] from the planes x[unit, :], whose channel is unit mod (rows of w / planes of y).

    canvases: (threads, planes of x, s, s, rows, columns). A row of `phases`: first row and column of y, steps to the next, rows
    and columns, first group of the table, groups. Where y is made in parts, `parts` holds one of them for each thread.
    """
    size = x.itemsize
    channels = len(w) // y.shape[1]
    for t in numba.prange(nt):
        canvas, part = canvases[t], parts[t]
        pitch = canvas.shape[4]
        for u in range(t * len(x) // nt, (t + 1) * len(x) // nt):
            for m in range(x.shape[1]):
                fill(pack, x[u, m], canvas[m], top, left, wide)
            for k in range(y.shape[1]):
                weights = address(w) + size * (u % channels * y.shape[1] + k) * w.shape[1]
                for f in range(len(phases)):
                    i0, j0, step_i, step_j, rows, columns, first, groups = phases[f]
                    direct = step_i == 1 and step_j == 1
                    out, y_pitch = (address(y[u, k]), y.shape[3]) if direct else (address(part), part.shape[1])
                    if groups:
                        strips = (rows + HEIGHT - 1) // HEIGHT
                        for q in range(strips):
                            i, height = q * rows // strips, (q + 1) * rows // strips - q * rows // strips
                            for j in range(0, columns, wide):
                                at = address(canvas) + size * (i * pitch + j), weights, out + size * (i * y_pitch + j)
                                call(
                                    tile,
                                    (
                                        address(table) + 32 * first, groups, at[0], pitch, at[1], at[2], y_pitch, height,
                                        min(wide, columns - j),
                                    ),
                                )  # fmt: skip
                    if not direct:
                        for i in range(rows):
                            for j in range(columns):
                                y[u, k, i0 + i * step_i, j0 + j * step_j] = part[i, j] if groups else x.dtype.type(0)


def _weight_signature(T: Any) -> Any:
    canvas, sums = result(T, 6, "C"), result(T, 4, "C")
    arrays = flat(T, 4), flat(T, 5), result(T, 3, "C"), canvas, sums, result(numba.float64, 3, "C"), TABLE
    return VOID(INT, INT, *arrays, INT, INT, INT)


@kernel(_weight_signature, parallel=True)
def weight_planes(tile, pack, x, dy, dw, canvases, sums, totals, table, top, left, nt):
    """dw[c, k, tap] = Σ_n x[n, c] ⋆ dy[n, c, k];  sums: (threads, m, groups · GROUP, lanes), totals the same without lanes"""
    size, wide = x.itemsize, sums.shape[3]
    groups = table.size // 4
    for t in numba.prange(nt):
        canvas = canvases[t, 0]
        pitch = canvas.shape[3]
        for c in range(t * x.shape[1] // nt, (t + 1) * x.shape[1] // nt):
            totals[t, :] = 0
            sums[t, :] = 0
            for n in range(len(x)):
                fill(pack, x[n, c], canvas, top, left, wide)
                for k in range(dy.shape[2]):
                    grad = dy[n, c, k]
                    rows, strips = grad.shape[0], (grad.shape[0] + HEIGHT - 1) // HEIGHT
                    for q in range(strips):
                        i, height = q * rows // strips, (q + 1) * rows // strips - q * rows // strips
                        for j in range(0, grad.shape[1], wide):
                            places = address(canvas) + size * (i * pitch + j), address(grad) + size * (i * grad.shape[1] + j)
                            call(
                                tile,
                                (
                                    address(table), groups, places[0], pitch, places[1], grad.shape[1], address(sums[t, k]),
                                    height, min(wide, grad.shape[1] - j),
                                ),
                            )  # fmt: skip
                if n % FLUSH == FLUSH - 1 or n == len(x) - 1:
                    for k in range(dy.shape[2]):
                        for e in range(sums.shape[2]):
                            for v in range(wide):
                                totals[t, k, e] += sums[t, k, e, v]
                                sums[t, k, e, v] = 0
            for k in range(dy.shape[2]):
                for e in range(groups):
                    for tap in range(table[4 * e]):
                        dw[c, k, table[4 * e + 2] + tap * table[4 * e + 3]] = totals[t, k, GROUP * e + tap]


# ---------------------------------------------------------------------------------------------------------------------
# Geometry
# ---------------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One dimension: of each part of the result, its first place, step, length, and taps (tap, remainder, offset).

    `before`: zeros ahead of a line of the source; `length`: of a canvas's line, without what the last vector reaches beyond.
    """

    parts: list[tuple[int, int, int, list[tuple[int, int, int]]]]
    remainders: int
    before: int
    length: int


def line(source: int, made: int, k: int, s: int, p: int, d: int, forward: bool) -> Line:
    """Forward: y_i = Σ_t x_{s i + d t − p}.  Backward: x_j = Σ_t y_i over s i + d t − p = j."""
    if forward:
        parts = [(0, 1, made, [(t, (d * t - p) % s, (d * t - p) // s) for t in range(k)])]
    else:
        parts = []
        for a in range(min(s, made)):
            taps = [(t, 0, (a + p - d * t) // s) for t in range(k) if (a + p - d * t) % s == 0]
            parts.append((a, s, (made - a + s - 1) // s, taps))
    offsets = [(offset, length) for _, _, length, taps in parts for _, _, offset in taps]
    before = max([0] + [-offset for offset, _ in offsets])
    remainders = s if forward else 1
    reach = max([-(-source // remainders)] + [offset + length for offset, length in offsets])
    return Line(parts, remainders, before, before + reach)


class Plan(NamedTuple):
    """A canvas's shape (planes, s, s, rows, columns), zeros ahead of its rows and columns, and the tables."""

    canvas: tuple[int, ...]
    top: int
    left: int
    phases: Array
    table: Array
    part: tuple[int, int]


@lru_cache(256)
def plan(
    size: Any, counts: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, multiple: int, item: int, forward: bool
) -> Plan:
    """For a kernel of whole planes: forward from x to y, backward from `multiple` planes of y to x."""
    wide = lanes(item)
    ends = (size, counts) if forward else (counts, size)
    down, across = (line(*numbers, forward) for numbers in zip(*ends, kernel, stride, padding, dilation, strict=True))
    pitch = -(-across.length // wide) * wide + wide  # a vector that begins at the last element stays in the line
    rows = down.length
    plane, planes = rows * pitch, 1 if forward else multiple
    phases, table = [], []
    for i0, step_i, tall, taps_h in down.parts:
        for j0, step_j, long, taps_w in across.parts:
            first = len(table)
            for m in range(planes):
                for tap_w, rest_w, offset_w in taps_w:
                    for run in _runs(taps_h):
                        tap_h, rest_h, offset_h = run[0]
                        part = (m * down.remainders + rest_h) * across.remainders + rest_w
                        x_offset = part * plane + (offset_h + down.before) * pitch + offset_w + across.before
                        step = (run[1][0] - tap_h) * kernel[1] if len(run) > 1 else 0
                        table.append((len(run), x_offset, (m * kernel[0] + tap_h) * kernel[1] + tap_w, step))
            phases.append((i0, j0, step_i, step_j, tall, long, first, len(table) - first))
    canvas = planes, down.remainders, across.remainders, rows, pitch
    largest = max(phase[4] for phase in phases), max(phase[5] for phase in phases)
    part = (1, 1) if forward or tuple(stride) == (1, 1) else (largest[0], largest[1])
    flat_table = np.array(table, np.int64).reshape(-1)
    return Plan(canvas, down.before, across.before, np.array(phases, np.int64), flat_table, part)


def _runs(taps: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Taps of one remainder whose offsets follow each other, at most GROUP in a run, their numbers in equal steps."""
    runs: list[list[tuple[int, int, int]]] = []
    for tap in sorted(taps, key=lambda tap: (tap[1], tap[2])):
        run = runs[-1] if runs else []
        follows = bool(run) and len(run) < GROUP and run[-1][1] == tap[1] and run[-1][2] + 1 == tap[2]
        if follows and len(run) > 1:
            follows = run[1][0] - run[0][0] == tap[0] - run[-1][0]
        if follows:
            run.append(tap)
        else:
            runs.append([tap])
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# What `convolution` calls: arrays of planes, contiguous
# ---------------------------------------------------------------------------------------------------------------------


zeros = np.zeros  # the tests put memory here that may not be left


def correlate(x: Array, w: Array, y: Array, p: Plan, channels: int, threads: int) -> Array:
    """y from x by a plan: forward (N, C, H, W), (C m, taps) → (N, C m, P, Q), or backward."""
    letter, (rows, columns) = x.dtype.char, y.shape[2:]
    nt = min(threads, len(x) * channels)
    units = len(x) * channels
    planes = (units, x.shape[1] // channels, *x.shape[2:]), (units, y.shape[1] // channels, rows, columns)
    canvases, parts = zeros((nt, *p.canvas), letter), np.empty((nt, *p.part), letter)
    weights = w.reshape(channels * planes[1][1], -1)
    correlate_planes[letter](
        strip[letter], pack[letter], x.reshape(planes[0]), weights, y.reshape(planes[1]), canvases, parts, p.phases, p.table,
        p.top, p.left, lanes(x.itemsize), nt,
    )  # fmt: skip
    return y


def weight_grad(x: Array, dy: Array, dw: Array, p: Plan, threads: int) -> Array:
    """dw (C m, 1, kernel) from x (N, C, H, W) and dy (N, C m, P, Q)"""
    letter, channels = x.dtype.char, x.shape[1]
    multiple, nt, groups = dy.shape[1] // channels, min(threads, x.shape[1]), p.table.size // 4
    canvases, wide = zeros((nt, *p.canvas), letter), lanes(x.itemsize)
    sums, totals = np.empty((nt, multiple, groups * GROUP, wide), letter), np.empty((nt, multiple, groups * GROUP))
    grads = dy.reshape(len(x), channels, multiple, *dy.shape[2:])
    weight_planes[letter](
        strip_sums[letter], pack[letter], x, grads, dw.reshape(channels, multiple, -1), canvases, sums, totals, p.table, p.top,
        p.left, nt,
    )  # fmt: skip
    return dw
