"""What every kernel stands on: how one is declared and launched, vectors of 16 bytes, the tensor cores, sums over a block.

The shape of code that NVVM turns into good machine code, held by tests/test_cuda_compile.py:
local arrays are indexed only by loops of constant length, which are unrolled, so that they stay in registers; thread indices
are unsigned (a signed index costs a test for negative ones); tile sizes are plain integers in the closure; every constant is a
float32 (a Python float would drag the arithmetic into float64); no `min` and `max`, which Numba's own CUDA target lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):
    setattr(np, "row_stack", np.vstack)  # noqa: B010 (numba-cuda 0.30 asks for this name, which NumPy 2.5 no longer has)
from llvmlite import ir
from numba import config, cuda, float32, types

try:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic
except ImportError:  # Numba's own CUDA target
    from numba.core import cgutils
    from numba.extending import intrinsic

config.CUDA_ARRAY_INTERFACE_SYNC = False  # CuPy and Numba share one stream, so its order is order enough
config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # a small grid is not a mistake

Array = Any
F1, F2, F3 = (types.Array(float32, n, "C") for n in (1, 2, 3))
I1 = types.Array(types.int64, 1, "C")
INT, FLOAT = types.int64, float32


@dataclass(frozen=True)
class Kernel:
    """A kernel, the types of its arguments, and what it may cost: checked for each architecture without a GPU."""

    name: str
    jitted: Any
    signature: tuple[Any, ...]
    threads: int
    registers: int  # at most, of one thread
    shared: int  # bytes at most, of one block
    least: int  # compute capability times 10 that it needs


KERNELS: dict[str, Kernel] = {}


def kernel(
    signature: tuple[Any, ...], *, threads: int, registers: int, shared: int = 0, least: int = 75, name: str = ""
) -> Any:
    """Declare a kernel together with its budget."""

    def declare(function: Callable[..., None]) -> Kernel:
        jitted = cuda.jit(function) if config.ENABLE_CUDASIM else cuda.jit(max_registers=registers)(function)
        found = Kernel(name or function.__name__, jitted, signature, threads, registers, shared, least)
        KERNELS[found.name] = found
        return found

    return declare


def device(function: Any) -> Any:
    """A function that kernels call."""
    return cuda.jit(device=True)(function)


LEGACY = 1  # the default stream by its own handle: handed on as 0, CuPy would warn of it


@functools.cache
def _stream(pointer: int) -> Any:
    return cuda.external_stream(pointer or LEGACY)


def _run(kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
    """On the GPU, on CuPy's current stream."""
    import cupy

    kernel.jitted[blocks, kernel.threads, _stream(cupy.cuda.get_current_stream().ptr)](*arguments)


run = _run  # the tests put an emulator here


def launch(kernel: Kernel, blocks: int, *arguments: Any) -> None:
    """Start the kernel on so many blocks, if any."""
    if blocks:
        run(kernel, blocks, arguments)


def cdiv(a: int, b: int) -> int:
    """⌈a / b⌉"""
    return -(-a // b)


# ---------------------------------------------------------------------------------------------------------------------
# What a door does with its arrays
# ---------------------------------------------------------------------------------------------------------------------


def check(name: str, *arrays: Any) -> None:
    """Refuse arrays of two devices: all that are given are on this one."""
    kinds = {type(x) for x in arrays if x is not None}
    if len(kinds) > 1:
        names = " and ".join(sorted(f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in kinds))
        raise TypeError(f"{name}: expected arrays on one device, got {names}")


def is_float32(*arrays: Any) -> bool:
    """Are all of them what the kernels are written for?"""
    return all(x.dtype == np.float32 for x in arrays if x is not None)


def plain(x: Array) -> Array:
    """x, or a copy of it in row order."""
    return x if x.flags.c_contiguous else x.copy()


def whole(index: Array) -> Array:
    """An index as the kernels take it."""
    return plain(index if index.dtype == np.int64 else index.astype(np.int64))


def empty(like: Array, shape: Any) -> Array:
    """A new float32 array where `like` is."""
    return np.empty_like(like, shape=shape, dtype=np.float32, order="C")


# ---------------------------------------------------------------------------------------------------------------------
# Instructions that numba.cuda has no name for
# ---------------------------------------------------------------------------------------------------------------------

_F, _I = ir.FloatType(), ir.IntType(32)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    return builder.bitcast(pointer, ir.PointerType(ir.VectorType(_F, 4), pointer.type.addrspace))


@intrinsic
def ld4(typing: Any, array: Any, index: Any) -> Any:
    """(a[i], a[i + 1], a[i + 2], a[i + 3]) of the flat array by one load of 16 bytes, to which the first must be aligned."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature.args[0], *arguments), align=16)
        return cgutils.pack_array(builder, [builder.extract_element(loaded, ir.Constant(_I, k)) for k in range(4)])

    return types.UniTuple(float32, 4)(array, types.intp), generate


@intrinsic
def tf32(typing: Any, x: Any) -> Any:
    """x rounded to the 10 bits of mantissa that a tensor core multiplies."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.call(ir.InlineAsm(ir.FunctionType(_I, [_F]), "cvt.rna.tf32.f32 $0, $1;", "=r,f"), arguments)
        return builder.bitcast(word, _F)

    return float32(float32), generate


@intrinsic
def mma(typing: Any, d: Any, a: Any, b: Any) -> Any:
    """D + A B over a warp, A: 16 × 8, B: 8 × 8, D: 16 × 8 (PTX: mma.sync.aligned.m16n8k8).

    Lane 4 g + q holds A[g, q], A[g + 8, q], A[g, q + 4], A[g + 8, q + 4];  B[q, g], B[q + 4, g];
    D[g, 2q], D[g, 2q + 1], D[g + 8, 2q], D[g + 8, 2q + 1].
    """
    fours, twos = types.UniTuple(float32, 4), types.UniTuple(float32, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        d, a, b = (cgutils.unpack_tuple(builder, x) for x in arguments)
        words = [builder.bitcast(x, _I) for x in (*a, *b)]
        function = ir.FunctionType(ir.LiteralStructType([_F] * 4), [_I] * 6 + [_F] * 4)
        text = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3},{$4,$5,$6,$7},{$8,$9},{$10,$11,$12,$13};"
        call = builder.call(ir.InlineAsm(function, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=True), [*words, *d])
        return cgutils.pack_array(builder, [builder.extract_value(call, k) for k in range(4)])

    return fours(fours, fours, twos), generate


# ---------------------------------------------------------------------------------------------------------------------
# Over a block
# ---------------------------------------------------------------------------------------------------------------------

WARPS = 4
THREADS = 32 * WARPS  # of a block that computes one row
FLAT = 256  # of a block that computes single elements


@device
def block_sum(x, shared):
    """Σ x over the block's four warps, for each thread; `shared` has room for one number of each warp."""
    for k in range(5):
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << k)
    if cuda.threadIdx.x % 32 == 0:
        shared[cuda.threadIdx.x // 32] = x
    cuda.syncthreads()
    total = shared[0] + shared[1] + shared[2] + shared[3]
    cuda.syncthreads()  # before the room is used again
    return total


@device
def block_max(x, shared):
    """max x over the block's four warps, for each thread. A NaN stays one."""
    for k in range(5):
        other = cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << k)
        x = x if x > other or x != x else other
    if cuda.threadIdx.x % 32 == 0:
        shared[cuda.threadIdx.x // 32] = x
    cuda.syncthreads()
    top = shared[0]
    for w in range(1, WARPS):
        top = top if top > shared[w] or top != top else shared[w]
    cuda.syncthreads()
    return top
