"""What can be trained: one table of recipes, and the settings that may be changed.

What looks a recipe up takes the table as an argument, so that recipes of one's own, of families of one's own, stand in a
table beside these: `train("toy", "runs/toy", table={**RECIPES, "toy": Recipe(…)})`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from scratchgen import data
from scratchgen.models import flow, gan, gpt, pix2pix, priors, text2image, vae, vqvae
from scratchgen.models.family import Family
from scratchgen.training.folder import TrainingError
from scratchgen.training.media import MEDIA


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the data and the machine."""

    name: str
    what: str
    family: Family
    data: str  # a name or path that `data.load` takes; "": those of the run that it builds on
    model: dict[str, Any] = field(default_factory=dict)  # settings of the family's config; its defaults otherwise
    begun_from: str = ""  # the folder of the run that a family with `builds_on` builds on
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
    advised: dict[str, Any] = field(default_factory=dict, compare=False)  # the settings of `model` before any was changed

    def __post_init__(self) -> None:
        if self.family.makes not in MEDIA:
            raise TrainingError(
                f"family {self.family.name!r}: makes {self.family.makes!r}, and what can be written is {', '.join(MEDIA)}."
            )
        for name in self.model:
            if name not in self.family.settings:
                raise TrainingError(f"recipe {self.name!r}: {name} is no setting of the family {self.family.name!r}.")
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
_FIXED = ("name", "what", "family", "model", "advised")  # fields that no setting can change

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("gan", "generator against discriminator, both perceptrons (Goodfellow et al. 2014)", gan.FAMILY, "digits",
               {"network": "mlp"}, steps=4000, ema=0.995, sample_every=1000),
        Recipe("dcgan", "the same game with convolutions (Radford et al. 2015)", gan.FAMILY, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "lr": 1e-3}, steps=3000, final=0.05, ema=0.995),
        Recipe("lsgan", "least squares (Mao et al. 2017)", gan.FAMILY, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "loss": "least-squares", "lr": 2e-3}, steps=3000, final=0.05,
               ema=0.995),
        Recipe("hinge-gan", "hinge losses, batch norm in both players (Lim & Ye 2017)", gan.FAMILY, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "loss": "hinge", "lr": 2e-3}, steps=3000, final=0.05,
               ema=0.995),
        Recipe("sngan", "hinge losses, spectral normalisation of D (Miyato et al. 2018)", gan.FAMILY, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "loss": "hinge", "spectral_norm": True, "lr": 2e-3,
                "beta1": 0.0, "beta2": 0.9}, steps=3000, final=0.05, ema=0.995),
        Recipe("wgan-gp", "Wasserstein distance, gradient penalty (Gulrajani et al. 2017)", gan.FAMILY, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "loss": "wasserstein", "gradient_penalty": 10.0, "lr": 2e-3,
                "beta1": 0.0, "beta2": 0.9}, steps=3000, final=0.05, ema=0.995),
        Recipe("r3gan", "relativistic pairs, R1 and R2 (Huang et al. 2024)", gan.FAMILY, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "loss": "relativistic", "r1": 1.0, "r2": 1.0, "lr": 2e-3,
                "beta1": 0.0, "beta2": 0.99}, steps=3000, final=0.05, ema=0.995),
        Recipe("cgan", "told the class of each picture (Miyato & Koyama 2018)", gan.CONDITIONAL, "fashion-mnist",
               {"network": "dcgan", "hidden": 64, "latent": 64, "loss": "hinge", "spectral_norm": True, "lr": 2e-3,
                "beta1": 0.0, "beta2": 0.9}, steps=3000, final=0.05, ema=0.995),
        Recipe("toy-gan", "relativistic pairs, R1 and R2, for points of the plane", gan.POINTS, "grid-25",
               {"loss": "relativistic", "r1": 0.01, "r2": 0.01, "hidden": 128, "latent": 2, "dropout": 0.0, "lr": 4e-3,
                "beta1": 0.0, "beta2": 0.99}, steps=12000, batch_size=256, final=0.02, ema=0.99,
               sample_every=2000),
        Recipe("pix2pix", "pictures to pictures, patches judged, and L1 (Isola et al. 2017)", pix2pix.FAMILY, "fashion-edges",
               {"norm": "batch", "dropout": 0.0, "l1": 5.0, "lr": 2e-3}, steps=2500, batch_size=32, final=0.05, ema=0.995),
        Recipe("text2image-gan", "told a caption of each picture (Reed et al. 2016)", text2image.FAMILY, "shapes",
               {}, steps=12000, final=0.05, ema=0.995, sample_every=1000),
        Recipe("vae", "variational autoencoder with perceptrons (Kingma & Welling 2013)", vae.FAMILY, "digits",
               {"network": "mlp", "hidden": 256, "latent": 8}, steps=4000, final=0.1, sample_every=1000),
        Recipe("vae-conv", "variational autoencoder with convolutions", vae.FAMILY, "fashion-mnist",
               {"network": "conv", "hidden": 32, "latent": 20}, steps=3000, final=0.1),
        Recipe("beta-vae", "the KL counts four times (Higgins et al. 2017)", vae.FAMILY, "fashion-mnist",
               {"network": "conv", "hidden": 32, "latent": 20, "beta": 4.0, "beta_warmup": 0.2}, steps=3000, final=0.1),
        Recipe("cvae", "told the class of each picture (Kingma et al. 2014)", vae.CONDITIONAL, "fashion-mnist",
               {"network": "conv", "hidden": 32, "latent": 10, "beta": 3.0}, steps=3000, final=0.1),
        Recipe("iwae", "importance-weighted bound of five samples (Burda et al. 2016)", vae.FAMILY, "fashion-mnist",
               {"network": "mlp", "hidden": 200, "latent": 50, "layers": 2, "activation": "tanh", "pixels": "binary",
                "samples": 5}, steps=6000, batch_size=100, final=0.1, sample_every=1000),
        Recipe("vqvae", "codes that are symbols (van den Oord et al. 2017)", vqvae.FAMILY, "fashion-mnist", {}, steps=3000,
               batch_size=128, final=0.05),
        Recipe("fsq", "the same without a codebook (Mentzer et al. 2023)", vqvae.FAMILY, "fashion-mnist", {"quantizer": "fsq"},
               steps=3000, batch_size=128, final=0.05),
        Recipe("prior", "on a finished vae, vqvae or fsq: which codes are those of pictures (--from RUN)", priors.FAMILY, "",
               steps=2000, final=0.02, warmup=50, ema=0.995),
        Recipe("flow", "flow matching, told the class (Lipman et al. 2023)", flow.FAMILY, "fashion-mnist",
               {"guidance": 2.0}, steps=4000, final=0.02, ema=0.995, warmup=100),
        Recipe("toy-flow", "flow matching for points of the plane", flow.POINTS, "grid-25",
               {"hidden": 256, "times": "uniform", "lr": 3e-3}, steps=10000, batch_size=512, final=0.02, ema=0.998,
               sample_every=2000),
        Recipe("gpt", "decoder-only transformer on characters (Radford et al. 2019)", gpt.FAMILY, "python-docs",
               {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}, steps=2000, batch_size=16, warmup=100,
               final=0.1),
    )
}  # fmt: skip


