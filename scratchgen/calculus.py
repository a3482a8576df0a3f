r"""What one does with gradients: products with Jacobians and Hessians, the matrices themselves, and proof that they are right.

For f: ℝⁿ → ℝᵐ with Jacobian J = ∂f/∂x (m × n):

    vjp(f, x, v) = Jᵀ v        one backward sweep
    jvp(f, x, u) = J u         two: Jᵀ v is linear in v, so its own gradient along u is ∂⟨Jᵀ v, u⟩/∂v = J u
    hvp(f, x, u) = H u         two: H = ∂²f/∂x² is the Jacobian of the gradient

`checkpoint` recomputes in the backward sweep instead of storing. `gradcheck` compares Jᵀ v with difference quotients, which
use no gradient code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchgen import random
from scratchgen.autograd import Alias, Function, grad, listed, vjp_through
from scratchgen.device import on_host
from scratchgen.grad_mode import enable_grad, is_grad_enabled
from scratchgen.replay import Note
from scratchgen.tensors import Edge, Tensor, constant, ticks, wrap

# ---------------------------------------------------------------------------------------------------------------------
# Products with derivatives
# ---------------------------------------------------------------------------------------------------------------------


def _tensors(x: Any, name: str) -> tuple[Tensor, ...]:
    xs = tuple(x) if isinstance(x, list | tuple) else (x,)
    for t in xs:
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor or a tuple of tensors, got {type(t).__name__}")
    return xs


def _evaluated(name: str, func: Callable[..., Any], inputs: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], bool, bool]:
    """The inputs at new positions in the graph, the outputs made of them, and whether each of the two was a single tensor."""
    points = _tensors(inputs, f"{name}: inputs")
    xs = tuple(x * 1 if x.requires_grad else x.detach().requires_grad_() for x in points)
    ys = func(*xs)
    outputs = _tensors(ys, f"{name}: the result of func")
    return xs, outputs, isinstance(inputs, Tensor), isinstance(ys, Tensor)


def _zeros_for_none(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(constant(np.zeros_like(x.data)) if g is None else g for g, x in zip(grads, like, strict=True))


def _gradients(
    ys: Sequence[Tensor], xs: Sequence[Tensor], vs: Sequence[Tensor] | None, create_graph: bool
) -> tuple[Tensor, ...]:
    """Jᵀ v, with zeros where a y does not depend on an x."""
    pairs = [(y, None if vs is None else vs[i]) for i, y in enumerate(ys) if y.requires_grad]
    if not pairs:
        return _zeros_for_none([None] * len(xs), xs)
    outputs, cotangents = [y for y, _ in pairs], None if vs is None else [v for _, v in pairs]
    return _zeros_for_none(
        grad(outputs, list(xs), cotangents, create_graph=create_graph, retain_graph=True, allow_unused=True), xs
    )


def _like(name: str, v: Any, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    vs = _tensors(v, name)
    if len(vs) != len(xs) or any(a.shape != b.shape for a, b in zip(vs, xs, strict=True)):
        raise ValueError(f"{name}: expected shapes {[x.shape for x in xs]}, got {[a.shape for a in vs]}")
    return vs


def _one(ts: tuple[Tensor, ...], single: bool) -> Any:
    return ts[0] if single else ts


def vjp(func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False) -> tuple[Any, Any]:
    """(f(x), Jᵀ v).  v has the shape of f(x), and may be left out where that is a scalar."""
    with enable_grad():
        xs, ys, single, _ = _evaluated("vjp", func, inputs)
        vs = None if v is None else _like("vjp: v", v, ys)
        return _one(ys, len(ys) == 1), _one(_gradients(ys, xs, vs, create_graph), single)


def jvp(func: Callable[..., Any], inputs: Any, v: Any, create_graph: bool = False) -> tuple[Any, Any]:
    """(f(x), J v), by differentiating the vector-Jacobian product.  v has the shape of x."""
    with enable_grad():
        xs, ys, _, single = _evaluated("jvp", func, inputs)
        us = _like("jvp: v", v, xs)
        dummies = tuple(constant(np.zeros_like(y.data)).requires_grad_() for y in ys)
        products = _gradients(ys, xs, dummies, True)  # Jᵀ w, linear in w
        return _one(ys, single), _one(_gradients(products, dummies, us, create_graph), single)


def hvp(func: Callable[..., Any], inputs: Any, v: Any, create_graph: bool = False) -> tuple[Tensor, Any]:
    """(f(x), H v) for a scalar function.  v has the shape of x."""
    with enable_grad():
        xs, ys, single, _ = _evaluated("hvp", func, inputs)
        if len(ys) != 1 or ys[0].numel() != 1:
            raise ValueError(f"hvp: expected a scalar function, got a result of shape {ys[0].shape}")
        us = _like("hvp: v", v, xs)
        return ys[0], _one(_gradients(_gradients(ys, xs, None, True), xs, us, create_graph), single)


def jacobian(func: Callable[..., Any], inputs: Any, create_graph: bool = False) -> Any:
    """J[i…, j…] = ∂f(x)_i… / ∂x_j…, of shape f(x).shape + x.shape; a tuple of them for several inputs."""
    with enable_grad():
        xs, ys, single, single_y = _evaluated("jacobian", func, inputs)
        blocks = [_rows(y, xs, create_graph) for y in ys]
        found = tuple(_one(block, single) for block in blocks)
        return found[0] if single_y else found


def _rows(y: Tensor, xs: Sequence[Tensor], create_graph: bool) -> tuple[Tensor, ...]:
    """∂y/∂x for each x, one backward sweep for each element of y."""
    from scratchgen.ops import stack

    rows: list[tuple[Tensor, ...]] = []
    for i in range(y.numel()):
        unit = np.zeros(y.numel(), y.dtype)
        unit[i] = 1
        rows.append(_gradients([y], xs, [constant(unit.reshape(y.shape))], create_graph))
    if not rows:
        return tuple(constant(np.zeros(y.shape + x.shape, x.dtype)) for x in xs)
    return tuple(stack(column).reshape(y.shape + x.shape) for column, x in zip(zip(*rows, strict=True), xs, strict=True))


def hessian(func: Callable[..., Any], inputs: Tensor, create_graph: bool = False) -> Tensor:
    """H[i…, j…] = ∂²f / ∂x_i… ∂x_j… of a scalar function of one tensor, of shape x.shape + x.shape."""

    def gradient(x: Tensor) -> Tensor:
        y = func(x)
        if not isinstance(y, Tensor) or y.numel() != 1:
            raise ValueError(f"hessian: expected a scalar function, got {getattr(y, 'shape', type(y).__name__)}")
        return _gradients([y], [x], None, True)[0]

    if not isinstance(inputs, Tensor):
        raise TypeError(f"hessian: expected one tensor, got {type(inputs).__name__}")
    return jacobian(gradient, inputs, create_graph)


# ---------------------------------------------------------------------------------------------------------------------
# Recompute instead of store
# ---------------------------------------------------------------------------------------------------------------------


class Checkpoint(Function):
    """y = f(x), of which only x is kept; the backward sweep runs f again, as it ran before."""

    def forward(self, *arrays: Any, function: Callable[..., Any], arity: int, note: Note, outputs: tuple[Any, ...]) -> Any:
        self.function, self.arity, self.note = function, arity, note
        self.marks = [_mark(y) for y in outputs]
        return outputs if len(outputs) > 1 else outputs[0]

    def backward(self, *dys: Tensor) -> tuple[Tensor | None, ...]:
        with self.note.again():  # the sweep too: the graph may hold a tensor that f wrote to
            with enable_grad():
                xs = [Alias.apply(x) for x in self.inputs[: self.arity]]
                ys = listed(self.function(*xs))
            if not all(_alike(_mark(y._data), mark) for y, mark in zip(ys, self.marks, strict=True)):
                raise RuntimeError(
                    "checkpoint: expected the function to give the same when the backward sweep runs it again, got another "
                    "result: does it draw random numbers but not through `generator=`, or depend on something that has changed?"
                )
            return vjp_through(ys, list(dys), xs + list(self.inputs[self.arity :]), self.needs_input_grad)


def _mark(y: Any) -> np.ndarray | None:
    """A few elements by which to know a result again; None for one on a device, which would have to be waited for."""
    return y.reshape(-1)[:: max(1, y.size // 256)].copy() if on_host(y) else None


def _alike(mark: np.ndarray | None, other: np.ndarray | None) -> bool:
    """The same but for rounding."""
    if mark is None or other is None or mark.shape != other.shape or mark.dtype.kind not in "fc":
        return mark is other is None or np.array_equal(mark, other)
    tolerance = math.sqrt(np.finfo(mark.dtype).eps)
    scale = np.abs(other[np.isfinite(other)]).max(initial=0)
    return np.allclose(mark, other, rtol=tolerance, atol=float(tolerance * scale), equal_nan=True)


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), with its intermediate arrays recomputed in the backward sweep instead of stored.

    Memory for one more forward pass of `function`. Its parameters, and whatever else it reaches besides its arguments,
    are found by looking at the graph it builds, so every gradient, of any order, is the one it would give by itself.
    What it draws from a generator through the library, and what it writes to tensors in place (running statistics), is
    replayed: the same numbers again, and no second change. Raises RuntimeError where it gives another result all the same.
    Source: Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174.
    """
    if not is_grad_enabled():
        return function(*inputs)
    xs = [x for x in inputs if isinstance(x, Tensor)]

    def call(*xs: Tensor) -> Any:
        tensors = iter(xs)
        return function(*[next(tensors) if isinstance(x, Tensor) else x for x in inputs])

    start = next(ticks)
    with Note() as note:
        random.generator()
        ys = call(*[x if x.edge is None else x.detach().requires_grad_() for x in xs])
    ys = listed(ys, "the checkpointed function's result")
    outside: dict[Edge, Tensor] = {}  # the positions at which the graph of the function enters the graph around it
    seen = {y.node for y in ys if y.node is not None}
    stack = list(seen)
    while stack:
        for edge in stack.pop().edges:
            if edge is None:
                continue
            node, _, shape, dtype = edge
            if node.time < start:
                outside[edge] = wrap(np.broadcast_to(np.zeros((), dtype), shape), edge)
            elif node not in seen:
                seen.add(node)
                stack.append(node)
    return Checkpoint.apply(
        *xs, *outside.values(), function=call, arity=len(xs), note=note, outputs=tuple([y._data for y in ys])
    )


