"""Every public name has a row in the catalog, and every row keeps what it promises.

Names first, then each check, for each row (`pytest -k softmax` runs all checks of the rows so called). Shapes that hypothesis
draws stand in `test_catalog_shapes.py`; magnitudes that overflow, kinks and other particular values in
`test_catalog_values.py`; bad calls in `test_catalog_refusals.py`; the command in `test_gradcheck_command.py`.
"""

import copy
import gc
import inspect
import weakref

import numpy as np
import pytest

from scratchgen import calculus, catalog, functional, models, nn, ops
from scratchgen.autograd import Function, Leaf, grad
from scratchgen.catalog import NOT_DIFFERENTIABLE, ROWS, Bound, row
from scratchgen.catalog.row import away, real
from scratchgen.tensors import Tensor, constant
from tests.references import REFERENCES
from tests.strategies import DEEP, normal
from tests.sweeps import CASTS, cases, close, flat, floating, of_floats, strided, swept, transposed

every_row = pytest.mark.parametrize("name", list(ROWS))
SEEDS = range(10 if DEEP else 1)


# ---------------------------------------------------------------------------------------------------------------------
# Names have rows
# ---------------------------------------------------------------------------------------------------------------------


def public_names():
    """Everything the library offers by name that could have a gradient."""
    yield from ops.__all__
    yield from functional.__all__
    yield from (f"nn.{name}" for name in nn.__all__)
    yield from (f"nn.utils.{name}" for name in nn.utils.__all__)
    yield from (f"models.{name}" for name in models.__all__ if not name.endswith("Config"))
    functions = inspect.getmembers(calculus, inspect.isfunction)
    yield from (f"calculus.{name}" for name, f in functions if not name.startswith("_") and f.__module__ == calculus.__name__)
    for name, value in vars(Tensor).items():  # operators and methods; those that are public ops have the op's row
        function = value.fget if isinstance(value, property) else value
        of_an_op = getattr(function, "__module__", "").startswith("scratchgen.ops")
        known = getattr(function, "__name__", "")
        if of_an_op and (known not in ops.__all__ or getattr(ops, known) is not function):
            yield f"Tensor.{name}"


def test_every_public_name_has_a_row_or_a_reason():
    excused = {name for names in NOT_DIFFERENTIABLE.values() for name in names}
    missing = sorted(set(public_names()) - set(ROWS) - excused)
    assert not missing, f"no row in scratchgen/catalog for {missing}"


def test_no_row_and_no_reason_is_for_a_name_that_does_not_exist():
    names = set(public_names()) | {f"Tensor.{name}" for name in vars(Tensor)}
    excused = {name for names in NOT_DIFFERENTIABLE.values() for name in names}
    assert not sorted((set(ROWS) | excused) - names)
    assert not excused & set(ROWS)


def test_a_missing_row_would_be_noticed(monkeypatch):
    monkeypatch.setattr(ops, "__all__", [*ops.__all__, "arctan"])
    monkeypatch.setattr(ops, "arctan", None, raising=False)
    with pytest.raises(AssertionError, match="arctan"):
        test_every_public_name_has_a_row_or_a_reason()


def test_every_row_has_a_reference():
    assert set(REFERENCES) >= set(ROWS)


CALLS = {  # for names without a gradient: arguments of a call that has something to answer
    "logical_not": (np.array([True, False]),),
    "one_hot": (np.array([0, 2]),),
    "arange": (3,),
    "eye": (2,),
    "full": ((2,), 1.5),
    "linspace": (0, 1, 3),
    "randint": (0, 5, (2,)),
    "randperm": (3,),
    "ones": (2,),
    "rand": (2,),
    "randn": (2,),
    "zeros": (2,),
    "bernoulli": (np.array([0.5, 1.0]),),
    "multinomial": (np.array([0.5, 1.0]), 1),
}
METHODS = {  # the same for methods; in place, of a tensor that requires no gradient
    "addcdiv_": (1.0, 2.0),
    "addcmul_": (1.0, 2.0),
    "clamp_": (0.0, 1.0),
    "cumprod_": (0,),
    "cumsum_": (0,),
    "index_add_": (0, np.zeros(1, np.int64), Tensor([[1.0, 2.0]])),
    "lerp_": (1.0, 0.5),
    "masked_fill_": (np.ones((2, 2), bool), 1.0),
    "new_full": ((2,), 1.5),
    "new_tensor": ([1, 2],),
    "scatter_add_": (0, np.zeros((1, 2), np.int64), Tensor([[1.0, 2.0]])),
    "__setitem__": (0, 1.5),
    **{f"__i{name}__": (1.5,) for name in "add mul sub truediv".split()},
    **{f"{name}_": (1.5,) for name in "add atan2 div mul pow sub".split()},
    **{f"new_{name}": (2,) for name in "empty ones zeros".split()},
}


