r"""Smooth ops that act on each element: y_i = f(x_i), so x̄_i = f'(x_i) ȳ_i.

Two operands broadcast as in NumPy; the engine sums a gradient back to the shape of a broadcast operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.choice import Kept, none_of, where
from scratchgen.ops.operands import Number, as_tensor, cast, floating, operands, pair
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "add",
    "addcdiv",
    "addcmul",
    "cos",
    "div",
    "erf",
    "exp",
    "expm1",
    "gelu",
    "lerp",
    "log",
    "log10",
    "log1p",
    "log2",
    "logaddexp",
    "mul",
    "neg",
    "pow",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "sub",
    "tanh",
]

# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic
# ---------------------------------------------------------------------------------------------------------------------


MANY, LONG = 1 << 14, 16  # elements, and elements of a row, from which on NumPy's broadcasting costs more than a kernel


def _by_rows(kernel: Callable, a: Any, b: Any) -> Any:
    """kernel(x, s) where one of a and b holds one constant s for each row of the other, x; None where neither does.

    A row is all that the other has along the last dimensions, such as the pixels of a channel.
    """
    x, s = (a, b) if a.size >= b.size else (b, a)
    lead, ahead = x.ndim, x.ndim - s.ndim
    if x.size < MANY or s.size < 2 or ahead < 0 or not devices.on_host(x) or not devices.on_host(s):
        return None
    while s.shape[lead - 1 - ahead] == 1:
        lead -= 1
    shape = s.shape[: lead - ahead]
    if not x.flags.c_contiguous or math.prod(x.shape[lead:]) < LONG:
        return None
    if any(n not in (1, m) for n, m in zip(shape, x.shape[ahead:lead], strict=True)):
        return None
    constants = np.broadcast_to(s.reshape(shape), x.shape[:lead]).reshape(-1)
    return kernel(x.reshape(len(constants), -1), constants).reshape(x.shape)


def added(a: Any, b: Any) -> Any:
    """a + b, two arrays"""
    y = None if a.size == b.size else _by_rows(kernels.add_to_rows, a, b)
    return a + b if y is None else y


class Add(Function):
    """y = a + b          ā = ȳ,  b̄ = ȳ"""

    keeps_inputs = False

    def forward(self, a: Any, b: Any) -> Any:
        return added(a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        return dy, dy


class Sub(Function):
    """y = a − b          ā = ȳ,  b̄ = −ȳ"""

    keeps_inputs = False

    def forward(self, a: Any, b: Any) -> Any:
        return a - b

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy, -dy if self.needs_input_grad[1] else None


class Mul(Function):
    """y = a b            ā = ȳ b,  b̄ = ȳ a"""

    def forward(self, a: Any, b: Any) -> Any:
        y = None if a.size == b.size else _by_rows(kernels.scale_rows, a, b)
        return a * b if y is None else y

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        needs_a, needs_b = self.needs_input_grad
        return Mul.apply(dy, b) if needs_a else None, Mul.apply(dy, a) if needs_b else None


class Div(Function):
    """y = a / b          ā = ȳ / b,  b̄ = −(ȳ / b) (a / b)"""

    def forward(self, a: Any, b: Any) -> Any:
        return a / b

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        da = dy / b
        return da, -da * (a / b) if self.needs_input_grad[1] else None


class RoundedQuotient(Function):
    """y = a / b rounded to a whole number, down ("floor") or towards 0 ("trunc"): constant between jumps, ā = b̄ = 0"""

    keeps_inputs = False

    def forward(self, a: Any, b: Any, *, mode: str) -> Any:
        y = a // b
        if mode == "trunc":
            y = np.trunc(a / b) if y.dtype.kind == "f" else y + ((y < 0) & (y * b != a))  # rounded down, and not whole: up
        return y

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        return none_of(dy), none_of(dy)


class Remainder(Function):
    """y = a − b ⌊a/b⌋    ā = ȳ,  b̄ = −ȳ ⌊a/b⌋"""

    def forward(self, a: Any, b: Any) -> Any:
        return np.remainder(a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        return dy, -dy * floor_divide(*self.inputs)


class Lerp(Function):
    """y = a + w (b − a)  ā = ȳ (1 − w),  b̄ = ȳ w,  w̄ = ȳ (b − a)

    Computed as b − (1 − w) (b − a) for w ≥ ½: y = b exactly at w = 1, as y = a at w = 0.
    """

    def forward(self, a: Any, b: Any, w: Any) -> Any:
        gap = b - a
        return np.where(w < 0.5, a + w * gap, b - (1 - w) * gap)

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b, w = self.inputs
        needs_a, needs_b, needs_w = self.needs_input_grad
        return dy * (1 - w) if needs_a else None, dy * w if needs_b else None, dy * (b - a) if needs_w else None


class Neg(Function):
    """y = −x             x̄ = −ȳ"""

    keeps_inputs = False

    def forward(self, x: Any) -> Any:
        return -x

    def backward(self, dy: Tensor) -> Tensor:
        return Neg.apply(dy)


class Pow(Function):
    """y = aᵇ             ā = ȳ b aᵇ⁻¹,  b̄ = ȳ aᵇ log a

    a⁰ = 1 with ā = 0, whatever a and ȳ; at a = 0 with b ≥ 0 the gradient with respect to b is 0, its limit.
    """

    keeps_outputs = True

    def forward(self, a: Any, b: Any) -> Any:
        return a**b

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        (y,) = self.outputs
        da = db = None
        if self.needs_input_grad[0]:
            lower = where((a == 0).logical_and(b == 0), 1.0, b - 1)  # 0 · 0⁻¹ is 0 here
            da = dy * b * a**lower
            flat = (b.data == 0) & ~(np.isfinite(dy.data) & np.isfinite(a.data))
            if not devices.on_host(flat) or flat.any():
                da = Kept.apply(da, c=~flat)
        if self.needs_input_grad[1]:
            db = dy * y * log(where((a == 0).logical_and(b >= 0), 1.0, a))
        return da, db


class Power(Function):
    """y = xᵖ for a number p          x̄ = ȳ p xᵖ⁻¹;  0 for p = 0, whatever ȳ"""

    def forward(self, x: Any, *, p: Number) -> Any:
        self.p = p
        return x * x * x if p == 3 else x**p  # NumPy's general power is a hundred times slower

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return none_of(dy) if self.p == 0 else dy * (x ** (self.p - 1) * float(self.p))


@method("add", "__add__", reflected="__radd__")
def add(input: Any, other: Any, *, alpha: Number = 1) -> Tensor:
    """y = input + alpha · other"""
    if alpha != 1:
        other = (other if isinstance(other, Number) else as_tensor(other)) * alpha
    return Add.apply(*pair("add", input, other))


@method("sub", "__sub__", reflected="__rsub__")
def sub(input: Any, other: Any, *, alpha: Number = 1) -> Tensor:
    """y = input − alpha · other"""
    if alpha != 1:
        other = (other if isinstance(other, Number) else as_tensor(other)) * alpha
    return Sub.apply(*pair("sub", input, other))


@method("mul", "__mul__", reflected="__rmul__")
def mul(input: Any, other: Any) -> Tensor:
    """y = input · other, element by element"""
    return Mul.apply(*pair("mul", input, other))


@method
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Number = 1) -> Tensor:
    """y = input + value · tensor1 · tensor2"""
    return add(input, mul(tensor1, tensor2), alpha=value)


@method
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Number = 1) -> Tensor:
    """y = input + value · tensor1 / tensor2"""
    return add(input, div(tensor1, tensor2), alpha=value)


@method
def lerp(input: Any, end: Any, weight: Any) -> Tensor:
    """y = input + weight · (end − input): from `input` at weight 0 to `end` at weight 1, exactly so at both."""
    return Lerp.apply(*[floating("lerp", x) for x in operands("lerp", as_tensor(input), end, weight)])


@method("div", "__truediv__", reflected="__rtruediv__")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """y = input / other; integers are divided as float32.

    `rounding_mode` "floor" gives ⌊input / other⌋, "trunc" the whole number towards 0, in the operands' dtype; gradient 0.
    """
    if rounding_mode is not None:
        if rounding_mode not in ("floor", "trunc"):
            raise ValueError(f"div: expected rounding_mode None, 'floor' or 'trunc', got {rounding_mode!r}")
        return RoundedQuotient.apply(*pair("div", input, other), mode=rounding_mode)
    a, b = pair("div", *[float(x) if type(x) is int else x for x in (input, other)])
    return Div.apply(a, b) if a._data.dtype.kind in "fc" else Div.apply(cast(a, np.float32), cast(b, np.float32))


@method("__floordiv__")
def floor_divide(input: Any, other: Any) -> Tensor:
    """y = ⌊input / other⌋, without a gradient"""
    a, b = pair("floor_divide", input, other)
    return constant(a.data // b.data)


@method("__mod__")
def remainder(input: Any, other: Any) -> Tensor:
    """y = input − other ⌊input / other⌋, which has the sign of `other`"""
    return Remainder.apply(*pair("remainder", input, other))


@method("neg", "__neg__")
def neg(input: Any) -> Tensor:
    """y = −input"""
    return Neg.apply(as_tensor(input))


@method
def __pos__(self: Tensor) -> Tensor:
    """+x is x itself."""
    return self


@method("pow", "__pow__", reflected="__rpow__")
def pow(input: Any, exponent: Any) -> Tensor:
    """y = input^exponent. See Pow for 0⁰; the gradient with respect to the exponent of a negative base is NaN."""
    if isinstance(exponent, np.generic):
        exponent = exponent.item()
    if isinstance(exponent, int | float) and not isinstance(exponent, bool):
        x = as_tensor(input)
        if x.dtype.kind in "iub" and isinstance(exponent, float):
            x = cast(x, np.float32)
        return Rsqrt.apply(x) if exponent == -0.5 else Power.apply(x, p=exponent)
    return Pow.apply(*operands("pow", input, exponent))


@method
def square(input: Any) -> Tensor:
    """y = input²"""
    x = as_tensor(input)
    return x * x


@method
def reciprocal(input: Any) -> Tensor:
    """y = 1 / input"""
    return 1.0 / as_tensor(input)


# ---------------------------------------------------------------------------------------------------------------------
# Exponentials and logarithms
# ---------------------------------------------------------------------------------------------------------------------


class Exp(Function):
    """y = eˣ             x̄ = ȳ y"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return np.exp(x)

    def backward(self, dy: Tensor) -> Tensor:
        (y,) = self.outputs
        return dy * y


