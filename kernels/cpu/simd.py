r"""Vectors of the machine, from Python: the register tile on which matrix products run, and the copies that feed it.

A product C += A B spends its time in one loop. A tile of C, `height` rows by two vectors, stays in registers while k runs:

    for k:    b₀, b₁ = two vectors of row k of B
              for i < height:    c_i₀ += a_ik b₀,    c_i₁ += a_ik b₁          (a_ik broadcast to all lanes)

2 · height products for every 2 + height loads: arithmetic binds, not memory, as long as the tile fits the register
file: height 14 of AVX-512's or NEON's 32 registers (28 sums, 2 of B, 1 of A), 6 of AVX2's 16 (12 + 2 + 1).
No loop written in Python keeps a tile in registers: LLVM's loop vectoriser works on one loop, not on a nest of them. So
the tile is written as LLVM instructions on vectors, through Numba's `intrinsic`, one piece for each height and width,
since an index into registers must be known when it is compiled. Edges: the last columns of B and C are read and written
under a mask, where the machine has masks (`MASKED`); elsewhere B is read in whole vectors, so a panel of B that does not end
with one is to be copied and filled with zeros (`pack`).
While the sums run, the lines of C that they will be written to and those of A that come next are asked for: each k asks for
one of either, so that the requests do not crowd out the loads. Without that, a product whose C does not fit the L2 cache
takes 1.15 times as long, one whose A does not, 1.2 times.
A convolution's A is an image seen through a moving window: its elements lie at the sums of a number of the row and one of
the step, which two tables give (`window_tile`), and `scatter` brings images into such an order and back.

All are compiled once for each element type, as C functions, and called by address: Numba would otherwise compile them
again into every kernel that uses them. Only products, which do nothing but call the tile, contain it themselves. Addresses
and strides are in bytes, as NumPy gives them.
"""

from __future__ import annotations

from typing import Any

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
    """Bits of a vector, number of vector registers, masked loads? SCRATCHGEN_SIMD=128, 256 or 512 forces a width."""
    features = llvm.get_host_cpu_features()
    arm = "aarch64" in llvm.get_default_triple() or "arm64" in llvm.get_default_triple()
    bits = 512 if features.get("avx512f") else 256 if features.get("avx2") and features.get("fma") else 128
    bits = settings.vector_bits() or bits
    return bits, 32 if bits == 512 or arm else 16, bool(features.get("avx512vl"))


BITS, REGISTERS, MASKED = _machine()
HEIGHT = 14 if REGISTERS == 32 else 6  # rows of a tile
VECTORS = 2  # vectors of a row
WINDOW = (14, 8, 8, 6) if REGISTERS == 32 else (8, 6)  # rows of a window tile of 1, 2, … vectors: taller ones would spill


def lanes(itemsize: int) -> int:
    """Elements of a vector."""
    return BITS // 8 // itemsize


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
    """The number at an address, of the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        return builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)

    return like(types.intp, like), codegen


@intrinsic
def store(typingctx: Any, where: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, value), codegen


@intrinsic
def call(typingctx: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with a tuple of numbers; literal integers become `intp`."""
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
        """A pointer so many bytes on."""
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
        """Bytes to the element whose number stands there."""
        number = self.builder.load(self.builder.bitcast(where, I64.as_pointer()))
        return self.builder.mul(number, ir.Constant(I64, self.itemsize))

    def broadcast(self, where: Any) -> Any:
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
        """Ask for the cache line of an address, which need not be one."""
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


