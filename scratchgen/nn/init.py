r"""How weights begin.

Each function overwrites its tensor in place and returns it. Numbers are drawn in float64 and then rounded to the
tensor's dtype, so a float32 and a float64 model of the same seed start from the same weights.

A layer y = W x keeps the variance of its signal if Var[W] = 1 / fan_in, and that of its gradient if
Var[W] = 1 / fan_out. fan_in = W.shape[1] · taps and fan_out = W.shape[0] · taps, the taps of a kernel being the product
of W's further lengths. A nonlinearity that shrinks the signal is made up for by a gain (`calculate_gain`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchgen import random
from scratchgen.grad_mode import no_grad
from scratchgen.tensors import Tensor

Generator = np.random.Generator


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """x ~ U(a, b)"""
    _bounds("uniform_", a, b)
    return _fill("uniform_", tensor, random.generator(generator).uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """x ~ N(mean, std²)"""
    _spread("normal_", std)
    return _fill("normal_", tensor, random.generator(generator).normal(mean, std, tensor.shape))


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """x ~ N(mean, std²) given a ≤ x ≤ b:  x = mean + std Φ⁻¹(u),  u ~ U(Φ((a − mean) / std), Φ((b − mean) / std))"""
    from scipy import special  # imported when first wanted: it takes longer to import than NumPy

    _bounds("trunc_normal_", a, b)
    _spread("trunc_normal_", std)
    if std == 0:
        return _fill("trunc_normal_", tensor, np.clip(mean, a, b))
    low, high = (a - mean) / std, (b - mean) / std
    mirrored = low > 0  # Φ⁻¹ is exact near 0 and not near 1: the upper tail is drawn as the lower one
    if mirrored:
        low, high = -high, -low
    u = random.generator(generator).uniform(special.ndtr(low), special.ndtr(high), tensor.shape)
    x = np.clip(special.ndtri(u), low, high)
    return _fill("trunc_normal_", tensor, np.clip(mean + std * (-x if mirrored else x), a, b))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """x = val"""
    return _fill("constant_", tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """x = 0"""
    return _fill("zeros_", tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """x = 1"""
    return _fill("ones_", tensor, 1)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which the standard deviation of W is to be raised before a nonlinearity.

    1 for none, for convolutions and the sigmoid; 5/3 tanh; √2 ReLU; √(2 / (1 + s²)) leaky ReLU of slope s = `param`
    (0.01); 3/4 SELU.  Raises ValueError for another name.  Source: He et al. 2015, arXiv:1502.01852, eq. 14.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise ValueError(f"calculate_gain: expected the slope of a leaky ReLU as a number, got {param!r}")
        return math.sqrt(2 / (1 + slope**2))
    plain = {"linear", "sigmoid"} | {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)}
    gains = dict.fromkeys(plain, 1.0) | {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: expected one of {', '.join(sorted([*gains, 'leaky_relu']))}, got {nonlinearity!r}")
    return gains[nonlinearity]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """x ~ U(−a, a),  a = gain √(6 / (fan_in + fan_out)).  Glorot & Bengio 2010, eq. 16."""
    std = gain * math.sqrt(2 / max(sum(fans("xavier_uniform_", tensor)), 1))
    a = math.sqrt(3) * std  # U(−a, a) has the variance a² / 3
    return uniform_(tensor, -a, a, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """x ~ N(0, σ²),  σ = gain √(2 / (fan_in + fan_out)).  Glorot & Bengio 2010, eq. 12."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / max(sum(fans("xavier_normal_", tensor)), 1)), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """x ~ U(−b, b),  b = gain √(3 / fan), `a` being the slope of a leaky ReLU.  He et al. 2015, arXiv:1502.01852."""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """x ~ N(0, gain² / fan), `a` being the slope of a leaky ReLU.  He et al. 2015, arXiv:1502.01852, eq. 14."""
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """gain · Q with orthonormal rows or columns, whichever are fewer, uniform among all such; (m, …) is (m, rest) here.

    Q R = a Gaussian matrix, the signs of Q's columns chosen so that R's diagonal is positive: without that the
    distribution of Q is not the uniform one.  Saxe, McClelland & Ganguli 2013, arXiv:1312.6120; Mezzadri 2007.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: expected at least 2 dimensions, got shape {tensor.shape}")
    if not tensor.numel():
        return tensor
    m, n = tensor.shape[0], tensor.numel() // tensor.shape[0]
    q, r = np.linalg.qr(random.generator(generator).normal(size=(max(m, n), min(m, n))))
    q *= np.where(np.diag(r) < 0, -1, 1)
    return _fill("orthogonal_", tensor, gain * (q if m >= n else q.T).reshape(tensor.shape))


def fans(name: str, tensor: Tensor) -> tuple[int, int]:
    """fan_in, fan_out of a weight (out, in, *kernel)."""
    if tensor.ndim < 2:
        raise ValueError(f"{name}: expected a weight of at least 2 dimensions, (out, in, …), got shape {tensor.shape}")
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: expected mode 'fan_in' or 'fan_out', got {mode!r}")
    fan = fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))  # a fan of 0 means no weights, which need no scale


def _fill(name: str, tensor: Tensor, values: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    with no_grad():
        return tensor.copy_(values)


def _bounds(name: str, a: float, b: float) -> None:
    if not a <= b or not math.isfinite(b - a):
        raise ValueError(f"{name}: expected finite bounds a ≤ b, got a = {a} and b = {b}")


def _spread(name: str, std: float) -> None:
    if not 0 <= std < math.inf:
        raise ValueError(f"{name}: expected a finite standard deviation of at least 0, got {std}")
