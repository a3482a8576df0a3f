"""Runs the source of CUDA kernels, in this process, without a GPU.

`launch(kernel, blocks, arguments)` takes the Python function of a kernel of `kernels.cuda`, replaces `cuda`, the types and the
intrinsics by stand-ins, and runs every thread of a block as a greenlet, which gives way only at barriers and at operations of
a warp. Fresh memory is NaN. An index out of bounds raises; so do threads that wait for each other in vain, or at different
barriers. The threads of a block run in a chosen order ("forward", "reverse", "shuffled"): a kernel whose result depends on the
order lacks a barrier.

The emulator does not see bank conflicts, alignment beyond what the stand-ins assert, float64 where float32 was meant
(tests/test_cuda_compile.py looks for that), and two threads that write the same value to one element.
"""

import contextvars
import random
import sys
import types as python
from math import erf

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda as real_cuda
from numba import types
from numba.np.numpy_support import as_dtype


class BarrierError(RuntimeError):
    """Threads wait for each other in vain."""


class Thread:
    """One thread of a block: `wait` is what it waits for, `reply` what it receives then."""

    __slots__ = ("block", "greenlet", "index", "lane", "reply", "wait", "warp")


class Block:
    def __init__(self, index, threads):
        self.index, self.threads, self.shared = index, threads, {}


class Axis:
    """threadIdx and its kin; the kernels use x alone."""

    def __init__(self, x):
        self.x = x


def fresh(shape, dtype):
    dtype = as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)
    array = np.empty(shape, dtype)
    array.fill(np.nan if dtype.kind == "f" else 0xA5)
    return array


class Shared:
    def array(self, shape, dtype):
        frame = sys._getframe(1)
        call = frame.f_code, frame.f_lasti  # each call in the source makes one array for all threads of the block
        shared = getcurrent().thread.block.shared
        if call not in shared:
            shared[call] = fresh(shape, dtype)
        return shared[call]


class Local:
    def array(self, shape, dtype):
        return fresh(shape, dtype)


def ask(*what):
    """Give way until the others have come to the same call."""
    thread = getcurrent().thread
    thread.wait = what
    thread.greenlet.parent.switch()
    reply, thread.reply = thread.reply, None
    return reply


class Cuda:
    """The names of numba.cuda that the kernels use."""

    shared, local = Shared(), Local()

    def __init__(self, threads):
        self.blockDim = Axis(threads)

    threadIdx = property(lambda self: Axis(getcurrent().thread.index))
    blockIdx = property(lambda self: Axis(getcurrent().thread.block.index))

    def grid(self, dimensions):
        thread = getcurrent().thread
        return thread.block.index * self.blockDim.x + thread.index

    def syncthreads(self):
        ask("block", sys._getframe(1).f_lineno)

    def shfl_xor_sync(self, mask, value, distance):
        values = ask("warp", mask, value)
        lane = getcurrent().thread.lane ^ distance
        return values.get(lane, value)


def ld4(array, index):
    assert index % 4 == 0, "a load of 16 bytes from an address that is no multiple of 16"
    assert index + 4 <= array.size
    return tuple(array.reshape(-1)[int(index) : int(index) + 4])


def tf32(x):
    """Round to nearest, ties away from zero, at 10 bits of mantissa."""
    return np.uint32((int(np.float32(x).view(np.uint32)) + 0x1000) & 0xFFFFE000).view(np.float32)


