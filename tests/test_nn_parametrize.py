"""Parameters that are computed, in containers, as one vector; spectral and weight norm; pads, and dropout of channels."""

import copy
import pickle

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import nn, optim, random
from scratchgen.grad_mode import no_grad
from scratchgen.nn import Parameter
from scratchgen.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from scratchgen.tensors import Tensor


def rng(seed=0):
    return np.random.default_rng(seed)


def theta(layer, name="weight"):
    return layer.parametrizations[name].original


def u_and_v(layer, name="weight"):
    f = layer.parametrizations[name][0]
    return f._u.data.copy(), f._v.data.copy()


def rows(weight, dim):
    return np.moveaxis(weight, dim, 0).reshape(weight.shape[dim], -1)


def unit(x):
    return x / np.linalg.norm(x)


LAYERS = [
    (lambda: nn.Linear(5, 3, dtype=np.float64), 0, (2, 5)),
    (lambda: nn.Linear(1, 4, dtype=np.float64), 0, (2, 1)),
    (lambda: nn.Linear(4, 1, dtype=np.float64), 0, (2, 4)),
    (lambda: nn.Conv1d(2, 3, 2, dtype=np.float64), 0, (1, 2, 4)),
    (lambda: nn.Conv2d(2, 3, 2, dtype=np.float64), 0, (1, 2, 3, 3)),
    (lambda: nn.ConvTranspose1d(2, 3, 2, dtype=np.float64), 1, (1, 2, 4)),
    (lambda: nn.ConvTranspose2d(2, 3, 2, dtype=np.float64), 1, (1, 2, 3, 3)),
]
every_layer = pytest.mark.parametrize(("make", "dim", "shape"), LAYERS)


# ---------------------------------------------------------------------------------------------------------------------
# Spectral norm
# ---------------------------------------------------------------------------------------------------------------------


@every_layer
def test_the_spectral_norm_converges_to_the_largest_singular_value(make, dim, shape):
    random.manual_seed(1)
    layer = make()
    weight = layer.weight
    assert spectral_norm(layer, n_power_iterations=300) is layer and theta(layer) is weight
    with no_grad():
        weight.copy_(rng(2).normal(size=weight.shape))
    largest = np.linalg.svd(rows(weight.data, dim))[1][0]
    np.testing.assert_allclose(layer.weight.data, weight.data / largest, rtol=1e-12)
    x = Tensor(rng(3).normal(size=shape))
    found = layer(x)
    plain = make()
    with no_grad():
        plain.weight.copy_(weight.data / largest)
        plain.bias.copy_(layer.bias)
    np.testing.assert_allclose(found.data, plain(x).data, rtol=1e-12, atol=1e-14)


def test_the_spectral_norm_of_an_embedding_and_of_a_vector():
    random.manual_seed(1)
    table = spectral_norm(nn.Embedding(6, 3, dtype=np.float64), n_power_iterations=300)
    with no_grad():
        table.parametrizations.weight.original.copy_(rng(4).normal(size=(6, 3)))
    largest = np.linalg.svd(theta(table).data)[1][0]
    np.testing.assert_allclose(table(Tensor([2, 5])).data, theta(table).data[[2, 5]] / largest, rtol=1e-12)
    layer = spectral_norm(nn.Linear(2, 3, dtype=np.float64), "bias")
    np.testing.assert_allclose(layer.bias.data, unit(theta(layer, "bias").data), rtol=1e-14)
    assert list(layer.state_dict()) == ["weight", "parametrizations.bias.original"]


def test_the_spectral_norm_bounds_what_a_layer_does():
    random.manual_seed(2)
    layer = spectral_norm(nn.Linear(20, 30, bias=False, dtype=np.float64), n_power_iterations=200)
    with no_grad():
        theta(layer).copy_(rng(5).normal(size=(30, 20)))
    x = rng(6).normal(size=(100, 20))
    ratio = np.linalg.norm(layer(Tensor(x)).data, axis=1) / np.linalg.norm(x, axis=1)
    assert ratio.max() <= 1 + 1e-9
    _, _, right = np.linalg.svd(theta(layer).data)
    np.testing.assert_allclose(np.linalg.norm(layer(Tensor(right[:1])).data), 1, rtol=1e-9)


