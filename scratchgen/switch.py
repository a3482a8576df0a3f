"""Switches: settings that hold inside a `with` block, or while a decorated function runs.

A generator or a coroutine runs in pieces, between which its caller goes on. Each piece runs with the switch set; between
the pieces the caller finds the setting as it was before.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any


class Switch:
    """The base of the context managers that are decorators too; a subclass sets in `__enter__` and sets back in `__exit__`."""

    def __enter__(self) -> None:
        raise NotImplementedError(f"{type(self).__name__}.__enter__ is missing")

    def __exit__(self, *error: object) -> None:
        raise NotImplementedError(f"{type(self).__name__}.__exit__ is missing")

    def own(self) -> Switch:
        """A switch like this one, for one call alone: calls may be nested, or run in several threads at once."""
        raise NotImplementedError(f"{type(self).__name__}.own is missing")

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, each call of which runs under the switch; generator functions and coroutine functions too.

        Raises TypeError for a class, and for an asynchronous generator.
        """
        if inspect.isclass(function) or inspect.isasyncgenfunction(function) or not callable(function):
            given = f"the class {function.__name__}" if inspect.isclass(function) else repr(function)
            raise TypeError(f"{type(self).__name__}: expected a function to decorate, got {given}")
        if inspect.isgeneratorfunction(function):
            return self._in_pieces(function)
        if inspect.iscoroutinefunction(function):
            return types.coroutine(self._in_pieces(function))

        @functools.wraps(function)
        def whole(*args: Any, **kwargs: Any) -> Any:
            with self.own():
                return function(*args, **kwargs)

        return whole

    def _in_pieces(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def pieces(*args: Any, **kwargs: Any) -> Any:
            inner = function(*args, **kwargs)
            resume, with_what = inner.send, None
            while True:
                try:
                    with self.own():
                        item = resume(with_what)
                except StopIteration as end:
                    return end.value
                try:
                    with_what, resume = (yield item), inner.send
                except GeneratorExit:
                    with self.own():
                        inner.close()
                    raise
                except BaseException as error:
                    with_what, resume = error, inner.throw

        return pieces
