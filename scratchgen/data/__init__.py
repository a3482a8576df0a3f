"""Data sets and batches: NumPy arrays in, NumPy arrays out.

    load("digits").x                    float32 (N, C, H, W) in [0, 1]
    load("python-docs").text            one string
    next(batches(images, 64, seed=0))   (x, y), drawn without replacement within an epoch
    windows(tokens, 128, 32, seed=0, step=7)

A batch is a pure function of (seed, step), so a run resumed at step k sees what the uninterrupted run saw, and
skipping k steps costs nothing. Nothing is ever unpickled, and nothing is fetched where a local copy exists.

`dataset` what a model can learn from · `images`, `captions`, `pairs`, `points`, `texts` the kinds there are · `named` data sets
that have a name · `files` the user's own · `loading` both of these by one function · `shapes` pictures made by code.
"""

from scratchgen.data.captions import Captioned, CaptionTokens
from scratchgen.data.checks import DataError
from scratchgen.data.dataset import Batch, Dataset, Task
from scratchgen.data.files import pictures_like
from scratchgen.data.images import Images, batches
from scratchgen.data.loading import load, reads
from scratchgen.data.named import Source, catalogue
from scratchgen.data.pairs import Pairs
from scratchgen.data.points import Points, mixture, mixture_modes
from scratchgen.data.texts import Text, Tokens, windows

__all__ = [
    "Batch",
    "CaptionTokens",
    "Captioned",
    "DataError",
    "Dataset",
    "Images",
    "Pairs",
    "Points",
    "Source",
    "Task",
    "Text",
    "Tokens",
    "batches",
    "catalogue",
    "load",
    "mixture",
    "mixture_modes",
    "pictures_like",
    "reads",
    "windows",
]
