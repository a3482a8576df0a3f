"""The loops of convolution around the register tile: thread t's share of the work of each pass.

They take nothing but 64-bit integers (addresses, sizes, tables of element offsets), read from one array, `job`. So they
are compiled once for both element types, whose size they are told, and call the tile of the right type by its address.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.build import INT, VOID, Kernel, helper, kernel
from kernels.cpu.memory import Held
from kernels.cpu.simd import BITS, WINDOW, call, load, pack, scatter, view, window_tile

# ---------------------------------------------------------------------------------------------------------------------
# Running a loop
# ---------------------------------------------------------------------------------------------------------------------


def part(function: Any) -> Kernel:
    """A loop: function(t, threads, job)."""
    return Kernel(function, lambda T: VOID(INT, INT, INT), callback=True)


@intrinsic(prefer_literal=True)
def fields(typingctx: Any, where: Any, count: Any) -> Any:
    """The first `count` integers at an address, as a tuple."""
    kind = types.UniTuple(types.intp, count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(64)
        at = builder.inttoptr(args[0], integer.as_pointer())
        return context.make_tuple(builder, kind, [builder.load(builder.gep(at, [integer(i)])) for i in range(len(kind))])

    return kind(types.intp, count), codegen


@helper
def entry(table, i):
    """table[i], a table of integers given by its address"""
    return load(table + 8 * i, np.int64(0))


@helper
def zero(where, size):
    """Zeros over so many bytes, a multiple of 4."""
    words = view(where, size // 4, np.float32(0))
    for i in range(words.size):
        words[i] = np.float32(0)


@kernel(lambda T: VOID(INT, INT, INT), parallel=True)
def _launch(function, job, threads):
    if threads == 1:
        call(function, (0, 1, job))
    else:
        for t in numba.prange(threads):
            call(function, (np.int64(t), threads, job))


class Offsets(Held):
    """A table of integers that does not change, and where it lies; `of`: the tables whose addresses stand in it, if any."""

    __slots__ = ("of",)

    def __init__(self, table: Any, of: Any = ()) -> None:
        table = np.ascontiguousarray(table, np.int64)
        table.flags.writeable = False
        super().__init__(table.ctypes.data, table)
        self.of = of

    def __len__(self) -> int:
        return len(self.array)


def launch(loop: Kernel, threads: int, *job: Any) -> None:
    """loop(t, threads, job) for each t < threads; a job is made of integers, arrays and `Held` addresses."""
    numbers = [x.address if isinstance(x, Held) else x.ctypes.data if type(x) is np.ndarray else x for x in job]
    array = np.array(numbers, np.int64)
    _launch["f"](loop["f"], array.ctypes.data, threads)


@helper
def panel_of(item):
    """Columns of the widest tile, for elements of so many bytes."""
    return BITS // 8 // item * len(WINDOW)


# ---------------------------------------------------------------------------------------------------------------------
# The loops
# ---------------------------------------------------------------------------------------------------------------------


@helper
def product(tile, item, chunk, depth, a, ro, rows, ko, inner, b, b_panel, b_row, c, cr, columns, first, last, add):
    """C[cr[i] + j] (+)= Σ_k A[ro[i] + ko[k]] B[k, j], tile by tile, for the panels first ≤ j // panel < last of the columns.

    B[k, j] lies at (j // panel) b_panel + k b_row + j % panel. `chunk` rows of A stay in the second cache for all panels;
    a row of tiles walks down them while its panel of B, `depth` steps of k, stays in the first. Rows are dealt out
    evenly: 14 = 5 + 5 + 4, not 6 + 6 + 2.
    """
    lanes = BITS // 8 // item
    panel = lanes * len(WINDOW)
    for i0 in range(0, rows, chunk):
        at_once = min(chunk, rows - i0)
        for q in range(first, last):
            n = min(panel, columns - q * panel)
            height = WINDOW[(n + lanes - 1) // lanes - 1]
            count = (at_once + height - 1) // height
            for k in range(0, inner, depth):
                right = b + item * (q * b_panel + k * b_row)
                steps, adding = min(depth, inner - k), add | np.int64(k > 0)
                for p in range(count):
                    i = i0 + p * at_once // count
                    m = i0 + (p + 1) * at_once // count - i
                    left = (steps, a, ro + 8 * i, ko + 8 * k)
                    call(tile, (*left, right, item * b_row, c + item * q * panel, cr + 8 * i, m, n, adding))


@part
def pack_weights(t, threads, job):
    """packed[g, q, k, i] = w[…]: panel q of the vectors' channels, rows k = (tap, other channel m) in the order of the plan"""
    scatter, item, w, packed, groups, wide, wide_step, other, other_step, taps, order = fields(job, 11)
    panel = panel_of(item)
    panels = (wide + panel - 1) // panel
    for q in range(groups * panels):
        g, first = q // panels, q % panels * panel
        for m in range(t * other // threads, (t + 1) * other // threads):
            src = w + item * (g * wide * other * taps + first * wide_step + m * other_step)
            dst = packed + item * (q * taps * other + m) * panel
            call(scatter, (src, item * wide_step, dst, order, min(panel, wide - first), taps))


@part
def correlate(t, threads, job):
    """Blocks of images: into the canvas, through each phase's product, back to planes."""
    (
        tile, scatter, item, x, packed, y, images, groups, channels, x_pixels, columns, y_pixels,
        taps, block, elements, pixels, phases, phase_count, complete, planes, own, own_bytes, image_threads, column_threads,
    ) = fields(job, 24)  # fmt: skip
    if t >= image_threads * column_threads:
        return
    panel = panel_of(item)
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
            call(scatter, (src, item * x_pixels, canvas + item * (n - n0) * elements, pixels, channels, x_pixels))
        for f in range(phase_count):
            per_image, rows, depth, steps, results, row = fields(phases + 48 * f, 6)
            b_panel = taps * channels * panel
            right = packed + item * (g * panels * b_panel + row * panel)
            product(
                tile, item, 1 << 40, 1024, canvas, rows, per_image * (n1 - n0), steps, depth,
                right, b_panel, panel, result, results, columns, first, last, 0,
            )  # fmt: skip
        for n in range(n0, n1):
            src = result + item * ((n - n0) * y_pixels * columns + begin)
            dst = y + item * ((n * groups + g) * columns + begin) * y_pixels
            call(scatter, (src, item * columns, dst, planes, y_pixels, end - begin))


@part
def over_pixels(t, threads, job):
    """y[m, i] = Σ_k w[rows[m] + ks[k]] x[k, i] for each image and group, vectors over pixels i; folded up into y where asked"""
    (
        tile, fold, item, pack, x, w, y, total, groups, inner, pixels, results, w_step, rows, ks,
        places, folded, own, own_bytes, channels, kh, kw, height, width, p, q, sh, sw, ph, pw, dh, dw,
    ) = fields(job, 32)  # fmt: skip
    lanes, panel = BITS // 8 // item, panel_of(item)
    panels = (pixels + panel - 1) // panel
    shares = 1 if folded else max(1, threads // total)  # with fewer images than threads, panels are shared out
    size = height * width * channels
    b_panel = (inner + 1) * panel  # one row more: panels 4 KB apart would share few lines of the cache
    # Whole vectors of x are read where they lie, unless its rows, and those of y, lie at a distance that maps them all to the
    # same few cache lines: then a panel of results at a time would open too many, and a row of tiles is taken at a time.
    far = item * pixels % 4096 == 0
    whole, at_once, depth = (0, WINDOW[-1], 1024) if far else (panels if pixels % lanes == 0 else pixels // panel, 1 << 40, 128)
    for u in range(t * total * shares // threads, (t + 1) * total * shares // threads):
        z, share = u // shares, u % shares
        right = own + t * own_bytes
        out = right + (item * panels * b_panel + 63) // 64 * 64 if folded else y + item * z * size
        first, last = share * panels // shares, (share + 1) * panels // shares
        torn = min(max(first, whole), last)
        left = w + item * (z % groups) * w_step
        product(
            tile, item, at_once, depth, left, rows, results, ks, inner,
            x + item * z * inner * pixels, panel, pixels, out, places, pixels, first, torn, 0,
        )  # fmt: skip
        for b in range(torn, last):
            n, src = min(panel, pixels - b * panel), x + item * (z * inner * pixels + b * panel)
            to, wide = right + item * b * b_panel, (n + lanes - 1) // lanes * lanes
            call(pack, (inner, n, src, item * pixels, item, to, item * panel, wide))
        product(
            tile, item, at_once, depth, left, rows, results, ks, inner, right, b_panel, panel, out, places, pixels, torn,
            last, 0,
        )  # fmt: skip
        if folded:
            call(fold, (y + item * z * size, out, channels, kh, kw, height, width, p, q, sh, sw, ph, pw, dh, dw))


@part
def weight(t, threads, job):
    """sums[t, g, k, o] = Σ over the thread's images of x[pixel + k] y[pixel, o], k = (tap, channel)

    `straight`: one tap and no border, so that x is read where it is.
    """
    (
        tile, scatter, item, x, dy, sums, images, groups, channels, x_pixels, columns, y_pixels,
        rows, row_count, taps, block, elements, pixels, wide, places, chunk, depth, own, own_bytes, image_threads,
        column_threads, straight,
    ) = fields(job, 27)  # fmt: skip
    if t >= image_threads * column_threads:
        return
    panel = panel_of(item)
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
                call(scatter, (src, item * x_pixels, canvas + item * (n - n0) * elements, pixels, channels, x_pixels))
            for q in range(first, last):
                src = dy + item * ((n * groups + g) * columns + q * panel) * y_pixels
                dst = right + item * (q * block + n - n0) * y_pixels * panel
                call(scatter, (src, item * y_pixels, dst, wide, min(panel, columns - q * panel), y_pixels))
        product(
            tile, item, chunk, depth, left, taps, row_count, rows, (n1 - n0) * y_pixels,
            right, block * y_pixels * panel, panel, sums + item * (ti * groups + g) * row_count * columns, places,
            columns, first, last, b,
        )  # fmt: skip


@part
def collect(t, threads, job):
    """dw[g, o, c, tap] = Σ_i sums[i, g, tap, c, o];  `step`: from one tap to the next, backwards where it is negative"""
    add, scatter, item, sums, count, dw, groups, channels, columns, taps, c_step, places, step = fields(job, 13)
    for u in range(t * groups * channels // threads, (t + 1) * groups * channels // threads):
        g, c = u // channels, u % channels
        src = sums + item * (g * taps * channels + c) * columns
        for i in range(1, count):
            for k in range(taps):
                row = src + item * k * channels * columns
                call(add, (row, row + item * i * groups * taps * channels * columns, columns))
        dst = dw + item * (g * columns * channels * taps + c * c_step)
        if step < 0:
            src += item * (taps - 1) * channels * columns
        call(scatter, (src, item * step, dst, places, taps, columns))


# ---------------------------------------------------------------------------------------------------------------------
# What depends on the element type
# ---------------------------------------------------------------------------------------------------------------------


@kernel(lambda T: VOID(types.CPointer(T), types.CPointer(T), INT), callback=True)
def add(to, of, n):
    """to[i] += of[i]"""
    for i in range(n):
        to[i] += of[i]


@kernel(lambda T: VOID(types.CPointer(T), types.CPointer(T), *[INT] * 13), callback=True)
def fold(to, of, images, kh, kw, height, width, rows, columns, sh, sw, ph, pw, dh, dw):
    """to[c, s i + d t − p] = Σ of[c, t, i]"""
    for i in range(images * height * width):
        to[i] = 0
    for c in range(images):
        for th in range(kh):
            for tw in range(kw):
                plane = ((c * kh + th) * kw + tw) * rows * columns
                top, left = dh * th - ph, dw * tw - pw
                first = max(0, (sw - 1 - left) // sw)
                last = min(columns, (width - 1 - left) // sw + 1)
                for i in range(max(0, (sh - 1 - top) // sh), min(rows, (height - 1 - top) // sh + 1)):
                    source, target = plane + i * columns, (c * height + i * sh + top) * width + left
                    for j in range(first, last):
                        to[target + sw * j] += of[source + j]


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
