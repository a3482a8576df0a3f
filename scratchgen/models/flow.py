r"""Flow matching, with diffusion as a chapter.  Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.

A path leads from noise ε ~ N(0, I) at t = 0 to a picture x at t = 1:

    x_t = α(t) x + σ(t) ε          linear: α = t, σ = 1 − t;   cosine: α = sin πt/2, σ = cos πt/2                  (1)

Along the path of one pair (x, ε) the velocity is u = α' x + σ' ε; linear: x − ε. Over all pairs that pass through the same x_t,

    v(x_t, t) = E[α' x + σ' ε | x_t]                                                                              (2)

moves the points of N(0, I) so that at each t they have the distribution of x_t, and so at t = 1 that of the pictures:

    dx/dt = v(x, t),   x(0) ~ N(0, I)                                                                             (3)

The expectation (2) is a regression: the network v̂ that lowers

    E ‖v̂(x_t, t) − u‖²          t ~ p(t), pairs (x, ε) drawn anew for each step                                   (4)

has the same gradients as one that lowers the distance to v itself, which nobody can compute: the two differ by the variance of
u given x_t, a constant. This constant is most of the loss, which therefore says little; the loss at each t says more.

Diffusion (Ho et al. 2020, arXiv:2006.11239) is the same regression in other words. With x_t and any one of x, ε, v known, the
other two follow (`Path`), so to foretell ε is to foretell v with another weight at each t; linear: ‖v̂ − u‖² = ‖ε̂ − ε‖² / t².
Its deterministic sampler DDIM (Song et al. 2021, arXiv:2010.02502) is Euler's method with σ/α for a clock: (3) reads

    d(x/α) / d(σ/α) = ε̂(x, t)                                                                                     (5)

Told a class y, the network learns v(x, t | y), and, where y is now and then withheld, v(x, t) too. Samples follow

    v(x, t) + w (v(x, t | y) − v(x, t))          w = 1: the class's own; w > 1: guided away from what is common   (6)

(Ho & Salimans 2022, arXiv:2207.12598). Data are centred and scaled inside: pictures are in [−1, 1] there, in [0, 1] outside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scratchgen import data, nn, optim, random
from scratchgen import functional as F
from scratchgen.autograd import grad
from scratchgen.grad_mode import no_grad
from scratchgen.models import pictures, points
from scratchgen.models.family import (
    Draw,
    Family,
    Line,
    Option,
    OptionError,
    Page,
    Panel,
    Pictures,
    Plane,
    Planes,
    Score,
    lattice,
)
from scratchgen.ops import cat, rand, randn, where
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class FlowConfig:
    shape: tuple[int, ...] = (1, 28, 28)  # of a picture: channels, height, width; of a point or a code: (d,)
    hidden: int = 32  # channels of the U-Net at half the sides; width of the perceptron that moves points
    classes: int = 0  # of the data, which the network is told; 0: none
    withheld: float = 0.1  # share of the examples of a batch whose class is withheld
    path: str = "linear"  # or "cosine": (1)
    predicts: str = "velocity"  # or "noise": what the network foretells
    times: str = "logit-normal"  # or "uniform": p(t) of (4); the first is σ(n), n ~ N(0, 1), and dwells in the middle
    guidance: float = 1.0  # w of (6), where nobody says; fixed before any sample is scored
    lr: float = 2e-3
    clip: float = 1.0  # largest length of the gradient
    centre: tuple[float, ...] = (0.0,)  # of the data, 0 inside
    scale: float = 1.0  # of the data, 1 inside


# ---------------------------------------------------------------------------------------------------------------------
# The path
# ---------------------------------------------------------------------------------------------------------------------


class Path(NamedTuple):
    """(1) at times t: α and σ, and their slopes α' and σ'. Each may be a number or an array."""

    alpha: Any
    sigma: Any
    alpha_slope: Any
    sigma_slope: Any

    def point(self, x: Any, noise: Any) -> Any:
        """x_t = α x + σ ε"""
        return self.alpha * x + self.sigma * noise

    def velocity(self, x: Any, noise: Any) -> Any:
        """u = α' x + σ' ε"""
        return self.alpha_slope * x + self.sigma_slope * noise

    def ends(self, x_t: Any, v: Any) -> tuple[Any, Any]:
        """x and ε of the pair that is at x_t with velocity v: the two equations above, solved."""
        d = self.alpha * self.sigma_slope - self.alpha_slope * self.sigma  # linear: −1; never 0
        return (self.sigma_slope * x_t - self.sigma * v) / d, (self.alpha * v - self.alpha_slope * x_t) / d

    def velocity_from_noise(self, x_t: Any, noise: Any) -> Any:
        """v of the pair that is at x_t and began at ε: x = (x_t − σ ε) / α, put into u. At t = 0 ε alone says nothing of x."""
        return self.alpha_slope / self.alpha * (x_t - self.sigma * noise) + self.sigma_slope * noise


def linear(t: Any) -> Path:
    """α = t, σ = 1 − t"""
    return Path(t, 1 - t, 1.0, -1.0)


def cosine(t: Any) -> Path:
    """α = sin πt/2, σ = cos πt/2, so that α² + σ² = 1: pictures of variance 1 keep it.     t: numbers, or a tensor"""
    quarter = math.pi / 2
    angle = t * quarter
    alpha, sigma = (angle.sin(), angle.cos()) if isinstance(t, Tensor) else (np.sin(angle), np.cos(angle))
    return Path(alpha, sigma, quarter * sigma, -quarter * alpha)


PATHS = {"linear": linear, "cosine": cosine}


# ---------------------------------------------------------------------------------------------------------------------
# Solvers of (3)
# ---------------------------------------------------------------------------------------------------------------------

Field = Callable[[np.ndarray, float], np.ndarray]  # (x, t) → dx/dt


def euler(field: Field, x: np.ndarray, times: np.ndarray) -> list[np.ndarray]:
    """x at each of the times: x_{i+1} = x_i + h v(x_i, t_i). Its error falls as h, at one evaluation a step."""
    path = [x]
    for t, s in zip(times, times[1:], strict=False):
        path.append(path[-1] + (s - t) * field(path[-1], t))
    return path


def heun(field: Field, x: np.ndarray, times: np.ndarray) -> list[np.ndarray]:
    """x at each of the times, by the mean of the slopes at both ends of a step. Its error falls as h², at two evaluations."""
    path = [x]
    for t, s in zip(times, times[1:], strict=False):
        here = field(path[-1], t)
        there = field(path[-1] + (s - t) * here, s)
        path.append(path[-1] + (s - t) * (here + there) / 2)
    return path


def ddim(noise: Field, path: Callable[[Any], Path], x: np.ndarray, times: np.ndarray) -> list[np.ndarray]:
    """x at each of the times by Euler's method for (5): from ε̂ at t the picture that belongs to it, then both at s.

    x_s = α_s x̂ + σ_s ε̂,   x̂ = (x_t − σ_t ε̂) / α_t          `noise` is ε̂(x, t); the first time is above 0
    """
    steps = [x]
    for t, s in zip(times, times[1:], strict=False):
        here, there = path(t), path(s)
        foretold = noise(steps[-1], t)
        steps.append(there.point((steps[-1] - here.sigma * foretold) / here.alpha, foretold))
    return steps


# ---------------------------------------------------------------------------------------------------------------------
# Networks: (x_t, condition) → velocity or noise, of the shape of x_t
# ---------------------------------------------------------------------------------------------------------------------


class Condition(nn.Module):
    r"""The time, and the class where there is one, as a vector e.     t: (B), y: (B), where `classes` is "withheld" → (B, E)

    e = W₂ a(W₁ φ(t)) + E_y,   φ_k(t) = (cos ω_k t, sin ω_k t),   ω from 1 to 1,000 in equal ratios;   a: SiLU

    The frequencies are for t in [0, 1]: with those of positions in a text, from 10⁻⁴ to 1, all cosines would be nearly 1.
    """

    def __init__(self, size: int, classes: int, waves: int = 16):
        super().__init__()
        self.register_buffer("omega", Tensor(np.geomspace(1, 1000, waves).astype(np.float32)), persistent=False)
        self.fc1 = nn.Linear(2 * waves, size)
        self.fc2 = nn.Linear(size, size)
        self.classes = nn.Embedding(classes + 1, size) if classes else None

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        angle = t[:, None] * self.omega  # (B, waves)
        e = self.fc2(F.silu(self.fc1(cat([angle.cos(), angle.sin()], 1))))  # (B, E)
        return e if self.classes is None else e + self.classes(y)


class FlowMLP(nn.Module):
    """Points, or codes: x and the condition through three hidden layers.     (B, d), (B), (B) → (B, d)"""

    def __init__(self, features: int, hidden: int, classes: int):
        super().__init__()
        self.condition = Condition(hidden, classes)
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, features)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        h = F.silu(self.fc1(x) + self.condition(t, y))  # (B, hidden)
        h = F.silu(self.fc2(h))
        return self.out(F.silu(self.fc3(h)))  # (B, d)


class ResidualBlock(nn.Module):
    r"""S x + W₂ ∗ a((1 + γ) · N(W₁ ∗ a(N(x))) + β)     γ, β: linear in the condition; N: group norm; a: SiLU

    W₂, γ and β are 0 at first, so that the block is its shortcut S: the identity, or a 1 × 1 convolution where the number of
    channels changes.     x: (B, N, H, W), e: (B, E) → (B, M, H, W)
    """

    def __init__(self, n: int, m: int, condition: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(math.gcd(8, c), c) for c in (n, m))
        self.conv1 = nn.Conv2d(n, m, 3, padding=1)
        self.conv2 = nn.Conv2d(m, m, 3, padding=1)
        self.film = nn.Linear(condition, 2 * m)
        self.shortcut = nn.Conv2d(n, m, 1) if n != m else nn.Identity()
        for parameter in (self.conv2.weight, self.conv2.bias, self.film.weight, self.film.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        gamma, beta = self.film(F.silu(e)).chunk(2, 1)  # (B, M) each
        h = self.conv1(F.silu(self.norm1(x)))  # (B, M, H, W)
        h = modulated(self.norm2, h, 1 + gamma, beta)
        return self.shortcut(x) + self.conv2(F.silu(h))


def modulated(norm: nn.GroupNorm, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """s · N(h) + d in one pass over h: a group norm of weight s w and bias s b + d, which differ from sample to sample.

    Mean and variance do so too, so all samples side by side are one with B times the groups.   h: (B, M, H, W); s, d: (B, M)
    """
    weight, bias = scale * norm.weight, scale * norm.bias + shift
    beside = h.reshape(1, -1, *h.shape[2:])  # (1, B · M, H, W)
    return F.group_norm(beside, len(h) * norm.num_groups, weight.flatten(), bias.flatten(), norm.eps).reshape(h.shape)


class UNet(nn.Module):
    """Pictures, at a half and a quarter of their sides; what the half has found is handed across.

    Four neighbouring pixels become four channels first: at full size, where a picture says the least for its cost, nothing is
    convolved.     (B, C, H, W), (B), (B) → (B, C, H, W)
    """

    def __init__(self, shape: tuple[int, int, int], width: int, classes: int):
        super().__init__()
        c, size = shape[0], 4 * width
        self.condition = Condition(size, classes)
        self.first = nn.Conv2d(4 * c, width, 3, padding=1)
        self.block1 = ResidualBlock(width, width, size)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.block2 = ResidualBlock(2 * width, 2 * width, size)
        self.block3 = ResidualBlock(2 * width, 2 * width, size)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, padding=1))
        self.block4 = ResidualBlock(2 * width, width, size)
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.last = nn.Conv2d(width, 4 * c, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        e = self.condition(t, y)  # (B, 4 width)
        h = self.first(F.pixel_unshuffle(x, 2))  # (B, width, H/2, W/2)
        across = self.block1(h, e)
        h = self.block2(self.down(across), e)  # (B, 2 width, H/4, W/4)
        h = self.up(self.block3(h, e))  # (B, width, H/2, W/2)
        h = self.block4(cat([h, across], 1), e)
        return F.pixel_shuffle(self.last(F.silu(self.norm(h))), 2)  # (B, C, H, W)


# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------

BANDS = 3  # parts of [0, 1] whose held-out losses are told apart
FIRST = 1e-3  # the time at which samplers begin where the network foretells the noise, from which at 0 nothing follows


class Flow(nn.Module):
    """A velocity field from noise to data, learned by (4)."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        for name, known in (
            ("path", tuple(PATHS)),
            ("predicts", ("velocity", "noise")),
            ("times", ("logit-normal", "uniform")),
        ):
            if getattr(config, name) not in known:
                raise ValueError(f"Flow: expected {name} {' or '.join(map(repr, known))}, got {getattr(config, name)!r}")
        if not config.withheld < 1:
            raise ValueError(f"Flow: expected withheld, a share, below 1, got {config.withheld}")
        if len(config.shape) == 1:
            self.net: nn.Module = FlowMLP(config.shape[0], config.hidden, config.classes)
        elif len(config.shape) == 3 and not (config.shape[1] % 4 or config.shape[2] % 4):
            self.net = UNet(config.shape, config.hidden, config.classes)
        else:
            raise ValueError(f"Flow: expected points, or pictures with sides divisible by 4, got shape {config.shape}")

    @property
    def dtype(self) -> np.dtype:
        return next(self.parameters()).dtype

    def path(self, t: Tensor) -> Path:
        """(1) at the times t (B), as numbers of the shape (B, 1, …) that broadcast against the data."""
        return PATHS[self.config.path](t.reshape(-1, *[1] * len(self.config.shape)))

    def loss(self, x: Tensor, y: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """‖v̂ − u‖² (or ‖ε̂ − ε‖²) for each example, the mean over its numbers.     (B, …), (B), (B), (B, …) → (B)"""
        path = self.path(t)
        aim = path.velocity(x, noise) if self.config.predicts == "velocity" else noise
        error = self.net(path.point(x, noise), t, y) - aim
        return (error * error).flatten(1).mean(1)

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return {"adam": optim.Adam(self.parameters(), lr=self.config.lr, betas=(0.9, 0.99))}

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """Lower (4) over one batch (x, y), x in [0, 1] where x are pictures. Returns the loss and the gradient's length."""
        x = self._inside(batch[0])
        loss = self.loss(x, self._told(batch[1]), self._times(len(x)), self._noise(len(x))).mean()
        optimizers["adam"].zero_grad()
        loss.backward()
        length = nn.utils.clip_grad_norm_(list(self.parameters()), self.config.clip)
        optimizers["adam"].step()
        return {"loss": loss.item(), "grad": length.item()}

    def _inside(self, x: Any) -> Tensor:
        """Data as the network sees them: (x − centre) / scale."""
        x = as_tensor(x).to(self.device)
        return (x - Tensor(self.config.centre, x.dtype, x.device)) / self.config.scale

    def outside(self, x: np.ndarray) -> np.ndarray:
        """The inverse; pictures in [0, 1]."""
        x = (x * self.config.scale + np.array(self.config.centre)).astype(self.dtype)
        return np.clip(x, 0, 1) if len(self.config.shape) == 3 else x

    def _noise(self, n: int) -> Tensor:
        return randn(n, *self.config.shape, dtype=self.dtype, device=self.device)

    def _times(self, n: int) -> Tensor:
        """t ~ p(t)     → (n)"""
        if self.config.times == "uniform":
            return rand(n, dtype=self.dtype, device=self.device)
        return randn(n, dtype=self.dtype, device=self.device).sigmoid()

    def _told(self, y: Any) -> Tensor | None:
        """The classes, a share of them withheld: each example by itself, so that no batch is without a class."""
        if not self.config.classes:
            return None
        y = as_tensor(y).to(self.device)
        return where(rand(len(y), device=self.device) < self.config.withheld, self.config.classes, y)

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """The loss (4) on held-out data, t uniform, each told its class; and its means over each third of the time."""
        losses, times = [], []
        for x, y in batches:
            t = rand(len(x), dtype=self.dtype, device=self.device)
            told = as_tensor(y).to(self.device) if self.config.classes else None
            losses.append(self.loss(self._inside(x), told, t, self._noise(len(x))).cpu().data)
            times.append(t.cpu().data)
        loss, t = np.concatenate(losses).astype(np.float64), np.concatenate(times)
        band = np.minimum((t * BANDS).astype(int), BANDS - 1)
        parts = {f"loss_{k + 1}": float(loss[band == k].mean()) for k in range(BANDS) if (band == k).any()}
        return {"loss": float(loss.mean()), **parts}

    # Generation

    @no_grad()
    def velocity(self, x: np.ndarray, t: float, y: np.ndarray | None = None, *, guidance: float | None = None) -> np.ndarray:
        """v̂(x, t), by (6) where classes y (B) are asked for.     (B, …) → (B, …)"""
        foretold = self._foretold(x, t, y, self.config.guidance if guidance is None else guidance)
        return foretold if self.config.predicts == "velocity" else PATHS[self.config.path](t).velocity_from_noise(x, foretold)

    @no_grad()
    def noise(self, x: np.ndarray, t: float, y: np.ndarray | None = None, *, guidance: float | None = None) -> np.ndarray:
        """ε̂(x, t), by (6) where classes y (B) are asked for.     (B, …) → (B, …)"""
        foretold = self._foretold(x, t, y, self.config.guidance if guidance is None else guidance)
        return foretold if self.config.predicts == "noise" else PATHS[self.config.path](t).ends(x, foretold)[1]

    def _foretold(self, x: np.ndarray, t: float, y: np.ndarray | None, w: float) -> np.ndarray:
        """What the network foretells, guided: linear in it, so that (6) holds of the noise as of the velocity."""
        times = Tensor(np.full(len(x), t, self.dtype), device=self.device)
        x = Tensor(x, self.dtype, self.device)  # the solver's own sums are of float64

        def foretold(y: np.ndarray | None) -> np.ndarray:
            told = None if y is None else Tensor(y, device=self.device)
            return self.net(x, times, told).cpu().data

        if not self.config.classes:
            return foretold(None)
        withheld = np.full(len(x), self.config.classes)
        if y is None or w == 0:
            return foretold(withheld)
        if w == 1:
            return foretold(y)
        free = foretold(withheld)
        return free + w * (foretold(y) - free)

    def transport(
        self,
        noise: np.ndarray,
        y: np.ndarray | None = None,
        *,
        steps: int = 12,
        solver: str = "heun",
        guidance: float | None = None,
    ) -> list[np.ndarray]:
        """Points on their way from noise (t = 0) to data (t = 1): the data at each of steps + 1 equally distant times.

        solver: "heun" (two evaluations of the network a step), "euler" or "ddim" (one).   (B, …) → steps + 1 times (B, …)
        """
        first = FIRST if self.config.predicts == "noise" or solver == "ddim" else 0.0
        times = np.linspace(first, 1, steps + 1)
        x = noise.astype(np.float64)
        if solver == "ddim":  # times of its own clock would not end: σ/α is infinite at t = 0
            return ddim(lambda x, t: self.noise(x, t, y, guidance=guidance), PATHS[self.config.path], x, times)
        solve = {"heun": heun, "euler": euler}[solver]
        return solve(lambda x, t: self.velocity(x, t, y, guidance=guidance), x, times)

    def generate(
        self, n: int, *, y: np.ndarray | None = None, generator: np.random.Generator | None = None, **how: Any
    ) -> np.ndarray:
        """n pictures in [0, 1], or points, of the classes y (n) where the network is told them, without y of any.   → (n, …)"""
        noise = random.generator(generator).standard_normal((n, *self.config.shape))
        return self.outside(self.transport(noise, y, **how)[-1])

    def log_likelihood(self, x: np.ndarray, y: np.ndarray | None = None, *, steps: int = 20) -> np.ndarray:
        r"""log p(x) of points, in nats, along (3) backwards.     (B, d) → (B)

            log p(x) = log N(x(0); 0, I) − ∫₀¹ div v(x(t), t) dt − d log scale

        The divergence is the trace of v's Jacobian, one backward sweep for each of the d numbers: exact, and dear where d is.
        Source: Chen et al. 2018 (neural ordinary differential equations), arXiv:1806.07366, eq. 8.
        """
        if len(self.config.shape) != 1 or self.config.predicts != "velocity":
            raise ValueError("Flow: the likelihood is that of points, under a network that foretells the velocity")
        told = Tensor(y, device=self.device) if self.config.classes and y is not None else None

        def field(state: np.ndarray, t: float) -> np.ndarray:
            z = Tensor(state[:, :-1], self.dtype, self.device, requires_grad=True)
            v = self.net(z, Tensor(np.full(len(z), t, self.dtype), device=self.device), told)  # (B, d)
            slopes = (grad(v[:, k].sum(), z, retain_graph=True)[0][:, k] for k in range(v.shape[1]))  # ∂v_k/∂x_k: (B) each
            return np.concatenate([v.detach().cpu().data, sum(slopes).cpu().data[:, None]], axis=1)

        x = (x - np.array(self.config.centre)) / self.config.scale
        start = np.concatenate([x, np.zeros((len(x), 1))], axis=1)  # (B, d + 1): the point, and the integral so far
        end = heun(field, start, np.linspace(1, 0, steps + 1))[-1]
        z, integral = end[:, :-1], end[:, -1]  # the integral runs from 1 to 0, so it has the sign that the formula asks for
        d = z.shape[1]
        return integral - (z * z).sum(1) / 2 - d / 2 * math.log(2 * math.pi) - d * math.log(self.config.scale)


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def prepare(train: data.Images, test: data.Images, settings: Mapping[str, Any]) -> tuple[data.Images, data.Images]:
    """The pictures as they are, with their classes where they have some."""
    return (pictures.prepare if train.y is None else pictures.prepare_classes)(train, test, settings)


def sample(
    model: Flow,
    metadata: Mapping[str, Any],
    n: int,
    rng: np.random.Generator,
    *,
    label: str | None = None,
    guidance: float | None = None,
    steps: int = 12,
    solver: str = "heun",
) -> np.ndarray:
    """n pictures of the class of that name or number, else of each in turn; the rest as in `transport`.   → (n, C, H, W)"""
    names = metadata["classes"]
    if label is not None and not names:
        raise OptionError("--label: the pictures that this model learned from have no classes.")
    if solver not in SOLVERS:
        raise OptionError(f"--solver: expected {', '.join(SOLVERS)}, got {solver!r}.")
    y = pictures.labels(names, n, label) if names else None
    how = {"guidance": guidance, "steps": steps, "solver": solver}
    parts = [slice(i, min(i + 256, n)) for i in range(0, n, 256)]
    return np.concatenate(
        [model.generate(p.stop - p.start, y=None if y is None else y[p], generator=rng, **how) for p in parts]
    )


def page(model: Flow, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: samples beside real pictures, the way from noise, the same noise more and more guided."""
    names, rng = list(metadata["classes"]), np.random.default_rng(7)
    rows = min(len(names), 10) or 6
    real = task.test.x[rng.permutation(len(task.test))[: 10 * rows]]
    if names:
        real = np.concatenate([task.test.x[rng.choice(np.flatnonzero(task.test.y == k), 10)] for k in range(rows)])
    y = np.arange(rows) if names else None
    noise = np.random.default_rng(1).standard_normal((rows, *model.config.shape))
    way = np.stack(model.transport(noise, y, steps=12), axis=1)  # (rows, 13, C, H, W)
    figures: list[Any] = [
        (
            Pictures(draw(10 * rows, np.random.default_rng(7)) if not names else _by_class(draw, names[:rows]), 10, "Drawn."),
            Pictures(real, 10, "Real, and never seen in training."),
        ),
        Pictures(
            model.outside(way.reshape(-1, *model.config.shape)),
            13,
            "From noise to picture: each row follows one point along the field, at equally distant times.",
        ),
    ]
    if names:
        weights = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
        guided = [model.transport(noise, y, guidance=w)[-1] for w in weights]
        figures.append(
            Pictures(
                model.outside(np.stack(guided, 1).reshape(-1, *model.config.shape)),
                len(weights),
                f"The same noise, guided by {', '.join(f'{w:g}' for w in weights)}: 0 is told no class, 1 its own and no more.",
            )
        )
    return Page(
        "A field of velocities moves noise until it has become pictures. The velocity at a point is the mean of those of all "
        "straight ways from a noise to a picture that pass there: a regression, without a second player and without a bound.",
        ("x_t = ( 1 − t ) ε + t x", "min__v 𝔼 ‖ v ( x_t , t ) − ( x − ε ) ‖^2", "d x / d t = v ( x , t )"),
        figures,
    )


def _by_class(draw: Draw, names: list[str]) -> np.ndarray:
    return np.concatenate([draw(10, np.random.default_rng(7), label=name) for name in names])


SOLVERS = ("heun", "euler", "ddim")

FAMILY = Family(
    name="flow",
    title="Flow matching",
    model=Flow,
    config=FlowConfig,
    learns_from=data.Images,
    prepare=prepare,
    decided={
        **pictures.SHAPE,
        **pictures.INSIDE,
        "classes": lambda images: 0 if images.y is None else len(images.classes),
    },
    makes="pictures",
    sample=sample,
    options=(
        pictures.LABEL,
        Option("guidance", float, "1: as the class asks; above: away from what is common (the recipe's)", "W",
               "a number of at least 0"),
        Option("steps", int, "of the solver, from noise to picture (12)", "S", "a whole number of at least 1", 1, 10_000),
        Option("solver", str, "heun, euler or ddim (heun)", "NAME"),
    ),
    scores=pictures.scores_of_classes,
    meanings=(
        Score("loss", "regression", -1, "mean squared error of the velocity; most of it is the spread of the velocities"),
        *(Score(f"loss_{k + 1}", f"the same, {when}", -1) for k, when in enumerate(("near noise", "midway", "near data"))),
        *pictures.MEANINGS,
    ),
    curves=(
        Panel("mean squared error", (Line("loss", "training"), Line("test_loss", "held out", 1, True))),
        Panel(
            "held out, by time",
            tuple(
                Line(f"test_loss_{k + 1}", when, 1, True) for k, when in enumerate(("t < 1/3", "t < 2/3", "t < 1"))
            ),
        ),
        Panel("length of the gradient", (Line("grad", "before it is clipped"),)),
    ),
    page=page,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The same in the plane, where the field can be seen
# ---------------------------------------------------------------------------------------------------------------------

ARROWS = 21  # along each side of the square that is shown
HASTE = ((10, "euler"), (10, "heun"))  # steps and solvers that are shown beside the careful one


def _arrows(model: Flow, square: tuple[float, float, float], t: float) -> np.ndarray:
    """The velocity v(x, t) on the lattice of the square, in the units of the data.     → (ARROWS², 2)"""
    at = model._inside(lattice(square, ARROWS)).data
    return model.velocity(at, t) * model.config.scale


def sample_points(
    model: Flow, metadata: Mapping[str, Any], n: int, rng: np.random.Generator, *, steps: int = 40, solver: str = "heun"
) -> Plane:
    """n points at the end of their way, over the field that brought them there; the rest as in `transport`."""
    if solver not in SOLVERS:
        raise OptionError(f"--solver: expected {', '.join(SOLVERS)}, got {solver!r}.")
    square = metadata["square"]
    x = model.generate(n, generator=rng, steps=steps, solver=solver)
    return Plane(x, square, arrows=_arrows(model, square, 1 - 1 / steps))


def page_of_points(model: Flow, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: points on their way from noise, over the field of the moment, and beside the data."""
    made, square = points.snapshot(task, draw, np.random.default_rng(7)), metadata["square"]
    noise, steps = np.random.default_rng(7).standard_normal((1000, 2)), 40
    way = model.transport(noise, steps=steps)
    moments = [
        (f"t = {k / steps:g}", Plane(model.outside(way[k]), square, arrows=_arrows(model, square, k / steps)))
        for k in (0, 16, 26, 32, 36, 40)
    ]

    def end(steps: int, solver: str) -> Plane:
        return draw(points.MANY, np.random.default_rng(7), steps=steps, solver=solver)._replace(real=made.real)

    return Page(
        "A field of velocities, learned by regression, moves points of noise until they lie as the data do. At each moment the "
        "arrow at a place is the mean velocity of all straight ways from a noise to a datum that pass there at that time.",
        ("x_t = ( 1 − t ) ε + t x", "min__v 𝔼 ‖ v ( x_t , t ) − ( x − ε ) ‖^2", "d x / d t = v ( x , t )"),
        (
            Planes(
                moments[:3], "A thousand points on their way, over the field of the moment: far from the data all go inwards."
            ),
            Planes(moments[3:], "They part late: which mode a point belongs to is decided near the end."),
            Planes(
                [
                    *((f"{steps} steps of {solver.title()}", end(steps, solver)) for steps, solver in HASTE),
                    ("40 of Heun", made),
                ],
                "Points at their end, by solvers that look at the field 10, 20 and 80 times, and data never seen in training.",
            ),
        ),
    )


POINTS = dataclasses.replace(
    FAMILY,
    **points.IN_THE_PLANE,
    name="toy-flow",
    title="Flow matching in the plane",
    decided=points.DECIDED,
    sample=sample_points,
    options=tuple(
        dataclasses.replace(option, what="of the solver, from noise to point (40)") if option.name == "steps" else option
        for option in FAMILY.options
        if option.name in ("steps", "solver")
    ),
    meanings=(*FAMILY.meanings[:4], *points.MEANINGS),
    page=page_of_points,
)
