"""Training: recipes, the loop, the folder of a run, and what is made of it.

    train("vae", "runs/vae")                     one loop for all recipes; resumable at any moment
    run = open_run("runs/vae")                   the trained model
    samples(run, 64, seed=0)                     pictures or texts, as its family makes them
    scores(run)                                  on held-out data

recipes → tasks (their data) → loop (state, checkpoints) → runs → report (a page). Nothing here is of one family: what
there is to know of a model, its `Family` tells (`models/family.py`). What decides the bits of a run stands in `machine`.
"""

from scratchgen.training.divergence import Diverged
from scratchgen.training.folder import TrainingError
from scratchgen.training.loop import Outcome, train
from scratchgen.training.recipes import RECIPES, Recipe, adjust, recipe, settings
from scratchgen.training.runs import Run, moved, open_run, samples, scores

__all__ = [
    "RECIPES",
    "Diverged",
    "Outcome",
    "Recipe",
    "Run",
    "TrainingError",
    "adjust",
    "moved",
    "open_run",
    "recipe",
    "samples",
    "scores",
    "settings",
    "train",
]