def _stay_rolled(branch: Any, module: Any) -> None:
    """Keep LLVM from unrolling this loop: a body that just fills the registers would spill."""
    loop = module.add_metadata([module.add_metadata([ir.MetaDataString(module, f"loop {len(module.metadata)}")])])
    loop.operands = (loop, module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")]))  # refers to itself
    branch.set_metadata("llvm.loop", loop)


def _emit_tiles(
    vec: Vectors, heights: tuple[int, ...], k: Any, a: Any, a_step: Any, a_rows: Any, a_ik: Any, b: Any, b_rs: Any, c_rows: Any,
    m: Any, n: Any, add: Any, apart: tuple | None = None,
) -> None:  # fmt: skip
    """C[:m, :n] = A[:m, :k] B[:k, :n], added to C where `add`: one piece of code for each number of rows and of vectors.

    heights[v − 1]: rows that a tile of v vectors has at most. `a` moves on by `a_step` bytes with each k, and `a_ik(a)(row)` is
    then where an element of A lies, row being one of `a_rows(height)`; `c_rows(height)` are where the rows of C begin. `apart`:
    bytes between rows of A and between rows of C, if each of these lie equally far apart; they are then asked for ahead.
    """
    builder, zero, wide = vec.builder, ir.Constant(I64, 0), vec.lanes * vec.itemsize
    adding = builder.icmp_signed("!=", add, zero)
    masks = [vec.mask(n, v) for v in range(len(heights))]
    leave = builder.append_basic_block("leave")

    def product(height: int, width: int, whole: bool) -> None:
        rows, first_c = a_rows(height), c_rows(1)[0]
        before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed(">", k, zero), body, after)
        builder.position_at_end(body)
        count, at_a, at_b, next_a, next_c = (builder.phi(t) for t in (I64, BYTES, BYTES, I64, BYTES))
        sums = [builder.phi(vec.type) for _ in range(height * width)]
        left = builder.sub(count, ir.Constant(I64, 1))
        firsts, nexts = [k, a, b, zero, first_c], [left, vec.at(at_a, a_step), vec.at(at_b, b_rs), next_a, next_c]
        if apart:
            more = builder.icmp_signed(">", count, builder.sub(k, ir.Constant(I64, height)))
            nexts[3:] = ahead(at_a, next_a, next_c, more, width)
        mask = None if whole or not MASKED else masks[width - 1]
        row = [vec.load(vec.at(at_b, v * wide), mask if v == width - 1 else None) for v in range(width)]
        element, new = a_ik(at_a), []
        for i in range(height):
            x = vec.broadcast(element(rows[i]))
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
        write(totals, height, width, whole)

    def ahead(at_a: Any, next_a: Any, next_c: Any, more: Any, width: int) -> list:
        """Of A, one row in turn, 16 elements further on; of C, the row of the tile that has this number."""
        vec.prefetch(vec.at(at_a, next_a, builder.mul(a_step, ir.Constant(I64, 16))))
        for v in range(width):
            vec.prefetch(vec.at(next_c, v * wide), write=True)
        moved = builder.add(next_a, apart[0])
        turned = builder.icmp_signed("==", moved, builder.mul(apart[0], ir.Constant(I64, 16)))
        return [builder.select(turned, zero, moved), vec.at(next_c, builder.select(more, apart[1], zero))]

    def write(totals: list, height: int, width: int, whole: bool) -> None:
        places = [vec.at(row, v * wide) for row in c_rows(height) for v in range(width)]
        edges = [None if whole or v < width - 1 else masks[v] for _ in range(height) for v in range(width)]
        with builder.if_else(adding) as (then_add, otherwise_set):
            with then_add:
                for where, edge, x in zip(places, edges, totals, strict=True):
                    vec.store(builder.fadd(x, vec.load(where, edge)), where, edge)
            with otherwise_set:
                for where, edge, x in zip(places, edges, totals, strict=True):
                    vec.store(x, where, edge)
        builder.branch(leave)

    for width, tallest in enumerate(heights, start=1):
        this, wider = builder.append_basic_block("width"), builder.append_basic_block("wider")
        builder.cbranch(builder.icmp_signed("<=", n, ir.Constant(I64, width * vec.lanes)), this, wider)
        builder.position_at_end(this)
        blocks = builder.append_basic_block("whole"), builder.append_basic_block("torn")
        builder.cbranch(builder.icmp_signed("==", n, ir.Constant(I64, width * vec.lanes)), *blocks)
        for block, whole in zip(blocks, (True, False), strict=True):
            builder.position_at_end(block)
            switch = builder.switch(m, leave)
            for height in range(1, tallest + 1):
                case = builder.append_basic_block(f"tile{height}x{width}")
                switch.add_case(ir.Constant(I64, height), case)
                builder.position_at_end(case)
                product(height, width, whole)
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

        def a_ik(at: Any) -> Any:
            return lambda row: vec.at(at, row)

        heights = (HEIGHT,) * VECTORS
        tables, apart = (lambda h: a_rows[:h], lambda h: c_rows[:h]), (a_rs, c_rs)
        _emit_tiles(vec, heights, k, a, a_cs, tables[0], a_ik, b, b_rs, tables[1], m, n, add, apart)
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

        def rows(base: Any, table: Any) -> Any:
            return lambda height: [vec.at(base, vec.offset(vec.at(table, 8 * i))) for i in range(height)]

        def a_ik(at: Any) -> Any:
            step = vec.offset(at)
            return lambda row: vec.at(row, step)

        eight = ir.Constant(I64, 8)
        _emit_tiles(vec, WINDOW, k, a_steps, eight, rows(a, a_rows), a_ik, b, b_rs, rows(c, c_rows), m, n, add)
        return context.get_dummy_value()

    return types.void(k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add), codegen


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


