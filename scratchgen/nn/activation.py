r"""Activations and losses of `functional` as modules, for Sequential and for models that hold their choice.

`inplace` is accepted where PyTorch has it, and changes nothing: what was saved for the gradient stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchgen import functional as F
from scratchgen.nn import init
from scratchgen.nn.module import Module, blank, number, whole
from scratchgen.tensors import Tensor


class ReLU(Module):
    """y = max(x, 0);  the gradient at 0 is 0."""

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input)


class LeakyReLU(Module):
    """y = x for x > 0, else slope · x.  Maas, Hannun & Ng 2013."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__()
        self.negative_slope = number(self, "negative_slope", negative_slope, -math.inf, math.inf)

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        return self._shown("negative_slope")


class PReLU(Module):
    """y = x for x > 0, else w · x;  w, learned, is one for all or one for each channel (dimension 1).

    weight: (num_parameters).  He et al. 2015, arXiv:1502.01852.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = None):
        super().__init__()
        self.num_parameters = whole(self, "num_parameters", num_parameters)
        self.init = number(self, "init", init, -math.inf, math.inf)
        self.weight = blank(self, (num_parameters,), dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w = init"""
        init.constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return self._shown("num_parameters")


class ELU(Module):
    """y = x for x > 0, else α (eˣ − 1).  Clevert, Unterthiner & Hochreiter 2015, arXiv:1511.07289."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__()
        self.alpha = number(self, "alpha", alpha, -math.inf, math.inf)

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha)

    def extra_repr(self) -> str:
        return self._shown("alpha")


class CELU(Module):
    """y = x for x > 0, else α (e^{x/α} − 1).  Barron 2017, arXiv:1704.07483."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__()
        self.alpha = number(self, "alpha", alpha, -math.inf, math.inf)
        if alpha == 0:
            raise ValueError("CELU: expected alpha other than 0, got 0")

    def forward(self, input: Tensor) -> Tensor:
        return F.celu(input, self.alpha)

    def extra_repr(self) -> str:
        return self._shown("alpha")


class SELU(Module):
    """y = λ elu(x; α), the λ and α that keep mean 0 and variance 1.  Klambauer et al. 2017, arXiv:1706.02515."""

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return F.selu(input)


class SiLU(Module):
    """y = x σ(x).  Elfwing, Uchibe & Doya 2017, arXiv:1702.03118."""

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input)


class Mish(Module):
    """y = x tanh(log(1 + eˣ)).  Misra 2019, arXiv:1908.08681."""

    def __init__(self, inplace: bool = False):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return F.mish(input)


class GELU(Module):
    """y = x Φ(x), with Φ exact ("none") or approximate ("tanh").  Hendrycks & Gimpel 2016, arXiv:1606.08415."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: expected approximate to be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        return self._shown("approximate")


class GLU(Module):
    """y = a σ(b), a and b the two halves of x along `dim`.  Dauphin et al. 2016, arXiv:1612.08083."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.glu(input, self.dim)

    def extra_repr(self) -> str:
        return self._shown("dim")


class Tanh(Module):
    """y = tanh x"""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class Hardtanh(Module):
    """y = x held between two bounds;  the gradient on a bound is 0."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        super().__init__()
        if not min_val < max_val:
            raise ValueError(f"Hardtanh: expected min_val < max_val, got {min_val} and {max_val}")
        self.min_val, self.max_val = min_val, max_val

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return self._shown("min_val", "max_val")


class Softsign(Module):
    """y = x / (1 + |x|)"""

    def forward(self, input: Tensor) -> Tensor:
        return F.softsign(input)


class Sigmoid(Module):
    """y = σ(x) = 1 / (1 + e⁻ˣ)"""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class LogSigmoid(Module):
    """y = log σ(x)"""

    def forward(self, input: Tensor) -> Tensor:
        return F.logsigmoid(input)


class Softplus(Module):
    """y = log(1 + e^{β x}) / β;  y = x where β x > threshold"""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__()
        self.beta = number(self, "beta", beta, -math.inf, math.inf)
        self.threshold = number(self, "threshold", threshold, -math.inf, math.inf)
        if beta == 0:
            raise ValueError("Softplus: expected beta other than 0, got 0")

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return self._shown("beta", "threshold")


class Softmax(Module):
    """y_i = e^{x_i} / Σ_j e^{x_j} along `dim`"""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = _dimension(self, dim)

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return self._shown("dim")


class LogSoftmax(Module):
    """y_i = x_i − log Σ_j e^{x_j} along `dim`"""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = _dimension(self, dim)

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        return self._shown("dim")


def _dimension(owner: Module, dim: Any) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
        raise TypeError(f"{type(owner).__name__}: expected dim to be a whole number, got {dim!r}")
    return int(dim)
