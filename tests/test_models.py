"""Each model: its loss at a known point, one step that moves what it should, eight samples learnt by heart, generation."""

import dataclasses
import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen import nn
from scratchgen.grad_mode import no_grad
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig, gan
from scratchgen.models.adversarial import OBJECTIVES, objective
from scratchgen.text import sample
from tests.references import REFERENCES

SHAPE = (1, 8, 8)
VAES = [VAEConfig(SHAPE, "mlp", hidden=32, latent=4), VAEConfig(SHAPE, "conv", hidden=4, latent=4)]
GANS = [GANConfig(SHAPE, "mlp", hidden=32, latent=4), GANConfig(SHAPE, "dcgan", hidden=8, latent=4)]
GAMES = [  # each objective, penalty, pair of networks and condition
    GANConfig(SHAPE, "mlp", hidden=32, latent=4, loss="minimax", noise="uniform"),
    GANConfig(SHAPE, "dcgan", hidden=8, latent=4, loss="least-squares", upsample="transposed"),
    GANConfig(SHAPE, "dcgan", hidden=8, latent=4, loss="hinge", spectral_norm=True, lr_d=1e-3),
    GANConfig(SHAPE, "dcgan", hidden=8, latent=4, loss="wasserstein", gradient_penalty=10.0),
    GANConfig(SHAPE, "residual", hidden=24, latent=4, loss="relativistic", r1=0.5, r2=0.5),
    GANConfig(SHAPE, "dcgan", hidden=8, latent=4, loss="hinge", spectral_norm=True, classes=10),
]
GPTS = [GPTConfig(11, 8, 2, 2, 16), GPTConfig(11, 8, 2, 2, 16, dropout=0.1, bias=True, checkpoint=True)]
BUILD = {VAEConfig: VAE, GANConfig: GAN, GPTConfig: GPT}


def build(config):
    sg.manual_seed(0)
    return BUILD[type(config)](config)


def batch(config, n=8):
    rng = np.random.default_rng(5)
    if isinstance(config, GPTConfig):
        text = rng.integers(0, config.vocab_size, (n, config.block_size + 1))
        return text[:, :-1], text[:, 1:]
    return (rng.random((n, *SHAPE)) < 0.3).astype(np.float32), np.arange(n) % 10 if isinstance(config, GANConfig) else None


def ids(config):
    name = type(config).__name__[:-6] + "-" + getattr(config, "network", str(config.__dict__.get("dropout", "")))
    return f"{name}-{config.loss}{'-classes' * bool(config.classes)}" if config in GAMES else name


@pytest.mark.parametrize("config", VAES + GANS + GAMES + GPTS, ids=ids)
def test_two_steps_move_every_parameter_and_give_finite_losses(config):
    """Two, since a residual block that begins as the identity moves all but its last layer in the second."""
    model = build(config)
    if config in GAMES:  # away from weights so small that all pictures excite the same units
        model, *_ = twins(config)
        model.float()
    before = {k: v.data.copy() for k, v in model.named_parameters()}
    optimizers = model.optimizers()
    for _ in range(2):
        losses = model.training_step(batch(config), optimizers)
    assert all(math.isfinite(v) for v in losses.values())
    for name, p in model.named_parameters():
        moved = p.data != before[name]
        if name == "transformer.wte.weight":
            assert moved.any(axis=1).all(), name  # tied to the output: every row has a gradient
        elif name.startswith("discriminator") and name.endswith("fc.bias") and config.loss in ("wasserstein", "relativistic"):
            assert np.abs(p.data - before[name]).max() < 1e-3, name  # a shift of all logits leaves these losses as they are
        elif not (name.endswith("fc.bias") and getattr(config, "loss", "") == "hinge"):  # the same, within the margins
            assert moved.any(), f"{name} stayed as it was"


@pytest.mark.parametrize("config", GANS + GAMES, ids=ids)
def test_each_player_moves_only_its_own_parameters(config):
    model = build(config)
    optimizers = model.optimizers()

    class Frozen:
        def zero_grad(self):
            pass

        def step(self):
            pass

    for player, other in [("discriminator", "generator"), ("generator", "discriminator")]:
        before = {k: v.data.copy() for k, v in model.named_parameters()}
        model.training_step(batch(config), optimizers | {other: Frozen()})
        moved = {k.split(".")[0] for k, v in model.named_parameters() if (v.data != before[k]).any()}
        assert moved == {player}


