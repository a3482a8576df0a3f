r"""Layers that map: linear, embedding, convolution; and those without parameters: dropout, pooling, shapes.

Weights start as PyTorch's do. For linear layers and convolutions that is U(−1/√fan_in, 1/√fan_in), fan_in being the
number of inputs that one output sums over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchgen import functional as F
from scratchgen import random
from scratchgen.nn import init
from scratchgen.nn.module import Module, blank, number, whole
from scratchgen.ops import full
from scratchgen.ops.convolution import Size, sizes
from scratchgen.tensors import Tensor

Generator = np.random.Generator


class Identity(Module):
    """y = x, whatever the arguments of the constructor."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(Module):
    """y = x Wᵀ + b,  W, b ~ U(−1/√in, 1/√in);  called with activation="relu", max(y, 0)

    x: (…, in) → (…, out);  weight: (out, in), bias: (out).  Raises ValueError where x's last length is not in_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.in_features = whole(self, "in_features", in_features, 0)
        self.out_features = whole(self, "out_features", out_features, 0)
        self.weight = blank(self, (out_features, in_features), dtype)
        self.bias = blank(self, (out_features,), dtype) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew."""
        _fan_in_uniform(self.weight, self.bias, self.in_features, generator)

    def forward(self, input: Tensor, *, activation: str | None = None) -> Tensor:
        return F.linear(input, self.weight, self.bias, activation=activation)

    def extra_repr(self) -> str:
        return f"{self._shown('in_features', 'out_features')}, bias={self.bias is not None}"


def _fan_in_uniform(weight: Tensor, bias: Tensor | None, fan_in: int, generator: Generator | None) -> None:
    """W, b ~ U(−1/√fan_in, 1/√fan_in)"""
    bound = fan_in**-0.5 if fan_in else 0.0
    init.uniform_(weight, -bound, bound, generator)
    if bias is not None:
        init.uniform_(bias, -bound, bound, generator)


class Embedding(Module):
    """y_i = weight[x_i],  weight ~ N(0, 1);  the row `padding_idx` starts as zeros and is not learned.

    x: any shape of integers → (*x.shape, n);  weight: (V, n).  Raises IndexError for an index outside 0 … V − 1.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.num_embeddings = whole(self, "num_embeddings", num_embeddings, 0)
        self.embedding_dim = whole(self, "embedding_dim", embedding_dim, 0)
        if padding_idx is not None:
            if not isinstance(padding_idx, int | np.integer) or not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(f"Embedding: expected padding_idx to be a row of {num_embeddings}, got {padding_idx!r}")
            padding_idx = int(padding_idx) % num_embeddings
        self.padding_idx = padding_idx
        self.weight = blank(self, (num_embeddings, embedding_dim), dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the table anew."""
        init.normal_(self.weight, generator=generator)
        if self.padding_idx is not None:
            with self.weight.writing() as table:
                table[self.padding_idx] = 0

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


# ---------------------------------------------------------------------------------------------------------------------
# Convolution
# ---------------------------------------------------------------------------------------------------------------------


