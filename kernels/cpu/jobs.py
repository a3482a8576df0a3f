"""Running a compiled loop on several threads, with all that the loop needs to know in one record.

A loop is a function (t, threads, where): the share of thread t of the work. `where` is the address of a *job*: a record of
64-bit integers (addresses, sizes, steps) with names, which are declared once, as a named tuple. A field may be such a tuple.

    class Sum(NamedTuple):
        x: Address
        count: int

    SUM = record(Sum)

    launch(loop, threads, Sum(x=array, count=array.size))        in Python: arrays become the addresses of their elements
    job = read(where, SUM);  … job.count …                       in the loop

Since a job holds integers alone, a loop is compiled once for both element types: the job says how many bytes an element has,
and what depends on its type is a C function that the loop calls by the address in the job.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, get_type_hints

import numba
import numpy as np
from numba.extending import intrinsic

from kernels.cpu.build import INT, VOID, Kernel, helper, kernel
from kernels.cpu.memory import Held, scratch
from kernels.cpu.simd import call, load, view

LINE = 64  # bytes of a cache line

# ---------------------------------------------------------------------------------------------------------------------
# In Python
# ---------------------------------------------------------------------------------------------------------------------


class Offsets(Held):
    """A table of integers that does not change, and its address; `of`: the tables whose addresses stand in it, if any."""

    __slots__ = ("of",)

    def __init__(self, table: Any, of: Any = ()) -> None:
        table = np.ascontiguousarray(table, np.int64)
        table.flags.writeable = False
        super().__init__(table.ctypes.data, table)
        self.of = of

    def __len__(self) -> int:
        return len(self.array)


Address = int | Held | np.ndarray


def record(fields: type) -> np.dtype:
    """The layout of a named tuple of integers, or of such tuples, in memory."""
    hints = get_type_hints(fields).items()
    return np.dtype([(name, record(kind) if hasattr(kind, "_fields") else np.int64) for name, kind in hints])


def integers(job: Any) -> list[int]:
    """The fields of a job in the order of its record."""
    numbers: list[int] = []
    for field in job:
        if type(field) is int:  # as most are
            numbers.append(field)
        elif isinstance(field, Held):
            numbers.append(field.address)
        elif isinstance(field, np.ndarray):
            numbers.append(field.ctypes.data)
        elif isinstance(field, tuple):
            numbers += integers(field)
        else:
            numbers.append(field)
    return numbers


def part(function: Any) -> Kernel:
    """Decorator: a loop, function(t, threads, where)."""
    return Kernel(function, lambda element: VOID(INT, INT, INT), callback=True)


def launch(loop: Kernel, threads: int, job: Any) -> None:
    """loop(t, threads, job) for each t < threads."""
    numbers = np.array(integers(job), np.int64)
    _launch["f"](loop["f"], numbers.ctypes.data, threads)


def whole_lines(size: int) -> int:
    """So many bytes, rounded up to whole cache lines."""
    return -(-size // LINE) * LINE


def workspace(*sizes: int) -> list[Held]:
    """Pieces of so many bytes, each on a cache line, of this thread's workspace: valid until the thread asks again."""
    starts = [0, *accumulate(map(whole_lines, sizes))]
    whole = scratch("d", starts[-1] // 8)
    first = whole.ctypes.data
    return [Held(first + start, whole) for start in starts[:-1]]


# ---------------------------------------------------------------------------------------------------------------------
# In compiled code
# ---------------------------------------------------------------------------------------------------------------------


@kernel(lambda element: VOID(INT, INT, INT), parallel=True)
def _launch(function, job, threads):
    if threads == 1:
        call(function, (0, 1, job))
    else:
        for t in numba.prange(threads):
            call(function, (np.int64(t), threads, job))


@intrinsic
def read(typingctx: Any, where: Any, kind: Any) -> Any:
    """The record at an address; its fields are read from memory when they are named."""
    fields = kind.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(fields))

    return fields(where, kind), codegen


@helper
def portion(i, parts, total):
    """The bounds of the i-th of so many even parts of 0 … total: 14 in three parts is 4 + 5 + 5, not 6 + 6 + 2."""
    return i * total // parts, (i + 1) * total // parts


@helper
def entry(table, i):
    """table[i], a table of integers by its address"""
    return load(table + 8 * i, np.int64(0))


@helper
def lines(size):
    """`whole_lines`, in compiled code"""
    return (size + LINE - 1) // LINE * LINE


@helper
def zero(where, size):
    """Zeros over so many bytes, a multiple of 4."""
    words = view(where, size // 4, np.float32(0))
    for i in range(words.size):
        words[i] = np.float32(0)
