r"""Kernels that pass over rows: sums over rows, softmax and cross-entropy, the norms, and rows of a table by their index.

    each thread takes an equal share of the rows (of the channels in batch norm; of the columns in `scatter_add`):
      for each row of its share:                   a row of a few kB stays in the L1 cache from one pass to the next
        a pass for each maximum or sum that the next pass needs, then the pass that writes the result

    softmax          m = max_j x_j      y_j = e^{x_j − m} and Σ_j y_j       y_j ← y_j / Σ
    log-softmax      m                  Σ_j e^{x_j − m}                     y_j = (x_j − m) − log Σ
    cross-entropy    m                  Σ_j e^{x_j − m}                     afterwards, for all rows at once, log Σ
    norms            μ = mean x         ρ = 1/√(mean (x − μ)² + ε)          y = (x − μ) ρ w + b
    norms, backward  mean g and mean g x̂, of g = ȳ w                        x̄;  w̄ and b̄ from four rows at a time

Matrices are (rows, n) in C order, as batch norm's channels are (N, C, positions); an input that is not contiguous is copied
first (`plain`). What each row needs later, such as m or ρ, is an array with an element for each row. Where all rows go into one
sum (biases, w̄, b̄), each thread has a row of totals of its own, and these are added in the order of the threads: the same
number of threads gives the same bits.

Sums may be taken in any order (that is what lets them vectorise), but nothing else of fast-math is used, so that −∞ and NaN
mean what they mean in `reference.py`. A long sum of float32 is taken in blocks: those of a block are added in float32, whole
vectors at a time, and the sums of blocks in float64, so that the error does not grow with the count. A block is short enough
for few roundings in a row (ROWS_IN_BLOCK: 64, by fours; SQUARES_IN_BLOCK: 512, in 64 partial sums of 8 each) and long enough
that float64 costs no time. SMALL: one thread is done with so many elements before a second one has woken up.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, LETTERS, TABLE, VOID, Kernel, kernel, result, sums
from kernels.cpu.functions import EXACT, exp_nonpositive, log, maximum
from kernels.cpu.threads import threads

Array = np.ndarray
DOUBLE = numba.float64  # of sums over many elements: equal numbers are then their own mean, however large and many
SMALL = 1 << 14  # elements
ROWS_IN_BLOCK, SQUARES_IN_BLOCK = 64, 512
PEAK, INVERSE = 0, 1  # the rows of the statistics of a cross-entropy: m and 1/Σ


def flat(element: Any, ndim: int = 1) -> Any:
    """The type of a contiguous array that is only read."""
    return numba.types.Array(element, ndim, "C", readonly=True)


def plain(x: Array) -> Array:
    """x, or a copy of it, contiguous and aligned."""
    flags = x.flags
    return x if flags.c_contiguous and flags.aligned else np.array(x, order="C")


def covers(*arrays: Array) -> bool:
    """Of one element type that is compiled, and not empty"""
    dtype = arrays[0].dtype
    for x in arrays:
        if x.dtype is not dtype and x.dtype != dtype:
            return False
    return dtype in LETTERS and arrays[0].size > 0


def alike(x: Array, y: Array) -> bool:
    """Covered both, and of one shape"""
    return x.shape == y.shape and covers(x, y)


def shares(elements: int) -> int:
    """How many threads so many elements are worth."""
    return threads() if elements > SMALL else 1


# ---------------------------------------------------------------------------------------------------------------------
# Sums
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _add_rows(x, block, totals):
    """totals ← Σ_rows x"""
    totals[:] = 0
    for i0 in range(0, len(x), ROWS_IN_BLOCK):
        block[:] = 0
        i1 = min(i0 + ROWS_IN_BLOCK, len(x))
        i2 = i1 - (i1 - i0) % 4
        for i in range(i0, i2, 4):  # four at a time: `block` is read and written once for all
            a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
            for j in range(np.uintp(block.size)):
                block[j] += (a[j] + b[j]) + (c[j] + d[j])
        for i in range(i2, i1):
            for j in range(np.uintp(block.size)):
                block[j] += x[i, j]
        for j in range(np.uintp(block.size)):
            totals[j] += block[j]


@kernel(
    lambda element: VOID(flat(element, 2), result(element, 2, "C"), result(numba.float64, 2, "C"), result(element, 1, "C")),
    parallel=True,
)
def add_rows(x, blocks, totals, y):
    """y = Σ_rows x, with a row of `blocks` and of `totals` for each thread"""
    nt = len(blocks)
    if nt == 1:
        _add_rows(x, blocks[0], totals[0])
    else:
        for t in numba.prange(nt):
            _add_rows(x[t * len(x) // nt : (t + 1) * len(x) // nt], blocks[t], totals[t])
    for j in range(np.uintp(y.size)):
        total = 0.0
        for t in range(nt):
            total += totals[t, j]
        y[j] = total


def column_sums(x: Array) -> Array:
    if not covers(x):
        return reference.column_sums(x)
    letter, shape = x.dtype.char, (shares(x.size), x.shape[1])
    y = np.empty(shape[1], letter)
    add_rows[letter](plain(x), np.empty(shape, letter), np.empty(shape), y)
    return y


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and its relatives
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _peak(x):
    """max x, 0 if that is −∞: so that the exponentials of an empty row are 0, not NaN"""
    dtype = x.dtype.type
    m = dtype(-np.inf)
    for j in range(np.uintp(x.size)):
        m = maximum(m, x[j])
    return dtype(0) if m == dtype(-np.inf) else m


@sums
def _mass(x, m):
    """Σ e^{x − m}"""
    total = x.dtype.type(0)
    for j in range(np.uintp(x.size)):
        total += exp_nonpositive(x[j] - m)
    return total


@numba.njit(**EXACT)
def _lower(x, m, logarithm, y):
    """y = (x − m) − log Σ, in this order: m + log Σ would round away the logarithm beside a large m"""
    for j in range(np.uintp(x.size)):
        y[j] = (x[j] - m) - logarithm


@sums
def _softmax(x, y, i0, i1):
    dtype = y.dtype.type
    for i in range(i0, i1):
        row, out, total = x[i], y[i], dtype(0)
        m = _peak(row)
        for j in range(np.uintp(row.size)):
            e = exp_nonpositive(row[j] - m)
            out[j] = e
            total += e
        scale = dtype(1) if total == dtype(0) else dtype(1) / total
        for j in range(np.uintp(row.size)):
            out[j] *= scale


@sums
def _log_softmax(x, y, i0, i1):
    zero = y.dtype.type(0)
    for i in range(i0, i1):
        m = _peak(x[i])
        total = _mass(x[i], m)
        _lower(x[i], m, zero if total == zero else np.log(total), y[i])


@kernel(lambda element: VOID(flat(element, 2), result(element, 2, "C"), INT), parallel=True)
def softmax_rows(x, y, nt):
    """y = softmax(x) by rows"""
    if nt == 1:
        _softmax(x, y, 0, len(x))
    else:
        for t in numba.prange(nt):
            _softmax(x, y, t * len(x) // nt, (t + 1) * len(x) // nt)


@kernel(lambda element: VOID(flat(element, 2), result(element, 2, "C"), INT), parallel=True)
def log_softmax_rows(x, y, nt):
    """y = log softmax(x) by rows"""
    if nt == 1:
        _log_softmax(x, y, 0, len(x))
    else:
        for t in numba.prange(nt):
            _log_softmax(x, y, t * len(x) // nt, (t + 1) * len(x) // nt)


def _by_rows(rows_kernel: Kernel, x: Array, axis: int) -> Array:
    """y of a kernel that takes rows, along any axis"""
    if axis not in (-1, x.ndim - 1):
        return np.moveaxis(_by_rows(rows_kernel, np.moveaxis(x, axis, -1), -1), -1, axis)
    rows = plain(x).reshape(-1, x.shape[-1])
    y = np.empty_like(rows)
    rows_kernel[x.dtype.char](rows, y, shares(x.size))
    return y.reshape(x.shape)


def softmax(x: Array, axis: int = -1) -> Array:
    return _by_rows(softmax_rows, x, axis) if covers(x) and x.ndim else reference.softmax(x, axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    return _by_rows(log_softmax_rows, x, axis) if covers(x) and x.ndim else reference.log_softmax(x, axis)


@sums
def _losses(x, target, loss, statistics, ignore, i0, i1):
    dtype = x.dtype.type
    peaks, totals = statistics[PEAK], statistics[INVERSE]  # the sums, of which 1/Σ is taken in the end
    for i in range(i0, i1):
        row = x[i]
        m, total = _peak(row), dtype(0)
        for j in range(np.uintp(row.size)):
            total += exp_nonpositive(row[j] - m)
        peaks[i], totals[i] = m, dtype(1) if total == dtype(0) else total
        loss[i] = dtype(0) if target[i] == ignore else m - row[target[i]]  # a large m cancels before log Σ is added
    for i in range(i0, i1):
        loss[i] += dtype(0) if target[i] == ignore else log(totals[i])
        totals[i] = dtype(1) / totals[i]


@kernel(lambda element: INT(flat(element, 2), TABLE, result(element, 1, "C"), result(element, 2, "C"), INT, INT), parallel=True)
def cross_entropy_rows(x, target, loss, statistics, ignore, nt):
    """Losses, maxima and 1/Σ of the rows; returns 1 + the first row whose target is no class, or 0"""
    for i in range(len(x)):
        if target[i] != ignore and not -x.shape[1] <= target[i] < x.shape[1]:
            return i + 1
    if nt == 1:
        _losses(x, target, loss, statistics, ignore, 0, len(x))
    else:
        for t in numba.prange(nt):
            _losses(x, target, loss, statistics, ignore, t * len(x) // nt, (t + 1) * len(x) // nt)
    return 0


def _integers(index: Array) -> Array:
    return plain(index.astype(np.intp, copy=False))


def cross_entropy(x: Array, target: Array, *, ignore_index: int = -100) -> tuple[Array, Array]:
    if not covers(x) or target.dtype.kind not in "iu":
        return reference.cross_entropy(x, target, ignore_index=ignore_index)
    loss, statistics = np.empty(len(x), x.dtype), np.empty((2, len(x)), x.dtype)
    bad = cross_entropy_rows[x.dtype.char](plain(x), _integers(target), loss, statistics, ignore_index, shares(x.size))
    if bad:
        raise IndexError(f"cross_entropy: target {target[bad - 1]} in row {bad - 1} is not one of {x.shape[1]} classes")
    return loss, statistics


@sums
def _losses_backward(dloss, x, target, statistics, dx, ignore, i0, i1):
    dtype = x.dtype.type
    for i in range(i0, i1):
        row, out, m, inverse = x[i], dx[i], statistics[PEAK, i], statistics[INVERSE, i]
        kept = target[i] != ignore
        scale = dloss[i] if kept else dtype(0)
        share = inverse * scale
        for j in range(np.uintp(row.size)):
            out[j] = exp_nonpositive(row[j] - m) * share
        if kept:
            out[target[i]] = (exp_nonpositive(row[target[i]] - m) * inverse - dtype(1)) * scale


@kernel(
    lambda element: VOID(flat(element), flat(element, 2), TABLE, flat(element, 2), result(element, 2, "C"), INT, INT),
    parallel=True,
)
def cross_entropy_rows_backward(dloss, x, target, statistics, dx, ignore, nt):
    """x̄ = ℓ̄ (softmax(x) − onehot(target)) by rows"""
    if nt == 1:
        _losses_backward(dloss, x, target, statistics, dx, ignore, 0, len(x))
    else:
        for t in numba.prange(nt):
            _losses_backward(dloss, x, target, statistics, dx, ignore, t * len(x) // nt, (t + 1) * len(x) // nt)


def cross_entropy_backward(dloss: Array, x: Array, target: Array, statistics: Array, *, ignore_index: int = -100) -> Array:
    if not covers(x, dloss, statistics) or target.dtype.kind not in "iu":
        return reference.cross_entropy_backward(dloss, x, target, statistics, ignore_index=ignore_index)
    letter = x.dtype.char
    dx = np.empty(x.shape, letter)
    cross_entropy_rows_backward[letter](
        plain(dloss), plain(x), _integers(target), plain(statistics), dx, ignore_index, shares(x.size)
    )  # fmt: skip
    return dx


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _squares(x, m):
    """Σ (x − m)²"""
    total = 0.0
    for i in range(0, x.size, SQUARES_IN_BLOCK):
        part, block = x.dtype.type(0), x[i : i + SQUARES_IN_BLOCK]
        for j in range(np.uintp(block.size)):
            part += (block[j] - m) * (block[j] - m)
        total += part
    return total


@sums
def _norm(x, weight, bias, y, mean, rstd, eps, centred, i0, i1):
    dtype = x.dtype.type
    for i in range(i0, i1):
        row, out = x[i], y[i]
        total = 0.0
        if centred:
            for j in range(np.uintp(row.size)):
                total += DOUBLE(row[j])
        m = dtype(total / row.size)
        r = dtype(1 / np.sqrt(_squares(row, m) / row.size + eps))
        mean[i], rstd[i] = m, r
        for j in range(np.uintp(row.size)):
            out[j] = (row[j] - m) * r * weight[j] + bias[j]


def _norm_signature(element: Any) -> Any:
    rows, row, of_rows = flat(element, 2), flat(element), result(element, 1, "C")
    return VOID(rows, row, row, result(element, 2, "C"), of_rows, of_rows, element, INT, INT)


@kernel(_norm_signature, parallel=True)
def norm_rows(x, weight, bias, y, mean, rstd, eps, centred, nt):
    """y = (x − μ) ρ ⊙ w + b by rows; μ = 0 unless centred"""
    if nt == 1:
        _norm(x, weight, bias, y, mean, rstd, eps, centred, 0, len(x))
    else:
        for t in numba.prange(nt):
            _norm(x, weight, bias, y, mean, rstd, eps, centred, t * len(x) // nt, (t + 1) * len(x) // nt)


@sums
def _norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, centred, i0, i1):
    dtype = x.dtype.type
    dweight[:] = 0.0
    dbias[:] = 0.0
    for i in range(i0, i1):
        row, grad, out = x[i], dy[i], dx[i]
        m, r = mean[i], rstd[i]
        total, product = 0.0, 0.0
        for j in range(np.uintp(row.size)):
            g = grad[j] * weight[j]
            total += DOUBLE(g)
            product += DOUBLE(g * ((row[j] - m) * r))
        across, along = dtype(total / row.size) if centred else dtype(0), dtype(product / row.size)
        for j in range(np.uintp(row.size)):
            xhat = (row[j] - m) * r
            out[j] = r * (grad[j] * weight[j] - across - xhat * along)
        if (i - i0) % 4 == 3:  # four rows at a time, while they are in the cache: the sums are read and written once
            _norm_sums(dy[i - 3 : i + 1], x[i - 3 : i + 1], mean[i - 3 :], rstd[i - 3 :], dweight, dbias)
    for i in range(i1 - (i1 - i0) % 4, i1):
        for j in range(np.uintp(dweight.size)):
            dweight[j] += DOUBLE(dy[i, j] * ((x[i, j] - mean[i]) * rstd[i]))
            dbias[j] += DOUBLE(dy[i, j])


@sums
def _norm_sums(dy, x, mean, rstd, dweight, dbias):
    """w̄ += Σ ȳ ⊙ x̂ and b̄ += Σ ȳ over four rows"""
    a, b, c, d = dy[0], dy[1], dy[2], dy[3]
    p, q, u, v = x[0], x[1], x[2], x[3]
    for j in range(np.uintp(dweight.size)):
        first = a[j] * ((p[j] - mean[0]) * rstd[0]) + b[j] * ((q[j] - mean[1]) * rstd[1])
        dweight[j] += DOUBLE(first + (c[j] * ((u[j] - mean[2]) * rstd[2]) + d[j] * ((v[j] - mean[3]) * rstd[3])))
        dbias[j] += DOUBLE((a[j] + b[j]) + (c[j] + d[j]))


def _norm_backward_signature(element: Any) -> Any:
    rows, row, totals = flat(element, 2), flat(element), result(DOUBLE, 2, "C")
    return VOID(rows, rows, row, row, row, result(element, 2, "C"), totals, totals, INT, INT)


@kernel(_norm_backward_signature, parallel=True)
def norm_rows_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, centred, nt):
    """x̄ by rows; w̄ and b̄ in one row for each thread, added up in the first"""
    if nt == 1:
        _norm_backward(dy, x, weight, mean, rstd, dx, dweight[0], dbias[0], centred, 0, len(x))
    else:
        for t in numba.prange(nt):
            i0, i1 = t * len(x) // nt, (t + 1) * len(x) // nt
            _norm_backward(dy, x, weight, mean, rstd, dx, dweight[t], dbias[t], centred, i0, i1)
        for t in range(1, nt):
            for j in range(np.uintp(dweight.shape[1])):
                dweight[0, j] += dweight[t, j]
                dbias[0, j] += dbias[t, j]


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    if not covers(x, weight, bias) or x.ndim != 2:
        return reference.layer_norm(x, weight, bias, eps=eps)
    letter = x.dtype.char
    y, mean, rstd = np.empty(x.shape, letter), np.empty(len(x), letter), np.empty(len(x), letter)
    norm_rows[letter](plain(x), plain(weight), plain(bias), y, mean, rstd, eps, 1, shares(x.size))
    return y, mean[:, None], rstd[:, None]


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    if not covers(dy, x, weight, mean, rstd) or x.ndim != 2:
        return reference.layer_norm_backward(dy, x, weight, mean, rstd)
    letter, nt, n = x.dtype.char, shares(x.size), x.shape[1]
    dx = np.empty(x.shape, letter)
    parts = np.empty((2, nt, n))
    norm_rows_backward[letter](
        plain(dy), plain(x), plain(weight), plain(mean).reshape(-1), plain(rstd).reshape(-1), dx, parts[0], parts[1], 1, nt
    )
    dweight, dbias = parts[:, 0].astype(letter)
    return dx, dweight, dbias


def rms_norm(x: Array, weight: Array, *, eps: float = 1e-5) -> tuple[Array, Array]:
    if not covers(x, weight) or x.ndim != 2:
        return reference.rms_norm(x, weight, eps=eps)
    letter = x.dtype.char
    y, mean, rstd = np.empty(x.shape, letter), np.empty(len(x), letter), np.empty(len(x), letter)
    norm_rows[letter](plain(x), plain(weight), np.zeros(x.shape[1], letter), y, mean, rstd, eps, 0, shares(x.size))
    return y, rstd[:, None]


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    if not covers(dy, x, weight, rstd) or x.ndim != 2:
        return reference.rms_norm_backward(dy, x, weight, rstd)
    letter, nt, n = x.dtype.char, shares(x.size), x.shape[1]
    dx, mean = np.empty(x.shape, letter), np.zeros(len(x), letter)
    parts = np.empty((2, nt, n))
    norm_rows_backward[letter](
        plain(dy), plain(x), plain(weight), mean, plain(rstd).reshape(-1), dx, parts[0], parts[1], 0, nt
    )  # fmt: skip
    return dx, parts[0, 0].astype(letter)


@sums
def _batch_norm(x, weight, bias, y, mean, rstd, eps, c0, c1):
    dtype = x.dtype.type
    n = x.shape[0] * x.shape[2]
    for c in range(c0, c1):
        total, square = 0.0, 0.0
        for i in range(len(x)):
            row = x[i, c]
            for j in range(np.uintp(row.size)):
                total += DOUBLE(row[j])
        m = dtype(total / n)
        for i in range(len(x)):
            square += _squares(x[i, c], m)
        r = dtype(1 / np.sqrt(square / n + eps))
        mean[c], rstd[c] = m, r
        scale, shift = r * weight[c], bias[c]
        for i in range(len(x)):
            row, out = x[i, c], y[i, c]
            for j in range(np.uintp(row.size)):
                out[j] = (row[j] - m) * scale + shift


def _batch_signature(element: Any) -> Any:
    row, of_channels = flat(element), result(element, 1, "C")
    return VOID(flat(element, 3), row, row, result(element, 3, "C"), of_channels, of_channels, element, INT)


@kernel(_batch_signature, parallel=True)
def batch_norm_channels(x, weight, bias, y, mean, rstd, eps, nt):
    """Each channel normalised over batch and positions; threads share the channels."""
    if nt == 1:
        _batch_norm(x, weight, bias, y, mean, rstd, eps, 0, x.shape[1])
    else:
        for t in numba.prange(nt):
            _batch_norm(x, weight, bias, y, mean, rstd, eps, t * x.shape[1] // nt, (t + 1) * x.shape[1] // nt)


@sums
def _batch_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, c0, c1):
    dtype = x.dtype.type
    n = x.shape[0] * x.shape[2]
    for c in range(c0, c1):
        m, r = mean[c], rstd[c]
        total, product = 0.0, 0.0
        for i in range(len(x)):
            row, grad = x[i, c], dy[i, c]
            for j in range(np.uintp(row.size)):
                total += DOUBLE(grad[j])
                product += DOUBLE(grad[j] * ((row[j] - m) * r))
        dbias[c], dweight[c] = total, product
        across, along = dtype(total / n), dtype(product / n)
        scale = r * weight[c]
        for i in range(len(x)):
            row, grad, out = x[i, c], dy[i, c], dx[i, c]
            for j in range(np.uintp(row.size)):
                out[j] = scale * (grad[j] - across - (row[j] - m) * r * along)


def _batch_backward_signature(element: Any) -> Any:
    images, row, of_channels = flat(element, 3), flat(element), result(element, 1, "C")
    return VOID(images, images, row, row, row, result(element, 3, "C"), of_channels, of_channels, INT)


@kernel(_batch_backward_signature, parallel=True)
def batch_norm_channels_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, nt):
    """x̄, w̄ and b̄ by channels"""
    if nt == 1:
        _batch_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, 0, x.shape[1])
    else:
        for t in numba.prange(nt):
            c0, c1 = t * x.shape[1] // nt, (t + 1) * x.shape[1] // nt
            _batch_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, c0, c1)


def _by_channel(x: Array) -> Array:
    """(N, C, …) as (N, C, positions); (N, C) as (1, C, N), so that the innermost loop is long"""
    return plain(x.T)[None] if x.ndim == 2 else plain(x).reshape(x.shape[0], x.shape[1], -1)


def _as_before(y: Array, x: Array) -> Array:
    return y[0].T if x.ndim == 2 else y.reshape(x.shape)


def batch_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    if not covers(x, weight, bias) or x.ndim < 2:
        return reference.batch_norm(x, weight, bias, eps=eps)
    letter, x3 = x.dtype.char, _by_channel(x)
    y, mean, rstd = np.empty_like(x3), np.empty(x.shape[1], letter), np.empty(x.shape[1], letter)
    batch_norm_channels[letter](x3, plain(weight), plain(bias), y, mean, rstd, eps, shares(x.size))
    return _as_before(y, x), mean, rstd


def batch_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    if not covers(dy, x, weight, mean, rstd) or x.ndim < 2:
        return reference.batch_norm_backward(dy, x, weight, mean, rstd)
    letter, x3 = x.dtype.char, _by_channel(x)
    dx, dweight, dbias = np.empty_like(x3), np.empty(x.shape[1], letter), np.empty(x.shape[1], letter)
    batch_norm_channels_backward[letter](
        _by_channel(dy), x3, plain(weight), plain(mean), plain(rstd), dx, dweight, dbias, shares(x.size)
    )
    return _as_before(dx, x), dweight, dbias


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


@sums
def _gather(table, index, y, i0, i1):
    for i in range(i0, i1):
        row, out = table[index[i]], y[i]
        for j in range(np.uintp(row.size)):
            out[j] = row[j]


@kernel(lambda element: INT(flat(element, 2), TABLE, result(element, 2, "C"), INT), parallel=True)
def gather_rows(table, index, y, nt):
    """y_i = table[index_i]; returns 1 + the first position whose index is out of range, or 0"""
    for i in range(index.size):
        if not -len(table) <= index[i] < len(table):
            return i + 1
    if nt == 1:
        _gather(table, index, y, 0, index.size)
    else:
        for t in numba.prange(nt):
            _gather(table, index, y, t * index.size // nt, (t + 1) * index.size // nt)
    return 0


def embedding(table: Array, index: Array) -> Array:
    if table.ndim != 2 or index.size * table.shape[1] <= SMALL or not table.flags.c_contiguous or index.dtype.kind not in "iu":
        return reference.embedding(table, index)
    if not covers(table):
        return reference.embedding(table, index)
    y = np.empty((index.size, table.shape[1]), table.dtype)
    bad = gather_rows[table.dtype.char](plain(table), _integers(index).reshape(-1), y, threads())
    if bad:
        raise IndexError(f"embedding: index {index.reshape(-1)[bad - 1]} is out of range for a table of {len(table)} rows")
    return y.reshape((*index.shape, table.shape[1]))


@sums
def _scatter(out, index, source, j0, j1):
    for i in range(index.size):
        row, add = out[index[i], j0:j1], source[i, j0:j1]
        for j in range(np.uintp(row.size)):
            row[j] += add[j]


@kernel(lambda element: INT(result(element, 2, "C"), TABLE, flat(element, 2), INT), parallel=True)
def scatter_rows(out, index, source, nt):
    """out[index_i] += source_i in the order of i; threads share the columns, so that no two write to one element"""
    for i in range(index.size):
        if not -len(out) <= index[i] < len(out):
            return i + 1
    n = out.shape[1]
    if nt == 1:
        _scatter(out, index, source, 0, n)
    else:
        for t in numba.prange(nt):
            _scatter(out, index, source, t * n // nt, (t + 1) * n // nt)
    return 0


def scatter_add(out: Array, index: Array, source: Array) -> None:
    width = out[0].size if len(out) else 0
    if not covers(out, source) or not out.flags.carray or index.dtype.kind not in "iu" or width < 4 or index.size == 0:
        reference.scatter_add(out, index, source)
        return
    rows = plain(source).reshape(index.size, width)
    nt = min(shares(source.size), max(width // 16, 1))
    bad = scatter_rows[out.dtype.char](out.reshape(len(out), width), _integers(index).reshape(-1), rows, nt)
    if bad:
        raise IndexError(f"scatter_add: index {index.reshape(-1)[bad - 1]} is out of range for {len(out)} rows")
