"""Hooks see, and may replace, gradients and what goes into and out of modules; nothing else changes by them."""

import copy
import gc
import weakref

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import nn
from scratchgen.autograd import Function
from scratchgen.grad_mode import no_grad
from scratchgen.tensors import Tensor


def value(g):
    return g if g is None else g.item()


def leaf(*values):
    return Tensor(np.array(values), requires_grad=True)


# ---------------------------------------------------------------------------------------------------------------------
# Tensors
# ---------------------------------------------------------------------------------------------------------------------


def test_a_hook_is_called_once_with_the_complete_gradient():
    x, seen = leaf(2.0), []
    y = x * 3
    y.register_hook(lambda g: seen.append(g.tolist()))
    (y * y + y).sum().backward()  # both uses of y: 2 y + 1 = 13
    assert seen == [[13.0]] and x.grad.tolist() == [39.0]


def test_what_a_hook_returns_goes_on():
    x = leaf(2.0)
    y = x * 3
    y.register_hook(lambda g: g + 1)
    y.register_hook(lambda g: g * 10)  # in the order of registration: (12 + 1) · 10
    y.retain_grad()
    y.register_hook(lambda g: g - 30)  # before what is kept, whenever it was registered
    (y * y).sum().backward()
    assert y.grad.tolist() == [100.0] and x.grad.tolist() == [300.0]


def test_a_hook_of_a_leaf_acts_on_what_arrives_and_its_handle_removes_it():
    x = leaf(1.0, 2.0)
    x.grad = Tensor(np.array([5.0, 5.0]))
    with x.register_hook(lambda g: g * 10) as handle:
        (x * 2).sum().backward()
        assert x.grad.tolist() == [25.0, 25.0]  # 5 + 10 · 2, not 10 · (5 + 2)
    handle.remove()  # again: nothing happens
    (x * 2).sum().backward()
    assert x.grad.tolist() == [27.0, 27.0]


def test_grad_returns_what_the_hooks_leave():
    x = leaf(2.0)
    y = x * 3
    y.register_hook(lambda g: g * 10)
    z = (y * y).sum()
    assert sg.grad(z, y, retain_graph=True)[0].tolist() == [120.0] and sg.grad(z, x)[0].tolist() == [360.0]


class Two(Function):
    """a = 2 x, b = 3 x"""

    def forward(self, x):
        return 2 * x, 3 * x

    def backward(self, da, db):
        return 2 * da + 3 * db


def test_hooks_of_one_of_several_results():
    x, seen = leaf(1.0), []
    a, b = Two.apply(x)
    a.register_hook(lambda g: g * 10)
    b.register_hook(seen.append)
    a.retain_grad()
    b.retain_grad()
    a.sum().backward(retain_graph=True)
    assert x.grad.tolist() == [20.0] and seen == [] and b.grad is None  # nothing used b: there is no gradient to show
    (a + b).sum().backward()
    assert x.grad.tolist() == [43.0] and len(seen) == 1 and b.grad.tolist() == [1.0] and a.grad.tolist() == [20.0]


def test_a_gradient_that_a_hook_keeps_stays_what_it_was():
    x, kept = leaf(1.0, 2.0), []
    y = x * 1
    y.register_hook(kept.append)
    v = Tensor(np.array([1.0, 1.0]))
    (y + x).backward(v)  # the cotangent of y is v itself, and x adds two gradients up
    assert kept[0].tolist() == [1.0, 1.0] and v.tolist() == [1.0, 1.0] and x.grad.tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="change a clone"):
        kept[0].zero_()
    x.grad.zero_()
    assert kept[0].tolist() == [1.0, 1.0]


def test_gradients_that_hooks_pass_on_can_be_written_to_and_are_owned():
    x, own = leaf(1.0, 2.0), Tensor(np.array([7.0, 8.0]))
    for hook in (lambda g: g, lambda g: g.detach(), lambda g: g.reshape(2), lambda g: own):
        x.grad = None
        with x.register_hook(hook):
            (x * 3).sum().backward()
        nn.utils.clip_grad_value_([x], 1.0)
        assert x.grad.tolist() == [1.0, 1.0]
    assert own.tolist() == [7.0, 8.0]


def test_a_hook_is_differentiated_with_the_rest():
    x = leaf(2.0)
    y = x * 1
    y.register_hook(lambda g: g * g)
    (g,) = sg.grad((y**3).sum(), x, create_graph=True)  # (3 y²)²
    assert g.tolist() == [144.0]
    (h,) = sg.grad(g.sum(), x)  # (36 y³)²: the second sweep calls the hook of y, too
    assert h.tolist() == [288.0**2]


def test_kept_gradients_add_up_own_their_memory_and_can_be_differentiated():
    x = leaf(2.0)
    y = x * 3
    y.retain_grad()
    z = y.sum()
    z.backward(retain_graph=True)
    v = y.grad
    z.backward()
    assert y.grad.tolist() == [2.0] and v.tolist() == [1.0]
    y = x * 3
    y.retain_grad()
    v = Tensor(np.array([4.0]))
    y.backward(v)
    assert y.grad is not v and not np.may_share_memory(y.grad.data, v.data)
    x.grad = None
    y = x * 3
    y.retain_grad()
    (y**2).sum().backward(create_graph=True)
    assert sg.grad(y.grad.sum(), x)[0].tolist() == [6.0]
    x.retain_grad()  # a leaf keeps its gradient anyway
    x.grad = None
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2.0]


def test_nothing_lives_longer_by_a_kept_gradient():
    x = leaf(2.0)
    y = x * 3
    y.retain_grad()
    ref, node = weakref.ref(y), weakref.ref(y.node)
    gc.disable()
    try:
        z = (y * y).sum()
        del y
        z.backward()
        assert ref() is None and node() is None and x.grad.tolist() == [36.0]
    finally:
        gc.enable()


def test_the_hook_of_a_parameter_sees_the_whole_gradient_of_a_checkpoint_once():
    w, seen = leaf(3.0), []
    w.register_hook(lambda g: seen.append(g.tolist()))
    x = leaf(2.0)
    (sg.checkpoint(lambda x: x * w * w, x) + w).sum().backward()
    assert seen == [[13.0]] and w.grad.tolist() == [13.0]


def test_the_hooks_of_a_parameter_stay_when_its_module_is_converted():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.register_hook(lambda g: g * 10)
    layer.double()
    layer(Tensor([[2.0]], dtype=np.float64)).sum().backward()
    assert layer.weight.grad.tolist() == [[20.0]]


@pytest.mark.parametrize(("hook", "said"), [
    (lambda g: 1.0, r"None or a gradient of \(2,\) and float64, got float"),
    (lambda g: g[:1], r"None or a gradient of \(2,\) and float64, got \(1,\) and float64"),
    (lambda g: g.float(), r"got \(2,\) and float32"),
])  # fmt: skip
def test_a_wrong_gradient_from_a_hook_is_refused(hook, said):
    x = leaf(1.0, 2.0)
    x.register_hook(hook)
    with pytest.raises(ValueError, match=said):
        x.sum().backward()


def test_hooks_where_there_is_no_gradient_are_refused():
    for call in (lambda t: t.register_hook(print), lambda t: t.retain_grad()):
        with pytest.raises(RuntimeError, match=r"expected a tensor that requires a gradient, got one of shape \(2,\)"):
            call(Tensor([1.0, 2.0]))
    with pytest.raises(TypeError, match="register_hook: expected a function, got int"):
        leaf(1.0).register_hook(3)


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


class Mix(nn.Module):
    def forward(self, a, b=None, *, scale=1.0):
        return a * scale, a if b is None else a * b


def test_pre_hooks_and_hooks_of_the_forward_pass():
    layer, log = Mix(), []
    layer.register_forward_pre_hook(lambda m, xs: log.append(("pre", m, len(xs))))
    layer.register_forward_pre_hook(lambda m, xs: xs[0] + 1)  # one value stands for the tuple of it
    layer.register_forward_pre_hook(lambda m, xs: (xs[0] * 2,), prepend=True)
    layer.register_forward_hook(lambda m, xs, ys: ys[0] + xs[0])
    x = Tensor([3.0])
    assert layer(x).tolist() == [14.0] and log == [("pre", layer, 1)]  # 2 · 3 + 1 = 7, and 7 + 7
    layer = Mix()
    layer.register_forward_pre_hook(lambda m, xs, options: (xs, {"scale": options["scale"] + 1}), with_kwargs=True)
    handle = layer.register_forward_hook(lambda m, xs, options, ys: (ys, options), with_kwargs=True)
    (y, _), options = layer(x, scale=2.0)
    assert y.tolist() == [9.0] and options == {"scale": 3.0}
    handle.remove()
    assert layer(x, scale=2.0)[0].tolist() == [9.0]
    layer.register_forward_pre_hook(lambda m, xs, options: xs, with_kwargs=True)
    with pytest.raises(ValueError, match=r"None or \(inputs, options\)"):
        layer(x, scale=1.0)


def test_hooks_run_inside_containers_and_are_copied_with_the_module():
    model, shapes = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), []
    for layer in model:
        layer.register_forward_hook(lambda m, xs, y: shapes.append(y.shape))
    model(sg.ones(4, 2))
    copy.deepcopy(model)(sg.ones(1, 2))
    assert shapes == [(4, 3), (4, 3), (1, 3), (1, 3)] and list(model.state_dict()) == ["0.weight", "0.bias"]


