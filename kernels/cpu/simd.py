r"""Vectors of the machine, from Python: the register tile on which matrix products run, and the copies that feed it.

A product C += A B spends its time in one loop, over k. Two vectors of row k of B are loaded once and meet the elements of
column k of A one after the other; the sums of a tile of C stay in registers from the first k to the last:

                          lanes     lanes                  for each k:
                       ┌─────────┬─────────┐                 load b₀ and b₁, two vectors of row k of B
            row k of B │   b₀    │   b₁    │                 for i < HEIGHT:
                       └─────────┴─────────┘                     load a_ik into all lanes
      column k   ┌───┐ ┌─────────┬─────────┐                     c_i₀ += a_ik b₀       one instruction each, a fused
          of A   │   │ │  c_00   │  c_01   │                     c_i₁ += a_ik b₁       multiply-add: vfmadd231ps
                 │   │ │  c_10   │  c_11   │
         HEIGHT  │ ⋮ │ │    ⋮    │    ⋮    │ tile of C       2 HEIGHT multiply-adds for HEIGHT + 2 loads: arithmetic
                 │   │ │         │         │                 binds, not memory
                 └───┘ └─────────┴─────────┘

Where the numbers come from. `BITS` of a vector and the count of `REGISTERS` are the processor's. The tile should be large,
since its loads grow as height + width and its products as height · width, and has to fit the registers: HEIGHT is 14 with the
32 registers of AVX-512 and of NEON (28 sums, 2 vectors of B, 1 of A), 6 with the 16 of AVX2 (12 + 2 + 1).

No loop written in Python keeps a tile in registers: LLVM's loop vectoriser works on one loop, not on a nest of loops. So the
tile is written as LLVM instructions on vectors, through Numba's `intrinsic`, with one loop over k for each height and width,
since the compiler has to know which register each sum is in. (`ladder.register_tile` is the same in thirty lines, for one
height and width; `python -m benchmarks matmul --asm tile` prints the machine code.)

At the right edge of C the last vectors are read and written under a mask, where the machine has masks (`MASKED`). Elsewhere B
is read in whole vectors, so a panel of B that does not end with a whole vector has to be copied and filled with zeros (`pack`).

While the sums run, the tile asks the memory for the lines of C that they will be written to and for the lines of A that come
next. Each k asks for one line of either, so that the requests do not crowd out the loads. Measured without these requests: a
product whose C does not fit the L2 cache takes 1.15 times as long, a product whose A does not fit takes 1.2 times.

A convolution's A is an image seen through a moving window. An element of it lies at the sum of two offsets, one that belongs to
the row and one that belongs to the step k, read from two tables (`window_tile`); `scatter` brings images into such an order
and back.

`tile`, `window_tile`, `scatter` and `pack` are compiled once for each element type, as C functions, and called by address:
Numba would otherwise compile them again into every kernel that uses them. Only products, which do nothing but call the tile,
contain the tile itself (`inline_tile`). Addresses and strides are in bytes, as NumPy gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels import settings
from kernels.cpu.build import INT, VOID, helper, kernel

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
BYTES = I8.as_pointer()


def _machine() -> tuple[int, int, bool]:
    """Bits of a vector, count of vector registers, are there masked loads? SCRATCHGEN_SIMD=128, 256 or 512 forces a width."""
    features = llvm.get_host_cpu_features()
    arm = "aarch64" in llvm.get_default_triple() or "arm64" in llvm.get_default_triple()
    bits = 512 if features.get("avx512f") else 256 if features.get("avx2") and features.get("fma") else 128
    bits = settings.vector_bits() or bits
    return bits, 32 if bits == 512 or arm else 16, bool(features.get("avx512vl"))


BITS, REGISTERS, MASKED = _machine()
HEIGHT = 14 if REGISTERS == 32 else 6  # rows of a tile
VECTORS = 2  # vectors of a row
# Rows of a window tile of 1, 2, … vectors. It keeps the addresses of its rows in registers too: taller ones would spill.
WINDOW = (14, 8, 8, 6) if REGISTERS == 32 else (8, 6)


def lanes(itemsize: int) -> int:
    """Elements of a vector."""
    return BITS // 8 // itemsize


class Matrix(NamedTuple):
    """Where a matrix lies: the address of its first element, bytes from row to row and from column to column."""

    address: int
    row: int
    column: int


class Panels(NamedTuple):
    """Where B lies as the tile reads it, in panels as wide as a tile whose rows are contiguous: the address of the first,
    bytes from panel to panel and from row to row within a panel.
    """

    address: int
    panel: int
    row: int


# ---------------------------------------------------------------------------------------------------------------------
# Pointers
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """Where the first element of an array lies."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(array.data, I64)

    return types.intp(array), codegen


@intrinsic
def load(typingctx: Any, where: Any, like: Any) -> Any:
    """The element at an address, of the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        return builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)

    return like(types.intp, like), codegen


@intrinsic
def store(typingctx: Any, where: Any, value: Any) -> Any:
    """Write a value to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, value), codegen


@intrinsic
def call(typingctx: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with a tuple of arguments; literal integers become `intp`."""
    kinds = [types.intp if isinstance(t, types.Integer | types.Boolean) else t for t in arguments]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.intp, types.Tuple(kinds)), codegen


@intrinsic
def _pointer(typingctx: Any, where: Any, like: Any) -> Any:
    kind = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.intp, like), codegen


@helper
def view(where, n, like):
    """n elements from an address on, as an array of the type of `like`."""
    return carray(_pointer(where, like), n)


# ---------------------------------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------------------------------


class Vectors:
    """LLVM's vectors of one element type, and the instructions on them."""

    def __init__(self, builder: Any, element: Any) -> None:
        self.builder, self.element = builder, element
        self.itemsize = 4 if isinstance(element, ir.FloatType) else 8
        self.lanes = lanes(self.itemsize)
        self.type = ir.VectorType(element, self.lanes)
        self.mask_type = ir.VectorType(I1, self.lanes)
        self.zero = ir.Constant(self.type, [0.0] * self.lanes)
        name = f"v{self.lanes}f{8 * self.itemsize}"
        pointer, align = self.type.as_pointer(), I32
        self._fma = self._declare(f"llvm.fma.{name}", self.type, [self.type] * 3)
        self._load = self._declare(f"llvm.masked.load.{name}.p0", self.type, [pointer, align, self.mask_type, self.type])
        self._store = self._declare(f"llvm.masked.store.{name}.p0", ir.VoidType(), [self.type, pointer, align, self.mask_type])

    def _declare(self, name: str, returns: Any, arguments: list) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(returns, arguments), name)

    def at(self, base: Any, *offsets: Any) -> Any:
        """The pointer that lies the offsets, in bytes, behind another."""
        for offset in offsets:
            base = self.builder.gep(base, [offset if isinstance(offset, ir.Value) else ir.Constant(I64, offset)])
        return base

    def splat(self, x: Any) -> Any:
        """x in every lane."""
        kind = ir.VectorType(x.type, self.lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nothing, x, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def mask(self, n: Any, v: int) -> Any:
        """Lane i of vector v: is v · lanes + i < n?"""
        columns = ir.Constant(ir.VectorType(I32, self.lanes), list(range(v * self.lanes, (v + 1) * self.lanes)))
        return self.builder.icmp_signed("<", columns, self.splat(self.builder.trunc(n, I32)))

    def offset(self, where: Any) -> Any:
        """The entry of a table, which counts elements, in bytes."""
        elements = self.builder.load(self.builder.bitcast(where, I64.as_pointer()))
        return self.builder.mul(elements, ir.Constant(I64, self.itemsize))

    def broadcast(self, where: Any) -> Any:
        """The element at a pointer in every lane."""
        return self.splat(self.builder.load(self.builder.bitcast(where, self.element.as_pointer()), align=self.itemsize))

    def load(self, where: Any, mask: Any = None) -> Any:
        """A vector; 0 where the mask is off, whose memory is not touched."""
        where = self.builder.bitcast(where, self.type.as_pointer())
        if mask is None:
            return self.builder.load(where, align=self.itemsize)
        return self.builder.call(self._load, [where, ir.Constant(I32, self.itemsize), mask, self.zero])

    def store(self, x: Any, where: Any, mask: Any = None) -> None:
        where = self.builder.bitcast(where, self.type.as_pointer())
        if mask is None:
            self.builder.store(x, where, align=self.itemsize)
        else:
            self.builder.call(self._store, [x, where, ir.Constant(I32, self.itemsize), mask])

    def prefetch(self, where: Any, write: bool = False) -> None:
        """Ask for the cache line of an address; of an address outside of all memory nothing is asked."""
        kind = ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [where, ir.Constant(I32, int(write)), ir.Constant(I32, 3), ir.Constant(I32, 1)])

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.builder.call(self._fma, [x, y, z])

    def transposed(self, x: list) -> list:
        """A square of vectors, in registers: exchange the h × h blocks off the diagonal, h = lanes/2, …, 2, 1."""
        n, kind = self.lanes, ir.VectorType(I32, self.lanes)
        h = n // 2
        while h:
            upper = ir.Constant(kind, [j - h + n if j & h else j for j in range(n)])
            lower = ir.Constant(kind, [j + n if j & h else j + h for j in range(n)])
            y = list(x)
            for i in range(n):
                if not i & h:
                    y[i] = self.builder.shuffle_vector(x[i], x[i + h], upper)
                    y[i + h] = self.builder.shuffle_vector(x[i], x[i + h], lower)
            x, h = y, h // 2
        return x


