r"""Likelihoods p(x | z) of pictures: how probable pixels x are, given what a decoder says of them.

The decoder says `outputs` numbers h of each pixel: a logit l, a mean μ, or μ and the logarithm of a scale. Given z, pixels are
independent of each other, so that log p(x | z) is a sum over pixels of

    Bernoulli              x log σ(l) + (1 − x) log(1 − σ(l))                       x ∈ {0, 1}                    (1)
    continuous Bernoulli   x l − log ∫₀¹ e^{ul} du                                  x ∈ [0, 1], a density         (2)
    Gaussian               log N(x; μ, σ²),  σ fixed                                a density                     (3)
    learned Gaussian       log N(x; μ, σ_min² + e^h)                                a density                     (4)
    discretized logistic   log[σ((x + δ − μ)/s) − σ((x − δ − μ)/s)],  s = s_min + e^h    x = i/(L − 1), δ = ½/(L − 1)   (5)

(1) of grey pixels is no likelihood of anything, though it trains well; (2) is its repair. A density of pixels that have L
levels has no upper bound: of a black background a decoder that is certain earns as many nats as its least σ allows. Hence the
floors, and hence the noise in [0, 1) that is added to a level (dequantized) where bits per dimension are to be compared.

Sources: (2) Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845; (4) Kingma & Welling 2013, arXiv:1312.6114, appendix C.2;
(5) Salimans et al. 2017, arXiv:1701.05517; dequantization: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, §3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scratchgen import functional as F
from scratchgen.ops import chunk, clamp, exp, full_like, log1p, logaddexp, rand_like, randn_like, sigmoid, where
from scratchgen.ops.fused import log_moment_of_uniform
from scratchgen.tensors import Tensor, constant

Generator = np.random.Generator


NEAR_FLOOR = 1.1  # times the least scale: below, a scale counts as being at its floor


@dataclass(frozen=True)
class Likelihood:
    """A picture x is (…, C, H, W), and what is said of it, h, (…, outputs · C, H, W): all means, then all scales."""

    outputs = 1  # numbers that are said of each pixel
    density = True  # of real numbers, or else chances of levels

    def log_prob(self, x: Tensor, h: Tensor) -> Tensor:
        """log p of each pixel, in nats.     → (…, C, H, W)"""
        raise NotImplementedError

    def nll(self, x: Tensor, h: Tensor) -> Tensor:
        """−Σ log p, over all pixels of all pictures."""
        return -self.log_prob(x, h).sum()

    def mean(self, h: Tensor) -> Tensor:
        """The mean of each pixel, or what comes nearest to it in closed form.     → (…, C, H, W)"""
        raise NotImplementedError

    def sample(self, h: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Pixels drawn from p.     → (…, C, H, W)"""
        raise NotImplementedError

    def at_floor(self, h: Tensor) -> float | None:
        """The share of pixels whose learned scale is within a tenth of the least there is; None where none is learned."""
        return None


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """(1)"""

    density = False

    def log_prob(self, x: Tensor, h: Tensor) -> Tensor:
        return F.bernoulli_log_prob(x.expand(h.shape), h)

    def nll(self, x: Tensor, h: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(h, x, reduction="sum")  # the sum, too, in one kernel

    def mean(self, h: Tensor) -> Tensor:
        return sigmoid(h)

    def sample(self, h: Tensor, *, generator: Generator | None = None) -> Tensor:
        return sigmoid(h).bernoulli(generator=generator)


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """(2)"""

    def log_prob(self, x: Tensor, h: Tensor) -> Tensor:
        return F.continuous_bernoulli_log_prob(x.expand(h.shape), h)

    def mean(self, h: Tensor) -> Tensor:
        return constant(log_moment_of_uniform(h.data)[1])

    def sample(self, h: Tensor, *, generator: Generator | None = None) -> Tensor:
        """x = log(1 + u (e^l − 1)) / l with u ~ U(0, 1): the distribution function turned round, for l < 0; 1 − x for −l."""
        flat = h.abs() < 1e-4  # there x = u, nearly
        u, m = rand_like(h, generator=generator), where(flat, -1.0, -h.abs())
        x = where(flat, u, log1p(u * (exp(m) - 1)) / m)
        return where(h > 0, 1 - x, x)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """(3)"""

    sigma: float = 0.1

    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ²"""
        return h, full_like(h, 2 * math.log(self.sigma))

    def log_prob(self, x: Tensor, h: Tensor) -> Tensor:
        return F.gaussian_log_prob(x, *self._moments(h))

    def mean(self, h: Tensor) -> Tensor:
        return self._moments(h)[0]

    def sample(self, h: Tensor, *, generator: Generator | None = None) -> Tensor:
        mean, log_var = self._moments(h)
        return mean + exp(0.5 * log_var) * randn_like(mean, generator=generator)


@dataclass(frozen=True)
class LearnedGaussian(Gaussian):
    """(4); sigma is σ_min"""

    outputs = 2

    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, free = chunk(h, 2, -3)
        return mean, logaddexp(free, 2 * math.log(self.sigma))

    def at_floor(self, h: Tensor) -> float:
        return float((self._moments(h)[1].data < 2 * math.log(NEAR_FLOOR * self.sigma)).mean())


@dataclass(frozen=True)
class DiscretizedLogistic(Likelihood):
    """(5)"""

    scale: float = 0.002  # s_min
    levels: int = 256

    outputs = 2
    density = False

    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log s"""
        mean, free = chunk(h, 2, -3)
        return mean, logaddexp(free, math.log(self.scale))

    def at_floor(self, h: Tensor) -> float:
        return float((self._moments(h)[1].data < math.log(NEAR_FLOOR * self.scale)).mean())

    def log_prob(self, x: Tensor, h: Tensor) -> Tensor:
        return F.discretized_logistic_log_prob(x, *self._moments(h), self.levels)

    def mean(self, h: Tensor) -> Tensor:
        return clamp(self._moments(h)[0], 0, 1)  # of the likeliest level, that is; it has no closed form

    def sample(self, h: Tensor, *, generator: Generator | None = None) -> Tensor:
        mean, log_scale = self._moments(h)
        u = clamp(rand_like(mean, generator=generator), 1e-7, 1 - 1e-7)
        x = mean + exp(log_scale) * (u / (1 - u)).log()
        return clamp((x * (self.levels - 1)).round() / (self.levels - 1), 0, 1)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": lambda sigma, sigma_min, levels: Bernoulli(),
    "continuous-bernoulli": lambda sigma, sigma_min, levels: ContinuousBernoulli(),
    "gaussian": lambda sigma, sigma_min, levels: Gaussian(sigma),
    "learned-gaussian": lambda sigma, sigma_min, levels: LearnedGaussian(sigma_min),
    "discretized-logistic": lambda sigma, sigma_min, levels: DiscretizedLogistic(sigma_min, levels),
}


def likelihood(name: str, *, sigma: float, sigma_min: float, levels: int) -> Likelihood:
    """The likelihood of that name. Raises ValueError where there is none, or where a scale or the levels are too small."""
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood: expected one of {', '.join(LIKELIHOODS)}, got {name!r}")
    for setting, value in (("sigma", sigma), ("sigma_min", sigma_min)):
        if not value > 0:
            raise ValueError(f"likelihood: expected a {setting} above 0, got {value:g}")
    if levels < 2:
        raise ValueError(f"likelihood: expected at least 2 levels, got {levels}")
    return LIKELIHOODS[name](sigma, sigma_min, levels)
