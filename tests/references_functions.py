"""What each function of the catalog should compute, written a second time: NumPy, SciPy and loops, nothing of the library
but its generator of random words. `references.py` holds the whole table.
"""

from itertools import product
from math import ceil, floor, log, pi, sqrt

import numpy as np
from scipy import special

from kernels.reference import philox  # tested against published answers

REFERENCES = {}


def reference(*names):
    def keep(function):
        REFERENCES.update(dict.fromkeys(names or (function.__name__,), function))
        return function

    return keep


def axes(x, dim):
    """NumPy's axis for a dim; a 0-d array has none."""
    return () if x.ndim == 0 else None if dim is None else tuple(dim) if isinstance(dim, tuple | list) else dim


# ---------------------------------------------------------------------------------------------------------------------
# Elements
# ---------------------------------------------------------------------------------------------------------------------


REFERENCES |= {
    "abs": lambda x: np.where(x < 0, -x, x),
    "add": lambda a, b, alpha=1: a + alpha * b,
    "addcdiv": lambda x, a, b, value=1: x + a / b * value,
    "addcmul": lambda x, a, b, value=1: x + a * b * value,
    "atan2": lambda a, b: np.log(np.asarray(b) + 1j * np.asarray(a)).imag,
    "ceil": lambda x: -np.floor(-x),
    "cos": lambda x: np.sin(x + pi / 2),
    "cosh": lambda x: (np.exp(x) + np.exp(-x)) / 2,
    "div": lambda a, b, rounding_mode="none": {"none": np.array, "floor": np.floor, "trunc": np.fix}[rounding_mode](
        a * (1 / np.asarray(b))
    ),
    "erf": lambda x: 2 * special.ndtr(x * sqrt(2)) - 1,
    "exp": lambda x: np.exp2(x / log(2)),
    "expm1": lambda x: np.exp(x) - 1,
    "floor": lambda x: x - np.mod(x, 1),
    "gelu": lambda x, approximate="none": (
        x
        * (
            special.ndtr(x) if approximate == "none" else special.expit(sqrt(8 / pi) * (x + 0.044715 * x**3))
        )  # ½ (1 + tanh z) = σ(2z)
    ),
    "lerp": lambda a, b, w: (1 - w) * a + w * b,
    "log": lambda x: np.log2(x) * log(2),
    "log10": lambda x: np.log10(x),
    "log1p": lambda x: np.log(1 + x),
    "log2": lambda x: np.log2(x),
    "logaddexp": lambda a, b: np.log(np.exp(a) + np.exp(b)),
    "masked_fill": lambda x, m, value: np.where(m, value, x),
    "maximum": lambda a, b: np.where(a > b, a, b),
    "minimum": lambda a, b: np.where(a < b, a, b),
    "mul": lambda a, b: np.multiply(a, b),
    "nan_to_num": lambda x: x,
    "neg": lambda x: 0 - x,
    "pow": lambda a, b: np.power(a, b),
    "reciprocal": lambda x: x**-1,
    "relu": lambda x: x * (x > 0),
    "round": lambda x: np.floor(x + 0.5),
    "rsqrt": lambda x: np.exp(-0.5 * np.log(x)),
    "sigmoid": lambda x: special.expit(x),
    "sign": lambda x: (x > 0) * 1.0 - (x < 0),
    "sin": lambda x: np.exp(1j * x).imag,
    "sinh": lambda x: (np.exp(x) - np.exp(-x)) / 2,
    "softplus": lambda x, beta=1.0, threshold=20.0: np.where(beta * x > threshold, x, np.log(1 + np.exp(beta * x)) / beta),
    "sqrt": lambda x: x**0.5,
    "square": lambda x: x**2,
    "sub": lambda a, b, alpha=1: a - alpha * b,
    "tan": lambda x: np.sin(x) / np.cos(x),
    "tanh": lambda x: 2 * special.expit(2 * x) - 1,
    "where": lambda c, a, b: c * a + ~c * b,
    "cast": lambda x, dtype: x.astype(dtype),
}


@reference("clamp", "clip")
def clamp(x, min=None, max=None):
    x = x if min is None else np.where(x < min, min, x)
    return x if max is None else np.where(x > max, max, x)


# ---------------------------------------------------------------------------------------------------------------------
# Reductions
# ---------------------------------------------------------------------------------------------------------------------


