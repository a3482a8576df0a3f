"""Whose memory a gradient is: nothing that somebody else can read is ever written to, and no more is copied than must be."""

import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import autograd
from scratchgen.autograd import Function
from scratchgen.gradients import GradientMemory, counts_references
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig
from scratchgen.tensors import constant


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


def test_gradients_never_share_memory():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    cotangent = sg.tensor(np.array([1.0, 1.0]))
    (x + y).backward(cotangent)
    assert not np.shares_memory(x.grad.data, y.grad.data)
    assert not np.shares_memory(x.grad.data, cotangent.data)
    gx, gy = sg.grad((x + y).sum(), [x, y])
    assert not np.shares_memory(gx.data, gy.data)


def test_in_graph_accumulation_never_writes_into_a_borrowed_array():
    x = leaf(1.0, 2.0)
    y = leaf(5.0, 6.0)
    cotangent = sg.tensor(np.array([1.0, 10.0]))
    s = x + y  # passes the cotangent on as it is, to x and to y
    t = s + x + x  # so x collects four times
    t.backward(cotangent)
    np.testing.assert_array_equal(cotangent.data, [1, 10])
    np.testing.assert_array_equal(x.grad.data, [3, 30])
    np.testing.assert_array_equal(y.grad.data, [1, 10])


def test_a_gradient_once_handed_out_stays_as_it_is():
    x = leaf(1.0)
    (x * 2).backward()
    first = x.grad
    (x * 2).backward()
    assert first.item() == 2 and x.grad.item() == 4


def test_a_gradient_handed_out_is_read_only():
    x = leaf(1.0, 2.0)
    (x + x * 2 + x * 3).sum().backward()
    (g,) = sg.grad((x + x * 2 + x * 3).sum(), x)
    for array in (x.grad.data, g.data):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


class Keep(Function):
    """y = 2 x, whose gradient's array somebody else keeps."""

    kept: list = []
    how = staticmethod(lambda dx: dx)

    def forward(self, x):
        return 2 * x

    def backward(self, dy):
        dx = constant(dy.data * 2)
        Keep.kept.append(Keep.how(dx))
        return dx


@pytest.mark.parametrize("how", [lambda dx: dx, lambda dx: dx.data, lambda dx: dx.data[:1]])
@pytest.mark.parametrize("other", [lambda x: x * 3, lambda x: x])
def test_a_gradient_that_somebody_keeps_is_never_written_to(how, other):
    """x̄ = 2 ȳ + …: the sum of both goes to memory of its own, whoever comes first, also where x is a leaf."""
    x = sg.tensor([1.0, 2.0], requires_grad=True)
    Keep.kept, Keep.how = [], staticmethod(how)
    for order in (0, 1):
        x.grad = None
        terms = [lambda: Keep.apply(x), lambda: other(x)]
        y, z = (term() for term in (terms if order else terms[::-1]))
        (y + z).sum().backward()
        expected = x.grad.numpy().copy()
        with sg.no_grad():
            x.grad.zero_()
        assert np.all(expected == (5.0 if other(2.0) == 6.0 else 3.0))
    for kept in Keep.kept:
        kept = kept.data if isinstance(kept, sg.Tensor) else kept
        assert np.all(kept == 2.0)


def test_gradients_of_one_sweep_share_no_memory():
    """y = a + b + c: one cotangent for all, three gradients that can be changed one by one."""
    a, b, c = (sg.tensor([1.0, 2.0], requires_grad=True) for _ in range(3))
    (a + b + c).sum().backward()
    with sg.no_grad():
        a.grad.zero_()
        b.grad.fill_(5.0)
    assert c.grad.tolist() == [1.0, 1.0] and b.grad.tolist() == [5.0, 5.0]


def test_a_sum_over_an_expanded_gradient_is_right():
    """ȳ of a sum is one number seen many times: adding to it in place would add to all at once."""
    x = sg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * 1).sum().backward()
    y = x * 1
    (y.sum() + (y * sg.tensor([1.0, 2.0, 3.0])).sum() + y.reshape(3, 1).sum()).backward()
    assert x.grad.tolist() == [1 + 3.0, 1 + 4.0, 1 + 5.0]


def test_gradients_that_were_added_up_are_frozen_like_any_other():
    x = sg.tensor(np.ones(3), requires_grad=True)
    (x * 2 + x * 3 + x * x).sum().backward()
    (g,) = sg.grad((x * 2 + x * 3 + x * x).sum(), x)
    for array in (x.grad.data, g.data):
        with pytest.raises(ValueError, match="read-only"):
            array += 1


class InABuffer(Function):
    """y = x, whose gradient lies in memory that is not NumPy's."""

    view = False
    buffer = bytearray()

    def forward(self, x):
        return x.copy()

    def backward(self, dy):
        InABuffer.buffer[:] = dy.data.tobytes()
        gradient = np.frombuffer(InABuffer.buffer, dy.dtype)
        return constant(gradient[:] if self.view else gradient)


