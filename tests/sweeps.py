"""One forward and one backward pass of a row of the catalog, layouts in memory, and closeness: what the tests of the
catalog share."""

import copy
from types import SimpleNamespace

import numpy as np

from scratchgen import nn
from scratchgen.autograd import grad
from scratchgen.catalog import ROWS
from scratchgen.tensors import Tensor, constant

CASTS = {"cast", "Tensor.to", "Tensor.cpu", "Tensor.float", "Tensor.double"}  # what changes dtypes is tested by itself


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

    def g(*inputs):
        rest = iter(inputs)
        return [y for y in f(*(next(rest) if floating(x) else Tensor(x) for x in arrays)) if y.dtype.kind in "fc"]

    return g, floats


def close(a, b, rtol, what="", least=1e-3):
    """Equal but for `rtol` of the largest magnitude, or of `least`."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, not {b.shape}"
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=least))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale, err_msg=str(what))


def flat(ys):
    if isinstance(ys, list | tuple):
        for y in ys:
            yield from flat(y)
    else:
        yield np.asarray(ys)


def transposed(x):
    """In column order."""
    return np.array(x, order="F")


def strided(x):
    """Every other element of something larger, the last dimension backwards."""
    larger = np.full([2 * n for n in x.shape], 7, x.dtype)
    view = larger[(*[slice(None, None, 2)] * (x.ndim - 1), slice(None, None, -2))] if x.ndim else larger
    view[...] = x
    return view
