"""The pool of threads: how the parts of a parallel kernel are shared out, on POSIX's threads.

A compiled kernel that runs `for t in prange(…)` calls a function by the name of `numba_parallel_for` with its parts. `linked`
lets our kernels, and no others, find `launch` under that name:

    launch(job)                                             work(me), what each other thread does for ever
      left ← parts of the job                                 wait for another ticket: look SPINS times, then sleep
      ticket ← (number of the job, parts)                     take(ticket, me)
      wake the threads that sleep                           take(ticket, first)
      take(ticket, 0)                                         for p = first, first + 1, … modulo parts:
      wait until left = 0                                       if claims[p] < ticket:  claims[p] ← ticket        (at once)
                                                                  do part p;  left ← left − 1

A part that its own thread has not begun is done by another. For busy programs may keep a thread from its core for
milliseconds; then the others need not wait for it, unless it is in the middle of a part. Each thread first asks for the part
whose index is its own, and so finds in its cache what it left there. Which thread does a part changes no bit, since the parts
stay the same. They are the same, too, where the calling thread does all of them:

    with one thread                      no second thread is made, let alone woken
    in a forked child                    the threads stayed with the parent
    while another thread of Python       its kernel uses the pool
    is in a kernel
    where POSIX's threads are missing    on Windows

A thread that finds the ticket of a job that is over claims nothing, since each part of that job was claimed.
Why not OpenMP's pool, which Numba would use: it ends a forked child that calls for it, makes a new team for each thread
of Python, and always waits for all its threads. A GPT step of 12 ms took 33 to 90 ms beside two busy programs on two cores.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.build import INT, VOID, helper, kernel
from kernels.cpu.simd import call, load, store
from kernels.cpu.threads import threads

SPINS = 10000  # looks for news before a thread sleeps: 0.1 to 0.2 ms, longer than the pauses between the kernels of a step
PARTS = 256  # of a job, at most
ARGUMENTS = 64  # of a job, at most; and dimensions
LINE = 64  # bytes that caches keep together: what two threads write lies on two lines

# The words of memory that the threads share: one on each line, then the claims, then each part's own arguments and sizes.
TICKET, LEFT, SLEEPING, WAITING, LIMIT, BUSY = range(0, 6 * LINE, LINE)
FUNCTION, VALUES, SIZES, STEPS, DATA, DIMENSIONS, COUNT = range(6 * LINE, 6 * LINE + 7 * 8, 8)  # of the job
MUTEX, NEWS, DONE = range(8 * LINE, 14 * LINE, 2 * LINE)  # a mutex and two conditions of pthread
INIT_MUTEX, INIT_CONDITION, LOCK, UNLOCK, WAIT, WAKE = range(14 * LINE, 14 * LINE + 6 * 8, 8)  # pthread's functions
CLAIMS = 15 * LINE
OWN = CLAIMS + LINE * PARTS
BYTES = OWN + 2 * 8 * ARGUMENTS * PARTS
PTHREAD = ("mutex_init", "cond_init", "mutex_lock", "mutex_unlock", "cond_wait", "cond_broadcast")
PARALLEL_FOR = "numba_parallel_for"


# ---------------------------------------------------------------------------------------------------------------------
# Words of memory that several threads read and write
# ---------------------------------------------------------------------------------------------------------------------


def _at(builder: Any, where: Any) -> Any:
    return builder.inttoptr(where, ir.IntType(64).as_pointer())


@intrinsic
def peek(typingctx: Any, where: Any) -> Any:
    """The integer at an address, as the other threads left it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_at(builder, args[0]), "seq_cst", 8)

    return types.intp(types.intp), codegen


@intrinsic
def poke(typingctx: Any, where: Any, value: Any) -> Any:
    """Write an integer that other threads read: they then see all that was written before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _at(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def swap(typingctx: Any, where: Any, before: Any, after: Any) -> Any:
    """Turn `before` into `after`, at once; false, and nothing done, where another value is found."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_value(builder.cmpxchg(_at(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.intp, types.intp, types.intp), codegen


