r"""Normalisation: y = (x − μ) / √(σ² + ε) ⊙ weight + bias, the layers differing in what μ and σ² are taken over.

x: (N, C, H, W)      batch norm         instance norm      layer norm              group norm
mean over            N, H, W            H, W               the last dimensions     H, W and a group of C
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchgen import functional as F
from scratchgen.nn import init
from scratchgen.nn.module import Module, blank, number, whole
from scratchgen.tensors import Tensor


class _ChannelNorm(Module):
    """What batch and instance norm share: one weight, bias and running mean and variance for each channel."""

    shapes: dict[int, str]  # dimensions of an input that is accepted -> its shape, {} being the channels

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        bias: bool,
        dtype: Any,
    ):
        super().__init__()
        self.num_features = whole(self, "num_features", num_features)
        self.eps = number(self, "eps", eps, 0, math.inf)
        self.momentum = momentum if momentum is None else number(self, "momentum", momentum, 0, 1)
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = blank(self, (num_features,), dtype) if affine else None
        self.bias = blank(self, (num_features,), dtype) if affine and bias else None
        dtype = np.dtype(np.float32 if dtype is None else dtype)
        self.register_buffer("running_mean", Tensor(np.zeros(num_features, dtype)) if track_running_stats else None)
        self.register_buffer("running_var", Tensor(np.ones(num_features, dtype)) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", Tensor(np.array(0, np.int64)) if track_running_stats else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the batches that were seen."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """weight = 1, bias = 0, and no batches seen"""
        self.reset_running_stats()
        _ones_and_zeros(self.weight, self.bias)

    def _check(self, input: Tensor) -> None:
        channel = 0 if input.ndim == 3 and self.shapes.get(3, "").startswith("({}") else 1
        if input.ndim not in self.shapes or input.shape[channel] != self.num_features:
            shapes = " or ".join(shape.format(self.num_features) for shape in self.shapes.values())
            raise ValueError(f"{type(self).__name__}: expected an input of shape {shapes}, got {input.shape}")

    def extra_repr(self) -> str:
        return f"{self.num_features}, {self._shown('eps', 'momentum', 'affine', 'track_running_stats')}"


class _BatchNorm(_ChannelNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: Any = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        by_batch = self.training or not self.track_running_stats
        momentum, batches = self.momentum, None
        if self.training and self.track_running_stats:
            batches = self.num_batches_tracked.data + 1
        if momentum is None:  # the plain mean over all batches: m_k = m_{k−1} + (μ_k − m_{k−1}) / k
            momentum = 0.0 if batches is None else 1 / int(batches)
        y = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, by_batch, momentum, self.eps)
        if batches is not None:
            self.num_batches_tracked.copy_(batches)
        return y


class BatchNorm1d(_BatchNorm):
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, for each channel over the batch and all positions

    Training: μ and σ² of the batch (σ² divides by n), and running ones that move towards them,
    m ← (1 − momentum) m + momentum μ, the variance in its unbiased form (n − 1); `momentum` None takes the plain mean
    over all batches.  Evaluation: the running ones, or the batch's without `track_running_stats`.
    x: (N, C) or (N, C, L).  Raises ValueError for other shapes, and for one value a channel when training.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    shapes = {2: "(N, {})", 3: "(N, {}, L)"}


class BatchNorm2d(_BatchNorm):
    """BatchNorm1d for images: x (N, C, H, W).  Raises ValueError for other shapes."""

    shapes = {4: "(N, {}, H, W)"}


class InstanceNorm2d(_ChannelNorm):
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, for each channel of each sample over its positions.

    With `track_running_stats`, evaluation uses running ones as batch norm does.
    x: (N, C, H, W) or (C, H, W).  Raises ValueError for other shapes.
    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """

    shapes = {4: "(N, {}, H, W)", 3: "({}, H, W)"}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        dtype: Any = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        x = input if input.ndim == 4 else input.unsqueeze(0)
        by_sample = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        y = F.instance_norm(x, self.running_mean, self.running_var, self.weight, self.bias, by_sample, momentum, self.eps)
        return y if input.ndim == 4 else y.squeeze(0)


class LayerNorm(Module):
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, μ and σ² over the last dimensions, `normalized_shape`.

    x: (…, *normalized_shape);  weight, bias: normalized_shape.  Raises ValueError where x does not end in that shape.
    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = None,
    ):
        super().__init__()
        self.normalized_shape = _lengths(self, normalized_shape)
        self.eps = number(self, "eps", eps, 0, math.inf)
        self.elementwise_affine = elementwise_affine
        self.weight = blank(self, self.normalized_shape, dtype) if elementwise_affine else None
        self.bias = blank(self, self.normalized_shape, dtype) if elementwise_affine and bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight = 1, bias = 0"""
        _ones_and_zeros(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, {self._shown('eps', 'elementwise_affine')}"


class RMSNorm(Module):
    """y = x / √(mean(x²) + ε) ⊙ weight over the last dimensions, `normalized_shape`

    x: (…, *normalized_shape);  weight: normalized_shape;  ε: the dtype's epsilon unless given.
    Raises ValueError where x does not end in that shape.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = None,
    ):
        super().__init__()
        self.normalized_shape = _lengths(self, normalized_shape)
        self.eps = eps if eps is None else number(self, "eps", eps, 0, math.inf)
        self.elementwise_affine = elementwise_affine
        self.weight = blank(self, self.normalized_shape, dtype) if elementwise_affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight = 1"""
        _ones_and_zeros(self.weight, None)

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, {self._shown('eps', 'elementwise_affine')}"


class GroupNorm(Module):
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, μ and σ² over the positions of each sample's group of channels.

    x: (N, C, …);  weight, bias: (C).  Raises ValueError where the groups do not divide the channels, or x has others.
    Source: Wu & He 2018, arXiv:1803.08494, eq. 7.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: Any = None,
    ):
        super().__init__()
        self.num_groups, self.num_channels = (
            whole(self, "num_groups", num_groups),
            whole(self, "num_channels", num_channels),
        )
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: expected num_groups to divide {num_channels} channels, got {num_groups}")
        self.eps = number(self, "eps", eps, 0, math.inf)
        self.affine = affine
        self.weight = blank(self, (num_channels,), dtype) if affine else None
        self.bias = blank(self, (num_channels,), dtype) if affine and bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight = 1, bias = 0"""
        _ones_and_zeros(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim < 2 or input.shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm: expected an input of shape (N, {self.num_channels}, …), got {input.shape}")
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, {self._shown('eps', 'affine')}"


def _lengths(owner: Module, shape: int | Sequence[int]) -> tuple[int, ...]:
    lengths = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    if not lengths:
        raise ValueError(f"{type(owner).__name__}: expected normalized_shape to have at least one length, got {shape!r}")
    return tuple(whole(owner, "normalized_shape", n) for n in lengths)


def _ones_and_zeros(weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None:
        init.ones_(weight)
    if bias is not None:
        init.zeros_(bias)
