"""Notes of the state that a function changes, so that the function can run again as it ran the first time.

Sources of random numbers, and tensors that are changed in place (the running mean of batch norm), call `changing` before
they change. A `Note` that is open then keeps the state of each before its first change. `Note.again` restores these states
for a second run, and the present ones afterwards: the second run draws and computes the same, and leaves no trace.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any


class _Thread(threading.local):
    notes: tuple[Note, ...] = ()  # that are being taken in this thread


_thread = _Thread()


class Note:
    """The states, before their first change, of all that changes inside the `with`."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Callable[[], Any], Any, Callable, Callable]] = {}

    def __enter__(self) -> Note:
        _thread.notes = (*_thread.notes, self)
        return self

    def __exit__(self, *error: object) -> None:
        _thread.notes = _thread.notes[:-1]

    def keep(self, thing: Any, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> None:
        """Keep the state of `thing`, unless its note is taken already. (A thing that only the function holds ends with it.)"""
        found = self.kept.get(id(thing))
        if found is None or found[0]() is not thing:
            self.kept[id(thing)] = _reference(thing), read(thing), read, write

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside the `with` all noted things are in their states of then, afterwards in those of now."""
        alive = [(thing(), then, read, write) for thing, then, read, write in self.kept.values()]
        now = [(thing, read(thing), write) for thing, _, read, write in alive if thing is not None]
        others, _thread.notes = _thread.notes, ()  # all changes are undone in the end, so open notes need not know of them
        try:
            for thing, then, _, write in alive:
                if thing is not None:
                    write(thing, then)
            yield
        finally:
            for thing, value, write in now:
                write(thing, value)
            _thread.notes = others


def changing(thing: Any, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> None:
    """To be called before `thing` changes. `read(thing)` returns its state, `write(thing, state)` restores it."""
    for note in _thread.notes:
        note.keep(thing, read, write)


def _reference(thing: Any) -> Callable[[], Any]:
    """A weak reference, or a strong one to NumPy's sources of random numbers, which do not allow weak ones."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing
