"""What the rows of the catalog do not say of the functions of tensors: ties, NaN, draws, changes in place, arguments.

Values are worked by hand, or from counts that a draw of many must come near to.
"""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import data, nn
from scratchgen import functional as F
from scratchgen.autograd import grad
from scratchgen.grad_mode import no_grad
from scratchgen.tensors import Tensor, method

nan, inf = math.nan, math.inf


def leaf(values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


def same(found, expected):
    np.testing.assert_array_equal(found.data, np.array(expected))


# ---------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    "descending, values, indices", [(False, [1, 1, 2, 2, nan], [1, 3, 0, 4, 2]), (True, [nan, 2, 2, 1, 1], [2, 0, 4, 1, 3])]
)
def test_of_equals_the_earlier_comes_first_and_nan_is_the_largest(descending, values, indices):
    x = Tensor([2.0, 1.0, nan, 1.0, 2.0])
    for found in (sg.sort(x, descending=descending), sg.topk(x, 5, largest=descending)):
        same(found.values, values)
        same(found.indices, indices)
    same(x.argsort(descending=descending), indices)
    assert x.argsort().dtype == np.int64


def test_the_gradient_of_what_is_chosen_goes_back_to_its_own_element():
    x = leaf([3.0, 1.0, 3.0, 2.0])
    y, at = x.topk(2)
    same(at, [0, 2])
    same(grad((y * Tensor([5.0, 7.0]).double()).sum(), x)[0], [5, 0, 7, 0])
    y, at = x.sort(stable=True)
    same(at, [1, 3, 0, 2])
    same(grad((y * Tensor([1.0, 2.0, 3.0, 4.0]).double()).sum(), x)[0], [3, 1, 4, 2])


def test_order_of_whole_numbers_booleans_and_single_numbers():
    same(Tensor([3, 1, 2]).sort(descending=True).values, [3, 2, 1])
    same(Tensor([True, False, True]).argsort(), [1, 0, 2])
    for found in (Tensor(4.0).sort(), Tensor(4.0).topk(1)):
        same(found.values, 4.0)
        same(found.indices, 0)
    same(Tensor([[3, 1], [2, 2]]).argsort(0), [[1, 0], [0, 1]])
    assert Tensor(np.zeros((2, 0))).topk(0).values.shape == (2, 0)


def test_counts():
    same(sg.bincount(Tensor([3, 1, 3])), [0, 1, 0, 2])
    for kind in (np.uint8, np.uint64):
        same(sg.bincount(Tensor(np.array([1, 1], kind)), minlength=4), [0, 2, 0, 0])
    same(sg.bincount(Tensor([3, 1, 3]), Tensor([0.5, 2.0, 0.25])), [0, 2.0, 0, 0.75])
    same(sg.bincount(Tensor([1]), Tensor([2]), 3), [0, 2.0, 0])
    none = Tensor(np.zeros(0, np.int64))
    assert sg.bincount(none, minlength=2).tolist() == [0, 0] and sg.bincount(none, Tensor(np.zeros(0))).shape == (0,)
    assert sg.bincount(Tensor([1, 1])).dtype == np.int64


def test_an_index_of_counts_that_changes_afterwards_does_not_change_the_gradient():
    x, w = Tensor([0, 2]), leaf([1.0, 2.0])
    y = sg.bincount(x, w)
    x.copy_(np.array([1, 1]))
    same(grad((y * Tensor([3.0, 4.0, 5.0]).double()).sum(), w)[0], [3, 5])


# ------------------------------------------------------------------------------------------------------------- elements


def test_a_walk_between_two_tensors_ends_exactly_at_both():
    a, b = Tensor(np.float32([0.1, 1e8])), Tensor(np.float32([0.7, -1.0]))
    assert sg.lerp(a, b, 0.0).tolist() == a.tolist() and sg.lerp(a, b, 1.0).tolist() == b.tolist()
    assert sg.lerp(a, b, Tensor(np.float32([1, 0]))).tolist() == [b.tolist()[0], a.tolist()[1]]


