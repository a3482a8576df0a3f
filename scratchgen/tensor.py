r"""Tensors and the chain rule.

An op applied to tensors is a *node*: it knows the nodes its inputs came from and how to turn the gradient of a scalar
loss with respect to its output into the gradients with respect to its inputs,

    y = f(x_1, …, x_n)        x̄_i = (∂f/∂x_i)ᵀ ȳ              x̄ := ∂loss/∂x           (reverse mode)

`Function.backward` computes these products *with tensors*, so they are recorded like any other computation when
asked (`create_graph=True`), and every gradient can be differentiated again, to any order.

The order of the sweep is where recursion goes wrong. In

    b = a + a
    c = b + b

b̄ must be complete (both uses counted) before it is passed on to a. Nodes are numbered as they are made, and a node's
inputs exist before it does. A queue that always gives the node of the largest number therefore gives every node after
all of its consumers. No recursion: a chain of 50,000 nodes is fine.

Arrays are frozen (NumPy's read-only flag) once a tensor holds them, so nothing that was saved for the backward sweep can
change behind its back. Parameters are changed through one door, `Tensor.writing`, which leaves a stamp; a backward
sweep that meets an input stamped later than its use refuses, instead of yielding a wrong gradient.

This file knows the chain rule and no particular op; `ops` gives tensors their arithmetic.
"""

from __future__ import annotations

import contextlib
import itertools
import linecache
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from sys import getrefcount
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen import replay
from scratchgen.hooks import Hooks, RemovableHandle, checked
from scratchgen.switch import Switch

ticks = itertools.count(1)  # numbers nodes and in-place writes on one time line
_PACKAGE = os.path.dirname(__file__) + os.sep


class _Mode(threading.local):
    """What each thread of Python has for itself."""

    grad = True  # are ops recorded?
    wanted: set[Function] | None = None  # the nodes that the thread's sweep under way has to visit; None for all
    sweeping = False  # anomaly detection blames a gradient's op, not what the gradient is made of


class _Sweeping:
    """The mode of a thread while one of its sweeps runs; the mode that was, afterwards: sweeps can be nested."""

    __slots__ = ("after", "before")

    def __init__(self, *mode: Any) -> None:
        self.after = mode

    def __enter__(self) -> None:
        self.before = _mode.grad, _mode.wanted, _mode.sweeping
        _mode.grad, _mode.wanted, _mode.sweeping = self.after

    def __exit__(self, *error: object) -> None:
        _mode.grad, _mode.wanted, _mode.sweeping = self.before


_mode = _Mode()
_anomaly = False  # is every value and gradient checked for NaN and infinity? (in all threads)
_arrival = threading.Lock()  # held while gradients are added up, or a change is dated, that other threads could be at as well
if hasattr(os, "register_at_fork"):  # a forked child finds the lock free
    os.register_at_fork(before=_arrival.acquire, after_in_parent=_arrival.release, after_in_child=_arrival.release)


# ---------------------------------------------------------------------------------------------------------------------
# Nodes
# ---------------------------------------------------------------------------------------------------------------------


