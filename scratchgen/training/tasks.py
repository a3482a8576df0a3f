"""What the loop needs to know of images, and what of text: batches to learn from, samples to show, scores to report.

`load(recipe)` yields one of two tasks with the same methods; they are all that differs between the families.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import data, metrics
from scratchgen.text import CharTokenizer, Tokenizer
from scratchgen.training import pictures
from scratchgen.training.folder import TrainingError, write_whole
from scratchgen.training.recipes import FAMILIES, RECIPES, Recipe

Batch = tuple[np.ndarray, Any]


class ImageTask:
    """Pictures to learn from, and pictures held out."""

    tokenizer = None

    def __init__(self, recipe: Recipe, train: data.Images, test: data.Images):
        if train.shape != test.shape:
            raise TrainingError(
                f"{recipe.data}: expected pictures of one shape, got {train.shape} to learn from and {test.shape} to test."
            )
        self.recipe, self.train, self.test, self.given = recipe, train, test, train.shape
        self.about = f"{len(train):,} images of {'×'.join(map(str, train.shape))}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of what is learned from: a run goes on with the same data or not at all."""
        return _sha256(np.array(self.train.shape), self.train.x, *([] if self.train.y is None else [self.train.y]))

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of steps start, start + 1, …: a pure function of the recipe's seed and the step."""
        return data.batches(self.train, self.recipe.batch_size, seed=self.recipe.seed, start=start)

    def held_out(self, limit: int | None = None) -> Iterator[Batch]:
        """All of the held-out data in order, or `limit` batches spread evenly over it."""
        B, y = self.recipe.batch_size, self.test.y
        rows = _spread(len(self.test), limit and limit * B)
        for i in range(0, len(rows), B):
            yield self.test.x[rows[i : i + B]], None if y is None else y[rows[i : i + B]]

    def show(self, model: Any, stem: Path, seed: int) -> None:
        """64 samples from always the same codes as a picture `stem`.png."""
        x = model.generate(64, generator=np.random.default_rng(seed))
        write_whole(stem.with_suffix(".png"), pictures.png(pictures.grid(x, 8)))

    def scores(self, model: Any, seed: int) -> dict[str, float]:
        """The family's own scores, and how near as many samples as held-out pictures (at most 2,000) come to these.

        Distances are between pixels, or, of larger pictures, between the 64 principal components of the held-out ones.
        The same scores of real training pictures, under "…_real", say what could be expected of a perfect model.
        """
        found = model.evaluate(self.held_out())
        n = min(len(self.test), len(self.train), 2000)
        rng = np.random.default_rng(seed)
        project = _principal_components(self.test.x.reshape(len(self.test), -1).astype(np.float64), 64)
        test = project(self.test.x[rng.permutation(len(self.test))[:n]])
        real = project(self.train.x[rng.permutation(len(self.train))[:n]])
        fake = project(np.concatenate([model.generate(min(200, n - i), generator=rng) for i in range(0, n, 200)]))
        for name, x in (("", fake), ("_real", real)):
            near = metrics.precision_recall(test, x)
            found |= {
                f"frechet_distance{name}": metrics.frechet_distance(test, x),
                f"precision{name}": near.precision,
                f"recall{name}": near.recall,
                f"density{name}": near.density,
                f"coverage{name}": near.coverage,
                f"diversity{name}": metrics.diversity(x),
            }
        return found


