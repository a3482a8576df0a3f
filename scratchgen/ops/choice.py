r"""Ops with a kink, or with a choice: y_i is one of several candidates, and its gradient goes to the chosen one.

At a kink the gradient is the one that PyTorch documents: `abs` 0 at 0, `relu` 0 at 0, `maximum` and `minimum` halves at a tie,
`clamp` 1 on its bounds. NaN stays NaN: also under `sign`, where PyTorch gives 0, and so in the gradient of `abs`.
Comparisons give booleans, which have no gradient.
"""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.operands import Number, as_tensor, cast, floating, operands, pair
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "abs",
    "allclose",
    "ceil",
    "clamp",
    "eq",
    "floor",
    "ge",
    "gt",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "nan_to_num",
    "ne",
    "relu",
    "round",
    "sign",
    "where",
]

# ---------------------------------------------------------------------------------------------------------------------
# Kinks and choices
# ---------------------------------------------------------------------------------------------------------------------


class Abs(Function):
    """y = |x|            x̄ = ȳ sign x"""

    def forward(self, x: Any) -> Any:
        return np.abs(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy * constant(kernels.sign(x.data))


class LeakyRelu(Function):
    """y = x for x > 0, else a x;  a ≥ 0, and a = 0 is ReLU          x̄ = ȳ for y > 0, else a ȳ"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any, *, slope: float) -> Any:
        self.slope = slope
        return kernels.leaky_relu(x, slope)

    def backward(self, dy: Tensor) -> Tensor:
        return LeakyReluGrad.apply(dy, y=self._outputs[0], slope=self.slope)


class LeakyReluGrad(Function):
    """x̄ = ȳ for y > 0, else a ȳ:  linear in ȳ, and so its own gradient"""

    keeps_inputs = False

    def forward(self, dy: Any, *, y: Any, slope: float) -> Any:
        self.y, self.slope = y, slope
        return kernels.leaky_relu_backward(dy, y, slope)

    def backward(self, ddx: Tensor) -> Tensor:
        return LeakyReluGrad.apply(ddx, y=self.y, slope=self.slope)


class Kept(Function):
    """y = x where c, else 0, whatever x is there          x̄ = ȳ where c, else 0: the same op"""

    keeps_inputs = False

    def forward(self, x: Any, *, c: Any) -> Any:
        self.c = c
        return np.where(c, x, x.dtype.type(0))

    def backward(self, dy: Tensor) -> Tensor:
        return Kept.apply(dy, c=self.c)


def none_of(dy: Tensor) -> Tensor:
    """Zeros of ȳ's shape, whatever ȳ is: the gradient of a constant."""
    return Kept.apply(dy, c=devices.number(False, np.dtype(bool), dy.data))


class Maximum(Function):
    """y = max(a, b)      ā = ȳ ([a > b] + ½ [a = b]),  b̄ = ȳ ([b > a] + ½ [a = b]);  both ȳ where one is NaN"""

    def forward(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        a, b = (x.data for x in self.inputs)
        return _shared(dy, a < b, a > b, a == b)


class Minimum(Function):
    """y = min(a, b)      ā = ȳ ([a < b] + ½ [a = b]),  b̄ = ȳ ([b < a] + ½ [a = b]);  both ȳ where one is NaN"""

    def forward(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        a, b = (x.data for x in self.inputs)
        return _shared(dy, a > b, a < b, a == b)


def _shared(dy: Tensor, not_a: Any, not_b: Any, tie: Any) -> tuple[Tensor, ...]:
    """ȳ for the one of two that was taken, in halves at a tie."""
    if not devices.on_host(tie) or tie.any():
        dy = dy * constant(1 - 0.5 * tie.astype(dy.dtype))
    return Kept.apply(dy, c=~not_a), Kept.apply(dy, c=~not_b)


class Clamp(Function):
    """y = min(max(x, lo), hi)        x̄ = ȳ [lo ≤ x ≤ hi]"""

    def forward(self, x: Any, *, lo: Number | None, hi: Number | None) -> Any:
        self.lo, self.hi = lo, hi
        return np.clip(x, lo, hi)

    def backward(self, dy: Tensor) -> Tensor:
        x = self.inputs[0].data
        inside = np.ones_like(x, dtype=bool)
        if self.lo is not None:
            inside &= x >= self.lo
        if self.hi is not None:
            inside &= x <= self.hi
        return Kept.apply(dy, c=inside)


class Huber(Function):
    """y = ½ d² for |d| ≤ δ, else δ (|d| − ½ δ)          d̄ = ȳ q,  q = d held between −δ and δ

    In the form q (d − ½ q): d² is never formed where it could overflow.
    """

    def forward(self, d: Any, *, delta: float) -> Any:
        self.delta = delta
        q = np.clip(d, -delta, delta)
        return q * (d - 0.5 * q)

    def backward(self, dy: Tensor) -> Tensor:
        (d,) = self.inputs
        return dy * clamp(d, -self.delta, self.delta)


class Where(Function):
    """y = a where c, else b          ā = ȳ where c else 0,  b̄ = 0 where c else ȳ"""

    keeps_inputs = False

    def forward(self, a: Any, b: Any, *, c: np.ndarray) -> Any:
        self.c = c
        return np.where(c, a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        c = constant(self.c)
        needs_a, needs_b = self.needs_input_grad
        return where(c, dy, 0.0) if needs_a else None, where(c, 0.0, dy) if needs_b else None


class Step(Function):
    """A function that is constant between jumps: its gradient is 0, whatever ȳ. Booleans are left alone."""

    keeps_inputs = False

    def forward(self, x: Any, *, function: Any) -> Any:
        return x if x.dtype.kind == "b" else function(x)

    def backward(self, dy: Tensor) -> Tensor:
        return none_of(dy)


@method("abs", "__abs__")
def abs(input: Any) -> Tensor:
    """y = |input|"""
    return Abs.apply(as_tensor(input))


@method
def relu(input: Any) -> Tensor:
    """y = max(input, 0)"""
    return LeakyRelu.apply(as_tensor(input), slope=0.0)


def leaky_relu(input: Any, negative_slope: float = 0.01) -> Tensor:
    """y = x for x > 0, else slope · x.  Maas, Hannun & Ng 2013."""
    x = floating("leaky_relu", input)
    if negative_slope >= 0:
        return LeakyRelu.apply(x, slope=float(negative_slope))
    return where(x > 0, x, x * negative_slope)


@method
def maximum(input: Any, other: Any) -> Tensor:
    """The larger of two, element by element; at a tie the gradient is shared in halves."""
    return Maximum.apply(*pair("maximum", input, other))


@method
def minimum(input: Any, other: Any) -> Tensor:
    """The smaller of two, element by element; at a tie the gradient is shared in halves."""
    return Minimum.apply(*pair("minimum", input, other))


@method("clamp", "clip")
def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """y = input held between `min` and `max` (numbers or tensors, either may be left out)."""
    x = as_tensor(input)
    if min is None and max is None:
        raise ValueError("clamp: expected min, max or both, got neither")
    if isinstance(min, int | float | None) and isinstance(max, int | float | None):
        if x.dtype.kind in "iub" and (isinstance(min, float) or isinstance(max, float)):
            x = cast(x, np.float32)
        elif x.dtype.kind == "b":
            x = cast(x, np.int64)
        lo, hi = _bound(x.dtype, min), _bound(x.dtype, max)
        if x.dtype.kind in "iu" and (hi is not None and max < hi or lo is not None and min > lo and (hi is None or max > hi)):
            raise ValueError(f"clamp: expected bounds that leave numbers of {x.dtype}, got {min} and {max}")
        return Clamp.apply(x, lo=lo, hi=hi)
    if min is not None:
        x, lo = operands("clamp", x, min)
        x = where(x < lo, lo, _where_comparable(lo, x))
    if max is not None:
        x, hi = operands("clamp", x, max)
        x = where(x > hi, hi, _where_comparable(hi, x))
    return x


def _where_comparable(bound: Tensor, x: Tensor) -> Tensor:
    """x, but NaN, without a gradient, where either is NaN."""
    strange = np.isnan(bound.data) | np.isnan(x.data)
    return where(constant(strange), math.nan, x) if not devices.on_host(strange) or strange.any() else x


def _bound(dtype: np.dtype, value: Number | None) -> Any:
    """A bound as the dtype holds it; the end of the dtype's range for one that lies beyond, as −1 and 300 do for uint8."""
    if value is None or -_FLOAT16 <= value <= _FLOAT16 and dtype.kind == "f":
        return value
    if dtype.kind in "iu":
        return dtype.type(builtins.min(builtins.max(value, np.iinfo(dtype).min), np.iinfo(dtype).max))
    if builtins.abs(value) > float(np.finfo(dtype).max):
        value = math.inf if value > 0 else -math.inf
    return dtype.type(value)


_FLOAT16 = 65504.0  # the largest float16, which every floating dtype can hold


def where(condition: Any, input: Any, other: Any) -> Tensor:
    """y = input where the boolean `condition` holds, else other. Nothing leaks from the branch not taken, if it is finite."""
    c = as_tensor(condition)
    if c.dtype != np.bool_:
        raise TypeError(f"where: expected a boolean condition, got {c.dtype}")
    a, b = pair("where", input, other)
    if isinstance(input, Number) and isinstance(other, Number):
        a, b = (constant(devices.beside(x.data, c.data)) for x in (a, b))
    return Where.apply(a, b, c=c.data.copy())


@method
def masked_fill(input: Any, mask: Any, value: Number) -> Tensor:
    """y = value where the boolean `mask` holds, else input"""
    return where(mask, value, as_tensor(input))


@method
def sign(input: Any) -> Tensor:
    """y = −1, 0 or 1; gradient 0"""
    return Step.apply(as_tensor(input), function=np.sign)


@method
def floor(input: Any) -> Tensor:
    """The largest whole number that is not larger; gradient 0"""
    return Step.apply(as_tensor(input), function=np.floor)


@method
def ceil(input: Any) -> Tensor:
    """The smallest whole number that is not smaller; gradient 0"""
    return Step.apply(as_tensor(input), function=np.ceil)


@method
def round(input: Any, *, decimals: int = 0) -> Tensor:
    """The nearest whole number, halves to the even one, or the nearest with so many decimals; gradient 0"""
    return Step.apply(as_tensor(input), function=lambda x: np.round(x, decimals))


@method
def nan_to_num(input: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """y = `nan` for NaN, `posinf` for ∞, `neginf` for −∞ (the dtype's largest and least unless given), else x.

    What was replaced has gradient 0.
    """
    x = as_tensor(input)
    if x.dtype.kind != "f":
        return x
    finite = np.isfinite(x.data)
    if devices.on_host(finite) and finite.all():
        return x
    return where(constant(finite), x, constant(np.nan_to_num(x.data, nan=nan, posinf=posinf, neginf=neginf)))


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons: booleans, which have no gradient
# ---------------------------------------------------------------------------------------------------------------------


def _compare(function: Any, name: str, symbol: str) -> Any:
    def compare(input: Any, other: Any) -> Tensor:
        if other is None or isinstance(other, str):
            return NotImplemented  # Python then says that they are two things: x == None is False
        a, b = (x.data if isinstance(x, Tensor) else x for x in (input, other))
        return constant(function(a, b))

    compare.__name__ = compare.__qualname__ = name
    compare.__doc__ = f"input {symbol} other, element by element: booleans"
    return compare


def _bitwise(function: Any, name: str, symbol: str) -> Any:
    def bitwise(*inputs: Any) -> Tensor:
        arrays = [as_tensor(x).data for x in inputs]
        if any(x.dtype.kind not in "iub" for x in arrays):
            raise TypeError(f"{symbol}: expected booleans or integers, got {' and '.join(str(x.dtype) for x in arrays)}")
        return constant(function(*arrays))

    bitwise.__name__ = bitwise.__qualname__ = name
    bitwise.__doc__ = f"{symbol} for each bit of integers, and for booleans"
    return bitwise


eq = method("eq", "__eq__")(_compare(np.equal, "eq", "="))
ne = method("ne", "__ne__")(_compare(np.not_equal, "ne", "≠"))
lt = method("lt", "__lt__")(_compare(np.less, "lt", "<"))
le = method("le", "__le__")(_compare(np.less_equal, "le", "≤"))
gt = method("gt", "__gt__")(_compare(np.greater, "gt", ">"))
ge = method("ge", "__ge__")(_compare(np.greater_equal, "ge", "≥"))
logical_and = method(_compare(np.logical_and, "logical_and", "and"))
logical_or = method(_compare(np.logical_or, "logical_or", "or"))
bitwise_and = method("__and__", "__rand__")(_bitwise(np.bitwise_and, "bitwise_and", "&"))
bitwise_or = method("__or__", "__ror__")(_bitwise(np.bitwise_or, "bitwise_or", "|"))
bitwise_xor = method("__xor__", "__rxor__")(_bitwise(np.bitwise_xor, "bitwise_xor", "^"))
bitwise_not = method("__invert__")(_bitwise(np.invert, "bitwise_not", "~"))


@method
def logical_not(input: Any) -> Tensor:
    """not input, element by element: booleans"""
    return constant(np.logical_not(as_tensor(input).data))


@method
def isnan(input: Any) -> Tensor:
    """Is each element NaN?"""
    return constant(np.isnan(as_tensor(input).data))


@method
def isinf(input: Any) -> Tensor:
    """Is each element infinite?"""
    return constant(np.isinf(as_tensor(input).data))


@method
def isfinite(input: Any) -> Tensor:
    """Is each element finite?"""
    return constant(np.isfinite(as_tensor(input).data))


@method
def isclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """|input − other| ≤ atol + rtol |other|, element by element; the same infinities are close, NaN only if `equal_nan`."""
    a, b = pair("isclose", input, other)
    return constant(np.isclose(a.data, b.data, rtol, atol, equal_nan))


@method
def allclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Is every element close (`isclose`)?"""
    return bool(isclose(input, other, rtol, atol, equal_nan).data.all())
