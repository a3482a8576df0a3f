"""Compiling, once: each kernel for each element type when it is first called, kept on disk from then on.

A child process compiles, and sends the machine code as bytes. This process loads each kernel from such bytes, be they the
child's or the disk's. For code that Numba has just compiled may add up in another order than code that it loads, and the
first run on a machine has to give the same bits as all later ones. The compiler's memory, too, is the child's alone.

A file holds one kernel, behind its SHA-256. A file that is cut short, damaged or unreadable is taken for absent: its kernel is
compiled again, and replaces it. The folder is named after all that machine code depends on: the sources, the compiler, the
processor, the settings of both. So an edit anywhere starts a new folder, and checkouts with the same sources share one. Numba's
own cache is not used, since it asks of one source file alone whether it has changed. Where nothing can be kept, each process
compiles what it needs, and says so once.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import lru_cache
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature

TYPES = {"f": numba.float32, "d": numba.float64}
LETTERS = {np.dtype(letter): letter for letter in TYPES}  # other types, the other byte order too, are the reference's
PLAIN = {"error_model": "numpy"}  # x / 0 is an infinity, as in NumPy, not an exception
# Only loops over `prange` are shared among threads. Numba would share array expressions too, and would add up the parts of a
# sum by an index that threads of `pool.py` do not have. So no loop over `prange` adds up across its parts: `_Code` refuses it.
IMPLICIT = ("comprehension", "fusion", "reduction", "inplace_binop", "setitem", "numpy", "stencil")
PRANGE = {"prange": True, **dict.fromkeys(IMPLICIT, False)}
SUMS = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}  # sums in any order; −∞ and NaN keep their meaning

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child that is forked while another thread compiles finds the lock free
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


# ---------------------------------------------------------------------------------------------------------------------
# On disk
# ---------------------------------------------------------------------------------------------------------------------

CONFIG = "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "CPU_NAME", "CPU_FEATURES", "BOUNDSCHECK", "DEBUGINFO_DEFAULT"
SEAL = hashlib.sha256().digest_size


def _depends_on() -> str:
    """The SHA-256 of all that machine code depends on."""
    python = sys.implementation.cache_tag, sys.abiflags, numba.__version__, llvmlite.__version__, np.__version__
    machine = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    settings = os.environ.get("SCRATCHGEN_SIMD", ""), *[getattr(numba.config, name, None) for name in CONFIG]
    digest = hashlib.sha256(repr((python, machine, settings)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


depends_on = lru_cache(maxsize=1)(_depends_on)  # the sources as they were when the first kernel was called


def cache_folder() -> Path:
    """Where compiled kernels are kept. Raises OSError where the user has no such folder."""
    root = os.environ.get("NUMBA_CACHE_DIR", "")
    if not root:
        try:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scratchgen"
        except (RuntimeError, KeyError):
            raise OSError("there is no home directory; XDG_CACHE_HOME or NUMBA_CACHE_DIR can name a folder") from None
    return Path(root) / f"kernels-{depends_on()[:16]}"


def _read(name: str) -> bytes | None:
    """The machine code kept under a name; None where there is none, or where its seal does not fit."""
    try:
        kept = (cache_folder() / name).read_bytes()
    except OSError:
        return None
    return kept[SEAL:] if hashlib.sha256(kept[SEAL:]).digest() == kept[:SEAL] else None


def _write(name: str, code: bytes) -> None:
    """Keep the code. Other processes may read or write the same file, so it appears whole or not at all. Raises OSError."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.{uuid.uuid4().hex}"
    try:
        unfinished.write_bytes(hashlib.sha256(code).digest() + code)
        unfinished.replace(folder / name)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------------------------------------


