r"""Pooling in NumPy, the largest and the mean of each window, tap by tap; and nearest neighbours.

Spatial dimensions are numbered; each has a size n, a count of windows, and for these a kernel, stride, padding and dilation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray
Sizes = tuple[int, ...]


def _windows(counts: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """For each tap its index, and the pixels of a padded image that the windows have there."""
    for index_of_tap, tap in enumerate(itertools.product(*map(range, kernel))):
        spans = zip(tap, counts, stride, dilation, strict=True)
        yield index_of_tap, (..., *[slice(d * t, d * t + (n - 1) * s + 1, s) for t, n, s, d in spans])


def _padded(x: Array, lengths: Sizes, padding: Sizes, value: Any) -> tuple[Array, tuple[Any, ...]]:
    """An image of these lengths, all of a value, and where in it an image like x stands."""
    whole = np.full_like(x, value, shape=x.shape[: -len(padding)] + lengths)
    return whole, (..., *[slice(p, p + n) for p, n in zip(padding, x.shape[-len(padding) :], strict=True)])


def _lengths(size: Sizes, counts: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Sizes:
    """Of a padded image that holds all windows, also those that ceil_mode adds."""
    spans = zip(size, counts, kernel, stride, padding, dilation, strict=True)
    return tuple(max(m + 2 * p, (n - 1) * s + d * (k - 1) + 1) for m, n, k, s, p, d in spans)


def max_pool(x: Array, counts: Sizes, kernel: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes) -> tuple[Array, Array]:
    least = -np.inf if x.dtype.kind == "f" else False if x.dtype.kind == "b" else np.iinfo(x.dtype).min
    lengths = _lengths(x.shape[2:], counts, kernel, stride, padding, dilation)
    whole, inner = _padded(x, lengths, padding, least)
    whole[inner] = x
    y = np.full_like(x, least, shape=x.shape[:2] + counts)
    chosen = np.full_like(x, -1, dtype=np.int64, shape=y.shape)  # the index of a tap
    for index_of_tap, window in _windows(counts, kernel, stride, dilation):
        v = whole[window]
        larger = ~(v <= y) & (y == y)
        y, chosen = np.where(larger, v, y), np.where(larger, index_of_tap, chosen)
    index, taps = np.zeros_like(chosen), np.zeros_like(chosen)
    for dim, (m, k, s, p, d) in enumerate(zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)):
        start = s * (np.cumsum(np.ones_like(chosen), dim + 2) - 1) - p
        first = np.maximum(0, -(start // d))  # of the taps inside: it stands for a window of nothing but the least
        later = int(np.prod(kernel[dim + 1 :]))
        tap = np.where(chosen < 0, first, chosen // later % k)
        index, taps = index * m + start + d * tap, taps * k + tap
    return y, index


def max_pool_backward(dy: Array, index: Array, size: Sizes) -> Array:
    n, pixels = dy.shape[0] * dy.shape[1], int(np.prod(size))
    start = pixels * (np.cumsum(np.ones_like(index, shape=(n, 1)), 0) - 1)
    at = (index.reshape(n, int(np.prod(index.shape[2:]))) + start).reshape(-1)
    dx = np.bincount(at, dy.reshape(-1), minlength=n * pixels)
    return dx.astype(dy.dtype).reshape(dy.shape[:2] + size)


def avg_pool(x: Array, share: Array, kernel: Sizes, *, stride: Sizes, padding: Sizes) -> Array:
    one = (1,) * len(kernel)
    whole, inner = _padded(x, _lengths(x.shape[2:], share.shape, kernel, stride, padding, one), padding, 0)
    whole[inner] = x
    total = np.zeros_like(x, dtype=np.result_type(x.dtype, np.float64), shape=x.shape[:2] + share.shape)
    for _, window in _windows(share.shape, kernel, stride, one):
        total += whole[window]
    return (total * share).astype(x.dtype)


def avg_pool_backward(dy: Array, share: Array, size: Sizes, kernel: Sizes, *, stride: Sizes, padding: Sizes) -> Array:
    one, wide = (1,) * len(kernel), np.result_type(dy.dtype, np.float64)
    like = np.zeros_like(dy, dtype=wide, shape=dy.shape[:2] + size)
    whole, inner = _padded(like, _lengths(size, share.shape, kernel, stride, padding, one), padding, 0)
    part = dy * share
    for _, window in _windows(share.shape, kernel, stride, one):
        whole[window] += part
    return whole[inner].astype(dy.dtype, order="C")


# ---------------------------------------------------------------------------------------------------------------------
# Resampling
# ---------------------------------------------------------------------------------------------------------------------


def nearest(x: Array, rows: Array, columns: Array) -> Array:
    return x.take(rows, axis=-2).take(columns, axis=-1)


def nearest_backward(dy: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    dx = np.zeros((*dy.shape[:-2], *size), dy.dtype)
    (h, first), (w, start) = (np.unique(index, return_index=True) for index in (rows, columns))
    dx[..., h[:, None], w] = np.add.reduceat(np.add.reduceat(dy, first, axis=-2), start, axis=-1)
    return dx
