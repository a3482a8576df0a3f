r"""Convolution, its transpose, and its weight gradient: three bilinear ops that are each other's gradients.

    y[n, o, i]  = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t]          Convolve         y = x ⋆ w
    x[n, c, j]  = Σ_{o, (i,t): s i + d t − p = j} y[n, o, i] w[o, c, t]   ConvolveTransposed   x = w ⋆ᵀ y
    w[o, c, t]  = Σ_{n,i} x[n, c, s i + d t − p] y[n, o, i]          ConvolveWeight

with stride s, padding p, dilation d; i, j, t run over one or two spatial dimensions. All three are what is left of the
trilinear form Σ x w y when one factor is taken away, so the gradient of each with respect to either argument is one
of the others: the family is closed, and derivatives of any order exist. `groups` splits channels into independent
convolutions. Source: Dumoulin & Visin 2016, arXiv:1603.07285.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import kernels
from scratchgen.autograd import Function
from scratchgen.ops.elementwise import added
from scratchgen.ops.operands import as_tensor, operands
from scratchgen.tensors import Tensor

__all__ = [
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
]

Size = int | Sequence[int]


@dataclass(frozen=True)
class Geometry:
    """What a convolution is besides its arrays."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Convolve(Function):
    """y = x ⋆ w + b          x̄ = w ⋆ᵀ ȳ,  w̄ = ConvolveWeight(x, ȳ),  b̄ = Σ_{n,i} ȳ        the bias b may be left out

    (N, C, …), (O, C/groups, …), (O) → (N, O, …).   One node, not three, as a sweep meets each again, and a second sweep twice.
    """

    def forward(self, x: Any, w: Any, *bias: Any, geometry: Geometry) -> Any:
        self.geometry = geometry
        y = kernels.conv(x, w, **vars(geometry))
        return added(y, bias[0].reshape((-1,) + (1,) * (y.ndim - 2))) if bias else y

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = self.inputs[:2]
        needs_x, needs_w, *needs_b = self.needs_input_grad
        dx = ConvolveTransposed.apply(dy, w, size=x.shape[2:], geometry=self.geometry) if needs_x else None
        dw = ConvolveWeight.apply(x, dy, size=w.shape[2:], geometry=self.geometry) if needs_w else None
        return dx, dw, *[dy.sum((0, *range(2, dy.ndim))) if needed else None for needed in needs_b]


class ConvolveTransposed(Function):
    """x = w ⋆ᵀ y             ȳ = x̄ ⋆ w,  w̄ = ConvolveWeight(x̄, y)       `size` is x's, which y's alone does not fix"""

    def forward(self, y: Any, w: Any, *, size: tuple[int, ...], geometry: Geometry) -> Any:
        self.geometry = geometry
        return kernels.conv_input_grad(y, w, size, **vars(geometry))

    def backward(self, dx: Tensor) -> tuple[Tensor | None, ...]:
        y, w = self.inputs
        needs_y, needs_w = self.needs_input_grad
        dy = _windows(dx, w, self.geometry, y.shape) if needs_y else None
        dw = ConvolveWeight.apply(dx, y, size=w.shape[2:], geometry=self.geometry) if needs_w else None
        return dy, dw


class ConvolveWeight(Function):
    """w = ConvolveWeight(x, y)       x̄ = w̄ ⋆ᵀ y,  ȳ = x ⋆ w̄"""

    def forward(self, x: Any, y: Any, *, size: tuple[int, ...], geometry: Geometry) -> Any:
        self.geometry = geometry
        return kernels.conv_weight_grad(x, y, size, **vars(geometry))

    def backward(self, dw: Tensor) -> tuple[Tensor | None, ...]:
        x, y = self.inputs
        needs_x, needs_y = self.needs_input_grad
        dx = ConvolveTransposed.apply(y, dw, size=x.shape[2:], geometry=self.geometry) if needs_x else None
        dy = _windows(x, dw, self.geometry, y.shape) if needs_y else None
        return dx, dy


def _windows(x: Tensor, w: Tensor, geometry: Geometry, shape: tuple[int, ...]) -> Tensor:
    """x ⋆ w, cut to `shape`: there are more windows where an output_padding of at least the stride made x larger."""
    y = Convolve.apply(x, w, geometry=geometry)
    return y if y.shape[2:] == shape[2:] else y[(slice(None), slice(None), *[slice(n) for n in shape[2:]])]


def sizes(name: str, value: Size, n: int, what: str, least: int) -> tuple[int, ...]:
    """`value` for each of n spatial dimensions; a list of one stands for all of them too."""
    given = (value,) * n if isinstance(value, int | np.integer) else tuple(value)
    given = given * n if len(given) == 1 else given
    if len(given) != n or any(not isinstance(v, int | np.integer) or v < least for v in given):
        raise ValueError(f"{name}: expected {what} to be a whole number of at least {least}, or {n} of them, got {value!r}")
    return tuple(int(v) for v in given)


