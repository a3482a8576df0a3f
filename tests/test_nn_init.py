"""How weights begin, and how gradients are clipped."""

import math

import numpy as np
import pytest
from scipy import stats

from scratchgen import nn, random
from scratchgen.nn import init
from scratchgen.nn.module import Parameter
from scratchgen.tensors import tensor
from tests.test_nn_module import close, rng

# ---------------------------------------------------------------------------------------------------------------------
# How weights begin
# ---------------------------------------------------------------------------------------------------------------------


def uniform(bound):
    return stats.uniform(-bound, 2 * bound)


def both(bound):
    return {"weight": uniform(bound), "bias": uniform(bound)}


@pytest.mark.parametrize(("make", "laws"), [
    (lambda g: nn.Linear(50, 80, generator=g), both(50**-0.5)),
    (lambda g: nn.Embedding(50, 40, generator=g), {"weight": stats.norm()}),
    (lambda g: nn.Conv1d(12, 30, 5, groups=2, generator=g), both(30**-0.5)),
    (lambda g: nn.Conv2d(6, 30, 3, generator=g), both(54**-0.5)),
    (lambda g: nn.ConvTranspose1d(12, 30, 5, generator=g), both(150**-0.5)),
    (lambda g: nn.ConvTranspose2d(6, 30, 3, groups=3, generator=g), both(90**-0.5)),
    (lambda g: nn.GRU(10, 25, generator=g), {"weight_ih_l0": uniform(0.2), "bias_hh_l0": uniform(0.2)}),
    (
        lambda g: nn.MultiheadAttention(24, 4, generator=g),
        {"in_proj_weight": uniform(0.25), "out_proj.weight": uniform(24**-0.5), "in_proj_bias": 0, "out_proj.bias": 0},
    ),
    (
        lambda g: nn.MultiheadAttention(24, 4, kdim=40, generator=g),
        {"q_proj_weight": uniform(math.sqrt(6 / 48)), "k_proj_weight": uniform(math.sqrt(6 / 64)), "in_proj_bias": 0},
    ),
    (lambda g: nn.LayerNorm(5), {"weight": 1, "bias": 0}),
    (lambda g: nn.BatchNorm2d(5), {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}),
    (lambda g: nn.PReLU(5), {"weight": 0.25}),
])  # fmt: skip
def test_layers_begin_as_they_should(make, laws):
    state = {name: t.numpy() for name, t in make(rng(22)).state_dict().items()}
    for name, law in laws.items():
        if isinstance(law, int | float):
            assert (state[name] == law).all()
        else:
            assert stats.kstest(state[name].reshape(-1), law.cdf).pvalue > 1e-3
            low, high = law.support()
            if high < math.inf and state[name].size > 500:
                assert low * 1.000001 <= state[name].min() < 0.985 * low and 0.985 * high < state[name].max() <= high * 1.000001
    again = make(rng(22))
    assert all(np.array_equal(a, state[name]) for name, a in again.state_dict().items())
    assert all(a.dtype in (np.float32, np.int64) for a in state.values())


def test_both_precisions_begin_alike():
    single, double = nn.Linear(5, 4, generator=rng(1)), nn.Linear(5, 4, dtype=np.float64, generator=rng(1))
    assert double.weight.dtype == np.float64 and np.array_equal(double.weight.data.astype(np.float32), single.weight.data)
    random.manual_seed(5)
    a = nn.Linear(5, 4)
    random.manual_seed(5)
    assert np.array_equal(nn.Linear(5, 4).weight.data, a.weight.data)


@pytest.mark.parametrize(("fill", "law"), [
    (lambda t, g: init.uniform_(t, -1, 3, g), stats.uniform(-1, 4)),
    (lambda t, g: init.normal_(t, 2, 3, g), stats.norm(2, 3)),
    (lambda t, g: init.trunc_normal_(t, generator=g), stats.truncnorm(-2, 2)),
    (lambda t, g: init.trunc_normal_(t, 1, 2, 0, 4, g), stats.truncnorm(-0.5, 1.5, 1, 2)),
    (lambda t, g: init.trunc_normal_(t, 0, 1, 9, 11, g), stats.truncnorm(9, 11)),
    (lambda t, g: init.xavier_uniform_(t, 2, g), uniform(2 * math.sqrt(6 / 150))),
    (lambda t, g: init.xavier_normal_(t, 2, g), stats.norm(0, 2 * math.sqrt(2 / 150))),
    (lambda t, g: init.kaiming_uniform_(t, generator=g), uniform(math.sqrt(2 * 3 / 50))),
    (lambda t, g: init.kaiming_uniform_(t, math.sqrt(5), generator=g), uniform(50**-0.5)),
    (lambda t, g: init.kaiming_normal_(t, 0.5, "fan_out", generator=g), stats.norm(0, math.sqrt(2 / 1.25 / 100))),
    (lambda t, g: init.kaiming_normal_(t, 0, "fan_in", "tanh", g), stats.norm(0, 5 / 3 / math.sqrt(50))),
])  # fmt: skip
def test_distributions(fill, law):
    t = tensor(np.zeros((20, 10, 5), np.float32))
    assert fill(t, rng(23)) is t and t.dtype == np.float32
    assert stats.kstest(t.data.reshape(-1).astype(np.float64), law.cdf).pvalue > 1e-3


