r"""Losses, likelihoods and divergences, all in the one public namespace `functional` (F) too.

Names, arguments, defaults and edge cases are those of `torch.nn.functional`; a loss refuses input and target of two shapes,
where PyTorch warns and broadcasts, but takes a number for a tensor of that number.
Losses take logits, never probabilities: log σ and log softmax of a logit are finite where the logarithm of a rounded
probability is not.
`reduction` is "mean", "sum" or "none" throughout. At a kink the first derivative is PyTorch's; the second is that of the
side which the first is taken from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen.ops.choice import Huber, where
from scratchgen.ops.elementwise import exp, expm1, log, sigmoid, softplus
from scratchgen.ops.fused import (
    BinaryCrossEntropy,
    ContinuousBernoulli,
    Reparameterized,
    SquaredError,
    StandardGaussianKL,
    class_losses,
    log_softmax,
)
from scratchgen.ops.operands import Number, as_tensor, floating, operands
from scratchgen.tensors import Tensor, constant

__all__ = [
    "bernoulli_log_prob",
    "binary_cross_entropy_with_logits",
    "continuous_bernoulli_log_prob",
    "cross_entropy",
    "discretized_logistic_log_prob",
    "gaussian_log_prob",
    "gaussian_nll_loss",
    "huber_loss",
    "kl_bernoulli",
    "kl_div",
    "kl_gaussian",
    "kl_standard_gaussian",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "reparameterize",
    "smooth_l1_loss",
]


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def _reduced(name: str, loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"{name}: expected reduction 'mean', 'sum' or 'none', got {reduction!r}")


def _pair(name: str, input: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Input and target as tensors of one shape; a number has the other's."""
    x, t = operands(name, *[a if isinstance(a, Number) else as_tensor(a) for a in (input, target)])
    if isinstance(target, Number):
        t = t.expand(x.shape)
    elif isinstance(input, Number):
        x = x.expand(t.shape)
    if x.shape != t.shape:
        raise ValueError(f"{name}: expected input and target of one shape, got {x.shape} and {t.shape}")
    return floating(name, x), floating(name, t)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """ℓ = (x − t)²"""
    x, t = _pair("mse_loss", input, target)
    if reduction in ("mean", "sum"):
        return SquaredError.apply(x, t, n=(math.prod(x.shape) or math.nan) if reduction == "mean" else 1)
    return _reduced("mse_loss", (x - t).square(), reduction)


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Tensor:
    """ℓ = |x − t|"""
    x, t = _pair("l1_loss", input, target)
    return _reduced("l1_loss", (x - t).abs(), reduction)


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """ℓ = ½ d² for |d| ≤ δ, else δ (|d| − ½ δ);  d = x − t.  Huber 1964."""
    x, t = _pair("huber_loss", input, target)
    if delta <= 0:
        raise ValueError(f"huber_loss: expected delta above 0, got {delta}")
    return _reduced("huber_loss", Huber.apply(x - t, delta=delta), reduction)


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """ℓ = ½ d² / β for |d| < β, else |d| − ½ β;  d = x − t"""
    x, t = _pair("smooth_l1_loss", input, target)
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: expected beta of at least 0, got {beta}")
    if beta == 0:
        return l1_loss(x, t, reduction)
    return _reduced("smooth_l1_loss", Huber.apply(x - t, delta=beta) * (1 / beta), reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Tensor:
    """ℓ = −t log σ(x) − (1 − t) log(1 − σ(x)) = softplus(x) − t x;  `pos_weight` multiplies the first term."""
    name = "binary_cross_entropy_with_logits"
    x, t = _pair(name, input, target)
    if pos_weight is None:
        if weight is None and reduction == "sum":
            return BinaryCrossEntropy.apply(x, t, total=True)
        loss = BinaryCrossEntropy.apply(x, t, total=False)
    else:
        w = pos_weight if isinstance(pos_weight, Number) else as_tensor(pos_weight)
        loss = (1 - t) * softplus(x, threshold=math.inf) + w * t * softplus(-x, threshold=math.inf)
    return _reduced(name, loss if weight is None else loss * weight, reduction)


def cross_entropy(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    r"""ℓ_n = −w_{t_n} log p_{n, t_n},  p = softmax(x) over dimension 1

    x: (N, V, …) or (V), t: (N, …) class numbers, or probabilities of x's shape. "mean" divides by Σ_n w_{t_n} over the
    targets that are not `ignore_index` (by N for probabilities). `label_smoothing` ε replaces the target by
    (1 − ε) t + ε/V. Raises where a class is not in 0 … V − 1.
    """
    x = floating("cross_entropy", input)
    t = target if isinstance(target, Tensor) else as_tensor(target)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: expected label_smoothing from 0 to 1, got {label_smoothing}")
    if not x.ndim:
        raise ValueError("cross_entropy: expected logits of shape (N, V, …) or (V), got a 0-d tensor")
    axis = 0 if x.ndim == 1 else 1
    classes = x.shape[axis]
    w = None if weight is None else as_tensor(weight)
    if w is not None and w.shape != (classes,):
        raise ValueError(f"cross_entropy: expected a weight of shape {(classes,)}, got {w.shape}")
    if t.dtype.kind == "f":
        if t.shape != x.shape:
            raise ValueError(f"cross_entropy: expected target probabilities of shape {x.shape}, got {t.shape}")
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing / classes
        terms = t * log_softmax(x, axis)
        if w is not None:
            terms = terms * w.reshape((-1,) + (1,) * (x.ndim - axis - 1))
        loss = -terms.sum(axis)
        return _reduced("cross_entropy", loss, reduction)
    expected = x.shape[:axis] + x.shape[axis + 1 :]
    if t.dtype.kind not in "iu" or t.shape != expected:
        raise ValueError(
            f"cross_entropy: expected a target of class numbers of shape {expected}, got {t.dtype} of shape {t.shape}"
        )
    rows = x.movedim(axis, -1).reshape(t.numel(), classes)
    return _class_loss("cross_entropy", rows, t, w, ignore_index, reduction, label_smoothing, logits=True)


def nll_loss(input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """ℓ_n = −w_{t_n} x_{n, t_n}, x being log-probabilities (N, V, …) or (V); otherwise as `cross_entropy`."""
    x, t = floating("nll_loss", input), as_tensor(target)
    if not x.ndim:
        raise ValueError("nll_loss: expected log-probabilities of shape (N, V, …) or (V), got a 0-d tensor")
    axis = 0 if x.ndim == 1 else 1
    expected = x.shape[:axis] + x.shape[axis + 1 :]
    if t.dtype.kind not in "iu" or t.shape != expected:
        raise ValueError(f"nll_loss: expected a target of class numbers of shape {expected}, got {t.dtype} of shape {t.shape}")
    rows = x.movedim(axis, -1).reshape(t.numel(), x.shape[axis])
    return _class_loss(
        "nll_loss", rows, t, None if weight is None else as_tensor(weight), ignore_index, reduction, 0.0, logits=False
    )


def _class_loss(
    name: str,
    rows: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    *,
    logits: bool,
) -> Tensor:
    """The loss of class numbers. rows: (N, V) logits, or log-probabilities."""
    t = target.data.reshape(
        -1
    ).copy()  # a copy: the target may change before the backward sweep, which needs the classes of now
    kept = t != ignore_index
    classes = rows.shape[1]
    if devices.on_host(t):  # on a device the check would wait for all work before it; there the loss of a wrong class is NaN
        wrong = t[kept & ((t < 0) | (t >= classes))]
        if wrong.size:
            raise IndexError(f"{name}: expected class numbers from 0 to {classes - 1}, got {wrong[0]}")
    if logits:
        loss = class_losses(rows, t, ignore_index)
    else:
        loss = where(constant(kept), -rows.gather(1, np.where(kept, t, 0)[:, None]).squeeze(1), 0.0)
    if weight is not None:
        weights = weight[np.where(kept, t, 0)] * constant(kept.astype(rows.dtype))
        loss = loss * weights
    if smoothing:
        log_p = log_softmax(rows, 1)
        uniform = -(log_p if weight is None else log_p * weight).sum(1) / classes
        loss = loss * (1 - smoothing) + where(constant(kept), uniform, 0.0) * smoothing
    if reduction == "mean":
        if weight is not None:
            return loss.sum() / weights.sum()
        count = kept.sum()
        return loss.sum() / (float(count) or math.nan if devices.on_host(count) else constant(count.astype(loss.dtype)))
    return _reduced(name, loss.reshape(target.shape), reduction)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """ℓ = t (log t − x), x being log-probabilities; 0 where t = 0, whatever x.

    The reduction "batchmean" divides the sum by the first length; `log_target` means that log t is given for t.
    """
    x, t = _pair("kl_div", input, target)
    if log_target:
        loss = exp(t) * (t - x)
    else:
        zero = t == 0
        loss = where(zero, 0.0, t * (log(where(zero, 1.0, t)) - x))
    if reduction == "batchmean":
        return loss.sum() / (loss.shape[0] if loss.ndim else 1)
    return _reduced("kl_div", loss, reduction)


def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """ℓ = ½ (log v + (x − t)² / v),  v = max(var, ε), and ½ log 2π more if `full`.  Nix & Weigend 1994.

    A variance below ε counts as ε, but its gradient is that at ε, as in PyTorch: a variance held down can grow again.
    x, t: any shape; var: one number, x's shape, or this without its last length or with 1 for it. ValueError for others, and
    where a variance is below 0.
    """
    x, t = operands("gaussian_nll_loss", as_tensor(input), as_tensor(target))
    x, v = operands("gaussian_nll_loss", floating("gaussian_nll_loss", x), var)
    if v.ndim and v.shape == x.shape[:-1]:
        v = v.unsqueeze(-1)
    try:
        if np.broadcast_shapes(x.shape, t.shape) not in (x.shape, t.shape) or np.broadcast_shapes(v.shape, x.shape) != x.shape:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"gaussian_nll_loss: expected a target of shape {x.shape} and a var that broadcasts to it, got {t.shape}, {v.shape}"
        ) from None
    if devices.on_host(v.data) and (v.data < 0).any():
        raise ValueError("gaussian_nll_loss: expected variances of at least 0, got one below")
    if eps <= 0:
        raise ValueError(f"gaussian_nll_loss: expected eps above 0, got {eps}")
    v = v + constant(np.maximum(eps - v.data, 0).astype(v.dtype))
    loss = 0.5 * (log(v) + (x - t).square() / v)
    return _reduced("gaussian_nll_loss", loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


# ---------------------------------------------------------------------------------------------------------------------
# Likelihoods and divergences: element by element, for the caller to sum
# ---------------------------------------------------------------------------------------------------------------------


def gaussian_log_prob(x: Any, mean: Any, log_var: Any) -> Tensor:
    """log N(x; μ, σ²) = −½ (log 2π + log σ² + (x − μ)² / σ²)"""
    x, mu, s = operands("gaussian_log_prob", as_tensor(x), mean, log_var)
    s = s if isinstance(s, Tensor) else constant(devices.number(s, x.dtype, x.data))
    return -0.5 * (math.log(2 * math.pi) + s + (x - mu).square() * exp(-s))


def bernoulli_log_prob(x: Any, logits: Any) -> Tensor:
    """log B(x; σ(l)) = x l − softplus(l), x in [0, 1]"""
    return -binary_cross_entropy_with_logits(logits, x, reduction="none")


def continuous_bernoulli_log_prob(x: Any, logits: Any) -> Tensor:
    """log CB(x; σ(l)) = x l − log ∫₀¹ e^{ul} du,  x in [0, 1]: a density, of mean 1/(1 − e^{−l}) − 1/l.

    It is the Bernoulli's with the constant that makes it one, C(λ) = 2 artanh(1 − 2λ)/(1 − 2λ) at λ = σ(l).
    Source: Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845, eq. 4-8.
    """
    x, logits = _pair("continuous_bernoulli_log_prob", x, logits)
    return ContinuousBernoulli.apply(x, logits)


def discretized_logistic_log_prob(x: Any, mean: Any, log_scale: Any, levels: int = 256) -> Tensor:
    """log P(x) of a grey level x = i/(L − 1): what a logistic distribution puts into the bin of width 1/(L − 1) around x.

        P(x) = σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b−a}),   a, b = (x ± ½/(L − 1) − μ) / s

    The outermost bins reach to ±∞: there σ(b) = 0 for x = 0 and σ(a) = 1 for x = 1, so that all L add up to 1. Since
    a − b = 1/((L − 1) s) whatever x and μ, no two numbers that are almost equal are subtracted.

    x, μ, log s: shapes that broadcast; L ≥ 2.   Raises ValueError for fewer levels.
    Source: Kingma et al. 2016, arXiv:1606.04934, §5.2; Salimans et al. 2017, arXiv:1701.05517, eq. 2.
    """
    name = "discretized_logistic_log_prob"
    x, mu, s = (floating(name, t) for t in operands(name, as_tensor(x), mean, log_scale))
    if levels < 2:
        raise ValueError(f"{name}: expected at least 2 levels, got {levels}")
    half = 0.5 / (levels - 1)
    sharpness = exp(-s)
    lowest, highest = constant(x.data < half), constant(x.data > 1 - half)
    log_a = where(highest, 0.0, -softplus((mu - x - half) * sharpness, threshold=math.inf))  # log σ(a)
    log_b = where(lowest, 0.0, -softplus((x - half - mu) * sharpness, threshold=math.inf))  # log σ(−b)
    inner = where(constant(lowest.data | highest.data), 0.0, log(-expm1(-2 * half * sharpness)))
    return log_a + log_b + inner


def reparameterize(mean: Any, log_var: Any, noise: Any) -> Tensor:
    """z = μ + σ ⊙ ε: with ε ~ N(0, I), a draw from N(μ, σ²) that has gradients.  Kingma & Welling 2013, §2.4."""
    return Reparameterized.apply(*[floating("reparameterize", x) for x in operands("reparameterize", mean, log_var, noise)])


def kl_standard_gaussian(mean: Any, log_var: Any) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − 1 − log σ²).  Kingma & Welling 2013, arXiv:1312.6114, appendix B."""
    mu, s = operands("kl_standard_gaussian", as_tensor(mean), as_tensor(log_var))
    return StandardGaussianKL.apply(floating("kl_standard_gaussian", mu), floating("kl_standard_gaussian", s))


def kl_gaussian(mean_p: Any, log_var_p: Any, mean_q: Any, log_var_q: Any) -> Tensor:
    """KL(N(μ_p, σ_p²) ‖ N(μ_q, σ_q²)) = ½ (log σ_q² − log σ_p² + (σ_p² + (μ_p − μ_q)²) / σ_q² − 1)"""
    mp, sp, mq, sq = operands("kl_gaussian", *[as_tensor(t) for t in (mean_p, log_var_p, mean_q, log_var_q)])
    return 0.5 * (sq - sp + exp(sp - sq) + (mp - mq).square() * exp(-sq) - 1)


def kl_bernoulli(logits_p: Any, logits_q: Any) -> Tensor:
    """KL(B(σ(a)) ‖ B(σ(b))) = σ(a) (a − b) − softplus(a) + softplus(b)"""
    a, b = operands("kl_bernoulli", as_tensor(logits_p), as_tensor(logits_q))
    return sigmoid(a) * (a - b) - softplus(a, threshold=math.inf) + softplus(b, threshold=math.inf)
