r"""One step of an optimiser, and the norm of all gradients that it may be cut to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda, float32

from kernels import reference
from kernels.cuda.build import (
    F1,
    FLAT,
    FLOAT,
    THREADS,
    WARPS,
    Array,
    block_sum,
    cdiv,
    check,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
)
from kernels.cuda.rows import ROOM


@kernel((F1, F1, F1, F1, *[FLOAT] * 9), threads=FLAT, registers=40)
def adam_each(p, g, m, v, keep, penalty, beta1, gain1, beta2, gain2, rate, root, eps):
    """m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  p ← keep p − rate m / (√v / root + ε), g with its penalty"""
    i = cuda.grid(1)
    if i < p.size:
        d = g[i] + penalty * p[i]
        mi = beta1 * m[i] + gain1 * d
        vi = beta2 * v[i] + gain2 * d * d
        m[i] = mi
        v[i] = vi
        p[i] = keep * p[i] - rate * mi / (math.sqrt(vi) / root + eps)


def _step(
    arrays: tuple[Sequence[Array], ...], keep: float, penalty: float, o: dict[str, Any], otherwise: Any, decay: float
) -> None:
    beta1, beta2, step = o["beta1"], o["beta2"], o["step"]
    rate, root = o["lr"] / (1 - beta1**step), math.sqrt(1 - beta2**step)
    numbers = [np.float32(s) for s in (keep, penalty, beta1, 1 - beta1, beta2, 1 - beta2, rate, root, o["eps"])]
    for p, g, m, v in zip(*arrays, strict=True):
        check("adam", p, g, m, v)
        if not is_float32(p, g, m, v) or not all(x.flags.c_contiguous for x in (p, m, v)):
            otherwise([p], [g], [m], [v], **o, weight_decay=decay)
        elif p.size:
            launch(adam_each, cdiv(p.size, FLAT), *[x.reshape(-1) for x in (p, plain(g), m, v)], *numbers)


def adamw(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    weight_decay: float,
    **options: Any,
) -> None:
    """One step of AdamW for each parameter, in place on it and its averages."""
    arrays = params, grads, exp_avgs, exp_avg_sqs
    _step(arrays, 1 - options["lr"] * weight_decay, 0.0, options, reference.adamw, weight_decay)


def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    weight_decay: float,
    **options: Any,
) -> None:
    """One step of Adam for each parameter, in place on it and its averages: the decay is part of the gradient."""
    _step((params, grads, exp_avgs, exp_avg_sqs), 1.0, weight_decay, options, reference.adam, weight_decay)


SPAN = 64 * THREADS  # numbers that one block adds up


@kernel((F1, F1), threads=THREADS, registers=40, shared=ROOM)
def squares(x, parts):
    room = cuda.shared.array(WARPS, float32)
    begin = cuda.blockIdx.x * SPAN
    end = begin + SPAN
    if end > x.size:
        end = x.size
    total = float32(0.0)
    for i in range(begin + cuda.threadIdx.x, end, THREADS):
        total += x[i] * x[i]
    total = block_sum(total, room)
    if cuda.threadIdx.x == 0:
        parts[cuda.blockIdx.x] = total


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """Σ x² over all elements of all arrays: blocks of numbers in float32, and these in float64. The host waits for it once."""
    check("sum_of_squares", *arrays)
    if not is_float32(*arrays):
        return float(sum((x.astype(np.float64) ** 2).sum() for x in arrays))
    counts = [cdiv(x.size, SPAN) for x in arrays]
    parts, begin = empty(arrays[0], sum(counts)), 0
    for x, n in zip(arrays, counts, strict=True):
        launch(squares, n, plain(x).reshape(-1), parts[begin : begin + n])
        begin += n
    return float(parts.sum(dtype=np.float64)) if begin else 0.0


def scale(arrays: Sequence[Array], factor: float) -> None:
    """x ← factor x for each array, in place"""
    reference.scale(arrays, factor)
