"""The loop: one for all recipes.

A step is a function of the state (weights, optimisers, average, random generator) and of how many came before, which decides
the batch and the learning rate. The state is what a checkpoint holds, so a run that was interrupted, however and whenever,
ends bit for bit where it would have ended: checkpoints and samples are equal files, and metrics.jsonl differs only in
the seconds it tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import operator
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import scratchgen
from scratchgen import data, optim, random
from scratchgen.models.family import Family
from scratchgen.training import divergence, machine, pictures, recipes, runs, tasks
from scratchgen.training.divergence import Diverged
from scratchgen.training.folder import (
    CHECKPOINT,
    CONFIG,
    CURVES,
    FILM,
    METRICS,
    SAMPLES,
    MetricsLog,
    TrainingError,
    is_empty,
    kept_samples,
    load_checkpoint,
    locked,
    of_this_version,
    save_checkpoint,
    write_whole,
)
from scratchgen.training.media import MEDIA
from scratchgen.training.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: after which step, of how many, and by which signal if it was stopped by one."""

    folder: Path
    step: int
    steps: int
    signal: int | None = None


def train(
    name: str,
    folder: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: bool | None = None,
    say: Callable[[str], Any] = print,
    table: Mapping[str, Recipe] = RECIPES,
) -> Outcome:
    """Train the recipe `name` of the `table`, with the settings in `changes`, in a folder of its own; or continue a run.

    To resume, the settings must be those the run was begun with, but for `steps`, which may grow, and for the path of the
    `data`, which may be another where the data have the same checksum. Where nothing was begun yet, resuming begins. A run
    may go on on another `device`, other kernels or other threads than it was begun on, which is remarked on, since its bits
    may then differ. `progress`: a bar on stderr; None: if that is a terminal. `say` receives lines of text.
    SIGINT and SIGTERM let the step under way finish and be saved; the second one stops at once. A picture that cannot be
    drawn or written is remarked on once, and the run goes on.

    Raises TrainingError, DataError or OSError, before anything is written, for what cannot begin or continue; Diverged.
    """
    folder = Path(folder)
    recipe, resumed = _plan(name, folder, dict(changes or {}), resume, table)
    tree, checksums = None, {}
    if resumed and (folder / CHECKPOINT).exists():
        tree = load_checkpoint(folder / CHECKPOINT)
        with of_this_version(folder / CHECKPOINT):
            checksums = tasks.checksums(tree)
            if _but_for(tree["recipe"]) != _but_for(recipes.to_json(recipe)):
                raise TrainingError(f"{folder}: {CONFIG} and {CHECKPOINT} belong to different runs.")
    recipe, base = _base(recipe, folder if tree else None, table)
    if data.reads(recipe.data, folder):
        raise TrainingError(
            f"{folder}: lies inside the data, {recipe.data}, which would take the samples of the run for data; choose a folder "
            f"elsewhere (--out)."
        )
    task = tasks.load_again(recipe, folder, checksums, table, base) if tree else tasks.load(recipe, table, base)
    _rehearse(recipe, task, device)
    random.manual_seed(recipe.seed)
    state = State(recipe, task, device)
    if tree:
        with of_this_version(folder / CHECKPOINT):
            state.restore(tree)
        if state.step > recipe.steps:
            raise TrainingError(f"{folder}: already at step {state.step}, so it cannot end at step {recipe.steps}.")
        if state.step == recipe.steps:
            say(f"{folder}: all {recipe.steps} steps are done; more steps (--steps) would extend it.")
            return Outcome(folder, state.step, recipe.steps)
    elif resume and not resumed:
        say(f"{folder}: nothing to resume; the run begins.")

    say(
        f"{recipe.name}: {task.train.about} from {recipe.data}, {state.model.num_parameters():,} parameters, "
        f"steps {state.step:,} to {recipe.steps:,}, in {folder}"
    )
    for remark in recipe.family.remarks(state.model.config, task):
        say(f"{recipe.name}: {remark}")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        machines = _machines(folder, state.step, machine.now(device), say)
        write_whole(folder / CONFIG, _config(state, machines))  # this file is written first, since it marks the folder as a run
        (folder / SAMPLES).mkdir(exist_ok=True)
        log = MetricsLog(folder / METRICS, keep=state.step)
        with contextlib.closing(log), _Progress(recipe, state.step, progress, say) as bar, _signals() as received:
            _loop(state, folder, log, bar, received)
    return Outcome(folder, state.step, recipe.steps, received[0] if received else None)