class TextTask:
    """Text to learn from, and text held out, as tokens."""

    def __init__(self, recipe: Recipe, train: data.Text, test: data.Text):
        self.recipe, self.train, self.test = recipe, train, test
        # a character that only the held-out part has is still a character of the language
        self.tokenizer: Tokenizer = CharTokenizer.train(train.text + test.text)
        self.tokens, self.test_tokens = self.tokenizer.encode(train.text), self.tokenizer.encode(test.text)
        self.given = self.tokenizer.vocab_size
        self.about = f"{len(self.tokens):,} tokens, {self.given} different"

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of what is learned from: a run goes on with the same data or not at all."""
        return _sha256(self.tokens, np.frombuffer(str(self.tokenizer.to_dict()).encode("utf-8", "surrogatepass"), np.uint8))

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of steps start, start + 1, …: a pure function of the recipe's seed and the step."""
        T, B, step = self.recipe.model["block_size"], self.recipe.batch_size, start
        while True:
            yield data.windows(self.tokens, T, B, seed=self.recipe.seed, step=step)
            step += 1

    def held_out(self, limit: int | None = None) -> Iterator[Batch]:
        """The held-out text in order, cut into windows, or `limit` batches of these spread evenly over it.

        Batches are full, so that their mean is the mean over tokens.
        """
        t = self.test_tokens
        T = min(self.recipe.model["block_size"], len(t) - 1)
        if T < 1:
            raise TrainingError(f"{self.recipe.data}: expected at least 2 characters held out, got {len(t)}.")
        windows = (len(t) - 1) // T
        B = min(self.recipe.batch_size, windows)
        x = t[: windows * T].reshape(windows, T)
        y = t[1 : windows * T + 1].reshape(windows, T)
        rows = _spread(windows, limit and limit * B)
        for i in range(0, len(rows) - B + 1, B):
            yield x[rows[i : i + B]], y[rows[i : i + B]]

    def show(self, model: Any, stem: Path, seed: int) -> None:
        """A sample of text as `stem`.txt."""
        text = continue_text(model, self.tokenizer, None, 256, seed=seed, temperature=0.8)[0]
        write_whole(stem.with_suffix(".txt"), text.encode("utf-8", "replace"))

    def scores(self, model: Any, seed: int) -> dict[str, float]:
        """The family's own scores, and bits for each byte of the held-out text, comparable across tokenizers."""
        found = model.evaluate(self.held_out())
        targets = np.concatenate([y.reshape(-1) for _, y in self.held_out()])
        n_bytes = len(self.tokenizer.decode(targets).encode("utf-8", "surrogatepass"))
        return {**found, "bits_per_byte": metrics.bits_per_byte(found["nll"] * len(targets), n_bytes)}


def load(recipe: Recipe) -> ImageTask | TextTask:
    """The data of a recipe. Raises DataError, or TrainingError where the data are of a kind it does not learn from."""
    size = recipe.size or None
    train = data.load(recipe.data, seed=recipe.seed, size=size)
    wanted = FAMILIES[recipe.family].kind
    if not isinstance(train, wanted):
        others = ", ".join(name for name, r in RECIPES.items() if isinstance(train, FAMILIES[r.family].kind))
        raise TrainingError(
            f"{recipe.data}: the recipe {recipe.name!r} learns from {wanted.__name__.lower()}, and this is "
            f"{type(train).__name__.lower()}, from which {others} can learn."
        )
    test = data.load(recipe.data, split="test", seed=recipe.seed, size=size)
    return (ImageTask if wanted is data.Images else TextTask)(recipe, train, test)


def continue_text(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str | None,
    length: int,
    *,
    n: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[str]:
    """n texts: the prompt, each time continued by `length` tokens. Without a prompt, what may follow the end of a line.

    Raises TokenError for a character that the tokenizer does not know, and the errors of `text.sample`.
    """
    hidden = 0
    if not prompt:
        newline = tokenizer.encode("\n") if "\n" in getattr(tokenizer, "characters", "") else np.zeros(1, np.int64)
        ids, hidden = newline, 1
    else:
        ids = tokenizer.encode(prompt)
    rng = np.random.default_rng(seed)
    rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": rng}
    batches = (np.repeat(ids[None], min(256, n - i), axis=0) for i in range(0, n, 256))  # as many as memory holds
    return [tokenizer.decode(row[hidden:]) for rows in batches for row in model.generate(rows, length, **rules)]


def _spread(n: int, at_most: int | None) -> np.ndarray:
    """The numbers 0 … n − 1, or, where they are more than `at_most`, that many of them at equal distances."""
    return np.arange(n) if at_most is None or n <= at_most else np.arange(at_most) * n // at_most


def _principal_components(x: np.ndarray, most: int) -> Any:
    """A function that projects pictures on the first components of x (N, d), or, where d ≤ most, only flattens them."""
    if x.shape[1] <= most:
        return lambda pictures: pictures.reshape(len(pictures), -1).astype(np.float64)
    mean = x.mean(axis=0)
    axes = np.linalg.svd(x[:2000] - mean, full_matrices=False)[2][:most]
    return lambda pictures: (pictures.reshape(len(pictures), -1) - mean) @ axes.T


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