def mma(d, a, b):
    """Each lane's part of D + A B, from the parts of A and B that all lanes of its warp hold."""
    lanes = ask("warp", 0xFFFFFFFF, (a, b))
    g, q = divmod(getcurrent().thread.lane, 4)
    A = {(g + 8 * (e % 2), p + 4 * (e // 2)): lanes[4 * g + p][0][e] for p in range(4) for e in range(4)}
    B = {(p + 4 * e, 2 * q + n): lanes[4 * (2 * q + n) + p][1][e] for p in range(4) for e in range(2) for n in range(2)}
    elements = [(g, 2 * q), (g, 2 * q + 1), (g + 8, 2 * q), (g + 8, 2 * q + 1)]
    return tuple(
        np.float32(x + sum(np.float64(A[i, k]) * np.float64(B[k, j]) for k in range(8)))
        for x, (i, j) in zip(d, elements, strict=True)
    )


class Math:
    """The functions of `math`, as a GPU has them: in float32, with infinities instead of exceptions."""

    exp, expm1, log, log1p, sqrt, tanh = np.exp, np.expm1, np.log, np.log1p, np.sqrt, np.tanh

    @staticmethod
    def erf(x):
        return np.float32(erf(float(x)))


class Wrapped(dict):
    """The conversion to an unsigned integer type, as a table: kernels convert small constants in their inmost loops."""

    def __init__(self, scalar):
        super().__init__((n, scalar(n)) for n in range(1024))
        self.scalar, self.low_bits = scalar, 2 ** (8 * np.dtype(scalar).itemsize) - 1

    def __missing__(self, x):  # negative numbers wrap around
        return self.scalar(x if isinstance(x, np.unsignedinteger) and x <= self.low_bits else int(x) & self.low_bits)


CASTS = {
    types.float32: np.float32,
    types.uint32: Wrapped(np.uint32).__getitem__,
    types.uint64: Wrapped(np.uint64).__getitem__,
}


def translated(function, stand_ins, done):
    """The function with stand-ins in its globals and closure, and so for every device function that it calls."""
    if function in done:
        return done[function]
    names = dict(function.__globals__)
    cells = tuple(python.CellType() for _ in function.__closure__ or ())
    new = python.FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells or None)
    done[function] = new

    def stand_in(value):
        try:
            if value in stand_ins:
                return stand_ins[value]
        except TypeError:  # not hashable
            pass
        source = getattr(value, "py_func", None)
        return value if source is None else translated(source, stand_ins, done)

    for name in function.__code__.co_names:
        if name in names:
            names[name] = stand_in(names[name])
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        cell.cell_contents = stand_in(original.cell_contents)
    return new


def launch(kernel, blocks, arguments, order="forward", seed=0):
    """Run the kernel on `blocks` blocks, one after the other."""
    import math

    from kernels.cuda import build

    stand_ins = {**CASTS, real_cuda: Cuda(kernel.threads), math: Math, build.ld4: ld4, build.tf32: tf32, build.mma: mma}
    function = translated(kernel.jitted.py_func, stand_ins, {})
    arguments = tuple(getattr(x, "host", x) for x in arguments)  # the arrays inside those of standin.py
    for x in arguments:
        if isinstance(x, np.ndarray):
            assert x.flags.c_contiguous, f"{kernel.name}: an array that does not lie in row order"
    shuffle = random.Random(seed)
    with np.errstate(all="ignore"):
        for index in range(blocks):
            block = Block(index, kernel.threads)
            threads = [started(function, arguments, block, t) for t in range(kernel.threads)]
            if order == "reverse":
                threads.reverse()
            elif order == "shuffled":
                shuffle.shuffle(threads)
            run(threads)


def started(function, arguments, block, index):
    thread = Thread()
    thread.block, thread.index, thread.lane, thread.warp = block, index, index % 32, index // 32
    thread.wait = thread.reply = None
    thread.greenlet = greenlet(lambda: function(*arguments))
    thread.greenlet.gr_context = contextvars.copy_context()  # NumPy's error state
    thread.greenlet.thread = thread
    return thread


def run(live):
    """Let the threads run from one barrier to the next until all have ended: a warp goes on as far as it can by itself."""
    while live:
        warps = {}
        for thread in live:
            warps.setdefault(thread.warp, []).append(thread)
        for threads in warps.values():
            run_warp(threads)
        live = [thread for thread in live if not thread.greenlet.dead]
        if not live:
            return
        if len({thread.wait for thread in live}) > 1:
            raise BarrierError("threads of a block wait at different barriers")
        if len(live) < live[0].block.threads:
            raise BarrierError("some threads of the block have ended before a barrier")
        for thread in live:
            thread.wait = None


def run_warp(threads):
    """Until every thread has ended or waits for the block."""
    while True:
        for thread in threads:
            if thread.wait is None:
                thread.greenlet.switch()
        threads = [thread for thread in threads if not thread.greenlet.dead]
        meeting = [thread for thread in threads if thread.wait[0] == "warp"]
        if not meeting:
            return
        if len(meeting) < 32:
            raise BarrierError(f"{len(meeting)} threads of a warp exchange values, and wait in vain for the others")
        values = {thread.lane: thread.wait[2] for thread in meeting}
        for thread in meeting:
            thread.wait, thread.reply = None, values
