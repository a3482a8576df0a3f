r"""A row of the catalog: one differentiable name, and how to draw arguments at which its derivatives exist.

    row("logsumexp", case(real(2, 3), 1), case(real(2, 3), (0, 1), keepdim=True), analytic=True)
    row("nn.Linear", of(3, 2)(real(4, 3)), of(3, 2, bias=False)(real(3)))

A case is a call. Of its arguments some are draws (`real(2, 3)`: a 2 × 3 array of normal numbers), wherever they stand:
in a list, a tuple, under a keyword; all others are taken as they are. `of(…)` holds the arguments of a layer's
constructor. Draws keep clear of kinks and ties by more than `MARGIN`, so that differences never step over one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchgen import calculus, functional, models, nn, ops, random
from scratchgen.tensors import Tensor

Array = np.ndarray
Generator = np.random.Generator
MARGIN = 3e-3


# ---------------------------------------------------------------------------------------------------------------------
# Draws
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """An argument yet to be drawn. A floating one is differentiated."""

    text: str
    sample: Callable[[Generator], Array]


def _draw(kind: str, shape: tuple[int, ...], sample: Callable[[Generator], Any]) -> Draw:
    return Draw(f"{kind}{shape}", lambda rng: np.asarray(sample(rng)).reshape(shape))


def real(*shape: int) -> Draw:
    """Normal numbers."""
    return _draw("real", shape, lambda rng: rng.standard_normal(shape))


def positive(*shape: int) -> Draw:
    """From 0.3 to 2."""
    return _draw("positive", shape, lambda rng: rng.uniform(0.3, 2.0, shape))


def unit(*shape: int) -> Draw:
    """Probabilities, from 0.1 to 0.9."""
    return _draw("unit", shape, lambda rng: rng.uniform(0.1, 0.9, shape))


def simplex(*shape: int, dim: int = -1) -> Draw:
    """Probabilities that add up to 1 along `dim`."""

    def sample(rng: Generator) -> Array:
        p = rng.uniform(0.2, 1.0, shape)
        return p / p.sum(dim, keepdims=True)

    return _draw("simplex", shape, sample)


def away(*shape: int, kinks: tuple[float, ...] = (0.0,)) -> Draw:
    """Normal numbers on either side of the kinks, at least 0.05 from each (kinks lie further apart than 0.2)."""

    def sample(rng: Generator) -> Array:
        x = rng.standard_normal(shape)
        for kink in kinks:
            gap = x - kink
            x = np.where(np.abs(gap) < 0.05, kink + np.where(gap < 0, -0.1, 0.1) + gap, x)
        return x

    return _draw("away", shape, sample)


def apart(*shape: int, phase: int = 0) -> Draw:
    """Numbers no two of which are closer than 0.05, nor to 0, nor to those of the other phases; phases are 0, 1, 2."""

    def sample(rng: Generator) -> Array:
        n = int(np.prod(shape))
        rungs = rng.permutation(np.arange(n) - n // 2)
        return 0.3 * rungs + 0.1 * phase + 0.05 + rng.uniform(-0.02, 0.02, n) * (n > 0)

    return _draw("apart", shape, sample)


def loud(*shape: int) -> Draw:
    """Numbers of either sign, no two of which are equally large or closer than 0.1 to 0."""

    def sample(rng: Generator) -> Array:
        n = int(np.prod(shape))
        return (0.2 * rng.permutation(n) + rng.uniform(0.2, 0.25, n)) * rng.choice([-1.0, 1.0], n)

    return _draw("loud", shape, sample)


def whole(high: int, *shape: int) -> Draw:
    """Whole numbers from 0 to high − 1, with repeats where more are drawn than that: an index, or classes."""
    return _draw(f"whole[0…{high - 1}]", shape, lambda rng: rng.integers(0, high, shape))


def mask(*shape: int) -> Draw:
    """Booleans, of both kinds where there are two or more."""
    return _draw("mask", shape, lambda rng: rng.permutation(np.arange(int(np.prod(shape))) % 2 == 0))


def fixed(values: Any) -> Draw:
    """These very numbers."""
    return Draw(f"fixed{np.shape(values)}", lambda rng: np.array(values))


@dataclass(frozen=True)
class Fresh:
    """An argument that is made anew for every call, because the call changes it."""

    make: Callable[[], Any]


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------


def _draws(tree: Any) -> Iterator[Draw]:
    if isinstance(tree, Draw):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _draws(part)


def _filled(tree: Any, xs: Iterator[Any]) -> Any:
    """The tree with its draws replaced by the next of xs."""
    if isinstance(tree, Draw):
        return next(xs)
    if isinstance(tree, Fresh):
        return tree.make()
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(part, xs) for part in tree)
    if isinstance(tree, dict):
        return {name: _filled(part, xs) for name, part in tree.items()}
    return tree


def flat(ys: Any) -> list[Tensor]:
    """The tensors in nested results."""
    if isinstance(ys, Tensor):
        return [ys]
    return [y for part in (ys if isinstance(ys, list | tuple) else ()) for y in flat(part)]


def _shown(value: Any) -> str:
    if isinstance(value, Draw):
        return value.text
    if isinstance(value, list | tuple):
        parts = ", ".join(_shown(v) for v in value)
        return f"[{parts}]" if isinstance(value, list) else f"({parts})"
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    return getattr(value, "__name__", None) or ("…" if isinstance(value, Fresh) else repr(value))


class Bound(nn.Module):
    """A layer as a function of the drawn arguments alone; its parameters stay what they are."""

    def __init__(self, module: nn.Module, via: str, call: Callable[..., list[Tensor]]):
        super().__init__()
        self.module, self.via, self.call = module, via, call

    def forward(self, *xs: Tensor) -> list[Tensor]:
        return self.call(getattr(self.module, self.via), *xs)


@dataclass(frozen=True)
class Case:
    """One call: arguments, some drawn; for a layer, the arguments of its constructor too."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    settings: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    training: bool = True
    via: str = "forward"  # the method of the layer that is called

    def __str__(self) -> str:
        def listed(args: tuple[Any, ...], options: dict[str, Any]) -> str:
            return ", ".join([_shown(a) for a in args] + [f"{k}={_shown(v)}" for k, v in options.items()])

        made = "" if self.settings is None else f"({listed(*self.settings)})" + (".eval()" if not self.training else "")
        return f"{made}({listed(self.args, self.options)})"

    def drawn(self, rng: Generator) -> list[Array]:
        """The arguments that are drawn."""
        return [draw.sample(rng) for draw in _draws((self.args, self.options))]

    def call(self, function: Callable[..., Any], *xs: Any, seeded: bool = False) -> Any:
        """function(…) with xs instead of the draws; `seeded`: with the library's generator started at 0."""
        rest = iter(xs)
        args, options = _filled(self.args, rest), _filled(self.options, rest)
        if not seeded:
            return function(*args, **options)
        state = random.get_rng_state()
        random.manual_seed(0)
        try:
            return function(*args, **options)
        finally:
            random.set_rng_state(state)

    def bound(self, target: Any, rng: Generator, seeded: bool = False) -> Any:
        """The function of the drawn arguments alone: tensors in, a list of tensors out. A layer stays a Module, in float64."""

        def call(function: Callable[..., Any], *xs: Any) -> list[Tensor]:
            return flat(self.call(function, *xs, seeded=seeded))

        if self.settings is None:
            return lambda *xs: call(target, *xs)
        args, options = copy.deepcopy(self.settings)
        module = target(*args, **options).double().train(self.training)
        for p in module.parameters():  # ones and zeros would hide a missing factor or term
            p.data = 0.6 * rng.standard_normal(p.shape) + (0.8 if p.ndim == 1 else 0.0)
        for b in module.buffers():
            if b.dtype.kind == "f":
                b.copy_(rng.uniform(0.5, 1.5, b.shape))
        return Bound(module, self.via, call)


