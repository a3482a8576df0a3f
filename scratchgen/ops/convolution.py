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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.operands import as_tensor, floating, operands
from scratchgen.tensors import Tensor, constant

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "max_pool1d",
    "max_pool2d",
    "unfold",
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
    """y = x ⋆ w              x̄ = w ⋆ᵀ ȳ,  w̄ = ConvolveWeight(x, ȳ)      (N, C, …), (O, C/groups, …) → (N, O, …)"""

    def forward(self, x: Any, w: Any, *, geometry: Geometry) -> Any:
        self.geometry = geometry
        return kernels.conv(x, w, **vars(geometry))

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = self.inputs
        needs_x, needs_w = self.needs_input_grad
        dx = ConvolveTransposed.apply(dy, w, size=x.shape[2:], geometry=self.geometry) if needs_x else None
        dw = ConvolveWeight.apply(x, dy, size=w.shape[2:], geometry=self.geometry) if needs_w else None
        return dx, dw


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
    y = Convolve.apply(x, w, geometry=Geometry(stride, padding, dilation, groups))
    if b is not None:
        y = y + b.reshape((-1,) + (1,) * n)
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


# ---------------------------------------------------------------------------------------------------------------------
# Windows: pooling and unfolding
# ---------------------------------------------------------------------------------------------------------------------


