r"""Steps of a discriminator alone, beside PyTorch eager and JAX jit: where a sweep differentiates a sweep.

D lowers its objective and a penalty on its slope ∇ₓD, over one batch of real pictures and one of generated ones, which stay as
they are. Weights, batches, the ε of WGAN-GP's x̂ = ε x + (1 − ε) x̃ for the first two steps, and Adam are the same for all; the
losses of these two steps must agree. D is written once for both rivals, as a function of its weights, `judge`.

A D without batch norm judges both batches as one, here and in the rivals.

Where the time of such a step goes (two threads, Intel Xeon with AVX-512, quiet):

    Of the perceptron's step, 3.4 ms, products of matrices take 1.8 ms at 210 Gflop/s, Adam 0.2, all other ops 0.4, and Python
    about 1: 5 µs a node in `apply`, as much in the sweeps. JAX, which compiles the whole step, takes 2.2 ms for all of it.
    Of the convolutional one, 20 ms, convolutions take 15 ms, leaky ReLUs 1, and Python about 3, of which a tenth is the
    flattening of what each convolution is told into a record of integers.

    What gained: one batch of real and generated pictures in place of two: 11 % of the perceptron's WGAN-GP step, 18 % of its
    R3GAN step, 5 % and 9 % of the convolutional ones. What gained nothing that could be told from what two processes of the
    same code differ by: fewer nodes (a bias in its convolution's node, slopes from given cotangents, x̂ made of arrays, the
    zero-centred penalty as one sum: 138 became 102); the product x Wᵀ as (W xᵀ)ᵀ, which copies x, not W, into panels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import scratchgen as sg
from benchmarks import clock
from benchmarks.clock import Goal
from scratchgen import random
from scratchgen.models import GAN, GANConfig

BATCH, SHAPE = 64, (1, 28, 28)
PERCEPTRON = {"network": "mlp", "hidden": 256, "dropout": 0.0}
CONVOLUTIONS = {"network": "dcgan", "hidden": 64}
WASSERSTEIN = {"loss": "wasserstein", "gradient_penalty": 10.0}
RELATIVISTIC = {"loss": "relativistic", "r1": 1.0, "r2": 1.0}
CASES: dict[str, tuple[dict, tuple[str, ...]]] = {  # what the model is, and its rivals
    "WGAN-GP critic 784-256-256-1": (PERCEPTRON | WASSERSTEIN, ("torch", "jax")),
    "R3GAN D 784-256-256-1": (PERCEPTRON | RELATIVISTIC, ("torch", "jax")),
    "WGAN-GP critic, convolutional": (CONVOLUTIONS | WASSERSTEIN, ("torch", "jax")),
    "R3GAN D, convolutional": (CONVOLUTIONS | RELATIVISTIC, ("torch", "jax")),
    "DCGAN D, with batch norm": (CONVOLUTIONS, ("torch",)),
}
PERCEPTRON_WGAN, _, CONVOLUTIONAL_WGAN, CONVOLUTIONAL_R3, PLAIN = CASES


def run(quick: bool, only: str) -> list[dict]:
    """Milliseconds a step; × above 1 means faster than the rival."""
    rows = []
    with clock.Rivals("critics", ["ours", "torch", "jax"]) as rivals:
        for case, (_, against) in CASES.items():
            if only in case:
                times = rivals.compare(case, *((5, 0.2) if quick else (15, 0.4)), ["ours", *against])
                rows.append({"step": case, **clock.summary(times)})
    return rows


def goals(rows: list[dict]) -> list[Goal]:
    """The rows of the table of aims that these figures answer."""
    found = {row["step"]: row for row in rows}
    aims = [
        (PERCEPTRON_WGAN, "jax", "JAX jit", 0.9, 1.1),
        (CONVOLUTIONAL_WGAN, "torch", "PyTorch eager", 1.4, 1.8),
        (CONVOLUTIONAL_R3, "torch", "PyTorch eager", 1.2, 1.5),
        (PLAIN, "torch", "PyTorch eager", 1.0, 1.2),
    ]
    table = []
    for case, who, rival, least, aim in aims:
        if case in found:
            ours, theirs, x = (found[case].get(key) for key in ("ours ms", f"{who} ms", f"× {who}"))
            beside = rival if theirs is None else f"{rival}: {theirs:.2f} ms"
            table.append(Goal(f"{case}, step", f"{ours:.2f} ms", beside, x, least, aim))
    return table


def build(who: str, case: str) -> Callable[[], float]:
    """One step of D, which returns what D lowered."""
    rng = np.random.default_rng(0)
    sg.manual_seed(0)
    model = GAN(GANConfig(SHAPE, **CASES[case][0]))
    real = np.where(rng.random((BATCH, *SHAPE)) < 0.3, 1, -1).astype(np.float32)
    fake = np.tanh(rng.standard_normal((BATCH, *SHAPE))).astype(np.float32)
    sg.manual_seed(1)  # from here on, ε
    return {"ours": ours, "torch": torch_twin, "jax": jax_twin}[who](model, real, fake)


def ours(model: GAN, real: np.ndarray, fake: np.ndarray) -> Callable[[], float]:
    """The step of D in `GAN.training_step`."""
    optimizer = model.optimizers()["discriminator"]
    parameters = list(model.discriminator.parameters())
    x, made = sg.tensor(real), sg.tensor(fake)

    def step() -> float:
        d_real, d_fake, penalty = model.judged(x, made, None)
        loss = model.objective.discriminator(d_real, d_fake)
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        optimizer.step()
        return loss.item()

    return step


def judge(model: GAN, F: Any, w: dict, x: Any) -> Any:
    """D(x) as the models' file `adversaries.py` has it: `F` has the functions, `w` the weights, by name.   (B, …) → (B)"""
    if model.config.network == "mlp":
        h = x.reshape(len(x), -1)
        for layer in (0, 3):
            h = F.leaky_relu(F.linear(h, w[f"net.{layer}.weight"], w[f"net.{layer}.bias"]), 0.2)
        return F.linear(h, w["net.6.weight"], w["net.6.bias"])[:, 0]
    for i, stride in ((1, 2), (2, 2), (3, 1)):
        x = F.conv2d(x, w[f"conv{i}.weight"], w.get(f"conv{i}.bias"), stride, 1)
        if f"norm{i}.weight" in w:
            x = F.batch_norm(x, *(w[f"norm{i}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")), True)
        x = F.leaky_relu(x, 0.2)
    return F.linear(x.reshape(len(x), -1), w["judge.fc.weight"], w["judge.fc.bias"])[:, 0]


