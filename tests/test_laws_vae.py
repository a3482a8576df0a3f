r"""Laws behind the variational autoencoder: what (1), (2) and (3) of models/vae.py claim, shown to hold."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

import scratchgen as sg
from scratchgen import functional as F
from scratchgen.models import VAE, VAEConfig


def normal(x, mean, var):
    return np.exp(-0.5 * (x - mean) ** 2 / var) / np.sqrt(2 * np.pi * var)


@pytest.mark.parametrize(("mu", "var"), [(0.0, 1.0), (1.3, 0.2), (-2.0, 3.0), (0.1, 0.01)])
def test_kl_in_closed_form_is_quadrature_is_monte_carlo(mu, var):
    r"""KL(N(μ, σ²) ‖ N(0, 1)) = ∫ q log(q/p) = ½ (μ² + σ² − 1 − log σ²)"""
    closed = F.kl_standard_gaussian(np.array(mu), np.array(math.log(var))).item()

    sd = math.sqrt(var)
    log_ratio = lambda x: stats.norm.logpdf(x, mu, sd) - stats.norm.logpdf(x)  # noqa: E731
    quadrature, _ = integrate.quad(lambda x: normal(x, mu, var) * log_ratio(x), mu - 12 * sd, mu + 12 * sd, epsabs=1e-12)
    assert math.isclose(closed, quadrature, rel_tol=1e-9, abs_tol=1e-9)

    draws = log_ratio(np.random.default_rng(0).normal(mu, sd, 200_000))
    assert abs(draws.mean() - closed) < 5 * draws.std() / math.sqrt(len(draws)) + 1e-12


def test_kl_between_two_gaussians_is_quadrature():
    r"""KL(N(μ_p, σ_p²) ‖ N(μ_q, σ_q²)) = ∫ p log(p/q)"""
    mp, vp, mq, vq = 0.7, 0.5, -0.4, 2.0
    closed = F.kl_gaussian(np.array(mp), np.log(np.array(vp)), np.array(mq), np.log(np.array(vq))).item()
    ratio = lambda x: stats.norm.logpdf(x, mp, vp**0.5) - stats.norm.logpdf(x, mq, vq**0.5)  # noqa: E731
    quadrature, _ = integrate.quad(lambda x: normal(x, mp, vp) * ratio(x), -9, 9, epsabs=1e-12)
    assert math.isclose(closed, quadrature, rel_tol=1e-9)


def test_kl_between_two_bernoullis_is_the_sum_over_both_outcomes():
    r"""KL(B(p) ‖ B(q)) = p log(p/q) + (1 − p) log((1 − p)/(1 − q))"""
    a, b = 0.8, -1.7
    p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert math.isclose(F.kl_bernoulli(np.array(a), np.array(b)).item(), expected, rel_tol=1e-12)


def test_likelihoods_are_densities():
    r"""∫ N(x; μ, σ²) dx = 1  and  B(0) + B(1) = 1"""
    density = lambda x: math.exp(F.gaussian_log_prob(np.array(x), np.array(0.3), np.array(-0.9)).item())  # noqa: E731
    assert math.isclose(integrate.quad(density, -8, 8)[0], 1, rel_tol=1e-8)
    outcomes = F.bernoulli_log_prob(np.array([0.0, 1.0]), np.array([2.3, 2.3]))
    assert math.isclose(np.exp(outcomes.data).sum(), 1, rel_tol=1e-12)


@pytest.mark.parametrize("logit", [-40.0, -1.0, -1e-3, 0.0, 1e-9, 0.3, 0.999, 1.001, 6.0, 40.0])
def test_the_continuous_bernoulli_is_a_density_whose_mean_is_known(logit):
    r"""∫₀¹ p(x) dx = 1;  ∫₀¹ x p(x) dx = A′(l);  log C(λ) = log(2 artanh(1 − 2λ) / (1 − 2λ)) beside the Bernoulli"""
    a = sg.tensor(np.array(logit), requires_grad=True)
    density = lambda x: math.exp(F.continuous_bernoulli_log_prob(np.array(x), a).item())  # noqa: E731
    peak = [1 - min(1, 1 / abs(logit))] if logit > 1 else [min(1, 1 / abs(logit))] if logit < -1 else None
    assert math.isclose(integrate.quad(density, 0, 1, points=peak, epsabs=1e-13)[0], 1, rel_tol=1e-10)
    mean, _ = integrate.quad(lambda x: x * density(x), 0, 1, points=peak, epsabs=1e-13)
    (slope,) = sg.grad(F.continuous_bernoulli_log_prob(np.array(0.0), a), a)
    assert math.isclose(-slope.item(), mean, rel_tol=1e-9)
    if 1e-6 < abs(logit) < 30:
        p = 1 / (1 + math.exp(-logit))
        beside = F.continuous_bernoulli_log_prob(np.array(0.7), a) - F.bernoulli_log_prob(np.array(0.7), a)
        assert math.isclose(beside.item(), math.log(2 * math.atanh(1 - 2 * p) / (1 - 2 * p)), rel_tol=1e-9)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_discretized_logistic_gives_its_levels_a_chance_of_1_together(levels):
    r"""Σ_i P(i/(L − 1)) = 1, whatever μ and s, and P is the difference of the distribution function at the edges of a bin"""
    x = np.arange(levels) / (levels - 1)
    for mean, scale in [(0.3, 0.1), (0.5, 1e-3), (-2.0, 0.4), (1.2, 5.0), (0.0, 1e-6), (40.0, 1.0)]:
        p = np.exp(F.discretized_logistic_log_prob(x, np.array(mean), np.log(np.array(scale)), levels).data)
        assert math.isclose(p.sum(), 1, rel_tol=1e-9)
        edges = stats.logistic.cdf((np.arange(levels - 1) + 0.5) / (levels - 1), mean, scale)
        np.testing.assert_allclose(p, np.diff(np.concatenate([[0], edges, [1]])), atol=1e-12)
    with np.errstate(over="raise", divide="raise", invalid="raise"):  # there the difference itself is 0 in any arithmetic
        far = F.discretized_logistic_log_prob(np.array([0.5]), np.array([0.0]), np.log(np.array([1e-4])), levels)
    assert math.isclose(far.item(), -(0.5 - 0.5 / (levels - 1)) / 1e-4, abs_tol=1)


class LinearGaussian:
    r"""z ~ N(0, 1),  x | z ~ N(w z, s²):  so x ~ N(0, w² + s²) and z | x ~ N(w x / (w² + s²), s² / (w² + s²))"""

    w, s2 = 1.7, 0.6

    def log_evidence(self, x):
        return stats.norm.logpdf(x, 0, math.sqrt(self.w**2 + self.s2))

    def posterior(self, x):
        total = self.w**2 + self.s2
        return self.w * x / total, self.s2 / total

    def elbo(self, x, mean, var):
        r"""E_q[log p(x | z)] − KL(q ‖ p), the expectation by Gauss–Hermite quadrature, exact for this integrand"""
        nodes, weights = np.polynomial.hermite_e.hermegauss(20)
        z = mean + math.sqrt(var) * nodes
        log_p = F.gaussian_log_prob(np.array(x), self.w * z, np.full_like(z, math.log(self.s2)))
        expected = float(np.sum(weights * log_p.data) / math.sqrt(2 * math.pi))
        return expected - F.kl_standard_gaussian(np.array(mean), np.array(math.log(var))).item()


def test_elbo_is_a_bound_and_tight_at_the_true_posterior():
    r"""log p(x) = ELBO + KL(q ‖ p(z | x)) ≥ ELBO, with equality for q = p(z | x)"""
    model = LinearGaussian()
    rng = np.random.default_rng(1)
    for x in (-2.0, 0.3, 1.9):
        mean, var = model.posterior(x)
        assert math.isclose(model.elbo(x, mean, var), model.log_evidence(x), rel_tol=1e-12)
        for _ in range(20):
            m, v = rng.normal(), rng.uniform(0.05, 3)
            gap = F.kl_gaussian(*(np.array(t) for t in (m, math.log(v), mean, math.log(var)))).item()
            assert model.elbo(x, m, v) < model.log_evidence(x)
            assert math.isclose(model.log_evidence(x) - model.elbo(x, m, v), gap, rel_tol=1e-9)


def test_importance_weighted_bounds_rise_with_k_towards_the_evidence():
    r"""L_k = E log (1/k) Σ_i p(x, z_i) / q(z_i),   L_1 ≤ L_2 ≤ … ≤ log p(x).   Burda, Grosse & Salakhutdinov 2015"""
    model, x, rng = LinearGaussian(), 1.2, np.random.default_rng(0)
    mean, var = 0.2, 1.1  # not the posterior
    z = rng.normal(mean, math.sqrt(var), (40_000, 64))
    joint = stats.norm.logpdf(x, model.w * z, math.sqrt(model.s2)) + stats.norm.logpdf(z)
    log_w = joint - stats.norm.logpdf(z, mean, math.sqrt(var))
    bounds = [float((sg.logsumexp(log_w[:, :k], 1) - math.log(k)).mean().item()) for k in (1, 2, 8, 64)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1] - 0.1
    assert bounds[-1] < model.log_evidence(x) + 1e-3
    assert math.isclose(bounds[-1], model.log_evidence(x), abs_tol=2e-2)


def test_reparameterised_and_score_function_gradients_agree_in_the_mean():
    r"""∂/∂θ E_{N(μ, σ²)}[f(z)] = E[f'(z) ∂z/∂θ] = E[f(z) ∂ log q(z)/∂θ],  the first with far less variance"""
    f = lambda z: (z * z).sin() + z  # noqa: E731
    rng = np.random.default_rng(0)
    n = 400_000
    mu = sg.tensor(np.full(n, 0.4), requires_grad=True)
    log_var = sg.tensor(np.full(n, math.log(0.3)), requires_grad=True)
    z = mu + sg.exp(0.5 * log_var) * sg.tensor(rng.standard_normal(n))
    path = [g.data for g in sg.grad(f(z).sum(), [mu, log_var])]

    z = sg.tensor(z.data)
    log_q = F.gaussian_log_prob(z, mu, log_var)
    score = [g.data for g in sg.grad((f(z) * log_q).sum(), [mu, log_var])]

    for a, b in zip(path, score, strict=True):
        error = math.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 5 * error
    assert path[0].var() < score[0].var()

    expected = lambda m: integrate.quad(lambda t: (math.sin(t * t) + t) * normal(t, m, 0.3), -6, 6, limit=200)[0]  # noqa: E731
    h = 1e-4
    assert abs(path[0].mean() - (expected(0.4 + h) - expected(0.4 - h)) / (2 * h)) < 5 * path[0].std() / math.sqrt(n)


def test_the_models_elbo_is_the_bound_of_its_own_networks():
    r"""The two terms that VAE.elbo returns are (2), worked out pixel by pixel"""
    sg.manual_seed(0)
    model = VAE(VAEConfig((1, 4, 4), "mlp", hidden=8, latent=2)).double()
    x = (np.random.default_rng(0).random((3, 1, 4, 4)) < 0.5).astype(np.float64)
    log_likelihood, kl = model.elbo(sg.tensor(x), generator=np.random.default_rng(7))
    mean, log_var = (t.data for t in model.encoder(sg.tensor(x)))
    z = mean + np.exp(0.5 * log_var) * np.random.default_rng(7).standard_normal((3, 2))
    p = 1 / (1 + np.exp(-model.decoder(sg.tensor(z)).data))
    np.testing.assert_allclose(log_likelihood.data, np.where(x == 1, np.log(p), np.log(1 - p)).sum((1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(kl.data, 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1), rtol=1e-12)
