r"""Text to image by an adversarial game.  Reed et al. 2016, arXiv:1605.05396; Miyato & Koyama 2018, arXiv:1802.05637.

Each player reads captions with an encoder of its own, which makes a vector c of one: G draws a picture of noise and c, D
judges whether a picture is real *and* is what the caption says. So D is shown three kinds of pairs. With hinge losses D lowers

    E max(0, 1 − D(x, c))  +  ½ E max(0, 1 + D(G(z, c), c))  +  ½ E max(0, 1 + D(x, ĉ))                           (1)

with ĉ a caption that is false of the real picture x, and G lowers −E D(G(z, c), c). Without the third term D could win by
realism alone, and G would learn what words mean only as far as D happens to look at them. (1) is the mean of two games, real
pairs against generated ones and real pairs against mismatched ones, so any objective of `adversarial.py` may take the place
of the hinge.

The caption enters G through its batch norms and beside the noise, and D by projection: the players of `adversaries.py`.
Pictures are in [−1, 1] inside, in [0, 1] outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen import data, nn, optim
from scratchgen import functional as F
from scratchgen.data.shapes import ATTRIBUTES
from scratchgen.grad_mode import no_grad
from scratchgen.models import adversarial, classifier, doctor, pictures
from scratchgen.models.adversaries import LEAK, DCDiscriminator, DCGenerator, init_dcgan, init_he
from scratchgen.models.classifier import ClassifierConfig
from scratchgen.models.family import Draw, Family, Keep, Line, Option, OptionError, Page, Panel, Pictures, Score
from scratchgen.ops import cat, randn
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor
from scratchgen.text import WordTokenizer


@dataclass(frozen=True)
class TextGANConfig:
    shape: tuple[int, int, int] = (3, 32, 32)  # of a picture: channels, height, width
    words: int = 32  # in the vocabulary
    length: int = 16  # of the longest caption, in words
    features: int = 64  # length of c, the vector of a caption
    hidden: int = 64  # channels of the widest convolution
    latent: int = 64  # length of z
    loss: str = "hinge"  # a key of `adversarial.OBJECTIVES`
    spectral_norm: bool = True  # of every layer of D, its encoder's included
    mismatched: float = 1.0  # weight of the third term beside the second; 0: D is shown no mismatched pairs
    lr: float = 2e-3  # of both players
    lr_d: float = 0.0  # of D, where it has one of its own; 0: as of both
    beta1: float = 0.0  # of Adam
    beta2: float = 0.9


# ---------------------------------------------------------------------------------------------------------------------
# The players
# ---------------------------------------------------------------------------------------------------------------------


class TextEncoder(nn.Module):
    r"""c = √n h / ‖h‖,   h = Σ_t e_{w_t} + a(W (e_{w_t} + p_t) + b)     w_t: the words of a caption;  e: words, p: places

    Each word adds its vector, and what a layer (a: leaky ReLU) makes of it at its place. The length of c, of n entries, is
    always √n, so that long captions do not weigh more than short ones, nor words less where spectral normalisation has shrunk
    their vectors.   ids: (B, length), −1 after the end → (B, features)
    """

    def __init__(self, words: int, length: int, features: int):
        super().__init__()
        self.words = nn.Embedding(words, features)
        self.places = nn.Embedding(length, features)
        self.fc = nn.Linear(features, features)

    def forward(self, ids: Tensor) -> Tensor:
        known = (ids.data >= 0)[:, :, None].astype(self.fc.weight.dtype)  # (B, length, 1)
        places = self.places(Tensor(np.arange(ids.shape[1]), device=self.device))
        e = self.words(ids.clamp(min=0))  # (B, length, features)
        h = e + F.leaky_relu(self.fc(e + places), LEAK)
        return F.rms_norm((h * Tensor(known, device=self.device)).sum(1), h.shape[2:])


class TextGenerator(nn.Module):
    """(z, caption) → a picture"""

    def __init__(self, encoder: TextEncoder, network: DCGenerator):
        super().__init__()
        self.encoder, self.network = encoder, network

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        return self.network(z, self.encoder(ids))


class TextDiscriminator(nn.Module):
    """(a picture, a caption) → a logit"""

    def __init__(self, encoder: TextEncoder, network: DCDiscriminator):
        super().__init__()
        self.encoder, self.network = encoder, network

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.network(x, self.encoder(ids))  # (B)

    def pairs(self, x: Tensor, fake: Tensor, ids: Tensor, wrong: Tensor) -> tuple[Tensor, ...]:
        """The logits of (x, ids), (fake, ids) and (x, wrong), (B) each, in one pass: each picture is looked at once."""
        c, false = self.encoder(cat([ids, wrong])).chunk(2)  # (B, features) each
        h = self.network.features(cat([x, fake]))  # (2B, C, H/4, W/4)
        return self.network.judge(cat([h, h[: len(x)]]), cat([c, c, false])).chunk(3)


# ---------------------------------------------------------------------------------------------------------------------
# The game
# ---------------------------------------------------------------------------------------------------------------------


class TextGAN(nn.Module):
    """A generator and a discriminator that read captions, and one round of their game."""

    def __init__(self, config: TextGANConfig):
        super().__init__()
        self.config = config
        self.objective = adversarial.objective(config.loss)
        shape, width, features = config.shape, config.hidden, config.features
        if shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"TextGAN: expected pictures with sides divisible by 4, got {shape}")
        if width % 4:
            raise ValueError(f"TextGAN: expected hidden divisible by 4, got {width}")
        generator = DCGenerator(shape, width, config.latent, features=features)
        discriminator = DCDiscriminator(shape, width, norm=False, features=features)
        words = config.words, config.length, features
        self.generator = TextGenerator(TextEncoder(*words), generator)
        self.discriminator = TextDiscriminator(TextEncoder(*words), discriminator)
        generator.apply(init_dcgan)
        self.discriminator.apply(init_he)
        for module in self.discriminator.modules() if config.spectral_norm else ():
            if isinstance(module, nn.Embedding):  # W/σ is the same for weights of any size; Adam turns small ones further
                nn.init.normal_(module.weight, 0.0, 0.1)
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                nn.utils.parametrizations.spectral_norm(module)

    def optimizers(self) -> dict[str, optim.Optimizer]:
        return adversarial.optimizers(self)

    def noise(self, n: int, *, generator: np.random.Generator | None = None) -> Tensor:
        """z ~ N(0, I)     → (n, latent)"""
        dtype = next(self.parameters()).dtype
        return randn(n, self.config.latent, dtype=dtype, device=self.device, generator=generator)

    def loss_d(self, d_real: Tensor, d_fake: Tensor, d_wrong: Tensor) -> Tensor:
        """(1), the third term weighted by m / (1 + m) and the second by 1 / (1 + m), for m `mismatched`"""
        m, lowers = self.config.mismatched, self.objective.discriminator
        return (lowers(d_real, d_fake) + m * lowers(d_real, d_wrong)) / (1 + m)

    def training_step(self, batch: tuple[Any, Any, Any], optimizers: dict[str, optim.Optimizer]) -> dict[str, float]:
        """One step of D, then one of G against it; batch (x, ids, wrong): pictures in [0, 1], true captions, false ones.

        Returns both losses, the mean judgements of the three kinds of pairs, all from before the steps, and the lengths of both
        gradients.
        """
        x, ids, wrong = (as_tensor(array).to(self.device) for array in batch)
        x = x * 2 - 1
        fake = self.generator(self.noise(len(x)), ids)
        # D: the generated pictures are constants here, so that only D moves
        d_real, d_fake, d_wrong = self.discriminator.pairs(x, fake.detach(), ids, wrong)
        loss_d = self.loss_d(d_real, d_fake, d_wrong)
        grad_d = adversarial.descend(optimizers["discriminator"], self.discriminator, loss_d)
        # G: judged by the D just improved; gradients pass through D, and D's own are not asked for
        beside = d_real.detach()
        if self.objective.pairs:
            with no_grad():
                beside = self.discriminator(x, ids)
        loss_g = self.objective.generator(beside, self.discriminator(fake, ids))
        grad_g = adversarial.descend(optimizers["generator"], self.generator, loss_g)
        return {
            "loss_d": loss_d.item(),
            "loss_g": loss_g.item(),
            **self._judgements(d_real.detach(), d_fake.detach(), d_wrong.detach()),
            "grad_d": grad_d,
            "grad_g": grad_g,
        }

    def _judgements(self, *logits: Tensor) -> dict[str, float]:
        judge = self.objective.judgement
        return {name: judge(d).mean().item() for name, d in zip(("d_real", "d_fake", "d_wrong"), logits, strict=True)}

    @no_grad()
    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
        """The value of the game, −(what D lowers), the mean judgements of the three kinds of held-out pairs, AUC and spacing.

        What the last two are `adversarial.seen` says; both are of pictures with true captions.
        """
        kinds: tuple[list[np.ndarray], ...] = ([], [], [])
        held_out, drawn = [], []
        for x, ids, wrong in batches:
            pairs = [Tensor(array, device=self.device) for array in (x * 2 - 1, ids, wrong)]
            fake = self.generator(self.noise(len(x)), pairs[1])
            for kind, d in zip(kinds, self.discriminator.pairs(pairs[0], fake, *pairs[1:]), strict=True):
                kind.append(d.cpu().data)
            if len(held_out) * len(x) < adversarial.SPACED:
                held_out.append(x)
                drawn.append(((fake + 1) * 0.5).cpu().data)
        logits = [Tensor(np.concatenate(kind)) for kind in kinds]
        game = {"value": -self.loss_d(*logits).item(), **self._judgements(*logits)}
        return game | adversarial.seen(*kinds[:2], held_out, drawn)

    @no_grad()
    def generate(self, ids: np.ndarray, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """A picture for each caption.     (n, length), −1 after the end → (n, C, H, W) in [0, 1]"""
        made = self.generator(self.noise(len(ids), generator=generator), Tensor(ids, device=self.device))
        return ((made + 1) * 0.5).cpu().data

    @no_grad()
    def between(
        self, ids: np.ndarray, other: np.ndarray, steps: int, *, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """From one caption to another in equal steps of c, with the same noise.     (n, length) → (n · steps, C, H, W)"""
        n, share = len(ids), Tensor(np.tile(np.linspace(0, 1, steps, dtype=np.float32), len(ids))[:, None], device=self.device)
        rows = np.repeat(np.arange(n), steps)
        a, b = (self.generator.encoder(Tensor(each[rows], device=self.device)) for each in (ids, other))
        z = self.noise(n, generator=generator)[rows]
        return ((self.generator.network(z, a + share * (b - a)) + 1) * 0.5).cpu().data


# ---------------------------------------------------------------------------------------------------------------------
# Captions: made ready to learn from, and drawn
# ---------------------------------------------------------------------------------------------------------------------


def prepare(
    train: data.Captioned, test: data.Captioned, settings: Mapping[str, Any]
) -> tuple[data.CaptionTokens, data.CaptionTokens]:
    """Captions as words, of those that occur in what is learned from. Raises DataError where held-out shapes differ."""
    pictures.prepare(train, test, settings)
    tokenizer = WordTokenizer.train(train.captions)
    length = max(len(tokenizer.split(caption)) for caption in train.captions)
    return data.CaptionTokens(train, tokenizer, length), data.CaptionTokens(test, tokenizer, length)


def read_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample needs: the words that are known, how many a caption may have, and captions to draw where none is given."""
    return {**metadata, "tokenizer": WordTokenizer.from_dict(metadata["tokenizer"])}


