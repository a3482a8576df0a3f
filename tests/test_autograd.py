"""The chain rule: nodes, the backward sweep, `grad`. What each op computes is tested from the catalogue."""

import gc
import weakref

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen.autograd import Function


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


# -------------------------------------------------------------------------------------------------------------------- the sweep


def test_a_node_used_twice_is_complete_before_it_is_passed_on():
    a = leaf(3.0)
    b = a + a
    c = b + b
    c.backward()
    assert a.grad.item() == 4


def test_diamonds_of_different_depth():
    x = leaf(0.7)
    deep = x
    for _ in range(5):
        deep = deep * x
    y = deep * x + x  # x⁷ + x
    y.backward()
    np.testing.assert_allclose(x.grad.item(), 7 * 0.7**6 + 1, rtol=1e-14)


def test_a_chain_of_50_000_nodes_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y + x
    y.backward()
    assert x.grad.item() == 50_001


def test_a_chain_of_50_000_nodes_is_freed_without_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y * x
    del y
    gc.collect()


def test_grad_to_any_order():
    x = leaf(0.3, -1.2)
    y = (x**5).sum()
    for factor, power in [(5, 4), (20, 3), (60, 2), (120, 1)]:
        (g,) = sg.grad(y, x, create_graph=True)
        np.testing.assert_allclose(g.data, factor * x.data**power, rtol=1e-13)
        y = g.sum()


def test_grad_touches_no_dot_grad_and_backward_accumulates():
    x = leaf(2.0)
    (g,) = sg.grad(x * x, x)
    assert g.item() == 4 and x.grad is None
    (x * x).backward()
    (x * x).backward()
    assert x.grad.item() == 8


def test_backward_with_inputs_leaves_others_alone():
    x, y = leaf(2.0), leaf(5.0)
    (x * y).backward(inputs=[x])
    assert x.grad.item() == 5 and y.grad is None


def test_gradient_at_an_intermediate_tensor():
    x = leaf(2.0, 3.0)
    h = x * x
    (gh, gx) = sg.grad((h * h).sum(), [h, x])
    np.testing.assert_array_equal(gh.data, 2 * x.data**2)
    np.testing.assert_array_equal(gx.data, 4 * x.data**3)


def test_several_roots_with_cotangents():
    x = leaf(2.0)
    (g,) = sg.grad([x * 3, x * x], x, [leaf(10.0).detach(), leaf(1.0).detach()])
    assert g.item() == 34


def test_an_input_that_does_not_matter():
    x, y = leaf(1.0), leaf(1.0)
    with pytest.raises(RuntimeError, match="input 1 does not influence"):
        sg.grad(x * 2, [x, y])
    assert sg.grad(x * 2, [x, y], allow_unused=True)[1] is None


def test_pruned_sweep_does_not_compute_what_nobody_asked_for():
    asked = []

    class Spy(Function):
        def forward(self, a, b):
            return a * b

        def backward(self, dy):
            asked.append(tuple(bool(n) for n in self.needs_input_grad))
            a, b = self.inputs
            return dy * b, dy * a

    x, w = leaf(2.0), leaf(3.0)
    (g,) = sg.grad(Spy.apply(x, w), x)
    assert g.item() == 3 and asked == [(True, False)]


def test_same_bits_twice():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((64, 64)).astype(np.float32)

    def run():
        x = sg.tensor(a, requires_grad=True)
        y = F.softmax(x @ x.T, 1) @ x
        (y * y).sum().backward()
        return x.grad.data

    np.testing.assert_array_equal(run(), run())


def test_backward_to_some_inputs_adds_to_their_gradients():
    x, w, other = leaf(2.0), leaf(3.0), leaf(1.0)
    (x * w).backward(inputs=[x])
    assert x.grad.item() == 3 and w.grad is None
    (x * w * 2).backward(inputs=[x])
    assert x.grad.item() == 9
    (w * w).backward(inputs=[x, w])
    assert x.grad.item() == 9 and w.grad.item() == 6
    (x * w).backward(inputs=[other])
    assert other.grad is None


def test_backward_with_its_graph_kept_can_be_repeated_and_differentiated():
    x = leaf(2.0)
    y = x * x * x
    y.backward(create_graph=True)
    assert x.grad.item() == 12
    (second,) = sg.grad(x.grad, x, retain_graph=True)
    assert second.item() == 12
    x.grad = None
    y.backward(retain_graph=False)
    with pytest.raises(RuntimeError, match="already swept"):
        y.backward()


