"""The reference kernels, kernel by kernel, against the equations in their docstrings written a second time.

The oracle of all other kernels has no oracle itself: here each value is worked out one number at a time, and each gradient
is compared with differences of the kernel that it is the gradient of, so that nothing here leans on an op or on autograd.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import kernels
import scratchgen as sg
from kernels import reference
from scratchgen import functional as F
from scratchgen import optim
from scratchgen.ops import fused
from tests.kernel_cases import SUBJECT

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape)


def close(ours, theirs, rtol=1e-11):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)


def differences(f, xs, v):
    """∂⟨v, f(x)⟩/∂x, element by element, by central differences of fourth order; f gives one array or several."""
    h = 1e-3
    grads = []
    for x in xs:
        g = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            total = 0.0
            for shift, weight in ((h, 8), (-h, -8), (2 * h, -1), (-2 * h, 1)):
                kept = x[at]
                x[at] = kept + shift
                total += weight * math.fsum(np.ravel(v * f(*xs)))
                x[at] = kept
            g[at] = total / (12 * h)
        grads.append(g)
    return grads


def are_the_gradients(grads, f, xs, v):
    for ours, theirs in zip(grads, differences(f, xs, v), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ every kernel


def row_of_softmax(x):
    e = [math.exp(t - max(x)) for t in x]
    return [t / math.fsum(e) for t in e]


def each_row(f, x, axis=-1):
    return np.apply_along_axis(lambda row: np.array(f(list(row))), axis, x)


def gelu(t):
    return t * 0.5 * (1 + math.erf(t / math.sqrt(2)))


def gelu_tanh(t):
    return t * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3)))


def product(a, b):
    """C_ij = Σ_k A_ik B_kj, for stacks that broadcast."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, lead + a.shape[-2:]), np.broadcast_to(b, lead + b.shape[-2:])
    c = np.zeros(lead + (a.shape[-2], b.shape[-1]))
    for at in np.ndindex(c.shape):
        *s, i, j = at
        c[at] = math.fsum(a[(*s, i, k)] * b[(*s, k, j)] for k in range(a.shape[-1]))
    return c


def test_every_kernel_is_tested_here():
    text = Path(__file__).read_text()
    assert not [kernel for kernel in SUBJECT if f"reference.{kernel}(" not in text]


# ------------------------------------------------------------------------------------------------------ products

ACTIVATIONS = {None: lambda t: t, "relu": lambda t: max(t, 0.0), "gelu": gelu, "gelu_tanh": gelu_tanh}


@pytest.mark.parametrize("a, b", [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((2, 1, 3, 1), (3, 1, 2)), ((3, 0), (0, 2))])
def test_matmul(a, b):
    a, b = draw(*a), draw(*b)
    close(reference.matmul(a, b), product(a, b))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [None, (2,), (3, 1)])
def test_what_matmul_does_with_its_product(activation, bias):
    """C = f(A B + bias), into `out` and nowhere else."""
    a, b, out = draw(3, 4), draw(4, 2), draw(3, 2)
    bias = None if bias is None else draw(*bias)
    sum_ = product(a, b) + (0 if bias is None else bias)
    f = np.vectorize(ACTIVATIONS[activation])
    options = {"bias": bias, "activation": activation}
    close(reference.matmul(a, b, **options), f(sum_))
    assert reference.matmul(a, b, out=out, **options) is out
    close(out, f(sum_))


def test_a_stack_of_products_goes_where_it_is_told_to():
    a, b, bias, out = draw(2, 3, 4), draw(4, 2), draw(2), draw(2, 3, 2)
    wanted = np.maximum(product(a, b) + bias, 0)
    assert reference.matmul(a, b, out=out, bias=bias, activation="relu") is out
    close(out, wanted)


def test_a_bias_that_lies_in_the_result_is_read_before_it_is_written():
    a, b, c = draw(3, 4), draw(4, 5), draw(3, 5)
    expected = a @ b + c[0]
    kernels.reference.matmul(a, b, out=c, bias=c[0])
    close(c, expected)


def test_matmul_refuses_an_activation_it_does_not_know():
    with pytest.raises(ValueError, match="expected activation None, 'relu', 'gelu' or 'gelu_tanh', got 'tanh'"):
        reference.matmul(draw(1, 1), draw(1, 1), activation="tanh")


def test_einsum():
    a, b = draw(2, 3), draw(3, 4)
    close(reference.einsum("ij,jk->ki", a, b), product(a, b).T)
    close(reference.einsum("ij->j", a), [math.fsum(column) for column in a.T])


# ------------------------------------------------------------------------------------------------------ elements