# ---------------------------------------------------------------------------------------------------------------------
# The tile
# ---------------------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """What a tile computes, C[:m, :n] = A[:m, :k] B[:k, :n], added to C where `add`; and where its elements lie.

    The tiles of matrices and of windows differ in how they find A and C. `a` is a pointer that moves on by `a_step` bytes
    with each k. `rows_of_a(height)` is a value for each row of A, worked out before the loop, and `column_of_a(a, rows)` the
    pointers to the elements of one k in these rows. `rows_of_c(height)` are the pointers to the rows of C. `strides`: bytes
    between rows of A and between rows of C, if these lie equally far apart; the lines that come next are then asked for.
    """

    k: Any
    a: Any
    a_step: Any
    rows_of_a: Callable
    column_of_a: Callable
    b: Any
    b_row: Any
    rows_of_c: Callable
    m: Any
    n: Any
    add: Any
    strides: tuple | None


def _stay_rolled(branch: Any, module: Any) -> None:
    """Keep LLVM from unrolling this loop: a body that just fills the registers would spill."""
    loop = module.add_metadata([module.add_metadata([ir.MetaDataString(module, f"loop {len(module.metadata)}")])])
    loop.operands = (loop, module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")]))  # refers to itself
    branch.set_metadata("llvm.loop", loop)


def _emit_ahead(vec: Vectors, tile: Tile, at_a: Any, next_a: Any, next_c: Any, more: Any, width: int) -> list:
    """Ask for a line of A, 16 elements further on in each row in turn, and for the next row of C; the two that come then."""
    builder, zero, wide = vec.builder, ir.Constant(I64, 0), vec.lanes * vec.itemsize
    vec.prefetch(vec.at(at_a, next_a, builder.mul(tile.a_step, ir.Constant(I64, 16))))
    for v in range(width):
        vec.prefetch(vec.at(next_c, v * wide), write=True)
    a_row, c_row = tile.strides
    moved = builder.add(next_a, a_row)
    last = builder.icmp_signed("==", moved, builder.mul(a_row, ir.Constant(I64, 16)))
    return [builder.select(last, zero, moved), vec.at(next_c, builder.select(more, c_row, zero))]


def _emit_loop(vec: Vectors, tile: Tile, height: int, width: int, mask: Any) -> list:
    """The loop over k for a tile of so many rows and vectors, the last vector of B under a mask; its sums."""
    builder, zero, wide = vec.builder, ir.Constant(I64, 0), vec.lanes * vec.itemsize
    rows, first_c = tile.rows_of_a(height), tile.rows_of_c(1)[0]
    before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed(">", tile.k, zero), body, after)
    builder.position_at_end(body)
    count, at_a, at_b, next_a, next_c = (builder.phi(kind) for kind in (I64, BYTES, BYTES, I64, BYTES))
    sums = [builder.phi(vec.type) for _ in range(height * width)]
    left = builder.sub(count, ir.Constant(I64, 1))
    firsts = [tile.k, tile.a, tile.b, zero, first_c]
    nexts = [left, vec.at(at_a, tile.a_step), vec.at(at_b, tile.b_row), next_a, next_c]
    if tile.strides:
        more = builder.icmp_signed(">", count, builder.sub(tile.k, ir.Constant(I64, height)))
        nexts[3:] = _emit_ahead(vec, tile, at_a, next_a, next_c, more, width)
    row = [vec.load(vec.at(at_b, v * wide), mask if v == width - 1 else None) for v in range(width)]
    new = []
    for i, element in enumerate(tile.column_of_a(at_a, rows)):
        x = vec.broadcast(element)
        new += [vec.fma(x, row[v], sums[i * width + v]) for v in range(width)]
    firsts, nexts = firsts + [vec.zero] * len(sums), nexts + new
    for phi, first, following in zip([count, at_a, at_b, next_a, next_c, *sums], firsts, nexts, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(following, body)
    _stay_rolled(builder.cbranch(builder.icmp_signed(">", left, zero), body, after), builder.module)
    builder.position_at_end(after)
    totals = []
    for x in new:
        totals.append(builder.phi(vec.type))
        totals[-1].add_incoming(vec.zero, before)
        totals[-1].add_incoming(x, body)
    return totals


def _emit_write(vec: Vectors, tile: Tile, totals: list, height: int, width: int, mask: Any) -> None:
    """C = the sums, or C + the sums, the last vector of each row under a mask."""
    builder, wide = vec.builder, vec.lanes * vec.itemsize
    addresses = [vec.at(row, v * wide) for row in tile.rows_of_c(height) for v in range(width)]
    masks = [mask if v == width - 1 else None for _ in range(height) for v in range(width)]
    with builder.if_else(builder.icmp_signed("!=", tile.add, ir.Constant(I64, 0))) as (then_add, otherwise_set):
        with then_add:
            for where, edge, x in zip(addresses, masks, totals, strict=True):
                vec.store(builder.fadd(x, vec.load(where, edge)), where, edge)
        with otherwise_set:
            for where, edge, x in zip(addresses, masks, totals, strict=True):
                vec.store(x, where, edge)


def _emit_tiles(vec: Vectors, tile: Tile, heights: tuple[int, ...]) -> None:
    """A loop for each height up to heights[v − 1] of v vectors, with and without a mask; and the jumps to the one wanted."""
    builder = vec.builder
    leave = builder.append_basic_block("leave")
    for width, tallest in enumerate(heights, start=1):
        columns = ir.Constant(I64, width * vec.lanes)
        this, wider = builder.append_basic_block("width"), builder.append_basic_block("wider")
        builder.cbranch(builder.icmp_signed("<=", tile.n, columns), this, wider)
        builder.position_at_end(this)
        mask = vec.mask(tile.n, width - 1)
        blocks = builder.append_basic_block("whole"), builder.append_basic_block("torn")
        builder.cbranch(builder.icmp_signed("==", tile.n, columns), *blocks)
        for block, edge in zip(blocks, (None, mask), strict=True):
            builder.position_at_end(block)
            switch = builder.switch(tile.m, leave)
            for height in range(1, tallest + 1):
                case = builder.append_basic_block(f"tile{height}x{width}")
                switch.add_case(ir.Constant(I64, height), case)
                builder.position_at_end(case)
                totals = _emit_loop(vec, tile, height, width, edge if MASKED else None)
                _emit_write(vec, tile, totals, height, width, edge)
                builder.branch(leave)
        builder.position_at_end(wider)
    builder.branch(leave)
    builder.position_at_end(leave)


@intrinsic
def _tile(
    typingctx: Any, k: Any, a: Any, a_rs: Any, a_cs: Any, b: Any, b_rs: Any, c: Any, c_rs: Any, m: Any, n: Any, add: Any
) -> Any:
    """A[i, k] at a + i a_rs + k a_cs, C[i] at c + i c_rs;  m ≤ HEIGHT, n ≤ VECTORS vectors, c_cs = b_cs = one element."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add = args
        a, b, c = (builder.bitcast(x, BYTES) for x in (a, b, c))
        a_rows = [builder.mul(a_rs, ir.Constant(I64, i)) for i in range(HEIGHT)]
        c_rows = [vec.at(c, builder.mul(c_rs, ir.Constant(I64, i))) for i in range(HEIGHT)]

        def column(at_a: Any, rows: list) -> list:
            return [vec.at(at_a, row) for row in rows]

        def first_of(rows: list) -> Callable:
            return lambda height: rows[:height]

        tile = Tile(k, a, a_cs, first_of(a_rows), column, b, b_rs, first_of(c_rows), m, n, add, strides=(a_rs, c_rs))
        _emit_tiles(vec, tile, (HEIGHT,) * VECTORS)
        return context.get_dummy_value()

    return types.void(k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add), codegen