def sample(
    model: TextGAN,
    metadata: Mapping[str, Any],
    n: int,
    rng: np.random.Generator,
    *,
    prompt: str | Sequence[str] | None = None,
) -> np.ndarray:
    """n pictures of what a caption says, or of n captions in turn, or else of such as were learned from.     → (n, C, H, W)

    Raises OptionError for a caption with a word that is not known, with too many words, or with none.
    """
    captions = [prompt] if isinstance(prompt, str) else metadata["captions"] if prompt is None else prompt
    captions = [captions[i % len(captions)] for i in range(n)]
    tokenizer, length = metadata["tokenizer"], metadata["length"]
    ids = np.full((n, length), -1)
    known: dict[str, np.ndarray] = {}
    for row, caption in zip(ids, captions, strict=True):
        if caption not in known:
            known[caption] = _read(caption, tokenizer, length)
        row[: len(known[caption])] = known[caption]
    return np.concatenate([model.generate(ids[i : i + 256], generator=rng) for i in range(0, n, 256)])


def _read(caption: str, tokenizer: WordTokenizer, length: int) -> np.ndarray:
    words = tokenizer.split(caption)
    strange = [word for word in words if word not in tokenizer]
    if strange:
        raise OptionError(f"--prompt: the word {strange[0]!r} is not known; expected words of {', '.join(tokenizer.words)}.")
    if not 1 <= len(words) <= length:
        raise OptionError(f"--prompt: expected 1 to {length} words, got {len(words)}.")
    return tokenizer.encode(caption)


