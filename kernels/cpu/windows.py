r"""Convolutions of few input channels: C taps elements meet each output, so few that the windows are cheaper written out.

    for each image and group:                                                             threads share these
        x → canvas                               in a border of zeros, parted by the stride's remainders
        columns[(c, t), i] = x[c, s i + d t − p]           K = C taps rows of all pixels i, K one panel at most
        y[o, i] = Σ_k w[o, k] columns[k, i]                `product`: vectors over pixels, y is written as it lies
        w̄[o, k] += Σ_i ȳ[o, i] columns[k, i]               `dots`: vectors over pixels again, ȳ is read as it lies

Memory of one thread:   canvas (C, s, s, lines, pitch)  |  columns (K, pixels and a vector)

    canvas[c, h mod s, w mod s, top + h // s, left + w // s] = x[c, h, w]

so that the row of pixels that one tap meets is one piece, which is copied, not computed. A line has a vector more than it
needs: a vector that begins at its last element stays inside.

In the last sum the pixels are what is summed over, so each w̄[o, k] has a vector of partial sums, and is the sum of its lanes
in the end, in float64. A tile of ROWS × COLUMNS of these vectors stays in registers while a row of pixels runs: of 32
registers 4 × 6 are sums, 6 hold columns and 1 holds ȳ, so that 10 loads serve 24 products.
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
from kernels.cpu.build import INT, VOID, helper, kernel, sums
from kernels.cpu.convolution_loops import ALL, DEPTH, Extent, Left, Planes, Right, Target, product
from kernels.cpu.convolution_plans import Geometry, multiples
from kernels.cpu.jobs import Address, Offsets, entry, launch, lines, part, portion, read, record, whole_lines, zero
from kernels.cpu.simd import BITS, BYTES, I64, REGISTERS, WINDOW, Vectors, call, lanes, pack, window_tile

Array = np.ndarray
ROWS, COLUMNS = (4, 6) if REGISTERS == 32 else (3, 3)  # vectors of sums in registers, beside COLUMNS vectors and one of ȳ
SUMS = 1 << 19  # bytes of them at most: more would not stay in the second cache

# ---------------------------------------------------------------------------------------------------------------------
# What depends on the element type
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic
def _dots(typingctx: Any, count: Any, a: Any, a_row: Any, b: Any, b_row: Any, sums: Any, sums_row: Any, m: Any, n: Any) -> Any:
    """sums[i, j] += a[i, p] b[j, p], lane by lane, for p < count, i < m ≤ ROWS, j < n ≤ COLUMNS;  rows of sums in vectors"""

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

        switch = builder.switch(builder.add(builder.mul(m, ir.Constant(I64, COLUMNS + 1)), n), leave)
        for tall in range(1, ROWS + 1):
            for wide in range(1, COLUMNS + 1):
                block = builder.append_basic_block(f"dots{tall}x{wide}")
                switch.add_case(ir.Constant(I64, tall * (COLUMNS + 1) + wide), block)
                builder.position_at_end(block)
                emit(tall, wide)
        builder.position_at_end(leave)
        return context.get_dummy_value()

    return types.void(count, a, a_row, b, b_row, sums, sums_row, m, n), codegen


def _dots_signature(element: Any) -> Any:
    elements = types.CPointer(element)
    return VOID(INT, elements, INT, elements, INT, elements, INT, INT, INT)


@kernel(_dots_signature, callback=True)
def dots(count, a, a_row, b, b_row, sums, sums_row, m, n):
    """See `_dots`."""
    _dots(count, a, a_row, b, b_row, sums, sums_row, m, n)


class Totals(NamedTuple):
    """The sums of the threads, each of so many vectors."""

    threads: int
    vectors: int
    lanes: int


TOTALS = record(Totals)


@sums
def _over_lanes(of, first, wide):
    total = 0.0
    for lane in range(np.uintp(wide)):
        total += of[np.uintp(first) + lane]
    return total


@kernel(lambda element: VOID(types.CPointer(element), types.CPointer(element), INT), callback=True)
def total(to, of, where):
    """to[k] = Σ_{thread, lane} of[thread, k, lane]"""
    sizes = read(where, TOTALS)
    for k in range(sizes.vectors):
        whole = 0.0
        for t in range(sizes.threads):
            whole += _over_lanes(of, (t * sizes.vectors + k) * sizes.lanes, sizes.lanes)
        to[k] = whole


class Tools(NamedTuple):
    """The functions of one element type by their addresses, and the size of an element."""

    tile: int
    pack: int
    dots: int
    total: int
    item: int


@lru_cache
def tools(letter: str) -> Tools:
    return Tools(*(f[letter] for f in (window_tile, pack, dots, total)), np.dtype(letter).itemsize)


# ---------------------------------------------------------------------------------------------------------------------
# The loops
# ---------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """An image, its canvas and its columns."""

    channels: int
    height: int
    width: int
    rows: int  # of the pixels of y,
    columns: int  # and columns
    stride_h: int
    stride_w: int
    top: int  # lines of zeros above the image in each part of the canvas,
    left: int  # and zeros before each line
    lines: int  # of a part of the canvas
    pitch: int  # elements from line to line
    taps: Address  # for each (channel, tap), offset of its first pixel in the canvas
    inner: int  # how many these are
    between: int  # elements from one row of the columns to the next


class Windows(NamedTuple):
    """y from x, or w̄ from x and ȳ."""

    tools: Tools
    layout: Layout
    images: int
    groups: int
    source: Address
    weights: Address  # w; of no use for w̄
    result: Planes  # y or ȳ
    weight_rows: Address  # offset of each row of w (O, K)
    planes: Address  # offset of each row of y (O, pixels)
    along: Address  # 0, 1, 2, …
    chunk: int  # rows of y at a time
    sums: Address  # (threads, groups, O, K) vectors; of no use for y
    memory: Address
    size: int


WINDOWS = record(Windows)


@helper
def write_columns(tools, layout, source, canvas, columns):
    """columns[k, i] for one image"""
    item, height, width, pitch = tools.item, layout.height, layout.width, layout.pitch
    wide = BITS // 8 // item
    step_h, step_w = layout.stride_h, layout.stride_w
    for c in range(layout.channels):
        for a in range(step_h):
            for b in range(step_w):
                of = source + item * ((c * height + a) * width + b)
                plane = ((c * step_h + a) * step_w + b) * layout.lines + layout.top
                high, long = (height - a + step_h - 1) // step_h, (width - b + step_w - 1) // step_w
                whole = (long + wide - 1) // wide * wide if step_w == 1 else long
                to = canvas + item * (plane * pitch + layout.left)
                call(tools.pack, (high, long, of, item * step_h * width, item * step_w, to, item * pitch, whole))
    rows, long = layout.rows, layout.columns
    for k in range(layout.inner):
        of, to = canvas + item * entry(layout.taps, k), columns + item * k * layout.between
        for j in range((long - 1) // wide * wide, -1, -wide):  # from the right: zeros behind a line are then overwritten
            call(
                tools.pack,
                (rows, min(wide, long - j), of + item * j, item * pitch, item, to + item * j, item * long, wide),
            )


@helper
def pieces(t, job):
    """Canvas and columns of thread t, the canvas full of zeros."""
    item, layout = job.tools.item, job.layout
    canvas = job.memory + t * job.size
    size = item * layout.channels * layout.stride_h * layout.stride_w * layout.lines * layout.pitch
    zero(canvas, size)
    return canvas, canvas + lines(size)


@part
def over_windows(t, threads, where):
    """y = w ⋆ x for each image and group of x (N G, C, H, W);  w: (G O, K), y: (N G, O, P, Q)"""
    job = read(where, WINDOWS)
    tools, layout, result = job.tools, job.layout, job.result
    item, outputs, pixels = tools.item, result.channels, result.pixels
    panel = BITS // 8 // item * len(WINDOW)
    canvas, columns = pieces(t, job)
    extent = Extent(outputs, layout.inner, pixels, job.chunk, DEPTH)
    begin, end = portion(t, threads, job.images * job.groups)
    for z in range(begin, end):
        source = job.source + item * z * layout.channels * layout.height * layout.width
        write_columns(tools, layout, source, canvas, columns)
        a = Left(job.weights + item * (z % job.groups * outputs * layout.inner), job.weight_rows, job.along)
        c = Target(result.start + item * z * outputs * pixels, job.planes)
        product(tools, extent, a, Right(columns, panel, layout.between), c, (0, (pixels + panel - 1) // panel), 0)


@part
def window_weights(t, threads, where):
    """sums[t, g, o, k] += ȳ[n, g, o] ⊙ columns[k] for the thread's images n, lane by lane"""
    job = read(where, WINDOWS)
    tools, layout, grads = job.tools, job.layout, job.result
    item, outputs, pixels, inner, between = tools.item, grads.channels, grads.pixels, layout.inner, layout.between
    vector = BITS // 8
    canvas, columns = pieces(t, job)
    begin, end = portion(t, threads, job.images)
    for n in range(begin, end):
        for g in range(job.groups):
            z = n * job.groups + g
            source = job.source + item * z * layout.channels * layout.height * layout.width
            write_columns(tools, layout, source, canvas, columns)
            for o in range(0, outputs, ROWS):
                for k in range(0, inner, COLUMNS):
                    a, b = grads.start + item * (z * outputs + o) * pixels, columns + item * k * between
                    to = job.sums + vector * (((t * job.groups + g) * outputs + o) * inner + k)
                    height, width = min(ROWS, outputs - o), min(COLUMNS, inner - k)
                    call(tools.dots, (pixels, a, pixels, b, between, to, inner, height, width))