class _Convolution(Module):
    """What convolutions and their transposes over n dimensions share: the settings and the weights."""

    n: int
    transposed = False

    def __init__(
        self, channels: tuple[int, int], geometry: dict[str, Any], bias: bool, dtype: Any, generator: Generator | None
    ):
        super().__init__()
        name = type(self).__name__
        self.in_channels, self.out_channels = (
            whole(self, "in_channels", channels[0]),
            whole(self, "out_channels", channels[1]),
        )
        self.groups = whole(self, "groups", geometry["groups"])
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{name}: expected groups to divide in_channels and out_channels, {channels}, got {self.groups}")
        self.kernel_size = sizes(name, geometry["kernel_size"], self.n, "kernel_size", 1)
        self.stride = sizes(name, geometry["stride"], self.n, "stride", 1)
        self.dilation = sizes(name, geometry["dilation"], self.n, "dilation", 1)
        padding = geometry["padding"]
        if isinstance(padding, str) and not self.transposed:
            if padding not in ("valid", "same"):
                raise ValueError(f"{name}: expected padding to be numbers, 'valid' or 'same', got {padding!r}")
            if padding == "same" and self.stride != (1,) * self.n:
                raise ValueError(f"{name}: padding 'same' expects stride 1, got {self.stride}")
            self.padding: Any = padding
        else:
            self.padding = sizes(name, padding, self.n, "padding", 0)
        modes = ("zeros",) if self.transposed else ("zeros", "reflect", "replicate", "circular")
        self.padding_mode = geometry["padding_mode"]
        if self.padding_mode not in modes:
            raise ValueError(f"{name}: expected padding_mode {' or '.join(map(repr, modes))}, got {self.padding_mode!r}")
        rows, columns = channels[::-1] if not self.transposed else channels
        self.weight = blank(self, (rows, columns // self.groups, *self.kernel_size), dtype)
        self.bias = blank(self, (self.out_channels,), dtype) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew."""
        _fan_in_uniform(self.weight, self.bias, math.prod(self.weight.shape[1:]), generator)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, {self._shown('kernel_size', 'stride')}"
        usual = {
            "padding": (0,) * self.n,
            "output_padding": (0,) * self.n,
            "dilation": (1,) * self.n,
            "groups": 1,
            "padding_mode": "zeros",
        }
        special = [name for name, value in usual.items() if getattr(self, name, value) != value]
        return text + "".join(f", {self._shown(name)}" for name in special) + (", bias=False" if self.bias is None else "")


class _Conv(_Convolution):
    """Convolution over n dimensions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = None,
        generator: Generator | None = None,
    ):
        geometry = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": padding_mode,
        }
        super().__init__((in_channels, out_channels), geometry, bias, dtype, generator)

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            pairs = [(r // 2, r - r // 2) for r in reach] if padding == "same" else [(p, p) for p in padding]
            input = F.pad(input, [cells for pair in reversed(pairs) for cells in pair], self.padding_mode)
            padding = 0
        function = F.conv1d if self.n == 1 else F.conv2d
        return function(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_Conv):
    """y[o, i] = b[o] + Σ_{c,t} x[c, s i + d t − p] w[o, c, t]

    x: (N, in, L) or (in, L) → (N, out, ⌊(L + 2p − d(K−1) − 1)/s⌋ + 1);  weight: (out, in/groups, K), bias: (out).
    `padding` may be "same" or "valid"; `padding_mode` "reflect", "replicate", "circular" says what stands there instead
    of zeros.  Raises ValueError where x has other channels or is smaller than the kernel.
    """

    n = 1


class Conv2d(_Conv):
    """Conv1d over two dimensions: x (N, in, H, W) or (in, H, W) → (N, out, H', W');  weight: (out, in/groups, Kh, Kw).

    Source: LeCun et al. 1989, "Backpropagation applied to handwritten zip code recognition".
    """

    n = 2


class _ConvTranspose(_Convolution):
    """Transposed convolution over n dimensions."""

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        *,
        dtype: Any = None,
        generator: Generator | None = None,
    ):
        geometry = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": padding_mode,
        }
        super().__init__((in_channels, out_channels), geometry, bias, dtype, generator)
        name = type(self).__name__
        self.output_padding = sizes(name, output_padding, self.n, "output_padding", 0)
        if any(e >= max(s, d) for e, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True)):
            raise ValueError(f"{name}: expected output_padding below stride or dilation, got {self.output_padding}")

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        extra = self.output_padding if output_size is None else self._extra(input, output_size)
        function = F.conv_transpose1d if self.n == 1 else F.conv_transpose2d
        return function(input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)

    def _extra(self, input: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        """The output padding that gives `output_size`: the spatial lengths, or the whole shape."""
        wanted = tuple(output_size)[-self.n :]
        if len(output_size) not in (self.n, input.ndim) or input.ndim not in (self.n + 1, self.n + 2):
            form = f"output_size of {self.n} lengths for an input of shape {input.shape}"
            raise ValueError(f"{type(self).__name__}: expected an {form}, got {output_size}")
        settings = zip(input.shape[-self.n :], self.stride, self.padding, self.dilation, self.kernel_size, strict=True)
        least = tuple((m - 1) * s - 2 * p + d * (k - 1) + 1 for m, s, p, d, k in settings)
        if any(not low <= m < low + s for m, low, s in zip(wanted, least, self.stride, strict=True)):
            most = tuple(low + s - 1 for low, s in zip(least, self.stride, strict=True))
            raise ValueError(f"{type(self).__name__}: expected an output_size from {least} to {most}, got {wanted}")
        return tuple(m - low for m, low in zip(wanted, least, strict=True))


class ConvTranspose1d(_ConvTranspose):
    """y[o, s i + d t − p] += x[c, i] w[c, o, t], and b[o]: the transpose of Conv1d's linear map.

    x: (N, in, L) or (in, L) → (N, out, (L−1)s − 2p + d(K−1) + output_padding + 1);  weight: (in, out/groups, K).
    A stride s lets s lengths of the result have the same length before: `output_padding`, or `output_size` in the call,
    says which.  Raises ValueError where that cannot be.  Source: Dumoulin & Visin 2016, arXiv:1603.07285, chapter 4.
    """

    n = 1


class ConvTranspose2d(_ConvTranspose):
    """ConvTranspose1d over two dimensions: x (N, in, H, W) or (in, H, W) → (N, out, H', W').

    weight: (in, out/groups, Kh, Kw), bias: (out).
    """

    n = 2


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


class Dropout(Module):
    """Training: y = x ⊙ m / (1 − p), m = 0 with probability p, else 1.  Evaluation: y = x.

    So E[y] = x in both. `inplace` is accepted, and changes nothing. Raises ValueError for p outside [0, 1].
    Source: Srivastava et al. 2014, "Dropout".
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Generator | None = None):
        super().__init__()
        self.p = number(self, "p", p, 0, 1)
        self.generator = generator and random.generator(generator)

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, generator=self.generator)

    def extra_repr(self) -> str:
        return self._shown("p")


class _ChannelDropout(Dropout):
    """Dropout whose m is one for all of a channel's n dimensions."""

    n: int

    def forward(self, input: Tensor) -> Tensor:
        batched = input.ndim == self.n + 2 or self.n == 2  # PyTorch reads three dimensions of Dropout2d as N, C, L
        if input.ndim not in (self.n + 1, self.n + 2):
            name = type(self).__name__
            raise ValueError(f"{name}: expected an input of {self.n + 1} or {self.n + 2} dimensions, got shape {input.shape}")
        if not self.training or self.p == 0:
            return input
        channels = input.shape[: 1 + batched]
        ones = full(channels + (1,) * (input.ndim - len(channels)), 1.0, dtype=input.dtype, device=input.device)
        return input * F.dropout(ones, self.p, generator=self.generator)


class Dropout1d(_ChannelDropout):
    """Dropout of whole channels.  x: (N, C, L) or (C, L).  Tompson et al. 2015, arXiv:1411.4280, §3.2."""

    n = 1


class Dropout2d(_ChannelDropout):
    """Dropout of whole channels.  x: (N, C, H, W), or (N, C, L)."""

    n = 2


class Dropout3d(_ChannelDropout):
    """Dropout of whole channels.  x: (N, C, D, H, W) or (C, D, H, W)."""

    n = 3


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


class Flatten(Module):
    """Dimensions start_dim … end_dim as one: (N, C, H, W) → (N, C·H·W) by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return self._shown("start_dim", "end_dim")


class Unflatten(Module):
    """One dimension as several: Unflatten(1, (C, H, W)) maps (N, C·H·W) → (N, C, H, W); one length may be −1."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]):
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        if not -input.ndim <= self.dim < input.ndim:
            raise ValueError(f"Unflatten: expected an input with a dimension {self.dim}, got shape {input.shape}")
        d, known = self.dim % input.ndim, -math.prod(self.unflattened_size)
        n = input.shape[d]
        if -1 not in self.unflattened_size and -known != n or -1 in self.unflattened_size and (known < 1 or n % known):
            raise ValueError(
                f"Unflatten: expected dimension {self.dim} to hold {self.unflattened_size}, got shape {input.shape}"
            )
        lengths = [n // known if m == -1 else m for m in self.unflattened_size]
        return input.reshape(*input.shape[:d], *lengths, *input.shape[d + 1 :])

    def extra_repr(self) -> str:
        return self._shown("dim", "unflattened_size")


class Upsample(Module):
    """Images or sequences at another size; see `functional.interpolate`."""

    def __init__(
        self,
        size: Size | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ):
        super().__init__()
        if (size is None) == (scale_factor is None):
            raise ValueError("Upsample: expected size or scale_factor, and not both")
        if mode not in ("nearest", "linear", "bilinear", "bicubic", "trilinear"):
            raise ValueError(f"Upsample: expected mode 'nearest', 'linear', 'bilinear', 'bicubic' or 'trilinear', got {mode!r}")
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        scales = self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor
        return F.interpolate(input, self.size, *scales)

    def extra_repr(self) -> str:
        return self._shown("size" if self.scale_factor is None else "scale_factor", "mode")


class PixelShuffle(Module):
    """(…, C r², H, W) → (…, C, H r, W r): channels become a finer grid.  Shi et al. 2016, arXiv:1609.05158."""

    def __init__(self, upscale_factor: int):
        super().__init__()
        self.upscale_factor = whole(self, "upscale_factor", upscale_factor)

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(input, self.upscale_factor)

    def extra_repr(self) -> str:
        return self._shown("upscale_factor")


class PixelUnshuffle(Module):
    """(…, C, H r, W r) → (…, C r², H, W): the inverse of PixelShuffle."""

    def __init__(self, downscale_factor: int):
        super().__init__()
        self.downscale_factor = whole(self, "downscale_factor", downscale_factor)

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_unshuffle(input, self.downscale_factor)

    def extra_repr(self) -> str:
        return self._shown("downscale_factor")


# ---------------------------------------------------------------------------------------------------------------------
# Pooling
# ---------------------------------------------------------------------------------------------------------------------


class _Pool(Module):
    """A window of n dimensions, moved by `stride` (its own size unless given)."""

    n: int

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0):
        super().__init__()
        name = type(self).__name__
        self.kernel_size = sizes(name, kernel_size, self.n, "kernel_size", 1)
        self.stride = self.kernel_size if stride is None else sizes(name, stride, self.n, "stride", 1)
        self.padding = sizes(name, padding, self.n, "padding", 0)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"{name}: expected padding of at most half the window, {self.kernel_size}, got {self.padding}")

    def extra_repr(self) -> str:
        return self._shown("kernel_size", "stride", "padding")


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__(kernel_size, stride, padding)
        self.dilation = sizes(type(self).__name__, dilation, self.n, "dilation", 1)
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Tensor) -> Any:
        function = F.max_pool1d if self.n == 1 else F.max_pool2d
        return function(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)


