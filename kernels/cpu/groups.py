r"""Normalisation over groups of channels of single samples: (N, C, …) as N · G rows, each of C/G channels of P places.

    forward, for each group:   μ ← Σ x / n                         the sums of blocks are added in float64
                               μ ← μ + Σ (x − μ) / n,  σ² ← Σ (x − μ)² / n − the square of what μ moved by
                               y = (x − μ) ρ w_c + b_c
    backward:                  s_c = Σ ȳ,  p_c = Σ ȳ x̂  for each channel, so that with g = ȳ w_c
                               mean(g) = Σ_c w_c s_c / n,  mean(g x̂) = Σ_c w_c p_c / n
                               x̄ = ρ (g − mean(g) − x̂ mean(g x̂));   w̄_c = Σ_samples p_c,  b̄_c = Σ_samples s_c

The second pass for μ makes x − μ exactly 0 for a group of equal numbers, however large. A row is read again from the cache.
What `rows` says of inputs and of threads holds here too: threads share the groups.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, VOID, kernel, result, sums
from kernels.cpu.rows import covers, flat, plain, shares

Array = np.ndarray
BLOCK = 512  # elements that are added in their own type, by many partial sums; the sums of blocks are added in float64


@sums
def _total(x):
    total = 0.0
    for i in range(0, x.size, BLOCK):
        part, block = x.dtype.type(0), x[i : i + BLOCK]
        for j in range(np.uintp(block.size)):
            part += block[j]
        total += part
    return total


@sums
def _spread(x, middle):
    """Σ (x − m) and Σ (x − m)²"""
    total, squares = 0.0, 0.0
    for i in range(0, x.size, BLOCK):
        part, square, block = x.dtype.type(0), x.dtype.type(0), x[i : i + BLOCK]
        for j in range(np.uintp(block.size)):
            part += block[j] - middle
            square += (block[j] - middle) * (block[j] - middle)
        total += part
        squares += square
    return total, squares


@sums
def _normalise(x, weight, bias, y, mean, rstd, eps, i0, i1):
    T = x.dtype.type
    groups, channels = mean.shape[1], x.shape[1] // mean.shape[1]
    n = channels * x.shape[2]
    for i in range(i0, i1):
        sample, group = i // groups, i % groups
        c0 = group * channels
        row = x[sample, c0 : c0 + channels].reshape(-1)
        middle = T(_total(row) / n)
        moved, squares = _spread(row, middle)
        moved /= n
        m = T(middle + moved)
        r = T(1 / np.sqrt(max(squares / n - moved * moved, 0.0) + eps))
        mean[sample, group], rstd[sample, group] = m, r
        for c in range(c0, c0 + channels):
            scale, shift = r * weight[c], bias[c]
            plane, out = x[sample, c], y[sample, c]
            for j in range(np.uintp(plane.size)):
                out[j] = (plane[j] - m) * scale + shift


def _signature(T: Any) -> Any:
    return VOID(flat(T, 3), flat(T), flat(T), result(T, 3, "C"), result(T, 2, "C"), result(T, 2, "C"), T, INT)


@kernel(_signature, parallel=True)
def normalise_groups(x, weight, bias, y, mean, rstd, eps, nt):
    """y = (x − μ) ρ w_c + b_c with μ, ρ of each sample's group of channels"""
    for t in numba.prange(nt):
        _normalise(x, weight, bias, y, mean, rstd, eps, t * mean.size // nt, (t + 1) * mean.size // nt)


@sums
def _channel_sums(dy, x, middle):
    """Σ ȳ and Σ ȳ (x − m)"""
    total, products = 0.0, 0.0
    for i in range(0, x.size, BLOCK):
        part, product, a, b = x.dtype.type(0), x.dtype.type(0), dy[i : i + BLOCK], x[i : i + BLOCK]
        for j in range(np.uintp(a.size)):
            part += a[j]
            product += a[j] * (b[j] - middle)
        total += part
        products += product
    return total, products


@sums
def _normalise_backward(dy, x, weight, mean, rstd, dx, totals, products, i0, i1):
    T = x.dtype.type
    groups, channels = mean.shape[1], x.shape[1] // mean.shape[1]
    n = channels * x.shape[2]
    for i in range(i0, i1):
        sample, group = i // groups, i % groups
        m, r, across, along = mean[sample, group], rstd[sample, group], 0.0, 0.0
        for c in range(group * channels, (group + 1) * channels):
            total, product = _channel_sums(dy[sample, c], x[sample, c], m)
            product *= r
            totals[sample, c], products[sample, c] = total, product
            across += weight[c] * total
            along += weight[c] * product
        back, level = T(along / n) * r * r, T(across / n) * r
        for c in range(group * channels, (group + 1) * channels):
            scale, grad, plane, out = r * weight[c], dy[sample, c], x[sample, c], dx[sample, c]
            for j in range(np.uintp(plane.size)):
                out[j] = grad[j] * scale - level - (plane[j] - m) * back


@kernel(
    lambda T: VOID(
        *(flat(T, 3), flat(T, 3), flat(T), flat(T, 2), flat(T, 2), result(T, 3, "C")),
        *(result(numba.float64, 2, "C"), result(numba.float64, 2, "C"), result(T, 1, "C"), result(T, 1, "C"), INT),
    ),
    parallel=True,
)
def normalise_groups_backward(dy, x, weight, mean, rstd, dx, totals, products, dweight, dbias, nt):
    """x̄ by groups; w̄ and b̄ from the sums of each sample's channels"""
    for t in numba.prange(nt):
        i0, i1 = t * mean.size // nt, (t + 1) * mean.size // nt
        _normalise_backward(dy, x, weight, mean, rstd, dx, totals, products, i0, i1)
    for c in range(np.uintp(dweight.size)):
        along, across = 0.0, 0.0
        for i in range(len(totals)):
            along += products[i, c]
            across += totals[i, c]
        dweight[c], dbias[c] = along, across


def _planes(x: Array) -> Array:
    """(N, C, …) as (N, C, places)"""
    return plain(x).reshape(x.shape[0], x.shape[1], -1)


def group_norm(x: Array, weight: Array, bias: Array, groups: int, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    if not covers(x, weight, bias):
        return reference.group_norm(x, weight, bias, groups, eps=eps)
    letter, shape = x.dtype.char, (len(x), groups)
    y, mean, rstd = np.empty(x.shape, letter), np.empty(shape, letter), np.empty(shape, letter)
    nt = min(shares(x.size), mean.size)
    normalise_groups[letter](_planes(x), plain(weight), plain(bias), _planes(y), mean, rstd, eps, nt)
    return y, mean, rstd


def group_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    if not covers(dy, x, weight, mean, rstd):
        return reference.group_norm_backward(dy, x, weight, mean, rstd)
    letter, channels = x.dtype.char, x.shape[1]
    dx, dweight, dbias = np.empty(x.shape, letter), np.empty(channels, letter), np.empty(channels, letter)
    totals, products = np.empty(x.shape[:2]), np.empty(x.shape[:2])
    normalise_groups_backward[letter](
        _planes(dy), _planes(x), plain(weight), plain(mean), plain(rstd), _planes(dx), totals, products, dweight, dbias,
        min(shares(x.size), mean.size),
    )  # fmt: skip
    return dx, dweight, dbias
