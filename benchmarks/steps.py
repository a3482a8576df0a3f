"""Whole training steps of the three models, beside PyTorch and JAX: the same weights, batch, noise and arithmetic.

Each program makes two steps first, on the same noise; their losses must agree. Rivals: "torch" is eager with the default
Adam (for the VAE the fused one), "fused" eager with the fused AdamW, "compile" the loss through torch.compile, with the
fused AdamW; "jax" one jitted function.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import scratchgen as sg
from benchmarks import clock, machine
from benchmarks.clock import Goal
from scratchgen import random
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig

GPTS = {"GPT 4/4/128, block 64, batch 12": (64, 4, 4, 128, 12), "GPT 6/6/384, block 256, batch 16": (256, 6, 6, 384, 16)}
SMALL, LARGE = GPTS
VAE_STEP = "VAE 784-400-20, batch 128"
DCGAN_STEP, WGAN_STEP, R3GAN_STEP = (f"{name} 28 × 28, width 64, batch 64" for name in ("DCGAN", "WGAN-GP", "R3GAN"))
GAMES = {
    DCGAN_STEP: {},
    WGAN_STEP: {"loss": "wasserstein", "gradient_penalty": 10.0},
    R3GAN_STEP: {"loss": "relativistic", "r1": 1.0, "r2": 1.0},
}
CASES = {
    SMALL: ("torch", "fused", "compile"),
    LARGE: ("torch",),
    VAE_STEP: ("torch", "jax"),
    **dict.fromkeys(GAMES, ("torch",)),
}


def run(quick: bool, only: str) -> list[dict]:
    """Milliseconds a step; × above 1 means faster than the rival."""
    rows, cases = [], {case: rivals for case, rivals in CASES.items() if only in case}
    names = dict.fromkeys(name for rivals in cases.values() for name in rivals)
    with clock.Rivals("steps", ["ours", *names]) as rivals:
        for case, against in cases.items():
            rounds, turn = (3, 0.2) if quick else (5, 0.3) if case == LARGE else (15, 0.4)
            times = rivals.compare(case, rounds, turn, ["ours", *against])
            row = {"step": case, **clock.summary(times)}
            if case in GPTS:
                row["% of peak"] = 100 * gpt_flops(*GPTS[case]) / median(times["ours"]) / machine.peak()
            rows.append(row)
    return rows


def gpt_flops(block: int, layers: int, heads: int, width: int, batch: int, vocabulary: int = 65) -> int:
    """Multiplications and additions of one step's products, of attention those below the diagonal, nothing recomputed."""
    weights = layers * 12 * width**2 + vocabulary * width
    pairs = batch * layers * block * (block + 1) // 2  # of a query and a key it sees, in all heads together
    return 3 * (2 * weights * batch * block + 2 * 2 * pairs * width)  # forward, and two gradients of each product


def goals(rows: list[dict]) -> list[Goal]:
    """The rows of the table of aims that these figures answer."""
    found = {row["step"]: row for row in rows}
    aims = [
        (SMALL, "torch", "PyTorch eager", 1.35, 1.7),
        (SMALL, "compile", "torch.compile, fused AdamW", 1.2, 1.5),
        (LARGE, "torch", "PyTorch eager", 1.12, 1.3),
        (VAE_STEP, "torch", "PyTorch eager, fused Adam", 1.7, 2.2),
        (VAE_STEP, "jax", "JAX jit", 1.1, 1.3),
        (DCGAN_STEP, "torch", "PyTorch eager", 1.1, 1.3),
        (WGAN_STEP, "torch", "PyTorch eager", 1.4, 1.8),
        (R3GAN_STEP, "torch", "PyTorch eager", 1.2, 1.5),
    ]
    table = []
    for case, who, rival, least, aim in aims:
        if case in found:
            ours, theirs, x = (found[case].get(key) for key in ("ours ms", f"{who} ms", f"× {who}"))
            beside = rival if theirs is None else f"{rival}: {theirs:.1f} ms"
            table.append(Goal(f"{case}, step", f"{ours:.1f} ms", beside, x, least, aim))
    for case, least, aim in ((SMALL, 58, 70), (LARGE, 68, 78)):
        if case in found:
            roof = f"measured peak: {machine.peak() / 1e9:.0f} Gflop/s"
            speed = found[case]["% of peak"] / 100 * machine.peak() / 1e9
            table.append(Goal(f"{case}, share of peak, %", f"{speed:.0f} Gflop/s", roof, found[case]["% of peak"], least, aim))
    return table


def build(who: str, case: str) -> Callable[[], float]:
    """One training step, which returns its loss."""
    rng = np.random.default_rng(0)
    sg.manual_seed(0)
    if case in GPTS:
        block, layers, heads, width, batch = GPTS[case]
        text = rng.integers(0, 65, (batch, block + 1))
        model, data, twin = GPT(GPTConfig(65, block, layers, heads, width)), (text[:, :-1], text[:, 1:]), gpt_twin
    else:
        pictures = (rng.random((128, 1, 28, 28)) < 0.3).astype(np.float32)
        if case.startswith("VAE"):
            model, data, twin = VAE(VAEConfig((1, 28, 28))), (pictures, None), jax_vae_twin if who == "jax" else vae_twin
        else:
            model, data, twin = GAN(GANConfig((1, 28, 28), "dcgan", hidden=64, **GAMES[case])), (pictures[:64], None), gan_twin
    sg.manual_seed(1)  # from here on, the noise
    if who != "ours":
        return twin(model, data, who)
    optimizers, data = model.optimizers(), [x if x is None else sg.tensor(x) for x in data]  # tensors, as the rivals have
    return lambda: next(iter(model.training_step(data, optimizers).values()))