def test_the_angle_of_a_point():
    a, b = leaf([0.0, 0.0, -2.0, 3e200, 4e-200]), leaf([0.0, -2.0, 0.0, 4e200, 3e-200])
    y = sg.atan2(a, b)
    np.testing.assert_allclose(y.data, [0, math.pi, -math.pi / 2, math.atan(0.75), math.atan(4 / 3)], rtol=1e-15)
    da, db = grad(y.sum(), [a, b])
    np.testing.assert_allclose(da.data, [0, -0.5, 0, 4 / 25 * 1e-200, 3 / 25 * 1e200], rtol=1e-14)
    np.testing.assert_allclose(db.data, [0, 0, 0.5, -3 / 25 * 1e-200, -4 / 25 * 1e200], rtol=1e-14)


def test_what_is_not_a_number_is_replaced_and_gets_no_gradient():
    x = leaf([nan, inf, -inf, 2.0])
    most = np.finfo(np.float64).max
    same(sg.nan_to_num(x), [0, most, -most, 2])
    y = sg.nan_to_num(x, 5.0, 6.0, -7.0)
    same(y, [5, 6, -7, 2])
    same(grad((y * 3).sum(), x)[0], [0, 0, 0, 3])
    whole = Tensor([1, 2])
    assert sg.nan_to_num(whole) is whole and sg.nan_to_num(Tensor(np.float32([inf]))).dtype == np.float32


def test_close_numbers():
    a = Tensor([1.0, 100.0, nan, inf, 0.0])
    b = Tensor([1.0001, 100.0001, nan, inf, 1e-9])
    same(sg.isclose(a, b), [False, True, False, True, True])
    same(a.isclose(b, rtol=1e-3, atol=0.0, equal_nan=True), [True, True, True, True, False])
    assert sg.allclose(a[3:], b[3:]) is True and a.allclose(b) is False and sg.allclose(a, b, 1e-3, equal_nan=True)


def test_quotients_rounded_down_or_towards_zero():
    a, b = [7.0, -7.0, 7.0, -7.0, 6.0, 1.0], [2.0, 2.0, -2.0, -2.0, -3.0, 2.0]
    floors, cut = [3, -4, -4, 3, -2, 0], [3, -3, -3, 3, -2, 0]
    for kind in (np.float64, np.int64):
        x, y = Tensor(np.array(a, kind)), Tensor(np.array(b, kind))
        for mode, expected in (("floor", floors), ("trunc", cut)):
            found = sg.div(x, y, rounding_mode=mode)
            same(found, expected)
            assert found.dtype == kind
    x, y = leaf(a), leaf(b)
    for slope in (1.0, inf):
        for g in grad(sg.div(x, y, rounding_mode="trunc"), [x, y], Tensor(np.full(6, slope))):
            same(g, [0.0] * 6)


def test_rounding_to_decimals():
    same(sg.round(Tensor(np.array([1.25, -17.0])), decimals=1), [1.2, -17.0])
    same(sg.round(Tensor(np.array([1.25, -17.0])), decimals=-1), [0.0, -20.0])


# ------------------------------------------------------------------------------------------------------------- reductions


def test_only_a_power_of_zero_hides_an_infinite_slope():
    """∂aᵇ/∂a = b aᵇ⁻¹: infinite for ∞², and 0 for 2⁰ and ∞⁰."""
    a = leaf([np.inf, 2.0, np.inf])
    (g,) = grad((a ** leaf([2.0, 0.0, 0.0])).sum(), a)
    assert g.tolist() == [np.inf, 0, 0]


def test_halves_of_nothing():
    """Half of 0 columns are 0, and half of 4 columns of no rows are 2."""
    assert F.glu(sg.zeros(2, 0)).shape == (2, 0) and F.glu(sg.zeros(0, 4)).shape == (0, 2)