@pytest.mark.parametrize(
    "name", [n for names in NOT_DIFFERENTIABLE.values() for n in names if not n.startswith(("nn.", "calculus.", "models."))]
)
def test_what_has_no_row_has_no_gradient(name):
    x = Tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    in_place = name in NOT_DIFFERENTIABLE["changes a tensor in place, which no graph records"]
    in_place = in_place or (name.startswith("Tensor.") and name.endswith("_") and not name.endswith("__"))
    if in_place or name.startswith("Tensor.new_"):
        method = name.removeprefix("Tensor.")
        x = x.detach() + 1 if in_place else x
        y = getattr(x, method)(*METHODS.get(method, ()))
        y = x if method == "__setitem__" else y  # a statement, which has no value
        assert (y is x) == in_place
    elif name.startswith("Tensor."):
        method = name.removeprefix("Tensor.")
        x = x > 0 if method in ("__and__", "__or__", "__xor__", "__rand__", "__ror__", "__rxor__", "__invert__") else x + 1
        y = getattr(x, method)(*([x] if method.startswith("__") and method != "__invert__" else []))
    else:
        two = name in {"eq", "ge", "gt", "le", "lt", "ne", "logical_and", "logical_or", "isclose", "allclose"}
        function = getattr(ops, name, None) or getattr(functional, name)
        y = function(*CALLS.get(name, (x, x + 1) if two else (x, 3.0) if name == "full_like" else (x,)))
    if name == "allclose":
        assert y is False
        return
    assert not y.requires_grad
    if name in NOT_DIFFERENTIABLE["gives booleans"]:
        assert y.dtype == np.bool_
    if name in NOT_DIFFERENTIABLE["gives whole numbers"]:
        assert y.dtype.kind == "i" or (y.data == np.floor(y.data)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Checks of rows
# ---------------------------------------------------------------------------------------------------------------------


@every_row
def test_gradient(name):
    """Gradient and second derivative against differences of fourth order, with random cotangents."""
    for seed in SEEDS if not name.startswith("models.") else [0]:  # (networks have kinks that draws cannot avoid)
        for report in catalog.check(ROWS[name], seed=seed):
            assert report, str(report)
            assert report.compared or "0" in report.name


@every_row
def test_value(name):
    """The value against the same written a second time."""
    for case, f, arrays in cases(name):
        function = REFERENCES[name]
        if isinstance(f, Bound):
            module = f.module

            def function(*args, **options):
                return REFERENCES[name](module, *args, **options)  # noqa: B023 (called at once)

        with np.errstate(all="ignore"):
            expected = case.call(function, *copy.deepcopy(arrays))
        expected = list(flat(expected))
        found = f(*map(Tensor, arrays))
        assert len(found) == len(expected), case
        for y, e in zip(found, expected, strict=True):
            close(y.data, e, 1e-10, f"{name}{case}")


@every_row
def test_jvp(name):
    """J u by differentiating Jᵀ v: adjoint to Jᵀ v, and equal to differences of f along u."""
    if ROWS[name].order == 0:
        pytest.skip(ROWS[name].why)
    rng = np.random.default_rng(2)
    for case, f, arrays in cases(name):
        g, floats = of_floats(f, arrays)
        if not floats:
            continue
        us = [rng.standard_normal(x.shape) for x in floats]
        ys, products = calculus.jvp(g, tuple(map(Tensor, floats)), tuple(map(Tensor, us)))
        vs = [rng.standard_normal(y.shape) for y in ys]
        _, grads = calculus.vjp(g, tuple(map(Tensor, floats)), [Tensor(v) for v in vs])
        left = sum(np.vdot(v, p.data) for v, p in zip(vs, products, strict=True))
        right = sum(np.vdot(u, x.data) for u, x in zip(us, grads, strict=True))
        size = sum(np.linalg.norm(v) * np.linalg.norm(p.data) for v, p in zip(vs, products, strict=True))
        assert abs(left - right) <= 1e-12 * (size + 1), case

        def along(h, g=g, floats=floats, us=us):
            return [y.data for y in g(*(Tensor(x + h * u) for x, u in zip(floats, us, strict=True)))]

        h = 1e-4
        for p, a, b, c, d in zip(products, along(h), along(-h), along(2 * h), along(-2 * h), strict=True):
            numeric = (8 * (a - b) - (c - d)) / (12 * h)
            np.testing.assert_allclose(
                p.data, numeric, rtol=1e-6, atol=1e-8 * (1 + np.abs(a).max(initial=0)), err_msg=str(case)
            )


@pytest.mark.filterwarnings("ignore:Casting complex values:numpy.exceptions.ComplexWarning")  # running statistics are real
@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n].analytic])
def test_complex_step(name):
    """J u = Im f(x + i h u) / h, exact to rounding for h = 1e−20: a second oracle, without subtraction."""
    rng = np.random.default_rng(3)
    h = 1e-20
    for case, f, arrays in cases(name):
        g, floats = of_floats(f, arrays)
        if not floats or name in CASTS:
            continue
        us = [rng.standard_normal(x.shape) for x in floats]
        _, products = calculus.jvp(g, tuple(map(Tensor, floats)), tuple(map(Tensor, us)))
        ys = g(*(Tensor(x + 1j * h * u) for x, u in zip(floats, us, strict=True)))
        for p, y in zip(products, ys, strict=True):
            close(p.data, y.data.imag / h, 1e-11, f"{name}{case}")


