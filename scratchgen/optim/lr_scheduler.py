r"""Schedules: the learning rate of each group of an optimiser as a function of time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scratchgen.optim.optimizer import Optimizer


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
