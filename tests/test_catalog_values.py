"""Ops at particular values: magnitudes that overflow, the points where there is no derivative, and what no row shows."""

import string
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kernels
from scratchgen import functional as F
from scratchgen import nn, ops
from scratchgen.autograd import grad
from scratchgen.catalog import of, row
from scratchgen.catalog.row import real
from scratchgen.grad_mode import no_grad
from scratchgen.ops import operands
from scratchgen.tensors import Tensor, constant
from tests.references import REFERENCES
from tests.strategies import examples, normal
from tests.sweeps import close, flat, swept

# ---------------------------------------------------------------------------------------------------------------------
# Extreme magnitudes
# ---------------------------------------------------------------------------------------------------------------------


# Values and slopes in long double, by formulas that use only exponentials of negative numbers.


def _sigma(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _phi(x):
    from scipy import special

    return special.ndtr(x.astype(float)).astype(x.dtype)


def _tanh_softplus(x):
    return -np.expm1(-2 * _softplus(x)) / (1 + np.exp(-2 * _softplus(x)))


def _log_moment(x):
    """log ∫₀¹ e^{ux} du, near 0 by the first terms of its power series"""
    m = np.maximum(np.abs(x), 1e-5)
    return np.where(np.abs(x) < 1e-5, x / 2 + x * x / 24, np.maximum(x, 0) + np.log(-np.expm1(-m) / m))


def _moment(x):
    m = np.maximum(np.abs(x), 1e-3)
    large = 0.5 + np.copysign(1 / -np.expm1(-m) - 1 / m - 0.5, x)
    return np.where(np.abs(x) < 1e-3, 0.5 + x / 12 - x**3 / 720 + x**5 / 30240, large)


EXTREME = {  # elementwise: function, value, slope
    "sigmoid": (ops.sigmoid, _sigma, lambda x: _sigma(x) * _sigma(-x)),
    "tanh": (ops.tanh, np.tanh, lambda x: 4 * _sigma(2 * x) * _sigma(-2 * x)),
    "softplus": (lambda x: F.softplus(x, threshold=np.inf), _softplus, _sigma),
    "logsigmoid": (F.logsigmoid, lambda x: -_softplus(-x), lambda x: _sigma(-x)),
    "silu": (F.silu, lambda x: x * _sigma(x), lambda x: _sigma(x) * (1 + x * _sigma(-x))),
    "gelu": (F.gelu, lambda x: x * _phi(x), lambda x: _phi(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "mish": (
        F.mish,
        lambda x: x * _tanh_softplus(x),
        lambda x: _tanh_softplus(x) + x * _sigma(x) * (1 - _tanh_softplus(x) ** 2),
    ),
    "elu": (F.elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0))),
    "celu": (
        lambda x: F.celu(x, 0.5),
        lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(2 * x, 0))),
        lambda x: np.exp(np.minimum(2 * x, 0)),
    ),
    "BCE, t = 0": (lambda x: F.binary_cross_entropy_with_logits(x, x.detach() * 0, reduction="none"), _softplus, _sigma),
    "BCE, t = 1": (
        lambda x: F.binary_cross_entropy_with_logits(x, x.detach() * 0 + 1, reduction="none"),
        lambda x: _softplus(-x),
        lambda x: -_sigma(-x),
    ),
    "continuous_bernoulli_log_prob, x = 0": (
        lambda x: F.continuous_bernoulli_log_prob(x.detach() * 0, x),
        lambda x: -_log_moment(x),
        lambda x: -_moment(x),
    ),
    "kl_bernoulli": (
        lambda x: F.kl_bernoulli(x * 0, x),
        lambda x: (_softplus(x) + _softplus(-x)) / 2 - np.log(np.longdouble(2)),
        lambda x: _sigma(x) - 0.5,
    ),
}
AT_INFINITY = {  # value, slope and curvature at −∞ and at ∞
    "sigmoid": (ops.sigmoid, [0, 1], [0, 0], [0, 0]),
    "tanh": (ops.tanh, [-1, 1], [0, 0], [0, 0]),
    "softplus": (F.softplus, [0, np.inf], [0, 1], [0, 0]),
    "softplus without a threshold": (lambda x: F.softplus(x, 2.0, np.inf), [0, np.inf], [0, 1], [0, 0]),
    "logsigmoid": (F.logsigmoid, [-np.inf, 0], [1, 0], [0, 0]),
    "elu": (lambda x: F.elu(x, 0.5), [-0.5, np.inf], [0, 1], [0, 0]),
    "celu": (lambda x: F.celu(x, 0.5), [-0.5, np.inf], [0, 1], [0, 0]),
    "selu": (F.selu, [-1.7580993408473766, np.inf], [0, 1.0507009873554805], [0, 0]),
    "silu": (F.silu, [0, np.inf], [0, 1], [0, 0]),
    "mish": (F.mish, [0, np.inf], [0, 1], [0, 0]),
}


