r"""Image-to-image translation: pix2pix.  Isola et al. 2017, arXiv:1611.07004.

Pictures a are to become pictures b: drawings clothes, outlines filled shapes. Many b fit one a, and a generator G that lowers
a distance alone gives what lies between them all, which is blurred. Here a discriminator D judges besides whether b looks real
beside a:

    min_G max_D  E[log D(a, b)] + E[log(1 − D(a, G(a)))] + λ E ‖b − G(a)‖₁                              (eq. 3, 4)

where ‖·‖₁ is the mean over pixels. The L1 term holds what is coarse, D what is fine: so D need not see whole pictures, but
gives a logit to each patch of 16 × 16. The adversarial part may be any objective of `adversarial.py`, weighted by the setting
`adversarial`; where that is 0, D is never asked, and G is the same network trained by L1 alone, to compare with.

There is no noise, which G would learn to ignore (§3.1): what a picture becomes is a function of the picture. Dropout acts in
training only, where the paper keeps it. Instance norms are over the positions of one channel of one picture, in training as in
use, so that there are no two modes; batch norms are over the pictures of a batch as well, so that a flat picture stays apart
from another flat one.
Pictures are in [−1, 1] inside, in [0, 1] outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scratchgen import data, nn, optim
from scratchgen import functional as F
from scratchgen.data.dataset import spread
from scratchgen.data.pairs import sobel
from scratchgen.grad_mode import no_grad
from scratchgen.models import adversarial, doctor, pictures
from scratchgen.models.adversaries import LEAK
from scratchgen.models.family import Draw, Family, Keep, Line, Option, OptionError, Page, Panel, Pictures, Score
from scratchgen.ops import cat, tanh
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class Pix2PixConfig:
    in_channels: int = 1  # of a
    out_channels: int = 1  # of b
    hidden: int = 128  # channels of the widest convolution of G; D's widest has half of them
    dropout: float = 0.5  # in the deepest block of G that doubles the sides, in training
    norm: str = "instance"  # or "batch"
    loss: str = "non-saturating"  # a key of `adversarial.OBJECTIVES`
    adversarial: float = 1.0  # weight of the adversarial part of G's loss; 0: L1 alone
    l1: float = 100.0  # λ
    lr: float = 2e-4  # of both players
    lr_d: float = 0.0  # of D, where it has one of its own; 0: as of both
    beta1: float = 0.5  # of Adam
    beta2: float = 0.999
    reverse: bool = False  # from b to a


# ---------------------------------------------------------------------------------------------------------------------
# The players
# ---------------------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """a → b: three convolutions that halve the sides, then three that double them, each told what stood at its size before.

    Such skips carry where the lines are past the narrow middle, which is left with what they mean. Sides are doubled by nearest
    neighbours followed by a convolution, which leaves no checkerboard; odd sides are halved upwards, and cut when doubled.
    a: (B, in_channels, H, W) → (B, out_channels, H, W), both in [−1, 1].   Source: Ronneberger et al. 2015, arXiv:1505.04597.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int, dropout: float, norm: str):
        super().__init__()
        n = hidden // 4
        self.down1 = nn.Conv2d(in_channels, n, 3, stride=2, padding=1)
        self.down2 = _normed(norm, nn.Conv2d(n, 2 * n, 3, stride=2, padding=1, bias=False), nn.LeakyReLU(LEAK))
        self.down3 = _normed(norm, nn.Conv2d(2 * n, 4 * n, 3, stride=2, padding=1, bias=False), nn.LeakyReLU(LEAK))
        self.up3 = _normed(norm, nn.Conv2d(4 * n, 2 * n, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout(dropout))
        self.up2 = _normed(norm, nn.Conv2d(4 * n, n, 3, padding=1, bias=False), nn.ReLU())
        self.up1 = _normed(norm, nn.Conv2d(2 * n + in_channels, n, 3, padding=1, bias=False), nn.ReLU())
        self.refine = _normed(norm, nn.Conv2d(n, n, 3, padding=1, bias=False), nn.ReLU())
        self.out = nn.Conv2d(n + in_channels, out_channels, 3, padding=1)

    def forward(self, a: Tensor) -> Tensor:
        h1 = F.leaky_relu(self.down1(a), LEAK)  # (B, n, H/2, W/2)
        h2 = self.down2(h1)  # (B, 2n, H/4, W/4)
        h = self.down3(h2)  # (B, 4n, H/8, W/8)
        h = self.up3(_doubled(h, h2))  # (B, 2n, H/4, W/4)
        h = self.up2(_doubled(cat([h, h2], 1), h1))  # (B, n, H/2, W/2)
        h = self.refine(self.up1(cat([_doubled(cat([h, h1], 1), a), a], 1)))  # (B, n, H, W)
        return tanh(self.out(cat([h, a], 1)))  # (B, out_channels, H, W)


NORMS = {"instance": lambda channels: nn.InstanceNorm2d(channels, affine=True), "batch": nn.BatchNorm2d}


def _normed(norm: str, convolution: nn.Conv2d, *then: nn.Module) -> nn.Module:
    return nn.Sequential(convolution, NORMS[norm](convolution.out_channels), *then)


def _doubled(h: Tensor, like: Tensor) -> Tensor:
    """Twice the sides, or those of `like` where these are odd.     (B, C, ⌈H/2⌉, ⌈W/2⌉) → (B, C, H, W)"""
    return F.interpolate(h, scale_factor=2)[:, :, : like.shape[2], : like.shape[3]]


class PatchDiscriminator(nn.Module):
    """(a, b) → a logit for each patch of 16 × 16, conditioned on a, whose channels are laid beside those of b.

    A convolution of k × k widens what one position sees by (k − 1) pixels of its input, and a pixel of its input is as many
    pixels of the picture as the product of the strides before:

        4 × 4, stride 2     1 + 3 · 1 = 4          4 × 4     4 + 3 · 2 = 10          4 × 4     10 + 3 · 2 = 16

    (B, ·, H, W) → (B, (H/2 − 2) (W/2 − 2)).   Source: §3.2.2 and appendix 6.1.2, the discriminator called 16 × 16.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels + out_channels, hidden // 4, 4, stride=2, padding=1)
        self.conv2 = _normed(norm, nn.Conv2d(hidden // 4, hidden // 2, 4, padding=1, bias=False), nn.LeakyReLU(LEAK))
        self.judge = nn.Conv2d(hidden // 2, 1, 4, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(cat([a, b], 1)), LEAK)  # (B, hidden/4, H/2, W/2)
        h = self.conv2(h)  # (B, hidden/2, H/2 − 1, W/2 − 1)
        return self.judge(h).flatten(1)  # (B, patches)


# ---------------------------------------------------------------------------------------------------------------------
# The game
# ---------------------------------------------------------------------------------------------------------------------


class Pix2Pix(nn.Module):
    """A generator from pictures to pictures, a discriminator of patches, and one round of their game."""

    def __init__(self, config: Pix2PixConfig):
        super().__init__()
        self.config = config
        self.objective = adversarial.objective(config.loss)
        if config.hidden % 8:
            raise ValueError(f"Pix2Pix: expected hidden divisible by 8, got {config.hidden}")
        if not (config.adversarial or config.l1):
            raise ValueError("Pix2Pix: expected a weight of the adversarial part or of L1 above 0, got 0 for both")
        if config.norm not in NORMS:
            raise ValueError(f"Pix2Pix: expected norm {' or '.join(map(repr, NORMS))}, got {config.norm!r}")
        channels = config.in_channels, config.out_channels
        self.generator = UNet(*channels, config.hidden, config.dropout, config.norm)
        self.discriminator = PatchDiscriminator(*channels, config.hidden, config.norm)

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return adversarial.optimizers(self)

    def _inside(self, x: Any) -> Tensor:
        """Pictures in [0, 1], wherever they are, as a tensor in [−1, 1]."""
        return as_tensor(x).to(self.device) * 2 - 1

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """One step of D, unless its weight is 0, then one of G against it; batch (a, b), pictures in [0, 1].

        Returns the players' losses (of G the adversarial part, and apart the distance L1, of pictures in [0, 1]), D's mean
        judgements, all from before the steps, and the lengths of both gradients; 0 for what there is not.
        """
        config, game = self.config, self.objective
        a, b = map(self._inside, batch)
        made = self.generator(a)
        l1 = (made - b).abs().mean()
        loss = config.l1 * l1
        told = dict.fromkeys(("loss_d", "loss_g", "l1", "d_real", "d_fake", "grad_d", "grad_g"), 0.0)
        if config.adversarial:
            # D: what G made is a constant here, so that only D moves
            d_real, d_fake = self.discriminator(a, b), self.discriminator(a, made.detach())
            loss_d = game.discriminator(d_real, d_fake)
            told["grad_d"] = adversarial.descend(optimizers["discriminator"], self.discriminator, loss_d)
            # G: judged by the D just improved
            beside = d_real.detach()
            if game.pairs:
                with no_grad():
                    beside = self.discriminator(a, b)
            loss_g = game.generator(beside, self.discriminator(a, made))
            loss = loss + config.adversarial * loss_g
            told |= {"loss_d": loss_d.item(), "loss_g": loss_g.item(), **game.judgements(d_real, d_fake)}
        told["grad_g"] = adversarial.descend(optimizers["generator"], self.generator, loss)
        return told | {"l1": 0.5 * l1.item()}

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        r"""How far from the true b, how sharp, and how real to D, held-out pictures become.

        l1 = E |b − G(a)|,   sharpness = E s(G(a)) / E s(b),  s the slope by Sobel: 1 for G(a) as sharp as b, less if blurred
        """
        n, l1, slope, real, fake, true, drawn = 0, 0.0, np.zeros(2), [], [], [], []
        for a, b in batches:
            made = self.translate(a)
            n, l1 = n + b.size, l1 + float(np.abs(made - b).sum(dtype=np.float64))
            slope += [sobel(made).sum(dtype=np.float64), sobel(b).sum(dtype=np.float64)]
            if self.config.adversarial:
                real.append(self.discriminator(self._inside(a), self._inside(b)).cpu().data)
                fake.append(self.discriminator(self._inside(a), self._inside(made)).cpu().data)
                if len(true) * len(b) < adversarial.SPACED:
                    true.append(b)
                    drawn.append(made)
        judged = {"d_real": 0.0, "d_fake": 0.0}
        if real:
            judged = self.objective.judgements(Tensor(np.concatenate(real)), Tensor(np.concatenate(fake)))
            judged |= adversarial.seen(real, fake, true, drawn)
        return {"l1": l1 / n, "sharpness": float(slope[0] / max(slope[1], 1e-12)), **judged}

    @no_grad()
    def translate(self, a: np.ndarray) -> np.ndarray:
        """What pictures become, G(a), 256 at a time.     (N, in_channels, H, W) → (N, out_channels, H, W), both in [0, 1]"""
        made = [self.generator(self._inside(a[i : i + 256])) for i in range(0, len(a), 256)]
        return np.concatenate([((x + 1) * 0.5).cpu().data for x in made])


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------

KEPT = 16  # held-out pairs that a checkpoint keeps, to be translated where nobody names a picture
LEAST = 16  # of the sides: below, the middle of the U-Net would be one pixel, whose norm is 0


def prepare(train: data.Pairs, test: data.Pairs, settings: Mapping[str, Any]) -> tuple[data.Pairs, data.Pairs]:
    """The pairs, reversed where that is set, and some of those held out with those to learn from, so that samples show them.

    Raises DataError where those held out have another shape, or sides are too short.
    """
    for side in ("a", "b"):
        shape, held_out = getattr(train, side).shape[1:], getattr(test, side).shape[1:]
        if shape != held_out:
            raise data.DataError(f"{train.name}: expected one shape of {side}, got {shape} to learn from, {held_out} to test.")
    if min(train.a.shape[2:]) < LEAST:
        raise data.DataError(f"{train.name}: expected sides of at least {LEAST} pixels, got {train.a.shape[2:]}.")
    rows = spread(len(test), KEPT)
    train = replace(train, kept=(test.a[rows], test.b[rows]))
    return (train.reversed(), test.reversed()) if settings["reverse"] else (train, test)


def _alike(*columns: np.ndarray) -> list[np.ndarray]:
    """Grey pictures as RGB where others have colours.     (N, ·, H, W) each → (N, C, H, W) each"""
    channels = max(x.shape[1] for x in columns)
    return [x if x.shape[1] == channels else x.repeat(channels, 1) for x in columns]


def sample(
    model: Pix2Pix,
    metadata: Mapping[str, Any],
    n: int,
    rng: np.random.Generator,
    *,
    image: str | np.ndarray | None = None,
) -> np.ndarray:
    """What the picture in a file, or those in a folder, become; without, up to n of the held-out pairs kept, as a | G(a) | b.

    image: a path, or pictures (N, in_channels, H, W) in [0, 1];  result: (N, C, H, W), or (n, C, H, 3W).
    Raises OptionError for more pairs than a run keeps, DataError for pictures that cannot be translated.
    """
    a, b = metadata["a"], metadata["b"]
    if image is None:
        if n > KEPT:
            raise OptionError(
                f"-n: expected at most {KEPT}, the held-out pairs that a run keeps, got {n}; --image takes others."
            )
        return np.concatenate(_alike(a[:n], model.translate(a[:n]), b[:n]), 3)
    return model.translate(image if isinstance(image, np.ndarray) else data.pictures_like(image, a.shape[1:]))


def scores(
    task: data.Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable[[str], Any], keep: Keep
) -> dict[str, float]:
    """How near what held-out pictures become, as many as are compared, comes to held-out b: see `pictures.scores`."""
    a = task.test.a

    def translations(n: int, rng: np.random.Generator) -> np.ndarray:
        return draw(n, rng, image=a[rng.permutation(len(a))[:n]])

    images = replace(task, train=task.train.images(), test=task.test.images())
    return pictures.scores(images, found, translations, rng, say, keep)


def page(model: Pix2Pix, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: held-out pictures, what they become, and what they should."""
    test, columns = task.test, 12
    rows = np.random.default_rng(7).permutation(len(test))[: 3 * columns]
    a, b = test.a[rows], test.b[rows]
    three = _alike(a, draw(len(a), np.random.default_rng(7), image=a), b)
    strips = [x[i : i + columns] for i in range(0, len(a), columns) for x in three]
    distance = "λ 𝔼 [ ‖ b − G ( a ) ‖_1 ]"
    equations = (f"L_G = {distance}",)
    lead = "A generator *G* turns pictures *a* into pictures *b*, by L1 alone: where several *b* would do, it gives a blur."
    if model.config.adversarial:
        loss_d, loss_g = model.objective.equations
        equations = (loss_d, f"{loss_g} + {distance}", "r = D ( a , b ) f = D ( a , G ( a ) )")
        lead = (
            "A generator *G* turns pictures *a* into pictures *b*. That it comes near the true *b*, pixel by pixel, is not "
            "enough: where several *b* would do, it would give what lies between them, a blur. So a discriminator *D* judges "
            "besides, patch by patch, whether *b* looks real beside *a*."
        )
    shown = Pictures(np.concatenate(strips), columns, "Held-out pictures; below each what *G* makes of it, and the true one.")
    return Page(lead, equations, (shown,))


def _judged(rule: doctor.Rule) -> doctor.Rule:
    """The rule, where there is a D."""
    return lambda rows, config: rule(rows, config) if config.adversarial else None


FAMILY = Family(
    name="pix2pix",
    title="Image-to-image translation",
    model=Pix2Pix,
    config=Pix2PixConfig,
    learns_from=data.Pairs,
    prepare=prepare,
    decided={"in_channels": lambda pairs: pairs.a.shape[1], "out_channels": lambda pairs: pairs.b.shape[1]},
    makes="pictures",
    sample=sample,
    rates=("lr", "lr_d"),
    averaged="generator",
    options=(Option("image", str, "the picture to translate, or a folder of them (held-out ones beside the truth)", "FILE"),),
    many=KEPT,
    scores=scores,
    meanings=(
        Score("l1", "L1", -1, "mean distance to the true picture, of pixels in [0, 1]"),
        Score("sharpness", "sharpness", 0, "mean slope, 1 where it is that of the true pictures"),
        Score("d_real", "*D* of real pictures", 0, "mean judgement of held-out pairs; 0 where *D* is not asked"),
        Score("d_fake", "*D* of translations", 0, "the same of what *G* makes"),
        *adversarial.SEEN,
        *pictures.MEANINGS,
    ),
    rules=(*map(_judged, doctor.GAME), doctor.flat("l1")),
    curves=(
        Panel("losses", (Line("loss_d", "discriminator"), Line("loss_g", "generator, adversarial part"))),
        Panel("L1", (Line("l1", "training"), Line("test_l1", "held out", held_out=True))),
        Panel(
            "mean judgement",
            (
                Line("d_real", "of real pictures"),
                Line("test_d_real", "of held-out ones", held_out=True),
                Line("d_fake", "of translations"),
            ),
        ),
        Panel("length of the gradient", (Line("grad_d", "discriminator"), Line("grad_g", "generator"))),
    ),
    page=page,
)
