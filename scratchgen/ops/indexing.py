r"""x[index] and its kin: ops that read some elements, or write to some. All are linear, the gradient of each is its transpose:

x[index] ↔ add into zeros at index · gather ↔ scatter_add · index_select ↔ index_add
"""

from __future__ import annotations

from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.operands import Number, as_tensor, operands
from scratchgen.ops.reduce import dims_of
from scratchgen.tensors import Tensor, constant, method, recording

__all__ = [
    "diag",
    "diagonal",
    "gather",
    "index_add",
    "index_select",
    "narrow",
    "scatter_add",
]

_BASIC = frozenset([int, slice, type(None), type(...)])  # the types of an index without arrays


class Index(Function):
    """y = x[index]           x̄ = zeros, with ȳ added at index"""

    keeps_inputs = False

    def forward(self, x: Any, *, index: Any) -> Any:
        self.shape, self.index = x.shape, index
        rows = devices.is_array(index) and index.dtype.kind in "iu"  # one array of integers names rows
        return kernels.embedding(x, index) if rows else x[index]

    def backward(self, dy: Tensor) -> Tensor:
        return IndexAdd.apply(dy, shape=self.shape, index=self.index)


class IndexAdd(Function):
    """y = zeros, with x added at index (repeats add up)          x̄ = ȳ[index]"""

    keeps_inputs = False

    def forward(self, x: Any, *, shape: tuple[int, ...], index: Any) -> Any:
        self.index = index
        y = np.zeros_like(x, shape=shape, order="C")
        parts = index if isinstance(index, tuple) else (index,)
        if not any(map(devices.is_array, parts)):
            y[index] = x  # slices and numbers name each element once
        elif len(parts) == 1 and parts[0].dtype.kind in "iu":
            _add_rows(y, parts[0], x)
        else:
            at = devices.beside(np.arange(y.size).reshape(shape), y)[index]
            _add_at(y, at, x)  # many times faster than with several indices
        return y

    def backward(self, dy: Tensor) -> Tensor:
        return Index.apply(dy, index=self.index)


MANY = 4096  # more rows than these, which may all have one index, are added in float64


def _add_rows(y: Any, index: Any, x: Any) -> None:
    """y[index_i] += x_i, in place; repeats add up."""
    if index.size > MANY and y.dtype.kind == "f" and y.dtype.itemsize < 8 and devices.on_host(y):
        total = y.astype(np.float64)
        kernels.scatter_add(total, index, x.astype(np.float64))
        y[...] = total
    else:
        kernels.scatter_add(y, index, x)


def _add_at(y: Any, at: Any, x: Any) -> None:
    """y at each of the flat positions `at` += x, in place; repeats add up."""
    flat, at, x = y.reshape(-1), at.reshape(-1), x.reshape(-1)
    if not devices.on_host(y):
        kernels.scatter_add(flat, at, x)
    elif at.size > MANY and y.dtype.kind == "f" and y.dtype.itemsize < 8:
        total = flat.astype(np.float64)
        np.add.at(total, at, x.astype(np.float64))
        flat[...] = total
    else:
        np.add.at(flat, at, x)


def _along(index: np.ndarray, dim: int) -> tuple[np.ndarray, ...]:
    """The index arrays that let NumPy read index[i, j, k] along `dim` and i, j, k elsewhere."""
    grid = np.ogrid[tuple(slice(n) for n in index.shape)]
    return tuple(index if d == dim else devices.beside(g, index) for d, g in enumerate(grid))


class Gather(Function):
    """y_{ijk} = x_{i, index_{ijk}, k}  (here along dim 1)       x̄ = zeros, with ȳ added at the same positions"""

    keeps_inputs = False

    def forward(self, x: Any, *, dim: int, index: np.ndarray) -> Any:
        self.shape, self.dim, self.index = x.shape, dim, index
        return x[_along(index, dim)]

    def backward(self, dy: Tensor) -> Tensor:
        zeros = constant(np.zeros_like(dy.data, shape=self.shape))
        return ScatterAdd.apply(zeros, dy, dim=self.dim, index=self.index)


