r"""What becomes of a gradient on its way: who may write into its memory, who is shown it, where it is left."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from sys import getrefcount
from typing import Any

import numpy as np

from scratchgen.hooks import Hooks, RemovableHandle, checked
from scratchgen.tensors import SEALED, Tensor, arrival, constant, freeze, method, wrap

_ndarray = np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def add_to_frozen(array: Any, other: Any) -> None:
    if type(array) is _ndarray:
        if array.base is not None:
            array.base.setflags(True)
        array.setflags(True)
    array += other
    freeze(array)


def _references(held: list[Tensor | None], i: int) -> tuple[int, int, int]:
    """How many refer to a gradient in a list, to its array, and to the array that this views."""
    tensor = held[i]
    array = tensor._data
    base = array.base
    return getrefcount(tensor), getrefcount(array), 0 if base is None else getrefcount(base)


def is_sole(held: list[Tensor | None], i: int) -> bool:
    """Is nobody but the list concerned if the elements of this gradient change?

    A view refers to the array that it views, and whoever saved a gradient refers to it: then it counts as borrowed. So
    does an expanded one, several of whose elements are one place in memory.
    """
    if _references(held, i) not in _SOLE:
        return False
    base = held[i]._data.base
    return base is None or (type(base) is _ndarray and base.base is None and base.size == held[i]._data.size)


# As the interpreter counts: what lies on its stack may count, or not. An array of its own, a view of one that nobody has.
_SOLE = [_references([wrap(np.ones(2), None)], 0), _references([wrap(np.ones(2)[:], None)], 0)]


# ---------------------------------------------------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------------------------------------------------


@method
def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Have hook(x̄) called whenever a sweep has completed the gradient x̄ of this tensor; returns a handle that removes it.

    What the hook returns, if not None, takes the place of x̄: in `.grad`, in what `grad` returns, and in the sweep on to
    what this tensor was made of. x̄ cannot be written to. Hooks are called in the order of their registration.
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
        node.kept = {**(node.kept or {}), i: weakref.ref(self)}


def add_grad(tensor: Tensor, g: Tensor) -> None:
    """grad ← grad + g, where sweeps of several threads may arrive at once."""
    with arrival:
        tensor.grad = g if tensor.grad is None else tensor.grad + g


def call_hooks(node: Any, dys: list[Tensor | None], create_graph: bool) -> None:
    """Show the gradients of a node's outputs, which are complete, to the hooks; what a hook returns goes on in their place."""
    for i, hooks in node.hooks.items():
        for hook in list(hooks.values()) if dys[i] is not None else ():
            g = dys[i]
            if not create_graph:  # others may hold its memory too: what a hook is shown cannot be written to
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
    for i, tensor in (node.kept or {}).items():
        t = tensor()
        if t is not None and dys[i] is not None:
            add_grad(t, dys[i] if create_graph else constant(dys[i]._data.copy()))
