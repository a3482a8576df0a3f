r"""Generative adversarial networks.  Goodfellow et al. 2014, arXiv:1406.2661.

A generator G turns noise z into pictures; a discriminator D judges pictures. They play the minimax game

    min_G max_D  V(D, G) = E_{x ~ data}[log D(x)] + E_{z ~ N(0, I)}[log(1 − D(G(z)))]                             (1)

D(x) = σ(d(x)) with logit d, and log σ(d) = −softplus(−d), log(1 − σ(d)) = −softplus(d): the value is finite for every
logit. For fixed G the best discriminator is D* = p_data / (p_data + p_G), where V = −log 4 + 2 JSD(p_data ‖ p_G).

The generator may lower (1) itself ("saturating"): its gradient dies when D is sure that G(z) is false. Or it raises
E[log D(G(z))] ("non-saturating", §3 of the paper): the same fixed point, with a gradient that is strongest there.

Two pairs of networks: perceptrons, and convolutions after Radford, Metz & Chintala 2015 (DCGAN, arXiv:1511.06434),
here with upsampling followed by convolution instead of transposed convolution, which leaves no checkerboard
(Odena, Dumoulin & Olah 2016). Pictures are in [−1, 1] inside, in [0, 1] outside.
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
from scratchgen.ops import randn, sigmoid, tanh
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class GANConfig:
    shape: tuple[int, int, int] = (1, 8, 8)  # of a picture: channels, height, width
    network: str = "mlp"  # or "dcgan"
    hidden: int = 256  # width of the hidden layers; channels of the widest convolution
    latent: int = 32  # length of z
    loss: str = "non-saturating"  # or "saturating": what G lowers
    dropout: float = 0.3  # in the discriminator of the perceptron pair
    lr: float = 2e-4
    beta1: float = 0.5  # of Adam: less memory, for a target that moves


# ---------------------------------------------------------------------------------------------------------------------
# The value (1), written as two losses
# ---------------------------------------------------------------------------------------------------------------------


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−V(D, G) = E[softplus(−d(x))] + E[softplus(d(G(z)))], from logits."""
    return F.softplus(-real, threshold=math.inf).mean() + F.softplus(fake, threshold=math.inf).mean()


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """ "saturating": E[log(1 − D(G(z)))] = −E[softplus(d)].  "non-saturating": −E[log D(G(z))] = E[softplus(−d)]."""
    if kind == "saturating":
        return -F.softplus(fake, threshold=math.inf).mean()
    return F.softplus(-fake, threshold=math.inf).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


class MLPGenerator(nn.Module):
    """z → picture through two hidden layers."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, latent: int):
        super().__init__()
        self.shape = shape
        self.net = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, math.prod(shape)),
        )

    def forward(self, z: Tensor) -> Tensor:
        return tanh(self.net(z)).reshape(-1, *self.shape)  # (B, C, H, W)


class MLPDiscriminator(nn.Module):
    """picture → logit through two hidden layers."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(math.prod(shape), hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1)).squeeze(1)  # (B)


