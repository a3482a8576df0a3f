"""The backends, and which of them computes: `use` chooses for arrays on the host; arrays in a GPU's memory go to `cuda`.

A backend is a set of modules, one for each subject; each module has the kernels of its subject as functions:

    subject     reference        cpu (Numba)        cuda (Numba CUDA)
    rows        reference.py     cpu/rows.py        cuda/rows.py
    matmul      reference.py     cpu/matmul.py      cuda/matmul.py
    …           reference.py     …                  …

`backend_of(x).rows` is the module that computes with x. It is imported when one of its kernels is first called, and kept: from
then on, the way from `kernels.softmax` to the backend's own function costs two attributes and a call.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import TracebackType
from typing import Any

from kernels import reference, settings

SUBJECTS = (
    *("matmul", "attention", "convolution", "images", "rows", "activations", "elementwise", "groups", "optimizer"),
    *("reductions", "pooling"),
)


class Backend:
    """The modules of one backend as attributes: `CPU.rows` is kernels/cpu/rows.py, imported when it is first asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, subject: str) -> Any:  # Python comes here only for what is not an attribute yet
        if subject not in SUBJECTS:
            raise AttributeError(f"{self.name}: expected one of {', '.join(SUBJECTS)}, got {subject}")
        why = obstacle() if self is CPU else None
        if why:
            choice.host, choice.reason = REFERENCE, why
            return reference
        module = import_module(f"kernels.{self.name}.{subject}")
        setattr(self, subject, module)
        return module


REFERENCE, CPU, CUDA = Backend("reference"), Backend("cpu"), Backend("cuda")
for subject in SUBJECTS:
    setattr(REFERENCE, subject, reference)


class Choice:
    """What is chosen: the backend for arrays on the host and why; and the one for device arrays, once a device is open."""

    host: Backend = REFERENCE
    reason = "the default"
    device: Backend | None = None


choice = Choice()


def backend_of(*arrays: Any) -> Backend:
    """The backend that computes with these arrays (or lists of arrays): `cuda` if any of them is in a GPU's memory."""
    if choice.device is not None and any(map(on_device, arrays)):
        return choice.device
    return choice.host


def open_device() -> None:
    """From now on, kernels look where their arrays are. Until the first device array is made, nobody pays for that."""
    choice.device = CUDA


def on_device(x: Any) -> bool:
    """Is it an array in a GPU's memory, or a list of such arrays?"""
    return hasattr(x, "__cuda_array_interface__") or (type(x) is list and bool(x) and on_device(x[0]))


def obstacle() -> str | None:
    """Why compiled kernels cannot run here, if they cannot. Raises SettingError where an environment variable is wrong."""
    settings.check()
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        import_module("numba")
    except ImportError as error:
        return f"Numba cannot be imported: {error}"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------------------


class use:
    """Choose the backend for arrays on the host: `use("cpu")` from now on, `with use("reference"): …` for a block.

    The choice holds for all threads. Raises ValueError for another name than "reference" and "cpu".
    """

    def __init__(self, name: str) -> None:
        if name not in ("reference", "cpu"):
            raise ValueError(f'kernels.use: expected "reference" or "cpu", got {name!r}')
        self.before = choice.host, choice.reason
        choice.host, choice.reason = CPU if name == "cpu" else REFERENCE, f'kernels.use("{name}")'

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        choice.host, choice.reason = self.before


def backend() -> str:
    """The name of the backend that computes with arrays on the host: "reference" or "cpu"."""
    return choice.host.name


def chosen() -> dict[str, str]:
    """What is chosen and why, for people to read: backend, reason, vectors, threads, and what has been compiled."""
    facts = {"kernels": backend(), "because of": choice.reason}
    if choice.host is CPU:
        why = obstacle()
        if why:
            return {"kernels": "reference", "because of": why}
        simd, threads, build = (import_module(f"kernels.cpu.{name}") for name in ("simd", "threads", "build"))
        forced = ", forced by SCRATCHGEN_SIMD" if settings.vector_bits() else ""
        tile = f"tiles of {simd.HEIGHT} × {simd.VECTORS} vectors"
        facts["vectors"] = f"{simd.BITS} bits, {simd.REGISTERS} registers{forced}; {tile}"
        set_by = "SCRATCHGEN_THREADS" if settings.threads() else "one for each core"
        facts["threads"] = f"{threads.threads()} ({set_by})"
        count, seconds = build.compile_seconds()
        facts["compiled"] = f"{count} kernels in {seconds:.0f} s; {build.kept()}"
    return facts


def _first_choice() -> None:
    """What SCRATCHGEN_KERNELS says, else "cpu"; the reference where Numba is told not to compile."""
    try:
        name = settings.backend()
    except settings.SettingError:  # raised again by whichever compiled kernel is called first
        name = None
    use(name or "cpu")
    choice.reason = "SCRATCHGEN_KERNELS" if name else "the default"
    if "numba" not in sys.modules and os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        choice.host, choice.reason = REFERENCE, "NUMBA_DISABLE_JIT is set"


_first_choice()
