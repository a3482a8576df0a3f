"""What `gradcheck` says of a wrong gradient: where it is wrong, by how much, what the mistake looks like, and the curve."""

import math

import numpy as np
import pytest

from scratchgen import functional as F
from scratchgen import nn, ops
from scratchgen.autograd import Function
from scratchgen.calculus import GradcheckError, gradcheck
from scratchgen.tensors import constant
from tests.test_gradcheck import (
    BlindSoftmax,
    Coarse,
    Cotangent,
    Frozen,
    HalfSoftmax,
    OneRow,
    Slipped,
    Unlike,
    normal,
    positive,
    verdict,
)

# ---------------------------------------------------------------------------------------------------------------------
# What it says
# ---------------------------------------------------------------------------------------------------------------------


def test_the_message_shows_where_and_both_values_side_by_side():
    x = np.array([1.0, 2.0])

    def f(x):
        return x * np.array([1.0, 1.5]) - (x * np.array([0.0, 0.5])).detach()

    report = verdict(f, x, order=1, name="mine")
    found = report.element
    lines = str(report).splitlines()
    assert lines[0] == "mine: WRONG, 2 of 4 comparisons are off by more than 1e-05"
    assert lines[1] == "  the gradient with respect to input 0, element (1,)"
    assert float(lines[2].split()[-1]) == pytest.approx(found.analytic) == pytest.approx(1.5 * found.numeric)
    assert float(lines[3].split()[2]) == pytest.approx(found.numeric)
    assert lines[3].endswith("relative error 3.3e-01") and found.error == pytest.approx(1 / 3)
    assert lines[6:] == [
        "  1 of 2 elements of input 0 (shape (2,)) are off",
        "  of element (1,) of input 0, which is 2, 1 of 2 slopes ∂output/∂input are off:",
        "    output 0 at (1,): 1.5 by the chain rule, 1 by differences",
    ]
    with pytest.raises(GradcheckError) as caught:
        gradcheck(f, x, order=1, name="mine")
    assert str(caught.value) == str(report)


def test_the_second_derivative_is_named_as_such():
    assert "the second derivative with respect to input 0, element" in str(verdict(Frozen.apply, normal(3)))


def test_the_message_shows_the_steps_tried_and_that_none_helps():
    report = verdict(Slipped.apply, positive(2), order=1)
    steps = report.element.steps
    assert [h for h, _ in steps] == pytest.approx([10.0**-k for k in range(2, 10)])
    assert all(abs(n - report.element.analytic) > 1e-4 for _, n in steps)
    shown = [line.split() for line in str(report).splitlines() if "difference" in line and "by" not in line]
    assert shown[0][3:] == ["1e-02", "1e-03", "1e-04", "1e-05", "1e-06", "1e-07", "1e-08", "1e-09"]
    assert len(shown[1][3:]) == 8 and all(float(e) > 1e-4 for e in shown[1][3:])


def test_a_single_element_is_shown_rather_than_the_direction():
    assert "element (" in str(verdict(BlindSoftmax.apply, normal(2, 3)))


def test_the_worst_element_is_the_worst():
    report = verdict(lambda x: x * np.array([1.1, 1.5, 1.2]) - (x * np.array([0.1, 0.5, 0.2])).detach(), normal(3), order=1)
    assert report.element.what == "input 0, element (1,)"
    assert report.worst.error == report.error == max(found.error for found in report.failures)


def test_the_name_is_that_of_the_function():
    assert str(verdict(Slipped.apply, normal(1))).startswith("apply: WRONG")
    assert verdict(nn.Linear(1, 1), normal(1, 1)).name == "Linear"
    assert verdict(ops.exp, normal(1), name="mine").name == "mine"


def kinked(x):
    return F.relu(x)


class Silu(Function):
    """y = x σ(x), without the second term of its slope σ + x σ (1 − σ)."""

    def forward(self, x):
        return x / (1 + np.exp(-x))

    def backward(self, dy):
        (x,) = self.inputs
        return dy * ops.sigmoid(x)


