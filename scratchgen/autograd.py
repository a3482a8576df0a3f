r"""The chain rule: nodes, the backward sweep, and `grad`.

An op applied to tensors is a *node*: it knows the nodes its inputs came from and how to turn the gradient of a scalar
loss with respect to its output into the gradients with respect to its inputs,

    y = f(x_1, …, x_n)        x̄_i = (∂f/∂x_i)ᵀ ȳ              x̄ := ∂loss/∂x           (reverse mode)

`Function.backward` computes these products *with tensors*, so they are recorded like any other computation when
asked (`create_graph=True`), and every gradient can be differentiated again, to any order.

The order of the sweep is where recursion goes wrong. In

    b = a + a
    c = b + b

b̄ must be complete (both uses counted) before it is passed on to a. Nodes carry the time at which they were made, and a
node's inputs exist before it does. A queue that always gives the youngest node therefore gives every node after all of
its consumers. No recursion: a chain of 50,000 nodes is fine.

This file knows the chain rule and no particular op; `ops` gives tensors their arithmetic.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from scratchgen import device as devices
from scratchgen.anomaly import check_backward, check_forward, detecting
from scratchgen.gradients import add_grad, call_hooks, getrefcount, memory
from scratchgen.hooks import Hooks
from scratchgen.tensors import (
    SEALED,
    UNWRITTEN,
    Edge,
    Tensor,
    constant,
    freeze,
    last_write,
    method,
    new,
    recording,
    stamp_of_base,
    ticks,
    wrap,
)

_ndarray, _float32 = np.ndarray, np.dtype(np.float32)
_data_of = operator.attrgetter("_data")
_edge_of = operator.attrgetter("edge")
_time_of = operator.attrgetter("time")


class _Sweeping(threading.local):
    """What each thread of Python knows of its innermost sweep."""

    now = False  # is a sweep under way?
    wanted: set[Function] | None = None  # the nodes that the sweep has to visit; None for all


_sweeping = _Sweeping()


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

    `keeps_inputs` and `keeps_outputs` say which of them `backward` reads: the others are not kept alive.
    `needs_input_grad[i]` tells `backward` whether the i-th gradient is wanted. The gradient of an input that was
    broadcast is summed back to its shape by the engine, not here.

    `composed`, where a subclass has it, maps the input tensors to the same outputs by differentiable ops. Needed where
    `backward` calls a kernel that has no derivative of its own: sweeps with `create_graph` differentiate it instead.
    """

    # What every node has stands in slots; what a forward pass saves on `self` goes to the instance's dictionary.
    __slots__ = ("time", "edges", "where", "_inputs", "_outputs", "behind", "__dict__", "__weakref__")

    keeps_inputs = True
    keeps_outputs = False
    composed: Callable[..., Any] | None = None
    count = 1  # of outputs
    hooks: dict[int, Hooks] | None = None  # output -> what is called with its gradient
    retaining: dict[int, weakref.ref[Tensor]] | None = None  # output -> its tensor, on which `retain_grad` was called

    time: int  # time of creation; larger than that of every node it depends on
    edges: Sequence[Edge | None] | None  # where each input came from; None once released
    where: str  # the user's line that made this node, if detect_anomaly was on
    metas: list[tuple[tuple[int, ...], np.dtype]]  # shape and dtype of each output, where they are several
    behind: list[Function]  # of a released node: the leaves that its sweep reached; empty if they are not known

    def forward(self, *arrays: Any, **params: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.forward is missing")

    def backward(self, *dys: Tensor) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.backward is missing: the op cannot be differentiated")

    @classmethod
    def apply(cls, *inputs: Any, **params: Any) -> Any:
        """Run the op on tensors (anything else becomes a constant one) and record it if a gradient may be wanted."""
        # Run `forward` on the arrays of the inputs. Record the node, if an input has one. Freeze the result, so that nobody
        # changes it unnoticed. Stamp it: the result of a recorded op is sealed, and one that shares the memory of an input
        # shares its stamp, which dates the last change of that memory. Integers have no gradient, so they get no edge.
        # Every op of every step comes through here: each line costs nanoseconds, and stands here for that reason.
        node = cls()
        try:
            arrays = list(map(_data_of, inputs))
        except AttributeError:
            inputs = tuple([x if isinstance(x, Tensor) else Tensor(x) for x in inputs])
            arrays = list(map(_data_of, inputs))
        try:
            y = node.forward(*arrays, **params) if params else node.forward(*arrays)
        except TypeError as error:  # arrays of two devices do not mix
            why = devices.mixed(cls.__name__, arrays)
            if why is None:
                raise
            raise ValueError(why) from error
        record = False
        if recording.on:
            edges = list(map(_edge_of, inputs))
            record = any(edges)
            if record:
                node.time = next(ticks)
                node.edges = edges
                if cls.keeps_inputs:
                    node._inputs = inputs
        if type(y) is _ndarray:
            y.setflags(False)  # (of `write`: naming the argument would cost twice the time)
        elif type(y) is tuple:
            return node._several(y, inputs, arrays, record)
        else:
            y = freeze(y)
        for array in arrays:
            if array is y:  # `forward` returned an input: a view of it has that input for its base
                y = y.view()
        t = new(Tensor)
        t._data = y
        t.grad = None
        dtype = y.dtype
        if record and (dtype is _float32 or dtype.kind in "fc"):
            t.edge = (node, 0, y.shape, dtype)
            t._stamp = SEALED if y.base is None else stamp_of_base(y, inputs, SEALED)
            if cls.keeps_outputs:
                node._outputs = [y]
        else:
            t.edge = None
            t._stamp = UNWRITTEN if y.base is None else stamp_of_base(y, inputs, UNWRITTEN)
        if detecting.on and not _sweeping.now:
            check_forward(node, arrays, [y])
        return t

    def _several(self, ys: tuple[Any, ...], inputs: tuple[Tensor, ...], arrays: list[Any], record: bool) -> tuple[Tensor, ...]:
        """The tensors of an op with several results; those that are not floating have no gradient."""
        tensors = []
        for i, y in enumerate(ys):
            y = freeze(y)
            if any(y is other for other in (*arrays, *ys[:i])):  # as in `apply`
                y = y.view()
            t = wrap(y, (self, i, y.shape, y.dtype) if record and y.dtype.kind in "fc" else None)
            if y.base is not None:
                t._stamp = stamp_of_base(y, (*inputs, *tensors), t._stamp)
            tensors.append(t)
        if record:
            self.count = len(tensors)
            self.metas = [(t._data.shape, t._data.dtype) for t in tensors]
            if self.keeps_outputs:
                self._outputs = [t._data for t in tensors]
        if detecting.on and not _sweeping.now:
            check_forward(self, arrays, [t._data for t in tensors])
        return tuple(tensors)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The inputs as they were in the forward pass."""
        try:
            inputs = self._inputs
        except AttributeError:
            raise self._not_kept("inputs") from None
        if last_write[0] > self.time:
            self._refuse_changed(inputs)
        return inputs

    def _refuse_changed(self, inputs: tuple[Tensor, ...]) -> None:
        for x in inputs:
            if x._stamp[0] > self.time:
                raise RuntimeError(
                    f"{type(self).__name__}: an input of shape {x.shape} was changed in place after the forward pass "
                    "saved it; its gradient would be wrong. Change it after the backward sweep, or use a copy"
                )

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs, as tensors at this position in the graph (a node that held its own outputs would be a cycle)."""
        try:
            ys = self._outputs
        except AttributeError:
            raise self._not_kept("outputs") from None
        return [wrap(y, (self, i, y.shape, y.dtype)) for i, y in enumerate(ys)]

    def _not_kept(self, what: str) -> RuntimeError:
        name = type(self).__name__
        return RuntimeError(f"{name}.backward: the {what} were not kept; say keeps_{what} = True in the class {name}")

    @property
    def needs_input_grad(self) -> Sequence[Any]:
        """For each input, does the sweep that is under way ask for its gradient? A true value if so.

        (A sweep to all leaves asks for that of every input with an edge, so the edges themselves are such values.)
        """
        wanted = _sweeping.wanted
        if wanted is None:
            return self.edges
        return [edge is not None and edge[0] in wanted for edge in self.edges]

    def vjp_composed(self, dys: list[Tensor]) -> tuple[Tensor | None, ...]:
        """What `backward` computes, through `composed`: differentiable again."""
        xs = [Alias.apply(x) for x in self.inputs]
        return vjp_through(listed(self.composed(*xs)), dys, xs, self.needs_input_grad)

    def release(self, behind: list[Function]) -> None:
        """Forget what was saved, so that its memory is free while the sweep goes on."""
        self.__dict__.clear()
        self.edges = self._inputs = self._outputs = None
        self.behind = behind

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Leaf(Function):
    """The node of a tensor that the user made: here gradients arrive and stay."""

    def __init__(self, tensor: Tensor):
        self.time = next(ticks)
        self.edges = ()
        self.tensor = weakref.ref(tensor)

    def accumulate(self, g: Tensor) -> None:
        tensor = self.tensor()
        if tensor is not None:
            add_grad(tensor, g)

    def release(self, behind: list[Function]) -> None:
        pass


class Alias(Function):
    """y = x, at a new position in the graph."""

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
    without, add the gradients to the `.grad` of the leaves. With `create_graph` all this is recorded. Unless `retain`,
    nodes forget what they saved as soon as they were visited.
    """
    positions = [] if targets is None else [t.edge[:2] for t in targets]
    goals = set(positions)
    wanted = None if targets is None else _leading_to({node for node, _ in positions}, roots, boundary)
    found: dict[tuple[Function, int], Tensor] = {}
    watched = detecting.on and not _sweeping.now
    leaves: list[Function] = []  # those reached so far
    behind: list[Function] = []  # what released nodes tell of them: nothing before the sweep has come to its end
    start = Start(roots, cotangents)
    sums: dict[Function, list[Tensor | None]] = {start: []}  # node -> the gradients of its outputs so far
    queue: list[tuple[int, Function]] = [(-start.time, start)]  # the nodes in `sums`, the youngest first
    alone = memory.alone  # getrefcount of a node that only `node` refers to
    del start
    with _InSweep(create_graph, wanted):
        while queue:
            # No consumer of the youngest node is left that could add to its gradients, so they are complete.
            node = heappop(queue)[1]
            dys = sums.pop(node)
            # Hooks see whole gradients. A node of the boundary gets only a part of its own here, and the rest elsewhere.
            if node.hooks is not None and node not in boundary:
                call_hooks(node, dys, create_graph)
            if goals:
                for i in range(len(dys)):
                    if dys[i] is not None and (node, i) in goals:
                        found[node, i] = dys[i] if create_graph else memory.owned_or_copied(dys, i)
                if node in boundary:
                    continue
            edges = node.edges
            if not edges:
                if edges is None:
                    _refuse_released()
                if targets is None:
                    node.accumulate(dys[0] if create_graph else memory.owned_or_copied(dys, 0))
                    leaves.append(node)
                continue

            # x̄_i = (∂f/∂x_i)ᵀ ȳ
            if len(dys) > 1:
                _fill(node, dys)
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
            if watched and dys:  # (for the cotangents that start a sweep nobody is to blame)
                check_backward(node, dys, grads)

            # Each gradient goes to the node that its input came from, and is added to those of other consumers. A gradient
            # that passed through the op unchanged is still in `dys`, and only what `sums` alone refers to is owned.
            dys = None
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
                held = sums.get(source)
                if held is None:
                    heappush(queue, (-source.time, source))
                    sums[source] = held = [None] * source.count
                if held[i] is None:
                    held[i] = g
                elif create_graph:
                    held[i] = held[i] + g
                else:
                    memory.add(held, i, g)
            g = grads = held = None
            if not retain and getrefcount(node) > alone:  # otherwise the whole node is about to go
                node.release(behind)
    behind += leaves
    return [found.get(position) for position in positions]


class Start(Function):
    """The node that a sweep starts from: the youngest of all, it hands each root its cotangent."""

    def __init__(self, roots: list[Tensor], cotangents: list[Tensor]) -> None:
        self.time = next(ticks)
        self.edges = [root.edge for root in roots]
        self.cotangents = tuple(cotangents)

    def backward(self) -> tuple[Tensor, ...]:
        return self.cotangents


class _InSweep:
    """The switches of a thread while one of its sweeps runs. Sweeps can be nested: afterwards all is as before."""

    __slots__ = ("after", "before")

    def __init__(self, create_graph: bool, wanted: set[Function] | None) -> None:
        self.after = create_graph, wanted, True

    def __enter__(self) -> None:
        self.before = recording.on, _sweeping.wanted, _sweeping.now
        recording.on, _sweeping.wanted, _sweeping.now = self.after

    def __exit__(self, *error: object) -> None:
        recording.on, _sweeping.wanted, _sweeping.now = self.before


def _fill(node: Function, dys: list[Tensor | None]) -> None:
    """Outputs that nothing used have gradient zero."""
    like = next(dy._data for dy in dys if dy is not None)
    for i, (shape, dtype) in enumerate(node.metas):
        if dys[i] is None:
            dys[i] = constant(np.zeros_like(like, shape=shape, dtype=dtype))


def _refuse_released() -> None:
    raise RuntimeError(
        "backward: this part of the graph was already swept, and what it saved is freed. "
        "Pass retain_graph=True to the earlier call to sweep it again"
    )


def _leading_to(goals: set[Function], roots: list[Tensor], boundary: frozenset[Function]) -> set[Function]:
    """The nodes between `roots` and `goals`, both included. Released nodes end a path, or are refused if a goal may follow."""
    seen = {t.edge[0] for t in roots}
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node not in boundary:
            if node.edges is None and _may_hide(node, goals):
                _refuse_released()
            for edge in node.edges or ():
                if edge is not None and edge[0] not in seen:
                    seen.add(edge[0])
                    stack.append(edge[0])
    wanted = set(goals)
    for node in sorted(seen, key=_time_of):
        if node not in boundary:
            for edge in node.edges or ():
                if edge is not None and edge[0] in wanted:
                    wanted.add(node)
                    break
    return wanted


def _may_hide(node: Function, goals: set[Function]) -> bool:
    """May one of the goals be behind a released node, whose edges are gone?

    The sweep that released it reached all that is behind it: leaves, which it lists, and nodes, which it released too. It
    lists no leaf if it went to some targets only, or broke off.
    """
    return not node.behind or any(goal.edges is None for goal in goals) or any(leaf in goals for leaf in node.behind)


def vjp_through(ys: list[Tensor], dys: list[Tensor], xs: list[Tensor], needs: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The gradients with respect to the `xs` that are needed, through a graph that was built, just now, from them."""
    boundary = frozenset([x.edge[0] for x in xs if x.edge is not None])
    wanted = [i for i, need in enumerate(needs) if need]
    roots = [(y, dy) for y, dy in zip(ys, dys, strict=True) if y.node is not None]
    found = _sweep(
        [y for y, _ in roots],
        [dy for _, dy in roots],
        [xs[i] for i in wanted],
        retain=recording.on,
        create_graph=recording.on,
        boundary=boundary,
    )
    grads: list[Tensor | None] = [None] * len(xs)
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
    """The tensors as a list, also where it is a single one. Raises TypeError, which calls them `name`, for all else."""
    xs = [x] if isinstance(x, Tensor) else list(x) if isinstance(x, list | tuple) else [x]
    for t in xs:
        if not isinstance(t, Tensor):
            raise TypeError(f"expected {name} to be a tensor or a list of tensors, got {type(t).__name__}")
    return xs


def _seeds(outputs: list[Tensor], grad_outputs: Any, caller: str) -> tuple[list[Tensor], list[Tensor]]:
    """The cotangents that start a sweep: `grad_outputs`, or 1 for scalars."""
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif not isinstance(grad_outputs, list | tuple):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"{caller}: expected one cotangent for each of {len(outputs)} outputs, got {len(grad_outputs)}")
    cotangents = []
    for y, dy in zip(outputs, grad_outputs, strict=True):
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
# Tensors in the graph: methods that the line `@method` gives to Tensor
# ---------------------------------------------------------------------------------------------------------------------


@method
@property
def is_leaf(self: Tensor) -> bool:
    """Was it made by the user, not by a recorded op?"""
    return self.edge is None or type(self.edge[0]) is Leaf


@property
def requires_grad(self: Tensor) -> bool:
    """Can a gradient with respect to this tensor be asked for?"""
    return self.node is not None


@method
@requires_grad.setter
def requires_grad(self: Tensor, value: bool) -> None:
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


@method
def requires_grad_(self: Tensor, requires_grad: bool = True) -> Tensor:
    """Set `requires_grad` and return the tensor."""
    self.requires_grad = requires_grad
    return self


@method
def backward(
    self: Tensor,
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
            add_grad(x, g)
