"""The data of a recipe: loaded, made ready by its family, and compared with those that a run was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratchgen import data
from scratchgen.training.folder import TrainingError
from scratchgen.training.recipes import RECIPES, Recipe


def load(recipe: Recipe, table: Mapping[str, Recipe] = RECIPES, base: Any = None) -> data.Task:
    """What a recipe learns from and what is held out, in batches of its size; `base` is the model that its family builds on.

    Raises DataError, or TrainingError where the data are of a kind that the recipe does not learn from; `table` holds the
    recipes that may do so.
    """
    family, size = recipe.family, recipe.size or None
    train = data.load(recipe.data, seed=recipe.seed, size=size, kind=family.learns_from)
    if not isinstance(train, family.learns_from):
        others = ", ".join(name for name, r in table.items() if isinstance(train, r.family.learns_from))
        raise TrainingError(
            f"{recipe.data}: the recipe {recipe.name!r} learns from {family.learns_from.__name__.lower()}, and this is "
            f"{type(train).__name__.lower()}, from which {others or 'no recipe'} can learn."
        )
    test = data.load(recipe.data, split="test", seed=recipe.seed, size=size, kind=family.learns_from)
    on = [base] if family.builds_on else []
    return data.Task(*family.prepare(train, test, recipe.model, *on), recipe.batch_size, recipe.seed)


def load_again(
    recipe: Recipe, folder: Path, checksums: Mapping[str, str], table: Mapping[str, Recipe] = RECIPES, base: Any = None
) -> data.Task:
    """The data of the run in `folder`, from where its recipe says they are, compared with the run's checksums.

    Raises what `load` does, and TrainingError where the data are gone or are others than the run was begun with.
    """
    if Path(recipe.data).is_absolute() and not Path(recipe.data).exists():
        raise TrainingError(f"{folder}: its data are no longer at {recipe.data}; tell where they are now (--data).")
    task = load(recipe, table, base)
    for part, checksum in checksums.items():
        if checksum != task.checksums[part]:
            raise TrainingError(
                f"{folder}: the data in {recipe.data} are not those the run was begun with (what is {part} has another "
                f"checksum); if those have moved, tell where they are now (--data)."
            )
    return task


def checksums(tree: Mapping[str, Any]) -> dict[str, str]:
    """Those of the data of a run, from its checkpoint."""
    found = {part: tree["checksums"][part] for part in ("learned from", "held out")}
    if not all(isinstance(checksum, str) for checksum in found.values()):
        raise TypeError(f"expected checksums of the data, got {found}")
    return found