@every_layer
def test_its_gradient_takes_u_and_v_for_constants(make, dim, shape):
    r"""w = θ/σ, σ = uᵀ Θ v:  θ̄ = (w̄ − ⟨w̄, w⟩ u vᵀ) / σ; and to second order, by gradcheck, u and v being held."""
    layer = spectral_norm(make())
    with no_grad():
        theta(layer).copy_(rng(7).normal(size=theta(layer).shape))
    w = layer.weight  # u and v move
    u, v = u_and_v(layer)
    g = rng(8).normal(size=w.shape)
    (w * Tensor(g)).sum().backward()
    sigma = u @ rows(theta(layer).data, dim) @ v
    expected = (rows(g, dim) - (g * w.data).sum() * np.outer(u, v)) / sigma
    np.testing.assert_allclose(rows(theta(layer).grad.data, dim), expected, rtol=1e-10, atol=1e-12)
    layer.eval()
    sg.gradcheck(layer, rng(9).normal(size=shape), order=2)


def test_the_gradient_of_the_converged_norm_is_that_of_the_singular_value():
    """dσ/dθ = u vᵀ also counts how u and v turn: to first order they do not matter. Differences against the SVD."""
    layer = spectral_norm(nn.Linear(4, 3, bias=False, dtype=np.float64), n_power_iterations=500)
    with no_grad():
        theta(layer).copy_(rng(10).normal(size=(3, 4)))
    g = rng(11).normal(size=(3, 4))
    (layer.weight * Tensor(g)).sum().backward()
    d, h = rng(12).normal(size=(3, 4)), 1e-6

    def f(w):
        return (g * w).sum() / np.linalg.svd(w)[1][0]

    numeric = (f(theta(layer).data + h * d) - f(theta(layer).data - h * d)) / (2 * h)
    np.testing.assert_allclose((theta(layer).grad.data * d).sum(), numeric, rtol=1e-7)


@every_layer
def test_u_and_v_move_once_for_each_value_of_the_weight(make, dim, shape):
    layer = spectral_norm(make())
    x = Tensor(rng(13).normal(size=shape))
    start = u_and_v(layer)
    layer(x)
    assert all(map(np.array_equal, start, u_and_v(layer)))  # they have moved for this weight when the norm was set up
    with no_grad():
        theta(layer).copy_(rng(14).normal(size=theta(layer).shape))
    layer(x)
    matrix = rows(theta(layer).data, dim)
    u = unit(matrix @ start[1])
    np.testing.assert_allclose(u_and_v(layer)[0], u, rtol=1e-12)
    np.testing.assert_allclose(u_and_v(layer)[1], unit(matrix.T @ u), rtol=1e-12)
    moved = u_and_v(layer)
    layer(x)
    with sg.no_grad():
        layer(x)
    with no_grad():
        theta(layer).copy_(theta(layer).data.copy())  # written to, but the same
    layer(x)
    assert all(map(np.array_equal, moved, u_and_v(layer)))
    layer.eval()
    with no_grad():
        theta(layer).copy_(rng(15).normal(size=theta(layer).shape))
    y = layer(x)
    assert all(map(np.array_equal, moved, u_and_v(layer)))
    np.testing.assert_allclose(layer.weight.data, theta(layer).data / (moved[0] @ rows(theta(layer).data, dim) @ moved[1]))
    layer.train()
    assert not np.allclose(y.data, layer(x).data)