@pytest.mark.parametrize(
    "function, x, expected",
    [
        (lambda x: F.elu(x, 0.5), [-1.0, 0.0, 1.0], [0.5 * np.exp(-1), 0.5, 0.0]),
        (lambda x: F.celu(x, 2.0), [-1.0, 0.0, 1.0], [0.5 * np.exp(-0.5), 0.5, 0.0]),
        (lambda x: F.softplus(x, 2.0, 1.0), [0.5, 0.6], [0.3932238664829637, 0.0]),  # 2 σ(1) σ(−1)
    ],
)
def test_the_second_derivative_at_a_kink_is_that_of_the_side_of_the_first(function, x, expected):
    x = Tensor(np.array(x), requires_grad=True)
    (slope,) = grad(function(x).sum(), x, create_graph=True)
    (bend,) = grad(slope.sum(), x)
    np.testing.assert_allclose(bend.data, expected, rtol=1e-12)


def test_the_weight_of_a_norm_of_nothing_has_a_gradient_of_zeros():
    w = Tensor(np.ones(3), requires_grad=True)
    for y in (F.rms_norm(Tensor(np.zeros((0, 3))), 3, w), F.group_norm(Tensor(np.zeros((0, 3, 2))), 3, w)):
        np.testing.assert_array_equal(grad(y.sum(), w)[0].data, np.zeros(3))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", AT_INFINITY)
def test_activations_at_infinity(name, backend):
    function, value, slope, curvature = AT_INFINITY[name]
    for dtype in (np.float32, np.float64)[: 1 if backend == "cpu" else 2]:
        x = Tensor(np.array([-np.inf, np.inf], dtype), requires_grad=True)
        with kernels.use(backend):
            y = function(x)
            (plain,) = grad(y, x, constant(np.ones(2, dtype)), retain_graph=True)
            (kept,) = grad(y, x, constant(np.ones(2, dtype)), create_graph=True)
            (bent,) = grad(kept, x, constant(np.ones(2, dtype)))
        for got, wanted in ((y, value), (plain, slope), (kept, slope), (bent, curvature)):
            np.testing.assert_allclose(got.data, wanted, rtol=1e-6)