def _base(recipe: Recipe, begun: Path | None, table: Mapping[str, Recipe]) -> tuple[Recipe, Any]:
    """The model that the recipe's family builds on, None for most; and the recipe, with that model's data where it names none.

    A run that has `begun` holds a copy, so that it can go on without the run it was begun from.
    """
    allowed = recipe.family.builds_on
    if begun is not None:
        return recipe, runs.open_run(begun, table=table).base if allowed else None
    if not allowed:
        if recipe.begun_from:
            raise TrainingError(f"recipe {recipe.name!r}: begins anew, so it takes nothing from {recipe.begun_from} (--from).")
        return recipe, None
    kinds = [name for name, r in table.items() if r.family.name in allowed]
    if not recipe.begun_from:
        raise TrainingError(
            f"recipe {recipe.name!r}: builds on a finished run of {' or '.join(kinds)}; tell which (--from RUN)."
        )
    run = runs.open_run(recipe.begun_from, table=table)
    if run.recipe.family.name not in allowed:
        raise TrainingError(
            f"recipe {recipe.name!r}: builds on a run of {' or '.join(kinds)}, and {recipe.begun_from} is one of "
            f"{run.recipe.name!r}."
        )
    return recipes.adjust(recipe, {} if recipe.data else {"data": run.recipe.data}), run.model


def _plan(name: str, folder: Path, changes: dict[str, Any], resume: bool, table: Mapping[str, Recipe]) -> tuple[Recipe, bool]:
    """The recipe to train, and whether the folder holds its run already."""
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder}: expected a folder for the run, got a file.")
    if is_empty(folder):
        return recipes.adjust(recipes.recipe(name, table), changes), False
    if not (folder / CONFIG).exists():
        raise TrainingError(f"{folder}: holds files that are no run; choose another folder (--out).")
    if not resume:
        raise TrainingError(f"{folder}: already holds a run; continue it (--resume) or choose another folder (--out).")
    saved = read_config(folder, table)
    if saved.name != name:
        raise TrainingError(f"{folder}: holds a run of the recipe {saved.name!r}, not of {name!r}.")
    recipe = recipes.adjust(saved, changes)
    before, after = recipes.settings(saved), recipes.settings(recipe)
    changed = [key for key in _but_for(after) if after[key] != before[key]]
    if changed:
        key = changed[0]
        raise TrainingError(
            f"{folder}: was begun with {key} = {before[key]}, so it cannot go on with {key} = {after[key]}; "
            f"only steps can change, and where the data are."
        )
    return recipe, True


def _but_for(settings: dict[str, Any], may_change: tuple[str, ...] = ("steps", "data")) -> dict[str, Any]:
    """The settings that a run keeps for good. The path of its data may change; their checksum is compared apart."""
    return {key: value for key, value in settings.items() if key not in may_change}


def read_config(folder: Path, table: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """The recipe in a run's `config.json`. Raises TrainingError where it is none of the `table`."""
    with _configuration(folder) as config:
        return recipes.from_json(config["recipe"], table)


@contextlib.contextmanager
def _configuration(folder: Path) -> Iterator[Any]:
    """What a run's `config.json` says. Raises TrainingError where that is not what is looked for inside the `with`."""
    try:
        yield json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"{folder / CONFIG}: not the configuration of a run ({str(error).rstrip('.')}).") from error