def test_a_weight_that_changes_where_u_is_zero_is_followed():
    """v = Θᵀu / ‖Θᵀu‖ goes on to hold for this weight: that u and v have not moved for it is seen from Θv."""
    layer = spectral_norm(nn.Linear(2, 3, bias=False, dtype=np.float64))
    f = layer.parametrizations.weight[0]
    with no_grad():
        theta(layer).copy_([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    f._u.copy_([1.0, 0.0, 0.0])
    f._v.copy_([1.0, 0.0])
    layer.weight  # noqa: B018 (used: nothing moves)
    assert u_and_v(layer)[0].tolist() == [1, 0, 0]
    with no_grad():
        theta(layer).copy_([[2.0, 0.0], [0.0, 0.5], [7.0, 0.0]])
    assert layer.weight.data.max() < 1
    np.testing.assert_allclose(u_and_v(layer)[0], unit(np.array([2.0, 0.0, 7.0])))


def test_more_iterations_for_each_value():
    layers = [spectral_norm(nn.Linear(4, 3, dtype=np.float64), n_power_iterations=n, generator=rng(0)) for n in (1, 3)]
    start = rng(16).normal(size=(3, 4))
    for layer in layers:
        with no_grad():
            theta(layer).copy_(start)
        for f in layer.parametrizations.weight:
            f._u.copy_(unit(np.ones(3)))
            f._v.copy_(unit(np.array([1.0, 2, 3, 4])))
    layers[1].weight  # noqa: B018
    u, v = u_and_v(layers[0])
    for _ in range(3):
        u = unit(start @ v)
        v = unit(start.T @ u)
    np.testing.assert_allclose(u_and_v(layers[1])[0], u, rtol=1e-12)
    np.testing.assert_allclose(u_and_v(layers[1])[1], v, rtol=1e-12)


def test_two_forward_passes_and_then_two_backward_passes():
    """A loss of real and fake pictures: each backward finds u and v as its forward pass saw them."""
    layer = spectral_norm(nn.Linear(3, 2, dtype=np.float64))
    a, b = (Tensor(rng(s).normal(size=(4, 3))) for s in (17, 18))
    grads = []
    for together in (True, False):
        layer.zero_grad()
        if together:
            real, fake = layer(a).tanh().sum(), layer(b).tanh().sum()
            real.backward()
            fake.backward()
        else:
            (layer(a).tanh().sum() + layer(b).tanh().sum()).backward()
        grads.append(theta(layer).grad.data)
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-12)
    first = layer(a).sum()
    f = layer.parametrizations.weight[0]
    u, v = u_and_v(layer)
    with sg.no_grad():
        f._u.copy_(unit(np.ones(2)))  # u and v go on to change between a forward pass and its backward
        f._v.copy_(unit(np.ones(3)))
    layer.zero_grad()
    first.backward()
    g = np.ones((4, 2)).T @ a.data
    sigma = u @ theta(layer).data @ v
    np.testing.assert_allclose(
        theta(layer).grad.data, (g - (g * theta(layer).data).sum() / sigma * np.outer(u, v)) / sigma, rtol=1e-10
    )


def test_recomputation_moves_nothing():
    layer = spectral_norm(nn.Linear(3, 3, dtype=np.float64))
    x = Tensor(rng(19).normal(size=(2, 3)), requires_grad=True)
    grads = []
    for call in (lambda: sg.checkpoint(layer, x), lambda: layer(x)):
        with no_grad():
            theta(layer).copy_(rng(20).normal(size=(3, 3)))
        layer.parametrizations.weight[0]._v.copy_(unit(np.array([1.0, 2.0, 3.0])))
        layer.zero_grad()
        (call() ** 2).sum().backward()
        grads.append((theta(layer).grad.data, *u_and_v(layer)))
    for one, other in zip(*grads, strict=True):
        assert np.array_equal(one, other)


def training(steps, split, act):
    """A discriminator that is used several times in a step, saved as arrays after `split` steps, and continued by another."""
    random.manual_seed(0)

    def make():
        model = nn.Sequential(
            spectral_norm(nn.Linear(3, 5)), nn.Tanh(), spectral_norm(nn.Linear(5, 1)), spectral_norm(nn.Linear(1, 5))
        )
        return model, optim.Adam(model.parameters(), 0.05)

    model, optimizer = make()
    draw = rng(21)
    for t in range(steps):
        if t == split:
            state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}, optimizer.state_dict()
            model, optimizer = make()
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        x = Tensor(draw.normal(size=(4, 3)).astype(np.float32))
        act(model, x)
        optimizer.zero_grad()
        (model(x).sum() - model(-x).square().sum()).backward()
        optimizer.step()
        if t % 2:
            model(x)  # for the generator: u and v have moved for this weight when the next step begins
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def evaluate(model, x):
    model.eval()(x)
    model.train()


