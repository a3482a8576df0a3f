"""What "diverged" means: one definition for losses, scores and weights; and samples that are no longer finite.

    a number x has diverged  ⇔  not |x| < 2²⁴                       so NaN and ±∞ have

Between 2²⁴ = 16,777,216 and 2²⁵ neighbouring float32 numbers are 2 apart, and further on more: a loss no longer tells a
nat from none, and a weight of that size does not move when an optimiser adds 1 to it. No run recovers from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scratchgen.models.family import Draw, Family
from scratchgen.nn import Module
from scratchgen.text import LogitsError
from scratchgen.training.folder import TrainingError
from scratchgen.training.media import MEDIA
from scratchgen.training.recipes import Recipe

LIMIT = 2.0**24


class Diverged(TrainingError):
    """A loss, a score, a weight or a sample has diverged; the message says which, and what to try."""


def check(numbers: Mapping[str, float], family: Family, *, of: str = "") -> None:
    """Raises Diverged for the first of these losses or scores that has diverged; `of` is said before its name.

    Of a score that is e to the power of a loss in nats, the logarithm counts.
    """
    exponentials = {score.key for score in family.meanings if score.exponential}
    for name, value in numbers.items():
        nats = math.log(value) if name in exponentials and value > 0 else value
        if not abs(nats) < LIMIT:
            raise Diverged(f"{of}{name} is {value:.4g}")


def check_weights(module: Module) -> None:
    """Raises Diverged for the first weight, by its name in the state dict, with an entry that has diverged."""
    for name, tensor in module.state_dict().items():
        array = tensor.cpu().numpy()
        if array.dtype.kind == "f" and not (np.abs(array) < LIMIT).all():
            largest = np.abs(array).max()
            raise Diverged(f"the weight {name} is " + (f"up to {largest:.4g}" if np.isfinite(largest) else "no longer finite"))


def drawing(family: Family, model: Any, metadata: Any) -> Draw:
    """The family's `sample` of this model. It raises Diverged where what the model makes is no longer finite."""

    def draw(n: int, rng: np.random.Generator, **options: Any) -> Any:
        try:
            with np.errstate(all="ignore"):  # an overflow shows in the samples, which are checked below
                samples = family.sample(model, metadata, n, rng, **options)
        except LogitsError as error:
            raise Diverged("what the model foretells is no longer finite") from error
        if not MEDIA[family.makes].finite(samples):
            raise Diverged("what the model makes is no longer finite")
        return samples

    return draw


def advice(recipe: Recipe) -> str:
    """What to try after a run with these settings has diverged.

    Settings of the model that are real numbers and were changed are suspected first; where there are none, or a learning rate
    was raised, smaller learning rates help.
    """
    advised, model, rates = recipe.advised, recipe.model, recipe.family.rates
    tried = {k: advised[k] for k in model if isinstance(advised[k], float) and k not in rates and model[k] != advised[k]}
    lower = [rate for rate in rates if model[rate] > (advised[rate] if tried else 0)]  # a rate of 0 follows another
    tried |= {rate: min(advised[rate], model[rate] / 10) for rate in lower}
    settings = " and ".join(f"--set {k}={v:g} instead of {model[k]:g}" for k, v in tried.items())
    return f"try {settings}, in another folder (--out)"
