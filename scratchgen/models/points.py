"""What the families that make points of the plane share: what a picture of samples shows, and scores of how near they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scratchgen import metrics
from scratchgen.data import Points, Task
from scratchgen.models.family import Draw, Keep, Plane, Score

MANY = 2500  # how many points the scores of a mixture are told of in the field; see `metrics.mode_coverage`
NEIGHBOURS = 3  # the k of `metrics.precision_recall`


def standard(points: Points) -> tuple[tuple[float, float], float]:
    """The mean of the points, and the root of the mean of their variances along both axes: 1 where they have none."""
    x = points.x.astype(np.float64)
    return tuple(x.mean(axis=0).tolist()), float(np.sqrt(x.var(axis=0).mean())) or 1.0


def read_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the data said of themselves, with the square of a picture as three numbers."""
    x, y, half = map(float, metadata["square"])
    return {**metadata, "square": (x, y, half)}


def snapshot(task: Task, draw: Draw, rng: np.random.Generator) -> Plane:
    """Samples beside as many held-out points."""
    return draw(MANY, rng)._replace(real=task.test.x[:MANY])


def scores(
    task: Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable[[str], Any], keep: Keep
) -> dict[str, float]:
    """How near 2,500 samples come to as many held-out points (or to all, if fewer), and which modes they have.

    The same scores of points to learn from, under "…_real", say what could be expected of a perfect model.
    """
    train, test = task.train, task.test
    n = min(len(test), len(train), MANY)
    held_out = test.x[rng.permutation(len(test))[:n]]
    more: dict[str, float] = {"n_real": n, "n_fake": n}
    for name, x in (("", draw(n, rng).x), ("_real", train.x[rng.permutation(len(train))[:n]])):
        if test.centres is not None:
            modes = metrics.mode_coverage(x, test.centres, radius=3 * test.sigma)
            more |= {f"modes{name}": modes.found, f"modes_hit{name}": modes.hit}
            more |= {f"near{name}": modes.near, f"reverse_kl{name}": modes.reverse_kl}
        if n > NEIGHBOURS:
            near = metrics.precision_recall(held_out, x, k=NEIGHBOURS)
            more |= {f"density{name}": near.density, f"coverage{name}": near.coverage}
    if n <= NEIGHBOURS:
        say(f"no density and coverage: these need {NEIGHBOURS + 1} points of each kind, and there are {n}.")
    return more


MEANINGS = (
    Score("n_real", "held-out points", 0, "that samples are compared with"),
    Score("n_fake", "samples", 0, "that are compared; a score of fewer is another score"),
    Score("modes", "modes found", 1, "modes with a quarter of their share of the samples within 3σ"),
    Score("modes_hit", "modes hit", 1, "modes with at least one sample within 3σ"),
    Score("near", "near a mode", 1, "share of samples within 3σ of a mode"),
    Score("reverse_kl", "reverse KL", -1, "of the samples’ distribution over the modes from the uniform one, in nats"),
    Score("density", "density", 1, "how many held-out points’ balls hold a sample; 1 of real ones"),
    Score("coverage", "coverage", 1, "share of the held-out points with a sample near by"),
)

IN_THE_PLANE: dict[str, Any] = {  # what a family of pictures declares otherwise, to make points
    "learns_from": Points,
    "prepare": lambda train, test, settings: (train, test),
    "makes": "points",
    "read_metadata": read_metadata,
    "many": MANY,
    "snapshot": snapshot,
    "scores": scores,
}
DECIDED: dict[str, Callable[[Points], Any]] = {
    "shape": lambda of: (2,),
    "classes": lambda of: 0,
    "centre": lambda of: standard(of)[0],
    "scale": lambda of: standard(of)[1],
}
