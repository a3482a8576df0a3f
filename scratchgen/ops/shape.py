r"""Ops that move, copy and join elements. All are linear, and the gradient of each is its transpose:

reshape ↔ reshape · permute ↔ inverse permute · expand ↔ sum (the engine's) · cat ↔ split · pad ↔ slice · flip ↔ flip
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.choice import where
from scratchgen.ops.indexing import matrices, narrow, refuse_0d, whole
from scratchgen.ops.operands import Number, as_tensor, broadcast, operands
from scratchgen.ops.reduce import dims_of
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "broadcast_to",
    "cat",
    "chunk",
    "clone",
    "contiguous",
    "expand",
    "flatten",
    "flip",
    "meshgrid",
    "movedim",
    "pad",
    "permute",
    "repeat",
    "repeat_interleave",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "stack",
    "transpose",
    "tril",
    "triu",
    "unbind",
    "unsqueeze",
]


class Reshape(Function):
    """The same elements in the same order under another shape."""

    keeps_inputs = False

    def forward(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        self.before = x.shape
        return x.reshape(shape)

    def backward(self, dy: Tensor) -> Tensor:
        return Reshape.apply(dy, shape=self.before)


class Permute(Function):
    """y_{i_{d_0} i_{d_1} …} = x_{i_0 i_1 …}"""

    keeps_inputs = False

    def forward(self, x: Any, *, dims: tuple[int, ...]) -> Any:
        self.dims = dims
        return x.transpose(dims)

    def backward(self, dy: Tensor) -> Tensor:
        return Permute.apply(dy, dims=tuple(int(i) for i in np.argsort(self.dims)))


class Expand(Function):
    """y = x for every copy along the new or stretched dimensions; the engine sums the gradient over the copies."""

    keeps_inputs = False

    def forward(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        return broadcast(x, shape)

    def backward(self, dy: Tensor) -> Tensor:
        return dy


class Cat(Function):
    """The inputs side by side along `dim`; each gets its slice of the gradient."""

    keeps_inputs = False

    def forward(self, *xs: Any, dim: int) -> Any:
        self.dim, self.sizes = dim, [x.shape[dim] for x in xs]
        return np.concatenate(xs, axis=dim)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        return tuple(split(dy, self.sizes, self.dim))


class Split(Function):
    """Pieces of given sizes along `dim`; their gradients side by side."""

    keeps_inputs = False

    def forward(self, x: Any, *, sizes: Sequence[int], dim: int) -> tuple[Any, ...]:
        self.dim = dim
        ends = itertools.accumulate(sizes)
        return tuple([x[(slice(None),) * dim + (slice(b - n, b),)] for n, b in zip(sizes, ends, strict=True)])

    def backward(self, *dys: Tensor) -> Tensor:
        return Cat.apply(*dys, dim=self.dim)


class Pad(Function):
    """x with `widths` = ((before, after), …) cells of `value` around it"""

    keeps_inputs = False

    def forward(self, x: Any, *, widths: tuple[tuple[int, int], ...], value: Number) -> Any:
        self.inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
        y = np.full_like(x, value, shape=tuple(n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)))
        y[self.inner] = x
        return y

    def backward(self, dy: Tensor) -> Tensor:
        return dy[self.inner]


class Flip(Function):
    """The elements in reverse order along `dims`"""

    keeps_inputs = False

    def forward(self, x: Any, *, dims: tuple[int, ...]) -> Any:
        self.dims = dims
        return np.flip(x, axis=dims)

    def backward(self, dy: Tensor) -> Tensor:
        return Flip.apply(dy, dims=self.dims)


# ---------------------------------------------------------------------------------------------------------------------
# Shape
# ---------------------------------------------------------------------------------------------------------------------


def shape_of(name: str, shape: tuple[Any, ...], named: Any = None) -> tuple[int, ...]:
    """f(x, 2, 3) and f(x, (2, 3)) mean the same, and so does f(x, shape=(2, 3)), in which it is `named`."""
    if named is not None:
        shape = (*shape, named)
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if set(map(type, shape)) == {int}:
        return shape
    for n in shape:
        if not isinstance(n, int | np.integer) or isinstance(n, bool):
            raise TypeError(f"{name}: expected a shape of whole numbers, got {shape!r}")
    return tuple(int(n) for n in shape)


@method("reshape", "view")
def reshape(input: Any, *sizes: Any, shape: Sequence[int] | None = None) -> Tensor:
    """The same elements, row by row, under another shape; one −1 is worked out. `view` is the same: it copies if it must."""
    x = as_tensor(input)
    shape = shape_of("reshape", sizes, shape)
    if shape == x.shape:
        return x
    try:
        return Reshape.apply(x, shape=shape)
    except ValueError:
        raise ValueError(
            f"reshape: expected a shape of {x.numel()} elements for a tensor of shape {x.shape}, got {shape}"
        ) from None


@method
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim … end_dim joined into one."""
    x = as_tensor(input)
    if not x.ndim:
        return x.reshape(1)
    (start,), (end,) = dims_of("flatten", x, start_dim), dims_of("flatten", x, end_dim)
    if start > end:
        raise ValueError(f"flatten: expected start_dim before end_dim, got {start_dim} and {end_dim}")
    return x.reshape(x.shape[:start] + (math.prod(x.shape[start : end + 1]),) + x.shape[end + 1 :])