class ScatterAdd(Function):
    """y = x, with y_{i, index_{ijk}, k} += source_{ijk}         x̄ = ȳ,  source̅ = gather of ȳ"""

    keeps_inputs = False

    def forward(self, x: Any, source: Any, *, dim: int, index: np.ndarray) -> Any:
        self.dim, self.index = dim, index
        y = x.copy()
        at = devices.beside(np.arange(y.size).reshape(y.shape), y)[_along(index, dim)]
        _add_at(y, at, source)
        return y

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        return dy, Gather.apply(dy, dim=self.dim, index=self.index)


# ---------------------------------------------------------------------------------------------------------------------
# x[index]
# ---------------------------------------------------------------------------------------------------------------------


@method("__getitem__")
def index(input: Any, key: Any) -> Tensor:
    """x[key]: numbers, slices, …, None, integer or boolean arrays and tensors. Repeats add up in the gradient.

    The rules are NumPy's, with one exception: an integer beside arrays takes its slice before them, so x[0, :, [1, 2]] is
    x[0][:, [1, 2]], as in PyTorch. Unlike in PyTorch steps may be negative, uint8 are integers, and a nested list is one array.
    """
    x = as_tensor(input)
    key = tuple([_key(k, x._data) for k in key]) if type(key) is tuple else _key(key, x._data)
    try:
        numbers, key = numbers_first(key)
        x = x if numbers is None else Index.apply(x, index=numbers)
        return Index.apply(x, index=key)
    except IndexError as error:
        raise IndexError(f"index into a tensor of shape {x.shape}: {error}") from None


def _key(k: Any, x: Any) -> Any:
    """One part of an index of x, arrays copied to where x is: the gradient needs it as it is now."""
    if isinstance(k, Tensor):
        k = k.data
    if isinstance(k, list) or devices.is_array(k):
        k = np.array(k) if isinstance(k, list) else k.copy()
        if k.dtype.kind not in "iub":
            if k.size:
                raise TypeError(f"index: expected integers or booleans, got {k.dtype}")
            k = k.astype(np.int64)
        if not k.ndim and k.dtype != np.bool_:
            return int(k)
        return devices.beside(k, x) if devices.on_host(k) else k
    return k


@method("__setitem__")
def assign(self: Tensor, index: Any, value: Any) -> None:
    if self.node is not None and recording.on:
        raise RuntimeError("assignment into a tensor that requires a gradient: wrap it in `with no_grad():`, or use where()")
    if isinstance(value, Tensor) and value.node is not None and recording.on:
        raise RuntimeError(
            "assignment of a tensor that requires a gradient would cut the graph: use where(), cat() or scatter_add()"
        )
    numbers, index = numbers_first(_plain(index))
    with self.writing() as own:
        part = own if numbers is None else own[numbers]
        if isinstance(value, Tensor):
            value = value._data
        part[index] = devices.beside(value, part) if isinstance(value, np.ndarray) else value


def _plain(index: Any) -> Any:
    """An index with tensors and lists replaced by arrays, and 0-d tensors by Python integers."""
    if isinstance(index, tuple):
        return tuple([_plain(i) for i in index])
    if isinstance(index, Tensor):
        return index._data if index.ndim or index.dtype.kind == "b" else index.item()
    return np.array(index) if isinstance(index, list) and index else index


