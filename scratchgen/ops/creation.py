"""Tensors made from nothing: constants, ranges, random draws. float32 unless `dtype` says otherwise.

They are made on the host, so that a seed draws the same numbers for every device, and then brought to `device`. The
functions `…_like` and the methods `new_…` take dtype and device from a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen import random
from scratchgen.ops.operands import as_tensor, floating
from scratchgen.ops.shape import shape_of
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "arange",
    "bernoulli",
    "eye",
    "full",
    "full_like",
    "linspace",
    "multinomial",
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


def full(size: Any, fill_value: float, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor of one value, of the dtype that `tensor` would give it unless told."""
    like = Tensor(fill_value.item() if hasattr(fill_value, "item") else fill_value)
    return _made(np.full(shape_of("full", (size,)), fill_value, dtype or like.dtype), requires_grad, device)


def zeros_like(input: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Zeros of `input`'s shape and dtype."""
    return _made(np.zeros_like(as_tensor(input).data, dtype=dtype), requires_grad, device)


def ones_like(input: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """Ones of `input`'s shape and dtype."""
    return _made(np.ones_like(as_tensor(input).data, dtype=dtype), requires_grad, device)


def full_like(
    input: Any, fill_value: float, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """One value in `input`'s shape and dtype."""
    return _made(np.full_like(as_tensor(input).data, fill_value, dtype=dtype), requires_grad, device)


@method
def new_zeros(
    input: Tensor, *sizes: Any, size: Any = None, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """Zeros of another shape, in `input`'s dtype and on its device: x.new_zeros(2, 3)."""
    return zeros(*sizes, size=size, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


@method
def new_ones(
    input: Tensor, *sizes: Any, size: Any = None, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """Ones of another shape, in `input`'s dtype and on its device: x.new_ones(2, 3)."""
    return ones(*sizes, size=size, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


@method
def new_empty(
    input: Tensor, *sizes: Any, size: Any = None, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """`new_zeros`: what PyTorch leaves unset is zero here, so that the same program gives the same bits."""
    return new_zeros(input, *sizes, size=size, dtype=dtype, device=device, requires_grad=requires_grad)


@method
def new_full(
    input: Tensor, size: Any, fill_value: float, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """One value in another shape, in `input`'s dtype and on its device."""
    return full(size, fill_value, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


@method
def new_tensor(
    input: Tensor, data: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A copy of `data` in `input`'s dtype and on its device."""
    return Tensor(data, dtype or input.dtype, device or input.device, requires_grad=requires_grad)


def arange(
    start: float = 0,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … below end;  arange(end) counts from 0. Whole numbers give int64, others float32."""
    if end is None:
        start, end = 0, start
    if dtype is None:
        dtype = np.int64 if all(isinstance(v, int | np.integer) for v in (start, end, step)) else np.float32
    return _made(np.arange(start, end, step).astype(dtype), requires_grad, device)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = np.float32,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` values at equal distances from start to end, both included."""
    start, end = (x.item() if isinstance(x, Tensor) else x for x in (start, end))
    return _made(np.linspace(start, end, steps).astype(dtype), requires_grad, device)


def eye(
    n: int, m: int | None = None, *, dtype: Any = np.float32, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """Ones on the diagonal, zeros elsewhere."""
    return _made(np.eye(n, m, dtype=dtype), requires_grad, device)


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


def rand_like(
    input: Any,
    *,
    dtype: Any = None,
    device: str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform on [0, 1), in `input`'s shape and dtype and on its device."""
    x = as_tensor(input)
    return rand(x.shape, dtype=dtype or x.dtype, device=device or x.device, generator=generator, requires_grad=requires_grad)


def randn_like(
    input: Any,
    *,
    dtype: Any = None,
    device: str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Standard normal, in `input`'s shape and dtype and on its device."""
    x = as_tensor(input)
    return randn(x.shape, dtype=dtype or x.dtype, device=device or x.device, generator=generator, requires_grad=requires_grad)


def randint(
    low: int = 0,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = np.int64,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Whole numbers from low to high − 1, all equally likely; randint(high, size) counts from 0."""
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if high <= low:
        raise ValueError(f"randint: expected low below high, got {low} and {high}")
    drawn = np.asarray(random.generator(generator).integers(low, high, shape_of("randint", (size,))))
    return _made(drawn.astype(dtype, copy=False), requires_grad, device)


def randperm(n: int, *, generator: Generator | None = None, dtype: Any = np.int64, device: str | None = None) -> Tensor:
    """The numbers 0 … n − 1 in random order."""
    return _made(random.generator(generator).permutation(n).astype(dtype, copy=False), False, device)


@method
def bernoulli(input: Any, *, generator: Generator | None = None) -> Tensor:
    """y = 1 with probability `input`, else 0, element by element, in `input`'s dtype. A draw has no gradient."""
    p = floating("bernoulli", input).data
    if devices.on_host(p) and not ((p >= 0) & (p <= 1)).all():  # to ask a device would stall it
        raise ValueError("bernoulli: expected probabilities from 0 to 1, got others")
    u = np.asarray(random.generator(generator).random(p.shape))
    return constant((devices.beside(u, p) < p).astype(p.dtype))


@method
def multinomial(input: Any, num_samples: int, replacement: bool = False, *, generator: Generator | None = None) -> Tensor:
    r"""Indices drawn with probabilities p_i = w_i / Σ_j w_j from each row of weights.    (n) or (m, n) → (…, num_samples)

    With replacement index i is drawn where the cumulated p first exceeds a uniform number. Without, the indices of the
    smallest e_i / w_i, in this order, e_i exponentially distributed: the first of several clocks of rates w_i to ring is
    i with probability p_i, and of those left the next is again (Efraimidis & Spirakis 2006). Weights of 0 are never drawn.

    Raises ValueError where weights are negative or not finite or all 0, or where fewer than num_samples are above 0
    without replacement: of weights on the host, as to ask a device would stall it.
    """
    w = as_tensor(input).data
    if w.dtype.kind != "f" or w.ndim not in (1, 2):
        raise ValueError(f"multinomial: expected floating weights of shape (n) or (m, n), got {w.dtype} of shape {w.shape}")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int | np.integer) or num_samples < 1:
        raise ValueError(f"multinomial: expected num_samples to be a whole number of at least 1, got {num_samples!r}")
    if not replacement and num_samples > w.shape[-1]:
        raise ValueError(f"multinomial: expected at most {w.shape[-1]} samples without replacement, got {num_samples}")
    if devices.on_host(w):
        if not (np.isfinite(w) & (w >= 0)).all():
            raise ValueError("multinomial: expected weights that are finite and at least 0, got others")
        least, needed = int((w > 0).sum(-1).min(initial=w.shape[-1])), 1 if replacement else num_samples
        if least < needed:
            raise ValueError(f"multinomial: expected {needed} or more weights above 0 in each row, got {least}")
    w = w.astype(np.float64)
    rng = random.generator(generator)
    if replacement:
        total = np.cumsum(w, axis=-1)
        u = devices.beside(rng.random((*w.shape[:-1], num_samples)), w) * total[..., -1:]
        if w.ndim == 1:
            return constant(np.searchsorted(total, u, side="right"))
        rows = [np.searchsorted(row, v, side="right") for row, v in zip(total, u, strict=True)]
        return constant(np.stack(rows) if rows else np.zeros_like(u, dtype=np.int64))
    clocks = np.asarray(rng.standard_exponential(w.shape))
    never = w == 0
    ring = np.where(never, np.inf, devices.beside(clocks, w) / np.where(never, 1, w))
    return constant(np.argsort(ring, axis=-1, kind="stable")[..., :num_samples])
