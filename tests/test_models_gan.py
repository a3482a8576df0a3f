r"""Whole steps of the games whose penalties need second derivatives, beside the same steps in plain NumPy, all by hand.

    D(x) = w₃ · a(W₂ a(W₁ x + b₁) + b₂) + b₃     a: leaky ReLU, whose slopes m₁, m₂ are 1 or 0.2
    ∇D(x) = W₁ᵀ (m₁ ⊙ W₂ᵀ (m₂ ⊙ w₃))

a is straight on both sides of 0, so that the penalty depends on the weights through this product alone, and on no bias.
"""

import numpy as np
import pytest

import scratchgen as sg
from scratchgen.models.gan import GAN, GANConfig

LEAK = 0.2
B, EPS = 8, 1e-5


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


class Discriminator:
    """Keys as in the state of `MLPDiscriminator`: net.0, net.3, net.6 (W, b)."""

    def __init__(self, state):
        self.w1, self.b1, self.w2, self.b2, self.w3, self.b3 = (
            state[f"discriminator.net.{i}.{k}"] for i in (0, 3, 6) for k in ("weight", "bias")
        )

    def forward(self, x):
        h1 = x @ self.w1.T + self.b1
        m1 = np.where(h1 > 0, 1, LEAK)
        h2 = (h1 * m1) @ self.w2.T + self.b2
        m2 = np.where(h2 > 0, 1, LEAK)
        return ((h2 * m2) @ self.w3.T + self.b3)[:, 0], (x, h1, m1, h2, m2)

    def backward(self, dy, kept):
        """The gradients of the weights and of x, from those of the logits."""
        x, h1, m1, h2, m2 = kept
        by_h2 = dy[:, None] * self.w3 * m2
        by_h1 = by_h2 @ self.w2 * m1
        of_weights = [by_h1.T @ x, by_h1.sum(0), by_h2.T @ (h1 * m1), by_h2.sum(0), dy[None] @ (h2 * m2), dy.sum(keepdims=True)]
        return of_weights, by_h1 @ self.w1

    def slope(self, kept):
        _, _, m1, _, m2 = kept
        a = m2 * self.w3  # (B, h₂)
        b = m1 * (a @ self.w2)  # (B, h₁)
        return b @ self.w1, a, b  # (B, n)

    def of_slope(self, by_slope, kept):
        """The gradients of the weights, from those of ∇D: the second derivatives."""
        _, _, m1, _, m2 = kept
        _, a, b = self.slope(kept)
        c = m1 * (by_slope @ self.w1.T)
        return [b.T @ by_slope, 0, a.T @ c, 0, (m2 * (c @ self.w2.T)).sum(0, keepdims=True), 0]


class Generator:
    """Keys as in the state of `MLPGenerator`: net.0, 3, 6 linear, net.1, 4 batch norms."""

    def __init__(self, state):
        self.linear = [(state[f"generator.net.{i}.weight"], state[f"generator.net.{i}.bias"]) for i in (0, 3, 6)]
        self.norm = [(state[f"generator.net.{i}.weight"], state[f"generator.net.{i}.bias"]) for i in (1, 4)]

    def forward(self, z):
        kept, h = [], z
        for (w, b), (gamma, beta) in zip(self.linear, self.norm, strict=False):
            y = h @ w.T + b
            root = np.sqrt(y.var(0) + EPS)
            n = (y - y.mean(0)) / root
            kept.append((h, n, root, n * gamma + beta > 0))
            h = np.maximum(n * gamma + beta, 0)
        x = np.tanh(h @ self.linear[2][0].T + self.linear[2][1])
        return x, (*kept, (h, x))

    def backward(self, by_x, kept):
        h, x = kept[2]
        by_y = by_x * (1 - x * x)
        grads = {"6.weight": by_y.T @ h, "6.bias": by_y.sum(0)}
        by_h = by_y @ self.linear[2][0]
        for i in (1, 0):
            h, n, root, on = kept[i]
            by_h = by_h * on
            grads |= {f"{3 * i + 1}.weight": (by_h * n).sum(0), f"{3 * i + 1}.bias": by_h.sum(0)}
            by_n = by_h * self.norm[i][0]
            by_y = (by_n - by_n.mean(0) - n * (by_n * n).mean(0)) / root
            grads |= {f"{3 * i}.weight": by_y.T @ h, f"{3 * i}.bias": by_y.sum(0)}
            by_h = by_y @ self.linear[i][0]
        return grads