# ---------------------------------------------------------------------------------------------------------------------
# Proof
# ---------------------------------------------------------------------------------------------------------------------


class GradcheckError(AssertionError):
    """A gradient that is not the derivative of its function."""


@dataclass
class Finding:
    """One comparison: a gradient by the chain rule against one by differences."""

    order: int  # 1: the gradient; 2: the gradient of the gradient
    what: str  # which input, and which element or direction
    analytic: float
    numeric: float
    error: float  # |analytic − numeric| / scale
    steps: list[tuple[float, float]] = field(default_factory=list)  # (step, value by differences): the worst element has them


@dataclass
class Report:
    """The verdict of `gradcheck`; true when every comparison agreed. `print` it."""

    name: str
    tolerance: float
    worst: Finding | None = None
    element: Finding | None = None  # the worst of those that look at one element
    compared: int = 0
    failures: list[Finding] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    refusal: str = ""  # the message with which the backward sweep stopped

    def __bool__(self) -> bool:
        return not self.failures and not self.refusal

    @property
    def error(self) -> float:
        """The largest relative error met."""
        return self.worst.error if self.worst else 0.0

    def __str__(self) -> str:
        if self:
            return f"{self.name}: {self.compared} comparisons agree, largest relative error {self.error:.1e}"
        if self.refusal:
            return f"{self.name}: WRONG, {self.refusal}"
        lines = [
            f"{self.name}: WRONG, {len(self.failures)} of {self.compared} comparisons are off by more than {self.tolerance:.0e}"
        ]
        shown = self.element if self.element in self.failures else max(self.failures, key=lambda f: f.error)
        kind = {1: "the gradient", 2: "the second derivative"}[shown.order]
        lines.append(f"  {kind} with respect to {shown.what}")
        lines.append(f"    by the chain rule   {shown.analytic: .10e}")
        lines.append(f"    by differences      {shown.numeric: .10e}     relative error {shown.error:.1e}")
        if shown.steps:
            lines.append("    step of difference   " + "".join(f"{h:>8.0e}" for h, _ in shown.steps))
            lines.append("    difference from chain" + "".join(f"{abs(n - shown.analytic):>8.0e}" for _, n in shown.steps))
        lines += [f"  {text}" for text in self.advice]
        return "\n".join(lines)

    def draw(self, path: str) -> None:
        """The error of the worst element over the step of the differences, as a PNG.

        A right gradient gives a V: truncation, h⁴, falls to the left until rounding, 1/h, rises. A wrong one, a floor.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if self.element is None or not self.element.steps:
            raise ValueError(
                f"draw: expected a check that looked at single elements, got one of {self.compared} comparisons without"
            )
        scale = max(abs(self.element.analytic), abs(self.element.numeric), 1e-300)
        h, errors = zip(*[(h, max(abs(n - self.element.analytic) / scale, 1e-17)) for h, n in self.element.steps], strict=True)
        figure = Figure((5, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="step h", ylabel="relative error")
        axes.plot(h, errors, "o-")
        axes.axhline(self.tolerance, color="tab:red", lw=0.8, ls="--", label="tolerance")
        axes.set_title(f"{self.name}: {self.element.what}", fontsize=9)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=110)


def _central(value: Callable[[float], float], h: float) -> float:
    """f'(0) = (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h + O(h⁴); NaN or infinite where f is not there"""
    return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)


