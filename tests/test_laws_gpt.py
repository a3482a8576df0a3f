r"""Laws behind attention and the chain rule of probability."""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen import metrics, nn
from scratchgen.models import GPT, GPTConfig


def draw(*shape, seed=0):
    return sg.tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def test_the_gradient_of_softmax_cross_entropy_is_p_minus_y():
    r"""ℓ = −log softmax(x)_t   ⇒   ∂ℓ/∂x = p − y,  y the one-hot target"""
    x = draw(5, 7)
    t = np.array([0, 3, 6, 3, 1])
    (g,) = sg.grad(F.cross_entropy(x, t, reduction="sum"), x)
    np.testing.assert_allclose(g.data, F.softmax(x, 1).data - np.eye(7)[t], atol=1e-14)


def test_its_hessian_is_diag_p_minus_p_pᵀ():
    r"""∂²ℓ/∂x² = diag(p) − p pᵀ,  positive semi-definite, with the constant vector in its kernel"""
    x = draw(6)
    h = sg.hessian(lambda x: F.cross_entropy(x, np.array(2)), x).data
    p = F.softmax(x, 0).data
    np.testing.assert_allclose(h, np.diag(p) - np.outer(p, p), atol=1e-14)
    assert np.linalg.eigvalsh(h).min() > -1e-14
    np.testing.assert_allclose(h @ np.ones(6), 0, atol=1e-14)


def test_softmax_does_not_see_a_shift():
    r"""softmax(x + c) = softmax(x), so its vector-Jacobian products sum to 0"""
    x = draw(4, 5)
    np.testing.assert_allclose(F.softmax(x + 300.0, 1).data, F.softmax(x, 1).data, rtol=1e-12)
    (g,) = sg.grad(F.softmax(x, 1), x, sg.tensor(np.random.default_rng(1).standard_normal((4, 5))))
    np.testing.assert_allclose(g.data.sum(1), 0, atol=1e-15)


def test_attention_without_positions_is_permutation_equivariant():
    r"""A(Πq, Πk, Πv) = Π A(q, k, v), and A(q, Πk, Πv) = A(q, k, v)"""
    q, k, v = draw(6, 4, seed=1), draw(6, 4, seed=2), draw(6, 3, seed=3)
    order = np.random.default_rng(0).permutation(6)
    base = F.scaled_dot_product_attention(q, k, v).data
    np.testing.assert_allclose(F.scaled_dot_product_attention(q[order], k[order], v[order]).data, base[order], rtol=1e-12)
    np.testing.assert_allclose(F.scaled_dot_product_attention(q, k[order], v[order]).data, base, rtol=1e-12)


def test_attention_is_an_average_of_values():
    r"""each output lies in the convex hull of the values; equal keys give their mean"""
    q, v = draw(5, 4, seed=1), draw(7, 3, seed=2)
    out = F.scaled_dot_product_attention(q, draw(7, 4, seed=3), v).data
    assert (out <= v.data.max(0) + 1e-12).all() and (out >= v.data.min(0) - 1e-12).all()
    same = sg.zeros(7, 4, dtype=np.float64)
    np.testing.assert_allclose(F.scaled_dot_product_attention(q, same, v).data, np.tile(v.data.mean(0), (5, 1)), rtol=1e-12)


def test_with_the_causal_mask_no_output_moves_when_the_future_does():
    r"""∂ out_i / ∂ (k, v)_j = 0 for j > i"""
    q, k, v = draw(5, 4, seed=1), draw(5, 4, seed=2), draw(5, 3, seed=3)
    jk, jv = sg.jacobian(lambda k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (k, v))
    for j in (jk.data, jv.data):  # (i, feature, j, feature)
        reach = np.abs(j).max((1, 3))
        assert (reach[np.triu_indices(5, 1)] == 0).all()
        assert (reach[np.tril_indices(5)][1:] > 0).all()


def test_nor_does_any_output_of_the_model_move_when_later_tokens_do():
    r"""p(t_{i+1} | t_1 … t_i) is the same number, bit for bit, whatever t_{i+1}, t_{i+2}, … are"""
    sg.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=7, block_size=6, n_layer=2, n_head=2, n_embd=8)).double()
    text, rng = np.array([[3, 1, 4, 1, 5, 2]]), np.random.default_rng(0)
    logits = model(sg.tensor(text)).data
    for i in range(6):
        other = np.concatenate([text[:, : i + 1], rng.integers(0, 7, (1, 5 - i))], 1)
        np.testing.assert_array_equal(model(sg.tensor(other)).data[:, : i + 1], logits[:, : i + 1])
    other = text.copy()
    other[0, 2] = 0  # the past does matter, to every later output
    assert (model(sg.tensor(other)).data[0, 2:] != logits[0, 2:]).any(-1).all()


