"""Where values or slopes are 0 or infinite, and where numbers stand for tensors: what comes out, and what reaches whom."""

import numpy as np
import pytest

import kernels
import scratchgen as sg
from scratchgen import functional as F

LOSSES = [F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits, F.kl_div]


# ------------------------------------------------------------------------------------------- numbers for tensors


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loss_takes_a_number_for_a_tensor_of_it(loss, dtype):
    x = sg.tensor(np.array([[1.0, -2.0], [0.5, 3.0]], dtype), requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        expected = loss(x, sg.ones(2, 2, dtype=dtype), reduction=reduction)
        (slope,) = sg.grad(expected.sum(), x)
        for one in (1.0, 1, np.float64(1.0)):
            found = loss(x, one, reduction=reduction)
            assert found.dtype == dtype and np.array_equal(found.data, expected.data)
            assert np.array_equal(sg.grad(found.sum(), x)[0].data, slope.data)
    with pytest.raises(ValueError, match="expected input and target of one shape"):
        loss(x, sg.tensor(1.0, dtype))  # a tensor of no dimensions has a shape, and another one


def test_a_number_may_be_the_input_of_a_loss():
    assert F.mse_loss(0.0, sg.tensor([1.0, 3.0])).item() == 5


# ------------------------------------------------------------------------------------------- whole numbers


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    with kernels.use(request.param):
        yield request.param


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.uint64])
def test_narrow_indices_reach_all_rows_of_a_table(backend, dtype, width):
    """As many rows as the dtype has numbers, or more: a sum of an index and the count of rows would not fit."""
    most = int(np.iinfo(dtype).max)
    rows = 70_000 if most > 127 and np.iinfo(dtype).bits == 16 else 300 if np.iinfo(dtype).bits == 8 else 40_000
    last = min(most, rows - 1)
    w = sg.tensor(np.ones((rows, width), np.float32), requires_grad=True)
    i = sg.tensor(np.array([0, last, last, 5], dtype))
    expected = np.zeros((rows, width))
    expected[[0, 5, last]] = [[1], [1], [2]]
    for y in (F.embedding(i, w), w[i], w.index_select(0, i), w.gather(0, i.reshape(4, 1).expand(4, width))):
        assert np.array_equal(sg.grad(y.sum(), w)[0].data, expected)
    assert np.array_equal(sg.zeros(rows).scatter_add(0, i, sg.ones(4)).data, expected[:, 0])
    if np.iinfo(dtype).min < 0:
        assert np.array_equal(sg.grad(w[sg.tensor(np.array([-1, -1], dtype))].sum(), w)[0].data[-1], np.full(width, 2))
    logits = sg.tensor(np.zeros((4, rows), np.float32), requires_grad=True)
    (slope,) = sg.grad(F.cross_entropy(logits, i, reduction="sum"), logits)
    assert slope.data[1, last] == pytest.approx(1 / rows - 1) and slope.data.sum() == pytest.approx(0, abs=1e-4)
    assert sg.repeat_interleave(sg.tensor([7, 8, 9, 6]), i % sg.tensor(np.array(3, dtype))).shape[0] == int((i.data % 3).sum())


def test_clamp_with_bounds_beyond_the_dtype():
    """min(max(x, lo), hi) as if in whole numbers; where that is no number of the dtype it is refused."""
    byte, word = sg.tensor(np.array([0, 7, 255], np.uint8)), sg.tensor([-3, 5])
    for x, lo, hi, expected in (
        (byte, -1, 300, [0, 7, 255]), (byte, None, 256, [0, 7, 255]), (byte, -10**30, 6, [0, 6, 6]),
        (byte, 3, None, [3, 7, 255]), (byte, 300, 5, [5, 5, 5]),
        (word, -2**70, 2, [-3, 2]), (word, -1, 2**63, [-1, 5]), (word > 0, 0, 5, [0, 1]),
    ):  # fmt: skip
        y = x.clamp(lo, hi)
        assert y.data.tolist() == expected and y.dtype == (np.int64 if x.dtype == bool else x.dtype)
    for lo, hi in ((300, None), (300, 400), (None, -1), (-7, -5), (300, -1)):
        with pytest.raises(ValueError, match=f"^clamp: expected bounds that leave numbers of uint8, got {lo} and {hi}$"):
            byte.clamp(lo, hi)
    single = sg.tensor(np.array([-np.inf, -3e38, 1, np.inf], np.float32), requires_grad=True)
    for lo, hi in ((-1e60, 1e60), (-(10**400), 10**400), (-np.inf, np.inf)):
        y = single.clamp(lo, hi)
        assert y.dtype == np.float32 and np.array_equal(y.data, single.data)
        assert sg.grad(y, single, sg.ones(4))[0].data.tolist() == [1, 1, 1, 1]
    assert np.array_equal(sg.tensor(np.array([1, 6e4], np.float16)).clamp(max=1e5).data, np.array([1, 6e4], np.float16))
    assert np.isnan(single.clamp(min=np.nan).data).all()
    assert single.clamp(-70000.5, 70000.5).data.tolist() == [-70000.5, -70000.5, 1, 70000.5]