@intrinsic
def _window_tile(
    typingctx: Any, k: Any, a: Any, a_rows: Any, a_steps: Any, b: Any, b_rs: Any, c: Any, c_rows: Any, m: Any, n: Any, add: Any
) -> Any:
    """A[i, k] at a + a_rows[i] + a_steps[k], C[i] at c + c_rows[i], the tables in elements;  n ≤ WINDOW vectors."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add = args
        a, a_rows, a_steps, b, c, c_rows = (builder.bitcast(x, BYTES) for x in (a, a_rows, a_steps, b, c, c_rows))

        def rows(base: Any, table: Any) -> Callable:
            return lambda height: [vec.at(base, vec.offset(vec.at(table, 8 * i))) for i in range(height)]

        def column(at_step: Any, rows: list) -> list:
            step = vec.offset(at_step)
            return [vec.at(row, step) for row in rows]

        # What moves on with k is the position in the table of steps, whose entries are 8 bytes long.
        eight = ir.Constant(I64, 8)
        tile = Tile(k, a_steps, eight, rows(a, a_rows), column, b, b_rs, rows(c, c_rows), m, n, add, strides=None)
        _emit_tiles(vec, tile, WINDOW)
        return context.get_dummy_value()

    return types.void(k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add), codegen


# ---------------------------------------------------------------------------------------------------------------------
# The copies
# ---------------------------------------------------------------------------------------------------------------------


@intrinsic
def _copy(typingctx: Any, rows: Any, n: Any, s: Any, s_rs: Any, d: Any, d_rs: Any) -> Any:
    """d[i, :lanes] = s[i, :n], zeros after n ≤ lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, n, s, s_rs, d, d_rs = args
        vec = Vectors(builder, context.get_value_type(signature.args[2].dtype))
        s, d = (builder.bitcast(x, BYTES) for x in (s, d))
        mask = vec.mask(n, 0)
        with builder.if_else(builder.icmp_signed(">=", n, ir.Constant(I64, vec.lanes))) as (then, otherwise):
            for branch, which in ((then, None), (otherwise, mask)):
                with branch, cgutils.for_range(builder, rows) as loop:
                    x = vec.load(vec.at(s, builder.mul(loop.index, s_rs)), which)
                    vec.store(x, vec.at(d, builder.mul(loop.index, d_rs)))
        return context.get_dummy_value()

    return types.void(rows, n, s, s_rs, d, d_rs), codegen