class Centred(Function):
    """y = (x − mean(x)) ρ, ρ = 1/√(mean((x − mean(x))²)), without the last term of x̄ = ρ (ȳ − mean(ȳ) − y mean(ȳ y))."""

    keeps_outputs = True

    def forward(self, x):
        y = x - x.mean(-1, keepdims=True)
        self.rstd = 1 / np.sqrt((y * y).mean(-1, keepdims=True))
        return y * self.rstd

    def backward(self, dy):
        return constant(self.rstd) * (dy - dy.mean(-1, keepdim=True))


class Uncentred(Function):
    """y = x − mean(x), without x̄'s mean(ȳ)."""

    def forward(self, x):
        return x - x.mean(-1, keepdims=True)

    def backward(self, dy):
        return dy


class Turned(Function):
    """y = x Wᵀ, W square, whose gradient ȳᵀ x comes out as xᵀ ȳ."""

    def forward(self, x, w):
        return x @ w.T

    def backward(self, dy):
        x, w = self.inputs
        return dy @ w, x.mT @ dy


class OtherAxis(Function):
    """y = x + b for a square x; the gradient of b is summed over the wrong axis."""

    def forward(self, x, b):
        return x + b

    def backward(self, dy):
        return dy, dy.sum(1)


class MeanOfRows(Function):
    """y = mean(x²) over everything, divided by the number of rows alone."""

    def forward(self, x):
        return np.mean(x * x)

    def backward(self, dy):
        (x,) = self.inputs
        return dy * 2 * x / x.shape[0]


class Mirrored(Function):
    """y = x² read from the end, whose gradient is not turned round."""

    def forward(self, x):
        return (x * x)[::-1]

    def backward(self, dy):
        (x,) = self.inputs
        return constant(2 * x.data[::-1] * dy.data)


class Rolled(Function):
    """y_i = x_{i−1}, in a circle; the gradient stays where it is."""

    def forward(self, x):
        return np.roll(x, 1, 1)

    def backward(self, dy):
        return dy


class RolledBack(Rolled):
    def backward(self, dy):
        return dy.roll(-2, 1)


class Plus(Function):
    """y = x², whose gradient has a term too many: `size` times 1, x or y."""

    keeps_outputs = True

    def forward(self, x, *, size, of):
        self.size, self.of = size, of
        return x * x

    def backward(self, dy):
        (x,), (y,) = self.inputs, self.outputs
        return dy * x * 2 + self.size * {"one": 1.0, "x": x, "y": y}[self.of]