class ByHand:
    """Adam or AdamW of named parameters, one array at a time."""

    def __init__(self, parameters, lr, beta1, beta2):
        self.parameters, self.lr, self.betas, self.t = dict(parameters), lr, (beta1, beta2), 0
        self.p = {k: p.data.copy() for k, p in self.parameters.items()}
        self.m, self.v = ({k: 0 * p for k, p in self.p.items()} for _ in range(2))

    def step(self, grads, decay=lambda p: 0.0):
        self.t += 1
        b1, b2 = self.betas
        for k, g in grads.items():
            self.p[k] = self.p[k] * (1 - self.lr * decay(self.p[k]))
            self.m[k] = b1 * self.m[k] + (1 - b1) * g
            self.v[k] = b2 * self.v[k] + (1 - b2) * g**2
            self.p[k] -= self.lr * (self.m[k] / (1 - b1**self.t)) / (np.sqrt(self.v[k] / (1 - b2**self.t)) + 1e-8)

    def written(self):
        for k, p in self.parameters.items():
            with no_grad():
                p.copy_(self.p[k])


def twins(config):
    """Two models of the same parameters, in float64, none of them 0 or 1, and a batch that is not the same turned round."""
    models = [build(config).double(), build(config).double()]
    rng = np.random.default_rng(3)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        with no_grad():
            p.copy_(p.data + 0.3 * rng.standard_normal(p.shape))
            q.copy_(p.data)
    x, y = batch(config)
    return *models, (x if isinstance(config, GPTConfig) else x.astype(np.float64) * 0.9, y)


def same(model, by_hand, losses, expected):
    assert losses == pytest.approx(expected, rel=1e-9)
    for k, p in by_hand.parameters.items():
        np.testing.assert_allclose(dict(model.named_parameters())[k].data, p.data, rtol=1e-9, atol=1e-12, err_msg=k)


@pytest.mark.parametrize("config", [dataclasses.replace(v, beta=0.3) for v in VAES], ids=ids)
def test_training_steps_of_the_vae_by_hand(config):
    r"""θ ← Adam of ∇_θ [β KL − E log p(x | z)], each time anew"""
    model, other, data = twins(config)
    optimizers, by_hand = model.optimizers(), ByHand(other.named_parameters(), config.lr, 0.9, 0.999)
    for seed in (1, 2, 3):
        sg.manual_seed(seed)
        losses = model.training_step(data, optimizers)
        sg.manual_seed(seed)
        log_p, kl = other.elbo(sg.tensor(data[0]))
        loss = 0.3 * kl.mean() - log_p.mean()
        by_hand.step({k: sg.grad(loss, p, retain_graph=True)[0].data for k, p in by_hand.parameters.items()})
        by_hand.written()
        same(model, by_hand, losses, {"loss": loss.item(), "reconstruction": -log_p.mean().item(), "kl": kl.mean().item()})


@pytest.mark.parametrize("config", [*GANS, dataclasses.replace(GANS[0], loss="minimax")], ids=lambda c: f"{ids(c)}-{c.loss}")
def test_training_steps_of_the_gan_by_hand(config):
    r"""D up on V at the old G, then G against the new D; each player's gradient by itself, each time anew"""
    model, other, data = twins(config)
    optimizers = model.optimizers()
    players = {
        player: ByHand(
            [(f"{player}.{k}", p) for k, p in getattr(other, player).named_parameters()], config.lr, config.beta1, 0.999
        )
        for player in ("discriminator", "generator")
    }
    for seed in (1, 2, 3):
        sg.manual_seed(seed)
        losses = model.training_step(data, optimizers)
        sg.manual_seed(seed)
        x = sg.tensor(2 * data[0] - 1)
        fake = other.generator(other.noise(len(x)))
        if other.norm:
            real, judged = other.discriminator(x), other.discriminator(fake.detach())
        else:  # one draw of dropout for both
            real, judged = other.discriminator(sg.cat([x, fake.detach()])).chunk(2)
        loss_d = F.softplus(-real).mean() + F.softplus(judged).mean()
        d = players["discriminator"]
        grads = {k: sg.grad(loss_d, p, retain_graph=True)[0].data for k, p in d.parameters.items()}
        grad_d = math.sqrt(sum((g * g).sum() for g in grads.values()))
        d.step(grads)
        d.written()
        again = other.discriminator(fake)
        loss_g = F.softplus(-again).mean() if config.loss == "non-saturating" else -F.softplus(again).mean()
        g = players["generator"]
        grads = {k: sg.grad(loss_g, p, retain_graph=True)[0].data for k, p in g.parameters.items()}
        grad_g = math.sqrt(sum((a * a).sum() for a in grads.values()))
        g.step(grads)
        g.written()
        chances = {"d_real": F.sigmoid(real).mean().item(), "d_fake": F.sigmoid(judged).mean().item()}
        for player in players.values():
            lengths = {f"grad_{name[0]}": length for name, length in zip(players, (grad_d, grad_g), strict=True)}
            expected = {"loss_d": loss_d.item(), "loss_g": loss_g.item(), "penalty": 0.0, **chances, **lengths}
            same(model, player, losses, expected)