def _exchange(vec: Vectors, rows: list, ni: Any, nj: Any, target: Callable, padded: bool) -> None:
    """The columns j < min(lanes, nj) of min(lanes, ni) rows, to target(j); `padded`: as whole vectors, zeros after ni."""
    builder, n = vec.builder, ir.Constant(I64, vec.lanes)
    with builder.if_else(builder.and_(builder.icmp_signed(">=", ni, n), builder.icmp_signed(">=", nj, n))) as (full, partial):
        with full:
            for j, x in enumerate(vec.transposed([vec.load(row) for row in rows])):
                vec.store(x, target(j))
        with partial:
            across, down = vec.mask(nj, 0), None if padded else vec.mask(ni, 0)
            nothing = ir.Constant(vec.mask_type, [0] * vec.lanes)
            there = [builder.icmp_signed("<", ir.Constant(I64, i), ni) for i in range(vec.lanes)]
            masks = [builder.select(row_is, across, nothing) for row_is in there]
            for j, x in enumerate(vec.transposed([vec.load(*pair) for pair in zip(rows, masks, strict=True)])):
                with builder.if_then(builder.icmp_signed("<", ir.Constant(I64, j), nj)):
                    vec.store(x, target(j), down)


@intrinsic
def _transpose(typingctx: Any, s: Any, s_cs: Any, d: Any, d_rs: Any, ni: Any, nj: Any) -> Any:
    """d[i, :lanes] = s[i, :nj], zeros after nj, for i < min(lanes, ni); the columns of s are contiguous, and the rows of d."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s, s_cs, d, d_rs, ni, nj = args
        vec = Vectors(builder, context.get_value_type(signature.args[0].dtype))
        s, d = (builder.bitcast(x, BYTES) for x in (s, d))
        columns = [vec.at(s, builder.mul(s_cs, ir.Constant(I64, j))) for j in range(vec.lanes)]
        _exchange(vec, columns, nj, ni, lambda i: vec.at(d, builder.mul(d_rs, ir.Constant(I64, i))), padded=True)
        return context.get_dummy_value()

    return types.void(s, s_cs, d, d_rs, ni, nj), codegen


@intrinsic
def _scatter(typingctx: Any, s: Any, s_rs: Any, d: Any, table: Any, ni: Any, nj: Any) -> Any:
    """d[table[j] + i] = s[i, j] for i < min(lanes, ni), j < min(lanes, nj); the table in elements."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s, s_rs, d, table, ni, nj = args
        vec = Vectors(builder, context.get_value_type(signature.args[0].dtype))
        s, d, table = (builder.bitcast(x, BYTES) for x in (s, d, table))
        rows = [vec.at(s, builder.mul(s_rs, ir.Constant(I64, i))) for i in range(vec.lanes)]
        _exchange(vec, rows, ni, nj, lambda j: vec.at(d, vec.offset(vec.at(table, 8 * j))), padded=False)
        return context.get_dummy_value()

    return types.void(s, s_rs, d, table, ni, nj), codegen


