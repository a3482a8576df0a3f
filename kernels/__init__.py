"""The kernels: functions of arrays, which know nothing of tensors or gradients. This file is the only way to them.

Each kernel is a function below, with its meaning; the function of the same name in the chosen backend computes it:

    layer_norm in kernels/reference.py    after `use("reference")`: NumPy, and the oracle of the tests
    layer_norm in kernels/cpu/rows.py     after `use("cpu")`, or without any choice: compiled with Numba
    layer_norm in kernels/cuda/rows.py    for arrays in a GPU's memory, whatever was chosen

The subject `rows`, and with it the file, stands in the function's last line. SCRATCHGEN_KERNELS makes the first choice. Where
Numba cannot compile, the reference computes.

No kernel writes to its arguments, except where its description says so. Arrays of one call share an element type. The compiled
kernels are for float32 and float64, on a GPU for float32; the reference computes what they do not cover (other types, empty
arrays, rare options). Arrays of two devices in one call raise TypeError.

Letters: x, y are input and output, x̄ = ∂loss/∂x is the gradient that arrives at or leaves x; in the code, x̄ is `dx`. N counts
samples or rows, C channels, G groups, H × W the pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernels.backends import backend, backend_of, chosen, on_device, open_device, use

__all__ = [
    "adam",
    "adamw",
    "add_to_rows",
    "attention",
    "attention_backward",
    "attention_dropout",
    "avg_pool",
    "avg_pool_backward",
    "backend",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "chosen",
    "column_sums",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "einsum",
    "elu",
    "elu_backward",
    "embedding",
    "erf",
    "gelu",
    "gelu_backward",
    "glu",
    "glu_backward",
    "group_norm",
    "group_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_softmax",
    "log_softmax_backward",
    "matmul",
    "max_pool",
    "max_pool_backward",
    "mish",
    "mish_backward",
    "nearest",
    "nearest_backward",
    "on_device",
    "open_device",
    "rms_norm",
    "rms_norm_backward",
    "scale",
    "scale_rows",
    "scatter_add",
    "sigmoid",
    "sigmoid_backward",
    "sign",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "softplus",
    "softplus_backward",
    "squared_error",
    "sum_of_squares",
    "sum_over",
    "tanh_backward",
    "use",
]

Array = Any  # numpy.ndarray, or an array in a GPU's memory
Sizes = tuple[int, ...]  # one number for each spatial dimension


# ---------------------------------------------------------------------------------------------------------------------
# Matrix products
# ---------------------------------------------------------------------------------------------------------------------


def matmul(a: Array, b: Array, *, out: Array | None = None, bias: Array | None = None, activation: str | None = None) -> Array:
    """The product of matrices, with what follows it in a linear layer.

    C = f(A B + bias),  f one of None, "relu", "gelu" (exact), "gelu_tanh".     (…, m, k), (…, k, n) → (…, m, n)

    The leading dimensions broadcast. `out`: the array C, which may be A or B. Raises ValueError for another activation.
    """
    return backend_of(a, b).matmul.matmul(a, b, out=out, bias=bias, activation=activation)


def einsum(equation: str, *operands: Array) -> Array:
    """The sum, over the labels that the result does not name, of the product of the operands: "ab,bc->ac" is A B.

    The equation names its result, and no label twice in one operand.
    """
    return backend_of(*operands).matmul.einsum(equation, *operands)


# ---------------------------------------------------------------------------------------------------------------------
# Activations and other functions of each element: y, dy and dx have the shape of x
# ---------------------------------------------------------------------------------------------------------------------
# They are finite wherever the mathematics is: at ±∞ each has its limit, and so has its slope.


def erf(x: Array) -> Array:
    """2/√π ∫₀ˣ e^{−t²} dt"""
    return backend_of(x).elementwise.erf(x)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    """y = x Φ(x), Φ the normal distribution function;  "tanh": Φ(x) ≈ ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """
    return backend_of(x).elementwise.gelu(x, approximate=approximate)


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Array:
    """x̄ = ȳ (Φ + x Φ')"""
    return backend_of(dy, x).elementwise.gelu_backward(dy, x, approximate=approximate)


def leaky_relu(x: Array, slope: float) -> Array:
    """y = x for x > 0, else slope · x;  slope 0 is ReLU, of −∞ too"""
    return backend_of(x).images.leaky_relu(x, slope)


def leaky_relu_backward(dy: Array, y: Array, slope: float) -> Array:
    """x̄ = ȳ for y > 0, else slope · ȳ, 0 for slope 0 whatever ȳ:  for slope ≥ 0, y has the sign of x"""
    return backend_of(dy, y).images.leaky_relu_backward(dy, y, slope)


def sigmoid(x: Array) -> Array:
    """y = σ(x) = 1 / (1 + e^{−x})"""
    return backend_of(x).activations.sigmoid(x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """x̄ = ȳ y (1 − y)"""
    return backend_of(dy, y).activations.sigmoid_backward(dy, y)


def sign(x: Array) -> Array:
    """1 for x > 0, −1 for x < 0, 0 for 0, NaN for NaN"""
    return backend_of(x).activations.sign(x)


def tanh_backward(dy: Array, y: Array) -> Array:
    """x̄ = ȳ (1 − y²)"""
    return backend_of(dy, y).activations.tanh_backward(dy, y)


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """y = log(1 + e^{βx}) / β = (max(βx, 0) + log(1 + e^{−|βx|})) / β;  y = x where βx > threshold"""
    return backend_of(x).activations.softplus(x, beta=beta, threshold=threshold)


def softplus_backward(dy: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """x̄ = ȳ σ(βx);  ȳ where βx > threshold"""
    return backend_of(dy, x).activations.softplus_backward(dy, x, beta=beta, threshold=threshold)


def elu(x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    """y = s x for x > 0, else s α (e^{rx} − 1):  ELU for s = r = 1, SELU with its own s and α, CELU for r = 1/α"""
    return backend_of(x).activations.elu(x, alpha=alpha, scale=scale, rate=rate)


def elu_backward(dy: Array, x: Array, *, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Array:
    """x̄ = s ȳ for x > 0, else s α r e^{rx} ȳ"""
    return backend_of(dy, x).activations.elu_backward(dy, x, alpha=alpha, scale=scale, rate=rate)


def silu(x: Array) -> Array:
    """y = x σ(x);  0 at −∞"""
    return backend_of(x).activations.silu(x)


def silu_backward(dy: Array, x: Array) -> Array:
    """x̄ = ȳ σ (1 + x (1 − σ))"""
    return backend_of(dy, x).activations.silu_backward(dy, x)


def mish(x: Array) -> Array:
    """y = x tanh(log(1 + eˣ));  0 at −∞"""
    return backend_of(x).activations.mish(x)


def mish_backward(dy: Array, x: Array) -> Array:
    """x̄ = ȳ (t + x (1 − t²) σ(x)),  t = tanh(log(1 + eˣ))"""
    return backend_of(dy, x).activations.mish_backward(dy, x)


def glu(x: Array, axis: int) -> Array:
    """y = a σ(b), a and b the halves of x along an axis.     (…, 2n, …) → (…, n, …)"""
    return backend_of(x).activations.glu(x, axis)


def glu_backward(dy: Array, x: Array, axis: int) -> Array:
    """ā = ȳ σ(b),  b̄ = ȳ a σ(b) (1 − σ(b)).     (…, n, …), (…, 2n, …) → (…, 2n, …)"""
    return backend_of(dy, x).activations.glu_backward(dy, x, axis)


def dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    """y_i = x_i / (1 − p) with probability 1 − p, else 0; the same elements for the same seed, stream and size.

    So its own backward pass. Word w of counter c of a counter-based generator (`reference.philox`) decides on element w Q + c,
    Q a quarter of the elements, rounded up: the same elements in all backends.
    """
    return backend_of(x).elementwise.dropout(x, p=p, seed=seed, stream=stream)


# ---------------------------------------------------------------------------------------------------------------------
# Sums, and rows with a constant each
# ---------------------------------------------------------------------------------------------------------------------


def sum_over(x: Array, axes: Sizes, divisor: float = 1) -> Array:
    """y = Σ x / divisor over the axes (not negative ones), which y lacks; added up, and divided, in float64"""
    return backend_of(x).reductions.sum_over(x, axes, divisor)


def squared_error(x: Array, t: Array, divisor: float = 1) -> Array:
    """ℓ = Σ (x − t)² / divisor over all elements; added up, and divided, in float64"""
    return backend_of(x, t).elementwise.squared_error(x, t, divisor)


def add_to_rows(x: Array, s: Array) -> Array:
    """y_ij = x_ij + s_i.     (N, n), (N) → (N, n)"""
    return backend_of(x, s).elementwise.add_to_rows(x, s)


def scale_rows(x: Array, s: Array) -> Array:
    """y_ij = x_ij s_i.     (N, n), (N) → (N, n)"""
    return backend_of(x, s).elementwise.scale_rows(x, s)


def column_sums(x: Array) -> Array:
    """y = Σ_rows x; the sums of blocks of rows are added in float64.     (N, n) → (n)"""
    return backend_of(x).rows.column_sums(x)


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and losses
# ---------------------------------------------------------------------------------------------------------------------


def softmax(x: Array, axis: int = -1) -> Array:
    """y_i = e^{x_i} / Σ_j e^{x_j} along an axis;  −∞ everywhere gives zeros"""
    return backend_of(x).rows.softmax(x, axis)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """x̄ = y ⊙ (ȳ − Σ_j ȳ_j y_j)"""
    return backend_of(dy, y).activations.softmax_backward(dy, y, axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """y_i = x_i − log Σ_j e^{x_j} along an axis;  −∞ everywhere stays −∞"""
    return backend_of(x).rows.log_softmax(x, axis)


def log_softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    """x̄ = ȳ − e^y Σ_j ȳ_j"""
    return backend_of(dy, y).activations.log_softmax_backward(dy, y, axis)


def cross_entropy(x: Array, target: Array, *, ignore_index: int = -100) -> tuple[Array, Array]:
    """The cross-entropy of logits with classes, and what its backward pass makes the probabilities from again.

    ℓ_n = log Σ_j e^{x_nj} − x_{n, t_n},  0 where t_n = ignore_index.     (N, V), (N) → (N), (2, N)

    The second result holds m_n = max_j x_nj and 1/Σ_j e^{x_nj − m_n}, kept apart, since the logarithm of the sum is rounded
    away beside a large m. A class out of range raises IndexError; on a device, where the host would have to wait for that,
    its loss is NaN.
    """
    return backend_of(x, target).rows.cross_entropy(x, target, ignore_index=ignore_index)


def cross_entropy_backward(dloss: Array, x: Array, target: Array, statistics: Array, *, ignore_index: int = -100) -> Array:
    """x̄_nj = ℓ̄_n (p_nj − [j = t_n]),  p_nj = e^{x_nj − m_n} / Σ_n;  0 where t_n = ignore_index.     (N), (N, V), … → (N, V)"""
    rows = backend_of(dloss, x, target, statistics).rows
    return rows.cross_entropy_backward(dloss, x, target, statistics, ignore_index=ignore_index)


def binary_cross_entropy(x: Array, t: Array, *, total: bool = False) -> Array:
    """ℓ = −t log σ(x) − (1 − t) log(1 − σ(x)) = max(x, 0) − t x + log(1 + e^{−|x|}), for each element, or the sum of all.

    Of x = ±∞ it is 0 where t is 1 or 0 as x says, and ∞ for any other t.
    """
    return backend_of(x, t).elementwise.binary_cross_entropy(x, t, total=total)


def binary_cross_entropy_backward(dloss: Array, x: Array, t: Array) -> Array:
    """x̄ = ℓ̄ (σ(x) − t)"""
    return backend_of(dloss, x, t).elementwise.binary_cross_entropy_backward(dloss, x, t)


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation: x̂ = (x − μ) ρ
# ---------------------------------------------------------------------------------------------------------------------


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """y = (x − μ) ρ ⊙ w + b,  μ = mean(x),  ρ = 1/√(mean((x − μ)²) + ε) of each row; and μ and ρ.

    (N, n), (n), (n) → (N, n), (N, 1), (N, 1).     Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    return backend_of(x, weight, bias).rows.layer_norm(x, weight, bias, eps=eps)


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """With g = ȳ ⊙ w:  x̄ = ρ (g − mean(g) − x̂ mean(g ⊙ x̂)),  w̄ = Σ_rows ȳ ⊙ x̂,  b̄ = Σ_rows ȳ"""
    return backend_of(dy, x, weight, mean, rstd).rows.layer_norm_backward(dy, x, weight, mean, rstd)


def rms_norm(x: Array, weight: Array, *, eps: float = 1e-5) -> tuple[Array, Array]:
    """y = x ρ ⊙ w,  ρ = 1/√(mean(x²) + ε) of each row; and ρ.

    (N, n), (n) → (N, n), (N, 1).     Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    return backend_of(x, weight).rows.rms_norm(x, weight, eps=eps)


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """With g = ȳ ⊙ w, x̂ = x ρ:  x̄ = ρ (g − x̂ mean(g ⊙ x̂)),  w̄ = Σ_rows ȳ ⊙ x̂"""
    return backend_of(dy, x, weight, rstd).rows.rms_norm_backward(dy, x, weight, rstd)


def batch_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """y = (x − μ_c) ρ_c w_c + b_c,  mean and variance of each channel over everything else; and μ and ρ.

    (N, C, …), (C), (C) → (N, C, …), (C), (C).     Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    return backend_of(x, weight, bias).rows.batch_norm(x, weight, bias, eps=eps)


def batch_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """x̄ = ρ_c w_c (ȳ − mean(ȳ) − x̂ mean(ȳ ⊙ x̂)),  w̄_c = Σ ȳ ⊙ x̂,  b̄_c = Σ ȳ"""
    return backend_of(dy, x, weight, mean, rstd).rows.batch_norm_backward(dy, x, weight, mean, rstd)


def group_norm(x: Array, weight: Array, bias: Array, groups: int, *, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """y = (x − μ) ρ w_c + b_c,  mean and variance of each sample's group of channels; and μ and ρ.

    (N, C, …), (C), (C) → (N, C, …), (N, G), (N, G).     Source: Wu & He 2018, arXiv:1803.08494.
    """
    return backend_of(x, weight, bias).groups.group_norm(x, weight, bias, groups, eps=eps)


def group_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """With g = ȳ w_c:  x̄ = ρ (g − mean(g) − x̂ mean(g x̂)),  w̄_c = Σ ȳ x̂,  b̄_c = Σ ȳ"""
    return backend_of(dy, x, weight, mean, rstd).groups.group_norm_backward(dy, x, weight, mean, rstd)


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
) -> tuple[Array, Array]:
    """Each query takes the mean of the values, weighted by how well the keys fit it; and what the backward pass needs.

    O = Z ⊙ softmax(S) V,  S = τ Q Kᵀ + M.     (…, T, D), (…, S, D), (…, S, E) → (…, T, E), (2, …, T, 1)

    τ is `scale`, without it 1/√D; M is `mask`, and −∞ above the diagonal if causal; Z is that of `attention_dropout`, 1 without
    dropout. The second result holds m_i = max_j S_ij and 1/Σ_j e^{S_ij − m_i}, from which the backward pass makes softmax(S)
    again. A query that may attend to nothing gives zeros, m 0 and Σ 1. The leading dimensions broadcast.

    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1; without the T × S matrix: Dao et al. 2022, arXiv:2205.14135.
    """
    options = {"causal": causal, "mask": mask, "scale": scale, "dropout_p": dropout_p, "seed": seed, "stream": stream}
    return backend_of(q, k, v).attention.attention(q, k, v, **options)


def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    statistics: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
    mask_grad: bool = False,
    into: tuple[Array, Array, Array] | None = None,
    **dropout: Any,
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of queries, keys and values, and of the mask if asked for.

    With P = e^{S − m} / Σ:  V̄ = (Z ⊙ P)ᵀ Ō,  S̄ = P ⊙ (Z ⊙ Ō Vᵀ − Σ Ō ⊙ O),  Q̄ = τ S̄ K,  K̄ = τ S̄ᵀ Q,  M̄ = S̄

    `out` and `statistics` are what `attention` returned. Each gradient has the shape of its argument, and is summed where that
    was repeated. `into`: arrays to write Q̄, K̄, V̄ to, such as the parts of one packed buffer. `dropout`: dropout_p, seed and
    stream, as `attention` had them.
    """
    options = {"causal": causal, "mask": mask, "scale": scale, "mask_grad": mask_grad, "into": into, **dropout}
    module = backend_of(dout, q, k, v, out, statistics).attention
    return module.attention_backward(dout, q, k, v, out, statistics, **options)


def attention_dropout(x: Array, *, p: float, seed: int, stream: int = 0) -> Array:
    """Z ⊙ X, Z_ij = 1/(1 − p) with probability 1 − p, else 0: what `attention` does to its weights.     (…, T, S)

    Word r of counter (z ⌈T/4⌉ + ⌊i/4⌋) S + j decides on element j of row i of head z, r = i mod 4: four rows share a counter.
    """
    return backend_of(x).elementwise.attention_dropout(x, p=p, seed=seed, stream=stream)


# ---------------------------------------------------------------------------------------------------------------------
# Convolution over one or two spatial dimensions, and resampling
# ---------------------------------------------------------------------------------------------------------------------
# i counts the pixels of y, t the taps of the kernel; s is the stride, d the dilation, p the padding of each dimension.


def conv(x: Array, w: Array, *, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int = 1) -> Array:
    """y[n, o, i] = Σ_{c,t} x[n, c, s i + d t − p] w[o, c, t].     (N, C, …), (O, C/G, …) → (N, O, …)"""
    module = backend_of(x, w).convolution
    return module.conv(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_input_grad(
    dy: Array, w: Array, size: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int = 1
) -> Array:
    """x̄[n, c, s i + d t − p] += ȳ[n, o, i] w[o, c, t]: the transposed convolution, to an image of `size`.

    (N, O, …), (O, C/G, …) → (N, C, *size)
    """
    module = backend_of(dy, w).convolution
    return module.conv_input_grad(dy, w, size, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_weight_grad(
    x: Array, dy: Array, size: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int = 1
) -> Array:
    """w̄[o, c, t] = Σ_{n,i} x[n, c, s i + d t − p] ȳ[n, o, i], for a kernel of `size`.

    (N, C, …), (N, O, …) → (O, C/G, *size)
    """
    module = backend_of(x, dy).convolution
    return module.conv_weight_grad(x, dy, size, stride=stride, padding=padding, dilation=dilation, groups=groups)


def max_pool(x: Array, counts: Sizes, kernel: Sizes, *, stride: Sizes, padding: Sizes, dilation: Sizes) -> tuple[Array, Array]:
    """The largest element of each window, and where it lies, counted through the image.

    y[n, c, i] = max_t x[n, c, s i + d t − p],  index[n, c, i] = s i + d t − p for the first of the largest t

    (N, C, …) → (N, C, *counts), the same of int64. NaN is larger than all numbers. What lies outside of x takes no part; each
    window has a part inside.
    """
    module = backend_of(x).pooling
    return module.max_pool(x, counts, kernel, stride=stride, padding=padding, dilation=dilation)


def max_pool_backward(dy: Array, index: Array, size: Sizes) -> Array:
    """x̄[n, c, j] = Σ_{i: index[n, c, i] = j} ȳ[n, c, i], to an image of `size`.     (N, C, *counts) twice → (N, C, *size)"""
    return backend_of(dy, index).pooling.max_pool_backward(dy, index, size)


def avg_pool(x: Array, share: Array, kernel: Sizes, *, stride: Sizes, padding: Sizes) -> Array:
    """y[n, c, i] = share[i] Σ_t x[n, c, s i + t − p], zeros outside of x.     (N, C, …), (*counts) → (N, C, *counts)"""
    return backend_of(x, share).pooling.avg_pool(x, share, kernel, stride=stride, padding=padding)


def avg_pool_backward(dy: Array, share: Array, size: Sizes, kernel: Sizes, *, stride: Sizes, padding: Sizes) -> Array:
    """x̄[n, c, s i + t − p] += share[i] ȳ[n, c, i], to an image of `size`.     (N, C, *counts), (*counts) → (N, C, *size)"""
    return backend_of(dy, share).pooling.avg_pool_backward(dy, share, size, kernel, stride=stride, padding=padding)


def nearest(x: Array, rows: Array, columns: Array) -> Array:
    """y[…, i, j] = x[…, rows_i, columns_j], for indices that do not fall.     (N, C, H, W), (P), (Q) → (N, C, P, Q)

    Raises IndexError for an index out of range.
    """
    return backend_of(x, rows, columns).images.nearest(x, rows, columns)


def nearest_backward(dy: Array, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
    """x̄[…, h, w] = Σ_{i: rows_i = h} Σ_{j: columns_j = w} ȳ[…, i, j], to an image of `size`.

    (N, C, P, Q) → (N, C, *size)
    """
    return backend_of(dy, rows, columns).images.nearest_backward(dy, rows, columns, size)


# ---------------------------------------------------------------------------------------------------------------------
# Tables and optimisers
# ---------------------------------------------------------------------------------------------------------------------


def embedding(table: Array, index: Array) -> Array:
    """y_i = table[index_i].     (V, n), (…) → (…, n)

    Raises IndexError for an index out of range; on a device, where the host would have to wait for that, its row is NaN.
    """
    return backend_of(table, index).rows.embedding(table, index)


def scatter_add(out: Array, index: Array, source: Array) -> None:
    """out[index_i] += source_i, in place; repeats add up, in the order of i.     (V, …), any shape, (*index.shape, …)

    Raises IndexError for an index out of range; a device passes over it.
    """
    backend_of(out, index, source).rows.scatter_add(out, index, source)


def adamw(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of AdamW for each parameter p with its gradient g, in place on p and its averages m and v.

    p ← p (1 − lr λ);  m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  p ← p − lr m̂ / (√v̂ + ε),
    m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ),  t the step, from 1.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """
    constants = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    backend_of(params, grads).optimizer.adamw(params, grads, exp_avgs, exp_avg_sqs, **constants)


def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of Adam, in place as `adamw`, but the decay is part of the gradient, g + λ p.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    constants = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    backend_of(params, grads).optimizer.adam(params, grads, exp_avgs, exp_avg_sqs, **constants)


def sum_of_squares(arrays: Sequence[Array]) -> float:
    """Σ x² over all elements of all arrays, in float64"""
    return backend_of(arrays).optimizer.sum_of_squares(arrays)


def scale(arrays: Sequence[Array], factor: float) -> None:
    """x ← factor x for each array, in place"""
    backend_of(arrays).optimizer.scale(arrays, factor)
