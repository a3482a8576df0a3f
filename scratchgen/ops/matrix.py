r"""Matrix products, on which models spend nearly all their time. The gradient of each is made of matrix products again."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import kernels
from scratchgen.autograd import Function
from scratchgen.ops.choice import LeakyReluGrad
from scratchgen.ops.operands import as_tensor, operands
from scratchgen.ops.reduce import norm
from scratchgen.tensors import Tensor, method

__all__ = [
    "bmm",
    "cdist",
    "dot",
    "einsum",
    "linear",
    "matmul",
    "mm",
    "outer",
]


class MatMul(Function):
    """C = A B                Ā = C̄ Bᵀ,  B̄ = Aᵀ C̄              A: (…, m, k), B: (…, k, n), C: (…, m, n)"""

    def forward(self, a: Any, b: Any) -> Any:
        return kernels.matmul(a, b)

    def backward(self, dc: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        needs_a, needs_b = self.needs_input_grad
        return matmul(dc, b.mT) if needs_a else None, matmul(a.mT, dc) if needs_b else None


def _rows(x: Any) -> Any:
    """(…, n) → (rows, n)"""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class Linear(Function):
    """y = x Wᵀ + b           x̄ = ȳ W,  W̄ = Σ_rows ȳ xᵀ,  b̄ = Σ_rows ȳ

    x: (…, in), W: (out, in), b: (out), y: (…, out)
    """

    activation: str | None = None

    def forward(self, x: Any, weight: Any, *bias: Any) -> Any:
        y = kernels.matmul(_rows(x), weight.T, bias=bias[0] if bias else None, activation=self.activation)
        return y.reshape(*x.shape[:-1], len(weight))

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = self.inputs[:2]
        which = tuple(map(bool, self.needs_input_grad))
        grads = iter(LinearGrad.apply(dy, x, weight, which=which))
        return tuple([next(grads) if wanted else None for wanted in which])


class LinearRelu(Linear):
    """y = max(x Wᵀ + b, 0): the product's kernel cuts it off, and its gradients are `Linear`'s of ȳ where y > 0, else 0"""

    keeps_outputs = True
    activation = "relu"

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        return super().backward(LeakyReluGrad.apply(dy, y=self._outputs[0], slope=0.0))


class LinearGrad(Function):
    """x̄ = ȳ W,  W̄ = Σ_rows ȳ xᵀ,  b̄ = Σ_rows ȳ: those of them that are wanted, `which` says so

    With cotangents X of x̄, V of W̄ and u of b̄, theirs are      ȳ: X Wᵀ + x Vᵀ + u      x: ȳ V      W: Σ_rows ȳ Xᵀ
    """

    def forward(self, dy: Any, x: Any, weight: Any, *, which: tuple[bool, ...]) -> Any:
        self.which, grads = which, []
        dy = _rows(dy)
        if which[0]:
            grads.append(kernels.matmul(dy, weight).reshape(x.shape))
        if which[1]:
            grads.append(kernels.matmul(dy.T, _rows(x)))
        if which[2:] == (True,):
            grads.append(kernels.column_sums(dy))
        return tuple(grads)

    def backward(self, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, weight = self.inputs
        given = iter(cotangents)
        ddx, ddw, ddb = [next(given) if wanted else None for wanted in (*self.which, False)[:3]]
        needs_dy, needs_x, needs_weight = self.needs_input_grad
        ddy: Any = None
        if needs_dy:
            parts = [] if ddx is None else [Linear.apply(ddx, weight)]
            parts += [] if ddw is None else [Linear.apply(x, ddw)]
            parts += [] if ddb is None else [ddb.expand(dy.shape)]
            ddy = sum(parts[1:], parts[0])
        return (
            ddy,
            Linear.apply(dy, ddw.mT) if needs_x and ddw is not None else None,
            LinearGrad.apply(dy, ddx, weight, which=(False, True))[0] if needs_weight and ddx is not None else None,
        )


class Einsum(Function):
    """y_out = Σ_{labels not in out} Π_k x⁽ᵏ⁾_{labels_k};    x̄⁽ᵏ⁾ is the same sum with ȳ instead of x⁽ᵏ⁾

    Here each operand names a label once, and each label stands in the output or in a second operand.
    """

    def forward(self, *xs: Any, labels: tuple[str, ...], out: str) -> Any:
        self.labels, self.out = labels, out
        return kernels.einsum(",".join(labels) + "->" + out, *xs)

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = []
        for k, labels in enumerate(self.labels):
            if not self.needs_input_grad[k]:
                grads.append(None)
                continue
            others = [i for i in range(len(self.labels)) if i != k]
            operands = [dy, *(self.inputs[i] for i in others)]
            grads.append(Einsum.apply(*operands, labels=(self.out, *(self.labels[i] for i in others)), out=labels))
        return tuple(grads)


@method("matmul", "__matmul__", reflected="__rmatmul__")
def matmul(input: Any, other: Any) -> Tensor:
    """C = A B over the last two dimensions; leading ones broadcast. A vector is a row on the left, a column on the right.

    Shapes (…, m, k), (…, k, n) → (…, m, n). Raises ValueError where the inner lengths differ.
    """
    a, b = operands("matmul", input, other)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.ndim or not b.ndim:
        raise ValueError("matmul: expected tensors of at least one dimension, got a scalar; use * for that")
    if a.shape[-1] != (b.shape[-2] if b.ndim > 1 else b.shape[0]):
        raise ValueError(f"matmul: expected inner lengths that agree, got shapes {a.shape} and {b.shape}")
    if a.ndim == 1:
        return matmul(a.unsqueeze(0), b).squeeze(-2 if b.ndim > 1 else 0)
    if b.ndim == 1:
        return matmul(a, b.unsqueeze(1)).squeeze(-1)
    if a.ndim > 2 and b.ndim == 2:  # one product, not a batch of small ones whose weight gradients are then added up
        return MatMul.apply(_rows(a), b).reshape(a.shape[:-1] + (b.shape[-1],))
    for m, n in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False):
        if m != n and 1 not in (m, n):
            raise ValueError(f"matmul: expected leading dimensions that broadcast, got shapes {a.shape} and {b.shape}")
    return MatMul.apply(a, b)


def _ranked(name: str, a: Any, b: Any, ranks: tuple[int, int], form: str) -> tuple[Tensor, ...]:
    """Two tensors of one dtype that have as many dimensions as `ranks` says."""
    a, b = operands(name, as_tensor(a), as_tensor(b))
    if (a.ndim, b.ndim) != ranks:
        raise ValueError(f"{name}: expected shapes {form}, got {a.shape} and {b.shape}")
    return a, b


@method
def mm(input: Any, mat2: Any) -> Tensor:
    """C = A B for two matrices.     (m, k), (k, n) → (m, n).  Raises ValueError for other shapes; `matmul` takes them."""
    return matmul(*_ranked("mm", input, mat2, (2, 2), "(m, k) and (k, n)"))


@method
def bmm(input: Any, mat2: Any) -> Tensor:
    """C_i = A_i B_i for two stacks of as many matrices.     (b, m, k), (b, k, n) → (b, m, n)"""
    a, b = _ranked("bmm", input, mat2, (3, 3), "(b, m, k) and (b, k, n)")
    if len(a) != len(b):
        raise ValueError(f"bmm: expected as many matrices on both sides, got shapes {a.shape} and {b.shape}")
    return matmul(a, b)


@method
def dot(input: Any, tensor: Any) -> Tensor:
    """y = Σ_i a_i b_i for two vectors.     (n), (n) → ()"""
    return matmul(*_ranked("dot", input, tensor, (1, 1), "(n) and (n)"))


@method
def outer(input: Any, vec2: Any) -> Tensor:
    """Y_ij = a_i b_j.     (n), (m) → (n, m)"""
    a, b = _ranked("outer", input, vec2, (1, 1), "(n) and (m)")
    return a.unsqueeze(1) * b


def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """Y_ij = ‖a_i − b_j‖_p: the distances of all rows of one matrix from all of another.     (…, n, k), (…, m, k) → (…, n, m)

    Leading dimensions broadcast. The differences themselves are formed, n m k numbers: |a|² − 2 a · b + |b|² would lose the
    small distances, so PyTorch's `compute_mode`, which asks for the one or the other, changes nothing. The gradient of a
    distance of 0 is 0.
    """
    a, b = operands("cdist", as_tensor(x1), as_tensor(x2))
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"cdist: expected shapes (…, n, k) and (…, m, k), got {a.shape} and {b.shape}")
    if p < 0:
        raise ValueError(f"cdist: expected p of at least 0, got {p}")
    return norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


def linear(input: Any, weight: Any, bias: Any = None, *, activation: str | None = None) -> Tensor:
    """y = x Wᵀ + b for each row of the last dimension, or, with `activation` "relu", max(y, 0) in the same kernel.

    x: (…, in), W: (out, in), b: (out) → (…, out). Raises ValueError where the lengths do not agree.
    """
    given = operands("linear", input, weight) if bias is None else operands("linear", input, weight, bias)
    x, w = given[:2]
    if w.ndim != 2 or not x.ndim or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"linear: expected an input of shape (…, in) and a weight of shape (out, in), got {x.shape} and {w.shape}"
        )
    if bias is not None and given[2].shape != w.shape[:1]:
        raise ValueError(f"linear: expected a bias of shape {w.shape[:1]}, got {given[2].shape}")
    if activation not in (None, "relu"):
        raise ValueError(f"linear: expected activation None or 'relu', got {activation!r}")
    op = LinearRelu if activation else Linear
    return op.apply(*given) if x.ndim > 1 else op.apply(x.unsqueeze(0), *given[1:]).squeeze(0)


def einsum(equation: str, *operands_: Any) -> Tensor:
    """Sums of products in Einstein's notation: einsum("bhqd,bhkd->bhqk", q, k).

    Letters name dimensions, those missing on the right are summed over, a letter twice in one operand means its
    diagonal, "…" (written ...) stands for leading dimensions that broadcast. Without "->" the letters that occur once
    stay, in alphabetical order.
    """
    if len(operands_) == 1 and isinstance(operands_[0], list | tuple):
        operands_ = tuple(operands_[0])
    xs = list(operands("einsum", *[as_tensor(x) for x in operands_]))
    labels, out = _parse(equation, xs)
    for k, name in enumerate(labels):
        xs[k], name = _diagonals(xs[k], name)
        elsewhere = set(out).union(*(other for i, other in enumerate(labels) if i != k))
        alone = [d for d, c in enumerate(name) if c not in elsewhere]  # summed at once, so that each gradient is an einsum
        if alone:
            xs[k] = xs[k].sum(alone)
            name = "".join(c for c in name if c in elsewhere)
        labels[k] = name
    return Einsum.apply(*xs, labels=tuple(labels), out=out)


def _parse(equation: str, xs: Sequence[Tensor]) -> tuple[list[str], str]:
    """The labels of each operand and of the result, with "..." spelled out in letters of its own."""
    text = equation.replace(" ", "")
    left, arrow, out = text.partition("->")
    labels = left.split(",")
    allowed = set(string.ascii_letters)
    if len(labels) != len(xs):
        raise ValueError(f"einsum: expected {len(labels)} operands for {equation!r}, got {len(xs)}")
    spare = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in text]
    longest = 0
    for k, (name, x) in enumerate(zip(labels, xs, strict=True)):
        named = name.replace("...", "")
        rest = x.ndim - len(named)
        if not set(named) <= allowed or rest < 0 or (rest and "..." not in name) or name.count("...") > 1:
            raise ValueError(f"einsum: expected {name!r} in {equation!r} to name the dimensions of shape {x.shape}")
        labels[k] = name.replace("...", "".join(reversed(spare[:rest])))
        longest = max(longest, rest if "..." in name else 0)
    dots = "".join(reversed(spare[:longest]))
    if arrow:
        out = out.replace("...", dots)
    else:
        every = "".join(labels)
        out = dots + "".join(sorted(c for c in set(every) - set(dots) if every.count(c) == 1))
    if len(set(out)) != len(out) or not set(out) <= set("".join(labels)):
        raise ValueError(f"einsum: expected the result of {equation!r} to name labels of the operands, each once")
    sizes: dict[str, int] = {}
    for name, x in zip(labels, xs, strict=True):
        for c, n in zip(name, x.shape, strict=True):
            if sizes.setdefault(c, n) != n:
                if 1 not in (n, sizes[c]):
                    raise ValueError(f"einsum: expected one length for {c!r} in {equation!r}, got {sizes[c]} and {n}")
                sizes[c] = max(n, sizes[c])
    for k, (name, x) in enumerate(zip(labels, xs, strict=True)):
        if name and any(x.shape[d] != sizes[c] for d, c in enumerate(name)):
            xs[k] = x.expand(tuple(sizes[c] for c in name))
    return labels, out


def _diagonals(x: Tensor, name: str) -> tuple[Tensor, str]:
    """A label twice in one operand: its diagonal, as a last dimension."""
    for c in sorted(set(name)):
        while name.count(c) > 1:
            i = name.index(c)
            j = name.index(c, i + 1)
            x = x.diagonal(0, i, j)
            name = name[:i] + name[i + 1 : j] + name[j + 1 :] + c
    return x, name