def test_binary_cross_entropy():
    """−t log σ(x) − (1 − t) log(1 − σ(x)), finite also where σ(x) is 0 or 1 to the last bit"""
    x, t, v = 3 * draw(4, 5), RNG.random((4, 5)), draw(4, 5)
    p = np.vectorize(lambda s: 1 / (1 + math.exp(-s)))(x)
    expected = -t * np.log(p) - (1 - t) * np.log1p(-p)
    close(reference.binary_cross_entropy(x, t), expected)
    close(reference.binary_cross_entropy(x, t, total=True), math.fsum(expected.flat))
    are_the_gradients(
        [reference.binary_cross_entropy_backward(v, x, t)], lambda x: reference.binary_cross_entropy(x, t), [x], v
    )
    far, t = np.array([-1e4, 1e4, -1e4, 1e4]), np.array([0.0, 1.0, 1.0, 0.0])
    close(reference.binary_cross_entropy(far, t), [0, 0, 1e4, 1e4])
    close(reference.binary_cross_entropy_backward(np.ones(4), far, t), [0, 0, -1, 1])


def test_sums_over_dimensions():
    x = draw(3, 4, 5)
    for axes in ((), (0,), (2,), (0, 2), (0, 1, 2)):
        kept = np.moveaxis(x, axes, range(-len(axes), 0)).reshape([n for d, n in enumerate(x.shape) if d not in axes] + [-1])
        wanted = np.array([math.fsum(terms) / 7 for terms in kept.reshape(-1, kept.shape[-1])]).reshape(kept.shape[:-1])
        close(reference.sum_over(x, axes, 7), wanted)
        assert reference.sum_over(x.astype("f"), axes).dtype == np.float32
    with np.errstate(all="raise"):
        assert reference.sum_over(np.full(80_000, 1, np.float16), (0,)) == np.inf
        assert reference.sum_over(np.full(80_000, 1, np.float16), (0,), 80_000) == 1


def test_column_sums():
    x = draw(5, 3)
    close(reference.column_sums(x), [math.fsum(column) for column in x.T])


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_leaky_relu(slope):
    x, v = draw(4, 5), draw(4, 5)
    y = reference.leaky_relu(x, slope)
    close(y, np.vectorize(lambda t: t if t > 0 else slope * t)(x))
    are_the_gradients([reference.leaky_relu_backward(v, y, slope)], lambda x: reference.leaky_relu(x, slope), [x], v)


def test_nearest():
    """y[…, i, j] = x[…, rows_i, columns_j]"""
    x, rows, columns, v = draw(2, 1, 3, 4), np.array([0, 0, 2]), np.array([0, 1, 1, 3, 3]), draw(2, 1, 3, 5)
    y = reference.nearest(x, rows, columns)
    assert all(y[n, 0, i, j] == x[n, 0, rows[i], columns[j]] for n, _, i, j in np.ndindex(y.shape))
    grad = reference.nearest_backward(v, rows, columns, (3, 4))
    are_the_gradients([grad], lambda x: reference.nearest(x, rows, columns), [x], v)


@pytest.mark.parametrize(
    ("counts", "kernel", "stride", "padding", "dilation"),
    [
        ((2, 3), (2, 2), (2, 2), (0, 0), (1, 1)),
        ((3, 2), (3, 2), (2, 4), (1, 1), (1, 2)),
        ((2, 7), (4, 3), (3, 1), (1, 1), (1, 1)),
    ],
)
def test_pooling(counts, kernel, stride, padding, dilation):
    """The largest and the shared sum of the pixels s i + d t − p that lie inside"""
    x, v, share = draw(2, 2, 5, 7), draw(2, 2, *counts), 1 / (1.0 + np.arange(np.prod(counts)).reshape(counts))

    def cells(i, apart):
        tall, wide = (
            [s * j + d * t - p for t in range(k)] for j, k, s, p, d in zip(i, kernel, stride, padding, apart, strict=True)
        )
        return [h * 7 + w for h in tall for w in wide if 0 <= h < 5 and 0 <= w < 7]

    y, index = reference.max_pool(x, counts, kernel, stride=stride, padding=padding, dilation=dilation)
    flat, how = x.reshape(2, 2, 35), {"stride": stride, "padding": padding}
    mean = reference.avg_pool(x, share, kernel, **how)
    for n, c, *i in np.ndindex(y.shape):
        inside, summed = cells(i, dilation), cells(i, (1, 1))
        assert index[n, c, *i] == max(inside, key=lambda j: (flat[n, c, j], -j)) and y[n, c, *i] == flat[n, c, index[n, c, *i]]
        close(mean[n, c, *i], share[tuple(i)] * math.fsum(flat[n, c, summed]))
    grad = reference.max_pool_backward(v, index, (5, 7))
    are_the_gradients(
        [grad], lambda x: reference.max_pool(x, counts, kernel, stride=stride, padding=padding, dilation=dilation)[0], [x], v
    )
    grad = reference.avg_pool_backward(v, share, (5, 7), kernel, **how)
    are_the_gradients([grad], lambda x: reference.avg_pool(x, share, kernel, **how), [x], v)