@intrinsic
def add(typingctx: Any, where: Any, change: Any) -> Any:
    """Add to an integer, at once; returns the sum."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(builder.atomic_rmw("add", _at(builder, args[0]), args[1], "seq_cst"), args[1])

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        hint = {"x86_64": ("llvm.x86.sse2.pause",), "aarch64": ("llvm.aarch64.hint", 1), "arm64": ("llvm.aarch64.hint", 1)}
        name, *arguments = hint.get(platform.machine(), ("",))
        if name:
            arguments = [ir.IntType(32)(n) for n in arguments]
            kind = ir.FunctionType(ir.VoidType(), [n.type for n in arguments])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), codegen


# ---------------------------------------------------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------------------------------------------------


@helper
def lock(pool):
    call(load(pool + LOCK, 0), (pool + MUTEX,))


@helper
def unlock(pool):
    call(load(pool + UNLOCK, 0), (pool + MUTEX,))


@helper
def sleep(pool, condition):
    """Wait, the mutex released, until the condition is told; pthread may also wake a thread without cause."""
    call(load(pool + WAIT, 0), (pool + condition, pool + MUTEX))


@helper
def tell(pool, condition):
    """Wake all threads that sleep on a condition."""
    lock(pool)
    call(load(pool + WAKE, 0), (pool + condition,))
    unlock(pool)


@helper
def do(pool, p):
    """Part p of the job: the job's function on arguments moved on by p steps, with a leading size of 1"""
    count, steps, values, sizes = load(pool + COUNT, 0), load(pool + STEPS, 0), load(pool + VALUES, 0), load(pool + SIZES, 0)
    own = pool + OWN + 2 * 8 * ARGUMENTS * p
    own_sizes = own + 8 * ARGUMENTS
    for j in range(count):
        store(own + 8 * j, load(values + 8 * j, 0) + p * load(steps + 8 * j, 0))
    store(own_sizes, 1)
    for j in range(1, load(pool + DIMENSIONS, 0) + 1):
        store(own_sizes + 8 * j, load(sizes + 8 * j, 0))
    call(load(pool + FUNCTION, 0), (own, own_sizes, steps, load(pool + DATA, 0)))


@helper
def take(pool, ticket, first):
    """Do those parts of the ticket's job that no thread has claimed."""
    parts = ticket & 0xFFFF
    for i in range(parts):
        p = (first + i) % parts
        claim = pool + CLAIMS + LINE * p
        before = peek(claim)
        if before < ticket and swap(claim, before, ticket):
            do(pool, p)
            if add(pool + LEFT, -1) == 0 and peek(pool + WAITING) == 1:
                tell(pool, DONE)


@kernel(lambda element: VOID(*[INT] * 9), callback=True)
def launch(pool, function, values, sizes, steps, data, dimensions, count, team):
    """What a kernel calls: do all parts of a job, with whatever threads have time."""
    parts = load(sizes, 0)
    small = 1 < parts <= PARTS and count <= ARGUMENTS and dimensions < ARGUMENTS
    if not (small and peek(pool + LIMIT) > 1 and swap(pool + BUSY, 0, 1)):
        call(function, (values, sizes, steps, data))
        return
    store(pool + FUNCTION, function)
    store(pool + VALUES, values)
    store(pool + SIZES, sizes)
    store(pool + STEPS, steps)
    store(pool + DATA, data)
    store(pool + DIMENSIONS, dimensions)
    store(pool + COUNT, count)
    poke(pool + LEFT, parts)
    ticket = (((peek(pool + TICKET) >> 16) + 1) << 16) + parts
    poke(pool + TICKET, ticket)
    if peek(pool + SLEEPING) > 0:
        tell(pool, NEWS)
    take(pool, ticket, 0)
    spins = 0
    while peek(pool + LEFT) > 0 and spins < SPINS:
        spins += 1
        pause()
    if peek(pool + LEFT) > 0:
        lock(pool)
        poke(pool + WAITING, 1)
        while peek(pool + LEFT) > 0:
            sleep(pool, DONE)
        poke(pool + WAITING, 0)
        unlock(pool)
    poke(pool + BUSY, 0)


