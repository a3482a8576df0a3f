"""A trained model, taken from its folder: to sample from and to score."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import random
from scratchgen.text import Tokenizer
from scratchgen.training import divergence, recipes, tasks
from scratchgen.training.divergence import Diverged
from scratchgen.training.folder import CHECKPOINT, METRICS, load_checkpoint, of_this_version, read_metrics
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
    checksums: dict[str, str]  # of its data

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
        checksums = tasks.checksums(tree)
    return Run(folder, recipe, step, model.eval(), tokenizer, checksums)


def moved(run: Run, data: str) -> Run:
    """The run, its data in another place: a name or path that `data.load` takes. They are compared when they are read."""
    return dataclasses.replace(run, recipe=recipes.adjust(run.recipe, {"data": data}))


def pictures(run: Run, n: int, seed: int) -> np.ndarray:
    """n pictures from a model of images.     → (n, C, H, W) in [0, 1]     Raises Diverged."""
    with _told(run):
        return tasks.make_pictures(run.model, n, np.random.default_rng(seed))


def texts(run: Run, prompt: str | None, length: int, **rules: Any) -> list[str]:
    """Texts from a model of text, by the `rules` of `tasks.continue_text`. Raises TokenError, Diverged."""
    with _told(run):
        return tasks.continue_text(run.model, run.tokenizer, prompt, length, **rules)


def scores(run: Run, seed: int = 0, say: Callable[[str], Any] = lambda text: None) -> dict[str, float]:
    """The family's metrics on held-out data; `say` receives a line about what there are too few data for.

    Raises DataError or TrainingError where the data are gone or are not those the run was begun with; Diverged.
    """
    task = tasks.load_again(run.recipe, run.folder, run.checksums)
    with _unseen(seed), _told(run), np.errstate(all="ignore"):  # what overflows shows in the scores, which are looked at
        return task.scores(run.model, seed, say)


@contextlib.contextmanager
def _told(run: Run) -> Iterator[None]:
    """Say of a model that has diverged, by its weights or by what is made of it in here, which run it is and what to try."""
    try:
        divergence.check_weights(run.model)
        yield
    except Diverged as error:
        raise Diverged(
            f"{run.folder}: the model has diverged by step {run.step}, since {error}; {divergence.advice(run.recipe)}."
        ) from error


@contextlib.contextmanager
def _unseen(seed: int = 0) -> Iterator[None]:
    """Draw from the library's generator and leave it as it was."""
    state = random.get_rng_state()
    random.manual_seed(seed)
    try:
        yield
    finally:
        random.set_rng_state(state)
