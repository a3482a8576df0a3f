r"""Attention with several heads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen import functional as F
from scratchgen import random
from scratchgen.nn import init
from scratchgen.nn.layers import Linear
from scratchgen.nn.module import Module, blank, number, whole
from scratchgen.ops import cat
from scratchgen.tensors import Tensor, constant

Generator = np.random.Generator


class KeyValueCache:
    r"""Keys and values of the positions so far, kept so that each position is computed once.

    With a causal mask a position depends on no later one, so its key and value stay the same when the text grows.
    One cache serves one layer and one batch; `length` is the number S of positions that it holds.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.key is None else self.key.shape[-2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take up T more positions; all that there are now.     (…, T, D), (…, T, E) → (…, S, D), (…, S, E)"""
        if self.key is not None:
            key, value = cat([self.key, key], -2), cat([self.value, value], -2)
        self.key, self.value = key, value
        return key, value


class MultiheadAttention(Module):
    r"""head_h = softmax(Q_h K_hᵀ / √d + M) V_h,   y = [head_1 … head_H] Wᵒᵀ + bᵒ

    Q = x_q W_qᵀ + b_q, K = x_k W_kᵀ + b_k, V = x_v W_vᵀ + b_v, split into H heads of width d = E/H.

    query (L, N, E), key (S, N, kdim), value (S, N, vdim) → (L, N, E), and the weights: (N, L, S), averaged over the
    heads, or (N, H, L, S) if `average_attn_weights` is False, or None if `need_weights` is. With `batch_first` N comes
    first; without N all are matrices. Asking for no weights is faster: the scores are then never stored.

    `key_padding_mask` (N, S) and `attn_mask` (L, S) or (N·H, L, S) are added to the scores, or, where boolean, True
    forbids (in `functional.scaled_dot_product_attention` True allows: PyTorch has it so). `is_causal` forbids to look
    ahead, with or without a mask. A row that may attend to nothing gives zeros before Wᵒ. The weights returned in
    training are those left by dropout.

    With a `cache`, key and value are new positions only: they are taken up by it, S counts all that it then holds (for the
    masks too), and with `is_causal` the L queries are the last of them.

    `add_bias_kv` adds a learned key and value, bias_k and bias_v (1, 1, E), to those of every sample, `add_zero_attn` a key
    and a value of zeros: one or two more columns of weights, which no mask forbids.

    in_proj_weight (3E, E) holds W_q, W_k, W_v; where kdim or vdim differ from E they are q_proj_weight, k_proj_weight,
    v_proj_weight instead. They start Xavier-uniform, the biases zero. `generator` draws weights and dropout.
    Raises ValueError where H does not divide E or shapes do not fit.
    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.2.2.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        dtype: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.embed_dim, self.num_heads = whole(self, "embed_dim", embed_dim), whole(self, "num_heads", num_heads)
        if embed_dim % num_heads:
            raise ValueError(f"MultiheadAttention: expected num_heads to divide embed_dim {embed_dim}, got {num_heads}")
        self.head_dim = embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else whole(self, "kdim", kdim)
        self.vdim = embed_dim if vdim is None else whole(self, "vdim", vdim)
        self.dropout = number(self, "dropout", dropout, 0, 1)
        self.batch_first = batch_first
        self.generator = generator and random.generator(generator)
        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = blank(self, (3 * embed_dim, embed_dim), dtype)
        else:
            self.q_proj_weight = blank(self, (embed_dim, embed_dim), dtype)
            self.k_proj_weight = blank(self, (embed_dim, self.kdim), dtype)
            self.v_proj_weight = blank(self, (embed_dim, self.vdim), dtype)
        self.in_proj_bias = blank(self, (3 * embed_dim,), dtype) if bias else None
        self.bias_k, self.bias_v = (blank(self, (1, 1, embed_dim), dtype) if add_bias_kv else None for _ in "kv")
        self.add_zero_attn = add_zero_attn
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype, generator=generator)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the projections anew; Wᵒ stays, as a layer of its own."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if hasattr(self, name):
                init.xavier_uniform_(getattr(self, name), generator=generator)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for p in (self.bias_k, self.bias_v):
            if p is not None:
                init.xavier_normal_(p, generator=generator)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.ndim == 3
        self._check(query, key, value)
        q, k, v = self._project(query, key, value)
        if not batched:
            q, k, v = (t.unsqueeze(0) for t in (q, k, v))
        elif not self.batch_first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        n, heads = q.shape[0], (self.num_heads, self.head_dim)
        q, k, v = (t.reshape(n, t.shape[1], *heads).transpose(1, 2) for t in (q, k, v))  # (N, H, ·, d)
        if cache is not None:
            k, v = cache.append(k, v)
        length, source = q.shape[2], k.shape[2]
        ahead = 0 if cache is None else source - length  # the number of keys before the first query's own

        mask = self._mask(n, length, source, key_padding_mask, attn_mask, q.dtype)
        dropout = self.dropout if self.training else 0.0
        fused = not need_weights and dropout < 1
        if ahead and length == 1:  # the query at the last position may attend to all keys
            is_causal = False
        added = (self.bias_k is not None) + self.add_zero_attn
        if is_causal and (mask is not None or not fused or ahead or added):
            future = _additive("attn_mask", devices.beside(~np.tri(length, source, ahead, dtype=bool), q.data), q.dtype)
            mask, is_causal = future if mask is None else mask + future, False
        if added:
            k, v = self._with_added(k, self.bias_k), self._with_added(v, self.bias_v)
            mask = None if mask is None else mask.pad((0, added))  # every query may attend to the added keys
        weights = None
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, generator=self.generator)
        else:
            scores = (q * self.head_dim**-0.5) @ k.mT  # (N, H, L, S)
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout, generator=self.generator)
            y = weights @ v
        y = self.out_proj(y.transpose(1, 2).reshape(n, length, self.embed_dim))  # (N, L, E)

        if not need_weights:
            weights = None
        elif average_attn_weights:
            weights = weights.mean(1)  # (N, L, S)
        if not batched:
            return y.squeeze(0), weights if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        shapes = f"{query.shape}, {key.shape}, {value.shape}"
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
            raise ValueError(
                f"MultiheadAttention: expected query, key and value of 3 dimensions, or 2 without a batch, got {shapes}"
            )
        batch = 0 if self.batch_first else 1
        if query.ndim == 3 and not query.shape[batch] == key.shape[batch] == value.shape[batch]:
            raise ValueError(f"MultiheadAttention: expected one batch size in dimension {batch}, got {shapes}")
        widths = (self.embed_dim, self.kdim, self.vdim)
        if (query.shape[-1], key.shape[-1], value.shape[-1]) != widths or key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"MultiheadAttention: expected query, key and value of widths {widths}, two equally long, got {shapes}"
            )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Q, K, V, all heads side by side: (…, E) each."""
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self.kdim != self.embed_dim or self.vdim != self.embed_dim:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        elif query is key and key is value:  # one product for all three
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = self.in_proj_weight.chunk(3)
        return tuple([F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)])

    def _with_added(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values, and after them the learned one and the one of zeros.     (N, H, S, d) → (N, H, S + 1 or 2, d)"""
        shape = (*x.shape[:2], 1, x.shape[3])
        parts = [] if bias is None else [bias.reshape(1, self.num_heads, 1, self.head_dim).expand(shape)]
        parts += [constant(np.zeros_like(x.data, shape=shape))] if self.add_zero_attn else []
        return cat([x, *parts], 2)

    def _mask(self, n: int, length: int, source: int, padding: Any, attn: Any, dtype: np.dtype) -> Tensor | None:
        """What is added to the scores (N, H, L, S): the sum of both masks."""
        total = None
        if attn is not None:
            attn = _additive("attn_mask", attn, dtype)
            if attn.shape == (n * self.num_heads, length, source):
                attn = attn.reshape(n, self.num_heads, length, source)
            elif attn.shape != (length, source):
                shapes = f"{(length, source)} or {(n * self.num_heads, length, source)}"
                raise ValueError(f"MultiheadAttention: expected attn_mask of shape {shapes}, got {attn.shape}")
            total = attn
        if padding is not None:
            padding = _additive("key_padding_mask", padding, dtype)
            if padding.shape != (n, source) and (n != 1 or padding.shape != (source,)):
                raise ValueError(f"MultiheadAttention: expected key_padding_mask of shape {(n, source)}, got {padding.shape}")
            padding = padding.reshape(n, 1, 1, source)
            total = padding if total is None else total + padding
        return total

    def extra_repr(self) -> str:
        return self._shown("embed_dim", "num_heads", "dropout", "batch_first")


def _additive(name: str, mask: Any, dtype: np.dtype) -> Tensor:
    """A mask to add to the scores: −∞ where a boolean one forbids."""
    mask = mask if isinstance(mask, Tensor) else Tensor(mask)
    if mask.dtype == np.bool_:
        return constant(np.where(mask.data, -math.inf, 0).astype(dtype))
    if mask.dtype != dtype:
        raise TypeError(f"MultiheadAttention: expected {name} of bool or {dtype}, got {mask.dtype}")
    return mask
