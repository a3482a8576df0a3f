"""What is done to all parameters at once: one pass over their memory, in one call, shared by the threads.

A model has dozens of small arrays, each too small to be worth waking a thread for. A table says where each begins. Each
thread takes its part of every array: products cut gradients the same way, and some of them are still in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, LETTERS, VOID, helper, kernel, result, sums
from kernels.cpu.rows import flat, plain, shares
from kernels.cpu.simd import address, view

Array = np.ndarray
ADDRESSES = numba.types.Array(numba.intp, 2, "C", readonly=True)


@kernel(lambda T: VOID(result(INT, 1, "C"), *[flat(T)] * 4))
def fill(row, a, b, c, d):
    """One row of a table"""
    row[0], row[1], row[2], row[3], row[4] = a.size, address(a), address(b), address(c), address(d)


class Table:
    """A row for each parameter, its number of elements and its address in each list, and the arrays that lie there.

    `letter`: their element type, or "" where only the reference will do. The first lists, `written` of them, are written to.
    """

    __slots__ = ("arrays", "letter", "rows")

    def __init__(self, written: int, *lists: Sequence[Array]) -> None:
        dtype = lists[0][0].dtype if lists[0] else None
        self.letter, self.arrays, self.rows = "", [], np.empty((len(lists[0]), 5), np.intp)
        letter = LETTERS.get(dtype, "")
        if not letter:
            return
        for k, xs in enumerate(zip(*lists, strict=True)):
            shape, flats = xs[0].shape, []
            for i, x in enumerate(xs):
                flags = x.flags
                usable = flags.carray if i < written else flags.c_contiguous and flags.aligned
                if x.dtype != dtype or x.shape != shape or not usable:
                    return
                flats.append(x.reshape(-1))
            fill[letter](self.rows[k], *flats, *flats[:1] * (4 - len(flats)))
            self.arrays += flats
        self.letter = letter

    def shares(self) -> int:
        return shares(int(self.rows[:, 0].sum()))


@helper
def _piece(table, k, t, nt):
    """From which element of parameter k to which falls to thread t."""
    return t * table[k, 0] // nt, (t + 1) * table[k, 0] // nt


@helper
def _part(where, i, j, like):
    """Elements i to j of an array that begins at an address"""
    return view(where + i * view(where, 1, like).itemsize, j - i, like)


@sums
def _adamw(p, g, m, v, decay, l2, beta1, rest1, beta2, rest2, rate, root, eps):
    for j in range(np.uintp(p.size)):
        grad = g[j] + l2 * p[j]
        first = beta1 * m[j] + rest1 * grad
        second = beta2 * v[j] + rest2 * (grad * grad)
        m[j], v[j] = first, second
        p[j] = p[j] * decay - rate * (first / (np.sqrt(second) * root + eps))


@kernel(lambda T: VOID(ADDRESSES, T, T, T, T, T, T, T, T, T, INT), parallel=True)
def adamw_all(table, decay, l2, beta1, rest1, beta2, rest2, rate, root, eps, nt):
    for t in numba.prange(nt):
        for k in range(len(table)):
            i, j = _piece(table, k, t, nt)
            if i < j:
                p, m = _part(table[k, 1], i, j, decay), _part(table[k, 2], i, j, decay)
                v, g = _part(table[k, 3], i, j, decay), _part(table[k, 4], i, j, decay)
                _adamw(p, g, m, v, decay, l2, beta1, rest1, beta2, rest2, rate, root, eps)


def _adam(lists: Any, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float, l2: float) -> bool:
    params, grads, ms, vs = lists
    grads = [plain(g) for g in grads]
    table = Table(3, params, ms, vs, grads)
    if not table.letter:
        return False
    adamw_all[table.letter](
        table.rows, decay, l2, beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step), eps, table.shares(),
    )  # fmt: skip
    return True


def adamw(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    lists = params, grads, exp_avgs, exp_avg_sqs
    if not _adam(lists, step, lr, beta1, beta2, eps, 1 - lr * weight_decay, 0.0):
        reference.adamw(*lists, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)


def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    lists = params, grads, exp_avgs, exp_avg_sqs
    if not _adam(lists, step, lr, beta1, beta2, eps, 1.0, weight_decay):
        reference.adam(*lists, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)


@sums
def _squares(x):
    total = 0.0
    for j in range(np.uintp(x.size)):
        total += np.float64(x[j]) * np.float64(x[j])
    return total


@kernel(lambda T: VOID(ADDRESSES, T, result(numba.float64, 1, "C"), INT), parallel=True)
def squares_all(table, like, parts, nt):
    """parts[t] = Σ x² of what falls to thread t"""
    for t in numba.prange(nt):
        for k in range(len(table)):
            i, j = _piece(table, k, t, nt)
            if i < j:
                parts[t] += _squares(_part(table[k, 1], i, j, like))


def sum_of_squares(arrays: Sequence[Array]) -> float:
    arrays = [plain(x) for x in arrays]
    table = Table(0, arrays)
    if not table.letter:
        return reference.sum_of_squares(arrays)
    parts = np.zeros(table.shares())
    squares_all[table.letter](table.rows, 0.0, parts, parts.size)
    return float(parts.sum())


@sums
def _scale(x, factor):
    for j in range(np.uintp(x.size)):
        x[j] *= factor


@kernel(lambda T: VOID(ADDRESSES, T, INT), parallel=True)
def scale_all(table, factor, nt):
    for t in numba.prange(nt):
        for k in range(len(table)):
            i, j = _piece(table, k, t, nt)
            if i < j:
                _scale(_part(table[k, 1], i, j, factor), factor)


def scale(arrays: Sequence[Array], factor: float) -> None:
    table = Table(1, arrays)
    if table.letter:
        scale_all[table.letter](table.rows, factor, table.shares())
    else:
        reference.scale(arrays, factor)
