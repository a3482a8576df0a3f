r"""What becomes of a gradient on its way back: who may write into its memory, who is shown it, who keeps it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchgen.hooks import Hooks, RemovableHandle, checked
from scratchgen.tensors import SEALED, Tensor, arrival, constant, method, wrap

getrefcount = getattr(sys, "getrefcount", lambda thing: 0)  # other interpreters than CPython do not count

_ndarray = np.ndarray

# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


class GradientMemory:
    """Who may write into the memory of a gradient: the sweep, where nobody else can ever read that memory.

    A sweep adds up the gradients that arrive at a node, and leaves the sum in `.grad`. Both could use the memory of the
    first arrival and save a copy. But this memory may be somebody else's too: the caller's cotangent, an array that an op
    saved or returned twice, the base of a view. CPython counts the references to each object, so the sweep compares counts.
    `__init__` makes a gradient, puts it into a list, and counts the references to its tensor, to its array, and to the
    array that this views. A gradient whose counts are the same is *owned* by the list that holds it. Every other gradient is
    *borrowed*: its memory is only read, sums go to new memory, and what leaves the sweep is a copy. Where counts mean
    nothing (other interpreters, threads without the global lock) all gradients are borrowed: the same bits.
    """

    def __init__(self, counted: bool) -> None:
        self.new = self.new_view = ()  # the references to an owned gradient, and to an owned view; (): no gradient is owned
        self.alone = -1  # the references to a node that only a local variable holds; -1: there may always be others
        if counted:
            self.new = self._references([constant(np.ones(2))], 0)
            self.new_view = self._references([constant(np.ones(2)[:])], 0)
            node = object()
            self.alone = getrefcount(node)

    def add(self, held: list[Tensor | None], i: int, g: Tensor) -> None:
        """held[i] ← held[i] + g, written over held[i] where that is owned"""
        if not self.is_owned(held, i):
            held[i] = constant(held[i]._data + g._data)
            return
        array = held[i]._data
        if type(array) is _ndarray:
            if array.base is not None:
                array.base.setflags(True)
            array.setflags(True)
            array += g._data
            array.setflags(False)
        else:  # arrays on a device are never read-only
            array += g._data

    def owned_or_copied(self, held: list[Tensor | None], i: int) -> Tensor:
        """held[i] if it is owned, else a copy of it: what leaves the sweep, for `.grad` or as a result of `grad`"""
        return held[i] if self.is_owned(held, i) else constant(held[i]._data.copy())

    def is_owned(self, held: list[Tensor | None], i: int) -> bool:
        """Does nothing but held[i] refer to the memory of this gradient? Of an array that it views it must be the whole."""
        references = self._references(held, i)
        if references == self.new:
            return True
        if references != self.new_view:
            return False
        array = held[i]._data
        base = array.base
        return type(base) is _ndarray and base.base is None and base.size == array.size

    def _references(self, held: list[Tensor | None], i: int) -> tuple[int, ...]:
        """The numbers of references to held[i], to its array, and to the array that this views (0: it views none).

        List and index are passed, not the gradient: an argument is a reference too.
        """
        tensor = held[i]
        array = tensor._data
        base = array.base
        return getrefcount(tensor), getrefcount(array), 0 if base is None else getrefcount(base)


def counts_references() -> bool:
    """Can reference counts be trusted? Only in CPython, and only while its global lock keeps other threads from counting."""
    return sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


memory = GradientMemory(counts_references())


# ---------------------------------------------------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------------------------------------------------


@method
def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Have hook(x̄) called whenever a sweep has completed the gradient x̄ of this tensor; returns a handle that removes it.

    A tensor that the hook returns replaces x̄: in `.grad`, in the result of `grad`, and in the rest of the sweep. x̄ itself
    cannot be written to. Hooks are called in the order of their registration.
    Raises RuntimeError where the tensor requires no gradient.
    """
    checked("register_hook", hook)
    return RemovableHandle(hooked(self, "register_hook").setdefault(self.edge[1], Hooks()), hook)


def hooked(tensor: Tensor, name: str) -> dict[int, Hooks]:
    """The hooks of the node that made this tensor."""
    if tensor.edge is None:
        raise RuntimeError(f"{name}: expected a tensor that requires a gradient, got one of shape {tensor.shape} without")
    node = tensor.edge[0]
    if node.hooks is None:
        node.hooks = {}
    return node.hooks


@method
def retain_grad(self: Tensor) -> None:
    """Have sweeps leave the gradient in `.grad` here too, though this tensor is the result of an op; after all hooks.

    Raises RuntimeError where the tensor requires no gradient.
    """
    hooked(self, "retain_grad")
    if not self.is_leaf:
        node, i = self.edge[:2]
        node.retaining = {**(node.retaining or {}), i: weakref.ref(self)}


def add_grad(tensor: Tensor, g: Tensor) -> None:
    """grad ← grad + g, where sweeps of several threads may arrive at once."""
    with arrival:
        tensor.grad = g if tensor.grad is None else tensor.grad + g


def call_hooks(node: Any, dys: list[Tensor | None], create_graph: bool) -> None:
    """Show the complete gradients of a node's outputs to the hooks; a gradient that a hook returns replaces the one it saw."""
    for i, hooks in node.hooks.items():
        for hook in list(hooks.values()) if dys[i] is not None else ():
            g = dys[i]
            if not create_graph:  # the memory may be somebody else's too, so hooks cannot write to it
                g = wrap(g._data, None)
                g._stamp = SEALED
            g = hook(g)
            if g is None:
                continue
            if not isinstance(g, Tensor) or g.shape != dys[i].shape or g.dtype != dys[i].dtype:
                given = f"{g.shape} and {g.dtype}" if isinstance(g, Tensor) else type(g).__name__
                raise ValueError(
                    f"register_hook: expected the hook to return None or a gradient of {dys[i].shape} and {dys[i].dtype}, "
                    f"got {given}"
                )
            dys[i] = g if create_graph else constant(g._data)
    for i, tensor in (node.retaining or {}).items():
        t = tensor()
        if t is not None and dys[i] is not None:
            add_grad(t, dys[i] if create_graph else constant(dys[i]._data.copy()))