def swap(model, x):
    with optim.EMA(model, 0.9).swapped():
        evaluate(model, x)


@pytest.mark.parametrize("act", [lambda model, x: None, evaluate, swap])
def test_a_restored_run_goes_on_bit_for_bit(act):
    whole = training(8, None, act)
    for split in (0, 3, 4):
        other = training(8, split, act)
        assert list(other) == list(whole) and all(np.array_equal(other[name], whole[name]) for name in whole)


def test_copies_go_on_as_the_original():
    layer = spectral_norm(nn.Linear(3, 3, dtype=np.float64))
    layer.weight  # noqa: B018
    others = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for one in (layer, *others):
        one.weight  # noqa: B018
        with no_grad():
            theta(one).copy_(rng(22).normal(size=(3, 3)))
        one.weight  # noqa: B018
    for other in others:
        assert np.array_equal(other.weight.data, layer.weight.data) and other.weight.data is not layer.weight.data
        assert all(map(np.array_equal, u_and_v(other), u_and_v(layer)))
    layer.float()
    assert layer.weight.dtype == np.float32


def test_pytorchs_names():
    layer = spectral_norm(nn.Conv2d(2, 4, 3, dtype=np.float64))
    keys = ["bias", "parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"]
    state = layer.state_dict()
    assert list(state) == keys and [state[k].shape for k in keys] == [(4,), (4, 2, 3, 3), (4,), (18,)]
    assert list(dict(layer.named_parameters())) == keys[:2]
    assert list(spectral_norm(nn.ConvTranspose2d(2, 4, 3)).state_dict().values())[2].shape == (4,)
    older = dict(zip(["bias", "weight_orig", "weight_u", "weight_v"], state.values(), strict=True))
    other = spectral_norm(nn.Conv2d(2, 4, 3, dtype=np.float64))
    other.load_state_dict(older)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(other.state_dict().values(), state.values(), strict=True))
    model = nn.Sequential(weight_norm(nn.Linear(3, 2, dtype=np.float64)))
    keys = ["0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
    assert [(k, t.shape) for k, t in model.state_dict().items()] == list(zip(keys, [(2,), (2, 1), (2, 3)], strict=True))
    g, v = rng(23).normal(size=(2, 1)), rng(24).normal(size=(2, 3))
    model.load_state_dict({"0.bias": np.zeros(2), "0.weight_g": g, "0.weight_v": v})
    np.testing.assert_allclose(model[0].weight.data, g * v / np.linalg.norm(v, axis=1, keepdims=True), rtol=1e-14)
    with pytest.raises(ValueError, match="missing keys 0.parametrizations.weight.original1"):
        model.load_state_dict({"0.bias": np.zeros(2), "0.weight_g": g})
    assert "(parametrizations): ModuleDict" in repr(layer) and "ParametrizationList" in repr(layer)


def test_a_weight_of_zeros_keeps_its_directions():
    """0 / 0 is not a number; but with another weight all is well again."""
    layer = spectral_norm(nn.Linear(3, 2, bias=False))
    before = u_and_v(layer)
    with no_grad():
        theta(layer).zero_()
    with np.errstate(all="ignore"):
        assert np.isnan(layer.weight.data).all()
    assert all(map(np.array_equal, before, u_and_v(layer)))
    with no_grad():
        theta(layer).copy_(np.eye(2, 3))
    assert np.isfinite(layer.weight.data).all()


# ---------------------------------------------------------------------------------------------------------------------
# Weight norm
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 3, None, -1])
def test_weight_norm_begins_with_the_weight_and_learns_length_and_direction(dim):
    layer = nn.Conv2d(2, 3, 2, dtype=np.float64)
    before = layer.weight.data.copy()
    weight_norm(layer, dim=dim)
    g, v = layer.parametrizations.weight.originals()
    np.testing.assert_allclose(layer.weight.data, before, rtol=1e-13)
    assert g.requires_grad and v.requires_grad and np.array_equal(v.data, before)
    axes = None if dim in (None, -1) else tuple(d for d in range(4) if d != dim)
    expected = np.sqrt((before**2).sum(axes, keepdims=axes is not None))
    assert g.shape == expected.shape
    np.testing.assert_allclose(g.data, expected, rtol=1e-13)
    layer(Tensor(rng(25).normal(size=(1, 2, 3, 3)))).square().sum().backward()
    inner = (v.grad.data * v.data).sum(axes)
    assert abs(inner).max() < 1e-10  # the gradient of v stands on v
    with no_grad():
        g.copy_(2 * g.data)
    np.testing.assert_allclose(layer.weight.data, 2 * before, rtol=1e-13)


