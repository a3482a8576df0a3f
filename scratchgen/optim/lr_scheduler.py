r"""Schedules: the learning rate of each group of an optimiser as a function of time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scratchgen.optim.optimizer import Optimizer

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "warmup_cosine",
]


class LRScheduler:
    """The base: lr_t from lr_{t−1}, t counting the calls of `step`, for each group of an optimiser.

    Schedules can be chained: each moves the learning rate from where the other left it, and lr_0, `initial_lr`, is that
    before the first of them. A group added later is brought to where it would stand, had it been there from the start.
    `last_epoch` is t: a new schedule starts at 0. One that continues takes its own state dict; the learning rates are in
    the optimiser's.
    """

    chained = True  # False where lr_t does not depend on lr_{t−1}: other schedules then have no effect

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{type(self).__name__}: to continue at {last_epoch}, expected 'initial_lr' in group {i}, got none"
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        if last_epoch == -1 or not self.chained:
            self.step()
        else:  # a schedule that continues leaves the learning rates as they are
            self.last_epoch += 1

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        """lr_t of a group whose lr_{t−1} is `lr`, and lr_0 `base`."""
        raise NotImplementedError

    def step(self) -> None:
        """The next moment: set the learning rate of every group."""
        self._join()
        self.last_epoch += 1
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.next_lr(group["lr"], base, self.last_epoch, i)

    def begin(self) -> None:
        """The moment 0, with the learning rate of every group as if nothing had moved lr_0."""
        self._join()
        self.last_epoch = 0
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.next_lr(base, base, 0, i)

    def _join(self) -> None:
        """Bring groups that were added later to where they would stand."""
        groups = self.optimizer.param_groups
        for i in range(len(self.base_lrs), len(groups)):
            lr = groups[i]["lr"]
            base = groups[i].get("initial_lr", lr)
            for t in range(self.last_epoch + 1):
                lr = self.next_lr(lr, base, t, i)
            groups[i].update(lr=lr, initial_lr=base)
            self.base_lrs.append(base)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group as it is now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and its options, as numbers."""
        return {key: list(x) if key == "base_lrs" else x for key, x in vars(self).items() if key not in _NO_STATE}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from there, with the options that were saved; PyTorch's own notes, "_…", are passed over.

        Raises ValueError where there were other groups or options.
        """
        state = {key: x for key, x in state_dict.items() if key not in _NO_STATE and not key.startswith("_")}
        own = [key for key in vars(self) if key not in _NO_STATE]
        if not {"last_epoch", "base_lrs"} <= set(state) <= set(own) or len(state["base_lrs"]) != len(self.base_lrs):
            options = [key for key in own if key not in ("last_epoch", "base_lrs")]
            expected = ", ".join([f"last_epoch and {len(self.base_lrs)} base_lrs", *options])
            raise ValueError(f"{type(self).__name__}.load_state_dict: expected {expected}, got {dict(state_dict)!r}")
        vars(self).update(state, last_epoch=int(state["last_epoch"]), base_lrs=[float(lr) for lr in state["base_lrs"]])


_NO_STATE = ("optimizer", "lr_lambdas")


class LambdaLR(LRScheduler):
    """lr_t = lr_0 f(t), whatever other schedules did;  `lr_lambda` is f, or a list with one for each group."""

    chained = False

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1):
        groups = len(optimizer.param_groups)
        functions = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * groups
        if len(functions) != groups or not all(callable(f) for f in functions):
            raise ValueError(
                f"LambdaLR: expected a function of the step, or one for each of {groups} groups, got {lr_lambda!r}"
            )
        self.lr_lambdas = functions if isinstance(lr_lambda, list | tuple) else lr_lambda
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        if callable(self.lr_lambdas):
            return base * self.lr_lambdas(t)
        if group >= len(self.lr_lambdas):
            got = f"{len(self.lr_lambdas)} functions and a group {group}, which was added later"
            raise ValueError(f"LambdaLR: expected a function of the step for each group, got {got}")
        return base * self.lr_lambdas[group](t)


class StepLR(LRScheduler):
    """lr_t = lr_{t−1} γ where t is a multiple of `step_size`: lr_0 γ^⌊t / step_size⌋"""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1):
        self.step_size, self.gamma = _steps("StepLR", "step_size", step_size), gamma
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        return lr * self.gamma if t and t % self.step_size == 0 else lr


class MultiStepLR(LRScheduler):
    """lr_t = lr_{t−1} γⁿ, n being how often t stands among the `milestones`: lr_0 γ^(number of milestones up to t)"""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1):
        self.milestones, self.gamma = Counter(_moments("MultiStepLR", milestones)), gamma
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        return lr * self.gamma ** self.milestones[t]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "milestones": dict(self.milestones)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.milestones = Counter({int(t): n for t, n in self.milestones.items()})  # JSON has turned the keys into texts


class ExponentialLR(LRScheduler):
    """lr_t = lr_{t−1} γ:  lr_0 γᵗ"""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        return lr * self.gamma if t else lr


class LinearLR(LRScheduler):
    """lr_t = lr_{t−1} f(t) / f(t − 1),  f(t) = s + (e − s) min(t, T) / T:  lr_0 f(t)

    s = `start_factor`, e = `end_factor`, T = `total_iters`
    """

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

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        if t > self.total_iters:
            return lr
        return lr * (self._factor(t) / self._factor(t - 1) if t else self.start_factor)

    def _factor(self, t: int) -> float:
        return self.start_factor + (self.end_factor - self.start_factor) * t / self.total_iters


class CosineAnnealingLR(LRScheduler):
    """lr_t = η + (lr_{t−1} − η) c(t) / c(t − 1),  c(t) = ½ (1 + cos(π t / T)):  η + (lr_0 − η) c(t)

    η = `eta_min`, T = `T_max`. After c = 0 the first step up is by (lr_0 − η) c(t).
    Source: Loshchilov & Hutter 2016, arXiv:1608.03983, eq. 5.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1):
        self.T_max, self.eta_min = _steps("CosineAnnealingLR", "T_max", T_max), eta_min
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        if t == 0:
            return lr
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:
            return lr + (base - self.eta_min) * self._height(t)
        return self.eta_min + (lr - self.eta_min) * self._height(t) / self._height(t - 1)

    def _height(self, t: int) -> float:
        return (1 + math.cos(math.pi * t / self.T_max)) / 2


class OneCycleLR(LRScheduler):
    """lr_t from lr_max / d up to lr_max and down to lr_max / (d f), in one cycle of T = `total_steps` moments 0 … T − 1

    d = `div_factor`, f = `final_div_factor`. In each phase lr_t = b + (a − b) ½ (1 + cos(π q)) from a to b, or
    a + (b − a) q for `anneal_strategy` "linear", q from 0 to 1. The phases end at p T − 1 and T − 1, p = `pct_start`; with
    `three_phase` at p T − 1, 2 p T − 2 and T − 1, the second coming back to lr_max / d. The momentum (β₁ for optimisers that
    have betas) goes the other way, from `max_momentum` to `base_momentum` and back, unless not `cycle_momentum`.
    T may be given as `epochs` times `steps_per_epoch`; `max_lr` and the momenta as one number, or one for each group.
    At t = T, after the last step, lr_t stays (PyTorch goes on with q > 1); raises ValueError beyond.
    Source: Smith & Topin 2017, arXiv:1708.07120.
    """

    chained = False

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"OneCycleLR: expected an Optimizer, got {type(optimizer).__name__}")
        if total_steps is None and (epochs is None or steps_per_epoch is None):
            raise ValueError("OneCycleLR: expected total_steps, or epochs and steps_per_epoch, got neither")
        if total_steps is None:
            total_steps = _steps("OneCycleLR", "epochs", epochs) * _steps("OneCycleLR", "steps_per_epoch", steps_per_epoch)
        if not 0 <= pct_start <= 1 or anneal_strategy not in ("cos", "linear"):
            got = f"{pct_start} and {anneal_strategy!r}"
            raise ValueError(f"OneCycleLR: expected pct_start from 0 to 1 and anneal_strategy 'cos' or 'linear', got {got}")
        self.total_steps, self.pct_start = _steps("OneCycleLR", "total_steps", total_steps), pct_start
        self.anneal_strategy, self.cycle_momentum, self.three_phase = anneal_strategy, cycle_momentum, three_phase
        self.use_beta1 = "betas" in optimizer.defaults
        if cycle_momentum and not self.use_beta1 and "momentum" not in optimizer.defaults:
            raise ValueError(f"OneCycleLR: cycle_momentum expects momentum or betas, which {type(optimizer).__name__} has not")
        if last_epoch == -1:
            notes = {"max_lr": max_lr}
            if cycle_momentum:
                notes |= {"max_momentum": max_momentum, "base_momentum": base_momentum}
            for name, value in notes.items():
                for group, own in zip(optimizer.param_groups, _each("OneCycleLR", name, value, optimizer), strict=True):
                    group[name] = own
            for group in optimizer.param_groups:
                group["initial_lr"] = group["max_lr"] / div_factor
                group["min_lr"] = group["initial_lr"] / final_div_factor
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        if t > self.total_steps:
            raise ValueError(f"OneCycleLR: expected at most total_steps = {self.total_steps} steps, got {t}")
        notes = self.optimizer.param_groups[group]
        if "max_lr" not in notes:
            raise ValueError(f"OneCycleLR: expected max_lr and its kin in group {group}, which was added later")
        if self.cycle_momentum:
            momentum = self._at(t, *[notes[f"{end}_momentum"] for end in ("max", "base", "max", "max")])
            notes.update({"betas": (momentum, *notes["betas"][1:])} if self.use_beta1 else {"momentum": momentum})
        return self._at(t, notes["initial_lr"], notes["max_lr"], notes["initial_lr"], notes["min_lr"])

    def _at(self, t: int, low: float, high: float, back: float, final: float) -> float:
        """A value on its way from low to high to final; in three phases, by way of back."""
        p, last = self.pct_start * self.total_steps, self.total_steps - 1
        phases = [(p - 1, low, high), (last, high, final)]
        if self.three_phase:
            phases[1:] = [(2 * p - 2, high, back), (last, back, final)]
        begin = 0.0
        for end, a, b in phases:
            if t <= end:
                q = (t - begin) / (end - begin) if end > begin else 1.0
                return b + (a - b) / 2 * (1 + math.cos(math.pi * q)) if self.anneal_strategy == "cos" else a + (b - a) * q
            begin = end
        return final


class SequentialLR(LRScheduler):
    """Schedule k from milestone m_k on, at its own time t − m_k, m_0 = 0: each begins with lr_0, whatever went before.

    Raises ValueError unless there is a milestone between any two schedules, which all move this optimiser.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = -1
    ):
        self.optimizer, self.schedulers = optimizer, list(schedulers)
        self.milestones = _moments("SequentialLR", milestones)
        for scheduler in self.schedulers:
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise TypeError(f"SequentialLR: expected schedules of the step alone, got {type(scheduler).__name__}")
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"SequentialLR: expected schedules of this optimiser, got one of another: {scheduler!r:.80}")
        if len(self.milestones) != len(self.schedulers) - 1 or self.milestones != sorted(self.milestones):
            got = f"{len(self.schedulers)} schedules and {self.milestones}"
            raise ValueError(f"SequentialLR: expected a milestone between any two schedules, in their order, got {got}")
        self.last_epoch = last_epoch + 1
        if last_epoch == -1:
            self.begin()

    def begin(self) -> None:
        self.last_epoch = 0
        self.schedulers[bisect_right(self.milestones, 0)].begin()

    def step(self) -> None:
        self.last_epoch += 1
        k = bisect_right(self.milestones, self.last_epoch)
        if k and self.milestones[k - 1] == self.last_epoch:
            self.schedulers[k].begin()
        else:
            self.schedulers[k].step()

    def state_dict(self) -> dict[str, Any]:
        states = [scheduler.state_dict() for scheduler in self.schedulers]
        return {"_milestones": list(self.milestones), "last_epoch": self.last_epoch, "_schedulers": states}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        states = state_dict.get("_schedulers", ())
        if not {"_milestones", "last_epoch"} <= set(state_dict) or len(states) != len(self.schedulers):
            expected = f"_milestones, last_epoch and {len(self.schedulers)} _schedulers"
            raise ValueError(f"SequentialLR.load_state_dict: expected {expected}, got {dict(state_dict)!r}")
        for scheduler, state in zip(self.schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        self.milestones, self.last_epoch = list(state_dict["_milestones"]), int(state_dict["last_epoch"])


class ReduceLROnPlateau(LRScheduler):
    """lr ← max(lr · factor, min_lr) once `step(metric)` has met more than `patience` metrics in a row that are no better.

    Better is m < best (1 − threshold) for mode "min", m > best (1 + threshold) for "max"; with threshold_mode "abs",
    m < best − threshold and m > best + threshold; NaN never is. For `cooldown` metrics after a reduction none counts as bad.
    A change by less than `eps` is not made. `min_lr` is one number, or one for each group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"ReduceLROnPlateau: expected an Optimizer, got {type(optimizer).__name__}")
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            expected = "mode 'min' or 'max' and threshold_mode 'rel' or 'abs'"
            raise ValueError(f"ReduceLROnPlateau: expected {expected}, got {mode!r} and {threshold_mode!r}")
        if not factor < 1:
            raise ValueError(f"ReduceLROnPlateau: expected factor below 1, got {factor}")
        self.optimizer, self.mode, self.factor, self.patience, self.eps = optimizer, mode, factor, patience, eps
        self.threshold, self.threshold_mode, self.cooldown = threshold, threshold_mode, cooldown
        self.min_lrs = _each("ReduceLROnPlateau", "min_lr", min_lr, optimizer)
        self.default_min_lr = None if isinstance(min_lr, list | tuple) else min_lr
        self.best = math.inf if mode == "min" else -math.inf
        self.last_epoch = self.cooldown_counter = self.num_bad_epochs = 0

    def step(self, metrics: Any) -> None:  # type: ignore[override]
        """The next metric, a number or a tensor of one element."""
        metric = float(metrics)
        self.last_epoch += 1
        self.num_bad_epochs += 1
        if self._better(metric):
            self.best, self.num_bad_epochs = metric, 0
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            self._reduce()

    def _better(self, metric: float) -> bool:
        margin = self.threshold if self.mode == "max" else -self.threshold
        bound = self.best * (1 + margin) if self.threshold_mode == "rel" else self.best + margin
        return metric > bound if self.mode == "max" else metric < bound

    def _reduce(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.min_lrs):
            if self.default_min_lr is None:
                raise ValueError(f"ReduceLROnPlateau: expected a min_lr for each of {len(groups)} groups, got {self.min_lrs}")
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, least in zip(groups, self.min_lrs, strict=True):
            lr = max(group["lr"] * self.factor, least)
            if group["lr"] - lr > self.eps:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        return {key: x for key, x in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state = {key: x for key, x in state_dict.items() if key != "mode_worse" and not key.startswith("_")}
        if set(state) != set(vars(self)) - {"optimizer"}:
            expected = ", ".join(key for key in vars(self) if key != "optimizer")
            raise ValueError(f"ReduceLROnPlateau.load_state_dict: expected {expected}, got {', '.join(state)}")
        vars(self).update(state)


def _each(owner: str, name: str, value: Any, optimizer: Optimizer) -> list[float]:
    """One number for each group of an optimiser."""
    groups = len(optimizer.param_groups)
    values = list(value) if isinstance(value, list | tuple) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{owner}: expected {name} to be a number, or one for each of {groups} groups, got {value!r}")
    return values


def _moments(owner: str, milestones: Any) -> list[int]:
    found = list(milestones)
    for t in found:
        if isinstance(t, bool) or not isinstance(t, int | np.integer) or t < 0:
            raise ValueError(f"{owner}: expected milestones to be whole numbers of at least 0, got {t!r}")
    return [int(t) for t in found]


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
        got = f"{warmup}, {steps}, {final}, {step}"
        raise ValueError(f"warmup_cosine: expected 0 ≤ warmup ≤ steps, 0 ≤ final ≤ 1 and step ≥ 0, got {got}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
