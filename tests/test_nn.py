"""Layers compute what their equations say: a section a kind. (Module itself: `test_nn_module.py`; how weights begin, and
clipping: `test_nn_init.py`; hooks: `test_nn_hooks.py`; computed weights: `test_nn_parametrize.py`.)
"""

import math

import numpy as np
import pytest
from scipy import special, stats

from scratchgen import functional as F
from scratchgen import nn
from scratchgen.grad_mode import no_grad
from scratchgen.nn import init
from scratchgen.nn.module import Module
from scratchgen.tensors import tensor
from tests.test_nn_module import close, copied, rng


def randomized(module, seed=0):
    """The module in float64, every parameter drawn anew: no bias 0, no weight 1 that would hide a mistake."""
    module.double()
    g = rng(seed)
    for p in module.parameters():
        with no_grad():
            p.copy_(0.5 * g.normal(size=p.shape))
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Linear, embedding, convolution
# ---------------------------------------------------------------------------------------------------------------------


def test_linear():
    m = randomized(nn.Linear(3, 2))
    x = rng(1).normal(size=(4, 5, 3))
    close(m(tensor(x)), np.einsum("abi,oi->abo", x, m.weight.data) + m.bias.data)
    assert nn.Linear(0, 4)(tensor(np.zeros((2, 0), np.float32))).shape == (2, 4)
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(2, 3\)"):
        m(tensor(np.zeros((2, 4))))


