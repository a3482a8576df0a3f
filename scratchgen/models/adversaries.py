r"""The players of the adversarial games: pairs of a generator and a discriminator, for points, 8 × 8, 28 × 28 and 32 × 32.

    pair       generator                                    discriminator                          source
    mlp        two hidden layers, batch norm                two hidden layers, dropout             Goodfellow et al. 2014
    dcgan      linear, then twice: upsample, convolve       two convolutions of stride 2, one of   Radford et al. 2015, with
                                                            stride 1, linear                       (Odena et al. 2016)
    residual   linear, residual blocks at three sizes       its mirror                             Huang et al. 2024 (R3GAN)

A generator maps (z, c) to pictures in [−1, 1], a discriminator (x, c) to logits; c, the vector of a condition, (B, features),
is None where there is none. How a condition enters stands in `ConditionalBatchNorm2d` and `Projection`.

"dcgan" doubles the sides by nearest neighbours followed by a convolution, which leaves no checkerboard, or, with
`upsample="transposed"`, by the paper's transposed convolutions of 4 × 4, whose stride 2 divides the kernel.
"""

from __future__ import annotations

import math

from scratchgen import functional as F
from scratchgen import nn
from scratchgen.grad_mode import no_grad
from scratchgen.ops import cat, tanh
from scratchgen.tensors import Tensor

LEAK = 0.2


# ---------------------------------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------------------------------


class ConditionalBatchNorm2d(nn.Module):
    r"""y = (1 + γ(c)) · (x − μ) / √(σ² + ε) + β(c)     γ, β: linear in the condition; both 0 at first

    x: (B, C, H, W), c: (B, features) → (B, C, H, W).   Without features, `nn.BatchNorm2d`.
    Source: Dumoulin et al. 2017, arXiv:1610.07629; Miyato & Koyama 2018, arXiv:1802.05637, §4.
    """

    def __init__(self, channels: int, features: int = 0):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not features)
        self.affine = nn.Linear(features, 2 * channels, bias=False) if features else None
        if self.affine is not None:
            nn.init.zeros_(self.affine.weight)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        y = self.norm(x)
        if self.affine is None:
            return y
        gamma, beta = self.affine(c)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        return y * (1 + gamma) + beta


class Projection(nn.Module):
    r"""d = ψ(h) + ⟨V c, Σ h⟩     h: (B, C, H, W), the last features, Σ over H and W; c: (B, features), or None → (B)

    If log p(y|x) and log q(y|x) are both linear in Σ h up to their normalisers, then log p(x, y)/q(x, y) has this form.
    Divided by √C the second term is too weak: samples of `cgan` then obey their class less often (89 %, instead of 90).
    Source: Miyato & Koyama 2018, arXiv:1802.05637, eq. 5.
    """

    def __init__(self, channels: int, sides: tuple[int, int], features: int = 0):
        super().__init__()
        self.fc = nn.Linear(channels * math.prod(sides), 1)
        self.project = nn.Linear(features, channels, bias=False) if features else None

    def forward(self, h: Tensor, c: Tensor | None) -> Tensor:
        d = self.fc(h.flatten(1)).squeeze(1)  # (B)
        if self.project is not None:
            d = d + (self.project(c) * h.sum((2, 3))).sum(1)
        return d


# ---------------------------------------------------------------------------------------------------------------------
# Perceptrons
# ---------------------------------------------------------------------------------------------------------------------


