"""The average of the weights: its equation, its swapping in and out, its state."""

import numpy as np
import pytest

from scratchgen import nn, optim
from scratchgen.grad_mode import no_grad
from scratchgen.tensors import Tensor


def rng(seed=0):
    return np.random.default_rng(seed)


def test_ema():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    model.append(model[0])  # shared
    ema = optim.EMA(model, 0.9)
    weight, g = model[0].weight, rng(8)
    history = [weight.data.copy()]
    for _ in range(5):
        with no_grad():
            weight.copy_(g.normal(size=(2, 2)))
        history.append(weight.data.copy())
        ema.update()
    expected = 0.9**5 * history[0] + sum(0.1 * 0.9 ** (5 - k) * history[k] for k in range(1, 6))
    np.testing.assert_allclose(ema.average["0.weight"], expected, rtol=1e-12)
    assert "2.weight" not in ema.average and "1.running_mean" not in ema.average

    with ema.swapped() as inside:
        assert inside is model and np.array_equal(weight.data, ema.average["0.weight"])
        with pytest.raises(RuntimeError, match="leave swapped"):
            ema.update()
        with pytest.raises(RuntimeError, match="in the module already"), ema.swapped():
            pass
    assert np.array_equal(weight.data, history[-1])
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    assert np.array_equal(weight.data, history[-1])
    ema.update()

    state = ema.state_dict()
    other = optim.EMA(model, 0.9)
    other.load_state_dict(state)
    assert all(np.array_equal(a, other.average[name]) for name, a in ema.average.items())
    assert all(type(value) is Tensor and not value.requires_grad for value in state.values())
    model.load_state_dict(state, strict=False)
    state["0.weight"].zero_()
    assert (ema.average["0.weight"] != 0).any()
    for change, said in (
        ({"x": np.ones(1)}, "x$"),
        ({"0.weight": np.ones(2)}, r"0.weight of shape \(2,\) for \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=said):
            other.load_state_dict({**state, **change})
    assert (other.average["0.weight"] != 0).any()


def test_ema_of_what_stands_still_stands_still():
    model = nn.Linear(3, 3)
    ema = optim.EMA(model, 0.999)
    for _ in range(10):
        ema.update()
    assert np.array_equal(ema.average["weight"], model.weight.data) and ema.average["weight"].dtype == np.float32
