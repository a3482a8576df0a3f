"""`checkpoint`: what is computed again is what was computed."""

import weakref

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


@pytest.fixture
def block():
    rng = np.random.default_rng(3)
    w = sg.tensor(rng.standard_normal((6, 6)), requires_grad=True)

    def f(x, scale):
        return F.dropout(F.softmax(x @ w, -1), 0.3) @ w.T * scale

    return f, w, sg.tensor(rng.standard_normal((4, 6)), requires_grad=True)


def test_checkpoint_is_plain_bit_for_bit(block):
    f, w, x = block
    results = []
    for run in (f, lambda *a: sg.checkpoint(f, *a)):
        sg.manual_seed(1)
        w.grad = x.grad = None
        y = run(x * 1.5, 2.0)
        y.square().sum().backward()
        results.append((y.data, x.grad.data, w.grad.data, sg.get_rng_state()))
    for plain, checkpointed in zip(*results, strict=True):
        np.testing.assert_equal(plain, checkpointed)


def test_checkpoint_leaves_the_generator_as_it_found_it():
    """Random numbers drawn between the two sweeps are not drawn again after the second."""
    x = leaf(1.0, 2.0)
    y = sg.checkpoint(lambda t: F.dropout(t, 0.5), x)
    sg.rand(7)
    before = sg.get_rng_state()
    y.sum().backward()
    np.testing.assert_equal(sg.get_rng_state(), before)


def replayed(make, x, twice=False):
    """(what a function gives and leaves behind) plain and checkpointed: its output, gradients, buffers, and the next draws."""
    results = []
    for checkpointed in (False, True):
        sg.manual_seed(5)
        g = np.random.default_rng(11)
        module, f = make(g)
        t = sg.tensor(x, requires_grad=True)
        y = sg.checkpoint(f, t) if checkpointed else f(t)
        drawn = g.random(3), sg.rand(2).data  # between the two sweeps
        for _ in range(1 + twice):
            y.square().sum().backward(retain_graph=twice)
        buffers = [b.data.copy() for b in module.buffers()]
        grads = [p.grad.data for p in (t, *module.parameters())]
        results.append((y.data, drawn, grads, buffers, g.random(3), sg.get_rng_state()))
    return results


def block_of(*modules):
    block = sg.nn.Sequential(*modules).double()
    return block, block


def with_attention(g):
    attention = sg.nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True, generator=g, dtype=np.float64)
    return attention, lambda x: attention(x, x, x, need_weights=False)[0]


def with_two_sources(g):
    other = np.random.default_rng(12)
    module = sg.nn.Linear(4, 4, generator=g).double()
    return module, lambda x: F.dropout(F.dropout(F.dropout(module(x), 0.5, generator=g), 0.5), 0.5, generator=other)


def with_noise(g):
    module = sg.nn.Linear(4, 4, generator=g).double()
    return module, lambda x: module(x) * sg.randn_like(x, generator=g) + sg.rand(4, dtype=np.float64) * x


class Power(sg.nn.Module):
    """One step of the power iteration on WᵀW in each forward pass: reads and writes its buffer."""

    def __init__(self):
        super().__init__()
        self.weight = sg.nn.Parameter(np.arange(16.0).reshape(4, 4) - 7)
        self.register_buffer("u", sg.tensor(np.ones(4)))

    def forward(self, x):
        with sg.no_grad():
            v = self.weight @ (self.weight.T @ self.u)
            self.u.copy_(v / sg.norm(v))
        return x @ self.weight / sg.norm(self.weight.T @ self.u.clone())


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("make", [
    lambda g: block_of(sg.nn.Linear(4, 4, generator=g), sg.nn.Dropout(0.5, generator=g), sg.nn.Dropout(0.5, generator=g)),
    with_attention,
    with_two_sources,
    with_noise,
    lambda g: block_of(sg.nn.BatchNorm1d(5), sg.nn.Dropout(0.5, generator=g), sg.nn.BatchNorm1d(5, momentum=None)),
    lambda g: (power := Power(), power),
], ids=["dropout", "attention", "two sources", "noise", "batch norm", "power iteration"])  # fmt: skip
def test_checkpoint_replays_sources_and_buffers(make, twice):
    """A layer's own source draws the same mask again, and what a layer writes to moves once, bit for bit as without."""
    x = np.random.default_rng(4).standard_normal((3, 5, 4))
    plain, checkpointed = replayed(make, x, twice)
    np.testing.assert_equal(checkpointed, plain)


