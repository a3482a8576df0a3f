"""The tour: three models, trained by the same loop as any other, and the page that shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scratchgen.training import report
from scratchgen.training.folder import write_whole
from scratchgen.training.loop import Outcome, train
from scratchgen.training.runs import open_run, scores

# The recipes of the tour, with the settings in which they differ from the table of recipes.
TOUR: dict[str, dict[str, Any]] = {
    "gan": {"steps": 4000, "sample_every": 1000},
    "vae": {"steps": 5000, "sample_every": 1250},
    "gpt": {"steps": 800, "sample_every": 200},
}


def run(
    folder: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    changes: dict[str, dict[str, Any]] | None = None,
    progress: bool | None = None,
    say: Callable[[str], Any] = print,
) -> Outcome | None:
    """Train the tour's models in sub-folders, or what is missing of it; then score them and write `index.html`.

    `quick` takes a tenth of the steps; `changes` are further settings for each recipe. Returns the outcome of the run
    that a signal stopped, or None when all is done. Raises as `train` does.
    """
    began = time.perf_counter()
    shown = []
    for i, (name, settings) in enumerate(TOUR.items(), 1):
        settings = {**settings, "seed": seed, **(changes or {}).get(name, {})}
        if quick:
            settings |= {key: max(1, settings[key] // 10) for key in ("steps", "sample_every")}
        say(f"[{i}/{len(TOUR)}]")
        outcome = train(name, folder / name, settings, resume=(folder / name).exists(), progress=progress, say=say)
        if outcome.signal is not None:
            return outcome
        trained = open_run(folder / name)
        found = scores(trained)
        write_whole(trained.folder / "eval.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
        shown.append((trained, found))
    report.page(folder / "index.html", shown)
    say(f"done in {time.perf_counter() - began:.0f} s; open {folder / 'index.html'} in a browser.")
    return None
