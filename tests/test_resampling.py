"""Other sizes: values worked by hand, and what each mode may see of a picture."""

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen.ops.resampling import _nearest


def line(*values):
    return sg.tensor(np.array(values, np.float64).reshape(1, 1, -1))


def test_bicubic_halfway_between_two_pixels():
    """k(½) = 19/32 and k(3/2) = −3/32 for a = −¾, and a constant stays."""
    x = np.arange(1.0, 17).reshape(1, 1, 4, 4) ** 2
    w = np.array([-3, 19, 19, -3]) / 32
    y = F.interpolate(sg.tensor(x), (7, 7), mode="bicubic", align_corners=True).numpy()
    np.testing.assert_allclose(y[0, 0, 3, 3], w @ x[0, 0] @ w, rtol=1e-14)
    np.testing.assert_allclose(y[..., ::2, ::2], x, rtol=1e-14)
    np.testing.assert_allclose(F.interpolate(sg.tensor(0 * x + 3), (5, 9), mode="bicubic").numpy(), 3, rtol=1e-14)


def test_bicubic_at_the_edge_repeats_the_last_pixel():
    """Twice the size: u_0 = −¼, whose neighbours −2, −1, 0 and 1 have the pixels 0, 0, 0 and 1."""
    x = sg.tensor(np.array([[0.0, 1.0]] * 2).reshape(1, 1, 2, 2))
    v = 1.25
    far = -0.75 * (v**3 - 5 * v**2 + 8 * v - 4)
    np.testing.assert_allclose(F.interpolate(x, scale_factor=2, mode="bicubic").numpy()[0, 0, 0, 0], far, rtol=1e-14)


def test_nearest_exact_takes_the_middle_of_each_cell():
    x = line(10, 20, 30)
    assert F.interpolate(x, 5, mode="nearest-exact").tolist() == [[[10, 10, 20, 30, 30]]]  # ⌊0.3, 0.9, 1.5, 2.1, 2.7⌋
    assert F.interpolate(x, 5).tolist() == [[[10, 10, 20, 20, 30]]]  # ⌊0, 0.6, 1.2, 1.8, 2.4⌋
    assert F.interpolate(x, scale_factor=2.0, mode="nearest-exact").tolist() == [[[10, 10, 20, 20, 30, 30]]]
    assert F.interpolate(x, 2, mode="nearest-exact").tolist() == [[[10, 30]]]


def test_a_whole_factor_repeats_each_pixel_as_often():
    """Exactly, although 49 · (1/49) is below 1 in float64."""
    np.testing.assert_array_equal(F.interpolate(line(10, 20), scale_factor=49.0).numpy()[0, 0], [10.0] * 49 + [20.0] * 49)


def test_the_last_of_many_pixels_is_inside_although_its_position_is_rounded():
    """(m − 1 + ½)/m is 1 in float32 for m = 2²³ + 2: the second of one pixel."""
    assert _nearest(1, 2**23 + 2, None, 0.5, np.dtype(np.float32))[-1] == 0


def test_area_is_the_mean_of_cells_that_may_overlap():
    assert F.interpolate(line(1, 2, 6), 2, mode="area").tolist() == [[[1.5, 4]]]
    x = np.arange(24.0).reshape(1, 1, 2, 3, 4)
    y = F.interpolate(sg.tensor(x), (1, 3, 2), mode="area").numpy()
    np.testing.assert_allclose(y, x.reshape(1, 1, 2, 3, 2, 2).mean((2, 5))[:, :, None], rtol=1e-14)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "trilinear", "area"])
def test_volumes_are_resized_along_each_dimension(mode):
    """A product of functions of one coordinate each, resized, is the product of the resized functions."""
    rng = np.random.default_rng(0)
    sides, channels = [rng.standard_normal(n) for n in (3, 4, 2)], np.array([1.0, -2.0])
    one = {"trilinear": "linear"}.get(mode, mode)
    y = [F.interpolate(line(*side), m, mode=one).numpy()[0, 0] for side, m in zip(sides, (5, 3, 4), strict=True)]
    x = sg.tensor(np.einsum("c,i,j,k->cijk", channels, *sides)[None])
    expected = np.einsum("c,i,j,k->cijk", channels, *y)
    np.testing.assert_allclose(F.interpolate(x, (5, 3, 4), mode=mode).numpy()[0], expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("mode", "reach"), [("nearest", 0), ("nearest-exact", 0), ("area", 0), ("bilinear", 1), ("bicubic", 2)]
)
def test_a_pixel_that_is_nan_reaches_only_its_neighbours(mode, reach):
    x = np.ones((1, 1, 9, 9))
    x[0, 0, 4, 4] = np.nan
    with np.errstate(invalid="ignore"):
        bad = np.argwhere(np.isnan(F.interpolate(sg.tensor(x), (27, 27), mode=mode).numpy()[0, 0]))
    assert len(bad) and (np.abs((bad + 0.5) / 3 - 4.5).max(-1) < 0.5 + reach).all()


def test_a_size_that_stays_and_a_neighbour_of_no_weight_leave_infinities_alone():
    x = line(1, np.inf, 2).unsqueeze(2)
    for mode in ("bilinear", "bicubic"):
        np.testing.assert_array_equal(F.interpolate(x, (1, 3), mode=mode).numpy(), x.numpy())
