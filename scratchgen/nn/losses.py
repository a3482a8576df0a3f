"""The losses of `scratchgen/losses.py` as modules, for those who keep a loss and its options in an object."""

from __future__ import annotations

import math
from typing import Any

from scratchgen import functional as F
from scratchgen.nn.module import Module, number
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


class _Loss(Module):
    """A number for how far input is from target: their elements' "mean" or "sum", or "none" of the two."""

    reductions: tuple[str, ...] = ("mean", "sum", "none")

    def __init__(self, reduction: str):
        super().__init__()
        if reduction not in self.reductions:
            raise ValueError(
                f"{type(self).__name__}: expected reduction {', '.join(map(repr, self.reductions))}, got {reduction!r}"
            )
        self.reduction = reduction

    def _weight(self, name: str, weight: Any) -> None:
        """A weight belongs to the state, but is not learned."""
        self.register_buffer(name, None if weight is None else as_tensor(weight))


class MSELoss(_Loss):
    """ℓ = (x − t)²"""

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(_Loss):
    """ℓ = |x − t|"""

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(_Loss):
    """ℓ = ½ d² for |d| ≤ δ, else δ (|d| − ½ δ);  d = x − t.  Huber 1964."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction)
        self.delta = number(self, "delta", delta, 0, math.inf)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1Loss(_Loss):
    """ℓ = ½ d² / β for |d| < β, else |d| − ½ β;  d = x − t"""

    def __init__(self, *, reduction: str = "mean", beta: float = 1.0):
        super().__init__(reduction)
        self.beta = number(self, "beta", beta, 0, math.inf)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class BCEWithLogitsLoss(_Loss):
    """ℓ = −t log σ(x) − (1 − t) log(1 − σ(x));  `pos_weight` multiplies the first term, `weight` the whole."""

    def __init__(self, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None):
        super().__init__(reduction)
        self._weight("weight", weight)
        self._weight("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


class CrossEntropyLoss(_Loss):
    """ℓ_n = −w_{t_n} log softmax(x)_{n, t_n}.  x: (N, V, …) logits, t: (N, …); see `functional.cross_entropy`."""

    def __init__(self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0):
        super().__init__(reduction)
        self._weight("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = number(self, "label_smoothing", label_smoothing, 0, 1)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


class NLLLoss(_Loss):
    """ℓ_n = −w_{t_n} x_{n, t_n}.  x: (N, V, …) log-probabilities, t: (N, …) classes."""

    def __init__(self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__(reduction)
        self._weight("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class GaussianNLLLoss(_Loss):
    """ℓ = ½ (log v + (x − t)² / v), v = max(var, ε), and ½ log 2π more if `full`.  Nix & Weigend 1994."""

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean"):
        super().__init__(reduction)
        self.full, self.eps = full, number(self, "eps", eps, 0, math.inf)

    def forward(self, input: Tensor, target: Tensor, var: Any) -> Tensor:
        return F.gaussian_nll_loss(input, target, var, self.full, self.eps, self.reduction)


class KLDivLoss(_Loss):
    """ℓ = t (log t − x), x being log-probabilities, t too if `log_target`;  "batchmean" divides their sum by N."""

    reductions = ("mean", "sum", "none", "batchmean")

    def __init__(self, *, reduction: str = "mean", log_target: bool = False):
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
