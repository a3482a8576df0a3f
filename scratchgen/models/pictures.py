"""What the families that make pictures share: drawing many of them, and scores of how near they come to real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scratchgen import functional as F
from scratchgen import metrics
from scratchgen.data import DataError, Images, Task
from scratchgen.models.classifier import Classifier, ClassifierConfig, trained
from scratchgen.models.family import Draw, Keep, Option, OptionError, Score
from scratchgen.ops.operands import as_tensor
from scratchgen.tensors import Tensor

INSIDE = {"centre": lambda images: (0.5,), "scale": lambda images: 0.5}  # of pictures in [0, 1], which are in [−1, 1] there
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


def condition(model: Any, y: Any) -> Tensor | None:
    """Classes as the vectors, one-hot, that a model is told.     (B) → (B, classes), None where `config.classes` is 0"""
    if not model.config.classes:
        return None
    return F.one_hot(as_tensor(y).to(model.device), model.config.classes).to(next(model.parameters()).dtype)


def prepare_classes(train: Images, test: Images, settings: Mapping[str, Any]) -> tuple[Images, Images]:
    """The pictures as they are. Raises DataError where they have no classes, or another shape or classes held out."""
    for images in (train, test):
        if images.y is None:
            raise DataError(f"{images.name}: expected pictures with classes to be told, got none.")
    if train.classes != test.classes:
        raise DataError(f"{train.name}: expected the same classes held out, got {train.classes} and {test.classes}.")
    return prepare(train, test, settings)


def labels(names: Sequence[str], n: int, label: str | None = None) -> np.ndarray:
    """The classes of n pictures: that of this name or number, or else each in turn.     → (n)

    Raises OptionError where there is no such class.
    """
    if label is None:
        return np.arange(n) % len(names)
    if label not in names and not (label.isdecimal() and int(label) < len(names)):
        raise OptionError(f"--label: expected one of {', '.join(names)}, or its number, got {label!r}.")
    return np.full(n, list(names).index(label) if label in names else int(label))


def sample_classes(
    model: Any, metadata: Mapping[str, Any], n: int, rng: np.random.Generator, *, label: str | None = None, **how: Any
) -> np.ndarray:
    """n pictures of the class of that name or number, or else of each class in turn.     → (n, C, H, W) in [0, 1]

    `how` are further arguments of the model's `generate`.
    """
    y = labels(metadata["classes"], n, label)
    made = [model.generate(len(y[i : i + 256]), y=y[i : i + 256], generator=rng, **how) for i in range(0, n, 256)]
    return np.concatenate(made)


def levels(x: np.ndarray) -> int | None:
    """How many evenly spaced levels, i/(L − 1), the pixels have, black and white included: the least L ≤ 256, or None."""
    values = np.unique(x).astype(np.float64)
    for n in range(2, 257):
        level = values * (n - 1)
        if np.abs(level - level.round()).max() < 1e-3:
            return n
    return None


def restored(codec: Any, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Pictures through an autoencoder's codes and back, 256 at a time; y: their classes, where it is told them."""
    parts = [slice(i, i + 256) for i in range(0, len(x), 256)]
    return np.concatenate([codec.reconstruct(x[p], None if y is None else y[p]) for p in parts])


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------

NEIGHBOURS = 3  # the k of `metrics.precision_recall`, which needs more than k pictures of each kind
MOST = 10_000  # pictures of each kind are compared, where these have no more than 2²⁶ pixels
NEAR = 2_000  # of them, where each is compared with each
LEAST = 100  # pictures with classes, for a classifier to learn from
NAMED = 20  # classes, up to which each has a row of its own

Read = Callable[
    [np.ndarray], tuple[np.ndarray, np.ndarray | None]
]  # pictures → their features, and classes where there are any


def scores(
    task: Task,
    found: dict[str, float],
    draw: Draw,
    rng: np.random.Generator,
    say: Callable[[str], Any],
    keep: Keep,
    *,
    restores: bool = False,
) -> dict[str, float]:
    """How near samples come to as many held-out pictures, how varied they are, and whether they are new.

    Distances are between features: of a `classifier` of the training pictures, where these have classes; else pixels, or, of
    larger pictures, the 64 principal components of training pictures. The same scores of real training pictures ("…_real") say
    what could be expected of a perfect model, those of training pictures moved by a pixel ("…_shifted") whether a score sees
    so small a fault. Of a model that `restores`, those of the held-out pictures through their codes ("…_restored") are a
    ceiling: about as near come samples whose codes are those of pictures. With too few pictures there are no distances, which
    `say` is told.
    """
    return _scores(task, lambda n, y: draw(n, rng), draw if restores else None, rng, say, keep, told=False)


