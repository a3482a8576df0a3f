r"""Convolutions of single channels with stride 1, where lines of the result fill vectors: y and x̄, a plane at a time.

    y[z, i] = Σ_t x[z, i + d t − p] w[c, t]     and     x̄[z, j] = Σ_t ȳ[z, j + p − d t] w[c, t]      planes z = (n, c)

Planes need no transposition here (`depthwise.py` takes all other cases that way). A plane is copied to a canvas in a border of
zeros, small enough for the first cache. Neighbours in one line of y meet neighbours in one line of x, so a vector of y is a sum
of vectors of x, each of which begins one element further on for the next column of taps. A vector that was loaded serves all
lines of y that it meets:

    for each plane:                                                                    threads share the planes
        plane → canvas                                        lines of whole vectors, and one more
        for each strip of up to 8 lines of y, for each vector of its columns:          sums in registers: `strip`
            for each group of taps, up to three of one column:
                for each line of x under the strip:    load a vector,   add it to up to three lines of y, times three weights

Taps whose lines do not follow each other (dilation) are taken one at a time. Numbers: 8 lines take 8 registers for their sums;
with groups of 3 taps a vector that is loaded is used 2.4 times, with 4 it would be 2.9 times, for a third more code.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import jobs
from kernels.cpu.build import INT, VOID, kernel
from kernels.cpu.convolution_plans import Geometry
from kernels.cpu.jobs import Address, Offsets, integers, launch, part, portion, read, record, whole_lines, zero
from kernels.cpu.simd import BITS, BYTES, I64, Vectors, call, lanes, pack

Array = np.ndarray
HEIGHT = 8  # lines of a strip, at most
GROUP = 3  # taps of one column that are taken together

# ---------------------------------------------------------------------------------------------------------------------
# The tile
# ---------------------------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Taps of one column whose lines follow each other."""

    taps: int
    x_offset: int  # of the first of them in the canvas
    w_offset: int
    w_step: int  # elements to the next tap's weight


class _Entries:
    """A loop over the groups of taps, with some vectors carried along, and a case for each size of a group."""

    def __init__(self, vec: Vectors, table: Any, count: Any) -> None:
        self.vec, self.builder, self.table, self.count = vec, vec.builder, table, count

    def run(self, carried: list, case: Any) -> list:
        """carried ← case(g, (x_offset, w_offset, w_step), carried) for each group, of g taps"""
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
            new = case(g, (x_offset, w_offset, w_step), list(now))
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
            def case(g: int, group: tuple, sums: list) -> list:
                x_offset, w_offset, w_step = (builder.mul(elements, size) for elements in group)
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
            lines = [vec.at(y, builder.mul(y_pitch, I64(r))) for r in range(height)]
            with builder.if_else(builder.icmp_signed(">=", n, ir.Constant(I64, vec.lanes))) as (whole, torn):
                for branch, edge in ((whole, None), (torn, mask)):
                    with branch:
                        for total, line in zip(sums, lines, strict=True):
                            vec.store(total, line, edge)

        _by_height(builder, rows, emit)
        return context.get_dummy_value()

    return types.void(table, count, x, pitch, w, y, y_pitch, rows, n), codegen


def _strip_signature(element: Any) -> Any:
    elements, table = types.CPointer(element), types.CPointer(INT)
    return VOID(table, INT, elements, INT, elements, elements, INT, INT, INT)


@kernel(_strip_signature, callback=True)
def strip(table, count, x, pitch, w, y, y_pitch, rows, n):
    """See `_strip`."""
    _strip(table, count, x, pitch, w, y, y_pitch, rows, n)


# ---------------------------------------------------------------------------------------------------------------------
# The loop over planes
# ---------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A canvas and its groups of taps."""

    top: int  # lines of zeros above the plane,
    left: int  # and zeros before each line
    lines: int
    pitch: int  # elements from line to line
    groups: Address
    count: int


class Strips(NamedTuple):
    """y from x, or x̄ from ȳ."""

    strip: int
    pack: int
    item: int
    layout: Layout
    planes: int
    channels: int
    taps: int
    source: Address
    height: int
    width: int
    weights: Address
    result: Address
    rows: int
    columns: int
    memory: Address
    size: int


STRIPS = record(Strips)


