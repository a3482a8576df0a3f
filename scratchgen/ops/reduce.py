r"""Ops that shrink one or more dimensions. `dim` is a number, a tuple, or None for all of them; `keepdim` leaves 1 there."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.choice import Kept, Step, maximum, minimum, where
from scratchgen.ops.operands import Number, as_tensor, broadcast, cast, floating
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "cumprod",
    "cumsum",
    "logsumexp",
    "max",
    "mean",
    "min",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
]

Dim = int | Sequence[int] | None


def dims_of(name: str, x: Tensor, dim: Dim) -> tuple[int, ...]:
    """The dimensions that `dim` names, each in 0 … ndim − 1, ascending."""
    if type(dim) is int and -x.ndim <= dim < x.ndim:
        return (dim % x.ndim,)
    if dim is None:
        return tuple(range(x.ndim))
    rank = builtins.max(x.ndim, 1)  # a 0-d tensor may be reduced over 0 or −1
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    for d in dims:
        if isinstance(d, bool) or not isinstance(d, int | np.integer) or not -rank <= d < rank:
            raise IndexError(f"{name}: expected a dimension from {-rank} to {rank - 1}, got {d!r}")
    found = tuple(sorted(int(d) % rank for d in dims))
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: expected each dimension once, got {dim!r}")
    return found if x.ndim else ()


def _over(name: str, x: Tensor, dim: Dim) -> tuple[int, ...]:
    """`dims_of` for sums and what is made of them: no dimensions, (), mean all of them there, as in PyTorch."""
    return dims_of(name, x, None if isinstance(dim, tuple | list) and not len(dim) else dim)


def _kept(x_shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after reducing `dims` with keepdim."""
    return tuple(1 if d in dims else n for d, n in enumerate(x_shape))