class Adam:
    def __init__(self, state, lr, betas):
        self.state, self.lr, self.betas, self.t = state, lr, betas, 0
        self.m, self.v = ({k: 0 * p for k, p in state.items()} for _ in range(2))

    def step(self, grads):
        self.t += 1
        b1, b2 = self.betas
        for k, g in grads.items():
            self.m[k] = b1 * self.m[k] + (1 - b1) * g
            self.v[k] = b2 * self.v[k] + (1 - b2) * g * g
            rise = self.m[k] / (1 - b1**self.t) / (np.sqrt(self.v[k] / (1 - b2**self.t)) + 1e-8)
            self.state[k] = self.state[k] - self.lr * rise


def penalty_of(config, d, x, fake, kept_real, kept_fake, share):
    """The penalty's value, and its gradients with respect to D's six arrays."""
    total, grads = 0.0, [0.0] * 6
    for gamma, kept in ((config.r1, kept_real), (config.r2, kept_fake)):
        if gamma:
            slope, _, _ = d.slope(kept)
            total += gamma / 2 * (slope**2).sum() / B
            grads = [a + b for a, b in zip(grads, d.of_slope(gamma * slope / B, kept), strict=True)]
    if config.gradient_penalty:
        _, kept = d.forward(share * x + (1 - share) * fake)
        slope, _, _ = d.slope(kept)
        size = np.linalg.norm(slope, axis=1, keepdims=True)
        total += config.gradient_penalty * ((size - 1) ** 2).mean()
        by_slope = config.gradient_penalty * 2 / B * (size - 1) * slope / size
        grads = [a + b for a, b in zip(grads, d.of_slope(by_slope, kept), strict=True)]
    return total, grads


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "wasserstein", "gradient_penalty": 10.0},
        {"loss": "relativistic", "r1": 0.7, "r2": 0.4},
    ],
    ids=lambda s: s["loss"],
)
def test_three_steps_by_hand(settings):
    config = GANConfig((1, 4, 4), hidden=12, latent=5, dropout=0.0, lr=1e-2, lr_d=3e-2, beta1=0.5, beta2=0.9, **settings)
    sg.manual_seed(0)
    model = GAN(config).double()
    rng = np.random.default_rng(1)
    with sg.no_grad():
        for p in model.parameters():
            p.add_(0.3 * sg.tensor(rng.standard_normal(p.shape)))
    state = {k: p.data.copy() for k, p in model.named_parameters()}
    adam_d = Adam({k: p for k, p in state.items() if k.startswith("d")}, config.lr_d, (0.5, 0.9))
    adam_g = Adam({k: p for k, p in state.items() if k.startswith("g")}, config.lr, (0.5, 0.9))
    optimizers = model.optimizers()
    pictures = rng.random((B, 1, 4, 4))
    for seed in (1, 2, 3):
        sg.manual_seed(seed)
        losses = model.training_step((pictures, None), optimizers)

        sg.manual_seed(seed)
        z = model.noise(B).data
        x = (2 * pictures - 1).reshape(B, -1)
        g = Generator(adam_g.state)
        fake, kept_g = g.forward(z)
        d = Discriminator(adam_d.state)
        (real, kept_real), (judged, kept_fake) = d.forward(x), d.forward(fake)
        share = sg.rand(B, 1, 1, 1, dtype=np.float64).data.reshape(B, 1) if config.gradient_penalty else None
        if config.loss == "wasserstein":
            loss_d, by_real, by_fake = judged.mean() - real.mean(), -np.full(B, 1 / B), np.full(B, 1 / B)
        else:
            loss_d = np.log1p(np.exp(judged - real)).mean()
            by_fake = sigmoid(judged - real) / B
            by_real = -by_fake
        total, of_penalty = penalty_of(config, d, x, fake, kept_real, kept_fake, share)
        both = zip(d.backward(by_real, kept_real)[0], d.backward(by_fake, kept_fake)[0], of_penalty, strict=True)
        adam_d.step(dict(zip(adam_d.state, (a + b + c for a, b, c in both), strict=True)))

        d = Discriminator(adam_d.state)
        (real_after, _), (judged_after, kept) = d.forward(x), d.forward(fake)
        if config.loss == "wasserstein":
            loss_g, by_fake = -judged_after.mean(), -np.full(B, 1 / B)
        else:
            loss_g = np.log1p(np.exp(real_after - judged_after)).mean()
            by_fake = -sigmoid(real_after - judged_after) / B
        _, by_x = d.backward(by_fake, kept)
        adam_g.step({f"generator.net.{k}": v for k, v in g.backward(by_x, kept_g).items()})

        expected = {"loss_d": loss_d, "loss_g": loss_g, "penalty": total}
        assert {k: losses[k] for k in expected} == pytest.approx(expected, rel=1e-9, abs=1e-9)
        for k, p in model.named_parameters():
            by_hand = (adam_d.state | adam_g.state)[k]
            np.testing.assert_allclose(p.data, by_hand, rtol=1e-8, atol=1e-10, err_msg=k)