@pytest.mark.parametrize("config", GPTS, ids=ids)
def test_training_steps_of_the_gpt_by_hand(config):
    r"""g ← ∇ mean −log p, scaled to a norm of 1 where it is longer; AdamW on it, decay on matrices only"""
    config = dataclasses.replace(config, lr=1e-2)
    model, other, data = twins(config)
    optimizers, by_hand = model.optimizers(), ByHand(other.named_parameters(), config.lr, 0.9, config.beta2)
    norms = []
    for seed in (1, 2, 3):
        sg.manual_seed(seed)
        losses = model.training_step(data, optimizers)
        sg.manual_seed(seed)
        loss = F.nll_loss(F.log_softmax(other(sg.tensor(data[0])), -1).transpose(1, 2), data[1])
        grads = {k: sg.grad(loss, p, retain_graph=True)[0].data for k, p in by_hand.parameters.items()}
        norms.append(math.sqrt(sum(float((g * g).sum()) for g in grads.values())))
        grads = {k: g * min(1.0, 1.0 / (norms[-1] + 1e-6)) for k, g in grads.items()}
        for k, p in model.named_parameters():
            np.testing.assert_allclose(p.grad.data, grads[k], rtol=1e-9, atol=1e-14, err_msg=k)
        by_hand.step(grads, decay=lambda p: config.weight_decay if p.ndim > 1 else 0.0)
        by_hand.written()
        same(model, by_hand, losses, {"loss": loss.item()})
    assert max(norms) > 1.1, "clipping has something to do"


@pytest.mark.parametrize("config", [c for c in GANS + GAMES if not c.classes], ids=ids)
def test_a_discriminator_gives_one_logit_for_each_picture(config):
    model = build(config)
    x = model.generator(model.noise(5))
    assert x.shape == (5, *SHAPE) and model.discriminator(x).shape == (5,)


def test_the_generator_step_leaves_no_gradient_in_the_discriminator():
    model = build(GANS[0])
    fake = model.discriminator(model.generator(model.noise(4)))
    objective("non-saturating").generator(fake, fake).backward(inputs=list(model.generator.parameters()))
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())


@pytest.mark.parametrize("config", VAES + GPTS[:1], ids=ids)
def test_it_learns_eight_samples_by_heart(config):
    if isinstance(config, VAEConfig):  # what it may say about a picture is not charged here
        config = dataclasses.replace(config, beta=0.0, hidden=2 * config.hidden)
    model = build(config)
    optimizers = model.optimizers()
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
    data = batch(config)
    first = model.training_step(data, optimizers)["loss"]
    for _ in range(150):
        last = model.training_step(data, optimizers)
    if isinstance(config, GPTConfig):
        assert last["loss"] < 0.5 * first  # the first token of a row cannot be known
    else:
        assert last["reconstruction"] < 0.35 * first
        x = data[0]
        model.eval()
        assert np.mean((model.reconstruct(x) > 0.5) == (x > 0.5)) > 0.97


