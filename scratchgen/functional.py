r"""The functions that layers and models are made of, without parameters: one public namespace, F.

Names, arguments, defaults and edge cases are those of `torch.nn.functional`, without its deprecated arguments.
Defined here: activations, norms, embedding, dropout, attention, as stable compositions of ops. The imports say where all
else is defined: losses and likelihoods in `losses.py`, convolution, pooling and resampling, and what is an op by itself,
in `ops/`. At a kink the first derivative is PyTorch's; the second is that of the side which the first is taken from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen import random
from scratchgen.losses import (
    bernoulli_log_prob,
    binary_cross_entropy_with_logits,
    continuous_bernoulli_log_prob,
    cross_entropy,
    discretized_logistic_log_prob,
    gaussian_log_prob,
    gaussian_nll_loss,
    huber_loss,
    kl_bernoulli,
    kl_div,
    kl_gaussian,
    kl_standard_gaussian,
    l1_loss,
    mse_loss,
    nll_loss,
    reparameterize,
    smooth_l1_loss,
)
from scratchgen.ops import activation, fused
from scratchgen.ops.choice import leaky_relu, relu, where
from scratchgen.ops.convolution import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from scratchgen.ops.elementwise import gelu, sigmoid, softplus, tanh
from scratchgen.ops.fused import layer_norm, log_softmax, rms_norm, softmax
from scratchgen.ops.matrix import linear
from scratchgen.ops.operands import as_tensor, floating, operands
from scratchgen.ops.pooling import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d, unfold
from scratchgen.ops.reduce import norm
from scratchgen.ops.resampling import adaptive_avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle
from scratchgen.ops.shape import pad
from scratchgen.tensors import Tensor, constant

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "bernoulli_log_prob",
    "binary_cross_entropy_with_logits",
    "celu",
    "continuous_bernoulli_log_prob",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cosine_similarity",
    "cross_entropy",
    "discretized_logistic_log_prob",
    "dropout",
    "elu",
    "embedding",
    "gaussian_log_prob",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "group_norm",
    "hardtanh",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_bernoulli",
    "kl_div",
    "kl_gaussian",
    "kl_standard_gaussian",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "max_pool1d",
    "max_pool2d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "prelu",
    "relu",
    "reparameterize",
    "rms_norm",
    "scaled_dot_product_attention",
    "self_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
    "unfold",
]


# ---------------------------------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------------------------------


def prelu(input: Any, weight: Any) -> Tensor:
    """y = x for x > 0, else w · x, with one w for all or one for each channel (dimension 1).

    He et al. 2015, arXiv:1502.01852.
    """
    x, w = operands("prelu", as_tensor(input), as_tensor(weight))
    if w.numel() != 1 and (x.ndim < 2 or w.shape != x.shape[1:2]):
        raise ValueError(f"prelu: expected one weight, or one for each channel of shape {x.shape}, got shape {w.shape}")
    w = w.reshape((-1,) + (1,) * max(x.ndim - 2, 0)) if w.numel() != 1 else w.reshape(())
    return where(x > 0, x, w * x)


def elu(input: Any, alpha: float = 1.0) -> Tensor:
    """y = x for x > 0, else α (eˣ − 1).  Clevert, Unterthiner & Hochreiter 2015, arXiv:1511.07289."""
    return activation.elu(input, alpha)


def celu(input: Any, alpha: float = 1.0) -> Tensor:
    """y = x for x > 0, else α (e^{x/α} − 1).  Barron 2017, arXiv:1704.07483."""
    if alpha == 0:
        raise ValueError("celu: expected alpha other than 0")
    return activation.elu(input, alpha, rate=1 / alpha)


def selu(input: Any) -> Tensor:
    """y = λ elu(x; α), the λ and α that keep mean 0 and variance 1.  Klambauer et al. 2017, arXiv:1706.02515."""
    return activation.elu(input, 1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946)


def silu(input: Any) -> Tensor:
    """y = x σ(x).  Elfwing, Uchibe & Doya 2017, arXiv:1702.03118."""
    return activation.silu(input)


def mish(input: Any) -> Tensor:
    """y = x tanh(log(1 + eˣ)).  Misra 2019, arXiv:1908.08681."""
    return activation.mish(input)


def logsigmoid(input: Any) -> Tensor:
    """y = log σ(x) = −log(1 + e⁻ˣ), finite for every finite x"""
    return activation.logsigmoid(input)


def softsign(input: Any) -> Tensor:
    """y = x / (1 + |x|)"""
    x = floating("softsign", input)
    return x / (1 + x.abs())


def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """y = x held between two bounds; the gradient on a bound is 0, as PyTorch has it (`clamp` has 1 there)."""
    x = floating("hardtanh", input)
    if min_val > max_val:
        raise ValueError(f"hardtanh: expected min_val not above max_val, got {min_val} and {max_val}")
    inside = (x.data > min_val) & (x.data < max_val)
    return where(constant(inside), x, constant(np.clip(x.data, min_val, max_val).astype(x.dtype)))


def glu(input: Any, dim: int = -1) -> Tensor:
    """y = a σ(b), a and b the two halves of x along `dim`.  Dauphin et al. 2016, arXiv:1612.08083."""
    x = floating("glu", input)
    if not x.ndim or x.shape[dim] % 2:
        raise ValueError(f"glu: expected an even length in dimension {dim}, got shape {x.shape}")
    return activation.Glu.apply(x, dim=dim) if x.numel() else x.split(max(x.shape[dim] // 2, 1), dim)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------------------------------


def _scaled(y: Tensor, weight: Any, bias: Any) -> Tensor:
    """y ⊙ weight + bias, one of each for a channel (dimension 1)."""
    shape = (-1,) + (1,) * (y.ndim - 2)
    if weight is not None:
        y = y * as_tensor(weight).reshape(shape)
    return y if bias is None else y + as_tensor(bias).reshape(shape)


def _channelwise(name: str, x: Tensor, **parameters: Any) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: expected an input of shape (N, C, …), got {x.shape}")
    for what, p in parameters.items():
        if p is not None and as_tensor(p).shape != x.shape[1:2]:
            raise ValueError(f"{name}: expected {what} of shape {x.shape[1:2]}, got {as_tensor(p).shape}")


def batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias for each channel (dimension 1)

    Training: μ, σ² over the batch and all positions, and the running ones move by `momentum` towards them (in place,
    the variance in its unbiased form). Otherwise the running ones. x: (N, C, …). Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    x = floating("batch_norm", input)
    _channelwise("batch_norm", x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: expected running_mean and running_var outside training")
        return _scaled((x - running_mean.reshape(shape)) * (running_var.reshape(shape) + eps).rsqrt(), weight, bias)
    n = x.numel() // x.shape[1] if x.shape[1] else 0
    if n == 1:
        raise ValueError(f"batch_norm: expected more than 1 value per channel when training, got shape {x.shape}")
    y, mu, var = fused.batch_statistics_norm(x, weight, bias, eps)
    if running_mean is not None and n:
        running_mean.copy_((1 - momentum) * running_mean.data + momentum * mu)
    if running_var is not None and n:
        running_var.copy_((1 - momentum) * running_var.data + momentum * (var * (n / (n - 1))))
    return y


def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, μ and σ² over each sample's group of channels.

    x: (N, C, …). Wu & He 2018, arXiv:1803.08494.
    """
    x = floating("group_norm", input)
    _channelwise("group_norm", x, weight=weight, bias=bias)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"group_norm: expected a number of groups that divides {x.shape[1]} channels, got {num_groups}")
    return fused.sample_statistics_norm(x, num_groups, weight, bias, eps) if x.numel() else _scaled(x, weight, bias)


