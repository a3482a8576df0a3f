r"""Attention without its matrix: softmax(τ Q Kᵀ + M) V by blocks that stay in the cache, and its gradients.

Q: (T, D), K: (S, D), V: (S, E) of each head; memory is linear in T and S. To be read in this order:

    attention.py            this file, Python: which form of the kernel, how the work is cut between threads, where heads lie
    attention_blocks.py     a block of scores, and the matrix products on it: what both passes share
    attention_forward.py    O, and of each row the maximum of its scores and 1/Σ e^{…}
    attention_backward.py   Q̄, K̄, V̄, for which the weights are made again, block by block
    attention_few.py        both passes for at most four queries, as in writing a text token by token

    attention           →   forward(block = forward_block | forward_few)        one launch, on all threads; each calls the block
    attention_backward  →   backward(block = backward_block | backward_few)     function, by its address, for piece after piece

Heads are read and written where they lie. A compiled driver takes the first head of each operand, a matrix of any strides, and
a table of the distances in bytes from there to the other heads (`HEADS`): leading dimensions of any number and stride,
broadcast or not, cost nothing and are never copied.

Threads share the work in equal parts, pairs of a query and a key being counted. Heads are laid end to end and cut (`_cuts`)
between blocks of queries in the forward pass, of keys in the backward pass: also within a head, if there are few heads. The
same number of threads gives the same bits.

A call costs about 10 µs beside its work, so that what depends on shapes and strides alone is kept (`lru_cache`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels import reference
from kernels.cpu import attention_backward as backward_pass
from kernels.cpu import attention_few
from kernels.cpu import attention_forward as forward_pass
from kernels.cpu.attention_blocks import CUTS, HEADS, QUERIES, Options, Sizes, Tools, tools
from kernels.cpu.attention_few import FEW
from kernels.cpu.matmul import offsets
from kernels.cpu.memory import scratch
from kernels.cpu.rows import covers, plain
from kernels.cpu.threads import threads

Array = np.ndarray
Layouts = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # shape and strides of q, k, v, mask, out; dout, dq, dk, dv

KEY_BLOCK = 64  # keys between which cuts fall
NO_MASK = {letter: np.zeros((0, 0), letter) for letter in "fd"}

# ---------------------------------------------------------------------------------------------------------------------
# What follows from the shapes and strides of the operands alone
# ---------------------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How a call is computed. One plan serves all calls with operands of the same shapes and strides."""

    letter: str  # of the element type
    tools: Tools
    block: int  # address of the block function
    heads: Array  # where they lie: `HEADS`
    starts: Array  # where the heads that read each key head begin among these; for the backward pass
    cuts: Array  # where the share of each thread begins: `CUTS`
    part: int  # elements of a thread's memory
    apart: int  # bytes of these that hold its part of Q̄; for the backward pass

    def memory(self) -> Array:
        """Workspace: a row for each thread"""
        nt = len(self.cuts) - 1
        return scratch(self.letter, nt * self.part)[: nt * self.part].reshape(nt, self.part)


