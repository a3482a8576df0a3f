"""Compiling, once: each kernel for each element type when it is first called, kept on disk from then on.

Numba keeps a function's machine code beside its source and takes it for fresh while that one file is unchanged, though
what it calls may stand in another. Here the folder of the cache is named after the contents of all the sources, the
processor and the width of the vectors, so an edit anywhere, or a forced width, starts a new one.

A child process compiles, and this one always reads back from disk: what Numba has just compiled and what it reads back may
add up in different orders, and the first run on a machine has to give the bits of all later ones. The compiler's memory is
the child's too.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np

from kernels.cpu import threads

TYPES = {"f": numba.float32, "d": numba.float64}
LETTERS = {np.dtype(letter): letter for letter in TYPES}  # other types, the other byte order too, are the reference's
PLAIN = {"error_model": "numpy"}  # x / 0 is an infinity, as in NumPy, not an exception
SUMS = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}  # sums in any order; −∞ and NaN keep their meaning

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child that is forked while another thread compiles finds the lock free
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    machine = f"{llvm.get_host_cpu_name()} {numba.__version__} {os.environ.get('SCRATCHGEN_SIMD', '')}"
    digest = hashlib.sha256(machine.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    if "NUMBA_CACHE_DIR" in os.environ:
        root = Path(os.environ["NUMBA_CACHE_DIR"])
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scratchgen"
    return root / f"kernels-{digest.hexdigest()[:16]}"


class _Progress:
    """One line on stderr while kernels compile: rewritten on a terminal, written once, at the start, in a log."""

    def __init__(self) -> None:
        self.count, self.seconds, self.shown = 0, 0.0, False

    def start(self) -> None:
        self.count += 1
        self.since = time.perf_counter()
        if sys.stderr.isatty():
            self._say()
        elif not self.shown:
            print("compiling kernels, once: up to a minute", file=sys.stderr, flush=True)
        self.shown = True

    def end(self) -> None:
        self.seconds += time.perf_counter() - self.since
        if sys.stderr.isatty():
            self._say()

    def _say(self) -> None:
        text = f"compiling {self.count} kernel{'s' * (self.count > 1)}, once: {self.seconds:.0f} s"
        print(f"\r{text}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """A line of its own, and the next text below it."""
        if self.shown and sys.stderr.isatty():
            print(file=sys.stderr)


progress = _Progress()
atexit.register(progress.finish)


def compile_seconds() -> tuple[int, float]:
    """How many kernels this process has compiled, and for how long; 0 where all came from disk."""
    return progress.count, progress.seconds


class Kernel(dict):
    """The compiled forms of one function, by the letter of their element type: `kernel["f"](…)`.

    `signature` makes Numba's signature from the element type. A C callback (`callback=True`) becomes its address. What is
    `unchecked` is called past Numba's choice by the types of the arguments, which costs as much again as handing them over:
    a number of dimensions or a size of elements that is wrong still raises, another wrong type or layout is the caller's.
    """

    def __init__(
        self, function: Callable, signature: Callable, callback: bool = False, unchecked: bool = False, **options: Any
    ) -> None:
        self.function, self.signature, self.callback, self.unchecked = function, signature, callback, unchecked
        self.kept: list[Any] = []  # the address of a callback is valid while the object lives
        self.options = {**PLAIN, **options}

    def __missing__(self, letter: str) -> Any:
        with _lock:
            if letter not in self:
                # In a thread of its own: the compiler leaves cycles with its frames behind, and these would keep the
                # callers' frames, and all arrays in them, alive until the garbage collector comes by.
                with ThreadPoolExecutor(1) as aside:
                    self[letter] = aside.submit(self._ready, letter).result()
            return self[letter]

    def _ready(self, letter: str) -> Any:
        """Compiled by the child if it never was, then read from disk."""
        done = cache_folder() / f"{self.function.__module__}.{self.function.__name__}.{letter}"
        if not done.exists():
            progress.start()
            try:
                if _child.compile(self.function.__module__, self.function.__name__, letter):
                    done.touch()
                else:  # nowhere to keep it, or no child to be had: compiled again in each process
                    return self._keep(self.compile(letter, cache=False))
            finally:
                progress.end()
        return self._keep(self.compile(letter))

    def compile(self, letter: str, cache: bool = True) -> Any:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(cache_folder())
        try:
            make = numba.cfunc if self.callback else numba.njit
            with threads.linked() if self.options.get("parallel") else nullcontext():
                return make(self.signature(TYPES[letter]), cache=cache, **self.options)(self.function)
        finally:
            numba.config.CACHE_DIR = before

    def _keep(self, compiled: Any) -> Any:
        self.kept.append(compiled)
        if self.callback:
            return compiled.address
        return compiled.get_overload(compiled.signatures[0]) if self.unchecked else compiled


class _Child:
    """A process that compiles what it is told to, one kernel a line, and keeps it on disk."""

    process: subprocess.Popen | None = None

    def compile(self, module: str, name: str, letter: str) -> bool:
        """False where that cannot be done: no folder to write to, no interpreter to start."""
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            (cache_folder() / "writable").touch()
            if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                self._start()
            self.process.stdin.write(f"{module} {name} {letter}\n")
            self.process.stdin.flush()
            return self.process.stdout.readline() == "done\n"
        except OSError:
            return False

    def _start(self) -> None:
        self.owner = os.getpid()
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernels.cpu.build"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def close(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.communicate()


_child = _Child()
atexit.register(_child.close)


def kernel(signature: Callable, **options: Any) -> Callable[[Callable], Kernel]:
    """Decorator: a function that is compiled when first wanted, with its signature as a function of the element type."""
    return lambda function: Kernel(function, signature, **options)


def helper(function: Callable) -> Any:
    """A function that kernels call; compiled into each of them."""
    return numba.njit(function, **PLAIN)


def sums(function: Callable) -> Any:
    """A helper whose sums may be taken in any order, so that they vectorise."""
    return numba.njit(function, **SUMS)


def given(element: Any, ndim: int) -> Any:
    """The type of an array that is only read: any strides, read-only or not, aligned or not."""
    return numba.types.Array(element, ndim, "A", readonly=True, aligned=False)


def result(element: Any, ndim: int, layout: str = "A") -> Any:
    """The type of an array that is written."""
    return numba.types.Array(element, ndim, layout)


INT, VOID = numba.intp, numba.void
TABLE = numba.types.Array(numba.intp, 1, "C", readonly=True)


if __name__ == "__main__":  # the child; Ctrl-C is its parent's to answer, and ends its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        module, name, letter = line.split()
        getattr(import_module(module), name).compile(letter)
        print("done", flush=True)