def test_gradients_in_dot_grad_stay_in_the_graph_though_both_are_one_tensor():
    """y = Σ (x + w)²: x̄ = w̄ = 2 (x + w), whose sum has gradient 2 with respect to both."""
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (x + w).square().sum().backward(create_graph=True)
    assert x.grad.requires_grad and w.grad.requires_grad
    for g in (x.grad, w.grad):
        assert [h.tolist() for h in sg.grad(g.sum(), [x, w], retain_graph=True)] == [[2, 2], [2, 2]]


def test_gradients_of_several_scalars_add_up_without_cotangents():
    x = leaf(2.0)
    assert sg.grad([x * 3, x * x], x)[0].item() == 7
    with pytest.raises(ValueError, match="expected one cotangent for each of 2 outputs, got 1"):
        sg.grad([x * 3, x * x], x, [sg.ones(1, dtype=np.float64)])


def test_shared_nodes_are_visited_once():
    """2⁶⁰ paths lead from y to x."""
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    (g,) = sg.grad(y, x)
    assert g.item() == 2.0**60


def test_an_infinite_gradient_is_passed_on_unless_asked():
    x = leaf(0.0)
    with np.errstate(divide="ignore"):
        sg.sqrt(x).backward()
    assert x.grad.item() == np.inf


def test_an_unused_piece_among_the_inputs():
    a, b = (leaf(1.0, 2.0) * 1).split(1)
    used, unused = sg.grad((a * 3).sum(), [a, b], allow_unused=True)
    assert used.item() == 3 and unused is None


def test_a_leaf_that_is_gone_needs_no_gradient():
    x, w = leaf(1.0), leaf(2.0)
    y = x + w
    del x
    y.backward()
    assert w.grad.item() == 1


# -------------------------------------------------------------------------------------------------------------------- functions


class TwoRoots(Function):
    """(x², x³): several outputs"""

    def forward(self, x):
        return x**2, x**3

    def backward(self, dsquare, dcube):
        (x,) = self.inputs
        return dsquare * 2.0 * x + dcube * 3.0 * x * x


def test_several_outputs_some_unused():
    x = leaf(2.0)
    square, cube = TwoRoots.apply(x)
    assert sg.grad(cube, x, retain_graph=True)[0].item() == 12
    assert sg.grad(square, x, retain_graph=True)[0].item() == 4
    assert sg.grad(square + cube, x)[0].item() == 16


def test_broadcasting_is_undone():
    a, b = sg.randn(3, 1, 4, requires_grad=True), sg.randn(5, 1, requires_grad=True)
    (a * b).sum().backward()
    assert a.grad.shape == (3, 1, 4) and b.grad.shape == (5, 1)
    np.testing.assert_allclose(a.grad.data, np.full((3, 1, 4), b.data.sum()), rtol=1e-5)
    np.testing.assert_allclose(b.grad.data, np.full((5, 1), a.data.sum()), rtol=1e-4)
    z = sg.tensor(np.ones((1, 1)), requires_grad=True)
    (z * np.ones((2, 1, 3, 4))).sum().backward()
    assert z.grad.tolist() == [[24.0]]


def test_composed_form_where_the_graph_is_kept():
    x = sg.randn(3, 5, dtype=np.float64, requires_grad=True)
    (plain,) = sg.grad(F.layer_norm(x, 5).square().sum(), x)
    (kept,) = sg.grad(F.layer_norm(x, 5).square().sum(), x, create_graph=True)
    np.testing.assert_allclose(plain.data, kept.data, atol=1e-12)
    assert kept.requires_grad and not plain.requires_grad


def test_a_gradient_of_another_dtype_is_refused():
    class Coarse(Function):
        def forward(self, a):
            return a * 2

        def backward(self, dy):
            return sg.ones(2)

    with pytest.raises(RuntimeError, match="Coarse.backward: expected a gradient of float64, got float32"):
        Coarse.apply(leaf(1.0, 2.0)).backward(sg.ones(2, dtype=np.float64))


def test_none_means_no_gradient():
    class First(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, dy):
            return dy, None

    x, w = leaf(1.0), leaf(2.0)
    First.apply(x, w).backward()
    assert x.grad.item() == 1 and w.grad is None


def test_several_outputs_that_backward_reads():
    class Powers(Function):
        keeps_inputs, keeps_outputs = False, True

        def forward(self, x):
            return np.exp(x), np.exp(2 * x)

        def backward(self, d1, d2):
            y1, y2 = self.outputs
            return d1 * y1 + d2 * y2 * 2

    x = leaf(0.3)
    y1, y2 = Powers.apply(x)
    (g,) = sg.grad(y1 * y2, x)
    np.testing.assert_allclose(g.data, [3 * np.exp(0.9)], rtol=1e-14)