@intrinsic
def _element(typingctx: Any, pointer: Any) -> Any:
    """The 0 of the type that a pointer points to."""
    return pointer.dtype(pointer), lambda context, builder, signature, args: ir.Constant(
        context.get_value_type(signature.return_type), 0.0
    )


@intrinsic
def _move(typingctx: Any, pointer: Any, offset: Any) -> Any:
    """The pointer that lies an offset, in bytes, behind another."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        moved = builder.gep(builder.bitcast(args[0], BYTES), [args[1]])
        return builder.bitcast(moved, args[0].type)

    return pointer(pointer, types.intp), codegen


@intrinsic
def _table(typingctx: Any, where: Any) -> Any:
    """The table of integers at an address."""
    kind = types.CPointer(types.intp)
    return kind(types.intp), lambda context, builder, signature, args: builder.inttoptr(args[0], context.get_value_type(kind))


@intrinsic
def _itemsize(typingctx: Any, pointer: Any) -> Any:
    """Bytes of what a pointer points to."""
    size = pointer.dtype.bitwidth // 8
    return types.intp(pointer), lambda context, builder, signature, args: ir.Constant(I64, size)


@intrinsic
def _integer(typingctx: Any, pointer: Any) -> Any:
    """The address that a pointer holds."""
    return types.intp(pointer), lambda context, builder, signature, args: builder.ptrtoint(args[0], I64)


# ---------------------------------------------------------------------------------------------------------------------
# The C functions
# ---------------------------------------------------------------------------------------------------------------------


def _tile_signature(element: Any) -> Any:
    elements = types.CPointer(element)
    return VOID(INT, elements, INT, INT, elements, INT, elements, INT, INT, INT, INT)


@kernel(_tile_signature, callback=True)
def tile(k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add):
    """C[:m, :n] = A[:m, :k] B[:k, :n], added to C where `add`: see `_tile`."""
    _tile(k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add)


@helper
def inline_tile(a, b, c, m, n, k, add, like):
    """`tile` as a part of the kernel that calls it, which saves some 30 cycles a call; elements of the type of `like`.

    a and c: `Matrix`, b: `Panels`, of which the first is read.
    """
    at_a, at_b, at_c = _pointer(a.address, like), _pointer(b.address, like), _pointer(c.address, like)
    _tile(k, at_a, a.row, a.column, at_b, b.row, at_c, c.row, m, n, add)


def _window_signature(element: Any) -> Any:
    elements, table = types.CPointer(element), types.CPointer(INT)
    return VOID(INT, elements, table, table, elements, INT, elements, table, INT, INT, INT)


@kernel(_window_signature, callback=True)
def window_tile(k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add):
    """The same with A[i, k] at a + a_rows[i] + a_steps[k] and C[i] at c + c_rows[i]: see `_window_tile`."""
    _window_tile(k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add)


@kernel(lambda element: VOID(types.CPointer(element), INT, types.CPointer(element), INT, INT, INT), callback=True)
def scatter(s, s_rs, d, table, ni, nj):
    """d[table[j] + i] = s[i, j] for i < ni, j < nj: a transposition whose rows go where a table, in elements, says."""
    step, size = BITS // 8 // _itemsize(s), _itemsize(s)
    for i in range(0, ni, step):
        for j in range(0, nj, step):
            _scatter(_move(s, i * s_rs + j * size), s_rs, _move(d, i * size), _table(table + 8 * j), ni - i, nj - j)


@kernel(lambda element: VOID(INT, INT, types.CPointer(element), INT, INT, types.CPointer(element), INT, INT), callback=True)
def pack(rows, n, s, s_rs, s_cs, d, d_rs, width):
    """d[:rows, :n] = s[:rows, :n], rows contiguous in d, zeros in columns n to `width`, a whole number of vectors."""
    zero, size = _element(s), _itemsize(s)
    step = BITS // 8 // size
    if s_cs == size:
        for j in range(0, width, step):
            _copy(rows, min(max(n - j, 0), step), _move(s, j * size), s_rs, _move(d, j * size), d_rs)
        return
    if s_rs == size:
        for j in range(0, width, step):
            for i in range(0, rows, step):
                _transpose(_move(s, i * size + j * s_cs), s_cs, _move(d, i * d_rs + j * size), d_rs, rows - i, n - j)
        return
    for i in range(rows):
        for j in range(width):
            x = load(_integer(s) + i * s_rs + j * s_cs, zero) if j < n else zero
            store(_integer(d) + i * d_rs + j * size, x)
