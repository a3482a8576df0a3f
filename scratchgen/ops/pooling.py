r"""Windows that move over an image: their largest elements, their means, and the windows themselves.

    y[n, c, i] = max_t x[n, c, s i + d t − p]                  MaxPool     x̄[j] = Σ_{i: j_i = j} ȳ[i],  j_i: where the max is
    y[n, c, i] = a_i Σ_t x[n, c, s i + t − p]                  AvgPool     x̄[s i + t − p] += a_i ȳ[i]

with stride s, padding p, dilation d; i, t run over one or two spatial dimensions. The gradient of each is linear in ȳ, and the
gradient of that is the same map of x that y is, with the j_i as they were: derivatives of any order exist.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.convolution import Size, batched, sizes
from scratchgen.ops.operands import as_tensor, floating
from scratchgen.tensors import Tensor

__all__ = ["avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d", "unfold"]


class Windows(NamedTuple):
    """How windows of one size move over an image: for each spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def counts(self, name: str, size: tuple[int, ...], ceil_mode: bool) -> tuple[int, ...]:
        """How many there are. Raises ValueError where there are none."""
        made = []
        for n, k, s, p, d in zip(size, *self, strict=True):
            beyond = n + 2 * p - d * (k - 1) - 1
            count = (-(-beyond // s) if ceil_mode else beyond // s) + 1
            if ceil_mode and (count - 1) * s >= n + p:  # a window must start inside the input or its left padding
                count -= 1
            if count < 1:
                raise ValueError(
                    f"{name}: expected an input at least as large as the window, {d * (k - 1) + 1}, got {n} with padding {p}"
                )
            made.append(count)
        return tuple(made)


def _windows(name: str, n: int, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size) -> Windows:
    """From the arguments of a function for n dimensions. Raises ValueError where they make no sense."""
    kernel = sizes(name, kernel_size, n, "kernel_size", 1)
    step = sizes(name, stride, n, "stride", 1) if np.size(stride) and stride is not None else kernel
    around, apart = sizes(name, padding, n, "padding", 0), sizes(name, dilation, n, "dilation", 1)
    if any(2 * p > k for p, k in zip(around, kernel, strict=True)):
        raise ValueError(f"{name}: expected padding of at most half the window, {kernel}, got {around}")
    return Windows(kernel, step, around, apart)


# ---------------------------------------------------------------------------------------------------------------------
# The largest
# ---------------------------------------------------------------------------------------------------------------------


class MaxPool(Function):
    """y_i = max_t x_{s i + d t − p}, and j_i, where the first of the largest is          x̄ = MaxPoolGrad(ȳ)"""

    keeps_inputs = False

    def forward(self, x: Any, *, counts: tuple[int, ...], windows: Windows) -> tuple[Any, Any]:
        kernel, stride, padding, dilation = windows
        y, self.index = kernels.max_pool(x, counts, kernel, stride=stride, padding=padding, dilation=dilation)
        self.size = x.shape[2:]
        return y, self.index

    def backward(self, dy: Tensor, _: Any) -> Tensor:
        return MaxPoolGrad.apply(dy, index=self.index, size=self.size)


class MaxPoolGrad(Function):
    """x_j = Σ_{i: j_i = j} y_i          ȳ_i = x̄_{j_i}"""

    keeps_inputs = False

    def forward(self, y: Any, *, index: Any, size: tuple[int, ...]) -> Any:
        self.index = index
        return kernels.max_pool_backward(y, index, size)

    def backward(self, dx: Tensor) -> Tensor:
        planes, counts = self.index.shape[:2], self.index.shape[2:]
        flat = dx.reshape(*planes, math.prod(dx.shape[2:]))
        return flat.gather(2, self.index.reshape(*planes, math.prod(counts))).reshape(self.index.shape)


def _max_pool(name: str, n: int, input: Any, windows: Windows, ceil_mode: bool, return_indices: bool) -> Any:
    x, had_batch = batched(name, as_tensor(input), n)
    counts = windows.counts(name, x.shape[2:], ceil_mode)
    for m, count, k, s, p, d in zip(x.shape[2:], counts, *windows, strict=True):
        at = s * np.arange(count)[:, None] + d * np.arange(k) - p  # (windows, cells) of this dimension
        if not ((at >= 0) & (at < m)).any(-1).all():
            raise ValueError(f"{name}: expected windows that meet the input, got one whose cells all lie in the padding")
    y, index = MaxPool.apply(x, counts=counts, windows=windows)
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
    windows = _windows("max_pool1d", 1, kernel_size, stride, padding, dilation)
    return _max_pool("max_pool1d", 1, input, windows, ceil_mode, return_indices)


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
    windows = _windows("max_pool2d", 2, kernel_size, stride, padding, dilation)
    return _max_pool("max_pool2d", 2, input, windows, ceil_mode, return_indices)


# ---------------------------------------------------------------------------------------------------------------------
# The mean
# ---------------------------------------------------------------------------------------------------------------------


class AvgPool(Function):
    """y_i = a_i Σ_t x_{s i + t − p}          x̄ = AvgPoolGrad(ȳ);  a: (*counts)"""

    keeps_inputs = False

    def forward(self, x: Any, *, share: Any, windows: Windows) -> Any:
        self.share, self.windows, self.size = share, windows, x.shape[2:]
        return kernels.avg_pool(x, share, windows.kernel, stride=windows.stride, padding=windows.padding)

    def backward(self, dy: Tensor) -> Tensor:
        return AvgPoolGrad.apply(dy, share=self.share, windows=self.windows, size=self.size)


class AvgPoolGrad(Function):
    """x_{s i + t − p} += a_i y_i          ȳ = AvgPool(x̄)"""

    keeps_inputs = False

    def forward(self, y: Any, *, share: Any, windows: Windows, size: tuple[int, ...]) -> Any:
        self.share, self.windows = share, windows
        return kernels.avg_pool_backward(y, share, size, windows.kernel, stride=windows.stride, padding=windows.padding)

    def backward(self, dx: Tensor) -> Tensor:
        return AvgPool.apply(dx, share=self.share, windows=self.windows)


def _avg_pool(
    name: str, n: int, input: Any, windows: Windows, ceil_mode: bool, count_include_pad: bool, divisor: int | None
) -> Tensor:
    x, had_batch = batched(name, floating(name, input), n)
    if divisor is not None and (not isinstance(divisor, int) or divisor == 0):
        raise ValueError(f"{name}: expected divisor_override to be a whole number other than 0, got {divisor!r}")
    counts = windows.counts(name, x.shape[2:], ceil_mode)
    cells = np.ones((), np.int64)  # of each window
    for c, m, k, s, p in zip(counts, x.shape[2:], windows.kernel, windows.stride, windows.padding, strict=True):
        start = s * np.arange(c) - p
        if count_include_pad:  # cells of the padding count, cells beyond it do not
            cells = cells[..., None] * (np.minimum(start + k, m + p) - start)
        else:
            cells = cells[..., None] * (np.minimum(start + k, m) - np.maximum(start, 0))
    share = 1 / (cells if divisor is None else np.full(counts, divisor))
    y = AvgPool.apply(x, share=devices.beside(share, x.data), windows=windows)
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
    windows = _windows("avg_pool1d", 1, kernel_size, stride, padding, 1)
    return _avg_pool("avg_pool1d", 1, input, windows, ceil_mode, count_include_pad, None)


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
    windows = _windows("avg_pool2d", 2, kernel_size, stride, padding, 1)
    return _avg_pool("avg_pool2d", 2, input, windows, ceil_mode, count_include_pad, divisor_override)


# ---------------------------------------------------------------------------------------------------------------------
# The windows themselves
# ---------------------------------------------------------------------------------------------------------------------


def unfold(input: Any, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1) -> Tensor:
    """The windows of an image as columns: (N, C, H, W) → (N, C·Kh·Kw, windows). Zeros stand outside the image."""
    x, had_batch = batched("unfold", as_tensor(input), 2)
    kernel, dilation = sizes("unfold", kernel_size, 2, "kernel_size", 1), sizes("unfold", dilation, 2, "dilation", 1)
    padding, stride = sizes("unfold", padding, 2, "padding", 0), sizes("unfold", stride, 2, "stride", 1)
    x = x.pad((padding[1], padding[1], padding[0], padding[0]))
    counts = Windows(kernel, stride, (0, 0), dilation).counts("unfold", x.shape[2:], False)
    rows, columns = (
        d * np.arange(k)[:, None] + s * np.arange(c) for d, k, s, c in zip(dilation, kernel, stride, counts, strict=True)
    )  # (taps, windows) of each dimension
    pixels = rows[:, None, :, None] * x.shape[3] + columns[None, :, None, :]
    flat = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
    y = flat[:, :, pixels].reshape(x.shape[0], x.shape[1] * kernel[0] * kernel[1], counts[0] * counts[1])
    return y if had_batch else y.squeeze(0)
