"""Steps of what makes pictures without a game, beside PyTorch eager: a convolutional VAE, a VQ-VAE, the U-Net of a flow.

The same weights, pictures, arithmetic and Adam (PyTorch's fused one); the first two steps, whose losses must agree, draw the
same noise, and replace dead codes by the same vectors. They agree to seven digits, so five are asked for: a commitment left out
changes the fourth. PyTorch's networks are laid out with channels last, which is its fastest on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import scratchgen as sg
from benchmarks import clock
from benchmarks.clock import Goal
from benchmarks.steps import _load, _tensor
from scratchgen import random
from scratchgen.models import VAE, VQVAE, Flow, FlowConfig, VAEConfig, VQVAEConfig

SHAPE = (1, 28, 28)
VAE_STEP = "VAE, convolutions 32 and 64, batch 128"
VQ_STEP = "VQ-VAE, width 64, 128 codes, batch 128"
FLOW_STEP = "flow, U-Net 32 and 64, batch 64"
CASES = (VAE_STEP, VQ_STEP, FLOW_STEP)


def run(quick: bool, only: str) -> list[dict]:
    """Milliseconds a step; × above 1 means faster than PyTorch."""
    rows = []
    with clock.Rivals("images", ["ours", "torch"]) as rivals:
        for case in CASES:
            if only in case:
                times = rivals.compare(case, *((5, 0.3) if quick else (15, 0.5)), ["ours", "torch"], rtol=1e-5)
                rows.append({"step": case, **clock.summary(times)})
    return rows


def goals(rows: list[dict]) -> list[Goal]:
    """The rows of the table of aims that these figures answer."""
    found = {row["step"]: row for row in rows}
    table = []
    for case, least, aim in ((VAE_STEP, 1.8, 2.2), (VQ_STEP, 1.5, 1.8), (FLOW_STEP, 1.4, 1.7)):
        if case in found:
            ours, theirs, x = (found[case].get(key) for key in ("ours ms", "torch ms", "× torch"))
            beside = "PyTorch eager" if theirs is None else f"PyTorch eager: {theirs:.1f} ms"
            table.append(Goal(f"{case}, step", f"{ours:.1f} ms", beside, x, least, aim))
    return table


def build(who: str, case: str) -> Callable[[], float]:
    """One training step, which returns its loss."""
    rng = np.random.default_rng(0)
    sg.manual_seed(0)
    x = (rng.random((128, *SHAPE)) < 0.3).astype(np.float32)
    y = np.arange(128) % 10
    if case == VAE_STEP:
        model, twin = VAE(VAEConfig(SHAPE, "conv", hidden=32, latent=20)), vae_twin
    elif case == VQ_STEP:
        model, twin = VQVAE(VQVAEConfig(SHAPE, variance=float(x.var()))), vqvae_twin
        model.quantize(sg.tensor(x))  # the codebook begins as vectors of the first batch
        model.quantizer.counts[::4] = 0.0  # so that some of them die in the steps that are compared
    else:
        x, y = x[:64], y[:64]
        model, twin = Flow(FlowConfig(SHAPE, 32, classes=10, centre=(0.5,), scale=0.5)), flow_twin
        for p in (model.net.last.weight, *(m.conv2.weight for m in model.net.modules() if hasattr(m, "film"))):
            with sg.no_grad():
                p.copy_(0.05 * rng.standard_normal(p.shape).astype(np.float32))  # at 0 they would hold back the others
    sg.manual_seed(1)  # from here on, the noise
    if who != "ours":
        return twin(model, x, y)
    optimizers, batch = model.optimizers(), (sg.tensor(x), y)
    return lambda: model.training_step(batch, optimizers)["loss"]


def _twice(torch: Any, draw: Callable[[], np.ndarray], then: Callable[[], Any]) -> Callable[[], Any]:
    """What `draw` gives at the first two calls, as a tensor, then PyTorch's own numbers."""
    first = [_tensor(torch, draw()) for _ in range(2)]
    return lambda: first.pop(0) if first else then()


