"""Every public name has a row in the catalog, and every row keeps what it promises.

Names first; then each check, for each row (`pytest -k softmax` runs all checks of the rows so called); then shapes that
hypothesis draws, magnitudes that overflow, the points where there is no derivative, and bad calls.
"""

import copy
import gc
import inspect
import string
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kernels
from scratchgen import __main__ as cli
from scratchgen import calculus, catalog, functional, models, nn, ops
from scratchgen import functional as F
from scratchgen.catalog import NOT_DIFFERENTIABLE, ROWS, Bound, of, row
from scratchgen.catalog.row import away, real
from scratchgen.ops import operands
from scratchgen.tensor import Function, Leaf, Tensor, constant, grad
from tests import strategies
from tests.references import REFERENCES
from tests.strategies import DEEP, examples, normal, seeds

every_row = pytest.mark.parametrize("name", list(ROWS))
CASTS = {"cast", "Tensor.to", "Tensor.cpu", "Tensor.float", "Tensor.double"}  # what changes dtypes is tested by itself
SEEDS = range(10 if DEEP else 1)


def floating(array):
    return array.dtype.kind == "f"


def cases(name, seed=0):
    return ROWS[name].drawn(seed)


def swept(f, arrays, *, seed=1, wrap=Tensor, cotangents=None, dtype=np.float64):
    """One forward pass and one backward sweep with random cotangents: inputs, leaves, outputs, cotangents, gradients."""
    xs = [wrap(x.astype(dtype) if floating(x) else x) for x in arrays]
    leaves = [x.requires_grad_() for x in xs if floating(x)]
    if isinstance(f, nn.Module):
        f = copy.deepcopy(f).to(dtype)
        leaves += f.parameters()
    outputs = f(*xs)
    ys = [y for y in outputs if y.requires_grad]
    rng = np.random.default_rng(seed)
    vs = [constant(np.asarray(rng.standard_normal(y.shape), y.dtype)) for y in ys] if cotangents is None else cotangents
    grads = list(grad(ys, leaves, vs, allow_unused=True)) if ys else [None] * len(leaves)
    return SimpleNamespace(f=f, xs=xs, leaves=leaves, outputs=outputs, ys=ys, vs=vs, grads=grads)


def of_floats(f, arrays):
    """f as a function of its floating inputs alone, and these."""
    floats = [x for x in arrays if floating(x)]

    def g(*given):
        rest = iter(given)
        return [y for y in f(*(next(rest) if floating(x) else Tensor(x) for x in arrays)) if y.dtype.kind in "fc"]

    return g, floats


def close(a, b, rtol, what="", least=1e-3):
    """Equal but for `rtol` of the largest magnitude, or of `least`."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, not {b.shape}"
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=least))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale, err_msg=str(what))


# ---------------------------------------------------------------------------------------------------- names have rows


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
        given = getattr(function, "__module__", "").startswith("scratchgen.ops")
        known = getattr(function, "__name__", "")
        if given and (known not in ops.__all__ or getattr(ops, known) is not function):
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
    "lerp_": (1.0, 0.5),
    "masked_fill_": (np.ones((2, 2), bool), 1.0),
    "new_full": ((2,), 1.5),
    "new_tensor": ([1, 2],),
    "scatter_add_": (0, np.zeros((1, 2), np.int64), Tensor([[1.0, 2.0]])),
    **{f"{name}_": (1.5,) for name in "add atan2 div mul pow sub".split()},
    **{f"new_{name}": (2,) for name in "empty ones zeros".split()},
}


@pytest.mark.parametrize(
    "name", [n for names in NOT_DIFFERENTIABLE.values() for n in names if not n.startswith(("nn.", "calculus."))]
)
def test_what_has_no_row_has_no_gradient(name):
    x = Tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    if name.startswith("Tensor.") and name.endswith("_") and not name.endswith("__") or name.startswith("Tensor.new_"):
        method = name.removeprefix("Tensor.")
        x = x.detach() + 1 if name.endswith("_") else x
        y = getattr(x, method)(*METHODS.get(method, ()))
        assert (y is x) == name.endswith("_")
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


# ------------------------------------------------------------------------------------------------------ checks of rows


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


def flat(ys):
    if isinstance(ys, list | tuple):
        for y in ys:
            yield from flat(y)
    else:
        yield np.asarray(ys)


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


def transposed(x):
    """In column order."""
    return np.array(x, order="F")


def strided(x):
    """Every other element of something larger, the last dimension backwards."""
    room = np.full([2 * n for n in x.shape], 7, x.dtype)
    view = room[(*[slice(None, None, 2)] * (x.ndim - 1), slice(None, None, -2))] if x.ndim else room
    view[...] = x
    return view


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


# ------------------------------------------------------------------------------------------- the checks can fail


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

    def release(self):
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


# ------------------------------------------------------------------------------------------------ the command


def test_gradcheck_command_prints_a_line_per_row(capsys):
    assert catalog.main(["softmax", "Linear", "F.elu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["softmax", "nn.Linear", "elu", "3"]
    assert all(line.endswith("ok") for line in lines[:3])
    assert len({line.index("comparisons") for line in lines[:3]}) == 1


@pytest.mark.parametrize(
    "name, words", [("sofmax", "softmax"), ("nn.Linaer", "nn.Linear"), ("argmax", "whole numbers"), ("no.py:f", "no file")]
)
def test_gradcheck_command_answers_an_unknown_name_in_a_sentence(capsys, name, words):
    assert catalog.main([name]) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and err.count("\n") == 1


USER_FILE = '''
import numpy as np
from scratchgen import nn, ops
from scratchgen.tensor import Function

def swish(x):
    return x * ops.sigmoid(x)

swish.inputs = lambda rng: rng.standard_normal((2, 3))

class Cube(Function):
    """y = x³, with the gradient of y = 1.5 x²"""
    def forward(self, x):
        return x**3
    def backward(self, dy):
        (x,) = self.inputs
        return dy * x * 3

def Cube_inputs(rng):
    return (rng.standard_normal(3),)

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
    def forward(self, x, n):
        return self.inner(x) * n

twice = Twice()
Twice_inputs = twice_inputs = (np.ones((1, 2)), np.array([2]))

def lonely(x):
    return x
'''


def test_gradcheck_command_checks_the_users_own_file(capsys, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(USER_FILE)
    assert catalog.main([f"{path}:swish", f"{path}:Twice", f"{path}:twice"]) == 0
    assert catalog.main([f"{path}:Cube"]) == 1
    out = capsys.readouterr().out
    assert "Cube: WRONG" in out and "by the chain rule" in out
    assert catalog.main([f"{path}:lonely"]) == 2
    assert "lonely_inputs(rng)" in capsys.readouterr().err
    assert catalog.main([f"{path}:swich"]) == 2
    assert "did you mean swish" in capsys.readouterr().err


BROKEN_FILE = """
import numpy as np
from scratchgen import nn
from scratchgen.tensor import Function

number = 5

def none(x):
    return None

def raises(x):
    return {}["key"]

def product(x):
    return x @ x

none.inputs = raises.inputs = product.inputs = np.ones((2, 3))

def drawn(x):
    return x

def drawn_inputs(rng):
    return rng.normals(3)

def forgotten(x):
    return x

def forgotten_inputs(rng):
    rng.standard_normal(3)

class Needs(nn.Module):
    def __init__(self, width):
        super().__init__()

Needs_inputs = np.ones(3)

class Unfit(Function):
    def forward(self, x):
        return x * 2
    def backward(self, dy):
        return dy.sum()

