r"""Methods that change a tensor in place: x.mul_(y) is x ← x · y, and returns x.

Each method computes the op of its name and writes the result over the elements, which keep shape and dtype. Such changes
are for tensors outside of any graph: averages of weights, an optimiser of one's own, all code under `no_grad`. A tensor of
a graph that is being recorded is never changed in place (PyTorch allows some of these changes): use the op, x = x.mul(y).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchgen import random
from scratchgen.grad_mode import is_grad_enabled, no_grad
from scratchgen.ops.choice import abs, ceil, clamp, floor, masked_fill, nan_to_num, relu, round, sign
from scratchgen.ops.elementwise import (
    add,
    addcdiv,
    addcmul,
    cos,
    div,
    erf,
    exp,
    expm1,
    lerp,
    log,
    log1p,
    log2,
    log10,
    mul,
    neg,
    pow,
    reciprocal,
    rsqrt,
    sigmoid,
    sin,
    sqrt,
    square,
    sub,
    tanh,
)
from scratchgen.ops.indexing import index_add, scatter_add
from scratchgen.ops.reduce import cumprod, cumsum
from scratchgen.ops.shape import tril, triu
from scratchgen.ops.trigonometry import atan2, cosh, sinh, tan
from scratchgen.tensors import Tensor, method


def in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The method that writes what `function` computes over its first argument.

    Raises RuntimeError where a graph would lose the change or has saved what is changed, ValueError where the result has
    another shape or dtype.
    """
    name = function.__name__

    @functools.wraps(function)
    def change(self: Tensor, *args: Any, **options: Any) -> Tensor:
        others = [x for x in (*args, *options.values()) if isinstance(x, Tensor)]
        if is_grad_enabled() and any(x.requires_grad for x in (self, *others)):
            raise RuntimeError(
                f"{name}_: expected tensors that require no gradient, as a graph cannot record a change in place: "
                f"use x = x.{name}(…), or wrap it in `with no_grad():`"
            )
        with no_grad():
            result = function(self, *args, **options)
        if result.shape != self.shape or result.dtype != self.dtype:
            raise ValueError(
                f"{name}_: expected a result of shape {self.shape} and {self.dtype}, got {result.shape} and {result.dtype}"
            )
        return self.copy_(result)

    change.__name__ = change.__qualname__ = f"{name}_"
    change.__doc__ = f"x ← {name}(x, …), in place: see `{name}`."
    return change


# The ops whose result has the shape and dtype of their first argument: x.add_(y), x.exp_(), …
OPS = {
    function.__name__: function
    for function in (
        *(abs, add, addcdiv, addcmul, atan2, ceil, clamp, cos, cosh, cumprod, cumsum, div, erf, exp, expm1, floor, index_add),
        *(lerp, log, log10, log1p, log2, masked_fill, mul, nan_to_num, neg, pow, reciprocal, relu, round, rsqrt, scatter_add),
        *(sigmoid, sign, sin, sinh, sqrt, square, sub, tan, tanh, tril, triu),
    )
}
for _name, _function in OPS.items():
    method(f"{_name}_")(in_place(_function))


def _drawn(name: str, x: Tensor, draws: np.ndarray) -> Tensor:
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")
    if is_grad_enabled() and x.requires_grad:
        raise RuntimeError(f"{name}: expected a tensor that requires no gradient: wrap it in `with no_grad():`")
    return x.copy_(draws)


@method
def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: np.random.Generator | None = None) -> Tensor:
    """x ~ N(mean, std²), element by element, in place"""
    return _drawn("normal_", self, np.asarray(random.generator(generator).normal(mean, std, self.shape)))


@method
def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, *, generator: np.random.Generator | None = None) -> Tensor:
    """x ~ U[low, high), element by element, in place"""
    return _drawn("uniform_", self, np.asarray(random.generator(generator).uniform(low, high, self.shape)))


@method
def bernoulli_(self: Tensor, p: float = 0.5, *, generator: np.random.Generator | None = None) -> Tensor:
    """x = 1 with probability p, else 0, element by element, in place"""
    if not 0 <= p <= 1:
        raise ValueError(f"bernoulli_: expected p from 0 to 1, got {p}")
    return _drawn("bernoulli_", self, np.asarray(random.generator(generator).random(self.shape) < p))


# ---------------------------------------------------------------------------------------------------------------------
# x += y
# ---------------------------------------------------------------------------------------------------------------------


def _change(x: Tensor, function: Callable[..., Tensor], value: Any) -> Tensor:
    """x += y and its kin: in place for a leaf that no graph is recorded of, else a new tensor, as Python does for numbers."""
    if not x.is_leaf or (x.node is None and is_grad_enabled() and isinstance(value, Tensor) and value.node is not None):
        return NotImplemented  # Python then computes x = x + y
    if x.node is not None and is_grad_enabled():
        raise RuntimeError("in-place change of a leaf that requires a gradient: wrap it in `with no_grad():`")
    with no_grad():
        result = function(x, value)
    if result.shape != x.shape or result.dtype != x.dtype:
        raise ValueError(
            f"in-place {function.__name__}: expected a result of shape {x.shape} and {x.dtype}, "
            f"got {result.shape} and {result.dtype}"
        )
    return x.copy_(result)


@method
def __iadd__(self: Tensor, value: Any) -> Tensor:
    return _change(self, add, value)


@method
def __isub__(self: Tensor, value: Any) -> Tensor:
    return _change(self, sub, value)


@method
def __imul__(self: Tensor, value: Any) -> Tensor:
    return _change(self, mul, value)


@method
def __itruediv__(self: Tensor, value: Any) -> Tensor:
    return _change(self, div, value)