def test_checkpoint_moves_running_statistics_once_by_hand():
    norm = sg.nn.BatchNorm2d(1).double()
    x = sg.tensor(np.array([1.0, 3.0]).reshape(2, 1, 1, 1), requires_grad=True)
    sg.checkpoint(norm, x).sum().backward()
    assert norm.running_mean.item() == pytest.approx(0.1 * 2) and norm.running_var.item() == pytest.approx(0.9 + 0.1 * 2)
    assert norm.num_batches_tracked.item() == 1


def test_checkpoints_inside_checkpoints_and_sweeps_inside_checkpoints():
    w = leaf(0.5, -1.5, 2.0)

    def plain(f, t):
        return f(t)

    def whole(run):
        g = np.random.default_rng(2)
        x = leaf(1.0, 2.0, 3.0)

        def inner(t):
            return F.dropout(t * w, 0.4, generator=g).tanh()

        def outer(t):
            t = t * 1.0
            y = run(inner, run(inner, t))
            (slope,) = sg.grad(y.sum(), t, create_graph=True)  # runs the inner ones again; the next draw goes on from here
            return y + F.dropout(slope, 0.4, generator=g)

        y = run(outer, x)
        return [y.data, *(d.data for d in sg.grad(y.sum(), [w, x])), g.random(2)]

    for a, b in zip(whole(plain), whole(sg.checkpoint), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_checkpoint_says_where_it_cannot_replay(dtype):
    x = sg.tensor(np.linspace(-1, 1, 1000, dtype=dtype), requires_grad=True)
    g = np.random.default_rng(1)
    model = sg.nn.Dropout(0.5)
    ys = [
        sg.checkpoint(lambda t: t * sg.tensor((g.random(1000) < 0.5).astype(dtype)), x),  # drawn behind the library's back
        sg.checkpoint(model, x),
        sg.checkpoint(lambda t: (t * np.nan, sg.tensor([g.integers(2**60)]))[0], x),
    ]
    model.eval()
    for y in ys[:2]:
        with pytest.raises(RuntimeError, match="^checkpoint: expected the function to give the same when"):
            y.sum().backward()
    ys[2].sum().backward()  # NaN is NaN again
    assert np.isnan(x.grad.data).all()


def test_checkpoint_of_several_results():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def f(t):
        return t * w, (t * t * w).sum(), t.exp()

    plain = sg.grad([y.sum() for y in f(x)[:2]], [x, w])
    ys = sg.checkpoint(f, x)
    assert [y.shape for y in ys] == [(2,), (), (2,)]
    for a, b in zip(plain, sg.grad([ys[0].sum(), ys[1]], [x, w]), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_checkpoint_to_second_order(block):
    f, w, x = block
    found = []
    for run in (f, lambda *a: sg.checkpoint(f, *a)):
        sg.manual_seed(1)
        gx, gw = sg.grad(run(x, 2.0).square().sum(), [x, w], create_graph=True)
        found.append([g.data for g in sg.grad((gx * gx).sum() + (gw * gw).sum(), [x, w])])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_checkpoint_reaches_captured_tensors_of_the_graph():
    x = leaf(0.5, -0.3)
    scale = x.exp()  # captured by the function, not an argument
    plain = sg.grad((x * scale).tanh().sum(), x)[0]
    scale = x.exp()
    y = sg.checkpoint(lambda t: (t * scale).tanh(), x)
    np.testing.assert_allclose(sg.grad(y.sum(), x)[0].data, plain.data, rtol=1e-14)


def test_checkpoint_stores_only_its_input():
    x = sg.ones(1000, requires_grad=True)
    inner = []

    def f(t):
        for _ in range(5):
            t = t * 1.5
            inner.append(weakref.ref(t))
        return t * t

    y = sg.checkpoint(f, x)
    assert all(ref() is None for ref in inner)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, 2 * 1.5**10, rtol=1e-5)