def test_a_backward_hook_sees_all_gradients_of_a_module():
    layer, seen = Mix(), []
    layer.register_full_backward_hook(lambda m, *grads: seen.append((m, *[[value(g) for g in gs] for gs in grads])))
    a, b = leaf(2.0), leaf(5.0)
    first, second = layer(a, b, scale=3.0)
    (first + 10 * second).sum().backward()
    assert seen == [(layer, [53.0, 20.0], [1.0, 10.0])] and a.grad.item() == 53 and b.grad.item() == 20
    seen.clear()
    layer(a, Tensor(np.array([7.0])))[1].sum().backward()  # b is a constant, and nothing used the first result
    assert seen == [(layer, [7.0, None], [0.0, 1.0])]
    seen.clear()
    layer(Tensor(np.array([1.0])), b)[1].sum().backward()
    assert seen == [(layer, [None, 1.0], [None, 1.0])]


def test_a_backward_hook_replaces_gradients_of_the_inputs():
    layer = nn.Linear(1, 1, bias=False).double()
    with no_grad():
        layer.weight.fill_(3.0)
    layer.register_full_backward_hook(lambda m, gi, go: (gi[0] * 10,))
    first = layer.register_full_backward_hook(lambda m, gi, go: gi[0] + 1, prepend=True)
    x = leaf(2.0)
    layer(x).sum().backward()
    assert x.grad.tolist() == [40.0] and layer.weight.grad.tolist() == [[2.0]]  # (3 + 1) · 10
    first.remove()
    (g,) = sg.grad((layer(x) ** 2).sum(), x, create_graph=True)  # 10 · 2 w² x
    assert g.tolist() == [360.0]
    layer._hooks.backward.clear()
    assert sg.grad((layer(x) ** 2).sum(), x)[0].tolist() == [36.0]


def test_a_backward_hook_without_inputs_that_require_a_gradient():
    layer, seen = nn.Linear(2, 1), []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go[0].tolist())))
    layer(sg.ones(1, 2)).sum().backward()
    assert seen == [((None,), [[1.0]])] and layer.weight.grad.tolist() == [[1.0, 1.0]]
    with sg.no_grad():
        layer(sg.ones(1, 2))
    assert len(seen) == 1


@pytest.mark.parametrize(("hook", "said"), [
    (lambda m, gi, go: (gi[0], gi[0]), "None or 1 gradients, got 2"),
    (lambda m, gi, go: (1.0,), r"None or a gradient of shape \(1, 2\) from the hook, got float"),
    (lambda m, gi, go: (gi[0][0],), r"got a tensor of shape \(2,\)"),
])  # fmt: skip
def test_wrong_gradients_from_a_backward_hook_are_refused(hook, said):
    layer = nn.Linear(2, 1)
    layer.register_full_backward_hook(hook)
    with pytest.raises(ValueError, match=said):
        layer(sg.ones(1, 2).requires_grad_()).sum().backward()
    with pytest.raises(TypeError, match="register_forward_hook: expected a function, got NoneType"):
        layer.register_forward_hook(None)


def test_second_derivatives_pass_the_borders_of_hooks():
    """A gradient penalty is what it is without hooks; each of the two sweeps calls them."""
    layers = [nn.Linear(2, 3, generator=np.random.default_rng(0)).double() for _ in range(2)]
    calls = []
    layers[0].register_full_backward_hook(lambda m, gi, go: calls.append(len(gi)))
    grads = []
    for layer in layers:
        x = leaf(0.5, -1.0)
        (g,) = sg.grad(layer(x).tanh().sum(), x, create_graph=True)
        (g * g).sum().backward()
        grads.append([x.grad.data, layer.weight.grad.data, layer.bias.grad.data])
    for a, b in zip(*grads, strict=True):
        assert np.array_equal(a, b)
    assert calls == [1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# inference_mode
# ---------------------------------------------------------------------------------------------------------------------


def test_inference_mode():
    x = leaf(1.0)

    @sg.inference_mode
    def bare():
        return x * 2

    @sg.inference_mode()
    def called():
        yield x * 2

    assert not bare().requires_grad and not next(called()).requires_grad and sg.is_grad_enabled()
    with sg.inference_mode() as nothing:
        y = x * 2
        with sg.inference_mode(False):
            assert (x * 2).requires_grad
        with sg.inference_mode(mode=True):
            pass
        assert not (x * 2).requires_grad and nothing is None
    assert not y.requires_grad and (y * x).requires_grad and sg.is_grad_enabled()
    with sg.no_grad(), sg.inference_mode(False):
        assert sg.is_grad_enabled()
    with pytest.raises(TypeError, match="inference_mode: expected True or False, got 1"):
        sg.inference_mode(1)