def _whole_lines(size: int, itemsize: int) -> int:
    """Elements: so many bytes, up to whole cache lines"""
    return -(-size // (16 * itemsize)) * 16


def _few(letter: str, dropout: bool, layouts: Layouts) -> bool:
    """Is each key and value to be read once, as it lies? The backward pass decides as the forward pass did."""
    (q_shape, q), (_, k), (_, v), (mask_shape, mask) = layouts[:4]
    size = np.dtype(letter).itemsize
    if q_shape[-2] > FEW or dropout or not q[-1] == k[-1] == v[-1] == size:
        return False
    return 0 in mask_shape or mask[-1] in (0, size)


def _heads(lead: tuple[int, ...], names: tuple[str, ...], layouts: Layouts) -> Array:
    """The table of all heads"""
    table = np.zeros(math.prod(lead), HEADS)
    table["index"] = np.arange(len(table))
    for name, (shape, strides) in zip(names, layouts, strict=True):
        table[name] = offsets(lead, shape[:-2], strides[:-2])
    return table


def _by_key_head(lead: tuple[int, ...], keys: tuple[int, ...]) -> tuple[Array, Array]:
    """The order of the heads in which those that read the same keys are neighbours, and where those of each key head begin."""
    strides = tuple(np.cumprod((1, *keys[:0:-1]))[::-1].tolist()) if keys else ()
    key_head = offsets(lead, keys, strides)
    order = np.argsort(key_head, kind="stable")
    starts = np.flatnonzero(np.concatenate(([True], np.diff(key_head[order]) > 0)))
    return order, np.append(starts, key_head.size).astype(np.intp)


def _cuts(heads: int, rows: int, others: int, causal: bool, by_keys: bool, nt: int) -> Array:
    """(head, row) at which each thread begins, so that all have as many pairs of a query and a key.     (nt + 1)

    Rows are queries, or keys; they see all `others`, or, if causal, those up to (from) their own position on. Cuts fall on
    whole blocks: between heads, where these are short.
    """
    block = (KEY_BLOCK if rows > 4 * KEY_BLOCK else rows) if by_keys else QUERIES
    pairs = np.full(rows, others)
    if causal:
        position = np.arange(rows)
        pairs = np.maximum(others - position, 0) if by_keys else np.minimum(position + 1, others)
    total = np.concatenate(([0], np.cumsum(pairs)))
    cuts = np.empty(nt + 1, CUTS)
    cuts[:] = (heads, 0)
    for t in range(nt):
        head, rest = divmod(t * heads * total[-1] / nt, max(total[-1], 1))
        row = round(np.searchsorted(total, rest) / block) * block
        cuts[t] = (int(head) + 1, 0) if row >= rows else (int(head), row)
    return cuts


@lru_cache(maxsize=1024)
def _forward_plan(letter: str, lead: tuple[int, ...], causal: bool, dropout: bool, nt: int, layouts: Layouts) -> Plan:
    (rows, d), (keys, e), size = layouts[0][0][-2:], layouts[2][0][-2:], np.dtype(letter).itemsize
    heads = _heads(lead, ("q", "k", "v", "mask", "out"), layouts)
    if len(heads) * rows * keys * (d + e) <= 1 << 17:
        nt = 1
    if _few(letter, dropout, layouts):
        nt, block, end = min(nt, len(heads)), attention_few.forward_few, keys * size
    else:
        block, masked = forward_pass.forward_block, 0 not in layouts[3][0]
        end = forward_pass.workspace.py_func(0, Sizes(rows, keys, d, e), masked, size).end
    cuts = _cuts(len(heads), rows, keys, causal, False, nt)
    return Plan(letter, tools(letter), block[letter], heads, np.arange(0), cuts, _whole_lines(end, size), 0)


@lru_cache(maxsize=1024)
def _backward_plan(letter: str, lead: tuple[int, ...], causal: bool, dropout: bool, nt: int, layouts: Layouts) -> Plan:
    (rows, d), (keys, e), size = layouts[0][0][-2:], layouts[2][0][-2:], np.dtype(letter).itemsize
    order, starts = _by_key_head(lead, layouts[1][0][:-2])
    heads = _heads(lead, ("q", "k", "v", "mask", "out", "dout", "dq", "dk", "dv"), layouts)[order]
    if len(heads) * rows * keys * (d + e) <= 1 << 16:
        nt = 1
    cuts = _cuts(len(starts) - 1, keys, rows, causal, True, nt)
    block, workspace = backward_pass.backward_block, backward_pass.workspace
    if _few(letter, dropout, layouts):
        block, workspace = attention_few.backward_few, attention_few.workspace
    # Where a share begins amid the keys of a key head, it keeps the Q̄ of all heads that read these apart.
    apart = _whole_lines(len(heads) // (len(starts) - 1) * rows * d * size, size) * size if cuts["row"].any() else 0
    part = _whole_lines(workspace.py_func(apart, Sizes(rows, keys, d, e), size).end, size)
    return Plan(letter, tools(letter), block[letter], heads, starts, cuts, part, apart)


# ---------------------------------------------------------------------------------------------------------------------
# The two kernels
# ---------------------------------------------------------------------------------------------------------------------


def _lead(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[int, ...] | None:
    """The leading dimensions, or None where only the reference will do."""
    arrays = (q, k, v) if mask is None else (q, k, v, mask)
    if not covers(*arrays) or any(x.ndim < 2 or x.size == 0 for x in arrays):
        return None
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        return None
    lead = q.shape[:-2] if q.shape[:-2] == k.shape[:-2] else np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    if mask is not None:
        for size, wanted in ((mask.shape[-2], q.shape[-2]), (mask.shape[-1], k.shape[-2])):
            if size not in (1, wanted):
                return None
        if np.broadcast_shapes(lead, mask.shape[:-2]) != lead:
            return None
        if any(s < 0 for s in mask.strides[-2:]):
            return None
    return lead


def _like(x: Array, lead: tuple[int, ...], width: int) -> Array:
    """An empty (lead…, rows, width) with the dimensions in the order in which x has them in memory: rows contiguous."""
    shape = (*lead, x.shape[-2], width)
    if x.shape == shape and x.strides[-1] == x.itemsize and 0 not in x.strides:
        return np.empty_like(x)
    return np.empty(shape, x.dtype)


def _first(x: Array) -> Array:
    """The first matrix of a batch"""
    return x[(0,) * (x.ndim - 2)] if x.ndim > 2 else x


def _options(q: Array, causal: bool, scale: float | None, *, dropout_p: float = 0.0, seed: int = 0, stream: int = 0) -> Options:
    """τ is 1/√D by default. Dropout's random words have 32 bits, as have the two halves of the seed."""
    low, scale = 0xFFFFFFFF, q.shape[-1] ** -0.5 if scale is None else scale
    halves = seed & low, seed >> 32 & low
    return Options(causal, scale, 1 / (1 - dropout_p), round(dropout_p * 2**32), *halves, stream & 0xFFFFFFFFFFFFFFFF)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
) -> tuple[Array, Array]:
    noise = {"dropout_p": dropout_p, "seed": seed, "stream": stream}
    lead = None if dropout_p >= 1 else _lead(q, k, v, mask)
    if lead is None:
        return reference.attention(q, k, v, causal=causal, mask=mask, scale=scale, **noise)
    letter, mask = q.dtype.char, NO_MASK[q.dtype.char] if mask is None else mask
    out, statistics = _like(q, lead, v.shape[-1]), np.empty((2, *lead, q.shape[-2], 1), q.dtype)
    arrays = q, k, v, mask, out
    plan = _forward_plan(letter, lead, causal, dropout_p > 0, threads(), tuple([(x.shape, x.strides) for x in arrays]))
    operands = forward_pass.Operands(*map(_first, arrays), statistics.reshape(2, -1))
    options = _options(q, causal, scale, **noise)
    forward_pass.forward[letter](plan.tools, plan.block, operands, plan.heads, plan.cuts, options, plan.memory())
    return out, statistics


def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    statistics: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    mask_grad: bool = False,
    into: tuple[Array, Array, Array] | None = None,
    **dropout: Any,
) -> tuple[Array, Array, Array, Array | None]:
    """The reference computes where M̄ is asked for, or where an array of `into` has rows that are not contiguous."""
    letter, dropout_p = q.dtype.char, dropout.get("dropout_p", 0.0)
    lead = None if dropout_p >= 1 else _lead(q, k, v, mask)
    fits = into is None or all(x.strides[-1] == q.itemsize and x.dtype == q.dtype for x in into)
    if lead is None or mask_grad or not fits or not dout.dtype == out.dtype == statistics.dtype == q.dtype:
        options = {"causal": causal, "mask": mask, "scale": scale, **dropout}
        if lead is not None:  # O, m and Σ have to be those of the scores that P is made from: the reference's own
            out, statistics = reference.attention(q, k, v, **options)
        return reference.attention_backward(dout, q, k, v, out, statistics, mask_grad=mask_grad, into=into, **options)
    mask = NO_MASK[letter] if mask is None else mask
    dq, dk, dv = into or (_like(q, lead, q.shape[-1]), *[_like(x, x.shape[:-2], x.shape[-1]) for x in (k, v)])
    arrays = q, k, v, mask, out, dout, dq, dk, dv
    plan = _backward_plan(letter, lead, causal, dropout_p > 0, threads(), tuple([(x.shape, x.strides) for x in arrays]))
    operands = backward_pass.Operands(*map(_first, arrays), plain(statistics).reshape(2, -1))
    backward_pass.backward[letter](
        plan.tools,
        plan.block,
        operands,
        plan.heads,
        plan.starts,
        plan.cuts,
        _options(q, causal, scale, **dropout),
        plan.memory(),
        plan.apart,
    )
    return dq, dk, dv, None