def test_fill_refuses_what_the_dtype_does_not_hold():
    x = sg.tensor(np.array([1, 2], np.uint8))
    for value in (256, -1):
        with pytest.raises(OverflowError, match=f"{value} out of bounds for uint8"):
            x.fill_(value)
    assert x.data.tolist() == [1, 2] and x.fill_(255).data.tolist() == [255, 255]
    assert x.fill_(sg.tensor(3)).data.tolist() == [3, 3]


# ------------------------------------------------------------------------------------------- zero slopes, infinite cotangents

NAN, INF = np.nan, np.inf
POINTS = [-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, INF]


def slopes_of(f, x, cotangent):
    x = sg.tensor(np.array(x), requires_grad=True)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return sg.grad(f(x), x, sg.tensor(np.full(x.shape, cotangent)))[0].data


# For each function its slopes at POINTS: where the slope is 0 because another branch is taken, or because the function is
# constant, an infinite or NaN cotangent gives 0 there, not 0 · ∞ = NaN.
FLAT = {
    "floor": (sg.floor, [0] * 9),
    "ceil": (sg.ceil, [0] * 9),
    "round": (sg.round, [0] * 9),
    "sign": (sg.sign, [0] * 9),
    "x⁰": (lambda x: x**0, [0] * 9),
    "x⁰·⁰": (lambda x: x**0.0, [0] * 9),
    "xᵇ, b = 0": (lambda x: x ** sg.tensor(np.zeros(9)), [0] * 9),
    "relu": (F.relu, [0, 0, 0, 0, 0, 1, 1, 1, 1]),
    "leaky_relu of slope 0": (lambda x: F.leaky_relu(x, 0.0), [0, 0, 0, 0, 0, 1, 1, 1, 1]),
    "clamp": (lambda x: x.clamp(-1, 1), [0, 0, 1, 1, 1, 1, 1, 0, 0]),
    "clamp from below": (lambda x: x.clamp(min=0), [0, 0, 0, 1, 1, 1, 1, 1, 1]),
    "clamp from above": (lambda x: x.clamp(max=0), [1, 1, 1, 1, 1, 0, 0, 0, 0]),
    "clamp by tensors": (lambda x: x.clamp(sg.tensor(np.full(9, -1.0)), sg.tensor(np.ones(9))), [0, 0, 1, 1, 1, 1, 1, 0, 0]),
    "hardtanh": (F.hardtanh, [0, 0, 0, 1, 1, 1, 0, 0, 0]),
    "maximum": (lambda x: sg.maximum(x, sg.tensor(np.zeros(9))), [0, 0, 0, 0.5, 0.5, 1, 1, 1, 1]),
    "maximum, the other": (lambda x: sg.maximum(sg.tensor(np.zeros(9)), x), [0, 0, 0, 0.5, 0.5, 1, 1, 1, 1]),
    "minimum": (lambda x: sg.minimum(x, sg.tensor(np.zeros(9))), [1, 1, 1, 0.5, 0.5, 0, 0, 0, 0]),
    "minimum, the other": (lambda x: sg.minimum(sg.tensor(np.zeros(9)), x), [1, 1, 1, 0.5, 0.5, 0, 0, 0, 0]),
    "where": (lambda x: sg.where(x > 0, x, 7.0), [0, 0, 0, 0, 0, 1, 1, 1, 1]),
    "masked_fill": (lambda x: x.masked_fill(x < 1, 7.0), [0, 0, 0, 0, 0, 0, 1, 1, 1]),
    "huber_loss": (lambda x: F.huber_loss(x, 0.0, "none"), [-1, -1, -1, None, None, 0.5, 1, 1, 1]),
    "huber_loss, δ = ½": (lambda x: F.huber_loss(x, 0.0, "none", 0.5), [-0.5, -0.5, -0.5, None, None, 0.5, 0.5, 0.5, 0.5]),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x, 0.0, "none"), [-1, -1, -1, None, None, 0.5, 1, 1, 1]),
    "smooth_l1_loss, β = 2": (lambda x: F.smooth_l1_loss(x, 0.0, "none", 2.0), [-1, -1, -0.5, None, None, 0.25, 0.5, 1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("cotangent", [1.0, 0.0, INF, -INF, NAN])
def test_a_branch_not_taken_gets_nothing(backend, name, cotangent):
    """None: the slope is 0 by the equation, ȳ d with d = 0, and 0 · ∞ is NaN, as in PyTorch."""
    f, slopes = FLAT[name]
    expected = np.array([cotangent * (s or 0.0) if s or s is None else 0.0 for s in slopes])
    if cotangent == 0:
        expected[:] = 0
    np.testing.assert_array_equal(slopes_of(f, POINTS, cotangent), expected)


@pytest.mark.parametrize("f", [
    lambda x: x.clamp(min=0), lambda x: sg.maximum(x, sg.tensor(np.zeros(3))), F.relu, lambda x: x.clamp(0, 5),
    lambda x: sg.where(x > 0, x, 0.0), lambda x: sg.floor(x.clamp(0, 0.5)),
])  # fmt: skip
def test_the_root_of_what_is_cut_off_at_zero(backend, f):
    """√max(x, 0): the root's slope is infinite at 0 and reaches nobody below."""
    y = slopes_of(lambda x: f(x).sqrt(), [-1.0, -3.0, 4.0], 1.0)
    assert y[:2].tolist() == [0, 0] and y[2] in (0.25, 0)


def test_second_derivatives_of_what_is_cut_off():
    """∂² of ½ max(x, 0)² is [x > 0], through each way of cutting off, also where the first derivative is 0."""
    x = sg.tensor(np.array([-1.0, 2.0]), requires_grad=True)
    for f in (lambda x: x.clamp(min=0), lambda x: sg.maximum(x, sg.tensor(np.zeros(2))), F.relu):
        (slope,) = sg.grad((f(x).square() * 0.5).sum(), x, create_graph=True)
        assert slope.data.tolist() == [0, 2] and sg.grad(slope.sum(), x)[0].data.tolist() == [0, 1]
    (slope,) = sg.grad(F.huber_loss(x, 0.0, "sum", 1.5), x, create_graph=True)
    assert slope.data.tolist() == [-1, 1.5] and sg.grad(slope.sum(), x)[0].data.tolist() == [1, 0]
    (slope,) = sg.grad(sg.floor(x).sum(), x, create_graph=True)
    assert slope.data.tolist() == [0, 0] and not slope.requires_grad


def test_nan_reaches_both_operands_of_a_maximum():
    for f in (sg.maximum, sg.minimum):
        a, b = (sg.tensor(np.array(v), requires_grad=True) for v in ([NAN, 1.0], [2.0, NAN]))
        y = f(a, b)
        assert np.isnan(y.data).all() and all((g.data == 1).all() for g in sg.grad(y, [a, b], sg.ones(2, dtype=np.float64)))
    bound = sg.tensor(np.array([NAN, 0.0]), requires_grad=True)
    x = sg.tensor(np.array([1.0, NAN]), requires_grad=True)
    for y in (x.clamp(min=bound), x.clamp(max=bound)):
        assert np.isnan(y.data).all() and all((g.data == 0).all() for g in sg.grad(y, [x, bound], sg.ones(2, dtype=np.float64)))
    assert sg.tensor([3, 9]).clamp(max=sg.tensor([5, 5])).dtype == np.int64


def test_nothing_reaches_the_elements_of_a_norm_of_zero():
    for f in (lambda x: sg.norm(x), lambda x: sg.std(x)):
        for cotangent in (INF, NAN, 1.0):
            x = sg.tensor(np.zeros(3), requires_grad=True)
            assert sg.grad(f(x), x, sg.tensor(np.array(cotangent)))[0].data.tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------- neighbours alone


def reached(f, shape, at, value):
    """The elements of f(x) that a strange element of x makes strange, and the gradients that a strange cotangent reaches."""
    x = np.random.default_rng(0).standard_normal(shape)
    plain = f(sg.tensor(x)).data
    x[at] = value
    with np.errstate(invalid="ignore"):
        y = f(sg.tensor(x)).data
    assert np.isfinite(plain).all() and np.array_equal(y[np.isfinite(y)], plain[np.isfinite(y)])
    return np.argwhere(~np.isfinite(y))[:, 2:].tolist()


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_strange_pixel_reaches_its_neighbours_alone(backend, value):
    shape, at = (1, 2, 6, 6), (0, 1, 2, 3)

    def box(rows, columns):
        return [[i, j] for i in rows for j in columns]

    def resize(*size, **options):
        return lambda x: F.interpolate(x, size, mode="bilinear", **options)

    # twice as many: outputs 3 … 6 of 12 lie less than 1 from pixel 2, (i + ½)/2 − ½; outputs 5 … 8 from pixel 3
    assert reached(resize(12, 12), shape, at, value) == box(range(3, 7), range(5, 9))
    # half as many: between pixels 2 and 3 lies output 1 alone
    assert reached(resize(3, 3), shape, at, value) == [[1, 1]]
    # corners aligned, 11 for 6: output 4 is pixel 2 itself, 3 and 5 lie beside it; outputs on a pixel read that pixel alone
    assert reached(resize(11, 11, align_corners=True), shape, at, value) == box(range(3, 6), range(5, 8))
    assert reached(resize(6, 1), shape, (0, 1, 2, 0), value) == []  # the middle, 2 ½, reads pixels 2 and 3
    # cells of ⌊6i/4⌋ … ⌈6(i + 1)/4⌉: 0–1, 1–2, 3–4, 4–5
    assert reached(lambda x: F.adaptive_avg_pool2d(x, 4), shape, at, value) == [[1, 2]]
    assert reached(lambda x: F.adaptive_avg_pool2d(x, (3, 4)), shape, (0, 1, 2, 4), value) == [[1, 2], [1, 3]]
    assert reached(lambda x: F.adaptive_avg_pool2d(x, (8, 6)), shape, at, value) == [[i, 3] for i in (2, 3)]


def test_a_strange_cotangent_reaches_the_neighbours_alone(backend):
    for f, size, at, neighbours in (
        (lambda x: F.interpolate(x, (12, 12), mode="bilinear"), 12, (3, 6), [[1, 2], [1, 3], [2, 2], [2, 3]]),
        (lambda x: F.interpolate(x, (11, 11), mode="bilinear", align_corners=True), 11, (4, 6), [[2, 3]]),
        (lambda x: F.adaptive_avg_pool2d(x, 4), 4, (0, 1), [[0, 1], [0, 2], [1, 1], [1, 2]]),
    ):
        x = sg.tensor(np.ones((1, 1, 6, 6)), requires_grad=True)
        dy = np.ones((1, 1, size, size))
        dy[(0, 0, *at)] = NAN
        (g,) = sg.grad(f(x), x, sg.tensor(dy))
        assert np.argwhere(np.isnan(g.data[0, 0])).tolist() == neighbours


def test_long_sequences_are_resampled_without_a_matrix():
    """Ten seconds of sound at 48 kHz and at 44.1 kHz: a dense matrix would take 1.7 TB."""
    n, m = 441_000, 480_000
    x = sg.tensor(np.linspace(0, 1, n).reshape(1, 1, n), requires_grad=True)
    y = F.interpolate(x, m, mode="linear")
    expected = ((np.arange(m) + 0.5) * (n / m) - 0.5).clip(0, n - 1) / (n - 1)
    np.testing.assert_allclose(y.data[0, 0], expected, atol=1e-12)
    (g,) = sg.grad(y.sum(), x)
    assert g.data.sum() == pytest.approx(m, rel=1e-12) and g.data.min() > 0.5
    z = F.adaptive_avg_pool2d(x.reshape(1, 1, n), (1, 1000 - 7))
    assert z.shape == (1, 1, 993) and z.data[0, 0, 496] == pytest.approx(0.5, rel=1e-9)