REFERENCES |= {
    "amax": lambda x, dim=None, keepdim=False: np.max(x, axes(x, dim), keepdims=keepdim),
    "amin": lambda x, dim=None, keepdim=False: -np.max(-x, axes(x, dim), keepdims=keepdim),
    "cumprod": lambda x, dim: (
        np.stack([x.take(range(i + 1), dim).prod(dim) for i in range(x.shape[dim])], dim) if x.ndim and x.size else x
    ),
    "cumsum": lambda x, dim: np.cumsum(x, dim) if x.ndim else x,
    "logsumexp": lambda x, dim, keepdim=False: special.logsumexp(x, axes(x, dim), keepdims=keepdim) if x.ndim else x,
    "mean": lambda x, dim=None, keepdim=False: np.mean(x, axes(x, dim), keepdims=keepdim),
    "prod": lambda x, dim=None, keepdim=False: np.prod(x, axes(x, dim), keepdims=keepdim),
    "sum": lambda x, dim=None, keepdim=False, dtype=None: np.sum(x, axes(x, dim), keepdims=keepdim),
}


@reference()
def bincount(x, weights=None, minlength=0):
    n = max([minlength, *(v + 1 for v in x)])
    return np.array([((x == v) * (1 if weights is None else weights)).sum() for v in range(n)])


@reference()
def sort(x, dim=-1, descending=False, stable=False):
    if not x.ndim:
        return x, np.array(0)
    index = np.argsort(-x if descending else x, dim)
    return np.take_along_axis(x, index, dim), index


@reference()
def topk(x, k, dim=-1, largest=True):
    if not x.ndim:
        return x, np.array(0)
    return [y.swapaxes(0, dim)[:k].swapaxes(0, dim) for y in sort(x, dim, largest)]


def _largest(sign):
    def largest(x, dim=None, keepdim=False):
        x = sign * x
        if isinstance(dim, np.ndarray):
            return sign * np.maximum(x, sign * dim)
        if dim is None:
            return sign * x.max()
        if not x.ndim:
            return sign * x, np.array(0)
        return sign * x.max(dim, keepdims=keepdim), x.argmax(dim, keepdims=keepdim)

    return largest


REFERENCES["max"], REFERENCES["min"] = _largest(1), _largest(-1)


@reference()
def norm(x, p=2, dim=None, keepdim=False):
    size, axis = np.abs(x), axes(x, dim)
    if p == 0:
        return (x != 0).sum(axis, keepdims=keepdim)
    if abs(p) == np.inf:
        return (size.max if p > 0 else size.min)(axis, keepdims=keepdim)
    return (size**p).sum(axis, keepdims=keepdim) ** (1 / p)


@reference()
def var(x, dim=None, unbiased=True, keepdim=False, correction=None):
    return np.var(x, axes(x, dim), ddof=int(unbiased) if correction is None else correction, keepdims=keepdim)


@reference()
def std(*args, **options):
    return np.sqrt(var(*args, **options))


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


def _shape(shape):
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape


def _pieces(x, size, dim=0):
    n = x.shape[dim]
    ends = np.cumsum(size)[:-1] if isinstance(size, list) else np.arange(size, n, size)
    return np.split(x, ends, dim)