@part
def correlate_planes(t, threads, where):
    """Planes into the canvas, strips of the result from there."""
    job = read(where, STRIPS)
    layout, item, rows, columns, pitch = job.layout, job.item, job.rows, job.columns, job.layout.pitch
    wide = BITS // 8 // item
    canvas = job.memory + t * job.size
    zero(canvas, item * layout.lines * pitch)
    strips, whole = (rows + HEIGHT - 1) // HEIGHT, (job.width + wide - 1) // wide * wide
    begin, end = portion(t, threads, job.planes)
    for z in range(begin, end):
        source, to = job.source + item * z * job.height * job.width, canvas + item * (layout.top * pitch + layout.left)
        call(job.pack, (job.height, job.width, source, item * job.width, item, to, item * pitch, whole))
        weights, result = job.weights + item * (z % job.channels) * job.taps, job.result + item * z * rows * columns
        for q in range(strips):
            i, last = portion(q, strips, rows)
            for j in range(0, columns, wide):
                of, y = canvas + item * (i * pitch + j), result + item * (i * columns + j)
                n = min(wide, columns - j)
                call(job.strip, (layout.groups, layout.count, of, pitch, weights, y, columns, last - i, n))


# ---------------------------------------------------------------------------------------------------------------------
# What `depthwise` calls
# ---------------------------------------------------------------------------------------------------------------------


def pays(g: Geometry, made: tuple[int, int], item: int) -> bool:
    """Whether planes of the result, of the size `made`, have lines of a vector at least."""
    return g.stride == (1, 1) and g.outputs == 1 and made[1] >= lanes(item)


def _line(source: int, made: int, k: int, p: int, d: int, forward: bool) -> tuple[list[int], int, int]:
    """One dimension: the offset of each tap, zeros ahead of a line of the source, and the length of a line of the canvas."""
    offsets = [d * t - p if forward else p - d * t for t in range(k)]
    before = max(0, -min(offsets))
    return offsets, before, before + max(source, max(offsets) + made)


def _runs(offsets: list[int]) -> list[list[int]]:
    """Taps whose offsets follow each other, at most GROUP in a run, in the order of their offsets."""
    runs: list[list[int]] = []
    for tap in sorted(range(len(offsets)), key=offsets.__getitem__):
        if runs and len(runs[-1]) < GROUP and offsets[runs[-1][-1]] + 1 == offsets[tap]:
            runs[-1].append(tap)
        else:
            runs.append([tap])
    return runs


@lru_cache(256)
def _layout(g: Geometry, forward: bool, item: int) -> Layout:
    ends = (g.size, g.counts) if forward else (g.counts, g.size)
    sides = zip(*ends, g.kernel, g.padding, g.dilation, strict=True)
    (down, top, high), (across, left, long) = (_line(*sizes, forward) for sizes in sides)
    wide, across_taps = lanes(item), g.kernel[1]
    pitch = -(-long // wide) * wide + wide  # a vector that begins at the last element stays in the line
    groups = []
    for column, offset in enumerate(across):
        for run in _runs(down):
            step = (run[1] - run[0]) * across_taps if len(run) > 1 else 0
            x_offset = (down[run[0]] + top) * pitch + offset + left
            groups += integers(Group(len(run), x_offset, run[0] * across_taps + column, step))
    return Layout(top, left, high, pitch, Offsets(np.array(groups)), len(groups) // len(Group._fields))


def correlate(x: Array, w: Array, y: Array, g: Geometry, forward: bool, threads: int) -> Array:
    """y from x, (N, C, …) both, and w (C, 1, taps): forward, or backward."""
    letter, channels, layout = x.dtype.char, len(w), _layout(g, forward, x.itemsize)
    (height, width), (rows, columns) = (g.size, g.counts) if forward else (g.counts, g.size)
    threads, own = min(threads, len(x) * channels), whole_lines(x.itemsize * layout.lines * layout.pitch)
    (memory,) = jobs.workspace(own * threads)
    job = Strips(
        strip=strip[letter],
        pack=pack[letter],
        item=x.itemsize,
        layout=layout,
        planes=len(x) * channels,
        channels=channels,
        taps=math.prod(g.kernel),
        source=x,
        height=height,
        width=width,
        weights=w,
        result=y,
        rows=rows,
        columns=columns,
        memory=memory,
        size=own,
    )
    launch(correlate_planes, threads, job)
    return y