class _Checker:
    """Compares, for f of leaves x and a random cotangent v, the gradient of ⟨v, f(x)⟩ with its differences."""

    STEP = 3e-4  # rounding 2e-16/h and truncation h⁴ are both about 1e-13 of the values

    def __init__(self, report: Report, rng: np.random.Generator, most: int, curve: bool):
        self.report, self.tolerance, self.rng, self.most, self.curve = report, report.tolerance, rng, most, curve
        self.suspect: tuple[Tensor, str, tuple[int, ...]] | None = None  # the worst element, if it is wrong and smooth

    def check(
        self, order: int, evaluate: Callable[[], Sequence[Tensor]], leaves: list[tuple[str, Tensor]], highest: int
    ) -> None:
        """Check the gradient of `evaluate` at the leaves, then, if wanted, the gradient of that gradient."""
        tensors = [t for _, t in leaves]
        with enable_grad():
            ys = evaluate()
        vs = [constant(self.rng.standard_normal(y.shape)) for y in ys]
        with enable_grad():
            analytic = _gradients(evaluate(), tensors, vs, False)
            again = _gradients(evaluate(), tensors, vs, True)

        def value() -> float:
            with enable_grad():  # f may itself ask for gradients
                return math.fsum(float(np.sum(v.data * y.data)) for v, y in zip(vs, evaluate(), strict=True))

        largest = max((float(np.abs(g.data).max()) for g in analytic if g.numel()), default=0.0)
        rough = abs(value())
        self.magnitude = math.fsum(float(np.sum(np.abs(v.data * y.data))) for v, y in zip(vs, ys, strict=True))
        for (name, x), g, kept in zip(leaves, analytic, again, strict=True):
            self._elements(order, name, x, g.data, evaluate, value, largest, rough)
            self._compare(order, f"{name}, kept graph against plain", g.data, kept.data, largest)
        if self.suspect:
            self._trace(evaluate, *self.suspect)
        if all(np.isfinite(g.data).all() for g in analytic):
            self._direction(order, leaves, analytic, value, largest, rough)
        if order > 1 and self.report.failures:
            self.report.advice.append(
                "the gradient is right, its own derivative is not: does backward compute a part of it from arrays, or detached?"
            )
        if order < highest and not self.report.failures:
            for v in vs:
                v.requires_grad_()

            def gradients() -> Sequence[Tensor]:
                return _gradients(evaluate(), tensors, vs, True)

            both = leaves + [(f"the cotangent of output {i}", v) for i, v in enumerate(vs)]
            self.check(order + 1, gradients, both, highest)

    def _elements(
        self, order: int, name: str, x: Tensor, g: np.ndarray, evaluate: Any, value: Any, largest: float, rough: float
    ) -> None:
        """Each element (a random choice of them where there are many): ∂⟨v, f⟩/∂x_i."""
        chosen = range(x.numel()) if x.numel() <= self.most else self.rng.choice(x.numel(), self.most, replace=False)
        failed, worst, numerics = [], None, np.full(x.shape, np.nan)
        for i in map(int, chosen):
            at = tuple(map(int, np.unravel_index(i, x.shape)))
            scale = max(1.0, abs(float(x.data[at])))

            def moved(h: float, at: Any = at, scale: float = scale) -> float:
                return _moved(x, at, h * scale, value)

            analytic = float(g[at])
            floor = self._floor(largest, rough) * scale
            numeric = numerics[at] = self._difference(moved, analytic * scale, self.STEP, floor) / scale
            hidden = self._hidden(moved, analytic * scale, numeric * scale)
            finding, agrees = self._judge(order, f"{name}, element {at}", analytic, numeric, largest, rough, hidden)
            if not agrees:
                failed.append(finding)
            if worst is None or finding.error > worst[0].error:
                worst = finding, at, scale, moved
        if worst is None:
            return
        finding, at, scale, moved = worst
        leads = self.report.element is None or finding.error > self.report.element.error
        if leads:
            self.report.element = finding
        if self.curve or failed:
            finding.steps = [(h, _central(moved, h) / scale) for h in (10.0**-k for k in range(2, 10))]
        if failed:
            sides = [((moved(0.0) - moved(-h)) / h, (moved(h) - moved(0.0)) / h) for h in (1e-4, 1e-6)]
            smooth = self._advise(name, x, failed, finding.steps, sides, evaluate, g, numerics)
            if leads:
                self.suspect = (x, name, at) if smooth else None

    def _floor(self, largest: float, rough: float) -> float:
        """The least scale of an error: less is rounding, unless `_hidden` says otherwise."""
        return max(1e-3 * largest, 1e-6 * rough, 1e-8)

    def _noise(self, h: float) -> float:
        """What rounding the outputs makes of a difference of step h."""
        return 8 * float(np.finfo(np.float64).eps) * self.magnitude / h

    def _difference(self, moved: Callable[[float], float], analytic: float, step: float, floor: float) -> float:
        """f'(0) by differences of the usual step; of a shorter one where that agrees with the chain rule.

        Near the edge of its domain f is not there, or bends too much, over the usual step. A step counts only where f changes
        over it, and where rounding stays below the tolerance: so nothing wrong agrees by shortening.
        """
        numeric = _central(moved, step)
        for k in range(1, 10):
            allowed = self.tolerance * max(abs(analytic), floor)
            if abs(numeric - analytic) <= allowed or not math.isfinite(analytic):
                break
            h = step / 10**k
            if self._noise(h) > allowed:
                break
            shorter = _central(moved, h)
            if not math.isfinite(numeric) or (abs(shorter - analytic) <= allowed and moved(h) != moved(-h)):
                numeric = shorter
        return numeric

    def _hidden(self, moved: Callable[[float], float], analytic: float, numeric: float) -> bool:
        """Is a slope wrong that is so small beside the others that the tolerance, a share of the largest, hides the error?

        If so, differences of longer steps agree with each other far better than with the chain rule.
        """
        gap = abs(numeric - analytic)
        if not gap > max(self.tolerance * max(abs(analytic), abs(numeric)), 4 * self._noise(self.STEP)):
            return False
        found = [_central(moved, self.STEP * w) for w in (1, 4, 16)]
        return max(found) - min(found) < 0.01 * abs(found[1] - analytic)

    def _direction(self, order: int, leaves: Any, analytic: Any, value: Any, largest: float, rough: float) -> None:
        """⟨v, J u⟩ = ⟨Jᵀ v, u⟩ along one random direction u of all inputs together."""
        centres = [x.data.copy() for _, x in leaves]
        us = [self.rng.standard_normal(c.shape) * np.maximum(1, np.abs(c)) for c in centres]
        size = math.sqrt(math.fsum(float(np.sum(u * u)) for u in us)) or 1.0

        def moved(h: float) -> float:
            for (_, x), c, u in zip(leaves, centres, us, strict=True):
                x.data = c + h * u
            with np.errstate(all="ignore"):
                result = value()
            for (_, x), c in zip(leaves, centres, strict=True):
                x.data = c
            return result

        expected = math.fsum(float(np.sum(g.data * u)) for g, u in zip(analytic, us, strict=True))
        floor = self._floor(largest, rough * size)
        numeric = self._difference(moved, expected, self.STEP / max(1.0, size / 4), floor)
        self._judge(order, "all inputs, along a random direction", expected, numeric, largest, rough * size)

    def _compare(self, order: int, what: str, a: np.ndarray, b: np.ndarray, largest: float) -> None:
        """Two analytic gradients that must be the same but for rounding."""
        if a.size:
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                i = int(np.argmax(np.abs(a - b)))
            self._judge(order, what, float(b.reshape(-1)[i]), float(a.reshape(-1)[i]), largest, 0.0)

    def _judge(
        self, order: int, what: str, analytic: float, numeric: float, largest: float, rough: float, hidden: bool = False
    ) -> tuple[Finding, bool]:
        # The scale is the value itself, down to a thousandth of the largest; differences of `rough` have rounding noise.
        scale = max(abs(analytic), abs(numeric), 0.0 if hidden else self._floor(largest, rough))
        error = abs(analytic - numeric) / scale if math.isfinite(analytic) and math.isfinite(numeric) else math.inf
        finding = Finding(order, what, analytic, numeric, error)
        self.report.compared += 1
        if self.report.worst is None or not error <= self.report.worst.error:
            self.report.worst = finding
        agrees = error <= self.tolerance
        if not agrees:
            self.report.failures.append(finding)
        return finding, agrees

    def _advise(
        self, name: str, x: Tensor, failed: list[Finding], steps: Any, sides: Any, evaluate: Any, g: Any, numeric: Any
    ) -> bool:
        """What the pattern of the errors says about their cause; whether the worst element has a derivative at all."""
        advice = self.report.advice
        advice.append(f"{len(failed)} of {min(x.numel(), self.most)} elements of {name} (shape {x.shape}) are off")
        ratios = np.array([f.analytic / f.numeric for f in failed if f.numeric and math.isfinite(f.analytic / f.numeric)])
        (left, right), (nearer_left, nearer_right) = sides  # slopes on either side of the worst element, at two steps
        gap = abs(right - left)  # a kink keeps it as the step shrinks, a jump widens it; curvature closes it
        kink = gap > 1e-2 * max(abs(left), abs(right), 1e-6) and abs(nearer_right - nearer_left) > 0.9 * gap
        values = [n for h, n in steps if 1e-6 < h < 1e-2]
        if kink:
            advice.append(
                f"the slope is {left:.4g} on the left and {right:.4g} on the right: on a kink or a jump; check beside it"
            )
            return False
        if np.ptp(values) > 1e-3 * np.abs(values).max():
            advice.append("the differences do not settle as the step shrinks: is a part of f computed in float32?")
            return False
        if all(f.analytic == 0 for f in failed):
            advice.append("the chain rule gives 0 there: is a term, or the whole path, missing?")
        elif len(ratios) > 1 and np.ptp(ratios) < 1e-3 * abs(ratios.mean()):
            ratio = ratios.mean()
            lengths = [n for n in (*x.shape, x.numel()) if n > 1 and min(abs(ratio - n), abs(1 / ratio - n)) < 1e-3]
            hint = f" ({lengths[0]} is a length of its shape: a sum for a mean?)" if lengths else ""
            advice.append(f"each is {ratio:.4g} times what it should be: look for a factor or a sign{hint}")
        elif np.isfinite(g).all():
            advice.extend(_pattern(x.data, g, numeric, [y.data for y in evaluate()]))
        return True

    def _trace(self, evaluate: Any, x: Tensor, name: str, at: tuple[int, ...]) -> None:
        """Which slopes ∂y_j/∂x_i of the worst element x_i are off: the comparison without the random cotangents."""
        centre = float(x.data[at])
        h = self.STEP * max(1.0, abs(centre))

        def outputs(shift: float) -> list[np.ndarray]:
            return _moved(x, at, shift, lambda: [y.data for y in evaluate()])

        slopes = []  # where, by the chain rule, by differences
        for k, (a, b, c, d) in enumerate(zip(outputs(h), outputs(-h), outputs(2 * h), outputs(-2 * h), strict=True)):
            column = np.asarray((8 * (a - b) - (c - d)) / (12 * h))
            for j in map(int, np.argsort(-np.abs(column), axis=None, kind="stable")[: self.most]):
                to = tuple(map(int, np.unravel_index(j, column.shape)))
                unit = np.zeros(column.shape)
                unit[to] = 1
                (row,) = _gradients([evaluate()[k]], [x], [constant(unit)], False)
                slopes.append((f"output {k} at {to}", float(row.data[at]), float(column[to])))
        size = max((abs(t) for _, *pair in slopes for t in pair if math.isfinite(t)), default=0.0)
        off = [(where, a, n) for where, a, n in slopes if not abs(a - n) <= self.tolerance * size]
        advice = self.report.advice
        if not off:
            advice.append("for a cotangent of a single 1 it is right: is it not linear in the cotangent?")
            return
        where, a, n = max(off, key=lambda slope: abs(slope[1] - slope[2]))
        advice.append(
            f"of element {at} of {name}, which is {centre:.4g}, {len(off)} of {len(slopes)} slopes ∂output/∂input are off:"
        )
        advice.append(f"  {where}: {a:.5g} by the chain rule, {n:.5g} by differences")
        missing = [where for where, a, n in off if a == 0]
        foreign = [where for where, a, n in off if n == 0]
        for elements, text in (
            (missing, "the chain rule has no term for"),
            (foreign, "the chain rule has a term too many for"),
        ):
            if elements:
                advice.append(f"  {text} {', '.join(elements[:4])}{', …' if len(elements) > 4 else ''}")