def _rows(task: data.Task, n: int) -> list[int]:
    """n of the held-out pictures, all along them; where some combine attributes as none to learn from do, half of these."""
    held_out = task.test.pictures
    unseen = np.zeros(len(held_out), bool) if held_out.unseen is None else held_out.unseen
    seen, new = np.flatnonzero(~unseen), np.flatnonzero(unseen)
    half = min(n // 2, len(new))
    return [*seen[np.linspace(0, len(seen) - 1, n - half).astype(int)], *new[: half or 0]]


def snapshot(task: data.Task, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Eight pictures of each of eight held-out captions, a row of the grid each."""
    captions = [task.test.pictures.captions[row] for row in _rows(task, 8)]
    return draw(64, rng, prompt=[caption for caption in captions for _ in range(8)])


# ---------------------------------------------------------------------------------------------------------------------
# Scores: what a classifier reads from pictures, beside what was asked
# ---------------------------------------------------------------------------------------------------------------------

EACH = 2  # samples of each held-out caption


def readings(read: np.ndarray, stated: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """How often a reading is what a caption states: of each attribute, and all of them, where a caption states them all.

    read, stated: integers (N, A), −1 in `stated` where the caption leaves an attribute open.  Of what no caption states there
    is no share.
    """
    right, told = read == stated, stated >= 0
    found = {f"read_{name}": right[told[:, a], a] for a, name in enumerate(names)} | {"read_all": right[told.all(1)].all(1)}
    return {key: float(each.mean()) for key, each in found.items() if len(each)}


def scores(
    task: data.Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable[[str], Any], keep: Keep
) -> dict[str, float]:
    """Those of `pictures.scores`, for samples of held-out captions; and what a classifier reads from such samples.

    It has learned to read attributes from real pictures, apart from the model. Its readings of samples, and of the held-out
    pictures themselves under "…_real", are compared with what the captions state; where captions combine attributes as none
    to learn from does, under "…_unseen".
    """
    train, test = task.train.pictures, task.test.pictures

    def of_captions(n: int, rng: np.random.Generator, **options: Any) -> Any:
        return draw(n, rng, prompt=test.captions, **options)

    more = pictures.scores(data.Task(train, test, task.batch_size, task.seed), found, of_captions, rng, say, keep)
    if test.attributes is None:
        return more
    to_read = train.to_read()
    heads = tuple(len(names) for names in test.values.values())
    reader = classifier.trained(ClassifierConfig(test.shape, heads), to_read.x, to_read.attributes, keep)
    stated = test.attributes if test.stated is None else test.stated
    unseen = np.zeros(len(test), bool) if test.unseen is None else test.unseen
    made = reader.read(of_captions(EACH * len(test), rng))[1].reshape(EACH, len(test), -1)
    real = reader.read(test.x)[1]
    for suffix, rows in (("", ~unseen), ("_unseen", unseen)):
        for kind, read in ((suffix, made[:, rows].reshape(-1, len(heads))), (f"{suffix}_real", real[rows])):
            asked = np.tile(stated[rows], (len(read) // max(1, rows.sum()), 1))
            more |= {f"{key}{kind}": share for key, share in readings(read, asked, tuple(test.values)).items()}
            more[f"read_n{kind}"] = len(read)
    return more


# ---------------------------------------------------------------------------------------------------------------------
# The family
# ---------------------------------------------------------------------------------------------------------------------


def page(model: TextGAN, metadata: Mapping[str, Any], task: data.Task, draw: Draw) -> Page:
    """What the page of a run shows: rows of pictures of a caption beside real ones, and ways from one caption to another."""
    test, rows = task.test.pictures, _rows(task, 8)
    captions = [test.captions[row] for row in rows]
    made = draw(80, np.random.default_rng(7), prompt=[caption for caption in captions for _ in range(10)])
    listed = "; ".join(f"“{caption}”" for caption in captions)
    new = [] if test.unseen is None else [row for row in rows if test.unseen[row]]
    told = f" The last {len(new)} rows combine attributes as no picture to learn from does." if new else ""
    ids = task.test.tokens(captions)
    return Page(
        "A generator *G* makes pictures of what a caption says; a discriminator *D* judges whether a picture is real and the "
        "caption true of it. Real pictures with false captions teach *D* to read.",
        (
            "D ( x , c ) = ψ ( h ( x ) ) + ⟨ V c , Σ h ( x ) ⟩",
            "max__D − 𝔼 ( 1 − D ( x , c ) )_+ − ½ 𝔼 ( 1 + D ( G ( z , c ) , c ) )_+ − ½ 𝔼 ( 1 + D ( x , ĉ ) )_+",
        ),
        (
            (
                Pictures(made, 10, f"Drawn by *G*, a row for each caption: {listed}.{told}"),
                Pictures(test.x[rows], 1, "The real pictures that these are the captions of, never seen in training."),
            ),
            Pictures(
                model.between(ids[:4], ids[4:], 16, generator=np.random.default_rng(1)),
                16,
                "From one caption to another: each row goes from the vector *c* of one of the first four captions above to "
                "that of one of the last four, in equal steps, with the same noise.",
            ),
        ),
    )


_READ = tuple(
    Score(f"read_{name}{suffix}", f"{name} read back{where}", 1, f"share of samples with the {name} that the caption states")
    for suffix, where in (("", ""), ("_unseen", ", unseen combinations"))
    for name in (*ATTRIBUTES, "all")
)

FAMILY = Family(
    name="text2image",
    title="Text to image, adversarial",
    model=TextGAN,
    config=TextGANConfig,
    learns_from=data.Captioned,
    prepare=prepare,
    decided={
        "shape": lambda tokens: tokens.pictures.shape,
        "words": lambda tokens: tokens.tokenizer.vocab_size,
        "length": lambda tokens: tokens.length,
    },
    makes="pictures",
    sample=sample,
    read_metadata=read_metadata,
    rates=("lr", "lr_d"),
    averaged="generator",
    options=(Option("prompt", str, "the caption of the picture to draw", "TEXT"),),
    snapshot=snapshot,
    scores=scores,
    meanings=(
        Score("value", "value of the game", 0, "minus what *D* lowers"),
        Score("d_real", "*D* of real pictures", 0, "mean judgement of held-out pictures with their captions"),
        Score("d_fake", "*D* of generated ones", 0, "the same of what *G* draws of the captions"),
        Score("d_wrong", "*D* of mismatched pairs", 0, "the same of held-out pictures with false captions"),
        *adversarial.SEEN,
        *pictures.MEANINGS,
        *_READ,
    ),
    rules=doctor.GAME,
    curves=(
        Panel("losses", (Line("loss_d", "discriminator"), Line("loss_g", "generator"))),
        Panel(
            "mean judgement",
            (
                Line("d_real", "of real pairs"),
                Line("test_d_real", "of held-out ones", held_out=True),
                Line("d_fake", "of generated ones"),
                Line("d_wrong", "of mismatched ones"),
            ),
        ),
        Panel("length of the gradient", (Line("grad_d", "discriminator"), Line("grad_g", "generator"))),
    ),
    page=page,
)