@method
def permute(input: Any, *order: Any, dims: Sequence[int] | None = None) -> Tensor:
    """The dimensions in another order."""
    x = as_tensor(input)
    dims = shape_of("permute", order, dims)
    found = tuple([d + x.ndim if d < 0 else d for d in dims])
    if sorted(found) != list(range(x.ndim)):
        raise ValueError(f"permute: expected each of {x.ndim} dimensions once, got {dims}")
    return Permute.apply(x, dims=found)


@method
def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Two dimensions swapped."""
    x = as_tensor(input)
    if not x.ndim:
        return x
    (a,), (b,) = dims_of("transpose", x, dim0), dims_of("transpose", x, dim1)
    dims = list(range(x.ndim))
    dims[a], dims[b] = b, a
    return Permute.apply(x, dims=tuple(dims))


@method
def t(self: Tensor) -> Tensor:
    """The transpose of a matrix; a vector or a number stays as it is."""
    return permute(self, (1, 0) if self.ndim > 1 else tuple(range(self.ndim)))


@method
@property
def T(self: Tensor) -> Tensor:
    """The dimensions in reverse order."""
    return permute(self, tuple(reversed(range(self.ndim))))


@method
@property
def mT(self: Tensor) -> Tensor:
    """Each matrix transposed: the last two dimensions swapped."""
    return transpose(self, -2, -1)


@method
def movedim(input: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """One dimension moved to another position, or several, each to its own, the others in order."""
    x = as_tensor(input)
    if type(source) is int and type(destination) is int:
        a, b = dims_of("movedim", x, source), dims_of("movedim", x, destination)
    else:
        a, b = (tuple([d for v in np.atleast_1d(vs) for d in dims_of("movedim", x, int(v))]) for vs in (source, destination))
        if not len(a) == len(b) == len(set(a)) == len(set(b)):
            raise ValueError(f"movedim: expected as many positions as dimensions, each once, got {source} and {destination}")
    if a == b:
        return x
    dims = [d for d in range(x.ndim) if d not in a]
    for to, d in sorted(zip(b, a, strict=True)):
        dims.insert(to, d)
    return Permute.apply(x, dims=tuple(dims))


@method
def squeeze(input: Any, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without the dimensions of length 1 (those in `dim`, or all)."""
    x = as_tensor(input)
    dims = dims_of("squeeze", x, dim)
    return x.reshape(tuple(n for d, n in enumerate(x.shape) if n != 1 or d not in dims))


