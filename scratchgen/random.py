"""The library's one source of randomness: a seeded NumPy generator.

Whatever draws (initialisers, dropout, reparameterisation) takes `generator=` or, without one, uses this one.
The same seed, threads and machine give the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from scratchgen import replay

_generator = np.random.default_rng(0)


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the library's generator from `seed`, and return it."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"manual_seed: expected a whole number of at least 0, got {seed!r}")
    note_use(_generator)
    _generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return _generator


def generator(rng: np.random.Generator | None = None) -> np.random.Generator:
    """The generator to draw from: `rng`, or else the library's own. A checkpoint that is being recorded takes note of it."""
    if rng is None:
        rng = _generator
    elif not isinstance(rng, np.random.Generator):
        raise TypeError(f"generator: expected a numpy.random.Generator, got {type(rng).__name__}")
    note_use(rng)
    return rng


def note_use(rng: np.random.Generator) -> None:
    """To be called before numbers are drawn from `rng`."""
    replay.changing(rng.bit_generator, _state, _restore)


def _state(source: np.random.BitGenerator) -> dict:
    return source.state


def _restore(source: np.random.BitGenerator, state: dict) -> None:
    source.state = state


def get_rng_state() -> dict:
    """The state of the library's generator, as plain numbers, for a checkpoint."""
    return _generator.bit_generator.state


def set_rng_state(state: dict) -> None:
    """Continue from a state that `get_rng_state` returned."""
    note_use(_generator)
    try:
        _generator.bit_generator.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"set_rng_state: expected a state from get_rng_state, got {state!r}") from error


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """After the `with`, the library's generator is where it was before, whatever was drawn or seeded inside."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
