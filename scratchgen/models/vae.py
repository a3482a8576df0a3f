r"""The variational autoencoder.  Kingma & Welling 2013, arXiv:1312.6114; Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082.

A picture x is thought to come from a latent code z ~ p(z) = N(0, I) by way of a decoder p(x | z). Its likelihood
p(x) = ∫ p(x | z) p(z) dz cannot be computed, but for any q(z | x) it is bounded from below:

    log p(x) = ELBO + KL(q(z | x) ‖ p(z | x)) ≥ ELBO                                                              (1)
    ELBO     = E_{q(z | x)}[log p(x | z)] − KL(q(z | x) ‖ p(z))                                                   (2)
               what the code says of x      what it costs to say it

The encoder gives q(z | x) = N(μ(x), diag σ²(x)), for which the KL is known (`functional.kl_standard_gaussian`). The
expectation is estimated with one sample, written so that the gradient passes through it (`functional.reparameterize`):

    z = μ + σ ⊙ ε,   ε ~ N(0, I)                                                                                  (3)

Pixels are Bernoulli: log p(x | z) = Σ_i x_i log σ(l_i) + (1 − x_i) log(1 − σ(l_i)), l the decoder's logits. With β ≠ 1
the KL is weighted (Higgins et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen import data, nn, optim, random
from scratchgen import functional as F
from scratchgen.grad_mode import no_grad
from scratchgen.models import pictures
from scratchgen.models.family import Draw, Family, Line, Page, Panel, Pictures, Score
from scratchgen.ops import randn_like, sigmoid
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class VAEConfig:
    shape: tuple[int, int, int] = (1, 8, 8)  # of a picture: channels, height, width
    network: str = "mlp"  # or "conv"
    hidden: int = 400  # width of the hidden layer; channels of the first convolution
    latent: int = 20  # length of z
    beta: float = 1.0  # weight of the KL
    lr: float = 1e-3


class MLPEncoder(nn.Module):
    """x → (μ, log σ²) through one hidden layer, as in the paper."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, latent: int):
        super().__init__()
        self.fc = nn.Linear(math.prod(shape), hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_var = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc(x.flatten(1), activation="relu")  # (B, hidden)
        return self.mean(h), self.log_var(h)


class MLPDecoder(nn.Module):
    """z → logits of the pixels, through one hidden layer."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, latent: int):
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(latent, hidden)
        self.out = nn.Linear(hidden, math.prod(shape))

    def forward(self, z: Tensor) -> Tensor:
        h = self.fc(z, activation="relu")  # (B, hidden)
        return self.out(h).reshape(-1, *self.shape)  # (B, C, H, W)


class ConvEncoder(nn.Module):
    """x → (μ, log σ²): two convolutions that halve the picture each."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent: int):
        super().__init__()
        c, h, w = shape
        self.conv1 = nn.Conv2d(c, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.mean = nn.Linear(2 * width * (h // 4) * (w // 4), latent)
        self.log_var = nn.Linear(2 * width * (h // 4) * (w // 4), latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.conv1(x))  # (B, width, H/2, W/2)
        h = F.relu(self.conv2(h)).flatten(1)  # (B, 2 width · H/4 · W/4)
        return self.mean(h), self.log_var(h)


class ConvDecoder(nn.Module):
    """z → logits of the pixels: two transposed convolutions that double the picture each."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent: int):
        super().__init__()
        c, h, w = shape
        self.start = (2 * width, h // 4, w // 4)
        self.fc = nn.Linear(latent, math.prod(self.start))
        self.conv1 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(width, c, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.fc(z)).reshape(-1, *self.start)  # (B, 2 width, H/4, W/4)
        return self.conv2(F.relu(self.conv1(h)))  # (B, C, H, W)


class VAE(nn.Module):
    """Encoder, decoder and the bound (2) they are trained to raise."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        if config.network not in ("mlp", "conv"):
            raise ValueError(f"VAE: expected network 'mlp' or 'conv', got {config.network!r}")
        if config.network == "conv" and (config.shape[1] % 4 or config.shape[2] % 4):
            raise ValueError(
                f"VAE: the convolutional network expects sides divisible by 4, got pictures of shape {config.shape}"
            )
        encoder, decoder = (MLPEncoder, MLPDecoder) if config.network == "mlp" else (ConvEncoder, ConvDecoder)
        self.encoder = encoder(config.shape, config.hidden, config.latent)
        self.decoder = decoder(config.shape, config.hidden, config.latent)

    def forward(self, x: Tensor, *, generator: np.random.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of the pixels, by one sample of the code, and its μ and log σ².     (B, C, H, W) → same, (B, Z), (B, Z)"""
        mean, log_var = self.encoder(x)
        z = F.reparameterize(mean, log_var, randn_like(mean, generator=generator))  # (3)
        return self.decoder(z), mean, log_var

    def elbo(self, x: Tensor, *, generator: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The two terms of (2) for each picture, in nats: E log p(x | z), by one sample, and KL.     (B, C, H, W) → (B), (B)"""
        logits, mean, log_var = self(x, generator=generator)
        return F.bernoulli_log_prob(x, logits).sum((1, 2, 3)), F.kl_standard_gaussian(mean, log_var).sum(1)

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return {"adam": optim.Adam(self.parameters(), lr=self.config.lr)}

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """Raise the mean bound over one batch (x, _) of pictures in [0, 1]. Returns the loss and its two terms, in nats."""
        x = as_tensor(batch[0]).to(self.device)
        logits, mean, log_var = self(x)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = F.kl_standard_gaussian(mean, log_var).sum()
        loss = (reconstruction + self.config.beta * kl) / len(x)
        optimizers["adam"].zero_grad()
        loss.backward()
        optimizers["adam"].step()
        return {"loss": loss.item(), "reconstruction": reconstruction.item() / len(x), "kl": kl.item() / len(x)}

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """The bound (2) and its terms in nats, the mean over all pictures of the batches."""
        terms = [np.stack([t.cpu().data for t in self.elbo(Tensor(x, device=self.device))]) for x, _ in batches]
        log_likelihood, kl = np.concatenate(terms, axis=1).astype(np.float64).mean(1)
        return {"elbo": float(log_likelihood - kl), "reconstruction": float(-log_likelihood), "kl": float(kl)}

    # Generation: pictures are the means σ(l) of the pixels

    @no_grad()
    def encode(self, x: np.ndarray) -> np.ndarray:
        """The mean code μ(x).     (B, C, H, W) → (B, latent)"""
        return self.encoder(Tensor(x, device=self.device))[0].cpu().data

    @no_grad()
    def decode(self, z: np.ndarray) -> np.ndarray:
        """The mean picture of a code.     (B, latent) → (B, C, H, W) in [0, 1]"""
        return sigmoid(self.decoder(Tensor(z, device=self.device))).cpu().data

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """Pictures through the code and back."""
        return self.decode(self.encode(x))

    def generate(self, n: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """n pictures of codes drawn from p(z).     → (n, C, H, W)"""
        z = random.generator(generator).standard_normal((n, self.config.latent))
        return self.decode(z.astype(self.decoder.fc.weight.dtype))

    def interpolate(self, a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
        """The pictures on the straight line from the code of a to that of b.     (C, H, W) twice → (steps, C, H, W)"""
        za, zb = self.encode(np.stack([a, b]))
        return self.decode(_line(za, zb, steps))

    def walk(self, rows: int, steps: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Straight lines between pairs of codes drawn from p(z).     → (rows · steps, C, H, W)"""
        ends = random.generator(generator).standard_normal((rows, 2, self.config.latent)).astype(self.decoder.fc.weight.dtype)
        return self.decode(np.concatenate([_line(a, b, steps) for a, b in ends]))


def _line(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    t = np.linspace(0, 1, steps, dtype=a.dtype)[:, None]
    return (1 - t) * a + t * b


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def page(model: VAE, metadata: dict[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: held-out pictures through the code, lines between codes, draws from the prior."""
    x = task.test.x[np.random.default_rng(7).permutation(len(task.test))]
    lines = np.concatenate([model.interpolate(x[2 * i], x[2 * i + 1], 16) for i in range(5)])
    return Page(
        "An encoder *q* gives each picture a cloud of codes; a decoder *p* turns a code into a picture. How likely "
        "the model holds the data to be cannot be computed, but it is bounded from below: by how well a code restores its "
        "picture, less what the code costs to say.",
        (
            "log p ( x ) ≥ 𝔼_{q(z∣x)} [ log p ( x ∣ z ) ] − KL ( q ( z ∣ x ) ‖ p ( z ) )",
            "z = μ ( x ) + σ ( x ) ⊙ ε ,   ε ∼ 𝒩 ( 0 , I )",
        ),
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


FAMILY = Family(
    name="vae",
    title="Variational autoencoder",
    model=VAE,
    config=VAEConfig,
    learns_from=data.Images,
    prepare=pictures.prepare,
    decided=pictures.SHAPE,
    makes="pictures",
    sample=pictures.sample,
    scores=pictures.scores,
    meanings=(
        Score("elbo", "ELBO", 1, "nats per held-out picture"),
        Score("reconstruction", "−log *p*(*x* | *z*)", -1, "nats: how well a code restores its picture"),
        Score("kl", "KL", 0, "nats: what the code costs to say"),
        *pictures.MEANINGS,
    ),
    curves=(
        Panel("−ELBO, nats per picture", (Line("loss", "training"), Line("test_elbo", "held out", -1, True))),
        Panel("KL, nats per picture", (Line("kl", "training"), Line("test_kl", "held out", 1, True))),
    ),
    page=page,
)
