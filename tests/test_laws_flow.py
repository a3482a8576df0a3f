r"""Laws of flows: velocities in closed form, the regression and its twin, solvers, likelihoods, guidance, diffusion."""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import nn
from scratchgen.models import flow
from scratchgen.models.flow import PATHS, Flow, FlowConfig, ddim, euler, heun


def gaussian(m, s, path=flow.linear):
    r"""v(x, t) for data N(m, s²), by which N(0, 1) is moved to N(m, s²).

    x_t = α x + σ ε ~ N(α m, α² s² + σ²), and v = E[α' x + σ' ε | x_t] is linear in x_t:
    v = α' m + (α α' s² + σ σ') / (α² s² + σ²) · (x_t − α m)
    """

    def v(x, t):
        p = path(t)
        slope = (p.alpha * p.alpha_slope * s**2 + p.sigma * p.sigma_slope) / (p.alpha**2 * s**2 + p.sigma**2)
        return p.alpha_slope * m + slope * (x - p.alpha * m)

    return v


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_velocity_of_gaussian_data_is_the_mean_of_those_that_pass(name, t):
    r"""E[α' x + σ' ε | x_t = c], by averaging over pairs that pass near c, is the closed form"""
    rng = np.random.default_rng(0)
    x, noise, p = 2 + 0.5 * rng.standard_normal(400_000), rng.standard_normal(400_000), PATHS[name](t)
    x_t, u = p.point(x, noise), p.velocity(x, noise)
    for c in np.quantile(x_t, [0.2, 0.5, 0.8]):
        near = abs(x_t - c) < 0.02
        error = u[near].std() / math.sqrt(near.sum())
        assert abs(u[near].mean() - gaussian(2, 0.5, PATHS[name])(x_t[near].mean(), t)) < 5 * error


@pytest.mark.parametrize("name", PATHS)
def test_the_slopes_of_a_path_are_its_derivatives_and_its_ends_solve_it(name):
    r"""α', σ' by differences; (x, ε) → (x_t, u) → (x, ε); and u from ε alone"""
    t, h = np.linspace(0.05, 0.95, 7), 1e-6
    path = PATHS[name]
    here, there, back = path(t), path(t + h), path(t - h)
    np.testing.assert_allclose((there.alpha - back.alpha) / (2 * h), here.alpha_slope + 0 * t, rtol=1e-8)
    np.testing.assert_allclose((there.sigma - back.sigma) / (2 * h), here.sigma_slope + 0 * t, rtol=1e-8)
    assert (path(0).alpha, path(1).sigma) == pytest.approx((0, 0), abs=1e-15)
    assert (path(1).alpha, path(0).sigma) == pytest.approx((1, 1))
    x, noise = np.random.default_rng(0).standard_normal((2, 7))
    x_t, u = here.point(x, noise), here.velocity(x, noise)
    np.testing.assert_allclose(here.ends(x_t, u), (x, noise), rtol=1e-12)
    np.testing.assert_allclose(here.velocity_from_noise(x_t, noise), u, rtol=1e-11)


def test_to_foretell_noise_is_to_foretell_velocity_with_another_weight():
    r"""‖v̂ − u‖² = ‖ε̂ − ε‖² / t² on the linear path: the same regression, near noise held more important"""
    rng = np.random.default_rng(0)
    x, noise, wrong = rng.standard_normal((3, 50))
    t = rng.uniform(0.05, 1, 50)
    p = flow.linear(t)
    v = p.velocity_from_noise(p.point(x, noise), wrong)
    np.testing.assert_allclose((v - p.velocity(x, noise)) ** 2, (wrong - noise) ** 2 / t**2, rtol=1e-9)