def test_several_outputs_under_no_grad_and_their_memory():
    x = leaf(1.0, 2.0)
    with sg.no_grad():
        assert not any(y.requires_grad for y in x.split(1))
    for piece in (x.split(1)[0], (x * 2).split(1)[0]):
        with sg.no_grad(), pytest.raises(RuntimeError, match="clone"):
            piece.fill_(7.0)


def test_a_custom_function_that_forgets_a_gradient_is_told():
    class Forgetful(Function):
        def forward(self, a, b):
            return a * b

        def backward(self, dy):
            return dy

    with pytest.raises(RuntimeError, match="Forgetful.backward: expected 2 gradients, one for each input, got 1"):
        Forgetful.apply(leaf(1.0), leaf(1.0)).backward()


def test_a_custom_function_with_a_gradient_of_another_shape_is_told():
    class Wrong(Function):
        def forward(self, a):
            return a.sum()

        def backward(self, dy):
            return sg.ones(5, dtype=np.float64)

    with pytest.raises(RuntimeError, match=r"Wrong.backward: a gradient of shape \(5,\) does not fit an input of shape \(2,\)"):
        Wrong.apply(leaf(1.0, 2.0)).backward()


def test_a_custom_function_that_writes_into_its_input_is_stopped():
    class Vandal(Function):
        def forward(self, a):
            a += 1
            return a

    with pytest.raises(ValueError, match="read-only"):
        Vandal.apply(leaf(1.0))


def test_what_a_function_did_not_keep_is_named():
    class Exp(sg.Function):
        keeps_inputs = False

        def forward(self, x):
            return np.exp(x)

        def backward(self, dy):
            return dy * (self.outputs if by == "outputs" else self.inputs)[0]

    x = sg.tensor([1.0], requires_grad=True)
    for by in ("outputs", "inputs"):
        with pytest.raises(RuntimeError, match=f"the {by} were not kept; say keeps_{by} = True in the class Exp"):
            y = Exp.apply(x)
            sg.tensor([1.0]).zero_()  # a change elsewhere, for which the inputs would be looked at
            sg.grad(y, x)


def test_whole_numbers_that_an_op_makes_have_no_gradient():
    class Positive(Function):
        def forward(self, x):
            return (x > 0).astype(np.int64)

    x = leaf(-1.0, 2.0)
    y = Positive.apply(x)
    assert y.tolist() == [0, 1] and y.is_leaf and not y.requires_grad
    (x * y).sum().backward()
    assert x.grad.tolist() == [0, 1]


def test_a_forward_gives_arrays():
    class Listed(sg.Function):
        def forward(self, x):
            return [x]

    with pytest.raises(TypeError, match="forward: expected an array, or a tuple of arrays, got list"):
        Listed.apply(sg.tensor([1.0]))


def test_a_function_takes_arrays_and_tensors_side_by_side():
    x = sg.tensor(np.ones(2), requires_grad=True)

    class Product(sg.Function):
        def forward(self, a, b):
            return a * b

        def backward(self, dy):
            a, b = self.inputs
            return dy * b, dy * a

    for y in (Product.apply(x, np.array([2.0, 3.0])), Product.apply(np.array([2.0, 3.0]), x)):
        assert y.grad is None and y.requires_grad
        assert sg.grad(y.sum(), x)[0].data.tolist() == [2, 3]
    assert not Product.apply(np.ones(2), np.ones(2)).requires_grad


def test_an_op_of_several_results_of_which_one_is_whole_numbers():
    x = sg.tensor([3.0, 1.0], requires_grad=True)

    class Sorted(sg.Function):
        def forward(self, x):
            self.order = np.argsort(x)
            return x[self.order], self.order.copy()

        def backward(self, dy, _):
            return dy[np.argsort(self.order)]

    y, order = Sorted.apply(x)
    assert y.requires_grad and not order.requires_grad and order.is_leaf
    assert sg.grad((y * sg.tensor([1.0, 5.0])).sum(), x)[0].data.tolist() == [5, 1]


class Refuses(Function):
    def forward(self, x):
        raise TypeError("no such thing")


def test_what_a_forward_raises_comes_through():
    with pytest.raises(TypeError, match="no such thing"):
        Refuses.apply(sg.tensor(1.0))


# ------------------------------------------------------------------------------------------------------ what is freed, and when


def test_what_an_op_saved_is_freed_though_its_result_lives():
    x = leaf(1.0, 2.0)
    y = F.softplus(x.exp(), 2.0)
    assert vars(y.node)
    y.sum().backward()
    assert not vars(y.node)


def test_saved_arrays_are_freed_as_the_sweep_passes():
    x = leaf(*np.ones(10))
    h = x * 2
    y = h * h
    z = (y * y).sum()
    saved = weakref.ref(h)
    del h, y
    assert saved() is not None  # the graph keeps it
    z.backward()
    assert saved() is None  # without any garbage collection


