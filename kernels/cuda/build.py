"""How a kernel is declared and launched, helpers of the functions that launch, and instructions that Numba has no name for.

    @kernel((F1, F1), threads=FLAT, registers=40)           types of the arguments; the budget of a block of threads
    def twice(x, y):
        i = cuda.grid(1)                                    block · threads + thread: a thread for each element
        if i < x.size:                                      the last block has threads left over
            y[i] = x[i] + x[i]

    launch(twice, cdiv(x.size, FLAT), x, y)                 on as many blocks as the elements need

NVVM makes good machine code of kernels that keep to five rules, which tests/test_cuda_compile.py checks:
- A local array is indexed only by loops of constant length. NVVM unrolls these, so the array lies in registers.
- Thread indices of the products and of attention are unsigned: a signed index costs a test for negative ones.
- The sizes of tiles are Python integers of the closure, which the compiler knows.
- Every constant is a float32: a Python float would make the arithmetic float64.
- `min` and `max` are not called: Numba's own CUDA target lacks them.
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

config.CUDA_ARRAY_INTERFACE_SYNC = False  # CuPy and Numba share a stream, which keeps their work in order
config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # a small grid is not a mistake

Array = Any
F1, F2, F3, F4 = (types.Array(float32, n, "C") for n in (1, 2, 3, 4))
I1 = types.Array(types.int64, 1, "C")
INT, FLOAT = types.int64, float32

WARPS = 4
THREADS = 32 * WARPS  # of a block that computes a row or a channel together
FLAT = 256  # threads of a block whose threads compute an element each


@dataclass(frozen=True)
class Kernel:
    """A kernel, the types of its arguments and its budget, which the tests check for each architecture without a GPU."""

    name: str
    jitted: Any
    signature: tuple[Any, ...]
    threads: int  # of one block
    registers: int  # that one thread may use
    shared: int  # bytes that one block may use
    least: int  # 10 times the least compute capability that has the kernel's instructions


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


def record(kind: type, **fields: Any) -> Any:
    """The type of a kernel's argument that is a named tuple of numbers: each field float32, unless `fields` has its type."""
    return types.NamedTuple([fields.get(name, FLOAT) for name in kind._fields], kind)


LEGACY = 1  # the handle of the default stream; CuPy warns where it meets the stream as 0


@functools.cache
def _stream(pointer: int) -> Any:
    return cuda.external_stream(pointer or LEGACY)


def _run(kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
    """On the GPU, on CuPy's current stream."""
    import cupy

    kernel.jitted[blocks, kernel.threads, _stream(cupy.cuda.get_current_stream().ptr)](*arguments)


run = _run  # the tests replace it by an emulator


def launch(kernel: Kernel, blocks: int, *arguments: Any) -> None:
    """Start the kernel on `blocks` blocks. With none nothing is started."""
    if blocks:
        run(kernel, blocks, arguments)


def cdiv(a: int, b: int) -> int:
    """⌈a / b⌉"""
    return -(-a // b)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


def check(name: str, *arrays: Any) -> None:
    """Raise TypeError unless all arrays are on one device."""
    kinds = {type(x) for x in arrays if x is not None}
    if len(kinds) > 1:
        names = " and ".join(sorted(f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in kinds))
        raise TypeError(f"{name}: expected arrays on one device, got {names}")


def is_float32(*arrays: Any) -> bool:
    """Are all arrays float32, the type that the kernels are written for?"""
    return all(x.dtype == np.float32 for x in arrays if x is not None)


def plain(x: Array) -> Array:
    """x, or a copy of it in row order."""
    return x if x.flags.c_contiguous else x.copy()


def whole(index: Array) -> Array:
    """An array of indices as int64 in row order, as the kernels take it."""
    return plain(index if index.dtype == np.int64 else index.astype(np.int64))


def empty(like: Array, shape: Any) -> Array:
    """A new float32 array on the device of `like`."""
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
