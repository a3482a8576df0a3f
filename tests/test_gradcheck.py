"""The checker is checked: wrong gradients of every kind are planted, and `gradcheck` has to find each.

Right functions pass, wrong ones fail, at the order and at the input where the mistake is; what cannot be checked is refused;
the differences are what they claim to be. What the checker says of a mistake is tested in `test_gradcheck_advice.py`, its
command in `test_gradcheck_command.py`.
"""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import calculus, nn, ops
from scratchgen import functional as F
from scratchgen.autograd import Function
from scratchgen.calculus import GradcheckError, gradcheck
from scratchgen.tensors import Tensor, constant


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def positive(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape)


def verdict(f, *inputs, **options):
    return gradcheck(f, *inputs, raise_exception=False, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Right gradients
# ---------------------------------------------------------------------------------------------------------------------


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x, n):
        y = self.inner(x)
        return y.tanh() * n, y.square().sum()


RIGHT = {
    "product": (lambda a, b: a * b, normal(2, 3), normal(3, seed=1)),
    "softmax": (lambda x: F.softmax(x, 1), normal(2, 3)),
    "several results": (lambda x: [x.exp(), x.sum(0)], normal(2, 3)),
    "constant": (lambda x: x * 0 + 3.0, normal(2)),
    "linear": (lambda x: 2 * x, normal(4)),
    "large and small": (lambda x: x * np.array([1e-6, 1.0, 1e6]), normal(3)),
    "large inputs": (lambda x: (x * 1e-3).sin(), 1e3 * normal(3)),
    "huge inputs": (lambda x: (x * 1e-9).sin(), np.array([-1e9, 0.5e9])),
    "many inputs": (lambda x: (20 * x.sum()).sin(), 0.01 * normal(2000)),
    "beside a large value": (lambda x: x.sin() + 1e8, normal(3)),
    "beside a large negative value": (lambda x: x.sin() - 1e8, normal(3)),
    "many inputs beside a large value": (lambda x: x.sum().sin() + 1e8, normal(500)),
    "0-d": (lambda x: x.exp(), np.array(0.3)),
    "nothing": (lambda x: x * 2, normal(0, 3)),
    "does not depend": (lambda a, b: a * 2, normal(2), normal(2)),
    "module": (Both(), normal(4, 3), np.array([2])),
    "through a gather": (lambda x: x[np.array([0, 0, 1])] ** 2, normal(3)),
    "more keys than queries": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        normal(2, 3),
        normal(4, 3, seed=1),
        normal(4, 1, seed=2),
    ),
    "fewer keys than queries": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        normal(3, 2),
        normal(2, 2, seed=1),
        normal(2, 1, seed=2),
    ),
    "checkpoint": (lambda x: sg.checkpoint(lambda t: t.tanh() * t, x), normal(3)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_passes(name):
    f, *inputs = RIGHT[name]
    report = gradcheck(f, *inputs)
    assert report and not report.failures
    assert report.error < (1e-6 if "beside" in name else 1e-7)
    assert "comparisons agree, largest relative error" in str(report)


def test_every_element_and_every_order_is_compared():
    """Of 2 + 3 elements: these and a kept graph for each input, and a direction; then again for 5 inputs and 6 cotangents."""
    f, a, b = RIGHT["product"][0], normal(2, 1), normal(3)
    first = 5 + 2 + 1
    assert gradcheck(f, a, b, order=1).compared == first
    assert gradcheck(f, a, b).compared == first + (5 + 6) + 3 + 1
    assert gradcheck(f, a, b, elements=2, order=1).compared == 4 + 2 + 1
    assert gradcheck(f, normal(24), 1.0, order=1).compared == 24 + 1 + 2 + 1


def test_inputs_and_parameters_are_left_as_they_are():
    layer, x = nn.Linear(3, 2), Tensor(normal(4, 3).astype(np.float32), requires_grad=True)
    before = [p.data.tobytes() for p in [x, *layer.parameters()]]
    assert gradcheck(layer, x)
    assert [p.data.tobytes() for p in [x, *layer.parameters()]] == before
    assert x.dtype == np.float32 and all(p.dtype == np.float32 and p.grad is None for p in layer.parameters())
    assert x.grad is None


def test_a_frozen_parameter_is_not_checked():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad = False
    assert gradcheck(layer, normal(1, 3), order=1).compared == (3 + 6) + 2 + 1


def test_integers_and_other_arguments_are_passed_on():
    def f(x, index, flag, factor, pair, whole):
        assert isinstance(index, Tensor) and index.dtype == np.int64 and flag is True and isinstance(factor, Tensor)
        assert pair == (0.5, 1.5) and isinstance(whole, Tensor) and whole.dtype == np.int32
        return x[index] * factor * pair[0]

    assert gradcheck(f, normal(3), np.array([0, 2]), True, 1.5, (0.5, 1.5), Tensor(np.arange(2, dtype=np.int32)))


def test_the_same_seed_gives_the_same_comparisons():
    reports = [verdict(Slipped.apply, normal(50), seed=seed) for seed in (3, 3, 4)]
    assert str(reports[0]) == str(reports[1]) != str(reports[2])


# ---------------------------------------------------------------------------------------------------------------------
# Wrong gradients
# ---------------------------------------------------------------------------------------------------------------------


class Slipped(Function):
    """y = x³, one of whose terms is off by one per cent."""

    def forward(self, x):
        return x**3

    def backward(self, dy):
        (x,) = self.inputs
        return dy * x * x * 1.01 + dy * x * x * 2


class BlindSoftmax(Function):
    """A softmax whose gradient is zero: what a cotangent of ones gives for the right one."""

    def forward(self, x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    def backward(self, dy):
        return dy * 0


class HalfSoftmax(Function):
    """ȳ y, without the term that all elements share."""

    keeps_outputs = True

    def forward(self, x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    def backward(self, dy):
        (y,) = self.outputs
        return dy * y


class ScaledSoftmax(Function):
    """y (ȳ − 1.01 Σ ȳ y): off in one term only."""

    keeps_outputs = True

    def forward(self, x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    def backward(self, dy):
        (y,) = self.outputs
        return y * (dy - 1.01 * (dy * y).sum(-1, keepdim=True))


class OneRow(Function):
    """y = x + b; of the gradient of b only the first row arrives."""

    def forward(self, x, b):
        return x + b

    def backward(self, dy):
        return dy, dy[0]


class Scattered(Function):
    """y = x[index]; repeats overwrite each other in the gradient."""

    def forward(self, x, *, index):
        self.shape, self.index = x.shape, index
        return x[index]

    def backward(self, dy):
        dx = np.zeros(self.shape)
        dx[self.index] += dy.data
        return constant(dx)


class Swapped(Function):
    """y = A B, with the gradients of the two exchanged."""

    def forward(self, a, b):
        return a @ b

    def backward(self, dy):
        a, b = self.inputs
        return a.mT @ dy, dy @ b.mT


class Frozen(Function):
    """y = x³ with the right gradient, computed from arrays: its own gradient forgets x."""

    def forward(self, x):
        return x**3

    def backward(self, dy):
        (x,) = self.inputs
        return dy * constant(3 * x.data**2)


class Unlike(Function):
    """y = x³ with a right gradient and a composed form of y = 1.01 x³."""

    def forward(self, x):
        return x**3

    def backward(self, dy):
        (x,) = self.inputs
        return constant(dy.data * 3 * x.data**2)

    def composed(self, x):
        return x**3 * 1.01


class UnlikeSecond(Function):
    """y = x³, whose composed form has the right gradient and a wrong second derivative."""

    def forward(self, x):
        return x**3

    def backward(self, dy):
        (x,) = self.inputs
        return constant(dy.data * 3 * x.data**2)

    def composed(self, x):
        return Frozen.apply(x)


class Shifted(Function):
    """y_i = x_i x_{i+1}, with a slice that is off by one."""

    def forward(self, x):
        return x[1:] * x[:-1]

    def backward(self, dy):
        (x,) = self.inputs
        a, v = x.data, dy.data
        g = np.zeros_like(a)
        g[1:] = v * a[:-1]
        g[:-2] += (v * a[1:])[:-1]
        return constant(g)


class Cotangent(Function):
    """y = x², with a gradient that is not linear in ȳ: right for ones alone."""

    def forward(self, x):
        return x * x

    def backward(self, dy):
        (x,) = self.inputs
        return dy * dy * x * 2


class Lone(Function):
    """y = x², wrong in one element among a hundred."""

    def forward(self, x):
        return x * x

    def backward(self, dy):
        (x,) = self.inputs
        g = 2 * x.data * dy.data
        g[61] *= 1.5
        return constant(g)


class Balanced(Function):
    """y = x², with errors of two elements that cancel along (1, 1): a direction alone could miss them."""

    def forward(self, x):
        return x * x

    def backward(self, dy):
        (x,) = self.inputs
        return dy * x * 2 + constant(np.array([1e-3, -1e-3]))


class Pair(Function):
    """y = x², with errors in two elements among a hundred that cancel along (1, …, 1)."""

    def forward(self, x):
        return x * x

    def backward(self, dy):
        (x,) = self.inputs
        g = 2 * x.data * dy.data
        g[60] += 0.1
        g[61] -= 0.1
        return constant(g)


class Coarse(Function):
    """y = x / 2, computed in float32 inside."""

    def forward(self, x):
        return (x.astype(np.float32) / 2).astype(np.float64)

    def backward(self, dy):
        return dy / 2


class WrongLinear(nn.Module):
    """x Wᵀ + b, whose weight gets 1.01 times its gradient."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(2, 3)), nn.Parameter(normal(2, seed=1))

    def forward(self, x):
        return x @ (self.weight * 1.01 - (self.weight * 0.01).detach()).T + self.bias


WRONG = {  # f, inputs, order at which it shows, what is named
    "factor 1.01 in one term": (Slipped.apply, [normal(3)], 1, "input 0"),
    "softmax without a gradient": (BlindSoftmax.apply, [normal(2, 3)], 1, "input 0"),
    "softmax without its second term": (HalfSoftmax.apply, [normal(2, 3)], 1, "input 0"),
    "softmax with 1.01 in its second term": (ScaledSoftmax.apply, [normal(2, 3)], 1, "input 0"),
    "missing broadcast term": (OneRow.apply, [normal(4, 2), normal(2)], 1, "input 1"),
    "+= for scatter add": (lambda x: Scattered.apply(x, index=np.array([0, 0, 1])), [normal(3)], 1, "input 0"),
    "gradients swapped": (Swapped.apply, [normal(2, 2), normal(2, 2, seed=1)], 1, "input "),
    "slice off by one": (Shifted.apply, [normal(5)], 1, "input 0"),
    "not linear in the cotangent": (Cotangent.apply, [normal(3)], 1, "input 0"),
    "errors that cancel": (Balanced.apply, [positive(2)], 1, "input 0"),
    "beside a large value": (lambda x: Slipped.apply(x) + 1e4, [positive(3)], 1, "input 0"),
    "sign": (lambda x: -x + (2 * x).detach(), [normal(3)], 1, "input 0"),
    "path cut": (lambda x: x * x.detach(), [normal(3)], 1, "input 0"),
    "one of several results": (lambda x: (x * 2, x.detach() * 2, (x * x).detach() + x), [normal(3)], 1, "input 0"),
    "second input": (lambda a, b: a * b.detach() + b * 0.5, [normal(2), normal(2)], 1, "input 1"),
    "a parameter": (WrongLinear(), [normal(4, 3)], 1, "parameter 'weight'"),
    "composed form": (Unlike.apply, [normal(3)], 1, "kept graph against plain"),
    "second derivative only": (Frozen.apply, [normal(3)], 2, "input 0"),
    "second derivative of the composed form": (UnlikeSecond.apply, [normal(3)], 2, "input 0"),
    "detached, right to first order": (lambda x: x * (x.detach() ** 2) * 3 - (2 * x**3).detach(), [normal(3)], 2, "input 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_fails(name):
    f, inputs, order, what = WRONG[name]
    report = verdict(f, *inputs)
    assert not report and report.failures and report.error > report.tolerance
    assert {found.order for found in report.failures} == {order}, "the order where the mistake is, and no further"
    assert any(what in found.what for found in report.failures)
    with pytest.raises(GradcheckError, match="WRONG"):
        gradcheck(f, *inputs)
    if order == 2:
        assert gradcheck(f, *inputs, order=1)
    named = [found for found in report.failures if "direction" not in found.what]
    if what != "input ":
        assert all(what in found.what for found in named), "no other input is blamed"


def test_the_error_may_be_as_small_as_the_tolerance():
    """1 + 2e−5 is found, 1 + 5e−6 is not, at the tolerance of 1e−5."""

    def off(by):
        return lambda x: x * (1 + by) - (x * by).detach()

    assert not verdict(off(2e-5), normal(3)) and verdict(off(5e-6), normal(3))
    assert verdict(off(2e-5), normal(3), tolerance=1e-4) and not verdict(off(5e-6), normal(3), tolerance=1e-6)


def test_a_small_gradient_beside_a_large_one_is_checked_on_its_own_scale():
    scales = np.array([1e-2, 1.0])
    assert not verdict(lambda x: x * scales + (x - x.detach()) * np.array([1e-5, 0.0]), normal(2), order=1)


def test_tiny_gradients_are_checked_too():
    assert not verdict(lambda x: Slipped.apply(x) * 1e-5, positive(3))
    assert not verdict(lambda x: Slipped.apply(x * 1e-2), positive(3))
    assert not verdict(lambda x: Slipped.apply(x) * 1e-9, positive(3))
    report = verdict(lambda x: Lone.apply(x) * 1e-8, positive(100), elements=3, order=1)
    assert [found.what for found in report.failures] == ["all inputs, along a random direction"]


def test_one_wrong_element_among_many_is_found_by_the_direction():
    """The elements drawn may miss it; the direction covers all of them."""
    report = verdict(Lone.apply, positive(100), elements=3)
    assert [found.what for found in report.failures] == ["all inputs, along a random direction"]
    assert "all inputs, along a random direction" in str(report) and "step of difference" not in str(report)
    assert not verdict(Pair.apply, normal(100), elements=3), "the direction is random, not along ones"
    assert any("(61,)" in found.what for found in verdict(Lone.apply, positive(100), elements=100).failures)


def test_errors_that_cancel_along_the_direction_are_found_by_the_elements():
    report = verdict(Balanced.apply, positive(2), order=1)
    assert {"input 0, element (0,)", "input 0, element (1,)"} <= {found.what for found in report.failures}


def test_nan_in_the_gradient_is_wrong():
    class NotANumber(Function):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return dy * constant(np.array([np.nan, 2.0]))

    report = verdict(NotANumber.apply, normal(2))
    assert not report and math.isinf(report.error) and all(math.isinf(found.error) for found in report.failures)


EDGES = {
    "log": lambda x: x.log(),
    "sqrt": lambda x: x.sqrt(),
    "1/x": lambda x: 1 / x,
    "x^0.3": lambda x: x**0.3,
    "artanh": lambda x: ((2 - x) / x).log(),
}


@pytest.mark.parametrize("distance", [3e-3, 2e-4, 1e-5, 1e-8])
@pytest.mark.parametrize("name", EDGES)
def test_a_right_gradient_near_the_edge_of_its_domain(name, distance):
    """The usual step would leave the domain, or bend too much; a wrong gradient is one there as well."""
    f, x = EDGES[name], np.array([distance, 1.0])
    assert verdict(f, x)
    for factor in (1.0003, 0.0, -1.0):
        assert not verdict(lambda x, k=factor: f(x) * k + (f(x) * (1 - k)).detach(), x, order=1)


class Tiny(Function):
    """y = 10⁻⁹ c x, whose gradient is off by a factor."""

    def forward(self, x, *, c, factor):
        self.slope = 1e-9 * c * factor
        return x * (1e-9 * c)

    def backward(self, dy):
        return dy * self.slope


@pytest.mark.parametrize("c", [1.0, 30.0, -0.5])
def test_a_slope_of_a_billionth_of_the_largest_that_is_doubled(c):
    x, y = normal(3), normal(2)
    for factor in (2.0, 0.0, -1.0, 1.1):
        for f in (
            lambda a, b, k=factor: a.sum() + Tiny.apply(b, c=c, factor=k).sum(),
            lambda a, b, k=factor: sg.cat([a * 3, Tiny.apply(b, c=c, factor=k)]),
        ):
            report = verdict(f, x, y)
            assert not report and "input 1" in report.failures[0].what
    assert verdict(lambda a, b: a.sum() + Tiny.apply(b, c=c, factor=1.0).sum(), x, y)
    assert verdict(lambda a, b: a.exp().sum() * 1e3 + (b * 1e-9).sin().sum(), x, y)


@pytest.mark.parametrize(("slope", "analytic", "fifth", "hidden"), [
    (1e-9, 2e-9, 0.0, True),
    (-1e-9, 1e-9, 0.0, True),
    (1e-9, 1e-9, 0.0, False),  # right
    (1e-9, 1e-9 * (1 + 1e-6), 0.0, False),  # within the tolerance
    (1e-9, 2e-9, 0.1, False),  # differences of longer steps disagree by a tenth of the gap: they say nothing
    (1e-9, 2e-9, 0.001, True),
    (1e-9, 1e-9 + 1e-15, 0.0, False),
])  # fmt: skip
def test_a_hidden_slope_is_one_that_longer_steps_agree_on(slope, analytic, fifth, hidden):
    """Of f(t) = slope · t + b t⁵, differences of step w h are slope − 4 b (w h)⁴."""
    checker = calculus._Checker(calculus.Report("f", 1e-5), np.random.default_rng(0), 24, False)
    checker.magnitude = 1e-12
    b = fifth * abs(analytic - slope) / (4 * checker.STEP**4 * (16**4 - 1))

    def moved(t):
        return slope * t + b * t**5

    assert checker._hidden(moved, analytic, calculus._central(moved, checker.STEP)) == hidden


def test_rounding_is_no_hidden_slope():
    """A slope below what differences can see is let pass, as is one that is 0 beside large values."""
    assert verdict(lambda a, b: a.exp().sum() * 1e6 + (b * 1e-12).sum(), normal(3), normal(2))
    assert verdict(lambda a, b: (a * 1e8).sum() + (b - b).sum(), normal(3), normal(2))


def test_a_path_cut_where_f_is_a_staircase_stays_wrong():
    """Over the shortest steps what is computed in float32 does not change, and a gradient of 0 must not agree with that."""
    report = verdict(lambda x: (x.detach() * x.detach()).to(np.float32).to(np.float64) + x * 0, np.array([0.7, -0.4]), order=1)
    assert not report


def test_functions_that_ask_for_gradients_themselves():
    """R1 and the gradient penalty: ‖∂D/∂x‖², and (‖∂D/∂x‖ − 1)², as functions of x and of the weights."""

    def r1(x, w):
        (g,) = sg.grad((x * w).tanh().sum(), x, create_graph=True)
        return g.square().sum()

    def penalty(w):
        x = sg.tensor(np.array([0.1, 0.4]), requires_grad=True)
        (g,) = sg.grad((x * w).tanh().sum(), x, create_graph=True)
        return (sg.norm(g) - 1).square()

    x, w = np.array([0.3, 0.5]), np.array([0.2, 0.7])
    assert verdict(r1, x, w) and verdict(penalty, w)
    with sg.no_grad():
        assert verdict(r1, x, w)
    assert not verdict(lambda x: sg.grad((x**3).sum(), x)[0].detach() * x, x)  # the gradient as a constant


def test_differences_that_are_not_finite_are_wrong():
    """A function that is there at one point alone."""
    report = verdict(lambda x: sg.where(x == 0.5, x, math.nan), np.array([0.5]), order=1)
    assert not report and math.isinf(report.error)


def test_many_elements_are_chosen_without_repetition():
    seen = set()

    def f(x):
        moved = np.flatnonzero(x.data != start)
        seen.update(moved if len(moved) == 1 else [])
        return x * 2

    start = normal(26)
    gradcheck(f, start, order=1)
    assert len(seen) == 24


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_element_of_the_kept_graph_may_be_wrong(factor, sign):
    """The smallest of them, in either direction."""

    class Partly(Unlike):
        def composed(self, x):
            return x**3 * np.array([1.0, factor, 1.0])

    report = verdict(lambda x: Partly.apply(x) * sign, np.array([2.0, 0.5, -3.0]), order=1)
    assert [found.what for found in report.failures] == ["input 0, kept graph against plain"]
    assert report.error == pytest.approx(0.01, rel=0.02)


def test_a_wrong_gradient_with_its_graph_kept_is_told_from_a_wrong_one():
    report = verdict(Unlike.apply, normal(3))
    assert [found.what for found in report.failures] == ["input 0, kept graph against plain"]


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------


def moody(calls=None):
    calls = []

    def f(x):
        calls.append(0)
        return x * len(calls)

    return f


REFUSED = [
    (moody(), [normal(2)], {}, ValueError, "f gives two values for the same inputs; give it a generator seeded inside"),
    (lambda x: F.dropout(x, 0.5), [normal(9)], {}, ValueError, "f gives two values for the same inputs"),
    (ops.exp, [np.array([0.0, np.nan])], {}, ValueError, "expected finite inputs, got NaN or infinity in input 0"),
    (lambda a, b: a + b, [normal(1), np.array([np.inf])], {}, ValueError, "got NaN or infinity in input 1"),
    (lambda x: x / 0.0, [normal(2)], {}, ValueError, "f gives NaN or infinity at these inputs"),
    (lambda x: x.float(), [normal(2)], {}, TypeError, "expected float64 results from float64 inputs, got float32"),
    (lambda x: x > 0, [normal(2)], {}, TypeError, "expected f to return a floating tensor"),
    (lambda x: None, [normal(2)], {}, TypeError, "expected f to return a floating tensor"),
    (ops.exp, [normal(2)], {"order": 3}, ValueError, "expected order 1 or 2, got 3"),
    (ops.exp, [np.array([1, 2])], {}, ValueError, "expected at least one floating input or parameter"),
]


@pytest.mark.parametrize("f, inputs, options, error, words", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_checked_is_refused(f, inputs, options, error, words):
    with np.errstate(all="ignore"), pytest.raises(error) as caught:
        gradcheck(f, *inputs, **options)
    assert words in str(caught.value) and "gradcheck" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# The differences, and the other functions of calculus
# ---------------------------------------------------------------------------------------------------------------------


def test_differences_are_of_fourth_order():
    """Exact for polynomials up to degree 4; the first error is h⁴ f⁽⁵⁾/30."""
    for k in range(5):
        assert calculus._central(lambda t, k=k: (0.5 + t) ** k, 0.1) == pytest.approx(k * 0.5 ** (k - 1) if k else 0, abs=1e-12)
    assert calculus._central(lambda t: t**5, 0.1) == pytest.approx(-4 * 0.1**4)


def test_the_jacobian_of_nothing_is_nothing():
    x = Tensor(normal(3))
    assert calculus.jacobian(lambda t: t[:0] * 2, x).shape == (0, 3)
    assert calculus.jacobian(lambda t: t * 2, Tensor(normal(0))).shape == (0, 0)


def test_inputs_are_put_back_before_the_next_comparison():
    seen = []

    def f(x):
        seen.append(x.data.copy())
        return x * x

    x = normal(2)
    gradcheck(f, x, elements=0)
    moved = [i for i, at in enumerate(seen) if not np.array_equal(at, x)]
    assert moved[-1] - moved[0] > len(moved) - 1, "the second order starts where the first did"


def test_results_are_as_many_as_the_outputs():
    x, v = Tensor(normal(2)), Tensor(normal(2, seed=1))
    double = lambda x: x * 2  # noqa: E731
    y, g = calculus.vjp(double, x, v)
    assert isinstance(y, Tensor) and isinstance(g, Tensor)
    y, g = calculus.vjp(lambda x: (x * 2, x * 3), (x,), (v, v))
    assert [t.data.tolist() for t in y] == [(2 * x.data).tolist(), (3 * x.data).tolist()] and isinstance(g, tuple)
    np.testing.assert_allclose(g[0].data, 5 * v.data)
    blocks = calculus.jacobian(lambda x: (x * 2, x * 3), x)
    assert len(blocks) == 2 and [b.data[0, 0] for b in blocks] == [2, 3]
    assert isinstance(calculus.jacobian(double, x), Tensor)
    assert not x.requires_grad and x.grad is None, "what is given stays as it is"
    y, gs = calculus.vjp(lambda a, b: Tensor(np.ones(2)), (x, v), v)
    assert [g.data.tolist() for g in gs] == [[0, 0], [0, 0]], "what does not depend has zeros"
    (single,) = calculus.jacobian(lambda x: (x * 2,), x)
    assert single.shape == (2, 2)


def test_a_checkpoint_of_several_results():
    x = Tensor(normal(3), requires_grad=True)
    plain, kept = (f(x) for f in (parts, lambda x: sg.checkpoint(parts, x)))
    for a, b in zip(plain, kept, strict=True):
        assert np.array_equal(a.data, b.data)
    v = [constant(normal(3, seed=1)), constant(normal(seed=2))]
    np.testing.assert_allclose(sg.grad(list(kept), x, v)[0].data, sg.grad(list(plain), x, v)[0].data, rtol=1e-12)


def parts(x):
    return x.tanh() * x, (x * x).sum()


def test_a_captured_tensor_is_a_constant():
    """Of f(t) = t x, the derivative with respect to t, though t is given as x."""
    x = Tensor(normal(3), requires_grad=True)
    v, u = Tensor(normal(3, seed=1)), Tensor(normal(3, seed=2))
    np.testing.assert_array_equal(calculus.vjp(lambda t: t * x, x, v)[1].data, (v * x).data)
    np.testing.assert_array_equal(calculus.jvp(lambda t: t * x, x, u)[1].data, (u * x).data)
