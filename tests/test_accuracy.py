"""float32 against float64, and against values that are known, on each backend: errors in units in the last place.

A unit of a result is the distance from it to the next float32, or, for a sum, that of Σ |terms|: what a sum of terms of both
signs can be right to. Bounds are stated beside each case, and none of them knows how many terms there are.
"""

import math
from importlib import import_module

import numpy as np
import pytest

import kernels
import scratchgen as sg
from kernels import reference
from scratchgen import functional as F
from tests.strategies import DEEP

UNIT = 2.0**-23  # of float32: what is between 1 and the next number


class Backend:
    """The kernels of one backend, as functions of NumPy arrays"""

    def __init__(self, name, place=None):
        self.name, self.place = name, place

    def __call__(self, door, *arrays, **options):
        if self.name == "reference" or (self.name == "cpu" and door not in kernels.ROOM):
            return getattr(reference, door)(*arrays, **options)
        if self.name == "cpu":
            return getattr(import_module(f"kernels.cpu.{kernels.ROOM[door]}"), door)(*arrays, **options)
        there = {key: self._there(value) for key, value in options.items()}
        results = kernels.device_door(door)(*map(self._there, arrays), **there)
        return tuple(map(self._back, results)) if isinstance(results, tuple) else self._back(results)

    def _there(self, x):
        return self.place.there(x) if isinstance(x, np.ndarray) else x

    def _back(self, x):
        return x if x is None else self.place.back(x)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def backend(request, monkeypatch):
    if request.param != "cuda":
        return Backend(request.param)
    pytest.importorskip("numba.cuda")
    from tests.test_cuda_kernels import ORDERS, emulation

    return Backend("cuda", emulation(monkeypatch, ORDERS))


@pytest.fixture(params=["reference", "cpu"])
def engine(request):
    with kernels.use(request.param):
        yield request.param


def f32(x):
    return np.asarray(x, np.float32)


def units(found, wanted, scale=None):
    """The largest error in units of the last place of the wanted values, or of what they are the sums of."""
    found, wanted = np.asarray(found), np.asarray(wanted, np.longdouble)
    assert found.dtype == np.float32 and found.shape == wanted.shape, (found.dtype, found.shape, wanted.shape)
    size = np.abs(wanted if scale is None else np.broadcast_to(scale, wanted.shape)).astype(np.float64)
    unit = np.ldexp(UNIT, np.maximum(np.frexp(size)[1] - 1, -126))  # below the least normal number they no longer shrink
    return float(np.max(np.abs(found - wanted) / unit, initial=0))


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and its relatives: log Σ beside a large maximum
# ---------------------------------------------------------------------------------------------------------------------

OFFSETS = (0.0, 1e4, -1e9, 4e5, 3e38, -1e30)