ADVICE = [  # f, inputs, words of its advice, in this order
    (kinked, [np.array([0.0, 1.0])], ["on a kink or a jump; check beside it"]),
    (lambda x: ops.floor(x) + x, [np.array([2.0, 0.5])], ["on a kink or a jump; check beside it"]),
    (Coarse.apply, [np.array([1.5])], ["is a part of f computed in float32?"]),
    (
        BlindSoftmax.apply,
        [normal(3)],
        ["the chain rule gives 0 there: is a term, or the whole path, missing?", "3 of 3 slopes", "has no term for output 0"],
    ),
    (
        lambda x: x * 1.5 - (x * 0.5).detach(),
        [normal(3)],
        [
            "each is 1.5 times what it should be: look for a factor or a sign",
            "1 of 3 slopes",
            ": 1.5 by the chain rule, 1 by differences",
        ],
    ),
    (
        lambda x: -x + (2 * x).detach(),
        [normal(3)],
        [
            "each is -1 times what it should be: look for a factor or a sign",
            "1 of 3 slopes",
            ": -1 by the chain rule, 1 by differences",
        ],
    ),
    (
        MeanOfRows.apply,
        [normal(3, 4)],
        ["each is 4 times what it should be: look for a factor or a sign (4 is a length of its shape", "1 of 1 slopes"],
    ),
    (
        lambda x: x.sum() / 3 + (x.sum() * 2 / 3).detach(),
        [normal(3)],
        ["each is 0.3333 times what it should be: look for a factor or a sign (3 is a length of its shape", "1 of 1 slopes"],
    ),
    (
        lambda x: x.exp() + (x - x.detach()).sum(),
        [normal(3)],
        ["each is too large", "look for such a term", "3 of 3 slopes", "a term too many for output 0"],
    ),
    (Silu.apply, [np.array([[0.5, -2.0]])], ["which is -2, 1 of 2 slopes", ": 0.1192 by the chain rule, -0.090784 by diff"]),
    (
        HalfSoftmax.apply,
        [normal(2, 3)],
        [
            "each is off by output 0 times a number that is the same all along dimension 1: look for a sum or a mean over it",
            "3 of 6 slopes",
            "the chain rule has no term for output 0 at (",
        ],
    ),
    (
        Centred.apply,
        [normal(3, 4)],
        ["each is off by output 0 times a number that is the same all along dimension 1", "4 of 12 slopes"],
    ),
    (
        Uncentred.apply,
        [normal(3, 4)],
        ["each is off by a number that is the same all along dimension 1", "4 of 12 slopes", "the chain rule has no term for"],
    ),
    (
        Turned.apply,
        [normal(5, 3), normal(3, 3, seed=1)],
        [
            "it is the right one with dimensions 0 and 1 transposed",
            "10 of 15 slopes",
            "the chain rule has no term for output 0 at (",
            "the chain rule has a term too many for output 0 at (",
        ],
    ),
    (
        OtherAxis.apply,
        [normal(3, 3), normal(3, seed=1)],
        ["4 of 9 slopes", "the chain rule has no term for", "the chain rule has a term too many for"],
    ),
    (OneRow.apply, [normal(3, 2), normal(2)], ["2 of 6 slopes", "the chain rule has no term for output 0 at (1, "]),
    (
        Mirrored.apply,
        [normal(4)],
        ["it is the right one reversed along dimension 0", "2 of 4 slopes", "no term for", "a term too many for"],
    ),
    (
        Rolled.apply,
        [normal(2, 4)],
        ["it is the right one shifted by 1 along dimension 1", "2 of 8 slopes", "no term for", "a term too many for"],
    ),
    (
        RolledBack.apply,
        [normal(2, 4)],
        ["it is the right one shifted by -1 along dimension 1", "2 of 8 slopes", "no term for", "a term too many for"],
    ),
    (Cotangent.apply, [normal(3)], ["for a cotangent of a single 1 it is right: is it not linear in the cotangent?"]),
]


@pytest.mark.parametrize("f, inputs, words", ADVICE, ids=[f"{a[2][0][:40]}{i}" for i, a in enumerate(ADVICE)])
def test_advice(f, inputs, words):
    report = verdict(f, *inputs, order=1)
    assert not report
    first, *rest = report.advice
    wrong = len(inputs) - 1
    assert f"elements of input {wrong}" in first
    text = "\n".join(rest)
    positions = [text.find(wanted) for wanted in words]
    assert -1 not in positions and positions == sorted(positions), str(report)
    for kind in ("no term", "a term too many", "each is", "right one", "slopes", "a length"):
        assert text.count(kind) == sum(kind in wanted for wanted in words), str(report)
    assert all(line in str(report) for line in report.advice)


@pytest.mark.parametrize("size", [0.25, -0.25])
@pytest.mark.parametrize(("of", "words"), [("one", ""), ("x", "the input times "), ("y", "output 0 times ")])
def test_advice_gives_the_size_of_what_is_added(size, of, words):
    report = verdict(lambda x: Plus.apply(x, size=size, of=of), normal(2), order=1)
    assert f"each is too large by {words}{size}: look for such a term" in str(report)


def test_the_slopes_of_the_worst_element_only():
    """Of two wrong inputs the worse is traced; of several outputs each is looked at, the largest slopes first."""

    def f(a, b):
        return a.sum() * 1.1 - (a.sum() * 0.1).detach(), 2 * b - b.detach(), b * np.array([1.0, 2.0, 3.0])

    report = verdict(f, normal(2), normal(3, seed=1), order=1)
    line, found = report.advice[-2:]
    at = report.element.what.removeprefix("input 1, element ")
    assert line == (
        f"of element {at} of input 1, which is {normal(3, seed=1)[int(at[1])]:.4g}, 1 of 7 slopes ∂output/∂input are off:"
    )
    assert found == f"  output 1 at {at}: 2 by the chain rule, 1 by differences"
    twice = lambda x: 2 * x - x.detach()  # noqa: E731
    report = verdict(lambda x: twice(x.sum()) * np.array([3.0, 0.1, -4.0]), normal(1), order=1, elements=2)
    assert "2 of 2 slopes" in str(report) and "output 0 at (2,): -8 by the chain rule, -4 by" in str(report)