def _window_count(name: str, n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    room = n + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= n + padding:  # a window must start inside the input or its left padding
        count -= 1
    if count < 1:
        raise ValueError(
            f"{name}: expected an input at least as large as the window, {dilation * (kernel - 1) + 1}, "
            f"got {n} with padding {padding}"
        )
    return count


def _window_places(
    name: str,
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> tuple[tuple[int, ...], np.ndarray]:
    """How many windows there are, and the flat place of each of their cells in the image: (windows, cells); −1 outside."""
    counts = tuple(
        _window_count(name, *sizes_, ceil_mode) for sizes_ in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    places = np.zeros((1, 1), np.int64)
    for n, count, k, s, p, d in zip(x.shape[2:], counts, kernel, stride, padding, dilation, strict=True):
        at = s * np.arange(count)[:, None] + d * np.arange(k) - p  # (windows, cells) of this dimension
        inside = (at >= 0) & (at < n)
        flat = places[:, None, :, None] * n + at[None, :, None, :]
        flat = np.where((places >= 0)[:, None, :, None] & inside[None, :, None, :], flat, -1)
        places = flat.reshape(places.shape[0] * count, places.shape[1] * k)
    return counts, places


def _max_pool(
    name: str,
    n: int,
    input: Any,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    x, had_batch = batched(name, as_tensor(input), n)
    kernel = sizes(name, kernel_size, n, "kernel_size", 1)
    stride = sizes(name, stride, n, "stride", 1) if np.size(stride) and stride is not None else kernel
    padding, dilation = sizes(name, padding, n, "padding", 0), sizes(name, dilation, n, "dilation", 1)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"{name}: expected padding of at most half the window, {kernel}, got {padding}")
    counts, places = _window_places(name, x, kernel, stride, padding, dilation, ceil_mode)
    flat = x.reshape(x.shape[:2] + (math.prod(x.shape[2:]),))
    windows, inside = np.arange(len(places)), places >= 0
    first = places[windows, inside.argmax(-1)]
    if first.min() < 0:
        raise ValueError(f"{name}: expected windows that meet the input, got one whose cells all lie in the padding")
    places = np.where(inside, places, first[:, None])  # a cell outside stands for the first inside: the maximum stays
    windows, places = (devices.beside(i, x.data) for i in (windows, places))
    index = places[windows, flat.data[:, :, places].argmax(-1)]  # (N, C, windows): the first of equals
    y = flat.gather(2, index).reshape(x.shape[:2] + counts)
    index = constant(index.reshape(y.shape))
    if not had_batch:
        y, index = y.squeeze(0), index.squeeze(0)
    return (y, index) if return_indices else y


def max_pool1d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """y[i] = max_t x[s i + d t − p]; the gradient goes to the first largest. x: (N, C, L) → (N, C, L')."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """y = the largest value of each window; the gradient goes to the first largest. x: (N, C, H, W) → (N, C, H', W')."""
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _avg_pool(
    name: str,
    n: int,
    input: Any,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    x, had_batch = batched(name, floating(name, input), n)
    kernel = sizes(name, kernel_size, n, "kernel_size", 1)
    stride = sizes(name, stride, n, "stride", 1) if np.size(stride) and stride is not None else kernel
    padding = sizes(name, padding, n, "padding", 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"{name}: expected padding of at most half the window, {kernel}, got {padding}")
    if divisor is not None and (not isinstance(divisor, int) or divisor == 0):
        raise ValueError(f"{name}: expected divisor_override to be a whole number other than 0, got {divisor!r}")
    spans = list(zip(x.shape[2:], kernel, stride, padding, strict=True))
    counts = tuple(_window_count(name, m, k, s, p, 1, ceil_mode) for m, k, s, p in spans)
    beyond = [max(0, (c - 1) * s + k - m - 2 * p) for c, (m, k, s, p) in zip(counts, spans, strict=True)]  # of ceil_mode
    if any(beyond):
        x = x.pad([cell for more in reversed(beyond) for cell in (0, more)])
    channels = x.reshape((x.shape[0] * x.shape[1], 1) + x.shape[2:])
    total = Convolve.apply(
        channels, constant(np.ones_like(x.data, shape=(1, 1) + kernel)), geometry=Geometry(stride, padding, (1,) * n, 1)
    )
    cells = np.ones((), np.int64)  # of each window
    for c, (m, k, s, p) in zip(counts, spans, strict=True):
        start = s * np.arange(c) - p
        if count_include_pad:  # cells of the padding count, cells beyond it do not
            cells = cells[..., None] * (np.minimum(start + k, m + p) - start)
        else:
            cells = cells[..., None] * (np.minimum(start + k, m) - np.maximum(start, 0))
    share = (1 / (cells if divisor is None else np.full(counts, divisor))).astype(x.dtype)
    y = total.reshape(x.shape[:2] + counts) * constant(devices.beside(share, x.data))
    return y if had_batch else y.squeeze(0)


def avg_pool1d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """y[i] = mean_t x[s i + t − p]. x: (N, C, L) → (N, C, L')."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """y = the mean of each window; padding counts as zeros unless count_include_pad is False.

    x: (N, C, H, W) → (N, C, H', W'). `divisor_override` divides the sum instead of the number of cells.
    """
    return _avg_pool("avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def unfold(input: Any, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1) -> Tensor:
    """The windows of an image as columns: (N, C, H, W) → (N, C·Kh·Kw, windows). Zeros stand outside the image."""
    x, had_batch = batched("unfold", as_tensor(input), 2)
    kernel, dilation = sizes("unfold", kernel_size, 2, "kernel_size", 1), sizes("unfold", dilation, 2, "dilation", 1)
    padding, stride = sizes("unfold", padding, 2, "padding", 0), sizes("unfold", stride, 2, "stride", 1)
    x = x.pad((padding[1], padding[1], padding[0], padding[0]))
    _, places = _window_places("unfold", x, kernel, stride, (0, 0), dilation, False)
    flat = x.reshape(x.shape[:2] + (math.prod(x.shape[2:]),))
    y = flat[:, :, places.T].reshape(x.shape[0], x.shape[1] * places.shape[1], places.shape[0])
    return y if had_batch else y.squeeze(0)


# ---------------------------------------------------------------------------------------------------------------------
# Nearest neighbours
# ---------------------------------------------------------------------------------------------------------------------


class Nearest(Function):
    """y[…, i, j] = x[…, a_i, b_j]         x̄ = NearestGrad(ȳ)          (N, C, H, W) → (N, C, P, Q);  a, b: P, Q indices"""

    keeps_inputs = False

    def forward(self, x: Any, *, rows: np.ndarray, columns: np.ndarray) -> Any:
        self.rows, self.columns, self.size = rows, columns, x.shape[-2:]
        return kernels.nearest(x, rows, columns)

    def backward(self, dy: Tensor) -> Tensor:
        return NearestGrad.apply(dy, rows=self.rows, columns=self.columns, size=self.size)


class NearestGrad(Function):
    """x[…, k, l] = Σ_{i: a_i = k} Σ_{j: b_j = l} y[…, i, j]         ȳ = Nearest(x̄)"""

    keeps_inputs = False

    def forward(self, y: Any, *, rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> Any:
        self.rows, self.columns = rows, columns
        return kernels.nearest_backward(y, rows, columns, size)

    def backward(self, dx: Tensor) -> Tensor:
        return Nearest.apply(dx, rows=self.rows, columns=self.columns)


def nearest(input: Tensor, *indices: np.ndarray) -> Tensor:
    """The node behind `functional.interpolate`: for each spatial dimension, the indices of x that y takes, not falling."""
    if len(indices) == 1:  # a sequence is an image of height 1
        return nearest(input.unsqueeze(2), np.zeros(1, np.int64), *indices).squeeze(2)
    if len(indices) == 3:  # a volume is an image for each of its planes, and then one with these as rows
        n, c, depth, h, w = input.shape
        planes = nearest(input.reshape(n, c * depth, h, w), *indices[1:])
        h, w = planes.shape[2:]
        y = nearest(planes.reshape(n, c, depth, h * w), indices[0], np.arange(h * w))
        return y.reshape(n, c, len(indices[0]), h, w)
    rows, columns = (devices.beside(i, input.data) for i in indices)
    return Nearest.apply(input, rows=rows, columns=columns)