def test_the_largest_of_equals_is_the_first_and_nan_is_larger_than_all():
    x = np.array([1, 1, -np.inf, -np.inf, 5, np.nan, np.nan, np.inf]).reshape(1, 1, 8)
    y, index = reference.max_pool(x, (4,), (2,), stride=(2,), padding=(0,), dilation=(1,))
    np.testing.assert_array_equal(y, [[[1, -np.inf, np.nan, np.nan]]])
    assert index.tolist() == [[[0, 2, 5, 6]]]


ELEMENTS = {
    "gelu": (gelu, {}),
    "gelu tanh": (gelu_tanh, {"approximate": "tanh"}),
    "silu": (lambda t: t / (1 + math.exp(-t)), {}),
    "mish": (lambda t: t * math.tanh(math.log(1 + math.exp(t))), {}),
    "softplus": (lambda t: math.log(1 + math.exp(t)), {}),
    "softplus steep": (lambda t: t if 2.5 * t > 2 else math.log(1 + math.exp(2.5 * t)) / 2.5, {"beta": 2.5, "threshold": 2.0}),
    "softplus log σ": (lambda t: -math.log(1 + math.exp(-t)), {"beta": -1.0, "threshold": math.inf}),
    "elu": (lambda t: t if t > 0 else math.exp(t) - 1, {}),
    "elu scaled": (lambda t: 3 * t if t > 0 else 1.5 * (math.exp(2 * t) - 1), {"alpha": 0.5, "scale": 3.0, "rate": 2.0}),
    "elu turned": (lambda t: t if t > 0 else math.exp(-t / 5) - 1, {"rate": -0.2}),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements(name):
    f, options = ELEMENTS[name]
    kernel = name.split()[0]
    x, v = 3 * draw(4, 5), draw(4, 5)
    value, gradient = getattr(reference, kernel), getattr(reference, f"{kernel}_backward")
    close(value(x, **options), np.vectorize(f)(x))
    are_the_gradients([gradient(v, x, **options)], lambda x: value(x, **options), [x], v)


def test_sigmoids():
    """They are differentiated by their value."""
    x, v = 3 * draw(4, 5), draw(4, 5)
    y = reference.sigmoid(x)
    close(y, np.vectorize(lambda t: 1 / (1 + math.exp(-t)))(x))
    are_the_gradients([reference.sigmoid_backward(v, y)], reference.sigmoid, [x], v)
    are_the_gradients([reference.tanh_backward(v, np.tanh(x))], np.tanh, [x], v)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_glu(axis):
    x = draw(4, 6, 2)
    y = reference.glu(x, axis)
    a, b = np.split(x, 2, axis)
    close(y, a / (1 + np.exp(-b)))
    v = draw(*y.shape)
    are_the_gradients([reference.glu_backward(v, x, axis)], lambda x: reference.glu(x, axis), [x], v)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_backward(axis):
    x, v = draw(3, 4, 5), draw(3, 4, 5)
    dx = reference.softmax_backward(v, reference.softmax(x, axis), axis)
    are_the_gradients([dx], lambda x: reference.softmax(x, axis), [x], v)
    dx = reference.log_softmax_backward(v, reference.log_softmax(x, axis), axis)
    are_the_gradients([dx], lambda x: reference.log_softmax(x, axis), [x], v)


def test_elements_far_out():
    """e^{−x} overflows where σ is 0; −∞ · 0 is 0 there."""
    x, ones = np.array([-np.inf, -1e4, -800.0, 800.0, 1e4, np.inf]), np.ones(6)
    for y in (reference.silu(x), reference.mish(x), reference.softplus(x)):
        close(y, [0, 0, 0, 800, 1e4, np.inf])
    for slope in (reference.silu_backward(ones, x), reference.mish_backward(ones, x), reference.softplus_backward(ones, x)):
        close(slope, [0, 0, 0, 1, 1, 1])
    close(reference.softplus(np.array([0.5]), beta=2.0, threshold=1.0), [math.log1p(math.e) / 2])  # the threshold itself
    close(reference.elu(x), [-1, -1, -1, 800, 1e4, np.inf])
    close(reference.elu_backward(ones, x), [0, 0, 0, 1, 1, 1])
    x = x[1:-1]
    close(reference.gelu(x), [0, 0, 800, 1e4])
    close(reference.gelu_backward(np.ones(4), x), [0, 0, 1, 1])


def test_relu_of_minus_infinity_is_zero():
    edge = np.array([-np.inf, 0.0, np.inf], np.float32)
    np.testing.assert_array_equal(reference.leaky_relu(edge, 0.0), [0, 0, np.inf])
    np.testing.assert_array_equal(reference.leaky_relu(edge, 0.5), edge)


def test_erf():
    x = draw(9)
    close(reference.erf(x), [math.erf(t) for t in x])


def test_philox_is_the_published_one():
    """Random123's known answers: a counter and a key of zeros, of ones, and of digits of π."""

    def words(counter, key):
        low, high = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
        found = reference.philox(np.array([low], np.uint64), seed=key[0] | key[1] << 32, stream=high)[:, 0]
        return [f"{w:08x}" for w in found]

    assert words([0] * 4, [0] * 2) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert words([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    digits = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert words(*digits) == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


def test_dropout_keeps_scales_and_repeats():
    x = draw(100_000)
    y = reference.dropout(x, p=0.3, seed=5)
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-12)
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / x.size)
    assert np.array_equal(y, reference.dropout(x, p=0.3, seed=5))
    for other in (reference.dropout(x, p=0.3, seed=6), reference.dropout(x, p=0.3, seed=5, stream=1)):
        assert abs((kept & (other != 0)).mean() - 0.49) < 0.01


@pytest.mark.parametrize("size", [1, 7, 8, 13])
def test_dropout_draws_by_word_and_counter(size):
    """Word w of counter c decides on element w Q + c, Q a quarter of the elements, rounded up."""
    quarter = -(-size // 4)
    x = 1 + np.abs(draw(size)).astype(np.float32)
    words = reference.philox(np.arange(quarter), seed=9, stream=2)
    wanted = [words[i // quarter, i % quarter] >= 2**31 for i in range(size)]
    y = reference.dropout(x[None], p=0.5, seed=9, stream=2)[0]
    assert y.dtype == np.float32 and np.array_equal(y, np.where(wanted, 2 * x, 0))
    assert np.array_equal(reference.dropout(x, p=0.0, seed=9), x)
    assert np.array_equal(
        reference.dropout(np.ones((3, 4)), p=0.5, seed=9).ravel(), reference.dropout(np.ones(12), p=0.5, seed=9)
    )
    nothing = reference.dropout(x, p=1.0, seed=9)
    assert not nothing.any() and nothing.dtype == np.float32 and nothing.shape == x.shape


# ------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("shape, axis", [((4, 5), -1), ((4, 5), 0), ((2, 3, 4), 1), ((3, 1), 1)])
def test_softmax(shape, axis):
    x = 3 * draw(*shape)
    close(reference.softmax(x, axis), each_row(row_of_softmax, x, axis))
    close(reference.log_softmax(x, axis), np.log(each_row(row_of_softmax, x, axis)))


def test_rows_of_nothing():
    """A row of −∞ gives zeros, and −∞ for the logarithms; so does a row without elements, along any axis."""
    x = np.array([[-np.inf, -np.inf, -np.inf], [-np.inf, 0.0, 0.0]])
    np.testing.assert_array_equal(reference.softmax(x), [[0, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_array_equal(reference.log_softmax(x)[0], [-np.inf] * 3)
    for shape, axis in itertools.product([(2, 0, 3), (0, 2, 3), (2, 3, 0), (0, 0, 2)], range(3)):
        for kernel in (reference.softmax, reference.log_softmax):
            assert kernel(np.zeros(shape, np.float32), axis).shape == shape
            assert kernel(np.zeros(shape, np.float32), axis).dtype == np.float32
    loss, statistics = reference.cross_entropy(x, np.array([1, 1]))
    assert loss[0] == np.inf and list(statistics[:, 0]) == [0, 1], "e^{−∞ − 0} = 0, of a sum that is taken as 1"
    close(loss[1], math.log(2))
    np.testing.assert_array_equal(reference.cross_entropy_backward(np.ones(2), x, np.array([1, 1]), statistics)[0], [0, -1, 0])
    for width in (3, 0):
        assert [part.shape for part in reference.cross_entropy(np.zeros((0, width)), np.zeros(0, int))] == [(0,), (2, 0)]


def test_large_rows():
    """log Σ e^x beside a large x: nothing overflows, and no logarithm is rounded away before the large terms cancel."""
    x = np.array([[1e4, 1e4, -1e4]])
    close(reference.softmax(x), [[0.5, 0.5, 0]])
    close(reference.log_softmax(x)[0, :2], [-math.log(2)] * 2, 1e-15)
    close(reference.cross_entropy(x, np.array([1]))[0], [math.log(2)], 1e-15)


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("ignore", [-100, 0])
def test_cross_entropy(width, ignore):
    x, v = 3 * draw(4, width), draw(4)
    target = np.array([0, width - 1, ignore, width // 2])
    loss, statistics = reference.cross_entropy(x, target, ignore_index=ignore)
    wanted = [0.0 if t == ignore else -math.log(row_of_softmax(list(row))[t]) for row, t in zip(x, target, strict=True)]
    close(loss, wanted)
    close(statistics, [x.max(1), [1 / math.fsum(math.exp(t - max(row)) for t in row) for row in x]])
    dx = reference.cross_entropy_backward(v, x, target, statistics, ignore_index=ignore)
    are_the_gradients([dx], lambda x: reference.cross_entropy(x, target, ignore_index=ignore)[0], [x], v)
    kept = reference.cross_entropy_backward(v.astype(np.float32), x.astype(np.float32), target, statistics.astype(np.float32))
    assert kept.dtype == reference.cross_entropy(x.astype(np.float32), target)[0].dtype == np.float32


@pytest.mark.parametrize("width", [1, 5])
def test_layer_norm(width):
    x, w, b, v = draw(4, width), draw(width), draw(width), draw(4, width)
    y, mean, rstd = reference.layer_norm(x, w, b, eps=0.1)
    for row, found, m, r in zip(x, y, mean[:, 0], rstd[:, 0], strict=True):
        mu = math.fsum(row) / width
        rho = 1 / math.sqrt(math.fsum((t - mu) ** 2 for t in row) / width + 0.1)
        close([m, r], [mu, rho])
        close(found, [(t - mu) * rho * wi + bi for t, wi, bi in zip(row, w, b, strict=True)])
    grads = reference.layer_norm_backward(v, x, w, mean, rstd)
    are_the_gradients(grads, lambda x, w, b: reference.layer_norm(x, w, b, eps=0.1)[0], [x, w, b], v)


def test_rows_without_elements_have_norms():
    for n, width in ((0, 3), (3, 0)):
        x, w = np.zeros((n, width)), np.zeros(width)
        y, mean, rstd = reference.layer_norm(x, w, w)
        assert y.shape == x.shape and mean.shape == rstd.shape == (n, 1)
        assert [g.shape for g in reference.layer_norm_backward(y, x, w, mean, rstd)] == [x.shape, w.shape, w.shape]


@pytest.mark.parametrize("width", [1, 5])
def test_rms_norm(width):
    x, w, v = draw(4, width), draw(width), draw(4, width)
    y, rstd = reference.rms_norm(x, w, eps=0.1)
    for row, found, r in zip(x, y, rstd[:, 0], strict=True):
        rho = 1 / math.sqrt(math.fsum(t * t for t in row) / width + 0.1)
        close(r, rho)
        close(found, row * rho * w)
    are_the_gradients(reference.rms_norm_backward(v, x, w, rstd), lambda x, w: reference.rms_norm(x, w, eps=0.1)[0], [x, w], v)
    narrow = reference.rms_norm(x.astype(np.float32), w.astype(np.float32))
    assert all(part.dtype == np.float32 for part in narrow)


@pytest.mark.parametrize("shape, groups", [((2, 4), 2), ((3, 6, 5), 3), ((2, 6, 2, 3), 1), ((2, 3, 4), 3), ((1, 2, 1), 2)])
def test_group_norm(shape, groups):
    c = shape[1]
    x, w, b, v = draw(*shape), draw(c), draw(c), draw(*shape)
    y, mean, rstd = reference.group_norm(x, w, b, groups, eps=0.1)
    for i, k in np.ndindex(shape[0], c):
        g = k // (c // groups)
        values = x[i, g * (c // groups) : (g + 1) * (c // groups)].ravel()
        mu = math.fsum(values) / len(values)
        rho = 1 / math.sqrt(math.fsum((t - mu) ** 2 for t in values) / len(values) + 0.1)
        close([mean[i, g], rstd[i, g]], [mu, rho])
        close(y[i, k], (x[i, k] - mu) * rho * w[k] + b[k])
    grads = reference.group_norm_backward(v, x, w, mean, rstd)
    are_the_gradients(grads, lambda x, w, b: reference.group_norm(x, w, b, groups, eps=0.1)[0], [x, w, b], v)
    narrow = reference.group_norm(x.astype(np.float32), w.astype(np.float32), b.astype(np.float32), groups)
    assert all(part.dtype == np.float32 for part in narrow)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_group_norm_of_large_numbers(backend):
    """Equal numbers have no spread, however large; what is spread about 1e4 is normalised as if it were about 0."""
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    with kernels.use(backend):
        for value in (1e10, 1e-30, -70.1):
            y, mean, _ = kernels.group_norm(np.full((2, 4, 100_003), value, np.float32), ones, zeros, 2)
            assert (y == 0).all() and (mean == np.float32(value)).all()
        x = (draw(2, 4, 100_003) + 1e4).astype(np.float32)
        y, mean, rstd = kernels.group_norm(x, ones, zeros, 2)
        wide = x.astype(np.float64).reshape(2, 2, -1)
        np.testing.assert_allclose(mean, wide.mean(-1), rtol=1e-7)
        np.testing.assert_allclose(rstd, 1 / np.sqrt(wide.var(-1) + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_parameters_of_a_group_norm_have_sums_of_any_length(backend):
    """Σ ȳ of 4 million ones, and of 0.1: the error does not grow with the count."""
    x, w = draw(4, 1, 1 << 20).astype(np.float32), np.ones(1, np.float32)
    with kernels.use(backend):
        y, mean, rstd = kernels.group_norm(x, w, w, 1)
        for value in (1.0, 0.1):
            dy = np.full(x.shape, value, np.float32)
            _, dweight, dbias = kernels.group_norm_backward(dy, x, w, mean, rstd)
            np.testing.assert_allclose(dbias, np.float32(value).astype(np.float64) * x.size, rtol=2e-7)
            np.testing.assert_allclose(dweight, 0, atol=0.1)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 2), (1, 3, 2), (2, 1, 1), (1, 2)])
def test_batch_norm(shape):
    c = shape[1]
    x, w, b, v = draw(*shape), draw(c), draw(c), draw(*shape)
    y, mean, rstd = reference.batch_norm(x, w, b, eps=0.1)
    for k in range(c):
        values = x[:, k].ravel()
        mu = math.fsum(values) / len(values)
        rho = 1 / math.sqrt(math.fsum((t - mu) ** 2 for t in values) / len(values) + 0.1)
        close([mean[k], rstd[k]], [mu, rho])
        close(y[:, k], (x[:, k] - mu) * rho * w[k] + b[k])
    grads = reference.batch_norm_backward(v, x, w, mean, rstd)
    are_the_gradients(grads, lambda x, w, b: reference.batch_norm(x, w, b, eps=0.1)[0], [x, w, b], v)
    narrow = reference.batch_norm(x.astype(np.float32), w.astype(np.float32), b.astype(np.float32))
    assert all(part.dtype == np.float32 for part in narrow)


def test_batch_norm_of_nothing():
    for shape in ((0, 3), (2, 0)):
        x, w = np.zeros(shape), np.zeros(shape[1])
        assert [part.shape for part in reference.batch_norm(x, w, w)] == [x.shape, w.shape, w.shape]
        grads = reference.batch_norm_backward(x, x, w, w, w)
        assert [g.shape for g in grads] == [x.shape, w.shape, w.shape]


# ------------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(causal, masked, scale):
    """Every weight worked out by itself; a query that may attend to nothing gives zeros, m 0 and Σ 1."""
    q, k, v, dout = draw(2, 4, 3), draw(2, 3, 3), draw(2, 3, 5), draw(2, 4, 5)
    mask = draw(4, 3) if masked else None
    if masked:
        mask[0], mask[2, 1] = -np.inf, -np.inf
    options = {"causal": causal, "mask": mask, "scale": scale}
    out, statistics = reference.attention(q, k, v, **options)
    tau = 1 / math.sqrt(3) if scale is None else scale
    for n, i in np.ndindex(2, 4):
        s = [tau * math.fsum(q[n, i] * k[n, j]) + (mask[i, j] if masked else 0) for j in range(3) if not causal or j <= i]
        if max(s) == -np.inf:
            assert not out[n, i].any() and list(statistics[:, n, i, 0]) == [0, 1]
        else:
            close(out[n, i], sum(p * v[n, j] for j, p in enumerate(row_of_softmax(s))))
            close(statistics[:, n, i, 0], [max(s), 1 / math.fsum(math.exp(t - max(s)) for t in s)])
    dq, dk, dv, dmask = reference.attention_backward(dout, q, k, v, out, statistics, **options)
    assert dmask is None
    are_the_gradients([dq, dk, dv], lambda q, k, v: reference.attention(q, k, v, **options)[0], [q, k, v], dout)
    if masked:
        *_, dmask = reference.attention_backward(dout, q, k, v, out, statistics, **options, mask_grad=True)
        finite = np.isfinite(mask)
        wanted = np.zeros((4, 3))
        for at in zip(*np.nonzero(finite), strict=True):

            def moved(t, at=at):
                other = mask.copy()
                other[at] += t
                return reference.attention(q, k, v, causal=causal, mask=other, scale=scale)[0]

            (wanted[at],) = (g.item() for g in differences(lambda t: moved(t.item()), [np.zeros(1)], dout))
        np.testing.assert_allclose(dmask.sum(0), wanted, rtol=1e-8, atol=1e-9)


def test_attention_dropout():
    """Word i mod 4 of counter (z ⌈T/4⌉ + ⌊i/4⌋) S + j decides on weight (z, i, j); its gradients by differences."""
    q, k, v, dout = draw(2, 6, 3), draw(2, 5, 3), draw(2, 5, 4), draw(2, 6, 4)
    noise = {"seed": 11, "stream": 5}
    z = np.zeros((2, 6, 5))
    for n, i, j in np.ndindex(z.shape):
        word = reference.philox(np.array([(n * 2 + i // 4) * 5 + j], np.uint64), **noise)[i % 4, 0]
        z[n, i, j] = 1 / (1 - 0.3) if word >= round(0.3 * 2**32) else 0
    assert 0.1 < (z == 0).mean() < 0.5
    np.testing.assert_array_equal(reference.attention_dropout(np.ones_like(z), p=0.3, **noise), z)
    assert not reference.attention_dropout(np.ones_like(z), p=1.0, **noise).any()
    out, statistics = reference.attention(q, k, v, dropout_p=0.3, **noise)
    p = reference.softmax(q @ k.swapaxes(1, 2) / math.sqrt(3))
    close(out, (z * p) @ v)
    close(statistics, reference.attention(q, k, v)[1])
    *grads, _ = reference.attention_backward(dout, q, k, v, out, statistics, dropout_p=0.3, **noise)
    are_the_gradients(grads, lambda q, k, v: reference.attention(q, k, v, dropout_p=0.3, **noise)[0], [q, k, v], dout)
    into = [np.full_like(x, 7) for x in (q, k, v)]
    returned = reference.attention_backward(dout, q, k, v, out, statistics, dropout_p=0.3, **noise, into=into)
    for grad, here, there in zip(grads, into, returned, strict=False):
        assert here is there
        np.testing.assert_array_equal(grad, here)


def test_gradients_into_an_array_are_summed_to_its_shape():
    q, k, v, dout = draw(2, 3, 4, 3), draw(2, 1, 5, 3), draw(2, 1, 5, 2), draw(2, 3, 4, 2)
    out, statistics = reference.attention(q, k, v)
    dq, dk, dv, _ = reference.attention_backward(dout, q, k, v, out, statistics)
    into = [np.zeros_like(x) for x in (q, k, v)]
    reference.attention_backward(dout, q, k, v, out, statistics, into=into)
    for grad, here in zip((dq, dk.sum(1, keepdims=True), dv.sum(1, keepdims=True)), into, strict=True):
        close(here, grad)


@pytest.mark.parametrize("heads", [2, 3])
def test_gradients_of_shared_keys_are_written_where_asked(heads):
    """Keys without the heads of the queries, values with one for all: their gradients are summed over the heads."""
    q, k, v, dout = draw(heads, 4, 3), draw(3, 3), draw(1, 3, 5), draw(heads, 4, 5)
    into = tuple(np.full(x.shape, np.nan) for x in (q, k, v))
    out, statistics = reference.attention(q, k, v)
    grads = reference.attention_backward(dout, q, k, v, out, statistics, into=into)
    assert all(g is target for g, target in zip(grads, into, strict=False))
    are_the_gradients(into, lambda q, k, v: reference.attention(q, k, v)[0], [q, k, v], dout)


# ------------------------------------------------------------------------------------------------------ convolution

CONVOLUTIONS = [  # image, kernels, stride, padding, dilation, groups
    ((2, 2, 5), (4, 2, 3), (1,), (0,), (1,), 1),
    ((1, 4, 7), (2, 2, 2), (2,), (1,), (2,), 2),
    ((2, 2, 5, 4), (3, 2, 3, 2), (2, 1), (1, 0), (1, 2), 1),
    ((1, 4, 4, 5), (4, 1, 2, 3), (1, 2), (0, 2), (2, 1), 4),
]


@pytest.mark.parametrize("image, kernel, stride, padding, dilation, groups", CONVOLUTIONS)
def test_convolution(image, kernel, stride, padding, dilation, groups):
    x, w = draw(*image), draw(*kernel)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = reference.conv(x, w, **how)
    inside, outside = image[1] // groups, kernel[0] // groups
    for n, o, *i in np.ndindex(y.shape):
        total = []
        for c, *t in np.ndindex(inside, *kernel[2:]):
            at = [s * a + d * b - p for s, a, d, b, p in zip(stride, i, dilation, t, padding, strict=True)]
            if all(0 <= a < m for a, m in zip(at, image[2:], strict=True)):
                total.append(x[(n, o // outside * inside + c, *at)] * w[(o, c, *t)])
        close(y[(n, o, *i)], math.fsum(total))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel[2:], strict=True)]
    assert y.shape[2:] == tuple(
        len(range(0, m + 2 * p - r, s)) for m, p, r, s in zip(image[2:], padding, reach, stride, strict=True)
    )
    v = draw(*y.shape)
    dx, dw = reference.conv_input_grad(v, w, image[2:], **how), reference.conv_weight_grad(x, v, kernel[2:], **how)
    are_the_gradients([dx, dw], lambda x, w: reference.conv(x, w, **how), [x, w], v)
    assert y.flags.c_contiguous and dx.flags.c_contiguous


# ------------------------------------------------------------------------------------------------------ tables, optimisers


def test_tables():
    """Gather and its transpose; repeats add up, to what is there already; negative numbers count from the end."""
    table, index = draw(4, 3), np.array([[0, 2, 2], [-1, 2, 3]])
    close(reference.embedding(table, index), [[table[i] for i in row] for row in index])
    for source in (draw(2, 3, 3), np.asfortranarray(draw(2, 3, 3)), np.broadcast_to(draw(3), (2, 3, 3))):
        out = draw(4, 3)
        wanted = out.copy()
        for at in np.ndindex(2, 3):
            wanted[index[at]] += source[at]
        assert reference.scatter_add(out, index, source) is None
        close(out, wanted)
    out = draw(3)
    before = out.copy()
    reference.scatter_add(out, np.zeros((0, 2), int), np.zeros((0, 2)))
    assert np.array_equal(out, before)
    reference.scatter_add(out, np.array([1, 1]), np.array([0.5, 0.25]))
    close(out, before + [0, 0.75, 0])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("coupled", [False, True])
def test_adam_by_hand(decay, coupled):
    """Five steps of two parameters, one number at a time; p, m and v are changed in place, g is not."""
    lr, b1, b2, eps = 0.05, 0.8, 0.95, 1e-2
    p, m, v = ([f(7), f(2, 1)] for f in (draw, lambda *n: np.zeros(n), lambda *n: np.zeros(n)))
    ps, ms, vs = (np.concatenate([x.ravel() for x in xs]) for xs in (p, m, v))
    for step in range(1, 6):
        g = [draw(7), draw(2, 1)]
        kept = [x.copy() for x in g]
        options = {"step": step, "lr": lr, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": decay}
        if coupled:
            assert reference.adam(p, g, m, v, **options) is None
        else:
            assert reference.adamw(p, g, m, v, **options) is None
        assert all(map(np.array_equal, g, kept))
        for i, gi in enumerate(np.concatenate([x.ravel() for x in g])):
            gi = gi + decay * ps[i] if coupled else gi
            if not coupled:
                ps[i] -= lr * decay * ps[i]
            ms[i] = b1 * ms[i] + (1 - b1) * gi
            vs[i] = b2 * vs[i] + (1 - b2) * gi**2
            ps[i] -= lr * (ms[i] / (1 - b1**step)) / (math.sqrt(vs[i] / (1 - b2**step)) + eps)
        for ours, theirs in zip((p, m, v), (ps, ms, vs), strict=True):
            close(np.concatenate([x.ravel() for x in ours]), theirs)


@pytest.mark.parametrize(("kernel", "Optimizer"), [(reference.adam, optim.Adam), (reference.adamw, optim.AdamW)])
def test_adam_is_the_optimizers(kernel, Optimizer):
    p = draw(7)
    x = sg.tensor(p, requires_grad=True)
    optimizer = Optimizer([x], lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    m, v = np.zeros(7), np.zeros(7)
    for step in range(1, 6):
        g = draw(7)
        kernel([p], [g], [m], [v], step=step, lr=0.05, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
        x.grad = sg.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p, x.data, rtol=1e-12)


def test_adam_of_a_number():
    p, g, m, v = ([np.array(t)] for t in (1.0, 0.5, 0.0, 0.0))
    reference.adamw(p, g, m, v, step=1, lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, weight_decay=0.0)
    close(p[0], 0.9)


def test_sum_of_squares_and_scale():
    xs = [draw(3, 2), draw(), np.zeros(0)]
    total = math.fsum(float(t) ** 2 for x in xs for t in np.ravel(x))
    close(reference.sum_of_squares(xs), total)
    reference.scale(xs, -0.5)
    close(reference.sum_of_squares(xs), total / 4)


def norm_in_training(x, w, b):
    return F.batch_norm(x, None, None, w, b, training=True)


def composed_norm(x, w, b):
    dims, across = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    centred = x - x.mean(dims, keepdim=True)
    var = (centred * centred).mean(dims, keepdim=True)
    return centred / (var + 1e-5).sqrt() * w.reshape(across) + b.reshape(across)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(6, 3), (1, 3, 5), (2, 3, 4, 5), (0, 3, 4)])
def test_batch_norm_is_its_composition_to_second_order(shape, backend):
    x, w, b, dy, *directions = (draw(*s) for s in (shape, (3,), (3,), shape, shape, (3,), (3,)))
    if x.size:
        x[:, 1] = 0.75  # a constant channel
    found = []
    with kernels.use(backend):
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


def test_what_a_vae_composes_has_the_value_of_its_node():
    mean, log_var, noise = (sg.tensor(draw(3, 4)) for _ in range(3))
    close(fused.StandardGaussianKL().composed(mean, log_var).data, F.kl_standard_gaussian(mean, log_var).data)
    close(fused.Reparameterized().composed(mean, log_var, noise).data, F.reparameterize(mean, log_var, noise).data)


def test_rows_with_constants_squared_errors_and_signs():
    x, s = np.array([[1.0, -2.0, 0.5], [0.0, -0.0, np.nan]]), np.array([10.0, -1.0])
    for i, j in np.ndindex(x.shape):
        np.testing.assert_equal(reference.add_to_rows(x, s)[i, j], x[i, j] + s[i])
        np.testing.assert_equal(reference.scale_rows(x, s)[i, j], x[i, j] * s[i])
    np.testing.assert_equal(reference.sign(x), [[1, -1, 1], [0, 0, np.nan]])
    a, b = np.array([[1, 2], [3, 4]], "f"), np.array([[1, 4], [0, 0]], "f")
    assert reference.squared_error(a, b) == 4 + 9 + 16
    loss = reference.squared_error(a, b, 4)
    assert loss == 7.25 and loss.dtype == np.float32 and loss.shape == ()
    many = np.full(100_000, 0.1, "f")
    assert reference.squared_error(many, np.zeros_like(many), many.size) == np.square(np.float32(0.1))  # equal: their own mean
