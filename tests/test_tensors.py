"""Tensors and their memory: nothing changes unnoticed."""

import numpy as np
import pytest

import scratchgen as sg
from scratchgen.autograd import Function
from scratchgen.tensors import Writing, constant


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


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


@pytest.mark.parametrize("view", [lambda x: x.reshape(2, 2), lambda x: x.split(2)[1], lambda x: x[1:].reshape(3).T])
def test_a_recorded_view_sees_that_the_leaf_it_views_was_changed(view):
    x = leaf(1.0, 2.0, 3.0, 4.0)
    v = view(x)
    y, again = (v * v).sum(), (v * v).sum()
    again.backward()
    with sg.no_grad():
        with pytest.raises(RuntimeError, match="recorded op's result"):
            v.zero_()
        x.zero_()
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        y.backward()


class Same(Function):
    """y = x, whose `forward` returns the array of its input itself: alone, or in a tuple"""

    def forward(self, x, several=False):
        return (x, x) if several else np.ascontiguousarray(x)

    def backward(self, *dys):
        return sum(dys)


@pytest.mark.parametrize("several", [False, True])
def test_an_input_that_forward_returns_is_still_the_input(several):
    x = leaf(1.0, 2.0)
    y = Same.apply(x, several=True)[1] if several else Same.apply(x)
    z, again = (y * y).sum(), (y * y).sum()
    assert sg.grad(again, x)[0].tolist() == [2, 4]
    with sg.no_grad():
        x.fill_(7.0)
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        z.backward()
    c, w = sg.tensor(np.array([1.0])), leaf(3.0)
    y = Same.apply(c, several=True)[0] if several else Same.apply(c)
    z = y * w
    c.fill_(7.0)
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        z.backward()


def test_results_that_share_memory_change_together():
    class Twice(Function):
        def forward(self, x):
            y = x + 1
            return y, y, y[:1]

    with sg.no_grad():
        a, b, c = Twice.apply(sg.tensor(np.array([1.0, 2.0])))
    for changed, other in ((a, b), (b, c), (c, a)):
        z = (other * leaf(3.0)).sum()
        changed.fill_(7.0)
        with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
            z.backward()


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


def test_what_is_no_view_does_not_change_with_what_it_was_made_from():
    """Made without recording, in memory of its own: x may be written to afterwards."""
    x, w = sg.tensor(np.arange(4.0)), sg.tensor(np.array(2.0), requires_grad=True)
    with sg.no_grad():
        made = [x * 2, *x.reshape(2, 2).max(0)]
    ys = [(part * w).sum() for part in made if part.dtype == np.float64]
    x.copy_(np.ones(4))
    assert [sg.grad(y, w)[0].item() for y in ys] == [12, 5]


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


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((2, 9, 32, 32), (2, 9, 1, 1)),
        ((2, 9, 32, 32), (9, 1, 1)),
        ((9, 2, 1024), (1, 2, 1)),
        ((20_000, 2), (20_000, 1)),  # rows too short
        ((300, 100), (1, 100)),  # no constants of rows
        ((300, 100), ()),
        ((1, 300, 100), (2, 300, 1)),  # both are broadcast
    ],
)
def test_one_constant_for_each_row_broadcasts_as_in_numpy(shape, other):
    rng = np.random.default_rng(0)
    for letter in "fd":
        x, s = rng.standard_normal(shape).astype(letter), rng.standard_normal(other).astype(letter)
        a, b = sg.tensor(x, requires_grad=True), sg.tensor(s, requires_grad=True)
        for found, wanted in ((a + b, x + s), (b + a, s + x), (a * b, x * s), (b * a, s * x)):
            assert found.dtype == wanted.dtype and np.array_equal(found.data, wanted)
        dy = rng.standard_normal((a * b).shape).astype(letter)
        da, db = sg.grad(a * b, (a, b), sg.tensor(dy))
        extra = tuple(d for d, (n, m) in enumerate(zip(dy.shape, (1,) * (dy.ndim - s.ndim) + s.shape, strict=True)) if n != m)
        lead = tuple(d for d, (n, m) in enumerate(zip(dy.shape, x.shape, strict=True)) if n != m)
        wanted = (dy * s).sum(lead, keepdims=True, dtype="d"), (dy * x).sum(extra, dtype="d").reshape(other)
        for found, value in zip((da, db), wanted, strict=True):
            np.testing.assert_allclose(found.data, value, rtol=1e-4 if letter == "f" else 1e-9, atol=1e-4)
