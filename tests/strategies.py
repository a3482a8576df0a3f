"""What hypothesis draws from: shapes with lengths 0 and 1 among them, dims, index expressions; and how often it draws."""

import os

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DEEP = os.environ.get("SCRATCHGEN_DEEP", "0") not in ("", "0")  # the deep run: 100 times the examples
seeds = st.integers(0, 2**32 - 1)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


def examples(n):
    """n examples in the everyday run, 100 n in the deep one."""
    return settings(max_examples=100 * n if DEEP else n)


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def reductions(draw):
    """A shape, dims of it (None, a number, or several, counted from either end), keepdim."""
    shape = draw(shapes)
    n = len(shape)
    one = st.integers(-max(n, 1), max(n, 1) - 1)
    some = st.lists(st.integers(0, n - 1), unique=True)
    some = some.flatmap(lambda dims: st.tuples(*(st.sampled_from((d, d - n)) for d in dims)))
    return shape, draw(st.none() | one | (some if n else st.just(()))), draw(st.booleans())


@st.composite
def products(draw):
    """Two shapes that matmul takes: vectors, matrices, and stacks that broadcast; lengths may be 0."""
    side = st.integers(0, 3)
    m, k, n = draw(side), draw(side), draw(side)
    stacks = hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=0, max_dims=2, min_side=0, max_side=3)
    left, right = draw(stacks).input_shapes
    return draw(st.sampled_from([(k,), (*left, m, k)])), draw(st.sampled_from([(k,), (*right, k, n)]))


@st.composite
def indexed(draw):
    """A shape and an expression that NumPy accepts between the brackets."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3))
    basic = hnp.basic_indices(shape, allow_newaxis=True)
    whole = hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    boolean = hnp.arrays(bool, shape)
    return shape, draw(basic | whole | boolean)
