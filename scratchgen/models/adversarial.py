r"""What two players of an adversarial game lower: six objectives, as functions of logits, and two penalties on D's slope.

The discriminator (or critic) D gives each picture x a logit d = D(x), the generator G makes pictures G(z) of noise. Below,
E is the mean over a batch, d_r = D(x) over real pictures, d_f = D(G(z)) over generated ones, and ς(t) = log(1 + eᵗ) is
softplus, so that log σ(d) = −ς(−d) and log(1 − σ(d)) = −ς(d) are finite for every logit.

    objective         D lowers                               G lowers              at its best for a fixed G, D is
    minimax           E ς(−d_r) + E ς(d_f)                   −E ς(d_f)             d* = log p/q            (1)
    non-saturating    the same                               E ς(−d_f)             the same                (1)
    least-squares     ½ E (d_r − 1)² + ½ E d_f²              ½ E (d_f − 1)²        d* = p / (p + q)        (2)
    hinge             E max(0, 1 − d_r) + E max(0, 1 + d_f)  −E d_f                d* = sign(p − q)        (3)
    wasserstein       E d_f − E d_r                          −E d_f                steepest of slope ≤ 1   (4)
    relativistic      E ς(−(d_r − d_f))                      E ς(−(d_f − d_r))     d* = log p/q + const    (5)

    objective         needs                                  why
    minimax           luck: G's slope σ(d_f) → 0 where D is sure    kept since the theory is about it
    non-saturating    nothing, but a D that is not too good  D's logits, and G's slope with them, grow without bound
    least-squares     nothing                                far-off pictures are pulled, however sure D is
    hinge             spectral normalisation of D            bounds the slope of D, which sets the size of G's gradient
    wasserstein       the gradient penalty                   without a bound on D's slope the objective has no minimum
    relativistic      R1 and R2                              without them the game circles (Dirac-GAN, test_laws_gan.py)

On Fashion-MNIST, at equal seconds, the three whose needs bound D's slope came nearest to the data, and least squares
came last (README, "Which objective comes nearest").

(1) Goodfellow et al. 2014, arXiv:1406.2661.  (2) Mao et al. 2017, arXiv:1611.04076, eq. 9.  (3) Lim & Ye 2017,
arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957.  (4) Arjovsky et al. 2017, arXiv:1701.07875; Gulrajani et al. 2017,
arXiv:1704.00028.  (5) Jolicoeur-Martineau 2019, arXiv:1807.00734; with both penalties Huang et al. 2024 (R3GAN),
arXiv:2501.05441, whose pairs are the i-th real with the i-th generated picture of a batch: G's loss reads real pictures too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scratchgen import device as devices
from scratchgen import functional as F
from scratchgen import metrics, nn, optim, random
from scratchgen.autograd import grad
from scratchgen.models.family import Score
from scratchgen.ops import ones_like, sigmoid
from scratchgen.tensors import Tensor, constant


def softplus(t: Tensor) -> Tensor:
    """ς(t) = log(1 + eᵗ), for every t: PyTorch's threshold, beyond which ς(t) is taken to be t, would cut the tail off."""
    return F.softplus(t, threshold=np.inf)


class Objective(NamedTuple):
    """What the players lower: functions of the logits of real and of generated pictures, (B) each, to a number."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    blind: float  # what D lowers, where it can tell nothing and is at its best
    judgement: Callable[[Tensor], Tensor] = sigmoid  # what D's logits mean: the probability of being real, or nothing more
    pairs: bool = False  # does G's loss read D's logits of real pictures?
    equations: tuple[str, ...] = ()  # both losses as `Page.equations` writes them, with r = D(x) and f = D(G(z))

    def judgements(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """The means of what D's logits of real and of generated pictures mean."""
        return {name: self.judgement(d.detach()).mean().item() for name, d in (("d_real", real), ("d_fake", fake))}


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """−V(D, G) = −E log σ(d_r) − E log(1 − σ(d_f))"""
    return softplus(-real).mean() + softplus(fake).mean()


def _as_it_is(d: Tensor) -> Tensor:
    return d


_CROSS_ENTROPY = "L_D = − 𝔼 [ log σ ( r ) ] − 𝔼 [ log ( 1 − σ ( f ) ) ]"

OBJECTIVES = {
    "minimax": Objective(
        _cross_entropy,
        lambda real, fake: -softplus(fake).mean(),
        blind=math.log(4),
        equations=(_CROSS_ENTROPY, "L_G = 𝔼 [ log ( 1 − σ ( f ) ) ]"),
    ),
    "non-saturating": Objective(
        _cross_entropy,
        lambda real, fake: softplus(-fake).mean(),
        blind=math.log(4),
        equations=(_CROSS_ENTROPY, "L_G = − 𝔼 [ log σ ( f ) ]"),
    ),
    "least-squares": Objective(
        lambda real, fake: 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean(),
        lambda real, fake: 0.5 * (fake - 1).square().mean(),
        blind=0.25,
        judgement=_as_it_is,
        equations=("L_D = ½ 𝔼 [ ( r − 1 )^2 ] + ½ 𝔼 [ f^2 ]", "L_G = ½ 𝔼 [ ( f − 1 )^2 ]"),
    ),
    "hinge": Objective(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda real, fake: -fake.mean(),
        blind=2.0,
        judgement=_as_it_is,
        equations=("L_D = 𝔼 [ max ( 0 , 1 − r ) ] + 𝔼 [ max ( 0 , 1 + f ) ]", "L_G = − 𝔼 [ f ]"),
    ),
    "wasserstein": Objective(
        lambda real, fake: fake.mean() - real.mean(),
        lambda real, fake: -fake.mean(),
        blind=0.0,
        judgement=_as_it_is,
        equations=("L_D = 𝔼 [ f ] − 𝔼 [ r ]", "L_G = − 𝔼 [ f ]"),
    ),
    "relativistic": Objective(
        lambda real, fake: softplus(fake - real).mean(),
        lambda real, fake: softplus(real - fake).mean(),
        blind=math.log(2),
        pairs=True,
        judgement=_as_it_is,  # up to a constant, which the differences of pairs do not see
        equations=("L_D = − 𝔼 [ log σ ( r − f ) ]", "L_G = − 𝔼 [ log σ ( f − r ) ]"),
    ),
}