class _Progress:
    """One line on stderr while kernels compile: rewritten on a terminal, written once, at the start, in a log."""

    def __init__(self) -> None:
        self.count, self.seconds, self.shown, self.lost = 0, 0.0, False, ""

    def start(self) -> None:
        self.count += 1
        self.since = time.perf_counter()
        if self._terminal():
            self._say()
        elif not self.shown:
            self._print("compiling kernels, once: up to a minute\n")
        self.shown = True

    def end(self) -> None:
        self.seconds += time.perf_counter() - self.since
        if self._terminal():
            self._say()

    def cannot_keep(self, why: str) -> None:
        """One line on why kernels have to be compiled again in each process."""
        if not self.lost:
            self.lost = why
            before = "\n" if self._terminal() else ""
            self._print(f"{before}compiled kernels cannot be kept, so each process compiles its own: {self.lost}\n")

    def _say(self) -> None:
        text = f"compiling {self.count} kernel{'s' * (self.count > 1)}, once: {self.seconds:.0f} s"
        self._print(f"\r{text}")

    def finish(self) -> None:
        """A line of its own, and the next text below it."""
        if self.shown and self._terminal():
            self._print("\n")

    @staticmethod
    def _terminal() -> bool:
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    @staticmethod
    def _print(text: str) -> None:
        if sys.stderr is not None:
            with suppress(OSError, ValueError):  # nobody reads it
                print(text, end="", file=sys.stderr, flush=True)


progress = _Progress()
atexit.register(progress.finish)


def compile_seconds() -> tuple[int, float]:
    """How many kernels this process has compiled, and for how long; 0 where all came from disk."""
    return progress.count, progress.seconds


def kept() -> str:
    """Where compiled kernels are kept, or why they are not, for people to read."""
    try:
        return f"not kept: {progress.lost}" if progress.lost else f"kept in {cache_folder()}"
    except OSError as error:
        return f"not kept: {error}"


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


class _Code:
    """What Numba uses as the cache of one function. It holds machine code, as bytes: to be loaded, or just compiled."""

    def __init__(self, code: bytes | None = None) -> None:
        self.code = code

    def load_overload(self, signature: Any, context: Any) -> Any:
        if self.code is None:
            return None
        context.refresh()
        return CompileResult._rebuild(context, *pickle.loads(self.code))

    def save_overload(self, signature: Any, result: Any) -> None:
        if not result.library.has_dynamic_globals:  # addresses, which mean nothing to another process
            self.code = dumps(result._reduce())
            if b"get_thread_id" in self.code:
                raise TypeError(f"{signature}: expected a prange whose parts write to different elements, got one that adds up")


class Kernel(dict):
    """The compiled forms of one function, by the letter of their element type: `kernel["f"](…)`.

    `signature` makes Numba's signature from the element type. With `callback`, a compiled form is the address of a C function.
    With `unchecked`, Numba does not look at the types of the arguments, which costs as much time as handing them over. Then a
    wrong number of dimensions or a wrong size of elements still raises, but the caller answers for all other types and layouts.
    """

    def __init__(
        self, function: Callable, signature: Callable, callback: bool = False, unchecked: bool = False, **options: Any
    ) -> None:
        self.function, self.signature, self.callback, self.unchecked = function, signature, callback, unchecked
        self.loaded: list[Any] = []  # the address of a callback is valid while the object lives
        self.options = {**PLAIN, **options}
        if options.get("parallel"):
            self.options["parallel"] = PRANGE

    def __missing__(self, letter: str) -> Any:
        with _lock:
            if letter not in self:
                # In a thread of its own: the compiler leaves cycles with its frames behind, and these would keep the
                # callers' frames, and all arrays in them, alive until the garbage collector comes by.
                linked = import_module("kernels.cpu.pool").linked if self.options.get("parallel") else nullcontext
                with linked(), ThreadPoolExecutor(1) as aside:
                    self[letter] = aside.submit(self._ready, letter).result()
            return self[letter]

    def _ready(self, letter: str) -> Any:
        """The compiled form: from the disk, else from the child, else, where no child can be started, compiled here."""
        name = f"{self.function.__module__}.{self.function.__name__}.{letter}"
        code = _read(name)
        if code is not None:
            with suppress(Exception):  # another program may have written a file with a right seal
                return self._loaded(letter, code)
        progress.start()
        try:
            code = _child.compile(self.function.__module__, self.function.__name__, letter)
            if code is None:
                progress.cannot_keep("no other process can be had that compiles these sources")
            else:
                try:
                    _write(name, code)
                except OSError as error:
                    progress.cannot_keep(str(error))
            return self._loaded(letter, code)
        finally:
            progress.end()

    def compile(self, letter: str) -> bytes | None:
        """The machine code, as bytes; None where it holds addresses, which mean nothing to another process."""
        cache = _Code()
        self._made(letter, cache)
        return cache.code

    def assembly(self, letter: str) -> str:
        """The machine code as text. It is compiled again for this, since machine code that was kept cannot be printed."""
        made = self._made(letter, _Code())
        return made._library.get_asm_str() if self.callback else made.inspect_asm(made.signatures[0])

    def _made(self, letter: str, cache: _Code) -> Any:
        """Numba's function. Its code comes from the cache if it is there; otherwise it is compiled, and put there."""
        signature = self.signature(TYPES[letter])
        if self.callback:
            made = CFunc(self.function, normalize_signature(signature), {}, self.options)
            made._cache = cache
            made.compile()
        else:
            made = numba.njit(**self.options)(self.function)
            made._cache = cache
            made.compile(signature)
            made.disable_compile()
        return made

    def _loaded(self, letter: str, code: bytes | None) -> Any:
        made = self._made(letter, _Code(code))
        self.loaded.append(made)
        if self.callback:
            return made.address
        return made.get_overload(made.signatures[0]) if self.unchecked else made


