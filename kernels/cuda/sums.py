r"""Sums and maxima over the numbers that a block of threads passes over, in float32 and yet right.

    for each of the block's 128 threads t:
        total, lost = 0, 0
        for j = t, t + 128, t + 256, …:                      neighbouring threads read neighbouring numbers
            total, lost = add(total, lost, x_j)
    Σ = block_sum(total, lost, shared)                       32 lanes by shuffles, then 4 warps by shared memory

Shared memory holds one float32 for each warp. The order of every sum is fixed, so the same input gives the same bits.

The error of a plain float32 sum grows with the count of its terms, and float64 has a 32nd or a 64th of float32's speed on most
GPUs. So a thread keeps, beside its total, what the additions have lost to rounding. With s = fl(total + x),

    x' = fl(s − total)        what of x arrived in s
    e  = (total − (s − x')) + (x − x')        total + x = s + e, exactly       (Knuth, TAOCP volume 2, section 4.2.2, theorem B)

and the e are added up apart: total + lost is off by one unit in the last place of Σ |x|, whatever the count (Ogita, Rump &
Oishi 2005, "Accurate sum and dot product", algorithm 4.4), and the 7 additions over the block are off by half a unit each at
most. The subtractions must stay in the machine code, so no kernel is compiled with fast-math. Where x is a product a b, the
compiler may form s = fma(a, b, total), without the rounding of a b: then e is off by that rounding, a unit of the term, not of
the total.
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.cuda.build import THREADS, WARPS, device

SHARED = 4 * WARPS  # bytes of shared memory that `block_sum` and `block_max` need: one float32 for each warp


@device
def add(total, lost, x):
    """(s, lost + e), where total + x = s + e exactly."""
    s = total + x
    arrived = s - total
    return s, lost + ((total - (s - arrived)) + (x - arrived))


@device
def settle(total, lost):
    """The sum: total + lost. Where total is infinite, lost is NaN, and the sum is total."""
    return total + lost if lost == lost else total


@device
def block_sum(total, lost, shared):
    """The sum of all threads' totals, for each thread of the block."""
    x = settle(total, lost)
    for k in range(5):
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << k)
    if cuda.threadIdx.x % 32 == 0:
        shared[cuda.threadIdx.x // 32] = x
    cuda.syncthreads()
    x = (shared[0] + shared[1]) + (shared[2] + shared[3])
    cuda.syncthreads()  # every thread has read the four before the next call writes to them
    return x


@device
def block_max(x, shared):
    """The maximum of all threads' x, for each thread of the block. A NaN stays one."""
    for k in range(5):
        other = cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << k)
        x = x if x > other or x != x else other
    if cuda.threadIdx.x % 32 == 0:
        shared[cuda.threadIdx.x // 32] = x
    cuda.syncthreads()
    top = shared[0]
    for warp in range(1, WARPS):
        top = top if top > shared[warp] or top != top else shared[warp]
    cuda.syncthreads()  # as above
    return top


def statistics_of(element):
    """A device function: mean and 1/√(variance + ε) of the `count` numbers element(x, i, e), e < count, by one block.

    The mean is taken twice, the second time of the differences from the first: of equal numbers it is exactly their own.
    Where not `centred`, the mean is 0 and the variance the mean of the squares.
    """

    @device
    def statistics(x, i, count, eps, centred, shared):
        zero = float32(0.0)
        share = float32(1.0) / float32(count)
        mean = zero
        if centred:
            total, lost = zero, zero
            for e in range(cuda.threadIdx.x, count, THREADS):
                total, lost = add(total, lost, element(x, i, e))
            mean = block_sum(total, lost, shared) * share
            total, lost = zero, zero
            for e in range(cuda.threadIdx.x, count, THREADS):
                total, lost = add(total, lost, element(x, i, e) - mean)
            mean += block_sum(total, lost, shared) * share
        total, lost = zero, zero
        for e in range(cuda.threadIdx.x, count, THREADS):
            difference = element(x, i, e) - mean
            total, lost = add(total, lost, difference * difference)
        return mean, float32(1.0) / math.sqrt(block_sum(total, lost, shared) * share + eps)

    return statistics
