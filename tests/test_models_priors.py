"""Learned priors: mixtures by expectation and maximisation, transformers over codes, and runs that build on runs."""

import dataclasses
import shutil

import numpy as np
import pytest
from scipy import stats

import scratchgen as sg
from scratchgen.models.priors import (
    PROBED,
    SCALES,
    Encoded,
    Mixture,
    Prior,
    PriorConfig,
    adopt,
    describe,
    encode,
    probe,
    sample,
)
from scratchgen.models.vae import VAE, VAEConfig
from scratchgen.models.vqvae import VQVAE, VQVAEConfig
from scratchgen.training import TrainingError, open_run, samples, scores, train
from scratchgen.training.folder import CHECKPOINT


def quiet(text):
    pass


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures
# ---------------------------------------------------------------------------------------------------------------------


def points(n, seed=0):
    """Two clouds, of different size and shape."""
    rng = np.random.default_rng(seed)
    a = rng.multivariate_normal([3, 0, 1], [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0.1]], 2 * n // 3)
    return np.concatenate([a, rng.standard_normal((n - len(a), 3)) * [0.3, 2, 1] - 2])


def fitted(rounds, z, components=2, rate=1.0):
    sg.manual_seed(0)
    mixture = Mixture(components, z.shape[1])
    return mixture, [mixture.step(z, rate) for _ in range(rounds)]


def test_the_density_is_the_sum_of_gaussians():
    z = points(60)
    mixture, _ = fitted(3, z)
    pi, mu, sigma = mixture.parts()
    assert pi.sum() == pytest.approx(1)
    expected = sum(p * stats.multivariate_normal(m, s).pdf(z) for p, m, s in zip(pi, mu, sigma, strict=True))
    np.testing.assert_allclose(mixture.log_prob(z), np.log(expected), rtol=1e-9)


def test_each_round_on_all_data_raises_the_likelihood_and_two_clouds_are_found():
    z = points(900)
    mixture, likelihoods = fitted(60, z)
    assert (np.diff(likelihoods) > -1e-9).all()
    pi, mu, sigma = mixture.parts()
    order = np.argsort(pi)
    np.testing.assert_allclose(pi[order], [1 / 3, 2 / 3], atol=0.02)
    np.testing.assert_allclose(mu[order], [[-2, -2, -2], [3, 0, 1]], atol=0.3)
    np.testing.assert_allclose(sigma[order[1]], [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0.1]], atol=0.15)


def test_a_round_is_the_two_equations():
    r"""r by Bayes, then π, μ, Σ as weighted means of z, z and zzᵀ"""
    z = points(50)
    mixture, _ = fitted(1, z)
    pi, mu, sigma = mixture.parts()
    joint = np.stack([p * stats.multivariate_normal(m, s).pdf(z) for p, m, s in zip(pi, mu, sigma, strict=True)], 1)
    r = joint / joint.sum(1, keepdims=True)
    mixture.step(z, 1.0)
    new = mixture.parts()
    np.testing.assert_allclose(new[0], r.mean(0), rtol=1e-9)
    np.testing.assert_allclose(new[1], r.T @ z / r.sum(0)[:, None], rtol=1e-9)
    for c in range(2):
        apart = z - new[1][c]
        floor = Mixture.FLOOR * np.trace(sum(mixture.s2.data)) / 3 + 1e-12
        np.testing.assert_allclose(new[2][c], (r[:, c, None] * apart).T @ apart / r[:, c].sum() + floor * np.eye(3), rtol=1e-7)


def test_rounds_on_batches_come_as_near_as_rounds_on_all():
    z = points(3000)
    whole, _ = fitted(60, z)
    sg.manual_seed(0)
    online, rng = Mixture(2, 3), np.random.default_rng(0)
    for _ in range(200):
        online.step(z[rng.integers(len(z), size=100)])
    assert online.log_prob(z).mean() > whole.log_prob(z).mean() - 0.02