Unfit_inputs = np.ones(3)
"""


@pytest.mark.parametrize(
    "name, words",
    [
        (":number", "'number' in {path} is of type int, not a function, op or Module."),
        (":none", "TypeError: gradcheck of none: expected f to return a floating tensor"),
        (":raises", "raises: KeyError: 'key' (line 12 of {path})"),
        (":product", "matmul: expected inner lengths that agree, got shapes (2, 3) and (2, 3) (line 15 of {path})"),
        (":drawn", "AttributeError: 'numpy.random._generator.Generator' object has no attribute 'normals' (line 23 of {path})"),
        (":forgotten", "forgotten_inputs(rng) returned None: expected an array, or a tuple of arrays."),
        (":Needs", "TypeError: Needs.__init__() missing 1 required positional argument: 'width'"),
        ("", "expected {path}:NAME, got no name; did you mean none, raises, product, drawn, forgotten, Needs?"),
        (":", "expected {path}:NAME, got no name; did you mean"),
    ],
)
def test_gradcheck_command_says_in_a_sentence_what_it_cannot_check(capsys, tmp_path, name, words):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN_FILE)
    assert catalog.main([f"{path}{name}"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and words.format(path=path) in err and err.startswith("gradcheck: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("\nimport nosuch", "No module named 'nosuch' (line 2 of "),
        ("1 / 0", "line 1"),
    ],
)
def test_gradcheck_command_and_a_file_that_does_not_run(capsys, tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert catalog.main([f"{path}:f"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and words in err


def test_gradcheck_command_takes_a_gradient_of_another_shape_for_wrong(capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN_FILE)
    assert catalog.main([f"{path}:Unfit"]) == 1
    out = capsys.readouterr().out
    assert "Unfit: WRONG, Unfit.backward: a gradient of shape () does not fit an input of shape (3,)" in out


def test_gradcheck_command_draws_the_curve_and_stops_at_the_first_order(capsys, tmp_path):
    path, picture = tmp_path / "own.py", tmp_path / "curve.png"
    path.write_text(USER_FILE)
    assert cli.main(["gradcheck", f"{path}:swish", "--order", "1", "--curve", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert f"{6 + 1 + 1} comparisons" in capsys.readouterr().out
    for names in ([], ["softmax"], [f"{path}:swish", f"{path}:Twice"], [f"{path}:swish", "softmax"]):
        assert catalog.main(names, curve=str(picture)) == 2
        assert "--curve draws one function" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the table, by hypothesis


def backwards(x):
    """The same numbers, read from the end."""
    return np.flip(x).copy()[(slice(None, None, -1),) * x.ndim]


def repeated(x):
    """Rows that lie in memory once, where they are equal."""
    same = x.ndim > 0 and len(x) > 0 and (x == x[:1]).all()
    return np.broadcast_to(x[:1].copy(), x.shape) if same else x.copy()


LAYOUTS = [np.copy, transposed, strided, backwards, repeated]
SMOOTH = [n for n in ROWS if ROWS[n].order and n not in CASTS and not n.startswith("models.")]  # (networks have kinks)


@examples(150)
@given(st.sampled_from(SMOOTH), seeds, st.data())
def test_any_row_at_any_draw_in_any_layout(name, seed, data):
    """⟨v, J u⟩ = ⟨Jᵀ v, u⟩ with J u by differences, wherever the row draws, however its arguments lie in memory."""
    one = data.draw(st.sampled_from(ROWS[name].cases))
    rng = np.random.default_rng(seed)
    f, arrays = one.bound(ROWS[name].target, rng, ROWS[name].seeded), one.drawn(rng)
    arrays = [data.draw(st.sampled_from(LAYOUTS))(x) for x in arrays]
    run = swept(f, arrays, seed=rng, wrap=lambda x: constant(x[...]))
    floats = [x for x in arrays if floating(x)]
    us = [rng.uniform(-1, 1, x.shape) for x in floats]

    def value(h):
        moved = iter([x + h * u for x, u in zip(floats, us, strict=True)])
        outputs = f(*(Tensor(next(moved) if floating(x) else x) for x in arrays))
        ys = [y for y, before in zip(outputs, run.outputs, strict=True) if before.requires_grad]
        return sum(np.vdot(v.data, y.data) for v, y in zip(run.vs, ys, strict=True))

    pairs = list(zip(run.grads, us, strict=False))  # parameters of a layer stay where they are
    expected = sum(np.vdot(g.data, u) for g, u in pairs if g is not None)
    size = sum(np.linalg.norm(g.data) * np.linalg.norm(u) for g, u in pairs if g is not None)
    if run.ys:
        noise = 1e-11 * sum(np.abs(v.data * y.data).sum() for v, y in zip(run.vs, run.ys, strict=True))
        assert abs(calculus._central(value, 1e-4) - expected) <= 1e-7 * size + noise + 1e-10, f"{name}{one}"


def elementwise(name):
    """Is it a function of one array that takes each element by itself?"""
    whole = [one for one in ROWS[name].cases if len(one.args) == 1 and not one.options and one.settings is None]
    for one in whole:
        x, *others = one.drawn(np.random.default_rng(0)) or [np.zeros(())]
        if not others and x.ndim == 2 and x.size and floating(x):
            f = one.bound(ROWS[name].target, np.random.default_rng(0))
            y, moved = f(Tensor(x))[0].data, f(Tensor(np.where(np.arange(x.size).reshape(x.shape), x.max(), x)))[0].data
            if y.shape == x.shape and moved.flat[0] == y.flat[0]:
                return one
    return None


ELEMENTWISE = {
    name: one
    for name in ops.__all__ + functional.__all__
    if name in ROWS and name not in ("tril", "triu") and (one := elementwise(name))
}


def test_the_elementwise_rows_are_found():
    assert {"exp", "tanh", "relu", "gelu", "elu", "mish", "logsigmoid", "sqrt", "erf"} <= set(ELEMENTWISE)
    assert not {"sum", "normalize", "norm", "var"} & set(ELEMENTWISE)


@examples(150)
@given(st.sampled_from(sorted(ELEMENTWISE)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3), seeds, st.data())
def test_elementwise_rows_of_any_shape_are_one_element_at_a_time(name, shape, seed, data):
    """0-d, empty, of size-1 axes, strided: value and gradient are those of each number by itself."""
    one, rng = ELEMENTWISE[name], np.random.default_rng(seed)
    n = int(np.prod(shape))
    drawn = np.concatenate([np.zeros(0)] + [one.drawn(rng)[0].ravel() for _ in range(-(-n // 6))])[:n]
    f = one.bound(ROWS[name].target, rng)
    layout = data.draw(st.sampled_from(LAYOUTS))
    run = swept(f, [layout(drawn.reshape(shape))], seed=rng, wrap=lambda x: constant(x[...]))
    each = [
        swept(f, [np.array(x)], cotangents=[constant(np.array(v))]) for x, v in zip(drawn, run.vs[0].data.ravel(), strict=True)
    ]
    assert run.ys[0].shape == run.grads[0].shape == shape
    close(run.ys[0].data.ravel(), np.array([e.ys[0].item() for e in each]), 1e-14)
    close(run.grads[0].data.ravel(), np.array([e.grads[0].item() for e in each]), 1e-14)


# ------------------------------------------------------------------------------------------------ shapes, by hypothesis


def summed_back(g, shape):
    """Σ over the copies that broadcasting made, by counting where each came from."""
    came_from = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape), g.shape)
    return np.bincount(came_from.ravel(), g.ravel(), int(np.prod(shape))).reshape(shape)


PARTIALS = {  # y, ∂y/∂a, ∂y/∂b
    "add": lambda a, b: (a + b, 1 + 0 * b, 1 + 0 * a),
    "sub": lambda a, b: (a - b, 1 + 0 * b, -1 + 0 * a),
    "mul": lambda a, b: (a * b, b, a),
    "div": lambda a, b: (a / b, 1 / b, -a / b**2),
    "pow": lambda a, b: (a**b, b * a ** (b - 1), a**b * np.log(a)),
    "logaddexp": lambda a, b: (np.logaddexp(a, b), 1 / (1 + np.exp(b - a)), 1 / (1 + np.exp(a - b))),
    "maximum": lambda a, b: (np.maximum(a, b), (a > b) + 0.5 * (a == b), (b > a) + 0.5 * (a == b)),
    "minimum": lambda a, b: (np.minimum(a, b), (a < b) + 0.5 * (a == b), (b < a) + 0.5 * (a == b)),
}


@pytest.mark.parametrize("name", PARTIALS)
@examples(25)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3), seeds)
def test_broadcasting(name, shapes, seed):
    """Also with ties, which `maximum` and `minimum` share in halves: values are whole quarters."""
    a, b = (np.exp(np.round(4 * normal(s, seed + i)) / 4) for i, s in enumerate(shapes.input_shapes))
    run = swept(lambda x, y: [getattr(ops, name)(x, y)], [a, b])
    value, da, db = PARTIALS[name](a, b)
    close(run.ys[0].data, value, 1e-13)
    for g, x, slope in zip(run.grads, (a, b), (da, db), strict=True):
        close(g.data, summed_back(np.broadcast_to(run.vs[0].data * slope, value.shape), x.shape), 1e-12)


def _choice(x, axis):
    hit = x == x.max(axis, keepdims=True)
    return hit / hit.sum(axis, keepdims=True)


SLOPES = {  # value, and ∂y/∂x for each x, reduced over an axis
    "sum": lambda x, axis, n: (x.sum(axis), 1.0),
    "mean": lambda x, axis, n: (x.mean(axis), 1 / n),
    "amax": lambda x, axis, n: (x.max(axis), _choice(x, axis)),
    "amin": lambda x, axis, n: (x.min(axis), _choice(-x, axis)),
    "norm": lambda x, axis, n: (
        np.sqrt((x * x).sum(axis)),
        x / np.where(x.any(axis, keepdims=True), np.sqrt((x * x).sum(axis, keepdims=True)), 1),
    ),
    "logsumexp": lambda x, axis, n: (np.log(np.exp(x).sum(axis)), np.exp(x) / np.exp(x).sum(axis, keepdims=True)),
    "var": lambda x, axis, n: (x.var(axis, ddof=1), 2 * (x - x.mean(axis, keepdims=True)) / (n - 1)),
}


@pytest.mark.parametrize("name", SLOPES)
@examples(25)
@given(strategies.reductions(), seeds)
def test_reductions(name, drawn, seed):
    """Over any dims of any shape, with ties and zeros: values are whole halves."""
    shape, dim, keepdim = drawn
    x = np.round(2 * normal(shape, seed)) / 2
    axis = tuple(range(x.ndim)) if dim is None or dim == () else tuple(d % max(x.ndim, 1) for d in np.atleast_1d(dim))
    axis = axis if x.ndim else ()
    n = int(np.prod([shape[d] for d in axis]))
    if (name in ("mean", "amax", "amin", "logsumexp") and n == 0) or (name == "var" and n < 2):
        return  # nothing to choose from; NaN or −∞, tested elsewhere
    run = swept(lambda t: [getattr(ops, name)(t, dim=dim, keepdim=keepdim)], [x])
    value, slope = SLOPES[name](x, axis, n)
    kept = tuple(1 if d in axis else m for d, m in enumerate(shape))
    close(run.ys[0].data, np.reshape(value, kept) if keepdim else value, 1e-13)
    close(run.grads[0].data, np.broadcast_to(run.vs[0].data.reshape(kept) * slope, shape), 1e-12)


@examples(60)
@given(strategies.products(), seeds)
def test_matmul_shapes(shapes, seed):
    a, b = (normal(s, seed + i) for i, s in enumerate(shapes))
    try:
        value = np.matmul(a, b)
    except ValueError:  # a vector beside a stack of another depth
        with pytest.raises(ValueError, match="matmul: expected"):
            ops.matmul(Tensor(a), Tensor(b))
        return
    run = swept(lambda x, y: [ops.matmul(x, y)], [a, b])
    close(run.ys[0].data, value, 1e-13)
    A, B = a if a.ndim > 1 else a[None, :], b if b.ndim > 1 else b[:, None]
    V = run.vs[0].data.reshape((A @ B).shape)
    for g, x, full in zip(run.grads, (a, b), (V @ np.swapaxes(B, -1, -2), np.swapaxes(A, -1, -2) @ V), strict=True):
        close(g.data, summed_back(full, x.shape if x.ndim > 1 else (A, B)[x is b].shape).reshape(x.shape), 1e-12)


@examples(100)
@given(strategies.indexed(), seeds)
def test_index_expressions(drawn, seed):
    """Any expression NumPy accepts; where it names an element twice, gradients add up."""
    shape, key = drawn
    x = normal(shape, seed)
    run = swept(lambda t: [t[key]], [x])
    np.testing.assert_array_equal(run.outputs[0].data, x[key])
    expected = np.zeros(shape)
    if run.ys:
        np.add.at(expected, key, run.vs[0].data)
        close(run.grads[0].data, expected, 1e-13)


@examples(40)
@given(st.data(), seeds)
def test_einsum_of_random_labels(data, seed):
    """Labels summed, kept, shared, repeated within an operand."""
    sizes = {c: data.draw(st.integers(0, 3)) for c in "abc"}
    names = data.draw(st.lists(st.text("abc", max_size=3), min_size=1, max_size=3))
    out = "".join(data.draw(st.permutations(sorted(set("".join(names))))))[: data.draw(st.integers(0, 3))]
    equation = f"{','.join(names)}->{out}"
    arrays = [normal([sizes[c] for c in name], seed + i) for i, name in enumerate(names)]
    run = swept(lambda *xs: [ops.einsum(equation, *xs)], arrays)
    close(run.ys[0].data, np.einsum(equation, *arrays), 1e-12)
    u = [normal(x.shape, seed + 9 + i) for i, x in enumerate(arrays)]
    left = sum(np.vdot(g.data, d) for g, d in zip(run.grads, u, strict=True))  # ⟨Jᵀ v, u⟩, f being linear in each operand
    terms = [np.einsum(equation, *arrays[:k], u[k], *arrays[k + 1 :]) for k in range(len(arrays))]
    right = sum(np.vdot(run.vs[0].data, t) for t in terms)
    assert abs(left - right) <= 1e-11 * (1 + sum(np.abs(t).sum() for t in terms))


# --------------------------------------------------------------------------------------------------- extreme magnitudes
# Values and slopes in long double, by formulas that use only exponentials of negative numbers.


def _sigma(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _phi(x):
    from scipy import special

    return special.ndtr(x.astype(float)).astype(x.dtype)


def _tanh_softplus(x):
    return -np.expm1(-2 * _softplus(x)) / (1 + np.exp(-2 * _softplus(x)))


EXTREME = {  # elementwise: function, value, slope
    "sigmoid": (ops.sigmoid, _sigma, lambda x: _sigma(x) * _sigma(-x)),
    "tanh": (ops.tanh, np.tanh, lambda x: 4 * _sigma(2 * x) * _sigma(-2 * x)),
    "softplus": (lambda x: F.softplus(x, threshold=np.inf), _softplus, _sigma),
    "logsigmoid": (F.logsigmoid, lambda x: -_softplus(-x), lambda x: _sigma(-x)),
    "silu": (F.silu, lambda x: x * _sigma(x), lambda x: _sigma(x) * (1 + x * _sigma(-x))),
    "gelu": (F.gelu, lambda x: x * _phi(x), lambda x: _phi(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "mish": (
        F.mish,
        lambda x: x * _tanh_softplus(x),
        lambda x: _tanh_softplus(x) + x * _sigma(x) * (1 - _tanh_softplus(x) ** 2),
    ),
    "elu": (F.elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0))),
    "celu": (
        lambda x: F.celu(x, 0.5),
        lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(2 * x, 0))),
        lambda x: np.exp(np.minimum(2 * x, 0)),
    ),
    "BCE, t = 0": (lambda x: F.binary_cross_entropy_with_logits(x, x.detach() * 0, reduction="none"), _softplus, _sigma),
    "BCE, t = 1": (
        lambda x: F.binary_cross_entropy_with_logits(x, x.detach() * 0 + 1, reduction="none"),
        lambda x: _softplus(-x),
        lambda x: -_sigma(-x),
    ),
    "kl_bernoulli": (
        lambda x: F.kl_bernoulli(x * 0, x),
        lambda x: (_softplus(x) + _softplus(-x)) / 2 - np.log(np.longdouble(2)),
        lambda x: _sigma(x) - 0.5,
    ),
}
AT_INFINITY = {  # value, slope and curvature at −∞ and at ∞
    "sigmoid": (ops.sigmoid, [0, 1], [0, 0], [0, 0]),
    "tanh": (ops.tanh, [-1, 1], [0, 0], [0, 0]),
    "softplus": (F.softplus, [0, np.inf], [0, 1], [0, 0]),
    "softplus without a threshold": (lambda x: F.softplus(x, 2.0, np.inf), [0, np.inf], [0, 1], [0, 0]),
    "logsigmoid": (F.logsigmoid, [-np.inf, 0], [1, 0], [0, 0]),
    "elu": (lambda x: F.elu(x, 0.5), [-0.5, np.inf], [0, 1], [0, 0]),
    "celu": (lambda x: F.celu(x, 0.5), [-0.5, np.inf], [0, 1], [0, 0]),
    "selu": (F.selu, [-1.7580993408473766, np.inf], [0, 1.0507009873554805], [0, 0]),
    "silu": (F.silu, [0, np.inf], [0, 1], [0, 0]),
    "mish": (F.mish, [0, np.inf], [0, 1], [0, 0]),
}


@pytest.mark.parametrize(
    "function, x, expected",
    [
        (lambda x: F.elu(x, 0.5), [-1.0, 0.0, 1.0], [0.5 * np.exp(-1), 0.5, 0.0]),
        (lambda x: F.celu(x, 2.0), [-1.0, 0.0, 1.0], [0.5 * np.exp(-0.5), 0.5, 0.0]),
        (lambda x: F.softplus(x, 2.0, 1.0), [0.5, 0.6], [0.3932238664829637, 0.0]),  # 2 σ(1) σ(−1)
    ],
)
def test_the_second_derivative_at_a_kink_is_that_of_the_side_of_the_first(function, x, expected):
    x = Tensor(np.array(x), requires_grad=True)
    (slope,) = grad(function(x).sum(), x, create_graph=True)
    (bend,) = grad(slope.sum(), x)
    np.testing.assert_allclose(bend.data, expected, rtol=1e-12)


def test_the_weight_of_a_norm_of_nothing_has_a_gradient_of_zeros():
    w = Tensor(np.ones(3), requires_grad=True)
    for y in (F.rms_norm(Tensor(np.zeros((0, 3))), 3, w), F.group_norm(Tensor(np.zeros((0, 3, 2))), 3, w)):
        np.testing.assert_array_equal(grad(y.sum(), w)[0].data, np.zeros(3))


@pytest.mark.parametrize("storey", ["reference", "cpu"])
@pytest.mark.parametrize("name", AT_INFINITY)
def test_activations_at_infinity(name, storey):
    function, value, slope, curvature = AT_INFINITY[name]
    for dtype in (np.float32, np.float64)[: 1 if storey == "cpu" else 2]:
        x = Tensor(np.array([-np.inf, np.inf], dtype), requires_grad=True)
        with kernels.use(storey):
            y = function(x)
            (plain,) = grad(y, x, constant(np.ones(2, dtype)), retain_graph=True)
            (kept,) = grad(y, x, constant(np.ones(2, dtype)), create_graph=True)
            (bent,) = grad(kept, x, constant(np.ones(2, dtype)))
        for got, wanted in ((y, value), (plain, slope), (kept, slope), (bent, curvature)):
            np.testing.assert_allclose(got.data, wanted, rtol=1e-6)


MAGNITUDES = np.array([-1e4, -900.0, -104.5, -40.0, -30.5, 30.5, 40.0, 104.5, 900.0, 1e4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_elements(name, dtype):
    function, value, slope = EXTREME[name]
    x = MAGNITUDES.astype(dtype)
    run = swept(lambda t: [function(t)], [x], dtype=dtype, cotangents=[constant(np.ones(x.shape, dtype))])
    wide = x.astype(np.longdouble)
    eps = float(np.finfo(dtype).eps)
    exact = value(wide)
    slack = eps * np.abs(wide) if name.startswith("BCE") else 1e-30  # softplus(x) − t x is as good as x is known
    assert (np.abs(run.ys[0].data - exact) <= 64 * eps * np.abs(exact) + slack).all(), (run.ys[0].data, exact)
    np.testing.assert_allclose(run.grads[0].data, slope(wide).astype(dtype), rtol=64 * eps, atol=4 * eps)


def _rows(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), x - x.max(-1, keepdims=True) - np.log(e.sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@examples(20)
@given(
    hnp.arrays(np.float64, (2, 3), elements=st.sampled_from([-1e4, -88.0, -1.0, 0.0, 0.5, 88.75, 710.0, 1e4])),
    st.integers(0, 2),
)
def test_extreme_rows(dtype, x, t):
    """softmax, its logarithm, logsumexp, cross-entropy and attention on logits as large as ±10⁴."""
    x = x.astype(dtype)
    p, log_p = _rows(x.astype(np.longdouble))
    hot = np.eye(3)[[t, t]]
    target = np.array([t, t])
    expected = {  # value, Jᵀ v
        "softmax": (lambda z: F.softmax(z, -1), p, lambda v: p * (v - (v * p).sum(-1, keepdims=True))),
        "log_softmax": (lambda z: F.log_softmax(z, -1), log_p, lambda v: v - p * v.sum(-1, keepdims=True)),
        "logsumexp": (lambda z: ops.logsumexp(z, -1), (x - log_p)[:, 0], lambda v: v[:, None] * p),
        "cross_entropy": (
            lambda z: F.cross_entropy(z, target, reduction="none"),
            -log_p[:, t],
            lambda v: v[:, None] * (p - hot),
        ),
        "label smoothing": (
            lambda z: F.cross_entropy(z, target, reduction="none", label_smoothing=0.3),
            -0.7 * log_p[:, t] - 0.3 * log_p.mean(-1),
            lambda v: v[:, None] * (p - 0.7 * hot - 0.1),
        ),
    }
    eps = float(np.finfo(dtype).eps)
    atol = 8 * eps * max(4.0, np.abs(x).max())  # what rounding the logits themselves does
    for name, (function, value, vjp) in expected.items():
        run = swept(lambda z, function=function: [function(z)], [x], dtype=dtype)
        np.testing.assert_allclose(run.ys[0].data, value.astype(dtype), rtol=32 * eps, atol=atol, err_msg=name)
        exact = vjp(run.vs[0].data.astype(np.longdouble)).astype(dtype)
        np.testing.assert_allclose(run.grads[0].data, exact, rtol=64 * eps, atol=atol, err_msg=name)
    # attention whose scores are these logits: Q = x, K = 1, V = 1 gives the softmax itself
    run = swept(
        lambda z: [
            F.scaled_dot_product_attention(z, Tensor(np.eye(3, dtype=dtype)), Tensor(np.eye(3, dtype=dtype)), scale=1.0)
        ],
        [x],
        dtype=dtype,
    )
    np.testing.assert_allclose(run.ys[0].data, p.astype(dtype), rtol=32 * eps, atol=atol)
    exact = expected["softmax"][2](run.vs[0].data.astype(np.longdouble)).astype(dtype)
    np.testing.assert_allclose(run.grads[0].data, exact, rtol=64 * eps, atol=atol)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_norms_of_extreme_scale(scale):
    """‖x‖ has degree 1: its gradient does not depend on the scale, and no square over- or underflows."""
    x = np.array([[3.0, -4.0], [0.0, 2.0]]) * scale
    for function in (lambda t: ops.norm(t, dim=1), lambda t: ops.std(t, dim=1)):
        big, plain = swept(lambda t, f=function: [f(t)], [x]), swept(lambda t, f=function: [f(t)], [x / scale])
        close(big.ys[0].data / scale, plain.ys[0].data, 1e-13)
        close(big.grads[0].data, plain.grads[0].data, 1e-13)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_rows_of_minus_infinity(name):
    """A row with nothing in it: zeros for softmax, −∞ for its logarithms; −∞ beside finite logits weighs nothing."""
    x = np.array([[-np.inf, -np.inf], [-np.inf, 1.5]])
    run = swept(lambda t: [getattr(ops, name)(t, -1)], [x], cotangents=None)
    expected = {"softmax": [[0, 0], [0, 1]], "log_softmax": [[-np.inf, -np.inf], [-np.inf, 0]], "logsumexp": [-np.inf, 1.5]}[
        name
    ]
    np.testing.assert_array_equal(run.ys[0].data, expected)
    if name != "log_softmax":
        assert np.isfinite(run.grads[0].data).all()
        np.testing.assert_array_equal(run.grads[0].data[0], 0)


# --------------------------------------------------------------------------------------- where there is no derivative

nan = float("nan")
_SIGMA_1 = 1 / (1 + np.exp(-1.0))
KINKS = [  # name, function, x, the gradient of its sum, by decision
    ("abs", ops.abs, [0.0], [0.0]),
    ("relu", ops.relu, [0.0, -0.0], [0.0, 0.0]),
    ("leaky_relu", F.leaky_relu, [0.0], [0.01]),
    ("elu", F.elu, [0.0], [1.0]),
    ("hardtanh", F.hardtanh, [-1.0, 1.0], [0.0, 0.0]),
    ("softsign", F.softsign, [0.0], [1.0]),
    ("clamp", lambda x: ops.clamp(x, -1.0, 1.0), [-1.0, 1.0, 2.0], [1.0, 1.0, 0.0]),
    (
        "clamp by tensors",
        lambda x: ops.clamp(x, Tensor([-1.0]).double(), Tensor([1.0]).double()),
        [-1.0, 1.0, 2.0],
        [1.0, 1.0, 0.0],
    ),
    ("maximum", lambda x: ops.maximum(x, x.detach()), [1.0], [0.5]),
    ("minimum", lambda x: ops.minimum(x, x.detach()), [1.0], [0.5]),
    ("amax", ops.amax, [1.0, 3.0, 3.0, 3.0], [0.0, 1 / 3, 1 / 3, 1 / 3]),
    ("amin", ops.amin, [1.0, 1.0, 3.0], [0.5, 0.5, 0.0]),
    ("max", ops.max, [3.0, 3.0, 1.0], [0.5, 0.5, 0.0]),
    ("max along dim", lambda x: ops.max(x, 0)[0], [3.0, 3.0, 1.0], [1.0, 0.0, 0.0]),
    ("min along dim", lambda x: ops.min(x, 0)[0], [3.0, 1.0, 1.0], [0.0, 1.0, 0.0]),
    ("max_pool1d", lambda x: F.max_pool1d(x.reshape(1, 1, 3), 3), [2.0, 5.0, 5.0], [0.0, 1.0, 0.0]),
    ("norm", ops.norm, [0.0, 0.0], [0.0, 0.0]),
    ("norm, p = 1", lambda x: ops.norm(x, 1), [0.0, -2.0], [0.0, -1.0]),
    ("norm, p = inf", lambda x: ops.norm(x, np.inf), [-2.0, 2.0], [-0.5, 0.5]),
    ("std", ops.std, [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]),
    ("normalize", lambda x: F.normalize(x, dim=0, eps=0.5), [0.0, 0.0], [2.0, 2.0]),
    ("cosine_similarity", lambda x: F.cosine_similarity(x, x.detach() + 1, 0), [0.0, 0.0], [np.sqrt(0.5) * 1e8] * 2),
    ("l1_loss", lambda x: F.l1_loss(x, x.detach()), [1.0, 2.0], [0.0, 0.0]),
    ("huber_loss", lambda x: F.huber_loss(x, x.detach() * 0, reduction="sum"), [1.0, -1.0, 0.0], [1.0, -1.0, 0.0]),
    ("smooth_l1_loss", lambda x: F.smooth_l1_loss(x, x.detach() * 0, reduction="sum"), [1.0, -1.0, 0.0], [1.0, -1.0, 0.0]),
    ("pow, 0¹", lambda x: x**1, [0.0], [1.0]),
    ("pow, 0⁰", lambda x: x**0, [0.0], [0.0]),
    ("pow, 0²", lambda x: x**2, [0.0], [0.0]),
    ("pow, tensors", lambda x: x ** Tensor(np.array([0.0, 1.0, 2.0])), [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    ("pow, exponent at 0", lambda b: Tensor(np.zeros(2)) ** b, [0.0, 1.0], [0.0, 0.0]),
    ("prod with one zero", ops.prod, [0.0, 2.0, 3.0], [6.0, 0.0, 0.0]),
    ("prod with two zeros", ops.prod, [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]),
    ("where", lambda x: ops.where(x > 0, x.sqrt(), 0.0), [4.0, 9.0], [0.25, 1 / 6]),
    ("softplus about its threshold", lambda x: ops.softplus(x, 2.0, 1.0), [0.4, 0.5, 0.6], [0.6899744811276125, _SIGMA_1, 1.0]),
    ("logaddexp beside −∞", lambda x: ops.logaddexp(x, Tensor(np.zeros(2))), [-np.inf, np.inf], [0.0, 1.0]),
    ("narrow from the end", lambda x: x.narrow(0, -2, 1) * 3, [1.0, 2.0, 3.0], [0.0, 3.0, 0.0]),
    ("pad, replicate and cut", lambda x: F.pad(x, (2, -1), "replicate"), [1.0, 2.0, 3.0], [3.0, 1.0, 0.0]),
    ("pad, cut and replicate", lambda x: F.pad(x, (-1, 2), "replicate"), [1.0, 2.0, 3.0], [0.0, 1.0, 3.0]),
    ("pad, replicate cut alone", lambda x: F.pad(x, (0, -1), "replicate"), [1.0, 2.0, 3.0], [1.0, 1.0, 0.0]),
    ("logaddexp of −∞", lambda x: ops.logaddexp(x, Tensor(np.array([-np.inf]))), [-np.inf], [0.5]),
    ("kl_div, t = 0", lambda t: F.kl_div(Tensor(np.array([-1.0, -2.0])), t, reduction="sum"), [0.0, 1.0], [0.0, 3.0]),
]


@pytest.mark.parametrize("name, function, x, expected", KINKS, ids=[k[0] for k in KINKS])
def test_value_chosen_at_a_kink(name, function, x, expected):
    x = Tensor(np.array(x), requires_grad=True)
    (g,) = grad(function(x).sum(), x)
    np.testing.assert_allclose(g.data, expected, rtol=1e-12, atol=0)


MASK = np.array([[True, False], [True, True]])
NUMBERS_BESIDE_ARRAYS = [  # an index with numbers, and the same in two steps
    ((0, slice(None), [1, 0]), lambda x: x[0][:, [1, 0]]),
    (([1, 0], slice(None), 1), lambda x: x[:, :, 1][[1, 0]]),
    ((slice(None), [1, 0], slice(None), 0), lambda x: x[..., 0][:, [1, 0]]),
    ((0, ..., [1, 0]), lambda x: x[0][..., [1, 0]]),
    ((0, slice(None), MASK), lambda x: x[0][:, MASK]),
    ((MASK, slice(None), 1), lambda x: x[..., 1][MASK]),
    ((0, None, slice(None), [1, 0]), lambda x: x[0][None][:, :, [1, 0]]),
    ((slice(None), 1, [1, 0]), lambda x: x[:, 1][:, [1, 0]]),
    (([1, 0], 1, slice(1)), lambda x: x[:, 1][[1, 0]][:, :1]),
]


@pytest.mark.parametrize("key, twice", NUMBERS_BESIDE_ARRAYS, ids=[str(i) for i in range(len(NUMBERS_BESIDE_ARRAYS))])
def test_a_number_beside_arrays_takes_its_slice_first(key, twice):
    x = normal((2, 2, 2, 2), 0)
    key = tuple(np.array(k) if isinstance(k, list) else k for k in key)
    run = swept(lambda t: [t[key]], [x])
    other = swept(lambda t: [twice(t)], [x], cotangents=run.vs)
    np.testing.assert_array_equal(run.ys[0].data, other.ys[0].data)
    np.testing.assert_array_equal(run.grads[0].data, other.grads[0].data)


@pytest.mark.parametrize("letters", [string.ascii_lowercase, string.ascii_uppercase])
def test_einsum_of_many_labels(letters):
    """An ellipsis has letters to stand for its dimensions, whichever the equation uses."""
    x = normal((1,) * 25 + (2, 3), 0)
    run = swept(lambda t: [ops.einsum(f"...{letters}->{letters}...", t)], [x.reshape(2, *(1,) * 25, 3)])
    assert run.ys[0].shape == (1,) * 25 + (3, 2)
    np.testing.assert_array_equal(run.grads[0].data.reshape(2, 3), run.vs[0].data.reshape(3, 2).T)


def test_whole_numbers_held_between_fractions_become_floats():
    y = ops.clamp(Tensor([1, 2, 3]), 1.5, 2.5)
    assert y.dtype == np.float32 and y.data.tolist() == [1.5, 2.0, 2.5]
    assert ops.clamp(Tensor([1, 2, 3]), 2).dtype == np.int64
    root = Tensor([1, 4, 9]) ** 0.5
    assert root.dtype == np.float32 and root.data.tolist() == [1, 2, 3]


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_classes_that_change_after_the_loss_do_not_change_its_gradient(loss):
    x, t = Tensor(normal((2, 3), 0), requires_grad=True), Tensor([0, 2])
    expected = grad(loss(x, Tensor([0, 2])), x)[0].data
    y = loss(x, t)
    t.copy_(np.array([1, 1]))
    np.testing.assert_array_equal(grad(y, x)[0].data, expected)


@pytest.mark.parametrize("p", [3, 0.5, -1, 0, 1, np.inf, -np.inf])
def test_norms_of_rows_with_zeros(p):
    """(Σ |x|^p)^{1/p}; the gradient is that of the others, and 0 at a zero and in a row of zeros."""
    x = np.array([[2.0, 0.0, -3.0], [0.0, 0.0, 0.0], [1.5, -1.25, 0.75]])
    run = swept(lambda t: [ops.norm(t, p, 1)], [x])
    size = np.abs(x)
    with np.errstate(divide="ignore"):
        value = {0: (size > 0).sum(1), np.inf: size.max(1), -np.inf: size.min(1)}.get(p)
        value = (size**p).sum(1) ** (1 / p) if value is None else value
    close(run.outputs[0].data, value, 1e-13)
    if p in (3, 0.5, 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(size > 0, np.sign(x) * size ** (p - 1) * value[:, None] ** (1 - p), 0)
        close(run.grads[0].data, np.nan_to_num(slope) * run.vs[0].data[:, None], 1e-12)
    if p == -1:
        np.testing.assert_array_equal(run.grads[0].data[:2], 0)


def test_a_norm_of_negative_numbers_alone_of_extreme_scale():
    run = swept(lambda t: [ops.norm(t)], [np.array([-3e200, -4e200])])
    close(run.ys[0].data / 1e200, 5.0, 1e-14)
    close(run.grads[0].data, np.array([-0.6, -0.8]) * run.vs[0].data, 1e-14)


def test_copies_are_copies():
    x = Tensor(normal((2, 3), 0))
    for y in (ops.clone(x), x.T.contiguous()):
        assert y.data.flags.c_contiguous and not np.may_share_memory(x.data, y.data)
    assert np.may_share_memory(x.contiguous().data, x.data)
    assert ops.repeat_interleave(x, 0, 1).shape == (2, 0)
    with pytest.raises(ValueError, match="repeat_interleave: expected"):
        ops.repeat_interleave(x, -1, 1)


def test_an_index_that_changes_afterwards_does_not_change_the_gradient():
    x, index = Tensor(normal(3, 0), requires_grad=True), Tensor([0, 2])
    for pick in (lambda i: x[i], lambda i: x.index_select(0, i), lambda i: x.gather(0, i)):
        index.copy_(np.array([0, 2]))
        y = pick(index)
        index.copy_(np.array([1, 1]))
        assert grad(y.sum(), x)[0].data.tolist() == [1, 0, 1]


def test_numbers_and_whole_numbers_take_the_dtype_that_fits():
    """Of two numbers the wider; a fraction beside whole numbers gives float32, a whole number beside booleans int64."""
    whole, flags = Tensor([1, 2]), Tensor([True, False])
    assert ops.add(1, 0.5).dtype == ops.add(0.5, 1).dtype == np.float32
    assert ops.add(1, 2).dtype.kind == "i" and ops.add(True, 2).dtype.kind == "i"
    assert (whole + 0.5).dtype == np.float32 and (whole + 1).dtype == np.int64
    assert (flags + 1).dtype == np.int64 and (flags + True).dtype == np.bool_
    assert ops.sum(Tensor(np.array([200, 100], np.uint8))).item() == 300
    assert ops.sum(Tensor(np.array([200, 100], np.uint8))).dtype == np.int64
    assert ops.div(whole, Tensor([2, 4])).dtype == np.float32 and ops.div(whole, Tensor([2, 4])).data.tolist() == [0.5, 0.5]
    assert ops.exp(whole).dtype == np.float32 and ops.floor_divide(whole, 2).dtype == np.int64


def test_leaky_relu_of_a_negative_slope():
    run = swept(lambda t: [F.leaky_relu(t, -0.5)], [np.array([2.0, -3.0, 0.0, 0.5])])
    np.testing.assert_array_equal(run.ys[0].data, [2, 1.5, 0, 0.5])
    np.testing.assert_array_equal(run.grads[0].data, run.vs[0].data * [1, -0.5, -0.5, 1])


def test_the_way_of_device_arrays_is_right_on_the_host(monkeypatch):
    """Where a device is not given arrays to write to, the result is the same."""

    def call(x):
        return [F.self_attention(x, is_causal=True)]

    x = normal((2, 3, 3, 2, 4), 0)
    plain = swept(call, [x])
    monkeypatch.setattr(ops.fused, "devices", SimpleNamespace(on_host=lambda array: False))
    other = swept(call, [x], cotangents=plain.vs)
    close(other.ys[0].data, plain.ys[0].data, 1e-14)
    close(other.grads[0].data, plain.grads[0].data, 1e-13)


def test_moving_has_the_cotangent_for_a_gradient_and_an_empty_index_picks_nothing():
    x = normal((2, 3), 0)
    run = swept(lambda t: [operands.Move.apply(t, device="cpu")], [x])
    np.testing.assert_array_equal(run.ys[0].data, x)
    np.testing.assert_array_equal(run.grads[0].data, run.vs[0].data)
    run = swept(lambda t: [t[[]], t * 2], [x])
    assert run.ys[0].shape == (0, 3)
    np.testing.assert_array_equal(run.grads[0].data, 2 * run.vs[1].data)


def test_attention_layer_that_drops_everything():
    """p = 1 leaves the bias of the last projection, without a division by 1 − p = 0."""
    layer = nn.MultiheadAttention(4, 2, dropout=1.0).double()
    layer.out_proj.bias.copy_(normal(4, 0))
    x = Tensor(normal((3, 1, 4), 1))
    for need_weights in (False, True):
        y, _ = layer(x, x, x, need_weights=need_weights)
        np.testing.assert_array_equal(y.data, np.broadcast_to(normal(4, 0), (3, 1, 4)))


def test_lstm_of_five_cells():
    """4 · 5 gates are four pieces of five, not five of four."""
    case, f, arrays = next(row("nn.LSTM", of(2, 5)(real(3, 1, 2))).drawn())
    expected = list(flat(REFERENCES["nn.LSTM"](f.module, *arrays)))
    for y, e in zip(f(*map(Tensor, arrays)), expected, strict=True):
        close(y.data, e, 1e-12)


def test_class_weights_of_pictures():
    """Classes in dimension 1, pixels after it: the same as one row for each pixel."""
    x, w = normal((2, 3, 2, 3), 0), np.array([0.2, 0.5, 2.0])
    p = np.exp(normal((2, 3, 2, 3), 1))
    p /= p.sum(1, keepdims=True)
    run = swept(lambda t: [F.cross_entropy(t, Tensor(p), Tensor(w), "sum")], [x])
    rows = swept(
        lambda t: [
            F.cross_entropy(t.movedim(1, -1).reshape(-1, 3), Tensor(np.moveaxis(p, 1, -1).reshape(-1, 3)), Tensor(w), "sum")
        ],
        [x],
        cotangents=run.vs,
    )
    close(run.ys[0].data, rows.ys[0].data, 1e-13)
    close(run.grads[0].data, rows.grads[0].data, 1e-13)


def test_the_logsumexp_of_nothing_is_minus_infinity():
    np.testing.assert_array_equal(ops.logsumexp(Tensor(np.zeros((2, 0))), 1).data, [-np.inf, -np.inf])


def test_running_statistics_of_instance_norm():
    mean, var = Tensor(np.array([1.0])), Tensor(np.array([2.0]))
    F.instance_norm(Tensor(np.array([[[1.0, 3.0]]])), mean, var, momentum=0.25)
    assert mean.item() == 0.75 * 1 + 0.25 * 2 and var.item() == 0.75 * 2 + 0.25 * 2


def test_the_padding_row_of_an_embedding_is_held_still():
    layer = nn.Embedding(3, 2, padding_idx=1)
    y = layer(Tensor([[0, 1], [1, 0]]))
    assert y.data[0, 1].tolist() == [0, 0]
    y.sum().backward()
    assert layer.weight.grad.data.tolist() == [[2, 2], [0, 0], [0, 0]]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_to_nothing_is_zero(causal):
    """A row that may attend to nothing gives zeros, and gives none of the inputs a gradient; at both orders."""
    q, k, v = (Tensor(normal((2, 2), i), requires_grad=True) for i in range(3))
    allowed = np.array([[False, False], [True, not causal]])
    y = F.scaled_dot_product_attention(q, k, v, Tensor(allowed))
    np.testing.assert_array_equal(y.data[0], 0)
    for create_graph in (False, True):
        gs = grad(y[0].sum() * 3, [q, k, v], create_graph=create_graph, retain_graph=True)
        for g in gs:
            np.testing.assert_array_equal(g.data, 0)


# -------------------------------------------------------------------------------------------------------- bad calls

x23, x32, x3 = (Tensor(np.zeros(s, np.float32)) for s in ((2, 3), (3, 2), (3,)))
x64 = Tensor(np.zeros(3))
image = Tensor(np.zeros((1, 2, 4, 4), np.float32))
whole_numbers = Tensor([0, 1, 2])
BAD_CALLS = [  # name, call, exception, what the sentence must say
    ("add, float32 and float64", lambda: x3 + x64, TypeError, "one floating dtype, got float32 and float64"),
    ("add, a string", lambda: ops.add(x3, "1"), TypeError, "add: expected tensors, arrays or numbers, got str"),
    ("clamp, no bound", lambda: ops.clamp(x3), ValueError, "clamp: expected min, max or both"),
    ("where, condition", lambda: ops.where(x3, x3, x3), TypeError, "where: expected a boolean condition, got float32"),
    ("gelu", lambda: ops.gelu(x3, approximate="erf"), ValueError, "gelu: expected approximate to be 'none' or 'tanh'"),
    ("sum, dim", lambda: ops.sum(x3, 1), IndexError, "sum: expected a dimension from -1 to 0, got 1"),
    ("sum, dim twice", lambda: ops.sum(x23, (1, -1)), ValueError, "sum: expected each dimension once"),
    ("mean, integers", lambda: ops.mean(whole_numbers), TypeError, "mean: expected a floating dtype, got int64"),
    ("amax, nothing", lambda: ops.amax(x3[:0]), ValueError, "amax: expected something to choose from"),
    ("amin, nothing", lambda: ops.amin(x3[:0]), ValueError, "amin: expected something to choose from"),
    ("argmax, nothing", lambda: ops.argmax(x3[:0]), ValueError, "argmax: expected something to choose from"),
    ("argmin, nothing", lambda: ops.argmin(x3[:0]), ValueError, "argmin: expected something to choose from"),
    ("norm, p", lambda: ops.norm(x3, "nuc"), ValueError, "norm: expected p to be a number or 'fro'"),
    ("reshape", lambda: x23.reshape(4), ValueError, "reshape: expected a shape of 6 elements"),
    ("reshape, float", lambda: x23.reshape(2.0, 3), TypeError, "reshape: expected a shape of whole numbers"),
    ("permute", lambda: x23.permute(0, 0), ValueError, "permute: expected each of 2 dimensions once"),
    ("expand", lambda: x23.expand(3, 3), ValueError, "expand: expected a shape that (2, 3) broadcasts to, got (3, 3)"),
    ("unsqueeze", lambda: x3.unsqueeze(3), IndexError, "unsqueeze: expected a dimension from -2 to 1, got 3"),
    ("flatten", lambda: x23.flatten(1, 0), ValueError, "flatten: expected start_dim before end_dim"),
    ("narrow", lambda: x3.narrow(0, 2, 2), ValueError, "narrow: expected a range within 0 … 3"),
    ("split", lambda: x3.split([1, 1]), ValueError, "split: expected sizes that add up to 3, got [1, 1]"),
    ("chunk", lambda: x3.chunk(0), ValueError, "chunk: expected at least 1 chunk, got 0"),
    ("unbind", lambda: x3.sum().unbind(), ValueError, "unbind: expected at least one dimension"),
    ("index", lambda: x3[5], IndexError, "index into a tensor of shape (3,)"),
    ("index, float", lambda: x3[np.array([0.5])], TypeError, "index: expected integers or booleans, got float64"),
    ("gather, range", lambda: x3.gather(0, whole_numbers + 1), IndexError, "gather: expected indices from 0 to 2, got 1 … 3"),
    (
        "gather, shape",
        lambda: x23.gather(1, whole_numbers),
        ValueError,
        "gather: expected an index no larger than (2, 3) outside dimension 1",
    ),
    (
        "scatter_add",
        lambda: x3.scatter_add(0, whole_numbers, x3[:2]),
        ValueError,
        "scatter_add: expected src at least as large as the index",
    ),
    ("index_select", lambda: x3.index_select(0, x3), TypeError, "index_select: expected an integer index, got float32"),
    ("tril", lambda: x3.tril(), ValueError, "tril: expected matrices"),
    ("diagonal", lambda: x23.diagonal(0, 1, 1), ValueError, "diagonal: expected two different dimensions"),
    ("cat, nothing", lambda: ops.cat([]), ValueError, "cat: expected a list of at least one tensor"),
    ("cat, shapes", lambda: ops.cat([x23, x32]), ValueError, "cat: expected shapes that agree outside dimension 0"),
    ("stack", lambda: ops.stack([x23, x32]), ValueError, "stack: expected tensors of one shape"),
    ("repeat", lambda: x23.repeat(2), ValueError, "repeat: expected at least 2 counts"),
    ("pad, odd", lambda: F.pad(x3, (1,)), ValueError, "pad: expected pairs of counts"),
    (
        "pad, mode",
        lambda: F.pad(x3, (1, 1), "mirror"),
        ValueError,
        "pad: expected mode constant, reflect, replicate or circular",
    ),
    (
        "pad, reflect too far",
        lambda: F.pad(x3, (3, 0), "reflect"),
        ValueError,
        "pad: expected at most 2 cells for mode 'reflect'",
    ),
    (
        "pad, circular too far",
        lambda: F.pad(x3, (-2, 2), "circular"),
        ValueError,
        "pad: expected at most 1 cells for mode 'circular'",
    ),
    (
        "pad, circular after cuts",
        lambda: F.pad(x3, (3, -1), "circular"),
        ValueError,
        "pad: expected at most 2 cells for mode 'circular'",
    ),
    ("pad, cut too much", lambda: F.pad(x3, (-2, -2)), ValueError, "pad: expected to cut at most 3 cells"),
    ("matmul, inner", lambda: x23 @ x23, ValueError, "matmul: expected inner lengths that agree, got shapes (2, 3) and (2, 3)"),
    (
        "matmul, stacks",
        lambda: ops.matmul(Tensor(np.zeros((2, 1, 2, 2))), Tensor(np.zeros((3, 1, 2, 2)))),
        ValueError,
        "matmul: expected leading dimensions that broadcast",
    ),
    ("matmul, scalar", lambda: ops.matmul(x3.sum(), x3), ValueError, "matmul: expected tensors of at least one dimension"),
    (
        "linear",
        lambda: F.linear(x23, x32),
        ValueError,
        "linear: expected an input of shape (…, in) and a weight of shape (out, in)",
    ),
    (
        "attention, a mask for half of the heads",
        lambda: F.scaled_dot_product_attention(
            *(Tensor(np.zeros((n, 2, 2), np.float32)) for n in (4, 2, 2)), np.ones((2, 2, 2), bool), enable_gqa=True
        ),
        ValueError,
        "attention: expected shapes that broadcast",
    ),
    ("linear, bias", lambda: F.linear(x23, x23, x3), ValueError, "linear: expected a bias of shape (2,), got (3,)"),
    ("einsum, operands", lambda: ops.einsum("ij,jk", x23), ValueError, "einsum: expected 2 operands"),
    ("einsum, dims", lambda: ops.einsum("ijk", x23), ValueError, "einsum: expected 'ijk'"),
    ("einsum, lengths", lambda: ops.einsum("ij,ij", x23, x32), ValueError, "einsum: expected one length for 'i'"),
    ("einsum, result", lambda: ops.einsum("ij->ik", x23), ValueError, "einsum: expected the result"),
    ("conv2d, channels", lambda: F.conv2d(image, image[:, :1]), ValueError, "conv2d: expected 1 input channels"),
    (
        "conv2d, small",
        lambda: F.conv2d(image, Tensor(np.zeros((1, 2, 5, 5), np.float32))),
        ValueError,
        "conv2d: expected an input at least as large as the kernel",
    ),
    (
        "conv2d, stride",
        lambda: F.conv2d(image, image, stride=0),
        ValueError,
        "conv2d: expected stride to be a whole number of at least 1",
    ),
    ("conv2d, same", lambda: F.conv2d(image, image, padding="same", stride=2), ValueError, "padding 'same' expects stride 1"),
    ("conv2d, groups", lambda: F.conv2d(image, image, groups=3), ValueError, "conv2d: expected groups to divide"),
    ("conv2d, bias", lambda: F.conv2d(image, image, x3), ValueError, "conv2d: expected a bias of shape (1,), got (3,)"),
    (
        "conv_transpose2d",
        lambda: F.conv_transpose2d(image, image.transpose(0, 1), output_padding=1),
        ValueError,
        "conv_transpose2d: expected output_padding below",
    ),
    (
        "max_pool2d",
        lambda: F.max_pool2d(image, 2, padding=2),
        ValueError,
        "max_pool2d: expected padding of at most half the window",
    ),
    ("avg_pool2d", lambda: F.avg_pool2d(image, 5), ValueError, "avg_pool2d: expected an input at least as large as the window"),
    ("layer_norm", lambda: F.layer_norm(x23, 2), ValueError, "layer_norm: expected an input of shape (…, 2), got (2, 3)"),
    ("rms_norm", lambda: F.rms_norm(x23, 2), ValueError, "rms_norm: expected an input of shape (…, 2), got (2, 3)"),
    (
        "batch_norm, one value",
        lambda: F.batch_norm(x23[:1], None, None, training=True),
        ValueError,
        "batch_norm: expected more than 1 value per channel",
    ),
    (
        "batch_norm, eval",
        lambda: F.batch_norm(x23, None, None),
        ValueError,
        "batch_norm: expected running_mean and running_var",
    ),
    ("group_norm", lambda: F.group_norm(x23, 2), ValueError, "group_norm: expected a number of groups that divides 3 channels"),
    ("instance_norm", lambda: F.instance_norm(image[:, :, :1, :1]), ValueError, "instance_norm: expected more than 1 position"),
    ("prelu", lambda: F.prelu(x23, x23[0, :2]), ValueError, "prelu: expected one weight, or one for each channel"),
    ("glu", lambda: F.glu(x23), ValueError, "glu: expected an even length"),
    ("mse_loss", lambda: F.mse_loss(x23, x3), ValueError, "mse_loss: expected input and target of one shape"),
    ("reduction", lambda: F.l1_loss(x3, x3, "max"), ValueError, "l1_loss: expected reduction 'mean', 'sum' or 'none'"),
    ("huber_loss", lambda: F.huber_loss(x3, x3, delta=0), ValueError, "huber_loss: expected delta above 0"),
    ("smooth_l1_loss", lambda: F.smooth_l1_loss(x3, x3, beta=-1), ValueError, "smooth_l1_loss: expected beta of at least 0"),
    (
        "cross_entropy, class",
        lambda: F.cross_entropy(x23, np.array([0, 3])),
        IndexError,
        "cross_entropy: expected class numbers from 0 to 2, got 3",
    ),
    (
        "cross_entropy, negative class",
        lambda: F.cross_entropy(x23, np.array([0, -1])),
        IndexError,
        "cross_entropy: expected class numbers from 0 to 2, got -1",
    ),
    (
        "cross_entropy, shape",
        lambda: F.cross_entropy(x23, np.array([0])),
        ValueError,
        "cross_entropy: expected a target of class numbers of shape (2,)",
    ),
    (
        "cross_entropy, weight",
        lambda: F.cross_entropy(x23, np.array([0, 1]), x3[:2]),
        ValueError,
        "cross_entropy: expected a weight of shape (3,)",
    ),
    (
        "cross_entropy, smoothing",
        lambda: F.cross_entropy(x23, np.array([0, 1]), label_smoothing=2.0),
        ValueError,
        "label_smoothing from 0 to 1",
    ),
    ("nll_loss", lambda: F.nll_loss(x23, np.array([0, 3])), IndexError, "nll_loss: expected class numbers from 0 to 2, got 3"),
    ("embedding, range", lambda: F.embedding(np.array([3]), x32), IndexError, "embedding: expected indices from 0 to 2, got 3"),
    ("embedding, float", lambda: F.embedding(x3, x32), ValueError, "embedding: expected integers"),
    ("one_hot", lambda: F.one_hot(np.array([3]), 3), ValueError, "one_hot: expected classes from 0 to 2"),
    ("dropout", lambda: F.dropout(x3, 1.5), ValueError, "dropout: expected p from 0 to 1, got 1.5"),
    (
        "attention, shapes",
        lambda: F.scaled_dot_product_attention(x23, x32, x32),
        ValueError,
        "attention: expected query (…, T, D)",
    ),
    (
        "attention, both masks",
        lambda: F.scaled_dot_product_attention(x23, x23, x23, np.ones((2, 2), bool), is_causal=True),
        ValueError,
        "attn_mask or is_causal, got both",
    ),
    (
        "attention, mask",
        lambda: F.scaled_dot_product_attention(x23, x23, x23, np.ones((3, 3), bool)),
        ValueError,
        "with a mask of shape (3, 3)",
    ),
    (
        "interpolate, both",
        lambda: F.interpolate(image, 2, 2.0),
        ValueError,
        "interpolate: expected size or scale_factor, and not both",
    ),
    (
        "interpolate, mode",
        lambda: F.interpolate(image, 2, mode="cubic"),
        ValueError,
        "interpolate: expected mode 'nearest' or 'bilinear'",
    ),
    ("pixel_shuffle", lambda: F.pixel_shuffle(image, 2), ValueError, "pixel_shuffle: expected an input (…, C · 2², H, W)"),
    (
        "pixel_unshuffle",
        lambda: F.pixel_unshuffle(image, 3),
        ValueError,
        "pixel_unshuffle: expected an input (…, C, H · 3, W · 3)",
    ),
    ("integers", lambda: Tensor([1, 2], requires_grad=True), TypeError, "integers have no gradient"),
    ("hessian", lambda: calculus.hessian(lambda t: t * t, x3), ValueError, "hessian: expected a scalar function"),
    ("hvp", lambda: calculus.hvp(lambda t: t * t, x3, x3), ValueError, "hvp: expected a scalar function"),
    ("hessian, input", lambda: calculus.hessian(ops.sum, np.ones(2)), TypeError, "hessian: expected one tensor, got ndarray"),
    (
        "vjp, input",
        lambda: calculus.vjp(ops.sum, 1.0),
        TypeError,
        "vjp: inputs: expected a tensor or a tuple of tensors, got float",
    ),
    ("jvp", lambda: calculus.jvp(lambda t: t * t, x3, x23), ValueError, "jvp: v: expected shapes"),
    (
        "gradcheck, order",
        lambda: calculus.gradcheck(ops.exp, x3, order=3),
        ValueError,
        "gradcheck: expected order 1 or 2, got 3",
    ),
    (
        "gradcheck, no input",
        lambda: calculus.gradcheck(ops.exp, whole_numbers),
        ValueError,
        "expected at least one floating input",
    ),
]


INNER = {"attention", "cast"}  # called by others with tensors that are already of one dtype


@pytest.mark.parametrize("name", [n for n in ROWS if "." not in n and n not in INNER])
def test_text_in_the_place_of_a_tensor_is_refused_with_a_sentence(name):
    for _, f, arrays in cases(name):
        if arrays:
            with pytest.raises((TypeError, ValueError), match="expected"):
                f("text", *map(Tensor, arrays[1:]))


@pytest.mark.parametrize("name", [n for n in ROWS if n not in INNER | {"Tensor.to"}])
def test_two_dtypes_at_once_are_refused_with_a_sentence(name):
    """The first floating argument in float32, all others, or the parameters of a layer, in float64."""
    for _, f, arrays in cases(name):
        at = [i for i, x in enumerate(arrays) if floating(x)]
        layer = isinstance(f, nn.Module) and bool(list(f.parameters()))
        if not at or (len(at) < 2 and not layer) or name == "Tensor.__mod__":
            continue
        low = at if layer else at[:1]
        with pytest.raises((TypeError, ValueError), match="expected.*got"):
            f(*(Tensor(x.astype(np.float32) if i in low else x) for i, x in enumerate(arrays)))


@pytest.mark.parametrize("name, call, exception, words", BAD_CALLS, ids=[b[0] for b in BAD_CALLS])
def test_bad_calls_are_refused_with_a_sentence(name, call, exception, words):
    with pytest.raises(exception) as caught:
        call()
    assert words in str(caught.value)


def test_a_row_without_cases_or_without_a_reason_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        row("exp")
    with pytest.raises(ValueError, match="expected the reason"):
        row("exp", catalog.case(real(2)), order=1)


def test_layers_are_drawn_with_parameters_that_hide_nothing():
    """Weights of ones and biases of zeros would pass a gradient that forgets them."""
    for name in ("nn.LayerNorm", "nn.BatchNorm2d", "nn.MultiheadAttention"):
        for _, f, _ in row(name, of(*((4,) if "Att" not in name else (4, 2)))(real(1))).drawn():
            for p in f.parameters():
                assert p.dtype == np.float64 and len(np.unique(p.data)) == p.numel()
