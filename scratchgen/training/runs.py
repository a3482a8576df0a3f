"""A trained model, taken from its folder: to sample from and to score."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen import data, random
from scratchgen.models.family import Draw, Page
from scratchgen.training import divergence, kept, recipes, tasks
from scratchgen.training.divergence import Diverged
from scratchgen.training.folder import CHECKPOINT, METRICS, load_checkpoint, of_this_version, read_metrics
from scratchgen.training.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Run:
    """A model as its last checkpoint has it, with averaged weights where there are such, in evaluation mode."""

    folder: Path
    recipe: Recipe
    step: int
    model: Any
    metadata: Any  # of its data, as the family reads them
    checksums: dict[str, str]  # of its data
    table: Mapping[str, Recipe]  # the one its recipe is from

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of its metrics."""
        return read_metrics(self.folder / METRICS)

    @property
    def base(self) -> Any:
        """The copy, within the model, of the one that it builds on; None where it builds on none."""
        family = self.recipe.family
        return self.model.get_submodule(family.base) if family.builds_on else None

    @property
    def draw(self) -> Draw:
        """Samples of the model. Raises Diverged, OptionError, and what the family's `sample` raises."""
        return divergence.drawing(self.recipe.family, self.model, self.metadata)


def open_run(folder: str | Path, device: str = "cpu", table: Mapping[str, Recipe] = RECIPES) -> Run:
    """The run in a folder, of a recipe in the `table`; its data are not needed.

    Raises TrainingError: no run there, a damaged checkpoint, or one of another version.
    """
    folder = Path(folder)
    tree = load_checkpoint(folder / CHECKPOINT)
    with of_this_version(folder / CHECKPOINT):
        recipe, step = recipes.from_json(tree["recipe"], table), operator.index(tree["step"])
        family = recipe.family
        with _unseen():
            model = recipes.build(recipe, tree["decided"]).to(device=device)
        model.load_state_dict(tree["model"])
        if tree["ema"]:  # parameters only: buffers have no average
            recipes.averaged(recipe, model).load_state_dict(tree["ema"], strict=False)
        metadata, checksums = family.read_metadata(tree["metadata"]), tasks.checksums(tree)
    return Run(folder, recipe, step, model.eval(), metadata, checksums, table)


def moved(run: Run, name_or_path: str) -> Run:
    """The run with its data elsewhere: under a name or path that `data.load` takes. They are compared when they are read."""
    return dataclasses.replace(run, recipe=recipes.adjust(run.recipe, {"data": name_or_path}))


def samples(run: Run, n: int, seed: int, **options: Any) -> Any:
    """n samples, by the options of the run's family. Raises Diverged, and what the family's `sample` raises."""
    with _told(run):
        return run.draw(n, np.random.default_rng(seed), **options)


def scores(run: Run, seed: int = 0, say: Callable[[str], Any] = lambda text: None) -> dict[str, float]:
    """The family's scores on held-out data; `say` receives a line about what there are too few data for.

    Raises DataError or TrainingError where the data are gone or are not those the run was begun with; Diverged.
    """
    task, family = tasks.load_again(run.recipe, run.folder, run.checksums, run.table, run.base), run.recipe.family
    with _unseen(seed), _told(run), np.errstate(all="ignore"):  # an overflow shows in the scores, which are checked
        found = run.model.evaluate(task.held_out())
        divergence.check(found, family)
        found |= family.probe(run.model, task, np.random.default_rng(seed))
        found |= family.scores(task, found, run.draw, np.random.default_rng(seed), say, kept.keeping(say))
        divergence.check(found, family)
        return found


def page(run: Run) -> Page:
    """What the family shows of the run. Raises what `tasks.load` raises, and Diverged."""
    task: data.Task = tasks.load(run.recipe, run.table, run.base)
    with _told(run):
        return run.recipe.family.page(run.model, run.metadata, task, run.draw)


@contextlib.contextmanager
def _told(run: Run) -> Iterator[None]:
    """Raises Diverged, with the run and what to try, where its weights or samples made inside the `with` have diverged."""
    try:
        divergence.check_weights(run.model)
        yield
    except Diverged as error:
        raise Diverged(
            f"{run.folder}: the model has diverged by step {run.step}, since {error}; {divergence.advice(run.recipe)}."
        ) from error


@contextlib.contextmanager
def _unseen(seed: int = 0) -> Iterator[None]:
    """Inside the `with`, the library's generator starts at `seed`; afterwards it is where it was."""
    with random.fork_rng():
        random.manual_seed(seed)
        yield
