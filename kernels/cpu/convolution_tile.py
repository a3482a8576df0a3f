"""The inner loops of convolution as LLVM vectors: a register tile, a transposition, and the sums around them.

Everything here works on addresses and element offsets, and takes nothing but 64-bit integers. So the loops around these
functions (`convolution.py`, `winograd.py`) are compiled once for both dtypes and every vector width: they get the
address of the tile that fits, and only the tiles are compiled again.

    tile        C[cr[i] + j] (+)= Σ_k A[ro[i] + ko[k]] B[k, j]       i < m rows, j < n columns, vectors over j
    transpose   dst[tab[j] + i] = src[i, j]
    panels      dst[j // panel, k, j % panel] = src[k, j]
    add         dst[i] += src[i]
    fold        dst[c, s i + d t − p] += src[c, t, i]

`ro`, `ko`, `cr`, `tab` are tables of offsets, so A may be an image seen through the windows of a convolution: no copy
of it with every pixel repeated for every tap is ever made. The last vector of a row is masked: no element outside of
what a caller names is read or written.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

I64, I32, I1 = ir.IntType(64), ir.IntType(32), ir.IntType(1)


# ---------------------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache
def _widest() -> int:
    has = llvm.get_host_cpu_features().get
    return 64 if has("avx512f") and has("avx512vl") else 32 if has("avx2") and has("fma") else 16


def host_width() -> int:
    """Bytes in a vector: 64 with AVX-512, 32 with AVX2, else 16 (NEON, SSE; LLVM splits it up where there is neither)."""
    return min(_widest(), int(os.environ.get("SCRATCHGEN_SIMD") or 512) // 8)


def tile_heights(width: int) -> tuple[int, ...]:
    """Rows of the tile for 1, 2, … vectors a row: what 32 or 16 registers hold beside one row of B and one element of A."""
    return (14, 8, 8, 6) if width == 64 or platform.machine() in ("aarch64", "arm64") else (8, 6)


# ---------------------------------------------------------------------------------------------------------------------
# Calling and reading by address
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic
def call(typing, address, arguments):
    """function(*arguments), the function given by its address"""

    def generate(context, bd, sig, args):
        values = cgutils.unpack_tuple(bd, args[1])
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        bd.call(bd.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, len(arguments))), generate


@intrinsic(prefer_literal=True)
def fields(typing, address, count):
    """the first `count` integers at the address, as a tuple"""
    kind = types.UniTuple(types.int64, count.literal_value)

    def generate(context, bd, sig, args):
        at = bd.inttoptr(args[0], I64.as_pointer())
        return context.make_tuple(bd, kind, [bd.load(bd.gep(at, [I64(i)])) for i in range(count.literal_value)])

    return kind(types.int64, count), generate


@intrinsic(prefer_literal=True)
def floats(typing, bits, address):
    """the address as a pointer to float32 or float64"""
    kind = types.CPointer(types.float32 if bits.literal_value == 32 else types.float64)
    return kind(bits, types.int64), lambda context, bd, sig, args: bd.inttoptr(args[1], context.get_value_type(kind))


@intrinsic
def entry(typing, table, i):
    """table[i], a table of integers given by its address"""
    return types.int64(types.int64, types.int64), lambda context, bd, sig, args: _table(bd, args[0])(args[1])


@njit(cache=True)
def zero(address, size):
    """Writes zeros over `size` bytes, a multiple of 4."""
    words = floats(32, address)
    for i in range(size // 4):
        words[i] = np.float32(0)


@njit(cache=True)
def product(
    tile, item, lanes, panel, heights, chunk, depth, a, ro, rows, ko, inner, b, b_panel, b_row, c, cr, columns, first, last, add
):
    """C[cr[i] + j] (+)= Σ_k A[ro[i] + ko[k]] B[k, j], tile by tile, for the panels first ≤ j // panel < last of the columns.

    B[k, j] lies at (j // panel) b_panel + k b_row + j % panel. `chunk` rows of A stay in the second cache for all panels;
    a row of tiles walks down them while its panel of B, `depth` steps of k, stays in the first. Rows are dealt out
    evenly: 14 = 5 + 5 + 4, not 6 + 6 + 2.
    """
    for i0 in range(0, rows, chunk):
        some = min(chunk, rows - i0)
        for q in range(first, last):
            n = min(panel, columns - q * panel)
            height = entry(heights, (n + lanes - 1) // lanes)
            count = (some + height - 1) // height
            for k in range(0, inner, depth):
                right = b + item * (q * b_panel + k * b_row)
                steps, adding = min(depth, inner - k), add | np.int64(k > 0)
                for p in range(count):
                    i = i0 + p * some // count
                    m = i0 + (p + 1) * some // count - i
                    call(tile, (steps, a, ro + 8 * i, ko + 8 * k, right, b_row, c + item * q * panel, cr + 8 * i, m, n, adding))


@njit(parallel=True, cache=True)
def _launch(function, job, threads):
    for t in prange(threads):
        call(function, (np.int64(t), threads, job))


def launch(function: Any, job: np.ndarray, threads: int) -> None:
    """function(t, threads, job) for each t < threads. One thread goes without a thread pool."""
    if threads == 1:
        function.ctypes(0, 1, job.ctypes.data)
    else:
        _launch(function.address, job.ctypes.data, threads)


class Part:
    """A function of integers, compiled when its address is first wanted."""

    def __init__(self, function: Callable, count: int) -> None:
        self.function, self.count = function, count

    @cached_property
    def compiled(self) -> Any:
        with _compiling:
            return cfunc(types.void(*[types.int64] * self.count), cache=True, error_model="numpy")(self.function)

    @cached_property
    def address(self) -> int:
        return self.compiled.address

    @cached_property
    def ctypes(self) -> Any:
        return self.compiled.ctypes


_compiling = threading.RLock()


def part(count: int) -> Callable[[Callable], Part]:
    """Decorates a function of `count` integers, which is then called by its address."""
    return lambda function: Part(function, count)


# ---------------------------------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------------------------------


class Vectors:
    """LLVM instructions on vectors of `lanes` floats of `bits` bits."""

    def __init__(self, bd: Any, bits: int, lanes: int) -> None:
        self.bd, self.lanes, self.bytes = bd, lanes, bits // 8
        self.scalar = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.vector, self.mask = ir.VectorType(self.scalar, lanes), ir.VectorType(I1, lanes)
        self.suffix = f"v{lanes}f{bits}"
        self.zero = ir.Constant(self.vector, [0.0] * lanes)
        self.none = ir.Constant(self.mask, [0] * lanes)

    def pointer(self, address: Any, offset: Any = None) -> Any:
        """to the element `offset` after an address"""
        if offset is not None:
            address = self.bd.add(address, self.bd.mul(offset, I64(self.bytes)))
        return self.bd.inttoptr(address, self.scalar.as_pointer())

    def at(self, pointer: Any, step: int = 0) -> Any:
        return self.bd.bitcast(self.bd.gep(pointer, [I64(step)]), self.vector.as_pointer())

    def splat(self, x: Any) -> Any:
        one = self.bd.insert_element(ir.Constant(ir.VectorType(x.type, self.lanes), ir.Undefined), x, I32(0))
        return self.bd.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def below(self, n: Any, first: int = 0) -> Any:
        """a mask of those of the elements first, first + 1, … that are before n"""
        count = ir.Constant(ir.VectorType(I64, self.lanes), list(range(first, first + self.lanes)))
        return self.bd.icmp_signed("<", count, self.splat(n))

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        return cgutils.get_or_insert_function(self.bd.module, ir.FunctionType(result, arguments), name)

    def load(self, pointer: Any, step: int = 0, mask: Any = None) -> Any:
        if mask is None:
            return self.bd.load(self.at(pointer, step), align=self.bytes)
        kinds = self.vector.as_pointer(), I32, self.mask, self.vector
        load = self._function(f"llvm.masked.load.{self.suffix}.p0", self.vector, *kinds)
        return self.bd.call(load, [self.at(pointer, step), I32(self.bytes), mask, self.zero])

    def store(self, x: Any, pointer: Any, step: int = 0, mask: Any = None) -> None:
        if mask is None:
            self.bd.store(x, self.at(pointer, step), align=self.bytes)
            return
        kinds = self.vector, self.vector.as_pointer(), I32, self.mask
        store = self._function(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), *kinds)
        self.bd.call(store, [x, self.at(pointer, step), I32(self.bytes), mask])

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, fused where the machine has it"""
        return self.bd.call(self._function(f"llvm.fmuladd.{self.suffix}", *[self.vector] * 4), [a, b, c])

    def transposed(self, rows: list[Any]) -> list[Any]:
        """a square of vectors, in registers: blocks of h × h off the diagonal change places, h = lanes/2, …, 2, 1"""
        half = self.lanes // 2
        while half:
            low = [j if not j & half else j - half + self.lanes for j in range(self.lanes)]
            high = [j + half if not j & half else j + self.lanes for j in range(self.lanes)]
            low, high = (ir.Constant(ir.VectorType(I32, self.lanes), order) for order in (low, high))
            new = list(rows)
            for i in range(self.lanes):
                if not i & half:
                    new[i] = self.bd.shuffle_vector(rows[i], rows[i + half], low)
                    new[i + half] = self.bd.shuffle_vector(rows[i], rows[i + half], high)
            rows, half = new, half // 2
        return rows


def _table(bd: Any, address: Any) -> Any:
    """entry(i) of the table of offsets at an address"""
    pointer = bd.inttoptr(address, I64.as_pointer())
    return lambda i: bd.load(bd.gep(pointer, [i]))


# ---------------------------------------------------------------------------------------------------------------------
# The register tile
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def _tile(typing, bits, lanes, width, depth, a, ro, ko, b, b_row, c, cr, m, n, add):
    """One case per height and number of vectors; in each the whole tile of C stays in registers while k runs."""
    heights = tile_heights(width.literal_value)
    bits_, lanes_ = bits.literal_value, lanes.literal_value

    def generate(context, bd, sig, args):
        depth, a, ro, ko, b, b_row, c, cr, m, n, add = args[3:]
        v = Vectors(bd, bits_, lanes_)
        rows, taps, outs = _table(bd, ro), _table(bd, ko), _table(bd, cr)
        adding, leave = bd.icmp_signed("!=", add, I64(0)), bd.append_basic_block("leave")

        def case(height, vectors, whole):
            left = [v.pointer(a, rows(I64(r))) for r in range(height)]
            start, last = v.pointer(b), None if whole else v.below(n, (vectors - 1) * lanes_)
            before, body, done = bd.block, bd.append_basic_block("k"), bd.append_basic_block("done")
            bd.branch(body)
            bd.position_at_end(body)
            k, right = bd.phi(I64), bd.phi(v.scalar.as_pointer())
            sums = [bd.phi(v.vector) for _ in range(height * vectors)]
            tap = taps(k)
            right_row = [v.load(right, j * lanes_) for j in range(vectors - 1)] + [v.load(right, (vectors - 1) * lanes_, last)]
            new = []
            for r in range(height):
                x = v.splat(bd.load(bd.gep(left[r], [tap])))
                new += [v.multiply_add(x, right_row[j], sums[r * vectors + j]) for j in range(vectors)]
            # The counter goes through an empty piece of assembly: LLVM then cannot unroll the loop and spill the sums.
            following = bd.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [bd.add(k, I64(1))], side_effect=False)
            first, next_ = [I64(0), start] + [v.zero] * len(sums), [following, bd.gep(right, [b_row])] + new
            for variable, x0, x1 in zip([k, right] + sums, first, next_, strict=True):
                variable.add_incoming(x0, before)
                variable.add_incoming(x1, body)
            bd.cbranch(bd.icmp_signed("<", following, depth), body, done)
            bd.position_at_end(done)
            every = v.splat(adding)
            for r in range(height):
                out = v.pointer(c, outs(I64(r)))
                for j in range(vectors):
                    mask = last if j == vectors - 1 else None
                    old = v.load(out, j * lanes_, bd.and_(mask, every) if mask else every)
                    v.store(bd.fadd(new[r * vectors + j], old), out, j * lanes_, mask)

        for vectors, tallest in enumerate(heights, start=1):
            fits, wider = bd.append_basic_block("fits"), bd.append_basic_block("wider")
            bd.cbranch(bd.icmp_signed("<=", n, I64(vectors * lanes_)), fits, wider)
            bd.position_at_end(fits)
            switch = bd.switch(m, leave)
            for height in range(1, tallest + 1):
                block = bd.append_basic_block(f"tile{height}x{vectors}")
                switch.add_case(I64(height), block)
                bd.position_at_end(block)
                with bd.if_else(bd.icmp_signed("==", n, I64(vectors * lanes_))) as (whole, partial):
                    with whole:
                        case(height, vectors, True)
                    with partial:
                        case(height, vectors, False)
                bd.branch(leave)
            bd.position_at_end(wider)
        bd.branch(leave)
        bd.position_at_end(leave)
        return context.get_dummy_value()

    return types.void(bits, lanes, width, *[types.int64] * 11), generate