def test_batches_that_fill_no_covariance_do_not_spoil_it():
    """Thirty clouds of 20 numbers by batches of 64, two points to a cloud: nearly as likely as under the clouds themselves"""
    rng = np.random.default_rng(0)
    mu, z = 3 * rng.standard_normal((30, 20)), np.empty((20_000, 20))
    z[:] = mu[rng.integers(30, size=len(z))] + rng.standard_normal(z.shape)
    sg.manual_seed(0)
    mixture = Mixture(30, 20)
    for _ in range(1500):
        mixture.step(z[rng.integers(len(z), size=64)])
    joint = -((z[:2000, None] - mu) ** 2).sum(2) / 2 - 10 * np.log(2 * np.pi) - np.log(30)
    true = np.logaddexp.reduce(joint, axis=1).mean()
    assert true - 2.5 < mixture.log_prob(z[:2000]).mean() < true + 0.1


def test_points_of_a_mixture_have_its_moments():
    mixture, _ = fitted(30, points(900))
    pi, mu, sigma = mixture.parts()
    z = mixture.generate(20_000, np.random.default_rng(0))
    mean = pi @ mu
    second = np.einsum("c,cij->ij", pi, sigma + mu[:, :, None] * mu[:, None, :])
    np.testing.assert_allclose(z.mean(0), mean, atol=0.08)
    np.testing.assert_allclose(z.T @ z / len(z), second, atol=0.3)


