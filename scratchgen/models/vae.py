r"""The variational autoencoder.  Kingma & Welling 2013, arXiv:1312.6114; Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082.

A picture x is thought to come from a latent code z ~ p(z) = N(0, I) by way of a decoder p(x | z). Its likelihood
p(x) = ∫ p(x | z) p(z) dz cannot be computed, but for any q(z | x) it is bounded from below:

    log p(x) = ELBO + KL(q(z | x) ‖ p(z | x)) ≥ ELBO                                                              (1)
    ELBO     = E_{q(z | x)}[log p(x | z)] − KL(q(z | x) ‖ p(z))                                                   (2)
               what the code says of x      what it costs to say it

The encoder gives q(z | x) = N(μ(x), diag σ²(x)), for which the KL is known (`functional.kl_standard_gaussian`), or is
estimated by log q(z | x) − log p(z). The expectation is estimated with one sample, written so that the gradient passes through
it (`functional.reparameterize`):

    z = μ + σ ⊙ ε,   ε ~ N(0, I)                                                                                  (3)

With k samples there is a tighter bound (Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, eq. 8; it rises with k):

    L_k = E log 1/k Σ_i w_i ≤ log p(x),   w_i = p(x | z_i) p(z_i) / q(z_i | x),   L_1 = ELBO                      (4)

The encoder φ's gradient of L_k is one of log w_i along z_i, and one of log q at fixed z_i, which is nothing but noise in the
mean for k = 1 and drowns the first for large k. Reparameterised once more, it becomes the first alone, with squared weights
(Tucker et al. 2019, arXiv:1810.04152, eq. 8: DReG); the decoder's stays as it is:

    ∇_φ L_k = E Σ_i w̃_i² ∂ log w_i / ∂z_i  ∂z_i / ∂φ,   ∇_θ L_k = E Σ_i w̃_i ∂ log w_i / ∂θ,   w̃_i = w_i / Σ_j w_j    (5)

What p(x | z) is of pixels stands in `likelihoods.py`, the networks in `coders.py`. Training can depart from (2) on purpose:

    loss = −log p(x | z) + β Σ_j max(λ, KL_j)         KL_j of one latent, its mean over the batch before the max        (6)

β > 1 asks for a cheaper code (Higgins et al. 2017), β that rises from 0 and λ > 0, the free bits (in nats, Kingma et al. 2016,
arXiv:1606.04934, eq. 15), keep latents from being given up early. With `classes`, encoder and decoder are told the class of a
picture, so that the code need only tell the rest of it, its style (Kingma et al. 2014, arXiv:1406.5298; Sohn et al. 2015).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen import data, metrics, nn, optim, random
from scratchgen import functional as F
from scratchgen.grad_mode import no_grad
from scratchgen.models import doctor, latent, likelihoods, pictures
from scratchgen.models.coders import ClassCentre, ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from scratchgen.models.family import Draw, Family, Line, Page, Panel, Pictures, Score
from scratchgen.ops import logsumexp, maximum, rand_like, randn, randn_like
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class VAEConfig:
    shape: tuple[int, int, int] = (1, 8, 8)  # of a picture: channels, height, width
    network: str = "mlp"  # or "conv"
    hidden: int = 400  # width of the hidden layers; channels of the first convolution
    latent: int = 20  # length of z
    beta: float = 1.0  # weight of the KL
    lr: float = 1e-3
    layers: int = 1  # hidden layers of a perceptron
    activation: str = "relu"  # or "tanh", of the same
    likelihood: str = "bernoulli"  # a key of `likelihoods.LIKELIHOODS`
    sigma: float = 0.1  # of the likelihood "gaussian"
    sigma_min: float = 0.002  # the least scale of "learned-gaussian" and "discretized-logistic"
    levels: int = 256  # of grey, of "discretized-logistic" and of pixels "dequantized"
    pixels: str = "grey"  # as they are; or "binary": 1 above ½; "drawn": 1 with their value as chance; "dequantized"
    reduction: str = "sum"  # over the pixels; or "mean", under which the KL counts as many times more as there are pixels
    kl: str = "analytic"  # or "sampled"
    beta_warmup: float = 0.0  # share of the steps over which β rises from 0
    free_bits: float = 0.0  # λ: nats of each latent that cost nothing less
    samples: int = 1  # k of the importance-weighted bound
    gradient: str = "dreg"  # or "reparameterized", of the encoder where k > 1
    classes: int = 0  # of the data, which encoder and decoder are told; 0: none


PARKED = 1.05  # times the free bits: up to here a latent counts as parked there
AT_ONCE = 2**21  # numbers that a decoder may say in one pass of `log_likelihood`


class VAE(nn.Module):
    """Encoder, decoder and the bound (2) or (4) they are trained to raise."""

    progress = 1.0  # the share of its steps that a run has done, which the loop of training sets before each

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = c = config
        for setting, known in (
            ("network", ("mlp", "conv")),
            ("activation", ("relu", "tanh")),
            ("pixels", ("grey", "binary", "drawn", "dequantized")),
            ("reduction", ("sum", "mean")),
            ("kl", ("analytic", "sampled")),
            ("gradient", ("dreg", "reparameterized")),
        ):
            if getattr(c, setting) not in known:
                *most, last = map(repr, known)
                raise ValueError(f"VAE: expected {setting} {', '.join(most)} or {last}, got {getattr(c, setting)!r}")
        if c.network == "conv" and (c.shape[1] % 4 or c.shape[2] % 4):
            raise ValueError(f"VAE: the convolutional network expects sides divisible by 4, got pictures of shape {c.shape}")
        if c.beta_warmup > 1:
            raise ValueError(f"VAE: expected beta_warmup from 0 to 1, a share of the steps, got {c.beta_warmup:g}")
        if c.samples > 1 and (c.beta, c.beta_warmup, c.free_bits, c.reduction) != (1, 0, 0, "sum"):
            raise ValueError(
                "VAE: the importance-weighted bound has no terms to weigh: expected beta=1, beta_warmup=0, free_bits=0 and "
                f"reduction='sum' with samples above 1, got samples={c.samples}"
            )
        self.likelihood = likelihoods.likelihood(c.likelihood, sigma=c.sigma, sigma_min=c.sigma_min, levels=c.levels)
        how: dict[str, Any] = {"features": c.classes}
        if c.network == "mlp":
            how |= {"layers": c.layers, "activation": c.activation}
        encoder, decoder = (MLPEncoder, MLPDecoder) if c.network == "mlp" else (ConvEncoder, ConvDecoder)
        self.encoder = encoder(c.shape, c.hidden, c.latent, **how)
        self.decoder = decoder(c.shape, c.hidden, c.latent, outputs=self.likelihood.outputs, **how)
        self.centre = ClassCentre(c.classes, c.latent) if c.classes else None

    # What the model sees

    def observe(self, x: Any, *, generator: np.random.Generator | None = None) -> Tensor:
        """Pictures in [0, 1] as the model sees them: grey; binary, x > ½; or, anew each time, drawn or dequantized.

        Drawn: x ~ B(value) (Salakhutdinov & Murray 2008), whose noise costs nats, so that these do not compare with those of
        binary pixels. Dequantized: (level + u) / L with u ~ U(0, 1), so that E_u log p(x) is a bound on the log of the chance
        that p gives to a level.
        """
        x = as_tensor(x).to(self.device)
        if self.config.pixels == "binary":
            return (x > 0.5).to(x.dtype)
        if self.config.pixels == "drawn":
            return x.bernoulli(generator=generator)
        if self.config.pixels == "dequantized":
            return (x * (self.config.levels - 1) + rand_like(x, generator=generator)) / self.config.levels
        return x

    def condition(self, y: Any) -> Tensor | None:
        """The classes as vectors, one-hot, that encoder and decoder read.     (B) → (B, classes), None where there are none"""
        return pictures.condition(self, y)

    # The bounds, of pictures as the model sees them

    def posterior(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z | x); where the model is told classes, μ less its mean over the class.     → (B, Z) twice"""
        mean, log_var = self.encoder(x, c)
        return mean if c is None else self.centre(mean, c), log_var

    def forward(
        self, x: Tensor, c: Tensor | None = None, *, generator: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the decoder says of the pixels, by one sample z of the code; z; μ and log σ².     z, μ, log σ²: (B, Z)"""
        mean, log_var = self.posterior(x, c)
        z = F.reparameterize(mean, log_var, randn_like(mean, generator=generator))  # (3)
        return self.decoder(z, c), z, mean, log_var

    def kl(self, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """What each latent adds to KL(q(z | x) ‖ p(z)): in closed form, or by the sample z, of the same mean.     → (B, Z)"""
        if self.config.kl == "analytic":
            return F.kl_standard_gaussian(mean, log_var)
        return F.gaussian_log_prob(z, mean, log_var) - F.gaussian_log_prob(z, 0.0, 0.0)

    def elbo(
        self, x: Tensor, c: Tensor | None = None, *, generator: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two terms of (2) for each picture, in nats: E log p(x | z), by one sample, and KL.     (B, C, H, W) → (B), (B)"""
        h, z, mean, log_var = self(x, c, generator=generator)
        return self.likelihood.log_prob(x, h).sum((1, 2, 3)), self.kl(z, mean, log_var).sum(1)

    def log_weights(
        self, x: Tensor, c: Tensor | None, k: int, *, path: bool = False, generator: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x | z_i), log p(z_i) − log q(z_i | x) and z_i, i = 1 … k, whose first two add up to log w_i of (4).

        With `path`, gradients reach the encoder along z_i only, not by way of log q's own μ and σ.
        (B, C, H, W) → (k, B), (k, B), (k, B, Z)
        """
        mean, log_var = self.posterior(x, c)
        noise = randn(k, *mean.shape, dtype=mean.dtype, device=self.device, generator=generator)
        z = F.reparameterize(mean, log_var, noise)  # (k, B, Z)
        if path:
            mean, log_var = mean.detach(), log_var.detach()
        told = None if c is None else c.expand(k, *c.shape).reshape(-1, c.shape[1])
        h = self.decoder(z.reshape(-1, z.shape[2]), told)  # (k · B, outputs · C, H, W)
        log_p = self.likelihood.log_prob(x, h.reshape(k, len(x), *h.shape[1:])).sum((2, 3, 4))  # (k, B)
        ratio = F.gaussian_log_prob(z, 0.0, 0.0) - F.gaussian_log_prob(z, mean, log_var)  # (k, B, Z)
        return log_p, ratio.sum(2), z

    @no_grad()
    def log_likelihood(
        self, x: Any, y: Any = None, *, samples: int = 5000, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """L_k of (4) for each picture, in nats: for large k nearly log p(x).     (B, C, H, W) → (B)

        Few samples at a time are drawn, and the logarithm of the sum of their weights is kept, so that memory does not grow
        with their number. x: pictures as the model sees them; y: their classes where it is told them.
        """
        x, c, rng = as_tensor(x).to(self.device), self.condition(y), random.generator(generator)
        few = max(1, AT_ONCE // (math.prod(x.shape) * self.likelihood.outputs))
        total = np.full(len(x), -np.inf)
        for done in range(0, samples, few):
            log_p, ratio, _ = self.log_weights(x, c, min(few, samples - done), generator=rng)
            total = np.logaddexp(total, logsumexp(log_p + ratio, 0).cpu().data)
        return total - math.log(samples)

    # Training

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return {"adam": optim.Adam(self.parameters(), lr=self.config.lr)}

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """One step down the loss on a batch (x, y), pictures in [0, 1] and, where the model is told them, their classes.

        Returns the loss, and both terms of (2) as they are, whatever the loss makes of them, in nats a picture.
        """
        x, c = self.observe(batch[0]), self.condition(batch[1])
        cost, nll, kl = self._importance_weighted(x, c) if self.config.samples > 1 else self._weighed(x, c)
        loss = cost / len(x)
        optimizers["adam"].zero_grad()
        loss.backward()
        optimizers["adam"].step()
        return {"loss": loss.item(), "reconstruction": nll.item() / len(x), "kl": kl.item() / len(x)}

    def _weighed(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(6) and the terms of (2), sums over a batch."""
        config = self.config
        h, z, mean, log_var = self(x, c)
        nll, each = self.likelihood.nll(x, h), self.kl(z, mean, log_var)  # each: (B, Z)
        kl = charged = each.sum()
        if config.free_bits:
            charged = maximum(each.mean(0), config.free_bits).sum() * len(x)
        beta = config.beta * min(1.0, self.progress / config.beta_warmup) if config.beta_warmup else config.beta
        reconstruction = nll if config.reduction == "sum" else nll / math.prod(config.shape)
        return reconstruction + beta * charged, nll, kl

    def _importance_weighted(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """−L_k of (4), its gradient as in (5) or along all that it depends on; and the terms of (2), sums over a batch."""
        k, path = self.config.samples, self.config.gradient == "dreg"
        log_p, ratio, z = self.log_weights(x, c, k, path=path)
        log_w = log_p + ratio  # (k, B)
        if path:  # what reaches z_i has one factor w̃_i, from the logarithm of the sum
            normalized = F.softmax(log_w.detach(), 0)
            z.register_hook(lambda gradient: gradient * normalized[:, :, None])
        bound = logsumexp(log_w, 0) - math.log(k)  # (B)
        return -bound.sum(), -log_p.detach().sum() / k, -ratio.detach().sum() / k

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """The bound (2), its standard error and its terms, in nats, the mean over all pictures of the batches; (4) where k > 1.

        Active units: the latents whose mean E[z | x] has a variance above 0.01 over these pictures (Burda et al. 2016, §2).
        Parked: the latents whose KL is what the free bits make free, or less. At the floor: the pixels whose scale is.
        """
        terms, means, costs, floors, bounds = [], [], [], [], []
        for x, y in batches:
            x, c = self.observe(x), self.condition(y)
            h, z, mean, log_var = self(x, c)
            log_p, each = self.likelihood.log_prob(x, h).sum((1, 2, 3)), self.kl(z, mean, log_var)
            terms.append(np.stack([log_p.cpu().data, each.sum(1).cpu().data]))
            means.append(mean.cpu().data)
            costs.append(each.cpu().data)
            floors.append(self.likelihood.at_floor(h))
            if self.config.samples > 1:
                log_p, ratio, _ = self.log_weights(x, c, self.config.samples)
                bounds.append((logsumexp(log_p + ratio, 0) - math.log(self.config.samples)).cpu().data)
        each = np.concatenate(terms, axis=1).astype(np.float64)  # (2, N)
        elbo, (log_likelihood, kl) = each[0] - each[1], each.mean(1)
        found = {
            "elbo": float(log_likelihood - kl),
            "elbo_error": float(elbo.std() / math.sqrt(len(elbo))),
            "reconstruction": float(-log_likelihood),
            "kl": float(kl),
            "active_units": float(metrics.active_units(np.concatenate(means))),
        }
        if bounds:
            found["bound"] = float(np.concatenate(bounds).mean(dtype=np.float64))
        if self.config.free_bits:
            found["parked"] = float((np.concatenate(costs).mean(0) <= PARKED * self.config.free_bits).sum())
        if floors[0] is not None:
            found["at_floor"] = float(np.mean(floors))
        return found

    # Generation: pictures are the means of their pixels

    @no_grad()
    def encode(self, x: np.ndarray, y: Any = None) -> np.ndarray:
        """The mean code μ(x).     (B, C, H, W) → (B, latent)"""
        return self.posterior(Tensor(x, device=self.device), self.condition(y))[0].cpu().data

    @no_grad()
    def decode(self, z: np.ndarray, y: Any = None) -> np.ndarray:
        """The mean picture of a code.     (B, latent) → (B, C, H, W) in [0, 1]"""
        h = self.decoder(Tensor(z, device=self.device), self.condition(y))
        return self.likelihood.mean(h).cpu().data.clip(0, 1)

    def reconstruct(self, x: np.ndarray, y: Any = None) -> np.ndarray:
        """Pictures through the code and back."""
        return self.decode(self.encode(x, y), y)

    def transfer(self, x: np.ndarray, y: Any, to: Any) -> np.ndarray:
        """Pictures of the classes y as pictures of the classes `to` (B), their codes, that is their styles, kept."""
        return self.decode(self.encode(x, y), to)

    def generate(self, n: int, *, y: Any = None, generator: np.random.Generator | None = None) -> np.ndarray:
        """n pictures of codes drawn from p(z), where the model is told classes of the classes y (n), or of each in turn.

        → (n, C, H, W)
        """
        if self.config.classes and y is None:
            y = np.arange(n) % self.config.classes
        z = random.generator(generator).standard_normal((n, self.config.latent))
        return self.decode(z.astype(self.decoder.fc.weight.dtype), y)

    def interpolate(self, a: np.ndarray, b: np.ndarray, steps: int, y: int | None = None) -> np.ndarray:
        """The pictures on the straight line from the code of a to that of b, both of class y where the model is told classes.

        (C, H, W) twice → (steps, C, H, W)
        """
        za, zb = self.encode(np.stack([a, b]), [y, y])
        return self.decode(latent.line(za, zb, steps), [y] * steps)

    def walk(self, rows: int, steps: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Straight lines between pairs of codes drawn from p(z), where there are classes of one a row.

        → (rows · steps, C, H, W)
        """
        ends = random.generator(generator).standard_normal((rows, 2, self.config.latent)).astype(self.decoder.fc.weight.dtype)
        y = np.arange(rows).repeat(steps) % self.config.classes if self.config.classes else None
        between = latent.line(ends[:, 0], ends[:, 1], steps)  # (rows, steps, latent)
        return self.decode(between.reshape(rows * steps, -1), y)


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def prepare(train: data.Images, test: data.Images, settings: Mapping[str, Any]) -> tuple[data.Images, data.Images]:
    """The pictures as they are. Raises DataError where levels are asked for that their pixels do not have."""
    if settings["likelihood"] == "discretized-logistic" or settings["pixels"] == "dequantized":
        for images in (train, test):
            level = images.x * np.float32(settings["levels"] - 1)
            if np.abs(level - level.round()).max() > 0.01:
                found = len(np.unique(images.x))
                raise data.DataError(
                    f"{images.name}: expected pixels of {settings['levels']} levels, i/{settings['levels'] - 1}, and "
                    f"{found} other values occur; --set levels={found} would be right if these are all there are."
                )
    return pictures.prepare(train, test, settings)


def prepare_classes(train: data.Images, test: data.Images, settings: Mapping[str, Any]) -> tuple[data.Images, data.Images]:
    """The same of pictures with classes."""
    return prepare(*pictures.prepare_classes(train, test, settings), settings)


def remarks(config: VAEConfig, task: data.Task) -> Iterable[str]:
    """What the settings amount to that is easily overlooked: another weight of the KL, and nats that mean nothing."""
    n = math.prod(config.shape)
    if config.reduction == "mean":
        yield (
            f"the mean over {n:,} pixels is lowered beside the KL, so that your loss equals β = {config.beta * n:g}; "
            f"beta={1 / n:.3g} would be the bound."
        )
    if config.likelihood == "gaussian":
        yield (
            f"with σ = {config.sigma:g} the loss is 1/(2σ²) = {0.5 / config.sigma**2:g} times Σ (x − μ)² + "
            f"{2 * config.sigma**2 * config.beta:.3g} KL; where the errors x − μ turn out other than σ, that is as if β were "
            "another, and eval tells which."
        )
    grey = ((task.train.x[:1000] > 0) & (task.train.x[:1000] < 1)).any()
    if config.likelihood == "bernoulli" and config.pixels not in ("binary", "drawn") and grey:
        yield (
            "the pixels are grey, of which the Bernoulli is no likelihood: the loss is a cross-entropy, good to train with, "
            "and its nats compare with no other model's (pixels=binary or likelihood=continuous-bernoulli would give such)."
        )


def sample(
    model: VAE,
    metadata: Mapping[str, Any],
    n: int,
    rng: np.random.Generator,
    *,
    label: str | None = None,
    of: np.ndarray | None = None,
    y: Any = None,
) -> np.ndarray:
    """n pictures from the prior, of the class of that name or number or of each in turn where the model is told classes.

    Or the pictures `of` (n, C, H, W), of the classes y, through their codes and back.
    """
    if of is not None:
        return pictures.restored(model, of, y)
    if model.config.classes:
        return pictures.sample_classes(model, metadata, n, rng, label=label)
    return pictures.sample(model, metadata, n, rng)


PROBED = 200  # pictures of which log p(x) is found, each by 5,000 passes of the decoder


def probe(model: VAE, task: data.Task, rng: np.random.Generator) -> dict[str, float]:
    """What is found by looking into the model: log p(x), the class in the code, and, where they mean something, two more.

    Bits per dimension are those of a likelihood of levels, or of a density of levels with noise, and of no other; the β that
    a Gaussian of fixed σ implies is that of a decoder whose σ fitted its errors, with the same loss but for a factor.
    """
    config, test = model.config, task.test
    rows = rng.permutation(len(test))[:PROBED]
    told = test.y is not None and config.classes > 0
    seen = model.observe(test.x[rows])
    log_p = np.concatenate(
        [model.log_likelihood(seen[i : i + 50], test.y[rows[i : i + 50]] if told else None) for i in range(0, len(rows), 50)]
    )
    found = {"log_likelihood": log_p.mean(), "log_likelihood_error": log_p.std() / math.sqrt(len(log_p))}
    levels = levels_of(config, test.x[rows])
    if levels is not None:
        found["bits_per_dim"] = metrics.bits_per_dim(-found["log_likelihood"], math.prod(config.shape), levels=levels)
    if config.likelihood == "gaussian":
        with no_grad():
            error = (model(seen, model.condition(test.y[rows] if told else None))[0] - seen).square().mean().item()
        found["implied_beta"] = config.beta * config.sigma**2 / error
    if test.y is not None and len(np.unique(task.train.y)) > 1:
        chosen = rng.permutation(len(task.train))[:5000]
        codes = [
            np.concatenate([model.encode(x[i : i + 500], y[i : i + 500] if told else None) for i in range(0, len(x), 500)])
            for x, y in ((task.train.x[chosen], task.train.y[chosen]), (test.x, test.y))
        ]
        found["probe_accuracy"] = metrics.linear_probe(codes[0], task.train.y[chosen], codes[1], test.y)
    return {key: float(value) for key, value in found.items()}


def levels_of(config: VAEConfig, x: np.ndarray) -> int | None:
    """The levels by which a density is to be divided to be the chance of one; 1 for chances; None where neither holds."""
    if config.likelihood == "bernoulli":
        return 1 if config.pixels in ("binary", "drawn") or not ((x > 0) & (x < 1)).any() else None
    if config.likelihood == "discretized-logistic":
        return 1 if config.pixels == "grey" else None
    return config.levels if config.pixels == "dequantized" else None


def page(model: VAE, metadata: dict[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: held-out pictures through the code, lines between codes, draws from the prior."""
    x = task.test.x[np.random.default_rng(7).permutation(len(task.test))]
    lines = np.concatenate([model.interpolate(x[2 * i], x[2 * i + 1], 16) for i in range(5)])
    bound = "log p ( x ) ≥ 𝔼_{q(z∣x)} [ log p ( x ∣ z ) ] − KL ( q ( z ∣ x ) ‖ p ( z ) )"
    if model.config.samples > 1:
        bound = f"log p ( x ) ≥ 𝔼 log 1 / {model.config.samples} ∑__i p ( x ∣ z_i ) p ( z_i ) / q ( z_i ∣ x )"
    return Page(
        "An encoder *q* gives each picture a cloud of codes; a decoder *p* turns a code into a picture. How likely "
        "the model holds the data to be cannot be computed, but it is bounded from below: by how well a code restores its "
        "picture, less what the code costs to say.",
        (bound, "z = μ ( x ) + σ ( x ) ⊙ ε ,   ε ∼ 𝒩 ( 0 , I )"),
        (
            Pictures(
                np.concatenate([x[:16], model.reconstruct(x[:16])]),
                16,
                "Above, real pictures never seen in training; below, through the code and back.",
            ),
            Pictures(
                lines,
                16,
                "Between two real pictures: the pictures on the straight line from the code of the first to that of the last.",
            ),
            Pictures(draw(80, np.random.default_rng(7)), 20, "Drawn from the prior: a random code, decoded."),
        ),
    )


def page_of_classes(model: VAE, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: each class drawn, and held-out pictures turned into every class, their styles kept."""
    names, test = list(metadata["classes"]), task.test
    rows = np.random.default_rng(7).permutation(len(test))[:8]
    x, y = test.x[rows].repeat(len(names), axis=0), test.y[rows].repeat(len(names))
    turned = model.transfer(x, y, np.tile(np.arange(len(names)), len(rows)))
    beside = np.concatenate([np.stack([test.x[row], *turned[i * len(names) :][: len(names)]]) for i, row in enumerate(rows)])
    return Page(
        "An encoder *q* and a decoder *p* that are told what a picture shows: the code need only tell the rest, its style, "
        "and one style can be drawn as any class.",
        (
            "log p ( x ∣ y ) ≥ 𝔼_{q(z∣x,y)} [ log p ( x ∣ z , y ) ] − KL ( q ( z ∣ x , y ) ‖ p ( z ) )",
            "z = μ ( x , y ) + σ ( x , y ) ⊙ ε ,   ε ∼ 𝒩 ( 0 , I )",
        ),
        (
            Pictures(
                np.concatenate([draw(10, np.random.default_rng(7), label=name) for name in names]),
                10,
                f"Drawn from the prior, a row for each class: {', '.join(names)}.",
            ),
            Pictures(
                beside,
                1 + len(names),
                f"Left, real pictures never seen in training; beside each, its code as {', '.join(names)}.",
            ),
        ),
    )


def _of_the_bound(rows: doctor.Rows, config: VAEConfig) -> str | None:
    """`held_out` of the bound that is raised, (4) or (2); of none where a loss weighs its terms, and may rightly lower it."""
    if (config.beta, config.beta_warmup, config.free_bits, config.reduction) != (1, 0, 0, "sum"):
        return None
    return doctor.held_out("bound" if config.samples > 1 else "elbo", sign=-1)(rows, config)


FAMILY = Family(
    name="vae",
    title="Variational autoencoder",
    model=VAE,
    config=VAEConfig,
    learns_from=data.Images,
    prepare=prepare,
    decided={**pictures.SHAPE, "classes": lambda images: 0},
    makes="pictures",
    sample=sample,
    edits=("reconstruct", "interpolate", "arithmetic", "traverse", "map"),
    scores=functools.partial(pictures.scores, restores=True),
    probe=probe,
    remarks=remarks,
    meanings=(
        Score("elbo", "ELBO", 1, "nats per held-out picture"),
        Score("elbo_error", "its standard error"),
        Score("reconstruction", "−log *p*(*x* | *z*)", -1, "nats: how well a code restores its picture"),
        Score("kl", "KL", 0, "nats: what the code costs to say"),
        Score("bound", "importance-weighted bound", 1, "nats, by as many samples as in training"),
        Score("active_units", "active units", 0, "latents that tell pictures apart: variance of E[*z*|*x*] above 0.01"),
        Score("parked", "latents at their free bits", -1, "whose KL is what costs nothing, or less"),
        Score("at_floor", "pixels at the least scale", -1, "share whose learned scale is within a tenth of it"),
        Score("log_likelihood", "log *p*(*x*)", 1, f"nats, by 5,000 samples, of {PROBED} held-out pictures"),
        Score("log_likelihood_error", "its standard error"),
        Score("bits_per_dim", "bits per dimension", -1, "of the same pictures, as a compressor would need"),
        Score("implied_beta", "implied β", 0, "that a Gaussian whose σ fitted its errors would need for the same loss"),
        Score("probe_accuracy", "class found in the code", 0, "share right, by a linear classifier of E[*z*|*x*]"),
        *pictures.MEANINGS,
    ),
    curves=(
        Panel(
            "loss, and −ELBO held out, nats per picture", (Line("loss", "training"), Line("test_elbo", "held out", -1, True))
        ),
        Panel("KL, nats per picture", (Line("kl", "training"), Line("test_kl", "held out", held_out=True))),
    ),
    rules=(
        doctor.flat("loss"),
        _of_the_bound,
        doctor.posterior_collapse,
        doctor.parked_at_free_bits,
        doctor.scale_at_floor,
    ),
    page=page,
)

CONDITIONAL = dataclasses.replace(
    FAMILY,
    name="cvae",
    title="Conditional variational autoencoder",
    prepare=prepare_classes,
    decided=pictures.SHAPE_AND_CLASSES,
    edits=("reconstruct", "interpolate", "traverse", "map", "transfer"),
    options=(pictures.LABEL,),
    scores=functools.partial(pictures.scores_of_classes, restores=True),
    page=page_of_classes,
)