# ---------------------------------------------------------------------------------------------------------------------
# The transposition
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def _transpose_square(typing, bits, lanes, src, src_row, dst, tab, ni, nj):
    """dst[tab[j] + i] = src[i, j] for i < min(lanes, ni), j < min(lanes, nj)"""
    bits_, lanes_ = bits.literal_value, lanes.literal_value

    def generate(context, bd, sig, args):
        src, src_row, dst, tab, ni, nj = args[2:]
        v, place = Vectors(bd, bits_, lanes_), _table(bd, tab)
        row = [v.pointer(src, bd.mul(src_row, I64(i))) for i in range(lanes_)]
        whole = bd.and_(bd.icmp_signed(">=", ni, I64(lanes_)), bd.icmp_signed(">=", nj, I64(lanes_)))
        with bd.if_else(whole) as (full, partial):
            with full:
                for j, x in enumerate(v.transposed([v.load(p) for p in row])):
                    v.store(x, v.pointer(dst, place(I64(j))))
            with partial:
                across, down = v.below(nj), v.below(ni)
                masks = [bd.select(bd.icmp_signed("<", I64(i), ni), across, v.none) for i in range(lanes_)]
                columns = v.transposed([v.load(p, 0, mask) for p, mask in zip(row, masks, strict=True)])
                for j, x in enumerate(columns):
                    with bd.if_then(bd.icmp_signed("<", I64(j), nj)):
                        v.store(x, v.pointer(dst, place(I64(j))), 0, down)
        return context.get_dummy_value()

    return types.void(bits, lanes, *[types.int64] * 6), generate