def test_weight_norm_learns():
    layer = weight_norm(nn.Linear(3, 2, dtype=np.float64))
    optimizer = optim.Adam(layer.parameters(), 0.05)
    x, w = rng(26).normal(size=(64, 3)), rng(27).normal(size=(2, 3))
    for _ in range(300):
        optimizer.zero_grad()
        (layer(Tensor(x)) - Tensor(x @ w.T)).square().mean().backward()
        optimizer.step()
    np.testing.assert_allclose(layer.weight.data, w, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Parametrizations
# ---------------------------------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    """w = upper triangle of θ, mirrored"""

    def forward(self, x):
        upper = x.triu()
        return upper + x.triu(1).T

    def right_inverse(self, w):
        return w.triu()


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class Product(nn.Module):
    """w = a bᵀ, from two tensors"""

    def forward(self, a, b):
        return a.unsqueeze(1) * b

    def right_inverse(self, w):
        return w[:, 0] / w[0, 0], w[0]


def test_a_parametrization_computes_assigns_and_is_removed():
    layer = nn.Linear(3, 3, dtype=np.float64)
    weight = layer.weight
    start = weight.data.copy()
    parametrize.register_parametrization(layer, "weight", Symmetric())
    assert parametrize.is_parametrized(layer) and parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias") and not parametrize.is_parametrized(nn.Linear(1, 1))
    assert theta(layer) is weight and np.array_equal(weight.data, np.triu(start))
    assert np.array_equal(layer.weight.data, np.triu(start) + np.triu(start, 1).T)
    wanted = np.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    layer.weight = Tensor(wanted)
    assert np.array_equal(layer.weight.data, wanted) and np.array_equal(weight.data, np.triu(wanted))
    (layer.weight * Tensor(np.arange(9.0).reshape(3, 3))).sum().backward()
    assert weight.grad.tolist() == [[0, 1 + 3, 2 + 6], [0, 4, 5 + 7], [0, 0, 8]]
    parametrize.remove_parametrizations(layer, "weight")
    assert layer.weight is weight and np.array_equal(weight.data, wanted) and list(layer.state_dict()) == ["bias", "weight"]
    assert not parametrize.is_parametrized(layer) and not hasattr(layer, "parametrizations")
    parametrize.register_parametrization(layer, "weight", Double())
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert np.array_equal(layer.weight.data, wanted)


def test_parametrizations_in_a_row():
    layer = spectral_norm(nn.Linear(3, 3, dtype=np.float64), n_power_iterations=300)
    parametrize.register_parametrization(layer, "weight", Double())
    assert len(layer.parametrizations.weight) == 2
    with no_grad():
        theta(layer).copy_(rng(28).normal(size=(3, 3)))
    np.testing.assert_allclose(np.linalg.svd(layer.weight.data)[1][0], 2, rtol=1e-9)
    with pytest.raises(ValueError, match="Double has no right_inverse: what it computes cannot be assigned to"):
        layer.weight = Tensor(np.eye(3))
    other = nn.Linear(3, 3, dtype=np.float64)
    parametrize.register_parametrization(other, "weight", Double())
    spectral_norm(other)  # of a weight that is computed: u and v follow it all the same, and only once for each value
    with no_grad():
        theta(other).copy_(rng(31).normal(size=(3, 3)))
    for _ in range(300):
        with no_grad():
            theta(other).copy_(theta(other).data * (1 + 1e-9))
        w = other.weight
    np.testing.assert_allclose(np.linalg.svd(w.data)[1][0], 1, rtol=1e-6)
    f = other.parametrizations.weight[1]
    u = f._u.data.copy()
    other.weight  # noqa: B018
    assert np.array_equal(u, f._u.data)


def test_a_parametrization_of_several_tensors_and_of_a_buffer():
    layer = nn.Linear(2, 2, dtype=np.float64)
    with no_grad():
        layer.weight.copy_([[1.0, 2.0], [3.0, 6.0]])
    parametrize.register_parametrization(layer, "weight", Product())
    assert layer.weight.tolist() == [[1, 2], [3, 6]] and layer.parametrizations.weight.original0.tolist() == [1, 3]
    layer.weight = Tensor(np.array([[2.0, 2.0], [1.0, 1.0]]))
    assert layer.weight.tolist() == [[2, 2], [1, 1]]
    with pytest.raises(ValueError, match="'weight' is computed from several tensors"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    layer.parametrizations.weight.requires_grad_(False)
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, Parameter) and not layer.weight.requires_grad and layer.weight.tolist() == [[2, 2], [1, 1]]
    norm = nn.BatchNorm1d(2)
    parametrize.register_parametrization(norm, "running_mean", Double())
    norm.parametrizations.running_mean.original.fill_(3.0)
    assert norm.running_mean.tolist() == [6, 6] and "parametrizations.running_mean.original" in norm.state_dict()
    parametrize.remove_parametrizations(norm, "running_mean")
    assert norm.running_mean.tolist() == [6, 6] and "running_mean" in dict(norm.named_buffers())


class Wrong(nn.Module):
    def forward(self, x):
        return x[:1]

    def right_inverse(self, w):
        return w * 0


@pytest.mark.parametrize(("call", "said"), [
    (lambda m: parametrize.register_parametrization(m, "weight", Wrong()), r"expected Wrong to give \(2, 3\) .* got \(1, 3\)"),
    (lambda m: parametrize.register_parametrization(m, "wait", Double()), "a parameter or buffer of Linear, got 'wait'"),
    (lambda m: parametrize.register_parametrization(m, "in_features", Double()), "got 'in_features'"),
    (lambda m: parametrize.register_parametrization(m, "weight", abs), "expected a Module, got builtin_function"),
    (lambda m: parametrize.remove_parametrizations(m, "weight"), "expected a parametrized tensor of Linear, got 'weight'"),
    (lambda m: spectral_norm(m, "wait"), "spectral_norm: expected a parameter or buffer of Linear, got 'wait'"),
    (lambda m: spectral_norm(m, n_power_iterations=0), "n_power_iterations of at least 1, got 0"),
    (lambda m: spectral_norm(m, dim=2), r"a dimension of a weight of shape \(2, 3\), got 2"),
    (lambda m: weight_norm(m, dim=2), r"a dimension of a weight of shape \(2, 3\), or None, got 2"),
    (lambda m: weight_norm(m, dim=-2), "or None, got -2"),
    (lambda m: (nn.init.zeros_(m.weight), spectral_norm(m)), r"a weight that is not 0 throughout, got zeros of shape \(2, 3\)"),
    (lambda m: (nn.init.zeros_(m.weight), weight_norm(m)), "a direction for each row of weight, got a row of zeros"),
    (lambda m: weight_norm(m, "in_features"), "weight_norm: expected a parameter or buffer of Linear"),
])  # fmt: skip
def test_what_cannot_be_parametrized_is_refused_and_left_alone(call, said):
    m = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in m.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        call(m)
    assert "\n" not in str(caught.value) and list(m.state_dict()) == list(before)
    if "zeros" not in said:
        assert all(np.array_equal(tensor.data, before[name].data) for name, tensor in m.state_dict().items())


def test_what_is_not_there_is_missed_in_the_usual_words():
    class Odd(nn.Module):
        @property
        def broken(self):
            return self.nothing

    for m in (Odd(), spectral_norm(nn.Linear(2, 2))):
        with pytest.raises(AttributeError, match=f"'{type(m).__name__}' object has no attribute 'nothing'"):
            m.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="'nothing'"):  # not 'broken': the property is there
        Odd().broken  # noqa: B018
    assert parametrizations.spectral_norm is spectral_norm