def instance_norm(
    input: Any,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x − μ) / √(σ² + ε) ⊙ weight + bias, μ and σ² over the positions of each channel of each sample.

    x: (N, C, …). Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """
    x = floating("instance_norm", input)
    _channelwise("instance_norm", x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    n = math.prod(x.shape[2:])
    if n == 1:
        raise ValueError(f"instance_norm: expected more than 1 position per channel, got shape {x.shape}")
    if running_mean is not None and running_var is not None and x.numel():
        rows = x.data.reshape(x.shape[0], x.shape[1], n)
        running_mean.copy_((1 - momentum) * running_mean.data + momentum * rows.mean(-1).mean(0))
        running_var.copy_((1 - momentum) * running_var.data + momentum * rows.var(-1, ddof=1).mean(0))
    return group_norm(x, max(x.shape[1], 1), weight, bias, eps)


def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """y = x / max(‖x‖_p, ε) along `dim`"""
    x = floating("normalize", input)
    return x / norm(x, p, dim, keepdim=True).clamp(min=eps)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """y = x₁ · x₂ / (max(‖x₁‖, ε) max(‖x₂‖, ε)) along `dim`; the two broadcast.

    The gradient is that of the formula, also where ε is the larger (PyTorch's goes through ‖x‖ there).
    """
    a, b = operands("cosine_similarity", as_tensor(x1), as_tensor(x2))
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = floating("cosine_similarity", a).expand(shape), floating("cosine_similarity", b).expand(shape)
    return ((a / norm(a, 2, dim, True).clamp(min=eps)) * (b / norm(b, 2, dim, True).clamp(min=eps))).sum(dim)


# ---------------------------------------------------------------------------------------------------------------------
# Tables, dropout, attention
# ---------------------------------------------------------------------------------------------------------------------


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """y_i = weight[input_i]; the rows of equal indices add up their gradients, the row `padding_idx` gets none.

    input: any shape of integers, weight: (V, n) → (*input.shape, n). Raises IndexError outside 0 … V − 1; of indices on a
    device, which would have to be waited for, gives NaN there instead.
    """
    w, i = as_tensor(weight), as_tensor(input)
    if w.ndim != 2 or i.dtype.kind not in "iu":
        raise ValueError(f"embedding: expected integers and a weight of shape (V, n), got {i.dtype} and {w.shape}")
    if devices.on_host(i.data) and i.numel() and (i.data.min() < 0 or i.data.max() >= w.shape[0]):
        raise IndexError(f"embedding: expected indices from 0 to {w.shape[0] - 1}, got {i.data.min()} … {i.data.max()}")
    y = w[i]
    if padding_idx is not None:
        if not -w.shape[0] <= padding_idx < w.shape[0]:
            raise ValueError(f"embedding: expected padding_idx from {-w.shape[0]} to {w.shape[0] - 1}, got {padding_idx}")
        padding = constant((i.data == padding_idx % w.shape[0])[..., None])
        y = where(padding, y.detach(), y)
    return y


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """y_{…, c} = [tensor = c] as int64;  as many classes as needed without `num_classes`."""
    t = as_tensor(tensor)
    if t.dtype.kind not in "iu":
        raise TypeError(f"one_hot: expected integers, got {t.dtype}")
    if num_classes == -1:
        if not t.numel():
            raise ValueError("one_hot: expected num_classes, as an empty tensor does not show how many there are")
        num_classes = int(t.data.max()) + 1
    if t.numel() and (t.data.min() < 0 or t.data.max() >= num_classes):
        raise ValueError(f"one_hot: expected classes from 0 to {num_classes - 1}, got {t.data.min()} … {t.data.max()}")
    return constant((t.data[..., None] == devices.beside(np.arange(num_classes), t.data)).astype(np.int64))


def dropout(input: Any, p: float = 0.5, training: bool = True, *, generator: np.random.Generator | None = None) -> Tensor:
    """y = x ⊙ m / (1 − p), m = 1 with probability 1 − p; x itself outside training ("inverted" dropout: E[y] = x).

    Srivastava et al. 2014.
    """
    x = as_tensor(input)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: expected p from 0 to 1, got {p}")
    if not training or p == 0:
        return x
    return fused.Dropout.apply(floating("dropout", x), p=p, seed=_seed(generator))


def _seed(generator: np.random.Generator | None) -> int:
    """For the kernels, which draw by counting from a seed: the same numbers on every backend and device."""
    return int(random.generator(generator).integers(2**63))


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    generator: np.random.Generator | None = None,
) -> Tensor:
    r"""softmax(Q Kᵀ / √D + M) V

    query (…, T, D), key (…, S, D), value (…, S, E) → (…, T, E); leading dimensions broadcast. `attn_mask` (…, T, S) is
    added, or, if boolean, says which pairs may attend. `is_causal`: row t sees only columns ≤ t. `scale` replaces 1/√D.
    `enable_gqa`: several query heads (dimension −3) share a key head. `dropout_p` drops weights (always: pass 0 in
    evaluation). A row that may attend to nothing gives zeros. Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    q, k, v = operands("attention", as_tensor(query), as_tensor(key), as_tensor(value))
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"attention: expected query (…, T, D), key (…, S, D), value (…, S, E), got {q.shape}, {k.shape}, {v.shape}"
        )
    if attn_mask is not None and is_causal:
        raise ValueError("attention: expected attn_mask or is_causal, got both")
    if enable_gqa:
        if min(q.ndim, k.ndim, v.ndim) < 3 or k.shape[-3] != v.shape[-3] or q.shape[-3] % k.shape[-3]:
            raise ValueError(f"attention: expected query heads to be a multiple of the key heads, got {q.shape} and {k.shape}")
    mask = None if attn_mask is None else _additive(as_tensor(attn_mask), q.dtype)
    if enable_gqa:  # query head h becomes (key head, its index among the query heads that share this key head)
        heads, shared = k.shape[-3], q.shape[-3] // k.shape[-3]
        q, k, v = q.reshape(*q.shape[:-3], heads, shared, *q.shape[-2:]), k.unsqueeze(-3), v.unsqueeze(-3)
    try:
        if enable_gqa and mask is not None and mask.ndim > 2:
            split = (1, 1) if mask.shape[-3] == 1 else (heads, shared)
            mask = mask.reshape(*mask.shape[:-3], *split, *mask.shape[-2:])
        batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        pairs = batch + (q.shape[-2], k.shape[-2])
        if mask is not None and np.broadcast_shapes(mask.shape, pairs) != pairs:
            raise ValueError
    except ValueError:
        shapes = f"{q.shape}, {k.shape}, {v.shape}" + ("" if mask is None else f" with a mask of shape {mask.shape}")
        raise ValueError(f"attention: expected shapes that broadcast, got {shapes}") from None
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    noise = _noise(dropout_p, generator)
    y = fused.attention(q, k, v, mask, causal=is_causal, scale=scale, **noise)
    return y.reshape(*y.shape[:-4], heads * shared, *y.shape[-2:]) if enable_gqa else y