class DCGenerator(nn.Module):
    """z → a small picture of many channels, then twice: upsample, convolve, normalise."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent: int):
        super().__init__()
        c, h, w = shape
        self.start = (width, h // 4, w // 4)
        self.fc = nn.Linear(latent, math.prod(self.start), bias=False)
        self.norm0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width // 4)
        self.out = nn.Conv2d(width // 4, c, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.fc(z).reshape(-1, *self.start)  # (B, width, H/4, W/4)
        h = F.relu(self.norm0(h))
        h = F.relu(self.norm1(self.conv1(F.interpolate(h, scale_factor=2))))  # (B, width/2, H/2, W/2)
        h = F.relu(self.norm2(self.conv2(F.interpolate(h, scale_factor=2))))  # (B, width/4, H, W)
        return tanh(self.out(h))  # (B, C, H, W)


class DCDiscriminator(nn.Module):
    """picture → logit: two convolutions that halve it each, then one number."""

    def __init__(self, shape: tuple[int, int, int], width: int):
        super().__init__()
        c, h, w = shape
        self.conv1 = nn.Conv2d(c, width // 2, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width, 4, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * (h // 4) * (w // 4), 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), 0.2)  # (B, width/2, H/2, W/2)
        h = F.leaky_relu(self.norm2(self.conv2(h)), 0.2)  # (B, width, H/4, W/4)
        return self.fc(h.flatten(1)).squeeze(1)  # (B)


def _init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02²), scales of norms from N(1, 0.02²): §3 of the DCGAN paper."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


# ---------------------------------------------------------------------------------------------------------------------
# The game
# ---------------------------------------------------------------------------------------------------------------------


class GAN(nn.Module):
    """A generator, a discriminator, and one round of their game."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        if config.loss not in ("saturating", "non-saturating"):
            raise ValueError(f"GAN: expected loss 'non-saturating' or 'saturating', got {config.loss!r}")
        if config.network == "mlp":
            self.generator = MLPGenerator(config.shape, config.hidden, config.latent)
            self.discriminator = MLPDiscriminator(config.shape, config.hidden, config.dropout)
        elif config.network == "dcgan":
            if config.shape[1] % 4 or config.shape[2] % 4 or config.hidden % 4:
                raise ValueError(
                    f"GAN: the convolutional pair expects sides and hidden divisible by 4, got {config.shape}, {config.hidden}"
                )
            self.generator = DCGenerator(config.shape, config.hidden, config.latent)
            self.discriminator = DCDiscriminator(config.shape, config.hidden)
            self.apply(_init_dcgan)
        else:
            raise ValueError(f"GAN: expected network 'mlp' or 'dcgan', got {config.network!r}")

    def noise(self, n: int, *, generator: np.random.Generator | None = None) -> Tensor:
        """z ~ N(0, I).     → (n, latent)"""
        dtype = next(self.parameters()).dtype
        return randn(n, self.config.latent, dtype=dtype, device=self.device, generator=generator)

    def optimizers(self) -> dict[str, optim.Optimizer]:
        betas = (self.config.beta1, 0.999)
        return {
            "discriminator": optim.Adam(self.discriminator.parameters(), lr=self.config.lr, betas=betas),
            "generator": optim.Adam(self.generator.parameters(), lr=self.config.lr, betas=betas),
        }

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """One step of D upwards on V, then one of G against it; batch (x, _), pictures in [0, 1].

        Returns both losses and the mean judgements D(x), D(G(z)) from before the steps.
        """
        x = as_tensor(batch[0]).to(self.device) * 2 - 1
        # D: the generated pictures are constants here, so that only D moves
        fake = self.generator(self.noise(len(x)))
        d_real, d_fake = self.discriminator(x), self.discriminator(fake.detach())
        loss_d = discriminator_loss(d_real, d_fake)
        optimizers["discriminator"].zero_grad()
        loss_d.backward()
        optimizers["discriminator"].step()
        # G: judged by the D just improved; gradients pass through D, whose own parameters get none
        loss_g = generator_loss(self.discriminator(fake), self.config.loss)
        optimizers["generator"].zero_grad()
        loss_g.backward(inputs=list(self.generator.parameters()))
        optimizers["generator"].step()
        return {
            "loss_d": loss_d.item(),
            "loss_g": loss_g.item(),
            "d_real": sigmoid(d_real.detach()).mean().item(),
            "d_fake": sigmoid(d_fake.detach()).mean().item(),
        }

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """V(D, G) and the mean judgements on held-out pictures; −log 4 = −1.386 when D can tell nothing."""
        real, fake = [], []
        for x, _ in batches:
            real.append(self.discriminator(Tensor(x, device=self.device) * 2 - 1).data)
            fake.append(self.discriminator(self.generator(self.noise(len(x)))).data)
        d_real, d_fake = Tensor(np.concatenate(real)), Tensor(np.concatenate(fake))
        value = -discriminator_loss(d_real, d_fake)
        return {"value": value.item(), "d_real": sigmoid(d_real).mean().item(), "d_fake": sigmoid(d_fake).mean().item()}

    @no_grad()
    def _pictures(self, z: Tensor) -> np.ndarray:
        return ((self.generator(z) + 1) * 0.5).cpu().data

    def generate(self, n: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """n pictures.     → (n, C, H, W) in [0, 1]"""
        return self._pictures(self.noise(n, generator=generator))

    def walk(self, rows: int, steps: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Great circles between pairs of codes, which stay as long as codes of N(0, I) are.     → (rows · steps, C, H, W)

        z(t) = [sin((1 − t) θ) a + sin(t θ) b] / sin θ,  θ the angle between a and b
        """
        ends = random.generator(generator).standard_normal((rows, 2, self.config.latent))
        a, b = ends[:, :1], ends[:, 1:]  # (rows, 1, latent)
        cosine = (a * b).sum(-1, keepdims=True) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))[..., None]
        theta = np.arccos(np.clip(cosine, -1 + 1e-9, 1 - 1e-9))
        t = np.linspace(0, 1, steps)[:, None]  # (steps, 1)
        z = (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)  # (rows, steps, latent)
        dtype = next(self.parameters()).dtype
        return self._pictures(Tensor(z.reshape(rows * steps, -1), dtype, self.device))


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def page(model: GAN, metadata: dict[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: samples beside real pictures, walks through the noise, the nearest training pictures."""
    train, test = task.train.x, task.test.x
    made = draw(60, np.random.default_rng(7))
    few, flat = made[:12], train.reshape(len(train), -1)
    nearest = train[[np.argmin(((flat - x.reshape(-1)) ** 2).sum(1)) for x in few]]
    real = test[np.random.default_rng(7).permutation(len(test))[:60]]
    return Page(
        "A generator *G* turns noise into pictures; a discriminator *D* judges whether a picture is real. Each is "
        "the other’s teacher: *D* raises the value *V*, *G* lowers it, and where neither can improve, the "
        "pictures have the distribution of the data.",
        ("min__G max__D V ( D , G ) = 𝔼_{x∼p_data} [ log D ( x ) ] + 𝔼_{z∼𝒩(0,I)} [ log ( 1 − D ( G ( z ) ) ) ]",),
        (
            (
                Pictures(made, 10, "Drawn by *G* from noise."),
                Pictures(real, 10, "Real, and never seen in training."),
            ),
            Pictures(
                model.walk(5, 16, generator=np.random.default_rng(1)),
                16,
                "Walks through the space of noise: each row goes from one code to another in equal steps.",
            ),
            Pictures(
                np.concatenate([few, nearest]),
                12,
                "Above, drawn by *G*; below, the nearest training picture to each. Were they equal, *G* would only remember.",
            ),
        ),
    )


FAMILY = Family(
    name="gan",
    title="Generative adversarial network",
    model=GAN,
    config=GANConfig,
    learns_from=data.Images,
    prepare=pictures.prepare,
    decided=pictures.SHAPE,
    makes="pictures",
    sample=pictures.sample,
    averaged="generator",
    scores=pictures.scores,
    meanings=(
        Score("value", "*V*(*D*, *G*)", 0, "−log 4 = −1.386 where *D* can tell nothing"),
        Score("d_real", "*D* of real pictures", 0, "mean probability of being real, on held-out pictures"),
        Score("d_fake", "*D* of generated ones", 0, "the same of what *G* draws"),
        *pictures.MEANINGS,
    ),
    curves=(
        Panel("losses, nats", (Line("loss_d", "discriminator"), Line("loss_g", "generator"))),
        Panel(
            "mean judgement: probability of being real",
            (Line("d_real", "of real pictures"), Line("d_fake", "of generated ones")),
            (0.5, "D can tell nothing"),
        ),
    ),
    page=page,
)