def _shares() -> list[np.ndarray]:
    """ε of the first two steps, as ours draws it."""
    return [random.generator().random((BATCH, 1, 1, 1)).astype(np.float32) for _ in range(2)]


def torch_twin(model: GAN, real: np.ndarray, fake: np.ndarray) -> Callable[[], float]:
    """The same step in PyTorch, with its default Adam."""
    torch = clock.torch()
    F, c, trained = torch.nn.functional, model.config, dict(model.discriminator.named_parameters())
    w = {name: torch.tensor(np.array(a), requires_grad=name in trained) for name, a in model.discriminator.state_dict().items()}
    optimizer = torch.optim.Adam([w[name] for name in trained], c.lr, (c.beta1, c.beta2))
    x, made = torch.tensor(real), torch.tensor(fake)
    first = [torch.tensor(share) for share in _shares()]

    def slopes(d: Any, at: Any) -> Any:
        return torch.autograd.grad(d.sum(), at, create_graph=True)[0].flatten(1)

    def step() -> float:
        both = torch.cat([x, made]).requires_grad_(c.loss == "relativistic")
        d = None if model.norm else judge(model, F, w, both)
        d_real, d_fake = d.split(BATCH) if d is not None else (judge(model, F, w, x), judge(model, F, w, made))
        if c.loss == "wasserstein":
            share = first.pop(0) if first else torch.rand(BATCH, 1, 1, 1)
            middle = (share * x + (1 - share) * made).requires_grad_()
            slope = slopes(judge(model, F, w, middle), middle)
            loss = d_fake.mean() - d_real.mean() + c.gradient_penalty * (slope.norm(dim=1) - 1).square().mean()
        elif c.loss == "relativistic":
            loss = F.softplus(d_fake - d_real).mean()
            for gamma, slope in zip((c.r1, c.r2), slopes(d, both).split(BATCH), strict=True):
                loss = loss + gamma / 2 * slope.square().sum(1).mean()
        else:
            loss = F.softplus(-d_real).mean() + F.softplus(d_fake).mean()
        optimizer.zero_grad()
        loss.backward(inputs=optimizer.param_groups[0]["params"])
        optimizer.step()
        return loss.item()

    return step


