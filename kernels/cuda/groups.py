r"""Normalisation over groups of channels of single samples.

    for each sample n and group g, a block of 128 threads:                group_norm_rows, group_norm_rows_backward
        thread t: the numbers t, t + 128, … of the C/G channels × pixels of this group, which lie in a row in memory
    for each channel c, a block of 128 threads:                           group_norm_parameters
        for each sample n: thread t: the pixels t, t + 128, …             w̄_c and b̄_c

The arrays of the first two are (N G, C/G · pixels): row i is group i mod G of sample i / G, and its element j belongs to
channel (i mod G) C/G + j / pixels. Blocks add up as `sums.py` says. Shared memory holds what such a sum needs.
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
    check,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
)
from kernels.cuda.rows import row_statistics
from kernels.cuda.sums import SHARED, add, block_sum


@kernel((F2, F1, F1, F2, F1, F1, FLOAT, INT), threads=THREADS, registers=48, shared=SHARED)
def group_norm_rows(x, weight, bias, y, mean, rstd, eps, groups):
    """y = (x − μ) ρ w_c + b_c for each row, one of a sample's groups of channels"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    n = x.shape[1]
    channels = weight.size // groups
    pixels = n // channels
    first = i % groups * channels
    mu, rho = row_statistics(x, i, n, eps, True, shared)
    if cuda.threadIdx.x == 0:
        mean[i] = mu
        rstd[i] = rho
    for j in range(cuda.threadIdx.x, n, THREADS):
        c = first + j // pixels
        y[i, j] = (x[i, j] - mu) * rho * weight[c] + bias[c]


@kernel((F2, F2, F1, F1, F1, F2, INT), threads=THREADS, registers=56, shared=SHARED)
def group_norm_rows_backward(dy, x, weight, mean, rstd, dx, groups):
    """With g = ȳ w_c:  x̄ = ρ (g − mean(g) − x̂ mean(g x̂))"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    n = x.shape[1]
    channels = weight.size // groups
    pixels = n // channels
    first = i % groups * channels
    share = float32(1.0) / float32(n)
    mu, rho = mean[i], rstd[i]
    across, across_lost = float32(0.0), float32(0.0)
    along, along_lost = float32(0.0), float32(0.0)
    for j in range(cuda.threadIdx.x, n, THREADS):
        g = dy[i, j] * weight[first + j // pixels]
        across, across_lost = add(across, across_lost, g)
        along, along_lost = add(along, along_lost, g * ((x[i, j] - mu) * rho))
    mean_g = block_sum(across, across_lost, shared) * share
    mean_g_xhat = block_sum(along, along_lost, shared) * share
    for j in range(cuda.threadIdx.x, n, THREADS):
        g = dy[i, j] * weight[first + j // pixels]
        dx[i, j] = rho * (g - mean_g - (x[i, j] - mu) * rho * mean_g_xhat)


@kernel((F3, F3, F2, F2, F1, F1), threads=THREADS, registers=80, shared=SHARED)
def group_norm_parameters(dy, x, mean, rstd, dweight, dbias):
    """w̄_c = Σ ȳ x̂ and b̄_c = Σ ȳ: a block for each channel, sample by sample.     (N, C, pixels)"""
    shared = cuda.shared.array(WARPS, float32)
    c = cuda.blockIdx.x
    group = c // (x.shape[1] // mean.shape[1])
    products, products_lost = float32(0.0), float32(0.0)
    gradients, gradients_lost = float32(0.0), float32(0.0)
    for sample in range(x.shape[0]):
        mu, rho = mean[sample, group], rstd[sample, group]
        for j in range(cuda.threadIdx.x, x.shape[2], THREADS):
            g = dy[sample, c, j]
            products, products_lost = add(products, products_lost, g * ((x[sample, c, j] - mu) * rho))
            gradients, gradients_lost = add(gradients, gradients_lost, g)
    dw = block_sum(products, products_lost, shared)
    db = block_sum(gradients, gradients_lost, shared)
    if cuda.threadIdx.x == 0:
        dweight[c] = dw
        dbias[c] = db


def group_norm(x: Array, weight: Array, bias: Array, groups: int, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    check("group_norm", x, weight, bias)
    if not is_float32(x, weight, bias) or not x.size:
        return reference.group_norm(x, weight, bias, groups, eps=eps)
    x, shape = plain(x), (len(x) * groups, math.prod(x.shape[1:]) // groups)
    y, mean, rstd = empty(x, x.shape), empty(x, shape[0]), empty(x, shape[0])
    arrays = x.reshape(shape), plain(weight), plain(bias), y.reshape(shape), mean, rstd
    launch(group_norm_rows, shape[0], *arrays, np.float32(eps), groups)
    return y, mean.reshape(len(x), groups), rstd.reshape(len(x), groups)


def group_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
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