REFERENCES |= {
    "broadcast_to": lambda x, shape: x + np.zeros(shape),
    "cat": lambda xs, dim=0: np.concatenate([x for x in xs if x.shape != (0,)], dim),
    "concatenate": lambda xs, dim=0: np.concatenate(xs, dim),
    "chunk": lambda x, n, dim=0: _pieces(x, max(1, ceil(x.shape[dim] / n)), dim),
    "clone": lambda x: x,
    "contiguous": lambda x: x,
    "diag": lambda x, diagonal=0: np.diag(x, diagonal),
    "meshgrid": lambda *xs, indexing="ij": np.meshgrid(*(xs[0] if isinstance(xs[0], list) else xs), indexing=indexing),
    "bmm": lambda a, b: np.einsum("bij,bjk->bik", a, b),
    "cdist": lambda a, b, p=2: np.linalg.norm(a[..., :, None, :] - b[..., None, :, :], p, -1),
    "dot": lambda a, b: (a * b).sum(),
    "mm": lambda a, b: np.einsum("ij,jk->ik", a, b),
    "outer": lambda a, b: np.array([[x * y for y in b] for x in a]).reshape(len(a), len(b)),
    "diagonal": lambda x, offset=0, dim1=0, dim2=1: np.diagonal(x, offset, dim1, dim2),
    "flatten": lambda x, start=0, end=-1: x.reshape(x.shape[:start] + (-1,) + (x.shape[end:][1:] if end != -1 else ())),
    "flip": lambda x, *dims: np.flip(x, _shape(dims)),
    "index_select": lambda x, dim, index: np.take(x, np.atleast_1d(index), dim) if x.ndim else x,
    "movedim": lambda x, a, b: np.moveaxis(x, a, b) if x.ndim else x,
    "narrow": lambda x, dim, start, length: np.take(x, range(start, start + length), dim),
    "permute": lambda x, *dims: np.transpose(x, _shape(dims)),
    "repeat": lambda x, *sizes: np.tile(x, _shape(sizes)),
    "repeat_interleave": lambda x, n, dim=None: np.repeat(x, n, dim),
    "reshape": lambda x, *shape: np.ravel(x).reshape(_shape(shape)),
    "roll": lambda x, shift, dim=None: np.roll(x, shift, dim),
    "split": _pieces,
    "squeeze": lambda x, dim=None: np.squeeze(
        x, None if dim is None else tuple(d for d in np.atleast_1d(dim) if x.shape[d] == 1)
    ),
    "stack": lambda xs, dim=0: np.stack(xs, dim),
    "transpose": lambda x, a, b: np.swapaxes(x, a, b) if x.ndim else x,
    "tril": lambda x, diagonal=0: np.tril(x, diagonal),
    "triu": lambda x, diagonal=0: np.triu(x, diagonal),
    "unbind": lambda x, dim=0: [np.take(x, i, dim) for i in range(x.shape[dim])],
    "unsqueeze": np.expand_dims,
}


@reference()
def expand(x, *shape):
    shape = _shape(shape)
    added = len(shape) - x.ndim
    return np.broadcast_to(x, [x.shape[i - added] if n == -1 else n for i, n in enumerate(shape)])


@reference()
def gather(x, dim, index):
    x, y = np.atleast_1d(x), np.zeros(index.shape)
    if not index.ndim:
        return y + x[0]
    for at in product(*map(range, index.shape)):
        there = list(at)
        there[dim] = index[at]
        y[at] = x[tuple(there)]
    return y


@reference()
def index_add(x, dim, index, source, alpha=1):
    y, source = np.atleast_1d(x).copy(), np.atleast_1d(source)
    for j, i in enumerate(np.atleast_1d(index)):
        y.swapaxes(0, dim)[i] += alpha * source.swapaxes(0, dim)[j]
    return y.reshape(x.shape)


@reference()
def scatter_add(x, dim, index, src):
    if not x.ndim:
        return x + np.atleast_1d(src)[: index.size].sum()
    y = x.copy()
    for at in product(*map(range, index.shape)):
        there = list(at)
        there[dim] = index[at]
        y[tuple(there)] += src[at]
    return y


@reference()
def pad(x, pad, mode="constant", value=0.0):
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + [pad[i : i + 2] for i in range(len(pad) - 2, -1, -2)]
    if mode != "constant":
        return np.pad(x, pairs, {"replicate": "edge", "circular": "wrap"}.get(mode, mode))
    y = np.pad(x, [(max(a, 0), max(b, 0)) for a, b in pairs], constant_values=value)
    return y[tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(y.shape, pairs, strict=True))]


REFERENCES |= {
    "Tensor.__getitem__": lambda x, key: x[key],
    "Tensor.__iter__": list,
    "Tensor.__mod__": lambda x, y: x - y * np.floor(x / y),
    "Tensor.__pos__": lambda x: x,
    "Tensor.T": lambda x: x.T,
    "Tensor.mT": lambda x: np.swapaxes(x, -1, -2),
    "Tensor.t": lambda x: x.T,
    "Tensor.view": REFERENCES["reshape"],
    "Tensor.to": lambda x, *args, **options: x,
    "Tensor.cpu": lambda x: x,
    "Tensor.double": lambda x: x,
    "Tensor.float": lambda x: x.astype(np.float32),
    "Tensor.__radd__": lambda x, y: y + x,
    "Tensor.__rsub__": lambda x, y: y - x,
    "Tensor.__rmul__": lambda x, y: y * x,
    "Tensor.__rtruediv__": lambda x, y: y / x,
    "Tensor.__rpow__": lambda x, y: y**x,
    "Tensor.__rmatmul__": lambda x, y: y @ x,
}