def test_constants_orthogonal_and_gains():
    t = tensor(np.zeros((3, 2)), requires_grad=True)
    assert (init.ones_(t).data == 1).all() and (init.constant_(t, 0.3).data == 0.3).all() and (init.zeros_(t).data == 0).all()
    for shape in ((6, 4), (4, 6), (4, 2, 3), (5, 5)):
        t = init.orthogonal_(tensor(np.zeros(shape)), 2, rng(24))
        w = t.data.reshape(shape[0], -1)
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        close(gram, 4 * np.eye(len(gram)))
    gains = {
        "linear": 1,
        "conv2d": 1,
        "sigmoid": 1,
        "tanh": 5 / 3,
        "relu": 2**0.5,
        "selu": 0.75,
        "leaky_relu": (2 / 1.0001) ** 0.5,
    }
    for name, gain in gains.items():
        np.testing.assert_allclose(init.calculate_gain(name), gain)
    assert init.trunc_normal_(tensor(np.zeros(3)), 5, 0).data.tolist() == [2, 2, 2]
    assert init.kaiming_normal_(tensor(np.zeros((3, 0)))).shape == (3, 0)


def test_orthogonal_is_uniform():
    """The trace of a uniform orthogonal matrix has variance 1; that of QR's own Q, without the signs, has not."""
    traces = [np.trace(init.orthogonal_(tensor(np.zeros((4, 4))), generator=rng(i)).data) for i in range(400)]
    assert abs(np.mean(traces)) < 0.2 and 0.8 < np.var(traces) < 1.2


# ---------------------------------------------------------------------------------------------------------------------
# Clipping
# ---------------------------------------------------------------------------------------------------------------------


def with_grads(*grads):
    params = []
    for g in grads:
        p = Parameter(np.zeros_like(g))
        p.grad = tensor(g)
        params.append(p)
    return params


@pytest.mark.parametrize("p", [1, 2, 3.5, math.inf])
def test_clip_grad_norm(p):
    g = rng(25)
    a, b = g.normal(size=(3, 2)), g.normal(size=4)
    norm = np.linalg.norm(np.concatenate([a.reshape(-1), b]), p)
    params = [*with_grads(a, b), Parameter([1.0])]
    np.testing.assert_allclose(nn.utils.clip_grad_norm_(params, 2 * norm, p).item(), norm)
    assert np.array_equal(params[0].grad.data, a)
    np.testing.assert_allclose(nn.utils.clip_grad_norm_(iter(params), 0.5, p).item(), norm)
    close(params[1].grad, b * 0.5 / (norm + 1e-6))
    assert params[2].grad is None


def test_clip_grad_norm_far_out():
    params = with_grads(np.full(4, 1e30, np.float32))
    np.testing.assert_allclose(nn.utils.clip_grad_norm_(params, 1.0).item(), 2e30, rtol=1e-6)
    close(params[0].grad, np.full(4, 0.5, np.float32), 1e-6)
    params = with_grads(np.full(4, 1e-30, np.float32))
    np.testing.assert_allclose(nn.utils.clip_grad_norm_(params, 1.0).item(), 2e-30, rtol=1e-6)
    params = with_grads(np.array([1.0, np.inf]))
    with pytest.raises(RuntimeError, match="finite norm, got inf"):
        nn.utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert nn.utils.clip_grad_norm_(params, 1.0).item() == math.inf and params[0].grad.data[0] == 0
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0
    with pytest.raises(ValueError, match="max_norm"):
        nn.utils.clip_grad_norm_(params, -1)


def test_clip_of_a_gradient_that_is_recorded():
    x = Parameter(np.array([1.0, -3.0]))
    x.pow(3).sum().backward(create_graph=True)
    nn.utils.clip_grad_value_(x, 5)
    assert x.grad.data.tolist() == [3, 5] and x.data.tolist() == [1, -3]


def test_clipping_gradients_that_were_recorded_themselves():
    """After backward(create_graph=True): replaced by their clipped values, whether one of them was or all."""
    for both in (True, False):
        x, y = (tensor(np.array(v), requires_grad=True) for v in ([3.0, 0.0], [4.0]))
        (x.square() / 2).sum().backward(create_graph=True)
        (y.square() / 2).sum().backward(create_graph=both)
        assert nn.utils.clip_grad_norm_([x, y], 1.0).item() == 5
        np.testing.assert_allclose(x.grad.data, [0.6, 0.0], rtol=1e-6)
        np.testing.assert_allclose(y.grad.data, [0.8], rtol=1e-6)