def case(*args: Any, **options: Any) -> Case:
    """The call f(*args, **options) of a function."""
    return Case(args, options)


def of(*settings: Any, training: bool = True, via: str = "forward", **named: Any) -> Callable[..., Case]:
    """of(*settings)(*args): the call of a layer made with these settings."""
    return lambda *args, **options: Case(args, options, (settings, named), training, via)


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What is known of one public name."""

    name: str
    cases: tuple[Case, ...]
    target: Any = field(repr=False)
    order: int = 2  # the highest derivative that differences can confirm
    why: str = ""  # the reason, where `order` is below 2
    analytic: bool = False  # does the formula also hold for complex numbers?
    seeded: bool = False  # does it draw from the library's generator?
    elements: int = 24  # of each input and parameter, compared one by one

    def drawn(self, seed: int = 0) -> Iterator[tuple[Case, Any, list[Array]]]:
        """Each case, its function of the drawn arguments alone, and these. The same seed gives the same."""
        for i, one in enumerate(self.cases):
            rng = np.random.default_rng([seed, i, *self.name.encode()])
            yield one, one.bound(self.target, rng, self.seeded), one.drawn(rng)


def row(name: str, *cases: Case, target: Any = None, order: int = 2, why: str = "", **special: Any) -> Row:
    """A row for what is called `name`: "softmax" in `functional` or `ops`, "nn.Linear", "Tensor.view", "calculus.jvp"."""
    if not cases:
        raise ValueError(f"row {name}: expected at least one case")
    if order < 2 and not why:
        raise ValueError(f"row {name}: expected the reason why no more than order {order} can be checked")
    return Row(name, cases, _public(name) if target is None else target, order, why, **special)


def _public(name: str) -> Any:
    module, _, rest = name.rpartition(".")
    if module == "Tensor":
        return lambda x, *args, **options: getattr(x, rest)(*args, **options)
    if module:
        return getattr({"nn": nn, "nn.utils": nn.utils, "calculus": calculus, "models": models}[module], rest)
    return getattr(ops, rest) if rest in ops.__all__ else getattr(functional, rest)