@kernel(lambda element: VOID(INT, INT), callback=True)
def work(pool, me):
    """What each other thread does for ever."""
    seen = 0
    while True:
        spins = 0
        while peek(pool + TICKET) == seen and spins < SPINS:
            spins += 1
            pause()
        if peek(pool + TICKET) == seen:
            lock(pool)
            add(pool + SLEEPING, 1)
            while peek(pool + TICKET) == seen:
                sleep(pool, NEWS)
            add(pool + SLEEPING, -1)
            unlock(pool)
        seen = peek(pool + TICKET)
        if me < peek(pool + LIMIT):
            take(pool, seen, me)


@kernel(lambda element: VOID(INT), callback=True)
def prepare(pool):
    """The mutex and the conditions of a new pool"""
    call(load(pool + INIT_MUTEX, 0), (pool + MUTEX, 0))
    call(load(pool + INIT_CONDITION, 0), (pool + NEWS, 0))
    call(load(pool + INIT_CONDITION, 0), (pool + DONE, 0))


# ---------------------------------------------------------------------------------------------------------------------
# The pool
# ---------------------------------------------------------------------------------------------------------------------


class Pool:
    """The threads, the memory that they share, and `address`: the function that compiled kernels call."""

    def __init__(self) -> None:
        memory = np.zeros(BYTES + LINE, np.uint8)
        skip = -memory.ctypes.data % LINE
        self.words = memory[skip : skip + BYTES].view(np.int64)
        self.base = self.words.ctypes.data  # valid as long as this object, which is never freed, holds the memory
        self.count = 1  # of threads, the one that calls among them
        self.forked = False
        self.start = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(work["f"])
        self.possible = self._find_pthread()
        self.address = self._entry()
        self.set_threads(threads())
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _find_pthread(self) -> bool:
        try:
            library = ctypes.CDLL(None)
            functions = [getattr(library, f"pthread_{name}") for name in PTHREAD]
        except (AttributeError, OSError, TypeError):
            return False
        for i, function in enumerate(functions):
            self.words[INIT_MUTEX // 8 + i] = ctypes.cast(function, ctypes.c_void_p).value
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(prepare["f"])(self.base)
        return True

    def _entry(self) -> int:
        """`launch` with the pool as its first argument, which Numba's kernels do not know."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        int64 = ir.IntType(64)
        module = ir.Module("entry")
        module.triple = llvm.get_process_triple()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [int64] * 8), "entry")
        builder = ir.IRBuilder(function.append_basic_block())
        inner = builder.inttoptr(int64(launch["f"]), ir.FunctionType(ir.VoidType(), [int64] * 9).as_pointer())
        builder.call(inner, [int64(self.base), *function.args])
        builder.ret_void()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
        self.engine.finalize_object()
        return self.engine.get_function_address("entry")

    def set_threads(self, n: int) -> None:
        """From now on n threads work, new ones among them."""
        if self.forked or not self.possible:
            return
        for me in range(self.count, n):
            arguments = self.base, me
            threading.Thread(target=self.start, args=arguments, name=f"kernels-{me}", daemon=True).start()
        self.count = max(self.count, n)
        self.words[LIMIT // 8] = n

    def _after_fork(self) -> None:
        self.forked = True
        self.words[LIMIT // 8] = 0


@lru_cache(maxsize=1)
def pool() -> Pool:
    """The process's pool, made when the first parallel kernel is loaded."""
    return Pool()


@contextmanager
def linked() -> Any:
    """Inside the `with`, machine code that is loaded and calls Numba's pool calls ours instead."""
    import_module("numba.np.ufunc.parallel")._launch_threads()  # so that machine code finds the other functions it calls
    theirs, ours = llvm.address_of_symbol(PARALLEL_FOR), pool().address
    llvm.add_symbol(PARALLEL_FOR, ours)
    try:
        yield
    finally:
        llvm.add_symbol(PARALLEL_FOR, theirs)