def test_running_products_with_zeros_to_third_order():
    """y = x₁ x₂ x₃ (the last): ∂³y/∂x₁∂x₂∂x₃ = 1, whatever is 0."""
    x = leaf([0.0, 0.0, 2.0])
    y = x.cumprod(0)
    (g,) = grad(y[2] + 0 * y.sum(), x, create_graph=True)
    same(g, [0, 0, 0])
    (h,) = grad(g[0], x, create_graph=True)  # x₂ x₃
    same(h, [0, 2, 0])
    same(grad(h[1], x)[0], [0, 0, 1])


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "cumsum", "cumprod", "softmax", "log_softmax"])
def test_a_dtype_to_compute_in(name):
    x = Tensor(np.float32([[1, 2], [3, 4]]), requires_grad=True)
    y = getattr(sg, name)(x, 1, dtype=np.float64)
    assert y.dtype == np.float64 and y.tolist() == getattr(sg, name)(x.double(), 1).tolist()
    assert grad(y.sum(), x)[0].dtype == np.float32


@pytest.mark.parametrize("f", [sg.var, sg.std])
def test_corrections(f):
    x = Tensor(np.array([1.0, 2.0, 6.0]))
    assert f(x, correction=None).item() == f(x, True).item() == f(x).item() and f(x, False).item() == f(x, correction=0).item()
    assert sg.var(x, True).item() == pytest.approx(7.0) and sg.var(x, False).item() == pytest.approx(14 / 3)


def test_the_number_of_nonzeros_has_gradient_zero():
    x = leaf([0.0, 2.0, -1.0])
    y = x.norm(0)
    assert y.item() == 2
    same(grad(y, x)[0], [0, 0, 0])


def test_distances_of_equal_points():
    x = leaf([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]])
    d = sg.cdist(x, x.detach())
    same(d, [[0, 0, 5], [0, 0, 5], [5, 5, 0]])
    np.testing.assert_allclose(grad(d.sum(), x)[0].data, [[-0.6, -0.8], [-0.6, -0.8], [1.2, 1.6]], rtol=1e-15)
    far = np.float64([[1e8, 0.0]])
    assert sg.cdist(Tensor(far), Tensor(far + 1e-3), compute_mode="use_mm_for_euclid_dist").item() == pytest.approx(
        math.hypot(float(far[0, 0] + 1e-3) - 1e8, 1e-3), rel=1e-15
    )


# ------------------------------------------------------------------------------------------------------ shapes and positions


def test_gathering_from_one_element_and_of_nothing():
    one = leaf(3.0)
    same(sg.gather(one, 0, Tensor([0, 0])), [3, 3])
    same(sg.gather(one, -1, Tensor(0)), 3)
    same(sg.index_select(one, 0, Tensor([0])), 3)
    same(sg.scatter_add(one, 0, Tensor([0, 0]), Tensor([1.0, 2.0, 4.0]).double()), 6)
    same(sg.index_add(one, 0, Tensor([0, 0]), Tensor([1.0, 2.0]).double(), alpha=2), 9)
    same(grad(sg.gather(one, 0, Tensor([0, 0])).sum(), one)[0], 2)
    x = leaf([1.0, 2.0])
    assert x.gather(0, Tensor(np.zeros((2, 0), np.uint8))).shape == (2, 0)
    assert x.scatter_add(0, Tensor(np.zeros((0, 3), np.int64)), x.detach()) is x


def test_arguments_of_one_length_and_of_none():
    x = Tensor(np.arange(36.0).reshape(1, 1, 6, 6))
    for pool in (F.max_pool2d, F.avg_pool2d):
        assert pool(x, [2], [2], [1]).tolist() == pool(x, 2, 2, 1).tolist()
        assert pool(x, (2, 3), []).tolist() == pool(x, (2, 3)).tolist()
    assert F.conv2d(x, x[..., :2, :2], None, [2]).shape == (1, 1, 3, 3)
    assert F.adaptive_avg_pool2d(x, (None, 2)).shape == nn.AdaptiveAvgPool2d((None, 2))(x).shape == (1, 1, 6, 2)
    assert F.adaptive_avg_pool2d(x, None).tolist() == x.tolist()