def objective(name: str) -> Objective:
    """The objective of that name. Raises ValueError where there is none."""
    if name not in OBJECTIVES:
        raise ValueError(f"GAN: expected an objective of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


# ---------------------------------------------------------------------------------------------------------------------
# Penalties: functions of D's slope, which D's own sweep then differentiates once more
# ---------------------------------------------------------------------------------------------------------------------


def slopes(logits: Tensor, x: Tensor) -> Tensor:
    """∇ₓ D(x), one for each sample, as part of the graph.     logits: (B), of x: (B, …) → (B, …)

    The cotangent of each logit is 1, so the sum over the batch is differentiated: D judges each sample alone (no batch
    normalisation in D), so that ∂ Σ_i D(x_i) / ∂x_j = ∇D(x_j).
    """
    (slope,) = grad(logits, x, ones_like(logits), create_graph=True)
    return slope


def zero_centred(slope: Tensor) -> Tensor:
    r"""½ E ‖∇D‖²: R1 at real pictures, R2 at generated ones; sums over all axes of a sample, mean over the batch.

    Source: Mescheder et al. 2018, arXiv:1801.04406, eq. 9 and 10 (there with γ in front).
    """
    return 0.5 * slope.square().sum() / len(slope)


def one_centred(slope: Tensor) -> Tensor:
    r"""E (‖∇D‖ − 1)²: the gradient penalty of WGAN-GP, the norm over all axes of a sample.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, eq. 3 (there with λ in front).
    """
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def between(real: Tensor, fake: Tensor, *, generator: np.random.Generator | None = None) -> Tensor:
    r"""x̂ = ε x + (1 − ε) x̃,  ε ~ U(0, 1), one for each pair: where WGAN-GP looks at D's slope.     (B, …) → (B, …)"""
    shape = (len(real), *(1,) * (real.ndim - 1))
    share = devices.beside(random.generator(generator).random(shape).astype(real.dtype), real.data)
    return constant(share * real.data + (1 - share) * fake.data)


# ---------------------------------------------------------------------------------------------------------------------
# A step
# ---------------------------------------------------------------------------------------------------------------------


def optimizers(model: nn.Module) -> dict[str, optim.Optimizer]:
    """Adam for each player of a model, by the rates `lr`, of D `lr_d` where that is set, and `beta1`, `beta2` of its config."""
    c = model.config
    rates = {"discriminator": c.lr_d or c.lr, "generator": c.lr}
    return {
        player: optim.Adam(getattr(model, player).parameters(), lr=rate, betas=(c.beta1, c.beta2))
        for player, rate in rates.items()
    }


def descend(optimizer: optim.Optimizer, player: nn.Module, loss: Tensor) -> float:
    """Move one player, and nobody else, down its loss; returns the length of the gradient."""
    parameters = list(player.parameters())
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    length = nn.utils.clip_grad_norm_(parameters, math.inf)  # which clips nothing
    optimizer.step()
    return length.item()


# ---------------------------------------------------------------------------------------------------------------------
# What is seen of a game
# ---------------------------------------------------------------------------------------------------------------------

SPACED = 256  # pictures whose spacing is looked at


def seen(
    real: Sequence[np.ndarray], fake: Sequence[np.ndarray], x: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> dict[str, float]:
    """Scores by which a D that overfits is known, and a G that has collapsed; in batches: D's logits, data, what G made.

    The AUC is how often D judges data above what G made. The spacing is the mean distance from something that G made to the
    nearest other, of at most 256, as a share of that of the data: near 0 where G makes the same few again and again.
    """
    d_real, d_fake = (np.concatenate(logits).ravel() for logits in (real, fake))
    data, made = (np.concatenate(of).reshape(-1, of[0][0].size)[:SPACED] for of in (x, made))
    if not all(np.isfinite(array).all() for array in (d_real, d_fake, made)):
        return {"auc": math.nan, "spacing": math.nan}
    apart = metrics.spacing(data) if len(data) > 1 else 0
    spacing = metrics.spacing(made) / apart if apart else 1.0  # of one picture, or of equal ones, nothing can be said
    return {"auc": metrics.auc(d_real, d_fake), "spacing": spacing}


SEEN = (
    Score("auc", "AUC of *D*", 0, "how often *D* ranks a held-out picture above a generated one; ½ where blind"),
    Score("spacing", "spacing", 0, "from a sample to the nearest other; 1 as in real pictures, near 0 where all are alike"),
)
