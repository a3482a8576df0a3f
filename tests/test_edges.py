"""Where values or slopes are 0 or infinite, and where numbers stand for tensors: what comes out, and what reaches whom."""

import numpy as np
import pytest

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
