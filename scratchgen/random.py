"""The library's one source of randomness: a seeded NumPy generator.

Whatever draws (initialisers, dropout, reparameterisation) takes `generator=` or, without one, uses this one.
The same seed, threads and machine give the same bits.
"""

from __future__ import annotations

import numpy as np

_generator = np.random.default_rng(0)


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the library's generator from `seed`, and return it."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"manual_seed: expected a whole number of at least 0, got {seed!r}")
    _generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return _generator


def generator(given: np.random.Generator | None = None) -> np.random.Generator:
    """`given`, or the library's own generator when none is given."""
    if given is None:
        return _generator
    if not isinstance(given, np.random.Generator):
        raise TypeError(f"generator: expected a numpy.random.Generator, got {type(given).__name__}")
    return given


def get_rng_state() -> dict:
    """The state of the library's generator, as plain numbers: what a checkpoint carries."""
    return _generator.bit_generator.state


def set_rng_state(state: dict) -> None:
    """Continue from a state that `get_rng_state` returned."""
    try:
        _generator.bit_generator.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"set_rng_state: expected a state from get_rng_state, got {state!r}") from error
