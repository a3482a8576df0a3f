r"""Schedules: the learning rate of each group of an optimiser as a function of time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scratchgen.optim.optimizer import Optimizer


class LRScheduler:
    """The base: lr_t from lr_{t−1}, t counting the calls of `step`, for each group of an optimiser.

    Schedules can be chained: each moves the learning rate from where the other left it, and lr_0, `initial_lr`, is that
    before the first of them. A group added later is brought to where it would stand, had it been there from the start.
    `last_epoch` is t: a new schedule starts at 0. One that continues takes its own state dict; the learning rates are in
    the optimiser's.
    """

    chained = True  # False: lr_t does not depend on lr_{t−1}, so that other schedules have no effect

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
        else:  # the learning rates stand where they stood
            self.last_epoch += 1

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        """lr_t of a group whose lr_{t−1} is `lr`, and lr_0 `base`."""
        raise NotImplementedError

    def step(self) -> None:
        """The next moment: set the learning rate of every group."""
        groups = self.optimizer.param_groups
        for i in range(len(self.base_lrs), len(groups)):
            lr = groups[i]["lr"]
            base = groups[i].get("initial_lr", lr)
            for t in range(self.last_epoch + 1):
                lr = self.next_lr(lr, base, t, i)
            groups[i].update(lr=lr, initial_lr=base)
            self.base_lrs.append(base)
        self.last_epoch += 1
        for i, (group, base) in enumerate(zip(groups, self.base_lrs, strict=True)):
            group["lr"] = self.next_lr(group["lr"], base, self.last_epoch, i)

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
        given = {key: x for key, x in state_dict.items() if key not in _NO_STATE and not key.startswith("_")}
        own = [key for key in vars(self) if key not in _NO_STATE]
        if not {"last_epoch", "base_lrs"} <= set(given) <= set(own) or len(given["base_lrs"]) != len(self.base_lrs):
            options = [key for key in own if key not in ("last_epoch", "base_lrs")]
            expected = ", ".join([f"last_epoch and {len(self.base_lrs)} base_lrs", *options])
            raise ValueError(f"{type(self).__name__}.load_state_dict: expected {expected}, got {dict(state_dict)!r}")
        vars(self).update(given, last_epoch=int(given["last_epoch"]), base_lrs=[float(lr) for lr in given["base_lrs"]])


_NO_STATE = ("optimizer", "lr_lambdas")


class LambdaLR(LRScheduler):
    """lr_t = lr_0 f(t), whatever other schedules did;  `lr_lambda` is f, or a list with one for each group."""

    chained = False

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1):
        groups = len(optimizer.param_groups)
        given = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * groups
        if len(given) != groups or not all(callable(f) for f in given):
            raise ValueError(
                f"LambdaLR: expected a function of the step, or one for each of {groups} groups, got {lr_lambda!r}"
            )
        self.lr_lambdas = given if isinstance(lr_lambda, list | tuple) else lr_lambda
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        if callable(self.lr_lambdas):
            return base * self.lr_lambdas(t)
        if group >= len(self.lr_lambdas):
            given = f"{len(self.lr_lambdas)} functions and a group {group}, which was added later"
            raise ValueError(f"LambdaLR: expected a function of the step for each group, got {given}")
        return base * self.lr_lambdas[group](t)


class StepLR(LRScheduler):
    """lr_t = lr_{t−1} γ where t is a multiple of `step_size`: lr_0 γ^⌊t / step_size⌋"""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1):
        self.step_size, self.gamma = _steps("StepLR", "step_size", step_size), gamma
        super().__init__(optimizer, last_epoch)

    def next_lr(self, lr: float, base: float, t: int, group: int) -> float:
        return lr * self.gamma if t and t % self.step_size == 0 else lr


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