@method
def unsqueeze(input: Any, dim: int) -> Tensor:
    """With a new dimension of length 1 at `dim`."""
    x = as_tensor(input)
    if not -x.ndim - 1 <= dim <= x.ndim:
        raise IndexError(f"unsqueeze: expected a dimension from {-x.ndim - 1} to {x.ndim}, got {dim}")
    d = dim % (x.ndim + 1)
    return x.reshape(x.shape[:d] + (1,) + x.shape[d:])


@method
def expand(input: Any, *shape: Any) -> Tensor:
    """Dimensions of length 1 stretched, new ones in front, without copying; −1 keeps a length."""
    x = as_tensor(input)
    shape = shape_of("expand", shape)
    added = len(shape) - x.ndim
    if added >= 0:
        shape = shape[:added] + tuple(x.shape[i] if n == -1 else n for i, n in enumerate(shape[added:]))
    if shape == x.shape:
        return x
    if added < 0 or min(shape, default=0) < 0 or any(n not in (1, m) for n, m in zip(x.shape, shape[added:], strict=True)):
        raise ValueError(f"expand: expected a shape that {x.shape} broadcasts to, got {shape}")
    return Expand.apply(x, shape=shape)


@method
def broadcast_to(input: Any, shape: Sequence[int]) -> Tensor:
    """`expand` under its other name."""
    return expand(input, tuple(shape))


@method
def clone(input: Any) -> Tensor:
    """A copy, with the gradient passed on."""
    return Clone.apply(as_tensor(input))


class Clone(Function):
    """y = x, in memory of its own, in row order"""

    keeps_inputs = False

    def forward(self, x: Any) -> Any:
        return x.copy()

    def backward(self, dy: Tensor) -> Tensor:
        return dy


@method
def contiguous(input: Any) -> Tensor:
    """The tensor itself where its elements lie in row order, else a copy that does."""
    x = as_tensor(input)
    return x if x.data.flags.c_contiguous else clone(x)


# ---------------------------------------------------------------------------------------------------------------------
# Pieces and triangles
# ---------------------------------------------------------------------------------------------------------------------