def test_other_arguments_of_pytorch():
    x = Tensor([[1.0, 2.0]])
    y = x.to("cpu", np.float32, False, True)
    assert y is not x and y.tolist() == x.tolist() and x.to(np.float32, False) is x and x.to(x, non_blocking=True) is x
    assert x.to(x.double()).dtype == np.float64 and x.to(np.float32, copy=True) is not x
    same(sg.repeat_interleave(x, Tensor([2, 1]), 1, output_size=3), [[1, 1, 2]])
    assert sg.cat([Tensor(np.zeros(0, np.float32)), x], 1).tolist() == x.tolist()
    assert sg.linspace(Tensor(0.0), Tensor(2), 3, dtype=np.float64, requires_grad=True).tolist() == [0, 1, 2]
    assert sg.eye(2, device="cpu", requires_grad=True).requires_grad and sg.randint(3, (2,), dtype=np.int32).dtype == np.int32
    assert sg.zeros_like(x, requires_grad=True).requires_grad and sg.randperm(3, dtype=np.int32).dtype == np.int32
    for like in (sg.ones_like, sg.rand_like, sg.randn_like):
        y = like(x, dtype=np.float64, device="cpu", requires_grad=True)
        assert y.requires_grad and y.shape == (1, 2) and y.dtype == np.float64
    assert sg.full_like(x, 3, device="cpu").tolist() == [[3, 3]] and sg.arange(2.0, requires_grad=True).requires_grad


def test_new_tensors_take_dtype_and_device():
    x = Tensor(np.array([1.0, 2.0]))
    for y, expected in [
        (x.new_zeros(2, 1), [[0], [0]]),
        (x.new_ones((2,)), [1, 1]),
        (x.new_empty(size=(1,)), [0]),
        (x.new_full((2,), 7), [7, 7]),
        (x.new_tensor([3, 4]), [3, 4]),
    ]:
        same(y, expected)
        assert y.dtype == np.float64 and y.device == x.device and not y.requires_grad
    assert x.new_ones(1, dtype=np.int64).dtype == np.int64 and x.new_tensor(1, requires_grad=True).requires_grad


# ----------------------------------------------------------------------------------------------------------------- losses


def test_a_variance_that_is_held_up_has_the_gradient_at_the_bound():
    """v = ε = 0.5: ℓ = ½ (log v + d²/v), ∂ℓ/∂v = ½ (1/v − d²/v²) = ½ (2 − 4 · 4) for d = 2."""
    x, t, v = leaf([1.0]), leaf([3.0]), leaf([0.1])
    loss = F.gaussian_nll_loss(x, t, v, eps=0.5, reduction="sum")
    assert loss.item() == pytest.approx(0.5 * (math.log(0.5) + 8))
    dx, dt, dv = grad(loss, [x, t, v])
    assert (dx.item(), dt.item(), dv.item()) == (-4, 4, -7)
    full = F.gaussian_nll_loss(x, t, v, True, 0.5).item()
    assert full == pytest.approx(loss.item() + 0.5 * math.log(2 * math.pi))


# ------------------------------------------------------------------------------------------------------------------ draws


def test_draws_with_replacement_come_as_often_as_their_weights():
    """10,000 draws of p = 0.6: within four standard deviations, 4 √(0.6 · 0.4 / 10⁴) = 0.02."""
    w = Tensor(np.float32([[0, 3, 2, 0], [1, 0, 0, 0]]))
    drawn = sg.multinomial(w, 10_000, True, generator=np.random.default_rng(0))
    assert drawn.dtype == np.int64 and drawn.shape == (2, 10_000)
    assert (drawn[0] == 1).double().mean().item() == pytest.approx(0.6, abs=0.02) and set(drawn[0].tolist()) == {1, 2}
    assert set(drawn[1].tolist()) == {0}


def test_draws_without_replacement_are_those_of_one_after_the_other():
    """Weights 5, 3, 2: the pair (i, j) with probability w_i/10 · w_j/(10 − w_i); (0, 1) 0.3, (1, 2) 0.3 · 2/7 = 0.0857."""
    drawn = sg.multinomial(Tensor(np.tile([5.0, 3.0, 2.0, 0.0], (10_000, 1))), 2, generator=np.random.default_rng(1))
    pairs = drawn.data @ np.array([10, 1])
    assert (pairs == 1).mean() == pytest.approx(0.3, abs=0.02) and (pairs == 12).mean() == pytest.approx(0.0857, abs=0.012)
    assert (drawn[:, 0] == 0).double().mean().item() == pytest.approx(0.5, abs=0.02) and drawn.data.max() == 2
    assert (drawn[:, 0] != drawn[:, 1]).all()


