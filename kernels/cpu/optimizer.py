"""What is done to all parameters at once: one pass over their memory, in one call, shared by the threads.

A model has dozens of small arrays, each too small to be worth waking a thread for. A table says where each begins; the
threads share the elements of all of them, end to end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from kernels import reference
from kernels.cpu.build import INT, VOID, helper, kernel, result, sums
from kernels.cpu.rows import LETTERS, plain, shares
from kernels.cpu.simd import view

Array = np.ndarray
ADDRESSES = numba.types.Array(numba.intp, 2, "C", readonly=True)


def _table(*lists: Sequence[Array]) -> Array:
    """A row for each parameter: the elements before it, its own, then its address in each list."""
    rows = [[xs[0].size, *(x.ctypes.data for x in xs)] for xs in zip(*lists, strict=True)]
    before = itertools.accumulate((row[0] for row in rows), initial=0)
    return np.array([[n, *row] for n, row in zip(before, rows, strict=False)], np.intp)


@helper
def _piece(table, k, t, nt):
    """From which element of parameter k to which falls to thread t."""
    total = table[-1, 0] + table[-1, 1]
    return max(t * total // nt - table[k, 0], 0), min((t + 1) * total // nt - table[k, 0], table[k, 1])


@helper
def _part(where, i, j, like):
    """Elements i to j of an array that begins at an address"""
    return view(where + i * view(where, 1, like).itemsize, j - i, like)


def _letter(written: Sequence[Sequence[Array]], read: Sequence[Array] = ()) -> str:
    """The element type of all the arrays; "" where only the reference will do."""
    first = [*written, read][0]
    letter = first[0].dtype.char if first else ""
    whole = all(x.dtype.char == letter and x.flags.carray for xs in written for x in xs)
    shapes = [x.shape for x in first]
    same = all([x.shape for x in xs] == shapes for xs in [*written, read] if xs)
    return letter if letter in LETTERS and whole and same and all(x.dtype.char == letter for x in read) else ""


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
                p, g = _part(table[k, 2], i, j, decay), _part(table[k, 3], i, j, decay)
                m, v = _part(table[k, 4], i, j, decay), _part(table[k, 5], i, j, decay)
                _adamw(p, g, m, v, decay, l2, beta1, rest1, beta2, rest2, rate, root, eps)


def _adam(lists: Any, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float, l2: float) -> bool:
    params, grads, ms, vs = lists
    letter = _letter((params, ms, vs), grads)
    if not letter:
        return False
    grads = [plain(g) for g in grads]
    adamw_all[letter](
        _table(params, grads, ms, vs), decay, l2, beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step), eps, shares(sum(p.size for p in params)),
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
    """One step of AdamW for each parameter p, in place on p, m and v: the decay acts on p, not on the gradient."""
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
    """One step of Adam for each parameter p, in place on p, m and v: the decay is a gradient, of ½ λ |p|²."""
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
                parts[t] += _squares(_part(table[k, 2], i, j, like))


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """Σ x² over all elements of all arrays, in float64"""
    letter = _letter((), arrays)
    if not letter:
        return reference.sum_of_squares(arrays)
    arrays = [plain(x) for x in arrays]
    nt = shares(sum(x.size for x in arrays))
    parts = np.zeros(nt)
    squares_all[letter](_table(arrays), 0.0, parts, nt)
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
                _scale(_part(table[k, 2], i, j, factor), factor)


def scale(arrays: Sequence[Array], factor: float) -> None:
    """x ← factor x for each array, in place"""
    letter = _letter((arrays,))
    if letter:
        scale_all[letter](_table(arrays), factor, shares(sum(x.size for x in arrays)))
    else:
        reference.scale(arrays, factor)