@pytest.mark.parametrize(
    "f, inputs, traced",
    [
        (lambda a, b: (1.1 * a - (0.1 * a).detach(), b.relu()), [normal(2), np.array([0.0])], False),
        (lambda a, b: (-a + (2 * a).detach(), b.relu()), [normal(2), np.array([0.0])], True),
        (lambda a, b: (b.relu(), 1.1 * a - (0.1 * a).detach()), [normal(2), np.array([0.0])], False),
        (lambda b, a: (b.relu(), 1.1 * a - (0.1 * a).detach()), [np.array([0.0]), normal(2)], False),
        (lambda b, a: (b.relu(), -a + (2 * a).detach()), [np.array([0.0]), normal(2)], True),
    ],
    ids=["kink worse, second", "kink second", "kink worse, first output", "kink worse, first", "kink first"],
)
def test_slopes_are_shown_where_the_worst_element_is_not_on_a_kink(f, inputs, traced):
    text = str(verdict(f, *inputs, order=1))
    assert "on a kink" in text and ("slopes" in text) == traced


def test_slopes_of_large_inputs_and_of_large_and_negative_outputs():
    """Steps as large as the input, errors on the scale of the largest slope."""
    text = str(verdict(lambda x: 1.5 * (x * 1e-9).sin() - 0.5 * (x * 1e-9).sin().detach(), np.array([-1e9, 2e9]), order=1))
    assert "1 of 2 slopes" in text
    for x in (1e9, -1e9):  # 3e-4 more would be rounded away
        text = str(verdict(lambda x: ops.cat([x * 1e-9, 1.5e-9 * x - 0.5e-9 * x.detach()]), np.array([x]), order=1))
        assert "1 of 2 slopes" in text
    text = str(verdict(lambda x: x.detach() - 2 * x, normal(3), order=1))
    assert "1 of 3 slopes" in text and ": -2 by the chain rule, -1 by differences" in text
    big = lambda x: 1e9 * x.sin()  # noqa: E731
    text = str(verdict(lambda x: ops.cat([big(x), 1.5 * big(x) - 0.5 * big(x).detach()]), np.array([0.4]), order=1))
    assert "1 of 2 slopes" in text and "output 0 at (1,)" in text

    text = str(verdict(lambda x: ops.cat([x.detach() - 2 * x, -(3.3 * x).sin()]), np.array([0.1]), order=1))
    assert "1 of 2 slopes" in text, "of negative slopes the right one is right"


def test_the_steps_of_a_large_input_are_slopes_too():
    report = verdict(lambda x: x**2 * 1.5 - (x**2).detach() * 0.5, np.array([300.0]), order=1)
    assert [n for h, n in report.element.steps[1:4]] == pytest.approx([report.element.numeric] * 3, rel=1e-6)


def test_the_slope_that_is_named_is_the_worst():
    text = str(verdict(lambda x: ops.cat([3 * x - (0.1 * x).detach(), (-x).detach() + 0 * x]), np.array([0.4]), order=1))
    assert "2 of 2 slopes" in text and "output 0 at (1,): 0 by the chain rule, -1 by differences" in text


def test_slopes_are_those_of_backward_not_of_its_composed_form():
    class Half(Unlike):
        def backward(self, dy):
            (x,) = self.inputs
            return constant(dy.data * 1.5 * x.data**2)

        def composed(self, x):
            return x**3

    assert ": 6 by the chain rule, 12 by differences" in str(verdict(Half.apply, np.array([2.0]), order=1))


def test_what_looks_like_a_pattern_but_is_none():
    noise = np.array([[0.02, -0.03, 0.01], [0.01, 0.02, -0.02], [-0.01, 0.03, 0.02]])

    class Nearly(Turned):
        def backward(self, dy):
            x, w = self.inputs
            return dy @ w, x.mT @ dy * constant(1 + noise)

    def text(f, *inputs):
        return str(verdict(f, *inputs, order=1))

    assert "right one" in text(Turned.apply, normal(5, 3), normal(3, 3, seed=1))
    assert "right one" not in text(Nearly.apply, normal(5, 3), normal(3, 3, seed=1))
    assert "each is off" not in text(lambda x: HalfSoftmax.apply(x) * constant(1 + noise[:2]) * 1.0, normal(2, 3))
    for x in (np.array([0.0, 1.0, -2.0]), np.array([0.7]), 1e-6 * normal(3)):  # a zero; one element; little
        assert "each is" not in text(Slipped.apply, x).replace("each is 1.00", "")
        assert "right one" not in text(Silu.apply, x)
        assert "too large" not in text(Silu.apply, x)
    tiny = text(lambda x: Silu.apply(x) * 1e-7, normal(2, 3))
    assert "slopes" in tiny and "right one" not in tiny and "each is" not in tiny