def test_a_seed_draws_the_same_and_a_row_alone_has_no_second_dimension():
    p = Tensor([0.2, 0.8])
    for draw in (lambda: sg.multinomial(p, 1), lambda: p.multinomial(5, True), lambda: sg.bernoulli(p)):
        sg.manual_seed(3)
        first = draw()
        sg.manual_seed(3)
        assert first.ndim == 1 and first.tolist() == draw().tolist()
    assert sg.multinomial(Tensor(np.zeros((0, 3), np.float32)), 2, True).shape == (0, 2)
    assert sg.multinomial(Tensor(np.zeros((0, 3), np.float32)), 2).shape == (0, 2)


def test_coins():
    p = Tensor(np.tile(np.float32([0, 0.3, 1]), (10_000, 1)), requires_grad=True)
    y = p.bernoulli(generator=np.random.default_rng(0))
    assert y.dtype == np.float32 and not y.requires_grad and set(y.data.reshape(-1)) == {0, 1}
    np.testing.assert_allclose(y.data.mean(0), [0, 0.3, 1], atol=0.02)


# --------------------------------------------------------------------------------------------------------------- in place


def test_changes_in_place_are_those_of_the_op():
    x = Tensor([1.0, 4.0])
    held = x.data
    assert x.mul_(2).add_(Tensor([1.0, 0.0]), alpha=3).lerp_(Tensor([7.0, 0.0]), 0.5) is x
    same(x, [6, 4])
    assert x.data is held and held.tolist() == [6, 4]
    same(x.sub_(1).div_(2).clamp_(max=2.0), [2, 1.5])
    same(x.addcmul_(x, x, value=-1).neg_(), [2, 0.75])
    same(x.masked_fill_(Tensor([True, False]), 9.0).zero_().fill_(3).sqrt_(), np.sqrt(np.float32([3, 3])))
    w = leaf([1.0])
    with sg.no_grad():
        w.mul_(3)
    same(w, [3])


def test_a_change_in_place_is_seen_by_a_sweep_that_saved_the_tensor():
    x, w = Tensor([2.0]), Tensor([3.0], requires_grad=True)
    y = x * w
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_what_a_graph_is_recorded_of_is_not_changed_in_place():
    w, x = leaf([1.0]), Tensor(np.array([2.0]))
    for change in (lambda: w.mul_(2), lambda: (w * 1).add_(1), lambda: x.add_(w), lambda: x.lerp_(end=w, weight=0.5)):
        with pytest.raises(RuntimeError, match=r"_: expected tensors that require no gradient.*use x = x\.\w+\(…\)"):
            change()
    for draw in (w.normal_, w.uniform_, w.bernoulli_):
        with pytest.raises(RuntimeError, match="no_grad"):
            draw()
    same(x, [2])
    with sg.no_grad():
        w.normal_(generator=np.random.default_rng(0))
        x.add_(w)
    assert x.item() == 2 + w.item() == 2 + np.random.default_rng(0).standard_normal()


def test_draws_in_place():
    rng = np.random.default_rng(0)
    x = sg.zeros(10_000)
    assert x.normal_(2.0, 3.0, generator=rng) is x and x.dtype == np.float32
    assert x.mean().item() == pytest.approx(2, abs=0.12) and x.std().item() == pytest.approx(3, abs=0.09)
    x.uniform_(1.0, 3.0, generator=rng)
    assert x.min().item() >= 1 and x.max().item() < 3.0001 and x.mean().item() == pytest.approx(2, abs=0.03)
    assert x.bernoulli_(0.25, generator=rng).mean().item() == pytest.approx(0.25, abs=0.02)
    assert set(x.tolist()) == {0, 1}


# ------------------------------------------------------------------------------------------------------- layers and data


