"""The reference kernels that no op calls yet: against the compositions of `functional`, gradients by the chain rule."""

import numpy as np
import pytest

import kernels
import scratchgen as sg
from kernels import reference
from scratchgen import functional as F
from scratchgen import optim

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape)


def agrees(composed, inputs, results, cotangent, grads):
    """Value and gradients of a composition are those of the kernels."""
    leaves = [sg.tensor(x, requires_grad=True) for x in inputs]
    y = composed(*leaves)
    np.testing.assert_allclose(results, y.data, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(grads, sg.grad(y, leaves, sg.tensor(cotangent)), strict=True):
        np.testing.assert_allclose(ours, theirs.data, rtol=1e-10, atol=1e-12)


def test_silu():
    x, dy = 3 * draw(4, 5), draw(4, 5)
    agrees(F.silu, [x], reference.silu(x), dy, [reference.silu_backward(dy, x)])


def test_rms_norm():
    x, w, dy = draw(4, 5), draw(5), draw(4, 5)
    y, rstd = reference.rms_norm(x, w, eps=0.1)
    agrees(lambda x, w: F.rms_norm(x, 5, w, eps=0.1), [x, w], y, dy, reference.rms_norm_backward(dy, x, w, rstd))


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_batch_norm(shape):
    x, w, b, dy = draw(*shape), draw(3), draw(3), draw(*shape)
    y, mean, rstd = reference.batch_norm(x, w, b, eps=0.1)
    grads = reference.batch_norm_backward(dy, x, w, mean, rstd)
    agrees(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=0.1), [x, w, b], y, dy, grads)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(x.var(axes) + 0.1), rtol=1e-12)


def norm_in_training(x, w, b):
    return F.batch_norm(x, None, None, w, b, training=True)


def composed_norm(x, w, b):
    dims, across = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    centred = x - x.mean(dims, keepdim=True)
    var = (centred * centred).mean(dims, keepdim=True)
    return centred / (var + 1e-5).sqrt() * w.reshape(across) + b.reshape(across)


@pytest.mark.parametrize("storey", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(6, 3), (1, 3, 5), (2, 3, 4, 5), (0, 3, 4)])
def test_batch_norm_is_its_composition_to_second_order(shape, storey):
    x, w, b, dy, *directions = (draw(*s) for s in (shape, (3,), (3,), shape, shape, (3,), (3,)))
    if x.size:
        x[:, 1] = 0.75  # a constant channel
    found = []
    with kernels.use(storey):
        for norm in (norm_in_training, composed_norm):
            leaves = [sg.tensor(a, requires_grad=True) for a in (x, w, b)]
            y = norm(*leaves)
            first = sg.grad(y, leaves, sg.tensor(dy), create_graph=True)
            along = sum((g * sg.tensor(d)).sum() for g, d in zip(first, directions, strict=True))
            second = sg.grad(along, leaves[:2], retain_graph=True)
            found.append([y, *sg.grad(norm(*leaves), leaves, sg.tensor(dy)), *first, *second])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-8, atol=1e-8)


def test_batch_norm_of_a_constant_channel_has_variance_zero():
    mean, var = sg.tensor(np.zeros(2)), sg.tensor(np.ones(2))
    x = np.stack([np.full((4, 3), 0.75), draw(4, 3)], 1)
    F.batch_norm(sg.tensor(x), mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean.data, x.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(var.data, x.var((0, 2), ddof=1), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("kernel", "Optimizer"), [(reference.adam, optim.Adam), (reference.adamw, optim.AdamW)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_the_optimizers(kernel, Optimizer, decay):
    p = draw(7)
    x = sg.tensor(p, requires_grad=True)
    optimizer = Optimizer([x], lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay)
    m, v = np.zeros(7), np.zeros(7)
    for step in range(1, 6):
        g = draw(7)
        kernel([p], [g], [m], [v], step=step, lr=0.05, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=decay)
        x.grad = sg.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p, x.data, rtol=1e-12)


def test_philox_is_the_published_one():
    """Random123's known answer for a counter and a key of zeros."""
    words = reference.philox(np.zeros(1, int), seed=0)[:, 0]
    assert [f"{w:08x}" for w in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_dropout_keeps_scales_and_repeats():
    x = draw(100_000)
    y = reference.dropout(x, p=0.3, seed=5)
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-12)
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / x.size)
    assert np.array_equal(y, reference.dropout(x, p=0.3, seed=5))
    for other in (reference.dropout(x, p=0.3, seed=6), reference.dropout(x, p=0.3, seed=5, stream=1)):
        assert abs((kept & (other != 0)).mean() - 0.49) < 0.01
