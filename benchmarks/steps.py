"""Whole training steps of the three models, beside PyTorch eager with the same weights, batch and arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import scratchgen as sg
from benchmarks.clock import compare, summary, torch_or_none
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig


def run(quick: bool = False) -> list[dict]:
    """Milliseconds a step; x_torch above 1 means faster than PyTorch."""
    rng = np.random.default_rng(0)
    pictures = (rng.random((128, 1, 28, 28)) < 0.3).astype(np.float32)
    text = rng.integers(0, 65, (12, 65))
    cases = [
        (
            "GPT 4 layers, 4 heads, 128 wide, block 64, batch 12",
            GPT(GPTConfig(65, 64, 4, 4, 128)),
            (text[:, :-1], text[:, 1:]),
            gpt_twin,
        ),
        ("VAE 784-400-20, batch 128", VAE(VAEConfig((1, 28, 28))), (pictures, None), vae_twin),
        ("DCGAN 28 x 28, width 64, batch 64", GAN(GANConfig((1, 28, 28), "dcgan", hidden=64)), (pictures[:64], None), gan_twin),
    ]
    torch = torch_or_none()
    rows = []
    for what, model, batch, twin in cases:
        rivals = {}
        optimizers = model.optimizers()
        if torch is not None:
            step, first_loss = twin(torch, model, batch)
            sg.manual_seed(0)
            ours = model.training_step(batch, optimizers)
            np.testing.assert_allclose(list(ours.values())[0], first_loss, rtol=0.05)  # the noise differs
            rivals["torch"] = step
        everyone = {"ours": lambda m=model, b=batch, o=optimizers: m.training_step(b, o), **rivals}
        row = summary(compare(everyone, rounds=3 if quick else 7, turn=0.3))
        rows.append({"what": what, **row})
    return rows


def _load(torch: Any, twin: Any, model: Any) -> Any:
    """Give a PyTorch module our weights, by name."""
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in model.state_dict().items()})
    return twin


def gpt_twin(torch: Any, model: GPT, batch: Any) -> tuple[Callable[[], Any], float]:
    """The same transformer in PyTorch: (one step, its loss)."""
    nn, TF, c = torch.nn, torch.nn.functional, model.config

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(c.n_embd, bias=False), nn.LayerNorm(c.n_embd, bias=False)
            self.attn, self.mlp = nn.Module(), nn.Module()
            self.attn.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=False)
            self.attn.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=False)
            self.mlp.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=False)
            self.mlp.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=False)

        def forward(self, x: Any) -> Any:
            B, T, C = x.shape
            q, k, v = (t.view(B, T, c.n_head, -1).transpose(1, 2) for t in self.attn.c_attn(self.ln_1(x)).split(C, 2))
            y = TF.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
            x = x + self.attn.c_proj(y)
            return x + self.mlp.c_proj(TF.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))

    twin = nn.Module()
    twin.transformer = nn.ModuleDict(
        {
            "wte": nn.Embedding(c.vocab_size, c.n_embd),
            "wpe": nn.Embedding(c.block_size, c.n_embd),
            "h": nn.ModuleList([Block() for _ in range(c.n_layer)]),
            "ln_f": nn.LayerNorm(c.n_embd, bias=False),
        }
    )
    _load(torch, twin, model)
    t = twin.transformer
    decay, plain = [p for p in twin.parameters() if p.ndim >= 2], [p for p in twin.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": c.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, c.beta2))
    x, y = (torch.from_numpy(b.copy()) for b in batch)

    def step() -> float:
        h = t["wte"](x) + t["wpe"](torch.arange(x.shape[1]))
        for block in t["h"]:
            h = block(h)
        loss = TF.cross_entropy(TF.linear(t["ln_f"](h), t["wte"].weight).view(-1, c.vocab_size), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step, step()


def vae_twin(torch: Any, model: VAE, batch: Any) -> tuple[Callable[[], Any], float]:
    """The same autoencoder in PyTorch, with fused Adam: (one step, its loss)."""
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    pixels = int(np.prod(c.shape))
    twin = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict(
                {
                    "fc": nn.Linear(pixels, c.hidden),
                    "mean": nn.Linear(c.hidden, c.latent),
                    "log_var": nn.Linear(c.hidden, c.latent),
                }
            ),
            "decoder": nn.ModuleDict({"fc": nn.Linear(c.latent, c.hidden), "out": nn.Linear(c.hidden, pixels)}),
        }
    )
    _load(torch, twin, model)
    optimizer = torch.optim.Adam(twin.parameters(), lr=c.lr, fused=True)
    x = torch.from_numpy(batch[0]).flatten(1)
    e, d = twin["encoder"], twin["decoder"]

    def step() -> float:
        h = TF.relu(e["fc"](x))
        mean, log_var = e["mean"](h), e["log_var"](h)
        logits = d["out"](TF.relu(d["fc"](mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))))
        reconstruction = TF.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        loss = reconstruction + 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, step()


def gan_twin(torch: Any, model: GAN, batch: Any) -> tuple[Callable[[], Any], float]:
    """The same pair in PyTorch: (one round of the game, the discriminator's loss)."""
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    channels, h, w = c.shape
    width = c.hidden

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(c.latent, width * (h // 4) * (w // 4), bias=False)
            self.norm0, self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width // 2), nn.BatchNorm2d(width // 4)
            self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width // 2, width // 4, 3, padding=1, bias=False)
            self.out = nn.Conv2d(width // 4, channels, 3, padding=1)

        def forward(self, z: Any) -> Any:
            y = TF.relu(self.norm0(self.fc(z).view(-1, width, h // 4, w // 4)))
            y = TF.relu(self.norm1(self.conv1(TF.interpolate(y, scale_factor=2))))
            y = TF.relu(self.norm2(self.conv2(TF.interpolate(y, scale_factor=2))))
            return torch.tanh(self.out(y))

    class Discriminator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width // 2, 4, 2, 1)
            self.conv2 = nn.Conv2d(width // 2, width, 4, 2, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.fc = nn.Linear(width * (h // 4) * (w // 4), 1)

        def forward(self, x: Any) -> Any:
            y = TF.leaky_relu(self.norm2(self.conv2(TF.leaky_relu(self.conv1(x), 0.2))), 0.2)
            return self.fc(y.flatten(1)).squeeze(1)

    twin = nn.ModuleDict({"generator": Generator(), "discriminator": Discriminator()})
    _load(torch, twin, model)
    G, D = twin["generator"], twin["discriminator"]
    betas = (c.beta1, 0.999)
    opt_d, opt_g = torch.optim.Adam(D.parameters(), c.lr, betas), torch.optim.Adam(G.parameters(), c.lr, betas)
    weights = list(G.parameters())
    x = torch.from_numpy(batch[0]) * 2 - 1

    def step() -> float:
        fake = G(torch.randn(len(x), c.latent))
        loss_d = TF.softplus(-D(x)).mean() + TF.softplus(D(fake.detach())).mean()
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        loss_g = TF.softplus(-D(fake)).mean()
        opt_g.zero_grad()
        loss_g.backward(inputs=weights)
        opt_g.step()
        return loss_d.item()

    return step, step()