def scores_of_classes(
    task: Task,
    found: dict[str, float],
    draw: Draw,
    rng: np.random.Generator,
    say: Callable[[str], Any],
    keep: Keep,
    *,
    restores: bool = False,
) -> dict[str, float]:
    """`scores` of a model that is told classes, and whether it does as told; it is asked for those of the held-out pictures.

    Of pictures without classes, which it could not be told, the `scores` alone.
    """
    if task.test.y is None:
        return scores(task, found, draw, rng, say, keep, restores=restores)

    def of_classes(n: int, y: np.ndarray) -> np.ndarray:
        made = np.empty((n, *task.test.shape), np.float32)
        for k in np.unique(y):
            made[y == k] = draw(int((y == k).sum()), rng, label=task.test.classes[k])
        return made

    return _scores(task, of_classes, draw if restores else None, rng, say, keep, told=True)


def _scores(
    task: Task,
    draw: Callable[[int, Any], np.ndarray],
    restore: Draw | None,
    rng: np.random.Generator,
    say: Callable[[str], Any],
    keep: Keep,
    told: bool,
) -> dict[str, float]:
    train, test = task.train, task.test
    n = min(len(test), len(train), MOST, max(NEAR, 2**26 // math.prod(test.shape)))
    if n <= NEIGHBOURS:
        say(
            f"no distances between samples and real pictures: these need {NEIGHBOURS + 1} pictures to learn from and as "
            f"many held out, and there are {len(train)} and {len(test)}."
        )
        return {}
    chosen, order = rng.permutation(len(test))[:n], rng.permutation(len(train))
    learned, others = order[:n], order[n:] if len(order) >= 2 * n else order
    judge = _judge(train, keep, say)
    read: Read = _principal_components(train.x[others[:NEAR]], 64) if judge is None else lambda x: _read(judge, x)
    y, y_learned = (None, None) if test.y is None else (test.y[chosen], train.y[learned])
    held_out, classes = read(test.x[chosen])
    known = read(train.x)[0]
    far = metrics.nearest_distances(held_out[:NEAR], known)
    more: dict[str, float] = {"n_real": n, "n_fake": n, "n_near": min(n, NEAR)}
    if judge is not None:
        more["classifier_accuracy"] = float(judge.accuracy.numpy()[0])
    kinds = [
        ("", y, lambda: draw(n, y)),
        ("_real", y_learned, lambda: train.x[learned]),
        ("_shifted", y_learned, lambda: shifted(train.x[learned])),
    ]
    if restore is not None:
        kinds.insert(1, ("_restored", y, lambda: restore(n, rng, of=test.x[chosen], y=y)))
    for name, asked, pictures in kinds:
        x, labels = read(pictures())
        part = _nearness(held_out, x)
        if np.median(far) > 0:
            new = metrics.novelty(metrics.nearest_distances(x[:NEAR], known), far)
            part |= {"novelty": new.distance, "copies": new.copies}
        if labels is not None:
            part |= _classes(labels, classes, len(test.classes))
            if told:
                part |= _obedience(x, asked, labels, held_out, y, test.classes)
        more |= {key + name: value for key, value in part.items()}
    return more


def _judge(train: Images, keep: Keep, say: Callable[[str], Any]) -> Classifier | None:
    """A classifier of the pictures to learn from, or None where they have no classes, or are too few to learn them from."""
    if train.y is None or len(train.classes) < 2:
        return None
    if len(train) < LEAST or len(np.unique(train.y)) < 2:
        say(f"no score uses the classes: that needs {LEAST} pictures to learn from, of 2 classes, and there are {len(train)}.")
        return None
    return trained(ClassifierConfig(train.shape, (len(train.classes),)), train.x, train.y, keep)


def _read(judge: Classifier, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = judge.read(x)
    return features, labels[:, 0]


def shifted(x: np.ndarray) -> np.ndarray:
    """Pictures moved by one pixel to the right; their first column stays where it was, too.     (N, C, H, W) → the same"""
    return np.concatenate([x[..., :1], x[..., :-1]], axis=-1)


def _nearness(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    kernel = metrics.kernel_distance(real, fake, subset=max(2, min(len(real), len(fake)) // 10))
    near = metrics.precision_recall(real[:NEAR], fake[:NEAR], k=NEIGHBOURS)
    return {
        "frechet_distance": metrics.frechet_distance(real, fake),
        "kernel_distance": kernel.value,
        "kernel_distance_error": kernel.error,
        **near._asdict(),
        "diversity": metrics.diversity(fake[:NEAR]),
    }


def _classes(fake: np.ndarray, real: np.ndarray, classes: int) -> dict[str, float]:
    counts, expected = np.bincount(fake, minlength=classes), np.bincount(real, minlength=classes)
    return {
        "class_entropy": metrics.class_entropy(counts),
        # one is added to each count of the real ones, since a class that is rare may be missing by chance
        "class_divergence": metrics.class_divergence(counts, expected + 1),
    }


def _obedience(
    fake: np.ndarray, asked: np.ndarray, labels: np.ndarray, real: np.ndarray, y: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Are samples of the class they were asked to be, and as varied within it as real pictures are?"""
    agreement, told = metrics.agreement(asked, labels, len(names)), np.unique(asked)
    varied = []
    for k in told:
        a, b = fake[asked == k][:NEAR], real[y == k][:NEAR]
        if min(len(a), len(b)) > 1 and (least := metrics.diversity(b)) > 0:
            varied.append(metrics.diversity(a) / least)
    return {
        "agreement": float((asked == labels).mean()),
        "agreement_worst": float(agreement[told].min()),
        **({f"agreement_of_{names[k]}": float(agreement[k]) for k in told} if len(names) <= NAMED else {}),
        **({"class_diversity": float(np.mean(varied)), "class_diversity_worst": float(min(varied))} if varied else {}),
    }


MEANINGS = (
    Score("n_real", "held-out pictures", 0, "that samples are compared with"),
    Score("n_fake", "samples", 0, "that are compared; a score of fewer is another score"),
    Score("n_near", "of each, for neighbours", 0, "precision to diversity, and nearest training pictures"),
    Score(
        "classifier_accuracy", "accuracy of the classifier", 0, "by whose features scores compare, on pictures it did not see"
    ),
    Score("frechet_distance", "Fréchet distance", -1, "between samples and held-out pictures, as Gaussians of features"),
    Score(
        "kernel_distance", "kernel distance", -1, "the same by a cubic kernel, without bias: the mean of ten disjoint tenths"
    ),
    Score("kernel_distance_error", "its standard error"),
    Score("precision", "precision", 1, "share of samples that lie among the data; blur may raise it, and coverage tells"),
    Score("recall", "recall", 1, "share of the data that lie among samples"),
    Score("density", "density", 1, "precision, less moved by outliers"),
    Score("coverage", "coverage", 1, "share of the data with a sample near by"),
    Score("diversity", "diversity", 0, "mean distance between two samples; near that of real data is good"),
    Score("novelty", "distance to training data", 0, "beside that of held-out pictures: 1 where new, 0 where remembered"),
    Score("copies", "copies", -1, "share nearer to a training picture than 99 % of held-out ones are: 0.01 where new"),
    Score("class_entropy", "evenness of classes", 0, "entropy of the classes that samples are read as, as a share of the most"),
    Score("class_divergence", "divergence of classes", -1, "nats, from those that held-out pictures are read as"),
    Score("agreement", "agreement", 1, "share of samples read as the class that was asked for"),
    Score("agreement_worst", "agreement, worst class", 1),
    Score("class_diversity", "diversity within a class", 0, "beside that of held-out pictures of the class, mean of classes"),
    Score("class_diversity_worst", "diversity within a class, least", 0),
)


def _principal_components(x: np.ndarray, most: int) -> Read:
    """Projects pictures on the first components of x, or, of no more than `most` pixels, only flattens them.

    Components keep more of the pictures that they are made of than of others, so x is none of those that are compared.
    """
    x = x.reshape(len(x), -1).astype(np.float64)
    if x.shape[1] <= most:
        return lambda pictures: (pictures.reshape(len(pictures), -1).astype(np.float64), None)
    mean = x.mean(axis=0)
    axes = np.linalg.svd(x - mean, full_matrices=False)[2][:most]
    return lambda pictures: ((pictures.reshape(len(pictures), -1) - mean) @ axes.T, None)