def test_the_regression_on_pairs_has_the_gradient_of_that_on_the_field():
    r"""∇_θ E‖v̂ − u‖² = ∇_θ E‖v̂ − v‖², v = E[u | x_t]: exact sums over a discrete toy of four pairs through three points

    Data −1, 1 and noise −1, 1, each pair equally likely: at t = ½ the pairs (−1, 1) and (1, −1) both pass through 0.
    """
    pairs = [(x, e) for x in (-1.0, 1.0) for e in (-1.0, 1.0)]
    theta = sg.tensor([0.3, -0.7, 0.2], dtype=np.float64, requires_grad=True)
    field = lambda x: theta[0] + theta[1] * x + theta[2] * math.sin(2 * x)  # noqa: E731
    p = flow.linear(0.5)
    passing = {}
    for x, e in pairs:
        passing.setdefault(p.point(x, e), []).append(p.velocity(x, e))
    assert sorted(passing) == [-1.0, 0.0, 1.0]
    assert sum(map(len, passing.values())) == len(pairs)
    on_pairs = sum((field(p.point(x, e)) - p.velocity(x, e)) ** 2 for x, e in pairs) / 4
    on_field = sum(len(us) * (field(at) - np.mean(us)) ** 2 for at, us in passing.items()) / 4
    np.testing.assert_allclose(sg.grad(on_pairs, theta)[0].data, sg.grad(on_field, theta)[0].data, rtol=1e-14)
    spread = sum(np.var(us) * len(us) for us in passing.values()) / 4
    assert spread > 0.5  # the constant by which the two differ
    assert on_pairs.item() == pytest.approx(on_field.item() + spread)


@pytest.mark.parametrize(("solve", "order"), [(euler, 1), (heun, 2)])
def test_the_error_of_a_solver_falls_as_its_order(solve, order):
    r"""halving h divides the error at t = 1 by 2 (Euler), by 4 (Heun); the end is the transport map x ↦ m + s x, exact"""
    x, v = np.linspace(-2, 2, 9), gaussian(2.0, 0.5)
    errors = [abs(solve(v, x, np.linspace(0, 1, n + 1))[-1] - (2 + 0.5 * x)).max() for n in (20, 40, 80, 160)]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(rates, order, atol=0.12)


def test_one_step_of_euler_ends_on_a_straight_way():
    r"""where noise and data are coupled as x = ε + m, every way is straight and no two cross: v = m, and one step is exact"""
    assert euler(gaussian(3.0, 1.0), np.array([0.5]), np.array([0.0, 1.0]))[-1][0] != pytest.approx(3.5)  # independent pairs
    assert euler(lambda x, t: np.full_like(x, 3.0), np.array([0.5]), np.array([0.0, 1.0]))[-1][0] == 3.5


@pytest.mark.parametrize("name", PATHS)
def test_ddim_is_euler_on_another_clock(name):
    r"""with x̄ = x/α and τ = σ/α, dx̄/dτ = ε̂: Euler's step in (x̄, τ) is DDIM's in (x, t), to rounding"""
    path, times = PATHS[name], np.linspace(0.2, 1, 9)
    v = gaussian(2.0, 0.5, path)
    noise = lambda x, t: path(t).ends(x, v(x, t))[1]  # noqa: E731
    x = np.random.default_rng(0).standard_normal(5)
    clock = [path(t).sigma / path(t).alpha for t in times]
    scaled = x / path(times[0]).alpha
    for i, t in enumerate(times[:-1]):
        scaled = scaled + (clock[i + 1] - clock[i]) * noise(path(t).alpha * scaled, t)
    np.testing.assert_allclose(ddim(noise, path, x, times)[-1], scaled * path(1).alpha, rtol=1e-12)


def test_ddim_ends_where_heun_ends():
    v = gaussian(2.0, 0.5)
    noise = lambda x, t: flow.linear(t).ends(x, v(x, t))[1]  # noqa: E731
    times = np.linspace(0.01, 1, 400)
    x = np.linspace(-2, 2, 5)
    np.testing.assert_allclose(ddim(noise, flow.linear, x, times)[-1], heun(v, x, times)[-1], atol=0.01)


class Closed(nn.Module):
    """In place of a network, the closed form for data N(m, diag s²): the velocity, or the noise that belongs to it."""

    m, s = np.array([1.0, -2.0]), np.array([0.5, 1.5])

    def __init__(self, predicts):
        super().__init__()
        self.predicts = predicts
        self.one = nn.Parameter(sg.tensor(1.0, dtype=np.float64))  # which gives the model its dtype

    def forward(self, x, t, y):
        t = float(t.data[0])
        slope = (t * self.s**2 - (1 - t)) / (t**2 * self.s**2 + (1 - t) ** 2)
        v = self.one * (sg.tensor(self.m) + (x - sg.tensor(t * self.m)) * sg.tensor(slope))
        return v if self.predicts == "velocity" else x - t * v


