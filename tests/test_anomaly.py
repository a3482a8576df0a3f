"""detect_anomaly: who is blamed for NaN and infinity."""

import numpy as np
import pytest

import scratchgen as sg
from scratchgen.autograd import Function


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


def test_anomaly_detection_that_is_nested_ends_as_it_began():
    @sg.detect_anomaly()
    def inner(n):
        return inner(n - 1) if n else 0

    inner(2)
    both = sg.detect_anomaly()
    with both, both:
        pass
    with np.errstate(invalid="ignore"):
        assert np.isnan(sg.sqrt(leaf(-1.0)).item())  # nothing is detected any more


def test_anomaly_names_the_forward_op_and_the_line():
    x = leaf(-1.0)
    with np.errstate(invalid="ignore"), sg.detect_anomaly(), pytest.raises(ArithmeticError) as caught:
        sg.sqrt(x)  # this line
    assert "Sqrt: the forward pass made a NaN" in str(caught.value)
    assert "test_anomaly.py" in str(caught.value) and "# this line" in str(caught.value)


def test_anomaly_names_the_gradient_and_the_line_of_the_forward():
    x = leaf(0.0)
    with np.errstate(divide="ignore"), sg.detect_anomaly():
        y = sg.sqrt(x)  # the culprit
        z = y * 3
        with pytest.raises(ArithmeticError) as caught:
            z.backward()
    assert "Sqrt: the gradient of input 0 turned to infinity" in str(caught.value)
    assert "# the culprit" in str(caught.value)


def test_anomaly_does_not_blame_who_was_given_nan():
    with sg.detect_anomaly():
        y = sg.tensor(np.array([np.nan])) * 2
    assert np.isnan(y.item())


def test_anomalies_of_an_op_with_several_results():
    x = sg.tensor(np.array([1.0, 0.0]), requires_grad=True)

    class Halves(sg.Function):
        def forward(self, x):
            with np.errstate(all="ignore"):
                return x[:1] / 1, x[:1] / x[1:]

        def backward(self, a, b):
            return sg.ops.cat([a, b])

    with sg.detect_anomaly(), pytest.raises(ArithmeticError, match="Halves"):
        Halves.apply(x)
    Halves.apply(x)


class Root(Function):
    """y = √x, whose gradient has no derivative of its own."""

    def forward(self, x):
        return np.sqrt(x)

    def backward(self, dy):
        raise AssertionError("a sweep that keeps the graph takes the composed form")

    def composed(self, x):
        return sg.sqrt(x)


def test_anomaly_blames_the_op_whose_gradient_it_is_not_those_that_it_is_composed_of():
    x = leaf(0.0)
    with np.errstate(divide="ignore"), sg.detect_anomaly():
        y = Root.apply(x)
        with pytest.raises(ArithmeticError, match="^Root: the gradient of input 0 turned to infinity") as caught:
            sg.grad(y, x, create_graph=True)
    assert "y = Root.apply(x)" in str(caught.value)


def test_a_cotangent_that_is_not_finite_is_nobodys_fault():
    x = leaf(1.0, 2.0)
    with sg.detect_anomaly():
        (g,) = sg.grad(x * 2, x, sg.tensor(np.array([np.inf, 1.0])))
    assert g.tolist() == [np.inf, 2.0]


class Reciprocals(Function):
    """y = 1 / x and z = 2 / x"""

    def forward(self, x):
        return 1 / x, 2 / x


class Pole(Function):
    """y = x, whose gradient is made of an op of several results that are infinite."""

    def forward(self, x):
        return x * 1

    def backward(self, dy):
        y, z = Reciprocals.apply(dy - dy)
        return y + z


def test_anomaly_does_not_blame_the_ops_that_a_gradient_is_made_of():
    x = leaf(1.0)
    with np.errstate(divide="ignore"), sg.detect_anomaly():
        with pytest.raises(ArithmeticError, match="^Reciprocals: the forward pass made an infinity"):
            Reciprocals.apply(x - x)
        with pytest.raises(ArithmeticError, match="^Pole: the gradient of input 0 turned to infinity"):
            Pole.apply(x).backward()
