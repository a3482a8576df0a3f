"""Every kernel on device arrays against the reference: in the emulator, where the order of the threads is chosen, and, with
`pytest -m gpu`, on a GPU. What the emulator runs is the source that a GPU runs, statement by statement.

The cases are in cuda_cases.py, the machines and the comparison in cuda_machines.py.
"""

import numpy as np
import pytest

pytest.importorskip("numba.cuda")

import kernels
from kernels.cuda import attention, build, matmul, rows
from tests.cuda_cases import CASES, SLOW, normal
from tests.cuda_machines import EMULATED, difference, mapped, wrong
from tests.kernel_cases import KERNELS
from tests.strategies import DEEP

# ---------------------------------------------------------------------------------------------------------------------
# Every kernel
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_kernel_is_the_reference(machine, open_device, name):
    """Called as the library calls it: `kernels.name` on arrays of the device."""
    with np.errstate(all="ignore"):
        for i, (arguments, options) in enumerate(CASES[name]()):
            if machine.capability == EMULATED and not DEEP and i in SLOW.get(name, ()):
                continue
            problem = wrong(machine, kernels, name, arguments, options)
            shapes = mapped(np.shape, list(arguments))
            assert problem is None, f"case {i}, {shapes} {options}: {problem}"


def test_every_kernel_has_cases():
    assert set(CASES) == set(KERNELS)


# ---------------------------------------------------------------------------------------------------------------------
# Products: the steps of the ladder, and tiles of each kind
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["naive", "tiled", "blocked"])
def test_each_step_of_the_ladder_is_a_product(machine, step):
    for m, k, n in ((1, 1, 1), (17, 19, 18), (130, 9, 3)):
        a, b = normal(1, m, k), normal(1, k, n)
        c = machine.there(np.full((1, m, n), np.nan, np.float32))
        kernel = getattr(matmul, step)
        tile = {"naive": 0, "tiled": 16, "blocked": 128}[step]
        blocks = -(-m // tile) * -(-n // tile) if tile else -(-m * n // 256)
        build.launch(kernel, blocks, machine.there(a), machine.there(b), c)
        assert difference(machine.back(c), a @ b, 1e-5) is None


FORMS = [("NN", True)]
MORE = [(form, vector) for form in ("NN", "TN", "NT", "TT") for vector in (True, False) if (form, vector) not in FORMS]


@pytest.mark.parametrize("form, vector", FORMS + [pytest.param(*more, marks=pytest.mark.deep) for more in MORE])
@pytest.mark.parametrize("wide", [128, "tensor"])
def test_the_wide_tiles(machine, form, vector, wide):
    """Two tiles of C, one of them at an edge, and a k that no tile divides; TF32 is the product of rounded factors."""
    if wide == "tensor" and machine.capability < 8:
        pytest.skip("TF32 needs compute capability 8.0")
    m, k, n = 132, 20, 128
    a, b = normal(m, k), normal(k, n)
    if wide == "tensor":
        kernel, expected = matmul.tensor(form, vector), rounded(a) @ rounded(b)
    else:
        kernel, expected = matmul.sgemm(form, vector, wide), a @ b
    a, b = a.T.copy() if form[0] == "T" else a, b.T.copy() if form[1] == "T" else b
    c = machine.there(np.full(m * n, np.nan, np.float32))
    which = matmul.Products(m, n, k, 1, 1, 32, 1)
    build.launch(kernel, 2, machine.there(a.reshape(-1)), machine.there(b.reshape(-1)), c, which)
    assert difference(machine.back(c).reshape(m, n), expected, 1e-5) is None


def rounded(x):
    """To 10 bits of mantissa, to nearest, ties away from 0."""
    return ((x.view(np.uint32).astype(np.uint64) + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# What the reference does not say
# ---------------------------------------------------------------------------------------------------------------------


def test_arrays_of_two_devices_are_refused(emulated):
    with pytest.raises(TypeError, match="matmul: expected arrays on one device, got numpy.ndarray and tests.DeviceArray"):
        matmul.matmul(normal(2, 2), emulated.there(normal(2, 2)))


def test_an_index_out_of_range_is_nan(machine):
    y = machine.back(rows.embedding(machine.there(normal(3, 2)), machine.there(np.array([0, 3, -4]))))
    assert np.isfinite(y[0]).all() and np.isnan(y[1:]).all()
    loss, _ = rows.cross_entropy(machine.there(normal(2, 3)), machine.there(np.array([3, 1])))
    assert np.isnan(machine.back(loss)).tolist() == [True, False]


def test_attention_needs_no_matrix(emulated, monkeypatch):
    """What the kernels allocate for 40 times the length is 40 times as much, not 1600 times."""
    sizes = []

    def counted(like, shape):
        made = np.empty_like(like, shape=shape, dtype=np.float32, order="C")
        sizes.append(made.size)
        return made

    monkeypatch.setattr(attention, "empty", counted)
    monkeypatch.setattr(build, "run", lambda *_: None)
    totals = []
    for t in (50, 2000):
        sizes.clear()
        q = emulated.there(np.zeros((1, t, 32), np.float32))
        out, statistics = attention.attention(q, q, q, causal=True)
        attention.attention_backward(q, q, q, q, out, statistics, causal=True)
        totals.append(sum(sizes))
    assert totals[1] <= 40 * totals[0]
