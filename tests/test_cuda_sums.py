"""Every sum of a CUDA kernel has an error that does not grow with the count of its terms, in the emulator.

A thread meets one large number first and many small ones after it. In a plain float32 sum the small ones are rounded away, each
by itself; what is left out grows with their count. Bounds are units in the last place of Σ |terms|.
"""

import numpy as np
import pytest

pytest.importorskip("numba.cuda")

from kernels.cuda import activations, convolution, groups, images, optimizer, rows

LARGE = np.float32(2**24)  # to which a float32 adds no 1
THREADS = 128


def ones_after(large, *shape):
    """Ones, but `large` in the first THREADS elements of the last dimension: in the first element of each thread of a block."""
    x = np.ones(shape, np.float32)
    x[..., :THREADS] = large
    return x


def units(found, wanted, size):
    """The largest error, in units in the last place of `size`, which is Σ |terms|."""
    return np.max(np.abs(np.float64(found) - wanted) / (2.0**-23 * np.float64(size)))


def test_a_plain_sum_is_off(emulated):
    """The checker is checked: the terms of this file, added one by one in float32."""
    x = ones_after(LARGE, 26 * THREADS).reshape(26, THREADS)
    assert units(np.add.accumulate(x, 0)[-1], x.sum(0, dtype=np.float64), x.sum(0)) > 10


def test_sums_over_rows(emulated):
    x = np.ones((1900, 2), np.float32)
    x[:8] = LARGE  # the first row of each of a block's 8 parts, so that the first strip has a large sum
    found = emulated.back(rows.column_sums(emulated.there(x)))
    wanted = x.sum(0, dtype=np.float64)
    assert units(found, wanted, wanted) <= 1


def test_gradients_of_the_parameters_of_norms(emulated):
    """b̄ = Σ ȳ over channels of images, over groups, and over rows."""
    dy = ones_after(LARGE, 1, 2, 26 * THREADS)
    x, w = np.random.default_rng(0).standard_normal(dy.shape).astype(np.float32), np.ones(2, np.float32)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    there = [emulated.there(a) for a in (dy, x, w)]
    wanted, size = dy.sum(2, dtype=np.float64)[0], np.abs(dy).sum(2, dtype=np.float64)[0]
    products, products_size = (np.float64(dy) * x).sum(2)[0], np.abs(np.float64(dy) * x).sum(2)[0]
    for module, mean, rstd in ((rows, zero, one), (groups, zero[None], one[None])):
        gradient = module.batch_norm_backward if module is rows else module.group_norm_backward
        _, dw, db = (emulated.back(a) for a in gradient(*there, emulated.there(mean), emulated.there(rstd)))
        assert units(db, wanted, size) <= 2 and units(dw, products, products_size) <= 2
    dy = np.ones((64, 1), np.float32)
    dy[:8] = LARGE
    mean, rstd = np.zeros((64, 1), np.float32), np.ones((64, 1), np.float32)
    there = [emulated.there(a) for a in (dy, np.ones_like(dy), w[:1], mean, rstd)]
    _, dw, db = (emulated.back(a) for a in rows.layer_norm_backward(*there))
    assert units(db, dy.sum(dtype=np.float64), np.abs(dy).sum(dtype=np.float64)) <= 2 and db == dw


def test_means_and_variances(emulated):
    """Of numbers whose differences from the mean are large in the first elements and small in all others."""
    x = ones_after(3000, 1, 1, 26 * THREADS)
    x[..., THREADS::2] = -1.5
    wide = x.astype(np.float64)
    mean, rstd = wide.mean(), 1 / np.sqrt(wide.var() + 1e-5)
    w, b = np.ones(1, np.float32), np.zeros(1, np.float32)
    long_w, long_b = np.ones(x.size, np.float32), np.zeros(x.size, np.float32)
    found = {
        "batch norm": rows.batch_norm(*map(emulated.there, (x, w, b))),
        "group norm": groups.group_norm(*map(emulated.there, (x, w, b)), 1),
        "layer norm": rows.layer_norm(*map(emulated.there, (x[0], long_w, long_b))),
    }
    for name, (_, m, r) in found.items():
        assert units(emulated.back(m), mean, np.abs(wide).mean()) <= 2, name
        assert units(emulated.back(r), rstd, rstd) <= 4, name
    _, r = rows.rms_norm(*map(emulated.there, (x[0], long_w)))
    wanted = 1 / np.sqrt((wide**2).mean() + 1e-5)
    assert units(emulated.back(r), wanted, wanted) <= 4