@pytest.mark.parametrize("view", [False, True])
def test_a_gradient_in_a_buffer_is_copied(view):
    InABuffer.view, InABuffer.buffer = view, bytearray(8)
    x = sg.tensor([1.0, 2.0], requires_grad=True)
    y = InABuffer.apply(x * 1)
    y.sum().backward()
    z = x * 1
    (z * 2 + InABuffer.apply(z)).sum().backward()
    assert np.frombuffer(InABuffer.buffer, np.float32).tolist() == [1.0, 1.0]
    assert x.grad.tolist() == [4.0, 4.0]


# -------------------------------------------------------------------------------------------- counted, and always copied


@pytest.fixture
def counter(monkeypatch):
    """How often the sweep asks whether a gradient is owned, and how often it is."""
    if not counts_references():
        pytest.skip("reference counts mean nothing here")
    asked = Counter()
    is_owned = GradientMemory.is_owned

    def count(self, held, i):
        owned = is_owned(self, held, i)
        asked[owned] += 1
        return owned

    monkeypatch.setattr(GradientMemory, "is_owned", count)
    return asked


def copying(monkeypatch):
    monkeypatch.setattr(autograd, "memory", GradientMemory(counted=False))


def pictures():
    return (np.random.default_rng(1).random((5, 1, 8, 8)) < 0.3).astype(np.float32), None


def tokens():
    ids = np.random.default_rng(1).integers(0, 11, (3, 9))
    return ids[:, :-1], ids[:, 1:]


MODELS = {
    "gpt": (lambda: GPT(GPTConfig(11, 8, 2, 2, 16, bias=True)), tokens),
    "vae": (lambda: VAE(VAEConfig(network="conv", hidden=4, latent=3)), pictures),
    "dcgan": (lambda: GAN(GANConfig(network="dcgan", hidden=8, latent=4)), pictures),
}


def trained(name):
    """The bits of a model and of its gradients after two steps."""
    make, batch = MODELS[name]
    sg.manual_seed(3)
    model = make()
    optimizers = model.optimizers()
    losses = [model.training_step(batch(), optimizers) for _ in range(2)]
    return losses, [(p.data.tobytes(), p.grad.data.tobytes()) for p in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_has_the_same_bits_where_all_gradients_are_copied(monkeypatch, counter, name):
    fast = trained(name)
    saved, borrowed = counter[True], counter[False]
    assert saved > 2 * len(fast[1]) and saved > borrowed  # most parameters of both steps keep the memory that backward made
    copying(monkeypatch)
    counter.clear()
    assert trained(name) == fast
    assert counter[True] == 0 and counter[False] == saved + borrowed


GRAPHS = {
    "a sum of three": lambda x, w: (x * 2 + x * w + x.exp()).sum(),
    "the same tensor twice": lambda x, w: ((x + x) * w + x).sum(),
    "a view": lambda x, w: (x.reshape(3, 2).reshape(6) * w + x.T + x[::2].sum()).sum(),
    "an expanded gradient": lambda x, w: x.sum() + (x * w).sum() + w.sum(),
    "a broadcast": lambda x, w: (x.reshape(6, 1) * w + w + x.mean()).square().sum(),
    "pieces": lambda x, w: sg.cat([*x.split(2), w]).cumsum(0).prod() + x.chunk(2)[0].sum(),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("again", [False, True])
def test_gradients_have_the_same_bits_where_all_are_copied(monkeypatch, counter, name, again):
    def gradients():
        x, w = leaf(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), leaf(1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
        y = GRAPHS[name](x, w)
        if again:
            y = sg.grad(y, x, create_graph=True)[0].square().sum() + w.sum() + x.sum()
        y.backward()
        return [t.grad.data.tobytes() for t in (x, w)], [g.data.tobytes() for g in sg.grad(GRAPHS[name](x, w), [x, w])]

    fast = gradients()
    copying(monkeypatch)
    counter.clear()
    assert gradients() == fast and counter[True] == 0


def test_a_sum_of_many_gradients_is_made_in_one_array(counter):
    x = leaf(1.0, 2.0)
    sum(x * i for i in range(20)).sum().backward()
    assert counter == {True: 20}  # 19 sums, all over the first gradient, which becomes x.grad
    assert x.grad.tolist() == [190.0, 190.0]


@pytest.mark.parametrize(
    "implementation, lock, trusted", [("cpython", True, True), ("cpython", False, False), ("pypy", True, False)]
)
def test_counts_are_trusted_in_cpython_with_its_global_lock(monkeypatch, implementation, lock, trusted):
    monkeypatch.setattr(sys, "implementation", SimpleNamespace(name=implementation))
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: lock, raising=False)
    assert counts_references() == trusted


def test_nodes_are_freed_where_nothing_is_counted(monkeypatch):
    copying(monkeypatch)
    x = leaf(1.0, 2.0)
    y = x.exp()
    z = (y * y).sum()
    z.backward()
    assert y.node.edges is None and z.node.edges is None
    with pytest.raises(RuntimeError, match="already swept"):
        z.backward()