def closed(predicts="velocity"):
    model = Flow(FlowConfig(shape=(2,), hidden=4, predicts=predicts))
    model.net = Closed(predicts)
    return model


def test_the_likelihood_by_the_divergence_is_that_of_the_gaussian():
    r"""log p(x) = log N(x(0)) − ∫ div v dt, against the density of N(m, diag s²)"""
    model = closed()
    x = np.random.default_rng(0).normal(Closed.m, Closed.s, (6, 2))
    exact = (-((x - Closed.m) ** 2) / (2 * Closed.s**2) - np.log(Closed.s) - math.log(2 * math.pi) / 2).sum(1)
    np.testing.assert_allclose(model.log_likelihood(x, steps=100), exact, atol=2e-3)
    coarse = abs(model.log_likelihood(x, steps=25) - exact).max()
    fine = abs(model.log_likelihood(x, steps=50) - exact).max()
    assert 3.2 < coarse / fine < 5  # of order 2, as Heun's method is


def test_samples_of_the_closed_field_have_the_mean_and_spread_of_the_data():
    model = closed()
    x = model.generate(4000, generator=np.random.default_rng(0), steps=40)
    np.testing.assert_allclose(x.mean(0), Closed.m, atol=5 * 1.5 / math.sqrt(4000))
    np.testing.assert_allclose(x.std(0), Closed.s, rtol=0.06)


def test_guidance_of_one_is_the_class_alone_and_of_zero_none():
    r"""(6) at w = 1 is v(x, t | y), at w = 0 v(x, t); it is linear in w"""
    sg.manual_seed(0)
    model = Flow(FlowConfig(shape=(3,), hidden=8, classes=2)).double()
    x, y = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 1, 1, 0])
    at = lambda w: model.velocity(x, 0.3, y, guidance=w)  # noqa: E731
    told = model.net(sg.tensor(x), sg.tensor(np.full(4, 0.3)), sg.tensor(y)).data
    free = model.net(sg.tensor(x), sg.tensor(np.full(4, 0.3)), sg.tensor(np.full(4, 2))).data
    np.testing.assert_array_equal(at(1.0), told)
    np.testing.assert_array_equal(at(0.0), free)
    assert abs(told - free).max() > 1e-3
    np.testing.assert_allclose(at(3.0), free + 3 * (told - free), rtol=1e-12)
    np.testing.assert_array_equal(model.velocity(x, 0.3), free)  # no class is asked for


def test_a_flow_that_foretells_noise_moves_points_as_one_that_foretells_velocity():
    r"""the same field in both words leads to the same end, guidance included, since (6) is linear"""
    both = [closed("velocity"), closed("noise")]
    x = np.random.default_rng(0).standard_normal((5, 2))
    ends = [model.transport(x, steps=200)[-1] for model in both]
    np.testing.assert_allclose(ends[0], ends[1], atol=5e-3)  # the second begins at t = 0.001
    np.testing.assert_allclose(both[0].noise(x, 0.4), both[1].noise(x, 0.4), rtol=1e-10)


def test_training_finds_the_field_of_a_gaussian():
    r"""after some hundred steps the network is near the closed form wherever points pass"""
    sg.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Flow(FlowConfig(shape=(1,), hidden=32, times="uniform", lr=5e-3))
    optimizers = model.optimizers()
    for _ in range(600):
        x = (2 + 0.5 * rng.standard_normal((256, 1))).astype(np.float32)
        model.training_step((x, None), optimizers)
    made = model.generate(4000, generator=rng, steps=20)
    assert abs(made.mean() - 2) < 0.06
    assert abs(made.std() - 0.5) < 0.06
    x = np.linspace(-1, 1, 9)[:, None]
    np.testing.assert_allclose(model.velocity(x + 1.0, 0.5), gaussian(2.0, 0.5)(x + 1.0, 0.5), atol=0.25)
