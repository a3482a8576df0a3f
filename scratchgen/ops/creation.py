"""Tensors made from nothing: constants, ranges, random draws. float32 unless `dtype` says otherwise.

They are made on the host, so that a seed draws the same numbers for every device, and then brought to `device`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen import random
from scratchgen.ops.operands import as_tensor
from scratchgen.ops.shape import shape_of
from scratchgen.tensor import Tensor, constant

__all__ = [
    "arange",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "zeros",
    "zeros_like",
]


def _made(array: Any, requires_grad: bool, device: str | None = None) -> Tensor:
    t = constant(array if device is None else devices.moved(array, devices.checked(device)))
    return t.requires_grad_() if requires_grad else t


def zeros(
    *sizes: Any, size: Any = None, dtype: Any = np.float32, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros: zeros(2, 3) or zeros((2, 3))."""
    return _made(np.zeros(shape_of("zeros", sizes, size), dtype), requires_grad, device)


def ones(
    *sizes: Any, size: Any = None, dtype: Any = np.float32, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ones: ones(2, 3) or ones((2, 3))."""
    return _made(np.ones(shape_of("ones", sizes, size), dtype), requires_grad, device)


def full(
    size: Any, fill_value: float, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of one value, of the dtype that `tensor` would give it unless told."""
    like = Tensor(fill_value.item() if hasattr(fill_value, "item") else fill_value)
    return _made(np.full(shape_of("full", (size,)), fill_value, dtype or like.dtype), requires_grad, device)


def zeros_like(input: Any, *, dtype: Any = None) -> Tensor:
    """Zeros of `input`'s shape and dtype."""
    return constant(np.zeros_like(as_tensor(input).data, dtype=dtype))


def ones_like(input: Any, *, dtype: Any = None) -> Tensor:
    """Ones of `input`'s shape and dtype."""
    return constant(np.ones_like(as_tensor(input).data, dtype=dtype))


def full_like(input: Any, fill_value: float, *, dtype: Any = None) -> Tensor:
    """One value in `input`'s shape and dtype."""
    return constant(np.full_like(as_tensor(input).data, fill_value, dtype=dtype))


def arange(
    start: float = 0, end: float | None = None, step: float = 1, *, dtype: Any = None, device: str | None = None
) -> Tensor:
    """start, start + step, … below end;  arange(end) counts from 0. Whole numbers give int64, others float32."""
    if end is None:
        start, end = 0, start
    if dtype is None:
        dtype = np.int64 if all(isinstance(v, int | np.integer) for v in (start, end, step)) else np.float32
    return _made(np.arange(start, end, step).astype(dtype), False, device)


def linspace(start: float, end: float, steps: int, *, dtype: Any = np.float32) -> Tensor:
    """`steps` values at equal distances from start to end, both included."""
    return constant(np.linspace(start, end, steps).astype(dtype))


def eye(n: int, m: int | None = None, *, dtype: Any = np.float32) -> Tensor:
    """Ones on the diagonal, zeros elsewhere."""
    return constant(np.eye(n, m, dtype=dtype))


Generator = np.random.Generator


def rand(
    *sizes: Any,
    size: Any = None,
    dtype: Any = np.float32,
    device: str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform on [0, 1)."""
    drawn = random.generator(generator).random(shape_of("rand", sizes, size), dtype=dtype)
    return _made(np.asarray(drawn), requires_grad, device)


def randn(
    *sizes: Any,
    size: Any = None,
    dtype: Any = np.float32,
    device: str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Standard normal."""
    drawn = random.generator(generator).standard_normal(shape_of("randn", sizes, size), dtype=dtype)
    return _made(np.asarray(drawn), requires_grad, device)


def rand_like(input: Any, *, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Uniform on [0, 1), in `input`'s shape and dtype and on its device."""
    x = as_tensor(input)
    return rand(x.shape, dtype=dtype or x.dtype, device=x.device, generator=generator)


def randn_like(input: Any, *, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Standard normal, in `input`'s shape and dtype and on its device."""
    x = as_tensor(input)
    return randn(x.shape, dtype=dtype or x.dtype, device=x.device, generator=generator)


def randint(low: int = 0, high: Any = None, size: Any = None, *, generator: Generator | None = None) -> Tensor:
    """Whole numbers from low to high − 1, all equally likely; randint(high, size) counts from 0."""
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if high <= low:
        raise ValueError(f"randint: expected low below high, got {low} and {high}")
    return constant(np.asarray(random.generator(generator).integers(low, high, shape_of("randint", (size,)))))


def randperm(n: int, *, generator: Generator | None = None) -> Tensor:
    """The numbers 0 … n − 1 in random order."""
    return constant(random.generator(generator).permutation(n))
