"""Rows of the catalog and ops at shapes, index expressions and layouts that hypothesis draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scratchgen import calculus, functional, ops
from scratchgen.catalog import ROWS
from scratchgen.tensors import Tensor, constant
from tests import strategies
from tests.strategies import examples, normal, seeds
from tests.sweeps import CASTS, close, floating, strided, swept, transposed

# ---------------------------------------------------------------------------------------------------------------------
# Rows of the catalog
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Broadcasting, reductions, products, indices
# ---------------------------------------------------------------------------------------------------------------------


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


ODD = [  # an equation, the shapes of its operands
    (",->", (), ()),
    ("i,->i", (3,), ()),
    ("bA", (2, 3)),
    ("ii", (3, 3)),
    ("iii->i", (2, 2, 2)),
    ("aabb->ab", (2, 2, 3, 3)),
    ("iij,jkk->ik", (2, 2, 3), (3, 4, 4)),
    ("a...a->...a", (3, 2, 3)),
    ("...i,...i->...", (2, 1, 3), (4, 3)),
    ("...j,j...->...", (2, 3), (3, 2)),
    (" i j , j k -> k i ", (2, 3), (3, 4)),
    ("i,i,i,i->i", (3,), (3,), (3,), (3,)),
    ("ij,jk->ik", (2, 0), (0, 3)),
    ("a,b,c->cba", (2,), (3,), (4,)),
]


@pytest.mark.parametrize("equation, shapes", [(equation, shapes) for equation, *shapes in ODD], ids=[odd[0] for odd in ODD])
def test_einsum_of_odd_equations(equation, shapes):
    """Of nothing, without an arrow, with diagonals, ellipses, blanks: f is linear in each operand, so ⟨v, f⟩ = ⟨x, x̄⟩."""
    arrays = [normal(shape, i) for i, shape in enumerate(shapes)]
    run = swept(lambda *xs: [ops.einsum(equation, *xs)], arrays)
    close(run.ys[0].data, np.einsum(equation, *arrays), 1e-13)
    for x, g in zip(arrays, run.grads, strict=True):
        close(np.vdot(x, g.data), np.vdot(run.vs[0].data, run.ys[0].data), 1e-12)
