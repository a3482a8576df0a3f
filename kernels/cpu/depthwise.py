r"""Convolutions of single channels: each output plane is made from one input plane, by few products for each element.

    y[n, c m + k, i] = Σ_t x[n, c, s i + d t − p] w[c m + k, t],   k < m,     and the gradients of x and of w

There is no sum over channels, so no matrix product to be had. Planes are independent, so a vector holds one pixel of as many
planes (n, c) as it has lanes, and a product of vectors serves them all, whatever the stride. Any number of channels fills the
vectors, since planes are counted through all images:

    for each block of L planes (n, c), L lanes:                                     threads share the blocks
        planes → canvas                                  L numbers for each pixel, in a border of zeros
        for each group of up to 9 taps t, whose w[t], or whose sums w̄[t], stay in registers:
            for each pixel i:      for each t:   y[i] += x[rows[i] + steps[t]] w[t]                      `spread`
                               or  for each t:   w̄[t] += x[rows[i] + steps[t]] ȳ[i]                      `gather`
        result → planes

With stride 1 and long lines y and x̄ are quicker made without transposing planes: `depthwise_strips.py`.

The tables `rows` and `steps` are those of `convolution_plans.py` for one channel, with a vector where these have an element;
the gradient of x is made from ȳ by the phases of the backward plan.

Memory of one thread:    canvas (elements × L)  |  result, or ȳ (pixels × L)  |  sums (taps × L)
Weights: (blocks, m, taps in the order of the plan, L). The lanes of block b belong to the channels (b L + lane) mod C, so the
blocks repeat after lcm(C, L) / L of them.
Numbers: 9 taps are those of a 3 × 3 kernel, and the offsets of more would not fit the integer registers; 9 products keep both
of a core's multipliers busy, each of which takes 4 cycles. The sums over CHUNK pixels are added in float64.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels.cpu import depthwise_strips, jobs
from kernels.cpu.build import INT, VOID, kernel
from kernels.cpu.convolution_loops import PHASE_BYTES
from kernels.cpu.convolution_plans import PHASE, Geometry, Plan, backward_plan, forward_plan, multiples
from kernels.cpu.jobs import Address, Offsets, launch, lines, part, portion, read, record, whole_lines, zero
from kernels.cpu.simd import BITS, BYTES, I64, Vectors, call, lanes, scatter

Array = np.ndarray
TAPS = 9  # at once
CHUNK = 256  # pixels whose products are added in their own type

# ---------------------------------------------------------------------------------------------------------------------
# The tiles
# ---------------------------------------------------------------------------------------------------------------------


def _by_count(builder: Any, count: Any, most: int, emit: Any) -> None:
    """A piece of code for each count from 1 to `most`, since an index into registers must be known when it is compiled."""
    leave = builder.append_basic_block("leave")
    switch = builder.switch(count, leave)
    for n in range(1, most + 1):
        block = builder.append_basic_block(f"count{n}")
        switch.add_case(I64(n), block)
        builder.position_at_end(block)
        emit(n)
        builder.branch(leave)
    builder.position_at_end(leave)


def _repeat(vec: Vectors, count: Any, sums: list, step: Any) -> list:
    """sums ← step(i, sums) for 0 ≤ i < count, count at least 1"""
    builder = vec.builder
    before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    index, now = builder.phi(I64), [builder.phi(vec.type) for _ in sums]
    new = step(index, list(now))
    following = builder.add(index, I64(1))
    for phi, first, x in zip([index, *now], [I64(0), *sums], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(x, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    return new


def _vector(vec: Vectors, table: Any, i: Any) -> Any:
    """Bytes to the vector whose offset, in vectors, is table[i]."""
    offset = vec.builder.load(vec.builder.bitcast(vec.at(table, vec.builder.mul(i, I64(8))), I64.as_pointer()))
    return vec.builder.mul(offset, I64(vec.lanes * vec.itemsize))


@intrinsic
def _spread(typingctx: Any, count: Any, x: Any, rows: Any, steps: Any, w: Any, y: Any, results: Any, n: Any, add: Any) -> Any:
    """y[results[i]] (+)= Σ_{t < n} x[rows[i] + steps[t]] ⊙ w[t] for i < count, n ≤ TAPS, each a vector"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        count, x, rows, steps, w, y, results, n, add = args
        x, rows, steps, w, y, results = (builder.bitcast(a, BYTES) for a in (x, rows, steps, w, y, results))
        adding = builder.icmp_signed("!=", add, I64(0))

        def emit(taps: int) -> None:
            offsets = [_vector(vec, steps, I64(t)) for t in range(taps)]
            weights = [vec.load(vec.at(w, t * vec.lanes * vec.itemsize)) for t in range(taps)]

            def step(i: Any, sums: list) -> list:
                pixel, target = vec.at(x, _vector(vec, rows, i)), vec.at(y, _vector(vec, results, i))
                edge = vec.splat(adding)  # where nothing is to be added, the target is not read
                total = vec.load(target, edge)
                for offset, weight in zip(offsets, weights, strict=True):
                    total = vec.fma(vec.load(vec.at(pixel, offset)), weight, total)
                vec.store(total, target)
                return sums

            _repeat(vec, count, [], step)

        _by_count(builder, n, TAPS, emit)
        return context.get_dummy_value()

    return types.void(count, x, rows, steps, w, y, results, n, add), codegen


