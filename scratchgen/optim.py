r"""Optimisers, learning-rate schedules, and the average of the weights.

An optimiser moves parameters θ against the gradient g that `backward` left in `.grad`, in place:

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

Names, defaults, update equations and the layout of `state_dict` are PyTorch's. A state dict holds arrays and numbers
only, and a run that continues from one takes the same steps, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.tensor import Tensor, Writing, constant, enable_grad

Array = np.ndarray
Betas = tuple[float, float]


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers
# ---------------------------------------------------------------------------------------------------------------------


class Optimizer:
    """The base: groups of parameters with their options, the state of each parameter, and the loop over them.

    `params` is an iterable of tensors, or of dicts {"params": …, "lr": …, …}, whose options go before `defaults`.
    `param_groups` are such dicts, complete; `state[p]` is a dict of arrays and numbers. A subclass says in `check`
    which options it refuses, and in `update` what one step does to one parameter.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]):
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise TypeError(
                f"{type(self).__name__}: expected an iterable of parameters or of groups, got {type(params).__name__}"
            )
        groups = list(params)
        if not groups:
            raise ValueError(f"{type(self).__name__}: expected parameters, got none")
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError where an option is out of its range."""

    def update_group(
        self, params: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        """One step of the parameters of a group, in place: one after the other, unless a subclass knows better."""
        for p, g, state in zip(params, grads, states, strict=True):
            self.update(p, g, state, group)

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One step of one parameter, in place. p: its array; g: its gradient, read-only; state: {} before the first."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise more parameters, with options of their own."""
        name = type(self).__name__
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"{name}: expected a group to be a dict with 'params', got {param_group!r:.80}")
        unknown = [key for key in param_group if key != "params" and key not in self.defaults and key != "initial_lr"]
        if unknown:
            raise ValueError(f"{name}: expected options among {', '.join(self.defaults)}, got {', '.join(map(repr, unknown))}")
        group = {"params": None, **self.defaults, **param_group}
        given = param_group["params"]
        group["params"] = params = [given] if isinstance(given, Tensor) else list(given)
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}: expected tensors as parameters, got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(f"{name}: expected parameters made by the user, got the result of an op, of shape {p.shape}")
            if id(p) in taken:
                raise ValueError(f"{name}: expected each parameter once, got one of shape {p.shape} twice")
            taken.add(id(p))
        self.check(group)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set those that exist to zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = None if set_to_none else constant(np.zeros_like(p.grad.data))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient. `closure`, if given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                g = p.grad
                if g.data.shape != p.data.shape or g.data.dtype != p.data.dtype:
                    given = f"{g.shape} and {g.dtype}"
                    raise ValueError(f"{type(self).__name__}: expected a gradient of {p.shape} and {p.dtype}, got {given}")
            grads = [-p.grad.data if group.get("maximize") else p.grad.data for p in params]
            with Writing(params) as arrays:
                self.update_group(arrays, grads, [self.state.setdefault(p, {}) for p in params], group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """{"state": {i: {…}}, "param_groups": [{…, "params": [i, …]}]}, parameters being numbered group after group."""
        numbers = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        state = {
            numbers[id(p)]: {
                key: np.array(devices.moved(value, "cpu")) if devices.is_array(value) else value
                for key, value in values.items()
            }
            for p, values in self.state.items()
        }
        groups = [{**group, "params": [numbers[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken: options and state of every parameter, by its number.

        The numbers may be strings, and tuples lists, as JSON leaves them. All or nothing: raises ValueError where
        groups, parameters or shapes are others than here.
        """
        name = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(f"{name}: expected a dict with 'state' and 'param_groups', got {state_dict!r:.80}")
        sizes = [len(group["params"]) for group in self.param_groups]
        given = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes != given:
            raise ValueError(f"{name}: expected groups of {sizes} parameters, got {given}")
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [str(i) for group in state_dict["param_groups"] for i in group["params"]]
        by_number = dict(zip(numbers, params, strict=True))
        state = {}
        for i, values in state_dict["state"].items():
            if str(i) not in by_number:
                raise ValueError(f"{name}: expected the state of parameters {', '.join(numbers)}, got one of {i!r}")
            p = by_number[str(i)]
            state[p] = {key: self._loaded(name, str(i), key, x, p) for key, x in values.items() if x is not None}
        groups = []
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            unknown = set(saved) - set(group) - {"initial_lr"}
            if unknown:
                raise ValueError(f"{name}: expected options among {', '.join(group)}, got {', '.join(sorted(unknown))}")
            options = {
                key: tuple(value) if isinstance(value, list) else value for key, value in saved.items() if key != "params"
            }
            groups.append({**group, **options})
            self.check(groups[-1])
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update(loaded)
        self.state = state

    @staticmethod
    def _loaded(name: str, number: str, key: str, value: Any, p: Tensor) -> Any:
        """One value of a parameter's state: the count of steps, or a copy of an array like the parameter."""
        array = value if devices.is_array(value) else np.asarray(value)
        if key == "step":
            return int(array)
        if array.shape != p.shape:
            raise ValueError(f"{name}: expected {key} of parameter {number} to have shape {p.shape}, got {array.shape}")
        return devices.moved(array.astype(p.dtype), p.device)

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            options = ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            groups.append(f"  {len(group['params'])} parameters: {options}")
        return "\n".join([f"{type(self).__name__} (", *groups, ")"])


def _slot(state: dict[str, Any], name: str, p: Array) -> Array:
    """An array of the state of p; zeros at first."""
    if name not in state:
        state[name] = np.zeros_like(p)
    return state[name]


def _check(owner: Optimizer, name: str, value: Any, below: float = math.inf) -> None:
    """`value` must be a number with 0 ≤ value < below."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < below:
        limit = "at least 0 and finite" if below == math.inf else f"at least 0 and below {below}"
        raise ValueError(f"{type(owner).__name__}: expected {name} to be a number of {limit}, got {value!r}")


def _check_betas(owner: Optimizer, betas: Any) -> None:
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"{type(owner).__name__}: expected betas to be a pair of numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        _check(owner, f"betas[{i}]", beta, 1)


class SGD(Optimizer):
    r"""g ← g + λ θ                                   `weight_decay` λ
    b ← μ b + (1 − τ) g,  b = g at first          `momentum` μ, `dampening` τ
    g ← g + μ b if `nesterov`, else b
    θ ← θ − lr g

    `maximize` climbs instead: it begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and for nesterov without momentum or with dampening.
    Source: Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013.
    """

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
        for name in ("lr", "momentum", "weight_decay"):
            _check(self, name, group[name])
        if isinstance(group["dampening"], bool) or not math.isfinite(group["dampening"]):
            raise ValueError(f"SGD: expected dampening to be a finite number, got {group['dampening']!r}")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            given = f"{group['momentum']} and {group['dampening']}"
            raise ValueError(f"SGD: nesterov expects momentum above 0 and dampening 0, got {given}")

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        mu = group["momentum"]
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
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

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            _check(self, name, group[name])
        _check_betas(self, group["betas"])

    def update_group(
        self, params: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        if group["amsgrad"]:
            super().update_group(params, grads, states, group)
            return
        alike: dict[tuple[int, np.dtype], list[int]] = {}  # parameters that one call can update
        for i, (p, state) in enumerate(zip(params, states, strict=True)):
            state["step"] = state.get("step", 0) + 1
            alike.setdefault((state["step"], p.dtype), []).append(i)
        (beta1, beta2), step_of = group["betas"], kernels.adamw if self.decoupled else kernels.adam
        for (step, _), chosen in alike.items():
            step_of(
                [params[i] for i in chosen],
                [grads[i] for i in chosen],
                [_slot(states[i], "exp_avg", params[i]) for i in chosen],
                [_slot(states[i], "exp_avg_sq", params[i]) for i in chosen],
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
        m, v, largest = (_slot(state, name, p) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        lr, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        if decay and self.decoupled:
            p *= 1 - lr * decay
        elif decay:
            g = g + decay * p
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        np.maximum(largest, v, out=largest)
        p -= lr / (1 - beta1**step) * (m / (np.sqrt(largest) / math.sqrt(1 - beta2**step) + eps))


class Adam(_Adam):
    r"""g ← g + λ θ                                   `weight_decay` λ: an L2 penalty
    m ← β₁ m + (1 − β₁) g                         the mean of g, of g²
    v ← β₂ v + (1 − β₂) g²
    θ ← θ − lr m̂ / (√v̂ + ε),     m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    `amsgrad` puts the largest v so far in v's place; `maximize` begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and betas outside [0, 1).
    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; AMSGrad is Reddi, Kale & Kumar 2018, arXiv:1904.09237.
    """

    decoupled = False


class AdamW(_Adam):
    r"""θ ← θ − lr λ θ                                `weight_decay` λ: not scaled by 1/√v̂, as it is in Adam
    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    θ ← θ − lr m̂ / (√v̂ + ε),     m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    `amsgrad` puts the largest v so far in v's place; `maximize` begins with g ← −g.
    Raises ValueError for options that are negative or not finite, and betas outside [0, 1).
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    decoupled = True

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

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay", "momentum", "alpha"):
            _check(self, name, group[name])

    def update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["step"] = state.get("step", 0) + 1
        alpha, v = group["alpha"], _slot(state, "square_avg", p)
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        v *= alpha
        v += (1 - alpha) * (g * g)
        if group["centered"]:
            a = _slot(state, "grad_avg", p)
            a += (1 - alpha) * (g - a)
            v = np.maximum(v - a * a, 0)
        g = g / (np.sqrt(v) + group["eps"])
        if group["momentum"]:
            b = _slot(state, "momentum_buffer", p)
            b *= group["momentum"]
            b += g
            g = b
        p -= group["lr"] * g


# ---------------------------------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------------------------------


class LRScheduler:
    """The base: lr_t = rate(lr_0, t), t counting the calls of `step`, for each group of an optimiser.

    `last_epoch` is t: a new schedule starts at 0. One that continues takes its own state dict, after the optimiser's.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group["initial_lr"] = group["lr"]
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{type(self).__name__}: to continue at {last_epoch}, expected 'initial_lr' in group {i}, got none"
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.step()

    def rate(self, base: float, t: int, group: int) -> float:
        """The learning rate of a group at time t."""
        raise NotImplementedError

    def step(self) -> None:
        """The next moment: set the learning rate of every group."""
        self.last_epoch += 1
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.rate(base, self.last_epoch, i)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group as it is now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, as numbers."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from there. Raises ValueError where there were other groups."""
        if set(state_dict) != {"last_epoch", "base_lrs"} or len(state_dict["base_lrs"]) != len(self.base_lrs):
            expected = f"last_epoch and {len(self.base_lrs)} base_lrs"
            raise ValueError(f"{type(self).__name__}.load_state_dict: expected {expected}, got {dict(state_dict)!r}")
        self.base_lrs = [float(lr) for lr in state_dict["base_lrs"]]
        self.last_epoch = int(state_dict["last_epoch"]) - 1
        self.step()


class LambdaLR(LRScheduler):
    """lr_t = lr_0 f(t);  `lr_lambda` is f, or a list with one for each group."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1):
        groups = len(optimizer.param_groups)
        self.lr_lambdas = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * groups
        if len(self.lr_lambdas) != groups or not all(callable(f) for f in self.lr_lambdas):
            raise ValueError(
                f"LambdaLR: expected a function of the step, or one for each of {groups} groups, got {lr_lambda!r}"
            )
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int, group: int) -> float:
        return base * self.lr_lambdas[group](t)


class StepLR(LRScheduler):
    """lr_t = lr_0 γ^⌊t / step_size⌋"""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1):
        self.step_size, self.gamma = _steps("StepLR", "step_size", step_size), gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int, group: int) -> float:
        return base * self.gamma ** (t // self.step_size)


class LinearLR(LRScheduler):
    """lr_t = lr_0 (s + (e − s) min(t, T) / T),  s = `start_factor`, e = `end_factor`, T = `total_iters`"""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: expected factors from 0 to 1, the first above 0, got {start_factor} and {end_factor}")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = _steps("LinearLR", "total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int, group: int) -> float:
        return base * (self.start_factor + (self.end_factor - self.start_factor) * min(t, self.total_iters) / self.total_iters)


class CosineAnnealingLR(LRScheduler):
    """lr_t = η + (lr_0 − η) ½ (1 + cos(π t / T)),  η = `eta_min`, T = `T_max`

    Source: Loshchilov & Hutter 2016, arXiv:1608.03983, eq. 5.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1):
        self.T_max, self.eta_min = _steps("CosineAnnealingLR", "T_max", T_max), eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int, group: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * t / self.T_max)) / 2


def _steps(owner: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{owner}: expected {name} to be a whole number of at least 1, got {value!r}")
    return int(value)


def warmup_cosine(step: int, *, warmup: int, steps: int, final: float = 0.1) -> float:
    """The factor of the learning rate at `step` = 0, 1, …: up in a line, down in a cosine, then constant.

    (step + 1) / (warmup + 1) before `warmup`, which reaches 1 there;
    final + (1 − final) ½ (1 + cos(π (step − warmup) / (steps − warmup))) up to `steps`;  `final` from there on.
    Raises ValueError unless 0 ≤ warmup ≤ steps and 0 ≤ final ≤ 1.
    """
    if not 0 <= warmup <= steps or not 0 <= final <= 1 or step < 0:
        given = f"{warmup}, {steps}, {final}, {step}"
        raise ValueError(f"warmup_cosine: expected 0 ≤ warmup ≤ steps, 0 ≤ final ≤ 1 and step ≥ 0, got {given}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


# ---------------------------------------------------------------------------------------------------------------------
# Average of the weights
# ---------------------------------------------------------------------------------------------------------------------


class EMA:
    """θ̄ ← θ̄ + (1 − decay) (θ − θ̄), after each step: an exponential moving average of a module's parameters.

    θ̄ starts as a copy of θ; buffers (running statistics) are the module's own. Raises ValueError unless 0 ≤ decay < 1.
    Source: Polyak & Juditsky 1992; for GANs Yazıcı et al. 2018, arXiv:1806.04498.

        ema = EMA(model, 0.999)
        …; optimizer.step(); ema.update()
        with ema.swapped():
            evaluate(model)
    """

    def __init__(self, module: Any, decay: float):
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"EMA: expected decay to be a number of at least 0 and below 1, got {decay!r}")
        self.module, self.decay = module, decay
        self.average: dict[str, Array] = {name: p.data.copy() for name, p in module.named_parameters()}
        self._away = False  # is the average in the module, in the place of its own weights?

    def update(self) -> None:
        """Move the average towards the parameters as they are now."""
        if self._away:
            raise RuntimeError("EMA.update: the average is in the module; leave swapped() first")
        for name, p in self.module.named_parameters():
            average = self.average[name]
            average += (1 - self.decay) * (p.data - average)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[Any]:
        """Inside the `with`, the module has the averaged weights; afterwards its own again, whatever happened."""
        if self._away:
            raise RuntimeError("EMA.swapped: the average is in the module already")
        own = [(p, p.data.copy()) for _, p in self.module.named_parameters()]
        self._away = True
        try:
            for name, p in self.module.named_parameters():
                p.copy_(self.average[name])
            yield self.module
        finally:
            for p, array in own:
                p.copy_(array)
            self._away = False

    def state_dict(self) -> dict[str, Array]:
        """Name of each parameter -> a copy of its average: a state that the module itself could load."""
        return {name: np.array(devices.moved(average, "cpu")) for name, average in self.average.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from an average. All or nothing: raises ValueError where names or shapes are others than here."""
        given = {name: value if devices.is_array(value) else np.asarray(value) for name, value in state_dict.items()}
        wrong = sorted(set(given) ^ set(self.average)) or [
            f"{name} of shape {array.shape} for {self.average[name].shape}"
            for name, array in given.items()
            if array.shape != self.average[name].shape
        ]
        if wrong:
            raise ValueError(f"EMA.load_state_dict: expected the module's names and shapes, but not so {', '.join(wrong)}")
        for name, array in given.items():
            self.average[name][...] = devices.moved(array, devices.of(self.average[name]))
