"""What is costly to make, such as a classifier to score with, is made once and kept in the user's cache.

A name is made of all that its arrays follow from, so what is kept under it is never out of date, and a file whose checksum does
not fit its content is made anew. Where nothing can be kept, all is made anew each time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scratchgen.data import named
from scratchgen.models.family import Arrays, Keep
from scratchgen.training.folder import TrainingError, load_checkpoint, save_checkpoint


def folder() -> Path | None:
    """Where it is kept; None for a user who has no home."""
    cache = named.cache()
    return cache and cache / "kept"


def keeping(say: Callable[[str], Any]) -> Keep:
    """A `Keep` that keeps in the folder; `say` receives a line about what is made, and about what cannot be kept."""

    def keep(name: str, make: Callable[[], Arrays]) -> Arrays:
        what, path = name.partition("-")[0], (folder() or Path()) / f"{name}.safetensors"
        if folder() is None:
            say(f"a {what} is trained, and not kept, since neither XDG_CACHE_HOME nor HOME names a folder.")
            return make()
        try:
            if path.exists():
                return load_checkpoint(path)
        except (TrainingError, OSError) as error:
            say(f"a {what} is trained anew: {' '.join(str(error).split())}")
        else:
            say(f"a {what} is trained, once for these data, to be kept in {path}.")
        made = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(path, dict(made))
        except OSError as error:
            say(f"the {what} cannot be kept, so the next time another is trained: {path}: {error.strerror}.")
        return made

    return keep