def _moved(x: Tensor, at: tuple[int, ...], shift: float, value: Callable[[], Any]) -> Any:
    """What `value` is while one element of x is moved."""
    centre = float(x.data[at])
    with x.writing() as array:
        array[at] = centre + shift
    with np.errstate(all="ignore"):  # beyond the edge of its domain f is NaN
        result = value()
    with x.writing() as array:
        array[at] = centre
    return result


def _pattern(x: np.ndarray, analytic: np.ndarray, numeric: np.ndarray, ys: list[np.ndarray]) -> list[str]:
    """One line about how a wrong gradient looks beside the right one, where there is a simple relation."""
    size = np.abs(numeric).max()

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return a.shape == b.shape and bool(np.abs(a - b).max() < 1e-4 * size)

    dims = range(x.ndim)
    for d in dims:
        for e in range(d):
            if same(analytic, numeric.swapaxes(d, e)):
                return [f"it is the right one with dimensions {e} and {d} transposed"]
        if same(analytic, np.flip(numeric, d)):
            return [f"it is the right one reversed along dimension {d}"]
        for shift in (1, -1):
            if same(analytic, np.roll(numeric, shift, d)):
                return [f"it is the right one shifted by {shift} along dimension {d}"]
    gap = analytic - numeric
    factors = [("", np.ones(x.shape)), ("the input times ", x)]
    factors += [(f"output {k} times ", y) for k, y in enumerate(ys) if y.shape == x.shape]
    for words, factor in factors:
        if not factor.all():
            continue
        times = gap / factor
        if same(times, np.full(x.shape, times.mean())) and x.size > 1:
            return [f"each is too large by {words}{times.mean():.4g}: look for such a term"]
        for d in dims:
            if x.shape[d] > 1 and same(times, np.broadcast_to(times.mean(d, keepdims=True), x.shape)):
                number = f"a number that is the same all along dimension {d}"
                return [f"each is off by {words}{number}: look for a sum or a mean over it"]
    return []


