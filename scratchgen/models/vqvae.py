r"""Autoencoders whose code is a grid of symbols: VQ-VAE and its twin without a codebook, FSQ.

VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017, arXiv:1711.00937). The encoder gives a vector z for each patch of a picture;
the nearest of K codes stands for it, and the decoder sees nothing else:

    k = argmin_j ‖z − e_j‖,   q = e_k                                                                              (1)

argmin has no slope, so the gradient that arrives at q is handed on to z as it is (straight through), or, as an option, turned
and scaled as q is against z (the rotation trick: Fifty et al. 2024, arXiv:2410.06424, §4, with R and λ constants):

    z̄ = q̄,   or   q = λ R z,  z̄ = λ Rᵀ q̄                                                                          (2)

    loss = ‖x − x̂‖² / D Var(x) + β ‖z − sg(q)‖² / dim                                                              (3)

which is scaled by the variance of the data, so that 1 is what the mean picture would cost, and β means the same for any data.
Codes follow the vectors that chose them, as running means with decay γ (appendix A.1 there): n_j how many, m_j their sum,

    n_j ← γ n_j + (1 − γ) |{z: k = j}|,   m_j ← γ m_j + (1 − γ) Σ_{z: k = j} z,   e_j = m_j / n_j                   (4)

Codes begin as vectors of the first batch, and a code with n_j < 1 is dead: it becomes a vector of this batch, with n_j = 1 and
m_j = e_j, or it would jump back.

FSQ (Mentzer et al. 2023, arXiv:2309.15505). The grid is of few numbers, each rounded to one of L_i levels; every combination is
a code, there is nothing to learn, nothing to lose, nothing to die:

    q_i = round(f_i(z_i)) / ⌊L_i/2⌋,   f_i(z) = h_i tanh(z + s_i) − o_i,   z̄ = f′(z) q̄ / ⌊L_i/2⌋                      (5)

with o_i = ½ for even L_i, whose levels lie about −½, and s_i such that f_i(0) = 0.

What is drawn here comes from the frequencies of codes at each place, independent of each other: the prior that a learned one
has to beat.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen import data, nn, optim, random
from scratchgen import functional as F
from scratchgen.grad_mode import no_grad
from scratchgen.models import doctor, pictures
from scratchgen.models.coders import GridDecoder, GridEncoder
from scratchgen.models.family import Draw, Family, Line, Page, Panel, Pictures, Score
from scratchgen.ops import bincount, tanh
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class VQVAEConfig:
    shape: tuple[int, int, int] = (1, 28, 28)  # of a picture: channels, height, width
    variance: float = 1.0  # of the pixels of all pictures to learn from
    hidden: int = 64  # channels of the convolutions at a quarter of the sides
    quantizer: str = "vq"  # or "fsq"
    codes: int = 128  # K of "vq"
    dim: int = 16  # length of a code of "vq"
    levels: str = "8,4,4"  # L_1, L_2, … of "fsq", whose product is K
    beta: float = 0.25  # of the commitment loss of "vq"
    decay: float = 0.99  # γ of running means
    rotation: bool = False  # turn the gradient, instead of handing it on as it is
    lr: float = 1e-3

    @property
    def size(self) -> int:
        """K, of either quantiser."""
        return self.codes if self.quantizer == "vq" else math.prod(_levels(self.levels))


# ---------------------------------------------------------------------------------------------------------------------
# Quantisers: vectors (N, dim) → their codes' vectors (N, dim), the codes' numbers (N), and the loss of the vectors
# ---------------------------------------------------------------------------------------------------------------------


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """q, whose gradient goes to z as it is."""
    return q.detach() + (z - z.detach())


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """q, whose gradient goes to z turned and scaled: by the λ R that takes z to q, R a rotation in the plane of both.

        R z = z − 2 r (r · z) + 2 q̂ (ẑ · z),  r = (ẑ + q̂) / |ẑ + q̂|,  λ = |q| / |z|

    Where z and q are opposite, no r being defined, or either is 0, R is the identity.
    """
    with no_grad():
        length_z, length_q = z.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)
        unit_z, unit_q = z / (length_z + 1e-12), q / (length_q + 1e-12)
        middle = unit_z + unit_q
        r = middle / (middle.norm(dim=1, keepdim=True) + 1e-12)
        scale = length_q / (length_z + 1e-12)
    turned = scale * (z - 2 * r * (r * z).sum(1, keepdim=True) + 2 * unit_q * (unit_z * z).sum(1, keepdim=True))
    return q.detach() + (turned - turned.detach())


class VectorQuantizer(nn.Module):
    """(1), (2) and (4)."""

    def __init__(self, codes: int, dim: int, *, beta: float, decay: float, rotation: bool):
        super().__init__()
        self.codes, self.dim, self.beta, self.decay, self.rotation = codes, dim, beta, decay, rotation
        self.register_buffer("codebook", Tensor(np.zeros((codes, dim), np.float32)))
        self.register_buffer("counts", Tensor(np.zeros(codes, np.float32)))  # n of (4), all 0 until the first batch
        self.register_buffer("sums", Tensor(np.zeros((codes, dim), np.float32)))  # m of (4)
        self.register_buffer("revivals", Tensor(np.zeros((), np.int64)))  # of dead codes, in all steps so far
        self.revived = 0  # codes that the last step revived

    def nearest(self, z: Tensor) -> Tensor:
        """The number of the nearest code.     (N, dim) → (N)

        ‖z − e‖² = ‖z‖² − 2 (z·e − ½ ‖e‖²) is least where z·e − ½ ‖e‖² is most; from the codes' mean, so that few digits cancel.
        """
        with no_grad():
            centre = self.codebook.mean(0)
            e = self.codebook - centre
            return F.linear(z - centre, e, -0.5 * (e * e).sum(1)).argmax(1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.training and not self.counts.data.any():
            self._begin(z)
        ids = self.nearest(z)
        q = self.codebook[ids]
        commitment = self.beta * F.mse_loss(z, q)
        if self.training:
            self._follow(z, ids)
        return (rotated if self.rotation else straight_through)(z, q), ids, commitment

    def look_up(self, ids: Tensor) -> Tensor:
        """The codes of these numbers.     (N) → (N, dim)"""
        return self.codebook[ids]

    @no_grad()
    def _begin(self, z: Tensor) -> None:
        """Codes are vectors of the first batch, each once where there are enough."""
        self._put(np.arange(self.codes), z)

    @no_grad()
    def _follow(self, z: Tensor, ids: Tensor) -> None:
        """(4), then dead codes are replaced."""
        chosen = bincount(ids, minlength=self.codes).to(z.dtype)  # (K)
        self.counts.copy_(self.decay * self.counts + (1 - self.decay) * chosen)
        self.sums.copy_((self.decay * self.sums).index_add(0, ids, z, alpha=1 - self.decay))
        dead = np.flatnonzero(self.counts.cpu().data < 1)
        alive = self.counts.maximum(1e-5)  # what is dead is replaced below; nothing is divided by 0 before
        self.codebook.copy_(self.sums / alive.unsqueeze(1))
        self._put(dead, z)
        self.revived = len(dead)
        self.revivals.copy_(self.revivals + self.revived)

    def _put(self, which: np.ndarray, z: Tensor) -> None:
        """Make vectors of z the codes of these numbers, as if each had been chosen once."""
        if not len(which):
            return
        rows = random.generator().choice(len(z), len(which), replace=len(which) > len(z))
        at = Tensor(which, device=z.device)
        for buffer, value in ((self.codebook, z[rows]), (self.sums, z[rows]), (self.counts, 1.0)):
            changed = buffer.clone()
            changed[at] = value
            buffer.copy_(changed)


class FiniteScalarQuantizer(nn.Module):
    """(5)."""

    beta = 0.0
    revived = 0

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels, self.codes, self.dim = levels, math.prod(levels), len(levels)
        n = np.array(levels)
        self.offset = np.where(n % 2 == 0, 0.5, 0.0)
        self.half = (n - 1) * (1 + 1e-3) / 2  # a little more, so that the outermost levels are reached, too
        self.shift = np.arctanh(self.offset / self.half)
        self.width = n // 2
        self.basis = np.cumprod([1, *levels[:-1]])  # the first level counts fastest

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half, shift, offset, width = (self._constant(a, z) for a in (self.half, self.shift, self.offset, self.width))
        bounded = half * tanh(z + shift) - offset
        q = straight_through(bounded, bounded.detach().round())
        return q / width, self._numbers(q.detach()), Tensor(np.zeros((), z.dtype), device=z.device)

    def _numbers(self, q: Tensor) -> Tensor:
        """Σ_i (q_i + ⌊L_i/2⌋) Π_{j<i} L_j, q in whole levels.     (N, dim) → (N)"""
        digits = q.to(np.int64) + Tensor(self.width, device=q.device)
        return (digits * Tensor(self.basis, device=q.device)).sum(1)

    def look_up(self, ids: Tensor) -> Tensor:
        """The codes of these numbers.     (N) → (N, dim)"""
        k = ids.cpu().data[:, None] // self.basis % np.array(self.levels) - self.width
        return Tensor((k / self.width).astype(np.float32), device=ids.device)

    @staticmethod
    def _constant(array: np.ndarray, beside: Tensor) -> Tensor:
        return Tensor(array.astype(beside.dtype), device=beside.device)


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder
# ---------------------------------------------------------------------------------------------------------------------


class VQVAE(nn.Module):
    """Encoder, quantiser, decoder, and how often each code stood at each place."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = c = config
        if c.shape[1] % 4 or c.shape[2] % 4:
            raise ValueError(f"VQVAE: expected sides divisible by 4, got pictures of shape {c.shape}")
        if c.hidden % 2:
            raise ValueError(f"VQVAE: expected an even hidden, got {c.hidden}")
        if not 0 <= c.decay < 1:
            raise ValueError(f"VQVAE: expected a decay of at least 0 and below 1, got {c.decay:g}")
        if c.quantizer == "vq":
            self.quantizer = VectorQuantizer(c.codes, c.dim, beta=c.beta, decay=c.decay, rotation=c.rotation)
        elif c.quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(_levels(c.levels))
        else:
            raise ValueError(f"VQVAE: expected quantizer 'vq' or 'fsq', got {c.quantizer!r}")
        self.grid = (c.shape[1] // 4, c.shape[2] // 4)
        self.encoder = GridEncoder(c.shape, c.hidden, self.quantizer.dim)
        self.decoder = GridDecoder(c.shape, c.hidden, self.quantizer.dim)
        places = math.prod(self.grid)
        self.register_buffer("frequencies", Tensor(np.zeros((places, self.quantizer.codes), np.float32)))

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors of the codes (B, dim, h, w), their numbers (B, h · w), row by row, and the loss of the encoder's."""
        z = self.encoder(x).permute(0, 2, 3, 1)  # (B, h, w, dim): a vector's numbers lie side by side
        q, ids, commitment = self.quantizer(z.reshape(-1, z.shape[3]))
        return q.reshape(z.shape).permute(0, 3, 1, 2), ids.reshape(len(x), -1), commitment

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures through their codes, the codes' numbers, and the loss of the encoder's vectors."""
        q, ids, commitment = self.quantize(x)
        return self.decoder(q), ids, commitment

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return {"adam": optim.Adam(self.parameters(), lr=self.config.lr)}

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """One step down (3) on a batch (x, _) of pictures in [0, 1]; the codebook follows by (4).

        Returns the loss and its terms, the perplexity of this batch's codes, which its size bounds, and the codes revived.
        """
        x = as_tensor(batch[0]).to(self.device)
        y, ids, commitment = self(x)
        error = F.mse_loss(y, x) / self.config.variance
        loss = error + commitment
        optimizers["adam"].zero_grad()
        loss.backward()
        optimizers["adam"].step()
        each = self._shares(ids.cpu().data)  # (h · w, K)
        with no_grad():
            beside = Tensor(each, self.frequencies.dtype, self.device)
            self.frequencies.copy_(self.config.decay * self.frequencies + (1 - self.config.decay) * beside)
        return {
            "loss": loss.item(),
            "error": error.item(),
            "commitment": commitment.item(),
            "perplexity": _perplexity(each.mean(0)),
            "revived": float(self.quantizer.revived),
        }

    def _shares(self, ids: np.ndarray) -> np.ndarray:
        """The share of a batch in which each code stands at each place.     (B, h · w) → (h · w, K)"""
        places, codes = ids.shape[1], self.quantizer.codes
        counts = np.bincount((np.arange(places) * codes + ids).ravel(), minlength=places * codes)
        return counts.reshape(places, codes) / len(ids)

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """The error of restored pictures in variances of the data, how many codes their codes are, and how evenly used.

        Of "vq" also how many dead codes training has revived.
        """
        error, pixels, counts = 0.0, 0, np.zeros(self.quantizer.codes)
        nats, codes = 0.0, 0
        chance = self._chances()
        places = np.arange(len(chance))
        for x, _ in batches:
            y, ids, _ = self(Tensor(x, device=self.device))
            error += float(np.square(y.cpu().data - x, dtype=np.float64).sum())
            pixels += x.size
            chosen = ids.cpu().data
            counts += np.bincount(chosen.ravel(), minlength=len(counts))
            nats -= float(np.log(chance[places, chosen]).sum())
            codes += chosen.size
        return {
            "error": error / pixels / self.config.variance,
            "codes_used": float((counts > 0).sum()),
            "perplexity": _perplexity(counts / counts.sum()),
            "code_nats": nats / codes,
            **({"revivals": float(self.quantizer.revivals.item())} if self.config.quantizer == "vq" else {}),
        }

    def _chances(self) -> np.ndarray:
        """Of each code at each place, no code's being 0.     → (h · w, K)"""
        chance = self.frequencies.cpu().data.astype(np.float64) + 1e-5
        return chance / chance.sum(1, keepdims=True)

    # Codes and pictures

    @no_grad()
    def encode(self, x: np.ndarray) -> np.ndarray:
        """The numbers of the codes, row by row.     (B, C, H, W) → (B, h, w)"""
        return self.quantize(Tensor(x, device=self.device))[1].cpu().data.reshape(-1, *self.grid)

    @no_grad()
    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The picture of codes.     (B, h, w) → (B, C, H, W) in [0, 1]"""
        q = self.quantizer.look_up(Tensor(np.ascontiguousarray(ids).reshape(-1), device=self.device))  # (B · h · w, dim)
        q = q.reshape(len(ids), *self.grid, -1).permute(0, 3, 1, 2)
        return self.decoder(q).cpu().data.clip(0, 1)

    def reconstruct(self, x: np.ndarray, y: Any = None) -> np.ndarray:
        """Pictures through their codes and back. Their classes y tell nothing, as in an autoencoder that is told none."""
        return self.decode(self.encode(x))

    def generate(self, n: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """n pictures of codes drawn at each place by their frequency there, without regard to each other.   → (n, C, H, W)"""
        edges = self._chances().cumsum(1)  # (h · w, K)
        u = random.generator(generator).random((n, len(edges)))
        ids = np.stack([np.searchsorted(edge, u[:, i]) for i, edge in enumerate(edges)], 1)
        return self.decode(ids.clip(0, self.quantizer.codes - 1).reshape(n, *self.grid))


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(level) for level in text.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) < 2:
        raise ValueError(f"VQVAE: expected levels such as 8,4,4, whole numbers of at least 2, got {text!r}")
    return levels


def _perplexity(chance: np.ndarray) -> float:
    """How many codes, evenly used, would be as various: e to the entropy."""
    p = chance[chance > 0].astype(np.float64)
    return float(np.exp(-(p * np.log(p)).sum()))


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def sample(
    model: VQVAE, metadata: Mapping[str, Any], n: int, rng: np.random.Generator, *, of: np.ndarray | None = None, y: Any = None
) -> np.ndarray:
    """The pictures `of` (n, C, H, W) through their codes and back; without them n pictures as `generate` draws them."""
    return pictures.sample(model, metadata, n, rng) if of is None else pictures.restored(model, of)


def snapshot(task: data.Task, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Held-out pictures, each beside what its codes restore of it.     → (64, C, H, W)"""
    x = task.test.x[:32]
    return np.stack([x, draw(len(x), rng, of=x)], axis=1).reshape(-1, *x.shape[1:])


def page(model: VQVAE, metadata: dict[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: held-out pictures through their codes, and what codes independent of each other give."""
    x = task.test.x[np.random.default_rng(7).permutation(len(task.test))][:32]
    back = model.reconstruct(x)
    return Page(
        "An encoder gives each patch of a picture a vector, a quantiser puts one of few codes in its place, and a decoder "
        "makes the picture of the codes alone. The encoder learns as if the quantiser were not there.",
        (
            "q = e_k ,   k = argmin__j ‖ z − e_j ‖",
            "‖ x − x̂ ‖^2 / D Var ( x ) + β ‖ z − sg ( q ) ‖^2",
        )
        if model.config.quantizer == "vq"
        else ("q_i = round ( h_i tanh ( z_i + s_i ) − o_i ) / ⌊ L_i / 2 ⌋",),
        (
            Pictures(
                np.concatenate([x[:16], back[:16], x[16:], back[16:]]),
                16,
                "Above, real pictures never seen in training; below each row, through their codes and back.",
            ),
            Pictures(
                draw(40, np.random.default_rng(7)),
                20,
                "Codes drawn at each place by their frequency there, without regard to each other: what a learned prior mends.",
            ),
        ),
    )


FAMILY = Family(
    name="vqvae",
    title="Vector-quantised autoencoder",
    model=VQVAE,
    config=VQVAEConfig,
    learns_from=data.Images,
    prepare=pictures.prepare,
    decided={**pictures.SHAPE, "variance": lambda images: max(float(images.x.var(dtype=np.float64)), 1e-12)},
    makes="pictures",
    sample=sample,
    snapshot=snapshot,
    edits=("reconstruct",),
    scores=functools.partial(pictures.scores, restores=True),
    meanings=(
        Score("error", "squared error", -1, "of held-out pictures through their codes, in variances of the data"),
        Score("codes_used", "codes used", 1, "by held-out pictures"),
        Score("perplexity", "perplexity of codes", 1, "how many, evenly used, would be as various"),
        Score("revivals", "revivals", 0, "of dead codes, in all steps of training"),
        Score("code_nats", "nats a code", -1, "by the frequencies at each place: what a learned prior has to beat"),
        *pictures.MEANINGS,
    ),
    rules=(doctor.flat("error"), doctor.dead_codes),
    curves=(
        Panel(
            "squared error, in variances of the data",
            (Line("error", "training"), Line("test_error", "held out", held_out=True)),
        ),
        Panel("perplexity of codes", (Line("perplexity", "of a batch"), Line("test_perplexity", "held out", held_out=True))),
        Panel("codes revived", (Line("revived", "at a step"),)),
    ),
    page=page,
)