def test_embedding_adds_up_repeats_and_spares_the_padding():
    m = nn.Embedding(5, 2, padding_idx=-2, dtype=np.float64)
    assert m.padding_idx == 3 and (m.weight.data[3] == 0).all() and (m.weight.data[[0, 1, 2, 4]] != 0).all()
    i = np.array([[1, 3], [1, 0]])
    y = m(tensor(i))
    close(y, m.weight.data[i])
    y.backward(tensor(np.arange(8.0).reshape(2, 2, 2)))
    close(m.weight.grad, [[6, 7], [4, 6], [0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, (2, 1), "valid", "same"])
def test_conv2d(mode, padding):
    stride, dilation = ((1, 1), (1, 1)) if padding == "same" else ((2, 1), (1, 2))
    m = randomized(nn.Conv2d(4, 6, (2, 3), stride, padding, dilation, 2, padding_mode=mode))
    x = rng(2).normal(size=(2, 4, 6, 7))
    reach = np.array(dilation) * (np.array([2, 3]) - 1)
    pairs = (
        {"same": [(r // 2, r - r // 2) for r in reach], "valid": [(0, 0)] * 2}.get(padding)
        if isinstance(padding, str)
        else None
    )
    pairs = pairs or [(p, p) for p in (padding if isinstance(padding, tuple) else (padding,) * 2)]
    name = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    padded = np.pad(x, [(0, 0), (0, 0), *pairs], mode=name)
    h, w = ((padded.shape[2 + d] - reach[d] - 1) // stride[d] + 1 for d in (0, 1))
    expected = np.zeros((2, 6, h, w))
    for o in range(6):
        for i in range(h):
            for j in range(w):
                window = padded[:, o // 3 * 2 : o // 3 * 2 + 2, i * stride[0] :: dilation[0], j * stride[1] :: dilation[1]][
                    :, :, :2, :3
                ]
                expected[:, o, i, j] = (window * m.weight.data[o]).sum((1, 2, 3)) + m.bias.data[o]
    close(m(tensor(x)), expected)
    close(m(tensor(x[0])), expected[0])


def test_conv1d_is_conv2d_of_height_1():
    for mode in ("zeros", "reflect", "replicate", "circular"):
        m = randomized(nn.Conv1d(4, 6, 3, 2, 2, 2, 2, padding_mode=mode))
        wide = randomized(nn.Conv2d(4, 6, (1, 3), (1, 2), (0, 2), (1, 2), 2, padding_mode=mode))
        wide.load_state_dict({"weight": m.weight.data[:, :, None], "bias": m.bias.data})
        x = rng(3).normal(size=(2, 4, 9))
        close(m(tensor(x)), wide(tensor(x[:, :, None])).squeeze(2))


@pytest.mark.parametrize("n", [1, 2])
def test_conv_transpose_is_the_adjoint(n):
    """⟨y, W x⟩ = ⟨Wᵀ y, x⟩, for a transpose made with the convolution's own weight."""
    settings = {"stride": 3, "padding": 1, "dilation": 2, "groups": 2, "bias": False}
    conv = randomized((nn.Conv1d, nn.Conv2d)[n - 1](4, 6, 3, **settings))
    back = (nn.ConvTranspose1d, nn.ConvTranspose2d)[n - 1](6, 4, 3, **settings).double()
    back.load_state_dict(conv.state_dict())
    x = rng(4).normal(size=(2, 4) + (9, 11)[:n])
    y = rng(5).normal(size=conv(tensor(x)).shape)
    returned = back(tensor(y), x.shape[2:])
    assert returned.shape == x.shape and back(tensor(y), output_size=x.shape).shape == x.shape
    np.testing.assert_allclose((conv(tensor(x)).data * y).sum(), (returned.data * x).sum(), rtol=1e-12)


def test_conv_transpose_sizes():
    m = nn.ConvTranspose2d(1, 1, 3, 2, 1, output_padding=(1, 0))
    x = tensor(np.ones((1, 1, 4, 5), np.float32))
    assert m(x).shape == (1, 1, 8, 9) and m(x, [7, 10]).shape == (1, 1, 7, 10) and m(x.squeeze(0), [7, 9]).shape == (1, 7, 9)
    with pytest.raises(ValueError, match=r"output_size from \(7, 9\) to \(8, 10\), got \(9, 9\)"):
        m(x, [9, 9])
    with pytest.raises(ValueError, match="output_size of 2 lengths"):
        m(x, [9])
    bias = nn.ConvTranspose1d(2, 3, 4).double()
    with no_grad():
        bias.weight.zero_()
    close(bias(tensor(np.ones((1, 2, 5)))), np.broadcast_to(bias.bias.data[:, None], (1, 3, 8)))


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation and dropout
# ---------------------------------------------------------------------------------------------------------------------


def normalised(x, axes, eps=1e-5):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


@pytest.mark.parametrize(("make", "shape"), [
    (nn.BatchNorm1d, (5, 3)), (nn.BatchNorm1d, (5, 3, 4)), (nn.BatchNorm2d, (5, 3, 4, 2)),
])  # fmt: skip
@pytest.mark.parametrize("momentum", [0.1, 0.4, None])
def test_batch_norm(make, shape, momentum):
    m = randomized(make(3, momentum=momentum))
    axes = (0, *range(2, len(shape)))
    column = (3,) + (1,) * (len(shape) - 2)
    w, b = m.weight.data.reshape(column), m.bias.data.reshape(column)
    mean, var, g = np.zeros(3), np.ones(3), rng(6)
    for k in range(1, 4):
        x = g.normal(2, 3, size=shape)
        close(m(tensor(x)), normalised(x, axes) * w + b)
        rate = 1 / k if momentum is None else momentum
        mean += rate * (x.mean(axes) - mean)
        var += rate * (x.var(axes, ddof=1) - var)
        close(m.running_mean, mean)
        close(m.running_var, var)
        assert m.num_batches_tracked.item() == k
    before = copied(m.eval())
    column = (1,) + column
    close(m(tensor(x)), (x - mean.reshape(column)) / np.sqrt(var.reshape(column) + 1e-5) * w + b)
    assert all(np.array_equal(a, before[name]) for name, a in m.state_dict().items())


def test_batch_norm_of_batches_without_memory():
    m = nn.BatchNorm2d(3, affine=False, track_running_stats=False).double().eval()
    x = rng(7).normal(size=(4, 3, 2, 2))
    close(m(tensor(x)), normalised(x, (0, 2, 3)))
    assert m.running_mean is None and not m.state_dict()
    m = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        m(tensor(np.ones((1, 3), np.float32)))
    assert m.num_batches_tracked.item() == 0 and (m.running_var.data == 1).all()
    m(tensor(np.ones((2, 3), np.float32)))
    m.reset_running_stats()
    assert m.num_batches_tracked.item() == 0 and (m.running_var.data == 1).all()


def test_instance_norm():
    m = randomized(nn.InstanceNorm2d(3, affine=True, track_running_stats=True, momentum=0.3))
    x = rng(8).normal(1, 2, size=(4, 3, 5, 2))
    w, b = m.weight.data[:, None, None], m.bias.data[:, None, None]
    close(m(tensor(x)), normalised(x, (2, 3)) * w + b)
    mean, var = 0.3 * x.mean((2, 3)).mean(0), 0.7 + 0.3 * x.var((2, 3), ddof=1).mean(0)
    close(m.running_mean, mean)
    close(m.running_var, var)
    close(m.eval()(tensor(x)), (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5) * w + b)
    plain = nn.InstanceNorm2d(3).double()
    close(plain(tensor(x[0])), normalised(x, (2, 3))[0])
    close(plain.eval()(tensor(x)), normalised(x, (2, 3)))


def test_row_norms():
    x = rng(9).normal(1, 2, size=(4, 6, 3, 5))
    m = randomized(nn.LayerNorm((3, 5), eps=1e-3))
    close(m(tensor(x)), normalised(x, (2, 3), 1e-3) * m.weight.data + m.bias.data)
    m = randomized(nn.LayerNorm(5, bias=False))
    close(m(tensor(x)), normalised(x, -1) * m.weight.data)
    close(nn.LayerNorm(5, elementwise_affine=False)(tensor(x)), normalised(x, -1))
    m = randomized(nn.GroupNorm(2, 6))
    grouped = normalised(x.reshape(4, 2, 3, 3, 5), (2, 3, 4)).reshape(x.shape)
    close(m(tensor(x)), grouped * m.weight.data[:, None, None] + m.bias.data[:, None, None])
    m = randomized(nn.RMSNorm((3, 5)))
    eps = np.finfo(np.float64).eps
    close(m(tensor(x)), x / np.sqrt(np.square(x).mean((2, 3), keepdims=True) + eps) * m.weight.data)


def test_dropout():
    m = nn.Dropout(0.3, generator=rng(10))
    x = tensor(np.ones(20_000, np.float32), requires_grad=True)
    y = m(x)
    assert set(np.unique(y.data)) == {np.float32(0), np.float32(1 / 0.7)}
    assert stats.binomtest(int((y.data == 0).sum()), 20_000, 0.3).pvalue > 1e-3
    y.sum().backward()
    assert np.array_equal(x.grad.data, y.data)
    assert not np.array_equal(m(x).data, y.data) and m.eval()(x) is x
    again = nn.Dropout(0.3, generator=rng(10))
    assert np.array_equal(again(x).data, y.data)
    assert (nn.Dropout(1.0)(x).data == 0).all() and nn.Dropout(0)(x) is x


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def attend(m, query, key, value, allowed=None, added=None):
    """One query, one head at a time. query (L, N, E) …; allowed (N, L, S)."""
    if hasattr(m, "in_proj_weight"):
        wq, wk, wv = np.split(m.in_proj_weight.data, 3)
    else:
        wq, wk, wv = m.q_proj_weight.data, m.k_proj_weight.data, m.v_proj_weight.data
    bq, bk, bv = np.split(m.in_proj_bias.data, 3)
    q, k, v = query @ wq.T + bq, key @ wk.T + bk, value @ wv.T + bv
    length, n, width = q.shape
    d = width // m.num_heads
    out, weights = np.zeros_like(q), np.zeros((n, m.num_heads, length, len(k)))
    for b in range(n):
        for h in range(m.num_heads):
            part = slice(h * d, h * d + d)
            for i in range(length):
                who = np.arange(len(k)) if allowed is None else np.flatnonzero(allowed[b, i])
                if len(who):
                    scores = k[who, b, part] @ q[i, b, part] / math.sqrt(d)
                    weights[b, h, i, who] = special.softmax(scores + (0 if added is None else added[i, who]))
                out[i, b, part] = weights[b, h, i] @ v[:, b, part]
    return out @ m.out_proj.weight.data.T + m.out_proj.bias.data, weights


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("widths", [(6, 6), (5, 4)])
def test_attention(batch_first, widths):
    m = randomized(nn.MultiheadAttention(6, 2, kdim=widths[0], vdim=widths[1], batch_first=batch_first))
    g = rng(11)
    query, key, value = g.normal(size=(3, 2, 6)), g.normal(size=(4, 2, widths[0])), g.normal(size=(4, 2, widths[1]))
    forbidden = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    padding = np.array([[0, 0, 0, 1], [0, 0, 1, 1]], bool)
    added = g.normal(size=(3, 4))
    args = [tensor(x.swapaxes(0, 1).copy() if batch_first else x) for x in (query, key, value)]
    for masks, allowed, bias in (
        ({}, None, None),
        ({"attn_mask": tensor(forbidden)}, np.broadcast_to(~forbidden, (2, 3, 4)), None),
        ({"attn_mask": forbidden, "key_padding_mask": padding}, ~forbidden[None] & ~padding[:, None], None),
        (
            {"attn_mask": tensor(added), "key_padding_mask": tensor(padding)},
            np.broadcast_to(~padding[:, None], (2, 3, 4)),
            added,
        ),
        ({"attn_mask": np.repeat(forbidden[None], 4, 0)}, np.broadcast_to(~forbidden, (2, 3, 4)), None),
    ):
        expected, weights = attend(m, query, key, value, allowed, bias)
        if batch_first:
            expected = expected.swapaxes(0, 1)
        y, w = m(*args, **masks)
        close(y, expected)
        close(w, weights.mean(1))
        close(m(*args, **masks, average_attn_weights=False)[1], weights)
        y, w = m(*args, **masks, need_weights=False)
        close(y, expected)
        assert w is None


def test_attention_to_oneself_is_causal_when_asked():
    m = randomized(nn.MultiheadAttention(6, 3, batch_first=True))
    x = rng(12).normal(size=(2, 5, 6))
    expected, weights = attend(m, *[x.swapaxes(0, 1)] * 3, np.broadcast_to(np.tri(5, dtype=bool), (2, 5, 5)))
    changed = x.copy()
    changed[:, 3:] += 1  # the future
    for options in ({"is_causal": True}, {"is_causal": True, "attn_mask": np.triu(np.ones((5, 5), bool), 1)}):
        for need in (True, False):
            y, w = m(*[tensor(x)] * 3, need_weights=need, **options)
            close(y, expected.swapaxes(0, 1))
            assert not need or np.allclose(w.data, weights.mean(1))
            later = m(*[tensor(changed)] * 3, need_weights=need, **options)[0]
            assert np.array_equal(later.data[:, :3], y.data[:, :3]) and not np.allclose(later.data[:, 3:], y.data[:, 3:])
    close(m(*[tensor(x[0])] * 3, is_causal=True)[0], expected[:, 0])
    other = np.arange(25).reshape(5, 5) % 3 == 1  # both masks count
    expected_both, _ = attend(m, *[x.swapaxes(0, 1)] * 3, np.broadcast_to(np.tri(5, dtype=bool) & ~other, (2, 5, 5)))
    for need in (True, False):
        close(m(*[tensor(x)] * 3, need_weights=need, is_causal=True, attn_mask=other)[0], expected_both.swapaxes(0, 1))
    close(m(*[tensor(x[0])] * 3, is_causal=True)[1], weights[0].mean(0))


def test_a_cycle_of_modules_has_a_device_and_its_parameters_once():
    a, b = nn.Module(), nn.Module()
    a.other, b.other = b, a
    assert a.device == "cpu" and not list(a.parameters())
    b.fc = nn.Linear(2, 2)
    assert a.device == "cpu" and [n for n, _ in a.named_parameters()] == ["other.fc.weight", "other.fc.bias"]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need", [False, True])
def test_attention_with_a_cache_is_attention_to_all_so_far(batch_first, need):
    m = randomized(nn.MultiheadAttention(6, 3, batch_first=batch_first))
    x = rng(16).normal(size=(2, 6, 6) if batch_first else (6, 2, 6))
    piece = lambda a, b: tensor(x[:, a:b] if batch_first else x[a:b])  # noqa: E731
    whole, weights = m(*[tensor(x)] * 3, need_weights=need, is_causal=True)
    padding = np.array([[False] * 6, [True, False, False, True, False, False]])
    padded, _ = m(*[tensor(x)] * 3, need_weights=need, is_causal=True, key_padding_mask=padding)
    cache, other = nn.KeyValueCache(), nn.KeyValueCache()
    for a, b in ((0, 2), (2, 3), (3, 5), (5, 6)):
        y, w = m(*[piece(a, b)] * 3, need_weights=need, is_causal=True, cache=cache)
        close(y, whole.data[:, a:b] if batch_first else whole.data[a:b])
        assert cache.length == b and (w is None if not need else np.allclose(w.data, weights.data[:, a:b, :b]))
        masks = {"key_padding_mask": padding[:, :b], "is_causal": True}
        y, _ = m(*[piece(a, b)] * 3, need_weights=need, **masks, cache=other)
        close(y, padded.data[:, a:b] if batch_first else padded.data[a:b])
    with pytest.raises(ValueError, match="cat: expected shapes that agree"):
        m(*[tensor(x[:1, :1])] * 3, cache=cache)


def test_with_a_cache_the_queries_are_the_last_of_the_positions():
    m = randomized(nn.MultiheadAttention(6, 3, batch_first=True))
    x = rng(17).normal(size=(2, 5, 6))
    last, all_so_far = tensor(x[:, 3:]), tensor(x)
    expected, _ = m(all_so_far, all_so_far, all_so_far, is_causal=True)
    for need in (False, True):
        y, _ = m(last, all_so_far, all_so_far, need_weights=need, is_causal=True, cache=nn.KeyValueCache())
        close(y, expected.data[:, 3:])
        y, _ = m(last[:, 1:], all_so_far, all_so_far, need_weights=need, is_causal=True, cache=nn.KeyValueCache())
        close(y, expected.data[:, 4:])


def test_attention_to_nothing_is_zero():
    m = randomized(nn.MultiheadAttention(4, 2))
    x = tensor(rng(13).normal(size=(3, 1, 4)), requires_grad=True)
    nothing = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    for need in (True, False):
        y, _ = m(x, x, x, attn_mask=nothing, need_weights=need)
        close(y[1, 0], m.out_proj.bias)
        x.grad = None
        y[1].sum().backward()
        assert (x.grad.data == 0).all()


def test_attention_dropout():
    m = randomized(nn.MultiheadAttention(4, 2, dropout=0.5, generator=rng(14)))
    x = tensor(rng(15).normal(size=(6, 8, 4)))
    _, w = m(x, x, x, average_attn_weights=False)
    kept = m.eval()(x, x, x, average_attn_weights=False)[1]
    assert 0.3 < (w.data == 0).mean() < 0.7
    close(w.data[w.data != 0], 2 * kept.data[w.data != 0])
    assert not np.allclose(m.train()(x, x, x, need_weights=False)[0].data, m.eval()(x, x, x, need_weights=False)[0].data)
    m = randomized(nn.MultiheadAttention(4, 2, dropout=1.0))
    close(m(x, x, x, need_weights=False)[0], np.broadcast_to(m.out_proj.bias.data, x.shape))


# ---------------------------------------------------------------------------------------------------------------------
# Recurrence
# ---------------------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return special.expit(x)


def recur(m, x, layer, reverse, states):
    """One layer, one direction, step by step. x: (T, N, in)."""
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    w_ih, w_hh = getattr(m, "weight_ih" + suffix).data, getattr(m, "weight_hh" + suffix).data
    b_ih, b_hh = (getattr(m, name + suffix).data if m.bias else 0.0 for name in ("bias_ih", "bias_hh"))
    h, c = states if len(states) == 2 else (states[0], None)
    outputs = np.zeros(x.shape[:2] + (m.hidden_size,))
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        a, b = x[t] @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if c is None:
            (ar, az, an), (br, bz, bn) = np.split(a, 3, -1), np.split(b, 3, -1)
            z = sigmoid(az + bz)
            h = (1 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * h
        else:
            i, f, g, o = np.split(a + b, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        outputs[t] = h
    return outputs, (h,) if c is None else (h, c)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("layers", "both", "bias"), [(1, False, True), (1, True, False), (2, False, False), (2, True, True)])
def test_recurrent(kind, layers, both, bias):
    m = randomized(kind(3, 4, layers, bias, bidirectional=both))
    g, cells, count = rng(16), layers * (1 + both), 1 if kind is nn.GRU else 2
    x, start = g.normal(size=(5, 2, 3)), [g.normal(size=(cells, 2, 4)) for _ in range(count)]
    for state in (start, None):
        first = state or [np.zeros((cells, 2, 4))] * count
        y, last = x, []
        for layer in range(layers):
            runs = [recur(m, y, layer, r, [s[layer * (1 + both) + r] for s in first]) for r in range(1 + both)]
            y = np.concatenate([outputs for outputs, _ in runs], -1)
            last += [states for _, states in runs]
        last = [np.stack(states) for states in zip(*last, strict=True)]
        hx = None if state is None else tuple(map(tensor, state)) if count == 2 else tensor(state[0])
        output, states = m(tensor(x), hx)
        close(output, y)
        for a, b in zip(states if count == 2 else [states], last, strict=True):
            close(a, b)
        m.batch_first = True
        close(m(tensor(x.swapaxes(0, 1).copy()), hx)[0], y.swapaxes(0, 1))
        m.batch_first = False
    alone = [s[:, 0] for s in start]
    output, states = m(tensor(x[:, 0]), tuple(map(tensor, alone)) if count == 2 else tensor(alone[0]))
    whole, _ = m(tensor(x), tuple(map(tensor, start)) if count == 2 else tensor(start[0]))
    close(output, whole.data[:, 0])
    assert (states[0] if count == 2 else states).shape == (cells, 4)


def test_recurrent_dropout_acts_between_layers():
    m = randomized(nn.GRU(3, 4, 2, dropout=1.0))
    x = rng(17).normal(size=(5, 2, 3))
    y, _ = m(tensor(x))
    close(y, recur(m, np.zeros((5, 2, 4)), 1, False, [np.zeros((2, 4))])[0])
    first = recur(m, x, 0, False, [np.zeros((2, 4))])[0]
    close(m.eval()(tensor(x))[0], recur(m, first, 1, False, [np.zeros((2, 4))])[0])


def test_recurrent_gradient_reaches_the_first_step():
    m = randomized(nn.LSTM(2, 3))
    x = tensor(rng(18).normal(size=(6, 1, 2)), requires_grad=True)
    m(x)[0][-1].sum().backward()
    assert (np.abs(x.grad.data).sum((1, 2)) > 0).all() and all(p.grad is not None for p in m.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Everything without weights
# ---------------------------------------------------------------------------------------------------------------------


X = rng(19).normal(size=(2, 4, 6, 6))
ROWS, CLASSES = rng(20).normal(size=(5, 4)), np.array([0, 3, 2, 2, 1])
SHARES = special.softmax(rng(21).normal(size=(5, 4)), -1)


@pytest.mark.parametrize(("module", "inputs", "expected"), [
    (nn.Identity(3, a=4), (X,), lambda x: x),
    (nn.ReLU(True), (X,), F.relu),
    (nn.LeakyReLU(0.2, True), (X,), lambda x: F.leaky_relu(x, 0.2)),
    (nn.PReLU(4, 0.3, dtype=np.float64), (X,), lambda x: F.leaky_relu(x, 0.3)),
    (nn.ELU(0.7), (X,), lambda x: F.elu(x, 0.7)),
    (nn.CELU(0.7), (X,), lambda x: F.celu(x, 0.7)),
    (nn.SELU(), (X,), F.selu),
    (nn.SiLU(), (X,), F.silu),
    (nn.Mish(), (X,), F.mish),
    (nn.GELU(), (X,), F.gelu),
    (nn.GELU("tanh"), (X,), lambda x: F.gelu(x, approximate="tanh")),
    (nn.GLU(1), (X,), lambda x: F.glu(x, 1)),
    (nn.Tanh(), (X,), F.tanh),
    (nn.Hardtanh(-0.5, 0.2), (X,), lambda x: F.hardtanh(x, -0.5, 0.2)),
    (nn.Softsign(), (X,), F.softsign),
    (nn.Sigmoid(), (X,), F.sigmoid),
    (nn.LogSigmoid(), (X,), F.logsigmoid),
    (nn.Softplus(2, 1), (X,), lambda x: F.softplus(x, 2, 1)),
    (nn.Softmax(1), (X,), lambda x: F.softmax(x, 1)),
    (nn.LogSoftmax(-1), (X,), lambda x: F.log_softmax(x, -1)),
    (nn.Flatten(), (X,), lambda x: x.reshape(2, 144)),
    (nn.Flatten(2, 3), (X,), lambda x: x.reshape(2, 4, 36)),
    (nn.Unflatten(1, (2, 2)), (X,), lambda x: x.reshape(2, 2, 2, 6, 6)),
    (nn.Unflatten(-1, (-1, 3)), (X,), lambda x: x.reshape(2, 4, 6, 2, 3)),
    (nn.PixelShuffle(2), (X,), lambda x: F.pixel_shuffle(x, 2)),
    (nn.PixelUnshuffle(3), (X,), lambda x: F.pixel_unshuffle(x, 3)),
    (nn.Upsample(scale_factor=2), (X,), lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    (nn.Upsample((3, 8), None, "bilinear", True), (X,), lambda x: F.interpolate(x, (3, 8), None, "bilinear", True)),
    (nn.MaxPool1d(3, 2, 1), (X[0],), lambda x: F.max_pool1d(x, 3, 2, 1)),
    (nn.MaxPool2d(2), (X,), lambda x: x.reshape(2, 4, 3, 2, 3, 2).amax((3, 5))),
    (nn.MaxPool2d(3, 2, 1, 1, False, True), (X,), lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    (nn.AvgPool1d(3, 2, 1, count_include_pad=False), (X[0],), lambda x: F.avg_pool1d(x, 3, 2, 1, False, False)),
    (nn.AvgPool2d(2), (X,), lambda x: x.reshape(2, 4, 3, 2, 3, 2).mean((3, 5))),
    (nn.AvgPool2d(3, 2, divisor_override=4), (X,), lambda x: F.avg_pool2d(x, 3, 2, divisor_override=4)),
    (nn.AdaptiveAvgPool2d(1), (X,), lambda x: x.mean((2, 3), keepdim=True)),
    (nn.MSELoss(), (ROWS, SHARES), lambda x, t: (x - t).square().mean()),
    (nn.L1Loss(reduction="sum"), (ROWS, SHARES), lambda x, t: (x - t).abs().sum()),
    (nn.HuberLoss("none", 0.4), (ROWS, SHARES), lambda x, t: F.huber_loss(x, t, "none", 0.4)),
    (nn.SmoothL1Loss(beta=0.4), (ROWS, SHARES), lambda x, t: F.smooth_l1_loss(x, t, beta=0.4)),
    (nn.BCEWithLogitsLoss(), (ROWS, SHARES), lambda x, t: (F.softplus(x) - t * x).mean()),
    (nn.CrossEntropyLoss(), (ROWS, CLASSES), lambda x, t: -F.log_softmax(x, 1).gather(1, t.unsqueeze(1)).mean()),
    (
        nn.CrossEntropyLoss(np.arange(1.0, 5.0), ignore_index=2, reduction="sum", label_smoothing=0.1),
        (ROWS, CLASSES),
        lambda x, t: F.cross_entropy(x, t, tensor(np.arange(1.0, 5.0)), 2, "sum", 0.1),
    ),
    (nn.NLLLoss(ignore_index=2), (ROWS, CLASSES), lambda x, t: F.nll_loss(x, t, ignore_index=2)),
    (nn.KLDivLoss(reduction="batchmean"), (ROWS, SHARES), lambda x, t: (t * (t.log() - x)).sum() / 5),
    (nn.KLDivLoss(log_target=True), (ROWS, SHARES), lambda x, t: (t.exp() * (t - x)).mean()),
], ids=lambda x: type(x).__name__ if isinstance(x, Module) else "")  # fmt: skip
def test_modules_of_functions(module, inputs, expected):
    inputs = [tensor(x) for x in inputs]
    close(module(*inputs), expected(*inputs))
    assert repr(module).startswith(type(module).__name__)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, in one sentence
# ---------------------------------------------------------------------------------------------------------------------


ONES = tensor(np.ones((3, 1, 4), np.float32))


@pytest.mark.parametrize(("call", "said"), [
    (lambda: nn.Linear(-1, 2), "Linear: expected in_features to be a whole number of at least 0, got -1"),
    (lambda: nn.Linear(2.5, 2), "in_features to be a whole number"),
    (lambda: nn.Linear(2, 2, dtype=np.int64), "Linear: expected a floating dtype, got int64"),
    (lambda: nn.Embedding(3, 2, 3), "padding_idx to be a row of 3, got 3"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), r"groups to divide in_channels and out_channels, \(3, 4\), got 2"),
    (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "Conv2d: expected kernel_size"),
    (lambda: nn.Conv1d(3, 4, 0), "Conv1d: expected kernel_size"),
    (lambda: nn.Conv1d(3, 4, 3, padding="full"), "padding to be numbers, 'valid' or 'same', got 'full'"),
    (lambda: nn.Conv1d(3, 4, 3, 2, padding="same"), "'same' expects stride 1"),
    (lambda: nn.Conv1d(3, 4, 3, padding_mode="mirror"), "padding_mode 'zeros' or 'reflect'"),
    (lambda: nn.ConvTranspose1d(3, 4, 3, padding_mode="reflect"), "padding_mode 'zeros', got 'reflect'"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, 2, output_padding=2), "output_padding below stride or dilation"),
    (lambda: nn.Conv2d(3, 4, 3)(tensor(np.ones((1, 2, 5, 5), np.float32))), "expected 3 input channels"),
    (lambda: nn.BatchNorm2d(3)(tensor(np.ones((2, 3), np.float32))), r"shape \(N, 3, H, W\), got \(2, 3\)"),
    (lambda: nn.BatchNorm1d(3)(tensor(np.ones((2, 4), np.float32))), r"shape \(N, 3\) or \(N, 3, L\), got \(2, 4\)"),
    (lambda: nn.InstanceNorm2d(3)(tensor(np.ones((2, 3, 4), np.float32))), r"or \(3, H, W\), got \(2, 3, 4\)"),
    (lambda: nn.BatchNorm2d(3, 0.8, momentum=-1), "momentum to be a number from 0 to 1, got -1"),
    (lambda: nn.LayerNorm(()), "at least one length"),
    (lambda: nn.LayerNorm(4)(tensor(np.ones((2, 3), np.float32))), r"shape \(…, 4\), got \(2, 3\)"),
    (lambda: nn.GroupNorm(4, 6), "num_groups to divide 6 channels, got 4"),
    (lambda: nn.GroupNorm(2, 6)(tensor(np.ones((2, 4), np.float32))), r"shape \(N, 6, …\)"),
    (lambda: nn.Dropout(1.5), "Dropout: expected p to be a number from 0 to 1, got 1.5"),
    (lambda: nn.Dropout(0.5, generator=3), "numpy.random.Generator"),
    (lambda: nn.GELU("erf"), "approximate to be 'none' or 'tanh'"),
    (lambda: nn.Softmax(None), "dim to be a whole number, got None"),
    (lambda: nn.Hardtanh(1, 1), "min_val < max_val"),
    (lambda: nn.MSELoss(reduction="max"), "MSELoss: expected reduction 'mean', 'sum', 'none', got 'max'"),
    (lambda: nn.Upsample(), "size or scale_factor"),
    (lambda: nn.Upsample(2, mode="cubic"), "mode 'nearest', 'linear', 'bilinear', 'bicubic' or 'trilinear'"),
    (lambda: nn.MaxPool2d(2, padding=2), "at most half the window"),
    (lambda: nn.Unflatten(1, (2, 3))(tensor(np.ones((2, 5)))), r"dimension 1 to hold \(2, 3\), got shape \(2, 5\)"),
    (lambda: nn.MultiheadAttention(6, 4), "num_heads to divide embed_dim 6, got 4"),
    (lambda: nn.MultiheadAttention(4, 2)(*[tensor(np.ones((2, 3, 5), np.float32))] * 3), r"widths \(4, 4, 4\)"),
    (lambda: nn.MultiheadAttention(4, 2)(*[tensor(np.ones(4, np.float32))] * 3), "3 dimensions, or 2 without a batch"),
    (
        lambda: nn.MultiheadAttention(4, 2)(*[ONES] * 3, attn_mask=np.ones((2, 2), bool)),
        r"attn_mask of shape \(3, 3\) or \(2, 3, 3\), got \(2, 2\)",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)(*[ONES] * 3, key_padding_mask=np.ones((3, 1), bool)),
        r"key_padding_mask of shape \(1, 3\), got \(3, 1\)",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)(*[ONES] * 3, attn_mask=np.ones((3, 3), int)),
        "attn_mask of bool or float32, got int64",
    ),
    (lambda: nn.GRU(3, 4, dropout=0.1), "dropout acts between layers"),
    (lambda: nn.GRU(3, 4)(tensor(np.ones((2, 5, 2), np.float32))), r"shape \(T, N, 3\), or \(T, 3\)"),
    (lambda: nn.GRU(3, 4)(tensor(np.ones((0, 5, 3), np.float32))), "at least one step"),
    (lambda: nn.GRU(4, 4)(ONES, ONES[0]), r"state of shape \(1, 1, 4\), got \(1, 4\)"),
    (lambda: nn.LSTM(4, 4)(ONES, ONES), r"pair \(h_0, c_0\)"),
    (lambda: init.uniform_(tensor(np.ones(2)), 1, 0), "bounds a ≤ b"),
    (lambda: init.normal_(tensor(np.ones(2)), std=-1), "standard deviation"),
    (lambda: init.normal_(np.ones(2)), "expected a tensor, got ndarray"),
    (lambda: init.xavier_uniform_(tensor(np.ones(2))), "at least 2 dimensions"),
    (lambda: init.orthogonal_(tensor(np.ones(2))), "at least 2 dimensions"),
    (lambda: init.kaiming_normal_(tensor(np.ones((2, 2))), mode="both"), "mode 'fan_in' or 'fan_out'"),
    (lambda: init.calculate_gain("swish"), "got 'swish'"),
    (lambda: nn.utils.clip_grad_value_([np.ones(2)], 1), "expected tensors, got ndarray"),
])  # fmt: skip
def test_refusals(call, said):
    with no_grad(), pytest.raises((ValueError, TypeError, AttributeError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_name_is_there():
    assert sorted(nn.__all__) == sorted(set(nn.__all__)) and all(hasattr(nn, name) for name in nn.__all__)
    for name in nn.__all__:
        thing = getattr(nn, name)
        assert not isinstance(thing, type) or (thing.__doc__ and thing.__doc__ is not Module.__doc__) or thing is Module