# ---------------------------------------------------------------------------------------------------------------------
# Containers of parameters, and parameters as a vector
# ---------------------------------------------------------------------------------------------------------------------


def test_parameter_list():
    p, q, r = Parameter([1.0]), Parameter([2.0]), Tensor([3.0])
    ps = nn.ParameterList([p, q])
    ps += [r]
    assert len(ps) == 3 and ps[0] is p and ps[-2] is q and isinstance(ps[2], Parameter) and ps[2].tolist() == [3.0]
    assert list(ps.state_dict()) == ["0", "1", "2"] and list(ps)[1] is q and list(ps[1:])[0] is q and len(ps[1:]) == 2
    ps[1] = s = Parameter([5.0])
    ps[-1] = Tensor([6.0])
    assert ps[1] is s and ps[2].tolist() == [6.0] and len(list(ps.parameters())) == 3
    assert ps.append(p) is ps and ps.extend([q]) is ps and len(ps) == 5 and "0: (1,)" in repr(ps)
    for call in (lambda: ps[5], lambda: ps.__setitem__(5, p)):
        with pytest.raises(IndexError):
            call()
    for bad in ([np.ones(1)], Tensor([1.0]), 3):
        with pytest.raises(TypeError, match="ParameterList: expected"):
            nn.ParameterList(bad)


