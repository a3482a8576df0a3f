"""float32 against float64, and against values that are known, on each backend: errors in units in the last place.

First a table of everything that adds, normalises or measures, at sizes, offsets and layouts that hypothesis draws; then what
such draws seldom meet: logits beside a large maximum, attention, millions of terms, numbers at the ends of the range.

A unit of a result is the distance from it to the next float32, or, for a sum, that of Σ |terms|: what a sum of terms of both
signs can be right to. Bounds are stated beside each case, and none of them knows how many terms there are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
import scratchgen as sg
from kernels import backends, reference
from scratchgen import functional as F
from scratchgen import losses
from scratchgen.tensors import constant
from tests.strategies import DEEP, examples, seeds

UNIT = 2.0**-23  # of float32: what is between 1 and the next number
MANY = [300, 70_001, pytest.param(10**7, marks=pytest.mark.deep)]


class Backend:
    """The kernels of one backend, as functions of NumPy arrays"""

    def __init__(self, name, device=None):
        self.name, self.device = name, device

    def __call__(self, name, *arrays, **options):
        kernel = getattr(kernels, name)
        if self.name != "cuda":
            with kernels.use(self.name):
                return kernel(*arrays, **options)
        there = {key: self._there(value) for key, value in options.items()}
        results = kernel(*map(self._there, arrays), **there)
        return tuple(map(self._back, results)) if isinstance(results, tuple) else self._back(results)

    def _there(self, x):
        return self.device.there(x) if isinstance(x, np.ndarray) else x

    def _back(self, x):
        return x if x is None else self.device.back(x)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def backend(request, monkeypatch):
    if request.param != "cuda":
        return Backend(request.param)
    pytest.importorskip("numba.cuda")
    from tests.cuda_machines import emulation

    monkeypatch.setattr(backends.choice, "device", backends.CUDA)
    return Backend("cuda", emulation(monkeypatch))


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
    other = found != wanted  # infinities that are equal have no difference
    size, error = size[other], np.abs(found[other] - wanted[other])
    unit = np.ldexp(UNIT, np.maximum(np.frexp(size)[1] - 1, -126))  # below the least normal number they no longer shrink
    return float(np.max(error / unit, initial=0))


# ---------------------------------------------------------------------------------------------------------------------
# Everything that adds, normalises or measures
# ---------------------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "C": lambda x: x,
    "F": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, 0)[::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}
SHAPES = [(1, 1), (1, 9), (5, 37), (300, 3), (3, 301), (65, 130), (4, 20_011), (20_011, 4)]
LONG = [(10**7, 1), (1, 10**7), (3, 2_000_003), (2_000_003, 3)]
CENTRES = (0.0, 1.0, -30.0, 1e4, -1e9, 3e15, -1e30)
SPREADS = (1.0, 1e-3, 20.0)
TINY = np.finfo(np.float64).tiny
FAINT = 2.0**-103  # of compiled exponentials, those below the least normal number may be 0


@dataclass
class Draw:
    """What a case draws its arrays from"""

    shape: tuple[int, int]
    offset: float
    spread: float
    masked: bool  # are some logits −∞, some targets no whole numbers?
    rng: np.random.Generator

    def numbers(self, limit=1e30):
        """Numbers around an offset of at most `limit`."""
        offset = math.copysign(min(abs(self.offset), limit), self.offset)
        return f32(offset) + f32(self.spread) * self.normal()

    def squares(self):
        """Numbers around an offset, whose squares are float32 numbers too."""
        return self.numbers(3e15)

    def normal(self, *shape):
        return f32(self.rng.standard_normal(shape or self.shape))

    def uniform(self, *shape):
        return f32(self.rng.uniform(0.5, 1.5, shape or self.shape))

    def factors(self):
        """Numbers near ±1, whose product neither overflows nor vanishes."""
        return f32(np.exp(self.normal() / max(self.shape)) * self.rng.choice([-1, 1], self.shape))

    def logits(self):
        """Logits around an offset; if masked some are −∞, and a row of nothing else."""
        x = self.numbers()
        if self.masked:
            x[self.rng.random(self.shape) < 0.3] = -np.inf
            x[self.rng.integers(len(x))] = -np.inf
        return x

    def targets(self):
        """Probabilities: 0, 1, or, if masked, in between too"""
        return f32(self.rng.random(self.shape).round(1) if self.masked else self.rng.integers(0, 2, self.shape))

    def channels(self):
        """An input (N, 6, 3), and a weight and a bias for its channels"""
        draw = Draw((max(math.prod(self.shape) // 18, 2), 18), self.offset, self.spread, False, self.rng)
        return draw.squares().reshape(-1, 6, 3), self.uniform(6), self.normal(6)

    def rows(self):
        """Rows, and a weight and a bias for their elements"""
        return self.squares(), self.uniform(self.shape[1]), self.normal(self.shape[1])


@dataclass
class Case:
    """f(dim, *arrays), and by how many units a result in float32 may differ from one in float64

    A value by so many of its own, or of `size`: where f is a sum of terms of both signs, the sum of their magnitudes. A
    gradient by so many of the largest of its array, times `condition`: by how much f magnifies a rounding of what it is made
    of (the mean of numbers far from 0 is rounded to a unit of theirs, and moves all differences to it); and by so many of
    `terms`, for each array, where its gradient is a sum whose terms may cancel.
    """

    function: Callable[..., sg.Tensor]
    draw: Callable[[Draw], tuple[np.ndarray, ...]]
    value: float
    gradient: float
    size: Callable[..., np.ndarray] | None = None
    condition: Callable[..., np.ndarray] = lambda dim, *xs: 1.0
    terms: Callable[..., tuple[np.ndarray, ...]] = lambda dim, *xs: (0.0,) * len(xs)


def reduction(dim):
    return {0: "none", 1: "mean"}.get(dim, "sum")


def reduced(dim, x):
    """Of the terms of a loss, the same reduction of their magnitudes"""
    return {"none": np.array, "mean": np.mean, "sum": np.sum}[reduction(dim)](np.abs(x))


def along(dim):
    """One dimension, for what takes no more"""
    return dim if dim in (0, 1) else 1


def distance(x, dim, eps=0.0):
    """How far numbers are from 0, in standard deviations: by so much a rounding of the mean is larger beside differences."""
    return np.abs(x).max(dim, keepdims=True) / np.sqrt(np.maximum(x.var(dim, keepdims=True) + eps, TINY))


def squared(x, dim):
    """The same for a variance, which sees only the square of an error of the mean"""
    return 1 + UNIT * np.squeeze(np.minimum(distance(x, dim), 1e30), dim) ** 2


def shifted(x, dim):
    """Logits less their maximum, 0 for rows of −∞"""
    top = x.max(along(dim), keepdims=True)
    return x - np.where(np.isinf(top), 0, top)


def finite(x):
    return np.where(np.isinf(x), 0, x)


def probabilities(x, dim):
    e = np.exp(shifted(x, dim))
    total = e.sum(dim, keepdims=True)
    return e / np.where(total == 0, 1, total)


def classes(x):
    return sg.tensor(np.arange(len(x)) % x.shape[1])


def loss(f, size, draw=lambda d: (d.squares(), d.squares()), value=4, gradient=4, terms=None, **options):
    """A case of a loss that takes a reduction; `size`: the magnitudes of what is added up"""
    return Case(
        lambda dim, *xs: f(*xs, reduction=reduction(dim), **options),
        draw,
        value,
        gradient,
        lambda dim, *xs: reduced(dim, size(*xs)),
        **({} if terms is None else {"terms": lambda dim, *xs: terms(*xs)}),
    )


def normed(f, draw, axis, value=8, gradient=16):
    """A case of a norm over `axis` of its first argument"""
    return Case(
        lambda dim, *xs: f(*xs),
        draw,
        value,
        gradient,
        lambda dim, x, w, b: np.broadcast_to(2 + 2 * distance(x, axis, 1e-5), x.shape) * 1.5 + 4,
        lambda dim, x, *_: 1 + distance(x, axis, 1e-5).max(),
        lambda dim, x, *_: (6 / np.sqrt(x.var(axis).min() + 1e-5), 0, 0),
    )


def softplus(x):
    return np.logaddexp(0, x)


CASES = {
    # up to 64 terms are added in their own type
    "sum": Case(lambda dim, x: x.sum(dim), lambda d: (d.numbers(),), 4, 0, lambda dim, x: np.abs(x).sum(dim)),
    "mean": Case(lambda dim, x: x.mean(dim), lambda d: (d.numbers(),), 1, 1, lambda dim, x: np.abs(x).mean(dim)),
    "var": Case(
        lambda dim, x: x.var(dim, correction=0),
        lambda d: (d.squares(),),
        4,
        4,
        lambda dim, x: x.var(dim) * squared(x, dim),
        lambda dim, x: 1 + distance(x, dim).max(),
    ),
    "std": Case(
        lambda dim, x: x.std(dim, correction=0),
        lambda d: (d.squares(),),
        4,
        4,
        lambda dim, x: x.std(dim) * squared(x, dim),
        lambda dim, x: 1 + distance(x, dim).max(),
    ),
    "norm": Case(lambda dim, x: x.norm(dim=dim), lambda d: (d.numbers(),), 4, 4),
    "norm of p = 1": Case(lambda dim, x: x.norm(1, dim=dim), lambda d: (d.numbers(),), 4, 0),
    "norm of p = 3": Case(lambda dim, x: x.norm(3, dim=dim), lambda d: (d.numbers(),), 4, 8),
    "norm of p = ½": Case(lambda dim, x: x.norm(0.5, dim=dim), lambda d: (d.numbers(1e25),), 8, 8),
    "norm of p = −2": Case(lambda dim, x: x.norm(-2, dim=dim), lambda d: (d.numbers(),), 4, 16),
    "largest": Case(lambda dim, x: x.amax(dim), lambda d: (d.numbers(),), 0, 1),
    "prod": Case(lambda dim, x: x.prod(along(dim)), lambda d: (d.factors(),), 2, 4),
    "cumsum": Case(
        lambda dim, x: x.cumsum(along(dim)),
        lambda d: (d.numbers(),),
        1,
        1,
        lambda dim, x: np.cumsum(np.abs(x), along(dim)),
    ),
    "cumprod": Case(lambda dim, x: x.cumprod(along(dim)), lambda d: (d.factors(),), 2, 4),
    "logsumexp": Case(
        lambda dim, x: x.logsumexp(dim), lambda d: (d.logits(),), 2, 8, lambda dim, x: np.abs(finite(x.max(dim))) + 20
    ),
    "softmax": Case(
        lambda dim, x: F.softmax(x, along(dim)),
        lambda d: (d.logits(),),
        4,
        8,
        lambda dim, x: np.maximum(probabilities(x, along(dim)) * (1 + np.abs(finite(shifted(x, dim)))), FAINT),
        terms=lambda dim, x: (1,),
    ),
    "log_softmax": Case(
        lambda dim, x: F.log_softmax(x, along(dim)),
        lambda d: (d.numbers(),),
        2,
        8,
        lambda dim, x: np.abs(shifted(x, dim)) + 8,
    ),
    "layer_norm": normed(lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b), Draw.rows, (1,)),
    "batch_norm": normed(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), Draw.channels, (0, 2)),
    "group_norm": normed(
        lambda x, w, b: F.group_norm(x.reshape(len(x), 6, 3), 1, w, b).reshape(x.shape), Draw.channels, (1, 2)
    ),
    "instance_norm": normed(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), Draw.channels, (2,)),
    "rms_norm": Case(
        lambda dim, x, w: F.rms_norm(x, x.shape[1:], w, 1e-5),
        lambda d: d.rows()[:2],
        4,
        16,
        terms=lambda dim, x, w: (6 / np.sqrt((x**2).mean(1) + 1e-5).min(), 1),
    ),
    "normalize": Case(
        lambda dim, x: F.normalize(x, dim=along(dim)),
        lambda d: (d.numbers(),),
        4,
        8,
        terms=lambda dim, x: (4 / np.sqrt((x**2).sum(along(dim))).min(),),
    ),
    "cosine_similarity": Case(
        lambda dim, a, b: F.cosine_similarity(a, b, along(dim)),
        lambda d: (d.numbers(), d.numbers()),
        8,
        16,
        lambda dim, *_: 1.0,
        terms=lambda dim, *xs: [4 / np.sqrt((x**2).sum(along(dim))).min() for x in xs],
    ),
    "mse_loss": loss(F.mse_loss, lambda x, t: (x - t) ** 2),
    "l1_loss": loss(F.l1_loss, lambda x, t: x - t),
    "huber_loss": loss(F.huber_loss, lambda x, t: np.minimum((x - t) ** 2, np.abs(x - t) + 1), delta=0.7),
    "smooth_l1_loss": loss(F.smooth_l1_loss, lambda x, t: np.minimum((x - t) ** 2, np.abs(x - t) + 1), beta=0.7),
    "binary_cross_entropy_with_logits": loss(
        F.binary_cross_entropy_with_logits,
        lambda x, t: np.maximum(np.maximum(x, 0) + np.abs(x * t) + softplus(-np.abs(x)), FAINT),
        lambda d: (d.numbers(1e4), d.targets()),
        terms=lambda x, t: (1, 0),
    ),
    "the same with pos_weight": loss(
        lambda x, t, **options: F.binary_cross_entropy_with_logits(x, t, pos_weight=3.0, **options),
        lambda x, t: np.maximum((1 - t) * softplus(x) + 3 * t * softplus(-x), FAINT),
        lambda d: (d.numbers(1e4), d.targets()),
        terms=lambda x, t: (3, np.abs(x).max() + 3),
    ),
    "cross_entropy": loss(
        lambda x, **options: F.cross_entropy(x, classes(x), **options),
        lambda x: np.abs(shifted(x, 1)).max(1) + 8,
        lambda d: (d.numbers(),),
        gradient=8,
    ),
    "cross_entropy of weights": loss(
        lambda x, w, **options: F.cross_entropy(x, classes(x), w, **options),
        lambda x, w: np.abs(shifted(x, 1)).max(1) + 8,
        lambda d: (d.numbers(), d.uniform(d.shape[1])),
        terms=lambda x, w: (1, np.abs(shifted(x, 1)).max() + 8),
    ),
    "cross_entropy of probabilities": loss(
        lambda x, t, **options: F.cross_entropy(x, t / t.sum(1, keepdim=True), label_smoothing=0.1, **options),
        lambda x, t: np.abs(shifted(x, 1)).max(1) + 8,
        lambda d: (d.numbers(), d.uniform()),
        gradient=8,
        terms=lambda x, t: (1, np.abs(shifted(x, 1)).max() + 8),
    ),
    "nll_loss": loss(
        lambda x, **options: F.nll_loss(x, classes(x), **options), lambda x: np.abs(x).max(1), lambda d: (d.numbers(),)
    ),
    "kl_div": loss(
        F.kl_div,
        lambda x, t: t * (np.abs(np.log(np.maximum(t, TINY))) + np.abs(x)),
        lambda d: (d.normal(), d.targets()),
        terms=lambda x, t: (0, 4),
    ),
    "gaussian_nll_loss": loss(
        F.gaussian_nll_loss,
        lambda x, t, v: np.abs(np.log(v)) + (x - t) ** 2 / v,
        lambda d: (d.numbers(1e4), d.numbers(1e4), d.uniform()),
        terms=lambda x, t, v: (0, 0, 2),
    ),
    "gaussian_log_prob": Case(
        lambda dim, *xs: F.gaussian_log_prob(*xs),
        lambda d: (d.numbers(1e4), d.numbers(1e4), d.normal()),
        4,
        8,
        lambda dim, x, m, s: 2 + np.abs(s) + (x - m) ** 2 * np.exp(-s) * (1 + np.abs(s)),
        terms=lambda dim, x, m, s: (0, 0, 4),
    ),
    "bernoulli_log_prob": Case(
        lambda dim, t, x: F.bernoulli_log_prob(t, x),
        lambda d: (d.targets(), d.numbers(1e4)),
        4,
        4,
        lambda dim, t, x: np.maximum(np.maximum(x, 0) + np.abs(x * t) + softplus(-np.abs(x)), FAINT),
        terms=lambda dim, t, x: (0, 1),
    ),
    "continuous_bernoulli_log_prob": Case(
        lambda dim, t, x: F.continuous_bernoulli_log_prob(t, x),
        lambda d: (d.targets(), d.numbers(1e4)),
        4,
        4,
        lambda dim, t, x: np.abs(x * t) + np.maximum(x, 0) + np.log1p(np.abs(x)) + 1,
        terms=lambda dim, t, x: (0, 1),
    ),
    "discretized_logistic_log_prob": Case(
        lambda dim, *xs: F.discretized_logistic_log_prob(*xs),
        lambda d: (d.targets(), d.normal(), d.normal()),
        4,
        8,
        lambda dim, x, m, s: 8 + np.abs(s) + (np.abs(x) + np.abs(m) + 1) * np.exp(-s) * (1 + np.abs(s)),
        terms=lambda dim, x, m, s: tuple(4 * (1 + t * np.exp(-s)).max() for t in (1, 1, np.abs(m) + 1)),
    ),
    "reparameterize": Case(
        lambda dim, *xs: F.reparameterize(*xs),
        lambda d: (d.numbers(), d.normal(), d.normal()),
        4,
        4,
        lambda dim, mean, s, noise: np.abs(mean) + np.exp(s / 2) * np.abs(noise),
    ),
    "kl_standard_gaussian": Case(
        lambda dim, m, s: F.kl_standard_gaussian(m, s).sum(dim),
        lambda d: (d.normal(), 4 * d.normal()),
        4,
        4,
        lambda dim, m, s: (m**2 + np.exp(s) + 1 + np.abs(s)).sum(dim),
    ),
    "kl_gaussian": Case(
        lambda dim, *xs: F.kl_gaussian(*xs).sum(dim),
        lambda d: tuple(d.normal() for _ in range(4)),
        4,
        8,
        lambda dim, m, s, n, r: (
            np.abs(r) + np.abs(s) + np.exp(s - r) * (1 + np.abs(s) + np.abs(r)) + (m - n) ** 2 * np.exp(-r)
        ).sum(dim),
    ),
    "kl_bernoulli": Case(
        lambda dim, a, b: F.kl_bernoulli(a, b).sum(dim),
        lambda d: (8 * d.normal(), 8 * d.normal()),
        4,
        8,
        lambda dim, a, b: (np.abs(a - b) + softplus(a) + softplus(b)).sum(dim),
        terms=lambda dim, a, b: (4, 4),
    ),
    "matmul": Case(
        lambda dim, a, b: a @ b.mT,
        lambda d: (d.numbers(1e15), d.normal(7, d.shape[1])),
        8,
        8,
        lambda dim, a, b: np.abs(a) @ np.abs(b).T,
        terms=lambda dim, a, b: (np.abs(b).sum(0).max(), np.abs(a).sum(0).max()),
    ),
    "linear": Case(
        lambda dim, x, w, b: F.linear(x, w, b),
        lambda d: (d.numbers(1e15), d.normal(7, d.shape[1]), d.normal(7)),
        8,
        8,
        lambda dim, x, w, b: np.abs(x) @ np.abs(w).T + np.abs(b),
        terms=lambda dim, x, w, b: (np.abs(w).sum(0).max(), np.abs(x).sum(0).max(), len(x)),
    ),
    "einsum": Case(
        lambda dim, a, b, c: sg.einsum("ij,kj,i->ik", a, b, c),
        lambda d: (d.numbers(1e15), d.normal(7, d.shape[1]), d.normal(d.shape[0])),
        8,
        8,
        lambda dim, a, b, c: np.abs(a) @ np.abs(b).T * np.abs(c)[:, None],
        terms=lambda dim, a, b, c: (
            4 * np.abs(b).sum(0).max(),
            4 * np.abs(a).sum(0).max(),
            4 * (np.abs(a) @ np.abs(b).T).sum(1).max(),
        ),
    ),
}


drawn = (
    st.sampled_from(CENTRES),
    st.sampled_from(SPREADS),
    st.sampled_from([0, 1, (0, 1)]),
    st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=5, max_size=5),
    st.booleans(),
    seeds,
)


def test_every_loss_has_a_case():
    assert not set(losses.__all__) - {name.split(" ")[0] for name in CASES}


every_case = pytest.mark.parametrize("name", CASES)


@every_case
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
@examples(6)
@given(st.sampled_from(SHAPES), *drawn)
def test_float32_against_float64(name, backend_name, shape, offset, spread, dim, layouts, masked, seed):
    compare(name, backend_name, shape, offset, spread, dim, layouts, masked, seed)


@pytest.mark.deep
@every_case
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
@settings(max_examples=2)
@given(st.sampled_from(LONG), *drawn)
def test_float32_against_float64_of_millions(name, backend_name, shape, offset, spread, dim, layouts, masked, seed):
    compare(name, backend_name, shape, offset, spread, dim, layouts, masked, seed)


def compare(name, backend_name, shape, offset, spread, dim, layouts, masked, seed):
    case, rng = CASES[name], np.random.default_rng(seed)
    arrays = case.draw(Draw(shape, offset, spread, masked, rng))
    arrays = [LAYOUTS[layout](x) if x.ndim > 1 else x for layout, x in zip(layouts, arrays, strict=False)]
    wide = [np.float64(x) for x in arrays]
    v = None
    results = []
    for backend, xs in ((backend_name, arrays), ("reference", wide)):
        with kernels.use(backend):
            xs = [constant(x).requires_grad_() for x in xs]
            y = case.function(dim, *xs)
            v = f32(rng.standard_normal(y.shape)) if v is None else v
            results.append((y.data, [g.data for g in sg.grad(y, xs, sg.tensor(v.astype(y.dtype)))]))
    (y, grads), (wanted, slopes) = results
    about = f"{shape}, {offset} ± {spread}, dim {dim}, {layouts[: len(arrays)]}"
    error = units(y, wanted, None if case.size is None else case.size(dim, *wide))
    assert error <= case.value, f"value: {error} units; {about}"
    condition, terms = np.max(case.condition(dim, *wide)), case.terms(dim, *wide)
    for i, (g, slope) in enumerate(zip(grads, slopes, strict=True)):
        error = units(g, slope, np.abs(slope).max(initial=0) * condition + terms[i])
        assert error <= case.gradient, f"gradient {i}: {error} units; {about}"


# ---------------------------------------------------------------------------------------------------------------------
# The ends of the range
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("p", [3, 0.5, -1, -2, 2.5])
def test_other_norms_of_any_size(engine, p, size):
    """Neither value nor gradient depend on the scale: no power of a number by itself is taken."""
    x = f32(f32([[3, -4, 0.5], [1, 2, 2]]) * f32(size))
    wide = np.abs(np.float64(x))
    norms = (wide**p).sum(1) ** (1 / p)
    t = sg.tensor(x, requires_grad=True)
    y = t.norm(p, dim=1)
    bound = 8 if size > 1e-37 else 8 * 2**-126 / size  # below the least normal number, the numbers have few digits
    assert units(y.data, norms) <= 8
    assert units(sg.grad(y.sum(), t)[0].data, np.sign(x) * (wide / norms[:, None]) ** (p - 1), 1.0) <= bound
    far = f32([1e30, 1e-30, -1.0])  # beside each other
    assert units(sg.tensor(far).norm(p).data, (np.abs(np.float64(far)) ** p).sum() ** (1 / p)) <= 8


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1.0, 1e170, 1e300])
def test_double_norms_of_any_size(size):
    """No number is squared by itself: its square may be beyond the range of float64."""
    t = sg.tensor(np.array([3.0, -4.0, 0.0]) * size, requires_grad=True)
    y = t.norm()
    assert y.item() == pytest.approx(5 * size, rel=1e-15)
    np.testing.assert_allclose(sg.grad(y, t)[0].data, [0.6, -0.8, 0.0], rtol=1e-15)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("x", [np.inf, -np.inf])
def test_binary_cross_entropy_of_infinite_logits(backend, x, t):
    """0 where the logit is right beyond doubt, ∞ where the target is anything else; the slope is σ(x) − t."""
    xs, ts = np.full(3, x, np.float32), np.full(3, t, np.float32)
    right = 0.0 if t == (x > 0) else np.inf
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(backend("binary_cross_entropy", xs, ts), np.full(3, right))
        assert float(backend("binary_cross_entropy", xs, ts, total=True)) == right
        dx = backend("binary_cross_entropy_backward", np.ones(3, np.float32), xs, ts)
    np.testing.assert_array_equal(dx, np.full(3, (x > 0) - t))


@pytest.mark.parametrize("n", MANY)
def test_one_index_many_times(engine, n):
    """Gradients of an embedding, a gather, an index in two dimensions; sums by index: 0.1 to the same rows, n times.

    Up to 4,096 rows are added one by one: bits that a training step had before stay as they were.
    """
    bound = 32 if n < 4096 else 1
    g, index = f32(np.full((n, 4), 0.1)), np.arange(n) % 2
    wanted = np.float64(f32(0.1)) * np.array([[-(-n // 2)], [n // 2]]) * np.ones(4)
    table, rows = (sg.tensor(np.zeros(shape, np.float32), requires_grad=True) for shape in ((2, 4), (2, 4)))
    both = np.broadcast_to(index[:, None], (n, 4))
    for y in (
        F.embedding(index, table),
        table.gather(0, both),
        table[index[:, None], np.arange(4)],
        table.index_select(0, index),
    ):
        assert units(sg.grad(y, table, sg.tensor(g))[0].data, wanted) <= bound
    assert units(rows.scatter_add(0, both, sg.tensor(g)).data, wanted) <= bound
    assert units(rows.index_add(0, index, sg.tensor(g)).data, wanted) <= bound


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

    On a GPU the gradients of one query belong to weights that were added up again: they have the right sum, and fit each other.
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
        if not mask_grad and (backend.name == "cpu" or t > 4):
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


# ---------------------------------------------------------------------------------------------------------------------
# Sums of many numbers
# ---------------------------------------------------------------------------------------------------------------------


def many(n, width=3, offset=0.0):
    return f32(np.random.default_rng(n).random((n, width))) + f32(offset)


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e30])
def test_sums_along_any_dimension(engine, n, layout, offset):
    x = LAYOUTS[layout](many(n, offset=offset))
    t, wide = sg.tensor(x), np.float64(x)
    t._data = x  # a tensor of this layout
    for dim in (0, (0, 1), 1):
        size, terms = np.abs(wide).sum(dim), wide.size / np.size(wide.sum(dim))
        assert units(t.sum(dim).data, wide.sum(dim), size) <= 2
        assert t.sum(dim, keepdim=True).shape == wide.sum(dim, keepdims=True).shape
        assert units(t.mean(dim).data, wide.mean(dim), size / terms) <= 1
    assert units(t.cumsum(0).data, np.cumsum(wide, 0), np.cumsum(np.abs(wide), 0)) <= 1
    if offset != -1e30:  # the squares of whose differences float32 has no numbers for
        deviation = wide.std(0, ddof=1)
        bound = 4 + 4 * np.abs(wide).max() / max(deviation.max(), 1e-3)  # the mean, rounded, moves each difference
        assert units(t.std(0).data, deviation, np.maximum(deviation, 1e-3)) <= bound
        assert units(t.norm(dim=0).data, np.sqrt((wide**2).sum(0))) <= 3
    top = wide.max(0)
    assert units(t.logsumexp(0).data, np.log(np.exp(wide - top).sum(0)) + top, max(16, abs(offset))) <= 2


@pytest.mark.parametrize("n", MANY)
def test_gradients_that_are_sums(engine, n):
    """Of what was broadcast, of biases, of the parameters of norms: all Σ over the n rows."""
    x, g = many(n), many(n + 1)[:n]
    wide, size = np.float64(g).sum(0), np.float64(g).sum(0)
    bias, weight = (sg.tensor(f32(v), requires_grad=True) for v in ([1, 2, 3], [1, 1, 1]))
    (found,) = sg.grad((sg.tensor(x) + bias) * sg.tensor(g), bias, sg.tensor(np.ones_like(g)))
    assert units(found.data, wide, size) <= 2
    (found,) = sg.grad(F.linear(sg.tensor(x), sg.tensor(np.eye(3, dtype="f")), bias), bias, sg.tensor(g))
    assert units(found.data, wide, size) <= 2
    centred = np.float64(x) - np.float64(x).mean(1, keepdims=True)
    xhat = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    found = sg.grad(F.layer_norm(sg.tensor(x), 3, weight, bias), [weight, bias], sg.tensor(g))
    assert units(found[0].data, (g * xhat).sum(0), np.abs(g * xhat).sum(0)) <= 16
    assert units(found[1].data, wide, size) <= 2
    centred = np.float64(x) - np.float64(x).mean(0)
    xhat = centred / np.sqrt((centred**2).mean(0) + 1e-5)
    found = sg.grad(F.batch_norm(sg.tensor(x), None, None, weight, bias, True), [weight, bias], sg.tensor(g))
    assert units(found[0].data, (g * xhat).sum(0), np.abs(g * xhat).sum(0)) <= 16
    assert units(found[1].data, wide, size) <= 2
    rho = 1 / np.sqrt((np.float64(x) ** 2).mean(1, keepdims=True) + 1e-5)
    (found,) = sg.grad(F.rms_norm(sg.tensor(x), 3, weight, 1e-5), weight, sg.tensor(g))
    assert units(found.data, (g * x * rho).sum(0), (g * x * rho).sum(0)) <= 8


@pytest.mark.parametrize("value", [0.1, 70.0, -70.0, 1e10, -3e30])
def test_equal_numbers_are_their_own_mean(engine, value):
    for n in (1, 3, 41, 777, 70_001):
        t = sg.tensor(np.full((n, 2), value, np.float32))
        for x, dim in ((t, 0), (t.mT, 1), (t, (0, 1))):
            assert (x.mean(dim).data == np.float32(value)).all(), n
        if n > 1:
            assert not t.std(0).data.any() and not t.var(0).data.any()
    assert sg.tensor(np.ones(80_000, np.float16)).mean().item() == 1
    assert sg.tensor(np.ones(80_000, np.float16)).sum().item() == math.inf, "and no error: float16 ends at 65,504"


def test_twenty_million_ones():
    t = sg.tensor(np.ones(1, "f"))
    for ones in (np.broadcast_to(t.data, (20_000_000, 2)), np.broadcast_to(np.ones((20_000, 1, 1), "f"), (20_000, 1000, 2))):
        t._data = ones
        np.testing.assert_array_equal(t.sum(tuple(range(ones.ndim - 1))).data, [2e7, 2e7])


@pytest.mark.parametrize("value", [0.1, 1e10, -1e15])
def test_norms_of_equal_numbers_are_zero(backend, value):
    x, ones, zeros = np.full((3, 4, 35), value, np.float32), np.ones(4, np.float32), np.zeros(4, np.float32)
    assert not backend("batch_norm", x, ones, zeros)[0].any()
    y, mean, rstd = backend("group_norm", x, ones, zeros, 2)
    assert not y.any() and (mean == np.float32(value)).all()
    np.testing.assert_allclose(rstd, 1 / math.sqrt(1e-5), rtol=2e-7)  # the variance is 0, not a rounding of value²
    assert not backend("layer_norm", x[0], np.ones(35, np.float32), np.zeros(35, np.float32))[0].any()


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1.0, 1e30])
def test_gradients_of_norms_of_any_size(engine, size):
    x = f32(f32([[3, -4, 0], [1, 2, 2]]) * f32(size))
    wide = np.float64(x)
    norms = np.sqrt((wide**2).sum(1, keepdims=True))
    t = sg.tensor(x, requires_grad=True)
    assert units(sg.grad(t.norm(dim=1).sum(), t)[0].data, wide / norms, 1.0) <= 2
    centred = wide - wide.mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).sum(1, keepdims=True)) / math.sqrt(2)
    bound = 4 if size > 1e-37 else 2**-126 / size * 8  # below the least normal number, x − μ has few digits
    assert units(sg.grad(t.std(1).sum(), t)[0].data, wanted, 1.0) <= bound


# ---------------------------------------------------------------------------------------------------------------------
# Attention at ordinary scores
# ---------------------------------------------------------------------------------------------------------------------

HEAD_LAYOUTS = {
    "C": np.ascontiguousarray,
    "columns": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "strided": lambda x: np.repeat(np.repeat(x, 2, -1), 3, -2)[..., ::3, ::2],
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "heads inside": lambda x: np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3),
    "part of a row": lambda x: np.concatenate([x, x], -1)[..., : x.shape[-1]],
}


def attention_terms(q, k, v, dout, *, scale, z, mask, **options):
    """The magnitudes of the terms that O, Q̄, K̄ and V̄ are sums of, in float64. Those of a score magnify its roundings in P."""
    eye = np.broadcast_to(np.eye(k.shape[-2]), (*k.shape[:-1], k.shape[-2]))
    p = reference.attention(q, k, eye, scale=scale, mask=mask, **options)[0]
    score = scale * abs(q) @ abs(k).swapaxes(-1, -2) + (0 if mask is None else np.where(np.isinf(mask), 0, abs(mask)))
    p = p * (1 + score + score.max(-1, keepdims=True))
    dp = z * (abs(dout) @ abs(v).swapaxes(-1, -2)) + (abs(dout) * ((p * z) @ abs(v))).sum(-1, keepdims=True)
    ds = scale * p * dp
    return (p * z) @ abs(v), ds @ abs(k), ds.swapaxes(-1, -2) @ abs(q), (p * z).swapaxes(-1, -2) @ abs(dout)


ORDINARY = [(layout, t, s) for layout in HEAD_LAYOUTS for t, s in ((1, 9), (3, 530), (40, 50))]


@pytest.mark.parametrize("layout, t, s", [*ORDINARY, ("C", 130, 530), ("heads inside", 130, 530)])
def test_attention_at_ordinary_scores(engine, layout, t, s):
    """float32 differs from float64 by at most 2 units of Σ |terms|, whatever the layout; a row that attends to nothing is 0."""
    rng, lay = np.random.default_rng(t), HEAD_LAYOUTS[layout]
    q, k, v, dout = (lay(f32(rng.standard_normal((1, 2, *size)))) for size in ((t, 32), (s, 32), (s, 20), (t, 20)))
    mask = np.where(rng.random((1, 2, t, s)) < 0.2, -np.inf, rng.standard_normal((1, 2, t, s)))
    mask[0, 0, 0] = -np.inf
    wide = [np.float64(x) for x in (q, k, v, dout)]
    for causal, bias, p in (
        (False, None, 0.0),
        (True, None, 0.3),
        (False, lay(f32(mask)), 0.0),
        (True, f32(mask[:, :1, 1:2] if t > 1 else mask[:, 1:]), 0.3),
    ):
        options, noise = {"causal": causal, "scale": 0.2}, {"seed": 5, "stream": 2}
        drop, wide_bias = {"dropout_p": p, **noise}, None if bias is None else np.float64(bias)
        out, statistics = kernels.attention(q, k, v, mask=bias, **options, **drop)
        found = out, *kernels.attention_backward(dout, q, k, v, out, statistics, mask=bias, **options, **drop)[:3]
        wide_out, wide_statistics = reference.attention(*wide[:3], mask=wide_bias, **options, **drop)
        grads = reference.attention_backward(wide[3], *wide[:3], wide_out, wide_statistics, mask=wide_bias, **options, **drop)
        z = reference.attention_dropout(np.ones((1, 2, t, s)), p=p, **noise) if p else np.ones((1, 2, t, s))
        sizes = attention_terms(*wide, z=z, mask=wide_bias, **options)
        for name, x, wanted, size in zip(("O", "Q̄", "K̄", "V̄"), found, (wide_out, *grads[:3]), sizes, strict=True):
            assert units(x, wanted, size) <= 2, (name, causal, p)
        if bias is not None and bias.shape[2] == t:
            assert t == 1 or (not out[0, 0, 0].any() and not found[1][0, 0, 0].any())