@intrinsic
def _gather(typingctx: Any, count: Any, x: Any, rows: Any, steps: Any, dy: Any, sums: Any, n: Any) -> Any:
    """sums[t] = Σ_{i < count} x[rows[i] + steps[t]] ⊙ dy[i] for t < n ≤ TAPS, each a vector"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = Vectors(builder, context.get_value_type(signature.args[1].dtype))
        count, x, rows, steps, dy, sums, n = args
        x, rows, steps, dy, sums = (builder.bitcast(a, BYTES) for a in (x, rows, steps, dy, sums))
        size = vec.lanes * vec.itemsize

        def emit(taps: int) -> None:
            offsets = [_vector(vec, steps, I64(t)) for t in range(taps)]

            def step(i: Any, totals: list) -> list:
                pixel, grad = vec.at(x, _vector(vec, rows, i)), vec.load(vec.at(dy, builder.mul(i, I64(size))))
                return [vec.fma(vec.load(vec.at(pixel, o)), grad, total) for o, total in zip(offsets, totals, strict=True)]

            for t, total in enumerate(_repeat(vec, count, [vec.zero] * taps, step)):
                vec.store(total, vec.at(sums, t * size))

        _by_count(builder, n, TAPS, emit)
        return context.get_dummy_value()

    return types.void(count, x, rows, steps, dy, sums, n), codegen


def _spread_signature(element: Any) -> Any:
    elements, table = types.CPointer(element), types.CPointer(INT)
    return VOID(INT, elements, table, table, elements, elements, table, INT, INT)


@kernel(_spread_signature, callback=True)
def spread(count, x, rows, steps, w, y, results, n, add):
    """See `_spread`."""
    _spread(count, x, rows, steps, w, y, results, n, add)


def _gather_signature(element: Any) -> Any:
    elements, table = types.CPointer(element), types.CPointer(INT)
    return VOID(INT, elements, table, table, elements, elements, INT)


@kernel(_gather_signature, callback=True)
def gather(count, x, rows, steps, dy, sums, n):
    """See `_gather`."""
    _gather(count, x, rows, steps, dy, sums, n)


@kernel(lambda element: VOID(types.CPointer(numba.float64), types.CPointer(element), INT), callback=True)
def add_widely(totals, sums, n):
    """totals[i] += sums[i], in float64"""
    for i in range(n):
        totals[i] += sums[i]


class Tools(NamedTuple):
    """The functions of one element type by their addresses, and the size of an element."""

    scatter: int
    spread: int
    gather: int
    add: int
    item: int


@lru_cache
def tools(letter: str) -> Tools:
    return Tools(*(f[letter] for f in (scatter, spread, gather, add_widely)), np.dtype(letter).itemsize)


# ---------------------------------------------------------------------------------------------------------------------
# The loops over planes
# ---------------------------------------------------------------------------------------------------------------------


class Planes(NamedTuple):
    """Planes (n, c) as they come and go: there are `multiple` of them for each plane that is counted."""

    start: Address
    multiple: int
    pixels: int


class Convolution(NamedTuple):
    """y from x, or x̄ from ȳ, by the phases of a plan."""

    tools: Tools
    planes: int
    multiple: int
    source: Planes
    result: Planes
    pixels: Address  # offset of each pixel in the canvas
    offsets: Address  # offset of each lane's plane in the result
    elements: int  # of the canvas, in vectors
    phases: Address
    phase_count: int
    complete: int  # whether the phases reach each pixel of the result
    weights: Address
    weight_blocks: int
    taps: int
    memory: Address
    size: int


CONVOLUTION = record(Convolution)


@part
def correlate_planes(t, threads, where):
    """For each block of planes, for k < m:  result (+)= canvas ⋆ w_k.    Each plane of the source is taken to a canvas once."""
    job = read(where, CONVOLUTION)
    tools, source, result, multiple = job.tools, job.source, job.result, job.multiple
    item, wide = tools.item, BITS // 8 // tools.item
    vector = item * wide
    canvas = job.memory + t * job.size
    results = canvas + lines(vector * job.elements)
    zero(canvas, vector * job.elements)
    if not job.complete:
        zero(results, vector * result.pixels)
    begin, end = portion(t, threads, (job.planes + wide - 1) // wide)
    for b in range(begin, end):
        count = min(wide, job.planes - b * wide)
        for k in range(multiple):
            if k < source.multiple:
                of = source.start + item * (b * wide * source.multiple + k) * source.pixels
                call(tools.scatter, (of, item * source.multiple * source.pixels, canvas, job.pixels, count, source.pixels))
            for f in range(job.phase_count):
                phase = read(job.phases + f * PHASE_BYTES, PHASE)
                weights = job.weights + vector * ((b % job.weight_blocks * multiple + k) * job.taps + phase.first)
                for first in range(0, phase.depth, TAPS):
                    of, to = (canvas, phase.rows, phase.steps + 8 * first), (results, phase.results)
                    adding = np.int64(k >= result.multiple or first > 0)
                    taps = min(TAPS, phase.depth - first)
                    call(tools.spread, (phase.pixels, *of, weights + vector * first, *to, taps, adding))
            if result.multiple == multiple or k == multiple - 1:
                to = result.start + item * (b * wide * result.multiple + k % result.multiple) * result.pixels
                call(tools.scatter, (results, vector, to, job.offsets, result.pixels, count))


class Weighting(NamedTuple):
    """w̄ from x and ȳ, the totals of each thread."""

    tools: Tools
    planes: int
    source: Planes
    grads: Planes
    pixels: Address  # offset of each pixel in the canvas,
    grad_pixels: Address  # and of ȳ's pixels side by side
    elements: int  # of the canvas, in vectors
    rows: Address
    steps: Address
    taps: int
    totals: Address  # (threads, blocks, multiple, taps, lanes)
    weight_blocks: int
    memory: Address
    size: int


WEIGHTING = record(Weighting)


@part
def weight_planes(t, threads, where):
    """For each block of planes, for k < m:  totals += Σ_i canvas[pixel i + tap] ⊙ ȳ_k[i].    Lanes of no plane hold zeros."""
    job = read(where, WEIGHTING)
    tools, source, grads, taps = job.tools, job.source, job.grads, job.taps
    item, wide, multiple = tools.item, BITS // 8 // tools.item, grads.multiple
    vector = item * wide
    canvas = job.memory + t * job.size
    right = canvas + lines(vector * job.elements)
    sums = right + lines(vector * grads.pixels)
    totals = job.totals + 8 * t * job.weight_blocks * multiple * taps * wide
    zero(canvas, vector * job.elements)
    begin, end = portion(t, threads, (job.planes + wide - 1) // wide)
    chunks = (grads.pixels + CHUNK - 1) // CHUNK
    for b in range(begin, end):
        count = min(wide, job.planes - b * wide)
        if count < wide:
            zero(canvas, vector * job.elements)
            zero(right, vector * grads.pixels)
        of = source.start + item * b * wide * source.pixels
        call(tools.scatter, (of, item * source.pixels, canvas, job.pixels, count, source.pixels))
        for k in range(multiple):
            of = grads.start + item * (b * wide * multiple + k) * grads.pixels
            call(tools.scatter, (of, item * multiple * grads.pixels, right, job.grad_pixels, count, grads.pixels))
            for c in range(chunks):
                i0, i1 = portion(c, chunks, grads.pixels)
                for first in range(0, taps, TAPS):
                    tables, to = (job.rows + 8 * i0, job.steps + 8 * first), sums + vector * first
                    call(tools.gather, (i1 - i0, canvas, *tables, right + vector * i0, to, min(TAPS, taps - first)))
                into = totals + 8 * (b % job.weight_blocks * multiple + k) * taps * wide
                call(tools.add, (into, sums, taps * wide))


# ---------------------------------------------------------------------------------------------------------------------
# What `convolution` calls
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(256)
def _tables(g: Geometry, forward: bool, wide: int) -> tuple[Plan, Offsets]:
    """The plan for one channel, in vectors, and the offsets of the canvas's pixels in elements."""
    one = g._replace(channels=1, outputs=1)
    plan = (forward_plan if forward else backward_plan)(one, 1)
    return plan, Offsets(plan.canvas.pixels.array * wide)


