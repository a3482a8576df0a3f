r"""Normalisation over groups of channels of single samples: one block a group, or, for parameters, a channel.

The mean is taken twice, the second time of what the first one left, so that a group of equal numbers is exactly 0.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32

from kernels import reference
from kernels.cuda.build import (
    F1,
    F2,
    F3,
    FLOAT,
    INT,
    THREADS,
    WARPS,
    Array,
    block_sum,
    check,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
)

SHARED = 4 * WARPS  # bytes that a sum over a block takes


@kernel((F2, F1, F1, F2, F1, F1, FLOAT, INT), threads=THREADS, registers=48, shared=SHARED)
def group_norm_rows(x, weight, bias, y, mean, rstd, eps, groups):
    """y = (x − μ) ρ w_c + b_c for each row, one of a sample's groups of channels"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    n = x.shape[1]
    channels = weight.size // groups
    places = n // channels
    first = i % groups * channels
    share = float32(1.0) / float32(n)
    mu = float32(0.0)
    for j in range(cuda.threadIdx.x, n, THREADS):
        mu += x[i, j]
    mu = block_sum(mu, shared) * share
    rest = float32(0.0)
    for j in range(cuda.threadIdx.x, n, THREADS):
        rest += x[i, j] - mu
    mu += block_sum(rest, shared) * share
    var = float32(0.0)
    for j in range(cuda.threadIdx.x, n, THREADS):
        d = x[i, j] - mu
        var += d * d
    rho = float32(1.0) / math.sqrt(block_sum(var, shared) * share + eps)
    if cuda.threadIdx.x == 0:
        mean[i] = mu
        rstd[i] = rho
    for j in range(cuda.threadIdx.x, n, THREADS):
        c = first + j // places
        y[i, j] = (x[i, j] - mu) * rho * weight[c] + bias[c]


@kernel((F2, F2, F1, F1, F1, F2, INT), threads=THREADS, registers=56, shared=SHARED)
def group_norm_rows_backward(dy, x, weight, mean, rstd, dx, groups):
    """With g = ȳ w_c:  x̄ = ρ (g − mean(g) − x̂ mean(g x̂))"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    n = x.shape[1]
    channels = weight.size // groups
    places = n // channels
    first = i % groups * channels
    share = float32(1.0) / float32(n)
    mu, rho = mean[i], rstd[i]
    across = float32(0.0)
    along = float32(0.0)
    for j in range(cuda.threadIdx.x, n, THREADS):
        g = dy[i, j] * weight[first + j // places]
        across += g
        along += g * (x[i, j] - mu) * rho
    across = block_sum(across, shared) * share
    along = block_sum(along, shared) * share
    for j in range(cuda.threadIdx.x, n, THREADS):
        g = dy[i, j] * weight[first + j // places]
        dx[i, j] = rho * (g - across - (x[i, j] - mu) * rho * along)


@kernel((F3, F3, F2, F2, F1, F1), threads=THREADS, registers=80, shared=SHARED)
def group_norm_parameters(dy, x, mean, rstd, dweight, dbias):
    """w̄_c = Σ ȳ x̂ and b̄_c = Σ ȳ: a block for each channel, sample by sample.     (N, C, places)"""
    shared = cuda.shared.array(WARPS, float32)
    c = cuda.blockIdx.x
    group = c // (x.shape[1] // mean.shape[1])
    dw = float32(0.0)
    db = float32(0.0)
    for sample in range(x.shape[0]):
        mu, rho = mean[sample, group], rstd[sample, group]
        products = float32(0.0)
        total = float32(0.0)
        for j in range(cuda.threadIdx.x, x.shape[2], THREADS):
            g = dy[sample, c, j]
            products += g * (x[sample, c, j] - mu) * rho
            total += g
        dw += products
        db += total
    dw = block_sum(dw, shared)
    db = block_sum(db, shared)
    if cuda.threadIdx.x == 0:
        dweight[c] = dw
        dbias[c] = db


def group_norm(x: Array, weight: Array, bias: Array, groups: int, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """y = (x − μ) ρ w_c + b_c, μ and ρ of each sample's group of channels.     (N, C, …) → the same, (N, G), (N, G)"""
    check("group_norm", x, weight, bias)
    if not is_float32(x, weight, bias) or not x.size:
        return reference.group_norm(x, weight, bias, groups, eps=eps)
    x, shape = plain(x), (len(x) * groups, math.prod(x.shape[1:]) // groups)
    y, mean, rstd = empty(x, x.shape), empty(x, shape[0]), empty(x, shape[0])
    arrays = x.reshape(shape), plain(weight), plain(bias), y.reshape(shape), mean, rstd
    launch(group_norm_rows, shape[0], *arrays, np.float32(eps), groups)
    return y, mean.reshape(len(x), groups), rstd.reshape(len(x), groups)


def group_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """With g = ȳ w_c:  x̄ = ρ (g − mean(g) − x̂ mean(g x̂)),  w̄_c = Σ ȳ x̂,  b̄_c = Σ ȳ"""
    check("group_norm_backward", dy, x, weight, mean, rstd)
    if not is_float32(dy, x, weight, mean, rstd) or not x.size:
        return reference.group_norm_backward(dy, x, weight, mean, rstd)
    dy, x, mean, rstd = plain(dy), plain(x), plain(mean), plain(rstd)
    shape, planes = (mean.size, x.size // mean.size), (*x.shape[:2], math.prod(x.shape[2:]))
    dx, dweight, dbias = empty(x, x.shape), empty(x, x.shape[1]), empty(x, x.shape[1])
    arrays = dy.reshape(shape), x.reshape(shape), plain(weight), mean.reshape(-1), rstd.reshape(-1), dx.reshape(shape)
    launch(group_norm_rows_backward, shape[0], *arrays, mean.shape[1])
    launch(group_norm_parameters, x.shape[1], dy.reshape(planes), x.reshape(planes), mean, rstd, dweight, dbias)
    return dx, dweight, dbias
