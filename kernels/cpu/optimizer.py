"""What is done to all parameters at once: one pass over their memory, in one call, shared by the threads.

A model has dozens of small arrays, each too small to be worth waking a thread for. A table says where each begins. Each
thread takes its part of every array. The products that computed the gradients cut them the same way, so that some of a
thread's parts are still in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, LETTERS, VOID, helper, kernel, result, sums
from kernels.cpu.rows import flat, plain, shares
from kernels.cpu.simd import address, view

Array = np.ndarray
ADDRESSES = numba.types.Array(numba.intp, 2, "C", readonly=True)


@kernel(lambda element: VOID(result(INT, 1, "C"), *[flat(element)] * 4))
def fill(row, a, b, c, d):
    """One row of a table"""
    row[0], row[1], row[2], row[3], row[4] = a.size, address(a), address(b), address(c), address(d)


class Table:
    """A row for each parameter, its number of elements and its address in each list, and the arrays that lie there.

    `letter` stands for their element type; it is "" where the reference has to do the work. The first `written` lists are
    written to.
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
    """Thread t has the elements i to j − 1 of parameter k: returns i and j."""
    return t * table[k, 0] // nt, (t + 1) * table[k, 0] // nt


@helper
def _part(where, i, j, like):
    """Elements i to j of an array that begins at an address"""
    return view(where + i * view(where, 1, like).itemsize, j - i, like)


class Step(NamedTuple):
    """What is the same for every element of a step."""

    keep: float  # 1 − lr λ: what AdamW's decay leaves of p
    penalty: float  # λ of Adam: the decay is part of the gradient
    beta1: float
    gain1: float  # 1 − β₁
    beta2: float
    gain2: float  # 1 − β₂
    rate: float  # lr / (1 − β₁ᵗ)
    root: float  # 1 / √(1 − β₂ᵗ)
    eps: float


@sums
def _adam_of_one(p, g, m, v, step):
    """m ← β₁ m + (1 − β₁) d;  v ← β₂ v + (1 − β₂) d²;  p ← keep p − rate m / (√v root + ε),  d = g + penalty p"""
    for j in range(np.uintp(p.size)):
        d = g[j] + step.penalty * p[j]
        first = step.beta1 * m[j] + step.gain1 * d
        second = step.beta2 * v[j] + step.gain2 * (d * d)
        m[j], v[j] = first, second
        p[j] = p[j] * step.keep - step.rate * (first / (np.sqrt(second) * step.root + step.eps))


@kernel(lambda element: VOID(ADDRESSES, numba.types.NamedUniTuple(element, len(Step._fields), Step), INT), parallel=True)
def adam_of_all(table, step, nt):
    for t in numba.prange(nt):
        for k in range(len(table)):
            i, j = _piece(table, k, t, nt)
            if i < j:
                p, m = _part(table[k, 1], i, j, step.keep), _part(table[k, 2], i, j, step.keep)
                v, g = _part(table[k, 3], i, j, step.keep), _part(table[k, 4], i, j, step.keep)
                _adam_of_one(p, g, m, v, step)


def _adam(lists: Any, step: int, lr: float, beta1: float, beta2: float, eps: float, keep: float, penalty: float) -> bool:
    params, grads, ms, vs = lists
    grads = [plain(g) for g in grads]
    table = Table(3, params, ms, vs, grads)
    if not table.letter:
        return False
    rate, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    coefficients = keep, penalty, beta1, 1 - beta1, beta2, 1 - beta2, rate, root, eps
    adam_of_all[table.letter](table.rows, Step(*map(np.dtype(table.letter).type, coefficients)), table.shares())
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


@kernel(lambda element: VOID(ADDRESSES, element, result(numba.float64, 1, "C"), INT), parallel=True)
def squares_all(table, like, parts, nt):
    """parts[t] = Σ x² of the elements of thread t"""
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


@kernel(lambda element: VOID(ADDRESSES, element, INT), parallel=True)
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
