"""What can be trained: one table of recipes, and the settings that may be changed."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from scratchgen import data
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig
from scratchgen.training.folder import TrainingError


class Family(NamedTuple):
    """One file of `scratchgen.models`."""

    model: type
    config: type
    kind: type  # of data: Images or Text
    given: str  # the field of the config that the data decide


FAMILIES = {
    "gan": Family(GAN, GANConfig, data.Images, "shape"),
    "vae": Family(VAE, VAEConfig, data.Images, "shape"),
    "gpt": Family(GPT, GPTConfig, data.Text, "vocab_size"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the data and the machine."""

    name: str
    what: str
    family: str  # a key of FAMILIES
    data: str  # a name or path that `data.load` takes
    model: dict[str, Any] = field(default_factory=dict)  # settings of the family's config; its defaults otherwise
    seed: int = 0
    steps: int = 2000
    batch_size: int = 64
    warmup: int = 0  # steps over which the learning rate rises from 0
    final: float = 1.0  # share of the learning rate at the last step, reached along a cosine
    ema: float = 0.0  # decay of the average of the weights that samples are drawn from; 0: no average
    log_every: int = 10  # steps between lines of metrics.jsonl
    sample_every: int = 500  # steps between samples, and scores on held-out data
    save_every: int = 250  # steps between checkpoints
    eval_batches: int = 8  # held-out batches in these scores
    size: int = 0  # side to which a folder of images is resized; 0: as they are

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise TrainingError(f"{name}: expected a whole number of at least {least}, got {getattr(self, name)}.")
        for name, low, high, says in (("final", 0, 1, "from 0 to 1"), ("ema", 0, 1 - 1e-12, "of at least 0 and below 1")):
            if not low <= getattr(self, name) <= high:
                raise TrainingError(f"{name}: expected a number {says}, got {getattr(self, name)}.")


_LEAST = {
    "seed": 0,
    "steps": 1,
    "batch_size": 1,
    "warmup": 0,
    "log_every": 1,
    "sample_every": 1,
    "save_every": 1,
    "eval_batches": 1,
    "size": 0,
}
_FIXED = ("name", "what", "family", "model")  # what makes a recipe this recipe

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("gan", "generator against discriminator, both perceptrons (Goodfellow et al. 2014)", "gan", "digits",
               {"network": "mlp"}, steps=4000, ema=0.995, sample_every=1000),
        Recipe("dcgan", "the same game with convolutions (Radford et al. 2015)", "gan", "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64}, steps=4000, ema=0.995),
        Recipe("vae", "variational autoencoder with perceptrons (Kingma & Welling 2013)", "vae", "digits",
               {"network": "mlp", "hidden": 256, "latent": 8}, steps=4000, final=0.1, sample_every=1000),
        Recipe("vae-conv", "variational autoencoder with convolutions", "vae", "fashion-mnist",
               {"network": "conv", "hidden": 32, "latent": 20}, steps=3000, final=0.1),
        Recipe("gpt", "decoder-only transformer on characters (Radford et al. 2019)", "gpt", "python-docs",
               {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}, steps=2000, batch_size=16, warmup=100,
               final=0.1),
    )
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of that name, with every setting of its model filled in. Raises TrainingError where there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        guess = f" (did you mean {near[0]!r}?)" if near else ""
        raise TrainingError(f"no recipe is called {name!r}{guess}; there are {', '.join(RECIPES)}.")
    found = RECIPES[name]
    family = FAMILIES[found.family]
    defaults = {f.name: f.default for f in dataclasses.fields(family.config) if f.name != family.given}
    return dataclasses.replace(found, model={**defaults, **found.model})


def settings(recipe: Recipe) -> dict[str, Any]:
    """Name -> value of all that `adjust` can change: the fields of the recipe, then those of its model."""
    own = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in _FIXED}
    return {**own, **recipe.model}


def adjust(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed; a value may be a text, which is read as the type that its field has.

    Raises TrainingError: no such setting, or a value of the wrong type or range.
    """
    family = FAMILIES[recipe.family]
    types = {**get_type_hints(family.config), **get_type_hints(Recipe)}
    known, own, model = settings(recipe), {}, dict(recipe.model)
    for name, value in changes.items():
        if name == family.given:
            raise TrainingError(f"{name}: the data decide it, so it cannot be set.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f" (did you mean {near[0]!r}?)" if near else ""
            raise TrainingError(f"the recipe {recipe.name!r} has no setting {name!r}{guess}; it has {', '.join(known)}.")
        value = _read(name, value, types[name], least=1 if name in recipe.model else 0)
        (model if name in recipe.model else own)[name] = value
    if "data" in own:
        own["data"] = _place(own["data"])
    return dataclasses.replace(recipe, model=model, **own)


_KINDS = {
    int: "a whole number of at least {least}",
    float: "a finite number of at least 0",
    bool: "true or false",
    str: "a text",
}


def _read(name: str, value: Any, kind: type, least: int) -> Any:
    """`value`, or what it spells where it is a text, as a value of type `kind`; whole numbers are at least `least`."""
    optional = type(None) in get_args(kind)
    if optional:
        if value is None or value == "none":
            return None
        kind = next(k for k in get_args(kind) if k is not type(None))
    read: Any = None
    try:
        if kind is bool:
            read = {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        elif kind is str:
            read = value if isinstance(value, str) and value else None
        elif not isinstance(value, bool):
            read = kind(value)
            if not isinstance(value, str) and read != value or not math.isfinite(read) or read < (least if kind is int else 0):
                read = None
    except (ValueError, TypeError, KeyError, OverflowError):
        pass
    if read is None:
        raise TrainingError(
            f"{name}: expected {_KINDS[kind].format(least=least)}{' or none' if optional else ''}, got {value!r}."
        )
    return read


def _place(name_or_path: str) -> str:
    """A path made absolute, so that a run can be continued from another folder; a name stays a name."""
    path = Path(os.path.expanduser(name_or_path))
    return str(path.resolve()) if name_or_path not in {s.name for s in data.catalogue()} and path.exists() else name_or_path


def from_json(state: Any) -> Recipe:
    """The recipe that `dataclasses.asdict` turned into JSON. Raises TrainingError for anything else."""
    try:
        found = recipe(state["name"])
        return adjust(found, {**{k: v for k, v in state.items() if k not in _FIXED}, **state["model"]})
    except (TypeError, KeyError, AttributeError) as error:
        raise TrainingError(f"expected the settings of a recipe, got {str(state)[:80]!r}.") from error


def build(recipe: Recipe, given: Any) -> Any:
    """The recipe's model, freshly initialised; `given` is the setting that its data decide.

    Raises TrainingError where the model refuses its settings.
    """
    family = FAMILIES[recipe.family]
    try:
        return family.model(family.config(**{**recipe.model, family.given: given}))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"recipe {recipe.name!r}: {str(error).rstrip('.')}.") from error