def test_a_gan_learns_a_simple_distribution():
    """Pictures that are black or white throughout, half each: the game must find both."""
    sg.manual_seed(0)
    model = GAN(GANConfig((1, 4, 4), "mlp", hidden=32, latent=4, lr=2e-3, dropout=0.0))
    optimizers = model.optimizers()
    rng = np.random.default_rng(0)
    for _ in range(400):
        white = rng.integers(0, 2, (64, 1, 1, 1)).astype(np.float32)
        model.training_step((np.broadcast_to(white, (64, 1, 4, 4)).copy(), None), optimizers)
    model.eval()
    x = model.generate(500, generator=np.random.default_rng(1)).reshape(500, 16)
    white, black = (x > 0.9).all(1).mean(), (x < 0.1).all(1).mean()
    assert white + black > 0.9 and min(white, black) > 0.2


# ----------------------------------------------------------------------------------------- losses at points worked by hand


def test_vae_loss_where_everything_is_zero():
    model = build(VAES[0])
    for p in model.parameters():
        with no_grad():
            p.zero_()
    x = batch(VAES[0])[0]
    log_likelihood, kl = model.elbo(sg.tensor(x))
    np.testing.assert_allclose(log_likelihood.data, np.full(8, -64 * math.log(2)), rtol=1e-6)  # every pixel ½
    np.testing.assert_array_equal(kl.data, np.zeros(8))  # q = p


def test_vae_terms_at_a_known_code():
    model = build(VAES[0])
    for p in model.parameters():
        with no_grad():
            p.zero_()
    with no_grad():
        model.encoder.mean.bias.fill_(2.0)
        model.encoder.log_var.bias.fill_(math.log(0.25))
    _, kl = model.elbo(sg.tensor(batch(VAES[0])[0]))
    expected = 4 * 0.5 * (4 + 0.25 - 1 - math.log(0.25))
    np.testing.assert_allclose(kl.data, np.full(8, expected), rtol=1e-6)


def test_gan_value_when_nothing_can_be_told_is_minus_log_4():
    zeros = sg.zeros(5)
    for name, of_g in (("minimax", -math.log(2)), ("non-saturating", math.log(2))):
        assert math.isclose(-objective(name).discriminator(zeros, zeros).item(), -math.log(4), rel_tol=1e-6)
        assert math.isclose(objective(name).generator(zeros, zeros).item(), of_g, rel_tol=1e-6)


def test_gan_losses_by_hand_and_finite_for_every_logit():
    real, fake = sg.tensor([1.0, -2.0]), sg.tensor([0.5, 3.0])
    D = lambda d: 1 / (1 + math.exp(-d))  # noqa: E731
    value = (math.log(D(1.0)) + math.log(D(-2.0))) / 2 + (math.log(1 - D(0.5)) + math.log(1 - D(3.0))) / 2
    assert math.isclose(-objective("minimax").discriminator(real, fake).item(), value, rel_tol=1e-5)
    d = sg.tensor([1e4, -1e4], requires_grad=True)
    for loss in (lower(d, d.flip(0)) for each in OBJECTIVES.values() for lower in (each.discriminator, each.generator)):
        (g,) = sg.grad(loss, d)
        assert np.isfinite(loss.item()) and np.isfinite(g.data).all()


def test_gpt_loss_is_uniform_where_the_weights_are_zero():
    model = build(GPTS[0])
    for p in model.parameters():
        with no_grad():
            p.zero_()
    x, y = batch(GPTS[0])
    np.testing.assert_allclose(model.loss(sg.tensor(x), sg.tensor(y)).item(), math.log(11), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- GPT


@pytest.mark.parametrize("config", GPTS, ids=ids)
def test_gpt_is_the_network_of_its_paper(config):
    """With several layers and heads, with and without biases, against the same drawn once more in NumPy."""
    model, _, (x, y) = twins(config)
    sg.manual_seed(0)
    assert math.isclose(model.loss(sg.tensor(x), sg.tensor(y)).item(), REFERENCES["models.GPT"](model, x, y), rel_tol=1e-10)


def test_gpt_does_not_see_the_future():
    model = build(GPTS[0]).eval()
    x, _ = batch(GPTS[0], 1)
    base = model(sg.tensor(x)).data
    for t in range(8):
        changed = x.copy()
        changed[0, t] = (changed[0, t] + 1) % 11
        moved = (model(sg.tensor(changed)).data != base).any(-1)[0]
        assert not moved[:t].any() and moved[t:].all()


def test_gpt_probabilities_of_all_short_texts_sum_to_one():
    model = build(GPTConfig(3, 4, 1, 1, 8)).eval()
    texts = np.stack(np.meshgrid(*[range(3)] * 3, indexing="ij"), -1).reshape(-1, 3)  # every continuation of a fixed start
    start = np.zeros((len(texts), 1), np.int64)
    log_p = F.log_softmax(model(sg.tensor(np.concatenate([start, texts[:, :-1]], 1))), -1)
    total = np.exp(log_p.gather(2, texts[..., None]).data.astype(np.float64).sum((1, 2))).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_gpt_generation_slides_its_window_and_repeats_with_its_seed():
    model = build(GPTS[0]).eval()
    start = np.array([[1, 2, 3], [4, 5, 6]])
    a = model.generate(start, 20, generator=np.random.default_rng(3))
    b = model.generate(start, 20, generator=np.random.default_rng(3))
    c = model.generate(start, 20, generator=np.random.default_rng(4))
    assert a.shape == (2, 23) and (a[:, :3] == start).all() and a.min() >= 0 and a.max() < 11
    assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize("rule", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.8}], ids=str)
