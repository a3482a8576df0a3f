r"""Activations that have kernels of their own: y_i = f(x_i), x̄_i = f'(x_i) ȳ_i, each one pass.

The gradient of each is a node too, linear in ȳ, or the function is also written in primitives (`composed`), so derivatives of
any order exist. The primitives hold x between −`FAR` and `FAR`, beyond which f is x or 0 to every digit: ∞ · 0 never arises.
"""

from __future__ import annotations

import math
from typing import Any

import kernels
from scratchgen.autograd import Function
from scratchgen.ops.choice import where
from scratchgen.ops.elementwise import Softplus, sigmoid, softplus, tanh
from scratchgen.ops.operands import floating
from scratchgen.tensors import Tensor, constant

FAR = 1000.0


class Elu(Function):
    """y = s x for x > 0, else s α (e^{rx} − 1)         x̄ = ȳ f'(x):  ȳ s for x > 0, else ȳ s α r e^{rx}"""

    def forward(self, x: Any, **curve: float) -> Any:
        self.curve = curve
        return kernels.elu(x, **curve)

    def backward(self, dy: Tensor) -> Tensor:
        return EluGrad.apply(dy, *self.inputs, **self.curve)


class EluGrad(Function):
    """x̄ = ȳ f'(x)         the cotangent x̿ of x̄ gives  x̿ f'(x)  to ȳ and  x̿ ȳ f''(x)  to x;  f'' = r f' for x ≤ 0, else 0"""

    def forward(self, dy: Any, x: Any, **curve: float) -> Any:
        self.curve = curve
        return kernels.elu_backward(dy, x, **curve)

    def backward(self, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = self.inputs
        needs_dy, needs_x = self.needs_input_grad
        bent = constant(x.data <= 0)
        to_x = where(bent, EluGrad.apply(ddx * dy, x, **self.curve) * self.curve["rate"], 0.0) if needs_x else None
        return EluGrad.apply(ddx, x, **self.curve) if needs_dy else None, to_x


class Silu(Function):
    """y = x σ(x)            x̄ = ȳ σ(x) (1 + x σ(−x))"""

    def forward(self, x: Any) -> Any:
        return kernels.silu(x)

    def backward(self, dy: Tensor) -> Tensor:
        return constant(kernels.silu_backward(dy.data, self.inputs[0].data))

    def composed(self, x: Tensor) -> Tensor:
        near = x.clamp(-FAR, FAR)
        return where(constant(x.data > FAR), x, near * sigmoid(near))


class Mish(Function):
    """y = x t,  t = tanh(log(1 + eˣ))         x̄ = ȳ (t + x (1 − t²) σ(x))"""

    def forward(self, x: Any) -> Any:
        return kernels.mish(x)

    def backward(self, dy: Tensor) -> Tensor:
        return constant(kernels.mish_backward(dy.data, self.inputs[0].data))

    def composed(self, x: Tensor) -> Tensor:
        near = x.clamp(-FAR, FAR)
        return where(constant(x.data > FAR), x, near * tanh(softplus(near)))


class Glu(Function):
    """y = a σ(b), a and b the halves of x along a dimension         ā = ȳ σ(b),  b̄ = ȳ a σ(b) σ(−b)"""

    def forward(self, x: Any, *, dim: int) -> Any:
        self.dim = dim
        return kernels.glu(x, dim)

    def backward(self, dy: Tensor) -> Tensor:
        return constant(kernels.glu_backward(dy.data, self.inputs[0].data, self.dim))

    def composed(self, x: Tensor) -> Tensor:
        a, b = x.split(x.shape[self.dim] // 2, self.dim)
        return a * sigmoid(b)


def elu(input: Any, alpha: float = 1.0, *, scale: float = 1.0, rate: float = 1.0) -> Tensor:
    """y = s x for x > 0, else s α (e^{rx} − 1)"""
    return Elu.apply(floating("elu", input), alpha=float(alpha), scale=scale, rate=float(rate))


def silu(input: Any) -> Tensor:
    """y = x σ(x)"""
    return Silu.apply(floating("silu", input))


def mish(input: Any) -> Tensor:
    """y = x tanh(log(1 + eˣ))"""
    return Mish.apply(floating("mish", input))


def logsigmoid(input: Any) -> Tensor:
    """y = log σ(x) = −log(1 + e⁻ˣ): the softplus of β = −1"""
    return Softplus.apply(floating("logsigmoid", input), beta=-1.0, threshold=math.inf)
