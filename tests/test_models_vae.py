"""The settings of the variational autoencoder: what each changes of a step, of what is seen, told and scored."""

import dataclasses
import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import data, metrics
from scratchgen.models import VAE, VAEConfig, vae
from scratchgen.models.coders import ClassCentre
from scratchgen.models.family import OptionError
from scratchgen.training import recipes
from scratchgen.training.folder import TrainingError

SHAPE = (1, 8, 8)
PLAIN = VAEConfig(SHAPE, hidden=16, latent=3)
VARIANTS = {
    "two layers of tanh": {"layers": 2, "activation": "tanh"},
    "continuous Bernoulli": {"likelihood": "continuous-bernoulli"},
    "Gaussian": {"likelihood": "gaussian", "sigma": 0.3},
    "learned Gaussian": {"likelihood": "learned-gaussian", "sigma_min": 0.1, "pixels": "dequantized"},
    "discretized logistic": {"likelihood": "discretized-logistic", "network": "conv", "hidden": 4},
    "binary pixels": {"pixels": "binary"},
    "drawn pixels": {"pixels": "drawn"},
    "sampled KL": {"kl": "sampled"},
    "free bits": {"free_bits": 0.2, "beta": 0.5},
    "mean over pixels": {"reduction": "mean"},
    "importance-weighted": {"samples": 4},
    "importance-weighted, plain gradient": {"samples": 4, "gradient": "reparameterized"},
    "classes": {"classes": 10},
    "classes, convolutions": {"classes": 10, "network": "conv", "hidden": 4},
    "classes, importance-weighted": {"classes": 10, "samples": 3},
}
every_variant = pytest.mark.parametrize(
    "config", [dataclasses.replace(PLAIN, **how) for how in VARIANTS.values()], ids=VARIANTS
)


def build(config, seed=0):
    sg.manual_seed(seed)
    return VAE(config)


def batch(n=8):
    rng = np.random.default_rng(5)
    return (rng.choice([9, 30, 240, 255], (n, *SHAPE), p=[0.4, 0.3, 0.2, 0.1]) / 255).astype(np.float32), np.arange(n) % 10


@every_variant
def test_a_step_moves_every_parameter_down_the_loss(config):
    model = build(config)
    before = {k: v.data.copy() for k, v in model.named_parameters()}
    optimizers = model.optimizers()
    losses = model.training_step(batch(), optimizers)
    assert set(losses) == {"loss", "reconstruction", "kl"} and all(map(math.isfinite, losses.values()))
    assert not [name for name, p in model.named_parameters() if (p.data == before[name]).all()]
    for _ in range(80):
        last = model.training_step(batch(), optimizers)
    assert last["loss"] < losses["loss"]


@every_variant
def test_pictures_codes_and_scores(config):
    model = build(config).eval()
    x, y = batch()
    told = y if config.classes else None
    z = model.encode(x, told)
    assert z.shape == (8, 3)
    for made in (model.reconstruct(x, told), model.generate(8, generator=np.random.default_rng(0)), model.walk(2, 4)):
        assert made.shape == (8, *SHAPE) and made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
    line = model.interpolate(x[0], x[1], 5, y=4 if config.classes else None)
    assert line.shape == (5, *SHAPE)
    sg.manual_seed(0)
    found = model.evaluate([(x, y), (x[:3], y[:3])])
    assert ("bound" in found) == (config.samples > 1) and all(map(math.isfinite, found.values()))
    assert math.isclose(found["elbo"], -found["reconstruction"] - found["kl"], rel_tol=1e-6)
    log_p = model.log_likelihood(model.observe(x), told, samples=7)
    assert log_p.shape == (8,) and np.isfinite(log_p).all()


@every_variant
def test_the_loss_is_made_of_its_terms(config):
    """β and λ weigh the KL, the mean divides −log p(x | z), and k samples give L_k of the same weights"""
    model = build(config).double().eval()  # so that the centre of a class stays where it is
    x = sg.tensor(batch()[0].astype(np.float64))
    c = model.condition(batch()[1])
    sg.manual_seed(3)
    if config.samples > 1:
        cost, nll, kl = model._importance_weighted(x, c)
        sg.manual_seed(3)
        log_p, ratio, _ = model.log_weights(x, c, config.samples)
        bound = np.log(np.exp((log_p + ratio).data).mean(0)).sum()
        assert math.isclose(-cost.item(), bound, rel_tol=1e-9)
        assert math.isclose(nll.item() + kl.item(), -(log_p + ratio).data.sum() / config.samples, rel_tol=1e-9)
        sg.manual_seed(3)
        np.testing.assert_allclose(model.log_likelihood(x, batch()[1], samples=config.samples).sum(), bound, rtol=1e-9)
    else:
        cost, nll, kl = model._weighed(x, c)
        sg.manual_seed(3)
        log_p, each = model.elbo(x, c)
        assert math.isclose(nll.item(), -log_p.data.sum(), rel_tol=1e-9)
        assert math.isclose(kl.item(), each.data.sum(), rel_tol=1e-9)
        share = 1 if config.reduction == "sum" else 1 / 64
        charged = max(3 * 0.2 * 8, kl.item()) if config.free_bits else kl.item()  # every latent is below its floor
        assert math.isclose(cost.item(), share * nll.item() + config.beta * charged, rel_tol=1e-9)