@pytest.mark.parametrize("config", GPTS, ids=ids)
def test_gpt_generates_with_its_cache_what_it_would_without(config, rule, monkeypatch):
    """Each token once while the text fits in the block of 8; the whole window for each token once it slides."""
    model = build(config).eval()
    start, rng = np.array([[1, 2, 3], [4, 5, 6]]), np.random.default_rng(3)
    expected = start
    for _ in range(8):
        logits = model(sg.tensor(expected[:, -8:])).data[:, -1]
        expected = np.concatenate([expected, sample(logits, rng=rng, **rule)[:, None]], 1)
    seen = []
    monkeypatch.setattr(model, "forward", lambda ids, caches: (seen.append(ids.shape), GPT.forward(model, ids, caches))[1])
    found = model.generate(start, 8, generator=np.random.default_rng(3), **rule)
    np.testing.assert_array_equal(found, expected)
    assert seen == [(2, 3)] + 5 * [(2, 1)] + 2 * [(2, 8)]
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        caches = [nn.KeyValueCache() for _ in range(2)]
        for n in (6, 3):
            GPT.forward(model, sg.tensor(np.zeros((1, n), np.int64)), caches)


def test_gpt_refuses_too_few_caches_before_any_takes_a_token():
    model = build(GPTConfig(11, 8, 2, 2, 16)).eval()
    caches = [nn.KeyValueCache()]
    with pytest.raises(ValueError, match="expected a cache for each of 2 blocks, got 1"):
        model(sg.tensor(np.zeros((1, 3), np.int64)), caches)
    assert caches[0].length == 0


def test_gpt_without_blocks_generates_too():
    model = build(GPTConfig(11, 8, 0, 2, 16)).eval()
    start = np.array([[1, 2, 3]])
    a = model.generate(start, 3, temperature=0.0)
    assert a[0, 4] == model(sg.tensor(a[:, :4])).data[0, -1].argmax()


def test_gpt_greedy_is_the_argmax():
    model = build(GPTS[0]).eval()
    start = np.array([[1, 2, 3]])
    out = model.generate(start, 1, temperature=0.0)
    assert out[0, 3] == model(sg.tensor(start)).data[0, -1].argmax()


def test_gpt_dropout_is_off_in_evaluation():
    model = build(GPTS[1])
    x = sg.tensor(batch(GPTS[1])[0])
    assert (model(x).data != model(x).data).any()
    model.eval()
    np.testing.assert_array_equal(model(x).data, model(x).data)


# ------------------------------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("config", VAES + GANS, ids=ids)
def test_pictures_are_in_range_and_repeat_with_their_seed(config):
    model = build(config).eval()
    for make in (lambda g: model.generate(6, generator=g), lambda g: model.walk(2, 3, generator=g)):
        a, b, c = make(np.random.default_rng(1)), make(np.random.default_rng(1)), make(np.random.default_rng(2))
        assert a.shape == (6, *SHAPE) and a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1
        assert (a == b).all() and (a != c).any()


def test_vae_interpolation_starts_and_ends_at_the_reconstructions():
    model = build(VAES[0]).eval()
    a, b = batch(VAES[0])[0][:2]
    line = model.interpolate(a, b, 5)
    np.testing.assert_allclose(line[[0, -1]], model.reconstruct(np.stack([a, b])), rtol=1e-5, atol=1e-6)