# ---------------------------------------------------------------------------------------------------------------------
# Products, convolution
# ---------------------------------------------------------------------------------------------------------------------


REFERENCES |= {
    "matmul": lambda a, b: np.dot(a, b) if min(a.ndim, b.ndim) < 2 else np.einsum("...ij,...jk->...ik", a, b),
    "linear": lambda x, w, b=0.0, activation=None: (np.maximum if activation else np.add)(np.tensordot(x, w, (-1, 1)) + b, 0),
    "einsum": lambda equation, *xs: np.einsum(equation, *(xs[0] if isinstance(xs[0], list) else xs)),
}


def _per(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


@reference("conv1d", "conv2d")
def conv(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    n = w.ndim - 2
    if x.ndim == n + 1:
        return conv(x[None], w, b, stride, padding, dilation, groups)[0]
    s, d, k = _per(stride, n), _per(dilation, n), w.shape[2:]
    reach = [d_ * (k_ - 1) for d_, k_ in zip(d, k, strict=True)]
    pairs = [(r // 2, r - r // 2) for r in reach] if padding == "same" else [(p, p) for p in _per(padding, n)]
    x = np.pad(x, [(0, 0), (0, 0), *pairs])
    size = [(m - r - 1) // s_ + 1 for m, r, s_ in zip(x.shape[2:], reach, s, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *size))
    per = w.shape[0] // groups
    for o in range(w.shape[0]):
        channels = x[:, (o // per) * w.shape[1] : (o // per + 1) * w.shape[1]]
        for i in product(*map(range, size)):
            window = tuple(slice(i_ * s_, i_ * s_ + r + 1, d_) for i_, s_, r, d_ in zip(i, s, reach, d, strict=True))
            y[(slice(None), o, *i)] = (channels[(slice(None), slice(None), *window)] * w[o]).sum(tuple(range(1, n + 2)))
    return y if b is None else y + b.reshape(-1, *(1,) * n)


@reference("conv_transpose1d", "conv_transpose2d")
def conv_transpose(y, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    n = w.ndim - 2
    if y.ndim == n + 1:
        return conv_transpose(y[None], w, b, stride, padding, output_padding, groups, dilation)[0]
    s, p, e, d, k = _per(stride, n), _per(padding, n), _per(output_padding, n), _per(dilation, n), w.shape[2:]
    size = [(m - 1) * s_ + d_ * (k_ - 1) + 1 + e_ for m, s_, d_, k_, e_ in zip(y.shape[2:], s, d, k, e, strict=True)]
    x = np.zeros((y.shape[0], w.shape[1] * groups, *size))
    per = w.shape[0] // groups
    for c, i in product(range(w.shape[0]), product(*map(range, y.shape[2:]))):
        first = (c // per) * w.shape[1]
        window = tuple(slice(i_ * s_, i_ * s_ + d_ * (k_ - 1) + 1, d_) for i_, s_, d_, k_ in zip(i, s, d, k, strict=True))
        x[(slice(None), slice(first, first + w.shape[1]), *window)] += (
            y[(slice(None), c, *i)].reshape(-1, *(1,) * (n + 1)) * w[c]
        )
    x = x[(..., *(slice(p_, m - p_) for p_, m in zip(p, size, strict=True)))]
    return x if b is None else x + b.reshape(-1, *(1,) * n)


def windows(x, n, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """For each window, the positions of its cells in the image, None where they lie in the padding, or beyond it."""
    k = _per(kernel, n)
    s, p, d = k if stride is None else _per(stride, n), _per(padding, n), _per(dilation, n)
    sides = []
    for m, k_, s_, p_, d_ in zip(x.shape[-n:], k, s, p, d, strict=True):
        count = (ceil if ceil_mode else floor)((m + 2 * p_ - d_ * (k_ - 1) - 1) / s_) + 1
        starts = [i * s_ - p_ for i in range(count) if not ceil_mode or i * s_ < m + p_]
        sides.append([[(t, 0 <= t < m, t < m + p_) for t in range(a, a + d_ * k_, d_)] for a in starts])
    size = tuple(map(len, sides))
    for i in product(*map(range, size)):
        cells = list(product(*(side[i_] for side, i_ in zip(sides, i, strict=True))))
        inside = [tuple(t for t, _, _ in cell) for cell in cells if all(ok for _, ok, _ in cell)]
        padded = sum(all(ok for _, _, ok in cell) for cell in cells)
        yield i, size, cells, inside, padded


def _max_pool(n):
    def max_pool(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        lead, found = x.shape[:-n], {}
        for i, sizes, _, inside, _ in windows(x, n, kernel, stride, padding, dilation, ceil_mode):
            size = sizes
            for c in product(*map(range, lead)):
                best = max(inside, key=lambda t: x[(*c, *t)])
                found[(*c, *i)] = x[(*c, *best)], np.ravel_multi_index(best, x.shape[-n:])
        y, index = (
            np.array([found[at][j] for at in product(*map(range, (*lead, *size)))]).reshape(*lead, *size) for j in (0, 1)
        )
        return (y, index) if return_indices else y

    return max_pool


def _avg_pool(n):
    def avg_pool(x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        y = {}
        for i, sizes, _, inside, padded in windows(x, n, kernel, stride, padding, 1, ceil_mode):
            size = sizes
            y[i] = sum(x[(..., *t)] for t in inside) / (divisor_override or (padded if count_include_pad else len(inside)))
        return np.stack([y[i] for i in product(*map(range, size))], -1).reshape(*x.shape[:-n], *size)

    return avg_pool


REFERENCES |= {"max_pool1d": _max_pool(1), "max_pool2d": _max_pool(2), "avg_pool1d": _avg_pool(1), "avg_pool2d": _avg_pool(2)}


@reference()
def unfold(x, kernel_size, dilation=1, padding=0, stride=1):
    columns = []
    for _, _, cells, _, _ in windows(x, 2, kernel_size, stride, padding, dilation):
        column = [
            x[(..., *(t for t, _, _ in cell))] if all(ok for _, ok, _ in cell) else np.zeros(x.shape[:-2]) for cell in cells
        ]
        columns.append(np.stack(column, -1).reshape(*x.shape[:-3], -1))
    return np.stack(columns, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Softmax, losses, activations
# ---------------------------------------------------------------------------------------------------------------------


@reference()
def softmax(x, dim):
    e = np.exp(x)
    return e / e.sum(axes(x, dim), keepdims=True)


@reference()
def log_softmax(x, dim):
    return np.log(softmax(x, dim))


@reference()
def class_losses(x, target, ignore_index):
    p = softmax(x, 1)
    return np.array([0.0 if t == ignore_index else -log(p[n, t]) for n, t in enumerate(target)])


REFERENCES |= {
    "leaky_relu": lambda x, slope=0.01: np.maximum(x, slope * x),
    "prelu": lambda x, w: np.where(x > 0, x, x * (w.reshape(-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else w.reshape(()))),
    "elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * (np.exp(x) - 1)),
    "celu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * (np.exp(x / alpha) - 1)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "mish": lambda x: x * np.tanh(np.log(1 + np.exp(x))),
    "logsigmoid": lambda x: special.log_expit(x),
    "softsign": lambda x: np.sign(x) * (1 - 1 / (1 + np.abs(x))),
    "hardtanh": lambda x, low=-1.0, high=1.0: np.clip(x, low, high),
}


@reference()
def glu(x, dim=-1):
    a, b = np.split(x, 2, dim)
    return a / (1 + np.exp(-b))


def reduced(loss, reduction):
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


@reference()
def mse_loss(x, t, reduction="mean"):
    return reduced(x * x - 2 * x * t + t * t, reduction)


@reference()
def l1_loss(x, t, reduction="mean"):
    return reduced(np.maximum(x, t) - np.minimum(x, t), reduction)


@reference()
def huber_loss(x, t, reduction="mean", delta=1.0):
    return reduced(special.huber(delta, x - t), reduction)


@reference()
def smooth_l1_loss(x, t, reduction="mean", beta=1.0):
    return reduced(special.huber(beta, x - t) / beta if beta else np.abs(x - t), reduction)


@reference()
def binary_cross_entropy_with_logits(x, t, weight=1.0, reduction="mean", pos_weight=1.0):
    p = special.expit(x)
    weight, pos_weight = (1.0 if w is None else w for w in (weight, pos_weight))
    return reduced(-weight * (pos_weight * t * np.log(p) + (1 - t) * np.log(1 - p)), reduction)


@reference()
def nll_loss(x, t, weight=None, ignore_index=-100, reduction="mean", smoothing=0.0):
    if x.ndim == 1:
        return nll_loss(x[None], np.array([t]).reshape(1), weight, ignore_index, reduction, smoothing).reshape(())
    weight = np.ones(x.shape[1]) if weight is None else weight
    loss, total = np.zeros(t.shape), 0.0
    for n in product(*map(range, t.shape)):
        row = x[(n[0], slice(None), *n[1:])]
        if t[n] != ignore_index:
            loss[n] = -(1 - smoothing) * weight[t[n]] * row[t[n]] - smoothing * (weight * row).mean()
            total += weight[t[n]]
    return loss.sum() / total if reduction == "mean" else reduced(loss, reduction)


@reference()
def cross_entropy(x, t, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    axis = min(1, x.ndim - 1)
    log_p = log_softmax(x, axis)
    if t.dtype.kind != "f":
        return nll_loss(log_p, t, weight, ignore_index, reduction, label_smoothing)
    target = (1 - label_smoothing) * t + label_smoothing / x.shape[axis]
    return reduced(-np.moveaxis(target * log_p, axis, -1) @ (np.ones(x.shape[axis]) if weight is None else weight), reduction)


@reference()
def kl_div(x, t, reduction="mean", log_target=False):
    t = np.exp(t) if log_target else t
    loss = special.xlogy(t, t) - t * x
    return loss.sum() / len(np.atleast_1d(x)) if reduction == "batchmean" else reduced(loss, reduction)


def _gaussian(x, mu, s):
    return -((x - mu) ** 2) / (2 * np.exp(s)) - np.log(np.sqrt(2 * pi * np.exp(s)))


def _by_quadrature(x, a):
    """x a − log ∫₀¹ e^{ua} du, by Gauss and Legendre with 200 nodes"""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return x * a - special.logsumexp(np.multiply.outer(a, (nodes + 1) / 2), b=weights / 2, axis=-1)


def _discretized_logistic(x, mu, s, levels=256):
    """The mass between the edges of the bin, the outermost ones at ±∞, each from the side where it is not rounded to 1"""
    x, mu, s = np.broadcast_arrays(x, mu, s)
    low = np.where(x < 0.5 / (levels - 1), -np.inf, (x - 0.5 / (levels - 1) - mu) / np.exp(s))
    high = np.where(x > 1 - 0.5 / (levels - 1), np.inf, (x + 0.5 / (levels - 1) - mu) / np.exp(s))
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    return np.log(special.expit(high) - special.expit(low))


REFERENCES |= {
    "continuous_bernoulli_log_prob": _by_quadrature,
    "discretized_logistic_log_prob": _discretized_logistic,
    "gaussian_log_prob": _gaussian,
    "gaussian_nll_loss": lambda x, t, v, full=False, eps=1e-6, reduction="mean": reduced(
        -_gaussian(x, t, np.log(v[:, None] if np.shape(v) == x.shape[:-1] and np.ndim(v) else v) + 0 * x)
        - (0 if full else 0.5 * log(2 * pi)),
        reduction,
    ),
    "bernoulli_log_prob": lambda x, a: x * np.log(special.expit(a)) + (1 - x) * np.log(special.expit(-a)),
    "reparameterize": lambda m, s, e: m + np.exp(s / 2) * e,
    "kl_standard_gaussian": lambda m, s: -0.5 * (1 + s - m**2 - np.exp(s)),
    "kl_gaussian": lambda mp, sp, mq, sq: (
        -_gaussian(mp, mq, sq) + 0.5 * np.exp(sp - sq) - 0.5 - 0.5 * np.log(2 * pi * np.exp(sp))
    ),
    "kl_bernoulli": lambda a, b: sum(special.rel_entr(special.expit(i * a), special.expit(i * b)) for i in (1, -1)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Norms
# ---------------------------------------------------------------------------------------------------------------------


def standardized(x, axis, eps):
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


def channelwise(y, weight, bias):
    weight, bias = (d if p is None else p for p, d in ((weight, np.ones(y.shape[1])), (bias, np.zeros(y.shape[1]))))
    return np.moveaxis(np.moveaxis(y, 1, -1) * weight + bias, -1, 1)


@reference()
def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    y = standardized(x, tuple(range(-np.size(shape), 0)), eps)
    return y * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)


@reference()
def batch_norm(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if training:
        return channelwise(standardized(x, (0, *range(2, x.ndim)), eps), weight, bias)
    return channelwise(channelwise(channelwise(x, None, -mean), 1 / np.sqrt(var + eps), None), weight, bias)


@reference()
def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    y = [standardized(part, tuple(range(1, x.ndim)), eps) for part in np.split(x, groups, 1)]
    return channelwise(np.concatenate(y, 1), weight, bias)


@reference()
def instance_norm(x, mean=None, var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5):
    if not use_input_stats:
        return batch_norm(x, mean, var, weight, bias, False, momentum, eps)
    return channelwise(standardized(x, tuple(range(2, x.ndim)), eps), weight, bias)


@reference()
def rms_norm(x, shape, weight=None, eps=None):
    axis = tuple(range(-np.size(shape), 0))
    y = x / np.sqrt((x**2).mean(axis, keepdims=True) + (np.finfo(x.dtype).eps if eps is None else eps))
    return y if weight is None else y * weight


@reference()
def normalize(x, p=2.0, dim=1, eps=1e-12):
    return x / np.maximum(norm(x, p, dim, True), eps)


@reference()
def cosine_similarity(a, b, dim=1, eps=1e-8):
    a, b = np.broadcast_arrays(a, b)
    return (a * b).sum(dim) / np.maximum(norm(a, 2, dim), eps) / np.maximum(norm(b, 2, dim), eps)


# ---------------------------------------------------------------------------------------------------------------------
# Tables, attention, resampling
# ---------------------------------------------------------------------------------------------------------------------


def dropped(x, p, rng):
    """The four words of a counter decide on elements a quarter of x apart: see `test_reference.test_dropout…`."""
    seed, quarter = int(rng.integers(2**63)), ceil(x.size / 4)
    words = [philox(np.array([i % quarter]), seed=seed)[i // quarter, 0] for i in range(x.size)]
    return x * (np.reshape(words, x.shape) >= round(p * 2**32)) / (1 - p) if p < 1 else 0 * x


@reference()
def dropout(x, p=0.5, training=True):
    return dropped(x, p, np.random.default_rng(0)) if training else x


@reference()
def embedding(i, w, padding_idx=None):
    return np.array([w[j] for j in i.ravel()]).reshape(*i.shape, w.shape[1])


def dropped_weights(P, p, rng):
    """Four rows share a counter of the generator of random words: see `test_reference.test_attention_dropout`."""
    *lead, T, S = P.shape
    seed, T4, P = int(rng.integers(2**63)), ceil(T / 4), P.copy()
    for n, z in enumerate(product(*map(range, lead))):
        words = philox(np.arange(n * T4 * S, (n + 1) * T4 * S), seed=seed).reshape(4, T4, S)
        for i in range(T):
            P[z][i] *= (words[i % 4, i // 4] >= round(p * 2**32)) / (1 - p) if p < 1 else 0
    return P


@reference("scaled_dot_product_attention")
def attention_(q, k, v, mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, rng=None):
    if enable_gqa:
        k, v = (np.repeat(t, q.shape[-3] // k.shape[-3], -3) for t in (k, v))
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (np.broadcast_to(t, lead + t.shape[-2:]) for t in (q, k, v))
    T, S = q.shape[-2], k.shape[-2]
    allowed = np.ones((*lead, T, S), bool)
    bias = np.zeros((*lead, T, S))
    if is_causal:
        allowed &= np.arange(T)[:, None] >= np.arange(S)
    if mask is not None and mask.dtype == bool:
        allowed &= mask
    elif mask is not None:
        bias = bias + mask
    P = np.zeros((*lead, T, S))
    for row in product(*map(range, (*lead, T))):
        kept = np.flatnonzero(allowed[row])
        if kept.size:
            s = (k[row[:-1]][kept] @ q[row]) * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale) + bias[row][kept]
            P[row][kept] = softmax(s, 0)
    if dropout_p:
        P = dropped_weights(P, dropout_p, rng or np.random.default_rng(0))
    return P @ v


@reference()
def self_attention(qkv, dropout_p=0.0, is_causal=False, scale=None):
    q, k, v = np.moveaxis(qkv, (-3, -2), (0, -3))
    return np.swapaxes(attention_(q, k, v, None, dropout_p, is_causal, scale), -2, -3)


REFERENCES["attention"] = lambda q, k, v, mask, causal, scale: attention_(q, k, v, mask, 0.0, causal, scale)


def _kernel(mode, v):
    """What a neighbour at the distance v weighs"""
    v = abs(v)
    if mode != "bicubic":
        return max(1 - v, 0.0)
    return 1.25 * v**3 - 2.25 * v**2 + 1 if v <= 1 else -0.75 * (v**3 - 5 * v**2 + 8 * v - 4) if v < 2 else 0.0


@reference()
def interpolate(x, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None):
    n = x.ndim - 2
    for d in range(n):
        old = x.shape[2 + d]
        s = None if scale_factor is None else _per(scale_factor, n)[d] if not isinstance(scale_factor, float) else scale_factor
        new = _per(size, n)[d] if s is None else floor(old * s)
        ratio = old / new if s is None or recompute_scale_factor else 1 / s
        parts = []
        for i in range(new):
            if mode == "area":
                cells = range(i * old // new, ceil((i + 1) * old / new))
                weights = {j: 1 / len(cells) for j in cells}
            elif mode.startswith("nearest"):
                weights = {min(floor((i + (mode == "nearest-exact") / 2) * ratio), old - 1): 1.0}
            else:
                at = (i + 0.5) * ratio - 0.5
                if align_corners:
                    at = i * (old - 1) / (new - 1) if new > 1 else 0.0
                weights = {j: _kernel(mode, at - j) for j in range(floor(at) - 1, floor(at) + 3)}
            parts.append(sum(w * np.take(x, min(max(j, 0), old - 1), 2 + d) for j, w in weights.items()))
        x = np.stack(parts, 2 + d)
    return x


@reference()
def pixel_shuffle(x, r):
    n, c, h, w = x.shape if x.ndim == 4 else (1, *x.shape)
    y = np.zeros((n, c // r**2, h * r, w * r))
    for k, i, j in product(range(c), range(h), range(w)):
        y[:, k // r**2, i * r + k // r % r, j * r + k % r] = x.reshape(n, c, h, w)[:, k, i, j]
    return y.reshape(*x.shape[:-3], *y.shape[1:])


@reference()
def pixel_unshuffle(x, r):
    c, h, w = x.shape[-3:]
    parts = [x[..., k, a::r, b::r] for k, a, b in product(range(c), range(r), range(r))]
    return np.stack(parts, -3)


@reference()
def adaptive_avg_pool2d(x, size):
    h, w = x.shape[-2:]
    H, W = (n if m is None else m for n, m in zip((h, w), _per(size, 2), strict=True))
    cells = [
        x[..., i * h // H : ceil((i + 1) * h / H), j * w // W : ceil((j + 1) * w / W)].mean((-2, -1))
        for i, j in product(range(H), range(W))
    ]
    return np.stack(cells, -1).reshape(*x.shape[:-2], H, W)


# ---------------------------------------------------------------------------------------------------------------------
# Calculus
# ---------------------------------------------------------------------------------------------------------------------


# f(x) = x³ − 2x, or w f(x); g(x) = Σ_i e^{x_i} x_{n−i}, with gradient e^{x_i} x_{n−i} + e^{x_{n−i}}.


def f(x, w=1.0):
    return (x**3 - 2 * x) * w


def g(x):
    return (np.exp(x) * x[::-1]).sum()


def slope(x):
    return 3 * x**2 - 2


def grad_g(x):
    return np.exp(x) * x[::-1] + np.exp(x[::-1])


def hessian_g(x):
    return np.diag(np.exp(x) * x[::-1]) + np.fliplr(np.diag(np.exp(x) + np.exp(x[::-1])))


@reference("calculus.vjp")
def _vjp(func, x, v=None, create_graph=False):
    if func.__name__ == "energy":
        return g(x), grad_g(x)
    return (f(*x), slope(x[0]) * x[1] * v, f(x[0]) * v) if isinstance(x, tuple) else (f(x), slope(x) * v)


@reference("calculus.jvp")
def _jvp(func, x, u, create_graph=False):
    return (f(*x), slope(x[0]) * x[1] * u[0] + f(x[0]) * u[1]) if isinstance(x, tuple) else (f(x), slope(x) * u)


@reference("calculus.jacobian")
def _jacobian(func, x, create_graph=False):
    return (np.diag(slope(x[0]) * x[1]), np.diag(f(x[0]))) if isinstance(x, tuple) else np.diag(slope(x))


REFERENCES |= {
    "calculus.hvp": lambda func, x, u, create_graph: (g(x), hessian_g(x) @ u),
    "calculus.hessian": lambda func, x, create_graph: hessian_g(x),
    "calculus.checkpoint": lambda func, *xs: f(*xs),
}