class MaxPool1d(_MaxPool):
    """y[i] = max_t x[s i + d t − p].  x: (N, C, L) or (C, L) → (N, C, L'), and where they were, if `return_indices`."""

    n = 1


class MaxPool2d(_MaxPool):
    """y = the largest value of each window.  x: (N, C, H, W) or (C, H, W) → (N, C, H', W')."""

    n = 2


class AvgPool1d(_Pool):
    """y[i] = mean_t x[s i + t − p].  x: (N, C, L) or (C, L) → (N, C, L')."""

    n = 1

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        super().__init__(kernel_size, stride, padding)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool2d(_Pool):
    """y = the mean of each window, or sum over `divisor_override`.  x: (N, C, H, W) or (C, H, W) → (N, C, H', W')."""

    n = 2

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        super().__init__(kernel_size, stride, padding)
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(Module):
    """The means of output_size cells.  (N, C, H, W) or (C, H, W) → (N, C, *output_size)."""

    def __init__(self, output_size: int | None | Sequence[int | None]):
        super().__init__()
        lengths = (output_size,) * 2 if isinstance(output_size, int | None) else tuple(output_size)
        sizes("AdaptiveAvgPool2d", [1 if m is None else m for m in lengths], 2, "output_size", 1)
        self.output_size = lengths

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        return self._shown("output_size")