def gradcheck(
    f: Callable[..., Any],
    *inputs: Any,
    order: int = 2,
    tolerance: float = 1e-5,
    seed: int = 0,
    elements: int = 24,
    name: str | None = None,
    curve: str | None = None,
    raise_exception: bool = True,
) -> Report:
    r"""Is the gradient of f, and the gradient of that gradient, the derivative?

    f is a function of tensors or a Module, whose parameters are then checked with its inputs; what it returns is one
    tensor or several. Inputs that are floating are checked, in float64, on copies; all others are passed on. With
    random cotangents v (never ones, to which softmax is blind) the analytic Jᵀ v is compared

        element by element with  ∂⟨v, f(x)⟩/∂x_i,      and along a random direction u by  ⟨v, J u⟩ = ⟨Jᵀ v, u⟩,

    both by central differences of fourth order, of shorter steps near the edge of f's domain. f may itself ask for
    gradients (`grad` with `create_graph`), as gradient penalties do. For `order` 2 the same is done to x ↦ Jᵀ v as a
    function of x and v. At most `elements` of each input are compared one by one; the direction covers all of them.

    `curve` names a PNG for the error of the worst element over the step (see `Report.draw`).

    Returns a Report (print it); raises GradcheckError with the same text where a comparison fails, unless told not to.
    """
    if order not in (1, 2):
        raise ValueError(f"gradcheck: expected order 1 or 2, got {order!r}")
    name = name or getattr(f, "__name__", type(f).__name__)
    report = Report(name, tolerance)
    leaves: list[tuple[str, Tensor]] = []
    arguments = []
    for i, x in enumerate(inputs):
        array = x.data if isinstance(x, Tensor) else x
        if isinstance(array, np.ndarray | float | list) and np.asarray(array).dtype.kind == "f":
            x = Tensor(np.asarray(array, np.float64), requires_grad=True)
            leaves.append((f"input {i}", x))
        elif isinstance(array, np.ndarray) and not isinstance(x, Tensor):
            x = Tensor(array)
        arguments.append(x)
    if hasattr(f, "named_parameters"):
        f = copy.deepcopy(f).double()
        leaves += [(f"parameter {key!r}", p) for key, p in f.named_parameters() if p.requires_grad]
    if not leaves:
        raise ValueError(f"gradcheck of {name}: expected at least one floating input or parameter")
    for key, x in leaves:
        if not np.isfinite(x.data).all():
            raise ValueError(f"gradcheck of {name}: expected finite inputs, got NaN or infinity in {key}")

    def evaluate() -> list[Tensor]:
        ys = f(*arguments)
        ys = [y for y in (ys if isinstance(ys, list | tuple) else [ys]) if isinstance(y, Tensor) and y.dtype.kind == "f"]
        for y in ys:
            if y.dtype != np.float64:
                raise TypeError(f"gradcheck of {name}: expected float64 results from float64 inputs, got {y.dtype}")
        if not ys:
            raise TypeError(f"gradcheck of {name}: expected f to return a floating tensor")
        return ys

    with enable_grad():
        once, twice = evaluate(), evaluate()
    if any(not np.array_equal(a.data, b.data, equal_nan=True) for a, b in zip(once, twice, strict=True)):
        raise ValueError(f"gradcheck of {name}: f gives two values for the same inputs; give it a generator seeded inside")
    if any(not np.isfinite(y.data).all() for y in once):
        raise ValueError(f"gradcheck of {name}: f gives NaN or infinity at these inputs, where there is no derivative to check")
    # With a key of its own: inputs drawn from default_rng(seed) would otherwise be the cotangents too, and that hides mistakes.
    rng = np.random.default_rng([*b"cotangents", seed])
    try:
        _Checker(report, rng, elements, curve is not None).check(1, evaluate, leaves, order)
    except RuntimeError as error:  # a gradient of another shape or dtype, or none
        if ".backward" not in str(error):
            raise
        report.refusal = str(error)
    except AttributeError as error:
        if error.name != "_data":
            raise
        kind = type(error.obj).__name__
        report.refusal = (
            f"backward: expected tensors, got {kind}; scratchgen.tensor(…) makes one that has no gradient of its own"
        )
    if curve is not None:
        report.draw(curve)
    if not report and raise_exception:
        raise GradcheckError(str(report))
    return report