def test_lengths_of_two_and_one():
    """A sum for a mean of two is named; a factor of nearly 1 is no length of 1."""
    assert "(2 is a length" in str(verdict(MeanOfRows.apply, normal(3, 2), order=1))
    text = str(verdict(lambda x: 1.0005 * x - (0.0005 * x).detach(), normal(1, 3), order=1))
    assert "each is" in text and "a length" not in text
    assert "a length" not in str(verdict(lambda x: 1.5 * x - (0.5 * x).detach(), normal(2), order=1))
    assert "along dimension 1" in str(verdict(Uncentred.apply, normal(3, 2), order=1))


def test_many_missing_terms_are_not_all_listed():
    (line,) = [text for text in verdict(BlindSoftmax.apply, normal(7), order=1).advice if "no term for" in text]
    assert line.count("output 0 at (") == 4 and line.endswith(", …")
    (line,) = [text for text in verdict(BlindSoftmax.apply, normal(4), order=1).advice if "no term for" in text]
    assert line.count("output 0 at (") == 4 and not line.endswith("…")


def test_a_wrong_second_derivative_is_told_from_a_wrong_gradient():
    words = "the gradient is right, its own derivative is not"
    report = verdict(Frozen.apply, normal(3))
    assert report.advice[-1].startswith(words) and "slopes ∂output/∂input are off" in str(report)
    assert words not in str(verdict(Slipped.apply, normal(3)))


def test_inputs_drawn_with_the_seed_of_the_check_are_not_its_cotangents():
    """With v = x, xᵀ v is symmetric and its transpose passes."""
    rng = np.random.default_rng(0)
    assert not verdict(Turned.apply, rng.standard_normal((5, 3)), rng.standard_normal((3, 3)), seed=0)


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        (lambda dy: dy.sum(), "Odd.backward: a gradient of shape () does not fit an input of shape (2, 3)"),
        (lambda dy: (dy, dy), "Odd.backward: expected 1 gradients, one for each input, got 2"),
        (lambda dy: dy.float(), "Odd.backward: expected a gradient of float64, got float32"),
        (lambda dy: dy.data * 2, "backward: expected tensors, got ndarray; scratchgen.tensor(…) makes one that has no "),
        (lambda dy: 2.0, "backward: expected tensors, got float; scratchgen.tensor(…) makes one that has no gradient "),
    ],
)
def test_a_gradient_that_does_not_fit_is_wrong_too(gradients, words):
    class Odd(Function):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return gradients(dy)

    report = verdict(Odd.apply, normal(2, 3), name="odd")
    assert not report and str(report).startswith(f"odd: WRONG, {words}") and report.error == 0.0
    with pytest.raises(GradcheckError, match="odd: WRONG"):
        gradcheck(Odd.apply, normal(2, 3), name="odd")


def test_other_errors_are_not_taken_for_verdicts():
    def f(x):
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        verdict(f, normal(2))
    calls = []

    def late(x):
        calls.append(x)
        if len(calls) == 5:
            raise RuntimeError("no such file")
        return x * 2

    with pytest.raises(RuntimeError, match="no such file"):
        verdict(late, normal(2))
    with pytest.raises(AttributeError, match="nothing"):
        verdict(lambda x: x * 2 if x.ndim == 2 else Missing.apply(x), normal(2))


class Missing(Function):
    def forward(self, x):
        return x * 2

    def backward(self, dy):
        return dy.nothing


def test_a_faint_kink_is_one_too_and_so_is_one_on_a_curve():
    assert "on a kink or a jump" in str(verdict(lambda x: 1e-6 * x.relu(), np.array([0.0]), order=1))
    assert "on a kink or a jump" in str(verdict(lambda x: x.relu() + 50 * x * x, np.array([0.0]), order=1))