def numbers_first(key: Any) -> tuple[Any, Any]:
    """Two indices that replace `key`: one by its integers, then one by its arrays; (None, key) where NumPy's rule is ours.

    NumPy treats an integer beside arrays as an array too: in x[0, :, [1, 2]] the dimension of the arrays moves to the front.
    """
    if type(key) is not tuple or _BASIC.issuperset(map(type, key)):
        return None, key
    choosing = [i for i, k in enumerate(key) if isinstance(k, int | np.integer) or devices.is_array(k)]
    arrays = [i for i in choosing if devices.is_array(key[i])]
    if not arrays or choosing[-1] - choosing[0] == len(choosing) - 1 or len(arrays) == len(choosing):
        return None, key
    numbers: list[Any] = []
    for k in key:
        numbers += [slice(None)] * (k.ndim if k.dtype == np.bool_ else 1) if devices.is_array(k) else [k]
    arrays = [k if k is ... or devices.is_array(k) else slice(None) for k in key if not isinstance(k, int | np.integer)]
    return tuple(numbers), tuple(arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing along a dimension
# ---------------------------------------------------------------------------------------------------------------------


@method
def narrow(input: Any, dim: int, start: int, length: int) -> Tensor:
    """`length` slices of `dim`, from `start` on, which counts from the end if negative."""
    x = as_tensor(input)
    (d,) = dims_of("narrow", x, dim) or refuse_0d("narrow")
    start += x.shape[d] if start < 0 else 0
    if not (0 <= start and 0 <= length and start + length <= x.shape[d]):
        raise ValueError(f"narrow: expected a range within 0 … {x.shape[d]}, got start {start} and length {length}")
    return Index.apply(x, index=(slice(None),) * d + (slice(start, start + length),))


def refuse_0d(name: str) -> Any:
    raise ValueError(f"{name}: expected at least one dimension, got a 0-d tensor")


def whole(name: str, index: Any) -> np.ndarray:
    found = as_tensor(index).data
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an integer index, got {found.dtype}")
    return found.astype(np.int64)  # a copy: the gradient needs it as it is now


def _checked_along(name: str, x: Tensor, dim: int, index: Any) -> tuple[int, np.ndarray]:
    index = whole(name, index)
    (d,) = dims_of(name, x, dim)
    if index.ndim != x.ndim or any(m > n for e, (m, n) in enumerate(zip(index.shape, x.shape, strict=True)) if e != d):
        raise ValueError(f"{name}: expected an index no larger than {x.shape} outside dimension {d}, got shape {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= x.shape[d]):
        raise IndexError(f"{name}: expected indices from 0 to {x.shape[d] - 1}, got {index.min()} … {index.max()}")
    return d, devices.moved(index, x.device)


@method
def gather(input: Any, dim: int, index: Any) -> Tensor:
    """y_{ijk} = x_{i, index_{ijk}, k} for dim 1, and so on: y has the shape of `index`.

    A 0-d x is gathered from as its one element; an index without elements may have any shape.
    """
    x, index = as_tensor(input), as_tensor(index)
    if not x.ndim or not index.numel():
        return _gathered_flat("gather", x, dim, index)
    d, index = _checked_along("gather", x, dim, index)
    return Gather.apply(x, dim=d, index=index)


def _gathered_flat(name: str, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """What is gathered where no two dimensions have to agree: from one element, or nothing."""
    dims_of(name, x, dim)
    if index.ndim > 1 and index.numel():
        raise ValueError(f"{name}: expected an index of at most one dimension for a 0-d tensor, got shape {index.shape}")
    flat = x.reshape(-1)
    d, positions = _checked_along(name, flat, 0, index.reshape(-1))
    return Gather.apply(flat, dim=d, index=positions).reshape(index.shape)


@method
def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Tensor:
    """y = x, with y_{i, index_{ijk}, k} += src_{ijk} for dim 1, and so on; repeats add up. A 0-d x is one element."""
    x, src = operands("scatter_add", as_tensor(input), as_tensor(src))
    index = as_tensor(index)
    if not x.ndim:
        dims_of("scatter_add", x, dim)
        if index.ndim > 1 or src.ndim > 1:
            shapes = f"{index.shape} and {src.shape}"
            raise ValueError(f"scatter_add: expected index and src of at most one dimension for a 0-d tensor, got {shapes}")
        return scatter_add(x.reshape(1), 0, index.reshape(-1), src.reshape(-1)).reshape(())
    if not index.numel():
        whole("scatter_add", index)
        return x
    d, index = _checked_along("scatter_add", x, dim, index)
    if src.ndim != index.ndim or any(m > n for m, n in zip(index.shape, src.shape, strict=True)):
        raise ValueError(f"scatter_add: expected src at least as large as the index, {index.shape}, got {src.shape}")
    return ScatterAdd.apply(x, src[tuple(slice(n) for n in index.shape)], dim=d, index=index)


@method
def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: Number = 1) -> Tensor:
    """y = x, its slices along `dim` with y_{index_j} += alpha · source_j; repeats add up. A 0-d x has one slice.

    index: (J); source: as x, but for J slices. Raises ValueError for other shapes, IndexError for an index out of range.
    """
    x, source = operands("index_add", as_tensor(input), as_tensor(source))
    index = whole("index_add", index).reshape(-1)
    if not x.ndim:
        dims_of("index_add", x, dim)
        return index_add(x.reshape(1), 0, index, source.reshape(-1), alpha=alpha).reshape(())
    (d,) = dims_of("index_add", x, dim)
    expected = (*x.shape[:d], index.size, *x.shape[d + 1 :])
    if source.shape != expected:
        raise ValueError(f"index_add: expected a source of shape {expected}, got {source.shape}")
    if index.size and (index.min() < 0 or index.max() >= x.shape[d]):
        raise IndexError(f"index_add: expected indices from 0 to {x.shape[d] - 1}, got {index.min()} … {index.max()}")
    index = devices.moved(index, x.device)
    added = IndexAdd.apply(source, shape=x.shape, index=index if d == 0 else (slice(None),) * d + (index,))
    return x + (added if alpha == 1 else alpha * added)


@method
def index_select(input: Any, dim: int, index: Any) -> Tensor:
    """The slices of `dim` that a 1-d `index` names; a 0-d tensor has one."""
    x = as_tensor(input)
    index = whole("index_select", index)
    if not x.ndim:
        dims_of("index_select", x, dim)
        if index.size != 1:
            raise ValueError(f"index_select: expected one index into a 0-d tensor, got shape {index.shape}")
        return index_select(x.reshape(1), 0, index).reshape(())
    (d,) = dims_of("index_select", x, dim)
    if index.ndim > 1:
        raise ValueError(f"index_select: expected a 1-d index, got shape {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= x.shape[d]):
        raise IndexError(f"index_select: expected indices from 0 to {x.shape[d] - 1}, got {index.min()} … {index.max()}")
    return Index.apply(x, index=(slice(None),) * d + (devices.moved(index.reshape(-1), x.device),))


# ---------------------------------------------------------------------------------------------------------------------
# Diagonals
# ---------------------------------------------------------------------------------------------------------------------


@method
def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonals of the matrices that dim1 and dim2 span, as a new last dimension."""
    x = matrices("diagonal", input)
    (a,), (b,) = dims_of("diagonal", x, dim1), dims_of("diagonal", x, dim2)
    if a == b:
        raise ValueError(f"diagonal: expected two different dimensions, got {dim1} and {dim2}")
    x = x.permute([d for d in range(x.ndim) if d not in (a, b)] + [a, b])
    rows = np.arange(x.shape[-2])
    rows = rows[(rows + offset >= 0) & (rows + offset < x.shape[-1])]
    return x[..., rows, rows + offset]


@method
def diag(input: Any, diagonal: int = 0) -> Tensor:
    """A vector as the diagonal of a matrix of zeros, or the diagonal of a matrix, `diagonal` columns right of the main one.

    (n) → (n + |diagonal|, n + |diagonal|), (n, m) → the length of the diagonal.
    """
    x = as_tensor(input)
    if x.ndim not in (1, 2):
        raise ValueError(f"diag: expected a vector or a matrix, got shape {x.shape}")
    if x.ndim == 2:
        return x.diagonal(diagonal)
    rows = np.arange(len(x)) + max(-diagonal, 0)
    index = tuple([devices.beside(i, x.data) for i in (rows, rows + diagonal)])
    n = len(x) + abs(diagonal)
    return IndexAdd.apply(x, shape=(n, n), index=index)


def matrices(name: str, input: Any) -> Tensor:
    x = as_tensor(input)
    if x.ndim < 2:
        raise ValueError(f"{name}: expected matrices, at least 2 dimensions, got shape {x.shape}")
    return x