class Expm1(Function):
    """y = eˣ − 1         x̄ = ȳ (y + 1)"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return np.expm1(x)

    def backward(self, dy: Tensor) -> Tensor:
        (y,) = self.outputs
        return dy * (y + 1)


class Log(Function):
    """y = log x          x̄ = ȳ / x"""

    def forward(self, x: Any) -> Any:
        return np.log(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy / x


class Log1p(Function):
    """y = log(1 + x)     x̄ = ȳ / (1 + x)"""

    def forward(self, x: Any) -> Any:
        return np.log1p(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy / (1 + x)


class Sqrt(Function):
    """y = √x             x̄ = ȳ / 2y,  infinite at 0"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return np.sqrt(x)

    def backward(self, dy: Tensor) -> Tensor:
        (y,) = self.outputs
        return dy / (2 * y)


class Rsqrt(Function):
    """y = 1 / √x         x̄ = −½ ȳ y³"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return 1 / np.sqrt(x)

    def backward(self, dy: Tensor) -> Tensor:
        (y,) = self.outputs
        return dy * (y * y * y) * -0.5


class LogAddExp(Function):
    """y = log(eᵃ + eᵇ)   ā = ȳ σ(a − b),  b̄ = ȳ σ(b − a);  shared equally where both are the same infinity"""

    def forward(self, a: Any, b: Any) -> Any:
        return np.logaddexp(a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        both = constant(np.isinf(a.data) & (a.data == b.data))  # ∞ − ∞ is not a gap
        gap = where(both, 0.0, a) - where(both, 0.0, b)
        needs_a, needs_b = self.needs_input_grad
        return dy * sigmoid(gap) if needs_a else None, dy * sigmoid(-gap) if needs_b else None


class Softplus(Function):
    """y = log(1 + e^{βx}) / β,  linear once βx exceeds the threshold      x̄ = ȳ σ(βx)

    In the form max(βx, 0) + log1p(e^{−|βx|}), finite for every finite x.
    """

    def forward(self, x: Any, **curve: float) -> Any:
        self.curve = curve
        return kernels.softplus(x, **curve)

    def backward(self, dy: Tensor) -> Tensor:
        return SoftplusGrad.apply(dy, *self.inputs, **self.curve)


class SoftplusGrad(Function):
    """x̄ = ȳ σ(βx),  ȳ where linear       the cotangent x̿ of x̄ gives  x̿ σ(βx)  to ȳ and  x̿ ȳ β σ(βx) σ(−βx)  to x"""

    def forward(self, dy: Any, x: Any, **curve: float) -> Any:
        self.curve = curve
        return kernels.softplus_backward(dy, x, **curve)

    def backward(self, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = self.inputs
        needs_dy, needs_x = self.needs_input_grad
        to_x = None
        if needs_x:
            z = x * self.curve["beta"]
            linear = constant(z.data > self.curve["threshold"])
            to_x = where(linear, 0.0, ddx * dy * (sigmoid(z) * sigmoid(-z)) * self.curve["beta"])
        return SoftplusGrad.apply(ddx, x, **self.curve) if needs_dy else None, to_x


@method
def exp(input: Any) -> Tensor:
    """y = e^input"""
    return Exp.apply(floating("exp", input))


@method
def expm1(input: Any) -> Tensor:
    """y = e^input − 1, accurate near 0"""
    return Expm1.apply(floating("expm1", input))


@method
def log(input: Any) -> Tensor:
    """y = log input (natural)"""
    return Log.apply(floating("log", input))


@method
def log2(input: Any) -> Tensor:
    """y = log₂ input"""
    return log(input) * (1 / math.log(2))


@method
def log10(input: Any) -> Tensor:
    """y = log₁₀ input"""
    return log(input) * (1 / math.log(10))


@method
def log1p(input: Any) -> Tensor:
    """y = log(1 + input), accurate near 0"""
    return Log1p.apply(floating("log1p", input))


@method
def sqrt(input: Any) -> Tensor:
    """y = √input. Its slope at 0 is infinite; `norm` is the root of a sum of squares with a finite one."""
    return Sqrt.apply(floating("sqrt", input))


@method
def rsqrt(input: Any) -> Tensor:
    """y = 1 / √input"""
    return Rsqrt.apply(floating("rsqrt", input))


@method
def logaddexp(input: Any, other: Any) -> Tensor:
    """y = log(e^input + e^other), without overflow"""
    a, b = pair("logaddexp", input, other)
    return LogAddExp.apply(floating("logaddexp", a), floating("logaddexp", b))


@method
def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """y = log(1 + e^{β input}) / β;  y = input where β input > threshold"""
    return Softplus.apply(floating("softplus", input), beta=float(beta), threshold=float(threshold))


# ---------------------------------------------------------------------------------------------------------------------
# Trigonometry and sigmoids
# ---------------------------------------------------------------------------------------------------------------------


class Sin(Function):
    """y = sin x          x̄ = ȳ cos x"""

    def forward(self, x: Any) -> Any:
        return np.sin(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy * cos(x)


class Cos(Function):
    """y = cos x          x̄ = −ȳ sin x"""

    def forward(self, x: Any) -> Any:
        return np.cos(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return -dy * sin(x)


class Tanh(Function):
    """y = tanh x         x̄ = ȳ (1 − y²)"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return np.tanh(x)

    def backward(self, dy: Tensor) -> Tensor:
        return TanhGrad.apply(dy, *self.outputs)


