r"""Softmax, normalisation of rows and of channels, sums over rows, and tables.

    kernel                                              grid                                    each thread
    softmax, log-softmax, cross-entropy, layer norm     a block of 128 threads for each row     every 128th element of the row
    batch norm                                          a block of 128 threads for each channel every 128th pixel of the channel
    sums over rows                                      8 × 32 threads for 64 rows, 32 columns  8 rows of a column
    tables                                              256 threads a block                     one element

Blocks add up as `sums.py` says, with an error that does not grow with the count. A block reads its row two to four times, once
for each sum and once for the result: rows of a few thousand numbers still lie in the cache then.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import boolean, cuda, float32

from kernels import reference
from kernels.cuda.build import (
    F1,
    F2,
    F3,
    FLAT,
    FLOAT,
    I1,
    INT,
    THREADS,
    WARPS,
    Array,
    cdiv,
    check,
    device,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
    whole,
)
from kernels.cuda.sums import SHARED, add, block_max, block_sum, settle, statistics_of

# ---------------------------------------------------------------------------------------------------------------------
# Softmax and its relatives
# ---------------------------------------------------------------------------------------------------------------------


@device
def _peak_and_total(x, i, shared):
    """m = max_j x_ij, 0 if that is −∞, and Σ_j e^{x_ij − m}, for every thread of the block"""
    m = float32(-np.inf)
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        m = m if m > x[i, j] or m != m else x[i, j]
    m = block_max(m, shared)
    if m == float32(-np.inf):
        m = float32(0.0)
    total, lost = float32(0.0), float32(0.0)
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        total, lost = add(total, lost, math.exp(x[i, j] - m))
    return m, block_sum(total, lost, shared)


@kernel((F2, F2), threads=THREADS, registers=40, shared=SHARED)
def softmax_rows(x, y):
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    m, total = _peak_and_total(x, i, shared)
    scale = float32(1.0) if total == float32(0.0) else float32(1.0) / total
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        y[i, j] = math.exp(x[i, j] - m) * scale


@kernel((F2, F2), threads=THREADS, registers=40, shared=SHARED)
def log_softmax_rows(x, y):
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    m, total = _peak_and_total(x, i, shared)
    shift = float32(0.0) if total == float32(0.0) else math.log(total)
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        y[i, j] = (x[i, j] - m) - shift


@kernel((F2, I1, F1, F2, INT), threads=THREADS, registers=40, shared=SHARED)
def cross_entropy_rows(x, target, loss, statistics, ignored):
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    m, total = _peak_and_total(x, i, shared)
    if cuda.threadIdx.x == 0:
        if total == float32(0.0):
            total = float32(1.0)
        t = target[i]
        statistics[0, i] = m
        statistics[1, i] = float32(1.0) / total
        if t == ignored:
            loss[i] = float32(0.0)
        elif t < 0 or t >= x.shape[1]:
            loss[i] = float32(np.nan)
        else:
            loss[i] = (m - x[i, t]) + math.log(total)  # in this order: a large m would round away the logarithm


@kernel((F1, F2, I1, F2, F2, INT), threads=THREADS, registers=40)
def cross_entropy_rows_backward(dloss, x, target, statistics, dx, ignored):
    i = cuda.blockIdx.x
    t = target[i]
    d = dloss[i]
    m = statistics[0, i]
    inverse = statistics[1, i]
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        if t == ignored:
            dx[i, j] = float32(0.0)
        else:
            dx[i, j] = d * (math.exp(x[i, j] - m) * inverse - (float32(1.0) if j == t else float32(0.0)))


def _by_rows(x: Array, axis: int, fused: Any, name: str) -> Array:
    if not is_float32(x) or not x.ndim or not x.size:
        return getattr(reference, name)(x, axis)
    if axis % x.ndim != x.ndim - 1:
        return np.moveaxis(_by_rows(np.moveaxis(x, axis, -1), -1, fused, name), -1, axis)
    x = plain(x)
    y = empty(x, x.shape)
    n = x.shape[-1]
    launch(fused, x.size // n, x.reshape(-1, n), y.reshape(-1, n))
    return y


def softmax(x: Array, axis: int = -1) -> Array:
    return _by_rows(x, axis, softmax_rows, "softmax")


def log_softmax(x: Array, axis: int = -1) -> Array:
    return _by_rows(x, axis, log_softmax_rows, "log_softmax")


def cross_entropy(x: Array, target: Array, *, ignore_index: int = -100) -> tuple[Array, Array]:
    check("cross_entropy", x, target)
    if not is_float32(x):
        return _classes(x, target, ignore_index)
    loss, statistics = empty(x, len(x)), empty(x, (2, len(x)))
    launch(cross_entropy_rows, len(x), plain(x), whole(target), loss, statistics, ignore_index)
    return loss, statistics


def _classes(x: Array, target: Array, ignored: int) -> tuple[Array, Array]:
    """The loss for other types, in steps that the library has."""
    log_p = reference.log_softmax(x, 1)
    hit = target[:, None] == np.arange(x.shape[1]) if isinstance(x, np.ndarray) else _one_hot(target, x)
    loss = -np.where(hit, log_p, 0).sum(axis=1)
    peak = x.max(axis=1)
    peak = np.where(peak == -np.inf, 0, peak)
    total = np.exp(x - peak[:, None]).sum(axis=1)
    statistics = np.stack([peak, 1 / np.where(total == 0, 1, total)])
    return np.where(target == ignored, 0, loss).astype(x.dtype), statistics.astype(x.dtype)


def _one_hot(target: Array, x: Array) -> Array:
    """[j = t_n], of x's shape"""
    return target[:, None] == np.cumsum(np.ones_like(x, dtype=np.int64), axis=1) - 1