@method
def split(input: Any, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces along `dim`: of equal size (the last may be smaller), or of the sizes listed."""
    x = as_tensor(input)
    (d,) = dims_of("split", x, dim)
    n, sizes = x.shape[d], split_size_or_sections
    if isinstance(sizes, int | np.integer):
        if sizes <= 0:
            raise ValueError(f"split: expected a size above 0, got {sizes}")
        sizes = [min(int(sizes), n - i) for i in range(0, n, int(sizes))] or [0]
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise ValueError(f"split: expected sizes that add up to {n}, got {list(sizes)}")
    return Split.apply(x, sizes=list(sizes), dim=d)


@method
def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` pieces along `dim`, of equal size but for the last."""
    x = as_tensor(input)
    if chunks <= 0:
        raise ValueError(f"chunk: expected at least 1 chunk, got {chunks}")
    (d,) = dims_of("chunk", x, dim)
    return split(x, max(1, -(-x.shape[d] // chunks)), d)


@method
def unbind(input: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`, without it."""
    x = as_tensor(input)
    (d,) = dims_of("unbind", x, dim) or refuse_0d("unbind")
    return tuple([piece.squeeze(d) for piece in split(x, 1, d)]) if x.shape[d] else ()


@method("__iter__")
def iterate(input: Tensor) -> Any:
    """for row in tensor"""
    return iter(unbind(input, 0))


@method
def tril(input: Any, diagonal: int = 0) -> Tensor:
    """The lower triangle of each matrix, zeros above the `diagonal`."""
    x = matrices("tril", input)
    return where(constant(devices.beside(np.tri(*x.shape[-2:], diagonal, dtype=bool), x.data)), x, 0)


@method
def triu(input: Any, diagonal: int = 0) -> Tensor:
    """The upper triangle of each matrix, zeros below the `diagonal`."""
    x = matrices("triu", input)
    return where(constant(devices.beside(~np.tri(*x.shape[-2:], diagonal - 1, dtype=bool), x.data)), x, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Joining, padding, turning
# ---------------------------------------------------------------------------------------------------------------------


def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Tensors side by side along `dim`; all other lengths agree. One of shape (0,) goes with any, as in PyTorch."""
    if isinstance(tensors, Tensor) or not len(tensors):
        raise ValueError("cat: expected a list of at least one tensor")
    xs = operands("cat", *[as_tensor(x) for x in tensors])
    if len({x.ndim for x in xs}) > 1:
        xs = tuple([x for x in xs if x.shape != (0,)])
    (d,) = dims_of("cat", xs[0], dim) or refuse_0d("cat")
    for x in xs:
        if x.ndim != xs[0].ndim or x.shape[:d] + x.shape[d + 1 :] != xs[0].shape[:d] + xs[0].shape[d + 1 :]:
            raise ValueError(f"cat: expected shapes that agree outside dimension {d}, got {xs[0].shape} and {x.shape}")
    return Cat.apply(*xs, dim=d)


def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new `dim`."""
    xs = [as_tensor(x) for x in tensors]
    for x in xs:
        if x.shape != xs[0].shape:
            raise ValueError(f"stack: expected tensors of one shape, got {xs[0].shape} and {x.shape}")
    return cat([x.unsqueeze(dim) for x in xs], dim)


@method
def repeat(input: Any, *sizes: Any) -> Tensor:
    """Copies side by side: `sizes[d]` of them along dimension d."""
    x = as_tensor(input)
    sizes = shape_of("repeat", sizes)
    if len(sizes) < x.ndim or min(sizes, default=0) < 0:
        raise ValueError(f"repeat: expected at least {x.ndim} counts of at least 0, got {sizes}")
    shape = (1,) * (len(sizes) - x.ndim) + x.shape
    pairs = tuple(m for n in shape for m in (1, n))
    copies = tuple(m for k, n in zip(sizes, shape, strict=True) for m in (k, n))
    return x.reshape(pairs).expand(copies).reshape(tuple(k * n for k, n in zip(sizes, shape, strict=True)))


@method
def repeat_interleave(input: Any, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Each element `repeats` times in a row along `dim` (one number, or one for each); of the flattened tensor without it.

    `output_size` is the length that comes out, for those who know it: ValueError where it is another.
    """
    y = _repeated(as_tensor(input), repeats, dim)
    length = y.shape[0 if dim is None or y.ndim == 1 else dim]
    if output_size not in (None, length):
        raise ValueError(f"repeat_interleave: expected output_size {length}, got {output_size}")
    return y


def _repeated(x: Tensor, repeats: Any, dim: int | None) -> Tensor:
    if dim is None or not x.ndim:
        x, dim = x.reshape(-1), 0
    (d,) = dims_of("repeat_interleave", x, dim)
    if type(repeats) is not int or repeats < 0:
        counts = whole("repeat_interleave", repeats)
        if (counts < 0).any() or counts.shape not in ((), (1,), x.shape[d : d + 1]):
            raise ValueError(f"repeat_interleave: expected counts of at least 0, one or {x.shape[d]} of them, got {repeats!r}")
        return x.index_select(d, np.repeat(np.arange(x.shape[d]), counts))
    y = x.unsqueeze(d + 1).expand(x.shape[: d + 1] + (repeats,) + x.shape[d + 1 :])
    return y.reshape(x.shape[:d] + (x.shape[d] * repeats,) + x.shape[d + 1 :])


@method
def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: Number | None = None) -> Tensor:
    """Cells added around the last dimensions: pad = (left, right) of the last, then of the one before, and so on.

    mode "constant" fills with `value` (0), "reflect" mirrors without the edge, "replicate" repeats the edge,
    "circular" wraps around. Negative counts cut.
    """
    x = as_tensor(input)
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad: expected pairs of counts, at most one for each of {x.ndim} dimensions, got {tuple(pad)}")
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise ValueError(f"pad: expected mode constant, reflect, replicate or circular, got {mode!r}")
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    for d, (before, after) in enumerate(pairs):
        if x.shape[d] + min(before, 0) + min(after, 0) < 0:
            raise ValueError(f"pad: expected to cut at most {x.shape[d]} cells from dimension {d}, got {(before, after)}")
        most = {"reflect": x.shape[d] - 1, "circular": x.shape[d] + min(before, 0) + min(after, 0)}.get(mode)
        if most is not None and max(before, after) > max(most, 0):
            raise ValueError(f"pad: expected at most {most} cells for mode {mode!r} in dimension {d}, got {(before, after)}")
    if mode in ("constant", "circular") and any(n < 0 for pair in pairs for n in pair):
        x = x[tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, pairs, strict=True))]
        pairs = [(max(a, 0), max(b, 0)) for a, b in pairs]
    if mode == "constant":
        return Pad.apply(x, widths=tuple(pairs), value=0 if value is None else value)
    for d, (before, after) in enumerate(pairs):
        if before or after:
            x = _framed(x, d, before, after, mode)
    return x


def _framed(x: Tensor, d: int, before: int, after: int, mode: str) -> Tensor:
    """x with cells of its own before and after it in dimension d, which `mode` chooses."""
    n = x.shape[d]

    def cells(count: int, mirrored: int, wrapped: int, edge: int) -> Tensor:
        if mode == "replicate":
            return narrow(x, d, edge, 1).expand(x.shape[:d] + (count,) + x.shape[d + 1 :])
        return narrow(x, d, mirrored, count).flip(d) if mode == "reflect" else narrow(x, d, wrapped, count)

    pieces = [narrow(x, d, max(0, -before), n + min(before, 0) + min(after, 0))]
    if before > 0:
        pieces.insert(0, cells(before, 1, n - before, 0))
    if after > 0:
        pieces.append(cells(after, n - 1 - after, 0, n - 1))
    return cat(pieces, d) if len(pieces) > 1 else pieces[0]


@method
def flip(input: Any, *axes: Any, dims: Sequence[int] | None = None) -> Tensor:
    """The elements in reverse order along `dims`."""
    x = as_tensor(input)
    return Flip.apply(x, dims=dims_of("flip", x, shape_of("flip", axes, dims)))


@method
def roll(input: Any, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """The elements shifted along one dimension, or each of several; those that leave come in on the other side.

    Without `dims` the flattened tensor is shifted, and brought back into its shape.
    """
    x = as_tensor(input)
    if dims is None:
        return roll(x.reshape(-1), shifts, 0).reshape(x.shape)
    shifts, dims = ((v,) if isinstance(v, int | np.integer) else tuple(v) for v in (shifts, dims))
    if len(shifts) != len(dims):
        raise ValueError(f"roll: expected one shift for each dimension, got {shifts} and {dims}")
    for shift, dim in zip(shifts, dims, strict=True):
        (d,) = dims_of("roll", x, dim) or refuse_0d("roll")
        n = x.shape[d]
        if n and shift % n:
            x = cat([narrow(x, d, n - shift % n, shift % n), narrow(x, d, 0, n - shift % n)], d)
    return x


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """The coordinates of a grid: G_k[i_1, …, i_n] = x_k[i_k] for vectors (or numbers) x_1, …, x_n, without copying them.

    `indexing` "xy" swaps the first two dimensions: G_k[i_2, i_1, …], the first vector along the columns of a picture.
    """
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    xs = operands("meshgrid", *[as_tensor(x) for x in given]) if len(given) else ()
    if not xs or any(x.ndim > 1 for x in xs):
        raise ValueError(f"meshgrid: expected vectors or numbers, at least one, got shapes {[x.shape for x in xs]}")
    if indexing not in ("ij", "xy"):
        raise ValueError(f"meshgrid: expected indexing 'ij' or 'xy', got {indexing!r}")
    shape = tuple([x.numel() for x in xs])
    grids = [x.reshape((x.numel(),) + (1,) * (len(xs) - 1 - k)).expand(shape) for k, x in enumerate(xs)]
    return tuple([g.transpose(0, 1) for g in grids] if indexing == "xy" and len(xs) > 1 else grids)
