"""Hooks: functions that are called at some event, in the order of their registration, until the handle of each is removed."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

Hooks = OrderedDict[int, Any]
_numbers = itertools.count()


class RemovableHandle:
    """The result of `register_…`: `remove()`, or the end of a `with` block, takes the hook away again."""

    def __init__(self, hooks: Hooks, hook: Any, *, first: bool = False):
        self.hooks, self.id = hooks, next(_numbers)
        hooks[self.id] = hook
        if first:
            hooks.move_to_end(self.id, last=False)

    def remove(self) -> None:
        """Take the hook away, if it is still there."""
        self.hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def checked(name: str, hook: Any) -> Callable[..., Any]:
    """`hook`, if it can be called. Raises TypeError, in the name of `name`, if not."""
    if not callable(hook):
        raise TypeError(f"{name}: expected a function, got {type(hook).__name__}")
    return hook
