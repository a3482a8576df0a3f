r"""Trigonometric and hyperbolic functions beside sin, cos and tanh, which models use most (`elementwise`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen.autograd import Function
from scratchgen.ops.choice import where
from scratchgen.ops.operands import floating, pair
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "atan2",
    "cosh",
    "sinh",
    "tan",
]


class Tan(Function):
    """y = tan x          x̄ = ȳ (1 + y²)"""

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any) -> Any:
        return np.tan(x)

    def backward(self, dy: Tensor) -> Tensor:
        (y,) = self.outputs
        return dy * (1 + y * y)


class Sinh(Function):
    """y = sinh x         x̄ = ȳ cosh x"""

    def forward(self, x: Any) -> Any:
        return np.sinh(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy * cosh(x)


class Cosh(Function):
    """y = cosh x         x̄ = ȳ sinh x"""

    def forward(self, x: Any) -> Any:
        return np.cosh(x)

    def backward(self, dy: Tensor) -> Tensor:
        (x,) = self.inputs
        return dy * sinh(x)


class Atan2(Function):
    """θ = the angle of the point (b, a)      ā = θ̄ b / (a² + b²),  b̄ = −θ̄ a / (a² + b²);  0 at the origin

    With a and b divided by s = max(|a|, |b|) no square over- or underflows: b / (a² + b²) = b' / (s (a'² + b'²)). This
    does not depend on s, so s is a constant to further derivatives.
    """

    def forward(self, a: Any, b: Any) -> Any:
        return np.arctan2(a, b)

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        s = np.maximum(np.abs(a.data), np.abs(b.data))
        origin = s == 0
        s = constant(np.where(origin, 1, s).astype(dy.dtype))
        a, b = a / s, b / s
        dy = dy / s / where(constant(origin), 1.0, a * a + b * b)
        needs_a, needs_b = self.needs_input_grad
        return dy * b if needs_a else None, -dy * a if needs_b else None


@method
def tan(input: Any) -> Tensor:
    """y = tan input (radians)"""
    return Tan.apply(floating("tan", input))


@method
def sinh(input: Any) -> Tensor:
    """y = sinh input = (e^input − e^{−input}) / 2"""
    return Sinh.apply(floating("sinh", input))


@method
def cosh(input: Any) -> Tensor:
    """y = cosh input = (e^input + e^{−input}) / 2"""
    return Cosh.apply(floating("cosh", input))


@method
def atan2(input: Any, other: Any) -> Tensor:
    """The angle (radians, from −π to π) of the point with ordinate `input` and abscissa `other`; gradient 0 at the origin."""
    a, b = pair("atan2", input, other)
    return Atan2.apply(floating("atan2", a), floating("atan2", b))
