r"""Pictures and sequences at another size. Each element is made from its neighbours alone, and no matrix is formed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.choice import where
from scratchgen.ops.convolution import Size, nearest, sizes
from scratchgen.ops.operands import as_tensor, floating
from scratchgen.tensors import Tensor, constant


def interpolate(
    input: Any,
    size: Size | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Tensor:
    """Images (N, C, H, W), or sequences (N, C, L), at another size: `size`, or `scale_factor` times the old one.

    The scale s is `scale_factor`, or, where only the size is given or `recompute_scale_factor` is True, the ratio of sizes.

    "nearest": y_i = x_⌊i/s⌋.  "linear" / "bilinear": along each dimension y_i = (1 − t) x_l + t x_{l+1}, l + t being
    (i + ½)/s − ½, held between 0 and n − 1 (i (n−1)/(m−1) with `align_corners`).
    """
    x = as_tensor(input) if mode == "nearest" else floating("interpolate", input)
    n = x.ndim - 2
    if n not in (1, 2):
        raise ValueError(f"interpolate: expected an input of shape (N, C, L) or (N, C, H, W), got {x.shape}")
    if mode not in ("nearest", ("linear", "bilinear")[n - 1]):
        raise ValueError(
            f"interpolate: expected mode 'nearest' or {('linear', 'bilinear')[n - 1]!r} for shape {x.shape}, got {mode!r}"
        )
    if align_corners and mode == "nearest":
        raise ValueError("interpolate: align_corners goes with linear modes, not with 'nearest'")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: expected size or scale_factor, and not both")
    if size is not None and recompute_scale_factor:
        raise ValueError("interpolate: recompute_scale_factor goes with scale_factor, not with size")
    if size is not None:
        out, scales = sizes("interpolate", size, n, "size", 1), (None,) * n
    else:
        scales = (scale_factor,) * n if isinstance(scale_factor, int | float) else tuple(scale_factor)
        if len(scales) != n or any(s <= 0 for s in scales):
            raise ValueError(f"interpolate: expected a scale_factor above 0, or {n} of them, got {scale_factor!r}")
        out = tuple(math.floor(m * s) for m, s in zip(x.shape[2:], scales, strict=True))
        scales = (None,) * n if recompute_scale_factor else scales
    if 0 in out or 0 in x.shape[2:]:
        raise ValueError(f"interpolate: expected lengths of at least 1, got {x.shape[2:]} to become {out}")
    if mode == "nearest":
        places = [_nearest(n, m, s, x.dtype) for n, m, s in zip(x.shape[2:], out, scales, strict=True)]
        return nearest(x, *places)
    for d, (m, s) in enumerate(zip(out, scales, strict=True), start=2):
        x = _resized(x, d, m, s, bool(align_corners))
    return x


def _nearest(n: int, m: int, scale: float | None, dtype: np.dtype) -> np.ndarray:
    """⌊i/s⌋ for i < m, places in a length n.     (m)"""
    if scale is not None and scale == int(scale):
        return np.arange(m) // int(scale)
    step = np.asarray(n / m if scale is None else 1 / scale, np.float64 if dtype == np.float64 else np.float32)
    at = np.floor(np.arange(m, dtype=step.dtype) * step).astype(np.int64)  # rounded as in PyTorch, which may decide
    return at.clip(0, n - 1)


def _resized(x: Tensor, dim: int, m: int, scale: float | None, align_corners: bool) -> Tensor:
    """One dimension of x brought to length m by linear interpolation: y_i = (1 − t_i) x_{l_i} + t_i x_{l_i + 1}."""
    n = x.shape[dim]
    if m == n:
        return x
    if align_corners:
        at = np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0)
    else:
        at = (np.arange(m) + 0.5) * (n / m if scale is None else 1 / scale) - 0.5
    at = at.clip(0, n - 1)
    low = np.floor(at).astype(np.int64)
    t = (at - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    alone = t == 0  # then the second neighbour, which may be NaN or not there, is not read
    rows = x.movedim(dim, 0)
    low, t, alone, high = (devices.beside(a, x.data) for a in (low, t, alone, (low + 1).clip(0, n - 1)))
    second = rows[high] * constant(t)
    y = rows[low] * constant(1 - t) + where(constant(alone), 0.0, second)
    return y.movedim(0, dim)


def pixel_shuffle(input: Any, upscale_factor: int) -> Tensor:
    """(…, C r², H, W) → (…, C, H r, W r): channels become a finer grid.  Shi et al. 2016, arXiv:1609.05158."""
    x, r = as_tensor(input), upscale_factor
    if x.ndim < 3 or r < 1 or x.shape[-3] % (r * r):
        raise ValueError(f"pixel_shuffle: expected an input (…, C · {r}², H, W), got {x.shape}")
    *lead, c, h, w = x.shape
    x = x.reshape(math.prod(lead), c // (r * r), r, r, h, w).permute(0, 1, 4, 2, 5, 3)  # (N, C, H, r, W, r)
    return x.reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Any, downscale_factor: int) -> Tensor:
    """(…, C, H r, W r) → (…, C r², H, W): the inverse of `pixel_shuffle`."""
    x, r = as_tensor(input), downscale_factor
    if x.ndim < 3 or r < 1 or x.shape[-1] % r or x.shape[-2] % r:
        raise ValueError(f"pixel_unshuffle: expected an input (…, C, H · {r}, W · {r}), got {x.shape}")
    *lead, c, h, w = x.shape
    x = x.reshape(math.prod(lead), c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4)  # (N, C, r, r, H, W)
    return x.reshape(*lead, c * r * r, h // r, w // r)


def adaptive_avg_pool2d(input: Any, output_size: int | None | Sequence[int | None]) -> Tensor:
    """y = the mean of each of output_size cells, cell i reaching from ⌊i n/m⌋ to ⌈(i + 1) n/m⌉.

    x: (N, C, H, W) or (C, H, W) → (N, C, *output_size). A size of None leaves the length as it is.
    """
    x = floating("adaptive_avg_pool2d", input)
    if x.ndim not in (3, 4):
        raise ValueError(f"adaptive_avg_pool2d: expected an input of shape (N, C, H, W), got {x.shape}")
    given = (output_size,) * 2 if isinstance(output_size, int | None) else tuple(output_size)
    if len(given) == 2:
        given = tuple([n if m is None else m for n, m in zip(x.shape[-2:], given, strict=True)])
    for dim, m in zip((-2, -1), sizes("adaptive_avg_pool2d", given, 2, "output_size", 1), strict=True):
        x = _pooled(x, dim % x.ndim, m)
    return x


def _pooled(x: Tensor, dim: int, m: int) -> Tensor:
    n = x.shape[dim]
    if n % m == 0:  # equal cells, side by side
        return x if n == m else x.reshape(*x.shape[:dim], m, n // m, *x.shape[dim + 1 :]).mean(dim + 1)
    return Cells.apply(x, dim=dim, m=m)


class Cells(Function):
    """y_i = (1/n_i) Σ_{j ∈ cell i} x_j along `dim`, the cells of `adaptive_avg_pool2d`          x̄ = CellsGrad(ȳ)"""

    keeps_inputs = False

    def forward(self, x: Any, *, dim: int, m: int) -> Any:
        self.dim, self.n = dim, x.shape[dim]
        y = np.empty_like(x, shape=(*x.shape[:dim], m, *x.shape[dim + 1 :]))
        for at, cell in _cells(self.n, m, dim):
            y[at] = x[cell].mean(dim, keepdims=True)
        return y

    def backward(self, dy: Tensor) -> Tensor:
        return CellsGrad.apply(dy, dim=self.dim, n=self.n)


class CellsGrad(Function):
    """x_j = Σ_{i: j ∈ cell i} y_i / n_i along `dim`          ȳ = Cells(x̄)"""

    keeps_inputs = False

    def forward(self, y: Any, *, dim: int, n: int) -> Any:
        self.dim, self.m = dim, y.shape[dim]
        x = np.zeros_like(y, shape=(*y.shape[:dim], n, *y.shape[dim + 1 :]))
        for at, cell in _cells(n, self.m, dim):
            x[cell] += y[at] / x[cell].shape[dim]
        return x

    def backward(self, dx: Tensor) -> Tensor:
        return Cells.apply(dx, dim=self.dim, m=self.m)


def _cells(n: int, m: int, dim: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each of m cells, where it stands along `dim` among the m, and where its elements stand among the n."""
    before = (slice(None),) * dim
    for i in range(m):
        yield (*before, slice(i, i + 1)), (*before, slice(i * n // m, -(-(i + 1) * n // m)))
