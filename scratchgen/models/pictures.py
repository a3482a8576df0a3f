"""What the families that make pictures share: drawing many of them, and scores of how near they come to real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scratchgen import metrics
from scratchgen.data import DataError, Images, Task
from scratchgen.models.family import Draw, Keep, Option, OptionError, Score

NEIGHBOURS = 3  # the k of `metrics.precision_recall`, which needs more than k pictures of each kind

SHAPE = {"shape": lambda images: images.shape}  # what the data decide of a model of pictures
SHAPE_AND_CLASSES = {**SHAPE, "classes": lambda images: len(images.classes)}  # and of one that is told their classes
LABEL = Option("label", str, "the class to draw", "K")  # of `sample_classes`


def prepare(train: Images, test: Images, settings: Mapping[str, Any]) -> tuple[Images, Images]:
    """The pictures as they are. Raises DataError where those held out have another shape."""
    if train.shape != test.shape:
        raise DataError(
            f"{train.name}: expected pictures of one shape, got {train.shape} to learn from and {test.shape} to test."
        )
    return train, test


def sample(model: Any, metadata: Any, n: int, rng: np.random.Generator) -> np.ndarray:
    """n pictures, 256 at a time, as many as memory holds.     → (n, C, H, W) in [0, 1]"""
    return np.concatenate([model.generate(min(256, n - i), generator=rng) for i in range(0, n, 256)])


def prepare_classes(train: Images, test: Images, settings: Mapping[str, Any]) -> tuple[Images, Images]:
    """The pictures as they are. Raises DataError where they have no classes, or another shape or classes held out."""
    for images in (train, test):
        if images.y is None:
            raise DataError(f"{images.name}: expected pictures with classes to be told, got none.")
    if train.classes != test.classes:
        raise DataError(f"{train.name}: expected the same classes held out, got {train.classes} and {test.classes}.")
    return prepare(train, test, settings)


def sample_classes(
    model: Any, metadata: Mapping[str, Any], n: int, rng: np.random.Generator, *, label: str | None = None
) -> np.ndarray:
    """n pictures of the class of that name or number, or else of each class in turn.     → (n, C, H, W) in [0, 1]"""
    names = list(metadata["classes"])
    y = np.arange(n) % len(names)
    if label is not None:
        if label not in names and not (label.isdecimal() and int(label) < len(names)):
            raise OptionError(f"--label: expected one of {', '.join(names)}, or its number, got {label!r}.")
        y = np.full(n, names.index(label) if label in names else int(label))
    made = [model.generate(len(y[i : i + 256]), y=y[i : i + 256], generator=rng) for i in range(0, n, 256)]
    return np.concatenate(made)


def scores(
    task: Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable[[str], Any], keep: Keep
) -> dict[str, float]:
    """How near as many samples as held-out pictures (at most 2,000) come to these.

    Distances are between pixels, or, of larger pictures, between the 64 principal components of the held-out ones.
    The same scores of real training pictures, under "…_real", say what could be expected of a perfect model.
    With too few pictures there are no such distances, which `say` is told.
    """
    train, test = task.train, task.test
    n = min(len(test), len(train), 2000)
    if n <= NEIGHBOURS:
        say(
            f"no distances between samples and real pictures: these need {NEIGHBOURS + 1} pictures to learn from and as "
            f"many held out, and there are {len(train)} and {len(test)}."
        )
        return {}
    project = _principal_components(test.x.reshape(len(test), -1).astype(np.float64), 64)
    held_out = project(test.x[rng.permutation(len(test))[:n]])
    real = project(train.x[rng.permutation(len(train))[:n]])
    fake = project(draw(n, rng))
    more: dict[str, float] = {}
    for name, x in (("", fake), ("_real", real)):
        near = metrics.precision_recall(held_out, x, k=NEIGHBOURS)
        kernel = metrics.kernel_distance(held_out, x, subset=max(2, n // 10))
        more |= {
            f"frechet_distance{name}": metrics.frechet_distance(held_out, x),
            f"kernel_distance{name}": kernel.value,
            f"kernel_distance_error{name}": kernel.error,
            f"precision{name}": near.precision,
            f"recall{name}": near.recall,
            f"density{name}": near.density,
            f"coverage{name}": near.coverage,
            f"diversity{name}": metrics.diversity(x),
        }
    return more


MEANINGS = (
    Score("frechet_distance", "Fréchet distance", -1, "between samples and held-out pictures, as Gaussians"),
    Score("kernel_distance", "kernel distance", -1, "the same by a cubic kernel, without bias"),
    Score("kernel_distance_error", "its standard error"),
    Score("precision", "precision", 1, "share of samples that lie among the data"),
    Score("recall", "recall", 1, "share of the data that lie among samples"),
    Score("density", "density", 1, "precision, less moved by outliers"),
    Score("coverage", "coverage", 1, "share of the data with a sample near by"),
    Score("diversity", "diversity", 0, "mean distance between two samples; near that of real data is good"),
)


def _principal_components(x: np.ndarray, most: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function that projects pictures on the first components of x (N, d), or, where d ≤ most, only flattens them."""
    if x.shape[1] <= most:
        return lambda pictures: pictures.reshape(len(pictures), -1).astype(np.float64)
    mean = x.mean(axis=0)
    axes = np.linalg.svd(x[:2000] - mean, full_matrices=False)[2][:most]
    return lambda pictures: (pictures.reshape(len(pictures), -1) - mean) @ axes.T
