"""Notes of what a function draws from and writes to, so that it can be run again as it ran the first time.

A source of random numbers and a tensor that is written to in place (the running mean of batch norm) say here that they are
about to change. While a `Note` is taken it keeps what each of them was before its first change. `Note.again` brings that
back for a second run, and afterwards what is there now: the second run draws and computes the same, and leaves no trace.
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
    """What changes inside the `with`, as it was before."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Callable[[], Any], Any, Callable, Callable]] = {}

    def __enter__(self) -> Note:
        _thread.notes = (*_thread.notes, self)
        return self

    def __exit__(self, *error: object) -> None:
        _thread.notes = _thread.notes[:-1]

    def keep(self, thing: Any, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> None:
        """Read what `thing` is now, unless that is done; what only the function itself holds goes when the function ends."""
        found = self.kept.get(id(thing))
        if found is None or found[0]() is not thing:
            self.kept[id(thing)] = _reference(thing), read(thing), read, write

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside the `with` all that was noted is as it was then, afterwards as it is now."""
        alive = [(thing(), then, read, write) for thing, then, read, write in self.kept.values()]
        now = [(thing, read(thing), write) for thing, _, read, write in alive if thing is not None]
        others, _thread.notes = _thread.notes, ()  # the changes are undone: for those who take notes, nothing happens
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
    """To be called before `thing` changes: `read(thing)` is what it is, and `write(thing, value)` makes it that again."""
    for note in _thread.notes:
        note.keep(thing, read, write)


def _reference(thing: Any) -> Callable[[], Any]:
    """A weak reference where there can be one: NumPy's sources of random numbers have none."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing
