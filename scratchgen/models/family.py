"""What a family of models says of itself, so that it can be trained, sampled from, scored and shown.

Each file of models ends with one `Family`: plain data, and functions of arrays. Nobody who trains it guesses anything from
the names of its attributes, and none of this knows files, progress bars or the command line. A model is a Module with

    config                                  a frozen dataclass
    optimizers()                            name -> optimiser
    training_step(batch, optimizers)        one step on a batch; name -> loss
    evaluate(batches)                       name -> score of held-out batches
    progress                                the share of a run's steps done so far, which is set before each of them

A recipe in training/recipes.py names the FAMILY of its model, and this is all that training knows of the model's file.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from scratchgen.data import Dataset, Task

# ---------------------------------------------------------------------------------------------------------------------
# Curves and scores
# ---------------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A curve over the steps: of a loss, or, under "test_…", of a held-out score."""

    key: str  # of a loss that `training_step` returns, or "test_" and a score that `evaluate` returns
    label: str
    sign: int = 1  # −1 turns a bound that is raised into a loss that is lowered
    held_out: bool = False


class Panel(NamedTuple):
    """Curves that share an axis."""

    title: str
    lines: tuple[Line, ...]
    level: tuple[float, str] | None = None  # a value worth comparing with, and what it is
    log: bool = False  # is the axis logarithmic? Then only what is above 0 is drawn


class Score(NamedTuple):
    """What a score is called and what it tells. Letters between asterisks, as in *V*, are set in italics."""

    key: str
    name: str
    better: int = 0  # 1: more is better, −1: less is
    tells: str = ""
    exponential: bool = False  # is it e to the power of a loss in nats? Then its logarithm tells whether it has diverged


# endings of the same score of other data than samples, and what these are
BESIDE = (("_restored", "restored"), ("_real", "real data"), ("_shifted", "moved by a pixel"))


def side_by_side(scores: Mapping[str, float]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """A table of scores: what its columns are, and rows of a key and a value in each; None where that has no such score."""
    found = [(end, title) for end, title in BESIDE if any(key + end in scores for key in scores)]
    beside = {key + end for key in scores for end, _ in found}
    rows = [(key, [scores.get(key + end) for end, _ in [("", ""), *found]]) for key in scores if key not in beside]
    return ["model", *(title for _, title in found)], rows


# ---------------------------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A condition or a rule of sampling: a keyword of the family's `sample`, and an option of the command `sample`."""

    name: str
    kind: type  # int, float or str
    what: str  # for people to read, with the default in brackets
    metavar: str
    expected: str = "a text"  # of its value, in the words of an error
    least: float = 0
    most: float = sys.float_info.max

    def read(self, text: str) -> Any:
        """The value that a text spells. Raises ValueError for any other."""
        if self.kind is str:
            return text
        try:
            value = self.kind(text)
        except ValueError:
            value = float("nan")
        if not self.least <= value <= self.most:
            raise ValueError(f"expected {self.expected}, got {text!r}")
        return value


class OptionError(ValueError):
    """A family cannot sample with the value of an option; the message is one sentence."""


class Plane(NamedTuple):
    """Points of the plane that a model made, and what one picture shows with them."""

    x: np.ndarray  # (N, 2)
    square: tuple[float, float, float]  # what is shown: the centre, two numbers, and half the side
    real: np.ndarray | None = None  # (M, 2), of the data
    surface: np.ndarray | None = None  # (S, S), a function of the plane at the centres of S² equal squares, rows upwards
    arrows: np.ndarray | None = None  # (S², 2), a field of velocities on the `lattice`


def lattice(square: tuple[float, float, float], side: int) -> np.ndarray:
    """The centres of side² equal squares that fill a square, row by row, upwards.     → float32 (side², 2)"""
    across = ((np.arange(side) + 0.5) / side * 2 - 1) * square[2]
    x, y = np.meshgrid(square[0] + across, square[1] + across)
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)


class Draw(Protocol):
    """`sample` of a model that is trained: n samples, looked at for what is no longer finite."""

    def __call__(self, n: int, rng: np.random.Generator, **options: Any) -> Any: ...


# ---------------------------------------------------------------------------------------------------------------------
# What scores need and is costly to make, such as a classifier
# ---------------------------------------------------------------------------------------------------------------------

Arrays = Mapping[str, np.ndarray]
Keep = Callable[[str, Callable[[], Arrays]], Arrays]  # (name, make) → what is kept under the name, or else what make() returns


def anew(name: str, make: Callable[[], Arrays]) -> Arrays:
    """A `Keep` that keeps nothing."""
    return make()


# ---------------------------------------------------------------------------------------------------------------------
# The page of a run
# ---------------------------------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """Pictures (N, C, H, W) in [0, 1], side by side, row by row."""

    x: np.ndarray
    columns: int
    caption: str


class Texts(NamedTuple):
    """Texts side by side, each under its title."""

    texts: Sequence[tuple[str, str]]
    caption: str


class Planes(NamedTuple):
    """Pictures of the plane side by side, each under its title."""

    planes: Sequence[tuple[str, Plane]]
    caption: str