def test_points_that_are_all_equal_do_not_break_a_mixture():
    mixture, _ = fitted(5, np.ones((20, 3)), components=3)
    assert np.isfinite(mixture.log_prob(np.ones((2, 3)))).all()
    np.testing.assert_allclose(mixture.generate(4, np.random.default_rng(0)), 1, atol=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Priors over codes
# ---------------------------------------------------------------------------------------------------------------------


def images(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return sg.data.Images(rng.random((n, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, n), ("a", "b", "c"), "noise")


def code_prior(**settings):
    sg.manual_seed(0)
    codec = VQVAE(VQVAEConfig(shape=(1, 8, 8), hidden=8, codes=6, dim=4))
    codec(sg.tensor(images().x))  # the codebook begins as vectors of a first batch
    encoded = Encoded(codec.eval().encode(images().x), images(), codec)
    config = {"codec": describe(encoded), "classes": 3, "n_layer": 1, "n_head": 2, "n_embd": 16, **settings}
    prior = Prior(PriorConfig(**config))
    adopt(prior, encoded)
    return prior, encoded


def test_the_likelihood_of_codes_is_the_chain_rule_over_them_alone():
    r"""Σ_k p(k | y) = 1 over all 6⁴ grids of codes: classes take no share of it"""
    prior, _ = code_prior()
    prior.eval()
    grids = np.array(np.meshgrid(*[np.arange(6)] * 4, indexing="ij")).reshape(4, -1).T
    for y in (None, 0, 2):
        start = prior._start(None if y is None else np.full(len(grids), y), len(grids))
        nll = prior._nll(sg.tensor(grids), start).data.astype(np.float64).sum(1)
        assert np.exp(-nll).sum() == pytest.approx(1, rel=1e-4)


def test_one_step_moves_the_prior_and_nothing_of_the_autoencoder():
    prior, encoded = code_prior()
    prior.train()
    before = {name: t.numpy().copy() for name, t in prior.state_dict().items()}
    optimizers = prior.optimizers()
    for batch in [next(encoded.batches(16, seed=0)), next(encoded.batches(16, seed=0, start=1))]:
        prior.training_step(batch, optimizers)
    moved = {name for name, t in prior.state_dict().items() if not np.array_equal(t.numpy(), before[name])}
    assert moved == {name for name, _ in prior.named_parameters() if name.startswith("net.")}
    assert not prior.codec.training


def test_codes_are_drawn_from_the_likelihood_with_and_without_the_cache():
    r"""frequencies of the first two codes of many samples, beside p(k_1) p(k_2 | k_1); a class token is never drawn"""
    prior, _ = code_prior()
    prior.eval()
    codes = prior.codes(3000, np.full(3000, 1), generator=np.random.default_rng(0)).reshape(3000, -1)
    assert codes.max() < 6
    start = prior._start(np.full(1, 1), 1)
    first = np.exp(-np.array([prior._nll(sg.tensor([[k, 0, 0, 0]]), start).data[0, 0] for k in range(6)]))
    np.testing.assert_allclose(np.bincount(codes[:, 0], minlength=6) / 3000, first, atol=0.03)
    joint = np.exp(-prior._nll(sg.tensor([[2, 3, 0, 0]]), start).data[0, :2].sum())
    assert ((codes[:, 0] == 2) & (codes[:, 1] == 3)).mean() == pytest.approx(joint, abs=0.02)


def test_guidance_of_one_changes_nothing_and_more_of_it_moves_towards_the_class():
    r"""log p(k) + w (log p(k | y) − log p(k)), normalised, for the first code"""
    prior, encoded = code_prior(withheld=0.5)
    optimizers = prior.optimizers()
    y = encoded.images.y
    codes = np.where(y[:, None] == 0, 1, 4) * np.ones(4, int)  # class a has code 1 everywhere, the others code 4
    for _ in range(25):
        prior.training_step((codes.reshape(-1, 2, 2), y), optimizers)
    prior.eval()
    draw = lambda w, seed=0: prior.codes(2000, np.zeros(2000, int), guidance=w, generator=np.random.default_rng(seed))  # noqa: E731
    np.testing.assert_array_equal(draw(1.0), draw(None))

    def first(start):
        return np.array([-prior._nll(sg.tensor([[k, 0, 0, 0]]), start).data[0, 0] for k in range(6)], np.float64)

    told, free = first(prior._start(np.zeros(1, int), 1)), first(prior._start(None, 1))
    for w in (0.0, 2.0):
        expected = np.exp(free + w * (told - free))
        found = np.bincount(draw(w)[:, 0, 0], minlength=6) / 2000
        np.testing.assert_allclose(found, expected / expected.sum(), atol=0.04)


@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_the_density_of_points_counts_their_scale(kind):
    r"""∫ p(z) dz = 1 over a grid, in the autoencoder's own coordinates"""
    sg.manual_seed(0)
    codec = VAE(VAEConfig(shape=(1, 8, 8), hidden=8, latent=2))
    codes = np.random.default_rng(0).normal([[3.0, -1.0], [-3.0, -3.0]], 0.5, (40, 2, 2)).astype(np.float32)
    encoded = Encoded(codes, images(), codec)
    prior = Prior(PriorConfig(codec=describe(encoded), kind=kind, components=3, hidden=8))
    adopt(prior, encoded)
    optimizers = prior.optimizers()
    for batch in [next(encoded.batches(40, seed=0))] * 3:
        prior.training_step(batch, optimizers)
    prior.eval()
    side = np.linspace(-4, 4, 41)
    z = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * prior.scale.data * 1.5 + prior.mean.data
    cell = np.prod(prior.scale.data.astype(float) * 1.5 * (side[1] - side[0]))
    assert np.exp(prior.log_prob(z)).sum() * cell == pytest.approx(1, abs=0.02)
    made = prior.codes(2000, generator=np.random.default_rng(0))
    assert abs(made.mean(0) - prior.mean.data).max() < 0.8 * prior.scale.data.max()


def test_a_prior_on_codes_of_classes_learns_from_those_that_are_decoded():
    """The codes of an autoencoder that is told classes are less the mean of their class, and are restored as of this class"""
    sg.manual_seed(0)
    codec = VAE(VAEConfig(shape=(1, 8, 8), hidden=8, latent=2, classes=3)).eval()
    codec.centre.running_mean.copy_(np.random.default_rng(0).normal(0, 3, (3, 2)))
    seen = images()
    codes = encode(codec, seen)
    np.testing.assert_allclose(codes[:, 0], codec.encode(seen.x, seen.y), atol=1e-6)
    encoded = Encoded(codes, seen, codec)
    prior = Prior(PriorConfig(codec=describe(encoded), components=2, classes=3))
    adopt(prior, encoded)
    prior.eval()
    again = sample(prior, {"classes": seen.classes}, len(seen), np.random.default_rng(0), of=seen.x, y=seen.y)
    np.testing.assert_allclose(again, codec.reconstruct(seen.x, seen.y), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# What a picture costs in all
# ---------------------------------------------------------------------------------------------------------------------


def coded(x, codec):
    seen = sg.data.Images(x.astype(np.float32), np.zeros(len(x), np.int64), ("a", "b"), "some")
    return Encoded(encode(codec, seen), seen, codec)


def test_bits_of_both_stages_by_hand():
    r"""Four codes of six that are equally likely, 4 log₂ 6 bits, and pixels of 17 levels around a grey picture, by a logistic
    whose scale is the likeliest of the pictures to learn from: log₂ of differences of its distribution function."""
    rng = np.random.default_rng(0)
    draw = lambda n, sd: np.clip(np.round(8 + sd * rng.standard_normal((n, 1, 8, 8))), 0, 16) / 16  # noqa: E731
    sg.manual_seed(0)
    codec = VQVAE(VQVAEConfig(shape=(1, 8, 8), hidden=8, codes=6, dim=4))
    codec(sg.tensor(draw(40, 2).astype(np.float32)))
    for p in codec.decoder.parameters():
        p.data = np.zeros_like(p.data)
    codec.decoder.conv2.bias.data = np.full(1, 0.5, np.float32)
    codec.eval()
    known, held_out = draw(60, 2), draw(30, 4)
    encoded = coded(known, codec)
    prior = Prior(PriorConfig(codec=describe(encoded), classes=2, n_layer=1, n_head=1, n_embd=8))
    adopt(prior, encoded)
    prior.eval()
    for p in prior.net.parameters():
        p.data = np.zeros_like(p.data)  # so that all codes are equally likely
    cdf = lambda x, s: stats.logistic.cdf(x, 0.5, s)  # noqa: E731
    edge = lambda x, side: np.where((x + side >= 0) & (x + side <= 16), (x + side / 2) / 16, np.inf * side)  # noqa: E731
    nats = lambda x, s: -np.log(cdf(edge(16 * x, 1), s) - cdf(edge(16 * x, -1), s))  # noqa: E731
    wide = SCALES[SCALES > 0.02]  # by smaller ones a black pixel has a chance that rounds to 0
    s = min(wide, key=lambda s: nats(known, s).mean())
    found = probe(prior, sg.data.Task(encoded, coded(held_out, codec), 8, 0), np.random.default_rng(0))
    assert found["bits_of_codes"] == pytest.approx(4 * np.log2(6), rel=1e-6)
    bits = (4 * np.log(6) + nats(held_out, s).sum((1, 2, 3)).mean()) / 64 / np.log(2)
    assert found["bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    best = min(nats(held_out, s).mean() for s in wide)
    assert bits > (4 * np.log(6) / 64 + best) / np.log(2) + 0.05, "the scale is none that held-out pictures tell"
    uneven = coded(np.random.default_rng(0).random((30, 1, 8, 8)), codec)
    assert "bits_per_dim" not in probe(prior, sg.data.Task(encoded, uneven, 8, 0), np.random.default_rng(0)), "of no levels"


def test_the_bound_with_another_prior_by_hand():
    r"""A decoder that says ½ of each of 64 binary pixels, q = N(0, I), p one Gaussian: −64 log 2 − KL(q ‖ p), in closed form"""
    sg.manual_seed(0)
    codec = VAE(VAEConfig(shape=(1, 8, 8), hidden=4, latent=2, pixels="binary")).eval()
    for p in codec.parameters():
        p.data = np.zeros_like(p.data)
    x = np.random.default_rng(0).integers(0, 2, (PROBED, 1, 8, 8))
    encoded = coded(x, codec)
    prior = Prior(PriorConfig(codec=describe(encoded), components=1, classes=2))
    adopt(prior, encoded)
    mu, sigma = np.array([0.4, -0.3]), np.array([[1.5, 0.4], [0.4, 0.8]])
    for buffer, value in ((prior.net.s0, [1.0]), (prior.net.s1, [mu]), (prior.net.s2, [sigma + np.outer(mu, mu)])):
        buffer.copy_(np.array(value))
    found = probe(prior.eval(), sg.data.Task(encoded, encoded, 8, 0), np.random.default_rng(0))
    inverse = np.linalg.inv(sigma)
    kl = (np.trace(inverse) + mu @ inverse @ mu - 2 + np.log(np.linalg.det(sigma))) / 2
    assert found["elbo_standard"] == pytest.approx(-64 * np.log(2), rel=1e-6)
    z = np.random.default_rng(1).standard_normal((100_000, 2))
    spread = (stats.multivariate_normal(mu, sigma).logpdf(z) - stats.norm.logpdf(z).sum(1)).std()
    assert abs(found["elbo"] - (-64 * np.log(2) - kl)) < 5 * spread / np.sqrt(PROBED) < 0.2
    assert found["bits_per_dim"] == pytest.approx(-found["elbo"] / 64 / np.log(2), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Runs that build on runs
# ---------------------------------------------------------------------------------------------------------------------

SMALL = {"steps": 4, "sample_every": 2, "save_every": 2, "eval_batches": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "vq"
    train("vqvae", folder, {"data": "digits", "hidden": 8, "codes": 8, "dim": 4, **SMALL}, say=quiet, progress=False)
    return folder


@pytest.fixture(scope="module")
def latent_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "vae"
    train("vae", folder, {"hidden": 16, "latent": 3, **SMALL}, say=quiet, progress=False)
    return folder


@pytest.mark.parametrize("kind", ["gpt", "mixture", "flow"])
def test_a_prior_goes_on_to_the_same_bits_without_the_run_it_builds_on(kind, codec_run, latent_run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(codec_run if kind == "gpt" else latent_run, base)
    small = {"n_layer": 1, "n_embd": 16, "hidden": 8, "components": 3, "kind": kind, "final": 1.0, "warmup": 0}
    small |= {"begun_from": str(base), **SMALL}
    train("prior", tmp_path / "whole", small, say=quiet, progress=False)
    train("prior", tmp_path / "parts", {**small, "steps": 2}, say=quiet, progress=False)
    shutil.rmtree(base)
    train("prior", tmp_path / "parts", {"steps": 4}, resume=True, say=quiet, progress=False)
    whole, parts = ((tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    a, b = open_run(whole.parent), open_run(parts.parent)
    for name, tensor in a.model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), b.model.state_dict()[name].numpy())
    np.testing.assert_array_equal(samples(a, 3, 0), samples(b, 3, 0))
    assert samples(a, 3, 0).shape == (3, 1, 8, 8)
    found = scores(a)
    assert found["frechet_distance"] > 0 < found["frechet_distance_restored"]
    assert ("bits_per_dim" in found) == (kind == "gpt"), "the pixels are grey, of which a Bernoulli is no likelihood"
    assert ("agreement" in found) == (kind != "mixture"), "a mixture is told no classes"


def test_eval_counts_the_codes_of_all_held_out_pictures(codec_run):
    run = open_run(codec_run)
    family = dataclasses.replace(run.recipe.family, scores=lambda *given: {})
    found = scores(dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, family=family)))
    counts = np.bincount(run.model.encode(sg.data.load("digits", split="test").x).ravel(), minlength=8)
    p = counts[counts > 0] / counts.sum()
    assert found["codes_used"] == len(p) and found["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_what_a_prior_cannot_build_on(codec_run, latent_run, tmp_path):
    def begin(recipe, **changes):
        train(recipe, tmp_path / "run", {**SMALL, **changes}, say=quiet, progress=False)

    with pytest.raises(TrainingError, match=r"builds on a finished run of vae.* or fsq; tell which \(--from RUN\)"):
        begin("prior")
    with pytest.raises(TrainingError, match="found no checkpoint.safetensors there"):
        begin("prior", begun_from=str(tmp_path))
    with pytest.raises(TrainingError, match="begins anew, so it takes nothing from"):
        begin("vae", begun_from=str(codec_run))
    train("gan", tmp_path / "gan", {"hidden": 8, **SMALL}, say=quiet, progress=False)
    with pytest.raises(TrainingError, match="and .*gan is one of 'gan'"):
        begin("prior", begun_from=str(tmp_path / "gan"))
    with pytest.raises(TrainingError, match="for the codes of a vqvae expected kind gpt, got 'flow'"):
        begin("prior", begun_from=str(codec_run), kind="flow")
    with pytest.raises(sg.data.DataError, match=r"expected pictures of the autoencoder's shape \(1, 8, 8\), got \(1, 4, 4\)"):
        np.savez(tmp_path / "small.npz", x=np.random.default_rng(0).random((40, 4, 4)))
        begin("prior", begun_from=str(codec_run), data=str(tmp_path / "small.npz"))
    assert not (tmp_path / "run").exists()