def test_beta_rises_over_its_share_of_the_steps():
    model = build(dataclasses.replace(PLAIN, beta=4.0, beta_warmup=0.5)).double()
    x = sg.tensor(batch()[0].astype(np.float64))
    weights = []
    for model.progress in (0.0, 0.125, 0.5, 1.0):
        cost, nll, kl = model._weighed(x, None)
        weights.append((cost.item() - nll.item()) / kl.item())
    assert weights == pytest.approx([0, 1, 4, 4], abs=1e-9)


def test_what_the_model_sees():
    x = batch()[0]
    assert (build(PLAIN).observe(x).data == x).all()
    assert (build(dataclasses.replace(PLAIN, pixels="binary")).observe(x).data == (x > 0.5)).all()
    drawn = build(dataclasses.replace(PLAIN, pixels="drawn"))
    many = np.stack([drawn.observe(x, generator=np.random.default_rng(i)).data for i in range(300)])
    assert set(np.unique(many)) == {0, 1} and np.abs(many.mean(0) - x).max() < 0.15
    seen = build(dataclasses.replace(PLAIN, pixels="dequantized")).observe(x).data
    assert (np.floor(seen * 256) == np.round(x * 255)).all() and len(np.unique(seen)) > 500


def test_a_class_is_told_to_both_networks_and_the_style_is_kept():
    for network, hidden in (("mlp", 16), ("conv", 4)):
        model = build(dataclasses.replace(PLAIN, classes=10, network=network, hidden=hidden)).eval()
        x, y = batch()
        assert (model.encode(x, y) != model.encode(x, (y + 1) % 10)).any(1).all()
        turned = model.transfer(x, y, (y + 1) % 10)
        np.testing.assert_array_equal(turned, model.decode(model.encode(x, y), (y + 1) % 10))
        assert (turned != model.reconstruct(x, y)).any((1, 2, 3)).all()
        made = model.generate(10, generator=np.random.default_rng(0))
        np.testing.assert_array_equal(made, model.generate(10, y=np.arange(10), generator=np.random.default_rng(0)))


def test_a_class_is_drawn_by_its_name():
    model, names = build(dataclasses.replace(PLAIN, classes=3)).eval(), {"classes": ["shoe", "bag", "hat"]}
    draw = lambda **how: vae.CONDITIONAL.sample(model, names, 4, np.random.default_rng(0), **how)  # noqa: E731
    np.testing.assert_array_equal(draw(label="bag"), model.generate(4, y=[1] * 4, generator=np.random.default_rng(0)))
    with pytest.raises(OptionError, match="shoe, bag, hat"):
        draw(label="cap")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"activation": "gelu"}, "activation 'relu' or 'tanh', got 'gelu'"),
        ({"pixels": "dark"}, "pixels 'grey', 'binary', 'drawn' or 'dequantized', got 'dark'"),
        ({"reduction": "none"}, "reduction 'sum' or 'mean'"),
        ({"kl": "exact"}, "kl 'analytic' or 'sampled'"),
        ({"gradient": "score"}, "gradient 'dreg' or 'reparameterized'"),
        ({"likelihood": "poisson"}, "bernoulli, continuous-bernoulli, gaussian, learned-gaussian, .*got 'poisson'"),
        ({"sigma": 0.0}, "sigma above 0, got 0"),
        ({"sigma_min": 0.0}, "sigma_min above 0"),
        ({"levels": 1}, "at least 2 levels, got 1"),
        ({"beta_warmup": 1.5}, "from 0 to 1, a share of the steps, got 1.5"),
        ({"samples": 5, "beta": 2.0}, "no terms to weigh.*samples=5"),
        ({"samples": 2, "free_bits": 0.1}, "no terms to weigh"),
        ({"samples": 2, "reduction": "mean"}, "no terms to weigh"),
        ({"samples": 2, "beta_warmup": 0.1}, "no terms to weigh"),
    ],
)
def test_bad_settings_get_one_clear_sentence(how, words):
    with pytest.raises(ValueError, match=words):
        build(dataclasses.replace(PLAIN, **how))