class JaxFunctions:
    """What `judge` asks for."""

    def __init__(self) -> None:
        import jax

        self.jax = jax

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return x @ weight.T + bias

    def conv2d(self, x: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
        sides = [(padding, padding)] * 2
        y = self.jax.lax.conv_general_dilated(x, weight, (stride, stride), sides, dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return y + bias[:, None, None]

    def leaky_relu(self, x: Any, slope: float) -> Any:
        return self.jax.nn.leaky_relu(x, slope)


def jax_twin(model: GAN, real: np.ndarray, fake: np.ndarray) -> Callable[[], float]:
    """The same step in JAX: loss, both derivatives and Adam as one compiled function that updates its buffers in place."""
    F = JaxFunctions()
    jax, c = F.jax, model.config
    jnp, tree_map = jax.numpy, jax.tree_util.tree_map
    weights = {name: jnp.asarray(p.data) for name, p in model.discriminator.named_parameters()}
    x, made = jnp.asarray(real), jnp.asarray(fake)
    first = [jnp.asarray(share) for share in _shares()]

    def of(w: Any, at: Any) -> tuple[Any, Any]:
        """Σ D and D, whose slope is asked for too."""
        d = judge(model, F, w, at)
        return d.sum(), d

    slopes = jax.value_and_grad(of, argnums=1, has_aux=True)

    def loss_of(w: Any, x: Any, made: Any, share: Any) -> Any:
        both = jnp.concatenate([x, made])
        if c.loss == "wasserstein":
            middle = share * x + (1 - share) * made
            slope = slopes(w, middle)[1].reshape(BATCH, -1)
            penalty = c.gradient_penalty * jnp.mean((jnp.linalg.norm(slope, axis=1) - 1) ** 2)
            d_real, d_fake = jnp.split(judge(model, F, w, both), 2)
            return d_fake.mean() - d_real.mean() + penalty
        (_, d), at_both = slopes(w, both)
        d_real, d_fake = jnp.split(d, 2)
        penalty = sum(g / 2 * jnp.sum(s**2) / BATCH for g, s in zip((c.r1, c.r2), jnp.split(at_both, 2), strict=True))
        return jax.nn.softplus(d_fake - d_real).mean() + penalty

    def adam(state: Any, x: Any, made: Any, share: Any) -> Any:
        w, m, v, t, key = state
        loss, g = jax.value_and_grad(loss_of)(w, x, made, share)
        t, b1, b2 = t + 1, c.beta1, c.beta2
        m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        v = tree_map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)
        new = lambda w, m, v: w - c.lr * (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + 1e-8)  # noqa: E731
        return (tree_map(new, w, m, v), m, v, t, key), loss

    def with_own_share(state: Any, x: Any, made: Any) -> Any:
        key, here = jax.random.split(state[4])
        return adam((*state[:4], key), x, made, jax.random.uniform(here, (BATCH, 1, 1, 1)))

    with_first_share, own = jax.jit(adam, donate_argnums=0), jax.jit(with_own_share, donate_argnums=0)
    zeros = (tree_map(jnp.zeros_like, weights) for _ in "mv")
    state = (weights, *zeros, jnp.float32(0), jax.random.PRNGKey(0))

    def step() -> float:
        nonlocal state
        state, loss = with_first_share(state, x, made, first.pop(0)) if first else own(state, x, made)
        return loss.item()

    return step
