r"""Weights whose size is normalised: the spectral norm, and the norm of each row.

Both are parametrizations (see `parametrize`), under PyTorch's names: the weight is computed whenever a layer uses it, and
the gradient goes through the computation, to any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen import functional as F
from scratchgen import random
from scratchgen.grad_mode import no_grad
from scratchgen.nn.layers import ConvTranspose1d, ConvTranspose2d
from scratchgen.nn.module import Module, Parameter
from scratchgen.nn.utils.parametrize import register_parametrization
from scratchgen.ops import norm
from scratchgen.tensors import Tensor


class _SpectralNorm(Module):
    r"""w = θ / σ,  σ = uᵀ Θ v                          Θ: (n, m), θ with `dim` in front and all other dimensions as one

    u ← Θ v / ‖Θ v‖,  v ← Θᵀ u / ‖Θᵀ u‖        the power method: u and v approach the singular vectors of the largest
                                                   singular value, which σ approaches
    u and v are constants: σ̄ reaches θ by Θ̄ = σ̄ u vᵀ, which is the derivative of a simple singular value.

    The power method follows a weight that moves: in training, u and v move when the layer is used with a weight for which
    they have not moved yet, by `n_power_iterations`. So they move once in each step of an optimiser, however often the
    layer is used in the step (as a discriminator is, for real and fake pictures), where PyTorch moves them at each use; and
    never in evaluation. Whether they have moved for a weight is seen from the numbers themselves, which is why a run that is
    restored from its state goes on as the one that was saved: v = Θᵀ u / ‖Θᵀ u‖ holds, to the bit, after a move and, but for
    accidents, not with another weight. Θ v of the last use, kept beside, rules the accidents out. For a Θ of one row or
    column the equation always holds, but a second move changes nothing there: one is always made.
    """

    older = {"_orig": "original", "_u": "0._u", "_v": "0._v"}

    def __init__(self, weight: Tensor, n_power_iterations: int, dim: int, eps: float, generator: np.random.Generator | None):
        super().__init__()
        if isinstance(n_power_iterations, bool) or not isinstance(n_power_iterations, int) or n_power_iterations < 1:
            raise ValueError(f"spectral_norm: expected n_power_iterations of at least 1, got {n_power_iterations!r}")
        if not -weight.ndim <= dim < weight.ndim:
            raise ValueError(f"spectral_norm: expected a dimension of a weight of shape {weight.shape}, got {dim}")
        self.dim, self.eps, self.n_power_iterations = dim % weight.ndim, eps, n_power_iterations
        if weight.ndim < 2:  # σ = ‖θ‖
            return
        matrix = self._matrix(weight.detach())
        for name, length in zip(("_u", "_v"), matrix.shape, strict=True):
            drawn = Tensor(random.generator(generator).standard_normal(length), weight.dtype, weight.device)
            self.register_buffer(name, F.normalize(drawn, dim=0, eps=eps))
        self.product: Any = None  # Θ v of the last use
        self.times: tuple[int, ...] = ()  # the times of the last writes to θ, u and v, read at the last use
        self._move(matrix, 15)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).reshape(weight.shape[self.dim], -1)

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return F.normalize(weight, dim=0, eps=self.eps)
        matrix = self._matrix(weight)
        if self.training and (not isinstance(weight, Parameter) or self.times != self._times(weight)):
            self._follow(weight, matrix)
        u, v = self._u.clone(), self._v.clone()  # copies: a backward sweep needs u and v as they are now
        product = matrix @ v
        if self.training:
            self.product, self.times = product.data, self._times(weight)
        return weight / (u @ product)

    def _times(self, weight: Tensor) -> tuple[int, ...]:
        return weight._version, self._u._version, self._v._version

    @no_grad()
    def _follow(self, weight: Tensor, matrix: Tensor) -> None:
        """Move u and v, unless they have moved for this weight already."""
        known = self.product if self.times[1:] == self._times(weight)[1:] else None  # None where u and v have been loaded since
        if 1 not in matrix.shape and (known is None or np.array_equal((matrix @ self._v).data, known)):
            if np.array_equal(self._unit(matrix.T @ self._u, self._v).data, self._v.data):
                return
        self._move(matrix, self.n_power_iterations)

    @no_grad()
    def _move(self, matrix: Tensor, times: int) -> None:
        for _ in range(times):
            self._u.copy_(self._unit(matrix @ self._v, self._u))
            self._v.copy_(self._unit(matrix.T @ self._u, self._v))

    def _unit(self, x: Tensor, before: Tensor) -> Tensor:
        """x / ‖x‖; where x is 0, as it is for a weight of zeros, the direction from before."""
        return F.normalize(x, dim=0, eps=self.eps) if x.data.any() else before

    def right_inverse(self, value: Tensor) -> Tensor:
        """(Which has the wanted value only up to a factor, unless σ = 1, as in PyTorch.)"""
        return value


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    generator: np.random.Generator | None = None,
) -> Module:
    """Divide a weight of the module by its largest singular value: w = θ / σ(θ), so that |w x| ≤ |x|; returns the module.

    θ of more than two dimensions is a matrix whose rows are along `dim`: 0, but 1 for transposed convolutions. A vector is
    divided by its norm. σ comes from the power method, which moves on once for each value that θ has in training, and not in
    evaluation (see `_SpectralNorm`). Keys: parametrizations.<name>.original, parametrizations.<name>.0._u and ._v; a state
    with <name>_orig, <name>_u and <name>_v loads as well.
    Raises ValueError where the module has no such weight, for a weight of zeros, whose σ is 0, and for a `dim` or
    `n_power_iterations` that cannot be.
    Source: Miyato et al. 2018, arXiv:1802.05957, algorithm 1.
    """
    weight = _weight("spectral_norm", module, name)
    if dim is None:
        dim = 1 if isinstance(module, ConvTranspose1d | ConvTranspose2d) else 0
    if not weight.data.any():
        raise ValueError(f"spectral_norm: expected a {name} that is not 0 throughout, got zeros of shape {weight.shape}")
    return register_parametrization(module, name, _SpectralNorm(weight, n_power_iterations, dim, eps, generator))


class _WeightNorm(Module):
    """w = g v / ‖v‖, the norm being over all dimensions but `dim` (−1: over all)."""

    older = {"_g": "original0", "_v": "original1"}

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / self.lengths(v))

    def lengths(self, v: Tensor) -> Tensor:
        return norm(v) if self.dim == -1 else norm(v, 2, [d for d in range(v.ndim) if d != self.dim], keepdim=True)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.lengths(weight), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Learn length and direction of a weight apart: w = g v / ‖v‖; returns the module.

    There is one norm for each index of `dim`, or, for None, one for all. Keys: parametrizations.<name>.original0, which is g,
    and original1, which is v: parameters that are new, and have to be given to an optimiser; a state with <name>_g and
    <name>_v loads as well.
    Raises ValueError where the module has no such weight, for a `dim` that the weight has not, and for a row of zeros, which
    has no direction.
    Source: Salimans & Kingma 2016, arXiv:1602.07868, eq. 2.
    """
    weight = _weight("weight_norm", module, name)
    dim = -1 if dim is None else dim
    if not -1 <= dim < weight.ndim:
        raise ValueError(f"weight_norm: expected a dimension of a weight of shape {weight.shape}, or None, got {dim}")
    function = _WeightNorm(dim)
    if not function.lengths(weight).data.all():
        raise ValueError(f"weight_norm: expected a direction for each row of {name}, got a row of zeros")
    return register_parametrization(module, name, function)


def _weight(caller: str, module: Module, name: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{caller}: expected a parameter or buffer of {type(module).__name__}, got {name!r}")
    return weight