def test_parameter_dict():
    p, q = Parameter([1.0]), Parameter([2.0])
    ps = nn.ParameterDict({"a": p})
    ps["b"] = Tensor([3.0])
    ps.update([("c", q)])
    assert ps["a"] is p and ps.keys() == ["a", "b", "c"] and ps.values()[2] is q and ps.items()[0] == ("a", p)
    assert "a" in ps and "d" not in ps and list(ps) == list(ps.state_dict()) == ["a", "b", "c"] and len(ps) == 3
    assert ps.get("d") is None and ps.get("d", 4) == 4 and ps.get("a") is p
    assert ps.pop("a") is p and len(ps) == 2 and "b: (1,)" in repr(ps)
    del ps["b"]
    ps["c"] = p
    assert list(ps) == ["c"] and ps["c"] is p
    with pytest.raises(KeyError):
        ps["a"]
    with pytest.raises(KeyError):
        del ps["training"]
    with pytest.raises(TypeError, match="ParameterDict: expected parameters or tensors, got int"):
        ps["d"] = 3


def test_parameters_as_a_vector():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    vector = nn.utils.parameters_to_vector(model.parameters())
    expected = np.concatenate([p.data.ravel() for p in model.parameters()])
    assert np.array_equal(vector.data, expected) and vector.shape == (13,)
    (vector * Tensor(np.arange(13, dtype=np.float32))).sum().backward()
    assert model[0].bias.grad.tolist() == [6, 7, 8]
    new = Tensor(np.arange(13, dtype=np.float32))
    nn.utils.vector_to_parameters(new, model.parameters())
    assert model[1].weight.tolist() == [[9, 10, 11]] and model[1].weight.requires_grad
    with pytest.raises(ValueError, match=r"vector_to_parameters: expected a vector of 13 elements, got shape \(12,\)"):
        nn.utils.vector_to_parameters(new[:12], model.parameters())
    with pytest.raises(TypeError, match="expected a tensor, got ndarray"):
        nn.utils.vector_to_parameters(new.data, model.parameters())
    with pytest.raises(TypeError, match="parameters_to_vector: expected tensors, got int"):
        nn.utils.parameters_to_vector([3])


# ---------------------------------------------------------------------------------------------------------------------
# Pads, and dropout of channels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pad", "expected"), [
    (nn.ZeroPad1d(2), [0, 0, 1, 2, 3, 4, 0, 0]),
    (nn.ZeroPad1d((-1, 1)), [2, 3, 4, 0]),
    (nn.ConstantPad1d((1, 2), 0.5), [0.5, 1, 2, 3, 4, 0.5, 0.5]),
    (nn.ReflectionPad1d((2, 1)), [3, 2, 1, 2, 3, 4, 3]),
    (nn.ReplicationPad1d((2, 1)), [1, 1, 1, 2, 3, 4, 4]),
    (nn.CircularPad1d((2, 1)), [3, 4, 1, 2, 3, 4, 1]),
])  # fmt: skip
def test_pads_by_hand(pad, expected):
    x = Tensor([[1.0, 2.0, 3.0, 4.0]])
    assert pad(x).tolist() == [expected] and pad(x.unsqueeze(0)).tolist() == [[expected]]


