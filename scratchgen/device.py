"""Where arrays live: in the machine's memory ("cpu", NumPy arrays) or in a GPU's ("cuda", CuPy arrays).

This file and `kernels/cuda` are the only ones that know of CUDA and CuPy. All other code computes with whatever arrays it
gets: an operator or NumPy function called on a CuPy array is carried out by CuPy, on the GPU (NumPy's protocols
`__array_ufunc__` and `__array_function__`), and the functions of `kernels` choose the backend by their arrays. Arrays that
ops make on the host (masks, indices, random numbers) are brought to their partners by `beside`. Nothing comes back to the
host unless it is asked for: `cpu`, `numpy`, `item`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import kernels

NAMES = ("cpu", "cuda")


class DeviceError(ValueError):
    """The device cannot be used; the message is one sentence that says why."""


def checked(name: Any) -> str:
    """The name of a device, "cuda:0" being "cuda". Raises ValueError for any other."""
    if name not in NAMES and name != "cuda:0":
        raise ValueError(f"device: expected {' or '.join(map(repr, NAMES))}, got {name!r}")
    return name.removesuffix(":0")


def is_name(x: Any) -> bool:
    """Does an argument name a device, and not a dtype?"""
    return isinstance(x, str) and x.partition(":")[0] in NAMES


def on_host(array: Any) -> bool:
    """Is it in the machine's own memory, where it costs nothing to look at an element?"""
    return isinstance(array, np.ndarray | np.generic)


def is_array(x: Any) -> bool:
    """Is it an array, on the host or on a device? (Lists and tensors are not.)"""
    return isinstance(x, np.ndarray) or kernels.on_device(x)


def of(array: Any) -> str:
    """Where an array lives."""
    return "cpu" if on_host(array) else "cuda"


def moved(array: Any, device: str) -> Any:
    """The array on `device`; itself where it is there already. Raises DeviceError where there is no such device."""
    if device == "cpu":
        return array if on_host(array) else library().asnumpy(array)
    if not on_host(array):
        return array
    asarray = library().asarray
    kernels.open_device()
    return asarray(array)


def beside(array: np.ndarray, partner: Any) -> Any:
    """An array made on the host, brought to where `partner` is."""
    return array if isinstance(partner, np.ndarray) else moved(array, "cuda")


def number(value: Any, dtype: np.dtype, partner: Any) -> Any:
    """A number as a 0-d array, where `partner` is."""
    array = np.asarray(value, dtype)
    return array if isinstance(partner, np.ndarray) else _kept(array.tobytes(), array.dtype.str)


@functools.lru_cache(1024)
def _kept(value: bytes, dtype: str) -> Any:
    """Each training step uses the same numbers, so they are sent once."""
    return moved(np.frombuffer(value, dtype).reshape(()), "cuda")


def owned(array: Any) -> Any:
    """A copy in row order, where the array is."""
    return np.array(array) if on_host(array) else array.copy()


def mixed(name: str, arrays: Any) -> str | None:
    """The message for an op whose arrays live on two devices; None if they live on one."""
    found = [of(a) for a in arrays]
    if len(set(found)) < 2:
        return None
    shapes = ", ".join(f"{a.shape} on {where}" for a, where in zip(arrays, found, strict=True))
    return f"{name}: expected tensors on one device, got {shapes}; bring them together with .to(device)"


# ---------------------------------------------------------------------------------------------------------------------
# The GPU
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def library() -> Any:
    """CuPy, once it is known to reach a GPU. Raises DeviceError where it does not."""
    why = obstacle()
    if why:
        raise DeviceError(f"device 'cuda' cannot be used here: {why}.")
    import cupy

    return cupy


@functools.cache
def obstacle() -> str | None:
    """Why no GPU can be used, if none can."""
    install = "in the checkout of scratchgen: pip install '.[cuda]'"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({_first_line(error)}); {install}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # of CuPy's own kinds: no driver, or one too old
        return f"CuPy reaches no GPU ({_first_line(error)})"
    if not count:
        return "this machine has no GPU that CUDA knows"
    try:
        from numba import cuda

        usable = cuda.is_available()
    except Exception as error:
        return f"Numba cannot reach the GPU ({_first_line(error)}); {install}"
    return None if usable else f"Numba finds no CUDA driver or toolkit; {install}"


def found() -> str:
    """The device that "cuda" means, or why there is none: for people to read."""
    why = obstacle()
    if why:
        return f"cpu; no GPU is used: {why}"
    properties = library().cuda.runtime.getDeviceProperties(0)
    memory, capability = properties["totalGlobalMem"] / 2**30, f"{properties['major']}.{properties['minor']}"
    return f"cpu, and cuda: {properties['name'].decode()}, {memory:.0f} GiB, compute capability {capability}"


def synchronize() -> None:
    """Wait until the GPU has finished its work."""
    library().cuda.get_current_stream().synchronize()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().rstrip(".")