class Totalling(NamedTuple):
    """w̄ from the sums of all threads."""

    tools: Tools
    totals: Totals
    sums: Address
    to: Address


TOTALLING = record(Totalling)
TOTALS_OFFSET = TOTALLING.fields["totals"][1]


@part
def add_up(t, threads, where):
    """w̄ = Σ over threads and lanes, by one thread"""
    job = read(where, TOTALLING)
    call(job.tools.total, (job.to, job.sums, where + TOTALS_OFFSET))


# ---------------------------------------------------------------------------------------------------------------------
# What `convolution` calls
# ---------------------------------------------------------------------------------------------------------------------


def pays(outputs: int, inner: int) -> bool:
    """Whether the vectors of sums stay in the second cache."""
    return 4 * lanes(4) * outputs * inner <= SUMS


def _line(n: int, count: int, k: int, s: int, p: int, d: int) -> tuple[list[tuple[int, int]], int, int]:
    """One dimension: (remainder, offset) of each tap, zeros ahead of a line, and its length: x_{s (i + offset) + remainder}."""
    taps = [((d * t - p) % s, (d * t - p) // s) for t in range(k)]
    before = max(0, *(-offset for _, offset in taps))
    return taps, before, before + max(-(-n // s), *(offset + count for _, offset in taps))


@lru_cache(256)
def _layout(g: Geometry, item: int) -> tuple[Layout, int]:
    """The layout of a geometry, and the bytes of a thread's workspace."""
    sides = zip(g.size, g.counts, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    (down, top, high), (across, left, long) = (_line(*sizes) for sizes in sides)
    (step_h, step_w), wide, pixels = g.stride, lanes(item), math.prod(g.counts)
    pitch = long + wide  # a vector that begins at the last element stays in the line
    taps = [
        (((c * step_h + rest_h) * step_w + rest_w) * high + offset_h + top) * pitch + offset_w + left
        for c in range(g.channels)
        for rest_h, offset_h in down
        for rest_w, offset_w in across
    ]
    between = -(-(pixels + wide) // wide) * wide  # a vector behind each row,
    between += wide * (between * item % 2048 == 0)  # and 64 bytes between rows that the cache maps alike
    sizes = g.channels, *g.size, *g.counts, *g.stride, top, left, high, pitch
    layout = Layout(*sizes, Offsets(np.array(taps)), len(taps), between)
    canvas = item * g.channels * step_h * step_w * high * pitch
    return layout, whole_lines(canvas) + whole_lines(item * len(taps) * between)


def _job(x: Array, w: Any, y: Array, g: Geometry, groups: int, sums: Any, threads: int) -> Windows:
    layout, own = _layout(g, x.itemsize)
    pixels = math.prod(g.counts)
    far = x.itemsize * pixels % 4096 == 0  # rows of y that the cache maps alike: few of them at a time
    (memory,) = jobs.workspace(own * threads)
    return Windows(
        tools=tools(x.dtype.char),
        layout=layout,
        images=len(x),
        groups=groups,
        source=x,
        weights=w,
        result=Planes(y, g.outputs, pixels),
        weight_rows=multiples(g.outputs, layout.inner),
        planes=multiples(g.outputs, pixels),
        along=multiples(max(pixels, layout.inner), 1),
        chunk=WINDOW[-1] if far else ALL,
        sums=sums,
        memory=memory,
        size=own,
    )


def conv(x: Array, w: Array, y: Array, g: Geometry, groups: int, threads: int) -> Array:
    """y (N, G O, P, Q) from x (N, G C, H, W) and w (G O, C, kernel)"""
    threads = min(threads, len(x) * groups)
    launch(over_windows, threads, _job(x, w, y, g, groups, 0, threads))
    return y


def weight_grad(x: Array, dy: Array, dw: Array, g: Geometry, groups: int, threads: int) -> Array:
    """w̄ (G O, C, kernel) from x (N, G C, H, W) and ȳ (N, G O, P, Q)"""
    threads = min(threads, len(x))
    sums = np.zeros((threads, dw.size, lanes(x.itemsize)), x.dtype)
    job = _job(x, 0, dy, g, groups, sums, threads)
    launch(window_weights, threads, job)
    launch(add_up, 1, Totalling(job.tools, Totals(*sums.shape), sums, dw))
    return dw
