r"""Hooks of modules: functions that see, and may replace, what goes into a module and comes out of it, forward and backward.

forward:    inputs → pre-hooks → [border] → forward → hooks → [border] → result
backward:   x̄ ← the hooks, given x̄ and ȳ ←  …  ← ȳ noted ← ȳ

The borders are nodes of the graph, made only where there are backward hooks. All inputs of the module pass through the one,
so that the node is swept when all of their gradients are complete; all results pass through the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scratchgen.autograd import Function
from scratchgen.grad_mode import is_grad_enabled
from scratchgen.hooks import Hooks
from scratchgen.tensors import Tensor

Grads = tuple[Tensor | None, ...]


class ModuleHooks:
    """The hooks of one module. Those of the forward pass stand with whether they take the arguments by keyword too."""

    def __init__(self) -> None:
        self.before, self.after, self.backward = Hooks(), Hooks(), Hooks()

    def call(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """module.forward(*inputs, **options), between the hooks."""
        for hook, with_kwargs in list(self.before.values()):
            found = hook(module, inputs, options) if with_kwargs else hook(module, inputs)
            if found is None:
                continue
            if not with_kwargs:
                inputs = found if isinstance(found, tuple) else (found,)
            elif isinstance(found, tuple) and len(found) == 2:
                inputs, options = found
            else:
                raise ValueError(
                    f"register_forward_pre_hook: expected the hook to return None or (inputs, options), got {found!r:.80}"
                )
        watch = _Watch(module, self.backward, len(inputs)) if self.backward and is_grad_enabled() else None
        if watch is not None:
            inputs = watch.entered(inputs)
        result = module.forward(*inputs, **options)
        for hook, with_kwargs in list(self.after.values()):
            found = hook(module, inputs, options, result) if with_kwargs else hook(module, inputs, result)
            result = result if found is None else found
        return result if watch is None else watch.left(result)


class Border(Function):
    """y_i = x_i. The backward sweep stops here until all ȳ_i are complete, and asks `seen` what to go on with."""

    keeps_inputs = False

    def forward(self, *xs: Any, seen: Callable[[Grads], Grads]) -> tuple[Any, ...]:
        self.seen = seen
        return tuple([x.view() for x in xs])

    def backward(self, *dys: Tensor) -> Grads:
        return self.seen(dys)


class _Watch:
    """One call of a module, watched for its backward hooks."""

    def __init__(self, module: Any, hooks: Hooks, arity: int):
        self.module, self.hooks = module, hooks
        self.no_inputs: Grads = (None,) * arity
        self.dys: Grads | None = None  # the gradients of the results, once the sweep has them

    def entered(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs, behind their border."""
        self.positions = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
        return tuple(_through(list(inputs), self.positions, self._inputs_seen))

    def left(self, result: Any) -> Any:
        """The result, a tensor or a tuple or list of them, behind its border."""
        results = list(result) if isinstance(result, tuple | list) else [result]
        self.outputs = len(results)
        self.kept = [i for i, y in enumerate(results) if isinstance(y, Tensor) and y.requires_grad]
        results = _through(results, self.kept, self._outputs_seen)
        return type(result)(results) if type(result) in (tuple, list) else results[0] if self.outputs == 1 else tuple(results)

    def _outputs_seen(self, dys: Grads) -> Grads:
        self.dys = _spread(dys, self.kept, self.outputs)
        if not self.positions:
            self._called(self.no_inputs)
        return dys

    def _inputs_seen(self, dxs: Grads) -> Grads:
        """(A second derivative may come by here without having passed the results: it is none of this call.)"""
        if self.dys is None:
            return dxs
        grads = self._called(_spread(dxs, self.positions, len(self.no_inputs)))
        return tuple([grads[i] for i in self.positions])

    def _called(self, grads: Grads) -> Grads:
        """The gradients of the inputs as the hooks leave them."""
        dys, self.dys = self.dys, None
        for hook in list(self.hooks.values()):
            found = hook(self.module, grads, dys)
            if found is None:
                continue
            found = found if isinstance(found, tuple) else (found,)
            if len(found) != len(grads):
                raise ValueError(
                    f"register_full_backward_hook: expected the hook to return None or {len(grads)} gradients, got {len(found)}"
                )
            for g, before in zip(found, grads, strict=True):
                if g is not None and (not isinstance(g, Tensor) or before is None or g.shape != before.shape):
                    expected = "None" if before is None else f"None or a gradient of shape {before.shape}"
                    got = f"a tensor of shape {g.shape}" if isinstance(g, Tensor) else type(g).__name__
                    raise ValueError(f"register_full_backward_hook: expected {expected} from the hook, got {got}")
            grads = found
        return grads


def _through(values: list[Any], positions: list[int], seen: Callable[[Grads], Grads]) -> list[Any]:
    """The values, of which the tensors at `positions` have passed a border."""
    if positions:
        for i, x in zip(positions, Border.apply(*[values[i] for i in positions], seen=seen), strict=True):
            values[i] = x
    return values


def _spread(grads: Grads, positions: list[int], count: int) -> Grads:
    """`count` gradients: `grads` at their positions, and None elsewhere."""
    found: list[Tensor | None] = [None] * count
    for i, g in zip(positions, grads, strict=True):
        found[i] = g
    return tuple(found)