def test_a_graph_dropped_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        y = F.softmax((x * x).exp(), 0)
        node = weakref.ref(y.node)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_a_part_of_the_graph_that_was_swept_is_no_hindrance_where_no_goal_can_be_behind_it():
    x, w, other = leaf(2.0), leaf(3.0), leaf(5.0)
    u = w.exp()
    v = u * w
    v.backward()
    p = x.exp()
    y = v * x * p
    (g,) = sg.grad(y, p, retain_graph=True)
    assert g.item() == (v.data * x.data).item()
    y.backward(inputs=[x], retain_graph=True)
    np.testing.assert_allclose(x.grad.data, v.data * p.data * 3, rtol=1e-15)
    assert sg.grad(y, other, allow_unused=True, retain_graph=True) == (None,)
    for goal, z in ((w, y), (w, y * w), (u, y), (v, y), ([x, w], y), ([w, x], y)):
        with pytest.raises(RuntimeError, match="already swept"):
            sg.grad(z, goal, allow_unused=True, retain_graph=True)


def test_nothing_is_known_of_what_is_behind_a_sweep_to_targets_or_one_that_broke_off():
    x, w, other = leaf(2.0), leaf(3.0), leaf(5.0)
    targeted = w * other
    sg.grad(targeted, other)
    broken = w * other
    other.register_hook(lambda g: {}["the sweep breaks off"])
    with pytest.raises(KeyError):
        broken.backward()
    for v in (targeted, broken):
        assert v.node.edges is None
        for goal in (w, other, x):
            with pytest.raises(RuntimeError, match="already swept"):
                sg.grad(v * x * w, goal)


def test_a_second_sweep_is_refused_unless_the_graph_is_kept():
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8
    with pytest.raises(RuntimeError, match="already swept.*retain_graph=True"):
        y.backward()
    with pytest.raises(RuntimeError, match="already swept"):
        sg.grad(y, x)


# -------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sg.tensor([1, 2], requires_grad=True), TypeError, "floating dtype, got int64"),
        (lambda: sg.tensor("abc"), TypeError, "numbers"),
        (lambda: sg.tensor([[1.0], [1.0, 2.0]]), ValueError, "regular nesting"),
        (lambda: sg.tensor([1.0], dtype="banana"), TypeError, "dtype"),
        (lambda: sg.from_numpy([1.0]), TypeError, "NumPy array, got list"),
        (lambda: leaf(1.0, 2.0).backward(), RuntimeError, r"scalar output, or a cotangent of shape \(2,\)"),
        (lambda: sg.tensor([1.0]).backward(), RuntimeError, "requires a gradient"),
        (lambda: leaf(1.0).backward(sg.ones(3)), ValueError, r"shape \(1,\) and float64, got \(3,\)"),
        (lambda: leaf(1.0).backward(3.0), TypeError, "cotangent to be a tensor"),
        (lambda: sg.grad(leaf(1.0), sg.tensor([1.0])), RuntimeError, "inputs that require a gradient"),
        (lambda: sg.grad(3.0, leaf(1.0)), TypeError, "outputs to be a tensor"),
        (lambda: leaf(1.0).numpy(), RuntimeError, "detach"),
        (lambda: np.asarray(leaf(1.0)), RuntimeError, "detach"),
        (lambda: leaf(1.0, 2.0).item(), ValueError, "one element"),
        (lambda: bool(leaf(1.0, 2.0)), ValueError, "neither true nor false"),
        (lambda: len(sg.tensor(1.0)), TypeError, "no length"),
        (lambda: leaf(1.0) + sg.ones(1), TypeError, "one floating dtype, got float32 and float64"),
        (lambda: leaf(1.0) + "a", TypeError, "got str"),
        (lambda: (leaf(1.0) * 2).requires_grad_(False), RuntimeError, "made by the user"),
        (lambda: sg.tensor([1.0]).copy_(np.ones(3)), ValueError, r"shape \(1,\)"),
        (lambda: setattr(sg.tensor([1.0]), "data", np.ones(2)), ValueError, r"shape \(1,\)"),
        (lambda: sg.zeros(1).expand(4).fill_(1.0), RuntimeError, "expanded"),
        (lambda: sg.manual_seed(-1), ValueError, "at least 0"),
        (lambda: sg.rand(3, generator=7), TypeError, "numpy.random.Generator"),
        (lambda: sg.tensor([1.0]).to(device="tpu"), ValueError, "'cpu'"),
        (lambda: sg.set_rng_state({"a": 1}), ValueError, "get_rng_state"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
