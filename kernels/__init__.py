"""The hot loops: functions of arrays, which know nothing of tensors or gradients. This file is the only way in.

`reference.py` says what each kernel means, in NumPy; `cpu/` says it again, compiled with Numba. `use("reference")` or
`use("cpu")` chooses, for all threads or, as a context manager, for a block; SCRATCHGEN_KERNELS sets the first choice, which
is "cpu" without it, and the reference where Numba cannot compile.
The third storey, `cuda/`, is not chosen: arrays in a GPU's memory are computed there, once `open_device` has opened it.
Nothing is compiled, nor Numba imported, before a compiled kernel is called for the first time. What the compiled kernels
do not cover (integers, complex numbers, empty arrays) they hand to the reference themselves.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import TracebackType
from typing import Any

from kernels import reference, settings

__all__ = [
    "adam",
    "adamw",
    "attention",
    "attention_backward",
    "attention_dropout",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "chosen",
    "column_sums",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "einsum",
    "elu",
    "elu_backward",
    "embedding",
    "erf",
    "gelu",
    "gelu_backward",
    "glu",
    "glu_backward",
    "group_norm",
    "group_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_softmax",
    "log_softmax_backward",
    "matmul",
    "mish",
    "mish_backward",
    "nearest",
    "nearest_backward",
    "rms_norm",
    "rms_norm_backward",
    "scale",
    "scatter_add",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "softplus",
    "softplus_backward",
    "storey",
    "sum_of_squares",
    "sum_over",
    "tanh_backward",
    "use",
]

# Where each door leads in the second storey. The others, such as `erf`, are NumPy's and SciPy's everywhere.
CPU = {
    "matmul": ("matmul", "einsum"),
    "attention": ("attention", "attention_backward"),
    "convolution": ("conv", "conv_input_grad", "conv_weight_grad"),
    "images": ("leaky_relu", "leaky_relu_backward", "nearest", "nearest_backward"),
    "rows": (
        *("softmax", "log_softmax", "cross_entropy", "cross_entropy_backward", "layer_norm", "layer_norm_backward"),
        *("rms_norm", "rms_norm_backward", "batch_norm", "batch_norm_backward", "embedding", "scatter_add", "column_sums"),
    ),
    "activations": (
        *("sigmoid", "sigmoid_backward", "tanh_backward", "softplus", "softplus_backward", "elu", "elu_backward", "silu"),
        *("silu_backward", "mish", "mish_backward", "glu", "glu_backward", "softmax_backward", "log_softmax_backward"),
    ),
    "elementwise": ("gelu", "gelu_backward", "binary_cross_entropy", "binary_cross_entropy_backward", "dropout"),
    "groups": ("group_norm", "group_norm_backward"),
    "optimizer": ("adam", "adamw", "sum_of_squares", "scale"),
    "reductions": ("sum_over",),
}
ROOM = {door: room for room, doors in CPU.items() for door in doors}
BASE = ("erf", "attention_dropout")
# The rooms of `cuda/`, named alike; its other doors are the reference's, on device arrays.
DEVICE = {**ROOM, **dict.fromkeys(BASE, "elementwise")}
del DEVICE["einsum"], DEVICE["column_sums"], DEVICE["sum_over"]  # the library's own

storey = "reference"
_why = "the default"
_device = False  # is the third storey open?


def _obstacle() -> str | None:
    """Why compiled kernels cannot run here, if they cannot. Raises SettingError where they were not rightly asked for."""
    settings.check()
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        import_module("numba")
    except ImportError as error:
        return f"Numba cannot be imported: {error}"
    return None


def _bind(name: str) -> None:
    """Lead every door to its room: at once in the reference, at the first call in `cpu`."""
    global storey
    doors = globals()
    for door in (*ROOM, *BASE):
        doors[door] = getattr(reference, door) if name == "reference" or door in BASE else _first(door)
        if _device:
            doors[door] = _by_place(door, doors[door])
    storey = name


def open_device() -> None:
    """Let every door look at where its arrays are. Until the first device array nobody pays for that."""
    global _device
    if not _device:
        _device = True
        _bind(storey)


def on_device(x: Any) -> bool:
    """Is it an array in a GPU's memory, or a list of such arrays?"""
    return hasattr(x, "__cuda_array_interface__") or (type(x) is list and bool(x) and on_device(x[0]))


def device_door(door: str) -> Any:
    """Where a door leads device arrays."""
    room = f"kernels.cuda.{DEVICE[door]}" if door in DEVICE else "kernels.reference"
    return getattr(import_module(room), door)


def _by_place(door: str, host: Any) -> Any:
    """A door that leads device arrays to `cuda/`, and all others to where it led before."""

    def call(*arguments: Any, **options: Any) -> Any:
        if any(map(on_device, arguments)):
            return device_door(door)(*arguments, **options)
        return host(*arguments, **options)

    call.__name__ = call.__qualname__ = door
    call.__doc__ = getattr(reference, door).__doc__
    return call


def _first(door: str) -> Any:
    """A door that opens itself: imports its room when it is called, and from then on is the function that it found."""

    def call(*arguments: Any, **options: Any) -> Any:
        obstacle = _obstacle()
        if obstacle:
            _fall_back(obstacle)
            return getattr(reference, door)(*arguments, **options)
        function = getattr(import_module(f"kernels.cpu.{ROOM[door]}"), door)
        if globals()[door] is call:
            globals()[door] = function
        return function(*arguments, **options)

    call.__name__ = call.__qualname__ = door
    call.__doc__ = getattr(reference, door).__doc__
    return call


def _fall_back(obstacle: str) -> None:
    global _why
    _bind("reference")
    _why = obstacle


class use:
    """Choose the storey: `use("cpu")` from now on, `with use("reference"): …` for a block."""

    def __init__(self, name: str) -> None:
        global _why
        if name not in ("reference", "cpu"):
            raise ValueError(f'kernels.use: expected "reference" or "cpu", got {name!r}')
        self.before = storey, _why
        _bind(name)
        _why = f'kernels.use("{name}")'

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _why
        name, reason = self.before
        _bind(name)
        _why = reason


def chosen() -> dict[str, str]:
    """What is chosen and why, for people to read: storey, reason, vectors, threads, what has been compiled."""
    facts = {"kernels": storey, "because of": _why}
    if storey == "cpu":
        obstacle = _obstacle()
        if obstacle:
            return {"kernels": "reference", "because of": obstacle}
        simd, threads, build = (import_module(f"kernels.cpu.{name}") for name in ("simd", "threads", "build"))
        forced = ", forced by SCRATCHGEN_SIMD" if settings.vector_bits() else ""
        tile = f"tiles of {simd.HEIGHT} × {simd.VECTORS} vectors"
        facts["vectors"] = f"{simd.BITS} bits, {simd.REGISTERS} registers{forced}; {tile}"
        set_by = "SCRATCHGEN_THREADS" if settings.threads() else "one for each core"
        facts["threads"] = f"{threads.threads()} ({set_by})"
        count, seconds = build.compile_seconds()
        facts["compiled"] = f"{count} kernels in {seconds:.0f} s; {build.kept()}"
    return facts


def _begin() -> None:
    global _why
    try:
        name = settings.backend()
    except settings.SettingError:  # raised again by whichever kernel is called first
        name = None
    use(name or "cpu")
    _why = "SCRATCHGEN_KERNELS" if name else "the default"
    if "numba" not in sys.modules and os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        _fall_back("NUMBA_DISABLE_JIT is set")


_begin()