class MLPGenerator(nn.Module):
    """z → a picture, or a point of the plane, through two hidden layers.

    Points are made without batch norm, whose noise blurs modes narrower than a hundredth of the plane, and without tanh.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int, latent: int):
        super().__init__()
        self.shape = shape
        norm = nn.BatchNorm1d if len(shape) == 3 else nn.Identity
        self.net = nn.Sequential(
            nn.Linear(latent, hidden),
            norm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            norm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, math.prod(shape)),
        )

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.net(z).reshape(-1, *self.shape)  # (B, C, H, W), or (B, 2)
        return tanh(x) if len(self.shape) == 3 else x


class MLPDiscriminator(nn.Module):
    """A picture, or a point → a logit, through two hidden layers."""

    def __init__(self, shape: tuple[int, ...], hidden: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(math.prod(shape), hidden),
            nn.LeakyReLU(LEAK),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(LEAK),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.net(x.flatten(1)).squeeze(1)  # (B)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions
# ---------------------------------------------------------------------------------------------------------------------


class DCGenerator(nn.Module):
    """z → a quarter of the sides with `width` channels, then twice: double the sides, convolve, normalise."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent: int, *, upsample: str = "nearest", features: int = 0):
        super().__init__()
        c, h, w = shape
        self.start = (width, h // 4, w // 4)
        self.nearest = upsample == "nearest"
        self.fc = nn.Linear(latent + features, math.prod(self.start), bias=False)
        self.norm0 = ConditionalBatchNorm2d(width, features)
        self.conv1 = self._doubling(width, width // 2)
        self.norm1 = ConditionalBatchNorm2d(width // 2, features)
        self.conv2 = self._doubling(width // 2, width // 4)
        self.norm2 = ConditionalBatchNorm2d(width // 4, features)
        self.out = nn.Conv2d(width // 4, c, 3, padding=1)

    def _doubling(self, n: int, m: int) -> nn.Module:
        if self.nearest:
            return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(n, m, 3, padding=1, bias=False))
        return nn.ConvTranspose2d(n, m, 4, stride=2, padding=1, bias=False)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.fc(z if c is None else cat([z, c], 1)).reshape(-1, *self.start)  # (B, width, H/4, W/4)
        h = F.relu(self.norm0(h, c))
        h = F.relu(self.norm1(self.conv1(h), c))  # (B, width/2, H/2, W/2)
        h = F.relu(self.norm2(self.conv2(h), c))  # (B, width/4, H, W)
        return tanh(self.out(h))  # (B, C, H, W)


class DCDiscriminator(nn.Module):
    """A picture → a logit: two convolutions that halve the sides, one that does not, then one number."""

    def __init__(self, shape: tuple[int, int, int], width: int, *, norm: bool = True, features: int = 0):
        super().__init__()
        c, h, w = shape
        self.conv1 = nn.Conv2d(c, width // 2, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width, 4, stride=2, padding=1, bias=not norm)
        self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.norm3 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.judge = Projection(width, (h // 4, w // 4), features)

    def features(self, x: Tensor) -> Tensor:
        """What is judged: h of `Projection`, which no condition enters."""
        h = F.leaky_relu(self.conv1(x), LEAK)  # (B, width/2, H/2, W/2)
        h = F.leaky_relu(self.norm2(self.conv2(h)), LEAK)  # (B, width, H/4, W/4)
        return F.leaky_relu(self.norm3(self.conv3(h)), LEAK)  # (B, width, H/4, W/4)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.judge(self.features(x), c)  # (B)


def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02²), scales of norms from N(1, 0.02²): §3 of the DCGAN paper."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)


def init_he(module: nn.Module) -> None:
    """Weights that keep the size of what passes through leaky ReLUs, biases 0: for a D without norms, which would make up for
    small weights. On Fashion-MNIST its slope ‖∇D(x)‖ begins at 1.2, where WGAN-GP wants it; drawn by `init_dcgan`, at 0.006.

    Source: He et al. 2015, arXiv:1502.01852.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=LEAK)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Projection) and module.project is not None:  # which reads as many features as the layer beside it
        nn.init.normal_(module.project.weight, 0.0, math.sqrt(2 / ((1 + LEAK**2) * module.fc.in_features)))


# ---------------------------------------------------------------------------------------------------------------------
# Residual networks without normalisation
# ---------------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    r"""x + W₃ a(W₂ ∗ a(W₁ x + b₁) + b₂)     W₁, W₃: 1 × 1; W₂: 3 × 3 in groups of 16 channels; a: leaky ReLU

    No normalisation: at the start W₃ = 0, so the block is the identity, and W₁, W₂ are drawn L^(−1/4) times smaller than He's
    variance asks, for L blocks of 3 convolutions, so that L first steps together move the output as one would.
    x: (B, C, H, W) → the same.   Source: Huang et al. 2024, arXiv:2501.05441, §4; Zhang et al. 2019 (Fixup), arXiv:1901.09321.
    """

    def __init__(self, channels: int, blocks: int):
        super().__init__()
        inner = 2 * channels
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=max(1, inner // 16))
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, a=LEAK)
            with no_grad():
                conv.weight.mul_(blocks**-0.25)
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), LEAK)  # (B, 2C, H, W)
        return x + self.conv3(F.leaky_relu(self.conv2(h), LEAK))  # (B, C, H, W)


class ResidualGenerator(nn.Module):
    """z → features at a quarter of the sides, then residual blocks at a quarter, a half, and all of the sides."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent: int, *, blocks: int = 1):
        super().__init__()
        c, h, w = shape
        self.start = (width, h // 4, w // 4)
        widths = (width, width * 2 // 3, width // 3)
        self.fc = nn.Linear(latent, math.prod(self.start))
        self.stages = nn.ModuleList(nn.ModuleList(Residual(n, 3 * blocks) for _ in range(blocks)) for n in widths)
        self.change = nn.ModuleList(nn.Conv2d(n, m, 1, bias=False) for n, m in zip(widths, widths[1:], strict=False))
        self.out = nn.Conv2d(widths[-1], c, 1)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.fc(z).reshape(-1, *self.start)  # (B, width, H/4, W/4)
        for i, stage in enumerate(self.stages):
            if i:  # narrow, then double the sides: the two commute, and this order costs a quarter
                h = F.interpolate(self.change[i - 1](h), scale_factor=2, mode="bilinear")
            for block in stage:
                h = block(h)
        return tanh(self.out(h))  # (B, C, H, W)


class ResidualDiscriminator(nn.Module):
    """A picture → residual blocks at all of the sides, a half and a quarter → a logit: the generator's mirror."""

    def __init__(self, shape: tuple[int, int, int], width: int, *, blocks: int = 1):
        super().__init__()
        c, h, w = shape
        widths = (width // 3, width * 2 // 3, width)
        self.first = nn.Conv2d(c, widths[0], 1)
        self.stages = nn.ModuleList(nn.ModuleList(Residual(n, 3 * blocks) for _ in range(blocks)) for n in widths)
        self.change = nn.ModuleList(nn.Conv2d(n, m, 1, bias=False) for n, m in zip(widths, widths[1:], strict=False))
        self.fc = nn.Linear(width * (h // 4) * (w // 4), 1)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.first(x)  # (B, width/3, H, W)
        for i, stage in enumerate(self.stages):
            if i:  # the mean over 2 × 2 is bilinear interpolation at half the sides
                h = self.change[i - 1](F.avg_pool2d(h, 2))
            for block in stage:
                h = block(h)
        return self.fc(h.flatten(1)).squeeze(1)  # (B)
