r"""Compositions that models spend their time in, as one node each: a single kernel forward, another backward.

Each keeps, as `composed`, the same function written in primitives. The kernels are tested against it, and sweeps with
`create_graph` differentiate it, so that a gradient can be differentiated again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernels
from scratchgen import device as devices
from scratchgen.autograd import Function
from scratchgen.ops.choice import where
from scratchgen.ops.elementwise import exp, expm1, log, softplus
from scratchgen.ops.operands import as_tensor, broadcast, cast, floating, operands
from scratchgen.ops.reduce import dims_of, mean
from scratchgen.tensors import Tensor, constant, method

__all__ = [
    "attention",
    "class_losses",
    "layer_norm",
    "log_softmax",
    "rms_norm",
    "softmax",
]


class SquaredError(Function):
    """ℓ = Σ (x − t)² / n          x̄ = 2 ℓ̄ (x − t) / n,  t̄ = −x̄                        any order: written in ops"""

    def forward(self, x: Any, t: Any, *, n: float) -> Any:
        self.n = n
        return kernels.squared_error(x, t, n)

    def backward(self, dloss: Tensor) -> tuple[Tensor | None, ...]:
        x, t = self.inputs
        dx = (x - t) * (dloss / self.n * 2)
        return dx, -dx if self.needs_input_grad[1] else None


class Softmax(Function):
    r"""y_i = e^{x_i} / Σ_j e^{x_j}

    ∂y_i/∂x_j = y_i (δ_ij − y_j)     so     x̄ = y ⊙ (ȳ − Σ_j ȳ_j y_j)               any order: written in ops
    """

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any, *, dim: int) -> Any:
        self.dim = dim
        return kernels.softmax(x, dim)

    def backward(self, dy: Tensor) -> Tensor:
        return SoftmaxGrad.apply(dy, *self.outputs, dim=self.dim)


class SoftmaxGrad(Function):
    r"""x̄ = y ⊙ (ȳ − Σ_j ȳ_j y_j)

    The cotangent x̿ of x̄ gives  y ⊙ (x̿ − Σ_j x̿_j y_j)  to ȳ and  x̿ ⊙ (ȳ − Σ_j ȳ_j y_j) − ȳ Σ_j x̿_j y_j  to y.
    """

    def forward(self, dy: Any, y: Any, *, dim: int) -> Any:
        self.dim = dim
        return kernels.softmax_backward(dy, y, dim)

    def backward(self, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, y = self.inputs
        needs_dy, needs_y = self.needs_input_grad
        to_y = None
        if needs_y:
            along = (dy * y).sum(self.dim, keepdim=True), (ddx * y).sum(self.dim, keepdim=True)
            to_y = ddx * (dy - along[0]) - dy * along[1]
        return SoftmaxGrad.apply(ddx, y, dim=self.dim) if needs_dy else None, to_y


class LogSoftmax(Function):
    r"""y_i = x_i − log Σ_j e^{x_j}

    ∂y_i/∂x_j = δ_ij − e^{y_j}       so     x̄ = ȳ − e^y Σ_i ȳ_i                       any order: written in ops
    """

    keeps_inputs, keeps_outputs = False, True

    def forward(self, x: Any, *, dim: int) -> Any:
        self.dim = dim
        return kernels.log_softmax(x, dim)

    def backward(self, dy: Tensor) -> Tensor:
        return LogSoftmaxGrad.apply(dy, *self.outputs, dim=self.dim)


class LogSoftmaxGrad(Function):
    r"""x̄ = ȳ − e^y Σ_j ȳ_j

    The cotangent x̿ of x̄ gives  x̿ − Σ_j x̿_j e^{y_j}  to ȳ and  −x̿ ⊙ e^y Σ_j ȳ_j  to y.
    """

    def forward(self, dy: Any, y: Any, *, dim: int) -> Any:
        self.dim = dim
        return kernels.log_softmax_backward(dy, y, dim)

    def backward(self, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, y = self.inputs
        needs_dy, needs_y = self.needs_input_grad
        weighted = ddx * y.exp()
        to_dy = ddx - weighted.sum(self.dim, keepdim=True) if needs_dy else None
        return to_dy, -weighted * dy.sum(self.dim, keepdim=True) if needs_y else None


class CrossEntropy(Function):
    r"""ℓ_n = −log p_{n, t_n},  p = softmax(x),  0 where t_n is ignored           x: (N, V), t: (N), ℓ: (N)

    ∂ℓ_n/∂x_nj = p_nj − [j = t_n]    so     x̄_nj = ℓ̄_n (p_nj − [j = t_n])
    """

    def forward(self, x: Any, *, target: np.ndarray, ignore_index: int) -> Any:
        self.target, self.ignore_index = target, ignore_index
        loss, self.statistics = kernels.cross_entropy(x, target, ignore_index=ignore_index)
        return loss

    def backward(self, dloss: Tensor) -> Tensor:
        (x,) = self.inputs
        options = {"ignore_index": self.ignore_index}
        dx = kernels.cross_entropy_backward(dloss.data, x.data, self.target, self.statistics, **options)
        return constant(dx)

    def composed(self, x: Tensor) -> Tensor:
        kept = constant(self.target != self.ignore_index)
        target = np.where(kept.data, self.target, 0)
        loss = -log_softmax(x, 1).gather(1, target[:, None]).squeeze(1)
        return where(kept, loss, 0.0)


class BinaryCrossEntropy(Function):
    r"""ℓ = −t log σ(x) − (1 − t) log(1 − σ(x)) = max(x, 0) − t x + log(1 + e^{−|x|}), or its sum over all elements

    x̄ = ℓ̄ (σ(x) − t),   t̄ = −ℓ̄ x
    """

    def forward(self, x: Any, t: Any, *, total: bool) -> Any:
        self.total = total
        return kernels.binary_cross_entropy(x, t, total=total)

    def backward(self, dloss: Tensor) -> tuple[Tensor | None, ...]:
        x, t = self.inputs
        needs_x, needs_t = self.needs_input_grad
        each = broadcast(dloss.data, x.shape)
        dx = constant(kernels.binary_cross_entropy_backward(each, x.data, t.data)) if needs_x else None
        return dx, -dloss * x if needs_t else None

    def composed(self, x: Tensor, t: Tensor) -> Tensor:
        loss = softplus(x, threshold=math.inf) - t * x
        return loss.sum() if self.total else loss


class ContinuousBernoulli(Function):
    r"""log p(x) = x l − A(l),  A(l) = log ∫₀¹ e^{ul} du = log((e^l − 1)/l)                        x in [0, 1]

    l̄ = ȳ (x − A′(l)),   x̄ = ȳ l;   A′(l) = 1/(1 − e^{−l}) − 1/l is the mean of x
    """

    def forward(self, x: Any, logits: Any) -> Any:
        log_moment, self.mean = log_moment_of_uniform(logits)
        return x * logits - log_moment

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, logits = self.inputs
        return constant(dy.data * logits.data), constant(dy.data * (x.data - self.mean))

    def composed(self, x: Tensor, logits: Tensor) -> Tensor:
        small = constant(np.abs(logits.data) < 1)
        near, m = where(small, logits, 0.0), where(small, 1.0, logits.abs())
        square = near * near
        large = where(constant(logits.data > 0), logits, 0.0) + log(-expm1(-m) / m)
        return x * logits - where(small, near * 0.5 + square * _power_series(square, LOG_MOMENT), large)


def log_moment_of_uniform(logits: Any) -> tuple[Any, Any]:
    """A(l) and A′(l) of `ContinuousBernoulli`, of an array."""
    small = np.abs(logits) < 1
    near, m = np.where(small, logits, 0), np.where(small, 1, np.abs(logits))  # for the series, and for the closed forms
    square, filled = near * near, -np.expm1(-m)  # 1 − e^{−|l|}
    value = np.where(small, near / 2 + square * _power_series(square, LOG_MOMENT), np.maximum(logits, 0) + np.log(filled / m))
    slope = np.where(small, 0.5 + near * _power_series(square, MEAN), 0.5 + np.copysign(1 / filled - 1 / m - 0.5, logits))
    return value, slope


def _power_series(x: Any, coefficients: tuple[float, ...]) -> Any:
    """Σ_n c_n xⁿ, of an array or a tensor"""
    y = coefficients[-1]
    for c in coefficients[-2::-1]:
        y = y * x + c
    return y


# A(l) = l/2 + Σ_{n≥1} B_{2n} / (2n (2n)!) l^{2n} for |l| < 2π, where near l = 0 the closed forms subtract numbers that are
# almost equal: for |l| < 1 these Bernoulli numbers give float64 all its digits.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
MEAN = tuple(b / math.factorial(2 * n) for n, b in enumerate(_BERNOULLI, 1))
LOG_MOMENT = tuple(c / (2 * n) for n, c in enumerate(MEAN, 1))


class StandardGaussianKL(Function):
    r"""KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − 1 − s),  s = log σ²

    μ̄ = ȳ μ,   s̄ = ½ ȳ (σ² − 1)
    """

    def forward(self, mean: Any, log_var: Any) -> Any:
        self.excess = np.exp(log_var) - 1  # σ² − 1
        return 0.5 * (mean * mean + self.excess - log_var)

    def backward(self, dy: Tensor) -> tuple[Tensor | None, ...]:
        return constant(dy.data * self.inputs[0].data), constant(dy.data * (0.5 * self.excess))

    def composed(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return 0.5 * (mean * mean + exp(log_var) - 1 - log_var)


class Reparameterized(Function):
    r"""z = μ + σ ⊙ ε,  σ = e^{s/2},  s = log σ²

    μ̄ = z̄,   s̄ = ½ z̄ ⊙ σ ⊙ ε,   ε̄ = z̄ ⊙ σ
    """

    def forward(self, mean: Any, log_var: Any, noise: Any) -> Any:
        self.sigma = np.exp(0.5 * log_var)
        self.shift = self.sigma * noise
        return mean + self.shift

    def backward(self, dz: Tensor) -> tuple[Tensor | None, ...]:
        needs_noise = self.needs_input_grad[2]
        return dz, constant(dz.data * (0.5 * self.shift)), constant(dz.data * self.sigma) if needs_noise else None

    def composed(self, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        return mean + exp(0.5 * log_var) * noise


class LayerNorm(Function):
    r"""y = x̂ ⊙ w + b,   x̂ = (x − μ) / σ,   σ² = variance of the row + ε,   μ its mean      x: (…, n), w, b: (n)

    With g = ȳ ⊙ w:      x̄ = (g − mean(g) − x̂ mean(g ⊙ x̂)) / σ,    w̄ = Σ_rows ȳ ⊙ x̂,    b̄ = Σ_rows ȳ
    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """

    def forward(self, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
        self.eps = eps
        self.matrix = math.prod(x.shape[:-1]), x.shape[-1]  # the shape of x as rows
        y, self.mean, self.rstd = kernels.layer_norm(x.reshape(self.matrix), weight, bias, eps=eps)
        return y.reshape(x.shape)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight, _ = self.inputs
        dy, rows = dy.data.reshape(self.matrix), x.data.reshape(self.matrix)
        dx, dw, db = kernels.layer_norm_backward(dy, rows, weight.data, self.mean, self.rstd)
        return constant(dx.reshape(x.shape)), constant(dw), constant(db)

    def composed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - mean(x, -1, keepdim=True)
        return centred * (mean(centred * centred, -1, keepdim=True) + self.eps).rsqrt() * weight + bias


class RMSNorm(Function):
    r"""y = x ρ ⊙ w,   ρ = 1 / √(mean(x²) + ε) of the row                    x: (…, n), w: (n)

    With g = ȳ ⊙ w, x̂ = x ρ:      x̄ = ρ (g − x̂ mean(g ⊙ x̂)),    w̄ = Σ_rows ȳ ⊙ x̂
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def forward(self, x: Any, weight: Any, *, eps: float) -> Any:
        self.eps = eps
        self.matrix = math.prod(x.shape[:-1]), x.shape[-1]  # the shape of x as rows
        y, self.rstd = kernels.rms_norm(x.reshape(self.matrix), weight, eps=eps)
        return y.reshape(x.shape)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight = self.inputs
        dx, dw = kernels.rms_norm_backward(dy.data.reshape(self.matrix), x.data.reshape(self.matrix), weight.data, self.rstd)
        return constant(dx.reshape(x.shape)), constant(dw)

    def composed(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * (mean(x * x, -1, keepdim=True) + self.eps).rsqrt() * weight


class GroupNorm(Function):
    r"""y = x̂ w_c + b_c,   x̂ = (x − μ) ρ,   ρ = 1 / √(σ² + ε)                x: (N, C, …), w, b: (C)

    μ, σ²: mean and variance of a sample's group of channels. With g = ȳ w_c:
        x̄ = ρ (g − mean(g) − x̂ mean(g ⊙ x̂)),    w̄_c = Σ ȳ ⊙ x̂,    b̄_c = Σ ȳ
    Source: Wu & He 2018, arXiv:1803.08494.
    """

    def forward(self, x: Any, weight: Any, bias: Any, *, groups: int, eps: float) -> Any:
        self.groups, self.eps = groups, eps
        y, self.mean, self.rstd = kernels.group_norm(x, weight, bias, groups, eps=eps)
        return y

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight, _ = self.inputs
        grads = kernels.group_norm_backward(dy.data, x.data, weight.data, self.mean, self.rstd)
        return tuple([constant(g) for g in grads])

    def composed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, across = x.reshape(x.shape[0], self.groups, x.numel() // (x.shape[0] * self.groups)), (-1,) + (1,) * (x.ndim - 2)
        centred = rows - mean(rows, -1, keepdim=True)
        normal = centred * (mean(centred * centred, -1, keepdim=True) + self.eps).rsqrt()
        return normal.reshape(x.shape) * weight.reshape(across) + bias.reshape(across)


class BatchNorm(Function):
    r"""y = x̂ w_c + b_c,   x̂ = (x − μ_c) ρ_c,   ρ = 1 / √(σ² + ε)            x: (N, C, …), w, b: (C)

    μ, σ²: mean and variance of a channel over batch and positions, which are left in `statistics`.
        x̄ = ρ w (ȳ − mean(ȳ) − x̂ mean(ȳ ⊙ x̂)),    w̄ = Σ ȳ ⊙ x̂,    b̄ = Σ ȳ
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """

    def forward(self, x: Any, weight: Any, bias: Any, *, eps: float, statistics: list) -> Any:
        self.eps = eps
        y, self.mean, self.rstd = kernels.batch_norm(x, weight, bias, eps=eps)
        statistics += self.mean, np.maximum(1 / np.square(self.rstd) - eps, 0)
        return y

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight, _ = self.inputs
        grads = kernels.batch_norm_backward(dy.data, x.data, weight.data, self.mean, self.rstd)
        return tuple([constant(g) for g in grads])

    def composed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dims, across = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
        centred = x - mean(x, dims, keepdim=True)
        normal = centred * (mean(centred * centred, dims, keepdim=True) + self.eps).rsqrt()
        return normal * weight.reshape(across) + bias.reshape(across)


class Dropout(Function):
    r"""y = x ⊙ z,  z = 1/(1 − p) with probability 1 − p, else 0

    x̄ = ȳ ⊙ z                    any order: the same op, which makes z again from its seed; it is never kept
    """

    keeps_inputs = False

    def forward(self, x: Any, *, p: float, seed: int) -> Any:
        self.noise = {"p": p, "seed": seed}
        return kernels.dropout(x, **self.noise)

    def backward(self, dy: Tensor) -> Tensor:
        return Dropout.apply(dy, **self.noise)


class Attention(Function):
    r"""O = W V,   W = Z ⊙ P,   P = softmax(S),   S = τ Q Kᵀ + M    Q: (…, T, D), K: (…, S, D), V: (…, S, E), M: (…, T, S)

    V̄ = Wᵀ Ō,   W̄ = Ō Vᵀ,   P̄ = Z ⊙ W̄,   S̄ = P ⊙ (P̄ − Σ_j P̄_j P_j) = P ⊙ (P̄ − Ō · O),   Q̄ = τ S̄ K,   K̄ = τ S̄ᵀ Q,   M̄ = S̄
    Z is 1, or that of dropout, 0 or 1/(1 − p), which `noise` (p, seed) makes again whenever it is wanted.
    A row of S that is −∞ throughout attends to nothing: O and all gradients are 0 there.
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; the form of S̄ is Dao et al. 2022, arXiv:2205.14135, §3.
    """

    keeps_outputs = True

    def forward(self, q: Any, k: Any, v: Any, *mask: Any, causal: bool, scale: float, noise: dict) -> Any:
        self.causal, self.scale, self.noise = causal, scale, noise
        options = {"causal": causal, "mask": mask[0] if mask else None, "scale": scale, **noise}
        out, self.statistics = kernels.attention(q, k, v, **options)
        return out

    def backward(self, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *mask = self.inputs
        grads = kernels.attention_backward(
            dout.data,
            q.data,
            k.data,
            v.data,
            self.outputs[0].data,
            self.statistics,
            causal=self.causal,
            mask=mask[0].data if mask else None,
            scale=self.scale,
            mask_grad=bool(mask) and self.needs_input_grad[3],
            **self.noise,
        )
        return tuple([None if g is None else constant(g) for g in grads])[: 3 + len(mask)]

    def composed(self, q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        return _composed_attention(q, k, v, *mask, causal=self.causal, scale=self.scale, noise=self.noise)


class SelfAttention(Function):
    r"""`Attention` of the Q, K, V that one projection leaves side by side: (…, T, 3, H, D) → (…, T, H, D)

    They are read where they lie and their gradients written so, and heads of O are left side by side: nothing is transposed.
    """

    keeps_outputs = True

    def forward(self, qkv: Any, *, causal: bool, scale: float, noise: dict) -> Any:
        self.causal, self.scale, self.noise = causal, scale, noise
        out, self.statistics = kernels.attention(*_heads(qkv), causal=causal, scale=scale, **noise)  # (…, H, T, D)
        return np.swapaxes(out, -2, -3)

    def backward(self, dout: Tensor) -> Tensor:
        qkv, dout, out = self.inputs[0].data, *(np.swapaxes(t.data, -2, -3) for t in (dout, self.outputs[0]))
        options = {"causal": self.causal, "scale": self.scale, **self.noise}
        if not devices.on_host(qkv):
            grads = kernels.attention_backward(dout, *_heads(qkv), out, self.statistics, **options)[:3]
            return constant(np.stack([np.swapaxes(g, -2, -3) for g in grads], axis=-3))
        dqkv = np.empty_like(qkv)
        kernels.attention_backward(dout, *_heads(qkv), out, self.statistics, **options, into=_heads(dqkv))
        return constant(dqkv)

    def composed(self, qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(-2, -3) for t in qkv.unbind(-3))  # (…, H, T, D)
        return _composed_attention(q, k, v, causal=self.causal, scale=self.scale, noise=self.noise).transpose(-2, -3)


def _heads(qkv: Any) -> tuple:
    """Q, K, V of an array (…, T, 3, H, D): views (…, H, T, D)."""
    return tuple([np.swapaxes(qkv[..., i, :, :], -2, -3) for i in range(3)])


def _composed_attention(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, causal: bool, scale: float, noise: dict) -> Tensor:
    scores = (q @ k.mT) * scale  # (…, T, S)
    if mask:
        scores = scores + mask[0]
    if causal:
        future = devices.beside(~np.tri(*scores.shape[-2:], dtype=bool), scores.data)
        scores = where(constant(future), -math.inf, scores)
    p = softmax(scores, -1)
    if noise:
        p = p * constant(kernels.attention_dropout(np.ones_like(p.data), p=noise["dropout_p"], seed=noise["seed"]))
    return p @ v


@method
def softmax(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """y_i = e^{x_i} / Σ_j e^{x_j} along `dim`; a row of −∞ gives zeros, value and gradient. Computed in `dtype`, if given."""
    x = floating("softmax", input) if dtype is None else cast(as_tensor(input), dtype)
    dims = dims_of("softmax", x, dim)
    return Softmax.apply(x, dim=dims[0]) if dims else x * 0 + 1


@method
def log_softmax(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """y_i = x_i − log Σ_j e^{x_j} along `dim`; a row of −∞ stays one. Computed in `dtype`, if given."""
    x = floating("log_softmax", input) if dtype is None else cast(as_tensor(input), dtype)
    dims = dims_of("log_softmax", x, dim)
    return LogSoftmax.apply(x, dim=dims[0]) if dims else x * 0


def class_losses(input: Tensor, target: np.ndarray, ignore_index: int) -> Tensor:
    """−log softmax(x)[target] for each row. (N, V), (N) → (N)"""
    return CrossEntropy.apply(input, target=target, ignore_index=ignore_index)


def _normalized(name: str, x: Tensor, normalized_shape: Any, **given: Any) -> tuple[int, ...]:
    """The shape over which `name` normalises, which the last dimensions of x and the parameters have to have."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[x.ndim - len(shape) :] != shape or len(shape) > x.ndim:
        raise ValueError(f"{name}: expected an input of shape (…, {', '.join(map(str, shape))}), got {x.shape}")
    for what, p in given.items():
        if p is not None and as_tensor(p).shape != shape:
            raise ValueError(f"{name}: expected a {what} of shape {shape}, got {as_tensor(p).shape}")
    return shape


def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, with mean and variance over the last dimensions, `normalized_shape`.

    x: (…, *normalized_shape) → the same. Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    x = floating("layer_norm", input)
    shape = _normalized("layer_norm", x, normalized_shape, weight=weight, bias=bias)
    n = math.prod(shape)
    w = constant(np.ones_like(x.data, shape=n)) if weight is None else as_tensor(weight)
    b = constant(np.zeros_like(x.data, shape=n)) if bias is None else as_tensor(bias)
    x, w, b = operands("layer_norm", x, w, b)
    if len(shape) == 1:
        return LayerNorm.apply(x, w, b, eps=eps)
    rows = x.reshape(*x.shape[: x.ndim - len(shape)], n)
    return LayerNorm.apply(rows, w.reshape(n), b.reshape(n), eps=eps).reshape(x.shape)


def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    """y = x / √(mean(x²) + ε) ⊙ weight over the last dimensions, `normalized_shape`.  ε: the dtype's epsilon unless given.

    x: (…, *normalized_shape) → the same. Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    x = floating("rms_norm", input)
    shape = _normalized("rms_norm", x, normalized_shape, weight=weight)
    n = math.prod(shape)
    w = constant(np.ones_like(x.data, shape=shape)) if weight is None else as_tensor(weight)
    x, w = operands("rms_norm", x, w)
    if not x.numel():
        return x * w
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    if len(shape) == 1:
        return RMSNorm.apply(x, w, eps=eps)
    rows = x.reshape(*x.shape[: x.ndim - len(shape)], n)
    return RMSNorm.apply(rows, w.reshape(n), eps=eps).reshape(x.shape)


def sample_statistics_norm(input: Tensor, groups: int, weight: Any, bias: Any, eps: float) -> Tensor:
    """The node behind `functional.group_norm`.  (N, C, …) → the same, not empty"""
    ones = constant(np.ones_like(input.data, shape=input.shape[1])) if weight is None else as_tensor(weight)
    zeros = constant(np.zeros_like(input.data, shape=input.shape[1])) if bias is None else as_tensor(bias)
    return GroupNorm.apply(*operands("group_norm", input, ones, zeros), groups=groups, eps=eps)


def batch_statistics_norm(input: Tensor, weight: Any, bias: Any, eps: float) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """The node behind `functional.batch_norm` in training, and its mean and variance.  (N, C, …) → the same, (C), (C)"""
    ones = constant(np.ones_like(input.data, shape=input.shape[1])) if weight is None else as_tensor(weight)
    zeros = constant(np.zeros_like(input.data, shape=input.shape[1])) if bias is None else as_tensor(bias)
    statistics: list[np.ndarray] = []
    y = BatchNorm.apply(*operands("batch_norm", input, ones, zeros), eps=eps, statistics=statistics)
    return y, *statistics


def _noise(dropout_p: float, seed: int) -> dict:
    return {"dropout_p": dropout_p, "seed": seed} if dropout_p else {}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The node behind `functional.scaled_dot_product_attention`, for tensors whose shapes fit and that are of one dtype."""
    inputs = query, key, value, *(() if mask is None else (mask,))
    return Attention.apply(*inputs, causal=causal, scale=scale, noise=_noise(dropout_p, seed))


def self_attention(qkv: Tensor, *, causal: bool, scale: float, dropout_p: float = 0.0, seed: int = 0) -> Tensor:
    """The node behind `functional.self_attention`.     (…, T, 3, H, D) → (…, T, H, D)"""
    return SelfAttention.apply(qkv, causal=causal, scale=scale, noise=_noise(dropout_p, seed))
