r"""Laws behind the variational autoencoder: what (1), (2) and (3) of models/vae.py claim, shown to hold."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

import scratchgen as sg
from scratchgen import functional as F
from scratchgen import nn
from scratchgen.models import VAE, VAEConfig
from scratchgen.models.likelihoods import LIKELIHOODS, likelihood


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


@pytest.mark.parametrize("sigma", [1.0, 0.1])
def test_how_far_both_gradients_scatter(sigma):
    r"""f(z) = z², z = μ + σε: ∂/∂μ E f = 2μ, estimated by 2z, of variance 4σ², or by z² (z − μ)/σ², of

        Var = E (μ + σε)⁴ ε² / σ² − 4μ² = μ⁴/σ² + 14 μ² + 15 σ²

    which grows without bound as σ falls, where the first vanishes: at σ = 0.1 and μ = 0.7 it is 775 times as large.
    """
    m, n = 0.7, 400_000
    noise = np.random.default_rng(0).standard_normal(n)
    mu = sg.tensor(np.full(n, m), requires_grad=True)
    (path,) = sg.grad((mu + sigma * sg.tensor(noise)).square().sum(), mu)
    z, log_var = m + sigma * noise, np.full(n, 2 * math.log(sigma))
    (score,) = sg.grad((sg.tensor(z) ** 2 * F.gaussian_log_prob(sg.tensor(z), mu, sg.tensor(log_var))).sum(), mu)
    variances = 4 * sigma**2, m**4 / sigma**2 + 14 * m**2 + 15 * sigma**2
    for g, variance in zip((path.data, score.data), variances, strict=True):
        assert abs(g.mean() - 2 * m) < 5 * math.sqrt(variance / n)
        assert math.isclose(g.var(), variance, rel_tol=0.03)


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


def test_both_forms_of_the_kl_have_one_mean():
    r"""E_q[log q(z | x) − log p(z)] = KL(q ‖ p), latent by latent"""
    n = 100_000
    mean, log_var = np.tile([0.7, -1.5], (n, 1)), np.tile([-0.9, 0.4], (n, 1))
    sampled, analytic = (VAE(VAEConfig((1, 4, 4), hidden=2, latent=2, kl=kl)) for kl in ("sampled", "analytic"))
    z = F.reparameterize(mean, log_var, np.random.default_rng(0).standard_normal((n, 2)))
    each = sampled.kl(z, sg.tensor(mean), sg.tensor(log_var)).data
    closed = analytic.kl(z, sg.tensor(mean), sg.tensor(log_var)).data[0]
    np.testing.assert_array_less(np.abs(each.mean(0) - closed), 5 * each.std(0) / math.sqrt(n))


# ---------------------------------------------------------------------------------------------------------------------
# Likelihoods: what is drawn from one has the mean, and the frequencies, that it says
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_what_a_likelihood_draws_is_as_likely_as_it_says(name):
    r"""The mean of draws is E[x], and E log p(x) over draws is −entropy, found by summing or integrating p log p"""
    p = likelihood(name, sigma=0.2, sigma_min=0.05, levels=9)
    n, rng = 40_000, np.random.default_rng(0)
    h = np.tile(np.array([0.7, -1.2][: p.outputs]).reshape(-1, 1, 1), (n, 1, 1, 1))
    x = p.sample(sg.tensor(h), generator=rng)
    assert x.shape == (n, 1, 1, 1)
    one = lambda values: np.exp(p.log_prob(sg.tensor(values.reshape(-1, 1, 1, 1)), sg.tensor(h[: len(values)])).data.ravel())  # noqa: E731
    if p.density:
        nodes, weights = np.polynomial.legendre.leggauss(400)
        low, high = (0, 1) if name == "continuous-bernoulli" else (-4, 6)
        grid, weights = (high - low) * (nodes + 1) / 2 + low, weights * (high - low) / 2
    else:
        grid = np.array([0.0, 1.0]) if name == "bernoulli" else np.arange(9) / 8
        weights = np.ones(len(grid))
    chance = one(grid)
    assert math.isclose(weights @ chance, 1, rel_tol=1e-9)
    mean, entropy = weights @ (chance * grid), -weights @ (chance * np.log(np.maximum(chance, 1e-300)))
    log_p = p.log_prob(x, sg.tensor(h)).data
    assert abs(x.data.mean() - mean) < 5 * x.data.std() / math.sqrt(n)
    assert abs(-log_p.mean() - entropy) < 5 * log_p.std() / math.sqrt(n) + 1e-9
    assert math.isclose(p.nll(x, sg.tensor(h)).item(), -log_p.sum(), rel_tol=1e-9)
    if name != "discretized-logistic":  # of which the mean is that of the likeliest level
        assert math.isclose(p.mean(sg.tensor(h[:1])).item(), mean, rel_tol=1e-6)


def test_the_learned_scale_has_a_floor_that_it_can_leave_again():
    r"""σ² = σ_min² + e^h ≥ σ_min², and ∂σ²/∂h > 0 however small e^h"""
    p = likelihood("learned-gaussian", sigma=1.0, sigma_min=0.05, levels=2)
    h = sg.tensor(np.array([0.0, -12.0]).reshape(1, 2, 1, 1), requires_grad=True)
    x = np.full((1, 1, 1, 1), 0.2)  # four floors from μ = 0
    log_p = p.log_prob(sg.tensor(x), h)
    assert math.isclose(log_p.item(), stats.norm.logpdf(0.2, 0, math.sqrt(0.05**2 + math.exp(-12))), rel_tol=1e-9)
    (slope,) = sg.grad(log_p.sum(), h)
    assert slope.data[0, 1] > 0


def test_free_bits_cost_nothing_and_pull_at_nothing_below_their_floor():
    r"""β Σ_j max(λ, KL_j): below λ the gradient is that of −log p(x | z) alone, the KL_j being means over the batch"""
    x = np.random.default_rng(0).random((6, 1, 4, 4)).round()
    slopes = {}
    for free in (0.0, 1e3, "of the batch"):
        sg.manual_seed(0)
        model = VAE(VAEConfig((1, 4, 4), hidden=8, latent=3)).double()
        each = model.kl(*model(sg.tensor(x), generator=np.random.default_rng(1))[1:]).data  # (6, 3)
        level = float(np.sort(each.mean(0))[1]) * 1.0001 if free == "of the batch" else free  # two below it, one above
        model.config = VAEConfig((1, 4, 4), hidden=8, latent=3, free_bits=level)
        sg.manual_seed(2)
        cost, nll, kl = model._weighed(sg.tensor(x), None)
        rows = [model.encoder.log_var.bias, model.encoder.mean.bias]
        slopes[free] = [g.data for g in sg.grad(cost, rows, retain_graph=True)]
        alone = [g.data for g in sg.grad(nll, rows, retain_graph=True)]
        of_kl = [g.data for g in sg.grad(kl, rows)]
        above = each.mean(0) > level
        for slope, a, b in zip(slopes[free], alone, of_kl, strict=True):
            np.testing.assert_allclose(slope, a + above * b, rtol=1e-9, atol=1e-12)
        if free == "of the batch":
            assert above.sum() == 1 and (each > level).any(0).sum() > 1, "single pictures are above, their mean is not"
        assert math.isclose((cost - nll).item(), 6 * np.maximum(each.mean(0), level).sum(), rel_tol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The linear model, of which all is known: p(x) = N(b, W Wᵀ + s² I), and p(z | x) Gaussian.  Tipping & Bishop 1999
# ---------------------------------------------------------------------------------------------------------------------


class LinearEncoder(nn.Module):
    def __init__(self, pixels, latent):
        super().__init__()
        self.mean = nn.Linear(pixels, latent)
        self.log_var = nn.Parameter(np.zeros(latent, np.float32))

    def forward(self, x, c=None):
        mean = self.mean(x.flatten(1))
        self.gave = mean, self.log_var.expand(mean.shape)
        return self.gave


class LinearDecoder(nn.Module):
    def __init__(self, pixels, latent):
        super().__init__()
        self.fc = nn.Linear(latent, pixels)

    def forward(self, z, c=None):
        return self.fc(z).reshape(len(z), 1, 1, -1)


def linear_model(pixels=6, latent=2, sigma=0.5, seed=0, **settings):
    sg.manual_seed(seed)
    model = VAE(VAEConfig((1, 1, pixels), hidden=2, latent=latent, likelihood="gaussian", sigma=sigma, **settings))
    model.encoder, model.decoder = LinearEncoder(pixels, latent), LinearDecoder(pixels, latent)
    return model.double()


def exact(model, x):
    """log N(x; b, W Wᵀ + s² I)"""
    w, b = model.decoder.fc.weight.data, model.decoder.fc.bias.data
    cov = w @ w.T + model.config.sigma**2 * np.eye(len(w))
    return stats.multivariate_normal.logpdf(x.reshape(len(x), -1), b, cov)


def test_bounds_of_a_linear_model_rise_to_its_likelihood():
    r"""ELBO = L_1 ≤ L_5 ≤ L_50 ≤ log p(x), and L_5000 is log p(x) to a few thousandths of a nat"""
    model, x = linear_model(), np.random.default_rng(0).normal(0, 0.7, (4, 1, 1, 6))
    w, b = model.decoder.fc.weight.data, model.decoder.fc.bias.data
    cov = np.linalg.inv(w.T @ w / 0.25 + np.eye(2))  # of p(z | x), of which q gets the mean nearly, and a larger variance
    model.encoder.mean.weight.data, model.encoder.mean.bias.data = cov @ w.T / 0.25, cov @ w.T @ -b / 0.25 + 0.3
    model.encoder.log_var.data = np.log(1.5 * np.diag(cov))
    found, error = {}, None
    for k in (1, 5, 50, 5000):
        repeats = max(1, 4000 // k)
        many = x if k == 5000 else np.tile(x, (repeats, 1, 1, 1))
        log_p = model.log_likelihood(many, samples=k, generator=np.random.default_rng(k)).reshape(-1, 4)
        found[k], error = log_p.mean(0), log_p.std(0) / math.sqrt(len(log_p)) if k == 1 else error
    truth = exact(model, x)
    elbo = np.array([(a - b).data for a, b in (model.elbo(sg.tensor(x)) for _ in range(1000))])
    np.testing.assert_array_less(np.abs(found[1] - elbo.mean(0)), 5 * (error + elbo.std(0) / math.sqrt(1000)))
    assert (found[1] < found[5] - 0.02).all() and (found[5] < found[50]).all() and (found[50] < truth + 0.02).all()
    np.testing.assert_allclose(found[5000], truth, atol=0.02)


def test_the_likelihood_does_not_depend_on_how_many_samples_are_drawn_at_once(monkeypatch):
    model, x = linear_model(), np.random.default_rng(0).normal(0, 0.7, (3, 1, 1, 6))
    whole = model.log_likelihood(x, samples=103, generator=np.random.default_rng(1))
    monkeypatch.setattr("scratchgen.models.vae.AT_ONCE", 3 * 6 * 10)
    widest = []
    real = model.decoder.forward
    model.decoder.forward = lambda z, c=None: (widest.append(len(z)), real(z, c))[1]
    np.testing.assert_allclose(model.log_likelihood(x, samples=103, generator=np.random.default_rng(1)), whole, rtol=1e-12)
    assert max(widest) == 30 and sum(widest) == 309


def test_training_reaches_probabilistic_principal_components():
    r"""The ELBO's best is log p(x) of the W with W Wᵀ + s² I = U diag(λ_1, …, λ_q, s², …) Uᵀ,  s² the mean of what is left"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 2)) @ rng.normal(size=(2, 5)) / 2 + 0.4 * rng.normal(size=(256, 5)) + 0.3
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    s2 = values[:3].mean()
    best = vectors[:, 3:] * (values[3:] - s2) @ vectors[:, 3:].T + s2 * np.eye(5)
    model = linear_model(5, sigma=math.sqrt(s2), lr=0.1, seed=1)
    optimizers = model.optimizers()
    for step in range(600):
        optimizers["adam"].param_groups[0]["lr"] = 0.1 * min(1, (600 - step) / 360)
        model.training_step((x.reshape(-1, 1, 1, 5), None), optimizers)
    w = model.decoder.fc.weight.data
    np.testing.assert_allclose(w @ w.T + s2 * np.eye(5), best, atol=0.03 * values[-1])
    np.testing.assert_allclose(model.decoder.fc.bias.data, x.mean(0), atol=0.1)
    log_p = stats.multivariate_normal.logpdf(x, x.mean(0), best).mean()
    elbo = np.mean([(a - b).mean().item() for a, b in (model.elbo(sg.tensor(x.reshape(-1, 1, 1, 5))) for _ in range(50))])
    assert log_p - 0.05 < elbo < log_p + 0.05


