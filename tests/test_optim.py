"""Optimisers take the steps of their equations, resume exactly, and refuse what cannot be meant."""

import json
import math

import numpy as np
import pytest

from scratchgen import nn, optim
from scratchgen.nn import Parameter
from scratchgen.tensors import Tensor, tensor


def rng(seed=0):
    return np.random.default_rng(seed)


def stepped(optimizer, param, gradients):
    """Where `param` is after each of the gradients."""
    path = []
    for g in gradients:
        param.grad = tensor(np.asarray(g, param.dtype))
        optimizer.step()
        path.append(param.data.copy())
    return np.array(path)


# ---------------------------------------------------------------------------------------------------------------------
# The equations, written once more: for one number, as the papers have them
# ---------------------------------------------------------------------------------------------------------------------


def sgd(x, gs, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    b = None
    for g in gs:
        g = g + weight_decay * x
        if momentum:
            b = g if b is None else momentum * b + (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        x = x - lr * g
        yield x


def adam(x, gs, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, decoupled=False):
    (b1, b2), m, v, largest = betas, 0.0, 0.0, 0.0
    for t, g in enumerate(gs, 1):
        if decoupled:
            x = x - lr * weight_decay * x
        else:
            g = g + weight_decay * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        largest = max(largest, v)
        x = x - lr * (m / (1 - b1**t)) / (math.sqrt((largest if amsgrad else v) / (1 - b2**t)) + eps)
        yield x


def adamw(x, gs, weight_decay=1e-2, **options):
    return adam(x, gs, weight_decay=weight_decay, decoupled=True, **options)


def rmsprop(x, gs, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    v = a = b = 0.0
    for g in gs:
        g = g + weight_decay * x
        v, a = alpha * v + (1 - alpha) * g * g, alpha * a + (1 - alpha) * g
        b = momentum * b + g / (math.sqrt(v - a * a if centered else v) + eps)
        x = x - lr * b
        yield x


def adagrad(x, gs, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10):
    s = initial_accumulator_value
    for t, g in enumerate(gs):
        g = g + weight_decay * x
        s += g * g
        x = x - lr / (1 + t * lr_decay) * g / (math.sqrt(s) + eps)
        yield x


def radam(x, gs, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled_weight_decay=False):
    (b1, b2), m, v = betas, 0.0, 0.0
    for t, g in enumerate(gs, 1):
        if decoupled_weight_decay:
            x = x - lr * weight_decay * x
        else:
            g = g + weight_decay * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        most = 2 / (1 - b2) - 1
        rho = most - 2 * t * b2**t / (1 - b2**t)
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
            x = x - lr * r * m / (1 - b1**t) * math.sqrt(1 - b2**t) / (math.sqrt(v) + eps)
        else:
            x = x - lr * m / (1 - b1**t)
        yield x


CASES = [
    (optim.Adagrad, adagrad, {}),
    (optim.Adagrad, adagrad, {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-2}),
    (optim.RAdam, radam, {}),  # ρ_t passes 5 at t = 6
    (optim.RAdam, radam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    (optim.RAdam, radam, {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.SGD, sgd, {}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    (optim.Adam, adam, {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.6)}),
    (optim.AdamW, adamw, {}),
    (optim.AdamW, adamw, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2}),
    (optim.AdamW, adamw, {"lr": 0.1, "weight_decay": 0.2, "amsgrad": True, "betas": (0.5, 0.6)}),
    (optim.RMSprop, rmsprop, {}),
    (optim.RMSprop, rmsprop, {"lr": 0.1, "alpha": 0.8, "weight_decay": 0.1, "momentum": 0.7}),
    (optim.RMSprop, rmsprop, {"alpha": 0.8, "eps": 1e-2, "centered": True}),
]
named = pytest.mark.parametrize(("kind", "reference", "options"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))


@named
def test_steps(kind, reference, options):
    gradients = rng(1).normal(size=(50, 2, 3))
    start = rng(2).normal(size=(2, 3))
    p = Parameter(start)
    path = stepped(kind([p], **options), p, gradients)
    for i in np.ndindex(2, 3):
        alone = list(reference(start[i], gradients[(slice(None), *i)], **options))
        np.testing.assert_allclose(path[(slice(None), *i)], alone, rtol=1e-12)


@named
def test_maximize_is_minimize_of_minus(kind, reference, options):
    gradients = rng(3).normal(size=(10, 4))
    up, down = Parameter(np.ones(4)), Parameter(np.ones(4))
    a = stepped(kind([up], maximize=True, **options), up, gradients)
    assert np.array_equal(a, stepped(kind([down], **options), down, -gradients))


@named
def test_resume_is_exact(kind, reference, options):
    """Through JSON and back, in the middle: bit for bit the same path; dtypes, 0-d and empty ones included."""
    gradients = rng(4).normal(size=(12, 3))

    def run(split):
        starts = np.array([1.0, -2.0, 3.0], np.float32), np.array(0.5), np.zeros(0), np.ones(1)
        params = [Parameter(start) for start in starts]
        optimizer = kind(params, **options)
        for k, g in enumerate(gradients):
            for p, share in zip(params[:3], (g, g[0], np.zeros(0)), strict=True):
                p.grad = tensor(np.asarray(share, p.dtype))
            if k == split:
                text = json.dumps(optimizer.state_dict(), default=Tensor.tolist)
                optimizer = kind(params, lr=123.0)
                optimizer.load_state_dict(json.loads(text))
            optimizer.step()
        return [p.data.copy() for p in params]

    whole, resumed = run(None), run(6)
    for a, b in zip(whole, resumed, strict=True):
        assert np.array_equal(a, b) and a.dtype == b.dtype
    assert whole[0].dtype == np.float32 and whole[3].tolist() == [1.0]  # no gradient, no step


def test_first_steps_by_hand():
    p = Parameter(np.array([1.0, -2.0]))
    assert stepped(optim.SGD([p], 0.5), p, [[2.0, 4.0]]).tolist() == [[0.0, -4.0]]
    for kind, shrink in (
        (optim.Adam, 1.0),
        (optim.AdamW, 0.99),
    ):  # lr · sign(g), after a shrinking by 1 − lr λ in AdamW
        p = Parameter(np.array([1.0, -2.0]))
        optimizer = kind([p], 0.1, weight_decay=0.1 if kind is optim.AdamW else 0)
        first = stepped(optimizer, p, [[3.0, -1e-3]])[0]
        np.testing.assert_allclose(first, [shrink - 0.1, -2 * shrink + 0.1], rtol=1e-4)
    p = Parameter(np.array([1.0]))
    np.testing.assert_allclose(stepped(optim.RMSprop([p], 0.1, alpha=0.75), p, [[3.0]])[0], 1 - 0.1 * 2, rtol=1e-8)


def test_adamw_without_decay_is_adam():
    gradients = rng(5).normal(size=(10, 3))
    a, b = Parameter(np.ones(3)), Parameter(np.ones(3))
    assert np.array_equal(stepped(optim.Adam([a]), a, gradients), stepped(optim.AdamW([b], weight_decay=0), b, gradients))


def test_centred_rmsprop_of_a_constant_gradient():
    """v − a² is 0 up to rounding, which may make it negative: no NaN."""
    p = Parameter(np.ones(100))
    path = stepped(optim.RMSprop([p], 1e-12, alpha=0.9, centered=True), p, np.tile(rng(9).normal(size=100), (500, 1)))
    assert np.isfinite(path).all()


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
def test_gradients_and_state_are_not_shared(kind):
    p = Parameter(np.ones(3))
    options = {} if kind in (optim.Adam, optim.AdamW) else {"momentum": 0.9}
    optimizer = kind([p], weight_decay=0.1, **options)
    p.grad = g = tensor(np.arange(3.0))
    optimizer.step()
    optimizer.step()
    assert p.grad is g and g.data.tolist() == [0, 1, 2] and not p.data.flags.writeable
    state = optimizer.state_dict()
    assert list(state["state"][0]) == list(optimizer.state[p])
    for value in state["state"][0].values():
        if not isinstance(value, int):
            assert type(value) is Tensor and not value.requires_grad
            value.copy_(np.full(3, 9.0))
    assert not any(np.array_equal(v, np.full(3, 9)) for v in optimizer.state[p].values() if isinstance(v, np.ndarray))


def test_pytorchs_state_layout():
    p, q = Parameter(np.ones(2)), Parameter(np.ones(1))
    optimizer = optim.Adam([{"params": [p]}, {"params": q, "lr": 0.5}], lr=0.1)
    q.grad = tensor(np.ones(1))
    optimizer.step()
    state = optimizer.state_dict()
    assert list(state) == ["state", "param_groups"] and list(state["state"]) == [1]
    assert list(state["state"][1]) == ["step", "exp_avg", "exp_avg_sq"] and state["state"][1]["step"] == 1
    assert [(group["params"], group["lr"]) for group in state["param_groups"]] == [([0], 0.1), ([1], 0.5)]
    state["state"][1]["step"] = np.array(4.0, np.float32)  # as PyTorch counts
    optimizer.load_state_dict(state)
    assert optimizer.state[q]["step"] == 4
    assert "2 parameters" not in repr(optimizer) and "lr=0.5" in repr(optimizer)
    keys = {optim.SGD: {"momentum_buffer"}, optim.RMSprop: {"step", "square_avg", "momentum_buffer", "grad_avg"}}
    for kind, expected in keys.items():
        optimizer = kind([q], momentum=0.5, **({"centered": True} if kind is optim.RMSprop else {}))
        optimizer.step()
        assert set(optimizer.state_dict()["state"][0]) == expected
    optimizer = optim.AdamW([q], amsgrad=True)
    optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}


def test_groups_closure_and_zero_grad():
    p, q = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.SGD([{"params": p}, {"params": [q], "lr": 1.0, "momentum": 0.5}], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * 2 + q).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6
    np.testing.assert_allclose(p.data, 0.8)
    np.testing.assert_allclose(q.data, 0.0)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.data.tolist() == [0, 0]
    optimizer.zero_grad()
    assert p.grad is None and q.grad is None
    optimizer.step()
    np.testing.assert_allclose(q.data, 0.0)
    extra = Parameter(np.ones(1))
    optimizer.add_param_group({"params": [extra]})
    assert optimizer.param_groups[2]["lr"] == 0.1


def test_training_a_layer():
    """Least squares by each optimiser, from the same start: the loss falls a hundredfold."""
    g = rng(6)
    x, w = g.normal(size=(64, 3)), g.normal(size=(3, 2))
    y = tensor(x @ w)
    for kind, lr, more in (
        (optim.SGD, 0.1, {"momentum": 0.9}),
        (optim.Adam, 0.05, {}),
        (optim.AdamW, 0.05, {}),
        (optim.RMSprop, 0.02, {}),
    ):
        model = nn.Linear(3, 2, dtype=np.float64, generator=rng(7))
        optimizer = kind(model.parameters(), lr, **more)
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = (model(tensor(x)) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 100


def test_a_step_between_forward_and_backward_is_noticed():
    p = Parameter(np.ones(2))
    loss = (p * p).sum()
    p.grad = tensor(np.ones(2))
    optim.SGD([p]).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


P = Parameter(np.ones(2))


@pytest.mark.parametrize(("call", "said"), [
    (lambda: optim.SGD([]), "SGD: expected parameters, got none"),
    (lambda: optim.SGD(P), "expected an iterable of parameters or of groups, got Parameter"),
    (lambda: optim.SGD([np.ones(2)]), "expected tensors as parameters, got ndarray"),
    (lambda: optim.SGD([P * 2]), "made by the user"),
    (lambda: optim.SGD([P, P]), "each parameter once"),
    (lambda: optim.SGD([{"params": P}, {"params": P}]), "each parameter once"),
    (lambda: optim.SGD([{"lr": 1}]), "a dict with 'params'"),
    (lambda: optim.SGD([{"params": P, "beta": 1}]), "options among lr, momentum, .*, got 'beta'"),
    (lambda: optim.SGD([P], -0.1), "lr to be a number of at least 0 and finite, got -0.1"),
    (lambda: optim.SGD([P], math.nan), "got nan"),
    (lambda: optim.Adam([P], math.inf), "got inf"),
    (lambda: optim.Adam([P], True), "got True"),
    (lambda: optim.SGD([{"params": P, "lr": -1}]), "lr to be a number"),
    (lambda: optim.SGD([P], momentum=-0.5), "momentum to be"),
    (lambda: optim.SGD([P], dampening=math.inf, momentum=0.5), "dampening to be a finite number"),
    (lambda: optim.SGD([P], nesterov=True), "nesterov expects momentum above 0"),
    (lambda: optim.Adam([P], betas=(0.9, 1.0)), r"betas\[1\] to be a number of at least 0 and below 1, got 1.0"),
    (lambda: optim.AdamW([P], betas=(-0.1, 0.9)), r"betas\[0\]"),
    (lambda: optim.Adam([P], betas=0.9), "betas to be a pair"),
    (lambda: optim.Adam([P], eps=-1e-8), "eps to be"),
    (lambda: optim.AdamW([P], weight_decay=-1), "weight_decay to be"),
    (lambda: optim.RMSprop([P], alpha=-1), "alpha to be"),
    (lambda: optim.StepLR(optim.SGD([P]), 0), "StepLR: expected step_size to be a whole number of at least 1, got 0"),
    (lambda: optim.StepLR(P, 1), "expected an Optimizer, got Parameter"),
    (lambda: optim.StepLR(optim.SGD([P]), 1, last_epoch=3), "expected 'initial_lr' in group 0"),
    (lambda: optim.LinearLR(optim.SGD([P]), 0), "factors from 0 to 1"),
    (lambda: optim.LambdaLR(optim.SGD([P]), [abs, abs]), "one for each of 1 groups"),
    (
        lambda: optim.StepLR(optim.SGD([P]), 1).load_state_dict({"last_epoch": 1, "base_lrs": [1, 2]}),
        "expected last_epoch and 1 base_lrs",
    ),
    (lambda: optim.Adagrad([P], initial_accumulator_value=-1), "initial_accumulator_value to be"),
    (lambda: optim.Adagrad([P], lr_decay=-1), "lr_decay to be"),
    (lambda: optim.RAdam([P], betas=(0.9, 1)), r"betas\[1\] to be"),
    (lambda: optim.RAdam([P], eps=-1), "eps to be"),
    (lambda: optim.warmup_cosine(0, warmup=5, steps=4), "0 ≤ warmup ≤ steps"),
    (lambda: optim.warmup_cosine(0, warmup=1, steps=4, final=1.5), "0 ≤ final ≤ 1"),
    (lambda: optim.EMA(nn.Linear(1, 1), 1.0), "decay to be a number of at least 0 and below 1, got 1.0"),
])  # fmt: skip
def test_refusals(call, said):
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


class Scalar:
    """A tensor of another library: what NumPy makes of it, and `item`."""

    ndim = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype or np.float32)


def how(**more):
    """What PyTorch's groups say of how it computes, which changes no value."""
    return {"foreach": None, "differentiable": False, "fused": None, "capturable": False, "params": [0], **more}


@pytest.mark.parametrize(("make", "group"), [
    (lambda p: optim.AdamW([p]), how(lr=Scalar(0.01), betas=[0.5, 0.75], eps=1e-8, weight_decay=0.25, amsgrad=False,
                                     maximize=False, decoupled_weight_decay=True, param_names=["w"])),
    (lambda p: optim.Adam([p]), how(lr=0.01, betas=(0.5, 0.75), eps=1e-8, weight_decay=0, amsgrad=False,
                                    maximize=False, decoupled_weight_decay=False)),
])  # fmt: skip
def test_a_state_dict_of_pytorchs_twin_continues(make, group):
    p = Parameter(np.array([1.0, 2.0]))
    optimizer = make(p)
    state = {"step": Scalar(1.0), "exp_avg": np.array([0.5, -0.5]), "exp_avg_sq": np.array([0.25, 1.0])}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [group]})
    p.grad = tensor(np.array([1.0, 0.0]))
    optimizer.step()
    m, v = np.array([0.75, -0.25]), np.array([0.4375, 0.75])  # by hand; bias corrections 1 − 0.5², 1 − 0.75²
    before = np.array([1.0, 2.0]) * (1 - 0.01 * group["weight_decay"])
    np.testing.assert_allclose(p.data, before - 0.01 * (m / 0.75) / (np.sqrt(v / 0.4375) + 1e-8), rtol=1e-14)
    assert set(optimizer.param_groups[0]) == {"params", *optimizer.defaults}
    other = {**group, "decoupled_weight_decay": not group["decoupled_weight_decay"]}
    with pytest.raises(ValueError, match="expected decoupled_weight_decay (True|False), got the state of an optimiser with"):
        optimizer.load_state_dict({"state": {}, "param_groups": [other]})


def test_load_refuses_and_changes_nothing():
    p, q = Parameter(np.ones(2)), Parameter(np.ones(3))
    optimizer = optim.Adam([p, q], lr=0.1)
    p.grad = tensor(np.ones(2))
    optimizer.step()
    state = optimizer.state_dict()
    for change, said in (
        ({"param_groups": [{**state["param_groups"][0], "params": [0]}]}, r"groups of \[2\] parameters, got \[1\]"),
        ({"state": {7: {}}}, "expected the state of parameters 0, 1, got one of 7"),
        ({"state": {1: state["state"][0]}}, r"exp_avg of parameter 1 to have shape \(3,\), got \(2,\)"),
        ({"param_groups": [{**state["param_groups"][0], "momentum": 1}]}, "got momentum"),
        ({"param_groups": [{**state["param_groups"][0], "lr": -1}]}, "lr to be a number"),
    ):
        with pytest.raises(ValueError, match=said):
            optimizer.load_state_dict({**state, **change})
        assert optimizer.param_groups[0]["lr"] == 0.1 and list(optimizer.state) == [p]
    with pytest.raises(ValueError, match="'state' and 'param_groups'"):
        optimizer.load_state_dict({})
    p.grad = tensor(np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"gradient of \(2,\) and float64, got \(2,\) and float32"):
        optimizer.step()