@intrinsic(prefer_literal=True)
def _move(typing, bits, lanes, dst, src):
    """one vector"""
    bits_, lanes_ = bits.literal_value, lanes.literal_value

    def generate(context, bd, sig, args):
        v = Vectors(bd, bits_, lanes_)
        v.store(v.load(v.pointer(args[3])), v.pointer(args[2]))
        return context.get_dummy_value()

    return types.void(bits, lanes, types.int64, types.int64), generate


# ---------------------------------------------------------------------------------------------------------------------
# What is compiled for a dtype and a vector width
# ---------------------------------------------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """The compiled parts for one dtype and width (`…` are addresses), and the sizes that go with them."""

    item: int  # bytes of an element
    lanes: int  # elements of a vector
    panel: int  # columns of the widest tile
    heights: np.ndarray  # rows of the tile, by the number of vectors in a row; [0] is not used
    tile: int
    transpose: int
    panels: int
    add: int
    fold: int
    keep: tuple[Any, ...]  # the compiled functions, which live as long as their addresses are known


@lru_cache
def tiles(bits: int, width: int) -> Tiles:
    lanes = 8 * width // bits
    item, wide = bits // 8, lanes * len(tile_heights(width))

    @part(11)
    def tile(depth, a, ro, ko, b, b_row, c, cr, m, n, add):
        _tile(bits, lanes, width, depth, a, ro, ko, b, b_row, c, cr, m, n, add)

    @part(6)
    def transpose(src, src_row, dst, tab, ni, nj):
        for i in range(0, ni, lanes):
            for j in range(0, nj, lanes):
                corner, to = src + item * (i * src_row + j), dst + item * i
                _transpose_square(bits, lanes, corner, src_row, to, tab + 8 * j, ni - i, nj - j)

    @part(5)
    def panels(dst, dst_panel, src, rows, n):
        of, to, whole = floats(bits, src), floats(bits, dst), n // wide
        for k in range(rows):
            for q in range(whole):
                for i in range(0, wide, lanes):
                    _move(bits, lanes, dst + item * (q * dst_panel + k * wide + i), src + item * (k * n + q * wide + i))
            for j in range(whole * wide, n):
                to[whole * dst_panel + k * wide + j - whole * wide] = of[k * n + j]

    @part(3)
    def add(dst, src, n):
        to, of = floats(bits, dst), floats(bits, src)
        for i in range(n):
            to[i] += of[i]

    @part(15)
    def fold(dst, src, images, kh, kw, height, width, rows, columns, sh, sw, ph, pw, dh, dw):
        """dst[c, s i + d t − p] += src[c, t, i]"""
        to, of = floats(bits, dst), floats(bits, src)
        zero(dst, item * images * height * width)
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

    heights = np.array((0,) + tile_heights(width), np.int64)
    keep = (tile, transpose, panels, add, fold)
    return Tiles(item, lanes, wide, heights, *(f.address for f in keep), keep)
