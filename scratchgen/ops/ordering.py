r"""Ops that sort, choose and count elements. The gradient of a sorted or chosen value goes back to its own element.

Of equals the earlier comes first, in descending order too, so that the order is one and the same for every device
(PyTorch promises that only with `stable=True`). NaN counts as larger than everything.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from scratchgen.ops.indexing import Gather, ScatterAdd
from scratchgen.ops.operands import as_tensor, floating
from scratchgen.ops.reduce import dims_of
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "argsort",
    "bincount",
    "sort",
    "topk",
]


class Ordered(NamedTuple):
    """What `sort` and `topk` return."""

    values: Tensor
    indices: Tensor


def _order(x: Any, dim: int, descending: bool) -> Any:
    """The positions of x's elements in order along `dim`, of equals the earlier first."""
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    return x.shape[dim] - 1 - np.flip(np.argsort(np.flip(x, dim), axis=dim, kind="stable"), dim)  # turned twice: equals stay


@method
def argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """i with x_{i_0} ≤ x_{i_1} ≤ … along `dim` (≥ where `descending`): int64. The order is always the stable one."""
    x = as_tensor(input)
    dims = dims_of("argsort", x, dim)
    return constant(_order(x.data, dims[0], descending) if dims else np.zeros_like(x.data, dtype=np.int64))


@method
def sort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Ordered:
    """y_k = x_{i_k}, i = argsort x along `dim`: (values, indices).          x̄_{i_k} = ȳ_k"""
    x = as_tensor(input)
    index = argsort(x, dim, descending)
    return Ordered(Gather.apply(x, dim=dim % x.ndim, index=index.data) if x.ndim else x, index)


@method
def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Ordered:
    """The k largest elements along `dim`, or smallest, the first of them first: (values, indices).   x̄_{i_k} = ȳ_k

    They are in order in any case. Raises ValueError unless k is from 0 to the length of `dim`.
    """
    x = as_tensor(input)
    dims = dims_of("topk", x, dim)
    n = x.shape[dims[0]] if dims else 1
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k <= n:
        raise ValueError(f"topk: expected k from 0 to {n}, the length of dimension {dim}, got {k!r}")
    if not dims:
        return Ordered(x, argsort(x))
    index = _order(x.data, dims[0], largest)[(slice(None),) * dims[0] + (slice(k),)]
    return Ordered(Gather.apply(x, dim=dims[0], index=index), constant(index))


@method
def bincount(input: Any, weights: Any = None, minlength: int = 0) -> Tensor:
    """y_v = #{j: x_j = v}, int64, or Σ_{j: x_j = v} w_j, for v from 0 to max x, and on to minlength − 1.      w̄_j = ȳ_{x_j}

    x: (n) whole numbers of at least 0, w: (n). PyTorch gives w no gradient. Raises TypeError and ValueError for others.
    """
    x = as_tensor(input)
    if x.dtype.kind not in "iu" or x.ndim != 1:
        raise TypeError(f"bincount: expected a 1-d tensor of whole numbers, got {x.dtype} of shape {x.shape}")
    if isinstance(minlength, bool) or not isinstance(minlength, int | np.integer) or minlength < 0:
        raise ValueError(f"bincount: expected minlength to be a whole number of at least 0, got {minlength!r}")
    if x.numel() and int(x.data.min()) < 0:
        raise ValueError(f"bincount: expected whole numbers of at least 0, got {int(x.data.min())}")
    if weights is None:
        return constant(np.bincount(x.data, minlength=minlength))
    w = floating("bincount", weights)
    if w.shape != x.shape:
        raise ValueError(f"bincount: expected one weight for each of {x.shape} numbers, got {w.shape}")
    n = max(minlength, int(x.data.max()) + 1 if x.numel() else 0)
    return ScatterAdd.apply(constant(np.zeros_like(w.data, shape=n)), w, dim=0, index=x.data.copy())