def _machines(folder: Path, step: int, now: dict[str, Any], say: Callable[[str], Any]) -> list[dict[str, Any]]:
    """What has computed the run, each entry from a step on; the last one is what computes it now.

    The same bits are promised for the same device, kernels and threads only, so a change is remarked on.
    """
    if step == 0:
        return [{"from": 0, **now}]
    with _configuration(folder) as config:
        before = [{"from": int(entry.pop("from")), **entry} for entry in config["machines"]]
        last = {key: value for key, value in before[-1].items() if key != "from"}
    if last == now:
        return before
    changes = [f"{key} {last.get(key)}, now {now.get(key)}" for key in {**last, **now} if last.get(key) != now.get(key)]
    say(f"{folder}: goes on by other means than before ({'; '.join(changes)}), so its bits may differ from there on.")
    return [*before, {"from": step, **now}]


def _config(state: State, machines: list[dict[str, Any]]) -> str:
    content = {
        "scratchgen": scratchgen.__version__,
        "recipe": recipes.to_json(state.recipe),
        "model": dataclasses.asdict(state.model.config),
        "parameters": state.model.num_parameters(),
        "machines": machines,
    }
    return json.dumps(content, indent=2) + "\n"  # in ASCII, so that a path that is no UTF-8 is read back unchanged


# ---------------------------------------------------------------------------------------------------------------------
# State
# ---------------------------------------------------------------------------------------------------------------------