MAGNITUDES = np.array([-1e4, -900.0, -104.5, -40.0, -30.5, 30.5, 40.0, 104.5, 900.0, 1e4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_elements(name, dtype):
    function, value, slope = EXTREME[name]
    x = MAGNITUDES.astype(dtype)
    run = swept(lambda t: [function(t)], [x], dtype=dtype, cotangents=[constant(np.ones(x.shape, dtype))])
    wide = x.astype(np.longdouble)
    eps = float(np.finfo(dtype).eps)
    exact = value(wide)
    slack = eps * np.abs(wide) if name.startswith("BCE") else 1e-30  # softplus(x) − t x is as good as x is known
    assert (np.abs(run.ys[0].data - exact) <= 64 * eps * np.abs(exact) + slack).all(), (run.ys[0].data, exact)
    np.testing.assert_allclose(run.grads[0].data, slope(wide).astype(dtype), rtol=64 * eps, atol=4 * eps)


def _rows(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), x - x.max(-1, keepdims=True) - np.log(e.sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@examples(20)
@given(
    hnp.arrays(np.float64, (2, 3), elements=st.sampled_from([-1e4, -88.0, -1.0, 0.0, 0.5, 88.75, 710.0, 1e4])),
    st.integers(0, 2),
)
def test_extreme_rows(dtype, x, t):
    """softmax, its logarithm, logsumexp, cross-entropy and attention on logits as large as ±10⁴."""
    x = x.astype(dtype)
    p, log_p = _rows(x.astype(np.longdouble))
    hot = np.eye(3)[[t, t]]
    target = np.array([t, t])
    expected = {  # value, Jᵀ v
        "softmax": (lambda z: F.softmax(z, -1), p, lambda v: p * (v - (v * p).sum(-1, keepdims=True))),
        "log_softmax": (lambda z: F.log_softmax(z, -1), log_p, lambda v: v - p * v.sum(-1, keepdims=True)),
        "logsumexp": (lambda z: ops.logsumexp(z, -1), (x - log_p)[:, 0], lambda v: v[:, None] * p),
        "cross_entropy": (
            lambda z: F.cross_entropy(z, target, reduction="none"),
            -log_p[:, t],
            lambda v: v[:, None] * (p - hot),
        ),
        "label smoothing": (
            lambda z: F.cross_entropy(z, target, reduction="none", label_smoothing=0.3),
            -0.7 * log_p[:, t] - 0.3 * log_p.mean(-1),
            lambda v: v[:, None] * (p - 0.7 * hot - 0.1),
        ),
    }
    eps = float(np.finfo(dtype).eps)
    atol = 8 * eps * max(4.0, np.abs(x).max())  # what rounding the logits themselves does
    for name, (function, value, vjp) in expected.items():
        run = swept(lambda z, function=function: [function(z)], [x], dtype=dtype)
        np.testing.assert_allclose(run.ys[0].data, value.astype(dtype), rtol=32 * eps, atol=atol, err_msg=name)
        exact = vjp(run.vs[0].data.astype(np.longdouble)).astype(dtype)
        np.testing.assert_allclose(run.grads[0].data, exact, rtol=64 * eps, atol=atol, err_msg=name)
    # attention whose scores are these logits: Q = x, K = 1, V = 1 gives the softmax itself
    run = swept(
        lambda z: [
            F.scaled_dot_product_attention(z, Tensor(np.eye(3, dtype=dtype)), Tensor(np.eye(3, dtype=dtype)), scale=1.0)
        ],
        [x],
        dtype=dtype,
    )
    np.testing.assert_allclose(run.ys[0].data, p.astype(dtype), rtol=32 * eps, atol=atol)
    exact = expected["softmax"][2](run.vs[0].data.astype(np.longdouble)).astype(dtype)
    np.testing.assert_allclose(run.grads[0].data, exact, rtol=64 * eps, atol=atol)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_norms_of_extreme_scale(scale):
    """‖x‖ has degree 1: its gradient does not depend on the scale, and no square over- or underflows."""
    x = np.array([[3.0, -4.0], [0.0, 2.0]]) * scale
    for function in (lambda t: ops.norm(t, dim=1), lambda t: ops.std(t, dim=1)):
        big, plain = swept(lambda t, f=function: [f(t)], [x]), swept(lambda t, f=function: [f(t)], [x / scale])
        close(big.ys[0].data / scale, plain.ys[0].data, 1e-13)
        close(big.grads[0].data, plain.grads[0].data, 1e-13)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_rows_of_minus_infinity(name):
    """A row with nothing in it: zeros for softmax, −∞ for its logarithms; −∞ beside finite logits weighs nothing."""
    x = np.array([[-np.inf, -np.inf], [-np.inf, 1.5]])
    run = swept(lambda t: [getattr(ops, name)(t, -1)], [x], cotangents=None)
    expected = {"softmax": [[0, 0], [0, 1]], "log_softmax": [[-np.inf, -np.inf], [-np.inf, 0]], "logsumexp": [-np.inf, 1.5]}[
        name
    ]
    np.testing.assert_array_equal(run.ys[0].data, expected)
    if name != "log_softmax":
        assert np.isfinite(run.grads[0].data).all()
        np.testing.assert_array_equal(run.grads[0].data[0], 0)


# ---------------------------------------------------------------------------------------------------------------------
# Where there is no derivative
# ---------------------------------------------------------------------------------------------------------------------


nan = float("nan")
_SIGMA_1 = 1 / (1 + np.exp(-1.0))
KINKS = [  # name, function, x, the gradient of its sum, by decision
    ("abs", ops.abs, [0.0], [0.0]),
    ("relu", ops.relu, [0.0, -0.0], [0.0, 0.0]),
    ("leaky_relu", F.leaky_relu, [0.0], [0.01]),
    ("elu", F.elu, [0.0], [1.0]),
    ("hardtanh", F.hardtanh, [-1.0, 1.0], [0.0, 0.0]),
    ("softsign", F.softsign, [0.0], [1.0]),
    ("clamp", lambda x: ops.clamp(x, -1.0, 1.0), [-1.0, 1.0, 2.0], [1.0, 1.0, 0.0]),
    (
        "clamp by tensors",
        lambda x: ops.clamp(x, Tensor([-1.0]).double(), Tensor([1.0]).double()),
        [-1.0, 1.0, 2.0],
        [1.0, 1.0, 0.0],
    ),
    ("maximum", lambda x: ops.maximum(x, x.detach()), [1.0], [0.5]),
    ("minimum", lambda x: ops.minimum(x, x.detach()), [1.0], [0.5]),
    ("amax", ops.amax, [1.0, 3.0, 3.0, 3.0], [0.0, 1 / 3, 1 / 3, 1 / 3]),
    ("amin", ops.amin, [1.0, 1.0, 3.0], [0.5, 0.5, 0.0]),
    ("max", ops.max, [3.0, 3.0, 1.0], [0.5, 0.5, 0.0]),
    ("max along dim", lambda x: ops.max(x, 0)[0], [3.0, 3.0, 1.0], [1.0, 0.0, 0.0]),
    ("min along dim", lambda x: ops.min(x, 0)[0], [3.0, 1.0, 1.0], [0.0, 1.0, 0.0]),
    ("max_pool1d", lambda x: F.max_pool1d(x.reshape(1, 1, 3), 3), [2.0, 5.0, 5.0], [0.0, 1.0, 0.0]),
    ("norm", ops.norm, [0.0, 0.0], [0.0, 0.0]),
    ("norm, p = 1", lambda x: ops.norm(x, 1), [0.0, -2.0], [0.0, -1.0]),
    ("norm, p = inf", lambda x: ops.norm(x, np.inf), [-2.0, 2.0], [-0.5, 0.5]),
    ("std", ops.std, [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]),
    ("normalize", lambda x: F.normalize(x, dim=0, eps=0.5), [0.0, 0.0], [2.0, 2.0]),
    ("cosine_similarity", lambda x: F.cosine_similarity(x, x.detach() + 1, 0), [0.0, 0.0], [np.sqrt(0.5) * 1e8] * 2),
    ("l1_loss", lambda x: F.l1_loss(x, x.detach()), [1.0, 2.0], [0.0, 0.0]),
    ("huber_loss", lambda x: F.huber_loss(x, x.detach() * 0, reduction="sum"), [1.0, -1.0, 0.0], [1.0, -1.0, 0.0]),
    ("smooth_l1_loss", lambda x: F.smooth_l1_loss(x, x.detach() * 0, reduction="sum"), [1.0, -1.0, 0.0], [1.0, -1.0, 0.0]),
    ("pow, 0¹", lambda x: x**1, [0.0], [1.0]),
    ("pow, 0⁰", lambda x: x**0, [0.0], [0.0]),
    ("pow, 0²", lambda x: x**2, [0.0], [0.0]),
    ("pow, tensors", lambda x: x ** Tensor(np.array([0.0, 1.0, 2.0])), [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    ("pow, exponent at 0", lambda b: Tensor(np.zeros(2)) ** b, [0.0, 1.0], [0.0, 0.0]),
    ("prod with one zero", ops.prod, [0.0, 2.0, 3.0], [6.0, 0.0, 0.0]),
    ("prod with two zeros", ops.prod, [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]),
    ("where", lambda x: ops.where(x > 0, x.sqrt(), 0.0), [4.0, 9.0], [0.25, 1 / 6]),
    ("softplus about its threshold", lambda x: ops.softplus(x, 2.0, 1.0), [0.4, 0.5, 0.6], [0.6899744811276125, _SIGMA_1, 1.0]),
    ("logaddexp beside −∞", lambda x: ops.logaddexp(x, Tensor(np.zeros(2))), [-np.inf, np.inf], [0.0, 1.0]),
    ("narrow from the end", lambda x: x.narrow(0, -2, 1) * 3, [1.0, 2.0, 3.0], [0.0, 3.0, 0.0]),
    ("pad, replicate and cut", lambda x: F.pad(x, (2, -1), "replicate"), [1.0, 2.0, 3.0], [3.0, 1.0, 0.0]),
    ("pad, cut and replicate", lambda x: F.pad(x, (-1, 2), "replicate"), [1.0, 2.0, 3.0], [0.0, 1.0, 3.0]),
    ("pad, replicate cut alone", lambda x: F.pad(x, (0, -1), "replicate"), [1.0, 2.0, 3.0], [1.0, 1.0, 0.0]),
    ("logaddexp of −∞", lambda x: ops.logaddexp(x, Tensor(np.array([-np.inf]))), [-np.inf], [0.5]),
    ("kl_div, t = 0", lambda t: F.kl_div(Tensor(np.array([-1.0, -2.0])), t, reduction="sum"), [0.0, 1.0], [0.0, 3.0]),
]


@pytest.mark.parametrize("name, function, x, expected", KINKS, ids=[k[0] for k in KINKS])
def test_value_chosen_at_a_kink(name, function, x, expected):
    x = Tensor(np.array(x), requires_grad=True)
    (g,) = grad(function(x).sum(), x)
    np.testing.assert_allclose(g.data, expected, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Particular cases
# ---------------------------------------------------------------------------------------------------------------------


MASK = np.array([[True, False], [True, True]])
NUMBERS_BESIDE_ARRAYS = [  # an index with numbers, and the same in two steps
    ((0, slice(None), [1, 0]), lambda x: x[0][:, [1, 0]]),
    (([1, 0], slice(None), 1), lambda x: x[:, :, 1][[1, 0]]),
    ((slice(None), [1, 0], slice(None), 0), lambda x: x[..., 0][:, [1, 0]]),
    ((0, ..., [1, 0]), lambda x: x[0][..., [1, 0]]),
    ((0, slice(None), MASK), lambda x: x[0][:, MASK]),
    ((MASK, slice(None), 1), lambda x: x[..., 1][MASK]),
    ((0, None, slice(None), [1, 0]), lambda x: x[0][None][:, :, [1, 0]]),
    ((slice(None), 1, [1, 0]), lambda x: x[:, 1][:, [1, 0]]),
    (([1, 0], 1, slice(1)), lambda x: x[:, 1][[1, 0]][:, :1]),
]


@pytest.mark.parametrize("key, twice", NUMBERS_BESIDE_ARRAYS, ids=[str(i) for i in range(len(NUMBERS_BESIDE_ARRAYS))])
def test_a_number_beside_arrays_takes_its_slice_first(key, twice):
    x = normal((2, 2, 2, 2), 0)
    key = tuple(np.array(k) if isinstance(k, list) else k for k in key)
    run = swept(lambda t: [t[key]], [x])
    other = swept(lambda t: [twice(t)], [x], cotangents=run.vs)
    np.testing.assert_array_equal(run.ys[0].data, other.ys[0].data)
    np.testing.assert_array_equal(run.grads[0].data, other.grads[0].data)


@pytest.mark.parametrize("letters", [string.ascii_lowercase, string.ascii_uppercase])
def test_einsum_of_many_labels(letters):
    """An ellipsis has letters to stand for its dimensions, whichever the equation uses."""
    x = normal((1,) * 25 + (2, 3), 0)
    run = swept(lambda t: [ops.einsum(f"...{letters}->{letters}...", t)], [x.reshape(2, *(1,) * 25, 3)])
    assert run.ys[0].shape == (1,) * 25 + (3, 2)
    np.testing.assert_array_equal(run.grads[0].data.reshape(2, 3), run.vs[0].data.reshape(3, 2).T)


def test_whole_numbers_held_between_fractions_become_floats():
    y = ops.clamp(Tensor([1, 2, 3]), 1.5, 2.5)
    assert y.dtype == np.float32 and y.data.tolist() == [1.5, 2.0, 2.5]
    assert ops.clamp(Tensor([1, 2, 3]), 2).dtype == np.int64
    root = Tensor([1, 4, 9]) ** 0.5
    assert root.dtype == np.float32 and root.data.tolist() == [1, 2, 3]


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_classes_that_change_after_the_loss_do_not_change_its_gradient(loss):
    x, t = Tensor(normal((2, 3), 0), requires_grad=True), Tensor([0, 2])
    expected = grad(loss(x, Tensor([0, 2])), x)[0].data
    y = loss(x, t)
    t.copy_(np.array([1, 1]))
    np.testing.assert_array_equal(grad(y, x)[0].data, expected)


@pytest.mark.parametrize("p", [3, 0.5, -1, 0, 1, np.inf, -np.inf])
def test_norms_of_rows_with_zeros(p):
    """(Σ |x|^p)^{1/p}; the gradient is that of the others, and 0 at a zero and in a row of zeros."""
    x = np.array([[2.0, 0.0, -3.0], [0.0, 0.0, 0.0], [1.5, -1.25, 0.75]])
    run = swept(lambda t: [ops.norm(t, p, 1)], [x])
    size = np.abs(x)
    with np.errstate(divide="ignore"):
        value = {0: (size > 0).sum(1), np.inf: size.max(1), -np.inf: size.min(1)}.get(p)
        value = (size**p).sum(1) ** (1 / p) if value is None else value
    close(run.outputs[0].data, value, 1e-13)
    if p in (3, 0.5, 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(size > 0, np.sign(x) * size ** (p - 1) * value[:, None] ** (1 - p), 0)
        close(run.grads[0].data, np.nan_to_num(slope) * run.vs[0].data[:, None], 1e-12)
    if p == -1:
        np.testing.assert_array_equal(run.grads[0].data[:2], 0)


def test_a_norm_of_negative_numbers_alone_of_extreme_scale():
    run = swept(lambda t: [ops.norm(t)], [np.array([-3e200, -4e200])])
    close(run.ys[0].data / 1e200, 5.0, 1e-14)
    close(run.grads[0].data, np.array([-0.6, -0.8]) * run.vs[0].data, 1e-14)


def test_copies_are_copies():
    x = Tensor(normal((2, 3), 0))
    for y in (ops.clone(x), x.T.contiguous()):
        assert y.data.flags.c_contiguous and not np.may_share_memory(x.data, y.data)
    assert np.may_share_memory(x.contiguous().data, x.data)
    assert ops.repeat_interleave(x, 0, 1).shape == (2, 0)
    with pytest.raises(ValueError, match="repeat_interleave: expected"):
        ops.repeat_interleave(x, -1, 1)


def test_an_index_that_changes_afterwards_does_not_change_the_gradient():
    x, index = Tensor(normal(3, 0), requires_grad=True), Tensor([0, 2])
    for pick in (lambda i: x[i], lambda i: x.index_select(0, i), lambda i: x.gather(0, i)):
        index.copy_(np.array([0, 2]))
        y = pick(index)
        index.copy_(np.array([1, 1]))
        assert grad(y.sum(), x)[0].data.tolist() == [1, 0, 1]


def test_numbers_and_whole_numbers_take_the_dtype_that_fits():
    """Of two numbers the wider; a fraction beside whole numbers gives float32, a whole number beside booleans int64."""
    whole, flags = Tensor([1, 2]), Tensor([True, False])
    assert ops.add(1, 0.5).dtype == ops.add(0.5, 1).dtype == np.float32
    assert ops.add(1, 2).dtype.kind == "i" and ops.add(True, 2).dtype.kind == "i"
    assert (whole + 0.5).dtype == np.float32 and (whole + 1).dtype == np.int64
    assert (flags + 1).dtype == np.int64 and (flags + True).dtype == np.bool_
    assert ops.sum(Tensor(np.array([200, 100], np.uint8))).item() == 300
    assert ops.sum(Tensor(np.array([200, 100], np.uint8))).dtype == np.int64
    assert ops.div(whole, Tensor([2, 4])).dtype == np.float32 and ops.div(whole, Tensor([2, 4])).data.tolist() == [0.5, 0.5]
    assert ops.exp(whole).dtype == np.float32 and (whole // 2).dtype == np.int64


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int32, np.int64])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_whole_numbers_add_and_multiply_up_as_int64(dtype, dim):
    x = np.array([[1, 100, 1], [0, 100, 1]]).astype(dtype)
    wide = x.astype(np.int64)
    for name in ("sum", "prod", "cumsum", "cumprod"):
        y = getattr(ops, name)(Tensor(x), dim)
        assert y.dtype == np.int64 and np.array_equal(y.data, getattr(np, name)(wide, axis=dim)), name
    large = np.full((100, 2), 2**53 + 1)  # no float64 holds it
    assert ops.sum(Tensor(large), 0).tolist() == [100 * (2**53 + 1)] * 2


def test_leaky_relu_of_a_negative_slope():
    run = swept(lambda t: [F.leaky_relu(t, -0.5)], [np.array([2.0, -3.0, 0.0, 0.5])])
    np.testing.assert_array_equal(run.ys[0].data, [2, 1.5, 0, 0.5])
    np.testing.assert_array_equal(run.grads[0].data, run.vs[0].data * [1, -0.5, -0.5, 1])


def test_the_way_of_device_arrays_is_right_on_the_host(monkeypatch):
    """Where a device is not given arrays to write to, the result is the same."""

    def call(x):
        return [F.self_attention(x, is_causal=True)]

    x = normal((2, 3, 3, 2, 4), 0)
    plain = swept(call, [x])
    monkeypatch.setattr(ops.fused, "devices", SimpleNamespace(on_host=lambda array: False))
    other = swept(call, [x], cotangents=plain.vs)
    close(other.ys[0].data, plain.ys[0].data, 1e-14)
    close(other.grads[0].data, plain.grads[0].data, 1e-13)


def test_moving_has_the_cotangent_for_a_gradient_and_an_empty_index_picks_nothing():
    x = normal((2, 3), 0)
    run = swept(lambda t: [operands.Move.apply(t, device="cpu")], [x])
    np.testing.assert_array_equal(run.ys[0].data, x)
    np.testing.assert_array_equal(run.grads[0].data, run.vs[0].data)
    run = swept(lambda t: [t[[]], t * 2], [x])
    assert run.ys[0].shape == (0, 3)
    np.testing.assert_array_equal(run.grads[0].data, 2 * run.vs[1].data)


def test_attention_layer_that_drops_everything():
    """p = 1 leaves the bias of the last projection, without a division by 1 − p = 0."""
    layer = nn.MultiheadAttention(4, 2, dropout=1.0).double()
    with no_grad():
        layer.out_proj.bias.copy_(normal(4, 0))
    x = Tensor(normal((3, 1, 4), 1))
    for need_weights in (False, True):
        y, _ = layer(x, x, x, need_weights=need_weights)
        np.testing.assert_array_equal(y.data, np.broadcast_to(normal(4, 0), (3, 1, 4)))


def test_lstm_of_five_cells():
    """4 · 5 gates are four pieces of five, not five of four."""
    case, f, arrays = next(row("nn.LSTM", of(2, 5)(real(3, 1, 2))).drawn())
    expected = list(flat(REFERENCES["nn.LSTM"](f.module, *arrays)))
    for y, e in zip(f(*map(Tensor, arrays)), expected, strict=True):
        close(y.data, e, 1e-12)


def test_class_weights_of_pictures():
    """Classes in dimension 1, pixels after it: the same as one row for each pixel."""
    x, w = normal((2, 3, 2, 3), 0), np.array([0.2, 0.5, 2.0])
    p = np.exp(normal((2, 3, 2, 3), 1))
    p /= p.sum(1, keepdims=True)
    run = swept(lambda t: [F.cross_entropy(t, Tensor(p), Tensor(w), "sum")], [x])
    rows = swept(
        lambda t: [
            F.cross_entropy(t.movedim(1, -1).reshape(-1, 3), Tensor(np.moveaxis(p, 1, -1).reshape(-1, 3)), Tensor(w), "sum")
        ],
        [x],
        cotangents=run.vs,
    )
    close(run.ys[0].data, rows.ys[0].data, 1e-13)
    close(run.grads[0].data, rows.grads[0].data, 1e-13)


def test_the_logsumexp_of_nothing_is_minus_infinity():
    np.testing.assert_array_equal(ops.logsumexp(Tensor(np.zeros((2, 0))), 1).data, [-np.inf, -np.inf])


def test_running_statistics_of_instance_norm():
    mean, var = Tensor(np.array([1.0])), Tensor(np.array([2.0]))
    F.instance_norm(Tensor(np.array([[[1.0, 3.0]]])), mean, var, momentum=0.25)
    assert mean.item() == 0.75 * 1 + 0.25 * 2 and var.item() == 0.75 * 2 + 0.25 * 2


def test_the_padding_row_of_an_embedding_is_held_still():
    layer = nn.Embedding(3, 2, padding_idx=1)
    y = layer(Tensor([[0, 1], [1, 0]]))
    assert y.data[0, 1].tolist() == [0, 0]
    y.sum().backward()
    assert layer.weight.grad.data.tolist() == [[2, 2], [0, 0], [0, 0]]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_to_nothing_is_zero(causal):
    """A row that may attend to nothing gives zeros, and gives none of the inputs a gradient; at both orders."""
    q, k, v = (Tensor(normal((2, 2), i), requires_grad=True) for i in range(3))
    allowed = np.array([[False, False], [True, not causal]])
    y = F.scaled_dot_product_attention(q, k, v, Tensor(allowed))
    np.testing.assert_array_equal(y.data[0], 0)
    for create_graph in (False, True):
        gs = grad(y[0].sum() * 3, [q, k, v], create_graph=create_graph, retain_graph=True)
        for g in gs:
            np.testing.assert_array_equal(g.data, 0)
