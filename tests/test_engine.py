"""The chain rule: sweeps, accumulation, memory, refusals. What each op computes is tested from the catalogue."""

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen.autograd import Function
from scratchgen.tensors import Writing, constant


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


# ------------------------------------------------------------------------------------------------------------ the sweep


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


def test_composed_form_where_the_graph_is_kept():
    x = sg.randn(3, 5, dtype=np.float64, requires_grad=True)
    (plain,) = sg.grad(F.layer_norm(x, 5).square().sum(), x)
    (kept,) = sg.grad(F.layer_norm(x, 5).square().sum(), x, create_graph=True)
    np.testing.assert_allclose(plain.data, kept.data, atol=1e-12)
    assert kept.requires_grad and not plain.requires_grad


# ----------------------------------------------------------------------------------------------- accumulation and aliasing


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


def test_a_gradient_handed_out_is_read_only():
    x = leaf(1.0, 2.0)
    (x + x * 2 + x * 3).sum().backward()
    (g,) = sg.grad((x + x * 2 + x * 3).sum(), x)
    for array in (x.grad.data, g.data):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


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


# --------------------------------------------------------------------------------------------------------------- memory


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


# -------------------------------------------------------------------------------------------- nothing changes behind its back


def test_a_leaf_changed_after_it_was_saved_is_refused():
    x = leaf(2.0)
    y = x * x
    with sg.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="Mul: an input .* changed in place"):
        y.backward()