def encoder_gradients(k, gradient, repeats, x):
    """Of L_k of one picture, with respect to its μ and log σ², so many times, each with other noise.     (repeats, 4)"""
    model = linear_model(samples=k, gradient=gradient)
    model.encoder.log_var.data = np.array([-0.8, 0.3])
    cost, *_ = model._importance_weighted(sg.tensor(np.repeat(x, repeats, 0)), None)
    return -np.concatenate([g.data for g in sg.grad(cost, model.encoder.gave)], 1)


@pytest.mark.parametrize("k", [1, 8])
def test_the_doubly_reparameterized_gradient_has_the_same_mean_and_less_variance(k):
    r"""E Σ_i w̃_i² ∂ log w_i/∂z_i ∂z_i/∂φ = ∇_φ L_k, beside the gradient along all that L_k depends on, and differences"""
    x = np.random.default_rng(3).normal(0, 0.7, (1, 1, 1, 6))
    sg.manual_seed(5)
    n = 20_000
    whole, path = (encoder_gradients(k, gradient, n, x) for gradient in ("reparameterized", "dreg"))
    error = np.sqrt((whole.var(0) + path.var(0)) / n)
    np.testing.assert_array_less(np.abs(whole.mean(0) - path.mean(0)), 5 * error)
    assert (path.var(0) < whole.var(0)).all()