def test_sums_within_rows(emulated):
    """Σ e^x of a softmax, Σ ȳ y of its gradient, mean(g) of a norm's."""
    x = np.full((1, 26 * THREADS), -16.5, np.float32)  # e^x is less than half a unit in the last place of 1
    x[:, :THREADS] = 0
    wide = np.exp(x.astype(np.float64))
    loss, statistics = rows.cross_entropy(emulated.there(x), emulated.there(np.array([0])))
    assert units(emulated.back(statistics)[1], 1 / wide.sum(), 1 / wide.sum()) <= 1.5
    assert units(emulated.back(rows.softmax(emulated.there(x)))[0, 0], 1 / wide.sum(), 1 / wide.sum()) <= 1.5
    y, dy = np.full_like(x, 0.5), ones_after(LARGE, 1, x.size)
    total = 0.5 * dy.sum(dtype=np.float64)
    dx = emulated.back(activations.softmax_backward(emulated.there(dy), emulated.there(y)))
    assert units(dx[0, -1], 0.5 * (1 - total), total / 2) <= 2
    dx = emulated.back(activations.log_softmax_backward(emulated.there(dy), emulated.there(np.zeros_like(x))))
    assert units(dx[0, -1], 1 - 2 * total, 2 * total) <= 2


def test_sums_of_one_thread(emulated):
    """Of one token's gradients, of the copies of a pixel, of a pixel's windows, of the weight gradients of images."""
    source = np.ones((20, 1), np.float32)
    source[0] = LARGE
    wanted = source.sum(dtype=np.float64)
    out = emulated.there(np.zeros((3, 1), np.float32))
    rows.scatter_add(out, emulated.there(np.ones(20, np.int64)), emulated.there(source))
    assert units(emulated.back(out)[1], wanted, wanted) <= 1
    there = (
        emulated.there(source.reshape(1, 1, 20, 1)),
        emulated.there(np.zeros(20, np.int64)),
        emulated.there(np.zeros(1, int)),
    )
    assert units(emulated.back(images.nearest_backward(*there, (1, 1))), wanted, wanted) <= 1
    geometry = {"stride": (1,), "padding": (0,), "dilation": (1,)}
    there = emulated.there(source.reshape(1, 1, 20)), emulated.there(np.ones((1, 1, 20), np.float32))
    dx = emulated.back(convolution.conv_input_grad(*there, (39,), **geometry))
    assert units(dx[0, 0, 19], wanted, wanted) <= 1
    there = emulated.there(source.reshape(20, 1, 1)), emulated.there(np.ones((20, 1, 1), np.float32))
    assert units(emulated.back(convolution.conv_weight_grad(*there, (1,), **geometry)), wanted, wanted) <= 1


def test_sums_of_squares(emulated):
    x = ones_after(2**12, 63 * THREADS)
    wanted = (x.astype(np.float64) ** 2).sum()
    assert units(optimizer.sum_of_squares([emulated.there(x)]), wanted, wanted) <= 1
    x[5] = np.inf
    assert optimizer.sum_of_squares([emulated.there(x)]) == np.inf  # not the NaN that it leaves in what was lost


def test_a_contracted_product_costs_no_more_than_its_own_rounding():
    """What `sums.add` computes where the compiler makes fma(a, b, total) of the sum of total and the product a b."""

    def fma(a, b, c):
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))

    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.5, 2, 3000).astype(np.float32) for _ in range(2))
    a[0] = LARGE
    total = lost = np.float32(0)
    for first, second in zip(a, b, strict=True):
        s = fma(first, second, total)
        arrived = s - total
        lost += (total - (s - arrived)) + fma(first, second, -arrived)
        total = s
    wanted = np.sum(a.astype(np.float64) * b)
    assert units(total + lost, wanted, wanted) <= 1 < 10 < units(np.add.accumulate(a * b)[-1], wanted, wanted)