def test_a_gradient_where_there_is_none():
    """Differences of exactly 0 have no ratio to anything."""
    report = verdict(lambda x: x - x.detach(), normal(2), order=1)
    assert report.element.numeric == 0 and "by differences       0.0000000000e+00" in str(report)
    assert "times what" not in str(report)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_advice_on_a_gradient_that_is_not_finite(value):
    class Endless(Function):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return constant(np.full(dy.shape, value))

    report = verdict(Endless.apply, normal(2), order=1)
    text = "\n".join(report.advice)
    assert "2 of 2 elements" in text and "2 of 2 slopes" in text and f": {value} by the chain rule, 2 by differences" in text
    assert "each is" not in text and "direction" not in str(report.failures)


def test_advice_gives_the_slopes_on_both_sides_of_a_kink():
    """Of ⟨v, f⟩: 1 and 3 times the cotangent."""
    (advice,) = verdict(lambda x: 3 * ops.relu(x) - ops.relu(-x), np.array([0.0]), order=1).advice[1:]
    left, right = (float(word) for word in advice.split() if word[0].isdigit() or word[0] == "-")
    assert right == pytest.approx(3 * left, rel=1e-3) and abs(left) > 0.01


def test_advice_in_spite_of_a_strong_curvature():
    """Differences with the widest steps are off by themselves; the advice looks at the others."""
    text = str(verdict(lambda x: 1.5 * (60 * x).sin() - 0.5 * (60 * x).sin().detach(), np.array([0.1, 0.2]), order=1))
    assert "each is 1.5 times what it should be" in text
    top = np.array([math.pi / 120 - 0.002])  # where the slope is small beside the curvature
    text = str(verdict(lambda x: 1.5 * (60 * x).sin() - 0.5 * (60 * x).sin().detach(), top, order=1))
    assert "1 of 1 slopes" in text and "kink" not in text


def test_no_advice_where_nothing_is_wrong_and_none_that_does_not_fit():
    assert verdict(ops.exp, normal(3)).advice == []
    only, slopes, _ = verdict(
        lambda x: x * np.array([1.5, 1.2]) - (x * np.array([0.5, 0.2])).detach(), normal(2), order=1
    ).advice
    assert only == "2 of 2 elements of input 0 (shape (2,)) are off" and "1 of 2 slopes" in slopes
    seen = verdict(lambda x: Plus.apply(x, size=0.5, of="x"), normal(3, 4), order=1, elements=5)
    assert "too large" not in str(seen), "not all elements were looked at"


def test_a_smooth_function_is_not_said_to_have_a_kink():
    text = str(verdict(Slipped.apply, np.array([0.7, 1.3]), order=1))
    assert "kink" not in text and "float32" not in text


# ---------------------------------------------------------------------------------------------------------------------
# The curve
# ---------------------------------------------------------------------------------------------------------------------


def test_the_curve_of_a_right_gradient_is_a_v(tmp_path):
    """Truncation h⁴ on the left of the step, rounding 1/h on the right."""
    path = tmp_path / "curve.png"
    report = gradcheck(lambda x: (3 * x).sin(), np.array([0.4]), order=1, curve=str(path))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    errors = [abs(n - report.element.analytic) for _, n in report.element.steps]
    best = errors.index(min(errors))
    assert 0 < best < 4
    assert errors[0] > 100 * errors[best] and errors[-1] > 100 * errors[best]
    assert errors[0] == pytest.approx(4 * 0.01**4 / 120 * 3**5 * abs(report.element.analytic / 3), rel=0.2)


def test_the_curve_of_a_wrong_gradient_is_a_floor(tmp_path):
    path = tmp_path / "curve.png"
    report = verdict(Slipped.apply, positive(2), order=1, curve=str(path))
    assert path.exists() and len({round(n / report.element.analytic, 3) for h, n in report.element.steps[:5]}) == 1


def test_a_curve_without_elements_is_refused(tmp_path):
    with pytest.raises(ValueError, match="looked at single elements"):
        gradcheck(lambda x: x * 2, normal(0), curve=str(tmp_path / "curve.png"))
