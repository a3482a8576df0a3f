"""What "diverged" means: one definition, for losses, scores, weights, and for what a model makes.

    a number x has diverged  ⇔  not |x| < 2²⁴                       so NaN and ±∞ have

Between 2²⁴ = 16,777,216 and 2²⁵ neighbouring float32 numbers are 2 apart, and further on more: a loss no longer tells a
nat from none, and a weight of that size does not move when an optimiser adds 1 to it. No run comes back from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from scratchgen.nn import Module
from scratchgen.training import recipes
from scratchgen.training.folder import TrainingError
from scratchgen.training.recipes import Recipe

LIMIT = 2.0**24


class Diverged(TrainingError):
    """A loss, a score, a weight or a sample has diverged; the message says which, and what to try."""


def check(numbers: Mapping[str, float], *, of: str = "") -> None:
    """Raises Diverged for the first of these losses or scores that has diverged; `of` is said before its name.

    A perplexity is e to the power of a loss in nats, so what counts is its logarithm.
    """
    for name, value in numbers.items():
        nats = math.log(value) if name == "perplexity" and value > 0 else value
        if not abs(nats) < LIMIT:
            raise Diverged(f"{of}{name} is {value:.4g}")


def check_weights(module: Module) -> None:
    """Raises Diverged for the first weight, by its name in the state dict, with an entry that has diverged."""
    for name, tensor in module.state_dict().items():
        array = tensor.cpu().numpy()
        if array.dtype.kind == "f" and not (np.abs(array) < LIMIT).all():
            largest = np.abs(array).max()
            raise Diverged(f"the weight {name} is " + (f"up to {largest:.4g}" if np.isfinite(largest) else "no longer finite"))


def check_samples(samples: np.ndarray) -> np.ndarray:
    """The samples. Raises Diverged where one is not a number, as a model makes them whose layers overflow."""
    if not np.isfinite(samples).all():
        raise Diverged("what the model makes is no longer finite")
    return samples


def advice(recipe: Recipe) -> str:
    """What to try after a run with these settings has diverged.

    Settings of the model that are real numbers and not the recipe's own are suspected first; where there are none, or the
    learning rate was raised, a smaller learning rate helps.
    """
    own, model = recipes.recipe(recipe.name).model, recipe.model
    tried = {k: own[k] for k in model if isinstance(own[k], float) and k != "lr" and model[k] != own[k]}
    if not tried or model["lr"] > own["lr"]:
        tried["lr"] = min(own["lr"], model["lr"] / 10)
    settings = " and ".join(f"--set {k}={v:g} instead of {model[k]:g}" for k, v in tried.items())
    return f"try {settings}, in another folder (--out)"