class TanhGrad(Function):
    """x̄ = ȳ (1 − y²)     the cotangent x̿ of x̄ gives  x̿ (1 − y²)  to ȳ and  −2 x̿ ȳ y  to y"""

    def forward(self, dy: Any, y: Any) -> Any:
        return kernels.tanh_backward(dy, y)

    def backward(self, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, y = self.inputs
        needs_dy, needs_y = self.needs_input_grad
        return TanhGrad.apply(ddx, y) if needs_dy else None, ddx * dy * y * -2.0 if needs_y else None


class Sigmoid(Function):
    """y = σ(x) = 1 / (1 + e⁻ˣ)       x̄ = ȳ y (1 − y)"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return kernels.sigmoid(x)

    def backward(self, dy: Tensor) -> Tensor:
        return SigmoidGrad.apply(dy, *self.outputs)


class SigmoidGrad(Function):
    """x̄ = ȳ y (1 − y)   the cotangent x̿ of x̄ gives  x̿ y (1 − y)  to ȳ and  x̿ ȳ (1 − 2y)  to y"""

    def forward(self, dy: Any, y: Any) -> Any:
        return kernels.sigmoid_backward(dy, y)

    def backward(self, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, y = self.inputs
        needs_dy, needs_y = self.needs_input_grad
        return SigmoidGrad.apply(ddx, y) if needs_dy else None, ddx * dy * (1 - 2 * y) if needs_y else None


class Erf(Function):
    """y = 2/√π ∫₀ˣ e^{−t²} dt        x̄ = ȳ (2/√π) e^{−x²}"""

    def forward(self, x: Any) -> Any:
        return kernels.erf(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy * (exp(-(x * x)) * (2 / math.sqrt(math.pi)))


class Gelu(Function):
    r"""y = x Φ(x),  Φ the standard normal distribution function;  Hendrycks & Gimpel 2016, arXiv:1606.08415

    "none":  Φ(x) = ½ (1 + erf(x/√2))
    "tanh":  Φ(x) ≈ ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))           x̄ = ȳ (Φ + x Φ')
    """

    def forward(self, x: Any, *, approximate: str) -> Any:
        self.approximate = approximate
        return kernels.gelu(x, approximate=approximate)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return constant(kernels.gelu_backward(dy.data, x.data, approximate=self.approximate))

    def composed(self, x: Tensor) -> Tensor:
        if self.approximate == "tanh":
            return x * 0.5 * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
        return x * 0.5 * (1 + erf(x * math.sqrt(0.5)))


@method
def sin(input: Any) -> Tensor:
    """y = sin input (radians)"""
    return Sin.apply(floating("sin", input))


@method
def cos(input: Any) -> Tensor:
    """y = cos input (radians)"""
    return Cos.apply(floating("cos", input))


@method
def tanh(input: Any) -> Tensor:
    """y = tanh input"""
    return Tanh.apply(floating("tanh", input))


@method
def sigmoid(input: Any) -> Tensor:
    """y = 1 / (1 + e^{−input})"""
    return Sigmoid.apply(floating("sigmoid", input))


@method
def erf(input: Any) -> Tensor:
    """y = erf input, the error function"""
    return Erf.apply(floating("erf", input))


@method
def gelu(input: Any, *, approximate: str = "none") -> Tensor:
    """y = input Φ(input), with Φ exact ("none") or by its tanh approximation ("tanh", as in GPT-2)."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: expected approximate to be 'none' or 'tanh', got {approximate!r}")
    return Gelu.apply(floating("gelu", input), approximate=approximate)