def recipe(name: str, table: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """The recipe of that name, with every setting of its model filled in. Raises TrainingError where there is none."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        guess = f" (did you mean {near[0]!r}?)" if near else ""
        raise TrainingError(f"no recipe is called {name!r}{guess}; there are {', '.join(table)}.")
    found = table[name]
    model = {**found.family.settings, **found.model}
    return dataclasses.replace(found, model=model, advised=model)


def settings(recipe: Recipe) -> dict[str, Any]:
    """Name -> value of all that `adjust` can change: the fields of the recipe, then those of its model."""
    return {**_own(recipe), **recipe.model}


def _own(recipe: Recipe) -> dict[str, Any]:
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in _FIXED}


def adjust(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed; a value may be a text, which is read as the type that its field has.

    Raises TrainingError: no such setting, or a value of the wrong type or range.
    """
    family = recipe.family
    types = {**get_type_hints(family.config), **get_type_hints(Recipe)}
    known, own, model = settings(recipe), {}, dict(recipe.model)
    for name, value in changes.items():
        if name in family.decided:
            raise TrainingError(f"{name}: the data decide it, so it cannot be set.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f" (did you mean {near[0]!r}?)" if near else ""
            raise TrainingError(f"the recipe {recipe.name!r} has no setting {name!r}{guess}; it has {', '.join(known)}.")
        if value == known[name] == "":  # a text that nobody has set
            continue
        value = _read(name, value, types[name], least=1 if name in recipe.model else 0)
        (model if name in recipe.model else own)[name] = value
    for place, name in ((own, "data"), (own, "begun_from"), (model, "tokenizer")):
        if name in place:
            place[name] = _absolute(place[name])
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


def _absolute(name_or_path: str) -> str:
    """A path made absolute, so that a run can be continued from another folder; a name stays a name."""
    path = Path(os.path.expanduser(name_or_path))
    return str(path.resolve()) if name_or_path not in {s.name for s in data.catalogue()} and path.exists() else name_or_path


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values: its name and every setting."""
    return {"name": recipe.name, "family": recipe.family.name, **_own(recipe), "model": dict(recipe.model)}


def from_json(state: Any, table: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """The recipe that `to_json` turned into JSON values. Raises TrainingError for anything else."""
    try:
        found = recipe(state["name"], table)
        if state["family"] != found.family.name:
            raise TrainingError(f"the recipe {found.name!r} is of the family {found.family.name!r}, not {state['family']!r}.")
        return adjust(found, {**{k: v for k, v in state.items() if k not in _FIXED}, **state["model"]})
    except (TypeError, KeyError, AttributeError) as error:
        raise TrainingError(f"expected the settings of a recipe, got {str(state)[:80]!r}.") from error


def decided(recipe: Recipe, learned_from: data.Dataset) -> dict[str, Any]:
    """The settings of the model that its data decide."""
    return {name: decide(learned_from) for name, decide in recipe.family.decided.items()}


def build(recipe: Recipe, decided: Mapping[str, Any]) -> Any:
    """The recipe's model, freshly initialised; `decided` are the settings that its data decide.

    Raises TrainingError where the model refuses its settings.
    """
    try:
        return recipe.family.model(recipe.family.config(**recipe.model, **decided))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"recipe {recipe.name!r}: {str(error).rstrip('.')}.") from error


def averaged(recipe: Recipe, model: Any) -> Any:
    """The part of a model whose weights are averaged. Raises TrainingError where the model has no such part."""
    try:
        return model.get_submodule(recipe.family.averaged)
    except AttributeError:
        raise TrainingError(
            f"family {recipe.family.name!r}: averages {recipe.family.averaged!r}, which is no part of its model."
        ) from None