def test_a_query_that_may_attend_to_nothing_gives_zeros_value_and_gradient():
    r"""Σ over nothing = 0:  out_i = 0, and ∂out_i/∂q_i = 0, where 0/0 would give NaN"""
    q, k, v = draw(3, 4, seed=1), draw(5, 4, seed=2), draw(5, 2, seed=3)
    mask = np.ones((3, 5), bool)
    mask[1] = False
    out = F.scaled_dot_product_attention(q, k, v, mask)
    assert (out.data[1] == 0).all() and (out.data[[0, 2]] != 0).all()
    for create_graph in (False, True):
        grads = sg.grad(out.square().sum(), [q, k, v], create_graph=create_graph, retain_graph=True)
        assert all(np.isfinite(g.data).all() for g in grads) and (grads[0].data[1] == 0).all()


def test_perplexity_is_the_exponential_of_the_mean_negative_log_likelihood():
    r"""exp(−(1/n) Σ_i log p_i) = (Π_i p_i)^{−1/n};  of a uniform model over V tokens it is V"""
    logits, text = draw(10, 17), np.arange(10)
    p = F.softmax(logits, 1).data[np.arange(10), text]
    nll = F.cross_entropy(logits, text).item()
    assert math.isclose(metrics.perplexity(nll), np.prod(p) ** (-1 / 10), rel_tol=1e-11)
    uniform = F.cross_entropy(0 * logits, text).item()
    assert math.isclose(metrics.perplexity(uniform), 17, rel_tol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_probabilities_of_all_texts_of_a_length_sum_to_one(length):
    r"""Σ_{t_1 … t_n} Π_i p(t_i | t_1 … t_{i−1}) = 1"""
    sg.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=2, n_embd=8)).double()
    texts = np.stack(np.meshgrid(*[range(3)] * length, indexing="ij"), -1).reshape(-1, length)
    before = np.concatenate([np.zeros((len(texts), 1), np.int64), texts[:, :-1]], 1)
    log_p = F.log_softmax(model(sg.tensor(before)), -1).gather(2, texts[..., None]).sum((1, 2))
    assert math.isclose(np.exp(log_p.data).sum(), 1, rel_tol=1e-12)


@pytest.mark.parametrize("pieces", [(1,) * 7, (5, 1, 1), (2, 3, 2), (7,)])
def test_cached_decoding_is_full_decoding(pieces):
    r"""logits(t_1 … t_n)_i = logits(t_i | K, V of t_1 … t_{i−1}):  what causal attention made of a text never changes"""
    sg.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=5, block_size=7, n_layer=2, n_head=2, n_embd=8, bias=True)).double()
    ids = np.random.default_rng(0).integers(0, 5, (3, 7))
    caches = [nn.KeyValueCache() for _ in range(2)]
    found, at = [], 0
    for n in pieces:
        found.append(model(sg.tensor(ids[:, at : at + n]), caches).data)
        at += n
        assert [cache.length for cache in caches] == [at, at]
    np.testing.assert_allclose(np.concatenate(found, 1), model(sg.tensor(ids)).data, rtol=1e-12, atol=1e-14)


def test_layer_norms_gradient_is_orthogonal_to_one_and_to_its_output():
    r"""y = (x − μ)/σ does not see shifts or (as ε → 0) scales of x:  x̄ · 1 = 0 and x̄ · x̂ = 0"""
    x = draw(4, 9)
    y = F.layer_norm(x, 9, eps=0.0)
    (g,) = sg.grad(y, x, sg.tensor(np.random.default_rng(1).standard_normal((4, 9))))
    np.testing.assert_allclose(g.data.sum(1), 0, atol=1e-14)
    np.testing.assert_allclose((g.data * y.data).sum(1), 0, atol=1e-13)
    np.testing.assert_allclose(F.layer_norm(x * 3 + 7, 9, eps=0.0).data, y.data, rtol=1e-10, atol=1e-12)


def test_temperature_is_a_power_and_its_limits_are_argmax_and_uniform():
    r"""p_T ∝ p^{1/T}"""
    from scratchgen.text import probabilities

    logits = np.random.default_rng(0).standard_normal(6)
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(probabilities(logits, temperature=0.5), p**2 / (p**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(probabilities(logits, temperature=1e6), np.full(6, 1 / 6), rtol=1e-5)
    np.testing.assert_array_equal(probabilities(logits, temperature=0.0), np.eye(6)[logits.argmax()])


def test_multi_head_attention_is_attention_head_by_head():
    r"""MHA(x) = Concat_h(A(x W_q^h, x W_k^h, x W_v^h)) W_o.   Vaswani et al. 2017, §3.2.2"""
    sg.manual_seed(0)
    layer = nn.MultiheadAttention(6, 2, batch_first=True).double()
    x = draw(2, 4, 6)
    out, _ = layer(x, x, x)
    w, b = layer.in_proj_weight.data, layer.in_proj_bias.data
    q, k, v = np.split(x.data @ w.T + b, 3, axis=-1)
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        s = q[..., h] @ k[..., h].swapaxes(1, 2) / math.sqrt(3)
        p = np.exp(s - s.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ v[..., h])
    expected = np.concatenate(heads, -1) @ layer.out_proj.weight.data.T + layer.out_proj.bias.data
    np.testing.assert_allclose(out.data, expected, rtol=1e-10)
