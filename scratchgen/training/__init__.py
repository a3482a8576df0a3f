"""Training: recipes, the loop, the folder of a run, and what is made of it.

    train("vae", "runs/vae")                     one loop for all recipes; resumable at any moment
    run = open_run("runs/vae")                   the trained model
    scores(run)                                  on held-out data

recipes → tasks (data as batches) → loop (state, checkpoints) → runs → report (a page). This room holds no mathematics
of models: it calls `training_step`, `evaluate` and `generate`.
"""

from scratchgen.training.divergence import Diverged
from scratchgen.training.folder import TrainingError
from scratchgen.training.loop import Outcome, train
from scratchgen.training.recipes import RECIPES, Recipe, adjust, recipe, settings
from scratchgen.training.runs import Run, moved, open_run, scores

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
    "scores",
    "settings",
    "train",
]