def self_attention(
    qkv: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    generator: np.random.Generator | None = None,
) -> Tensor:
    r"""softmax(Q Kᵀ / √D) V of the Q, K, V that one projection leaves side by side, heads side by side again.

    qkv (…, T, 3, H, D) → (…, T, H, D): what `scaled_dot_product_attention` gives for its parts (…, H, T, D), but nothing is
    transposed, and the gradient comes as one array. ValueError for another shape.
    """
    qkv = floating("self_attention", qkv)
    if qkv.ndim < 4 or qkv.shape[-3] != 3:
        raise ValueError(f"self_attention: expected Q, K and V as (…, T, 3, H, D), got {qkv.shape}")
    scale = max(qkv.shape[-1], 1) ** -0.5 if scale is None else scale
    return fused.self_attention(qkv, causal=is_causal, scale=scale, **_noise(dropout_p, generator))


def _noise(dropout_p: float, generator: np.random.Generator | None) -> dict[str, Any]:
    """A seed for the dropout of attention weights, if there is one."""
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"attention: expected dropout_p from 0 to 1, got {dropout_p}")
    return {"dropout_p": dropout_p, "seed": _seed(generator)} if dropout_p else {}


def _additive(mask: Tensor, dtype: np.dtype) -> Tensor:
    """A mask to add: 0 where a boolean mask allows, −∞ where it forbids."""
    if mask.dtype == np.bool_:
        return constant(np.where(mask.data, 0, -np.inf).astype(dtype))
    return operands("attention mask", mask, constant(devices.number(0, dtype, mask.data)))[0]
