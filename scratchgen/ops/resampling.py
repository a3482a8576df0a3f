r"""Pictures and sequences at another size. Each element is made from its neighbours alone, and no matrix is formed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.choice import where
from scratchgen.ops.convolution import Size, sizes
from scratchgen.ops.operands import as_tensor, floating
from scratchgen.tensors import Tensor, constant

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by spatial dimensions
SHARPNESS = -0.75  # a of the cubic kernel


def interpolate(
    input: Any,
    size: Size | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Tensor:
    r"""Sequences (N, C, L), images (N, C, H, W) or volumes (N, C, D, H, W) at another size: n → m along each dimension.

    Sizes m are `size`, or ⌊n · `scale_factor`⌋. The scale s is `scale_factor`, or, where only the size is given or
    `recompute_scale_factor` is True, m / n.

        "nearest"           y_i = x_⌊i/s⌋
        "nearest-exact"     y_i = x_⌊(i + ½)/s⌋
        "linear"            y_i = Σ_j k(u_i − j) x_j,   k(v) = 1 − |v|, 0 beyond 1         sequences
        "bilinear"          the same along both dimensions                               images
        "trilinear"         and along all three                                          volumes
        "bicubic"           k(v) = (a + 2)|v|³ − (a + 3)|v|² + 1                for |v| ≤ 1,      images
                                   a|v|³ − 5a|v|² + 8a|v| − 4a                 for 1 ≤ |v| < 2,  a = −¾
        "area"              the mean of each of m cells, as `adaptive_avg_pool2d`

    u_i = (i + ½)/s − ½, or i (n − 1)/(m − 1) with `align_corners`. An x_j outside of x is the nearest inside.
    Raises ValueError for a mode that does not go with the shape, and for align_corners with a mode that has no u_i.
    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", equation 4 for a; PyTorch's coordinates.
    """
    x = as_tensor(input) if mode.startswith("nearest") else floating("interpolate", input)
    n = x.ndim - 2
    if n not in LINEAR:
        raise ValueError(f"interpolate: expected an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W), got {x.shape}")
    between = (LINEAR[n], "bicubic") if n == 2 else (LINEAR[n],)
    if mode not in ("nearest", "nearest-exact", "area", *between):
        modes = ", ".join(map(repr, ("nearest", "nearest-exact", *between)))
        raise ValueError(f"interpolate: expected mode {modes} or 'area' for shape {x.shape}, got {mode!r}")
    if align_corners and mode not in between:
        raise ValueError(f"interpolate: align_corners goes with {' and '.join(map(repr, between))}, not with {mode!r}")
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
    if mode.startswith("nearest"):
        shift = 0.5 if mode == "nearest-exact" else 0.0
        return nearest(x, *[_nearest(*sizes_, shift, x.dtype) for sizes_ in zip(x.shape[2:], out, scales, strict=True)])
    for dim, (m, s) in enumerate(zip(out, scales, strict=True), start=2):
        if mode == "area":
            x = _pooled(x, dim, m)
        else:
            x = _weighted(x, dim, *(_cubic if mode == "bicubic" else _linear)(x.shape[dim], m, s, bool(align_corners)))
    return x


def _nearest(n: int, m: int, scale: float | None, shift: float, dtype: np.dtype) -> np.ndarray:
    """⌊(i + shift)/s⌋ for i < m, indices in a length n.     (m)"""
    if scale is not None and scale == int(scale) and not shift:
        return np.arange(m) // int(scale)
    step = np.asarray(n / m if scale is None else 1 / scale, np.float64 if dtype == np.float64 else np.float32)
    at = np.floor((np.arange(m, dtype=step.dtype) + step.dtype.type(shift)) * step)  # rounded as in PyTorch, which may decide
    return at.astype(np.int64).clip(0, n - 1)


def _coordinates(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """u_i for i < m.     (m)"""
    if align_corners:
        return np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0)
    return (np.arange(m) + 0.5) * (n / m if scale is None else 1 / scale) - 0.5


def _linear(n: int, m: int, scale: float | None, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """The two neighbours of u_i, held between 0 and n − 1, and their weights.     (2, m), (2, m)"""
    at = np.arange(m) if m == n else _coordinates(n, m, scale, align_corners).clip(0, n - 1)
    low = np.floor(at).astype(np.int64)
    t = at - low
    return np.stack([low, np.minimum(low + 1, n - 1)]), np.stack([1 - t, t])


def _cubic(n: int, m: int, scale: float | None, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """The four neighbours of u_i and their weights.     (4, m), (4, m)"""
    at, a = _coordinates(n, m, scale, align_corners), SHARPNESS
    neighbours = np.floor(at).astype(np.int64) + np.arange(-1, 3)[:, None]
    v = np.abs(at - neighbours)
    near, far = ((a + 2) * v - (a + 3)) * v * v + 1, ((v - 5) * v + 8) * a * v - 4 * a
    return neighbours.clip(0, n - 1), np.where(v <= 1, near, far)


def _weighted(x: Tensor, dim: int, neighbours: np.ndarray, weights: np.ndarray) -> Tensor:
    """y_i = Σ_k weights_ki x_{neighbours_ki} along `dim`. Where a weight is 0, its neighbour, which may be NaN, is not read."""
    total, rows = None, x.movedim(dim, 0)
    for index, weight in zip(neighbours, weights.astype(x.dtype), strict=True):
        weight = weight.reshape(-1, *[1] * (x.ndim - 1))
        index, factor, none = (devices.beside(a, x.data) for a in (index, weight, weight == 0))
        neighbour = rows[index]
        if not weight.all():
            neighbour = where(constant(none), 0.0, neighbour)
        term = neighbour * constant(factor)
        total = term if total is None else total + term
    return total.movedim(0, dim)


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


# ---------------------------------------------------------------------------------------------------------------------
# Channels and pixels
# ---------------------------------------------------------------------------------------------------------------------


class PixelShuffle(Function):
    """y[n, c, h r + a, w r + b] = x[n, (c, a, b), h, w]          x̄ = the inverse, of ȳ          (N, C r², H, W)"""

    keeps_inputs = False

    def forward(self, x: Any, *, r: int) -> Any:
        self.r = r
        n, c, h, w = x.shape
        fine, parts = np.empty_like(x, shape=(n, c // (r * r), h, r, w, r)), x.reshape(n, c // (r * r), r, r, h, w)
        for a, b in np.ndindex(r, r):  # lines of w pixels, which one permutation of all would take pixel by pixel
            fine[:, :, :, a, :, b] = parts[:, :, a, b]
        return fine.reshape(n, c // (r * r), h * r, w * r)

    def backward(self, dy: Tensor) -> Tensor:
        return pixel_unshuffle(dy, self.r)


def pixel_shuffle(input: Any, upscale_factor: int) -> Tensor:
    """(…, C r², H, W) → (…, C, H r, W r): channels become a finer grid.  Shi et al. 2016, arXiv:1609.05158."""
    x, r = as_tensor(input), upscale_factor
    if x.ndim < 3 or r < 1 or x.shape[-3] % (r * r):
        raise ValueError(f"pixel_shuffle: expected an input (…, C · {r}², H, W), got {x.shape}")
    *lead, c, h, w = x.shape
    y = PixelShuffle.apply(x.reshape(math.prod(lead), c, h, w), r=r)
    return y.reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Any, downscale_factor: int) -> Tensor:
    """(…, C, H r, W r) → (…, C r², H, W): the inverse of `pixel_shuffle`."""
    x, r = as_tensor(input), downscale_factor
    if x.ndim < 3 or r < 1 or x.shape[-1] % r or x.shape[-2] % r:
        raise ValueError(f"pixel_unshuffle: expected an input (…, C, H · {r}, W · {r}), got {x.shape}")
    *lead, c, h, w = x.shape
    x = x.reshape(math.prod(lead), c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4)  # (N, C, r, r, H, W)
    return x.reshape(*lead, c * r * r, h // r, w // r)


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


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