# ---------------------------------------------------------------------------------------------------------------------
# What a run says of its settings, and finds by looking into the model
# ---------------------------------------------------------------------------------------------------------------------


def images(x, y=None, classes=()):
    return data.Images(x.astype(np.float32), y, classes, "some")


def task(x, y=None, classes=()):
    return data.Task(images(x, y, classes), images(x[::-1].copy(), None if y is None else y[::-1].copy(), classes), 8, 0)


def told(task, **how):
    return list(vae.remarks(dataclasses.replace(PLAIN, **how), task))


def test_another_weight_of_the_kl_is_told():
    black = task(np.zeros((9, *SHAPE)))
    assert not told(black) and not told(black, beta=4.0)
    (said,) = told(black, reduction="mean", beta=0.003125)
    assert "your loss equals β = 0.2;" in said and "beta=0.0156 would be the bound" in said
    (said,) = told(black, likelihood="gaussian", sigma=0.5, beta=3.0)
    assert "is 1/(2σ²) = 2 times Σ (x − μ)² + 1.5 KL" in said


def test_a_mean_over_pixels_is_the_loss_of_that_other_beta():
    r"""mean −log p + β KL = (Σ −log p + β D KL) / D, so that the gradients are the same but for a factor"""
    x = sg.tensor(batch()[0].astype(np.float64))
    slopes = []
    for how in ({"reduction": "mean", "beta": 0.003125}, {"beta": 0.2}):
        model = build(dataclasses.replace(PLAIN, **how)).double()
        sg.manual_seed(1)
        slopes.append(sg.grad(model._weighed(x, None)[0], model.encoder.mean.weight)[0].data)
    np.testing.assert_allclose(64 * slopes[0], slopes[1], rtol=1e-9)


def test_grey_pixels_under_a_bernoulli_are_told():
    grey, binary = task(np.full((9, *SHAPE), 0.5)), task(np.ones((9, *SHAPE)))
    assert "of which the Bernoulli is no likelihood" in told(grey)[0]
    assert not told(binary) and not told(grey, pixels="binary") and not told(grey, likelihood="continuous-bernoulli")


def test_levels_that_the_pixels_do_not_have_are_refused():
    settings = {"likelihood": "bernoulli", "pixels": "grey", "levels": 17}
    sixteenths = images(np.arange(64).reshape(1, *SHAPE) % 17 / 16)
    for how in ({"pixels": "dequantized"}, {"likelihood": "discretized-logistic"}):
        assert vae.prepare(sixteenths, sixteenths, settings | how)[0] is sixteenths
        with pytest.raises(data.DataError, match=r"pixels of 256 levels, i/255.*levels=17 would be right"):
            vae.prepare(sixteenths, sixteenths, settings | how | {"levels": 256})
    vae.prepare(sixteenths, sixteenths, settings | {"levels": 256})  # of which none are asked for
    with pytest.raises(TrainingError, match="likelihood.*poisson"):
        recipes.build(recipes.adjust(recipes.recipe("vae"), {"likelihood": "poisson"}), {"shape": SHAPE, "classes": 0})


def probed(model, task, monkeypatch, n=16):
    monkeypatch.setattr(vae, "PROBED", n)
    monkeypatch.setattr(VAE.log_likelihood, "__kwdefaults__", {"samples": 40, "generator": None})
    sg.manual_seed(0)
    return vae.probe(model.eval(), task, np.random.default_rng(0))


def test_a_model_that_knows_nothing_needs_a_bit_for_a_binary_pixel_and_eight_for_a_level(monkeypatch):
    rng = np.random.default_rng(0)
    black = task(rng.integers(0, 2, (24, *SHAPE)).astype(float))
    levels = task(rng.integers(0, 256, (24, *SHAPE)) / 255)
    for how, of, bits in (
        ({"pixels": "binary"}, black, 1.0),
        ({}, black, 1.0),
        ({"likelihood": "continuous-bernoulli", "pixels": "dequantized"}, levels, 8.0),
        ({"likelihood": "continuous-bernoulli"}, levels, None),
        ({}, levels, None),
    ):
        model = build(dataclasses.replace(PLAIN, **how))
        for p in model.parameters():
            p.data = np.zeros_like(p.data)
        found = probed(model, of, monkeypatch)
        assert found.get("bits_per_dim") == (bits and pytest.approx(bits, abs=1e-5)) and "probe_accuracy" not in found


