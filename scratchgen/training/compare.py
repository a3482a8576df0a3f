"""The families of generative models side by side: the same data, the same minutes, the same scores."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchgen.training import pictures, recipes, report, runs, tasks
from scratchgen.training.folder import TrainingError, write_whole
from scratchgen.training.loop import Outcome, State, train
from scratchgen.training.recipes import RECIPES, Recipe

TIMED = 12  # steps by which the pace of a recipe is measured, after as many that warm up
SHOWN = 20  # pictures of each family in the table


class Stage(NamedTuple):
    """A recipe, and its share of the minutes."""

    recipe: str
    share: float


@dataclass(frozen=True)
class Entrant:
    """A way to make pictures: what is trained, one upon the other."""

    title: str
    stages: tuple[Stage, ...]


def entrants(classes: bool) -> tuple[Entrant, ...]:
    """The families, told the classes where the data have them and the family takes them."""
    return (
        Entrant("adversarial", (Stage("cgan" if classes else "sngan", 1.0),)),
        Entrant("variational, mixture prior", (Stage("vae-conv", 0.9), Stage("prior", 0.1))),
        Entrant("codes, transformer prior", (Stage("vqvae", 0.35), Stage("prior", 0.65))),
        Entrant("flow matching", (Stage("flow", 1.0),)),
    )


def run(
    folder: Path,
    *,
    name_or_path: str = "fashion-mnist",
    minutes: float = 5.0,
    seed: int = 0,
    progress: bool | None = None,
    say: Callable[[str], Any] = print,
    table: Mapping[str, Recipe] = RECIPES,
    only: Sequence[Entrant] | None = None,
) -> Outcome | None:
    """Train each family for the same minutes on this machine, score all alike, write `compare.json`, `.png` and `index.html`.

    The number of steps of each follows from its pace, measured first. What is there already of a comparison that was stopped
    is kept and gone on with. Returns the outcome of the run that a signal stopped, or None when all is done. Raises as `train`
    does.
    """
    found: list[dict[str, Any]] = []
    shown = []
    first = tasks.load(recipes.adjust(recipes.recipe("vae-conv", table), {"data": name_or_path, "seed": seed}), table)
    chosen = entrants(getattr(first.train, "y", None) is not None) if only is None else only
    for i, entrant in enumerate(chosen, 1):
        base: Path | None = None
        seconds, steps, parameters = 0.0, [], 0
        for stage in entrant.stages:
            place = folder / f"{i}-{stage.recipe}"
            changes: dict[str, Any] = {"data": name_or_path, "seed": seed}
            if base is not None:
                changes["begun_from"] = str(base)
            say(f"[{i}/{len(chosen)}] {entrant.title}: {stage.recipe}, {60 * minutes * stage.share:.0f} s")
            if not (place / "config.json").exists():
                changes["steps"] = _steps(stage, changes, 60 * minutes * stage.share, table)
                changes["sample_every"] = max(1, changes["steps"] // 6)
            else:
                changes = {}
            outcome = train(stage.recipe, place, changes, resume=place.exists(), progress=progress, say=say, table=table)
            if outcome.signal is not None:
                return outcome
            base = place
        for stage in entrant.stages:
            part = runs.open_run(folder / f"{i}-{stage.recipe}", table=table)
            seconds += part.rows[-1]["seconds"]
            steps.append(part.step)
            parameters = part.model.num_parameters()
        trained = runs.open_run(base, table=table)
        began = time.perf_counter()
        made = runs.samples(trained, 256, seed)
        pace = 256 / (time.perf_counter() - began)
        scores = runs.scores(trained, say=say)
        found.append(
            {
                "family": entrant.title,
                "recipes": [stage.recipe for stage in entrant.stages],
                "steps": steps,
                "seconds": seconds,
                "parameters": parameters,
                "samples_per_second": pace,
                "scores": scores,
            }
        )
        shown.append((trained, scores, made[:SHOWN]))
        write_whole(folder / "compare.json", _json({"data": name_or_path, "minutes": minutes, "seed": seed, "families": found}))
    write_whole(folder / "compare.png", _picture(found, [made for _, _, made in shown], first.test.x[:SHOWN]))
    report.page(folder / "index.html", [(trained, scores) for trained, scores, _ in shown])
    say("\n".join(_table(found)))
    return None


def _steps(stage: Stage, changes: Mapping[str, Any], seconds: float, table: Mapping[str, Recipe]) -> int:
    """How many steps of a recipe fit into the seconds, by the median of a few."""
    recipe = recipes.adjust(recipes.recipe(stage.recipe, table), changes)
    base = runs.open_run(recipe.begun_from, table=table).model if recipe.family.builds_on else None
    task = tasks.load(recipe, table, base)
    state, times = State(recipe, task), []
    for _, batch in zip(range(2 * TIMED), task.batches(), strict=False):
        began = time.perf_counter()
        state.advance(batch)
        times.append(time.perf_counter() - began)
    steps = int(seconds / statistics.median(times[TIMED:]))
    if steps < 1:
        raise TrainingError(
            f"compare: a step of {stage.recipe} takes longer than its {seconds:.2f} s; give it more (--minutes)."
        )
    return steps


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


COLUMNS = (
    ("Fréchet distance", lambda f: f["scores"].get("frechet_distance")),
    ("of real data", lambda f: f["scores"].get("frechet_distance_real")),
    ("restored", lambda f: f["scores"].get("frechet_distance_restored")),
    ("precision", lambda f: f["scores"].get("precision")),
    ("recall", lambda f: f["scores"].get("recall")),
    ("parameters", lambda f: f["parameters"]),
    ("samples/s", lambda f: f["samples_per_second"]),
    ("seconds", lambda f: f["seconds"]),
)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["", *(name for name, _ in COLUMNS)]]
    rows += [[f["family"], *(_cell(value(f)) for _, value in COLUMNS)] for f in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _picture(found: Sequence[Mapping[str, Any]], made: Sequence[np.ndarray], real: np.ndarray) -> bytes:
    """A row for each family: what it is, its figures, and pictures that it made; real ones at the bottom."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({key: value for key, value in rcParamsDefault.items() if key != "backend"}):
        n = len(made) + 1
        figure = Figure(figsize=(12, 1.25 * n), dpi=100)
        canvas = FigureCanvasAgg(figure)
        for i, (axes, x) in enumerate(zip(np.ravel(figure.subplots(n, 1)), [*made, real], strict=True)):
            sheet = pictures.grid(x, SHOWN, scale=1)
            axes.imshow(sheet, cmap="gray" if sheet.ndim == 2 else None, interpolation="nearest", aspect="equal")
            axes.axis("off")
            if i == len(found):
                title = "real pictures, held out"
            else:
                f = found[i]
                figures = (f"{name} {_cell(value(f))}" for name, value in COLUMNS if value(f) is not None)
                title = f"{f['family']}: {' · '.join(figures)}"
            axes.set_title(title, fontsize=9, loc="left")
        figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.01, hspace=0.45)
        canvas.draw()
        return pictures.png(np.asarray(canvas.buffer_rgba())[:, :, :3], colours=128)
