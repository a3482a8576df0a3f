"""A trained model, taken from its folder: to sample from and to score."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import random
from scratchgen.text import Tokenizer
from scratchgen.training import recipes, tasks
from scratchgen.training.folder import CHECKPOINT, METRICS, TrainingError, load_checkpoint, of_this_version, read_metrics
from scratchgen.training.loop import averaged
from scratchgen.training.recipes import Recipe


@dataclass(frozen=True)
class Run:
    """A model as its last checkpoint has it, with averaged weights where there are such, in evaluation mode."""

    folder: Path
    recipe: Recipe
    step: int
    model: Any
    tokenizer: Tokenizer | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of its metrics."""
        return read_metrics(self.folder / METRICS)


def open_run(folder: str | Path, device: str = "cpu") -> Run:
    """The run in a folder; its data are not needed.

    Raises TrainingError: no run there, a damaged checkpoint, or one of another version.
    """
    folder = Path(folder)
    tree = load_checkpoint(folder / CHECKPOINT)
    with of_this_version(folder / CHECKPOINT):
        recipe, step = recipes.from_json(tree["recipe"]), operator.index(tree["step"])
        with _unseen():
            model = recipes.build(recipe, tree["given"]).to(device=device)
        model.load_state_dict(tree["model"])
        if tree["ema"]:
            averaged(model).load_state_dict(tree["ema"], strict=False)  # parameters only: buffers have no average
        tokenizer = Tokenizer.from_dict(tree["tokenizer"]) if tree["tokenizer"] else None
    return Run(folder, recipe, step, model.eval(), tokenizer)


def pictures(run: Run, n: int, seed: int) -> np.ndarray:
    """n pictures from a model of images.     → (n, C, H, W) in [0, 1]"""
    rng = np.random.default_rng(seed)
    return np.concatenate([run.model.generate(min(256, n - i), generator=rng) for i in range(0, n, 256)])


def scores(run: Run, seed: int = 0) -> dict[str, float]:
    """The family's metrics on held-out data. Raises DataError where the data are gone."""
    task = tasks.load(run.recipe)
    if task.given != getattr(run.model.config, recipes.FAMILIES[run.recipe.family].given):
        raise TrainingError(f"{run.folder}: the data in {run.recipe.data} are not those the run was begun with.")
    with _unseen(seed):
        return task.scores(run.model, seed)


@contextlib.contextmanager
def _unseen(seed: int = 0) -> Iterator[None]:
    """Draw from the library's generator and leave it as it was."""
    state = random.get_rng_state()
    random.manual_seed(seed)
    try:
        yield
    finally:
        random.set_rng_state(state)
