"""What the loop needs to know of images, and what of text: batches to learn from, samples to show, scores to report.

`load(recipe)` yields one of two tasks with the same methods; they are all that differs between the families.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import data, metrics
from scratchgen.text import CharTokenizer, LogitsError, Tokenizer
from scratchgen.training import divergence, pictures
from scratchgen.training.divergence import Diverged
from scratchgen.training.folder import TrainingError
from scratchgen.training.recipes import FAMILIES, RECIPES, Recipe

Batch = tuple[np.ndarray, Any]

NEIGHBOURS = 3  # the k of `metrics.precision_recall`, which needs more than k pictures of each kind


class ImageTask:
    """Pictures to learn from, and pictures held out."""

    tokenizer = None
    suffix = ".png"  # of a file of samples

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
        return _images_sha256(self.train)

    @functools.cached_property
    def held_out_fingerprint(self) -> str:
        """A checksum of what is held out: scores of the same run are of the same pictures or not at all."""
        return _images_sha256(self.test)

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of steps start, start + 1, …: a pure function of the recipe's seed and the step."""
        return data.batches(self.train, self.recipe.batch_size, seed=self.recipe.seed, start=start)

    def held_out(self, limit: int | None = None) -> Iterator[Batch]:
        """All of the held-out data in order, or `limit` batches spread evenly over it."""
        B, y = self.recipe.batch_size, self.test.y
        rows = _spread(len(self.test), limit and limit * B)
        for i in range(0, len(rows), B):
            yield self.test.x[rows[i : i + B]], None if y is None else y[rows[i : i + B]]

    def sample(self, model: Any, seed: int) -> np.ndarray:
        """64 pictures, from always the same codes. Raises Diverged."""
        return make_pictures(model, 64, np.random.default_rng(seed))

    def file(self, sample: np.ndarray) -> bytes:
        """The file that shows them."""
        return pictures.png(pictures.grid(sample, 8))

    def scores(self, model: Any, seed: int, say: Callable[[str], Any]) -> dict[str, float]:
        """The family's own scores, and how near as many samples as held-out pictures (at most 2,000) come to these.

        Distances are between pixels, or, of larger pictures, between the 64 principal components of the held-out ones.
        The same scores of real training pictures, under "…_real", say what could be expected of a perfect model.
        With too few pictures there are no such distances, which `say` is told. Raises Diverged.
        """
        found = model.evaluate(self.held_out())
        divergence.check(found)
        n = min(len(self.test), len(self.train), 2000)
        if n <= NEIGHBOURS:
            say(
                f"no distances between samples and real pictures: these need {NEIGHBOURS + 1} pictures to learn from and as "
                f"many held out, and there are {len(self.train)} and {len(self.test)}."
            )
            return found
        rng = np.random.default_rng(seed)
        project = _principal_components(self.test.x.reshape(len(self.test), -1).astype(np.float64), 64)
        test = project(self.test.x[rng.permutation(len(self.test))[:n]])
        real = project(self.train.x[rng.permutation(len(self.train))[:n]])
        fake = project(make_pictures(model, n, rng, at_once=200))
        for name, x in (("", fake), ("_real", real)):
            near = metrics.precision_recall(test, x, k=NEIGHBOURS)
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

    suffix = ".txt"  # of a file of samples

    def __init__(self, recipe: Recipe, train: data.Text, test: data.Text):
        self.recipe, self.train, self.test = recipe, train, test
        # a character that only the held-out part has is still a character of the language
        self.tokenizer: Tokenizer = CharTokenizer.train(train.text + test.text)
        self.tokens, self.test_tokens = self.tokenizer.encode(train.text), self.tokenizer.encode(test.text)
        if len(test) < 2:
            raise TrainingError(
                f"{recipe.data}: expected at least 2 characters held out, one to be foretold from the other, got {len(test)} "
                f"of {len(train) + len(test)}."
            )
        self.given = self.tokenizer.vocab_size
        self.about = f"{len(self.tokens):,} tokens, {self.given} different"

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of what is learned from: a run goes on with the same data or not at all."""
        return _sha256(self.tokens, np.frombuffer(str(self.tokenizer.to_dict()).encode("utf-8", "surrogatepass"), np.uint8))

    @functools.cached_property
    def held_out_fingerprint(self) -> str:
        """A checksum of what is held out: scores of the same run are of the same text or not at all."""
        return _sha256(self.test_tokens)

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
        windows = (len(t) - 1) // T
        B = min(self.recipe.batch_size, windows)
        x = t[: windows * T].reshape(windows, T)
        y = t[1 : windows * T + 1].reshape(windows, T)
        rows = _spread(windows, limit and limit * B)
        for i in range(0, len(rows) - B + 1, B):
            yield x[rows[i : i + B]], y[rows[i : i + B]]

    def sample(self, model: Any, seed: int) -> str:
        """A sample of text. Raises Diverged."""
        return continue_text(model, self.tokenizer, None, 256, seed=seed, temperature=0.8)[0]

    def file(self, sample: str) -> bytes:
        """The file that shows the sample."""
        return sample.encode("utf-8", "replace")

    def scores(self, model: Any, seed: int, say: Callable[[str], Any]) -> dict[str, float]:
        """The family's own scores, and bits for each byte of the held-out text, comparable across tokenizers.

        Raises Diverged.
        """
        found = model.evaluate(self.held_out())
        divergence.check(found)
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


def checksums(tree: dict[str, Any]) -> dict[str, str]:
    """Those of the data of a run, from its checkpoint; older ones have none of the held-out part."""
    found = {"learned from": tree["data"]} | ({"held out": tree["held_out"]} if "held_out" in tree else {})
    if not all(isinstance(checksum, str) for checksum in found.values()):
        raise TypeError(f"expected checksums of the data, got {found}")
    return found


def load_again(recipe: Recipe, folder: Path, checksums: Mapping[str, str]) -> ImageTask | TextTask:
    """The data of the run in `folder`, from the place that its recipe tells, compared with its checksums.

    Raises what `load` does, and TrainingError where the data are gone or are others than the run was begun with.
    """
    if Path(recipe.data).is_absolute() and not Path(recipe.data).exists():
        raise TrainingError(f"{folder}: its data are no longer at {recipe.data}; tell where they are now (--data).")
    task = load(recipe)
    found = {"learned from": task.fingerprint, "held out": task.held_out_fingerprint}
    for part, kept in checksums.items():
        if kept != found[part]:
            raise TrainingError(
                f"{folder}: the data in {recipe.data} are not those the run was begun with (what is {part} has another "
                f"checksum); if those have moved, tell where they are now (--data)."
            )
    return task


def make_pictures(model: Any, n: int, rng: np.random.Generator, *, at_once: int = 256) -> np.ndarray:
    """n pictures from a model of images, so many at once.     → (n, C, H, W) in [0, 1]

    Raises Diverged.
    """
    with np.errstate(all="ignore"):  # what overflows shows in the pictures
        x = np.concatenate([model.generate(min(at_once, n - i), generator=rng) for i in range(0, n, at_once)])
    return divergence.check_samples(x)


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

    Raises TokenError for a character that the tokenizer does not know, Diverged, and the errors of `text.sample`.
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
    try:
        with np.errstate(all="ignore"):  # what overflows shows in the logits
            return [tokenizer.decode(row[hidden:]) for rows in batches for row in model.generate(rows, length, **rules)]
    except LogitsError as error:
        raise Diverged("what the model foretells is no longer finite") from error


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


def _images_sha256(images: data.Images) -> str:
    return _sha256(np.array(images.shape), images.x, *([] if images.y is None else [images.y]))


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