def _noise(torch: Any, *shape: int) -> Callable[[], Any]:
    """Normal noise: ours for the first two steps, which are compared, then PyTorch's own."""
    first = [_tensor(torch, random.generator().standard_normal(shape, np.float32)) for _ in range(2)]
    return lambda: first.pop(0) if first else torch.randn(shape)


def _tensor(torch: Any, array: np.ndarray) -> Any:
    """The array as a tensor, on the device that PyTorch was told to use."""
    return torch.from_numpy(array).to(torch.get_default_device())


def _load(torch: Any, twin: Any, model: Any) -> Any:
    """Give a PyTorch module our weights, by name."""
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in model.state_dict().items()})
    return twin


def gpt_twin(model: GPT, data: Any, who: str) -> Callable[[], float]:
    """The same transformer in PyTorch."""
    torch = clock.torch()
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
    fused = True if who in ("fused", "compile") else None
    optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, c.beta2), fused=fused)
    x, y = (_tensor(torch, b.copy()) for b in data)

    def loss_of(x: Any, y: Any) -> Any:
        h = t["wte"](x) + t["wpe"](torch.arange(x.shape[1]))
        for block in t["h"]:
            h = block(h)
        return TF.cross_entropy(TF.linear(t["ln_f"](h), t["wte"].weight).view(-1, c.vocab_size), y.view(-1))

    if who == "compile":
        loss_of = torch.compile(loss_of)
        try:
            loss_of(x, y).backward()
        except Exception as error:  # no C++ compiler, above all
            raise clock.Missing(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}") from error

    def step() -> float:
        loss = loss_of(x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def vae_twin(model: VAE, data: Any, who: str) -> Callable[[], float]:
    """The same autoencoder in PyTorch, with fused Adam."""
    torch = clock.torch()
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    pixels = int(np.prod(c.shape))
    heads = {"mean": nn.Linear(c.hidden, c.latent), "log_var": nn.Linear(c.hidden, c.latent)}
    encoder = nn.ModuleDict({"fc": nn.Linear(pixels, c.hidden), **heads})
    decoder = nn.ModuleDict({"fc": nn.Linear(c.latent, c.hidden), "out": nn.Linear(c.hidden, pixels)})
    twin = _load(torch, nn.ModuleDict({"encoder": encoder, "decoder": decoder}), model)
    optimizer = torch.optim.Adam(twin.parameters(), lr=c.lr, fused=True)
    x = _tensor(torch, data[0]).flatten(1)
    noise = _noise(torch, len(x), c.latent)

    def step() -> float:
        h = TF.relu(encoder["fc"](x))
        mean, log_var = encoder["mean"](h), encoder["log_var"](h)
        logits = decoder["out"](TF.relu(decoder["fc"](mean + torch.exp(0.5 * log_var) * noise())))
        reconstruction = TF.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        loss = reconstruction + 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def jax_vae_twin(model: VAE, data: Any, who: str) -> Callable[[], float]:
    """The same autoencoder in JAX: loss, gradients and Adam as one compiled function that updates its buffers in place."""
    import jax
    from jax import numpy as jnp
    from jax.tree_util import tree_map

    c = model.config
    weights = {name: jnp.asarray(w.numpy()) for name, w in model.state_dict().items()}
    x = jnp.asarray(data[0].reshape(len(data[0]), -1))
    shape = (len(x), c.latent)
    first = [jnp.asarray(random.generator().standard_normal(shape, np.float32)) for _ in range(2)]

    def linear(w: Any, name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def loss_of(w: Any, x: Any, eps: Any) -> Any:
        h = jax.nn.relu(linear(w, "encoder.fc", x))
        mean, log_var = linear(w, "encoder.mean", h), linear(w, "encoder.log_var", h)
        logits = linear(w, "decoder.out", jax.nn.relu(linear(w, "decoder.fc", mean + jnp.exp(0.5 * log_var) * eps)))
        reconstruction = jnp.sum(jax.nn.softplus(logits) - x * logits)
        return (reconstruction + 0.5 * jnp.sum(mean**2 + jnp.exp(log_var) - 1 - log_var)) / len(x)

    def adam(state: Any, x: Any, eps: Any) -> Any:
        w, m, v, t, key = state
        loss, g = jax.value_and_grad(loss_of)(w, x, eps)
        t = t + 1
        m, v = tree_map(lambda m, g: 0.9 * m + 0.1 * g, m, g), tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        new = lambda w, m, v: w - c.lr * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)  # noqa: E731
        return (tree_map(new, w, m, v), m, v, t, key), loss

    def with_own_noise(state: Any, x: Any) -> Any:
        key, here = jax.random.split(state[4])
        return adam((*state[:4], key), x, jax.random.normal(here, shape))

    with_first_noise, own = jax.jit(adam, donate_argnums=0), jax.jit(with_own_noise, donate_argnums=0)
    zeros = (tree_map(jnp.zeros_like, weights) for _ in "mv")
    state = (weights, *zeros, jnp.float32(0), jax.random.PRNGKey(0))

    def step() -> float:
        nonlocal state
        state, loss = with_first_noise(state, x, first.pop(0)) if first else own(state, x)
        return loss.item()

    return step


def gan_twin(model: GAN, data: Any, who: str) -> Callable[[], float]:
    """The same pair in PyTorch: one round of the game, and what D lowers, the penalty apart."""
    torch = clock.torch()
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    channels, h, w = c.shape
    width = c.hidden
    norm = nn.Identity if model.penalised else nn.BatchNorm2d

    class Norm(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(n)

        def forward(self, x: Any) -> Any:
            return self.norm(x)

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(c.latent, width * (h // 4) * (w // 4), bias=False)
            self.norm0, self.norm1, self.norm2 = Norm(width), Norm(width // 2), Norm(width // 4)
            self.conv1 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width // 2, 3, padding=1, bias=False))
            self.conv2 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width // 2, width // 4, 3, padding=1, bias=False))
            self.out = nn.Conv2d(width // 4, channels, 3, padding=1)

        def forward(self, z: Any) -> Any:
            y = TF.relu(self.norm0(self.fc(z).view(-1, width, h // 4, w // 4)))
            y = TF.relu(self.norm1(self.conv1(y)))
            y = TF.relu(self.norm2(self.conv2(y)))
            return torch.tanh(self.out(y))

    class Discriminator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width // 2, 4, 2, 1)
            self.conv2 = nn.Conv2d(width // 2, width, 4, 2, 1, bias=model.penalised)
            self.conv3 = nn.Conv2d(width, width, 3, 1, 1, bias=model.penalised)
            self.norm2, self.norm3 = norm(width), norm(width)
            self.judge = nn.ModuleDict({"fc": nn.Linear(width * (h // 4) * (w // 4), 1)})

        def forward(self, x: Any) -> Any:
            y = TF.leaky_relu(self.norm2(self.conv2(TF.leaky_relu(self.conv1(x), 0.2))), 0.2)
            y = TF.leaky_relu(self.norm3(self.conv3(y)), 0.2)
            return self.judge["fc"](y.flatten(1)).squeeze(1)

    twin = nn.ModuleDict({"generator": Generator(), "discriminator": Discriminator()})
    _load(torch, twin, model)
    G, D = twin["generator"], twin["discriminator"]
    betas = (c.beta1, c.beta2)
    opt_d, opt_g = torch.optim.Adam(D.parameters(), c.lr, betas), torch.optim.Adam(G.parameters(), c.lr, betas)
    weights = list(G.parameters())
    x = _tensor(torch, data[0]) * 2 - 1
    n = len(x)
    ours = random.generator()  # its first numbers, for the two steps that are compared
    first = []
    for _ in range(2):
        z = _tensor(torch, ours.standard_normal((n, c.latent), np.float32))
        first.append((z, _tensor(torch, ours.random((n, 1, 1, 1)).astype(np.float32)) if c.gradient_penalty else None))

    def draws() -> tuple[Any, Any]:
        return first.pop(0) if first else (torch.randn(n, c.latent), torch.rand(n, 1, 1, 1))

    def slope(d: Any, at: Any) -> Any:
        return torch.autograd.grad(d.sum(), at, create_graph=True)[0].flatten(1)

    softplus = TF.softplus
    losses = {
        "non-saturating": (lambda r, f: softplus(-r).mean() + softplus(f).mean(), lambda r, f: softplus(-f).mean()),
        "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
        "relativistic": (lambda r, f: softplus(f - r).mean(), lambda r, f: softplus(r - f).mean()),
    }
    of_d, of_g = losses[c.loss]

    def step() -> float:
        z, share = draws()
        fake = G(z)
        real, made = (x, fake.detach()) if not model.penalised else (t.detach().requires_grad_() for t in (x, fake))
        d_real, d_fake = D(real), D(made)
        loss_d = of_d(d_real, d_fake)
        lowered = loss_d
        for gamma, d, at in ((c.r1, d_real, real), (c.r2, d_fake, made)):
            if gamma:
                lowered = lowered + gamma / 2 * slope(d, at).square().sum(1).mean()
        if c.gradient_penalty:
            middle = (share * x + (1 - share) * fake.detach()).requires_grad_()
            lowered = lowered + c.gradient_penalty * (slope(D(middle), middle).norm(dim=1) - 1).square().mean()
        opt_d.zero_grad()
        lowered.backward()
        opt_d.step()
        with torch.no_grad():
            beside = D(x) if model.objective.pairs else None
        loss_g = of_g(beside, D(fake))
        opt_g.zero_grad()
        loss_g.backward(inputs=weights)
        opt_g.step()
        return loss_d.item()

    return step
