r"""Generative adversarial networks.  Goodfellow et al. 2014, arXiv:1406.2661.

A generator G turns noise z into pictures; a discriminator D judges pictures by a logit. In the first of these games

    min_G max_D  V(D, G) = E_{x ~ data}[log D(x)] + E_{z ~ N(0, I)}[log(1 − D(G(z)))]                             (1)

For fixed G the best discriminator is D* = p_data / (p_data + p_G), where V = −log 4 + 2 JSD(p_data ‖ p_G). This and five later
objectives, each under its equation, and the penalties that some of them need, stand in `adversarial.py`; the networks of both
players in `adversaries.py`. Here they play: one step of D, then one of G against the D just improved. Both see their data moved
and scaled: pictures to [−1, 1], which are in [0, 1] outside, points of the plane to mean 0 and variance 1.

With `classes`, G and D are told the class of each picture, the generated ones' classes being those of the real batch: were they
drawn from elsewhere, D could tell the two apart by the class alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen import data, nn, optim, random
from scratchgen.grad_mode import no_grad
from scratchgen.models import adversarial, dirac, doctor, latent, pictures, points
from scratchgen.models.adversaries import (
    DCDiscriminator,
    DCGenerator,
    MLPDiscriminator,
    MLPGenerator,
    ResidualDiscriminator,
    ResidualGenerator,
    init_dcgan,
    init_he,
)
from scratchgen.models.family import (
    Draw,
    Family,
    Line,
    Option,
    Page,
    Panel,
    Pictures,
    Plane,
    Planes,
    Score,
    lattice,
)
from scratchgen.ops import cat, rand, randn
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class GANConfig:
    shape: tuple[int, ...] = (1, 8, 8)  # of a picture: channels, height, width; of a point in the plane: (2,)
    network: str = "mlp"  # or "dcgan", "residual"
    hidden: int = 256  # width of the hidden layers; channels of the widest convolution
    latent: int = 32  # length of z
    noise: str = "gaussian"  # or "uniform": z ~ N(0, I) or U(−1, 1)
    upsample: str = "nearest"  # or "transposed": how the generator "dcgan" doubles its sides
    loss: str = "non-saturating"  # a key of `adversarial.OBJECTIVES`
    spectral_norm: bool = False  # of every layer of D
    gradient_penalty: float = 0.0  # λ of WGAN-GP
    r1: float = 0.0  # γ of the penalty on D's slope at real pictures
    r2: float = 0.0  # γ of the same at generated ones
    dropout: float = 0.3  # in the discriminator of the perceptron pair
    lr: float = 2e-4  # of both players
    lr_d: float = 0.0  # of the discriminator, where it has one of its own; 0: as of both
    beta1: float = 0.5  # of Adam: less memory, for a target that moves
    beta2: float = 0.999
    classes: int = 0  # of the data, which both players are told; 0: none
    centre: tuple[float, ...] = (0.5,)  # of the data, 0 inside
    scale: float = 0.5  # of the data, 1 inside


# ---------------------------------------------------------------------------------------------------------------------
# The game
# ---------------------------------------------------------------------------------------------------------------------


class GAN(nn.Module):
    """A generator, a discriminator, and one round of their game."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        adversarial.objective(config.loss)  # is there one of that name?
        if config.noise not in ("gaussian", "uniform"):
            raise ValueError(f"GAN: expected noise 'gaussian' or 'uniform', got {config.noise!r}")
        if config.upsample not in ("nearest", "transposed"):
            raise ValueError(f"GAN: expected upsample 'nearest' or 'transposed', got {config.upsample!r}")
        self.penalised = bool(config.gradient_penalty or config.r1 or config.r2)
        # batch norm would make D's judgement of a picture depend on the others, so that its slope is not a sample's own
        self.norm = config.network == "dcgan" and not (config.spectral_norm or self.penalised)
        self._build(config, norm=self.norm)
        if config.spectral_norm:
            for module in self.discriminator.modules():
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    nn.utils.parametrizations.spectral_norm(module)

    def _build(self, config: GANConfig, norm: bool) -> None:
        shape, width, latent, classes = config.shape, config.hidden, config.latent, config.classes
        if config.network == "mlp":
            if classes:
                raise ValueError("GAN: the perceptron pair takes no classes; expected network 'dcgan'")
            if config.dropout and self.penalised:
                raise ValueError("GAN: the slope of a discriminator with dropout is random; expected dropout=0 with a penalty")
            self.generator = MLPGenerator(shape, width, latent)
            self.discriminator = MLPDiscriminator(shape, width, config.dropout)
            return
        if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"GAN: network {config.network!r} expects pictures with sides divisible by 4, got {shape}")
        if config.network == "dcgan":
            if width % 4:
                raise ValueError(f"GAN: network 'dcgan' expects hidden divisible by 4, got {width}")
            self.generator = DCGenerator(shape, width, latent, upsample=config.upsample, features=classes)
            self.discriminator = DCDiscriminator(shape, width, norm=norm, features=classes)
            self.generator.apply(init_dcgan)
            self.discriminator.apply(init_dcgan if norm else init_he)
        elif config.network == "residual":
            if width % 24 or classes:
                raise ValueError(
                    f"GAN: network 'residual' expects hidden divisible by 24 and no classes, got {width}, {classes}"
                )
            self.generator = ResidualGenerator(shape, width, latent)
            self.discriminator = ResidualDiscriminator(shape, width)
        else:
            raise ValueError(f"GAN: expected network 'mlp', 'dcgan' or 'residual', got {config.network!r}")

    @property
    def objective(self) -> adversarial.Objective:
        """What the players lower."""
        return adversarial.objective(self.config.loss)

    def noise(self, n: int, *, generator: np.random.Generator | None = None) -> Tensor:
        """z ~ N(0, I), or U(−1, 1).     → (n, latent)"""
        draw = randn if self.config.noise == "gaussian" else rand
        z = draw(n, self.config.latent, dtype=next(self.parameters()).dtype, device=self.device, generator=generator)
        return z if self.config.noise == "gaussian" else 2 * z - 1

    def inside(self, x: Any) -> Tensor:
        """Pictures or points as both players see them: (x − centre) / scale."""
        x = as_tensor(x).to(self.device)
        return (x - Tensor(self.config.centre, x.dtype, x.device)) / self.config.scale

    def outside(self, x: Tensor) -> Tensor:
        """The inverse of `inside`."""
        return x * self.config.scale + Tensor(self.config.centre, x.dtype, x.device)

    def condition(self, y: Any) -> Tensor | None:
        """The classes as vectors, one-hot, that both players read.     (B) → (B, classes), None where there are none"""
        return pictures.condition(self, y)

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return adversarial.optimizers(self)

    def judged(self, x: Tensor, fake: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """D(x), D(G(z)), and what D lowers besides its objective; x and G(z) are constants.     (B, …) twice → (B), (B), ()

        λ E (‖∇D(x̂)‖ − 1)² + γ₁/2 E ‖∇D(x)‖² + γ₂/2 E ‖∇D(G(z))‖², of those that are asked for; None where none is.

        A D that judges each picture alone is shown both kinds as one batch, which says the same in half as many, larger
        products. Under batch norm it would not be the same: there each kind has its own mean and variance.
        """
        config, terms = self.config, []
        if self.norm:
            return self.discriminator(x, c), self.discriminator(fake, c), None
        both = cat([x, fake]).requires_grad_(bool(config.r1 or config.r2))  # (2 B, …)
        d = self.discriminator(both, None if c is None else cat([c, c]))  # (2 B)
        if both.requires_grad:
            sides = adversarial.slopes(d, both).split(len(x))
            terms += [γ * adversarial.zero_centred(side) for γ, side in zip((config.r1, config.r2), sides, strict=True) if γ]
        if config.gradient_penalty:
            middle = adversarial.between(x, fake).requires_grad_()
            slope = adversarial.slopes(self.discriminator(middle, c), middle)
            terms.append(config.gradient_penalty * adversarial.one_centred(slope))
        d_real, d_fake = d.split(len(x))
        return d_real, d_fake, sum(terms[1:], terms[0]) if terms else None

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """One step of D, then one of G against it; batch (x, y), pictures in [0, 1] and, where D is told them, their classes.

        Returns both losses, the penalty apart, the mean judgements of real and generated pictures, all from before the steps,
        and the lengths of both gradients.
        """
        x = self.inside(batch[0])
        c = self.condition(batch[1])
        fake = self.generator(self.noise(len(x)), c)
        # D: the generated pictures are constants here, so that only D moves
        d_real, d_fake, penalty = self.judged(x, fake.detach(), c)
        loss_d = self.objective.discriminator(d_real, d_fake)
        total = loss_d if penalty is None else loss_d + penalty
        grad_d = adversarial.descend(optimizers["discriminator"], self.discriminator, total)
        # G: judged by the D just improved; gradients pass through D, and D's own are not asked for
        beside = d_real.detach()
        if self.objective.pairs:
            with no_grad():
                beside = self.discriminator(x, c)
        loss_g = self.objective.generator(beside, self.discriminator(fake, c))
        grad_g = adversarial.descend(optimizers["generator"], self.generator, loss_g)
        return {
            "loss_d": loss_d.item(),
            "loss_g": loss_g.item(),
            "penalty": 0.0 if penalty is None else penalty.item(),
            **self.objective.judgements(d_real, d_fake),
            "grad_d": grad_d,
            "grad_g": grad_g,
        }

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """The value of the game, −(what D lowers), the mean judgements on held-out pictures, and how near G's pictures lie.

        Where D can tell nothing the value is −log 4 = −1.386 of the cross-entropy, −log 2 of relativistic pairs, −¼ of least
        squares, −2 of the hinge, 0 of the Wasserstein objective.
        What AUC and spacing are `adversarial.seen` says.
        """
        real, fake, data, drawn = [], [], [], []
        for x, y in batches:
            c = self.condition(y)
            made = self.generator(self.noise(len(x)), c)
            real.append(self.discriminator(self.inside(x), c).cpu().data)
            fake.append(self.discriminator(made, c).cpu().data)
            if len(data) * len(x) < adversarial.SPACED:
                data.append(x)
                drawn.append(self.outside(made).cpu().data)
        d_real, d_fake = Tensor(np.concatenate(real)), Tensor(np.concatenate(fake))
        found = {"value": -self.objective.discriminator(d_real, d_fake).item(), **self.objective.judgements(d_real, d_fake)}
        return found | adversarial.seen(real, fake, data, drawn)

    @no_grad()
    def judge(self, x: np.ndarray) -> np.ndarray:
        """D's logits of pictures or points that are told no class.     (N, …) → (N)"""
        return self.discriminator(self.inside(x)).cpu().data

    @no_grad()
    def _pictures(self, z: Tensor, y: Any = None) -> np.ndarray:
        return self.outside(self.generator(z, self.condition(y))).cpu().data

    def generate(
        self, n: int, *, y: Any = None, truncation: float = 1.0, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """n pictures in [0, 1], of the classes y (n) where G is told them, without y of each in turn.     → (n, C, H, W)

        G(τ z) for a truncation τ: below 1 the codes are likelier ones, so that pictures are more typical and less varied.
        Source: Brock et al. 2019, arXiv:1809.11096, §3.1, where codes beyond a length are drawn anew instead.
        """
        if self.config.classes and y is None:
            y = np.arange(n) % self.config.classes
        return self._pictures(truncation * self.noise(n, generator=generator), y)

    def walk(self, rows: int, steps: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Walks from one code to another on which every code is as likely as these.     → (rows · steps, C, H, W)

        Great circles between codes of N(0, I), whose length they keep; between codes of U(−1, 1) straight lines.
        """
        ends = self.noise(2 * rows, generator=random.generator(generator)).cpu().data.reshape(rows, 2, -1).astype(np.float64)
        way = latent.arc if self.config.noise == "gaussian" else latent.line
        z = way(ends[:, 0], ends[:, 1], steps)  # (rows, steps, latent)
        dtype = next(self.parameters()).dtype
        y = np.arange(rows).repeat(steps) % self.config.classes if self.config.classes else None  # a class a row
        return self._pictures(Tensor(z.reshape(rows * steps, -1), dtype, self.device), y)


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def equations(model: GAN) -> tuple[str, ...]:
    """What D and G lower, penalties included, as a page writes it."""
    of_d, of_g = model.objective.equations
    c = model.config
    for factor, term in (
        (c.gradient_penalty, "λ 𝔼 [ ( ‖ ∇ D ( x̂ ) ‖ − 1 )^2 ]"),
        (c.r1, "½ γ_1 𝔼 [ ‖ ∇ D ( x ) ‖^2 ]"),
        (c.r2, "½ γ_2 𝔼 [ ‖ ∇ D ( G ( z ) ) ‖^2 ]"),
    ):
        if factor:
            of_d += f" + {term}"
    return of_d, of_g


def page(model: GAN, metadata: dict[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: samples beside real pictures, walks through the noise, the nearest training pictures."""
    train, test = task.train.x, task.test.x
    made = draw(60, np.random.default_rng(7))
    few, flat = made[:12], train.reshape(len(train), -1)
    nearest = train[[np.argmin(((flat - x.reshape(-1)) ** 2).sum(1)) for x in few]]
    real = test[np.random.default_rng(7).permutation(len(test))[:60]]
    return Page(
        "A generator *G* turns noise *z* into pictures; a discriminator *D* judges whether a picture is real, by a number that "
        "is *r* = *D*(*x*) for a real picture and *f* = *D*(*G*(*z*)) for a generated one. Each is the other’s teacher: *D* "
        "and *G* lower a loss each, and where neither can improve, the pictures have the distribution of the data.",
        equations(model),
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
    decided={**pictures.INSIDE, **pictures.SHAPE, "classes": lambda images: 0},
    rates=("lr", "lr_d"),
    makes="pictures",
    sample=pictures.sample,
    averaged="generator",
    scores=pictures.scores,
    meanings=(
        Score("value", "value of the game", 0, "−(loss of *D*); of cross-entropy −1.386 where *D* can tell nothing"),
        Score("d_real", "*D* of real pictures", 0, "mean judgement of held-out data"),
        Score("d_fake", "*D* of generated ones", 0, "the same of what *G* draws"),
        *adversarial.SEEN,
        *pictures.MEANINGS,
    ),
    curves=(
        Panel("losses", (Line("loss_d", "discriminator"), Line("loss_g", "generator"), Line("penalty", "penalty"))),
        Panel(
            "mean judgement",
            (
                Line("d_real", "of real pictures"),
                Line("test_d_real", "of held-out ones", held_out=True),
                Line("d_fake", "of generated ones"),
            ),
        ),
        Panel("length of the gradient", (Line("grad_d", "discriminator"), Line("grad_g", "generator")), log=True),
    ),
    rules=doctor.GAME,
    page=page,
)


# ---------------------------------------------------------------------------------------------------------------------
# The same in the plane
# ---------------------------------------------------------------------------------------------------------------------


def sample_points(model: GAN, metadata: Mapping[str, Any], n: int, rng: np.random.Generator) -> Plane:
    """n points, over the surface of D's logits."""
    square, side = metadata["square"], 96
    surface = model.judge(lattice(square, side)).reshape(side, side)
    return Plane(model.generate(n, generator=rng), square, surface=surface)


def page_of_points(model: GAN, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: samples and data over D's surface, and the smallest game of this kind."""
    made = points.snapshot(task, draw, np.random.default_rng(7))
    return Page(
        "The adversarial game in the plane, where all of it can be seen: a generator *G* turns noise into points, and a "
        "discriminator *D* gives each point of the plane a height, *r* = *D*(*x*) at a real one and *f* = *D*(*G*(*z*)) at one "
        "that *G* made. *G* moves its points uphill; *D* raises the data and lowers what *G* makes.",
        equations(model),
        (
            (
                Planes([("", made)], "Points drawn by *G*, and data never seen in training, over the logits of *D*."),
                Planes([("", made._replace(x=made.x[:0]))], "The same data alone."),
            ),
            dirac.paths(),
        ),
    )


POINTS = dataclasses.replace(
    FAMILY,
    **points.IN_THE_PLANE,
    name="toy-gan",
    title="Generative adversarial network in the plane",
    decided={
        **points.DECIDED,
        "network": lambda points: "mlp",
        "upsample": lambda points: "nearest",
    },
    sample=sample_points,
    meanings=(*FAMILY.meanings[:5], *points.MEANINGS),
    page=page_of_points,
)


# ---------------------------------------------------------------------------------------------------------------------
# The same, told classes.  Mirza & Osindero 2014, arXiv:1411.1784; Miyato & Koyama 2018, arXiv:1802.05637
# ---------------------------------------------------------------------------------------------------------------------


TRUNCATION = 0.9  # at 1, a classifier reads the asked class as often as in real pictures; a little below, more often


def sample_classes(
    model: GAN,
    metadata: Mapping[str, Any],
    n: int,
    rng: np.random.Generator,
    *,
    label: str | None = None,
    truncation: float = TRUNCATION,
) -> np.ndarray:
    """n pictures of the class of that name or number, or else of each class in turn.     → (n, C, H, W) in [0, 1]"""
    return pictures.sample_classes(model, metadata, n, rng, label=label, truncation=truncation)


def page_of_classes(model: GAN, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: rows of each class beside real ones, and walks through the noise, a class a row."""
    names = list(metadata["classes"])
    test, rng = task.test, np.random.default_rng(7)
    made = np.concatenate([draw(10, np.random.default_rng(7), label=name) for name in names])
    real = np.concatenate([test.x[rng.choice(np.flatnonzero(test.y == k), 10)] for k in range(len(names))])
    return Page(
        "A generator *G* makes pictures of a class that it is told; a discriminator *D* is told the class too, and judges "
        "whether a picture is real and of this class.",
        ("D ( x , y ) = ψ ( h ( x ) ) + ⟨ v_y , Σ h ( x ) ⟩", *equations(model)),
        (
            (
                Pictures(made, 10, f"Drawn by *G*, a row for each class: {', '.join(names)}."),
                Pictures(real, 10, "Real, and never seen in training."),
            ),
            Pictures(
                model.walk(min(len(names), 5), 16, generator=np.random.default_rng(1)),
                16,
                "Walks through the space of noise within a class: each row goes from one code to another in equal steps.",
            ),
        ),
    )


CONDITIONAL = dataclasses.replace(
    FAMILY,
    name="cgan",
    title="Conditional generative adversarial network",
    prepare=pictures.prepare_classes,
    decided={**pictures.INSIDE, **pictures.SHAPE_AND_CLASSES},
    sample=sample_classes,
    options=(
        pictures.LABEL,
        Option(
            "truncation",
            float,
            f"shrinks the codes: surer pictures, less varied ({TRUNCATION})",
            "T",
            "a number from 0 to 1",
            0,
            1,
        ),
    ),
    scores=pictures.scores_of_classes,
    page=page_of_classes,
)
