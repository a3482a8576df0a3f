r"""Learned priors: which codes, of a finished autoencoder, are those of pictures?

An autoencoder restores pictures from codes, and cannot say which codes are likely. A second model of the codes alone can, and
the two together draw pictures: a code from the prior, then the picture of the code. The autoencoder stays as it is.

    what RUN makes of a picture     prior      p
    a grid of whole numbers         gpt        Π_i p(k_i | y, k_1, …, k_{i−1}), row by row; the class y comes first    (1)
    a point z ~ q(z | x)            mixture    Σ_c π_c N(z; μ_c, Σ_c)                                                  (2)
    a point z ~ q(z | x)            flow       that of `flow.Flow`, on coordinates of mean 0 and variance 1            (3)

For codes, −log p(k) is exact, and the whole picture costs, in nats,

    −log p(x | y) ≤ −log p(k(x) | y) − log p(x | k(x))                                                              (4)

since the picture is one of those that have this code. For points the bound of the autoencoder holds with the new prior in place
of N(0, I):

    log p(x) ≥ E_q[log p(x | z) + log p(z) − log q(z | x)]                                                          (5)

which is raised by just what the codes were further from N(0, I) than they are from p: KL(q(z) ‖ N(0, I)) − KL(q(z) ‖ p), with
q(z) the codes of all pictures together (Tomczak & Welling 2018, arXiv:1705.07120, eq. 5).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchgen import data, metrics, nn, optim, random
from scratchgen import functional as F
from scratchgen.data.dataset import Batch, Dataset, shuffled, spread
from scratchgen.grad_mode import no_grad
from scratchgen.models import doctor, pictures, vae
from scratchgen.models.family import Draw, Family, Keep, Line, Option, OptionError, Page, Panel, Pictures, Score
from scratchgen.models.flow import Flow, FlowConfig
from scratchgen.models.gpt import GPT, GPTConfig
from scratchgen.models.vae import VAE, VAEConfig
from scratchgen.models.vqvae import VQVAE, VQVAEConfig
from scratchgen.ops import cat, rand, where
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor
from scratchgen.text import sample as draw_tokens

# the families to build on; the first that has the type of an autoencoder stands for it
CODECS: dict[str, tuple[type, type]] = {"vae": (VAE, VAEConfig), "cvae": (VAE, VAEConfig), "vqvae": (VQVAE, VQVAEConfig)}


@dataclass(frozen=True)
class PriorConfig:
    codec: Mapping[str, Any] = field(default_factory=dict)  # family and config of the autoencoder
    classes: int = 0  # of the data, which a prior of whole numbers or a flow is told; 0: none
    kind: str = "auto"  # "gpt" for whole numbers; "mixture" or "flow" for points; "auto": gpt or mixture
    withheld: float = 0.1  # share of the examples of a batch whose class is withheld
    guidance: float = 1.0  # away from what is common; 1: not at all
    n_layer: int = 4  # of the GPT
    n_head: int = 4
    n_embd: int = 128
    hidden: int = 256  # width of the flow
    components: int = 30  # of the mixture
    lr: float = 2e-3


# ---------------------------------------------------------------------------------------------------------------------
# Pictures as an autoencoder has encoded them
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded(Dataset):
    """Codes of pictures by a trained autoencoder, with the pictures and their classes.

    codes: whole numbers (N, h, w), or the mean and the log of the variance of a point, float32 (N, 2, d).
    """

    codes: np.ndarray
    images: data.Images
    codec: nn.Module

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.images.name

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def about(self) -> str:
        shape = "×".join(map(str, self.codes.shape[1:] if self.codes.dtype.kind == "i" else self.codes.shape[2:]))
        return f"{len(self):,} codes of {shape}"

    def _rows(self, rows: np.ndarray) -> Batch:
        return self.codes[rows], None if self.images.y is None else self.images.y[rows]

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches (codes, classes) drawn without replacement within an epoch."""
        return map(self._rows, shuffled(len(self), batch_size, seed=seed, start=start))

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = spread(len(self), limit and limit * batch_size)
        return (self._rows(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size))

    def contents(self) -> Iterable[np.ndarray]:
        return [self.codes, *self.images.contents()]

    def metadata(self) -> dict[str, Any]:
        return self.images.metadata()