class Paths(NamedTuple):
    """Paths in the plane side by side, each under its title, over the field of directions that it follows."""

    paths: Sequence[tuple[str, np.ndarray, np.ndarray]]  # a title; (T, 2), points in turn; (S², 2), a field on the `lattice`
    square: tuple[float, float, float]
    axes: tuple[str, str]  # what the coordinates are
    caption: str


Figure = Pictures | Texts | Planes | Paths


class Page(NamedTuple):
    """What the page of a run says and shows. Letters between asterisks, as in *G*, are set in italics."""

    lead: str  # what the model is, in a few sentences
    equations: tuple[str, ...]  # symbols parted by spaces: a_b and a_{bc} with subscripts, a^b, a__b with b under a
    figures: Sequence[Figure | tuple[Figure, ...]] = ()  # a tuple of figures stands side by side


# ---------------------------------------------------------------------------------------------------------------------
# The declaration
# ---------------------------------------------------------------------------------------------------------------------


def _as_they_are(train: Any, test: Any, settings: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    return train, test


def _no_more(
    task: Task, found: dict[str, float], draw: Draw, rng: np.random.Generator, say: Callable, keep: Keep
) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Family:
    """One file of `scratchgen.models`. Raises ValueError where the declaration names what there is not.

    Settings are those of a recipe's model: all fields of `config` but those that the data decide. Metadata are what a
    sample needs of the data: `read_metadata` makes them of `Dataset.metadata()`, or of the copy in a checkpoint.
    """

    name: str
    title: str
    model: Callable[[Any], Any]  # config → a model
    config: type
    learns_from: type  # the kind of data that `data.load` must yield
    decided: Mapping[str, Callable[[Any], Any]]  # field of the config -> what the data to learn from decide of it
    makes: str  # "pictures", "text" or "points": what a sample is, and so how it is checked, written and shown
    sample: Callable[..., Any]  # (model, metadata, n, rng, **options) → n samples
    # (train, test, settings) → both as the model learns from them; with `builds_on` the other model is a fourth argument
    prepare: Callable[..., tuple[Dataset, Dataset]] = _as_they_are
    read_metadata: Callable[[Mapping[str, Any]], Any] = dict
    rates: tuple[str, ...] = ("lr",)  # the settings that are learning rates: after a divergence, smaller ones are advised
    builds_on: tuple[str, ...] = ()  # families: a finished model of one of them is what this one learns from, and draws with
    base: str = ""  # the path of the submodule that is a copy of this other model
    adopt: Callable[[Any, Any], Any] = lambda model, train: None  # takes up the other model, and what else training data tell
    edits: tuple[str, ...] = ()  # what can be done with codes of pictures, as `training/edit.py` names it
    averaged: str = ""  # the path of the submodule whose weights are averaged, as in `get_submodule`; "" is the whole model
    options: tuple[Option, ...] = ()  # that `sample` takes
    many: int = 64  # how many samples are drawn where nobody says
    snapshot: Callable[[Task, Draw, np.random.Generator], Any] | None = None  # samples to keep on the way; None: `many`
    # (task, scores of `evaluate`, draw, rng, say, keep) → further scores; "…_real" is the same of real data (`BESIDE`)
    scores: Callable[[Task, dict[str, float], Draw, np.random.Generator, Callable, Keep], dict[str, float]] = _no_more
    # (model, task, rng) → scores found by looking into the model, where `scores` look at its samples
    probe: Callable[[Any, Task, np.random.Generator], dict[str, float]] = lambda model, task, rng: {}
    # (config, task) → sentences on what these settings amount to, told when a run begins
    remarks: Callable[[Any, Task], Iterable[str]] = lambda config, task: ()
    meanings: tuple[Score, ...] = ()  # of the scores of `evaluate` and `scores`; any other is shown under its key
    curves: tuple[Panel, ...] = ()
    # (rows of the metrics up to now, config of the model) → one sentence on what they show to be wrong, or None
    rules: tuple[Callable[[Sequence[Mapping[str, Any]], Any], str | None], ...] = ()
    page: Callable[[Any, Any, Task, Draw], Page] = field(default=lambda model, metadata, task, draw: Page("", ()))

    def __post_init__(self) -> None:
        fields = {f.name for f in dataclasses.fields(self.config)}
        for name in self.decided:
            if name not in fields:
                raise ValueError(f"family {self.name!r}: the data decide {name!r}, which is no field of its config.")
        for name in self.rates:
            if name not in self.settings:
                raise ValueError(f"family {self.name!r}: its learning rate {name!r} is no setting of its config.")
        parameters = inspect.signature(self.sample).parameters
        for option in self.options:
            if option.name not in parameters:
                raise ValueError(f"family {self.name!r}: its option {option.name!r} is no keyword of its sample.")

    def diagnose(self, rows: Sequence[Mapping[str, Any]], config: Any) -> dict[int, str]:
        """What the rules say of a run by these rows of its metrics: number of the rule -> sentence."""
        said = {i: rule(rows, config) for i, rule in enumerate(self.rules)} if rows else {}
        return {i: sentence for i, sentence in said.items() if sentence is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of the config that can be set, with their defaults."""
        return {f.name: f.default for f in dataclasses.fields(self.config) if f.name not in self.decided}