def test_gan_walk_keeps_the_length_of_the_code():
    model = build(GANS[0]).eval()
    seen = []
    model.generator.forward, forward = (lambda z, c: (seen.append(z.data), forward(z))[1]), model.generator.forward
    model.walk(1, 9, generator=np.random.default_rng(0))
    lengths = np.linalg.norm(seen[0], axis=1)
    low, high = sorted(lengths[[0, -1]])
    assert (lengths > 0.7 * low).all() and (lengths < 1.4 * high).all()


def test_truncation_shrinks_the_codes_down_to_one_picture_for_each_class():
    config = GANConfig((1, 8, 8), network="dcgan", hidden=8, latent=5, classes=3)
    model, classes = build(config).eval(), {"classes": ["a", "b", "c"]}
    whole, less, none = (gan.sample_classes(model, classes, 6, np.random.default_rng(0), truncation=t) for t in (1.0, 0.5, 0.0))
    np.testing.assert_array_equal(none[:3], none[3:])
    assert 0 < (less[:3] - less[3:]).std() < (whole[:3] - whole[3:]).std()
    np.testing.assert_array_equal(whole, model.generate(6, y=np.arange(6) % 3, generator=np.random.default_rng(0)))


def test_gan_walk_between_uniform_codes_is_straight_and_stays_among_them():
    model = build(dataclasses.replace(GANS[0], noise="uniform")).eval()
    seen = []
    model.generator.forward, forward = (lambda z, c: (seen.append(z.data), forward(z))[1]), model.generator.forward
    model.walk(2, 9, generator=np.random.default_rng(0))
    z = seen[0].reshape(2, 9, -1)
    assert (abs(z) <= 1).all() and abs(z).max() > 0.8
    np.testing.assert_allclose(np.diff(z, 2, axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_the_page_writes_what_the_players_lower_with_the_penalties_that_are_asked_for(loss):
    plain, penalised = (
        gan.equations(build(GANConfig(SHAPE, hidden=12, latent=5, dropout=0.0, loss=loss, **more)))
        for more in ({}, {"gradient_penalty": 10.0, "r1": 1.0, "r2": 1.0})
    )
    assert [equation[:6] for equation in plain] == ["L_D = ", "L_G = "] and "∇" not in plain[0]
    assert penalised[0].startswith(plain[0]) and penalised[0].count("∇") == 3 and penalised[1] == plain[1]


@pytest.mark.parametrize("config", VAES + GANS + GPTS[:1], ids=ids)
def test_evaluation_gives_finite_numbers_and_leaves_no_graph(config):
    model = build(config).eval()
    figures = model.evaluate([batch(config), batch(config)])
    assert figures and all(isinstance(v, float) and math.isfinite(v) for v in figures.values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (VAEConfig(network="banana"), "'mlp' or 'conv', got 'banana'"),
        (VAEConfig(shape=(1, 7, 8), network="conv"), "divisible by 4"),
        (GANConfig(network="banana"), "'mlp', 'dcgan' or 'residual'"),
        (GANConfig(loss="banana"), "minimax, non-saturating, least-squares, hinge, wasserstein, relativistic"),
        (GANConfig(noise="banana"), "'gaussian' or 'uniform'"),
        (GANConfig(upsample="banana"), "'nearest' or 'transposed'"),
        (GANConfig(r1=1.0), "dropout=0 with a penalty"),
        (GANConfig(classes=10), "takes no classes"),
        (GANConfig(network="residual", hidden=32), "divisible by 24"),
        (GANConfig(shape=(1, 9, 8), network="dcgan"), "divisible by 4"),
        (GPTConfig(n_embd=10, n_head=4), "multiple of n_head, got 10 and 4"),
    ],
)
def test_bad_settings_get_one_clear_sentence(config, words):
    with pytest.raises(ValueError, match=words):
        build(config)


def test_bad_calls_get_one_clear_sentence():
    model = build(GPTS[0])
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        model(sg.tensor(np.zeros((1, 9), np.int64)))
    with pytest.raises(ValueError, match=r"integer tokens of shape \(B, T\)"):
        model.generate(np.zeros((1, 0), np.int64), 3)
    with pytest.raises(IndexError, match="from 0 to 10"):
        model(sg.tensor(np.full((1, 2), 11)))