def prepare(train: data.Images, test: data.Images, settings: Mapping[str, Any], codec: nn.Module) -> tuple[Encoded, Encoded]:
    """Both parts as the autoencoder encodes them. Raises DataError where the pictures have another shape than its own."""
    pictures.prepare(train, test, settings)
    if train.shape != tuple(codec.config.shape):
        raise data.DataError(
            f"{train.name}: expected pictures of the autoencoder's shape {tuple(codec.config.shape)}, got {train.shape}."
        )
    return Encoded(encode(codec, train), train, codec), Encoded(encode(codec, test), test, codec)


@no_grad()
def encode(codec: Any, images: data.Images) -> np.ndarray:
    """What an autoencoder makes of pictures: whole numbers (N, h, w), or mean and log σ² of points (N, 2, d)."""
    parts = []
    for i in range(0, len(images), 512):
        if isinstance(codec, VQVAE):
            parts.append(codec.encode(images.x[i : i + 512]))
            continue
        y = None if images.y is None else images.y[i : i + 512]
        q = codec.posterior(Tensor(images.x[i : i + 512], device=codec.device), codec.condition(y))
        parts.append(np.stack([t.cpu().data for t in q], axis=1))
    return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures of Gaussians
# ---------------------------------------------------------------------------------------------------------------------