def _exchange(vec: Vectors, rows: list, ni: Any, nj: Any, place: Any, padded: bool) -> None:
    """The columns j < min(lanes, nj) of min(lanes, ni) rows, stored at place(j); `padded`: as whole vectors, zeros after ni."""
    builder, n = vec.builder, ir.Constant(I64, vec.lanes)
    with builder.if_else(builder.and_(builder.icmp_signed(">=", ni, n), builder.icmp_signed(">=", nj, n))) as (full, partial):
        with full:
            for j, x in enumerate(vec.transposed([vec.load(row) for row in rows])):
                vec.store(x, place(j))
        with partial:
            across, down = vec.mask(nj, 0), None if padded else vec.mask(ni, 0)
            nothing = ir.Constant(vec.mask_type, [0] * vec.lanes)
            there = [builder.icmp_signed("<", ir.Constant(I64, i), ni) for i in range(vec.lanes)]
            masks = [builder.select(row_is, across, nothing) for row_is in there]
            for j, x in enumerate(vec.transposed([vec.load(*pair) for pair in zip(rows, masks, strict=True)])):
                with builder.if_then(builder.icmp_signed("<", ir.Constant(I64, j), nj)):
                    vec.store(x, place(j), down)


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
    """The pointer so many bytes on."""

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
    return types.intp(pointer), lambda context, builder, signature, args: builder.ptrtoint(args[0], I64)


# ---------------------------------------------------------------------------------------------------------------------
# The C functions
# ---------------------------------------------------------------------------------------------------------------------


@kernel(
    lambda T: VOID(INT, types.CPointer(T), INT, INT, types.CPointer(T), INT, types.CPointer(T), INT, INT, INT, INT),
    callback=True,
)
def tile(k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add):
    """C[:m, :n] = A[:m, :k] B[:k, :n], added to C where `add`: see `_tile`."""
    _tile(k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add)


@helper
def inline_tile(k, a, a_rs, a_cs, b, b_rs, c, c_rs, m, n, add, like):
    """`tile` as a part of the kernel that calls it, which saves some 30 cycles a call; elements of the type of `like`."""
    _tile(k, _pointer(a, like), a_rs, a_cs, _pointer(b, like), b_rs, _pointer(c, like), c_rs, m, n, add)


def _window_signature(T: Any) -> Any:
    elements, table = types.CPointer(T), types.CPointer(INT)
    return VOID(INT, elements, table, table, elements, INT, elements, table, INT, INT, INT)


@kernel(_window_signature, callback=True)
def window_tile(k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add):
    """The same with A[i, k] at a + a_rows[i] + a_steps[k] and C[i] at c + c_rows[i]: see `_window_tile`."""
    _window_tile(k, a, a_rows, a_steps, b, b_rs, c, c_rows, m, n, add)


@kernel(lambda T: VOID(types.CPointer(T), INT, types.CPointer(T), INT, INT, INT), callback=True)
def scatter(s, s_rs, d, table, ni, nj):
    """d[table[j] + i] = s[i, j] for i < ni, j < nj, a table of elements at an address: a transposition to places of choice."""
    step, size = BITS // 8 // _itemsize(s), _itemsize(s)
    for i in range(0, ni, step):
        for j in range(0, nj, step):
            _scatter(_move(s, i * s_rs + j * size), s_rs, _move(d, i * size), _table(table + 8 * j), ni - i, nj - j)


@kernel(lambda T: VOID(INT, INT, types.CPointer(T), INT, INT, types.CPointer(T), INT, INT), callback=True)
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