def test_the_signal_of_the_encoders_gradient_drowns_for_many_samples_unless_reparameterized_doubly():
    r"""|E g| / sd g falls as 1/√k for the plain gradient of L_k, and rises as √k for the other.  Rainforth et al. 2018

    12,000 gradients, whose mean is known to 0.009 sd: 0.23 and 0.053 at k = 4 and 64, 0.69 and 1.55 at k = 16 and 64.
    """
    x = np.random.default_rng(3).normal(0, 0.7, (1, 1, 1, 6))
    sg.manual_seed(5)

    def signal(gradient, k):
        g = encoder_gradients(k, gradient, 12_000, x)
        return np.linalg.norm(g.mean(0)) / np.linalg.norm(g.std(0))

    rate = lambda gradient, few, many: math.log(signal(gradient, many) / signal(gradient, few), many / few)  # noqa: E731
    assert rate("reparameterized", 4, 64) == pytest.approx(-0.5, abs=0.12)
    assert rate("dreg", 16, 64) == pytest.approx(0.5, abs=0.15)


def test_the_doubly_reparameterized_gradient_by_hand():
    r"""Σ_i w̃_i² ∂ log w_i/∂z_i ∂z_i/∂φ for the encoder, Σ_i w̃_i ∂ log w_i/∂θ for the decoder, each derivative by hand"""
    k, x = 5, np.random.default_rng(3).normal(0, 0.7, (3, 1, 1, 6))
    model = linear_model(samples=k)
    model.encoder.log_var.data = np.array([-0.8, 0.3])
    sg.manual_seed(5)
    cost, nll, kl = model._importance_weighted(sg.tensor(x), None)
    found = sg.grad(cost, [model.encoder.mean.bias, model.encoder.log_var, model.decoder.fc.weight])
    noise = np.random.default_rng(5).standard_normal((k, 3, 2))
    flat, w, b = x.reshape(3, 6), model.decoder.fc.weight.data, model.decoder.fc.bias.data
    mean = flat @ model.encoder.mean.weight.data.T + model.encoder.mean.bias.data
    sd = np.exp(0.5 * model.encoder.log_var.data)
    z = mean + sd * noise
    rest = flat - z @ w.T - b  # (k, 3, 6)
    log_w = stats.norm.logpdf(rest, 0, 0.5).sum(2) + stats.norm.logpdf(z).sum(2) - stats.norm.logpdf(z, mean, sd).sum(2)
    weight = np.exp(log_w - log_w.max(0))
    weight /= weight.sum(0)
    along = rest @ w / 0.25 - z + noise / sd  # ∂ log w_i/∂z_i, the last term from −log q
    pulled = weight[:, :, None] ** 2 * along
    of_w = np.einsum("kb,kbi,kbj->ij", weight, rest / 0.25, z)
    for g, expected in zip(found, [pulled.sum((0, 1)), (pulled * 0.5 * sd * noise).sum((0, 1)), of_w], strict=True):
        np.testing.assert_allclose(g.data, -expected, rtol=1e-9)
    np.testing.assert_allclose(cost.item(), -(np.log(np.exp(log_w).mean(0))).sum(), rtol=1e-9)
    np.testing.assert_allclose(nll.item() + kl.item(), -log_w.mean(0).sum(), rtol=1e-9)


def test_the_mean_information_in_the_code_is_what_the_kl_costs():
    r"""E_x KL(q(z|x) ‖ p) = I(x; z) + KL(q(z) ‖ p), q(z) the mixture of q(z|x): on three inputs, by quadrature"""
    mean, sd = np.array([-1.2, 0.1, 2.0]), np.array([0.4, 0.9, 0.6])
    z = np.linspace(-12, 12, 40_001)
    q = stats.norm.pdf(z[:, None], mean, sd)
    mixture = q.mean(1)
    information = np.trapezoid((q * (stats.norm.logpdf(z[:, None], mean, sd) - np.log(mixture)[:, None])).mean(1), z)
    marginal = np.trapezoid(mixture * (np.log(mixture) - stats.norm.logpdf(z)), z)
    kl = F.kl_standard_gaussian(mean, 2 * np.log(sd)).data.mean()
    assert math.isclose(kl, information + marginal, rel_tol=1e-7)
    assert information < math.log(3)