def _spread(dy: Tensor, shape: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    """Bring the gradient of a reduced tensor back beside its input: 1 at the reduced dimensions."""
    return dy.reshape(_kept(shape, dims))


SHORT = 64  # terms that may be added one after the other in their own type
MANY = 4096  # elements from which on a compiled kernel is worth its call


class Sum(Function):
    """y = Σ_j x_j            x̄_j = ȳ

    NumPy adds up by pairs along what is contiguous, but one by one along all other dimensions: these are the kernel's.
    """

    keeps_inputs = False

    def forward(self, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        self.shape, self.dims = x.shape, dims
        if x.dtype.kind in "fc" and (x.dtype == np.float16 or not _by_pairs(x, dims)):
            y = kernels.sum_over(x, dims)
            return y.reshape(_kept(x.shape, dims)) if keepdim else y
        if len(dims) == 1 and 1 < x.shape[dims[0]] <= 4 and x.dtype.kind == "f":  # NumPy is slow along short dimensions
            parts = [x[(slice(None),) * dims[0] + (i,)] for i in range(x.shape[dims[0]])]
            y = builtins.sum(parts[1:], parts[0])
            return np.expand_dims(y, dims[0]) if keepdim else y
        if len(dims) > 1 and dims[0] == x.ndim - len(dims) and x.flags.c_contiguous:  # or along several
            y = x.reshape(*x.shape[: dims[0]], math.prod(x.shape[dims[0] :])).sum(-1)
            return y.reshape(_kept(x.shape, dims)) if keepdim else y
        return x.sum(dims, keepdims=keepdim)

    def backward(self, dy: Tensor) -> Tensor:
        return Spread.apply(dy, shape=self.shape, dims=self.dims)


class Mean(Sum):
    """y = (1/n) Σ_j x_j      x̄_j = ȳ / n

    The sum is divided before it is rounded, so that equal numbers are their own mean.
    """

    def forward(self, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        self.shape, self.dims = x.shape, dims
        self.n = math.prod([x.shape[d] for d in dims]) or math.nan
        y = kernels.sum_over(x, dims, self.n)
        return y.reshape(_kept(x.shape, dims)) if keepdim else y

    def backward(self, dy: Tensor) -> Tensor:
        return Sum.backward(self, dy / self.n)


def _by_pairs(x: Any, dims: tuple[int, ...]) -> bool:
    """Should NumPy add up? Its sum is as exact as any where the terms are few, or next to each other in memory.

    Of many float32 numbers the kernel's sum, in float64, takes a third of the time.
    """
    if x.size > MANY and x.dtype == np.float32:
        return False
    if x.size <= SHORT or math.prod([x.shape[d] for d in dims]) <= SHORT:
        return True
    return bool(dims) and x.flags.c_contiguous and dims[0] == x.ndim - len(dims)


class Spread(Function):
    """y_j = x for each j     x̄ = Σ_j ȳ_j: the reverse of `Sum` over `dims`, which x may have kept"""

    keeps_inputs = False

    def forward(self, x: Any, *, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
        self.dims, self.keepdim = dims, x.ndim == len(shape)
        return broadcast(x.reshape(_kept(shape, dims)), shape)

    def backward(self, dy: Tensor) -> Tensor:
        return Sum.apply(dy, dims=self.dims, keepdim=self.keepdim)


class Prod(Function):
    """y = Π_j x_j            x̄_i = ȳ Π_{j≠i} x_j = ȳ (Π_{j<i} x_j) (Π_{j>i} x_j)           over the last dimension

    The products before and after i need no division, so zeros do no harm.
    """

    def forward(self, x: Any) -> Any:
        return _rounded(np.prod(x, axis=-1, dtype=_wide(x)), x)[...]

    def backward(self, dy: Tensor) -> Tensor:
        x = self.inputs[0].data
        others = np.ones_like(x, dtype=_wide(x))
        others[..., 1:] = np.cumprod(x[..., :-1], axis=-1, dtype=others.dtype)
        others[..., :-1] *= np.cumprod(x[..., :0:-1], axis=-1, dtype=others.dtype)[..., ::-1]
        return dy.unsqueeze(-1) * constant(others.astype(x.dtype, copy=False))

    def composed(self, x: Tensor) -> Tensor:
        """The first half of the factors times the second half, until one is left."""
        while (n := x.shape[-1]) > 1:
            x = x.pad((0, n % 2), value=1)
            x = x[..., : (n + 1) // 2] * x[..., (n + 1) // 2 :]
        return x.squeeze(-1) if n else x.sum(-1) + 1


class Cumsum(Function):
    """y_i = Σ_{j≤i} x_j      x̄_j = Σ_{i≥j} ȳ_i"""

    keeps_inputs = False

    def forward(self, x: Any, *, dim: int) -> Any:
        self.dim = dim
        with np.errstate(over="ignore"):  # float16 ends at 65,504
            return _rounded(np.cumsum(x, axis=dim, dtype=_wide(x)), x)

    def backward(self, dy: Tensor) -> Tensor:
        return Cumsum.apply(dy.flip(self.dim), dim=self.dim).flip(self.dim)


class Cumprod(Function):
    """y_i = Π_{j≤i} x_j      x̄_j = (Π_{k<j} x_k) S_j,  S_j = Σ_{i≥j} ȳ_i Π_{j<k≤i} x_k          over the last dimension

    No division, so zeros do no harm. S_j = ȳ_j + x_{j+1} S_{j+1}; with s and m the sum and the product of 1, 2, 4, … terms
    from j on, the next are s_j + m_j s_{j+step} and m_j m_{j+step}: log n steps, written in ops.
    """

    def forward(self, x: Any) -> Any:
        return _rounded(np.cumprod(x, axis=-1, dtype=_wide(x)), x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        n, dtype = x.shape[-1], x.dtype
        x, dy = cast(x, _wide(x)), cast(dy, _wide(x))
        before = Cumprod.apply(x[..., :-1].pad((1, 0), value=1))
        s, m, step = dy, x[..., 1:].pad((0, 1)), 1
        while step < n:
            s = s + m * s[..., step:].pad((0, step))
            m = m * m[..., step:].pad((0, step))
            step *= 2
        return cast(before * s, dtype)


class Amax(Function):
    """y = max_j x_j (`largest`) or min_j x_j        x̄_j = ȳ [x_j = y] / #{i: x_i = y}"""

    keeps_outputs = True

    def forward(self, x: Any, *, dims: tuple[int, ...], keepdim: bool, largest: bool) -> Any:
        self.dims = dims
        return (np.max if largest else np.min)(x, axis=dims, keepdims=keepdim)

    def backward(self, dy: Tensor) -> Tensor:
        x, y = self.inputs[0], self.outputs[0].data
        hit = x.data == y.reshape(_kept(x.shape, self.dims))
        share = hit / hit.sum(axis=self.dims, keepdims=True)  # counted in integers: no overflow
        return _spread(dy, x.shape, self.dims) * constant(share.astype(dy.dtype))


class LogSumExp(Function):
    """y = log Σ_j e^{x_j}    x̄_j = ȳ e^{x_j − m} / Σ_i e^{x_i − m}

    In the form m + log Σ e^{x_j − m}, m = max x. Where every x_j = −∞, y = −∞ and the gradient is 0. The gradient is not made
    from y, in which the logarithm is rounded away beside a large m.
    """

    def forward(self, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        self.dims = dims
        if 0 in [x.shape[d] for d in dims]:
            left = tuple(n for d, n in enumerate(_kept(x.shape, dims)) if keepdim or d not in dims)
            self.m = np.zeros_like(x, shape=())
            return np.full_like(x, -np.inf, shape=left)
        m = np.max(x.real, axis=dims, keepdims=True)
        self.m = m = np.where(np.isinf(m), 0, m).astype(x.dtype, copy=False)
        total = _total(np.exp(x - m), dims)
        empty = total == 0
        y = np.where(empty, -np.inf, np.log(np.where(empty, 1, total)) + m)
        return y if keepdim else y.reshape(tuple(n for d, n in enumerate(y.shape) if d not in dims))

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        e = (x - constant(self.m)).exp()  # softmax does not change with m, which may therefore be a constant
        total = sum(e, self.dims, keepdim=True)
        return _spread(dy, x.shape, self.dims) * (e / where(constant(total.data == 0), 1.0, total))


SMALL, LARGE = 2.0**-60, 2.0**60


class Norm(Function):
    """y = √Σ_j x_j²          x̄_j = ȳ x_j / y;  0 where y = 0, whatever ȳ

    In the form m √Σ (x_j/m)², m = max |x_j|, which neither overflows nor underflows; nor does the square of a float32 number in
    float64, which takes half the time.
    """

    keeps_outputs = True

    def forward(self, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        self.dims = dims
        if 0 in [x.shape[d] for d in dims]:  # nothing to scale by
            y = np.sum(x, axis=dims, keepdims=True)
        elif x.dtype == np.float32 and devices.on_host(x):
            y = np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=dims, keepdims=True)).astype(np.float32)
        else:
            m = self._largest(x)
            y = np.sqrt(_total(np.square(x / m), dims)) * m
        return y if keepdim else y.reshape(tuple(n for d, n in enumerate(y.shape) if d not in dims))

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        if not x.numel():
            return x * 0
        y = _spread(self.outputs[0], x.shape, self.dims)
        if y.data.min() < SMALL or y.data.max() > LARGE:  # ȳ / y could be ∞ or 0: x / y = (x/m) / ‖x/m‖, m any constant
            x = x / constant(self._largest(x.data))
            y = Norm.apply(x, dims=self.dims, keepdim=True)
        zero = y.data == 0
        y = where(constant(zero), 1.0, y)
        return x * (Kept.apply(_spread(dy, x.shape, self.dims), c=~zero) / y)

    def _largest(self, x: Any) -> Any:
        """m, or 1 where that is 0 or ∞, with its dimensions kept"""
        return _nonzero(np.max(np.abs(x), axis=self.dims, keepdims=True))


def _nonzero(m: Any) -> Any:
    """Magnitudes to divide by: 1 in place of 0 and ∞"""
    return np.where((m == 0) | np.isinf(m), 1, m).astype(m.dtype, copy=False)


def _wide(x: Any) -> Any:
    """The dtype in which many numbers of x are added or multiplied up: at least float64, for floating numbers"""
    return np.result_type(x.dtype, np.float64) if x.dtype.kind in "fc" else None


def _rounded(y: Any, x: Any) -> Any:
    """What was added or multiplied up, in the dtype of floating numbers x; whole numbers keep int64."""
    return y.astype(x.dtype, copy=False) if x.dtype.kind in "fc" else y


def _total(x: Any, dims: tuple[int, ...]) -> Any:
    """Σ x, with its dimensions kept"""
    return kernels.sum_over(x, dims).reshape(_kept(x.shape, dims))


@method
def sum(input: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """y = Σ x over `dim`. Booleans and integers add up as int64."""
    x = as_tensor(input)
    x = _signed(x) if dtype is None else cast(x, dtype)
    return Sum.apply(x, dims=_over("sum", x, dim), keepdim=keepdim)


def _signed(x: Tensor) -> Tensor:
    """What NumPy would add up as uint64, PyTorch adds up as int64."""
    return cast(x, np.int64) if x.dtype.kind == "u" else x


def _count(x: Tensor, dim: Dim, name: str) -> int:
    return math.prod(x.shape[d] for d in _over(name, x, dim))


@method
def mean(input: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """y = (1/n) Σ x over `dim`; of nothing it is NaN, as in PyTorch."""
    x = as_tensor(input) if dtype is None else cast(as_tensor(input), dtype)
    if x.dtype.kind not in "fc":
        raise TypeError(f"mean: expected a floating dtype, got {x.dtype}; convert it with .to(float32)")
    dims = _over("mean", x, dim)
    return Mean.apply(x, dims=dims, keepdim=keepdim)


@method
def var(
    input: Any,
    dim: Dim | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: Number | None = 1,
) -> Tensor:
    """y = Σ (x − mean)² / (n − correction) over `dim`, NaN where that is not above 0.

    `unbiased` is the older name: True for correction 1, False for 0; var(x, False) is var(x, unbiased=False). A correction of
    None is 1.
    """
    x = floating("var", input)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    degrees = _degrees(x, dim, unbiased, correction)
    centred = x - mean(x, dim, keepdim=True)
    return sum(centred * centred, dim, keepdim) / degrees


@method
def std(
    input: Any,
    dim: Dim | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: Number | None = 1,
) -> Tensor:
    """y = √var. Where all values are equal the gradient is 0, not NaN."""
    x = floating("std", input)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    degrees = _degrees(x, dim, unbiased, correction)
    return norm(x - mean(x, dim, keepdim=True), dim=dim, keepdim=keepdim) / math.sqrt(degrees)


def _degrees(x: Tensor, dim: Dim, unbiased: bool | None, correction: Number | None) -> float:
    """The degrees of freedom, NaN where there are none."""
    if unbiased is not None:
        correction = int(unbiased)
    elif correction is None:
        correction = 1
    n = _count(x, dim, "var") - correction
    return n if n > 0 else math.nan


@method
def norm(input: Any, p: Number | str = 2, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """y = (Σ |x|^p)^{1/p} over `dim`; p = inf gives max |x|, −inf min |x|, 0 the number of non-zeros.

    The gradient at 0 is 0 (a subgradient), so penalties such as (‖g‖ − 1)² stay finite there. That of p = 0 is 0.
    """
    x = floating("norm", input)
    dims = _over("norm", x, dim)
    if p in (2, "fro"):
        return Norm.apply(x, dims=dims, keepdim=keepdim)
    if not isinstance(p, int | float):
        raise ValueError(f"norm: expected p to be a number or 'fro', got {p!r}")
    if p == 1:
        return sum(x.abs(), dim, keepdim)
    if math.isinf(p):
        return (amax if p > 0 else amin)(x.abs(), dim, keepdim)
    if p == 0:
        return sum(Step.apply(x, function=lambda x: (x != 0).astype(x.dtype)), dim, keepdim)
    zero, abs_p = x.data == 0, math.fabs(p)
    if p > 0:
        m = np.max(np.abs(x.data), axis=dims, keepdims=True, initial=0)
    else:
        m = np.min(np.where(zero, math.inf, np.abs(x.data)), axis=dims, keepdims=True, initial=math.inf)
    m = constant(_nonzero(m))  # the norm does not depend on m, with which no power is above 1
    zero = constant(zero)  # 0ᵖ by name: its slope is infinite for p < 1
    size = where(zero, 1.0, x.abs())
    total = sum(where(zero, 0.0 if p > 0 else math.inf, (size / m if p > 0 else m / size) ** abs_p), dims, True)
    zero = constant(total.data == 0)
    y = where(zero, 0.0, where(zero, 1.0, total) ** (1 / p)) * m
    return y if keepdim else y.squeeze(dims)


@method
def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """y = Π x over one dimension, or over all of them."""
    x = _signed(as_tensor(input)) if dtype is None else cast(as_tensor(input), dtype)
    if dim is None:
        y = Prod.apply(x.reshape(-1))
        return y.reshape((1,) * x.ndim) if keepdim else y
    (d,) = dims_of("prod", x, dim) or (0,)
    y = Prod.apply(x.movedim(d, -1) if x.ndim else x.reshape(1))
    return y.unsqueeze(d) if keepdim and x.ndim else y


@method
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """y_i = Σ_{j≤i} x_j along `dim`"""
    x = _signed(as_tensor(input)) if dtype is None else cast(as_tensor(input), dtype)
    dims = dims_of("cumsum", x, dim)
    return Cumsum.apply(x, dim=dims[0]) if dims else x


@method
def cumprod(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """y_i = Π_{j≤i} x_j along `dim`"""
    x = _signed(as_tensor(input)) if dtype is None else cast(as_tensor(input), dtype)
    dims = dims_of("cumprod", x, dim)
    return Cumprod.apply(x.movedim(dims[0], -1)).movedim(-1, dims[0]) if dims else x


def _not_empty(name: str, x: Tensor, dims: tuple[int, ...]) -> None:
    if 0 in [x.shape[d] for d in dims]:
        raise ValueError(f"{name}: expected something to choose from, got shape {x.shape} reduced over {dims}")


@method
def amax(input: Any, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """y = max x over `dim`; a tie shares the gradient equally."""
    x = as_tensor(input)
    dims = _over("amax", x, dim)
    _not_empty("amax", x, dims)
    return Amax.apply(x, dims=dims, keepdim=keepdim, largest=True)


@method
def amin(input: Any, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """y = min x over `dim`; a tie shares the gradient equally."""
    x = as_tensor(input)
    dims = _over("amin", x, dim)
    _not_empty("amin", x, dims)
    return Amax.apply(x, dims=dims, keepdim=keepdim, largest=False)


@method
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the largest element is: the first of equals; in the flattened tensor without `dim`."""
    x = as_tensor(input)
    _not_empty("argmax", x, dims_of("argmax", x, dim))
    return constant(np.argmax(x.data, axis=dim, keepdims=keepdim))


@method
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the smallest element is: the first of equals; in the flattened tensor without `dim`."""
    x = as_tensor(input)
    _not_empty("argmin", x, dims_of("argmin", x, dim))
    return constant(np.argmin(x.data, axis=dim, keepdims=keepdim))


class Extremes(NamedTuple):
    """What `max` and `min` along a dimension return."""

    values: Tensor
    indices: Tensor


def _chosen(name: str, input: Any, dim: Any, keepdim: bool, whole: Any, arg: Any, pairwise: Any) -> Any:
    if dim is None:
        return whole(input)
    if isinstance(dim, Tensor | np.ndarray):
        return pairwise(input, dim)
    x = as_tensor(input)
    index = arg(x, dim, keepdim)
    if not x.ndim:
        return Extremes(x, index)
    (d,) = dims_of(name, x, dim)
    values = x.gather(d, index if keepdim else index.unsqueeze(d))
    return Extremes(values if keepdim else values.squeeze(d), index)


@method
def max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest of all elements (a tie shares the gradient); with `dim` (values, indices), the gradient following the index;
    with a second tensor, `maximum`."""
    return _chosen("max", input, dim, keepdim, amax, argmax, maximum)


@method
def min(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest of all elements (a tie shares the gradient); with `dim` (values, indices), the gradient following the index;
    with a second tensor, `minimum`."""
    return _chosen("min", input, dim, keepdim, amin, argmin, minimum)


@method
def logsumexp(input: Any, dim: Dim, keepdim: bool = False) -> Tensor:
    """y = log Σ eˣ over `dim`, without overflow; of nothing but −∞ it is −∞, with gradient 0."""
    x = floating("logsumexp", input)
    return LogSumExp.apply(x, dims=_over("logsumexp", x, dim), keepdim=keepdim)


@method
def all(input: Any, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Do all elements hold?"""
    x = as_tensor(input)
    return constant(np.all(x.data, axis=dims_of("all", x, dim), keepdims=keepdim))


@method
def any(input: Any, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Does any element hold?"""
    x = as_tensor(input)
    return constant(np.any(x.data, axis=dims_of("any", x, dim), keepdims=keepdim))
