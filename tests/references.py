"""What each row of the catalog should compute, written a second time: NumPy, SciPy and loops, nothing of the library but
its generator of random words.

REFERENCES[name] takes the arguments of the public function, as arrays; for "nn.X" and "models.X" the module comes first.
"""

from itertools import product

import numpy as np
from scipy import special

from tests.references_functions import (
    REFERENCES,
    attention_,
    batch_norm,
    binary_cross_entropy_with_logits,
    channelwise,
    conv,
    conv_transpose,
    cross_entropy,
    dropout,
    dropped,
    dropped_weights,
    embedding,
    group_norm,
    instance_norm,
    layer_norm,
    log_softmax,
    nll_loss,
    reference,
    rms_norm,
    softmax,
    standardized,
)

# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def arrays(module):
    """Name -> array of a layer's parameters and buffers; None for those it does without."""

    class Found(dict):
        def __missing__(self, name):
            return None

    return Found({name: np.array(t.numpy()) for name, t in module.state_dict().items()})


def _layer(name, function, *settings):
    """A layer that is a function with settings kept as attributes."""
    REFERENCES[f"nn.{name}"] = lambda m, *xs: REFERENCES[function](*xs, *(getattr(m, s) for s in settings))


_layer("CELU", "celu", "alpha")
_layer("ELU", "elu", "alpha")
_layer("GELU", "gelu", "approximate")
_layer("GLU", "glu", "dim")
_layer("Hardtanh", "hardtanh", "min_val", "max_val")
_layer("LeakyReLU", "leaky_relu", "negative_slope")
_layer("LogSigmoid", "logsigmoid")
_layer("LogSoftmax", "log_softmax", "dim")
_layer("Mish", "mish")
_layer("ReLU", "relu")
_layer("SELU", "selu")
_layer("SiLU", "silu")
_layer("Sigmoid", "sigmoid")
_layer("Softmax", "softmax", "dim")
_layer("Softplus", "softplus", "beta", "threshold")
_layer("Softsign", "softsign")
_layer("Tanh", "tanh")
_layer("GaussianNLLLoss", "gaussian_nll_loss", "full", "eps", "reduction")
_layer("HuberLoss", "huber_loss", "reduction", "delta")
_layer("KLDivLoss", "kl_div", "reduction", "log_target")
_layer("L1Loss", "l1_loss", "reduction")
_layer("MSELoss", "mse_loss", "reduction")
_layer("SmoothL1Loss", "smooth_l1_loss", "reduction", "beta")
_layer("Upsample", "interpolate", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
_layer("PixelShuffle", "pixel_shuffle", "upscale_factor")
_layer("PixelUnshuffle", "pixel_unshuffle", "downscale_factor")
_layer("MaxPool1d", "max_pool1d", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_layer("MaxPool2d", "max_pool2d", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_layer("AvgPool1d", "avg_pool1d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_layer("AvgPool2d", "avg_pool2d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_layer("AdaptiveAvgPool2d", "adaptive_avg_pool2d", "output_size")


def _state(m, name):
    return arrays(m)[name]


REFERENCES |= {
    "nn.Identity": lambda m, x: x,
    "nn.PReLU": lambda m, x: REFERENCES["prelu"](x, _state(m, "weight")),
    "nn.Linear": lambda m, x: x @ _state(m, "weight").T + (0.0 if m.bias is None else _state(m, "bias")),
    "nn.Embedding": lambda m, i: embedding(i, _state(m, "weight")),
    "nn.Dropout": lambda m, x: dropout(x, m.p, m.training),
    "nn.Flatten": lambda m, x: REFERENCES["flatten"](x, m.start_dim, m.end_dim),
    "nn.utils.parameters_to_vector": lambda xs: np.concatenate([x.ravel() for x in xs]),
    "nn.Unflatten": lambda m, x: x.reshape(*x.shape[: m.dim], *m.unflattened_size, *x.shape[m.dim :][1:]),
    "nn.Sequential": lambda m, x: (
        np.tanh(x @ _state(m, "0.weight").T + _state(m, "0.bias")) @ _state(m, "2.weight").T + _state(m, "2.bias")
    ),
    "nn.BCEWithLogitsLoss": lambda m, x, t: binary_cross_entropy_with_logits(
        x, t, _state(m, "weight"), m.reduction, _state(m, "pos_weight")
    ),
    "nn.CrossEntropyLoss": lambda m, x, t: cross_entropy(
        x, t, _state(m, "weight"), m.ignore_index, m.reduction, m.label_smoothing
    ),
    "nn.NLLLoss": lambda m, x, t: nll_loss(x, t, _state(m, "weight"), m.ignore_index, m.reduction),
    "nn.LayerNorm": lambda m, x: layer_norm(x, m.normalized_shape, _state(m, "weight"), _state(m, "bias"), m.eps),
    "nn.RMSNorm": lambda m, x: rms_norm(x, m.normalized_shape, _state(m, "weight"), m.eps),
    "nn.GroupNorm": lambda m, x: group_norm(x, m.num_groups, _state(m, "weight"), _state(m, "bias"), m.eps),
}


@reference("nn.Dropout1d", "nn.Dropout2d", "nn.Dropout3d")
def _channel_dropout(m, x):
    channels = x.shape[:2] if x.ndim == m.n + 2 or m.n == 2 else x.shape[:1]
    return x * dropout(np.ones(channels), m.p).reshape(channels + (1,) * (x.ndim - len(channels)))


@reference(*(f"nn.{kind}Pad{n}d" for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero") for n in (1, 2)))
def _pad_layer(m, x):
    pairs = [m.padding[i : i + 2] for i in range(0, len(m.padding), 2)][::-1]
    kind = type(m).__name__[:-5]
    mode = {"Circular": "wrap", "Reflection": "reflect", "Replication": "edge"}.get(kind, "constant")
    value = {"constant_values": m.value} if kind == "Constant" else {}
    return np.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, mode, **value)


def _of_layer(m, x, **weights):
    """A Linear, Conv, ConvTranspose or Embedding with other weights than it holds."""
    w = {"weight": _state(m.layer, "weight"), "bias": _state(m.layer, "bias"), **weights}
    kind = type(m.layer).__name__
    if kind == "Embedding":
        return embedding(x, w["weight"])
    if kind == "Linear":
        return x @ w["weight"].T + w["bias"]
    return (conv_transpose if kind == "ConvTranspose1d" else conv)(x, w["weight"], w["bias"])


@reference("nn.utils.spectral_norm")
def _spectral_norm(m, x):
    name = m.options.get("name", "weight")
    theta = _state(m.layer, f"parametrizations.{name}.original")
    if theta.ndim == 1:
        return _of_layer(m, x, bias=theta / np.sqrt((theta**2).sum()))
    dim = 1 if theta.ndim > 2 else 0
    rows = np.moveaxis(theta, dim, 0).reshape(theta.shape[dim], -1)
    u, v = (_state(m.layer, f"parametrizations.{name}.0.{letter}") for letter in ("_u", "_v"))
    return _of_layer(m, x, weight=theta / np.einsum("i,ij,j", u, rows, v))


@reference("nn.utils.weight_norm")
def _weight_norm(m, x):
    g, v = (_state(m.layer, f"parametrizations.weight.original{i}") for i in (0, 1))
    dim = m.options.get("dim", 0)
    axes = None if dim is None else tuple(d for d in range(v.ndim) if d != dim)
    return _of_layer(m, x, weight=g * v / np.sqrt((v**2).sum(axes, keepdims=dim is not None)))


@reference("nn.Conv1d", "nn.Conv2d")
def _conv_layer(m, x):
    padding, n = m.padding, len(m.kernel_size)
    if m.padding_mode != "zeros":
        reach = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        pairs = [(r // 2, r - r // 2) for r in reach] if padding == "same" else [(p, p) for p in padding]
        x = np.pad(
            x, [(0, 0)] * (x.ndim - n) + pairs, {"replicate": "edge", "circular": "wrap"}.get(m.padding_mode, m.padding_mode)
        )
        padding = 0
    return conv(x, _state(m, "weight"), _state(m, "bias"), m.stride, padding, m.dilation, m.groups)


@reference("nn.ConvTranspose1d", "nn.ConvTranspose2d")
def _conv_transpose_layer(m, x, output_size=None):
    extra = m.output_padding
    if output_size is not None:
        least = conv_transpose(x, _state(m, "weight"), None, m.stride, m.padding, 0, m.groups, m.dilation).shape
        extra = tuple(a - b for a, b in zip(output_size, least[-len(output_size) :], strict=True))
    return conv_transpose(x, _state(m, "weight"), _state(m, "bias"), m.stride, m.padding, extra, m.groups, m.dilation)


@reference("nn.BatchNorm1d", "nn.BatchNorm2d")
def _batch_norm_layer(m, x):
    p, by_batch = arrays(m), m.training or not m.track_running_stats
    return batch_norm(x, p["running_mean"], p["running_var"], p["weight"], p["bias"], by_batch, eps=m.eps)


@reference("nn.InstanceNorm2d")
def _instance_norm_layer(m, x):
    p, by_sample = arrays(m), m.training or not m.track_running_stats
    y = instance_norm(
        x.reshape(-1, *x.shape[-3:]), p["running_mean"], p["running_var"], p["weight"], p["bias"], by_sample, eps=m.eps
    )
    return y.reshape(x.shape)


def _gru(x, h, p, suffix):
    """The gates one after another: r, z, n."""
    W, U = (np.split(p[f"weight_{kind}_{suffix}"], 3) for kind in ("ih", "hh"))
    a, b = (
        np.split(p[f"bias_{kind}_{suffix}"], 3) if p[f"bias_{kind}_{suffix}"] is not None else [0.0] * 3
        for kind in ("ih", "hh")
    )
    r = special.expit(W[0] @ x + a[0] + U[0] @ h[0] + b[0])
    z = special.expit(W[1] @ x + a[1] + U[1] @ h[0] + b[1])
    n = np.tanh(W[2] @ x + a[2] + r * (U[2] @ h[0] + b[2]))
    return ((1 - z) * n + z * h[0],)


def _lstm(x, state, p, suffix):
    """The gates one after another: i, f, g, o."""
    h, c = state
    W, U = (np.split(p[f"weight_{kind}_{suffix}"], 4) for kind in ("ih", "hh"))
    a, b = (
        np.split(p[f"bias_{kind}_{suffix}"], 4) if p[f"bias_{kind}_{suffix}"] is not None else [0.0] * 4
        for kind in ("ih", "hh")
    )
    i, forget, g, o = (W[k] @ x + a[k] + U[k] @ h + b[k] for k in range(4))
    c = special.expit(forget) * c + special.expit(i) * np.tanh(g)
    h = special.expit(o) * np.tanh(c)
    return h if p[f"weight_hr_{suffix}"] is None else p[f"weight_hr_{suffix}"] @ h, c


def _recurrent(step, states):
    def run(m, x, initial=None):
        p, rng, directions = arrays(m), np.random.default_rng(0), 1 + m.bidirectional
        batched = x.ndim == 3
        x = x[:, None] if not batched else x.swapaxes(0, 1) if m.batch_first else x
        T, N, H = x.shape[0], x.shape[1], m.proj_size or m.hidden_size
        initial = () if initial is None else initial if isinstance(initial, tuple) else (initial,)
        initial = [h.reshape(-1, N, h.shape[-1]) for h in initial]
        initial = initial or [np.zeros((m.num_layers * directions, N, n)) for n in (H, m.hidden_size)[:states]]
        last = [np.zeros_like(h) for h in initial]
        for layer in range(m.num_layers):
            y = np.zeros((T, N, directions * H))
            for n, back in product(range(N), range(directions)):
                cell = layer * directions + back
                state = tuple(h[cell, n] for h in initial)
                for t in range(T)[:: -1 if back else 1]:
                    state = step(x[t, n], state, p, f"l{layer}" + "_reverse" * back)
                    y[t, n, back * H : (back + 1) * H] = state[0]
                for h, value in zip(last, state, strict=True):
                    h[cell, n] = value
            x = dropped(y, m.dropout, rng) if m.dropout and layer < m.num_layers - 1 else y
        if not batched:
            return [x[:, 0], *(h[:, 0] for h in last)]
        return [x.swapaxes(0, 1) if m.batch_first else x, *last]

    return run


REFERENCES |= {"nn.GRU": _recurrent(_gru, 1), "nn.LSTM": _recurrent(_lstm, 2)}


@reference("nn.MultiheadAttention")
def _multihead(m, q, k, v, padding=None, need_weights=True, attn_mask=None, average_attn_weights=True, is_causal=False):
    p, E, H = arrays(m), m.embed_dim, m.num_heads
    W = np.split(p["in_proj_weight"], 3) if p["in_proj_weight"] is not None else [p[f"{c}_proj_weight"] for c in "qkv"]
    b = np.zeros((3, E)) if p["in_proj_bias"] is None else p["in_proj_bias"].reshape(3, E)
    batched = q.ndim == 3
    q, k, v = (t[None] if not batched else t if m.batch_first else t.swapaxes(0, 1) for t in (q, k, v))
    q, k, v = (t @ W[i].T + b[i] for i, t in enumerate((q, k, v)))
    N, L, S = len(q), q.shape[1], k.shape[1]
    added = 0
    for key, value in (
        *([(p["bias_k"][0], p["bias_v"][0])] if m.bias_k is not None else []),
        *([(np.zeros((1, E)),) * 2] if m.add_zero_attn else []),
    ):
        k, v = (np.concatenate([t, np.tile(row, (N, 1, 1))], 1) for t, row in ((k, key), (v, value)))
        added += 1
    if attn_mask is not None:
        attn_mask = np.pad(attn_mask, ((0, 0), (0, added)))
    padding = None if padding is None else np.pad(padding, ((0, 0), (0, added)))
    S += added
    heads = np.zeros((N, L, E))
    P = np.zeros((N, H, L, S))
    for n, h in product(range(N), range(H)):
        part = slice(h * E // H, (h + 1) * E // H)
        scores = q[n, :, part] @ k[n, :, part].T / np.sqrt(E / H)
        scores = (
            scores
            if attn_mask is None
            else np.where(attn_mask, -np.inf, scores)
            if attn_mask.dtype == bool
            else scores + attn_mask
        )
        scores = scores if padding is None else np.where(padding[n], -np.inf, scores)
        P[n, h] = softmax(scores, -1)
    if m.dropout:
        P = (dropped if need_weights else dropped_weights)(P, m.dropout, np.random.default_rng(0))
    for n, h in product(range(N), range(H)):
        part = slice(h * E // H, (h + 1) * E // H)
        heads[n, :, part] = P[n, h] @ v[n, :, part]
    y = heads @ p["out_proj.weight"].T + (0.0 if m.out_proj.bias is None else p["out_proj.bias"])
    P = P.mean(1) if average_attn_weights else P
    found = [y, P] if need_weights else [y]
    if not batched:
        return [t[0] for t in found]
    return found if m.batch_first else [y.swapaxes(0, 1), *found[1:]]


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


# The networks as their papers draw them, from their parameters by name.


class Net:
    """Layers of a network, called by the names of their parameters."""

    def __init__(self, module, prefix=""):
        self.p, self.prefix, self.rng = arrays(module), prefix, np.random.default_rng(0)

    def at(self, name):
        return self.p[f"{self.prefix}{name}"]

    def linear(self, name, x):
        bias = self.at(f"{name}.bias")
        return x @ self.at(f"{name}.weight").T + (0.0 if bias is None else bias)

    def conv(self, name, x, **how):
        return conv(x, self.at(f"{name}.weight"), self.at(f"{name}.bias"), **how)

    def batch_norm(self, name, x):
        weight, bias = (self.at(f"{name}.{part}") for part in ("weight", "bias"))
        return channelwise(standardized(x, (0, *range(2, x.ndim)), 1e-5), weight, bias)

    def layer_norm(self, name, x):
        return layer_norm(x, x.shape[-1:], self.at(f"{name}.weight"), self.at(f"{name}.bias"))

    def dropout(self, x, p):
        return dropped(x, p, self.rng) if p else x


def _relu(x, slope=0.0):
    return np.where(x > 0, x, slope * x)


def _softplus(x):
    return np.logaddexp(0, x)


@reference("models.GAN")
def _gan(game, x, z):
    """What the players lower, written down apart: the networks, and each objective's two losses."""
    config, net = game.model.config, Net(game, "model.")
    classes = np.eye(config.classes)[np.arange(len(x))] if config.classes else None
    sides = tuple(side // 4 for side in config.shape[1:])

    def norm(name, x):
        if not config.classes:
            return net.batch_norm(f"{name}.norm", x)
        gamma, beta = np.split((classes @ net.at(f"{name}.affine.weight").T)[:, :, None, None], 2, 1)
        return standardized(x, (0, 2, 3), 1e-5) * (1 + gamma) + beta

    def double(name, x):
        if config.upsample == "nearest":
            return net.conv(f"{name}.1", x.repeat(2, 2).repeat(2, 3), padding=1)
        return conv_transpose(x, net.at(f"{name}.weight"), None, 2, 1)

    def block(name, x):
        h = _relu(net.conv(f"{name}.conv1", x), 0.2)
        h = _relu(net.conv(f"{name}.conv2", h, padding=1, groups=max(1, h.shape[1] // 16)), 0.2)
        return x + net.conv(f"{name}.conv3", h)

    def generator(z):
        if config.network == "mlp":
            for i in (0, 3):
                z = net.linear(f"generator.net.{i}", z)
                z = _relu(net.batch_norm(f"generator.net.{i + 1}", z) if len(config.shape) == 3 else z)
            y = net.linear("generator.net.6", z).reshape(-1, *config.shape)
            return np.tanh(y) if len(config.shape) == 3 else y
        y = net.linear("generator.fc", z if classes is None else np.concatenate([z, classes], 1))
        y = y.reshape(-1, config.hidden, *sides)
        if config.network == "residual":
            for i in range(3):
                if i:
                    y = REFERENCES["interpolate"](net.conv(f"generator.change.{i - 1}", y), scale_factor=2, mode="bilinear")
                y = block(f"generator.stages.{i}.0", y)
            return np.tanh(net.conv("generator.out", y))
        y = _relu(norm("generator.norm0", y))
        for i in (1, 2):
            y = _relu(norm(f"generator.norm{i}", double(f"generator.conv{i}", y)))
        return np.tanh(net.conv("generator.out", y, padding=1))

    def discriminator(x):
        if config.network == "mlp":
            x = x.reshape(len(x), -1)
            for i in (0, 3):
                x = net.dropout(_relu(net.linear(f"discriminator.net.{i}", x), 0.2), config.dropout)
            return net.linear("discriminator.net.6", x)[:, 0]
        if config.network == "residual":
            x = net.conv("discriminator.first", x)
            for i in range(3):
                if i:
                    x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
                    x = net.conv(f"discriminator.change.{i - 1}", x)
                x = block(f"discriminator.stages.{i}.0", x)
            return net.linear("discriminator.fc", x.reshape(len(x), -1))[:, 0]
        for i, stride in enumerate((2, 2, 1), 1):
            x = net.conv(f"discriminator.conv{i}", x, stride=stride, padding=1)
            x = _relu(net.batch_norm(f"discriminator.norm{i}", x) if i > 1 else x, 0.2)
        d = net.linear("discriminator.judge.fc", x.reshape(len(x), -1))[:, 0]
        if classes is not None:
            v = net.linear("discriminator.judge.project", classes)
            d = d + (v * x.sum((2, 3))).sum(1)
        return d

    real = discriminator(x)
    fake = discriminator(generator(z))
    cross_entropy = _softplus(-real).mean() + _softplus(fake).mean()
    return {
        "minimax": [cross_entropy, -_softplus(fake).mean()],
        "non-saturating": [cross_entropy, _softplus(-fake).mean()],
        "least-squares": [((real - 1) ** 2 + fake**2).mean() / 2, ((fake - 1) ** 2).mean() / 2],
        "wasserstein": [fake.mean() - real.mean(), -fake.mean()],
        "relativistic": [_softplus(fake - real).mean(), _softplus(real - fake).mean()],
    }[config.loss]


@reference("models.Pix2Pix")
def _pix2pix(game, a, b):
    """D's loss, then G's with the distance added: the U-Net and the discriminator of patches, written down apart."""
    config, net = game.model.config, Net(game, "model.")

    def norm(name, x, slope):
        weight, bias = (net.at(f"{name}.{k}")[:, None, None] for k in ("weight", "bias"))
        return _relu(standardized(x, (2, 3), 1e-5) * weight + bias, slope)

    def down(i, x):
        return norm(f"generator.down{i}.1", net.conv(f"generator.down{i}.0", x, stride=2, padding=1), 0.2)

    def convolved(name, x):
        return norm(f"generator.{name}.1", net.conv(f"generator.{name}.0", x, padding=1), 0.0)

    def twice(x, like):
        return x.repeat(2, 2).repeat(2, 3)[:, :, : like.shape[2], : like.shape[3]]

    def judge(x):
        x = _relu(net.conv("discriminator.conv1", np.concatenate([a, x], 1), stride=2, padding=1), 0.2)
        x = norm("discriminator.conv2.1", net.conv("discriminator.conv2.0", x, padding=1), 0.2)
        return net.conv("discriminator.judge", x, padding=1)

    h1 = _relu(net.conv("generator.down1", a, stride=2, padding=1), 0.2)
    h2 = down(2, h1)
    h = net.dropout(convolved("up3", twice(down(3, h2), h2)), config.dropout)
    h = convolved("up2", twice(np.concatenate([h, h2], 1), h1))
    h = convolved("refine", convolved("up1", np.concatenate([twice(np.concatenate([h, h1], 1), a), a], 1)))
    made = np.tanh(net.conv("generator.out", np.concatenate([h, a], 1), padding=1))
    real, fake = judge(b), judge(made)
    l1 = np.abs(made - b).mean()
    if config.loss == "hinge":
        return [np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean(), l1 - fake.mean()]
    return [_softplus(-real).mean() + _softplus(fake).mean(), l1 + _softplus(-fake).mean()]


@reference("models.TextGAN")
def _text_gan(telling, x, z, ids):
    """The players' losses over real, generated and mismatched pairs; of "dcgan" the networks, told the vector of a caption."""
    config, net = telling.model.config, Net(telling, "model.")
    true, false = np.split(ids, 2)

    def encoded(player, ids):
        e, p = (net.at(f"{player}.encoder.{table}.weight") for table in ("words", "places"))
        h = (e[ids] + _relu(net.linear(f"{player}.encoder.fc", e[ids] + p), 0.2)).sum(1)
        return h / np.sqrt((h**2).mean(1, keepdims=True) + np.finfo(h.dtype).eps)

    def generator(z, c):
        def norm(i, y):
            gamma, beta = np.split((c @ net.at(f"generator.network.norm{i}.affine.weight").T)[:, :, None, None], 2, 1)
            return _relu(standardized(y, (0, 2, 3), 1e-5) * (1 + gamma) + beta)

        y = net.linear("generator.network.fc", np.concatenate([z, c], 1))
        y = norm(0, y.reshape(-1, config.hidden, *(side // 4 for side in config.shape[1:])))
        for i in (1, 2):
            y = norm(i, net.conv(f"generator.network.conv{i}.1", y.repeat(2, 2).repeat(2, 3), padding=1))
        return np.tanh(net.conv("generator.network.out", y, padding=1))

    def discriminator(x, c):
        for i, stride in enumerate((2, 2, 1), 1):
            x = _relu(net.conv(f"discriminator.network.conv{i}", x, stride=stride, padding=1), 0.2)
        v = net.linear("discriminator.network.judge.project", c)
        d = net.linear("discriminator.network.judge.fc", x.reshape(len(x), -1))[:, 0]
        return d + (v * x.sum((2, 3))).sum(1)

    real, wrong = (discriminator(x, encoded("discriminator", ids)) for ids in (true, false))
    fake = discriminator(generator(z, encoded("generator", true)), encoded("discriminator", true))
    return [_softplus(-real).mean() + (_softplus(fake).mean() + _softplus(wrong).mean()) / 2, _softplus(-fake).mean()]


@reference("models.Flow")
def _flow(model, x, y, t, noise):
    """‖v̂ − u‖², or ‖ε̂ − ε‖², of points on the way from noise to x, through four layers that are told t and y."""
    config, net = model.config, Net(model, "net.")
    s, quarter = t[:, None], np.pi / 2
    if config.path == "linear":
        at, u = s * x + (1 - s) * noise, x - noise
    else:
        at = np.sin(quarter * s) * x + np.cos(quarter * s) * noise
        u = quarter * (np.cos(quarter * s) * x - np.sin(quarter * s) * noise)
    silu = REFERENCES["silu"]
    angle = s * model.net.condition.omega.data
    e = silu(net.linear("condition.fc1", np.concatenate([np.cos(angle), np.sin(angle)], 1)))
    e = net.linear("condition.fc2", e)
    if config.classes:
        e = e + net.at("condition.classes.weight")[y]
    h = silu(net.linear("fc1", at) + e)
    h = silu(net.linear("fc3", silu(net.linear("fc2", h))))
    error = net.linear("out", h) - (u if config.predicts == "velocity" else noise)
    return (error**2).mean(1)


@reference("models.VAE")
def _vae(model, x):
    """log p(x | z) for a z of q(z | x), and KL(q(z | x) ‖ N(0, I)), of each picture."""
    config, net = model.config, Net(model)
    c, h, w = config.shape
    if config.network == "mlp":
        bent = _relu if config.activation == "relu" else np.tanh
        hidden = bent(net.linear("encoder.fc", x.reshape(len(x), -1)))
        for i in range(config.layers - 1):
            hidden = bent(net.linear(f"encoder.further.{i}", hidden))
    else:
        hidden = x
        for i in (1, 2):
            hidden = _relu(net.conv(f"encoder.conv{i}", hidden, stride=2, padding=1))
        hidden = hidden.reshape(len(x), -1)
    mean, log_var = net.linear("encoder.mean", hidden), net.linear("encoder.log_var", hidden)
    z = mean + np.sqrt(np.exp(log_var)) * net.rng.standard_normal(mean.shape)
    y = net.linear("decoder.fc", z)
    if config.network == "mlp":
        y = bent(y)
        for i in range(config.layers - 1):
            y = bent(net.linear(f"decoder.further.{i}", y))
        logits = net.linear("decoder.out", y).reshape(len(x), -1, h, w)
    else:
        y = _relu(y)
        y = y.reshape(-1, 2 * config.hidden, h // 4, w // 4)
        how = {"stride": 2, "padding": 1}
        y = _relu(conv_transpose(y, net.at("decoder.conv1.weight"), net.at("decoder.conv1.bias"), **how))
        logits = conv_transpose(y, net.at("decoder.conv2.weight"), net.at("decoder.conv2.bias"), **how)
    of_mean, of_scale = logits[:, :c], logits[:, c:]
    log_p = {
        "bernoulli": lambda: REFERENCES["bernoulli_log_prob"](x, logits),
        "continuous-bernoulli": lambda: REFERENCES["continuous_bernoulli_log_prob"](x, logits),
        "gaussian": lambda: REFERENCES["gaussian_log_prob"](x, logits, 2 * np.log(config.sigma)),
        "learned-gaussian": lambda: REFERENCES["gaussian_log_prob"](x, of_mean, np.log(np.exp(of_scale) + config.sigma_min**2)),
        "discretized-logistic": lambda: REFERENCES["discretized_logistic_log_prob"](
            x, of_mean, np.log(np.exp(of_scale) + config.sigma_min), config.levels
        ),
    }[config.likelihood]()
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
    if config.kl == "sampled":
        kl = REFERENCES["gaussian_log_prob"](z, mean, log_var) - REFERENCES["gaussian_log_prob"](z, 0.0, 0.0)
    return [log_p.reshape(len(x), -1).sum(1), kl.sum(1)]


@reference("models.VQVAE")
def _vqvae(smooth, x, q):
    """The vectors of the encoder, and the picture of codes"""
    net, how = Net(smooth, "model."), {"stride": 2, "padding": 1}

    def block(name, y):
        return y + net.conv(f"{name}.conv2", _relu(net.conv(f"{name}.conv1", _relu(y), padding=1)))

    def transposed(name, y):
        return conv_transpose(y, net.at(f"{name}.weight"), net.at(f"{name}.bias"), **how)

    y = net.conv("encoder.conv2", _relu(net.conv("encoder.conv1", x, **how)), **how)
    z = net.conv("encoder.out", _relu(block("encoder.block2", block("encoder.block1", y))))
    y = net.conv("decoder.start", q, padding=1)
    y = _relu(block("decoder.block2", block("decoder.block1", y)))
    return [z, transposed("decoder.conv2", _relu(transposed("decoder.conv1", y)))]


@reference("models.GPT")
def _gpt(model, ids, targets):
    """Mean −log p(target) over all positions, the network after figure 1 of GPT-2's paper, head by head."""
    config, net = model.config, Net(model, "transformer.")
    B, T = ids.shape
    D = config.n_embd // config.n_head
    x = net.dropout(net.at("wte.weight")[ids] + net.at("wpe.weight")[:T], config.dropout)
    for i in range(config.n_layer):
        q, k, v = np.split(net.linear(f"h.{i}.attn.c_attn", net.layer_norm(f"h.{i}.ln_1", x)), 3, -1)
        q, k, v = (np.stack([t[..., n * D : (n + 1) * D] for n in range(config.n_head)], 1) for t in (q, k, v))
        heads = attention_(q, k, v, None, config.dropout, True, rng=net.rng)
        y = np.concatenate([heads[:, n] for n in range(config.n_head)], -1)
        x = x + net.dropout(net.linear(f"h.{i}.attn.c_proj", y), config.dropout)
        y = REFERENCES["gelu"](net.linear(f"h.{i}.mlp.c_fc", net.layer_norm(f"h.{i}.ln_2", x)), "tanh")
        x = x + net.dropout(net.linear(f"h.{i}.mlp.c_proj", y), config.dropout)
    log_p = log_softmax(net.layer_norm("ln_f", x) @ net.at("wte.weight").T, -1)
    return -np.mean([log_p[b, t, targets[b, t]] for b, t in product(range(B), range(T))])