def test_keys_that_are_added_are_seen_by_all():
    """One head; queries 0: all scores are 0 (bias_k = 0, zero key), so each sees the mean of its values, bias_v and 0."""
    m = nn.MultiheadAttention(2, 1, bias=False, add_bias_kv=True, add_zero_attn=True).double()
    with no_grad():
        m.in_proj_weight.copy_(np.concatenate([np.zeros((4, 2)), np.eye(2)]))
        m.out_proj.weight.copy_(np.eye(2))
        m.bias_k.zero_()
        m.bias_v.copy_(np.array([[[6.0, 9.0]]]))
    x = Tensor(np.array([[[3.0, 0.0]], [[6.0, 3.0]]]))  # two positions
    y, weights = m(x, x, x)
    np.testing.assert_allclose(y.data[:, 0], [[15 / 4, 3]] * 2)
    np.testing.assert_allclose(weights.data, np.full((1, 2, 4), 0.25))
    y, _ = m(x, x, x, need_weights=False, is_causal=True)
    np.testing.assert_allclose(y.data[:, 0], [[3, 3], [15 / 4, 3]])  # the first position sees one value, bias_v and 0
    assert set(m.state_dict()) == {"in_proj_weight", "out_proj.weight", "bias_k", "bias_v"}


def test_projected_lstm_has_pytorchs_parameters():
    m = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    assert m.weight_ih_l1_reverse.shape == (16, 4) and m.weight_hh_l0.shape == (16, 2) and m.weight_hr_l1.shape == (2, 4)
    assert [n for n, _ in m.named_parameters()][:5] == [
        f"{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    ]
    y, (h, c) = m(sg.zeros(5, 2, 3))
    assert (y.shape, h.shape, c.shape) == ((5, 2, 4), (4, 2, 2), (4, 2, 4)) and "proj_size=2" in repr(m)


def test_a_data_set_is_shown_in_a_line():
    x = np.zeros((30, 1, 8, 8), np.float32)
    assert repr(data.Images(x, name="x")) == "Images(name='x', 30 pictures of shape (1, 8, 8))"
    shown = repr(data.Images(x, np.zeros(30, np.int64), ("a", "b"), "y"))
    assert shown == "Images(name='y', 30 pictures of shape (1, 8, 8), 2 classes)"
    assert repr(data.Text("abc" * 1000, "t")) == "Text(name='t', 3,000 characters)"


# -------------------------------------------------------------------------------------------------------------- bad calls

x3, x23 = Tensor([1.0, 2.0, 3.0]), Tensor(np.ones((2, 3), np.float32))
BAD = [
    (lambda: x3.topk(4), ValueError, "topk: expected k from 0 to 3, the length of dimension -1, got 4"),
    (lambda: x3[0].topk(2), ValueError, "topk: expected k from 0 to 1, the length of dimension -1, got 2"),
    (lambda: x3.topk(True), ValueError, "topk: expected k from 0 to 3"),
    (lambda: x3.sort(1), IndexError, "argsort: expected a dimension from -1 to 0, got 1"),
    (lambda: sg.bincount(x3), TypeError, "bincount: expected a 1-d tensor of whole numbers, got float32"),
    (lambda: sg.bincount(Tensor([[1]])), TypeError, r"got int64 of shape \(1, 1\)"),
    (lambda: sg.bincount(Tensor([1, -2])), ValueError, "bincount: expected whole numbers of at least 0, got -2"),
    (lambda: sg.bincount(Tensor([1]), minlength=-1), ValueError, "bincount: expected minlength to be a whole number"),
    (lambda: sg.bincount(Tensor([1]), x3), ValueError, r"one weight for each of \(1,\) numbers, got \(3,\)"),
    (lambda: sg.mm(x3, x23), ValueError, r"mm: expected shapes \(m, k\) and \(k, n\), got \(3,\) and \(2, 3\)"),
    (lambda: sg.bmm(x23[None], sg.ones(2, 3, 1)), ValueError, "bmm: expected as many matrices on both sides"),
    (lambda: sg.bmm(x23, x23), ValueError, r"bmm: expected shapes \(b, m, k\) and \(b, k, n\)"),
    (lambda: sg.dot(x3, x23), ValueError, r"dot: expected shapes \(n\) and \(n\)"),
    (lambda: sg.outer(x3, x23), ValueError, r"outer: expected shapes \(n\) and \(m\)"),
    (lambda: sg.cdist(x3, x23), ValueError, r"cdist: expected shapes \(…, n, k\) and \(…, m, k\), got \(3,\)"),
    (lambda: sg.cdist(x23, x23[:, :2]), ValueError, r"cdist: .* got \(2, 3\) and \(2, 2\)"),
    (lambda: sg.cdist(x23, x23, -1.0), ValueError, "cdist: expected p of at least 0, got -1"),
    (lambda: sg.diag(x23[None]), ValueError, r"diag: expected a vector or a matrix, got shape \(1, 2, 3\)"),
    (lambda: sg.meshgrid(), ValueError, "meshgrid: expected vectors or numbers, at least one"),
    (lambda: sg.meshgrid(x23), ValueError, "meshgrid: expected vectors"),
    (lambda: sg.meshgrid(x3, indexing="yx"), ValueError, "meshgrid: expected indexing 'ij' or 'xy', got 'yx'"),
    (lambda: sg.div(x3, x3, rounding_mode="up"), ValueError, "div: expected rounding_mode None, 'floor' or 'trunc', got 'up'"),
    (lambda: x3.movedim((0, 0), (0, 0)), ValueError, "movedim: expected as many positions as dimensions, each once"),
    (lambda: x23.movedim((0, 1), 0), ValueError, "movedim: expected as many positions"),
    (lambda: x3[0].gather(0, Tensor([[0]])), ValueError, "gather: expected an index of at most one dimension for a 0-d tensor"),
    (lambda: x3[0].gather(0, Tensor([1])), IndexError, "gather: expected indices from 0 to 0, got 1"),
    (lambda: x3[0].gather(1, Tensor([0])), IndexError, "gather: expected a dimension from -1 to 0, got 1"),
    (lambda: x3[0].index_select(0, Tensor([0, 0])), ValueError, "index_select: expected one index into a 0-d tensor"),
    (lambda: x3[0].index_select(0, Tensor([1])), IndexError, "index_select: expected indices from 0 to 0, got 1"),
    (lambda: x3[0].scatter_add(0, Tensor([[0]]), x3), ValueError, "scatter_add: expected index and src of at most one"),
    (lambda: x3[0].scatter_add(0, Tensor([0]), x23), ValueError, r"for a 0-d tensor, got \(1,\) and \(2, 3\)"),
    (lambda: x3.index_add(0, Tensor([3]), x3[:1]), IndexError, "index_add: expected indices from 0 to 2, got 3"),
    (lambda: x3.index_add(0, x3, x3), TypeError, "index_add: expected an integer index, got float32"),
    (lambda: x3[0].index_add(1, Tensor([0]), x3[:1]), IndexError, "index_add: expected a dimension from -1 to 0, got 1"),
    (lambda: x3.scatter_add(0, x3[:0], x3), TypeError, "scatter_add: expected an integer index, got float32"),
    (lambda: x3.repeat_interleave(2, output_size=5), ValueError, "repeat_interleave: expected output_size 6, got 5"),
    (lambda: F.gaussian_nll_loss(x3, x3, -x3), ValueError, "gaussian_nll_loss: expected variances of at least 0"),
    (lambda: F.gaussian_nll_loss(x3, x3, x3, eps=0), ValueError, "gaussian_nll_loss: expected eps above 0, got 0"),
    (lambda: F.gaussian_nll_loss(x3, x3, x3[:2]), ValueError, r"a var that broadcasts to it, got \(3,\), \(2,\)"),
    (lambda: F.gaussian_nll_loss(x3, x3[:2], x3), ValueError, r"expected a target of shape \(3,\)"),
    (lambda: F.interpolate(x23[None], 4, recompute_scale_factor=True), ValueError, "recompute_scale_factor goes with scale"),
    (lambda: F.max_pool1d(sg.ones(1, 1, 1), 2, padding=1, dilation=2), ValueError, "one whose cells all lie in the padding"),
    (lambda: nn.GRU(2, 3, proj_size=1), ValueError, "GRU: expected proj_size 0, as only LSTM has projections, got 1"),
    (lambda: nn.LSTM(2, 3, proj_size=3), ValueError, "LSTM: expected proj_size from 0 to hidden_size − 1, 2, got 3"),
    (lambda: sg.bernoulli(x3), ValueError, "bernoulli: expected probabilities from 0 to 1"),
    (lambda: sg.bernoulli(x3 * nan), ValueError, "bernoulli: expected probabilities from 0 to 1"),
    (lambda: sg.multinomial(x3, 4), ValueError, "multinomial: expected at most 3 samples without replacement, got 4"),
    (lambda: sg.multinomial(x3 * 0, 1), ValueError, "multinomial: expected 1 or more weights above 0 in each row, got 0"),
    (lambda: sg.multinomial(x23 * 0, 1, True), ValueError, "multinomial: expected 1 or more weights above 0"),
    (lambda: sg.multinomial(Tensor([0.0, 1.0, 2.0]), 3), ValueError, "multinomial: expected 3 or more weights above 0 in each"),
    (lambda: sg.multinomial(-x3, 1), ValueError, "multinomial: expected weights that are finite and at least 0"),
    (lambda: sg.multinomial(x3 / 0.0, 1), ValueError, "multinomial: expected weights that are finite"),
    (lambda: sg.multinomial(x3, 0), ValueError, "multinomial: expected num_samples to be a whole number of at least 1, got 0"),
    (lambda: sg.multinomial(Tensor([1, 2]), 1), ValueError, "multinomial: expected floating weights of shape"),
    (lambda: Tensor([1, 2]).mul_(0.5), ValueError, r"mul_: expected a result of shape \(2,\) and int64, got"),
    (lambda: x3.detach().add_(x23), ValueError, r"add_: expected a result of shape \(3,\) and float32, got \(2, 3\)"),
    (lambda: Tensor([1]).normal_(), TypeError, "normal_: expected a floating dtype, got int64"),
    (lambda: sg.zeros(1).bernoulli_(2.0), ValueError, "bernoulli_: expected p from 0 to 1, got 2.0"),
]


@pytest.mark.parametrize("call, exception, words", BAD, ids=[words[:40] for _, _, words in BAD])
def test_bad_calls_get_one_sentence(call, exception, words):
    with np.errstate(all="ignore"), pytest.raises(exception, match=words):
        call()


# ------------------------------------------------------------------------------------------------- methods and operators


def test_a_method_is_the_function_that_stands_under_the_line_method():
    assert Tensor.exp is sg.exp and Tensor.__add__ is Tensor.add is sg.add and Tensor.view is sg.reshape
    assert (2 - Tensor([5.0])).tolist() == [-3] and Tensor.__rsub__.__module__ == "scratchgen.ops.elementwise"
    assert Tensor.backward.__module__ == "scratchgen.autograd" and Tensor.T.fget.__module__ == "scratchgen.ops.shape"


def test_method_takes_the_name_of_a_function_or_a_property_or_those_listed(monkeypatch):
    for name in ("once", "twice", "double_of", "__rlshift__"):
        monkeypatch.setattr(Tensor, name, None, raising=False)

    @method
    def once(x):
        return x * 1

    @method("twice", "double_of", reflected="__rlshift__")
    def doubled(x, y=None):
        return x * 2 if y is None else (x, y)

    x = Tensor([3.0])
    assert x.once().item() == 3 and x.twice().item() == x.double_of().item() == 6
    assert 1 << x == (1, x) and doubled(x).item() == 6
    monkeypatch.setattr(Tensor, "half", None, raising=False)

    @method
    @property
    def half(x):
        return x / 2

    assert x.half.item() == 1.5


# -------------------------------------------------------------------------------------------------------------------- gradients


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


def test_the_gradient_of_a_bias_alone_can_be_differentiated():
    """b̄ = Σ_rows ȳ, so with ȳ = y² its derivative in the direction u is Σ_rows 2 y u, for every row."""
    x, w, b = sg.tensor(np.ones((3, 2))), sg.tensor(np.ones((4, 2))), sg.tensor(np.arange(4.0), requires_grad=True)
    y = F.linear(x, w, b)  # (3, 4)
    (g,) = sg.grad((y * y * y / 3).sum(), b, create_graph=True)
    (h,) = sg.grad((g * sg.tensor(np.arange(1.0, 5.0))).sum(), b)
    np.testing.assert_allclose(g.data, (y.data**2).sum(0))
    np.testing.assert_allclose(h.data, (2 * y.data).sum(0) * np.arange(1.0, 5.0))