class Mixture(nn.Module):
    r"""p(z) = Σ_c π_c N(z; μ_c, Σ_c), raised by expectation and maximisation.     z: (N, d)

        E    r_c(z) = π_c N(z; μ_c, Σ_c) / p(z)                       whose is z?
        M    π_c = s⁰_c,   μ_c = s¹_c / s⁰_c,   Σ_c = s²_c / s⁰_c − μ_c μ_cᵀ + ε I,    s ← (1 − ρ) s + ρ E[r, r z, r z zᵀ]

    With all data in a batch and ρ = 1 each round raises the likelihood (Dempster, Laird & Rubin 1977). With batches the sums
    are running means, ρ = (t + 100)^(−0.6) at step t (Cappé & Moulines 2009, arXiv:0712.4273, §2.3). So slow from the start: a
    batch of 64 shared out among 30 components fills no covariance of 20 numbers, and what it would leave is not got rid of.
    """

    FLOOR = 1e-4  # ε, as a share of the mean variance of the data

    def __init__(self, components: int, d: int):
        super().__init__()
        for name, shape in (("s0", (components,)), ("s1", (components, d)), ("s2", (components, d, d))):
            self.register_buffer(name, Tensor(np.zeros(shape)))
        self.register_buffer("steps", Tensor(np.zeros((), np.int64)))

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """π (C), μ (C, d), Σ (C, d, d)"""
        s0, s1, s2 = (s.cpu().data.astype(np.float64) for s in (self.s0, self.s1, self.s2))
        total = np.maximum(s0, 1e-12)
        mu = s1 / total[:, None]  # (C, d)
        sigma = s2 / total[:, None, None] - mu[:, :, None] * mu[:, None, :]  # (C, d, d)
        floor = self.FLOOR * np.trace(s2.sum(0)) / s2.shape[1] + 1e-12
        return s0 / s0.sum(), mu, sigma + floor * np.eye(mu.shape[1])

    def log_joint(self, z: np.ndarray) -> np.ndarray:
        """log π_c N(z; μ_c, Σ_c)     (N, d) → (N, C)"""
        pi, mu, sigma = self.parts()
        root = np.linalg.cholesky(sigma)  # (C, d, d)
        apart = np.linalg.solve(root, (z[None] - mu[:, None]).transpose(0, 2, 1))  # (C, d, N)
        log_det = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)  # (C): ½ log |Σ|
        with np.errstate(divide="ignore"):
            log_pi = np.log(pi)
        return (log_pi - log_det - z.shape[1] / 2 * math.log(2 * math.pi) - (apart**2).sum(1).T / 2).reshape(len(z), -1)

    def log_prob(self, z: np.ndarray) -> np.ndarray:
        """log p(z)     (N, d) → (N)"""
        return np.logaddexp.reduce(self.log_joint(z), axis=1)

    def step(self, z: np.ndarray, rate: float | None = None) -> float:
        """One round on a batch; ρ = rate, by default by the number of rounds so far. Returns the mean of log p(z) before it."""
        t = int(self.steps.item())
        if t == 0:
            self._begin(z)
        joint = self.log_joint(z)  # (N, C)
        whole = np.logaddexp.reduce(joint, axis=1, keepdims=True)  # (N, 1)
        r = np.exp(joint - whole) / len(z)  # (N, C)
        rho = (t + 100) ** -0.6 if rate is None else rate
        sums = (r.sum(0), r.T @ z, np.einsum("nc,nd,ne->cde", r, z, z, optimize=True))
        for s, new in zip((self.s0, self.s1, self.s2), sums, strict=True):
            s.copy_(s * (1 - rho) + Tensor(new, s.dtype, s.device) * rho)
        self.steps.fill_(t + 1)
        return float(whole.mean())

    def _begin(self, z: np.ndarray) -> None:
        """Components around points of the batch that lie apart, each as wide as all data."""
        rng, C = random.generator(None), len(self.s0)
        chosen = [int(rng.integers(len(z)))]
        far = ((z - z[chosen[0]]) ** 2).sum(1)
        for _ in range(1, C):  # the next one with a chance that grows with the squared distance to the nearest so far
            chosen.append(int(rng.choice(len(z), p=far / far.sum())) if far.sum() > 0 else int(rng.integers(len(z))))
            far = np.minimum(far, ((z - z[chosen[-1]]) ** 2).sum(1))
        mu = z[chosen].astype(np.float64)  # (C, d)
        wide = np.cov(z.T).reshape(z.shape[1], -1) / C ** (2 / z.shape[1]) if len(z) > 1 else np.eye(z.shape[1])
        self.s0.copy_(Tensor(np.full(C, 1 / C)))
        self.s1.copy_(Tensor(mu / C))
        self.s2.copy_(Tensor((mu[:, :, None] * mu[:, None, :] + wide) / C))

    def generate(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n points     → (n, d)"""
        pi, mu, sigma = self.parts()
        c = rng.choice(len(pi), n, p=pi)
        return mu[c] + np.einsum("nij,nj->ni", np.linalg.cholesky(sigma)[c], rng.standard_normal((n, mu.shape[1])))


# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------


class Prior(nn.Module):
    """A prior over the codes of an autoencoder, which is kept beside it, and not trained."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        try:
            model, settings = CODECS[config.codec["family"]]
            self.codec = model(settings(**{**config.codec["config"], "shape": tuple(config.codec["config"]["shape"])}))
        except KeyError as error:
            raise ValueError(
                f"Prior: expected an autoencoder of {' or '.join(CODECS)} to build on, got none ({error})"
            ) from None
        for parameter in self.codec.parameters():
            parameter.requires_grad_(False)
        whole = isinstance(self.codec, VQVAE)
        self.kind = ("gpt" if whole else "mixture") if config.kind == "auto" else config.kind
        known = ("gpt",) if whole else ("mixture", "flow")
        if self.kind not in known:
            family = config.codec["family"]
            raise ValueError(f"Prior: for the codes of a {family} expected kind {' or '.join(known)}, got {config.kind!r}")
        if self.kind == "gpt":
            h, w = self.codec.grid
            self.net: Any = GPT(
                GPTConfig(
                    vocab_size=self.codec.quantizer.codes + config.classes + 1,  # codes, classes, "withheld"
                    block_size=h * w,
                    n_layer=config.n_layer,
                    n_head=config.n_head,
                    n_embd=config.n_embd,
                )
            )
            return
        d = self.codec.config.latent
        for name, value in (("mean", np.zeros(d)), ("scale", np.ones(d))):  # of the points to learn from
            self.register_buffer(name, Tensor(value.astype(np.float32)))
        if self.kind == "flow":
            self.net = Flow(FlowConfig((d,), config.hidden, config.classes, config.withheld, times="uniform", guidance=1.0))
        else:
            self.net = Mixture(config.components, d)

    def train(self, mode: bool = True) -> Prior:
        super().train(mode)
        self.codec.eval()
        return self

    def optimizers(self) -> dict[str, optim.Optimizer]:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return {"adam": optim.Adam(parameters, lr=self.config.lr, betas=(0.9, 0.99))} if parameters else {}

    def training_step(self, batch: tuple[Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """Raise the likelihood of the codes of a batch (codes, classes): a step of Adam, or a round of E and M."""
        if self.kind == "mixture":
            return {"loss": -self.net.step(self._inside(batch[0]))}
        if self.kind == "flow":
            return {"loss": self.net.training_step((self._inside(batch[0]).astype(np.float32), batch[1]), optimizers)["loss"]}
        loss = self._nll(self._tokens(batch[0]), self._start(batch[1], len(batch[0]), withhold=True)).mean()
        optimizers["adam"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.parameters() if p.requires_grad], 1.0)
        optimizers["adam"].step()
        return {"loss": loss.item()}

    # Whole numbers: (1)

    def _tokens(self, codes: Any) -> Tensor:
        return as_tensor(codes).to(self.device).flatten(1)  # (B, T)

    def _start(self, y: Any, n: int, *, withhold: bool = False) -> Tensor:
        """The first token of n sequences: the class y (n), or, where there is none or by chance, "withheld"     → (n)"""
        K, none = self.codec.quantizer.codes, self.codec.quantizer.codes + self.config.classes
        if y is None or not self.config.classes:
            return Tensor(np.full(n, none), device=self.device)
        start = as_tensor(y).to(self.device) + K
        return where(rand(n, device=self.device) < self.config.withheld, none, start) if withhold else start

    def _logits(self, ids: Tensor, caches: Any = None) -> Tensor:
        """Of the codes alone: no class follows anything.     (B, T) → (B, T, K)"""
        return self.net(ids, caches)[:, :, : self.codec.quantizer.codes]

    def _nll(self, codes: Tensor, start: Tensor) -> Tensor:
        """−log p(k_i | y, k_1 … k_{i−1}) at each place.     (B, T), (B) → (B, T)"""
        logits = self._logits(cat([start[:, None], codes[:, :-1]], 1))  # (B, T, K)
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").reshape(*codes.shape)

    # Points: (2), (3)

    def _inside(self, codes: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        """A point of each q(z | x), on coordinates of mean 0 and variance 1.     (B, 2, d) → (B, d)"""
        mean, log_var = np.asarray(codes, np.float64).transpose(1, 0, 2)  # (B, d) each
        z = mean + np.exp(log_var / 2) * random.generator(rng).standard_normal(mean.shape)
        return (z - self.mean.cpu().data) / self.scale.cpu().data

    def log_prob(self, z: np.ndarray, y: Any = None) -> np.ndarray:
        """log p(z) of points as the autoencoder has them, in nats.     (B, d) → (B)"""
        scale = self.scale.cpu().data.astype(np.float64)
        inside = (z - self.mean.cpu().data) / scale
        if self.kind == "mixture":
            found = self.net.log_prob(inside)
        else:
            found = self.net.log_likelihood(inside, self._classes(y, len(z)))
        return found - np.log(scale).sum()

    def _classes(self, y: Any, n: int) -> np.ndarray | None:
        """The classes that a flow is told: y, or "withheld" where there are none."""
        if not self.config.classes:
            return None
        return np.full(n, self.config.classes) if y is None else np.asarray(y)

    # Scores

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, float]:
        """Mean −log p of held-out codes, in nats: of a picture, and, of whole numbers, of each.

        Of a flow the regression's loss instead: its likelihood takes many sweeps, and is among the scores.
        """
        total, count = 0.0, 0
        for codes, y in batches:
            if self.kind == "gpt":
                nll = self._nll(self._tokens(codes), self._start(y, len(codes))).cpu().data.astype(np.float64).sum()
            elif self.kind == "mixture":
                z = self._inside(codes)
                nll = -self.net.log_prob(z).sum() + len(z) * np.log(self.scale.cpu().data.astype(np.float64)).sum()
            else:
                nll = self.net.evaluate([(self._inside(codes).astype(np.float32), y)])["loss"] * len(codes)
            total, count = total + float(nll), count + len(codes)
        if self.kind == "flow":
            return {"loss": total / count}
        per_code = {"nats_per_code": total / count / math.prod(self.codec.grid)} if self.kind == "gpt" else {}
        return {"nll": total / count, **per_code}

    # Generation

    @no_grad()
    def codes(
        self,
        n: int,
        y: np.ndarray | None = None,
        *,
        guidance: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: np.random.Generator | None = None,
    ) -> np.ndarray:
        """n codes of the classes y (n), or of any.     → (n, h, w) whole numbers, or points (n, d)

        guidance: w of log p(k | y) → log p(k) + w (log p(k | y) − log p(k)), up to a constant; of a flow as in `flow.Flow`.
        """
        rng, w = random.generator(generator), self.config.guidance if guidance is None else guidance
        if self.kind == "mixture":
            return self.net.generate(n, rng) * self.scale.cpu().data + self.mean.cpu().data
        if self.kind == "flow":
            noise = rng.standard_normal((n, len(self.mean)))
            return self.net.transport(noise, y, guidance=w)[-1] * self.scale.cpu().data + self.mean.cpu().data
        guided = w != 1 and y is not None and self.config.classes
        start = self._start(y, n)
        ids = cat([start, self._start(None, n)]) if guided else start  # (n), or both halves: (2n)
        new, made, caches = ids[:, None], [], [nn.KeyValueCache() for _ in range(self.config.n_layer)]
        for _ in range(math.prod(self.codec.grid)):
            logits = self._logits(new, caches)[:, -1].cpu().data  # (n or 2n, K)
            if guided:
                logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
                logits = logp[n:] + w * (logp[:n] - logp[n:])
            drawn = draw_tokens(logits, temperature=temperature, top_k=top_k, top_p=top_p, rng=rng)  # (n)
            made.append(drawn)
            new = Tensor((np.concatenate([drawn, drawn]) if guided else drawn)[:, None], device=self.device)
        return np.stack(made, axis=1).reshape(n, *self.codec.grid)

    def generate(
        self, n: int, *, y: np.ndarray | None = None, generator: np.random.Generator | None = None, **how: Any
    ) -> np.ndarray:
        """n pictures of codes drawn from the prior.     → (n, C, H, W) in [0, 1]"""
        codes = self.codes(n, y, generator=generator, **how)
        if self.kind == "gpt":
            return self.codec.decode(codes)
        told = (y if y is not None else np.arange(n) % self.codec.config.classes) if self.codec.config.classes else None
        return self.codec.decode(codes.astype(np.float32), told)


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def adopt(model: Prior, train: Encoded) -> None:
    """Take up the weights of the autoencoder, and mean and scale of the points it makes."""
    model.codec.load_state_dict(train.codec.state_dict())
    if model.kind != "gpt":
        mean, log_var = train.codes.astype(np.float64).transpose(1, 0, 2)
        with no_grad():
            model.mean.copy_(Tensor(mean.mean(0), model.mean.dtype))
            model.scale.copy_(Tensor(np.sqrt(mean.var(0) + np.exp(log_var).mean(0)), model.scale.dtype))


def describe(encoded: Encoded) -> dict[str, Any]:
    """Family and config of the autoencoder, as JSON values."""
    family = next(name for name, (model, _) in CODECS.items() if type(encoded.codec) is model)
    config = dataclasses.asdict(encoded.codec.config)
    return {"family": family, "config": {**config, "shape": list(config["shape"])}}


def sample(
    model: Prior,
    metadata: Mapping[str, Any],
    n: int,
    rng: np.random.Generator,
    *,
    label: str | None = None,
    guidance: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    of: np.ndarray | None = None,
    y: Any = None,
) -> np.ndarray:
    """n pictures of the class of that name or number, or of each in turn; of a mixture, of any.     → (n, C, H, W) in [0, 1]

    Or the pictures `of` (n, C, H, W), of the classes y, through the autoencoder's codes and back.
    """
    if of is not None:
        return pictures.restored(model.codec, of, y)
    if label is not None and not (model.config.classes and model.kind != "mixture"):
        raise OptionError("--label: this prior is told no classes.")
    y = pictures.labels(metadata["classes"], n, label) if model.config.classes and model.kind != "mixture" else None
    how: dict[str, Any] = {"guidance": guidance}
    if model.kind == "gpt":
        how |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    parts = [slice(i, min(i + 256, n)) for i in range(0, n, 256)]
    return np.concatenate(
        [model.generate(p.stop - p.start, y=None if y is None else y[p], generator=rng, **how) for p in parts]
    )


def scores(
    task: data.Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable[[str], Any], keep: Keep
) -> dict[str, float]:
    """How near samples come to real pictures, and how near restored ones do, which is as near as a prior can bring them."""
    images = data.Task(task.train.images, task.test.images, task.batch_size, task.seed)
    told = "nats_per_code" in found or "loss" in found  # scores of a GPT and of a flow; a mixture is told no classes
    return (pictures.scores_of_classes if told else pictures.scores)(images, found, draw, rng, say, keep, restores=True)


PROBED = 1000  # held-out pictures that are looked at
SCALES = np.geomspace(1e-3, 1, 61)  # of which the likeliest is taken


def probe(model: Prior, task: data.Task, rng: np.random.Generator) -> dict[str, float]:
    """What a held-out picture costs in all: (4) in bits, or (5) with both priors in nats, and in bits where these mean some.

    The p(x | k) of (4) is a logistic around the decoder's picture, cut into the levels that pixels have. Its one scale is the
    likeliest of pictures to learn from, so that it is no part of what a held-out picture tells.
    """
    encoded: Encoded = task.test
    rows = rng.permutation(len(encoded))[:PROBED]
    codes, y = encoded._rows(rows)
    x = encoded.images.x[rows]
    if model.kind == "gpt":
        with no_grad():
            nll = model._nll(model._tokens(codes), model._start(y, len(codes))).cpu().data.astype(np.float64).sum(1)  # (N)
        found = {"bits_of_codes": nll.mean() / math.log(2)}
        learned: Encoded = task.train
        few = rng.permutation(len(learned))[: PROBED // 4]  # for a single number
        levels = pictures.levels(np.concatenate([x, learned.images.x[few]]))
        if levels is not None:
            known, restored = learned.images.x[few], pictures.restored(model.codec, learned.images.x[few])
            scale = max(SCALES, key=lambda s: _logistic(known, restored, s, levels).mean())
            nll -= _logistic(x, pictures.restored(model.codec, x), scale, levels).sum((1, 2, 3))
            found["bits_per_dim"] = metrics.bits_per_dim(nll.mean(), x[0].size)
        return {key: float(value) for key, value in found.items()}
    mean, log_var = codes.astype(np.float64).transpose(1, 0, 2)
    noise = rng.standard_normal(mean.shape)
    z = mean + np.exp(log_var / 2) * noise
    log_q = -(noise**2 + log_var + math.log(2 * math.pi)).sum(1) / 2
    standard = -(z**2 + math.log(2 * math.pi)).sum(1) / 2
    with no_grad():
        c, seen = model.codec.condition(y), model.codec.observe(x, generator=rng)
        h = model.codec.decoder(Tensor(z, seen.dtype, model.device), c)
        log_p = model.codec.likelihood.log_prob(seen, h).sum((1, 2, 3)).cpu().data.astype(np.float64)
    found = {"elbo": (log_p + model.log_prob(z, y) - log_q).mean(), "elbo_standard": (log_p + standard - log_q).mean()}
    levels = vae.levels_of(model.codec.config, x)
    if levels is not None:
        found["bits_per_dim"] = metrics.bits_per_dim(-found["elbo"], x[0].size, levels=levels)
    return {key: float(value) for key, value in found.items()}


@no_grad()
def _logistic(x: np.ndarray, mean: np.ndarray, scale: float, levels: int) -> np.ndarray:
    """log p of each pixel, by a logistic around these means.     (N, C, H, W) twice → the same"""
    return F.discretized_logistic_log_prob(x.astype(np.float64), mean.astype(np.float64), np.log(scale), levels).data


def page(model: Prior, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: samples by the prior, held-out pictures through their codes, codes without a prior."""
    test: Encoded = task.test
    x = test.images.x[np.random.default_rng(7).permutation(len(test))[:20]]
    names = list(metadata["classes"])[:10]
    if names and model.kind != "mixture":
        made = np.concatenate([draw(20, np.random.default_rng(7), label=name) for name in names])
        what = f"Drawn by the prior, a row for each class: {', '.join(names)}."
    else:
        made, what = draw(100, np.random.default_rng(7)), "Drawn by the prior."
    without = model.codec.generate(40, generator=np.random.default_rng(7))
    return Page(
        "An autoencoder restores pictures from codes, and cannot say which codes are likely. This second model has learned "
        "that, and both together draw pictures.",
        ("p ( x ) ≥ p ( x ∣ k ( x ) ) p ( k ( x ) )",)
        if model.kind == "gpt"
        else ("log p ( x ) ≥ 𝔼_q [ log p ( x ∣ z ) + log p ( z ) − log q ( z ∣ x ) ]",),
        (
            Pictures(made, 20, what),
            (
                Pictures(np.concatenate([x, model.codec.reconstruct(x)]), 10, "Held-out pictures, and through their codes."),
                Pictures(without, 10, "Without the prior: codes drawn evenly, or from *N*(0, *I*)."),
            ),
        ),
    )


def _of_whole_numbers(rule: doctor.Rule) -> doctor.Rule:
    """The rule, where codes are whole numbers: a mixture has no learning rate, and the loss of a flow says little."""
    return lambda rows, config: rule(rows, config) if doctor.snapshots(rows, "test_nats_per_code") else None


FAMILY = Family(
    name="prior",
    title="Learned prior",
    model=Prior,
    config=PriorConfig,
    learns_from=data.Images,
    builds_on=tuple(CODECS),
    base="codec",
    prepare=prepare,
    adopt=adopt,
    decided={"codec": describe, "classes": lambda encoded: 0 if encoded.images.y is None else len(encoded.images.classes)},
    makes="pictures",
    sample=sample,
    averaged="net",
    options=(
        pictures.LABEL,
        Option("guidance", float, "1: as the class asks; above: away from what is common (the recipe's)", "W",
               "a number of at least 0"),
        Option("temperature", float, "below 1 tamer, above 1 wilder; 0 always the likeliest token (1)", "T",
               "a number of at least 0"),
        Option("top_k", int, "draw among the K likeliest tokens only", "K", "a whole number of at least 1", 1),
        Option("top_p", float, "draw among the likeliest tokens that make up P", "P",
               "a number above 0 and up to 1", 1e-300, 1),
    ),
    scores=scores,
    probe=probe,
    meanings=(
        Score("nll", "−log *p* of the codes", -1, "nats per held-out picture"),
        Score("nats_per_code", "the same for each code", -1, "nats"),
        Score("bits_of_codes", "bits of the codes", -1, "of a held-out picture"),
        Score("bits_per_dim", "bits per dimension", -1, "of codes and of pixels given these, a bound: in both stages together"),
        Score("elbo", "ELBO with this prior", 1, "nats per held-out picture"),
        Score("elbo_standard", "ELBO with *N*(0, *I*)", 1, "the same pictures and codes"),
        *pictures.MEANINGS,
    ),
    curves=(Panel("loss", (Line("loss", "training"),)),),
    rules=(_of_whole_numbers(doctor.flat("loss")), doctor.held_out("nats_per_code")),
    page=page,
)  # fmt: skip