def batched(name: str, x: Tensor, n: int) -> tuple[Tensor, bool]:
    """x with a batch dimension, and whether it had one."""
    if x.ndim not in (n + 1, n + 2):
        raise ValueError(
            f"{name}: expected an input of {n + 2} dimensions (N, C, …), or {n + 1} without a batch, got shape {x.shape}"
        )
    return (x, True) if x.ndim == n + 2 else (x.unsqueeze(0), False)


def _prepared(name: str, n: int, input: Any, weight: Any, bias: Any, transposed: bool, groups: int) -> tuple[Any, ...]:
    given = operands(name, *[as_tensor(t) for t in (input, weight, bias) if t is not None])
    x, had_batch = batched(name, given[0], n)
    w, b = given[1], given[2] if bias is not None else None
    if w.ndim != n + 2 or 0 in w.shape[2:]:
        raise ValueError(f"{name}: expected a weight of {n + 2} dimensions with a kernel of at least 1, got shape {w.shape}")
    if not isinstance(groups, int) or groups < 1 or w.shape[0] % groups or x.shape[1] % groups:
        raise ValueError(
            f"{name}: expected groups to divide {x.shape[1]} channels and {w.shape[0]} rows of the weight, got {groups}"
        )
    channels = w.shape[0] if transposed else w.shape[1] * groups
    if x.shape[1] != channels:
        raise ValueError(f"{name}: expected {channels} input channels for a weight of shape {w.shape}, got shape {x.shape}")
    out = w.shape[1] * groups if transposed else w.shape[0]
    if b is not None and b.shape != (out,):
        raise ValueError(f"{name}: expected a bias of shape {(out,)}, got {b.shape}")
    return x, w, b, had_batch


def _conv(
    name: str, n: int, input: Any, weight: Any, bias: Any, stride: Size, padding: Size | str, dilation: Size, groups: int
) -> Tensor:
    x, w, b, had_batch = _prepared(name, n, input, weight, bias, False, groups)
    stride, dilation = sizes(name, stride, n, "stride", 1), sizes(name, dilation, n, "dilation", 1)
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"{name}: expected padding to be numbers, 'valid' or 'same', got {padding!r}")
        if padding == "same" and stride != (1,) * n:
            raise ValueError(f"{name}: padding 'same' expects stride 1, got {stride}")
        if padding == "same" and any(r % 2 for r in reach):  # one cell more on the right, as PyTorch has it
            x = x.pad([cell for r in reversed(reach) for cell in (0, r % 2)])
        padding = tuple(r // 2 for r in reach) if padding == "same" else 0
    padding = sizes(name, padding, n, "padding", 0)
    if any(m + 2 * p < r + 1 for m, p, r in zip(x.shape[2:], padding, reach, strict=True)):
        raise ValueError(
            f"{name}: expected an input at least as large as the kernel, {tuple(r + 1 for r in reach)}, "
            f"got {x.shape[2:]} with padding {padding}"
        )
    inputs = (x, w) if b is None else (x, w, b)
    y = Convolve.apply(*inputs, geometry=Geometry(stride, padding, dilation, groups))
    return y if had_batch else y.squeeze(0)


def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1
) -> Tensor:
    """y[n, o, i] = b[o] + Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t]

    x: (N, C, L) or (C, L), w: (O, C/groups, K), b: (O) → (N, O, ⌊(L + 2p − d(K−1) − 1)/s⌋ + 1).
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1
) -> Tensor:
    """The same over two spatial dimensions: x (N, C, H, W) or (C, H, W), w (O, C/groups, Kh, Kw), b (O) → (N, O, H', W')."""
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    name: str,
    n: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Tensor:
    y, w, b, had_batch = _prepared(name, n, input, weight, bias, True, groups)
    stride, dilation = sizes(name, stride, n, "stride", 1), sizes(name, dilation, n, "dilation", 1)
    padding, extra = sizes(name, padding, n, "padding", 0), sizes(name, output_padding, n, "output_padding", 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(f"{name}: expected output_padding below stride or dilation, got {extra}")
    size = tuple(
        (m - 1) * s - 2 * p + d * (k - 1) + e + 1
        for m, s, p, d, k, e in zip(y.shape[2:], stride, padding, dilation, w.shape[2:], extra, strict=True)
    )
    if any(m < 1 for m in size):
        raise ValueError(f"{name}: expected an output of at least 1, got {size}")
    x = ConvolveTransposed.apply(y, w, size=size, geometry=Geometry(stride, padding, dilation, groups))
    if b is not None:
        x = x + b.reshape((-1,) + (1,) * n)
    return x if had_batch else x.squeeze(0)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """The transpose of conv1d: y (N, C, L), w (C, O/groups, K), b (O) → (N, O, (L−1)s − 2p + d(K−1) + output_padding + 1)."""
    return _conv_transpose("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """The transpose of conv2d: y (N, C, H, W), w (C, O/groups, Kh, Kw), b (O) → (N, O, H', W')."""
    return _conv_transpose("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation)
