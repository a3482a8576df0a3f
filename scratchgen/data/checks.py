"""What is said of data that are not as expected: one error, in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class DataError(ValueError):
    """A data set is missing or is not what was expected; the message is one sentence that says which and how."""


def kind(value: object) -> str:
    """The type of a value as an error tells it: of an array, its dtype and shape."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def require_natural(name: str, value: object, least: int) -> None:
    """Raises DataError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise DataError(f"{name}: expected a whole number of at least {least}, got {value!r}.")


def unreadable(path: Path, error: OSError) -> DataError:
    """The error of a file or folder that the system does not let us read."""
    return DataError(f"{path}: cannot be read ({error.strerror}).")