def vae_twin(model: VAE, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    """`coders.ConvEncoder`, `ConvDecoder`, and the bound."""
    torch = clock.torch()
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    width, size = c.hidden, 2 * c.hidden * 49
    encoder = {"conv1": nn.Conv2d(1, width, 4, 2, 1), "conv2": nn.Conv2d(width, 2 * width, 4, 2, 1)}
    encoder |= {name: nn.Linear(size, c.latent) for name in ("mean", "log_var")}
    decoder = {"fc": nn.Linear(c.latent, size), "conv1": nn.ConvTranspose2d(2 * width, width, 4, 2, 1)}
    decoder["conv2"] = nn.ConvTranspose2d(width, 1, 4, 2, 1)
    encoder, decoder = nn.ModuleDict(encoder), nn.ModuleDict(decoder)
    twin = _load(torch, nn.ModuleDict({"encoder": encoder, "decoder": decoder}), model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(twin.parameters(), lr=c.lr, fused=True)
    shape = (len(x), c.latent)
    noise = _twice(torch, lambda: random.generator().standard_normal(shape, np.float32), lambda: torch.randn(shape))
    x = _tensor(torch, x).to(memory_format=torch.channels_last)

    def step() -> float:
        h = TF.relu(encoder["conv2"](TF.relu(encoder["conv1"](x)))).flatten(1)
        mean, log_var = encoder["mean"](h), encoder["log_var"](h)
        h = TF.relu(decoder["fc"](mean + torch.exp(0.5 * log_var) * noise())).view(-1, 2 * width, 7, 7)
        logits = decoder["conv2"](TF.relu(decoder["conv1"](h)))
        nll = TF.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        loss = nll + 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def vqvae_twin(model: VQVAE, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    """`coders.GridEncoder`, `GridDecoder`, and `VectorQuantizer`, with its running means and its revival of dead codes."""
    torch = clock.torch()
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    width, K = c.hidden, c.codes

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(width, width // 2, 3, padding=1), nn.Conv2d(width // 2, width, 1)

        def forward(self, h: Any) -> Any:
            return h + self.conv2(TF.relu(self.conv1(TF.relu(h))))

    blocks = lambda: {"block1": Block(), "block2": Block()}  # noqa: E731
    encoder = {"conv1": nn.Conv2d(1, width // 2, 4, 2, 1), "conv2": nn.Conv2d(width // 2, width, 4, 2, 1), **blocks()}
    encoder = nn.ModuleDict({**encoder, "out": nn.Conv2d(width, c.dim, 1)})
    decoder = {"start": nn.Conv2d(c.dim, width, 3, padding=1), **blocks()}
    decoder |= {"conv1": nn.ConvTranspose2d(width, width // 2, 4, 2, 1), "conv2": nn.ConvTranspose2d(width // 2, 1, 4, 2, 1)}
    decoder = nn.ModuleDict(decoder)
    twin = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    state = {name: torch.from_numpy(np.array(w)) for name, w in model.state_dict().items()}
    twin.load_state_dict({name: w for name, w in state.items() if name.split(".")[0] in twin})
    twin = twin.to(memory_format=torch.channels_last)
    book, counts, sums = (state[f"quantizer.{name}"] for name in ("codebook", "counts", "sums"))
    frequencies, chance = state["frequencies"], random.generator()
    place = (torch.arange(len(frequencies)) * K).repeat(len(x))  # of each vector, times K
    optimizer = torch.optim.Adam(twin.parameters(), lr=c.lr, fused=True)
    x = _tensor(torch, x).to(memory_format=torch.channels_last)

    def step() -> float:
        h = encoder["conv2"](TF.relu(encoder["conv1"](x)))
        z = encoder["out"](TF.relu(encoder["block2"](encoder["block1"](h)))).permute(0, 2, 3, 1)
        flat = z.reshape(-1, c.dim)
        with torch.no_grad():
            ids = torch.addmm((book * book).sum(1), flat, book.T, alpha=-2).argmin(1)
            q = book[ids]
            chose = torch.bincount(place + ids, minlength=len(frequencies) * K).view(-1, K).float()  # (h · w, K)
            counts.mul_(c.decay).add_(chose.sum(0), alpha=1 - c.decay)
            sums.mul_(c.decay).index_add_(0, ids, flat, alpha=1 - c.decay)
            dead = (counts < 1).nonzero()[:, 0]
            book.copy_(sums / counts.clamp(min=1e-5)[:, None])
            if len(dead):
                rows = torch.from_numpy(chance.choice(len(flat), len(dead), replace=len(dead) > len(flat)))
                book[dead] = sums[dead] = flat[rows]
                counts[dead] = 1.0
        commitment = c.beta * TF.mse_loss(flat, q)
        h = decoder["start"]((q + flat - flat.detach()).view(z.shape).permute(0, 3, 1, 2))
        h = TF.relu(decoder["block2"](decoder["block1"](h)))
        made = decoder["conv2"](TF.relu(decoder["conv1"](h)))
        loss = TF.mse_loss(made, x) / c.variance + commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        frequencies.mul_(c.decay).add_(chose / len(x), alpha=1 - c.decay)
        return loss.item()

    return step


def flow_twin(model: Flow, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    """`flow.UNet`, the regression of velocities, and a gradient of at most length 1."""
    torch = clock.torch()
    nn, TF, c = torch.nn, torch.nn.functional, model.config
    width, size, n = c.hidden, 4 * c.hidden, len(x)

    class Condition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.omega = torch.from_numpy(np.array(model.net.condition.omega.numpy()))
            self.fc1, self.fc2 = nn.Linear(2 * len(self.omega), size), nn.Linear(size, size)
            self.classes = nn.Embedding(c.classes + 1, size)

        def forward(self, t: Any, y: Any) -> Any:
            angle = t[:, None] * self.omega
            return self.fc2(TF.silu(self.fc1(torch.cat([angle.cos(), angle.sin()], 1)))) + self.classes(y)

    class Block(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(8, a), nn.GroupNorm(8, b)
            self.conv1, self.conv2 = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
            self.film = nn.Linear(size, 2 * b)
            self.shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

        def forward(self, h: Any, e: Any) -> Any:
            gamma, beta = self.film(TF.silu(e))[:, :, None, None].chunk(2, 1)
            made = self.norm2(self.conv1(TF.silu(self.norm1(h)))) * (1 + gamma) + beta
            return self.shortcut(h) + self.conv2(TF.silu(made))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.condition = Condition()
            self.first, self.block1 = nn.Conv2d(4, width, 3, padding=1), Block(width, width)
            self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
            self.block2, self.block3 = Block(2 * width, 2 * width), Block(2 * width, 2 * width)
            self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, padding=1))
            self.block4, self.norm = Block(2 * width, width), nn.GroupNorm(8, width)
            self.last = nn.Conv2d(width, 4, 3, padding=1)

        def forward(self, x: Any, t: Any, y: Any) -> Any:
            e = self.condition(t, y)
            across = self.block1(self.first(TF.pixel_unshuffle(x, 2)), e)
            h = self.up(self.block3(self.block2(self.down(across), e), e))
            h = self.block4(torch.cat([h, across], 1), e)
            return TF.pixel_shuffle(self.last(TF.silu(self.norm(h))), 2)

    net = _load(torch, UNet(), model.net).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, betas=(0.9, 0.99), fused=True)
    ours, first = random.generator(), []
    for _ in range(2):  # in the order in which our step draws them
        withheld, times = ours.random(n, np.float32) < c.withheld, ours.standard_normal(n, np.float32)
        first.append([_tensor(torch, a) for a in (withheld, times, ours.standard_normal((n, *SHAPE), np.float32))])
    x, y = _tensor(torch, x).to(memory_format=torch.channels_last) * 2 - 1, _tensor(torch, y)

    def step() -> float:
        withheld, times, noise = first.pop(0) if first else (torch.rand(n) < c.withheld, torch.randn(n), torch.randn(n, *SHAPE))
        t = times.sigmoid()
        at = t[:, None, None, None]
        made = net(at * x + (1 - at) * noise, t, torch.where(withheld, c.classes, y))
        loss = (made - (x - noise)).square().flatten(1).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), c.clip)
        optimizer.step()
        return loss.item()

    return step
