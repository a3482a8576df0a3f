"""Are ops recorded? `no_grad` and its kin switch it, for the thread of Python that they run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scratchgen.switch import Switch
from scratchgen.tensors import recording


class set_grad_enabled(Switch):
    """From the call on ops are recorded, or not; with `with`, or as a decorator, only inside."""

    def __init__(self, mode: bool):
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"set_grad_enabled: expected True or False, got {mode!r}")
        self.mode, self.before = bool(mode), recording.on
        recording.on = self.mode

    def __enter__(self) -> None:
        recording.on = self.mode

    def __exit__(self, *error: object) -> None:
        recording.on = self.before

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        recording.on = self.before
        return super().__call__(function)

    def own(self) -> set_grad_enabled:
        return set_grad_enabled(self.mode)


class _Fixed(Switch):
    """A switch that has one position, and decorates with parentheses and without."""

    records: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self, function: None = None) -> None:
        self.before: list[bool] = []  # one for each `with` that is open

    def __enter__(self) -> None:
        self.before.append(recording.on)
        recording.on = self.records

    def __exit__(self, *error: object) -> None:
        recording.on = self.before.pop()

    def own(self) -> _Fixed:
        return type(self)()


class no_grad(_Fixed):
    """Ops inside the `with` (or the decorated function) are not recorded."""

    records = False


class enable_grad(_Fixed):
    """Ops inside the `with` (or the decorated function) are recorded, also within `no_grad`."""

    records = True


class inference_mode(Switch):
    """Ops inside the `with` (or the decorated function) are not recorded; with `mode` False they are.

    As `no_grad`: tensors made inside are ordinary ones here, there is nothing that they could be spared.
    """

    def __new__(cls, mode: Any = True) -> Any:
        return cls()(mode) if callable(mode) else super().__new__(cls)

    def __init__(self, mode: bool = True):
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"inference_mode: expected True or False, got {mode!r}")
        self.records = not mode
        self.before: list[bool] = []  # one for each `with` that is open

    __enter__, __exit__ = _Fixed.__enter__, _Fixed.__exit__

    def own(self) -> inference_mode:
        return inference_mode(not self.records)


def is_grad_enabled() -> bool:
    """Are ops being recorded?"""
    return recording.on