class State:
    """Everything the next step depends on."""

    def __init__(self, recipe: Recipe, task: data.Task, device: str = "cpu"):
        self.recipe, self.task, self.step = recipe, task, 0
        self.family, self.decided, self.metadata = recipe.family, recipes.decided(recipe, task.train), task.train.metadata()
        self.model = recipes.build(recipe, self.decided)
        self.family.adopt(self.model, task.train)
        self.model.to(device=device)
        self.optimizers = self.model.optimizers()
        self.rates = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in self.optimizers.items()}
        self.ema = optim.EMA(recipes.averaged(recipe, self.model), recipe.ema) if recipe.ema else None
        self.draw = divergence.drawing(self.family, self.model, self.family.read_metadata(self.metadata))

    def advance(self, batch: data.Batch) -> dict[str, float]:
        """One step; returns its losses."""
        r = self.recipe
        self.model.progress = self.step / r.steps
        factor = optim.warmup_cosine(self.step, warmup=min(r.warmup, r.steps), steps=r.steps, final=r.final)
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = factor * rate
        with np.errstate(all="ignore"):  # an overflow shows in the losses, which the loop checks
            losses = self.model.training_step(batch, self.optimizers)
            if self.ema:
                self.ema.update()
        self.step += 1
        return losses

    @contextlib.contextmanager
    def apart(self) -> Iterator[Any]:
        """Inside the `with`, the model has averaged weights and is in evaluation mode; what is drawn there leaves no trace."""
        generator = random.get_rng_state()
        random.manual_seed(self.recipe.seed)
        self.model.eval()
        try:
            # an overflow shows in the scores and samples, which are checked
            with np.errstate(all="ignore"), self.ema.swapped() if self.ema else contextlib.nullcontext():
                yield self.model
        finally:
            self.model.train()
            random.set_rng_state(generator)

    def to_tree(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "step": self.step,
            "recipe": recipes.to_json(self.recipe),
            "decided": self.decided,
            "metadata": self.metadata,
            "checksums": self.task.checksums,
            "random": random.get_rng_state(),
            "model": {name: np.array(tensor.cpu().numpy()) for name, tensor in self.model.state_dict().items()},
            "ema": self.ema and self.ema.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def restore(self, tree: dict[str, Any]) -> None:
        """Continue from what `to_tree` returned for the same recipe and data."""
        self.model.load_state_dict(tree["model"])
        if self.ema:
            self.ema.load_state_dict(tree["ema"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(tree["optimizers"][name])
        random.set_rng_state(tree["random"])
        self.step = operator.index(tree["step"])


# ---------------------------------------------------------------------------------------------------------------------
# The steps
# ---------------------------------------------------------------------------------------------------------------------


def _rehearse(recipe: Recipe, task: data.Task, device: str) -> None:
    """The first step and a held-out batch of a model that is then forgotten.

    What the optimisers, a layer or the memory refuse, and what has diverged after a single step, is found out here, before
    anything is written. The run itself then begins with its seed, as if there had been no rehearsal.

    Raises TrainingError, or DataError for data too small for a batch.
    """
    batch = next(task.batches(0))
    random.manual_seed(recipe.seed)
    try:
        state = State(recipe, task, device)
        losses = state.advance(batch)
        divergence.check(losses, recipe.family)
        divergence.check_weights(state.model)
        with state.apart() as model:
            found = model.evaluate(task.held_out(1))
        divergence.check(found, recipe.family, of="held-out ")
        _find_curves(recipe.family, {*losses, *(f"test_{key}" for key in found)})
    except Diverged as error:
        raise TrainingError(
            f"recipe {recipe.name!r}: {error} after the first step, so the run cannot begin; {divergence.advice(recipe)}."
        ) from error
    except TrainingError:
        raise
    except ValueError as error:
        raise TrainingError(f"recipe {recipe.name!r}, in batches of {recipe.batch_size}: {str(error).rstrip('.')}.") from error


def _find_curves(family: Family, keys: set[str]) -> None:
    """Raises TrainingError for a curve of the family that its model does not tell."""
    for line in (line for panel in family.curves for line in panel.lines):
        if line.key not in keys:
            raise TrainingError(
                f"family {family.name!r}: draws the curve {line.key!r}, and its model tells {', '.join(sorted(keys))}."
            )


def _loop(state: State, folder: Path, log: MetricsLog, bar: _Progress, received: list[int]) -> None:
    recipe, task = state.recipe, state.task
    began = time.perf_counter() - (log.rows[-1]["seconds"] if log.rows else 0)
    saved = state.step
    if state.step == 0:
        _save(state, folder, log)
    state.model.train()
    for batch in task.batches(state.step):
        losses = state.advance(batch)
        step, last = state.step, state.step == recipe.steps
        logged, shown = last or step % recipe.log_every == 0, last or step % recipe.sample_every == 0
        due = last or bool(received) or step % recipe.save_every == 0
        try:
            divergence.check(losses, recipe.family)
            if shown or due:
                divergence.check_weights(state.model)
            if logged or shown:
                row = {"step": step, "seconds": 0.0, **losses}
                if shown:
                    row |= _show(state, folder, bar)
                row["seconds"] = round(time.perf_counter() - began, 3)
                log.write(row)
        except Diverged as error:
            raise Diverged(
                f"step {step}: {error}, so the run stops; the checkpoint of step {saved} is kept; {divergence.advice(recipe)}."
            ) from error
        if shown:
            _diagnose(state, log.rows, bar)
        if shown or due:
            bar.draw(folder / CURVES, lambda: pictures.curves(recipe.family.curves, log.rows))
        if due:
            _save(state, folder, log)
            saved = step
        bar.show(step, losses, always=shown)
        if last or received:
            return


def _show(state: State, folder: Path, bar: _Progress) -> dict[str, float]:
    """Write samples of the model as it is; returns its scores on held-out data and on training data. Raises Diverged."""
    recipe, task, medium = state.recipe, state.task, MEDIA[state.family.makes]
    with state.apart() as model:
        rng, snapshot = np.random.default_rng(recipe.seed), state.family.snapshot
        samples = snapshot(task, state.draw, rng) if snapshot else state.draw(state.family.many, rng)
        found = model.evaluate(task.held_out(recipe.eval_batches))
        learned = model.evaluate(itertools.islice(task.batches(), recipe.eval_batches))  # the same pictures each time
    divergence.check(found, recipe.family, of="held-out ")
    divergence.check(learned, recipe.family, of="training ")
    bar.draw(folder / SAMPLES / f"{state.step:06d}{medium.suffix}", lambda: medium.file(samples))
    if medium.film:
        bar.draw(folder / FILM, lambda: medium.film(kept_samples(folder, state.step, medium.suffix, most=10), samples))
    return {f"{of}_{key}": value for of, scores in (("test", found), ("train", learned)) for key, value in scores.items()}


def _diagnose(state: State, rows: list[dict[str, Any]], bar: _Progress) -> None:
    """Tell what the rules of the family say and did not say at the snapshot before; at the last step, all that they say."""
    family, config, before = state.recipe.family, state.model.config, len(rows) - 1
    while before and not any(key.startswith("test_") for key in rows[before - 1]):
        before -= 1
    known = family.diagnose(rows[:before], config) if state.step < state.recipe.steps else {}
    for rule, sentence in family.diagnose(rows, config).items():
        if rule not in known:
            bar.tell(f"step {state.step}: {sentence}.")


def _save(state: State, folder: Path, log: MetricsLog) -> None:
    """Commit the step: its checkpoint is written after everything else of the step is on disk."""
    log.sync()
    save_checkpoint(folder / CHECKPOINT, state.to_tree())


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are added when they come; after the first, they act as they did before.

    A signal that is ignored stays so: SIGINT is, where a script has started the run in the background, and a Ctrl-C is then
    meant for what runs in the foreground.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum: int, _: Any) -> None:
        received.append(signum)
        restore()

    if threading.current_thread() is threading.main_thread():  # the only thread to which Python hands signals
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, note)
    try:
        yield received
    finally:
        restore()


class _Progress:
    """Tells how far the run is, by a bar on a terminal and else by a line now and then; and writes its pictures."""

    def __init__(self, recipe: Recipe, step: int, bar: bool | None, say: Callable[[str], Any]):
        from tqdm import tqdm

        self.recipe, self.say = recipe, say
        self.begin = self.step = step
        self.bar = None
        if bar or bar is None and sys.stderr is not None and sys.stderr.isatty():
            self.bar = tqdm(
                total=recipe.steps, initial=step, desc=recipe.name, unit="step", dynamic_ncols=True, mininterval=0.2
            )
        self.began = self.spoke = time.perf_counter()
        self.remarked = False

    def draw(self, path: Path, content: Callable[[], bytes]) -> None:
        """Write a picture; where that fails, say so once and let the run go on, which is worth more than its pictures.

        Any error counts, since a plotting library depends on much that is not ours: a backend that the environment names,
        fonts, LaTeX. KeyboardInterrupt is no such error, and ends the run.
        """
        try:
            write_whole(path, content())
        except Exception as error:
            if not self.remarked:
                why = textwrap.shorten(str(error) or type(error).__name__, 200)
                self.tell(f"{path} cannot be drawn ({why}); the run goes on, and says so only once.")
            self.remarked = True

    def tell(self, remark: str) -> None:
        """Print a line beside the bar."""
        self.bar.write(remark, file=sys.stderr) if self.bar is not None else self.say(remark)

    def show(self, step: int, losses: dict[str, float], *, always: bool) -> None:
        if self.bar is not None:
            if always or step % 10 == 0:
                self.bar.set_postfix({key: f"{value:.3g}" for key, value in losses.items()}, refresh=False)
            self.bar.update(step - self.step)
        self.step = step
        now = time.perf_counter()
        if self.bar is None and (always or now - self.spoke > 10):
            pace = (step - self.begin) / (now - self.began)
            left = _duration((self.recipe.steps - step) / pace)
            terms = "  ".join(f"{key} {value:.4g}" for key, value in losses.items())
            self.say(f"{self.recipe.name}  step {step}/{self.recipe.steps}  {terms}  {pace:.3g} steps/s  {left} left")
            self.spoke = now

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
