"""One pool of threads for all kernels: Numba's. SCRATCHGEN_THREADS sets how many; by default, one for each core.

Work is cut into as many equal parts as there are threads, in an order that does not depend on the clock: the same bits
at the same number of threads. A threaded BLAS beside the pool makes both ten times slower, since the idle threads of
each keep spinning on the cores of the other: the kernels call none.

A compiled kernel hands its parts to Numba's pool by calling `numba_parallel_for`. `linked` lets our kernels, and no others,
find `_launcher` under that name, which calls the pool or, where the pool cannot be had, all parts one after the other. The
parts are the same, and so are the bits. The pool cannot be had

    with one thread                      no second thread is made, let alone woken
    in a forked child                    the pool's threads stayed with the parent; OpenMP ends a child that calls for them
    while another thread of Python       Numba's own pool ends the process when two threads call at once, and OpenMP makes
    is using the pool                    a second team, for which there are no cores

Idle threads of OpenMP's pool spin for some milliseconds before they sleep. Beside other programs that is time taken from
those, and from the thread that the pool is waiting for: a GPT step of 12 ms then took 33 to 90 ms. If they spin for a tenth
of a millisecond, longer than the pauses between the kernels of a step, the step takes 26 to 30 ms, and on an idle machine
12 ms as before; if they sleep at once, 15 to 20 ms there. So `_load_pool` asks for that, unless the user has asked for
something else.  (AMD EPYC with AVX-512, two cores, two busy programs beside the step.)
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir

from kernels import settings

SPINS = "10000"  # looks of an idle thread for work before it sleeps: about 0.1 ms
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # what a user sets who knows better
PARALLEL_FOR = "numba_parallel_for"


def _wanted() -> int:
    most = numba.config.NUMBA_NUM_THREADS
    return min(settings.threads() or most, most)


_count = _wanted()
_limit = ctypes.c_int64(_count)  # how many threads may work at once
_busy = ctypes.c_int64(0)  # 1 while a thread of Python uses the pool


def threads() -> int:
    """How many parts kernels cut their work into: the number of threads, also where one thread has to do all of them."""
    return _count


def set_threads(n: int) -> None:
    """Use n threads from now on, at most as many as the pool has."""
    global _count
    if not 1 <= n <= numba.config.NUMBA_NUM_THREADS:
        raise ValueError(f"set_threads: expected 1 to {numba.config.NUMBA_NUM_THREADS}, got {n}")
    _count = n
    if _limit.value:  # not in a forked child
        _limit.value = n


def _no_pool() -> None:
    _limit.value = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_no_pool)


def _load_pool() -> int:
    """The address of the pool's `parallel_for`, with OpenMP's idle threads told how long to spin.

    OpenMP reads the environment when its library is loaded; the environment is then as it was, for child processes.
    """
    ours = not any(name in os.environ for name in WAITING)
    if ours:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        import_module("numba.np.ufunc.parallel")._launch_threads()
    finally:
        if ours:
            del os.environ["GOMP_SPINCOUNT"]
    return llvm.address_of_symbol(PARALLEL_FOR)


@lru_cache(maxsize=1)
def _launcher() -> tuple[int, int, Any]:
    """The addresses of the pool's `parallel_for` and of ours, and what keeps the latter alive.

        if limit > 1 and busy turns from 0 to 1:
            parallel_for(part, arguments, sizes, steps, data, dimensions, count, min(threads, limit))
            busy = 0
        else:
            part(arguments, sizes, steps, data)             all parts
    """
    pool = _load_pool()
    number, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [pointer] * 5 + [number] * 3)
    module = ir.Module("launcher")
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, signature, "launch")
    builder = ir.IRBuilder(function.append_basic_block())
    limit, busy = (builder.inttoptr(number(ctypes.addressof(x)), number.as_pointer()) for x in (_limit, _busy))
    with_pool, alone = function.append_basic_block("pool"), function.append_basic_block("alone")
    most = builder.load_atomic(limit, "monotonic", 8)
    asks = function.append_basic_block("asks")
    builder.cbranch(builder.icmp_signed(">", most, number(1)), asks, alone)
    builder.position_at_end(asks)
    turned = builder.cmpxchg(busy, number(0), number(1), "acquire", "monotonic")
    builder.cbranch(builder.extract_value(turned, 1), with_pool, alone)
    builder.position_at_end(with_pool)
    *arguments, team = function.args
    team = builder.select(builder.icmp_signed("<", team, most), team, most)
    builder.call(builder.inttoptr(number(pool), signature.as_pointer()), [*arguments, team])
    builder.store_atomic(number(0), busy, "release", 8)
    builder.ret_void()
    builder.position_at_end(alone)
    part = ir.FunctionType(ir.VoidType(), [pointer] * 4).as_pointer()
    builder.call(builder.bitcast(function.args[0], part), function.args[1:5])
    builder.ret_void()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    return pool, engine.get_function_address("launch"), engine


@contextmanager
def linked() -> Any:
    """Inside the `with`, machine code that is loaded and calls Numba's pool calls `_launcher` instead."""
    pool, ours, _ = _launcher()
    llvm.add_symbol(PARALLEL_FOR, ours)
    try:
        yield
    finally:
        llvm.add_symbol(PARALLEL_FOR, pool)
