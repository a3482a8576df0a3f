"""Batches: shuffled rows, and windows of tokens. Each is a pure function of the seed and of the step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from scratchgen.data.checks import DataError, kind, require_natural


def shuffled(n: int, batch_size: int, *, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """An endless run of shuffled batches of the rows 0 … n − 1, beginning with batch number `start`.

        batch k = rows π_e[j·B : (j+1)·B],   e = k div m,  j = k mod m,  m = n div B,
        π_e = the permutation of range(n) drawn from the seed (seed, e)

    The n mod B rows left over sit an epoch out; which they are changes with the epoch.

    Raises DataError at the call, not at the first batch: B larger than n, a negative seed or start.
    """
    require_natural("batch_size", batch_size, 1)
    require_natural("seed", seed, 0)
    require_natural("start", start, 0)
    if batch_size > n:
        raise DataError(f"batch_size: expected at most {n}, the number of rows, got {batch_size}.")

    def run() -> Iterator[np.ndarray]:
        m = n // batch_size
        for k in itertools.count(start):
            epoch, j = divmod(k, m)
            if j == 0 or k == start:
                order = np.random.default_rng((seed, epoch)).permutation(n)
            yield order[j * batch_size : (j + 1) * batch_size]

    return run()


def windows(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    *,
    seed: int,
    step: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Batch number `step` of random windows of a token sequence, and the same windows one token later.

        x_b = t[i_b : i_b + T],   y_b = t[i_b + 1 : i_b + T + 1],   i_b uniform on 0 … n − T − 1, from (seed, step)

    tokens: integers (n,), an array or a memory map;  T = block_size;  x, y: int64 (batch_size, T).

    Raises DataError: tokens that are not one row of integers, fewer than T + 1 of them, or a batch of 2³¹ windows or more.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens: expected integers of shape (n,), got {kind(tokens)}.")
    for name, value, least in (
        ("block_size", block_size, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("step", step, 0),
    ):
        require_natural(name, value, least)
    if len(tokens) <= block_size:
        raise DataError(f"tokens: expected at least block_size + 1 = {block_size + 1} of them, got {len(tokens)}.")
    if batch_size >= 2**31:  # more than any memory holds
        raise DataError(f"batch_size: expected a number below {2**31}, got {batch_size}.")
    first = np.random.default_rng((seed, step)).integers(0, len(tokens) - block_size, size=batch_size)
    window = tokens[first[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return window[:, :-1].copy(), window[:, 1:].copy()