# ---------------------------------------------------------------------------------------------------------------------
# The child
# ---------------------------------------------------------------------------------------------------------------------


class _Child:
    """A process that compiles kernels for this one, one at a time."""

    process: subprocess.Popen | None = None
    owner = 0  # the process that started it; one forked from that has its own

    def compile(self, module: str, name: str, letter: str) -> bytes | None:
        """The machine code; None where it cannot be had: no process can be started, or its sources are not this one's."""
        if not sys.executable or os.name != "posix":
            return None
        try:
            if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                self._start()
            self.pipe.send((module, name, letter))
            sources, code = self.pipe.recv()
        except (OSError, EOFError):
            return None
        return code if sources == depends_on() else None

    def _start(self) -> None:
        """The child answers on a pipe of its own, since other code that runs at its start may write to stdout or stderr."""
        self.owner = os.getpid()
        self.pipe, theirs = Pipe()
        path = [str(Path(__file__).parents[2]), *sys.path]
        program = f"import sys; sys.path[:] = {path!r}; from kernels.cpu.build import serve; serve({theirs.fileno()})"
        nothing = subprocess.DEVNULL
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdin=nothing, stdout=nothing, stderr=nothing, pass_fds=[theirs.fileno()]
            )

    def close(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()  # the child has nothing to clean up
            self.process.wait()


_child = _Child()
atexit.register(_child.close)


def serve(pipe: int) -> None:
    """The child's loop: for each kernel it sends the hash of its sources and the code, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers to Ctrl-C
    with suppress(EOFError, OSError), Connection(pipe) as parent:
        while True:
            module, name, letter = parent.recv()
            try:
                code = getattr(import_module(module), name).compile(letter)
            except Exception:  # the parent then compiles the kernel itself, and meets the error
                code = None
            parent.send((_depends_on(), code))


# ---------------------------------------------------------------------------------------------------------------------
# Declaring kernels
# ---------------------------------------------------------------------------------------------------------------------


def kernel(signature: Callable, **options: Any) -> Callable[[Callable], Kernel]:
    """Decorator: the function is compiled when it is first called; `signature` is a function of the element type."""
    return lambda function: Kernel(function, signature, **options)


def helper(function: Callable) -> Any:
    """A function that kernels call; compiled into each of them."""
    return numba.njit(function, **PLAIN)


def sums(function: Callable) -> Any:
    """A helper whose sums may be taken in any order, so that they vectorise."""
    return numba.njit(function, **SUMS)


def operand(element: Any, ndim: int) -> Any:
    """The type of an array that is only read: any strides, read-only or not, aligned or not."""
    return numba.types.Array(element, ndim, "A", readonly=True, aligned=False)


def result(element: Any, ndim: int, layout: str = "A") -> Any:
    """The type of an array that is written."""
    return numba.types.Array(element, ndim, layout)


INT, VOID = numba.intp, numba.void
TABLE = numba.types.Array(numba.intp, 1, "C", readonly=True)