def cross_entropy_backward(dloss: Array, x: Array, target: Array, statistics: Array, *, ignore_index: int = -100) -> Array:
    check("cross_entropy_backward", dloss, x, target, statistics)
    if not is_float32(dloss, x, statistics):
        m, inverse = statistics[:, :, None]
        dx = (np.exp(x - m) * inverse - _one_hot(target, x)) * dloss[:, None]
        return np.where((target == ignore_index)[:, None], 0, dx).astype(x.dtype)
    dx = empty(x, x.shape)
    if dx.size:
        launch(cross_entropy_rows_backward, len(x), plain(dloss), plain(x), whole(target), plain(statistics), dx, ignore_index)
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# Sums over rows
# ---------------------------------------------------------------------------------------------------------------------
# A block adds up a strip of 64 rows and 32 columns: thread (part, column) the rows part, part + 8, … of its column, and then
# one warp the 8 parts. Neighbouring threads read neighbouring numbers. The sums of the strips are rows again, and are added
# up in the same way, until one is left.

STRIP = 64  # rows of a block: a thread adds up 8 of them, and 1,000 rows make 16 blocks for each 32 columns
COLUMNS, PARTS = 32, 8


@device
def _strip(rows, columns):
    """First and last row, part and column of this thread: strips lie below each other, 32 columns of them side by side."""
    across = (columns + COLUMNS - 1) // COLUMNS
    begin = cuda.blockIdx.x // across * STRIP
    end = begin + STRIP if begin + STRIP < rows else rows
    part = cuda.threadIdx.x // COLUMNS
    return begin, end, part, cuda.blockIdx.x % across * COLUMNS + cuda.threadIdx.x % COLUMNS


@device
def _sum_of_parts(shared, column):
    total, lost = float32(0.0), float32(0.0)
    for part in range(PARTS):
        total, lost = add(total, lost, shared[part, column % COLUMNS])
    return settle(total, lost)