def _blocks(channels: int, wide: int) -> int:
    """After so many blocks of planes, the lanes belong to the same channels again."""
    return channels // math.gcd(channels, wide)


def _packed(w: Array, channels: int, multiple: int, order: Array, wide: int) -> Array:
    """(C m, 1, kernel) → (blocks, m, taps in order, lanes)"""
    blocks = _blocks(channels, wide)
    rows = np.empty((channels, multiple, len(order)), w.dtype)
    rows[:, :, order] = w.reshape(rows.shape)
    of = np.arange(blocks * wide).reshape(blocks, wide) % channels
    return np.ascontiguousarray(rows[of].transpose(0, 2, 3, 1))


def correlate(x: Array, w: Array, y: Array, g: Geometry, forward: bool, threads: int) -> Array:
    """y from x: forward (N, C, …), (C m, 1, taps) → (N, C m, …), or backward."""
    if depthwise_strips.pays(g, g.counts if forward else g.size, x.itemsize):
        return depthwise_strips.correlate(x, w, y, g, forward, threads)
    k, wide, multiple = tools(x.dtype.char), lanes(x.itemsize), g.outputs
    channels = len(w) // multiple
    plan, pixels = _tables(g, forward, wide)
    weights = _packed(w, channels, multiple, plan.order, wide)
    planes, x_pixels, y_pixels = len(x) * channels, math.prod(x.shape[2:]), math.prod(y.shape[2:])
    x_multiple, y_multiple = (1, multiple) if forward else (multiple, 1)
    own = whole_lines(k.item * wide * (plan.canvas.elements + y_pixels) + 64)
    threads = min(threads, -(-planes // wide))
    (memory,) = jobs.workspace(own * threads)
    job = Convolution(
        tools=k,
        planes=planes,
        multiple=multiple,
        source=Planes(x, x_multiple, x_pixels),
        result=Planes(y, y_multiple, y_pixels),
        pixels=pixels,
        offsets=multiples(wide, y_multiple * y_pixels),
        elements=plan.canvas.elements,
        phases=plan.records,
        phase_count=len(plan.phases),
        complete=plan.complete,
        weights=weights,
        weight_blocks=len(weights),
        taps=len(plan.order),
        memory=memory,
        size=own,
    )
    launch(correlate_planes, threads, job)
    return y


def weight_grad(x: Array, dy: Array, dw: Array, g: Geometry, threads: int) -> Array:
    """w̄ (C m, 1, kernel) from x (N, C, …) and ȳ (N, C m, …)"""
    k, wide, multiple, channels = tools(x.dtype.char), lanes(x.itemsize), g.outputs, x.shape[1]
    plan, pixels = _tables(g, True, wide)
    taps, planes, blocks = len(plan.order), len(x) * channels, _blocks(channels, wide)
    x_pixels, y_pixels = math.prod(x.shape[2:]), math.prod(dy.shape[2:])
    own = whole_lines(k.item * wide * (plan.canvas.elements + y_pixels + taps) + 128)
    threads = min(threads, -(-planes // wide))
    totals = np.zeros((threads, blocks, multiple, taps, wide))
    (memory,) = jobs.workspace(own * threads)
    job = Weighting(
        tools=k,
        planes=planes,
        source=Planes(x, 1, x_pixels),
        grads=Planes(dy, multiple, y_pixels),
        pixels=pixels,
        grad_pixels=multiples(y_pixels, wide),
        elements=plan.canvas.elements,
        rows=plan.phases[0].rows,
        steps=plan.phases[0].steps,
        taps=taps,
        totals=totals,
        weight_blocks=blocks,
        memory=memory,
        size=own,
    )
    launch(weight_planes, threads, job)
    by_lane = totals.sum(0).transpose(0, 3, 1, 2)  # (blocks, lanes, multiple, taps), and (…, channels, multiple, taps):
    dw[...] = by_lane.reshape(-1, channels, multiple, taps).sum(0).reshape(dw.shape)
    return dw
