r"""The operands of an op: tensors of one dtype, made of whatever the caller passed.

A Python number or NumPy scalar takes the dtype of the tensor beside it; an integer tensor beside a floating one is
converted to it; float32 beside float64 is refused, because a silent change of precision is a bug in hiding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "cast",
    "move",
]

Number = int | float | np.integer | np.floating | np.bool_


def as_tensor(x: Any) -> Tensor:
    """`x` itself if it is a tensor, else a tensor that copies it."""
    return x if isinstance(x, Tensor) else Tensor(x)


def array_of(x: Any) -> Any:
    """The array of a tensor, an array itself, or a new one of numbers: of any dtype, on any device."""
    return x._data if isinstance(x, Tensor) else x if devices.is_array(x) else np.asarray(x)


def operands(name: str, *xs: Any) -> tuple[Tensor, ...]:
    """Tensors of one dtype from what the caller of `name` gave."""
    try:
        if len({x._data.dtype for x in xs}) == 1:
            return xs
    except AttributeError:
        pass
    tensors = []
    numbers = False
    for x in xs:
        if isinstance(x, Number):  # takes the dtype of what stands beside it
            numbers = True
        elif not isinstance(x, Tensor):
            if not hasattr(x, "__array__") and not isinstance(x, list | tuple | complex) and not devices.is_array(x):
                raise TypeError(f"{name}: expected tensors, arrays or numbers, got {type(x).__name__}")
            x = Tensor(x)
        tensors.append(x)
    found = {x.dtype for x in tensors if isinstance(x, Tensor)}
    floats = {d for d in found if d.kind in "fc"}
    if len(floats) > 1 and not any(d.kind == "c" for d in floats):
        names = " and ".join(sorted(str(d) for d in floats))
        raise TypeError(f"{name}: expected operands of one floating dtype, got {names}; convert one with .to(dtype)")
    dtype = max(floats, key=lambda d: d.itemsize) if floats else np.result_type(*found) if found else None
    if numbers:
        if dtype is None:
            dtype = max([Tensor(x).dtype for x in tensors], key=lambda d: (d.kind == "f", d.itemsize))
        elif dtype.kind in "iub" and any(isinstance(x, float | np.floating) for x in tensors):
            dtype = np.dtype(np.float32)
        elif dtype.kind == "b" and any(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in tensors):
            dtype = np.dtype(np.int64)
    if not numbers:
        return tuple([cast(x, dtype) for x in tensors])
    partner = next((x._data for x in tensors if isinstance(x, Tensor)), _ON_HOST)
    return tuple([cast(x, dtype) if isinstance(x, Tensor) else constant(devices.number(x, dtype, partner)) for x in tensors])


def pair(name: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """`operands` for two; at once in the cases that matter, two tensors of one dtype, or one and a number."""
    if type(b) is float or type(b) is int:
        if isinstance(a, Tensor) and a._data.dtype.kind == "f":
            return a, constant(devices.number(b, a._data.dtype, a._data))
    elif type(a) is float or type(a) is int:
        if isinstance(b, Tensor) and b._data.dtype.kind == "f":
            return constant(devices.number(a, b._data.dtype, b._data)), b
    else:
        try:
            if a._data.dtype is b._data.dtype:
                return a, b
        except AttributeError:
            pass
    return operands(name, a, b)


_ON_HOST = np.zeros(())


def floating(name: str, x: Any) -> Tensor:
    """A tensor of a floating dtype: integers become float32, as the mathematics leaves the integers."""
    x = as_tensor(x)
    return x if x.dtype.kind in "fc" else cast(x, np.dtype(np.float32))


def broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """np.broadcast_to(x, shape), shapes that fit, at a tenth of its price"""
    if type(x) is not np.ndarray or not x.flags.c_contiguous or not x.size:
        return np.broadcast_to(x, shape)
    new = len(shape) - x.ndim
    strides = [step if n == m else 0 for n, m, step in zip(x.shape, shape[new:], x.strides, strict=True)]
    return np.ndarray(shape, x.dtype, x, 0, [0] * new + strides)


class Cast(Function):
    """y = x, in another dtype."""

    keeps_inputs = False

    def forward(self, x: Any, *, dtype: np.dtype) -> Any:
        self.before = x.dtype
        return x.astype(dtype)

    def backward(self, dy: Tensor) -> Tensor:
        return cast(dy, self.before)


class Move(Function):
    """y = x, on another device."""

    keeps_inputs = False

    def forward(self, x: Any, *, device: str) -> Any:
        self.before = devices.of(x)
        return devices.moved(x, device)

    def backward(self, dy: Tensor) -> Tensor:
        return move(dy, self.before)


def move(x: Tensor, device: Any) -> Tensor:
    """x on another device; itself where it is there already. The gradient comes back to where x is."""
    device = devices.checked(device)
    return x if x.device == device else Move.apply(x, device=device)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype; itself where it already has it. The gradient comes back in x's dtype."""
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    return Cast.apply(x, dtype=dtype) if dtype.kind in "fc" else constant(x.data.astype(dtype))  # integers have no gradient


@method
def to(
    self: Tensor,
    *args: Any,
    dtype: Any = None,
    device: str | None = None,
    non_blocking: bool = False,
    copy: bool = False,
) -> Tensor:
    """The tensor in another dtype (`to(float64)`), on another device (`to("cpu")`), or both as another tensor's.

    Itself where nothing changes, unless a `copy` is asked for. `non_blocking` is taken as in PyTorch, and changes nothing.
    """
    flags: list[bool] = []  # non_blocking and copy, by position
    for arg in args:
        if devices.is_name(arg):
            device = arg
        elif isinstance(arg, Tensor):
            dtype, device = arg.dtype, arg.device
        elif isinstance(arg, bool):
            flags.append(arg)
        else:
            dtype = arg
    moved = self if device is None else move(self, device)
    moved = moved if dtype is None else cast(moved, dtype)
    return moved.clone() if moved is self and (copy or True in flags[1:]) else moved


@method("cpu")
def to_cpu(self: Tensor) -> Tensor:
    """The tensor on the host."""
    return move(self, "cpu")


@method("float")
def to_float32(self: Tensor) -> Tensor:
    """The tensor as float32."""
    return cast(self, "float32")


@method("double")
def to_float64(self: Tensor) -> Tensor:
    """The tensor as float64."""
    return cast(self, "float64")


@method("long")
def to_int64(self: Tensor) -> Tensor:
    """The tensor as int64."""
    return cast(self, "int64")


@method("bool")
def to_bool(self: Tensor) -> Tensor:
    """The tensor as booleans: is each element other than 0?"""
    return cast(self, "bool")