@kernel((F2, F2), threads=COLUMNS * PARTS, registers=48, shared=4 * COLUMNS * PARTS)
def sum_rows(x, sums):
    """Σ x over each strip of rows.     (N, n) → (strips, n)"""
    shared = cuda.shared.array((PARTS, COLUMNS), float32)
    begin, end, part, column = _strip(x.shape[0], x.shape[1])
    total, lost = float32(0.0), float32(0.0)
    if column < x.shape[1]:
        for i in range(begin + part, end, PARTS):
            total, lost = add(total, lost, x[i, column])
    shared[part, column % COLUMNS] = settle(total, lost)
    cuda.syncthreads()
    if part == 0 and column < x.shape[1]:
        sums[begin // STRIP, column] = _sum_of_parts(shared, column)


@kernel((F2, F2, F1, F1, F2, F2), threads=COLUMNS * PARTS, registers=64, shared=2 * 4 * COLUMNS * PARTS)
def sum_parameters(dy, x, mean, rstd, dweight, dbias):
    """Σ ȳ ⊙ x̂ and Σ ȳ over each strip of rows.     (N, n) → (strips, n) both"""
    products = cuda.shared.array((PARTS, COLUMNS), float32)
    gradients = cuda.shared.array((PARTS, COLUMNS), float32)
    begin, end, part, column = _strip(x.shape[0], x.shape[1])
    dw, dw_lost = float32(0.0), float32(0.0)
    db, db_lost = float32(0.0), float32(0.0)
    if column < x.shape[1]:
        for i in range(begin + part, end, PARTS):
            g = dy[i, column]
            dw, dw_lost = add(dw, dw_lost, g * ((x[i, column] - mean[i]) * rstd[i]))
            db, db_lost = add(db, db_lost, g)
    products[part, column % COLUMNS] = settle(dw, dw_lost)
    gradients[part, column % COLUMNS] = settle(db, db_lost)
    cuda.syncthreads()
    if part == 0 and column < x.shape[1]:
        dweight[begin // STRIP, column] = _sum_of_parts(products, column)
        dbias[begin // STRIP, column] = _sum_of_parts(gradients, column)


def column_sums(x: Array) -> Array:
    if not is_float32(x) or not x.size:
        return reference.column_sums(x)
    x = plain(x)
    while True:
        sums = empty(x, (cdiv(len(x), STRIP), x.shape[1]))
        launch(sum_rows, len(sums) * cdiv(x.shape[1], COLUMNS), x, sums)
        if len(sums) == 1:
            return sums[0]
        x = sums


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------------------------------


@device
def _of_row(x, i, j):
    return x[i, j]


row_statistics = statistics_of(_of_row)


@kernel((F2, F1, F1, F2, F1, F1, FLOAT, boolean), threads=THREADS, registers=48, shared=SHARED)
def normalised_rows(x, weight, bias, y, mean, rstd, eps, centred):
    """y = (x − μ) ρ ⊙ w + b;  μ = 0 and no b unless `centred`"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    n = x.shape[1]
    mu, rho = row_statistics(x, i, n, eps, centred, shared)
    if cuda.threadIdx.x == 0:
        mean[i] = mu
        rstd[i] = rho
    for j in range(cuda.threadIdx.x, n, THREADS):
        scaled = (x[i, j] - mu) * rho * weight[j]
        y[i, j] = scaled + bias[j] if centred else scaled


@kernel((F2, F2, F1, F1, F1, F2, boolean), threads=THREADS, registers=48, shared=SHARED)
def normalised_rows_backward(dy, x, weight, mean, rstd, dx, centred):
    """With g = ȳ ⊙ w:  x̄ = ρ (g − mean(g) − x̂ mean(g ⊙ x̂));  without mean(g) unless `centred`"""
    shared = cuda.shared.array(WARPS, float32)
    i = cuda.blockIdx.x
    n = x.shape[1]
    share = float32(1.0) / float32(n)
    mu, rho = mean[i], rstd[i]
    across, across_lost = float32(0.0), float32(0.0)
    along, along_lost = float32(0.0), float32(0.0)
    for j in range(cuda.threadIdx.x, n, THREADS):
        g = dy[i, j] * weight[j]
        across, across_lost = add(across, across_lost, g)
        along, along_lost = add(along, along_lost, g * ((x[i, j] - mu) * rho))
    mean_g = block_sum(across, across_lost, shared) * share if centred else float32(0.0)
    mean_g_xhat = block_sum(along, along_lost, shared) * share
    for j in range(cuda.threadIdx.x, n, THREADS):
        xhat = (x[i, j] - mu) * rho
        dx[i, j] = rho * (dy[i, j] * weight[j] - mean_g - xhat * mean_g_xhat)


def _normalised(x: Array, weight: Array, bias: Array, eps: float, centred: bool) -> tuple[Array, Array, Array]:
    x = plain(x)
    y, mean, rstd = empty(x, x.shape), empty(x, len(x)), empty(x, len(x))
    launch(normalised_rows, len(x), x, plain(weight), plain(bias), y, mean, rstd, np.float32(eps), centred)
    return y, mean[:, None], rstd[:, None]


def _normalised_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, centred: bool) -> tuple[Array, ...]:
    dy, x, mean, rstd = plain(dy), plain(x), plain(mean).reshape(-1), plain(rstd).reshape(-1)
    dx = empty(x, x.shape)
    launch(normalised_rows_backward, len(x), dy, x, plain(weight), mean, rstd, dx, centred)
    strips = cdiv(len(x), STRIP)
    dweight, dbias = empty(x, (strips, x.shape[1])), empty(x, (strips, x.shape[1]))
    launch(sum_parameters, strips * cdiv(x.shape[1], COLUMNS), dy, x, mean, rstd, dweight, dbias)
    return dx, column_sums(dweight), column_sums(dbias)


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    check("layer_norm", x, weight, bias)
    if not is_float32(x, weight, bias) or not x.size:
        return reference.layer_norm(x, weight, bias, eps=eps)
    return _normalised(x, weight, bias, eps, True)


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    check("layer_norm_backward", dy, x, weight, mean, rstd)
    if not is_float32(dy, x, weight, mean, rstd) or not x.size:
        return reference.layer_norm_backward(dy, x, weight, mean, rstd)
    return _normalised_backward(dy, x, weight, mean, rstd, True)


def rms_norm(x: Array, weight: Array, *, eps: float = 1e-5) -> tuple[Array, Array]:
    check("rms_norm", x, weight)
    if not is_float32(x, weight) or not x.size:
        return reference.rms_norm(x, weight, eps=eps)
    y, _, rstd = _normalised(x, weight, weight, eps, False)
    return y, rstd


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    check("rms_norm_backward", dy, x, weight, rstd)
    if not is_float32(dy, x, weight, rstd) or not x.size:
        return reference.rms_norm_backward(dy, x, weight, rstd)
    return _normalised_backward(dy, x, weight, np.zeros_like(rstd), rstd, False)[:2]


@device
def _of_channel(x, c, e):
    pixels = x.shape[2]
    return x[e // pixels, c, e % pixels]


_channel_statistics = statistics_of(_of_channel)


@kernel((F3, F1, F1, F3, F1, F1, FLOAT), threads=THREADS, registers=48, shared=SHARED)
def channel_norm(x, weight, bias, y, mean, rstd, eps):
    """y = (x − μ_c) ρ_c w_c + b_c: a block for each channel.     (N, C, pixels)"""
    shared = cuda.shared.array(WARPS, float32)
    c = cuda.blockIdx.x
    pixels = x.shape[2]
    count = x.shape[0] * pixels
    mu, rho = _channel_statistics(x, c, count, eps, True, shared)
    if cuda.threadIdx.x == 0:
        mean[c] = mu
        rstd[c] = rho
    scale = rho * weight[c]
    for e in range(cuda.threadIdx.x, count, THREADS):
        y[e // pixels, c, e % pixels] = (x[e // pixels, c, e % pixels] - mu) * scale + bias[c]


@kernel((F3, F3, F1, F1, F1, F3, F1, F1), threads=THREADS, registers=56, shared=SHARED)
def channel_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias):
    """x̄ = ρ_c w_c (ȳ − mean(ȳ) − x̂ mean(ȳ ⊙ x̂)),  w̄_c = Σ ȳ ⊙ x̂,  b̄_c = Σ ȳ: a block for each channel"""
    shared = cuda.shared.array(WARPS, float32)
    c = cuda.blockIdx.x
    pixels = x.shape[2]
    count = x.shape[0] * pixels
    share = float32(1.0) / float32(count)
    mu, rho = mean[c], rstd[c]
    products, products_lost = float32(0.0), float32(0.0)
    gradients, gradients_lost = float32(0.0), float32(0.0)
    for e in range(cuda.threadIdx.x, count, THREADS):
        g = dy[e // pixels, c, e % pixels]
        products, products_lost = add(products, products_lost, g * ((x[e // pixels, c, e % pixels] - mu) * rho))
        gradients, gradients_lost = add(gradients, gradients_lost, g)
    dw = block_sum(products, products_lost, shared)
    db = block_sum(gradients, gradients_lost, shared)
    if cuda.threadIdx.x == 0:
        dweight[c] = dw
        dbias[c] = db
    scale = rho * weight[c]
    for e in range(cuda.threadIdx.x, count, THREADS):
        xhat = (x[e // pixels, c, e % pixels] - mu) * rho
        dx[e // pixels, c, e % pixels] = scale * (dy[e // pixels, c, e % pixels] - db * share - xhat * (dw * share))


def _channels(x: Array) -> Array:
    return plain(x).reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def batch_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    check("batch_norm", x, weight, bias)
    if not is_float32(x, weight, bias) or not x.size:
        return reference.batch_norm(x, weight, bias, eps=eps)
    y, mean, rstd = empty(x, x.shape), empty(x, x.shape[1]), empty(x, x.shape[1])
    launch(channel_norm, x.shape[1], _channels(x), plain(weight), plain(bias), _channels(y), mean, rstd, np.float32(eps))
    return y, mean, rstd


def batch_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    check("batch_norm_backward", dy, x, weight, mean, rstd)
    if not is_float32(dy, x, weight, mean, rstd) or not x.size:
        return reference.batch_norm_backward(dy, x, weight, mean, rstd)
    dx, dweight, dbias = empty(x, x.shape), empty(x, x.shape[1]), empty(x, x.shape[1])
    arrays = _channels(dy), _channels(x), plain(weight), plain(mean), plain(rstd), _channels(dx), dweight, dbias
    launch(channel_norm_backward, x.shape[1], *arrays)
    return dx, dweight, dbias


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


@kernel((F2, I1, F2), threads=FLAT, registers=40)
def embedding_rows(table, index, y):
    at = cuda.grid(1)
    n = y.shape[1]
    if at < y.size:
        row = index[at // n]
        if row < 0:
            row += table.shape[0]
        y[at // n, at % n] = table[row, at % n] if row >= 0 and row < table.shape[0] else float32(np.nan)


def embedding(table: Array, index: Array) -> Array:
    check("embedding", table, index)
    shape = index.shape + table.shape[1:]
    if not is_float32(table) or not math.prod(shape):
        return table[index]
    y = empty(table, shape)
    rows = plain(table).reshape(len(table), -1)
    launch(embedding_rows, cdiv(y.size, FLAT), rows, whole(index).reshape(-1), y.reshape(-1, rows.shape[1]))
    return y


@kernel((F2, I1, I1, F2), threads=FLAT, registers=48)
def scatter_rows(out, order, index, source):
    """out[index_i] += source_i.  `order` sorts the index: where a new row begins in it, a thread for each column adds up all
    the sources of that row, in order. So no two threads write to one element, and no atomic sum is needed."""
    at = cuda.grid(1)
    n = source.shape[1]
    p = at // n
    j = at % n
    if p < order.size:
        row = index[order[p]]
        if p == 0 or index[order[p - 1]] != row:
            total, lost = float32(0.0), float32(0.0)
            while p < order.size and index[order[p]] == row:
                total, lost = add(total, lost, source[order[p], j])
                p += 1
            if row >= 0 and row < out.shape[0]:
                out[row, j] += settle(total, lost)


def scatter_add(out: Array, index: Array, source: Array) -> None:
    check("scatter_add", out, index, source)
    if not source.size or not index.size:
        return
    index = whole(index).reshape(-1)
    index = np.where(index < 0, index + len(out), index)
    if not (is_float32(out, source) and out.flags.c_contiguous):
        total = np.zeros_like(out, dtype=np.float32, order="C")
        scatter_add(total, index, source.reshape(index.shape + out.shape[1:]).astype(np.float32))
        out += total.astype(out.dtype)
        return
    rows = plain(source).reshape(index.size, -1)
    launch(scatter_rows, cdiv(rows.size, FLAT), out.reshape(len(out), -1), np.argsort(index, kind="stable"), index, rows)