def test_a_change_through_a_view_is_refused_too():
    x = leaf(2.0, 3.0)
    with sg.no_grad():
        view = x[:1]
    y = (x * x).sum()
    view.fill_(7.0)
    assert x.data[0] == 7
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_view_sees_that_what_it_views_was_changed():
    c = sg.tensor(np.array([1.0, 2.0]))
    row = c[:1]
    x = leaf(3.0)
    y = x * row
    c.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_detached_twin_changed_is_refused():
    c = sg.tensor(np.array([2.0]))
    twin = c.detach()
    x = leaf(3.0)
    y = x * c
    twin.fill_(5.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_what_was_computed_from_it_before_does_not_mind():
    c = sg.tensor(np.array([[3.0, 4.0]]))
    length = c.norm(dim=1)  # in memory of its own, if not in the shape in which it was computed
    x = leaf(2.0)
    y = x * length
    c.zero_()
    y.backward()
    assert x.grad.item() == 5


def test_an_op_that_did_not_save_it_does_not_mind():
    x = leaf(2.0)
    y = x + 1
    with sg.no_grad():
        x += 1
    y.backward()
    assert x.grad.item() == 1


@pytest.mark.parametrize("change", [lambda t: t.fill_(1.0), lambda t: t.zero_(), lambda t: t.__setitem__(0, 1.0)])
def test_results_of_recorded_ops_cannot_be_changed(change):
    y = leaf(1.0, 2.0) * 2
    with sg.no_grad(), pytest.raises(RuntimeError, match="clone"):
        change(y)
    with sg.no_grad(), pytest.raises(RuntimeError, match="clone"):
        change(y.detach())


def test_arrays_handed_out_are_read_only_and_arrays_taken_in_are_copied():
    mine = np.ones(3)
    t = sg.tensor(mine)
    mine[0] = 7
    assert t.data[0] == 1 and sg.from_numpy(mine).data[0] == 7
    with pytest.raises(ValueError, match="read-only"):
        t.data[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        t.numpy()[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        (t * 2).data[0] = 5


def test_indices_and_masks_are_taken_as_they_are_at_the_time():
    x = leaf(1.0, 2.0, 3.0)
    index = np.array([0, 0])
    mask = sg.tensor(np.array([True, False, True]))
    y = x[index].sum() + sg.where(mask, x, 0.0).sum()
    index[:] = 2
    mask.fill_(False)
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [3, 0, 1])


def test_update_in_place_inside_no_grad():
    x = leaf(1.0, 2.0)
    same = x
    with sg.no_grad():
        x -= 0.5
        x *= 2
        x[1] = 9
    assert same is x
    np.testing.assert_array_equal(x.data, [1, 9])
    x.data = np.array([4.0, 4.0])
    np.testing.assert_array_equal(x.data, [4, 4])


def test_update_in_place_while_recording():
    x = leaf(1.0)
    with pytest.raises(RuntimeError, match="no_grad"):
        x += 1
    with pytest.raises(RuntimeError, match="no_grad"):
        x[0] = 1
    y = x * 2
    y += x  # a new tensor, as for any number
    y.backward()
    assert x.grad.item() == 3


@pytest.mark.parametrize("change", [lambda t: t.copy_([2.0, 2.0]), lambda t: t.fill_(2.0), lambda t: t.zero_()])
def test_a_leaf_is_overwritten_only_where_no_graph_is_recorded(change):
    x = sg.ones(2)
    assert change(x) is x and x.tolist() in ([2, 2], [0, 0])
    x = leaf(1.0, 1.0)
    with pytest.raises(RuntimeError, match="_: expected tensors that require no gradient, as a graph cannot record a change"):
        change(x)
    assert x.tolist() == [1, 1]
    with sg.no_grad():
        assert change(x) is x and x.tolist() in ([2, 2], [0, 0]) and x.requires_grad


def test_to_copy_from_a_tensor_that_requires_a_gradient_would_cut_the_graph():
    x = sg.ones(2)
    for change in (x.copy_, x.fill_):
        with pytest.raises(RuntimeError, match="_: expected tensors that require no gradient"):
            change(leaf(3.0) * 2)
        with sg.no_grad():
            assert change(leaf(3.0) * 2).tolist() == [6, 6]


# ----------------------------------------------------------------------------------------------------------- switches


def test_no_grad_and_enable_grad():
    x = leaf(1.0)
    with sg.no_grad():
        assert not (x * 2).requires_grad and not sg.is_grad_enabled()
        with sg.enable_grad():
            assert (x * 2).requires_grad
    assert sg.is_grad_enabled()

    @sg.no_grad()
    def double(t):
        return t * 2

    assert not double(x).requires_grad and sg.is_grad_enabled()


def test_set_grad_enabled_holds_from_the_call_on():
    try:
        switch = sg.set_grad_enabled(False)
        assert not sg.is_grad_enabled()
        with switch:
            assert not sg.is_grad_enabled()
        assert sg.is_grad_enabled()  # a `with` ends at what was before the call
        sg.set_grad_enabled(False)
        with sg.set_grad_enabled(True):
            assert sg.is_grad_enabled()
        assert not sg.is_grad_enabled()
        sg.set_grad_enabled(mode=True)
        assert sg.is_grad_enabled()

        @sg.set_grad_enabled(False)
        def inside():
            return sg.is_grad_enabled()

        assert sg.is_grad_enabled() and not inside() and sg.is_grad_enabled()  # decorating is no call
        with pytest.raises(TypeError, match="^set_grad_enabled: expected True or False, got 0$"):
            sg.set_grad_enabled(0)
    finally:
        sg.set_grad_enabled(True)


def test_switches_decorate_without_parentheses():
    @sg.no_grad
    def off(n):
        """What it says."""
        return [sg.is_grad_enabled(), *(off(n - 1) if n else on())]

    @sg.enable_grad
    def on():
        return [sg.is_grad_enabled()]

    class Model:
        @sg.no_grad
        def generate(self):
            return self, sg.is_grad_enabled()

    assert off(2) == [False, False, False, True] and sg.is_grad_enabled() and off.__doc__ == "What it says."
    model = Model()
    assert model.generate() == (model, False)
    for thing in (Model, 3):
        with pytest.raises(TypeError, match="no_grad: expected a function to decorate, got (the class Model|3)$"):
            sg.no_grad(thing)

    async def numbers():
        yield 1

    with pytest.raises(TypeError, match="expected a function to decorate, got <function .*numbers"):
        sg.no_grad(numbers)


@pytest.mark.parametrize("decorate", [sg.no_grad, lambda f: sg.no_grad()(f), lambda f: sg.set_grad_enabled(False)(f)])
def test_a_generator_under_a_switch_leaves_its_caller_alone(decorate):
    seen = []

    @decorate
    def numbers(n):
        try:
            for i in range(n):
                seen.append(sg.is_grad_enabled())
                try:
                    got = yield i
                except KeyError:
                    got = "caught"
                seen.append((got, sg.is_grad_enabled()))
            return "end"
        finally:
            seen.append(("left", sg.is_grad_enabled()))

    a, b = numbers(3), numbers(2)
    assert (next(a), sg.is_grad_enabled(), next(b), sg.is_grad_enabled()) == (0, True, 0, True)
    assert (a.send("x"), sg.is_grad_enabled()) == (1, True)
    assert (a.throw(KeyError), sg.is_grad_enabled()) == (2, True)
    with pytest.raises(StopIteration) as end:
        a.send("y")
    assert end.value.value == "end" and sg.is_grad_enabled()
    assert seen == [False, False, ("x", False), False, ("caught", False), False, ("y", False), ("left", False)]
    b.close()
    assert seen[-1] == ("left", False) and sg.is_grad_enabled()
    with pytest.raises(ZeroDivisionError):
        c = numbers(1)
        next(c)
        c.throw(ZeroDivisionError)
    assert seen[-1] == ("left", False) and sg.is_grad_enabled()


def test_a_coroutine_under_a_switch_leaves_others_alone():
    seen = []

    @sg.no_grad
    async def quiet():
        seen.append(sg.is_grad_enabled())
        await asyncio.sleep(0)
        seen.append(sg.is_grad_enabled())
        return 7

    async def both():
        task = asyncio.ensure_future(quiet())
        for _ in range(3):
            assert sg.is_grad_enabled()
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(both()) == 7 and seen == [False, False] and sg.is_grad_enabled()


def test_decorated_functions_run_in_threads_of_either_mode():
    """Each call has a switch of its own: the mode that one thread comes with does not reach another."""
    gates = [threading.Event() for _ in range(3)]
    found = {}

    @sg.no_grad
    def work(entered, leave):
        entered.set()
        leave.wait(10)

    def first():
        work(gates[0], gates[1])
        found["first"] = sg.is_grad_enabled()
        gates[2].set()

    def second():
        gates[0].wait(10)
        with sg.no_grad():
            work(gates[1], gates[2])
            found["second"] = sg.is_grad_enabled()

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"first": True, "second": False}


def test_anomaly_detection_that_is_nested_ends_as_it_began():
    @sg.detect_anomaly()
    def inner(n):
        return inner(n - 1) if n else 0

    inner(2)
    both = sg.detect_anomaly()
    with both, both:
        pass
    with np.errstate(invalid="ignore"):
        assert np.isnan(sg.sqrt(leaf(-1.0)).item())  # nothing is detected any more


def test_grad_mode_belongs_to_the_thread():
    seen = []
    with sg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(sg.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_anomaly_names_the_forward_op_and_the_line():
    x = leaf(-1.0)
    with np.errstate(invalid="ignore"), sg.detect_anomaly(), pytest.raises(ArithmeticError) as caught:
        sg.sqrt(x)  # this line
    assert "Sqrt: the forward pass made a NaN" in str(caught.value)
    assert "test_engine.py" in str(caught.value) and "# this line" in str(caught.value)


def test_anomaly_names_the_gradient_and_the_line_of_the_forward():
    x = leaf(0.0)
    with np.errstate(divide="ignore"), sg.detect_anomaly():
        y = sg.sqrt(x)  # the culprit
        z = y * 3
        with pytest.raises(ArithmeticError) as caught:
            z.backward()
    assert "Sqrt: the gradient of input 0 turned to infinity" in str(caught.value)
    assert "# the culprit" in str(caught.value)


def test_anomaly_does_not_blame_who_was_given_nan():
    with sg.detect_anomaly():
        y = sg.tensor(np.array([np.nan])) * 2
    assert np.isnan(y.item())


# ---------------------------------------------------------------------------------------------------------- checkpoint


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


# ------------------------------------------------------------------------------------------------------------ bad input


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
            sg.grad(Exp.apply(x), x)


def test_a_forward_gives_arrays():
    class Listed(sg.Function):
        def forward(self, x):
            return [x]

    with pytest.raises(TypeError, match="forward: expected an array, or a tuple of arrays, got list"):
        Listed.apply(sg.tensor([1.0]))


@pytest.mark.parametrize(
    "view", [lambda x: x[1:], lambda x: x[1:][:2], lambda x: x.split(2)[0], lambda x: x.unbind(0)[1]], ids=list("abcd")
)
def test_a_view_made_without_recording_changes_with_what_it_views(view):
    """Of x, of a view of x, one of several: an op that saved it refuses to be swept once x was written to."""
    x, w = sg.tensor(np.arange(4.0)), sg.tensor(np.array(2.0), requires_grad=True)
    with sg.no_grad():
        part = view(x)
    assert np.may_share_memory(part.data, x.data)
    y, again = (part * w).sum(), (part * w).sum()
    assert sg.grad(again, w)[0].item() == part.data.sum()
    x.copy_(np.ones(4))
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        sg.grad(y, w)


def test_gradients_that_were_added_up_are_frozen_like_any_other():
    x = sg.tensor(np.ones(3), requires_grad=True)
    (x * 2 + x * 3 + x * x).sum().backward()
    (g,) = sg.grad((x * 2 + x * 3 + x * x).sum(), x)
    for array in (x.grad.data, g.data):
        with pytest.raises(ValueError, match="read-only"):
            array += 1


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


def test_anomalies_of_an_op_with_several_results():
    x = sg.tensor(np.array([1.0, 0.0]), requires_grad=True)

    class Halves(sg.Function):
        def forward(self, x):
            with np.errstate(all="ignore"):
                return x[:1] / 1, x[:1] / x[1:]

        def backward(self, a, b):
            return sg.ops.cat([a, b])

    with sg.detect_anomaly(), pytest.raises(ArithmeticError, match="Halves"):
        Halves.apply(x)
    Halves.apply(x)


def test_what_is_no_view_does_not_change_with_what_it_was_made_from():
    """Made without recording, in memory of its own: x may be written to afterwards."""
    x, w = sg.tensor(np.arange(4.0)), sg.tensor(np.array(2.0), requires_grad=True)
    with sg.no_grad():
        made = [x * 2, *x.reshape(2, 2).max(0)]
    ys = [(part * w).sum() for part in made if part.dtype == np.float64]
    x.copy_(np.ones(4))
    assert [sg.grad(y, w)[0].item() for y in ys] == [12, 5]


def test_a_sum_made_in_place_is_frozen_again():
    x = sg.tensor([1.0, 2.0], requires_grad=True)
    (x * 2 + x * 3).sum().backward()
    assert x.grad.tolist() == [5.0, 5.0]
    with pytest.raises(ValueError, match="read-only"):
        x.grad.data[0] = 1.0


class SumAndDifference(Function):
    def forward(self, x):
        return x[0] + x[1], x[0] - x[1]


def test_results_of_an_unrecorded_op_are_not_views_of_its_input():
    """What is saved of them stays good when its input is written to."""
    x, w = sg.tensor([[1.0, 3.0], [4.0, 2.0]]), sg.tensor([1.0, 1.0], requires_grad=True)
    total, _ = SumAndDifference.apply(x)
    y = (w * total).sum()
    x.zero_()
    y.backward()
    assert w.grad.tolist() == [5.0, 5.0]


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


class Refuses(Function):
    def forward(self, x):
        raise TypeError("no such thing")


def test_what_a_forward_raises_comes_through():
    with pytest.raises(TypeError, match="no such thing"):
        Refuses.apply(sg.tensor(1.0))


def test_an_index_of_two_dimensions_beside_a_number():
    x = np.arange(24.0).reshape(2, 3, 4)
    index = np.array([[0, 3], [1, 1]])
    t = sg.tensor(x, requires_grad=True)
    y = t[1, :, sg.tensor(index)]
    assert np.array_equal(y.data, x[1][:, index])
    y.sum().backward()
    expected = np.zeros_like(x)
    np.add.at(expected[1], (slice(None), index), 1.0)
    assert np.array_equal(t.grad.data, expected)


def test_writing_closes_what_it_opened_where_a_later_tensor_refuses():
    open_first, protected = sg.tensor([1.0, 2.0]), constant(np.frombuffer(bytes(8), np.float32))
    with pytest.raises(ValueError), Writing([open_first, protected]):
        raise AssertionError("memory that Python protects was opened")
    assert not open_first.data.flags.writeable
    with Writing([open_first]) as (array,):
        array[0] = 3.0
    assert open_first.tolist() == [3.0, 2.0] and not array.flags.writeable


def test_a_tensor_has_the_machines_byte_order():
    swapped = np.arange(3.0).astype(np.dtype("f").newbyteorder())
    x = sg.tensor(swapped, requires_grad=True)
    (x * x).sum().backward()
    assert x.dtype == np.float32 and x.dtype.isnative and x.grad.tolist() == [0.0, 2.0, 4.0]


def test_the_gradient_of_a_bias_alone_can_be_differentiated():
    """b̄ = Σ_rows ȳ, so with ȳ = y² its derivative in the direction u is Σ_rows 2 y u, for every row."""
    x, w, b = sg.tensor(np.ones((3, 2))), sg.tensor(np.ones((4, 2))), sg.tensor(np.arange(4.0), requires_grad=True)
    y = F.linear(x, w, b)  # (3, 4)
    (g,) = sg.grad((y * y * y / 3).sum(), b, create_graph=True)
    (h,) = sg.grad((g * sg.tensor(np.arange(1.0, 5.0))).sum(), b)
    np.testing.assert_allclose(g.data, (y.data**2).sum(0))
    np.testing.assert_allclose(h.data, (2 * y.data).sum(0) * np.arange(1.0, 5.0))
