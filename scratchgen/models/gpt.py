r"""The decoder-only transformer.  Radford et al. 2019 (GPT-2), on Vaswani et al. 2017, arXiv:1706.03762.

A text is a sequence of tokens t_1 … t_T, and the model is the chain rule of probability,

    p(t_1, …, t_T) = Π_i p(t_i | t_1, …, t_{i−1})                                                                 (1)

with one network for every factor. Tokens and positions become vectors; blocks add to them what attention gathers from
earlier positions and what a perceptron makes of each; a last projection, tied to the token table, gives the logits:

    x⁰ = W_t[t] + W_p[position]
    x  ← x + Attention(LayerNorm(x)),      x ← x + MLP(LayerNorm(x))            in each block                      (2)
    p(t_{i+1} | t_1 … t_i) = softmax(LayerNorm(x_i) W_tᵀ)

Attention is causal: position i sees positions ≤ i only, so that all factors of (1) come out of one pass. The loss is
the mean of −log p(t_{i+1} | t_1 … t_i) over all positions, in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen import data, metrics, nn, optim, random
from scratchgen import functional as F
from scratchgen.calculus import checkpoint
from scratchgen.grad_mode import no_grad
from scratchgen.models import doctor
from scratchgen.models.family import Draw, Family, Keep, Line, Option, Page, Panel, Score, Texts
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor
from scratchgen.text import BPETokenizer, ByteTokenizer, CharTokenizer, TokenError, Tokenizer, penalised, sample


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int = 256
    block_size: int = 64  # the longest context T
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C, the width of the residual stream
    dropout: float = 0.0
    bias: bool = False  # in linear layers and layer norms
    tokenizer: str = "char"  # or "bytes", "bpe", a folder with vocab.json and merges.txt
    tokens: int = 1024  # of "bpe": the size of its vocabulary, learned from the text to learn from
    checkpoint: bool = False  # recompute the blocks in the backward sweep instead of storing what they computed
    lr: float = 1e-3
    weight_decay: float = 0.1
    beta2: float = 0.99


class CausalSelfAttention(nn.Module):
    """softmax(Q Kᵀ / √D + causal mask) V in each of H heads of width D = C / H, then a projection."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # Q, K and V at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: nn.KeyValueCache | None = None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).reshape(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            y = F.self_attention(qkv, dropout, is_causal=True)  # (B, T, H, D)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, D) each
            past = cache.length
            k, v = cache.append(k, v)  # (B, H, past + T, D)
            seen = Tensor(np.tri(T, past + T, past, dtype=bool), device=x.device) if past and T > 1 else None
            y = F.scaled_dot_product_attention(q, k, v, seen, dropout, is_causal=not past).transpose(1, 2)  # (B, T, H, D)
        y = self.c_proj(y.reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Four times as wide inside, with the tanh form of GELU, as in GPT-2."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return F.dropout(self.c_proj(h), self.dropout, self.training)


class Block(nn.Module):
    """(2)"""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: nn.KeyValueCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The network (2), its loss, and text from it. Parameter names are GPT-2's."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        if config.n_embd % config.n_head:
            raise ValueError(f"GPT: expected n_embd to be a multiple of n_head, got {config.n_embd} and {config.n_head}")
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        for name, p in self.named_parameters():
            if p.ndim == 2:  # the residual stream adds 2 n_layer projections, so that smaller weights keep its variance
                scale = 1 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(p, 0.0, 0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, caches: list[nn.KeyValueCache] | None = None) -> Tensor:
        """Logits of the next token at every position.     (B, T) → (B, T, vocab_size)

        `caches`, one for each block, hold what came before these tokens, and take them up.
        """
        if caches and len(caches) != self.config.n_layer:
            raise ValueError(f"GPT: expected a cache for each of {self.config.n_layer} blocks, got {len(caches)}")
        past, T = caches[0].length if caches else 0, ids.shape[1]
        if past + T > self.config.block_size:
            raise ValueError(f"GPT: expected at most {self.config.block_size} tokens, got {past + T}")
        wte = self.transformer["wte"]
        x = wte(ids) + self.transformer["wpe"](Tensor(np.arange(past, past + T), device=ids.device))  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for block, cache in zip(self.transformer["h"], caches or [None] * self.config.n_layer, strict=True):
            x = checkpoint(block, x) if self.config.checkpoint and cache is None else block(x, cache)
        return F.linear(self.transformer["ln_f"](x), wte.weight)  # (B, T, V)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean −log p(target) over all positions, in nats.     (B, T), (B, T) → ()"""
        logits = self(ids)
        return F.cross_entropy(logits.reshape(-1, self.config.vocab_size), targets.reshape(-1))

    def optimizers(self) -> dict[str, optim.Optimizer]:
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]  # scales and biases do not decay
        groups = [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return {"adamw": optim.AdamW(groups, lr=self.config.lr, betas=(0.9, self.config.beta2))}

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """Lower the loss on one batch (x, y) of windows, y one token ahead of x; gradients are clipped to norm 1."""
        x, y = (as_tensor(ids).to(self.device) for ids in batch)
        loss = self.loss(x, y)
        optimizers["adamw"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        optimizers["adamw"].step()
        return {"loss": loss.item()}

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Mean −log p in nats per token on held-out windows, and its exponential, the perplexity: ∞ above 709 nats."""
        losses = [self.loss(*[Tensor(ids, device=self.device) for ids in batch]).item() for batch in batches]
        nll = float(np.mean(losses))
        with np.errstate(over="ignore"):
            return {"nll": nll, "perplexity": float(np.exp(nll))}

    def stream(
        self,
        ids: np.ndarray,
        max_new_tokens: int,
        *,
        repetition_penalty: float = 1.0,
        generator: np.random.Generator | None = None,
        **rules: Any,
    ) -> Iterator[np.ndarray]:
        """Continue each row, token by token, drawing from (1).     (B, T) → up to max_new_tokens times (B)

        Only the last block_size tokens are seen. Until there are more, keys and values of earlier tokens are kept; from then on
        every token moves by a position at each step, and all are computed anew. Rules as in `text.sample`; the penalty as in
        `text.penalised`, on all tokens of the row.
        """
        rng = random.generator(generator)
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.shape[1] or ids.dtype.kind not in "iu":
            raise ValueError(f"GPT: expected integer tokens of shape (B, T) with T of at least 1, got {ids.dtype} {ids.shape}")
        block, caches = self.config.block_size, [nn.KeyValueCache() for _ in self.transformer["h"]]
        for _ in range(max_new_tokens):
            fits = caches and ids.shape[1] <= block
            unseen = ids[:, caches[0].length :] if fits else ids[:, -block:]
            with no_grad():
                logits = self(Tensor(unseen, device=self.device), caches if fits else None)[:, -1].cpu().data  # (B, V)
            new = sample(penalised(logits, ids, repetition_penalty), **rules, rng=rng)
            ids = np.concatenate([ids, new[:, None]], axis=1)
            yield new

    def generate(self, ids: np.ndarray, max_new_tokens: int, **how: Any) -> np.ndarray:
        """Each row continued by so many tokens, as in `stream`.     (B, T) → (B, T + new)"""
        new = list(self.stream(ids, max_new_tokens, **how))
        return np.concatenate([ids, *(column[:, None] for column in new)], axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def tokenize(train: data.Text, test: data.Text, settings: Mapping[str, Any]) -> tuple[data.Tokens, data.Tokens]:
    """Both parts of a text as tokens. Raises DataError where fewer than two of them are held out, one to foretell another.

    A vocabulary of characters holds those of both: one that only the held-out part has is a character of the language too.
    """
    tokenizer = _tokenizer(train.text, test.text, settings)
    if len(test) < 2:
        raise data.DataError(
            f"{train.name}: expected at least 2 characters held out, one to be foretold from the other, got {len(test)} "
            f"of {len(train) + len(test)}."
        )
    both = [data.Tokens(tokenizer.encode(part.text), tokenizer, settings["block_size"], part.name) for part in (train, test)]
    if len(both[1]) < 2:
        raise data.DataError(f"{train.name}: expected at least 2 tokens held out, got {len(both[1])}.")
    return both[0], both[1]


def _tokenizer(train: str, test: str, settings: Mapping[str, Any]) -> Tokenizer:
    """The one that the setting `tokenizer` asks for. Raises DataError where a folder holds none."""
    kind = settings["tokenizer"]
    try:
        if kind == "char":
            return CharTokenizer.train(train + test)
        if kind == "bytes":
            return ByteTokenizer()
        return BPETokenizer.train(train, settings["tokens"]) if kind == "bpe" else BPETokenizer.load(kind)
    except TokenError as error:
        raise data.DataError(f"tokenizer: {error}") from error


def write(
    model: GPT,
    tokenizer: Tokenizer,
    n: int,
    rng: np.random.Generator,
    *,
    prompt: str | None = None,
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | None = None,
) -> list[str]:
    """n texts: the prompt, each time continued by `length` tokens. Without a prompt, what may follow the end of a line.

    A text ends before `stop`, where the model writes that.
    Raises TokenError for a character that the tokenizer does not know, and the errors of `text.sample`.
    """
    hidden = 0
    if prompt:
        ids = tokenizer.encode(prompt)
    else:
        ids, hidden = tokenizer.encode("\n") if _knows(tokenizer, "\n") else np.zeros(1, np.int64), 1
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    how |= {"repetition_penalty": repetition_penalty, "generator": rng}
    texts: list[str] = []
    for i in range(0, n, 256):  # so many fit into the memory
        rows = np.repeat(ids[None], min(256, n - i), axis=0)
        written = [rows[:, hidden:]]
        for new in model.stream(rows, length, **how):
            written.append(new[:, None])
            if stop and all(stop in text for text in _decoded(tokenizer, written, len(ids) - hidden)):
                break
        texts += _decoded(tokenizer, written, 0)
    return [_before(text, stop, len(prompt or "")) for text in texts]


def _decoded(tokenizer: Tokenizer, columns: list[np.ndarray], start: int) -> list[str]:
    """The texts of rows of tokens, from the one at `start`."""
    return [tokenizer.decode(row[start:]) for row in np.concatenate(columns, axis=1)]


def _before(text: str, stop: str | None, start: int) -> str:
    """The text as far as the first `stop` that begins at `start` or later."""
    at = text.find(stop, start) if stop else -1
    return text if at < 0 else text[:at]


def _knows(tokenizer: Tokenizer, text: str) -> bool:
    """Can the tokenizer express the text?"""
    try:
        tokenizer.encode(text)
    except TokenError:
        return False
    return True


def scores(
    task: data.Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable[[str], Any], keep: Keep
) -> dict[str, float]:
    """Bits for each byte of the held-out text, comparable across tokenizers, and the loss of a model that knows nothing."""
    tokenizer = task.test.tokenizer
    targets = np.concatenate([y.reshape(-1) for _, y in task.held_out()])
    n_bytes = len(tokenizer.decode(targets).encode("utf-8", "surrogatepass"))
    bits = metrics.bits_per_byte(found["nll"] * len(targets), n_bytes)
    return {"bits_per_byte": bits, "uniform": math.log(tokenizer.vocab_size)}


_KINDS = {"char": "characters", "bytes": "bytes", "bpe": "bytes and strings of them"}


def page(model: GPT, tokenizer: Tokenizer, task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: what the model writes, tame and wild."""
    prompt = "The " if _knows(tokenizer, "The ") else None
    written = [
        (f"temperature {t:g}", draw(1, np.random.default_rng(3), prompt=prompt, length=360, temperature=t)[0])
        for t in (0.5, 0.8, 1.0)
    ]
    return Page(
        f"A text is a sequence of tokens, here {tokenizer.vocab_size:,} different {_KINDS[tokenizer.kind]}, and its "
        "probability is the product of the probabilities of each token given all before it. One network computes them all, by "
        "attention to what came earlier, and a text is written by drawing one token after the other.",
        (
            "p ( t_1 , … , t_T ) = ∏__i p ( t_i ∣ t_1 , … , t_{i−1} )",
            "Attention ( Q , K , V ) = softmax ( Q K^⊤ / √d + M ) V",
        ),
        (Texts(written, f"Written by the model, begun with “{prompt}”." if prompt else "Written by the model."),),
    )


FAMILY = Family(
    name="gpt",
    title="Transformer language model",
    model=GPT,
    config=GPTConfig,
    learns_from=data.Text,
    prepare=tokenize,
    decided={"vocab_size": lambda tokens: tokens.tokenizer.vocab_size},
    makes="text",
    sample=write,
    read_metadata=lambda metadata: Tokenizer.from_dict(metadata["tokenizer"]),
    options=(
        Option("prompt", str, "the text to continue", "TEXT"),
        Option("length", int, "tokens to add (500)", "L", "a whole number of at least 1 and at most 10000", 1, 10_000),
        Option("temperature", float, "below 1 tamer, above 1 wilder; 0 always the likeliest token (1)", "T",
               "a number of at least 0"),
        Option("top_k", int, "draw among the K likeliest tokens only", "K", "a whole number of at least 1", 1),
        Option("top_p", float, "draw among the likeliest tokens that make up P", "P",
               "a number above 0 and up to 1", 1e-300, 1),
        Option("min_p", float, "draw among the tokens at least P times as likely as the likeliest", "P",
               "a number above 0 and up to 1", 1e-300, 1),
        Option("repetition_penalty", float, "above 1: tokens that were written are less likely (1)", "R",
               "a number above 0", 1e-300),
        Option("stop", str, "end before this, where it is written", "TEXT"),
    ),
    many=1,
    snapshot=lambda task, draw, rng: draw(1, rng, length=256, temperature=0.8),
    scores=scores,
    meanings=(
        Score("nll", "loss", -1, "nats per held-out token"),
        Score("perplexity", "perplexity", -1, "of how many equally likely tokens it is unsure", exponential=True),
        Score("bits_per_byte", "bits per byte", -1, "of held-out text, as a compressor would need"),
        Score("uniform", "loss of guessing", 0, "nats per token, where all are held equally likely"),
    ),
    curves=(Panel("loss, nats per token", (Line("loss", "training"), Line("test_nll", "held out", 1, True))),),
    rules=(doctor.flat("loss"), doctor.held_out("nll")),
    page=page,
)  # fmt: skip