class Function:
    """One op. A subclass says how to compute it and its vector-Jacobian product; an instance is a node of the graph.

        class Exp(Function):
            keeps_inputs, keeps_outputs = False, True
            def forward(self, x):              # arrays in, an array (or a tuple of arrays) out
                return np.exp(x)
            def backward(self, dy):            # tensors in, tensors out: one for each input, or None
                y, = self.outputs
                return dy * y

        y = Exp.apply(x)

    Inputs and outputs that `backward` does not read are not kept alive; the two class attributes say which it reads.
    `needs_input_grad[i]` tells `backward` whether the i-th gradient is wanted. The gradient of an input that was
    broadcast is summed back to its shape by the engine, not here.

    `composed`, where a subclass has it, maps the input tensors to the same outputs by differentiable ops. Needed where
    `backward` calls a kernel that has no derivative of its own: sweeps that keep the graph differentiate it instead.
    """

    # What every node has stands in slots; what a forward pass saves on `self` goes to the instance's dictionary.
    __slots__ = ("number", "edges", "where", "_inputs", "_outputs", "__dict__", "__weakref__")

    keeps_inputs = True
    keeps_outputs = False
    composed: Callable[..., Any] | None = None
    count = 1  # of outputs
    hooks: dict[int, Hooks] | None = None  # output -> what is called with its gradient
    kept: dict[int, weakref.ref[Tensor]] | None = None  # output -> the tensor that keeps its gradient

    number: int  # time of creation; larger than that of every node it depends on
    edges: Sequence[Edge | None] | None  # where each input came from; None once released
    where: str  # the user's line that made this node, if detect_anomaly was on

    def forward(self, *arrays: Any, **params: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.forward is missing")

    def backward(self, *dys: Tensor) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.backward is missing: the op cannot be differentiated")

    @classmethod
    def apply(cls, *inputs: Any, **params: Any) -> Any:
        """Run the op on tensors (anything else becomes a constant one) and record it if a gradient may be wanted."""
        node = cls()
        try:
            arrays = list(map(_data_of, inputs))
        except AttributeError:
            inputs = tuple([x if isinstance(x, Tensor) else Tensor(x) for x in inputs])
            arrays = list(map(_data_of, inputs))
        try:
            y = node.forward(*arrays, **params) if params else node.forward(*arrays)
        except TypeError as error:  # arrays of two kinds do not mix
            why = devices.mixed(cls.__name__, arrays)
            if why is None:
                raise
            raise ValueError(why) from error
        record = False
        if _mode.grad:
            edges = list(map(_edge_of, inputs))
            record = any(edges)
            if record:
                node.number = next(ticks)
                node.edges = edges
                if cls.keeps_inputs:
                    node._inputs = inputs
        if type(y) is _ndarray:
            y.setflags(False)
        elif type(y) is tuple:
            return node._several(y, inputs, arrays, record)
        else:
            y = _freeze(y)
        t = _new(Tensor)
        t._data = y
        t.grad = None
        if record:
            t.edge = (node, 0, y.shape, y.dtype)
            t._stamp = _SEALED
            if cls.keeps_outputs:
                node._outputs = [y]
        else:
            t.edge = None
            t._stamp = _UNWRITTEN if y.base is None else _stamp_of_base(y, inputs)
        if _anomaly and not _mode.sweeping:
            _check_forward(node, arrays, [y])
        return t

    def _several(self, ys: tuple[Any, ...], inputs: tuple[Tensor, ...], arrays: list[Any], record: bool) -> tuple[Tensor, ...]:
        """The tensors of an op with several results; those that are not floating have no gradient."""
        tensors = []
        for i, y in enumerate(ys):
            t = place(_freeze(y), (self, i, y.shape, y.dtype) if record and y.dtype.kind in "fc" else None)
            if t.edge is None and t._data.base is not None:
                t._stamp = _stamp_of_base(t._data, inputs)
            tensors.append(t)
        if record:
            self.count = len(tensors)
            self.metas = [(t._data.shape, t._data.dtype) for t in tensors]
            if self.keeps_outputs:
                self._outputs = [t._data for t in tensors]
        if _anomaly and not _mode.sweeping:
            _check_forward(self, arrays, [t._data for t in tensors])
        return tuple(tensors)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The inputs as they were in the forward pass."""
        if _last_write[0] > self.number:
            self._refuse_changed()
        try:
            return self._inputs
        except AttributeError:
            raise self._not_kept("inputs") from None

    def _refuse_changed(self) -> None:
        for x in self._inputs:
            if x._stamp[0] > self.number:
                raise RuntimeError(
                    f"{type(self).__name__}: an input of shape {x.shape} was changed in place after the forward pass "
                    "saved it; its gradient would be wrong. Change it after the backward sweep, or use a copy"
                )

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs, as tensors at this place in the graph (a node that held them themselves would be a cycle)."""
        try:
            ys = self._outputs
        except AttributeError:
            raise self._not_kept("outputs") from None
        return [place(y, (self, i, y.shape, y.dtype)) for i, y in enumerate(ys)]

    def _not_kept(self, what: str) -> RuntimeError:
        name = type(self).__name__
        return RuntimeError(f"{name}.backward: the {what} were not kept; say keeps_{what} = True in the class {name}")

    @property
    def needs_input_grad(self) -> Sequence[Any]:
        """Which inputs' gradients the sweep that is under way asks for: true or false for each."""
        wanted = _mode.wanted
        if wanted is None:
            return self.edges
        return [edge is not None and edge[0] in wanted for edge in self.edges]

    def vjp_composed(self, dys: list[Tensor]) -> tuple[Tensor | None, ...]:
        """What `backward` computes, through `composed`: differentiable again."""
        xs = [Alias.apply(x) for x in self.inputs]
        return vjp_through(listed(self.composed(*xs)), dys, xs, self.needs_input_grad)

    def release(self) -> None:
        """Forget what was saved, so that memory returns while the sweep goes on."""
        self.__dict__.clear()
        self.edges = self._inputs = self._outputs = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Leaf(Function):
    """The node of a tensor that the user made: where gradients arrive."""

    def __init__(self, tensor: Tensor):
        self.number = next(ticks)
        self.edges = ()
        self.tensor = weakref.ref(tensor)

    def accumulate(self, g: Tensor) -> None:
        tensor = self.tensor()
        if tensor is not None:
            tensor._add_grad(g)

    def release(self) -> None:
        pass


class Alias(Function):
    """y = x, at a new place in the graph."""

    keeps_inputs = False

    def forward(self, x: Any) -> Any:
        return x.view()

    def backward(self, dy: Tensor) -> Tensor:
        return dy


# ---------------------------------------------------------------------------------------------------------------------
# The backward sweep
# ---------------------------------------------------------------------------------------------------------------------


def _sweep(
    roots: list[Tensor],
    cotangents: list[Tensor],
    targets: list[Tensor] | None,
    *,
    retain: bool,
    create_graph: bool,
    boundary: frozenset[Function] = frozenset(),
) -> list[Tensor | None]:
    """Carry the cotangents of `roots` back through the graph, not past the nodes of `boundary`.

    With `targets`, return their gradients (None where there is no path) and visit only nodes that lead to one;
    without, add the gradients to the `.grad` of the leaves.
    """
    places = [t.edge[:2] for t in targets] if targets is not None else []
    goals = set(places)
    wanted = None if targets is None else _leading_to({node for node, _ in places}, roots, boundary)
    found: dict[tuple[Function, int], Tensor] = {}
    sums: dict[Function, list[Tensor | None]] = {}  # node -> the gradients of its outputs, as far as collected
    queue: list[tuple[int, Function]] = []  # the nodes in `sums`, largest number first

    def settle(dys: list[Tensor | None], i: int) -> Tensor:
        """A gradient that leaves the sweep owns its memory."""
        return dys[i] if create_graph or _sole(dys, i) else constant(dys[i]._data.copy())

    # The sweep starts as if one node, after all others, had handed each root its cotangent.
    node, edges, grads = None, [root.edge for root in roots], cotangents
    watched = _anomaly and not _mode.sweeping
    with _Sweeping(create_graph, wanted, True):
        while True:
            for edge, g in zip(edges, grads):  # noqa: B905 (lengths were compared; this loop is hot)
                if edge is None or g is None:
                    continue
                source, i, shape, dtype = edge
                if wanted is not None and source not in wanted:
                    continue
                if g._data.shape != shape:
                    g = _unbroadcast(g, shape, node)
                if g._data.dtype is not dtype and g._data.dtype != dtype:
                    raise RuntimeError(f"{type(node).__name__}.backward: expected a gradient of {dtype}, got {g.dtype}")
                dys = sums.get(source)
                if dys is None:
                    heappush(queue, (-source.number, source))
                    sums[source] = dys = [None] * source.count
                    dys[i] = g
                    continue
                if dys[i] is None:
                    dys[i] = g
                elif create_graph:
                    dys[i] = dys[i] + g
                elif _sole(dys, i):  # its memory is nobody else's: the sum takes its place
                    _add_to_frozen(dys[i]._data, g._data)
                else:  # borrowed: a cotangent that also went elsewhere, a view, an input
                    dys[i] = constant(dys[i]._data + g._data)
            g = None  # so that `dys` alone holds what was handed on
            # A node that only this frame refers to goes by itself; one that the user's tensors hold has to let go.
            if not retain and node is not None and getrefcount(node) > 2:
                node.release()
            if not queue:
                break

            node = heappop(queue)[1]
            dys = sums.pop(node)
            edges, grads = node.edges, ()
            if node.hooks is not None and node not in boundary:  # (there the gradients are only a part of the whole)
                _call_hooks(node, dys, create_graph)
            if goals:
                for i in range(len(dys)):
                    if dys[i] is not None and (node, i) in goals:
                        found[node, i] = settle(dys, i)
                if node in boundary:
                    node = None
                    continue
            if edges is None:
                _refuse_released()
            if not edges:
                if targets is None:
                    node.accumulate(settle(dys, 0))
                continue
            if len(dys) > 1:  # outputs that nothing used have gradient zero
                like = next(dy._data for dy in dys if dy is not None)
                for i, (shape, dtype) in enumerate(node.metas):
                    if dys[i] is None:
                        dys[i] = constant(np.zeros_like(like, shape=shape, dtype=dtype))
            if create_graph and node.composed is not None:
                grads = node.vjp_composed(dys)
            else:
                grads = node.backward(*dys)
                if type(grads) is not tuple:
                    grads = (grads,)
                if len(grads) != len(edges):
                    raise RuntimeError(
                        f"{type(node).__name__}.backward: expected {len(edges)} gradients, one for each input, got {len(grads)}"
                    )
            if watched:
                _check_backward(node, dys, grads)
    return [found.get(goal) for goal in places]


def _call_hooks(node: Function, dys: list[Tensor | None], create_graph: bool) -> None:
    """Show the gradients of a node's outputs, which are complete, to the hooks; what a hook returns goes on in their place."""
    for i, hooks in node.hooks.items():
        for hook in list(hooks.values()) if dys[i] is not None else ():
            g = dys[i]
            if not create_graph:  # others may hold its memory too: what a hook is shown cannot be written to
                g = place(g._data, None)
                g._stamp = _SEALED
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
            t._add_grad(dys[i] if create_graph else constant(dys[i]._data.copy()))


def _add_to_frozen(array: Any, other: Any) -> None:
    if type(array) is _ndarray:
        if array.base is not None:
            array.base.setflags(True)
        array.setflags(True)
    array += other
    _freeze(array)


def _references(held: list[Tensor | None], i: int) -> tuple[int, int, int]:
    """How many refer to a gradient in a list, to its array, and to the array that this views."""
    tensor = held[i]
    array = tensor._data
    base = array.base
    return getrefcount(tensor), getrefcount(array), 0 if base is None else getrefcount(base)


def _sole(held: list[Tensor | None], i: int) -> bool:
    """Is nobody but the list concerned if the elements of this gradient change?

    A view refers to the array that it views, and whoever saved a gradient refers to it: then it counts as borrowed. So
    does an expanded one, several of whose elements are one place in memory.
    """
    if _references(held, i) not in _SOLE:
        return False
    base = held[i]._data.base
    return base is None or (type(base) is _ndarray and base.base is None and base.size == held[i]._data.size)


def _refuse_released() -> None:
    raise RuntimeError(
        "backward: this part of the graph was already swept, and what it saved is freed. "
        "Pass retain_graph=True to the earlier call to sweep it again"
    )


def _leading_to(goals: set[Function], roots: list[Tensor], boundary: frozenset[Function]) -> set[Function]:
    """The nodes between `roots` and `goals`, both included."""
    seen = {t.edge[0] for t in roots}
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node not in boundary:
            if node.edges is None:
                _refuse_released()
            for edge in node.edges:
                if edge is not None and edge[0] not in seen:
                    seen.add(edge[0])
                    stack.append(edge[0])
    wanted = set(goals)
    for node in sorted(seen, key=_number):
        if node not in boundary:
            for edge in node.edges:
                if edge is not None and edge[0] in wanted:
                    wanted.add(node)
                    break
    return wanted


def vjp_through(ys: list[Tensor], dys: list[Tensor], places: list[Tensor], needs: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """Gradients with respect to `places` through a graph that was built, just now, from them."""
    boundary = frozenset([x.edge[0] for x in places if x.edge is not None])
    wanted = [i for i, need in enumerate(needs) if need]
    roots = [(y, dy) for y, dy in zip(ys, dys, strict=True) if y.node is not None]
    found = _sweep(
        [y for y, _ in roots],
        [dy for _, dy in roots],
        [places[i] for i in wanted],
        retain=_mode.grad,
        create_graph=_mode.grad,
        boundary=boundary,
    )
    grads: list[Tensor | None] = [None] * len(places)
    for i, g in zip(wanted, found, strict=True):
        grads[i] = g
    return tuple(grads)


def _unbroadcast(g: Tensor, shape: tuple[int, ...], node: Function) -> Tensor:
    """Undo broadcasting: y_j = x for every copy j, so x̄ = Σ_j ȳ_j over the axes that were added or stretched."""
    added = g.ndim - len(shape)
    stretched = [added + i for i, n in enumerate(shape) if n == 1 and g.shape[added + i] != 1] if added >= 0 else []
    dims = tuple(range(max(added, 0))) + tuple(stretched)
    if added < 0 or any(n != 1 and n != m for n, m in zip(shape, g.shape[added:], strict=True)):
        raise RuntimeError(
            f"{type(node).__name__}.backward: a gradient of shape {g.shape} does not fit an input of shape {shape}"
        )
    return g.sum(dims).reshape(shape)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of (the sum over) `outputs` with respect to each of `inputs`; no `.grad` is touched.

    x̄_i = Σ_k (∂y_k/∂x_i)ᵀ ȳ_k,  ȳ = `grad_outputs`, which may be left out where y_k is a scalar.
    With `create_graph` the result can be differentiated again. Returns a tuple, one tensor of x_i's shape each.

    Raises RuntimeError where an input does not influence the outputs, unless `allow_unused` (then None stands there).
    """
    outputs, inputs = listed(outputs, "outputs"), listed(inputs, "inputs")
    for x in inputs:
        if x.node is None:
            raise RuntimeError(f"grad: expected inputs that require a gradient, got one of shape {x.shape} that does not")
    roots, cotangents = _seeds(outputs, grad_outputs, "grad")
    retain = create_graph if retain_graph is None else retain_graph
    found = _sweep(roots, cotangents, inputs, retain=retain, create_graph=create_graph)
    if not allow_unused:
        for i, g in enumerate(found):
            if g is None:
                raise RuntimeError(f"grad: input {i} does not influence the outputs; pass allow_unused=True to get None for it")
    return tuple(found)


def listed(x: Tensor | Sequence[Tensor], name: str = "outputs") -> list[Tensor]:
    xs = [x] if isinstance(x, Tensor) else list(x) if isinstance(x, list | tuple) else [x]
    for t in xs:
        if not isinstance(t, Tensor):
            raise TypeError(f"expected {name} to be a tensor or a list of tensors, got {type(t).__name__}")
    return xs


def _seeds(outputs: list[Tensor], given: Any, caller: str) -> tuple[list[Tensor], list[Tensor]]:
    """The cotangents that start a sweep: those given, or 1 for scalars."""
    if given is None:
        given = [None] * len(outputs)
    elif not isinstance(given, list | tuple):
        given = [given]
    if len(given) != len(outputs):
        raise ValueError(f"{caller}: expected one cotangent for each of {len(outputs)} outputs, got {len(given)}")
    cotangents = []
    for y, dy in zip(outputs, given, strict=True):
        if y.node is None:
            raise RuntimeError(
                f"{caller}: expected an output that depends on a tensor that requires a gradient, got one that does not"
            )
        if dy is None:
            if y._data.size != 1:
                raise RuntimeError(f"{caller}: expected a scalar output, or a cotangent of shape {y.shape} beside it")
            dy = constant(np.ones_like(y._data))
        elif not isinstance(dy, Tensor):
            raise TypeError(f"{caller}: expected the cotangent to be a tensor, got {type(dy).__name__}")
        elif dy.shape != y.shape or dy.dtype != y.dtype:
            raise ValueError(f"{caller}: expected a cotangent of shape {y.shape} and {y.dtype}, got {dy.shape} and {dy.dtype}")
        cotangents.append(dy)
    return outputs, cotangents


# ---------------------------------------------------------------------------------------------------------------------
# Tensors
# ---------------------------------------------------------------------------------------------------------------------


class Tensor:
    """An array that remembers where it came from.

    `data` its array (read-only; see `writing`) · `grad` the gradient that `backward` left here, or None ·
    `edge` its place in the graph (the op that made it, which of its outputs it is, shape, dtype), or None if no gradient
    can be asked for.
    """

    __slots__ = ("_data", "edge", "grad", "_stamp", "__weakref__")
    __array_ufunc__ = None  # array * tensor asks the tensor

    def __init__(self, data: Any, dtype: Any = None, device: str | None = None, *, requires_grad: bool = False):
        """Copy `data` (numbers, nested lists, an array or a tensor). Python floats become float32; arrays keep their dtype.

        It stays where it is unless a `device` is named.
        """
        if isinstance(data, Tensor):
            data = data._data
        try:
            array = np.array(data) if not hasattr(data, "dtype") else data.copy()
        except ValueError as error:
            raise ValueError(f"tensor: expected numbers in a regular nesting, got {data!r:.80}") from error
        array = array if hasattr(array, "flags") and isinstance(array.shape, tuple) else np.asarray(array)
        if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype") and not _has_numpy(data):
            dtype = np.float32
        if dtype is not None:
            array = array.astype(_dtype(dtype), copy=False)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype.kind not in "fciub":
            raise TypeError(f"tensor: expected numbers, got {array.dtype}")
        self._data = _freeze(array if device is None else devices.moved(array, devices.checked(device)))
        self.edge = None
        self.grad = None
        self._stamp = _UNWRITTEN
        if requires_grad:
            self.requires_grad = True

    # What it is

    @property
    def data(self) -> np.ndarray:
        """The array, read-only. Assigning replaces it: by an array of the same shape and dtype."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        array = value._data if isinstance(value, Tensor) else _as_array(value)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"Tensor.data: expected an array of shape {self.shape} and {self.dtype}, got {array.shape} and {array.dtype}"
            )
        with self.writing() as own:
            own[...] = array

    @property
    def _version(self) -> int:
        """When it, or what shares its memory, was last changed in place; 0 where it never was."""
        return self._stamp[0]

    @property
    def requires_grad(self) -> bool:
        """Can a gradient with respect to this tensor be asked for?"""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not self.is_leaf:
            if value:
                return
            raise RuntimeError("requires_grad: expected a tensor made by the user, got the result of an op; use detach()")
        if value and self.dtype.kind not in "f":
            raise TypeError(f"requires_grad: expected a floating dtype, got {self.dtype}; integers have no gradient")
        if not value:
            self.edge = None
        elif self.edge is None:
            self.edge = (Leaf(self), 0, self.shape, self.dtype)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` and return the tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Was it made by the user, not by a recorded op?"""
        return self.edge is None or type(self.edge[0]) is Leaf

    @property
    def node(self) -> Function | None:
        """The op that made it, if that was recorded."""
        return None if self.edge is None else self.edge[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def device(self) -> str:
        """Where the array lives: "cpu" or "cuda"."""
        return devices.of(self._data)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of dimensions."""
        return self._data.ndim

    def numel(self) -> int:
        """The number of elements."""
        return self._data.size

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._data.itemsize

    # Out to NumPy and Python

    def numpy(self) -> np.ndarray:
        """The array, read-only; take a `.copy()` to write to. Refuses a tensor that requires a gradient."""
        if self.node is not None:
            raise RuntimeError("numpy: this tensor requires a gradient, which NumPy would lose; use .detach().numpy()")
        if not isinstance(self._data, _ndarray):
            raise TypeError("numpy: this tensor is on the device 'cuda'; bring it to the host first, with .cpu().numpy()")
        return self._data

    def item(self) -> float | int | bool:
        """The one element as a Python number."""
        if self._data.size != 1:
            raise ValueError(f"item: expected a tensor of one element, got shape {self.shape}")
        return self._data.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self._data.tolist()

    def detach(self) -> Tensor:
        """The same array, cut off from the graph."""
        t = place(self._data, None)
        t._stamp = _own_stamp(self)
        return t

    def __deepcopy__(self, memo: dict) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("deepcopy: expected a tensor made by the user, got the result of an op; use clone() or detach()")
        return _leaf(type(self), self._data, self.requires_grad)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy in another process is made from: the elements and `requires_grad`, as in `deepcopy`."""
        if not self.is_leaf:
            raise RuntimeError("pickle: expected a tensor made by the user, got the result of an op; use detach()")
        return _leaf, (type(self), self._data, self.requires_grad)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return devices.moved(self._data, "cpu").__index__()

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(f"a tensor of shape {self.shape} is neither true nor false; use .any() or .all()")
        return bool(self._data.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        array = devices.moved(self._data, "cpu")
        text = np.array2string(array, separator=", ", precision=4, threshold=200, edgeitems=3, prefix="tensor(")
        dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        dtype += "" if isinstance(self._data, _ndarray) else f", device={self.device!r}"
        source = "" if self.node is None else ", requires_grad=True" if self.is_leaf else f", node={self.node!r}"
        return f"tensor({text}{dtype}{source})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self._data.size == 1 and spec else repr(self)

    __hash__ = object.__hash__  # tensors are told apart by identity, though == compares elements

    # The chain rule

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ) -> None:
        """Add ∂self/∂x (times `gradient`, needed unless self is a scalar) to the `.grad` of every leaf x, or of `inputs`.

        What was saved is freed on the way unless `retain_graph` (default: `create_graph`).
        """
        roots, cotangents = _seeds([self], gradient, "backward")
        retain = create_graph if retain_graph is None else retain_graph
        if inputs is None:
            _sweep(roots, cotangents, None, retain=retain, create_graph=create_graph)
            return
        inputs = listed(inputs, "inputs")
        for x, g in zip(inputs, _sweep(roots, cotangents, inputs, retain=retain, create_graph=create_graph), strict=True):
            if g is not None:
                x._add_grad(g)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Have hook(x̄) called whenever a sweep has completed the gradient x̄ of this tensor; returns a handle that removes it.

        What the hook returns, if not None, takes the place of x̄: in `.grad`, in what `grad` returns, and in the sweep on to
        what this tensor was made of. x̄ cannot be written to. Hooks are called in the order of their registration.
        Raises RuntimeError where the tensor requires no gradient.
        """
        checked("register_hook", hook)
        return RemovableHandle(self._hooked("register_hook").setdefault(self.edge[1], Hooks()), hook)

    def _hooked(self, name: str) -> dict[int, Hooks]:
        """The hooks of the node that made this tensor."""
        if self.edge is None:
            raise RuntimeError(f"{name}: expected a tensor that requires a gradient, got one of shape {self.shape} without")
        node = self.edge[0]
        if node.hooks is None:
            node.hooks = {}
        return node.hooks

    def retain_grad(self) -> None:
        """Have sweeps leave the gradient in `.grad` here too, though this tensor is the result of an op; after all hooks.

        Raises RuntimeError where the tensor requires no gradient.
        """
        self._hooked("retain_grad")
        if not self.is_leaf:
            node, i = self.edge[:2]
            node.kept = {**(node.kept or {}), i: weakref.ref(self)}

    def _add_grad(self, g: Tensor) -> None:
        """grad ← grad + g, where sweeps of several threads may arrive at once."""
        with _arrival:
            self.grad = g if self.grad is None else self.grad + g

    # Change in place

    @contextlib.contextmanager
    def writing(self) -> Iterator[np.ndarray]:
        """The array, writable inside the `with`: the one door for changes in place (see `Writing`)."""
        with Writing([self]) as (array,):
            yield array

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the elements with those of `source` (broadcast); shape and dtype stay."""
        source = source._data if isinstance(source, Tensor) else _as_array(source)
        if source.shape != self.shape:
            try:
                source = np.broadcast_to(source, self.shape)
            except ValueError:
                raise ValueError(
                    f"copy_: expected shape {self.shape}, or one that broadcasts to it, got {source.shape}"
                ) from None
        with self.writing() as own:
            own[...] = devices.moved(source, self.device)
        return self

    def zero_(self) -> Tensor:
        """Set every element to 0."""
        return self.copy_(0)

    def fill_(self, value: float) -> Tensor:
        """Set every element to `value`. Raises OverflowError where the dtype does not hold it."""
        return self.copy_(value if isinstance(value, Tensor) else np.asarray(value, self.dtype))

    def _change(self, name: str, value: Any) -> Tensor:
        """x += y and its kin: in place for a leaf that no graph is recorded of, else a new tensor (as for any number)."""
        if not self.is_leaf or (self.node is None and _mode.grad and isinstance(value, Tensor) and value.node is not None):
            return NotImplemented  # Python then computes x = x + y
        if self.node is not None and _mode.grad:
            raise RuntimeError("in-place change of a leaf that requires a gradient: wrap it in `with no_grad():`")
        with no_grad():
            result = getattr(self, name)(value)
        if result.shape != self.shape or result.dtype != self.dtype:
            raise ValueError(
                f"in-place {name}: expected a result of shape {self.shape} and {self.dtype}, "
                f"got {result.shape} and {result.dtype}"
            )
        return self.copy_(result)

    def __iadd__(self, value: Any) -> Tensor:
        return self._change("__add__", value)

    def __isub__(self, value: Any) -> Tensor:
        return self._change("__sub__", value)

    def __imul__(self, value: Any) -> Tensor:
        return self._change("__mul__", value)

    def __itruediv__(self, value: Any) -> Tensor:
        return self._change("__truediv__", value)

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.node is not None and _mode.grad:
            raise RuntimeError(
                "assignment into a tensor that requires a gradient: wrap it in `with no_grad():`, or use where()"
            )
        if isinstance(value, Tensor) and value.node is not None and _mode.grad:
            raise RuntimeError(
                "assignment of a tensor that requires a gradient would cut the graph: use where(), cat() or scatter_add()"
            )
        numbers, index = numbers_first(_plain(index))
        with self.writing() as own:
            part = own if numbers is None else own[numbers]
            if isinstance(value, Tensor):
                value = value._data
            part[index] = devices.beside(value, part) if isinstance(value, _ndarray) else value


class Writing:
    """The arrays of tensors, writable inside the `with`: for what changes tensors in place (optimisers, initialisers, loading).

    Raises RuntimeError for results of recorded ops.
    """

    __slots__ = ("tensors", "opened")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        for t in tensors:
            if t._stamp is _SEALED:
                raise RuntimeError(
                    "expected a tensor made by the user, got (the memory of) a recorded op's result; change a clone() of it"
                )
            if 0 in t._data.strides and t._data.size > 1:
                raise RuntimeError(
                    "expected a tensor with one place in memory for each element, got an expanded one: write to a clone() of it"
                )
        self.tensors = tensors

    def __enter__(self) -> list[np.ndarray]:
        self.opened: list[np.ndarray] = []
        with _arrival:
            now = _last_write[0] = next(ticks)
        try:
            for t in self.tensors:
                replay.changing(t, _copied, Tensor.copy_)
                _own_stamp(t)[0] = now
                self._open(t._data)
        except BaseException:  # what cannot be written to: memory that somebody else protects
            self.__exit__()
            raise
        return [t._data for t in self.tensors]

    def _open(self, array: Any) -> None:
        """A view is written through to what it views. Device arrays are never read-only: the stamps alone watch over them."""
        if isinstance(array, _ndarray):
            self._open(array.base)
            self.opened.append(array)
            array.setflags(True)

    def __exit__(self, *error: object) -> None:
        for array in self.opened:
            array.setflags(False)


def tensor(data: Any, dtype: Any = None, device: str | None = None, *, requires_grad: bool = False) -> Tensor:
    """A new tensor that copies `data`. Python floats become float32, integers int64; arrays keep their dtype and place.

    Raises TypeError where `data` is not numbers or integers are asked for a gradient, ValueError where it is ragged.
    """
    return Tensor(data, dtype, device, requires_grad=requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor of `array`, dtype kept. PyTorch would share the memory; here nobody changes a tensor from outside: a copy."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(array).__name__}")
    return Tensor(array)


_new = Tensor.__new__
_BASIC = frozenset([int, slice, type(None), type(...)])  # the types of an index that is no array
_ndarray = np.ndarray
_last_write = [0]  # the time of the latest change in place of any tensor
_UNWRITTEN = [0]  # the stamp of all that was never written to nor viewed
_SEALED = [0]  # the stamp of all that a recorded op made: it is never written to
Edge = tuple[Function, int, tuple[int, ...], np.dtype]
_number = operator.attrgetter("number")
_data_of = operator.attrgetter("_data")
_edge_of = operator.attrgetter("edge")


def constant(array: Any) -> Tensor:
    """A tensor around an array that was just made: no copy is taken, so nobody else may write to it."""
    return place(_freeze(array), None)


def place(array: Any, edge: Edge | None) -> Tensor:
    """A tensor around `array` at a given place in the graph, without any copy or check."""
    t = _new(Tensor)
    t._data = array
    t.edge = edge
    t.grad = None
    t._stamp = _UNWRITTEN if edge is None else _SEALED
    return t


def _leaf(kind: type[Tensor], array: Any, requires_grad: bool) -> Tensor:
    """A leaf with a copy of `array`: what was unpickled may lie in memory that cannot be written to."""
    t = _new(kind)
    t._data, t.edge, t.grad, t._stamp = _freeze(array.copy()), None, None, _UNWRITTEN
    t.requires_grad = requires_grad
    return t


def _freeze(array: Any) -> Any:
    """Make read-only, which only NumPy's arrays can be; NumPy's scalars become 0-d arrays."""
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if isinstance(array, _ndarray):
        array.setflags(False)
    elif not hasattr(array, "__array_ufunc__"):
        raise TypeError(f"forward: expected an array, or a tuple of arrays, got {type(array).__name__}")
    return array


# As the interpreter counts: what lies on its stack may count, or not. An array of its own, a view of one that nobody has.
_SOLE = [_references([place(np.ones(2), None)], 0), _references([place(np.ones(2)[:], None)], 0)]


def _as_array(x: Any) -> Any:
    """`x` if it is an array, wherever it lives; else what NumPy makes of it."""
    return x if devices.is_array(x) else np.asarray(x)


def _copied(t: Tensor) -> Any:
    return t._data.copy()


def _stamp_of_base(y: Any, inputs: Sequence[Tensor]) -> list[int]:
    """A view is changed when what it views is: both share one stamp."""
    for x in inputs:
        if y.base is x._data or y.base is x._data.base or y is x._data:
            return _own_stamp(x)
    return _UNWRITTEN


def _own_stamp(x: Tensor) -> list[int]:
    """The stamp that x shares with whatever views its memory; made when it is first needed."""
    if x._stamp is _UNWRITTEN:
        x._stamp = [0]
    return x._stamp


def _plain(index: Any) -> Any:
    """An index with tensors and lists replaced by arrays, and 0-d ones by numbers."""
    if isinstance(index, tuple):
        return tuple([_plain(i) for i in index])
    if isinstance(index, Tensor):
        return index._data if index.ndim or index.dtype.kind == "b" else index.item()
    return np.array(index) if isinstance(index, list) and index else index


def numbers_first(key: Any) -> tuple[Any, Any]:
    """The index by numbers, and the one by arrays that is left after it; (None, key) where NumPy does the same at once.

    NumPy counts numbers among the arrays: of x[0, :, [1, 2]] it puts the arrays' dimension in front, as if 0 were one.
    """
    if type(key) is not tuple or _BASIC.issuperset(map(type, key)):
        return None, key
    choosing = [i for i, k in enumerate(key) if isinstance(k, int | np.integer) or devices.is_array(k)]
    arrays = [i for i in choosing if devices.is_array(key[i])]
    if not arrays or choosing[-1] - choosing[0] == len(choosing) - 1 or len(arrays) == len(choosing):
        return None, key
    numbers: list[Any] = []
    for k in key:
        numbers += [slice(None)] * (k.ndim if k.dtype == np.bool_ else 1) if devices.is_array(k) else [k]
    arrays = [k if k is ... or devices.is_array(k) else slice(None) for k in key if not isinstance(k, int | np.integer)]
    return tuple(numbers), tuple(arrays)


def _dtype(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected a NumPy dtype such as float32, got {dtype!r}") from error
    return found


def _has_numpy(data: Any) -> bool:
    """Does a nest of lists hold NumPy numbers, whose dtype is to be kept?"""
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return hasattr(data, "dtype")


# ---------------------------------------------------------------------------------------------------------------------
# Switches
# ---------------------------------------------------------------------------------------------------------------------


class set_grad_enabled(Switch):
    """From the call on ops are recorded, or not; with `with`, or as a decorator, only inside."""

    def __init__(self, mode: bool):
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"set_grad_enabled: expected True or False, got {mode!r}")
        self.mode, self.before = bool(mode), _mode.grad
        _mode.grad = self.mode

    def __enter__(self) -> None:
        _mode.grad = self.mode

    def __exit__(self, *error: object) -> None:
        _mode.grad = self.before

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        _mode.grad = self.before
        return super().__call__(function)

    def own(self) -> set_grad_enabled:
        return set_grad_enabled(self.mode)


class _Fixed(Switch):
    """A switch that has one position, and decorates with parentheses and without."""

    mode: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self, function: None = None) -> None:
        self.before: list[bool] = []  # one for each `with` that is open

    def __enter__(self) -> None:
        self.before.append(_mode.grad)
        _mode.grad = self.mode

    def __exit__(self, *error: object) -> None:
        _mode.grad = self.before.pop()

    def own(self) -> _Fixed:
        return type(self)()


class no_grad(_Fixed):
    """Ops inside the `with` (or the decorated function) are not recorded."""

    mode = False


class enable_grad(_Fixed):
    """Ops inside the `with` (or the decorated function) are recorded, also within `no_grad`."""

    mode = True


class inference_mode(Switch):
    """Ops inside the `with` (or the decorated function) are not recorded; with `mode` False they are.

    As `no_grad`: tensors made inside are ordinary ones here, there is nothing that they could be spared.
    """

    def __new__(cls, mode: Any = True) -> Any:
        return cls()(mode) if callable(mode) else super().__new__(cls)

    def __init__(self, mode: bool = True):
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"inference_mode: expected True or False, got {mode!r}")
        self.mode = not mode
        self.before: list[bool] = []  # one for each `with` that is open

    __enter__, __exit__ = _Fixed.__enter__, _Fixed.__exit__

    def own(self) -> inference_mode:
        return inference_mode(not self.mode)


def is_grad_enabled() -> bool:
    """Are ops being recorded?"""
    return _mode.grad


class detect_anomaly(Switch):
    """Inside the `with`, the first op whose value or gradient turns NaN or infinite raises ArithmeticError.

    The message names the op, whether its forward or its gradient did it, and the user's line that called it. An op whose
    input was already NaN or infinite is not blamed. Slow: every array is scanned.
    """

    def __init__(self, mode: bool = True):
        self.mode = mode
        self.before: list[bool] = []  # one for each `with` that is open

    def __enter__(self) -> None:
        global _anomaly
        self.before.append(_anomaly)
        _anomaly = self.mode

    def __exit__(self, *error: object) -> None:
        global _anomaly
        _anomaly = self.before.pop()

    def own(self) -> detect_anomaly:
        return detect_anomaly(self.mode)


def _user_line() -> str:
    """The innermost line of the call stack that lies outside this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "scratchgen itself"
    path, line = frame.f_code.co_filename, frame.f_lineno
    return f"{path}:{line} in {frame.f_code.co_name}: {linecache.getline(path, line).strip()}"


def _finite(array: Any) -> bool:
    return getattr(array, "dtype", np.dtype(float)).kind not in "fc" or bool(np.isfinite(array).all())


def _check_forward(node: Function, arrays: list[Any], outs: list[Any]) -> None:
    node.where = _user_line()
    if all(_finite(a) for a in arrays) and not all(_finite(y) for y in outs):
        kind = "NaN" if any(np.isnan(y).any() for y in outs if y.dtype.kind in "fc") else "infinity"
        raise ArithmeticError(
            f"{type(node).__name__}: the forward pass made a {kind} from finite inputs, called at {node.where}"
        )


def _check_backward(node: Function, dys: list[Tensor], grads: tuple[Tensor | None, ...]) -> None:
    if all(_finite(dy._data) for dy in dys):
        for i, g in enumerate(grads):
            if g is not None and not _finite(g._data):
                kind = "NaN" if np.isnan(g._data).any() else "infinity"
                where = getattr(node, "where", "") or "a place not recorded: enter detect_anomaly before the forward pass"
                raise ArithmeticError(
                    f"{type(node).__name__}: the gradient of input {i} turned to {kind} from a finite cotangent; "
                    f"the op was called at {where}"
                )
