r"""The optimisers, each under its update equation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.optim.optimizer import Array, Optimizer, slot

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RAdam", "RMSprop"]

Betas = tuple[float, float]


def penalised(p: Array, g: Array, group: dict[str, Any], decoupled: bool = False) -> Array:
    """g + λ θ, the gradient with an L2 penalty; where the decay is `decoupled`, g itself, after θ ← θ − lr λ θ."""
    decay = group["weight_decay"]
    if not decay:
        return g
    if not decoupled:
        return g + decay * p
    p *= 1 - group["lr"] * decay
    return g


def moments(p: Array, g: Array, state: dict[str, Any], betas: Betas) -> tuple[Array, Array]:
    """m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²"""
    m, v = slot(state, "exp_avg", p), slot(state, "exp_avg_sq", p)
    m *= betas[0]
    m += (1 - betas[0]) * g
    v *= betas[1]
    v += (1 - betas[1]) * (g * g)
    return m, v


class SGD(Optimizer):
    r"""g ← g + λ θ                                   `weight_decay` λ
    b ← μ b + (1 − τ) g,  b = g at first          `momentum` μ, `dampening` τ
    g ← g + μ b if `nesterov`, else b
    θ ← θ − lr g

    `maximize` climbs instead: it begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and for nesterov without momentum or with dampening.
    Source: Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013.
    """

    numbers = ("lr", "momentum", "weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ):
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, {**options, "maximize": maximize})

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        if isinstance(group["dampening"], bool) or not math.isfinite(group["dampening"]):
            raise ValueError(f"SGD: expected dampening to be a finite number, got {group['dampening']!r}")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            got = f"{group['momentum']} and {group['dampening']}"
            raise ValueError(f"SGD: nesterov expects momentum above 0 and dampening 0, got {got}")

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        mu = group["momentum"]
        g = penalised(p, g, group)
        if mu:
            b = state.get("momentum_buffer")
            if b is None:
                b = state["momentum_buffer"] = devices.owned(g)
            else:
                b *= mu
                b += (1 - group["dampening"]) * g
            g = g + mu * b if group["nesterov"] else b
        p -= group["lr"] * g


class _Adam(Optimizer):
    """What Adam and AdamW share; they differ in where the weight decay enters."""

    numbers = ("lr", "eps", "weight_decay")
    decoupled: bool  # weight decay acts on θ itself, not on g

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ):
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, options)

    def update_group(
        self, params: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        if group["amsgrad"]:
            super().update_group(params, grads, states, group)
            return
        alike: dict[tuple[int, np.dtype], list[int]] = {}  # (step, dtype) -> the parameters that one call updates
        for i, (p, state) in enumerate(zip(params, states, strict=True)):
            state["step"] = state.get("step", 0) + 1
            alike.setdefault((state["step"], p.dtype), []).append(i)
        (beta1, beta2), step_of = group["betas"], kernels.adamw if self.decoupled else kernels.adam
        for (step, _), chosen in alike.items():
            step_of(
                [params[i] for i in chosen],
                [grads[i] for i in chosen],
                [slot(states[i], "exp_avg", params[i]) for i in chosen],
                [slot(states[i], "exp_avg_sq", params[i]) for i in chosen],
                step=step,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """With `amsgrad`."""
        step = state["step"] = state.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        m, v = moments(p, penalised(p, g, group, self.decoupled), state, group["betas"])
        largest = slot(state, "max_exp_avg_sq", p)
        np.maximum(largest, v, out=largest)
        p -= group["lr"] / (1 - beta1**step) * (m / (np.sqrt(largest) / math.sqrt(1 - beta2**step) + group["eps"]))


class Adam(_Adam):
    r"""g ← g + λ θ                                   `weight_decay` λ: an L2 penalty
    m ← β₁ m + (1 − β₁) g                         the mean of g, of g²
    v ← β₂ v + (1 − β₂) g²
    θ ← θ − lr m̂ / (√v̂ + ε),     m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    `amsgrad` divides by the largest v so far instead of v; `maximize` begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and betas outside [0, 1).
    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; AMSGrad is Reddi, Kale & Kumar 2018, arXiv:1904.09237.
    """

    decoupled, implied = False, {"decoupled_weight_decay": False}


class AdamW(_Adam):
    r"""θ ← θ − lr λ θ                                `weight_decay` λ: not scaled by 1/√v̂, as it is in Adam
    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    θ ← θ − lr m̂ / (√v̂ + ε),     m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    `amsgrad` divides by the largest v so far instead of v; `maximize` begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and betas outside [0, 1).
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    decoupled, implied = True, {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


class RAdam(Optimizer):
    r"""g ← g + λ θ                                   `weight_decay` λ; with `decoupled_weight_decay` θ ← θ − lr λ θ instead
    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    θ ← θ − lr m̂ r √(1 − β₂ᵗ) / (√v + ε)  where ρ_t > 5,  else  θ − lr m̂,      m̂ = m / (1 − β₁ᵗ)

    ρ_∞ = 2 / (1 − β₂) − 1,  ρ_t = ρ_∞ − 2 t β₂ᵗ / (1 − β₂ᵗ): of so many gradients v is the mean, as far as its variance goes
    r² = (ρ_t − 4) (ρ_t − 2) ρ_∞ / ((ρ_∞ − 4) (ρ_∞ − 2) ρ_t): makes up for the variance of 1/√v while they are few

    `maximize` begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and betas outside [0, 1).
    Source: Liu et al. 2020, arXiv:1908.03265, algorithm 2.
    """

    numbers = ("lr", "eps", "weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ):
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, options)

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        t = state["step"] = state.get("step", 0) + 1
        lr, (beta1, beta2) = group["lr"], group["betas"]
        m, v = moments(p, penalised(p, g, group, group["decoupled_weight_decay"]), state, group["betas"])
        rate, unbiased = lr / (1 - beta1**t), 1 - beta2**t
        limit = 2 / (1 - beta2) - 1
        length = limit - 2 * t * beta2**t / unbiased
        if length > 5:
            r = math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
            p -= rate * r * math.sqrt(unbiased) * (m / (np.sqrt(v) + group["eps"]))
        else:
            p -= rate * m


class Adagrad(Optimizer):
    r"""g ← g + λ θ                                   `weight_decay` λ
    s ← s + g²,  s = `initial_accumulator_value` at first
    θ ← θ − lr / (1 + (t − 1) η) · g / (√s + ε)    `lr_decay` η

    `maximize` begins with g ← −g.
    Raises ValueError for options that are negative or not finite.
    Source: Duchi, Hazan & Singer 2011, "Adaptive subgradient methods".
    """

    numbers = ("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ):
        options = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
        }
        super().__init__(params, {**options, "maximize": maximize})

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        t = state["step"] = state.get("step", 0) + 1
        if "sum" not in state:
            state["sum"] = np.full_like(p, group["initial_accumulator_value"])
        g, s = penalised(p, g, group), state["sum"]
        s += g * g
        p -= group["lr"] / (1 + (t - 1) * group["lr_decay"]) * (g / (np.sqrt(s) + group["eps"]))


class RMSprop(Optimizer):
    r"""g ← g + λ θ                                   `weight_decay` λ
    v ← α v + (1 − α) g²
    a ← α a + (1 − α) g,  v̂ = v − a² if `centered`, else v
    b ← μ b + g / (√v̂ + ε)                        `momentum` μ
    θ ← θ − lr b

    `maximize` begins with g ← −g. Rounding can make v − a² negative where g hardly changes: it is 0 then.
    Raises ValueError for options that are negative or not finite.
    Source: Tieleman & Hinton 2012, lecture 6.5; centred: Graves 2013, arXiv:1308.0850, eq. 38–45.
    """

    numbers = ("lr", "eps", "weight_decay", "momentum", "alpha")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ):
        options = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(params, {**options, "maximize": maximize})

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["step"] = state.get("step", 0) + 1
        alpha, v = group["alpha"], slot(state, "square_avg", p)
        g = penalised(p, g, group)
        v *= alpha
        v += (1 - alpha) * (g * g)
        if group["centered"]:
            a = slot(state, "grad_avg", p)
            a += (1 - alpha) * (g - a)
            v = np.maximum(v - a * a, 0)
        g = g / (np.sqrt(v) + group["eps"])
        if group["momentum"]:
            b = slot(state, "momentum_buffer", p)
            b *= group["momentum"]
            b += g
            g = b
        p -= group["lr"] * g
