r"""The base of the optimisers: groups of parameters, their state, and the loop over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen.grad_mode import enable_grad
from scratchgen.ops.operands import array_of
from scratchgen.tensors import Tensor, Writing, constant

__all__ = ["Optimizer"]

Array = np.ndarray


class Optimizer:
    """The base: groups of parameters with their options, the state of each parameter, and the loop over them.

    `params` is an iterable of tensors, or of dicts {"params": …, "lr": …, …}, whose options go before `defaults`.
    `param_groups` are such dicts, complete; `state[p]` is a dict of arrays and numbers. A subclass says in `update` what one
    step does to one parameter, in `numbers` which of its options are numbers of at least 0, in `check` what else it refuses of
    them. `implied` are options of PyTorch's that the class decides by itself.
    """

    implied: dict[str, Any] = {}
    numbers: tuple[str, ...] = ()

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
        for name in self.numbers:
            check_number(self, name, group[name])
        if "betas" in group:
            check_betas(self, group["betas"])

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
        unknown = [key for key in param_group if key != "params" and key not in self.defaults and key not in _NOTES]
        if unknown:
            raise ValueError(f"{name}: expected options among {', '.join(self.defaults)}, got {', '.join(map(repr, unknown))}")
        group = {"params": None, **self.defaults, **param_group}
        chosen = param_group["params"]
        group["params"] = params = [chosen] if isinstance(chosen, Tensor) else list(chosen)
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
                    got = f"{g.shape} and {g.dtype}"
                    raise ValueError(f"{type(self).__name__}: expected a gradient of {p.shape} and {p.dtype}, got {got}")
            grads = [-p.grad.data if group.get("maximize") else p.grad.data for p in params]
            with Writing(params) as arrays:
                self.update_group(arrays, grads, [self.state.setdefault(p, {}) for p in params], group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """{"state": {i: {…}}, "param_groups": [{…, "params": [i, …]}]}, parameters being numbered group after group.

        The state of a parameter is made of numbers and of tensors that are copies, on the parameter's device.
        """
        index = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        state = {
            index[id(p)]: {
                key: constant(devices.owned(value)) if devices.is_array(value) else value for key, value in values.items()
            }
            for p, values in self.state.items()
        }
        groups = [{**group, "params": [index[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken: options and state of every parameter, by its index.

        Tensors may be arrays or lists, the indices strings, and tuples lists, as JSON leaves them. The state dict of PyTorch's
        twin will do as well.
        All or nothing: raises ValueError where groups, parameters or shapes are others than here.
        """
        name = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(f"{name}: expected a dict with 'state' and 'param_groups', got {state_dict!r:.80}")
        sizes = [len(group["params"]) for group in self.param_groups]
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes != found:
            raise ValueError(f"{name}: expected groups of {sizes} parameters, got {found}")
        params = [p for group in self.param_groups for p in group["params"]]
        indices = [str(i) for group in state_dict["param_groups"] for i in group["params"]]
        by_index = dict(zip(indices, params, strict=True))
        state = {}
        for i, values in state_dict["state"].items():
            if str(i) not in by_index:
                raise ValueError(f"{name}: expected the state of parameters {', '.join(indices)}, got one of {i!r}")
            p = by_index[str(i)]
            state[p] = {key: self._loaded(name, str(i), key, x, p) for key, x in values.items() if x is not None}
        groups = []
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            unknown = set(saved) - {*group, *_NOTES, *self.implied, *_HOW}
            if unknown:
                raise ValueError(f"{name}: expected options among {', '.join(group)}, got {', '.join(sorted(unknown))}")
            for key, value in self.implied.items():
                if saved.get(key, value) != value:
                    raise ValueError(f"{name}: expected {key} {value}, got the state of an optimiser with {saved[key]}")
            kept = {*group, *_NOTES} - {"params"}
            options = {key: _option(value) for key, value in saved.items() if key in kept}
            for key, value in options.items():
                if isinstance(group.get(key), bool) and not isinstance(value, bool):
                    raise ValueError(f"{name}: expected {key} to be true or false, got {value!r}")
            groups.append({**group, **options})
            self.check(groups[-1])
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update(loaded)
        self.state = state

    @staticmethod
    def _loaded(name: str, index: str, key: str, value: Any, p: Tensor) -> Any:
        """One value of a parameter's state: the count of steps, or a copy of an array like the parameter."""
        array = array_of(value)
        if key == "step":
            if array.shape or array < 0:
                raise ValueError(f"{name}: expected step of parameter {index} to be a number of at least 0, got {array}")
            return int(array)
        if array.shape != p.shape:
            raise ValueError(f"{name}: expected {key} of parameter {index} to have shape {p.shape}, got {array.shape}")
        return devices.moved(array.astype(p.dtype), p.device)

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            options = ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            groups.append(f"  {len(group['params'])} parameters: {options}")
        return "\n".join([f"{type(self).__name__} (", *groups, ")"])


def slot(state: dict[str, Any], name: str, p: Array) -> Array:
    """An array of the state of p; zeros at first."""
    if name not in state:
        state[name] = np.zeros_like(p)
    return state[name]


def check_number(owner: Optimizer, name: str, value: Any, below: float = math.inf) -> None:
    """`value` must be a number with 0 ≤ value < below."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < below:
        limit = "at least 0 and finite" if below == math.inf else f"at least 0 and below {below}"
        raise ValueError(f"{type(owner).__name__}: expected {name} to be a number of {limit}, got {value!r}")


def check_betas(owner: Optimizer, betas: Any) -> None:
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"{type(owner).__name__}: expected betas to be a pair of numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        check_number(owner, f"betas[{i}]", beta, 1)


# Options that schedules write into a group.
_NOTES = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")

# Options that only groups of PyTorch's have: they say how a step is computed, not which step.
_HOW = ("capturable", "differentiable", "foreach", "fused", "param_names")


def _option(value: Any) -> Any:
    """An option as it was before JSON, or a tensor of no dimensions, held it."""
    if isinstance(value, list):
        return tuple(map(_option, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value
