"""Rows for the layers and losses of `nn`, with their parameters, and for the models."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchgen import models, nn
from scratchgen.catalog.compositions import REDUCTION
from scratchgen.catalog.row import apart, away, case, fixed, of, positive, real, row, simplex, unit, whole
from scratchgen.tensors import Tensor

_WEIGHT = np.array([0.5, 2.0, 1.25])
_CLASSES = fixed([0, 1, 2, 1])
_BENT = away(5, kinks=(-0.52, 0.52))  # draws that keep away from ±0.52, where Huber's two pieces meet

ACTIVATIONS = [
    row("nn.CELU", of()(away(2, 3)), of(0.6)(away(3))),
    row("nn.ELU", of()(away(2, 3)), of(1.7)(away(3))),
    row("nn.GELU", of()(real(2, 3)), of("tanh")(real(3))),
    row("nn.GLU", of()(real(2, 4)), of(0)(real(2, 3)), analytic=True),
    row("nn.Hardtanh", of()(away(2, 3, kinks=(-1.0, 1.0))), of(-0.3, 0.5)(away(4, kinks=(-0.3, 0.5)))),
    row("nn.LeakyReLU", of()(away(2, 3)), of(0.3)(away(3))),
    row("nn.LogSigmoid", of()(real(2, 3))),
    row("nn.LogSoftmax", of(0)(real(2, 3)), of(-1)(real(2, 3)), analytic=True),
    row("nn.Mish", of()(real(2, 3))),
    row("nn.PReLU", of()(away(2, 3)), of(3, 0.1)(away(2, 3))),
    row("nn.ReLU", of()(away(2, 3)), of(inplace=True)(away(3))),
    row("nn.SELU", of()(away(2, 3))),
    row("nn.SiLU", of()(real(2, 3)), analytic=True),
    row("nn.Sigmoid", of()(real(2, 3)), analytic=True),
    row("nn.Softmax", of(0)(real(2, 3)), of(-1)(real(2, 3)), analytic=True),
    row("nn.Softplus", of()(real(2, 3)), of(2.5, 1.5)(away(6, kinks=(0.6,)))),
    row("nn.Softsign", of()(away(2, 3))),
    row("nn.Tanh", of()(real(2, 3)), analytic=True),
]

LOSSES = [
    row(
        "nn.BCEWithLogitsLoss",
        *(of(_WEIGHT, reduction=r, pos_weight=_WEIGHT)(real(2, 3), unit(2, 3)) for r in REDUCTION),
        of()(real(3), unit(3)),
    ),
    row(
        "nn.CrossEntropyLoss",
        *(of(_WEIGHT, ignore_index=1, reduction=r, label_smoothing=0.2)(real(4, 3), _CLASSES) for r in REDUCTION),
        of()(real(2, 3), whole(3, 2)),
        of()(real(2, 3), simplex(2, 3)),
    ),
    row(
        "nn.GaussianNLLLoss",
        *(of(full=True, eps=0.1, reduction=r)(real(2, 3), real(2, 3), positive(2, 1)) for r in REDUCTION),
    ),
    row("nn.HuberLoss", *(of(r, 0.52)(_BENT, fixed([0.0] * 5)) for r in REDUCTION)),
    row(
        "nn.KLDivLoss",
        *(of(reduction=r)(real(2, 3), unit(2, 3)) for r in (*REDUCTION, "batchmean")),
        of(log_target=True)(real(3), real(3)),
    ),
    row("nn.L1Loss", *(of(reduction=r)(apart(2, 2), apart(2, 2, phase=1)) for r in REDUCTION)),
    row("nn.MSELoss", *(of(reduction=r)(real(2, 3), real(2, 3)) for r in REDUCTION), analytic=True),
    row(
        "nn.NLLLoss",
        *(of(_WEIGHT, ignore_index=1, reduction=r)(real(4, 3), _CLASSES) for r in REDUCTION),
        of()(real(2, 3), whole(3, 2)),
    ),
    row("nn.SmoothL1Loss", *(of(reduction=r, beta=0.52)(_BENT, fixed([0.0] * 5)) for r in REDUCTION)),
]


def _computed(normalise: Any) -> Any:
    """A layer whose weight `normalise` computes, as a class that is called with the layer and options."""

    class Computed(nn.Module):
        def __init__(self, layer: nn.Module, options: dict[str, Any]):
            super().__init__()
            self.layer, self.options = normalise(layer, **options), options

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    return Computed


MAPS = [
    row("nn.Identity", of(3, any=True)(real(2, 3)), analytic=True),
    row("nn.Linear", of(3, 2)(real(2, 3)), of(3, 2, bias=False)(real(3)), of(2, 1)(real(0, 2)), analytic=True),
    row("nn.Embedding", of(3, 2)(whole(3, 2, 2)), of(3, 2, padding_idx=-1)(fixed([1, 0, 0])), analytic=True),
    row(
        "nn.Conv1d",
        of(2, 2, 3, 2, 1)(real(1, 2, 4)),
        of(2, 4, 2, padding="same", groups=2, bias=False)(real(2, 3)),
        of(1, 1, 3, padding=1, padding_mode="circular")(real(1, 1, 3)),
        analytic=True,
    ),
    row(
        "nn.Conv2d",
        of(2, 1, (2, 1), 2, 1)(real(1, 2, 3, 2)),
        of(1, 2, 2, padding="same", dilation=2, padding_mode="replicate", bias=False)(real(1, 3, 3)),
        of(2, 2, 1, groups=2)(real(1, 2, 2, 1)),
        of(1, 1, 3, padding=(1, 2), padding_mode="reflect")(real(1, 1, 3, 3)),
        analytic=True,
    ),
    row(
        "nn.ConvTranspose1d",
        of(2, 1, 3, 2, 1, 1)(real(1, 2, 2)),
        of(2, 2, 2, groups=2, bias=False, dilation=2)(real(2, 3)),
        of(1, 1, 2, 3)(real(1, 1, 2), output_size=[6]),
        analytic=True,
    ),
    row(
        "nn.ConvTranspose2d",
        of(2, 1, (2, 3), 2, 1, (0, 1))(real(1, 2, 2, 2)),
        of(2, 2, 1, groups=2, bias=False)(real(2, 1, 2)),
        of(1, 1, 2, 2)(real(1, 1, 2, 1), output_size=(5, 2)),
        analytic=True,
    ),
    row("nn.Dropout", of(0.4)(real(2, 3)), of(0.4, training=False)(real(3)), analytic=True, seeded=True),
    *(
        row(f"nn.Dropout{n}d", of(0.4)(real(2, 3, *[2] * n)), of(0.4)(real(3, *[2] * n)), analytic=True, seeded=True)
        for n in (1, 2, 3)
    ),
    *(
        row(
            f"nn.{kind}Pad{n}d",
            of(1, *value)(real(1, 2, *[3] * n)),
            of(tuple(range(2, 2 + 2 * n))[:2] * n, *value)(real(1, *[4] * n)),
            analytic=True,
        )
        for kind, value in [("Circular", ()), ("Constant", (0.5,)), ("Reflection", ()), ("Replication", ()), ("Zero", ())]
        for n in (1, 2)
    ),
    row(
        "nn.utils.spectral_norm",
        *(
            of(layer, options, training=False)(xs)  # in training u and v follow the weight, which differences would move
            for layer, options, xs in [
                (nn.Linear(3, 2), {}, real(2, 3)),
                (nn.Conv2d(1, 2, 2), {"dim": 1}, real(1, 1, 2, 3)),
                (nn.ConvTranspose1d(2, 1, 2), {}, real(1, 2, 2)),
                (nn.Embedding(3, 2), {}, fixed([2, 0, 2])),
                (nn.Linear(3, 2), {"name": "bias"}, real(1, 3)),
            ]
        ),
        target=_computed(nn.utils.spectral_norm),
        analytic=True,
    ),
    row(
        "nn.utils.weight_norm",
        of(nn.Linear(3, 2), {})(real(2, 3)),
        of(nn.Conv2d(1, 2, 2), {"dim": 1})(real(1, 1, 2, 3)),
        of(nn.ConvTranspose1d(2, 1, 2), {"dim": None})(real(1, 2, 2)),
        of(nn.Embedding(3, 2), {})(fixed([2, 0, 2])),
        target=_computed(nn.utils.weight_norm),
    ),
    row("nn.utils.parameters_to_vector", case([real(2, 3), real(), real(0), real(2)]), analytic=True),
    row("nn.Flatten", of()(real(2, 2, 2)), of(0, 1)(real(2, 2, 2)), analytic=True),
    row("nn.Unflatten", of(1, (2, 2))(real(2, 4)), of(-2, (-1, 3))(real(3, 2)), analytic=True),
    row(
        "nn.Upsample",
        of(scale_factor=2)(real(1, 1, 2, 2)),
        of((3, 4), mode="bilinear")(real(1, 1, 2, 3)),
        of(scale_factor=1.7, mode="linear", recompute_scale_factor=True)(real(1, 1, 3)),
        of(5, mode="linear", align_corners=True)(real(1, 2, 3)),
        analytic=True,
    ),
    row("nn.PixelShuffle", of(2)(real(1, 4, 1, 2)), analytic=True),
    row("nn.PixelUnshuffle", of(2)(real(1, 1, 2, 4)), analytic=True),
    row(
        "nn.MaxPool1d",
        of(2)(apart(1, 2, 4)),
        of(3, 2, 1, ceil_mode=True)(apart(2, 5)),
        of(2, 1, dilation=2, return_indices=True)(apart(1, 1, 4)),
    ),
    row("nn.MaxPool2d", of(2)(apart(1, 1, 4, 4)), of((3, 2), (2, 1), (1, 0), ceil_mode=True)(apart(1, 4, 3))),
    row("nn.AvgPool1d", of(2)(real(1, 2, 4)), of(3, 2, 1, True, False)(real(1, 5)), analytic=True),
    row(
        "nn.AvgPool2d",
        of(2)(real(1, 1, 4, 4)),
        of((3, 2), (2, 1), (1, 0), True, False)(real(1, 4, 3)),
        of(2, divisor_override=3)(real(1, 1, 2, 2)),
        analytic=True,
    ),
    row("nn.AdaptiveAvgPool2d", of((None, 2))(real(1, 2, 4, 3)), of((1, 2))(real(1, 3, 3)), analytic=True),
    row("nn.Sequential", of(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))(real(2, 2)), analytic=True),
]

NORMS = [
    row(
        "nn.BatchNorm1d",
        of(2)(real(3, 2)),
        of(2, 0.1, None, False)(real(2, 2, 3)),
        of(2, training=False)(real(2, 2)),
        of(2, track_running_stats=False, training=False)(real(3, 2)),
        analytic=True,
    ),
    row("nn.BatchNorm2d", of(2)(real(2, 2, 2, 1)), of(1, training=False)(real(1, 1, 2, 2)), analytic=True),
    row(
        "nn.InstanceNorm2d",
        of(2)(real(1, 2, 2, 2)),
        of(2, affine=True)(real(2, 2, 3)),
        of(2, affine=True, track_running_stats=True, training=False)(real(1, 2, 2, 1)),
        analytic=True,
    ),
    row(
        "nn.LayerNorm",
        of(4)(real(2, 4)),
        of((2, 3), 0.1, bias=False)(real(1, 2, 3)),
        of(3, elementwise_affine=False)(real(3)),
        analytic=True,
    ),
    row(
        "nn.RMSNorm", of(4)(real(2, 4)), of((2, 3), 0.1)(real(2, 2, 3)), of(3, elementwise_affine=False)(real(3)), analytic=True
    ),
    row("nn.GroupNorm", of(2, 4)(real(1, 4, 2)), of(1, 2, 0.1, affine=False)(real(2, 2)), analytic=True),
]

_FUTURE = np.triu(np.ones((3, 3), bool), 1)

SEQUENCES = [
    row(
        "nn.GRU",
        of(2, 2)(real(2, 1, 2)),
        of(1, 1, 2, False, True, 0.5, True)(real(1, 2, 1), real(4, 1, 1)),
        of(2, 1)(real(2, 2), real(1, 1)),
        analytic=True,
        seeded=True,
        elements=4,
    ),
    row(
        "nn.LSTM",
        of(2, 2)(real(2, 1, 2)),
        of(1, 1, 2, False, True, 0.5, True)(real(1, 2, 1), (real(4, 1, 1), real(4, 1, 1))),
        of(2, 1)(real(2, 2), (real(1, 1), real(1, 1))),
        of(1, 3, 2, bidirectional=True, proj_size=2)(real(2, 1, 1), (real(4, 1, 2), real(4, 1, 3))),
        of(2, 2, bias=False, proj_size=1)(real(2, 2)),
        analytic=True,
        seeded=True,
        elements=3,
    ),
    row(
        "nn.MultiheadAttention",
        of(2, 2)(real(3, 1, 2), real(2, 1, 2), real(2, 1, 2)),
        of(2, 1, batch_first=True)(
            real(1, 3, 2), real(1, 3, 2), real(1, 3, 2), need_weights=False, is_causal=True, attn_mask=fixed(_FUTURE)
        ),
        of(4, 2, bias=False, kdim=1, vdim=3)(real(2, 4), real(3, 1), real(3, 3), average_attn_weights=False),
        of(2, 2, 0.4, batch_first=True)(
            real(1, 2, 2), real(1, 2, 2), real(1, 2, 2), fixed([[False, True]]), need_weights=False
        ),
        of(2, 1)(real(2, 1, 2), real(3, 1, 2), real(3, 1, 2), attn_mask=real(2, 3)),
        of(4, 2, add_bias_kv=True, add_zero_attn=True)(
            real(2, 2, 4), real(3, 2, 4), real(3, 2, 4), fixed([[False, True, False]] * 2), attn_mask=real(2, 3)
        ),
        of(2, 2, add_bias_kv=True, batch_first=True)(
            real(2, 3, 2), real(2, 3, 2), real(2, 3, 2), need_weights=False, is_causal=True, attn_mask=fixed(_FUTURE)
        ),
        of(2, 1, add_zero_attn=True)(real(2, 2), real(2, 2), real(2, 2), need_weights=False),
        seeded=True,
        elements=8,
    ),
]


class Game(nn.Module):
    """Both losses of a GAN as functions of pictures, noise and all parameters; with classes, picture i is of class i."""

    def __init__(self, config: models.GANConfig):
        super().__init__()
        self.model = models.GAN(config)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        c = self.model.condition(np.arange(len(x)))
        real, fake = self.model.discriminator(x, c), self.model.discriminator(self.model.generator(z, c), c)
        return self.model.objective.discriminator(real, fake), self.model.objective.generator(real, fake)


class Translation(nn.Module):
    """Both losses of pix2pix as functions of pictures a, b and all parameters."""

    def __init__(self, config: models.Pix2PixConfig):
        super().__init__()
        self.model = models.Pix2Pix(config)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        made, d, game = self.model.generator(a), self.model.discriminator, self.model.objective
        real, fake = d(a, b), d(a, made)
        return game.discriminator(real, fake), game.generator(real, fake) + (made - b).abs().mean()


class Telling(nn.Module):
    """Both losses of a text-to-image GAN as functions of pictures, noise and all parameters; ids: captions, then false ones."""

    def __init__(self, config: models.TextGANConfig):
        super().__init__()
        self.model = models.TextGAN(config)

    def forward(self, x: Tensor, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        true, false = ids.chunk(2)
        logits = self.model.discriminator.pairs(x, self.model.generator(z, true), true, false)
        return self.model.loss_d(*logits), self.model.objective.generator(*logits[:2])


class Smooth(nn.Module):
    """What has slopes of a VQ-VAE: its encoder, and its decoder of codes that are given."""

    def __init__(self, config: models.VQVAEConfig):
        super().__init__()
        self.model = models.VQVAE(config)

    def forward(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encoder(x), self.model.decoder(q)


_PICTURE = (1, 4, 4)
_GPT = models.GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=4, dropout=0.2, bias=True)

MODELS = [
    row(
        "models.Flow",
        of(models.FlowConfig(shape=(3,), hidden=4, classes=2), via="loss")(
            real(2, 3), whole(3, 2), fixed([0.3, 0.8]), real(2, 3)
        ),
        of(models.FlowConfig(shape=(2,), hidden=3, path="cosine", predicts="noise"), via="loss")(
            real(2, 2), None, fixed([0.2, 0.9]), real(2, 2)
        ),
        elements=4,
    ),
    row(
        "models.GAN",
        of(models.GANConfig(shape=_PICTURE, hidden=3, latent=2))(unit(3, *_PICTURE), real(3, 2)),
        of(models.GANConfig(shape=_PICTURE, network="dcgan", hidden=4, latent=1, loss="minimax"))(
            unit(3, *_PICTURE), real(3, 1)
        ),
        of(models.GANConfig(_PICTURE, "dcgan", 4, 1, upsample="transposed", loss="wasserstein", classes=3))(
            unit(3, *_PICTURE), real(3, 1)
        ),
        of(models.GANConfig(_PICTURE, "residual", 24, 1, loss="relativistic", r1=1.0, dropout=0.0))(
            unit(2, *_PICTURE), real(2, 1)
        ),
        of(models.GANConfig(shape=(2,), hidden=3, latent=2, loss="least-squares"))(unit(3, 2), real(3, 2)),
        target=Game,
        seeded=True,
        elements=2,
    ),
    row(
        "models.GPT",
        of(_GPT, via="loss")(whole(5, 2, 4), whole(5, 2, 4)),
        seeded=True,
        elements=6,
    ),
    row(
        "models.Pix2Pix",
        of(models.Pix2PixConfig(hidden=8))(unit(1, 1, 9, 9), unit(1, 1, 9, 9)),
        of(models.Pix2PixConfig(2, 3, hidden=8, loss="hinge"))(unit(1, 2, 10, 9), unit(1, 3, 10, 9)),
        target=Translation,
        seeded=True,
        elements=2,
    ),
    row(
        "models.TextGAN",
        of(models.TextGANConfig(_PICTURE, 4, 3, 2, hidden=4, latent=1, loss="non-saturating", spectral_norm=False))(
            unit(2, *_PICTURE), real(2, 1), whole(4, 4, 3)
        ),
        target=Telling,
        seeded=True,
        elements=2,
    ),
    row(
        "models.VAE",
        of(models.VAEConfig(shape=_PICTURE, hidden=3, latent=2), via="elbo")(unit(2, *_PICTURE)),
        of(models.VAEConfig(shape=_PICTURE, network="conv", hidden=1, latent=1), via="elbo")(unit(1, *_PICTURE)),
        *(
            of(
                models.VAEConfig(shape=_PICTURE, hidden=2, latent=2, layers=2, activation="tanh", kl="sampled", **how),
                via="elbo",
            )(unit(2, *_PICTURE))
            for how in (
                {"likelihood": "continuous-bernoulli"},
                {"likelihood": "gaussian", "sigma": 0.5},
                {"likelihood": "learned-gaussian", "sigma_min": 0.3},
                {"likelihood": "discretized-logistic", "sigma_min": 0.1, "levels": 9},
            )
        ),
        seeded=True,
        elements=4,
    ),
    row(
        "models.VQVAE",
        of(models.VQVAEConfig((1, 4, 8), hidden=4, dim=2, codes=3))(unit(2, 1, 4, 8), real(2, 2, 1, 2)),
        of(models.VQVAEConfig(_PICTURE, hidden=2, quantizer="fsq", levels="3,2,2"))(unit(1, *_PICTURE), real(1, 3, 1, 1)),
        target=Smooth,
        elements=3,
    ),
]

ROWS = ACTIVATIONS + LOSSES + MAPS + NORMS + SEQUENCES + MODELS