def test_the_beta_that_a_fixed_sigma_implies(monkeypatch):
    """Pixels that err by 0.2 where σ is 0.6: the squared error counts a ninth of what a σ that fits would make it count"""
    x = 0.2 * np.random.default_rng(0).choice([-1, 1], (24, *SHAPE)) + 0.5
    model = build(dataclasses.replace(PLAIN, likelihood="gaussian", sigma=0.6, beta=2.0))
    for p in model.parameters():
        p.data = np.zeros_like(p.data)
    model.decoder.out.bias.data = np.full(64, 0.5, np.float32)
    assert probed(model, task(x), monkeypatch)["implied_beta"] == pytest.approx(18, rel=1e-5)


def test_a_class_that_the_code_holds_is_found_and_one_that_it_does_not_hold_is_not(monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = np.where(y[:, None, None, None] == np.arange(64).reshape(SHAPE) % 3, 0.9, 0.1) * rng.uniform(0.5, 1, (400, 1, 1, 1))
    for classes, low, high in ((0, 0.95, 1.0), (3, 0.2, 0.5)):
        model = build(dataclasses.replace(PLAIN, classes=classes, hidden=32))
        if classes:  # the code then tells nothing
            model.encoder.mean.weight.data = np.zeros_like(model.encoder.mean.weight.data)
        found = probed(model, task(x, y, ("a", "b", "c")), monkeypatch)
        assert low <= found["probe_accuracy"] <= high


# ---------------------------------------------------------------------------------------------------------------------
# The scores themselves
# ---------------------------------------------------------------------------------------------------------------------


def test_active_units_are_those_whose_mean_moves():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((5000, 4)) * np.sqrt([1.0, 0.02, 0.005, 0.0]) + 7
    assert metrics.active_units(means) == 2 and metrics.active_units(means, threshold=0.5) == 1


def test_a_linear_probe_is_as_good_as_the_best_linear_rule():
    """Two Gaussians of one covariance, of which Bayes' rule is linear: right in Φ(d/2) of cases, d Mahalanobis' distance"""
    from scipy import special

    rng = np.random.default_rng(0)
    y = rng.integers(4, 6, 6000)  # classes may have any numbers
    x = rng.standard_normal((6000, 3)) @ np.array([[1, 0.9, 0], [0, 0.3, 0], [0, 0, 5.0]])
    x[:, 1] += 0.5 * (y == 5)
    cov = np.array([[1, 0.9, 0], [0, 0.3, 0], [0, 0, 5.0]]).T @ np.array([[1, 0.9, 0], [0, 0.3, 0], [0, 0, 5.0]])
    shift = np.array([0, 0.5, 0])
    best = special.ndtr(0.5 * math.sqrt(shift @ np.linalg.solve(cov, shift)))
    found = metrics.linear_probe(x[:3000], y[:3000], x[3000:], y[3000:])
    assert abs(found - best) < 4 * math.sqrt(best * (1 - best) / 3000)
    assert abs(metrics.linear_probe(x[:3000], rng.permutation(y[:3000]), x[3000:], y[3000:]) - 0.5) < 0.06
    with pytest.raises(ValueError, match="classes: expected 3000 integers"):
        metrics.linear_probe(x[:3000], y[:10], x[3000:], y[3000:])


def test_the_codes_of_each_class_are_centred_at_0():
    """In training by a running mean, (1 − 0.9ⁿ) of what each class has after n batches; in use the mean stays as it is"""
    rng = np.random.default_rng(0)
    centre, offset = ClassCentre(4, 3), rng.standard_normal((4, 3)).astype(np.float32)
    c = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]  # of the last class no picture
    h = offset[[0, 0, 1, 2]] + np.array([[1], [-1], [0], [0]], np.float32)
    for _ in range(10):
        out = centre(sg.tensor(h), sg.tensor(c))
    left = 0.9**10
    np.testing.assert_allclose(centre.running_mean.data, (1 - left) * offset * [[1], [1], [1], [0]], atol=1e-6)
    np.testing.assert_allclose(out.data, h - (1 - left) * offset[[0, 0, 1, 2]], atol=1e-6)
    kept = centre.eval().running_mean.data.copy()
    x = sg.tensor(h, requires_grad=True)
    centre(x, sg.tensor(c)).sum().backward()
    np.testing.assert_array_equal(x.grad.data, 1)
    np.testing.assert_array_equal(centre.running_mean.data, kept)
    config = VAEConfig((1, 8, 8), hidden=4, latent=3, classes=4)
    model, y = VAE(config), np.array([0, 1, 2, 3] * 8)
    pictures = (rng.random((32, 1, 8, 8)) * y[:, None, None, None] / 3).astype(np.float32)
    for _ in range(60):
        model.elbo(sg.tensor(pictures), model.condition(y))
    codes = model.encode(pictures, y)
    assert (
        np.abs([codes[y == k].mean(0) for k in range(4)]).max()
        < 0.02
        < np.abs(model.encoder(sg.tensor(pictures), model.condition(y))[0].data.mean(0)).max()
    )