def softmax_of(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def rows_with_offset(offset, width=37):
    """Rows of float32 around an offset, and what they are, exactly, less their maximum"""
    x = f32(offset) + f32(np.random.default_rng(0).standard_normal((5, width)))
    return x, np.float64(x) - np.float64(x).max(1, keepdims=True)


@pytest.mark.parametrize("offset", OFFSETS)
def test_softmax_and_its_logarithm_beside_an_offset(backend, offset):
    x, z = rows_with_offset(offset)
    assert units(backend("softmax", x), softmax_of(z)) <= 8
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert units(backend("log_softmax", x), log_p, np.maximum(np.abs(z), 1)) <= 4


@pytest.mark.parametrize("offset", OFFSETS)
def test_cross_entropy_beside_an_offset(backend, offset):
    x, z = rows_with_offset(offset)
    target = np.array([0, 36, 5, -100, 7])
    loss, statistics = backend("cross_entropy", x, target)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    wanted = np.where(target < 0, 0, -log_p[range(5), target.clip(0)])
    assert units(loss, wanted, np.maximum(np.abs(z).max(1), 1)) <= 4
    dx = softmax_of(z) - (np.arange(37) == target[:, None])
    dx[3] = 0
    ones = np.ones(5, np.float32)
    assert units(backend("cross_entropy_backward", ones, x, target, statistics), dx) <= 8


def test_four_logits_of_minus_a_milliard(backend):
    x, target = np.full((1, 4), -1e9, np.float32), np.array([1])
    loss, statistics = backend("cross_entropy", x, target)
    assert units(loss, [math.log(4)]) <= 1
    dx = backend("cross_entropy_backward", np.ones(1, np.float32), x, target, statistics)
    np.testing.assert_array_equal(dx, [[0.25, -0.75, 0.25, 0.25]])


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("second", [False, True])
def test_gradients_through_the_engine_beside_an_offset(engine, offset, second):
    """Softmax, log-softmax, log Σ eˣ and cross-entropy, by the kernels and as composed of ops."""
    x, z = rows_with_offset(offset)
    p, one = softmax_of(z), np.arange(37) == 3
    target = np.full(5, 3)
    functions = {
        "softmax": (lambda t: F.softmax(t, 1)[:, 3].sum(), p[:, 3:4] * (one - p)),
        "log_softmax": (lambda t: F.log_softmax(t, 1)[:, 3].sum(), one - p),
        "logsumexp": (lambda t: (t.logsumexp(1) / 8).sum(), p / 8),
        "logsumexp over both": (lambda t: t.logsumexp((0, 1)), softmax_of(np.float64(x).reshape(1, -1)).reshape(x.shape)),
        "cross_entropy": (lambda t: F.cross_entropy(t, target, reduction="sum"), p - one),
        "cross_entropy of probabilities": (lambda t: F.cross_entropy(t, sg.tensor(f32(p))), 0 * p),
        "smoothed": (lambda t: F.cross_entropy(t, target, reduction="sum", label_smoothing=0.5), p - (one / 2 + 0.5 / 37)),
    }
    for name, (f, wanted) in functions.items():
        t = sg.tensor(x, requires_grad=True)
        (dx,) = sg.grad(f(t), t, create_graph=second)
        assert units(dx.data, wanted, 1.0) <= 4, name


def attention_cases():
    for name, size, options in (
        ("large", 4e5, {}),
        ("large, causal", 4e5, {"causal": True}),
        ("large, scaled", 4e5, {"scale": 0.3}),
        ("huge, negative scale", 1e12, {"scale": -0.7}),
        ("large, masked", 4e5, {"masked": "some"}),
        ("large, with a bias", 4e5, {"masked": "normal"}),
    ):
        for t, s in ((5, 7), (1, 7), (3, 40)):
            yield pytest.param(size, t, s, options, id=f"{name} {t} {s}")


@pytest.mark.parametrize("size, t, s, options", list(attention_cases()))
def test_attention_weights_forward_and_backward_are_the_same(backend, size, t, s, options):
    """With V = 1, O is P; with Ō_ii = 1, V̄ is Pᵀ: of scores so large that another order of their sums gives other weights.

    Of one query the gradients belong to weights that were added up again: they have the right sum, and fit each other.
    """
    if backend.name == "cuda" and (s == 40 or (t == 5) != ("masked" in options)) and not DEEP:
        pytest.skip("only in the deep run: SCRATCHGEN_DEEP=1")
    rng, d = np.random.default_rng(t), 24
    q, k = f32(rng.standard_normal((2, t, d))) * f32(size / d), f32(rng.standard_normal((2, s, d)))
    k[:, 1] = k[:, 2] = k[:, 0]  # the maximum is rarely alone
    options = dict(options)
    masked = options.pop("masked", None)
    if masked:
        bias = rng.standard_normal((t, s)) if masked == "normal" else np.zeros((t, s)) - 1e9 * (np.arange(s) % 3 > 0)
        options["mask"] = f32(bias)
    v = np.broadcast_to(np.eye(s, dtype="f"), (2, s, s)).copy()
    dout = np.broadcast_to(np.eye(t, s, dtype="f"), (2, t, s)).copy()
    for mask_grad in (False, True) if masked else (False,):
        p, statistics = backend("attention", q, k, v, **options)
        assert units(p.sum(-1), np.ones((2, t)), 1.0) <= 4
        dq, dk, dv, ds = backend("attention_backward", dout, q, k, v, p, statistics, mask_grad=mask_grad, **options)
        weights = dv[:, :, :t].swapaxes(1, 2)
        assert units(weights.sum(-1), np.ones((2, t)), 1.0) <= 4
        if t > 4 and not mask_grad:
            assert units(weights, p, 1.0) <= 4
        if mask_grad:
            assert units(ds.sum(-1), np.zeros((2, t)), 1.0) <= 4, "moving all scores of a row changes nothing"


@pytest.mark.parametrize("t, s", [(5, 6), (1, 6)])
@pytest.mark.parametrize("shape", ["row", "all"])
def test_finite_masks_that_forbid_everything(backend, t, s, shape):
    """Scores that are all −1e9 are all equal: each weight is 1/S, forward and backward."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (f32(rng.standard_normal((2, n, 8))) for n in (t, s, s, t))
    mask = np.full((t, s) if shape == "all" else (1, s), -1e9, np.float32)
    out, statistics = backend("attention", q, k, v, mask=mask)
    assert units(out, np.broadcast_to(np.float64(v).mean(1, keepdims=True), out.shape), 1.0) <= 4
    _, _, dv, _ = backend("attention_backward", dout, q, k, v, out, statistics, mask=mask)
    assert units(dv, np.broadcast_to(np.float64(dout).sum(1, keepdims=True) / s, dv.shape), 4.0) <= 2
