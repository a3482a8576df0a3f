"""Encoders and decoders of pictures, which the autoencoders share: one hidden layer or more, or convolutions.

An encoder turns a picture x (B, C, H, W) into the mean and the logarithm of the variance of its code, (B, Z) each; a decoder
turns a code into `outputs` numbers for each pixel, (B, outputs · C, H, W), from which a likelihood of `likelihoods.py` makes a
distribution. Both may be told a condition of so many `features`, as c (B, features).
"""

from __future__ import annotations

import math

import numpy as np

from scratchgen import functional as F
from scratchgen import nn
from scratchgen.ops import cat
from scratchgen.tensors import Tensor

Shape = tuple[int, int, int]  # channels, height, width


class MLP(nn.Module):
    """Hidden layers of one width, each followed by max(x, 0) or tanh(x).     (B, n) → (B, width)"""

    def __init__(self, n: int, width: int, layers: int, activation: str):
        super().__init__()
        self.activation = activation
        self.fc = nn.Linear(n, width)
        self.further = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))

    def hidden(self, x: Tensor) -> Tensor:
        for layer in (self.fc, *self.further):
            x = layer(x, activation="relu") if self.activation == "relu" else F.tanh(layer(x))
        return x


class MLPEncoder(MLP):
    """x → (μ, log σ²)"""

    def __init__(self, shape: Shape, width: int, latent: int, *, layers: int = 1, activation: str = "relu", features: int = 0):
        super().__init__(math.prod(shape) + features, width, layers, activation)
        self.mean = nn.Linear(width, latent)
        self.log_var = nn.Linear(width, latent)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.hidden(beside(x.flatten(1), c))  # (B, width)
        return self.mean(h), self.log_var(h)


class MLPDecoder(MLP):
    """z → numbers for each pixel"""

    def __init__(
        self,
        shape: Shape,
        width: int,
        latent: int,
        *,
        layers: int = 1,
        activation: str = "relu",
        features: int = 0,
        outputs: int = 1,
    ):
        super().__init__(latent + features, width, layers, activation)
        self.shape = (outputs * shape[0], *shape[1:])
        self.out = nn.Linear(width, math.prod(self.shape))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.out(self.hidden(beside(z, c))).reshape(-1, *self.shape)  # (B, outputs · C, H, W)


class ConvEncoder(nn.Module):
    """x → (μ, log σ²): two convolutions that halve the picture each."""

    def __init__(self, shape: Shape, width: int, latent: int, *, features: int = 0):
        super().__init__()
        c, h, w = shape
        self.conv1 = nn.Conv2d(c, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.mean = nn.Linear(2 * width * (h // 4) * (w // 4), latent)
        self.log_var = nn.Linear(2 * width * (h // 4) * (w // 4), latent)
        # a plane for each feature beside the picture's, but for its border the same: what c adds to every position
        self.told = nn.Linear(features, width, bias=False) if features else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.conv1(x)  # (B, width, H/2, W/2)
        if c is not None:
            h = h + self.told(c)[:, :, None, None]
        h = F.relu(self.conv2(F.relu(h))).flatten(1)  # (B, 2 width · H/4 · W/4)
        return self.mean(h), self.log_var(h)


class ConvDecoder(nn.Module):
    """z → numbers for each pixel: two transposed convolutions that double the picture each."""

    def __init__(self, shape: Shape, width: int, latent: int, *, features: int = 0, outputs: int = 1):
        super().__init__()
        c, h, w = shape
        self.start = (2 * width, h // 4, w // 4)
        self.fc = nn.Linear(latent + features, math.prod(self.start))
        self.conv1 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(width, outputs * c, 4, stride=2, padding=1)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        h = F.relu(self.fc(beside(z, c))).reshape(-1, *self.start)  # (B, 2 width, H/4, W/4)
        return self.conv2(F.relu(self.conv1(h)))  # (B, outputs · C, H, W)


class ClassCentre(nn.Module):
    """h less the running mean of h over its class, a constant to gradients.     h: (B, n), c: (B, classes), one-hot → (B, n)

    The codes of each class are to be distributed as the prior, so their mean is to be 0, and what a code says of the class is
    wasted where the decoder is told it. Descent finds that too, but slowly, since encoder and decoder have to move together.
    """

    def __init__(self, classes: int, n: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", Tensor(np.zeros((classes, n), np.float32)))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        mean = self.running_mean.data  # (classes, n)
        if self.training:
            count = c.data.sum(0)[:, None]  # (classes, 1)
            here = np.where(count > 0, c.data.T @ h.data / count.clip(1), mean)
            mean = mean + self.momentum * (here - mean)
            self.running_mean.copy_(mean)
        return h - Tensor(c.data @ mean)


def beside(x: Tensor, c: Tensor | None) -> Tensor:
    """x with the condition beside it, where there is one.     (B, n), (B, features) → (B, n + features)"""
    return x if c is None else cat([x, c], 1)


# ---------------------------------------------------------------------------------------------------------------------
# Codes that are grids of vectors, as a quantiser wants them
# ---------------------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """x + W₂ max(W₁ max(x, 0), 0), W₁ a 3 × 3 and W₂ a 1 × 1 convolution.     (B, n, h, w) → same"""

    def __init__(self, n: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n, n // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(n // 2, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class GridEncoder(nn.Module):
    """x → a vector for each 4 × 4 patch, which sees its surroundings.     (B, C, H, W) → (B, dim, H/4, W/4)"""

    def __init__(self, shape: Shape, width: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], width // 2, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width, 4, stride=2, padding=1)
        self.block1, self.block2 = ResidualBlock(width), ResidualBlock(width)
        self.out = nn.Conv2d(width, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x)))  # (B, width, H/4, W/4)
        return self.out(F.relu(self.block2(self.block1(h))))


class GridDecoder(nn.Module):
    """The same turned round.     (B, dim, H/4, W/4) → (B, C, H, W)"""

    def __init__(self, shape: Shape, width: int, dim: int):
        super().__init__()
        self.start = nn.Conv2d(dim, width, 3, padding=1)
        self.block1, self.block2 = ResidualBlock(width), ResidualBlock(width)
        self.conv1 = nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(width // 2, shape[0], 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.block2(self.block1(self.start(z))))  # (B, width, H/4, W/4)
        return self.conv2(F.relu(self.conv1(h)))  # (B, C, H, W)
