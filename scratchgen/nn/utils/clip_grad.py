"""What is done to the gradients of many parameters at once."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

import kernels
from scratchgen.tensors import Tensor, Writing, constant


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """g ← g · min(1, max_norm / (‖g‖ + 10⁻⁶)), ‖g‖ being the p-norm of all gradients as one vector; returns ‖g‖.

    Parameters without a gradient are passed over. Raises RuntimeError, if asked to, where the norm is not finite.
    Source: Pascanu, Mikolov & Bengio 2012, arXiv:1211.5063, algorithm 1.
    """
    if not max_norm >= 0 or not norm_type > 0:
        raise ValueError(
            f"clip_grad_norm_: expected max_norm of at least 0 and norm_type above 0, got {max_norm} and {norm_type}"
        )
    with_grad = _with_grad("clip_grad_norm_", parameters)
    if not with_grad:
        return constant(np.zeros((), np.float32))
    dtype = np.result_type(*[p.grad.dtype for p in with_grad])
    total = _norm([p.grad.data for p in with_grad], norm_type)
    if not math.isfinite(total) and error_if_nonfinite:
        raise RuntimeError(f"clip_grad_norm_: expected gradients of finite norm, got {total}")
    factor = min(1.0, max_norm / (total + 1e-6)) if not math.isnan(total) else total
    if factor != 1:
        with np.errstate(invalid="ignore"):  # ∞ · 0, where the norm is infinite: NaN, as PyTorch has it
            if all(p.grad.is_leaf for p in with_grad):
                with Writing([p.grad for p in with_grad]) as grads:
                    kernels.scale(grads, factor)
            else:
                for p in with_grad:
                    _set(p, p.grad.data * p.grad.dtype.type(factor))
    return constant(np.asarray(total, dtype))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """g_i ← min(max(g_i, −clip_value), clip_value)"""
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: expected a bound of at least 0, got {clip_value}")
    for p in _with_grad("clip_grad_value_", parameters):
        _set(p, np.clip(p.grad.data, -clip_value, clip_value))


def _with_grad(name: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in listed:
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}: expected tensors, got {type(p).__name__}")
    return [p for p in listed if p.grad is not None]


def _norm(gs: list[np.ndarray], p: float) -> float:
    """(Σ |g_i|^p)^{1/p} over all elements, scaled by the largest where the powers would leave the range of the dtype."""
    if p == 2:
        squares = kernels.sum_of_squares(gs)
        if 1e-30 < squares < math.inf:
            return math.sqrt(squares)
    largest = max([float(np.abs(g).max()) for g in gs if g.size], default=0.0)
    if p == math.inf or not 0 < largest < math.inf:
        return largest
    return largest * sum(float(np.sum(np.abs(g / g.dtype.type(largest)) ** p, dtype=np.float64)) for g in gs) ** (1 / p)


def _set(p: Tensor, g: np.ndarray) -> None:
    """A gradient that was recorded itself (create_graph) cannot be written to: it is replaced by its clipped values."""
    if p.grad.is_leaf:
        p.grad.copy_(g)
    else:
        p.grad = constant(g)