def test_pads_of_pictures_by_hand():
    x = Tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert nn.ZeroPad2d((1, 0, 0, 1))(x).tolist() == [[[0, 1, 2], [0, 3, 4], [0, 0, 0]]]  # left, right, top, bottom
    assert nn.ConstantPad2d((0, 1, 0, 0), 9.0)(x).tolist() == [[[1, 2, 9], [3, 4, 9]]]
    assert nn.ReflectionPad2d((1, 0, 0, 1))(x).tolist() == [[[2, 1, 2], [4, 3, 4], [2, 1, 2]]]
    assert nn.ReplicationPad2d((1, 0, 0, 1))(x).tolist() == [[[1, 1, 2], [3, 3, 4], [3, 3, 4]]]
    assert nn.CircularPad2d((1, 0, 0, 1))(x).tolist() == [[[2, 1, 2], [4, 3, 4], [2, 1, 2]]]
    assert repr(nn.ZeroPad2d(1)) == "ZeroPad2d((1, 1, 1, 1))" and repr(nn.ReflectionPad1d(1)) == "ReflectionPad1d((1, 1))"
    assert repr(nn.ConstantPad1d(1, 0.5)) == "ConstantPad1d(padding=(1, 1), value=0.5)"
    assert repr(nn.ZeroPad1d(1)) == "ZeroPad1d((1, 1))"


@pytest.mark.parametrize(("call", "said"), [
    (lambda: nn.ReflectionPad2d((1, 2)), r"ReflectionPad2d: expected padding to be one or 4 whole numbers, got \(1, 2\)"),
    (lambda: nn.ZeroPad1d((1.5, 2)), "one or 2 whole numbers"),
    (lambda: nn.ReflectionPad2d(1)(sg.ones(3, 3)), r"an input of 3 or 4 dimensions, got shape \(3, 3\)"),
    (lambda: nn.ReflectionPad1d(3)(sg.ones(1, 3)), "at most 2 cells"),
    (lambda: nn.Dropout2d(1.5), "expected p to be a number from 0 to 1"),
    (lambda: nn.Dropout2d()(sg.ones(3, 3)), r"Dropout2d: expected an input of 3 or 4 dimensions, got shape \(3, 3\)"),
    (lambda: nn.Dropout1d().eval()(sg.ones(3)), "an input of 2 or 3 dimensions"),
])  # fmt: skip
def test_refusals_of_pads_and_dropouts(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(("layer", "shape", "channels"), [
    (nn.Dropout1d, (200, 5, 3), (200, 5)),
    (nn.Dropout1d, (1000, 3), (1000,)),
    (nn.Dropout2d, (200, 5, 3, 2), (200, 5)),
    (nn.Dropout2d, (200, 5, 3), (200, 5)),
    (nn.Dropout3d, (200, 5, 3, 2, 2), (200, 5)),
    (nn.Dropout3d, (1000, 3, 2, 2), (1000,)),
])  # fmt: skip
def test_dropout_of_channels(layer, shape, channels):
    """1000 channels, each dropped as a whole with probability 0.3; the others times 1 / 0.7."""
    dropout = layer(0.3, generator=rng(29))
    x = Tensor(rng(30).uniform(1, 2, shape), requires_grad=True)
    y = dropout(x)
    ratio = (y.data / x.data).reshape(*channels, -1)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-12)
    kept = ratio[..., 0] != 0
    np.testing.assert_allclose(ratio[..., 0][kept], 1 / 0.7, rtol=1e-12)
    assert abs((~kept).mean() - 0.3) < 4 * np.sqrt(0.21 / 1000)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, y.data / x.data, rtol=1e-12)
    assert not np.array_equal(dropout(x).data, y.data)
    assert dropout.eval()(x) is x and layer(0.0)(x) is x and not layer(1.0)(x).data.any()
