r"""One step of Adam or AdamW, and the sum of squares of all gradients, by whose root they may be cut.

    adam, adamw        a launch for each parameter; a thread for each element reads p, g, m, v and writes p, m, v
    sum_of_squares     a block of 128 threads for each 8,192 elements: thread t the elements t, t + 128, …, 64 of them

The blocks' sums are added in float64 by the library of the arrays, so the error does not grow with the count of elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32

from kernels import reference
from kernels.cuda.build import (
    F1,
    FLAT,
    THREADS,
    WARPS,
    Array,
    cdiv,
    check,
    empty,
    is_float32,
    kernel,
    launch,
    plain,
    record,
)
from kernels.cuda.sums import SHARED, add, block_sum


class Step(NamedTuple):
    """What is the same for every element of a step."""

    keep: float  # 1 − lr λ: what AdamW's decay leaves of p
    penalty: float  # λ of Adam: the decay is part of the gradient
    beta1: float
    gain1: float  # 1 − β₁
    beta2: float
    gain2: float  # 1 − β₂
    rate: float  # lr / (1 − β₁ᵗ)
    root: float  # √(1 − β₂ᵗ)
    eps: float


@kernel((F1, F1, F1, F1, record(Step)), threads=FLAT, registers=40)
def adam_each(p, g, m, v, step):
    """m ← β₁ m + (1 − β₁) d;  v ← β₂ v + (1 − β₂) d²;  p ← keep p − rate m / (√v / root + ε),  d = g + penalty p"""
    i = cuda.grid(1)
    if i < p.size:
        d = g[i] + step.penalty * p[i]
        mi = step.beta1 * m[i] + step.gain1 * d
        vi = step.beta2 * v[i] + step.gain2 * d * d
        m[i] = mi
        v[i] = vi
        p[i] = step.keep * p[i] - step.rate * mi / (math.sqrt(vi) / step.root + step.eps)


def _adam(arrays: tuple[Sequence[Array], ...], keep: float, penalty: float, constants: dict[str, Any], composed: Any) -> None:
    """`constants` are the options of `adamw`, which `composed` takes for the parameters that the kernel does not cover."""
    beta1, beta2, t = constants["beta1"], constants["beta2"], constants["step"]
    rate, root = constants["lr"] / (1 - beta1**t), math.sqrt(1 - beta2**t)
    coefficients = keep, penalty, beta1, 1 - beta1, beta2, 1 - beta2, rate, root, constants["eps"]
    step = Step(*map(np.float32, coefficients))
    for p, g, m, v in zip(*arrays, strict=True):
        check("adam", p, g, m, v)
        if not is_float32(p, g, m, v) or not all(x.flags.c_contiguous for x in (p, m, v)):
            composed([p], [g], [m], [v], **constants)
        elif p.size:
            launch(adam_each, cdiv(p.size, FLAT), *[x.reshape(-1) for x in (p, plain(g), m, v)], step)


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
    constants = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    arrays = params, grads, exp_avgs, exp_avg_sqs
    _adam(arrays, 1 - lr * weight_decay, 0.0, constants, reference.adamw)


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
    constants = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    arrays = params, grads, exp_avgs, exp_avg_sqs
    _adam(arrays, 1.0, weight_decay, constants, reference.adam)


SPAN = 64 * THREADS  # elements of a block: few enough for many blocks, and enough for their sums to be few


@kernel((F1, F1), threads=THREADS, registers=40, shared=SHARED)
def squares(x, parts):
    """Σ x² over each SPAN of elements"""
    shared = cuda.shared.array(WARPS, float32)
    begin = cuda.blockIdx.x * SPAN
    end = begin + SPAN
    if end > x.size:
        end = x.size
    total, lost = float32(0.0), float32(0.0)
    for i in range(begin + cuda.threadIdx.x, end, THREADS):
        total, lost = add(total, lost, x[i] * x[i])
    total = block_sum(total, lost, shared)
    if cuda.threadIdx.x == 0:
        parts[cuda.blockIdx.x] = total


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """Blocks of elements are added in float32, their sums in float64. The host waits for the result."""
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
    reference.scale(arrays, factor)