@pytest.mark.parametrize(
    "name", [n for n in ROWS if n not in CASTS | {"models.VAE"}]
)  # (the VAE's noise in float32 is other noise)
def test_float32(name):
    """float32 in, float32 out, value and gradient; both near those of float64."""
    for case, f, arrays in cases(name):
        arrays = [x.astype(np.float32).astype(np.float64) if floating(x) else x for x in arrays]
        low, high = swept(f, arrays, dtype=np.float32), swept(f, arrays)
        high = swept(high.f, arrays, cotangents=[constant(v.data.astype(np.float64)) for v in low.vs])
        for a, b in zip(low.outputs, high.outputs, strict=True):
            assert a.dtype == (np.float32 if b.dtype.kind == "f" else b.dtype), case
            close(a.data, b.data, 1e-4, f"{name}{case}: value")
        for x, a, b in zip(low.leaves, low.grads, high.grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == np.float32 and a.shape == x.shape, case
                close(a.data, b.data, 1e-4, f"{name}{case}: gradient", least=0.02)


@every_row
def test_inputs_and_cotangents_are_untouched(name):
    for case, f, arrays in cases(name):
        run = swept(f, arrays)
        held = [x.data for x in run.xs + run.vs] + [p.data for p in run.leaves]
        before = [x.tobytes() for x in held]
        again = run.f(*run.xs)
        grads = (
            grad([y for y in again if y.requires_grad], run.leaves, run.vs, allow_unused=True, create_graph=True)
            if run.ys
            else ()
        )
        assert [x.tobytes() for x in held] == before, case
        for a, b in zip(run.grads, grads, strict=False):
            if a is not None:
                close(b.data, a.data, 1e-10, f"{name}{case}: gradient with its graph kept")


@every_row
def test_gradients_own_their_memory(name):
    """A gradient handed out is no view of a cotangent, an input, an output, or another gradient."""
    for case, f, arrays in cases(name):
        run = swept(f, arrays)
        grads = [g.data for g in run.grads if g is not None]
        others = [t.data for t in run.xs + run.vs + run.leaves + list(run.outputs)]
        for i, g in enumerate(grads):
            assert 0 not in g.strides or g.size <= 1, f"{case}: an expanded view"
            for other in others + grads[:i]:
                assert not np.may_share_memory(g, other), case


def graph(ys):
    """All nodes behind ys but the leaves."""
    seen, stack = set(), [y.node for y in ys]
    while stack:
        node = stack.pop()
        if node not in seen and not isinstance(node, Leaf):
            seen.add(node)
            stack += [edge[0] for edge in node.edges or () if edge is not None]
    return seen


def saved(node):
    """The arrays that a node holds for its backward."""
    yield from (a for a in vars(node).values() if isinstance(a, np.ndarray))
    yield from getattr(node, "_outputs", None) or ()
    yield from (t.data for t in getattr(node, "_inputs", None) or () if isinstance(t, Tensor))


@every_row
def test_nothing_is_retained_after_the_sweep(name):
    """Nodes and the arrays they saved die with the sweep, by reference counts alone."""
    for case, f, arrays in cases(name):
        xs = [Tensor(x, requires_grad=floating(x)) for x in arrays]
        leaves = [x for x in xs if x.requires_grad] + (list(f.parameters()) if isinstance(f, nn.Module) else [])
        owned = {id(t.data) for t in xs + leaves}
        if isinstance(f, nn.Module):
            owned |= {id(b.data) for b in f.buffers()}
        gc.disable()
        try:
            ys = [y for y in f(*xs) if y.requires_grad]
            if not ys or all(y.is_leaf for y in ys):
                continue
            nodes = graph(ys)
            roots = {id(y.node) for y in ys}
            every = [weakref.ref(node) for node in nodes]
            interior = [weakref.ref(node) for node in nodes if id(node) not in roots]
            buffers = [weakref.ref(a) for node in nodes for a in saved(node) if id(a) not in owned and id(a.base) not in owned]
            del nodes
            grads = grad(ys, leaves, [constant(np.ones(y.shape, y.dtype)) for y in ys], allow_unused=True)
            assert not [ref() for ref in interior if ref() is not None], f"{case}: nodes outlive the sweep"
            del ys
            assert not [ref() for ref in every if ref() is not None], f"{case}: nodes outlive their tensors"
            assert not [ref().shape for ref in buffers if ref() is not None], f"{case}: saved arrays outlive the sweep"
            assert len(grads) == len(leaves)
        finally:
            gc.enable()


@every_row
def test_same_bits_twice(name):
    for (case, f, arrays), (_, again, same) in zip(cases(name), cases(name), strict=True):
        a, b = swept(f, arrays), swept(again, same)
        for x, y in zip([*a.outputs, *a.grads], [*b.outputs, *b.grads], strict=True):
            assert (x is None and y is None) or x.data.tobytes() == y.data.tobytes(), case


@every_row
@pytest.mark.parametrize("layout", [transposed, strided])
def test_layout_in_memory_does_not_matter(name, layout):
    for case, f, arrays in cases(name):
        plain = swept(f, arrays)
        other = swept(f, arrays, wrap=lambda x: constant(layout(x)), cotangents=[constant(layout(v.data)) for v in plain.vs])
        for a, b in zip([*other.outputs, *other.grads], [*plain.outputs, *plain.grads], strict=True):
            if b is not None:
                close(a.data, b.data, 1e-11, f"{name}{case}")


@pytest.mark.parametrize(
    "convert",
    [lambda x: ops.cast(x, np.float64), lambda x: x.to(np.float64), lambda x: x.double(), lambda x: x.sum(0, dtype=np.float64)],
)
def test_casts_return_the_gradient_in_the_dtype_they_came_from(convert):
    x = Tensor(normal((3, 2), 0).astype(np.float32), requires_grad=True)
    y = convert(x)
    v = Tensor(normal(y.shape, 1))
    (g,) = grad(y, x, v)
    assert y.dtype == np.float64 and g.dtype == np.float32
    np.testing.assert_array_equal(g.data, np.broadcast_to(v.data, x.shape).astype(np.float32))
    z = Tensor(normal(3, 2), requires_grad=True)
    (g,) = grad(z.float(), z, Tensor(normal(3, 3).astype(np.float32)))
    assert g.dtype == np.float64 and g.data.tolist() == normal(3, 3).astype(np.float32).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# The checks can fail
# ---------------------------------------------------------------------------------------------------------------------


class Slip(Function):
    """y = x², with a gradient that is off by one per cent."""

    def forward(self, x):
        return x * x

    def backward(self, dy):
        (x,) = self.inputs
        return dy * x * 2.02


class View(Function):
    """y = x, whose node keeps itself alive: a cycle."""

    def forward(self, x):
        self.me = self
        return x.copy()

    def backward(self, dy):
        return dy

    def release(self, behind):
        pass


class Scribble(Function):
    """y = 2x, computed in the memory of its input."""

    def forward(self, x):
        x.setflags(True)
        x *= 2
        return x.copy()

    def backward(self, dy):
        return dy * 2


@pytest.mark.parametrize(
    "fault, test",
    [
        (Slip, test_gradient),
        (Slip, test_jvp),
        (View, test_nothing_is_retained_after_the_sweep),
        (Scribble, test_inputs_and_cotangents_are_untouched),
    ],
)
def test_a_planted_fault_is_found(monkeypatch, fault, test):
    monkeypatch.setitem(ROWS, "planted", row("planted", catalog.case(real(3)), target=lambda x: fault.apply(x)))
    with pytest.raises(AssertionError):
        test("planted")


def test_a_value_off_by_a_millionth_is_found(monkeypatch):
    monkeypatch.setitem(ROWS, "exp", row("exp", catalog.case(real(3)), target=lambda x: ops.exp(x) * (1 + 1e-6)))
    with pytest.raises(AssertionError):
        test_value("exp")


def test_draws_keep_clear_of_kinks():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = away(20, kinks=(-0.5, 0.5)).sample(rng)
        assert min(np.abs(x - 0.5).min(), np.abs(x + 0.5).min()) > 0.04
